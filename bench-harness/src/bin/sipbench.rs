//! `sipbench`: puts one load on one proxy and reports.
//!
//! Callers and backends are both in this process; the proxy under test must forward to the backend addresses. Over TLS
//! callers trust the authorities of `--ca` alone, and backends show a certificate that is made on the spot, so that the
//! proxy must not check it, or the one of `--chain` and `--key`.
//! Exits 0 when every call ended well, 1 when one did not, 2 when the run could not be made.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bench_harness::certificates::Authority;
use bench_harness::generator::{self, Load, Mix, Options};
use bench_harness::sys;
use bench_harness::transport::{self, Transport, Wires};
use clap::Parser;

/// SIP load generator: open or closed loop, callers and backends in one process.
#[derive(Parser)]
struct Arguments {
    /// The proxy under test.
    #[arg(long, default_value = "127.0.0.1:5060")]
    target: SocketAddr,
    /// Open loop: calls (or single transactions) started per second, whatever the proxy does.
    #[arg(long, conflicts_with = "window")]
    rate: Option<f64>,
    /// Closed loop: calls always in progress.
    #[arg(long, default_value_t = 64)]
    window: usize,
    /// Length of the measuring window in seconds.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Load before the measuring window, in seconds.
    #[arg(long, default_value_t = 1.0)]
    warmup: f64,
    /// What callers speak to the proxy.
    #[arg(long, default_value_t)]
    transport: Transport,
    /// What the proxy speaks to backends [default: what callers speak].
    #[arg(long)]
    backend_transport: Option<Transport>,
    /// The authorities of the proxy's certificate, in PEM; with --transport tls.
    #[arg(long, required_if_eq("transport", "tls"))]
    ca: Option<PathBuf>,
    /// The certificate that backends show, in PEM.
    #[arg(long, requires = "key")]
    chain: Option<PathBuf>,
    /// Its key, in PEM.
    #[arg(long, requires = "chain")]
    key: Option<PathBuf>,
    /// Number of backends.
    #[arg(long, default_value_t = 2)]
    backends: u8,
    /// First backend port; the others follow. Or all of them, joined by commas.
    #[arg(long, value_delimiter = ',', default_value = "7001")]
    backend_ports: Vec<u16>,
    /// Address of the backends.
    #[arg(long, default_value = "127.0.0.1")]
    backend_address: IpAddr,
    /// Number of callers, each with a socket or connection of its own, on ports that the system picks.
    #[arg(long, default_value_t = 1)]
    callers: u16,
    /// Relative weights of what is sent.
    #[arg(long, default_value = "invite=1,register=0,options=0")]
    mix: Mix,
    /// Milliseconds between ACK and BYE.
    #[arg(long, default_value_t = 0)]
    hold: u64,
    /// Milliseconds after which a request without a final answer fails.
    #[arg(long, default_value_t = 4000)]
    timeout: u64,
    /// Send INVITE and BYE again after this many milliseconds, doubling; without it nothing is repeated.
    #[arg(long, num_args = 0..=1, default_missing_value = "500", value_name = "T1")]
    retransmit: Option<u64>,
    /// Open loop: calls in progress at most; 0 derives it from rate, hold and timeout.
    #[arg(long, default_value_t = 0)]
    concurrency: usize,
    /// Pin the generator to this core.
    #[arg(long)]
    core: Option<usize>,
    /// Never sleep, so that the proxy never pays for waking the generator.
    #[arg(long)]
    spin: bool,
    /// Print one JSON object instead of lines for people.
    #[arg(long)]
    json: bool,
}

impl Arguments {
    fn wires(&self) -> anyhow::Result<Wires> {
        let backends = self.backend_transport.unwrap_or(self.transport);
        let tls_server = match (&self.chain, &self.key) {
            _ if backends != Transport::Tls => None,
            (Some(chain), Some(key)) => Some(transport::tls_server_from(chain, key)?),
            _ => {
                let made = Authority::new("sipbench")?.issue(&[&self.backend_address.to_string()])?;
                Some(transport::tls_server(made.chain.as_bytes(), made.key.as_bytes())?)
            }
        };
        Ok(Wires {
            callers: self.transport,
            backends,
            tls_client: self.ca.as_deref().map(transport::tls_client_from).transpose()?,
            tls_server,
        })
    }

    fn options(&self) -> Result<Options, String> {
        let ports: Vec<u16> = match self.backend_ports[..] {
            [first] => (0..u16::from(self.backends)).map_while(|n| first.checked_add(n)).collect(),
            _ => self.backend_ports.clone(),
        };
        if ports.is_empty() || ports.len() > 254 || ports.contains(&0) {
            return Err("between 1 and 254 backends, each with a port from 1 to 65535".into());
        }
        let load = match self.rate {
            Some(rate) if rate > 0.0 && rate <= 1e6 => Load::Open(rate),
            Some(rate) => return Err(format!("--rate {rate}: more than 0, at most 1000000 calls/s")),
            None if self.window == 0 || self.window > 1 << 20 => {
                return Err(format!("--window {}: 1 to {} calls in progress", self.window, 1 << 20));
            }
            None => Load::Closed(self.window),
        };
        if self.callers == 0 || self.timeout == 0 || self.retransmit == Some(0) || self.concurrency > 1 << 22 {
            return Err("--callers, --timeout and --retransmit are at least 1, --concurrency at most 4194304".into());
        }
        let seconds = |name: &str, value: f64| {
            Duration::try_from_secs_f64(value).map_err(|error| format!("--{name} {value}: {error}"))
        };
        Ok(Options {
            target: self.target,
            callers: self.callers.into(),
            backends: ports.into_iter().map(|port| SocketAddr::new(self.backend_address, port)).collect(),
            wires: self.wires().map_err(|error| format!("{error:#}"))?,
            load,
            mix: self.mix,
            warmup: seconds("warmup", self.warmup)?,
            window: seconds("seconds", self.seconds.max(0.001))?,
            hold: Duration::from_millis(self.hold),
            timeout: Duration::from_millis(self.timeout),
            t1: self.retransmit.map(Duration::from_millis),
            concurrency_max: self.concurrency,
            is_spinning: self.spin,
        })
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    sys::catch_stop_signals();
    let report = arguments.options().and_then(|options| {
        if let Some(core) = arguments.core {
            sys::pin(&[core]).map_err(|error| format!("--core {core}: {error}"))?;
        }
        generator::run(&options, |_| {}).map_err(|error| error.to_string())
    });
    match report {
        Ok(report) => {
            if arguments.json {
                println!("{}", serde_json::to_string(&report).expect("a report is plain data"));
            } else {
                print!("{report}");
            }
            if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(1) }
        }
        Err(error) => {
            eprintln!("sipbench: {error}");
            ExitCode::from(2)
        }
    }
}
