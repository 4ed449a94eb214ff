//! The invariants, checked on every datagram that an engine deals with, from outside: what went in, what came out.
//!
//! The model behind them is small and obvious: which transaction was sent where under which branch, and which two
//! ends a dialog has. An affinity rule is waived only for a backend that some worker's snapshot lacked, or had
//! disabled, at a time after the model learnt of it: the operator took it away.
//!
//! | rule | says |
//! |---|---|
//! | `counters` | each datagram has exactly one outcome, and each output is counted |
//! | `amplification` | at most one datagram out; an answer is no larger than its request and goes to its source |
//! | `relay` | a request goes to a configured backend, or from a backend to a caller |
//! | `edit` | one Via more or less, `received` and `rport` true, Max-Forwards one less, the rest byte for byte |
//! | `selection` | what is new goes to a backend that takes what is new |
//! | `branch` | retransmissions, CANCEL and the ACK to a non-2xx carry their INVITE's branch |
//! | `transaction` | and reach its backend |
//! | `dialog` | all messages of a dialog stay between its two ends |
//! | `response` | a response answers a request that was forwarded, and goes where that came from |

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use tandem::metrics::Counters;
use tandem::route::snapshot::Snapshot;

use crate::message::{Message, param, sent_by, split_line};

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
    /// Virtual time.
    pub now: u64,
    /// What the engine knew of the world.
    pub snapshot: &'a Snapshot,
    /// What came.
    pub bytes: &'a [u8],
    /// From whom.
    pub source: SocketAddr,
    /// The engine's counters before and after.
    pub counters: [&'a Counters; 2],
    /// What it sends.
    pub outputs: &'a [Output],
}

/// What retransmissions, CANCEL and the ACK to a non-2xx share: branch, sent-by, Call-ID and CSeq number.
type Key = (String, String, String, u32);

struct Exchange {
    source: SocketAddr,
    /// Where it went first.
    home: SocketAddr,
    target: SocketAddr,
    branch: String,
    at: u64,
}

struct Parties {
    asker: SocketAddr,
    answerer: SocketAddr,
    at: u64,
}

/// The model; see the module head.
#[derive(Default)]
pub struct Checks {
    /// Where callers can be reached.
    pub callers: BTreeSet<SocketAddr>,
    /// Where backends are when they are configured.
    pub fleet: BTreeSet<SocketAddr>,
    exchanges: BTreeMap<Key, Exchange>,
    dialogs: BTreeMap<(String, [String; 2]), Parties>,
    /// Backends that a worker (by number) does without.
    lacking: BTreeSet<(SocketAddr, usize)>,
    /// When a worker last began or ceased to do without a backend.
    lapsed: BTreeMap<SocketAddr, u64>,
}

impl Checks {
    /// A worker goes over to a snapshot.
    pub fn note_snapshot(&mut self, now: u64, worker: usize, snapshot: &Snapshot) {
        for address in &self.fleet {
            let keeps = |b: &tandem::route::snapshot::Backend| b.address == *address && b.keeps_dialogs();
            let has_changed = match snapshot.backends.iter().any(keeps) {
                true => self.lacking.remove(&(*address, worker)),
                false => self.lacking.insert((*address, worker)),
            };
            if has_changed {
                self.lapsed.insert(*address, now);
            }
        }
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
        let Some(output) = step.outputs.first() else { return Ok(()) };
        let Some(out) = Message::parse(&output.bytes) else {
            return broken("edit", format!("what is sent is no message: {}", text(&output.bytes)));
        };
        let is_answer = out.status().is_some();
        match Message::parse(step.bytes) {
            Some(came) if came.status().is_some() => self.check_response(step, output, &came, &out),
            Some(came) if is_answer => check_answer(step, output, Some(&came), &out),
            Some(came) => self.check_request(step, output, &came, &out),
            None if is_answer => check_answer(step, output, None, &out),
            None => broken("edit", "what is malformed was forwarded"),
        }
    }

