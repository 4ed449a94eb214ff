//! Addresses and host names as the configuration writes them.
//!
//! An address is `udp:192.0.2.10:5060` or `udp:[2001:db8::1]:5060`: transport, IP address, port, nothing left to
//! guess. A host name is refused because a resolver would then decide, once and unseen, where calls go. The wildcard
//! address is refused because an answer must leave from the address that was asked (RFC 3581 section 4), and because
//! Via and Record-Route have to name it. The standard library parses the IP address itself; what is here names the
//! mistake that was made.
//!
//! Cost: configuration time only.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::problem::Wrong;
use super::values::Listen;
use crate::base::id::Transport;

/// The default port of SIP over UDP, RFC 3261 section 19.1.2.
const SIP_PORT: u16 = 5060;

/// Schemes that belong to transports which this version does not speak.
const OTHER_TRANSPORTS: [&str; 6] = ["tcp", "tls", "ws", "wss", "sctp", "dtls"];

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
/// What [`decode_address`] refuses, and the wildcard address.
pub(super) fn decode_backend(text: &str) -> Result<(Transport, SocketAddr), Wrong> {
    let (transport, address) = decode_address(text)?;
    if address.ip().is_unspecified() {
        return Err(Wrong::new(
            format!("{text:?} is the wildcard address, which no backend has"),
            format!("write the backend's own address, such as \"{transport}:{}\"", example(address)),
        ));
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
        return wrong("is an IP address, not a host name", "leave it out: addresses in listen are known already");
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

/// Reads transport, IP address and port.
///
/// # Errors
///
/// A missing or unsupported transport, a host name, a missing port or port 0, an address that nobody can be reached
/// at (multicast, broadcast) or that means different things on different links (link-local, IPv4-mapped).
fn decode_address(text: &str) -> Result<(Transport, SocketAddr), Wrong> {
    let rest = strip_transport(text)?;
    let wrong = |what: &str, remedy: String| Err(Wrong::new(format!("{text:?} {what}"), remedy));
    if rest.starts_with("//") {
        return wrong("has slashes", format!("write \"udp:{}\"", rest.trim_start_matches('/')));
    }
    if !rest.starts_with('[') && rest.matches(':').count() > 1 {
        return wrong("has an IPv6 address without brackets", format!("write \"udp:{}\"", bracketed(rest)));
    }
    if let Ok(ip) = rest.trim_matches(['[', ']']).parse::<IpAddr>() {
        return wrong("has no port", format!("write \"udp:{}\"", SocketAddr::new(ip, SIP_PORT)));
    }
    let Some((host, port)) = rest.rsplit_once(':') else {
        let fault =
            if rest.is_empty() { "has no address" } else { "has a host name, which may change behind our back" };
        return wrong(fault, format!("write an IP address and a port, such as \"udp:192.0.2.10:{SIP_PORT}\""));
    };
    let Some(port) = port.parse::<u16>().ok().filter(|port| *port != 0) else {
        return wrong(
            &format!("has {port:?} where the port belongs"),
            format!("write a port from 1 to 65535; SIP's is {SIP_PORT}"),
        );
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let ip = match (bare, host.parse::<IpAddr>()) {
        (None, Ok(ip)) => ip,
        (None, Err(_)) => return Err(not_an_address(text, host, port)),
        (Some(bare), _) => match bare.parse::<Ipv6Addr>() {
            Ok(ip) => IpAddr::V6(ip),
            Err(_) => {
                return wrong(
                    "has no IPv6 address between its brackets",
                    format!("write one such as \"udp:[2001:db8::1]:{port}\""),
                );
            }
        },
    };
    check_reach(text, ip, port)?;
    Ok((Transport::Udp, SocketAddr::new(ip, port)))
}

/// What follows `udp:`.
fn strip_transport(text: &str) -> Result<&str, Wrong> {
    let (scheme, rest) = text.split_once(':').unwrap_or((text, ""));
    let lower = scheme.to_ascii_lowercase();
    if lower == Transport::Udp.scheme() {
        return Ok(rest);
    }
    let remedy = |rest: &str| {
        let guess = match rest.parse::<IpAddr>() {
            Ok(ip) => format!("udp:{}", SocketAddr::new(ip, SIP_PORT)),
            Err(_) => format!("udp:{rest}"),
        };
        match decode_listen(&guess) {
            Ok(_) => format!("write {guess:?}"),
            Err(_) => format!("write transport, IP address and port, such as \"udp:192.0.2.10:{SIP_PORT}\""),
        }
    };
    if OTHER_TRANSPORTS.contains(&lower.as_str()) {
        let what = format!("{text:?} asks for {lower}, but this version speaks udp only");
        return Err(Wrong::new(what, remedy(rest)));
    }
    if lower == "sip" || lower == "sips" {
        return Err(Wrong::new(format!("{text:?} is a SIP URI, not an address"), remedy(rest)));
    }
    Err(Wrong::new(format!("{text:?} does not say which transport"), remedy(text)))
}

/// A guess at what was meant by an IPv6 address without brackets: the last group is the port when it can be one.
fn bracketed(rest: &str) -> String {
    let split =
        rest.rsplit_once(':').and_then(|(ip, port)| Some((ip.parse::<Ipv6Addr>().ok()?, port.parse::<u16>().ok()?)));
    match (split, rest.parse::<Ipv6Addr>()) {
        (Some((ip, port)), _) if port > 999 => format!("[{ip}]:{port}"),
        (_, Ok(ip)) => format!("[{ip}]:{SIP_PORT}"),
        _ => format!("[2001:db8::1]:{SIP_PORT}"),
    }
}

/// A host part that the standard library does not accept: a host name, or an address that is misspelt.
fn not_an_address(text: &str, host: &str, port: u16) -> Wrong {
    let is_numeric = host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.' || byte == b':');
    if is_numeric || host.is_empty() {
        let what = format!("{text:?} has {host:?} where the IP address belongs");
        return Wrong::new(what, format!("write four numbers from 0 to 255, such as \"udp:192.0.2.10:{port}\""));
    }
    let what = format!("{text:?} has the host name {host:?}, which may come to mean another machine");
    Wrong::new(what, format!("write its IP address, such as \"udp:192.0.2.10:{port}\""))
}

/// Refuses addresses that cannot be sent to or that a SIP message cannot carry.
fn check_reach(text: &str, ip: IpAddr, port: u16) -> Result<(), Wrong> {
    let wrong = |what: &str, remedy: String| Err(Wrong::new(format!("{text:?} is {what}"), remedy));
    let unicast = || format!("write a unicast address, such as \"udp:192.0.2.10:{port}\"");
    match ip {
        IpAddr::V4(ip) if ip.is_multicast() || ip == Ipv4Addr::BROADCAST => {
            wrong("a multicast or broadcast address", unicast())
        }
        IpAddr::V6(ip) if ip.is_multicast() => wrong("a multicast address", unicast()),
        IpAddr::V6(ip) if ip.is_unicast_link_local() => wrong(
            "a link-local address, which no SIP message can carry with its link",
            format!("write a global or unique local address, such as \"udp:[2001:db8::1]:{port}\""),
        ),
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(v4) => wrong("an IPv4 address in IPv6 dress", format!("write \"udp:{v4}:{port}\"")),
            None => Ok(()),
        },
        IpAddr::V4(_) => Ok(()),
    }
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
        for text in ["udp:192.0.2.10:5060", "udp:[2001:db8::1]:5060"] {
            let (transport, address) = decode_backend(text).unwrap();
            assert_eq!(show_address(transport, address), text);
        }
    }

    #[test]
    fn each_mistake_is_answered_with_what_to_write() {
        let cases = [
            ("192.0.2.10:5060", "write \"udp:192.0.2.10:5060\""),
            ("192.0.2.10", "write \"udp:192.0.2.10:5060\""),
            ("tcp:192.0.2.10:5060", "write \"udp:192.0.2.10:5060\""),
            ("udp://192.0.2.10:5060", "write \"udp:192.0.2.10:5060\""),
            ("udp:192.0.2.10", "write \"udp:192.0.2.10:5060\""),
            ("udp:2001:db8::1:5060", "write \"udp:[2001:db8::1]:5060\""),
            ("udp:2001:db8::1", "write \"udp:[2001:db8::1]:5060\""),
            ("udp:[2001:db8::1]", "write \"udp:[2001:db8::1]:5060\""),
            ("udp:192.0.2.10:0", "write a port from 1 to 65535; SIP's is 5060"),
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
            let _ = decode_listen(&format!("udp:{tail}"));
        }
    }
}
