//! The certificate authority of an installation: one ECDSA P-256 key in the data directory, the server's certificates
//! and the clients'.
//!
//! A client certificate names the token it was issued with (common name) and its org (organisation), and is good only as
//! long as that token is. Must not know: TLS, tokens' secrets, HTTP.

use crate::secret_file::{self, SecretFileError};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use slipway_core::id::{OrgId, TokenId};
use slipway_core::time::Timestamp;
use std::path::Path;
use std::time::Duration;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The authority's certificate, for clients, in the data directory.
pub const CA_CERTIFICATE_FILE: &str = "ca.pem";
/// The authority's key.
pub const CA_KEY_FILE: &str = "ca.key";
/// Life of the authority.
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Certificates begin this long ago, for clients whose clocks are behind.
const CLOCK_SKEW: Duration = Duration::from_secs(300);

/// Why a certificate was not made or read.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// Files of the authority.
    #[error("read or make the certificate authority")]
    Files(#[from] SecretFileError),
    /// Only one of key and certificate is there.
    #[error("{CA_CERTIFICATE_FILE} and {CA_KEY_FILE} do not belong together, or one is damaged")]
    Damaged,
    /// A certificate could not be made.
    #[error("make a certificate")]
    Make(#[from] rcgen::Error),
    /// A certificate of this authority does not say what ours say.
    #[error("a client certificate names no token")]
    NoIdentity,
    /// The system has no randomness.
    #[error("draw a serial number: {0}")]
    Entropy(getrandom::Error),
}

/// Whom a client certificate speaks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CertificateIdentity {
    /// The token it was issued with.
    pub token: TokenId,
    /// The org it is good for.
    pub org: OrgId,
}

/// A certificate and its key, both PEM. `Debug` never prints the key.
pub struct Issued {
    /// The certificate.
    pub cert_pem: String,
    /// Its key.
    pub key_pem: String,
    /// Not good after this.
    pub not_after: Timestamp,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued")
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// A server's certificate with its key, as rustls takes them.
#[derive(Debug)]
pub(crate) struct ServerCertificate {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) not_after: Timestamp,
}

/// The authority. `Debug` never prints the key.
pub struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CertificateAuthority(..)")
    }
}

impl CertificateAuthority {
    /// Reads the authority in `data_dir`, or makes one. The key is written before the certificate, so that a kill
    /// between the two leaves a key whose certificate is then made.
    ///
    /// # Errors
    /// [`CaError`].
    pub fn open(data_dir: &Path, now: Timestamp) -> Result<Self, CaError> {
        let (key_path, pem_path) = (
            data_dir.join(CA_KEY_FILE),
            data_dir.join(CA_CERTIFICATE_FILE),
        );
        // Beside a certificate no key is made: it would not be that one's.
        let key = if pem_path.exists() {
            secret_file::read(&key_path)?
        } else {
            let fresh = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            secret_file::read_or_make(&key_path, || Ok(fresh.serialize_pem().into_bytes()))?
        };
        let key = String::from_utf8(key)
            .ok()
            .and_then(|pem| KeyPair::from_pem(&pem).ok())
            .ok_or(CaError::Damaged)?;
        if !pem_path.exists() {
            let pem = authority_params(now)?.self_signed(&key)?.pem();
            secret_file::write_public(&pem_path, pem.as_bytes())?;
        }
        let pem = std::fs::read_to_string(&pem_path).map_err(|_| CaError::Damaged)?;
        let certificate =
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| CaError::Damaged)?;
        let (_, parsed) = X509Certificate::from_der(&certificate).map_err(|_| CaError::Damaged)?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(CaError::Damaged);
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self {
            issuer,
            certificate,
            pem,
        })
    }

    /// The authority's certificate, for clients.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// A certificate for a server that is reached under `names` (host names or addresses).
    ///
    /// # Errors
    /// [`CaError::Make`] for a name that is none.
    pub(crate) fn issue_server(
        &self,
        names: &[String],
        now: Timestamp,
        life: Duration,
    ) -> Result<ServerCertificate, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = leaf_params(CertificateParams::new(names)?, now, life)?;
        params
            .distinguished_name
            .push(DnType::CommonName, "slipwayd serve");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(ServerCertificate {
            certificate: certificate.der().clone(),
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            not_after: now.after(life),
        })
    }

    /// A certificate that speaks for `identity`.
    ///
    /// # Errors
    /// [`CaError::Make`].
    pub fn issue_client(
        &self,
        identity: &CertificateIdentity,
        now: Timestamp,
        life: Duration,
    ) -> Result<Issued, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = leaf_params(CertificateParams::default(), now, life)?;
        params
            .distinguished_name
            .push(DnType::CommonName, identity.token.as_str());
        params
            .distinguished_name
            .push(DnType::OrganizationName, identity.org.as_str());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued {
            cert_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            not_after: now.after(life),
        })
    }
}

