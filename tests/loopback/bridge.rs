//! Calls from UDP, TCP and TLS to UDP, TCP and TLS: every pair, with SIPp on both sides and stunnel where it is TLS.

use std::net::SocketAddr;
use std::path::Path;

use crate::bed::{HEALTH, local};
use crate::calls::check_all_well;
use crate::certificates::Trust;
use crate::node::{Node, Plan, file, workers};
use crate::sipp::{Load, Sipp};
use crate::stunnel::Stunnel;
use crate::{Place, free_port, is_full};

const TRANSPORTS: [&str; 3] = ["udp", "tcp", "tls"];

/// One side's transport, with SIPp's name for it: tn is a connection for each call.
const CALLERS: [(&str, &str); 4] = [("udp", "u1"), ("tcp", "t1"), ("tcp", "tn"), ("tls", "t1")];

struct Service {
    transport: &'static str,
    /// For UDP, TCP and TLS callers.
    listen: [SocketAddr; 3],
    backend: Sipp,
    _stunnels: Vec<Stunnel>,
}

fn start(place: &Place) -> (Node, Vec<Service>) {
    let folder = place.folder();
    let trust = Trust::new(folder);
    trust.write("proxy", &["127.0.0.1"]);
    trust.write("pbx", &["127.0.0.1"]);
    let mut sections = Trust::section("proxy");
    let mut services = Vec::new();
    for transport in TRANSPORTS {
        let port = free_port();
        let backend = Sipp::server_over(folder, &format!("{transport}-backend"), "uas", port, transport != "udp");
        let mut address = local(port);
        let mut stunnels = Vec::new();
        if transport == "tls" {
            let stunnel = Stunnel::from_tls(folder, "backend-tls", address, "pbx");
            address = stunnel.address;
            stunnels.push(stunnel);
        }
        let plain = local(free_port());
        let listen = [plain, plain, local(free_port())];
        let with_scheme = |(scheme, address): (&&str, &SocketAddr)| format!("{scheme}:{address}");
        let listens: Vec<String> = TRANSPORTS.iter().zip(&listen).map(with_scheme).collect();
        let mut plan = Plan::new(&listens, &[format!("{transport}:{address}")]);
        (plan.name, plan.health) = (transport, HEALTH);
        if transport == "tls" {
            plan.pool = format!("[pool.tls]\nca = {:?}\n", trust.ca);
        }
        sections += &plan.text();
        services.push(Service { transport, listen, backend, _stunnels: stunnels });
    }
    let node = Node::start_with(folder, &file(&[&sections]), workers(2));
    for service in &mut services {
        service._stunnels.push(Stunnel::to_tls(
            folder,
            &format!("{}-tls", service.transport),
            service.listen[2],
            &trust.ca,
        ));
    }
    (node, services)
}

fn caller(folder: &Path, service: &Service, (scheme, mode): (&str, &str), calls: u32, rate: u32) -> Sipp {
    let target = match scheme {
        "tls" => service._stunnels.last().unwrap().address,
        _ => service.listen[0],
    };
    let extra = ["-t", mode, "-max_socket", "2000"];
    let load = Load { target, calls, rate, hold: 100, extra: &extra };
    Sipp::caller(folder, &format!("{scheme}-{mode}-to-{}", service.transport), &load)
}

#[test]
fn calls_pass_between_every_two_transports() {
    let place = Place::take("bridge");
    let (node, services) = start(&place);
    let (calls, rate) = if is_full() { (1_000, 100) } else { (60, 60) };
    for from in CALLERS {
        let begin = |service| caller(place.folder(), service, from, calls, rate);
        let callers: Vec<Sipp> = services.iter().map(begin).collect();
        for (mut caller, service) in callers.into_iter().zip(&services) {
            check_all_well(&mut caller, calls, rate);
            println!("{} calls, SIPp {} over {} to {}: 0 failed", calls, from.1, from.0, service.transport);
        }
    }
    let (status, _, report) = node.stop();
    assert!(status.success(), "{status}");
    assert_eq!(report.total("selected_total"), u64::from(calls) * 12, "{report:#?}");
    report.check_balance();
    report.check_nothing_shed();
    assert_eq!(report.total("undeliverable_total"), 0, "{report:#?}");
    if workers(2) == 2 {
        assert!(report.total("handed_over_total") > u64::from(calls), "half of all is handed over: {report:#?}");
    }
    for Service { mut backend, transport, .. } in services {
        let counts = backend.end();
        assert_eq!((counts.failed(), counts.unexpected()), (0, 0), "{transport}: {counts:?}");
    }
}
