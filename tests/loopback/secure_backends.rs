//! TLS to backends, and certificates: who is believed, who is refused, and what changes while calls go on.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::bed::{HEALTH, local};
use crate::callee::{Callee, Door};
use crate::calls::check_all_well;
use crate::certificates::Trust;
use crate::endpoint::{Endpoint, headers};
use crate::node::{Node, Plan};
use crate::phone::{Heard, Phone};
use crate::sipp::{Load, Sipp};
use crate::stunnel::Stunnel;
use crate::{Place, await_some, free_port, is_full};

/// A node before one TLS backend, spoken to as the pool's keys say.
fn start(place: &Place, backend: &Callee, pool_tls: &str, health: &'static str) -> (Node, SocketAddr) {
    let service = local(free_port());
    let mut plan = Plan::new(&[format!("tcp:{service}"), format!("tls:{}", local(free_port()))], &[backend.target()]);
    plan.pool = format!("[pool.tls]\n{pool_tls}");
    plan.health = health;
    let more = format!("{}[timers]\nhandshake_timeout = \"1s\"\n", Trust::section("proxy"));
    (plan.start(place, &more), service)
}

/// The SHA-256 digest of a certificate, as `openssl` prints it.
fn digest(der: &[u8]) -> String {
    ring::digest::digest(&ring::digest::SHA256, der).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What becomes of a call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Served,
    /// The handshake fails, and the call is answered at once.
    Refused,
    /// In TLS 1.3 the client is done before the server has seen its certificate: what was sent by then is lost.
    Late,
}

#[test]
fn backend_is_spoken_to_only_when_its_certificate_is_what_was_asked_for() {
    let place = Place::take("verify");
    let trust = Trust::new(place.folder());
    trust.write("proxy", &["127.0.0.1"]);
    let by_address = trust.write("by-address", &["127.0.0.1"]);
    let by_name = trust.write("by-name", &["pbx.example.com"]);
    let stranger_folder = place.folder().join("stranger");
    fs::create_dir_all(&stranger_folder).unwrap();
    let stranger = Trust::new(&stranger_folder);
    let strange = stranger.write("by-address", &["127.0.0.1"]);
    let client = trust.write("client", &["sip:lb.example.com"]);
    let strange_client = stranger.write("client", &["sip:lb.example.com"]);
    let ca = format!("ca = {:?}\n", trust.ca);
    let named = format!("{ca}server_name = \"pbx.example.com\"\n");
    let shows = |folder: &std::path::Path| {
        format!("{ca}certificate = {:?}\nkey = {:?}\n", folder.join("client.pem"), folder.join("client.key"))
    };
    let pins = |der: &[u8]| format!("verify = \"pinned\"\npins = [\"{}\"]\n", digest(der));
    assert_ne!(client.der, strange_client.der);
    // What is asked for, whose certificate the backend has, whether it demands one, and what becomes of a call.
    let cases = [
        ("address", ca.clone(), &by_address, false, Fate::Served),
        ("address of another", ca.clone(), &by_name, false, Fate::Refused),
        ("name", named.clone(), &by_name, false, Fate::Served),
        ("name of another", named, &by_address, false, Fate::Refused),
        ("other authority", ca.clone(), &strange, false, Fate::Refused),
        ("pin", pins(&strange.der), &strange, false, Fate::Served),
        ("pin of another", pins(&by_address.der), &strange, false, Fate::Refused),
        ("nothing", "verify = \"none\"\n".to_owned(), &strange, false, Fate::Served),
        ("client certificate", shows(place.folder()), &by_address, true, Fate::Served),
        ("client certificate of another authority", shows(&stranger_folder), &by_address, true, Fate::Late),
        ("no client certificate", ca.clone(), &by_address, true, Fate::Late),
    ];
    for (what, keys, identity, demands_certificate, fate) in cases {
        let what = &what.replace(' ', "-");
        let backend = Callee::start(Door::Tls(trust.server(identity, demands_certificate)));
        let (node, service) = start(&place, &backend, &keys, "probe = \"none\"");
        let mut phone = Phone::connect(service);
        match fate {
            Fate::Served => {
                phone.call(what);
                backend.check_call(what);
            }
            Fate::Refused => {
                let begun = Instant::now();
                phone.ask("INVITE", what, "SIP/2.0 503");
                assert!(begun.elapsed() < Duration::from_secs(1), "{what}: 503 after {:?}", begun.elapsed());
                phone.ask("OPTIONS", what, "SIP/2.0 503");
            }
            Fate::Late => {
                let invite = phone.author.request("INVITE", what, service, b"");
                phone.send(&invite);
                node.await_report("the refusal", |report| report.total("connections_broken_total") > 0);
            }
        }
        if fate != Fate::Served {
            assert_eq!(backend.count(), 0, "{what}: nothing may be said to it");
        }
        let report = node.report();
        assert_eq!(report.total("handshakes_failed_total") > 0, fate == Fate::Refused, "{what}: {report:#?}");
        let (status, _, report) = node.stop();
        assert!(status.success(), "{what}: {status}");
        report.check_balance();
    }
}

