//! Rings that take messages from the worker that received them to the one that owns them.
//!
//! One single-producer ring of bytes for each ordered pair of workers. A record is a fixed head and the datagram,
//! copied once in and, where the ring's end cuts it, once more out. A message that does not fit is refused at once:
//! the sender counts it and goes on; nobody ever waits.
//!
//! ```text
//!   | len 4 | listener 2 | port 2 | family 2 | address 16 | datagram len |   next record ...
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use rtrb::{Consumer, Producer, RingBuffer};

use super::sys::Waker;
use crate::engine::Received;
use crate::engine::outbox::DATAGRAM_MAX;
use crate::route::snapshot::ListenerIndex;

const HEAD: usize = 26;

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
    /// Copies a datagram into the ring; `false` when there is no room.
    pub fn give(&mut self, rx: &Received<'_>) -> bool {
        let mut head = [0u8; HEAD];
        head[..4].copy_from_slice(&(rx.bytes.len() as u32).to_ne_bytes());
        head[4..6].copy_from_slice(&rx.listener.0.to_ne_bytes());
        head[6..8].copy_from_slice(&rx.source.port().to_ne_bytes());
        match rx.source.ip() {
            IpAddr::V4(ip) => {
                head[8] = 4;
                head[10..14].copy_from_slice(&ip.octets());
            }
            IpAddr::V6(ip) => {
                head[8] = 6;
                head[10..26].copy_from_slice(&ip.octets());
            }
        }
        if self.ring.slots() < HEAD + rx.bytes.len() {
            return false;
        }
        // The reader looks for a whole head and then for a whole datagram.
        let is_in = self.ring.push_entire_slice(&head).is_ok() && self.ring.push_entire_slice(rx.bytes).is_ok();
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

    /// Gives the next datagram to `take`; `false` when there is none.
    pub fn take(&mut self, take: impl FnOnce(&Received<'_>)) -> bool {
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
        let port = u16::from_ne_bytes([head[6], head[7]]);
        take(&Received {
            bytes,
            source: SocketAddr::new(decode_ip(&head), port),
            listener: ListenerIndex(u16::from_ne_bytes([head[4], head[5]])),
            is_taken_over: true,
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
    octets.copy_from_slice(&head[10..]);
    match head[8] {
        4 => IpAddr::V4(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3])),
        _ => IpAddr::V6(Ipv6Addr::from(octets)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(bytes: &[u8], source: &str) -> bool {
        let doorbell = Doorbell::new(Waker::new().unwrap());
        let (mut giver, mut taker) = ring(1024, doorbell);
        let source = source.parse().unwrap();
        let rx = Received { bytes, source, listener: ListenerIndex(3), is_taken_over: false };
        // Many rounds, so that every place where the ring's end can cut a record is met.
        (0..300).all(|_| {
            let mut is_same = false;
            giver.give(&rx)
                && taker.take(|out| {
                    is_same =
                        out.bytes == bytes && out.source == source && out.listener == rx.listener && out.is_taken_over;
                })
                && is_same
                && taker.is_empty()
        })
    }

    #[test]
    fn what_is_given_is_taken_wherever_the_ring_ends() {
        assert!(received(b"", "192.0.2.1:5060"));
        assert!(received(&[7; 333], "192.0.2.1:5060"));
        assert!(received(&[7; 1024 - HEAD], "[2001:db8::1]:5060"));
    }

    #[test]
    fn a_full_ring_refuses_and_keeps_what_it_has() {
        let (mut giver, mut taker) = ring(256, Doorbell::new(Waker::new().unwrap()));
        let source = "192.0.2.1:5060".parse().unwrap();
        let rx = |bytes| Received { bytes, source, listener: ListenerIndex(0), is_taken_over: false };
        assert!(giver.give(&rx(&[1; 100])));
        assert!(!giver.give(&rx(&[2; 200])));
        assert!(giver.give(&rx(&[3; 50])));
        let mut seen = Vec::new();
        while taker.take(|out| seen.push(out.bytes[0])) {}
        assert_eq!(seen, [1, 3]);
    }
}
