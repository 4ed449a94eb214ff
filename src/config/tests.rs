//! Tests of the parse as a whole: defaults, cross checks and warnings. Broken files with their messages in full are
//! in `tests/config.rs`.

use std::time::Duration;

use super::key::Default;
use super::*;
use crate::base::id::Transport;

/// A service, a pool and two backends: what any configuration needs.
pub(super) const REST: &str = r#"
[[service]]
name = "voice"
listen = ["udp:127.0.0.1:5060", "tcp:127.0.0.1:5060"]
pool = "pbx"

[[pool]]
name = "pbx"

[[pool.backend]]
name = "pbx1"
address = "udp:127.0.0.1:5071"

[[pool.backend]]
name = "pbx2"
address = "udp:127.0.0.1:5072"
"#;

fn surroundings() -> Surroundings<'static> {
    Surroundings { host_name: "edge7".to_owned(), read_secret: &|_| Err("there is no such file".to_owned()) }
}

fn errors(text: &str) -> Vec<String> {
    match parse_in(text, "t.toml", &surroundings()) {
        Ok(loaded) => panic!("no error in {:?}", loaded.config),
        Err(problems) => problems.iter().map(Problem::to_string).collect(),
    }
}

fn warnings(text: &str) -> Vec<String> {
    let loaded = parse_in(text, "t.toml", &surroundings()).unwrap();
    loaded.warnings.iter().map(Problem::to_string).collect()
}

#[test]
fn what_is_not_written_has_the_default_of_the_table() {
    let config = parse_in(REST, "t.toml", &surroundings()).unwrap().config;
    let node = Node {
        name: "edge7".to_owned(),
        workers: Workers::Auto,
        control_core: None,
        secret: None,
        secret_previous: None,
        names: Vec::new(),
        control_socket: None,
        spin: Duration::ZERO,
    };
    let limits = Limits {
        bindings_max: 262_144,
        message_bytes_max: 65_507,
        headers_max: 256,
        receive_buffers: 1_024,
        handoff_ring_bytes: 1 << 20,
        socket_buffer_bytes: 8 << 20,
        connections_max: 32_768,
        connections_per_source: 4_096,
        stream_buffers: 256,
        write_queue_bytes: 256 << 10,
        handshakes_max: 512,
    };
    let timers = Timers {
        binding_early: Duration::from_secs(300),
        binding_dialog: Duration::from_secs(3_600),
        binding_linger: Duration::from_secs(32),
        message_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(3_600),
        write_timeout: Duration::from_secs(10),
        handshake_timeout: Duration::from_secs(5),
        connect_timeout: Duration::from_secs(3),
    };
    let health = Health {
        probe: Probe::Options,
        interval: Duration::from_secs(2),
        jitter: Duration::from_millis(200),
        timeout: Duration::from_secs(1),
        rise: 2,
        fall: 3,
    };
    let backend = |name: &str, port: u16| Backend {
        name: name.to_owned(),
        transport: Transport::Udp,
        address: ([127, 0, 0, 1], port).into(),
        large_address: None,
        proxy_protocol: ProxyProtocol::None,
        weight: 100,
        priority: 0,
        admin: Admin::Enabled,
    };
    let listens = [Transport::Udp, Transport::Tcp];
    let service = Service {
        name: "voice".to_owned(),
        listen: listens.map(|transport| Listen { transport, address: ([127, 0, 0, 1], 5_060).into() }).to_vec(),
        pool: 0,
        record_route: true,
        proxy_protocol_from: Vec::new(),
        origins: Vec::new(),
        sips_over_plain: true,
        strip_identity: false,
        tls: ServiceTls::default(),
    };
    let pool = Pool {
        name: "pbx".to_owned(),
        policy: Policy::ConsistentHash,
        retry_after: Duration::from_secs(5),
        udp_bytes_max: 1_300,
        health,
        tls: PoolTls::default(),
        backends: vec![backend("pbx1", 5_071), backend("pbx2", 5_072)],
    };
    let certificates = Vec::new();
    assert_eq!(config, Config { node, limits, timers, certificates, services: vec![service], pools: vec![pool] });
}

