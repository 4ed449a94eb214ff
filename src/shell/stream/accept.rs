//! New connections: who may have one, and where it is kept.
//!
//! At a limit a connection is closed at once and counted; the peer sees that, which is better than a queue in the kernel
//! that nobody reads. Bounds: see [`super`].

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use socket2::SockRef;

use super::connection::{Connection, Stage};
use super::{Ring, StreamPolicy, Streams, token};
use crate::base::id::{FlowId, Transport};
use crate::metrics::Counters;

impl Streams {
    pub(super) fn accept(
        &mut self,
        socket: usize,
        stream: OwnedFd,
        ring: &mut Ring,
        counters: &mut Counters,
    ) -> io::Result<()> {
        let Ok(Some(peer)) = SockRef::from(&stream).peer_addr().map(|address| address.as_socket()) else {
            // It has gone already.
            return Ok(());
        };
        let listener = self.listeners[socket];
        let policy = Rc::clone(&self.policy);
        let acceptance = policy.acceptance(listener);
        let needs_handshake = acceptance.transport.is_secure() || acceptance.transport.is_web_socket();
        if !self.has_room_for(peer.ip())
            || (needs_handshake && self.handshakes >= self.policy.handshakes_max)
            || self.free.len() <= self.policy.places_for_links.saturating_sub(self.links.standing())
        {
            counters.connections_refused += 1;
            return Ok(());
        }
        self.policy.prepare(&SockRef::from(&stream));
        let make = |id, policy: &_, now| Connection::accepted(id, stream, listener, peer, acceptance, policy, now);
        let Some(id) = self.place(make, acceptance.transport) else { return Ok(()) };
        counters.connections_accepted += 1;
        self.count(peer.ip());
        if let Some(connection) = self.of_id(id) {
            ring.arm_stream_receive(token(id), connection.stream.as_fd())?;
            if connection.stage == Stage::Handshake {
                self.handshakes += 1;
            }
        }
        Ok(())
    }

    /// A PROXY header has named the peer: among its connections it counts from here on. `false` when those are too many.
    pub(super) fn recount(&mut self, id: FlowId) -> bool {
        let Some((source, peer)) = self.of_id(id).map(|connection| (connection.source, connection.peer.ip())) else {
            return false;
        };
        if !self.has_room_for(peer) {
            return false;
        }
        if let Some(source) = source {
            self.uncount(source);
        }
        self.count(peer);
        if let Some(connection) = self.of_id(id) {
            connection.source = Some(peer);
        }
        true
    }

    fn has_room_for(&self, source: IpAddr) -> bool {
        self.per_source.get(&source).is_none_or(|count| (*count as usize) < self.policy.connections_per_source)
    }

    fn count(&mut self, source: IpAddr) {
        *self.per_source.entry(source).or_default() += 1;
    }

    pub(super) fn uncount(&mut self, source: IpAddr) {
        if let Some(count) = self.per_source.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.per_source.remove(&source);
            }
        }
    }

    /// Puts a new connection into a free place.
    pub(super) fn place(
        &mut self,
        make: impl FnOnce(FlowId, &StreamPolicy, u32) -> Option<Connection>,
        transport: Transport,
    ) -> Option<FlowId> {
        let place = self.free.pop()?;
        let id = FlowId::new(self.worker, transport, place, self.generations[place as usize]);
        let now = self.tick();
        let Some(connection) = make(id, &self.policy, now) else {
            self.free.push(place);
            return None;
        };
        self.generations[place as usize] = self.generations[place as usize].wrapping_add(1);
        self.deadlines.schedule(place, connection.deadline(&self.policy));
        self.places[place as usize] = Some(Box::new(connection));
        Some(id)
    }
}
