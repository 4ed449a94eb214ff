//! Connections that are opened from here: to backends, and to clients whose own connection is gone.
//!
//! One link a target, opened when the first message needs it. To a backend it is kept: when it ends it is opened again,
//! for as long as the backend is configured; after a connect that failed, with a pause that doubles with each failure
//! and ends when the backend's probes are good again. Meanwhile messages to it fail at once.
//!
//! A backend that asks for PROXY headers has a link for each client, since a connection has one header; such a link is no
//! one's to keep: it ends when it is idle, and is opened for the next message.
//!
//! Bound: links to backends are as many as the configuration has; all others go with their connection.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use ahash::AHashMap;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::connection::{Connection, Ending, Stage};
use super::{Ring, Streams, token};
use crate::base::id::{BackendId, FlowId, Transport};
use crate::base::time::Instant;
use crate::metrics::{Counters, Reason};
use crate::route::snapshot::{Backend, ListenerIndex, Snapshot};
use crate::route::verdict::Hop;
use crate::shell::tls::TlsSession;

const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A target that connections are opened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Target {
    pub(super) transport: Transport,
    pub(super) address: SocketAddr,
    /// The client whose messages alone go there, where a backend is told of each.
    pub(super) client: Option<SocketAddr>,
}

impl Target {
    /// The backend behind it.
    fn backend(self, snapshot: &Snapshot) -> Option<&Backend> {
        snapshot.backend_by_target((self.transport, self.address)).map(|index| snapshot.backend(index))
    }
}

/// The links of one worker.
#[derive(Default)]
pub(super) struct Links {
    by_target: AHashMap<Target, Link>,
}

impl Links {
    /// Links to backends that have a connection.
    pub(super) fn standing(&self) -> usize {
        self.by_target.iter().filter(|(target, link)| link.is_kept(target) && link.id.is_some()).count()
    }
}

struct Link {
    /// Its connection, when there is one.
    id: Option<FlowId>,
    /// The backend behind it.
    backend: Option<BackendId>,
    /// Whose address is on our side.
    listener: ListenerIndex,
    /// Failures since it last stood.
    failures: u32,
    /// When it may be opened again.
    retry_at: Instant,
}

impl Link {
    /// Is it opened again when it has ended?
    fn is_kept(&self, target: &Target) -> bool {
        self.backend.is_some() && target.client.is_none()
    }
}

impl Streams {
    /// The connection to the destination of a hop, opened if there is none.
    pub(super) fn link_to(&mut self, hop: &Hop, ring: &mut Ring, snapshot: &Snapshot) -> Result<FlowId, Reason> {
        let target = Target { transport: hop.transport, address: hop.destination, client: hop.client };
        if let Some(link) = self.links.by_target.get(&target) {
            if let Some(id) = link.id {
                return Ok(id);
            }
            if link.retry_at > self.now {
                return Err(Reason::ConnectFailed);
            }
        }
        let backend = target.backend(snapshot).map(|backend| backend.id);
        let listener = hop.listener;
        self.links.by_target.entry(target).or_insert(Link {
            id: None,
            backend,
            listener,
            failures: 0,
            retry_at: Instant::default(),
        });
        match self.open(target, listener, ring, snapshot) {
            Ok(id) => Ok(id),
            Err(error) => {
                tracing::debug!(to = %hop.destination, %error, "cannot open a connection");
                self.fail(target);
                Err(Reason::ConnectFailed)
            }
        }
    }

    /// Begins to open a connection to a target that has a link.
    fn open(
        &mut self,
        target: Target,
        listener: ListenerIndex,
        ring: &mut Ring,
        snapshot: &Snapshot,
    ) -> io::Result<FlowId> {
        let Target { transport, address: to, .. } = target;
        let stream = self.socket_to(to, snapshot.listener(listener).listen.address)?;
        let tls = match transport {
            Transport::Tcp => None,
            Transport::Tls => {
                let connector = target.backend(snapshot).and_then(|backend| self.policy.connector(backend.pool));
                let connector = connector.ok_or_else(|| io::Error::other("no TLS is configured for it"))?;
                Some(TlsSession::connect(connector, to.ip()).map_err(io::Error::other)?)
            }
            Transport::Udp | Transport::Ws | Transport::Wss => return Err(io::Error::other("nothing to connect to")),
        };
        let is_kept = self.links.by_target.get(&target).is_some_and(|link| link.is_kept(&target));
        let make =
            |id, policy: &_, now| Some(Connection::opened(id, stream, listener, target, tls, is_kept, policy, now));
        let id = self.place(make, transport).ok_or_else(|| io::Error::other("the connection table is full"))?;
        if let Some(connection) = self.of_id(id) {
            ring.connect(token(id), connection.stream.as_fd(), to)?;
        }
        if let Some(link) = self.links.by_target.get_mut(&target) {
            link.id = Some(id);
        }
        Ok(id)
    }

