//! Identifiers that stay the same across restarts, reloads and nodes.
//!
//! A backend and a listener are named in cookies that live as long as a dialog, so neither may be an index into a
//! list that a reload reorders. Both ids are keyless hashes of what the operator wrote; the configuration refuses
//! two names that collide.

use std::fmt;
use std::hash::Hasher;
use std::net::SocketAddr;

use siphasher::sip::SipHasher13;

/// The transport a listener or a backend speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// UDP, RFC 3261 section 18.
    Udp,
}

impl Transport {
    /// The scheme used in configuration addresses: `udp`.
    pub const fn scheme(self) -> &'static str {
        match self {
            Transport::Udp => "udp",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.scheme())
    }
}

/// A backend, named by a 32-bit hash of its configured name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendId(pub u32);

impl BackendId {
    /// Derives the id from the configured name; equal on every node and after every restart.
    pub fn from_name(name: &str) -> Self {
        BackendId(stable_hash(b"backend", name.as_bytes()) as u32)
    }
}

/// A listener, named by a 16-bit hash of its transport and address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerId(pub u16);

impl ListenerId {
    /// Derives the id from the listening address; equal on every node that carries the address.
    pub fn from_address(transport: Transport, address: SocketAddr) -> Self {
        let mut text = [0u8; 18];
        match address.ip() {
            std::net::IpAddr::V4(ip) => text[..4].copy_from_slice(&ip.octets()),
            std::net::IpAddr::V6(ip) => text[..16].copy_from_slice(&ip.octets()),
        }
        text[16..].copy_from_slice(&address.port().to_be_bytes());
        ListenerId(stable_hash(transport.scheme().as_bytes(), &text) as u16)
    }
}

/// A keyless 64-bit hash that never changes between versions: SipHash-1-3 under a zero key, over a domain and a text.
pub fn stable_hash(domain: &[u8], text: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(domain);
    hasher.write_u8(0);
    hasher.write(text);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_the_same_in_every_build() {
        assert_eq!(BackendId::from_name("pbx1"), BackendId::from_name("pbx1"));
        assert_ne!(BackendId::from_name("pbx1"), BackendId::from_name("pbx2"));
        let v4 = "192.0.2.10:5060".parse().unwrap();
        let v6 = "[2001:db8::1]:5060".parse().unwrap();
        assert_ne!(ListenerId::from_address(Transport::Udp, v4), ListenerId::from_address(Transport::Udp, v6));
    }
}
