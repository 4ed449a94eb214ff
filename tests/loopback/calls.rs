//! Calls through Tandem while all is well, while a backend dies and returns, and while the configuration changes.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::Duration;

use crate::bed::{Bed, Dialogs, completed, starts};
use crate::sipp::Sipp;
use crate::{calls, unix_time};

const RATE: u32 = 300;

/// How long a load may take: its own length and a minute for a busy machine.
pub fn patience(calls: u32, rate: u32) -> Duration {
    Duration::from_secs(u64::from(calls / rate) + 60)
}

/// Every call ended well and no message surprised the caller.
pub fn check_all_well(caller: &mut Sipp, calls: u32, rate: u32) {
    let status = caller.finish(patience(calls, rate));
    let counts = caller.counts();
    assert_eq!((counts.successful(), counts.failed(), counts.unexpected()), (calls.into(), 0, 0), "{counts:?}");
    assert!(status.success(), "SIPp ended with {status}");
}

#[test]
fn every_dialog_stays_on_one_backend() {
    let calls = calls(1_200);
    let bed = Bed::start("steady", &[50, 30, 20]);
    let mut caller = bed.caller(calls, RATE, 200, &[]);
    check_all_well(&mut caller, calls, RATE);
    let (report, traces, _place) = bed.stop();
    let dialogs = Dialogs::read(&traces);
    let backend_of = dialogs.check_whole();
    assert_eq!(backend_of.len(), calls as usize);
    assert_eq!(report.total("selected_total"), u64::from(calls));
    report.check_nothing_shed();
    for (backend, share) in [0.5, 0.3, 0.2].into_iter().enumerate() {
        let count = backend_of.values().filter(|b| **b == backend).count() as f64;
        // Four standard deviations.
        let tolerance = 4.0 * (share * (1.0 - share) * f64::from(calls)).sqrt();
        assert!((count - share * f64::from(calls)).abs() < tolerance, "backend {backend} got {count} of {calls}");
    }
}

#[test]
fn death_of_a_backend_disturbs_no_call_on_another_and_it_comes_back() {
    const RISE: usize = 3;
    let calls = calls(2_400);
    let mut bed = Bed::start("death", &[100, 100, 100]);
    // A call whose backend is dead is given up after some seconds instead of 32, or never after a 180.
    let few = ["-max_invite_retrans", "4", "-max_non_invite_retrans", "4", "-recv_timeout", "15000"];
    let mut caller = bed.caller(calls, RATE, 200, &few);
    sleep(Duration::from_secs(2));
    let killed_at = unix_time();
    bed.backends[0].kill();
    let first_life = bed.backends[0].trace();
    bed.node.await_log(0, "backend taken out");
    let detected_at = unix_time();
    sleep(Duration::from_millis(100));
    let selected = |bed: &Bed| {
        let report = bed.node.report();
        let of = |name: &str| report.sum("backend_selected_total", &format!("backend=\"{name}\""));
        (of("pbx1"), of("pbx2") + of("pbx3"))
    };
    let (dead, others) = selected(&bed);
    sleep(Duration::from_millis(700));
    let (dead_later, others_later) = selected(&bed);
    assert_eq!(dead_later, dead, "new calls went to a backend that was known to be dead");
    assert!(others_later > others + 50, "the others take its share: {others} to {others_later}");

    let risen_at = unix_time();
    bed.backends[0] = Sipp::backend(bed.place.folder(), "pbx1-again", bed.setup.backends[0].address.port());
    bed.node.await_log(0, "backend brought back");
    caller.finish(patience(calls, RATE));
    let second_life = bed.backends[0].trace();
    let trace = caller.trace();
    let (starts, completed) = (starts(&trace), completed(&trace));
    assert_eq!(starts.len(), calls as usize);

    let is_new = |call_id: &str| starts.get(call_id).is_some_and(|at| *at > risen_at);
    let news: Vec<_> = second_life.iter().filter(|m| m.is_incoming("INVITE") && is_new(&m.call_id)).collect();
    assert!(news.len() > 50, "only {} new calls after its return", news.len());
    let probes = second_life.iter().filter(|m| m.is_incoming("OPTIONS") && m.at <= news[0].at).count();
    assert!(probes >= RISE, "it was given calls after {probes} good probes");

    let Bed { node, mut backends, place: _place, .. } = bed;
    let (status, _, report) = node.stop();
    assert!(status.success());
    report.check_balance();
    report.check_nothing_shed();
    let mut survivors = BTreeSet::new();
    for backend in &mut backends[1..] {
        let counts = backend.end();
        assert_eq!((counts.failed(), counts.unexpected()), (0, 0), "{counts:?}");
        survivors.extend(backend.trace().into_iter().filter(|m| m.is_incoming("INVITE")).map(|m| m.call_id));
    }
    let on_the_dead: BTreeSet<String> =
        first_life.into_iter().filter(|m| m.is_incoming("INVITE")).map(|m| m.call_id).collect();
    for (call_id, at) in starts.iter().filter(|(call_id, _)| !completed.contains(**call_id)) {
        assert!(!survivors.contains(*call_id), "{call_id} failed on a backend that was alive");
        assert!(
            on_the_dead.contains(*call_id) || (killed_at - 0.1..detected_at + 0.1).contains(at),
            "{call_id} began {:.2} s after the kill, {:.2} s after the detection, and failed",
            at - killed_at,
            at - detected_at
        );
    }
}

