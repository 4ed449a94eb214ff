//! The invariants, checked on every datagram that an engine deals with, from outside: what went in, what came out.
//!
//! The model behind them is small and obvious: which transaction was sent where under which branch, which two ends a
//! dialog has, which tokens were minted for which call, and under which secret. An affinity rule is waived only for a
//! backend that some worker's snapshot lacked, or had disabled, at a time after the model learnt of it: the operator
//! took it away; and for what a secret signed that the worker does not accept: the operator took that away.
//!
//! | rule | says | checked |
//! |---|---|---|
//! | `counters` | each datagram has exactly one outcome, each output is counted; all workers together lose nothing | every step; at the end |
//! | `served` | what a phone or server sends whole is forwarded or answered, but for ACKs to our own answers | every step |
//! | `amplification` | at most one datagram out; an answer is no larger than its request and goes to its source | every step |
//! | `relay` | a request goes to a configured backend, where a backend's text says, or where a token of its call says | every step |
//! | `token` | a token counts as refused exactly when it was not minted for this call under a secret that is accepted | every step |
//! | `edit` | one Via more or less, `received` and `rport` true, Max-Forwards one less, routes as in RFC 3261 16.4 and 16.6, the rest byte for byte | every step |
//! | `selection` | what is new goes to a backend that takes what is new; 503 only when there is none | every step |
//! | `branch` | retransmissions, CANCEL and the ACK to a non-2xx carry their INVITE's branch | every step |
//! | `transaction` | and reach its backend | every step |
//! | `affinity` | the next request of a Call-ID goes where the one before it went, while that takes what is new | every step |
//! | `dialog` | all messages of a dialog stay between its two ends | every step |
//! | `response` | a response answers a request that was forwarded, goes where that came from, and is not lost | every step |
//! | `answer` | a request is answered alike each time, and the ACK to that answer goes no further | every step |
//! | `bindings` | a table never holds more than it may, and none when all is over | every step; at the end |
//! | `twin` | every node that knows the same says the same, byte for byte | every step |
//! | `health` | a backend is taken out or brought back for what it did, never for our own delay | every verdict |
//! | `reload` | a configuration that a node can run with is taken | every reload |
//! | `liveness` | calls that begin 5 seconds after the last fault succeed | at the end |
//!
//! The promises they hold Tandem to:
//!
//! - I1, every request is forwarded once, answered, or dropped with a counter: `counters`, `served`, `amplification`,
//!   `response`.
//! - I2, affinity: `transaction`, `affinity`, `dialog`, `selection`, and `branch`, without which a backend takes one
//!   transaction for two.
//! - I3, nothing is sent to an address that is neither a backend nor a party of a verified exchange: `relay`, `token`,
//!   `response`, and `amplification` for answers.
//! - I4, no more bytes to an unverified source than came from it: `amplification`.
//! - I5, tables stay within their limits and empty when idle: `bindings`. The queues between workers are the shell's and
//!   are modelled here; the real ones are tested in `tests/loopback` and `src/shell/handover.rs`.
//! - I6, a message takes bounded time and no allocation: not visible in virtual time, so `tests/bounds.rs` and
//!   `tests/no_alloc.rs`.
//! - I7, both nodes of a pair do the same: `twin`, `branch`, `answer`.
//! - I8, our own delay is no verdict, an empty pool no panic: `health`; runs in which every backend is disabled.
//! - I9, counters add up to what was received: `counters`.
//! - I10, after the faults all is well within 5 seconds: `liveness`.

mod affinity;
mod edit;
mod health;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use tandem::metrics::{Counters, Reason};
use tandem::route::snapshot::{Backend, Snapshot};

use crate::message::{Message, param, uri};
use crate::node::Secrets;
use affinity::Affinity;
use edit::Routing;
pub use health::Probes;

/// Does the branch of a transaction outlive a rotation of secrets, for as long as its secret is accepted? What
/// RFC 3261 16.11 asks of retransmissions, CANCEL and ACK; `false` waives it for what began under another secret.
pub const BRANCH_OUTLIVES_ROTATION: bool = true;

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub rule: &'static str,
    /// What happened.
    pub text: String,
}

/// A violation, as the error of a check.
pub fn broken<T>(rule: &'static str, text: impl Into<String>) -> Result<T, Violation> {
    Err(Violation { rule, text: text.into() })
}

fn check(is_kept: bool, rule: &'static str, text: impl FnOnce() -> String) -> Result<(), Violation> {
    if is_kept { Ok(()) } else { broken(rule, text()) }
}

