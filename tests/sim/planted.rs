//! Defects put into the plumbing between engine and network on purpose: checks that catch none of them prove nothing.
//!
//! Each falsifies what an engine said, as an engine with that defect would have said it. Those about affinity ask a
//! second engine that has no bindings, which is what a balancer without memory would do.

use std::net::SocketAddr;

use tandem::base::prng::Prng;

use crate::checks::Output;
use crate::message::{Message, sent_by, uri, uri_address};

/// A defect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// None: the product as it is.
    None,
    /// The branch of a forwarded request is random.
    RandomBranch,
    /// `received` and `rport` are not written.
    MissingReceived,
    /// A response goes to another caller now and then.
    WrongCaller,
    /// A CANCEL is hashed anew.
    CancelRehashed,
    /// Retransmissions and everything else without a cookie are hashed anew.
    Forgetful,
    /// A request within a dialog goes to the next backend.
    DialogMoved,
    /// Bindings never expire.
    BindingLeak,
    /// A byte of the body changes.
    BodyByte,
    /// Content-Length is off by one.
    ContentLength,
    /// Max-Forwards stays.
    MaxForwardsKept,
    /// Our Via stays in a response.
    ViaKept,
    /// Signatures are not checked: forged responses pass.
    UncheckedBranch,
    /// A caller's Route is followed.
    OpenRelay,
    /// Answers carry more bytes than their request had.
    LongAnswer,
    /// What is forwarded is sent twice.
    SentTwice,
    /// A message is lost without being counted.
    LostInSilence,
    /// The nodes have different secrets.
    NodesDisagree,
    /// Workers ignore every snapshot but the first.
    DeafToHealth,
}

impl Bug {
    /// All defects, each with the rules that may catch it.
    pub const ALL: [(Bug, &'static [&'static str]); 18] = [
        (Bug::RandomBranch, &["branch", "twin"]),
        (Bug::MissingReceived, &["edit"]),
        (Bug::WrongCaller, &["response"]),
        (Bug::CancelRehashed, &["transaction"]),
        (Bug::Forgetful, &["transaction", "dialog"]),
        (Bug::DialogMoved, &["dialog"]),
        (Bug::BindingLeak, &["bindings"]),
        (Bug::BodyByte, &["edit"]),
        (Bug::ContentLength, &["edit"]),
        (Bug::MaxForwardsKept, &["edit"]),
        (Bug::ViaKept, &["edit"]),
        (Bug::UncheckedBranch, &["response"]),
        (Bug::OpenRelay, &["relay"]),
        (Bug::LongAnswer, &["amplification"]),
        (Bug::SentTwice, &["amplification"]),
        (Bug::LostInSilence, &["counters"]),
        (Bug::NodesDisagree, &["twin"]),
        (Bug::DeafToHealth, &["liveness"]),
    ];

    /// Changes what came out for `bytes`; `forgetful` is what an engine without bindings says to them, `others` are
    /// the backends that serve.
    pub fn tamper(
        self,
        prng: &mut Prng,
        bytes: &[u8],
        outputs: &mut Vec<Output>,
        forgetful: &[Output],
        others: &[SocketAddr],
    ) {
        let came = Message::parse(bytes);
        let method = came.as_ref().and_then(Message::method);
        if self == Bug::UncheckedBranch && outputs.is_empty() {
            return relay_unchecked(came, outputs);
        }
        let Some(output) = outputs.first_mut() else { return };
        let Some(out) = Message::parse(&output.bytes) else { return };
        let is_request = out.method().is_some();
        let is_answer = method.is_some() && !is_request;
        match self {
            Bug::RandomBranch if is_request => {
                swap(&mut output.bytes, out.branch(), &format!("z9hG4bK{:016x}", prng.next_u64()));
            }
            Bug::MissingReceived if is_request => {
                let via = out.all("Via").nth(1).unwrap_or_default();
                let kept = via.split(';').filter(|p| !p.starts_with("received") && !p.starts_with("rport"));
                swap(&mut output.bytes, via, &kept.collect::<Vec<_>>().join(";"));
            }
            Bug::WrongCaller if !is_request && !is_answer && prng.below(50) == 0 => {
                output.to.set_port(output.to.port() ^ 1);
            }
            Bug::CancelRehashed if method == Some("CANCEL") && is_request => forgetful.clone_into(outputs),
            Bug::Forgetful if is_request => forgetful.clone_into(outputs),
            Bug::DialogMoved if method == Some("BYE") && is_request => *output = elsewhere(output, others),
            Bug::BodyByte if !out.body.is_empty() => output.bytes.iter_mut().last().into_iter().for_each(|b| *b ^= 1),
            Bug::ContentLength if is_request => {
                for name in ["\r\nContent-Length: ", "\r\nl: "] {
                    swap(&mut output.bytes, name, &format!("{name}1"));
                }
            }
            Bug::MaxForwardsKept if is_request => swap(&mut output.bytes, "Max-Forwards: 69", "Max-Forwards: 70"),
            Bug::ViaKept if !is_request && !is_answer => output.bytes = bytes.to_vec(),
            Bug::OpenRelay if is_request => {
                let route = came.as_ref().and_then(|m| m.all("Route").nth(1).map(str::to_owned));
                output.to = route.and_then(|route| uri_address(uri(&route))).unwrap_or(output.to);
            }
            Bug::LongAnswer if is_answer => {
                let padding = format!("Warning: {}\r\nContent-Length: 0", "x".repeat(bytes.len()));
                swap(&mut output.bytes, "Content-Length: 0", &padding);
            }
            Bug::SentTwice if is_request => {
                let again = output.clone();
                outputs.push(again);
            }
            Bug::LostInSilence if prng.below(50) == 0 => outputs.clear(),
            _ => {}
        }
    }
}

/// The same datagram to another backend.
fn elsewhere(output: &Output, others: &[SocketAddr]) -> Output {
    let other = others.iter().find(|other| **other != output.to);
    Output { to: other.copied().unwrap_or(output.to), ..output.clone() }
}

/// Puts `new` in the place of the first `old`.
fn swap(bytes: &mut Vec<u8>, old: &str, new: &str) {
    if let Some(at) = bytes.windows(old.len().max(1)).position(|window| window == old.as_bytes()) {
        bytes.splice(at..at + old.len(), new.bytes());
    }
}

/// Pops the top Via of any response whatever its branch.
fn relay_unchecked(came: Option<Message>, outputs: &mut Vec<Output>) {
    let Some(mut response) = came.filter(|m| m.status().is_some() && m.all("Via").count() > 1) else { return };
    let Some(first) = response.headers.iter().position(|(name, _)| name == "Via") else { return };
    let (_, own) = response.headers.remove(first);
    let addresses = (sent_by(&own).parse(), response.sent_by().parse());
    if let (Ok(from), Ok(to)) = addresses {
        outputs.push(Output { from, to, bytes: response.encode(false) });
    }
}
