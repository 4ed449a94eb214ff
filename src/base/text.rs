//! Short text put together on the stack: numbers and addresses without the detours of formatting.
//!
//! Bound: `N` bytes; what does not fit is cut, which no caller lets happen: each knows the longest it writes.

use std::io::Write;
use std::net::IpAddr;

/// Up to `N` bytes of text.
#[derive(Clone, Copy, Debug)]
pub struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Text { bytes: [0; N], len: 0 }
    }
}

impl<const N: usize> Text<N> {
    /// Appends bytes.
    #[inline]
    pub fn push(&mut self, text: &[u8]) {
        let room = &mut self.bytes[self.len..];
        let len = text.len().min(room.len());
        room[..len].copy_from_slice(&text[..len]);
        self.len += len;
    }

    /// Appends a number in decimal.
    pub fn push_number(&mut self, number: u32) {
        self.push(itoa::Buffer::new().format(number).as_bytes());
    }

    /// Appends an address, IPv6 without brackets.
    pub fn push_ip(&mut self, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => {
                for (place, octet) in ip.octets().into_iter().enumerate() {
                    if place > 0 {
                        self.push(b".");
                    }
                    self.push_number(u32::from(octet));
                }
            }
            IpAddr::V6(ip) => {
                let mut rest = &mut self.bytes[self.len..];
                let room = rest.len();
                // Cut when it does not fit, as above.
                let _ = write!(rest, "{ip}");
                self.len += room - rest.len();
            }
        }
    }

    /// What was appended.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_what_formatting_would_write() {
        let mut text = Text::<80>::default();
        for ip in ["192.0.2.1", "255.255.255.255", "0.0.0.0", "2001:db8::9:1", "::"] {
            text = Text::default();
            text.push_ip(ip.parse().unwrap());
            assert_eq!(text.as_bytes(), ip.as_bytes());
        }
        text.push(b";");
        text.push_number(65_535);
        assert_eq!(text.as_bytes(), b"::;65535");
    }

    #[test]
    fn what_does_not_fit_is_cut() {
        let mut text = Text::<4>::default();
        text.push(b"abcdef");
        text.push_ip("2001:db8::1".parse().unwrap());
        assert_eq!(text.as_bytes(), b"abcd");
    }
}
