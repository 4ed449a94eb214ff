//! Carries out the verdict on a request: the edits of RFC 3261 16.6, and what the binding table learns of it.
//!
//! The original bytes pass but for what a proxy must change: one Via more, `received` and `rport` in the one below,
//! Max-Forwards less one, our Route values gone, a Record-Route with the dialog's token. A verdict that cannot be
//! carried out, since the result would not fit a datagram, becomes an answer. Cost: one plan of some edits, one copy.

use super::identity::{Crossing, plan_identity};
use super::outbox::Outbox;
use super::{Message, Received, State, is_earlier, transaction_hash};
use crate::base::id::{BackendId, Transport};
use crate::base::span::Span;
use crate::base::text::Text;
use crate::metrics::Reason;
use crate::route::bindings::{Binding, Lasting};
use crate::route::cookie::{BRANCH_LEN, BranchInput, TOKEN_MAX};
use crate::route::decide::{Scene, decide, is_of_previous_secret, refuse, sending_backend};
use crate::route::request::Request;
use crate::route::snapshot::Snapshot;
use crate::route::verdict::{Forward, Hop, Verdict, Why};
use crate::sip::edit::Edit;
use crate::sip::method::Method;
use crate::sip::reply::Status;
use crate::sip::scan::{HeaderName, Scan};
use crate::sip::uri::Scheme;
use crate::sip::values::{self, Value, values};
use crate::sip::via::{FLOW_PARAM, Rport, Via};

impl State {
    //= rfc3261#section-16.11 retransmissions
    //# Every retransmission is forwarded; none is made.
    pub(super) fn handle_request(&mut self, message: &Message<'_>, method: Span, uri: Span, outbox: &mut Outbox) {
        let Message { snapshot, rx, scan, .. } = *message;
        let request = match Request::decode(rx.bytes, scan, method, uri) {
            Ok(request) => request,
            Err(Reason::UnknownScheme) if method.of(rx.bytes) != b"ACK" => {
                let answer = (Status::UnsupportedUriScheme, Reason::UnknownScheme);
                return self.answer(snapshot, rx, scan, answer, outbox);
            }
            Err(reason) => return self.handle_malformed(snapshot, rx, scan, reason, outbox),
        };
        if is_ack_for_answer(snapshot, &request) {
            return self.counters.count_dropped(Reason::AckForAnswer);
        }
        let (branch, key, binding) = self.find_transaction(message, &request);
        let transaction = transaction_hash(&branch, request.cseq);
        let scene = Scene { snapshot, ingress: rx.listener, source: rx.source, flow: rx.flow, binding, transaction };
        let (mut verdict, is_forged) = decide(&scene, &request);
        self.counters.cookies_refused += u64::from(is_forged);
        if let Verdict::Forward(forward) = verdict
            && !may_travel(rx, scan, forward.hop.transport)
        {
            verdict = refuse(&request, Status::BadRequest, Reason::HeaderLine);
        }
        if let Verdict::Forward(mut forward) = verdict {
            let mut written = self.write_request(snapshot, rx, &request, &forward, &branch, outbox.buffer());
            if let Some(hop) = written.ok().and_then(|len| hop_for_large(snapshot, &forward, len)) {
                forward.hop = hop;
                written = self.write_request(snapshot, rx, &request, &forward, &branch, outbox.buffer());
                self.counters.switched_to_stream += 1;
            }
            match written {
                Ok(len) => {
                    outbox.commit(len, forward.hop);
                    self.count_forward(&forward);
                    return self.learn_from_request(message, &request, &forward, (key, binding), transaction);
                }
                Err((status, reason)) => verdict = refuse(&request, status, reason),
            }
        }
        match verdict {
            Verdict::Answer(status, reason) => self.answer(snapshot, rx, scan, (status, reason), outbox),
            Verdict::Drop(reason) => self.counters.count_dropped(reason),
            Verdict::Forward(_) => {}
        }
    }

    /// The branch of a request and the binding that decides on it, with its key. What belongs to a transaction that was
    /// forwarded before the secret changed keeps the branch of that time, and so does everything in a dialog that began
    /// then: its token says so wherever its retransmissions come in.
    fn find_transaction(
        &self,
        message: &Message<'_>,
        request: &Request<'_>,
    ) -> ([u8; BRANCH_LEN], u128, Option<Binding>) {
        let (keys, call) = (&message.snapshot.keys, message.key.0);
        let ingress = message.snapshot.listener(message.rx.listener).id;
        let input = branch_input(request, message.rx);
        let branch = keys.encode_branch(ingress, &input);
        let transaction = transaction_hash(&branch, request.cseq);
        let (key, binding) = self.look_up(call, request, transaction);
        let is_known = binding.is_some_and(|b| b.transaction == transaction);
        if !is_known && let Some(previous) = keys.encode_previous_branch(ingress, &input) {
            let transaction = transaction_hash(&previous, request.cseq);
            let (key, binding) = self.look_up(call, request, transaction);
            let was_known = binding.is_some_and(|b| b.transaction == transaction);
            if was_known || is_of_previous_secret(keys, request) {
                return (previous, key, binding);
            }
        }
        (branch, key, binding)
    }

