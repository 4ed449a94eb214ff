//! Where a request goes: the function the product is about.
//!
//! Read RFC 3261 16.3 to 16.6 and 16.11 first. The first that answers wins:
//!
//! 1. **Cookie.** A Route of ours with a token that we signed for this Call-ID: the dialog's backend, or, in the
//!    other direction, the dialog's client. The From tag tells the direction, not the source address.
//! 2. **Text.** A request that a backend sends out of its own: where its Route or Request-URI says.
//! 3. **Binding.** The Call-ID is bound: its backend. A request of another transaction that is not in a dialog moves
//!    on when that backend takes nothing new any more; the same transaction stays (16.11).
//! 4. **Selection** by the pool's policy.
//!
//! Never an open relay: text is followed only for requests from a backend's own address, never to ourselves, and a
//! token leads only to a configured backend or to the address from which its dialog was started.

use std::net::{IpAddr, SocketAddr};

use crate::base::id::{FlowId, ListenerId, Transport};
use crate::base::span::Span;
use crate::metrics::Reason;
use crate::route::bindings::Binding;
use crate::route::cookie::{Cookie, Keys, TOKEN_PARAM};
use crate::route::key;
use crate::route::request::Request;
use crate::route::snapshot::{Backend, BackendIndex, ListenerIndex, Service, Snapshot};
use crate::route::verdict::{Forward, Hop, RouteEdit, Verdict, Why};
use crate::sip::method::Method;
use crate::sip::reply::Status;
use crate::sip::scan::{HeaderName, is_request_uri};
use crate::sip::uri::{Scheme, Uri};
use crate::sip::values::values;
use crate::sip::via::{DEFAULT_PORT, Rport, TLS_PORT};

/// What a decision needs besides the request.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// The world.
    pub snapshot: &'a Snapshot,
    /// Where the request came in.
    pub ingress: ListenerIndex,
    /// Where it came from.
    pub source: SocketAddr,
    /// The connection it came on.
    pub flow: Option<FlowId>,
    /// What its Call-ID is bound to.
    pub binding: Option<Binding>,
    /// Hash of its transaction, to be compared with the binding's.
    pub transaction: u32,
}

/// What the route set of a request says (RFC 3261 16.4).
#[derive(Clone, Copy, Debug, Default)]
struct RouteSet {
    edit: RouteEdit,
    /// Our token, if there is one that holds.
    cookie: Option<Cookie>,
    /// Was there a token that does not hold?
    is_forged: bool,
    /// The Request-URI after restoring.
    target: Option<Span>,
    /// The Route value that is on top once ours are gone.
    next: Option<Span>,
}

/// The verdict, and whether a token was refused on the way.
pub fn decide(scene: &Scene<'_>, request: &Request<'_>) -> (Verdict, bool) {
    //= rfc3261#section-16.3 max-forwards
    //# A request whose Max-Forwards is 0 is not forwarded and gets 483.
    //= rfc3261#section-16.3 loop
    //# Loops need not be detected by who does not fork, since Max-Forwards ends them.
    if request.max_forwards.is_some_and(|(hops, _)| hops == 0) {
        return (refuse(request, Status::TooManyHops, Reason::TooManyHops), false);
    }
    //= rfc3261#section-16.3 proxy-require
    //# Proxy-Require of what is not supported gets 420 and an Unsupported that lists it alone.
    let asks_for_extension = request.scan.all(HeaderName::ProxyRequire).any(|h| !h.value.is_empty());
    //= rfc3261#section-8.2.2.3 proxy-require-not-for
    //# Proxy-Require is ignored in CANCEL and in ACK.
    if asks_for_extension && !matches!(request.method, Method::Ack | Method::Cancel) {
        return (refuse(request, Status::BadExtension, Reason::ProxyRequire), false);
    }
    match read_route_set(scene, request) {
        Ok(route) => (decide_target(scene, request, &route), route.is_forged),
        Err(reason) => (refuse(request, Status::BadRequest, reason), false),
    }
}

/// An answer; an ACK is never answered.
pub fn refuse(request: &Request<'_>, status: Status, reason: Reason) -> Verdict {
    if request.method == Method::Ack { Verdict::Drop(reason) } else { Verdict::Answer(status, reason) }
}

