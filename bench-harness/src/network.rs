//! The sockets of both ends: what callers and backends are reached by, and when there is something on them.
//!
//! ```text
//!   caller i   <-> one UDP socket, or one connection to the proxy
//!   backend j  <-> one UDP socket, or a listener and the connections that the proxy makes to it
//! ```
//!
//! One turn receives a batch or one read from each socket, lets its role handle the messages and sends what they put
//! into the [`Outlet`] as one batch or one write. Datagram sockets are asked each turn; connections only when the kernel
//! has told that there is something.
//!
//! Bound: connections that ended keep their place, so that tokens stay what they are; a proxy that connects anew for each
//! message would be refused at [`ACCEPTED_MAX`].

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::TcpListener;
use mio::{Events, Interest, Poll as Readiness, Token};
use rustls::ServerConfig;

use crate::stream::{Outbound, READ_BYTES, Stream};
use crate::sys::{self, Inbox, Outbox, Peer, Poll};
use crate::transport::{Transport, Wires};

/// Datagrams received from one socket in one turn.
pub const BATCH: usize = 64;
/// Connections that all backends accept in one run.
pub const ACCEPTED_MAX: usize = 65_536;

const OUTBOX: usize = 4 * BATCH;
const MESSAGE_BYTES_MAX: usize = 4096;
const SOCKET_BUFFER_BYTES: i32 = 16 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Whose message it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// Caller of that number.
    Caller(usize),
    /// Backend of that number.
    Backend(usize),
}

/// Where a role puts what it sends.
pub enum Outlet<'a> {
    /// Into a batch, for one destination.
    Datagrams(&'a mut Outbox, &'a Peer),
    /// Onto a connection.
    Stream(&'a mut Outbound),
}

impl Outlet<'_> {
    /// Lets `render` write a message in place; it returns the length, or `None` when the text did not fit. Returns
    /// whether something was queued.
    pub fn push(&mut self, render: impl FnOnce(&mut [u8]) -> Option<usize>) -> bool {
        match self {
            Outlet::Datagrams(outbox, to) => outbox.push(to, render),
            Outlet::Stream(outbound) => outbound.push(MESSAGE_BYTES_MAX, render),
        }
    }

    /// Whether there is room for another message.
    pub fn has_room(&self) -> bool {
        match self {
            Outlet::Datagrams(outbox, _) => outbox.room() > 0,
            Outlet::Stream(_) => true,
        }
    }
}

enum CallerLink {
    Datagrams(Datagrams, Peer),
    Stream(Box<Stream>),
}

enum BackendLink {
    Datagrams(Datagrams),
    Listener(TcpListener, Option<Arc<ServerConfig>>),
}

struct Datagrams {
    socket: UdpSocket,
    outbox: Outbox,
}

impl Datagrams {
    fn new(socket: UdpSocket) -> Datagrams {
        Datagrams { socket, outbox: Outbox::new(OUTBOX, MESSAGE_BYTES_MAX) }
    }

    /// Sends what is queued; returns how many datagrams the kernel refused.
    fn flush(&mut self) -> usize {
        let queued = OUTBOX - self.outbox.room();
        if queued == 0 { 0 } else { queued - self.outbox.flush(&self.socket) }
    }
}

/// All sockets of a run.
pub struct Network {
    callers: Vec<CallerLink>,
    backends: Vec<BackendLink>,
    /// Connections that backends have accepted, with the backend's number.
    accepted: Vec<(usize, Stream)>,
    readiness: Readiness,
    events: Events,
    sleep: Poll,
    inbox: Inbox,
    scratch: Box<[u8]>,
    has_streams: bool,
    /// Messages that no socket took, since they were last asked for.
    unsent: u64,
}

