//! The caller's messages, rendered once and patched in place for each call.
//!
//! A [`Template`] is text with holes for numbers of fixed width, so that rendering is one copy and a few eight-byte
//! stores. In-dialog requests are three templates with the dialog's own text (remote target, Route lines, To)
//! between them. Texts are those of an ordinary phone: 15 header lines and an SDP offer, 900 bytes as INVITE.
//!
//! Every identifier carries the run's seed and the call's number: Call-ID `SEED-CALL-SLOT@host`, From-tag `CALLSEED`,
//! branch `z9hG4bKSEEDCALLn` with n one digit per transaction (RFC 3261 8.1.1.7: unique per transaction).

use std::net::SocketAddr;

use crate::message::{Writer, hex, parse_hex};
use crate::transport::Transport;

/// What tells one call from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallKey {
    /// Number of the call in this run, from 1.
    pub call: u32,
    /// Its place in the table of calls.
    pub slot: u32,
}

/// Which transaction of a call a branch belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transaction {
    /// INVITE, and the ACK to its non-2xx answer.
    Invite = 1,
    /// ACK to a 2xx.
    Ack = 2,
    /// BYE.
    Bye = 3,
    /// REGISTER or OPTIONS.
    Single = 4,
}

/// The session description that callers offer and backends answer with.
pub const SDP: &str = "v=0\r\no=- 3834512345 3834512345 IN IP4 127.0.0.1\r\ns=call\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n\
    m=audio 40000 RTP/AVP 8 0 101\r\na=rtpmap:8 PCMA/8000\r\na=rtpmap:0 PCMU/8000\r\n\
    a=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-16\r\na=ptime:20\r\na=sendrecv\r\n";

#[derive(Clone, Copy)]
enum Hole {
    Call,
    Slot,
}

/// Text with holes.
pub struct Template {
    text: Vec<u8>,
    holes: Vec<(usize, Hole)>,
}

impl Template {
    /// `{call}` and `{slot}` in `pattern` become the holes.
    pub fn new(pattern: &str) -> Template {
        let (mut text, mut holes) = (Vec::with_capacity(pattern.len() + 64), Vec::new());
        for part in pattern.split_inclusive(['{', '}']) {
            let (hole, name) = match part {
                "call}" => (Some(Hole::Call), ""),
                "slot}" => (Some(Hole::Slot), ""),
                other => (None, other.strip_suffix('{').unwrap_or(other)),
            };
            if let Some(hole) = hole {
                holes.push((text.len(), hole));
                text.extend_from_slice(&[b'0'; 8]);
            }
            text.extend_from_slice(name.as_bytes());
        }
        Template { text, holes }
    }

    /// Appends the text for `key`.
    pub fn write(&self, key: CallKey, writer: &mut Writer<'_>) {
        let mut from = 0;
        for &(at, hole) in &self.holes {
            writer.put(&self.text[from..at]).put_hex(match hole {
                Hole::Call => key.call,
                Hole::Slot => key.slot,
            });
            from = at + 8;
        }
        writer.put(&self.text[from..]);
    }
}

/// A request inside a dialog: the text around what only the dialog knows.
pub struct InDialog {
    method: &'static str,
    /// From the end of the Request-Line to where Route lines go.
    via: Template,
    /// From there to the value of To.
    middle: Template,
    /// The rest.
    tail: Template,
}

impl InDialog {
    fn new(party: &Party, method: &'static str, number: u32, transaction: Transaction, headers: &str) -> InDialog {
        InDialog {
            method,
            via: Template::new(&format!(" SIP/2.0\r\n{}", party.via(transaction))),
            middle: Template::new(&format!("Max-Forwards: 70\r\n{}To: ", party.from())),
            tail: Template::new(&format!(
                "\r\n{}CSeq: {number} {method}\r\n{headers}User-Agent: sipbench\r\nContent-Length: 0\r\n\r\n",
                party.call_id()
            )),
        }
    }

