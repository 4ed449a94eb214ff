//! One connection: its layers (PROXY header, TLS, WebSocket), its stage, its buffers, its deadline.
//!
//! ```text
//!   accepted:  [Proxy] --> [Handshake] --> Open --> Draining --> gone
//!   opened:    Connecting --> [Handshake] --> Open --> ...            messages wait until it is open
//!
//!   bytes --> TLS --> WebSocket --> input --> Inbox
//!   message --> WebSocket --> TLS --> output --> ring
//! ```
//!
//! Invariants: `input` and `output` are empty and hold no memory when nothing is under way; nothing is read from a
//! connection that drains; a deadline exists in every stage.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use super::inbox::{Framing, Inbox};
use super::link::Target;
use super::policy::{Acceptance, StreamPolicy};
use super::{Undelivered, show};
use crate::base::id::FlowId;
use crate::metrics::Reason;
use crate::route::snapshot::ListenerIndex;
use crate::route::verdict::Hop;
use crate::shell::proxy_protocol;
use crate::shell::tls::{Received, TlsSession};
use crate::shell::web_socket::{WebSocket, WebSocketLimits, WsProgress};
use crate::sip::frame::Framer;

/// Ticks that a draining connection waits for its peer.
const DRAIN: u32 = 10;

/// What a WebSocket is told at an end that the peer did not ask for (RFC 6455 7.4.1).
const GOING_AWAY: u16 = 1001;

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It is being opened.
    Connecting,
    /// A PROXY header must come first.
    Proxy,
    /// TLS or WebSocket is being agreed on.
    Handshake,
    /// Messages come and go.
    Open,
    /// What is queued is written, then it ends; what comes is not read.
    Draining,
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The peer closed it.
    Peer,
    /// An error of the network, or of TLS or WebSocket.
    Broken,
    /// The peer broke a rule and is told so.
    Refused,
    /// A deadline passed.
    Timeout,
}

/// What lies between the bytes of a connection and its messages.
enum Layers {
    Plain,
    Tls(Box<TlsSession>),
    Web(Box<WebSocket>),
    WebTls(Box<(TlsSession, WebSocket)>),
}

/// Messages that wait until a connection is open.
#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

/// See the module head.
pub(super) struct Connection {
    pub(super) id: FlowId,
    pub(super) stream: OwnedFd,
    pub(super) peer: SocketAddr,
    pub(super) listener: ListenerIndex,
    /// Whose connections it counts among: a front end's until its PROXY header has come; none's when opened from here.
    pub(super) source: Option<IpAddr>,
    /// It is not closed for being idle: a link to a backend.
    is_kept: bool,
    /// The client that alone it was opened for.
    client: Option<SocketAddr>,
    /// Its peer is reached on it by others too (RFC 5923).
    pub(super) has_alias: bool,
    pub(super) stage: Stage,
    layers: Layers,
    pub(super) framer: Framer,
    pub(super) input: Vec<u8>,
    pub(super) output: Vec<u8>,
    waiting: Option<Box<Waiting>>,
    /// A write, or a wait for room, is under way.
    pub(super) is_writing: bool,
    /// A wait for room is: its peer has not taken all that it was offered.
    pub(super) is_blocked: bool,
    /// Bytes that the write under way was given.
    pub(super) in_flight: usize,
    /// It is in the list of those with something to write.
    pub(super) is_dirty: bool,
    stage_since: u32,
    pub(super) last_active: u32,
    /// Since when a message has been coming.
    pub(super) input_since: Option<u32>,
    /// Since when the peer has not taken what is queued.
    pub(super) output_since: Option<u32>,
}

impl Connection {
    /// A connection that a peer opened; `None` when TLS cannot begin.
    pub(super) fn accepted(
        id: FlowId,
        stream: OwnedFd,
        listener: ListenerIndex,
        peer: SocketAddr,
        acceptance: &Acceptance,
        policy: &StreamPolicy,
        now: u32,
    ) -> Option<Self> {
        let tls = match &acceptance.tls {
            Some(config) => Some(TlsSession::accept(config.clone()).ok()?),
            None => None,
        };
        let limits = WebSocketLimits { message_bytes_max: policy.message_bytes_max };
        let web = || WebSocket::accept(limits, acceptance.origins.clone());
        let layers = match (tls, acceptance.transport.is_web_socket()) {
            (None, false) => Layers::Plain,
            (Some(tls), false) => Layers::Tls(Box::new(tls)),
            (None, true) => Layers::Web(Box::new(web())),
            (Some(tls), true) => Layers::WebTls(Box::new((tls, web()))),
        };
        let mut this = Self::new(id, stream, listener, peer, layers, policy, now);
        this.source = Some(peer.ip());
        this.stage = if acceptance.is_proxy(peer.ip()) { Stage::Proxy } else { this.first_stage() };
        Some(this)
    }

