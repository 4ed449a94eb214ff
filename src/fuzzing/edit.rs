//! The edit round trip: what leaves is what came, but for what a proxy must change.
//!
//! The message goes through the engine, from a client, from a backend, and from a client of the other address family.
//! A request that is forwarded is compared with what came, line by line, by the naive reader (RFC 3261 16.4, 16.6);
//! then a 200 made of it comes back, and must leave as it came without our Via (16.7). A response gets a signed Via
//! of ours on top, on a line of its own and in the line of the next, and must leave without it, byte for byte.
//!
//! `{given}`, `{tag}` and `{forged}` in the input stand for signed text, as in the message fixtures.

use std::net::SocketAddr;

use super::bench::{Bench, Fate, Sent, address, listener, show, snapshot};
use super::naive::{NaiveHeader, NaiveMessage};
use crate::base::id::{BackendId, Transport};
use crate::base::span::Span;
use crate::base::time::Instant;
use crate::engine::Received;
use crate::route::cookie::{BranchInput, Cookie, TOKEN_MAX};
use crate::route::decide::is_forbidden;
use crate::route::snapshot::{ListenerIndex, Snapshot};
use crate::sip::cseq::CSeq;
use crate::sip::name_addr::NameAddr;
use crate::sip::uri::{Scheme, Uri};
use crate::sip::via::{Rport, Via};

/// Header lines of which the naive reader never has too many.
const MANY: usize = 1 << 20;

/// `(listener, source)`: a client, a backend, a client that reaches backends of the other family.
const SCENES: [(&str, &str); 3] = [
    ("192.0.2.10:5060", "203.0.113.77:5062"),
    ("192.0.2.10:5060", "198.51.100.11:5060"),
    ("[2001:db8::10]:5060", "[2001:db8:f::77]:5062"),
];

/// One message through the forwarding path.
///
/// # Panics
///
/// When anything leaves otherwise than it must.
pub fn edit(bytes: &[u8]) {
    let snapshot = snapshot(0, 0);
    let bytes = fill(&snapshot, bytes);
    let mut bench = Bench::new(0, snapshot.clone(), 16);
    for (at, source) in SCENES {
        let rx = Received {
            bytes: &bytes,
            source: address(source),
            listener: listener(at),
            flow: None,
            is_taken_over: true,
        };
        if let Fate::Request(mut sent) = bench.handle(Instant(0), &rx) {
            take_out_added_length(&rx, &mut sent);
            let request = Forwarded::read(&snapshot, &rx, &sent);
            request.check();
            request.check_way_back(&mut bench);
        }
    }
    check_response(&mut bench, &snapshot, &bytes);
}

/// Towards a connection Content-Length is added where it is missing (RFC 3261 18.3); what is left is as it came.
fn take_out_added_length(rx: &Received<'_>, sent: &mut Sent) {
    let has = |bytes: &[u8]| NaiveMessage::read(bytes, MANY).headers.into_iter().find(|h| h.name == "content-length");
    if let (true, None, Some(added)) = (sent.transport.is_stream(), has(rx.bytes), has(&sent.bytes)) {
        sent.bytes.drain(added.line);
    }
}

/// A request, and what left for it.
struct Forwarded<'a> {
    snapshot: &'a Snapshot,
    rx: &'a Received<'a>,
    sent: &'a Sent,
    was: NaiveMessage,
    is: NaiveMessage,
    via: Via,
}

impl<'a> Forwarded<'a> {
    fn read(snapshot: &'a Snapshot, rx: &'a Received<'a>, sent: &'a Sent) -> Self {
        let was = NaiveMessage::read(rx.bytes, MANY);
        let is = NaiveMessage::read(&sent.bytes, MANY);
        assert_eq!((was.error, is.error), (None, None), "only what can be read is forwarded, and it stays readable");
        let top = was.headers.iter().find(|h| h.name == "via").expect("only a request with Via is forwarded");
        let via = Via::decode(rx.bytes, span(&top.value)).expect("only a request with a good Via is forwarded");
        Forwarded { snapshot, rx, sent, was, is, via }
    }

