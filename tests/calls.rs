//! Whole calls by the rules of a stateless proxy (RFC 3261 16.11): every copy goes on once, to one target, with one
//! branch; nothing is sent of our own accord; from one address family to the other in both directions; and a ring of
//! proxies ends. Each drives the real engine through the rig.

use std::net::SocketAddr;
use std::time::Duration;

use rig::message::{
    CLIENT, EDGE, End, Request, answer, at, forward, in_dialog, own_branch, passed, value, values, without_top_via,
};
use rig::{Fate, Rig, Sent};
use tandem::metrics::Reason;
use tandem::route::snapshot::BackendStatus;

mod rig;

const NODE: &str = include_str!("data/messages/node.toml");

/// What comes back when `sent`'s receiver sends `response` to where it came from.
fn returned(rig: &mut Rig, sent: &Sent, response: &[u8]) -> Sent {
    passed(rig, &sent.to.to_string(), &sent.from.to_string(), response)
}

/// The same messages, as two workers of one node or two nodes of one secret see them.
//= rfc3261#section-16.11 branch
//# The branch is made of what retransmission, CANCEL and ACK share, the method left out.
#[test]
fn retransmissions_cancel_and_ack_have_one_branch_at_every_worker_and_node() {
    let (mut here, mut there) = (Rig::new(NODE), Rig::new(NODE));
    forward(&mut there, &Request { call_id: "other", ..Request::default() }.bytes());
    // A client of RFC 2543 names no branch.
    let plain = |request: Request<'_>| request.bytes();
    let without_branch = |request: Request<'_>| {
        String::from_utf8(request.bytes()).unwrap().replace(";branch=z9hG4bK-1", "").into_bytes()
    };
    for write in [plain as fn(Request<'_>) -> Vec<u8>, without_branch] {
        let ack = Request { method: "ACK", to: "<sip:bob@sip.example.com>;tag=b1", ..Request::default() };
        let cancel = Request { method: "CANCEL", ..Request::default() };
        let first = forward(&mut here, &write(Request::default()));
        for message in [Request::default(), Request::default(), cancel, ack] {
            for rig in [&mut here, &mut there] {
                let sent = forward(rig, &write(message));
                assert_eq!((own_branch(&sent), sent.to), (own_branch(&first), first.to), "{}", message.method);
            }
        }
    }
}

//= rfc3261#section-16.6 unique-branch
//# Two transactions have two branches.
#[test]
fn two_transactions_have_two_branches() {
    let mut rig = Rig::new(NODE);
    let base = Request::default();
    let others = [
        Request { call_id: "call-2", ..base },
        Request { cseq: 2, ..base },
        Request { branch: "z9hG4bK-2", ..base },
        Request { via: "203.0.113.77:5063", ..base },
        Request { via: "pc33.example.net", ..base },
    ];
    let mut seen = vec![own_branch(&forward(&mut rig, &base.bytes()))];
    seen.extend(others.iter().map(|other| own_branch(&forward(&mut rig, &other.bytes()))));
    seen.push(own_branch(&passed(&mut rig, "198.51.100.66:5062", EDGE, &base.bytes())));
    seen.push(own_branch(&passed(&mut rig, CLIENT, "192.0.2.10:5070", &base.bytes())));
    let count = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), count);
    assert!(seen.iter().all(|branch| branch.starts_with("z9hG4bK")));
}

