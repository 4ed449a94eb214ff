//! Branches and tokens: what was minted is read as it was minted, for what it was minted for, under the secrets that
//! are live; nothing else is read at all.
//!
//! The input chooses secrets, a Call-ID, what is signed, and a text; the text stands in the place of what a stranger
//! sends. It is arbitrary, or what was minted with a few changes, so that a mutation is one step from a forgery.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::feed::Feed;
use crate::base::id::{BackendId, FlowId, ListenerId, Transport};
use crate::config::Secret;
use crate::route::cookie::{BranchInput, Cookie, Keys, TOKEN_MAX};

/// The alphabet of branches and tokens.
const BASE64URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// One dialog's token, one transaction's branch, and what is not one.
///
/// # Panics
///
/// When one is misread, or anything else is read.
pub fn cookie(bytes: &[u8]) {
    let mut feed = Feed::new(bytes);
    let secrets = [feed.array(), feed.array(), feed.array()].map(Secret);
    let call_len = feed.below(256);
    let call_id = feed.take(call_len);
    let cookie = any_cookie(&mut feed);
    let branch_len = feed.below(64);
    let branch = feed.take(branch_len);
    let host_len = feed.below(64);
    let input = BranchInput {
        branch,
        host: feed.take(host_len),
        port: feed.word(),
        address: cookie.client.ip(),
        call_id,
        cseq: u32::from_be_bytes(feed.array()),
    };
    let change = feed.byte();
    let text = feed.rest();
    let live = Live::new(&secrets);
    live.check_token(call_id, &cookie, change, text);
    live.check_branch(cookie.ingress, &input, change, text);
}

fn any_cookie(feed: &mut Feed<'_>) -> Cookie {
    let flags = feed.byte();
    let ip = match flags & 1 {
        0 => IpAddr::V4(Ipv4Addr::from(feed.array::<4>())),
        _ => IpAddr::V6(Ipv6Addr::from(feed.array::<16>())),
    };
    Cookie {
        backend: BackendId(u32::from_be_bytes(feed.array())),
        ingress: ListenerId(feed.word()),
        initial_tag: u32::from_be_bytes(feed.array()),
        client: SocketAddr::new(ip, feed.word()),
        transport: Transport::ALL[feed.below(Transport::ALL.len())],
        flow: (flags & 8 != 0).then(|| FlowId(u64::from_be_bytes(feed.array()))),
        is_from_backend: flags & 2 != 0,
        follows_text: flags & 4 != 0,
    }
}

/// A node before its secret is rotated, after, and after the next rotation.
struct Live {
    keys: [Keys; 3],
    /// Do no two of the secrets agree? Else what is foreign to one may be good for another.
    are_apart: bool,
}

impl Live {
    fn new([first, second, third]: &[Secret; 3]) -> Self {
        let keys = [Keys::new(first, None), Keys::new(second, Some(first)), Keys::new(third, Some(second))];
        Live { keys, are_apart: first != second && second != third && first != third }
    }

    fn check_token(&self, call_id: &[u8], cookie: &Cookie, change: u8, text: &[u8]) {
        let [first, second, third] = &self.keys;
        let mint = |keys: &Keys, call_id: &[u8], cookie: &Cookie| {
            let mut token = [0; TOKEN_MAX];
            let len = keys.encode_token(call_id, cookie, &mut token);
            token[..len].to_vec()
        };
        let token = mint(first, call_id, cookie);
        let len = match (cookie.client.is_ipv4(), cookie.flow.is_some()) {
            (true, false) => 35,
            (true, true) => 46,
            (false, false) => 51,
            (false, true) => 62,
        };
        assert_eq!(token.len(), len);
        assert!(token.iter().all(|byte| BASE64URL.contains(byte)), "a token is text for a URI parameter");
        assert_eq!(first.decode_token(call_id, &token), Some(*cookie), "a token is read as it was minted");
        assert_eq!(second.decode_token(call_id, &token), Some(*cookie), "a rotation loses no dialog");
        if self.are_apart {
            assert_eq!(third.decode_token(call_id, &token), None, "a secret outlives its successor");
        }
        let other_call = [call_id, &[change]].concat();
        assert_eq!(first.decode_token(&other_call, &token), None, "a token is good for another call");
        for forged in forgeries(&token, change) {
            assert_eq!(second.decode_token(call_id, &forged), None, "{} is read", forged.escape_ascii());
        }
        for keys in &self.keys {
            // A stranger who finds one is lucky beyond belief, unless the reader is lenient.
            if let Some(read) = keys.decode_token(call_id, text) {
                let minted = self.keys.iter().any(|keys| mint(keys, call_id, &read) == text);
                assert!(minted, "{} is read as {read:?}", text.escape_ascii());
            }
        }
    }

