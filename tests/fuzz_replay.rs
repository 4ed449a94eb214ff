//! The bodies of the fuzz targets on the stable toolchain: every seed, every input that once was a finding, and random
//! ones that follow from a number.
//!
//! Seeds are the project's own test data and, where they are, the corpora of `$TANDEM_CORPUS` (default `../shared/data`
//! beside the repository). `FUZZ_INPUTS` sets how many random inputs each target gets, `FUZZ_SEED` which ones.
//! An input that makes a body panic is kept in `target/fuzz/findings/`.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use tandem::base::id::stable_hash;
use tandem::base::prng::Prng;
use tandem::fuzzing;

/// Random inputs a target where `FUZZ_INPUTS` says nothing; a debug build does them in seconds.
const INPUTS: u64 = 3_000;

/// The largest datagram; a corpus file beyond that is none.
const SEED_BYTES_MAX: u64 = 65_507;

/// Bytes that mean something to a reader of SIP or TOML, and bytes that mean nothing to either.
const SHARP: &[u8] = b"\r\n \t:;,<>\"\\@?=[]/%#\0\x0c\x80\xff0A";

struct Target {
    name: &'static str,
    body: fn(&[u8]),
    seeds: fn() -> Vec<Vec<u8>>,
}

const TARGETS: [Target; 6] = [
    Target { name: "scan", body: fuzzing::scan, seeds: messages },
    Target { name: "edit", body: fuzzing::edit, seeds: messages },
    Target { name: "engine", body: fuzzing::engine, seeds: sequences },
    Target { name: "frame", body: fuzzing::frame, seeds: streams },
    Target { name: "cookie", body: fuzzing::cookie, seeds: choices },
    Target { name: "config", body: fuzzing::config, seeds: configurations },
];

/// Messages, each behind the two bytes that choose limit and splits; with both limits that a stream may meet.
fn streams() -> Vec<Vec<u8>> {
    let behind =
        |limit: u8| messages().into_iter().map(move |bytes| [&[limit, bytes.len() as u8], &bytes[..]].concat());
    behind(255).chain(behind(60)).collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files below a folder that `is_wanted`, in the order of their paths.
fn files(folder: &Path, is_wanted: fn(&str) -> bool) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.map(Result::unwrap) {
            let (path, kind) = (entry.path(), entry.metadata().unwrap());
            match &*entry.file_name().to_string_lossy() {
                _ if kind.is_dir() => folders.push(path),
                name if is_wanted(name) && kind.len() <= SEED_BYTES_MAX => found.push(path),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

fn read(paths: Vec<PathBuf>) -> Vec<Vec<u8>> {
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Datagrams: the fixtures, what once broke others, and the corpora.
fn messages() -> Vec<Vec<u8>> {
    let is_message = |name: &str| ![".tsv", ".dict", ".md", ".expect", ".toml"].iter().any(|end| name.ends_with(end));
    let mut paths = files(&root().join("tests/data/messages"), is_message);
    paths.extend(files(&root().join("tests/data/regress"), is_message));
    let corpora = std::env::var_os("TANDEM_CORPUS").map_or_else(|| root().join("../shared/data"), PathBuf::from);
    for set in ["flows", "fuzz", "realworld", "regress", "rfc4475", "rfc5118"] {
        paths.extend(files(&corpora.join(set), is_message));
    }
    read(paths)
}

/// Sequences of operations: each message alone, and random choices.
fn sequences() -> Vec<Vec<u8>> {
    let alone = messages().iter().map(|message| fuzzing::engine_input(message)).collect();
    let mut prng = Prng::new(2);
    let random = (0..200).map(|_| (0..200 + prng.below(800)).map(|_| prng.below(256) as u8).collect());
    [alone, random.collect::<Vec<_>>()].concat()
}

/// Random choices of secrets, dialogs and texts.
fn choices() -> Vec<Vec<u8>> {
    let mut prng = Prng::new(3);
    (0..100).map(|_| (0..100 + prng.below(300)).map(|_| prng.below(256) as u8).collect()).collect()
}

/// Configuration files: those that are shipped, and those that are broken in one way each.
fn configurations() -> Vec<Vec<u8>> {
    let folders = ["config", "tests/data/config", "tests/data/messages"];
    read(folders.iter().flat_map(|folder| files(&root().join(folder), |name| name.ends_with(".toml"))).collect())
}

/// What a finding left behind, so that it stays mended.
fn crashers(target: &Target) -> Vec<Vec<u8>> {
    read(files(&root().join("tests/fuzz/crashers").join(target.name), |_| true))
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().expect("a number"))
}

/// A seed with some bytes changed, or bytes of no origin at all.
fn random_input(prng: &mut Prng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut any = |bound: u64| prng.below(bound) as usize;
    if seeds.is_empty() || any(4) == 0 {
        return (0..any(400)).map(|_| any(256) as u8).collect();
    }
    let mut bytes = seeds[any(seeds.len() as u64)].clone();
    bytes.truncate(4_096);
    for _ in 0..=any(6) {
        let at = any(bytes.len() as u64 + 1);
        let end = (at + 1 + any(24)).min(bytes.len());
        match any(5) {
            0 => drop(bytes.drain(at..end)),
            1 => {
                let piece = bytes[at..end].to_vec();
                drop(bytes.splice(at..at, piece));
            }
            2 => {
                let other = &seeds[any(seeds.len() as u64)];
                let from = any(other.len() as u64 + 1);
                let to = (from + any(60)).min(other.len());
                drop(bytes.splice(at..end, other[from..to].iter().copied()));
            }
            3 => bytes.insert(at, SHARP[any(SHARP.len() as u64)]),
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << any(8);
                }
            }
        }
    }
    bytes
}

/// Runs one input; a panic is told with the place where the input was kept.
fn run(target: &Target, input: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| (target.body)(input))).is_err() {
        let folder = root().join("target/fuzz/findings").join(target.name);
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join(format!("{:016x}", stable_hash(b"fuzz", input)));
        fs::write(&path, input).unwrap();
        panic!("{}: a finding, kept as {}", target.name, path.display());
    }
}

