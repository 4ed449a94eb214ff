//! What a demo backend answers: a minimal but correct user agent server (RFC 3261 8.2, 12.1.1, 13.3.1, 15.1.2).
//!
//! INVITE is answered with 180 and 200 at once, the 200 is sent again until the ACK comes (13.3.1.4), BYE ends the
//! dialog, OPTIONS gets 200, a dialog nobody knows 481, any other method 405. Since INVITE never stays pending, CANCEL
//! always comes too late and gets 200 without effect (9.2).
//!
//! Pure: datagrams and time come in, datagrams go out. One dialog per Call-ID, which is also how a retransmitted
//! INVITE is told from a new call. A dialog is forgotten 64*T1 after its last message, and no more than
//! [`DIALOGS_MAX`] are kept; past that, new calls get 503.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fmt::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::message::{Message, elements, tag};
use super::{T1, T2};
use crate::base::id::stable_hash;

/// Dialogs that one demo backend remembers.
const DIALOGS_MAX: usize = 262_144;

/// How long a silent dialog is remembered: 64*T1.
const FORGET_AFTER: Duration = Duration::from_secs(32);

const ALLOW: &str = "Allow: INVITE, ACK, BYE, CANCEL, OPTIONS\r\n";

/// A datagram to send and where to.
pub(super) type Outgoing = (Vec<u8>, SocketAddr);

/// The user agent server of one backend.
pub(super) struct Uas {
    local: SocketAddr,
    dialogs: HashMap<String, Dialog>,
    /// When to look at which dialog; an entry whose time is not the dialog's `wake` is stale and skipped.
    wakes: BinaryHeap<Reverse<(Instant, String)>>,
}

struct Dialog {
    /// The 200 to the INVITE, for sending again.
    answer: Vec<u8>,
    answer_to: SocketAddr,
    /// The time between this 200 and the next one; `None` once the ACK or a BYE came.
    resend_after: Option<Duration>,
    forget_at: Instant,
    wake: Instant,
}

impl Uas {
    /// A server without dialogs that names `local` as its contact.
    pub(super) fn new(local: SocketAddr) -> Uas {
        Uas { local, dialogs: HashMap::new(), wakes: BinaryHeap::new() }
    }

    /// Takes one datagram and appends the answers to `out`; true when it began a new call.
    pub(super) fn handle(&mut self, now: Instant, bytes: &[u8], source: SocketAddr, out: &mut Vec<Outgoing>) -> bool {
        let Some(request) = Message::parse(bytes).and_then(|message| Request::read(message, source)) else {
            return false;
        };
        match request.method {
            "INVITE" => return self.handle_invite(now, &request, out),
            "ACK" => {
                self.touch(now, request.call_id);
            }
            "BYE" if self.touch(now, request.call_id) => out.push(request.answer("200 OK", "")),
            "CANCEL" if self.dialogs.contains_key(request.call_id) => out.push(request.answer("200 OK", "")),
            "BYE" | "CANCEL" => out.push(request.answer("481 Call/Transaction Does Not Exist", "")),
            "OPTIONS" => out.push(request.answer("200 OK", ALLOW)),
            _ => out.push(request.answer("405 Method Not Allowed", ALLOW)),
        }
        false
    }

    /// Sends the 200s that are due again and forgets the dialogs that are over.
    pub(super) fn handle_timeout(&mut self, now: Instant, out: &mut Vec<Outgoing>) {
        while let Some(Reverse((at, _))) = self.wakes.peek()
            && *at <= now
        {
            let Some(Reverse((at, call_id))) = self.wakes.pop() else { return };
            let Some(dialog) = self.dialogs.get_mut(&call_id).filter(|dialog| dialog.wake == at) else { continue };
            if now >= dialog.forget_at {
                self.dialogs.remove(&call_id);
                continue;
            }
            if let Some(interval) = dialog.resend_after {
                out.push((dialog.answer.clone(), dialog.answer_to));
                dialog.resend_after = Some((interval * 2).min(T2));
                dialog.wake = (now + (interval * 2).min(T2)).min(dialog.forget_at);
            } else {
                dialog.wake = dialog.forget_at;
            }
            self.wakes.push(Reverse((dialog.wake, call_id)));
        }
    }

