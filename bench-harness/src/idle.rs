//! What connections cost that say nothing: many are opened, held, and then asked whether they still live.
//!
//! ```text
//!   RSS, CPU -> open at a rate -> settle -> RSS, CPU -> hold -> CPU -> one OPTIONS on each -> count answers
//! ```
//!
//! Each connection is a client of its own: TLS sessions are not resumed. One source address has some 28,000 ports, and a
//! proxy limits the connections of one address, so that connections take turns among [`Options::sources`]. An answer counts
//! when it comes on the connection of its question.
//!
//! Memory is the target's resident set, which leaves out what the kernel keeps for sockets. Bound: as many connections as
//! asked for, at most [`Options::opening_max`] of them opening at once. One thread; what a connection costs here is in the
//! report too.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};
use rustls::ClientConfig;

use crate::backend::Backend;
use crate::ledger::Ledger;
use crate::message::{hex, scan, value};
use crate::network::Outlet;
use crate::proc_fs;
use crate::stream::{READ_BYTES, Stream};
use crate::sys::{self, Inbox, Outbox};
use crate::template::decode_call_id;
use crate::transport::Transport;
use crate::web::{self, Kind};

pub use report::Report;

mod report;

/// Connections that have a question open at once.
const ASKED_MAX: usize = 512;
const SETTLE: Duration = Duration::from_secs(1);
/// How often it is looked for what takes too long to open.
const LOOK: Duration = Duration::from_millis(100);
const TURN: Duration = Duration::from_millis(1);
/// The grain of the hold, in which backends answer probes.
const HOLD_TURN: Duration = Duration::from_millis(50);

/// What the target speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Whether over TLS.
    pub is_secure: bool,
    /// Whether over WebSocket.
    pub is_web: bool,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Target {
    /// `tcp`, `tls`, `ws` or `wss`.
    pub fn scheme(&self) -> &'static str {
        match (self.is_web, self.is_secure) {
            (false, false) => "tcp",
            (false, true) => "tls",
            (true, false) => "ws",
            (true, true) => "wss",
        }
    }
}

impl std::str::FromStr for Target {
    type Err = String;

    /// Reads `tls:127.0.0.1:5061`.
    fn from_str(text: &str) -> Result<Target, String> {
        let (scheme, address) = text.split_once(':').ok_or("write tls:ADDRESS:PORT")?;
        let address = address.parse().map_err(|_| format!("`{address}`: an address and a port"))?;
        let (is_web, is_secure) = match scheme {
            "tcp" => (false, false),
            "tls" => (false, true),
            "ws" => (true, false),
            "wss" => (true, true),
            _ => return Err(format!("`{scheme}`: one of tcp, tls, ws, wss")),
        };
        Ok(Target { is_secure, is_web, address })
    }
}

/// What a run does.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who is connected to.
    pub target: Target,
    /// How many connections.
    pub connections: usize,
    /// Addresses that they come from, in turn; empty for the system's choice.
    pub sources: Vec<IpAddr>,
    /// Connections begun a second.
    pub rate: f64,
    /// Connections that are opening at once.
    pub opening_max: usize,
    /// How long they are idle.
    pub hold: Duration,
    /// How long a handshake may take, and an answer.
    pub timeout: Duration,
    /// How a secure target is checked.
    pub tls_client: Option<Arc<ClientConfig>>,
    /// The target's process.
    pub pid: Option<u32>,
    /// Where this process answers OPTIONS as a backend, over UDP.
    pub backend: Option<SocketAddr>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Connecting(Instant),
    /// Waiting for the answer to the WebSocket handshake.
    Upgrading(Instant),
    Idle,
    Asked,
    Answered,
    /// It never was open.
    Refused,
    /// It was open.
    Lost,
}

struct Member {
    stream: Stream,
    stage: Stage,
}

struct Backstage {
    socket: UdpSocket,
    inbox: Inbox,
    outbox: Outbox,
    backend: Backend,
    ledger: Ledger,
}

