//! The generator over TCP and TLS through the bare forwarder, both in this process.
//!
//! This is the harness testing itself; it needs no privileges, no network beyond loopback, and a few seconds.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use bench_harness::generator::{self, Load, Mix, Options};
use bench_harness::transport::{Transport, Wires};
use bench_harness::{proc_fs, splice};

mod bed;

use bed::{free_addresses, wires};

fn options(target: SocketAddr, backends: Vec<SocketAddr>, wires: Wires, load: Load) -> Options {
    Options {
        target,
        callers: 5,
        backends,
        wires,
        load,
        mix: Mix { invite: 2, register: 1, options: 1 },
        warmup: Duration::from_millis(50),
        window: Duration::from_millis(250),
        hold: Duration::from_millis(2),
        timeout: Duration::from_secs(10),
        t1: Some(Duration::from_millis(1)),
        concurrency_max: 0,
        is_spinning: false,
    }
}

fn run(transport: Transport, load: Load) -> bench_harness::report::Report {
    let addresses = free_addresses(3);
    let (listen, backends) = (addresses[0], addresses[1..].to_vec());
    let targets = backends.clone();
    // The forwarder has no end of its own: it ends with the test's process.
    std::thread::spawn(move || splice::run(listen, &targets));
    while !proc_fs::is_tcp_listening(listen) {
        std::thread::yield_now();
    }
    let report = generator::run(&options(listen, backends, wires(transport), load), |_| {}).expect("a run");
    let faults = report.failed + report.moved + report.unexpected + report.damaged;
    assert_eq!((faults, report.started), (0, report.completed), "{report}");
    assert_eq!((report.callers, report.backend_connections, report.connections_lost), (5, 5, 0), "{report}");
    assert_eq!(
        (report.duplicates, report.late, report.retransmissions),
        (0, 0, 0),
        "connections repeat nothing: {report}"
    );
    assert!(report.backends.iter().all(|backend| backend.share_percent > 10.0), "{report}");
    report
}

#[test]
fn calls_over_tcp_complete_in_closed_loop() {
    let report = run(Transport::Tcp, Load::Closed(32));
    assert!(report.is_clean() && report.setup_us.count > 10 && report.single_us.count > 10, "{report}");
}

#[test]
fn calls_over_tls_complete_in_closed_loop() {
    let report = run(Transport::Tls, Load::Closed(32));
    assert!(report.is_clean() && report.setup_us.count > 10 && report.single_us.count > 10, "{report}");
}

#[test]
fn open_loop_over_tcp_starts_what_was_asked_for() {
    let report = run(Transport::Tcp, Load::Open(400.0));
    // A busy machine may leave the end of the window to somebody else.
    assert_eq!(report.started + report.backlog, 120, "0.3 s at 400 a second: {report}");
    assert!(report.started > 60, "{report}");
}

#[test]
fn proxy_that_ends_connections_is_an_error_and_not_a_hang() {
    let addresses = free_addresses(2);
    let listener = TcpListener::bind(addresses[0]).expect("bound");
    let server = std::thread::spawn(move || drop(listener.accept().expect("a caller")));
    let asked = options(addresses[0], vec![addresses[1]], wires(Transport::Tls), Load::Closed(1));
    let error = generator::run(&asked, |_| {}).map(|report| report.started).expect_err("no handshake");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
    server.join().expect("accepted");
}

#[test]
fn certificate_of_a_stranger_is_refused() {
    let addresses = free_addresses(2);
    let (listen, targets) = (addresses[0], [addresses[1]]);
    std::thread::spawn(move || splice::run(listen, &targets));
    while !proc_fs::is_tcp_listening(listen) {
        std::thread::yield_now();
    }
    let strange = Wires { tls_server: wires(Transport::Tls).tls_server, ..wires(Transport::Tls) };
    let asked = options(addresses[0], vec![addresses[1]], strange, Load::Closed(1));
    assert!(generator::run(&asked, |_| {}).is_err());
}
