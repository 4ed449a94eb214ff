//! What connections add to the rules: responses and requests on the connection they belong to, transports bridged to each
//! other, tokens that name a connection. Real engines on the rig; sockets are in tests/loopback.

#![allow(unreachable_pub)]

use std::net::SocketAddr;

use rig::message::at;
use rig::{Fate, Rig, Sent};
use tandem::base::id::{FlowId, Transport};
use tandem::metrics::Reason;

mod rig;

const NODE: &str = r#"
[node]
name = "streams"
workers = 1
secret = "6f1d2c3b4a5968778695a4b3c2d1e0ff"

[[certificate]]
chain = "chain.pem"
key = "key.pem"

[[service]]
name = "voice"
listen = ["udp:192.0.2.10:5060", "tcp:192.0.2.10:5060", "tls:192.0.2.10:5061", "wss:192.0.2.10:443"]
pool = "pbx"

[[service]]
name = "trunk"
listen = ["udp:192.0.2.20:5060", "tcp:192.0.2.20:5060"]
pool = "tcp"

[[service]]
name = "strict"
listen = ["udp:192.0.2.30:5060", "tls:192.0.2.30:5061"]
pool = "pbx"
sips_over_plain = false

[[pool]]
name = "pbx"
udp_bytes_max = 1300
[[pool.backend]]
name = "pbx1"
address = "udp:198.51.100.11:5060"
large_address = "tcp:198.51.100.11:5062"

[[pool]]
name = "tcp"
[[pool.backend]]
name = "tcp1"
address = "tcp:198.51.100.21:5060"
"#;

const PHONE: &str = "203.0.113.77:41234";
const PBX: &str = "198.51.100.11:5060";
const UDP: &str = "192.0.2.10:5060";
const TCP: &str = "tcp:192.0.2.10:5060";

fn flow(transport: Transport) -> FlowId {
    FlowId::new(3, transport, 77, 5)
}

/// A request of a phone; `head` are whole header lines below the start line, its Via first.
fn request(method: &str, uri: &str, head: &str, to: &str) -> Vec<u8> {
    format!(
        "{method} {uri} SIP/2.0\r\n{head}Max-Forwards: 70\r\nFrom: <sip:a@x>;tag=a1\r\nTo: <sip:b@x>{to}\r\n\
         Call-ID: call-1\r\nCSeq: 1 {method}\r\nContact: <sip:a@203.0.113.77:5062;transport=tcp>\r\n\
         Content-Length: 0\r\n\r\n"
    )
    .into_bytes()
}

fn invite(transport: &str, sent_by: &str) -> Vec<u8> {
    request("INVITE", "sip:b@x", &format!("Via: SIP/2.0/{transport} {sent_by};branch=z9hG4bK-1;rport\r\n"), "")
}

fn forwarded(fate: Fate) -> Sent {
    match fate {
        Fate::Forwarded(sent) => sent,
        other => panic!("{other:?}"),
    }
}

/// All values of a header, one a line.
fn values(bytes: &[u8], name: &str) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let head = text.split("\r\n\r\n").next().unwrap_or_default();
    head.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned).collect()
}

/// A backend's answer to `request`; `drops` takes a header out.
fn answer(request: &Sent, drops: &str) -> Vec<u8> {
    let text = String::from_utf8(request.bytes.clone()).unwrap();
    let (_, head) = text.split_once("\r\n").unwrap();
    let kept = |line: &&str| {
        ["Via", "From", "To", "Call-ID", "CSeq", "Record-Route", "Content-Length"]
            .iter()
            .any(|name| line.starts_with(&format!("{name}:")) && *name != drops)
    };
    let lines: Vec<String> =
        head.lines().filter(kept).map(|l| l.replace("To: <sip:b@x>", "To: <sip:b@x>;tag=b1")).collect();
    format!("SIP/2.0 200 OK\r\n{}\r\n\r\n", lines.join("\r\n")).into_bytes()
}

fn call(rig: &mut Rig, transport: Transport, listener: &str, sent_by: &str) -> (Sent, Sent) {
    let bytes = invite(transport.via_name(), sent_by);
    let sent = forwarded(rig.handle_on(flow(transport), at(PHONE), listener, &bytes));
    let ok = answer(&sent, "");
    let source = sent.to;
    let back = forwarded(rig.handle(source, at(UDP), &ok));
    (sent, back)
}

