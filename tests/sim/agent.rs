//! What a phone and a server have in common: the transaction and dialog layers of RFC 3261 (sections 12 and 17), over
//! an unreliable network, reduced to what makes them send.
//!
//! Requests are retransmitted until an answer (timers A, B, E, F), final answers to INVITE until their ACK (timer G),
//! other answers on each retransmission. ACKs are made here. What is new to the user above comes back as [`Heard`];
//! what cannot happen behind a correct proxy goes to [`Agent::complaints`].

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tandem::base::prng::Prng;

use crate::message::{Message, param, sent_by, uri, uri_address};

/// A millisecond of virtual time; time is counted in nanoseconds.
pub const MS: u64 = 1_000_000;
/// RFC 3261 17.1.1.1.
const T1: u64 = 500 * MS;
const T2: u64 = 4_000 * MS;

/// What an agent does to the world while it is called.
pub struct Io<'a> {
    /// Virtual time.
    pub now: u64,
    /// The seed's numbers.
    pub prng: &'a mut Prng,
    /// Datagrams to send.
    pub sends: Vec<Datagram>,
    /// Timers to set: how long, and what for.
    pub timers: Vec<(u64, Timer)>,
}

/// A datagram on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Who sends it.
    pub from: SocketAddr,
    /// To whom.
    pub to: SocketAddr,
    /// What.
    pub bytes: Vec<u8>,
}

/// What a timer is for.
#[derive(Clone, Debug)]
pub enum Timer {
    /// A request waits for its answer.
    Client { key: String, interval: u64 },
    /// A final answer to INVITE waits for its ACK.
    Server { key: String, interval: u64, until: u64 },
    /// The user above wants to do something in a call.
    Act { call: String, act: Act },
}

/// What users do of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Give up a call that rings.
    Cancel,
    /// Let it ring.
    Ring,
    /// Give the final answer.
    Final,
    /// Change the session.
    Reinvite,
    /// Hang up.
    Bye,
}

/// What is new to the user above.
#[derive(Debug)]
pub enum Heard {
    /// A request, seen for the first time.
    Request(Message),
    /// A response to a request of ours. `is_first` tells the first final one from its successors.
    Response { sent: Message, response: Message, is_first: bool },
}

/// A request of ours.
#[derive(Clone, Debug)]
struct Client {
    sent: Message,
    from: SocketAddr,
    to: SocketAddr,
    started: u64,
    has_provisional: bool,
    is_final: bool,
    /// The ACK to each 2xx, by To tag.
    acks: BTreeMap<String, Datagram>,
}

/// A request of somebody else.
#[derive(Clone, Debug)]
struct Server {
    request: Message,
    to: SocketAddr,
    last: Option<Vec<u8>>,
    is_acked: bool,
}

/// An established dialog (RFC 3261 12).
#[derive(Clone, Debug)]
pub struct Dialog {
    local: String,
    remote: String,
    remote_target: String,
    routes: Vec<String>,
    cseq: u32,
}

/// One end; see the module head.
pub struct Agent {
    /// Where the network reaches it.
    pub address: SocketAddr,
    /// Where its requests within dialogs leave from: another address for a server with two interfaces.
    pub dialog_address: SocketAddr,
    /// Is there a strict router of RFC 2543 between it and the network, at its own address? That puts itself into
    /// Record-Route without `lr`, and writes the next hop into the Request-URI.
    pub is_strict: bool,
    /// What it writes into Via and Contact: another address behind a NAT.
    pub sent_by: SocketAddr,
    /// Does it ask for `rport`?
    pub asks_rport: bool,
    /// Does it write compact names?
    pub is_compact: bool,
    /// By Call-ID: at most one dialog a call and end.
    pub dialogs: BTreeMap<String, Dialog>,
    /// What a correct proxy would not have done to it.
    pub complaints: Vec<String>,
    /// How often what was seen that a run is about.
    pub noted: BTreeMap<&'static str, u64>,
    clients: BTreeMap<String, Client>,
    servers: BTreeMap<String, Server>,
    drawn: u64,
    has_crashed: bool,
}

impl Agent {
    /// An agent at an address.
    pub fn new(address: SocketAddr) -> Self {
        Agent {
            address,
            dialog_address: address,
            is_strict: false,
            sent_by: address,
            asks_rport: false,
            is_compact: false,
            dialogs: BTreeMap::new(),
            complaints: Vec::new(),
            noted: BTreeMap::new(),
            clients: BTreeMap::new(),
            servers: BTreeMap::new(),
            drawn: 0,
            has_crashed: false,
        }
    }

