//! Rules that take more than one message: affinity while the backend set changes, routes recorded and followed, secrets
//! rotated, limits reached. Each drives the real engine through the rig.

use std::time::Duration;

use rig::message::{CLIENT, EDGE, Request, answer, at, forward, forward_from, own_branch, value};
use rig::{Fate, Rig, Sent, UP};
use tandem::config::Admin;
use tandem::metrics::Reason;
use tandem::route::snapshot::BackendStatus;

mod rig;

const NODE: &str = include_str!("data/messages/node.toml");

/// Everything but `name` takes new calls; `name` does what `status` says.
fn change(rig: &mut Rig, name: &str, status: BackendStatus) {
    let name = name.to_owned();
    rig.set_backends(
        |backend| if backend.name == name { status } else { BackendStatus { admin: backend.admin, ..UP } },
    );
}

const GONE: [BackendStatus; 2] = [
    BackendStatus { admin: Admin::Drained, is_healthy: true },
    BackendStatus { admin: Admin::Enabled, is_healthy: false },
];

//= rfc3261#section-16.11 one-target
//# Retransmission, CANCEL and the ACK to a non-2xx go to the one target of their INVITE.
//= rfc3261#section-16.11 retransmissions
//# Every retransmission is forwarded; none is made.
#[test]
fn a_running_transaction_keeps_target_and_branch_while_the_set_changes() {
    for status in GONE {
        for first in 0..12 {
            let call_id = format!("call-{first}");
            let mut rig = Rig::new(NODE);
            let invite = Request { call_id: &call_id, ..Request::default() };
            let sent = forward(&mut rig, &invite.bytes());
            let backend = rig.backend_at(sent.to).unwrap().to_owned();
            change(&mut rig, &backend, status);
            rig.pass(Duration::from_secs(150));
            let again = forward(&mut rig, &invite.bytes());
            assert_eq!(again, sent, "a retransmission is the same datagram again");
            let cancel =
                forward(&mut rig, &Request { method: "CANCEL", call_id: &call_id, ..Request::default() }.bytes());
            let busy = answer(&sent.bytes, "487 Request Terminated");
            assert!(matches!(rig.handle(sent.to, sent.from, &busy), Fate::Forwarded(_)));
            rig.pass(Duration::from_secs(31));
            let ack = Request {
                method: "ACK",
                call_id: &call_id,
                to: "<sip:bob@sip.example.com>;tag=b1",
                ..Request::default()
            };
            let ack = forward(&mut rig, &ack.bytes());
            for (what, other) in [("CANCEL", cancel), ("ACK", ack)] {
                assert_eq!(other.to, sent.to, "{what}");
                assert_eq!(own_branch(&other), own_branch(&sent), "{what}");
            }
        }
    }
}

#[test]
fn a_new_transaction_leaves_a_backend_that_takes_nothing_new() {
    for status in GONE {
        let mut rig = Rig::new(NODE);
        let register =
            |cseq: u32, branch: &'static str| Request { method: "REGISTER", cseq, branch, ..Request::default() };
        let sent = forward(&mut rig, &register(1, "z9hG4bK-1").bytes());
        let challenge = answer(&sent.bytes, "401 Unauthorized");
        assert!(matches!(rig.handle(sent.to, sent.from, &challenge), Fate::Forwarded(_)));
        let authorized = forward(&mut rig, &register(2, "z9hG4bK-2").bytes());
        assert_eq!(authorized.to, sent.to, "the answer to a challenge finds who asked");
        let backend = rig.backend_at(sent.to).unwrap().to_owned();
        change(&mut rig, &backend, status);
        assert_ne!(forward(&mut rig, &register(3, "z9hG4bK-3").bytes()).to, sent.to);
    }
}

#[test]
fn in_dialog_requests_stay_even_on_a_backend_that_fails_its_probes() {
    let mut rig = Rig::new(NODE);
    let sent = forward(&mut rig, &Request::default().bytes());
    let ok = answer(&sent.bytes, "200 OK");
    assert!(matches!(rig.handle(sent.to, sent.from, &ok), Fate::Forwarded(_)));
    let backend = rig.backend_at(sent.to).unwrap().to_owned();
    change(&mut rig, &backend, GONE[1]);
    let bye = Request { method: "BYE", cseq: 2, branch: "z9hG4bK-9", to: "<sip:bob@x>;tag=b1", ..Request::default() };
    assert_eq!(forward(&mut rig, &bye.bytes()).to, sent.to);
    change(&mut rig, &backend, BackendStatus { admin: Admin::Disabled, is_healthy: true });
    assert_ne!(forward(&mut rig, &bye.bytes()).to, sent.to, "nothing is sent to a disabled backend");
}