//= rfc3261#section-18.2.2 same-connection
//# A response goes back on the connection of its request, and to received and the port of sent-by when that is gone.
#[test]
fn a_response_goes_back_on_the_connection_its_request_came_on() {
    let mut rig = Rig::new(NODE);
    let (sent, back) = call(&mut rig, Transport::Tcp, TCP, "203.0.113.77:5062");
    assert_eq!((sent.to, sent.hop.transport, sent.hop.flow), (at(PBX), Transport::Udp, None));
    let via = values(&sent.bytes, "Via");
    assert!(via[0].starts_with("SIP/2.0/UDP 192.0.2.10:5060;branch=z9hG4bK") && via[0].contains(";fl="), "{}", via[0]);
    assert_eq!(via[1], "SIP/2.0/TCP 203.0.113.77:5062;branch=z9hG4bK-1;received=203.0.113.77;rport=41234");
    assert_eq!((back.hop.flow, back.hop.transport), (Some(flow(Transport::Tcp)), Transport::Tcp));
    // Not to the port that the connection came from: nobody listens there.
    assert_eq!((back.to, back.hop.may_connect), (at("203.0.113.77:5062"), true));
    assert_eq!(values(&back.bytes, "Via"), [&via[1][..]]);
}

#[test]
fn a_browser_is_reached_by_its_connection_alone() {
    let mut rig = Rig::new(NODE);
    let (sent, back) = call(&mut rig, Transport::Wss, "wss:192.0.2.10:443", "df7jal23ls0d.invalid");
    assert_eq!((back.hop.flow, back.hop.may_connect), (Some(flow(Transport::Wss)), false));
    let bye = in_dialog(&sent, "sip:a@df7jal23ls0d.invalid;transport=ws");
    let bye = forwarded(rig.handle(at(PBX), at(UDP), &bye));
    assert_eq!((bye.hop.flow, bye.hop.may_connect), (Some(flow(Transport::Wss)), false));
    assert!(values(&bye.bytes, "Via")[0].starts_with("SIP/2.0/WSS 192.0.2.10:443;"));
    assert!(rig.fail(&bye, Reason::FlowGone).is_some_and(|sent| sent.bytes.starts_with(b"SIP/2.0 430 Flow Failed")));
}

/// A BYE of the backend in the dialog that `sent` made.
fn in_dialog(sent: &Sent, uri: &str) -> Vec<u8> {
    let routes: String = values(&sent.bytes, "Record-Route").iter().map(|v| format!("Route: {v}\r\n")).collect();
    format!(
        "BYE {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {PBX};branch=z9hG4bK-b\r\n{routes}Max-Forwards: 70\r\n\
         From: <sip:b@x>;tag=b1\r\nTo: <sip:a@x>;tag=a1\r\nCall-ID: call-1\r\nCSeq: 9 BYE\r\n\r\n"
    )
    .into_bytes()
}

//= rfc5658#section-5 transports
//# Each side sees its own transport in Record-Route, and each side's in-dialog requests come back through it.
#[test]
fn each_side_of_a_bridge_sees_its_own_transport() {
    let mut rig = Rig::new(NODE);
    let (sent, back) = call(&mut rig, Transport::Tcp, TCP, "203.0.113.77:5062");
    let routes = values(&sent.bytes, "Record-Route");
    assert!(routes[0].starts_with("<sip:192.0.2.10:5060;lr;tk="), "the backend's side first: {routes:?}");
    assert!(routes[1].starts_with("<sip:192.0.2.10:5060;transport=tcp;lr;tk="), "then the phone's: {routes:?}");
    assert_eq!(values(&back.bytes, "Record-Route"), routes, "the response keeps them");
    let bye = forwarded(rig.handle(at(PBX), at(UDP), &in_dialog(&sent, "sip:a@203.0.113.77:5062;transport=tcp")));
    assert_eq!(bye.hop.flow, Some(flow(Transport::Tcp)));
    // Once the connection is gone, the Contact is where it listens.
    assert_eq!((bye.to, bye.hop.may_connect), (at("203.0.113.77:5062"), true));
    assert!(values(&bye.bytes, "Via")[0].starts_with("SIP/2.0/TCP 192.0.2.10:5060;"));
    assert!(values(&bye.bytes, "Route").is_empty());
}

#[test]
fn behind_a_nat_the_text_is_not_followed_when_the_connection_is_gone() {
    let mut rig = Rig::new(NODE);
    let (sent, back) = call(&mut rig, Transport::Tcp, TCP, "10.0.0.5:5062");
    assert_eq!(back.to, at("203.0.113.77:5062"), "received, with the port of sent-by");
    let bye = forwarded(rig.handle(at(PBX), at(UDP), &in_dialog(&sent, "sip:a@10.0.0.5:5062;transport=tcp")));
    assert_eq!((bye.hop.flow, bye.hop.may_connect), (Some(flow(Transport::Tcp)), false));
}