    /// A connection that is being opened to a target; `tls` where it is to be secure. `is_kept`: however idle.
    #[allow(clippy::too_many_arguments, reason = "what a connection is made of, named at the only call")]
    pub(super) fn opened(
        id: FlowId,
        stream: OwnedFd,
        listener: ListenerIndex,
        target: Target,
        tls: Option<TlsSession>,
        is_kept: bool,
        policy: &StreamPolicy,
        now: u32,
    ) -> Self {
        let layers = tls.map_or(Layers::Plain, |tls| Layers::Tls(Box::new(tls)));
        let mut this = Self::new(id, stream, listener, target.address, layers, policy, now);
        this.is_kept = is_kept;
        this.client = target.client;
        this
    }

    fn new(
        id: FlowId,
        stream: OwnedFd,
        listener: ListenerIndex,
        peer: SocketAddr,
        layers: Layers,
        policy: &StreamPolicy,
        now: u32,
    ) -> Self {
        Connection {
            id,
            stream,
            peer,
            listener,
            source: None,
            is_kept: false,
            client: None,
            has_alias: false,
            stage: Stage::Connecting,
            layers,
            framer: Framer::new(policy.message_bytes_max),
            input: Vec::new(),
            output: Vec::new(),
            waiting: None,
            is_writing: false,
            is_blocked: false,
            in_flight: 0,
            is_dirty: false,
            stage_since: now,
            last_active: now,
            input_since: None,
            output_since: None,
        }
    }

    /// Takes what has come. `spare` is a buffer to use; what is not used stays in it.
    ///
    /// # Errors
    ///
    /// How the connection has to end.
    pub(super) fn receive(&mut self, bytes: &[u8], spare: &mut Vec<u8>) -> Result<Option<Inbox>, Ending> {
        let mut input = std::mem::take(&mut self.input);
        if input.capacity() == 0 {
            input = std::mem::take(spare);
        }
        if self.stage == Stage::Proxy {
            input.extend_from_slice(bytes);
            return match proxy_protocol::parse(&input) {
                Ok(None) => {
                    self.input = input;
                    Ok(None)
                }
                Ok(Some((len, source))) => {
                    self.peer = source.unwrap_or(self.peer);
                    self.stage = self.first_stage();
                    self.stage_since = self.last_active;
                    let rest = input.split_off(len);
                    *spare = input;
                    spare.clear();
                    self.receive(&rest, spare)
                }
                Err(error) => {
                    tracing::debug!(peer = show(self.peer), ?error, "no PROXY header where one must be");
                    Err(Ending::Refused)
                }
            };
        }
        if self.stage == Stage::Draining {
            *spare = input;
            return Ok(None);
        }
        let mut ends = Vec::new();
        let has_ended = match self.decode(bytes, &mut input, &mut ends) {
            Ok(has_ended) => has_ended,
            Err(ending) => {
                *spare = input;
                return Err(ending);
            }
        };
        if self.stage == Stage::Handshake && !self.is_handshaking() {
            self.stage = Stage::Open;
            self.stage_since = self.last_active;
        }
        let framing = match &self.layers {
            Layers::Plain | Layers::Tls(_) => Framing::Stream(self.framer),
            Layers::Web(_) | Layers::WebTls(_) => Framing::Frames(ends),
        };
        if input.is_empty() && !has_ended {
            *spare = input;
            return Ok(None);
        }
        let (id, listener, peer) = (self.id, self.listener, self.peer);
        Ok(Some(Inbox {
            id,
            listener,
            peer,
            bytes: input,
            at: 0,
            framing,
            frame: 0,
            pings: 0,
            is_broken: false,
            has_ended,
        }))
    }

