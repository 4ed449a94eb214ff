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

use crate::certificates::Files;
use crate::transport::{self, Transport, Wires};
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
    /// What callers speak to every arm.
    pub transport: Transport,
    /// What every arm speaks to backends.
    pub backend_transport: Transport,
    /// What arms and backends show where TLS is spoken, and who signed it.
    pub certificates: Option<Files>,
}

impl Bench {
    /// Checks that `arm` can be run, before the first measurement.
    ///
    /// # Errors
    /// With what to install or build.
    pub fn check(&self, arm: Arm) -> Result<()> {
        match arm {
            Arm::Bare if self.transport != self.backend_transport => {
                bail!("the bare forwarder speaks alike on both sides: leave it out (--arms tandem,kamailio)")
            }
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

    /// How the generator reaches both sides of every arm.
    ///
    /// # Errors
    /// When certificates cannot be read.
    pub fn wires(&self) -> Result<Wires> {
        let files = self.certificates.as_ref();
        Ok(Wires {
            callers: self.transport,
            backends: self.backend_transport,
            tls_client: files.map(|files| transport::tls_client_from(&files.ca)).transpose()?,
            tls_server: files.map(|files| transport::tls_server_from(&files.chain, &files.key)).transpose()?,
        })
    }

    /// What an arm listens for: callers, and, where that differs, what backends answer on.
    fn listens(&self) -> Vec<Transport> {
        let mut all = vec![self.transport, self.backend_transport];
        all.dedup();
        all
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
        running.wait_until_bound(listen, self.transport).with_context(|| {
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
                command.args(["forward", "--transport", self.transport.name(), "--listen", &listen.to_string()]);
                command.arg("--backends").arg(join(&|backend| backend.to_string(), ","));
            }
            Arm::Tandem => {
                let text = self.tandem_toml(listen, backends);
                command.args(["run", "-c"]).arg(self.write("tandem.toml", &text)?);
            }
            Arm::Kamailio | Arm::KamailioTm => {
                let (template, shared) = match arm {
                    Arm::KamailioTm => (include_str!("../../peers/kam_tm.cfg"), "2048"),
                    _ => (include_str!("../../peers/kam_sl.cfg"), "512"),
                };
                let transport = self.backend_transport;
                let list = join(&|backend| format!("1 sip:{backend};transport={transport} 0 0 weight=50\n"), "");
                let list = self.write("dispatcher.list", &list)?;
                let text = self.kamailio_cfg(template, listen, &list);
                command.arg("-DD").arg("-E").arg("-f").arg(self.write("kamailio.cfg", &text)?);
                command.args(["-m", shared, "-M", "64", "-x", "fm", "-X", "fm", "-b", "4194304"]);
                let defines = [
                    ("WITH_STREAMS", self.listens().iter().any(|transport| transport.is_stream())),
                    ("WITH_TLS", self.certificates.is_some()),
                ];
                for (define, _) in defines.iter().filter(|(_, is_set)| *is_set) {
                    command.args(["-A", define]);
                }
            }
        }
        Ok(command)
    }

    fn tandem_toml(&self, listen: SocketAddr, backends: &[SocketAddr]) -> String {
        let listens = self.listens().iter().map(|t| format!("\"{t}:{listen}\"")).collect::<Vec<_>>().join(", ");
        let backend = |backend: &SocketAddr| {
            let (port, transport) = (backend.port(), self.backend_transport);
            format!("[[pool.backend]]\nname = \"b{port}\"\naddress = \"{transport}:{backend}\"\n")
        };
        let certificate = self.certificates.as_ref().map_or(String::new(), |files| {
            format!("[[certificate]]\nchain = \"{}\"\nkey = \"{}\"\n", files.chain.display(), files.key.display())
        });
        include_str!("../../peers/tandem.toml")
            .replace("@WORKER_CORE@", &self.proxy_core.to_string())
            .replace("@CONTROL_CORE@", &self.generator_core.to_string())
            .replace("@CERTIFICATE@\n", &certificate)
            .replace("@LISTEN@", &listens)
            .replace("@BACKENDS@\n", &backends.iter().map(backend).collect::<String>())
    }

    fn kamailio_cfg(&self, template: &str, listen: SocketAddr, list: &Path) -> String {
        let listens: Vec<String> = self.listens().iter().map(|t| format!("listen={t}:{listen}")).collect();
        let (chain, key) = self.certificates.as_ref().map_or_else(Default::default, |files| {
            (files.chain.to_string_lossy().into_owned(), files.key.to_string_lossy().into_owned())
        });
        template
            .replace("@LISTEN@", &listens.join("\n"))
            .replace("@DISPATCHER@", &list.to_string_lossy())
            .replace("@CHAIN@", &chain)
            .replace("@KEY@", &key)
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

    fn wait_until_bound(&mut self, listen: SocketAddr, transport: Transport) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(15);
        let is_bound = if transport.is_stream() { proc_fs::is_tcp_listening } else { proc_fs::is_udp_bound };
        while !is_bound(listen) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_have_no_gaps_and_speak_what_is_compared() {
        let (listen, backends) =
            ("127.0.0.1:5060".parse().expect("address"), ["127.0.0.1:7001".parse().expect("address")]);
        let at = |name: &str| PathBuf::from("/dir").join(name);
        let files = Files {
            ca: at("ca"),
            chain: at("chain"),
            key: at("key"),
            client_chain: at("client"),
            client_key: at("client-key"),
        };
        use Transport::{Tcp, Tls, Udp};
        for (transport, backend_transport) in [(Udp, Udp), (Tcp, Tcp), (Tls, Tls), (Tcp, Udp), (Udp, Tls)] {
            let has_tls = [transport, backend_transport].contains(&Tls);
            let bench = Bench {
                tandem: PathBuf::new(),
                scratch: PathBuf::new(),
                proxy_core: 0,
                generator_core: 1,
                transport,
                backend_transport,
                certificates: has_tls.then(|| files.clone()),
            };
            let toml = bench.tandem_toml(listen, &backends);
            let cfg = bench.kamailio_cfg(include_str!("../../peers/kam_sl.cfg"), listen, Path::new("/dir/list"));
            assert!(!toml.contains('@') && !cfg.contains('@'), "{toml}\n{cfg}");
            assert!(toml.contains(&format!("address = \"{backend_transport}:127.0.0.1:7001\"")), "{toml}");
            assert_eq!(toml.contains("chain = \"/dir/chain\""), has_tls, "{toml}");
            for spoken in [transport, backend_transport] {
                assert!(toml.contains(&format!("\"{spoken}:127.0.0.1:5060\"")), "{toml}");
                assert!(cfg.contains(&format!("listen={spoken}:127.0.0.1:5060\n")), "{cfg}");
            }
        }
    }
}
