//! One connection without blocking: bytes in, messages out, and back; with TLS or without.
//!
//! ```text
//!   socket --read--> (rustls) --> Inbound --> messages
//!   socket <-write-- unwritten <-- (rustls) <-- Outbound <-- messages
//! ```
//!
//! Readiness is told by [`Stream::handle_event`] and holds until the kernel says otherwise. All that is put into the
//! [`Outbound`] between two flushes leaves in one write, and over TLS in as few records as it fits, which is what a busy
//! peer does. A connection that ends or fails is lost for good; its owner sees [`Stream::is_lost`].
//!
//! Bound: what the peer does not read waits here, so its owner must limit what is under way.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};
use socket2::{Domain, Socket, Type};

use crate::frame::Inbound;

/// What is read of one connection at once, in bytes.
pub const READ_BYTES: usize = 65_536;

/// What is to be sent with the next flush.
#[derive(Debug, Default)]
pub struct Outbound(Vec<u8>);

impl Outbound {
    /// Lets `render` write up to `room` bytes in place; it returns how many, or `None` when the text did not fit. Returns
    /// whether something was queued.
    pub fn push(&mut self, room: usize, render: impl FnOnce(&mut [u8]) -> Option<usize>) -> bool {
        let end = self.0.len();
        self.0.resize(end + room, 0);
        let len = render(&mut self.0[end..]);
        self.0.truncate(end + len.unwrap_or(0).min(room));
        len.is_some()
    }

    /// Queues `bytes`.
    pub fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}

/// A connection.
pub struct Stream {
    /// What was received.
    pub inbound: Inbound,
    /// What is to be sent.
    pub outbound: Outbound,
    socket: TcpStream,
    tls: Option<Box<Connection>>,
    /// What the kernel has not taken yet, from `written` on.
    unwritten: Vec<u8>,
    written: usize,
    is_connected: bool,
    is_readable: bool,
    is_writable: bool,
    /// The peer sends nothing more: what was read last is no sign that all was read.
    is_ending: bool,
    is_lost: bool,
}

impl Stream {
    /// Begins a connection from a port of `source`, or from wherever the system likes, to `target`.
    ///
    /// # Errors
    /// When no socket can be had or the peer refuses at once.
    pub fn connect(source: Option<IpAddr>, target: SocketAddr, tls: Option<&Arc<ClientConfig>>) -> io::Result<Stream> {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        if let Some(source) = source {
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        match socket.connect(&target.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        let tls = match tls {
            Some(config) => {
                let name = ServerName::IpAddress(target.ip().into());
                let session = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
                Some(Connection::Client(session))
            }
            None => None,
        };
        Stream::new(TcpStream::from_std(socket.into()), tls)
    }

    /// Goes on with a connection that a listener has accepted.
    ///
    /// # Errors
    /// When the socket or TLS refuses its options.
    pub fn accept(socket: TcpStream, tls: Option<&Arc<ServerConfig>>) -> io::Result<Stream> {
        let session = tls.map(|config| ServerConnection::new(Arc::clone(config)).map_err(io::Error::other));
        Stream::new(socket, session.transpose()?.map(Connection::Server))
    }

    fn new(socket: TcpStream, tls: Option<Connection>) -> io::Result<Stream> {
        socket.set_nodelay(true)?;
        let tls = tls.map(|mut session| {
            session.set_buffer_limit(None);
            Box::new(session)
        });
        Ok(Stream {
            inbound: Inbound::default(),
            outbound: Outbound::default(),
            socket,
            tls,
            unwritten: Vec::new(),
            written: 0,
            is_connected: false,
            is_readable: false,
            is_writable: false,
            is_ending: false,
            is_lost: false,
        })
    }

    /// Has readiness of the connection told under `token`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut self.socket, token, Interest::READABLE | Interest::WRITABLE)
    }

    /// Notes what the connection is ready for.
    pub fn handle_event(&mut self, event: &Event) {
        self.is_ending |= event.is_read_closed() || event.is_error();
        self.is_readable |= event.is_readable() || self.is_ending;
        self.is_writable |= event.is_writable();
        self.is_connected |= event.is_writable();
    }

    /// Takes one read of what is there into `inbound`, by way of `scratch`, which is [`READ_BYTES`] long. Returns whether
    /// something came.
    pub fn receive(&mut self, scratch: &mut [u8]) -> bool {
        if !self.is_readable || self.is_lost {
            return false;
        }
        match self.socket.read(scratch) {
            Ok(0) => self.lose(),
            Ok(len) => {
                // Less than was asked for is all there was; the next arrival is told again.
                self.is_readable = self.is_ending || len == scratch.len();
                if self.decrypt(&scratch[..len]).is_err() {
                    self.flush();
                    self.lose();
                }
                return true;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.is_readable = false,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => self.lose(),
        }
        false
    }

    fn decrypt(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let Some(tls) = &mut self.tls else {
            self.inbound.extend(bytes);
            return Ok(());
        };
        while !bytes.is_empty() {
            tls.read_tls(&mut bytes)?;
            let state = tls.process_new_packets().map_err(io::Error::other)?;
            let len = state.plaintext_bytes_to_read();
            if len > 0 {
                self.inbound.extend_with(len, |room| tls.reader().read_exact(room))?;
            }
            if state.peer_has_closed() {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// Sends what is queued, as far as the kernel takes it.
    pub fn flush(&mut self) {
        let queued = &mut self.outbound.0;
        match &mut self.tls {
            None if self.unwritten.is_empty() => std::mem::swap(&mut self.unwritten, queued),
            None => self.unwritten.append(queued),
            Some(tls) => {
                let mut is_whole = tls.writer().write_all(queued).is_ok();
                queued.clear();
                while is_whole && tls.wants_write() {
                    is_whole = tls.write_tls(&mut self.unwritten).is_ok();
                }
                self.is_lost |= !is_whole;
            }
        }
        while self.is_writable && !self.is_lost && self.written < self.unwritten.len() {
            match self.socket.write(&self.unwritten[self.written..]) {
                Ok(len) => self.written += len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.is_writable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.lose(),
            }
        }
        if self.is_lost || self.written == self.unwritten.len() {
            self.unwritten.clear();
            self.written = 0;
        }
    }

    /// Gives memory back that nothing is in, at the cost of the next message.
    pub fn shrink(&mut self) {
        self.inbound.shrink();
        if self.outbound.0.is_empty() {
            self.outbound.0 = Vec::new();
        }
        if self.unwritten.is_empty() {
            self.unwritten = Vec::new();
        }
    }

    /// Gives the connection up.
    pub fn lose(&mut self) {
        self.is_lost = true;
        // Whatever was wrong, it is over.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }

    /// Whether it can carry messages: it is connected, and the TLS handshake is over.
    pub fn is_ready(&self) -> bool {
        self.is_connected && !self.is_lost && self.tls.as_ref().is_none_or(|tls| !tls.is_handshaking())
    }

    /// Whether it has ended, by either side or by an error.
    pub fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Whether the last read left something.
    pub fn is_readable(&self) -> bool {
        self.is_readable && !self.is_lost
    }

    /// Our end of it.
    ///
    /// # Errors
    /// When it has none.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}
