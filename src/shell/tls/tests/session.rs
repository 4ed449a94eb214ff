//! Handshakes and text between two ends: who is let in, what survives a reload, and what a hostile peer can do.

use proptest::prelude::*;
use ring::digest::digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified};
use rustls::{DigitallySignedStruct, SignatureScheme};

use super::*;
use crate::shell::tls::TlsErrorKind as Kind;

/// What a client that trusts the test's authority is made of.
fn client(bench: &Bench, keys: &str) -> Connector {
    bench.material("", &format!("tls = {{ ca = \"ca.pem\"{keys} }}")).connector(0).unwrap().clone()
}

fn kind(result: Result<Link, TlsError>) -> Option<Kind> {
    result.err().map(|error| error.kind)
}

/// The DNS name of the certificate that the server showed.
fn shown(link: &Link) -> Vec<String> {
    link.client.peer_names()
}

#[test]
fn address_or_name_must_be_in_the_certificate() {
    let bench = Bench::new();
    let server = bench.material("", TRUSTING);
    for keys in ["", ", server_name = \"sip.example.com\""] {
        let link = Link::shake(&server, &client(&bench, keys)).unwrap();
        assert!(link.client.has_verified_peer() && !link.server.has_verified_peer());
    }
    let wrong = client(&bench, ", server_name = \"sip.example.org\"");
    assert_eq!(kind(Link::shake(&server, &wrong)), Some(Kind::Certificate));
    let right = client(&bench, "");
    let mut elsewhere = Link::new(&server, &right);
    elsewhere.client = TlsSession::connect(&right, "127.0.0.2".parse().unwrap()).unwrap();
    assert_eq!(elsewhere.run(|| usize::MAX).unwrap_err().kind, Kind::Certificate);
}

#[test]
fn certificate_of_a_stranger_or_out_of_time_is_refused_and_the_peer_told() {
    let bench = Bench::new();
    let ours = client(&bench, "");
    for validity in [Validity::EndedDaysAgo(1), Validity::BeginsInDays(1)] {
        bench.issue("server", &["127.0.0.1"], validity);
        let server = bench.material("", TRUSTING);
        assert_eq!(kind(Link::shake(&server, &ours)), Some(Kind::Certificate));
    }
    Authority::new("stranger").unwrap().issue(&["127.0.0.1"]).unwrap().write(&bench.directory, "server").unwrap();
    let mut link = Link::new(&bench.material("", TRUSTING), &ours);
    let mut wire = Vec::new();
    link.client.take_output(&mut wire);
    link.server.receive(&wire, &mut Vec::new()).unwrap();
    wire.clear();
    link.server.take_output(&mut wire);
    assert_eq!(link.client.receive(&wire, &mut Vec::new()).unwrap_err().kind, Kind::Certificate);
    assert_eq!(link.client.receive(&wire, &mut Vec::new()).unwrap_err().kind, Kind::Over);
    assert_eq!(link.client.send(b"INVITE").unwrap_err().kind, Kind::Over);
    wire.clear();
    link.client.take_output(&mut wire);
    let told = link.server.receive(&wire, &mut Vec::new()).unwrap_err();
    assert_eq!(told.kind, Kind::Certificate, "{told}");
}

#[test]
fn pinned_certificate_needs_no_authority_name_or_time() {
    let bench = Bench::new();
    let stranger = Authority::new("stranger").unwrap();
    let identity = stranger.issue_for(&["elsewhere.example.com"], Validity::EndedDaysAgo(9), KeyKind::P256).unwrap();
    identity.write(&bench.directory, "server").unwrap();
    let server = bench.material("", TRUSTING);
    let pin = |der: &[u8]| {
        let hex: String =
            digest(&ring::digest::SHA256, der).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        bench.material("", &format!("tls = {{ verify = \"pinned\", pins = [{hex:?}] }}")).connector(0).unwrap().clone()
    };
    let link = Link::shake(&server, &pin(&identity.der)).unwrap();
    assert!(link.client.has_verified_peer());
    let another = stranger.issue(&["elsewhere.example.com"]).unwrap();
    assert_eq!(kind(Link::shake(&server, &pin(&another.der))), Some(Kind::Certificate));

    let unchecked = bench.material("", "tls = { verify = \"none\" }").connector(0).unwrap().clone();
    let link = Link::shake(&server, &unchecked).unwrap();
    assert!(!link.client.has_verified_peer() && link.client.peer_names().is_empty());
}

