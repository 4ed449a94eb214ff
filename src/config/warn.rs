//! Warnings: what works and is probably not what was meant.
//!
//! Made only for a configuration without errors. A warning never stops Tandem from starting; each names what will
//! happen and the line to change.

use std::time::Duration;

use super::address::show_address;
use super::problem::{Places, Problem};
use super::units::show_duration;
use super::values::{Admin, Backend, ClientCertificate, Config, Listen, Node, Pool, Probe, Service, Verify, Workers};
use crate::base::id::Transport;

/// How often a client sends a keep-alive on a connection at the latest (RFC 5626 section 4.4.1).
const KEEP_ALIVE_MAX: Duration = Duration::from_secs(120);

/// The dotted path of each service and pool, in the order of the configuration.
pub(super) struct Paths {
    pub(super) services: Vec<String>,
    pub(super) pools: Vec<String>,
}

/// Everything that is unwise in a configuration.
pub(super) fn warnings(config: &Config, paths: &Paths, places: &Places) -> Vec<Problem> {
    let mut problems = Vec::new();
    warn_node(&config.node, places, &mut problems);
    warn_streams(config, places, &mut problems);
    for (service, path) in config.services.iter().zip(&paths.services) {
        let backends = config.pools.get(service.pool).map_or(&[][..], |pool| &pool.backends);
        warn_listens(service, backends, path, places, &mut problems);
        warn_unused(service, path, places, &mut problems);
    }
    for (index, (pool, path)) in config.pools.iter().zip(&paths.pools).enumerate() {
        warn_pool(pool, path, places, &mut problems);
        warn_pool_tls(pool, path, places, &mut problems);
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

/// Times and certificates of connections, where there are any.
fn warn_streams(config: &Config, places: &Places, problems: &mut Vec<Problem>) {
    let listens = || config.services.iter().flat_map(|service| &service.listen);
    if listens().any(|listen| listen.transport.is_stream()) && config.timers.idle_timeout < KEEP_ALIVE_MAX {
        let idle = show_duration(config.timers.idle_timeout);
        let what = format!("{idle:?} is less than the time between two keep-alives of a client (RFC 5626)");
        let remedy = format!("write {:?} or more", show_duration(KEEP_ALIVE_MAX));
        problems.push(places.problem("timers.idle_timeout", what, remedy));
    }
    if !config.certificates.is_empty() && !listens().any(|listen| listen.transport.is_secure()) {
        let what = "no service listens on tls or wss, so no certificate is shown";
        problems.push(places.problem("certificate", what, "add a tls or wss address to a service, or remove it"));
    }
}

/// Whoever can be reached over UDP must take TCP too, and a backend opens connections to where it was called from.
fn warn_listens(service: &Service, backends: &[Backend], path: &str, places: &Places, problems: &mut Vec<Problem>) {
    let has = |transport: Transport, address| {
        service.listen.iter().any(|listen| listen.transport == transport && listen.address == address)
    };
    for (index, Listen { transport, address }) in service.listen.iter().enumerate() {
        if *transport == Transport::Udp && !has(Transport::Tcp, *address) {
            let what = format!(
                "{:?} without its twin over tcp: clients that have more to say than fits a datagram find nobody \
                 (RFC 3261 section 18.2.1)",
                show_address(*transport, *address)
            );
            let remedy = format!("add {:?}", show_address(Transport::Tcp, *address));
            problems.push(places.problem(&format!("{path}.listen[{index}]"), what, remedy));
        }
    }
    for transport in [Transport::Tcp, Transport::Tls] {
        let over = |backend: &&Backend| {
            backend.transport == transport || backend.large_address.is_some_and(|(large, _)| large == transport)
        };
        let Some(backend) = backends.iter().find(over) else { continue };
        if service.listen.iter().all(|listen| listen.transport != transport) {
            let what = format!(
                "backend {:?} is spoken to over {transport}, and cannot open a connection of its own: there is no \
                 {transport} address here",
                backend.name
            );
            problems.push(places.problem(&format!("{path}.listen"), what, format!("add a {transport} address")));
        }
    }
}

/// What is written for a transport that the service does not listen on.
fn warn_unused(service: &Service, path: &str, places: &Places, problems: &mut Vec<Problem>) {
    let listens = |is_meant: fn(Transport) -> bool| service.listen.iter().any(|listen| is_meant(listen.transport));
    let mut unused = |key: &str, transports: &str| {
        let what = format!("it has no effect: the service listens on no {transports}");
        problems.push(places.problem(&format!("{path}.{key}"), what, format!("listen on {transports}, or remove it")));
    };
    if !service.proxy_protocol_from.is_empty() && !listens(Transport::is_stream) {
        unused("proxy_protocol_from", "tcp, tls, ws or wss");
    }
    if !service.origins.is_empty() && !listens(Transport::is_web_socket) {
        unused("origins", "ws or wss");
    }
    if service.tls.client_certificate != ClientCertificate::None && !listens(Transport::is_secure) {
        unused("tls.client_certificate", "tls or wss");
    }
    if service.tls.client_certificate == ClientCertificate::None && service.tls.client_ca.is_some() {
        let what = "it has no effect: no client certificate is asked for";
        let remedy = "write client_certificate = \"optional\" or \"required\", or remove it";
        problems.push(places.problem(&format!("{path}.tls.client_ca"), what, remedy));
    }
    for (index, network) in service.proxy_protocol_from.iter().enumerate().filter(|(_, net)| net.prefix_len() == 0) {
        let what = format!("{network} is everybody: any client can claim any address");
        let remedy = "write the addresses of the load balancers in front";
        problems.push(places.problem(&format!("{path}.proxy_protocol_from[{index}]"), what, remedy));
    }
}

/// Checks of a backend's certificate that are not made.
fn warn_pool_tls(pool: &Pool, path: &str, places: &Places, problems: &mut Vec<Problem>) {
    let over_tls = |backend: &Backend| {
        backend.transport == Transport::Tls || backend.large_address.is_some_and(|(large, _)| large == Transport::Tls)
    };
    let is_used = pool.backends.iter().any(over_tls);
    if pool.tls.verify == Verify::None && is_used {
        let what = "no certificate of a backend is checked: whoever is on the way can read and change every call";
        let remedy = "write verify = \"full\", or \"pinned\" with pins";
        problems.push(places.problem(&format!("{path}.tls.verify"), what, remedy));
    }
    let mut unused = |key: &str, verify: &str| {
        let what = format!("it has no effect unless verify = {verify:?}");
        problems.push(places.problem(&format!("{path}.tls.{key}"), what, "write that, or remove this"));
    };
    if pool.tls.verify != Verify::Pinned && !pool.tls.pins.is_empty() {
        unused("pins", "pinned");
    }
    if pool.tls.verify != Verify::Full && pool.tls.ca.is_some() {
        unused("ca", "full");
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
