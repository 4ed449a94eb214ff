//! The server side of a WebSocket that carries SIP, without a socket: bytes in, messages out, bytes to send.
//!
//! Read RFC 7118 sections 4 to 6 first, then RFC 6455 sections 4.2 and 5. tungstenite reads the HTTP head and the
//! frames; here is what it leaves open: who may connect, what an HTTP client is told who may not, and what SIP puts
//! into frames. One WebSocket message is one SIP message, text or binary, which needs no Content-Length (RFC 7118 5);
//! the scan judges it as it judges a datagram.
//!
//! ```text
//! GET ... Upgrade: websocket ... CRLF CRLF   Handshaking: kept until whole, 8 KiB at most
//!     not an upgrade, no "sip", wrong origin: an HTTP error and the end
//! frames                                     Open: messages; pings are answered, CRLF CRLF by CRLF
//! Close, or our own                          Closing, Closed
//! ```
//!
//! A keep-alive of RFC 5626 3.5.1 may be used over this transport too (RFC 7118 6), which is all that a script in a
//! browser can send: a message of two CRLF is answered here by a message of one, and neither it nor a lone CRLF is
//! handed up.
//!
//! Cost: a message is copied twice, and allocated for only where it is larger than those before. Bound: one message in
//! each direction. While idle the structure of 328 bytes and, as a counting allocator saw it, 1.3 KiB after the
//! handshake, 2.9 KiB after messages of 900 bytes both ways, 5 KiB after messages of 2 KiB; larger buffers are given
//! back.

use std::io::{self, Read, Write};
use std::sync::Arc;

use tungstenite::error::{Error, ProtocolError};
use tungstenite::handshake::machine::TryParse;
use tungstenite::handshake::server::{Request, Response, create_response, write_response};
use tungstenite::http::HeaderValue;
use tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tungstenite::protocol::frame::{CloseFrame, FrameHeader, Utf8Bytes};
use tungstenite::protocol::{Message, Role, WebSocketConfig, WebSocketContext};

/// The largest HTTP head.
pub const HEAD_MAX: usize = 8 * 1024;

/// What a connection gets for reading at first.
const BUFFER_FIRST: usize = 1024;

/// A buffer that had to grow beyond this is given back once it is empty.
const BUFFER_KEPT: usize = 2 * BUFFER_FIRST;

/// The subprotocol of RFC 7118 4.1.
const SUBPROTOCOL: &str = "sip";

/// What a connection may ask for.
#[derive(Clone, Copy, Debug)]
pub struct WebSocketLimits {
    /// The largest SIP message; its fragments together are no larger either.
    pub message_bytes_max: usize,
}

/// How far the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WsProgress {
    /// The HTTP head is not whole yet.
    Handshaking,
    /// Messages may come and go.
    Open,
    /// We have sent Close, the peer has not answered it yet: nothing is handed up or sent any more.
    Closing,
    /// Both have closed; the connection is to be closed once the output is sent.
    Closed,
}

/// Why a connection is to be closed, once the output is sent: it holds what the peer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WsError {
    /// The first byte begins no HTTP request; nothing is answered.
    #[error("the client does not speak HTTP")]
    NotHttp,
    /// The head was answered with this HTTP status.
    #[error("the upgrade was refused with {0}")]
    Refused(u16),
    /// A message larger than the limit: Close 1009.
    #[error("the client sent a message above limits.message_bytes_max")]
    TooLarge,
    /// A text message that is not UTF-8: Close 1007.
    #[error("the client sent text that is not UTF-8")]
    NotUtf8,
    /// The peer broke the rules of RFC 6455: Close 1002.
    #[error("the client broke the WebSocket protocol")]
    Malformed,
    /// There was something to send and the WebSocket is not open.
    #[error("the WebSocket is not open")]
    NotOpen,
}

/// One connection; see the module head.
#[derive(Debug)]
pub struct WebSocket {
    state: State,
    limits: WebSocketLimits,
    walk: Walk,
    output: Vec<u8>,
}

/// Follows the frames through the bytes received, to know when none is half read: tungstenite does not tell.
#[derive(Debug, Default)]
struct Walk {
    /// The header that is being read, the longest one of RFC 6455 5.2, and how much of it there is.
    header: [u8; 14],
    header_len: usize,
    /// What is missing of the payload.
    payload: u64,
    is_fragmented: bool,
    /// Was there a frame for which a buffer had to grow?
    has_large: bool,
}

