//! The scanner against its naive twin, on any datagram; and the reader of probes' answers, which has any datagram too.

use std::ops::Range;

use super::naive::NaiveMessage;
use crate::base::span::Span;
use crate::control::probe::Answer;
use crate::sip::scan::{HeaderName, Scan, StartLine};

/// So few that a short input can have too many.
const HEADERS_MAX: usize = 24;

const NAMES: [(HeaderName, &str); 13] = [
    (HeaderName::Via, "via"),
    (HeaderName::Route, "route"),
    (HeaderName::RecordRoute, "record-route"),
    (HeaderName::From, "from"),
    (HeaderName::To, "to"),
    (HeaderName::CallId, "call-id"),
    (HeaderName::CSeq, "cseq"),
    (HeaderName::MaxForwards, "max-forwards"),
    (HeaderName::ContentLength, "content-length"),
    (HeaderName::ProxyRequire, "proxy-require"),
    (HeaderName::Contact, "contact"),
    (HeaderName::AssertedIdentity, "p-asserted-identity"),
    (HeaderName::Privacy, "privacy"),
];

/// All readers on one datagram.
///
/// # Panics
///
/// When they disagree.
pub fn scan(bytes: &[u8]) {
    let naive = NaiveMessage::read(bytes, HEADERS_MAX);
    let mut scan = Scan::with_capacity(HEADERS_MAX);
    let error = scan.scan(bytes).err().map(|error| format!("{error:?}"));
    assert_eq!(error.as_deref(), naive.error);
    assert_eq!(scan.message().start as usize, naive.start_line.start);
    assert_eq!(scan.start_line_end(), naive.start_line.end);
    assert_eq!(scan.headers_end(), naive.headers_end);
    if error.is_none() {
        assert_eq!(scan.message().end as usize, naive.body.end);
    }
    compare_headers(&scan, &naive);
    if let (Some(StartLine::Request { method, uri }), None) = (scan.start_line(), naive.error) {
        let line = &bytes[naive.start_line.clone()];
        let mut words = line.split(|b| *b == b' ');
        assert_eq!(Some(method.of(bytes)), words.next());
        assert_eq!(Some(uri.of(bytes)), words.next());
    }
    if let (Some(StartLine::Response { status }), None) = (scan.start_line(), naive.error) {
        assert_eq!(status.to_string().as_bytes(), &bytes[naive.start_line.start + 8..][..3]);
    }
    check_probe_answer(bytes, &naive);
}

/// What is taken for the answer to a probe is a response, and answers the probe that it names.
fn check_probe_answer(bytes: &[u8], naive: &NaiveMessage) {
    let Ok(answer) = Answer::decode(bytes) else { return };
    assert!((100..700).contains(&answer.status));
    assert!(answer.key().is_none_or(|key| answer.answers(&key)));
    if naive.error.is_none() {
        let start = &bytes[naive.start_line.clone()];
        assert_eq!(Some(answer.status.to_string().as_bytes()), start.get(8..11));
    }
}

fn compare_headers(scan: &Scan, naive: &NaiveMessage) {
    let name_of = |name: HeaderName| NAMES.iter().find(|(known, _)| *known == name).map_or("?", |(_, text)| *text);
    let found: Vec<_> = scan.headers().iter().map(|h| (name_of(h.name), h.line, h.value)).collect();
    let span = |range: &Range<usize>| Span::new(range.start, range.end);
    let wanted: Vec<_> = naive
        .headers
        .iter()
        .filter_map(|h| Some((NAMES.iter().find(|n| n.1 == h.name)?.1, span(&h.line), span(&h.value))))
        .collect();
    assert_eq!(found, wanted);
    for (name, text) in NAMES {
        let of_name: Vec<_> = wanted.iter().filter(|h| h.0 == text).map(|h| h.1).collect();
        assert_eq!(scan.count(name), of_name.len());
        assert_eq!(scan.first(name).map(|h| h.line), of_name.first().copied());
        assert_eq!(scan.all(name).map(|h| h.line).collect::<Vec<_>>(), of_name);
    }
}
