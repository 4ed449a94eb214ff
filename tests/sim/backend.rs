//! A SIP server: it answers, challenges, lets ring, refuses, changes sessions and hangs up, all from the seed.
//!
//! A crash loses everything it knew; what then comes for an old dialog is answered 481.

use std::collections::BTreeMap;

use crate::agent::{Act, Agent, Heard, Io, MS, Timer};
use crate::message::Message;

/// The server; see the module head.
pub struct Backend {
    /// Its lower half.
    pub agent: Agent,
    /// Does it run?
    pub is_up: bool,
    /// INVITEs without final answer, by Call-ID: the request, our tag, the answer to come.
    ringing: BTreeMap<String, (Message, String, u16)>,
}

impl Backend {
    /// A server that runs.
    pub fn new(agent: Agent) -> Self {
        Backend { agent, is_up: true, ringing: BTreeMap::new() }
    }

    /// It dies.
    pub fn crash(&mut self) {
        self.is_up = false;
        self.agent.crash();
        self.ringing.clear();
    }

    /// A datagram has come.
    pub fn handle(&mut self, io: &mut Io<'_>, bytes: &[u8]) {
        if let Some(Heard::Request(request)) = self.agent.handle(io, bytes) {
            let tag = self.agent.draw(io);
            match request.method() {
                Some("INVITE") if request.tag_of_to().is_none() => self.invite(io, request, tag),
                Some("CANCEL") => self.cancel(io, &request, &tag),
                Some("BYE") => {
                    let is_known = self.agent.dialogs.remove(&request.text("Call-ID")).is_some();
                    self.agent.respond(io, &request, if is_known { 200 } else { 481 }, &tag, &[]);
                }
                Some("INVITE") => {
                    let is_known = self.agent.dialogs.contains_key(&request.text("Call-ID"));
                    self.agent.respond(io, &request, if is_known { 200 } else { 481 }, &tag, &[]);
                }
                Some("REGISTER") if request.get("Authorization").is_none() => {
                    self.agent.respond(io, &request, 401, &tag, &[("WWW-Authenticate", "Digest realm=\"s\"")]);
                }
                _ => self.agent.respond(io, &request, 200, &tag, &[]),
            }
        }
    }

    /// A timer has fired.
    pub fn handle_timer(&mut self, io: &mut Io<'_>, timer: Timer) {
        if let Timer::Act { call, act } = &timer {
            match act {
                Act::Ring => {
                    if let Some((request, tag, _)) = self.ringing.get(call).cloned() {
                        self.agent.respond(io, &request, 180, &tag, &[]);
                    }
                }
                Act::Final => self.finish(io, call),
                Act::Reinvite => drop(self.agent.send_in_dialog(io, call, "INVITE")),
                Act::Bye => {
                    self.agent.send_in_dialog(io, call, "BYE");
                    self.agent.dialogs.remove(call);
                }
                Act::Cancel => {}
            }
        }
        self.agent.handle_timer(io, timer);
    }

    fn invite(&mut self, io: &mut Io<'_>, request: Message, tag: String) {
        let must_answer = request.get("X-Sim").is_some();
        let status = match io.prng.below(20) {
            _ if must_answer => 200,
            0..13 => 200,
            13..16 => 486,
            16..19 if request.get("Authorization").is_none() => 407,
            _ => 603,
        };
        self.agent.respond(io, &request, 100, &tag, &[]);
        let call = request.text("Call-ID");
        let ring = io.prng.below(200) * MS;
        let talk = ring + if status == 407 { 0 } else { io.prng.below(4_000) * MS };
        self.ringing.insert(call.clone(), (request, tag, status));
        if status != 407 {
            io.timers.push((ring, Timer::Act { call: call.clone(), act: Act::Ring }));
        }
        io.timers.push((talk, Timer::Act { call, act: Act::Final }));
    }

    fn finish(&mut self, io: &mut Io<'_>, call: &str) {
        let Some((request, tag, status)) = self.ringing.remove(call) else { return };
        self.agent.respond(io, &request, status, &tag, &[]);
        if status != 200 || request.get("X-Sim").is_some() {
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

    /// RFC 3261 9.2.
    fn cancel(&mut self, io: &mut Io<'_>, cancel: &Message, tag: &str) {
        let call = cancel.text("Call-ID");
        let is_match = self.ringing.get(&call).is_some_and(|(invite, _, _)| invite.branch() == cancel.branch());
        self.agent.respond(io, cancel, if is_match { 200 } else { 481 }, tag, &[]);
        if is_match && let Some((invite, tag, _)) = self.ringing.remove(&call) {
            self.agent.respond(io, &invite, 487, &tag, &[]);
        }
    }
}
