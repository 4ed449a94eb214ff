//! The sockets that probes leave from: one a family, bound to the address of a listener and any port.
//!
//! The backends' access lists know the listeners' addresses, so a probe that left from elsewhere would measure the
//! access list. Where that address cannot be bound, the system picks one and the log says so.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::UdpSocket;

use crate::control::SendError;

/// The socket for one family, and the address that its probes name as theirs.
pub(super) async fn open_socket(
    family: usize,
    ours: Option<IpAddr>,
    buffer: usize,
) -> io::Result<(UdpSocket, SocketAddr)> {
    let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)][family];
    let ip = ours.unwrap_or(any);
    let socket = match std::net::UdpSocket::bind((ip, 0)) {
        Err(error) if ip != any => {
            tracing::warn!(%ip, %error, "cannot probe from the listener's address; the system picks one");
            std::net::UdpSocket::bind((any, 0))?
        }
        result => result?,
    };
    socket.set_nonblocking(true)?;
    if let Err(error) = socket2::SockRef::from(&socket).set_recv_buffer_size(buffer) {
        tracing::debug!(%error, "receive buffer of the probe socket");
    }
    let port = socket.local_addr()?.port();
    let socket = UdpSocket::from_std(socket)?;
    // The runtime has to have seen the socket writable once before `try_send_to` tries.
    socket.writable().await?;
    Ok((socket, SocketAddr::new(ip, port)))
}

/// Whose fault it is that a probe was not sent. Where the network or a filter says no, calls fare no better.
pub(super) fn classify(error: &io::Error) -> SendError {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::NetworkUnreachable | Kind::HostUnreachable | Kind::NetworkDown => SendError::Unreachable,
        Kind::ConnectionRefused | Kind::PermissionDenied | Kind::InvalidInput => SendError::Unreachable,
        _ => SendError::Local,
    }
}

/// Waits until the socket can be read; for ever when there is none.
pub(super) async fn readable(socket: Option<&UdpSocket>) {
    match socket {
        // An error shows again when the socket is read.
        Some(socket) => drop(socket.readable().await),
        None => std::future::pending().await,
    }
}
