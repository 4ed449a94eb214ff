//! Answers made here, written straight from the request (RFC 3261 8.2.6).
//!
//! All Via lines (the topmost with what the transport saw), From, To with a tag, Call-ID and CSeq are copied; nothing
//! else of the request is. Bound: the caller's buffer; an answer that does not fit is written in compact form (RFC 3261
//! 7.3.3, no reason phrase, no Content-Length), and if that does not fit either it is not made.

use super::scan::{HeaderName, Scan};
use super::via::{Rport, Via};
use crate::base::span::Span;
use std::io::Write;
use std::net::SocketAddr;

/// What to answer.
#[derive(Clone, Copy, Debug)]
pub struct Reply<'a> {
    /// Status code and reason phrase.
    pub status: Status,
    /// Where the request came from: goes into `received` and `rport` of the topmost Via.
    pub source: SocketAddr,
    /// Its decoded topmost Via.
    pub via: &'a Via,
    /// The tag to add where To has none.
    pub to_tag: &'a [u8],
    /// Does To have a tag?
    pub has_to_tag: bool,
    /// `Retry-After` in seconds.
    pub retry_after_s: Option<u32>,
    /// Does `Unsupported` list what Proxy-Require asked for?
    pub lists_unsupported: bool,
}

//= rfc3261#section-16.11 no-provisional
//# No 100 and no other provisional response is made here.
//= rfc4320#section-4.2 no-408
//# No 408 is made here, whatever a backend leaves unanswered.
/// The answers that are made here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// 400
    BadRequest,
    /// 416
    UnsupportedUriScheme,
    /// 420
    BadExtension,
    /// 430
    FlowFailed,
    /// 480
    TemporarilyUnavailable,
    /// 483
    TooManyHops,
    /// 500
    ServerInternalError,
    /// 503
    ServiceUnavailable,
    /// 505
    VersionNotSupported,
    /// 513
    MessageTooLarge,
}

impl Status {
    /// The status code.
    pub const fn code(self) -> u16 {
        match self {
            Status::BadRequest => 400,
            Status::UnsupportedUriScheme => 416,
            Status::BadExtension => 420,
            Status::FlowFailed => 430,
            Status::TemporarilyUnavailable => 480,
            Status::TooManyHops => 483,
            Status::ServerInternalError => 500,
            Status::ServiceUnavailable => 503,
            Status::VersionNotSupported => 505,
            Status::MessageTooLarge => 513,
        }
    }

    /// The reason phrase of RFC 3261 section 21; that of 430 is of RFC 5626 section 11.3.
    pub const fn phrase(self) -> &'static str {
        match self {
            Status::BadRequest => "Bad Request",
            Status::UnsupportedUriScheme => "Unsupported URI Scheme",
            Status::BadExtension => "Bad Extension",
            Status::FlowFailed => "Flow Failed",
            Status::TemporarilyUnavailable => "Temporarily Unavailable",
            Status::TooManyHops => "Too Many Hops",
            Status::ServerInternalError => "Server Internal Error",
            Status::ServiceUnavailable => "Service Unavailable",
            Status::VersionNotSupported => "Version Not Supported",
            Status::MessageTooLarge => "Message Too Large",
        }
    }
}

/// How header names are spelled.
struct Names {
    is_compact: bool,
    via: &'static [u8],
    from: &'static [u8],
    to: &'static [u8],
    call_id: &'static [u8],
    cseq: &'static [u8],
}

const LONG: Names =
    Names { is_compact: false, via: b"Via: ", from: b"From: ", to: b"To: ", call_id: b"Call-ID: ", cseq: b"CSeq: " };

const COMPACT: Names = Names { is_compact: true, via: b"v:", from: b"f:", to: b"t:", call_id: b"i:", cseq: b"CSeq:" };

/// The answer does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyError;

