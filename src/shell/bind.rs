//! The listening sockets of all workers, bound before anything is served.
//!
//! Each worker has a socket of its own on each address (SO_REUSEPORT), so the kernel spreads datagrams and connections. An
//! address that another process listens on is an error although SO_REUSEPORT would let us share it.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant as Clock};

use anyhow::Context;
use socket2::{Domain, Protocol, Socket, Type};

use super::sys::set_socket_buffers;
use crate::config::{Config, Listen};
use crate::route::snapshot::ListenerIndex;

/// How long an address may stay taken after the process that had it has ended: the kernel closes sockets that io_uring
/// holds a moment after it has reaped the process, so an immediate restart meets its own predecessor.
const RELEASE_MAX: Duration = Duration::from_secs(1);

/// Connections that wait to be accepted; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// The sockets of one worker, each with the listener that it is.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    /// UDP.
    pub(super) datagrams: Vec<(ListenerIndex, UdpSocket)>,
    /// TCP, whatever runs over it.
    pub(super) streams: Vec<(ListenerIndex, TcpListener)>,
}

/// Binds every listening address once for each worker, in the order of the configuration.
///
/// # Errors
///
/// An address that is taken or not this host's.
pub(super) fn bind_all(config: &Config, workers: usize) -> anyhow::Result<Vec<Sockets>> {
    let listens: Vec<Listen> = config.services.iter().flat_map(|s| &s.listen).copied().collect();
    for listen in &listens {
        probe_free(*listen).with_context(|| {
            format!("cannot listen on {listen}; is another process there, and is the address one of this host's?")
        })?;
    }
    let buffer_bytes = config.limits.socket_buffer_bytes;
    let bind_worker = |_| {
        let mut sockets = Sockets::default();
        for (index, listen) in listens.iter().enumerate() {
            let index = ListenerIndex(index as u16);
            let why = || format!("cannot listen on {listen}");
            if listen.transport.is_stream() {
                sockets.streams.push((index, bind_stream(listen.address).with_context(why)?));
            } else {
                sockets.datagrams.push((index, bind_datagram(listen.address, buffer_bytes).with_context(why)?));
            }
        }
        Ok(sockets)
    };
    (0..workers).map(bind_worker).collect()
}

/// Binds without SO_REUSEPORT, which is refused when any other process listens there, and lets go again.
#[allow(clippy::disallowed_methods, reason = "nothing is served yet")]
fn probe_free(listen: Listen) -> io::Result<()> {
    let begun = Clock::now();
    loop {
        let result = match listen.transport.is_stream() {
            true => TcpListener::bind(listen.address).map(drop),
            false => UdpSocket::bind(listen.address).map(drop),
        };
        match result {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && begun.elapsed() < RELEASE_MAX => {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

fn bind_datagram(address: SocketAddr, buffer_bytes: usize) -> io::Result<UdpSocket> {
    let socket = socket_for(address, Type::DGRAM, Protocol::UDP)?;
    set_socket_buffers(&socket, buffer_bytes)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn bind_stream(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket_for(address, Type::STREAM, Protocol::TCP)?;
    // Connections of an earlier process that are still being closed do not keep the address.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn socket_for(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_port(true)?;
    Ok(socket)
}
