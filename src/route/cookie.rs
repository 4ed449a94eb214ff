//! What Tandem writes into a message to know it again: the branch of its Via and the token in its Record-Route.
//!
//! Both are signed, so that a response is relayed only for a request that was forwarded, and an in-dialog request
//! is routed only where its dialog lives; a forgery is refused before any table is looked at. Both are bound to the
//! Call-ID, so that neither can be replayed for another call. No state stands behind them: every worker, every node
//! with the same secret, and the same node after a restart reads them alike.
//!
//! ```text
//!   branch = z9hG4bK | base64url( head 1 | ingress listener 2 | MAC 9 )                         23 characters
//!   token  =           base64url( head 1 | flags 1 | masked( backend 4 | ingress 2 | tag 4 | client 6 or 18 | flow 0 or 8 )
//!                                 | MAC 8 )
//!   flow   =           base64url( masked( flow 8 ) | MAC 7 )                                    20 characters
//!   head   = version 4 bits | epoch 4 bits        epoch tells which of the two live secrets signed
//! ```
//!
//! The branch is a function of what retransmissions, CANCEL and the ACK to a non-2xx share (RFC 3261 16.11): branch
//! and sent-by of the Via below, Call-ID, CSeq number, and the address that the request came from. All of these stand in
//! the response too, so the branch is its own MAC and a response is checked by computing it again. The address binds the
//! response to the host that asked for it; its port is left out, since a NAT may move a client while it rings, and its
//! CANCEL must have the branch of its INVITE. The token is masked with a key stream that starts from
//! its MAC, so that it shows nobody the addresses behind Tandem.
//!
//! A request that came on a connection has that connection, its flow, in a parameter of our Via, signed together with
//! the branch: the response goes back on it (RFC 3261 18.2.2). It is no part of the branch, since a CANCEL may come on
//! another connection than its INVITE. In a token the flow leads requests to a client that only its own connection
//! reaches.
//!
//! MACs are SipHash-2-4 (Aumasson and Bernstein 2012) with 128-bit output, truncated; subkeys per purpose.

use std::hash::Hasher;
use std::net::{IpAddr, SocketAddr};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use siphasher::sip128::{Hasher128, SipHasher24};

use crate::base::id::{BackendId, FlowId, ListenerId, Transport};
use crate::base::text::Text;
use crate::config::Secret;
use crate::sip::via::MAGIC_COOKIE;

const VERSION: u8 = 1;

/// Bytes of a branch: the magic cookie and 16 characters.
pub const BRANCH_LEN: usize = 23;

/// Characters of the longest token: an IPv6 client on a connection.
pub const TOKEN_MAX: usize = 62;

/// Bytes of the longest token before it becomes text.
const TOKEN_BYTES_MAX: usize = 46;

/// Characters of a signed flow.
pub const FLOW_LEN: usize = 20;

/// The URI parameter of our Record-Route that carries the token.
pub const TOKEN_PARAM: &str = "tk";

const FLAG_IPV6: u8 = 1;
const FLAG_FROM_BACKEND: u8 = 2;
const FLAG_FOLLOW_TEXT: u8 = 4;
const FLAG_FLOW: u8 = 8;
/// The transport stands in the upper four bits.
const TRANSPORT_SHIFT: u8 = 4;

/// The two secrets that are live at once.
#[derive(Clone, Debug)]
pub struct Keys {
    current: Key,
    previous: Option<Key>,
}

#[derive(Clone)]
struct Key {
    epoch: u8,
    branch: SipHasher24,
    token: SipHasher24,
    mask: SipHasher24,
    select: SipHasher24,
    tag: SipHasher24,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key(epoch {})", self.epoch)
    }
}

/// What a Record-Route token says of its dialog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie {
    /// The backend that serves the dialog.
    pub backend: BackendId,
    /// The listener on the client's side.
    pub ingress: ListenerId,
    /// Hash of the From tag of the request that made the dialog: tells the direction of later ones.
    pub initial_tag: u32,
    /// The address the client sent from.
    pub client: SocketAddr,
    /// How it was reached.
    pub transport: Transport,
    /// The connection it was reached on; of no meaning once that is closed.
    pub flow: Option<FlowId>,
    /// Did the backend start the dialog?
    pub is_from_backend: bool,
    /// May requests to the client go where its Contact or Route says? Not when it sits behind a NAT.
    pub follows_text: bool,
}

