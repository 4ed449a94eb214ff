//! The control core driven by hand: a clock that is a number, a network that is a closure.

use super::*;
use crate::base::id::Transport;
use crate::config::{
    Backend, Certificate, ClientCertificate, Health, Limits, Listen, Node, Policy, Pool, PoolTls, Probe, ProxyProtocol,
    Service, ServiceTls, Timers, Workers,
};
use crate::control::health::Outcome;
use std::collections::BTreeMap;

mod reload;

const SECOND: Duration = Duration::from_secs(1);

fn at(ms: u64) -> Instant {
    Instant(ms * 1_000_000)
}

pub(crate) fn config(backends: usize) -> Config {
    let backend = |i: usize| Backend {
        name: format!("pbx{i}"),
        transport: Transport::Udp,
        address: format!("192.0.2.{}:{}", i % 250 + 1, 5060 + i / 250).parse().unwrap(),
        large_address: None,
        proxy_protocol: ProxyProtocol::None,
        weight: 100,
        priority: 0,
        admin: Admin::Enabled,
    };
    let health =
        Health { probe: Probe::Options, interval: 2 * SECOND, jitter: SECOND / 5, timeout: SECOND, rise: 2, fall: 3 };
    Config {
        node: Node {
            name: "lb1".into(),
            workers: Workers::Auto,
            control_core: None,
            secret: Some(crate::config::Secret([7; 16])),
            secret_previous: None,
            names: Vec::new(),
            control_socket: None,
            spin: Duration::ZERO,
        },
        limits: Limits {
            bindings_max: 1_000,
            message_bytes_max: 65_507,
            headers_max: 128,
            receive_buffers: 64,
            handoff_ring_bytes: 65_536,
            socket_buffer_bytes: 65_536,
            connections_max: 1_024,
            connections_per_source: 1_024,
            stream_buffers: 16,
            write_queue_bytes: 262_144,
            handshakes_max: 64,
        },
        timers: Timers {
            binding_early: SECOND,
            binding_dialog: SECOND,
            binding_linger: SECOND,
            message_timeout: 10 * SECOND,
            idle_timeout: 3_600 * SECOND,
            write_timeout: 10 * SECOND,
            handshake_timeout: 5 * SECOND,
            connect_timeout: 3 * SECOND,
        },
        certificates: Vec::new(),
        services: vec![Service {
            name: "voice".into(),
            listen: vec![Listen { transport: Transport::Udp, address: "192.0.2.254:5060".parse().unwrap() }],
            pool: 0,
            record_route: true,
            proxy_protocol_from: Vec::new(),
            origins: Vec::new(),
            sips_over_plain: false,
            tls: ServiceTls::default(),
            strip_identity: false,
        }],
        pools: vec![Pool {
            name: "pbx".into(),
            policy: Policy::ConsistentHash,
            retry_after: SECOND,
            udp_bytes_max: 1_300,
            health,
            tls: PoolTls::default(),
            backends: (0..backends).map(backend).collect(),
        }],
    }
}

/// A control core, its clock, and what it has said.
struct Bench {
    control: Control,
    now: Instant,
    probes: Vec<(Instant, SocketAddr, Vec<u8>)>,
    snapshots: Vec<Arc<Snapshot>>,
    changes: Vec<String>,
}

impl Bench {
    fn new(config: Config) -> Self {
        let mut control = Control::new(config, 2, 42, at(0));
        control.set_probe_source("192.0.2.254:40000".parse().unwrap());
        let (probes, snapshots, changes) = Default::default();
        let mut bench = Bench { control, now: at(0), probes, snapshots, changes };
        bench.drain();
        bench
    }

    fn drain(&mut self) -> usize {
        let before = self.probes.len();
        while let Some(event) = self.control.poll_event() {
            match event {
                Event::Probe { to, bytes, .. } => self.probes.push((self.now, to, bytes)),
                Event::Publish(snapshot) => self.snapshots.push(snapshot),
                Event::BackendChanged { name, from, to, reason } => {
                    self.changes.push(format!("{name} {from} -> {to}: {reason}"));
                }
            }
        }
        self.probes.len() - before
    }

