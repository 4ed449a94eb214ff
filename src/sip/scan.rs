//! One pass over a message: where the start line and the headers that routing reads are.
//!
//! Read RFC 3261 sections 7 and 25 first. The scan finds line ends, names headers and writes down offsets; it
//! decodes no value, copies no byte, allocates nothing and has no input on which it can panic. What it tolerates: LF
//! without CR, any case, compact names, white space before the colon, folded lines, empty lines before the start
//! line, any method and any header it does not know.
//!
//! ```text
//! INVITE sip:bob@example.com SIP/2.0 CRLF     start line: method, Request-URI or status
//! Via: SIP/2.0/UDP pc33;branch=x     CRLF     HeaderLine { Via, line: V..LF], value: S..x] }
//! Subject: lunch                     CRLF     counted, not kept
//! CRLF                                        end of the header section
//! v=0 ...                                     body, cut at Content-Length
//! ```
//!
//! Invariants: spans are in order and inside the message; `headers` holds at most as many lines as the capacity
//! given at construction; after an error the lines found so far stay, so that an answer can be made from them.
//! Cost: linear in the header section; the body is not looked at.

use memchr::{memchr, memchr2};

use super::cursor::{Class, TOKEN};
use crate::base::span::Span;

/// The headers that routing reads; every other header passes unseen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum HeaderName {
    /// RFC 3261 20.42
    Via,
    /// RFC 3261 20.34
    Route,
    /// RFC 3261 20.30
    RecordRoute,
    /// RFC 3261 20.20
    From,
    /// RFC 3261 20.39
    To,
    /// RFC 3261 20.8
    CallId,
    /// RFC 3261 20.16
    CSeq,
    /// RFC 3261 20.22
    MaxForwards,
    /// RFC 3261 20.14
    ContentLength,
    /// RFC 3261 20.29
    ProxyRequire,
    /// RFC 3261 20.10
    Contact,
    /// RFC 3325 9.1
    AssertedIdentity,
    /// RFC 3323 4.2
    Privacy,
}

/// How many names there are.
const NAMES: usize = HeaderName::Privacy as usize + 1;

/// One header line of a kind that routing reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderLine {
    /// Which header.
    pub name: HeaderName,
    /// From the first byte of the name through the line end, continuation lines included.
    pub line: Span,
    /// The value without white space around it; continuation lines are inside, unfolded by the decoders.
    pub value: Span,
}

/// The first line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartLine {
    /// `method SP Request-URI SP SIP/2.0`
    Request {
        /// A token, in the sender's case.
        method: Span,
        /// Not empty, free of white space, brackets and quotes; not decoded.
        uri: Span,
    },
    /// `SIP/2.0 SP status SP reason`
    Response {
        /// 100 to 699.
        status: u16,
    },
}

/// Why a message cannot be used as it is. The sender is at fault in every case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanError {
    /// Nothing but line ends: a keep-alive, not a message.
    Empty,
    /// The first line is neither a request nor a response line.
    StartLine,
    /// A request of another SIP version (RFC 3261 21.5.6).
    Version,
    /// A line of the header section without a name and a colon, or a CR that ends no line.
    HeaderLine,
    /// More header lines than the limit.
    TooManyHeaders,
    /// No empty line ends the header section.
    Unterminated,
    /// Content-Length is not a number, is contradicted by another one, or exceeds the datagram (RFC 3261 18.3).
    ContentLength,
}

/// The offsets of one message; made once and used again for every message.
#[derive(Debug)]
pub struct Scan {
    start_line: Option<StartLine>,
    message: Span,
    start_line_end: u32,
    headers_end: u32,
    body_start: u32,
    headers: Vec<HeaderLine>,
    /// Index of the first line of each name plus one; 0 where there is none.
    first: [u16; NAMES],
    count: [u16; NAMES],
    headers_max: usize,
}

impl Scan {
    /// Room for messages of up to `headers_max` header lines (at most 65,534).
    pub fn with_capacity(headers_max: usize) -> Self {
        let headers_max = headers_max.min(usize::from(u16::MAX) - 1);
        Scan {
            start_line: None,
            message: Span::default(),
            start_line_end: 0,
            headers_end: 0,
            body_start: 0,
            headers: Vec::with_capacity(headers_max),
            first: [0; NAMES],
            count: [0; NAMES],
            headers_max,
        }
    }

