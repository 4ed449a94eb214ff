//! Comma lists that may also be spread over several lines: Route and Record-Route (RFC 3261 7.3.1).
//!
//! `Route: <a>, <b>` and two Route lines mean the same. The walk yields values in order whatever their spelling, and
//! knows how to plan the removal of values so that a line that loses its last value goes as a whole.

use super::edit::Edit;
use super::name_addr::{NameAddr, NameAddrError};
use super::scan::{HeaderName, Scan};
use crate::base::span::Span;

/// One value and the line it stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value {
    /// The value.
    pub name_addr: NameAddr,
    /// Its whole line.
    pub line: Span,
    /// Is it the first of its line?
    pub is_first_in_line: bool,
    /// Where the value before it in the same line ends.
    pub previous_end: u32,
}

/// Walks all values of `name`; stops after the first malformed one.
pub fn values<'a>(
    bytes: &'a [u8],
    scan: &'a Scan,
    name: HeaderName,
) -> impl Iterator<Item = Result<Value, NameAddrError>> + 'a {
    let mut lines = scan.all(name);
    let mut rest: Option<(Span, Span, u32)> = None;
    let mut is_broken = false;
    std::iter::from_fn(move || {
        if is_broken {
            return None;
        }
        let (line, span, previous_end, is_first_in_line) = match rest.take() {
            Some((line, span, previous_end)) => (line, span, previous_end, false),
            None => lines.next().map(|h| (h.line, h.value, h.value.start, true))?,
        };
        let decoded = NameAddr::decode(bytes, span);
        match &decoded {
            Ok(value) => {
                rest = value.next.map(|next| (line, Span { start: next, end: span.end }, value.value.end));
            }
            Err(_) => is_broken = true,
        }
        Some(decoded.map(|name_addr| Value { name_addr, line, is_first_in_line, previous_end }))
    })
}

/// Plans the removal of values that follow each other from the top.
pub fn remove_all(edit: &mut Edit, first: impl Iterator<Item = Value>) {
    let mut pending: Option<Span> = None;
    for value in first {
        let start = pending.map_or(value.name_addr.value.start, |span| span.start);
        pending = match value.name_addr.next {
            Some(next) => Some(Span { start, end: next }),
            // Its line is used up: the whole line goes.
            None => {
                edit.remove(value.line);
                None
            }
        };
    }
    if let Some(span) = pending {
        edit.remove(span);
    }
}

/// Plans the removal of one value.
pub fn remove(edit: &mut Edit, value: &Value) {
    match (value.is_first_in_line, value.name_addr.next) {
        (true, None) => edit.remove(value.line),
        (false, None) => edit.remove(Span { start: value.previous_end, end: value.name_addr.value.end }),
        (_, Some(next)) => edit.remove(Span { start: value.name_addr.value.start, end: next }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn without_first(lines: &str, count: usize) -> String {
        let text = format!("BYE sip:a SIP/2.0\r\n{lines}X: y\r\n\r\n");
        let mut scan = Scan::with_capacity(20);
        scan.scan(text.as_bytes()).unwrap();
        let mut edit = Edit::default();
        let all: Vec<Value> = values(text.as_bytes(), &scan, HeaderName::Route).map(Result::unwrap).collect();
        remove_all(&mut edit, all.into_iter().take(count));
        let mut out = [0; 500];
        let n = edit.apply(text.as_bytes(), scan.message(), &mut out).unwrap();
        let out = String::from_utf8(out[..n].to_vec()).unwrap();
        out["BYE sip:a SIP/2.0\r\n".len()..out.len() - "X: y\r\n\r\n".len()].to_string()
    }

    #[test]
    fn removal_leaves_no_empty_line_and_no_stray_comma() {
        assert_eq!(without_first("Route: <sip:a>\r\nRoute: <sip:b>\r\n", 1), "Route: <sip:b>\r\n");
        assert_eq!(without_first("Route: <sip:a>, <sip:b>\r\n", 1), "Route: <sip:b>\r\n");
        assert_eq!(without_first("Route: <sip:a>, <sip:b>\r\n", 2), "");
        assert_eq!(without_first("Route: <sip:a>\r\nRoute: <sip:b> ,<sip:c>\r\n", 2), "Route: <sip:c>\r\n");
        assert_eq!(without_first("Route: <sip:a>, <sip:b>, <sip:c>\r\n", 2), "Route: <sip:c>\r\n");
        assert_eq!(without_first("Route: <sip:a>\r\n", 0), "Route: <sip:a>\r\n");
    }

    #[test]
    fn one_value_can_be_taken_from_anywhere() {
        let text = "BYE sip:a SIP/2.0\r\nRoute: <sip:a>, <sip:b>\r\nRoute: <sip:c>\r\n\r\n";
        let mut scan = Scan::with_capacity(20);
        scan.scan(text.as_bytes()).unwrap();
        let all: Vec<Value> = values(text.as_bytes(), &scan, HeaderName::Route).map(Result::unwrap).collect();
        let wants = ["Route: <sip:b>\r\nRoute: <sip:c>", "Route: <sip:a>\r\nRoute: <sip:c>", "Route: <sip:a>, <sip:b>"];
        for (value, want) in all.iter().zip(wants) {
            let mut edit = Edit::default();
            remove(&mut edit, value);
            let mut out = [0; 500];
            let n = edit.apply(text.as_bytes(), scan.message(), &mut out).unwrap();
            let got = std::str::from_utf8(&out[..n]).unwrap();
            assert_eq!(got, format!("BYE sip:a SIP/2.0\r\n{want}\r\n\r\n"));
        }
    }
}