struct Crowd<'a> {
    options: &'a Options,
    members: Vec<Member>,
    poll: Poll,
    events: Events,
    scratch: Box<[u8]>,
    backstage: Option<Backstage>,
    seed: u32,
    begun: usize,
    opening: usize,
    asked: usize,
    report: Report,
}

/// Opens, holds and asks; reports.
///
/// # Errors
/// When a socket cannot be had, the target's process is gone, or SIGINT or SIGTERM came (see
/// [`sys::catch_stop_signals`]).
pub fn run(options: &Options) -> io::Result<Report> {
    let mut crowd = Crowd::new(options)?;
    let own_before = proc_fs::resident_bytes(std::process::id());
    let before = measure(options)?;
    let clock = Instant::now();
    crowd.open_all()?;
    crowd.report.opening_seconds = clock.elapsed().as_secs_f64();
    let opened = measure(options)?;
    crowd.hold(SETTLE)?;
    let settled = measure(options)?;
    crowd.report.own_bytes = proc_fs::resident_bytes(std::process::id()).saturating_sub(own_before);
    let clock = Instant::now();
    crowd.hold(options.hold)?;
    let idle_seconds = clock.elapsed().as_secs_f64();
    let held = measure(options)?;
    crowd.report.lost_idle = crowd.lost();
    crowd.ask_all()?;
    crowd.report.lost = crowd.lost();
    let report = &mut crowd.report;
    report.idle_seconds = idle_seconds;
    report.measure([before, opened, settled, held]);
    Ok(crowd.report)
}

/// Resident bytes and CPU time of the target.
fn measure(options: &Options) -> io::Result<Option<(u64, Duration)>> {
    options.pid.map(|pid| Ok((proc_fs::resident_bytes(pid), sys::cpu_time(pid)?))).transpose()
}