#[test]
fn writing_every_default_changes_nothing() {
    let written = parse_in(&render_reference(), "t.toml", &surroundings()).unwrap().config;
    let bare = parse_in(REST, "t.toml", &surroundings()).unwrap().config;
    assert_eq!(written, bare);
}

#[test]
fn every_default_and_example_is_accepted() {
    for about in keys::ALL {
        let (Default::Required(literal) | Default::Literal(literal) | Default::Absent(_, literal)) = about.default;
        assert!(toml::de::DeValue::parse(literal).is_ok(), "{}", about.name);
    }
}

#[test]
fn secret_comes_from_the_file_or_from_a_file_of_its_own() {
    let digits = "00112233445566778899aabbccddeeff";
    let read = |path: &Path| match path.to_str() {
        Some("good") => Ok(format!("{digits}\n")),
        Some("short") => Ok("00112233".to_owned()),
        _ => Err("there is no such file".to_owned()),
    };
    let parse = |node: &str| {
        let surroundings = Surroundings { host_name: String::new(), read_secret: &read };
        parse_in(&format!("[node]\n{node}\n{REST}"), "t.toml", &surroundings)
    };
    let from_file = parse("secret_file = \"good\"").unwrap();
    let inline = parse(&format!("secret = \"{digits}\"")).unwrap();
    assert_eq!(from_file.config.node.secret, inline.config.node.secret);
    assert_eq!(from_file.config.node.secret.as_ref().map(|secret| secret.0[15]), Some(0xff));
    assert_eq!(from_file.config.node.name, "tandem");
    assert!(from_file.warnings.is_empty());

    let only = |node: &str| parse(node).unwrap_err().iter().map(Problem::to_string).collect::<Vec<_>>();
    let remedy = "write 32 hexadecimal digits, such as `openssl rand -hex 16` prints";
    assert_eq!(
        only("secret_file = \"short\""),
        [format!("t.toml:2: node.secret_file: in short: the secret has 8 digits; {remedy}")]
    );
    assert_eq!(
        only(&format!("secret = \"{digits}\"\nsecret_file = \"good\"")),
        ["t.toml:3: node.secret_file: secret and secret_file are both given; write secret or secret_file, not both"]
    );
    let absent = only("secret_file = \"absent\"");
    assert!(absent[0].contains("cannot read absent: there is no such file"), "{absent:?}");
    let leaked = only("secret = \"0011223344556677deadbeef\"");
    assert!(!leaked[0].contains("dead"), "{leaked:?}");
}

#[test]
fn listeners_that_share_an_id_are_refused() {
    let listen = |port: u16| Listen { transport: Transport::Udp, address: ([127, 0, 0, 1], port).into() };
    let twin = (1_024..=u16::MAX)
        .flat_map(|port| [([127, 0, 0, 1], port), ([127, 0, 0, 2], port)])
        .map(|address| Listen { transport: Transport::Udp, address: address.into() })
        .find(|other| *other != listen(5_060) && other.id() == listen(5_060).id())
        .expect("among 129,024 addresses one has the id of another");
    let text = REST.replace("udp:127.0.0.1:5060\"", &format!("udp:127.0.0.1:5060\", \"udp:{}\"", twin.address));
    let found = errors(&text);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("t.toml:4: service.voice.listen[1]: "), "{found:?}");
    assert!(
        found[0].ends_with("has the same 16-bit id as \"udp:127.0.0.1:5060\"; choose another port for one of them")
    );
}