#[test]
fn probes_find_a_backend_with_the_wrong_certificate() {
    let place = Place::take("verify-probe");
    let trust = Trust::new(place.folder());
    trust.write("proxy", &["127.0.0.1"]);
    let by_name = trust.write("by-name", &["pbx.example.com"]);
    let backend = Callee::start(Door::Tls(trust.server(&by_name, false)));
    let (node, service) = start(&place, &backend, &format!("ca = {:?}\n", trust.ca), HEALTH);
    node.await_log(0, "backend taken out");
    Phone::connect(service).ask("INVITE", "none", "SIP/2.0 503");
    assert_eq!(backend.count(), 0, "not even a probe may be sent to it");
    let (_, _, report) = node.stop();
    report.check_balance();
}

#[test]
fn service_that_requires_client_certificates_serves_nobody_without() {
    let place = Place::take("client-certificate");
    let trust = Trust::new(place.folder());
    trust.write("proxy", &["127.0.0.1"]);
    let good = trust.write("client", &["sip:alice.example.com"]);
    let stranger_folder = place.folder().join("stranger");
    fs::create_dir_all(&stranger_folder).unwrap();
    let strange = Trust::new(&stranger_folder).write("client", &["sip:alice.example.com"]);
    let backend = Callee::start(Door::Tcp);
    let [plain, service] = [local(free_port()), local(free_port())];
    let mut plan = Plan::new(&[format!("tls:{service}"), format!("tcp:{plain}")], &[backend.target()]);
    plan.service = format!("[service.tls]\nclient_certificate = \"required\"\nclient_ca = {:?}\n", trust.ca);
    let node = plan.start(&place, &Trust::section("proxy"));
    // The client of TLS 1.3 is done before the server has seen its certificate: the refusal comes after.
    let mut refused = 0;
    for identity in [None, Some(&strange)] {
        for _ in 0..6 {
            if let Ok(mut phone) = Phone::connect_tls(service, &trust.client(identity), "127.0.0.1") {
                let request = phone.author.request("OPTIONS", "refused", service, b"");
                let _ = phone.try_send(&request);
                assert_eq!(phone.hear(Duration::from_secs(3)), Heard::End);
            }
            refused += 1;
        }
    }
    Phone::connect_tls(service, &trust.client(Some(&good)), "127.0.0.1").unwrap().call("known");
    backend.check_call("known");
    assert_eq!(backend.count(), 3, "only the one with a certificate got through");
    let report = node.report();
    assert_eq!(report.total("handshakes_failed_total"), refused, "{report:#?}");
    let (_, _, report) = node.stop();
    report.check_balance();
}

/// RFC 5923: whoever may claim an address on its own word would get the calls of that address.
#[test]
fn only_the_connection_of_a_verified_peer_is_used_the_other_way_round() {
    let place = Place::take("alias");
    let trust = Trust::new(place.folder());
    trust.write("proxy", &["127.0.0.1"]);
    let known = trust.write("client", &["sip:peer.example.com"]);
    let backend = Endpoint::bind(local(0)).unwrap();
    let [plain, service] = [local(free_port()), local(free_port())];
    let mut plan =
        Plan::new(&[format!("tls:{service}"), format!("udp:{plain}")], &[format!("udp:{}", backend.address)]);
    plan.service = format!("[service.tls]\nclient_certificate = \"optional\"\nclient_ca = {:?}\n", trust.ca);
    let node = plan.start(&place, &Trust::section("proxy"));
    for (name, identity) in [("stranger", None), ("peer", Some(&known))] {
        let peer_port = free_port();
        let mut peer = Phone::connect_tls(service, &trust.client(identity), "127.0.0.1").unwrap();
        let request = |method: &str, call_id: &str, uri: &str, via: &str| {
            format!(
                "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/{via};branch=z9hG4bK{call_id}\r\nMax-Forwards: 70\r\n\
                 From: <sip:a@x>;tag=1\r\nTo: <sip:b@x>\r\nCall-ID: {call_id}\r\nCSeq: 1 {method}\r\n\
                 Content-Length: 0\r\n\r\n"
            )
        };
        // A second connection of the same peer, perhaps at another worker: either may be used, and nothing is lost.
        let mut twin = Phone::connect_tls(service, &trust.client(identity), "127.0.0.1").unwrap();
        for (which, phone) in [&mut peer, &mut twin].into_iter().enumerate() {
            let hello = format!("{name}-hello-{which}");
            let via = format!("TLS 127.0.0.1:{peer_port};alias");
            phone.send(request("OPTIONS", &hello, &format!("sip:{service};transport=tls"), &via).as_bytes());
            let (came, from) = backend.await_message("OPTIONS", &hello);
            backend.send(&backend.answer(&came, "200 OK", b""), from);
            phone.expect("SIP/2.0 200", &hello);
        }
        // Many Call-IDs, so that every worker has some of them.
        for number in 0..12 {
            let call_id = format!("{name}-{number}");
            let uri = format!("sip:bob@127.0.0.1:{peer_port};transport=tls");
            backend.send(request("OPTIONS", &call_id, &uri, &format!("UDP {}", backend.address)).as_bytes(), plain);
            if identity.is_some() {
                let (came, phone) = match peer.hear(Duration::from_millis(200)) {
                    Heard::Message(came) => (came, &mut peer),
                    _ => (twin.expect("OPTIONS sip:bob@", &call_id), &mut twin),
                };
                assert_eq!(headers(&came, "Call-ID"), [&call_id[..]]);
                phone.send(&backend.answer(&came, "200 OK", b""));
                backend.await_message("SIP/2.0 200", &call_id);
            } else {
                backend.await_message("SIP/2.0 503", &call_id);
                assert_eq!(peer.hear(Duration::from_millis(20)), Heard::Nothing);
                assert_eq!(twin.hear(Duration::from_millis(20)), Heard::Nothing);
            }
        }
    }
    let (_, _, report) = node.stop();
    report.check_balance();
}

