//! Datagrams of every kind: large ones, keep-alives, IPv6, and from one address family to the other.

use std::net::{Ipv6Addr, SocketAddr};

use crate::bed::local;
use crate::endpoint::{Endpoint, body, check_call};
use crate::node::{Backend, Node, Setup, workers};
use crate::{Place, free_port};

fn local_v6(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv6Addr::LOCALHOST, port))
}

/// A node in front of one backend made by hand.
fn start(place: &Place, listen: Vec<SocketAddr>, backend: &Endpoint) -> Node {
    let backends = vec![Backend { name: "pbx1".to_owned(), address: backend.address, weight: 100 }];
    Node::start(place.folder(), &Setup { workers: workers(2), listen, backends, health: "probe = \"none\"" })
}

/// An IPv6 endpoint, or nothing on a machine without IPv6.
fn bind_v6() -> Option<Endpoint> {
    let endpoint = Endpoint::bind(local_v6(0)).ok();
    if endpoint.is_none() {
        eprintln!("skipped: this machine has no [::1]");
    }
    endpoint
}

//= rfc3261#section-18.1.1 largest
//# Datagrams up to the largest of UDP are read, and sent on while they still fit.
#[test]
fn large_message_passes_whole_both_ways() {
    let place = Place::take("large");
    let (client, backend) = (Endpoint::bind(local(0)).unwrap(), Endpoint::bind(local(0)).unwrap());
    let service = local(free_port());
    let node = start(&place, vec![service], &backend);
    for (round, len) in [60_000, 64_500, 1, 0].into_iter().enumerate() {
        let text: Vec<u8> = (0..len).map(|i: u32| i.wrapping_mul(31) as u8).collect();
        let call_id = format!("large{round}@client");
        client.send(&client.request("MESSAGE", &call_id, service, &text), service);
        let (request, proxy) = backend.await_message("MESSAGE", &call_id);
        assert!(body(&request) == text, "the request changed on its way, {len} bytes");
        backend.send(&backend.answer(&request, "200 OK", &text), proxy);
        let (answer, _) = client.await_message("SIP/2.0 200", &call_id);
        assert!(body(&answer) == text, "the answer changed on its way, {len} bytes");
    }
    let (status, _, report) = node.stop();
    assert!(status.success(), "{status}");
    report.check_balance();
    report.check_nothing_shed();
}

#[test]
fn request_too_large_for_our_headers_is_answered_513() {
    let place = Place::take("too-large");
    let (client, backend) = (Endpoint::bind(local(0)).unwrap(), Endpoint::bind(local(0)).unwrap());
    let service = local(free_port());
    let node = start(&place, vec![service], &backend);
    let head = client.request("MESSAGE", "brim@client", service, &[]).len();
    let text = vec![b'x'; 65_507 - head - 4];
    client.send(&client.request("MESSAGE", "brim@client", service, &text), service);
    client.await_message("SIP/2.0 513", "brim@client");
    let (_, _, report) = node.stop();
    assert_eq!(report.sum("answered_total", "reason=\"edit-failed\""), 1, "{report:#?}");
    report.check_balance();
}

//= rfc3261#section-16.9 response-error
//# A response that cannot be delivered is lost, and nothing is cancelled for it.
#[test]
fn caller_that_is_gone_harms_nobody_and_nothing_is_cancelled() {
    let place = Place::take("gone");
    let (gone, backend) = (Endpoint::bind(local(0)).unwrap(), Endpoint::bind(local(0)).unwrap());
    let service = local(free_port());
    let node = start(&place, vec![service], &backend);
    gone.send(&gone.request("INVITE", "gone@client", service, b""), service);
    let (invite, proxy) = backend.await_message("INVITE", "gone@client");
    // From here on the kernel answers for the caller, with ICMP port unreachable.
    drop(gone);
    for status in ["180 Ringing", "200 OK", "200 OK"] {
        backend.send(&backend.answer(&invite, status, b""), proxy);
    }
    let client = Endpoint::bind(local(0)).unwrap();
    client.send(&client.request("OPTIONS", "next@client", service, b""), service);
    let (request, proxy) = backend.receive("OPTIONS");
    assert!(request.starts_with(b"OPTIONS"), "{}", String::from_utf8_lossy(&request));
    backend.send(&backend.answer(&request, "200 OK", b""), proxy);
    client.await_message("SIP/2.0 200", "next@client");
    let (status, _, report) = node.stop();
    assert!(status.success(), "{status}");
    assert_eq!(report.total("requests_forwarded_total"), 2, "{report:#?}");
    assert_eq!(report.total("responses_forwarded_total"), 4, "{report:#?}");
    report.check_balance();
}

#[test]
fn keepalive_is_counted_and_ignored() {
    let place = Place::take("keepalive");
    let (client, backend) = (Endpoint::bind(local(0)).unwrap(), Endpoint::bind(local(0)).unwrap());
    let service = local(free_port());
    let node = start(&place, vec![service], &backend);
    for keepalive in [&b"\r\n\r\n"[..], b"\r\n", b""] {
        client.send(keepalive, service);
    }
    // Whatever answered a keep-alive would come before this call's messages and be seen by it.
    client.send(&client.request("OPTIONS", "next@client", service, b""), service);
    let (request, proxy) = backend.receive("OPTIONS");
    assert!(request.starts_with(b"OPTIONS"), "{}", String::from_utf8_lossy(&request));
    backend.send(&backend.answer(&request, "200 OK", b""), proxy);
    let (answer, _) = client.receive("200");
    assert!(answer.starts_with(b"SIP/2.0 200"), "{}", String::from_utf8_lossy(&answer));
    let (_, _, report) = node.stop();
    assert_eq!(report.sum("dropped_total", "reason=\"keepalive\""), 3, "{report:#?}");
    assert_eq!(report.total("received_total"), 5);
    report.check_balance();
}

#[test]
fn ipv6_client_reaches_ipv6_backend() {
    let place = Place::take("ipv6");
    let (Some(client), Some(backend)) = (bind_v6(), bind_v6()) else { return };
    let service = local_v6(free_port());
    let node = start(&place, vec![service], &backend);
    check_call(&client, &backend, service, "six@client");
    let (status, _, report) = node.stop();
    assert!(status.success(), "{status}");
    report.check_balance();
}

#[test]
fn ipv4_client_reaches_ipv6_backend() {
    let place = Place::take("ipv4-to-ipv6");
    let Some(backend) = bind_v6() else { return };
    let client = Endpoint::bind(local(0)).unwrap();
    let port = free_port();
    let node = start(&place, vec![local(port), local_v6(port)], &backend);
    check_call(&client, &backend, local(port), "four-to-six@client");
    let (status, _, report) = node.stop();
    assert!(status.success(), "{status}");
    report.check_balance();
}
