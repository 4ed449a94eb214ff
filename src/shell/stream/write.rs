//! What goes out: queued on its connection, handed to the ring once a turn, written as far as the peer takes it.
//!
//! A peer that does not take what it is offered is given `write_queue_bytes` and `write_timeout`, then its connection ends.
//! What one turn queues is offered at its end, and counts only from then on. A message is queued whole or not at all.

use std::io;
use std::os::fd::AsFd;

use super::connection::{Ending, Stage};
use super::{Ring, Sending, Streams, Undelivered, shut_down, token};
use crate::base::id::FlowId;
use crate::metrics::{Counters, Reason};
use crate::route::snapshot::Snapshot;
use crate::route::verdict::Hop;

impl Streams {
    /// Queues a message on the connection that its hop names, or on one that is opened for it.
    pub fn send(&mut self, hop: &Hop, bytes: &[u8], ring: &mut Ring, snapshot: &Snapshot) -> Sending {
        if let Some(flow) = hop.flow.or_else(|| self.aliased(hop, snapshot)) {
            if flow.worker() != self.worker {
                return Sending::Elsewhere(flow);
            }
            if self.of_id(flow).is_some_and(|connection| connection.takes_messages()) {
                return self.queue(flow, bytes);
            }
            if !hop.may_connect {
                return Sending::Failed(Reason::FlowGone);
            }
        }
        match self.link_to(hop, ring, snapshot) {
            Ok(id) => self.queue(id, bytes),
            Err(reason) => Sending::Failed(reason),
        }
    }

    /// Keeps a message that could not be sent for [`Streams::next_undelivered`].
    pub fn refuse(&mut self, hop: Hop, bytes: &[u8], reason: Reason) {
        self.undelivered.push_back(Undelivered { hop, bytes: bytes.to_vec(), reason });
    }

    /// Hands what is queued to the ring.
    ///
    /// # Errors
    ///
    /// As `io_uring_enter(2)`.
    pub fn flush(&mut self, ring: &mut Ring) -> io::Result<()> {
        if self.dirty.is_empty() && self.closing.is_empty() {
            return Ok(());
        }
        let dirty = std::mem::take(&mut self.dirty);
        for id in &dirty {
            if let Some(connection) = self.of_id(*id) {
                connection.is_dirty = false;
            }
        }
        let ready = dirty.iter().filter_map(|id| {
            let connection = self.places.get(id.slot() as usize)?.as_deref().filter(|c| c.id == *id)?;
            let is_ready = !connection.is_writing && !connection.output.is_empty();
            is_ready.then(|| (token(*id), connection.stream.as_fd(), &connection.output[..]))
        });
        ring.write_batch(ready)?;
        for id in &dirty {
            if let Some(connection) = self.of_id(*id)
                && !connection.output.is_empty()
            {
                connection.in_flight =
                    if connection.is_writing { connection.in_flight } else { connection.output.len() };
                connection.is_writing = true;
            }
        }
        self.dirty = dirty;
        self.dirty.clear();
        if !self.closing.is_empty() {
            // What was queued for these descriptors is submitted before they can mean something else.
            ring.submit_now()?;
            self.closing.clear();
        }
        Ok(())
    }

    pub(super) fn handle_written(
        &mut self,
        token: u64,
        result: Result<usize, i32>,
        ring: &mut Ring,
        counters: &mut Counters,
    ) -> io::Result<()> {
        let now = self.tick();
        let Some(connection) = self.of_token(token) else { return Ok(()) };
        let id = connection.id;
        match result {
            Ok(taken) => {
                let is_full = taken < connection.in_flight;
                (connection.is_writing, connection.is_blocked) = (is_full, is_full);
                connection.last_active = now;
                connection.output.drain(..taken);
                if connection.output.is_empty() {
                    connection.output_since = None;
                    let unused = std::mem::take(&mut connection.output);
                    let is_draining = connection.stage == Stage::Draining;
                    if is_draining {
                        shut_down(connection.stream.as_fd(), true);
                    }
                    self.spare(unused);
                    if is_draining {
                        self.hasten(id);
                    }
                } else {
                    connection.output_since = Some(now);
                    if is_full {
                        ring.arm_writable(token, connection.stream.as_fd())?;
                        self.hasten(id);
                    } else {
                        self.mark_dirty(id);
                    }
                }
            }
            Err(error) if error == libc::EAGAIN || error == libc::ENOBUFS => {
                connection.output_since.get_or_insert(now);
                connection.is_blocked = true;
                ring.arm_writable(token, connection.stream.as_fd())?;
                self.hasten(id);
            }
            Err(_) => self.close(id, Ending::Broken, counters),
        }
        Ok(())
    }

    /// There is something to write that is no message: who asks for it again and again and does not read it is cut off
    /// like anybody else.
    pub(super) fn handle_own_words(&mut self, id: FlowId) {
        let limit = self.policy.write_queue_bytes;
        if self.of_id(id).is_some_and(|connection| connection.is_overfull(0, limit)) {
            self.finish_now(id);
        }
        self.mark_dirty(id);
    }

    pub(super) fn queue(&mut self, id: FlowId, bytes: &[u8]) -> Sending {
        let limit = self.policy.write_queue_bytes;
        let now = self.tick();
        let spare = self.spares.pop().unwrap_or_default();
        let Some(connection) = self.of_id(id) else { return Sending::Failed(Reason::FlowGone) };
        if connection.is_overfull(bytes.len(), limit) {
            // Who does not read what it is sent is cut off; a message in part would be worse than none. What is being opened
            // has not been offered anything, and has a deadline of its own.
            let is_cut_off = connection.is_blocked;
            self.spare(spare);
            if is_cut_off {
                self.finish_now(id);
            }
            return Sending::Failed(Reason::QueueFull);
        }
        let unused = connection.queue_message(bytes, spare, now);
        self.spare(unused);
        if self.of_id(id).is_some_and(|connection| connection.stage != Stage::Connecting) {
            self.mark_dirty(id);
        }
        Sending::Queued
    }
}