    /// Forgets everything, as a crash does.
    pub fn crash(&mut self) {
        self.has_crashed = true;
        self.dialogs.clear();
        self.clients.clear();
        self.servers.clear();
    }

    /// Writes down that something was seen.
    pub fn note(&mut self, what: &'static str) {
        *self.noted.entry(what).or_default() += 1;
    }

    /// A text that was never drawn before.
    pub fn draw(&mut self, io: &mut Io<'_>) -> String {
        self.drawn += 1;
        format!("{:x}-{:x}", io.prng.next_u64() >> 24, self.drawn)
    }

    /// Its Contact.
    pub fn contact(&self) -> String {
        format!("<sip:user@{}>", self.sent_by)
    }

    /// Sends a request outside a dialog, under a new branch.
    pub fn send(&mut self, io: &mut Io<'_>, mut request: Message, to: SocketAddr) {
        if self.is_strict && request.method() == Some("INVITE") {
            request.headers.insert(0, ("Record-Route".into(), self.own_route()));
        }
        self.start(io, request, self.address, to);
    }

    /// Cancels the INVITE of a call that has rung and has no final answer (RFC 3261 9.1).
    pub fn cancel(&mut self, io: &mut Io<'_>, call_id: &str) -> bool {
        let is_ringing = |c: &&Client| {
            c.has_provisional && !c.is_final && c.sent.text("Call-ID") == call_id && c.sent.method() == Some("INVITE")
        };
        let Some(invite) = self.clients.values().find(is_ringing).cloned() else { return false };
        if invite.sent.tag_of_to().is_some() {
            self.note("CANCEL within a dialog");
        }
        let cancel = follow(&invite.sent, "CANCEL", invite.sent.get("To").unwrap_or_default());
        self.begin(io, cancel, invite.from, invite.to);
        true
    }

    /// Sends a request within the dialog of a call; `false` when there is none.
    pub fn send_in_dialog(&mut self, io: &mut Io<'_>, call_id: &str, method: &str) -> bool {
        let contact = self.contact();
        let Some(dialog) = self.dialogs.get_mut(call_id) else { return false };
        dialog.cseq += 1;
        let dialog = dialog.clone();
        let Some((request, to)) = self.request_in_dialog(&dialog, call_id, dialog.cseq, method) else { return false };
        self.start(io, request.with("Contact", contact), self.dialog_address, to);
        true
    }

    /// Answers a request; a 2xx to INVITE makes the dialog.
    pub fn respond(&mut self, io: &mut Io<'_>, request: &Message, status: u16, to_tag: &str, extra: &[(&str, &str)]) {
        let key = server_key(request);
        let own_route = self.own_route();
        let Some(server) = self.servers.get_mut(&key) else { return };
        let to = match request.tag_of_to().is_some() || status == 100 {
            true => request.text("To"),
            false => format!("{};tag={to_tag}", request.text("To")),
        };
        let mut response = Message { start: format!("SIP/2.0 {status} Sim"), headers: Vec::new(), body: Vec::new() };
        for (name, value) in &request.headers {
            match name.as_str() {
                "Via" | "From" | "Call-ID" | "CSeq" => response.headers.push((name.clone(), value.clone())),
                "To" => response.headers.push((name.clone(), to.clone())),
                "Record-Route" if status < 300 => response.headers.push((name.clone(), value.clone())),
                _ => {}
            }
        }
        let is_invite = request.method() == Some("INVITE");
        if self.is_strict && is_invite && status < 300 {
            response.headers.insert(0, ("Record-Route".into(), own_route));
        }
        if is_invite && status > 100 && status < 300 {
            response = response.with("Contact", format!("<sip:user@{}>", self.sent_by));
        }
        for (name, value) in extra {
            response = response.with(name, *value);
        }
        let bytes = response.with("Content-Length", "0").encode(self.is_compact);
        server.last = Some(bytes.clone());
        io.sends.push(Datagram { from: self.address, to: server.to, bytes });
        if !is_invite || status < 200 {
            return;
        }
        io.timers.push((T1, Timer::Server { key, interval: T1, until: io.now + 64 * T1 }));
        if status < 300 && request.tag_of_to().is_none() {
            let dialog = Dialog {
                local: to,
                remote: request.text("From"),
                remote_target: uri(&request.text("Contact")).to_owned(),
                routes: request.all("Record-Route").map(str::to_owned).collect(),
                cseq: 100,
            };
            self.dialogs.insert(request.text("Call-ID"), dialog);
        }
    }

