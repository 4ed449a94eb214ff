//! One call of the demo caller: INVITE, 180, 200, ACK, a short hold, BYE, 200 (RFC 3261 sections 12, 13, 15, 17).
//!
//! Pure: responses and time come in, datagrams go out, all of them to Tandem. The INVITE is retransmitted after T1,
//! doubling (Timer A), until a provisional response; the BYE likewise up to T2 (Timer E). Timers B and F are
//! shortened from 64*T1 to [`GIVE_UP`], so that the demo tells of a lost call while one still watches.
//!
//! The caller believes nothing that the RFC forbids: a response with more than our one Via is discarded (8.1.3.3), and
//! requests in the dialog follow its route set (12.1.2, 12.2.1.1) to the contact of the 200. All routes are taken to
//! be loose.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::message::{Message, elements, tag, uri};
use super::{T1, T2};

/// Timers B and F of the demo: how long an INVITE or a BYE may stay without its final response.
pub(super) const GIVE_UP: Duration = Duration::from_secs(4);

/// How long an answered call stays up.
const HOLD: Duration = Duration::from_millis(200);

/// What all calls of one caller share.
pub(super) struct Line {
    /// Tandem.
    pub(super) proxy: SocketAddr,
    /// The caller's own socket.
    pub(super) local: SocketAddr,
    /// Different in every run, so that no two runs share a Call-ID, a tag or a branch.
    pub(super) seed: u64,
}

impl Line {
    /// The number of the call that a Call-ID names, if it is one of this line.
    pub(super) fn call_number(&self, call_id: &str) -> Option<u64> {
        let (seed, number) = call_id.split_once('@')?.0.split_once('-')?;
        (u64::from_str_radix(seed, 16).ok()? == self.seed).then(|| number.parse().ok())?
    }

    fn call_id(&self, number: u64) -> String {
        format!("{:016x}-{number}@{}", self.seed, self.local.ip())
    }

    fn branch(&self, number: u64, transaction: &str) -> String {
        format!("z9hG4bK{:016x}{number}{transaction}", self.seed)
    }

    /// A request up to and without the body; `more` is whole header lines.
    fn encode(&self, number: u64, request: &Request<'_>, more: &str, body: &str) -> Vec<u8> {
        let Request { method, transaction, uri, routes, to, cseq } = request;
        let (local, branch, call_id) = (self.local, self.branch(number, transaction), self.call_id(number));
        let routes: String = routes.iter().map(|route| format!("Route: {route}\r\n")).collect();
        format!(
            "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {local};rport;branch={branch}\r\nMax-Forwards: 70\r\n{routes}\
             From: \"Demo caller\" <sip:caller@{local}>;tag={number:x}\r\nTo: {to}\r\nCall-ID: {call_id}\r\n\
             CSeq: {cseq} {method}\r\n{more}Content-Length: {length}\r\n\r\n{body}",
            length = body.len()
        )
        .into_bytes()
    }
}

/// The parts in which the requests of one call differ.
struct Request<'a> {
    method: &'a str,
    /// The end of the branch: one letter per transaction.
    transaction: &'a str,
    uri: &'a str,
    routes: &'a [String],
    to: &'a str,
    cseq: u32,
}

/// One call from its INVITE to its end.
pub(super) struct Call {
    /// Unique on its line.
    pub(super) number: u64,
    /// When the INVITE was first sent.
    pub(super) began: Instant,
    /// From the first INVITE to the 200, once that is there.
    pub(super) setup: Option<Duration>,
    /// When [`Call::handle_timeout`] has something to do.
    pub(super) wake: Instant,
    stage: Stage,
    /// The request of the open transaction, for sending again.
    request: Vec<u8>,
    /// The time from its last to its next retransmission.
    interval: Duration,
    give_up_at: Instant,
    /// The ACK to the 200, for when that comes again.
    ack: Vec<u8>,
    /// The BYE, ready once the call is up.
    bye: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Calling,
    Proceeding,
    Up,
    Closing,
}

/// What became of a call.
pub(super) type Outcome = Result<(), Failure>;

/// Why a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Failure {
    /// No final response to the INVITE within [`GIVE_UP`].
    InviteUnanswered,
    /// A final response to the INVITE that is not 2xx.
    InviteRefused(u16),
    /// A 2xx that makes no dialog: no To tag or no contact.
    AnswerUnusable,
    /// No final response to the BYE within [`GIVE_UP`].
    ByeUnanswered,
    /// A final response to the BYE that is not 2xx.
    ByeRefused(u16),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::InviteUnanswered => f.write_str("INVITE unanswered"),
            Failure::InviteRefused(status) => write!(f, "INVITE refused with {status}"),
            Failure::AnswerUnusable => f.write_str("200 without tag or contact"),
            Failure::ByeUnanswered => f.write_str("BYE unanswered"),
            Failure::ByeRefused(status) => write!(f, "BYE refused with {status}"),
        }
    }
}