//= rfc3261#section-16.3 merged
//# Merged requests are no error: each copy goes on.
//= rfc5393#section-4.1 never-forks
//# Only who forks must detect loops: there is one target, never two.
fn decide_target(scene: &Scene<'_>, request: &Request<'_>, route: &RouteSet) -> Verdict {
    let snapshot = scene.snapshot;
    let from_backend = sending_backend(snapshot, scene.source, scene.flow, request);
    if let Some(cookie) = &route.cookie {
        match towards_backend(&snapshot.keys, request, cookie) {
            Some(false) => return to_client(scene, request, route, cookie, from_backend.is_some()),
            Some(true) => {
                let backend = snapshot.backend_by_id(cookie.backend);
                if let Some(index) = backend.filter(|i| snapshot.backend(*i).keeps_dialogs()) {
                    return to_backend(scene, request, route, index, Why::Cookie);
                }
            }
            None => {}
        }
    } else if let Some(backend) = from_backend
        && !request_names_us(scene, request, route)
    {
        return by_text(scene, request, route, backend);
    }
    if let Some(index) = scene.binding.and_then(|binding| bound_backend(scene, request, binding)) {
        return to_backend(scene, request, route, index, Why::Binding);
    }
    let listener = snapshot.listener(scene.ingress);
    let pool = &snapshot.pools[snapshot.services[listener.service].pool];
    match pool.table.get(key::selection_hash(&snapshot.keys, request)) {
        Some(index) => to_backend(scene, request, route, BackendIndex(index), Why::Selection),
        //= rfc3261#section-21.5.4 retry-after
        //# A 503 for want of a backend says when to come again.
        None => refuse(request, Status::ServiceUnavailable, Reason::EmptyPool),
    }
}

/// The backend that a request comes from. Over UDP it sends from its own port. A connection of its own comes from any
/// port, but from its address, which a handshake has proven, and its Via says where it listens.
pub fn sending_backend(
    snapshot: &Snapshot,
    source: SocketAddr,
    flow: Option<FlowId>,
    request: &Request<'_>,
) -> Option<BackendIndex> {
    snapshot.backend_by_address(source).or_else(|| {
        flow?;
        let ip = request.via.ip(request.bytes).filter(|ip| *ip == source.ip())?;
        snapshot.backend_by_address(SocketAddr::new(ip, request.via.port_of_transport(request.bytes)))
    })
}

/// RFC 3261 16.4, with our token in place of the knowledge of what we recorded.
fn read_route_set(scene: &Scene<'_>, request: &Request<'_>) -> Result<RouteSet, Reason> {
    let mut route = RouteSet { target: Some(request.uri_span), ..RouteSet::default() };
    //= rfc3261#section-16.4 strict-router-before
    //# Our Record-Route in the Request-URI is replaced by the last Route, which goes.
    if request.uri.scheme != Scheme::Tel && has_token(request.bytes, &request.uri) {
        route.read_token(scene, request, &request.uri);
        if route.cookie.is_some() {
            route.edit.restores_request_uri = true;
        }
    }
    let mut last = None;
    for value in values(request.bytes, request.scan, HeaderName::Route) {
        let value = value.map_err(|_| Reason::MalformedRoute)?;
        let span = value.name_addr.uri;
        last = Some(span);
        if route.next.is_some() {
            if !route.edit.restores_request_uri {
                break;
            }
            continue;
        }
        let uri = Uri::decode(request.bytes, span).map_err(|_| Reason::MalformedRoute)?;
        //= rfc5658#section-5 double-route
        //# Of the two Record-Route values of one proxy both go when they come back as Route.
        // Two of ours stand together where the two sides of Tandem differ (RFC 5658).
        match route.edit.own_routes.iter_mut().find(|own| own.is_none()) {
            //= rfc3261#section-16.4 own-route
            //# A first Route that names this proxy, by whichever address, port or name of it, goes.
            Some(own) if names_us(scene.snapshot, request.bytes, &uri) => {
                *own = Some(value);
                route.read_token(scene, request, &uri);
            }
            // A strict router behind us makes it the Request-URI.
            _ if !is_request_uri(span.of(request.bytes)) => return Err(Reason::MalformedRoute),
            _ => route.next = Some(span),
        }
    }
    if route.edit.restores_request_uri {
        // Without a Route there is nothing to restore; the URI stays.
        if last.is_some_and(|last| !is_request_uri(last.of(request.bytes))) {
            return Err(Reason::MalformedRoute);
        }
        route.target = last.or(route.target);
        route.edit.restores_request_uri = last.is_some();
        if route.next == last {
            route.next = None;
        }
    }
    if route.cookie.is_some()
        && let Some(next) = route.next
    {
        let uri = Uri::decode(request.bytes, next).map_err(|_| Reason::MalformedRoute)?;
        route.edit.next_is_strict = uri.param(request.bytes, b"lr").is_none();
    }
    Ok(route)
}

