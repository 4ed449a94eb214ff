//! One message a file, one file a rule: what goes in, and byte for byte what must come out.
//!
//! `tests/data/messages/NAME.sip` is the datagram, `NAME.expect` beside it says what must become of it:
//!
//! ```text
//! # the rule and where it is written
//! from 203.0.113.77:5062              who sends it
//! at 192.0.2.10:5060                  to which listener of node.toml
//! given token backend=pbx2 client=... what {given} stands for in it; {forged}, {short}, {foreign} are spoiled ones
//! given branch 192.0.2.10:5060        what {branch} stands for in it: ours for the Via below, by this listener
//! forward pool pbx | forward ADDRESS | answer STATUS REASON | drop REASON
//! want token ... | want leaves LISTENER | want to ADDRESS | want refused N
//! ---
//! the bytes out; {branch}, {token}, {given} and {tag} are computed with the node's real keys
//! ```
//!
//! What is forwarded as a request is answered as a backend would, and the answer must find its way back.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use rig::{Fate, Rig, Sent};
use tandem::base::id::{BackendId, Transport};
use tandem::base::span::Span;
use tandem::fuzzing::naive::NaiveMessage;
use tandem::metrics::Reason;
use tandem::route::cookie::{BranchInput, Cookie, TOKEN_MAX};
use tandem::sip::cseq::CSeq;
use tandem::sip::via::{Rport, Via};

mod rig;

const NODE: &str = include_str!("data/messages/node.toml");

type Outcome<T> = Result<T, String>;

/// An expectation file.
struct Expect {
    from: SocketAddr,
    at: SocketAddr,
    given: Option<String>,
    fate: String,
    wants: Vec<String>,
    out: Option<Vec<u8>>,
}

impl Expect {
    fn read(bytes: &[u8]) -> Expect {
        let (head, out) = match find(bytes, b"---\n") {
            Some(at) => (&bytes[..at], Some(bytes[at + 4..].to_vec())),
            None => (bytes, None),
        };
        let head = std::str::from_utf8(head).unwrap();
        let of = |key: &'static str| head.lines().filter_map(move |line| line.strip_prefix(key)).map(str::to_owned);
        let is_fate = |line: &&str| ["forward ", "answer ", "drop "].iter().any(|word| line.starts_with(word));
        Expect {
            from: of("from ").next().unwrap().parse().unwrap(),
            at: of("at ").next().unwrap().parse().unwrap(),
            given: of("given ").next(),
            fate: head.lines().find(is_fate).unwrap().to_owned(),
            wants: of("want ").collect(),
            out,
        }
    }

    fn want<'a>(&'a self, key: &'a str) -> Option<&'a str> {
        self.wants.iter().find_map(|want| want.strip_prefix(key)?.strip_prefix(' '))
    }
}

fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text)
}

fn replace(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    let (mut rest, mut out) = (bytes, Vec::new());
    while let Some(at) = find(rest, from.as_bytes()) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(to.as_bytes());
        rest = &rest[at + from.len()..];
    }
    out.extend_from_slice(rest);
    out
}

fn header(bytes: &[u8], name: &str) -> String {
    let message = NaiveMessage::read(bytes, 1000);
    message.values(bytes, name).next().map(|v| String::from_utf8_lossy(v).into_owned()).unwrap_or_default()
}

/// `token backend=pbx1 client=... ingress=... initial=TAG by=client follows=yes` as a cookie.
fn cookie(rig: &Rig, text: &str, call_id: &str, served: Option<&str>) -> Cookie {
    let fields: BTreeMap<&str, &str> = text.split(' ').filter_map(|field| field.split_once('=')).collect();
    let backend = match fields["backend"] {
        "served" => served.expect("a backend served it"),
        name => name,
    };
    Cookie {
        backend: BackendId::from_name(backend),
        ingress: rig.listener_id(fields["ingress"].parse().unwrap()),
        initial_tag: rig.keys().tag_hash(call_id.as_bytes(), fields["initial"].as_bytes()),
        client: fields["client"].parse().unwrap(),
        transport: Transport::Udp,
        flow: None,
        is_from_backend: fields["by"] == "backend",
        follows_text: fields["follows"] == "yes",
    }
}

fn token(rig: &Rig, text: &str, call_id: &str, served: Option<&str>) -> String {
    let cookie = cookie(rig, text, call_id, served);
    let mut out = [0; TOKEN_MAX];
    let len = rig.keys().encode_token(call_id.as_bytes(), &cookie, &mut out);
    assert_eq!(rig.keys().decode_token(call_id.as_bytes(), &out[..len]), Some(cookie), "a token is read as minted");
    String::from_utf8(out[..len].to_vec()).unwrap()
}

