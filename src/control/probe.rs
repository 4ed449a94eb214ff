//! The probe: an OPTIONS request out (RFC 3261 section 11), its answer in.
//!
//! The request asks the server for itself: the Request-URI is its address without a user part, Max-Forwards is 1.
//! It is sent once. RFC 3261 17.1.2 would retransmit, but then a backend that loses datagrams would look well; here
//! a lost datagram is a failed probe and `fall` decides how many of those matter.
//!
//! The request is built with rsip, which is no parser for what comes back: it knows no compact names, no folding and
//! no IPv6 host, and a backend must not be taken out because it writes `v:`. So the answer is read by hand, and only
//! the status code, the top Via's branch, Call-ID and CSeq. Bytes that are no answer give [`Malformed`], never a
//! panic.
//!
//! Branch and Call-ID are a keyed hash of a counter, so whoever sees some cannot forge the answer to others.

use std::borrow::Cow;
use std::hash::Hasher;
use std::net::SocketAddr;

use rsip::headers::{CallId, ContentLength, MaxForwards, UserAgent};
use rsip::{Domain, Header, Headers, Method, Param, Port, Scheme, Transport, Uri, Version, param, typed};
use siphasher::sip::SipHasher13;

use crate::base::prng::Prng;

/// RFC 3261 8.1.1.7: every branch begins with this.
const MAGIC_COOKIE: &str = "z9hG4bK";
const CSEQ: u32 = 1;

/// What tells the answer to one probe from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeKey {
    branch: u64,
    call_id: u64,
}

impl ProbeKey {
    /// The branch parameter of the probe's Via.
    pub fn branch(&self) -> String {
        format!("{MAGIC_COOKIE}-probe-{:016x}", self.branch)
    }

    /// The Call-ID of the probe.
    pub fn call_id(&self) -> String {
        format!("probe-{:016x}", self.call_id)
    }
}

/// Draws the keys of probes; no two are equal but by a collision of 128 bits.
#[derive(Clone, Debug)]
pub struct ProbeKeys {
    secret: (u64, u64),
    drawn: u64,
}

impl ProbeKeys {
    /// Takes its secret from `prng`.
    pub fn new(prng: &mut Prng) -> Self {
        ProbeKeys { secret: (prng.next_u64(), prng.next_u64()), drawn: 0 }
    }

    /// The next key.
    pub fn draw(&mut self) -> ProbeKey {
        ProbeKey { branch: self.next_u64(), call_id: self.next_u64() }
    }

    fn next_u64(&mut self) -> u64 {
        self.drawn += 1;
        let mut hasher = SipHasher13::new_with_keys(self.secret.0, self.secret.1);
        hasher.write_u64(self.drawn);
        hasher.finish()
    }
}

/// Writes the OPTIONS request to `backend`, which speaks `transport`, sent from `sent_by`. About 400 bytes.
pub fn encode_probe(
    key: &ProbeKey,
    sent_by: SocketAddr,
    transport: crate::base::id::Transport,
    backend: SocketAddr,
) -> Vec<u8> {
    let transport = match transport {
        crate::base::id::Transport::Udp => Transport::Udp,
        crate::base::id::Transport::Tcp => Transport::Tcp,
        crate::base::id::Transport::Tls => Transport::Tls,
        crate::base::id::Transport::Ws => Transport::Ws,
        crate::base::id::Transport::Wss => Transport::Wss,
    };
    // UDP is what is meant where nothing is said.
    let params = if transport == Transport::Udp { Vec::new() } else { vec![Param::Transport(transport)] };
    let target = Uri { scheme: Some(Scheme::Sip), params, ..host_port(backend) };
    let auth = Some(rsip::Auth { user: "tandem".to_owned(), password: None });
    let us = Uri { scheme: Some(Scheme::Sip), auth, ..host_port(sent_by) };
    let via = typed::Via {
        version: Version::V2,
        transport,
        uri: host_port(sent_by),
        params: vec![Param::Branch(param::Branch::new(key.branch())), Param::Other("rport".into(), None)],
    };
    let tag = Param::Tag(param::Tag::new(format!("{:016x}", key.branch ^ key.call_id)));
    let headers: Headers = vec![
        via.into(),
        Header::MaxForwards(MaxForwards::from(1)),
        typed::From { display_name: None, uri: us, params: vec![tag] }.into(),
        typed::To { display_name: None, uri: target.clone(), params: Vec::new() }.into(),
        Header::CallId(CallId::from(key.call_id())),
        typed::CSeq { seq: CSEQ, method: Method::Options }.into(),
        Header::UserAgent(UserAgent::from("Tandem probe")),
        Header::ContentLength(ContentLength::from(0)),
    ]
    .into();
    rsip::Request { method: Method::Options, uri: target, version: Version::V2, headers, body: Vec::new() }.into()
}

