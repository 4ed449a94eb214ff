//! From a document to a draft of the configuration: every section read, nothing compared yet.
//!
//! A [`Draft`] has a hole (`None`) wherever a value was missing or wrong, and the walk has reported each hole. Checks
//! across keys ([`check`](super::check), [`warn`](super::warn)) look at what is there, so that one wrong value does
//! not hide another. A draft without holes becomes a [`Config`].

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use toml::de::DeTable;

use super::Surroundings;
use super::key::{Key, Section};
use super::keys;
use super::read::{decode_secret, is_name};
use super::values::{
    Backend, Certificate, Config, Health, Limits, Listen, Node, Policy, Pool, PoolTls, Secret, Service, ServiceTls,
    Timers,
};
use super::walk::{Open, Walk, join};
use crate::base::id::Transport;

/// What could be read of a configuration.
pub(super) struct Draft {
    pub(super) node: Option<Node>,
    pub(super) limits: Option<Limits>,
    pub(super) timers: Option<Timers>,
    pub(super) certificates: Vec<Option<Certificate>>,
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
    pub(super) proxy_protocol_from: Option<Vec<IpNet>>,
    pub(super) origins: Option<Vec<String>>,
    pub(super) sips_over_plain: Option<bool>,
    pub(super) tls: Option<ServiceTls>,
    pub(super) strip_identity: Option<bool>,
}

/// What could be read of a pool, and its dotted path.
pub(super) struct DraftPool {
    pub(super) path: String,
    pub(super) name: Option<String>,
    pub(super) policy: Option<Policy>,
    pub(super) retry_after: Option<Duration>,
    pub(super) udp_bytes_max: Option<usize>,
    pub(super) health: Option<Health>,
    pub(super) tls: Option<PoolTls>,
    pub(super) backends: Vec<DraftBackend>,
}

/// What could be read of a backend, and its dotted path.
pub(super) struct DraftBackend {
    pub(super) path: String,
    pub(super) name: Option<String>,
    pub(super) address: Option<(Transport, SocketAddr)>,
    /// `None` when it is not written, too.
    pub(super) large_address: Option<(Transport, SocketAddr)>,
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
            certificates: read_certificates(walk, root),
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
                proxy_protocol_from: service.proxy_protocol_from?,
                origins: service.origins?,
                sips_over_plain: service.sips_over_plain?,
                tls: service.tls?,
                strip_identity: service.strip_identity?,
            })
        });
        let pools = self.pools.into_iter().map(|pool| {
            Some(Pool {
                name: pool.name?,
                policy: pool.policy?,
                retry_after: pool.retry_after?,
                udp_bytes_max: pool.udp_bytes_max?,
                health: pool.health?,
                tls: pool.tls?,
                backends: pool.backends.into_iter().map(|backend| backend.whole).collect::<Option<_>>()?,
            })
        });
        Some(Config {
            certificates: self.certificates.into_iter().collect::<Option<_>>()?,
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
    let control_socket = walk.take_path(open, &keys::CONTROL_SOCKET);
    let spin = walk.take(open, &keys::SPIN);
    Some(Node {
        name: name?,
        workers: workers?,
        control_core: control_core?,
        secret: secret?,
        secret_previous: secret_previous?,
        names: names?,
        control_socket: control_socket?,
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
    let connections_max = walk.take(open, &keys::CONNECTIONS_MAX);
    let connections_per_source = walk.take(open, &keys::CONNECTIONS_PER_SOURCE);
    let stream_buffers = walk.take(open, &keys::STREAM_BUFFERS);
    let write_queue_bytes = walk.take(open, &keys::WRITE_QUEUE);
    let handshakes_max = walk.take(open, &keys::HANDSHAKES_MAX);
    Some(Limits {
        bindings_max: bindings_max?,
        message_bytes_max: message_bytes_max?,
        headers_max: headers_max?,
        receive_buffers: receive_buffers?,
        handoff_ring_bytes: handoff_ring_bytes?,
        socket_buffer_bytes: socket_buffer_bytes?,
        connections_max: connections_max?,
        connections_per_source: connections_per_source?,
        stream_buffers: stream_buffers?,
        write_queue_bytes: write_queue_bytes?,
        handshakes_max: handshakes_max?,
    })
}

fn read_timers<'t>(walk: &mut Walk<'t>, open: &Open<'_, 't>) -> Option<Timers> {
    let binding_early = walk.take(open, &keys::BINDING_EARLY);
    let binding_dialog = walk.take(open, &keys::BINDING_DIALOG);
    let binding_linger = walk.take(open, &keys::BINDING_LINGER);
    let message_timeout = walk.take(open, &keys::MESSAGE_TIMEOUT);
    let idle_timeout = walk.take(open, &keys::IDLE_TIMEOUT);
    let write_timeout = walk.take(open, &keys::WRITE_TIMEOUT);
    let handshake_timeout = walk.take(open, &keys::HANDSHAKE_TIMEOUT);
    let connect_timeout = walk.take(open, &keys::CONNECT_TIMEOUT);
    Some(Timers {
        binding_early: binding_early?,
        binding_dialog: binding_dialog?,
        binding_linger: binding_linger?,
        message_timeout: message_timeout?,
        idle_timeout: idle_timeout?,
        write_timeout: write_timeout?,
        handshake_timeout: handshake_timeout?,
        connect_timeout: connect_timeout?,
    })
}

fn read_certificates<'t>(walk: &mut Walk<'t>, root: &DeTable<'t>) -> Vec<Option<Certificate>> {
    let sections = walk.open_each(Some(root), "", Section::Certificate, keys::CERTIFICATES_MAX);
    let read = sections.into_iter().map(|open| {
        let chain = walk.take(&open, &keys::CHAIN).map(|path| walk.resolve(&path));
        let key = walk.take(&open, &keys::KEY).map(|path| walk.resolve(&path));
        let names = walk.take(&open, &keys::CERTIFICATE_NAMES);
        Some(Certificate { chain: chain?, key: key?, names: names? })
    });
    read.collect()
}

fn read_services<'t>(walk: &mut Walk<'t>, root: &DeTable<'t>) -> Vec<DraftService> {
    let sections = walk.open_each(Some(root), "", Section::Service, keys::SERVICES_MAX);
    let read = sections.into_iter().map(|open| DraftService {
        name: walk.take(&open, &keys::SERVICE_NAME),
        listen: walk.take(&open, &keys::LISTEN),
        pool: walk.take(&open, &keys::SERVICE_POOL),
        record_route: walk.take(&open, &keys::RECORD_ROUTE),
        proxy_protocol_from: walk.take(&open, &keys::PROXY_PROTOCOL_FROM),
        origins: walk.take(&open, &keys::ORIGINS),
        sips_over_plain: walk.take(&open, &keys::SIPS_OVER_PLAIN),
        tls: read_service_tls(walk, &open),
        strip_identity: walk.take(&open, &keys::STRIP_IDENTITY),
        path: open.path,
    });
    read.collect()
}

