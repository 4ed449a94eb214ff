//! Just enough SIP for the two ends of a call: where the header lines are, and a cursor to write new ones.
//!
//! The generator and the proxies under test both emit long header names, one value a line and no folding, so this
//! scan looks at the start of each line only; compact names are known too. It borrows and never allocates.
//! It is no parser to expose to strangers: what it does not understand, the generator counts as unexpected.
//!
//! Bound: [`LINES_MAX`] Via and Record-Route lines each. Cost: one memchr per header line.

/// Via or Record-Route lines that are kept of one message; more make the scan fail.
pub const LINES_MAX: usize = 8;

/// Up to [`LINES_MAX`] header lines of one name, each with its line end.
#[derive(Clone, Copy, Default)]
pub struct Lines<'a> {
    lines: [&'a [u8]; LINES_MAX],
    len: usize,
}

impl<'a> Lines<'a> {
    /// The lines in the order of the message.
    pub fn as_slice(&self) -> &[&'a [u8]] {
        &self.lines[..self.len]
    }

    fn push(&mut self, line: &'a [u8]) -> Option<()> {
        *self.lines.get_mut(self.len)? = line;
        self.len += 1;
        Some(())
    }
}

/// The lines of one message that a user agent needs. Lines include their name and their CRLF; empty when absent.
#[derive(Clone, Copy, Default)]
pub struct Scan<'a> {
    /// Request-Line or Status-Line without its line end.
    pub start: &'a [u8],
    /// Via lines.
    pub via: Lines<'a>,
    /// Record-Route lines.
    pub record_route: Lines<'a>,
    /// From line.
    pub from: &'a [u8],
    /// To line.
    pub to: &'a [u8],
    /// Call-ID line.
    pub call_id: &'a [u8],
    /// CSeq line.
    pub cseq: &'a [u8],
    /// Contact line.
    pub contact: &'a [u8],
    /// What follows the empty line.
    pub body: &'a [u8],
}

/// Finds the lines; `None` when there is no empty line, a mandatory header is missing, or a list is too long.
pub fn scan(message: &[u8]) -> Option<Scan<'_>> {
    let mut found = Scan::default();
    let mut end = memchr::memchr(b'\n', message)? + 1;
    found.start = message[..end].trim_ascii_end();
    loop {
        let rest = &message[end..];
        let line = &rest[..memchr::memchr(b'\n', rest)? + 1];
        end += line.len();
        if line == b"\r\n" || line == b"\n" {
            break;
        }
        match line[0] | 0x20 {
            b'v' if is_named(line, b"via", b'v') => found.via.push(line)?,
            b'r' if is_named(line, b"record-route", 0) => found.record_route.push(line)?,
            b'f' if is_named(line, b"from", b'f') => found.from = line,
            b't' if is_named(line, b"to", b't') => found.to = line,
            b'i' if is_named(line, b"", b'i') => found.call_id = line,
            b'm' if is_named(line, b"", b'm') => found.contact = line,
            b'c' if is_named(line, b"call-id", 0) => found.call_id = line,
            b'c' if is_named(line, b"cseq", 0) => found.cseq = line,
            b'c' if is_named(line, b"contact", 0) => found.contact = line,
            _ => {}
        }
    }
    found.body = &message[end..];
    let is_whole =
        found.via.len > 0 && [found.from, found.to, found.call_id, found.cseq].iter().all(|line| !line.is_empty());
    is_whole.then_some(found)
}

fn is_named(line: &[u8], long: &[u8], compact: u8) -> bool {
    let name = |len: usize| line.get(len) == Some(&b':');
    (!long.is_empty() && name(long.len()) && line[..long.len()].eq_ignore_ascii_case(long))
        || (compact != 0 && line[0] | 0x20 == compact && name(1))
}

impl<'a> Scan<'a> {
    /// The status code of a response, `None` for a request.
    pub fn status(&self) -> Option<u16> {
        let digits = self.start.strip_prefix(b"SIP/2.0 ")?.get(..3)?;
        std::str::from_utf8(digits).ok()?.parse().ok()
    }

    /// The method of a request, or of the request that a response answers (from CSeq).
    pub fn method(&self) -> &'a [u8] {
        value(self.cseq).rsplit(|&byte| byte == b' ').next().unwrap_or_default()
    }
}

/// The value of a header line, without name and surrounding white space.
pub fn value(line: &[u8]) -> &[u8] {
    match memchr::memchr(b':', line) {
        Some(colon) => line[colon + 1..].trim_ascii(),
        None => &[],
    }
}

/// The URI in a Contact line: between the angle brackets, else up to the first parameter.
pub fn contact_uri(line: &[u8]) -> &[u8] {
    let value = value(line);
    if let (Some(open), Some(close)) = (memchr::memchr(b'<', value), memchr::memchr(b'>', value))
        && open < close
    {
        return &value[open + 1..close];
    }
    value.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii()
}

