//! Just enough WebSocket for a client that says one thing and hears one answer (RFC 6455, RFC 7118).
//!
//! Read RFC 6455 section 5.2 first. Frames are whole messages; the answer to the handshake is believed when it says 101.

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text or binary: a message.
    Message,
    /// The peer closes.
    Close,
    /// Ping, pong, and what else there may be.
    Other,
}

/// The request that turns a connection into a WebSocket for SIP.
pub fn upgrade_request(host: &str) -> String {
    format!(
        "GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Protocol: sip\r\n\r\n"
    )
}

/// Length of the answer to [`upgrade_request`] and whether it agrees; `None` when more must come first.
pub fn decode_upgrade(bytes: &[u8]) -> Option<(usize, bool)> {
    let end = memchr::memmem::find(bytes, b"\r\n\r\n")? + 4;
    Some((end, bytes.starts_with(b"HTTP/1.1 101 ")))
}

/// One text frame, masked with `mask`.
///
/// # Panics
/// When the payload is longer than 65,535 bytes.
pub fn encode(payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![0x81];
    match payload.len() {
        len if len < 126 => frame.push(0x80 | len as u8),
        len => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&u16::try_from(len).expect("one SIP message").to_be_bytes());
        }
    }
    frame.extend_from_slice(&mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

/// What the frame is that `bytes` begin with, where its payload begins and ends; `None` when more must come first.
pub fn decode(bytes: &[u8]) -> Option<(Kind, usize, usize)> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    let (start, len) = match second & 0x7f {
        126 => (4, u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?))),
        127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)),
        len => (2, u64::from(len)),
    };
    let end = usize::try_from(len).ok()?.checked_add(start)?;
    let kind = match first & 0x0f {
        1 | 2 => Kind::Message,
        8 => Kind::Close,
        _ => Kind::Other,
    };
    (end <= bytes.len()).then_some((kind, start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_has_its_length_its_mask_and_its_masked_payload() {
        let frame = encode(b"Hello", [0x37, 0xfa, 0x21, 0x3d]);
        // RFC 6455 section 5.7.
        assert_eq!(frame, [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]);
        assert_eq!(encode(&[0; 300], [1; 4])[..4], [0x81, 0xfe, 1, 44]);
    }

    #[test]
    fn frames_of_each_size_are_found_once_they_are_whole() {
        for (head, len) in
            [(vec![0x82, 3], 3), (vec![0x81, 126, 1, 44], 300), (vec![1, 127, 0, 0, 0, 0, 0, 0, 0, 5], 5)]
        {
            let mut frame = head.clone();
            frame.extend(vec![b'x'; len]);
            for cut in 0..frame.len() {
                assert_eq!(decode(&frame[..cut]), None);
            }
            assert_eq!(decode(&frame), Some((Kind::Message, head.len(), frame.len())));
        }
        assert_eq!(decode(&[0x88, 0]), Some((Kind::Close, 2, 2)));
        assert_eq!(decode(&[0x81, 127, 255, 255, 255, 255, 255, 255, 255, 255]), None);
    }

    #[test]
    fn handshake_is_over_with_a_101() {
        assert_eq!(decode_upgrade(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"), None);
        assert_eq!(decode_upgrade(b"HTTP/1.1 101 x\r\n\r\nmore"), Some((18, true)));
        assert_eq!(decode_upgrade(b"HTTP/1.1 403 x\r\n\r\n"), Some((18, false)));
    }
}
