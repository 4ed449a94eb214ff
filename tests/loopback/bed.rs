//! The usual arrangement: SIPp backends with names `pbx1`, `pbx2`, ..., and Tandem in front of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use crate::node::{Backend, Node, Report, Setup, workers};
use crate::sipp::{Load, Sipp, Traced};
use crate::{Place, free_port};

/// Often enough to see an outage soon, patient enough for a busy machine.
pub const HEALTH: &str =
    "probe = \"options\"\ninterval = \"250ms\"\njitter = \"25ms\"\ntimeout = \"200ms\"\nrise = 3\nfall = 3";

pub struct Bed {
    pub node: Node,
    pub backends: Vec<Sipp>,
    pub setup: Setup,
    pub place: Place,
}

impl Bed {
    /// One backend for each weight, and two workers where there are two cores.
    pub fn start(name: &str, weights: &[u32]) -> Bed {
        let place = Place::take(name);
        let mut setup =
            Setup { workers: workers(2), listen: vec![local(free_port())], backends: Vec::new(), health: HEALTH };
        let mut backends = Vec::new();
        for (index, &weight) in weights.iter().enumerate() {
            let (name, address) = (format!("pbx{}", index + 1), local(free_port()));
            backends.push(Sipp::backend(place.folder(), &name, address.port()));
            setup.backends.push(Backend { name, address, weight });
        }
        let node = Node::start(place.folder(), &setup);
        Bed { node, backends, setup, place }
    }

    pub fn caller(&self, calls: u32, rate: u32, hold: u32, extra: &[&str]) -> Sipp {
        let load = Load { target: self.setup.listen[0], calls, rate, hold, extra };
        Sipp::caller(self.place.folder(), "caller", &load)
    }

    /// Stops Tandem and the backends; no backend may have failed a call or seen what it did not expect.
    pub fn stop(self) -> (Report, Vec<Vec<Traced>>, Place) {
        let Bed { node, backends, place, .. } = self;
        let (status, time, report) = node.stop();
        assert!(status.success() && time < Duration::from_secs(3), "{status} after {time:?}");
        report.check_balance();
        let traces = backends.into_iter().map(|mut backend| {
            let counts = backend.end();
            assert_eq!((counts.failed(), counts.unexpected()), (0, 0), "{counts:?}");
            backend.trace()
        });
        (report, traces.collect(), place)
    }
}

pub fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Where each dialog's requests arrived.
#[derive(Debug, Default)]
pub struct Dialogs(pub BTreeMap<String, BTreeMap<String, BTreeSet<usize>>>);

impl Dialogs {
    pub fn read(traces: &[Vec<Traced>]) -> Dialogs {
        let mut dialogs = Dialogs::default();
        for (backend, trace) in traces.iter().enumerate() {
            for method in ["INVITE", "ACK", "BYE"] {
                for message in trace.iter().filter(|message| message.is_incoming(method)) {
                    let dialog = dialogs.0.entry(message.call_id.clone()).or_default();
                    dialog.entry(method.to_owned()).or_default().insert(backend);
                }
            }
        }
        dialogs
    }

    /// The one backend that INVITE, ACK and BYE of each dialog reached.
    pub fn check_whole(&self) -> BTreeMap<&str, usize> {
        let backend_of = |(call_id, methods): (&'_ String, &BTreeMap<String, BTreeSet<usize>>)| {
            let all: BTreeSet<usize> = methods.values().flatten().copied().collect();
            assert!(methods.len() == 3 && all.len() == 1, "{call_id} reached {methods:?}");
            all.first().copied().unwrap_or_default()
        };
        self.0.iter().map(|dialog| (dialog.0.as_str(), backend_of(dialog))).collect()
    }
}

/// When the caller first sent each call's INVITE.
pub fn starts(caller: &[Traced]) -> BTreeMap<&str, f64> {
    let mut starts = BTreeMap::new();
    for message in caller.iter().filter(|m| !m.is_received && m.status.is_none() && m.method == "INVITE") {
        starts.entry(message.call_id.as_str()).or_insert(message.at);
    }
    starts
}

/// The calls whose BYE was answered 200.
pub fn completed(caller: &[Traced]) -> BTreeSet<&str> {
    let is_end = |m: &&Traced| m.is_received && m.status == Some(200) && m.method == "BYE";
    caller.iter().filter(is_end).map(|m| m.call_id.as_str()).collect()
}
