//! The answering side: a SIP server that takes every call at once, as a user agent server does.
//!
//! Read RFC 3261 sections 8.2.6 and 12.1.1 first. Answers copy Via, From, Call-ID and CSeq line by line, add a tag to
//! To and copy Record-Route, so that the proxy under test gets the bytes that real servers send. They go to where the
//! request came from, over what it came on. An INVITE is answered 100, 180 and 200 with SDP; BYE, REGISTER and OPTIONS with 200.
//! Requests whose Call-ID is not of this run are health probes: answered, and kept out of the counts.

use std::net::SocketAddr;

use crate::ledger::Ledger;
use crate::message::{Scan, Writer, has_tag, hex, scan, value};
use crate::network::Outlet;
use crate::template::{CallKey, SDP, decode_call_id};
use crate::transport::Transport;

/// One backend: what it answers, without what carries it.
pub struct Backend {
    /// Number of the backend in the run.
    index: usize,
    ringing: String,
    accepted: String,
    able: String,
}

const EMPTY: &str = "Content-Length: 0\r\n\r\n";

impl Backend {
    /// Backend number `index` of the run, at `local`.
    pub fn new(index: usize, local: SocketAddr, transport: Transport) -> Backend {
        let contact = format!("Contact: <sip:bob@{local};transport={transport}>\r\n");
        let ability = "Allow: INVITE, ACK, CANCEL, BYE, OPTIONS, UPDATE\r\nSupported: replaces, timer\r\n\
            Server: sipbench\r\n";
        Backend {
            index,
            ringing: format!("{contact}Server: sipbench\r\n{EMPTY}"),
            accepted: format!(
                "{contact}{ability}Content-Type: application/sdp\r\nContent-Length: {}\r\n\r\n{SDP}",
                SDP.len()
            ),
            able: format!("{ability}Accept: application/sdp\r\n{EMPTY}"),
        }
    }

    /// Handles one message that arrived for this backend.
    pub fn receive(&self, ledger: &mut Ledger, message: &[u8], out: &mut Outlet<'_>) {
        let request = scan(message).filter(|found| found.status().is_none());
        let Some(request) = request else {
            ledger.counters.received += 1;
            ledger.counters.unexpected += 1;
            return;
        };
        let Some(key) = decode_call_id(value(request.call_id), ledger.seed) else {
            return self.receive_foreign(ledger, &request, out);
        };
        ledger.counters.received += 1;
        match request.method() {
            b"INVITE" => self.take_call(ledger, key, &request, out),
            b"ACK" => self.take_ack(ledger, key),
            b"BYE" => {
                ledger.counters.late += u64::from(ledger.live(key).is_none());
                ledger.note_backend(key, self.index);
                self.answer(ledger, &request, "SIP/2.0 200 OK\r\n", key, EMPTY, out);
            }
            b"REGISTER" => {
                ledger.note_backend(key, self.index);
                self.answer(ledger, &request, "SIP/2.0 200 OK\r\n", key, EMPTY, out);
            }
            b"OPTIONS" => {
                ledger.note_backend(key, self.index);
                self.answer(ledger, &request, "SIP/2.0 200 OK\r\n", key, &self.able, out);
            }
            _ => ledger.counters.unexpected += 1,
        }
    }

    fn take_call(&self, ledger: &mut Ledger, key: CallKey, request: &Scan<'_>, out: &mut Outlet<'_>) {
        let Some(slot) = ledger.live(key) else {
            ledger.counters.late += 1;
            return;
        };
        let is_first = slot.backend == crate::ledger::NO_BACKEND;
        ledger.counters.duplicates += u64::from(!is_first);
        ledger.counters.damaged += u64::from(request.body != SDP.as_bytes());
        ledger.note_backend(key, self.index);
        self.answer(ledger, request, "SIP/2.0 100 Trying\r\n", key, EMPTY, out);
        self.answer(ledger, request, "SIP/2.0 180 Ringing\r\n", key, &self.ringing, out);
        self.answer(ledger, request, "SIP/2.0 200 OK\r\n", key, &self.accepted, out);
    }

    fn take_ack(&self, ledger: &mut Ledger, key: CallKey) {
        match ledger.live(key) {
            Some(slot) => {
                let is_again = std::mem::replace(&mut slot.is_acked, true);
                ledger.counters.duplicates += u64::from(is_again);
                ledger.note_backend(key, self.index);
            }
            None => ledger.counters.late += 1,
        }
    }

    fn receive_foreign(&self, ledger: &mut Ledger, request: &Scan<'_>, out: &mut Outlet<'_>) {
        if request.method() == b"OPTIONS" {
            ledger.counters.probes += 1;
            let key = CallKey { call: 0, slot: 0 };
            self.answer(ledger, request, "SIP/2.0 200 OK\r\n", key, &self.able, out);
        } else {
            ledger.counters.received += 1;
            ledger.counters.unexpected += 1;
        }
    }

    /// Queues one answer: `status` line, what must be copied from the request, then `rest`.
    fn answer(&self, l: &mut Ledger, request: &Scan<'_>, status: &str, key: CallKey, rest: &str, out: &mut Outlet<'_>) {
        let index = self.index;
        let is_queued = out.push(|buffer| {
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
