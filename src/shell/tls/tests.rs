//! TLS between two ends in memory, from files that each test makes for itself.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use bench_harness::certificates::{Authority, Identity, KeyKind, Validity};

mod load;
mod session;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A directory with an authority, removed at the end.
struct Bench {
    directory: PathBuf,
    authority: Authority,
}

impl Bench {
    /// With `ca.pem`, and `server.pem` for sip.example.com and the loopback address.
    fn new() -> Bench {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("tandem-tls-{}-{number}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let bench = Bench { directory, authority: Authority::new("authority").unwrap() };
        bench.write("ca.pem", bench.authority.pem());
        bench.issue("server", &["sip.example.com", "127.0.0.1"], Validity::Days(365));
        bench
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.directory.join(name), text).unwrap();
    }

    /// Signs and writes `NAME.pem` and `NAME.key`.
    fn issue(&self, name: &str, names: &[&str], validity: Validity) -> Identity {
        let identity = self.authority.issue_for(names, validity, KeyKind::P256).unwrap();
        identity.write(&self.directory, name).unwrap();
        identity
    }

    /// One service and one pool, with more keys for each, after `head`.
    fn config(&self, head: &str, service: &str, pool: &str) -> Config {
        let text = format!(
            "{head}\n[[service]]\nname = \"voice\"\nlisten = [\"tls:127.0.0.1:5061\"]\npool = \"pbx\"\n{service}\n\
             [[pool]]\nname = \"pbx\"\n{pool}\n[[pool.backend]]\nname = \"pbx1\"\naddress = \"tls:127.0.0.1:5071\"\n"
        );
        crate::config::parse(&text, self.directory.join("t.toml").to_str().unwrap()).unwrap().config
    }

    fn load(&self, service: &str, pool: &str) -> Result<(TlsMaterial, Vec<String>), Vec<Problem>> {
        TlsMaterial::load(&self.config(SERVER, service, pool), None)
    }

    fn material(&self, service: &str, pool: &str) -> TlsMaterial {
        self.load(service, pool).unwrap().0
    }

    /// What is said in place of a problem's directory.
    fn shown(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.directory.display()), "")
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The certificate that [`Bench::new`] writes.
const SERVER: &str = "[[certificate]]\nchain = \"server.pem\"\nkey = \"server.key\"";
/// A pool that trusts the authority of the test.
const TRUSTING: &str = "tls = { ca = \"ca.pem\" }";

/// A server and a client, and what each has read.
struct Link {
    server: TlsSession,
    client: TlsSession,
    server_read: Vec<u8>,
    client_read: Vec<u8>,
}

impl Link {
    fn new(server: &TlsMaterial, client: &Connector) -> Link {
        Link {
            server: TlsSession::accept(Arc::clone(server.acceptor(0).unwrap())).unwrap(),
            client: TlsSession::connect(client, LOOPBACK).unwrap(),
            server_read: Vec::new(),
            client_read: Vec::new(),
        }
    }

    /// Carries bytes to and fro until nobody has any, in chunks of the sizes that `chunk` gives.
    fn run(&mut self, mut chunk: impl FnMut() -> usize) -> Result<(), TlsError> {
        let mut result = Ok(());
        while self.server.has_output() || self.client.has_output() {
            result = result.and(carry(&mut self.client, &mut self.server, &mut self.server_read, &mut chunk));
            result = result.and(carry(&mut self.server, &mut self.client, &mut self.client_read, &mut chunk));
        }
        result
    }

    /// A whole handshake.
    fn shake(server: &TlsMaterial, client: &Connector) -> Result<Link, TlsError> {
        let mut link = Link::new(server, client);
        link.run(|| usize::MAX)?;
        assert!(!link.server.is_handshaking() && !link.client.is_handshaking());
        Ok(link)
    }

    fn is_resumed(&self) -> bool {
        assert_eq!(self.server.is_resumed(), self.client.is_resumed());
        self.server.is_resumed()
    }
}

fn carry(
    from: &mut TlsSession,
    to: &mut TlsSession,
    read: &mut Vec<u8>,
    chunk: &mut impl FnMut() -> usize,
) -> Result<(), TlsError> {
    let mut wire = Vec::new();
    from.take_output(&mut wire);
    let mut rest = wire.as_slice();
    while !rest.is_empty() {
        let (head, tail) = rest.split_at(chunk().clamp(1, rest.len()));
        to.receive(head, read)?;
        rest = tail;
    }
    Ok(())
}
