//! One TLS connection without its socket: ciphertext in, plaintext out, and the other way.
//!
//! ```text
//!   socket -> receive(ciphertext) -> plain          send(plain) -> take_output -> socket
//!                  \___ handshake answers, alerts, tickets ___________/
//! ```
//!
//! After every call that returns, and after every error too, [`TlsSession::take_output`] has what is to be written
//! next: the rest of a handshake, an alert that tells the peer why. Who drives it keeps the time: a handshake that takes
//! too long is no error here.
//!
//! rustls' interface without buffers stands below, because its buffered one keeps 4 KiB and the largest record it has
//! seen for each connection. Here an idle session holds no buffer at all; `tests/tls_memory.rs` states what is left.
//!
//! Invariants: what is kept of the peer's bytes is less than a record, or one handshake message under way, at most
//! [`INCOMING_BYTES_MAX`]; what is kept of ours before the handshake ends is at most [`WAITING_BYTES_MAX`]; `output`
//! grows with what was sent and is emptied by its reader. Of each record rustls allocates the text, in both directions.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus};
use rustls::{CommonState, Error, HandshakeKind, ServerConfig};

use super::Connector;
use super::certificate::Facts;
use super::error::{TlsError, TlsErrorKind};

/// The largest handshake message that rustls takes, and a record that comes with it.
pub const INCOMING_BYTES_MAX: usize = 0xffff + RECORD_BYTES_MAX;
/// What may be sent before the handshake has ended.
pub const WAITING_BYTES_MAX: usize = 256 * 1024;
/// A record with its header (RFC 8446 section 5.2).
const RECORD_BYTES_MAX: usize = 5 + 16_384 + 256;
/// What a record is longer than its text, at most: header, explicit nonce, content type, tag.
const RECORD_OVERHEAD: usize = 5 + 8 + 1 + 16;
/// The text of one record, at most (RFC 8446 section 5.1).
const RECORD_TEXT_MAX: usize = 16_384;

/// What [`TlsSession::receive`] found at the end of what it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// The peer may send more.
    Open,
    /// The peer has said that it sends nothing more (close_notify), or we have, and read nothing more.
    Closed,
}

/// One TLS connection; see the module head.
pub struct TlsSession {
    side: Side,
    /// What was received and could not be dealt with yet: the beginning of a record or of a handshake message.
    incoming: Vec<u8>,
    /// Ciphertext to be written.
    output: Vec<u8>,
    /// Text that was sent before the handshake had ended.
    waiting: Vec<u8>,
    /// Whether a certificate that the peer shows is checked.
    checks_peer: bool,
    is_closed_by_peer: bool,
    is_closed_by_us: bool,
    has_failed: bool,
}

/// Boxed, so that a place in a table of connections is small where there is no TLS.
enum Side {
    Server(Box<UnbufferedServerConnection>),
    Client(Box<UnbufferedClientConnection>),
}

impl TlsSession {
    /// The server's side of a new connection.
    ///
    /// # Errors
    ///
    /// None that a loaded configuration brings about.
    pub fn accept(config: Arc<ServerConfig>) -> Result<TlsSession, TlsError> {
        let connection = UnbufferedServerConnection::new(config).map_err(|error| TlsError::new(&error, true))?;
        Ok(TlsSession::new(Side::Server(Box::new(connection)), true))
    }

    /// The client's side of a new connection to `peer`; its first flight is in the output.
    ///
    /// # Errors
    ///
    /// When the system gives no random bytes.
    pub fn connect(connector: &Connector, peer: IpAddr) -> Result<TlsSession, TlsError> {
        let name = connector.server_name.clone().unwrap_or_else(|| peer.into());
        let connection = UnbufferedClientConnection::new(Arc::clone(&connector.config), name)
            .map_err(|error| TlsError::new(&error, true))?;
        let mut session = TlsSession::new(Side::Client(Box::new(connection)), connector.checks_peer);
        session.receive(&[], &mut Vec::new())?;
        Ok(session)
    }

    fn new(side: Side, checks_peer: bool) -> TlsSession {
        TlsSession {
            side,
            incoming: Vec::new(),
            output: Vec::new(),
            waiting: Vec::new(),
            checks_peer,
            is_closed_by_peer: false,
            is_closed_by_us: false,
            has_failed: false,
        }
    }

    /// Takes in what was read from the socket, all of it, and appends what it says to `plain`: never more than
    /// `ciphertext` and one record.
    ///
    /// # Errors
    ///
    /// When the session has failed; nothing more can be received or sent, but there may be an alert in the output.
    pub fn receive(&mut self, ciphertext: &[u8], plain: &mut Vec<u8>) -> Result<Received, TlsError> {
        if self.has_failed {
            return Err(TlsError::over());
        }
        if self.is_closed_by_peer || self.is_closed_by_us {
            return Ok(Received::Closed);
        }
        self.incoming.extend_from_slice(ciphertext);
        self.advance(plain, Then::Nothing)?;
        if !self.waiting.is_empty() && !self.is_handshaking() {
            let waiting = std::mem::take(&mut self.waiting);
            self.advance(plain, Then::Send(&waiting))?;
        }
        if self.is_closed_by_peer {
            self.incoming = Vec::new();
            return Ok(Received::Closed);
        }
        if self.incoming.len() > INCOMING_BYTES_MAX {
            return Err(self.fail(TlsError::of(TlsErrorKind::Protocol, "the handshake is too long")));
        }
        Ok(Received::Open)
    }

