//! What has come on a connection, taken out of it so that its messages can be dealt with while others are being sent.
//!
//! An inbox owns its bytes; each step yields one message out of them without a copy. Given back to the table, what is
//! left over waits there for the rest of its message.

use std::net::SocketAddr;

use crate::base::id::FlowId;
use crate::engine::Received;
use crate::metrics::Reason;
use crate::route::snapshot::ListenerIndex;
use crate::sip::frame::{Frame, FrameErrorKind, Framer};

/// How messages are told apart.
#[derive(Debug)]
pub(super) enum Framing {
    /// By Content-Length (RFC 3261 18.3).
    Stream(Framer),
    /// By the frames they came in: where each ends (RFC 7118 5).
    Frames(Vec<usize>),
}

/// See the module head.
#[derive(Debug)]
pub struct Inbox {
    pub(super) id: FlowId,
    pub(super) listener: ListenerIndex,
    pub(super) peer: SocketAddr,
    pub(super) bytes: Vec<u8>,
    pub(super) at: usize,
    pub(super) framing: Framing,
    /// Frames that have been dealt with.
    pub(super) frame: usize,
    pub(super) pings: usize,
    pub(super) is_broken: bool,
    /// Has the peer said goodbye?
    pub(super) has_ended: bool,
}

/// What comes next out of an inbox.
#[derive(Debug)]
pub enum Step<'a> {
    /// A whole message.
    Message(Received<'a>),
    /// The rest cannot be told apart into messages: why, and the head of the first one when that is whole.
    Broken(Reason, Option<Received<'a>>),
    /// No whole message is left.
    Done,
}

impl Inbox {
    /// The next message.
    pub fn take(&mut self) -> Step<'_> {
        let framer = match &mut self.framing {
            Framing::Stream(framer) => framer,
            Framing::Frames(ends) => {
                let Some(end) = ends.get(self.frame).copied() else { return Step::Done };
                let start = std::mem::replace(&mut self.at, end);
                self.frame += 1;
                return Step::Message(self.received(start, end));
            }
        };
        loop {
            if self.is_broken {
                return Step::Done;
            }
            let start = self.at;
            match framer.next(&self.bytes[start..]) {
                Ok(Frame::Message(len)) => {
                    self.at += len;
                    return Step::Message(self.received(start, start + len));
                }
                Ok(Frame::Ping(len)) => {
                    self.pings += 1;
                    self.at += len;
                }
                Ok(Frame::Skip(len)) => self.at += len,
                Ok(Frame::Incomplete) => return Step::Done,
                Err(error) => {
                    self.is_broken = true;
                    self.at = self.bytes.len();
                    let reason = match error.kind {
                        FrameErrorKind::TooLarge => Reason::TooLarge,
                        _ => Reason::Framing,
                    };
                    return Step::Broken(reason, error.head.map(|len| self.received(start, start + len)));
                }
            }
        }
    }

    fn received(&self, start: usize, end: usize) -> Received<'_> {
        let Inbox { id, listener, peer, .. } = *self;
        Received { bytes: &self.bytes[start..end], source: peer, listener, flow: Some(id), is_taken_over: false }
    }
}