    /// Renders the request. `routes` are whole Route lines, `to` the value of To. `None` when it does not fit.
    pub fn render(&self, key: CallKey, target: &[u8], routes: &[u8], to: &[u8], out: &mut [u8]) -> Option<usize> {
        let mut writer = Writer::new(out);
        writer.put(self.method.as_bytes()).put(b" ").put(target);
        self.via.write(key, &mut writer);
        writer.put(routes);
        self.middle.write(key, &mut writer);
        writer.put(to);
        self.tail.write(key, &mut writer);
        writer.finish()
    }
}

/// One caller's identity, from which its texts are made.
struct Party {
    local: SocketAddr,
    transport: Transport,
    seed: u32,
}

impl Party {
    fn seed(&self) -> String {
        String::from_utf8_lossy(&hex(self.seed)).into_owned()
    }

    fn via(&self, transaction: Transaction) -> String {
        let (local, seed, via) = (self.local, self.seed(), self.transport.via());
        format!("Via: SIP/2.0/{via} {local};rport;branch=z9hG4bK{seed}{{call}}{}\r\n", transaction as u8)
    }

    fn from(&self) -> String {
        format!("From: \"Alice Example\" <sip:alice@{}>;tag={{call}}{}\r\n", self.local, self.seed())
    }

    fn call_id(&self) -> String {
        format!("Call-ID: {}-{{call}}-{{slot}}@{}\r\n", self.seed(), self.local.ip())
    }
}

/// All texts of one caller.
pub struct Texts {
    /// INVITE with SDP.
    pub invite: Template,
    /// REGISTER.
    pub register: Template,
    /// OPTIONS outside a dialog.
    pub options: Template,
    /// ACK to a 2xx.
    pub ack: InDialog,
    /// ACK to a final answer other than 2xx: same branch and target as the INVITE (RFC 3261 17.1.1.3).
    pub ack_failure: InDialog,
    /// BYE.
    pub bye: InDialog,
    /// The Request-URI of the INVITE.
    pub target_uri: String,
}

impl Texts {
    /// The texts of the caller at `local` that talks to `target` over `transport`.
    pub fn new(local: SocketAddr, target: SocketAddr, transport: Transport, seed: u32) -> Texts {
        let party = Party { local, transport, seed };
        let target_uri = format!("sip:+493055501234@{target}");
        let contact = format!("Contact: <sip:alice@{local};transport={transport}>\r\n");
        let ability = "Allow: INVITE, ACK, CANCEL, BYE, OPTIONS, NOTIFY, REFER, UPDATE, MESSAGE\r\n\
            Supported: replaces, outbound, timer\r\nUser-Agent: sipbench\r\n";
        let (from, call_id) = (party.from(), party.call_id());
        let invite = format!(
            "INVITE {target_uri} SIP/2.0\r\n{}Max-Forwards: 70\r\n{from}To: <{target_uri}>\r\n{call_id}\
             CSeq: 1 INVITE\r\n{contact}{ability}Session-Expires: 1800\r\nMin-SE: 90\r\n\
             P-Preferred-Identity: <sip:alice@{local}>\r\nContent-Type: application/sdp\r\n\
             Content-Length: {}\r\n\r\n{SDP}",
            party.via(Transaction::Invite),
            SDP.len()
        );
        let register = format!(
            "REGISTER sip:{target} SIP/2.0\r\n{}Max-Forwards: 70\r\n{from}To: <sip:alice{{slot}}@{target}>\r\n\
             {call_id}CSeq: 1 REGISTER\r\n{contact}{ability}Expires: 300\r\nContent-Length: 0\r\n\r\n",
            party.via(Transaction::Single)
        );
        let options = format!(
            "OPTIONS sip:{target} SIP/2.0\r\n{}Max-Forwards: 70\r\n{from}To: <sip:{target}>\r\n{call_id}\
             CSeq: 1 OPTIONS\r\n{contact}Accept: application/sdp\r\n{ability}Content-Length: 0\r\n\r\n",
            party.via(Transaction::Single)
        );
        Texts {
            invite: Template::new(&invite),
            register: Template::new(&register),
            options: Template::new(&options),
            ack: InDialog::new(&party, "ACK", 1, Transaction::Ack, &contact),
            ack_failure: InDialog::new(&party, "ACK", 1, Transaction::Invite, ""),
            bye: InDialog::new(&party, "BYE", 2, Transaction::Bye, &contact),
            target_uri,
        }
    }
}

