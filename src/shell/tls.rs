//! TLS: what it is made of, loaded and checked before anything is served, and its sessions.
//!
//! [`TlsMaterial`] is everything that the files of a configuration say: a server configuration for each service that
//! listens on TLS or WSS, a client configuration for each pool with TLS backends. It is immutable and shared by all
//! workers. It is whole or it is not: one file that cannot be used is an error, all of them are reported, and what ran
//! before stays. [`TlsSession`] is one connection without its socket.
//!
//! Session tickets (RFC 5077, RFC 8446 section 4.6.1) are sealed and need no memory here, so that a client may come
//! back to any worker. Their keys outlive a reload, but belong to one way of asking for client certificates: a ticket
//! from a listener that asks for none must not open one that requires one, nor one whose authorities have changed.
//!
//! Cost: all services of one load share their certificates, and all services and pools the authorities of one file. Files
//! are read on the control thread, each file of authorities once.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::digest::{Context, SHA256};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{ProducesTickets, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, Error, InconsistentKeys, RootCertStore, ServerConfig, SupportedProtocolVersion};

use self::certificate::Facts;
use self::names::ByName;
use self::verify::ByDigest;
use crate::base::id::Transport;
use crate::config::{
    Backend, ClientCertificate, Config, PoolTls, Problem, Service, ServiceTls, TlsVersion, Verify, Wrong,
};

mod certificate;
mod error;
mod names;
mod pem;
mod session;
mod verify;

pub use error::{TlsError, TlsErrorKind};
pub use session::{INCOMING_BYTES_MAX, Received, TlsSession, WAITING_BYTES_MAX};

/// What a problem names in place of a file where none is at fault.
const NO_FILE: &str = "TLS";
/// Tickets in one handshake. A client that comes back gets a new one, and few have two connections.
const TICKETS_PER_HANDSHAKE: usize = 1;

/// Everything for TLS that the files of a configuration say; see the module head.
#[derive(Debug, Default)]
pub struct TlsMaterial {
    /// By service; `None` where none listens on TLS or WSS.
    acceptors: Vec<Option<Arc<ServerConfig>>>,
    /// By pool; `None` where no backend is spoken to over TLS.
    connectors: Vec<Option<Connector>>,
    tickets: Vec<(TicketScope, Arc<dyn ProducesTickets>)>,
}

/// How the TLS backends of a pool are connected to.
#[derive(Clone, Debug)]
pub struct Connector {
    /// What rustls needs.
    pub config: Arc<ClientConfig>,
    /// The name that is asked for and looked for; `None`: the backend's IP address.
    pub server_name: Option<ServerName<'static>>,
    /// Whether the backend's certificate is checked at all.
    pub checks_peer: bool,
}

/// What has to be the same where a ticket was made and where it is taken: whether a client was asked for a certificate,
/// and the digest of the authorities that may have signed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TicketScope(ClientCertificate, [u8; 32]);

impl TlsMaterial {
    /// Reads and checks all files that `config` names, and gives back what is unwise in them, a line each. What
    /// lets sessions be resumed is taken over from `previous`.
    ///
    /// # Errors
    ///
    /// Every file that cannot be used, each with the key that names it, the reason and the remedy.
    pub fn load(config: &Config, previous: Option<&TlsMaterial>) -> Result<(TlsMaterial, Vec<String>), Vec<Problem>> {
        Loader::new(previous).load(config)
    }

    /// The server's side of the service at `service` in the configuration; `None` where it has no TLS.
    pub fn acceptor(&self, service: usize) -> Option<&Arc<ServerConfig>> {
        self.acceptors.get(service)?.as_ref()
    }

    /// The client's side towards the pool at `pool` in the configuration; `None` where it has no TLS.
    pub fn connector(&self, pool: usize) -> Option<&Connector> {
        self.connectors.get(pool)?.as_ref()
    }
}

/// Authorities, and a digest of their certificates in order; of those of the system there is none.
#[derive(Clone)]
struct Authorities {
    roots: Arc<RootCertStore>,
    digest: [u8; 32],
}

