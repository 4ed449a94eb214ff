//! The slow, obvious twin of the scanner: the oracle of its tests and of its fuzz target.
//!
//! Splits a message into lines, joins folded ones, compares lower-cased names, and keeps everything in vectors. It
//! shares no code with the scanner and uses nothing but the standard library. Read RFC 3261 section 7.3 beside it.

use std::ops::Range;

/// One header, folded lines included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NaiveHeader {
    /// Lower case, the long form of a compact name.
    pub name: String,
    /// From the first byte of the name through the line end.
    pub line: Range<usize>,
    /// The value without white space around it.
    pub value: Range<usize>,
}

/// What the twin finds in a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NaiveMessage {
    /// The start line with its line end.
    pub start_line: Range<usize>,
    /// Every header that has a name, in order.
    pub headers: Vec<NaiveHeader>,
    /// Where the empty line begins; the end of the datagram if there is none.
    pub headers_end: usize,
    /// The body as Content-Length cuts it; empty after an error.
    pub body: Range<usize>,
    /// The name of the scanner's error that this datagram deserves.
    pub error: Option<&'static str>,
}

impl NaiveMessage {
    /// Reads a datagram of at most `headers_max` header lines.
    pub fn read(bytes: &[u8], headers_max: usize) -> NaiveMessage {
        let start = bytes.iter().take_while(|b| **b == b'\r' || **b == b'\n').count();
        let mut lines = Vec::new();
        let mut at = start;
        for line in bytes[start..].split_inclusive(|b| *b == b'\n') {
            lines.push(at..at + line.len());
            at += line.len();
        }
        let mut found = NaiveMessage {
            start_line: start..lines.first().map_or(start, |line| line.end),
            headers: Vec::new(),
            headers_end: bytes.len(),
            body: bytes.len()..bytes.len(),
            error: None,
        };
        if lines.is_empty() {
            found.error = Some("Empty");
            return found;
        }
        let is_end = |line: &Range<usize>| matches!(&bytes[line.clone()], b"\n" | b"\r\n");
        let end_line = lines.iter().position(is_end);
        let section = &lines[1..end_line.unwrap_or(lines.len())];
        if let Some(end_line) = end_line {
            found.headers_end = lines[end_line].start;
        }
        let header_error = found.read_headers(bytes, section, headers_max);
        let start_error = start_line_error(&bytes[found.start_line.clone()]);
        let end_error = end_line.is_none().then_some("Unterminated");
        found.error = start_error.or(header_error).or(end_error);
        if found.error.is_none() {
            let body = lines[end_line.unwrap_or_default()].end;
            match found.body_end(bytes, body) {
                Some(end) => found.body = body..end,
                None => found.error = Some("ContentLength"),
            }
        }
        found
    }

    /// The values of a header in order.
    pub fn values<'a>(&'a self, bytes: &'a [u8], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.headers.iter().filter(move |h| h.name == name).map(|h| &bytes[h.value.clone()])
    }

    fn read_headers(&mut self, bytes: &[u8], lines: &[Range<usize>], headers_max: usize) -> Option<&'static str> {
        let mut folded: Vec<(Range<usize>, usize)> = Vec::new();
        for line in lines {
            match folded.last_mut() {
                Some((whole, _)) if matches!(bytes[line.start], b' ' | b'\t') => whole.end = line.end,
                _ => folded.push((line.clone(), line.end)),
            }
        }
        let is_bare_cr = |i: usize| bytes[i] == b'\r' && bytes.get(i + 1) != Some(&b'\n');
        let section_end = lines.last().map_or(self.start_line.end, |line| line.end);
        let mut error = (self.start_line.start..section_end).any(is_bare_cr).then_some("HeaderLine");
        for (whole, first_end) in folded.iter().take(headers_max) {
            // The colon stands in the first line of a header: only white space may come between name and colon.
            let colon = bytes[whole.start..*first_end].iter().position(|b| *b == b':');
            let name = colon.map(|colon| trim(bytes, whole.start..whole.start + colon, b" \t"));
            match (colon, name) {
                (Some(colon), Some(name)) if !name.is_empty() && name.start == whole.start => {
                    let value = trim(bytes, whole.start + colon + 1..whole.end, b" \t\r\n");
                    let name = long_name(&bytes[name]);
                    self.headers.push(NaiveHeader { name, line: whole.clone(), value });
                }
                _ => error = Some("HeaderLine"),
            }
        }
        if folded.len() > headers_max {
            self.headers_end = folded[headers_max].0.start;
            return Some("TooManyHeaders");
        }
        error
    }

    /// RFC 3261 18.3: all Content-Length values are one number, and that many bytes are there.
    fn body_end(&self, bytes: &[u8], body: usize) -> Option<usize> {
        let values: Vec<&[u8]> = self.values(bytes, "content-length").collect();
        let mut numbers = Vec::new();
        for value in values {
            if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
                return None;
            }
            let digits = std::str::from_utf8(value).ok()?.trim_start_matches('0');
            numbers.push(if digits.is_empty() { 0 } else { digits.parse::<usize>().unwrap_or(usize::MAX) });
        }
        match numbers.first() {
            None => Some(bytes.len()),
            Some(first) if numbers.iter().all(|n| n == first) => body.checked_add(*first).filter(|e| *e <= bytes.len()),
            Some(_) => None,
        }
    }
}

/// The range without the bytes of `white` around it; an all-white range becomes empty at its end.
fn trim(bytes: &[u8], mut range: Range<usize>, white: &[u8]) -> Range<usize> {
    while range.start < range.end && white.contains(&bytes[range.start]) {
        range.start += 1;
    }
    while range.start < range.end && white.contains(&bytes[range.end - 1]) {
        range.end -= 1;
    }
    range
}

fn long_name(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name).to_ascii_lowercase();
    let compact =
        [("v", "via"), ("f", "from"), ("t", "to"), ("i", "call-id"), ("m", "contact"), ("l", "content-length")];
    compact.iter().find(|(short, _)| *short == name).map_or(name.clone(), |(_, long)| (*long).to_owned())
}

fn start_line_error(line: &[u8]) -> Option<&'static str> {
    let text = line.strip_suffix(b"\r\n").or(line.strip_suffix(b"\n")).unwrap_or(line);
    if text.len() >= 8 && text[..4].eq_ignore_ascii_case(b"SIP/") {
        let is_two = text[..8].eq_ignore_ascii_case(b"SIP/2.0 ");
        let status =
            text.get(8..11).and_then(|s| std::str::from_utf8(s).ok()).filter(|s| s.bytes().all(|b| b.is_ascii_digit()));
        let in_range = status.and_then(|s| s.parse::<u16>().ok()).is_some_and(|s| (100..700).contains(&s));
        let ends = text.len() == 11 || text.get(11) == Some(&b' ');
        return (!(is_two && in_range && ends)).then_some("StartLine");
    }
    let parts: Vec<&[u8]> = text.split(|b| *b == b' ').collect();
    let [method, uri, version] = parts[..] else { return Some("StartLine") };
    let is_token = |b: &u8| b.is_ascii_alphanumeric() || b"-.!%*_+`'~".contains(b);
    if method.is_empty() || !method.iter().all(is_token) {
        return Some("StartLine");
    }
    if uri.is_empty() || uri.iter().any(|b| *b < 0x21 || b"<>\"".contains(b)) {
        return Some("StartLine");
    }
    if version.eq_ignore_ascii_case(b"SIP/2.0") {
        return None;
    }
    let is_sip = version.len() > 4 && version[..4].eq_ignore_ascii_case(b"SIP/");
    Some(if is_sip { "Version" } else { "StartLine" })
}