/// The key in the value of a Call-ID header, if one of our own run's.
pub fn decode_call_id(value: &[u8], seed: u32) -> Option<CallKey> {
    let is_ours = value.get(..8)? == hex(seed) && value.get(8) == Some(&b'-') && value.get(17) == Some(&b'-');
    if !is_ours {
        return None;
    }
    Some(CallKey { call: parse_hex(value.get(9..17)?)?, slot: parse_hex(value.get(18..26)?)? })
}

/// Whether a Via line is the one that we sent for this transaction, whatever parameters a proxy added to it.
pub fn is_our_via(line: &[u8], seed: u32, call: u32, transaction: Transaction) -> bool {
    const PREFIX: &[u8] = b"branch=z9hG4bK";
    memchr::memmem::find(line, PREFIX).is_some_and(|at| {
        let branch = &line[at + PREFIX.len()..];
        branch.get(..8) == Some(&hex(seed))
            && branch.get(8..16) == Some(&hex(call))
            && branch.get(16) == Some(&(b'0' + transaction as u8))
            && branch.get(17).is_none_or(|next| b";\r\n, ".contains(next))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{scan, value};

    fn texts() -> Texts {
        let [local, target] = ["127.0.0.1:5070", "127.0.0.1:5060"].map(|text| text.parse().expect("address"));
        Texts::new(local, target, Transport::Udp, 7)
    }

    #[test]
    fn invite_is_whole_and_of_ordinary_size() {
        let (mut out, key) = ([0; 2048], CallKey { call: 0xabc, slot: 3 });
        let mut writer = Writer::new(&mut out);
        texts().invite.write(key, &mut writer);
        let len = writer.finish().expect("fits");
        assert!((700..=1100).contains(&len), "{len}");
        let found = scan(&out[..len]).expect("whole");
        assert_eq!((found.method(), found.body), (&b"INVITE"[..], SDP.as_bytes()));
        assert_eq!(decode_call_id(value(found.call_id), 7), Some(key));
        assert_eq!(decode_call_id(value(found.call_id), 8), None);
        assert!(is_our_via(found.via.as_slice()[0], 7, 0xabc, Transaction::Invite));
        assert!(!is_our_via(found.via.as_slice()[0], 7, 0xabc, Transaction::Bye));
        assert!(!out[..len].contains(&b'{'));
        let headers = out[..len].split(|&b| b == b'\n').take_while(|line| line.len() > 1).count() - 1;
        assert!((12..=15).contains(&headers), "{headers}");
    }

    #[test]
    fn bye_carries_target_routes_and_tag() {
        let (mut out, key) = ([0; 2048], CallKey { call: 1, slot: 2 });
        let len = texts()
            .bye
            .render(key, b"sip:b@127.0.0.1:7001", b"Route: <sip:p;lr>\r\n", b"<sip:x@y>;tag=z", &mut out)
            .expect("fits");
        let text = String::from_utf8_lossy(&out[..len]);
        assert!(text.starts_with("BYE sip:b@127.0.0.1:7001 SIP/2.0\r\nVia: "), "{text}");
        assert!(text.contains("\r\nRoute: <sip:p;lr>\r\nMax-Forwards: 70\r\n"), "{text}");
        assert!(text.contains("\r\nTo: <sip:x@y>;tag=z\r\n"), "{text}");
        assert!(text.ends_with("Content-Length: 0\r\n\r\n"), "{text}");
        assert!(texts().bye.render(key, b"", b"", b"", &mut out[..100]).is_none());
    }
}