#[test]
fn weight_0_moves_no_live_dialog_and_takes_no_new_one() {
    let calls = calls(1_500);
    let mut bed = Bed::start("weight", &[50, 30, 20]);
    let mut caller = bed.caller(calls, RATE, 1_500, &[]);
    sleep(Duration::from_millis(2_500));
    bed.setup.backends[0].weight = 0;
    bed.node.write_config(&bed.setup.text());
    let told_at = unix_time();
    bed.node.signal("HUP");
    bed.node.await_log(0, "reloaded");
    let reloaded_at = unix_time();
    check_all_well(&mut caller, calls, RATE);
    let trace = caller.trace();
    let starts = starts(&trace);
    let (report, traces, _place) = bed.stop();
    report.check_nothing_shed();
    let dialogs = Dialogs::read(&traces);
    let backend_of = dialogs.check_whole();
    assert_eq!(backend_of.len(), calls as usize);
    let count = |is_meant: &dyn Fn(f64) -> bool| {
        backend_of.iter().filter(|(call_id, backend)| **backend == 0 && is_meant(starts[**call_id])).count()
    };
    assert!(count(&|at| at < told_at) > 100, "it had its share before");
    assert_eq!(count(&|at| at > reloaded_at + 0.05), 0, "new calls reached a backend of weight 0");
    let live = traces[0].iter().filter(|m| m.is_incoming("BYE") && m.at > reloaded_at + 0.05).count();
    assert!(live > 50, "only {live} dialogs lived through the change");
}

#[test]
fn broken_file_is_refused_and_traffic_goes_on() {
    let calls = calls(400);
    let bed = Bed::start("broken", &[100, 100]);
    let mut caller = bed.caller(calls, 100, 200, &[]);
    sleep(Duration::from_secs(1));
    let good = bed.setup.text();
    let broken = good.replacen("weight = 100", "weight = \"heavy\"", 1);
    let line = 1 + broken.lines().position(|line| line.contains("heavy")).unwrap();
    bed.node.write_config(&broken);
    bed.node.signal("HUP");
    let error = bed.node.await_log(0, "reload refused");
    assert!(error.contains("ERROR") && error.contains(&format!("tandem.toml:{line}:")), "{error}");
    assert!(error.contains("pool.pbx.backend.pbx1.weight"), "the key is not named: {error}");
    let start = bed.node.log().len();
    bed.node.write_config(&good.replacen("weight = 100", "weight = 70", 1));
    bed.node.signal("HUP");
    bed.node.await_log(start, "reloaded");
    check_all_well(&mut caller, calls, 100);
    let (report, traces, _place) = bed.stop();
    report.check_nothing_shed();
    assert_eq!(Dialogs::read(&traces).check_whole().len(), calls as usize);
}
