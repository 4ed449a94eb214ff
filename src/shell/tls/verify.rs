//! Checks of a backend's certificate that are not the usual one: pinned, and none.
//!
//! Both still verify the signature of the handshake, so that whoever shows a certificate has its key. A pin is the
//! SHA-256 digest of the leaf; authority, time and name of a pinned certificate count for nothing, which is what
//! makes the self-signed certificate of a private branch exchange usable and safe.

use std::sync::Arc;

use ring::digest::{SHA256, digest};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};

/// Accepts certificates by digest, or all.
#[derive(Debug)]
pub(super) struct ByDigest {
    provider: Arc<CryptoProvider>,
    /// `None`: any certificate will do.
    pins: Option<Vec<[u8; 32]>>,
}

impl ByDigest {
    /// Accepts these certificates and no other.
    pub(super) fn pinned(provider: Arc<CryptoProvider>, pins: Vec<[u8; 32]>) -> Self {
        ByDigest { provider, pins: Some(pins) }
    }

    /// Accepts every certificate.
    pub(super) fn any(provider: Arc<CryptoProvider>) -> Self {
        ByDigest { provider, pins: None }
    }
}

impl ServerCertVerifier for ByDigest {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let is_pinned = |pins: &Vec<[u8; 32]>| pins.iter().any(|pin| digest(&SHA256, end_entity).as_ref() == pin);
        match self.pins.as_ref().is_none_or(is_pinned) {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