impl Call {
    /// Sends the INVITE.
    pub(super) fn start(line: &Line, number: u64, now: Instant, out: &mut Vec<Vec<u8>>) -> Call {
        let (uri, to) = (format!("sip:demo@{}", line.proxy), format!("<sip:demo@{}>", line.proxy));
        let request = Request { method: "INVITE", transaction: "i", uri: &uri, routes: &[], to: &to, cseq: 1 };
        let more = format!("Contact: <sip:caller@{}>\r\nContent-Type: application/sdp\r\n", line.local);
        let request = line.encode(number, &request, &more, &super::sdp(line.local));
        out.push(request.clone());
        Call {
            number,
            began: now,
            setup: None,
            wake: now + T1,
            stage: Stage::Calling,
            request,
            interval: T1,
            give_up_at: now + GIVE_UP,
            ack: Vec::new(),
            bye: Vec::new(),
        }
    }

    /// Takes a response with this call's Call-ID; the outcome when it ends the call.
    pub(super) fn handle_response(
        &mut self,
        line: &Line,
        now: Instant,
        response: &Message<'_>,
        out: &mut Vec<Vec<u8>>,
    ) -> Option<Outcome> {
        let (status, method) = (response.status()?, response.cseq_method()?);
        let transaction = if method == "INVITE" { "i" } else { "b" };
        if !is_via_ours(response, &line.branch(self.number, transaction)) {
            return None;
        }
        match (method, self.stage, status) {
            ("INVITE", Stage::Calling | Stage::Proceeding, 100..200) => {
                self.stage = Stage::Proceeding;
                self.wake = self.give_up_at;
                None
            }
            ("INVITE", Stage::Calling | Stage::Proceeding, 200..300) => self.handle_answer(line, now, response, out),
            ("INVITE", Stage::Calling | Stage::Proceeding, _) => {
                let uri = format!("sip:demo@{}", line.proxy);
                let to = response.header("To")?;
                let ack = Request { method: "ACK", transaction: "i", uri: &uri, routes: &[], to, cseq: 1 };
                out.push(line.encode(self.number, &ack, "", ""));
                Some(Err(Failure::InviteRefused(status)))
            }
            ("INVITE", Stage::Up | Stage::Closing, 200..300) => {
                out.push(self.ack.clone());
                None
            }
            ("BYE", Stage::Closing, 200..300) => Some(Ok(())),
            ("BYE", Stage::Closing, 300..) => Some(Err(Failure::ByeRefused(status))),
            _ => None,
        }
    }

    /// Does what is due at `wake`: sends again, hangs up or gives up.
    pub(super) fn handle_timeout(&mut self, now: Instant, out: &mut Vec<Vec<u8>>) -> Option<Outcome> {
        if self.stage == Stage::Up {
            self.stage = Stage::Closing;
            self.request = std::mem::take(&mut self.bye);
            self.interval = T1;
            self.give_up_at = now + GIVE_UP;
        } else if now >= self.give_up_at {
            let is_bye = self.stage == Stage::Closing;
            return Some(Err(if is_bye { Failure::ByeUnanswered } else { Failure::InviteUnanswered }));
        } else {
            self.interval *= 2;
            if self.stage == Stage::Closing {
                self.interval = self.interval.min(T2);
            }
        }
        out.push(self.request.clone());
        self.wake = (now + self.interval).min(self.give_up_at);
        None
    }

    /// The 200: makes the dialog, sends the ACK, prepares the BYE.
    fn handle_answer(
        &mut self,
        line: &Line,
        now: Instant,
        response: &Message<'_>,
        out: &mut Vec<Vec<u8>>,
    ) -> Option<Outcome> {
        let to = response.header("To").filter(|to| tag(to).is_some());
        let (Some(to), Some(target)) = (to, response.header("Contact").and_then(uri)) else {
            return Some(Err(Failure::AnswerUnusable));
        };
        let mut routes: Vec<String> = response.headers("Record-Route").flat_map(elements).map(str::to_owned).collect();
        routes.reverse();
        let ack = Request { method: "ACK", transaction: "a", uri: target, routes: &routes, to, cseq: 1 };
        let bye = Request { method: "BYE", transaction: "b", uri: target, routes: &routes, to, cseq: 2 };
        self.ack = line.encode(self.number, &ack, "", "");
        self.bye = line.encode(self.number, &bye, "", "");
        out.push(self.ack.clone());
        self.setup = Some(now - self.began);
        self.stage = Stage::Up;
        self.wake = now + HOLD;
        None
    }
}