    /// The binding that decides on a request, with its key: that of its Call-ID, or, for a straggler of an earlier
    /// transaction of that Call-ID which another backend was given, the one that was kept for it.
    fn look_up(&self, key: u128, request: &Request<'_>, transaction: u32) -> (u128, Option<Binding>) {
        let latest = self.bindings.get(key);
        let may_be_earlier = !request.is_in_dialog() || request.method == Method::Ack;
        if may_be_earlier && latest.is_some_and(|latest| latest.transaction != transaction) {
            let earlier_key = earlier_key(key, transaction);
            if let Some(earlier) = self.bindings.get(earlier_key) {
                return (earlier_key, Some(earlier));
            }
        }
        (key, latest)
    }

    fn count_forward(&mut self, forward: &Forward) {
        self.counters.requests_forwarded += 1;
        match forward.why {
            Why::Cookie => self.counters.routed_by_cookie += 1,
            Why::Binding => self.counters.routed_by_binding += 1,
            Why::Selection => self.counters.selected += 1,
            Why::Text => {}
        }
        if let Some(index) = forward.backend
            && let Some((_, counters)) = self.backends.get_mut(usize::from(index.0))
        {
            counters.requests += 1;
            counters.selected += u64::from(forward.why == Why::Selection);
        }
    }

    /// What a forwarded request teaches the binding table.
    fn learn_from_request(
        &mut self,
        message: &Message<'_>,
        request: &Request<'_>,
        forward: &Forward,
        (key, binding): (u128, Option<Binding>),
        transaction: u32,
    ) {
        let now = message.now;
        let lasting = if request.method == Method::Invite { Lasting::Early } else { Lasting::Linger };
        let backend = forward.backend.map(|index| message.snapshot.backend(index).id);
        let backend: Option<BackendId> = backend.or_else(|| match forward.why {
            // What a backend sends out of its own is its own, so that a copy of it is known again.
            Why::Text => sending_backend(message.snapshot, message.rx.source, message.rx.flow, request)
                .map(|index| message.snapshot.backend(index).id),
            _ => forward.record.map(|cookie| cookie.backend),
        });
        match (binding, backend) {
            (_, None) => {}
            (Some(known), Some(id)) if known.backend == id && known.transaction == transaction => {}
            // What it belongs to is at a backend that is gone, and selection found another: for as long as the
            // transaction can live, retransmissions must find the same (RFC 3261 16.11), CANCEL and ACK included.
            (Some(_), Some(id)) if forward.why == Why::Selection && belongs_to_something(request) => {
                self.bindings.bind(now, key, id, transaction, lasting);
            }
            (Some(known), Some(_)) if request.is_in_dialog() => self.bindings.refresh(now, known, known.lasting),
            // A late copy of an earlier transaction must not take the place of the one that is running.
            (Some(known), Some(id)) if is_earlier(transaction, known.transaction) => {
                if known.backend != id && lasting == Lasting::Early {
                    let key = earlier_key(key, transaction);
                    let is_kept = self.bindings.bind(now, key, id, transaction, Lasting::Linger);
                    self.counters.bindings_refused += u64::from(!is_kept);
                }
            }
            // Neither starts anything of its own.
            _ if matches!(request.method, Method::Ack | Method::Cancel) => {}
            // Its own token finds the way.
            (None, Some(_)) if forward.why == Why::Cookie => {}
            (_, Some(id)) => {
                // The transaction before may still be acknowledged or cancelled where it is.
                // While two secrets are live, its branch may be of the other one, and only a binding tells.
                let is_apart = |b: &Binding| b.backend != id || message.snapshot.keys.has_previous();
                if let Some(earlier) = binding.filter(|b| is_apart(b) && b.transaction != transaction) {
                    let key = earlier_key(key, earlier.transaction);
                    let is_kept = self.bindings.bind(now, key, earlier.backend, earlier.transaction, Lasting::Linger);
                    self.counters.bindings_refused += u64::from(!is_kept);
                }
                let is_bound = self.bindings.bind(now, key, id, transaction, lasting);
                self.counters.bindings_refused += u64::from(!is_bound);
            }
        }
    }

