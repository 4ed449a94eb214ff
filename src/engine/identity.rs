//! Asserted identities at the edge of a trust domain (RFC 3325): who may say who a caller is, and who may hear it.
//!
//! A service with `strip_identity` has its backends inside and its clients outside. What comes from outside loses each
//! P-Asserted-Identity, requests and responses alike: only the inside asserts (section 5). What goes outside loses
//! them where its Privacy asks for `id` (section 7). P-Preferred-Identity passes: it is what a user agent asks of the
//! trusted proxy that will authenticate it, which is a backend (9.2).
//!
//! The scanner names headers whatever their case, white space before the colon and folds, so every spelling goes.
//! Bound: [`IDENTITY_LINES_MAX`] lines of one message; more are refused, since one that stayed would be believed.

use std::net::SocketAddr;

use crate::base::span::Span;
use crate::metrics::Reason;
use crate::route::snapshot::{ListenerIndex, Snapshot};
use crate::sip::edit::{Edit, PATCHES_MAX};
use crate::sip::scan::{HeaderName, Scan};

/// P-Asserted-Identity lines that are taken out of one message; RFC 3325 9.1 knows two values at most.
const IDENTITY_LINES_MAX: usize = 4;

/// What the rest of a request may need: our Via, two Record-Route, `received` and `rport`, Max-Forwards, Content-Length,
/// and six for a route set between two strict routers.
const OTHER_PATCHES_MAX: usize = 13;

const _: () = assert!(IDENTITY_LINES_MAX + OTHER_PATCHES_MAX <= PATCHES_MAX);

/// Between whom a message passes.
pub(super) struct Crossing<'a> {
    pub(super) snapshot: &'a Snapshot,
    /// The listener it came to, and whether a backend sent it.
    pub(super) from: (ListenerIndex, bool),
    /// The listener it leaves from, and where it goes.
    pub(super) to: (ListenerIndex, SocketAddr),
}

impl Crossing<'_> {
    /// Does a message lose its asserted identities on this way?
    fn strips(&self, bytes: &[u8], scan: &Scan) -> bool {
        let is_inside = |address| self.snapshot.backend_by_address(address).is_some();
        let is_edge = |listener| self.snapshot.services[self.snapshot.listener(listener).service].strip_identity;
        match (self.from.1, is_inside(self.to.1)) {
            //= rfc3325#section-5 of-clients
            //# P-Asserted-Identity from outside the trust domain is removed, in every spelling.
            (false, _) => is_edge(self.from.0),
            //= rfc3325#section-7 private
            //# With Privacy: id, P-Asserted-Identity is removed on the way out of the trust domain.
            (true, false) => is_edge(self.to.0) && asks_for_privacy(bytes, scan),
            //= rfc3325#section-7 not-private
            //# Without id in Privacy, or inside the trust domain, it is not removed.
            (true, true) => false,
        }
    }
}

/// Plans to take out the identities that may not cross.
///
/// # Errors
///
/// [`Reason::TooManyIdentities`]
pub(super) fn plan_identity(edit: &mut Edit, bytes: &[u8], scan: &Scan, crossing: &Crossing<'_>) -> Result<(), Reason> {
    let count = scan.count(HeaderName::AssertedIdentity);
    if count == 0 || !crossing.strips(bytes, scan) {
        return Ok(());
    }
    if count > IDENTITY_LINES_MAX {
        return Err(Reason::TooManyIdentities);
    }
    //= rfc3325#section-9.2 preferred
    //# P-Preferred-Identity passes to the trusted proxy that will authenticate.
    scan.all(HeaderName::AssertedIdentity).for_each(|identity| edit.remove(identity.line));
    Ok(())
}

/// Does a Privacy header name `id`? Its values stand apart by semicolons (RFC 3323 4.2), some write commas; a `none`
/// beside it does not undo it, since what was told cannot be taken back.
fn asks_for_privacy(bytes: &[u8], scan: &Scan) -> bool {
    let is_apart = |byte: &u8| matches!(byte, b';' | b',' | b' ' | b'\t' | b'\r' | b'\n');
    let asks = |value: Span| value.of(bytes).split(is_apart).any(|word| word.eq_ignore_ascii_case(b"id"));
    scan.all(HeaderName::Privacy).any(|header| asks(header.value))
}