/// A datagram that an engine wants sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The listener it leaves from.
    pub from: SocketAddr,
    /// Where it goes.
    pub to: SocketAddr,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// One datagram dealt with by one engine.
pub struct Step<'a> {
    /// Number of the engine.
    pub engine: usize,
    /// Virtual time.
    pub now: u64,
    /// What the engine knew of the world.
    pub snapshot: &'a Snapshot,
    /// The secrets in it.
    pub secrets: Secrets,
    /// What came.
    pub bytes: &'a [u8],
    /// From whom.
    pub source: SocketAddr,
    /// The engine's counters before and after.
    pub counters: [&'a Counters; 2],
    /// What it sends.
    pub outputs: &'a [Output],
}

impl Step<'_> {
    fn backend(&self, address: SocketAddr) -> Option<&Backend> {
        self.snapshot.backends.iter().find(|b| b.address == address)
    }

    /// Is it an address where a node listens?
    fn is_ours(&self, address: SocketAddr) -> bool {
        self.snapshot.listeners.iter().any(|l| l.listen.address == address)
    }

    /// Is what this secret signed still owed the branch and the target that it was given then?
    fn owes(&self, secret: [u8; 16]) -> bool {
        if BRANCH_OUTLIVES_ROTATION { self.secrets.accepts(secret) } else { self.secrets.current == secret }
    }

    /// Why the message went nowhere.
    fn dropped(&self) -> Option<Reason> {
        let [before, after] = self.counters;
        Reason::ALL.iter().copied().find(|r| after.dropped[*r as usize] > before.dropped[*r as usize])
    }

    fn has_answered(&self, reason: Reason) -> bool {
        let [before, after] = self.counters;
        after.answered[reason as usize] > before.answered[reason as usize]
    }
}

/// A token that was recorded.
#[derive(Clone, Debug)]
pub struct Token {
    /// The call it is good for.
    pub call_id: String,
    /// The client that it leads to.
    pub client: SocketAddr,
    secret: [u8; 16],
}

/// What retransmissions, CANCEL and the ACK to a non-2xx share: branch, sent-by, Call-ID and CSeq number.
type Key = (String, String, String, u32);

/// The model; see the module head.
#[derive(Default)]
pub struct Checks {
    /// Where phones can be reached.
    pub phones: BTreeSet<SocketAddr>,
    /// Where backends are when they are configured.
    pub fleet: BTreeSet<SocketAddr>,
    /// Other addresses from which backends send, and whose they are.
    pub interfaces: BTreeMap<SocketAddr, SocketAddr>,
    /// All tokens so far.
    pub tokens: BTreeMap<String, Token>,
    /// How often what was seen that a run is about.
    pub seen: BTreeMap<&'static str, u64>,
    affinity: Affinity,
    /// To tag of each answer that was made here, and the secret then.
    answers: BTreeMap<Key, (String, [u8; 16])>,
}

impl Checks {
    /// A worker goes over to a snapshot.
    pub fn note_snapshot(&mut self, now: u64, worker: usize, snapshot: &Snapshot) {
        for address in &self.fleet {
            let keeps = |b: &Backend| b.address == *address && b.keeps_dialogs();
            self.affinity.note_backend(now, worker, *address, snapshot.backends.iter().any(keeps));
        }
    }

    /// Did this request begin under another secret than the one that signs? Then what a node says to it depends on what
    /// it remembers.
    pub fn is_from_before_rotation(&self, secrets: Secrets, bytes: &[u8]) -> bool {
        let known = Message::parse(bytes).and_then(|message| self.affinity.secret_of(&key(&message)));
        known.is_some_and(|secret| secret != secrets.current)
    }

    /// Checks all rules but those across nodes.
    pub fn check(&mut self, step: &Step<'_>) -> Result<(), Violation> {
        self.check_outputs(step)?;
        let [before, after] = step.counters;
        let came = |c: &Counters| c.received + c.taken_over;
        let sent = |c: &Counters| c.requests_forwarded + c.responses_forwarded + c.answered.iter().sum::<u64>();
        check(came(after) == came(before) + 1 && after.outcomes() == came(after), "counters", || {
            format!("{} came and {} outcomes", came(after), after.outcomes())
        })?;
        check(sent(after) == sent(before) + step.outputs.len() as u64, "counters", || {
            format!("{} outputs, counted {}", step.outputs.len(), sent(after) - sent(before))
        })
    }