impl RouteSet {
    fn read_token(&mut self, scene: &Scene<'_>, request: &Request<'_>, uri: &Uri) {
        if let Some(Some(token)) = uri.param(request.bytes, TOKEN_PARAM.as_bytes()) {
            let cookie = scene.snapshot.keys.decode_token(request.text(request.call_id), token);
            self.is_forged |= cookie.is_none();
            self.cookie = self.cookie.or(cookie);
        }
    }
}

/// Was the token of the dialog that a request belongs to signed with the secret before the present one?
pub fn is_of_previous_secret(keys: &Keys, request: &Request<'_>) -> bool {
    let routes = values(request.bytes, request.scan, HeaderName::Route).flatten();
    let routed = routes.take(2).filter_map(|value| Uri::decode(request.bytes, value.name_addr.uri).ok());
    let call_id = request.text(request.call_id);
    // A strict router leaves the token in the Request-URI.
    std::iter::once(request.uri).chain(routed).any(|uri| match uri.param(request.bytes, TOKEN_PARAM.as_bytes()) {
        Some(Some(token)) => keys.is_token_of_previous(call_id, token),
        _ => false,
    })
}

fn has_token(bytes: &[u8], uri: &Uri) -> bool {
    !uri.params.is_empty() && uri.param(bytes, TOKEN_PARAM.as_bytes()).is_some()
}

/// Is this URI an address or name of ours, whatever port of ours it names?
fn names_us(snapshot: &Snapshot, bytes: &[u8], uri: &Uri) -> bool {
    if !matches!(uri.scheme, Scheme::Sip | Scheme::Sips) {
        return false;
    }
    let port = uri.port.unwrap_or(default_port(uri.scheme, transport_of(bytes, uri)));
    match uri.ip(bytes) {
        Some(ip) => is_ours(snapshot, SocketAddr::new(ip, port)),
        None => {
            let host = uri.host.of(bytes);
            snapshot.names.iter().any(|name| host.eq_ignore_ascii_case(name.as_bytes()))
        }
    }
}

fn is_ours(snapshot: &Snapshot, address: SocketAddr) -> bool {
    snapshot.listeners.iter().any(|l| l.listen.address == address)
}

/// Does the request go to the service itself rather than past it?
fn request_names_us(scene: &Scene<'_>, request: &Request<'_>, route: &RouteSet) -> bool {
    let target = route.next.or(route.target).unwrap_or(request.uri_span);
    match Uri::decode(request.bytes, target) {
        Ok(uri) => names_us(scene.snapshot, request.bytes, &uri),
        Err(_) => true,
    }
}

//= rfc3261#section-13.2.2.4 ack-to-2xx
//# The ACK to a 2xx is a request of its own and follows the route set of its dialog.
/// The direction of a request in the dialog of `cookie`; `None` when it belongs to another dialog.
fn towards_backend(keys: &Keys, request: &Request<'_>, cookie: &Cookie) -> Option<bool> {
    let call_id = request.text(request.call_id);
    let is_initial = |tag: &[u8]| keys.tag_hash(call_id, tag) == cookie.initial_tag;
    if is_initial(request.text(request.from_tag)) {
        return Some(!cookie.is_from_backend);
    }
    let to_tag = request.to_tag?;
    is_initial(request.text(to_tag)).then_some(cookie.is_from_backend)
}

//= rfc3261#section-16.11 one-target
//# Retransmission, CANCEL and the ACK to a non-2xx go to the one target of their INVITE.
/// The backend a binding names, unless the request may and must go elsewhere.
fn bound_backend(scene: &Scene<'_>, request: &Request<'_>, binding: Binding) -> Option<BackendIndex> {
    let index = scene.snapshot.backend_by_id(binding.backend)?;
    let backend = scene.snapshot.backend(index);
    let is_same_transaction = binding.transaction == scene.transaction;
    let must_stay = is_same_transaction || request.is_in_dialog() || request.method == Method::Cancel;
    let may_stay = if must_stay { backend.keeps_dialogs() } else { backend.takes_new() };
    may_stay.then_some(index)
}

