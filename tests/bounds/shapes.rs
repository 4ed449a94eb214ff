//! Messages of any size in every shape that is cheap to write and may be dear to read.

use crate::{BACKEND, Bench, CLIENT};

/// A shape: its name, who sends it, and how it is written in a given number of bytes or a little less.
pub struct Shape {
    pub name: &'static str,
    pub source: &'static str,
    pub write: Box<dyn Fn(usize) -> Vec<u8>>,
}

/// A message in three parts: the middle is repeated until the message has its size.
fn repeated(name: &'static str, source: &'static str, before: String, unit: &'static str, after: String) -> Shape {
    let write = move |size: usize| {
        let room = size.saturating_sub(before.len() + after.len());
        [before.as_bytes(), &unit.as_bytes().repeat(room / unit.len()), after.as_bytes()].concat()
    };
    Shape { name, source, write: Box::new(write) }
}

/// The header lines of an ordinary INVITE, by name.
fn lines() -> Vec<(&'static str, String)> {
    [
        ("Via", format!("SIP/2.0/UDP {CLIENT};branch=z9hG4bKbound;rport")),
        ("Max-Forwards", "70".to_owned()),
        ("From", "\"Alice\" <sip:alice@example.net>;tag=a1".to_owned()),
        ("To", "<sip:bob@sip.example.com>".to_owned()),
        ("Call-ID", "bounds@example.net".to_owned()),
        ("CSeq", "1 INVITE".to_owned()),
        ("Contact", format!("<sip:alice@{CLIENT}>")),
    ]
    .to_vec()
}

const START: &str = "INVITE sip:bob@sip.example.com SIP/2.0\r\n";

fn text(lines: &[(&str, String)]) -> String {
    lines.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect()
}

/// An ordinary INVITE with something repeated behind its headers.
fn with_lines(name: &'static str, unit: &'static str) -> Shape {
    repeated(name, CLIENT, START.to_owned() + &text(&lines()), unit, "\r\n".to_owned())
}

/// An ordinary INVITE with one value made of something repeated; the header goes where it stands, or to the end.
fn with_value(name: &'static str, header: &'static str, head: &str, unit: &'static str, tail: &str) -> Shape {
    let mut lines = lines();
    let at = lines.iter().position(|(found, _)| *found == header).unwrap_or(lines.len());
    let after: Vec<_> = lines.split_off(at).into_iter().filter(|(found, _)| *found != header).collect();
    let before = format!("{START}{}{header}: {head}", text(&lines));
    repeated(name, CLIENT, before, unit, format!("{tail}\r\n{}\r\n", text(&after)))
}

/// All shapes. `bench` mints what has to be genuine: a Record-Route and a Via of ours.
pub fn all(bench: &mut Bench) -> Vec<Shape> {
    let mut shapes = plain();
    bench.handle(CLIENT.parse().unwrap(), format!("{START}{}\r\n", text(&lines())).as_bytes());
    let (_, invite) = bench.sent().expect("an INVITE that is forwarded");
    let line = |name: &str| invite.lines().find(|line| line.starts_with(name)).expect(name).to_owned();
    let our_route = line("Record-Route: ")["Record-Route: ".len()..].to_owned();
    shapes.extend(in_dialog(&our_route));
    shapes.extend(responses(&invite));
    shapes
}