fn host_port(address: SocketAddr) -> Uri {
    // rsip writes an IPv6 address without its brackets, so it goes in as text.
    let host = match address {
        SocketAddr::V4(v4) => v4.ip().to_string(),
        SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
    };
    Uri::from((rsip::Host::Domain(Domain::from(host)), Port::from(address.port())))
}

/// The bytes are no SIP answer that can be matched to a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// What an answer says of the probe it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    /// Status code, 100 to 699.
    pub status: u16,
    branch: Cow<'a, str>,
    call_id: Cow<'a, str>,
}

impl<'a> Answer<'a> {
    /// Reads an answer.
    ///
    /// # Errors
    ///
    /// [`Malformed`] when it is a request, lacks one of Via, Call-ID and CSeq, or its CSeq is not that of a probe.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let head = bytes.windows(4).position(|w| w == b"\r\n\r\n").map_or(bytes, |end| &bytes[..end]);
        let (line, fields) = split_line(head);
        let status = decode_status(line).ok_or(Malformed)?;
        let (mut via, mut call_id, mut cseq) = (None, None, None);
        let mut rest = fields;
        while !rest.is_empty() {
            let (name, value, next) = next_field(rest);
            rest = next;
            let slot = match () {
                () if is_named(name, b"Via", b"v") => &mut via,
                () if is_named(name, b"Call-ID", b"i") => &mut call_id,
                () if is_named(name, b"CSeq", b"") => &mut cseq,
                () => continue,
            };
            if slot.is_none() {
                *slot = Some(unfold(value)?);
            }
        }
        let (Some(via), Some(call_id), Some(cseq)) = (via, call_id, cseq) else { return Err(Malformed) };
        if !is_cseq_of_probe(&cseq) {
            return Err(Malformed);
        }
        Ok(Answer { status, branch: top_branch(via)?, call_id })
    }

    /// Whether it answers the probe with this key.
    pub fn answers(&self, key: &ProbeKey) -> bool {
        self.branch == key.branch() && self.call_id == key.call_id()
    }

    /// The key of the probe it answers, if we ever drew such a key.
    pub fn key(&self) -> Option<ProbeKey> {
        let branch = self.branch.strip_prefix(MAGIC_COOKIE)?.strip_prefix("-probe-")?;
        let call_id = self.call_id.strip_prefix("probe-")?;
        let key =
            ProbeKey { branch: u64::from_str_radix(branch, 16).ok()?, call_id: u64::from_str_radix(call_id, 16).ok()? };
        self.answers(&key).then_some(key)
    }
}

/// Splits off the first line, without its CRLF or LF.
fn split_line(bytes: &[u8]) -> (&[u8], &[u8]) {
    let (line, rest) = match bytes.iter().position(|b| *b == b'\n') {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (bytes, &[][..]),
    };
    (line.strip_suffix(b"\r").unwrap_or(line), rest)
}

/// Splits off the first header field with its continuation lines: name, raw value, rest.
fn next_field(bytes: &[u8]) -> (&[u8], &[u8], &[u8]) {
    let (_, mut rest) = split_line(bytes);
    while matches!(rest.first(), Some(b' ' | b'\t')) {
        rest = split_line(rest).1;
    }
    let field = &bytes[..bytes.len() - rest.len()];
    match field.iter().position(|b| *b == b':') {
        Some(colon) => (field[..colon].trim_ascii_end(), &field[colon + 1..], rest),
        None => (field, &[], rest),
    }
}