    /// Writes the request as it is sent on, or says why it cannot be: it does not fit a datagram, for one.
    fn write_request(
        &mut self,
        snapshot: &Snapshot,
        rx: &Received<'_>,
        request: &Request<'_>,
        forward: &Forward,
        branch: &[u8; BRANCH_LEN],
        out: &mut [u8],
    ) -> Result<usize, (Status, Reason)> {
        let edit = &mut self.edit;
        edit.clear();
        let scan = request.scan;
        // A request without Via was refused when it was decoded.
        let first_via = scan.first(HeaderName::Via).map_or(scan.start_line_end(), |h| h.line.start as usize);
        let hop = &forward.hop;
        let egress = snapshot.listener(hop.listener);
        let via_head = egress.via_head(hop.transport);
        //= rfc3261#section-16.6 via
        //# A Via of the sending address with a branch that begins with z9hG4bK is put on top.
        match rx.flow.map(|flow| snapshot.keys.encode_flow(branch, flow)) {
            None => edit.insert(first_via, &[via_head, branch, b"\r\n"]),
            Some(flow) => {
                edit.insert(first_via, &[via_head, branch, b";", FLOW_PARAM.as_bytes(), b"=", &flow, b"\r\n"]);
            }
        }
        //= rfc3261#section-16.6 record-again
        //# A request that refreshes a dialog records the same route again.
        if let Some(cookie) = &forward.record {
            let mut token = [0; TOKEN_MAX];
            let len = snapshot.keys.encode_token(request.text(request.call_id), cookie, &mut token);
            let token = &token[..len];
            //= rfc3261#section-16.6 record-route
            //# Record-Route is a SIP URI of ours with lr, before those that are there.
            // Before any other Record-Route (16.6 item 4); the side that the next hop sees comes first (RFC 5658).
            let place = scan.first(HeaderName::RecordRoute).map_or(first_via, |h| h.line.start as usize);
            let is_sips = request.uri.scheme == Scheme::Sips;
            edit.insert(place, &[egress.record_route_head(is_sips), token, b">\r\n"]);
            //= rfc5658#section-5 double-record
            //# Where the two sides differ each gets a Record-Route that it can reach.
            if hop.listener != rx.listener {
                let ingress = snapshot.listener(rx.listener);
                edit.insert(place, &[ingress.record_route_head(is_sips), token, b">\r\n"]);
            }
        }
        if hop.transport.is_stream() {
            plan_content_length(edit, scan);
        }
        plan_received(edit, request.bytes, &request.via, rx);
        plan_max_forwards(edit, request, first_via);
        plan_route(edit, request, forward);
        if scan.count(HeaderName::AssertedIdentity) > 0 {
            let is_from_inside = sending_backend(snapshot, rx.source, rx.flow, request).is_some();
            let to = (hop.listener, hop.destination);
            let crossing = Crossing { snapshot, from: (rx.listener, is_from_inside), to };
            plan_identity(edit, request.bytes, scan, &crossing).map_err(|reason| (Status::BadRequest, reason))?;
        }
        let written = edit.apply(request.bytes, scan.message(), out);
        written.map_err(|_| (Status::MessageTooLarge, Reason::EditFailed))
    }
}

//= rfc3261#section-18.1.1 large
//# A request too large for UDP goes over a connection where the backend has one, with a Via that says so.
/// Over which connection a request goes that is too large for UDP, if its backend has one (RFC 3261 18.1.1).
fn hop_for_large(snapshot: &Snapshot, forward: &Forward, len: usize) -> Option<Hop> {
    let backend = snapshot.backend(forward.backend?);
    let (transport, destination) = backend.large_address?;
    let is_large = forward.hop.transport == Transport::Udp && len > snapshot.pools[backend.pool].udp_bytes_max;
    let listener = is_large.then(|| snapshot.egress(forward.hop.listener, destination, transport))??;
    Some(Hop { listener, transport, destination, ..forward.hop })
}

/// May a message go by this transport? A head with line ends other than CRLF, which are tolerated in a datagram, would be
/// one thing to us and another to whoever has to find its end in a stream.
pub(super) fn may_travel(rx: &Received<'_>, scan: &Scan, transport: Transport) -> bool {
    let head = &rx.bytes[scan.message().start as usize..scan.body().start as usize];
    let is_crlf = |at: usize| at > 0 && head[at - 1] == b'\r';
    rx.flow.is_some() || !transport.is_stream() || memchr::memchr_iter(b'\n', head).all(is_crlf)
}

//= rfc3261#section-18.3 content-length
//# On a connection each message says how long its body is; where it is missing, it is added.
/// A message on a connection says how long its body is (RFC 3261 18.3); one that came in a datagram need not.
pub(super) fn plan_content_length(edit: &mut Edit, scan: &Scan) {
    if scan.count(HeaderName::ContentLength) == 0 {
        let mut text = Text::<10>::default();
        text.push_number(scan.body().len() as u32);
        edit.insert(scan.headers_end(), &[b"Content-Length: ", text.as_bytes(), b"\r\n"]);
    }
}

/// Is the request part of a dialog or of another transaction?
fn belongs_to_something(request: &Request<'_>) -> bool {
    request.is_in_dialog() || request.method == Method::Cancel
}