//= rfc5393#section-4.1 never-forks
//# Only who forks must detect loops: there is one target, never two.
//= rfc3261#section-16.11 retransmissions
//# Every retransmission is forwarded; none is made.
//= rfc3261#section-16.11 no-provisional
//# No 100 and no other provisional response is made here.
//= rfc4320#section-4.2 no-408
//# No 408 is made here, whatever a backend leaves unanswered.
#[test]
fn every_copy_of_a_request_goes_on_once_and_nothing_is_sent_of_our_own_accord() {
    let mut rig = Rig::new(NODE);
    // The rig asserts that one datagram in is at most one out, and that time alone sends nothing: no 100 for an INVITE,
    // no 408 when nobody answers, no retransmission, no second branch.
    for method in ["INVITE", "MESSAGE", "REGISTER", "BYE"] {
        let request = Request { method, call_id: method, ..Request::default() }.bytes();
        let first = forward(&mut rig, &request);
        assert!(rig.backend_at(first.to).is_some());
        for _ in 0..10 {
            rig.pass(Duration::from_secs(4));
            assert_eq!(forward(&mut rig, &request), first, "{method}");
        }
        rig.pass(Duration::from_secs(400));
    }
    let counters = rig.engine().counters();
    assert_eq!(counters.requests_forwarded, 44);
    assert_eq!(counters.answered.iter().sum::<u64>(), 0);
}

//= rfc3261#section-16.11 cancel
//# CANCEL is forwarded like any request, with the same treatment of Route.
#[test]
fn cancel_takes_the_way_of_its_invite_with_and_without_route() {
    for extra in ["", "Route: <sip:sip.example.com;lr>\r\n", "Route: <sip:192.0.2.10;lr>, <sip:198.51.100.66;lr>\r\n"] {
        let mut rig = Rig::new(NODE);
        let invite = Request { extra, ..Request::default() };
        let sent = forward(&mut rig, &invite.bytes());
        // Before a provisional answer, after one, and after the final one.
        for status in ["", "180 Ringing", "200 OK"] {
            if !status.is_empty() {
                returned(&mut rig, &sent, &answer(&sent.bytes, status));
            }
            let cancel = forward(&mut rig, &Request { method: "CANCEL", ..invite }.bytes());
            assert_eq!((cancel.to, cancel.from), (sent.to, sent.from));
            assert_eq!(own_branch(&cancel), own_branch(&sent));
            assert_eq!(values(&cancel.bytes, "Route"), values(&sent.bytes, "Route"), "the same treatment of Route");
            let back = returned(&mut rig, &cancel, &answer(&cancel.bytes, "200 OK"));
            assert_eq!(back.to, at(CLIENT), "its answer comes from the backend");
        }
    }
    // A CANCEL of a transaction that nobody knows goes on like any request.
    let mut rig = Rig::new(NODE);
    let stray = forward(&mut rig, &Request { method: "CANCEL", ..Request::default() }.bytes());
    assert!(rig.backend_at(stray.to).is_some());
}

//= rfc3261#section-13.2.2.4 ack-to-2xx
//# The ACK to a 2xx is a request of its own and follows the route set of its dialog.
#[test]
fn ack_to_a_2xx_follows_its_route_and_ack_to_another_its_invite() {
    let mut rig = Rig::new(NODE);
    let sent = forward(&mut rig, &Request::default().bytes());
    let ok = returned(&mut rig, &sent, &answer(&sent.bytes, "200 OK"));
    let routes = values(&ok.bytes, "Record-Route");
    let caller = End { address: CLIENT, tag: "a1", edge: EDGE };
    let callee = End { address: "198.51.100.99:5060", tag: "b1", edge: EDGE };
    let ack = forward(&mut rig, &in_dialog("ACK", 1, &caller, &callee, &routes));
    assert_eq!(ack.to, sent.to, "end to end, by its token");
    assert_ne!(own_branch(&ack), own_branch(&sent), "a transaction of its own");
    assert_eq!(values(&ack.bytes, "Route"), [""; 0]);
    assert_eq!(rig.engine().counters().routed_by_cookie, 1);

    let invite = Request { call_id: "call-2", ..Request::default() };
    let sent = forward(&mut rig, &invite.bytes());
    returned(&mut rig, &sent, &answer(&sent.bytes, "486 Busy Here"));
    let ack = Request { method: "ACK", to: "<sip:bob@sip.example.com>;tag=b1", ..invite };
    let ack = forward(&mut rig, &ack.bytes());
    assert_eq!((ack.to, own_branch(&ack)), (sent.to, own_branch(&sent)));
}

