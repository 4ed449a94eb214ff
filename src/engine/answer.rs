//! Answers made here: to requests that a decision refuses, and to what could not even be scanned.
//!
//! Stateless and silent where in doubt: no answer to an ACK, none to a response, none without a readable Via, never
//! more bytes than the request had, never a second time; so a spoofed source gains nothing (RFC 3261 8.2.7, 16.11).

use std::net::SocketAddr;

use super::outbox::Outbox;
use super::{Received, State};
use crate::base::span::Span;
use crate::metrics::Reason;
use crate::route::decide::is_forbidden;
use crate::route::snapshot::Snapshot;
use crate::sip::name_addr::NameAddr;
use crate::sip::reply::{Reply, Status};
use crate::sip::scan::{HeaderName, Scan};
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
        let destination = answer_address(&via, rx.source);
        if is_forbidden(snapshot, destination) {
            return self.counters.count_dropped(Reason::ForbiddenTarget);
        }
        let tag = |name| NameAddr::decode(bytes, header(name)).ok().and_then(|value| value.tag);
        let from_tag = tag(HeaderName::From).unwrap_or_default();
        let to_tag = snapshot.keys.local_tag(header(HeaderName::CallId).of(bytes), from_tag.of(bytes));
        let listener = snapshot.listener(rx.listener);
        let pool = &snapshot.pools[snapshot.services[listener.service].pool];
        let reply = Reply {
            status,
            source: rx.source,
            via: &via,
            to_tag: &to_tag,
            has_to_tag: tag(HeaderName::To).is_some(),
            retry_after_s: (reason == Reason::EmptyPool).then_some(pool.retry_after_s),
            lists_unsupported: status == Status::BadExtension,
        };
        let buffer = outbox.buffer();
        let room = buffer.len().min(bytes.len());
        match reply.encode(bytes, scan, &mut buffer[..room]) {
            Ok(len) => {
                outbox.commit(len, rx.listener, destination);
                self.counters.count_answered(reason);
            }
            Err(_) => self.counters.count_dropped(Reason::AnswerTooLarge),
        }
    }
}

//= rfc3261#section-18.2.2 answer-address
//# An answer made here goes to the source, to the port of sent-by, or with rport where it came from.
/// RFC 3261 18.2.2 and RFC 3581 4; the address is always the one seen, `maddr` is not followed.
fn answer_address(via: &Via, source: SocketAddr) -> SocketAddr {
    let port = match via.rport {
        Rport::Absent => via.port_or_default(),
        Rport::Asked(_) | Rport::Filled(..) => source.port(),
    };
    SocketAddr::new(source.ip(), port)
}
