//! Defects put into the plumbing between engine and network on purpose: checks that catch none of them prove nothing.
//!
//! Each falsifies what an engine said, as an engine with that defect would have said it. Those about affinity ask a
//! second engine that has no bindings, which is what a balancer without memory would do.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tandem::base::prng::Prng;
use tandem::metrics::{Counters, Reason};

use crate::checks::{Output, Token};
use crate::message::{Message, sent_by, uri, uri_address};

/// A defect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// None: the product as it is.
    None,
    /// The branch of a forwarded request is random.
    RandomBranch,
    /// CANCEL has a branch of its own.
    CancelBranch,
    /// `received` and `rport` are not written.
    MissingReceived,
    /// A response goes to another caller now and then.
    WrongCaller,
    /// A response goes where sent-by says, whatever `received` and `rport` say.
    RportIgnored,
    /// A CANCEL is hashed anew.
    CancelRehashed,
    /// Retransmissions and everything else without a cookie are hashed anew.
    Forgetful,
    /// The answer to a challenge goes to the next backend.
    ChallengeMoved,
    /// A request within a dialog goes to the next backend.
    DialogMoved,
    /// The direction of a request within a dialog is taken from its source address.
    DirectionBySource,
    /// A client is sought where its Contact says, though it sits behind a NAT.
    ContactFollowed,
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
    /// The To tag of a 2xx changes.
    ToTagChanged,
    /// No Record-Route is written.
    RouteNotRecorded,
    /// Our Route stays in a request.
    RouteKept,
    /// What a strict router did to the Request-URI is not undone.
    StrictIgnored,
    /// Signatures are not checked: forged responses pass.
    UncheckedBranch,
    /// Signatures are not checked: forged tokens are followed.
    UncheckedToken,
    /// A token is good for any call.
    TokenOfAnyCall,
    /// A caller's Route is followed.
    OpenRelay,
    /// What is new goes to a backend that takes nothing new.
    RefusingSelected,
    /// Answers carry more bytes than their request had.
    LongAnswer,
    /// An answer is sent twice.
    AnsweredTwice,
    /// The To tag of an answer is random.
    RandomTag,
    /// What is forwarded is sent twice.
    SentTwice,
    /// A request that could be served is dropped.
    DroppedWithoutNeed,
    /// A token that is refused is not counted.
    ForgeryUncounted,
    /// A message is lost without being counted.
    LostInSilence,
    /// A message is lost between two workers without being counted.
    HandOverLost,
    /// The second node selects otherwise.
    SelectionByNode,
    /// The nodes have different secrets.
    NodesDisagree,
    /// A rotation forgets the previous secret at once.
    PreviousRefused,
    /// Workers ignore every snapshot but the first.
    DeafToHealth,
    /// An answer to a probe is timed when it is dealt with.
    LateReading,
}

/// What the plumbing knows besides what went in and came out.
pub struct Hints<'a> {
    /// What an engine without bindings says.
    pub forgetful: &'a [Output],
    /// Backends that serve.
    pub serving: &'a [SocketAddr],
    /// Backends that take nothing new.
    pub refusing: &'a [SocketAddr],
    /// Backends that take what is new.
    pub taking: &'a [SocketAddr],
    /// The node.
    pub node: usize,
    /// Does a configured backend send it?
    pub is_from_backend: bool,
    /// Was its backend selected?
    pub is_selected: bool,
    /// All tokens.
    pub tokens: &'a BTreeMap<String, Token>,
}

