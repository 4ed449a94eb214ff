//! What a worker knows of the world: an immutable, numbered picture that the control core builds and publishes.
//!
//! A snapshot is everything a decision needs besides the message and the worker's own bindings: listeners,
//! services, pools with their selection tables, backends by id and by address, and which worker owns which slot
//! of the Call-ID space. Workers hold an `Arc` and swap it between two batches; nothing in it changes.
//!
//! Bound: a table of 128 KiB a pool plus about 100 bytes a backend; built off the message path.

use std::net::SocketAddr;
use std::time::Duration;

use ahash::AHashMap;

use crate::base::id::{BackendId, ListenerId};
use crate::config::{Admin, Config, Listen};
use crate::route::bindings::Lifetimes;
use crate::route::cookie::{Keys, TOKEN_PARAM};
use crate::route::select::maglev::{Candidate, Maglev};

/// Slots of the Call-ID space; each belongs to one worker.
pub const OWNER_SLOTS: usize = 1024;

/// Index into [`Snapshot::listeners`]; the order of the configuration, fixed until restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerIndex(pub u16);

/// Index into [`Snapshot::backends`]; valid in this snapshot only, so nothing outside a decision keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendIndex(pub u16);

/// What the control core knows of a backend beyond its configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendStatus {
    /// What the operator wants.
    pub admin: Admin,
    /// What the probes say.
    pub is_healthy: bool,
}

/// A listening address and the service behind it.
#[derive(Clone, Debug)]
pub struct Listener {
    /// The id that branches and cookies carry.
    pub id: ListenerId,
    /// Transport and address.
    pub listen: Listen,
    /// Index into [`Snapshot::services`].
    pub service: usize,
    /// Our Via up to the branch: `Via: SIP/2.0/UDP 192.0.2.10:5060;branch=`.
    pub via_head: Box<[u8]>,
    /// Our Record-Route up to the token: `Record-Route: <sip:192.0.2.10:5060;lr;tk=`.
    pub record_route_head: Box<[u8]>,
}

impl Listener {
    fn new(listen: Listen, service: usize) -> Self {
        let Listen { transport, address } = listen;
        let via_head = format!("Via: SIP/2.0/{} {address};branch=", transport.scheme().to_uppercase());
        let record_route_head = format!("Record-Route: <sip:{address};lr;{TOKEN_PARAM}=");
        Listener {
            id: listen.id(),
            listen,
            service,
            via_head: via_head.into_bytes().into(),
            record_route_head: record_route_head.into_bytes().into(),
        }
    }
}

/// A virtual service.
#[derive(Clone, Debug)]
pub struct Service {
    /// Configured name.
    pub name: Box<str>,
    /// Index into [`Snapshot::pools`].
    pub pool: usize,
    /// Whether dialogs stay on Tandem.
    pub record_route: bool,
    /// Whether asserted identities stop here (RFC 3325).
    pub strip_identity: bool,
    /// The listeners from which messages leave, for IPv4 and for IPv6 backends.
    pub egress: [Option<ListenerIndex>; 2],
}

/// A pool and its selection table.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Configured name.
    pub name: Box<str>,
    /// Retry-After of the 503 that is sent while no backend can serve, in whole seconds.
    pub retry_after_s: u32,
    /// Over the healthy, enabled backends of the lowest tier that has any.
    pub table: Maglev,
}

/// A backend and its present state.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Stable id.
    pub id: BackendId,
    /// Configured name.
    pub name: Box<str>,
    /// Where it listens.
    pub address: SocketAddr,
    /// Index into [`Snapshot::pools`].
    pub pool: usize,
    /// Configured weight.
    pub weight: u32,
    /// Operator's wish and observed health.
    pub status: BackendStatus,
}

impl Backend {
    /// May it be given a new dialog?
    pub fn takes_new(&self) -> bool {
        self.status.admin == Admin::Enabled && self.status.is_healthy && self.weight > 0
    }

    /// May it be sent what belongs to a dialog it already has? A failed probe does not cut a live dialog off.
    pub fn keeps_dialogs(&self) -> bool {
        self.status.admin != Admin::Disabled
    }
}

/// The picture; see the module head.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Grows by one with every publication.
    pub generation: u64,
    /// Listeners in configuration order.
    pub listeners: Vec<Listener>,
    /// Services in configuration order.
    pub services: Vec<Service>,
    /// Pools in configuration order.
    pub pools: Vec<Pool>,
    /// Backends in configuration order.
    pub backends: Vec<Backend>,
    /// Host names that mean this node, lower case.
    pub names: Vec<Box<str>>,
    /// How long bindings last.
    pub lifetimes: Lifetimes,
    /// What branches and tokens are signed with.
    pub keys: Keys,
    /// Which worker owns each slot of the Call-ID space.
    pub owners: Box<[u16]>,
    by_id: AHashMap<BackendId, BackendIndex>,
    by_address: AHashMap<SocketAddr, BackendIndex>,
}

