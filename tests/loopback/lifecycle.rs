//! How connections begin and end: answers after their connection is gone, backends that cut, refuse and come back, limits
//! and deadlines, each seen from outside and by its counter.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use crate::bed::{HEALTH, local};
use crate::callee::{Callee, Door};
use crate::certificates::Trust;
use crate::endpoint::{Endpoint, answer, headers};
use crate::node::{Node, Plan, file, workers};
use crate::phone::{Heard, Phone, connect_from, reset};
use crate::slow_peers::{raise_file_limit, resident_kib};
use crate::{Place, await_some, free_port, is_full};

const SOON: Duration = Duration::from_secs(3);

/// A node whose one service takes UDP and TCP.
fn start(place: &Place, backend: &str, more: &str) -> (Node, SocketAddr) {
    start_with(place, backend, "probe = \"none\"", more)
}

fn start_with(place: &Place, backend: &str, health: &'static str, more: &str) -> (Node, SocketAddr) {
    let service = local(free_port());
    let mut plan = Plan::new(&[format!("udp:{service}"), format!("tcp:{service}")], &[backend.to_owned()]);
    plan.health = health;
    (plan.start(place, more), service)
}

fn udp(endpoint: &Endpoint) -> String {
    format!("udp:{}", endpoint.address)
}

//= rfc3261#section-18.2.2 same-connection
//# A response goes back on the connection of its request, and to received and the port of sent-by when that is gone.
#[test]
fn answer_finds_a_client_that_has_closed_its_connection() {
    let place = Place::take("fallback");
    let backend = Endpoint::bind(local(0)).unwrap();
    let (node, service) = start(&place, &udp(&backend), "");
    for round in 0..6 {
        // The port in its Via is one where it listens.
        let listener = TcpListener::bind(local(0)).unwrap();
        let call_id = format!("fallback-{round}");
        let mut phone = Phone::connect(service);
        phone.author.address = listener.local_addr().unwrap();
        let invite = phone.author.request("INVITE", &call_id, service, b"");
        phone.send(&invite);
        let (invite, proxy) = backend.await_message("INVITE", &call_id);
        if round % 2 == 0 {
            drop(phone);
        } else {
            reset(phone.into_stream());
        }
        node.await_report("the connection to be gone", |report| report.total("connections") == 0);
        backend.send(&backend.answer(&invite, "200 OK", b"late"), proxy);
        let (stream, from) = accept(&listener);
        assert_eq!(from.ip(), service.ip());
        let mut phone = Phone::over(stream, service);
        let answer = phone.expect("SIP/2.0 200", &call_id);
        assert!(answer.ends_with(b"late"));
        drop(phone);
        node.await_report("that one to be gone too", |report| report.total("connections") == 0);
    }
    let (_, _, report) = node.stop();
    assert_eq!(report.total("undeliverable_total"), 0, "{report:#?}");
    report.check_balance();
}

fn accept(listener: &TcpListener) -> (std::net::TcpStream, SocketAddr) {
    listener.set_nonblocking(true).unwrap();
    let (stream, from) = await_some("a connection", SOON, || listener.accept().ok());
    stream.set_nonblocking(false).unwrap();
    (stream, from)
}

#[test]
fn backend_that_cuts_its_connections_gets_the_next_request_on_another() {
    let place = Place::take("cut");
    let trust = Trust::new(place.folder());
    let identity = trust.write("pbx", &["127.0.0.1"]);
    for door in [Door::Tcp, Door::Tls(trust.server(&identity, false))] {
        let backend = Callee::start(door);
        let service = local(free_port());
        let mut plan =
            Plan::new(&[format!("tcp:{service}"), format!("tls:{}", local(free_port()))], &[backend.target()]);
        plan.pool = format!("[pool.tls]\nca = {:?}\n", trust.ca);
        let node = plan.start(&place, &Trust::section("pbx"));
        let mut phone = Phone::connect(service);
        for round in 0..12 {
            let call_id = format!("cut-{round}");
            let answer = phone.ask("INVITE", &call_id, "SIP/2.0 200");
            backend.cut(round % 2 == 0);
            phone.hang_up(&answer, &call_id);
            backend.check_call(&call_id);
        }
        assert!(backend.connections() >= 12, "{}", backend.connections());
        let report = node.report();
        assert_eq!(report.total("undeliverable_total") + report.total("connects_failed_total"), 0, "{report:#?}");
        let (_, _, report) = node.stop();
        report.check_balance();
    }
}

