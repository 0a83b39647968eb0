//! Where an image goes, and with whose credential.
//!
//! Knows the grammar of references (by oci-distribution) and which hosts are loopback; opens no connection.

use crate::digest::Digest;
use oci_distribution::Reference;
use std::fmt;

/// `host[:port]/repository:tag`, parsed and normalised as Docker does (`name` is `docker.io/library/name:latest`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    registry: String,
    repository: String,
    tag: String,
}

/// The text is no reference that can be pushed to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Not `host/repository:tag`.
    #[error("{text:?} is not an image reference: {reason}")]
    Malformed {
        /// What was given.
        text: String,
        /// What the grammar says.
        reason: String,
    },
    /// More tags than one push writes.
    #[error("a push writes {most} tags at most")]
    Tags {
        /// How many it writes.
        most: usize,
    },
    /// A push writes a tag; a digest cannot be chosen.
    #[error("{text:?} names a digest; a push needs a tag, such as host/repository:tag")]
    Digest {
        /// What was given.
        text: String,
    },
}

impl Target {
    /// Parses a reference. The tag is `latest` when there is none.
    pub fn parse(text: &str) -> Result<Target, TargetError> {
        let target = Self::read(text)?;
        if is_odd_address(host_name(&target.registry)) {
            return Err(TargetError::Malformed {
                text: text.chars().take(300).collect(),
                reason: "an IPv4 address is written as four decimal numbers, as 10.1.2.3"
                    .to_string(),
            });
        }
        Ok(target)
    }

    fn read(text: &str) -> Result<Target, TargetError> {
        if let Some(target) = plain(text) {
            return Ok(target);
        }
        let shown = || text.chars().take(300).collect::<String>();
        let reference: Reference = text.parse().map_err(
            |error: oci_distribution::ParseError| TargetError::Malformed {
                text: shown(),
                reason: error.to_string(),
            },
        )?;
        if reference.digest().is_some() {
            return Err(TargetError::Digest { text: shown() });
        }
        // The library takes letters of any script in a tag.
        if !reference.tag().is_none_or(str::is_ascii) {
            let reason = "a tag is written in ASCII".to_string();
            return Err(TargetError::Malformed {
                text: shown(),
                reason,
            });
        }
        // A first part such as `UPPER` is not taken as a host, and then is no repository either.
        if reference
            .repository()
            .bytes()
            .any(|byte| byte.is_ascii_uppercase())
        {
            let reason = "a repository is written in lower case".to_string();
            return Err(TargetError::Malformed {
                text: shown(),
                reason,
            });
        }
        Ok(Target {
            registry: reference.registry().to_string(),
            repository: reference.repository().to_string(),
            tag: reference.tag().unwrap_or("latest").to_string(),
        })
    }

    /// The same repository with another tag.
    pub fn with_tag(&self, tag: &str) -> Result<Target, TargetError> {
        // Parsed anew, so that a tag cannot smuggle in anything else.
        let other = Target::parse(&format!("{}/{}:{tag}", self.registry, self.repository))?;
        if other.tag != tag || other.repository != self.repository {
            return Err(TargetError::Malformed {
                text: tag.chars().take(300).collect(),
                reason: "not a tag".to_string(),
            });
        }
        Ok(other)
    }

    /// Registry as the user wrote it, with its port if any.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Repository inside the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Tag to write.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Host and port that serve the registry's API. Docker Hub's differs from its name.
    pub fn api_host(&self) -> &str {
        if self.registry == "docker.io" {
            "registry-1.docker.io"
        } else {
            &self.registry
        }
    }

    /// `host/repository@digest`, by which the pushed image can be named for ever.
    pub fn pinned(&self, digest: &Digest) -> String {
        format!("{}/{}@{digest}", self.registry, self.repository)
    }
}

/// What almost every target is, `host/repository[:tag]` in plain words, read without the library: its grammar takes long to get ready, which
/// is most of the time that the push of an unchanged image takes. `None` leaves the text to the library.
fn plain(text: &str) -> Option<Target> {
    let (host, rest) = text.split_once('/')?;
    let (name, port) = host.split_once(':').unwrap_or((host, "0"));
    // Docker takes a first part without either for a user of its own hub, and knows other names for that.
    let is_host = host.contains(['.', ':']) || host == "localhost";
    let is_port = matches!(port.len(), 1..=5) && port.bytes().all(|byte| byte.is_ascii_digit());
    if !is_host || !is_port || host.ends_with("docker.io") || text.len() > 200 {
        return None;
    }
    let (repository, tag) = rest.split_once(':').unwrap_or((rest, "latest"));
    let is_tag = tag.len() <= 128
        && tag.starts_with(|c: char| c.is_ascii_alphanumeric())
        && tag
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    let are_words = name.split('.').all(|label| is_words(label, "-"))
        && repository.split('/').all(|part| is_words(part, "._-"));
    (is_tag && are_words).then(|| Target {
        registry: host.to_string(),
        repository: repository.to_string(),
        tag: tag.to_string(),
    })
}

/// Whether a URL with this host leads to an IPv4 address (its last part is a number) that is written in another way than usual: such a name
/// would be held against lists of addresses as it is written, and connected to as what it means.
fn is_odd_address(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let last = name.rsplit('.').next().unwrap_or_default();
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let hexadecimal = last
        .strip_prefix("0x")
        .or_else(|| last.strip_prefix("0X"))
        .is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_hexdigit()));
    (digits(last) || hexadecimal) && name.parse::<std::net::Ipv4Addr>().is_err()
}

