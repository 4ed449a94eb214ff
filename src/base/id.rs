//! Identifiers that stay the same across restarts, reloads and nodes.
//!
//! A backend and a listener are named in cookies that live as long as a dialog, so neither may be an index into a
//! list that a reload reorders. Both ids are keyless hashes of what the operator wrote; the configuration refuses
//! two names that collide.

use std::fmt;
use std::hash::Hasher;
use std::net::SocketAddr;

use siphasher::sip::SipHasher13;

/// The transport a listener, a backend or a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// UDP, RFC 3261 section 18.
    Udp,
    /// TCP, RFC 3261 section 18.
    Tcp,
    /// TLS over TCP, RFC 3261 section 26.2.
    Tls,
    /// WebSocket, RFC 7118.
    Ws,
    /// WebSocket over TLS, RFC 7118.
    Wss,
}

impl Transport {
    /// Every transport.
    pub const ALL: [Transport; 5] = [Transport::Udp, Transport::Tcp, Transport::Tls, Transport::Ws, Transport::Wss];

    /// The scheme used in configuration addresses: `udp`.
    pub const fn scheme(self) -> &'static str {
        match self {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
            Transport::Tls => "tls",
            Transport::Ws => "ws",
            Transport::Wss => "wss",
        }
    }

    /// How a Via names it (RFC 3261 20.42, RFC 7118 5.2): `UDP`.
    pub const fn via_name(self) -> &'static str {
        match self {
            Transport::Udp => "UDP",
            Transport::Tcp => "TCP",
            Transport::Tls => "TLS",
            Transport::Ws => "WS",
            Transport::Wss => "WSS",
        }
    }

    /// Does it run over connections?
    pub const fn is_stream(self) -> bool {
        !matches!(self, Transport::Udp)
    }

    /// Does it run over TLS?
    pub const fn is_secure(self) -> bool {
        matches!(self, Transport::Tls | Transport::Wss)
    }

    /// Does each message come in a WebSocket frame of its own?
    pub const fn is_web_socket(self) -> bool {
        matches!(self, Transport::Ws | Transport::Wss)
    }

    /// The port where none is written (RFC 3261 19.1.2; RFC 7118 keeps those of HTTP).
    pub const fn default_port(self) -> u16 {
        match self {
            Transport::Udp | Transport::Tcp => 5060,
            Transport::Tls => 5061,
            Transport::Ws => 80,
            Transport::Wss => 443,
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

/// A connection of this process while it lives: which worker has it, what it speaks, its place in that worker's table,
/// and how often that place was used before. It means nothing to another process: a token that carries one is
/// checked by its generation, which starts at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId(pub u64);

impl FlowId {
    /// From a worker below 256, a place below 2^24 and a generation, of which 24 bits are kept.
    pub const fn new(worker: u16, transport: Transport, slot: u32, generation: u32) -> Self {
        let (worker, transport) = ((worker & 0xFF) as u64, transport as u64);
        FlowId(worker << 56 | transport << 48 | ((slot & 0xFF_FFFF) as u64) << 24 | (generation & 0xFF_FFFF) as u64)
    }

    /// The worker that has it.
    pub const fn worker(self) -> u16 {
        (self.0 >> 56) as u16
    }

    /// What it speaks.
    pub const fn transport(self) -> Transport {
        let index = (self.0 >> 48) as usize & 0xFF;
        Transport::ALL[if index < Transport::ALL.len() { index } else { 0 }]
    }

    /// Its place in that worker's table.
    pub const fn slot(self) -> u32 {
        (self.0 >> 24) as u32 & 0xFF_FFFF
    }

    /// How often that place was used before, modulo 2^24.
    pub const fn generation(self) -> u32 {
        self.0 as u32 & 0xFF_FFFF
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
