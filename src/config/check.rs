//! Checks across keys: what is right by itself and wrong together.
//!
//! Names and addresses are unique, no two share the hash that cookies carry, a service points at a pool that it can
//! reach, no backend is Tandem itself, what TLS needs is there. Each check looks at what the draft has and reports
//! every offender, at its own line, naming the line of the other.
//!
//! Cost: each list is sorted or mapped once; nothing is quadratic in the number of backends.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::address::show_address;
use super::draft::{Draft, DraftBackend, DraftService};
use super::keys;
use super::problem::{Places, Problem};
use super::read::nearest;
use super::units::{show_duration, show_size};
use super::values::{Backend, ClientCertificate, Listen, ProxyProtocol, Verify, Workers};
use crate::base::id::{BackendId, Transport};

/// Everything that is wrong across the keys of a draft.
pub(super) fn check(draft: &Draft, places: &Places) -> Vec<Problem> {
    let mut problems = Vec::new();
    check_names(draft, places, &mut problems);
    check_listens(draft, places, &mut problems);
    check_backends(draft, places, &mut problems);
    check_large_addresses(draft, places, &mut problems);
    check_services(draft, places, &mut problems);
    check_tls(draft, places, &mut problems);
    check_health(draft, places, &mut problems);
    check_node(draft, places, &mut problems);
    problems
}

/// Reports every item whose key came before, with the path of the first that had it.
fn check_unique<K: Ord>(items: impl Iterator<Item = (K, String)>, mut report: impl FnMut(&K, &str, &str)) {
    let mut first: BTreeMap<K, String> = BTreeMap::new();
    for (key, path) in items {
        match first.get(&key) {
            Some(other) => report(&key, &path, other),
            None => {
                first.insert(key, path);
            }
        }
    }
}

/// Names of services, pools and backends are unique, each among its kind.
fn check_names(draft: &Draft, places: &Places, problems: &mut Vec<Problem>) {
    let services = draft.services.iter().filter_map(|service| Some((service.name.as_ref()?, &service.path)));
    let pools = draft.pools.iter().filter_map(|pool| Some((pool.name.as_ref()?, &pool.path)));
    let backends = draft.pools.iter().flat_map(|pool| &pool.backends);
    let backends = backends.filter_map(|backend| Some((backend.name.as_ref()?, &backend.path)));
    let kinds: [(&str, Vec<_>); 3] =
        [("service", services.collect()), ("pool", pools.collect()), ("backend", backends.collect())];
    for (kind, named) in kinds {
        let items = named.into_iter().map(|(name, path)| (name, format!("{path}.name")));
        check_unique(items, |name, path, other| {
            let line = places.find(other).line;
            let what = format!("{name:?} is the name of the {kind} in line {line} too");
            problems.push(places.problem(path, what, format!("give each {kind} a name of its own")));
        });
    }
}

/// Listening addresses are unique, no two need one TCP port, they are few enough, and do not share an id.
fn check_listens(draft: &Draft, places: &Places, problems: &mut Vec<Problem>) {
    let each = || {
        let services = draft.services.iter().filter_map(|service| Some((&service.path, service.listen.as_ref()?)));
        services.flat_map(|(path, listens)| {
            let at = move |(index, listen)| (listen, format!("{path}.listen[{index}]"));
            listens.iter().enumerate().map(at)
        })
    };
    let items = each().map(|(listen, path)| ((listen.transport, listen.address), path));
    check_unique(items, |&(transport, address), path, other| {
        let line = places.find(other).line;
        let what = format!("{:?} is listened on in line {line} already", show_address(transport, address));
        problems.push(places.problem(path, what, "write each address once, in one service"));
    });
    let mut by_port: BTreeMap<_, (&Listen, String)> = BTreeMap::new();
    for (listen, path) in each().filter(|(listen, _)| listen.transport.is_stream()) {
        let (first, other) = by_port.entry(listen.address).or_insert((listen, path.clone()));
        if first.transport != listen.transport {
            let what = format!(
                "{:?} needs the TCP port of {:?} in line {}",
                show_address(listen.transport, listen.address),
                show_address(first.transport, first.address),
                places.find(other).line
            );
            let (transport, port) = (listen.transport, listen.transport.default_port());
            let remedy = format!("write another port; {transport}'s is {port}");
            problems.push(places.problem(&path, what, remedy));
        }
    }
    let mut by_id = BTreeMap::new();
    for (listen, path) in each() {
        let first = by_id.entry(listen.id()).or_insert(listen);
        if *first != listen {
            let other = show_address(first.transport, first.address);
            let what =
                format!("{:?} has the same 16-bit id as {other:?}", show_address(listen.transport, listen.address));
            problems.push(places.problem(&path, what, "choose another port for one of them"));
        }
    }
    if each().count() > keys::LISTENS_MAX {
        let what = format!("there are {} listening addresses in all", each().count());
        problems.push(places.problem("service", what, format!("write at most {}", keys::LISTENS_MAX)));
    }
}

