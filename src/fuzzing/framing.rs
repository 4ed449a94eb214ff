//! The stream framer against its slow, obvious twin, against the scan, and against itself however the bytes are split.
//!
//! The twin asks of every prefix of the stream, from the shortest on, whether it is a frame or an error by what the
//! RFC says about it; so what it finds cannot depend on how the bytes were split.

use super::naive::NaiveMessage;
use crate::base::prng::Prng;
use crate::sip::frame::{Frame, FrameError, FrameErrorKind, Framer, START_LINE_MAX};
use crate::sip::scan::{Scan, ScanError};

/// A stream as frames, and how it ended: with an error, or waiting in or between messages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// What stood in the stream, in order.
    pub frames: Vec<Frame>,
    /// What ended it.
    pub error: Option<FrameError>,
    /// Did it end within a message?
    pub is_mid_message: bool,
}

/// What the framer makes of the stream when it comes in these pieces; `cuts` are their ends, in order.
///
/// # Panics
///
/// When a frame is longer than what has come, or an error is not the end.
pub fn read(bytes: &[u8], cuts: impl IntoIterator<Item = usize>, max: usize) -> Reading {
    let mut framer = Framer::new(max);
    let mut reading = Reading::default();
    let mut start = 0;
    'pieces: for end in cuts.into_iter().chain([bytes.len()]) {
        loop {
            match framer.next(&bytes[start..end]) {
                Ok(Frame::Incomplete) => break,
                Ok(frame) => {
                    let (Frame::Message(len) | Frame::Ping(len) | Frame::Skip(len)) = frame else { unreachable!() };
                    assert!(len > 0 && start + len <= end, "{frame:?} of {} bytes", end - start);
                    start += len;
                    reading.frames.push(frame);
                }
                Err(error) => {
                    assert!(error.head.is_none_or(|head| start + head <= end));
                    assert_eq!(framer.next(&bytes[start..]), Err(error), "an error is the end");
                    assert_eq!(framer.next(b"OPTIONS sip:a SIP/2.0\r\nl:0\r\n\r\n"), Err(error), "an error is the end");
                    reading.error = Some(error);
                    break 'pieces;
                }
            }
        }
    }
    reading.is_mid_message = framer.is_mid_message();
    reading
}

/// The same by the twin.
pub fn read_naively(bytes: &[u8], max: usize) -> Reading {
    let mut reading = Reading::default();
    let (mut start, mut end, mut crlfs) = (0, 0, 0);
    while end < bytes.len() {
        end += 1;
        match judge(&bytes[start..end], crlfs % 2 == 1, max) {
            None => {}
            Some(Err(error)) => {
                reading.error = Some(error);
                return reading;
            }
            Some(Ok(frame)) => {
                crlfs = if matches!(frame, Frame::Message(_)) { 0 } else { crlfs + 1 };
                reading.frames.push(frame);
                start = end;
            }
        }
    }
    reading.is_mid_message = ![&b""[..], b"\r"].contains(&&bytes[start..]);
    reading
}