#[test]
fn every_body_holds_on_seeds_crashers_and_random_inputs() {
    let (inputs, seed) = (number("FUZZ_INPUTS", INPUTS), number("FUZZ_SEED", 1));
    for target in &TARGETS {
        let started = std::time::Instant::now();
        let (seeds, crashers) = ((target.seeds)(), crashers(target));
        seeds.iter().chain(&crashers).for_each(|input| run(target, input));
        let mut prng = Prng::new(seed);
        (0..inputs).for_each(|_| run(target, &random_input(&mut prng, &seeds)));
        println!(
            "fuzz {}: {} seeds, {} crashers, {inputs} random inputs, no finding, {:.1} s",
            target.name,
            seeds.len(),
            crashers.len(),
            started.elapsed().as_secs_f32()
        );
        assert!(!seeds.is_empty() && inputs > 0, "{}: nothing was run", target.name);
    }
}

#[test]
#[ignore = "tests/fuzz/run asks for it"]
fn seeds_are_written_for_libfuzzer() {
    for target in &TARGETS {
        let folder = root().join("target/fuzz/seeds").join(target.name);
        fs::create_dir_all(&folder).unwrap();
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty(), "{}: no seed", target.name);
        for seed in seeds.iter().chain(&crashers(target)) {
            fs::write(folder.join(format!("{:016x}", stable_hash(b"fuzz", seed))), seed).unwrap();
        }
    }
}

#[test]
fn every_target_has_a_body_here_and_a_binary_there() {
    let mut binaries: Vec<String> = files(&root().join("tests/fuzz/fuzz_targets"), |_| true)
        .iter()
        .map(|path| path.file_stem().unwrap().display().to_string())
        .collect();
    binaries.sort();
    let mut names: Vec<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    names.sort();
    assert_eq!(binaries, names);
}
