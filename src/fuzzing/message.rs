//! A small grammar of messages, driven by choices.
//!
//! Enough of each header to reach every branch of a decision, and few enough values that messages meet: the same Call-ID,
//! branch and tags come again and again. What the grammar does not have, mutations bring in.

use std::net::SocketAddr;

use super::bench::address;
use super::feed::Feed;

const METHODS: [&str; 9] = ["INVITE", "ACK", "BYE", "CANCEL", "REGISTER", "SUBSCRIBE", "REFER", "OPTIONS", "X.unknown"];

/// Clients, one of them behind a NAT and one on IPv6; backends; ourselves.
const SOURCES: [&str; 8] = [
    "203.0.113.77:5062",
    "203.0.113.78:40000",
    "198.51.100.11:5060",
    "198.51.100.12:5060",
    "[2001:db8:f::77]:5062",
    "[2001:db8:1::21]:5060",
    "192.0.2.10:5060",
    "198.51.100.99:5060",
];

const LISTENERS4: [&str; 5] =
    ["192.0.2.10:5060", "192.0.2.10:5070", "192.0.2.20:5060", "192.0.2.40:5060", "192.0.2.30:5060"];

const LISTENERS6: [&str; 2] = ["[2001:db8::10]:5060", "[2001:db8::20]:5060"];

const URIS: [&str; 14] = [
    "sip:bob@sip.example.com",
    "sip:192.0.2.10",
    "sip:alice@203.0.113.77:5062",
    "sip:alice@203.0.113.99:5070",
    "sip:bob@198.51.100.12:5060",
    "sip:alice@[2001:db8:f::77]:5062;lr",
    "sip:alice@203.0.113.99;maddr=198.51.100.66",
    "sip:bob@elsewhere.example.net",
    "sip:255.255.255.255",
    "sip:[::ffff:203.0.113.99]:5070",
    "sips:bob@192.0.2.10:5070;transport=udp",
    "tel:+1-201-555-0123",
    "im:bob",
    "sip:bob@192.0.2.20:5060;lr",
];

const CALLS: [&str; 6] = ["call-1", "call-2", "call-3", "call-4", "a@b", "\u{fc}"];

const BRANCHES: [&str; 4] = ["z9hG4bK-1", "z9hG4bK-2", "z9hG4bK-3", "2543"];

const TAGS: [&str; 3] = ["a1", "b1", "c1"];

const STATUSES: [&str; 10] = [
    "100 Trying",
    "180 Ringing",
    "183 Progress",
    "200 OK",
    "202 Accepted",
    "302 Moved",
    "401 Unauthorized",
    "487 Request Terminated",
    "503 Service Unavailable",
    "603 Decline",
];

/// Put into or in the place of bytes of a message.
const SHARP: [&str; 24] = [
    "\r\n",
    "\r\n ",
    "\r",
    ":",
    ";",
    ",",
    "<",
    ">",
    "\"",
    "\\",
    "@",
    "=",
    " ",
    "\0",
    "0",
    "9999999999",
    ";received=198.51.100.66",
    ";rport=53",
    ";tk=AA",
    ";lr",
    ";tag=x",
    "v: SIP/2.0/UDP 198.51.100.66\r\n",
    "l: 7\r\n",
    "Route: <sip:192.0.2.10;lr>\r\n",
];

/// A datagram to be delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Datagram {
    pub(super) source: SocketAddr,
    pub(super) at: SocketAddr,
    pub(super) bytes: Vec<u8>,
}

impl Datagram {
    /// Arbitrary bytes from one of the sources.
    pub(super) fn arbitrary(feed: &mut Feed<'_>) -> Datagram {
        let source = address(feed.pick(&SOURCES));
        let at = listener(feed, source);
        let len = usize::from(feed.word());
        Datagram { source, at, bytes: feed.take(len).to_vec() }
    }