impl Walk {
    fn advance(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.payload > 0 {
                let taken = bytes.len().min(usize::try_from(self.payload).unwrap_or(usize::MAX));
                self.payload -= taken as u64;
                bytes = &bytes[taken..];
                continue;
            }
            let Some(place) = self.header.get_mut(self.header_len) else { return };
            *place = bytes[0];
            self.header_len += 1;
            bytes = &bytes[1..];
            // What is no header ends the connection, so nobody asks any more.
            if let Ok(Some((header, len))) = FrameHeader::parse(&mut io::Cursor::new(&self.header[..self.header_len])) {
                self.header_len = 0;
                self.payload = len;
                self.has_large |= len > BUFFER_KEPT as u64;
                if matches!(header.opcode, OpCode::Data(_)) {
                    self.is_fragmented = !header.is_final;
                }
            }
        }
    }

    fn is_at_rest(&self) -> bool {
        self.header_len == 0 && self.payload == 0 && !self.is_fragmented
    }
}

#[derive(Debug)]
enum State {
    Handshaking { head: Vec<u8>, origins: Arc<[String]> },
    Open(WebSocketContext),
    Closing(WebSocketContext),
    Closed,
    Failed(WsError),
}

/// What tungstenite takes for a socket: reading gives what was received and then says that it would block, writing
/// never does.
struct Pipe<'i, 'o> {
    input: &'i [u8],
    output: &'o mut Vec<u8>,
}

impl Read for Pipe<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.input.read(buffer) {
            // Zero bytes would be the end of the connection.
            Ok(0) => Err(io::ErrorKind::WouldBlock.into()),
            result => result,
        }
    }
}

impl Write for Pipe<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl WebSocket {
    /// A new connection, awaiting the upgrade. `origins`: the web pages that may connect, as browsers write them
    /// (`https://phone.example.com`); any client when empty. Where it is not, a client that names no origin is refused:
    /// who wants native clients too gives them an address of their own.
    pub fn accept(limits: WebSocketLimits, origins: Arc<[String]>) -> Self {
        WebSocket {
            state: State::Handshaking { head: Vec::new(), origins },
            limits,
            walk: Walk::default(),
            output: Vec::new(),
        }
    }

    /// Takes bytes from the connection and calls `message` for each whole SIP message.
    ///
    /// # Errors
    ///
    /// [`WsError`]; from then on it is returned whatever comes.
    pub fn receive(&mut self, bytes: &[u8], message: &mut dyn FnMut(&[u8])) -> Result<WsProgress, WsError> {
        let mut rest = bytes;
        if let State::Handshaking { head, .. } = &mut self.state {
            let seen = head.len();
            head.extend_from_slice(&bytes[..bytes.len().min(HEAD_MAX - seen)]);
            if head.first().is_some_and(|first| !first.is_ascii_uppercase()) {
                return Err(self.fail(WsError::NotHttp));
            }
            // The end may have begun in what came before.
            let from = seen.saturating_sub(3);
            let Some(end) = memchr::memmem::find(&head[from..], b"\r\n\r\n").map(|at| from + at + 4) else {
                if head.len() == HEAD_MAX {
                    return Err(self.refuse(HEAD_TOO_LARGE));
                }
                return Ok(WsProgress::Handshaking);
            };
            head.truncate(end);
            rest = &bytes[end - seen..];
            self.upgrade()?;
        }
        self.receive_frames(rest, message)
    }

    /// Puts one SIP message into one frame: text where it is UTF-8, else binary.
    ///
    /// # Errors
    ///
    /// [`WsError::NotOpen`] before the handshake and after a Close of either side.
    pub fn send(&mut self, message: &[u8]) -> Result<(), WsError> {
        let State::Open(_) = &self.state else { return Err(WsError::NotOpen) };
        write_message(&mut self.output, message);
        Ok(())
    }

