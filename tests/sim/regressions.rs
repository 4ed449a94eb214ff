//! What the simulator has found, each as the shortest story that shows it, so that it stays found when seeds change.
//!
//! All are about RFC 3261 16.11: what belongs to a transaction goes where its first request went, and under its branch,
//! whatever became of the set of backends and of the secrets in between.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tandem::base::time::Instant;
use tandem::config::{Admin, Config, Secret};
use tandem::engine::outbox::Outbox;
use tandem::engine::{Engine, Received};
use tandem::route::snapshot::{BackendStatus, ListenerIndex, Snapshot};

use crate::checks::BRANCH_OUTLIVES_ROTATION;
use crate::message::Message;
use crate::{faults, node};

const CALLER: &str = "203.0.113.7:5060";

/// One engine, one caller, one call.
struct Story {
    whole: Config,
    config: Config,
    engine: Engine,
    outbox: Outbox,
    now: Instant,
}

impl Story {
    fn new() -> Self {
        let config = node::config(3, 64);
        let snapshot = snapshot(&config);
        let engine = node::engine(0, &snapshot, &config, 64);
        Story { whole: config.clone(), config, engine, outbox: node::outbox(), now: Instant(0) }
    }

    /// Gives a datagram to the engine; what is sent must be one.
    fn hear(&mut self, source: SocketAddr, message: &Message) -> (SocketAddr, Message) {
        let bytes = message.encode(false);
        let listener = ListenerIndex(source.is_ipv6().into());
        let rx = Received { bytes: &bytes, source, listener, flow: None, is_taken_over: true };
        let (_, outputs) = node::handle(&mut self.engine, self.now, &rx, &mut self.outbox);
        let [output] = outputs.try_into().expect("one datagram");
        (output.to, Message::parse(&output.bytes).expect("a message"))
    }

    /// The caller sends a request; it reaches a backend.
    fn ask(&mut self, method: &str, cseq: u32, to_tag: Option<&str>) -> (SocketAddr, Message) {
        let branch = if method == "BYE" { "bye".to_owned() } else { format!("invite{cseq}") };
        let request = Message::request(method, "sip:b@192.0.2.10")
            .with("Via", format!("SIP/2.0/UDP {CALLER};branch=z9hG4bK{branch}"))
            .with("Max-Forwards", "70")
            .with("From", "<sip:a@x>;tag=a")
            .with("To", format!("<sip:b@x>{}", to_tag.map_or(String::new(), |tag| format!(";tag={tag}"))))
            .with("Call-ID", "call")
            .with("CSeq", format!("{cseq} {method}"));
        let (to, sent) = self.hear(CALLER.parse().unwrap(), &request);
        assert!(sent.method().is_some(), "{}", sent.start);
        (to, sent)
    }

    /// A backend answers what reached it; the caller gets that.
    fn answer(&mut self, (backend, request): &(SocketAddr, Message), status: u16) {
        let mut response = Message { start: format!("SIP/2.0 {status} x"), ..request.clone() };
        response.headers.iter_mut().filter(|(name, _)| name == "To").for_each(|(_, to)| to.push_str(";tag=b"));
        assert_eq!(self.hear(*backend, &response).0, CALLER.parse().unwrap());
    }

    /// The operator changes a backend.
    fn change(&mut self, backend: SocketAddr, to: Option<(Admin, u32)>) {
        let number = self.whole.pools[0].backends.iter().position(|b| b.address == backend).unwrap();
        self.config.pools = faults::change(&self.config.pools, &self.whole.pools, number, to, false);
        self.engine.apply_snapshot(snapshot(&self.config));
    }

    /// The operator rotates the secret; what the one before signed is accepted.
    fn rotate(&mut self) {
        let node = &mut self.config.node;
        node.secret_previous = node.secret.replace(Secret([8; 16]));
        self.engine.apply_snapshot(snapshot(&self.config));
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.engine.handle_timeout(self.now);
    }
}

fn snapshot(config: &Config) -> Arc<Snapshot> {
    let healthy = |b: &tandem::config::Backend| BackendStatus { admin: b.admin, is_healthy: true };
    Arc::new(Snapshot::build(config, 1, 1, healthy))
}

#[test]
fn retransmitted_bye_of_an_orphaned_dialog_reaches_one_backend() {
    let mut story = Story::new();
    let invite = story.ask("INVITE", 1, None);
    story.answer(&invite, 200);
    story.change(invite.0, None);
    let (first, _) = story.ask("BYE", 2, Some("b"));
    assert_ne!(first, invite.0);
    story.change(first, Some((Admin::Enabled, 0)));
    assert_eq!(story.ask("BYE", 2, Some("b")).0, first);
}

#[test]
fn retransmitted_cancel_of_an_orphaned_call_reaches_one_backend() {
    let mut story = Story::new();
    let invite = story.ask("INVITE", 1, None);
    story.change(invite.0, None);
    let (first, _) = story.ask("CANCEL", 1, None);
    story.change(first, Some((Admin::Enabled, 0)));
    assert_eq!(story.ask("CANCEL", 1, None).0, first);
}

#[test]
fn ack_of_a_challenge_finds_its_backend_when_the_next_invite_had_to_move() {
    let mut story = Story::new();
    let invite = story.ask("INVITE", 1, None);
    story.answer(&invite, 407);
    story.change(invite.0, Some((Admin::Drained, 100)));
    let next = story.ask("INVITE", 2, None);
    assert_ne!(next.0, invite.0, "a drained backend takes nothing new");
    assert_eq!(story.ask("ACK", 1, Some("b")).0, invite.0);
    assert_eq!(story.ask("INVITE", 1, None).0, invite.0);
    assert_eq!(story.ask("CANCEL", 2, None).0, next.0);
    story.pass(Duration::from_secs(300));
    assert!(story.engine.bindings().is_empty());
}

#[test]
fn repeated_challenge_does_not_shorten_the_binding_of_the_next_invite() {
    let mut story = Story::new();
    let invite = story.ask("INVITE", 1, None);
    story.answer(&invite, 407);
    let next = story.ask("INVITE", 2, None);
    assert_eq!(next.0, invite.0);
    story.answer(&invite, 407);
    story.pass(Duration::from_secs(120));
    story.change(next.0, Some((Admin::Drained, 100)));
    assert_eq!(story.ask("CANCEL", 2, None).0, next.0);
}

#[test]
fn response_to_what_another_secret_signed_finds_its_way() {
    let mut story = Story::new();
    let invite = story.ask("INVITE", 1, None);
    story.rotate();
    story.answer(&invite, 180);
    story.answer(&invite, 486);
}

#[test]
fn branch_outlives_a_rotation_of_secrets_as_the_checks_expect() {
    let mut story = Story::new();
    let invite = story.ask("INVITE", 1, None);
    story.rotate();
    for (method, to_tag) in [("INVITE", None), ("CANCEL", None), ("ACK", Some("b"))] {
        let (to, sent) = story.ask(method, 1, to_tag);
        assert_eq!(to, invite.0, "{method}");
        assert_eq!(sent.branch() == invite.1.branch(), BRANCH_OUTLIVES_ROTATION, "{method}");
    }
}
