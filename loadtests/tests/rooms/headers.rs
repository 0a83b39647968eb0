//! A header that says "Pure" or "must not know" is kept by the imports of its file.
//!
//! Only what an import can show is checked: that a room does not know why it is called is for its readers.

use crate::CRATES;
use crate::house::{File, House};
use anyhow::{Result, ensure};
use slipway_loadtests::testbed::checkout_dir;

/// What a pure room imports nothing of: files, sockets, processes, threads, clocks, runtimes.
const IMPURE: [&str; 18] = [
    "std::fs",
    "std::env::var",
    "std::env::var_os",
    "std::process",
    "std::thread",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "std::os::unix::net",
    "Instant::now",
    "SystemTime::now",
    "tokio",
    "hyper",
    "sqlx",
    "bollard",
    "nix",
    "rustix",
    "libc",
];

const UNKNOWN_BEGINS: &str = "must not know";

/// Words after it, and what a room that says them imports nothing of.
const UNKNOWN: [(&str, &[&str]); 14] = [
    ("SQL", &["sqlx"]),
    ("GraphQL", &["async_graphql"]),
    ("HTTP", &["hyper", "http", "http_body_util"]),
    ("TLS", &["rustls", "tokio_rustls"]),
    ("tokio", &["tokio"]),
    ("BuildKit", &["slipway_buildkit"]),
    ("Docker", &["bollard"]),
    (
        "sockets",
        &[
            "std::net::TcpListener",
            "std::net::TcpStream",
            "std::os::unix::net",
            "tokio::net",
        ],
    ),
    (
        "the network",
        &[
            "std::net::TcpListener",
            "std::net::TcpStream",
            "tokio::net",
            "hyper",
            "reqwest",
        ],
    ),
    ("files", &["std::fs", "tokio::fs"]),
    ("disks", &["std::fs", "tokio::fs"]),
    ("processes", &["std::process", "tokio::process"]),
    ("the store", &["slipway_store"]),
    ("QEMU", &["crate::vm::qmp", "crate::vm::command"]),
];

#[test]
fn no_room_imports_what_its_header_rules_out() -> Result<()> {
    let mut wrong = Vec::new();
    let mut kept = 0;
    for folder in CRATES {
        let house = House::read(&checkout_dir().join(folder).join("src"))?;
        for (module, file) in &house.files {
            let rules = ruled_out(&file.header);
            kept += usize::from(!rules.is_empty());
            for (why, prefix) in rules {
                for path in named(file).filter(|path| is_below(path, prefix)) {
                    wrong.push(format!(
                        "{folder} {}: {why}, and it names {path}",
                        module.join("::")
                    ));
                }
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(
        kept > 50,
        "only {kept} headers rule anything out: are they read?"
    );
    Ok(())
}

/// Paths of other crates as they stand, and this crate's from `crate`.
fn named(file: &File) -> impl Iterator<Item = String> {
    let own = file
        .named
        .iter()
        .map(|path| format!("crate::{}", path.join("::")));
    let foreign = file.foreign.iter().map(|path| path.join("::"));
    own.chain(foreign)
}

fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// What a header rules out: why, and the path that is not to be named.
fn ruled_out(header: &str) -> Vec<(String, &'static str)> {
    let mut rules = Vec::new();
    let is_pure = header
        .split(['.', ':', ';'])
        .any(|part| part.trim().eq_ignore_ascii_case("pure"));
    if is_pure {
        rules.extend(IMPURE.map(|path| ("it is pure".to_owned(), path)));
    }
    let lower = header.to_ascii_lowercase();
    let Some(at) = lower.find(UNKNOWN_BEGINS) else {
        return rules;
    };
    let unknown = header[at + UNKNOWN_BEGINS.len()..]
        .split('.')
        .next()
        .unwrap_or_default();
    for (word, paths) in UNKNOWN {
        let is_said = unknown
            .split([',', ':', ';'])
            .flat_map(|part| part.split(" or "))
            .flat_map(|part| part.split(" nor "))
            .map(str::trim)
            .any(|part| part == word);
        if is_said {
            rules.extend(
                paths
                    .iter()
                    .map(|path| (format!("it must not know {word}"), *path)),
            );
        }
    }
    rules
}

#[test]
fn headers_are_read_as_they_are_written() {
    let of = |header| {
        ruled_out(header)
            .into_iter()
            .map(|(_, path)| path)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        of("What there is. Must not know: why, SQL, or GraphQL."),
        ["sqlx", "async_graphql"]
    );
    assert_eq!(of("Must not know tokio. SQL is fine."), ["tokio"]);
    assert!(of("Owns: x; pure. Must not know: y.").contains(&"std::fs"));
    assert!(of("Purely of SQL.").is_empty());
}
