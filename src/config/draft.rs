//! From a document to a draft of the configuration: every section read, nothing compared yet.
//!
//! A [`Draft`] has a hole (`None`) wherever a value was missing or wrong, and the walk has reported each hole. Checks
//! across keys ([`check`](super::check), [`warn`](super::warn)) look at what is there, so that one wrong value does
//! not hide another. A draft without holes becomes a [`Config`].

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeTable;

use super::Surroundings;
use super::key::{Key, Section};
use super::keys;
use super::read::{decode_secret, is_name};
use super::values::{Backend, Config, Health, Limits, Listen, Node, Policy, Pool, Secret, Service, Timers};
use super::walk::{Open, Walk, join};
use crate::base::id::Transport;

/// What could be read of a configuration.
pub(super) struct Draft {
    pub(super) node: Option<Node>,
    pub(super) limits: Option<Limits>,
    pub(super) timers: Option<Timers>,
    pub(super) services: Vec<DraftService>,
    pub(super) pools: Vec<DraftPool>,
}

/// What could be read of a service, and its dotted path.
pub(super) struct DraftService {
    pub(super) path: String,
    pub(super) name: Option<String>,
    pub(super) listen: Option<Vec<Listen>>,
    pub(super) pool: Option<String>,
    pub(super) record_route: Option<bool>,
    pub(super) strip_identity: Option<bool>,
}

/// What could be read of a pool, and its dotted path.
pub(super) struct DraftPool {
    pub(super) path: String,
    pub(super) name: Option<String>,
    pub(super) policy: Option<Policy>,
    pub(super) retry_after: Option<Duration>,
    pub(super) health: Option<Health>,
    pub(super) backends: Vec<DraftBackend>,
}

/// What could be read of a backend, and its dotted path.
pub(super) struct DraftBackend {
    pub(super) path: String,
    pub(super) name: Option<String>,
    pub(super) address: Option<(Transport, SocketAddr)>,
    /// The whole backend; `None` when anything of it is missing.
    pub(super) whole: Option<Backend>,
}

impl Draft {
    /// Reads all sections of a document.
    pub(super) fn read<'t>(walk: &mut Walk<'t>, root: &DeTable<'t>, surroundings: &Surroundings<'_>) -> Self {
        walk.check_root(root);
        let node = walk.open(root, "", Section::Node);
        let limits = walk.open(root, "", Section::Limits);
        let timers = walk.open(root, "", Section::Timers);
        Draft {
            node: read_node(walk, &node, surroundings),
            limits: read_limits(walk, &limits),
            timers: read_timers(walk, &timers),
            services: read_services(walk, root),
            pools: read_pools(walk, root),
        }
    }

    /// The configuration; `None` when anything is missing, which has been reported then.
    pub(super) fn finish(self) -> Option<Config> {
        let names: Vec<Option<String>> = self.pools.iter().map(|pool| pool.name.clone()).collect();
        let services = self.services.into_iter().map(|service| {
            Some(Service {
                name: service.name?,
                listen: service.listen?,
                pool: names.iter().position(|name| *name == service.pool && name.is_some())?,
                record_route: service.record_route?,
                strip_identity: service.strip_identity?,
            })
        });
        let pools = self.pools.into_iter().map(|pool| {
            Some(Pool {
                name: pool.name?,
                policy: pool.policy?,
                retry_after: pool.retry_after?,
                health: pool.health?,
                backends: pool.backends.into_iter().map(|backend| backend.whole).collect::<Option<_>>()?,
            })
        });
        Some(Config {
            services: services.collect::<Option<_>>()?,
            pools: pools.collect::<Option<_>>()?,
            node: self.node?,
            limits: self.limits?,
            timers: self.timers?,
        })
    }
}

fn read_node<'t>(walk: &mut Walk<'t>, open: &Open<'_, 't>, surroundings: &Surroundings<'_>) -> Option<Node> {
    let name = match walk.has(open, &keys::NODE_NAME) {
        true => walk.take(open, &keys::NODE_NAME),
        false if is_name(&surroundings.host_name) => Some(surroundings.host_name.clone()),
        false => Some("tandem".to_owned()),
    };
    let workers = walk.take(open, &keys::WORKERS);
    let control_core = walk.take(open, &keys::CONTROL_CORE);
    let secret = read_secret(walk, open, &keys::SECRET, &keys::SECRET_FILE, surroundings);
    let secret_previous = read_secret(walk, open, &keys::SECRET_PREVIOUS, &keys::SECRET_PREVIOUS_FILE, surroundings);
    let names = walk.take(open, &keys::NAMES);
    let spin = walk.take(open, &keys::SPIN);
    Some(Node {
        name: name?,
        workers: workers?,
        control_core: control_core?,
        secret: secret?,
        secret_previous: secret_previous?,
        names: names?,
        spin: spin?,
    })
}