/// Backend addresses are unique, backend ids are unique, and no backend is one of our own listening addresses.
fn check_backends(draft: &Draft, places: &Places, problems: &mut Vec<Problem>) {
    let each = || draft.pools.iter().flat_map(|pool| &pool.backends);
    let items = each().flat_map(addresses);
    check_unique(items, |&(transport, address), path, other| {
        let line = places.find(other).line;
        let what = format!("{:?} is the address of the backend in line {line} too", show_address(transport, address));
        problems.push(places.problem(path, what, "write each backend once, in one pool"));
    });
    if each().count() > keys::BACKENDS_TOTAL_MAX {
        let what = format!("there are {} backends in all", each().count());
        problems.push(places.problem("pool", what, format!("write at most {}", keys::BACKENDS_TOTAL_MAX)));
    }
    let mut by_id: BTreeMap<BackendId, &str> = BTreeMap::new();
    for backend in each() {
        let Some(name) = &backend.name else { continue };
        let first = *by_id.entry(BackendId::from_name(name)).or_insert(name);
        if first != name {
            let what = format!("{name:?} has the same 32-bit id as {first:?}");
            problems.push(places.problem(&format!("{}.name", backend.path), what, "rename one of the two"));
        }
    }
    let listens = draft.services.iter().filter_map(|service| Some((&service.path, service.listen.as_ref()?)));
    let ours: BTreeMap<_, _> = listens
        .flat_map(|(path, listens)| listens.iter().map(move |listen| (socket(listen.transport, listen.address), path)))
        .collect();
    for ((transport, address), path) in each().flat_map(addresses) {
        let Some(service) = ours.get(&socket(transport, address)) else { continue };
        let shown = show_address(transport, address);
        let what = format!("{shown:?} is a listening address of {service}: messages would loop");
        let remedy = "write the address of the SIP server behind Tandem";
        problems.push(places.problem(&path, what, remedy));
    }
}

/// What a kernel tells apart: all stream transports share TCP's ports.
fn socket(transport: Transport, address: SocketAddr) -> (bool, SocketAddr) {
    (transport.is_stream(), address)
}

/// The addresses of a backend with their paths.
fn addresses(backend: &DraftBackend) -> impl Iterator<Item = ((Transport, SocketAddr), String)> {
    let keyed = [("address", backend.address), ("large_address", backend.large_address)];
    keyed.into_iter().filter_map(|(key, address)| Some((address?, format!("{}.{key}", backend.path))))
}

/// Only a UDP backend has another address for large requests, of the same family, and only TCP carries a PROXY header.
fn check_large_addresses(draft: &Draft, places: &Places, problems: &mut Vec<Problem>) {
    for backend in draft.pools.iter().flat_map(|pool| &pool.backends) {
        let mut report = |key: &str, what: String, remedy: String| {
            problems.push(places.problem(&format!("{}.{key}", backend.path), what, remedy));
        };
        let Some((transport, address)) = backend.address else { continue };
        let large = backend.large_address;
        if large.is_some() && transport.is_stream() {
            let what = format!("the backend is spoken to over {transport}, which carries requests of any size");
            report("large_address", what, "remove it".to_owned());
        }
        if let Some((_, large)) = large
            && large.is_ipv4() != address.is_ipv4()
        {
            let [here, there] = [large, address].map(|address| if address.is_ipv4() { "IPv4" } else { "IPv6" });
            let what = format!("{here} while address is {there}");
            report("large_address", what, format!("write an {there} address of the same backend"));
        }
        let sends_header = backend.whole.as_ref().is_some_and(|whole| whole.proxy_protocol != ProxyProtocol::None);
        if sends_header && !transport.is_stream() && large.is_none() {
            let what = format!("the backend is spoken to over {transport}, which has no PROXY header");
            report("proxy_protocol", what, "remove it, or write a tcp or tls address".to_owned());
        }
    }
}

/// Each service names a pool, and can reach its backends.
fn check_services(draft: &Draft, places: &Places, problems: &mut Vec<Problem>) {
    for service in &draft.services {
        let Some(name) = &service.pool else { continue };
        let pools: Vec<_> = draft.pools.iter().filter(|pool| pool.name.as_ref() == Some(name)).collect();
        let Some(pool) = pools.first() else {
            // A pool whose own name is wrong has been reported; a second message would send the reader elsewhere.
            if draft.pools.iter().any(|pool| pool.name.is_none()) {
                continue;
            }
            let known = || draft.pools.iter().filter_map(|pool| pool.name.as_deref());
            let remedy = match nearest(name, known()) {
                Some(near) => format!("did you mean {near:?}?"),
                None if known().next().is_none() => format!("write a [[pool]] with name = {name:?}"),
                None => format!("the pools are {}", known().take(8).collect::<Vec<_>>().join(", ")),
            };
            problems.push(places.problem(
                &format!("{}.pool", service.path),
                format!("there is no pool {name:?}"),
                remedy,
            ));
            continue;
        };
        check_families(service, pool.backends.iter().filter_map(|backend| backend.whole.as_ref()), places, problems);
    }
}