//= rfc3261#section-16.11 cancel
//# CANCEL is forwarded like any request, with the same treatment of Route.
fn to_backend(scene: &Scene<'_>, request: &Request<'_>, route: &RouteSet, index: BackendIndex, why: Why) -> Verdict {
    let &Backend { address: destination, transport, tells_clients, .. } = scene.snapshot.backend(index);
    if request.uri.scheme == Scheme::Sips && !transport.is_secure() && !scene.service().sips_over_plain {
        return refuse(request, Status::TemporarilyUnavailable, Reason::SipsOverPlain);
    }
    let Some(listener) = scene.snapshot.egress(scene.ingress, destination, transport) else {
        return refuse(request, Status::ServerInternalError, Reason::NoListener);
    };
    let record = match &route.cookie {
        // A refresh records the same again, for elements that lost their route set (16.6 item 4).
        Some(cookie) => request.method.makes_dialog().then_some(*cookie),
        None => new_cookie(scene, request, (scene.came_by(), scene.flow), false, index),
    };
    let record = record.filter(|_| scene.service().record_route);
    let client = tells_clients.then_some(scene.source);
    let hop = Hop { listener, transport, destination, flow: None, client, may_connect: true };
    Verdict::Forward(Forward { hop, backend: Some(index), why, route: route.edit, record })
}

/// In a dialog, away from the backend.
fn to_client(
    scene: &Scene<'_>,
    request: &Request<'_>,
    route: &RouteSet,
    cookie: &Cookie,
    is_from_backend: bool,
) -> Verdict {
    let text = match (is_from_backend && cookie.follows_text, next_hop(scene, request, route)) {
        (true, Ok(hop)) => Some(hop),
        _ => None,
    };
    let target = match cookie.flow {
        // What the text says is for the time after the connection, and travels alike.
        Some(flow) => Target {
            transport: flow.transport(),
            destination: text.map_or(cookie.client, |(_, address)| address),
            flow: Some(flow),
            may_connect: text.is_some() && !flow.transport().is_web_socket(),
        },
        None => Target::of_text(text.unwrap_or((cookie.transport, cookie.client))),
    };
    let ingress = scene.snapshot.listener_by_id(cookie.ingress).unwrap_or(scene.ingress);
    let record = request.method.makes_dialog().then_some(*cookie).filter(|_| scene.service().record_route);
    forward_to_client(scene, request, route, target, ingress, record, Why::Cookie)
}

/// A new request of a backend: its text decides.
fn by_text(scene: &Scene<'_>, request: &Request<'_>, route: &RouteSet, backend: BackendIndex) -> Verdict {
    match next_hop(scene, request, route) {
        Ok(hop) => {
            let client = (hop, None);
            let record = new_cookie(scene, request, client, true, backend).filter(|_| scene.service().record_route);
            let mut route = *route;
            route.edit.next_is_strict = route.next.is_some_and(|next| !is_loose(request.bytes, next));
            forward_to_client(scene, request, &route, Target::of_text(hop), scene.ingress, record, Why::Text)
        }
        Err(Reason::UnresolvedTarget) => refuse(request, Status::ServiceUnavailable, Reason::UnresolvedTarget),
        Err(reason) => refuse(request, Status::BadRequest, reason),
    }
}

fn forward_to_client(
    scene: &Scene<'_>,
    request: &Request<'_>,
    route: &RouteSet,
    target: Target,
    preferred: ListenerIndex,
    record: Option<Cookie>,
    why: Why,
) -> Verdict {
    let snapshot = scene.snapshot;
    let Target { transport, destination, flow, may_connect } = target;
    if is_forbidden(snapshot, destination) {
        return refuse(request, Status::BadRequest, Reason::ForbiddenTarget);
    }
    if flow.is_none() && transport.is_web_socket() {
        // A browser has no address to be reached at (RFC 7118 5.2).
        return refuse(request, Status::FlowFailed, Reason::FlowGone);
    }
    let Some(listener) = snapshot.egress(preferred, destination, transport) else {
        return refuse(request, Status::ServerInternalError, Reason::NoListener);
    };
    let hop = Hop { listener, transport, destination, flow, client: None, may_connect };
    Verdict::Forward(Forward { hop, backend: None, why, route: route.edit, record })
}

/// Where a request to a client goes.
#[derive(Clone, Copy, Debug)]
struct Target {
    transport: Transport,
    destination: SocketAddr,
    flow: Option<FlowId>,
    may_connect: bool,
}

impl Target {
    fn of_text((transport, destination): (Transport, SocketAddr)) -> Self {
        Target { transport, destination, flow: None, may_connect: true }
    }
}

impl Scene<'_> {
    fn service(&self) -> &Service {
        &self.snapshot.services[self.snapshot.listener(self.ingress).service]
    }

    /// How and whence the request came.
    fn came_by(&self) -> (Transport, SocketAddr) {
        (self.flow.map_or(Transport::Udp, FlowId::transport), self.source)
    }
}

