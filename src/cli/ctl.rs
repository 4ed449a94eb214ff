//! `tandem ctl -c FILE reload`: speaks to the node that runs by that file.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;

use crate::config::load;
use crate::shell::control_socket;

/// Arguments of `tandem ctl`.
#[derive(Clone, Debug, clap::Args)]
pub struct CtlArgs {
    /// The configuration file of the node, which names its control_socket
    #[arg(short, long, value_name = "FILE", required_unless_present = "socket")]
    pub config: Option<PathBuf>,
    /// The control socket itself
    #[arg(short, long, value_name = "PATH", conflicts_with = "config")]
    pub socket: Option<PathBuf>,
    /// reload: the file again, with its certificates; report: the counters; status: the backends; enable, drain or
    /// disable: a backend, by name
    #[arg(required = true, num_args = 1..=2, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Sends the command and prints the answer.
///
/// # Errors
///
/// When no node can be reached, or it refuses.
pub fn run(args: &CtlArgs) -> anyhow::Result<ExitCode> {
    let path = match (&args.socket, &args.config) {
        (Some(path), _) => path.clone(),
        (None, Some(config)) => socket_of(config)?,
        (None, None) => anyhow::bail!("say which node: -c FILE, or -s PATH of its control socket"),
    };
    print!("{}", control_socket::ask(&path, &args.command.join(" "))?);
    Ok(ExitCode::SUCCESS)
}

/// The control socket that a file names. What is unwise in the file was said to whoever started the node.
fn socket_of(config: &Path) -> anyhow::Result<PathBuf> {
    let loaded = load(config).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("{}", lines.join("\n"))
    })?;
    loaded.config.node.control_socket.with_context(|| {
        format!("{} names no node.control_socket; add one and start the node with it", config.display())
    })
}
