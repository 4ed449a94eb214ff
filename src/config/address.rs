//! Addresses, host names, networks and origins as the configuration writes them.
//!
//! An address is `udp:192.0.2.10:5060` or `tls:[2001:db8::1]:5061`: transport, IP address, port, nothing left to
//! guess. A host name is refused because a resolver would then decide, once and unseen, where calls go. The wildcard
//! address is refused because an answer must leave from the address that was asked (RFC 3581 section 4), and because
//! Via and Record-Route have to name it. The standard library parses the IP address itself; what is here names the
//! mistake that was made.
//!
//! Cost: configuration time only.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use super::problem::Wrong;
use super::values::Listen;
use crate::base::id::Transport;

/// Schemes that are no transports of ours, what they are, and the transport that is most likely meant.
const OTHER_SCHEMES: [(&str, &str, Transport); 6] = [
    ("sip", "is a SIP URI, not an address", Transport::Udp),
    ("sips", "is a SIP URI, not an address", Transport::Tls),
    ("http", "is a web address", Transport::Ws),
    ("https", "is a web address", Transport::Wss),
    ("sctp", "asks for sctp, which Tandem does not speak", Transport::Tcp),
    ("dtls", "asks for dtls, which Tandem does not speak", Transport::Tls),
];

/// Reads a listening address.
///
/// # Errors
///
/// What [`decode_address`] refuses, and the wildcard address.
pub(super) fn decode_listen(text: &str) -> Result<Listen, Wrong> {
    let (transport, address) = decode_address(text)?;
    if address.ip().is_unspecified() {
        return Err(Wrong::new(
            format!("{text:?} is the wildcard address, but answers must leave from the address that was asked"),
            format!("list each address of this machine by itself, such as \"{transport}:{}\"", example(address)),
        ));
    }
    Ok(Listen { transport, address })
}

/// Reads the address of a backend.
///
/// # Errors
///
/// What [`decode_address`] refuses, the wildcard address, and WebSocket, which only clients speak.
pub(super) fn decode_backend(text: &str) -> Result<(Transport, SocketAddr), Wrong> {
    let (transport, address) = decode_address(text)?;
    if transport.is_web_socket() {
        return Err(Wrong::new(
            format!("{text:?} asks for {transport}, which only clients speak to Tandem"),
            format!("write where the backend takes udp, tcp or tls, such as \"tcp:{}\"", with_sip_port(address)),
        ));
    }
    if address.ip().is_unspecified() {
        return Err(Wrong::new(
            format!("{text:?} is the wildcard address, which no backend has"),
            format!("write the backend's own address, such as \"{transport}:{}\"", example(address)),
        ));
    }
    Ok((transport, address))
}

/// Reads the address of a backend for large requests.
///
/// # Errors
///
/// What [`decode_backend`] refuses, and UDP.
pub(super) fn decode_large(text: &str) -> Result<(Transport, SocketAddr), Wrong> {
    let (transport, address) = decode_backend(text)?;
    if !transport.is_stream() {
        let what = format!("{text:?} is over udp, where a large request would be sent in fragments");
        return Err(Wrong::new(what, format!("write \"tcp:{address}\"")));
    }
    Ok((transport, address))
}

/// How an address is written in the configuration.
pub fn show_address(transport: Transport, address: SocketAddr) -> String {
    format!("{transport}:{address}")
}

/// Reads a host name in lower case, RFC 1123 section 2.1 and `hostname` of RFC 3261 section 25.1.
///
/// # Errors
///
/// Empty, over 253 characters, a label that is empty, over 63 characters or has anything but letters, digits and
/// inner hyphens, or a last label that does not begin with a letter (that would be an IP address).
pub(super) fn decode_host_name(text: &str) -> Result<String, Wrong> {
    let wrong = |what: &str, remedy: &str| Err(Wrong::new(format!("{text:?} {what}"), remedy));
    let name = text.strip_suffix('.').unwrap_or(text);
    if text.parse::<IpAddr>().is_ok() || text.starts_with('[') {
        return wrong("is an IP address, not a host name", "write a host name, or leave it out: addresses need none");
    }
    if let Some((host, port)) = name.rsplit_once(':')
        && !port.is_empty()
        && port.bytes().all(|byte| byte.is_ascii_digit())
    {
        return Err(Wrong::new(format!("{text:?} has a port"), format!("write the host name alone: {host:?}")));
    }
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last_is_alphabetic =
        name.rsplit('.').next().is_some_and(|label| label.starts_with(|c: char| c.is_alphabetic()));
    if name.len() > 253 || !name.split('.').all(is_label) || !last_is_alphabetic {
        return wrong("is not a host name", "write letters, digits, hyphens and dots, such as \"sip.example.com\"");
    }
    Ok(name.to_ascii_lowercase())
}

