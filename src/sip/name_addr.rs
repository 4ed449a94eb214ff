//! `"Display name" <uri>;params`, alone or in a comma list: From, To, Contact, Route and Record-Route
//! (RFC 3261 20.10, 25.1).
//!
//! Without angle brackets a semicolon after the URI starts a header parameter (RFC 3261 20), so the URI ends there.

use super::cursor::{Class, Cursor};
use super::params::next_param;
use crate::base::span::Span;

/// A decoded value; spans into the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameAddr {
    /// The value from its first to its last byte, without white space around it.
    pub value: Span,
    /// The URI, without brackets; not decoded.
    pub uri: Span,
    /// Header parameters including the first semicolon; may be empty.
    pub params: Span,
    /// The value of the `tag` parameter (RFC 3261 19.3), unless it is empty.
    pub tag: Option<Span>,
    /// Is a tag empty, or does one stand twice (RFC 3261 7.3.1)? Another reader may see another tag then.
    pub is_tag_doubtful: bool,
    /// Where the next value of the same line begins, if a comma follows.
    pub next: Option<u32>,
}

/// The value is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameAddrError;

impl NameAddr {
    /// Decodes the first value in `span`.
    ///
    /// # Errors
    ///
    /// An unclosed quote or bracket, a URI that is empty or has white space in it, or text after the value that is neither parameter nor comma.
    pub fn decode(bytes: &[u8], span: Span) -> Result<NameAddr, NameAddrError> {
        let mut cursor = Cursor::new(bytes, span);
        cursor.skip_white();
        let start = cursor.at();
        let uri = take_uri(&mut cursor).ok_or(NameAddrError)?;
        if uri.is_empty() {
            return Err(NameAddrError);
        }
        let params_start = cursor.at();
        let mut end = params_start;
        let (mut tag, mut is_tag_doubtful) = (None, false);
        while let Some(param) = next_param(&mut cursor) {
            end = param.whole.end as usize;
            if param.name.of(bytes).eq_ignore_ascii_case(b"tag") {
                let value = param.value.filter(|value| !value.is_empty());
                is_tag_doubtful |= tag.is_some() || value.is_none();
                tag = tag.or(value);
            }
        }
        cursor.skip_white();
        let next = match cursor.peek() {
            None => None,
            Some(b',') => {
                cursor.eat(b',');
                cursor.skip_white();
                Some(cursor.at() as u32)
            }
            Some(_) => return Err(NameAddrError),
        };
        let params = Span::new(params_start, end);
        Ok(NameAddr { value: Span::new(start, end), uri, params, tag, is_tag_doubtful, next })
    }
}

static DISPLAY_NAME: Class = Class::but(b"<,;\"");

static BARE_URI: Class = Class::but(b"<>,;\" \t\r\n");

/// Leaves the cursor behind the URI and its closing bracket.
fn take_uri(cursor: &mut Cursor<'_>) -> Option<Span> {
    if cursor.peek() == Some(b'"') {
        cursor.take_quoted()?;
        cursor.skip_white();
        if cursor.peek() != Some(b'<') {
            return None;
        }
    }
    let mut probe = cursor.clone();
    // A token display name cannot contain these, a bare URI cannot contain `<`.
    probe.take(&DISPLAY_NAME);
    if probe.eat(b'<') {
        let uri = probe.take_until(b'>');
        if !probe.eat(b'>') || probe.bytes_of(uri).iter().any(|b| *b <= b' ') {
            return None;
        }
        *cursor = probe;
        return Some(uri);
    }
    Some(cursor.take(&BARE_URI))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(text: &str) -> Option<(&str, &str, Option<&str>)> {
        let bytes = text.as_bytes();
        let it = NameAddr::decode(bytes, Span::new(0, bytes.len())).ok()?;
        let str = |s: Span| std::str::from_utf8(s.of(bytes)).unwrap();
        Some((str(it.uri), str(it.params), it.tag.map(str)))
    }

    #[test]
    fn every_shape_of_the_grammar_is_read() {
        assert_eq!(decode("<sip:a@b;x=y>;tag=1"), Some(("sip:a@b;x=y", ";tag=1", Some("1"))));
        assert_eq!(decode("sip:a@b;tag=1"), Some(("sip:a@b", ";tag=1", Some("1"))));
        assert_eq!(decode("A b <sip:a@b> ; Tag = 1"), Some(("sip:a@b", " ; Tag = 1", Some("1"))));
        assert_eq!(decode("\"a \\\" <x>, ;\" <sip:a@b>"), Some(("sip:a@b", "", None)));
        assert_eq!(decode("tel:+1-201;tag=q"), Some(("tel:+1-201", ";tag=q", Some("q"))));
    }

    #[test]
    fn a_list_is_walked_value_by_value() {
        let text = b"<sip:a;lr>,\r\n <sip:b;lr>;x";
        let first = NameAddr::decode(text, Span::new(0, text.len())).unwrap();
        let second = NameAddr::decode(text, Span::new(first.next.unwrap() as usize, text.len())).unwrap();
        assert_eq!(second.uri.of(text), b"sip:b;lr");
        assert_eq!(second.next, None);
    }

    #[test]
    fn broken_values_are_refused() {
        for bad in
            ["", "\"open <sip:a>", "<sip:a", "\"x\" sip:a", "<sip:a> y", "<>", "a <sip:b> c", "< sip:a >", "<sip:a b>"]
        {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }
}