    /// Moves what is to be sent to the end of `out`.
    pub fn take_output(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.output);
        self.output.clear();
        if self.output.capacity() > BUFFER_KEPT {
            self.output = Vec::new();
        }
    }

    /// Is the HTTP head not whole yet?
    pub fn is_handshaking(&self) -> bool {
        matches!(self.state, State::Handshaking { .. })
    }

    /// Is there a message that has begun and is not whole, or a frame of any kind?
    pub fn is_mid_message(&self) -> bool {
        matches!(self.state, State::Open(_)) && !self.walk.is_at_rest()
    }

    /// Sends Close with a code of RFC 6455 7.4.1: 1001 where Tandem goes away. Before the handshake there is nobody
    /// to tell: the connection is just over.
    pub fn close(&mut self, code: u16) {
        self.state = match std::mem::replace(&mut self.state, State::Closed) {
            State::Open(mut context) => {
                write_close(&mut context, &mut self.output, CloseCode::from(code));
                State::Closing(context)
            }
            State::Handshaking { .. } => State::Closed,
            other => other,
        };
    }

    /// Answers the HTTP head, which is whole.
    fn upgrade(&mut self) -> Result<(), WsError> {
        let State::Handshaking { head, origins } = &self.state else { return Ok(()) };
        let response = match judge_head(head, origins) {
            Ok(response) => response,
            Err(refusal) => return Err(self.refuse(refusal)),
        };
        // A vector takes everything, and no header of the response is of the client's making.
        let _ = write_response(&mut self.output, &response);
        self.state = State::Open(self.new_context());
        Ok(())
    }

    fn new_context(&self) -> WebSocketContext {
        let max = self.limits.message_bytes_max;
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER_FIRST)
            // Eager: what tungstenite writes, pongs and Close, is in the output before anything that is sent after.
            .write_buffer_size(0)
            .max_message_size(Some(max))
            // A control frame may have 125 bytes however small messages are.
            .max_frame_size(Some(max.max(125)));
        WebSocketContext::new(Role::Server, Some(config))
    }

    fn receive_frames(&mut self, bytes: &[u8], message: &mut dyn FnMut(&[u8])) -> Result<WsProgress, WsError> {
        let mut input = bytes;
        self.walk.advance(bytes);
        loop {
            let is_open = matches!(self.state, State::Open(_));
            let context = match &mut self.state {
                State::Handshaking { .. } => return Ok(WsProgress::Handshaking),
                State::Open(context) | State::Closing(context) => context,
                State::Closed => return Ok(WsProgress::Closed),
                State::Failed(error) => return Err(*error),
            };
            let mut pipe = Pipe { input, output: &mut self.output };
            let result = context.read(&mut pipe);
            input = pipe.input;
            match result {
                Ok(Message::Text(text)) if is_open => hand_up(text.as_bytes(), &mut self.output, message),
                Ok(Message::Binary(bytes)) if is_open => hand_up(&bytes, &mut self.output, message),
                // Pings and Close are answered by tungstenite when it is asked again.
                Ok(_) => {}
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !is_open {
                        return Ok(WsProgress::Closing);
                    }
                    // tungstenite keeps a buffer as large as its largest frame; all of its state is in that buffer now
                    // and empty.
                    if self.walk.is_at_rest() && self.walk.has_large {
                        self.walk.has_large = false;
                        self.state = State::Open(self.new_context());
                    }
                    return Ok(WsProgress::Open);
                }
                Err(Error::ConnectionClosed | Error::AlreadyClosed) => self.state = State::Closed,
                Err(error) => {
                    let (code, error) = match error {
                        Error::Capacity(_) => (CloseCode::Size, WsError::TooLarge),
                        Error::Utf8(_) => (CloseCode::Invalid, WsError::NotUtf8),
                        _ => (CloseCode::Protocol, WsError::Malformed),
                    };
                    if is_open {
                        write_close(context, &mut self.output, code);
                    }
                    return Err(self.fail(error));
                }
            }
        }
    }

    fn refuse(&mut self, Refusal(status, phrase, headers): Refusal) -> WsError {
        let head = format!("HTTP/1.1 {status} {phrase}\r\nConnection: close\r\nContent-Length: 0\r\n{headers}\r\n");
        self.output.extend_from_slice(head.as_bytes());
        self.fail(WsError::Refused(status))
    }

    fn fail(&mut self, error: WsError) -> WsError {
        self.state = State::Failed(error);
        error
    }
}

