//! What a reload changes, in words, and what it may not change.
//!
//! Some keys are fixed when the workers start: their number and cores, what they allocate, the sockets they own. A
//! file that changes one of those is refused whole, with every such key named, and the old configuration stays. A
//! reload that silently applied half of a file would leave nobody sure of what runs.
//!
//! The rest becomes a list of changes for the log. Secrets are compared and never written. Services, pools and
//! backends are told apart by name; a pool that a service names is compared by name, since indices move.

use std::collections::BTreeMap;
use std::fmt;

use crate::config::{Backend, Config, Limits, Listen, Pool, PoolTls, Service, ServiceTls, Timers, show_address};

/// One change between two configurations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A thing is there that was not.
    Added(String),
    /// A thing is gone.
    Removed(String),
    /// One key of a thing has another value.
    Changed {
        /// `backend pbx1`
        what: String,
        /// The key in the file.
        key: &'static str,
        /// The value before.
        from: String,
        /// The value after.
        to: String,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Added(what) => write!(f, "{what} added"),
            Change::Removed(what) => write!(f, "{what} removed"),
            Change::Changed { what, key, from, to } => write!(f, "{what}: {key} {from} -> {to}"),
        }
    }
}

/// All changes of a reload, in the order of the files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// The changes; empty when the file says what already runs.
    pub changes: Vec<Change>,
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.changes.is_empty() {
            return f.write_str("nothing changed");
        }
        for (i, change) in self.changes.iter().enumerate() {
            write!(f, "{}{change}", if i == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

/// Why a configuration was not taken: it changes what is fixed until a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What may not change now, a sentence each.
    pub fixed: Vec<Change>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for change in &self.fixed {
            writeln!(f, "{change}: cannot change while running; restart to change it")?;
        }
        f.write_str("the old configuration stays in force")
    }
}

impl std::error::Error for Refusal {}

impl Diff {
    /// Compares the configuration in force with the one that is to follow it.
    ///
    /// # Errors
    ///
    /// [`Refusal`] when `new` changes anything that is fixed until a restart.
    pub fn between(old: &Config, new: &Config) -> Result<Diff, Refusal> {
        let mut fixed = Changes::default();
        collect_fixed(old, new, &mut fixed);
        if !fixed.0.is_empty() {
            return Err(Refusal { fixed: fixed.0 });
        }
        let mut changes = Changes::default();
        collect_node(old, new, &mut changes);
        collect_timers(&old.timers, &new.timers, &mut changes);
        changes.key("[[certificate]]", "files and names", &old.certificates, &new.certificates);
        collect_services(old, new, &mut changes);
        collect_pools(old, new, &mut changes);
        collect_backends(old, new, &mut changes);
        Ok(Diff { changes: changes.0 })
    }
}

#[derive(Default)]
struct Changes(Vec<Change>);

impl Changes {
    /// Notes a change of `key` when the two values differ; `{:?}` is how they are written.
    fn key<T: PartialEq + fmt::Debug>(&mut self, what: &str, key: &'static str, old: &T, new: &T) {
        if old != new {
            let (from, to) = (format!("{old:?}"), format!("{new:?}"));
            self.0.push(Change::Changed { what: what.to_owned(), key, from, to });
        }
    }

