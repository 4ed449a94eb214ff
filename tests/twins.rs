//! Fast code against its slow, obvious twin, on generated, mutated and arbitrary bytes.
//!
//! The scanner must find what the naive reader finds (`src/fuzzing/scan.rs`); each decoder must give back
//! what a value was put together from; and nothing that a network can deliver makes the engine panic or break what
//! the rig checks after each datagram. `PROPTEST_CASES` sets the number of cases a test.

use std::net::SocketAddr;

use proptest::prelude::*;
use rig::{Fate, Rig};
use tandem::base::span::Span;
use tandem::fuzzing;
use tandem::sip::cseq::CSeq;
use tandem::sip::name_addr::NameAddr;
use tandem::sip::scan::Scan;
use tandem::sip::uri::{Scheme, Uri};
use tandem::sip::via::{Rport, Via};

mod rig;

const NODE: &str = include_str!("data/messages/node.toml");

fn line_end() -> impl Strategy<Value = &'static str> {
    prop_oneof![12 => Just("\r\n"), 2 => Just("\n"), 1 => Just("\r"), 1 => Just("\r\n "), 1 => Just("\n\t"), 1 => Just("")]
}

fn start_line() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => ("(INVITE|ACK|BYE|CANCEL|REGISTER|OPTIONS|X%.y!)", "(sip:a@b|sips:[::1]:5061;lr|tel:\\+1|sip:a@192.0.2.1?x=y)")
            .prop_map(|(method, uri)| format!("{method} {uri} SIP/2.0")),
        4 => (0u16..1000, "[ -~]{0,10}").prop_map(|(status, reason)| format!("SIP/2.0 {status} {reason}")),
        1 => Just("INVITE  sip:a SIP/2.0".to_owned()),
        1 => Just("INVITE sip:a SIP/3.0".to_owned()),
        1 => Just("INVITE sip:a sip/2.0".to_owned()),
        1 => Just("sip/2.0 200".to_owned()),
        1 => "[ -~]{0,30}",
    ]
}

fn header() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        10 => "(Via|v|V|VIA|From|f|To|t|Call-ID|i|CSeq|Max-Forwards|Route|Record-Route|Contact|m|Proxy-Require)",
        4 => "(Content-Length|l|CONTENT-LENGTH|L)",
        4 => "(Subject|X|Content-Lengthx|Viaa|o|Vi|Calls-ID|\u{b}Via|Via\u{c})",
        1 => "[ -~]{0,12}",
    ];
    let colon = prop_oneof![8 => Just(":"), 4 => Just(": "), 1 => Just(" \t:  "), 1 => Just("\r\n :"), 1 => Just("")];
    let value = prop_oneof![
        6 => "[ -~]{0,24}",
        3 => "[0-9]{0,4}",
        1 => "[0-9]{17,40}",
        1 => "(-1|\\+1|0x1|1 2|1,1|1\u{c})",
        2 => "[a-z]{1,5}(\r\n[ \t]{1,3}[a-z]{1,5}){1,3}",
        1 => "SIP/2.0/UDP [a-z]{1,9};branch=z9hG4bK[a-z]{3}",
    ];
    (name, colon, value).prop_map(|(name, colon, value)| format!("{name}{colon}{value}"))
}

/// A message that is nearly one: every rule is kept most of the time and broken some of the time.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let lead = prop_oneof![9 => Just(""), 1 => Just("\r\n"), 1 => Just("\r\n\n")];
    let headers = prop::collection::vec((header(), line_end()), 0..28);
    let end = prop_oneof![9 => Just("\r\n"), 1 => Just("\n"), 1 => Just(""), 1 => Just(" \r\n\r\n")];
    let body = prop::collection::vec(any::<u8>(), 0..20);
    (lead, start_line(), line_end(), headers, end, body).prop_map(|(lead, start, first_end, headers, end, body)| {
        let mut text = format!("{lead}{start}{first_end}");
        for (header, line_end) in headers {
            text.push_str(&header);
            text.push_str(line_end);
        }
        text.push_str(end);
        let mut bytes = text.into_bytes();
        bytes.extend(body);
        bytes
    })
}