/// Is this prefix, none shorter of which was anything, a frame or an error? `is_second`: an odd CRLF stands before it.
fn judge(prefix: &[u8], is_second: bool, max: usize) -> Option<Result<Frame, FrameError>> {
    use FrameErrorKind as Kind;
    let fail = |kind, head| Some(Err(FrameError { kind, head }));
    match prefix {
        b"\r" => return None,
        b"\r\n" if is_second => return Some(Ok(Frame::Ping(2))),
        b"\r\n" => return Some(Ok(Frame::Skip(2))),
        [b'\r' | b'\n', ..] => return fail(Kind::BareLineEnd, None),
        _ => {}
    }
    if !(prefix[0].is_ascii_alphanumeric() || b"-.!%*_+`'~".contains(&prefix[0])) {
        return fail(Kind::NotSip, None);
    }
    let position = |text: &[u8]| prefix.windows(text.len()).position(|w| w == text);
    let head_end = position(b"\r\n\r\n").map(|at| at + 4);
    let head = &prefix[..head_end.unwrap_or(prefix.len())];
    let first_line = position(b"\r\n").map_or(prefix, |at| &prefix[..at + 2]);
    let is_odd = |b: &u8| *b == 127 || *b < 32 && !b"\r\n\t".contains(b);
    if first_line.iter().take(max.min(16)).any(is_odd) {
        return fail(Kind::NotSip, None);
    }
    if head.len() > max {
        return fail(Kind::TooLarge, None);
    }
    if first_line.len() > START_LINE_MAX {
        return fail(Kind::StartLineTooLong, None);
    }
    let is_bare = |i: usize| match head[i] {
        b'\r' => head.get(i + 1).is_some_and(|next| *next != b'\n'),
        b'\n' => i == 0 || head[i - 1] != b'\r',
        _ => false,
    };
    if (0..head.len()).any(is_bare) {
        return fail(Kind::BareLineEnd, None);
    }
    if let Some(line) = first_line.strip_suffix(b"\r\n") {
        let line = String::from_utf8_lossy(line).to_uppercase();
        let has_version =
            line.rsplit_once(' ').is_some_and(|(before, word)| !before.is_empty() && word.starts_with("SIP/"));
        if !has_version && !line.starts_with("SIP/") {
            return fail(Kind::NotSip, None);
        }
    }
    let head_end = head_end?;
    let mut lengths = Vec::new();
    let message = NaiveMessage::read(head, usize::MAX);
    for value in message.values(head, "content-length") {
        if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
            lengths.push(None);
        } else {
            let digits = String::from_utf8_lossy(value).trim_start_matches('0').to_owned();
            lengths.push(Some(if digits.is_empty() { 0 } else { digits.parse::<u64>().unwrap_or(u64::MAX) }));
        }
    }
    // The first defect, in the order of the headers.
    let head_len = Some(head_end);
    let Some(first) = lengths.first() else { return fail(Kind::MissingContentLength, head_len) };
    for length in &lengths {
        match length {
            None => return fail(Kind::MalformedContentLength, head_len),
            // Numbers that no message can have are one to the framer.
            Some(length) if (*length).min(u64::from(u32::MAX)) != first.unwrap_or(0).min(u64::from(u32::MAX)) => {
                return fail(Kind::ContradictedContentLength, head_len);
            }
            Some(_) => {}
        }
    }
    let whole = first.unwrap_or(0).saturating_add(head_end as u64);
    if whole > max as u64 {
        return fail(Kind::TooLarge, head_len);
    }
    (whole == prefix.len() as u64).then_some(Ok(Frame::Message(prefix.len())))
}

/// The scan of a framed message ends where the frame does, and never asks for a byte beyond it.
///
/// # Panics
///
/// When it does not.
pub fn check_scan(bytes: &[u8], reading: &Reading) {
    let mut scan = Scan::with_capacity(256);
    let mut start = 0;
    for frame in &reading.frames {
        let (Frame::Message(len) | Frame::Ping(len) | Frame::Skip(len)) = *frame else { unreachable!() };
        let message = &bytes[start..start + len];
        start += len;
        if !matches!(frame, Frame::Message(_)) {
            assert_eq!(message, b"\r\n");
            continue;
        }
        let head = message.windows(4).position(|w| w == b"\r\n\r\n").expect("a head") + 2;
        match scan.scan(message) {
            Ok(()) => {
                assert_eq!(scan.headers_end(), head);
                assert_eq!((scan.message().start, scan.message().end as usize), (0, len));
            }
            // What is wrong inside a head is answered; where the message ends is not in doubt.
            Err(ScanError::StartLine | ScanError::Version | ScanError::HeaderLine) => {
                assert_eq!(scan.headers_end(), head);
            }
            Err(ScanError::TooManyHeaders) => assert!(scan.headers_end() < head),
            Err(error) => panic!("{error:?} in {:?}", String::from_utf8_lossy(message)),
        }
    }
}

/// One fuzz input: the first two bytes choose the limit and the splits, the rest is the stream. Whatever the splits,
/// the frames are those of the whole stream, of the twin, and of the scan.
///
/// # Panics
///
/// When they are not.
pub fn frame(data: &[u8]) {
    let [limit, seed, stream @ ..] = data else { return };
    let max = 1 + 8 * usize::from(*limit);
    let whole = read(stream, [], max);
    check_scan(stream, &whole);
    assert_eq!(read(stream, 0..stream.len(), max), whole, "byte by byte");
    let mut prng = Prng::new(u64::from(*seed));
    for _ in 0..4 {
        let mut cuts: Vec<usize> =
            (0..1 + prng.below(6)).map(|_| prng.below(stream.len() as u64 + 1) as usize).collect();
        cuts.sort_unstable();
        assert_eq!(read(stream, cuts.iter().copied(), max), whole, "cut at {cuts:?}");
    }
    // The twin's work is the square of the length.
    if stream.len() <= 1000 {
        assert_eq!(read_naively(stream, max), whole, "{:?}", String::from_utf8_lossy(stream));
    }
}