/// What a branch is made of; see the module head.
#[derive(Clone, Copy, Debug)]
pub struct BranchInput<'a> {
    /// `branch` of the Via below ours, empty if it has none.
    pub branch: &'a [u8],
    /// Host of its sent-by.
    pub host: &'a [u8],
    /// Port of its sent-by, 5060 if it has none.
    pub port: u16,
    /// Where the request came from and the response goes.
    pub address: IpAddr,
    /// Call-ID.
    pub call_id: &'a [u8],
    /// CSeq number.
    pub cseq: u32,
}

impl Keys {
    /// Derives all subkeys. What `previous` signed is accepted too.
    pub fn new(current: &Secret, previous: Option<&Secret>) -> Self {
        Keys { current: Key::new(current), previous: previous.map(Key::new) }
    }

    /// Writes the branch for a request that came in at `ingress`.
    pub fn encode_branch(&self, ingress: ListenerId, input: &BranchInput<'_>) -> [u8; BRANCH_LEN] {
        self.current.branch(ingress, input)
    }

    /// Are two secrets live?
    pub fn has_previous(&self) -> bool {
        self.previous.is_some()
    }

    /// The branch that the previous secret gives: of a request that was forwarded before the rotation.
    pub fn encode_previous_branch(&self, ingress: ListenerId, input: &BranchInput<'_>) -> Option<[u8; BRANCH_LEN]> {
        self.previous.as_ref().map(|key| key.branch(ingress, input))
    }

    /// Is `branch` one that we made for `input`? Returns the listener at which the request came in.
    pub fn decode_branch(&self, branch: &[u8], input: &BranchInput<'_>) -> Option<ListenerId> {
        let (magic, text) = branch.split_at_checked(MAGIC_COOKIE.len())?;
        if magic != MAGIC_COOKIE || text.len() != BRANCH_LEN - MAGIC_COOKIE.len() {
            return None;
        }
        // Head and listener are the first four characters; the rest is compared as text.
        let mut raw = [0; 3];
        URL_SAFE_NO_PAD.decode_slice_unchecked(&text[..4], &mut raw).ok().filter(|n| *n == raw.len())?;
        let ingress = ListenerId(u16::from_be_bytes([raw[1], raw[2]]));
        self.of_head(raw[0]).find(|key| key.branch(ingress, input)[..] == *branch).map(|_| ingress)
    }

    /// Writes the token for a dialog of `call_id` to the front of `out`; returns its length.
    pub fn encode_token(&self, call_id: &[u8], cookie: &Cookie, out: &mut [u8; TOKEN_MAX]) -> usize {
        self.current.encode_token(call_id, cookie, out)
    }

    /// Reads a token that was minted for `call_id`; `None` for any other text.
    pub fn decode_token(&self, call_id: &[u8], token: &[u8]) -> Option<Cookie> {
        let mut raw = [0u8; TOKEN_BYTES_MAX + 2];
        let raw = decode_token_text(token, &mut raw)?;
        let mut candidates = self.of_head(raw[0]);
        candidates.find_map(|key| key.decode_token(call_id, raw))
    }

    /// Was this token minted for `call_id` under the previous secret?
    pub fn is_token_of_previous(&self, call_id: &[u8], token: &[u8]) -> bool {
        let mut raw = [0u8; TOKEN_BYTES_MAX + 2];
        let (Some(raw), Some(key)) = (decode_token_text(token, &mut raw), &self.previous) else { return false };
        raw[0] == key.head() && key.decode_token(call_id, raw).is_some()
    }

    /// The text for the flow that a request with this branch came on.
    pub fn encode_flow(&self, branch: &[u8], flow: FlowId) -> [u8; FLOW_LEN] {
        self.current.flow(branch, flow)
    }

