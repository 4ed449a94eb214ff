//! Answers made here: to requests that a decision refuses, and to what could not even be scanned.
//!
//! Stateless and silent where in doubt: no answer to an ACK, none to a response, none without a readable Via, never a
//! second time, and over UDP never more bytes than the request had; so a spoofed source gains nothing (RFC 3261 8.2.7,
//! 16.11). On a connection, whose source a handshake has proven, an answer may be as long as it is.

use std::net::SocketAddr;

use super::outbox::Outbox;
use super::{Received, State};
use crate::base::id::{FlowId, Transport};
use crate::base::span::Span;
use crate::metrics::Reason;
use crate::route::decide::is_forbidden;
use crate::route::snapshot::Snapshot;
use crate::route::verdict::Hop;
use crate::sip::name_addr::NameAddr;
use crate::sip::reply::{Reply, Status};
use crate::sip::scan::{HeaderName, Scan, StartLine};
use crate::sip::via::{Rport, Via};

impl State {
    /// Answers what is recognisably a request with the status that fits `reason`; drops everything else.
    pub(super) fn handle_malformed(
        &mut self,
        snapshot: &Snapshot,
        rx: &Received<'_>,
        scan: &Scan,
        reason: Reason,
        outbox: &mut Outbox,
    ) {
        let line = &rx.bytes[scan.message().start as usize..scan.start_line_end()];
        let is_response = line.len() >= 4 && line[..4].eq_ignore_ascii_case(b"SIP/");
        if is_response || line.starts_with(b"ACK ") || reason == Reason::KeepAlive {
            return self.counters.count_dropped(reason);
        }
        let status = match reason {
            Reason::Version => Status::VersionNotSupported,
            Reason::TooLarge => Status::MessageTooLarge,
            _ => Status::BadRequest,
        };
        self.answer(snapshot, rx, scan, (status, reason), outbox);
    }

    /// The response that the next hop would have given to a request of ours that never got there; its Vias, ours on top,
    /// are those of the request. `None` for an ACK and for a response.
    pub(super) fn answer_for_next_hop(
        &self,
        snapshot: &Snapshot,
        bytes: &[u8],
        scan: &Scan,
        status: Status,
        hop: &Hop,
    ) -> Option<Vec<u8>> {
        let StartLine::Request { method, .. } = scan.start_line()? else { return None };
        if method.of(bytes) == b"ACK" {
            return None;
        }
        let header = |name| scan.first(name).map_or(Span::default(), |h| h.value);
        let via = Via::decode(bytes, header(HeaderName::Via)).ok()?;
        let tag = |name| NameAddr::decode(bytes, header(name)).ok().and_then(|value| value.tag);
        let from_tag = tag(HeaderName::From).unwrap_or_default();
        let to_tag = snapshot.keys.local_tag(header(HeaderName::CallId).of(bytes), from_tag.of(bytes));
        let listener = snapshot.listener(hop.listener);
        let pool = &snapshot.pools[snapshot.services[listener.service].pool];
        let reply = Reply {
            status,
            source: listener.listen.address,
            via: &via,
            to_tag: &to_tag,
            has_to_tag: tag(HeaderName::To).is_some(),
            retry_after_s: (status == Status::ServiceUnavailable).then_some(pool.retry_after_s),
            lists_unsupported: false,
        };
        // A connection has failed: nothing here is in a hurry.
        let mut answer = vec![0; bytes.len() + 512];
        let len = reply.encode(bytes, scan, &mut answer).ok()?;
        answer.truncate(len);
        Some(answer)
    }

    //= rfc3261#section-8.2.7 stateless
    //# An answer is made once a request, never again, never for ACK, always alike.
    /// Writes an answer into the outbox, if one may be given.
    pub(super) fn answer(
        &mut self,
        snapshot: &Snapshot,
        rx: &Received<'_>,
        scan: &Scan,
        (status, reason): (Status, Reason),
        outbox: &mut Outbox,
    ) {
        let bytes = rx.bytes;
        let header = |name| scan.first(name).map_or(Span::default(), |h| h.value);
        let Ok(via) = Via::decode_any_version(bytes, header(HeaderName::Via)) else {
            return self.counters.count_dropped(reason);
        };
        let hop = answer_hop(&via, rx);
        if rx.flow.is_none() && is_forbidden(snapshot, hop.destination) {
            return self.counters.count_dropped(Reason::ForbiddenTarget);
        }
        let tag = |name| NameAddr::decode(bytes, header(name)).ok().and_then(|value| value.tag);
        let from_tag = tag(HeaderName::From).unwrap_or_default();
        let to_tag = snapshot.keys.local_tag(header(HeaderName::CallId).of(bytes), from_tag.of(bytes));
        let listener = snapshot.listener(rx.listener);
        let pool = &snapshot.pools[snapshot.services[listener.service].pool];
        // What will be better in a while, not what the request asks in vain.
        let is_passing = matches!(reason, Reason::EmptyPool | Reason::HandOverFull);
        let reply = Reply {
            status,
            source: rx.source,
            via: &via,
            to_tag: &to_tag,
            has_to_tag: tag(HeaderName::To).is_some(),
            retry_after_s: is_passing.then_some(pool.retry_after_s),
            lists_unsupported: status == Status::BadExtension,
        };
        let buffer = outbox.buffer();
        let room = if rx.flow.is_some() { buffer.len() } else { buffer.len().min(bytes.len()) };
        match reply.encode(bytes, scan, &mut buffer[..room]) {
            Ok(len) => {
                outbox.commit(len, hop);
                self.counters.count_answered(reason);
            }
            Err(_) => self.counters.count_dropped(Reason::AnswerTooLarge),
        }
    }
}

//= rfc3261#section-18.2.2 answer-address
//# An answer made here goes to the source, to the port of sent-by, or with rport where it came from.
/// On the connection that the request came on and nowhere else; over UDP as RFC 3261 18.2.2 and RFC 3581 4 say, where
/// the address is always the one seen: `maddr` is not followed.
fn answer_hop(via: &Via, rx: &Received<'_>) -> Hop {
    let port = match via.rport {
        Rport::Absent if rx.flow.is_none() => via.port_or_default(),
        _ => rx.source.port(),
    };
    let destination = SocketAddr::new(rx.source.ip(), port);
    let transport = rx.flow.map_or(Transport::Udp, FlowId::transport);
    let may_connect = rx.flow.is_none();
    Hop { listener: rx.listener, transport, destination, flow: rx.flow, client: None, may_connect }
}