fn is_named(name: &[u8], long: &[u8], compact: &[u8]) -> bool {
    name.eq_ignore_ascii_case(long) || (!compact.is_empty() && name.eq_ignore_ascii_case(compact))
}

/// The value as text, line folds turned into single spaces (RFC 3261 7.3.1).
fn unfold(value: &[u8]) -> Result<Cow<'_, str>, Malformed> {
    let text = str::from_utf8(value).map_err(|_| Malformed)?.trim();
    Ok(match text.contains('\n') {
        true => Cow::Owned(text.lines().map(str::trim).collect::<Vec<_>>().join(" ")),
        false => Cow::Borrowed(text),
    })
}

/// The code of a status line, RFC 3261 7.2.
fn decode_status(line: &[u8]) -> Option<u16> {
    let (version, rest) = line.split_at_checked(8)?;
    let code: [u8; 3] = rest.get(..3)?.try_into().ok()?;
    let is_ended = matches!(rest.get(3), None | Some(b' '));
    if !version.eq_ignore_ascii_case(b"SIP/2.0 ") || !is_ended || !code.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let status = code.iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
    (100..700).contains(&status).then_some(status)
}

fn is_cseq_of_probe(cseq: &str) -> bool {
    let mut words = cseq.split_ascii_whitespace();
    let number = words.next().and_then(|word| word.parse::<u32>().ok());
    number == Some(CSEQ) && words.next() == Some("OPTIONS") && words.next().is_none()
}

