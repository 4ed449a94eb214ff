//! What may change in a message on its way, and what must (RFC 3261 16.4, 16.6, 18.2.1; RFC 3581 4).

use std::net::SocketAddr;

use super::{Output, Step, Violation, check, text};
use crate::message::{Message, param, sent_by, split_line, uri, uri_address};

/// What becomes of Request-URI and Route, told from the text alone.
pub(super) struct Routing {
    uri: String,
    routes: Vec<String>,
    /// A strict router before us put our URI into the Request-URI.
    pub(super) is_restored: bool,
    /// The next hop is a strict router.
    pub(super) is_next_strict: bool,
}

impl Routing {
    /// The routes are followed when the request comes from a backend or carries a token that holds.
    pub(super) fn of(step: &Step<'_>, came: &Message, has_token: bool, is_from_backend: bool) -> Routing {
        let names_us = |route: &str| uri_address(uri(route)).is_some_and(|address| step.is_ours(address));
        let mut routing = Routing {
            uri: came.uri().to_owned(),
            routes: came.all("Route").map(str::to_owned).collect(),
            is_restored: false,
            is_next_strict: false,
        };
        if has_token && param(&routing.uri, "tk").is_some() {
            routing.is_restored = true;
            routing.uri = routing.routes.pop().map_or(routing.uri, |last| uri(&last).to_owned());
        }
        while routing.routes.first().is_some_and(|route| names_us(route)) {
            routing.routes.remove(0);
        }
        let is_strict = |route: &String| param(uri(route), "lr").is_none();
        if (has_token || is_from_backend) && routing.routes.first().is_some_and(is_strict) {
            routing.is_next_strict = true;
            routing.routes.push(format!("<{}>", routing.uri));
            routing.uri = uri(&routing.routes.remove(0)).to_owned();
        }
        routing
    }

    /// Where the text says that the request goes.
    pub(super) fn next_hop(&self) -> Option<SocketAddr> {
        let first = self.routes.first().filter(|_| !self.is_next_strict);
        uri_address(first.map_or(self.uri.as_str(), |route| uri(route)))
    }
}

pub(super) fn check_request_edit(
    step: &Step<'_>,
    came: &Message,
    out: &Message,
    routing: &Routing,
) -> Result<(), Violation> {
    let fail = |what: &str| format!("{what}: {came:?}\nbecame\n{out:?}");
    let (vias_in, vias_out): (Vec<_>, Vec<_>) = (came.all("Via").collect(), out.all("Via").collect());
    check(vias_out.len() == vias_in.len() + 1 && vias_out[2..] == vias_in[1..], "edit", || fail("Via"))?;
    let is_ours = |via: &str| sent_by(via).parse().is_ok_and(|address| step.is_ours(address));
    check(is_ours(vias_out[0]), "edit", || fail("our Via"))?;
    let (top, kept) = (vias_in[0], vias_out[1]);
    let asks_rport = param(top, "rport").is_some();
    let is_true = sent_by(top).parse::<SocketAddr>().is_ok_and(|a| a.ip() == step.source.ip());
    let received = param(kept, "received").map(|ip| ip.parse() == Ok(step.source.ip()));
    check(received.unwrap_or(is_true && !asks_rport), "edit", || fail("received"))?;
    let rport = param(kept, "rport").map(|port| port.parse() == Ok(step.source.port()));
    check(rport == asks_rport.then_some(true), "edit", || fail("rport"))?;
    check(sent_by(top) == sent_by(kept) && param(top, "branch") == param(kept, "branch"), "edit", || fail("top Via"))?;
    let hops = |m: &Message| m.get("Max-Forwards").and_then(|text| text.parse::<u32>().ok());
    check(hops(out) == Some(hops(came).unwrap_or(71) - 1), "edit", || fail("Max-Forwards"))?;
    check(came.body == out.body && rest(step.bytes) == rest(&step.outputs[0].bytes), "edit", || fail("rest"))?;
    let method = |m: &Message| m.method().map(str::to_owned);
    check(method(came) == method(out) && out.uri() == routing.uri, "edit", || fail("request line"))?;
    check(out.all("Route").eq(routing.routes.iter().map(String::as_str)), "edit", || fail("Route"))?;
    check_record(step, came, out)
}

/// RFC 3261 16.6 item 4, RFC 5658: ours stand before those that were there, one where both sides share a listener.
fn check_record(step: &Step<'_>, came: &Message, out: &Message) -> Result<(), Violation> {
    let fail = || format!("Record-Route: {came:?}\nbecame\n{out:?}");
    let (before, after): (Vec<_>, Vec<_>) = (came.all("Record-Route").collect(), out.all("Record-Route").collect());
    let ours = after.len().saturating_sub(before.len());
    check(after.get(ours..) == Some(&before[..]), "edit", fail)?;
    let is_ours = |route: &&str| {
        let uri = uri(route);
        let is_token = param(uri, "tk").is_some_and(|token| !token.is_empty());
        is_token && param(uri, "lr").is_some() && uri_address(uri).is_some_and(|address| step.is_ours(address))
    };
    check(after[..ours].iter().all(is_ours), "edit", fail)?;
    let makes_dialog = out.method() == Some("INVITE") && out.tag_of_to().is_none();
    let is_across = step.outputs[0].to.is_ipv6() != step.source.is_ipv6();
    let wanted = if makes_dialog { 1 + usize::from(is_across) } else { 0 };
    check(ours == wanted || (!makes_dialog && ours <= 2), "edit", fail)
}

/// A response loses its first Via line and nothing else.
pub(super) fn check_response_edit(step: &Step<'_>, output: &Output) -> Result<(), Violation> {
    let lines = |bytes: &[u8]| text(bytes).split_inclusive("\r\n").map(str::to_owned).collect::<Vec<_>>();
    let mut wanted = lines(step.bytes);
    let is_via = |line: &String| split_line(line).is_some_and(|(name, _)| name == "Via");
    if let Some(first) = wanted.iter().position(is_via) {
        wanted.remove(first);
    }
    check(wanted == lines(&output.bytes), "edit", || format!("{}\nbecame\n{}", text(step.bytes), text(&output.bytes)))
}

/// The lines of a request that pass untouched, and the body.
fn rest(bytes: &[u8]) -> (Vec<&[u8]>, &[u8]) {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(bytes.len());
    let is_ours_to_change = |line: &[u8]| {
        let name = split_line(&String::from_utf8_lossy(line)).map(|(name, _)| name).unwrap_or_default();
        matches!(name.as_str(), "Via" | "Max-Forwards" | "Route" | "Record-Route")
    };
    let lines = bytes[..end].split(|b| *b == b'\n').skip(1).map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    (lines.filter(|line| !is_ours_to_change(line)).collect(), &bytes[end..])
}