#[test]
fn a_flow_that_was_not_signed_leads_nowhere() {
    let mut rig = Rig::new(NODE);
    let bytes = invite("TCP", "203.0.113.77:5062");
    let sent = forwarded(rig.handle_on(flow(Transport::Tcp), at(PHONE), TCP, &bytes));
    let ok = String::from_utf8(answer(&sent, "")).unwrap();
    let token = ok.split(";fl=").nth(1).unwrap()[..20].to_owned();
    for forged in [token.replace(&token[3..5], "__"), token[..19].to_owned(), String::new()] {
        let bytes = ok.replace(&token, &forged);
        assert_ne!(bytes, ok);
        assert_eq!(rig.handle(at(PBX), at(UDP), bytes.as_bytes()), Fate::Dropped(Reason::BadBranch), "{forged}");
    }
    forwarded(rig.handle(at(PBX), at(UDP), ok.as_bytes()));
}

//= rfc3261#section-18.3 content-length
//# On a connection each message says how long its body is; where it is missing, it is added.
#[test]
fn content_length_is_added_towards_a_connection() {
    let mut rig = Rig::new(NODE);
    let bare = |body: &str| {
        format!(
            "MESSAGE sip:b@x SIP/2.0\r\nVia: SIP/2.0/UDP 203.0.113.77:5062;branch=z9hG4bK-1\r\nFrom: <sip:a@x>;tag=a1\r\n\
             To: <sip:b@x>\r\nCall-ID: call-1\r\nCSeq: 1 MESSAGE\r\n\r\n{body}"
        )
    };
    for body in ["", "hello"] {
        let sent = forwarded(rig.handle(at("203.0.113.77:5062"), at("192.0.2.20:5060"), bare(body).as_bytes()));
        assert_eq!((sent.hop.transport, sent.to), (Transport::Tcp, at("198.51.100.21:5060")));
        assert_eq!(values(&sent.bytes, "Content-Length"), [body.len().to_string()]);
        assert!(sent.bytes.ends_with(format!("\r\n\r\n{body}").as_bytes()));
        assert!(values(&sent.bytes, "Via")[0].starts_with("SIP/2.0/TCP 192.0.2.20:5060;branch="));
    }
    let sent = forwarded(rig.handle_on(flow(Transport::Tcp), at(PHONE), TCP, &invite("TCP", "203.0.113.77:5062")));
    let back = forwarded(rig.handle(at(PBX), at(UDP), &answer(&sent, "Content-Length")));
    assert_eq!(values(&back.bytes, "Content-Length"), ["0"]);
}

#[test]
fn line_ends_that_a_stream_reader_may_read_otherwise_do_not_enter_a_stream() {
    let mut rig = Rig::new(NODE);
    let text = String::from_utf8(invite("UDP", "203.0.113.77:5062")).unwrap();
    let bare = text.replace("Max-Forwards: 70\r\n", "Max-Forwards: 70\n");
    let fate = rig.handle(at("203.0.113.77:5062"), at("192.0.2.20:5060"), bare.as_bytes());
    assert!(matches!(fate, Fate::Answered(400, Reason::HeaderLine, _)), "{fate:?}");
    forwarded(rig.handle(at("203.0.113.77:5062"), at(UDP), bare.as_bytes()));
}

//= rfc3261#section-18.1.1 large
//# A request too large for UDP goes over a connection where the backend has one, with a Via that says so.
#[test]
fn a_request_too_large_for_udp_goes_over_tcp() {
    let mut rig = Rig::new(NODE);
    let text = String::from_utf8(invite("UDP", "203.0.113.77:5062")).unwrap();
    let with = |len: usize| text.replace("Contact:", &format!("X-Pad: {}\r\nContact:", "x".repeat(len)));
    let small = forwarded(rig.handle(at("203.0.113.77:5062"), at(UDP), with(300).as_bytes()));
    assert_eq!((small.hop.transport, small.to), (Transport::Udp, at(PBX)));
    let large = forwarded(rig.handle(at("203.0.113.77:5062"), at(UDP), with(1200).as_bytes()));
    assert_eq!((large.hop.transport, large.to), (Transport::Tcp, at("198.51.100.11:5062")));
    assert!(values(&large.bytes, "Via")[0].starts_with("SIP/2.0/TCP 192.0.2.10:5060;"));
    assert_eq!(rig.engine().counters().switched_to_stream, 1);
    assert_eq!(values(&large.bytes, "Via")[0][11..], values(&small.bytes, "Via")[0][11..], "the branch is the same");
}

