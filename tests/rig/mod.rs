//! One real engine on a bench: a configuration in, datagrams in, and what became of each out.
//!
//! Every datagram that goes through the rig is checked for what must hold whatever the case: it has exactly one
//! outcome and the counters say which, an answer has no more bytes than the request, nothing is sent to ourselves or
//! to port 0, and never more than one datagram leaves.

#![allow(dead_code, reason = "each test binary uses its own part of the rig")]

pub(crate) mod message;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tandem::base::id::{FlowId, ListenerId, Transport};
use tandem::base::time::Instant;
use tandem::config::{Admin, Backend, Config, Surroundings, parse_in};
use tandem::engine::outbox::Outbox;
use tandem::engine::{Capacity, Engine, Outcome, Received};
use tandem::metrics::Reason;
use tandem::route::cookie::Keys;
use tandem::route::key::CallHasher;
use tandem::route::snapshot::{BackendStatus, ListenerIndex, Snapshot};
use tandem::route::verdict::Hop;

/// A datagram that left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    /// The listener that it left from.
    pub(crate) from: SocketAddr,
    /// Where to.
    pub(crate) to: SocketAddr,
    /// How.
    pub(crate) hop: Hop,
    /// Its payload.
    pub(crate) bytes: Vec<u8>,
}

/// What became of a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Sent on.
    Forwarded(Sent),
    /// Answered here.
    Answered(u16, Reason, Sent),
    /// Gone.
    Dropped(Reason),
}

/// The bench; see the module head.
pub(crate) struct Rig {
    config: Config,
    generation: u64,
    engine: Engine,
    outbox: Outbox,
    /// The time of the next datagram.
    pub(crate) now: Instant,
}

/// A backend as it should be.
pub(crate) const UP: BackendStatus = BackendStatus { admin: Admin::Enabled, is_healthy: true };

impl Rig {
    /// An engine with the configuration `text`, every backend healthy.
    pub(crate) fn new(text: &str) -> Rig {
        let config = config(text);
        let snapshot = snapshot(&config, 1, |backend| BackendStatus { admin: backend.admin, is_healthy: true });
        let capacity = Capacity {
            bindings: 4096,
            headers: config.limits.headers_max,
            message_bytes: config.limits.message_bytes_max,
        };
        let hasher = CallHasher::new(config.node.secret.as_ref().expect("the rig's file names a secret"));
        Rig {
            engine: Engine::new(0, snapshot, hasher, capacity),
            config,
            generation: 1,
            outbox: Outbox::with_capacity(4, 1 << 18),
            now: Instant(0),
        }
    }

    /// Publishes a new state of the backends.
    pub(crate) fn set_backends(&mut self, status: impl Fn(&Backend) -> BackendStatus) {
        self.generation += 1;
        self.engine.apply_snapshot(snapshot(&self.config, self.generation, status));
    }

    /// Reloads with another configuration, every backend healthy.
    pub(crate) fn reload(&mut self, text: &str) {
        self.config = config(text);
        self.set_backends(|backend| BackendStatus { admin: backend.admin, is_healthy: true });
    }

    /// Lets time pass, with a time-out call each second.
    pub(crate) fn pass(&mut self, time: Duration) {
        for _ in 0..time.as_secs() {
            self.now = self.now + Duration::from_secs(1);
            self.engine.handle_timeout(self.now);
            assert!(self.outbox.is_empty(), "time alone sends nothing");
        }
    }

    /// The signing keys.
    pub(crate) fn keys(&self) -> &Keys {
        &self.engine.snapshot().keys
    }

    /// The picture the engine works by.
    pub(crate) fn snapshot(&self) -> &Snapshot {
        self.engine.snapshot()
    }

    /// The engine.
    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The id of a listening address as cookies carry it.
    pub(crate) fn listener_id(&self, address: SocketAddr) -> ListenerId {
        ListenerId::from_address(Transport::Udp, address)
    }

    /// The name of the backend at `address`.
    pub(crate) fn backend_at(&self, address: SocketAddr) -> Option<&str> {
        let index = self.snapshot().backend_by_address(address)?;
        Some(&self.snapshot().backend(index).name)
    }

