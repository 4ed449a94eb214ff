//! What connections carry besides calls: pings, messages in pieces and in heaps, WebSocket.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use tungstenite::handshake::client::Response;
use tungstenite::{Message, client};

use crate::bed::local;
use crate::callee::{Callee, Door};
use crate::certificates::Trust;
use crate::endpoint::{Author, headers};
use crate::node::Plan;
use crate::phone::{Heard, Phone, connect_from};
use crate::{Place, Random, free_port};

const SOON: Duration = Duration::from_secs(3);

#[test]
fn pings_are_answered_between_messages_over_tcp_and_tls() {
    let place = Place::take("pong");
    let trust = Trust::new(place.folder());
    trust.write("proxy", &["127.0.0.1"]);
    let backend = Callee::start(Door::Tcp);
    let [plain, tls] = [local(free_port()), local(free_port())];
    let plan = Plan::new(&[format!("tcp:{plain}"), format!("tls:{tls}")], &[backend.target()]);
    let node = plan.start(&place, &Trust::section("proxy"));
    let phones = [Phone::connect(plain), Phone::connect_tls(tls, &trust.client(None), "127.0.0.1").unwrap()];
    for (number, mut phone) in phones.into_iter().enumerate() {
        // A lone CRLF is no ping; the second one makes it one.
        phone.send(b"\r\n");
        assert_eq!(phone.hear(Duration::from_millis(200)), Heard::Nothing);
        phone.send(b"\r\n");
        assert_eq!(phone.hear(SOON), Heard::Pong);
        phone.send(&b"\r\n\r\n".repeat(5));
        (0..5).for_each(|_| assert_eq!(phone.hear(SOON), Heard::Pong));
        phone.call(&format!("between-{number}"));
        phone.send(b"\r\n\r\n");
        assert_eq!(phone.hear(SOON), Heard::Pong);
        assert_eq!(phone.hear(Duration::from_millis(100)), Heard::Nothing);
    }
    let (_, _, report) = node.stop();
    report.check_balance();
}

#[test]
fn messages_in_pieces_and_in_heaps_arrive_whole_and_once() {
    let place = Place::take("pieces");
    let trust = Trust::new(place.folder());
    trust.write("proxy", &["127.0.0.1"]);
    let backend = Callee::start(Door::Tls(trust.server(&trust.write("pbx", &["127.0.0.1"]), false)));
    let [plain, tls] = [local(free_port()), local(free_port())];
    let mut plan = Plan::new(&[format!("tcp:{plain}"), format!("tls:{tls}")], &[backend.target()]);
    plan.pool = format!("[pool.tls]\nca = {:?}\n", trust.ca);
    let node = plan.start(&place, &Trust::section("proxy"));
    let mut random = Random(0x9_1ece_5000_0001);
    let phones = [Phone::connect(plain), Phone::connect_tls(tls, &trust.client(None), "127.0.0.1").unwrap()];
    for (kind, mut phone) in phones.into_iter().enumerate() {
        for round in 0..12 {
            let bodies: Vec<Vec<u8>> = [0, 1, 900, 20_000, 60_000, 3].map(|len| random.bytes(len)).to_vec();
            let call_id = |number| format!("pieces-{kind}-{round}-{number}");
            let messages = bodies.iter().enumerate();
            let text: Vec<u8> = messages
                .flat_map(|(number, body)| phone.author.request("MESSAGE", &call_id(number), phone.service, body))
                .collect();
            let mut start = 0;
            for end in random.cuts(text.len(), round).into_iter().chain([text.len()]) {
                phone.send(&text[start..end]);
                start = end;
                std::thread::sleep(Duration::from_millis(1));
            }
            let mut answered = std::collections::BTreeMap::new();
            for _ in &bodies {
                let Heard::Message(answer) = phone.hear(SOON) else { panic!("round {round}: an answer is missing") };
                answered.insert(headers(&answer, "Call-ID").concat(), crate::endpoint::body(&answer).to_vec());
            }
            for (number, body) in bodies.iter().enumerate() {
                assert_eq!(backend.methods(&call_id(number)), ["MESSAGE"]);
                assert!(answered[&call_id(number)] == *body, "round {round}, message {number}");
            }
        }
        assert_eq!(phone.hear(Duration::from_millis(100)), Heard::Nothing);
    }
    let (_, _, report) = node.stop();
    report.check_balance();
    report.check_nothing_shed();
}

fn web_author(address: SocketAddr) -> Author {
    Author { address, via: "WS", contact: "<sip:alice@df7jal23ls0d.invalid;transport=ws>".to_owned() }
}

type Dialled = (tungstenite::WebSocket<TcpStream>, Response);

fn dial(web: SocketAddr, origin: &str) -> Option<Dialled> {
    let request = tungstenite::http::Request::builder()
        .uri(format!("ws://{web}/"))
        .header("Host", web.to_string())
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("Sec-WebSocket-Protocol", "sip")
        .header("Origin", origin)
        .body(())
        .unwrap();
    client(request, connect_from(None, web).unwrap()).ok()
}

#[test]
fn web_socket_carries_a_call_and_what_the_backend_asks_in_it() {
    let place = Place::take("web-socket");
    let backend = Callee::start(Door::Tcp);
    let [plain, web] = [local(free_port()), local(free_port())];
    let mut plan = Plan::new(&[format!("tcp:{plain}"), format!("ws:{web}")], &[backend.target()]);
    plan.service = "origins = [\"https://phone.example.com\"]\n".to_owned();
    let node = plan.start(&place, "");
    assert!(dial(web, "https://evil.example.com").is_none(), "a page that may not");
    let (mut socket, response) = dial(web, "https://phone.example.com").unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "sip");
    let author = web_author(SocketAddr::from(([192, 0, 2, 1], 5060)));
    let mut say = |text: Vec<u8>| -> Vec<u8> {
        socket.send(Message::Text(String::from_utf8(text).unwrap().into())).unwrap();
        loop {
            match socket.read().unwrap() {
                Message::Text(text) => return text.as_bytes().to_vec(),
                Message::Binary(bytes) => return bytes.to_vec(),
                _ => {}
            }
        }
    };
    let invite = author.request("INVITE", "web", web, b"");
    let ok = say(invite);
    assert!(ok.starts_with(b"SIP/2.0 200"), "{}", String::from_utf8_lossy(&ok));
    let ack = author.request_in_dialog("ACK", 1, &ok, "web");
    let bye = author.request_in_dialog("BYE", 2, &ok, "web");
    socket.send(Message::Text(String::from_utf8(ack).unwrap().into())).unwrap();
    socket.send(Message::Ping(vec![1, 2, 3].into())).unwrap();
    socket.send(Message::Text(String::from_utf8(bye).unwrap().into())).unwrap();
    let mut has_pong = false;
    loop {
        match socket.read().unwrap() {
            Message::Pong(payload) => has_pong = payload.as_ref() == [1, 2, 3],
            Message::Text(text) => {
                assert!(text.starts_with("SIP/2.0 200") && text.contains("CSeq: 2 BYE"), "{text}");
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(has_pong);
    backend.check_call("web");
    socket.close(None).unwrap();
    while socket.read().is_ok() {}
    node.await_report("it to be gone", |report| report.total("connections") <= 2);
    let (_, _, report) = node.stop();
    assert_eq!(report.total("handshakes_failed_total"), 1, "the page that may not: {report:#?}");
    report.check_balance();
}