fn read_service_tls<'t>(walk: &mut Walk<'t>, service: &Open<'_, 't>) -> Option<ServiceTls> {
    let open = walk.open(service.table()?, &service.path, Section::ServiceTls);
    let client_certificate = walk.take(&open, &keys::CLIENT_CERTIFICATE);
    let client_ca = walk.take_path(&open, &keys::CLIENT_CA);
    let min_version = walk.take(&open, &keys::MIN_VERSION);
    Some(ServiceTls { client_certificate: client_certificate?, client_ca: client_ca?, min_version: min_version? })
}

fn read_pools<'t>(walk: &mut Walk<'t>, root: &DeTable<'t>) -> Vec<DraftPool> {
    let sections = walk.open_each(Some(root), "", Section::Pool, keys::POOLS_MAX);
    let read = sections.into_iter().map(|open| DraftPool {
        name: walk.take(&open, &keys::POOL_NAME),
        policy: walk.take(&open, &keys::POLICY),
        retry_after: walk.take(&open, &keys::RETRY_AFTER),
        udp_bytes_max: walk.take(&open, &keys::UDP_BYTES_MAX),
        health: read_health(walk, &open),
        tls: read_pool_tls(walk, &open),
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

fn read_pool_tls<'t>(walk: &mut Walk<'t>, pool: &Open<'_, 't>) -> Option<PoolTls> {
    let open = walk.open(pool.table()?, &pool.path, Section::PoolTls);
    let verify = walk.take(&open, &keys::VERIFY);
    let ca = walk.take_path(&open, &keys::CA);
    let server_name = match walk.has(&open, &keys::SERVER_NAME) {
        true => walk.take(&open, &keys::SERVER_NAME).map(Some),
        false => Some(None),
    };
    let pins = walk.take(&open, &keys::PINS);
    let certificate = walk.take_path(&open, &keys::CLIENT_CHAIN);
    let key = walk.take_path(&open, &keys::CLIENT_KEY);
    Some(PoolTls {
        verify: verify?,
        ca: ca?,
        server_name: server_name?,
        pins: pins?,
        certificate: certificate?,
        key: key?,
    })
}

fn read_backends<'t>(walk: &mut Walk<'t>, pool: &Open<'_, 't>) -> Vec<DraftBackend> {
    let sections = walk.open_each(pool.table(), &pool.path, Section::Backend, keys::BACKENDS_MAX);
    let read = sections.into_iter().map(|open| {
        let name = walk.take(&open, &keys::BACKEND_NAME);
        let address = walk.take(&open, &keys::BACKEND_ADDRESS);
        let has_large = walk.has(&open, &keys::LARGE_ADDRESS);
        let large_address = walk.take_optional(&open, &keys::LARGE_ADDRESS);
        let proxy_protocol = walk.take(&open, &keys::PROXY_PROTOCOL);
        let weight = walk.take(&open, &keys::WEIGHT);
        let priority = walk.take(&open, &keys::PRIORITY);
        let admin = walk.take(&open, &keys::ADMIN);
        let whole = || {
            let (transport, address) = address?;
            let name = name.clone()?;
            if has_large && large_address.is_none() {
                return None;
            }
            Some(Backend {
                name,
                transport,
                address,
                large_address,
                proxy_protocol: proxy_protocol?,
                weight: weight?,
                priority: priority?,
                admin: admin?,
            })
        };
        let whole = whole();
        DraftBackend { path: open.path, name, address, large_address, whole }
    });
    read.collect()
}