    /// Reads a flow that was minted for this branch; `None` for any other text.
    pub fn decode_flow(&self, branch: &[u8], text: &[u8]) -> Option<FlowId> {
        let mut raw = [0u8; 15];
        if text.len() != FLOW_LEN || URL_SAFE_NO_PAD.decode_slice(text, &mut raw).ok()? != raw.len() {
            return None;
        }
        std::iter::once(&self.current).chain(&self.previous).find_map(|key| key.decode_flow(branch, raw))
    }

    /// Hash of a From or To tag as tokens carry it.
    pub fn tag_hash(&self, call_id: &[u8], tag: &[u8]) -> u32 {
        // Not secret and not an attack surface: only compared within a token that is signed. It must survive a
        // rotation of secrets, so it is keyless.
        let mut hasher = siphasher::sip::SipHasher13::new();
        hasher.write(tag);
        hasher.write(call_id);
        hasher.finish() as u32
    }

    /// Hash for the selection of a backend: the same on every node with the same secret, not to be guessed outside.
    pub fn select_hash(&self, key: &[&[u8]]) -> u64 {
        let mut hasher = self.current.select;
        for part in key {
            hasher.write(part);
        }
        hasher.finish128().h1
    }

    /// The To tag of answers made here (RFC 3261 8.2.7: the same for each retransmission).
    pub fn local_tag(&self, call_id: &[u8], from_tag: &[u8]) -> [u8; 11] {
        self.current.local_tag(call_id, from_tag)
    }

    /// Is `tag` the To tag of an answer made here, under either secret?
    pub fn is_local_tag(&self, tag: &[u8], call_id: &[u8], from_tag: &[u8]) -> bool {
        std::iter::once(&self.current).chain(&self.previous).any(|key| key.local_tag(call_id, from_tag) == tag)
    }

    fn of_head(&self, head: u8) -> impl Iterator<Item = &Key> {
        std::iter::once(&self.current).chain(&self.previous).filter(move |key| key.head() == head)
    }
}

impl Key {
    fn new(secret: &Secret) -> Self {
        let subkey = |purpose: &[u8]| {
            let mut hasher = SipHasher24::new_with_key(&secret.0);
            hasher.write(purpose);
            let hash = hasher.finish128();
            SipHasher24::new_with_keys(hash.h1, hash.h2)
        };
        let epoch = subkey(b"epoch").finish128().h1 as u8 & 15;
        Key {
            epoch,
            branch: subkey(b"branch"),
            token: subkey(b"token"),
            mask: subkey(b"mask"),
            select: subkey(b"select"),
            tag: subkey(b"tag"),
        }
    }

    fn head(&self) -> u8 {
        VERSION << 4 | self.epoch
    }

