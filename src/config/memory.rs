//! What a configuration costs in memory, as a sum of named terms.
//!
//! Every capacity is fixed at start, so its memory is a formula. [`Budget::of`] is that formula: one [`Term`] for each
//! thing that is bought in bulk, with what it takes at most and what is resident under ordinary traffic. The program
//! itself, thread stacks and what the kernel spends on a socket besides its buffers are not in it.
//!
//! All figures are bytes, and saturate.

use super::units::show_size;
use super::values::{Backend, Config, Listen};
use crate::base::id::Transport;

/// One affinity binding.
pub const BINDING_BYTES: u64 = 64;
/// The address space of one receive buffer: the largest datagram with its header, in whole pages.
pub const RECEIVE_BUFFER_BYTES: u64 = 68 * 1024;
/// One receive buffer of connections.
pub const STREAM_BUFFER_BYTES: u64 = 16 * 1024;
/// One idle TLS session with a chain of certificates of its peer, at most; `tests/tls_memory.rs` measures it.
pub const TLS_SESSION_BYTES: u64 = 8 * 1024;
/// What of a receive buffer an ordinary message touches.
pub const PAGE_BYTES: u64 = 4_096;
/// Entries of a Maglev table; a prime.
pub const MAGLEV_ENTRIES: u64 = 65_537;
/// Bytes of one entry.
pub const MAGLEV_ENTRY_BYTES: u64 = 2;
/// Snapshots alive at once: the one in use, and its successor until the last worker has changed over.
pub const SNAPSHOTS_LIVE: u64 = 2;
/// The kernel doubles SO_RCVBUF and SO_SNDBUF for its own bookkeeping (socket(7)).
pub const SOCKET_BUFFER_FACTOR: u64 = 2;

/// One named part of the memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    /// What it is for.
    pub name: &'static str,
    /// How it is reckoned, with the numbers of this configuration.
    pub formula: String,
    /// At most, for each worker; 0 for what workers share.
    pub per_worker: u64,
    /// At most, for the process.
    pub total: u64,
    /// Resident under ordinary traffic, for the process.
    pub typical: u64,
}

/// The memory of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// How many workers it was reckoned for.
    pub workers: u64,
    /// The parts.
    pub terms: Vec<Term>,
}

impl Budget {
    /// Adds up a configuration with that many workers.
    pub fn of(config: &Config, workers: usize) -> Self {
        let workers = workers as u64;
        let limits = &config.limits;
        let is_udp = |listen: &&Listen| !listen.transport.is_stream();
        let all = || config.services.iter().flat_map(|service| &service.listen);
        let listens = all().filter(is_udp).count() as u64;
        let is_stream = |backend: &Backend| backend.transport.is_stream() || backend.large_address.is_some();
        let has_streams =
            all().count() as u64 > listens || config.pools.iter().flat_map(|pool| &pool.backends).any(is_stream);
        let pools = config.pools.len() as u64;
        let peers = workers.saturating_sub(1);
        let (bindings, buffers) = (limits.bindings_max as u64, limits.receive_buffers as u64);
        let (ring, socket) = (limits.handoff_ring_bytes as u64, limits.socket_buffer_bytes as u64);
        let queue = limits.write_queue_bytes as u64;

        let each = |name, formula, per_worker: u64, typical_per_worker: u64| Term {
            name,
            formula,
            per_worker,
            total: per_worker.saturating_mul(workers),
            typical: typical_per_worker.saturating_mul(workers),
        };
        let binding_bytes = product(&[bindings, BINDING_BYTES]);
        let ring_bytes = product(&[peers, ring]);
        let socket_bytes = product(&[listens, 2, SOCKET_BUFFER_FACTOR, socket]);
        let (stream_buffers, connections) = match has_streams {
            true => (limits.stream_buffers as u64, limits.connections_max as u64),
            false => (0, 0),
        };
        let speaks_tls = |backend: &Backend| {
            [Some(backend.transport), backend.large_address.map(|(large, _)| large)].contains(&Some(Transport::Tls))
        };
        let has_tls = all().any(|listen| listen.transport.is_secure())
            || config.pools.iter().flat_map(|pool| &pool.backends).any(speaks_tls);
        let sessions = if has_tls { connections } else { 0 };
        let stream_bytes = product(&[stream_buffers, STREAM_BUFFER_BYTES]);
        let maglev_bytes = product(&[pools, MAGLEV_ENTRIES, MAGLEV_ENTRY_BYTES]);
        Budget {
            workers,
            terms: vec![
                each("bindings", format!("{bindings} * {BINDING_BYTES} B"), binding_bytes, binding_bytes),
                each(
                    "receive buffers",
                    format!("UDP listeners {listens} * {buffers} * 68KiB address space, 4KiB touched"),
                    product(&[listens, buffers, RECEIVE_BUFFER_BYTES]),
                    product(&[listens, buffers, PAGE_BYTES]),
                ),
                each(
                    "hand-off rings",
                    format!("rings {workers} * {peers} * {}", show_size(ring)),
                    ring_bytes,
                    ring_bytes,
                ),
                each(
                    "socket buffers",
                    format!(
                        "kernel: UDP listeners {listens} * 2 directions * {SOCKET_BUFFER_FACTOR} * {}",
                        show_size(socket)
                    ),
                    socket_bytes,
                    0,
                ),
                each("stream buffers", format!("{stream_buffers} * 16KiB"), stream_bytes, stream_bytes),
                each(
                    "TLS sessions",
                    format!("connections {sessions} * 8KiB, for those that are open"),
                    product(&[sessions, TLS_SESSION_BYTES]),
                    0,
                ),
                each(
                    "write queues",
                    format!("connections {connections} * {}, empty but for stuck peers", show_size(queue)),
                    product(&[connections, queue]),
                    0,
                ),
                Term {
                    name: "Maglev tables",
                    formula: format!(
                        "pools {pools} * {MAGLEV_ENTRIES} * {MAGLEV_ENTRY_BYTES} B * {SNAPSHOTS_LIVE} snapshots, shared"
                    ),
                    per_worker: 0,
                    total: product(&[maglev_bytes, SNAPSHOTS_LIVE]),
                    typical: maglev_bytes,
                },
            ],
        }
    }

