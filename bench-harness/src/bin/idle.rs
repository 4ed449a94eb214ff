//! `idle`: opens many connections to a proxy, holds them, and asks each whether it still lives.
//!
//! Exits 0 when every connection came about, lasted and answered, 1 when one did not, 2 when the run could not be made.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use bench_harness::idle::{self, Options, Target};
use bench_harness::{sys, transport};
use clap::Parser;

/// Memory and CPU time of a proxy with many idle connections.
#[derive(Parser)]
struct Arguments {
    /// What to connect to, over tcp, tls, ws or wss: tls:127.0.0.1:5061.
    #[arg(long)]
    target: Target,
    /// How many connections.
    #[arg(long, default_value_t = 1000)]
    connections: usize,
    /// Addresses that they come from, in turn: one, or an IPv4 range such as 127.0.0.1-127.0.0.20.
    #[arg(long)]
    sources: Option<String>,
    /// Connections begun a second.
    #[arg(long, default_value_t = 500.0)]
    rate: f64,
    /// Connections that are opening at once.
    #[arg(long, default_value_t = 128)]
    opening: usize,
    /// Seconds of idleness.
    #[arg(long, default_value_t = 60.0)]
    hold: f64,
    /// Milliseconds that a handshake may take, and an answer.
    #[arg(long, default_value_t = 10_000)]
    timeout: u64,
    /// The authorities of a tls or wss target, in PEM.
    #[arg(long)]
    ca: Option<PathBuf>,
    /// The target's process, whose memory and CPU time are measured.
    #[arg(long)]
    pid: Option<u32>,
    /// Answer OPTIONS here, over UDP, as the target's backend.
    #[arg(long)]
    backend: Option<SocketAddr>,
    /// Print one JSON object instead of lines for people.
    #[arg(long)]
    json: bool,
}

impl Arguments {
    fn options(&self) -> anyhow::Result<Options> {
        ensure!(self.rate > 0.0 && self.opening > 0, "--rate and --opening are more than 0");
        ensure!(self.connections > 0 && self.connections <= 1 << 20, "--connections: 1 to {}", 1 << 20);
        ensure!(!self.target.is_secure || self.ca.is_some(), "--ca FILE: who signed the target's certificate?");
        Ok(Options {
            target: self.target,
            connections: self.connections,
            sources: self.sources.as_deref().map_or(Ok(Vec::new()), addresses)?,
            rate: self.rate,
            opening_max: self.opening,
            hold: Duration::try_from_secs_f64(self.hold).context("--hold")?,
            timeout: Duration::from_millis(self.timeout),
            tls_client: self.ca.as_deref().map(transport::tls_client_from).transpose()?,
            pid: self.pid,
            backend: self.backend,
        })
    }
}

/// Reads `127.0.0.1-127.0.0.20`, or one address of either family.
fn addresses(text: &str) -> anyhow::Result<Vec<IpAddr>> {
    let Some((first, last)) = text.split_once('-') else {
        return Ok(vec![text.parse().context("--sources: an address, or a range of IPv4 addresses")?]);
    };
    let [first, last] = [first, last].map(|end| end.parse::<Ipv4Addr>().map(u32::from));
    let (first, last) = (first.context("--sources")?, last.context("--sources")?);
    ensure!(first <= last && last - first < 4096, "--sources: first to last, at most 4,096 addresses");
    Ok((first..=last).map(|address| Ipv4Addr::from(address).into()).collect())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    sys::catch_stop_signals();
    match arguments.options().and_then(|options| Ok(idle::run(&options)?)) {
        Ok(report) => {
            if arguments.json {
                println!("{}", serde_json::to_string(&report).expect("a report is plain data"));
            } else {
                print!("{report}");
            }
            if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(1) }
        }
        Err(error) => {
            eprintln!("idle: {error:#}");
            ExitCode::from(2)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::addresses;

    #[test]
    fn sources_are_an_address_or_a_range() {
        assert_eq!(addresses("127.0.0.1-127.0.0.20").expect("a range").len(), 20);
        assert_eq!(addresses("::1").expect("one").len(), 1);
        for wrong in ["127.0.0.2-127.0.0.1", "::1-::2", "x", "127.0.0.1-"] {
            assert!(addresses(wrong).is_err(), "{wrong}");
        }
    }
}
