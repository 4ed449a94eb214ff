//! Just enough reading of SIP text for the two ends of the demo.
//!
//! The demo endpoints talk to Tandem alone and must be able to disagree with it, so they do not use its scanner: this
//! is a slow, obvious reader that splits lines and compares names. It answers `None` to whatever it does not
//! understand, never panics, allocates freely, and is on nobody's message path.
//!
//! Left out, since neither end of the demo sends it: folded headers and bodies in anything but the last part.

/// A SIP message as its start line and its header lines; the body is not looked at.
pub(super) struct Message<'a> {
    start: &'a str,
    headers: Vec<(&'a str, &'a str)>,
}

impl<'a> Message<'a> {
    /// Splits a datagram; `None` when it is not UTF-8 text with a start line and `name: value` lines.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Message<'a>> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
        let head = std::str::from_utf8(&bytes[..end]).ok()?;
        let mut lines = head.split("\r\n");
        let start = lines.next().filter(|line| !line.is_empty())?;
        let headers = lines
            .map(|line| line.split_once(':').map(|(name, value)| (name.trim_end(), value.trim())))
            .collect::<Option<Vec<_>>>()?;
        Some(Message { start, headers })
    }

    /// The method of a request; `None` for a response.
    pub(super) fn method(&self) -> Option<&'a str> {
        let (method, rest) = self.start.split_once(' ')?;
        rest.ends_with(" SIP/2.0").then_some(method)
    }

    /// The status code of a response; `None` for a request.
    pub(super) fn status(&self) -> Option<u16> {
        self.start.strip_prefix("SIP/2.0 ")?.get(..3)?.parse().ok()
    }

    /// The value of the first header of that (long) name.
    pub(super) fn header(&self, name: &str) -> Option<&'a str> {
        self.headers(name).next()
    }

    /// The values of all header lines of that (long) name, in order.
    pub(super) fn headers<'m>(&'m self, name: &'m str) -> impl Iterator<Item = &'a str> + 'm {
        self.headers.iter().filter(move |(found, _)| is_name(found, name)).map(|(_, value)| *value)
    }

    /// The method in CSeq, which tells what a response answers.
    pub(super) fn cseq_method(&self) -> Option<&'a str> {
        self.header("CSeq")?.split_whitespace().nth(1)
    }
}

/// Whether a name as written is this header, in its long or its compact form (RFC 3261 7.3.3).
fn is_name(written: &str, name: &str) -> bool {
    let compact = match name {
        "Via" => "v",
        "From" => "f",
        "To" => "t",
        "Call-ID" => "i",
        "Contact" => "m",
        _ => name,
    };
    written.eq_ignore_ascii_case(name) || written.eq_ignore_ascii_case(compact)
}

/// The elements of a comma-separated header value; commas in `<>` and in quotes do not separate.
pub(super) fn elements(value: &str) -> Vec<&str> {
    let (mut found, mut from, mut in_quotes, mut in_brackets) = (Vec::new(), 0, false, false);
    for (at, byte) in value.bytes().enumerate() {
        match byte {
            b'"' if !in_brackets => in_quotes = !in_quotes,
            b'<' if !in_quotes => in_brackets = true,
            b'>' if !in_quotes => in_brackets = false,
            b',' if !in_quotes && !in_brackets => {
                found.push(value[from..at].trim());
                from = at + 1;
            }
            _ => {}
        }
    }
    found.push(value[from..].trim());
    found.retain(|element| !element.is_empty());
    found
}

/// The tag of a From or To value.
pub(super) fn tag(value: &str) -> Option<&str> {
    let params = value.rsplit_once('>').map_or(value, |(_, params)| params);
    params.split(';').skip(1).find_map(|param| param.trim().strip_prefix("tag="))
}

/// The URI of a Contact, Route or Record-Route element: what is in `<>`, or all before the parameters.
pub(super) fn uri(value: &str) -> Option<&str> {
    let uri = match value.split_once('<') {
        Some((_, rest)) => rest.split_once('>')?.0,
        None => value.split(';').next()?,
    };
    let uri = uri.trim();
    (!uri.is_empty()).then_some(uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_and_response_are_told_apart() {
        let request =
            Message::parse(b"INVITE sip:a@b SIP/2.0\r\nv: SIP/2.0/UDP h\r\nCSeq: 1 INVITE\r\n\r\nbody").unwrap();
        assert_eq!(request.method(), Some("INVITE"));
        assert_eq!(request.status(), None);
        assert_eq!(request.header("Via"), Some("SIP/2.0/UDP h"));
        assert_eq!(request.cseq_method(), Some("INVITE"));
        let response = Message::parse(b"SIP/2.0 180 Ringing\r\nVia: x\r\n\r\n").unwrap();
        assert_eq!((response.method(), response.status()), (None, Some(180)));
    }

    #[test]
    fn commas_separate_only_outside_brackets_and_quotes() {
        assert_eq!(elements("<sip:a,b@c;lr>, \"x, y\" <sip:d>;p=1 ,"), ["<sip:a,b@c;lr>", "\"x, y\" <sip:d>;p=1"]);
    }

    #[test]
    fn tag_is_read_after_the_uri_only() {
        assert_eq!(tag("<sip:a@b;tag=no>;x=1;tag=yes"), Some("yes"));
        assert_eq!(tag("<sip:a@b;tag=no>"), None);
        assert_eq!(uri("\"A\" <sip:a@b:1;x>;q=1"), Some("sip:a@b:1;x"));
        assert_eq!(uri("sip:a@b;q=1"), Some("sip:a@b"));
    }

    #[test]
    fn garbage_is_refused_not_fatal() {
        for bytes in [&b""[..], b"\r\n\r\n", b"x", b"\xff\xfe\r\n\r\n", b"SIP/2.0 2\r\nno colon\r\n\r\n"] {
            assert!(Message::parse(bytes).is_none());
        }
        let odd = Message::parse("SIP/2.0 2\u{e9}0 x\r\n\r\n".as_bytes()).unwrap();
        assert_eq!(odd.status(), None);
    }
}