    /// A retransmission is due; `Some` is the request that went unanswered for too long.
    pub fn handle_timer(&mut self, io: &mut Io<'_>, timer: Timer) -> Option<Message> {
        match timer {
            Timer::Client { key, interval } => {
                let client = self.clients.get(&key).filter(|client| !client.is_final)?;
                let is_invite = client.sent.method() == Some("INVITE");
                if is_invite && client.has_provisional {
                    return None;
                }
                if io.now >= client.started + 64 * T1 {
                    return Some(client.sent.clone());
                }
                let bytes = client.sent.encode(self.is_compact);
                io.sends.push(Datagram { from: client.from, to: client.to, bytes });
                let interval = if is_invite { interval * 2 } else { (interval * 2).min(T2) };
                let left = (client.started + 64 * T1).saturating_sub(io.now).max(MS);
                io.timers.push((interval.min(left), Timer::Client { key, interval }));
            }
            Timer::Server { key, interval, until } => {
                let server = self.servers.get(&key).filter(|server| !server.is_acked && io.now < until)?;
                let from = self.address;
                io.sends.extend(server.last.clone().map(|bytes| Datagram { from, to: server.to, bytes }));
                let interval = (interval * 2).min(T2);
                io.timers.push((interval, Timer::Server { key, interval, until }));
                self.note("final answer again");
            }
            Timer::Act { .. } => {}
        }
        None
    }

    /// A datagram has come.
    pub fn handle(&mut self, io: &mut Io<'_>, bytes: &[u8]) -> Option<Heard> {
        let message = Message::parse(bytes)?;
        if message.status().is_some() { self.handle_response(io, message) } else { self.handle_request(io, message) }
    }

    fn handle_request(&mut self, io: &mut Io<'_>, request: Message) -> Option<Heard> {
        if request.method() == Some("ACK") {
            let is_for =
                |s: &Server| s.request.text("Call-ID") == request.text("Call-ID") && s.request.cseq() == request.cseq();
            let mut is_again = false;
            for server in self.servers.values_mut().filter(|s| is_for(s)) {
                is_again |= std::mem::replace(&mut server.is_acked, true);
            }
            if is_again {
                self.note("ACK again");
            }
            return None;
        }
        let via = request.text("Via");
        let key = server_key(&request);
        if let Some(known) = self.servers.get(&key) {
            let from = self.address;
            io.sends.extend(known.last.clone().map(|bytes| Datagram { from, to: known.to, bytes }));
            return None;
        }
        let to = sent_by(&via).parse().ok()?;
        self.servers.insert(key, Server { request: request.clone(), to, last: None, is_acked: false });
        Some(Heard::Request(request))
    }

    fn handle_response(&mut self, io: &mut Io<'_>, response: Message) -> Option<Heard> {
        let key = format!("{}|{}", response.branch(), response.cseq_method());
        let status = response.status()?;
        if status == 400 && !self.clients.contains_key(&key) {
            // The answer to a request that was cut short on its way; RFC 3261 18.1.2 lets strays be.
            return None;
        }
        if response.all("Via").count() != 1 || response.sent_by() != self.sent_by.to_string() {
            self.complaints.push(format!("{} got a response that is not for its Via: {response:?}", self.address));
            return None;
        }
        let ack = self.ack(io, &key, &response, status);
        let Some(client) = self.clients.get_mut(&key) else {
            if !self.has_crashed {
                self.complaints.push(format!("{} got a response to nothing it sent: {response:?}", self.address));
            }
            return None;
        };
        client.has_provisional = true;
        let is_first = status >= 200 && !client.is_final;
        client.is_final |= is_first;
        io.sends.extend(ack);
        Some(Heard::Response { sent: client.sent.clone(), response, is_first })
    }

