//! Reloads and the operator's hand: what is kept, what is dropped, what is refused.

use super::*;

#[test]
fn reload_keeps_health_and_admin_and_tells_the_difference() {
    let mut bench = Bench::new(config(3));
    while (0..3).any(|i| bench.is_in_table(i)) {
        bench.step(Duration::ZERO);
    }
    bench.control.set_admin(bench.now, "pbx1", Admin::Drained).unwrap();
    let mut next = config(4);
    next.pools[0].backends.remove(2);
    next.pools[0].backends[0].weight = 0;
    let diff = bench.control.apply_config(bench.now, next.clone()).unwrap();
    assert_eq!(diff.to_string(), "backend pbx2 removed; backend pbx3 added; backend pbx0: weight 100 -> 0");
    bench.drain();
    let view = bench.control.view();
    assert!(!view[0].is_healthy && !view[1].is_healthy);
    assert_eq!((view[1].admin, view[2].name.as_str(), view[2].state), (Admin::Drained, "pbx3", State::Unproven));
    assert!(!bench.is_in_table(1), "a reload does not un-drain");

    assert_eq!(bench.control.apply_config(bench.now, next.clone()).unwrap().to_string(), "nothing changed");
    let generation = bench.control.generation();
    assert_eq!(bench.snapshots.last().unwrap().generation, generation);

    next.pools[0].backends[1].admin = Admin::Disabled;
    bench.control.apply_config(bench.now, next.clone()).unwrap();
    assert_eq!(bench.control.view()[1].admin, Admin::Disabled, "the file's own new word wins");
    assert!(!bench.control.view()[1].is_probed);
    next.pools[0].backends[1].admin = Admin::Enabled;
    bench.control.apply_config(bench.now, next).unwrap();
    assert_eq!(bench.control.view()[1].admin, Admin::Enabled);
}

#[test]
fn dead_backend_stays_dead_over_a_reload_and_over_disable_and_enable() {
    let mut bench = Bench::new(config(1));
    bench.probe(None);
    let mut next = config(1);
    next.pools[0].backends[0].weight = 7;
    next.pools[0].retry_after = 9 * SECOND;
    bench.control.apply_config(bench.now, next.clone()).unwrap();
    bench.drain();
    assert!(!bench.is_in_table(0));
    bench.control.set_admin(bench.now, "pbx0", Admin::Disabled).unwrap();
    assert_eq!(bench.control.next_deadline(), None, "the disabled are not probed");
    bench.control.set_admin(bench.now, "pbx0", Admin::Enabled).unwrap();
    bench.drain();
    assert_eq!(bench.view().state, State::Down);
    next.pools[0].backends[0].address = "192.0.2.99:5060".parse().unwrap();
    bench.control.apply_config(bench.now, next).unwrap();
    assert_eq!(bench.view().state, State::Unproven, "another address is another server");
    assert!(bench.control.set_admin(bench.now, "nobody", Admin::Enabled).is_err());
}

#[test]
fn result_of_a_probe_from_before_a_change_is_dropped() {
    let mut bench = Bench::new(config(1));
    bench.probe(None);
    bench.until_probe();
    let mut next = config(1);
    next.pools[0].health.rise = 1;
    bench.control.apply_config(bench.now, next.clone()).unwrap();
    bench.drain();
    bench.answer(10, 200);
    assert_eq!(bench.view().state, State::Down);
    assert_eq!(bench.control.counters().results_stale, 1);
    bench.probe(Some(200));
    assert_eq!(bench.view().state, State::Up);

    bench.until_probe();
    next.pools[0].health.fall = 1;
    bench.control.apply_config(bench.now, next.clone()).unwrap();
    bench.drain();
    bench.step(Duration::ZERO);
    assert_eq!(bench.view().state, State::Up, "nor does its timeout count");
    assert_eq!(bench.control.counters().results_stale, 2);

    bench.until_probe();
    next.pools[0].backends[0].weight = 3;
    bench.control.apply_config(bench.now, next).unwrap();
    bench.drain();
    bench.answer(10, 503);
    assert_eq!(bench.view().state, State::Down, "a new weight is no reason to drop a result");
}

