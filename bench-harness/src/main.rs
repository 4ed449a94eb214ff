//! `bench-harness`: the comparison runs, the bare forwarder, and certificates for runs by hand.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use bench_harness::certificates::write_files;
use bench_harness::transport::Transport;
use bench_harness::{compare, forward, splice, sys};
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
    /// Run the bare forwarder until a signal ends it: datagrams by Call-ID, or connections byte by byte.
    Forward {
        /// What it forwards; what is in tls connections passes as it is.
        #[arg(long, default_value_t)]
        transport: Transport,
        /// Address to listen on.
        #[arg(long)]
        listen: SocketAddr,
        /// Backend addresses, joined by commas.
        #[arg(long, value_delimiter = ',', required = true)]
        backends: Vec<SocketAddr>,
    },
    /// Make an authority, a server's certificate and a client's, for measurements by hand, and print where they are.
    Certificates {
        /// Where they are written.
        directory: PathBuf,
        /// Host names and addresses of the server, joined by commas.
        #[arg(long, value_delimiter = ',', default_value = "127.0.0.1")]
        names: Vec<String>,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Compare(arguments) => {
            sys::catch_stop_signals();
            compare::run(&arguments)
        }
        Command::Forward { transport, listen, backends } => {
            let run = if transport.is_stream() { splice::run } else { forward::run };
            run(listen, &backends).map(|never| match never {}).map_err(anyhow::Error::from)
        }
        Command::Certificates { directory, names } => {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            write_files(&directory, &names).map(|files| {
                for path in [files.ca, files.chain, files.key, files.client_chain, files.client_key] {
                    println!("{}", path.display());
                }
            })
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