/// The branch that we write for a request from `source`, or have written for a response.
fn branch(rig: &Rig, bytes: &[u8], ingress: SocketAddr, source: Option<IpAddr>, call_id: &str) -> String {
    let message = NaiveMessage::read(bytes, 1000);
    let mut vias = Vec::new();
    for header in message.headers.iter().filter(|h| h.name == "via") {
        let mut next = Some(header.value.start);
        while let Some(start) = next {
            let Ok(via) = Via::decode(bytes, Span::new(start, header.value.end)) else { break };
            next = via.next.map(|next| next as usize);
            vias.push(via);
        }
    }
    // In a request the client's Via is on top; in a response it is below ours and says where the client is.
    let Some(via) = vias.get(usize::from(source.is_none())) else { return String::new() };
    let told = via.received_ip(bytes).or(via.ip(bytes));
    let address = source.or(told).unwrap_or(IpAddr::from([0, 0, 0, 0]));
    let cseq = message.headers.iter().find(|h| h.name == "cseq").map(|h| Span::new(h.value.start, h.value.end));
    let input = BranchInput {
        branch: via.branch.map_or(&[], |b| b.of(bytes)),
        host: via.host.of(bytes),
        port: via.port_or_default(),
        address,
        call_id: call_id.as_bytes(),
        cseq: cseq.and_then(|span| CSeq::decode(bytes, span).ok()).map_or(0, |cseq| cseq.number),
    };
    String::from_utf8(rig.keys().encode_branch(rig.listener_id(ingress), &input).to_vec()).unwrap()
}

fn local_tag(rig: &Rig, bytes: &[u8]) -> String {
    let from = header(bytes, "from");
    let is_readable = from.matches('"').count().is_multiple_of(2);
    let tag = from.split("tag=").nth(1).and_then(|rest| rest.split(';').next()).filter(|_| is_readable).unwrap_or("");
    String::from_utf8(rig.keys().local_tag(header(bytes, "call-id").as_bytes(), tag.as_bytes()).to_vec()).unwrap()
}

/// Puts signed text, and spoiled forms of it, where the message has placeholders.
fn fill(rig: &Rig, expect: &Expect, bytes: &[u8]) -> Vec<u8> {
    let call_id = header(bytes, "call-id");
    let make = |given: &str, call_id: &str| match given.split_once(' ') {
        Some(("branch", ingress)) => branch(rig, bytes, ingress.parse().unwrap(), None, call_id),
        _ => token(rig, given, call_id, None),
    };
    let mut filled = replace(bytes, "{tag}", &local_tag(rig, bytes));
    if let Some(given) = &expect.given {
        let good = make(given, &call_id);
        let middle = good.len() / 2;
        let other = if good.as_bytes()[middle] == b'A' { "B" } else { "A" };
        let forged = format!("{}{other}{}", &good[..middle], &good[middle + 1..]);
        for (key, text) in [
            ("{given}", good.as_str()),
            ("{branch}", &good),
            ("{forged}", &forged),
            ("{short}", &good[..good.len() - 2]),
            ("{foreign}", &make(given, "another-call")),
        ] {
            filled = replace(&filled, key, text);
        }
    }
    filled
}

fn run(name: &str, folder: &Path) -> Outcome<()> {
    let template = fs::read(folder.join(format!("{name}.sip"))).unwrap();
    let text = fs::read(folder.join(format!("{name}.expect"))).map_err(|_| "has no .expect")?;
    let expect = Expect::read(&text);
    let mut rig = Rig::new(NODE);
    let bytes = fill(&rig, &expect, &template);
    let fate = rig.handle(expect.from, expect.at, &bytes);
    let refused = expect.want("refused").map_or(0, |n| n.parse().unwrap());
    if rig.engine().counters().cookies_refused != refused {
        return Err(format!("{} cookies refused", rig.engine().counters().cookies_refused));
    }
    let words: Vec<&str> = expect.fate.split(' ').collect();
    let sent = match (&words[..], &fate) {
        (["drop", reason], Fate::Dropped(seen)) if seen.label() == *reason => return Ok(()),
        (["answer", status, reason], Fate::Answered(seen, why, sent))
            if seen.to_string() == *status && why.label() == *reason =>
        {
            if sent.from != expect.at {
                return Err(format!("answered from {}", sent.from));
            }
            sent
        }
        (["forward", "pool", pool], Fate::Forwarded(sent)) if pool_of(&rig, sent.to).as_deref() == Some(*pool) => sent,
        (["forward", to], Fate::Forwarded(sent)) if sent.to.to_string() == *to => sent,
        _ => return Err(format!("{:?} wanted, {}", expect.fate, show(&fate))),
    };
    check_sent(&rig, &expect, &template, sent)?;
    match &fate {
        Fate::Forwarded(sent) if !template.starts_with(b"SIP/") => check_way_back(&mut rig, &expect, &bytes, sent),
        _ => Ok(()),
    }
}

fn pool_of(rig: &Rig, address: SocketAddr) -> Option<String> {
    let snapshot = rig.snapshot();
    let index = snapshot.backend_by_address(address)?;
    Some(snapshot.pools[snapshot.backend(index).pool].name.to_string())
}

fn show(fate: &Fate) -> String {
    match fate {
        Fate::Forwarded(sent) => format!("forwarded to {}:\n{}", sent.to, String::from_utf8_lossy(&sent.bytes)),
        Fate::Answered(status, reason, sent) => {
            format!("answered {status} {} to {}:\n{}", reason.label(), sent.to, String::from_utf8_lossy(&sent.bytes))
        }
        Fate::Dropped(reason) => format!("dropped: {}", reason.label()),
    }
}