    fn socket_to(&self, to: SocketAddr, from: SocketAddr) -> io::Result<OwnedFd> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        self.policy.prepare_link(&SockRef::from(&socket));
        if from.is_ipv6() == to.is_ipv6() {
            socket.bind(&SocketAddr::new(from.ip(), 0).into())?;
        }
        Ok(socket.into())
    }

    /// A connect has ended well or not.
    pub(super) fn handle_connected(
        &mut self,
        token: u64,
        error: i32,
        ring: &mut Ring,
        snapshot: &Snapshot,
        counters: &mut Counters,
    ) -> io::Result<()> {
        let now = self.tick();
        let connecting = self.of_token(token).map(|connection| (connection.id, connection.peer, connection.stage));
        let Some((id, peer, stage)) = connecting else { return Ok(()) };
        if stage != Stage::Connecting {
            // It was given up meanwhile, and nothing else would report its end.
            self.close(id, Ending::Broken, counters);
            return Ok(());
        }
        if error != 0 {
            tracing::debug!(to = %peer, error = %io::Error::from_raw_os_error(error), "connection refused");
            self.close(id, Ending::Broken, counters);
            return Ok(());
        }
        counters.connections_opened += 1;
        let policy = Rc::clone(&self.policy);
        let Some(connection) = self.of_id(id) else { return Ok(()) };
        let ours = snapshot.listener(connection.listener).listen.address;
        let header = policy.proxy_header(connection.target().client.unwrap_or(ours), peer);
        connection.handle_connected(&header, now);
        ring.arm_stream_receive(token, connection.stream.as_fd())?;
        let stage = connection.stage;
        if stage == Stage::Open {
            self.handle_open(id);
        } else {
            self.handshakes += 1;
        }
        self.hasten(id);
        self.mark_dirty(id);
        Ok(())
    }

    /// A connection has become usable.
    pub(super) fn handle_open(&mut self, id: FlowId) {
        let Some(connection) = self.of_id(id) else { return };
        connection.send_waiting();
        let target = connection.target();
        if let Some(link) = self.links.by_target.get_mut(&target).filter(|link| link.id == Some(id)) {
            link.failures = 0;
        }
        self.mark_dirty(id);
        self.hasten(id);
    }

    /// A connection has ended; `target` is what it was opened to, if it was.
    pub(super) fn unlink(&mut self, id: FlowId, target: Target, ending: Ending, was_open: bool) {
        let Some(link) = self.links.by_target.get_mut(&target).filter(|link| link.id == Some(id)) else { return };
        link.id = None;
        if !was_open {
            return self.fail(target);
        }
        // Where one stood another can be opened: a server that closes idle connections is not ill, and one that has
        // started anew knows nothing of the old ones.
        link.retry_at = self.now;
        let (is_kept, backend) = (link.is_kept(&target), link.backend);
        if !is_kept {
            self.links.by_target.remove(&target);
        }
        // One that was opened for a client ends when that client is idle.
        if ending == Ending::Broken || (is_kept && ending != Ending::Peer) {
            self.failed_backends.extend(backend);
        }
    }

    fn fail(&mut self, target: Target) {
        let Some(link) = self.links.by_target.get_mut(&target) else { return };
        link.failures += 1;
        let pause = PAUSE_MIN * 2u32.pow(link.failures.min(6) - 1);
        link.retry_at = self.now + pause.min(PAUSE_MAX);
        let (is_kept, backend) = (link.is_kept(&target), link.backend);
        self.failed_backends.extend(backend);
        if !is_kept {
            self.links.by_target.remove(&target);
        }
    }

    /// A backend that has recovered is not kept waiting for the end of a pause from before.
    pub fn apply_snapshot(&mut self, before: &Snapshot, after: &Snapshot) {
        let is_healthy = |snapshot: &Snapshot, id| {
            snapshot.backend_by_id(id).is_some_and(|index| snapshot.backend(index).status.is_healthy)
        };
        for link in self.links.by_target.values_mut() {
            if link.backend.is_some_and(|id| !is_healthy(before, id) && is_healthy(after, id)) {
                link.retry_at = self.now;
            }
        }
    }

    /// Opens links to backends again, and lets those go whose backend is not configured any more.
    pub(super) fn keep_links(&mut self, ring: &mut Ring, snapshot: &Snapshot) {
        let now = self.now;
        let mut wanted = Vec::new();
        let mut gone = Vec::new();
        self.links.by_target.retain(|target, link| {
            let Some(backend) = link.backend else { return true };
            let index = snapshot.backend_by_id(backend).map(|index| snapshot.backend(index));
            let is_configured = index.is_some_and(|b| {
                let (at, is_told) = ((target.transport, target.address), target.client.is_some());
                let is_there = (b.transport, b.address) == at || b.large_address == Some(at);
                b.keeps_dialogs() && is_there && b.tells_clients == is_told
            });
            if !is_configured {
                gone.extend(link.id);
            } else if link.id.is_none() && link.retry_at <= now {
                wanted.push((*target, link.listener));
            }
            is_configured
        });
        for id in gone {
            self.finish(id, Ending::Peer);
        }
        for (target, listener) in wanted {
            if usize::from(listener.0) >= snapshot.listeners.len() {
                continue;
            }
            if self.open(target, listener, ring, snapshot).is_err() {
                self.fail(target);
            }
        }
    }
}
