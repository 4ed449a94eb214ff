//! The attacks of tests/data/regress that come over a connection, on real connections: whole, and split anywhere.
//!
//! `tcp.tsv` says what Tandem does with each; here it is what the attacker's connection saw, what reached the backend,
//! and that the next client is served as if nothing had been.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::bed::local;
use crate::callee::{Callee, Door};
use crate::endpoint::headers;
use crate::node::Plan;
use crate::phone::{Heard, Phone};
use crate::{Place, Random, await_some, free_port, is_full};

/// How long nothing must come before nothing more is expected.
const QUIET: Duration = Duration::from_millis(150);

struct Case {
    file: String,
    actions: Vec<String>,
    bytes: Vec<u8>,
}

fn cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/regress");
    let table = fs::read_to_string(folder.join("tcp.tsv")).unwrap();
    let rows = table.lines().filter(|line| !line.starts_with('#')).skip(1);
    rows.map(|row| {
        let mut columns = row.split('\t');
        let (name, actions) = (columns.next().unwrap(), columns.next().unwrap());
        Case {
            file: name.to_owned(),
            actions: actions.split(' ').map(str::to_owned).collect(),
            bytes: fs::read(folder.join(name)).unwrap(),
        }
    })
    .collect()
}

/// Sends a case in pieces that end at `cuts`, and listens until nothing more comes.
fn play(phone: &mut Phone, bytes: &[u8], cuts: &[usize]) -> Vec<String> {
    let mut start = 0;
    for end in cuts.iter().copied().chain([bytes.len()]) {
        // Whoever is refused early may see it before it has sent all.
        if phone.try_send(&bytes[start..end]).is_err() {
            break;
        }
        start = end;
        if !cuts.is_empty() {
            // Else the pieces are one read again.
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let mut seen = Vec::new();
    loop {
        match phone.hear(if seen.is_empty() { 20 * QUIET } else { QUIET }) {
            Heard::Message(answer) if answer.starts_with(b"SIP/2.0 200") => seen.push("FORWARD".to_owned()),
            Heard::Message(answer) => seen.push(String::from_utf8_lossy(&answer[8..11]).into_owned()),
            Heard::Pong => seen.push("PONG".to_owned()),
            Heard::End => {
                seen.push("CLOSE".to_owned());
                return seen;
            }
            Heard::Nothing => return seen,
        }
    }
}

#[test]
fn each_attack_over_tcp_ends_as_the_table_says_however_it_is_split() {
    let place = Place::take("regress");
    let backend = Callee::start(Door::Tcp);
    let service = local(free_port());
    let node = Plan::new(&[format!("tcp:{service}")], &[backend.target()]).start(&place, "");
    let mut random = Random(0x7e9_2e55_0000_0001);
    let rounds = if is_full() { 40 } else { 4 };
    let mut broken = 0;
    for case in cases() {
        for round in 0..rounds {
            let cuts = random.cuts(case.bytes.len(), if round == 0 { 0 } else { 6 });
            let before = backend.count();
            let mut phone = Phone::connect(service);
            let seen = play(&mut phone, &case.bytes, &cuts);
            // Answers to requests overtake pongs: those are not held up by a backend.
            let order = |mut actions: Vec<String>| {
                actions
                    .sort_by_key(|action| ["PONG", "FORWARD", "400", "513", "CLOSE"].iter().position(|a| a == action));
                actions
            };
            let (seen, mut wanted) = (order(seen), order(case.actions.clone()));
            let forwarded = wanted.iter().filter(|action| *action == "FORWARD").count();
            if wanted.last().is_some_and(|action| action == "CLOSE") {
                // A backend's answer comes too late for a connection that is closed at once.
                wanted.retain(|action| action != "FORWARD" || seen.contains(action));
            }
            assert_eq!(seen, wanted, "{} cut at {cuts:?}", case.file);
            await_some("what is forwarded to arrive", 20 * QUIET, || {
                (backend.count() >= before + forwarded).then_some(())
            });
            let reached = backend.requests().split_off(before);
            assert_eq!(reached.len(), forwarded, "{} cut at {cuts:?}", case.file);
            let is_smuggled = |request: &Vec<u8>| headers(request, "Call-ID") == ["reg-smuggled@192.0.2.10"];
            assert_eq!(
                reached.iter().filter(|request| is_smuggled(request)).count(),
                usize::from(forwarded == 2 && case.file.starts_with("cl-")),
                "{} cut at {cuts:?}",
                case.file
            );
            let call_id = format!("after-{}-{round}", case.file);
            if wanted.last().is_none_or(|action| action != "CLOSE") {
                // Both sides still agree where messages begin.
                phone.call(&format!("same-{call_id}"));
                backend.check_call(&format!("same-{call_id}"));
            } else {
                broken += 1;
            }
            drop(phone);
            Phone::connect(service).call(&call_id);
            backend.check_call(&call_id);
        }
    }
    let report = node.await_report("the connections to be gone", |report| report.total("connections") <= 2);
    assert_eq!(report.total("connections_broken_total"), broken, "{report:#?}");
    let (status, _, report) = node.stop();
    assert!(status.success(), "{status}");
    report.check_balance();
    report.check_nothing_shed();
}