/// The token of a dialog that this request may make.
fn new_cookie(
    scene: &Scene<'_>,
    request: &Request<'_>,
    ((transport, client), flow): ((Transport, SocketAddr), Option<FlowId>),
    is_from_backend: bool,
    backend: BackendIndex,
) -> Option<Cookie> {
    if !request.method.makes_dialog() || request.is_in_dialog() {
        return None;
    }
    let snapshot = scene.snapshot;
    let tag = request.text(request.from_tag);
    let ingress: ListenerId = snapshot.listener(scene.ingress).id;
    Some(Cookie {
        backend: snapshot.backend(backend).id,
        ingress,
        initial_tag: snapshot.keys.tag_hash(request.text(request.call_id), tag),
        client,
        transport,
        flow,
        is_from_backend,
        follows_text: is_from_backend || is_reachable_by_text(request, client, transport),
    })
}

/// Is the client where its Via says, so that its Contact can be believed too? Not behind a NAT. A connection comes from
/// a port of its own.
fn is_reachable_by_text(request: &Request<'_>, source: SocketAddr, transport: Transport) -> bool {
    let is_same_port =
        transport.is_stream() || request.via.rport == Rport::Absent || request.via.port_or_default() == source.port();
    request.via.ip(request.bytes) == Some(source.ip()) && is_same_port
}

fn is_loose(bytes: &[u8], uri: Span) -> bool {
    Uri::decode(bytes, uri).is_ok_and(|uri| uri.param(bytes, b"lr").is_some())
}

//= rfc3261#section-16.6 maddr
//# maddr is not followed, against the rule: it would lead anywhere.
/// RFC 3261 16.6 item 7, for addresses; `maddr` is not followed, since it would lead anywhere.
fn next_hop(scene: &Scene<'_>, request: &Request<'_>, route: &RouteSet) -> Result<(Transport, SocketAddr), Reason> {
    let bytes = request.bytes;
    let span = route.next.or(route.target).unwrap_or(request.uri_span);
    let uri = Uri::decode(bytes, span).map_err(|_| Reason::MalformedRoute)?;
    if !matches!(uri.scheme, Scheme::Sip | Scheme::Sips) {
        return Err(Reason::UnresolvedTarget);
    }
    let ip = uri.ip(bytes).ok_or(Reason::UnresolvedTarget)?;
    let transport = transport_of(bytes, &uri).ok_or(Reason::UnresolvedTarget)?;
    let address = SocketAddr::new(ip, uri.port.unwrap_or(default_port(uri.scheme, Some(transport))));
    match is_ours(scene.snapshot, address) || !is_unicast(ip) {
        true => Err(Reason::ForbiddenTarget),
        false => Ok((transport, address)),
    }
}

/// RFC 3263 4.1 for an address: what `transport` says, else UDP, and with `sips` TLS; `None` for what is not spoken here.
fn transport_of(bytes: &[u8], uri: &Uri) -> Option<Transport> {
    let is_sips = uri.scheme == Scheme::Sips;
    let named = match uri.param(bytes, b"transport") {
        Some(Some(name)) => Transport::ALL.into_iter().find(|t| name.eq_ignore_ascii_case(t.scheme().as_bytes()))?,
        _ => return Some(if is_sips { Transport::Tls } else { Transport::Udp }),
    };
    match (is_sips, named) {
        (false, named) => Some(named),
        (true, Transport::Tcp | Transport::Tls) => Some(Transport::Tls),
        (true, Transport::Ws | Transport::Wss) => Some(Transport::Wss),
        (true, Transport::Udp) => None,
    }
}

/// RFC 3261 19.1.2.
fn default_port(scheme: Scheme, transport: Option<Transport>) -> u16 {
    match (scheme, transport) {
        (Scheme::Sips, _) | (_, Some(Transport::Tls)) => TLS_PORT,
        _ => DEFAULT_PORT,
    }
}

/// May nothing be sent there: to ourselves, to no single host, to no port?
pub fn is_forbidden(snapshot: &Snapshot, address: SocketAddr) -> bool {
    is_ours(snapshot, address) || !is_unicast(address.ip()) || address.port() == 0
}

//= rfc4475#section-3.3.10 unicast
//# Nothing is sent to a broadcast or multicast address.
/// Can one host be meant? Broadcast, multicast and the unspecified address are refused (RFC 4475 3.3.10).
fn is_unicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_broadcast() && !ip.is_multicast() && !ip.is_unspecified(),
        IpAddr::V6(ip) => !ip.is_multicast() && !ip.is_unspecified(),
    }
}
