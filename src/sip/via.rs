//! One Via value: the way back of a response (RFC 3261 20.42, 18.2; RFC 3581 for `rport`).
//!
//! `SIP/2.0/UDP host:port;branch=z9hG4bK...;received=...;rport, SIP/2.0/...`: the decoder reads the first value of a
//! line and says where it ends, so that the next one in the same line can be read, or the first one cut out.

use std::net::IpAddr;

use super::cursor::{Class, Cursor, TOKEN, decode_ip, decode_port};
use super::params::next_param;
use super::uri::decode_host_port;
use crate::base::span::Span;

/// The default port where sent-by names none.
pub const DEFAULT_PORT: u16 = 5060;

/// The default port of SIP over TLS.
pub const TLS_PORT: u16 = 5061;

/// The start of every branch made by an RFC 3261 element (RFC 3261 8.1.1.7).
pub const MAGIC_COOKIE: &[u8] = b"z9hG4bK";

/// The Via parameter in which a request's connection stands, signed; see `route/cookie.rs`.
pub const FLOW_PARAM: &str = "fl";

static VERSION_PART: Class = Class::but(b"/ \t\r\n");

/// The `rport` parameter (RFC 3581).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rport {
    /// Not there: answer to the sent-by port.
    Absent,
    /// `;rport` (or `;rport=`): the client asks for its source port; the span is the whole parameter.
    Asked(Span),
    /// `;rport=N`: a server filled it in; the span is the whole parameter.
    Filled(u16, Span),
}

/// A decoded Via value; spans into the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Via {
    /// The value from its first to its last byte, without white space around it.
    pub value: Span,
    /// The SIP version.
    pub version: Span,
    /// `UDP`, `TCP`, `TLS` ... as written.
    pub transport: Span,
    /// Host of sent-by, brackets included.
    pub host: Span,
    /// Port of sent-by, when written.
    pub port: Option<u16>,
    /// Value of `branch`.
    pub branch: Option<Span>,
    /// The whole `;received=` parameter and its value.
    pub received: Option<(Span, Span)>,
    /// `rport`.
    pub rport: Rport,
    /// Value of [`FLOW_PARAM`]: in our own Via, the connection that the request came on.
    pub flow: Option<Span>,
    /// Does it ask that its connection be used the other way round too (RFC 5923)?
    pub has_alias: bool,
    /// Where the next value of the same line begins, if a comma follows.
    pub next: Option<u32>,
}

/// The Via is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViaError;

impl Via {
    /// Decodes the first value in `span`.
    ///
    /// # Errors
    ///
    /// When it is not `SIP/2.0/transport host[:port]` followed by parameters and a comma or the end, or says twice
    /// where its response goes (RFC 3261 7.3.1 allows each parameter once).
    pub fn decode(bytes: &[u8], span: Span) -> Result<Via, ViaError> {
        let via = Self::decode_any_version(bytes, span)?;
        if via.version.of(bytes) == b"2.0" { Ok(via) } else { Err(ViaError) }
    }

    /// As [`Via::decode`], but whatever the version: enough to say 505 to its sender.
    ///
    /// # Errors
    ///
    /// As [`Via::decode`].
    pub fn decode_any_version(bytes: &[u8], span: Span) -> Result<Via, ViaError> {
        let mut cursor = Cursor::new(bytes, span);
        cursor.skip_white();
        let start = cursor.at();
        // What nearly every Via begins with needs no walk.
        let text = &bytes[start..(span.end as usize).min(bytes.len()).max(start)];
        if text.starts_with(b"SIP/2.0/UDP ") {
            let mut rest = Cursor::new(bytes, Span { start: start as u32 + 12, ..span });
            rest.skip_white();
            return Self::decode_sent_by(
                bytes,
                start,
                Span::new(start + 4, start + 7),
                Span::new(start + 8, start + 11),
                rest,
            );
        }
        let mut version = Span::default();
        for is_named in [|name: &[u8]| name.eq_ignore_ascii_case(b"SIP"), |version: &[u8]| !version.is_empty()] {
            version = cursor.take(&VERSION_PART);
            if !is_named(version.of(bytes)) {
                return Err(ViaError);
            }
            cursor.skip_white();
            if !cursor.eat(b'/') {
                return Err(ViaError);
            }
            cursor.skip_white();
        }
        let transport = cursor.take(&TOKEN);
        let gap = cursor.at();
        cursor.skip_white();
        if transport.is_empty() || cursor.at() == gap {
            return Err(ViaError);
        }
        Self::decode_sent_by(bytes, start, version, transport, cursor)
    }

    fn decode_sent_by(
        bytes: &[u8],
        start: usize,
        version: Span,
        transport: Span,
        mut cursor: Cursor<'_>,
    ) -> Result<Via, ViaError> {
        let (host, port) = decode_host_port(&mut cursor).ok_or(ViaError)?;
        let port = port.map_err(|_| ViaError)?;
        let mut via = Via {
            value: Span::new(start, cursor.at()),
            version,
            transport,
            host,
            port,
            branch: None,
            received: None,
            rport: Rport::Absent,
            flow: None,
            has_alias: false,
            next: None,
        };
        via.decode_params(bytes, &mut cursor)?;
        Ok(via)
    }