    /// Moves to the next deadline, `late` after it; gives how many probes went out.
    fn step(&mut self, late: Duration) -> usize {
        self.now = self.control.next_deadline().expect("a deadline") + late;
        self.control.handle_timeout(self.now);
        self.drain()
    }

    /// Moves on until a probe goes out.
    fn until_probe(&mut self) {
        while self.step(Duration::ZERO) == 0 {}
    }

    /// Answers the last probe after `ms` with `status`.
    fn answer(&mut self, ms: u64, status: u16) {
        let (sent_at, from, bytes) = self.probes.last().unwrap();
        let bytes = reply(bytes, status);
        self.now = *sent_at + Duration::from_millis(ms);
        let from = *from;
        self.control.handle_answer(self.now, from, &bytes);
        self.drain();
    }

    /// Runs the next probe of a lone backend to its end.
    fn probe(&mut self, status: Option<u16>) {
        self.until_probe();
        match status {
            Some(status) => self.answer(5, status),
            None => assert_eq!(self.step(Duration::ZERO), 0),
        }
    }

    fn view(&self) -> BackendView {
        self.control.view().remove(0)
    }

    fn is_in_table(&self, index: usize) -> bool {
        self.snapshots.last().unwrap().backends[index].takes_new()
    }
}

fn reply(probe: &[u8], status: u16) -> Vec<u8> {
    let text = str::from_utf8(probe).unwrap();
    format!("SIP/2.0 {status} X\r\n{}", text.split_once("\r\n").unwrap().1).into_bytes()
}

#[test]
fn backend_falls_and_rises_and_each_change_is_published() {
    let mut bench = Bench::new(config(1));
    assert!(bench.is_in_table(0));
    for status in [Some(200), None, Some(503), Some(404), None, None] {
        bench.probe(status);
    }
    assert!(bench.is_in_table(0));
    bench.probe(Some(503));
    assert!(!bench.is_in_table(0));
    assert_eq!(bench.view().last, Some(Outcome::Answered(503)));
    bench.probe(Some(200));
    assert!(!bench.is_in_table(0));
    bench.probe(Some(486));
    assert!(bench.is_in_table(0));
    assert_eq!(
        bench.changes,
        [
            "pbx0 unproven -> up: the first probe was good: answer 200",
            "pbx0 up -> down: 3 probes in a row failed, last: answer 503",
            "pbx0 down -> up: 2 probes in a row were good, last: answer 486",
        ]
    );
    assert_eq!(bench.snapshots.iter().map(|s| s.generation).collect::<Vec<_>>(), [1, 2, 3]);
    let view = bench.view();
    assert_eq!((view.probes_ok, view.probes_failed), (4, 5));
    assert_eq!(view.latency, Some(Duration::from_millis(5)));
}

#[test]
fn first_failed_probe_takes_a_backend_out() {
    let mut bench = Bench::new(config(1));
    bench.probe(None);
    assert!(!bench.is_in_table(0));
    assert_eq!(bench.changes, ["pbx0 unproven -> down: the first probe failed: no answer in time"]);
}

#[test]
fn provisional_answer_decides_nothing() {
    let mut bench = Bench::new(config(1));
    bench.until_probe();
    bench.answer(5, 100);
    assert_eq!(bench.view().last, None);
    bench.answer(900, 200);
    assert_eq!(bench.view().last, Some(Outcome::Answered(200)));
}