    /// Walks two named lists: notes what is added and removed, and gives the pairs that stay.
    fn named<'a, T>(&mut self, noun: &str, old: &[(&'a str, T)], new: &[(&'a str, T)]) -> Vec<(String, T, T)>
    where
        T: Copy,
    {
        let before: BTreeMap<&str, T> = old.iter().copied().collect();
        let after: BTreeMap<&str, T> = new.iter().copied().collect();
        for (name, _) in old.iter().filter(|(name, _)| !after.contains_key(name)) {
            self.0.push(Change::Removed(format!("{noun} {name}")));
        }
        let mut stay = Vec::new();
        for (name, value) in new {
            match before.get(name) {
                Some(previous) => stay.push((format!("{noun} {name}"), *previous, *value)),
                None => self.0.push(Change::Added(format!("{noun} {name}"))),
            }
        }
        stay
    }
}

fn collect_fixed(old: &Config, new: &Config, fixed: &mut Changes) {
    fixed.key("[node]", "name", &old.node.name, &new.node.name);
    fixed.key("[node]", "workers", &old.node.workers, &new.node.workers);
    fixed.key("[node]", "control_core", &old.node.control_core, &new.node.control_core);
    fixed.key("[node]", "spin", &old.node.spin, &new.node.spin);
    fixed.key("[node]", "control_socket", &old.node.control_socket, &new.node.control_socket);
    // Taken apart by name, so that a key that is added later has to be placed here too.
    let b = &new.limits;
    let Limits {
        bindings_max,
        message_bytes_max,
        headers_max,
        receive_buffers,
        handoff_ring_bytes,
        socket_buffer_bytes,
        connections_max,
        connections_per_source,
        stream_buffers,
        write_queue_bytes,
        handshakes_max,
    } = &old.limits;
    fixed.key("[limits]", "bindings_max", bindings_max, &b.bindings_max);
    fixed.key("[limits]", "message_bytes_max", message_bytes_max, &b.message_bytes_max);
    fixed.key("[limits]", "headers_max", headers_max, &b.headers_max);
    fixed.key("[limits]", "receive_buffers", receive_buffers, &b.receive_buffers);
    fixed.key("[limits]", "handoff_ring_bytes", handoff_ring_bytes, &b.handoff_ring_bytes);
    fixed.key("[limits]", "socket_buffer_bytes", socket_buffer_bytes, &b.socket_buffer_bytes);
    fixed.key("[limits]", "connections_max", connections_max, &b.connections_max);
    fixed.key("[limits]", "connections_per_source", connections_per_source, &b.connections_per_source);
    fixed.key("[limits]", "stream_buffers", stream_buffers, &b.stream_buffers);
    fixed.key("[limits]", "write_queue_bytes", write_queue_bytes, &b.write_queue_bytes);
    fixed.key("[limits]", "handshakes_max", handshakes_max, &b.handshakes_max);
    // Workers know their sockets by position, so the order counts too.
    fixed.key("[[service]]", "listen", &Listens::of(old), &Listens::of(new));
}

/// Listening addresses, shown as they are written.
#[derive(PartialEq)]
struct Listens<'a>(Vec<&'a Listen>);

impl<'a> Listens<'a> {
    fn of(config: &'a Config) -> Self {
        Listens(config.services.iter().flat_map(|service| &service.listen).collect())
    }
}

impl fmt::Debug for Listens<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|l| format!("{}:{}", l.transport, l.address))).finish()
    }
}

/// Digests, shown in hexadecimal as they are written.
#[derive(PartialEq)]
struct Pins<'a>(&'a [[u8; 32]]);

impl fmt::Debug for Pins<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |pin: &[u8; 32]| pin.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        f.debug_list().entries(self.0.iter().map(hex)).finish()
    }
}

fn collect_node(old: &Config, new: &Config, changes: &mut Changes) {
    changes.key("[node]", "names", &old.node.names, &new.node.names);
    for (key, a, b) in [
        ("secret", &old.node.secret, &new.node.secret),
        ("secret_previous", &old.node.secret_previous, &new.node.secret_previous),
    ] {
        if a != b {
            let word = |is_set: bool| if is_set { "set" } else { "unset" }.to_owned();
            let (from, to) = (word(a.is_some()), if b.is_some() { "a new one" } else { "unset" }.to_owned());
            changes.0.push(Change::Changed { what: "[node]".to_owned(), key, from, to });
        }
    }
}

fn collect_timers(old: &Timers, b: &Timers, changes: &mut Changes) {
    let Timers {
        binding_early,
        binding_dialog,
        binding_linger,
        message_timeout,
        idle_timeout,
        write_timeout,
        handshake_timeout,
        connect_timeout,
    } = old;
    changes.key("[timers]", "binding_early", binding_early, &b.binding_early);
    changes.key("[timers]", "binding_dialog", binding_dialog, &b.binding_dialog);
    changes.key("[timers]", "binding_linger", binding_linger, &b.binding_linger);
    changes.key("[timers]", "message_timeout", message_timeout, &b.message_timeout);
    changes.key("[timers]", "idle_timeout", idle_timeout, &b.idle_timeout);
    changes.key("[timers]", "write_timeout", write_timeout, &b.write_timeout);
    changes.key("[timers]", "handshake_timeout", handshake_timeout, &b.handshake_timeout);
    changes.key("[timers]", "connect_timeout", connect_timeout, &b.connect_timeout);
}

