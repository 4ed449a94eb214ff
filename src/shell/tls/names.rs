//! Which certificate a client is shown: by the name it asks for, and by what it can verify.
//!
//! Several certificates may have one name, one with an RSA key and one with an ECDSA key for instance: the first in
//! the order of the configuration whose key the client can verify is taken. An exact name goes before a wildcard, and
//! a client that asks for no name, or for one that is not known, gets the first certificate of all, since phones often
//! know nothing but an address.
//!
//! Cost: two look-ups a handshake.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// Certificates by name.
#[derive(Debug)]
pub(super) struct ByName {
    /// In the order of the configuration; never empty.
    keys: Vec<Arc<CertifiedKey>>,
    /// Lower-case name, exact or beginning with `*.`, to indices into `keys`, ascending.
    names: HashMap<String, Vec<usize>>,
}

impl ByName {
    /// From certificates with their names; `None` without any.
    pub(super) fn new(certificates: Vec<(Arc<CertifiedKey>, Vec<String>)>) -> Option<Self> {
        let mut by_name = ByName { keys: Vec::new(), names: HashMap::new() };
        for (index, (key, names)) in certificates.into_iter().enumerate() {
            by_name.keys.push(key);
            for name in names {
                let indices = by_name.names.entry(name).or_default();
                if indices.last() != Some(&index) {
                    indices.push(index);
                }
            }
        }
        (!by_name.keys.is_empty()).then_some(by_name)
    }

    /// Indices of the certificates that have `name`, best first; all of them when none has.
    fn candidates(&self, name: Option<&str>) -> Vec<usize> {
        let Some(name) = name else { return (0..self.keys.len()).collect() };
        let exact = name.to_ascii_lowercase();
        let wildcard = exact.split_once('.').map(|(_, domain)| format!("*.{domain}")).unwrap_or_default();
        let found: Vec<usize> =
            [exact, wildcard].iter().filter_map(|name| self.names.get(name)).flatten().copied().collect();
        if found.is_empty() { (0..self.keys.len()).collect() } else { found }
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let candidates = self.candidates(hello.server_name());
        let fits = |index: &&usize| self.keys[**index].key.choose_scheme(hello.signature_schemes()).is_some();
        let index = candidates.iter().find(fits).or(candidates.first())?;
        self.keys.get(*index).cloned()
    }
}