#[test]
fn gaps_stay_within_the_jitter_and_differ() {
    let mut bench = Bench::new(config(1));
    for _ in 0..200 {
        bench.probe(Some(200));
    }
    let gaps: Vec<u64> = bench.probes.windows(2).map(|w| w[1].0.since(w[0].0).as_millis() as u64).collect();
    assert!(gaps.iter().all(|gap| (1_800..=2_200).contains(gap)), "{gaps:?}");
    assert!(gaps.iter().min() < Some(&1_830) && gaps.iter().max() > Some(&2_170));
}

#[test]
fn a_thousand_backends_start_spread_over_one_interval() {
    let mut bench = Bench::new(config(1_000));
    let mut per_100_ms = BTreeMap::new();
    while bench.control.counters().probes_sent < 1_000 {
        bench.step(Duration::ZERO);
        let answers: Vec<_> = bench.probes.drain(..).collect();
        for (sent_at, from, bytes) in answers {
            *per_100_ms.entry(sent_at.as_millis() / 100).or_insert(0) += 1;
            bench.control.handle_answer(bench.now, from, &reply(&bytes, 200));
            bench.drain();
        }
    }
    assert!(bench.now <= at(2_200));
    assert!(per_100_ms.values().all(|count| *count <= 60), "{per_100_ms:?}");
    let mut few = Bench::new(config(3));
    (0..3).for_each(|_| few.until_probe());
    assert!(few.now <= at(15), "few backends are probed at once");
}

#[test]
fn late_answer_does_not_count_before_or_after_its_timeout_is_handled() {
    let mut bench = Bench::new(config(1));
    bench.probe(Some(200));
    bench.until_probe();
    bench.answer(1_010, 200);
    assert_eq!(bench.view().probes_ok, 1);
    bench.control.handle_timeout(bench.now);
    assert_eq!(bench.view().last, Some(Outcome::Timeout));
    bench.answer(1_500, 200);
    assert_eq!(bench.view().probes_ok, 1);
    assert_eq!(bench.control.counters().answers_late, 2);
}

#[test]
fn our_own_stall_is_no_timeout_whichever_is_looked_at_first() {
    let mut bench = Bench::new(config(1));
    bench.until_probe();
    assert_eq!(bench.step(SECOND * 60), 0);
    assert_eq!((bench.view().last, bench.control.counters().probes_rearmed), (None, 1));
    bench.control.handle_answer(bench.now, bench.probes[0].1, &reply(&bench.probes[0].2, 200));
    assert_eq!(bench.view().last, Some(Outcome::Answered(200)));
    bench.drain();

    bench.until_probe();
    bench.answer(60_000, 200);
    assert_eq!(bench.view().probes_ok, 2);
    assert_eq!(bench.view().probes_failed, 0);
}

#[test]
fn control_that_is_always_late_still_sees_the_dead() {
    let mut bench = Bench::new(config(1));
    while bench.is_in_table(0) {
        bench.step(SECOND / 10);
        assert!(bench.now < at(5_000));
    }
    assert_eq!(bench.control.counters().probes_rearmed, 1);
}

#[test]
fn probes_that_fell_due_in_a_stall_do_not_burst() {
    let mut bench = Bench::new(config(1_000));
    let most = bench.step(SECOND * 10);
    assert_eq!(most, STARTS_MAX);
    let from = bench.now;
    while bench.control.counters().probes_sent < 1_000 {
        assert!(bench.step(Duration::ZERO) <= STARTS_MAX);
    }
    assert!(bench.now <= from + 3 * SECOND);
}

#[test]
fn answers_from_elsewhere_or_to_nothing_are_counted_and_dropped() {
    let mut bench = Bench::new(config(2));
    bench.until_probe();
    let (_, to, bytes) = bench.probes[0].clone();
    let other = bench.control.view().iter().map(|v| v.address).find(|a| *a != to).unwrap();
    bench.control.handle_answer(bench.now, other, &reply(&bytes, 200));
    bench.control.handle_answer(bench.now, "203.0.113.1:5060".parse().unwrap(), &reply(&bytes, 200));
    let forged = String::from_utf8(reply(&bytes, 200)).unwrap().replace("probe-", "probe_");
    bench.control.handle_answer(bench.now, to, forged.as_bytes());
    bench.control.handle_answer(bench.now, to, b"\0\0");
    bench.control.handle_answer(bench.now, to, &bytes);
    let counters = bench.control.counters();
    assert_eq!((counters.answers, counters.answers_unmatched, counters.answers_malformed), (0, 3, 2));
}

