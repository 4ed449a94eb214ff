//! Walks one header value byte by byte, for the decoders: white space and folding in one place.
//!
//! Invariant: `at <= end <= bytes.len()`; every step checks, none panics, and none goes back, so a decoder built of
//! them is linear in the value.

use crate::base::span::Span;

/// A position inside a span of the message.
#[derive(Clone, Debug)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// At the first byte of `span`.
    pub(crate) fn new(bytes: &'a [u8], span: Span) -> Self {
        let end = (span.end as usize).min(bytes.len());
        Cursor { bytes: &bytes[..end], at: (span.start as usize).min(end) }
    }

    /// The bytes of a span taken earlier.
    pub(crate) fn bytes_of(&self, span: Span) -> &'a [u8] {
        span.of(self.bytes)
    }

    /// Offset of the next byte.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// The next byte.
    #[inline]
    pub(crate) fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    /// Takes the next byte if it is `byte`.
    #[inline]
    pub(crate) fn eat(&mut self, byte: u8) -> bool {
        let hit = self.peek() == Some(byte);
        self.at += usize::from(hit);
        hit
    }

    /// Takes bytes while `take` holds and returns where they are.
    #[inline]
    pub(crate) fn take_while(&mut self, take: impl Fn(u8) -> bool) -> Span {
        let start = self.at;
        while let Some(&byte) = self.bytes.get(self.at) {
            if !take(byte) {
                break;
            }
            self.at += 1;
        }
        Span::new(start, self.at)
    }

    /// Skips spaces, tabs and line folds.
    #[inline]
    pub(crate) fn skip_white(&mut self) {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.peek() {
            self.at += 1;
        }
    }

    /// Takes a quoted string whose opening quote is next, backslash escapes included; `None` when it never ends.
    pub(crate) fn take_quoted(&mut self) -> Option<Span> {
        let start = self.at;
        if !self.eat(b'"') {
            return None;
        }
        loop {
            match self.peek()? {
                b'\\' => self.at += 2,
                b'"' => {
                    self.at += 1;
                    return Some(Span::new(start, self.at));
                }
                _ => self.at += 1,
            }
        }
    }

    /// Takes the rest up to `end` or the end of the span.
    pub(crate) fn take_until(&mut self, end: u8) -> Span {
        let start = self.at;
        let rest = &self.bytes[start..];
        self.at += memchr::memchr(end, rest).unwrap_or(rest.len());
        Span::new(start, self.at)
    }
}

/// A port, 1 to 65,535, decimal, leading zeros allowed.
pub(crate) fn decode_port(digits: &[u8]) -> Option<u16> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let mut port = 0u32;
    for digit in digits {
        port = (port * 10 + u32::from(digit - b'0')).min(65_536);
    }
    u16::try_from(port).ok().filter(|p| *p != 0)
}

/// `host` as an address, brackets allowed around IPv6 (RFC 3261 25.1, RFC 5118 4.1); `None` for a name.
///
/// An IPv4-mapped address is the IPv4 host that it names (RFC 5118 4.9), so that no check on IPv4 can be passed in its
/// disguise.
pub(crate) fn decode_ip(host: &[u8]) -> Option<std::net::IpAddr> {
    let text = match host {
        [b'[', inner @ .., b']'] => inner,
        plain => plain,
    };
    if !matches!(text.first()?, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F' | b':') || text.len() > 45 {
        return None;
    }
    let ip: std::net::IpAddr = std::str::from_utf8(text).ok()?.parse().ok()?;
    Some(ip.to_canonical())
}
