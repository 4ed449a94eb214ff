//! The keys of affinity: which messages must meet.
//!
//! Every message of a call meets at one worker and, while its binding lasts, at one backend: the Call-ID is the key
//! of both. What is new is selected by the service's key: the Call-ID again, but for REGISTER the address of record,
//! so that a challenge and its answer, refreshes, and a second device of the same user find one registrar although
//! each has a Call-ID of its own.

use std::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher13};

use crate::config::Secret;
use crate::route::cookie::Keys;
use crate::route::request::Request;
use crate::sip::method::Method;
use crate::sip::scan::{HeaderName, Scan};
use crate::sip::uri::Uri;

/// The keyed hash that places Call-IDs on workers and into tables; the seed comes from the
/// node's secret, so
/// that nobody outside can aim at one worker or one bucket.
#[derive(Clone, Copy, Debug)]
pub struct CallHasher {
    hasher: SipHasher13,
}

/// The 128-bit keyed hash of a Call-ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallKey(pub u128);

impl CallHasher {
    /// From the secret of the process's start; all workers share it and keep it through rotations, since what it
    /// placed must be found again.
    pub fn new(secret: &Secret) -> Self {
        let mut hasher = SipHasher13::new_with_key(&secret.0);
        hasher.write(b"call");
        let seed = hasher.finish128();
        CallHasher { hasher: SipHasher13::new_with_keys(seed.h1, seed.h2) }
    }

    /// The key of a Call-ID.
    #[inline]
    pub fn hash(&self, call_id: &[u8]) -> CallKey {
        let mut hasher = self.hasher;
        hasher.write(call_id);
        CallKey(hasher.finish128().as_u128())
    }

    /// The key of a scanned message; of its source when it has no Call-ID, so that its answer is made somewhere.
    pub fn hash_message(&self, bytes: &[u8], scan: &Scan) -> CallKey {
        self.hash(scan.first(HeaderName::CallId).map_or(&[], |h| h.value.of(bytes)))
    }
}

impl CallKey {
    /// The part that picks the owning worker.
    pub const fn owner_hash(self) -> u64 {
        (self.0 >> 64) as u64
    }
}

/// The hash by which a backend is selected for a request that nothing binds yet.
pub fn selection_hash(keys: &Keys, request: &Request<'_>) -> u64 {
    if request.method != Method::Register {
        return keys.select_hash(&[request.text(request.call_id)]);
    }
    let bytes = request.bytes;
    let Ok(record) = Uri::decode(bytes, request.to_uri) else {
        return keys.select_hash(&[request.text(request.to_uri)]);
    };
    // RFC 3261 10.3: parameters go, the host has no case; ports and passwords do not name another user.
    let user = record.user.of(bytes).split(|b| *b == b':').next().unwrap_or_default();
    let mut host = [0u8; 256];
    let text = record.host.of(bytes);
    let text = &text[..text.len().min(host.len())];
    host[..text.len()].copy_from_slice(text);
    host[..text.len()].make_ascii_lowercase();
    keys.select_hash(&[user, b"@", &host[..text.len()]])
}
