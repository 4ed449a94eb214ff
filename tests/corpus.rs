//! The corpora: every message that others published or captured, and what must become of it.
//!
//! Read from `$TANDEM_CORPUS`, by default `../shared/data` beside the repository; their licences are mixed, so they
//! are not part of it. Only `tests/data/regress` is this project's own and always runs. Each set prints one line of
//! counts and a last line sums up; one message that is treated wrongly fails the test and is shown.
//!
//! A message that must pass is sent both ways, whatever it is: a request once more as the response that has its headers and
//! its body, a response as the request that would have them.
//!
//! Where Tandem's decision differs from what an index says, and why, stands in [`DEVIATIONS`].

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oracle::{Judgement, check_forwarded, host_ip, is_via, judge_request, list, sent_by, split_outside};
use rig::{Fate, Rig};
use tandem::base::span::Span;
use tandem::fuzzing::naive::NaiveMessage;
use tandem::metrics::Reason;
use tandem::route::cookie::BranchInput;
use tandem::sip::cseq::CSeq;
use tandem::sip::via::Via;

mod oracle;
mod rig;

const NODE: &str = include_str!("data/messages/node.toml");
const GOOD: &[u8] = include_bytes!("data/messages/rport-asked.sip");
const V4: &str = "192.0.2.10:5060";
const V6: &str = "[2001:db8::10]:5060";
const CLIENT4: &str = "203.0.113.77:5062";

/// `(message, what it differs in, why)`: where Tandem rightly differs from an index or from what an RFC prints.
///
/// In `regress/udp.tsv` the remarks stand beside the case. `maddr` is never followed, in either direction: it would make
/// Tandem a reflector (RFC 3261 18.2.2 notwithstanding); no message of the corpora expects otherwise.
const DEVIATIONS: &[(&str, &str, &str)] = &[
    ("3.05_session-through-a-sip-alg F01.sip", "the body", "the element of the flow rewrites SDP, Tandem never does"),
    (
        "3.11_unsuccessful-temporarily-unavailable F01.sip",
        "the body",
        "the RFC prints the first message without its SDP",
    ),
    (
        "3.02_session-establishment-through-two-proxies F21.sip",
        "lower Via",
        "the RFC changes an address between messages",
    ),
    (
        "3.02_session-establishment-through-two-proxies F22.sip",
        "lower Via",
        "the RFC changes an address between messages",
    ),
];

/// How a set went.
#[derive(Default)]
struct Tally {
    /// Which set, as the last line calls it.
    set: &'static str,
    /// Its messages, each of which makes one case or more.
    messages: usize,
    forwarded: usize,
    answered: usize,
    dropped: usize,
    suppressed: usize,
    wrong: Vec<String>,
}

impl Tally {
    fn count(&mut self, fate: &Fate) {
        match fate {
            Fate::Forwarded(_) => self.forwarded += 1,
            Fate::Answered(..) => self.answered += 1,
            Fate::Dropped(Reason::AnswerTooLarge) => self.suppressed += 1,
            Fate::Dropped(_) => self.dropped += 1,
        }
    }

    /// A set of that name.
    fn of(set: &'static str) -> Tally {
        Tally { set, ..Tally::default() }
    }

    /// Takes note of one message and of what was wrong with it.
    fn note(&mut self, name: &str, result: Result<(), String>) {
        self.messages += 1;
        self.wrong.extend(result.err().map(|error| format!("{name}: {error}")));
    }

    fn line(&self) -> String {
        let Tally { set, messages, forwarded, answered, dropped, suppressed, wrong } = self;
        format!(
            "corpus {set}: {messages} messages, {} cases, {forwarded} forwarded, {answered} answered, {dropped} dropped, \
             {suppressed} answers suppressed, {} wrong",
            forwarded + answered + dropped + suppressed,
            wrong.len()
        )
    }
}

/// The folder of a set; `None`, said plainly, where the corpora are absent.
fn corpus(set: &str) -> Option<PathBuf> {
    let root = std::env::var_os("TANDEM_CORPUS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"), PathBuf::from);
    let folder = root.join(set);
    if !folder.is_dir() {
        println!("corpus {set}: absent ({} is no folder), nothing checked; set TANDEM_CORPUS", folder.display());
        return None;
    }
    Some(folder)
}