/// A load under way: what was found so far.
struct Loader<'p> {
    provider: Arc<CryptoProvider>,
    previous: Option<&'p TlsMaterial>,
    /// Seconds since 1970.
    now: i64,
    material: TlsMaterial,
    /// Authorities by the file that they stand in; `None` is the system's own.
    authorities: HashMap<Option<PathBuf>, Authorities>,
    warnings: Vec<String>,
    problems: Vec<Problem>,
}

impl<'p> Loader<'p> {
    fn new(previous: Option<&'p TlsMaterial>) -> Self {
        Loader {
            provider: Arc::new(default_provider()),
            previous,
            now: i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX),
            material: TlsMaterial::default(),
            authorities: HashMap::new(),
            warnings: Vec::new(),
            problems: Vec::new(),
        }
    }

    fn load(mut self, config: &Config) -> Result<(TlsMaterial, Vec<String>), Vec<Problem>> {
        let mut certificates = Vec::new();
        for (index, configured) in config.certificates.iter().enumerate() {
            let path = format!("certificate[{index}]");
            let Some((key, facts)) = self.identity(&path, "chain", &configured.chain, &configured.key) else {
                continue;
            };
            for name in configured.names.iter().filter(|name| !facts.has_name(name)) {
                let what = format!("it is not for {name:?}, so clients that ask for that name will not accept it");
                self.warn(
                    &configured.chain,
                    &format!("{path}.names"),
                    what,
                    "correct names, or get another certificate",
                );
            }
            let names = if configured.names.is_empty() { facts.dns_names } else { configured.names.clone() };
            if names.is_empty() && index > 0 {
                let what = "it has no DNS name, so it is shown to nobody";
                self.warn(&configured.chain, &path, what, "write names, or put it first");
            }
            certificates.push((Arc::new(key), names));
        }
        let by_name = ByName::new(certificates).map(Arc::new);
        for service in &config.services {
            let acceptor = match &by_name {
                Some(by_name) if listens_on_tls(service) => self.acceptor(service, by_name),
                _ => None,
            };
            self.material.acceptors.push(acceptor);
        }
        for pool in &config.pools {
            let connector = match pool.backends.iter().any(has_tls) {
                true => self.connector(&format!("pool.{}.tls", pool.name), &pool.tls),
                false => None,
            };
            self.material.connectors.push(connector);
        }
        match self.problems.is_empty() {
            true => Ok((self.material, self.warnings)),
            false => Err(self.problems),
        }
    }

    /// What the TLS and WSS listeners of a service are made of.
    fn acceptor(&mut self, service: &Service, by_name: &Arc<ByName>) -> Option<Arc<ServerConfig>> {
        let path = format!("service.{}.tls", service.name);
        let ServiceTls { client_certificate, client_ca, min_version } = &service.tls;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(versions(*min_version))
            .map_err(|error| self.report(Path::new(NO_FILE), &path, error.to_string(), "choose another min_version"))
            .ok()?;
        let (builder, authorities) = match (client_certificate, client_ca) {
            (ClientCertificate::None, _) | (_, None) => (builder.with_no_client_auth(), [0; 32]),
            (asked, Some(ca)) => {
                let key = format!("{path}.client_ca");
                let Authorities { roots, digest } = self.authorities(&key, ca)?;
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&self.provider));
                let verifier = match asked {
                    ClientCertificate::Optional => verifier.allow_unauthenticated().build(),
                    _ => verifier.build(),
                };
                let verifier = verifier
                    .map_err(|error| self.report(ca, &key, error.to_string(), "write a PEM file of authorities"))
                    .ok()?;
                (builder.with_client_cert_verifier(verifier), digest)
            }
        };
        let mut config = builder.with_cert_resolver(Arc::clone(by_name) as _);
        config.ticketer = self.ticketer(TicketScope(*client_certificate, authorities), &path)?;
        config.send_tls13_tickets = TICKETS_PER_HANDSHAKE;
        Some(Arc::new(config))
    }

    /// What seals the tickets of a scope: the one of an earlier service, of the load before, or a new one.
    fn ticketer(&mut self, scope: TicketScope, path: &str) -> Option<Arc<dyn ProducesTickets>> {
        let of = |material: &TlsMaterial| {
            let found = material.tickets.iter().find(|(known, _)| *known == scope);
            found.map(|(_, ticketer)| Arc::clone(ticketer))
        };
        if let Some(known) = of(&self.material) {
            return Some(known);
        }
        let ticketer = match self.previous.and_then(of) {
            Some(known) => known,
            None => Ticketer::new()
                .map_err(|error| self.report(Path::new(NO_FILE), path, error.to_string(), "start again"))
                .ok()?,
        };
        self.material.tickets.push((scope, Arc::clone(&ticketer)));
        Some(ticketer)
    }

    /// How the TLS backends of a pool are connected to.
    fn connector(&mut self, path: &str, tls: &PoolTls) -> Option<Connector> {
        let verifier: Arc<dyn ServerCertVerifier> = match tls.verify {
            Verify::Pinned => Arc::new(ByDigest::pinned(Arc::clone(&self.provider), tls.pins.clone())),
            Verify::None => Arc::new(ByDigest::any(Arc::clone(&self.provider))),
            Verify::Full => {
                let roots = match &tls.ca {
                    Some(ca) => self.authorities(&format!("{path}.ca"), ca)?.roots,
                    None => self.system_authorities(path)?.roots,
                };
                let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&self.provider));
                verifier
                    .build()
                    .map_err(|error| self.report(Path::new(NO_FILE), path, error.to_string(), "write another ca"))
                    .ok()?
            }
        };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(versions(TlsVersion::V12))
            .map_err(|error| self.report(Path::new(NO_FILE), path, error.to_string(), "report it with this file"))
            .ok()?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let config = match (&tls.certificate, &tls.key) {
            (Some(chain), Some(key)) => {
                let (identity, _) = self.identity(path, "certificate", chain, key)?;
                builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(identity)))
            }
            _ => builder.with_no_client_auth(),
        };
        let server_name = match &tls.server_name {
            None => None,
            Some(name) => Some(
                ServerName::try_from(name.clone())
                    .map_err(|error| {
                        let key = format!("{path}.server_name");
                        self.report(Path::new(NO_FILE), &key, format!("{name:?}: {error}"), "write a host name");
                    })
                    .ok()?,
            ),
        };
        Some(Connector { config: Arc::new(config), server_name, checks_peer: tls.verify != Verify::None })
    }

    /// A certificate chain and its key, checked against each other; `path` is their section, `chain_key` the key that
    /// names the chain.
    fn identity(&mut self, path: &str, chain_key: &str, chain: &Path, key: &Path) -> Option<(CertifiedKey, Facts)> {
        let (chain_path, key_path) = (format!("{path}.{chain_key}"), format!("{path}.key"));
        let certificates =
            pem::read_certificates(chain).map_err(|wrong| self.report_wrong(chain, &chain_path, wrong)).ok();
        let private = pem::read_private_key(key).map_err(|wrong| self.report_wrong(key, &key_path, wrong)).ok();
        let (certificates, private) = (certificates?, private?);
        let facts: Option<Vec<Facts>> = certificates.iter().map(Facts::of).collect();
        let Some(facts) = facts else {
            self.report(chain, &chain_path, "a certificate in it cannot be read", "make the file anew");
            return None;
        };
        let leaf = facts.first()?.clone();
        if let Some(what) = leaf.time_warning(self.now) {
            self.warn(chain, &chain_path, what, "renew it, and reload");
        }
        let is_readable_by_all = std::fs::metadata(key).is_ok_and(|file| file.permissions().mode() & 0o004 != 0);
        if is_readable_by_all {
            self.warn(key, &key_path, "every user of this machine may read the key", "chmod o-r it");
        }
        match CertifiedKey::from_der(certificates, private.clone_key(), &self.provider) {
            Ok(identity) => Some((identity, leaf)),
            Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                let public = self.provider.key_provider.load_private_key(private).ok();
                let public = public.as_ref().and_then(|key| key.public_key());
                let is_of = |facts: &Facts| public.as_ref().is_some_and(|public| public.as_ref() == facts.public_key);
                let remedy = match facts.iter().any(is_of) {
                    true => "put the certificate of the key first, and its issuers after it",
                    false => "name the key that the certificate was made for",
                };
                self.report(key, &key_path, format!("it is not the key of {}", chain.display()), remedy);
                None
            }
            Err(error) => {
                let remedy = "use RSA with 2048 bits or more, ECDSA with P-256 or P-384, or Ed25519";
                self.report(key, &key_path, format!("the key cannot be used: {error}"), remedy);
                None
            }
        }
    }

    /// The authorities in a file.
    fn authorities(&mut self, key: &str, file: &Path) -> Option<Authorities> {
        if let Some(known) = self.authorities.get(&Some(file.to_owned())) {
            return Some(known.clone());
        }
        let certificates = pem::read_certificates(file).map_err(|wrong| self.report_wrong(file, key, wrong)).ok()?;
        let mut roots = RootCertStore::empty();
        let mut context = Context::new(&SHA256);
        for (index, certificate) in certificates.into_iter().enumerate() {
            context.update(&certificate);
            let which = format!("certificate {} in it", index + 1);
            if let Some(what) = Facts::of(&certificate).and_then(|facts| facts.time_warning(self.now)) {
                self.warn(file, key, format!("{which}: {what}"), "put its successor beside it");
            }
            if let Err(error) = roots.add(certificate) {
                self.report(file, key, format!("{which} cannot be an authority: {error}"), "take it out");
                return None;
            }
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        let authorities = Authorities { roots: Arc::new(roots), digest };
        self.authorities.insert(Some(file.to_owned()), authorities.clone());
        Some(authorities)
    }

    /// The authorities that the system trusts.
    fn system_authorities(&mut self, path: &str) -> Option<Authorities> {
        if let Some(known) = self.authorities.get(&None) {
            return Some(known.clone());
        }
        let loaded = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(loaded.certs.into_iter().map(CertificateDer::into_owned));
        if added == 0 {
            let reasons: Vec<String> = loaded.errors.iter().map(ToString::to_string).collect();
            let why = if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join(", ")) };
            let what = format!("this system trusts no authority{why}");
            let remedy = "install the package ca-certificates, or write ca = with a PEM file";
            self.report(Path::new(NO_FILE), path, what, remedy);
            return None;
        }
        let authorities = Authorities { roots: Arc::new(roots), digest: [0; 32] };
        self.authorities.insert(None, authorities.clone());
        Some(authorities)
    }

    fn report_wrong(&mut self, file: &Path, key: &str, wrong: Wrong) {
        self.report(file, key, wrong.what, &wrong.remedy);
    }

    fn report(&mut self, file: &Path, key: &str, what: impl Into<String>, remedy: &str) {
        self.problems.push(problem(file, key, what.into(), remedy));
    }

    fn warn(&mut self, file: &Path, key: &str, what: impl Into<String>, remedy: &str) {
        self.warnings.push(problem(file, key, what.into(), remedy).to_string());
    }
}

/// A problem with a file that the configuration names.
fn problem(file: &Path, key: &str, what: String, remedy: &str) -> Problem {
    Problem {
        file: file.display().to_string(),
        line: 0,
        column: 0,
        key: key.to_owned(),
        what,
        remedy: remedy.to_owned(),
    }
}

fn versions(oldest: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
    match oldest {
        TlsVersion::V12 => &BOTH,
        TlsVersion::V13 => &BOTH[..1],
    }
}

fn listens_on_tls(service: &Service) -> bool {
    service.listen.iter().any(|listen| listen.transport.is_secure())
}

fn has_tls(backend: &Backend) -> bool {
    backend.transport == Transport::Tls || backend.large_address.is_some_and(|(large, _)| large == Transport::Tls)
}

#[cfg(test)]
mod tests;
