//! The ring against real sockets on loopback.

use std::net::UdpSocket;
use std::time::Duration;

use super::*;

fn ring(socket: UdpSocket, buffers: usize, waker: Waker) -> Ring {
    let tick = Duration::from_secs(60);
    let sockets = vec![socket];
    Ring::new(RingSetup { sockets, listeners: vec![], datagram_buffers: buffers, stream_buffers: 0, tick, waker })
        .unwrap()
}

#[test]
fn datagrams_of_every_size_come_and_go_whole() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut ring = ring(socket, 64, Waker::new().unwrap());
    for len in [0usize, 1, 900, 4096, 65_507] {
        let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
        peer.send_to(&payload, address).unwrap();
        let mut seen = None;
        while seen.is_none() {
            let poll = |socket, source, bytes: &[u8]| {
                seen = Some((socket, source, bytes.to_vec()));
                true
            };
            ring.poll(64, poll).unwrap();
        }
        let (socket, source, bytes) = seen.unwrap();
        assert_eq!((socket, source), (0, peer.local_addr().unwrap()));
        assert_eq!(bytes, payload);
        ring.send_batch([(0, source, &bytes[..])].into_iter()).unwrap();
        let mut back = vec![0; 70_000];
        let (n, from) = peer.recv_from(&mut back).unwrap();
        assert_eq!((&back[..n], from), (&payload[..], address));
    }
}

#[test]
fn more_datagrams_than_buffers_are_all_received() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut ring = ring(socket, 4, Waker::new().unwrap());
    (0..100u8).for_each(|i| assert_eq!(peer.send_to(&[i], address).unwrap(), 1));
    let (mut seen, mut exhausted) = (Vec::new(), 0);
    for _ in 0..1000 {
        let poll = |_, _, bytes: &[u8]| {
            seen.push(bytes[0]);
            true
        };
        exhausted += ring.poll(3, poll).unwrap().buffers_exhausted;
    }
    assert_eq!(seen, (0..100).collect::<Vec<u8>>());
    assert!(exhausted > 0, "the ring was meant to run dry");
}

#[test]
fn a_sleeper_wakes_however_often_it_is_woken() {
    let waker = Waker::new().unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (turn, turns) = std::sync::mpsc::sync_channel(0);
    let sleeper = std::thread::spawn({
        let waker = waker.clone();
        move || {
            let mut ring = ring(socket, 4, waker);
            for _ in 0..2000 {
                turn.send(()).unwrap();
                ring.sleep().unwrap();
                ring.poll(4, |_, _, _| true).unwrap();
            }
        }
    });
    for () in turns {
        waker.wake();
    }
    sleeper.join().unwrap();
}

#[test]
fn a_refused_send_is_reported() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut ring = ring(socket, 4, Waker::new().unwrap());
    let too_large = vec![0; 65_508];
    ring.send_batch([(0, "127.0.0.1:9".parse().unwrap(), &too_large[..])].into_iter()).unwrap();
    let failed: u64 = (0..10).map(|_| ring.poll(4, |_, _, _| true).unwrap().sends_failed).sum();
    assert_eq!(failed, 1);
}