    /// Encrypts `plain` into the output; before the handshake has ended it is kept until then.
    ///
    /// # Errors
    ///
    /// When the session has failed or was closed, or when too much waits for the end of the handshake.
    pub fn send(&mut self, plain: &[u8]) -> Result<(), TlsError> {
        if self.has_failed || self.is_closed_by_us {
            return Err(TlsError::over());
        }
        if self.is_handshaking() {
            if self.waiting.len() + plain.len() > WAITING_BYTES_MAX {
                return Err(TlsError::of(TlsErrorKind::Overflow, "too much waits for the end of the handshake"));
            }
            self.waiting.extend_from_slice(plain);
            return Ok(());
        }
        self.advance(&mut Vec::new(), Then::Send(plain))
    }

    /// Tells the peer that nothing more will be sent (close_notify); what comes from it is not read any more either. In
    /// a handshake there is nobody to tell yet.
    pub fn close(&mut self) {
        if self.has_failed || self.is_closed_by_us || self.is_handshaking() {
            self.is_closed_by_us = true;
            return;
        }
        // A session that fails at its last word is over all the same.
        let _ = self.advance(&mut Vec::new(), Then::Close);
        self.is_closed_by_us = true;
    }

    /// Moves what is to be written to the end of `out`.
    pub fn take_output(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.output);
        self.output = Vec::new();
    }

    /// Is there anything to be written?
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Is there a record, or a message of the handshake, that has begun and is not whole?
    pub fn is_mid_record(&self) -> bool {
        !self.incoming.is_empty()
    }

    /// Has the handshake not ended yet?
    pub fn is_handshaking(&self) -> bool {
        self.common().is_handshaking()
    }

    /// Was an earlier session taken up again, which saves both sides a key exchange or a signature?
    pub fn is_resumed(&self) -> bool {
        self.common().handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// The memory of what is buffered here, in bytes; 0 while the session is idle.
    pub fn buffered_bytes(&self) -> usize {
        self.incoming.capacity() + self.output.capacity() + self.waiting.capacity()
    }

    /// Has the peer shown a certificate, and was it checked?
    pub fn has_verified_peer(&self) -> bool {
        self.checks_peer && !self.is_handshaking() && self.common().peer_certificates().is_some()
    }

    /// The domains that the peer's verified certificate is for: of its `sip:` URIs if it has any, else its DNS names
    /// (RFC 5922 section 7.1). Reads the certificate anew; empty without one.
    pub fn peer_names(&self) -> Vec<String> {
        let leaf = self.common().peer_certificates().filter(|_| self.has_verified_peer()).and_then(<[_]>::first);
        match leaf.and_then(Facts::of) {
            Some(facts) if facts.sip_domains.is_empty() => facts.dns_names,
            Some(facts) => facts.sip_domains,
            None => Vec::new(),
        }
    }

    /// Has the client's side change its keys with what it sends next.
    #[cfg(test)]
    pub(super) fn refresh_keys(&mut self) {
        let Side::Client(connection) = &mut self.side else { return };
        if let Ok(ConnectionState::WriteTraffic(traffic)) = connection.process_tls_records(&mut []).state {
            traffic.refresh_traffic_keys().expect("the version is 1.3");
        }
    }

    fn common(&self) -> &CommonState {
        match &self.side {
            Side::Server(connection) => connection,
            Side::Client(connection) => connection,
        }
    }

    /// Lets rustls go on as far as it can, then does what is asked for.
    fn advance(&mut self, plain: &mut Vec<u8>, then: Then<'_>) -> Result<(), TlsError> {
        let is_handshaking = self.is_handshaking();
        let TlsSession { side, incoming, output, is_closed_by_peer, .. } = self;
        let mut flow = Flow { incoming, output, plain, is_closed_by_peer };
        let result = match side {
            Side::Server(connection) => flow.advance(connection.as_mut(), then),
            Side::Client(connection) => flow.advance(connection.as_mut(), then),
        };
        result.map_err(|error| self.fail(TlsError::new(&error, is_handshaking)))
    }

    /// Puts the alert for the peer into the output and lets go of everything else.
    fn fail(&mut self, error: TlsError) -> TlsError {
        self.has_failed = true;
        let TlsSession { side, incoming, output, is_closed_by_peer, .. } = self;
        let mut flow = Flow { incoming, output, plain: &mut Vec::new(), is_closed_by_peer };
        match side {
            Side::Server(connection) => flow.drain(connection.as_mut()),
            Side::Client(connection) => flow.drain(connection.as_mut()),
        }
        self.incoming = Vec::new();
        self.waiting = Vec::new();
        error
    }
}

impl fmt::Debug for TlsSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = match &self.side {
            Side::Server(_) => "server",
            Side::Client(_) => "client",
        };
        f.debug_struct("TlsSession").field("side", &side).field("is_handshaking", &self.is_handshaking()).finish()
    }
}

