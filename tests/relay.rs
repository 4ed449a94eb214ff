//! What must never be sent: nothing to an address that only a stranger's text names, nothing on the word of a cookie that
//! we did not sign for this call, and nothing that hits a spoofed source with more than was sent in its name.
//!
//! The rig asserts after each datagram that at most one leaves, that an answer goes to the source and has no more
//! bytes than the request, and that time alone sends nothing.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use rig::message::{CLIENT, EDGE, Request, answer, at, forward, passed, value};
use rig::{Fate, Rig, Sent};
use tandem::metrics::Reason;

mod rig;

const NODE: &str = include_str!("data/messages/node.toml");

/// Whom a stranger would like to be hit, and the stranger.
const VICTIM: &str = "198.51.100.66:5060";
const STRANGER: &str = "203.0.113.99:5060";

const METHODS: [&str; 14] = [
    "INVITE",
    "ACK",
    "BYE",
    "CANCEL",
    "REGISTER",
    "OPTIONS",
    "MESSAGE",
    "INFO",
    "PRACK",
    "UPDATE",
    "SUBSCRIBE",
    "NOTIFY",
    "REFER",
    "FOO",
];

/// Each request of a stranger, in and out of a dialog, must go to a backend or nowhere.
fn check_no_relay(uri: &str, extra: &str) {
    let mut rig = Rig::new(NODE);
    for method in METHODS {
        for to in ["<sip:bob@sip.example.com>", "<sip:bob@sip.example.com>;tag=b1"] {
            let request = Request { method, uri, via: STRANGER, to, extra, call_id: method, ..Request::default() };
            match rig.handle(at(STRANGER), at(EDGE), &request.bytes()) {
                Fate::Forwarded(sent) => assert!(rig.backend_at(sent.to).is_some(), "{method} to {}", sent.to),
                Fate::Answered(_, _, sent) => assert_eq!(sent.to, at(STRANGER), "{method}"),
                Fate::Dropped(_) => {}
            }
        }
    }
    assert!(rig.engine().counters().requests_forwarded > 0);
}

#[test]
fn nothing_is_relayed_to_where_a_route_of_a_stranger_leads() {
    for route in [
        format!("Route: <sip:{VICTIM};lr>\r\n"),
        format!("Route: <sip:{VICTIM}>\r\n"),
        format!("Route: <sip:192.0.2.10;lr>, <sip:{VICTIM};lr>\r\n"),
        format!("Route: <sip:192.0.2.10;lr>\r\nRoute: <sip:sip.example.com;lr>\r\nRoute: <sip:{VICTIM}>\r\n"),
        format!("Route: <sip:192.0.2.10;lr;tk=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA>, <sip:{VICTIM};lr>\r\n"),
    ] {
        check_no_relay("sip:bob@sip.example.com", &route);
    }
}

#[test]
fn nothing_is_relayed_to_where_a_request_uri_of_a_stranger_leads() {
    let mapped = "sip:bob@[::ffff:198.51.100.66]".to_owned();
    for uri in [format!("sip:bob@{VICTIM}"), format!("sip:{VICTIM};lr"), format!("sips:{VICTIM}"), mapped] {
        check_no_relay(&uri, "");
        check_no_relay(&uri, "Route: <sip:192.0.2.10;lr>\r\n");
    }
}

//= rfc3261#section-16.6 maddr
//# maddr is not followed, against the rule: it would lead anywhere.
//= rfc3261#section-18.2.2 maddr
//# maddr is not followed, against the rule: it would aim responses at anybody.
#[test]
fn nothing_is_relayed_to_where_maddr_leads() {
    let maddr = "maddr=198.51.100.66";
    check_no_relay(&format!("sip:bob@sip.example.com;{maddr}"), "");
    check_no_relay("sip:bob@sip.example.com", &format!("Route: <sip:192.0.2.10;lr;{maddr}>\r\n"));
    check_no_relay("sip:bob@sip.example.com", &format!("Route: <sip:198.51.100.66;lr;{maddr}>\r\n"));
    let mut rig = Rig::new(NODE);
    // In the Via of a request that is answered, of one that is forwarded, and of the response that comes back.
    let via = format!("{CLIENT};{maddr};ttl=1");
    let bytes = String::from_utf8(Request { via: &via, ..Request::default() }.bytes()).unwrap();
    let Fate::Answered(483, _, refusal) =
        rig.handle(at(CLIENT), at(EDGE), bytes.replace("Forwards: 70", "Forwards: 0").as_bytes())
    else {
        panic!("not refused")
    };
    assert_eq!(refusal.to, at(CLIENT));
    let sent = forward(&mut rig, bytes.as_bytes());
    assert!(rig.backend_at(sent.to).is_some());
    assert_eq!(passed(&mut rig, &sent.to.to_string(), EDGE, &answer(&sent.bytes, "200 OK")).to, at(CLIENT));
    // Not even for a backend, which may name its target otherwise.
    let uri = format!("sip:alice@{CLIENT};{maddr}");
    let backend = "198.51.100.11:5060";
    let of_backend = Request { uri: &uri, via: backend, ..Request::default() };
    assert_eq!(passed(&mut rig, backend, EDGE, &of_backend.bytes()).to, at(CLIENT));
}

