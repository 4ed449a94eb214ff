//! How connections end, by hand: by a deadline where the peer does not end what it began, with a word where Tandem ends.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bench_harness::certificates;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::bed::local;
use crate::node::Node;
use crate::{Place, free_port};

const MESSAGE_TIMEOUT: Duration = Duration::from_secs(1);

const UPGRADE: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: sip\r\n\r\n";

fn node(place: &Place, listen: &str) -> Node {
    let files = certificates::write_files(place.folder(), &["127.0.0.1"]).unwrap();
    let text = format!(
        "[node]\nname = \"endings\"\nworkers = 1\n\n[timers]\nmessage_timeout = \"{}ms\"\n\n\
         [[certificate]]\nchain = {:?}\nkey = {:?}\n\n\
         [[service]]\nname = \"voice\"\nlisten = [\"udp:{}\", \"{listen}\"]\npool = \"pbx\"\n\n\
         [[pool]]\nname = \"pbx\"\n[pool.health]\nprobe = \"none\"\n[[pool.backend]]\nname = \"pbx1\"\naddress = \"udp:{}\"\n",
        MESSAGE_TIMEOUT.as_millis(),
        files.chain,
        files.key,
        local(free_port()),
        local(free_port()),
    );
    Node::start_with(place.folder(), &text, 1)
}

/// A TLS session that stands, and its socket.
fn tls_session(place: &Place, address: SocketAddr) -> (ClientConnection, TcpStream) {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(place.folder().join("ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
    let mut tls = ClientConnection::new(config, ServerName::from(address.ip())).unwrap();
    while tls.is_handshaking() || tls.wants_write() {
        tls.complete_io(&mut stream).unwrap();
    }
    (tls, stream)
}

/// A WebSocket that is open.
fn web_socket(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
    stream.write_all(UPGRADE).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend_from_slice(&byte);
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    stream
}

/// A frame of a client, masked with zeros.
fn frame(first_byte: u8, payload: &[u8]) -> Vec<u8> {
    [&[first_byte, 0x80 | payload.len() as u8, 0, 0, 0, 0], payload].concat()
}

/// How long it takes until the other side closes.
fn time_to_end(stream: &mut TcpStream) -> Duration {
    let begun = Instant::now();
    let mut rest = Vec::new();
    // A reset is an end too.
    let result = stream.read_to_end(&mut rest);
    assert!(result.is_ok() || begun.elapsed() < Duration::from_secs(7), "it is still open: {result:?}");
    begun.elapsed()
}

fn check_time(what: &str, time: Duration) {
    assert!((MESSAGE_TIMEOUT / 2..4 * MESSAGE_TIMEOUT).contains(&time), "{what}: closed after {time:?}");
}

#[test]
fn web_socket_message_that_does_not_end_is_closed_by_its_deadline() {
    let place = Place::take("half-message");
    let address = local(free_port());
    let node = node(&place, &format!("ws:{address}"));
    let half_header = vec![0x81];
    let half_payload = frame(0x81, b"OPTIONS")[..9].to_vec();
    let first_fragment = frame(0x01, b"OPTIONS");
    let streams =
        [("half a frame header", half_header), ("half a frame", half_payload), ("a fragment", first_fragment)];
    let open = streams.map(|(what, bytes)| {
        let mut stream = web_socket(address);
        stream.write_all(&bytes).unwrap();
        (what, stream)
    });
    let mut idle = web_socket(address);
    for (what, mut stream) in open {
        let time = time_to_end(&mut stream);
        // They run side by side.
        assert!(time < 4 * MESSAGE_TIMEOUT, "{what}: closed after {time:?}");
    }
    assert_eq!(node.report().total("connections_timed_out_total"), 3);
    // Whoever has ended what it began may be silent.
    idle.write_all(&frame(0x89, b"ping")).unwrap();
    let mut pong = [0; 6];
    idle.read_exact(&mut pong).unwrap();
    assert_eq!(pong, *b"\x8a\x04ping");
}

#[test]
fn tls_record_that_does_not_end_is_closed_by_its_deadline() {
    let place = Place::take("half-record");
    let address = local(free_port());
    let node = node(&place, &format!("tls:{address}"));
    let (_tls, mut stream) = tls_session(&place, address);
    // The header of a record of 4 KiB, and its first byte.
    stream.write_all(&[0x17, 3, 3, 0x10, 0, 0]).unwrap();
    check_time("half a record", time_to_end(&mut stream));
    assert_eq!(node.report().total("connections_timed_out_total"), 1);
}

#[test]
fn ping_between_fragments_does_not_put_the_deadline_off() {
    let place = Place::take("fragments");
    let address = local(free_port());
    let _node = node(&place, &format!("ws:{address}"));
    let mut stream = web_socket(address);
    stream.write_all(&frame(0x01, b"OPTIONS")).unwrap();
    let mut pings = stream.try_clone().unwrap();
    let pinging = std::thread::spawn(move || {
        // Until nobody takes them any more.
        (0..40)
            .take_while(|_| {
                std::thread::sleep(Duration::from_millis(100));
                pings.write_all(&frame(0x89, b"")).is_ok()
            })
            .count()
    });
    check_time("a fragment and pings", time_to_end(&mut stream));
    assert!(pinging.join().unwrap() < 40);
}

#[test]
fn whoever_is_connected_is_told_when_tandem_ends() {
    let place = Place::take("going-away");
    let [ws, tls] = [(); 2].map(|()| local(free_port()));
    let node = node(&place, &format!("ws:{ws}\", \"tls:{tls}"));
    let mut browser = web_socket(ws);
    let (mut session, mut phone) = tls_session(&place, tls);
    assert!(node.stop().0.success());
    let mut last = Vec::new();
    browser.read_to_end(&mut last).unwrap();
    assert_eq!(last, [0x88, 2, 3, 0xe9], "Close 1001 (RFC 6455 7.4.1)");
    // An end without close_notify would be an error.
    last.clear();
    rustls::Stream::new(&mut session, &mut phone).read_to_end(&mut last).unwrap();
    assert_eq!(last, b"");
}
