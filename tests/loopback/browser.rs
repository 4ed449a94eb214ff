//! A browser phone on the real binary: SIP.js over WebSocket, plain and secure, with a SIPp registrar behind Tandem.
//!
//! The client is in tests/web_socket_client and is installed into `target/` with `npm ci`, once for each version of its
//! lock file. It is somebody else's SIP and somebody else's WebSocket; it speaks by events, one a line.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bench_harness::certificates;

use crate::bed::local;
use crate::node::{Node, workers};
use crate::sipp::Sipp;
use crate::{Place, await_some, free_port};

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/web_socket_client");

const ORIGIN: &str = "https://phone.example.com";

/// Tandem with both kinds of WebSocket in front of one registrar.
struct Office {
    node: Node,
    registrar: Sipp,
    place: Place,
    client: PathBuf,
    ca: PathBuf,
    ws: SocketAddr,
    wss: SocketAddr,
}

impl Office {
    fn open(name: &str) -> Office {
        let place = Place::take(name);
        let client = install_client();
        let folder = place.folder();
        let files = certificates::write_files(folder, &["127.0.0.1", "localhost"]).unwrap();
        let [udp, ws, wss, backend] = [(); 4].map(|()| local(free_port()));
        let registrar = Sipp::server(folder, "registrar", "registrar", backend.port());
        let workers = workers(2);
        let config = format!(
            "[node]\nname = \"browser\"\nworkers = {workers}\n\n[[certificate]]\nchain = {:?}\nkey = {:?}\n\n\
             [[service]]\nname = \"voice\"\nlisten = [\"udp:{udp}\", \"ws:{ws}\", \"wss:{wss}\"]\npool = \"pbx\"\n\
             origins = [\"{ORIGIN}\"]\n\n[[pool]]\nname = \"pbx\"\n[pool.health]\nprobe = \"none\"\n\
             [[pool.backend]]\nname = \"pbx1\"\naddress = \"udp:{backend}\"\n",
            files.chain, files.key
        );
        let node = Node::start_with(folder, &config, workers);
        Office { node, registrar, client, ca: files.ca, ws, wss, place }
    }

    /// Starts a client, which calls `callee`.
    fn phone(&self, url: &str, origin: &str, callee: &str) -> Phone {
        let folder = self.place.folder();
        let file = |ending: &str| fs::File::create(folder.join(format!("{callee}.{ending}"))).unwrap();
        let child = Command::new("node")
            .arg("client.mjs")
            .args([url, origin, callee])
            .current_dir(&self.client)
            .env("NODE_EXTRA_CA_CERTS", &self.ca)
            .stdin(Stdio::null())
            .stdout(file("out"))
            .stderr(file("errors"))
            .spawn()
            .unwrap_or_else(|error| panic!("node: {error}; it is in Debian's package nodejs (tests/packages.txt)"));
        Phone { child, stem: folder.join(callee) }
    }

    fn ws_url(&self) -> String {
        format!("ws://{}", self.ws)
    }

    /// By a name of the certificate.
    fn wss_url(&self) -> String {
        format!("wss://localhost:{}", self.wss.port())
    }
}

/// A running client; killed when dropped.
struct Phone {
    child: Child,
    stem: PathBuf,
}

impl Phone {
    /// Waits for its end: whether all went well, what it did, what it complained of.
    fn finish(mut self) -> (bool, Vec<String>, String) {
        let status = await_some("the client to end", Duration::from_secs(30), || self.child.try_wait().unwrap());
        let read = |ending: &str| fs::read_to_string(self.stem.with_extension(ending)).unwrap_or_default();
        (status.success(), read("out").lines().map(str::to_owned).collect(), read("errors"))
    }

    /// Waits for its end; it has registered twice, made a call that `by` ended, and unregistered.
    fn check_call(self, by: &str) {
        let (is_well, steps, errors) = self.finish();
        let expected = [
            "connected sip",
            "registered 200 Registered",
            "registered again 200 Registered",
            "progress 180",
            "established v=0",
            &format!("ended by {by}"),
            "unregistered",
            "closed",
        ];
        let steps: Vec<&str> =
            steps.iter().map(String::as_str).filter(|step| !step.starts_with("keep-alives")).collect();
        assert!(is_well && steps == expected, "{steps:#?}\n{errors}");
    }
}