impl Network {
    /// Opens all sockets: `callers` towards `target`, and one for each of `backends`.
    ///
    /// # Errors
    /// When an address cannot be bound, the proxy refuses, or a side speaks TLS and `wires` does not say how.
    pub fn new(target: SocketAddr, callers: usize, backends: &[SocketAddr], wires: &Wires) -> io::Result<Network> {
        let readiness = Readiness::new()?;
        let no_tls = || io::Error::new(io::ErrorKind::InvalidInput, "TLS without certificates");
        let tls_client = wires.tls_client.as_ref().filter(|_| wires.callers == Transport::Tls);
        let tls_server = wires.tls_server.as_ref().filter(|_| wires.backends == Transport::Tls);
        if wires.callers == Transport::Tls && tls_client.is_none()
            || wires.backends == Transport::Tls && tls_server.is_none()
        {
            return Err(no_tls());
        }
        let (mut caller_links, mut backend_links) = (Vec::with_capacity(callers), Vec::with_capacity(backends.len()));
        // Before the callers, so that a proxy that passes connections on finds somebody.
        for (index, &address) in backends.iter().enumerate() {
            backend_links.push(if wires.backends.is_stream() {
                let named = |error: io::Error| io::Error::new(error.kind(), format!("listen on {address}: {error}"));
                let mut listener = TcpListener::bind(address).map_err(named)?;
                readiness.registry().register(&mut listener, Token(callers + index), Interest::READABLE)?;
                BackendLink::Listener(listener, tls_server.cloned())
            } else {
                BackendLink::Datagrams(Datagrams::new(sys::bind(address, SOCKET_BUFFER_BYTES)?))
            });
        }
        for index in 0..callers {
            caller_links.push(if wires.callers.is_stream() {
                let mut stream = Stream::connect(None, target, tls_client)?;
                stream.register(readiness.registry(), Token(index))?;
                CallerLink::Stream(Box::new(stream))
            } else {
                CallerLink::Datagrams(Datagrams::new(bind_towards(target)?), Peer::from(target))
            });
        }
        let of_callers = caller_links.iter().filter_map(|link| match link {
            CallerLink::Datagrams(link, _) => Some(link.socket.as_raw_fd()),
            CallerLink::Stream(_) => None,
        });
        let of_backends = backend_links.iter().filter_map(|link| match link {
            BackendLink::Datagrams(link) => Some(link.socket.as_raw_fd()),
            BackendLink::Listener(..) => None,
        });
        let sleep = Poll::new(of_callers.chain(of_backends).chain([readiness.as_raw_fd()]));
        Ok(Network {
            callers: caller_links,
            backends: backend_links,
            accepted: Vec::new(),
            readiness,
            events: Events::with_capacity(256),
            sleep,
            inbox: Inbox::new(BATCH, MESSAGE_BYTES_MAX),
            scratch: vec![0; READ_BYTES].into_boxed_slice(),
            has_streams: wires.callers.is_stream() || wires.backends.is_stream(),
            unsent: 0,
        })
    }

