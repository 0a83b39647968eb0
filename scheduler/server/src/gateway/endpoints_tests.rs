//! The table, tried with what clients send and with what attackers send.

use super::*;
use proptest::prelude::*;

fn check(method: &str, path: &str, expected: &str) {
    let got = match decide(method, path) {
        Decision::Allow(endpoint) => match endpoint.credentials {
            RegistryHeaders::None => format!("allow {}", endpoint.path),
            RegistryHeaders::Auth => format!("allow+auth {}", endpoint.path),
            RegistryHeaders::Config => format!("allow+config {}", endpoint.path),
        },
        Decision::ServedByGuestPush { image } => format!("push {image}"),
        Decision::Refuse(Refusal::Ambiguous(_)) => "ambiguous".to_owned(),
        Decision::Refuse(Refusal::TooLong) => "too long".to_owned(),
        Decision::Refuse(Refusal::NotForBuilders(_)) => "not for builders".to_owned(),
        Decision::Refuse(Refusal::Unknown) => "unknown".to_owned(),
    };
    assert_eq!(got, expected, "{method} {path}");
}

#[test]
fn what_clients_send() {
    for (method, path, expected) in [
        ("HEAD", "/_ping", "allow /_ping"),
        ("GET", "/v1.45/version", "allow /v1.45/version"),
        ("GET", "/v1.24/info", "allow /v1.24/info"),
        ("POST", "/v1.45/build", "allow+config /v1.45/build"),
        ("POST", "/v1.45/build/prune", "allow /v1.45/build/prune"),
        ("POST", "/v1.45/session", "allow /v1.45/session"),
        ("POST", "/grpc", "allow /grpc"),
        (
            "POST",
            "/v1.45/images/create",
            "allow+auth /v1.45/images/create",
        ),
        ("POST", "/v1.45/images/load", "allow /v1.45/images/load"),
        (
            "GET",
            "/v1.45/images/r.example:5000/a/b:t/json",
            "allow /v1.45/images/r.example:5000/a/b:t/json",
        ),
        (
            "GET",
            "/v1.45/images/sha256:0a/get",
            "allow /v1.45/images/sha256:0a/get",
        ),
        (
            "POST",
            "/v1.45/images/r.example:5000/a/b/push",
            "push r.example:5000/a/b",
        ),
        ("POST", "/images/a/push", "push a"),
        ("POST", "/images/push/push", "push push"),
        ("GET", "/images/push/json", "allow /images/push/json"),
        (
            "GET",
            "/v1.45/distribution/a/b:c/json",
            "allow+auth /v1.45/distribution/a/b:c/json",
        ),
        (
            "POST",
            "/v1.45/containers/x/attach",
            "allow /v1.45/containers/x/attach",
        ),
        (
            "PUT",
            "/v1.45/containers/x/archive",
            "allow /v1.45/containers/x/archive",
        ),
        ("POST", "/v1.45/exec/0a/start", "allow /v1.45/exec/0a/start"),
        (
            "GET",
            "/v1.45/containers/some-future-endpoint",
            "allow /v1.45/containers/some-future-endpoint",
        ),
        ("DELETE", "/v1.45/volumes/a", "allow /v1.45/volumes/a"),
        ("GET", "/v1.45/system/df", "allow /v1.45/system/df"),
        ("POST", "/v1.45/auth", "allow /v1.45/auth"),
    ] {
        check(method, path, expected);
    }
}

#[test]
fn what_is_not_for_builders() {
    for family in ["debug", "metrics"] {
        for path in [
            format!("/{family}"),
            format!("/v1.45/{family}/x/update"),
            format!("//v1.45//{family}"),
            format!("/./v1.45/./{family}/"),
            format!("/v1.45/%{:02x}{}", family.as_bytes()[0], &family[1..]),
        ] {
            for method in ["GET", "POST", "DELETE"] {
                check(method, &path, "not for builders");
            }
        }
    }
}

/// A client that looks whether it is in a swarm, or tidies one up, hears what dockerd says when there is none.
#[test]
fn a_swarm_or_plugins_are_looked_for_and_tidied_up_but_not_made() {
    let dockerd = [
        ("GET", "/swarm"),
        ("GET", "/swarm/unlockkey"),
        ("POST", "/swarm/leave"),
        ("POST", "/swarm/update"),
        ("GET", "/nodes"),
        ("GET", "/services"),
        ("POST", "/services/create"),
        ("GET", "/tasks"),
        ("DELETE", "/secrets/a"),
        ("GET", "/configs"),
        ("GET", "/plugins"),
        ("GET", "/plugins/vieux/sshfs/json"),
        ("POST", "/plugins/vieux/sshfs/disable"),
        ("DELETE", "/plugins/vieux/sshfs"),
    ];
    for (method, path) in dockerd {
        let path = format!("/v1.45{path}");
        check(method, &path, &format!("allow {path}"));
    }
    for (method, path) in [
        ("POST", "/swarm/init"),
        ("POST", "//v1.45//swarm/./init/"),
        ("POST", "/%73warm%2finit"),
        ("POST", "/swarm/join"),
        ("PUT", "/swarm"),
        ("POST", "/swarm/leave/init"),
        ("GET", "/plugins/privileges"),
        ("GET", "/plugins/json"),
        ("POST", "/plugins/pull"),
        ("POST", "/plugins/create"),
        ("POST", "/plugins/disable"),
        ("POST", "/plugins/a/enable"),
        ("POST", "/plugins/a/upgrade"),
        ("POST", "/plugins/a/set"),
        ("POST", "/plugins/a/push"),
        ("DELETE", "/plugins"),
    ] {
        check(method, path, "not for builders");
    }
}

