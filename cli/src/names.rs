//! The grammar of names: of images and registries as dockerd has it, of apps as the server has it. A wrong name is refused before a builder
//! wakes.
//!
//! Pure. Must not know where a name comes from.

use slipway_terminal::exit::{Failure, Outcome};

/// Longest image name and tag that registries take.
const NAME_BYTES_MAX: usize = 255;
const TAG_BYTES_MAX: usize = 128;
/// Longest name an app may have.
pub(crate) const APP_NAME_BYTES_MAX: usize = 63;

/// Checks `[registry/]path[:tag]`.
///
/// # Errors
/// The caller's fault, with what is wrong about it.
pub(crate) fn check_image(name: &str) -> Outcome<()> {
    fault(name).map_or(Ok(()), |why| {
        Err(
            Failure::user(format!("'{name}' is not the name of an image: {why}"))
                .hint("it looks like registry.example/team/app:tag"),
        )
    })
}

/// Checks `registry[/path]`.
///
/// # Errors
/// The caller's fault, with what is wrong about it.
pub(crate) fn check_registry(registry: &str) -> Outcome<()> {
    let sample = format!("{}/app", registry.trim_end_matches('/'));
    fault(&sample).map_or(Ok(()), |why| {
        Err(
            Failure::user(format!("'{registry}' is not a registry: {why}"))
                .hint("it looks like registry.example/team, without https://"),
        )
    })
}

/// Checks an app's name.
///
/// # Errors
/// The caller's fault.
pub(crate) fn check_app(name: &str) -> Outcome<()> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let fits = (1..=APP_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(inner);
    if fits && !name.starts_with('-') && !name.ends_with('-') {
        return Ok(());
    }
    Err(Failure::user(format!("'{name}' is not the name of an app"))
        .hint("1 to 63 lower-case letters, digits and hyphens, with none of these at the ends"))
}

fn fault(name: &str) -> Option<&'static str> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Some("it is empty or too long");
    }
    if name.contains("://") {
        return Some("it has no scheme");
    }
    if name.contains('@') {
        return Some("a digest cannot be chosen");
    }
    if !name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"._-/:[]".contains(&b))
    {
        return Some("it has characters that no name has");
    }
    let (repository, tag) = match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        Some(_) | None => (name, None),
    };
    if let Some(tag) = tag
        && (tag.is_empty() || tag.len() > TAG_BYTES_MAX || tag.starts_with(['.', '-']))
    {
        return Some("a tag has 1 to 128 letters, digits, dots, underscores and hyphens");
    }
    let path = match repository.split_once('/') {
        Some((registry, path)) if is_registry(registry) => {
            if !has_host(registry) {
                return Some("its registry is no host, or no host and port");
            }
            path
        }
        Some(_) | None => repository,
    };
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Some("it must be lower case");
    }
    if !path.split('/').all(is_component) {
        return Some(
            "the parts of its path are letters and digits, between them single dots, one or two underscores, or hyphens",
        );
    }
    None
}

/// What stands before the first slash is a registry, and no part of the path on Docker Hub.
fn is_registry(part: &str) -> bool {
    part == "localhost"
        || part.contains(['.', ':', '['])
        || part.bytes().any(|b| b.is_ascii_uppercase())
}

fn has_host(registry: &str) -> bool {
    let (host, port) = match registry.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        Some(_) | None => (registry, None),
    };
    let port_fits = port.is_none_or(|port| port.parse::<u16>().is_ok());
    let inner = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let host_fits = match inner {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        }),
    };
    port_fits && host_fits
}

/// `[a-z0-9]+` with `.`, `_`, `__` or hyphens between.
fn is_component(part: &str) -> bool {
    let is_letter = |char: char| char.is_ascii_lowercase() || char.is_ascii_digit();
    part.starts_with(is_letter)
        && part.ends_with(is_letter)
        && part.split(is_letter).all(|between| {
            matches!(between, "" | "." | "_" | "__") || between.bytes().all(|b| b == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_and_refused_as_by_docker() {
        let tag = "t".repeat(128);
        for name in [
            "app",
            "app:1",
            "team/app",
            "r.example/a/b/c:v1.2_x-y",
            "localhost/app",
            "localhost:5000/a__b/c--d.e_f:1",
            "R.Example:443/app",
            "[::1]:5000/app:1",
            "10.1.2.3:5000/x",
            "app:Upper",
            &format!("app:{tag}"),
        ] {
            assert_eq!(fault(name), None, "{name}");
        }
        for name in [
            "",
            "app:",
            "app:.x",
            "app:-x",
            &format!("app:{tag}t"),
            "a..b",
            "a//b",
            "/a",
            "a/",
            "-x",
            "x-",
            "a___b",
            "a._b",
            "App",
            "team/App",
            "r.example/App",
            "r..example/app",
            "r.example:99999/app",
            "r.example:x/app",
            "[::z]:5000/app",
            "https://r.example/app",
            "app@sha256:1",
            "a b",
        ] {
            assert!(fault(name).is_some(), "{name}");
        }
        assert!(check_registry("r.example/team/").is_ok());
        let refused = check_registry("https://r.example").unwrap_err();
        assert!(refused.message().contains("no scheme"), "{refused}");
    }
}
