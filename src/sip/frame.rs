//! Where one message ends and the next begins, in a stream of bytes that comes in pieces.
//!
//! Read RFC 3261 sections 7.5, 18.3 and 20.14 first. A stream has no datagram that ends a message whatever its text
//! says: one wrong length, and what a sender wrote as a body is taken for a request. So the framer picks no meaning
//! where two are possible; it fails, and after that nothing of the connection is read any more.
//!
//! ```text
//! CRLF ............ Skip(2) ; CRLF CRLF: the second is the ping (RFC 5626 3.5.1), Ping(2)
//! INVITE ... CRLF   start line: may end in " SIP/..." or begin with "SIP/", else it is another protocol
//! l : 14 CRLF       header line: only Content-Length is read, in every spelling that the scan knows
//! CRLF              end of the head: Content-Length is known, once, or the stream fails
//! v=0 ...           body: not looked at; Message(head + Content-Length)
//! ```
//!
//! Line ends of the head are CRLF and nothing else, since the next reader may take a bare CR or LF for one or for
//! none. Which spellings name Content-Length, where a value ends and where the head does is decided as
//! [`Scan`](super::scan::Scan) decides it, so the scan of a framed message always ends where the frame does.
//!
//! Invariants: `line <= seen`; no byte before `line` is read again, those from `line` to `seen` once more when their
//! line is whole, so the work is linear however the bytes are split, and so are the frames: each is decided by the byte
//! that completes it. No sum can wrap: lengths saturate, and what is added up has been compared with the limit. Bound:
//! 28 bytes a connection, no allocation.

use memchr::{memchr, memchr2, memrchr};

use super::cursor::TOKEN;

/// The longest start line with its line end. What is no SIP and never ends a line is not kept any longer; a
/// Request-URI of 8 KiB, as some applications make them, fits.
pub const START_LINE_MAX: usize = 16 * 1024;

/// A control byte within so many bytes of the first line tells at once that it is none, as in a TLS record. Later ones
/// wait for the line end, and the scan judges them.
const PROLOGUE: usize = 16;

/// What stands at the front of the bytes received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A whole message of this many bytes.
    Message(usize),
    /// Two CRLF between messages: a ping (RFC 5626 3.5.1); consume and answer with one CRLF. The first of the two was
    /// passed over, so that a lone one, which some phones send to keep a path open, holds no memory.
    Ping(usize),
    /// Bytes to be passed over (a CRLF before a start line, RFC 3261 7.5).
    Skip(usize),
    /// Wait for more.
    Incomplete,
}

/// Why a stream cannot be read on. The sender is at fault in every case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameErrorKind {
    /// The first line is neither a request nor a status line: another protocol, or a place inside a message.
    NotSip,
    /// A CR without LF or an LF without CR in the head or before it.
    BareLineEnd,
    /// More than [`START_LINE_MAX`] bytes without a line end.
    StartLineTooLong,
    /// The head is, or Content-Length makes it with the body, larger than a message may be.
    TooLarge,
    /// No Content-Length, which a stream must have (RFC 3261 18.3).
    MissingContentLength,
    /// A Content-Length that is not a decimal number.
    MalformedContentLength,
    /// Two Content-Length that differ.
    ContradictedContentLength,
}

/// The end of a stream's readable part: the connection is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameError {
    /// Why.
    pub kind: FrameErrorKind,
    /// Length of the head (start line to empty line) when it is whole and an answer may be made from it.
    pub head: Option<usize>,
}

/// Reads one direction of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Framer {
    message_bytes_max: u32,
    /// Where the line begins that is being searched for its end.
    line: u32,
    /// No line end stands between `line` and here.
    seen: u32,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Between {
        /// Was the CRLF before an odd one?
        is_second: bool,
    },
    StartLine,
    Headers {
        /// Of the Content-Length header whose line was the last one, as far as it goes: a fold may follow.
        open: Option<Digits>,
        length: Length,
    },
    Body {
        /// Head and body.
        message: u32,
    },
    Failed {
        kind: FrameErrorKind,
        /// Zero where there is none.
        head: u32,
    },
}

/// The value of one Content-Length header, white space around it left out. Numbers saturate.
#[derive(Clone, Copy, Debug)]
enum Digits {
    None,
    Some(u32),
    Ended(u32),
    Malformed,
}

/// What the Content-Length headers before say together.
#[derive(Clone, Copy, Debug)]
enum Length {
    Missing,
    Value(u32),
    Malformed,
    Contradicted,
}

/// How the search for a line end went. One past the last byte that it needed to tell.
enum LineEnd {
    Open(usize),
    Whole(usize),
    Bare(usize),
}