#[test]
fn nothing_is_sent_to_where_received_and_rport_of_a_stranger_lead() {
    for (claim, port) in [
        (";received=198.51.100.66", 5060),
        (";received=198.51.100.66;rport=53", 41_000),
        (";rport=53;received=198.51.100.66", 41_000),
        (";rport=53", 41_000),
    ] {
        let source = "203.0.113.99:41000";
        let via = format!("198.51.100.66:5060{claim}");
        let bytes = String::from_utf8(Request { via: &via, ..Request::default() }.bytes()).unwrap();
        let home = SocketAddr::new(at(source).ip(), port);
        let mut rig = Rig::new(NODE);
        let Fate::Answered(483, _, refusal) =
            rig.handle(at(source), at(EDGE), bytes.replace("Forwards: 70", "Forwards: 0").as_bytes())
        else {
            panic!("not refused")
        };
        assert_eq!(refusal.to, home, "{claim}");
        let sent = passed(&mut rig, source, EDGE, bytes.as_bytes());
        let back = passed(&mut rig, &sent.to.to_string(), EDGE, &answer(&sent.bytes, "200 OK"));
        assert_eq!(back.to, home, "{claim}");
    }
}

//= rfc6026#section-7.3 stray
//# A response to no request of ours goes nowhere; a late one needs no transaction.
#[test]
fn nothing_is_relayed_to_where_a_response_of_a_stranger_leads() {
    let mut rig = Rig::new(NODE);
    let sent = forward(&mut rig, &Request::default().bytes());
    let ok = String::from_utf8(answer(&sent.bytes, "200 OK")).unwrap();
    let own = value(ok.as_bytes(), "Via");
    let below = format!("{CLIENT};branch=z9hG4bK-1");
    let forgeries = [
        ok.replace(&below, &format!("{VICTIM};branch=z9hG4bK-1")),
        ok.replace(&below, &format!("{below};received=198.51.100.66")),
        ok.replace(&below, &format!("{below};rport=53;received=198.51.100.66")),
        ok.replace(&own, "SIP/2.0/UDP 192.0.2.10:5060;branch=z9hG4bKEgABAAAAAAAAAAAA"),
        ok.replace(&own, "SIP/2.0/UDP 192.0.2.10:5060;branch=z9hG4bK"),
        ok.replace(&own, "SIP/2.0/UDP 192.0.2.10:5060"),
        ok.replace(&own, &own.replace("192.0.2.10:5060", VICTIM)),
        ok.replace(&format!("Via: {own}\r\n"), ""),
    ];
    for source in [STRANGER, "198.51.100.11:5060"] {
        for forgery in &forgeries {
            assert_ne!(*forgery, ok);
            let fate = rig.handle(at(source), at(EDGE), forgery.as_bytes());
            assert!(matches!(fate, Fate::Dropped(_)), "{fate:?} for\n{forgery}");
        }
    }
    assert_eq!(rig.engine().counters().responses_forwarded, 0);
}

/// Spoiled forms of a signed text: one character changed at each place, cut at each place, and nothing of ours at all.
fn spoiled(text: &str) -> Vec<String> {
    let changed = (0..text.len()).map(|i| {
        let other = if text.as_bytes()[i] == b'A' { "B" } else { "A" };
        format!("{}{other}{}", &text[..i], &text[i + 1..])
    });
    let cut = (0..text.len()).map(|i| text[..i].to_owned());
    changed.chain(cut).chain([format!("{text}A"), text.repeat(2), "=".repeat(text.len())]).collect()
}

