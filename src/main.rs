//! The `tandem` program: reads the command line and hands over to one subcommand.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tandem::cli;

/// SIP load balancer and edge proxy: shared-nothing, one pinned worker per core, on io_uring.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve as a configuration file says, until SIGTERM
    Run(cli::run::RunArgs),
    /// Validate a configuration file: every error with its line and what to write instead
    Check {
        /// The configuration file
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// Print what the limits cost in memory
        #[arg(long)]
        limits: bool,
    },
    /// Tell what would become of a message on standard input, and why
    Explain(cli::explain::ExplainArgs),
    /// Speak to a running node: reload, report, status, enable, drain, disable
    Ctl(cli::ctl::CtlArgs),
    /// Watch calls being balanced: built-in backends, built-in caller, loopback only
    Demo(cli::demo::DemoArgs),
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
    let result = match Cli::parse().command {
        Command::Run(args) => cli::run::run(&args),
        Command::Check { config, limits } => Ok(cli::check::run(&config, limits)),
        Command::Explain(args) => cli::explain::run(&args),
        Command::Ctl(args) => cli::ctl::run(&args),
        Command::Demo(args) => cli::demo::run(args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
