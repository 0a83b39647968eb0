//! Which registries have mirrors: the setting, read and checked.
//!
//! Must not know: how an engine is told of them.

use crate::address::{Allowed, Transport};
use crate::limits::MIRRORS_MAX;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddrV4;

/// Docker Hub, as images' names say it.
pub(crate) const HUB: &str = "docker.io";

/// Mirrors by the host of the registry that they stand for. Reads a table (`"ghcr.io" = "http://10.1.2.3:5001"`), or a list, which is
/// Docker Hub's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "Written")]
pub struct Mirrors(BTreeMap<String, Vec<String>>);

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Hubs(Vec<String>),
    Table(BTreeMap<String, OneOrMore>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl From<Written> for Mirrors {
    fn from(written: Written) -> Self {
        Self(match written {
            Written::Hubs(urls) if urls.is_empty() => BTreeMap::new(),
            Written::Hubs(urls) => BTreeMap::from([(HUB.to_owned(), urls)]),
            Written::Table(table) => table
                .into_iter()
                .map(|(host, urls)| match urls {
                    OneOrMore::One(url) => (host, vec![url]),
                    OneOrMore::More(urls) => (host, urls),
                })
                .collect(),
        })
    }
}

/// Why mirrors cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMirror {
    /// Not the URL of a mirror.
    #[error("'{0}' is not the URL of a mirror (hint: http://HOST:PORT)")]
    Url(String),
    /// Not the host of a registry.
    #[error("'{0}' is not the host of a registry (hint: ghcr.io, or HOST:PORT)")]
    Host(String),
    /// Only Docker Hub may have several, and each has one.
    #[error("'{0}' has one mirror (hint: docker.io alone may have several)")]
    Count(String),
    /// A registry would be asked for itself.
    #[error("'{0}' is its own mirror")]
    Itself(String),
    /// More than there may be.
    #[error("more than {MIRRORS_MAX} mirrors")]
    TooMany,
}

impl Mirrors {
    /// As machines are told: a registry's host, and its mirrors' URLs.
    pub fn by_host(&self) -> &BTreeMap<String, Vec<String>> {
        &self.0
    }

    /// Those of Docker Hub.
    pub fn of_hub(&self) -> &[String] {
        self.0.get(HUB).map_or(&[], Vec::as_slice)
    }

    /// `HOST:PORT` of those without TLS.
    pub fn insecure(&self) -> impl Iterator<Item = String> {
        let urls = self.0.values().flatten();
        urls.filter_map(|url| Some(bare(url.strip_prefix("http://")?).to_owned()))
    }

    /// Where machines must come to reach them, as far as they are named by address.
    pub fn addresses(&self) -> impl Iterator<Item = Allowed> {
        self.0.values().flatten().filter_map(|url| {
            let (rest, port) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
                (Some(rest), _) => (rest, 80),
                (None, Some(rest)) => (rest, 443),
                (None, None) => return None,
            };
            let rest = bare(rest);
            let with_port = rest.parse::<SocketAddrV4>().ok();
            let address = match with_port {
                Some(address) => address,
                None => SocketAddrV4::new(rest.parse().ok()?, port),
            };
            Some(Allowed {
                address: *address.ip(),
                port: address.port(),
                transport: Transport::Tcp,
            })
        })
    }

    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`InvalidMirror`] that names it.
    pub fn check(&self) -> Result<(), InvalidMirror> {
        let short = |text: &str| text.chars().take(80).collect::<String>();
        if self.0.values().map(Vec::len).sum::<usize>() > MIRRORS_MAX {
            return Err(InvalidMirror::TooMany);
        }
        for (host, urls) in &self.0 {
            if !is_host(host) || !(host.contains(['.', ':']) || host == "localhost") {
                return Err(InvalidMirror::Host(short(host)));
            }
            if urls.is_empty() || (host != HUB && urls.len() > 1) {
                return Err(InvalidMirror::Count(short(host)));
            }
            for url in urls {
                let rest = url.strip_prefix("http://");
                let rest = rest.or_else(|| url.strip_prefix("https://")).map(bare);
                match rest {
                    Some(rest) if rest == host => return Err(InvalidMirror::Itself(short(host))),
                    Some(rest) if is_host(rest) => {}
                    Some(_) | None => return Err(InvalidMirror::Url(short(url))),
                }
            }
        }
        Ok(())
    }
}

fn bare(rest: &str) -> &str {
    rest.strip_suffix('/').unwrap_or(rest)
}

/// `HOST` or `HOST:PORT`, without path, name or password: those would be every tenant's to read.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    !host.is_empty()
        && host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
        && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &str) -> Mirrors {
        serde_json::from_str(value).expect("readable")
    }

    #[test]
    fn a_list_is_docker_hubs_and_a_table_names_registries() {
        let list = read(r#"["http://10.1.2.3:5000", "https://mirror.test"]"#);
        assert_eq!(list.check(), Ok(()));
        assert_eq!(
            list.of_hub(),
            ["http://10.1.2.3:5000", "https://mirror.test"]
        );
        assert_eq!(list.insecure().collect::<Vec<_>>(), ["10.1.2.3:5000"]);
        let table = read(
            r#"{ "docker.io": "http://10.1.2.3:5000/", "ghcr.io": "https://10.1.2.4", "r.test:5000": "http://m.test:1" }"#,
        );
        assert_eq!(table.check(), Ok(()));
        assert_eq!(table.of_hub(), ["http://10.1.2.3:5000/"]);
        assert_eq!(table.by_host()["ghcr.io"], ["https://10.1.2.4"]);
        let insecure: Vec<_> = table.insecure().collect();
        assert_eq!(insecure, ["10.1.2.3:5000", "m.test:1"]);
        let allowed = table
            .addresses()
            .map(|it| (it.address.to_string(), it.port));
        assert_eq!(
            allowed.collect::<Vec<_>>(),
            [("10.1.2.3".to_owned(), 5000), ("10.1.2.4".to_owned(), 443)]
        );
        assert_eq!(read("[]"), Mirrors::default());
    }

    #[test]
    fn what_is_no_mirror_is_refused_by_name() {
        for (value, why) in [
            (r#"["10.1.2.3:5000"]"#, "10.1.2.3:5000"),
            (r#"["http://user:word@m.test"]"#, "user:word"),
            (r#"["http://m.test/path"]"#, "m.test/path"),
            (r#"["http://m.test:0"]"#, "m.test:0"),
            (r#"{ "ghcr.io/team": "http://m.test" }"#, "ghcr.io/team"),
            (r#"{ "hub": "http://m.test" }"#, "'hub'"),
            (
                r#"{ "ghcr.io": ["http://m.test", "http://n.test"] }"#,
                "one mirror",
            ),
            (r#"{ "ghcr.io": [] }"#, "one mirror"),
            (r#"{ "ghcr.io": "https://ghcr.io" }"#, "its own mirror"),
        ] {
            let error = read(value).check().expect_err(value).to_string();
            assert!(error.contains(why), "{value}: {error}");
        }
        let many = vec!["http://m.test"; MIRRORS_MAX + 1];
        let many = read(&format!("{many:?}"));
        assert_eq!(many.check(), Err(InvalidMirror::TooMany));
    }
}