    /// The line of a header that came.
    fn line_before(&self, header: &NaiveHeader) -> &'a [u8] {
        &self.rx.bytes[header.line.clone()]
    }

    /// The line of a header that left.
    fn line_after(&self, header: &NaiveHeader) -> &'a [u8] {
        &self.sent.bytes[header.line.clone()]
    }

    fn one(&self, name: &str) -> &'a [u8] {
        let header = self.was.headers.iter().find(|h| h.name == name);
        header.map_or(&[], |header| &self.rx.bytes[header.value.clone()])
    }

    fn method(&self) -> &'a [u8] {
        self.rx.bytes[self.was.start_line.clone()].split(|b| *b == b' ').next().unwrap_or_default()
    }

    fn check(&self) {
        let (old, new) = (&self.rx.bytes[self.was.body.clone()], &self.sent.bytes[self.is.body.clone()]);
        assert_eq!(old, new, "the body changed");
        self.check_routes();
        let records = self.records();
        let mut lines = self.is.headers.iter().filter(|h| h.name != "route");
        let mut next = |what: &str| lines.next().unwrap_or_else(|| panic!("{what} is missing"));
        let has = |name: &str| self.was.headers.iter().any(|h| h.name == name);
        let (mut seen_via, mut seen_record) = (false, false);
        for header in self.was.headers.iter().filter(|h| h.name != "route") {
            if header.name == "record-route" && !seen_record {
                seen_record = true;
                (0..records).for_each(|_| self.check_record(next("Record-Route")));
            }
            match &*header.name {
                "via" if !seen_via => {
                    seen_via = true;
                    self.check_own_via(next("our Via"));
                    if !has("record-route") {
                        (0..records).for_each(|_| self.check_record(next("Record-Route")));
                    }
                    if !has("max-forwards") {
                        assert_eq!(self.line_after(next("Max-Forwards")), b"Max-Forwards: 70\r\n");
                    }
                    self.check_top_via(header, next("the sender's Via"));
                }
                "max-forwards" => self.check_max_forwards(header, next("Max-Forwards")),
                name => assert_eq!(show(self.line_before(header)), show(self.line_after(next(name))), "{name} changed"),
            }
        }
        assert_eq!(lines.next(), None, "a header was added");
    }

    /// How many Record-Route lines are ours (RFC 3261 16.6 item 4, RFC 5658).
    fn records(&self) -> usize {
        let count = |message: &NaiveMessage| message.headers.iter().filter(|h| h.name == "record-route").count();
        let records = count(&self.is).checked_sub(count(&self.was)).expect("a Record-Route is gone");
        let makes_dialog = matches!(self.method(), b"INVITE" | b"SUBSCRIBE" | b"REFER");
        let is_new = tag(self.one("to")).is_none();
        let by_family = if self.sent.listener == self.rx.listener { 1 } else { 2 };
        match (makes_dialog, is_new) {
            (false, _) => assert_eq!(records, 0, "a route is recorded for what makes no dialog"),
            (true, true) => assert_eq!(records, by_family, "a new dialog's route is recorded"),
            (true, false) => assert!(records == 0 || records == by_family, "{records} routes are recorded"),
        }
        records
    }

    fn check_record(&self, header: &NaiveHeader) {
        let line = self.line_after(header);
        let heads = [self.sent.listener, self.rx.listener].map(|l| self.snapshot.listener(l).record_route_head(false));
        let rest = heads.iter().find_map(|head| line.strip_prefix(*head)).and_then(|r| r.strip_suffix(b">\r\n"));
        let token = rest.unwrap_or_else(|| panic!("Record-Route is {}", show(line)));
        assert!(self.snapshot.keys.decode_token(self.one("call-id"), token).is_some(), "our own token is refused");
    }

    fn check_own_via(&self, header: &NaiveHeader) {
        let ingress = self.snapshot.listener(self.rx.listener).id;
        let cseq = CSeq::decode(self.one("cseq"), Span::new(0, self.one("cseq").len())).expect("a CSeq");
        let input = branch_input(self.rx.bytes, &self.via, self.rx.source, self.one("call-id"), cseq.number);
        let mut want = self.snapshot.listener(self.sent.listener).via_head(self.sent.transport).to_vec();
        want.extend_from_slice(&self.snapshot.keys.encode_branch(ingress, &input));
        want.extend_from_slice(b"\r\n");
        assert_eq!(show(self.line_after(header)), show(&want), "our Via");
    }

    /// RFC 3261 18.2.1 and RFC 3581 4: only `received` and `rport` may differ, and they tell the truth.
    fn check_top_via(&self, old: &NaiveHeader, new: &NaiveHeader) {
        let via = Via::decode(&self.sent.bytes, span(&new.value)).expect("the sender's Via can still be read");
        let (was, is) = (without_seen(self.rx.bytes, old, &self.via), without_seen(&self.sent.bytes, new, &via));
        assert_eq!(show(&was), show(&is), "the sender's Via changed");
        let source = self.rx.source;
        let must_tell = self.via.received.is_some()
            || self.via.rport != Rport::Absent
            || self.via.ip(self.rx.bytes) != Some(source.ip());
        assert_eq!(via.received_ip(&self.sent.bytes), must_tell.then_some(source.ip()), "received");
        match (self.via.rport, via.rport) {
            (Rport::Absent, Rport::Absent) => {}
            (Rport::Asked(_) | Rport::Filled(..), Rport::Filled(port, _)) if port == source.port() => {}
            (was, is) => panic!("rport {was:?} became {is:?}"),
        }
    }

    fn check_max_forwards(&self, old: &NaiveHeader, new: &NaiveHeader) {
        let value = std::str::from_utf8(&self.rx.bytes[old.value.clone()]).unwrap_or_default();
        let hops: u8 = value.parse().expect("Max-Forwards is a number up to 255");
        let mut want = self.rx.bytes[old.line.start..old.value.start].to_vec();
        want.extend_from_slice(hops.checked_sub(1).expect("Max-Forwards 0 goes nowhere").to_string().as_bytes());
        want.extend_from_slice(&self.rx.bytes[old.value.end..old.line.end]);
        assert_eq!(show(&want), show(self.line_after(new)), "Max-Forwards");
    }

    /// RFC 3261 16.4 and 16.6 item 6: at most two values of ours go from the top; the rest and the Request-URI stay
    /// as they are, or take turns as a strict router before or behind us asks.
    fn check_routes(&self) {
        let (was, is) = (routes(self.rx.bytes, &self.was), routes(&self.sent.bytes, &self.is));
        let (old_line, new_line) =
            (&self.rx.bytes[self.was.start_line.clone()], &self.sent.bytes[self.is.start_line.clone()]);
        let (old_words, new_words) = (words(old_line), words(new_line));
        assert_eq!((old_words[0], old_words[2]), (new_words[0], new_words[2]), "the start line changed");
        // What was put into the Request-URI by a strict router is restored before the top of Route is looked at.
        let (way, target) = match was.split_last() {
            Some((last, rest)) if self.has_token(old_words[1]) => (rest, uri_of(last)),
            _ => (&was[..], old_words[1]),
        };
        let is_own = |value: &[u8]| names_us(self.snapshot, uri_of(value));
        let own = way.iter().take(2).take_while(|value| is_own(value)).count();
        let is_loose = target == new_words[1] && way[own..] == is[..];
        let want = way[own..].iter().map(|value| uri_of(value)).chain([target]);
        let got = [new_words[1]].into_iter().chain(is.iter().map(|value| uri_of(value)));
        assert!(
            is_loose || want.eq(got),
            "{:?} and {} became {:?} and {}",
            was.iter().map(|v| show(v)).collect::<Vec<_>>(),
            show(old_line),
            is.iter().map(|v| show(v)).collect::<Vec<_>>(),
            show(new_line)
        );
    }

    /// Has a strict router put a URI that we recorded into this Request-URI (RFC 3261 16.4)?
    fn has_token(&self, uri: &[u8]) -> bool {
        let decoded = Uri::decode(uri, Span::new(0, uri.len())).expect("only a request with a good URI is forwarded");
        let token = decoded.param(uri, b"tk").flatten();
        let is_sip = matches!(decoded.scheme, Scheme::Sip | Scheme::Sips);
        is_sip && token.is_some_and(|t| self.snapshot.keys.decode_token(self.one("call-id"), t).is_some())
    }

    /// A 200 with everything that the request had reaches the sender, our Via gone and nothing else.
    fn check_way_back(&self, bench: &mut Bench) {
        let sent = &self.sent.bytes;
        let line = b"SIP/2.0 200 OK\r\n";
        let top = self.is.headers.iter().find(|h| h.name == "via").expect("our Via");
        let answer = [line, &sent[self.is.start_line.end..self.is.body.end]].concat();
        let want =
            [line, &sent[self.is.start_line.end..top.line.start], &sent[top.line.end..self.is.body.end]].concat();
        let limits = &super::bench::config().limits;
        if answer.len() > limits.message_bytes_max || self.is.headers.len() > limits.headers_max {
            return;
        }
        let rx = Received {
            bytes: &answer,
            source: self.sent.to,
            listener: self.sent.listener,
            flow: None,
            is_taken_over: true,
        };
        let port = if self.via.rport == Rport::Absent { self.via.port_or_default() } else { self.rx.source.port() };
        match bench.handle(Instant(0), &rx) {
            Fate::Response(back) => {
                assert_eq!(show(&back.bytes), show(&want), "the response changed");
                assert_eq!(back.to, SocketAddr::new(self.rx.source.ip(), port), "the response went elsewhere");
                assert_eq!(back.listener, self.rx.listener, "the response leaves from where the request came to");
            }
            other => panic!("the response to a request that was forwarded: {other:?}"),
        }
    }
}

