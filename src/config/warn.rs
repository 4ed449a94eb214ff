//! Warnings: what works and is probably not what was meant.
//!
//! Made only for a configuration without errors. A warning never stops Tandem from starting; each names what will
//! happen and the line to change.

use super::problem::{Places, Problem};
use super::units::show_duration;
use super::values::{Admin, Config, Node, Pool, Probe, Workers};

/// Everything that is unwise in a configuration.
pub(super) fn warnings(config: &Config, paths: &[String], places: &Places) -> Vec<Problem> {
    let mut problems = Vec::new();
    warn_node(&config.node, places, &mut problems);
    for (index, (pool, path)) in config.pools.iter().zip(paths).enumerate() {
        warn_pool(pool, path, places, &mut problems);
        warn_health(pool, path, places, &mut problems);
        if !config.services.iter().any(|service| service.pool == index) {
            let what = "no service uses this pool";
            problems.push(places.problem(path, what, "name it as the pool of a [[service]], or remove it"));
        }
    }
    problems
}

fn warn_node(node: &Node, places: &Places, problems: &mut Vec<Problem>) {
    if node.secret.is_none() {
        let what = "no secret is configured, so one is drawn at each start and dialogs do not survive a restart";
        let remedy = "write secret = with the 32 digits that `openssl rand -hex 16` prints, or secret_file";
        problems.push(places.problem("node.secret", what, remedy));
    }
    if node.secret.is_some() && node.secret == node.secret_previous {
        let remedy = "remove secret_previous, or write the secret before the last change";
        problems.push(places.problem("node.secret_previous", "it is the same as secret", remedy));
    }
    if let (Workers::Cores(cores), Some(core)) = (&node.workers, node.control_core)
        && cores.contains(&core)
    {
        let what = format!("core {core} is a worker's too, so probes and messages wait for each other");
        problems.push(places.problem("node.control_core", what, "write a core that is not in workers"));
    }
}

fn warn_pool(pool: &Pool, path: &str, places: &Places, problems: &mut Vec<Problem>) {
    if let [only] = pool.backends.as_slice() {
        let what = format!("{:?} is the only backend: when it is down, every new call is answered with 503", only.name);
        problems.push(places.problem(path, what, "add a second [[pool.backend]]"));
    }
    if pool.backends.iter().all(|backend| backend.admin != Admin::Enabled) {
        let what = "no backend is enabled: every new call is answered with 503";
        problems.push(places.problem(path, what, "write admin = \"enabled\" in one"));
    }
    if pool.backends.iter().all(|backend| backend.weight == 0) {
        let what = "every backend has weight 0: every new call is answered with 503";
        problems.push(places.problem(path, what, "write a weight over 0 in one"));
    }
}

fn warn_health(pool: &Pool, path: &str, places: &Places, problems: &mut Vec<Problem>) {
    let health = &pool.health;
    if health.probe == Probe::None {
        return;
    }
    let counts = [("rise", health.rise, "brings a backend back"), ("fall", health.fall, "takes a backend out")];
    for (key, _, effect) in counts.into_iter().filter(|(_, count, _)| *count == 1) {
        let what = format!("a single probe {effect}, so that one lost datagram decides");
        problems.push(places.problem(&format!("{path}.health.{key}"), what, "write 2 or more"));
    }
    let shortest = health.interval.saturating_sub(health.jitter);
    if health.timeout < health.interval && health.timeout >= shortest {
        let (timeout, shortest) = (show_duration(health.timeout), show_duration(shortest));
        let what =
            format!("{timeout:?} reaches the shortest interval after jitter, {shortest:?}, so probes can overlap");
        problems.push(places.problem(&format!("{path}.health.timeout"), what, format!("write less than {shortest:?}")));
    }
}