impl Reply<'_> {
    /// Writes the answer to the request `bytes` to the front of `out`; returns its length.
    ///
    /// # Errors
    ///
    /// [`ReplyError`] when `out` is too small.
    pub fn encode(&self, bytes: &[u8], scan: &Scan, out: &mut [u8]) -> Result<usize, ReplyError> {
        let room = out.len();
        for names in [&LONG, &COMPACT] {
            let mut rest = &mut *out;
            if self.write(bytes, scan, names, &mut rest).is_ok() {
                return Ok(room - rest.len());
            }
        }
        Err(ReplyError)
    }

    fn write(&self, bytes: &[u8], scan: &Scan, names: &Names, out: &mut &mut [u8]) -> std::io::Result<()> {
        let phrase = if names.is_compact { "" } else { self.status.phrase() };
        write!(out, "SIP/2.0 {} {phrase}\r\n", self.status.code())?;
        let top = self.via.value;
        for header in scan.headers() {
            // Of a header that may stand once and stands twice, one is enough for a 400.
            let is_first = scan.first(header.name).is_some_and(|first| first.line == header.line);
            if header.name != HeaderName::Via && !is_first {
                continue;
            }
            match header.name {
                HeaderName::Via if header.value.start <= top.start && top.end <= header.value.end => {
                    out.write_all(names.via)?;
                    self.write_top_via(bytes, header.value, out)?;
                }
                HeaderName::Via => write_header(out, names.via, header.value.of(bytes))?,
                HeaderName::From => write_header(out, names.from, header.value.of(bytes))?,
                //= rfc3261#section-8.2.6.2 to-tag
                //# An answer made here keeps the To tag of the request or adds one.
                HeaderName::To => {
                    out.write_all(names.to)?;
                    write_unfolded(out, header.value.of(bytes))?;
                    if !self.has_to_tag {
                        out.write_all(b";tag=")?;
                        out.write_all(self.to_tag)?;
                    }
                    out.write_all(b"\r\n")?;
                }
                HeaderName::CallId => write_header(out, names.call_id, header.value.of(bytes))?,
                HeaderName::CSeq => write_header(out, names.cseq, header.value.of(bytes))?,
                _ => {}
            }
        }
        if let Some(seconds) = self.retry_after_s {
            write!(out, "Retry-After: {seconds}\r\n")?;
        }
        let asked = scan.all(HeaderName::ProxyRequire).filter(|h| self.lists_unsupported && !h.value.is_empty());
        for tags in asked {
            write_header(out, b"Unsupported: ", tags.value.of(bytes))?;
        }
        out.write_all(if names.is_compact { b"\r\n" } else { b"Content-Length: 0\r\n\r\n" })
    }

    /// The topmost value loses what the sender claimed in `received` and `rport` and gains what was seen.
    fn write_top_via(&self, bytes: &[u8], line: Span, out: &mut &mut [u8]) -> std::io::Result<()> {
        let mut cuts = [None, None];
        if let Some((whole, _)) = self.via.received {
            cuts[0] = Some(whole);
        }
        if let Rport::Asked(whole) | Rport::Filled(_, whole) = self.via.rport {
            cuts[1] = Some(whole);
        }
        if cuts[0].is_some_and(|a| cuts[1].is_some_and(|b| b.start < a.start)) {
            cuts.swap(0, 1);
        }
        let mut read = line.start;
        for cut in cuts.into_iter().flatten() {
            write_unfolded(out, Span { start: read, end: cut.start }.of(bytes))?;
            read = cut.end;
        }
        write_unfolded(out, Span { start: read, end: self.via.value.end }.of(bytes))?;
        if cuts[1].is_some() || cuts[0].is_some() || self.via.ip(bytes) != Some(self.source.ip()) {
            write!(out, ";received={}", self.source.ip())?;
        }
        if self.via.rport != Rport::Absent {
            write!(out, ";rport={}", self.source.port())?;
        }
        write_unfolded(out, Span { start: self.via.value.end, end: line.end }.of(bytes))?;
        out.write_all(b"\r\n")
    }
}

fn write_header(out: &mut &mut [u8], name: &[u8], value: &[u8]) -> std::io::Result<()> {
    out.write_all(name)?;
    write_unfolded(out, value)?;
    out.write_all(b"\r\n")
}

/// Line ends inside a folded value become spaces.
fn write_unfolded(out: &mut &mut [u8], value: &[u8]) -> std::io::Result<()> {
    let mut rest = value;
    while let Some(at) = memchr::memchr2(b'\r', b'\n', rest) {
        out.write_all(&rest[..at])?;
        out.write_all(b" ")?;
        rest = &rest[at + 1..];
    }
    out.write_all(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_copies_what_the_rfc_names_and_nothing_else() {
        let text = b"INVITE sip:a SIP/2.0\r\nv: SIP/2.0/UDP host:5070;received=9.9.9.9;branch=z9hG4bK1;rport\r\n ;x, \
            SIP/2.0/UDP b\r\nVia: SIP/2.0/UDP c\r\nFrom: <sip:f>;tag=1\r\nTo: <sip:t>\r\nCall-ID: i\r\nCSeq: 1 INVITE\r\n\
            Subject: s\r\nProxy-Require:\r\nProxy-Require: foo\r\nProxy-Require: bar\r\n\r\n";
        let mut scan = Scan::with_capacity(50);
        scan.scan(text).unwrap();
        let via = Via::decode(text, scan.first(HeaderName::Via).unwrap().value).unwrap();
        let reply = Reply {
            status: Status::BadExtension,
            source: "192.0.2.1:4000".parse().unwrap(),
            via: &via,
            to_tag: b"local",
            has_to_tag: false,
            retry_after_s: Some(5),
            lists_unsupported: true,
        };
        let mut out = [0; 1000];
        let n = reply.encode(text, &scan, &mut out).unwrap();
        let want = "SIP/2.0 420 Bad Extension\r\n\
            Via: SIP/2.0/UDP host:5070;branch=z9hG4bK1   ;x;received=192.0.2.1;rport=4000, SIP/2.0/UDP b\r\n\
            Via: SIP/2.0/UDP c\r\nFrom: <sip:f>;tag=1\r\nTo: <sip:t>;tag=local\r\nCall-ID: i\r\nCSeq: 1 INVITE\r\n\
            Retry-After: 5\r\nUnsupported: foo\r\nUnsupported: bar\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(std::str::from_utf8(&out[..n]).unwrap(), want);
        let compact = "SIP/2.0 420 \r\n\
            v:SIP/2.0/UDP host:5070;branch=z9hG4bK1   ;x;received=192.0.2.1;rport=4000, SIP/2.0/UDP b\r\n\
            v:SIP/2.0/UDP c\r\nf:<sip:f>;tag=1\r\nt:<sip:t>;tag=local\r\ni:i\r\nCSeq:1 INVITE\r\n\
            Retry-After: 5\r\nUnsupported: foo\r\nUnsupported: bar\r\n\r\n";
        let n = reply.encode(text, &scan, &mut out[..n - 1]).unwrap();
        assert_eq!(std::str::from_utf8(&out[..n]).unwrap(), compact);
        assert_eq!(reply.encode(text, &scan, &mut out[..n - 1]), Err(ReplyError));
    }
}