    fn check_outputs(&mut self, step: &Step<'_>) -> Result<(), Violation> {
        check(step.outputs.len() <= 1, "amplification", || format!("{} outputs", step.outputs.len()))?;
        let came = Message::parse(step.bytes);
        let Some(output) = step.outputs.first() else {
            return came.map_or(Ok(()), |came| self.check_loss(step, &came));
        };
        let Some(out) = Message::parse(&output.bytes) else {
            return broken("edit", format!("what is sent is no message: {}", text(&output.bytes)));
        };
        let is_answer = out.status().is_some();
        match came {
            Some(came) if came.status().is_some() => {
                edit::check_response_edit(step, output)?;
                self.affinity.check_response(step, output, &came, &out, &self.interfaces)
            }
            Some(came) if is_answer => self.check_answer(step, output, Some(&came), &out),
            Some(came) => self.check_request(step, output, &came, &out),
            None if is_answer => self.check_answer(step, output, None, &out),
            None => broken("edit", "what is malformed was forwarded"),
        }
    }

    /// A whole message led to nothing: was that right?
    fn check_loss(&mut self, step: &Step<'_>, came: &Message) -> Result<(), Violation> {
        let Some(reason) = step.dropped().filter(|reason| *reason != Reason::HandOverFull) else { return Ok(()) };
        if came.status().is_some() {
            let is_owed = self.affinity.is_owed(step, came);
            return check(!is_owed, "response", || format!("lost for {}: {}", reason.label(), text(step.bytes)));
        }
        let is_known = self.phones.contains(&step.source) || self.server(step.source).is_some();
        let may_vanish = match reason {
            Reason::AnswerTooLarge => true,
            Reason::AckForAnswer => came.method() == Some("ACK"),
            Reason::EmptyPool => came.method() == Some("ACK") && !step.snapshot.backends.iter().any(Backend::takes_new),
            _ => false,
        };
        check(!is_known || may_vanish, "served", || format!("lost for {}: {}", reason.label(), text(step.bytes)))
    }

    fn check_request(
        &mut self,
        step: &Step<'_>,
        output: &Output,
        came: &Message,
        out: &Message,
    ) -> Result<(), Violation> {
        self.check_token(step, came)?;
        let token = self.live_token(step, came);
        let is_from_backend = step.backend(step.source).is_some();
        let routing = Routing::of(step, came, token.is_some(), is_from_backend);
        self.check_relay(step, output, token.as_ref(), routing.next_hop())?;
        let [before, after] = step.counters;
        check(
            after.selected == before.selected || step.backend(output.to).is_some_and(Backend::takes_new),
            "selection",
            || format!("{} was selected", output.to),
        )?;
        edit::check_request_edit(step, came, out, &routing)?;
        self.check_ack(step, came)?;
        self.see(&routing, step, token.as_ref());
        let is_token_dead = came.tokens().any(|t| self.tokens.get(t).is_some_and(|t| !step.secrets.accepts(t.secret)));
        self.affinity.check_request(step, output, came, out, is_token_dead, &self.interfaces)?;
        self.learn_tokens(step, output, came, out);
        Ok(())
    }

    fn see(&mut self, routing: &Routing, step: &Step<'_>, token: Option<&Token>) {
        let pairs = [
            ("strict router before us", routing.is_restored),
            ("strict router after us", routing.is_next_strict),
            ("token of the previous secret", token.is_some_and(|t| Some(t.secret) == step.secrets.previous)),
            ("request from another interface", self.interfaces.contains_key(&step.source)),
        ];
        pairs.iter().filter(|(_, is_seen)| *is_seen).for_each(|(what, _)| *self.seen.entry(what).or_default() += 1);
    }

    /// The server that sends from an address.
    fn server(&self, source: SocketAddr) -> Option<SocketAddr> {
        self.interfaces.get(&source).copied().or_else(|| self.fleet.get(&source).copied())
    }

    /// The token of a request that must be honoured.
    fn live_token(&self, step: &Step<'_>, came: &Message) -> Option<Token> {
        let is_good = |token: &&Token| token.call_id == came.text("Call-ID") && step.secrets.accepts(token.secret);
        came.tokens().find_map(|text| self.tokens.get(text).filter(is_good)).cloned()
    }

