//! The PROXY protocol on real connections: from a load balancer in front, and towards backends that ask for it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::bed::{HEALTH, local};
use crate::callee::{Callee, Door};
use crate::endpoint::headers;
use crate::node::{Node, Plan};
use crate::phone::{Heard, Phone};
use crate::{Place, free_port};

/// The one that Tandem is told of.
const FRONT_END: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

const SOON: Duration = Duration::from_secs(3);

fn start(place: &Place, backend: &Callee, more: &str) -> (Node, SocketAddr) {
    let service = local(free_port());
    let mut plan = Plan::new(&[format!("tcp:{service}")], &[backend.target()]);
    plan.service = format!("proxy_protocol_from = [\"{FRONT_END}/32\"]\n");
    (plan.start(place, more), service)
}

/// A header of version 1 for a client of this address.
fn header_v1(client: &str, port: u16) -> Vec<u8> {
    format!("PROXY TCP4 {client} 127.0.0.1 {port} 5060\r\n").into_bytes()
}

/// The same of version 2.
fn header_v2(client: [u8; 4], port: u16) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
    header.extend([client, [127, 0, 0, 1]].concat());
    header.extend([port.to_be_bytes(), 5060u16.to_be_bytes()].concat());
    header
}

#[test]
fn client_behind_a_front_end_is_known_by_the_address_in_the_header() {
    let place = Place::take("front-end");
    let backend = Callee::start(Door::Tcp);
    let (node, service) = start(&place, &backend, "");
    let headers_of = [
        ("v1", header_v1("192.0.2.77", 5555), "received=192.0.2.77;rport=5555"),
        ("v2", header_v2([192, 0, 2, 78], 5556), "received=192.0.2.78;rport=5556"),
    ];
    for (version, header, expected) in headers_of {
        // Whole, together with the request, and byte by byte.
        for pieces in [1, 2, header.len()] {
            let call_id = format!("{version}-{pieces}");
            let mut phone = Phone::connect_from(FRONT_END, service);
            let request = phone.author.request("OPTIONS", &call_id, service, b"");
            if pieces == 1 {
                phone.send(&[&header[..], &request].concat());
            } else {
                for piece in header.chunks(header.len().div_ceil(pieces)) {
                    phone.send(piece);
                    std::thread::sleep(Duration::from_millis(1));
                }
                phone.send(&request);
            }
            phone.expect("SIP/2.0 200", &call_id);
            let via = headers(&backend.await_request("OPTIONS", &call_id), "Via");
            assert!(via[1].contains(expected), "{via:?}");
            phone.call(&format!("call-{call_id}"));
            backend.check_call(&format!("call-{call_id}"));
        }
    }
    let (_, _, report) = node.stop();
    report.check_balance();
}

#[test]
fn header_is_demanded_of_a_front_end_and_garbage_from_anybody_else() {
    let place = Place::take("no-header");
    let backend = Callee::start(Door::Tcp);
    let (node, service) = start(&place, &backend, "[timers]\nmessage_timeout = \"1s\"\n");
    let mut without = Phone::connect_from(FRONT_END, service);
    let request = without.author.request("OPTIONS", "without", service, b"");
    without.send(&request);
    assert!(without.is_ended_within(SOON), "a front end without a header");
    let report = node.report();
    assert_eq!(report.total("connections_broken_total"), 1, "{report:#?}");

    let mut elsewhere = Phone::connect(service);
    let request = elsewhere.author.request("OPTIONS", "elsewhere", service, b"");
    elsewhere.send(&[&header_v1("192.0.2.77", 5555)[..], &request].concat());
    assert!(elsewhere.is_ended_within(SOON), "a header from a client");
    let mut elsewhere = Phone::connect(service);
    elsewhere.send(&[&header_v2([192, 0, 2, 78], 5556)[..], &request].concat());
    assert!(elsewhere.is_ended_within(SOON), "a header from a client");
    let report = node.report();
    assert_eq!((report.total("connections_broken_total"), backend.requests().len()), (3, 0), "{report:#?}");

    // Half a header, and none.
    let mut half = Phone::connect_from(FRONT_END, service);
    half.send(b"PROXY TCP4 192.0");
    let mut silent = Phone::connect_from(FRONT_END, service);
    assert!(half.is_ended_within(SOON) && silent.is_ended_within(SOON));
    let report = node.report();
    assert_eq!(report.total("connections_timed_out_total"), 2, "{report:#?}");
    Phone::connect(service).call("after");
    let (_, _, report) = node.stop();
    report.check_balance();
}

