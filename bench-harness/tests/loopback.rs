//! The generator against the bare forwarder, both in this process: every call must end well on one backend.
//!
//! This is the harness testing itself; it needs no privileges, no network beyond loopback, and under two seconds.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use bench_harness::generator::{self, Edge, Load, Mix, Options};
use bench_harness::transport::Wires;
use bench_harness::{forward, proc_fs};

fn free_addresses(host: &str, count: usize) -> Vec<SocketAddr> {
    let sockets: Vec<UdpSocket> = (0..count).map(|_| UdpSocket::bind((host, 0)).expect("a free port")).collect();
    sockets.iter().map(|socket| socket.local_addr().expect("bound")).collect()
}

fn run(host: &str, load: Load, mix: Mix, hold: Duration, t1: Option<Duration>) -> bench_harness::report::Report {
    let addresses = free_addresses(host, 3);
    let (listen, backends) = (addresses[0], addresses[1..].to_vec());
    let targets = backends.clone();
    // The forwarder has no end of its own: it ends with the test's process.
    std::thread::spawn(move || forward::run(listen, &targets));
    while !proc_fs::is_udp_bound(listen) {
        std::thread::yield_now();
    }
    let options = Options {
        target: listen,
        callers: 2,
        backends,
        wires: Wires::default(),
        load,
        mix,
        warmup: Duration::from_millis(50),
        window: Duration::from_millis(250),
        hold,
        timeout: Duration::from_secs(10),
        t1,
        concurrency_max: 0,
        is_spinning: false,
    };
    let mut edges = Vec::new();
    let report = generator::run(&options, |edge| edges.push(edge)).expect("a run");
    assert_eq!(edges, [Edge::Opens, Edge::Closes]);
    report
}

const CALLS: Mix = Mix { invite: 1, register: 0, options: 0 };

#[test]
fn closed_loop_completes_every_call_on_one_backend() {
    let report = run("127.0.0.1", Load::Closed(16), CALLS, Duration::ZERO, None);
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.late, report.duplicates, report.unsent), (0, 0, 0), "{report}");
    assert_eq!(report.without_record_route, report.completed, "a bare forwarder adds none");
    assert!(report.backends.iter().all(|backend| backend.share_percent > 10.0), "{report}");
}

#[test]
fn open_loop_starts_what_was_asked_for() {
    let mix = Mix { invite: 2, register: 1, options: 1 };
    let report = run("127.0.0.1", Load::Open(400.0), mix, Duration::from_millis(5), None);
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.started, 120, "0.3 s at 400 a second");
    assert_eq!(report.setup_us.count + report.single_us.count, 100, "{report}");
}

#[test]
fn calls_over_ipv6_complete_too() {
    if UdpSocket::bind("[::1]:0").is_err() {
        return;
    }
    let report = run("::1", Load::Closed(4), CALLS, Duration::ZERO, None);
    assert!(report.is_clean(), "{report}");
}

#[test]
fn nobody_answering_is_a_timeout_and_retransmissions() {
    let addresses = free_addresses("127.0.0.1", 3);
    let silent = UdpSocket::bind(addresses[0]).expect("bound");
    let options = Options {
        target: silent.local_addr().expect("bound"),
        callers: 1,
        backends: addresses[1..].to_vec(),
        wires: Wires::default(),
        load: Load::Closed(2),
        mix: CALLS,
        warmup: Duration::ZERO,
        window: Duration::from_millis(100),
        hold: Duration::ZERO,
        timeout: Duration::from_millis(400),
        t1: Some(Duration::from_millis(50)),
        concurrency_max: 0,
        is_spinning: false,
    };
    let report = generator::run(&options, |_| {}).expect("a run");
    assert!(!report.is_clean());
    assert_eq!((report.started, report.failures.timeout, report.completed), (2, 2, 0), "{report}");
    assert!((4..=6).contains(&report.retransmissions), "at 50, 150 and 350 ms: {report}");
}
