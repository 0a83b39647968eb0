//! Lexical clean-up of paths, as Go's `path.Clean` does it. It must not know of patterns.

/// The shortest path that names the same: without `.`, `..` where it can be resolved, and doubled or final slashes.
/// The empty path becomes `.`.
pub(crate) fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&last) if last != ".." => {
                    parts.pop();
                }
                Some(_) => parts.push(part),
                None if rooted => {}
                None => parts.push(part),
            },
            name => parts.push(name),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

#[cfg(test)]
mod tests {
    use super::clean;

    #[test]
    fn paths_become_short() {
        for (path, cleaned) in [
            ("", "."),
            ("a//b/./c/", "a/b/c"),
            ("a/../b", "b"),
            ("../a/../..", "../.."),
            ("/../a", "/a"),
            ("/", "/"),
            ("./a/..", "."),
        ] {
            assert_eq!(clean(path), cleaned, "{path}");
            assert_eq!(clean(&clean(path)), cleaned, "{path} twice");
        }
    }
}