    fn check_token(&mut self, step: &Step<'_>, came: &Message) -> Result<(), Violation> {
        let [before, after] = step.counters;
        let call_id = came.text("Call-ID");
        let is_good =
            |t: &&str| self.tokens.get(*t).is_some_and(|t| t.call_id == call_id && step.secrets.accepts(t.secret));
        let (good, bad): (Vec<&str>, Vec<&str>) = came.tokens().partition(|token| is_good(token));
        let is_refused = after.cookies_refused > before.cookies_refused;
        check(is_refused != bad.is_empty(), "token", || {
            format!("good are {good:?}, bad are {bad:?}, refused: {is_refused}")
        })?;
        let is_foreign = |t: &&&str| self.tokens.get(**t).is_some_and(|t| t.call_id != call_id);
        let is_forgotten = |t: &&&str| self.tokens.get(**t).is_some_and(|t| !step.secrets.accepts(t.secret));
        for (what, is_seen) in [
            ("token of another call", bad.iter().any(|t| is_foreign(&t))),
            ("token of a forgotten secret", bad.iter().any(|t| is_forgotten(&t))),
        ] {
            *self.seen.entry(what).or_default() += u64::from(is_seen);
        }
        Ok(())
    }

    fn check_relay(
        &self,
        step: &Step<'_>,
        output: &Output,
        token: Option<&Token>,
        text: Option<SocketAddr>,
    ) -> Result<(), Violation> {
        let is_to_backend = step.backend(output.to).is_some_and(Backend::keeps_dialogs);
        let is_by_text = step.backend(step.source).is_some() && text == Some(output.to);
        let is_by_token = token.is_some_and(|token| token.client == output.to);
        check(is_to_backend || is_by_text || is_by_token, "relay", || {
            format!("from {} to {}, text {text:?}, token {token:?}: {}", step.source, output.to, self::text(step.bytes))
        })
    }

    fn learn_tokens(&mut self, step: &Step<'_>, output: &Output, came: &Message, out: &Message) {
        // Towards a backend it leads back to who asked, else to who is asked; a refresh leads where it led.
        let known = self.live_token(step, came).map(|token| token.client);
        let is_inward = step.backend(output.to).is_some();
        let client = known.unwrap_or(if is_inward { step.source } else { output.to });
        for token in out.all("Record-Route").filter_map(|route| param(uri(route), "tk")) {
            let minted = Token { call_id: came.text("Call-ID"), client, secret: step.secrets.current };
            self.tokens.entry(token.to_owned()).or_insert(minted);
        }
    }

    fn check_answer(
        &mut self,
        step: &Step<'_>,
        output: &Output,
        came: Option<&Message>,
        out: &Message,
    ) -> Result<(), Violation> {
        let (sent, got) = (output.bytes.len(), step.bytes.len());
        check(sent <= got, "amplification", || format!("{sent} bytes answer {got}"))?;
        check(output.to.ip() == step.source.ip(), "amplification", || {
            format!("{} asked, {} is answered", step.source, output.to)
        })?;
        let is_empty = !step.snapshot.backends.iter().any(Backend::takes_new);
        check(is_empty || !step.has_answered(Reason::EmptyPool), "selection", || "503, and there are some".to_owned())?;
        let Some(came) = came else { return Ok(()) };
        check(came.method() != Some("ACK"), "amplification", || "an ACK was answered".to_owned())?;
        let via = came.get("Via").unwrap_or_default();
        let asks_rport = param(via, "rport").is_some();
        check(output.to == step.source || !asks_rport, "response", || "an answer missed rport".to_owned())?;
        check(out.branch() == came.branch() && out.cseq() == came.cseq(), "response", || {
            format!("{} is answered by {}", came.start, out.start)
        })?;
        if came.tag_of_to().is_some() {
            // A tag of the dialog's, not of ours.
            return Ok(());
        }
        let tag = out.tag_of_to().unwrap_or_default().to_owned();
        let current = step.secrets.current;
        let (known, secret) = self.answers.entry(key(came)).or_insert((tag.clone(), current));
        let is_alike = *known == tag || *secret != current;
        check(is_alike, "answer", || format!("{} was answered with tag {known}, now with {tag}", came.start))?;
        (*known, *secret) = (tag, current);
        Ok(())
    }

    /// The ACK to an answer that was made here is nobody else's.
    fn check_ack(&self, step: &Step<'_>, came: &Message) -> Result<(), Violation> {
        let answer = self.answers.get(&key(came)).filter(|_| came.method() == Some("ACK"));
        let is_to_ours =
            answer.is_some_and(|(tag, secret)| came.tag_of_to() == Some(tag) && *secret == step.secrets.current);
        check(!is_to_ours, "answer", || format!("the ACK to an answer of ours went on: {}", text(step.bytes)))
    }
}

fn key(message: &Message) -> Key {
    (message.branch().to_owned(), message.sent_by().to_owned(), message.text("Call-ID"), message.cseq())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