/// Calls `each` with every element of a comma-joined list of name-addrs; commas in quotes and brackets do not part.
pub fn name_addrs<'a>(value: &'a [u8], mut each: impl FnMut(&'a [u8])) {
    let (mut start, mut is_quoted, mut is_bracketed) = (0, false, false);
    for (at, &byte) in value.iter().enumerate() {
        match byte {
            b'"' if !is_bracketed => is_quoted = !is_quoted,
            b'<' if !is_quoted => is_bracketed = true,
            b'>' if !is_quoted => is_bracketed = false,
            b',' if !is_quoted && !is_bracketed => {
                each(value[start..at].trim_ascii());
                start = at + 1;
            }
            _ => {}
        }
    }
    each(value[start..].trim_ascii());
}

/// Whether a To or From line carries a tag.
pub fn has_tag(line: &[u8]) -> bool {
    memchr::memmem::find(line, b";tag=").is_some()
}

/// A cursor over a fixed buffer. Writing past the end is remembered, not done.
pub struct Writer<'a> {
    buffer: &'a mut [u8],
    len: usize,
    is_full: bool,
}

impl<'a> Writer<'a> {
    /// Starts at the beginning of `buffer`.
    pub fn new(buffer: &'a mut [u8]) -> Writer<'a> {
        Writer { buffer, len: 0, is_full: false }
    }

    /// Appends `bytes`.
    pub fn put(&mut self, bytes: &[u8]) -> &mut Self {
        match self.buffer.get_mut(self.len..self.len + bytes.len()) {
            Some(room) => {
                room.copy_from_slice(bytes);
                self.len += bytes.len();
            }
            None => self.is_full = true,
        }
        self
    }

    /// Appends eight hexadecimal digits.
    pub fn put_hex(&mut self, number: u32) -> &mut Self {
        self.put(&hex(number))
    }

    /// How much was written; `None` when something did not fit.
    pub fn finish(self) -> Option<usize> {
        (!self.is_full).then_some(self.len)
    }
}

/// Eight lower-case hexadecimal digits, most significant first.
pub fn hex(number: u32) -> [u8; 8] {
    let mut digits = [0; 8];
    for (at, digit) in digits.iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(number >> (28 - 4 * at)) as usize & 15];
    }
    digits
}

/// The reverse of [`hex`]; `None` unless exactly eight digits.
pub fn parse_hex(digits: &[u8]) -> Option<u32> {
    if digits.len() != 8 {
        return None;
    }
    digits.iter().try_fold(0, |sum, &digit| Some(sum << 4 | char::from(digit).to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &[u8] = b"SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP 1.2.3.4;branch=a\r\nv: SIP/2.0/UDP 5.6.7.8;branch=b\r\n\
        record-route: <sip:p1;lr>, \"a,b\" <sip:p2;lr>\r\nRecord-Route: <sip:p3;x=1,2;lr>\r\nFrom: <sip:a@b>;tag=1\r\n\
        t: <sip:c@d>;tag=2\r\ni: abc@d\r\nCSeq: 7 INVITE\r\nm: \"x\" <sip:e@f:5070;ob>;expires=3\r\n\
        Content-Length: 4\r\n\r\nbody";

    #[test]
    fn lines_are_found_by_long_and_compact_name() {
        let found = scan(ANSWER).expect("whole");
        assert_eq!((found.status(), found.method(), found.body), (Some(200), &b"INVITE"[..], &b"body"[..]));
        assert_eq!((found.via.as_slice().len(), found.record_route.as_slice().len()), (2, 2));
        assert_eq!((value(found.call_id), value(found.to)), (&b"abc@d"[..], &b"<sip:c@d>;tag=2"[..]));
        assert_eq!(contact_uri(found.contact), b"sip:e@f:5070;ob");
        assert!(has_tag(found.to));
    }

    #[test]
    fn record_routes_part_at_outer_commas_only() {
        let found = scan(ANSWER).expect("whole");
        let mut all = Vec::new();
        for line in found.record_route.as_slice() {
            name_addrs(value(line), |one| all.push(String::from_utf8_lossy(one).into_owned()));
        }
        assert_eq!(all, ["<sip:p1;lr>", "\"a,b\" <sip:p2;lr>", "<sip:p3;x=1,2;lr>"]);
    }

    #[test]
    fn every_truncation_is_refused_without_panic() {
        let head = ANSWER.len() - 4;
        for len in 0..head {
            assert!(scan(&ANSWER[..len]).is_none(), "{len}");
        }
    }

    #[test]
    fn writer_refuses_what_does_not_fit() {
        let mut buffer = [0; 10];
        let mut writer = Writer::new(&mut buffer);
        writer.put(b"ab").put_hex(0x1234_abcd);
        assert_eq!(writer.finish(), Some(10));
        assert_eq!(&buffer, b"ab1234abcd");
        let mut writer = Writer::new(&mut buffer);
        writer.put(b"12345678901");
        assert_eq!(writer.finish(), None);
    }

    #[test]
    fn hex_and_back() {
        assert_eq!(parse_hex(&hex(0xdead_beef)), Some(0xdead_beef));
        assert_eq!(parse_hex(b"1234567"), None);
        assert_eq!(parse_hex(b"1234567g"), None);
    }
}