/// A service listens on the address family of each backend, over UDP for a UDP backend, as it sends from where it
/// listens.
fn check_families<'b>(
    service: &DraftService,
    backends: impl Iterator<Item = &'b Backend>,
    places: &Places,
    problems: &mut Vec<Problem>,
) {
    let Some(listens) = &service.listen else { return };
    let mut unreached: BTreeMap<(bool, bool), &Backend> = BTreeMap::new();
    for backend in backends {
        let (is_v4, is_stream) = (backend.address.is_ipv4(), backend.transport.is_stream());
        let reaches =
            |listen: &Listen| listen.address.is_ipv4() == is_v4 && (is_stream || !listen.transport.is_stream());
        if !listens.iter().any(reaches) {
            unreached.entry((is_v4, is_stream)).or_insert(backend);
        }
    }
    for ((is_v4, is_stream), backend) in unreached {
        let family = if is_v4 { "IPv4" } else { "IPv6" };
        let kind = if is_stream { String::new() } else { format!("{} ", Transport::Udp) };
        let address = show_address(backend.transport, backend.address);
        let what = format!("no {kind}{family} address to reach backend {:?} ({address}) from", backend.name);
        let remedy = "add one to listen, or take the backend out of the pool";
        problems.push(places.problem(&format!("{}.listen", service.path), what, remedy));
    }
}

/// What TLS needs is there: a certificate, the authorities of client certificates, pins, a key.
fn check_tls(draft: &Draft, places: &Places, problems: &mut Vec<Problem>) {
    for service in &draft.services {
        let secure = service.listen.iter().flatten().enumerate().filter(|(_, listen)| listen.transport.is_secure());
        for (index, listen) in secure.filter(|_| draft.certificates.is_empty()) {
            let shown = show_address(listen.transport, listen.address);
            let what = format!("{shown:?} needs a certificate to show, and the file names none");
            let remedy = "write a [[certificate]] with chain and key";
            problems.push(places.problem(&format!("{}.listen[{index}]", service.path), what, remedy));
        }
        let Some(tls) = &service.tls else { continue };
        if tls.client_certificate != ClientCertificate::None && tls.client_ca.is_none() {
            let what = "client certificates are asked for, and nothing says who may sign them";
            let remedy = "write client_ca = with a PEM file of the authorities";
            problems.push(places.problem(&format!("{}.tls.client_certificate", service.path), what, remedy));
        }
    }
    for pool in &draft.pools {
        let Some(tls) = &pool.tls else { continue };
        let mut report = |key: &str, what: &str, remedy: &str| {
            problems.push(places.problem(&format!("{}.tls.{key}", pool.path), what, remedy));
        };
        if tls.verify == Verify::Pinned && tls.pins.is_empty() {
            report("verify", "no certificate is pinned, so no backend would do", "write pins = with their digests");
        }
        match (&tls.certificate, &tls.key) {
            (Some(_), None) => report("certificate", "it has no key", "write key = with the PEM file of its key"),
            (None, Some(_)) => report("key", "there is no certificate for it", "write certificate = with its PEM file"),
            _ => {}
        }
    }
}

/// A probe is answered or given up before the next is sent.
fn check_health(draft: &Draft, places: &Places, problems: &mut Vec<Problem>) {
    for pool in &draft.pools {
        let Some(health) = &pool.health else { continue };
        let interval = show_duration(health.interval);
        for (key, value) in [("jitter", health.jitter), ("timeout", health.timeout)] {
            if value >= health.interval {
                let what = format!("{:?} is not less than the interval, {interval:?}", show_duration(value));
                let remedy = format!("write less than {interval:?}, or a longer interval");
                problems.push(places.problem(&format!("{}.health.{key}", pool.path), what, remedy));
            }
        }
    }
}

/// Cores are listed once, the previous secret has a successor, and a ring holds two of the largest messages.
fn check_node(draft: &Draft, places: &Places, problems: &mut Vec<Problem>) {
    if let Some(node) = &draft.node {
        if let Workers::Cores(cores) = &node.workers {
            let items = cores.iter().enumerate().map(|(index, core)| (core, format!("node.workers[{index}]")));
            check_unique(items, |core, path, _| {
                problems.push(places.problem(path, format!("core {core} is listed twice"), "list each core once"));
            });
        }
        if node.secret.is_none() && node.secret_previous.is_some() {
            let remedy = "write the secret that replaced it as secret or secret_file";
            problems.push(places.problem(
                "node.secret_previous",
                "there is no secret that came after this one",
                remedy,
            ));
        }
        let items = node.names.iter().enumerate().map(|(index, name)| (name, format!("node.names[{index}]")));
        check_unique(items, |name, path, _| {
            problems.push(places.problem(path, format!("{name:?} is listed twice"), "list each name once"));
        });
    }
    if let Some(limits) = &draft.limits
        && limits.handoff_ring_bytes / 2 < limits.message_bytes_max
    {
        let ring = show_size(limits.handoff_ring_bytes as u64);
        let what = format!("{ring} holds less than two messages of message_bytes_max, {}", limits.message_bytes_max);
        problems.push(places.problem(
            "limits.handoff_ring",
            what,
            "write a larger ring or a smaller message_bytes_max",
        ));
    }
}
