//! A request, decoded as far as a decision needs it, and checked as RFC 3261 16.3 asks before it is forwarded.
//!
//! What a proxy does not need it does not read: a malformed Date or Contact passes (16.3 item 1). What it does need
//! must be there once and be readable, or the request is refused with 400.

use crate::base::span::Span;
use crate::metrics::Reason;
use crate::sip::cseq::CSeq;
use crate::sip::method::Method;
use crate::sip::name_addr::NameAddr;
use crate::sip::scan::{HeaderName, Scan};
use crate::sip::uri::{Scheme, Uri};
use crate::sip::via::Via;

/// A decoded request; spans into its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The datagram.
    pub bytes: &'a [u8],
    /// Where its headers are.
    pub scan: &'a Scan,
    /// Its method.
    pub method: Method,
    /// The Request-URI.
    pub uri: Uri,
    /// Where it stands.
    pub uri_span: Span,
    /// The topmost Via.
    pub via: Via,
    /// The From tag; empty if there is none (RFC 2543 clients).
    pub from_tag: Span,
    /// The To tag, in a dialog.
    pub to_tag: Option<Span>,
    /// The URI in To.
    pub to_uri: Span,
    /// The Call-ID.
    pub call_id: Span,
    /// The CSeq number.
    pub cseq: u32,
    /// Max-Forwards and where its digits stand.
    pub max_forwards: Option<(u8, Span)>,
}

impl<'a> Request<'a> {
    //= rfc3261#section-16.3 unknown
    //# Unknown methods, header fields and parts that a proxy does not need are no reason to refuse.
    /// Decodes the headers that every decision needs.
    ///
    /// # Errors
    ///
    /// The reason for a 400 or, for [`Reason::UnknownScheme`], a 416.
    pub fn decode(bytes: &'a [u8], scan: &'a Scan, method: Span, uri_span: Span) -> Result<Self, Reason> {
        //= rfc3261#section-16.3 needed
        //# What a proxy needs stands there once and can be read, or the request gets 400.
        let once = |name| match (scan.first(name), scan.count(name)) {
            (Some(header), 1) => Ok(header.value),
            _ => Err(Reason::MissingHeader),
        };
        let via = scan.first(HeaderName::Via).ok_or(Reason::MissingHeader)?.value;
        let via = Via::decode(bytes, via).map_err(|_| Reason::MalformedVia)?;
        let call_id = once(HeaderName::CallId)?;
        if call_id.is_empty() {
            return Err(Reason::MissingHeader);
        }
        let from = NameAddr::decode(bytes, once(HeaderName::From)?).map_err(|_| Reason::MalformedFromTo)?;
        let to = NameAddr::decode(bytes, once(HeaderName::To)?).map_err(|_| Reason::MalformedFromTo)?;
        if from.is_tag_doubtful || to.is_tag_doubtful {
            return Err(Reason::MalformedFromTo);
        }
        let cseq = CSeq::decode(bytes, once(HeaderName::CSeq)?).map_err(|_| Reason::MalformedCSeq)?;
        if cseq.method.of(bytes) != method.of(bytes) {
            return Err(Reason::MalformedCSeq);
        }
        let uri = Uri::decode(bytes, uri_span).map_err(|_| Reason::MalformedUri)?;
        // Headers have no place in a Request-URI (RFC 3261 19.1.1): passed on, they become real ones somewhere.
        if uri.has_headers && matches!(uri.scheme, Scheme::Sip | Scheme::Sips) {
            return Err(Reason::MalformedUri);
        }
        let max_forwards = decode_max_forwards(bytes, scan)?;
        //= rfc3261#section-16.3 uri-scheme
        //# A Request-URI of a scheme that is not understood gets 416.
        if uri.scheme == Scheme::Other {
            return Err(Reason::UnknownScheme);
        }
        Ok(Request {
            bytes,
            scan,
            method: Method::decode(method.of(bytes)),
            uri,
            uri_span,
            via,
            from_tag: from.tag.unwrap_or_default(),
            to_tag: to.tag,
            to_uri: to.uri,
            call_id,
            cseq: cseq.number,
            max_forwards,
        })
    }

    /// The bytes of a span.
    pub fn text(&self, span: Span) -> &'a [u8] {
        span.of(self.bytes)
    }

    /// Is it sent within a dialog?
    pub fn is_in_dialog(&self) -> bool {
        self.to_tag.is_some()
    }
}

//= rfc3261#section-20.22 range
//# Max-Forwards is a number from 0 to 255.
/// RFC 3261 20.22: 0 to 255; leading zeros happen.
fn decode_max_forwards(bytes: &[u8], scan: &Scan) -> Result<Option<(u8, Span)>, Reason> {
    let Some(header) = scan.first(HeaderName::MaxForwards) else { return Ok(None) };
    let digits = header.value.of(bytes);
    if scan.count(HeaderName::MaxForwards) > 1 || digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Reason::MalformedMaxForwards);
    }
    let value = digits.iter().fold(0u32, |n, d| (n * 10 + u32::from(d - b'0')).min(256));
    match u8::try_from(value) {
        Ok(value) => Ok(Some((value, header.value))),
        Err(_) => Err(Reason::MalformedMaxForwards),
    }
}
