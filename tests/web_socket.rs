//! The server side of a WebSocket against tungstenite's client, in memory: every split, every refusal, every close.
//!
//! What the client writes is recorded once and fed to fresh servers cut at every place; what a server hands up and
//! what it answers must not depend on the cut.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Arc;

use tandem::base::prng::Prng;
use tandem::shell::web_socket::{HEAD_MAX, WebSocket, WebSocketLimits, WsError, WsProgress};
use tungstenite::client::IntoClientRequest;
use tungstenite::handshake::client::ClientHandshake;
use tungstenite::handshake::{HandshakeError, MidHandshake};
use tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tungstenite::protocol::frame::{CloseFrame, Frame};
use tungstenite::{Error, Message};

const MAX: usize = 2000;
const OPTIONS: &str =
    "OPTIONS sip:a@example.com SIP/2.0\r\nVia: SIP/2.0/WS df7jal23ls0d.invalid;branch=z9hG4bK1\r\n\r\n";

/// The client's end: what it reads was put there before, what it writes stays there.
#[derive(Debug, Default)]
struct Wire {
    to_client: Vec<u8>,
    to_server: Vec<u8>,
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = (&self.to_client[..]).read(buffer)?;
        self.to_client.drain(..len);
        if len == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(len) }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.to_server.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Client = tungstenite::WebSocket<Wire>;

fn server(origins: &[&str]) -> WebSocket {
    let origins: Arc<[String]> = origins.iter().map(|origin| (*origin).to_owned()).collect();
    WebSocket::accept(WebSocketLimits { message_bytes_max: MAX }, origins)
}

/// What a server made of some bytes.
#[derive(Debug, PartialEq)]
struct Seen {
    messages: Vec<Vec<u8>>,
    output: Vec<u8>,
    result: Result<WsProgress, WsError>,
}

fn feed<'a>(server: &mut WebSocket, pieces: impl IntoIterator<Item = &'a [u8]>) -> Seen {
    let mut seen = Seen { messages: Vec::new(), output: Vec::new(), result: Ok(WsProgress::Handshaking) };
    for piece in pieces {
        seen.result = server.receive(piece, &mut |message| seen.messages.push(message.to_vec()));
        server.take_output(&mut seen.output);
    }
    seen
}

