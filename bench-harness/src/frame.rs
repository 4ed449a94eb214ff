//! Where messages end in a stream: by their Content-Length (RFC 3261 section 18.3).
//!
//! [`Inbound`] keeps what came until a message is whole and gives messages out one by one, without a copy. Line ends
//! between messages are keep-alives (RFC 5626 section 4.4.1) and are skipped. It is for the generator's own peers: a
//! stream that it cannot part is an error for good.
//!
//! Invariant: `start <= bytes.len()`. Bound: one read and what is missing of one message of at most
//! [`MESSAGE_BYTES_MAX`] bytes.

use crate::message::value;

/// The largest message, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 65_536;

/// Why a stream cannot be parted into messages any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// No Content-Length, or one that is no number.
    NoLength,
    /// More than [`MESSAGE_BYTES_MAX`] bytes.
    TooLarge,
}

/// What was received on a connection and not looked at yet.
#[derive(Debug, Default)]
pub struct Inbound {
    bytes: Vec<u8>,
    start: usize,
}

impl Inbound {
    /// Appends what came.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.compact();
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends `len` bytes that `fill` writes; nothing when it fails.
    ///
    /// # Errors
    /// Those of `fill`.
    pub fn extend_with<E>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<(), E> {
        self.compact();
        let end = self.bytes.len();
        self.bytes.resize(end + len, 0);
        fill(&mut self.bytes[end..]).inspect_err(|_| self.bytes.truncate(end))
    }

    /// What waits.
    pub fn unread(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Takes `len` bytes away from what waits.
    pub fn consume(&mut self, len: usize) {
        self.start = (self.start + len).min(self.bytes.len());
    }

    /// The next message that is whole.
    ///
    /// # Errors
    /// When the stream cannot be parted from here on.
    pub fn next_message(&mut self) -> Result<Option<&[u8]>, Broken> {
        let breaks = self.unread().iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        self.consume(breaks);
        let Some(len) = message_len(self.unread())? else { return Ok(None) };
        let start = self.start;
        self.consume(len);
        Ok(Some(&self.bytes[start..start + len]))
    }

    /// Gives memory back that nothing is in.
    pub fn shrink(&mut self) {
        if self.unread().is_empty() {
            (self.bytes, self.start) = (Vec::new(), 0);
        }
    }

    fn compact(&mut self) {
        self.bytes.drain(..self.start);
        self.start = 0;
    }
}

/// How long the message is that `bytes` begin with; `None` when more must come first.
fn message_len(bytes: &[u8]) -> Result<Option<usize>, Broken> {
    let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else {
        return if bytes.len() > MESSAGE_BYTES_MAX { Err(Broken::TooLarge) } else { Ok(None) };
    };
    let len = end + 4 + content_length(&bytes[..end + 2]).ok_or(Broken::NoLength)?;
    match len {
        _ if len > MESSAGE_BYTES_MAX => Err(Broken::TooLarge),
        _ if len > bytes.len() => Ok(None),
        _ => Ok(Some(len)),
    }
}

fn content_length(head: &[u8]) -> Option<usize> {
    const USUAL: &[u8] = b"\r\nContent-Length:";
    let line = match memchr::memmem::rfind(head, USUAL) {
        Some(at) => head[at + 2..].split(|&byte| byte == b'\r').next()?,
        None => head.split(|&byte| byte == b'\n').find(|line| {
            let name = line.split(|&byte| byte == b':').next().unwrap_or_default().trim_ascii();
            name.eq_ignore_ascii_case(b"content-length") || name.eq_ignore_ascii_case(b"l")
        })?,
    };
    std::str::from_utf8(value(line)).ok()?.parse().ok().filter(|len| *len <= MESSAGE_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &[u8] =
        b"\r\n\r\nSIP/2.0 200 OK\r\nContent-Length: 4\r\n\r\nbodyBYE x SIP/2.0\r\nVia: y\r\nl : 0\r\n\r\n\r\n";

    #[test]
    fn messages_come_whole_however_the_stream_is_cut() {
        for step in 1..=TWO.len() {
            let (mut inbound, mut seen) = (Inbound::default(), Vec::new());
            for piece in TWO.chunks(step) {
                inbound.extend(piece);
                while let Some(message) = inbound.next_message().expect("parted") {
                    seen.push(message.to_vec());
                }
            }
            assert_eq!(seen.len(), 2, "in pieces of {step}");
            assert!(seen[0].starts_with(b"SIP/2.0 200") && seen[0].ends_with(b"\r\n\r\nbody"));
            assert!(seen[1].starts_with(b"BYE") && seen[1].ends_with(b"l : 0\r\n\r\n"));
            assert!(inbound.unread().is_empty());
        }
    }

    #[test]
    fn stream_without_a_usable_length_is_broken() {
        for (text, why) in [
            (&b"OPTIONS x SIP/2.0\r\nVia: y\r\n\r\n"[..], Broken::NoLength),
            (b"OPTIONS x SIP/2.0\r\nContent-Length: -1\r\n\r\n", Broken::NoLength),
            (b"OPTIONS x SIP/2.0\r\nContent-Length: 65536\r\n\r\n", Broken::TooLarge),
            (b"OPTIONS x SIP/2.0\r\nContent-Length: 99999999999999999999\r\n\r\n", Broken::NoLength),
        ] {
            let mut inbound = Inbound::default();
            inbound.extend(text);
            assert_eq!(inbound.next_message(), Err(why), "{}", String::from_utf8_lossy(text));
        }
        let mut inbound = Inbound::default();
        inbound.extend(&[b'x'; MESSAGE_BYTES_MAX + 1]);
        assert_eq!(inbound.next_message(), Err(Broken::TooLarge));
    }
}