#[test]
fn one_address_of_record_registers_at_one_backend_whatever_the_call_id() {
    let mut seen = std::collections::BTreeSet::new();
    for user in 0..40 {
        let mut rig = Rig::new(NODE);
        let mut to = |call_id: &str, to: &str| {
            forward(&mut rig, &Request { method: "REGISTER", call_id, to, ..Request::default() }.bytes()).to
        };
        let first = to("phone", &format!("<sip:user{user}@example.net>"));
        assert_eq!(to("soft-client", &format!("\"User\" <sip:user{user}@EXAMPLE.net:5060;transport=udp>")), first);
        assert_eq!(to("tablet", &format!("sip:user{user}:secret@example.net")), first);
        seen.insert(first);
    }
    assert_eq!(seen.len(), 3, "and users are spread");
}

/// The dialog that `sent` and its 200 make: the BYE of each side.
fn byes(sent: &Sent) -> (Vec<u8>, Vec<u8>) {
    let route = value(&sent.bytes, "Record-Route");
    let extra = format!("Route: {route}\r\n");
    let from_client = Request {
        method: "BYE",
        uri: "sip:bob@198.51.100.99:5060",
        branch: "z9hG4bK-7",
        cseq: 2,
        to: "<sip:bob@sip.example.com>;tag=b1",
        extra: &extra,
        ..Request::default()
    };
    let from_backend = format!(
        "BYE sip:alice@{CLIENT} SIP/2.0\r\nVia: SIP/2.0/UDP {};branch=z9hG4bK-8\r\nMax-Forwards: 70\r\n\
         From: <sip:bob@sip.example.com>;tag=b1\r\nTo: <sip:alice@example.net>;tag=a1\r\nCall-ID: call-1\r\n\
         CSeq: 1 BYE\r\n{extra}\r\n",
        sent.to
    );
    (from_client.bytes(), from_backend.into_bytes())
}

#[test]
fn a_recorded_route_needs_no_table_and_survives_a_restart() {
    let mut rig = Rig::new(NODE);
    let sent = forward(&mut rig, &Request::default().bytes());
    let backend = rig.backend_at(sent.to).unwrap().to_owned();
    let (from_client, from_backend) = byes(&sent);
    let mut restarted = Rig::new(NODE);
    change(&mut restarted, &backend, GONE[0]);
    assert_eq!(forward(&mut restarted, &from_client).to, sent.to);
    let source = sent.to.to_string();
    assert_eq!(forward_from(&mut restarted, &source, &from_backend).to, at(CLIENT));
    assert_eq!(restarted.engine().counters().routed_by_cookie, 2);
    assert!(restarted.engine().bindings().is_empty());
}

#[test]
fn secrets_rotate_without_losing_a_dialog_or_a_transaction() {
    let mut rig = Rig::new(NODE);
    let sent = forward(&mut rig, &Request::default().bytes());
    let (from_client, _) = byes(&sent);
    let ok = answer(&sent.bytes, "200 OK");
    let old = "secret = \"6f1d2c3b4a5968778695a4b3c2d1e0ff\"";
    let new = "secret = \"aa1d2c3b4a5968778695a4b3c2d1e0bb\"";
    rig.reload(&NODE.replace(old, &format!("{new}\nsecret_previous = \"6f1d2c3b4a5968778695a4b3c2d1e0ff\"")));
    assert!(matches!(rig.handle(sent.to, sent.from, &ok), Fate::Forwarded(_)), "a response to the old branch");
    assert_eq!(forward(&mut rig, &from_client).to, sent.to, "a token of the old secret");
    rig.reload(&NODE.replace(old, new));
    assert_eq!(rig.handle(sent.to, sent.from, &ok), Fate::Dropped(Reason::BadBranch));
    forward(&mut rig, &from_client);
    assert_eq!(rig.engine().counters().cookies_refused, 1, "and without the old secret it is no token any more");
}

