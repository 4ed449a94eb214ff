//! What a certificate says of itself: names, time, whose key it certifies.
//!
//! The chain of trust is rustls' business. What is read here is for choosing a certificate by the name that a client
//! asks for (RFC 6066 section 3), for telling an operator in time that one ends, and for the names of a peer that has
//! been verified (RFC 5922 section 7.1).

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A certificate that ends sooner than this is warned of.
const WARN_BEFORE_S: i64 = 30 * DAY_S;
const DAY_S: i64 = 86_400;

/// What is kept of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// DNS names among the subject's alternative names, lower case.
    pub(super) dns_names: Vec<String>,
    /// The domains of its `sip:` URIs, lower case.
    pub(super) sip_domains: Vec<String>,
    /// Seconds since 1970.
    not_before: i64,
    not_after: i64,
    not_after_shown: String,
    /// The public key with its algorithm, in DER.
    pub(super) public_key: Vec<u8>,
}

impl Facts {
    /// Reads a certificate; `None` when it is none.
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Option<Facts> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let (mut dns_names, mut sip_domains) = (Vec::new(), Vec::new());
        let alternatives = parsed.subject_alternative_name().ok().flatten();
        for name in alternatives.iter().flat_map(|extension| &extension.value.general_names) {
            match name {
                GeneralName::DNSName(name) => dns_names.push(name.trim_end_matches('.').to_ascii_lowercase()),
                GeneralName::URI(uri) => sip_domains.extend(sip_domain(uri)),
                _ => {}
            }
        }
        let validity = parsed.validity();
        Some(Facts {
            dns_names,
            sip_domains,
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
            not_after_shown: validity.not_after.to_string(),
            public_key: parsed.public_key().raw.to_vec(),
        })
    }

    /// What is wrong with its time, or soon will be; `now` in seconds since 1970.
    pub(super) fn time_warning(&self, now: i64) -> Option<String> {
        let end = &self.not_after_shown;
        if now > self.not_after {
            return Some(format!("it has expired on {end}"));
        }
        if now < self.not_before {
            return Some("its time has not begun; is this machine's clock right?".to_owned());
        }
        let days = (self.not_after - now) / DAY_S;
        (self.not_after - now < WARN_BEFORE_S).then(|| format!("it expires in {days} days, on {end}"))
    }

    /// Does one of its DNS names mean `name`, which may itself begin with `*.`?
    pub(super) fn has_name(&self, name: &str) -> bool {
        let wildcard = name.split_once('.').map(|(_, domain)| format!("*.{domain}"));
        self.dns_names.iter().any(|own| own == name || Some(own) == wildcard.as_ref())
    }
}

/// The domain of `sip:example.com`; a URI with a user part is a person, not a domain (RFC 5922 section 7.1).
fn sip_domain(uri: &str) -> Option<String> {
    let rest = uri.get(..4).filter(|scheme| scheme.eq_ignore_ascii_case("sip:")).map(|_| &uri[4..])?;
    let is_domain = !rest.is_empty() && !rest.contains(['@', ';', '?']);
    is_domain.then(|| rest.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(dns_names: &[&str]) -> Facts {
        Facts {
            dns_names: dns_names.iter().map(|name| (*name).to_owned()).collect(),
            sip_domains: Vec::new(),
            not_before: 1_000_000,
            not_after: 1_000_000 + 90 * DAY_S,
            not_after_shown: "then".to_owned(),
            public_key: Vec::new(),
        }
    }

    #[test]
    fn end_is_announced_thirty_days_before() {
        let facts = facts(&[]);
        assert_eq!(facts.time_warning(facts.not_after - 31 * DAY_S), None);
        assert_eq!(facts.time_warning(facts.not_after - 3 * DAY_S).unwrap(), "it expires in 3 days, on then");
        assert_eq!(facts.time_warning(facts.not_after + 1).unwrap(), "it has expired on then");
        assert!(facts.time_warning(facts.not_before - 1).unwrap().contains("clock"));
    }

    #[test]
    fn wildcard_means_one_label() {
        let facts = facts(&["*.example.com", "sip.example.org"]);
        assert!(
            facts.has_name("a.example.com") && facts.has_name("*.example.com") && facts.has_name("sip.example.org")
        );
        assert!(!facts.has_name("example.com") && !facts.has_name("a.b.example.com") && !facts.has_name("example.org"));
    }

    #[test]
    fn sip_uri_without_a_user_is_a_domain() {
        assert_eq!(sip_domain("SIP:Example.com").as_deref(), Some("example.com"));
        for other in ["sip:", "sip:alice@example.com", "sip:example.com;transport=tls", "https://example.com", "é:"] {
            assert_eq!(sip_domain(other), None, "{other}");
        }
    }
}
