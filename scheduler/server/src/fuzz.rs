//! What fuzzing calls: a function for each parser of foreign bytes, which panics when the parser breaks its word.
//! `loadtests/fuzz` runs them.

use crate::auth::{Credential, Secret};
use crate::builds::fuzz as builds;
use crate::ca;
use crate::gateway::fuzz as gateway;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use rustls_pki_types::CertificateDer;

/// A target: takes any bytes.
pub type Function = fn(&[u8]);

/// Name and function of each target.
pub const TARGETS: &[(&str, Function)] = &[
    ("api_certificate", certificate),
    ("api_credential", credential),
    ("api_graphql", graphql),
    ("gateway_classic", builds::classic),
    ("gateway_head", gateway::head),
    ("gateway_path", gateway::path),
    ("gateway_query", gateway::query),
    ("gateway_registry_auth", gateway::registry_auth),
    ("gateway_solves", gateway::solves),
];

/// A client's certificate. It speaks for a token and an org, or for nobody.
fn certificate(bytes: &[u8]) {
    let _ = ca::identity(&CertificateDer::from(bytes));
}

/// A value of `Authorization`. What is taken has the form of a token; who has none is nobody.
fn credential(bytes: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(bytes) else {
        return;
    };
    let headers = HeaderMap::from_iter([(AUTHORIZATION, value)]);
    if let Ok(credential) = Credential::of(&headers, None) {
        let Credential::Secret { secret, .. } = credential else {
            panic!("a header became a certificate");
        };
        assert_eq!(Secret::parse(secret.expose()), Some(secret));
    }
}

/// The text of a GraphQL request: parsed or refused, however deep it is.
fn graphql(bytes: &[u8]) {
    let _ = async_graphql::parser::parse_query(String::from_utf8_lossy(bytes));
}
