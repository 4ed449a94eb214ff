//! Why a TLS session failed: a kind for the counters, a text for the log.
//!
//! The kinds answer the operator's question first: do the two not understand each other, is it a certificate, or is
//! the other end no TLS at all? The text is rustls' own, which names the detail.

use std::fmt;

use rustls::{AlertDescription, Error, PeerIncompatible};

/// What kind of failure it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TlsErrorKind {
    /// The handshake failed: no cipher or group in common, or the peer gave up.
    Handshake,
    /// A certificate was missing or not accepted, on either side.
    Certificate,
    /// There is no version that both speak.
    Version,
    /// What came is not TLS, or was changed on the way.
    Protocol,
    /// More is to be sent than may wait for the end of the handshake.
    Overflow,
    /// The session had failed or was closed before.
    Over,
}

impl TlsErrorKind {
    /// The name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            TlsErrorKind::Handshake => "handshake",
            TlsErrorKind::Certificate => "certificate",
            TlsErrorKind::Version => "version",
            TlsErrorKind::Protocol => "protocol",
            TlsErrorKind::Overflow => "overflow",
            TlsErrorKind::Over => "over",
        }
    }
}

/// Why a session failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsError {
    /// For counters.
    pub kind: TlsErrorKind,
    text: Box<str>,
}

impl TlsError {
    /// From rustls; `is_handshaking` when it happened before the handshake had ended.
    pub(super) fn new(error: &Error, is_handshaking: bool) -> Self {
        TlsError::of(kind_of(error, is_handshaking), &error.to_string())
    }

    pub(super) fn of(kind: TlsErrorKind, text: &str) -> Self {
        TlsError { kind, text: text.into() }
    }

    pub(super) fn over() -> Self {
        TlsError::of(TlsErrorKind::Over, "the TLS session is over")
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for TlsError {}

fn kind_of(error: &Error, is_handshaking: bool) -> TlsErrorKind {
    match error {
        Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            // Every client of 1.2 or later says what it can verify; one that does not speaks 1.1 or 1.0.
            | PeerIncompatible::SignatureAlgorithmsExtensionRequired
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled,
        )
        | Error::AlertReceived(AlertDescription::ProtocolVersion) => TlsErrorKind::Version,
        Error::InvalidCertificate(_)
        | Error::NoCertificatesPresented
        | Error::InvalidCertRevocationList(_)
        | Error::AlertReceived(
            AlertDescription::NoCertificate
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired,
        ) => TlsErrorKind::Certificate,
        Error::InvalidMessage(_)
        | Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. }
        | Error::PeerMisbehaved(_)
        | Error::PeerSentOversizedRecord
        | Error::DecryptError => TlsErrorKind::Protocol,
        _ if is_handshaking => TlsErrorKind::Handshake,
        _ => TlsErrorKind::Protocol,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_of_an_outdated_version_is_told_apart_from_one_without_a_common_cipher() {
        let kind = |reason: PeerIncompatible| kind_of(&Error::PeerIncompatible(reason), true);
        assert_eq!(kind(PeerIncompatible::SignatureAlgorithmsExtensionRequired), TlsErrorKind::Version);
        assert_eq!(kind(PeerIncompatible::Tls12NotOffered), TlsErrorKind::Version);
        assert_eq!(kind(PeerIncompatible::NoCipherSuitesInCommon), TlsErrorKind::Handshake);
    }
}
