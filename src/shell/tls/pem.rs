//! Certificates and keys out of PEM files, with every usual mistake named.
//!
//! A file may hold more than it is asked for: certificate and key in one file is common. What is not of the kind
//! asked for is passed over; a file that has nothing of that kind is refused with what it holds instead.
//!
//! Cost: files are read once at start and once per reload, up to [`PEM_BYTES_MAX`].

use std::path::Path;

use rustls::pki_types::pem::{PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};

use crate::config::{Wrong, read_bounded};

/// The largest PEM file, in bytes; a bundle of all public authorities has a twentieth of it.
const PEM_BYTES_MAX: u64 = 4 << 20;

/// The certificates in a file, in its order; at least one.
///
/// # Errors
///
/// A file that cannot be read, is not PEM, or has no certificate.
pub(super) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Wrong> {
    let sections = read_sections(path)?;
    let is_key = sections.iter().any(|(kind, _)| is_private_key(*kind));
    let certificates: Vec<_> = sections
        .into_iter()
        .filter(|(kind, _)| *kind == SectionKind::Certificate)
        .map(|(_, der)| CertificateDer::from(der))
        .collect();
    match certificates.is_empty() {
        false => Ok(certificates),
        true if is_key => {
            Err(Wrong::new("it holds a private key and no certificate", "name the PEM file of the certificate here"))
        }
        true => Err(Wrong::new("it holds no certificate", "write a PEM file with BEGIN CERTIFICATE in it")),
    }
}

/// The one private key in a file.
///
/// # Errors
///
/// A file that cannot be read, is not PEM, or has no private key, several, or one with a passphrase.
pub(super) fn read_private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Wrong> {
    let sections = read_sections(path)?;
    let is_certificate = sections.iter().any(|(kind, _)| *kind == SectionKind::Certificate);
    let mut keys = sections.into_iter().filter(|(kind, _)| is_private_key(*kind));
    let Some((kind, der)) = keys.next() else {
        return Err(match is_certificate {
            true => Wrong::new("it holds a certificate and no private key", "name the PEM file of the key here"),
            false => Wrong::new("it holds no private key", "write a PEM file with BEGIN PRIVATE KEY in it"),
        });
    };
    if keys.next().is_some() {
        return Err(Wrong::new("it holds several private keys", "leave the one that belongs to the certificate"));
    }
    Ok(match kind {
        SectionKind::RsaPrivateKey => PrivatePkcs1KeyDer::from(der).into(),
        SectionKind::EcPrivateKey => PrivateSec1KeyDer::from(der).into(),
        _ => PrivatePkcs8KeyDer::from(der).into(),
    })
}

fn is_private_key(kind: SectionKind) -> bool {
    matches!(kind, SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey)
}

/// The sections of a PEM file whose labels are known.
fn read_sections(path: &Path) -> Result<Vec<(SectionKind, Vec<u8>)>, Wrong> {
    let bytes = read_bounded(path, PEM_BYTES_MAX).map_err(|reason| {
        Wrong::new(format!("cannot be read: {reason}"), "name a PEM file that this process may read")
    })?;
    decode_sections(&bytes)
}

fn decode_sections(bytes: &[u8]) -> Result<Vec<(SectionKind, Vec<u8>)>, Wrong> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(Wrong::new("it is empty", "write the PEM text into it"));
    }
    let has = |text: &str| memchr::memmem::find(bytes, text.as_bytes()).is_some();
    if has("-----BEGIN ENCRYPTED PRIVATE KEY-----") || has("Proc-Type: 4,ENCRYPTED") {
        let remedy = "write the key without one, as `openssl pkey -in FILE -out NEW` does, and let only Tandem read it";
        return Err(Wrong::new("its key has a passphrase", remedy));
    }
    if !has("-----BEGIN ") {
        // DER begins with a sequence whose length has two bytes.
        let remedy = match bytes.starts_with(&[0x30, 0x82]) {
            true => "this looks like DER: convert it with `openssl x509 -inform DER` or `openssl pkey -inform DER`",
            false => "write a PEM file: text with lines such as -----BEGIN CERTIFICATE-----",
        };
        return Err(Wrong::new("it is not PEM", remedy));
    }
    let sections: Result<Vec<(SectionKind, Vec<u8>)>, _> = PemObject::pem_slice_iter(bytes).collect();
    sections.map_err(|error| Wrong::new(format!("it is broken PEM: {error}"), "make the file anew"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_pem_is_named() {
        let what = |bytes: &[u8]| decode_sections(bytes).unwrap_err().what;
        assert_eq!(what(b""), "it is empty");
        assert_eq!(what(b" \r\n"), "it is empty");
        assert_eq!(what(b"hello"), "it is not PEM");
        assert!(decode_sections(&[0x30, 0x82, 1, 0]).unwrap_err().remedy.contains("DER"));
        assert!(what(b"-----BEGIN CERTIFICATE-----\nAAAA\n").starts_with("it is broken PEM: "));
        assert!(
            what(b"-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n").starts_with("it is broken PEM")
        );
        let legacy = b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n";
        assert_eq!(what(legacy), "its key has a passphrase");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(head in "(-----BEGIN CERTIFICATE-----\n)?", tail in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_sections(&[head.as_bytes(), &tail].concat());
        }
    }
}