/// Whom a certificate speaks for. The caller has verified that it is one of this authority's and is in its time.
///
/// # Errors
/// [`CaError::NoIdentity`].
pub fn identity(certificate: &CertificateDer<'_>) -> Result<CertificateIdentity, CaError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| CaError::NoIdentity)?;
    let subject = parsed.subject();
    // Exactly one of each, or it is not one of ours.
    let mut tokens = subject.iter_common_name();
    let mut orgs = subject.iter_organization();
    let (Some(token), None, Some(org), None) =
        (tokens.next(), tokens.next(), orgs.next(), orgs.next())
    else {
        return Err(CaError::NoIdentity);
    };
    let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        value
            .as_str()
            .map(str::to_owned)
            .map_err(|_| CaError::NoIdentity)
    };
    Ok(CertificateIdentity {
        token: text(token)?.parse().map_err(|_| CaError::NoIdentity)?,
        org: text(org)?.parse().map_err(|_| CaError::NoIdentity)?,
    })
}

fn authority_params(now: Timestamp) -> Result<CertificateParams, CaError> {
    let mut params = leaf_params(CertificateParams::default(), now, CA_LIFE)?;
    params
        .distinguished_name
        .push(DnType::CommonName, "slipway certificate authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = false;
    Ok(params)
}

fn leaf_params(
    mut params: CertificateParams,
    now: Timestamp,
    life: Duration,
) -> Result<CertificateParams, CaError> {
    let at =
        |time: Timestamp| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(time.0 / 1000);
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(CaError::Entropy)?;
    // A positive number, as RFC 5280 wants it.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.not_before = at(Timestamp(now.0.saturating_sub(CLOCK_SKEW.as_secs() * 1000)));
    params.not_after = at(now.after(life));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);
    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn the_authority_is_made_once_and_its_key_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let first = CertificateAuthority::open(dir.path(), NOW).unwrap();
        let second = CertificateAuthority::open(dir.path(), NOW.after(DAY)).unwrap();
        assert_eq!(first.pem(), second.pem());
        let key = std::fs::metadata(dir.path().join(CA_KEY_FILE)).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_kill_between_key_and_certificate_is_survived_and_a_lost_key_is_told() {
        let dir = tempfile::tempdir().unwrap();
        CertificateAuthority::open(dir.path(), NOW).unwrap();
        std::fs::remove_file(dir.path().join(CA_CERTIFICATE_FILE)).unwrap();
        CertificateAuthority::open(dir.path(), NOW).unwrap();
        std::fs::remove_file(dir.path().join(CA_KEY_FILE)).unwrap();
        assert!(CertificateAuthority::open(dir.path(), NOW).is_err());
    }

    #[test]
    fn a_client_certificate_speaks_for_its_token_and_a_servers_for_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let ca = CertificateAuthority::open(dir.path(), NOW).unwrap();
        let who = CertificateIdentity {
            token: TokenId::from_entropy([3; 10]),
            org: OrgId::from_entropy([4; 10]),
        };
        let issued = ca.issue_client(&who, NOW, DAY).unwrap();
        let der = CertificateDer::from_pem_slice(issued.cert_pem.as_bytes()).unwrap();
        assert_eq!(identity(&der).unwrap(), who);
        assert_eq!(issued.not_after, NOW.after(DAY));
        let names = [
            "localhost".to_owned(),
            "127.0.0.1".to_owned(),
            "::1".to_owned(),
        ];
        let server = ca.issue_server(&names, NOW, DAY).unwrap();
        assert!(identity(&server.certificate).is_err());
    }
}