    //= rfc3261#section-16.11 branch
    //# The branch is made of what retransmission, CANCEL and ACK share, the method left out.
    //= rfc3261#section-16.6 unique-branch
    //# Two transactions have two branches.
    fn branch(&self, ingress: ListenerId, input: &BranchInput<'_>) -> [u8; BRANCH_LEN] {
        // Lengths keep neighbouring fields apart; all in one write is cheaper than many small ones.
        let mut text = Text::<256>::default();
        text.push(&ingress.0.to_be_bytes());
        text.push(&input.port.to_be_bytes());
        text.push(&input.cseq.to_be_bytes());
        text.push(&(input.branch.len() as u32).to_be_bytes());
        text.push(&(input.host.len() as u32).to_be_bytes());
        let address = match input.address {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        text.push(&address.octets());
        let mut hasher = self.branch;
        if input.branch.len() + input.host.len() + input.call_id.len() + text.as_bytes().len() <= 256 {
            text.push(input.branch);
            text.push(input.host);
            text.push(input.call_id);
            hasher.write(text.as_bytes());
        } else {
            hasher.write(text.as_bytes());
            hasher.write(input.branch);
            hasher.write(input.host);
            hasher.write(input.call_id);
        }
        let mac = hasher.finish128().as_bytes();
        let mut raw = [0; 12];
        raw[0] = self.head();
        raw[1..3].copy_from_slice(&ingress.0.to_be_bytes());
        raw[3..].copy_from_slice(&mac[..9]);
        let mut text = [0; BRANCH_LEN];
        text[..MAGIC_COOKIE.len()].copy_from_slice(MAGIC_COOKIE);
        encode(&raw, &mut text[MAGIC_COOKIE.len()..]);
        text
    }

    fn local_tag(&self, call_id: &[u8], from_tag: &[u8]) -> [u8; 11] {
        let mut hasher = self.tag;
        hasher.write(call_id);
        hasher.write_u8(0);
        hasher.write(from_tag);
        let mut text = [0; 11];
        encode(&hasher.finish128().h1.to_be_bytes(), &mut text);
        text
    }

    fn flow(&self, branch: &[u8], flow: FlowId) -> [u8; FLOW_LEN] {
        let mut raw = [0u8; 15];
        raw[..8].copy_from_slice(&flow.0.to_be_bytes());
        let mac = self.flow_mac(branch, &raw[..8]);
        self.mask(mac, &mut raw[..8]);
        raw[8..].copy_from_slice(&mac[..7]);
        let mut text = [0; FLOW_LEN];
        encode(&raw, &mut text);
        text
    }

    fn decode_flow(&self, branch: &[u8], mut raw: [u8; 15]) -> Option<FlowId> {
        let mut mac = [0u8; 8];
        mac[..7].copy_from_slice(&raw[8..]);
        self.mask(mac, &mut raw[..8]);
        let flow = u64::from_be_bytes(raw[..8].try_into().ok()?);
        (self.flow_mac(branch, &raw[..8]) == mac).then_some(FlowId(flow))
    }

    /// Seven bytes; the last of the eight is 0, so that the mask can start from what stands in the text.
    fn flow_mac(&self, branch: &[u8], flow: &[u8]) -> [u8; 8] {
        let mut hasher = self.token;
        hasher.write(b"flow");
        hasher.write(flow);
        hasher.write(branch);
        let mut mac = hasher.finish128().h1.to_be_bytes();
        mac[7] = 0;
        mac
    }

    fn encode_token(&self, call_id: &[u8], cookie: &Cookie, out: &mut [u8; TOKEN_MAX]) -> usize {
        let mut raw = [0u8; TOKEN_BYTES_MAX];
        let is_ipv6 = cookie.client.is_ipv6();
        raw[0] = self.head();
        raw[1] = (u8::from(is_ipv6) * FLAG_IPV6)
            | (u8::from(cookie.flow.is_some()) * FLAG_FLOW)
            | ((cookie.transport as u8) << TRANSPORT_SHIFT)
            | (u8::from(cookie.is_from_backend) * FLAG_FROM_BACKEND)
            | (u8::from(cookie.follows_text) * FLAG_FOLLOW_TEXT);
        raw[2..6].copy_from_slice(&cookie.backend.0.to_be_bytes());
        raw[6..8].copy_from_slice(&cookie.ingress.0.to_be_bytes());
        raw[8..12].copy_from_slice(&cookie.initial_tag.to_be_bytes());
        raw[12..14].copy_from_slice(&cookie.client.port().to_be_bytes());
        let mut end = match cookie.client.ip() {
            IpAddr::V4(ip) => {
                raw[14..18].copy_from_slice(&ip.octets());
                18
            }
            IpAddr::V6(ip) => {
                raw[14..30].copy_from_slice(&ip.octets());
                30
            }
        };
        if let Some(flow) = cookie.flow {
            raw[end..end + 8].copy_from_slice(&flow.0.to_be_bytes());
            end += 8;
        }
        let mac = self.token_mac(call_id, &raw[..end]);
        self.mask(mac, &mut raw[2..end]);
        raw[end..end + 8].copy_from_slice(&mac);
        encode(&raw[..end + 8], out)
    }

    fn decode_token(&self, call_id: &[u8], raw: &[u8]) -> Option<Cookie> {
        let mut plain = [0u8; TOKEN_BYTES_MAX];
        let (masked, mac) = raw.split_at_checked(raw.len().checked_sub(8)?)?;
        let is_ipv6 = raw[1] & FLAG_IPV6 != 0;
        let has_flow = raw[1] & FLAG_FLOW != 0;
        let transport = *Transport::ALL.get(usize::from(raw[1] >> TRANSPORT_SHIFT))?;
        let address_end = if is_ipv6 { 30 } else { 18 };
        let plain = &mut plain[..address_end + usize::from(has_flow) * 8];
        if masked.len() != plain.len() {
            return None;
        }
        let mac: [u8; 8] = mac.try_into().ok()?;
        plain.copy_from_slice(masked);
        self.mask(mac, &mut plain[2..]);
        if self.token_mac(call_id, plain) != mac {
            return None;
        }
        let u32_at = |i: usize| u32::from_be_bytes([plain[i], plain[i + 1], plain[i + 2], plain[i + 3]]);
        let ip = match is_ipv6 {
            true => IpAddr::from(<[u8; 16]>::try_from(&plain[14..30]).ok()?),
            false => IpAddr::from(<[u8; 4]>::try_from(&plain[14..18]).ok()?),
        };
        Some(Cookie {
            backend: BackendId(u32_at(2)),
            ingress: ListenerId(u16::from_be_bytes([plain[6], plain[7]])),
            initial_tag: u32_at(8),
            client: SocketAddr::new(ip, u16::from_be_bytes([plain[12], plain[13]])),
            transport,
            flow: match has_flow {
                true => Some(FlowId(u64::from_be_bytes(plain[address_end..].try_into().ok()?))),
                false => None,
            },
            is_from_backend: plain[1] & FLAG_FROM_BACKEND != 0,
            follows_text: plain[1] & FLAG_FOLLOW_TEXT != 0,
        })
    }

    fn token_mac(&self, call_id: &[u8], plain: &[u8]) -> [u8; 8] {
        let mut hasher = self.token;
        hasher.write(plain);
        hasher.write(call_id);
        hasher.finish128().h1.to_be_bytes()
    }

    fn mask(&self, mac: [u8; 8], text: &mut [u8]) {
        for (block, chunk) in text.chunks_mut(16).enumerate() {
            let mut hasher = self.mask;
            hasher.write(&mac);
            hasher.write_u8(block as u8);
            for (byte, key) in chunk.iter_mut().zip(hasher.finish128().as_bytes()) {
                *byte ^= key;
            }
        }
    }
}

/// The bytes of a token, long enough to have a head and a MAC.
fn decode_token_text<'a>(token: &[u8], raw: &'a mut [u8; TOKEN_BYTES_MAX + 2]) -> Option<&'a [u8]> {
    if token.len() > TOKEN_MAX {
        return None;
    }
    let len = URL_SAFE_NO_PAD.decode_slice(token, raw).ok()?;
    raw.get(..len).filter(|raw| raw.len() > 10)
}

