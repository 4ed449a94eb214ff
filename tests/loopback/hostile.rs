//! What no honest peer sends: the process stays up, and the counters say why each datagram went no further.

use std::time::Duration;

use crate::bed::local;
use crate::endpoint::{Endpoint, check_call};
use crate::node::{Backend, Node, Report, Setup, workers};
use crate::{Place, Random, await_some, free_port};

/// Tells `send` to deliver each; a pause now and then keeps the socket's buffer from overflowing.
struct Sender<'a> {
    node: &'a Node,
    client: &'a Endpoint,
    to: std::net::SocketAddr,
    sent: u64,
}

impl Sender<'_> {
    fn send(&mut self, bytes: &[u8]) {
        self.client.send(bytes, self.to);
        self.sent += 1;
        if self.sent.is_multiple_of(200) {
            self.await_all();
        }
    }

    /// Until each datagram has been received and has its outcome.
    fn await_all(&self) -> Report {
        await_some("all that was sent to be counted", Duration::from_secs(10), || {
            let report = self.node.report();
            let received = report.total("received_total");
            (received == self.sent && report.outcomes() == received + report.total("taken_over_total"))
                .then_some(report)
        })
    }
}

#[test]
fn garbage_is_counted_by_reason_and_calls_go_on() {
    let place = Place::take("hostile");
    let backend = Endpoint::bind(local(0)).unwrap();
    let setup = Setup {
        workers: workers(2),
        listen: vec![local(free_port())],
        backends: vec![Backend { name: "pbx1".to_owned(), address: backend.address, weight: 100 }],
        health: "probe = \"none\"",
    };
    let node = Node::start(place.folder(), &setup);
    let client = Endpoint::bind(local(0)).unwrap();
    let mut sender = Sender { node: &node, client: &client, to: setup.listen[0], sent: 0 };
    let mut random = Random(0x5eed_0fda_7a90_0001);
    let good = client.request("INVITE", "good@client", sender.to, b"v=0\r\n");
    let line_end = good.windows(2).position(|two| two == b"\r\n").unwrap() + 2;
    let (first, rest) = good.split_at(line_end);

    // Random bytes alone, and behind the start of a message.
    for round in 0..1_500 {
        let noise = random.bytes((round * 7) % 1_500);
        sender.send(&noise);
        if round % 3 == 0 {
            sender.send(&[first, &noise].concat());
        }
    }
    // Cut at every byte; the last one short of whole still lacks a byte of its body.
    for end in 0..good.len() {
        sender.send(&good[..end]);
    }
    // A NUL in place of every byte in turn; where no rule minds it the request goes on to the backend.
    for at in 0..good.len() {
        let mut changed = good.clone();
        changed[at] = 0;
        sender.send(&changed);
    }
    // 64 KiB of header: one line, and as many lines as there is room for. Then NULs alone.
    sender.send(&[first, b"X-Long: ", &vec![b'x'; 64_000][..], b"\r\n", rest].concat());
    sender.send(&[first, &b"X: y\r\n".repeat(10_000)[..], rest].concat());
    sender.send(&[first, &vec![b'x'; 65_000][..]].concat());
    sender.send(&vec![0; 65_000]);
    sender.send(&[0]);
    let report = sender.await_all();

    let dropped = |reason: &str| report.sum("dropped_total", &format!("reason=\"{reason}\""));
    let refused = |reason: &str| dropped(reason) + report.sum("answered_total", &format!("reason=\"{reason}\""));
    assert!(dropped("malformed-start-line") > 1_400, "{report:#?}");
    assert!(refused("malformed-header-line") > 30, "{report:#?}");
    assert!(refused("unterminated-headers") > 50, "{report:#?}");
    assert!(refused("content-length") >= 5, "cut in the body: {report:#?}");
    assert_eq!(refused("too-many-headers"), 1, "{report:#?}");
    assert!(dropped("keepalive") >= 1, "an empty datagram: {report:#?}");
    let explained = report.total("dropped_total") + report.total("answered_total");
    let forwarded = report.total("requests_forwarded_total");
    assert_eq!(
        explained + forwarded + report.total("handed_over_total") - report.total("taken_over_total"),
        sender.sent
    );
    assert!(forwarded < 800, "only changes that leave a good request pass: {forwarded}");
    report.check_nothing_shed();

    let caller = Endpoint::bind(local(0)).unwrap();
    backend.drain();
    check_call(&caller, &backend, sender.to, "after-all-that@client");
    let (status, _, report) = node.stop();
    assert!(status.success(), "{status}");
    report.check_balance();
}