/// Requests outside a dialog, and what is none.
fn plain() -> Vec<Shape> {
    let via = format!("SIP/2.0/UDP {CLIENT};branch=z9hG4bKbound");
    let mut shapes = vec![
        with_lines("header lines", "X: y\r\n"),
        with_lines("header lines of two bytes", "x:\n"),
        with_lines("known headers", "Contact: a\r\n"),
        with_lines("Via lines", "Via: SIP/2.0/UDP h;branch=z9hG4bKx\r\n"),
        with_lines("Via lines of few bytes", "v:a\n"),
        with_lines("Record-Route lines", "Record-Route: <sip:p;lr>\r\n"),
        with_lines("Content-Length repeated", "Content-Length: 0\r\n"),
        with_lines("Content-Length repeated compactly", "l:0\n"),
        with_lines("Proxy-Require repeated", "Proxy-Require: x\r\n"),
        with_lines("empty Proxy-Require repeated", "Proxy-Require:\r\n"),
        with_lines("From repeated", "f:a\n"),
        with_lines("lines without a colon", "xyz\r\n"),
        with_lines("lines of colons", ":\r\n"),
        with_lines("names with white space behind", "X        \t :\r\n"),
        with_lines("folded lines that start nothing", " x\r\n"),
        with_lines("bare CRs", "\r"),
        with_lines("bare CRs and text", "a:\rb"),
        with_value("one endless header", "X", "", "x", ""),
        with_value("one header of colons", "X", "", ":", ""),
        with_value("folds", "X", "", "\r\n ", ""),
        with_value("folds of LF and tab", "X", "", "\n\t", ""),
        with_value("white space", "X", "", " ", ""),
        with_value("white space before and behind", "Call-ID", "x", " ", "y"),
        with_value("quotes", "X", "", "\"", ""),
        with_value("parentheses", "X", "", "(", ""),
        with_value("Via values in a line", "Via", &via, ",SIP/2.0/UDP h", ""),
        with_value("Via values of few bytes", "Via", &via, ",a", ""),
        with_value("Via parameters", "Via", &via, ";a", ""),
        with_value("Via parameters with values", "Via", &via, ";a=b", ""),
        with_value("Via parameters in white space", "Via", &via, " ; a = b", ""),
        with_value("Via folded", "Via", &via, "\r\n ;a", ""),
        with_value("Via and white space", "Via", &via, "\r\n ", ""),
        with_value("Via with quotes", "Via", &format!("{via};x=\""), "\\\"", "\""),
        with_value("Via with an open quote", "Via", &format!("{via};x=\""), "\\\"", ""),
        with_value("Via with many quoted values", "Via", &via, ";a=\"b\"", ""),
        with_value("Via with an open quote in each value", "Via", &via, ";a=\"", ""),
        with_value("Via of semicolons", "Via", &via, ";", ""),
        with_value("Via with parentheses", "Via", &via, "(", ""),
        with_value("Via with an open bracket", "Via", "SIP/2.0/UDP [", "[", ""),
        with_value("Via with an endless host", "Via", "SIP/2.0/UDP ", "h", ";branch=z9hG4bKx"),
        with_value("Via with an endless port", "Via", "SIP/2.0/UDP h:", "0", "5060;branch=z9hG4bKx"),
        with_value("Via with an endless branch", "Via", "SIP/2.0/UDP h;branch=z9hG4bK", "x", ""),
        with_value("Via with an endless version", "Via", "SIP/", "2", "/UDP h"),
        with_value("Via with white space in it", "Via", "SIP / ", " ", "2.0 / UDP h"),
        with_value("From with quotes", "From", "\"", "\\\"", "\" <sip:a@b>;tag=1"),
        with_value("From with an open quote", "From", "\"", "\\\"", ""),
        with_value("From with opening brackets", "From", "", "<", ""),
        with_value("From with parentheses", "From", "", "(", " <sip:a@b>;tag=1"),
        with_value("From with an endless name", "From", "", "a ", "<sip:a@b>;tag=1"),
        with_value("From parameters", "From", "<sip:a@b>;tag=1", ";a=b", ""),
        with_value("From parameters of quotes", "From", "<sip:a@b>;tag=1", ";a=\"b\"", ""),
        with_value("From with an endless tag", "From", "<sip:a@b>;tag=", "x", ""),
        with_value("From with many tags", "From", "<sip:a@b>", ";tag=1", ""),
        with_value("From folded", "From", "<sip:a@b>;tag=1", "\r\n\t;a", ""),
        with_value("From values in a line", "From", "<sip:a@b>;tag=1", ",<sip:a@b>", ""),
        with_value("To with URI parameters", "To", "<sip:bob@b", ";a=b", ">"),
        with_value("To without brackets", "To", "sip:bob@b", ";a=b", ""),
        with_value("endless Call-ID", "Call-ID", "", "x", ""),
        with_value("folded Call-ID", "Call-ID", "x", "\r\n x", ""),
        with_value("endless CSeq", "CSeq", "", "0", "1 INVITE"),
        with_value("CSeq with white space", "CSeq", "1", " ", "INVITE"),
        with_value("CSeq with an endless method", "CSeq", "1 ", "M", ""),
        with_value("endless Max-Forwards", "Max-Forwards", "", "0", "70"),
        with_value("Content-Length of zeros", "Content-Length", "", "0", ""),
        with_value("Content-Length of nines", "Content-Length", "", "9", ""),
        with_value("Route of commas", "Route", "", ",", ""),
        with_value("Route of opening brackets", "Route", "<sip:a;lr>,", "<", ""),
        with_value("Route of quotes", "Route", "", "\"\"", ""),
        with_value("endless list of Routes", "Route", "<sip:p;lr>", ",<sip:p;lr>", ""),
        with_value("Routes of few bytes", "Route", "a", ",a", ""),
        with_value("Routes in white space", "Route", "a", " \r\n , a", ""),
        with_value("Route with URI parameters", "Route", "<sip:p;lr", ";a=b", ">"),
        with_value("Route with parameters", "Route", "<sip:p;lr>", ";a=b", ""),
        with_value("forged Routes of ours", "Route", "", "<sip:192.0.2.10:5060;lr;tk=AAAA>,", "<sip:p;lr>"),
        with_value("Route of ours with endless parameters", "Route", "<sip:192.0.2.10:5060;lr", ";tk", ">"),
        with_lines("Route lines", "Route: <sip:p;lr>\r\n"),
        repeated("nothing but line ends", CLIENT, String::new(), "\r\n", String::new()),
        repeated("line ends before a message", CLIENT, String::new(), "\r\n", format!("{START}{}\r\n", text(&lines()))),
        repeated("one line", CLIENT, String::new(), "x", String::new()),
        repeated("one line of spaces", CLIENT, "INVITE ".to_owned(), " ", String::new()),
        repeated("a body", CLIENT, format!("{START}{}\r\n", text(&lines())), "\r\n\r\n", String::new()),
        repeated("NULs", CLIENT, String::new(), "\0", String::new()),
    ];
    for (name, head, unit, tail) in [
        ("Request-URI of parameters", "sip:bob@h", ";a=b", ""),
        ("Request-URI of tokens", "sip:bob@h", ";tk=A", ""),
        ("Request-URI of headers", "sip:bob@h?a=b", "&a=b", ""),
        ("Request-URI with an endless user", "sip:", "u", "@h"),
        ("Request-URI of at signs", "sip:", "@", "h"),
        ("Request-URI of colons", "sip:h", ":", ""),
        ("Request-URI with an endless scheme", "", "s", ":x"),
        ("tel URI of parameters", "tel:+1", ";a=b", ""),
        ("Request-URI with an open bracket", "sip:[", ":", ""),
    ] {
        let rest = format!("{tail} SIP/2.0\r\n{}\r\n", text(&lines()));
        shapes.push(repeated(name, CLIENT, format!("INVITE {head}"), unit, rest));
    }
    shapes.push(repeated(
        "endless method",
        CLIENT,
        "M".to_owned(),
        "M",
        format!(" sip:h SIP/2.0\r\n{}\r\n", text(&lines())),
    ));
    shapes
}

