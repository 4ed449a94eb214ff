//! The control thread against a real SIP responder on loopback.

use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant as Clock;

use super::*;
use crate::config::Admin;
use crate::control::health::Outcome;
use crate::shell::control_handle::CommandError;

const PATIENCE: Duration = Duration::from_secs(20);

/// A server that answers OPTIONS with 200 unless it is muted.
struct Responder {
    address: SocketAddr,
    is_muted: Arc<AtomicBool>,
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Vec<(SocketAddr, String)>>,
}

impl Responder {
    fn start(ip: IpAddr) -> Self {
        Self::start_slow(ip, Duration::ZERO)
    }

    /// One that takes `delay` for each answer.
    fn start_slow(ip: IpAddr, delay: Duration) -> Self {
        let socket = UdpSocket::bind((ip, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let address = socket.local_addr().unwrap();
        let (is_muted, is_over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (muted, over) = (Arc::clone(&is_muted), Arc::clone(&is_over));
        let thread = std::thread::spawn(move || {
            let mut seen = Vec::new();
            let mut buffer = [0; 2_048];
            while !over.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                let request = str::from_utf8(&buffer[..length]).unwrap();
                if !muted.load(Ordering::Relaxed) {
                    pause(delay);
                    let answer = format!("SIP/2.0 200 OK\r\n{}", request.split_once("\r\n").unwrap().1);
                    socket.send_to(answer.as_bytes(), from).unwrap();
                }
                seen.push((from, request.to_owned()));
            }
            seen
        });
        Responder { address, is_muted, is_over, thread }
    }

    fn stop(self) -> Vec<(SocketAddr, String)> {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn config(backends: &[SocketAddr]) -> Config {
    let mut config = crate::control::tests::config(backends.len());
    let pool = &mut config.pools[0];
    for (backend, address) in pool.backends.iter_mut().zip(backends) {
        backend.address = *address;
    }
    pool.health.interval = Duration::from_millis(200);
    pool.health.jitter = Duration::from_millis(50);
    pool.health.timeout = Duration::from_millis(120);
    pool.health.fall = 2;
    let mut v6 = config.services[0].listen[0];
    config.services[0].listen[0].address = "127.0.0.1:5060".parse().unwrap();
    v6.address = "[::1]:5060".parse().unwrap();
    config.services[0].listen.push(v6);
    config
}

fn policy(config: &Config) -> StreamPolicy {
    StreamPolicy::new(config, Arc::default())
}

fn start(
    config: Config,
    mut load: impl FnMut() -> Result<Config, String> + Send + 'static,
) -> (Handle, Arc<Mutex<Vec<Arc<Snapshot>>>>) {
    let published = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&published);
    let publish: Publish = Box::new(move |snapshot| sink.lock().unwrap().push(snapshot));
    let (_, failed) = mpsc::channel(1);
    let load: Load = Box::new(move || load().map(|config| (config.clone(), policy(&config))));
    let options = Options {
        policy: Arc::new(policy(&config)),
        publish_policy: Box::new(|_| {}),
        config,
        workers: 2,
        core: Some(0),
        seed: Some(1),
        load,
        publish,
        failed,
    };
    (spawn(options).unwrap(), published)
}

fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Clock::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE, "waited too long until {what}");
        pause(Duration::from_millis(5));
    }
}

/// Holds up this thread alone.
fn pause(duration: Duration) {
    let begin = Clock::now();
    while begin.elapsed() < duration {
        std::thread::park_timeout(duration);
    }
}

