//! The registry's part of [`crate::fuzz`].

use super::auth;
use super::client::Registry;
use super::retry::retry_after;
use super::small::stored_bytes;
use crate::challenge::{Challenge, choose};
use crate::error::Said;
use crate::options::PushOptions;
use crate::target::{Credential, Target};
use http::{HeaderMap, HeaderName, HeaderValue, header};

thread_local! {
    static SECURE: Registry = registry("registry.example.test/a/b");
    static CLEAR: Registry = registry("127.0.0.1:5000/a/b");
}

fn registry(name: &str) -> Registry {
    let credential = Credential {
        username: "u".into(),
        password: "p".into(),
    };
    let made = Target::parse(name)
        .ok()
        .and_then(|target| Registry::new(&target, Some(&credential), &PushOptions::default()).ok());
    match made {
        Some(registry) => registry,
        None => panic!("no registry {name}"),
    }
}

/// Values of `WWW-Authenticate`, one a line. What is followed is HTTP.
pub(crate) fn challenge(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match choose(text.split('\n')) {
        Ok(Challenge::Bearer { realm, service }) => {
            assert!(realm.starts_with("http://") || realm.starts_with("https://"));
            let parts = realm.len() + service.map_or(0, |service| service.len());
            assert!(parts <= bytes.len() * 3);
        }
        Ok(Challenge::Basic) | Err(_) => {}
    }
}

/// The head and the body of an answer. A credential never leaves the registry, nor TLS.
pub(crate) fn answer(bytes: &[u8]) {
    let end = bytes.windows(2).position(|two| two == b"\n\n");
    let (head, body) = match end {
        Some(at) => (&bytes[..at], &bytes[at + 2..]),
        None => (bytes, &b""[..]),
    };
    let mut headers = HeaderMap::new();
    for line in head.split(|byte| *byte == b'\n') {
        let at = line.iter().position(|byte| *byte == b':').unwrap_or(0);
        let (name, value) = (&line[..at], line.get(at + 1..).unwrap_or_default());
        if let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(name),
            HeaderValue::from_bytes(value.trim_ascii()),
        ) {
            headers.append(name, value);
        }
    }
    let _ = (retry_after(&headers), stored_bytes(&headers));
    let said = Said::from_body(body);
    assert!(said.as_str().chars().count() <= 300);
    assert!(!said.as_str().contains(char::is_control));
    for secure in [true, false] {
        let look = |registry: &Registry| {
            stays(registry, &headers, secure);
            auth::fuzz_token(&registry.at, body);
        };
        if secure {
            SECURE.with(look);
        } else {
            CLEAR.with(look);
        }
    }
}

fn stays(registry: &Registry, headers: &HeaderMap, secure: bool) {
    let base = registry.at.url("blobs/uploads/");
    let Ok(url) = registry.at.location("a blob", &base, headers) else {
        return;
    };
    assert!(headers.contains_key(header::LOCATION));
    assert!(url.has_host(), "{url}");
    let loopback = registry.at.may_be_plain(&url);
    match url.scheme() {
        "https" => {}
        "http" => assert!(!secure || loopback, "{url}"),
        other => panic!("{other}"),
    }
    assert!(!secure || !registry.at.is_own(&url) || url.scheme() == "https");
}
