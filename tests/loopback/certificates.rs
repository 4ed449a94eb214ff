//! Certificates for one test: an authority, what it signs, and both ends of TLS that trust it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bench_harness::certificates::{Authority, Identity};
use rustls::client::Resumption;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

pub struct Trust {
    pub authority: Authority,
    pub ca: PathBuf,
    folder: PathBuf,
}

impl Trust {
    /// Writes `ca.pem` into a folder.
    pub fn new(folder: &Path) -> Trust {
        let authority = Authority::new("loopback authority").unwrap();
        let ca = folder.join("ca.pem");
        std::fs::write(&ca, authority.pem()).unwrap();
        Trust { authority, ca, folder: folder.to_owned() }
    }

    /// Issues for these names and writes `NAME.pem` and `NAME.key`.
    pub fn write(&self, name: &str, names: &[&str]) -> Identity {
        let identity = self.authority.issue(names).unwrap();
        identity.write(&self.folder, name).unwrap();
        identity
    }

    /// The section that shows `NAME.pem`.
    pub fn section(name: &str) -> String {
        format!("[[certificate]]\nchain = \"{name}.pem\"\nkey = \"{name}.key\"\n")
    }

    /// A client that trusts the authority; one that shows a certificate where there is one. It resumes nothing, so that
    /// each of its handshakes shows what the other side has.
    pub fn client(&self, identity: Option<&Identity>) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots());
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => builder.with_client_auth_cert(chain(identity), key(identity)).unwrap(),
        };
        config.resumption = Resumption::disabled();
        Arc::new(config)
    }

    /// A server with this certificate; one that demands a certificate of the authority from its clients.
    pub fn server(&self, identity: &Identity, demands_certificate: bool) -> Arc<ServerConfig> {
        let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if demands_certificate {
            let roots = Arc::new(self.roots());
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::new(default_provider()));
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        Arc::new(builder.with_single_cert(chain(identity), key(identity)).unwrap())
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.pem().as_bytes()).unwrap()).unwrap();
        roots
    }
}

fn chain(identity: &Identity) -> Vec<CertificateDer<'static>> {
    vec![CertificateDer::from(identity.der.clone())]
}

fn key(identity: &Identity) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap()
}