    fn check_branch(&self, ingress: ListenerId, input: &BranchInput<'_>, change: u8, text: &[u8]) {
        let [first, second, third] = &self.keys;
        let branch = first.encode_branch(ingress, input);
        assert!(branch.starts_with(b"z9hG4bK"), "RFC 3261 8.1.1.7");
        assert!(branch.iter().all(|byte| BASE64URL.contains(byte)), "a branch is a token");
        assert_eq!(first.decode_branch(&branch, input), Some(ingress), "a branch is known again");
        assert_eq!(second.decode_branch(&branch, input), Some(ingress), "a rotation loses no transaction");
        assert_eq!(first.encode_branch(ingress, input), branch, "a retransmission has the same branch");
        if self.are_apart {
            assert_eq!(third.decode_branch(&branch, input), None, "a secret outlives its successor");
        }
        for forged in forgeries(&branch, change) {
            assert_eq!(second.decode_branch(&forged, input), None, "{} is known", forged.escape_ascii());
        }
        let step = u32::from(change) + 1;
        let longer = |field: &[u8]| [field, &[change]].concat();
        let (other_branch, other_host, other_call) = (longer(input.branch), longer(input.host), longer(input.call_id));
        let other_address = match input.address {
            IpAddr::V4(ip) => IpAddr::V4(Ipv4Addr::from(u32::from(ip).wrapping_add(step))),
            IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from(u128::from(ip).wrapping_add(u128::from(step)))),
        };
        let mut others = vec![
            BranchInput { branch: &other_branch, ..*input },
            BranchInput { host: &other_host, ..*input },
            BranchInput { call_id: &other_call, ..*input },
            BranchInput { port: input.port ^ 1 << (change % 16), ..*input },
            BranchInput { cseq: input.cseq ^ 1 << (change % 32), ..*input },
            BranchInput { address: other_address, ..*input },
        ];
        // The bytes of neighbours do not run together, one boundary moved or both.
        let moved = |field: &[u8], last: &u8| [&[*last], field].concat();
        let (to_host, to_call, both);
        if let Some((last, branch)) = input.branch.split_last() {
            to_host = moved(input.host, last);
            others.push(BranchInput { branch, host: &to_host, ..*input });
        }
        if let Some((last, host)) = input.host.split_last() {
            to_call = moved(input.call_id, last);
            others.push(BranchInput { host, call_id: &to_call, ..*input });
            if let Some((first, branch)) = input.branch.split_last() {
                both = moved(host, first);
                others.push(BranchInput { branch, host: &both, call_id: &to_call, ..*input });
            }
        }
        for other in others {
            assert_eq!(second.decode_branch(&branch, &other), None, "a branch is good for {other:?} too");
        }
        for keys in &self.keys {
            if let Some(read) = keys.decode_branch(text, input) {
                let minted = self.keys.iter().any(|keys| keys.encode_branch(read, input)[..] == *text);
                assert!(minted, "{} is known as a branch", text.escape_ascii());
            }
        }
    }
}

/// What is one change away from `good`: each character another one or none of the alphabet, cut, lengthened, padded.
fn forgeries(good: &[u8], change: u8) -> Vec<Vec<u8>> {
    let other = |byte: u8| {
        let place = BASE64URL.iter().position(|b| *b == byte).unwrap_or_default();
        BASE64URL[(place + 1 + usize::from(change) % 63) % 64]
    };
    let mut forged = Vec::new();
    for at in 0..good.len() {
        let with = |byte: u8| {
            let mut text = good.to_vec();
            text[at] = byte;
            text
        };
        forged.push(with(other(good[at])));
        forged.push(with(good[at] ^ 0x80 | change & 0x7f));
        forged.push(good[..at].to_vec());
    }
    for end in [&b"="[..], b"A", b"AA", b"AAAA", b"\0", &[change]] {
        forged.push([good, end].concat());
    }
    forged.retain(|text| text != good);
    forged
}
