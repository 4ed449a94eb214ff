//! What a sender may cost us is bounded: time is linear in bytes whatever the shape of a message, and no choice of
//! Call-IDs makes the tables slower or the spread uneven.
//!
//! `linear.rs` hands messages of up to 65,000 bytes of every shape that we could think of (`shapes.rs`) to a real engine:
//! scan, decision and edit together. A build with optimisation must do each in a millisecond; any build must take no
//! more than its share longer for twice, and for eight times, the bytes. `flood.rs` builds a million Call-IDs that are
//! one to FNV-1a and to CRC-32 (`collisions.rs`), the hashes that other balancers use without a key.
//!
//! Time is measured on a machine that others use, so what counts is CPU time of the thread, the least of some
//! repetitions, and a bound that is exceeded is measured again and again before it fails: noise only ever adds.

#![allow(unreachable_pub, reason = "a test exports nothing; `pub` marks what its files share")]

mod collisions;
mod flood;
mod linear;
mod shapes;

use std::net::SocketAddr;
use std::sync::Arc;

use tandem::base::time::Instant;
use tandem::config::{Backend, Config};
use tandem::engine::outbox::{DATAGRAM_MAX, Outbox};
use tandem::engine::{Capacity, Engine, Outcome, Received};
use tandem::route::key::CallHasher;
use tandem::route::snapshot::{BackendStatus, ListenerIndex, Snapshot};

/// Where clients send to.
pub const SERVICE: &str = "192.0.2.10:5060";
/// The client.
pub const CLIENT: &str = "203.0.113.77:5062";
/// The first backend.
pub const BACKEND: &str = "198.51.100.10:5060";

/// A configuration with so many backends.
pub fn config(backends: usize) -> Config {
    let mut text = format!(
        "[node]\nsecret = \"6f1d0c9e25b84a7390e1c2d3f4a5b697\"\nnames = [\"sip.example.com\"]\n\
         [[service]]\nname = \"voice\"\nlisten = [\"udp:{SERVICE}\"]\npool = \"pbx\"\n[[pool]]\nname = \"pbx\"\n"
    );
    for number in 0..backends {
        text +=
            &format!("[[pool.backend]]\nname = \"pbx{number}\"\naddress = \"udp:198.51.100.{}:5060\"\n", 10 + number);
    }
    tandem::config::parse(&text, "bounds.toml").expect("a good file").config
}

/// Its picture, every backend healthy.
pub fn snapshot(config: &Config, workers: usize) -> Arc<Snapshot> {
    let healthy = |b: &Backend| BackendStatus { admin: b.admin, is_healthy: true };
    Arc::new(Snapshot::build(config, 1, workers, healthy))
}

/// An engine and what it sends.
pub struct Bench {
    /// The engine.
    pub engine: Engine,
    outbox: Outbox,
}

impl Bench {
    /// Worker 0 of so many. It may see more header lines than any file allows: where they end must not matter.
    pub fn new(config: &Config, workers: usize) -> Bench {
        let hasher = CallHasher::new(config.node.secret.as_ref().expect("the file names a secret"));
        let capacity = Capacity { bindings: 1 << 16, headers: 65_534, message_bytes: DATAGRAM_MAX };
        let engine = Engine::new(0, snapshot(config, workers), hasher, capacity);
        Bench { engine, outbox: Outbox::with_capacity(4, 1 << 18) }
    }

    /// Deals with one datagram.
    pub fn handle(&mut self, source: SocketAddr, bytes: &[u8]) -> Outcome {
        self.outbox.clear();
        let rx = Received { bytes, source, listener: ListenerIndex(0), flow: None, is_taken_over: false };
        self.engine.handle(Instant(0), &rx, &mut self.outbox)
    }

    /// What it sent then: where to, and the text.
    pub fn sent(&self) -> Option<(SocketAddr, String)> {
        let transmit = self.outbox.transmits().first()?;
        Some((transmit.hop.destination, String::from_utf8_lossy(self.outbox.bytes(transmit)).into_owned()))
    }
}