/// Reads the host name of a certificate: exact, or `*.` and a domain of two labels or more (RFC 6125 section 6.4.3).
///
/// # Errors
///
/// What [`decode_host_name`] refuses, and a wildcard anywhere but in place of the first label.
pub(super) fn decode_pattern(text: &str) -> Result<String, Wrong> {
    match text.strip_prefix("*.") {
        Some(domain) if domain.contains('.') => decode_host_name(domain).map(|domain| format!("*.{domain}")),
        None if !text.contains('*') => decode_host_name(text),
        _ => Err(Wrong::new(
            format!("{text:?} has a wildcard where none may be"),
            "write it in place of the first label, such as \"*.example.com\"",
        )),
    }
}

/// Reads a network as CIDR.
///
/// # Errors
///
/// An address without a prefix length, bits beyond it, and anything else.
pub(super) fn decode_network(text: &str) -> Result<IpNet, Wrong> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        let network = IpNet::from(ip);
        return Err(Wrong::new(format!("{text:?} has no prefix length"), format!("write \"{network}\"")));
    }
    let Ok(network) = text.parse::<IpNet>() else {
        let what = format!("{text:?} is not a network");
        return Err(Wrong::new(what, "write address and prefix length, such as \"192.0.2.0/24\" or \"2001:db8::/64\""));
    };
    if network.trunc() != network {
        let remedy = format!("write \"{}\"", network.trunc());
        return Err(Wrong::new(format!("{text:?} has bits after its prefix"), remedy));
    }
    Ok(network)
}

/// Reads a web origin in lower case: scheme and host, and the port where it is not the scheme's own (RFC 6454
/// section 6.2), which is how browsers write it.
///
/// # Errors
///
/// Anything a browser would not send.
pub(super) fn decode_origin(text: &str) -> Result<String, Wrong> {
    let wrong = |what: &str, remedy: String| Err(Wrong::new(format!("{text:?} {what}"), remedy));
    let lower = text.to_ascii_lowercase();
    if lower == "*" {
        return wrong("is not an origin", "leave origins out to let any page connect".to_owned());
    }
    let Some((scheme, rest)) = lower.split_once("://") else {
        let guess = format!("https://{lower}");
        let remedy = if is_origin_host(&lower) { guess } else { "https://phone.example.com".to_owned() };
        return wrong("has no scheme", format!("write {remedy:?}"));
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    if !is_scheme || !is_origin_host(host) {
        return wrong("is not an origin", "write scheme and host, such as \"https://phone.example.com\"".to_owned());
    }
    if host != rest {
        return wrong("has a path, which no browser sends", format!("write \"{scheme}://{host}\""));
    }
    let own_port = match scheme {
        "https" => ":443",
        "http" => ":80",
        _ => return Ok(lower),
    };
    match host.strip_suffix(own_port) {
        Some(host) => wrong(
            "has the port that its scheme implies, which no browser sends",
            format!("write \"{scheme}://{host}\""),
        ),
        None => Ok(lower),
    }
}

/// Is it a host as an origin has it, with a port or without?
fn is_origin_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let is_ip = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(bare) => bare.parse::<Ipv6Addr>().is_ok(),
        None => host.parse::<Ipv4Addr>().is_ok(),
    };
    (is_ip || decode_host_name(host).is_ok()) && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// Reads transport, IP address and port.
