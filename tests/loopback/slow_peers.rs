//! Peers that are in no hurry: those that never finish a message and those that never read, beside calls that go on.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::bed::local;
use crate::callee::{Callee, Door};
use crate::calls::check_all_well;
use crate::node::Plan;
use crate::phone::{Heard, Phone, narrow_socket};
use crate::sipp::{Load, Sipp};
use crate::{Place, await_some, free_port, is_full};

/// Lets this process open as many files as it may.
pub fn raise_file_limit() {
    let process = std::process::id().to_string();
    let limit = Command::new("sh").args(["-c", "ulimit -Hn"]).output().unwrap().stdout;
    let limit = String::from_utf8(limit).unwrap().trim().to_owned();
    let status = Command::new("prlimit").args(["--pid", &process, &format!("--nofile={limit}:{limit}")]).status();
    assert!(status.unwrap().success(), "prlimit");
}

/// Resident memory of a process in KiB.
pub fn resident_kib(process: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Connects; nothing waits from there on.
fn dial(to: SocketAddr, is_narrow: bool) -> TcpStream {
    let socket = if is_narrow { narrow_socket() } else { Socket::new(Domain::IPV4, Type::STREAM, None).unwrap() };
    socket.connect(&to.into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.into()
}

/// Keeps `count` connections with a message that comes byte by byte and never ends; opens another for each that is
/// closed. Gives back how many were.
fn drip(to: SocketAddr, count: usize, is_over: &AtomicBool) -> u64 {
    let line = b"OPTIONS sip:slow@127.0.0.1 SIP/2.0\r\nX-Slow: ";
    let mut streams: Vec<(TcpStream, usize)> = (0..count).map(|_| (dial(to, false), 0)).collect();
    let mut closed = 0;
    while !is_over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        for (stream, sent) in &mut streams {
            let byte = line.get(*sent).copied().unwrap_or(b'x');
            if stream.write_all(&[byte]).is_ok() {
                *sent += 1;
            } else {
                closed += 1;
                (*stream, *sent) = (dial(to, false), 0);
            }
        }
        sleep(Duration::from_millis(200).saturating_sub(begun.elapsed()));
    }
    closed
}

/// Keeps `count` connections on which requests are sent and nothing is read. Gives back how many were closed.
fn stare(to: SocketAddr, count: usize, pause: Duration, is_over: &AtomicBool, sent: &AtomicU64) -> u64 {
    let author = Phone::connect(to).author;
    let mut streams: Vec<TcpStream> = (0..count).map(|_| dial(to, true)).collect();
    let (mut closed, mut number) = (0, 0u64);
    while !is_over.load(Ordering::Relaxed) {
        for stream in &mut streams {
            // One after the other: all at once would be a flood.
            sleep(pause / count as u32);
            number += 1;
            // As much in each answer as in its request.
            let text = author.request("OPTIONS", &format!("stare-{number}"), to, &[b'x'; 20_000]);
            match stream.write(&text) {
                Ok(len) if len == text.len() => _ = sent.fetch_add(1, Ordering::Relaxed),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                // Cut in the middle, it would be garbage from here on.
                Ok(_) | Err(_) => {
                    closed += 1;
                    *stream = dial(to, true);
                }
            }
        }
    }
    closed
}

struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn calls_go_on_beside_peers_that_drip_and_peers_that_do_not_read() {
    raise_file_limit();
    let place = Place::take("slow-peers");
    let (drips, stares, rate, seconds) = if is_full() { (2_000, 200, 300, 30) } else { (200, 20, 50, 4) };
    // Both sizes leave room in the processor: this is about peers that are slow, not about too many requests.
    let pause = Duration::from_millis(if is_full() { 1_000 } else { 150 });
    let port = free_port();
    let _backend = Sipp::backend(place.folder(), "backend", port);
    let other = Callee::start(Door::Tcp);
    let [calm, slow] = [local(free_port()), local(free_port())];
    let calm_plan = Plan::new(&[format!("udp:{calm}"), format!("tcp:{calm}")], &[format!("udp:{}", local(port))]);
    let mut slow_plan = Plan::new(&[format!("tcp:{slow}")], &[other.target()]);
    slow_plan.name = "slow";
    let more = format!(
        "{}[timers]\nmessage_timeout = \"2s\"\nwrite_timeout = \"1m\"\n[limits]\nwrite_queue = \"128KiB\"\n",
        slow_plan.text()
    );
    let node = calm_plan.start(&place, &more);
    let (is_over, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let calls = rate * seconds;
    let (dripped, stared) = std::thread::scope(|scope| {
        let dripping = scope.spawn(|| drip(slow, drips, &is_over));
        let staring = scope.spawn(|| stare(slow, stares, pause, &is_over, &sent));
        // However this ends, they end too.
        let end = End(&is_over);
        node.await_report("the slow ones to be there", |report| report.total("connections") >= (drips + stares) as u64);
        let load = Load { target: calm, calls, rate, hold: 100, extra: &["-t", "t1"] };
        let mut caller = Sipp::caller(place.folder(), "caller", &load);
        check_all_well(&mut caller, calls, rate);
        let load = Load { target: calm, calls: rate, rate, hold: 100, extra: &[] };
        let mut caller = Sipp::caller(place.folder(), "datagram-caller", &load);
        check_all_well(&mut caller, rate, rate);
        drop(end);
        (dripping.join().unwrap(), staring.join().unwrap())
    });
    let resident = resident_kib(node.process());
    let sent = sent.load(Ordering::Relaxed);
    println!(
        "{drips} that drip ({dripped} closed) and {stares} that do not read ({stared} closed, {sent} requests) beside \
         {calls} calls at {rate}/s: 0 failed; {resident} KiB resident"
    );
    let report = node.await_report("all to be gone", |report| report.total("connections") <= 4);
    assert!(dripped >= drips as u64 / 2, "a message that does not end is timed out: {dripped}");
    assert!(report.total("connections_timed_out_total") >= dripped, "{report:#?}");
    assert!(stared > 0, "who does not read is cut off");
    let cut = report.sum("undeliverable_total", "reason=\"write-queue-full\"");
    assert!(cut > 0, "{report:#?}");
    let (status, _, report) = node.stop();
    assert!(status.success(), "{status}");
    report.check_balance();
    report.check_nothing_shed();
}

#[test]
fn who_pings_and_does_not_read_is_cut_off_and_takes_no_memory() {
    let place = Place::take("pings");
    let backend = Callee::start(Door::Tcp);
    let service = local(free_port());
    let more = "[timers]\nwrite_timeout = \"10m\"\n[limits]\nwrite_queue = \"128KiB\"\n";
    let node = Plan::new(&[format!("tcp:{service}")], &[backend.target()]).start(&place, more);
    Phone::connect(service).call("before");
    let before = resident_kib(node.process());
    let pings = b"\r\n\r\n".repeat(16_384);
    let mut stream = dial(service, true);
    let begun = Instant::now();
    let (mut sent, mut is_cut) = (0, false);
    // Far more than both socket buffers and the queue hold.
    while sent < 512 << 20 && begun.elapsed() < Duration::from_secs(20) {
        match stream.write(&pings) {
            Ok(len) => sent += len,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => sleep(Duration::from_millis(1)),
            Err(_) => {
                is_cut = true;
                break;
            }
        }
    }
    let grown = resident_kib(node.process()).saturating_sub(before);
    assert!(is_cut, "{sent} bytes of pings were taken, {grown} KiB more are resident");
    assert!(grown < 16 << 10, "{grown} KiB more for {sent} bytes of pings");
    println!("cut off after {} KiB of pings, {grown} KiB more resident", sent >> 10);
    Phone::connect(service).call("after");
    drop(node);
}

/// Reads in the middle of messages all the time, for longer than one message may take.
#[test]
fn connection_that_is_always_in_the_middle_of_a_message_lives_on() {
    let place = Place::take("busy");
    let backend = Callee::start(Door::Tcp);
    let service = local(free_port());
    let node = Plan::new(&[format!("tcp:{service}")], &[backend.target()])
        .start(&place, "[timers]\nmessage_timeout = \"500ms\"\n");
    let mut phone = Phone::connect(service);
    let mut rest = Vec::new();
    let mut number = 0;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(2_500) {
        number += 1;
        let request = phone.author.request("OPTIONS", &format!("busy-{number}"), service, b"body");
        let (front, back) = request.split_at(100);
        rest.extend_from_slice(front);
        phone.send(&rest);
        rest = back.to_vec();
        sleep(Duration::from_millis(100));
    }
    phone.send(&rest);
    for number in 1..=number {
        match phone.hear(Duration::from_secs(5)) {
            Heard::Message(answer) => assert!(answer.starts_with(b"SIP/2.0 200"), "{number}"),
            other => panic!("answer {number}: {other:?}"),
        }
    }
    let (_, _, report) = node.stop();
    assert_eq!(report.total("connections_timed_out_total"), 0, "{report:#?}");
    report.check_balance();
}

/// Answers that pile up while the client does not read arrive in order, each once, when it reads again.
#[test]
fn who_reads_late_gets_each_answer_once() {
    let place = Place::take("late");
    let backend = Callee::start(Door::Tcp);
    let service = local(free_port());
    let more = "[limits]\nwrite_queue = \"4MiB\"\n[timers]\nwrite_timeout = \"1m\"\n";
    let node = Plan::new(&[format!("tcp:{service}")], &[backend.target()]).start(&place, more);
    for round in 0..3 {
        let before = backend.count();
        let mut phone = Phone::connect_narrow(service);
        let call_id = |number: usize| format!("late-{round}-{number}-{}", "c".repeat(200));
        const REQUESTS: usize = 1_000;
        for number in 0..REQUESTS {
            let request = phone.author.request("OPTIONS", &call_id(number), service, b"");
            phone.send(&request);
        }
        await_some("the backend to have them", Duration::from_secs(20), || {
            (backend.count() >= before + REQUESTS).then_some(())
        });
        // Read in bits, while more answers are queued behind.
        let more: Vec<usize> = (REQUESTS..REQUESTS + 200).collect();
        let mut answered = std::collections::BTreeMap::new();
        for number in 0..REQUESTS + more.len() {
            if let Some(next) = more.get(number) {
                let request = phone.author.request("OPTIONS", &call_id(*next), service, b"");
                phone.send(&request);
            }
            match phone.hear(Duration::from_secs(8)) {
                Heard::Message(answer) => {
                    assert!(answer.starts_with(b"SIP/2.0 200"), "{}", String::from_utf8_lossy(&answer));
                    *answered.entry(crate::endpoint::headers(&answer, "Call-ID").concat()).or_insert(0) += 1;
                }
                other => panic!("answer {number} of round {round}: {other:?}"),
            }
        }
        assert!(answered.len() == REQUESTS + more.len() && answered.values().all(|count| *count == 1));
        assert_eq!(phone.hear(Duration::from_millis(100)), Heard::Nothing);
    }
    let (_, _, report) = node.stop();
    report.check_balance();
}

/// What comes at once after a pause goes on at once too: that it is more than may wait for a peer that does not read
/// says nothing of one that does.
#[test]
fn burst_does_not_cut_off_who_reads_it() {
    let place = Place::take("burst");
    let backend = Callee::start(Door::Tcp);
    let service = local(free_port());
    let node = Plan::new(&[format!("tcp:{service}")], &[backend.target()])
        .start(&place, "[limits]\nwrite_queue = \"128KiB\"\n");
    let mut phones: Vec<Phone> = (0..60).map(|_| Phone::connect(service)).collect();
    // Each worker has its link to the backend.
    phones.iter_mut().enumerate().for_each(|(number, phone)| phone.call(&format!("before-{number}")));
    for round in 0..3 {
        node.signal("STOP");
        for (number, phone) in phones.iter_mut().enumerate() {
            for half in 0..2 {
                let call_id = format!("burst-{round}-{number}-{half}");
                let request = phone.author.request("MESSAGE", &call_id, service, &[b'x'; 3_000]);
                phone.send(&request);
            }
        }
        node.signal("CONT");
        for (number, phone) in phones.iter_mut().enumerate() {
            for _ in 0..2 {
                let Heard::Message(answer) = phone.hear(Duration::from_secs(5)) else { panic!("{number}: no answer") };
                assert!(answer.starts_with(b"SIP/2.0 200"), "{}", String::from_utf8_lossy(&answer));
            }
        }
    }
    let (_, _, report) = node.stop();
    assert_eq!(report.total("undeliverable_total"), 0, "{report:#?}");
    report.check_balance();
}