impl Framer {
    /// For messages of up to `message_bytes_max` bytes, head and body.
    pub const fn new(message_bytes_max: usize) -> Self {
        let message_bytes_max = if message_bytes_max < u32::MAX as usize { message_bytes_max as u32 } else { u32::MAX };
        Framer { message_bytes_max, line: 0, seen: 0, state: State::Between { is_second: false } }
    }

    /// What stands at the front of `bytes`: everything received and not yet consumed. They only ever grow at their
    /// end between two calls, until the caller consumes what a returned frame covers.
    ///
    /// # Errors
    ///
    /// [`FrameError`]; from then on it is returned whatever comes.
    pub fn next(&mut self, bytes: &[u8]) -> Result<Frame, FrameError> {
        loop {
            match self.state {
                State::Between { is_second } => match bytes {
                    [] | [b'\r'] => return Ok(Frame::Incomplete),
                    [b'\r', b'\n', ..] => {
                        self.state = State::Between { is_second: !is_second };
                        return Ok(if is_second { Frame::Ping(2) } else { Frame::Skip(2) });
                    }
                    [b'\r' | b'\n', ..] => return self.fail(FrameErrorKind::BareLineEnd, 0),
                    [first, ..] if !TOKEN.has(*first) => return self.fail(FrameErrorKind::NotSip, 0),
                    _ => self.state = State::StartLine,
                },
                State::StartLine => match self.handle_start_line(bytes) {
                    Ok(true) => {}
                    Ok(false) => return Ok(Frame::Incomplete),
                    Err(kind) => return self.fail(kind, 0),
                },
                State::Headers { open, length } => match self.handle_header_line(bytes, open, length) {
                    Ok(true) => {}
                    Ok(false) => return Ok(Frame::Incomplete),
                    Err((kind, head)) => return self.fail(kind, head),
                },
                State::Body { message } if (message as usize) <= bytes.len() => {
                    *self = Framer::new(self.message_bytes_max as usize);
                    return Ok(Frame::Message(message as usize));
                }
                State::Body { .. } => return Ok(Frame::Incomplete),
                State::Failed { kind, head } => {
                    return Err(FrameError { kind, head: (head > 0).then_some(head as usize) });
                }
            }
        }
    }

    /// Has a message begun that is not whole yet?
    pub fn is_mid_message(&self) -> bool {
        matches!(self.state, State::StartLine | State::Headers { .. } | State::Body { .. })
    }

    /// Is the start line whole?
    fn handle_start_line(&mut self, bytes: &[u8]) -> Result<bool, FrameErrorKind> {
        let from = self.seen as usize;
        let found = self.find_line_end(bytes);
        let (LineEnd::Open(looked) | LineEnd::Whole(looked) | LineEnd::Bare(looked)) = found;
        let max = self.message_bytes_max as usize;
        let prologue = bytes.get(from..looked.min(PROLOGUE).min(max)).unwrap_or_default();
        if prologue.iter().any(|b| b.is_ascii_control() && !matches!(b, b'\t' | b'\r' | b'\n')) {
            return Err(FrameErrorKind::NotSip);
        }
        if looked > max.min(START_LINE_MAX) {
            let is_message = max <= START_LINE_MAX;
            return Err(if is_message { FrameErrorKind::TooLarge } else { FrameErrorKind::StartLineTooLong });
        }
        match found {
            LineEnd::Open(_) => Ok(false),
            LineEnd::Bare(_) => Err(FrameErrorKind::BareLineEnd),
            LineEnd::Whole(end) if may_be_start_line(&bytes[..end - 2]) => {
                self.begin_line(end);
                self.state = State::Headers { open: None, length: Length::Missing };
                Ok(true)
            }
            LineEnd::Whole(_) => Err(FrameErrorKind::NotSip),
        }
    }

    /// Is the next line of the header section whole?
    fn handle_header_line(
        &mut self,
        bytes: &[u8],
        open: Option<Digits>,
        length: Length,
    ) -> Result<bool, (FrameErrorKind, u32)> {
        let start = self.line as usize;
        let found = self.find_line_end(bytes);
        let (LineEnd::Open(looked) | LineEnd::Whole(looked) | LineEnd::Bare(looked)) = found;
        if looked > self.message_bytes_max as usize {
            return Err((FrameErrorKind::TooLarge, 0));
        }
        let end = match found {
            LineEnd::Open(_) => return Ok(false),
            LineEnd::Bare(_) => return Err((FrameErrorKind::BareLineEnd, 0)),
            LineEnd::Whole(end) => end,
        };
        self.begin_line(end);
        let line = &bytes[start..end - 2];
        self.state = match line {
            [] => State::Body { message: self.message_end(end as u32, close(open, length))? },
            // Of a fold of nothing nobody makes a header; the scan refuses it.
            [b' ' | b'\t', ..] => State::Headers { open: open.map(|digits| digits.read(line)), length },
            _ => State::Headers {
                open: content_length_value(line).map(|value| Digits::None.read(value)),
                length: close(open, length),
            },
        };
        Ok(true)
    }

