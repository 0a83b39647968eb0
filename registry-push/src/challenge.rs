//! Parses what a registry asks for on 401 (RFC 9110, section 11.6.1, formerly RFC 7235; Docker's token specification).
//!
//! Pure: header text in, challenge out.

use std::collections::HashMap;

/// What has to be shown to the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// User name and password.
    Basic,
    /// A token from somewhere else.
    Bearer {
        /// URL of the token server.
        realm: String,
        /// Name of the registry to the token server.
        service: Option<String>,
    },
}

/// A challenge that cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChallengeError {
    /// 401 without `WWW-Authenticate`.
    #[error("the registry asks for a credential and does not say of which kind")]
    Missing,
    /// Neither Basic nor Bearer.
    #[error("the registry asks for {0:?}; only Basic and Bearer are known")]
    Unknown(String),
    /// Bearer without a usable realm.
    #[error("the registry names no usable token server: {0:?}")]
    Realm(String),
    /// A credential would leave TLS.
    #[error("the token server {0:?} has no TLS, so it gets no credential")]
    Clear(String),
}

const HEADER_CHARS_MAX: usize = 8 << 10;

/// Picks the challenge to follow among the values of all `WWW-Authenticate` headers; Bearer before Basic.
pub(crate) fn choose<'a>(
    headers: impl IntoIterator<Item = &'a str>,
) -> Result<Challenge, ChallengeError> {
    let mut basic = None;
    let mut unknown = None;
    for header in headers {
        for (scheme, params) in parse(header) {
            if scheme.eq_ignore_ascii_case("bearer") {
                let realm = params.get("realm").cloned().unwrap_or_default();
                if !(realm.starts_with("https://") || realm.starts_with("http://")) {
                    return Err(ChallengeError::Realm(realm));
                }
                return Ok(Challenge::Bearer {
                    realm,
                    service: params.get("service").cloned(),
                });
            } else if scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            } else {
                unknown.get_or_insert(scheme);
            }
        }
    }
    match (basic, unknown) {
        (Some(challenge), _) => Ok(challenge),
        (None, Some(scheme)) => Err(ChallengeError::Unknown(scheme)),
        (None, None) => Err(ChallengeError::Missing),
    }
}

/// Schemes with their parameters, keys in lower case. What cannot be read ends the list.
fn parse(header: &str) -> Vec<(String, HashMap<String, String>)> {
    let mut found: Vec<(String, HashMap<String, String>)> = Vec::new();
    let mut rest = header
        .get(..header.len().min(HEADER_CHARS_MAX))
        .unwrap_or_default();
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find(|c: char| !is_token(c)).unwrap_or(rest.len());
        if end == 0 {
            return found;
        }
        let (name, after) = rest.split_at(end);
        let after = after.trim_start_matches([' ', '\t']);
        match after.strip_prefix('=') {
            // `name=value` belongs to the scheme before it.
            Some(value) => {
                let Some((_, params)) = found.last_mut() else {
                    return found;
                };
                let Some((value, after)) = parameter(value.trim_start_matches([' ', '\t'])) else {
                    return found;
                };
                params.insert(name.to_ascii_lowercase(), value);
                rest = after;
            }
            None => {
                found.push((name.to_string(), HashMap::new()));
                rest = after;
            }
        }
    }
}

/// A token or a quoted string at the start of the text, and what follows it.
fn parameter(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c: char| !is_token(c)).unwrap_or(text.len());
        return Some((text[..end].to_string(), &text[end..]));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((position, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[position + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_challenges_of_real_registries() {
        let bearer = |realm: &str, service: &str| {
            Ok(Challenge::Bearer {
                realm: realm.to_string(),
                service: Some(service.to_string()),
            })
        };
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io""#;
        assert_eq!(
            choose([hub]),
            bearer("https://auth.docker.io/token", "registry.docker.io")
        );
        let scoped = r#"bearer realm = "https://a.test/t?x=1,2" , service="a \"b\"",scope="repository:a/b:pull,push",error="invalid_token""#;
        assert_eq!(
            choose([scoped]),
            bearer("https://a.test/t?x=1,2", "a \"b\"")
        );
        assert_eq!(
            choose([r#"Basic realm="Registry Realm""#]),
            Ok(Challenge::Basic)
        );
        let both = r#"Basic realm="x", Bearer realm="https://a.test",service=s"#;
        assert_eq!(choose([both]), bearer("https://a.test", "s"));
        assert_eq!(choose(["Negotiate", "Basic realm=x"]), Ok(Challenge::Basic));
    }

    #[test]
    fn what_cannot_be_followed_is_said() {
        assert_eq!(choose([]), Err(ChallengeError::Missing));
        assert_eq!(choose([""]), Err(ChallengeError::Missing));
        assert_eq!(
            choose(["Negotiate abc"]),
            Err(ChallengeError::Unknown("Negotiate".into()))
        );
        for realm in [
            "",
            r#"realm="file:///etc/passwd""#,
            r#"realm="unclosed"#,
            "service=x",
        ] {
            assert!(
                matches!(
                    choose([&*format!("Bearer {realm}")]),
                    Err(ChallengeError::Realm(_))
                ),
                "{realm}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_header_ends(header in "\\PC{0,200}") {
            let _ = choose([header.as_str()]);
        }

        #[test]
        fn any_quoted_realm_is_read_back(path in "[ -~]{0,60}") {
            let realm = format!("https://a.test/{path}");
            let quoted = realm.replace('\\', "\\\\").replace('"', "\\\"");
            let found = choose([&*format!("Bearer realm=\"{quoted}\"")]);
            prop_assert_eq!(found, Ok(Challenge::Bearer { realm, service: None }));
        }
    }
}