/// What a response leads to whose own branch is replaced by each of `branches`: nothing, and no table learns of it.
fn check_branches_refused(rig: &mut Rig, sent: &Sent, branches: &[String]) {
    let busy = String::from_utf8(answer(&sent.bytes, "486 Busy Here")).unwrap();
    let good = value(&sent.bytes, "Via").split("branch=").nth(1).unwrap().to_owned();
    let before = rig.engine().counters();
    let binding = rig.engine().bindings().get(rig.engine().owner_of(b"call-1").0.0).unwrap();
    for branch in branches {
        let forged = busy.replace(&good, branch);
        assert_ne!(forged, busy);
        let fate = rig.handle(sent.to, sent.from, forged.as_bytes());
        assert_eq!(fate, Fate::Dropped(Reason::BadBranch), "{branch}");
    }
    let after = rig.engine().counters();
    assert_eq!(after.responses_forwarded, before.responses_forwarded);
    assert_eq!(after.dropped.iter().sum::<u64>(), before.dropped.iter().sum::<u64>() + branches.len() as u64);
    // A final answer would have made it linger, and end after 32 seconds.
    assert_eq!(rig.engine().bindings().get(rig.engine().owner_of(b"call-1").0.0), Some(binding));
}

#[test]
fn a_branch_that_we_did_not_sign_for_this_transaction_reaches_no_table() {
    let mut rig = Rig::new(NODE);
    let sent = forward(&mut rig, &Request::default().bytes());
    let branch = |sent: &Sent| value(&sent.bytes, "Via").split("branch=").nth(1).unwrap().to_owned();
    let mut refused = spoiled(&branch(&sent));
    // Signed, but for another call, another transaction, another sender, or by another secret.
    for other in [
        Request { call_id: "call-2", ..Request::default() },
        Request { cseq: 2, ..Request::default() },
        Request { via: "203.0.113.77:5063", ..Request::default() },
        Request { branch: "z9hG4bK-2", ..Request::default() },
    ] {
        refused.push(branch(&forward(&mut Rig::new(NODE), &other.bytes())));
    }
    refused.push(branch(&passed(&mut Rig::new(NODE), "203.0.113.78:5062", EDGE, &Request::default().bytes())));
    let secret = "6f1d2c3b4a5968778695a4b3c2d1e0ff";
    let mut stranger = Rig::new(&NODE.replace(secret, "00112233445566778899aabbccddeeff"));
    refused.push(branch(&forward(&mut stranger, &Request::default().bytes())));
    check_branches_refused(&mut rig, &sent, &refused);
    rig.pass(Duration::from_secs(100));
    forward(&mut rig, &Request::default().bytes());
    assert_eq!(rig.engine().counters().routed_by_binding, 1, "the call rings on");
}

#[test]
fn a_token_that_we_did_not_sign_for_this_call_leads_nowhere() {
    let token = |rig: &mut Rig, request: &Request<'_>| {
        let record = value(&forward(rig, &request.bytes()).bytes, "Record-Route");
        record.split("tk=").nth(1).unwrap().trim_end_matches('>').to_owned()
    };
    let good = token(&mut Rig::new(NODE), &Request::default());
    let mut refused = spoiled(&good);
    refused.push(token(&mut Rig::new(NODE), &Request { call_id: "call-2", ..Request::default() }));
    let secret = "6f1d2c3b4a5968778695a4b3c2d1e0ff";
    let mut stranger = Rig::new(&NODE.replace(secret, "00112233445566778899aabbccddeeff"));
    refused.push(token(&mut stranger, &Request::default()));
    let bye = |token: &str| {
        let extra = format!("Route: <sip:192.0.2.10:5060;lr;tk={token}>\r\n");
        let to = "<sip:bob@sip.example.com>;tag=b1";
        Request { method: "BYE", cseq: 2, to, extra: &extra, ..Request::default() }.bytes()
    };
    // Where the same request goes that has no token: by its Call-ID.
    let mut rig = Rig::new(NODE);
    let plain = String::from_utf8(bye("x")).unwrap().replace(";tk=x", "");
    let by_call_id = forward(&mut rig, plain.as_bytes()).to;
    for (count, text) in refused.iter().enumerate() {
        assert_eq!(forward(&mut rig, &bye(text)).to, by_call_id, "{text}");
        assert_eq!(rig.engine().counters().cookies_refused, count as u64 + 1, "{text}");
    }
    assert_eq!(rig.engine().counters().routed_by_cookie, 0);
    forward(&mut rig, &bye(&good));
    assert_eq!(rig.engine().counters().routed_by_cookie, 1, "and the good one does lead");
}

