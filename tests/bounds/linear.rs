//! Time is linear in bytes.

use std::collections::BTreeSet;
use std::time::Duration;

use bench_harness::sys::thread_cpu_time;
use tandem::engine::Outcome;

use crate::shapes::{self, Shape};
use crate::{Bench, config};

/// As large as a datagram may be, less what a proxy adds to it.
const LARGE: usize = 65_000;
/// The parts of it that are compared with it, each with the most by which the whole may take longer. Twice and eight
/// times are linear, four and sixty-four times quadratic; what is fixed makes the quotient smaller.
const PARTS: [(usize, f64); 2] = [(2, 2.6), (8, 12.0)];
/// What a large message may cost, built with optimisation.
const MOST: Duration = Duration::from_millis(1);

/// Repetitions between two looks, and looks before a bound counts as exceeded.
const REPETITIONS: usize = 3;
const LOOKS: usize = 40;

/// The least time that each size took.
#[derive(Debug)]
struct Times {
    large: Duration,
    parts: [Duration; PARTS.len()],
}

impl Times {
    fn is_linear(&self) -> bool {
        let quotient = |part: &Duration| self.large.as_secs_f64() / part.as_secs_f64().max(1e-9);
        self.parts.iter().zip(PARTS).all(|(part, (_, most))| quotient(part) <= most)
    }
}

/// Measures all sizes in turn until `is_enough`, or for as long as it is worth.
fn measure(looks: usize, mut run: impl FnMut(usize), is_enough: impl Fn(&Times) -> bool) -> Times {
    let mut times = Times { large: Duration::MAX, parts: [Duration::MAX; PARTS.len()] };
    let mut timed = |size: usize, least: &mut Duration| {
        let begun = thread_cpu_time();
        run(size);
        *least = (*least).min(thread_cpu_time() - begun);
    };
    for _ in 0..looks {
        for _ in 0..REPETITIONS {
            timed(LARGE, &mut times.large);
            PARTS.iter().zip(&mut times.parts).for_each(|((divisor, _), least)| timed(LARGE / divisor, least));
        }
        if is_enough(&times) {
            break;
        }
    }
    times
}

fn measure_shape(bench: &mut Bench, shape: &Shape) -> Times {
    let source = shape.source.parse().unwrap();
    let sizes = [LARGE, LARGE / PARTS[0].0, LARGE / PARTS[1].0];
    let messages = sizes.map(|size| (size, (shape.write)(size)));
    for (size, message) in &messages {
        assert!(message.len() <= *size && message.len() + 128 > *size, "{}: {} bytes", shape.name, message.len());
    }
    let is_fast = |times: &Times| times.large < MOST || cfg!(debug_assertions);
    let run = |size: usize| {
        let (_, message) = messages.iter().find(|(found, _)| *found == size).expect("a size of the above");
        assert_eq!(bench.handle(source, message), Outcome::Done);
    };
    measure(LOOKS, run, |times| times.is_linear() && is_fast(times))
}

#[test]
fn every_shape_of_message_takes_time_in_proportion_to_its_bytes() {
    let mut bench = Bench::new(&config(3), 1);
    let shapes = shapes::all(&mut bench);
    let (mut slowest, mut failures) = (Vec::new(), Vec::new());
    for shape in &shapes {
        let times = measure_shape(&mut bench, shape);
        if !times.is_linear() || (!cfg!(debug_assertions) && times.large >= MOST) {
            failures.push(format!("{} from {}: {times:?}", shape.name, shape.source));
        }
        slowest.push((times.large, shape.name));
    }
    slowest.sort();
    println!("{} shapes of {LARGE} bytes; the slowest: {:?}", shapes.len(), &slowest[slowest.len() - 5..]);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// What was sent and what was refused both occur, or the shapes would not reach what they are made for.
#[test]
fn shapes_reach_scan_decision_and_edit() {
    let mut bench = Bench::new(&config(3), 1);
    let shapes = shapes::all(&mut bench);
    let names: BTreeSet<_> = shapes.iter().map(|shape| (shape.name, shape.source)).collect();
    assert_eq!(names.len(), shapes.len(), "a name twice");
    let before = bench.engine.counters();
    for shape in &shapes {
        bench.handle(shape.source.parse().unwrap(), &(shape.write)(LARGE));
    }
    let after = bench.engine.counters();
    let forwarded = after.requests_forwarded - before.requests_forwarded;
    let answered = after.answered.iter().sum::<u64>() - before.answered.iter().sum::<u64>();
    let responses = after.responses_forwarded - before.responses_forwarded;
    println!("{forwarded} forwarded, {answered} answered, {responses} responses of {}", shapes.len());
    assert!(forwarded >= 40 && answered >= 10 && responses >= 5, "{after:?}");
    assert!(after.routed_by_cookie - before.routed_by_cookie >= 14, "{after:?}");
}

/// The measure itself: it must see what it is for.
#[test]
fn quadratic_walk_is_noticed() {
    let text = vec![b'x'; LARGE];
    // As a list that is read again from its beginning for each of its values.
    let quadratic = |size: usize| {
        let ends = (0..size).step_by(100);
        let sum: usize = ends.map(|end| memchr::memchr(b',', std::hint::black_box(&text[..end])).unwrap_or(end)).sum();
        std::hint::black_box(sum);
    };
    assert!(!measure(4, quadratic, Times::is_linear).is_linear());
    let linear = |size: usize| {
        let count = text[..size].iter().filter(|byte| std::hint::black_box(**byte) == b',').count();
        std::hint::black_box(count);
    };
    assert!(measure(LOOKS, linear, Times::is_linear).is_linear());
}
