//! Free ports, and what either transport needs.

use std::net::{SocketAddr, TcpListener};

use bench_harness::certificates::Authority;
use bench_harness::transport::{self, Transport, Wires};

/// Addresses on which nobody listens now.
pub(crate) fn free_addresses(count: usize) -> Vec<SocketAddr> {
    let sockets: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    sockets.iter().map(|socket| socket.local_addr().expect("bound")).collect()
}

/// Both sides over `transport`; a certificate of 127.0.0.1 on one, its authority on the other.
pub(crate) fn wires(transport: Transport) -> Wires {
    let authority = Authority::new("test").expect("an authority");
    let server = authority.issue(&["127.0.0.1"]).expect("a certificate");
    Wires {
        callers: transport,
        backends: transport,
        tls_client: Some(transport::tls_client(authority.pem().as_bytes()).expect("roots")),
        tls_server: Some(transport::tls_server(server.chain.as_bytes(), server.key.as_bytes()).expect("usable")),
    }
}