/// Status, phrase and further headers of the answer to an HTTP head that is not a good upgrade.
struct Refusal(u16, &'static str, &'static str);

const BAD_REQUEST: Refusal = Refusal(400, "Bad Request", "");
const NO_SIP: Refusal = Refusal(400, "Bad Request", "Sec-WebSocket-Protocol: sip\r\n");
const FORBIDDEN: Refusal = Refusal(403, "Forbidden", "");
const NOT_GET: Refusal = Refusal(405, "Method Not Allowed", "Allow: GET\r\n");
const NO_UPGRADE: Refusal = Refusal(426, "Upgrade Required", "Upgrade: websocket\r\nSec-WebSocket-Protocol: sip\r\n");
const OTHER_VERSION: Refusal = Refusal(426, "Upgrade Required", "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n");
const HEAD_TOO_LARGE: Refusal = Refusal(431, "Request Header Fields Too Large", "");

/// The response to a whole HTTP head (RFC 6455 4.2, RFC 7118 4.1).
fn judge_head(head: &[u8], origins: &[String]) -> Result<Response, Refusal> {
    let request = match Request::try_parse(head) {
        // Other ends than CRLF CRLF are ends to the parser; nobody needs them.
        Ok(Some((len, request))) if len == head.len() => request,
        Err(Error::Protocol(ProtocolError::WrongHttpMethod)) => return Err(NOT_GET),
        Err(Error::Capacity(_)) => return Err(HEAD_TOO_LARGE),
        _ => return Err(BAD_REQUEST),
    };
    let mut response = create_response(&request).map_err(|error| match error {
        Error::Protocol(ProtocolError::MissingConnectionUpgradeHeader) => NO_UPGRADE,
        Error::Protocol(ProtocolError::MissingUpgradeWebSocketHeader) => NO_UPGRADE,
        Error::Protocol(ProtocolError::MissingSecWebSocketVersionHeader) => OTHER_VERSION,
        _ => BAD_REQUEST,
    })?;
    if !is_allowed_origin(&request, origins) {
        return Err(FORBIDDEN);
    }
    if !offers_sip(&request) {
        return Err(NO_SIP);
    }
    response.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static(SUBPROTOCOL));
    Ok(response)
}

/// Hands a WebSocket message up, unless it is a keep-alive.
fn hand_up(bytes: &[u8], output: &mut Vec<u8>, message: &mut dyn FnMut(&[u8])) {
    match bytes {
        b"\r\n\r\n" => write_message(output, b"\r\n"),
        b"\r\n" | b"" => {}
        _ => message(bytes),
    }
}

/// One unmasked frame, written where it is sent from: through tungstenite it would be copied and allocated for once
/// more.
fn write_message(output: &mut Vec<u8>, message: &[u8]) {
    let data = if std::str::from_utf8(message).is_ok() { Data::Text } else { Data::Binary };
    let header = FrameHeader { opcode: OpCode::Data(data), ..FrameHeader::default() };
    // A vector takes everything.
    let _ = header.format(message.len() as u64, output);
    output.extend_from_slice(message);
}

fn write_close(context: &mut WebSocketContext, output: &mut Vec<u8>, code: CloseCode) {
    let frame = CloseFrame { code, reason: Utf8Bytes::from_static("") };
    // It fails only where the peer's own Close is in the output already.
    let _ = context.close(&mut Pipe { input: &[], output }, Some(frame));
}

/// RFC 6455 10.2: browsers name the page that a script came from, and a script cannot change that.
fn is_allowed_origin(request: &Request, origins: &[String]) -> bool {
    let mut named = request.headers().get_all("Origin").iter();
    match (named.next(), named.next()) {
        _ if origins.is_empty() => true,
        (Some(origin), None) => {
            origins.iter().any(|allowed| allowed.as_bytes().eq_ignore_ascii_case(origin.as_bytes()))
        }
        _ => false,
    }
}

/// RFC 7118 4.1: the client must offer the subprotocol, in one header or several.
fn offers_sip(request: &Request) -> bool {
    let offers = request.headers().get_all("Sec-WebSocket-Protocol");
    offers
        .iter()
        .any(|offer| offer.as_bytes().split(|b| *b == b',').any(|name| name.trim_ascii() == SUBPROTOCOL.as_bytes()))
}