    /// Where the message ends whose head ends at `head`.
    fn message_end(&self, head: u32, length: Length) -> Result<u32, (FrameErrorKind, u32)> {
        match length {
            // The head has been found to fit.
            Length::Value(body) if body <= self.message_bytes_max - head => Ok(head + body),
            Length::Value(_) => Err((FrameErrorKind::TooLarge, head)),
            Length::Missing => Err((FrameErrorKind::MissingContentLength, head)),
            Length::Malformed => Err((FrameErrorKind::MalformedContentLength, head)),
            Length::Contradicted => Err((FrameErrorKind::ContradictedContentLength, head)),
        }
    }

    fn find_line_end(&mut self, bytes: &[u8]) -> LineEnd {
        let seen = self.seen as usize;
        // A caller that took bytes away gets to wait, not to see a panic.
        let rest = bytes.get(seen..).unwrap_or_default();
        let Some(at) = memchr2(b'\r', b'\n', rest).map(|i| seen + i) else {
            // Beyond the limit it fails before it is asked again.
            self.seen = u32::try_from(bytes.len().max(seen)).unwrap_or(u32::MAX);
            return LineEnd::Open(bytes.len());
        };
        match bytes[at..] {
            [b'\r'] => {
                self.seen = at as u32;
                LineEnd::Open(at + 1)
            }
            [b'\r', b'\n', ..] => LineEnd::Whole(at + 2),
            [b'\r', ..] => LineEnd::Bare(at + 2),
            _ => LineEnd::Bare(at + 1),
        }
    }

    fn begin_line(&mut self, at: usize) {
        self.line = at as u32;
        self.seen = at as u32;
    }

    fn fail(&mut self, kind: FrameErrorKind, head: u32) -> Result<Frame, FrameError> {
        self.state = State::Failed { kind, head };
        Err(FrameError { kind, head: (head > 0).then_some(head as usize) })
    }
}

impl Digits {
    /// Reads on in the value, which ends with the line or goes on after a fold.
    fn read(self, text: &[u8]) -> Digits {
        let mut digits = self;
        for byte in text {
            digits = match (digits, byte) {
                (Digits::Some(number), b' ' | b'\t') => Digits::Ended(number),
                (_, b' ' | b'\t') => digits,
                (Digits::None, b'0'..=b'9') => Digits::Some(u32::from(byte - b'0')),
                (Digits::Some(number), b'0'..=b'9') => {
                    Digits::Some(number.saturating_mul(10).saturating_add(u32::from(byte - b'0')))
                }
                _ => return Digits::Malformed,
            };
        }
        match digits {
            Digits::Some(number) => Digits::Ended(number),
            other => other,
        }
    }
}

/// What the headers say together once the last one is whole; the first defect stays.
fn close(open: Option<Digits>, length: Length) -> Length {
    let Some(digits) = open else { return length };
    match (length, digits) {
        (Length::Malformed | Length::Contradicted, _) => length,
        (_, Digits::None | Digits::Malformed) => Length::Malformed,
        (Length::Value(before), Digits::Some(number) | Digits::Ended(number)) if before != number => {
            Length::Contradicted
        }
        (_, Digits::Some(number) | Digits::Ended(number)) => Length::Value(number),
    }
}

/// The value in a header line, if that is Content-Length in either form, white space before the colon allowed.
fn content_length_value(line: &[u8]) -> Option<&[u8]> {
    if !matches!(line.first()? | 0x20, b'c' | b'l') {
        return None;
    }
    let (name, value) = line.split_at(memchr(b':', line)?);
    let name_end = name.iter().rposition(|b| !matches!(b, b' ' | b'\t'))? + 1;
    let name = &name[..name_end];
    let is_it = name.eq_ignore_ascii_case(b"l") || name.eq_ignore_ascii_case(b"Content-Length");
    is_it.then_some(&value[1..])
}

/// Can this be the first line of a message, be it a wrong one that an answer can be given to?
fn may_be_start_line(line: &[u8]) -> bool {
    let is_version = |word: &[u8]| word.len() >= 4 && word[..4].eq_ignore_ascii_case(b"SIP/");
    is_version(line) || memrchr(b' ', line).is_some_and(|space| space > 0 && is_version(&line[space + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_keeps_no_more_than_the_file_head_says() {
        assert_eq!(size_of::<Framer>(), 28);
    }

    #[test]
    fn bytes_taken_away_make_no_panic() {
        let text = b"OPTIONS sip:a SIP/2.0\r\nl: 3\r\n\r\nabc";
        for cut in 0..text.len() {
            for left in 0..cut {
                let mut framer = Framer::new(1000);
                let _ = framer.next(&text[..cut]);
                let _ = framer.next(&text[..left]);
                let _ = framer.next(text);
            }
        }
    }
}
