//! Responses: back along the Via path (RFC 3261 16.7, 16.11, 18.1.2).
//!
//! The topmost Via must be ours and its branch must carry our signature for the Via below, the Call-ID and the
//! CSeq: then the request was forwarded here, and the response goes where that request came from. Everything else is
//! dropped before a table is looked at.

use std::net::SocketAddr;

use super::identity::{Crossing, plan_identity};
use super::outbox::Outbox;
use super::request::{may_travel, plan_content_length};
use super::{Message, State, transaction_hash};
use crate::base::id::FlowId;
use crate::base::span::Span;
use crate::base::time::Instant;
use crate::metrics::Reason;
use crate::route::bindings::Lasting;
use crate::route::cookie::BranchInput;
use crate::route::decide::is_forbidden;
use crate::route::key::CallKey;
use crate::route::snapshot::Snapshot;
use crate::route::verdict::Hop;
use crate::sip::cseq::CSeq;
use crate::sip::method::Method;
use crate::sip::scan::{HeaderName, Scan};
use crate::sip::via::{Rport, Via};

/// A response that may be relayed.
struct Relayed {
    /// What goes: our Via value or its whole line.
    own_via: Span,
    hop: Hop,
    method: Method,
    /// Hash of the transaction it belongs to.
    transaction: u32,
}

impl State {
    //= rfc3261#section-16.11 every-response
    //# Every response goes on at once and as often as it comes: 100, 2xx and 503 too.
    pub(super) fn handle_response(&mut self, message: &Message<'_>, status: u16, outbox: &mut Outbox) {
        let Message { now, snapshot, rx, scan, key } = *message;
        let relayed = match read_response(snapshot, rx.bytes, scan) {
            Ok(relayed) => relayed,
            Err(reason) => return self.counters.count_dropped(reason),
        };
        if !may_travel(rx, scan, relayed.hop.transport) {
            return self.counters.count_dropped(Reason::HeaderLine);
        }
        self.edit.clear();
        //= rfc3261#section-16.11 response
        //# Our Via goes, and the response to where the next one says; nothing else of it changes.
        //= rfc3261#section-16.7 to-tag
        //# The To tag of a response is neither changed nor added.
        //= rfc3608#section-6.2 service-route
        //# Service-Route passes untouched and in its order.
        self.edit.remove(relayed.own_via);
        let hop = &relayed.hop;
        if hop.transport.is_stream() {
            plan_content_length(&mut self.edit, scan);
        }
        let is_from_inside = snapshot.backend_by_address(rx.source).is_some();
        let crossing = Crossing { snapshot, from: (rx.listener, is_from_inside), to: (hop.listener, hop.destination) };
        if let Err(reason) = plan_identity(&mut self.edit, rx.bytes, scan, &crossing) {
            return self.counters.count_dropped(reason);
        }
        match self.edit.apply(rx.bytes, scan.message(), outbox.buffer()) {
            Ok(len) => {
                //= rfc3261#section-16.9 response-error
                //# A response that cannot be delivered is lost, and nothing is cancelled for it.
                outbox.commit(len, relayed.hop);
                self.counters.responses_forwarded += 1;
                self.learn_from_response(now, key, &relayed, status);
            }
            Err(_) => self.counters.count_dropped(Reason::EditFailed),
        }
    }

    /// How long the binding must last now.
    fn learn_from_response(&mut self, now: Instant, key: CallKey, relayed: &Relayed, status: u16) {
        let Some(binding) = self.bindings.get(key.0) else { return };
        let lasting = match (relayed.method, status, binding.lasting) {
            (Method::Invite | Method::Subscribe, 200..=299, _) => Lasting::Dialog,
            // A challenge that is repeated while the next INVITE rings ends nothing.
            (Method::Invite, 300.., Lasting::Early) if binding.transaction == relayed.transaction => Lasting::Linger,
            (Method::Bye, 200.., _) => Lasting::Linger,
            (_, _, lasting) => lasting,
        };
        self.bindings.refresh(now, binding, lasting);
    }
}