    /// Waits until every caller can send.
    ///
    /// # Errors
    /// When a connection is refused or its handshake fails, or all together take too long.
    pub fn connect(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        loop {
            self.exchange(|_, _, _| {})?;
            let streams = || self.callers.iter().filter_map(CallerLink::stream);
            if streams().all(Stream::is_ready) {
                return Ok(());
            }
            if streams().any(Stream::is_lost) {
                return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "the proxy ended a new connection"));
            }
            if Instant::now() > deadline || sys::stop_requested() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "connections to the proxy did not come about"));
            }
            self.wait(Duration::from_millis(1));
        }
    }

    /// One turn: hands every message that has come to `on`, which may answer, and sends the answers. Returns how many
    /// came.
    ///
    /// # Errors
    /// When a datagram socket fails, or the kernel refuses to tell what is ready.
    pub fn exchange(&mut self, mut on: impl FnMut(Party, &[u8], &mut Outlet<'_>)) -> io::Result<usize> {
        if self.has_streams {
            self.note_events()?;
        }
        let mut total = 0;
        for (index, link) in self.callers.iter_mut().enumerate() {
            let party = Party::Caller(index);
            match link {
                CallerLink::Datagrams(link, target) => {
                    let count = self.inbox.receive(&link.socket, false)?;
                    for at in 0..count {
                        on(party, self.inbox.message(at).0, &mut Outlet::Datagrams(&mut link.outbox, target));
                    }
                    self.unsent += link.flush() as u64;
                    total += count;
                }
                CallerLink::Stream(stream) => {
                    total += exchange_stream(stream, &mut self.scratch, |message, out| on(party, message, out));
                }
            }
        }
        for (index, link) in self.backends.iter_mut().enumerate() {
            let BackendLink::Datagrams(link) = link else { continue };
            let count = self.inbox.receive(&link.socket, false)?;
            for at in 0..count {
                let (message, from) = self.inbox.message(at);
                on(Party::Backend(index), message, &mut Outlet::Datagrams(&mut link.outbox, &from));
            }
            self.unsent += link.flush() as u64;
            total += count;
        }
        for (backend, stream) in &mut self.accepted {
            let party = Party::Backend(*backend);
            total += exchange_stream(stream, &mut self.scratch, |message, out| on(party, message, out));
        }
        Ok(total)
    }

    fn note_events(&mut self) -> io::Result<()> {
        match self.readiness.poll(&mut self.events, Some(Duration::ZERO)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            other => other?,
        }
        for event in &self.events {
            let Token(token) = event.token();
            let past_callers = token.checked_sub(self.callers.len());
            match past_callers.map(|at| at.checked_sub(self.backends.len()).ok_or(at)) {
                None => {
                    if let CallerLink::Stream(stream) = &mut self.callers[token] {
                        stream.handle_event(event);
                    }
                }
                Some(Err(backend)) => {
                    let BackendLink::Listener(listener, tls) = &self.backends[backend] else { continue };
                    while let Ok((socket, _)) = listener.accept() {
                        if self.accepted.len() == ACCEPTED_MAX {
                            continue;
                        }
                        let mut stream = Stream::accept(socket, tls.as_ref())?;
                        let token = Token(self.callers.len() + self.backends.len() + self.accepted.len());
                        stream.register(self.readiness.registry(), token)?;
                        self.accepted.push((backend, stream));
                    }
                }
                Some(Ok(accepted)) => self.accepted[accepted].1.handle_event(event),
            }
        }
        Ok(())
    }

    /// Where caller number `caller` puts what it sends of its own accord; [`Network::flush_callers`] sends it.
    pub fn outlet(&mut self, caller: usize) -> Outlet<'_> {
        match &mut self.callers[caller] {
            CallerLink::Datagrams(link, target) => Outlet::Datagrams(&mut link.outbox, target),
            CallerLink::Stream(stream) => Outlet::Stream(&mut stream.outbound),
        }
    }

    /// Sends what callers have queued.
    pub fn flush_callers(&mut self) {
        for link in &mut self.callers {
            match link {
                CallerLink::Datagrams(link, _) => self.unsent += link.flush() as u64,
                CallerLink::Stream(stream) => stream.flush(),
            }
        }
    }

    /// Sleeps until there is something to receive, at most `timeout`.
    pub fn wait(&mut self, timeout: Duration) {
        let is_something_left = self.callers.iter().filter_map(CallerLink::stream).any(Stream::is_readable)
            || self.accepted.iter().any(|(_, stream)| stream.is_readable());
        if !is_something_left {
            self.sleep.wait(timeout);
        }
    }

    /// Datagrams that the kernel refused since this was last asked.
    pub fn take_unsent(&mut self) -> u64 {
        std::mem::take(&mut self.unsent)
    }

    /// The address that caller number `caller` sends from.
    ///
    /// # Errors
    /// When it has none.
    pub fn caller_address(&self, caller: usize) -> io::Result<SocketAddr> {
        match &self.callers[caller] {
            CallerLink::Datagrams(link, _) => link.socket.local_addr(),
            CallerLink::Stream(stream) => stream.local_address(),
        }
    }

    /// The address of backend number `backend`.
    ///
    /// # Errors
    /// When it has none.
    pub fn backend_address(&self, backend: usize) -> io::Result<SocketAddr> {
        match &self.backends[backend] {
            BackendLink::Datagrams(link) => link.socket.local_addr(),
            BackendLink::Listener(listener, _) => listener.local_addr(),
        }
    }

    /// Connections that the proxy has made to backends.
    pub fn accepted(&self) -> usize {
        self.accepted.len()
    }

    /// Connections that have ended.
    pub fn lost(&self) -> usize {
        let of_callers = self.callers.iter().filter_map(CallerLink::stream).filter(|stream| stream.is_lost());
        of_callers.count() + self.accepted.iter().filter(|(_, stream)| stream.is_lost()).count()
    }
}

impl CallerLink {
    fn stream(&self) -> Option<&Stream> {
        match self {
            CallerLink::Datagrams(..) => None,
            CallerLink::Stream(stream) => Some(stream),
        }
    }
}

fn exchange_stream(stream: &mut Stream, scratch: &mut [u8], mut on: impl FnMut(&[u8], &mut Outlet<'_>)) -> usize {
    let mut count = 0;
    if stream.receive(scratch) {
        loop {
            match stream.inbound.next_message() {
                Ok(Some(message)) => on(message, &mut Outlet::Stream(&mut stream.outbound)),
                Ok(None) => break,
                Err(_) => {
                    stream.lose();
                    break;
                }
            }
            count += 1;
        }
    }
    stream.flush();
    count
}

/// Binds to the local address from which the system would reach `target`.
fn bind_towards(target: SocketAddr) -> io::Result<UdpSocket> {
    let probe = UdpSocket::bind(if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    probe.connect(target)?;
    sys::bind(SocketAddr::new(probe.local_addr()?.ip(), 0), SOCKET_BUFFER_BYTES)
}
