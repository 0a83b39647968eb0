//! Whether a push cannot work, found out while the build runs: the host refuses at once what its rules close, the registry a wrong name or
//! login, and the whole build would be for nothing.
//!
//! It must not know how a push is done.

use super::outcome;
use crate::guest::Guest;
use crate::push::Prepared;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use slipway_core::build::{BuildOutcome, Fault};
use slipway_core::guest_api::StartBuild;
use slipway_registry_push::Target;
use std::io::ErrorKind;
use tokio::net::TcpStream;

const CLOSED_HINT: &str = "builders reach private addresses only where the farm's operator allows it: push to another registry, or ask for this address";

/// Ends with the outcome of a build that could not push; never ends where the way is open or not known.
pub(super) async fn closed(guest: &Guest, request: &StartBuild) -> BuildOutcome {
    let proxies = &guest.config.proxies;
    let is_direct = proxies.http.is_none() && proxies.https.is_none();
    if request.spec.push
        && is_direct
        && let Ok(target) = Target::parse(&request.spec.image)
        && let Some(address) = address(target.registry())
        && let Err(error) = TcpStream::connect(&address).await
        && is_closed(error.kind())
    {
        let message = format!(
            "the image cannot be pushed: builders have no way to the registry {}",
            target.registry()
        );
        return outcome::failed(Fault::System, &message, Some(CLOSED_HINT));
    }
    std::future::pending().await
}

/// Ends with the outcome of a build one of whose pushes its registry would refuse; never ends where it would not, or nobody knows.
pub(super) async fn refused(pushes: &[Prepared]) -> BuildOutcome {
    let mut asked: FuturesUnordered<_> = pushes.iter().map(Prepared::refusal).collect();
    match asked.next().await {
        Some(failure) => outcome::of_push(&failure),
        None => std::future::pending().await,
    }
}

/// Host and port of a registry that is not named by its host alone: what has no port may be reached in several ways.
fn address(registry: &str) -> Option<String> {
    let (_, port) = registry.rsplit_once(':')?;
    let is_port = port.parse::<u16>().is_ok();
    is_port.then(|| registry.to_owned())
}

fn is_closed(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_names_its_port_is_tried() {
        for (registry, expected) in [
            ("10.1.2.3:5000", Some("10.1.2.3:5000")),
            ("[::1]:5000", Some("[::1]:5000")),
            ("r.example", None),
            ("[::1]", None),
            ("docker.io", None),
        ] {
            assert_eq!(address(registry).as_deref(), expected, "{registry}");
        }
        assert!(is_closed(std::io::Error::from_raw_os_error(113).kind()));
        assert!(!is_closed(std::io::Error::from_raw_os_error(111).kind()));
    }
}