#[test]
fn client_is_shown_the_certificate_of_the_name_it_asks_for() {
    let bench = Bench::new();
    bench.issue("wild", &["*.example.com"], Validity::Days(365));
    bench.issue("org", &["sip.example.org"], Validity::Days(365));
    let head = "[[certificate]]\nchain = \"server.pem\"\nkey = \"server.key\"\n\
                [[certificate]]\nchain = \"wild.pem\"\nkey = \"wild.key\"\n\
                [[certificate]]\nchain = \"org.pem\"\nkey = \"org.key\"\nnames = [\"pbx.example.org\", \"sip.example.org\"]";
    let server = TlsMaterial::load(&bench.config(head, "", TRUSTING), None).unwrap().0;
    // Any certificate will do, so that the name asked for decides alone; it counts as checked, so that it is shown.
    let mut config = (*client(&bench, "").config).clone();
    config.dangerous().set_certificate_verifier(Arc::new(ByDigest::any(Arc::new(default_provider()))));
    for (asked, expected) in [
        (Some("sip.example.com"), "sip.example.com"),
        (Some("SIP.example.com"), "sip.example.com"),
        (Some("a.example.com"), "*.example.com"),
        (Some("a.b.example.com"), "sip.example.com"),
        (Some("sip.example.org"), "sip.example.org"),
        (Some("pbx.example.org"), "sip.example.org"),
        (Some("unknown.example.net"), "sip.example.com"),
        (None, "sip.example.com"),
    ] {
        let server_name = asked.map(|name| ServerName::try_from(name).unwrap());
        let connector = Connector { config: Arc::new(config.clone()), server_name, checks_peer: true };
        assert_eq!(shown(&Link::shake(&server, &connector).unwrap()), [expected], "{asked:?}");
    }
}

/// Accepts any certificate, and signatures of one scheme only.
#[derive(Debug)]
struct OneScheme(ByDigest, SignatureScheme);

impl ServerCertVerifier for OneScheme {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![self.1]
    }
}

#[test]
fn of_two_certificates_with_one_name_the_client_is_shown_the_one_it_can_verify() {
    let bench = Bench::new();
    let small = bench.authority.issue(&["small.example.com", "sip.example.com"]).unwrap();
    small.write(&bench.directory, "small").unwrap();
    let names = ["large.example.com", "sip.example.com"];
    let large = bench.authority.issue_for(&names, Validity::Days(365), KeyKind::P384).unwrap();
    large.write(&bench.directory, "large").unwrap();
    let head = "[[certificate]]\nchain = \"small.pem\"\nkey = \"small.key\"\n[[certificate]]\nchain = \"large.pem\"\n\
                key = \"large.key\"";
    let server = TlsMaterial::load(&bench.config(head, "", TRUSTING), None).unwrap().0;
    for (scheme, expected) in [
        (SignatureScheme::ECDSA_NISTP256_SHA256, "small.example.com"),
        (SignatureScheme::ECDSA_NISTP384_SHA384, "large.example.com"),
    ] {
        let mut connector = client(&bench, ", server_name = \"sip.example.com\"");
        let mut config = (*connector.config).clone();
        let verifier = OneScheme(ByDigest::any(Arc::new(default_provider())), scheme);
        config.dangerous().set_certificate_verifier(Arc::new(verifier));
        connector.config = Arc::new(config);
        assert_eq!(shown(&Link::shake(&server, &connector).unwrap())[0], expected);
    }
}

