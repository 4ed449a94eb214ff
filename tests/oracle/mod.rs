//! What a stateless proxy must make of a message, worked out the slow way: the oracle of the corpora.
//!
//! [`judge_request`] says whether a request has everything that a proxy needs (RFC 3261 16.3), [`check_forwarded`]
//! compares what left with what came (16.6): start line untouched, one Via on top, `received` and `rport` in the old
//! top Via, Max-Forwards minus one or 70, Record-Route where a dialog may begin, every other header and the body byte
//! for byte in their order. Nothing here uses the scanner or the decoders; messages are read by the naive twin.

use std::net::{IpAddr, SocketAddr};

use tandem::fuzzing::naive::{NaiveHeader, NaiveMessage};

/// What must become of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// It goes on.
    Forward,
    /// It is refused: with one of these, or silently where no answer is possible.
    Refuse(Vec<u16>, &'static str),
}

/// Judges a request that the naive twin has read.
pub(crate) fn judge_request(bytes: &[u8], message: &NaiveMessage) -> Judgement {
    let refuse = |code: u16, why| Judgement::Refuse(vec![code], why);
    match message.error {
        Some("Version") => return refuse(505, "version"),
        Some(error) => return refuse(400, error),
        None => {}
    }
    let one = |name| {
        let mut values = message.values(bytes, name);
        values.next().filter(|_| values.next().is_none()).map(|v| String::from_utf8_lossy(v).into_owned())
    };
    let mut words = bytes[message.start_line.clone()].split(|b| *b == b' ').map(String::from_utf8_lossy);
    let (method, uri) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let via = message.values(bytes, "via").next().map(|v| String::from_utf8_lossy(v).into_owned());
    if !via.is_some_and(|via| is_via(&split_outside(&via, ',')[0])) {
        return refuse(400, "Via");
    }
    if one("call-id").is_none_or(|id| id.is_empty()) {
        return refuse(400, "Call-ID");
    }
    if !one("from").is_some_and(|v| is_name_addr(&v)) || !one("to").is_some_and(|v| is_name_addr(&v)) {
        return refuse(400, "From or To");
    }
    let cseq = one("cseq").unwrap_or_default();
    let cseq: Vec<&str> = cseq.split_ascii_whitespace().collect();
    if !matches!(cseq[..], [number, name] if name == method && is_number_up_to(number, (1 << 31) - 1)) {
        return refuse(400, "CSeq");
    }
    match uri_scheme(&uri) {
        Some("sip" | "sips") if !is_sip_uri(&uri) => return refuse(400, "Request-URI"),
        Some("sip" | "sips" | "tel") => {}
        Some(_) => return Judgement::Refuse(vec![416, 400], "scheme"),
        None => return refuse(400, "Request-URI"),
    }
    let hops: Vec<&[u8]> = message.values(bytes, "max-forwards").collect();
    match hops[..] {
        [] => {}
        [hops] => {
            let hops = String::from_utf8_lossy(hops);
            if !is_number_up_to(&hops, 255) {
                return refuse(400, "Max-Forwards");
            }
            if hops.trim_start_matches('0').is_empty() {
                return refuse(483, "Max-Forwards");
            }
        }
        _ => return refuse(400, "Max-Forwards"),
    }
    let routes: Vec<String> = message.values(bytes, "route").map(|v| String::from_utf8_lossy(v).into_owned()).collect();
    let top_route = routes.first().map(|line| split_outside(line, ',')[0].clone());
    if top_route.is_some_and(|route| !is_name_addr(route.trim())) {
        return refuse(400, "Route");
    }
    let asks = message.values(bytes, "proxy-require").any(|v| !v.is_empty());
    if asks && method != "ACK" && method != "CANCEL" {
        return refuse(420, "Proxy-Require");
    }
    Judgement::Forward
}