    fn check_request(
        &mut self,
        step: &Step<'_>,
        output: &Output,
        came: &Message,
        out: &Message,
    ) -> Result<(), Violation> {
        let [before, after] = step.counters;
        let backend = step.snapshot.backends.iter().find(|b| b.address == output.to);
        let is_from_backend = self.fleet.contains(&step.source);
        check(
            backend.is_some_and(|b| b.keeps_dialogs()) || (is_from_backend && self.callers.contains(&output.to)),
            "relay",
            || format!("from {} to {}: {}", step.source, output.to, came.start),
        )?;
        check(after.selected == before.selected || backend.is_some_and(|b| b.takes_new()), "selection", || {
            format!("{} was selected", output.to)
        })?;
        check_request_edit(step, came, out)?;
        self.check_transaction(step, output, came, out)?;
        self.check_dialog(step, output, came)
    }

    fn check_transaction(
        &mut self,
        step: &Step<'_>,
        output: &Output,
        came: &Message,
        out: &Message,
    ) -> Result<(), Violation> {
        let (key, branch) = (key(came), out.branch().to_owned());
        let mut home = output.to;
        if let Some(known) = self.exchanges.get(&key) {
            check(known.branch == branch, "branch", || {
                format!("{} went as {} and now as {branch}", came.start, known.branch)
            })?;
            if known.target == output.to {
                return Ok(());
            }
            let is_excused = self.is_excused(known.target, known.at)
                || known.home == output.to
                || self.is_homeward(output.to, came)
                || self.is_superseded(step.source, came);
            check(is_excused, "transaction", || {
                format!("{} {key:?} went to {} and now to {}", came.start, known.target, output.to)
            })?;
            home = known.home;
        }
        let exchange = Exchange { source: step.source, home, target: output.to, branch, at: step.now };
        self.exchanges.insert(key, exchange);
        Ok(())
    }

    /// Its dialog's backend was taken away, and either came back or was all that an ACK without binding could follow.
    fn is_homeward(&self, target: SocketAddr, came: &Message) -> bool {
        let Some(parties) = dialog_key(came).and_then(|key| self.dialogs.get(&key)) else { return false };
        let is_orphan = |end| self.is_excused(end, parties.at);
        let ends = [parties.asker, parties.answerer];
        ends.contains(&target) || (came.method() == Some("ACK") && ends.iter().any(|end| is_orphan(*end)))
    }

    /// Once its caller has sent the next request of a Call-ID (after a challenge), a copy of the request before that
    /// still comes along is taken for a new one. ACK and CANCEL are not.
    fn is_superseded(&self, source: SocketAddr, came: &Message) -> bool {
        let call_id = came.text("Call-ID");
        let is_later =
            |(key, exchange): (&Key, &Exchange)| key.2 == call_id && key.3 > came.cseq() && exchange.source == source;
        !matches!(came.method(), Some("ACK" | "CANCEL")) && self.exchanges.iter().any(is_later)
    }

    fn check_dialog(&self, step: &Step<'_>, output: &Output, came: &Message) -> Result<(), Violation> {
        let Some(parties) = dialog_key(came).and_then(|key| self.dialogs.get(&key)) else { return Ok(()) };
        let other = if step.source == parties.answerer { parties.asker } else { parties.answerer };
        check(output.to == other || self.is_excused(other, parties.at), "dialog", || {
            format!("{} from {} belongs to {other} and went to {}", came.start, step.source, output.to)
        })
    }

    fn check_response(
        &mut self,
        step: &Step<'_>,
        output: &Output,
        came: &Message,
        out: &Message,
    ) -> Result<(), Violation> {
        let is_one_less = came.all("Via").skip(1).eq(out.all("Via"));
        check(is_one_less && rest(step.bytes) == rest(&output.bytes), "edit", || {
            format!("{}\nbecame\n{}", text(step.bytes), text(&output.bytes))
        })?;
        let Some(exchange) = self.exchanges.get(&key(out)) else {
            return broken("response", format!("to nothing that was forwarded: {}", text(step.bytes)));
        };
        check(exchange.branch == came.branch(), "response", || "its branch was never sent".to_owned())?;
        check(exchange.source == output.to, "response", || {
            format!("the request came from {}, the response went to {}", exchange.source, output.to)
        })?;
        if let Some(key) = dialog_key(came) {
            let parties = Parties { asker: exchange.source, answerer: step.source, at: step.now };
            self.dialogs.entry(key).or_insert(parties);
        }
        Ok(())
    }

