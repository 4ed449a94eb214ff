//! A phone or trunk: it calls, cancels, talks, changes sessions, hangs up, registers, asks for options.
//!
//! It does what RFC 3261 asks of a user agent, also after things went wrong: a 2xx that comes after it gave up is
//! acknowledged and followed by BYE. It remembers how each call ended, which the liveness check reads.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::agent::{Act, Agent, Heard, Io, MS, Timer};
use crate::message::Message;

/// What a caller is to do.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The first request.
    pub method: &'static str,
    /// Cancel so long after it rings.
    pub cancel_after: Option<u64>,
    /// Change the session in the middle.
    pub reinvites: bool,
    /// Hang up so long after the answer.
    pub hold: u64,
    /// Ask the server to answer; then the call has to succeed.
    pub must_succeed: bool,
}

/// How far a call got.
#[derive(Clone, Debug)]
pub struct Call {
    /// What was planned.
    pub plan: Plan,
    /// The first final answer that is no challenge; 0 while there is none, 408 when none came.
    pub status: u16,
    /// The answer to its BYE, whoever sent it; 0 while there is none.
    pub ended: u16,
    from_tag: String,
    body: Vec<u8>,
}

/// The caller; see the module head.
pub struct Caller {
    /// Its lower half.
    pub agent: Agent,
    /// Its calls, by Call-ID.
    pub calls: BTreeMap<String, Call>,
    service: SocketAddr,
    number: usize,
}

impl Caller {
    /// Caller `number`, who sends to `service`. The number decides what sort it is: behind a NAT, with or without
    /// `rport`, with compact names.
    pub fn new(number: usize, address: SocketAddr, service: SocketAddr) -> Self {
        let mut agent = Agent::new(address);
        agent.asks_rport = !number.is_multiple_of(3);
        agent.is_compact = number % 4 == 3;
        if number % 3 == 2 && address.is_ipv4() {
            agent.sent_by = SocketAddr::from(([10, 0, 0, number as u8], 5060));
        }
        Caller { agent, calls: BTreeMap::new(), service, number }
    }

    /// Begins what is planned.
    pub fn start(&mut self, io: &mut Io<'_>, plan: Plan) {
        let call_id = format!("{}@caller{}", self.agent.draw(io), self.number);
        let from_tag = self.agent.draw(io);
        let body = match plan.method {
            "INVITE" | "MESSAGE" => (0..io.prng.below(900)).map(|i| b"v=0 o=- s=x\r\n"[i as usize % 13]).collect(),
            _ => Vec::new(),
        };
        let call = Call { plan, status: 0, ended: 0, from_tag, body };
        self.calls.insert(call_id.clone(), call);
        self.request(io, &call_id, 1);
    }

    /// A datagram has come.
    pub fn handle(&mut self, io: &mut Io<'_>, bytes: &[u8]) {
        match self.agent.handle(io, bytes) {
            Some(Heard::Request(request)) => self.answer(io, &request),
            Some(Heard::Response { sent, response, is_first }) => self.handle_response(io, &sent, &response, is_first),
            None => {}
        }
    }

    /// A timer has fired.
    pub fn handle_timer(&mut self, io: &mut Io<'_>, timer: Timer) {
        if let Timer::Act { call, act } = &timer {
            match act {
                Act::Cancel => drop(self.agent.cancel(io, call)),
                Act::Reinvite => drop(self.agent.send_in_dialog(io, call, "INVITE")),
                Act::Bye => self.hang_up(io, call),
                Act::Ring | Act::Final => {}
            }
        }
        if let Some(unanswered) = self.agent.handle_timer(io, timer)
            && let Some(call) = self.calls.get_mut(&unanswered.text("Call-ID"))
        {
            match unanswered.method() {
                Some("BYE") => call.ended = 408,
                _ if unanswered.tag_of_to().is_none() && call.status == 0 => call.status = 408,
                _ => {}
            }
        }
    }

    fn handle_response(&mut self, io: &mut Io<'_>, sent: &Message, response: &Message, is_first: bool) {
        let call_id = sent.text("Call-ID");
        let Some(call) = self.calls.get_mut(&call_id) else { return };
        let status = response.status().unwrap_or_default();
        let is_start = sent.tag_of_to().is_none() && sent.method() == Some(call.plan.method);
        if sent.method() == Some("BYE") && is_first {
            call.ended = status;
        }
        if !is_start {
            return;
        }
        match status {
            ..200 => {
                if let Some(after) = call.plan.cancel_after.take() {
                    io.timers.push((after, Timer::Act { call: call_id, act: Act::Cancel }));
                }
            }
            401 | 407 if is_first && sent.cseq() == 1 => self.request(io, &call_id, 2),
            // It was given up before: what the server thinks answered is ended.
            200..300 if call.plan.method == "INVITE" && call.status >= 300 => self.hang_up(io, &call_id),
            _ if is_first => {
                call.status = status;
                if call.plan.method == "INVITE" && status < 300 {
                    io.timers.push((call.plan.hold, Timer::Act { call: call_id.clone(), act: Act::Bye }));
                    if call.plan.reinvites {
                        io.timers.push((call.plan.hold / 2, Timer::Act { call: call_id, act: Act::Reinvite }));
                    }
                }
            }
            _ => {}
        }
    }

    fn hang_up(&mut self, io: &mut Io<'_>, call_id: &str) {
        self.agent.send_in_dialog(io, call_id, "BYE");
        self.agent.dialogs.remove(call_id);
    }

    /// The called side of a dialog: BYE and re-INVITE from the server.
    fn answer(&mut self, io: &mut Io<'_>, request: &Message) {
        let call_id = request.text("Call-ID");
        let is_known = self.agent.dialogs.contains_key(&call_id);
        let status = match request.method() {
            Some("BYE" | "INVITE") if request.tag_of_to().is_some() && is_known => 200,
            Some("OPTIONS") => 200,
            _ => 481,
        };
        if request.method() == Some("BYE") && is_known {
            self.agent.dialogs.remove(&call_id);
            if let Some(call) = self.calls.get_mut(&call_id) {
                call.ended = 200;
            }
        }
        let tag = self.agent.draw(io);
        self.agent.respond(io, request, status, &tag, &[]);
    }

    /// Sends the first request of a call, or repeats it with credentials.
    fn request(&mut self, io: &mut Io<'_>, call_id: &str, cseq: u32) {
        let Some(call) = self.calls.get(call_id) else { return };
        let (method, number) = (call.plan.method, self.number);
        let host = self.service;
        let uri = if method == "REGISTER" { format!("sip:{host}") } else { format!("sip:{}@{host}", io.now / MS) };
        let mut request = Message::request(method, &uri)
            .with("From", format!("<sip:u{number}@{host}>;tag={}", call.from_tag))
            .with("To", if method == "REGISTER" { format!("<sip:u{number}@{host}>") } else { format!("<{uri}>") })
            .with("Call-ID", call_id)
            .with("CSeq", format!("{cseq} {method}"))
            .with("Contact", self.agent.contact())
            .with("X-Filler", "a, b; c=\"d\" <e>");
        if number % 5 != 4 {
            request = request.with("Max-Forwards", "70");
        }
        if cseq > 1 {
            request = request.with("Authorization", "Digest username=\"u\", response=\"0\"");
        }
        if call.plan.must_succeed {
            request = request.with("X-Sim", "answer");
        }
        if number % 7 != 6 {
            request = request.with("Content-Length", call.body.len().to_string());
        }
        request.body = call.body.clone();
        self.agent.send(io, request, self.service);
    }
}
