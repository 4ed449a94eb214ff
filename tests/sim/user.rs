//! Who speaks through the nodes: a phone or trunk, and a SIP server. Both call and are called.
//!
//! They do what RFC 3261 asks of a user agent, from the seed: call, challenge, let ring, refuse, cancel, answer although
//! a CANCEL has come, change the session from either side, hang up from either side, register, ask for options. That
//! also after things went wrong: a 2xx that comes after a call was given up is acknowledged and followed by BYE. A
//! crash loses everything; what then comes for an old dialog is answered 481.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::agent::{Act, Agent, Heard, Io, MS, Timer};
use crate::message::Message;

/// What a user is to do.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The first request.
    pub method: &'static str,
    /// Who is called; the service itself where nobody is named.
    pub callee: Option<SocketAddr>,
    /// Cancel so long after it rings.
    pub cancel_after: Option<u64>,
    /// Change the session in the middle.
    pub reinvites: bool,
    /// Hang up so long after the answer.
    pub hold: u64,
    /// Ask the other side to answer; then the call has to succeed.
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

/// An INVITE without final answer.
#[derive(Clone)]
struct Ringing {
    request: Message,
    tag: String,
    /// The answer to come.
    status: u16,
}

/// The user; see the module head.
pub struct User {
    /// Its lower half.
    pub agent: Agent,
    /// Does it run?
    pub is_up: bool,
    /// The calls it began, by Call-ID.
    pub calls: BTreeMap<String, Call>,
    is_server: bool,
    number: usize,
    service: SocketAddr,
    /// By Call-ID.
    ringing: BTreeMap<String, Ringing>,
}

impl User {
    /// Phone `number`, who sends to `service`. The number decides what sort it is: behind a NAT, with or without
    /// `rport`, with compact names.
    pub fn phone(number: usize, address: SocketAddr, service: SocketAddr) -> Self {
        let mut agent = Agent::new(address);
        agent.asks_rport = !number.is_multiple_of(3);
        agent.is_compact = number % 4 == 3;
        if number % 3 == 2 && address.is_ipv4() {
            agent.sent_by = SocketAddr::from(([10, 0, 0, number as u8], 5060));
        }
        User { agent, is_up: true, calls: BTreeMap::new(), is_server: false, number, service, ringing: BTreeMap::new() }
    }

    /// Server `number`, whose requests within dialogs leave from `dialog_address`.
    pub fn server(number: usize, address: SocketAddr, dialog_address: SocketAddr, service: SocketAddr) -> Self {
        let mut agent = Agent::new(address);
        agent.dialog_address = dialog_address;
        User { agent, is_up: true, calls: BTreeMap::new(), is_server: true, number, service, ringing: BTreeMap::new() }
    }

    /// It dies.
    pub fn crash(&mut self) {
        self.is_up = false;
        self.agent.crash();
        self.ringing.clear();
        self.calls.clear();
    }

    /// Can it be called at the address that it writes into its Contact?
    pub fn is_reachable(&self) -> bool {
        self.agent.sent_by == self.agent.address
    }

