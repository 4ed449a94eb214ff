//! Probes to backends that are reached over connections: one task and one connection for each such backend.
//!
//! ```text
//!   Event::Probe --> StreamProber::send --> queue --> task: connect, write ... read --> Report --> Control
//! ```
//!
//! A connection is kept from one probe to the next and leaves from a listener's address. What cannot be connected to is
//! [`SendError::Unreachable`], a failed probe; a connection that ends while an answer is awaited is that too. Bound: one
//! task a backend, [`QUEUE_MAX`] probes waiting in each, answers no larger than a datagram.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::probe_socket::classify;
use super::stream::StreamPolicy;
use super::tls::TlsSession;
use crate::base::id::{BackendId, Transport};
use crate::control::SendError;
use crate::engine::outbox::DATAGRAM_MAX;
use crate::sip::frame::{Frame, Framer};

const QUEUE_MAX: usize = 4;

/// A connect that takes longer is one that failed; the probe's own deadline is mostly shorter.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// What a task has to say.
#[derive(Debug)]
pub(super) enum Report {
    /// A message came.
    Answer(BackendId, Vec<u8>),
    /// A probe did not get there, or its connection ended before the answer.
    Failed(BackendId, SendError),
}

/// Whom to probe, and how.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) backend: BackendId,
    pub(super) transport: Transport,
    pub(super) address: SocketAddr,
    /// Index of its pool, for TLS.
    pub(super) pool: usize,
    /// The address to leave from.
    pub(super) source: Option<IpAddr>,
}

/// The tasks.
pub(super) struct StreamProber {
    tasks: AHashMap<BackendId, Task>,
    reports: mpsc::Sender<Report>,
}

struct Task {
    target: (Transport, SocketAddr),
    probes: mpsc::Sender<Vec<u8>>,
    handle: AbortHandle,
}

impl StreamProber {
    /// No tasks yet; what they have to say goes into `reports`.
    pub(super) fn new(reports: mpsc::Sender<Report>) -> Self {
        StreamProber { tasks: AHashMap::new(), reports }
    }

    /// Sends a probe. Errors come as reports but for a queue that is full: then the last probe has not even left.
    pub(super) fn send(&mut self, target: Target, policy: &Arc<StreamPolicy>, bytes: Vec<u8>) -> Result<(), SendError> {
        let key = (target.transport, target.address);
        if self.tasks.get(&target.backend).is_some_and(|task| task.target != key || task.handle.is_finished()) {
            self.forget(target.backend);
        }
        let task = self.tasks.entry(target.backend).or_insert_with(|| {
            let (probes, queue) = mpsc::channel(QUEUE_MAX);
            let (target, policy, reports) = (target.clone(), Arc::clone(policy), self.reports.clone());
            let handle = tokio::spawn(run(target, policy, queue, reports)).abort_handle();
            Task { target: key, probes, handle }
        });
        task.probes.try_send(bytes).map_err(|_| SendError::Unreachable)
    }

    /// Ends all tasks: what a reload may have changed is used from the next probe on.
    pub(super) fn restart(&mut self) {
        self.tasks.drain().for_each(|(_, task)| task.handle.abort());
    }

    fn forget(&mut self, backend: BackendId) {
        if let Some(task) = self.tasks.remove(&backend) {
            task.handle.abort();
        }
    }
}

/// A connection and what has come of the next message.
struct Line {
    stream: TcpStream,
    tls: Option<TlsSession>,
    framer: Framer,
    input: Vec<u8>,
}

async fn run(
    target: Target,
    policy: Arc<StreamPolicy>,
    mut queue: mpsc::Receiver<Vec<u8>>,
    reports: mpsc::Sender<Report>,
) {
    let backend = target.backend;
    let mut line: Option<Line> = None;
    let mut is_waiting = false;
    let mut buffer = vec![0; 16 << 10];
    loop {
        let event = match &mut line {
            None => queue.recv().await.map(Event::Probe),
            Some(line) => tokio::select! {
                probe = queue.recv() => probe.map(Event::Probe),
                read = line.stream.read(&mut buffer) => Some(Event::Read(read.unwrap_or(0))),
            },
        };
        let result = match event {
            None => return,
            Some(Event::Probe(bytes)) => {
                is_waiting = true;
                send(&target, &policy, &mut line, &bytes).await
            }
            Some(Event::Read(0)) => {
                line = None;
                if is_waiting { Err(SendError::Unreachable) } else { Ok(()) }
            }
            Some(Event::Read(len)) => match line.as_mut() {
                Some(line) => match line.receive(&buffer[..len]).await {
                    Ok(messages) => {
                        is_waiting &= messages.is_empty();
                        for message in messages {
                            // The control loop has ended when nobody listens.
                            let _ = reports.send(Report::Answer(backend, message)).await;
                        }
                        Ok(())
                    }
                    Err(error) => Err(error),
                },
                None => Ok(()),
            },
        };
        if let Err(error) = result {
            line = None;
            if std::mem::take(&mut is_waiting) {
                let _ = reports.send(Report::Failed(backend, error)).await;
            }
        }
    }
}