fn read_response(snapshot: &Snapshot, bytes: &[u8], scan: &Scan) -> Result<Relayed, Reason> {
    let mut lines = scan.all(HeaderName::Via);
    let top_line = lines.next().ok_or(Reason::MissingHeader)?;
    let top = Via::decode(bytes, top_line.value).map_err(|_| Reason::MalformedVia)?;
    if !is_our_via(snapshot, bytes, &top) {
        return Err(Reason::ForeignVia);
    }
    let branch = top.branch.ok_or(Reason::BadBranch)?;
    let (own_via, next) = match top.next {
        Some(next) => (Span { start: top.value.start, end: next }, Span { start: next, end: top_line.value.end }),
        //= rfc3261#section-16.7 no-via-left
        //# A response without a Via below ours is not forwarded.
        None => (top_line.line, lines.next().ok_or(Reason::NoMoreVia)?.value),
    };
    let next = Via::decode(bytes, next).map_err(|_| Reason::UnusableVia)?;
    let destination = response_address(bytes, &next).ok_or(Reason::UnusableVia)?;
    let header = |name| scan.first(name).map(|h| h.value).ok_or(Reason::MissingHeader);
    let cseq = CSeq::decode(bytes, header(HeaderName::CSeq)?).map_err(|_| Reason::MalformedCSeq)?;
    let input = BranchInput {
        branch: next.branch.map_or(&[], |b| b.of(bytes)),
        host: next.host.of(bytes),
        port: next.port_or_default(),
        address: destination.ip(),
        call_id: header(HeaderName::CallId)?.of(bytes),
        cseq: cseq.number,
    };
    //= rfc6026#section-7.3 stray
    //# A response to no request of ours goes nowhere; a late one needs no transaction.
    let ingress = snapshot.keys.decode_branch(branch.of(bytes), &input).ok_or(Reason::BadBranch)?;
    //= rfc3581#section-4 same-address
    //# A response leaves from the address and port that the request came to.
    let ingress = snapshot.listener_by_id(ingress).ok_or(Reason::NoListener)?;
    let flow = top.flow.and_then(|text| snapshot.keys.decode_flow(branch.of(bytes), text.of(bytes)));
    let is_family_right = snapshot.listener(ingress).listen.address.is_ipv6() == destination.is_ipv6();
    if !is_family_right || is_forbidden(snapshot, destination) {
        return Err(Reason::UnusableVia);
    }
    let method = Method::decode(cseq.method.of(bytes));
    let transport = flow.map_or(snapshot.listener(ingress).listen.transport, FlowId::transport);
    if transport.is_stream() && flow.is_none() {
        return Err(Reason::BadBranch);
    }
    // The address was proven by the request's MAC; a browser cannot be called back (RFC 7118 5.2).
    let destination = if flow.is_some() { connect_address(bytes, &next, destination) } else { destination };
    let may_connect = !transport.is_web_socket();
    let hop = Hop { listener: ingress, transport, destination, flow, client: None, may_connect };
    Ok(Relayed { own_via, hop, method, transaction: transaction_hash(branch.of(bytes), cseq.number) })
}

//= rfc3261#section-16.11 foreign-via
//# A response whose topmost Via is not ours is silently discarded.
/// RFC 3261 18.1.2: sent-by must be what we would write.
fn is_our_via(snapshot: &Snapshot, bytes: &[u8], via: &Via) -> bool {
    via.ip(bytes).is_some_and(|ip| {
        let address = SocketAddr::new(ip, via.port_or_default());
        snapshot.listeners.iter().any(|l| l.listen.address == address)
    })
}

//= rfc3261#section-18.2.2 same-connection
//# A response goes back on the connection of its request, and to received and the port of sent-by when that is gone.
/// Where a connection is opened when the one that the request came on is gone: to the port of sent-by, where the client
/// listens, not to the one it came from (RFC 3261 18.2.2).
fn connect_address(bytes: &[u8], via: &Via, seen: SocketAddr) -> SocketAddr {
    SocketAddr::new(seen.ip(), via.port_of_transport(bytes))
}

//= rfc3261#section-18.2.2 response-address
//# A response goes to received, else sent-by, and to the port of sent-by, else 5060.
//= rfc3261#section-18.2.2 maddr
//# maddr is not followed, against the rule: it would aim responses at anybody.
/// RFC 3261 18.2.2 and RFC 3581 4, without `maddr`.
fn response_address(bytes: &[u8], via: &Via) -> Option<SocketAddr> {
    let ip = if via.received.is_some() { via.received_ip(bytes)? } else { via.ip(bytes)? };
    let port = match via.rport {
        Rport::Filled(port, _) => port,
        Rport::Absent | Rport::Asked(_) => via.port_or_default(),
    };
    Some(SocketAddr::new(ip, port))
}