#[test]
fn client_certificate_is_asked_for_as_configured() {
    let bench = Bench::new();
    bench.issue("phone", &["sip:example.net", "phone.example.net"], Validity::Days(365));
    Authority::new("stranger").unwrap().issue(&["evil.example"]).unwrap().write(&bench.directory, "evil").unwrap();
    let shows = |name: &str| client(&bench, &format!(", certificate = \"{name}.pem\", key = \"{name}.key\""));
    let (nobody, phone, evil) = (client(&bench, ""), shows("phone"), shows("evil"));
    let asks = |word: &str| {
        bench.material(&format!("tls = {{ client_certificate = {word:?}, client_ca = \"ca.pem\" }}"), TRUSTING)
    };
    let verified = |server: &TlsMaterial, client: &Connector| {
        Link::shake(server, client).map(|link| (link.server.has_verified_peer(), link.server.peer_names()))
    };
    let domain = vec!["example.net".to_owned()];
    assert_eq!(verified(&bench.material("", TRUSTING), &phone), Ok((false, Vec::new())));
    assert_eq!(verified(&asks("optional"), &nobody), Ok((false, Vec::new())));
    assert_eq!(verified(&asks("optional"), &phone), Ok((true, domain.clone())));
    assert_eq!(verified(&asks("required"), &phone), Ok((true, domain)));
    for (word, client) in [("required", &nobody), ("required", &evil), ("optional", &evil)] {
        assert_eq!(kind(Link::shake(&asks(word), client)), Some(Kind::Certificate), "{word}");
    }
}

/// A client that speaks one version only.
fn client_of(bench: &Bench, version: &'static SupportedProtocolVersion) -> Connector {
    let mut connector = client(bench, "");
    let roots = Loader::new(None).authorities("ca", &bench.directory.join("ca.pem")).unwrap().roots;
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    connector.config = Arc::new(config);
    connector
}

#[test]
fn older_version_than_configured_is_refused() {
    let bench = Bench::new();
    let (both, newest) = (bench.material("", TRUSTING), bench.material("tls.min_version = \"1.3\"", TRUSTING));
    for (server, version, expected) in
        [(&both, &TLS12, None), (&both, &TLS13, None), (&newest, &TLS13, None), (&newest, &TLS12, Some(Kind::Version))]
    {
        assert_eq!(kind(Link::shake(server, &client_of(&bench, version))), expected, "{version:?}");
    }
}

#[test]
fn session_is_resumed_after_a_reload_and_not_under_other_rules() {
    let bench = Bench::new();
    bench.issue("phone", &["phone.example.net"], Validity::Days(365));
    let required = "tls = { client_certificate = \"required\", client_ca = \"ca.pem\" }";
    for version in [&TLS12, &TLS13] {
        let phone = client_of(&bench, version);
        let before = bench.material("", TRUSTING);
        assert!(!Link::shake(&before, &phone).unwrap().is_resumed());
        assert!(Link::shake(&before, &phone).unwrap().is_resumed());

        bench.issue("server", &["sip.example.com", "127.0.0.1"], Validity::Days(365));
        let load = |service: &str, previous| TlsMaterial::load(&bench.config(SERVER, service, TRUSTING), previous);
        let after = load("", Some(&before)).unwrap().0;
        assert!(Link::shake(&after, &phone).unwrap().is_resumed(), "{version:?}");

        let strict = load(required, Some(&after)).unwrap().0;
        let refused = kind(Link::shake(&strict, &phone));
        assert_eq!(refused, Some(Kind::Certificate), "a ticket is no certificate: {version:?}");
        let restarted = bench.material("", TRUSTING);
        assert!(!Link::shake(&restarted, &phone).unwrap().is_resumed());
    }
}