impl<'a> Crowd<'a> {
    fn new(options: &'a Options) -> io::Result<Crowd<'a>> {
        if options.target.is_secure && options.tls_client.is_none() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "TLS without authorities"));
        }
        let limit = sys::raise_open_files()?;
        if limit < options.connections as u64 + 64 {
            let text = format!("{limit} open files are allowed: too few for {} connections", options.connections);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let backstage = match options.backend {
            Some(address) => Some(Backstage {
                socket: sys::bind(address, 1 << 20)?,
                inbox: Inbox::new(64, 4096),
                outbox: Outbox::new(64, 4096),
                backend: Backend::new(0, address, Transport::Udp),
                // Of no run: every OPTIONS is foreign to it, and answered.
                ledger: Ledger::new(1, 1, 0, 0),
            }),
            None => None,
        };
        Ok(Crowd {
            options,
            members: Vec::with_capacity(options.connections),
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            scratch: vec![0; READ_BYTES].into_boxed_slice(),
            backstage,
            seed: std::process::id() | 1 << 31,
            begun: 0,
            opening: 0,
            asked: 0,
            report: Report::new(options),
        })
    }

    fn open_all(&mut self) -> io::Result<()> {
        let clock = Instant::now();
        let mut looked = clock;
        while self.begun < self.options.connections || self.opening > 0 {
            let due = (clock.elapsed().as_secs_f64() * self.options.rate) as usize + 1;
            let due = due.min(self.options.connections);
            while self.begun < due && self.opening < self.options.opening_max {
                self.open()?;
            }
            self.turn(TURN)?;
            let now = Instant::now();
            if now.duration_since(looked) > LOOK {
                looked = now;
                for index in 0..self.members.len() {
                    if let Stage::Connecting(since) | Stage::Upgrading(since) = self.members[index].stage
                        && now.duration_since(since) > self.options.timeout
                    {
                        self.lose(index);
                    }
                }
            }
        }
        self.report.opened = self.begun - self.report.refused;
        Ok(())
    }

    fn open(&mut self) -> io::Result<()> {
        let (index, options) = (self.members.len(), self.options);
        let source = options.sources.get(index % options.sources.len().max(1)).copied();
        let tls = options.tls_client.as_ref().filter(|_| options.target.is_secure);
        self.begun += 1;
        let mut stream = match Stream::connect(source, options.target.address, tls) {
            Ok(stream) => stream,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                self.report.refused += 1;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        stream.register(self.poll.registry(), Token(index))?;
        self.members.push(Member { stream, stage: Stage::Connecting(Instant::now()) });
        self.opening += 1;
        Ok(())
    }

    fn hold(&mut self, time: Duration) -> io::Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.turn(HOLD_TURN.min(end.saturating_duration_since(Instant::now())))?;
        }
        Ok(())
    }

    fn ask_all(&mut self) -> io::Result<()> {
        let (mut next, mut last) = (0, Instant::now());
        while next < self.members.len() || self.asked > 0 {
            while next < self.members.len() && self.asked < ASKED_MAX {
                if self.members[next].stage == Stage::Idle {
                    self.ask(next)?;
                    last = Instant::now();
                }
                next += 1;
            }
            let asked = self.asked;
            self.turn(TURN)?;
            if self.asked < asked {
                last = Instant::now();
            }
            if last.elapsed() > self.options.timeout {
                break;
            }
        }
        Ok(())
    }

    fn ask(&mut self, index: usize) -> io::Result<()> {
        let target = self.options.target;
        let member = &mut self.members[index];
        let text = question(target, member.stream.local_address()?, self.seed, index);
        if target.is_web {
            member.stream.outbound.put(&web::encode(text.as_bytes(), hex(index as u32)[4..].try_into().expect("four")));
        } else {
            member.stream.outbound.put(text.as_bytes());
        }
        member.stream.flush();
        member.stage = Stage::Asked;
        self.asked += 1;
        self.report.asked += 1;
        Ok(())
    }

    /// Waits at most `timeout` for something, and handles it.
    fn turn(&mut self, timeout: Duration) -> io::Result<()> {
        if sys::stop_requested() {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "stopped by a signal"));
        }
        if let Some(Backstage { socket, inbox, outbox, backend, ledger }) = &mut self.backstage {
            for at in 0..inbox.receive(socket, false)? {
                let (message, from) = inbox.message(at);
                backend.receive(ledger, message, &mut Outlet::Datagrams(outbox, &from));
            }
            outbox.flush(socket);
        }
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            other => other?,
        }
        let events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        for event in &events {
            let Token(index) = event.token();
            self.members[index].stream.handle_event(event);
            self.advance(index);
        }
        self.events = events;
        Ok(())
    }

    /// Reads all there is on a connection, and does what comes next on it.
    fn advance(&mut self, index: usize) {
        let target = self.options.target;
        loop {
            let member = &mut self.members[index];
            let has_received = member.stream.receive(&mut self.scratch);
            if let Stage::Connecting(since) = member.stage
                && member.stream.is_ready()
            {
                if target.is_web {
                    member.stream.outbound.put(web::upgrade_request(&target.address.to_string()).as_bytes());
                    member.stage = Stage::Upgrading(since);
                } else {
                    member.stage = Stage::Idle;
                    self.opening -= 1;
                }
            }
            member.stream.flush();
            if has_received && !member.stream.is_lost() {
                self.take_answers(index);
            }
            let member = &mut self.members[index];
            if member.stream.is_lost() {
                return self.lose(index);
            }
            if !member.stream.is_readable() {
                break;
            }
        }
        if matches!(self.members[index].stage, Stage::Idle | Stage::Answered) {
            self.members[index].stream.shrink();
        }
    }

    fn take_answers(&mut self, index: usize) {
        let Crowd { members, options, opening, asked, report, seed, .. } = self;
        let Member { stream, stage } = &mut members[index];
        if let Stage::Upgrading(_) = stage {
            match web::decode_upgrade(stream.inbound.unread()) {
                Some((len, true)) => {
                    stream.inbound.consume(len);
                    *stage = Stage::Idle;
                    *opening -= 1;
                }
                Some((_, false)) => return stream.lose(),
                None => return,
            }
        }
        let mut note = |message: &[u8]| {
            let answer = scan(message);
            let status = answer.as_ref().and_then(|answer| answer.status()).unwrap_or(0);
            let key = answer.and_then(|answer| decode_call_id(value(answer.call_id), *seed));
            match (*stage, key) {
                (Stage::Asked, Some(key)) if key.slot as usize == index && status >= 200 => {
                    *stage = Stage::Answered;
                    *asked -= 1;
                    report.note_answer(status);
                }
                (Stage::Asked, Some(key)) if key.slot as usize == index && status >= 100 => {}
                _ => report.unexpected += 1,
            }
        };
        if options.target.is_web {
            while let Some((kind, start, end)) = web::decode(stream.inbound.unread()) {
                match kind {
                    Kind::Message => note(&stream.inbound.unread()[start..end]),
                    Kind::Close => return stream.lose(),
                    Kind::Other => {}
                }
                stream.inbound.consume(end);
            }
            return;
        }
        loop {
            match stream.inbound.next_message() {
                Ok(Some(message)) => note(message),
                Ok(None) => break,
                Err(_) => return stream.lose(),
            }
        }
    }

    fn lose(&mut self, index: usize) {
        let member = &mut self.members[index];
        let stage = member.stage;
        member.stage = Stage::Lost;
        match stage {
            Stage::Connecting(_) | Stage::Upgrading(_) => {
                member.stage = Stage::Refused;
                self.opening -= 1;
                self.report.refused += 1;
            }
            Stage::Asked => self.asked -= 1,
            Stage::Idle | Stage::Answered | Stage::Lost => {}
            Stage::Refused => member.stage = Stage::Refused,
        }
        member.stream.lose();
        member.stream.shrink();
    }

    fn lost(&self) -> usize {
        self.members.iter().filter(|member| member.stage == Stage::Lost).count()
    }
}

