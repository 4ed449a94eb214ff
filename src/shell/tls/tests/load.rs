//! What is said of files: each mistake with its remedy, each warning once.

use super::*;

fn errors(bench: &Bench, config: &Config) -> Vec<String> {
    let problems = TlsMaterial::load(config, None).expect_err("the files are wrong");
    problems.iter().map(|problem| bench.shown(&problem.to_string())).collect()
}

fn warnings(bench: &Bench, config: &Config) -> Vec<String> {
    let (_, warnings) = TlsMaterial::load(config, None).unwrap();
    warnings.iter().map(|warning| bench.shown(warning)).collect()
}

#[test]
fn good_files_give_both_sides_and_no_warning() {
    let bench = Bench::new();
    let (material, warnings) = bench.load("", TRUSTING).unwrap();
    assert!(material.acceptor(0).is_some() && material.connector(0).is_some());
    assert!(material.acceptor(1).is_none() && material.connector(1).is_none());
    assert_eq!(warnings, [""; 0]);
}

#[test]
fn plain_configuration_needs_no_files() {
    let text = "[[service]]\nname = \"voice\"\nlisten = [\"udp:127.0.0.1:5060\"]\npool = \"pbx\"\n[[pool]]\n\
                name = \"pbx\"\ntls.ca = \"no/such.pem\"\n[[pool.backend]]\nname = \"pbx1\"\naddress = \"udp:127.0.0.1:5071\"\n";
    let config = crate::config::parse(text, "t.toml").unwrap().config;
    let (material, _) = TlsMaterial::load(&config, None).unwrap();
    assert!(material.acceptor(0).is_none() && material.connector(0).is_none());
}

