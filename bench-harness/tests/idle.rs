//! Idle connections, opened, held and asked, against backends of ours in this process.
//!
//! This is the harness testing itself; it needs no privileges, no network beyond loopback, and some seconds.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bench_harness::backend::Backend;
use bench_harness::ledger::Ledger;
use bench_harness::network::{Network, Party};
use bench_harness::transport::{Transport, Wires};
use bench_harness::{idle, proc_fs, sys, web};

mod bed;

use bed::{free_addresses, wires};

/// A backend of ours in a thread, until it is told to stop.
fn serve(wires: &Wires) -> (SocketAddr, Arc<AtomicBool>, JoinHandle<usize>) {
    let address = free_addresses(1)[0];
    let is_over = Arc::new(AtomicBool::new(false));
    let (wires, stop) = (wires.clone(), Arc::clone(&is_over));
    let thread = std::thread::spawn(move || {
        let mut network = Network::new(address, 0, &[address], &wires).expect("bound");
        let (backend, mut ledger) = (Backend::new(0, address, wires.backends), Ledger::new(1, 1, 0, 0));
        while !stop.load(Ordering::Relaxed) {
            let count = network.exchange(|party, message, out| {
                assert_eq!(party, Party::Backend(0));
                backend.receive(&mut ledger, message, out);
            });
            if count.expect("a network") == 0 {
                network.wait(Duration::from_millis(1));
            }
        }
        network.accepted()
    });
    while !proc_fs::is_tcp_listening(address) {
        std::thread::yield_now();
    }
    (address, is_over, thread)
}

fn idle_options(target: &str, connections: usize) -> idle::Options {
    idle::Options {
        target: target.parse().expect("a target"),
        connections,
        sources: vec![[127, 0, 0, 1].into(), [127, 0, 0, 2].into()],
        rate: 2000.0,
        opening_max: 16,
        hold: Duration::from_millis(100),
        timeout: Duration::from_secs(5),
        tls_client: None,
        pid: Some(std::process::id()),
        backend: None,
    }
}

#[test]
fn idle_connections_are_counted_measured_and_answer() {
    for transport in [Transport::Tcp, Transport::Tls] {
        let wires = wires(transport);
        let (address, is_over, thread) = serve(&wires);
        let mut asked = idle_options(&format!("{transport}:{address}"), 60);
        asked.tls_client = wires.tls_client;
        let report = idle::run(&asked).expect("a run");
        is_over.store(true, Ordering::Relaxed);
        assert!(report.is_clean(), "{report}");
        assert_eq!((report.opened, report.answers.get(&200)), (60, Some(&60)), "{report}");
        assert!(report.opening_cpu_us.is_some_and(|us| us > 0.0), "{report}");
        assert_eq!(thread.join().expect("a backend"), 60);
    }
}

#[test]
fn idle_run_tells_what_was_refused_and_lost() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let target = format!("tcp:{}", listener.local_addr().expect("bound"));
    let server = std::thread::spawn(move || {
        let kept = listener.accept().expect("a client");
        let ended = listener.accept().expect("a client");
        sys::pause(Duration::from_millis(1050));
        drop(ended);
        sys::pause(Duration::from_millis(1500));
        drop(kept);
    });
    let mut asked = idle_options(&target, 2);
    (asked.hold, asked.timeout) = (Duration::from_millis(500), Duration::from_millis(300));
    let report = idle::run(&asked).expect("a run");
    assert!(!report.is_clean());
    assert_eq!((report.opened, report.lost_idle, report.asked, report.answered()), (2, 1, 1, 0), "{report}");
    server.join().expect("a server");
    let free = free_addresses(1)[0];
    let report = idle::run(&idle_options(&format!("tcp:{free}"), 3)).expect("a run");
    assert_eq!((report.opened, report.refused), (0, 3), "{report}");
}

#[test]
fn idle_web_socket_asks_and_is_answered_in_frames() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let target = format!("ws:{}", listener.local_addr().expect("bound"));
    let server = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().expect("a client");
        let (mut bytes, mut chunk) = (Vec::new(), [0; 2048]);
        while !bytes.ends_with(b"\r\n\r\n") {
            let len = socket.read(&mut chunk).expect("a handshake");
            bytes.extend_from_slice(&chunk[..len]);
        }
        assert!(bytes.starts_with(b"GET / HTTP/1.1\r\n"));
        socket.write_all(b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Protocol: sip\r\n\r\n").expect("sent");
        bytes.clear();
        // The mask lies between head and payload.
        let (start, end) = loop {
            let len = socket.read(&mut chunk).expect("a question");
            bytes.extend_from_slice(&chunk[..len]);
            if let Some((web::Kind::Message, start, end)) = web::decode(&bytes)
                && bytes.len() >= end + 4
            {
                break (start, end);
            }
        };
        let mask: [u8; 4] = bytes[start..start + 4].try_into().expect("four");
        let payload = bytes[start + 4..end + 4].iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key);
        let question = String::from_utf8(payload.collect()).expect("text");
        let (line, headers) = question.split_once("\r\n").expect("a request");
        assert!(line.starts_with("OPTIONS sip:") && headers.contains("Via: SIP/2.0/WS "), "{question}");
        let answer = format!("SIP/2.0 200 OK\r\n{headers}");
        let mut frame = vec![0x82, 126];
        frame.extend_from_slice(&(answer.len() as u16).to_be_bytes());
        frame.extend_from_slice(answer.as_bytes());
        socket.write_all(&frame).expect("sent");
        // Until the client is gone.
        while socket.read(&mut chunk).is_ok_and(|len| len > 0) {}
    });
    let report = idle::run(&idle_options(&target, 1)).expect("a run");
    assert!(report.is_clean(), "{report}");
    server.join().expect("a server");
}
