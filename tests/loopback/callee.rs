//! A backend that answers by itself and keeps a record of all it was sent, over TCP or TLS.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::await_some;
use crate::bed::local;
use crate::endpoint::{answer, body, headers};
use crate::phone::{reset, take_message};

/// How often its threads look whether anything else is wanted of them.
const LOOK: Duration = Duration::from_millis(20);

/// How it is reached.
#[derive(Clone)]
pub enum Door {
    Tcp,
    Tls(Arc<ServerConfig>),
}

impl Door {
    fn scheme(&self) -> &'static str {
        match self {
            Door::Tcp => "tcp",
            Door::Tls(_) => "tls",
        }
    }
}

/// See the module head. It lets go of its port when dropped.
pub struct Callee {
    pub address: SocketAddr,
    scheme: &'static str,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    requests: Mutex<Vec<Vec<u8>>>,
    /// What each connection began with: all that came before a message.
    prefixes: Mutex<Vec<Vec<u8>>>,
    connections: AtomicUsize,
    /// Raised to end the connections there are.
    cuts: AtomicUsize,
    is_resetting: AtomicBool,
    is_over: AtomicBool,
    /// Requests are recorded and not answered.
    is_silent: AtomicBool,
}

impl Callee {
    pub fn start(door: Door) -> Callee {
        Callee::start_at(local(0), door)
    }

    pub fn start_at(address: SocketAddr, door: Door) -> Callee {
        let shared = Arc::new(Shared::default());
        let scheme = door.scheme();
        let theirs = Arc::clone(&shared);
        let (address, thread) = match door {
            Door::Tcp => listen(address, theirs, None),
            Door::Tls(config) => listen(address, theirs, Some(config)),
        };
        Callee { address, scheme, shared, thread: Some(thread) }
    }

    /// As the configuration writes it.
    pub fn target(&self) -> String {
        format!("{}:{}", self.scheme, self.address)
    }

    /// All requests so far but the probes, in order.
    pub fn requests(&self) -> Vec<Vec<u8>> {
        let requests = self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.iter().filter(|request| !is_probe(request)).cloned().collect()
    }

    /// How many requests so far, probes included.
    pub fn count(&self) -> usize {
        self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The methods of one Call-ID's requests so far.
    pub fn methods(&self, call_id: &str) -> Vec<String> {
        let of = self.requests().into_iter().filter(|request| headers(request, "Call-ID") == [call_id]);
        of.map(|request| String::from_utf8_lossy(request.split(|b| *b == b' ').next().unwrap()).into_owned()).collect()
    }

    /// A request of this Call-ID, which may be on its way.
    pub fn await_request(&self, method: &str, call_id: &str) -> Vec<u8> {
        await_some(&format!("{method} of {call_id}"), Duration::from_secs(8), || {
            let is_meant =
                |request: &Vec<u8>| request.starts_with(method.as_bytes()) && headers(request, "Call-ID") == [call_id];
            self.requests().into_iter().find(is_meant)
        })
    }

    /// A whole call has arrived here.
    pub fn check_call(&self, call_id: &str) {
        self.await_request("BYE", call_id);
        assert_eq!(self.methods(call_id), ["INVITE", "ACK", "BYE"], "{call_id}");
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// What its connections began with, before the first message.
    pub fn prefixes(&self) -> Vec<Vec<u8>> {
        self.shared.prefixes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the connections there are, with a RST or properly.
    pub fn cut(&self, is_reset: bool) {
        self.shared.is_resetting.store(is_reset, Ordering::SeqCst);
        self.shared.cuts.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(3 * LOOK);
    }

    /// From here on requests are recorded and not answered, or answered again.
    pub fn set_silent(&self, is_silent: bool) {
        self.shared.is_silent.store(is_silent, Ordering::SeqCst);
    }
}

impl Drop for Callee {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        let result = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(result, Some(Ok(()))), "the callee's thread failed");
        }
    }
}

fn is_probe(request: &[u8]) -> bool {
    headers(request, "User-Agent").iter().any(|agent| agent.to_ascii_lowercase().contains("tandem"))
}

fn listen(address: SocketAddr, shared: Arc<Shared>, tls: Option<Arc<ServerConfig>>) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind(address).unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    let thread = std::thread::spawn(move || {
        let mut threads = Vec::new();
        while !shared.is_over.load(Ordering::SeqCst) {
            let Ok((stream, _)) = listener.accept() else {
                std::thread::sleep(Duration::from_millis(2));
                continue;
            };
            shared.connections.fetch_add(1, Ordering::SeqCst);
            let (shared, tls) = (Arc::clone(&shared), tls.clone());
            threads.push(std::thread::spawn(move || serve(stream, address, &shared, tls)));
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    (address, thread)
}

fn serve(stream: TcpStream, address: SocketAddr, shared: &Shared, tls: Option<Arc<ServerConfig>>) {
    stream.set_nonblocking(false).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(LOOK)).unwrap();
    let cuts = shared.cuts.load(Ordering::SeqCst);
    let is_wanted = || !shared.is_over.load(Ordering::SeqCst) && shared.cuts.load(Ordering::SeqCst) == cuts;
    let stream = match tls {
        None => {
            let mut stream = stream;
            converse(&mut stream, &format!("<sip:bob@{address};transport=tcp>"), shared, is_wanted);
            stream
        }
        Some(config) => {
            let connection = ServerConnection::new(config).unwrap();
            let mut tls = StreamOwned::new(connection, stream);
            converse(&mut tls, &format!("<sip:bob@{address};transport=tls>"), shared, is_wanted);
            if !shared.is_resetting.load(Ordering::SeqCst) {
                tls.conn.send_close_notify();
                let _ = tls.flush();
            }
            tls.sock
        }
    };
    if shared.cuts.load(Ordering::SeqCst) != cuts && shared.is_resetting.load(Ordering::SeqCst) {
        reset(stream);
    }
}

/// Answers until the other side, or whoever has us, has had enough.
fn converse(stream: &mut (impl Read + Write), contact: &str, shared: &Shared, is_wanted: impl Fn() -> bool) {
    let mut input = Vec::new();
    let mut buffer = [0; 16_384];
    let mut is_first = true;
    while is_wanted() {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(len) => input.extend_from_slice(&buffer[..len]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(_) => return,
        }
        if is_first && let Some(start) = find_request(&input) {
            let prefix: Vec<u8> = input.drain(..start).collect();
            shared.prefixes.lock().unwrap_or_else(PoisonError::into_inner).push(prefix);
            is_first = false;
        }
        while let Some(request) = take_message(&mut input) {
            if let Some(answer) = shared.take(request, contact)
                && stream.write_all(&answer).and_then(|()| stream.flush()).is_err()
            {
                return;
            }
        }
    }
}

/// Where the first request begins.
fn find_request(input: &[u8]) -> Option<usize> {
    let methods = ["INVITE ", "OPTIONS ", "ACK ", "BYE ", "MESSAGE ", "REGISTER "];
    methods.iter().filter_map(|method| input.windows(method.len()).position(|w| w == method.as_bytes())).min()
}

impl Shared {
    /// Records a request and answers it, unless it is an ACK.
    fn take(&self, request: Vec<u8>, contact: &str) -> Option<Vec<u8>> {
        let is_answered = !request.starts_with(b"ACK ") && !request.starts_with(b"SIP/2.0");
        let is_answered = is_answered && !self.is_silent.load(Ordering::SeqCst);
        let answer = is_answered.then(|| answer(&request, "200 OK", contact, body(&request)));
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        answer
    }
}
