//! What is to be done with a message, before anything is done.
//!
//! A verdict is small, `Copy` and complete: the engine carries it out and `tandem explain` prints it.

use std::net::SocketAddr;

use crate::base::id::{FlowId, Transport};
use crate::metrics::Reason;
use crate::route::cookie::Cookie;
use crate::route::snapshot::{BackendIndex, ListenerIndex};
use crate::sip::reply::Status;
use crate::sip::values::Value;

/// The decision on a request.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "nearly every verdict is to forward; a box would allocate a message")]
pub enum Verdict {
    /// Send it on.
    Forward(Forward),
    /// Answer it here.
    Answer(Status, Reason),
    /// Let it go nowhere.
    Drop(Reason),
}

/// How a message leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The listener whose socket it leaves from, or whose address a new connection has on our side.
    pub listener: ListenerIndex,
    /// What it travels by.
    pub transport: Transport,
    /// Where it goes.
    pub destination: SocketAddr,
    /// The connection that it goes on while that lives.
    pub flow: Option<FlowId>,
    /// The client on whose behalf it goes to a backend that wants to be told so, by a connection of that client's own.
    pub client: Option<SocketAddr>,
    /// Without that connection: may one be opened to the destination? Always so where no flow is named.
    pub may_connect: bool,
}

impl Hop {
    /// A datagram.
    pub fn datagram(listener: ListenerIndex, destination: SocketAddr) -> Self {
        Hop { listener, transport: Transport::Udp, destination, flow: None, client: None, may_connect: true }
    }
}

/// How to send a request on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forward {
    /// How it leaves and where it goes.
    pub hop: Hop,
    /// The backend served, unless the request goes to a client.
    pub backend: Option<BackendIndex>,
    /// What decided.
    pub why: Why,
    /// What is done to Route headers and the Request-URI (RFC 3261 16.4, 16.6 item 6).
    pub route: RouteEdit,
    /// The token to record, when Tandem stays on the path.
    pub record: Option<Cookie>,
}

/// What decided where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// A token in a Route of ours.
    Cookie,
    /// The binding of its Call-ID.
    Binding,
    /// The pool's policy.
    Selection,
    /// The text of the request, which comes from a backend.
    Text,
}

impl Why {
    /// A word for `explain`.
    pub const fn label(self) -> &'static str {
        match self {
            Why::Cookie => "cookie",
            Why::Binding => "binding",
            Why::Selection => "selection",
            Why::Text => "text",
        }
    }
}

/// Changes to the route set and the Request-URI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteEdit {
    /// The values at the top of Route that name us and go.
    pub own_routes: [Option<Value>; 2],
    /// A strict router before us put our URI into the Request-URI: the last Route value takes its place (16.4).
    pub restores_request_uri: bool,
    /// The next hop is a strict router: its URI becomes the Request-URI, which goes to the end of Route (16.6 item 6).
    pub next_is_strict: bool,
}

impl RouteEdit {
    /// How many values of Route name us.
    pub fn own_count(&self) -> usize {
        self.own_routes.iter().flatten().count()
    }
}