#[test]
fn connections_count_among_those_of_the_client_in_the_header() {
    let place = Place::take("front-end-count");
    let backend = Callee::start(Door::Tcp);
    let (node, service) = start(&place, &backend, "[limits]\nconnections_per_source = 2\n");
    let mut phones = Vec::new();
    // Many more than one source may have, one after the other and beside each other.
    for client in 1..=40 {
        let mut phone = Phone::connect_from(FRONT_END, service);
        phone.send(&header_v1(&format!("192.0.2.{client}"), 5060));
        phone.ask("OPTIONS", &format!("count-{client}"), "SIP/2.0 200");
        if client % 2 == 0 {
            phones.push(phone);
        }
    }
    // One client has as many as any other source: two a worker.
    let mut refused = 0;
    for round in 0..24 {
        let mut phone = Phone::connect_from(FRONT_END, service);
        phone.send(&header_v1("192.0.2.200", 5060));
        let request = phone.author.request("OPTIONS", &format!("same-{round}"), service, b"");
        // It may be closed before the request is there.
        let _ = phone.try_send(&request);
        match phone.hear(SOON) {
            Heard::Message(answer) if answer.starts_with(b"SIP/2.0 200") => phones.push(phone),
            Heard::End => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(refused, 24 - 2 * crate::node::workers(2) as u64);
    let report = node.report();
    assert_eq!(report.total("connections_refused_total"), refused, "{report:#?}");
    phones.clear();
    node.await_report("the connections to be gone", |report| report.total("connections") <= 2);
    let mut phone = Phone::connect_from(FRONT_END, service);
    phone.send(&header_v1("192.0.2.200", 5060));
    phone.call("again");
    let (_, _, report) = node.stop();
    report.check_balance();
}

#[test]
fn backend_that_asks_for_it_reads_a_header_first() {
    for (version, expected) in [
        ("v1", &b"PROXY TCP4 127.0.0.1 127.0.0.1 "[..]),
        ("v2", &b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\x7f\x00\x00\x01\x7f\x00\x00\x01"[..]),
    ] {
        let place = Place::take("header-out");
        let backend = Callee::start(Door::Tcp);
        let service = local(free_port());
        let mut plan = Plan::new(&[format!("tcp:{service}")], &[backend.target()]);
        plan.backend = if version == "v1" { "proxy_protocol = \"v1\"" } else { "proxy_protocol = \"v2\"" };
        plan.health = HEALTH;
        let node = plan.start(&place, "");
        let mut clients = Vec::new();
        for round in 0..8 {
            let mut phone = Phone::connect(service);
            phone.call(&format!("{version}-{round}"));
            phone.call(&format!("{version}-{round}-again"));
            backend.check_call(&format!("{version}-{round}"));
            clients.push(phone.socket().local_addr().unwrap().port());
        }
        let prefixes = backend.prefixes();
        // A probe's too: a backend that demands a header would take it for one without.
        let begins_well = |prefix: &Vec<u8>| prefix.starts_with(expected);
        assert!(prefixes.len() > clients.len() && prefixes.iter().all(begins_well), "{prefixes:?}");
        for client in clients {
            let text = format!(" {client} {}\r\n", backend.address.port());
            let ports = [client.to_be_bytes(), backend.address.port().to_be_bytes()].concat();
            let end = if version == "v1" { text.as_bytes() } else { &ports };
            let named = prefixes.iter().filter(|prefix| prefix.ends_with(end)).count();
            // One for each worker that has calls of it.
            assert!((1..=2).contains(&named), "{named} connections name {client}: {prefixes:?}");
        }
        let (_, _, report) = node.stop();
        report.check_balance();
    }
}