//= rfc3261#section-16.3 merged
//# Merged requests are no error: each copy goes on.
#[test]
fn merged_requests_are_both_forwarded() {
    let mut rig = Rig::new(NODE);
    let fork = |branch: &str, below: &str| {
        let lower = format!("Via: SIP/2.0/UDP {below};branch=z9hG4bK-ua\r\n");
        Request { branch, extra: &lower, ..Request::default() }.bytes()
    };
    let (one, two) = (fork("z9hG4bK-fork1", "203.0.113.9"), fork("z9hG4bK-fork2", "203.0.113.9"));
    let (first, second) = (forward(&mut rig, &one), forward(&mut rig, &two));
    assert_eq!(first.to, second.to, "and one backend sees both, so that it can say 482");
    assert_ne!(own_branch(&first), own_branch(&second));
    for sent in [first, second] {
        assert_eq!(returned(&mut rig, &sent, &answer(&sent.bytes, "482 Loop Detected")).to, at(CLIENT));
    }
}

//= rfc3261#section-16.11 response
//# Our Via goes, and the response to where the next one says; nothing else of it changes.
//= rfc3261#section-16.11 every-response
//# Every response goes on at once and as often as it comes: 100, 2xx and 503 too.
//= rfc3261#section-16.7 to-tag
//# The To tag of a response is neither changed nor added.
#[test]
fn every_response_goes_back_as_it_is_and_as_often_as_it_comes() {
    let mut rig = Rig::new(NODE);
    let sent = forward(&mut rig, &Request::default().bytes());
    for status in [
        100, 180, 183, 199, 200, 202, 299, 300, 302, 399, 401, 407, 408, 480, 482, 486, 487, 499, 500, 503, 504, 600,
        603, 699,
    ] {
        let untagged = String::from_utf8(answer(&sent.bytes, &format!("{status} Some Words"))).unwrap();
        for response in [untagged.replace(";tag=b1", ""), untagged] {
            for _ in 0..2 {
                let back = returned(&mut rig, &sent, response.as_bytes());
                assert_eq!((back.to, back.from), (at(CLIENT), at(EDGE)));
                assert_eq!(back.bytes, without_top_via(response.as_bytes()), "{status}");
            }
        }
    }
}

//= rfc6026#section-7.3 stray
//# A response to no request of ours goes nowhere; a late one needs no transaction.
#[test]
fn a_late_response_needs_no_state_and_a_stray_one_finds_none() {
    let mut rig = Rig::new(NODE);
    let sent = forward(&mut rig, &Request { method: "MESSAGE", ..Request::default() }.bytes());
    rig.pass(Duration::from_secs(3_600));
    assert!(rig.engine().bindings().is_empty());
    let ok = answer(&sent.bytes, "200 OK");
    assert_eq!(returned(&mut rig, &sent, &ok).to, at(CLIENT), "64*T1 and an hour later");
    // The same response where no such request went through: another secret, that is another node.
    let secret = "6f1d2c3b4a5968778695a4b3c2d1e0ff";
    let mut stranger = Rig::new(&NODE.replace(secret, "00112233445566778899aabbccddeeff"));
    assert_eq!(stranger.handle(sent.to, sent.from, &ok), Fate::Dropped(Reason::BadBranch));
}

/// Where the client is, and the listener that each side is to use.
struct Families {
    client: &'static str,
    client_edge: &'static str,
    backend_edge: &'static str,
}

const CROSSINGS: [Families; 4] = [
    Families { client: CLIENT, client_edge: "192.0.2.20:5060", backend_edge: "[2001:db8::20]:5060" },
    Families { client: "[2001:db8:f::77]:5062", client_edge: "[2001:db8::10]:5060", backend_edge: EDGE },
    Families {
        client: "[2001:db8:f::77]:5062",
        client_edge: "[2001:db8::20]:5060",
        backend_edge: "[2001:db8::20]:5060",
    },
    Families { client: CLIENT, client_edge: EDGE, backend_edge: EDGE },
];

