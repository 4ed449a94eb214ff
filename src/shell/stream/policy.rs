//! What the configuration says about connections, as a worker needs it: limits, timeouts, what each listener demands of a
//! new connection, how each pool's backends are reached.
//!
//! Made by the control core, replaced whole by a reload. Each worker has a copy of its own, so that nothing of it is
//! shared while messages pass; only a handshake touches what the copies share.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use ipnet::IpNet;
use rustls::ServerConfig;
use socket2::{SockRef, TcpKeepalive};

use super::TICK_MS;
use crate::base::id::Transport;
use crate::config::{Config, ProxyProtocol};
use crate::route::snapshot::ListenerIndex;
use crate::shell::proxy_protocol::{self, ProxyVersion};
use crate::shell::tls::{Connector, TlsMaterial};

/// A peer that vanished without a word is noticed after about this long.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// What a listener demands of a new connection.
#[derive(Clone)]
pub struct Acceptance {
    /// What it speaks.
    pub transport: Transport,
    /// Sources whose connections begin with a PROXY header.
    pub proxies: Arc<[IpNet]>,
    /// Values of Origin that a browser may have; all where empty.
    pub origins: Arc<[String]>,
    /// For TLS and WSS.
    pub tls: Option<Arc<ServerConfig>>,
}

/// The policy; see the module head. Durations are in ticks of the deadlines.
#[derive(Clone)]
pub struct StreamPolicy {
    pub(super) connections_max: usize,
    /// Of those, places that no client gets: a link to each backend finds one however many clients there are.
    pub(super) places_for_links: usize,
    pub(super) connections_per_source: usize,
    pub(super) write_queue_bytes: usize,
    pub(super) handshakes_max: usize,
    pub(super) message_bytes_max: usize,
    pub(super) message_timeout: u32,
    pub(super) idle_timeout: u32,
    pub(super) write_timeout: u32,
    pub(super) handshake_timeout: u32,
    pub(super) connect_timeout: u32,
    user_timeout: Duration,
    /// By listener; that of a UDP listener is never asked for.
    acceptances: Vec<Acceptance>,
    proxied_backends: AHashMap<SocketAddr, ProxyProtocol>,
    material: Arc<TlsMaterial>,
}

impl std::fmt::Debug for StreamPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StreamPolicy({} listeners)", self.acceptances.len())
    }
}

impl StreamPolicy {
    /// From a configuration and the certificates and keys that it names.
    pub fn new(config: &Config, material: Arc<TlsMaterial>) -> Self {
        let (limits, timers) = (&config.limits, &config.timers);
        let mut acceptances = Vec::new();
        for (index, service) in config.services.iter().enumerate() {
            let (proxies, origins) = (service.proxy_protocol_from.as_slice().into(), service.origins.as_slice().into());
            let acceptance = Acceptance { transport: Transport::Udp, proxies, origins, tls: None };
            acceptances.extend(service.listen.iter().map(|listen| Acceptance {
                transport: listen.transport,
                tls: material.acceptor(index).cloned().filter(|_| listen.transport.is_secure()),
                ..acceptance.clone()
            }));
        }
        let backends = config.pools.iter().flat_map(|pool| &pool.backends);
        let proxied = backends.filter(|backend| backend.proxy_protocol != ProxyProtocol::None);
        let links =
            config.pools.iter().flat_map(|pool| &pool.backends).map(|backend| {
                usize::from(backend.transport.is_stream()) + usize::from(backend.large_address.is_some())
            });
        StreamPolicy {
            connections_max: limits.connections_max,
            places_for_links: links.sum::<usize>().min(limits.connections_max / 2),
            connections_per_source: limits.connections_per_source,
            write_queue_bytes: limits.write_queue_bytes,
            handshakes_max: limits.handshakes_max,
            message_bytes_max: limits.message_bytes_max,
            message_timeout: ticks(timers.message_timeout),
            idle_timeout: ticks(timers.idle_timeout),
            write_timeout: ticks(timers.write_timeout),
            handshake_timeout: ticks(timers.handshake_timeout),
            connect_timeout: ticks(timers.connect_timeout),
            user_timeout: timers.write_timeout,
            acceptances,
            proxied_backends: proxied.map(|backend| (backend.address, backend.proxy_protocol)).collect(),
            material,
        }
    }

    /// What a listener demands.
    pub fn acceptance(&self, listener: ListenerIndex) -> &Acceptance {
        &self.acceptances[usize::from(listener.0)]
    }

    /// How the backends of a pool are reached over TLS.
    pub fn connector(&self, pool: usize) -> Option<&Connector> {
        self.material.connector(pool)
    }

    /// The PROXY header with which a connection to a backend begins; empty where none is wanted.
    pub fn proxy_header(&self, source: SocketAddr, backend: SocketAddr) -> Vec<u8> {
        match self.proxied_backends.get(&backend) {
            None | Some(ProxyProtocol::None) => Vec::new(),
            Some(ProxyProtocol::V1) => proxy_protocol::encode(ProxyVersion::V1, source, backend),
            Some(ProxyProtocol::V2) => proxy_protocol::encode(ProxyVersion::V2, source, backend),
        }
    }

    /// Sets what a connection of a peer has: no delay, and an end when the peer has gone. What a socket refuses it does
    /// without.
    ///
    /// The kernel lets TCP_USER_TIMEOUT end an idle connection as soon as one keep-alive went unanswered and that much time
    /// has passed, so it is longer than several of them take: one that is lost on the way is no dead peer.
    pub(super) fn prepare(&self, socket: &SockRef<'_>) {
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 4);
        let user_timeout = self.user_timeout.max(2 * KEEPALIVE);
        note_missing([
            socket.set_tcp_nodelay(true),
            socket.set_tcp_keepalive(&keepalive),
            socket.set_tcp_user_timeout(Some(user_timeout)),
        ]);
    }

    /// The same for a link, whose peer is watched by probes: what it does not acknowledge in time ends it, and the next one
    /// is refused at once.
    pub(super) fn prepare_link(&self, socket: &SockRef<'_>) {
        note_missing([socket.set_tcp_nodelay(true), socket.set_tcp_user_timeout(Some(self.user_timeout))]);
    }
}

impl Acceptance {
    /// Does a connection from here begin with a PROXY header?
    pub(super) fn is_proxy(&self, source: IpAddr) -> bool {
        self.proxies.iter().any(|net| net.contains(&source))
    }
}

fn note_missing(results: impl IntoIterator<Item = std::io::Result<()>>) {
    if let Some(error) = results.into_iter().find_map(Result::err) {
        tracing::debug!(%error, "a connection without one of its options");
    }
}

fn ticks(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis().div_ceil(u128::from(TICK_MS))).unwrap_or(u32::MAX / 2).min(u32::MAX / 2)
}