#[test]
fn backend_that_refuses_connections_is_answered_for_at_once_and_taken_out() {
    let place = Place::take("refused");
    let target = local(free_port());
    // The interval alone would take half a minute to find it dead.
    let health = "probe = \"options\"\ninterval = \"10s\"\njitter = \"0s\"\ntimeout = \"1s\"\nrise = 1\nfall = 3";
    let backend = Callee::start_at(target, Door::Tcp);
    let (node, service) = start_with(&place, &backend.target(), health, "");
    node.await_report("the probe", |_| backend.count() > 0);
    let mut phone = Phone::connect(service);
    phone.call("before");
    drop(backend);
    let dead_at = Instant::now();
    // One socket for each family of clients.
    let datagrams = Endpoint::bind(local(0)).unwrap();
    let mut is_out = false;
    for round in 0.. {
        let asked = Instant::now();
        let call_id = format!("refused-{round}");
        let answer = phone.ask("INVITE", &call_id, "SIP/2.0 503");
        assert!(asked.elapsed() < Duration::from_millis(400), "503 after {:?}", asked.elapsed());
        assert_eq!(headers(&answer, "Retry-After").len(), 1);
        datagrams.send(&datagrams.request("OPTIONS", &call_id, service, b""), service);
        let (answer, _) = datagrams.await_message("SIP/2.0 503", &call_id);
        assert!(asked.elapsed() < Duration::from_millis(800), "503 after {:?}", asked.elapsed());
        assert_eq!(headers(&answer, "Via").len(), 1);
        is_out = is_out || node.log().contains("backend taken out");
        if is_out || dead_at.elapsed() > Duration::from_secs(9) {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(is_out, "it was not taken out before the next probe was due");
    println!("taken out {:?} after its death", dead_at.elapsed());
    let report = node.report();
    assert!(report.total("connects_failed_total") > 0, "{report:#?}");
    assert!(report.sum("undeliverable_total", "reason=\"connect-failed\"") > 0, "{report:#?}");
    let (_, _, report) = node.stop();
    report.check_balance();
}

#[test]
fn probes_over_connections_follow_a_backend_down_and_up() {
    let place = Place::take("probes");
    let trust = Trust::new(place.folder());
    let identity = trust.write("pbx", &["127.0.0.1"]);
    for door in [Door::Tcp, Door::Tls(trust.server(&identity, false))] {
        let target = local(free_port());
        let service = local(free_port());
        let backend = Callee::start_at(target, door.clone());
        let mut plan =
            Plan::new(&[format!("tcp:{service}"), format!("tls:{}", local(free_port()))], &[backend.target()]);
        plan.pool = format!("[pool.tls]\nca = {:?}\n", trust.ca);
        plan.health = HEALTH;
        let node = plan.start(&place, &Trust::section("pbx"));
        Phone::connect(service).call("up");
        let mut backend = Some(backend);
        let mut start = node.log().len();
        for round in 0..2 {
            drop(backend.take());
            node.await_log(start, "backend taken out");
            Phone::connect(service).ask("INVITE", &format!("down-{round}"), "SIP/2.0 503");
            start = node.log().len();
            let risen = backend.insert(Callee::start_at(target, door.clone()));
            node.await_log(start, "new dialogs are served again");
            start = node.log().len();
            // It is logged a moment before the workers know.
            std::thread::sleep(Duration::from_millis(100));
            Phone::connect(service).call(&format!("up-{round}"));
            risen.check_call(&format!("up-{round}"));
        }
        // One that takes connections and says nothing is as dead.
        backend.as_ref().unwrap().set_silent(true);
        node.await_log(start, "backend taken out");
        let (_, _, report) = node.stop();
        report.check_balance();
    }
}

#[test]
fn request_for_a_flow_that_is_gone_is_answered_430() {
    let place = Place::take("flow-gone");
    let backend = Endpoint::bind(local(0)).unwrap();
    let (node, service) = start(&place, &udp(&backend), "");
    for round in 0..6 {
        let call_id = format!("gone-{round}");
        let mut phone = Phone::connect(service);
        // Behind a NAT: what it writes is not where it is.
        let real = phone.author.address;
        phone.author.address = SocketAddr::from(([10, 0, 0, 5], 5060));
        phone.author.contact = "<sip:alice@10.0.0.5:5060;transport=tcp>".to_owned();
        let invite = phone.author.request("INVITE", &call_id, service, b"");
        phone.send(&invite);
        let (invite, proxy) = backend.await_message("INVITE", &call_id);
        assert!(headers(&invite, "Via")[1].contains(&format!("rport={}", real.port())));
        backend.send(&backend.answer(&invite, "200 OK", b""), proxy);
        phone.expect("SIP/2.0 200", &call_id);
        // While it stands it is reached over it.
        let request = reversed(&invite, "INFO", &backend, 1);
        backend.send(&request, proxy);
        let info = phone.expect("INFO sip:alice@10.0.0.5", &call_id);
        phone.send(&answer(&info, "200 OK", "<sip:alice@10.0.0.5:5060;transport=tcp>", b""));
        backend.await_message("SIP/2.0 200", &call_id);
        drop(phone);
        node.await_report("the connection to be gone", |report| report.total("connections") == 0);
        let asked = Instant::now();
        backend.send(&reversed(&invite, "BYE", &backend, 2), proxy);
        backend.await_message("SIP/2.0 430", &call_id);
        assert!(asked.elapsed() < Duration::from_millis(400), "{:?}", asked.elapsed());
    }
    let report = node.report();
    assert_eq!(report.sum("undeliverable_total", "reason=\"flow-gone\""), 6, "{report:#?}");
    let (_, _, report) = node.stop();
    report.check_balance();
}

/// A request of the callee in the dialog that this INVITE began.
fn reversed(invite: &[u8], method: &str, callee: &Endpoint, cseq: u32) -> Vec<u8> {
    let of = |name| headers(invite, name).concat();
    let routes: String = headers(invite, "Record-Route").iter().map(|route| format!("Route: {route}\r\n")).collect();
    let uri = of("Contact");
    let call_id = of("Call-ID");
    format!(
        "{method} {} SIP/2.0\r\nVia: SIP/2.0/UDP {};branch=z9hG4bK{method}{call_id}\r\nMax-Forwards: 70\r\n{routes}\
         From: {};tag=callee\r\nTo: {}\r\nCall-ID: {call_id}\r\nCSeq: {cseq} {method}\r\nContent-Length: 0\r\n\r\n",
        uri.trim_matches(['<', '>']),
        callee.address,
        of("To"),
        of("From"),
    )
    .into_bytes()
}

#[test]
fn deadlines_end_what_is_idle_half_said_or_silent() {
    let place = Place::take("deadlines");
    let trust = Trust::new(place.folder());
    trust.write("proxy", &["127.0.0.1"]);
    let backend = Callee::start(Door::Tcp);
    let [plain, tls, web] = [local(free_port()), local(free_port()), local(free_port())];
    let more = "[timers]\nidle_timeout = \"10s\"\nmessage_timeout = \"1s\"\nhandshake_timeout = \"2s\"\n";
    let plan = Plan::new(&[format!("tcp:{plain}"), format!("tls:{tls}"), format!("ws:{web}")], &[backend.target()]);
    let node = plan.start(&place, &format!("{more}{}", Trust::section("proxy")));
    let begun = Instant::now();
    let mut idle = Phone::connect(plain);
    idle.call("idle");
    let mut pinging = Phone::connect(plain);
    pinging.call("pinging");
    let mut half = Phone::connect(plain);
    half.send(b"INVITE sip:bob@127.0.0.1 SIP/2.0\r\nVia: ");
    let [mut silent, mut silent_web] = [tls, web].map(Phone::connect);
    let mut half_hello = Phone::connect(tls);
    half_hello.send(&[0x16, 3, 1, 2]);
    let mut half_upgrade = Phone::connect(web);
    half_upgrade.send(b"GET / HTTP/1.1\r\nHost:");

    assert!(half.is_ended_within(SOON), "half a message");
    let seconds = |begun: Instant| begun.elapsed().as_secs_f64();
    assert!((0.9..2.5).contains(&seconds(begun)), "half a message: {:?}", begun.elapsed());
    for phone in [&mut silent, &mut silent_web, &mut half_hello, &mut half_upgrade] {
        assert!(phone.is_ended_within(SOON), "no handshake");
    }
    assert!((1.9..4.0).contains(&seconds(begun)), "no handshake: {:?}", begun.elapsed());
    let report = node.report();
    assert_eq!(report.total("handshakes_failed_total"), 4, "{report:#?}");
    assert_eq!(report.total("connections_timed_out_total"), 5, "{report:#?}");
    while seconds(begun) < 11.5 {
        pinging.send(b"\r\n\r\n");
        assert_eq!(pinging.hear(SOON), Heard::Pong);
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(idle.is_ended_within(SOON), "an idle connection");
    pinging.call("still-there");
    let report = node.report();
    assert_eq!(report.total("connections_timed_out_total"), 6, "{report:#?}");
    let (_, _, report) = node.stop();
    report.check_balance();
}

/// How many of these connections answer, of `count` that are opened one after the other and kept.
fn open_many(service: SocketAddr, from: Option<IpAddr>, count: usize, what: &str) -> (Vec<Phone>, u64) {
    let mut kept = Vec::new();
    let mut refused = 0;
    for number in 0..count {
        let stream = connect_from(from, service).unwrap();
        let mut phone = Phone::over(stream, service);
        let request = phone.author.request("OPTIONS", &format!("{what}-{number}"), service, b"");
        let _ = phone.try_send(&request);
        match phone.hear(SOON) {
            Heard::Message(answer) => {
                assert!(answer.starts_with(b"SIP/2.0 200"));
                kept.push(phone);
            }
            Heard::End => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    (kept, refused)
}

#[test]
fn limits_on_connections_refuse_what_is_beyond_them_and_count_it() {
    let place = Place::take("limits");
    let backend = Callee::start(Door::Tcp);
    let workers = workers(2);
    let more = "[limits]\nconnections_per_source = 4\nconnections_max = 16\n";
    let (node, service) = start(&place, &backend.target(), more);
    // So many that each worker is met more often than it may accept.
    let (mut kept, refused) = open_many(service, None, 40, "source");
    assert_eq!((kept.len(), refused), (4 * workers, 40 - 4 * workers as u64));
    let mut all_refused = refused;
    for last in 2..16 {
        let from = IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
        let (more, refused) = open_many(service, Some(from), 20, &format!("all-{last}"));
        kept.extend(more);
        all_refused += refused;
    }
    // One place of each worker is for the link to the backend.
    assert_eq!(kept.len(), 15 * workers);
    let report = node.report();
    assert_eq!(report.total("connections_refused_total"), all_refused, "{report:#?}");
    assert_eq!(report.total("connections"), 16 * workers as u64, "{report:#?}");
    // The link is opened again although the places of clients are all taken.
    backend.cut(true);
    kept[0].call("beside");
    kept.clear();
    node.await_report("the places to be free", |report| report.total("connections") <= workers as u64);
    let (kept, _) = open_many(service, None, 40, "again");
    assert_eq!(kept.len(), 4 * workers);
    let (_, _, report) = node.stop();
    report.check_balance();
}

#[test]
fn failed_handshakes_leave_room_for_the_next() {
    let place = Place::take("handshakes");
    let trust = Trust::new(place.folder());
    trust.write("proxy", &["127.0.0.1"]);
    let backend = Callee::start(Door::Tcp);
    let [plain, tls, web] = [local(free_port()), local(free_port()), local(free_port())];
    let plan = Plan::new(&[format!("tcp:{plain}"), format!("tls:{tls}"), format!("ws:{web}")], &[backend.target()]);
    let node = plan.start(&place, &format!("[limits]\nhandshakes_max = 4\n{}", Trust::section("proxy")));
    let mut failed = 0;
    // Each kind of failure, more often than there may be handshakes at once.
    let stranger = Trust::new(place.folder());
    for round in 0..14 {
        for garbage in [&b"INVITE sip:bob@127.0.0.1 SIP/2.0\r\n\r\n"[..], &[0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0], b""] {
            let mut phone = Phone::connect(tls);
            phone.send(garbage);
            if !garbage.is_empty() {
                assert!(phone.is_ended_within(SOON), "{round}: {}", garbage.escape_ascii());
                failed += 1;
            }
        }
        // A client that does not trust the certificate, and says so.
        assert!(Phone::connect_tls(tls, &stranger.client(None), "127.0.0.1").is_err());
        failed += 1;
        let mut phone = Phone::connect(web);
        phone.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(phone.is_ended_within(SOON));
        failed += 1;
        reset(Phone::connect(tls).into_stream());
        drop(phone);
        node.await_report("them to be counted", |report| report.total("handshakes_failed_total") >= failed);
    }
    let report = node.await_report("them to be gone", |report| report.total("connections") == 0);
    // Those that were gone before they were accepted may not be among them.
    assert!((failed..failed + 28).contains(&report.total("handshakes_failed_total")), "{report:#?}");
    let client = trust.client(None);
    let mut phones: Vec<Phone> = (0..12).map(|_| Phone::connect_tls(tls, &client, "127.0.0.1").unwrap()).collect();
    for (number, phone) in phones.iter_mut().enumerate() {
        phone.call(&format!("good-{number}"));
    }
    let (_, _, report) = node.stop();
    report.check_balance();
}

/// Descriptors that a process has open.
fn descriptors(process: u32) -> usize {
    std::fs::read_dir(format!("/proc/{process}/fd")).unwrap().count()
}

#[test]
fn process_without_descriptors_left_survives_and_serves_again() {
    let place = Place::take("descriptors");
    let backend = Callee::start(Door::Tcp);
    let service = local(free_port());
    let plan = Plan::new(&[format!("tcp:{service}")], &[backend.target()]);
    let few = {
        let node = plan.start(&place, "");
        Phone::connect(service).call("count");
        descriptors(node.process()) + 12
    };
    // io_uring goes by the limit that was in force when an accept was armed, so it is there from the start.
    let node = Node::start_limited(place.folder(), &file(&[&plan.text()]), workers(2), few);
    let mut first = Phone::connect(service);
    // Each worker has its link to the backend.
    let before = backend.connections();
    (0..12).for_each(|number| first.call(&format!("first-{number}")));
    await_some("the links", SOON, || (backend.connections() >= before + workers(2)).then_some(()));
    // They are taken by the kernel, and wait there.
    let mut waiting: Vec<Phone> = (0..60).map(|_| Phone::connect(service)).collect();
    node.await_report("it to notice", |report| report.total("accepts_failed_total") > 0);
    first.call("beside");
    // A backend that cuts its connection meanwhile: there is a descriptor for it once some are closed.
    waiting.drain(..50);
    let mut phone = Phone::connect(service);
    phone.call("after");
    for (number, phone) in waiting.iter_mut().enumerate() {
        phone.call(&format!("waited-{number}"));
    }
    assert!(node.log().lines().all(|line| !line.contains("panicked")), "{}", node.log());
    let (status, _, report) = node.stop();
    assert!(status.success(), "{status}");
    report.check_balance();
}

#[test]
fn storm_of_short_connections_leaves_nothing_behind() {
    raise_file_limit();
    let place = Place::take("storm");
    let trust = Trust::new(place.folder());
    trust.write("proxy", &["127.0.0.1"]);
    let backend = Callee::start(Door::Tcp);
    let [plain, tls, web] = [local(free_port()), local(free_port()), local(free_port())];
    let plan = Plan::new(&[format!("tcp:{plain}"), format!("tls:{tls}"), format!("ws:{web}")], &[backend.target()]);
    let node = plan.start(&place, &Trust::section("proxy"));
    let count = if is_full() { 20_000 } else { 3_000 };
    let author = Phone::connect(plain).author;
    let storm = |rounds: usize| {
        for round in 0..rounds {
            let service = [plain, plain, tls, web][round % 4];
            let mut phone = Phone::connect(service);
            let request = author.request("OPTIONS", &format!("storm-{round}"), plain, b"");
            match round % 7 {
                0 => {}
                1 => _ = phone.try_send(&request[..40]),
                2 => _ = phone.try_send(&request),
                3 => _ = phone.try_send(&[&request[..], &request[..9]].concat()),
                4 => _ = phone.try_send(b"\0garbage"),
                5 => _ = phone.try_send(b"\r\n\r\n\r\n\r\n"),
                _ => _ = phone.try_send(&[0x16, 3, 1]),
            }
            if round % 3 == 0 {
                drop(phone);
            } else {
                reset(phone.into_stream());
            }
        }
    };
    let settle = || {
        node.await_report("the connections to be gone", |report| report.total("connections") <= 2);
        std::thread::sleep(Duration::from_millis(600));
        (descriptors(node.process()), resident_kib(node.process()))
    };
    storm(count / 4);
    let (fds, resident) = settle();
    storm(count);
    let (fds_after, resident_after) = settle();
    println!(
        "{count} short connections: {fds} to {fds_after} descriptors, {resident} to {resident_after} KiB resident"
    );
    assert!(fds_after <= fds + 1, "{fds} to {fds_after} descriptors");
    assert!(resident_after < resident + 4_096, "{resident} to {resident_after} KiB");
    Phone::connect(plain).call("after");
    Phone::connect_tls(tls, &trust.client(None), "127.0.0.1").unwrap().call("after-tls");
    let (status, _, report) = node.stop();
    assert!(status.success(), "{status}");
    report.check_balance();
}