/// What is to be done once everything received has been dealt with.
enum Then<'a> {
    Nothing,
    Send(&'a [u8]),
    Close,
}

/// The buffers of a session while rustls works on them.
struct Flow<'a> {
    incoming: &'a mut Vec<u8>,
    output: &'a mut Vec<u8>,
    plain: &'a mut Vec<u8>,
    is_closed_by_peer: &'a mut bool,
}

impl Flow<'_> {
    fn advance<C: Process>(&mut self, connection: &mut C, then: Then<'_>) -> Result<(), Error> {
        let mut done = 0;
        let result = self.process(connection, then, &mut done);
        if done == self.incoming.len() {
            *self.incoming = Vec::new();
        } else if done > 0 {
            *self.incoming = self.incoming[done..].to_vec();
        }
        result
    }

    /// Takes what rustls has queued and nothing else: it must not be shown the bytes again that it has failed on.
    fn drain<C: Process>(&mut self, connection: &mut C) {
        while connection.has_queued() {
            let Ok(ConnectionState::EncodeTlsData(alert)) = connection.process(self.incoming).state else { break };
            if encode(self.output, alert).is_err() {
                break;
            }
        }
    }

    /// `done` counts what of `incoming` is no longer needed.
    fn process<C: Process>(&mut self, connection: &mut C, then: Then<'_>, done: &mut usize) -> Result<(), Error> {
        loop {
            let UnbufferedStatus { mut discard, state } = connection.process(&mut self.incoming[*done..]);
            let mut is_at_end = false;
            let result = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
                    match traffic.next_record() {
                        Some(Ok(record)) => {
                            discard += record.discard;
                            self.plain.extend_from_slice(record.payload);
                        }
                        Some(Err(error)) => break Err(error),
                        None => break Ok(()),
                    }
                },
                Ok(ConnectionState::EncodeTlsData(handshake)) => {
                    encode(self.output, handshake).map_err(|()| Error::EncryptError)
                }
                Ok(ConnectionState::TransmitTlsData(transmit)) => {
                    transmit.done();
                    Ok(())
                }
                Ok(ConnectionState::PeerClosed) => {
                    *self.is_closed_by_peer = true;
                    Ok(())
                }
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    is_at_end = true;
                    let short = |error: EncryptError| match error {
                        EncryptError::InsufficientSize(size) => Short::Needs(size.required_size),
                        EncryptError::EncryptExhausted => Short::Never,
                    };
                    let written = match then {
                        Then::Nothing => Ok(()),
                        Then::Send(plain) => {
                            let records = plain.len().div_ceil(RECORD_TEXT_MAX);
                            let expected = plain.len() + records * RECORD_OVERHEAD;
                            append(self.output, expected, |space| traffic.encrypt(plain, space).map_err(short))
                        }
                        Then::Close => append(self.output, 0, |space| traffic.queue_close_notify(space).map_err(short)),
                    };
                    written.map_err(|()| Error::EncryptError)
                }
                // There is no early data where the configuration allows none, and what is not known cannot be handled.
                Ok(ConnectionState::BlockedHandshake | ConnectionState::Closed) => {
                    is_at_end = true;
                    Ok(())
                }
                Ok(_) => Err(Error::General("an unexpected state of the TLS library".to_owned())),
                Err(error) => Err(error),
            };
            *done += discard;
            if is_at_end || result.is_err() {
                return result;
            }
        }
    }
}

/// Appends a record of the handshake, or an alert.
fn encode<D>(output: &mut Vec<u8>, mut handshake: EncodeTlsData<'_, D>) -> Result<(), ()> {
    append(output, 0, |space| {
        handshake.encode(space).map_err(|error| match error {
            EncodeError::InsufficientSize(size) => Short::Needs(size.required_size),
            EncodeError::AlreadyEncoded => Short::Never,
        })
    })
}

/// Why there was no room to encode into.
enum Short {
    /// So many bytes are needed.
    Needs(usize),
    /// It cannot be encoded at all.
    Never,
}

/// Appends what `encode` writes, with `expected` bytes of room or as many as it asks for.
fn append(
    output: &mut Vec<u8>,
    expected: usize,
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, Short>,
) -> Result<(), ()> {
    let start = output.len();
    let mut room = expected;
    // The second time it has what it asked for.
    for _ in 0..2 {
        output.resize(start + room, 0);
        match encode(&mut output[start..]) {
            Ok(written) => {
                output.truncate(start + written);
                return Ok(());
            }
            Err(Short::Needs(needed)) => room = needed,
            Err(Short::Never) => break,
        }
    }
    output.truncate(start);
    Err(())
}

/// What both sides of a connection can do, under one name.
trait Process {
    type Data;

    /// Goes on until there is something to do, which is first of all what is queued.
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;

    /// Is a handshake record or an alert queued?
    fn has_queued(&self) -> bool;
}

impl Process for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn has_queued(&self) -> bool {
        self.wants_write()
    }
}

impl Process for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn has_queued(&self) -> bool {
        self.wants_write()
    }
}