enum Event {
    Probe(Vec<u8>),
    /// So many bytes; 0 is the end.
    Read(usize),
}

/// Sends over the connection, which is opened if there is none. A connection that proves dead is opened once more.
async fn send(target: &Target, policy: &StreamPolicy, line: &mut Option<Line>, bytes: &[u8]) -> Result<(), SendError> {
    if let Some(kept) = line
        && kept.send(bytes).await.is_ok()
    {
        return Ok(());
    }
    let opened = tokio::time::timeout(CONNECT_MAX, Line::open(target, policy)).await;
    let fresh = line.insert(opened.map_err(|_| SendError::Unreachable)??);
    fresh.send(bytes).await
}

impl Line {
    async fn open(target: &Target, policy: &StreamPolicy) -> Result<Self, SendError> {
        let connect = async {
            let socket = if target.address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
            if let Some(source) = target.source {
                socket.bind(SocketAddr::new(source, 0))?;
            }
            socket.connect(target.address).await
        };
        let mut stream = connect.await.map_err(|error: std::io::Error| {
            tracing::debug!(to = %target.address, %error, "no connection for the probe");
            // A connection that is reset or refused is the backend's doing, as one that is not routed is.
            match classify(&error) {
                SendError::Local if error.kind() == std::io::ErrorKind::ConnectionReset => SendError::Unreachable,
                kind => kind,
            }
        })?;
        let tls = match target.transport {
            Transport::Tls => {
                let connector = policy.connector(target.pool).ok_or(SendError::Local)?;
                Some(TlsSession::connect(connector, target.address.ip()).map_err(|_| SendError::Local)?)
            }
            _ => None,
        };
        if let Ok(source) = stream.local_addr() {
            let header = policy.proxy_header(source, target.address);
            stream.write_all(&header).await.map_err(|_| SendError::Unreachable)?;
        }
        let mut line = Line { stream, tls, framer: Framer::new(DATAGRAM_MAX), input: Vec::new() };
        let mut buffer = vec![0; 16 << 10];
        line.flush().await?;
        while line.tls.as_ref().is_some_and(TlsSession::is_handshaking) {
            let len = line.stream.read(&mut buffer).await.map_err(|_| SendError::Unreachable)?;
            if len == 0 {
                return Err(SendError::Unreachable);
            }
            line.receive(&buffer[..len]).await?;
        }
        Ok(line)
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), SendError> {
        match &mut self.tls {
            None => self.stream.write_all(bytes).await.map_err(|_| SendError::Unreachable),
            Some(tls) => {
                tls.send(bytes).map_err(|_| SendError::Unreachable)?;
                self.flush().await
            }
        }
    }

    /// Takes what has come; gives the messages that are whole.
    async fn receive(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, SendError> {
        match &mut self.tls {
            None => self.input.extend_from_slice(bytes),
            Some(tls) => {
                let result = tls.receive(bytes, &mut self.input);
                self.flush().await?;
                if let Err(error) = result {
                    tracing::debug!(%error, "no TLS for the probe");
                    return Err(SendError::Unreachable);
                }
            }
        }
        let mut messages = Vec::new();
        loop {
            let len = match self.framer.next(&self.input).map_err(|_| SendError::Unreachable)? {
                Frame::Incomplete => return Ok(messages),
                Frame::Skip(len) | Frame::Ping(len) => len,
                Frame::Message(len) => {
                    messages.push(self.input[..len].to_vec());
                    len
                }
            };
            self.input.drain(..len);
        }
    }

    async fn flush(&mut self) -> Result<(), SendError> {
        let mut output = Vec::new();
        if let Some(tls) = &mut self.tls {
            tls.take_output(&mut output);
        }
        self.stream.write_all(&output).await.map_err(|_| SendError::Unreachable)
    }
}