/// One change to a message.
#[derive(Clone, Debug)]
enum Mutation {
    Set(prop::sample::Index, u8),
    Insert(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize),
    Cut(prop::sample::Index),
}

fn mutations() -> impl Strategy<Value = Vec<Mutation>> {
    use prop::sample::Index;
    let sharp = prop::sample::select(b"\r\n \t:;,<>\"\\@?=[]/%\0\x0c\x80\xff0A".to_vec());
    let token: Vec<Vec<u8>> = [
        "\r\n",
        "\r\n ",
        "::",
        ";;",
        ",,",
        "<>",
        "\"",
        ";received=198.51.100.66",
        ";rport=0",
        ";tk=AA",
        ";lr",
        ";tag=x",
        "v:",
        "l: 7\r\n",
        "Route: <sip:192.0.2.10;lr>\r\n",
    ]
    .iter()
    .map(|t| t.as_bytes().to_vec())
    .collect();
    let mutation = prop_oneof![
        (any::<Index>(), sharp).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        (any::<Index>(), prop::sample::select(token)).prop_map(|(at, text)| Mutation::Insert(at, text)),
        (any::<Index>(), 1usize..40).prop_map(|(at, len)| Mutation::Remove(at, len)),
        (any::<Index>(), 1usize..80).prop_map(|(at, len)| Mutation::Repeat(at, len)),
        any::<Index>().prop_map(Mutation::Cut),
    ];
    prop::collection::vec(mutation, 1..6)
}

fn mutate(mut bytes: Vec<u8>, mutations: &[Mutation]) -> Vec<u8> {
    for mutation in mutations {
        if bytes.is_empty() {
            break;
        }
        let len = bytes.len();
        let piece = |at: usize, count: usize| at..(at + count).min(len);
        match mutation {
            Mutation::Set(at, byte) => bytes[at.index(len)] = *byte,
            Mutation::Insert(at, text) => {
                let at = at.index(len);
                bytes.splice(at..at, text.iter().copied());
            }
            Mutation::Remove(at, count) => {
                bytes.drain(piece(at.index(len), *count));
            }
            Mutation::Repeat(at, count) => {
                let piece = piece(at.index(len), *count);
                let text = bytes[piece.clone()].to_vec();
                bytes.splice(piece.start..piece.start, text);
            }
            Mutation::Cut(at) => bytes.truncate(at.index(len)),
        }
    }
    bytes
}

/// The project's own messages, as the start of mutations.
fn own_message() -> impl Strategy<Value = Vec<u8>> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/messages");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "sip"));
    files.sort();
    prop::sample::select(files.iter().map(|path| std::fs::read(path).unwrap()).collect::<Vec<_>>())
}

