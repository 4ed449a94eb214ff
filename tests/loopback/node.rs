//! `tandem run` as a child process: started with a file, told by signals, read by its log and its counters.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::{Place, await_some};

/// What a test configures.
#[derive(Clone, Debug)]
pub struct Setup {
    pub workers: usize,
    pub listen: Vec<SocketAddr>,
    pub backends: Vec<Backend>,
    /// The body of `[pool.health]`.
    pub health: &'static str,
}

#[derive(Clone, Debug)]
pub struct Backend {
    pub name: String,
    pub address: SocketAddr,
    pub weight: u32,
}

impl Setup {
    /// The configuration file. Each key has a line of its own, so that a test can break one.
    pub fn text(&self) -> String {
        let listen: Vec<String> = self.listen.iter().map(|address| format!("\"udp:{address}\"")).collect();
        let mut text = format!(
            "[node]\nname = \"loopback\"\nworkers = {}\n\n[[service]]\nname = \"voice\"\nlisten = [{}]\npool = \"pbx\"\n\n\
             [[pool]]\nname = \"pbx\"\n[pool.health]\n{}\n",
            self.workers,
            listen.join(", "),
            self.health
        );
        for Backend { name, address, weight } in &self.backends {
            text += &format!("\n[[pool.backend]]\nname = \"{name}\"\naddress = \"udp:{address}\"\nweight = {weight}\n");
        }
        text
    }
}

/// A service and the pool behind it, over any transports.
#[derive(Clone, Debug)]
pub struct Plan {
    pub name: &'static str,
    /// Addresses with their transport.
    pub listen: Vec<String>,
    /// More keys of the service, its `[service.tls]` last.
    pub service: String,
    /// More keys of the pool, its `[pool.tls]` last.
    pub pool: String,
    pub health: &'static str,
    /// Addresses with their transport.
    pub backends: Vec<String>,
    /// More keys of each backend.
    pub backend: &'static str,
}

impl Plan {
    pub fn new(listen: &[String], backends: &[String]) -> Plan {
        Plan {
            name: "voice",
            listen: listen.to_vec(),
            service: String::new(),
            pool: String::new(),
            health: "probe = \"none\"",
            backends: backends.to_vec(),
            backend: "",
        }
    }

    /// Its sections of the file.
    pub fn text(&self) -> String {
        let Plan { name, listen, service, pool, health, backends, backend } = self;
        let mut text = format!(
            "[[service]]\nname = \"{name}\"\npool = \"{name}\"\nlisten = {listen:?}\n{service}\n\
             [[pool]]\nname = \"{name}\"\n{pool}\n[pool.health]\n{health}\n"
        );
        for (index, address) in backends.iter().enumerate() {
            text += &format!("[[pool.backend]]\nname = \"{name}{}\"\naddress = \"{address}\"\n{backend}\n", index + 1);
        }
        text
    }

    /// Starts a node with two workers, where there are two cores; `more` are sections besides.
    pub fn start(&self, place: &Place, more: &str) -> Node {
        Node::start_with(place.folder(), &file(&[&self.text(), more]), workers(2))
    }
}

/// A configuration file for two workers, where there are two cores.
pub fn file(sections: &[&str]) -> String {
    format!("[node]\nname = \"loopback\"\nworkers = {}\n\n{}", workers(2), sections.join("\n"))
}

/// How many workers this machine can pin, up to `wanted`.
pub fn workers(wanted: usize) -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(wanted)
}

/// A running Tandem; killed when dropped.
pub struct Node {
    child: Child,
    folder: PathBuf,
    workers: usize,
}

impl Node {
    /// Starts it and waits until it serves.
    pub fn start(folder: &Path, setup: &Setup) -> Node {
        Node::start_with(folder, &setup.text(), setup.workers)
    }

    /// The same with a file of any kind, which asks for so many workers.
    pub fn start_with(folder: &Path, text: &str, workers: usize) -> Node {
        Node::start_limited(folder, text, workers, 0)
    }

    /// The same with a limit on open files; none with 0.
    pub fn start_limited(folder: &Path, text: &str, workers: usize, files_max: usize) -> Node {
        fs::write(config_file(folder), text).unwrap();
        let mut node = Node { child: spawn_limited(folder, "tandem", files_max), folder: folder.to_owned(), workers };
        await_some("tandem to serve", Duration::from_secs(20), || {
            let status = node.child.try_wait().unwrap();
            assert_eq!(status, None, "tandem ended at its start: {}", node.log());
            node.log().contains("serving").then_some(())
        });
        node
    }

