//! Credentials as they come: `Authorization: Bearer`, `Authorization: Basic app:token`, a client certificate.
//!
//! Must not know: which are good.

use crate::ca::CertificateIdentity;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use slipway_store::SecretHash;

/// What every token begins with, so that scanners of leaked secrets can know one.
pub const SECRET_PREFIX: &str = "slp_";
const SECRET_BYTES: usize = 32;
/// Longer is no token of ours.
const SECRET_CHARS_MAX: usize = 128;
const SECRET_CHARS_MIN: usize = SECRET_PREFIX.len() + 24;

/// A token's secret. `Debug` never prints it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// A new one, of 256 random bits.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn draw() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; SECRET_BYTES];
        getrandom::fill(&mut bytes)?;
        Ok(Self(format!(
            "{SECRET_PREFIX}{}",
            URL_SAFE_NO_PAD.encode(bytes)
        )))
    }

    /// Takes a text of the right form.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix(SECRET_PREFIX)?;
        let is_good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        let fits = (SECRET_CHARS_MIN..=SECRET_CHARS_MAX).contains(&text.len());
        (fits && rest.bytes().all(is_good)).then(|| Self(text.to_owned()))
    }

    /// As the store knows it.
    pub fn hash(&self) -> SecretHash {
        SecretHash(Sha256::digest(self.0.as_bytes()).into())
    }

    /// The secret itself: for its owner, once.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// What a caller presents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// A token's secret.
    Secret {
        /// The secret.
        secret: Secret,
        /// Basic's user name: an app. Absent with Bearer, or when it is empty.
        app: Option<String>,
    },
    /// A certificate of our authority, verified by TLS.
    Certificate(CertificateIdentity),
}

/// There is no credential, or it is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CredentialError {
    /// Neither header nor certificate.
    Missing,
    /// A header that says nothing we know.
    Malformed,
}

impl Credential {
    /// The credential of a request. A header goes before the connection's certificate.
    ///
    /// # Errors
    /// [`CredentialError`].
    pub fn of(
        headers: &HeaderMap,
        certificate: Option<&CertificateIdentity>,
    ) -> Result<Self, CredentialError> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        match (values.next(), values.next(), certificate) {
            (Some(value), None, _) => {
                let text = value.to_str().map_err(|_| CredentialError::Malformed)?;
                parse(text).ok_or(CredentialError::Malformed)
            }
            (Some(_), Some(_), _) => Err(CredentialError::Malformed),
            (None, _, Some(identity)) => Ok(Self::Certificate(identity.clone())),
            (None, _, None) => Err(CredentialError::Missing),
        }
    }

    pub(super) fn named_app(&self) -> Option<String> {
        match self {
            Self::Secret { app, .. } => app.clone(),
            Self::Certificate(_) => None,
        }
    }
}

fn parse(header: &str) -> Option<Credential> {
    let (scheme, rest) = header.split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(Credential::Secret {
            secret: Secret::parse(rest)?,
            app: None,
        });
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let decoded = String::from_utf8(STANDARD.decode(rest).ok()?).ok()?;
        let (app, secret) = decoded.split_once(':')?;
        let app = (!app.is_empty()).then(|| app.to_owned());
        return Some(Credential::Secret {
            secret: Secret::parse(secret)?,
            app,
        });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn of(header: &str) -> Result<Credential, CredentialError> {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_str(header).unwrap());
        Credential::of(&headers, None)
    }

    #[test]
    fn both_schemes_in_any_case_and_nothing_else() {
        let secret = Secret::draw().unwrap();
        let text = secret.expose().to_owned();
        let plain = Credential::Secret {
            secret: secret.clone(),
            app: None,
        };
        for header in [format!("Bearer {text}"), format!("bearer  {text} ")] {
            assert_eq!(of(&header), Ok(plain.clone()), "{header}");
        }
        let basic = |user: &str| format!("Basic {}", STANDARD.encode(format!("{user}:{text}")));
        assert_eq!(of(&basic("")), Ok(plain));
        let app = Some("shop".to_owned());
        assert_eq!(of(&basic("shop")), Ok(Credential::Secret { secret, app }));
        for bad in [
            "",
            "Bearer",
            "Bearer x",
            "Basic ???",
            "Digest a=b",
            "Bearer slp_short",
            &text,
        ] {
            assert_eq!(of(bad), Err(CredentialError::Malformed), "{bad}");
        }
        assert_eq!(
            Credential::of(&HeaderMap::new(), None),
            Err(CredentialError::Missing)
        );
    }

    #[test]
    fn two_headers_are_refused_because_others_might_read_the_other_one() {
        let mut headers = HeaderMap::new();
        let value = format!("Bearer {}", Secret::draw().unwrap().expose());
        for _ in 0..2 {
            headers.append(AUTHORIZATION, HeaderValue::from_str(&value).unwrap());
        }
        assert_eq!(
            Credential::of(&headers, None),
            Err(CredentialError::Malformed)
        );
    }

    #[test]
    fn a_secret_is_never_printed() {
        let secret = Secret::draw().unwrap();
        let text = secret.expose().to_owned();
        let shown = format!("{:?}", Credential::Secret { secret, app: None });
        assert!(!shown.contains(&text[SECRET_PREFIX.len()..]));
    }
}