#[test]
fn resumed_session_keeps_the_verified_peer() {
    let bench = Bench::new();
    bench.issue("phone", &["phone.example.net"], Validity::Days(365));
    let server = bench.material("tls = { client_certificate = \"required\", client_ca = \"ca.pem\" }", TRUSTING);
    let phone = client(&bench, ", certificate = \"phone.pem\", key = \"phone.key\"");
    Link::shake(&server, &phone).unwrap();
    let link = Link::shake(&server, &phone).unwrap();
    assert!(link.is_resumed());
    assert_eq!(link.server.peer_names(), ["phone.example.net"]);
}

#[test]
fn close_is_told_and_nothing_follows_it() {
    let bench = Bench::new();
    let mut link = Link::shake(&bench.material("", TRUSTING), &client(&bench, "")).unwrap();
    link.client.send(b"BYE").unwrap();
    link.client.close();
    assert_eq!(link.client.send(b"more").unwrap_err().kind, Kind::Over);
    let mut wire = Vec::new();
    link.client.take_output(&mut wire);
    assert_eq!(link.server.receive(&wire, &mut link.server_read), Ok(Received::Closed));
    assert_eq!(link.server_read, b"BYE");
    assert_eq!(link.server.receive(b"anything", &mut link.server_read), Ok(Received::Closed));
    link.server.send(b"200 OK").unwrap();
    link.server.close();
    link.server.close();
    wire.clear();
    link.server.take_output(&mut wire);
    assert_eq!(link.client.receive(&wire, &mut link.client_read), Ok(Received::Closed));
    assert_eq!(link.client_read, b"", "who has closed reads nothing more");
    link.client.close();
    assert!(!link.client.has_output() && link.server.buffered_bytes() == 0);
}

#[test]
fn what_is_sent_in_the_handshake_waits_for_its_end_up_to_a_bound() {
    let bench = Bench::new();
    let mut link = Link::new(&bench.material("", TRUSTING), &client(&bench, ""));
    link.client.send(b"REGISTER ").unwrap();
    link.client.send(b"sip:example.com").unwrap();
    link.server.send(b"early").unwrap();
    assert_eq!(link.client.send(&vec![0; WAITING_BYTES_MAX]).unwrap_err().kind, Kind::Overflow);
    link.run(|| usize::MAX).unwrap();
    assert_eq!(
        (link.server_read.as_slice(), link.client_read.as_slice()),
        (&b"REGISTER sip:example.com"[..], &b"early"[..])
    );
    assert_eq!((link.client.buffered_bytes(), link.server.buffered_bytes()), (0, 0));
}

#[test]
fn new_keys_in_the_middle_of_a_session_lose_nothing() {
    let bench = Bench::new();
    let mut link = Link::shake(&bench.material("", TRUSTING), &client(&bench, "")).unwrap();
    for round in 0..3u8 {
        link.client.refresh_keys();
        link.client.send(&[round; 20_000]).unwrap();
        link.server.send(&[round; 3]).unwrap();
        link.run(|| 7).unwrap();
    }
    assert_eq!((link.server_read.len(), link.client_read.len()), (60_000, 9));
}

#[test]
fn endless_handshake_message_is_cut_off() {
    let bench = Bench::new();
    let mut server = TlsSession::accept(Arc::clone(bench.material("", TRUSTING).acceptor(0).unwrap())).unwrap();
    // A ClientHello that claims 16 MiB less one byte, in records of 16 KiB.
    let mut record = vec![22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff];
    record.resize(5 + 0x4000, 0);
    let mut received = 0;
    let error = loop {
        match server.receive(&record, &mut Vec::new()) {
            Ok(_) => received += record.len(),
            Err(error) => break error,
        }
        assert!(received <= INCOMING_BYTES_MAX, "{received} bytes are kept");
        record = [&[22, 3, 1, 0x40, 0][..], &vec![0; 0x4000]].concat();
    };
    assert_eq!(error.kind, Kind::Protocol, "{error}");
    server.take_output(&mut Vec::new());
    assert_eq!(server.buffered_bytes(), 0);
}

