//! What belongs together stays together: the model of transactions, Call-IDs and dialogs (RFC 3261 12, 16.11, 17).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use tandem::route::snapshot::Backend;

use super::{BRANCH_OUTLIVES_ROTATION, Key, Output, Step, Violation, broken, check, key, text};
use crate::message::Message;

struct Exchange {
    source: SocketAddr,
    /// Where it went first.
    home: SocketAddr,
    target: SocketAddr,
    /// Every branch that it went under, and the secret that signed; more than one only if a secret went.
    branches: Vec<(String, [u8; 16])>,
    at: u64,
    /// Which engine it passed first; no other one remembers it.
    engine: usize,
    /// The ACK to a 2xx: no transaction, and whoever gets it twice does not mind under which branch.
    is_ack: bool,
}

struct Parties {
    asker: SocketAddr,
    answerer: SocketAddr,
    /// When the request that made the dialog went where it was answered.
    at: u64,
}

/// The model; see the module head.
#[derive(Default)]
pub(super) struct Affinity {
    exchanges: BTreeMap<Key, Exchange>,
    dialogs: BTreeMap<(String, [String; 2]), Parties>,
    /// The latest request of each Call-ID outside a dialog, and where it went.
    latest: BTreeMap<String, (u32, SocketAddr)>,
    /// Backends that a worker (by number) does without.
    lacking: BTreeSet<(SocketAddr, usize)>,
    /// When a worker last began or ceased to do without a backend.
    lapsed: BTreeMap<SocketAddr, u64>,
}

impl Affinity {
    /// A worker goes over to a snapshot in which a backend keeps its dialogs, or does not.
    pub(super) fn note_backend(&mut self, now: u64, worker: usize, address: SocketAddr, keeps: bool) {
        let has_changed =
            if keeps { self.lacking.remove(&(address, worker)) } else { self.lacking.insert((address, worker)) };
        if has_changed {
            self.lapsed.insert(address, now);
        }
    }

    /// The secret that signed the branch of a transaction.
    pub(super) fn secret_of(&self, key: &Key) -> Option<[u8; 16]> {
        let branches = &self.exchanges.get(key)?.branches;
        let branch = if BRANCH_OUTLIVES_ROTATION { branches.last() } else { branches.first() };
        branch.map(|(_, secret)| *secret)
    }

    pub(super) fn check_request(
        &mut self,
        step: &Step<'_>,
        output: &Output,
        came: &Message,
        out: &Message,
        is_token_dead: bool,
        interfaces: &BTreeMap<SocketAddr, SocketAddr>,
    ) -> Result<(), Violation> {
        let is_owed = self.secret_of(&key(came)).is_none_or(|secret| step.owes(secret));
        self.check_next(step, output, came)?;
        self.check_transaction(step, output, came, out, is_owed && !is_token_dead)?;
        if is_owed && !is_token_dead {
            self.check_dialog(step, output, came, interfaces)?;
        }
        Ok(())
    }

    /// A new transaction outside a dialog follows the one before it.
    fn check_next(&mut self, step: &Step<'_>, output: &Output, came: &Message) -> Result<(), Violation> {
        let is_of_dialog = came.tag_of_to().is_some() || matches!(came.method(), Some("ACK" | "CANCEL"));
        if is_of_dialog || step.backend(output.to).is_none() {
            return Ok(());
        }
        let call_id = came.text("Call-ID");
        let is_new = !self.exchanges.contains_key(&key(came));
        if let Some((cseq, target)) = self.latest.get(&call_id).filter(|(cseq, _)| is_new && came.cseq() > *cseq) {
            let stays = step.backend(*target).is_some_and(Backend::takes_new);
            check(!stays || *target == output.to, "affinity", || {
                format!("{cseq} of {call_id} went to {target}, {} to {}", came.cseq(), output.to)
            })?;
        }
        let latest = self.latest.entry(call_id).or_insert((came.cseq(), output.to));
        if came.cseq() >= latest.0 {
            *latest = (came.cseq(), output.to);
        }
        Ok(())
    }