    /// Takes bytes through the layers; says whether the peer has said goodbye.
    fn decode(&mut self, bytes: &[u8], input: &mut Vec<u8>, ends: &mut Vec<usize>) -> Result<bool, Ending> {
        let refused = |what: &'static str, peer: SocketAddr| {
            move |error: &dyn std::fmt::Display| {
                tracing::debug!(peer = show(peer), %error, what);
                Ending::Refused
            }
        };
        match &mut self.layers {
            Layers::Plain => {
                input.extend_from_slice(bytes);
                Ok(false)
            }
            Layers::Tls(tls) => {
                let result = tls.receive(bytes, input);
                tls.take_output(&mut self.output);
                result
                    .map(|received| received == Received::Closed)
                    .map_err(|error| refused("TLS failed", self.peer)(&error))
            }
            Layers::Web(web) => {
                let result = web.receive(bytes, &mut |message| {
                    input.extend_from_slice(message);
                    ends.push(input.len());
                });
                web.take_output(&mut self.output);
                result
                    .map(|progress| progress == WsProgress::Closed)
                    .map_err(|error| refused("WebSocket failed", self.peer)(&error))
            }
            Layers::WebTls(both) => {
                let (tls, web) = &mut **both;
                let mut plain = Vec::new();
                let result = tls.receive(bytes, &mut plain);
                let mut answer = Vec::new();
                let progress = web.receive(&plain, &mut |message| {
                    input.extend_from_slice(message);
                    ends.push(input.len());
                });
                web.take_output(&mut answer);
                if !answer.is_empty() {
                    tls.send(&answer).map_err(|error| refused("TLS failed", self.peer)(&error))?;
                }
                tls.take_output(&mut self.output);
                let received = result.map_err(|error| refused("TLS failed", self.peer)(&error))?;
                let progress = progress.map_err(|error| refused("WebSocket failed", self.peer)(&error))?;
                Ok(received == Received::Closed || progress == WsProgress::Closed)
            }
        }
    }

    /// The connection stands: TLS begins, or what waits is sent.
    pub(super) fn handle_connected(&mut self, proxy_header: &[u8], now: u32) {
        self.output.extend_from_slice(proxy_header);
        self.stage = self.first_stage();
        (self.stage_since, self.last_active) = (now, now);
        if let Layers::Tls(tls) = &mut self.layers {
            tls.take_output(&mut self.output);
        }
    }

    /// Sends what has waited until the connection was open.
    pub(super) fn send_waiting(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            let mut start = 0;
            for end in &waiting.ends {
                self.encode(&waiting.bytes[start..*end]);
                start = *end;
            }
        }
    }

    /// Queues a message, or lets it wait until the connection is open. `spare` is a buffer to use; gives it back when it
    /// was not needed.
    pub(super) fn queue_message(&mut self, message: &[u8], spare: Vec<u8>, now: u32) -> Vec<u8> {
        if self.stage != Stage::Open {
            let waiting = self.waiting.get_or_insert_default();
            waiting.bytes.extend_from_slice(message);
            waiting.ends.push(waiting.bytes.len());
            return spare;
        }
        let unused = if self.output.capacity() == 0 { std::mem::replace(&mut self.output, spare) } else { spare };
        self.encode(message);
        self.output_since.get_or_insert(now);
        unused
    }

    /// Queues bytes that are no message: an answer to a ping.
    pub(super) fn queue_raw(&mut self, bytes: &[u8]) {
        self.encode(bytes);
    }

    fn encode(&mut self, message: &[u8]) {
        // What cannot be encoded has no one to be sent to: the layer has failed and the connection is about to end.
        match &mut self.layers {
            Layers::Plain => self.output.extend_from_slice(message),
            Layers::Tls(tls) => {
                let _ = tls.send(message);
                tls.take_output(&mut self.output);
            }
            Layers::Web(web) => {
                let _ = web.send(message);
                web.take_output(&mut self.output);
            }
            Layers::WebTls(both) => {
                let (tls, web) = &mut **both;
                let mut framed = Vec::with_capacity(message.len() + 16);
                let _ = web.send(message);
                web.take_output(&mut framed);
                let _ = tls.send(&framed);
                tls.take_output(&mut self.output);
            }
        }
    }

    /// Queues what TLS and WebSocket say at an end.
    pub(super) fn say_goodbye(&mut self) {
        match &mut self.layers {
            Layers::Plain => {}
            Layers::Tls(tls) => {
                tls.close();
                tls.take_output(&mut self.output);
            }
            Layers::Web(web) => {
                web.close(GOING_AWAY);
                web.take_output(&mut self.output);
            }
            Layers::WebTls(both) => {
                let (tls, web) = &mut **both;
                let mut last = Vec::new();
                web.close(GOING_AWAY);
                web.take_output(&mut last);
                let _ = tls.send(&last);
                tls.close();
                tls.take_output(&mut self.output);
            }
        }
    }

    /// From here on only what is queued is written. Gives back the stage it was in.
    pub(super) fn retire(&mut self, now: u32) -> Stage {
        if self.stage != Stage::Draining {
            self.stage_since = now;
        }
        std::mem::replace(&mut self.stage, Stage::Draining)
    }

    /// Reports what waited until the connection was open.
    pub(super) fn fail_waiting(&mut self, undelivered: &mut VecDeque<Undelivered>) {
        if let Some(waiting) = self.waiting.take() {
            let (listener, transport, destination) = (self.listener, self.id.transport(), self.peer);
            let hop = Hop { listener, transport, destination, flow: None, client: self.client, may_connect: true };
            let mut start = 0;
            for end in waiting.ends {
                let bytes = waiting.bytes[start..end].to_vec();
                undelivered.push_back(Undelivered { hop, bytes, reason: Reason::ConnectFailed });
                start = end;
            }
        }
    }

    /// Has its peer begun what it has not finished: a message, a frame, a record?
    pub(super) fn is_mid_message(&self) -> bool {
        match &self.layers {
            Layers::Plain => self.framer.is_mid_message(),
            Layers::Tls(tls) => tls.is_mid_record() || self.framer.is_mid_message(),
            Layers::Web(web) => web.is_mid_message(),
            Layers::WebTls(both) => both.0.is_mid_record() || both.1.is_mid_message(),
        }
    }

    /// What it was opened to, if it was.
    pub(super) fn target(&self) -> Target {
        Target { transport: self.id.transport(), address: self.peer, client: self.client }
    }

    /// May its peer ask to be reached on it: has it shown a certificate that we believe, and not asked yet?
    pub(super) fn may_have_alias(&self) -> bool {
        let is_verified = matches!(&self.layers, Layers::Tls(tls) if tls.has_verified_peer());
        is_verified && self.source.is_some() && !self.has_alias && self.stage == Stage::Open
    }

    /// May messages be queued on it?
    pub(super) fn takes_messages(&self) -> bool {
        self.stage != Stage::Draining
    }

    /// Would more than `limit` bytes wait for its peer, with `more`? What the peer has not been offered yet does not count:
    /// that is the share of one turn at most, and a peer that reads takes it with the next write.
    pub(super) fn is_overfull(&self, more: usize, limit: usize) -> bool {
        let waiting = self.waiting.as_ref().map_or(0, |waiting| waiting.bytes.len());
        (self.is_blocked || self.stage != Stage::Open) && self.output.len() + waiting + more > limit
    }

    /// The tick by which something must have happened.
    pub(super) fn deadline(&self, policy: &StreamPolicy) -> u32 {
        let write = self.output_since.map(|since| since.saturating_add(policy.write_timeout));
        match self.stage {
            Stage::Connecting => self.stage_since.saturating_add(policy.connect_timeout),
            Stage::Proxy => self.stage_since.saturating_add(policy.message_timeout),
            Stage::Handshake => self.stage_since.saturating_add(policy.handshake_timeout),
            Stage::Draining => write.unwrap_or(self.stage_since.saturating_add(DRAIN)),
            Stage::Open => {
                let message = self.input_since.map(|since| since.saturating_add(policy.message_timeout));
                let idle = if self.is_kept { u32::MAX / 2 } else { policy.idle_timeout };
                let idle = self.last_active.saturating_add(idle);
                [write, message].into_iter().flatten().fold(idle, u32::min)
            }
        }
    }

    fn first_stage(&self) -> Stage {
        if self.is_handshaking() { Stage::Handshake } else { Stage::Open }
    }

    fn is_handshaking(&self) -> bool {
        match &self.layers {
            Layers::Plain => false,
            Layers::Tls(tls) => tls.is_handshaking(),
            Layers::Web(web) => web.is_handshaking(),
            Layers::WebTls(both) => both.0.is_handshaking() || both.1.is_handshaking(),
        }
    }
}