#[test]
fn change_of_what_is_fixed_is_refused_and_named() {
    let mut bench = Bench::new(config(1));
    let mut next = config(2);
    next.node.workers = Workers::Count(3);
    next.limits.bindings_max = 5;
    next.services[0].listen[0].address.set_port(5061);
    let refusal = bench.control.apply_config(bench.now, next).unwrap_err().to_string();
    for part in [
        "[node]: workers Auto -> Count(3): cannot change while running; restart to change it",
        "[limits]: bindings_max 1000 -> 5",
        "[[service]]: listen [\"udp:192.0.2.254:5060\"] -> [\"udp:192.0.2.254:5061\"]",
        "the old configuration stays in force",
    ] {
        assert!(refusal.contains(part), "{refusal}");
    }
    assert_eq!((bench.control.view().len(), bench.control.poll_event().is_none()), (1, true));
}

#[test]
fn secrets_rotate_without_being_shown() {
    let mut bench = Bench::new(config(1));
    let mut next = config(1);
    next.node.secret = Some(crate::config::Secret([0xAB; 16]));
    let diff = bench.control.apply_config(bench.now, next).unwrap().to_string();
    assert_eq!(diff, "[node]: secret set -> a new one");
    assert_eq!(bench.drain(), 0);
    assert_eq!(bench.snapshots.len(), 2);
}

#[test]
fn what_is_asked_of_connections_may_change_and_their_number_may_not() {
    let mut bench = Bench::new(config(1));
    let mut next = config(1);
    next.timers.idle_timeout = 60 * SECOND;
    next.certificates.push(Certificate { chain: "a.pem".into(), key: "a.key".into(), names: Vec::new() });
    next.services[0].proxy_protocol_from = vec!["192.0.2.0/24".parse().unwrap()];
    next.services[0].origins = vec!["https://phone.example.com".into()];
    next.services[0].sips_over_plain = true;
    next.services[0].tls.client_certificate = ClientCertificate::Required;
    next.pools[0].udp_bytes_max = 1_400;
    next.pools[0].tls.pins = vec![[0xAB; 32]];
    next.pools[0].backends[0].large_address = Some((Transport::Tcp, "192.0.2.1:5060".parse().unwrap()));
    let diff = bench.control.apply_config(bench.now, next.clone()).unwrap().to_string();
    for part in [
        "[timers]: idle_timeout 3600s -> 60s",
        "[[certificate]]: files and names [] -> [Certificate { chain: \"a.pem\"",
        "service voice: proxy_protocol_from [] -> [192.0.2.0/24]",
        "service voice: origins [] -> [\"https://phone.example.com\"]",
        "service voice: sips_over_plain false -> true",
        "service voice: tls.client_certificate None -> Required",
        "pool pbx: udp_bytes_max 1300 -> 1400",
        "pool pbx: tls.pins [] -> [\"abababab",
        "backend pbx0: large_address None -> Some(\"tcp:192.0.2.1:5060\")",
    ] {
        assert!(diff.contains(part), "{part} in {diff}");
    }
    assert_eq!(diff.matches(" -> ").count(), 9, "{diff}");

    next.limits.connections_max = 16;
    next.limits.stream_buffers = 32;
    next.services[0].listen.push(Listen { transport: Transport::Tls, address: "192.0.2.254:5061".parse().unwrap() });
    let refusal = bench.control.apply_config(bench.now, next).unwrap_err().to_string();
    for part in ["connections_max 1024 -> 16", "stream_buffers 16 -> 32", "\"tls:192.0.2.254:5061\"]"] {
        assert!(refusal.contains(part), "{part} in {refusal}");
    }
}