/// A secret from its key or from the file that the other key names; the outer `None` was reported.
fn read_secret<'t>(
    walk: &mut Walk<'t>,
    open: &Open<'_, 't>,
    inline: &Key<Secret>,
    file: &Key<PathBuf>,
    surroundings: &Surroundings<'_>,
) -> Option<Option<Secret>> {
    let key = join(&open.path, file.about.name);
    match (walk.has(open, inline), walk.has(open, file)) {
        (false, false) => Some(None),
        (true, false) => walk.take(open, inline).map(Some),
        (true, true) => {
            walk.take_optional(open, file);
            let (inline, file) = (inline.about.name, file.about.name);
            walk.push(
                &key,
                format!("{inline} and {file} are both given"),
                format!("write {inline} or {file}, not both"),
            );
            None
        }
        (false, true) => {
            let path = walk.take(open, file)?;
            let decoded = (surroundings.read_secret)(&path).map(|text| decode_secret(&text));
            match decoded {
                Ok(Ok(secret)) => Some(Some(secret)),
                Ok(Err(wrong)) => {
                    walk.push(&key, format!("in {}: {}", path.display(), wrong.what), wrong.remedy);
                    None
                }
                Err(reason) => {
                    let remedy = "name a file of 32 hexadecimal digits that this process may read";
                    walk.push(&key, format!("cannot read {}: {reason}", path.display()), remedy);
                    None
                }
            }
        }
    }
}

fn read_limits<'t>(walk: &mut Walk<'t>, open: &Open<'_, 't>) -> Option<Limits> {
    let bindings_max = walk.take(open, &keys::BINDINGS_MAX);
    let message_bytes_max = walk.take(open, &keys::MESSAGE_BYTES_MAX);
    let headers_max = walk.take(open, &keys::HEADERS_MAX);
    let receive_buffers = walk.take(open, &keys::RECEIVE_BUFFERS);
    let handoff_ring_bytes = walk.take(open, &keys::HANDOFF_RING);
    let socket_buffer_bytes = walk.take(open, &keys::SOCKET_BUFFER);
    Some(Limits {
        bindings_max: bindings_max?,
        message_bytes_max: message_bytes_max?,
        headers_max: headers_max?,
        receive_buffers: receive_buffers?,
        handoff_ring_bytes: handoff_ring_bytes?,
        socket_buffer_bytes: socket_buffer_bytes?,
    })
}

fn read_timers<'t>(walk: &mut Walk<'t>, open: &Open<'_, 't>) -> Option<Timers> {
    let binding_early = walk.take(open, &keys::BINDING_EARLY);
    let binding_dialog = walk.take(open, &keys::BINDING_DIALOG);
    let binding_linger = walk.take(open, &keys::BINDING_LINGER);
    Some(Timers { binding_early: binding_early?, binding_dialog: binding_dialog?, binding_linger: binding_linger? })
}

fn read_services<'t>(walk: &mut Walk<'t>, root: &DeTable<'t>) -> Vec<DraftService> {
    let sections = walk.open_each(Some(root), "", Section::Service, keys::SERVICES_MAX);
    let read = sections.into_iter().map(|open| DraftService {
        name: walk.take(&open, &keys::SERVICE_NAME),
        listen: walk.take(&open, &keys::LISTEN),
        pool: walk.take(&open, &keys::SERVICE_POOL),
        record_route: walk.take(&open, &keys::RECORD_ROUTE),
        strip_identity: walk.take(&open, &keys::STRIP_IDENTITY),
        path: open.path,
    });
    read.collect()
}

fn read_pools<'t>(walk: &mut Walk<'t>, root: &DeTable<'t>) -> Vec<DraftPool> {
    let sections = walk.open_each(Some(root), "", Section::Pool, keys::POOLS_MAX);
    let read = sections.into_iter().map(|open| DraftPool {
        name: walk.take(&open, &keys::POOL_NAME),
        policy: walk.take(&open, &keys::POLICY),
        retry_after: walk.take(&open, &keys::RETRY_AFTER),
        health: read_health(walk, &open),
        backends: read_backends(walk, &open),
        path: open.path,
    });
    read.collect()
}

fn read_health<'t>(walk: &mut Walk<'t>, pool: &Open<'_, 't>) -> Option<Health> {
    let open = walk.open(pool.table()?, &pool.path, Section::Health);
    let probe = walk.take(&open, &keys::PROBE);
    let interval = walk.take(&open, &keys::INTERVAL);
    let jitter = walk.take(&open, &keys::JITTER);
    let timeout = walk.take(&open, &keys::TIMEOUT);
    let rise = walk.take(&open, &keys::RISE);
    let fall = walk.take(&open, &keys::FALL);
    Some(Health { probe: probe?, interval: interval?, jitter: jitter?, timeout: timeout?, rise: rise?, fall: fall? })
}

fn read_backends<'t>(walk: &mut Walk<'t>, pool: &Open<'_, 't>) -> Vec<DraftBackend> {
    let sections = walk.open_each(pool.table(), &pool.path, Section::Backend, keys::BACKENDS_MAX);
    let read = sections.into_iter().map(|open| {
        let name = walk.take(&open, &keys::BACKEND_NAME);
        let address = walk.take(&open, &keys::BACKEND_ADDRESS);
        let weight = walk.take(&open, &keys::WEIGHT);
        let priority = walk.take(&open, &keys::PRIORITY);
        let admin = walk.take(&open, &keys::ADMIN);
        let whole = || {
            let (transport, address) = address?;
            let name = name.clone()?;
            Some(Backend { name, transport, address, weight: weight?, priority: priority?, admin: admin? })
        };
        let whole = whole();
        DraftBackend { path: open.path, name, address, whole }
    });
    read.collect()
}