#[test]
fn unwise_is_a_warning() {
    assert_eq!(warnings(REST).len(), 1, "no secret");
    let text = REST.replace("name = \"pbx\"\n", "name = \"pbx\"\nhealth = { rise = 1, timeout = \"1900ms\" }\n");
    let text = text.replace("5071\"", "5071\"\nweight = 0").replace("5072\"", "5072\"\nweight = 0");
    let spare = "[[pool]]\nname = \"spare\"\n[[pool.backend]]\nname = \"spare1\"\naddress = \"udp:127.0.0.1:5079\"\n";
    let text = format!("[node]\nworkers = [0, 1]\ncontrol_core = 1\n{text}{spare}");
    let keys: Vec<String> = parse_in(&text, "t.toml", &surroundings())
        .unwrap()
        .warnings
        .iter()
        .map(|warning| warning.key.clone())
        .collect();
    let expected = [
        "node.secret",
        "node.control_core",
        "pool.pbx",
        "pool.pbx.health.rise",
        "pool.pbx.health.timeout",
        "pool.spare",
        "pool.spare",
    ];
    assert_eq!(keys, expected);
}

#[test]
fn connections_that_cannot_be_meant_so_are_warnings() {
    let cases = [
        ("\"udp:127.0.0.1:5060\", \"tcp:127.0.0.1:5060\"", "\"udp:127.0.0.1:5060\"", "service.voice.listen[0]"),
        ("pool = \"pbx\"\n", "pool = \"pbx\"\norigins = [\"https://a.example\"]\n", "service.voice.origins"),
        (
            "pool = \"pbx\"\n",
            "pool = \"pbx\"\nproxy_protocol_from = [\"0.0.0.0/0\"]\n",
            "service.voice.proxy_protocol_from[0]",
        ),
        (
            "pool = \"pbx\"\n",
            "pool = \"pbx\"\ntls = { client_certificate = \"required\", client_ca = \"ca.pem\" }\n",
            "service.voice.tls.client_certificate",
        ),
        ("pool = \"pbx\"\n", "pool = \"pbx\"\ntls.client_ca = \"ca.pem\"\n", "service.voice.tls.client_ca"),
        ("\"udp:127.0.0.1:5071\"", "\"tls:127.0.0.1:5071\"", "service.voice.listen"),
        ("name = \"pbx\"\n", "name = \"pbx\"\ntls.ca = \"ca.pem\"\ntls.verify = \"none\"\n", "pool.pbx.tls.ca"),
        ("[[service]]", "[timers]\nidle_timeout = \"1m\"\n[[service]]", "timers.idle_timeout"),
        ("[[service]]", "[[certificate]]\nchain = \"a.pem\"\nkey = \"a.key\"\n[[service]]", "certificate"),
    ];
    for (from, to, key) in cases {
        let loaded = parse_in(&REST.replacen(from, to, 1), "t.toml", &surroundings()).unwrap();
        let keys: Vec<&str> = loaded.warnings.iter().map(|warning| warning.key.as_str()).collect();
        assert!(keys.contains(&key) && keys.len() == 2, "{key}: {keys:?}");
    }
    let over_tls = REST.replace("\"udp:127.0.0.1:5060\"", "\"udp:127.0.0.1:5060\", \"tls:127.0.0.1:5061\"");
    let over_tls = over_tls.replace("[[service]]", "[[certificate]]\nchain = \"a.pem\"\nkey = \"a.key\"\n[[service]]");
    let over_tls = over_tls.replace("\"udp:127.0.0.1:5071\"", "\"tls:127.0.0.1:5071\"");
    assert_eq!(warnings(&over_tls).len(), 1, "no secret");
    let unchecked = over_tls.replace("name = \"pbx\"\n", "name = \"pbx\"\ntls.verify = \"none\"\n");
    assert_eq!(warnings(&unchecked).len(), 2, "and no certificate is checked");
}

#[test]
fn files_are_looked_for_from_the_directory_of_the_configuration() {
    let text = REST.replace("[[service]]", "[[certificate]]\nchain = \"a.pem\"\nkey = \"/k/a.key\"\n[[service]]");
    let text = text.replace("name = \"pbx\"\n", "name = \"pbx\"\ntls.ca = \"ca.pem\"\n");
    let config = parse_in(&text, "/etc/tandem/t.toml", &surroundings()).unwrap().config;
    assert_eq!(config.certificates[0].chain, Path::new("/etc/tandem/a.pem"));
    assert_eq!(config.certificates[0].key, Path::new("/k/a.key"));
    assert_eq!(config.pools[0].tls.ca.as_deref(), Some(Path::new("/etc/tandem/ca.pem")));
}