/// Base64url without padding; `text` is large enough by construction of its callers.
fn encode(raw: &[u8], text: &mut [u8]) -> usize {
    URL_SAFE_NO_PAD.encode_slice(raw, text).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys() -> Keys {
        Keys::new(&Secret([7; 16]), None)
    }

    fn input<'a>() -> BranchInput<'a> {
        let address = IpAddr::from([192, 0, 2, 1]);
        BranchInput { branch: b"z9hG4bKabc", host: b"192.0.2.1", port: 5060, address, call_id: b"call@host", cseq: 1 }
    }

    fn cookie(client: &str) -> Cookie {
        Cookie {
            backend: BackendId::from_name("pbx1"),
            ingress: ListenerId(4711),
            initial_tag: 99,
            client: client.parse().unwrap(),
            transport: Transport::Udp,
            flow: None,
            is_from_backend: true,
            follows_text: false,
        }
    }

    fn token(keys: &Keys, call_id: &[u8], cookie: &Cookie) -> Vec<u8> {
        let mut out = [0; TOKEN_MAX];
        let len = keys.encode_token(call_id, cookie, &mut out);
        out[..len].to_vec()
    }

    #[test]
    fn a_branch_is_known_again_and_no_other_text_is() {
        let branch = keys().encode_branch(ListenerId(3), &input());
        assert_eq!(keys().decode_branch(&branch, &input()), Some(ListenerId(3)));
        let others = [
            BranchInput { branch: b"z9hG4bKabd", ..input() },
            BranchInput { host: b"192.0.2.2", ..input() },
            BranchInput { port: 5061, ..input() },
            BranchInput { address: IpAddr::from([192, 0, 2, 2]), ..input() },
            BranchInput { call_id: b"other", ..input() },
            BranchInput { cseq: 2, ..input() },
        ];
        assert!(others.iter().all(|other| keys().decode_branch(&branch, other).is_none()));
        assert!((0..BRANCH_LEN).all(|i| keys().decode_branch(&branch[..i], &input()).is_none()));
        for i in 0..BRANCH_LEN {
            let mut forged = branch;
            forged[i] = if forged[i] == b'A' { b'B' } else { b'A' };
            assert_eq!(keys().decode_branch(&forged, &input()), None, "byte {i} is not covered");
        }
    }

    #[test]
    fn a_token_is_read_only_for_its_call() {
        for client in ["198.51.100.7:5062", "[2001:db8::7]:5062"] {
            let cookie = cookie(client);
            let token = token(&keys(), b"call", &cookie);
            assert!(token.len() <= TOKEN_MAX);
            assert_eq!(keys().decode_token(b"call", &token), Some(cookie));
            assert_eq!(keys().decode_token(b"llac", &token), None);
        }
        assert_eq!(token(&keys(), b"call", &cookie("198.51.100.7:5062")).len(), 35);
    }

    #[test]
    fn a_token_carries_transport_and_connection() {
        for transport in Transport::ALL {
            let flow = Some(FlowId::new(3, Transport::Tls, 70_000, 0xABCDEF));
            let cookie = Cookie { transport, flow, ..cookie("[2001:db8::7]:5062") };
            let token = token(&keys(), b"call", &cookie);
            assert_eq!((token.len(), keys().decode_token(b"call", &token)), (TOKEN_MAX, Some(cookie)));
        }
    }

    #[test]
    fn a_flow_is_read_only_beside_its_branch() {
        let flow = FlowId::new(1, Transport::Wss, 2, 3);
        let text = keys().encode_flow(b"z9hG4bK1", flow);
        assert_eq!(keys().decode_flow(b"z9hG4bK1", &text), Some(flow));
        assert_eq!(keys().decode_flow(b"z9hG4bK2", &text), None);
        for i in 0..FLOW_LEN {
            let mut forged = text;
            forged[i] = if forged[i] == b'A' { b'B' } else { b'A' };
            assert_eq!(keys().decode_flow(b"z9hG4bK1", &forged), None, "character {i} is not covered");
        }
        let rotated = Keys::new(&Secret([8; 16]), Some(&Secret([7; 16])));
        assert_eq!(rotated.decode_flow(b"z9hG4bK1", &text), Some(flow));
    }

    #[test]
    fn what_the_previous_secret_signed_is_accepted_until_it_goes() {
        let (old, new) = (Secret([1; 16]), Secret([2; 16]));
        let before = Keys::new(&old, None);
        let rotated = Keys::new(&new, Some(&old));
        let after = Keys::new(&new, None);
        let token = token(&before, b"call", &cookie("198.51.100.7:5062"));
        let branch = before.encode_branch(ListenerId(3), &input());
        assert!(rotated.decode_token(b"call", &token).is_some());
        assert!(rotated.decode_branch(&branch, &input()).is_some());
        assert_eq!(after.decode_token(b"call", &token), None);
        assert_eq!(after.decode_branch(&branch, &input()), None);
    }

    proptest! {
        #[test]
        fn no_text_but_the_minted_one_is_a_token(text in "[A-Za-z0-9_-]{0,60}", at in 0usize..35, with in 0u8..255) {
            prop_assert_eq!(keys().decode_token(b"call", text.as_bytes()), None);
            let mut forged = token(&keys(), b"call", &cookie("198.51.100.7:5062"));
            let was = forged[at];
            forged[at] = with;
            // The last character carries two unused bits; the decoder refuses all but their canonical form.
            prop_assert_eq!(keys().decode_token(b"call", &forged).is_some(), was == with);
        }
    }
}
