//! A flood of Call-IDs that collide under the usual hashes without a key fares like any other flood.

use std::time::Duration;

use bench_harness::sys::thread_cpu_time;
use tandem::base::id::BackendId;
use tandem::base::prng::Prng;
use tandem::base::time::Instant;
use tandem::config::Secret;
use tandem::engine::Outcome;
use tandem::route::bindings::{Bindings, Lasting};
use tandem::route::key::CallHasher;
use tandem::route::snapshot::OWNER_SLOTS;

use crate::collisions::{CrcFamily, FnvFamily, MANY, crc, fnv, random};
use crate::{Bench, CLIENT, config, snapshot};

const BACKENDS: usize = 10;
const WORKERS: usize = 4;

/// Writes text `i` of a family.
type Family = Box<dyn Fn(u32, &mut Vec<u8>)>;

/// The two families, each with random texts of its length.
fn families() -> [(&'static str, Family, Family); 2] {
    let (fnv, crc) = (FnvFamily::find(&mut Prng::new(1)), CrcFamily::find());
    let len = |write: &dyn Fn(u32, &mut Vec<u8>)| {
        let mut text = Vec::new();
        write(0, &mut text);
        text.len()
    };
    let [fnv_len, crc_len] = [len(&|i, out| fnv.text(i, out)), len(&|i, out| crc.text(i, out))];
    [
        ("FNV-1a", Box::new(move |i, out| fnv.text(i, out)), Box::new(move |i, out| random(i, fnv_len, out))),
        ("CRC-32", Box::new(move |i, out| crc.text(i, out)), Box::new(move |i, out| random(i, crc_len, out))),
    ]
}

#[test]
fn hashes_are_those_of_their_standards() {
    assert_eq!((fnv(b""), fnv(b"a"), fnv(b"foobar")), (0x811c_9dc5, 0xe40c_292c, 0xbf9c_f968));
    assert_eq!((crc(b""), crc(b"123456789")), (0, 0xcbf4_3926));
}

#[test]
fn million_texts_of_a_family_differ_and_have_one_hash() {
    for ((name, family, random), hash) in families().iter().zip([fnv as fn(&[u8]) -> u32, crc]) {
        let (mut text, mut texts) = (Vec::new(), Vec::new());
        let fingerprint = CallHasher::new(&Secret([3; 16]));
        family(0, &mut text);
        let wanted = hash(&text);
        let mut random_hits = 0;
        for i in 0..MANY {
            family(i, &mut text);
            assert_eq!(hash(&text), wanted, "{name} {i}");
            // SipHash with 128 bits stands for the text: equal ones would be equal here.
            texts.push(fingerprint.hash(&text).0);
            if i < 1_000 {
                random(i, &mut text);
                random_hits += u32::from(hash(&text) == wanted);
            }
        }
        texts.sort_unstable();
        assert!(texts.windows(2).all(|two| two[0] != two[1]), "{name}: a text twice");
        assert_eq!(random_hits, 0, "{name}: the texts to compare with collide too");
    }
}

/// How far counts are from what is expected, in standard deviations of the chi-square distribution.
fn deviation(counts: &[u64], expected: &[f64]) -> f64 {
    let chi_square: f64 = counts.iter().zip(expected).map(|(n, e)| (*n as f64 - e).powi(2) / e).sum();
    let freedom = counts.len() as f64 - 1.0;
    (chi_square - freedom) / (2.0 * freedom).sqrt()
}

/// What a million Call-IDs lead to.
struct Spread {
    table: Bindings,
    keys: Vec<u128>,
    slots: f64,
    selection: f64,
    chains: f64,
    longest: usize,
}

fn spread(write: &Family) -> Spread {
    let config = config(BACKENDS);
    let snapshot = snapshot(&config, WORKERS);
    let hasher = CallHasher::new(config.node.secret.as_ref().unwrap());
    let mut table = Bindings::with_capacity(MANY as usize, snapshot.lifetimes);
    let (mut slots, mut selected) = (vec![0; OWNER_SLOTS], vec![0; BACKENDS]);
    let (mut text, mut keys) = (Vec::new(), Vec::with_capacity(MANY as usize));
    for i in 0..MANY {
        write(i, &mut text);
        let key = hasher.hash(&text);
        assert!(table.bind(Instant(0), key.0, BackendId(1), 1, Lasting::Linger));
        slots[(key.owner_hash() >> 54) as usize] += 1;
        let backend = snapshot.pools[0].table.get(snapshot.keys.select_hash(&[&text])).unwrap();
        selected[usize::from(backend)] += 1;
        keys.push(key.0);
    }
    assert_eq!(table.len(), MANY as usize, "no two Call-IDs share a key");
    let many = f64::from(MANY);
    let even = |n: usize| vec![many / n as f64; n];
    let shares: Vec<f64> = snapshot.pools[0].table.shares().iter().map(|(_, n)| *n as f64).collect();
    let all: f64 = shares.iter().sum();
    let (chains, longest) = chain_deviation(&table.chain_lengths());
    Spread {
        slots: deviation(&slots, &even(OWNER_SLOTS)),
        selection: deviation(&selected, &shares.iter().map(|share| share / all * many).collect::<Vec<_>>()),
        chains,
        longest,
        table,
        keys,
    }
}

/// How far the lengths of chains are from Poisson's distribution, which throwing at random gives; and the longest.
fn chain_deviation(lengths: &[usize]) -> (f64, usize) {
    let buckets: usize = lengths.iter().sum();
    let load = lengths.iter().enumerate().map(|(len, n)| len * n).sum::<usize>() as f64 / buckets as f64;
    let mut likely = (-load).exp();
    let (mut counts, mut expected) = (Vec::new(), Vec::new());
    for (len, count) in lengths.iter().enumerate() {
        if len > 0 {
            likely *= load / len as f64;
        }
        // What is too rare to count by itself is counted together.
        if likely * (buckets as f64) < 20.0 {
            break;
        }
        counts.push(*count as u64);
        expected.push(likely * buckets as f64);
    }
    let rest = (buckets as u64 - counts.iter().sum::<u64>(), buckets as f64 - expected.iter().sum::<f64>());
    counts.push(rest.0);
    expected.push(rest.1);
    (deviation(&counts, &expected), lengths.len() - 1)
}

/// Five standard deviations: with what is fixed here, either always or never.
const DEVIATION_MAX: f64 = 5.0;

#[test]
fn colliding_call_ids_spread_and_chain_like_random_ones() {
    for (name, family, random) in families() {
        let (flood, calm) = (spread(&family), spread(&random));
        for (which, spread) in [("colliding", &flood), ("random", &calm)] {
            let Spread { slots, selection, chains, longest, .. } = spread;
            println!(
                "{name}, {which}: off by {slots:.2} over slots, {selection:.2} over backends, {chains:.2} over chains, longest {longest}"
            );
            for (what, off) in [("owner slots", slots), ("selection", selection), ("chains", chains)] {
                assert!(*off < DEVIATION_MAX, "{name}, {which}: {what} {off:.1} deviations from chance");
            }
        }
        assert!(flood.longest <= calm.longest + 3, "chains of {} against {}", flood.longest, calm.longest);
        let [slow, fast] = look_up_times(&flood, &calm);
        println!("{name}: {slow:?} and {fast:?} for {LOOK_UPS} look-ups");
        assert!(slow < fast.mul_f64(LOOK_UP_RATIO_MAX), "{name}: look-ups take {slow:?}, random ones {fast:?}");
    }
}

const LOOK_UPS: usize = 1 << 17;

/// Two tables that differ in nothing are within a few per cent; one chain of many would be thousands.
const LOOK_UP_RATIO_MAX: f64 = 1.3;

/// The least times for the same walk through both tables, measured in turn until they are close.
fn look_up_times(flood: &Spread, calm: &Spread) -> [Duration; 2] {
    let mut least = [Duration::MAX; 2];
    for round in 0..60 {
        for (spread, least) in [flood, calm].into_iter().zip(&mut least) {
            let mut at = 7usize;
            let begun = thread_cpu_time();
            for _ in 0..LOOK_UPS {
                // An odd step visits every key once in an order that no cache foresees.
                at = (at + 640_487) % spread.keys.len();
                assert!(std::hint::black_box(spread.table.get(spread.keys[at])).is_some());
            }
            *least = (*least).min(thread_cpu_time() - begun);
        }
        if round >= 4 && least[0] < least[1].mul_f64(LOOK_UP_RATIO_MAX) {
            break;
        }
    }
    least
}

/// The same through a whole engine: who owns a request and which backend is selected for it.
#[test]
fn engine_spreads_colliding_call_ids_over_workers_and_backends() {
    const REQUESTS: u32 = 1 << 14;
    let config = config(BACKENDS);
    for (name, family, _) in families() {
        let mut bench = Bench::new(&config, WORKERS);
        let (mut owners, mut text) = (vec![0u64; WORKERS], Vec::new());
        for i in 0..REQUESTS {
            family(i, &mut text);
            let request = format!(
                "OPTIONS sip:b@sip.example.com SIP/2.0\r\nVia: SIP/2.0/UDP {CLIENT};branch=z9hG4bK{i}\r\nFrom: <sip:a@x>;tag=1\r\n\
                 To: <sip:b@x>\r\nCall-ID: {}\r\nCSeq: 1 OPTIONS\r\n\r\n",
                String::from_utf8_lossy(&text)
            );
            let owner = match bench.handle(CLIENT.parse().unwrap(), request.as_bytes()) {
                Outcome::Done => 0,
                Outcome::HandOver(owner) => usize::from(owner),
            };
            owners[owner] += 1;
        }
        let off = deviation(&owners, &[f64::from(REQUESTS) / WORKERS as f64; WORKERS]);
        assert!(off < DEVIATION_MAX, "{name}: workers {owners:?}");
        let selected: Vec<u64> = bench.engine.backend_counters().iter().map(|(_, c)| c.selected).collect();
        assert_eq!(selected.iter().sum::<u64>(), owners[0]);
        let off = deviation(&selected, &[owners[0] as f64 / BACKENDS as f64; BACKENDS]);
        assert!(off < DEVIATION_MAX, "{name}: backends {selected:?}");
    }
}