    /// The ACK to a final answer to INVITE; a 2xx makes the dialog first.
    fn ack(&mut self, io: &mut Io<'_>, key: &str, response: &Message, status: u16) -> Option<Datagram> {
        let client = self.clients.get(key).filter(|c| c.sent.method() == Some("INVITE") && status >= 200)?.clone();
        if status >= 300 {
            let ack = follow(&client.sent, "ACK", response.get("To").unwrap_or_default());
            return Some(Datagram { from: client.from, to: client.to, bytes: ack.encode(self.is_compact) });
        }
        let tag = response.tag_of_to().unwrap_or_default().to_owned();
        if let Some(ack) = client.acks.get(&tag) {
            return Some(ack.clone());
        }
        let own_route = self.own_route();
        let dialog = Dialog {
            local: response.text("From"),
            remote: response.text("To"),
            remote_target: uri(&response.text("Contact")).to_owned(),
            routes: response.all("Record-Route").rev().filter(|r| **r != own_route).map(str::to_owned).collect(),
            cseq: client.sent.cseq(),
        };
        let call_id = response.text("Call-ID");
        let dialog = match client.sent.tag_of_to() {
            Some(_) => self.dialogs.get(&call_id).cloned().unwrap_or(dialog),
            None => {
                self.dialogs.insert(call_id.clone(), dialog.clone());
                dialog
            }
        };
        let branch = format!("z9hG4bK{}", self.draw(io));
        let (mut ack, to) = self.request_in_dialog(&dialog, &call_id, response.cseq(), "ACK")?;
        ack.headers.insert(0, ("Via".into(), self.via(&branch)));
        let ready = Datagram { from: self.dialog_address, to, bytes: ack.encode(self.is_compact) };
        self.clients.get_mut(key)?.acks.insert(tag, ready.clone());
        Some(ready)
    }

    /// RFC 3261 12.2.1.1, but for the Via; and where it goes.
    fn request_in_dialog(
        &self,
        dialog: &Dialog,
        call_id: &str,
        cseq: u32,
        method: &str,
    ) -> Option<(Message, SocketAddr)> {
        let to = uri_address(uri(dialog.routes.first().unwrap_or(&dialog.remote_target)))?;
        let mut routes = dialog.routes.clone();
        let mut target = dialog.remote_target.clone();
        if self.is_strict && !routes.is_empty() {
            routes.push(format!("<{target}>"));
            target = uri(&routes.remove(0)).to_owned();
        }
        let mut request = Message::request(method, &target);
        request.headers.extend(routes.into_iter().map(|route| ("Route".to_owned(), route)));
        let request = request
            .with("Max-Forwards", "70")
            .with("From", &dialog.local)
            .with("To", &dialog.remote)
            .with("Call-ID", call_id)
            .with("CSeq", format!("{cseq} {method}"))
            .with("Content-Length", "0");
        Some((request, to))
    }

    /// What a strict router at its address records.
    fn own_route(&self) -> String {
        format!("<sip:{}>", self.sent_by)
    }

    fn via(&self, branch: &str) -> String {
        let rport = if self.asks_rport { ";rport" } else { "" };
        format!("SIP/2.0/UDP {};branch={branch}{rport}", self.sent_by)
    }

    fn start(&mut self, io: &mut Io<'_>, mut request: Message, from: SocketAddr, to: SocketAddr) {
        let branch = format!("z9hG4bK{}", self.draw(io));
        request.headers.insert(0, ("Via".into(), self.via(&branch)));
        self.begin(io, request, from, to);
    }

    /// Begins a client transaction with a request that has its Via.
    fn begin(&mut self, io: &mut Io<'_>, request: Message, from: SocketAddr, to: SocketAddr) {
        let key = format!("{}|{}", request.branch(), request.method().unwrap_or_default());
        io.sends.push(Datagram { from, to, bytes: request.encode(self.is_compact) });
        io.timers.push((T1, Timer::Client { key: key.clone(), interval: T1 }));
        let client = Client {
            sent: request,
            from,
            to,
            started: io.now,
            has_provisional: false,
            is_final: false,
            acks: BTreeMap::new(),
        };
        self.clients.insert(key, client);
    }
}

/// CANCEL, or the ACK to a non-2xx: the INVITE's Via, URI, Route and CSeq number (RFC 3261 9.1, 17.1.1.3).
fn follow(invite: &Message, method: &str, to: &str) -> Message {
    let mut message = Message::request(method, invite.uri());
    for (name, value) in &invite.headers {
        match name.as_str() {
            "Via" | "Route" | "Max-Forwards" | "From" | "Call-ID" => {
                message.headers.push((name.clone(), value.clone()));
            }
            "To" => message.headers.push((name.clone(), to.to_owned())),
            "CSeq" => message.headers.push((name.clone(), format!("{} {method}", invite.cseq()))),
            _ => {}
        }
    }
    message.with("Content-Length", "0")
}

/// What retransmissions of a request share, CANCEL set apart (RFC 3261 17.2.3).
fn server_key(request: &Message) -> String {
    let via = request.text("Via");
    let branch = param(&via, "branch").unwrap_or_default();
    format!("{branch}|{}|{}", sent_by(&via), request.method().unwrap_or_default())
}
