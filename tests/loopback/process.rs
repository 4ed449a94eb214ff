//! The process as its operator meets it: how it ends, how it refuses to start, what `explain` says.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::bed::local;
use crate::endpoint::{Endpoint, headers};
use crate::node::{Backend, Node, Setup, config_file, spawn, workers};
use crate::{Place, await_some, free_port};

fn setup(backends: &[(&str, u32)]) -> Setup {
    let named = |(name, weight): &(&str, u32)| Backend {
        name: (*name).to_owned(),
        address: local(free_port()),
        weight: *weight,
    };
    Setup {
        workers: workers(2),
        listen: vec![local(free_port())],
        backends: backends.iter().map(named).collect(),
        health: "probe = \"none\"",
    }
}

#[test]
fn sigterm_ends_an_idle_and_a_busy_process_within_3_seconds() {
    let place = Place::take("sigterm");
    let setup = setup(&[("pbx1", 100)]);
    let (status, time, _) = Node::start(place.folder(), &setup).stop();
    assert_eq!((status.code(), time < Duration::from_secs(3)), (Some(0), true), "idle: {status} after {time:?}");

    let node = Node::start(place.folder(), &setup);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let client = Endpoint::bind(local(0)).unwrap();
            let request = client.request("OPTIONS", "endless@client", setup.listen[0], b"");
            while !is_over.load(Ordering::Relaxed) {
                (0..20).for_each(|_| client.send(&request, setup.listen[0]));
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        std::thread::sleep(Duration::from_millis(500));
        let (status, time, report) = node.stop();
        is_over.store(true, Ordering::Relaxed);
        assert_eq!((status.code(), time < Duration::from_secs(3)), (Some(0), true), "busy: {status} after {time:?}");
        assert!(report.total("received_total") > 100, "{report:#?}");
    });
}

#[test]
fn process_that_is_started_again_at_once_gets_its_address_back() {
    let place = Place::take("restart");
    let setup = setup(&[("pbx1", 100)]);
    for _ in 0..8 {
        let (status, _, _) = Node::start(place.folder(), &setup).stop();
        assert!(status.success(), "{status}");
    }
    // A crash and what comes after it.
    drop(Node::start(place.folder(), &setup));
    drop(Node::start(place.folder(), &setup));
}

#[test]
fn second_process_on_one_address_refuses_to_start() {
    let place = Place::take("second");
    let setup = setup(&[("pbx1", 100)]);
    let first = Node::start(place.folder(), &setup);
    let mut second = spawn(place.folder(), "second");
    let status = await_some("the second process to end", Duration::from_secs(10), || second.try_wait().unwrap());
    let log = fs::read_to_string(place.folder().join("second.log")).unwrap();
    assert_eq!(status.code(), Some(1), "{log}");
    let expected = format!("cannot listen on udp:{}", setup.listen[0]);
    assert!(log.lines().any(|line| line.starts_with("error: ") && line.contains(&expected)), "{log}");
    assert!(log.contains("is another process there"), "{log}");
    assert!(first.stop().0.success(), "the first one is not disturbed");
}

#[test]
fn explain_tells_what_would_become_of_an_invite() {
    let place = Place::take("explain");
    let setup = setup(&[("pbx1", 0), ("pbx2", 100)]);
    let text = setup.text().replacen("[node]\n", "[node]\nsecret = \"6f1d0c9e25b84a7390e1c2d3f4a5b697\"\n", 1);
    fs::write(config_file(place.folder()), text).unwrap();
    let client = Endpoint::bind(local(0)).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_tandem"))
        .args(["explain", "-c"])
        .arg(config_file(place.folder()))
        .args(["--source", &client.address.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let invite = client.request("INVITE", "why@client", setup.listen[0], b"v=0\r\n");
    child.stdin.take().unwrap().write_all(&invite).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{text}"));
    assert!(line("key ").ends_with("of Call-ID why@client"), "{text}");
    assert!(line("owner ").contains("worker "), "{text}");
    assert_eq!(line("verdict "), "verdict    forward, decided by selection");
    assert_eq!(line("backend "), "backend    pbx2 of pool pbx, weight 100");
    let sent = line("sent ");
    assert!(sent.contains(&format!("from {} to udp:{}", setup.listen[0], setup.backends[1].address)), "{sent}");
    let out = &text.as_bytes()[text.find("\nINVITE ").expect("the bytes out") + 1..];
    assert!(sent.contains(&format!(" {} bytes ", out.len())), "{sent}");
    assert_eq!(headers(out, "Via").len(), 2, "{text}");
    assert_eq!(headers(out, "Max-Forwards"), ["69"]);
    assert_eq!(headers(out, "Record-Route").len(), 1, "{text}");
}

#[test]
fn ctl_asks_a_running_node_and_says_what_it_answers() {
    let place = Place::take("ctl");
    let setup = setup(&[("pbx1", 100), ("pbx2", 100)]);
    let text = setup.text().replacen("[node]\n", "[node]\ncontrol_socket = \"ctl.sock\"\n", 1);
    fs::write(config_file(place.folder()), &text).unwrap();
    let ctl = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tandem"));
        let output = command.arg("ctl").arg("-c").arg(config_file(place.folder())).args(words).output().unwrap();
        let is_good = output.status.success();
        (is_good, String::from_utf8(if is_good { output.stdout } else { output.stderr }).unwrap())
    };
    let (is_good, said) = ctl(&["status"]);
    assert!(!is_good && said.contains("does it run?"), "{said}");
    let node = Node::start_with(place.folder(), &text, setup.workers);
    let socket = place.folder().join("ctl.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(ctl(&["drain", "pbx1"]), (true, "pbx1: enabled -> drained\n".to_owned()));
    let (_, text) = ctl(&["status"]);
    assert!(text.lines().any(|l| l.starts_with("pbx1 ") && l.contains(" drained ")), "{text}");
    assert_eq!(ctl(&["reload"]), (true, "nothing changed\n".to_owned()));
    let (is_good, text) = ctl(&["report"]);
    assert!(is_good && text.contains("tandem_received_total{worker=\"0\"}"), "{text}");
    for (words, said) in [(&["drain", "pbx9"][..], "pbx9"), (&["explode"], "is not understood")] {
        let (is_good, text) = ctl(words);
        assert!(!is_good && text.contains(said), "{text}");
    }
    // Who connects and says nothing holds nobody up for long.
    let silent = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    assert!(ctl(&["status"]).0);
    drop(silent);
    let (status, _, _) = node.stop();
    assert!(status.success());
    assert!(!socket.exists(), "its file goes with it");
}