/// The OPTIONS of connection number `index`.
fn question(target: Target, local: SocketAddr, seed: u32, index: usize) -> String {
    let text = |number: u32| String::from_utf8_lossy(&hex(number)).into_owned();
    let (seed, number, call) = (text(seed), text(index as u32), text(index as u32 + 1));
    let (address, scheme) = (target.address, target.scheme());
    format!(
        "OPTIONS sip:{address};transport={scheme} SIP/2.0\r\n\
         Via: SIP/2.0/{} {local};rport;branch=z9hG4bK{seed}{call}4\r\nMax-Forwards: 70\r\n\
         From: <sip:alice@{local}>;tag={call}{seed}\r\nTo: <sip:{address}>\r\n\
         Call-ID: {seed}-{call}-{number}@{}\r\nCSeq: 1 OPTIONS\r\n\
         Contact: <sip:alice@{local};transport={scheme}>\r\nAccept: application/sdp\r\nUser-Agent: sipbench\r\n\
         Content-Length: 0\r\n\r\n",
        scheme.to_ascii_uppercase(),
        local.ip()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_is_read_or_refused_with_a_reason() {
        let target: Target = "wss:127.0.0.1:5061".parse().expect("right");
        assert_eq!((target.scheme(), target.address.port()), ("wss", 5061));
        for wrong in ["127.0.0.1:5061", "udp:127.0.0.1:5061", "tls:host", ""] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn question_is_whole_and_names_its_connection() {
        let target = "tls:127.0.0.1:5061".parse().expect("right");
        let text = question(target, "127.0.0.2:40000".parse().expect("address"), 7, 20);
        let found = scan(text.as_bytes()).expect("whole");
        assert_eq!(decode_call_id(value(found.call_id), 7).map(|key| key.slot), Some(20));
        assert!(text.contains("Via: SIP/2.0/TLS 127.0.0.2:40000;"), "{text}");
    }
}