/// Lower-case letters and digits, with single separators between them.
fn is_words(text: &str, separators: &str) -> bool {
    text.split(|c| separators.contains(c)).all(|word| {
        !word.is_empty()
            && word
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    })
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.registry, self.repository, self.tag)
    }
}

/// Whether a host is this machine, to which Docker speaks plain http without being told to.
pub(crate) fn is_loopback(host: &str) -> bool {
    let name = host_name(host);
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// `host` of `host:port`, without the brackets of an IPv6 address.
pub(crate) fn host_name(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once(']').map_or(rest, |(name, _)| name);
    }
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

/// User name and password or token for a registry. Never printed.
#[derive(Clone)]
pub struct Credential {
    /// As for `docker login -u`. Empty or `<token>`, as credential helpers write it: the password is an identity token, which the token
    /// server exchanges for an access token.
    pub username: String,
    /// Password, access token or identity token.
    pub password: String,
}

impl Credential {
    /// Whether the password is an identity (refresh) token.
    pub(crate) fn is_identity_token(&self) -> bool {
        matches!(self.username.as_str(), "" | "<token>")
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn references_are_normalised_like_dockers() {
        for (text, expected) in [
            ("127.0.0.1:5000/app", "127.0.0.1:5000/app:latest"),
            ("localhost:5000/a/b:v1", "localhost:5000/a/b:v1"),
            (
                "registry.example.test/a/b.c_d:V1",
                "registry.example.test/a/b.c_d:V1",
            ),
            ("debian", "docker.io/library/debian:latest"),
            ("someone/app:1", "docker.io/someone/app:1"),
        ] {
            assert_eq!(
                Target::parse(text).map(|t| t.to_string()).as_deref(),
                Ok(expected)
            );
        }
        assert_eq!(
            Target::parse("debian").expect("parses").api_host(),
            "registry-1.docker.io"
        );
    }

    #[test]
    fn an_address_is_written_in_one_way() {
        for odd in [
            "0x7f000002:6001",
            "0x7f.0.0.2",
            "0x7f.1:80",
            "2130706434:6001",
            "127.2:6001",
            "127.0.0.0x2",
            "0177.0.0.2",
            "127.0.0.02:80",
            "127.0.0.256",
        ] {
            let text = format!("{odd}/app");
            let refused = Target::parse(&text).expect_err(&text);
            assert!(
                refused.to_string().contains("four decimal numbers"),
                "{refused}"
            );
            // What it would have led to.
            assert!(
                reqwest::Url::parse(&format!("http://{odd}/v2/")).is_ok() || odd.ends_with("256")
            );
        }
        for usual in [
            "127.0.0.2:6001",
            "reg1.example:80",
            "0x7f.example",
            "1.2.3.example",
        ] {
            let target = Target::parse(&format!("{usual}/app")).expect(usual);
            assert_eq!(target.registry(), usual);
        }
    }

    proptest! {
        #[test]
        fn what_is_read_plainly_is_what_the_library_reads(
            text in "[a-z0-9.-]{0,9}(:[0-9]{0,6})?(/[a-z0-9._-]{0,5}){0,3}(:[A-Za-z0-9._-]{0,6})?(@x)?",
        ) {
            if let Some(plain) = plain(&text) {
                let reference: Reference = text.parse().expect("the library reads it too");
                prop_assert_eq!(plain.registry(), reference.registry());
                prop_assert_eq!(plain.repository(), reference.repository());
                prop_assert_eq!(plain.tag(), reference.tag().unwrap_or("latest"));
                prop_assert!(reference.digest().is_none());
            }
        }
    }

    #[test]
    fn plain_targets_are_read_plainly() {
        for text in [
            "127.0.0.1:5000/app:v1",
            "registry.example.test/a/b.c-d_e",
            "localhost/a:1",
        ] {
            assert!(plain(text).is_some(), "{text}");
        }
        for text in [
            "debian",
            "docker.io/library/debian",
            "me/app:1",
            "[::1]:5/a",
            "h.test/a:b:c",
        ] {
            assert!(plain(text).is_none(), "{text}");
        }
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for text in [
            "",
            "UPPER/case",
            "host/a//b",
            "host/a:b:c",
            "host/../x",
            "a b",
            "host/a?x=1",
            "host/a#b",
            "h/\u{e9}",
            "host/a:\u{130}",
        ] {
            assert!(Target::parse(text).is_err(), "{text:?}");
        }
        let digest = format!("host:1/a@{}", Digest::of(b""));
        assert!(matches!(
            Target::parse(&digest),
            Err(TargetError::Digest { .. })
        ));
    }

    #[test]
    fn another_tag_is_a_tag_and_nothing_else() {
        let target = Target::parse("host:1/a/b:v1").expect("parses");
        let other = target.with_tag("v2").expect("a tag");
        assert_eq!(other.to_string(), "host:1/a/b:v2");
        for tag in ["", "a/b", "a:b", "a b", "a@sha256:x", "../x", "-x"] {
            assert!(target.with_tag(tag).is_err(), "{tag:?}");
        }
    }

    #[test]
    fn loopback_is_by_address_not_by_prefix() {
        for host in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "127.9.9.9",
            "[::1]:5000",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "127.0.0.1.example.test",
            "localhost.example.test:5000",
            "10.0.0.1",
            "[::2]:1",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn a_credential_is_never_shown() {
        let credential = Credential {
            username: "someone".into(),
            password: "hunter2".into(),
        };
        assert_eq!(format!("{credential:?}"), "Credential(redacted)");
    }
}
