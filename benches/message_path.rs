//! What one message costs in user space: scan, decide, edit, the whole engine, look-ups among many.
//!
//! `cargo bench` prints nanoseconds; PERFORMANCE.md quotes them with the machine they were measured on.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tandem::base::id::BackendId;
use tandem::base::time::Instant;
use tandem::config::{Config, Secret, parse};
use tandem::engine::outbox::Outbox;
use tandem::engine::{Capacity, Engine, Received};
use tandem::route::bindings::{Bindings, Lasting, Lifetimes};
use tandem::route::decide::{Scene, decide};
use tandem::route::key::CallHasher;
use tandem::route::request::Request;
use tandem::route::select::maglev::{Candidate, Maglev};
use tandem::route::snapshot::{BackendStatus, ListenerIndex, Snapshot};
use tandem::sip::edit::Edit;
use tandem::sip::scan::{HeaderName, Scan, StartLine};

const SOURCE: &str = "192.0.2.77:5060";

/// An INVITE of 1 KB with 14 headers, as a phone behind a proxy sends it.
fn invite() -> Vec<u8> {
    let sdp = "v=0\r\no=- 3857 3857 IN IP4 192.0.2.77\r\ns=call\r\nc=IN IP4 192.0.2.77\r\nt=0 0\r\n\
        m=audio 16384 RTP/AVP 0 8 101\r\na=rtpmap:0 PCMU/8000\r\na=rtpmap:8 PCMA/8000\r\n\
        a=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-15\r\na=ptime:20\r\na=sendrecv\r\n";
    let head = format!(
        "INVITE sip:+12015550123@192.0.2.10:5060;user=phone SIP/2.0\r\n\
         Via: SIP/2.0/UDP 192.0.2.77:5060;branch=z9hG4bK-524287-1---7f2d8a1c5e3b9f04;rport\r\n\
         Max-Forwards: 70\r\n\
         Contact: <sip:alice@192.0.2.77:5060;transport=UDP>\r\n\
         To: <sip:+12015550123@192.0.2.10;user=phone>\r\n\
         From: \"Alice Example\" <sip:alice@192.0.2.10>;tag=5f8a3c21\r\n\
         Call-ID: 98742YzRhMzE4ZDg2NGQ5NTk0YmE2NjM1MTY5ZDc@192.0.2.77\r\n\
         CSeq: 1 INVITE\r\n\
         Allow: INVITE, ACK, CANCEL, BYE, NOTIFY, REFER, MESSAGE, OPTIONS, INFO, SUBSCRIBE\r\n\
         Content-Type: application/sdp\r\n\
         Supported: replaces, norefersub, extended-refer, timer, outbound, path\r\n\
         User-Agent: Example Phone 5.5.9 rv2.10.17.3\r\n\
         Session-Expires: 1800;refresher=uac\r\n\
         Allow-Events: presence, kpml, talk\r\n\
         Content-Length: {}\r\n\r\n{sdp}",
        sdp.len()
    );
    head.into_bytes()
}

fn config() -> Config {
    let text = r#"
        [node]
        name = "bench"
        secret = "00112233445566778899aabbccddeeff"
        [[service]]
        name = "voice"
        listen = ["udp:192.0.2.10:5060"]
        pool = "pbx"
        [[pool]]
        name = "pbx"
        [[pool.backend]]
        name = "pbx1"
        address = "udp:198.51.100.11:5060"
        [[pool.backend]]
        name = "pbx2"
        address = "udp:198.51.100.12:5060"
    "#;
    parse(text, "bench").expect("the configuration is sound").config
}

fn snapshot() -> Arc<Snapshot> {
    let status = |backend: &tandem::config::Backend| BackendStatus { admin: backend.admin, is_healthy: true };
    Arc::new(Snapshot::build(&config(), 1, 1, status))
}

fn engine() -> Engine {
    let capacity = Capacity { bindings: 1 << 16, headers: 256, message_bytes: 65_507 };
    Engine::new(0, snapshot(), CallHasher::new(&Secret([7; 16])), capacity)
}

fn parts(c: &mut Criterion) {
    let bytes = invite();
    let mut group = c.benchmark_group("invite");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    let mut scan = Scan::with_capacity(256);
    group.bench_function("scan", |b| b.iter(|| black_box(scan.scan(black_box(&bytes)))));
    let Some(StartLine::Request { method, uri }) = scan.start_line() else { panic!("an INVITE is a request") };
    group.bench_function("decode", |b| {
        b.iter(|| black_box(Request::decode(black_box(&bytes), &scan, method, uri)).is_ok())
    });
    let snapshot = snapshot();
    let request = Request::decode(&bytes, &scan, method, uri).expect("it is sound");
    let source: SocketAddr = SOURCE.parse().expect("an address");
    let scene =
        Scene { snapshot: &snapshot, ingress: ListenerIndex(0), source, flow: None, binding: None, transaction: 0 };
    group.bench_function("decide", |b| b.iter(|| black_box(decide(black_box(&scene), &request))));
    let mut edit = Edit::default();
    let mut out = vec![0; 65_536];
    let via = scan.first(HeaderName::Via).expect("it has one").line.start as usize;
    let hops = scan.first(HeaderName::MaxForwards).expect("it has one").value;
    group.bench_function("edit", |b| {
        b.iter(|| {
            edit.clear();
            edit.insert(via, &[b"Via: SIP/2.0/UDP 192.0.2.10:5060;branch=", b"z9hG4bKabcdefghijklmnop", b"\r\n"]);
            edit.insert(via, &[b"Record-Route: <sip:192.0.2.10:5060;lr;tk=", &[b'x'; 35], b">\r\n"]);
            edit.replace(hops, b"69");
            black_box(edit.apply(black_box(&bytes), scan.message(), &mut out))
        });
    });
    group.finish();
}