/// RFC 3261 16.11: what belongs to a transaction that was forwarded before the rotation has the branch of that time.
#[test]
fn a_transaction_that_is_pending_while_secrets_rotate_keeps_its_branch() {
    let mut rig = Rig::new(NODE);
    let request = |method, call_id| Request { method, call_id, ..Request::default() }.bytes();
    let invite = forward(&mut rig, &request("INVITE", "ringing"));
    let refused = match rig.handle(
        at(CLIENT),
        at(EDGE),
        &Request { extra: "Proxy-Require: x\r\n", ..Request::default() }.bytes(),
    ) {
        Fate::Answered(420, _, sent) => value(&sent.bytes, "To"),
        other => panic!("{other:?}"),
    };
    let old = "secret = \"6f1d2c3b4a5968778695a4b3c2d1e0ff\"";
    let new = "secret = \"aa1d2c3b4a5968778695a4b3c2d1e0bb\"";
    rig.reload(&NODE.replace(old, &format!("{new}\nsecret_previous = \"6f1d2c3b4a5968778695a4b3c2d1e0ff\"")));
    for method in ["INVITE", "CANCEL", "ACK"] {
        let sent = forward(&mut rig, &request(method, "ringing"));
        assert_eq!((sent.to, own_branch(&sent)), (invite.to, own_branch(&invite)), "{method}");
    }
    let ack = Request { method: "ACK", to: &refused, ..Request::default() }.bytes();
    assert_eq!(rig.handle(at(CLIENT), at(EDGE), &ack), Fate::Dropped(Reason::AckForAnswer));
    let next = forward(&mut rig, &request("INVITE", "new"));
    assert_ne!(own_branch(&next)[7..9], own_branch(&invite)[7..9], "what is new is signed with the new secret");
}

#[test]
fn a_token_replayed_for_another_call_is_refused() {
    let mut rig = Rig::new(NODE);
    let sent = forward(&mut rig, &Request::default().bytes());
    let replayed = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace("call-1", "call-2").into_bytes();
    let (from_client, from_backend) = byes(&sent);
    forward(&mut rig, &replayed(&from_client));
    assert_eq!(rig.engine().counters().cookies_refused, 1);
    // Nobody is reached by it from outside: a stranger's request goes to the pool, not to the client.
    let fate = rig.handle(at("198.51.100.66:5060"), at(EDGE), &replayed(&from_backend));
    let Fate::Forwarded(stray) = fate else { panic!("{fate:?}") };
    assert!(rig.backend_at(stray.to).is_some());
    assert_eq!(rig.engine().counters().cookies_refused, 2);
}

#[test]
fn a_signed_branch_carries_no_other_response() {
    let mut rig = Rig::new(NODE);
    let sent = forward(&mut rig, &Request::default().bytes());
    let ok = String::from_utf8(answer(&sent.bytes, "200 OK")).unwrap();
    for (what, with) in [
        ("call-1", "call-2"),
        ("CSeq: 1 INVITE", "CSeq: 2 INVITE"),
        ("203.0.113.77:5062", "198.51.100.66:5062"),
        ("203.0.113.77:5062", "203.0.113.77:53"),
        ("branch=z9hG4bK-1", "branch=z9hG4bK-2"),
        ("branch=z9hG4bK-1", "branch=z9hG4bK-1;received=198.51.100.66"),
        ("branch=z9hG4bK-1", "branch=z9hG4bK-1;received=198.51.100.66;rport=53"),
    ] {
        let forged = ok.replace(what, with);
        assert_ne!(forged, ok);
        assert_eq!(rig.handle(sent.to, sent.from, forged.as_bytes()), Fate::Dropped(Reason::BadBranch), "{with}");
    }
    assert!(matches!(rig.handle(sent.to, sent.from, ok.as_bytes()), Fate::Forwarded(_)));
}

#[test]
fn a_nat_that_moves_a_client_between_ports_does_not_part_cancel_and_invite() {
    let mut rig = Rig::new(NODE);
    let with_rport = |method| {
        let bytes = Request { method, ..Request::default() }.bytes();
        String::from_utf8(bytes).unwrap().replace("branch=", "rport;branch=").into_bytes()
    };
    let invite = forward_from(&mut rig, "203.0.113.77:40000", &with_rport("INVITE"));
    let cancel = forward_from(&mut rig, "203.0.113.77:41111", &with_rport("CANCEL"));
    assert_eq!(own_branch(&cancel), own_branch(&invite));
    let canceled = answer(&cancel.bytes, "200 OK");
    let Fate::Forwarded(back) = rig.handle(cancel.to, cancel.from, &canceled) else { panic!("not forwarded") };
    assert_eq!(back.to, at("203.0.113.77:41111"));
}