#[test]
fn what_is_replayed_from_another_address_leads_nowhere_else() {
    let mut rig = Rig::new(NODE);
    let sent = forward(&mut rig, &Request::default().bytes());
    let ok = answer(&sent.bytes, "200 OK");
    assert_eq!(passed(&mut rig, STRANGER, EDGE, &ok).to, at(CLIENT), "a response still reaches who asked");
    let extra = format!("Route: {}\r\nRoute: <sip:{VICTIM};lr>\r\n", value(&sent.bytes, "Record-Route"));
    let uri = format!("sip:them@{VICTIM}");
    let (alice, bob) = ("<sip:alice@example.net>;tag=a1", "<sip:bob@sip.example.com>;tag=b1");
    let request = Request { method: "BYE", cseq: 2, uri: &uri, via: STRANGER, extra: &extra, ..Request::default() };
    let as_caller = Request { from: alice, to: bob, ..request };
    assert_eq!(passed(&mut rig, STRANGER, EDGE, &as_caller.bytes()).to, sent.to, "its backend, not its text");
    let as_callee = Request { from: bob, to: alice, ..request };
    assert_eq!(passed(&mut rig, STRANGER, EDGE, &as_callee.bytes()).to, at(CLIENT), "its client, not its text");
}

/// Every message of the fixtures and of the regressions, and each method with each thing wrong with it.
fn spoofed_messages() -> BTreeMap<String, Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let mut messages = BTreeMap::new();
    for (folder, ending) in [("messages", "sip"), ("regress", "bin")] {
        for entry in fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == ending) {
                messages.insert(path.file_name().unwrap().display().to_string(), fs::read(&path).unwrap());
            }
        }
    }
    for method in METHODS {
        let good = String::from_utf8(Request { method, via: VICTIM, ..Request::default() }.bytes()).unwrap();
        for (from, to) in [
            ("", ""),
            ("User-Agent: scenario of the tests of this project\r\n", ""),
            ("Max-Forwards: 70", "Max-Forwards: 0"),
            ("Max-Forwards: 70", "Max-Forwards: x"),
            ("sip:bob@sip.example.com SIP", "urn:service:sos SIP"),
            ("sip:bob@sip.example.com SIP", "sip: SIP"),
            ("SIP/2.0\r\n", "SIP/3.0\r\n"),
            ("Call-ID: call-1\r\n", ""),
            ("From: ", "From: \""),
            ("CSeq: 1 ", "CSeq: 1 X"),
            ("Content-Length: 0", "Content-Length: 9"),
            ("Content-Length: 0", "Proxy-Require: x"),
            ("Content-Length: 0\r\n\r\n", ""),
            ("Content-Length: 0", "no header"),
            ("Via: ", "Via: SIP/2.0/UDP 198.51.100.66;branch=z9hG4bK-x, "),
            (";branch=z9hG4bK-1", ";received=198.51.100.67;rport"),
        ] {
            messages.insert(format!("{method}: {from:?} -> {to:?}"), good.replacen(from, to, 1).into_bytes());
        }
    }
    messages
}

//= rfc3261#section-8.2.7 stateless
//# An answer is made once a request, never again, never for ACK, always alike.
#[test]
fn a_spoofed_source_gets_one_datagram_at_most_and_no_more_bytes_than_were_sent_in_its_name() {
    let messages = spoofed_messages();
    assert!(messages.len() > 500, "{}", messages.len());
    let (mut answered, mut gain) = (0, Vec::new());
    for (listener, spoofed) in [(EDGE, "198.51.100.66:53"), ("192.0.2.30:5060", VICTIM), ("192.0.2.60:5060", VICTIM)] {
        let mut rig = Rig::new(NODE);
        for (name, bytes) in &messages {
            match rig.handle(at(spoofed), at(listener), bytes) {
                Fate::Forwarded(sent) => assert!(rig.backend_at(sent.to).is_some(), "{name} went to {}", sent.to),
                Fate::Answered(_, _, sent) => {
                    assert_eq!(sent.to.ip(), at(spoofed).ip(), "{name}");
                    answered += 1;
                    if sent.bytes.len() > bytes.len() {
                        gain.push(format!("{name}: {} bytes for {}", sent.bytes.len(), bytes.len()));
                    }
                }
                Fate::Dropped(_) => {}
            }
        }
        // Past every timer of RFC 3261 17: the rig asserts that nothing more leaves.
        rig.pass(Duration::from_secs(400));
    }
    assert!(gain.is_empty(), "{}", gain.join("\n"));
    assert!(answered > 300, "{answered} answers were seen");
}