impl Drop for Phone {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The client with its libraries, in a folder of its own for each lock file.
fn install_client() -> PathBuf {
    let lock = fs::read(Path::new(SOURCE).join("package-lock.json")).unwrap();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("web_socket_client");
    fs::create_dir_all(&folder).unwrap();
    for name in ["package.json", "package-lock.json", "client.mjs"] {
        fs::copy(Path::new(SOURCE).join(name), folder.join(name)).unwrap();
    }
    let is_installed = folder.join("installed.json");
    if fs::read(&is_installed).is_ok_and(|installed| installed == lock) {
        return folder;
    }
    let output = Command::new("npm")
        .args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"])
        .current_dir(&folder)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("npm: {error}; it is in Debian's package npm (tests/packages.txt)"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "`npm ci` in {} failed, which needs the npm registry: {errors}", folder.display());
    fs::write(is_installed, lock).unwrap();
    folder
}

/// Two calls at a time, one ended by either side, each with 3 challenged REGISTER around it.
fn check_calls(office: Office, url: &str) {
    let [ours, theirs] = ["bob", "hangup"].map(|callee| office.phone(url, ORIGIN, callee));
    ours.check_call("us");
    theirs.check_call("the callee");
    let Office { node, mut registrar, place: _place, .. } = office;
    // It ends with its last calls, which is when the clients have gone.
    let counts = registrar.end();
    assert_eq!((counts.failed(), counts.unexpected()), (0, 0), "{counts:?}");
    let seen = ["challenge", "register", "invite", "ack", "bye", "own_bye", "own_bye_answered"];
    assert_eq!(seen.map(|name| counts.of(&format!("{name}(C)"))), [6, 6, 2, 2, 1, 1, 1], "{counts:?}");

    let report = node.report();
    assert_eq!(report.total("connections_accepted_total"), 2, "{report:#?}");
    assert_eq!(report.total("connections"), 0, "both have closed: {report:#?}");
    for name in ["connections_broken_total", "connections_timed_out_total", "handshakes_failed_total"] {
        assert_eq!(report.total(name), 0, "{name}: {report:#?}");
    }
    // 12 REGISTER, 2 INVITE, 2 ACK, 2 BYE; 12 answers to REGISTER, 100, 180 and 200 of each call, 2 to BYE.
    assert_eq!(report.total("requests_forwarded_total"), 18, "{report:#?}");
    assert_eq!(report.total("responses_forwarded_total"), 20, "{report:#?}");
    assert_eq!(report.total("routed_by_cookie_total"), 4, "ACK and BYE: {report:#?}");
    assert_eq!(report.total("undeliverable_total") + report.total("answered_total"), 0, "{report:#?}");
    report.check_balance();
    report.check_nothing_shed();
    let (status, _, _) = node.stop();
    assert!(status.success(), "{status}");
}

#[test]
fn browser_phone_registers_and_calls_over_wss() {
    let office = Office::open("wss");
    let url = office.wss_url();
    check_calls(office, &url);
}

#[test]
fn browser_phone_registers_and_calls_over_ws() {
    let office = Office::open("ws");
    let url = office.ws_url();
    check_calls(office, &url);
}

#[test]
fn browser_phone_on_a_page_that_is_not_allowed_is_turned_away() {
    let office = Office::open("origin");
    for url in [office.wss_url(), office.ws_url()] {
        let (is_well, steps, errors) = office.phone(&url, "https://phone.example.net", "bob").finish();
        assert!(!is_well && steps.is_empty() && errors.contains("server response: 403"), "{steps:?} {errors}");
    }
    let report = office.node.report();
    assert_eq!(report.total("handshakes_failed_total"), 2, "{report:#?}");
    assert_eq!(report.total("received_total"), 0, "{report:#?}");
}
