//! Socket addresses and options as the kernel has them.

use std::io;
use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;

use super::check;

/// Writes a socket address as the kernel reads it; returns its length.
pub(super) fn encode_address(address: SocketAddr, out: &mut libc::sockaddr_storage) -> u32 {
    match address {
        SocketAddr::V4(v4) => {
            // SAFETY: sockaddr_storage is larger than and as aligned as any socket address.
            let out = unsafe { &mut *ptr::from_mut(out).cast::<libc::sockaddr_in>() };
            out.sin_family = libc::AF_INET as u16;
            out.sin_port = v4.port().to_be();
            out.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
            size_of::<libc::sockaddr_in>() as u32
        }
        SocketAddr::V6(v6) => {
            // SAFETY: as above.
            let out = unsafe { &mut *ptr::from_mut(out).cast::<libc::sockaddr_in6>() };
            out.sin6_family = libc::AF_INET6 as u16;
            out.sin6_port = v6.port().to_be();
            out.sin6_flowinfo = 0;
            out.sin6_addr.s6_addr = v6.ip().octets();
            out.sin6_scope_id = v6.scope_id();
            size_of::<libc::sockaddr_in6>() as u32
        }
    }
}

/// Reads a socket address as the kernel writes it.
pub(super) fn decode_address(raw: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes([*raw.first()?, *raw.get(1)?]);
    let port = u16::from_be_bytes([*raw.get(2)?, *raw.get(3)?]);
    let ip = match i32::from(family) {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(raw.get(4..8)?).ok()?)),
        libc::AF_INET6 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(raw.get(8..24)?).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// SK_MEMINFO_DROPS of a socket; 0 when the kernel does not tell.
pub(super) fn socket_drops(fd: RawFd) -> u32 {
    const SO_MEMINFO: i32 = 55;
    const DROPS: usize = 8;
    let mut info = [0u32; 9];
    let mut len = size_of::<[u32; 9]>() as u32;
    // SAFETY: the buffer has the length that is told.
    let result = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, SO_MEMINFO, info.as_mut_ptr().cast(), &raw mut len) };
    if result == 0 { info[DROPS] } else { 0 }
}

/// Sets a socket buffer size beyond the system's limit when the process may, and up to the limit otherwise.
///
/// # Errors
///
/// As `setsockopt(2)`.
pub fn set_socket_buffers(socket: &socket2::Socket, bytes: usize) -> io::Result<()> {
    let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
    for (force, plain) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
        let set = |option: i32| {
            // SAFETY: an int option with an int's length.
            check(unsafe {
                libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const bytes).cast(), 4)
            })
        };
        if set(force).is_err() {
            set(plain)?;
        }
    }
    Ok(())
}