    /// Scans a datagram.
    ///
    /// # Errors
    ///
    /// See [`ScanError`]. What was found before the error stays readable.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<(), ScanError> {
        self.start_line = None;
        self.headers.clear();
        self.first = [0; NAMES];
        self.count = [0; NAMES];
        //= rfc3261#section-7.5 line-ends
        //# Line ends before the start line are skipped.
        let start = bytes.iter().position(|b| !matches!(b, b'\r' | b'\n')).unwrap_or(bytes.len());
        self.message = Span::new(start, bytes.len());
        self.start_line_end = start as u32;
        self.headers_end = bytes.len() as u32;
        self.body_start = bytes.len() as u32;
        if start == bytes.len() {
            return Err(ScanError::Empty);
        }
        let mut has_bare_cr = false;
        let line_end = line_end(bytes, start, &mut has_bare_cr);
        self.start_line_end = line_end as u32;
        let start_line = scan_start_line(bytes, start, line_end);
        // Headers are scanned even then: a 400 or 505 is made from them.
        self.start_line = start_line.ok();
        let headers = self.scan_headers(bytes, line_end, has_bare_cr);
        start_line?;
        headers?;
        self.cut_body(bytes)
    }

    /// The first line, when it could be understood.
    pub fn start_line(&self) -> Option<StartLine> {
        self.start_line
    }

    /// From the first byte of the start line to the last byte of the body: what is passed on.
    pub fn message(&self) -> Span {
        self.message
    }

    /// Where the first header line begins.
    pub fn start_line_end(&self) -> usize {
        self.start_line_end as usize
    }

    /// Where the empty line that ends the header section begins.
    pub fn headers_end(&self) -> usize {
        self.headers_end as usize
    }

    /// The body: what follows that empty line, as far as Content-Length says.
    pub fn body(&self) -> Span {
        Span { start: self.body_start.min(self.message.end), end: self.message.end }
    }

    /// The lines that routing reads, in order.
    pub fn headers(&self) -> &[HeaderLine] {
        &self.headers
    }

    /// The first line of a name.
    pub fn first(&self, name: HeaderName) -> Option<&HeaderLine> {
        let index = usize::from(self.first[name as usize]);
        self.headers.get(index.wrapping_sub(1))
    }

    /// All lines of a name, in order.
    pub fn all(&self, name: HeaderName) -> impl Iterator<Item = &HeaderLine> {
        let from = match self.first[name as usize] {
            0 => self.headers.len(),
            n => usize::from(n) - 1,
        };
        self.headers[from..].iter().filter(move |h| h.name == name)
    }

    /// How many lines of a name there are.
    pub fn count(&self, name: HeaderName) -> usize {
        usize::from(self.count[name as usize])
    }

    fn scan_headers(&mut self, bytes: &[u8], from: usize, mut has_bare_cr: bool) -> Result<(), ScanError> {
        let mut at = from;
        let mut lines = 0;
        let mut broken = Ok(());
        loop {
            let rest = &bytes[at..];
            if matches!(rest, [] | [b'\n', ..] | [b'\r', b'\n', ..]) {
                self.headers_end = at as u32;
                if has_bare_cr {
                    return Err(ScanError::HeaderLine);
                }
                return if rest.is_empty() { broken.and(Err(ScanError::Unterminated)) } else { broken };
            }
            lines += 1;
            if lines > self.headers_max {
                self.headers_end = at as u32;
                return Err(ScanError::TooManyHeaders);
            }
            // One search finds the end of the name, or that there is none in this line.
            let colon = match find_colon_or_line_feed(rest) {
                Some(i) if rest[i] == b':' && i > 0 && !matches!(rest[0], b' ' | b'\t') => Some(at + i),
                _ => None,
            };
            let mut next = line_end(bytes, at, &mut has_bare_cr);
            while matches!(bytes.get(next), Some(b' ' | b'\t')) {
                next = line_end(bytes, next, &mut has_bare_cr);
            }
            match colon {
                Some(colon) => self.scan_header(bytes, at, colon, next),
                None => broken = Err(ScanError::HeaderLine),
            }
            at = next;
        }
    }

    //= rfc3261#section-7.3.1 spelling
    //# Names are read in any case, compact or long, with white space before the colon, and folded.
    /// Notes the header line `at..next` whose name ends before `colon`, if routing reads it.
    #[inline]
    fn scan_header(&mut self, bytes: &[u8], at: usize, colon: usize, next: usize) {
        let mut name_end = colon;
        while name_end > at && matches!(bytes[name_end - 1], b' ' | b'\t') {
            name_end -= 1;
        }
        let Some(name) = header_name(&bytes[at..name_end]) else { return };
        let (mut start, mut end) = (colon + 1, next);
        while start < end && is_white(bytes[start]) {
            start += 1;
        }
        while end > start && is_white(bytes[end - 1]) {
            end -= 1;
        }
        self.headers.push(HeaderLine { name, line: Span::new(at, next), value: Span::new(start, end) });
        self.count[name as usize] += 1;
        let first = &mut self.first[name as usize];
        if *first == 0 {
            *first = self.headers.len() as u16;
        }
    }

    //= rfc3261#section-18.3 excess
    //# Bytes behind the body are dropped; without Content-Length the body ends with the datagram.
    /// Ends the message where Content-Length says: RFC 3261 18.3 for datagrams.
    fn cut_body(&mut self, bytes: &[u8]) -> Result<(), ScanError> {
        let body = match bytes[self.headers_end as usize..] {
            [b'\r', b'\n', ..] => self.headers_end as usize + 2,
            _ => self.headers_end as usize + 1,
        };
        self.body_start = body as u32;
        let mut length = None;
        for header in self.all(HeaderName::ContentLength) {
            let value = decode_length(header.value.of(bytes)).ok_or(ScanError::ContentLength)?;
            if length.is_some_and(|seen| seen != value) {
                return Err(ScanError::ContentLength);
            }
            length = Some(value);
        }
        if let Some(length) = length {
            //= rfc3261#section-18.3 short
            //# A body shorter than Content-Length: 400 for a request, a response is discarded.
            if length > bytes.len() - body {
                return Err(ScanError::ContentLength);
            }
            self.message.end = (body + length) as u32;
        }
        Ok(())
    }
}