#[test]
fn tricks_with_paths() {
    let long = format!("/{}", "a".repeat(PATH_BYTES_MAX));
    for (path, expected) in [
        ("", "ambiguous"),
        ("info", "ambiguous"),
        ("*", "ambiguous"),
        ("/", "unknown"),
        ("/v1.45", "unknown"),
        ("/v1.45/", "unknown"),
        ("/INFO", "unknown"),
        ("/V1.45/info", "unknown"),
        ("/v1.45/v1.45/info", "ambiguous"),
        ("/v/info", "unknown"),
        ("/v1.45x/info", "unknown"),
        ("//info", "allow /info"),
        ("/./info/.", "allow /info"),
        ("/info/", "allow /info"),
        ("/info/x", "unknown"),
        ("/containers/../swarm", "ambiguous"),
        ("/containers/%2e%2e/swarm", "ambiguous"),
        ("/containers/%2E./swarm", "ambiguous"),
        ("/containers%2f..%2fswarm", "ambiguous"),
        (
            "/containers/%252e%252e/swarm",
            "allow /containers/%252e%252e/swarm",
        ),
        ("/images/a%25b/json", "allow /images/a%25b/json"),
        ("/images/a%2525b/json", "allow /images/a%2525b/json"),
        ("/swarm%2finit", "not for builders"),
        ("/%6detrics", "not for builders"),
        ("/images/a%2fb/json", "allow /images/a/b/json"),
        ("/images/a%20b/json", "allow /images/a%20b/json"),
        ("/images/%3f/json", "allow /images/%3F/json"),
        ("/images/%23/json", "allow /images/%23/json"),
        ("/images/ü/json", "allow /images/%C3%BC/json"),
        ("/images/%c3%bc/json", "allow /images/%C3%BC/json"),
        ("/images/%ff/json", "ambiguous"),
        ("/info%00", "ambiguous"),
        ("/info%0d%0aHost:%20x", "ambiguous"),
        ("/info%", "ambiguous"),
        ("/info%2", "ambiguous"),
        ("/info%zz", "ambiguous"),
        ("/info\\..\\swarm", "ambiguous"),
        ("/info;x=y", "ambiguous"),
        ("/info%3b", "ambiguous"),
        ("/.../info", "unknown"),
        (&long, "too long"),
    ] {
        check("GET", path, expected);
    }
    // A push is a push however it is written, and nothing else is.
    for path in ["/images/a%2Fpush", "//images//a//push/", "/images/a/%70ush"] {
        check("POST", path, "push a");
    }
    check("POST", "/images/push", "allow /images/push");
    for method in ["CONNECT", "TRACE", "PATCH", "get", "PRI", ""] {
        check(method, "/info", "unknown");
    }
}

fn paths() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("/".to_owned()),
        Just("//".to_owned()),
        Just("/./".to_owned()),
        Just("/../".to_owned()),
        Just("%2e".to_owned()),
        Just("%2f".to_owned()),
        Just("%25".to_owned()),
        Just("v1.45".to_owned()),
        Just("images".to_owned()),
        Just("swarm".to_owned()),
        Just("push".to_owned()),
        "[ -~]{0,4}",
        any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| format!("/{}", pieces.concat()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn normalising_again_changes_nothing(path in paths()) {
        if let Ok(normal) = NormalPath::parse(&path) {
            let encoded = normal.encoded();
            prop_assert!(encoded.is_ascii());
            prop_assert_eq!(NormalPath::parse(&encoded).map(|again| again.encoded()), Ok(encoded));
        }
    }

    #[test]
    fn what_is_forwarded_is_decided_the_same_again(path in paths()) {
        if let Decision::Allow(endpoint) = decide("GET", &path) {
            prop_assert!(!endpoint.path.contains("/../") && !endpoint.path.contains("//"));
            prop_assert_eq!(decide("GET", &endpoint.path), Decision::Allow(endpoint.clone()));
        }
    }

    #[test]
    fn no_bytes_make_it_panic(method in "\\PC{0,8}", path in "\\PC{0,64}") {
        let _ = decide(&method, &path);
    }
}
