//! Certificates for tests and measurements: an authority made on the spot, and what it signs.
//!
//! Nothing is committed and nothing expires in a drawer: a test makes an [`Authority`], has it issue what it needs, and
//! writes PEM files where the program under test reads them. [`write_files`] does the usual set in one call, with ECDSA
//! P-256 keys.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, SanType,
};

const DAY: Duration = Duration::from_secs(86_400);

/// Who signs.
pub struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate, the authority that signed it, and its key.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate in PEM.
    pub chain: String,
    /// Its key in PEM, PKCS #8.
    pub key: String,
    /// The certificate in DER.
    pub der: Vec<u8>,
}

/// What kind of key is certified.
#[derive(Clone, Copy, Debug)]
pub enum KeyKind {
    /// ECDSA with P-256.
    P256,
    /// ECDSA with P-384.
    P384,
}

/// From when to when a certificate is valid, counted from now.
#[derive(Clone, Copy, Debug)]
pub enum Validity {
    /// From yesterday, for so many days.
    Days(u32),
    /// It ended so many days ago, a year after it began.
    EndedDaysAgo(u32),
    /// It begins in so many days and lasts for a year.
    BeginsInDays(u32),
}

/// Where [`write_files`] wrote what.
#[derive(Clone, Debug)]
pub struct Files {
    /// The authority's certificate.
    pub ca: PathBuf,
    /// The server's certificate.
    pub chain: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// A client's certificate, for `sip:client.test`.
    pub client_chain: PathBuf,
    /// Its key.
    pub client_key: PathBuf,
}

impl Authority {
    /// A new authority of that name.
    ///
    /// # Errors
    ///
    /// When the library cannot make keys.
    pub fn new(name: &str) -> anyhow::Result<Authority> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, Validity::Days(3_650));
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Ok(Authority { certificate, issuer: Issuer::new(params, key) })
    }

    /// The authority's certificate in PEM.
    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// A certificate for `names`, each a host name, an IP address or a `sip:` URI, valid for a year.
    ///
    /// # Errors
    ///
    /// A name that no certificate can have.
    pub fn issue(&self, names: &[&str]) -> anyhow::Result<Identity> {
        self.issue_for(names, Validity::Days(365), KeyKind::P256)
    }

    /// The same, with validity and key of its own.
    ///
    /// # Errors
    ///
    /// A name that no certificate can have.
    pub fn issue_for(&self, names: &[&str], validity: Validity, kind: KeyKind) -> anyhow::Result<Identity> {
        let (uris, hosts): (Vec<&str>, Vec<&str>) = names.iter().partition(|name| name.starts_with("sip:"));
        let mut params = CertificateParams::new(hosts.into_iter().map(str::to_owned).collect::<Vec<_>>())?;
        for uri in uris {
            params.subject_alt_names.push(SanType::URI(uri.try_into()?));
        }
        params.distinguished_name.push(DnType::CommonName, names.first().copied().unwrap_or("nobody"));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        set_validity(&mut params, validity);
        let key = KeyPair::generate_for(match kind {
            KeyKind::P256 => &PKCS_ECDSA_P256_SHA256,
            KeyKind::P384 => &PKCS_ECDSA_P384_SHA384,
        })?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Identity { chain: certificate.pem(), key: key.serialize_pem(), der: certificate.der().to_vec() })
    }
}

impl Identity {
    /// Writes `NAME.pem` and `NAME.key` into a directory and gives back both paths.
    ///
    /// # Errors
    ///
    /// Those of the file system.
    pub fn write(&self, directory: &Path, name: &str) -> io::Result<(PathBuf, PathBuf)> {
        let (chain, key) = (directory.join(format!("{name}.pem")), directory.join(format!("{name}.key")));
        fs::write(&chain, &self.chain)?;
        fs::write(&key, &self.key)?;
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
        Ok((chain, key))
    }
}

/// Makes an authority, a server's certificate for `names` (host names and IP addresses) and a client's, and writes
/// them into `directory`, which must exist.
///
/// # Errors
///
/// A name that no certificate can have, and those of the file system.
pub fn write_files(directory: &Path, names: &[&str]) -> anyhow::Result<Files> {
    let authority = Authority::new("test authority")?;
    let ca = directory.join("ca.pem");
    fs::write(&ca, authority.pem())?;
    let (chain, key) = authority.issue(names)?.write(directory, "server")?;
    let (client_chain, client_key) = authority.issue(&["sip:client.test"])?.write(directory, "client")?;
    Ok(Files { ca, chain, key, client_chain, client_key })
}

fn set_validity(params: &mut CertificateParams, validity: Validity) {
    let now = SystemTime::now();
    let (begin, end) = match validity {
        Validity::Days(days) => (now - DAY, now + DAY * days),
        Validity::EndedDaysAgo(days) => (now - DAY * (days + 365), now - DAY * days),
        Validity::BeginsInDays(days) => (now + DAY * days, now + DAY * (days + 365)),
    };
    params.not_before = begin.into();
    params.not_after = end.into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_written_where_asked() {
        let directory = std::env::temp_dir().join(format!("tandem-certificates-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let files = write_files(&directory, &["sip.example.com", "127.0.0.1", "::1"]).unwrap();
        for (path, label) in [
            (&files.ca, "CERTIFICATE"),
            (&files.chain, "CERTIFICATE"),
            (&files.key, "PRIVATE KEY"),
            (&files.client_chain, "CERTIFICATE"),
            (&files.client_key, "PRIVATE KEY"),
        ] {
            let text = fs::read_to_string(path).unwrap();
            assert!(text.starts_with(&format!("-----BEGIN {label}-----")), "{}", path.display());
        }
        fs::remove_dir_all(&directory).unwrap();
    }
}