/// What is left of the Route values once the first ones, at most two, that name one of `own` are gone; `None` where
/// none of them does (RFC 3261 16.4, RFC 5658).
fn routes_after(bytes: &[u8], message: &NaiveMessage, own: &[&str]) -> Option<Vec<String>> {
    let values = list(bytes, message, "route");
    let names_us = |value: &&String| {
        own.iter().any(|host| value.contains(&format!(":{host};")) || value.contains(&format!("@{host};")))
    };
    let count = values.iter().take_while(names_us).count().min(2);
    (count > 0).then(|| values[count..].to_vec())
}

/// The values of a header that may be a list, whatever its lines; white space made one space.
pub(crate) fn list(bytes: &[u8], message: &NaiveMessage, name: &str) -> Vec<String> {
    let lines = message.values(bytes, name).map(|v| String::from_utf8_lossy(v).into_owned());
    let values = lines.flat_map(|line| split_outside(&line, ','));
    values.map(|value| value.split_ascii_whitespace().collect::<Vec<_>>().join(" ").replace(" ;", ";")).collect()
}

/// Is `out` what a proxy makes of `bytes` that came from `source`? `listener` is the address that it writes.
pub(crate) fn check_forwarded(
    bytes: &[u8],
    out: &[u8],
    source: SocketAddr,
    listener: SocketAddr,
) -> Result<(), String> {
    let was = NaiveMessage::read(bytes, 1000);
    let is = NaiveMessage::read(out, 1000);
    let same = |what: &str, a: &[u8], b: &[u8]| match a == b {
        true => Ok(()),
        false => Err(format!("{what}: {:?} became {:?}", String::from_utf8_lossy(a), String::from_utf8_lossy(b))),
    };
    if let Some(error) = is.error {
        return Err(format!("what left cannot be read: {error}"));
    }
    same("start line", &bytes[was.start_line.clone()], &out[is.start_line.clone()])?;
    same("body", &bytes[was.body.clone()], &out[is.body.clone()])?;
    let routes = routes_after(bytes, &was, &["192.0.2.10", "192.0.2.10:5070", "sip.example.com"]);
    if routes.as_ref().is_some_and(|routes| *routes != list(out, &is, "route")) {
        return Err(format!("Route: {routes:?} wanted, {:?} left", list(out, &is, "route")));
    }
    let is_compared = |h: &&NaiveHeader| routes.is_none() || h.name != "route";
    let mut new = is.headers.iter().filter(is_compared);
    let mut next = |what: &str| new.next().ok_or(format!("{what} is missing"));
    let start = String::from_utf8_lossy(&bytes[was.start_line.clone()]).into_owned();
    let to = was.values(bytes, "to").next().map(String::from_utf8_lossy).unwrap_or_default();
    let mut records = ["INVITE ", "SUBSCRIBE ", "REFER "].iter().any(|m| start.starts_with(m)) && tags(&to).is_empty();
    let has_recorded = was.headers.iter().any(|h| h.name == "record-route");
    let mut seen_via = false;
    for header in was.headers.iter().filter(is_compared) {
        let line = &bytes[header.line.clone()];
        let is_top_via = header.name == "via" && !seen_via;
        let record_line = |got: &NaiveHeader| {
            let text = String::from_utf8_lossy(&out[got.line.clone()]).into_owned();
            match text.starts_with(&format!("Record-Route: <sip:{listener};lr;tk=")) && text.ends_with(">\r\n") {
                true => Ok(()),
                false => Err(format!("Record-Route: {text:?}")),
            }
        };
        if records && header.name == "record-route" {
            records = false;
            record_line(next("Record-Route")?)?;
        }
        if is_top_via {
            seen_via = true;
            let own = next("our Via")?;
            let own = String::from_utf8_lossy(&out[own.line.clone()]).into_owned();
            let head = format!("Via: SIP/2.0/UDP {listener};branch=z9hG4bK");
            if own.strip_prefix(&head).is_none_or(|rest| rest.trim_end().len() != 16) {
                return Err(format!("our Via: {own:?}"));
            }
            if records && !has_recorded {
                records = false;
                record_line(next("Record-Route")?)?;
            }
            if !was.headers.iter().any(|h| h.name == "max-forwards") {
                same("Max-Forwards", b"Max-Forwards: 70\r\n", &out[next("Max-Forwards")?.line.clone()])?;
            }
            let got = next("the client's Via")?;
            same("name of Via", &bytes[header.line.start..header.value.start], &out[got.line.start..got.value.start])?;
            let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
            check_top_via(&text(&bytes[header.value.clone()]), &text(&out[got.value.clone()]), source)?;
        } else if header.name == "max-forwards" {
            let hops: u32 =
                String::from_utf8_lossy(&bytes[header.value.clone()]).parse().map_err(|_| "Max-Forwards")?;
            let mut want = bytes[header.line.start..header.value.start].to_vec();
            want.extend_from_slice((hops - 1).to_string().as_bytes());
            want.extend_from_slice(&bytes[header.value.end..header.line.end]);
            same("Max-Forwards", &want, &out[next("Max-Forwards")?.line.clone()])?;
        } else {
            same("header", line, &out[next(&header.name)?.line.clone()])?;
        }
    }
    match new.next() {
        None => Ok(()),
        Some(header) => Err(format!("{} was added", header.name)),
    }
}