/// The branch of the first value of a Via field.
fn top_branch(via: Cow<'_, str>) -> Result<Cow<'_, str>, Malformed> {
    let find = |via: &str| {
        let top = &via[..via.find(',').unwrap_or(via.len())];
        top.split(';').skip(1).find_map(|param| {
            let (name, value) = param.split_once('=')?;
            let value = value.trim();
            let start = value.as_ptr() as usize - via.as_ptr() as usize;
            name.trim().eq_ignore_ascii_case("branch").then_some(start..start + value.len())
        })
    };
    let range = find(&via).ok_or(Malformed)?;
    Ok(match via {
        Cow::Borrowed(text) => Cow::Borrowed(&text[range]),
        Cow::Owned(text) => Cow::Owned(text[range].to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UDP: crate::base::id::Transport = crate::base::id::Transport::Udp;

    fn keys() -> ProbeKeys {
        ProbeKeys::new(&mut Prng::new(1))
    }

    fn answer(key: &ProbeKey) -> String {
        format!(
            "SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP 192.0.2.1:4;branch={};rport=4;received=192.0.2.1\r\n\
             From: <sip:tandem@192.0.2.1:4>;tag=1\r\nTo: <sip:192.0.2.2:5060>;tag=2\r\nCall-ID: {}\r\n\
             CSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n",
            key.branch(),
            key.call_id()
        )
    }

    #[test]
    fn probe_is_the_request_we_mean() {
        let key = ProbeKey { branch: 0xab, call_id: 0xcd };
        let bytes = encode_probe(&key, "192.0.2.1:40000".parse().unwrap(), UDP, "192.0.2.2:5060".parse().unwrap());
        let expected = "OPTIONS sip:192.0.2.2:5060 SIP/2.0\r\n\
            Via: SIP/2.0/UDP 192.0.2.1:40000;branch=z9hG4bK-probe-00000000000000ab;rport\r\n\
            Max-Forwards: 1\r\n\
            From: <sip:tandem@192.0.2.1:40000>;tag=0000000000000066\r\n\
            To: <sip:192.0.2.2:5060>\r\n\
            Call-ID: probe-00000000000000cd\r\n\
            CSeq: 1 OPTIONS\r\n\
            User-Agent: Tandem probe\r\n\
            Content-Length: 0\r\n\r\n";
        assert_eq!(String::from_utf8(bytes).unwrap(), expected);
    }

    #[test]
    fn probe_to_ipv6_has_its_brackets() {
        let key = keys().draw();
        let bytes =
            encode_probe(&key, "[2001:db8::1]:40000".parse().unwrap(), UDP, "[2001:db8::2]:5060".parse().unwrap());
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.starts_with("OPTIONS sip:[2001:db8::2]:5060 SIP/2.0\r\nVia: SIP/2.0/UDP [2001:db8::1]:40000;"));
        assert!(text.contains("\r\nFrom: <sip:tandem@[2001:db8::1]:40000>;tag="));
    }

    #[test]
    fn answer_gives_back_the_key_in_every_legal_spelling() {
        let (key, other) = (keys().draw(), ProbeKey { branch: 1, call_id: 2 });
        let plain = answer(&key);
        let folded = plain.replace(";branch=", "\r\n ;\r\n\tbranch = ");
        for text in [
            plain.replace("Via:", "v  :").replace("Call-ID", "i"),
            plain.replace("Via", "VIA").replace("CSeq", "cseq"),
            plain.replace("192.0.2.1:4;branch", "[2001:db8::1]:4;branch"),
            plain.replace(";received=192.0.2.1", ";received=192.0.2.1, SIP/2.0/UDP x;branch=z9hG4bK-y"),
            plain.replace("\r\n", "\n"),
            plain.replace(" 200 OK", " 200"),
            plain.replace(" 200 OK", " 200 Gr\u{fc}ezi"),
            folded,
            plain,
        ] {
            let read = Answer::decode(text.as_bytes()).unwrap_or_else(|_| panic!("{text}"));
            assert_eq!((read.status, read.key()), (200, Some(key)), "{text}");
            assert!(!read.answers(&other));
        }
    }

    #[test]
    fn what_is_no_answer_is_malformed() {
        let text = answer(&keys().draw());
        for bad in [
            String::new(),
            "\r\n\r\n".into(),
            text.replace("SIP/2.0 200", "SIP/2.0 099"),
            text.replace("SIP/2.0 200", "SIP/2.0 700"),
            text.replace("SIP/2.0 200", "SIP/2.0 2000"),
            text.replace("SIP/2.0 200 OK", "OPTIONS sip:x SIP/2.0"),
            text.replace("Via", "Viaa"),
            text.replace("branch", "brunch"),
            text.replace("Call-ID", "Call"),
            text.replace("1 OPTIONS", "2 OPTIONS"),
            text.replace("1 OPTIONS", "1 INVITE"),
        ] {
            assert_eq!(Answer::decode(bad.as_bytes()), Err(Malformed), "{bad}");
        }
    }

    #[test]
    fn no_damage_to_an_answer_panics() {
        let text = answer(&keys().draw()).replace("SIP/2.0/UDP", "SIP/2.0/UDP\r\n");
        let mut prng = Prng::new(3);
        for end in 0..text.len() {
            let _ = Answer::decode(&text.as_bytes()[..end]);
        }
        for _ in 0..20_000 {
            let mut bytes = text.clone().into_bytes();
            for _ in 0..=prng.below(4) {
                let at = prng.below(bytes.len() as u64) as usize;
                bytes[at] = *b" \t\r\n:;,=\0\xff2z".get(prng.below(12) as usize).unwrap_or(&b'x');
            }
            if let Ok(read) = Answer::decode(&bytes) {
                let _ = read.key();
            }
        }
    }

    #[test]
    fn rsip_reads_what_we_wrote() {
        use rsip::prelude::HeadersExt;
        let key = keys().draw();
        let bytes = encode_probe(&key, "192.0.2.1:40000".parse().unwrap(), UDP, "192.0.2.2:5060".parse().unwrap());
        let request = rsip::Request::try_from(bytes).unwrap();
        assert_eq!(request.transaction_id().unwrap().unwrap().to_string(), key.branch());
        assert_eq!(request.call_id_header().unwrap().to_string(), format!("Call-ID: {}", key.call_id()));
    }
}
