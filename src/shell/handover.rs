//! Rings that take messages from one worker to another: to the owner of their Call-ID, and to the owner of the
//! connection on which they leave.
//!
//! One single-producer ring of bytes for each ordered pair of workers. A record is a fixed head and the message,
//! copied once in and, where the ring's end cuts it, once more out. A message that does not fit is refused at once:
//! the sender counts it and goes on; nobody ever waits.
//!
//! ```text
//!   | len 4 | listener 2 | port 2 | family 1 | kind 1 | address 16 | flow 8 | message len |   next record ...
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use rtrb::{Consumer, Producer, RingBuffer};

use super::sys::Waker;
use crate::base::id::{FlowId, Transport};
use crate::engine::Received;
use crate::engine::outbox::DATAGRAM_MAX;
use crate::route::snapshot::ListenerIndex;
use crate::route::verdict::Hop;

const HEAD: usize = 34;

/// In the kind of a record: it is to be sent, not to be dealt with.
const TRANSMIT: u8 = 1;
/// Of what is to be sent: a connection may be opened for it.
const MAY_CONNECT: u8 = 2;
/// No message: an alias.
const ALIAS: u8 = 4;
/// The transport of what is to be sent stands above this bit.
const TRANSPORT_SHIFT: u8 = 4;

/// What comes out of a ring.
#[derive(Debug)]
pub enum Handed<'a> {
    /// A message whose Call-ID is ours.
    Message(Received<'a>),
    /// A message that leaves on a connection of ours.
    Transmit(Hop, &'a [u8]),
    /// Who is reached at this address may be reached on this connection.
    Alias(SocketAddr, FlowId),
}

/// How others see a worker that may sleep.
#[derive(Clone, Debug)]
pub struct Doorbell {
    waker: Waker,
    is_asleep: Arc<AtomicBool>,
}

impl Doorbell {
    /// For a worker that sleeps on `waker`.
    pub fn new(waker: Waker) -> Self {
        Doorbell { waker, is_asleep: Arc::new(AtomicBool::new(false)) }
    }

    /// The eventfd behind it.
    pub fn waker(&self) -> &Waker {
        &self.waker
    }

    /// To be called before the last look for work and a sleep: whoever adds work after that look rings.
    pub fn announce_sleep(&self) {
        self.is_asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Awake again.
    pub fn announce_waking(&self) {
        self.is_asleep.store(false, Ordering::SeqCst);
    }

    /// To be called after work was added: wakes the worker if it sleeps, which costs a system call only then.
    pub fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.is_asleep.load(Ordering::SeqCst) && self.is_asleep.swap(false, Ordering::SeqCst) {
            self.waker.wake();
        }
    }
}

/// The sending end.
#[derive(Debug)]
pub struct Giver {
    ring: Producer<u8>,
    doorbell: Doorbell,
    has_given: bool,
}

/// The receiving end.
#[derive(Debug)]
pub struct Taker {
    ring: Consumer<u8>,
    whole: Box<[u8]>,
}

/// A ring of `bytes` to the worker behind `doorbell`.
pub fn ring(bytes: usize, doorbell: Doorbell) -> (Giver, Taker) {
    let (producer, consumer) = RingBuffer::new(bytes);
    let giver = Giver { ring: producer, doorbell, has_given: false };
    (giver, Taker { ring: consumer, whole: vec![0; DATAGRAM_MAX].into() })
}

impl Giver {
    /// Copies a message into the ring for the owner of its Call-ID; `false` when there is no room.
    pub fn give(&mut self, rx: &Received<'_>) -> bool {
        self.push(rx.bytes, rx.listener, rx.source, 0, rx.flow)
    }

    /// Copies a message into the ring for the owner of the connection on which it leaves; `false` when there is no room.
    pub fn give_transmit(&mut self, hop: &Hop, bytes: &[u8]) -> bool {
        let may_connect = if hop.may_connect { MAY_CONNECT } else { 0 };
        let kind = TRANSMIT | may_connect | (hop.transport as u8) << TRANSPORT_SHIFT;
        self.push(bytes, hop.listener, hop.destination, kind, hop.flow)
    }

    /// Tells of an alias; `false` when there is no room.
    pub fn give_alias(&mut self, address: SocketAddr, flow: FlowId) -> bool {
        self.push(&[], ListenerIndex(0), address, ALIAS, Some(flow))
    }

    fn push(
        &mut self,
        bytes: &[u8],
        listener: ListenerIndex,
        address: SocketAddr,
        kind: u8,
        flow: Option<FlowId>,
    ) -> bool {
        let mut head = [0u8; HEAD];
        head[..4].copy_from_slice(&(bytes.len() as u32).to_ne_bytes());
        head[4..6].copy_from_slice(&listener.0.to_ne_bytes());
        head[6..8].copy_from_slice(&address.port().to_ne_bytes());
        head[9] = kind;
        match address.ip() {
            IpAddr::V4(ip) => {
                head[8] = 4;
                head[10..14].copy_from_slice(&ip.octets());
            }
            IpAddr::V6(ip) => {
                head[8] = 6;
                head[10..26].copy_from_slice(&ip.octets());
            }
        }
        // A datagram has no flow, and no connection has the number 0: its transport is part of it.
        head[26..].copy_from_slice(&flow.map_or(0, |flow| flow.0).to_ne_bytes());
        if self.ring.slots() < HEAD + bytes.len() {
            return false;
        }
        // The reader looks for a whole head and then for a whole message.
        let is_in = self.ring.push_entire_slice(&head).is_ok() && self.ring.push_entire_slice(bytes).is_ok();
        self.has_given |= is_in;
        is_in
    }

    /// Wakes the owner if it sleeps and anything was given since the last call.
    pub fn ring_if_given(&mut self) {
        if std::mem::take(&mut self.has_given) {
            self.doorbell.ring();
        }
    }
}

impl Taker {
    /// Is there nothing in it?
    pub fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    /// Gives the next record to `take`; `false` when there is none.
    pub fn take(&mut self, take: impl FnOnce(Handed<'_>)) -> bool {
        let Ok(chunk) = self.ring.read_chunk(HEAD) else { return false };
        let mut head = [0u8; HEAD];
        copy_out(chunk.as_slices(), &mut head);
        let len = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let Ok(chunk) = self.ring.read_chunk(HEAD + len) else { return false };
        let (front, back) = chunk.as_slices();
        let bytes = match front.get(HEAD..HEAD + len) {
            Some(bytes) => bytes,
            None => {
                let whole = &mut self.whole[..len];
                let skipped = front.get(HEAD..).unwrap_or_default();
                copy_out((skipped, &back[back.len() - (len - skipped.len())..]), whole);
                &*whole
            }
        };
        let address = SocketAddr::new(decode_ip(&head), u16::from_ne_bytes([head[6], head[7]]));
        let listener = ListenerIndex(u16::from_ne_bytes([head[4], head[5]]));
        let mut flow = [0u8; 8];
        flow.copy_from_slice(&head[26..]);
        let flow = Some(FlowId(u64::from_ne_bytes(flow))).filter(|flow| flow.0 != 0);
        let kind = head[9];
        take(match (kind & TRANSMIT, flow) {
            (0, Some(flow)) if kind == ALIAS => Handed::Alias(address, flow),
            (0, _) => Handed::Message(Received { bytes, source: address, listener, flow, is_taken_over: true }),
            _ => {
                let transport = Transport::ALL.get(usize::from(kind >> TRANSPORT_SHIFT)).copied();
                let transport = transport.unwrap_or(Transport::Udp);
                let may_connect = kind & MAY_CONNECT != 0;
                Handed::Transmit(
                    Hop { listener, transport, destination: address, flow, client: None, may_connect },
                    bytes,
                )
            }
        });
        chunk.commit_all();
        true
    }
}

fn copy_out((front, back): (&[u8], &[u8]), out: &mut [u8]) {
    let (a, b) = out.split_at_mut(front.len());
    a.copy_from_slice(front);
    b.copy_from_slice(&back[..b.len()]);
}

fn decode_ip(head: &[u8; HEAD]) -> IpAddr {
    let mut octets = [0u8; 16];
    octets.copy_from_slice(&head[10..26]);
    match head[8] {
        4 => IpAddr::V4(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3])),
        _ => IpAddr::V6(Ipv6Addr::from(octets)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Is every record that is given taken as it was? Many rounds, so that every place where the ring's end can cut a
    /// record is met.
    fn passes(bytes: &[u8], address: &str, flow: Option<FlowId>) -> bool {
        let doorbell = Doorbell::new(Waker::new().unwrap());
        let (mut giver, mut taker) = ring(2048, doorbell);
        let address = address.parse().unwrap();
        let listener = ListenerIndex(3);
        let rx = Received { bytes, source: address, listener, flow, is_taken_over: false };
        let hop =
            Hop { listener, transport: Transport::Tls, destination: address, flow, client: None, may_connect: true };
        let mut is_same = true;
        for _ in 0..300 {
            is_same &= giver.give(&rx);
            is_same &= taker.take(|out| {
                is_same &= matches!(out, Handed::Message(out) if out.bytes == bytes && out.source == address
                    && out.listener == listener && out.flow == flow && out.is_taken_over);
            });
            is_same &= giver.give_transmit(&hop, bytes);
            is_same &= taker.take(|out| {
                is_same &= matches!(out, Handed::Transmit(out, text) if out == hop && text == bytes);
            });
            is_same &= taker.is_empty();
        }
        is_same
    }

    #[test]
    fn what_is_given_is_taken_wherever_the_ring_ends() {
        let flow = Some(FlowId::new(0, Transport::Tcp, 0, 0));
        assert!(passes(b"", "192.0.2.1:5060", None));
        assert!(passes(&[7; 333], "192.0.2.1:5060", flow));
        assert!(passes(&[7; 2048 - HEAD], "[2001:db8::1]:5060", None));
    }

    #[test]
    fn a_full_ring_refuses_and_keeps_what_it_has() {
        let (mut giver, mut taker) = ring(256, Doorbell::new(Waker::new().unwrap()));
        let source = "192.0.2.1:5060".parse().unwrap();
        let rx = |bytes| Received { bytes, source, listener: ListenerIndex(0), flow: None, is_taken_over: false };
        assert!(giver.give(&rx(&[1; 100])));
        assert!(!giver.give(&rx(&[2; 200])));
        assert!(giver.give(&rx(&[3; 50])));
        let mut seen = Vec::new();
        while taker.take(|out| {
            if let Handed::Message(out) = out {
                seen.push(out.bytes[0]);
            }
        }) {}
        assert_eq!(seen, [1, 3]);
    }
}
