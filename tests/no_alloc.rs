//! The engine neither allocates nor frees on a message: a counting allocator watches it deal with whole calls.
//!
//! Calls are recorded first: each message of each call, made from what the engine forwarded before, for IPv4 and IPv6,
//! through the socket and through a hand-over. Then the recording is played again and again with the count switched
//! on for this thread: all verdicts, bindings made, refreshed, refused by a full table and expired. The outbox is
//! emptied only when it has no room, and its list must not have moved.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;

use tandem::base::time::Instant;
use tandem::engine::outbox::{DATAGRAM_MAX, Outbox};
use tandem::engine::{Capacity, Engine, Outcome, Received};
use tandem::metrics::{Counters, Reason};
use tandem::route::key::CallHasher;
use tandem::route::snapshot::{BackendStatus, ListenerIndex, Snapshot};

thread_local! {
    /// Calls of the allocator while the count is on. Constant, without destructor: using it allocates nothing.
    static CALLS: Cell<u64> = const { Cell::new(0) };
    static IS_ON: Cell<bool> = const { Cell::new(false) };
}

/// The system's allocator with a count.
struct Counting;

fn count() {
    // A thread that ends has no count any more; nobody watches it.
    let _ = IS_ON.try_with(|is_on| {
        if is_on.get() {
            let _ = CALLS.try_with(|calls| calls.set(calls.get() + 1));
        }
    });
}

// SAFETY: every call goes on to the system's allocator with the arguments it came with; counting touches plain
// thread-local cells and does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`, which is the system's too.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count();
        // SAFETY: `block` came from `System` through this allocator, with this layout.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as for `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as for `dealloc`; the caller vouches for `size`.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CONFIG: &str = r#"
[node]
secret = "000102030405060708090a0b0c0d0e0f"
[[service]]
name = "voice"
listen = ["udp:127.0.0.1:5060", "udp:[::1]:5060"]
pool = "pbx"
[[pool]]
name = "pbx"
[[pool.backend]]
name = "pbx1"
address = "udp:127.0.0.1:5071"
[[pool.backend]]
name = "pbx2"
address = "udp:[::1]:5072"
[[pool.backend]]
name = "pbx3"
address = "udp:127.0.0.1:5073"
"#;

/// A datagram as it came in.
struct Recorded {
    bytes: Vec<u8>,
    source: SocketAddr,
    listener: ListenerIndex,
}

/// What was sent: where to, and the bytes.
type Sent = (SocketAddr, Vec<u8>);

/// An engine and what it was given.
struct Recorder {
    engine: Engine,
    outbox: Outbox,
    tape: Vec<Recorded>,
}

fn snapshot(workers: usize) -> (Arc<Snapshot>, CallHasher) {
    let config = tandem::config::parse(CONFIG, "no_alloc.toml").unwrap().config;
    let healthy = |b: &tandem::config::Backend| BackendStatus { admin: b.admin, is_healthy: true };
    let hasher = CallHasher::new(config.node.secret.as_ref().unwrap());
    (Arc::new(Snapshot::build(&config, 1, workers, healthy)), hasher)
}

fn engine(workers: usize, bindings: usize) -> Engine {
    let (snapshot, hasher) = snapshot(workers);
    Engine::new(0, snapshot, hasher, Capacity { bindings, headers: 64, message_bytes: DATAGRAM_MAX })
}

fn outbox() -> Outbox {
    Outbox::with_capacity(128, 4 * DATAGRAM_MAX)
}

impl Recorder {
    fn play(&mut self, source: SocketAddr, bytes: impl Into<Vec<u8>>) -> Option<Sent> {
        let recorded = Recorded { bytes: bytes.into(), source, listener: ListenerIndex(source.is_ipv6().into()) };
        let Recorded { bytes, listener, .. } = &recorded;
        let rx = Received { bytes, source, listener: *listener, flow: None, is_taken_over: false };
        self.outbox.clear();
        assert_eq!(self.engine.handle(Instant(0), &rx, &mut self.outbox), Outcome::Done);
        self.tape.push(recorded);
        let sent = self.outbox.transmits().first().map(|t| (t.hop.destination, self.outbox.bytes(t).to_vec()));
        assert!(self.outbox.transmits().len() <= 1);
        sent
    }

