//! `tandem demo`: the command line of the built-in demonstration.
//!
//! Exit code 0 when the demo went as promised, 1 when calls failed outside the announced outage, shares missed the
//! weights or the outage was not handled; errors that kept it from running are the caller's to print.

use std::process::ExitCode;
use std::time::Duration;

use crate::demo::{self, Options};

/// Watch Tandem balance calls: three built-in backends, a built-in caller, one outage; loopback only.
#[derive(Clone, Debug, clap::Args)]
pub struct DemoArgs {
    /// Place calls for this many seconds, with one outage half-way; without it until Ctrl-C, with one every minute
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(8..=86_400))]
    pub seconds: Option<u64>,
    /// Print one JSON object at the end and nothing else
    #[arg(long)]
    pub json: bool,
    /// Calls per second
    #[arg(long, value_name = "CALLS", default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    pub rate: u32,
}

/// Runs the demo and prints its summary.
///
/// # Errors
/// Those of [`demo::run`].
pub fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let options = Options { duration: args.seconds.map(Duration::from_secs), is_json: args.json, rate: args.rate };
    Ok(if demo::run(&options)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
