//! CSeq: a number and a method (RFC 3261 20.16, 8.1.1.5).

use super::cursor::{Cursor, DIGITS, TOKEN};
use crate::base::span::Span;

/// A decoded CSeq.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CSeq {
    /// Below 2^31 (RFC 3261 8.1.1.5).
    pub number: u32,
    /// The method, in the sender's case.
    pub method: Span,
}

/// The CSeq is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CSeqError;

impl CSeq {
    /// Decodes the value that fills `span`.
    ///
    /// # Errors
    ///
    /// When it is not a number below 2^31, white space and a method.
    pub fn decode(bytes: &[u8], span: Span) -> Result<CSeq, CSeqError> {
        let mut cursor = Cursor::new(bytes, span);
        cursor.skip_white();
        let digits = cursor.take(&DIGITS);
        let mut number = 0u64;
        for digit in digits.of(bytes) {
            number = (number * 10 + u64::from(digit - b'0')).min(1 << 31);
        }
        let gap = cursor.at();
        cursor.skip_white();
        let is_spaced = cursor.at() > gap;
        let method = cursor.take(&TOKEN);
        cursor.skip_white();
        if digits.is_empty() || number >= 1 << 31 || !is_spaced || method.is_empty() || cursor.peek().is_some() {
            return Err(CSeqError);
        }
        Ok(CSeq { number: number as u32, method })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_bounded_and_spacing_is_free() {
        let decode = |text: &str| CSeq::decode(text.as_bytes(), Span::new(0, text.len())).map(|c| c.number);
        assert_eq!(decode("0009\r\n  INVITE"), Ok(9));
        assert_eq!(decode("2147483647 X"), Ok(2_147_483_647));
        for bad in ["2147483648 X", "36893488147419103232 REGISTER", "1INVITE", "INVITE", "1", "1 A B", "-1 A"] {
            assert_eq!(decode(bad), Err(CSeqError), "{bad}");
        }
    }
}
