//! SIP text as the simulated phones and servers read and write it.
//!
//! The ends must be able to disagree with Tandem, so they share nothing with its scanner: lines are split, names
//! compared, everything is owned. Compact names become long ones when read. A message that is cut short reads as
//! none. Nobody in the simulation folds a header or joins values with commas, so neither is understood.

use std::net::SocketAddr;

/// Long and compact names (RFC 3261 7.3.3).
const COMPACT: [(&str, &str); 6] =
    [("Via", "v"), ("From", "f"), ("To", "t"), ("Call-ID", "i"), ("Contact", "m"), ("Content-Length", "l")];

/// A message, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Request line or status line.
    pub start: String,
    /// Header lines in order, under their long names.
    pub headers: Vec<(String, String)>,
    /// What follows the empty line.
    pub body: Vec<u8>,
}

impl Message {
    /// A request without headers.
    pub fn request(method: &str, uri: &str) -> Self {
        Message { start: format!("{method} {uri} SIP/2.0"), headers: Vec::new(), body: Vec::new() }
    }

    /// Takes a datagram apart; `None` when it is cut short or no SIP.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
        let head = std::str::from_utf8(&bytes[..end]).ok()?;
        let mut lines = head.split("\r\n");
        let start = lines.next().filter(|line| line.contains("SIP/2.0"))?.to_owned();
        let headers = lines.map(split_line).collect::<Option<Vec<_>>>()?;
        let message = Message { start, headers, body: bytes[end + 4..].to_vec() };
        match message.get("Content-Length").map(|text| text.parse::<usize>()) {
            Some(Ok(length)) if length != message.body.len() => None,
            Some(Err(_)) => None,
            _ => Some(message),
        }
    }

    /// Writes it, with compact names if wanted.
    pub fn encode(&self, is_compact: bool) -> Vec<u8> {
        let mut text = format!("{}\r\n", self.start);
        for (name, value) in &self.headers {
            let compact = COMPACT.iter().find(|(long, _)| is_compact && long == name);
            text.push_str(&format!("{}: {value}\r\n", compact.map_or(name.as_str(), |(_, short)| short)));
        }
        text.push_str("\r\n");
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }

    /// Adds a header line.
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// The method of a request.
    pub fn method(&self) -> Option<&str> {
        if self.start.starts_with("SIP/2.0") { None } else { self.start.split(' ').next() }
    }

    /// The Request-URI of a request.
    pub fn uri(&self) -> &str {
        self.start.split(' ').nth(1).unwrap_or_default()
    }

    /// The status of a response.
    pub fn status(&self) -> Option<u16> {
        self.start.strip_prefix("SIP/2.0 ")?.get(..3)?.parse().ok()
    }

    /// The first value under a long name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// All values under a long name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl DoubleEndedIterator<Item = &'a str> {
        self.headers.iter().filter(move |(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The value, empty when there is none.
    pub fn text(&self, name: &str) -> String {
        self.get(name).unwrap_or_default().to_owned()
    }

    /// The CSeq number.
    pub fn cseq(&self) -> u32 {
        self.get("CSeq").and_then(|text| text.split(' ').next()?.parse().ok()).unwrap_or_default()
    }

    /// The CSeq method.
    pub fn cseq_method(&self) -> &str {
        self.get("CSeq").and_then(|text| text.split(' ').nth(1)).unwrap_or_default()
    }

    /// The From tag.
    pub fn tag_of_from(&self) -> Option<&str> {
        param(self.get("From")?, "tag")
    }

    /// The To tag.
    pub fn tag_of_to(&self) -> Option<&str> {
        param(self.get("To")?, "tag")
    }

    /// The branch of the topmost Via.
    pub fn branch(&self) -> &str {
        self.get("Via").and_then(|via| param(via, "branch")).unwrap_or_default()
    }

    /// The tokens that it carries where a token may stand: in its Request-URI and its Route.
    pub fn tokens(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.uri()).chain(self.all("Route").map(uri)).filter_map(|uri| param(uri, "tk"))
    }

    /// The sent-by of the topmost Via.
    pub fn sent_by(&self) -> &str {
        self.get("Via").map_or("", sent_by)
    }
}

/// Splits `Name: value`, giving the long name.
pub fn split_line(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once(':')?;
    let name = name.trim();
    let long = COMPACT.iter().find(|(long, short)| name.eq_ignore_ascii_case(long) || name.eq_ignore_ascii_case(short));
    Some((long.map_or(name, |(long, _)| long).to_owned(), value.trim().to_owned()))
}

/// A parameter after the URI; empty when it has no value.
pub fn param<'a>(value: &'a str, name: &str) -> Option<&'a str> {
    let params = value.rsplit_once('>').map_or(value, |(_, params)| params);
    params.split(';').skip(1).find_map(|param| {
        let (found, text) = param.split_once('=').unwrap_or((param, ""));
        (found.trim() == name).then_some(text.trim())
    })
}

/// The sent-by of a Via value.
pub fn sent_by(via: &str) -> &str {
    via.split(';').next().and_then(|head| head.split(' ').nth(1)).unwrap_or_default()
}

/// The URI inside `<>`, or the whole.
pub fn uri(value: &str) -> &str {
    value.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map_or(value, |(uri, _)| uri)
}

/// The address that a `sip:user@ip:port;params` names.
pub fn uri_address(uri: &str) -> Option<SocketAddr> {
    let rest = uri.strip_prefix("sip:")?;
    let rest = rest.split(';').next()?;
    rest.rsplit_once('@').map_or(rest, |(_, host)| host).parse().ok()
}