    fn check_transaction(
        &mut self,
        step: &Step<'_>,
        output: &Output,
        came: &Message,
        out: &Message,
        is_owed: bool,
    ) -> Result<(), Violation> {
        let (key, branch) = (key(came), (out.branch().to_owned(), step.secrets.signer_of(out.branch())));
        let Some(known) = self.exchanges.get(&key) else {
            let (source, home, target) = (step.source, output.to, output.to);
            let (at, engine, is_ack) = (step.now, step.engine, came.method() == Some("ACK"));
            let exchange = Exchange { source, home, target, branches: vec![branch], at, engine, is_ack };
            self.exchanges.insert(key, exchange);
            return Ok(());
        };
        let is_rotated = known.branches.last().is_some_and(|(_, secret)| *secret != branch.1);
        let is_known = known.branches.last().is_some_and(|(known, _)| *known == branch.0);
        let is_excused = known.target == output.to
            || !is_owed
            || self.is_excused(known.target, known.at)
            // A backend that is none any more is a stranger.
            || self.is_excused(step.source, known.at)
            || known.home == output.to
            || self.is_homeward(output.to, came)
            || self.is_superseded(step.source, came);
        check(is_excused, "transaction", || {
            format!("{} {key:?} went to {} and now to {}", came.start, known.target, output.to)
        })?;
        // Only an engine that has the binding knows that a transaction began under another secret, and of which branch it
        // was; once that secret has gone before the transaction did, it is of none.
        let is_forgotten = known.engine != step.engine
            || step.counters[1].bindings_refused > 0
            || known.branches.len() > 1
            || self.has_successor(step.source, came);
        check(is_known || !is_owed || (is_rotated && (known.is_ack || is_forgotten)), "branch", || {
            format!("{} of {} went as {:?} and now as {}", came.start, came.text("Call-ID"), known.branches, branch.0)
        })?;
        if let Some(known) = self.exchanges.get_mut(&key) {
            if known.target != output.to {
                (known.target, known.at) = (output.to, step.now);
            }
            if !is_known {
                known.branches.push(branch);
            }
        }
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
        !matches!(came.method(), Some("ACK" | "CANCEL")) && self.has_successor(source, came)
    }

    /// Has its caller sent a later request of the Call-ID, whose transaction the binding remembers now?
    fn has_successor(&self, source: SocketAddr, came: &Message) -> bool {
        let call_id = came.text("Call-ID");
        let is_later =
            |(key, exchange): (&Key, &Exchange)| key.2 == call_id && key.3 > came.cseq() && exchange.source == source;
        self.exchanges.iter().any(is_later)
    }

    fn check_dialog(
        &self,
        step: &Step<'_>,
        output: &Output,
        came: &Message,
        interfaces: &BTreeMap<SocketAddr, SocketAddr>,
    ) -> Result<(), Violation> {
        let Some(parties) = dialog_key(came).and_then(|key| self.dialogs.get(&key)) else { return Ok(()) };
        let source = interfaces.get(&step.source).copied().unwrap_or(step.source);
        let other = if source == parties.answerer { parties.asker } else { parties.answerer };
        // A backend that is none any more is a stranger.
        let is_excused = self.is_excused(other, parties.at) || self.is_excused(source, parties.at);
        // The ACK to a non-2xx follows its INVITE, of which a late copy may have been taken for a new one.
        let has_moved = came.method() == Some("ACK")
            && self.exchanges.get(&key(came)).is_some_and(|invite| invite.target != invite.home);
        check(output.to == other || is_excused || has_moved, "dialog", || {
            let call_id = came.text("Call-ID");
            format!("{} of {call_id} from {} belongs to {other} and went to {}", came.start, step.source, output.to)
        })
    }

    pub(super) fn check_response(
        &mut self,
        step: &Step<'_>,
        output: &Output,
        came: &Message,
        out: &Message,
        interfaces: &BTreeMap<SocketAddr, SocketAddr>,
    ) -> Result<(), Violation> {
        let Some(exchange) = self.exchanges.get(&key(out)) else {
            return broken("response", format!("to nothing that was forwarded: {}", text(step.bytes)));
        };
        let is_sent = exchange.branches.iter().any(|(branch, _)| branch == came.branch());
        check(is_sent, "response", || "its branch was never sent".to_owned())?;
        check(exchange.source == output.to, "response", || {
            format!("the request came from {}, the response went to {}", exchange.source, output.to)
        })?;
        if let Some(key) = dialog_key(came) {
            let asker = interfaces.get(&exchange.source).copied().unwrap_or(exchange.source);
            let parties = Parties { asker, answerer: step.source, at: exchange.at };
            self.dialogs.entry(key).or_insert(parties);
        }
        Ok(())
    }

    /// Was the request of this response forwarded, under a secret that is accepted?
    pub(super) fn is_owed(&self, step: &Step<'_>, came: &Message) -> bool {
        let mut below = came.clone();
        let Some(top) = below.headers.iter().position(|(name, _)| name == "Via") else { return false };
        below.headers.remove(top);
        let branches = self.exchanges.get(&key(&below)).map_or(&[][..], |exchange| &exchange.branches);
        branches.iter().any(|(branch, secret)| branch == came.branch() && step.secrets.accepts(*secret))
    }

    /// Has the operator taken this backend away since then?
    fn is_excused(&self, address: SocketAddr, since: u64) -> bool {
        let is_lacking = self.lacking.iter().any(|(lacking, _)| *lacking == address);
        is_lacking || self.lapsed.get(&address).is_some_and(|at| *at >= since)
    }
}

fn dialog_key(message: &Message) -> Option<(String, [String; 2])> {
    let mut tags = [message.tag_of_from()?.to_owned(), message.tag_of_to()?.to_owned()];
    tags.sort();
    Some((message.text("Call-ID"), tags))
}