fn check_sent(rig: &Rig, expect: &Expect, template: &[u8], sent: &Sent) -> Outcome<()> {
    for (want, is) in [("leaves", sent.from), ("to", sent.to)] {
        if expect.want(want).is_some_and(|address| address != is.to_string()) {
            return Err(format!("{want} {is}"));
        }
    }
    let call_id = header(template, "call-id");
    let mut out = expect.out.clone().ok_or("has no bytes out")?;
    let own_branch = branch(rig, template, expect.at, Some(expect.from.ip()), &call_id);
    for (key, text) in [
        ("{branch}", Some(own_branch)),
        ("{tag}", Some(local_tag(rig, template))),
        ("{token}", expect.want("token").map(|t| token(rig, t, &call_id, rig.backend_at(sent.to)))),
        ("{given}", expect.given.as_ref().filter(|g| g.starts_with("token")).map(|g| token(rig, g, &call_id, None))),
    ] {
        if let Some(text) = text {
            out = replace(&out, key, &text);
        }
    }
    match out == sent.bytes {
        true => Ok(()),
        false => Err(format!(
            "bytes out\n{}\nbut wanted\n{}",
            String::from_utf8_lossy(&sent.bytes),
            String::from_utf8_lossy(&out)
        )),
    }
}

/// A 200 made of what left, sent from where it went: it must reach who sent the request, with the Via below ours on top.
fn check_way_back(rig: &mut Rig, expect: &Expect, request: &[u8], sent: &Sent) -> Outcome<()> {
    let message = NaiveMessage::read(&sent.bytes, 1000);
    let mut answer = b"SIP/2.0 200 OK\r\n".to_vec();
    let mut want = answer.clone();
    let copied = ["via", "from", "to", "call-id", "cseq"];
    for (i, header) in message.headers.iter().filter(|h| copied.contains(&h.name.as_str())).enumerate() {
        let is_ours = header.name == "via" && answer.len() == want.len() && find(&answer, b"branch=").is_none();
        let line = &sent.bytes[header.line.clone()];
        assert!(i > 0 || header.name != "via" || is_ours);
        answer.extend_from_slice(line);
        if !is_ours {
            want.extend_from_slice(line);
        }
    }
    answer.extend_from_slice(b"\r\n");
    want.extend_from_slice(b"\r\n");
    let via = NaiveMessage::read(request, 1000).headers.into_iter().find(|h| h.name == "via").ok_or("no Via")?;
    let via = Via::decode(request, Span::new(via.value.start, via.value.end)).map_err(|_| "bad Via")?;
    let port = if via.rport == Rport::Absent { via.port_or_default() } else { expect.from.port() };
    match rig.handle(sent.to, sent.from, &answer) {
        Fate::Forwarded(back) if back.to != SocketAddr::new(expect.from.ip(), port) => {
            Err(format!("the response went to {}", back.to))
        }
        Fate::Forwarded(back) if back.from != expect.at => Err(format!("the response left from {}", back.from)),
        Fate::Forwarded(back) if back.bytes != want => {
            Err(format!("the response became\n{}", String::from_utf8_lossy(&back.bytes)))
        }
        Fate::Forwarded(_) => Ok(()),
        other => Err(format!("the response was {}", show(&other))),
    }
}

#[test]
fn each_message_becomes_what_its_expectation_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/messages");
    let mut names: Vec<String> = fs::read_dir(&folder)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().unwrap().strip_suffix(".sip").map(str::to_owned))
        .collect();
    names.sort();
    assert!(names.len() >= 150, "only {} messages", names.len());
    let wrong: Vec<String> =
        names.iter().filter_map(|name| run(name, &folder).err().map(|error| format!("{name}: {error}"))).collect();
    println!("fixtures: {} messages, {} wrong", names.len(), wrong.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn every_reason_that_a_message_alone_can_cause_has_a_fixture() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/messages");
    let mut text = String::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "expect") {
            text.push_str(&String::from_utf8_lossy(&fs::read(path).unwrap()));
        }
    }
    // These need a configuration, a load or many bytes; scenarios and other tests have them.
    let elsewhere = [
        Reason::KeepAlive,
        Reason::TooManyHeaders,
        Reason::Unterminated,
        Reason::TooLarge,
        Reason::NoListener,
        Reason::EditFailed,
        Reason::SipsOverPlain,
        Reason::FlowGone,
        Reason::ConnectFailed,
        Reason::QueueFull,
        Reason::Framing,
        Reason::HandOverFull,
    ];
    let has = |reason: &Reason| text.lines().any(|l| l.ends_with(&format!(" {}", reason.label())));
    let without: Vec<&str> =
        Reason::ALL.iter().filter(|r| !elsewhere.contains(r) && !has(r)).map(|r| r.label()).collect();
    assert!(without.is_empty(), "{without:?}");
}
