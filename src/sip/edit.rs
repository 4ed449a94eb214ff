//! A list of changes to a message, applied while it is copied out.
//!
//! Nothing is decoded and re-encoded: every byte that no patch names goes out as it came in, unknown headers and
//! bodies included (RFC 3261 16.6: order kept, body untouched). A patch replaces a span (empty for an insertion) by
//! new text; the text lives in one scratch buffer that is reused for every message.
//!
//! ```text
//!   message   |----a----|xx|------b------|yyy|--c--|
//!   patches             [xx -> T1]       [yyy -> T2]
//!   out       |----a----|T1|------b------|T2|--c--|
//! ```
//!
//! Invariants: patches are planned in any order, never overlap, and stay in order of position, insertions at one
//! place in the order in which they were planned. Capacity is fixed at construction; a plan that does not fit is an
//! error, not growth.

use crate::base::span::Span;

/// Patches a plan may hold.
pub const PATCHES_MAX: usize = 20;

/// Bytes of new text a plan may hold.
pub const TEXT_MAX: usize = 8 * 1024;

/// The plan or its result does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EditError;

#[derive(Clone, Copy, Debug)]
struct Patch {
    at: Span,
    text: Span,
}

/// The planned changes; made once and used again for every message.
#[derive(Debug)]
pub struct Edit {
    patches: Vec<Patch>,
    text: Vec<u8>,
    overflowed: bool,
}

impl Default for Edit {
    fn default() -> Self {
        Edit { patches: Vec::with_capacity(PATCHES_MAX), text: Vec::with_capacity(TEXT_MAX), overflowed: false }
    }
}

impl Edit {
    /// Forgets all plans.
    pub fn clear(&mut self) {
        self.patches.clear();
        self.text.clear();
        self.overflowed = false;
    }

    /// Plans to put `text` in the place of `at`.
    pub fn replace(&mut self, at: Span, text: &[u8]) {
        self.replace_all(at, &[text]);
    }

    /// Plans to put `text` before the byte at `offset`.
    pub fn insert(&mut self, offset: usize, text: &[&[u8]]) {
        self.replace_all(Span::new(offset, offset), text);
    }

    /// Plans to take `at` out.
    pub fn remove(&mut self, at: Span) {
        self.replace_all(at, &[]);
    }

    /// Plans to put the concatenation of `text` in the place of `at`.
    pub fn replace_all(&mut self, at: Span, text: &[&[u8]]) {
        let added: usize = text.iter().map(|t| t.len()).sum();
        if self.patches.len() == PATCHES_MAX || self.text.len() + added > TEXT_MAX {
            self.overflowed = true;
            return;
        }
        let start = self.text.len();
        for part in text {
            self.text.extend_from_slice(part);
        }
        let patch = Patch { at, text: Span::new(start, self.text.len()) };
        let place = self.patches.iter().rposition(|p| p.at.start <= at.start).map_or(0, |i| i + 1);
        self.patches.insert(place, patch);
    }

    //= rfc3261#section-16.6 copy
    //# Header fields stay in their order, and the body is not touched.
    //= rfc3261#section-22.3 credentials
    //# Credentials and challenges are passed on as they are.
    //= rfc8224#section-4.1 signed
    //# What an Identity header field signs is not changed.
    //= rfc4028#section-8 session-timers
    //# Session timers and other extensions of the end points pass.
    /// Writes the changed `message` span of `bytes` to the front of `out`; returns how many bytes that are.
    ///
    /// # Errors
    ///
    /// [`EditError`] when a plan overflowed, patches overlap, or `out` is too small; `out` is garbage then.
    pub fn apply(&self, bytes: &[u8], message: Span, out: &mut [u8]) -> Result<usize, EditError> {
        if self.overflowed {
            return Err(EditError);
        }
        let mut written = 0;
        let mut read = message.start;
        for patch in &self.patches {
            if patch.at.start < read || patch.at.end > message.end {
                return Err(EditError);
            }
            written = append(out, written, Span { start: read, end: patch.at.start }.of(bytes))?;
            written = append(out, written, patch.text.of(&self.text))?;
            read = patch.at.end;
        }
        append(out, written, Span { start: read, end: message.end }.of(bytes))
    }
}

fn append(out: &mut [u8], at: usize, text: &[u8]) -> Result<usize, EditError> {
    let end = at + text.len();
    out.get_mut(at..end).ok_or(EditError)?.copy_from_slice(text);
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn untouched_bytes_go_out_as_they_came_in() {
        let mut edit = Edit::default();
        let bytes = b"0123456789";
        edit.replace(Span::new(7, 8), b"seven");
        edit.insert(2, &[b"<", b"a>"]);
        edit.insert(2, &[b"<b>"]);
        edit.remove(Span::new(4, 6));
        let mut out = [0; 64];
        let n = edit.apply(bytes, Span::new(1, 9), &mut out).unwrap();
        assert_eq!(&out[..n], b"1<a><b>236seven8");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut edit = Edit::default();
        edit.insert(0, &[&[b'x'; 10]]);
        assert_eq!(edit.apply(b"abc", Span::new(0, 3), &mut [0; 12]), Err(EditError));
        edit.clear();
        edit.insert(0, &[&[b'x'; TEXT_MAX + 1]]);
        assert_eq!(edit.apply(b"abc", Span::new(0, 3), &mut [0; 12]), Err(EditError));
        edit.clear();
        edit.remove(Span::new(0, 2));
        edit.remove(Span::new(1, 3));
        assert_eq!(edit.apply(b"abc", Span::new(0, 3), &mut [0; 12]), Err(EditError));
    }

    proptest! {
        /// The slow twin: splice a growing vector from the back.
        #[test]
        fn apply_equals_splicing(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            cuts in proptest::collection::btree_set(0usize..200, 0..12),
            text in proptest::collection::vec(any::<u8>(), 0..20),
        ) {
            let cuts: Vec<usize> = cuts.into_iter().filter(|c| *c <= bytes.len()).collect();
            let spans: Vec<Span> = cuts.chunks_exact(2).map(|c| Span::new(c[0], c[1])).collect();
            let mut edit = Edit::default();
            let mut want = bytes.clone();
            for span in spans.iter().rev() {
                edit.replace(*span, &text);
                want.splice(span.start as usize..span.end as usize, text.iter().copied());
            }
            let mut out = vec![0; 1024];
            let n = edit.apply(&bytes, Span::new(0, bytes.len()), &mut out).unwrap();
            prop_assert_eq!(&out[..n], &want[..]);
        }
    }
}