    /// Hands a datagram in and says what became of it.
    pub(crate) fn handle(&mut self, source: SocketAddr, at: SocketAddr, bytes: &[u8]) -> Fate {
        let listeners = &self.engine.snapshot().listeners;
        let position = listeners.iter().position(|l| l.listen.address == at).expect("a listener of the rig");
        let listener = ListenerIndex(position as u16);
        self.handle_received(&Received { bytes, source, listener, flow: None, is_taken_over: false })
    }

    /// As [`Rig::handle`], for a message that came on a connection to the listener `at`, written as in the configuration.
    pub(crate) fn handle_on(&mut self, flow: FlowId, source: SocketAddr, at: &str, bytes: &[u8]) -> Fate {
        let listeners = &self.engine.snapshot().listeners;
        let position = listeners.iter().position(|l| l.listen.to_string() == at).expect("a listener of the rig");
        let listener = ListenerIndex(position as u16);
        self.handle_received(&Received { bytes, source, listener, flow: Some(flow), is_taken_over: false })
    }

    /// Lets a message be undeliverable; gives what is sent in its place.
    pub(crate) fn fail(&mut self, sent: &Sent, reason: Reason) -> Option<Sent> {
        self.engine.handle_undeliverable(self.now, &sent.bytes, &sent.hop, reason, &mut self.outbox);
        let instead = self.first_sent();
        self.outbox.clear();
        instead
    }

    fn first_sent(&self) -> Option<Sent> {
        self.outbox.transmits().first().map(|transmit| Sent {
            from: self.engine.snapshot().listener(transmit.hop.listener).listen.address,
            to: transmit.hop.destination,
            hop: transmit.hop,
            bytes: self.outbox.bytes(transmit).to_vec(),
        })
    }

    fn handle_received(&mut self, rx: &Received<'_>) -> Fate {
        let Received { bytes, source, .. } = *rx;
        let before = self.engine.counters();
        assert!(self.outbox.has_room());
        assert_eq!(self.engine.handle(self.now, rx, &mut self.outbox), Outcome::Done);
        let after = self.engine.counters();
        assert_eq!(after.outcomes(), before.outcomes() + 1, "one datagram, one outcome");
        assert_eq!(after.outcomes(), after.received + after.taken_over);
        let sent = self.first_sent();
        assert!(self.outbox.transmits().len() <= 1, "one datagram in, at most one out");
        self.outbox.clear();
        if let Some(sent) = &sent {
            let is_answer = before.answered != after.answered;
            self.check_sent(source, bytes, sent, is_answer && rx.flow.is_none());
        }
        let grown = |now: &[u64], then: &[u64]| {
            Reason::ALL.iter().zip(now).zip(then).find(|((_, now), then)| now > then).map(|((reason, _), _)| *reason)
        };
        match (grown(&after.answered, &before.answered), grown(&after.dropped, &before.dropped), sent) {
            (Some(reason), None, Some(sent)) => Fate::Answered(status_of(&sent.bytes), reason, sent),
            (None, Some(reason), None) => Fate::Dropped(reason),
            (None, None, Some(sent)) => Fate::Forwarded(sent),
            (answered, dropped, sent) => panic!("answered {answered:?}, dropped {dropped:?}, sent {sent:?}"),
        }
    }

    fn check_sent(&self, source: SocketAddr, bytes: &[u8], sent: &Sent, is_answer: bool) {
        assert_ne!(sent.to.port(), 0, "port 0 is no destination");
        let is_ours = self.snapshot().listeners.iter().any(|l| l.listen.address == sent.to);
        assert!(!is_ours, "sent to ourselves: {}", sent.to);
        assert_eq!(sent.from.is_ipv4(), sent.to.is_ipv4(), "a socket of the right family");
        if is_answer {
            assert!(sent.bytes.len() <= bytes.len(), "an answer larger than its request");
            assert_eq!(sent.to.ip(), source.ip(), "an answer to somebody else");
        }
    }
}

fn config(text: &str) -> Config {
    let surroundings = Surroundings { host_name: "rig".to_owned(), read_secret: &|_| Err("no file".to_owned()) };
    parse_in(text, "rig.toml", &surroundings).expect("the rig's configuration is good").config
}

fn snapshot(config: &Config, generation: u64, status: impl Fn(&Backend) -> BackendStatus) -> Arc<Snapshot> {
    Arc::new(Snapshot::build(config, generation, 1, status))
}

fn status_of(answer: &[u8]) -> u16 {
    std::str::from_utf8(&answer[8..11]).expect("a status code").parse().expect("a status code")
}