#[test]
fn send_errors_count_only_when_the_network_is_at_fault() {
    let mut bench = Bench::new(config(1));
    let id = BackendId::from_name("pbx0");
    bench.until_probe();
    bench.control.handle_send_error(bench.now, id, SendError::Local);
    assert_eq!((bench.view().last, bench.control.counters().probes_unsent), (None, 1));
    bench.until_probe();
    bench.control.handle_send_error(bench.now, id, SendError::Unreachable);
    bench.drain();
    assert!(!bench.is_in_table(0));
    assert_eq!(bench.view().last, Some(Outcome::Unreachable));
}

#[test]
fn many_changes_between_two_drains_make_one_snapshot() {
    let mut bench = Bench::new(config(50));
    while bench.probes.len() < 50 {
        bench.step(Duration::ZERO);
    }
    for (_, from, bytes) in bench.probes.clone() {
        bench.control.handle_answer(bench.now, from, &reply(&bytes, 503));
    }
    bench.drain();
    assert_eq!(bench.snapshots.len(), 2);
    assert!(!(0..50).any(|i| bench.is_in_table(i)));
}

#[test]
fn without_probes_a_backend_is_always_healthy() {
    let mut none = config(1);
    none.pools[0].health.probe = Probe::None;
    let mut bench = Bench::new(none.clone());
    assert_eq!(bench.control.next_deadline(), None);
    bench.control.apply_config(bench.now, config(1)).unwrap();
    bench.drain();
    bench.probe(None);
    assert!(!bench.is_in_table(0));
    bench.control.apply_config(bench.now, none).unwrap();
    bench.drain();
    assert!(bench.is_in_table(0));
}

#[test]
fn timers_match_what_the_watches_wait_for_after_random_inputs() {
    let mut bench = Bench::new(config(20));
    let mut prng = Prng::new(9);
    for _ in 0..3_000 {
        match prng.below(12) {
            0 => {
                let admin = [Admin::Enabled, Admin::Drained, Admin::Disabled][prng.below(3) as usize];
                bench.control.set_admin(bench.now, &format!("pbx{}", prng.below(10)), admin).unwrap();
            }
            1 => {
                let mut next = config(10 + prng.below(20) as usize);
                next.pools[0].health.rise = 1 + prng.below(3) as u32;
                bench.control.apply_config(bench.now, next).unwrap();
            }
            2..=6 if !bench.probes.is_empty() => {
                let (_, from, bytes) = bench.probes.swap_remove(prng.below(bench.probes.len() as u64) as usize);
                bench.control.handle_answer(bench.now, from, &reply(&bytes, [200, 503][prng.below(2) as usize]));
            }
            _ if bench.control.next_deadline().is_some() => {
                bench.step(Duration::from_millis([0, 1, 50][prng.below(3) as usize]));
            }
            _ => {}
        }
        bench.drain();
        let control = &bench.control;
        let armed: BTreeSet<_> = control.armed.iter().map(|(id, at)| (*at, *id)).collect();
        assert_eq!(control.timers, armed);
        for watch in &control.watches {
            let id = watch.backend.id();
            assert_eq!(control.armed.contains_key(&id), watch.is_probed() || watch.is_outstanding());
        }
        let last = bench.snapshots.last().unwrap();
        assert_eq!(last.generation, control.generation());
        for (backend, watch) in last.backends.iter().zip(&control.watches) {
            assert_eq!((backend.status.is_healthy, backend.status.admin), (watch.is_healthy(), watch.admin()));
        }
    }
}