#[test]
fn bindings_end_with_their_transactions_and_dialogs() {
    let mut rig = Rig::new(NODE);
    let sent = forward(&mut rig, &Request::default().bytes());
    assert_eq!(rig.engine().bindings().len(), 1);
    let busy = answer(&sent.bytes, "486 Busy Here");
    rig.handle(sent.to, sent.from, &busy);
    rig.pass(Duration::from_secs(600));
    assert!(rig.engine().bindings().is_empty(), "a refused call is forgotten");
}

#[test]
fn an_oversized_message_gets_513_and_many_headers_get_400() {
    let mut rig = Rig::new(&format!("[limits]\nmessage_bytes_max = 2000\nheaders_max = 32\n{NODE}"));
    let long = format!("X-Long: {}\r\n", "x".repeat(1900));
    let fate = rig.handle(at(CLIENT), at(EDGE), &Request { extra: &long, ..Request::default() }.bytes());
    assert!(matches!(fate, Fate::Answered(513, Reason::TooLarge, _)), "{fate:?}");
    let many = "X: y\r\n".repeat(40);
    let fate = rig.handle(at(CLIENT), at(EDGE), &Request { extra: &many, ..Request::default() }.bytes());
    assert!(matches!(fate, Fate::Answered(400, Reason::TooManyHeaders, _)), "{fate:?}");
    let ack = Request { method: "ACK", extra: &long, to: "<sip:b@c>;tag=b1", ..Request::default() };
    assert_eq!(rig.handle(at(CLIENT), at(EDGE), &ack.bytes()), Fate::Dropped(Reason::TooLarge));
}

#[test]
fn a_request_that_would_outgrow_a_datagram_gets_513() {
    let mut rig = Rig::new(NODE);
    let without = Request { extra: "X: \r\n", ..Request::default() }.bytes().len();
    let fill = format!("X: {}\r\n", "x".repeat(65_507 - without));
    let fate = rig.handle(at(CLIENT), at(EDGE), &Request { extra: &fill, ..Request::default() }.bytes());
    assert!(matches!(fate, Fate::Answered(513, Reason::EditFailed, _)), "{fate:?}");
    let fill = format!("X: {}\r\n", "x".repeat(65_507 - without - 200));
    forward(&mut rig, &Request { extra: &fill, ..Request::default() }.bytes());
}

#[test]
fn datagrams_that_are_no_messages_are_dropped_without_an_answer() {
    let mut rig = Rig::new(NODE);
    let whole = Request::default().bytes();
    for runt in
        [&b""[..], b"\r\n", b"\r\n\r\n", b"\0", b"\0\0\0\0", b"jaK", b" ", b"SIP/2.0", b"SIP/2.0 200 OK\r\n\r\n"]
    {
        assert!(matches!(rig.handle(at(CLIENT), at(EDGE), runt), Fate::Dropped(_)), "{runt:?}");
    }
    for cut in 0..whole.len() - 2 {
        let fate = rig.handle(at(CLIENT), at(EDGE), &whole[..cut]);
        assert!(!matches!(fate, Fate::Forwarded(_)), "cut at {cut}");
    }
}

#[test]
fn every_refusal_to_a_spoofed_source_costs_it_at_most_one_smaller_datagram() {
    // The rig compares sizes and destinations after each datagram.
    let mut rig = Rig::new(NODE);
    for method in ["INVITE", "OPTIONS", "REGISTER", "BYE", "CANCEL", "ACK", "FOO"] {
        for (from, to) in [
            ("Max-Forwards: 70", "Max-Forwards: 0"),
            ("sip:bob@sip.example.com SIP", "im:bob SIP"),
            ("Call-ID: call-1\r\n", ""),
            ("Content-Length: 0", "Content-Length: 9"),
            ("Content-Length: 0", "Proxy-Require: x"),
            ("SIP/2.0\r\n", "SIP/3.0\r\n"),
        ] {
            let text =
                String::from_utf8(Request { method, ..Request::default() }.bytes()).unwrap().replacen(from, to, 1);
            let fate = rig.handle(at("198.51.100.66:53"), at(EDGE), text.as_bytes());
            match method {
                "ACK" => assert!(!matches!(fate, Fate::Answered(..)), "{fate:?}"),
                "CANCEL" if to.starts_with("Proxy") => {}
                _ => assert!(matches!(fate, Fate::Answered(..)), "{method} {to}: {fate:?}"),
            }
        }
    }
}
