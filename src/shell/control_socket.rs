//! Where a running node is spoken to: a Unix socket that takes one line and gives an answer.
//!
//! ```text
//!   reload | report | status | enable NAME | drain NAME | disable NAME      ->      "ok" or "error", then text, then the end
//! ```
//!
//! Only the owner of the socket file may connect (mode 0600): whoever can speak here can take every backend out. One client
//! at a time; each has two seconds to say its line and two to take its answer, so nobody holds up the next. Nothing here is
//! on the message path.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::node::Node;
use crate::config::Admin;

/// How long a client may take for its line, and for its answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// The longest line.
const LINE_MAX: usize = 256;

/// The listening socket; its file goes with it.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

/// A client that has said what it wants.
#[derive(Debug)]
pub struct Asked {
    line: String,
    stream: UnixStream,
}

impl ControlSocket {
    /// Listens at `path`. A file that a process left behind is replaced; one that a process listens at is not.
    ///
    /// # Errors
    ///
    /// Another node listens there, or the file cannot be made.
    pub fn bind(path: &Path) -> anyhow::Result<Self> {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            bail!("another process listens at {}; give each node a control_socket of its own", path.display());
        }
        let is_stale = std::fs::symlink_metadata(path).is_ok_and(|file| {
            use std::os::unix::fs::FileTypeExt;
            file.file_type().is_socket()
        });
        if is_stale {
            std::fs::remove_file(path).with_context(|| format!("cannot replace {}", path.display()))?;
        }
        let why = || format!("cannot make the control socket {}", path.display());
        let listener = UnixListener::bind(path).with_context(why)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).with_context(why)?;
        Ok(ControlSocket { listener, path: path.to_owned() })
    }

    /// The next client that says a line.
    pub async fn next(&self) -> Asked {
        loop {
            let Ok((mut stream, _)) = self.listener.accept().await else {
                // Out of descriptors, most likely.
                tokio::time::sleep(PATIENCE).await;
                continue;
            };
            if let Ok(Ok(line)) = timeout(PATIENCE, read_line(&mut stream)).await {
                return Asked { line, stream };
            }
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Somebody may have taken it away already.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Asked {
    /// Does what was asked; gives the answer. It waits for the control core, so not within a runtime.
    pub fn obey(&self, node: &Node) -> String {
        match obey(&self.line, node) {
            Ok(text) => format!("ok\n{text}"),
            Err(error) => format!("error\n{error:#}\n"),
        }
    }

    /// Sends the answer.
    pub async fn answer(mut self, answer: &str) {
        // A client that does not wait for its answer has been served all the same.
        let _ = timeout(PATIENCE, self.stream.write_all(answer.as_bytes())).await;
    }
}

/// Sends a line to the node behind the socket at `path` and gives what it says.
///
/// # Errors
///
/// Nobody listens there, or what the node refuses.
pub fn ask(path: &Path, line: &str) -> anyhow::Result<String> {
    use std::io::{Read, Write};
    let connected = std::os::unix::net::UnixStream::connect(path);
    let mut stream =
        connected.with_context(|| format!("no node can be spoken to at {}; does it run?", path.display()))?;
    stream.set_read_timeout(Some(10 * PATIENCE)).context("cannot wait for the answer")?;
    writeln!(stream, "{line}").context("the node does not listen")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("the node does not answer")?;
    match answer.split_once('\n') {
        Some(("ok", text)) => Ok(text.to_owned()),
        Some(("error", text)) => bail!("{}", text.trim_end()),
        _ => bail!("the node gave no answer"),
    }
}

async fn read_line(stream: &mut UnixStream) -> io::Result<String> {
    let mut line = Vec::new();
    while !line.contains(&b'\n') {
        let mut buffer = [0; LINE_MAX];
        let len = stream.read(&mut buffer).await?;
        line.extend_from_slice(&buffer[..len]);
        if len == 0 || line.len() > LINE_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(String::from_utf8_lossy(&line).trim().to_owned())
}

fn obey(line: &str, node: &Node) -> anyhow::Result<String> {
    let mut words = line.split_whitespace();
    let admin = match (words.next(), words.next(), words.next()) {
        (Some("reload"), None, _) => return Ok(format!("{}\n", node.reload()?)),
        (Some("report"), None, _) => return Ok(node.report().render()),
        (Some("status"), None, _) => return Ok(status(node)),
        (Some("enable"), Some(name), None) => (name, Admin::Enabled),
        (Some("drain"), Some(name), None) => (name, Admin::Drained),
        (Some("disable"), Some(name), None) => (name, Admin::Disabled),
        _ => bail!("{line:?} is not understood; say reload, report, status, or enable, drain or disable and a backend"),
    };
    let (name, wanted) = admin;
    let before = node.set_admin(name, wanted)?;
    Ok(format!("{name}: {} -> {}\n", word(before), word(wanted)))
}

fn status(node: &Node) -> String {
    let line = |backend: &crate::control::BackendView| {
        let last = backend.last.map_or_else(|| "not probed".to_owned(), |outcome| outcome.to_string());
        format!(
            "{} {} pool {} weight {} {} {} {last}\n",
            backend.name,
            backend.address,
            backend.pool,
            backend.weight,
            word(backend.admin),
            backend.state
        )
    };
    node.status().backends.iter().map(line).collect()
}

const fn word(admin: Admin) -> &'static str {
    match admin {
        Admin::Enabled => "enabled",
        Admin::Drained => "drained",
        Admin::Disabled => "disabled",
    }
}