    /// A few bytes changed, most of the time none.
    pub(super) fn mutate(&mut self, feed: &mut Feed<'_>) {
        for _ in 0..feed.below(8).saturating_sub(4) {
            let len = self.bytes.len().max(1);
            let at = (usize::from(feed.word()) % len).min(self.bytes.len());
            let end = (at + feed.below(16)).min(self.bytes.len());
            match feed.below(4) {
                0 => drop(self.bytes.splice(at..at, feed.pick(&SHARP).bytes())),
                1 => drop(self.bytes.splice(at..end, feed.pick(&SHARP).bytes())),
                2 => drop(self.bytes.drain(at..end)),
                _ => drop(self.bytes.splice(at..(at + 1).min(self.bytes.len()), [feed.byte()])),
            }
        }
    }
}

/// A request in the making.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: &'static str,
    pub(super) source: SocketAddr,
    pub(super) at: SocketAddr,
    pub(super) to_tag: Option<&'static str>,
    uri: String,
    call_id: &'static str,
    cseq: u8,
    via: String,
    from_tag: &'static str,
    max_forwards: &'static str,
    /// Whole lines.
    routes: String,
}

impl Request {
    /// Any of the grammar. `recorded` is the value of a Record-Route of ours that left before, if there is one.
    pub(super) fn any(feed: &mut Feed<'_>, recorded: Option<&str>) -> Request {
        let source = address(feed.pick(&SOURCES));
        let recorded = recorded.unwrap_or("<sip:192.0.2.10;lr>");
        let routes = match feed.below(12) {
            0 => format!("Route: {recorded}\r\n"),
            1 => format!("Route: {recorded}, <{}>\r\n", feed.pick(&URIS)),
            2 => format!("Route: <{};lr>\r\n", feed.pick(&URIS)),
            3 => "Route: <sip:192.0.2.10;lr>, <sip:sip.example.com;lr>\r\n".to_owned(),
            4 => format!("Route: {recorded}\r\nRoute: {recorded}\r\nRecord-Route: <sip:203.0.113.9;lr>\r\n"),
            5 => "Route: <sip:192.0.2.10:5060;lr;tk=GQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA>\r\n".to_owned(),
            _ => String::new(),
        };
        let uri = match feed.below(16) {
            0 => recorded.trim_matches(['<', '>']).split('>').next().unwrap_or_default().to_owned(),
            _ => feed.pick(&URIS).to_owned(),
        };
        Request {
            method: feed.pick(&METHODS),
            source,
            at: listener(feed, source),
            uri,
            call_id: feed.pick(&CALLS),
            cseq: feed.byte() % 4,
            via: via(feed, source),
            from_tag: feed.pick(&TAGS),
            to_tag: if feed.below(4) == 0 { Some(feed.pick(&TAGS)) } else { None },
            max_forwards: feed.pick(&["70", "70", "70", "1", "0", "255", "007"]),
            routes,
        }
    }

    /// Is it one that the binding table keeps at its target: nothing but its Call-ID tells where it goes?
    pub(super) fn is_bound(&self) -> bool {
        let neither = !matches!(self.method, "ACK" | "CANCEL");
        neither && self.to_tag.is_none() && self.routes.is_empty() && !self.uri.contains("tk=")
    }

    /// CANCEL of it, or ACK to its failure: the same transaction (RFC 3261 9.1, 17.1.1.3).
    pub(super) fn same_transaction(&self, feed: &mut Feed<'_>) -> Request {
        match feed.below(3) {
            0 => self.clone(),
            1 => Request { method: "CANCEL", ..self.clone() },
            _ => Request { method: "ACK", to_tag: Some("b1"), ..self.clone() },
        }
    }

    /// Is it a retransmission of `first`, its CANCEL, or the ACK to its failure?
    pub(super) fn is_of_transaction(&self, first: &Request) -> bool {
        let as_first = match self.method {
            "ACK" => Request { method: first.method, to_tag: first.to_tag, ..self.clone() },
            "CANCEL" => Request { method: first.method, ..self.clone() },
            _ => self.clone(),
        };
        as_first == *first
    }