    /// Has the operator taken this backend away since then?
    fn is_excused(&self, address: SocketAddr, since: u64) -> bool {
        let is_lacking = self.lacking.iter().any(|(lacking, _)| *lacking == address);
        is_lacking || self.lapsed.get(&address).is_some_and(|at| *at >= since)
    }
}

fn check_answer(step: &Step<'_>, output: &Output, came: Option<&Message>, out: &Message) -> Result<(), Violation> {
    let (sent, got) = (output.bytes.len(), step.bytes.len());
    check(sent <= got, "amplification", || format!("{sent} bytes answer {got}"))?;
    check(output.to.ip() == step.source.ip(), "amplification", || {
        format!("{} asked, {} is answered", step.source, output.to)
    })?;
    let Some(came) = came else { return Ok(()) };
    check(came.method() != Some("ACK"), "amplification", || "an ACK was answered".to_owned())?;
    let via = came.get("Via").unwrap_or_default();
    let asks_rport = param(via, "rport").is_some();
    check(output.to == step.source || !asks_rport, "response", || "an answer missed rport".to_owned())?;
    check(out.branch() == came.branch() && out.cseq() == came.cseq(), "response", || {
        format!("{} is answered by {}", came.start, out.start)
    })
}

fn check_request_edit(step: &Step<'_>, came: &Message, out: &Message) -> Result<(), Violation> {
    let fail = |what: &str| format!("{what}: {came:?}\nbecame\n{out:?}");
    let (vias_in, vias_out): (Vec<_>, Vec<_>) = (came.all("Via").collect(), out.all("Via").collect());
    check(vias_out.len() == vias_in.len() + 1 && vias_out[2..] == vias_in[1..], "edit", || fail("Via"))?;
    let is_ours = |via: &str| step.snapshot.listeners.iter().any(|l| l.listen.address.to_string() == sent_by(via));
    check(is_ours(vias_out[0]), "edit", || fail("our Via"))?;
    let (top, kept) = (vias_in[0], vias_out[1]);
    let asks_rport = param(top, "rport").is_some();
    let is_true = sent_by(top).parse::<SocketAddr>().is_ok_and(|a| a.ip() == step.source.ip());
    let received = param(kept, "received").map(|ip| ip.parse() == Ok(step.source.ip()));
    check(received.unwrap_or(is_true && !asks_rport), "edit", || fail("received"))?;
    let rport = param(kept, "rport").map(|port| port.parse() == Ok(step.source.port()));
    check(rport == asks_rport.then_some(true), "edit", || fail("rport"))?;
    check(sent_by(top) == sent_by(kept) && param(top, "branch") == param(kept, "branch"), "edit", || fail("top Via"))?;
    let hops = |m: &Message| m.get("Max-Forwards").and_then(|text| text.parse::<u32>().ok());
    check(hops(out) == Some(hops(came).unwrap_or(71) - 1), "edit", || fail("Max-Forwards"))?;
    check(came.start == out.start, "edit", || fail("request line"))?;
    check(came.body == out.body && rest(step.bytes) == rest(&step.outputs[0].bytes), "edit", || fail("rest"))?;
    let recorded = out.all("Record-Route").count() - came.all("Record-Route").count();
    check(recorded <= 2 && out.all("Route").count() <= came.all("Route").count(), "edit", || fail("routes"))
}

/// The lines that pass untouched, and the body.
fn rest(bytes: &[u8]) -> (Vec<&[u8]>, &[u8]) {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(bytes.len());
    let is_ours_to_change = |line: &[u8]| {
        let name = split_line(&String::from_utf8_lossy(line)).map(|(name, _)| name).unwrap_or_default();
        matches!(name.as_str(), "Via" | "Max-Forwards" | "Route" | "Record-Route")
    };
    let lines = bytes[..end].split(|b| *b == b'\n').skip(1).map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    (lines.filter(|line| !is_ours_to_change(line)).collect(), &bytes[end..])
}

fn key(message: &Message) -> Key {
    (message.branch().to_owned(), message.sent_by().to_owned(), message.text("Call-ID"), message.cseq())
}

fn dialog_key(message: &Message) -> Option<(String, [String; 2])> {
    let mut tags = [message.tag_of_from()?.to_owned(), message.tag_of_to()?.to_owned()];
    tags.sort();
    Some((message.text("Call-ID"), tags))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