/// Requests in a dialog of ours: Routes that are followed, from a client and from a backend.
fn in_dialog(our_route: &str) -> Vec<Shape> {
    let in_dialog = |name, source: &'static str, uri: &str, head: &str, unit, tail: &str| {
        let tags = ["a1", "b1"];
        let [from, to] = if source == CLIENT { tags } else { [tags[1], tags[0]] };
        let before = format!(
            "BYE {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {source};branch=z9hG4bKbye\r\nMax-Forwards: 70\r\n\
             From: <sip:x@y>;tag={from}\r\nTo: <sip:y@x>;tag={to}\r\nCall-ID: bounds@example.net\r\nCSeq: 2 BYE\r\n{head}"
        );
        repeated(name, source, before, unit, format!("{tail}\r\n\r\n"))
    };
    let our_uri = our_route.trim_matches(['<', '>']);
    let contact = format!("sip:alice@{CLIENT}");
    let list = format!("Route: {our_route}");
    let mut shapes = Vec::new();
    for source in [CLIENT, BACKEND] {
        let shape = |name, uri: &str, head: &str, unit, tail: &str| in_dialog(name, source, uri, head, unit, tail);
        shapes.extend([
            shape("Routes behind ours", &contact, &list, ",<sip:p;lr>", ""),
            shape("strict Routes behind ours", &contact, &list, ",<sip:p>", ""),
            shape("Route lines behind ours", &contact, &list, "\r\nRoute: <sip:p>", ""),
            shape("Routes of ours repeated", &contact, &list, ",<sip:192.0.2.10:5060;lr>", ""),
            shape("Routes behind our Request-URI", our_uri, "Route: <sip:p>", ",<sip:p>", ""),
            shape("Route lines behind our Request-URI", our_uri, "Route: <sip:p>", "\r\nRoute: <sip:p;lr>", ""),
            shape("Routes in white space behind our Request-URI", our_uri, "Route: <sip:p>", "\r\n ,\r\n <sip:p>", ""),
            shape("endless last Route", our_uri, "Route: <sip:p;lr>,<sip:q", ";a=b", ">"),
            shape("endless strict Route", &contact, &format!("{list},<sip:p"), ";a=b", ">"),
        ]);
    }
    shapes
}

/// Responses to an INVITE that was forwarded.
fn responses(invite: &str) -> Vec<Shape> {
    let copied: String = ["From: ", "To: ", "Call-ID: ", "CSeq: "]
        .iter()
        .filter_map(|name| invite.lines().find(|line| line.starts_with(name)))
        .map(|line| format!("{line}\r\n"))
        .collect();
    let vias: Vec<&str> = invite.lines().filter_map(|line| line.strip_prefix("Via: ")).collect();
    let start = "SIP/2.0 200 OK\r\n";
    let (in_lines, in_list) = (vias.join("\r\nVia: "), vias.join(", "));
    let shape = |name, before: String, unit, after: String| repeated(name, BACKEND, before, unit, after);
    vec![
        shape("response with Via lines", format!("{start}Via: {in_lines}\r\n{copied}"), "v:a\n", "\r\n".to_owned()),
        shape(
            "response with Via values",
            format!("{start}Via: {in_list}"),
            ",SIP/2.0/UDP h",
            format!("\r\n{copied}\r\n"),
        ),
        shape("response with Via parameters", format!("{start}Via: {in_lines}"), ";a=b", format!("\r\n{copied}\r\n")),
        shape("response with header lines", format!("{start}Via: {in_lines}\r\n{copied}"), "x:\n", "\r\n".to_owned()),
        shape(
            "response with an endless reason",
            "SIP/2.0 200 ".to_owned(),
            "OK",
            format!("\r\nVia: {in_lines}\r\n{copied}\r\n"),
        ),
        shape("response with a body", format!("{start}Via: {in_lines}\r\n{copied}\r\n"), "v=0\r\n", String::new()),
    ]
}