/// RFC 3261 18.2.1 and RFC 3581 4.
fn check_top_via(was: &str, is: &str, source: SocketAddr) -> Result<(), String> {
    let (was_list, is_list) = (split_outside(was, ','), split_outside(is, ','));
    if was_list[1..] != is_list[1..] {
        return Err(format!("lower Vias: {was:?} became {is:?}"));
    }
    let params = |via: &str| -> Vec<String> {
        split_outside(via, ';').iter().map(|p| p.split_ascii_whitespace().collect::<Vec<_>>().join(" ")).collect()
    };
    let name = |p: &str| p.split('=').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_seen = |p: &String| matches!(name(p).as_str(), "received" | "rport");
    let (before, after) = (params(&was_list[0]), params(&is_list[0]));
    let kept = |all: &[String]| all.iter().filter(|p| !is_seen(p)).cloned().collect::<Vec<_>>();
    if kept(&before) != kept(&after) {
        return Err(format!("Via: {was:?} became {is:?}"));
    }
    let value = |all: &[String], key: &str| -> Vec<String> {
        all.iter().filter(|p| name(p) == key).map(|p| p.split_once('=').map_or("", |(_, v)| v).to_owned()).collect()
    };
    let (had_received, had_rport) = (!value(&before, "received").is_empty(), !value(&before, "rport").is_empty());
    let sent_by = sent_by(&before[0]);
    let must_tell = had_received || had_rport || host_ip(&sent_by) != Some(source.ip());
    let want_received: Vec<String> = must_tell.then(|| source.ip().to_string()).into_iter().collect();
    let want_rport: Vec<String> = had_rport.then(|| source.port().to_string()).into_iter().collect();
    match (value(&after, "received"), value(&after, "rport")) {
        (received, rport) if received == want_received && rport == want_rport => Ok(()),
        seen => Err(format!("received and rport: {was:?} became {is:?}, {seen:?}")),
    }
}

/// `host[:port]` of a Via value without its parameters.
pub(crate) fn sent_by(via: &str) -> String {
    let transport = via.rsplit('/').next().unwrap_or_default().trim();
    let host = transport.split_once([' ', '\t', '\r', '\n']).map_or("", |(_, host)| host);
    host.split_ascii_whitespace().collect()
}

