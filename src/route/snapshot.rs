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

use crate::base::id::{BackendId, ListenerId, Transport};
use crate::config::{Admin, Config, Listen, ProxyProtocol};
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
    /// Our Via up to the branch, by what the message travels by: `Via: SIP/2.0/UDP 192.0.2.10:5060;branch=`.
    via_heads: [Box<[u8]>; Transport::ALL.len()],
    /// Our Record-Route up to the token, for `sip` and for `sips`: `Record-Route: <sip:192.0.2.10:5060;lr;tk=`.
    record_route_heads: [Box<[u8]>; 2],
}

impl Listener {
    fn new(listen: Listen, service: usize) -> Self {
        let Listen { transport, address } = listen;
        let via = |t: Transport| format!("Via: SIP/2.0/{} {address};branch=", t.via_name()).into_bytes().into();
        let param = match transport {
            Transport::Udp => "",
            Transport::Tcp => ";transport=tcp",
            Transport::Tls => ";transport=tls",
            // RFC 7118 5.2: one word for both; the scheme tells them apart.
            Transport::Ws | Transport::Wss => ";transport=ws",
        };
        let record_route = |scheme| {
            // With sips TLS is meant, and only a WebSocket has to be named (RFC 3261 26.2.2).
            let param = if scheme == "sips" && transport == Transport::Tls { "" } else { param };
            format!("Record-Route: <{scheme}:{address}{param};lr;{TOKEN_PARAM}=").into_bytes().into()
        };
        Listener {
            id: listen.id(),
            listen,
            service,
            via_heads: Transport::ALL.map(via),
            record_route_heads: ["sip", "sips"].map(record_route),
        }
    }

    /// Our Via up to the branch, on a message that travels by `transport`.
    pub fn via_head(&self, transport: Transport) -> &[u8] {
        &self.via_heads[transport as usize]
    }

    //= rfc5658#section-5 transports
    //# Each side sees its own transport in Record-Route, and each side's in-dialog requests come back through it.
    //= rfc3261#section-16.6 sips
    //# The Record-Route of a request to a sips URI is sips, on the side that is secure.
    /// Our Record-Route up to the token. `is_sips`: for a request whose target is a `sips` URI, where this side is secure
    /// (RFC 3261 16.6 item 4).
    pub fn record_route_head(&self, is_sips: bool) -> &[u8] {
        &self.record_route_heads[usize::from(is_sips && self.listen.transport.is_secure())]
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
    /// May a request to a `sips` URI go on without TLS?
    pub sips_over_plain: bool,
    /// Whether asserted identities stop here (RFC 3325).
    pub strip_identity: bool,
    /// The listeners from which messages leave, for IPv4 and IPv6 and for each transport.
    egress: [[Option<ListenerIndex>; Transport::ALL.len()]; 2],
}

/// A pool and its selection table.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Configured name.
    pub name: Box<str>,
    /// Retry-After of the 503 that is sent while no backend can serve, in whole seconds.
    pub retry_after_s: u32,
    /// The largest request that goes to a backend over UDP when it can also be reached otherwise, in bytes.
    pub udp_bytes_max: usize,
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
    /// What it speaks.
    pub transport: Transport,
    /// Where it listens.
    pub address: SocketAddr,
    /// Is it told of each client by a connection of that client's own?
    pub tells_clients: bool,
    /// Where it takes requests that are too large for UDP.
    pub large_address: Option<(Transport, SocketAddr)>,
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
    by_target: AHashMap<(Transport, SocketAddr), BackendIndex>,
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
            let mut egress = [[None; Transport::ALL.len()]; 2];
            for listen in &configured.listen {
                let index = ListenerIndex(u16::try_from(listeners.len()).expect("listeners are limited"));
                egress[usize::from(listen.address.is_ipv6())][listen.transport as usize].get_or_insert(index);
                listeners.push(Listener::new(*listen, service));
            }
            services.push(Service {
                name: configured.name.as_str().into(),
                pool: configured.pool,
                record_route: configured.record_route,
                sips_over_plain: configured.sips_over_plain,
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
                    transport: backend.transport,
                    address: backend.address,
                    tells_clients: backend.proxy_protocol != ProxyProtocol::None,
                    large_address: backend.large_address,
                    pool,
                    weight: backend.weight,
                    status: status(backend),
                });
            }
            let tiers = configured.backends.iter().map(|b| b.priority);
            pools.push(Pool {
                name: configured.name.as_str().into(),
                retry_after_s: retry_after_s(configured.retry_after),
                udp_bytes_max: configured.udp_bytes_max,
                table: serving_tier(first, &backends[first..], tiers),
            });
        }
        let index = |i: usize| BackendIndex(u16::try_from(i).expect("backends are limited"));
        let by_id = backends.iter().enumerate().map(|(i, b)| (b.id, index(i))).collect();
        let (mut by_address, mut by_target) = (AHashMap::new(), AHashMap::new());
        for (i, backend) in backends.iter().enumerate() {
            let targets = [Some((backend.transport, backend.address)), backend.large_address];
            for target in targets.into_iter().flatten() {
                by_address.entry(target.1).or_insert(index(i));
                by_target.entry(target).or_insert(index(i));
            }
        }
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
            by_target,
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

    /// The backend that is reached by this transport at this address.
    pub fn backend_by_target(&self, target: (Transport, SocketAddr)) -> Option<BackendIndex> {
        self.by_target.get(&target).copied()
    }

    /// The listener that a branch or a cookie names, if it is still configured.
    pub fn listener_by_id(&self, id: ListenerId) -> Option<ListenerIndex> {
        let position = self.listeners.iter().position(|l| l.id == id)?;
        Some(ListenerIndex(position as u16))
    }

    /// The listener from which a message goes to `destination`: the preferred one when family and transport fit, else
    /// one of its service that has both. For a connection, which names an address of ours and needs none of its
    /// sockets, any of that family will do.
    pub fn egress(
        &self,
        preferred: ListenerIndex,
        destination: SocketAddr,
        transport: Transport,
    ) -> Option<ListenerIndex> {
        let listener = self.listener(preferred);
        let is_right_family = listener.listen.address.is_ipv6() == destination.is_ipv6();
        if is_right_family && listener.listen.transport == transport {
            return Some(preferred);
        }
        let row = &self.services[listener.service].egress[usize::from(destination.is_ipv6())];
        let any = || if transport.is_stream() { row.iter().copied().flatten().next() } else { None };
        row[transport as usize].or_else(any)
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