    /// A call from INVITE to the answer to BYE, with a re-INVITE of the backend in between.
    fn record_call(&mut self, number: usize, caller: SocketAddr) {
        let head = head(number, caller);
        let service = service(caller);
        let (backend, invite) =
            self.play(caller, format!("INVITE sip:b@{service} SIP/2.0\r\n{}", with(&head, "i", 1, "INVITE"))).unwrap();
        for status in ["100 Trying", "180 Ringing", "200 OK"] {
            let (to, _) = self.play(backend, response(status, &invite)).unwrap();
            assert_eq!(to, caller);
        }
        let routes = routes(&invite);
        let in_dialog = |branch: &str, cseq: u32, method: &str| {
            let routes: String = routes.iter().rev().map(|r| format!("Route: {r}\r\n")).collect();
            let rest = with(&head, branch, cseq, method).replace("@callee>", "@callee>;tag=b");
            format!("{method} sip:b@{backend} SIP/2.0\r\n{routes}{rest}")
        };
        assert_eq!(self.play(caller, in_dialog("a", 1, "ACK")).unwrap().0, backend);
        let back: String = routes.iter().map(|r| format!("Route: {r}\r\n")).collect();
        let reinvite = format!(
            "INVITE sip:a@{caller} SIP/2.0\r\n{back}Via: SIP/2.0/UDP {backend};branch=z9hG4bKr{number}\r\n\
             From: <sip:b@callee>;tag=b\r\nTo: <sip:a@caller>;tag=a\r\nCall-ID: call{number}\r\nCSeq: 9 INVITE\r\n\
             Contact: <sip:b@{backend}>\r\nContent-Length: 0\r\n\r\n"
        );
        let (to, reinvite) = self.play(backend, reinvite).unwrap();
        assert_eq!(to, caller);
        assert_eq!(self.play(caller, response("200 OK", &reinvite)).unwrap().0, backend);
        let (to, bye) = self.play(caller, in_dialog("y", 2, "BYE")).unwrap();
        assert_eq!(to, backend);
        assert_eq!(self.play(backend, response("200 OK", &bye)).unwrap().0, caller);
    }

    /// REGISTER, OPTIONS, a cancelled call, and what is refused or dropped.
    fn record_rest(&mut self, number: usize, caller: SocketAddr) {
        let head = head(1_000_000 + number, caller);
        let service = service(caller);
        for method in ["REGISTER", "OPTIONS", "PUBLISH", "x-Method"] {
            let request = format!("{method} sip:b@{service} SIP/2.0\r\n{}", with(&head, method, 1, method));
            let (backend, request) = self.play(caller, request).unwrap();
            self.play(backend, response("200 OK", &request)).unwrap();
        }
        let start = |method: &str| format!("{method} sip:b@{service} SIP/2.0\r\n{}", with(&head, "c", 7, method));
        let (backend, invite) = self.play(caller, start("INVITE")).unwrap();
        self.play(backend, response("180 Ringing", &invite)).unwrap();
        let (to, cancel) = self.play(caller, start("CANCEL")).unwrap();
        assert_eq!(to, backend);
        self.play(backend, response("200 OK", &cancel)).unwrap();
        self.play(backend, response("487 Request Terminated", &invite)).unwrap();
        assert_eq!(self.play(caller, start("ACK").replace("@callee>", "@callee>;tag=b")).unwrap().0, backend);

        let forged = response("200 OK", &invite).replace(";branch=z9hG4bK", ";branch=z9hG4bKx");
        assert!(self.play(backend, forged).is_none());
        let stolen = start("BYE").replace("From:", &format!("Route: <sip:{service};lr;tk=EwAAAAAAAAAAA>\r\nFrom:"));
        self.play(caller, stolen);
        for (line, status) in [
            ("Max-Forwards: 0", "483"),
            ("Proxy-Require: sec-agree", "420"),
            ("CSeq: x", "400"),
            ("Content-Length: 99", "400"),
        ] {
            let padding = format!("X-Padding: {}", "x".repeat(300));
            let refused = start("INVITE").replace("Contact:", &format!("{line}\r\n{padding}\r\nContact:"));
            let (to, answer) = self.play(caller, refused).unwrap();
            assert_eq!(to, caller);
            assert!(answer.starts_with(format!("SIP/2.0 {status}").as_bytes()), "{line}");
        }
        for junk in ["\r\n\r\n", "\0\0\0", "INVITE", "SIP/2.0 200 OK\r\n\r\n", "INVITE sip:b SIP/2.0\r\nVia: x"] {
            self.play(caller, junk);
        }
        self.play(caller, vec![b'A'; DATAGRAM_MAX]);
    }
}

fn service(caller: SocketAddr) -> &'static str {
    if caller.is_ipv6() { "[::1]:5060" } else { "127.0.0.1:5060" }
}

/// The header lines of a request, with marks where requests of one call differ.
fn head(number: usize, caller: SocketAddr) -> String {
    format!(
        "Via: SIP/2.0/UDP {caller};rport;branch=z9hG4bK{number}BRANCH\r\nFrom: <sip:a@caller>;tag=a\r\n\
         To: <sip:b@callee>\r\nCall-ID: call{number}\r\nCSeq: NUMBER\r\nContact: <sip:a@{caller}>\r\nContent-Length: 4\r\n\
         \r\nv=0\n"
    )
}

