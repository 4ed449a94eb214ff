//! stunnel beside a SIPp that has no TLS of its own, as Debian builds it: what SIPp speaks is TCP, what Tandem sees TLS.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::await_some;
use crate::bed::local;
use crate::free_port;

/// A running stunnel; killed when dropped.
pub struct Stunnel {
    child: Child,
    /// Where it takes connections.
    pub address: SocketAddr,
}

impl Stunnel {
    /// Takes TCP and speaks TLS to `to`, whose certificate must be of `ca` and for 127.0.0.1.
    pub fn to_tls(folder: &Path, name: &str, to: SocketAddr, ca: &Path) -> Stunnel {
        let keys = format!("client = yes\nverifyChain = yes\ncheckIP = {}\nCAfile = {}\n", to.ip(), ca.display());
        Stunnel::start(folder, name, to, &keys)
    }

    /// Takes TLS, showing `IDENTITY.pem` of the folder, and speaks TCP to `to`.
    pub fn from_tls(folder: &Path, name: &str, to: SocketAddr, identity: &str) -> Stunnel {
        let file = |ending| folder.join(format!("{identity}.{ending}")).display().to_string();
        Stunnel::start(folder, name, to, &format!("cert = {}\nkey = {}\n", file("pem"), file("key")))
    }

    fn start(folder: &Path, name: &str, to: SocketAddr, keys: &str) -> Stunnel {
        let address = local(free_port());
        let file = folder.join(format!("{name}.conf"));
        let text =
            format!("foreground = yes\npid =\nsyslog = no\n[{name}]\naccept = {address}\nconnect = {to}\n{keys}");
        fs::write(&file, text).unwrap();
        let log = fs::File::create(folder.join(format!("{name}.log"))).unwrap();
        let child = Command::new("stunnel4")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("stunnel starts; it is in Debian's package stunnel4, which tests/run installs");
        let mut this = Stunnel { child, address };
        await_some("stunnel to listen", Duration::from_secs(10), || {
            let status = this.child.try_wait().unwrap();
            assert_eq!(status, None, "stunnel ended at its start; see {name}.log");
            is_listening(address.port()).then_some(())
        });
        this
    }
}

impl Drop for Stunnel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Does anybody listen on this TCP port? Without a connection, which its owner would take for a client's.
pub fn is_listening(port: u16) -> bool {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let mut rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.any(|row| row.len() > 3 && row[1].ends_with(&format!(":{port:04X}")) && row[3] == "0A")
}