    fn handle_invite(&mut self, now: Instant, request: &Request, out: &mut Vec<Outgoing>) -> bool {
        let is_first = request.to_tag.is_none();
        match self.dialogs.get(request.call_id) {
            Some(dialog) if is_first => out.push((dialog.answer.clone(), dialog.answer_to)),
            Some(_) => out.push(request.accept("200 OK", self.local, true)),
            None if !is_first => out.push(request.answer("481 Call/Transaction Does Not Exist", "")),
            None if self.dialogs.len() >= DIALOGS_MAX => out.push(request.answer("503 Service Unavailable", "")),
            None => {
                out.push(request.accept("180 Ringing", self.local, false));
                let answer = request.accept("200 OK", self.local, true);
                out.push(answer.clone());
                let dialog = Dialog {
                    answer: answer.0,
                    answer_to: answer.1,
                    resend_after: Some(T1),
                    forget_at: now + FORGET_AFTER,
                    wake: now + T1,
                };
                self.wakes.push(Reverse((dialog.wake, request.call_id.to_owned())));
                self.dialogs.insert(request.call_id.to_owned(), dialog);
                return true;
            }
        }
        false
    }

    /// Notes an ACK or BYE: the answer arrived, stop repeating it. False when there is no such dialog.
    ///
    /// The pending wake stays as it is; when it fires it finds nothing to send and moves to `forget_at`.
    fn touch(&mut self, now: Instant, call_id: &str) -> bool {
        let Some(dialog) = self.dialogs.get_mut(call_id) else { return false };
        dialog.resend_after = None;
        dialog.forget_at = now + FORGET_AFTER;
        true
    }
}

/// A request with everything that an answer copies (RFC 3261 8.2.6.2).
struct Request<'a> {
    message: Message<'a>,
    method: &'a str,
    from: &'a str,
    to: &'a str,
    to_tag: Option<&'a str>,
    call_id: &'a str,
    cseq: &'a str,
    source: SocketAddr,
}