#[test]
fn plain_sip_on_a_tls_port_is_a_protocol_error() {
    let bench = Bench::new();
    let mut server = TlsSession::accept(Arc::clone(bench.material("", TRUSTING).acceptor(0).unwrap())).unwrap();
    let error = server.receive(b"OPTIONS sip:example.com SIP/2.0\r\n", &mut Vec::new()).unwrap_err();
    assert_eq!(error.kind, Kind::Protocol, "{error}");
}

#[test]
fn idle_session_keeps_no_buffer() {
    let bench = Bench::new();
    let mut link = Link::shake(&bench.material("", TRUSTING), &client(&bench, "")).unwrap();
    link.client.send(&[b'x'; 60_000]).unwrap();
    link.server.send(&[b'y'; 60_000]).unwrap();
    link.run(|| 1_000).unwrap();
    assert_eq!((link.server.buffered_bytes(), link.client.buffered_bytes()), (0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn text_arrives_whole_whatever_the_chunks(
        sizes in prop::collection::vec(1usize..40_000, 1..6),
        chunks in prop::collection::vec(1usize..3_000, 1..20),
        is_old in any::<bool>(),
    ) {
        let bench = Bench::new();
        let phone = client_of(&bench, if is_old { &TLS12 } else { &TLS13 });
        let mut link = Link::new(&bench.material("", TRUSTING), &phone);
        let mut chunks = chunks.into_iter().cycle();
        let mut expected = Vec::new();
        for (index, size) in sizes.iter().enumerate() {
            let text: Vec<u8> = (0..*size).map(|at| (at + index) as u8).collect();
            link.client.send(&text).unwrap();
            link.server.send(&text).unwrap();
            expected.extend_from_slice(&text);
            if index % 2 == 0 {
                link.run(|| chunks.next().unwrap()).unwrap();
            }
        }
        link.run(|| chunks.next().unwrap()).unwrap();
        prop_assert!(link.server_read == expected && link.client_read == expected);
    }

    #[test]
    fn garbage_is_an_error_and_never_a_panic(
        junk in prop::collection::vec(any::<u8>(), 1..600),
        head in prop::sample::select(vec![vec![], vec![22, 3, 1], vec![22, 3, 3, 0, 40], vec![21, 3, 3, 0, 2], vec![23, 3, 3]]),
    ) {
        let bench = Bench::new();
        let mut link = Link::new(&bench.material("", TRUSTING), &client(&bench, ""));
        let junk = [head, junk].concat();
        for session in [&mut link.server, &mut link.client] {
            let mut plain = Vec::new();
            for piece in junk.chunks(17) {
                let _ = session.receive(piece, &mut plain);
            }
            let _ = session.send(b"text");
            session.close();
            prop_assert!(plain.is_empty(), "nothing was authenticated");
            session.take_output(&mut plain);
        }
    }

    #[test]
    fn changed_byte_never_becomes_text(
        flight in 0usize..6, at in any::<prop::sample::Index>(), flip in 1u8..=255, chunk in 1usize..2_000,
    ) {
        let bench = Bench::new();
        let mut link = Link::new(&bench.material("", TRUSTING), &client(&bench, ""));
        link.client.send(b"from the client").unwrap();
        link.server.send(b"from the server").unwrap();
        for number in 0..8 {
            let (from, to, read) = match number % 2 {
                0 => (&mut link.client, &mut link.server, &mut link.server_read),
                _ => (&mut link.server, &mut link.client, &mut link.client_read),
            };
            let mut wire = Vec::new();
            from.take_output(&mut wire);
            if number == flight && !wire.is_empty() {
                let at = at.index(wire.len());
                wire[at] ^= flip;
            }
            for piece in wire.chunks(chunk) {
                let _ = to.receive(piece, read);
            }
            let _ = to.is_handshaking();
        }
        prop_assert!(b"from the client".starts_with(&link.server_read));
        prop_assert!(b"from the server".starts_with(&link.client_read));
    }
}
