//! Walks one header value byte by byte, for the decoders: white space and folding in one place.
//!
//! Invariant: `at <= end <= bytes.len()`; every step checks, none panics, and none goes back, so a decoder built of
//! them is linear in the value.

use std::net::{IpAddr, Ipv4Addr};

use crate::base::span::Span;

/// A set of bytes, as a table: one load a byte however many bytes are in it.
pub(crate) struct Class([bool; 256]);

impl Class {
    /// The bytes in `bytes`.
    pub(crate) const fn of(bytes: &[u8]) -> Class {
        let mut table = [false; 256];
        let mut i = 0;
        while i < bytes.len() {
            table[bytes[i] as usize] = true;
            i += 1;
        }
        Class(table)
    }

    /// All bytes but those in `bytes`.
    pub(crate) const fn but(bytes: &[u8]) -> Class {
        let Class(mut table) = Class::of(bytes);
        let mut i = 0;
        while i < 256 {
            table[i] = !table[i];
            i += 1;
        }
        Class(table)
    }

    /// All bytes greater than `byte`.
    pub(crate) const fn above(byte: u8) -> Class {
        let mut table = [false; 256];
        let mut i = byte as usize + 1;
        while i < 256 {
            table[i] = true;
            i += 1;
        }
        Class(table)
    }

    /// These but the bytes in `bytes`.
    pub(crate) const fn without(self, bytes: &[u8]) -> Class {
        let Class(mut table) = self;
        let mut i = 0;
        while i < bytes.len() {
            table[bytes[i] as usize] = false;
            i += 1;
        }
        Class(table)
    }

    /// Letters, digits and the bytes in `bytes`.
    pub(crate) const fn alphanumeric_and(bytes: &[u8]) -> Class {
        let Class(mut table) = Class::of(bytes);
        let mut i = 0u8;
        while i < 128 {
            table[i as usize] |= i.is_ascii_alphanumeric();
            i += 1;
        }
        Class(table)
    }

    /// Is it in?
    #[inline]
    pub(crate) const fn has(&self, byte: u8) -> bool {
        self.0[byte as usize]
    }
}

/// `token` of RFC 3261 25.1.
pub(crate) static TOKEN: Class = Class::alphanumeric_and(b"-.!%*_+`'~");

/// Decimal digits.
pub(crate) static DIGITS: Class = Class::of(b"0123456789");

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

    /// Takes bytes while they are of `class` and returns where they are.
    #[inline]
    pub(crate) fn take(&mut self, class: &Class) -> Span {
        let start = self.at;
        let rest = &self.bytes[start..];
        self.at += rest.iter().position(|byte| !class.has(*byte)).unwrap_or(rest.len());
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

//= rfc5118#section-4.9 mapped
//# An IPv4-mapped IPv6 address is the IPv4 host that it names.
/// `host` as an address, brackets allowed around IPv6 (RFC 3261 25.1, RFC 5118 4.1); `None` for a name.
///
/// An IPv4-mapped address is the IPv4 host that it names (RFC 5118 4.9), so that no check on IPv4 can be passed in its
/// disguise.
pub(crate) fn decode_ip(host: &[u8]) -> Option<IpAddr> {
    let text = match host {
        [b'[', inner @ .., b']'] => inner,
        plain => plain,
    };
    if !matches!(text.first()?, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F' | b':') || text.len() > 45 {
        return None;
    }
    if host.len() <= 15 && host[0] != b'[' && !host.contains(&b':') {
        return decode_ipv4(host).map(IpAddr::V4);
    }
    let ip: IpAddr = std::str::from_utf8(text).ok()?.parse().ok()?;
    Some(ip.to_canonical())
}

/// Four decimal numbers up to 255 without leading zeros, as the standard library reads them, without its detours.
fn decode_ipv4(text: &[u8]) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let mut parts = text.split(|byte| *byte == b'.');
    for octet in &mut octets {
        *octet = match *parts.next()? {
            [a @ b'0'..=b'9'] => a - b'0',
            [a @ b'1'..=b'9', b @ b'0'..=b'9'] => (a - b'0') * 10 + b - b'0',
            [a @ b'1'..=b'2', b @ b'0'..=b'9', c @ b'0'..=b'9'] => {
                u8::try_from(u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0')).ok()?
            }
            _ => return None,
        };
    }
    parts.next().is_none().then_some(Ipv4Addr::from(octets))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ipv4_is_read_as_the_standard_library_reads_it(text in "[0-9.]{1,17}|([0-9]{1,3}[.]){3}[0-9]{1,3}") {
            prop_assert_eq!(decode_ipv4(text.as_bytes()), text.parse().ok());
        }
    }
}
