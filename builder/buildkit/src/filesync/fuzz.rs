//! The file sync's part of [`crate::fuzz`].

use super::filter::{DirMatches, Filter, Verdict};
use super::packet::Packet;
use super::{Wish, follow};
use crate::limits::SYNC_LINKS_FOLLOWED_MAX;
use prost::Message as _;
use std::os::unix::fs::symlink;
use tonic::metadata::{MetadataMap, MetadataValue};

/// A packet that was read is written and read again as the same.
pub(crate) fn packet(bytes: &[u8]) {
    if let Ok(packet) = Packet::decode(bytes) {
        let again = Packet::decode(packet.encode_to_vec().as_slice());
        assert_eq!(again.as_ref(), Ok(&packet));
    }
}

/// Lines of a key's first letter and a value; other lines are paths. A directory that is pruned holds nothing that is wanted.
pub(crate) fn wish(bytes: &[u8]) {
    let (mut metadata, mut paths) = (MetadataMap::new(), Vec::new());
    for line in bytes.split(|byte| *byte == b'\n') {
        let key = match line.first() {
            Some(b'i') => "include-patterns",
            Some(b'x') => "exclude-patterns",
            Some(b'f') => "followpaths",
            Some(b'e') => "exclude-patterns-encoded",
            Some(b'd') => "dir-name",
            _ => {
                paths.push(String::from_utf8_lossy(line).into_owned());
                continue;
            }
        };
        if let Ok(value) = MetadataValue::try_from(&line[1..]) {
            metadata.append(key, value);
        }
    }
    let Ok(wish) = Wish::of(&metadata) else {
        return;
    };
    let Ok(filter) = Filter::new(&wish.include, &wish.exclude) else {
        return;
    };
    for path in paths {
        nothing_pruned_is_wanted(&filter, &path);
    }
}

fn nothing_pruned_is_wanted(filter: &Filter, path: &str) {
    let names: Vec<&str> = path
        .split('/')
        .filter(|name| !matches!(*name, "" | "." | ".."))
        .collect();
    let (mut parent, mut pruned) = (DirMatches::default(), None);
    for end in 1..=names.len() {
        let (path, is_dir) = (names[..end].join("/"), end < names.len());
        let (verdict, own) = filter.judge(&path, is_dir, &parent);
        match verdict {
            Verdict::Prune => pruned = pruned.or(Some(end)),
            Verdict::Keep if !is_dir => {
                assert_eq!(pruned, None, "{names:?} is wanted, in a directory left out");
            }
            Verdict::Keep | Verdict::Skip => {}
        }
        parent = own;
    }
}

/// Paths to follow, one a line, in a tree with links of every kind.
pub(crate) fn follow(bytes: &[u8]) {
    thread_local! {
        static ROOT: tempfile::TempDir = tree_with_links();
    }
    let text = String::from_utf8_lossy(bytes);
    let paths: Vec<String> = text.lines().map(str::to_owned).take(64).collect();
    ROOT.with(|root| {
        let Ok(tree) = super::Tree::open(root.path()) else {
            panic!("the tree is not there");
        };
        let Ok(reached) = follow::with_followed(&tree, Vec::new(), &paths) else {
            return;
        };
        // Each path, each link on the way and where it leads.
        let bound = paths.len() * 2 * (SYNC_LINKS_FOLLOWED_MAX + 2);
        assert!(reached.len() <= bound, "{}", reached.len());
        for path in &reached {
            assert!(!path.starts_with('/'), "{path}");
            assert!(path.split('/').all(|name| name != ".."), "{path}");
        }
    });
}

fn tree_with_links() -> tempfile::TempDir {
    let made = || -> std::io::Result<tempfile::TempDir> {
        let root = tempfile::tempdir()?;
        let at = |path: &str| root.path().join(path);
        std::fs::create_dir_all(at("a/b/c"))?;
        std::fs::write(at("a/b/c/f"), "f")?;
        for (target, name) in [
            ("a", "l"),
            ("/a/b", "m"),
            ("../../../../etc/passwd", "a/up"),
            ("n", "o"),
            ("o", "n"),
            (".", "s"),
            ("s/s/s/s/l/b", "a/b/t"),
            ("b/../b/c", "a/d"),
            ("/", "r"),
        ] {
            symlink(target, at(name))?;
        }
        Ok(root)
    };
    match made() {
        Ok(root) => root,
        Err(error) => panic!("no tree to follow links in: {error}"),
    }
}