#[test]
fn each_wrong_file_is_told_with_what_to_do() {
    let bench = Bench::new();
    let key = fs::read_to_string(bench.directory.join("server.key")).unwrap();
    let certificate = fs::read_to_string(bench.directory.join("server.pem")).unwrap();
    bench.issue("other", &["other.example.com"], Validity::Days(365));
    bench.write("empty.pem", "");
    bench.write("text.pem", "hello\n");
    bench.write("cut.pem", &certificate[..certificate.len() / 2]);
    bench.write("junk.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    bench.write("two.key", format!("{key}{key}"));
    bench.write("locked.key", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n");
    bench.write("junk.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    bench.write("order.pem", format!("{}{certificate}", bench.authority.pem()));
    bench.write("der.pem", bench.authority.issue(&["a.example"]).unwrap().der);
    let cases = [
        ("none.pem", "server.key", "none.pem: certificate[0].chain: cannot be read: there is no such file"),
        ("empty.pem", "server.key", "empty.pem: certificate[0].chain: it is empty; write the PEM text into it"),
        ("text.pem", "server.key", "text.pem: certificate[0].chain: it is not PEM; write a PEM file: text with lines"),
        ("der.pem", "server.key", "der.pem: certificate[0].chain: it is not PEM; this looks like DER: convert it with"),
        ("cut.pem", "server.key", "cut.pem: certificate[0].chain: it is broken PEM: "),
        ("junk.pem", "server.key", "junk.pem: certificate[0].chain: a certificate in it cannot be read; make the file"),
        (
            "server.key",
            "server.key",
            "server.key: certificate[0].chain: it holds a private key and no certificate; name the PEM file of the \
             certificate here",
        ),
        (
            "server.pem",
            "server.pem",
            "server.pem: certificate[0].key: it holds a certificate and no private key; name the PEM file of the key here",
        ),
        ("server.pem", "two.key", "two.key: certificate[0].key: it holds several private keys; leave the one"),
        ("server.pem", "locked.key", "locked.key: certificate[0].key: its key has a passphrase; write the key without"),
        ("server.pem", "junk.key", "junk.key: certificate[0].key: the key cannot be used: "),
        (
            "server.pem",
            "other.key",
            "other.key: certificate[0].key: it is not the key of server.pem; name the key that the certificate was made for",
        ),
        (
            "order.pem",
            "server.key",
            "server.key: certificate[0].key: it is not the key of order.pem; put the certificate of the key first, and \
             its issuers after it",
        ),
    ];
    for (chain, key, expected) in cases {
        let head = format!("[[certificate]]\nchain = {chain:?}\nkey = {key:?}");
        let found = errors(&bench, &bench.config(&head, "", TRUSTING));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with(expected), "{} is not {expected}", found[0]);
    }
}

#[test]
fn every_wrong_file_is_told_at_once() {
    let bench = Bench::new();
    bench.write("empty.pem", "");
    let head = "[[certificate]]\nchain = \"none.pem\"\nkey = \"none.key\"\n[[certificate]]\nchain = \"server.pem\"\n\
                key = \"server.key\"";
    let config = bench.config(
        head,
        "tls = { client_certificate = \"required\", client_ca = \"empty.pem\" }",
        "tls = { ca = \"server.key\", certificate = \"none.pem\", key = \"server.key\" }",
    );
    let found = errors(&bench, &config);
    let starts = [
        "none.pem: certificate[0].chain: cannot be read: ",
        "none.key: certificate[0].key: cannot be read: ",
        "empty.pem: service.voice.tls.client_ca: it is empty",
        "server.key: pool.pbx.tls.ca: it holds a private key and no certificate",
    ];
    assert_eq!(found.len(), starts.len(), "{found:?}");
    for (found, start) in found.iter().zip(starts) {
        assert!(found.starts_with(start), "{found} is not {start}");
    }
    let config =
        bench.config(SERVER, "", "tls = { ca = \"ca.pem\", certificate = \"none.pem\", key = \"server.key\" }");
    assert!(errors(&bench, &config)[0].starts_with("none.pem: pool.pbx.tls.certificate: cannot be read: "));
}

#[test]
fn certificate_and_key_may_share_a_file() {
    let bench = Bench::new();
    let identity = bench.issue("server", &["sip.example.com"], Validity::Days(365));
    bench.write("both.pem", format!("{}{}", identity.key, identity.chain));
    fs::set_permissions(bench.directory.join("both.pem"), fs::Permissions::from_mode(0o600)).unwrap();
    let config = bench.config("[[certificate]]\nchain = \"both.pem\"\nkey = \"both.pem\"", "", TRUSTING);
    assert_eq!(warnings(&bench, &config), [""; 0]);
}

#[test]
fn what_ends_soon_or_is_open_to_all_is_a_warning() {
    let bench = Bench::new();
    let warned = |name: &str, names: &[&str], validity: Validity, keys: &str| {
        bench.issue(name, names, validity);
        let head = format!("[[certificate]]\nchain = \"{name}.pem\"\nkey = \"{name}.key\"\n{keys}");
        warnings(&bench, &bench.config(&head, "", TRUSTING))
    };
    let only = |found: Vec<String>, start: &str, end: &str| {
        assert!(found.len() == 1 && found[0].starts_with(start) && found[0].ends_with(end), "{found:?}");
    };
    let names = ["sip.example.com"];
    only(
        warned("soon", &names, Validity::Days(10), ""),
        "soon.pem: certificate[0].chain: it expires in ",
        "; renew it, and reload",
    );
    only(
        warned("over", &names, Validity::EndedDaysAgo(3), ""),
        "over.pem: certificate[0].chain: it has expired on ",
        "; renew it, and reload",
    );
    only(warned("early", &names, Validity::BeginsInDays(3), ""), "early.pem: ", "; renew it, and reload");
    only(
        warned("named", &names, Validity::Days(365), "names = [\"sip.example.com\", \"sip.example.org\"]"),
        "named.pem: certificate[0].names: it is not for \"sip.example.org\"",
        "; correct names, or get another certificate",
    );
    bench.issue("open", &names, Validity::Days(365));
    fs::set_permissions(bench.directory.join("open.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let config = bench.config("[[certificate]]\nchain = \"open.pem\"\nkey = \"open.key\"", "", TRUSTING);
    only(
        warnings(&bench, &config),
        "open.key: certificate[0].key: every user of this machine may read the key",
        "; chmod o-r it",
    );
    bench.issue("bare", &["127.0.0.1"], Validity::Days(365));
    let second = format!("{SERVER}\n[[certificate]]\nchain = \"bare.pem\"\nkey = \"bare.key\"");
    only(
        warnings(&bench, &bench.config(&second, "", TRUSTING)),
        "bare.pem: certificate[1]: it has no DNS name",
        "; write names, or put it first",
    );
}

#[test]
fn ticket_keys_are_of_one_way_to_ask_for_certificates() {
    let bench = Bench::new();
    let other = Authority::new("other").unwrap();
    bench.write("other.pem", other.pem());
    let scopes = |service: &str, previous: Option<&TlsMaterial>| {
        TlsMaterial::load(&bench.config(SERVER, service, TRUSTING), previous).unwrap().0
    };
    let of = |material: &TlsMaterial| Arc::as_ptr(&material.acceptor(0).unwrap().ticketer).cast::<()>() as usize;
    let open = scopes("", None);
    let required = scopes("tls = { client_certificate = \"required\", client_ca = \"ca.pem\" }", Some(&open));
    let again = scopes("tls = { client_certificate = \"required\", client_ca = \"ca.pem\" }", Some(&required));
    let changed = scopes("tls = { client_certificate = \"required\", client_ca = \"other.pem\" }", Some(&again));
    let optional = scopes("tls = { client_certificate = \"optional\", client_ca = \"other.pem\" }", Some(&changed));
    assert_eq!(of(&required), of(&again), "a reload that changes nothing keeps it");
    let all = [of(&open), of(&required), of(&changed), of(&optional)];
    let distinct: std::collections::BTreeSet<usize> = all.into_iter().collect();
    assert_eq!(distinct.len(), all.len());
}
