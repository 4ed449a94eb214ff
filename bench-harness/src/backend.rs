//! The answering side: a SIP server that takes every call at once, as a user agent server does.
//!
//! Read RFC 3261 sections 8.2.6 and 12.1.1 first. Answers copy Via, From, Call-ID and CSeq line by line, add a tag to
//! To and copy Record-Route, so that the proxy under test gets the bytes that real servers send. They go to where the
//! request came from. An INVITE is answered 100, 180 and 200 with SDP; BYE, REGISTER and OPTIONS with 200.
//! Requests whose Call-ID is not of this run are health probes: answered, and kept out of the counts.

use std::net::{SocketAddr, UdpSocket};

use crate::ledger::Ledger;
use crate::message::{Scan, Writer, has_tag, hex, scan, value};
use crate::sys::{Outbox, Peer};
use crate::template::{CallKey, SDP, decode_call_id};

/// One backend socket and its texts.
pub struct Backend {
    /// The socket.
    pub socket: UdpSocket,
    /// What waits to be sent on it.
    pub answers: Answers,
    ringing: String,
    accepted: String,
    able: String,
}

/// The answers that wait to be sent.
pub struct Answers {
    /// The batch.
    pub outbox: Outbox,
    /// Number of the backend in the run.
    index: usize,
}

const EMPTY: &str = "Content-Length: 0\r\n\r\n";

impl Backend {
    /// Backend number `index` of the run, on `socket`, bound to `local`.
    pub fn new(socket: UdpSocket, outbox: Outbox, index: usize, local: SocketAddr) -> Backend {
        let contact = format!("Contact: <sip:bob@{local};transport=udp>\r\n");
        let ability = "Allow: INVITE, ACK, CANCEL, BYE, OPTIONS, UPDATE\r\nSupported: replaces, timer\r\n\
            Server: sipbench\r\n";
        Backend {
            socket,
            answers: Answers { outbox, index },
            ringing: format!("{contact}Server: sipbench\r\n{EMPTY}"),
            accepted: format!(
                "{contact}{ability}Content-Type: application/sdp\r\nContent-Length: {}\r\n\r\n{SDP}",
                SDP.len()
            ),
            able: format!("{ability}Accept: application/sdp\r\n{EMPTY}"),
        }
    }

    /// Handles one datagram that arrived on this socket from `from`.
    pub fn receive(&mut self, ledger: &mut Ledger, message: &[u8], from: &Peer) {
        let request = scan(message).filter(|found| found.status().is_none());
        let Some(request) = request else {
            ledger.counters.received += 1;
            ledger.counters.unexpected += 1;
            return;
        };
        let Some(key) = decode_call_id(value(request.call_id), ledger.seed) else {
            return self.receive_foreign(ledger, &request, from);
        };
        ledger.counters.received += 1;
        match request.method() {
            b"INVITE" => self.take_call(ledger, key, &request, from),
            b"ACK" => self.take_ack(ledger, key),
            b"BYE" => {
                ledger.counters.late += u64::from(ledger.live(key).is_none());
                ledger.note_backend(key, self.answers.index);
                self.answers.answer(ledger, &request, "SIP/2.0 200 OK\r\n", key, EMPTY, from);
            }
            b"REGISTER" => {
                ledger.note_backend(key, self.answers.index);
                self.answers.answer(ledger, &request, "SIP/2.0 200 OK\r\n", key, EMPTY, from);
            }
            b"OPTIONS" => {
                ledger.note_backend(key, self.answers.index);
                self.answers.answer(ledger, &request, "SIP/2.0 200 OK\r\n", key, &self.able, from);
            }
            _ => ledger.counters.unexpected += 1,
        }
    }

    fn take_call(&mut self, ledger: &mut Ledger, key: CallKey, request: &Scan<'_>, from: &Peer) {
        let Some(slot) = ledger.live(key) else {
            ledger.counters.late += 1;
            return;
        };
        let is_first = slot.backend == crate::ledger::NO_BACKEND;
        ledger.counters.duplicates += u64::from(!is_first);
        ledger.counters.damaged += u64::from(request.body != SDP.as_bytes());
        ledger.note_backend(key, self.answers.index);
        self.answers.answer(ledger, request, "SIP/2.0 100 Trying\r\n", key, EMPTY, from);
        self.answers.answer(ledger, request, "SIP/2.0 180 Ringing\r\n", key, &self.ringing, from);
        self.answers.answer(ledger, request, "SIP/2.0 200 OK\r\n", key, &self.accepted, from);
    }

    fn take_ack(&mut self, ledger: &mut Ledger, key: CallKey) {
        match ledger.live(key) {
            Some(slot) => {
                let is_again = std::mem::replace(&mut slot.is_acked, true);
                ledger.counters.duplicates += u64::from(is_again);
                ledger.note_backend(key, self.answers.index);
            }
            None => ledger.counters.late += 1,
        }
    }

    fn receive_foreign(&mut self, ledger: &mut Ledger, request: &Scan<'_>, from: &Peer) {
        if request.method() == b"OPTIONS" {
            ledger.counters.probes += 1;
            let key = CallKey { call: 0, slot: 0 };
            self.answers.answer(ledger, request, "SIP/2.0 200 OK\r\n", key, &self.able, from);
        } else {
            ledger.counters.received += 1;
            ledger.counters.unexpected += 1;
        }
    }
}

impl Answers {
    /// Queues one answer: `status` line, what must be copied from the request, then `rest`.
    fn answer(&mut self, l: &mut Ledger, request: &Scan<'_>, status: &str, key: CallKey, rest: &str, to: &Peer) {
        let index = self.index;
        let is_queued = self.outbox.push(to, |buffer| {
            let mut writer = Writer::new(buffer);
            writer.put(status.as_bytes());
            for via in request.via.as_slice() {
                writer.put(via);
            }
            for route in request.record_route.as_slice() {
                writer.put(route);
            }
            writer.put(request.from).put(request.to.trim_ascii_end());
            if !has_tag(request.to) && !status.starts_with("SIP/2.0 100") {
                writer.put(b";tag=b").put(&[b'0' + (index % 10) as u8]).put(&hex(key.call));
            }
            writer.put(b"\r\n").put(request.call_id).put(request.cseq);
            if request.method() == b"REGISTER" {
                writer.put(request.contact.trim_ascii_end()).put(b";expires=300\r\n");
            }
            writer.put(rest.as_bytes());
            writer.finish()
        });
        l.counters.unsent += u64::from(!is_queued);
    }
}
