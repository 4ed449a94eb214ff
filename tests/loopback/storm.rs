//! A storm of broken messages at full rate: every fixture, every message of the corpora where they are, changed at
//! random from one seed.
//!
//! What must hold afterwards: the process is alive and serves a call; each datagram that was sent was received or is in
//! the kernel's own count of drops, which Tandem reports too; each that was received has its outcome; and memory is
//! what it was before. A tenth goes out without any pause, so that the kernel has to drop; the rest as fast as Tandem
//! takes it, so that most of it is looked at.
//!
//! 30,000 datagrams; `TANDEM_FULL=1` makes it a million.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tandem::base::prng::Prng;

use crate::bed::local;
use crate::endpoint::{Endpoint, check_call};
use crate::node::{Backend, Node, Report, Setup, workers};
use crate::{Place, await_some, free_port};

const SEED: u64 = 0x5707_2026;

/// Sockets that send, so that the kernel's hash over addresses gives some to each worker.
const SENDERS: usize = 16;

/// Bytes that wait in Tandem's sockets before the sender lets them be taken; far less than a socket holds.
const WAITING_MAX: u64 = 128 * 1024;

/// What memory may differ by. Everything that a message touches is taken at the start and touched by the warm-up; what
/// is left is the allocator's: each report is rendered anew, and its pages come and go. Whatever the size of the storm:
/// of a million datagrams, a leak of one byte in two would show.
const MEMORY_TOLERANCE_KIB: u64 = 512;

fn size() -> usize {
    if std::env::var_os("TANDEM_FULL").is_some() { 1_000_000 } else { 30_000 }
}

/// Every file below a folder that may be a message, in order of their names.
fn messages(folder: &Path) -> Vec<Vec<u8>> {
    let (mut paths, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
            match path.is_dir() {
                true => folders.push(path),
                false if !["tsv", "md", "toml", "expect", "expected"].contains(&ending) => paths.push(path),
                false => {}
            }
        }
    }
    paths.sort();
    let read = paths.iter().filter_map(|path| fs::read(path).ok());
    read.filter(|bytes| (1..=DATAGRAM_MAX).contains(&bytes.len())).collect()
}

/// The fixtures, and the corpora where there are any.
fn seeds() -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let corpus = std::env::var_os("TANDEM_CORPUS").map_or_else(|| root.join("../shared/data"), PathBuf::from);
    let mut seeds = messages(&root.join("tests/data"));
    assert!(seeds.len() > 50, "only {} fixtures", seeds.len());
    let own = seeds.len();
    for set in ["flows", "fuzz", "realworld", "regress", "rfc4475", "rfc5118"] {
        seeds.extend(messages(&corpus.join(set)));
    }
    println!("{own} fixtures, {} messages of the corpora", seeds.len() - own);
    seeds
}

const DATAGRAM_MAX: usize = 65_507;

/// Words that mean something to a reader of SIP, or nearly.
const WORDS: [&[u8]; 24] = [
    b"\r\n",
    b"\r",
    b"\n ",
    b"\r\n\r\n",
    b"\0",
    b"\"",
    b"\\",
    b"<",
    b">",
    b",",
    b";",
    b":",
    b"=",
    b"SIP/2.0",
    b"z9hG4bK",
    b";lr;tk=",
    b";rport",
    b";received=",
    b"Via: SIP/2.0/UDP ",
    b"Route: <sip:127.0.0.1>\r\n",
    b"Content-Length: ",
    b"4294967296",
    b"-1",
    b"\xff\xfe",
];

/// One of the seeds with up to eight changes.
fn mutate(prng: &mut Prng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let pick = |prng: &mut Prng| &seeds[prng.below(seeds.len() as u64) as usize];
    let mut bytes = pick(prng).clone();
    for _ in 0..prng.below(9) {
        let len = bytes.len() as u64;
        let at = prng.below(len + 1) as usize;
        let end = (at + 1 + prng.below(64) as usize).min(bytes.len());
        match prng.below(10) {
            0 => bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << prng.below(8)),
            1 => bytes.get_mut(at).into_iter().for_each(|byte| *byte = prng.next_u64() as u8),
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at.min(end)..end)),
            4 | 5 => drop(bytes.splice(at..at, WORDS[prng.below(WORDS.len() as u64) as usize].iter().copied())),
            6 => drop(bytes.splice(at..at, bytes[at.min(end)..end].to_vec())),
            7 => {
                let other = pick(prng);
                bytes.truncate(at);
                bytes.extend_from_slice(&other[prng.below(other.len() as u64) as usize..]);
            }
            8 => {
                let mut lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
                let [a, b] = [0; 2].map(|_: u8| prng.below(lines.len() as u64) as usize);
                if !lines.is_empty() {
                    lines.swap(a, b);
                }
                bytes = lines.concat();
            }
            // Rare, as it makes the message large.
            _ if prng.below(20) == 0 => {
                let piece = bytes[at.min(end)..end].to_vec();
                let room = DATAGRAM_MAX.saturating_sub(bytes.len());
                let times = (prng.below(room as u64 + 1) as usize).checked_div(piece.len()).unwrap_or_default();
                bytes.splice(at..at, piece.repeat(times));
            }
            _ => {}
        }
    }
    bytes.truncate(DATAGRAM_MAX);
    bytes
}

/// Who sends, from an address of its own: answers that go to any port of it disturb nobody.
struct Storm<'a> {
    node: &'a Node,
    senders: Vec<Endpoint>,
    to: SocketAddr,
    sent: u64,
}

