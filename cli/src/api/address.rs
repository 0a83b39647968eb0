//! Addresses as people type them, and as certificates and connections need them.

use slipway_terminal::exit::{Failure, Outcome};
use std::fmt;

/// A server: host and port, and whether it speaks TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerAddress {
    host: String,
    port: u16,
    tls: bool,
}

impl ServerAddress {
    /// Parses `https://host:port` (or `tcp://`, as in the address of a gateway; both mean TLS). Clear text (`http://`)
    /// is for this computer alone, because a token goes with every request.
    ///
    /// # Errors
    /// The caller's fault.
    pub(crate) fn parse(text: &str) -> Outcome<Self> {
        let bad = |why: &str| {
            Failure::user(format!("'{text}' is not the address of a server: {why}"))
                .hint("it looks like https://builds.example:7443")
        };
        let uri: http::Uri = text.parse().map_err(|_| bad("not a url"))?;
        let (tls, default_port) = match uri.scheme_str() {
            Some("https" | "tcp") => (true, 443),
            Some("http") => (false, 80),
            Some(_) | None => return Err(bad("it must begin with https://")),
        };
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(bad("there is something after the port"));
        }
        let authority = uri.authority().ok_or_else(|| bad("no host"))?;
        if authority.as_str().contains('@') {
            return Err(bad("it must not hold a user name"));
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        if host.is_empty() {
            return Err(bad("no host"));
        }
        let address = Self {
            port: uri.port_u16().unwrap_or(default_port),
            host,
            tls,
        };
        if !tls && !address.is_loopback() {
            return Err(bad("without https the token could be read on the way"));
        }
        Ok(address)
    }

    fn is_loopback(&self) -> bool {
        self.host == "localhost"
            || self
                .host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    }

    /// Name or address, without brackets.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Whether it speaks TLS.
    pub(crate) fn is_tls(&self) -> bool {
        self.tls
    }

    /// `host:port`, with brackets around an IPv6 address.
    pub(crate) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_people_type() {
        for (text, shown) in [
            ("https://a.example:7443", "https://a.example:7443"),
            ("https://a.example/", "https://a.example:443"),
            ("tcp://10.0.0.1:2376", "https://10.0.0.1:2376"),
            ("https://[::1]:1", "https://[::1]:1"),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ] {
            assert_eq!(ServerAddress::parse(text).unwrap().to_string(), shown);
        }
        for text in [
            "",
            "a.example",
            "a.example:1",
            "ftp://a",
            "https://",
            "https://u:p@a:1",
            "https://a/x",
            "http://a.example:1",
        ] {
            assert_eq!(
                ServerAddress::parse(text).map_err(|f| f.code()),
                Err(1),
                "{text}"
            );
        }
    }
}
