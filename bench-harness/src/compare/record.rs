//! Writes a comparison where it can be found again: `perf/record/<date>-<host>-<sha>/`.
//!
//! `compare.json` holds every round, `compare.txt` the table, `README.SETUP` the machine, the versions and the command
//! line. Nothing in them names a path of the machine: arguments that are paths are cut to their last part.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::Serialize;

use super::arm::{Arm, Bench};
use super::summary::{Line, Measurement};
use crate::proc_fs;
use crate::transport::Transport;

const TLS_NOTE: &str = "\nTLS is 1.3 with AES-256-GCM and an ECDSA P-256 certificate, for all arms alike; handshakes are over \
    before the\nwarm-up. The bare forwarder passes ciphertext on and neither decrypts nor encrypts.";

/// The circumstances of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Setup {
    /// UTC, `YYYY-MM-DD`.
    pub date: String,
    /// Host name.
    pub host: String,
    /// Kernel name and release.
    pub kernel: String,
    /// CPU model.
    pub cpu: String,
    /// Cores that the process may use.
    pub cores: usize,
    /// Commit, with `-changed` when the working tree had changes.
    pub commit: String,
    /// What callers speak.
    pub transport: Transport,
    /// How many they are.
    pub callers: usize,
    /// What backends speak.
    pub backend_transport: Transport,
    /// The command line.
    pub command: String,
    /// Version of each arm.
    pub versions: Vec<(Arm, String)>,
}

impl Setup {
    /// Looks around; `root` is the repository.
    pub fn new(root: &Path, bench: &Bench, arms: &[Arm], callers: usize) -> Setup {
        let days = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() / 86_400);
        let git = |arguments: &[&str]| {
            let output = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let commit = git(&["rev-parse", "--short=10", "HEAD"]).unwrap_or_else(|| "unknown".into());
        let is_changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|text| !text.is_empty());
        Setup {
            date: civil_date(days),
            host: proc_fs::host(),
            kernel: proc_fs::kernel(),
            cpu: proc_fs::cpu_model().unwrap_or_else(|| "unknown".into()),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            commit: if is_changed { format!("{commit}-changed") } else { commit },
            transport: bench.transport,
            callers,
            backend_transport: bench.backend_transport,
            command: command_line(std::env::args().skip(1)),
            versions: arms.iter().map(|&arm| (arm, bench.version(arm))).collect(),
        }
    }

    fn readme(&self) -> String {
        let versions: String =
            self.versions.iter().map(|(arm, version)| format!("{:<12}{version}\n", arm.name())).collect();
        let has_tls = [self.transport, self.backend_transport].contains(&Transport::Tls);
        let tls = if has_tls { TLS_NOTE } else { "" };
        format!(
            "date        {}\nhost        {}\nkernel      {}\ncpu         {} ({} cores)\ncommit      {}\n{versions}\
             transport   {} from {} callers, {} to backends\n\
             command     {}\n\n\
             CPU time is that of each proxy's whole process group over the measuring window (process CPU clocks, ns);\n\
             messages are those that the generator received in the window. Proxy and generator have a core each;\n\
             what is sent over loopback is delivered in the sender's context, for all arms alike.{tls}\n",
            self.date,
            self.host,
            self.kernel,
            self.cpu,
            self.cores,
            self.commit,
            self.transport,
            self.callers,
            self.backend_transport,
            self.command
        )
    }
}

#[derive(Serialize)]
struct Everything<'a> {
    setup: &'a Setup,
    summary: &'a [Line],
    measurements: &'a [Measurement],
}

/// Writes the record under `directory` and returns its name; a second one of the same day and commit gets a number.
///
/// # Errors
/// When a file cannot be written.
pub fn write(directory: &Path, setup: &Setup, lines: &[Line], all: &[Measurement], table: &str) -> Result<PathBuf> {
    let name = format!("{}-{}-{}", setup.date, setup.host, setup.commit);
    let free = (1..).map(|n| directory.join(if n == 1 { name.clone() } else { format!("{name}-{n}") }));
    let place = free.into_iter().find(|path| !path.exists()).context("no free name for the record")?;
    fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
    let json = serde_json::to_string_pretty(&Everything { setup, summary: lines, measurements: all })?;
    for (file, text) in [("compare.json", &json), ("compare.txt", &table.to_owned()), ("README.SETUP", &setup.readme())]
    {
        fs::write(place.join(file), text).with_context(|| format!("cannot write {file}"))?;
    }
    Ok(place)
}

/// The command as somebody else would type it.
fn command_line(arguments: impl Iterator<Item = String>) -> String {
    let shown = arguments.map(|argument| match argument.rsplit_once('/') {
        Some((_, last)) => format!(".../{last}"),
        None => argument,
    });
    format!("cargo run --release -p bench-harness -- {}", shown.collect::<Vec<_>>().join(" "))
}

/// The date of a day counted from 1970-01-01 (Howard Hinnant's days-to-civil algorithm).
fn civil_date(days: u64) -> String {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_match_the_calendar() {
        assert_eq!(civil_date(0), "1970-01-01");
        assert_eq!(civil_date(11_016), "2000-02-29");
        assert_eq!(civil_date(20_779), "2026-11-22");
    }

    #[test]
    fn command_line_names_no_directory() {
        let arguments = ["compare", "--tandem", "/some/where/tandem"].map(String::from);
        let shown = command_line(arguments.into_iter());
        assert_eq!(shown, "cargo run --release -p bench-harness -- compare --tandem .../tandem");
    }
}