    /// Begins what is planned.
    pub fn start(&mut self, io: &mut Io<'_>, plan: Plan) {
        let side = if self.is_server { "server" } else { "phone" };
        let call_id = format!("{}@{side}{}", self.agent.draw(io), self.number);
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
            Some(Heard::Request(request)) => self.answer(io, request),
            Some(Heard::Response { sent, response, is_first }) => self.handle_response(io, &sent, &response, is_first),
            None => {}
        }
    }

    /// A timer has fired.
    pub fn handle_timer(&mut self, io: &mut Io<'_>, timer: Timer) {
        if let Timer::Act { call, act } = &timer {
            match act {
                Act::Ring => {
                    if let Some(Ringing { request, tag, .. }) = self.ringing.get(call).cloned() {
                        self.agent.respond(io, &request, 180, &tag, &[]);
                    }
                }
                Act::Final => self.finish(io, call),
                Act::Cancel => drop(self.agent.cancel(io, call)),
                Act::Reinvite => {
                    if self.agent.send_in_dialog(io, call, "INVITE") {
                        self.agent.note(if self.is_server { "re-INVITE of a server" } else { "re-INVITE of a phone" });
                    }
                }
                Act::Bye => self.hang_up(io, call),
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

    fn answer(&mut self, io: &mut Io<'_>, request: Message) {
        let tag = self.agent.draw(io);
        let call_id = request.text("Call-ID");
        let is_known = self.agent.dialogs.contains_key(&call_id);
        match request.method() {
            Some("INVITE") if request.tag_of_to().is_none() => self.ring(io, request, tag),
            Some("INVITE") if is_known => self.consider(io, request, tag),
            Some("CANCEL") => self.give_up(io, &request, &tag),
            Some("BYE") => {
                self.agent.dialogs.remove(&call_id);
                if let Some(call) = self.calls.get_mut(&call_id).filter(|_| is_known) {
                    call.ended = 200;
                }
                self.agent.respond(io, &request, if is_known { 200 } else { 481 }, &tag, &[]);
            }
            Some("REGISTER") if request.get("Authorization").is_none() => {
                self.agent.respond(io, &request, 401, &tag, &[("WWW-Authenticate", "Digest realm=\"s\"")]);
            }
            Some("INVITE") => self.agent.respond(io, &request, 481, &tag, &[]),
            _ => self.agent.respond(io, &request, 200, &tag, &[]),
        }
    }

    /// A call comes in.
    fn ring(&mut self, io: &mut Io<'_>, request: Message, tag: String) {
        let may_challenge = self.is_server && request.get("Authorization").is_none();
        let status = match io.prng.below(20) {
            _ if request.get("X-Sim").is_some() => 200,
            0..13 => 200,
            13..16 => 486,
            16..19 if may_challenge => 407,
            _ => 603,
        };
        self.agent.respond(io, &request, 100, &tag, &[]);
        let call = request.text("Call-ID");
        let ring = io.prng.below(200) * MS;
        let talk = ring + if status == 407 { 0 } else { io.prng.below(4_000) * MS };
        self.ringing.insert(call.clone(), Ringing { request, tag, status });
        if status != 407 {
            io.timers.push((ring, Timer::Act { call: call.clone(), act: Act::Ring }));
        }
        io.timers.push((talk, Timer::Act { call, act: Act::Final }));
    }

    /// The session is to be changed: at once, or after somebody was asked, who may refuse.
    fn consider(&mut self, io: &mut Io<'_>, request: Message, tag: String) {
        if io.prng.below(2) == 0 {
            return self.agent.respond(io, &request, 200, &tag, &[]);
        }
        self.agent.respond(io, &request, 100, &tag, &[]);
        let call = request.text("Call-ID");
        let status = if io.prng.below(3) == 0 { 488 } else { 200 };
        self.ringing.insert(call.clone(), Ringing { request, tag, status });
        io.timers.push((io.prng.below(1_500) * MS, Timer::Act { call, act: Act::Final }));
    }

    fn finish(&mut self, io: &mut Io<'_>, call: &str) {
        let Some(Ringing { request, tag, status }) = self.ringing.remove(call) else { return };
        self.agent.respond(io, &request, status, &tag, &[]);
        if status != 200 || request.get("X-Sim").is_some() || request.tag_of_to().is_some() {
            return;
        }
        if io.prng.below(3) == 0 {
            let after = (500 + io.prng.below(4_000)) * MS;
            io.timers.push((after, Timer::Act { call: call.to_owned(), act: Act::Reinvite }));
        }
        if io.prng.below(3) == 0 {
            let after = (1_000 + io.prng.below(9_000)) * MS;
            io.timers.push((after, Timer::Act { call: call.to_owned(), act: Act::Bye }));
        }
    }

    /// RFC 3261 9.2. Now and then somebody picks up in the same moment, and the INVITE is answered all the same.
    fn give_up(&mut self, io: &mut Io<'_>, cancel: &Message, tag: &str) {
        let call = cancel.text("Call-ID");
        let is_match = self.ringing.get(&call).is_some_and(|ringing| ringing.request.branch() == cancel.branch());
        self.agent.respond(io, cancel, if is_match { 200 } else { 481 }, tag, &[]);
        if !is_match {
            return self.agent.note("CANCEL too late");
        }
        if io.prng.below(4) == 0 {
            self.agent.note("2xx in spite of CANCEL");
            return self.finish(io, &call);
        }
        if let Some(Ringing { request, tag, .. }) = self.ringing.remove(&call) {
            self.agent.respond(io, &request, 487, &tag, &[]);
        }
    }

    fn handle_response(&mut self, io: &mut Io<'_>, sent: &Message, response: &Message, is_first: bool) {
        let call_id = sent.text("Call-ID");
        let status = response.status().unwrap_or_default();
        if sent.tag_of_to().is_some() && sent.method() == Some("INVITE") && status < 200 && io.prng.below(3) == 0 {
            io.timers.push((io.prng.below(800) * MS, Timer::Act { call: call_id.clone(), act: Act::Cancel }));
        }
        let Some(call) = self.calls.get_mut(&call_id) else { return };
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
            // It was given up before: what the other side thinks answered is ended.
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
        if self.agent.send_in_dialog(io, call_id, "BYE") {
            let has_begun = self.calls.contains_key(call_id);
            self.agent.note(match (self.is_server, has_begun) {
                (true, true) => "BYE of the server that called",
                (true, false) => "BYE of the server that was called",
                (false, true) => "BYE of the phone that called",
                (false, false) => "BYE of the phone that was called",
            });
        }
        self.agent.dialogs.remove(call_id);
    }

    /// Sends the first request of a call, or repeats it with credentials.
    fn request(&mut self, io: &mut Io<'_>, call_id: &str, cseq: u32) {
        let Some(call) = self.calls.get(call_id) else { return };
        let (method, number) = (call.plan.method, self.number);
        let host = self.service;
        let uri = match call.plan.callee {
            Some(callee) => format!("sip:user@{callee}"),
            None if method == "REGISTER" => format!("sip:{host}"),
            None => format!("sip:{}@{host}", io.now / MS),
        };
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
