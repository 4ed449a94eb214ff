//! The proxies that are compared: how each is configured, started, watched and ended.
//!
//! Every arm is a process group of its own. [`Running`] ends that group when it is dropped, whatever the reason; if
//! the harness itself is killed, the kernel sends the leader SIGTERM. Configurations come from `peers/`, so that what
//! was compared can be read there.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::Serialize;

use crate::{proc_fs, sys};

/// A proxy under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Arm {
    /// The bare forwarder of this harness.
    Bare,
    /// Tandem with one worker.
    Tandem,
    /// Kamailio: dispatcher and Record-Route, stateless, one child.
    Kamailio,
    /// Kamailio with transactions (`tm`), one child.
    KamailioTm,
}

impl Arm {
    /// Its name in tables and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Arm::Bare => "bare",
            Arm::Tandem => "tandem",
            Arm::Kamailio => "kamailio",
            Arm::KamailioTm => "kamailio-tm",
        }
    }
}

/// What all arms of one run share.
pub struct Bench {
    /// Tandem's binary.
    pub tandem: PathBuf,
    /// Where configurations and logs of the run go.
    pub scratch: PathBuf,
    /// The core of the proxy.
    pub proxy_core: usize,
    /// The core of the generator, and of Tandem's control thread.
    pub generator_core: usize,
}

impl Bench {
    /// Checks that `arm` can be run, before the first measurement.
    ///
    /// # Errors
    /// With what to install or build.
    pub fn check(&self, arm: Arm) -> Result<()> {
        match arm {
            Arm::Bare => {}
            Arm::Tandem if !self.tandem.is_file() => {
                bail!(
                    "no Tandem binary: build it (cargo build --release), name it (--tandem PATH), or leave it out (--arms)"
                )
            }
            Arm::Tandem => {}
            Arm::Kamailio | Arm::KamailioTm if first_line(Path::new("kamailio"), "-v").is_none() => {
                bail!(
                    "Kamailio is missing: install it (apt-get install kamailio), or leave it out (--arms bare,tandem)"
                )
            }
            Arm::Kamailio | Arm::KamailioTm => {}
        }
        Ok(())
    }

    /// The version that `arm` reports.
    pub fn version(&self, arm: Arm) -> String {
        let line = match arm {
            Arm::Bare => Some(format!("bench-harness {}", env!("CARGO_PKG_VERSION"))),
            Arm::Tandem => first_line(&self.tandem, "--version"),
            Arm::Kamailio | Arm::KamailioTm => first_line(Path::new("kamailio"), "-v"),
        };
        line.unwrap_or_else(|| "unknown".into())
    }

    /// Starts `arm` on `listen`, forwarding to `backends`, and waits until its socket is bound.
    ///
    /// # Errors
    /// When it does not start or ends at once; with the end of its output.
    pub fn start(&self, arm: Arm, listen: SocketAddr, backends: &[SocketAddr]) -> Result<Running> {
        let mut command = self.command(arm, listen, backends)?;
        let log = self.scratch.join(format!("{}.log", arm.name()));
        let output = File::create(&log).with_context(|| format!("cannot write the log of {}", arm.name()))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // Tandem places its threads itself; the others stay where they are put, with all their children.
        let cores = [self.proxy_core, self.generator_core];
        sys::isolate(&mut command, if arm == Arm::Tandem { &cores } else { &cores[..1] });
        let child = command.spawn().with_context(|| format!("cannot start {}", arm.name()))?;
        let mut running = Running { child };
        running.wait_until_bound(listen).with_context(|| {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let tail: Vec<&str> = text.lines().rev().take(5).collect();
            format!("{} did not start: {}", arm.name(), tail.into_iter().rev().collect::<Vec<_>>().join(" | "))
        })?;
        Ok(running)
    }