    /// Writes another configuration; it counts from the next [`Node::signal`] `HUP` on.
    pub fn write_config(&self, text: &str) {
        fs::write(config_file(&self.folder), text).unwrap();
    }

    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// Its number.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Asks for the counters until they are as wanted.
    pub fn await_report(&self, what: &str, is_meant: impl Fn(&Report) -> bool) -> Report {
        await_some(what, Duration::from_secs(15), || Some(self.report()).filter(|report| is_meant(report)))
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("tandem.log")).unwrap_or_default()
    }

    /// Waits until the log from `start` on has a line with `words`; returns that line.
    pub fn await_log(&self, start: usize, words: &str) -> String {
        await_some(&format!("{words:?} in the log"), Duration::from_secs(15), || {
            self.log().get(start..)?.lines().find(|line| line.contains(words)).map(str::to_owned)
        })
    }

    /// Asks for the counters.
    pub fn report(&self) -> Report {
        let before = self.reports().0;
        self.signal("USR1");
        await_some("a report", Duration::from_secs(5), || {
            let (count, report) = self.reports();
            (count > before).then_some(report)
        })
    }

    /// Its resident memory, but for pages of files: those of code come as it is run.
    pub fn memory_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon of a live process");
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// How many whole reports there are, and the last one.
    fn reports(&self) -> (usize, Report) {
        let text = fs::read_to_string(self.folder.join("tandem.out")).unwrap_or_default();
        let end = format!("tandem_dwell_seconds{{worker=\"{}\",quantile=\"0.999\"}}", self.workers - 1);
        let count = text.matches(&end).count();
        let last = text.rfind("# HELP tandem_received_total").map_or("", |start| &text[start..]);
        let is_whole = last.contains(&end) && last.ends_with('\n');
        (if is_whole { count } else { 0 }, Report::read(last))
    }

    /// SIGTERM; returns how it ended, after how long, and the last report.
    pub fn stop(mut self) -> (ExitStatus, Duration, Report) {
        let told = Instant::now();
        self.signal("TERM");
        let status = await_some("tandem to end", Duration::from_secs(10), || self.child.try_wait().unwrap());
        (status, told.elapsed(), self.reports().1)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of tandem\n{}", self.log());
        }
    }
}

/// Where the configuration of the nodes in a folder is.
pub fn config_file(folder: &Path) -> PathBuf {
    folder.join("tandem.toml")
}

/// Starts `tandem run` with the folder's file; its output goes to `NAME.out` and `NAME.log`.
pub fn spawn(folder: &Path, name: &str) -> Child {
    spawn_limited(folder, name, 0)
}

fn spawn_limited(folder: &Path, name: &str, files_max: usize) -> Child {
    let file = |ending| File::create(folder.join(format!("{name}.{ending}"))).unwrap();
    let binary = env!("CARGO_BIN_EXE_tandem");
    let mut command = Command::new(if files_max > 0 { "prlimit" } else { binary });
    if files_max > 0 {
        command.args([&format!("--nofile={files_max}"), binary]);
    }
    command
        .args(["run", "--report", "-c"])
        .arg(config_file(folder))
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(file("out"))
        .stderr(file("log"))
        .spawn()
        .expect("the binary of this build")
}

/// Sends a signal to one process.
pub fn signal(process: u32, name: &str) {
    // The shell's own `kill`: there is one on every system.
    let status = Command::new("sh").args(["-c", &format!("kill -{name} {process}")]).status().unwrap();
    assert!(status.success(), "SIG{name} to process {process}");
}

/// Counters as the process prints them.
#[derive(Debug, Default)]
pub struct Report(Vec<(String, f64)>);

impl Report {
    fn read(text: &str) -> Report {
        let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
        Report(samples.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect())
    }

    /// The sum of the samples of `tandem_NAME` that carry `label`, such as `worker="0"`; all of them with `""`.
    pub fn sum(&self, name: &str, label: &str) -> u64 {
        let start = format!("tandem_{name}{{");
        let is_meant = |sample: &str| sample.starts_with(&start) && sample.contains(label);
        self.0.iter().filter(|(sample, _)| is_meant(sample)).map(|(_, value)| *value as u64).sum()
    }

    pub fn total(&self, name: &str) -> u64 {
        self.sum(name, "")
    }

    /// Datagrams whose outcome is counted.
    pub fn outcomes(&self) -> u64 {
        [
            "handed_over_total",
            "requests_forwarded_total",
            "responses_forwarded_total",
            "answered_total",
            "dropped_total",
        ]
        .map(|name| self.total(name))
        .iter()
        .sum()
    }

    /// Nothing is lost in silence: each datagram has one outcome, where it came in or at its owner.
    pub fn check_balance(&self) {
        let taken = self.total("received_total") + self.total("taken_over_total");
        assert_eq!(self.outcomes(), taken, "{self:#?}");
        assert_eq!(self.total("handed_over_total") - self.total("taken_over_total"), 0, "{self:#?}");
    }

    /// Nothing was shed on the way.
    pub fn check_nothing_shed(&self) {
        assert_eq!(self.sum("dropped_total", "reason=\"handover-full\""), 0, "{self:#?}");
        assert_eq!(self.total("kernel_drops_total") + self.total("sends_failed_total"), 0, "{self:#?}");
    }
}