///
/// # Errors
///
/// A missing or unsupported transport, a host name, a missing port or port 0, an address that nobody can be reached
/// at (multicast, broadcast) or that means different things on different links (link-local, IPv4-mapped).
fn decode_address(text: &str) -> Result<(Transport, SocketAddr), Wrong> {
    let (transport, rest) = strip_transport(text)?;
    let default_port = transport.default_port();
    let wrong = |what: &str, remedy: String| Err(Wrong::new(format!("{text:?} {what}"), remedy));
    if rest.starts_with("//") {
        return wrong("has slashes", format!("write \"{transport}:{}\"", rest.trim_start_matches('/')));
    }
    if !rest.starts_with('[') && rest.matches(':').count() > 1 {
        let guess = bracketed(rest, default_port);
        return wrong("has an IPv6 address without brackets", format!("write \"{transport}:{guess}\""));
    }
    if let Ok(ip) = rest.trim_matches(['[', ']']).parse::<IpAddr>() {
        return wrong("has no port", format!("write \"{transport}:{}\"", SocketAddr::new(ip, default_port)));
    }
    let Some((host, port)) = rest.rsplit_once(':') else {
        let fault =
            if rest.is_empty() { "has no address" } else { "has a host name, which may change behind our back" };
        let remedy = format!("write an IP address and a port, such as \"{transport}:192.0.2.10:{default_port}\"");
        return wrong(fault, remedy);
    };
    let Some(port) = port.parse::<u16>().ok().filter(|port| *port != 0) else {
        return wrong(
            &format!("has {port:?} where the port belongs"),
            format!("write a port from 1 to 65535; {transport}'s is {default_port}"),
        );
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let ip = match (bare, host.parse::<IpAddr>()) {
        (None, Ok(ip)) => ip,
        (None, Err(_)) => return Err(not_an_address(text, transport, host, port)),
        (Some(bare), _) => match bare.parse::<Ipv6Addr>() {
            Ok(ip) => IpAddr::V6(ip),
            Err(_) => {
                return wrong(
                    "has no IPv6 address between its brackets",
                    format!("write one such as \"{transport}:[2001:db8::1]:{port}\""),
                );
            }
        },
    };
    check_reach(text, transport, ip, port)?;
    Ok((transport, SocketAddr::new(ip, port)))
}

/// The transport, and what follows it.
fn strip_transport(text: &str) -> Result<(Transport, &str), Wrong> {
    let (scheme, rest) = text.split_once(':').unwrap_or((text, ""));
    let lower = scheme.to_ascii_lowercase();
    if let Some(transport) = Transport::ALL.into_iter().find(|transport| transport.scheme() == lower) {
        return Ok((transport, rest));
    }
    let remedy = |transport: Transport, rest: &str| {
        let rest = rest.trim_start_matches('/');
        let guess = match rest.parse::<IpAddr>() {
            Ok(ip) => format!("{transport}:{}", SocketAddr::new(ip, transport.default_port())),
            Err(_) => format!("{transport}:{rest}"),
        };
        match decode_listen(&guess) {
            Ok(_) => format!("write {guess:?}"),
            Err(_) => {
                let port = transport.default_port();
                format!("write transport, IP address and port, such as \"{transport}:192.0.2.10:{port}\"")
            }
        }
    };
    match OTHER_SCHEMES.into_iter().find(|(other, _, _)| *other == lower) {
        Some((_, what, meant)) => Err(Wrong::new(format!("{text:?} {what}"), remedy(meant, rest))),
        None => Err(Wrong::new(format!("{text:?} does not say which transport"), remedy(Transport::Udp, text))),
    }
}

/// A guess at what was meant by an IPv6 address without brackets: the last group is the port when it can be one.
fn bracketed(rest: &str, default_port: u16) -> String {
    let split =
        rest.rsplit_once(':').and_then(|(ip, port)| Some((ip.parse::<Ipv6Addr>().ok()?, port.parse::<u16>().ok()?)));
    match (split, rest.parse::<Ipv6Addr>()) {
        (Some((ip, port)), _) if port > 999 => format!("[{ip}]:{port}"),
        (_, Ok(ip)) => format!("[{ip}]:{default_port}"),
        _ => format!("[2001:db8::1]:{default_port}"),
    }
}

/// A host part that the standard library does not accept: a host name, or an address that is misspelt.
fn not_an_address(text: &str, transport: Transport, host: &str, port: u16) -> Wrong {
    let is_numeric = host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.' || byte == b':');
    if is_numeric || host.is_empty() {
        let what = format!("{text:?} has {host:?} where the IP address belongs");
        return Wrong::new(
            what,
            format!("write four numbers from 0 to 255, such as \"{transport}:192.0.2.10:{port}\""),
        );
    }
    let what = format!("{text:?} has the host name {host:?}, which may come to mean another machine");
    Wrong::new(what, format!("write its IP address, such as \"{transport}:192.0.2.10:{port}\""))
}

/// Refuses addresses that cannot be sent to or that a SIP message cannot carry.
fn check_reach(text: &str, transport: Transport, ip: IpAddr, port: u16) -> Result<(), Wrong> {
    let wrong = |what: &str, remedy: String| Err(Wrong::new(format!("{text:?} is {what}"), remedy));
    let unicast = || format!("write a unicast address, such as \"{transport}:192.0.2.10:{port}\"");
    match ip {
        IpAddr::V4(ip) if ip.is_multicast() || ip == Ipv4Addr::BROADCAST => {
            wrong("a multicast or broadcast address", unicast())
        }
        IpAddr::V6(ip) if ip.is_multicast() => wrong("a multicast address", unicast()),
        IpAddr::V6(ip) if ip.is_unicast_link_local() => wrong(
            "a link-local address, which no SIP message can carry with its link",
            format!("write a global or unique local address, such as \"{transport}:[2001:db8::1]:{port}\""),
        ),
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(v4) => wrong("an IPv4 address in IPv6 dress", format!("write \"{transport}:{v4}:{port}\"")),
            None => Ok(()),
        },
        IpAddr::V4(_) => Ok(()),
    }
}