fn source() -> impl Strategy<Value = SocketAddr> {
    let known = ["203.0.113.77:5062", "198.51.100.11:5060", "192.0.2.10:5060", "203.0.113.77:1"];
    prop::sample::select(known.map(|text| text.parse().unwrap()).to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_scan_finds_what_the_slow_reader_finds(bytes in message()) {
        fuzzing::scan(&bytes);
    }

    #[test]
    fn the_scan_finds_it_in_mutated_messages_too(bytes in prop_oneof![message(), own_message()], changes in mutations()) {
        fuzzing::scan(&mutate(bytes, &changes));
    }

    #[test]
    fn the_scan_finds_it_in_arbitrary_bytes_too(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        fuzzing::scan(&bytes);
    }

    #[test]
    fn the_scan_finds_it_in_punctuation(text in "[aVv:\r\n \tSIP/2.0<>;,\"]{0,120}") {
        fuzzing::scan(text.as_bytes());
    }

    #[test]
    fn no_bytes_break_a_decoder(bytes in prop::collection::vec(any::<u8>(), 0..120), text in "[a:;,=<>\"\\\\@?\\[\\]/ \t\r\n.0-9SIPUD]{0,60}") {
        for bytes in [&bytes[..], text.as_bytes()] {
            let span = Span::new(0, bytes.len());
            if let Ok(via) = Via::decode(bytes, span) {
                prop_assert!(via.value.end as usize <= bytes.len() && via.value.start <= via.value.end);
                prop_assert!(!via.host.is_empty() && via.port != Some(0));
                prop_assert!(via.next.is_none_or(|next| next > via.value.end && next as usize <= bytes.len()));
            }
            if let Ok(value) = NameAddr::decode(bytes, span) {
                prop_assert!(!value.uri.is_empty() && value.uri.end as usize <= bytes.len());
                prop_assert!(value.next.is_none_or(|next| next as usize <= bytes.len()));
                let _ = (value.tag, value.is_tag_doubtful);
            }
            if let Ok(uri) = Uri::decode(bytes, span) {
                prop_assert_eq!(uri.host.is_empty(), !matches!(uri.scheme, Scheme::Sip | Scheme::Sips));
                let _ = (uri.ip(bytes), uri.param(bytes, b"a"));
            }
            let _ = CSeq::decode(bytes, span);
        }
    }

    #[test]
    fn a_via_is_read_as_it_was_put_together(
        host in "([a-z][a-z0-9.-]{0,20}|192\\.0\\.2\\.[1-9]|\\[2001:db8::[1-9]\\])",
        port in prop::option::of(1u16..),
        branch in prop::option::of("z9hG4bK[A-Za-z0-9=._-]{1,20}"),
        received in prop::option::of("192\\.0\\.2\\.[1-9]"),
        rport in prop::option::of(prop::option::of(1u16..)),
        other in "(;[a-z]{1,3}x(=[a-z0-9]{1,5}|=\"[a-z;,\\\\\"]{0,0}[a-z;,]{0,6}\")?){0,3}",
        white in "( |\t|\r\n ){1,2}",
        rest in prop::option::of("SIP/2\\.0/TCP [a-z]{1,9}"),
    ) {
        let mut text = format!("SIP/2.0/UDP{white}{host}");
        port.iter().for_each(|port| text.push_str(&format!(":{port}")));
        text.push_str(&other);
        branch.iter().for_each(|branch| text.push_str(&format!("{white};Branch = {branch}")));
        received.iter().for_each(|ip| text.push_str(&format!(";received={ip}")));
        match &rport {
            Some(Some(port)) => text.push_str(&format!(";rport={port}")),
            Some(None) => text.push_str(";rport"),
            None => {}
        }
        let value_end = text.len();
        rest.iter().for_each(|rest| text.push_str(&format!(" ,{white}{rest}")));
        let bytes = text.as_bytes();
        let via = Via::decode(bytes, Span::new(0, bytes.len())).unwrap();
        prop_assert_eq!(via.host.of(bytes), host.as_bytes());
        prop_assert_eq!(via.port, port);
        prop_assert_eq!(via.branch.map(|b| b.of(bytes)), branch.as_ref().map(|b| b.as_bytes()));
        prop_assert_eq!(via.received_ip(bytes), received.map(|ip| ip.parse().unwrap()));
        prop_assert_eq!(via.value.end as usize, value_end);
        let seen = match via.rport { Rport::Absent => None, Rport::Asked(_) => Some(None), Rport::Filled(p, _) => Some(Some(p)) };
        prop_assert_eq!(seen, rport);
        prop_assert_eq!(via.next.map(|next| &bytes[next as usize..]), rest.as_ref().map(|r| r.as_bytes()));
    }

    #[test]
    fn a_name_addr_and_its_uri_are_read_as_they_were_put_together(
        display in "(|\"[a-z <>;,]{0,8}(\\\\\"|\\\\\\\\)?\" ?|[a-z]{1,5}( [a-z]{1,5})? ?)",
        scheme in "(sip|SIP|sips)",
        user in prop::option::of("[a-z0-9;=?&.%+-]{1,12}(:[a-z]{1,5})?"),
        host in "([a-z][a-z0-9.-]{0,20}|192\\.0\\.2\\.[1-9]|\\[2001:db8::[1-9]\\])",
        port in prop::option::of(1u16..),
        params in "(;[a-z]{1,3}(=[a-z0-9]{1,5})?){0,3}",
        headers in "(|\\?[a-z]{1,4}=[a-z]{1,4})",
        tag in prop::option::of("[A-Za-z0-9._=-]{1,12}"),
        rest in prop::option::of("<sip:[a-z]{1,9}>"),
    ) {
        let at = user.as_ref().map_or(String::new(), |user| format!("{user}@"));
        let port_text = port.map_or(String::new(), |port| format!(":{port}"));
        let uri_text = format!("{scheme}:{at}{host}{port_text}{params}{headers}");
        let mut text = format!("{display}<{uri_text}>");
        tag.iter().for_each(|tag| text.push_str(&format!(" ; x=\"a;tag=b\";Tag= {tag}")));
        rest.iter().for_each(|rest| text.push_str(&format!(", {rest}")));
        let bytes = text.as_bytes();
        let value = NameAddr::decode(bytes, Span::new(0, bytes.len())).unwrap();
        prop_assert_eq!(value.uri.of(bytes), uri_text.as_bytes());
        prop_assert_eq!(value.tag.map(|t| t.of(bytes)), tag.as_ref().map(|t| t.as_bytes()));
        prop_assert!(!value.is_tag_doubtful);
        prop_assert_eq!(value.next.map(|next| &bytes[next as usize..]), rest.as_ref().map(|r| r.as_bytes()));
        let uri = Uri::decode(bytes, value.uri).unwrap();
        prop_assert_eq!(uri.user.of(bytes), user.as_deref().unwrap_or_default().as_bytes());
        prop_assert_eq!(uri.host.of(bytes), host.as_bytes());
        prop_assert_eq!(uri.port, port);
        prop_assert_eq!(uri.params.of(bytes), params.as_bytes());
        prop_assert_eq!(uri.has_headers, !headers.is_empty());
    }

    #[test]
    fn a_cseq_is_read_as_it_was_put_together(number in 0u32..1 << 31, zeros in "0{0,5}", white in "( |\t|\r\n ){1,3}", method in "[A-Z%!.]{1,9}") {
        let text = format!("{zeros}{number}{white}{method}");
        let cseq = CSeq::decode(text.as_bytes(), Span::new(0, text.len())).unwrap();
        prop_assert_eq!((cseq.number, cseq.method.of(text.as_bytes())), (number, method.as_bytes()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// The rig checks each outcome: counted once, never to ourselves, no answer larger than its request.
    #[test]
    fn nothing_a_network_delivers_breaks_the_engine(
        datagrams in prop::collection::vec((prop_oneof![
            3 => (own_message(), mutations()).prop_map(|(bytes, changes)| mutate(bytes, &changes)),
            1 => message(),
            1 => prop::collection::vec(any::<u8>(), 0..300),
        ], source()), 1..20),
    ) {
        let mut rig = Rig::new(NODE);
        for (bytes, source) in &datagrams {
            if let Fate::Forwarded(sent) = rig.handle(*source, "192.0.2.10:5060".parse().unwrap(), bytes) {
                let mut scan = Scan::with_capacity(1000);
                prop_assert!(scan.scan(&sent.bytes).is_ok(), "what was forwarded cannot be read");
                // Whatever came back from there would not break it either.
                rig.handle(sent.to, sent.from, &sent.bytes);
            }
        }
    }
}