#[test]
fn backend_that_stops_is_taken_out_and_brought_back() {
    let responder = Responder::start("127.0.0.1".parse().unwrap());
    let (handle, published) = start(config(&[responder.address]), || Err("unused".into()));
    assert_eq!(published.lock().unwrap().len(), 1, "the first snapshot is there when spawn returns");
    let takes_new = || published.lock().unwrap().last().unwrap().backends[0].takes_new();
    assert!(takes_new());
    wait("it answers", || handle.status()[0].state == State::Up);
    responder.is_muted.store(true, Ordering::Relaxed);
    wait("it is out", || !takes_new());
    wait("the status says so", || handle.status()[0].last == Some(Outcome::Timeout));
    responder.is_muted.store(false, Ordering::Relaxed);
    wait("it is back", takes_new);
    let status = handle.ask_status().unwrap();
    assert!(status.backends[0].is_healthy && status.backends[0].latency.is_some());
    assert!(status.generation >= 3 && status.counters.answers_malformed == 0);
    handle.stop().unwrap();
    let generations: Vec<u64> = published.lock().unwrap().iter().map(|s| s.generation).collect();
    assert!(generations.iter().copied().eq(1..=generations.len() as u64), "{generations:?}");
    let seen = responder.stop();
    for (from, request) in seen {
        let via = format!("\r\nVia: SIP/2.0/UDP {from};branch=z9hG4bK-probe-");
        assert!(from.ip().is_loopback() && request.contains(&via), "{request}");
    }
}

#[test]
fn both_families_are_probed_and_the_silent_one_is_out() {
    let v6 = Responder::start("::1".parse().unwrap());
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let backends = [v6.address, silent.local_addr().unwrap()];
    let (handle, _) = start(config(&backends), || Err("unused".into()));
    wait("both are known", || {
        let states: Vec<State> = handle.status().iter().map(|b| b.state).collect();
        states == [State::Up, State::Down]
    });
    handle.stop().unwrap();
    v6.stop();
}

#[test]
fn reload_applies_or_refuses_and_admin_stays() {
    let responder = Responder::start("127.0.0.1".parse().unwrap());
    let mut base = config(&[responder.address]);
    base.pools[0].backends[0].admin = Admin::Enabled;
    let (mut lighter, mut other) = (base.clone(), base.clone());
    lighter.pools[0].backends[0].weight = 1;
    other.limits.headers_max = 7;
    let mut files = vec![Ok(other), Err("line 3: unknown key".to_owned()), Ok(lighter)];
    let (handle, published) = start(base, move || files.pop().unwrap());
    assert_eq!(handle.set_admin("pbx0", Admin::Drained), Ok(Admin::Enabled));
    assert_eq!(handle.status()[0].admin, Admin::Drained);
    assert!(matches!(handle.set_admin("pbx9", Admin::Drained), Err(CommandError::Refused(_))));

    assert_eq!(handle.reload().unwrap().to_string(), "backend pbx0: weight 100 -> 1");
    let last = || published.lock().unwrap().last().unwrap().clone();
    assert_eq!((last().backends[0].weight, last().backends[0].status.admin), (1, Admin::Drained));
    let generation = last().generation;
    assert_eq!(handle.reload(), Err(CommandError::Refused("line 3: unknown key".to_owned())));
    let CommandError::Refused(text) = handle.reload().unwrap_err() else { panic!("refused") };
    assert!(text.contains("[limits]: headers_max 128 -> 7: cannot change while running; restart"), "{text}");
    assert_eq!(last().generation, generation);
    let commands = handle.commands();
    handle.stop().unwrap();
    assert!(commands.is_closed());
    responder.stop();
}

#[test]
fn slow_reload_does_not_look_like_dead_backends() {
    let responder = Responder::start_slow("127.0.0.1".parse().unwrap(), Duration::from_millis(40));
    let mut config = config(&[responder.address]);
    config.pools[0].health.fall = 1;
    let same = config.clone();
    let load = move || {
        pause(Duration::from_millis(160));
        Ok(same.clone())
    };
    let (handle, published) = start(config, load);
    wait("it answers", || handle.status()[0].state == State::Up);
    for i in 0..15 {
        pause(Duration::from_millis(7 * i));
        handle.reload().unwrap();
    }
    wait("later probes are good", || handle.ask_status().unwrap().backends[0].probes_ok > 5);
    assert_eq!(handle.ask_status().unwrap().backends[0].probes_failed, 0);
    assert_eq!(published.lock().unwrap().len(), 1);
    handle.stop().unwrap();
    responder.stop();
}