/// The route set of each end (RFC 3261 12.1): the caller reverses what the callee keeps.
fn route_sets(recorded: &[String]) -> (Vec<String>, Vec<String>) {
    (recorded.iter().rev().cloned().collect(), recorded.to_vec())
}

/// Requests in both directions and their answers, each seen to arrive, and by which listener.
fn converse(rig: &mut Rig, families: &Families, client: (&End<'_>, &[String]), backend: (&End<'_>, &[String])) {
    for (cseq, method) in [(2, "ACK"), (3, "INVITE"), (3, "CANCEL"), (4, "INFO"), (5, "BYE")] {
        for (from, to) in [(client, backend), (backend, client)] {
            let request = in_dialog(method, cseq, from.0, to.0, from.1);
            let sent = passed(rig, from.0.address, from.0.edge, &request);
            assert_eq!((sent.to, sent.from), (at(to.0.address), at(to.0.edge)), "{method}");
            assert_eq!(values(&sent.bytes, "Route"), [""; 0], "{method}: both of ours are gone");
            assert!(value(&sent.bytes, "Via").starts_with(&format!("SIP/2.0/UDP {};", to.0.edge)), "{method}");
            let records = values(&sent.bytes, "Record-Route").len();
            let crosses = families.client_edge != families.backend_edge;
            assert_eq!(records, if method == "INVITE" { 1 + usize::from(crosses) } else { 0 }, "{method}");
            if method != "ACK" {
                let back = returned(rig, &sent, &answer(&sent.bytes, "200 OK"));
                assert_eq!((back.to, back.from), (at(from.0.address), at(from.0.edge)), "{method}");
            }
        }
    }
}

//= rfc5658#section-5 double-route
//# Of the two Record-Route values of one proxy both go when they come back as Route.
//= rfc5658#section-5 double-record
//# Where the two sides differ each gets a Record-Route that it can reach.
#[test]
fn calls_cross_between_address_families_in_both_directions() {
    for families in &CROSSINGS {
        let Families { client, client_edge, backend_edge } = *families;
        let mut rig = Rig::new(NODE);
        let invite = Request { via: client, ..Request::default() }.bytes();
        let sent = passed(&mut rig, client, client_edge, &invite);
        assert_eq!(sent.from, at(backend_edge));
        let backend = sent.to.to_string();
        for status in ["180 Ringing", "200 OK"] {
            let back = returned(&mut rig, &sent, &answer(&sent.bytes, status));
            assert_eq!((back.to, back.from), (at(client), at(client_edge)));
        }
        let (of_caller, of_callee) = route_sets(&values(&sent.bytes, "Record-Route"));
        assert!(of_caller[0].starts_with(&format!("<sip:{client_edge};lr;tk=")), "{of_caller:?}");
        assert!(of_callee[0].starts_with(&format!("<sip:{backend_edge};lr;tk=")), "{of_callee:?}");
        let caller = End { address: client, tag: "a1", edge: client_edge };
        let callee = End { address: &backend, tag: "b1", edge: backend_edge };
        converse(&mut rig, families, (&caller, &of_caller), (&callee, &of_callee));
    }
}

//= rfc5658#section-5 double-route
//# Of the two Record-Route values of one proxy both go when they come back as Route.
#[test]
fn calls_that_a_backend_starts_cross_in_both_directions_too() {
    for families in &CROSSINGS {
        let Families { client, client_edge, backend_edge } = *families;
        let is_six = backend_edge.contains("::20");
        let backend = if is_six { "[2001:db8:1::21]:5060" } else { "198.51.100.11:5060" };
        let mut rig = Rig::new(NODE);
        let uri = format!("sip:alice@{client}");
        let invite = Request { via: backend, uri: &uri, ..Request::default() }.bytes();
        let sent = passed(&mut rig, backend, backend_edge, &invite);
        assert_eq!((sent.to, sent.from), (at(client), at(client_edge)));
        for status in ["180 Ringing", "200 OK"] {
            let back = returned(&mut rig, &sent, &answer(&sent.bytes, status));
            assert_eq!((back.to, back.from), (at(backend), at(backend_edge)));
        }
        let (of_caller, of_callee) = route_sets(&values(&sent.bytes, "Record-Route"));
        let caller = End { address: backend, tag: "a1", edge: backend_edge };
        let callee = End { address: client, tag: "b1", edge: client_edge };
        converse(&mut rig, families, (&callee, &of_callee), (&caller, &of_caller));
    }
}