/// Whether the response carries our Via and no other.
fn is_via_ours(response: &Message<'_>, branch: &str) -> bool {
    let mut vias = response.headers("Via").flat_map(elements);
    let is_ours = vias.next().is_some_and(|via| {
        via.split(';').any(|param| param.trim().strip_prefix("branch=").is_some_and(|found| found == branch))
    });
    is_ours && vias.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Line {
        Line { proxy: "127.0.0.1:5060".parse().unwrap(), local: "127.0.0.1:6000".parse().unwrap(), seed: 7 }
    }

    fn response(request: &[u8], status: &str, via_before: &str, more: &str) -> Vec<u8> {
        let request = Message::parse(request).unwrap();
        let copy = |name| request.header(name).unwrap();
        format!(
            "SIP/2.0 {status}\r\n{via_before}Via: {}\r\nFrom: {}\r\nTo: {};tag=t\r\nCall-ID: {}\r\nCSeq: {}\r\n{more}\r\n",
            copy("Via"),
            copy("From"),
            copy("To"),
            copy("Call-ID"),
            copy("CSeq")
        )
        .into_bytes()
    }

    fn feed(call: &mut Call, now: Instant, bytes: &[u8], out: &mut Vec<Vec<u8>>) -> Option<Outcome> {
        call.handle_response(&line(), now, &Message::parse(bytes).unwrap(), out)
    }

    fn started() -> (Instant, Vec<Vec<u8>>, Call) {
        let (now, mut out) = (Instant::now(), Vec::new());
        let call = Call::start(&line(), 5, now, &mut out);
        (now, out, call)
    }

    const ANSWER: &str = "Contact: <sip:demo@127.0.0.1:7000>\r\nRecord-Route: <sip:b;lr>, <sip:a;lr>\r\n";

    #[test]
    fn call_follows_the_reversed_route_set_to_the_contact() {
        let (now, mut out, mut call) = started();
        let invite = out.remove(0);
        assert_eq!(line().call_number(Message::parse(&invite).unwrap().header("Call-ID").unwrap()), Some(5));
        assert_eq!(feed(&mut call, now, &response(&invite, "180 Ringing", "", ""), &mut out), None);
        assert_eq!(feed(&mut call, now, &response(&invite, "200 OK", "", ANSWER), &mut out), None);
        assert_eq!(feed(&mut call, now, &response(&invite, "200 OK", "", ANSWER), &mut out), None);
        assert_eq!(out.len(), 2, "each 200 gets its ACK");
        assert_eq!(call.handle_timeout(now + HOLD, &mut out), None);
        for bytes in &out {
            assert!(!bytes.windows(4).any(|four| four == b"tag=t;tag"));
            let request = Message::parse(bytes).unwrap();
            assert_eq!(request.headers("Route").collect::<Vec<_>>(), ["<sip:a;lr>", "<sip:b;lr>"]);
            assert_eq!(tag(request.header("To").unwrap()), Some("t"));
        }
        assert!(out[2].starts_with(b"BYE sip:demo@127.0.0.1:7000 SIP/2.0\r\n"));
        let bye = out[2].clone();
        assert_eq!(feed(&mut call, now, &response(&bye, "200 OK", "", ""), &mut out), Some(Ok(())));
    }

    #[test]
    fn response_with_a_second_via_is_discarded() {
        let (now, mut out, mut call) = started();
        let extra = response(&out[0], "200 OK", "Via: SIP/2.0/UDP 127.0.0.1:5060;branch=z9hG4bKx\r\n", ANSWER);
        assert_eq!(feed(&mut call, now, &extra, &mut out), None);
        let after = response(&out[0], "200 OK", "", &format!("Via: SIP/2.0/UDP x\r\n{ANSWER}"));
        assert_eq!(feed(&mut call, now, &after, &mut out), None);
        assert_eq!((out.len(), call.stage), (1, Stage::Calling));
    }

    #[test]
    fn silence_is_answered_by_retransmission_and_then_failure() {
        let (start, mut out, mut call) = started();
        let mut sent_at = Vec::new();
        let outcome = loop {
            let now = call.wake;
            if let Some(outcome) = call.handle_timeout(now, &mut out) {
                break outcome;
            }
            sent_at.push((now - start).as_millis());
        };
        assert_eq!(sent_at, [500, 1_500, 3_500]);
        assert_eq!(outcome, Err(Failure::InviteUnanswered));
        assert_eq!(call.wake - start, GIVE_UP);
    }

    #[test]
    fn refusal_is_acknowledged_in_its_own_transaction() {
        let (now, mut out, mut call) = started();
        let refusal = response(&out[0], "503 Service Unavailable", "", "");
        assert_eq!(feed(&mut call, now, &refusal, &mut out), Some(Err(Failure::InviteRefused(503))));
        let (invite, ack) = (Message::parse(&out[0]).unwrap(), Message::parse(&out[1]).unwrap());
        assert_eq!(ack.method(), Some("ACK"));
        assert_eq!(ack.header("Via"), invite.header("Via"));
    }

    #[test]
    fn foreign_call_ids_are_not_ours() {
        for call_id in ["", "x", "0000000000000007-5", "0000000000000008-5@h", "7-x@h", "\u{e9}-1@h"] {
            assert_eq!(line().call_number(call_id), None, "{call_id}");
        }
    }
}
