//! A SIP endpoint by hand: one socket, messages as text; for what SIPp cannot be made to send.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

pub struct Endpoint {
    socket: UdpSocket,
    pub address: SocketAddr,
}

impl Endpoint {
    /// On an address of which the port may be 0.
    pub fn bind(address: SocketAddr) -> std::io::Result<Endpoint> {
        let socket = UdpSocket::bind(address)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        let address = socket.local_addr()?;
        Ok(Endpoint { socket, address })
    }

    pub fn send(&self, bytes: &[u8], to: SocketAddr) {
        assert_eq!(self.socket.send_to(bytes, to).unwrap(), bytes.len());
    }

    /// The next datagram.
    pub fn receive(&self, what: &str) -> (Vec<u8>, SocketAddr) {
        let mut buffer = vec![0; 65_536];
        let (len, from) = self.socket.recv_from(&mut buffer).unwrap_or_else(|error| panic!("no {what}: {error}"));
        buffer.truncate(len);
        (buffer, from)
    }

    /// Throws away what has come so far, before it fills the socket's buffer.
    pub fn drain(&self) {
        self.socket.set_nonblocking(true).unwrap();
        while self.socket.recv(&mut [0]).is_ok() {}
        self.socket.set_nonblocking(false).unwrap();
    }

    /// The next message of this Call-ID whose first line starts with `start`; others are passed over.
    pub fn await_message(&self, start: &str, call_id: &str) -> (Vec<u8>, SocketAddr) {
        for _ in 0..10_000 {
            let (bytes, from) = self.receive(start);
            if bytes.starts_with(start.as_bytes()) && headers(&bytes, "Call-ID") == [call_id] {
                return (bytes, from);
            }
        }
        panic!("nothing of {call_id} that starts with {start}");
    }

    /// A request outside a dialog.
    pub fn request(&self, method: &str, call_id: &str, to: SocketAddr, body: &[u8]) -> Vec<u8> {
        self.author().request(method, call_id, to, body)
    }

    /// A request in the dialog that this 2xx made.
    pub fn request_in_dialog(&self, method: &str, cseq: u32, answer: &[u8], call_id: &str) -> Vec<u8> {
        self.author().request_in_dialog(method, cseq, answer, call_id)
    }

    /// An answer to a request.
    pub fn answer(&self, request: &[u8], status: &str, body: &[u8]) -> Vec<u8> {
        answer(request, status, &format!("<sip:bob@{}>", self.address), body)
    }

    fn author(&self) -> Author {
        Author { address: self.address, via: "UDP", contact: format!("<sip:alice@{}>", self.address) }
    }
}

/// Who writes a request, as it stands in it.
pub struct Author {
    pub address: SocketAddr,
    /// The transport in its Via.
    pub via: &'static str,
    pub contact: String,
}

impl Author {
    /// A request outside a dialog.
    pub fn request(&self, method: &str, call_id: &str, to: SocketAddr, body: &[u8]) -> Vec<u8> {
        let uri = format!("sip:bob@{to}");
        self.write((method, &uri, 1), call_id, &format!("<{uri}>"), &[], body)
    }

    /// A request in the dialog that this 2xx made.
    pub fn request_in_dialog(&self, method: &str, cseq: u32, answer: &[u8], call_id: &str) -> Vec<u8> {
        let mut routes = headers(answer, "Record-Route");
        routes.reverse();
        let contact = headers(answer, "Contact").concat();
        let to = headers(answer, "To").concat();
        self.write((method, contact.trim_matches(['<', '>']), cseq), call_id, &to, &routes, b"")
    }

    fn write(
        &self,
        (method, uri, cseq): (&str, &str, u32),
        call_id: &str,
        to: &str,
        routes: &[String],
        body: &[u8],
    ) -> Vec<u8> {
        let Author { address, via, contact } = self;
        let routes: String = routes.iter().map(|route| format!("Route: {route}\r\n")).collect();
        let head = format!(
            "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/{via} {address};rport;branch=z9hG4bK{method}{cseq}{call_id}\r\n\
             Max-Forwards: 70\r\n{routes}From: <sip:alice@{address}>;tag=a{call_id}\r\nTo: {to}\r\nCall-ID: {call_id}\r\n\
             CSeq: {cseq} {method}\r\nContact: {contact}\r\nContent-Type: text/plain\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        [head.as_bytes(), body].concat()
    }
}

/// An answer to a request.
pub fn answer(request: &[u8], status: &str, contact: &str, body: &[u8]) -> Vec<u8> {
    let mut text = format!("SIP/2.0 {status}\r\n");
    for name in ["Via", "Record-Route", "From", "To", "Call-ID", "CSeq"] {
        for value in headers(request, name) {
            let tag = if name == "To" && !value.contains(";tag=") { ";tag=callee" } else { "" };
            text += &format!("{name}: {value}{tag}\r\n");
        }
    }
    text += &format!("Contact: {contact}\r\nContent-Length: {}\r\n\r\n", body.len());
    [text.as_bytes(), body].concat()
}

/// The values of a header, line by line.
pub fn headers(message: &[u8], name: &str) -> Vec<String> {
    let head = message.split(|byte| *byte == b'\r').map(|line| String::from_utf8_lossy(line).into_owned());
    let head = head.take_while(|line| line != "\n");
    let value = |line: String| {
        let (found, value) = line.trim().split_once(':')?;
        found.trim_end().eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    };
    head.filter_map(value).collect()
}

/// What follows the empty line.
pub fn body(message: &[u8]) -> &[u8] {
    let end = message.windows(4).position(|four| four == b"\r\n\r\n").expect("an empty line");
    &message[end + 4..]
}

/// A whole call: INVITE, 180, 200, ACK, then BYE and its 200.
pub fn check_call(caller: &Endpoint, callee: &Endpoint, service: SocketAddr, call_id: &str) {
    caller.send(&caller.request("INVITE", call_id, service, b"v=0\r\n"), service);
    let (invite, proxy) = callee.await_message("INVITE", call_id);
    assert_eq!(body(&invite), b"v=0\r\n");
    callee.send(&callee.answer(&invite, "180 Ringing", b""), proxy);
    caller.await_message("SIP/2.0 180", call_id);
    callee.send(&callee.answer(&invite, "200 OK", b"v=0\r\n"), proxy);
    let (answer, from) = caller.await_message("SIP/2.0 200", call_id);
    assert_eq!(from, service, "an answer comes from where the question went");
    assert_eq!(body(&answer), b"v=0\r\n");
    caller.send(&caller.request_in_dialog("ACK", 1, &answer, call_id), service);
    callee.await_message("ACK", call_id);
    caller.send(&caller.request_in_dialog("BYE", 2, &answer, call_id), service);
    let (bye, proxy) = callee.await_message("BYE", call_id);
    callee.send(&callee.answer(&bye, "200 OK", b""), proxy);
    let (answer, _) = caller.await_message("SIP/2.0 200", call_id);
    assert_eq!(headers(&answer, "CSeq"), ["2 BYE"]);
}