/// What a Request-URI may hold as far as the scan can tell: no control bytes, no white space, and nothing with which it
/// could leave the brackets around it where a strict router makes it a Route value (RFC 3261 16.6 item 6). No URI has
/// any of these unescaped (RFC 3261 25.1).
static URI: Class = Class::above(b' ').without(b"<>\"");

/// Can `text` stand as the Request-URI of a request line?
pub fn is_request_uri(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|b| URI.has(*b))
}

/// The first colon or line feed.
///
/// Names are short, so eight bytes at a time beat the call of a vectorised search: a byte of `word ^ pattern` is zero
/// where the pattern's byte stands, and `(x - 0x01..) & !x & 0x80..` has the top bit of the lowest zero byte set
/// (Mycroft 1987); bits above it may be wrong, the lowest never is.
#[inline]
fn find_colon_or_line_feed(text: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([0x01; 8]);
    const TOPS: u64 = u64::from_ne_bytes([0x80; 8]);
    let zeros = |x: u64| x.wrapping_sub(ONES) & !x & TOPS;
    for (i, chunk) in text.chunks_exact(8).take(4).enumerate() {
        let word = u64::from_le_bytes(chunk.try_into().unwrap_or_default());
        let hits = zeros(word ^ (ONES * 0x3A)) | zeros(word ^ (ONES * 0x0A));
        if hits != 0 {
            return Some(i * 8 + hits.trailing_zeros() as usize / 8);
        }
    }
    let done = (text.len() / 8).min(4) * 8;
    memchr2(b':', b'\n', &text[done..]).map(|i| done + i)
}

/// One past the end of the line that `from` stands in. A CR that ends no line is one to other readers: what it hides
/// would be a header to them, so it is reported.
#[inline]
fn line_end(bytes: &[u8], from: usize, has_bare_cr: &mut bool) -> usize {
    let mut at = from;
    while let Some(i) = memchr2(b'\r', b'\n', &bytes[at..]) {
        at += i + 1;
        if bytes[at - 1] == b'\n' {
            return at;
        }
        if bytes.get(at) == Some(&b'\n') {
            return at + 1;
        }
        *has_bare_cr = true;
    }
    bytes.len()
}

