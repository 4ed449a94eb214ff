//! SIPp as caller and as backend, with the scenarios of bench-harness/sipp, and the traces and counts it leaves.

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::node::signal;
use crate::stunnel::is_listening;
use crate::{await_some, free_port};

/// One SIPp process; killed when dropped.
pub struct Sipp {
    child: Child,
    stem: PathBuf,
}

/// A load to put on a proxy.
pub struct Load<'a> {
    pub target: SocketAddr,
    pub calls: u32,
    /// Calls a second.
    pub rate: u32,
    /// Milliseconds between ACK and BYE.
    pub hold: u32,
    pub extra: &'a [&'a str],
}

impl Sipp {
    /// A server that takes calls; returns when its port is bound.
    pub fn backend(folder: &Path, name: &str, port: u16) -> Sipp {
        Sipp::server(folder, name, "uas", port)
    }

    /// A server with a scenario; returns when its port is bound.
    pub fn server(folder: &Path, name: &str, scenario: &str, port: u16) -> Sipp {
        Sipp::server_over(folder, name, scenario, port, false)
    }

    /// The same over UDP or TCP.
    pub fn server_over(folder: &Path, name: &str, scenario: &str, port: u16, is_tcp: bool) -> Sipp {
        let mut sipp = start(folder, name, scenario, port, if is_tcp { &["-t", "t1"] } else { &[] });
        await_some("SIPp to bind its port", Duration::from_secs(15), || {
            let status = sipp.child.try_wait().unwrap();
            assert_eq!(status, None, "SIPp ended at its start: {}", sipp.last_words());
            (if is_tcp { is_listening(port) } else { is_bound(port) }).then_some(())
        });
        sipp
    }

    /// A caller.
    pub fn caller(folder: &Path, name: &str, load: &Load<'_>) -> Sipp {
        let Load { target, calls, rate, hold, extra } = load;
        let [target, calls, rate, hold] = [target.to_string(), calls.to_string(), rate.to_string(), hold.to_string()];
        let mut arguments = vec![&*target, "-m", &calls, "-r", &rate, "-d", &hold, "-s", "bob", "-l", "10000"];
        arguments.extend_from_slice(extra);
        start(folder, name, "uac", free_port(), &arguments)
    }

    /// Waits until it has made all its calls.
    pub fn finish(&mut self, max: Duration) -> ExitStatus {
        await_some("SIPp to finish", max, || self.child.try_wait().unwrap())
    }

    /// SIGKILL, as a crash.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Lets it end its calls; it writes its counts at its end.
    pub fn end(&mut self) -> Counts {
        if self.child.try_wait().unwrap().is_none() {
            signal(self.child.id(), "USR1");
            self.finish(Duration::from_secs(15));
        }
        self.counts()
    }

    /// The last line of its statistics.
    pub fn counts(&self) -> Counts {
        let text = fs::read_to_string(self.stem.with_extension("csv")).unwrap_or_default();
        let mut lines = text.lines();
        let head = lines.next().unwrap_or_default().split(';');
        let last = lines.next_back().unwrap_or_default().split(';');
        Counts(head.zip(last).map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    /// Every message that it sent and received so far.
    pub fn trace(&self) -> Vec<Traced> {
        let text = fs::read(self.stem.with_extension("short")).unwrap_or_default();
        String::from_utf8_lossy(&text).lines().filter_map(Traced::read).collect()
    }

    fn last_words(&self) -> String {
        ["errors", "out"]
            .map(|ending| fs::read_to_string(self.stem.with_extension(ending)).unwrap_or_default())
            .concat()
    }
}

impl Drop for Sipp {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {}: {:.2000}", self.stem.display(), self.last_words());
        }
    }
}

fn start(folder: &Path, name: &str, scenario: &str, port: u16, arguments: &[&str]) -> Sipp {
    let stem = folder.join(name);
    let scenario = format!(concat!(env!("CARGO_MANIFEST_DIR"), "/bench-harness/sipp/{}.xml"), scenario);
    let [port, control, media] = [port, free_port(), free_port()].map(|port| port.to_string());
    let file = |ending: &str| stem.with_extension(ending);
    let out = fs::File::create(file("out")).unwrap();
    let child = Command::new("sipp")
        .args(["-sf", &scenario, "-i", "127.0.0.1", "-bind_local", "-p", &port, "-cp", &control, "-mp", &media])
        .args(["-nostdin", "-buff_size", "4194304", "-trace_err", "-error_file"])
        .arg(file("errors"))
        .args(["-trace_shortmsg", "-shortmessage_file"])
        .arg(file("short"))
        .args(["-trace_stat", "-fd", "1", "-stf"])
        .arg(file("csv"))
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(out.try_clone().unwrap())
        .stderr(out)
        .spawn()
        .expect("SIPp starts; it is in Debian's package sip-tester, which tests/run installs");
    Sipp { child, stem }
}

fn is_bound(port: u16) -> bool {
    let table = fs::read_to_string("/proc/net/udp").unwrap();
    table
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1))
        .any(|local| local.ends_with(&format!(":{port:04X}")))
}

/// SIPp's statistics by the name of the column.
#[derive(Debug)]
pub struct Counts(HashMap<String, String>);

impl Counts {
    pub fn of(&self, column: &str) -> u64 {
        self.0.get(column).and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {column} in {self:?}"))
    }

    pub fn successful(&self) -> u64 {
        self.of("SuccessfulCall(C)")
    }

    pub fn failed(&self) -> u64 {
        self.of("FailedCall(C)")
    }

    /// Messages that no scenario expected.
    pub fn unexpected(&self) -> u64 {
        ["FailedUnexpectedMessage(C)", "OutOfCallMsgs(C)", "DeadCallMsgs(C)"].map(|column| self.of(column)).iter().sum()
    }
}

/// A line of SIPp's short message trace.
#[derive(Clone, Debug)]
pub struct Traced {
    /// Seconds since 1970.
    pub at: f64,
    pub is_received: bool,
    pub call_id: String,
    /// Of the CSeq.
    pub method: String,
    /// Of the status line, when it is a response.
    pub status: Option<u16>,
}

impl Traced {
    /// Reads `date TAB time TAB seconds TAB R|S TAB call-id TAB CSeq:1 INVITE TAB first line`.
    fn read(line: &str) -> Option<Traced> {
        let mut columns = line.split('\t').skip(2);
        let mut next = || columns.next();
        let (at, direction, call_id, cseq, first) = (next()?, next()?, next()?, next()?, next()?);
        Some(Traced {
            at: at.parse().ok()?,
            is_received: direction == "R",
            call_id: call_id.to_owned(),
            method: cseq.split_whitespace().nth(1)?.to_owned(),
            status: first.strip_prefix("SIP/2.0 ").and_then(|rest| rest.get(..3)?.parse().ok()),
        })
    }

    /// Is it a request of this method that was received?
    pub fn is_incoming(&self, method: &str) -> bool {
        self.is_received && self.status.is_none() && self.method == method
    }
}