/// Under which key an earlier transaction of a Call-ID is bound, once a later one was given another backend: rare (a
/// backend goes between a challenge and its answer), so it costs an entry only then. The transaction's hash is part
/// of a MAC, so nobody outside can aim at another key.
fn earlier_key(key: u128, transaction: u32) -> u128 {
    // The golden ratio spreads it over both halves.
    key ^ u128::from(transaction).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
}

/// What retransmissions, CANCEL and non-2xx ACK share; see [`crate::route::cookie`].
fn branch_input<'a>(request: &Request<'a>, rx: &Received<'_>) -> BranchInput<'a> {
    BranchInput {
        branch: request.via.branch.map_or(&[], |b| request.text(b)),
        host: request.text(request.via.host),
        port: request.via.port_or_default(),
        address: rx.source.ip(),
        call_id: request.text(request.call_id),
        cseq: request.cseq,
    }
}

//= rfc3261#section-17.1.1.3 ack
//# The ACK to a final answer that was made here ends here.
/// Does this ACK acknowledge an answer that was made here? Its To tag is the one that answer carried.
fn is_ack_for_answer(snapshot: &Snapshot, request: &Request<'_>) -> bool {
    request.method == Method::Ack
        && request.to_tag.is_some_and(|tag| {
            snapshot.keys.is_local_tag(request.text(tag), request.text(request.call_id), request.text(request.from_tag))
        })
}

//= rfc3261#section-18.2.1 received
//# received is added where sent-by is a name or another address than the source.
/// RFC 3261 18.2.1 and RFC 3581 4: what the sender's Via does not tell truly is written into it.
fn plan_received(edit: &mut Edit, bytes: &[u8], via: &Via, rx: &Received<'_>) {
    let has_true_address = via.ip(bytes) == Some(rx.source.ip());
    if has_true_address && via.received.is_none() && via.rport == Rport::Absent {
        return;
    }
    let mut text = Text::<80>::default();
    //= rfc5118#section-4.5 received
    //# An IPv6 address in received has no brackets.
    text.push(b";received=");
    text.push_ip(rx.source.ip());
    //= rfc3581#section-4 rport
    //# rport gets the source port, and received is added with it whatever sent-by says.
    if via.rport != Rport::Absent {
        text.push(b";rport=");
        text.push_number(u32::from(rx.source.port()));
    }
    if let Some((claimed, _)) = via.received {
        edit.remove(claimed);
    }
    match via.rport {
        Rport::Absent => edit.insert(via.value.end as usize, &[text.as_bytes()]),
        Rport::Asked(asked) | Rport::Filled(_, asked) => edit.replace(asked, text.as_bytes()),
    }
}

//= rfc3261#section-16.6 max-forwards
//# Max-Forwards goes down by one; where there is none, 70 is added.
/// RFC 3261 16.6 item 3.
fn plan_max_forwards(edit: &mut Edit, request: &Request<'_>, first_via: usize) {
    match request.max_forwards {
        None => edit.insert(first_via, &[b"Max-Forwards: 70\r\n"]),
        Some((hops, digits)) => {
            let mut text = Text::<3>::default();
            text.push_number(u32::from(hops.saturating_sub(1)));
            edit.replace(digits, text.as_bytes());
        }
    }
}

//= rfc3261#section-16.6 strict-router-next
//# A next hop without lr: its URI becomes the Request-URI, which goes to the end of Route.
/// RFC 3261 16.4 and 16.6 item 6.
fn plan_route(edit: &mut Edit, request: &Request<'_>, forward: &Forward) {
    let route = forward.route;
    let (bytes, scan) = (request.bytes, request.scan);
    if !route.restores_request_uri && !route.next_is_strict {
        return values::remove_all(edit, route.own_routes.into_iter().flatten());
    }
    let all = || values(bytes, scan, HeaderName::Route).flatten();
    // What goes from the top goes in one piece: neighbours may share a line.
    let own_routes = route.own_count();
    let mut top = own_routes + usize::from(route.next_is_strict);
    if route.restores_request_uri && all().count() == top + 1 {
        top += 1;
    }
    values::remove_all(edit, all().take(top));
    let uri = |value: Value| value.name_addr.uri.of(bytes);
    let target = match all().last().filter(|_| route.restores_request_uri) {
        Some(last) => {
            if all().count() > top {
                values::remove(edit, &last);
            }
            uri(last)
        }
        None => request.text(request.uri_span),
    };
    match all().nth(own_routes).filter(|_| route.next_is_strict) {
        Some(next) => {
            edit.replace(request.uri_span, uri(next));
            edit.insert(scan.headers_end(), &[b"Route: <", target, b">\r\n"]);
        }
        None => edit.replace(request.uri_span, target),
    }
}
