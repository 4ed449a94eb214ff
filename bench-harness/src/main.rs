//! `bench-harness`: the bare forwarder and the comparison runs.

use std::net::SocketAddr;
use std::process::ExitCode;

use bench_harness::{compare, forward, sys};
use clap::{Parser, Subcommand};

/// Comparison runs for Tandem.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure CPU time per forwarded message of several proxies, interleaved, and record it.
    Compare(compare::Arguments),
    /// Run the bare UDP forwarder until a signal ends it.
    Forward {
        /// Address to listen on.
        #[arg(long)]
        listen: SocketAddr,
        /// Backend addresses, joined by commas.
        #[arg(long, value_delimiter = ',', required = true)]
        backends: Vec<SocketAddr>,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Compare(arguments) => {
            sys::catch_stop_signals();
            compare::run(&arguments)
        }
        Command::Forward { listen, backends } => {
            forward::run(listen, &backends).map(|never| match never {}).map_err(anyhow::Error::from)
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-harness: {error:#}");
            ExitCode::from(2)
        }
    }
}