/// A response of any shape with a Via of ours on top leaves as it is.
fn check_response(bench: &mut Bench, snapshot: &Snapshot, bytes: &[u8]) {
    let limits = &super::bench::config().limits;
    // Our Via may be a line more.
    let message = NaiveMessage::read(bytes, limits.headers_max - 1);
    let is_response = message.error.is_none() && bytes[message.start_line.start..][..4].eq_ignore_ascii_case(b"SIP/");
    let Some(top) = message.headers.iter().find(|h| h.name == "via").filter(|_| is_response) else { return };
    let Ok(via) = Via::decode(bytes, span(&top.value)) else { return };
    let value = |name: &str| message.headers.iter().find(|h| h.name == name).map(|h| span(&h.value));
    let (Some(call_id), Some(Ok(cseq))) = (value("call-id"), value("cseq").map(|v| CSeq::decode(bytes, v))) else {
        return;
    };
    let ip = if via.received.is_some() { via.received_ip(bytes) } else { via.ip(bytes) };
    let port = match via.rport {
        Rport::Filled(port, _) => port,
        Rport::Absent | Rport::Asked(_) => via.port_or_default(),
    };
    let Some(to) = ip.map(|ip| SocketAddr::new(ip, port)) else { return };
    let ingress = listener(if to.is_ipv4() { "192.0.2.10:5070" } else { "[2001:db8::20]:5060" });
    let input = branch_input(bytes, &via, to, call_id.of(bytes), cseq.number);
    let branch = snapshot.keys.encode_branch(snapshot.listener(ingress).id, &input);
    let own = [b"SIP/2.0/UDP 192.0.2.10;x;branch=", &branch[..]].concat();
    for (place, before, behind) in [(top.line.start, &b"Via: "[..], &b"\r\n"[..]), (top.value.start, b"", b" ,\t")] {
        let pushed = [&bytes[..place], before, &own, behind, &bytes[place..]].concat();
        if pushed.len() > limits.message_bytes_max {
            continue;
        }
        let rx = Received {
            bytes: &pushed,
            source: address("198.51.100.11:5060"),
            listener: ListenerIndex(0),
            flow: None,
            is_taken_over: true,
        };
        match bench.handle(Instant(0), &rx) {
            Fate::Dropped if is_forbidden(snapshot, to) => {}
            Fate::Response(sent) => {
                let want = &bytes[message.start_line.start..message.body.end];
                assert_eq!(show(&sent.bytes), show(want), "the response changed");
                assert_eq!((sent.to, sent.listener), (to, ingress), "the response went elsewhere");
            }
            other => panic!("a response with our branch: {other:?}"),
        }
    }
}

