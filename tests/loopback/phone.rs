//! A client on a connection, by hand: TCP or TLS, messages as text; for what SIPp cannot be made to send.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use socket2::{Domain, SockRef, Socket, Type};

use crate::endpoint::{Author, body, headers};

/// How long anything may take to come.
const PATIENCE: Duration = Duration::from_secs(8);

enum Wire {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

pub struct Phone {
    wire: Wire,
    input: Vec<u8>,
    pub author: Author,
    /// Where it is connected to.
    pub service: SocketAddr,
}

/// What comes next on a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    Message(Vec<u8>),
    /// A CRLF between messages.
    Pong,
    /// The other side has ended the connection.
    End,
    /// Nothing in time.
    Nothing,
}

impl Phone {
    pub fn connect(service: SocketAddr) -> Phone {
        Phone::over(connect_from(None, service).unwrap(), service)
    }

    /// With socket buffers on both sides that hold a few kilobytes.
    pub fn connect_narrow(service: SocketAddr) -> Phone {
        let socket = narrow_socket();
        socket.connect(&service.into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Phone::over(stream, service)
    }

    /// From an address of this machine; its port is picked by the system.
    pub fn connect_from(ip: IpAddr, service: SocketAddr) -> Phone {
        Phone::over(connect_from(Some(ip), service).unwrap(), service)
    }

    /// # Errors
    ///
    /// A handshake that fails.
    pub fn connect_tls(service: SocketAddr, config: &Arc<ClientConfig>, name: &'static str) -> io::Result<Phone> {
        let stream = connect_from(None, service)?;
        let name = ServerName::try_from(name).unwrap();
        let mut connection = ClientConnection::new(Arc::clone(config), name).unwrap();
        let mut socket = &stream;
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        let address = stream.local_addr()?;
        let wire = Wire::Tls(Box::new(StreamOwned::new(connection, stream)));
        Ok(Phone { wire, input: Vec::new(), author: author(address, "TLS"), service })
    }

    /// Over a connection that stands.
    pub fn over(stream: TcpStream, service: SocketAddr) -> Phone {
        let address = stream.local_addr().unwrap();
        Phone { wire: Wire::Plain(stream), input: Vec::new(), author: author(address, "TCP"), service }
    }

    pub fn socket(&self) -> &TcpStream {
        match &self.wire {
            Wire::Plain(stream) => stream,
            Wire::Tls(tls) => tls.get_ref(),
        }
    }

    /// The connection without what runs over it.
    pub fn into_stream(self) -> TcpStream {
        match self.wire {
            Wire::Plain(stream) => stream,
            Wire::Tls(tls) => tls.sock,
        }
    }

    /// The certificate that the other side showed.
    pub fn peer_certificate(&self) -> Vec<u8> {
        match &self.wire {
            Wire::Plain(_) => Vec::new(),
            Wire::Tls(tls) => tls.conn.peer_certificates().unwrap()[0].to_vec(),
        }
    }

    /// # Errors
    ///
    /// When the other side has ended the connection.
    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.wire {
            Wire::Plain(stream) => stream.write_all(bytes),
            Wire::Tls(tls) => tls.write_all(bytes).and_then(|()| tls.flush()),
        }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).unwrap();
    }

    /// What comes next, waited for so long.
    pub fn hear(&mut self, max: Duration) -> Heard {
        let begun = Instant::now();
        loop {
            if let Some(heard) = self.split() {
                return heard;
            }
            let left = max.saturating_sub(begun.elapsed()).max(Duration::from_millis(1));
            self.socket().set_read_timeout(Some(left)).unwrap();
            let mut buffer = [0; 16_384];
            let read = match &mut self.wire {
                Wire::Plain(stream) => stream.read(&mut buffer),
                Wire::Tls(tls) => tls.read(&mut buffer),
            };
            match read {
                Ok(0) => return Heard::End,
                Ok(len) => self.input.extend_from_slice(&buffer[..len]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if begun.elapsed() >= max {
                        return Heard::Nothing;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Heard::End,
            }
        }
    }

    /// What stands whole at the front of what has come.
    fn split(&mut self) -> Option<Heard> {
        if self.input.starts_with(b"\r\n") {
            self.input.drain(..2);
            return Some(Heard::Pong);
        }
        take_message(&mut self.input).map(Heard::Message)
    }

    /// The next message, which must be of this Call-ID and start so.
    pub fn expect(&mut self, start: &str, call_id: &str) -> Vec<u8> {
        match self.hear(PATIENCE) {
            Heard::Message(bytes) => {
                let text = String::from_utf8_lossy(&bytes);
                assert!(text.starts_with(start), "expected {start} of {call_id}, not {text}");
                assert_eq!(headers(&bytes, "Call-ID"), [call_id], "{text}");
                bytes
            }
            other => panic!("expected {start} of {call_id}, not {other:?}"),
        }
    }

    /// Does the other side end the connection within this time? What else comes before is passed over.
    pub fn is_ended_within(&mut self, max: Duration) -> bool {
        let begun = Instant::now();
        while let Some(left) = max.checked_sub(begun.elapsed()) {
            if self.hear(left) == Heard::End {
                return true;
            }
        }
        false
    }

    /// A request outside a dialog, and its final answer, which must start so.
    pub fn ask(&mut self, method: &str, call_id: &str, start: &str) -> Vec<u8> {
        let request = self.author.request(method, call_id, self.service, b"");
        self.send(&request);
        self.expect(start, call_id)
    }

    /// A whole call to a callee that answers by itself: INVITE, 200, ACK, BYE, 200.
    pub fn call(&mut self, call_id: &str) {
        let answer = self.ask("INVITE", call_id, "SIP/2.0 200");
        self.hang_up(&answer, call_id);
    }

    /// The rest of a call whose INVITE was answered so.
    pub fn hang_up(&mut self, answer: &[u8], call_id: &str) {
        let ack = self.author.request_in_dialog("ACK", 1, answer, call_id);
        self.send(&ack);
        let bye = self.author.request_in_dialog("BYE", 2, answer, call_id);
        self.send(&bye);
        let answer = self.expect("SIP/2.0 200", call_id);
        assert_eq!(headers(&answer, "CSeq"), ["2 BYE"]);
    }
}

fn author(address: SocketAddr, via: &'static str) -> Author {
    Author { address, via, contact: format!("<sip:alice@{address};transport={}>", via.to_lowercase()) }
}

/// # Errors
///
/// Nobody listens there.
pub fn connect_from(ip: Option<IpAddr>, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    if let Some(ip) = ip {
        socket.bind(&SocketAddr::new(ip, 0).into())?;
    }
    socket.connect_timeout(&to.into(), PATIENCE)?;
    socket.set_tcp_nodelay(true)?;
    let stream = TcpStream::from(socket);
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A socket with a small receive buffer, and with small segments, which make the other side's send buffer small too.
pub fn narrow_socket() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    socket.set_tcp_mss(536).unwrap();
    socket
}

/// Ends a connection with a RST.
pub fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

/// Takes a message off the front, if a whole one is there.
pub fn take_message(input: &mut Vec<u8>) -> Option<Vec<u8>> {
    let head = input.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let unfolded = String::from_utf8_lossy(&input[..head]).replace("\r\n ", " ").replace("\r\n\t", " ");
    let length: usize = headers(unfolded.as_bytes(), "Content-Length").first()?.parse().ok()?;
    (input.len() >= head + length).then(|| {
        let message: Vec<u8> = input.drain(..head + length).collect();
        assert_eq!(body(&message).len(), length);
        message
    })
}