/// The address with the port on which SIP is most likely taken there.
fn with_sip_port(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), Transport::Tcp.default_port())
}

/// A documentation address of the same family and port (RFC 5737, RFC 3849).
fn example(address: SocketAddr) -> String {
    match address {
        SocketAddr::V4(address) => format!("192.0.2.10:{}", address.port()),
        SocketAddr::V6(address) => format!("[2001:db8::1]:{}", address.port()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_families_are_read_and_shown_alike() {
        for transport in Transport::ALL {
            for address in ["192.0.2.10:5060", "[2001:db8::1]:5060"] {
                let text = format!("{transport}:{address}");
                let listen = decode_listen(&text).unwrap();
                assert_eq!(show_address(listen.transport, listen.address), text);
                assert_eq!(decode_backend(&text).is_ok(), !transport.is_web_socket(), "{text}");
            }
        }
    }

    #[test]
    fn each_mistake_is_answered_with_what_to_write() {
        let cases = [
            ("192.0.2.10:5060", "write \"udp:192.0.2.10:5060\""),
            ("192.0.2.10", "write \"udp:192.0.2.10:5060\""),
            ("tcp:192.0.2.10", "write \"tcp:192.0.2.10:5060\""),
            ("tls:192.0.2.10", "write \"tls:192.0.2.10:5061\""),
            ("wss://192.0.2.10:443", "write \"wss:192.0.2.10:443\""),
            ("https://192.0.2.10:7443", "write \"wss:192.0.2.10:7443\""),
            ("ws:2001:db8::1", "write \"ws:[2001:db8::1]:80\""),
            ("sctp:192.0.2.10:5060", "write \"tcp:192.0.2.10:5060\""),
            ("sips:192.0.2.10", "write \"tls:192.0.2.10:5061\""),
            ("tls:0.0.0.0:5061", "list each address of this machine by itself, such as \"tls:192.0.2.10:5061\""),
            ("udp://192.0.2.10:5060", "write \"udp:192.0.2.10:5060\""),
            ("udp:192.0.2.10", "write \"udp:192.0.2.10:5060\""),
            ("udp:2001:db8::1:5060", "write \"udp:[2001:db8::1]:5060\""),
            ("udp:2001:db8::1", "write \"udp:[2001:db8::1]:5060\""),
            ("udp:[2001:db8::1]", "write \"udp:[2001:db8::1]:5060\""),
            ("udp:192.0.2.10:0", "write a port from 1 to 65535; udp's is 5060"),
            ("udp:sip.example.com:5060", "write its IP address, such as \"udp:192.0.2.10:5060\""),
            ("udp:192.0.2.256:5060", "write four numbers from 0 to 255, such as \"udp:192.0.2.10:5060\""),
            ("udp:[::ffff:192.0.2.10]:5060", "write \"udp:192.0.2.10:5060\""),
            ("sip:192.0.2.10", "write \"udp:192.0.2.10:5060\""),
            ("sip:pbx@example.com", "write transport, IP address and port, such as \"udp:192.0.2.10:5060\""),
            ("0.0.0.0:5060", "write transport, IP address and port, such as \"udp:192.0.2.10:5060\""),
            ("udp:0.0.0.0:5060", "list each address of this machine by itself, such as \"udp:192.0.2.10:5060\""),
            ("udp:[::]:5060", "list each address of this machine by itself, such as \"udp:[2001:db8::1]:5060\""),
            ("udp:239.1.2.3:5060", "write a unicast address, such as \"udp:192.0.2.10:5060\""),
        ];
        for (text, remedy) in cases {
            assert_eq!(decode_listen(text).unwrap_err().remedy, remedy, "{text}");
        }
    }

    #[test]
    fn backends_have_no_web_sockets_and_large_requests_no_udp() {
        let remedy = |decoded: Result<(Transport, SocketAddr), Wrong>| decoded.unwrap_err().remedy;
        let backend = remedy(decode_backend("wss:192.0.2.10:443"));
        assert_eq!(backend, "write where the backend takes udp, tcp or tls, such as \"tcp:192.0.2.10:5060\"");
        assert_eq!(remedy(decode_large("udp:192.0.2.10:5060")), "write \"tcp:192.0.2.10:5060\"");
        assert!(decode_large("tls:192.0.2.10:5061").is_ok());
    }

    #[test]
    fn networks_have_a_prefix_and_nothing_after_it() {
        assert_eq!(decode_network("192.0.2.0/24"), Ok("192.0.2.0/24".parse().unwrap()));
        assert_eq!(decode_network("192.0.2.5").unwrap_err().remedy, "write \"192.0.2.5/32\"");
        assert_eq!(decode_network("2001:db8::5").unwrap_err().remedy, "write \"2001:db8::5/128\"");
        assert_eq!(decode_network("192.0.2.5/24").unwrap_err().remedy, "write \"192.0.2.0/24\"");
        for bad in ["", "/24", "192.0.2.0/33", "example.com/24", "192.0.2.0-192.0.2.9"] {
            assert!(decode_network(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn origins_are_what_a_browser_sends() {
        assert_eq!(decode_origin("HTTPS://Phone.Example.com"), Ok("https://phone.example.com".to_owned()));
        for good in ["https://a.example:8443", "http://192.0.2.1", "https://[2001:db8::1]:444", "capacitor://localhost"]
        {
            assert_eq!(decode_origin(good), Ok(good.to_owned()));
        }
        let cases = [
            ("*", "leave origins out to let any page connect"),
            ("phone.example.com", "write \"https://phone.example.com\""),
            ("https://phone.example.com/", "write \"https://phone.example.com\""),
            ("https://phone.example.com:443", "write \"https://phone.example.com\""),
            ("https://", "write scheme and host, such as \"https://phone.example.com\""),
            ("null", "write \"https://null\""),
        ];
        for (text, remedy) in cases {
            assert_eq!(decode_origin(text).unwrap_err().remedy, remedy, "{text}");
        }
    }

    #[test]
    fn wildcard_stands_for_the_first_label_alone() {
        assert_eq!(decode_pattern("*.Example.com"), Ok("*.example.com".to_owned()));
        assert_eq!(decode_pattern("sip.example.com"), Ok("sip.example.com".to_owned()));
        for bad in ["*", "*.com", "*.*.com", "a.*.com", "s*.example.com", "*.", ".example.com"] {
            assert!(decode_pattern(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn host_names_follow_the_grammar_of_rfc_3261() {
        assert_eq!(decode_host_name("SIP.Example.com."), Ok("sip.example.com".to_owned()));
        assert_eq!(decode_host_name("3com.example"), Ok("3com.example".to_owned()));
        let too_long = format!("{}.com", "a".repeat(64));
        for bad in
            ["", ".", "a..b", "-a.com", "a-.com", "sip_x.com", "192.0.2.10", "a.com:5060", "a.1", "[::1]", &too_long]
        {
            assert!(decode_host_name(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "\\PC*", tail in "[\\[\\]:0-9a-f.%/]{0,40}") {
            let _ = decode_listen(&text);
            let _ = decode_host_name(&text);
            let _ = (decode_origin(&text), decode_pattern(&text), decode_network(&text));
            let _ = decode_origin(&format!("https://{tail}"));
            let _ = decode_listen(&format!("udp:{tail}"));
        }
    }
}