/// The address in `host[:port]`; `None` for a name.
pub(crate) fn host_ip(sent_by: &str) -> Option<IpAddr> {
    let sent_by = sent_by.trim();
    let host = match sent_by.strip_prefix('[') {
        Some(rest) => rest.split(']').next()?,
        None => sent_by.split(':').next()?.trim(),
    };
    host.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

/// Splits at a separator that stands outside quotes and angle brackets.
pub(crate) fn split_outside(text: &str, separator: char) -> Vec<String> {
    let mut parts = vec![String::new()];
    let (mut is_quoted, mut is_escaped, mut is_angled) = (false, false, false);
    for c in text.chars() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' if is_quoted => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            '<' if !is_quoted => is_angled = true,
            '>' if !is_quoted => is_angled = false,
            c if c == separator && !is_quoted && !is_angled => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    parts
}

pub(crate) fn is_via(via: &str) -> bool {
    let params = split_outside(via, ';');
    let words: Vec<&str> = params[0].split_ascii_whitespace().collect();
    let head = words.concat();
    let Some(rest) = head.to_ascii_lowercase().strip_prefix("sip/2.0/").map(str::to_owned) else { return false };
    // The transport is a word of its own: there is white space before the host.
    let Some((_, host)) =
        params[0].trim().rsplit_once('/').and_then(|(_, t)| t.trim().split_once([' ', '\t', '\r', '\n']))
    else {
        return false;
    };
    let mut names: Vec<String> =
        params[1..].iter().map(|p| p.split('=').next().unwrap_or_default().trim().to_ascii_lowercase()).collect();
    let has_empty = names.iter().any(String::is_empty);
    names.retain(|n| matches!(n.as_str(), "branch" | "received" | "rport"));
    let count = names.len();
    names.sort();
    names.dedup();
    let rport =
        params[1..].iter().find_map(|p| p.trim().to_ascii_lowercase().strip_prefix("rport=").map(str::to_owned));
    let is_rport_good = rport.is_none_or(|v| v.is_empty() || is_port(&v));
    let is_closed = via.matches('"').count().is_multiple_of(2);
    !rest.is_empty()
        && is_host_port(&host.split_ascii_whitespace().collect::<String>())
        && !has_empty
        && names.len() == count
        && is_rport_good
        && is_closed
}

fn is_host_port(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((host, port)) => (host, port.strip_prefix(':')),
            None => return false,
        },
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    !host.is_empty() && port.is_none_or(is_port)
}

fn is_port(text: &str) -> bool {
    is_number_up_to(text, 65_535) && !text.trim_start_matches('0').is_empty()
}

fn is_number_up_to(text: &str, max: u64) -> bool {
    let digits = text.trim_start_matches('0');
    !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_digit())
        && digits.len() < 12
        && digits.parse::<u64>().unwrap_or(0) <= max
}

fn tags(value: &str) -> Vec<String> {
    let tag = |p: &String| {
        let (name, value) = p.split_once('=').unwrap_or((p, ""));
        name.trim().eq_ignore_ascii_case("tag").then(|| value.trim().to_owned())
    };
    split_outside(value, ';')[1..].iter().filter_map(tag).collect()
}

fn is_name_addr(value: &str) -> bool {
    let parts = split_outside(value, ';');
    let address = parts[0].trim();
    let uri = match (address.rfind('<'), address.rfind('>')) {
        (Some(open), Some(close)) if open < close && close + 1 == address.len() => &address[open + 1..close],
        (None, None) if !address.contains('"') => address,
        _ => return false,
    };
    let names_ok = parts[1..].iter().all(|p| !p.split('=').next().unwrap_or_default().trim().is_empty());
    let tags = tags(value);
    let tags_ok = tags.len() <= 1 && tags.iter().all(|t| !t.is_empty());
    value.replace("\\\\", "").replace("\\\"", "").matches('"').count().is_multiple_of(2)
        && !uri.is_empty()
        && !uri.contains([' ', '\t', '\r', '\n'])
        && names_ok
        && tags_ok
}

fn uri_scheme(uri: &str) -> Option<&str> {
    let (scheme, _) = uri.split_once(':')?;
    let is_good = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    let known = ["sip", "sips", "tel"].into_iter().find(|k| scheme.eq_ignore_ascii_case(k));
    is_good.then_some(known.unwrap_or("other"))
}

fn is_sip_uri(uri: &str) -> bool {
    let rest = uri.split_once(':').map_or("", |(_, rest)| rest);
    let rest = rest.split_once('@').map_or(rest, |(_, host)| host);
    let host = rest.split(';').next().unwrap_or_default();
    let name = host.strip_prefix('[').map_or_else(|| host.split(':').next(), |h| h.split(']').next());
    let is_good = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    !rest.contains('?') && is_host_port(host) && name.is_some_and(|n| n.chars().all(is_good))
}