    /// As a datagram.
    pub(super) fn datagram(&self) -> Datagram {
        let Request { method, uri, via, call_id, cseq, from_tag, max_forwards, routes, .. } = self;
        let to_tag = self.to_tag.map_or(String::new(), |tag| format!(";tag={tag}"));
        let text = format!(
            "{method} {uri} SIP/2.0\r\nVia: {via}\r\n{routes}Max-Forwards: {max_forwards}\r\nFrom: <sip:alice@a>;tag={from_tag}\r\n\
             To: <sip:bob@b>{to_tag}\r\nCall-ID: {call_id}\r\nCSeq: {cseq} {method}\r\nContent-Length: 0\r\n\r\n"
        );
        Datagram { source: self.source, at: self.at, bytes: text.into_bytes() }
    }
}

/// A response to a request that left as `request` for `to` from `at`, mostly from there.
pub(super) fn response(feed: &mut Feed<'_>, request: &[u8], to: SocketAddr, at: SocketAddr) -> Datagram {
    let status = feed.pick(&STATUSES);
    let mut bytes = format!("SIP/2.0 {status}\r\n").into_bytes();
    for line in request.split_inclusive(|b| *b == b'\n').skip(1) {
        if ["Via:", "From:", "To:", "Call-ID:", "CSeq:", "Record-Route:"].iter().any(|n| line.starts_with(n.as_bytes()))
        {
            bytes.extend_from_slice(line);
        }
    }
    bytes.extend_from_slice(b"Content-Length: 0\r\n\r\n");
    if feed.below(8) > 0 {
        return Datagram { source: to, at, bytes };
    }
    let source = address(feed.pick(&SOURCES));
    let at = if source.is_ipv4() == at.is_ipv4() { at } else { listener(feed, source) };
    Datagram { source, at, bytes }
}

/// A request within the dialog that `request` began: from either side, along the recorded routes.
pub(super) fn in_dialog(feed: &mut Feed<'_>, request: &[u8], client: SocketAddr, to: SocketAddr) -> Datagram {
    let text = String::from_utf8_lossy(request);
    let value =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
    let records: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("Record-Route: ")).collect();
    let is_from_client = feed.below(2) == 0;
    let (source, uri) = match is_from_client {
        true => (client, format!("sip:bob@{to}")),
        false => (to, format!("sip:alice@{client}")),
    };
    let method = feed.pick(&["BYE", "ACK", "INVITE", "SUBSCRIBE", "NOTIFY"]);
    let (from, to) = match (is_from_client, value("From:"), value("To:")) {
        (true, from, to) => (from, format!("{to};tag=b1")),
        (false, from, to) => (format!("{to};tag=b1"), from),
    };
    let mut routes: Vec<String> = records.iter().map(|record| format!("Route: {record}\r\n")).collect();
    if is_from_client {
        routes.reverse();
    }
    let text = format!(
        "{method} {uri} SIP/2.0\r\nVia: {}\r\n{}Max-Forwards: 70\r\nFrom: {from}\r\nTo: {to}\r\nCall-ID: {}\r\nCSeq: 9 {method}\r\n\r\n",
        via(feed, source),
        routes.concat(),
        value("Call-ID:")
    );
    Datagram { source, at: listener(feed, source), bytes: text.into_bytes() }
}

/// A listening address that `source` can reach.
fn listener(feed: &mut Feed<'_>, source: SocketAddr) -> SocketAddr {
    address(if source.is_ipv4() { feed.pick(&LISTENERS4) } else { feed.pick(&LISTENERS6) })
}

/// The Via of whoever is at `source`, true or not.
fn via(feed: &mut Feed<'_>, source: SocketAddr) -> String {
    let sent_by = match feed.below(6) {
        0 => "10.0.0.7:5070".to_owned(),
        1 => "phone.example.net".to_owned(),
        2 => source
            .ip()
            .to_string()
            .replace("2001:db8:f::77", "[2001:db8:f::77]")
            .replace("2001:db8:1::21", "[2001:db8:1::21]"),
        _ => source.to_string(),
    };
    let rport = feed.pick(&["", "", ";rport", ";rport=7", ";received=10.9.9.9;rport"]);
    format!("SIP/2.0/UDP {sent_by};branch={}{rport}", feed.pick(&BRANCHES))
}