    fn command(&self, arm: Arm, listen: SocketAddr, backends: &[SocketAddr]) -> Result<Command> {
        let join = |each: &dyn Fn(&SocketAddr) -> String, by| backends.iter().map(each).collect::<Vec<_>>().join(by);
        let mut command = match arm {
            Arm::Bare => Command::new(std::env::current_exe()?),
            Arm::Tandem => Command::new(&self.tandem),
            Arm::Kamailio | Arm::KamailioTm => Command::new("kamailio"),
        };
        match arm {
            Arm::Bare => {
                command.args(["forward", "--listen", &listen.to_string(), "--backends"]);
                command.arg(join(&|backend| backend.to_string(), ","));
            }
            Arm::Tandem => {
                let backend = |backend: &SocketAddr| {
                    format!("[[pool.backend]]\nname = \"b{0}\"\naddress = \"udp:{backend}\"\n", backend.port())
                };
                let text = include_str!("../../peers/tandem.toml")
                    .replace("@WORKER_CORE@", &self.proxy_core.to_string())
                    .replace("@CONTROL_CORE@", &self.generator_core.to_string())
                    .replace("@LISTEN@", &listen.to_string())
                    .replace("@BACKENDS@", &join(&backend, ""));
                command.args(["run", "-c"]).arg(self.write("tandem.toml", &text)?);
            }
            Arm::Kamailio | Arm::KamailioTm => {
                let list = join(&|backend| format!("1 sip:{backend} 0 0 weight=50\n"), "");
                let list = self.write("dispatcher.list", &list)?;
                let (template, shared) = match arm {
                    Arm::KamailioTm => (include_str!("../../peers/kam_tm.cfg"), "2048"),
                    _ => (include_str!("../../peers/kam_sl.cfg"), "512"),
                };
                let text =
                    template.replace("@LISTEN@", &listen.to_string()).replace("@DISPATCHER@", &list.to_string_lossy());
                command.arg("-DD").arg("-E").arg("-f").arg(self.write("kamailio.cfg", &text)?);
                command.args(["-m", shared, "-M", "64", "-x", "fm", "-X", "fm", "-b", "4194304"]);
            }
        }
        Ok(command)
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.scratch.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {name} to the temporary directory"))?;
        Ok(path)
    }
}

fn first_line(program: &Path, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(text.lines().next().unwrap_or("unknown").trim().to_owned())
}

/// CPU time that an arm has used so far.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    /// All its processes and threads, in ns.
    pub cpu_ns: u64,
    /// User part, in clock ticks' grain.
    pub user: Duration,
    /// System part, in clock ticks' grain.
    pub system: Duration,
    /// The processes that were counted.
    pub pids: Vec<u32>,
}

/// A started arm; dropped, it is ended.
pub struct Running {
    child: Child,
}

impl Running {
    /// CPU time of the whole process group so far.
    pub fn usage(&self) -> Usage {
        let mut usage = Usage { pids: proc_fs::group_members(self.child.id()), ..Usage::default() };
        for &pid in &usage.pids {
            usage.cpu_ns += sys::cpu_time(pid).map_or(0, |time| time.as_nanos() as u64);
            let split = proc_fs::split_time(pid);
            usage.user += split.user;
            usage.system += split.system;
        }
        usage
    }

    fn wait_until_bound(&mut self, listen: SocketAddr) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(15);
        while !proc_fs::is_udp_bound(listen) {
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended with {status}");
            }
            if Instant::now() > deadline || sys::stop_requested() {
                bail!("its socket was not bound in time");
            }
            sys::pause(Duration::from_millis(20));
        }
        // Bound is not yet receiving: children are forked and rings are filled after that.
        sys::pause(Duration::from_millis(400));
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let leader = self.child.id();
        sys::signal_group(leader, libc::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(3);
        while Instant::now() < deadline && !matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
            sys::pause(Duration::from_millis(10));
        }
        sys::signal_group(leader, libc::SIGKILL);
        // An error here means that the child is gone already.
        let _ = self.child.wait();
    }
}