impl<'a> Request<'a> {
    fn read(message: Message<'a>, source: SocketAddr) -> Option<Request<'a>> {
        let method = message.method()?;
        message.header("Via")?;
        let to = message.header("To")?;
        Some(Request {
            method,
            from: message.header("From")?,
            to,
            to_tag: tag(to),
            call_id: message.header("Call-ID")?,
            cseq: message.header("CSeq")?,
            source,
            message,
        })
    }

    /// An answer without a body; `more` is whole header lines.
    fn answer(&self, status: &str, more: &str) -> Outgoing {
        self.encode(status, more, "")
    }

    /// An answer that makes or keeps a dialog: Record-Route is copied, the contact is ours (12.1.1).
    fn accept(&self, status: &str, local: SocketAddr, with_sdp: bool) -> Outgoing {
        let mut more = String::new();
        for route in self.message.headers("Record-Route") {
            let _ = write!(more, "Record-Route: {route}\r\n");
        }
        let _ = write!(more, "Contact: <sip:demo@{local}>\r\n{ALLOW}");
        if !with_sdp {
            return self.encode(status, &more, "");
        }
        more.push_str("Content-Type: application/sdp\r\n");
        self.encode(status, &more, &super::sdp(local))
    }

    fn encode(&self, status: &str, more: &str, body: &str) -> Outgoing {
        let mut text = format!("SIP/2.0 {status}\r\n");
        let mut to_address = self.source;
        for (index, via) in self.message.headers("Via").enumerate() {
            if index == 0 {
                let (via, port) = receive_via(via, self.source);
                to_address.set_port(port);
                let _ = write!(text, "Via: {via}\r\n");
            } else {
                let _ = write!(text, "Via: {via}\r\n");
            }
        }
        let _ = write!(text, "From: {}\r\nTo: {}", self.from, self.to);
        if self.to_tag.is_none() {
            let _ = write!(text, ";tag={:016x}", stable_hash(b"demo tag", self.call_id.as_bytes()));
        }
        let _ = write!(text, "\r\nCall-ID: {}\r\nCSeq: {}\r\n{more}", self.call_id, self.cseq);
        let _ = write!(text, "Content-Length: {}\r\n\r\n{body}", body.len());
        (text.into_bytes(), to_address)
    }
}

/// Fills in `received` and `rport` where the top Via asks for it, and tells the port that the answer goes to
/// (RFC 3261 18.2.2, RFC 3581 section 4).
fn receive_via(line: &str, source: SocketAddr) -> (String, u16) {
    let top = elements(line).first().copied().unwrap_or(line);
    let asks_rport = top.split(';').any(|param| param.trim().eq_ignore_ascii_case("rport"));
    if asks_rport {
        let filled = format!("rport={};received={}", source.port(), source.ip());
        let params: Vec<&str> = top
            .split(';')
            .map(|param| if param.trim().eq_ignore_ascii_case("rport") { filled.as_str() } else { param })
            .collect();
        return (line.replacen(top, &params.join(";"), 1), source.port());
    }
    let sent_by = top.split(';').next().and_then(|sent| sent.split_whitespace().nth(1)).unwrap_or("");
    let port = match sent_by.rsplit_once(':') {
        Some((_, port)) if !port.ends_with(']') => port.parse().unwrap_or(source.port()),
        _ => 5060,
    };
    (line.to_owned(), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses() -> (SocketAddr, SocketAddr) {
        ("127.0.0.1:5070".parse().unwrap(), "127.0.0.1:6000".parse().unwrap())
    }

    fn request(method: &str, to_tag: &str) -> Vec<u8> {
        format!(
            "{method} sip:demo@127.0.0.1:5070 SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:5080;rport;branch=z9hG4bKa\r\n\
             Via: SIP/2.0/UDP 127.0.0.1:7000;branch=z9hG4bKb\r\nRecord-Route: <sip:127.0.0.1:5080;lr>\r\n\
             From: <sip:a@b>;tag=1\r\nTo: <sip:demo@b>{to_tag}\r\nCall-ID: c\r\nCSeq: 1 {method}\r\n\r\n"
        )
        .into_bytes()
    }

    fn statuses(out: &[Outgoing]) -> Vec<u16> {
        out.iter().map(|(bytes, _)| Message::parse(bytes).unwrap().status().unwrap()).collect()
    }

    #[test]
    fn invite_is_counted_once_and_answered_until_the_ack() {
        let ((local, source), start) = (addresses(), Instant::now());
        let (mut uas, mut out) = (Uas::new(local), Vec::new());
        assert!(uas.handle(start, &request("INVITE", ""), source, &mut out));
        assert_eq!(statuses(&out), [180, 200]);
        let answer = Message::parse(&out[1].0).unwrap();
        assert_eq!(answer.headers("Via").count(), 2);
        assert!(answer.header("Via").unwrap().contains("rport=6000;received=127.0.0.1"));
        assert_eq!(answer.header("Record-Route"), Some("<sip:127.0.0.1:5080;lr>"));
        assert!(tag(answer.header("To").unwrap()).is_some());
        assert_eq!(out[1].1, source);

        out.clear();
        assert!(!uas.handle(start, &request("INVITE", ""), source, &mut out), "a retransmission is no new call");
        assert_eq!(statuses(&out), [200]);

        out.clear();
        for ms in [499, 500, 1_499, 1_500] {
            uas.handle_timeout(start + Duration::from_millis(ms), &mut out);
        }
        assert_eq!(statuses(&out), [200, 200]);

        out.clear();
        uas.handle(start + Duration::from_secs(2), &request("ACK", ";tag=x"), source, &mut out);
        uas.handle_timeout(start + Duration::from_secs(30), &mut out);
        assert!(out.is_empty());
        uas.handle_timeout(start + Duration::from_secs(60), &mut out);
        assert!(uas.dialogs.is_empty());
    }

    #[test]
    fn each_method_has_its_answer() {
        let ((local, source), now) = (addresses(), Instant::now());
        let (mut uas, mut out) = (Uas::new(local), Vec::new());
        for method in ["BYE", "CANCEL", "OPTIONS", "PUBLISH", "ACK"] {
            uas.handle(now, &request(method, ";tag=x"), source, &mut out);
        }
        uas.handle(now, &request("INVITE", ";tag=x"), source, &mut out);
        assert_eq!(statuses(&out), [481, 481, 200, 405, 481]);
        out.clear();
        uas.handle(now, &request("INVITE", ""), source, &mut out);
        for _ in 0..2 {
            uas.handle(now, &request("BYE", ";tag=x"), source, &mut out);
        }
        assert_eq!(statuses(&out), [180, 200, 200, 200]);
    }

    #[test]
    fn answer_goes_to_the_sent_by_port_without_rport() {
        let source = "127.0.0.1:6000".parse().unwrap();
        assert_eq!(receive_via("SIP/2.0/UDP 127.0.0.1:5080;branch=x", source).1, 5080);
        assert_eq!(receive_via("SIP/2.0/UDP [::1];branch=x", source).1, 5060);
        assert_eq!(receive_via("SIP/2.0/UDP", source).1, 5060);
    }

    #[test]
    fn garbage_is_ignored() {
        let ((local, source), now) = (addresses(), Instant::now());
        let (mut uas, mut out) = (Uas::new(local), Vec::new());
        let good = request("INVITE", "");
        for end in 0..good.len() {
            uas.handle(now, &good[..end], source, &mut out);
        }
        uas.handle(now, &[0; 64], source, &mut out);
        assert!(out.is_empty());
    }
}