impl Snapshot {
    /// Builds the picture of `config` for `workers` workers. `status` tells the state of each backend.
    ///
    /// # Panics
    ///
    /// When the configuration has more than 65,534 backends or listeners, which `config::load` refuses, or no
    /// secret: the node draws one at start where the file names none.
    pub fn build(
        config: &Config,
        generation: u64,
        workers: usize,
        status: impl Fn(&crate::config::Backend) -> BackendStatus,
    ) -> Self {
        let mut listeners = Vec::new();
        let mut services = Vec::new();
        for (service, configured) in config.services.iter().enumerate() {
            let mut egress = [None; 2];
            for listen in &configured.listen {
                let index = ListenerIndex(u16::try_from(listeners.len()).expect("listeners are limited"));
                egress[usize::from(listen.address.is_ipv6())].get_or_insert(index);
                listeners.push(Listener::new(*listen, service));
            }
            services.push(Service {
                name: configured.name.as_str().into(),
                pool: configured.pool,
                record_route: configured.record_route,
                strip_identity: configured.strip_identity,
                egress,
            });
        }
        let mut backends = Vec::new();
        let mut pools = Vec::new();
        for (pool, configured) in config.pools.iter().enumerate() {
            let first = backends.len();
            for backend in &configured.backends {
                backends.push(Backend {
                    id: backend.id(),
                    name: backend.name.as_str().into(),
                    address: backend.address,
                    pool,
                    weight: backend.weight,
                    status: status(backend),
                });
            }
            let tiers = configured.backends.iter().map(|b| b.priority);
            pools.push(Pool {
                name: configured.name.as_str().into(),
                retry_after_s: retry_after_s(configured.retry_after),
                table: serving_tier(first, &backends[first..], tiers),
            });
        }
        let index = |i: usize| BackendIndex(u16::try_from(i).expect("backends are limited"));
        let by_id = backends.iter().enumerate().map(|(i, b)| (b.id, index(i))).collect();
        let by_address = backends.iter().enumerate().map(|(i, b)| (b.address, index(i))).collect();
        Snapshot {
            generation,
            listeners,
            services,
            pools,
            backends,
            lifetimes: Lifetimes {
                early: config.timers.binding_early,
                dialog: config.timers.binding_dialog,
                linger: config.timers.binding_linger,
            },
            keys: Keys::new(
                config.node.secret.as_ref().expect("a secret is drawn before the first snapshot"),
                config.node.secret_previous.as_ref(),
            ),
            names: config.node.names.iter().map(|n| n.as_str().into()).collect(),
            owners: (0..OWNER_SLOTS).map(|slot| (slot % workers.max(1)) as u16).collect(),
            by_id,
            by_address,
        }
    }

    /// The listener at `index`.
    pub fn listener(&self, index: ListenerIndex) -> &Listener {
        &self.listeners[usize::from(index.0)]
    }

    /// The backend at `index`.
    pub fn backend(&self, index: BackendIndex) -> &Backend {
        &self.backends[usize::from(index.0)]
    }

    /// The backend that a cookie or a binding names, if it is still configured.
    pub fn backend_by_id(&self, id: BackendId) -> Option<BackendIndex> {
        self.by_id.get(&id).copied()
    }

    /// The backend that sends from `address`, if any: the trusted side.
    pub fn backend_by_address(&self, address: SocketAddr) -> Option<BackendIndex> {
        self.by_address.get(&address).copied()
    }

    /// The listener that a branch or a cookie names, if it is still configured.
    pub fn listener_by_id(&self, id: ListenerId) -> Option<ListenerIndex> {
        let position = self.listeners.iter().position(|l| l.id == id)?;
        Some(ListenerIndex(position as u16))
    }

    /// The listener of `service` that reaches `destination`: the one asked for when its family fits.
    pub fn egress(&self, preferred: ListenerIndex, destination: SocketAddr) -> Option<ListenerIndex> {
        let listener = self.listener(preferred);
        if listener.listen.address.is_ipv6() == destination.is_ipv6() {
            return Some(preferred);
        }
        self.services[listener.service].egress[usize::from(destination.is_ipv6())]
    }

    /// The worker that owns a Call-ID of this hash.
    pub fn owner(&self, call_id_hash: u64) -> u16 {
        self.owners[(call_id_hash >> 54) as usize & (OWNER_SLOTS - 1)]
    }
}

fn retry_after_s(configured: Duration) -> u32 {
    u32::try_from(configured.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
}

/// The table over the lowest tier that has a backend for new dialogs.
fn serving_tier(first: usize, backends: &[Backend], tiers: impl Iterator<Item = u8>) -> Maglev {
    let ready: Vec<(u8, Candidate)> = backends
        .iter()
        .enumerate()
        .zip(tiers)
        .filter(|((_, backend), _)| backend.takes_new())
        .map(|((i, backend), tier)| {
            (tier, Candidate { index: (first + i) as u16, id: backend.id, weight: backend.weight })
        })
        .collect();
    let Some(lowest) = ready.iter().map(|(tier, _)| *tier).min() else {
        return Maglev::default();
    };
    let serving: Vec<Candidate> = ready.iter().filter(|(tier, _)| *tier == lowest).map(|(_, c)| *c).collect();
    Maglev::new(&serving)
}
