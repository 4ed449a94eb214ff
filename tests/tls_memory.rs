//! What a TLS session costs while it is idle, in bytes that the allocator has given and not got back.
//!
//! A phone holds its connection for days and says something once in minutes, so what counts for a node with tens of
//! thousands of phones is what is left after the handshake and between two messages. The budget of `check --limits`
//! reckons with `TLS_SESSION_BYTES`; this is where it is measured. `cargo test --test tls_memory -- --nocapture` prints
//! the figures.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use bench_harness::certificates::write_files;
use rustls::client::Resumption;
use tandem::config::memory::TLS_SESSION_BYTES;
use tandem::shell::tls::{TlsMaterial, TlsSession};

thread_local! {
    /// Bytes held by this thread. Constant, without destructor: using it allocates nothing.
    static HELD: Cell<i64> = const { Cell::new(0) };
}

/// The system's allocator with a sum.
struct Counting;

fn add(bytes: i64) {
    // A thread that ends has no sum any more; nobody watches it.
    let _ = HELD.try_with(|held| held.set(held.get() + bytes));
}

// SAFETY: every call goes on to the system's allocator with the arguments it came with; counting touches a plain
// thread-local cell and does not allocate. `realloc` and `alloc_zeroed` are the trait's own, which use these two.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size() as i64);
        // SAFETY: the caller keeps the contract of `alloc`, which is the system's too.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        add(-(layout.size() as i64));
        // SAFETY: `block` came from `System` through this allocator, with this layout.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Sessions in one measurement: what the first ones cost once (a cache, a ticketer) is spread thin.
const SESSIONS: i64 = 200;

fn load(directory: &Path, service: &str, pool: &str) -> TlsMaterial {
    let text = format!(
        "[[certificate]]\nchain = \"server.pem\"\nkey = \"server.key\"\n[[service]]\nname = \"voice\"\n\
         listen = [\"tls:127.0.0.1:5061\"]\npool = \"pbx\"\n{service}\n[[pool]]\nname = \"pbx\"\n[pool.tls]\n\
         ca = \"ca.pem\"\n{pool}\n[[pool.backend]]\nname = \"pbx1\"\naddress = \"tls:127.0.0.1:5071\"\n"
    );
    let config = tandem::config::parse(&text, directory.join("t.toml").to_str().unwrap()).unwrap().config;
    TlsMaterial::load(&config, None).unwrap().0
}

/// Carries bytes to and fro until nobody has any.
fn run(server: &mut TlsSession, client: &mut TlsSession) {
    let (mut wire, mut plain) = (Vec::new(), Vec::new());
    while server.has_output() || client.has_output() {
        client.take_output(&mut wire);
        server.receive(&wire, &mut plain).unwrap();
        wire.clear();
        server.take_output(&mut wire);
        client.receive(&wire, &mut plain).unwrap();
        wire.clear();
    }
}

/// Bytes that one more idle session holds: the server's side, the client's side.
fn measure(material: &TlsMaterial, is_resuming: bool) -> (i64, i64) {
    let mut connector = material.connector(0).unwrap().clone();
    if !is_resuming {
        let mut config = (*connector.config).clone();
        config.resumption = Resumption::disabled();
        connector.config = Arc::new(config);
    }
    let (mut of_servers, mut of_clients) = (0, 0);
    let mut kept = Vec::with_capacity(SESSIONS as usize);
    for number in 0..=SESSIONS {
        let begun = HELD.get();
        let mut client = TlsSession::connect(&connector, IpAddr::V4(Ipv4Addr::LOCALHOST)).unwrap();
        let mut server = TlsSession::accept(Arc::clone(material.acceptor(0).unwrap())).unwrap();
        run(&mut server, &mut client);
        client.send(&[b'x'; 9_000]).unwrap();
        server.send(&[b'y'; 700]).unwrap();
        run(&mut server, &mut client);
        assert!(!server.is_handshaking());
        assert_eq!(server.is_resumed(), is_resuming && number > 0);
        let both = HELD.get() - begun;
        // The first fills caches.
        if number == 0 {
            continue;
        }
        let before = HELD.get();
        drop(client);
        let of_client = before - HELD.get();
        of_clients += of_client;
        of_servers += both - of_client;
        kept.push(server);
    }
    (of_servers / SESSIONS, of_clients / SESSIONS)
}

#[test]
fn idle_session_fits_the_budget() {
    let directory = std::env::temp_dir().join(format!("tandem-tls-memory-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    write_files(&directory, &["127.0.0.1"]).unwrap();
    let material = load(&directory, "", "");
    let (plain, resumed) = (measure(&material, false), measure(&material, true));
    let mutual = measure(
        &load(
            &directory,
            "tls = { client_certificate = \"required\", client_ca = \"ca.pem\" }",
            "certificate = \"client.pem\"\nkey = \"client.key\"",
        ),
        false,
    );
    fs::remove_dir_all(&directory).unwrap();
    println!("an idle session holds {} bytes on the server's side, {} on the client's", plain.0, plain.1);
    println!("resumed {} and {}", resumed.0, resumed.1);
    println!("with client certificates {} and {}", mutual.0, mutual.1);
    for bytes in [plain.0, plain.1, resumed.0, resumed.1, mutual.0, mutual.1] {
        assert!((500..=TLS_SESSION_BYTES as i64).contains(&bytes), "{bytes}");
    }
}