fn start(headers: &[(&'static str, &str)]) -> MidHandshake<ClientHandshake<Wire>> {
    let mut request = "ws://lb.example.net/any/path?x=y".into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    let client = ClientHandshake::start(Wire::default(), request, None).unwrap();
    match client.handshake() {
        Err(HandshakeError::Interrupted(mid)) => mid,
        other => panic!("{other:?}"),
    }
}

/// A client and a server that have shaken hands, and what the client sent for it.
fn connect() -> (Client, WebSocket, Vec<u8>) {
    let mut mid = start(&[("Sec-WebSocket-Protocol", "sip")]);
    let wire = mid.get_mut().get_mut();
    let head = std::mem::take(&mut wire.to_server);
    let mut server = server(&[]);
    assert!(server.is_handshaking());
    let seen = feed(&mut server, [&head[..]]);
    assert_eq!((seen.result, server.is_handshaking()), (Ok(WsProgress::Open), false));
    wire.to_client = seen.output;
    let (client, response) = mid.handshake().unwrap();
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["Sec-WebSocket-Protocol"], "sip");
    (client, server, head)
}

fn sent(client: &mut Client) -> Vec<u8> {
    client.flush().unwrap();
    std::mem::take(&mut client.get_mut().to_server)
}

fn fragment(payload: &str, data: Data, is_final: bool) -> Message {
    Message::Frame(Frame::message(payload.as_bytes().to_vec(), OpCode::Data(data), is_final))
}

#[test]
fn messages_come_and_go_whole_in_text_and_binary() {
    let (mut client, mut server, _) = connect();
    client.send(Message::text(OPTIONS)).unwrap();
    client.send(Message::binary(b"\xff\x00".to_vec())).unwrap();
    let bytes = sent(&mut client);
    let seen = feed(&mut server, [&bytes[..]]);
    assert_eq!(seen.messages, [OPTIONS.as_bytes(), b"\xff\x00"]);
    assert!(seen.output.is_empty());
    let large = vec![b'x'; 70_000];
    for message in [OPTIONS.as_bytes(), b"SIP/2.0 200 \xff\r\n\r\n", &large] {
        server.send(message).unwrap();
    }
    server.take_output(&mut client.get_mut().to_client);
    assert_eq!(client.read().unwrap(), Message::text(OPTIONS));
    assert_eq!(client.read().unwrap(), Message::binary(b"SIP/2.0 200 \xff\r\n\r\n".to_vec()));
    assert_eq!(client.read().unwrap(), Message::text("x".repeat(70_000)));
}

#[test]
fn every_split_of_a_connection_gives_the_same_messages_and_answers() {
    let (mut client, _, mut stream) = connect();
    client.send(Message::text(OPTIONS)).unwrap();
    client.send(Message::Ping(b"are you there".to_vec().into())).unwrap();
    client.send(fragment("REGISTER sip:a SIP/2.0\r\n", Data::Text, false)).unwrap();
    client.send(Message::Ping(b"between".to_vec().into())).unwrap();
    client.send(fragment("\r\n", Data::Continue, true)).unwrap();
    client.send(Message::text("\r\n\r\n")).unwrap();
    client.send(Message::binary(vec![b'y'; 300])).unwrap();
    client.close(Some(CloseFrame { code: CloseCode::Normal, reason: "bye".into() })).unwrap();
    stream.extend(sent(&mut client));
    let whole = feed(&mut server(&[]), [&stream[..]]);
    assert_eq!(whole.messages, [OPTIONS.as_bytes(), b"REGISTER sip:a SIP/2.0\r\n\r\n", &[b'y'; 300]]);
    assert_eq!(whole.result, Ok(WsProgress::Closed));
    let head_end = whole.output.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    // Two pongs with what the pings had, one keep-alive answer, and the peer's own Close.
    let told: &[u8] = b"\x8a\x0dare you there\x8a\x07between\x81\x02\r\n\x88\x05\x03\xe8bye";
    assert_eq!(&whole.output[head_end..], told);
    for cut in 0..=stream.len() {
        let (a, b) = stream.split_at(cut);
        assert_eq!(feed(&mut server(&[]), [a, b]), whole, "cut at {cut}");
    }
    for size in [1, 2, 3, 7, 64] {
        assert_eq!(feed(&mut server(&[]), stream.chunks(size)), whole, "in pieces of {size}");
    }
}

#[test]
fn keep_alives_are_answered_and_not_handed_up() {
    let (mut client, mut server, _) = connect();
    for text in ["\r\n\r\n", "\r\n", ""] {
        client.send(Message::text(text)).unwrap();
    }
    client.send(Message::binary(b"\r\n\r\n".to_vec())).unwrap();
    client.send(Message::Pong(Vec::new().into())).unwrap();
    let bytes = sent(&mut client);
    let seen = feed(&mut server, [&bytes[..]]);
    assert!(seen.messages.is_empty());
    client.get_mut().to_client = seen.output;
    assert_eq!(client.read().unwrap(), Message::text("\r\n"));
    assert_eq!(client.read().unwrap(), Message::text("\r\n"));
    assert!(client.get_ref().to_client.is_empty());
}

/// The HTTP answer to a head, and how the server ended.
fn refusal(server: &mut WebSocket, head: &str) -> (String, Result<WsProgress, WsError>) {
    let mut results = Vec::new();
    for cut in (0..=head.len()).rev() {
        let mut fresh = self::server(&["https://phone.example.com"]);
        let (a, b) = head.as_bytes().split_at(cut);
        let seen = feed(&mut fresh, [a, b]);
        assert!(seen.messages.is_empty());
        results.push(seen);
    }
    results.dedup();
    let [seen] = &results[..] else { panic!("{results:?}") };
    let text = String::from_utf8(seen.output.clone()).unwrap();
    assert!(text.ends_with("\r\n\r\n") && text.contains("Connection: close\r\n"), "{text}");
    // An error is the end.
    assert_eq!(feed(server, [head.as_bytes(), b"GET / HTTP/1.1\r\n\r\n"]).result, seen.result);
    assert_eq!(server.send(b"x"), Err(WsError::NotOpen));
    (text.lines().next().unwrap().to_owned(), seen.result)
}

#[test]
fn who_may_not_connect_is_told_so_in_http() {
    let good = "Host: lb\r\nOrigin: https://phone.example.com\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: xmpp, sip\r\n";
    let without = |start: &str| good.lines().filter(|l| !l.starts_with(start)).map(|l| format!("{l}\r\n")).collect();
    let with = |line: &str| format!("{}{line}\r\n", without(line.split(' ').next().unwrap()));
    let cases: Vec<(&str, String, u16)> = vec![
        ("GET / HTTP/1.1", with("Upgrade: h2c"), 426),
        ("GET / HTTP/1.1", without("Upgrade"), 426),
        ("GET / HTTP/1.1", without("Connection"), 426),
        ("GET / HTTP/1.1", with("Sec-WebSocket-Version: 8"), 426),
        ("GET / HTTP/1.1", with("Sec-WebSocket-Key: short"), 400),
        ("GET / HTTP/1.1", with("Sec-WebSocket-Protocol: sipx, xsip"), 400),
        ("GET / HTTP/1.1", without("Sec-WebSocket-Protocol"), 400),
        ("GET / HTTP/1.1", with("Origin: https://phone.example.com.evil.example"), 403),
        ("GET / HTTP/1.1", format!("{good}Origin: https://evil.example\r\n"), 403),
        ("GET / HTTP/1.1", without("Origin"), 403),
        ("POST / HTTP/1.1", good.to_owned(), 405),
        ("GET / HTTP/1.0", good.to_owned(), 400),
        ("OPTIONS sip:a SIP/2.0", "Via: x\r\n".to_owned(), 400),
        ("GET / HTTP/1.1", format!("{good}no colon\r\n"), 400),
        ("GET / HTTP/1.1", format!("{good}\n{good}"), 400),
        ("GET / HTTP/1.1", "A: b\r\n".repeat(200), 431),
    ];
    for (line, headers, status) in cases {
        let head = format!("{line}\r\n{headers}\r\n");
        let (answer, result) = refusal(&mut server(&["https://phone.example.com"]), &head);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer} to {head}");
        assert_eq!(result, Err(WsError::Refused(status)), "{head}");
    }
    for (origins, headers) in [
        (&["https://other.example", "HTTPS://phone.example.com"][..], good.to_owned()),
        (&[], without("Origin")),
        (&[], with("Sec-WebSocket-Protocol: xmpp\r\nSec-WebSocket-Protocol: \tsip")),
    ] {
        let head = format!("GET /a HTTP/1.1\r\n{headers}\r\n");
        let seen = feed(&mut server(origins), [head.as_bytes()]);
        assert_eq!(seen.result, Ok(WsProgress::Open), "{}", String::from_utf8_lossy(&seen.output));
        // The example of RFC 6455 1.3.
        assert!(String::from_utf8(seen.output).unwrap().contains(": s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
    }
}

#[test]
fn a_head_that_never_ends_and_other_protocols_are_cut_off() {
    let endless = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(2 * HEAD_MAX)).into_bytes();
    for size in [1, 1000, endless.len()] {
        let seen = feed(&mut server(&[]), endless.chunks(size));
        assert_eq!(seen.result, Err(WsError::Refused(431)));
        assert!(seen.output.starts_with(b"HTTP/1.1 431 "));
    }
    assert_eq!(feed(&mut server(&[]), [&endless[..HEAD_MAX - 1]]).result, Ok(WsProgress::Handshaking));
    assert_eq!(feed(&mut server(&[]), [&endless[..HEAD_MAX]]).result, Err(WsError::Refused(431)));
    let seen = feed(&mut server(&[]), [&b"\x16\x03\x01"[..]]);
    assert_eq!((seen.result, &seen.output[..]), (Err(WsError::NotHttp), &b""[..]));
}

/// The code of the Close that ends the output.
fn close_code(output: &[u8]) -> u16 {
    assert_eq!(output[..2], [0x88, 2]);
    u16::from_be_bytes([output[2], output[3]])
}

#[test]
fn what_breaks_the_rules_is_closed_with_the_code_for_it() {
    let masked = |first: u8, len: &[u8], payload: &[u8]| [&[first], len, &[0; 4], payload].concat();
    let whole = |first: u8, payload: &[u8]| masked(first, &[0x80 | payload.len() as u8], payload);
    let too_large = u64::try_from(MAX + 1).unwrap().to_be_bytes();
    let half = vec![b'x'; MAX / 2 + 1];
    let half_len = [&[0xfe][..], &(half.len() as u16).to_be_bytes()].concat();
    let cases = [
        ("length", masked(0x82, &[&[0xff][..], &too_large].concat(), b""), 1009, WsError::TooLarge),
        ("largest length", masked(0x82, &[0xff; 9], b""), 1009, WsError::TooLarge),
        (
            "fragments",
            [masked(0x02, &half_len, &half), masked(0x80, &half_len, &half)].concat(),
            1009,
            WsError::TooLarge,
        ),
        ("text", whole(0x81, b"\xff\xfe"), 1007, WsError::NotUtf8),
        ("unmasked", b"\x81\x01x".to_vec(), 1002, WsError::Malformed),
        ("reserved bit", whole(0xc1, b"x"), 1002, WsError::Malformed),
        ("opcode", whole(0x83, b"x"), 1002, WsError::Malformed),
        ("continuation of nothing", whole(0x80, b"x"), 1002, WsError::Malformed),
        ("text in a fragment", [whole(0x01, b"x"), whole(0x81, b"y")].concat(), 1002, WsError::Malformed),
        ("fragmented ping", whole(0x09, b"x"), 1002, WsError::Malformed),
        ("half a Close", whole(0x88, b"x"), 1002, WsError::Malformed),
    ];
    for (what, bytes, code, error) in cases {
        let (_, mut server, _) = connect();
        let seen = feed(&mut server, bytes.chunks(5).chain([&whole(0x81, b"late")[..]]));
        assert_eq!((seen.result, close_code(&seen.output)), (Err(error), code), "{what}");
        assert!(seen.messages.is_empty() && seen.output.len() == 4, "{what}");
        assert_eq!(server.send(b"x"), Err(WsError::NotOpen));
    }
}

#[test]
fn the_limit_of_a_message_holds_to_the_byte() {
    let (mut client, mut server, _) = connect();
    client.send(Message::binary(vec![b'x'; MAX])).unwrap();
    client.send(fragment(&"y".repeat(MAX - 1), Data::Text, false)).unwrap();
    client.send(fragment("y", Data::Continue, true)).unwrap();
    let bytes = sent(&mut client);
    let seen = feed(&mut server, [&bytes[..]]);
    assert_eq!(seen.messages, [vec![b'x'; MAX], vec![b'y'; MAX]]);
    client.send(Message::binary(vec![b'x'; MAX + 1])).unwrap();
    assert_eq!(feed(&mut server, [&sent(&mut client)[..]]).result, Err(WsError::TooLarge));
}

/// Frames around the size at which buffers are given back, so that this happens between, inside and after messages.
#[test]
fn large_messages_and_fragments_survive_every_split_around_them() {
    let stream = |client: &mut Client| {
        client.send(Message::binary(vec![b'a'; 5000])).unwrap();
        client.send(fragment(&"b".repeat(5000), Data::Text, false)).unwrap();
        client.send(Message::Ping(b"ping".to_vec().into())).unwrap();
        client.send(fragment(&"c".repeat(4500), Data::Continue, false)).unwrap();
        client.send(fragment("d", Data::Continue, true)).unwrap();
        client.send(Message::binary(vec![b'e'; 5000])).unwrap();
        client.send(Message::text(OPTIONS)).unwrap();
        sent(client)
    };
    let limits = WebSocketLimits { message_bytes_max: 10_000 };
    let (mut client, _, head) = connect();
    let bytes = stream(&mut client);
    let feed_cut = |cuts: &[usize]| {
        let mut server = WebSocket::accept(limits, Arc::new([]));
        feed(&mut server, [&head[..]]);
        let mut start = 0;
        let pieces = cuts.iter().copied().chain([bytes.len()]).map(|end| {
            let piece = &bytes[start..end];
            start = end;
            piece
        });
        feed(&mut server, pieces)
    };
    let whole = feed_cut(&[]);
    let lengths: Vec<usize> = whole.messages.iter().map(Vec::len).collect();
    assert_eq!((lengths, whole.result), (vec![5000, 9501, 5000, OPTIONS.len()], Ok(WsProgress::Open)));
    assert_eq!(whole.output, b"\x8a\x04ping");
    for cut in 0..bytes.len() - 1 {
        assert_eq!(feed_cut(&[cut, cut + 1]), whole, "cut at {cut}");
    }
}

#[test]
fn a_close_of_ours_waits_for_the_peers_and_hands_nothing_up() {
    let (mut client, mut server, _) = connect();
    server.close(1001);
    server.close(1000);
    assert_eq!(server.send(b"x"), Err(WsError::NotOpen));
    client.send(Message::text("BYE sip:a SIP/2.0\r\n\r\n")).unwrap();
    let seen = feed(&mut server, [&sent(&mut client)[..]]);
    assert_eq!((seen.result, seen.messages.len()), (Ok(WsProgress::Closing), 0));
    assert_eq!((seen.output.len(), close_code(&seen.output)), (4, 1001));
    client.get_mut().to_client = seen.output;
    assert!(matches!(client.read(), Ok(Message::Close(Some(frame))) if frame.code == CloseCode::Away));
    assert!(matches!(client.read(), Err(Error::Io(_))));
    let answer = std::mem::take(&mut client.get_mut().to_server);
    let seen = feed(&mut server, [&answer[..], b"more"]);
    assert_eq!((seen.result, seen.output.len()), (Ok(WsProgress::Closed), 0));
}

#[test]
fn a_close_before_the_handshake_says_nothing() {
    let mut server = server(&[]);
    server.close(1001);
    let seen = feed(&mut server, [&b"GET / HTTP/1.1\r\n\r\n"[..]]);
    assert_eq!((seen.result, seen.output.len()), (Ok(WsProgress::Closed), 0));
    assert!(!server.is_handshaking());
}

/// A server behind the example handshake of RFC 6455, without a client.
fn open() -> WebSocket {
    let mut server = server(&[]);
    let head = b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: sip\r\n\r\n";
    assert_eq!(feed(&mut server, [&head[..]]).result, Ok(WsProgress::Open));
    server
}

#[test]
fn frames_of_any_kind_and_order_give_the_same_under_every_split_and_no_more_out_than_came_in() {
    let mut prng = Prng::new(3);
    let mut ends = BTreeMap::new();
    for _ in 0..3000 {
        let mut bytes = Vec::new();
        for _ in 0..prng.below(8) {
            let likely = [0x81, 0x82, 0x82, 0x01, 0x02, 0x00, 0x80, 0x80, 0x89, 0x8a, 0x88, 0xc1, 0x83];
            bytes.push(likely[prng.below(likely.len() as u64) as usize]);
            let payload = [&b"\r\n\r\n"[..], b"", b"INVITE", b"\x03\xe8bye", b"\xc3", b"\xa9"][prng.below(6) as usize];
            bytes.push(0x80 | payload.len() as u8);
            bytes.extend([0; 4]);
            bytes.extend(payload);
        }
        if prng.below(4) == 0 && !bytes.is_empty() {
            let at = prng.below(bytes.len() as u64) as usize;
            bytes[at] = prng.next_u64() as u8;
        }
        let whole = feed(&mut open(), [&bytes[..]]);
        // A Close of ours has up to 22 bytes.
        assert!(whole.output.len() <= bytes.len() + 22, "{} after {}", whole.output.len(), bytes.len());
        for size in [1, 1 + prng.below(20) as usize] {
            let seen = feed(&mut open(), bytes.chunks(size).chain([&b""[..]]));
            assert_eq!(seen, whole, "{bytes:02x?} in pieces of {size}");
        }
        *ends.entry(format!("{:?}", whole.result)).or_insert(0) += 1;
    }
    assert!(ends.len() == 4 && ends.values().all(|count| *count > 20), "{ends:?}");
}
