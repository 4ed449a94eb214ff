//! A configuration file of any text: refused with reasons that a stranger can act on, or good enough to run by.
//!
//! Nothing panics; every problem has a place in the file and says what is wrong and what to write; secrets are not
//! repeated; and of what is accepted a picture of the world can be built, by which an engine answers a message.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use super::bench::show;
use crate::base::time::Instant;
use crate::config::memory::Budget;
use crate::config::{Config, Lines, Loaded, Placement, Problem, Secret, Surroundings, TEXT_CHARS_MAX, parse_in};
use crate::engine::outbox::Outbox;
use crate::engine::{Capacity, Engine, Outcome, Received};
use crate::route::key::CallHasher;
use crate::route::snapshot::{BackendStatus, ListenerIndex, Snapshot};

const FILE: &str = "fuzz.toml";

const INVITE: &[u8] = b"INVITE sip:bob@example.com SIP/2.0\r\nVia: SIP/2.0/UDP 203.0.113.77;branch=z9hG4bK-1\r\n\
    From: <sip:a@b>;tag=1\r\nTo: <sip:b@c>\r\nCall-ID: 1\r\nCSeq: 1 INVITE\r\n\r\n";

/// One file.
///
/// # Panics
///
/// When a problem says too little, or an accepted file does not work.
pub fn config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    // Files of secrets that are there and good, there and bad, and not there.
    let read_secret = |path: &Path| match path.as_os_str().len() % 3 {
        0 => Ok("6f1d2c3b4a5968778695a4b3c2d1e0ff\n".to_owned()),
        1 => Ok(path.display().to_string()),
        _ => Err("there is no such file".to_owned()),
    };
    let surroundings = Surroundings { host_name: "edge7".to_owned(), read_secret: &read_secret };
    match parse_in(&text, FILE, &surroundings) {
        Ok(loaded) => {
            check_problems(&text, &loaded.warnings);
            check_machine(&text, &loaded);
            check_use(&loaded.config);
        }
        Err(problems) => {
            assert!(!problems.is_empty(), "refused without a reason");
            check_problems(&text, &problems);
        }
    }
}

fn check_problems(text: &str, problems: &[Problem]) {
    let end = Lines::new(text).place(text.len());
    let mut place = (0, 0);
    for problem in problems {
        assert!(problem.line >= 1 && problem.column >= 1, "a problem without a place: {problem}");
        assert!(problem.line <= end.line, "a problem behind the end: {problem}");
        assert!(place <= (problem.line, problem.column), "out of the order of the file: {problem}");
        place = (problem.line, problem.column);
        assert_eq!(problem.file, FILE);
        for said in [&problem.what, &problem.remedy] {
            assert!(!said.trim().is_empty(), "a problem that says nothing: {problem:?}");
            assert!(!said.contains(char::is_control), "more than a line: {problem:?}");
            assert!(said.chars().count() <= TEXT_CHARS_MAX, "more than one can read: {problem:?}");
        }
        assert!(!problem.what.starts_with("a value is missing and was not reported"), "{problem}");
    }
    check_secrets(text, problems);
}

/// What stands in quotes behind `secret =` is in no message.
fn check_secrets(text: &str, problems: &[Problem]) {
    for line in text.lines() {
        let Some((key, value)) = line.split_once('=') else { continue };
        let value = value.trim().trim_matches(['"', '\'']);
        // Shorter ones are words that a message may have anyway.
        if !matches!(key.trim(), "secret" | "secret_previous") || value.len() < 16 {
            continue;
        }
        for problem in problems.iter().filter(|problem| problem.key.starts_with("node.secret")) {
            assert!(!problem.what.contains(value), "a secret is told: {problem}");
        }
    }
}

fn check_machine(text: &str, loaded: &Loaded) {
    for cores in [&[0][..], &[0, 1, 2, 3], &[5, 7]] {
        match loaded.check_machine(cores) {
            Ok(warnings) => {
                check_problems(text, &warnings);
                let placement = Placement::of(&loaded.config.node, cores);
                assert!(!placement.workers.is_empty(), "a node without workers");
                assert!(placement.workers.iter().all(|worker| cores.contains(worker)), "a worker without a core");
                let apart: BTreeSet<_> = placement.workers.iter().collect();
                assert_eq!(apart.len(), placement.workers.len(), "two workers on one core");
            }
            Err(problems) => assert!(!problems.is_empty(), "refused without a reason"),
        }
    }
}

/// Builds all that a start builds, and lets a message through.
fn check_use(config: &Config) {
    let budget = Budget::of(config, 4);
    assert!(budget.sum().0 <= budget.sum().1 && !budget.render().is_empty());
    let mut config = config.clone();
    let secret = config.node.secret.get_or_insert(Secret([7; 16])).clone();
    let status = |backend: &crate::config::Backend| BackendStatus { admin: backend.admin, is_healthy: true };
    let snapshot = Arc::new(Snapshot::build(&config, 1, 1, status));
    for (index, listener) in snapshot.listeners.iter().enumerate() {
        let pool = snapshot.services[listener.service].pool;
        for backend in snapshot.backends.iter().filter(|backend| backend.pool == pool) {
            let egress = snapshot.egress(ListenerIndex(index as u16), backend.address, backend.transport);
            assert!(egress.is_some(), "{} cannot be reached", backend.address);
        }
    }
    let capacity = Capacity {
        bindings: config.limits.bindings_max.min(16),
        headers: config.limits.headers_max,
        message_bytes: config.limits.message_bytes_max,
    };
    let mut engine = Engine::new(0, snapshot.clone(), CallHasher::new(&secret), capacity);
    let mut outbox = Outbox::with_capacity(2, 0);
    for (index, listener) in snapshot.listeners.iter().enumerate() {
        let is_v4 = listener.listen.address.is_ipv4();
        let source = if is_v4 { "203.0.113.77:5060" } else { "[2001:db8:f::77]:5060" };
        let source = source.parse().expect("an address");
        let rx =
            Received { bytes: INVITE, source, listener: ListenerIndex(index as u16), flow: None, is_taken_over: false };
        assert_eq!(engine.handle(Instant(0), &rx, &mut outbox), Outcome::Done);
        for transmit in outbox.transmits() {
            let from = snapshot.listener(transmit.hop.listener).listen.address;
            let to = transmit.hop.destination;
            assert_eq!(from.is_ipv4(), to.is_ipv4(), "{from} sends to {to}: {}", show(outbox.bytes(transmit)));
        }
        outbox.clear();
    }
    let counters = engine.counters();
    assert_eq!(counters.outcomes(), counters.received, "nothing is lost");
}
