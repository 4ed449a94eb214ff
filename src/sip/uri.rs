//! SIP, SIPS and tel URIs, decoded as far as routing reads them (RFC 3261 19.1, RFC 3966).
//!
//! `sip:user:password@host:port;params?headers`. The user part may contain almost anything, `;` and `?` included,
//! so the `@` decides; an unescaped one can stand only once.
//! Escapes stay escaped: nothing here unescapes, so nothing can be unescaped twice.

use std::net::IpAddr;

use super::cursor::{Class, Cursor, DIGITS, decode_ip, decode_port};
use super::params::find_param;
use crate::base::span::Span;

/// The scheme, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `sip:`
    Sip,
    /// `sips:`
    Sips,
    /// `tel:`
    Tel,
    /// Anything else that is spelled like a scheme: 416 (RFC 3261 16.3 item 2).
    Other,
}

/// A decoded URI; spans into the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uri {
    /// Its scheme.
    pub scheme: Scheme,
    /// The user part, password included; empty when there is none. For `tel:` the number.
    pub user: Span,
    /// Name, IPv4 address or IPv6 address in brackets; empty unless the scheme is `sip` or `sips`.
    pub host: Span,
    /// The port, when written.
    pub port: Option<u16>,
    /// `;a=b;c` including the first semicolon; may be empty.
    pub params: Span,
    /// Does `?name=value` follow?
    pub has_headers: bool,
}

/// The URI is malformed where routing must read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UriError;

impl Uri {
    /// Decodes the URI that fills `span`.
    ///
    /// # Errors
    ///
    /// No scheme, no host, or a port that is none.
    pub fn decode(bytes: &[u8], span: Span) -> Result<Uri, UriError> {
        let text = span.of(bytes);
        let base = span.start as usize;
        let colon = text.iter().take(64).position(|b| *b == b':').ok_or(UriError)?;
        let scheme = match &text[..colon] {
            s if s.eq_ignore_ascii_case(b"sip") => Scheme::Sip,
            s if s.eq_ignore_ascii_case(b"sips") => Scheme::Sips,
            s if s.eq_ignore_ascii_case(b"tel") => Scheme::Tel,
            s if is_scheme(s) => Scheme::Other,
            _ => return Err(UriError),
        };
        let after = colon + 1;
        let empty = Span::new(base + after, base + after);
        if matches!(scheme, Scheme::Tel | Scheme::Other) {
            let end = text[after..].iter().position(|b| *b == b';').map_or(text.len(), |i| after + i);
            let user = Span::new(base + after, base + end);
            let params = Span::new(base + end, base + text.len());
            return Ok(Uri { scheme, user, host: empty, port: None, params, has_headers: false });
        }
        let at_sign = memchr::memchr(b'@', &text[after..]).map(|i| after + i);
        let user = at_sign.map_or(empty, |at| Span::new(base + after, base + at));
        let host_start = at_sign.map_or(after, |at| at + 1);
        Self::decode_host_part(bytes, scheme, user, Span::new(base + host_start, base + text.len()))
    }

    fn decode_host_part(bytes: &[u8], scheme: Scheme, user: Span, rest: Span) -> Result<Uri, UriError> {
        let mut cursor = Cursor::new(bytes, rest);
        let (host, port) = decode_host_port(&mut cursor).ok_or(UriError)?;
        let params = cursor.take_until(b'?');
        match bytes.get(params.start as usize) {
            Some(b';') if !params.is_empty() => {}
            _ if params.is_empty() => {}
            _ => return Err(UriError),
        }
        if host.of(bytes).iter().any(|b| !HOST.has(*b)) {
            return Err(UriError);
        }
        let has_headers = cursor.peek().is_some();
        Ok(Uri { scheme, user, host, port: port.map_err(|_| UriError)?, params, has_headers })
    }

    /// The host as an address; `None` for a name.
    pub fn ip(&self, bytes: &[u8]) -> Option<IpAddr> {
        decode_ip(self.host.of(bytes))
    }

    /// The value of a URI parameter: outer `None` when absent, inner `None` without a value.
    pub fn param<'a>(&self, bytes: &'a [u8], name: &[u8]) -> Option<Option<&'a [u8]>> {
        find_param(bytes, self.params, name).map(|p| p.value.map(|v| v.of(bytes)))
    }
}

fn is_scheme(text: &[u8]) -> bool {
    text.first().is_some_and(u8::is_ascii_alphabetic)
        && text.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
}

/// What a name or an address is made of.
static HOST: Class = Class::alphanumeric_and(b"-._:[]");

/// What cannot be in a host: it ends there.
static HOST_END: Class = Class::but(b":;,?> \t\r\n");

/// A port that is not a number from 1 to 65,535.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PortError;

/// `host[:port]`, shared with Via's sent-by; `None` when there is no host. White space may surround the colon.
pub(crate) fn decode_host_port(cursor: &mut Cursor<'_>) -> Option<(Span, Result<Option<u16>, PortError>)> {
    let host = if cursor.peek() == Some(b'[') {
        let open = cursor.take_until(b']');
        if !cursor.eat(b']') {
            return None;
        }
        Span { start: open.start, end: open.end + 1 }
    } else {
        cursor.take(&HOST_END)
    };
    if host.is_empty() {
        return None;
    }
    let mut after = cursor.clone();
    after.skip_white();
    if !after.eat(b':') {
        return Some((host, Ok(None)));
    }
    after.skip_white();
    let digits = after.take(&DIGITS);
    let port = decode_port(after.bytes_of(digits)).ok_or(PortError).map(Some);
    *cursor = after;
    Some((host, port))
}