/// The white space of SIP, line ends of folds included; no other control character is any (RFC 3261 25.1 LWS).
const fn is_white(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

fn scan_start_line(bytes: &[u8], start: usize, end: usize) -> Result<StartLine, ScanError> {
    let line = match &bytes[start..end] {
        [line @ .., b'\r', b'\n'] | [line @ .., b'\n'] | line => line,
    };
    if line.len() >= 8 && line[..4].eq_ignore_ascii_case(b"SIP/") {
        return scan_status_line(line);
    }
    let method = memchr(b' ', line).ok_or(ScanError::StartLine)?;
    let version = memchr::memrchr(b' ', line).ok_or(ScanError::StartLine)?;
    let uri = line.get(method + 1..version).ok_or(ScanError::StartLine)?;
    if method == 0 || !line[..method].iter().all(|b| TOKEN.has(*b)) {
        return Err(ScanError::StartLine);
    }
    if !is_request_uri(uri) {
        return Err(ScanError::StartLine);
    }
    match &line[version + 1..] {
        v if v.eq_ignore_ascii_case(b"SIP/2.0") => Ok(StartLine::Request {
            method: Span::new(start, start + method),
            uri: Span::new(start + method + 1, start + version),
        }),
        //= rfc3261#section-21.5.6 version
        //# Another SIP version gets 505.
        v if v.len() > 4 && v[..4].eq_ignore_ascii_case(b"SIP/") => Err(ScanError::Version),
        _ => Err(ScanError::StartLine),
    }
}

fn scan_status_line(line: &[u8]) -> Result<StartLine, ScanError> {
    let rest = match line.split_at_checked(8) {
        Some((version, rest)) if version.eq_ignore_ascii_case(b"SIP/2.0 ") => rest,
        _ => return Err(ScanError::StartLine),
    };
    let ([a @ b'1'..=b'6', b @ b'0'..=b'9', c @ b'0'..=b'9']
    | [a @ b'1'..=b'6', b @ b'0'..=b'9', c @ b'0'..=b'9', b' ', ..]) = rest
    else {
        return Err(ScanError::StartLine);
    };
    let digit = |d: &u8| u16::from(d - b'0');
    Ok(StartLine::Response { status: digit(a) * 100 + digit(b) * 10 + digit(c) })
}

/// A decimal number; what exceeds every datagram saturates.
fn decode_length(value: &[u8]) -> Option<usize> {
    if value.is_empty() {
        return None;
    }
    let mut length = 0usize;
    for digit in value {
        if !digit.is_ascii_digit() {
            return None;
        }
        length = (length * 10 + usize::from(digit - b'0')).min(usize::MAX / 100);
    }
    Some(length)
}

/// Names by length first: most headers that routing does not read are told apart without a comparison.
#[inline]
fn header_name(name: &[u8]) -> Option<HeaderName> {
    use HeaderName::*;
    let &first = name.first()?;
    let (long, header): (&[u8], HeaderName) = match (name.len(), first | 0x20) {
        (1, b'v') => return Some(Via),
        (1, b'f') => return Some(From),
        (1, b't') => return Some(To),
        (1, b'i') => return Some(CallId),
        (1, b'm') => return Some(Contact),
        (1, b'l') => return Some(ContentLength),
        (2, b't') => (b"To", To),
        (3, b'v') => (b"Via", Via),
        (4, b'f') => (b"From", From),
        (4, b'c') => (b"CSeq", CSeq),
        (5, b'r') => (b"Route", Route),
        (7, b'c') if name[1] | 0x20 == b'a' => (b"Call-ID", CallId),
        (7, b'c') => (b"Contact", Contact),
        (7, b'p') => (b"Privacy", Privacy),
        (12, b'm') => (b"Max-Forwards", MaxForwards),
        (12, b'r') => (b"Record-Route", RecordRoute),
        (13, b'p') => (b"Proxy-Require", ProxyRequire),
        (14, b'c') => (b"Content-Length", ContentLength),
        (19, b'p') => (b"P-Asserted-Identity", AssertedIdentity),
        _ => return None,
    };
    (name == long || name.eq_ignore_ascii_case(long)).then_some(header)
}