//= rfc3581#section-4 same-address
//# A response leaves from the address and port that the request came to.
#[test]
fn what_comes_back_leaves_from_the_address_and_port_that_were_asked() {
    let rig = Rig::new(NODE);
    let listeners: Vec<SocketAddr> = rig.snapshot().listeners.iter().map(|l| l.listen.address).collect();
    assert!(listeners.len() >= 7);
    for asked in listeners {
        let client = if asked.is_ipv4() { "203.0.113.77:40000" } else { "[2001:db8:f::77]:40000" };
        let mut rig = Rig::new(NODE);
        let via = if asked.is_ipv4() { "10.0.0.5;rport" } else { "[fd00::5];rport" };
        let spent = String::from_utf8(Request { via, method: "OPTIONS", ..Request::default() }.bytes()).unwrap();
        let spent = spent.replace("Max-Forwards: 70", "Max-Forwards: 0");
        let Fate::Answered(483, _, refusal) = rig.handle(at(client), asked, spent.as_bytes()) else { panic!() };
        assert_eq!((refusal.from, refusal.to), (asked, at(client)));
        match rig.handle(at(client), asked, &Request { via, ..Request::default() }.bytes()) {
            Fate::Forwarded(sent) => {
                let back = returned(&mut rig, &sent, &answer(&sent.bytes, "200 OK"));
                assert_eq!((back.from, back.to), (asked, at(client)));
            }
            // The service without a backend.
            other => assert!(matches!(other, Fate::Answered(503, ..)), "{other:?}"),
        }
    }
}

//= rfc3261#section-18.1.1 largest
//# Datagrams up to the largest of UDP are read, and sent on while they still fit.
#[test]
fn the_largest_datagram_passes_and_one_byte_more_is_refused() {
    let message = |body: usize| {
        let head = String::from_utf8(Request { method: "MESSAGE", ..Request::default() }.bytes()).unwrap();
        let head = head.replace("Content-Length: 0", &format!("Content-Length: {body:05}"));
        [head.as_bytes(), &vec![b'x'; body]].concat()
    };
    let mut rig = Rig::new(NODE);
    let grown = forward(&mut rig, &message(10)).bytes.len() - message(10).len();
    let head = message(0).len();
    let most = message(65_507 - grown - head);
    let sent = forward(&mut rig, &most);
    assert_eq!(sent.bytes.len(), 65_507, "the largest payload of UDP over IPv4");
    let fate = rig.handle(at(CLIENT), at(EDGE), &message(65_507 - grown - head + 1));
    assert!(matches!(fate, Fate::Answered(513, Reason::EditFailed, _)), "{fate:?}");
    let fate = rig.handle(at(CLIENT), at(EDGE), &message(65_507 - head));
    assert!(matches!(fate, Fate::Answered(513, Reason::EditFailed, _)), "the largest that can come: {fate:?}");
    // A response shrinks on its way, so the largest that can come passes.
    let ok = String::from_utf8(answer(&sent.bytes, "200 OK")).unwrap();
    let room = 65_507 - ok.len() - 4;
    let ok = ok.replace("Content-Length: 0", &format!("Content-Length: {room:05}"));
    let ok = [ok.as_bytes(), &vec![b'y'; room]].concat();
    assert_eq!(ok.len(), 65_507);
    assert_eq!(returned(&mut rig, &sent, &ok).bytes, without_top_via(&ok));
}

