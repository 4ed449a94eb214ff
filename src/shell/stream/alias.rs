//! Connections that may be used the other way round (RFC 5923): a peer that has shown a certificate we believe, and writes
//! `alias` into its Via, takes requests to its sent-by on the connection that it opened.
//!
//! Without a verified certificate `alias` is ignored: whoever may claim an address would get its calls. Every worker is told
//! of an alias, since a request to the peer leaves from the owner of its Call-ID; the connection stays with its own
//! worker, and when it is gone that one opens another. Bound: [`ALIASES_MAX`]; past that no alias is taken, and requests
//! open connections as they do anyway.

use std::net::SocketAddr;

use ahash::AHashMap;

use super::Streams;
use crate::base::id::{FlowId, Transport};
use crate::engine::Received;
use crate::route::snapshot::Snapshot;
use crate::route::verdict::Hop;
use crate::sip::scan::{HeaderName, Scan};
use crate::sip::via::Via;

const ALIASES_MAX: usize = 4096;

/// The aliases that a worker knows; all of them are of TLS.
pub(super) struct Aliases {
    by_address: AHashMap<SocketAddr, FlowId>,
    scan: Scan,
}

impl Default for Aliases {
    fn default() -> Self {
        Aliases { by_address: AHashMap::new(), scan: Scan::with_capacity(256) }
    }
}

impl Streams {
    /// The alias that a message asks for, if its peer may have one and has it not yet.
    pub fn learn_alias(&mut self, rx: &Received<'_>) -> Option<(SocketAddr, FlowId)> {
        let flow = rx.flow.filter(|flow| flow.transport() == Transport::Tls)?;
        let connection = self.of_id(flow).filter(|connection| connection.may_have_alias())?;
        let ip = connection.peer.ip();
        let scan = &mut self.aliases.scan;
        scan.scan(rx.bytes).ok()?;
        let via = Via::decode(rx.bytes, scan.first(HeaderName::Via)?.value).ok().filter(|via| via.has_alias)?;
        let address = SocketAddr::new(ip, via.port_of_transport(rx.bytes));
        self.of_id(flow)?.has_alias = true;
        self.note_alias(address, flow);
        Some((address, flow))
    }

    /// Takes in an alias that another worker has learned.
    pub fn note_alias(&mut self, address: SocketAddr, flow: FlowId) {
        let aliases = &mut self.aliases.by_address;
        if aliases.len() < ALIASES_MAX || aliases.contains_key(&address) {
            aliases.insert(address, flow);
        }
    }

    /// The connection on which a request goes that names none: that of an alias. A backend is not reached by one: whoever
    /// shares its address would get its calls.
    pub(super) fn aliased(&mut self, hop: &Hop, snapshot: &Snapshot) -> Option<FlowId> {
        let aliases = &mut self.aliases.by_address;
        if hop.transport != Transport::Tls || aliases.is_empty() {
            return None;
        }
        let flow = aliases.get(&hop.destination).copied()?;
        if snapshot.backend_by_target((hop.transport, hop.destination)).is_some() {
            return None;
        }
        if flow.worker() == self.worker && self.of_id(flow).is_none() {
            self.aliases.by_address.remove(&hop.destination);
            return None;
        }
        Some(flow)
    }
}