//= rfc3261#section-16.6 sips
//# The Record-Route of a request to a sips URI is sips, on the side that is secure.
#[test]
fn sips_is_recorded_as_sips_and_kept_secure_where_asked() {
    let mut rig = Rig::new(NODE);
    let via = "Via: SIP/2.0/TLS 203.0.113.77:5063;branch=z9hG4bK-1\r\n";
    let bytes = request("INVITE", "sips:b@x", via, "");
    let sent = forwarded(rig.handle_on(flow(Transport::Tls), at(PHONE), "tls:192.0.2.10:5061", &bytes));
    let routes = values(&sent.bytes, "Record-Route");
    assert!(routes[0].starts_with("<sip:192.0.2.10:5060;lr;tk="), "{routes:?}");
    assert!(routes[1].starts_with("<sips:192.0.2.10:5061;lr;tk="), "{routes:?}");
    let fate = rig.handle_on(flow(Transport::Tls), at(PHONE), "tls:192.0.2.30:5061", &bytes);
    assert!(matches!(fate, Fate::Answered(480, Reason::SipsOverPlain, _)), "{fate:?}");
}

//= rfc3261#section-16.9 connect-failed
//# A request that could not be sent is answered as the next hop would with 503; a response is lost.
#[test]
fn what_cannot_be_delivered_is_answered_in_the_name_of_the_next_hop() {
    let mut rig = Rig::new(NODE);
    let client: SocketAddr = at("203.0.113.77:5062");
    let bytes = invite("UDP", "203.0.113.77:5062");
    let sent = forwarded(rig.handle(client, at("192.0.2.20:5060"), &bytes));
    let answer = rig.fail(&sent, Reason::ConnectFailed).expect("an answer");
    assert!(answer.bytes.starts_with(b"SIP/2.0 503 Service Unavailable\r\n"));
    assert_eq!((answer.to, answer.from), (client, at("192.0.2.20:5060")));
    assert_eq!(
        values(&answer.bytes, "Via"),
        ["SIP/2.0/UDP 203.0.113.77:5062;branch=z9hG4bK-1;received=203.0.113.77;rport=5062"]
    );
    assert_eq!(values(&answer.bytes, "Retry-After").len(), 1);
    let tag = values(&answer.bytes, "To")[0].clone();
    let ack =
        String::from_utf8(bytes).unwrap().replace("INVITE", "ACK").replace("To: <sip:b@x>", &format!("To: {tag}"));
    assert_eq!(rig.handle(client, at("192.0.2.20:5060"), ack.as_bytes()), Fate::Dropped(Reason::AckForAnswer));
    let (_, back) = call(&mut rig, Transport::Tcp, TCP, "203.0.113.77:5062");
    assert_eq!(rig.fail(&back, Reason::FlowGone), None);
    let counters = rig.engine().counters();
    assert_eq!(counters.undeliverable[Reason::ConnectFailed as usize], 1);
    assert_eq!(counters.undeliverable[Reason::FlowGone as usize], 1);
}

#[test]
fn a_refusal_over_a_connection_may_be_as_long_as_it_is_and_stays_on_it() {
    let mut rig = Rig::new(NODE);
    let bytes =
        String::from_utf8(invite("TCP", "10.0.0.5:5062")).unwrap().replace("Max-Forwards: 70", "Max-Forwards: 0");
    match rig.handle_on(flow(Transport::Tcp), at(PHONE), TCP, bytes.as_bytes()) {
        Fate::Answered(483, Reason::TooManyHops, sent) => {
            assert_eq!((sent.hop.flow, sent.hop.may_connect), (Some(flow(Transport::Tcp)), false));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_backend_that_opens_a_connection_is_known_by_its_address_and_its_via() {
    let mut rig = Rig::new(NODE);
    let from_port = |port: u16| SocketAddr::new(at("198.51.100.21:0").ip(), port);
    let bytes = |sent_by: &str| {
        request(
            "INVITE",
            "sip:bob@203.0.113.9:5070;transport=tcp",
            &format!("Via: SIP/2.0/TCP {sent_by};branch=z9hG4bK-1\r\n"),
            "",
        )
    };
    let on = flow(Transport::Tcp);
    let sent = forwarded(rig.handle_on(on, from_port(40_001), "tcp:192.0.2.20:5060", &bytes("198.51.100.21:5060")));
    assert_eq!((sent.to, sent.hop.transport, sent.hop.flow), (at("203.0.113.9:5070"), Transport::Tcp, None));
    // Another program of that host, or a stranger who writes the same Via, is a client like any other.
    let sent = forwarded(rig.handle_on(on, from_port(40_002), "tcp:192.0.2.20:5060", &bytes("198.51.100.21:5099")));
    assert_eq!(sent.to, at("198.51.100.21:5060"));
    let sent = forwarded(rig.handle_on(on, at(PHONE), "tcp:192.0.2.20:5060", &bytes("198.51.100.21:5060")));
    assert_eq!(sent.to, at("198.51.100.21:5060"));
}