    fn decode_params(&mut self, bytes: &[u8], cursor: &mut Cursor<'_>) -> Result<(), ViaError> {
        while let Some(param) = next_param(cursor) {
            let name = param.name.of(bytes);
            self.value.end = param.whole.end;
            if name.eq_ignore_ascii_case(b"branch") {
                if self.branch.is_some() {
                    return Err(ViaError);
                }
                self.branch = param.value;
            } else if name.eq_ignore_ascii_case(b"received") {
                let value = param.value.ok_or(ViaError)?;
                if self.received.replace((param.whole, value)).is_some() {
                    return Err(ViaError);
                }
            } else if name.eq_ignore_ascii_case(b"rport") {
                if self.rport != Rport::Absent {
                    return Err(ViaError);
                }
                self.rport = match param.value.filter(|v| !v.is_empty()) {
                    None => Rport::Asked(param.whole),
                    Some(value) => Rport::Filled(decode_port(value.of(bytes)).ok_or(ViaError)?, param.whole),
                };
            } else if name == FLOW_PARAM.as_bytes() {
                self.flow = param.value;
            } else if name.eq_ignore_ascii_case(b"alias") {
                self.has_alias = true;
            }
        }
        cursor.skip_white();
        match cursor.peek() {
            None => Ok(()),
            Some(b',') => {
                cursor.eat(b',');
                cursor.skip_white();
                self.next = Some(cursor.at() as u32);
                Ok(())
            }
            Some(_) => Err(ViaError),
        }
    }

    /// Host of sent-by as an address; `None` for a name.
    pub fn ip(&self, bytes: &[u8]) -> Option<IpAddr> {
        decode_ip(self.host.of(bytes))
    }

    /// The port of sent-by, or the default of its transport where none is written (RFC 3261 18.2.2).
    pub fn port_of_transport(&self, bytes: &[u8]) -> u16 {
        let is_tls = self.transport.of(bytes).eq_ignore_ascii_case(b"TLS");
        self.port.unwrap_or(if is_tls { TLS_PORT } else { DEFAULT_PORT })
    }

    /// The port of sent-by, 5060 where none is written.
    pub fn port_or_default(&self) -> u16 {
        self.port.unwrap_or(DEFAULT_PORT)
    }

    /// The address in `received`, if it is one.
    pub fn received_ip(&self, bytes: &[u8]) -> Option<IpAddr> {
        self.received.and_then(|(_, value)| decode_ip(value.of(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(text: &str) -> Result<Via, ViaError> {
        Via::decode(text.as_bytes(), Span::new(0, text.len()))
    }

    #[test]
    fn the_first_of_a_list_is_read_and_the_rest_is_found() {
        let text = "SIP / 2.0 / UDP  first.example.com : 4000;ttl=16;maddr=224.2.0.1 ;branch=z9hG4bKa7c6a8dlze.1, SIP/2.0/TCP b";
        let via = decode(text).unwrap();
        assert_eq!(via.host.of(text.as_bytes()), b"first.example.com");
        assert_eq!(via.port, Some(4000));
        assert_eq!(via.branch.unwrap().of(text.as_bytes()), b"z9hG4bKa7c6a8dlze.1");
        assert!(via.value.of(text.as_bytes()).ends_with(b"dlze.1"));
        let rest = Via::decode(text.as_bytes(), Span::new(via.next.unwrap() as usize, text.len())).unwrap();
        assert_eq!(rest.transport.of(text.as_bytes()), b"TCP");
        assert_eq!(rest.port_or_default(), 5060);
    }

    #[test]
    fn ipv6_and_rport_are_understood() {
        let text = "SIP/2.0/UDP [2001:db8::9:1];received=2001:db8::9:255;rport=5061;branch=z9hG4bKas3-111";
        let via = decode(text).unwrap();
        assert_eq!(via.ip(text.as_bytes()), Some("2001:db8::9:1".parse().unwrap()));
        assert_eq!(via.received_ip(text.as_bytes()), Some("2001:db8::9:255".parse().unwrap()));
        assert!(matches!(via.rport, Rport::Filled(5061, _)));
        assert!(matches!(decode("SIP/2.0/UDP a;rport;branch=1").unwrap().rport, Rport::Asked(_)));
    }

    #[test]
    fn what_is_no_via_is_refused() {
        for bad in [
            "",
            "SIP/2.0",
            "SIP/2.0/UDP",
            "SIP/2.0/UDP ",
            "SIP/7.0/UDP a",
            "SIP/2.0/UDPa",
            "SIP/2.0/UDP a:0",
            "SIP/2.0/UDP a:65536",
            "SIP/2.0/UDP [::1",
            "SIP/2.0/UDP a;branch=\"x",
            "SIP/2.0/UDP a b",
            "SIP/2.0/UDP a;rport=x",
            "SIP/2.0/UDP a;branch=1;Branch=2",
            "SIP/2.0/UDP a;received=192.0.2.1;received=192.0.2.2",
            "SIP/2.0/UDP a;rport;rport=1",
        ] {
            assert!(decode(bad).is_err(), "{bad}");
        }
    }
}
