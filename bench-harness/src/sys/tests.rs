//! Batches, addresses and clocks against the running kernel, on loopback.

use super::*;

#[test]
fn peer_keeps_the_address_of_either_family() {
    for text in ["127.0.0.1:5060", "[::1]:5061"] {
        let address: SocketAddr = text.parse().expect("address");
        assert_eq!(Peer::from(address).address(), Some(address));
    }
    assert_eq!(Peer::none().address(), None);
}

#[test]
fn batches_arrive_in_order_with_their_source() {
    let a = bind("127.0.0.1:0".parse().expect("address"), 1 << 20).expect("bind");
    let b = bind("127.0.0.1:0".parse().expect("address"), 1 << 20).expect("bind");
    let to = Peer::from(b.local_addr().expect("address"));
    let mut out = Outbox::new(4, 64);
    for n in 0..4u8 {
        assert!(out.push(&to, |buffer| {
            buffer[0] = n;
            Some(usize::from(n) + 1)
        }));
    }
    assert!(!out.push(&to, |_| Some(1)), "a full batch refuses");
    assert_eq!(out.flush(&a), 4);
    let mut inbox = Inbox::new(8, 64);
    assert_eq!(inbox.receive(&b, true).expect("receive"), 4);
    for n in 0..4 {
        let (message, from) = inbox.message(n);
        assert_eq!((message.len(), usize::from(message[0])), (n + 1, n));
        assert_eq!(from.address(), a.local_addr().ok());
    }
    assert_eq!(inbox.forward(&b, |message, from| (message[0] % 2 == 0).then_some(from)), 2);
    assert_eq!(inbox.receive(&a, true).expect("receive"), 2);
    assert_eq!(inbox.message(1).0, [2, 0, 0]);
}

#[test]
fn cpu_time_of_a_thread_is_its_own() {
    let before = thread_cpu_time();
    std::thread::spawn(|| while thread_cpu_time() < Duration::from_millis(20) {}).join().expect("a thread that ends");
    let waited = thread_cpu_time() - before;
    assert!(waited < Duration::from_millis(15), "{waited:?} for waiting");
    while thread_cpu_time() < before + Duration::from_millis(20) {}
}

#[test]
fn cpu_time_of_ourselves_grows() {
    let before = cpu_time(std::process::id()).expect("clock");
    let mut sum = 0u64;
    while cpu_time(std::process::id()).expect("clock") <= before {
        sum = sum.wrapping_add(1);
    }
    assert!(cpu_time(4_194_305).is_err());
}
