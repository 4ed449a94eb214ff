//! The corpora: every message that others published or captured, and what must become of it.
//!
//! Read from `$TANDEM_CORPUS`, by default `../shared/data` beside the repository; their licences are mixed, so they
//! are not part of it. Only `tests/data/regress` is this project's own and always runs. Each set prints one line of
//! counts; one message that is treated wrongly fails the set and is shown.
//!
//! Where Tandem's decision differs from what an index says, and why, stands in [`DEVIATIONS`].

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use oracle::{Judgement, check_forwarded, host_ip, is_via, judge_request, sent_by, split_outside};
use rig::{Fate, Rig};
use tandem::base::span::Span;
use tandem::metrics::Reason;
use tandem::route::cookie::BranchInput;
use tandem::sip::cseq::CSeq;
use tandem::sip::via::Via;

mod naive;
mod oracle;
mod rig;

use naive::NaiveMessage;

const NODE: &str = include_str!("data/messages/node.toml");
const GOOD: &[u8] = include_bytes!("data/messages/options.sip");
const V4: &str = "192.0.2.10:5060";
const V6: &str = "[2001:db8::10]:5060";
const CLIENT4: &str = "203.0.113.77:5062";

/// `(message, what is done, why)`: where it is not what the index names first.
const DEVIATIONS: &[(&str, &str, &str)] = &[];

/// How a set went.
#[derive(Default)]
struct Tally {
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

    fn finish(self, set: &str) {
        let Tally { forwarded, answered, dropped, suppressed, wrong } = self;
        let total = forwarded + answered + dropped + suppressed;
        println!(
            "corpus {set}: {total} cases, {forwarded} forwarded, {answered} answered, {dropped} dropped, \
             {suppressed} answers suppressed, {} wrong",
            wrong.len()
        );
        assert!(total > 0, "{set} is empty");
        assert!(wrong.is_empty(), "{set}:\n{}", wrong.join("\n"));
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
    if let Some(ip) = value("received").as_deref().map_or_else(|| host_ip(&sent_by), host_ip_bare) {
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
        return check_response(rig, bytes, tally);
    }
    if action == "FORWARD" {
        return check_request(rig, bytes, tally);
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

fn run_index(set: &str, folder: &Path, file: impl Fn(&Path, &str) -> PathBuf) {
    let mut tally = Tally::default();
    let mut rig = Rig::new(NODE);
    for row in rows(&folder.join("index.tsv")) {
        let (name, action) = (&row[0], DEVIATIONS.iter().find(|d| d.0 == row[0]).map_or(row[3].as_str(), |d| d.1));
        let bytes = fs::read(file(folder, name)).unwrap();
        let result = check_action(&mut rig, action, &bytes, &mut tally).and_then(|()| probe(&mut rig));
        if let Err(error) = result {
            tally.wrong.push(format!("{name}: {error}"));
        }
    }
    tally.finish(set);
}

#[test]
fn rfc4475_torture_messages_are_treated_as_the_rfc_says() {
    let Some(folder) = corpus("rfc4475") else { return };
    run_index("rfc4475", &folder, |folder, name| folder.join(format!("{name}.dat")));
}

#[test]
fn rfc5118_ipv6_messages_are_treated_as_the_rfc_says() {
    let Some(folder) = corpus("rfc5118") else { return };
    run_index("rfc5118", &folder, |folder, name| folder.join(format!("wire/{name}.sip")));
}

#[test]
fn rfc_flows_pass_byte_for_byte_in_both_directions() {
    let Some(folder) = corpus("flows") else { return };
    let mut tally = Tally::default();
    let mut rig = Rig::new(NODE);
    for row in rows(&folder.join("index.tsv")) {
        let path = folder.join(&row[0]).join(&row[1]).join(format!("{}.sip", row[2]));
        let bytes = fs::read(&path).unwrap();
        if let Err(error) = check_field_message(&mut rig, &bytes, &mut tally) {
            tally.wrong.push(format!("{}: {error}", path.display()));
        }
    }
    tally.finish("flows");
}

#[test]
fn field_messages_are_judged_as_the_slow_reader_judges_them() {
    let Some(folder) = corpus("realworld") else { return };
    let mut tally = Tally::default();
    let mut rig = Rig::new(NODE);
    for row in rows(&folder.join("index.tsv")) {
        let Ok(bytes) = fs::read(folder.join(&row[0])) else { continue };
        if let Err(error) = check_field_message(&mut rig, &bytes, &mut tally) {
            tally.wrong.push(format!("{}: {error}", row[0]));
        }
    }
    tally.finish("realworld");
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
            true => check_response(rig, bytes, tally),
            false => {
                let fate = rig.handle(address(CLIENT4), address(V4), bytes);
                tally.count(&fate);
                if matches!(fate, Fate::Dropped(_)) { Ok(()) } else { Err(format!("{fate:?}")) }
            }
        };
    }
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
