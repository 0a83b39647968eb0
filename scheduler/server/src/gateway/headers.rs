//! Which header fields pass, and which end here (RFC 9110, section 7.6.1, and what is ours).
//!
//! Must not know: bodies, sockets.

use super::endpoints::RegistryHeaders;
use super::{ARCH_HEADER, ORG_HEADER, REGION_HEADER};
use crate::problem::{Code, Problem};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Version};

pub(super) const REGISTRY_AUTH: HeaderName = HeaderName::from_static("x-registry-auth");
const REGISTRY_CONFIG: HeaderName = HeaderName::from_static("x-registry-config");

/// Always between two neighbours only.
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-connection"),
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// For the gateway alone. `Expect` is answered here: the body is asked for when it can be passed on.
const OURS: [HeaderName; 7] = [
    header::AUTHORIZATION,
    header::COOKIE,
    header::EXPECT,
    header::HOST,
    HeaderName::from_static(ORG_HEADER),
    HeaderName::from_static(REGION_HEADER),
    HeaderName::from_static(ARCH_HEADER),
];

/// The protocol that a request or response asks to change to.
pub(super) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = tokens(headers).any(|token| token.eq_ignore_ascii_case("upgrade"));
    asked
        .then(|| headers.get(header::UPGRADE).cloned())
        .flatten()
}

/// What a head must say so that everybody reads the request in the same way. It names its host once (RFC 9112, section 3.2). A body comes in
/// chunks or with a length; one that has a further encoding would reach the builder without the field that says so.
///
/// # Errors
/// [`Code::Invalid`].
pub(crate) fn check_head<B>(request: &Request<B>) -> Result<(), Problem> {
    let headers = request.headers();
    let hosts = headers.get_all(header::HOST).iter().count();
    if hosts > 1 || (hosts == 0 && request.version() >= Version::HTTP_11) {
        return Err(Problem::new(
            Code::Invalid,
            "a request names its host, once",
        ));
    }
    let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let known = match (encodings.next(), encodings.next()) {
        (None, _) => true,
        (Some(one), None) => one.as_bytes().eq_ignore_ascii_case(b"chunked"),
        (Some(_), Some(_)) => false,
    };
    if known {
        return Ok(());
    }
    Err(Problem::new(
        Code::Invalid,
        "the only transfer encoding is chunked, once",
    ))
}

/// What of a client's header goes to the builder.
pub(super) fn to_builder(mut headers: HeaderMap, needs: RegistryHeaders) -> HeaderMap {
    let wants_trailers = headers.get_all(header::TE).iter().any(|te| {
        te.as_bytes()
            .to_ascii_lowercase()
            .windows(8)
            .any(|w| w == b"trailers")
    });
    let protocol = upgrade(&headers);
    remove_hop_by_hop(&mut headers);
    for name in &OURS {
        headers.remove(name);
    }
    let (auth, config) = match needs {
        RegistryHeaders::None => (false, false),
        RegistryHeaders::Auth => (true, false),
        RegistryHeaders::Config => (false, true),
    };
    if !auth {
        headers.remove(REGISTRY_AUTH);
    }
    if !config {
        headers.remove(REGISTRY_CONFIG);
    }
    headers.remove(header::TE);
    if wants_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    headers.insert(header::HOST, HeaderValue::from_static("docker"));
    if let Some(protocol) = protocol {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
    headers
}

/// What of a builder's header goes to the client.
pub(super) fn to_client(mut headers: HeaderMap) -> HeaderMap {
    remove_hop_by_hop(&mut headers);
    headers
}

/// The value of a header that is text, if it is there.
///
/// # Errors
/// [`Code::Invalid`] if it is there twice or is no text.
pub(super) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Problem> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value
            .to_str()
            .map(Some)
            .map_err(|_| Problem::new(Code::Invalid, format!("{name} is not text"))),
        (Some(_), Some(_)) => Err(Problem::new(
            Code::Invalid,
            format!("{name} is there twice"),
        )),
    }
}

fn tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = tokens(headers)
        .filter_map(|name| name.parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn credentials_and_hop_by_hop_fields_end_here() {
        let sent = map(&[
            ("authorization", "Bearer x"),
            ("cookie", "a=b"),
            ("connection", "close, X-Private"),
            ("x-private", "1"),
            ("keep-alive", "5"),
            ("transfer-encoding", "chunked"),
            ("expect", "100-continue"),
            ("host", "evil"),
            ("x-slipway-org", "acme"),
            ("x-registry-auth", "secret"),
            ("x-registry-config", "secret"),
            ("te", "gzip, Trailers"),
            ("trailer", "x-sum"),
            ("content-type", "application/x-tar"),
        ]);
        let kept = to_builder(sent.clone(), RegistryHeaders::None);
        let expected = map(&[
            ("host", "docker"),
            ("te", "trailers"),
            ("trailer", "x-sum"),
            ("content-type", "application/x-tar"),
        ]);
        assert_eq!(kept, expected);
        assert!(to_builder(sent.clone(), RegistryHeaders::Auth).contains_key(REGISTRY_AUTH));
        assert!(to_builder(sent, RegistryHeaders::Config).contains_key(REGISTRY_CONFIG));
    }

    #[test]
    fn an_upgrade_needs_both_fields() {
        let both = map(&[("connection", "keep-alive, Upgrade"), ("upgrade", "h2c")]);
        assert_eq!(upgrade(&both), Some(HeaderValue::from_static("h2c")));
        let kept = to_builder(both, RegistryHeaders::None);
        assert_eq!(upgrade(&kept), Some(HeaderValue::from_static("h2c")));
        assert_eq!(upgrade(&map(&[("upgrade", "h2c")])), None);
        assert_eq!(upgrade(&map(&[("connection", "upgrade")])), None);
    }
}
