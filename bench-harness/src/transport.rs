//! Over what messages travel: which transport either side of a proxy speaks, and what TLS is made of.
//!
//! TLS is 1.3 with one cipher suite and one kind of key, on both sides, whatever proxy stands between: two proxies are
//! comparable only when they encrypt alike. Sessions are never resumed, since a thousand connections stand for a
//! thousand clients.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::ValueEnum;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{cipher_suite, default_provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde::Serialize;

/// What carries the messages of one side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// Datagrams.
    #[default]
    Udp,
    /// Connections.
    Tcp,
    /// Encrypted connections.
    Tls,
}

impl Transport {
    /// As in a URI's `transport` parameter.
    pub fn name(self) -> &'static str {
        match self {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
            Transport::Tls => "tls",
        }
    }

    /// As in Via.
    pub fn via(self) -> &'static str {
        match self {
            Transport::Udp => "UDP",
            Transport::Tcp => "TCP",
            Transport::Tls => "TLS",
        }
    }

    /// Whether it has connections.
    pub fn is_stream(self) -> bool {
        self != Transport::Udp
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How both sides of a proxy are reached. By default by datagrams.
#[derive(Clone, Debug, Default)]
pub struct Wires {
    /// Between callers and the proxy.
    pub callers: Transport,
    /// Between the proxy and the backends.
    pub backends: Transport,
    /// How callers check the proxy; needed when they speak TLS.
    pub tls_client: Option<Arc<ClientConfig>>,
    /// What backends show; needed when they speak TLS.
    pub tls_server: Option<Arc<ServerConfig>>,
}

fn provider() -> Arc<CryptoProvider> {
    let cipher_suites = vec![cipher_suite::TLS13_AES_256_GCM_SHA384];
    Arc::new(CryptoProvider { cipher_suites, ..default_provider() })
}

/// What a client needs that trusts the authorities in `pem`.
///
/// # Errors
/// When there is no usable authority.
pub fn tls_client(pem: &[u8]) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(pem) {
        roots.add(authority.context("unreadable certificate of an authority")?)?;
    }
    anyhow::ensure!(!roots.is_empty(), "no certificate of an authority");
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&rustls::version::TLS13])?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The same, with the authorities in the file at `path`.
///
/// # Errors
/// When it cannot be read or has no usable authority.
pub fn tls_client_from(path: &Path) -> Result<Arc<ClientConfig>> {
    tls_client(&read(path)?).with_context(|| path.display().to_string())
}

/// What a server needs that shows the certificate in `chain` with its `key`, both PEM, and asks clients for nothing.
///
/// # Errors
/// When chain or key cannot be used.
pub fn tls_server(chain: &[u8], key: &[u8]) -> Result<Arc<ServerConfig>> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(key)?;
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&rustls::version::TLS13])?;
    let mut config = builder.with_no_client_auth().with_single_cert(chain, key)?;
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// The same, from the files at `chain` and `key`.
///
/// # Errors
/// When one cannot be read or used.
pub fn tls_server_from(chain: &Path, key: &Path) -> Result<Arc<ServerConfig>> {
    tls_server(&read(chain)?, &read(key)?).with_context(|| chain.display().to_string())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