/// How a ring of nodes ended: the requests on the wire, the client's own included, and what the client was answered.
struct Ring {
    requests: usize,
    statuses: Vec<u16>,
}

/// Delivers what leaves to whichever node listens there, until it goes to somebody else or nothing leaves.
fn run_ring(nodes: &mut [Rig], first: &[u8], hairpin: &[(&str, &str)]) -> Ring {
    let mut ring = Ring { requests: 0, statuses: Vec::new() };
    let mut next = Some((at(CLIENT), at(EDGE), first.to_vec()));
    for _ in 0..1_000 {
        let Some((source, to, bytes)) = next.take() else { return ring };
        ring.requests += usize::from(!bytes.starts_with(b"SIP/"));
        let listens = |rig: &&mut Rig| rig.snapshot().listeners.iter().any(|l| l.listen.address == to);
        let Some(node) = nodes.iter_mut().find(listens) else {
            assert_eq!(to, at(CLIENT), "a ring that leaks");
            ring.statuses.push(std::str::from_utf8(&bytes[8..11]).unwrap().parse().unwrap());
            continue;
        };
        next = match node.handle(source, to, &bytes) {
            Fate::Forwarded(sent) | Fate::Answered(_, _, sent) => {
                let translate = |address: SocketAddr| {
                    hairpin.iter().find(|(outside, _)| at(outside) == address).map_or(address, |(_, inside)| at(inside))
                };
                Some((sent.from, translate(sent.to), sent.bytes))
            }
            Fate::Dropped(_) => None,
        };
    }
    panic!("a ring without end");
}

//= rfc3261#section-16.3 loop
//# Loops need not be detected by who does not fork, since Max-Forwards ends them.
#[test]
fn two_nodes_that_point_at_each_other_end_with_483() {
    let node = |listen: &str, backend: &str, name: &str, secret: &str| {
        Rig::new(&format!(
            "[node]\nname = \"{name}\"\nworkers = 1\nsecret = \"{secret}\"\nnames = [\"sip.example.com\"]\n\
             [[service]]\nname = \"voice\"\nlisten = [\"udp:{listen}\"]\npool = \"ring\"\n\
             [[pool]]\nname = \"ring\"\n[[pool.backend]]\nname = \"next\"\naddress = \"udp:{backend}\"\n"
        ))
    };
    let other = "192.0.2.50:5060";
    let secrets = ["6f1d2c3b4a5968778695a4b3c2d1e0ff", "00112233445566778899aabbccddeeff"];
    for second in secrets {
        for method in ["INVITE", "OPTIONS", "REGISTER", "BYE", "ACK"] {
            for uri in ["sip:bob@sip.example.com", "sip:bob@192.0.2.10", "sip:bob@192.0.2.50"] {
                let mut nodes = [node(EDGE, other, "one", secrets[0]), node(other, EDGE, "two", second)];
                let ring = run_ring(&mut nodes, &Request { method, uri, ..Request::default() }.bytes(), &[]);
                assert_eq!(ring.requests, 71, "{method} {uri}");
                let wanted: &[u16] = if method == "ACK" { &[] } else { &[483] };
                assert_eq!(ring.statuses, wanted, "{method} {uri}");
            }
        }
    }
}

//= rfc3261#section-16.3 loop
//# Loops need not be detected by who does not fork, since Max-Forwards ends them.
#[test]
fn a_node_that_is_its_own_backend_behind_a_translator_ends_too() {
    // The address as such is refused by the configuration; a translator in front can still lead back.
    let mut node = [Rig::new(NODE)];
    node[0].set_backends(|backend| BackendStatus { admin: backend.admin, is_healthy: backend.name == "pbx1" });
    let ring = run_ring(&mut node, &Request::default().bytes(), &[("198.51.100.11:5060", EDGE)]);
    assert_eq!(ring.requests, 71);
    // The 483 would go to our own address, as the request seems to come from there.
    assert_eq!(node[0].engine().counters().dropped[Reason::ForbiddenTarget as usize], 1);
}
