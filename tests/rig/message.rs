//! The messages of the scenarios: requests of a client, what a backend makes of them, and both ends of a dialog.

use std::fmt::Write;
use std::net::SocketAddr;

use super::{Fate, Rig, Sent};

/// Who calls where nothing else is said.
pub(crate) const CLIENT: &str = "203.0.113.77:5062";

/// Whom it calls.
pub(crate) const EDGE: &str = "192.0.2.10:5060";

/// An address as text.
pub(crate) fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A request of a client; `extra` are whole header lines.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    pub(crate) uri: &'a str,
    /// sent-by of its Via.
    pub(crate) via: &'a str,
    pub(crate) branch: &'a str,
    pub(crate) from: &'a str,
    pub(crate) to: &'a str,
    pub(crate) call_id: &'a str,
    pub(crate) cseq: u32,
    pub(crate) extra: &'a str,
}

impl Default for Request<'_> {
    fn default() -> Self {
        Request {
            method: "INVITE",
            uri: "sip:bob@sip.example.com",
            via: CLIENT,
            branch: "z9hG4bK-1",
            from: "<sip:alice@example.net>;tag=a1",
            to: "<sip:bob@sip.example.com>",
            call_id: "call-1",
            cseq: 1,
            extra: "",
        }
    }
}

impl Request<'_> {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let Request { method, uri, via, branch, from, to, call_id, cseq, extra } = self;
        format!(
            "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {via};branch={branch}\r\nMax-Forwards: 70\r\n\
             From: {from}\r\nTo: {to}\r\nCall-ID: {call_id}\r\nCSeq: {cseq} {method}\r\n\
             User-Agent: scenario of the tests of this project\r\n{extra}Content-Length: 0\r\n\r\n"
        )
        .into_bytes()
    }
}

pub(crate) fn forward(rig: &mut Rig, bytes: &[u8]) -> Sent {
    forward_from(rig, CLIENT, bytes)
}

pub(crate) fn forward_from(rig: &mut Rig, source: &str, bytes: &[u8]) -> Sent {
    passed(rig, source, EDGE, bytes)
}

/// What leaves when `source` sends a message that must pass to the listener `to`.
pub(crate) fn passed(rig: &mut Rig, source: &str, to: &str, bytes: &[u8]) -> Sent {
    match rig.handle(at(source), at(to), bytes) {
        Fate::Forwarded(sent) => sent,
        other => panic!("{other:?} for\n{}", String::from_utf8_lossy(bytes)),
    }
}

/// The value of the first header `name`.
pub(crate) fn value(bytes: &[u8], name: &str) -> String {
    values(bytes, name).into_iter().next().unwrap_or_default()
}

/// The values of all headers `name`, line by line.
pub(crate) fn values(bytes: &[u8], name: &str) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned).collect()
}

pub(crate) fn own_branch(sent: &Sent) -> String {
    value(&sent.bytes, "Via").split("branch=").nth(1).unwrap().to_owned()
}

/// The response of whoever got `request`.
pub(crate) fn answer(request: &[u8], status: &str) -> Vec<u8> {
    let text = String::from_utf8_lossy(request);
    let copied = ["Via:", "From:", "To:", "Call-ID:", "CSeq:", "Record-Route:"];
    let lines = text.lines().filter(|line| copied.iter().any(|name| line.starts_with(name)));
    let lines =
        lines.map(|l| if l.starts_with("To:") && !l.contains("tag=") { format!("{l};tag=b1") } else { l.to_owned() });
    let lines: Vec<String> = lines.collect();
    format!("SIP/2.0 {status}\r\n{}\r\nContent-Length: 0\r\n\r\n", lines.join("\r\n")).into_bytes()
}

/// A response without the Via that whoever got the request answers to: what must arrive one hop back.
pub(crate) fn without_top_via(response: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(response);
    let start = text.find("Via:").unwrap();
    let end = start + text[start..].find("\r\n").unwrap() + 2;
    [&response[..start], &response[end..]].concat()
}

/// One end of a dialog.
#[derive(Clone, Copy)]
pub(crate) struct End<'a> {
    pub(crate) address: &'a str,
    pub(crate) tag: &'a str,
    /// Where it sends: the first of its route set.
    pub(crate) edge: &'a str,
}

/// A request of one end of a dialog to the other, along `routes`.
pub(crate) fn in_dialog(method: &str, cseq: u32, from: &End<'_>, to: &End<'_>, routes: &[String]) -> Vec<u8> {
    let mut lines = String::new();
    for route in routes {
        let _ = write!(lines, "Route: {route}\r\n");
    }
    Request {
        method,
        uri: &format!("sip:them@{}", to.address),
        via: from.address,
        branch: &format!("z9hG4bK-{}{method}{cseq}", from.tag),
        from: &format!("<sip:us@example.net>;tag={}", from.tag),
        to: &format!("<sip:them@example.net>;tag={}", to.tag),
        cseq,
        extra: &lines,
        ..Request::default()
    }
    .bytes()
}