/// The rows of a tab-separated file without its head and its remarks.
fn rows(path: &Path) -> Vec<Vec<String>> {
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.skip(1).map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn is_response(bytes: &[u8]) -> bool {
    let start = bytes.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
    bytes.len() >= start + 4 && bytes[start..start + 4].eq_ignore_ascii_case(b"SIP/")
}

/// A good call after a bad one: the node must still work.
fn probe(rig: &mut Rig) -> Result<(), String> {
    match rig.handle(address(CLIENT4), address(V4), GOOD) {
        Fate::Forwarded(sent) => check_forwarded(GOOD, &sent.bytes, address(CLIENT4), address(V4)),
        other => Err(format!("the good message after it: {other:?}")),
    }
}

/// Sends a request from two places: from anywhere, and from where its Via says it is.
fn sources(bytes: &[u8]) -> Vec<SocketAddr> {
    let message = NaiveMessage::read(bytes, 1000);
    let via = message.values(bytes, "via").next().map(|v| String::from_utf8_lossy(v).into_owned()).unwrap_or_default();
    let first = split_outside(&via, ',')[0].clone();
    let sent_by = sent_by(&split_outside(&first, ';')[0]);
    let true_one = host_ip(&sent_by).map(|ip| SocketAddr::new(ip, 5060));
    std::iter::once(address(CLIENT4)).chain(true_one).collect()
}

fn listener_for(source: SocketAddr) -> SocketAddr {
    address(if source.is_ipv4() { V4 } else { V6 })
}

/// The byte oracle on a request that must go on.
fn check_request(rig: &mut Rig, bytes: &[u8], tally: &mut Tally) -> Result<(), String> {
    for source in sources(bytes) {
        let at = listener_for(source);
        let fate = rig.handle(source, at, bytes);
        tally.count(&fate);
        match fate {
            // The pool of the service is IPv4, so everything leaves from its IPv4 listener.
            Fate::Forwarded(sent) if sent.from == at => check_forwarded(bytes, &sent.bytes, source, at)?,
            Fate::Forwarded(sent) => check_crossed(bytes, &sent.bytes, source, sent.from, at)?,
            other => return Err(format!("from {source}: {other:?}")),
        }
    }
    Ok(())
}

/// As [`check_forwarded`] where the sides differ: of the two Record-Route the second, for our side, is taken off first.
fn check_crossed(bytes: &[u8], out: &[u8], source: SocketAddr, from: SocketAddr, at: SocketAddr) -> Result<(), String> {
    let message = NaiveMessage::read(out, 1000);
    let head = format!("Record-Route: <sip:{at};lr;tk=");
    let second = message.headers.iter().find(|h| out[h.line.clone()].starts_with(head.as_bytes()));
    let mut out = out.to_vec();
    if let Some(header) = second {
        out.drain(header.line.clone());
    }
    check_forwarded(bytes, &out, source, from)
}

/// Puts our signed Via on a response, as a backend would send it, and expects the original back.
fn check_response(rig: &mut Rig, bytes: &[u8], tally: &mut Tally) -> Result<(), String> {
    let (original, destination) = with_return_address(bytes)?;
    let sent_back = push_own_via(rig, &original, destination)?;
    let backend = address("198.51.100.11:5060");
    let fate = rig.handle(backend, address(V4), &sent_back);
    tally.count(&fate);
    let message = NaiveMessage::read(&original, 1000);
    match fate {
        Fate::Forwarded(sent) if sent.to != destination => Err(format!("went to {} not {destination}", sent.to)),
        Fate::Forwarded(sent) if sent.from != listener_for(destination) => Err(format!("left from {}", sent.from)),
        Fate::Forwarded(sent) if sent.bytes == original[message.start_line.start..message.body.end] => Ok(()),
        Fate::Forwarded(sent) => Err(format!("changed: {:?}", String::from_utf8_lossy(&sent.bytes))),
        other => Err(format!("{other:?}")),
    }
}

/// The same message with another first line.
fn turned(bytes: &[u8], start_line: &str) -> Vec<u8> {
    let mut turned = bytes.to_vec();
    turned.splice(NaiveMessage::read(bytes, 1000).start_line, start_line.bytes());
    turned
}

/// The response that has the headers and the body of this request must pass unchanged.
fn check_as_response(rig: &mut Rig, bytes: &[u8], tally: &mut Tally) -> Result<(), String> {
    let response = turned(bytes, "SIP/2.0 200 OK\r\n");
    check_response(rig, &response, tally).map_err(|error| format!("as a response: {error}"))
}

/// The request that has the headers and the body of this response, and the method that it answers.
fn check_as_request(rig: &mut Rig, bytes: &[u8], tally: &mut Tally) -> Result<(), String> {
    let message = NaiveMessage::read(bytes, 1000);
    let cseq = message.values(bytes, "cseq").next().map(String::from_utf8_lossy).unwrap_or_default();
    let method = cseq.split_ascii_whitespace().nth(1).unwrap_or_default();
    let request = turned(bytes, &format!("{method} sip:bob@sip.example.com SIP/2.0\r\n"));
    check_judged(rig, &request, tally).map_err(|error| format!("as a request: {error}"))
}

/// The response with a `received` where its top Via has no address, and where it must go.
fn with_return_address(bytes: &[u8]) -> Result<(Vec<u8>, SocketAddr), String> {
    let message = NaiveMessage::read(bytes, 1000);
    let header = message.headers.iter().find(|h| h.name == "via").ok_or("no Via")?;
    let text = String::from_utf8_lossy(&bytes[header.value.clone()]).into_owned();
    let top = split_outside(&text, ',')[0].clone();
    let params = split_outside(&top, ';');
    let value = |name: &str| {
        params[1..].iter().find_map(|p| {
            let (key, value) = p.split_once('=')?;
            key.trim().eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    let sent_by = sent_by(&params[0]);
    let port = sent_by.rsplit_once(':').filter(|(host, _)| !host.contains(':') || host.ends_with(']'));
    let port = value("rport").and_then(|p| p.parse().ok()).or(port.and_then(|(_, p)| p.parse().ok())).unwrap_or(5060);
    let told = value("received").as_deref().map_or_else(|| host_ip(&sent_by), host_ip_bare);
    if let Some(ip) = told.filter(|ip| is_anybody(SocketAddr::new(*ip, port))) {
        return Ok((bytes.to_vec(), SocketAddr::new(ip, port)));
    }
    let mut changed = bytes.to_vec();
    // Tandem would have put the true address in the place of what the sender claimed.
    if let Some(claimed) = params.iter().find(|p| p.trim().to_ascii_lowercase().starts_with("received")) {
        let at = header.value.start + text.find(claimed.as_str()).unwrap_or_default();
        changed.splice(at..at + claimed.len(), b"received=203.0.113.77".iter().copied());
        return Ok((changed, SocketAddr::new(address(CLIENT4).ip(), port)));
    }
    let end = header.value.start + top.trim_end().len();
    changed.splice(end..end, b";received=203.0.113.77".iter().copied());
    Ok((changed, SocketAddr::new(address(CLIENT4).ip(), port)))
}

/// Can a client be there? At our own address or at no single host there is none, whatever its Via says.
fn is_anybody(address: SocketAddr) -> bool {
    let ip = address.ip();
    let is_broadcast = ip == std::net::IpAddr::from([255; 4]);
    let is_ours = NODE.contains(&format!("\"udp:{address}\""));
    !is_ours && !is_broadcast && !ip.is_unspecified() && !ip.is_multicast()
}

/// `received` has no brackets by the grammar and some senders write them.
fn host_ip_bare(text: &str) -> Option<std::net::IpAddr> {
    text.trim_matches(['[', ']']).parse::<std::net::IpAddr>().ok().map(|ip| ip.to_canonical())
}

fn push_own_via(rig: &Rig, bytes: &[u8], destination: SocketAddr) -> Result<Vec<u8>, String> {
    let message = NaiveMessage::read(bytes, 1000);
    let header = |name: &str| message.headers.iter().find(|h| h.name == name).ok_or(format!("no {name}"));
    let span = |name: &str| header(name).map(|h| Span::new(h.value.start, h.value.end));
    let via = Via::decode(bytes, span("via")?).map_err(|_| "Via cannot be read")?;
    let cseq = CSeq::decode(bytes, span("cseq")?).map_err(|_| "CSeq cannot be read")?;
    let input = BranchInput {
        branch: via.branch.map_or(&[], |b| b.of(bytes)),
        host: via.host.of(bytes),
        port: via.port_or_default(),
        address: destination.ip(),
        call_id: span("call-id")?.of(bytes),
        cseq: cseq.number,
    };
    let branch = rig.keys().encode_branch(rig.listener_id(listener_for(destination)), &input);
    let own = format!("Via: SIP/2.0/UDP {V4};branch={}\r\n", String::from_utf8_lossy(&branch));
    let mut sent = bytes.to_vec();
    let at = header("via")?.line.start;
    sent.splice(at..at, own.into_bytes());
    Ok(sent)
}

/// Does the fate of a message fit the word of an index?
fn check_action(rig: &mut Rig, action: &str, bytes: &[u8], tally: &mut Tally) -> Result<(), String> {
    if action == "FORWARD-RESPONSE" {
        return check_response(rig, bytes, tally).and_then(|()| check_as_request(rig, bytes, tally));
    }
    if action == "FORWARD" {
        return check_request(rig, bytes, tally).and_then(|()| check_as_response(rig, bytes, tally));
    }
    let fate = rig.handle(address(CLIENT4), address(V4), bytes);
    tally.count(&fate);
    let may = |word: &str| action.split('-').any(|a| a == word);
    let is_right = match &fate {
        Fate::Forwarded(sent) if may("FORWARD") || may("2543") => {
            return check_forwarded(bytes, &sent.bytes, address(CLIENT4), address(V4));
        }
        Fate::Forwarded(_) => false,
        Fate::Answered(status, ..) => may(&status.to_string()),
        // A silent refusal stands for an answer only where none can be made.
        Fate::Dropped(reason) => may("DROP") || (may("400") && *reason == Reason::MalformedVia),
    };
    if is_right { Ok(()) } else { Err(format!("{action} but {fate:?}")) }
}

fn run_index(set: &'static str, folder: &Path, file: impl Fn(&Path, &str) -> PathBuf) -> Tally {
    let mut tally = Tally::of(set);
    let mut rig = Rig::new(NODE);
    for row in rows(&folder.join("index.tsv")) {
        let (name, action) = (&row[0], &row[3]);
        let bytes = fs::read(file(folder, name)).unwrap();
        let result = check_action(&mut rig, action, &bytes, &mut tally).and_then(|()| probe(&mut rig));
        tally.note(name, result);
    }
    tally
}

fn run_rfc4475() -> Option<Tally> {
    Some(run_index("RFC 4475", &corpus("rfc4475")?, |folder, name| folder.join(format!("{name}.dat"))))
}

fn run_rfc5118() -> Option<Tally> {
    Some(run_index("RFC 5118", &corpus("rfc5118")?, |folder, name| folder.join(format!("wire/{name}.sip"))))
}

fn run_flows() -> Option<Tally> {
    let folder = corpus("flows")?;
    let (mut tally, mut rig) = (Tally::of("flow"), Rig::new(NODE));
    for row in rows(&folder.join("index.tsv")) {
        let path = folder.join(&row[0]).join(&row[1]).join(format!("{}.sip", row[2]));
        let result = check_field_message(&mut rig, &fs::read(&path).unwrap(), &mut tally);
        tally.note(&path.display().to_string(), result);
    }
    Some(tally)
}

fn run_field() -> Option<Tally> {
    let folder = corpus("realworld")?;
    let (mut tally, mut rig) = (Tally::of("field"), Rig::new(NODE));
    for row in rows(&folder.join("index.tsv")) {
        let result = check_field_message(&mut rig, &fs::read(folder.join(&row[0])).unwrap(), &mut tally);
        tally.note(&row[0], result);
    }
    Some(tally)
}

/// Inputs that broke others; the next call must work after each.
fn run_regress() -> Tally {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/regress");
    let (mut tally, mut rig) = (Tally::of("regress"), Rig::new(NODE));
    for row in rows(&folder.join("udp.tsv")) {
        let bytes = with_own_address(&fs::read(folder.join(&row[0])).unwrap());
        let result = check_regress(&mut rig, &row[1], &bytes, &mut tally).and_then(|()| probe(&mut rig));
        tally.note(&row[0], result);
    }
    tally
}

//= rfc3261#section-16.6 copy
//# Header fields stay in their order, and the body is not touched.
//= rfc3261#section-16.11 response
//# Our Via goes, and the response to where the next one says; nothing else of it changes.
#[test]
fn every_message_of_the_corpora_is_treated_as_its_index_says() {
    let sets = [run_rfc4475(), run_rfc5118(), run_flows(), run_golden_pairs(), run_field(), Some(run_regress())];
    let sets: Vec<Tally> = sets.into_iter().flatten().collect();
    let right = |tally: &Tally| format!("{} of {} {}", tally.messages - tally.wrong.len(), tally.messages, tally.set);
    let wrong: Vec<&str> = sets.iter().flat_map(|tally| &tally.wrong).map(String::as_str).collect();
    for tally in &sets {
        println!("{}", tally.line());
        assert!(tally.messages > 0, "{} is empty", tally.set);
    }
    let all: Vec<String> = sets.iter().map(right).collect();
    println!("corpus: {} messages are treated as the index says, {} wrong", all.join(", "), wrong.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The same message with our address where the corpus leaves room for it.
fn with_own_address(bytes: &[u8]) -> Vec<u8> {
    let mut rest = bytes;
    let mut own = Vec::new();
    while let Some(at) = rest.windows(6).position(|w| w == b"LBADDR") {
        own.extend_from_slice(&rest[..at]);
        own.extend_from_slice(b"192.0.2.10");
        rest = &rest[at + 6..];
    }
    own.extend_from_slice(rest);
    own
}

/// What one proxy of the RFC's flows made of a message, as far as another one must do the same.
fn run_golden_pairs() -> Option<Tally> {
    let folder = corpus("flows")?;
    let mut tally = Tally::of("golden pair");
    for row in rows(&folder.join("golden_pairs.tsv")) {
        let read = |name: &str| fs::read(folder.join(&row[0]).join(name)).unwrap();
        let (came, left) = (read(&row[1]), read(&row[2]));
        let result = match row[3].as_str() {
            "request" => check_golden_request(&came, &left, &mut tally),
            _ => check_golden_response(&came, &left, &mut tally),
        };
        let name = format!("{} {}", row[0], row[1]);
        let is_known = |error: &String| DEVIATIONS.iter().any(|d| name.ends_with(d.0) && error.starts_with(d.1));
        tally.note(&name, result.or_else(|error| if is_known(&error) { Ok(()) } else { Err(error) }));
    }
    Some(tally)
}

/// The proxy of the flow is named by the Route that it takes off; where a location service changed the Request-URI, the
/// route set is its too and is not compared.
fn check_golden_request(came: &[u8], left: &[u8], tally: &mut Tally) -> Result<(), String> {
    let (was, want) = (NaiveMessage::read(came, 100), NaiveMessage::read(left, 100));
    let host = |value: &String| value.split(['<', '>', ';', ':']).nth(2).map(str::to_owned);
    let own = list(came, &was, "route").first().and_then(host).unwrap_or_else(|| "proxy.invalid".to_owned());
    let mut rig = Rig::new(&NODE.replace("sip.example.com", &own.to_ascii_lowercase()));
    let golden_vias = list(left, &want, "via");
    let received = golden_vias.get(1).and_then(|via| via.split("received=").nth(1)).and_then(|v| v.split(';').next());
    let source = received.and_then(|ip| ip.parse().ok()).map_or(address(CLIENT4), |ip| SocketAddr::new(ip, 5060));
    let fate = rig.handle(source, address(V4), came);
    tally.count(&fate);
    let Fate::Forwarded(sent) = fate else { return Err(format!("{fate:?}")) };
    let is = NaiveMessage::read(&sent.bytes, 100);
    let lower = |vias: Vec<String>| -> Vec<String> {
        let told = |via: &String| via.split(";received=").next().map(str::to_owned);
        vias[1..].iter().filter_map(|via| if received.is_some() { Some(via.clone()) } else { told(via) }).collect()
    };
    compare_list("Via", lower(list(&sent.bytes, &is, "via")), lower(golden_vias.clone()))?;
    let same_target = came[was.start_line.clone()] == left[want.start_line.clone()];
    let compared: &[&str] =
        if same_target { &["from", "to", "call-id", "cseq", "route"] } else { &["from", "call-id", "cseq"] };
    for name in compared {
        compare_list(name, list(&sent.bytes, &is, name), list(left, &want, name))?;
    }
    let hops = list(left, &want, "max-forwards");
    if !hops.is_empty() {
        compare_list("Max-Forwards", list(&sent.bytes, &is, "max-forwards"), hops)?;
    }
    let records = list(left, &want, "record-route");
    if records.len() > list(came, &was, "record-route").len() {
        compare_list("Record-Route", list(&sent.bytes, &is, "record-route")[1..].to_vec(), records[1..].to_vec())?;
    }
    match sent.bytes[is.body] == left[want.body] {
        true => Ok(()),
        false => Err("the body differs".to_owned()),
    }
}

/// The response as it came, with our Via in the place of the flow's proxy.
fn check_golden_response(came: &[u8], left: &[u8], tally: &mut Tally) -> Result<(), String> {
    let mut rig = Rig::new(NODE);
    let want = NaiveMessage::read(left, 100);
    let (original, destination) = with_return_address(left)?;
    // The client's Via as the proxy left it, below ours; everything else as the response came.
    let pushed = push_own_via(&rig, &original, destination)?;
    let fate = rig.handle(address("198.51.100.11:5060"), address(V4), &pushed);
    tally.count(&fate);
    let Fate::Forwarded(sent) = fate else { return Err(format!("{fate:?}")) };
    let (was, is) = (NaiveMessage::read(came, 100), NaiveMessage::read(&sent.bytes, 100));
    compare_list("Via", list(&sent.bytes, &is, "via"), list(&original, &NaiveMessage::read(&original, 100), "via"))?;
    compare_list("lower Via", list(left, &want, "via"), list(came, &was, "via")[1..].to_vec())?;
    for name in ["from", "to", "call-id", "cseq", "record-route", "contact", "path"] {
        compare_list(name, list(&sent.bytes, &is, name), list(came, &was, name))?;
    }
    match sent.bytes[is.body] == left[want.body] {
        true => Ok(()),
        false => Err("the body differs".to_owned()),
    }
}

fn compare_list(name: &str, is: Vec<String>, want: Vec<String>) -> Result<(), String> {
    if is == want { Ok(()) } else { Err(format!("{name}: {is:?} but the RFC has {want:?}")) }
}

fn check_regress(rig: &mut Rig, action: &str, bytes: &[u8], tally: &mut Tally) -> Result<(), String> {
    let source = address(CLIENT4);
    let started = std::time::Instant::now();
    let fate = rig.handle(source, address(V4), bytes);
    // Far from the time of a linear pass, near to that of a quadratic one.
    if started.elapsed() > Duration::from_millis(500) {
        return Err(format!("took {:?}", started.elapsed()));
    }
    tally.count(&fate);
    let may = |word: &str| action.split('-').any(|a| a == word);
    match &fate {
        Fate::Forwarded(sent) if may("FORWARD") && rig.backend_at(sent.to).is_none() => {
            Err(format!("relayed to {}", sent.to))
        }
        Fate::Forwarded(sent) if may("FORWARD") => check_forwarded(bytes, &sent.bytes, source, sent.from),
        Fate::Answered(status, _, sent) if may(&status.to_string()) && sent.to.ip() == source.ip() => Ok(()),
        Fate::Dropped(_) if may("DROP") => Ok(()),
        other => Err(format!("{action} but {other:?}")),
    }
}

fn check_field_message(rig: &mut Rig, bytes: &[u8], tally: &mut Tally) -> Result<(), String> {
    let message = NaiveMessage::read(bytes, 64);
    if is_response(bytes) {
        let is_whole = message.error.is_none()
            && ["cseq", "call-id"].iter().all(|name| message.values(bytes, name).next().is_some())
            && message
                .values(bytes, "via")
                .next()
                .is_some_and(|via| is_via(&split_outside(&String::from_utf8_lossy(via), ',')[0]));
        return match is_whole {
            true => check_response(rig, bytes, tally).and_then(|()| check_as_request(rig, bytes, tally)),
            false => {
                let fate = rig.handle(address(CLIENT4), address(V4), bytes);
                tally.count(&fate);
                if matches!(fate, Fate::Dropped(_)) { Ok(()) } else { Err(format!("{fate:?}")) }
            }
        };
    }
    check_judged(rig, bytes, tally)?;
    match judge_request(bytes, &message) {
        Judgement::Forward => check_as_response(rig, bytes, tally),
        Judgement::Refuse(..) => Ok(()),
    }
}

/// A request is treated as the slow reader judges it.
fn check_judged(rig: &mut Rig, bytes: &[u8], tally: &mut Tally) -> Result<(), String> {
    let message = NaiveMessage::read(bytes, 64);
    match judge_request(bytes, &message) {
        Judgement::Forward => check_request(rig, bytes, tally),
        Judgement::Refuse(codes, why) => {
            let fate = rig.handle(address(CLIENT4), address(V4), bytes);
            tally.count(&fate);
            match &fate {
                Fate::Answered(status, ..) if codes.contains(status) => Ok(()),
                Fate::Dropped(_) if why == "Via" || why == "Empty" || bytes.starts_with(b"ACK ") => Ok(()),
                Fate::Dropped(Reason::AnswerTooLarge) => Ok(()),
                Fate::Dropped(_) if message.values(bytes, "via").next().is_none() => Ok(()),
                other => Err(format!("{codes:?} for {why}, but {other:?}")),
            }
        }
    }
}
