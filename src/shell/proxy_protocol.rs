//! The PROXY protocol, versions 1 and 2: what a TCP balancer in front says about the client, before its first byte.
//!
//! Read HAProxy's doc/proxy-protocol.txt first. Whoever may send this header may claim any source, so it is read only
//! where the configuration says that one comes, and then it must come. ppp reads and writes the addresses; here is what
//! it leaves open: where the header ends when it comes in pieces, how long it may be, and what is skipped unread.
//!
//! ```text
//! "PROXY TCP4 203.0.113.7 192.0.2.10 5062 5060" CRLF            version 1, 107 bytes at most
//! CRLF CRLF 00 CRLF "QUIT" LF | 21 | 11 | length | addresses, TLVs   version 2, 16 bytes and length
//! ```
//!
//! Bound: [`HEADER_MAX`] bytes; beyond that a header is an error whatever it says.

use std::net::{IpAddr, SocketAddr};

use ppp::v2::{Builder, Command, PROTOCOL_PREFIX, Protocol, Version};

/// The longest header: what stands before the addresses of version 2 and 536 bytes, which fit the smallest packet that
/// every IPv4 host takes. The TLVs that balancers add (authority, TLS, unique id) stay well below.
pub const HEADER_MAX: usize = V2_PREFIX + 536;

/// The longest header of version 1, line end included.
const V1_MAX: usize = 107;

const V1_START: &[u8] = b"PROXY ";

/// Signature, version and command, family and protocol, length.
const V2_PREFIX: usize = 16;

/// Why there is no header. Whoever connected is at fault, or the configuration, which says that a header comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// The first bytes begin a header of neither version.
    #[error("the connection does not begin with a PROXY header")]
    Missing,
    /// Longer than allowed.
    #[error("the PROXY header is too long")]
    TooLong,
    /// A header that cannot be read.
    #[error("the PROXY header cannot be read")]
    Malformed,
}

/// Which version to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyVersion {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// Reads the header at the front of `bytes`: its length, and the client's address where it tells one. `None` asks for
/// more bytes. LOCAL and UNKNOWN tell none, nor do Unix sockets: the address seen holds.
///
/// # Errors
///
/// [`ProxyError`] as soon as no header can come of the bytes.
pub fn parse(bytes: &[u8]) -> Result<Option<(usize, Option<SocketAddr>)>, ProxyError> {
    let begins = |start: &[u8]| bytes.iter().zip(start).all(|(a, b)| a == b);
    if begins(V1_START) && !bytes.is_empty() {
        return parse_v1(bytes);
    }
    if begins(PROTOCOL_PREFIX) {
        return parse_v2(bytes);
    }
    Err(ProxyError::Missing)
}

fn parse_v1(bytes: &[u8]) -> Result<Option<(usize, Option<SocketAddr>)>, ProxyError> {
    let Some(end) = memchr::memchr(b'\n', &bytes[..bytes.len().min(V1_MAX)]) else {
        return if bytes.len() < V1_MAX { Ok(None) } else { Err(ProxyError::TooLong) };
    };
    // ppp takes some beginnings of a line for wrong ones, so it sees only whole lines.
    let line = &bytes[..=end];
    let (Some(told), true) = (line.strip_prefix(V1_START), line.ends_with(b"\r\n")) else {
        return Err(ProxyError::Malformed);
    };
    // "The receiver must ignore anything presented before the CRLF."
    if told.starts_with(b"UNKNOWN ") || told == b"UNKNOWN\r\n" {
        return Ok(Some((line.len(), None)));
    }
    let header = ppp::v1::Header::try_from(line).map_err(|_| ProxyError::Malformed)?;
    if header.header.len() != line.len() {
        return Err(ProxyError::Malformed);
    }
    let source: (IpAddr, u16) = match header.addresses {
        ppp::v1::Addresses::Tcp4(told) => (told.source_address.into(), told.source_port),
        ppp::v1::Addresses::Tcp6(told) => (told.source_address.into(), told.source_port),
        ppp::v1::Addresses::Unknown => return Ok(Some((line.len(), None))),
    };
    Ok(Some((line.len(), Some(canonical(source)))))
}

fn parse_v2(bytes: &[u8]) -> Result<Option<(usize, Option<SocketAddr>)>, ProxyError> {
    let Some((prefix, rest)) = bytes.split_first_chunk::<V2_PREFIX>() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([prefix[14], prefix[15]]));
    if V2_PREFIX + length > HEADER_MAX {
        return Err(ProxyError::TooLong);
    }
    if rest.len() < length {
        return Ok(None);
    }
    let whole = V2_PREFIX + length;
    // "The receiver must discard the protocol block including the family which is ignored."
    if prefix[12] == Version::Two | Command::Local {
        return Ok(Some((whole, None)));
    }
    let header = ppp::v2::Header::try_from(&bytes[..whole]).map_err(|_| ProxyError::Malformed)?;
    let source: (IpAddr, u16) = match header.addresses {
        ppp::v2::Addresses::IPv4(told) => (told.source_address.into(), told.source_port),
        ppp::v2::Addresses::IPv6(told) => (told.source_address.into(), told.source_port),
        ppp::v2::Addresses::Unspecified | ppp::v2::Addresses::Unix(_) => return Ok(Some((whole, None))),
    };
    Ok(Some((whole, Some(canonical(source)))))
}