fn collect_services(old: &Config, new: &Config, changes: &mut Changes) {
    fn named(config: &Config) -> Vec<(&str, (&Service, &str))> {
        let pool = |service: &Service| config.pools.get(service.pool).map_or("", |pool| pool.name.as_str());
        config.services.iter().map(|service| (service.name.as_str(), (service, pool(service)))).collect()
    }
    for (what, (a, pool_a), (b, pool_b)) in changes.named("service", &named(old), &named(new)) {
        changes.key(&what, "pool", &pool_a, &pool_b);
        changes.key(&what, "record_route", &a.record_route, &b.record_route);
        changes.key(&what, "proxy_protocol_from", &a.proxy_protocol_from, &b.proxy_protocol_from);
        changes.key(&what, "origins", &a.origins, &b.origins);
        changes.key(&what, "sips_over_plain", &a.sips_over_plain, &b.sips_over_plain);
        let ServiceTls { client_certificate, client_ca, min_version } = &a.tls;
        changes.key(&what, "tls.client_certificate", client_certificate, &b.tls.client_certificate);
        changes.key(&what, "tls.client_ca", client_ca, &b.tls.client_ca);
        changes.key(&what, "tls.min_version", min_version, &b.tls.min_version);
        changes.key(&what, "strip_identity", &a.strip_identity, &b.strip_identity);
        changes.key(&what, "listen", &Listens(a.listen.iter().collect()), &Listens(b.listen.iter().collect()));
    }
}

fn collect_pools(old: &Config, new: &Config, changes: &mut Changes) {
    fn named(config: &Config) -> Vec<(&str, &Pool)> {
        config.pools.iter().map(|pool| (pool.name.as_str(), pool)).collect()
    }
    for (what, a, b) in changes.named("pool", &named(old), &named(new)) {
        changes.key(&what, "policy", &a.policy, &b.policy);
        changes.key(&what, "retry_after", &a.retry_after, &b.retry_after);
        changes.key(&what, "udp_bytes_max", &a.udp_bytes_max, &b.udp_bytes_max);
        let PoolTls { verify, ca, server_name, pins, certificate, key } = &a.tls;
        changes.key(&what, "tls.verify", verify, &b.tls.verify);
        changes.key(&what, "tls.ca", ca, &b.tls.ca);
        changes.key(&what, "tls.server_name", server_name, &b.tls.server_name);
        changes.key(&what, "tls.pins", &Pins(pins), &Pins(&b.tls.pins));
        changes.key(&what, "tls.certificate", certificate, &b.tls.certificate);
        changes.key(&what, "tls.key", key, &b.tls.key);
        changes.key(&what, "health.probe", &a.health.probe, &b.health.probe);
        changes.key(&what, "health.interval", &a.health.interval, &b.health.interval);
        changes.key(&what, "health.jitter", &a.health.jitter, &b.health.jitter);
        changes.key(&what, "health.timeout", &a.health.timeout, &b.health.timeout);
        changes.key(&what, "health.rise", &a.health.rise, &b.health.rise);
        changes.key(&what, "health.fall", &a.health.fall, &b.health.fall);
    }
}

fn collect_backends(old: &Config, new: &Config, changes: &mut Changes) {
    fn named(config: &Config) -> Vec<(&str, (&Backend, &str))> {
        let pools = config.pools.iter();
        pools.flat_map(|pool| pool.backends.iter().map(|b| (b.name.as_str(), (b, pool.name.as_str())))).collect()
    }
    for (what, (a, pool_a), (b, pool_b)) in changes.named("backend", &named(old), &named(new)) {
        changes.key(&what, "pool", &pool_a, &pool_b);
        changes.key(&what, "transport", &a.transport, &b.transport);
        changes.key(&what, "address", &a.address, &b.address);
        let large = |backend: &Backend| backend.large_address.map(|(transport, at)| show_address(transport, at));
        changes.key(&what, "large_address", &large(a), &large(b));
        changes.key(&what, "proxy_protocol", &a.proxy_protocol, &b.proxy_protocol);
        changes.key(&what, "weight", &a.weight, &b.weight);
        changes.key(&what, "priority", &a.priority, &b.priority);
        changes.key(&what, "admin", &a.admin, &b.admin);
    }
}