/// The engine as a worker runs it: a new INVITE, its retransmission, and the response.
fn whole(c: &mut Criterion) {
    let source: SocketAddr = SOURCE.parse().expect("an address");
    let bytes = invite();
    let mut outbox = Outbox::with_capacity(4, 1 << 20);
    let mut engine = engine();
    let mut handle = |bytes: &[u8], source| {
        outbox.clear();
        let rx = Received { bytes, source, listener: ListenerIndex(0), flow: None, is_taken_over: false };
        engine.handle(Instant(0), &rx, &mut outbox);
        let sent = outbox.transmits()[0];
        (sent.hop.destination, outbox.bytes(&sent).len())
    };
    let mut group = c.benchmark_group("engine");
    group.bench_function("invite", |b| b.iter(|| black_box(handle(black_box(&bytes), source))));
    let (ok, backend) = response(&bytes);
    group.bench_function("response", |b| b.iter(|| black_box(handle(black_box(&ok), backend))));
    let ack = in_dialog(&ok);
    group.bench_function("in_dialog", |b| b.iter(|| black_box(handle(black_box(&ack), source))));
    group.finish();
}

/// The 200 that the backend answers to what the engine forwards.
fn response(invite: &[u8]) -> (Vec<u8>, SocketAddr) {
    let mut engine = engine();
    let mut outbox = Outbox::with_capacity(4, 1 << 20);
    let source = SOURCE.parse().expect("an address");
    let rx = Received { bytes: invite, source, listener: ListenerIndex(0), flow: None, is_taken_over: false };
    engine.handle(Instant(0), &rx, &mut outbox);
    let sent = outbox.transmits()[0];
    let text = String::from_utf8(outbox.bytes(&sent).to_vec()).expect("the INVITE is text");
    let (head, body) = text.split_once("\r\n\r\n").expect("it has a body");
    let kept =
        head.split("\r\n").skip(1).filter(|line| !line.starts_with("Max-Forwards") && !line.starts_with("Allow"));
    let lines: Vec<String> =
        kept.map(|l| if l.starts_with("To:") { format!("{l};tag=b1") } else { l.to_owned() }).collect();
    (format!("SIP/2.0 200 OK\r\n{}\r\n\r\n{body}", lines.join("\r\n")).into_bytes(), sent.hop.destination)
}

/// A BYE with the route set of that answer.
fn in_dialog(ok: &[u8]) -> Vec<u8> {
    let text = std::str::from_utf8(ok).expect("it is text");
    let line = |name: &str| text.split("\r\n").find(|l| l.starts_with(name)).expect("it is there").to_owned();
    format!(
        "BYE sip:bob@198.51.100.11:5060 SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.77:5060;branch=z9hG4bK-bye-1;rport\r\n\
         {}\r\nMax-Forwards: 70\r\n{}\r\n{}\r\n{}\r\nCSeq: 2 BYE\r\nUser-Agent: Example Phone 5.5.9 rv2.10.17.3\r\n\
         Content-Length: 0\r\n\r\n",
        line("Record-Route:").replacen("Record-Route:", "Route:", 1),
        line("From:"),
        line("To:"),
        line("Call-ID:"),
    )
    .into_bytes()
}

/// A look-up as a worker makes it: the hash of the Call-ID and the table.
fn bindings(c: &mut Criterion) {
    let hasher = CallHasher::new(&Secret([7; 16]));
    let lifetimes = Lifetimes {
        early: Duration::from_secs(300),
        dialog: Duration::from_secs(3600),
        linger: Duration::from_secs(32),
    };
    let mut group = c.benchmark_group("binding");
    for count in [1_000u64, 1_000_000] {
        let mut table = Bindings::with_capacity(count as usize, lifetimes);
        let call_id = |n: u64| format!("{n:032x}@192.0.2.77");
        for n in 0..count {
            table.bind(Instant(0), hasher.hash(call_id(n).as_bytes()).0, BackendId(1), 0, Lasting::Dialog);
        }
        // Calls in an order that the caches do not foresee.
        let calls: Vec<String> =
            (0..65_536u64).map(|n| call_id(n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % count)).collect();
        let mut next = 0;
        group.bench_function(format!("among_{count}"), |b| {
            b.iter(|| {
                next = (next + 1) % calls.len();
                black_box(table.get(hasher.hash(calls[next].as_bytes()).0)).is_some()
            });
        });
    }
    group.finish();
}

fn selection(c: &mut Criterion) {
    let mut group = c.benchmark_group("selection");
    for count in [2u16, 1000] {
        let candidate = |index| Candidate { index, id: BackendId::from_name(&format!("b{index}")), weight: 100 };
        let table = Maglev::new(&(0..count).map(candidate).collect::<Vec<_>>());
        let mut hash = 1u64;
        group.bench_function(format!("among_{count}"), |b| {
            b.iter_batched(
                || {
                    hash = hash.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    hash
                },
                |hash| black_box(table.get(hash)),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, parts, whole, bindings, selection);
criterion_main!(benches);