impl Bug {
    /// All defects, each with the rules that may catch it.
    pub const ALL: [(Bug, &'static [&'static str]); 38] = [
        (Bug::RandomBranch, &["branch", "response"]),
        (Bug::CancelBranch, &["branch", "twin"]),
        (Bug::MissingReceived, &["edit"]),
        (Bug::WrongCaller, &["response"]),
        (Bug::RportIgnored, &["response"]),
        (Bug::CancelRehashed, &["transaction", "branch"]),
        (Bug::Forgetful, &["transaction", "dialog", "affinity", "branch"]),
        (Bug::ChallengeMoved, &["affinity"]),
        (Bug::DialogMoved, &["dialog"]),
        (Bug::DirectionBySource, &["dialog"]),
        (Bug::ContactFollowed, &["dialog", "relay"]),
        (Bug::BindingLeak, &["bindings"]),
        (Bug::BodyByte, &["edit"]),
        (Bug::ContentLength, &["edit"]),
        (Bug::MaxForwardsKept, &["edit"]),
        (Bug::ViaKept, &["edit"]),
        (Bug::ToTagChanged, &["edit"]),
        (Bug::RouteNotRecorded, &["edit"]),
        (Bug::RouteKept, &["edit"]),
        (Bug::StrictIgnored, &["edit"]),
        (Bug::UncheckedBranch, &["response", "twin"]),
        (Bug::UncheckedToken, &["relay"]),
        (Bug::TokenOfAnyCall, &["relay"]),
        (Bug::OpenRelay, &["relay"]),
        (Bug::RefusingSelected, &["selection"]),
        (Bug::LongAnswer, &["amplification"]),
        (Bug::AnsweredTwice, &["amplification"]),
        (Bug::RandomTag, &["answer", "twin"]),
        (Bug::SentTwice, &["amplification"]),
        (Bug::DroppedWithoutNeed, &["served"]),
        (Bug::ForgeryUncounted, &["token"]),
        (Bug::LostInSilence, &["counters"]),
        (Bug::HandOverLost, &["counters"]),
        (Bug::SelectionByNode, &["twin", "edit"]),
        (Bug::NodesDisagree, &["twin", "token", "response"]),
        (Bug::PreviousRefused, &["token", "response", "dialog", "branch", "twin"]),
        (Bug::DeafToHealth, &["liveness"]),
        (Bug::LateReading, &["health"]),
    ];

    /// Changes what came out for `bytes`, and what was counted.
    pub fn tamper(
        self,
        prng: &mut Prng,
        bytes: &[u8],
        outputs: &mut Vec<Output>,
        [before, after]: [&Counters; 2],
        hints: &Hints<'_>,
    ) -> Counters {
        let mut counted = after.clone();
        let is_forwarded = after.requests_forwarded > before.requests_forwarded;
        let has_dropped = after.dropped != before.dropped;
        match self {
            Bug::UncheckedBranch if has_dropped && relay_unchecked(bytes, outputs) => {
                counted.responses_forwarded += 1;
                counted.dropped = before.dropped;
            }
            Bug::ForgeryUncounted => counted.cookies_refused = before.cookies_refused,
            Bug::DroppedWithoutNeed if is_forwarded && prng.below(50) == 0 => {
                outputs.clear();
                counted.requests_forwarded -= 1;
                counted.count_dropped(Reason::TooLarge);
            }
            _ => self.tamper_output(prng, bytes, outputs, hints),
        }
        counted
    }

    fn tamper_output(self, prng: &mut Prng, bytes: &[u8], outputs: &mut Vec<Output>, hints: &Hints<'_>) {
        let came = Message::parse(bytes);
        let Some(output) = outputs.first_mut() else { return };
        let Some(out) = Message::parse(&output.bytes) else { return };
        match came.as_ref().filter(|came| came.method().is_some()) {
            Some(came) if out.method().is_some() => self.tamper_request(prng, came, &out, outputs, hints),
            Some(_) => self.tamper_answer(prng, bytes, &out, outputs),
            None => self.tamper_response(prng, bytes, &out, output),
        }
        if self == Bug::BodyByte && !out.body.is_empty() {
            outputs.iter_mut().flat_map(|output| output.bytes.last_mut()).for_each(|byte| *byte ^= 1);
        }
        if self == Bug::LostInSilence && prng.below(50) == 0 {
            outputs.clear();
        }
    }

    fn tamper_request(
        self,
        prng: &mut Prng,
        came: &Message,
        out: &Message,
        outputs: &mut Vec<Output>,
        hints: &Hints<'_>,
    ) {
        let Some(output) = outputs.first_mut() else { return };
        let is_in_dialog = came.tag_of_to().is_some();
        let is_to_client = !hints.serving.contains(&output.to);
        match self {
            Bug::RandomBranch => swap(&mut output.bytes, out.branch(), &format!("z9hG4bK{:016x}", prng.next_u64())),
            Bug::CancelBranch if came.method() == Some("CANCEL") => {
                swap(&mut output.bytes, out.branch(), "z9hG4bKcancel");
            }
            Bug::MissingReceived => {
                let via = out.all("Via").nth(1).unwrap_or_default();
                let kept = via.split(';').filter(|p| !p.starts_with("received") && !p.starts_with("rport"));
                swap(&mut output.bytes, via, &kept.collect::<Vec<_>>().join(";"));
            }
            Bug::CancelRehashed if came.method() == Some("CANCEL") => hints.forgetful.clone_into(outputs),
            Bug::Forgetful => hints.forgetful.clone_into(outputs),
            Bug::ChallengeMoved if came.get("Authorization").is_some() => *output = elsewhere(output, hints.serving),
            Bug::DialogMoved if came.method() == Some("BYE") => *output = elsewhere(output, hints.serving),
            Bug::DirectionBySource if is_in_dialog && is_to_client && !hints.is_from_backend => {
                *output = elsewhere(output, hints.serving);
            }
            Bug::ContactFollowed if is_in_dialog && is_to_client => {
                output.to = uri_address(came.uri()).unwrap_or(output.to);
            }
            Bug::ContentLength => {
                for name in ["\r\nContent-Length: ", "\r\nl: "] {
                    swap(&mut output.bytes, name, &format!("{name}1"));
                }
            }
            Bug::MaxForwardsKept => swap(&mut output.bytes, "Max-Forwards: 69", "Max-Forwards: 70"),
            Bug::RouteNotRecorded => {
                if let Some(route) = out.get("Record-Route").filter(|route| route.contains(";tk=")) {
                    swap(&mut output.bytes, &format!("Record-Route: {route}\r\n"), "");
                }
            }
            Bug::RouteKept => {
                if let Some(route) = came.get("Route").filter(|route| route.contains(";tk=")) {
                    swap(&mut output.bytes, "\r\n", &format!("\r\nRoute: {route}\r\n"));
                }
            }
            Bug::StrictIgnored => swap(&mut output.bytes, out.uri(), came.uri()),
            Bug::UncheckedToken => {
                if let Some(forged) = came.tokens().find(|token| !hints.tokens.contains_key(*token)) {
                    // What a decoder reads out of nonsense.
                    let digit = u16::from(forged.as_bytes().last().copied().unwrap_or_default());
                    output.to = ([203, 0, 113, 50], 5_000 + digit).into();
                }
            }
            Bug::TokenOfAnyCall => {
                let token = came.tokens().find_map(|token| hints.tokens.get(token));
                output.to = token.filter(|t| t.call_id != came.text("Call-ID")).map_or(output.to, |t| t.client);
            }
            Bug::OpenRelay => {
                let route = came.all("Route").nth(1);
                output.to = route.and_then(|route| uri_address(uri(route))).unwrap_or(output.to);
            }
            Bug::RefusingSelected if hints.is_selected => *output = elsewhere(output, hints.refusing),
            Bug::SelectionByNode if hints.is_selected && hints.node == 1 => *output = elsewhere(output, hints.taking),
            Bug::SentTwice => {
                let again = output.clone();
                outputs.push(again);
            }
            _ => {}
        }
    }

    fn tamper_answer(self, prng: &mut Prng, bytes: &[u8], out: &Message, outputs: &mut Vec<Output>) {
        let Some(output) = outputs.first_mut() else { return };
        match self {
            Bug::LongAnswer => {
                let padding = format!("Warning: {}\r\nContent-Length: 0", "x".repeat(bytes.len()));
                swap(&mut output.bytes, "Content-Length: 0", &padding);
            }
            Bug::RandomTag => {
                let tag = out.tag_of_to().unwrap_or_default();
                swap(&mut output.bytes, tag, &format!("{:011x}", prng.next_u64() >> 20));
            }
            Bug::AnsweredTwice => {
                let again = output.clone();
                outputs.push(again);
            }
            _ => {}
        }
    }

    fn tamper_response(self, prng: &mut Prng, bytes: &[u8], out: &Message, output: &mut Output) {
        match self {
            Bug::WrongCaller if prng.below(50) == 0 => output.to.set_port(output.to.port() ^ 1),
            Bug::RportIgnored => output.to = out.sent_by().parse().unwrap_or(output.to),
            Bug::ViaKept => output.bytes = bytes.to_vec(),
            Bug::ToTagChanged if out.status().is_some_and(|status| (200..300).contains(&status)) => {
                let to = out.text("To");
                swap(&mut output.bytes, &to, &format!("{to}x"));
            }
            _ => {}
        }
    }
}