/// The header that tells a backend where a connection came from and where it went. Where one address is of IPv4 and the
/// other of IPv6, both are written as IPv6.
pub fn encode(version: ProxyVersion, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mapped = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    };
    let pair = match source.is_ipv4() == destination.is_ipv4() {
        true => (source, destination),
        false => (mapped(source), mapped(destination)),
    };
    match version {
        ProxyVersion::V1 => ppp::v1::Addresses::from(pair).to_string().into_bytes(),
        // It fails above 64 KiB; this has 52 bytes at most.
        ProxyVersion::V2 => {
            Builder::with_addresses(Version::Two | Command::Proxy, Protocol::Stream, pair).build().unwrap_or_default()
        }
    }
}

/// An IPv4-mapped address is the IPv4 host that it names, so that no check on IPv4 can be passed in its disguise.
fn canonical((ip, port): (IpAddr, u16)) -> SocketAddr {
    SocketAddr::new(ip.to_canonical(), port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn v2(version_command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let len = u16::try_from(block.len()).unwrap().to_be_bytes();
        [PROTOCOL_PREFIX, &[version_command, family], &len, block].concat()
    }

    /// Every beginning of a header asks for more, and the header is found whatever follows it.
    fn check_whole(header: &[u8], source: Option<SocketAddr>) {
        for cut in 0..header.len() {
            assert_eq!(parse(&header[..cut]), Ok(None), "{cut} bytes of {:?}", String::from_utf8_lossy(header));
        }
        for rest in [&b""[..], b"\r\n", b"INVITE sip:a SIP/2.0\r\n", &[0xff; 600]] {
            assert_eq!(parse(&[header, rest].concat()), Ok(Some((header.len(), source))));
        }
    }

    #[test]
    fn text_headers_are_read_under_every_split() {
        let client = Some(address("203.0.113.7:5062"));
        check_whole(b"PROXY TCP4 203.0.113.7 192.0.2.10 5062 5060\r\n", client);
        check_whole(b"PROXY TCP6 2001:db8::7 2001:db8::10 65535 0\r\n", Some(address("[2001:db8::7]:65535")));
        check_whole(b"PROXY TCP6 ::ffff:203.0.113.7 2001:db8::10 5062 5060\r\n", client);
        check_whole(b"PROXY UNKNOWN\r\n", None);
        check_whole(b"PROXY UNKNOWN a b c d e f g h\r\n", None);
        check_whole(format!("PROXY UNKNOWN {}\r\n", "x".repeat(V1_MAX - 16)).as_bytes(), None);
        let longest = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let line = format!("PROXY TCP6 {longest} {longest} 65535 65535\r\n");
        check_whole(line.as_bytes(), Some(SocketAddr::new(longest.parse().unwrap(), 65535)));
    }

    #[test]
    fn binary_headers_are_read_under_every_split() {
        let v4 = [203, 0, 113, 7, 192, 0, 2, 10, 0x13, 0xc6, 0x13, 0xc4];
        let client = Some(address("203.0.113.7:5062"));
        check_whole(&v2(0x21, 0x11, &v4), client);
        check_whole(&v2(0x21, 0x12, &v4), client);
        // With a TLV (authority).
        check_whole(&v2(0x21, 0x11, &[&v4[..], b"\x02\x00\x07lb.test"].concat()), client);
        let v6 = |ip: &str| ip.parse::<std::net::Ipv6Addr>().unwrap().octets();
        let block = |source: &str| [&v6(source)[..], &v6("2001:db8::10"), &[0x13, 0xc6, 0x13, 0xc4]].concat();
        check_whole(&v2(0x21, 0x21, &block("2001:db8::7")), Some(address("[2001:db8::7]:5062")));
        check_whole(&v2(0x21, 0x21, &block("::ffff:203.0.113.7")), client);
        check_whole(&v2(0x21, 0x31, &[b'/'; 216]), None);
        check_whole(&v2(0x21, 0x00, b""), None);
        // LOCAL, with a block that says nothing and one that says nonsense.
        check_whole(&v2(0x20, 0x00, b""), None);
        check_whole(&v2(0x20, 0xf7, b"xyz"), None);
        check_whole(&v2(0x21, 0x00, &[0; HEADER_MAX - V2_PREFIX]), None);
    }

    #[test]
    fn what_is_no_header_is_told_as_early_as_it_can_be() {
        let error_after = |bytes: &[u8]| {
            let first = (0..=bytes.len()).find_map(|end| Some((end, parse(&bytes[..end]).err()?)));
            if let Some((end, error)) = first {
                // And stays told.
                (end..=bytes.len()).for_each(|more| assert_eq!(parse(&bytes[..more]), Err(error)));
            }
            first
        };
        let missing = |at| Some((at, ProxyError::Missing));
        let malformed = |at| Some((at, ProxyError::Malformed));
        assert_eq!(error_after(b"REGISTER sip:a SIP/2.0\r\n"), missing(1));
        assert_eq!(error_after(b"PROXYING"), missing(6));
        assert_eq!(error_after(b"\r\n\r\nINVITE"), missing(5));
        assert_eq!(error_after(b"\x16\x03\x01"), missing(1));
        for line in [
            "PROXY TCP4 203.0.113.7 192.0.2.10 5062 5060\n",
            "PROXY TCP4 203.0.113.7 192.0.2.10 5062 5060 \r\n",
            "PROXY TCP4 203.0.113.7 192.0.2.10 5062\r\n",
            "PROXY TCP4 203.0.113.7 192.0.2.10 65536 5060\r\n",
            "PROXY TCP4 203.0.113.7 192.0.2.10 -1 5060\r\n",
            "PROXY TCP4 203.0.113.07 192.0.2.10 5062 5060\r\n",
            "PROXY TCP4 2001:db8::7 2001:db8::10 5062 5060\r\n",
            "PROXY TCP6 203.0.113.7 192.0.2.10 5062 5060\r\n",
            "PROXY  TCP4 203.0.113.7 192.0.2.10 5062 5060\r\n",
            "PROXY tcp4 203.0.113.7 192.0.2.10 5062 5060\r\n",
            "PROXY TCP4 203.0.113.7 192.0.2.10 5062 5060\rX\r\n",
            "PROXY UNKNOWNX\r\n",
            "PROXY UNKNOWN\n",
            "PROXY \r\n",
            "PROXY \u{fffd}\r\n",
        ] {
            assert_eq!(error_after(line.as_bytes()), malformed(line.len()), "{line}");
        }
        let endless = format!("PROXY UNKNOWN {}", "x".repeat(200));
        assert_eq!(error_after(endless.as_bytes()), Some((V1_MAX, ProxyError::TooLong)));
        assert_eq!(error_after(&v2(0x11, 0x11, &[0; 12])), malformed(28));
        assert_eq!(error_after(&v2(0x22, 0x11, &[0; 12])), malformed(28));
        assert_eq!(error_after(&v2(0x21, 0x41, &[0; 12])), malformed(28));
        assert_eq!(error_after(&v2(0x21, 0x13, &[0; 12])), malformed(28));
        assert_eq!(error_after(&v2(0x21, 0x11, &[0; 11])), malformed(27));
        assert_eq!(error_after(&v2(0x21, 0x21, &[0; 35])), malformed(51));
        let too_long = v2(0x21, 0x11, &[0; HEADER_MAX - V2_PREFIX + 1]);
        assert_eq!(error_after(&too_long), Some((V2_PREFIX, ProxyError::TooLong)));
    }

    #[test]
    fn both_versions_are_written_as_they_are_specified() {
        let (client, service) = (address("203.0.113.7:5062"), address("192.0.2.10:5060"));
        let text = |a, b| String::from_utf8(encode(ProxyVersion::V1, a, b)).unwrap();
        assert_eq!(text(client, service), "PROXY TCP4 203.0.113.7 192.0.2.10 5062 5060\r\n");
        assert_eq!(text(address("[2001:db8::7]:1"), service), "PROXY TCP6 2001:db8::7 ::ffff:192.0.2.10 1 5060\r\n");
        let block = [203, 0, 113, 7, 192, 0, 2, 10, 0x13, 0xc6, 0x13, 0xc4];
        assert_eq!(encode(ProxyVersion::V2, client, service), v2(0x21, 0x11, &block));
    }

    fn any_address() -> impl Strategy<Value = SocketAddr> {
        let ip = prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)];
        (ip, any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port))
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(source in any_address(), destination in any_address()) {
            for version in [ProxyVersion::V1, ProxyVersion::V2] {
                let header = encode(version, source, destination);
                check_whole(&header, Some(source));
            }
        }

        #[test]
        fn no_bytes_make_a_panic_or_a_header_longer_than_they_are(
            start in prop::sample::select(vec![&b""[..], b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ::", PROTOCOL_PREFIX]),
            rest in prop_oneof![prop::collection::vec(any::<u8>(), 0..80), "[0-9.: \r\nTCPUNKOW]{0,120}".prop_map(String::into_bytes)],
        ) {
            let bytes = [start, &rest].concat();
            let mut told = None;
            for end in 0..=bytes.len() {
                let result = parse(&bytes[..end]);
                if let Ok(Some((len, _))) = result {
                    prop_assert!(len <= end);
                }
                // More bytes never change what was told.
                if let Some(before) = &told {
                    prop_assert_eq!(&result, before);
                } else if result != Ok(None) {
                    told = Some(result);
                }
            }
        }
    }
}