fn with(head: &str, branch: &str, cseq: u32, method: &str) -> String {
    head.replace("BRANCH", branch).replace("NUMBER", &format!("{cseq} {method}"))
}

fn lines(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    text.split("\r\n\r\n").next().unwrap_or_default().split("\r\n").map(str::to_owned).collect()
}

fn routes(request: &[u8]) -> Vec<String> {
    let lines = lines(request);
    lines.iter().filter_map(|line| line.strip_prefix("Record-Route: ")).map(str::to_owned).collect()
}

fn response(status: &str, request: &[u8]) -> String {
    let is_copied = |line: &&String| {
        ["Via:", "From:", "To:", "Call-ID:", "CSeq:", "Record-Route:"].iter().any(|name| line.starts_with(name))
    };
    let mut text = format!("SIP/2.0 {status}\r\n");
    for line in lines(request).iter().filter(is_copied) {
        text.push_str(line);
        text.push_str(if line.starts_with("To:") && !line.contains(";tag=") { ";tag=b\r\n" } else { "\r\n" });
    }
    text + "Contact: <sip:b@callee>\r\nContent-Length: 0\r\n\r\n"
}

/// Plays the tape `rounds` times, ten minutes apart so that bindings expire; returns what the engine counted, how
/// many datagrams that were, and how often the allocator was called.
fn replay(mut engine: Engine, tape: &[Recorded], rounds: u64, is_taken_over: bool) -> (Counters, u64, u64) {
    let mut outbox = outbox();
    let list = outbox.transmits().as_ptr();
    let mut datagrams = 0;
    let mut handle_round = |round: u64| {
        let now = Instant((1 + round) * 7_200_000_000_000);
        (0..4).for_each(|_| engine.handle_timeout(now));
        for recorded in tape {
            if !outbox.has_room() {
                outbox.clear();
            }
            let Recorded { bytes, source, listener } = recorded;
            let rx = Received { bytes, source: *source, listener: *listener, flow: None, is_taken_over };
            engine.handle(now, &rx, &mut outbox);
            datagrams += 1;
        }
    };
    // One round to warm up: what is initialised on first use.
    handle_round(0);
    CALLS.set(0);
    IS_ON.set(true);
    (1..=rounds).for_each(handle_round);
    IS_ON.set(false);
    assert_eq!(outbox.transmits().as_ptr(), list, "the outbox has moved");
    (engine.counters(), datagrams, CALLS.get())
}

fn record() -> Vec<Recorded> {
    let mut recorder = Recorder { engine: engine(1, 4_096), outbox: outbox(), tape: Vec::new() };
    for number in 0..60 {
        let port = 6_000 + number as u16;
        let caller =
            SocketAddr::new(if number % 2 == 0 { [127, 0, 0, 1].into() } else { "::1".parse().unwrap() }, port);
        recorder.record_call(number, caller);
        recorder.record_rest(number, caller);
    }
    recorder.tape
}

#[test]
fn messages_cost_no_allocation() {
    CALLS.set(0);
    IS_ON.set(true);
    drop(std::hint::black_box(Box::new(1)));
    IS_ON.set(false);
    assert_eq!(CALLS.get(), 2, "the count counts");

    let tape = record();
    let (counters, datagrams, calls) = replay(engine(1, 4_096), &tape, 8, false);
    println!("{datagrams} datagrams, {calls} calls of the allocator: {counters:?}");
    assert!(datagrams >= 10_000, "{datagrams}");
    assert_eq!(calls, 0, "a message allocates or frees");
    assert_eq!(counters.outcomes(), datagrams);
    assert!(counters.routed_by_cookie > 0 && counters.routed_by_binding > 0 && counters.selected > 0);
    assert!(counters.bindings_expired > 0 && counters.cookies_refused > 0 && counters.responses_forwarded > 0);
    let answered = |reason: Reason| counters.answered[reason as usize];
    assert!(
        answered(Reason::TooManyHops) > 0 && answered(Reason::ProxyRequire) > 0 && answered(Reason::MissingHeader) > 0
    );
    assert!(counters.dropped[Reason::BadBranch as usize] > 0);
}

#[test]
fn a_full_table_and_hand_overs_cost_no_allocation() {
    let tape = record();
    let (counters, datagrams, calls) = replay(engine(1, 16), &tape, 8, false);
    assert!(counters.bindings_refused > 0);
    assert_eq!((calls, counters.outcomes()), (0, datagrams));

    let (counters, datagrams, calls) = replay(engine(2, 4_096), &tape, 8, false);
    assert!(counters.handed_over > 0);
    assert_eq!((calls, counters.outcomes()), (0, datagrams));

    let (counters, datagrams, calls) = replay(engine(2, 4_096), &tape, 8, true);
    assert_eq!((counters.handed_over, counters.taken_over), (0, datagrams));
    assert_eq!((calls, counters.outcomes()), (0, datagrams));
}