/// The same datagram to another of these backends, which has the same address family where there is such a one.
fn elsewhere(output: &Output, others: &[SocketAddr]) -> Output {
    let others = || others.iter().filter(|other| **other != output.to);
    let other = others().find(|other| other.is_ipv6() == output.to.is_ipv6()).or_else(|| others().next());
    Output { to: other.copied().unwrap_or(output.to), ..output.clone() }
}

/// Puts `new` in the place of the first `old`.
fn swap(bytes: &mut Vec<u8>, old: &str, new: &str) {
    if let Some(at) = bytes.windows(old.len().max(1)).position(|window| window == old.as_bytes()) {
        bytes.splice(at..at + old.len(), new.bytes());
    }
}

/// Pops the top Via of any response whatever its branch.
fn relay_unchecked(bytes: &[u8], outputs: &mut Vec<Output>) -> bool {
    let Some(response) = Message::parse(bytes).filter(|m| m.status().is_some()) else { return false };
    let mut vias = response.all("Via");
    let (Some(own), Some(below)) = (vias.next(), vias.next()) else { return false };
    let (Ok(from), Ok(to)) = (sent_by(own).parse(), sent_by(below).parse()) else { return false };
    let mut bytes = bytes.to_vec();
    ["Via", "v"].iter().for_each(|name| swap(&mut bytes, &format!("{name}: {own}\r\n"), ""));
    outputs.push(Output { from, to, bytes });
    true
}