#[test]
fn certificates_change_under_calls_and_no_connection_is_dropped() {
    let place = Place::take("swap");
    let folder = place.folder();
    let trust = Trust::new(folder);
    let first = trust.write("proxy", &["127.0.0.1"]);
    let port = free_port();
    let mut backend = Sipp::backend(folder, "backend", port);
    let [plain, service] = [local(free_port()), local(free_port())];
    let listen = [format!("tls:{service}"), format!("udp:{plain}")];
    let node = Plan::new(&listen, &[format!("udp:{}", local(port))]).start(&place, &Trust::section("proxy"));
    let stunnel = Stunnel::to_tls(folder, "caller-tls", service, &trust.ca);
    let client = trust.client(None);
    let connect = || Phone::connect_tls(service, &client, "127.0.0.1").unwrap();
    let mut kept: Vec<Phone> = (0..20).map(|_| connect()).collect();
    let (calls, rate, swaps) = if is_full() { (3_000, 100, 10) } else { (240, 60, 2) };
    let load = Load { target: stunnel.address, calls, rate, hold: 300, extra: &["-t", "t1"] };
    let mut caller = Sipp::caller(folder, "caller", &load);
    let mut shown = first.der;
    for swap in 0..swaps {
        std::thread::sleep(Duration::from_millis(u64::from(calls / rate) * 700 / (swaps + 1)));
        assert_eq!(connect().peer_certificate(), shown);
        // A broken key first: it is refused, and the old one goes on.
        let start = node.log().len();
        fs::write(folder.join("proxy.key"), "no key").unwrap();
        node.signal("HUP");
        let error = node.await_log(start, "reload refused");
        assert!(error.contains("proxy.key") || node.log()[start..].contains("proxy.key"), "{error}");
        assert_eq!(connect().peer_certificate(), shown);
        let next = trust.write("proxy", &["127.0.0.1"]);
        let start = node.log().len();
        node.signal("HUP");
        node.await_log(start, "configuration reloaded");
        // Every worker shows it, a moment later at most.
        await_some("the new certificate", Duration::from_secs(3), || {
            (0..8).all(|_| connect().peer_certificate() == next.der).then_some(())
        });
        shown = next.der;
        for (number, phone) in kept.iter_mut().enumerate() {
            let answer = phone.ask("INVITE", &format!("kept-{swap}-{number}"), "SIP/2.0 1");
            assert!(!answer.is_empty());
            finish_call(phone, &format!("kept-{swap}-{number}"));
        }
    }
    check_all_well(&mut caller, calls, rate);
    println!("{calls} calls over TLS at {rate}/s through {swaps} changes of certificate: 0 failed");
    let (status, _, report) = node.stop();
    assert!(status.success(), "{status}");
    report.check_balance();
    report.check_nothing_shed();
    let counts = backend.end();
    assert_eq!((counts.failed(), counts.unexpected()), (0, 0), "{counts:?}");
}

/// The rest of a call whose 100 has come from SIPp: 180, 200, ACK, BYE.
fn finish_call(phone: &mut Phone, call_id: &str) {
    phone.expect("SIP/2.0 180", call_id);
    let answer = phone.expect("SIP/2.0 200", call_id);
    phone.hang_up(&answer, call_id);
}