    /// All terms added: per worker, for the process, and resident under ordinary traffic.
    pub fn sum(&self) -> (u64, u64, u64) {
        self.terms.iter().fold((0, 0, 0), |(per_worker, total, typical): (u64, u64, u64), term| {
            (
                per_worker.saturating_add(term.per_worker),
                total.saturating_add(term.total),
                typical.saturating_add(term.typical),
            )
        })
    }

    /// The table that `tandem check --limits` prints.
    pub fn render(&self) -> String {
        let mut text = format!("memory with {} workers\n", self.workers);
        text.push_str(&row("", "per worker", "total", "typical", "reckoned as"));
        for term in &self.terms {
            let [per_worker, total, typical] = [term.per_worker, term.total, term.typical].map(show_rounded);
            text.push_str(&row(term.name, &per_worker, &total, &typical, &term.formula));
        }
        let (per_worker, total, typical) = self.sum();
        let [per_worker, total, typical] = [per_worker, total, typical].map(show_rounded);
        text.push_str(&row("sum", &per_worker, &total, &typical, "per worker and total are upper bounds"));
        text
    }
}

/// One line of the table.
fn row(name: &str, per_worker: &str, total: &str, typical: &str, formula: &str) -> String {
    format!("  {name:<16} {per_worker:>11} {total:>11} {typical:>11}  {formula}\n")
}

/// A product that saturates.
fn product(factors: &[u64]) -> u64 {
    factors.iter().fold(1, |product: u64, factor| product.saturating_mul(*factor))
}

/// Bytes in the unit that leaves one to four digits before the point, to a tenth, in integer arithmetic.
fn show_rounded(bytes: u64) -> String {
    let (unit, unit_bytes) = match bytes {
        0..1_024 => return format!("{bytes} B"),
        1_024..1_048_576 => ("KiB", 1u64 << 10),
        1_048_576..1_073_741_824 => ("MiB", 1 << 20),
        _ => ("GiB", 1 << 30),
    };
    let tenths = u128::from(bytes) * 10 / u128::from(unit_bytes);
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budget_is_the_sum_of_its_named_terms() {
        let loaded = super::super::parse(super::super::tests::REST, "t.toml").unwrap();
        let budget = Budget::of(&loaded.config, 4);
        let per_worker: Vec<u64> = budget.terms.iter().map(|term| term.per_worker).collect();
        assert_eq!(per_worker, [262_144 * 64, 1_024 * 68 * 1_024, 3 << 20, 32 << 20, 4 << 20, 0, 8 << 30, 0]);
        let total: Vec<u64> = budget.terms.iter().map(|term| term.total).collect();
        assert_eq!(total[..4], [64 << 20, 4 * 1_024 * 68 * 1_024, 12 << 20, 128 << 20]);
        assert_eq!(total[4..], [16 << 20, 0, 32 << 30, 2 * 2 * 65_537]);
        assert_eq!(budget.sum().0, per_worker.iter().sum::<u64>());
        assert_eq!(budget.sum().1, total.iter().sum::<u64>());
        assert_eq!(budget.sum().2, (64 << 20) + (16 << 20) + (12 << 20) + (16 << 20) + 2 * 65_537);
    }

    #[test]
    fn connections_cost_nothing_where_there_are_none() {
        let text = super::super::tests::REST.replace(", \"tcp:127.0.0.1:5060\"", "");
        let loaded = super::super::parse(&text, "t.toml").unwrap();
        let budget = Budget::of(&loaded.config, 4);
        let of = |budget: &Budget, name: &str| budget.terms.iter().find(|term| term.name == name).unwrap().total;
        assert_eq!(["stream buffers", "TLS sessions", "write queues"].map(|name| of(&budget, name)), [0, 0, 0]);
        let text = text.replace("udp:127.0.0.1:5071", "tls:127.0.0.1:5071");
        let loaded = super::super::parse(&text, "t.toml").unwrap();
        assert_eq!(of(&Budget::of(&loaded.config, 1), "TLS sessions"), 32_768 * TLS_SESSION_BYTES);
    }

    #[test]
    fn one_worker_has_no_rings() {
        let loaded = super::super::parse(super::super::tests::REST, "t.toml").unwrap();
        assert_eq!(Budget::of(&loaded.config, 1).terms[2].total, 0);
        assert_eq!(Budget::of(&loaded.config, usize::MAX).sum().1, u64::MAX);
    }

    #[test]
    fn sizes_are_shown_to_a_tenth() {
        assert_eq!(show_rounded(1_023), "1023 B");
        assert_eq!(show_rounded(262_148), "256.0 KiB");
        assert_eq!(show_rounded(16 << 20), "16.0 MiB");
    }
}