fn branch_input<'a>(bytes: &'a [u8], via: &Via, address: SocketAddr, call_id: &'a [u8], cseq: u32) -> BranchInput<'a> {
    BranchInput {
        branch: via.branch.map_or(&[], |b| b.of(bytes)),
        host: via.host.of(bytes),
        port: via.port_or_default(),
        address: address.ip(),
        call_id,
        cseq,
    }
}

/// Puts signed text where the input has placeholders.
fn fill(snapshot: &Snapshot, bytes: &[u8]) -> Vec<u8> {
    if !bytes.contains(&b'{') {
        return bytes.to_vec();
    }
    let message = NaiveMessage::read(bytes, MANY);
    let value =
        |name: &str| message.headers.iter().find(|h| h.name == name).map_or(Span::default(), |h| span(&h.value));
    let call_id = value("call-id").of(bytes);
    let from_tag = tag(value("from").of(bytes)).unwrap_or_default();
    let cookie = Cookie {
        backend: BackendId::from_name("pbx2"),
        ingress: snapshot.listener(listener("192.0.2.10:5060")).id,
        initial_tag: snapshot.keys.tag_hash(call_id, b"a1"),
        client: address("203.0.113.77:5062"),
        transport: Transport::Udp,
        flow: None,
        is_from_backend: false,
        follows_text: true,
    };
    let mut token = [0; TOKEN_MAX];
    let len = snapshot.keys.encode_token(call_id, &cookie, &mut token);
    let token = &token[..len];
    let mut forged = token.to_vec();
    forged[len / 2] = if forged[len / 2] == b'A' { b'B' } else { b'A' };
    let local_tag = snapshot.keys.local_tag(call_id, from_tag);
    let mut filled = replace(bytes, b"{given}", token);
    filled = replace(&filled, b"{forged}", &forged);
    replace(&filled, b"{tag}", &local_tag)
}

fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let (mut rest, mut out) = (bytes, Vec::new());
    while let Some(at) = find(rest, from) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(to);
        rest = &rest[at + from.len()..];
    }
    out.extend_from_slice(rest);
    out
}

fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text)
}

fn span(range: &std::ops::Range<usize>) -> Span {
    Span::new(range.start, range.end)
}

fn words(line: &[u8]) -> Vec<&[u8]> {
    let words: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    assert_eq!(words.len(), 3, "a request line has three words");
    words
}

fn tag(value: &[u8]) -> Option<&[u8]> {
    NameAddr::decode(value, Span::new(0, value.len())).ok().and_then(|v| v.tag).map(|tag| tag.of(value))
}

/// The line of a Via without `received` and `rport` of its first value.
fn without_seen(bytes: &[u8], header: &NaiveHeader, via: &Via) -> Vec<u8> {
    let rport = match via.rport {
        Rport::Absent => None,
        Rport::Asked(whole) | Rport::Filled(_, whole) => Some(whole),
    };
    let cuts = [via.received.map(|(whole, _)| whole), rport];
    let is_cut = |at: usize| cuts.iter().flatten().any(|cut| (cut.start as usize..cut.end as usize).contains(&at));
    header.line.clone().filter(|at| !is_cut(*at)).map(|at| bytes[at]).collect()
}

/// The values of all Route lines, split at commas outside quotes and brackets.
fn routes<'a>(bytes: &'a [u8], message: &NaiveMessage) -> Vec<&'a [u8]> {
    let mut values = Vec::new();
    for header in message.headers.iter().filter(|h| h.name == "route") {
        let line = &bytes[header.value.clone()];
        let (mut start, mut is_quoted, mut is_escaped, mut is_angled) = (0, false, false, false);
        for (at, byte) in line.iter().enumerate() {
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' if is_quoted => is_escaped = true,
                b'"' if !is_angled => is_quoted = !is_quoted,
                b'<' if !is_quoted => is_angled = true,
                b'>' if !is_quoted => is_angled = false,
                b',' if !is_quoted && !is_angled => {
                    values.push(line[start..at].trim_ascii());
                    start = at + 1;
                }
                _ => {}
            }
        }
        values.push(line[start..].trim_ascii());
    }
    values
}

/// The URI of a Route value.
fn uri_of(value: &[u8]) -> &[u8] {
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (at, byte) in value.iter().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            b'<' if !is_quoted => return value[at + 1..].split(|b| *b == b'>').next().unwrap_or_default(),
            _ => {}
        }
    }
    value.split(|b| *b == b';').next().unwrap_or_default().trim_ascii()
}

/// Is it an address or the name of the node?
fn names_us(snapshot: &Snapshot, text: &[u8]) -> bool {
    let Ok(uri) = Uri::decode(text, Span::new(0, text.len())) else { return false };
    let is_sip = matches!(uri.scheme, Scheme::Sip | Scheme::Sips);
    is_sip
        && match uri.ip(text) {
            Some(ip) => is_own(snapshot, SocketAddr::new(ip, uri.port.unwrap_or(5060))),
            None => uri.host.of(text).eq_ignore_ascii_case(b"sip.example.com"),
        }
}

fn is_own(snapshot: &Snapshot, address: SocketAddr) -> bool {
    snapshot.listeners.iter().any(|l| l.listen.address == address)
}