#[test]
fn one_transport_may_have_the_port_of_another_but_not_on_one_socket() {
    let backend = "[[pool.backend]]\nname = \"pbx3\"\naddress = \"tcp:127.0.0.1:5071\"\n";
    assert!(parse_in(&format!("{REST}{backend}"), "t.toml", &surroundings()).is_ok());
    let twice = REST.replace("\"tcp:127.0.0.1:5060\"", "\"tcp:127.0.0.1:5060\", \"ws:127.0.0.1:5060\"");
    assert_eq!(
        errors(&twice),
        [
            "t.toml:4: service.voice.listen[2]: \"ws:127.0.0.1:5060\" needs the TCP port of \"tcp:127.0.0.1:5060\" in line 4; \
          write another port; ws's is 80"
        ]
    );
}

#[test]
fn one_wrong_value_does_not_hide_another() {
    let text = REST.replace("[[service]]", "[limits]\nheaders_max = 7\n\n[[service]]").replace("5072", "5071");
    assert_eq!(
        errors(&text),
        [
            "t.toml:3: limits.headers_max: 7 is less than 16; write a number from 16 to 1024",
            "t.toml:19: pool.pbx.backend.pbx2.address: \"udp:127.0.0.1:5071\" is the address of the backend in line 15 \
             too; write each backend once, in one pool",
        ]
    );
}

#[test]
fn largest_pool_is_accepted_and_one_more_is_refused() {
    let mut text = REST.to_owned();
    for index in 2..keys::BACKENDS_MAX {
        let address = format!("udp:127.1.{}.{}:5060", index / 256, index % 256);
        text.push_str(&format!("[[pool.backend]]\nname = \"b{index}\"\naddress = \"{address}\"\n"));
    }
    let loaded = parse_in(&text, "t.toml", &surroundings()).unwrap();
    assert_eq!(loaded.config.pools[0].backends.len(), keys::BACKENDS_MAX);
    text.push_str("[[pool.backend]]\nname = \"last\"\naddress = \"udp:127.2.0.1:5060\"\n");
    let expected = "t.toml:10: pool.pbx.backend: there are 4097 of [[pool.backend]]; write at most 4096";
    assert_eq!(errors(&text), [expected]);
}

#[test]
fn sections_may_be_inline_or_dotted() {
    let text = "node.name = \"lb1\"\n\
        service = [{ name = \"voice\", listen = [\"udp:[::1]:5060\"], pool = \"pbx\" }]\n\
        pool = [{ name = \"pbx\", backend = [{ name = \"pbx1\", address = \"udp:[::1]:5071\", weight = 0x1_0000 }] }]\n";
    let expected = "t.toml:3: pool.pbx.backend.pbx1.weight: 0x10000 is more than 65535; write a number from 0 to 65535";
    assert_eq!(errors(text), [expected]);
    assert!(parse_in(&text.replace("0x1_0000", "0xffff"), "t.toml", &surroundings()).is_ok());
}

#[test]
fn file_that_cannot_be_read_is_one_problem() {
    let problems = load(Path::new("/nonexistent/tandem.toml")).unwrap_err();
    let expected =
        "/nonexistent/tandem.toml: cannot be read: there is no such file; give a readable file with -c".to_owned();
    assert_eq!(problems.iter().map(Problem::to_string).collect::<Vec<_>>(), [expected]);
    assert!(load(Path::new("/dev/zero")).is_err());

    let path = std::env::temp_dir().join(format!("tandem-latin1-{}.toml", std::process::id()));
    std::fs::write(&path, b"[node]\nname = \"M\xfcnchen\"\n").unwrap();
    let problems = load(&path).unwrap_err();
    std::fs::remove_file(&path).unwrap();
    let expected = format!("{}:2: byte 0xfc at column 10 is not UTF-8 text; save the file as UTF-8", path.display());
    assert_eq!(problems.iter().map(Problem::to_string).collect::<Vec<_>>(), [expected]);
}