impl Storm<'_> {
    fn send(&mut self, bytes: &[u8]) {
        self.senders[self.sent as usize % SENDERS].send(bytes, self.to);
        self.sent += 1;
    }

    /// Lets Tandem take what waits.
    fn await_room(&self) {
        await_some("Tandem to take what waits", Duration::from_secs(60), || {
            (self.queue().0 <= WAITING_MAX).then_some(())
        });
    }

    /// What waits in Tandem's sockets, in bytes, and how many datagrams the kernel dropped there.
    fn queue(&self) -> (u64, u64) {
        let local = format!("0100007F:{:04X}", self.to.port());
        let table = fs::read_to_string("/proc/net/udp").unwrap();
        let (mut waiting, mut dropped) = (0, 0);
        for line in table.lines() {
            let columns: Vec<&str> = line.split_whitespace().collect();
            if columns.get(1) == Some(&local.as_str()) {
                let queues = columns[4].split_once(':').unwrap();
                waiting += u64::from_str_radix(queues.1, 16).unwrap();
                dropped += columns.last().unwrap().parse::<u64>().unwrap();
            }
        }
        (waiting, dropped)
    }

    /// Until each datagram is accounted for: received and with an outcome, or dropped by the kernel.
    fn await_all(&self) -> Report {
        let mut seen = String::new();
        let begun = Instant::now();
        loop {
            let (waiting, dropped) = self.queue();
            let report = self.node.report();
            let (received, reported) = (report.total("received_total"), report.total("kernel_drops_total"));
            let has_outcomes = report.outcomes() == received + report.total("taken_over_total");
            if waiting == 0 && received + dropped == self.sent && reported == dropped && has_outcomes {
                return report;
            }
            let line = format!("{} sent, {received} received, {dropped} dropped, {reported} reported", self.sent);
            if line != seen {
                println!("waiting: {line}, {waiting} bytes wait");
                seen = line;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "not all is accounted for: {seen}; {report:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn storm_of_broken_messages_leaves_process_counters_and_memory_as_they_were() {
    let seeds = seeds();
    let place = Place::take("storm");
    let backend = Endpoint::bind(local(0)).unwrap();
    let setup = Setup {
        workers: workers(2),
        listen: vec![local(free_port())],
        backends: vec![Backend { name: "pbx1".to_owned(), address: backend.address, weight: 100 }],
        // Tables of a file stand in any order. Few buffers: all of them are touched in no time; small ones in the
        // kernel: they overflow.
        health: "probe = \"none\"\n[limits]\nreceive_buffers = 64\nsocket_buffer = \"256KiB\"",
    };
    let node = Node::start(place.folder(), &setup);
    let address = SocketAddr::from((Ipv4Addr::new(127, 77, 0, 1), 0));
    let senders = (0..SENDERS).map(|_| Endpoint::bind(address).unwrap()).collect();
    let mut storm = Storm { node: &node, senders, to: setup.listen[0], sent: 0 };
    let mut prng = Prng::new(SEED);

    // Every receive buffer and both rings to their last page, and enough reports for the allocator to settle.
    for number in 0..64 * SENDERS {
        // Both workers own some.
        let request = |body| storm.senders[0].request("MESSAGE", &format!("large{number}@storm"), storm.to, body);
        // Its length has five digits then.
        let head = request(&[]).len() + 4;
        storm.send(&request(&vec![b'x'; DATAGRAM_MAX - head]));
        storm.await_room();
    }
    for _ in 0..3_000 {
        storm.send(&mutate(&mut prng, &seeds));
        storm.await_room();
    }
    (0..10).for_each(|_| drop(storm.await_all()));
    let (before, memory_before) = (storm.await_all(), node.memory_kib());

    let begun = Instant::now();
    for number in 0..size() {
        storm.send(&mutate(&mut prng, &seeds));
        if number > size() / 10 && number.is_multiple_of(32) {
            storm.await_room();
        }
    }
    let took = begun.elapsed();
    let after = storm.await_all();
    let memory_after = node.memory_kib();

    let grown = |name: &str| after.total(name) - before.total(name);
    println!(
        "{} sent in {took:.1?}: {} received, {} dropped by the kernel; {} requests and {} responses forwarded, {} answered, \
         {} dropped, {} handed over; memory {memory_before} KiB before and {memory_after} KiB after",
        size(),
        grown("received_total"),
        grown("kernel_drops_total"),
        grown("requests_forwarded_total"),
        grown("responses_forwarded_total"),
        grown("answered_total"),
        grown("dropped_total"),
        grown("handed_over_total"),
    );
    assert!(grown("received_total") >= size() as u64 / 2, "the kernel dropped more than Tandem saw: {after:#?}");
    for outcome in ["requests_forwarded_total", "answered_total", "dropped_total"] {
        assert!(grown(outcome) > size() as u64 / 100, "{outcome}: {after:#?}");
    }
    assert!(
        memory_after <= memory_before + MEMORY_TOLERANCE_KIB,
        "memory was {memory_before} KiB and is {memory_after} KiB"
    );

    let caller = Endpoint::bind(local(0)).unwrap();
    backend.drain();
    check_call(&caller, &backend, storm.to, "after-the-storm@caller");
    let (status, _, report) = node.stop();
    assert!(status.success(), "{status}");
    report.check_balance();
}
