//! One trunk on one 5-tuple loads all workers alike: the Call-ID decides who owns a dialog, not the source port.

use std::time::Duration;

use bench_harness::generator::{self, Load, Mix, Options};
use bench_harness::transport::Wires;

use crate::bed::local;
use crate::node::{Backend, Node, Setup, workers};
use crate::{Place, free_port};

const DIALOGS: u64 = 20_000;

#[test]
fn dialogs_of_one_source_port_spread_over_two_workers() {
    if workers(2) < 2 {
        return eprintln!("skipped: this machine has one core");
    }
    let place = Place::take("ownership");
    let backends = vec![local(free_port()), local(free_port())];
    let named = |(index, address): (usize, &_)| Backend { name: format!("pbx{index}"), address: *address, weight: 100 };
    let setup = Setup {
        workers: 2,
        listen: vec![local(free_port())],
        backends: backends.iter().enumerate().map(named).collect(),
        health: "probe = \"none\"",
    };
    let node = Node::start(place.folder(), &setup);
    let mut options = Options {
        target: setup.listen[0],
        callers: 1,
        backends,
        wires: Wires::default(),
        load: Load::Closed(64),
        mix: Mix { invite: 1, register: 0, options: 0 },
        warmup: Duration::ZERO,
        window: Duration::from_millis(500),
        hold: Duration::ZERO,
        timeout: Duration::from_secs(10),
        // A lost message is a lost call.
        t1: None,
        concurrency_max: 0,
        is_spinning: false,
    };
    let trial = generator::run(&options, |_| {}).expect("a run");
    assert!(trial.is_clean() && trial.completed > 0, "{trial}");
    // Long enough at the speed just seen, with something to spare.
    let seconds = 0.5 * DIALOGS as f64 / trial.completed as f64 * 1.5;
    options.window = Duration::from_secs_f64(seconds.clamp(0.5, 120.0));
    let before = node.report();
    let run = generator::run(&options, |_| {}).expect("a run");
    let after = node.report();

    assert!(run.is_clean() && run.unsent == 0, "{run}");
    assert!(run.completed >= DIALOGS, "{run}");
    let owned = [0, 1].map(|worker| {
        let label = format!("worker=\"{worker}\"");
        after.sum("selected_total", &label) - before.sum("selected_total", &label)
    });
    assert_eq!(owned[0] + owned[1], run.started, "each dialog is selected once");
    for count in owned {
        let percent = 100.0 * count as f64 / run.started as f64;
        assert!((45.0..=55.0).contains(&percent), "{owned:?}: {percent:.1} %");
    }
    println!("{} dialogs from one port in {seconds:.1} s, owned {owned:?}", run.started);
    assert!(after.total("handed_over_total") > run.started, "one socket got all of it, the other worker half");
    after.check_nothing_shed();
    let (status, _, report) = node.stop();
    assert!(status.success());
    report.check_balance();
}
