//! Each test that docs/SECURITY.md names to show what it promises is there.

use anyhow::{Context, Result, ensure};
use slipway_loadtests::testbed::checkout_dir;
use std::collections::BTreeSet;
use std::path::Path;

/// The head of the table.
const HEAD: &str = "| who or what is protected |";

#[test]
fn the_tests_that_security_names_are_there() -> Result<()> {
    let page = std::fs::read_to_string(checkout_dir().join("docs/SECURITY.md"))?;
    let (_, table) = page.split_once(HEAD).context(HEAD)?;
    let rows = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let mut named = BTreeSet::new();
    for row in rows {
        let last = row.trim_end_matches(" |").rsplit(" | ").next();
        let tests: Vec<_> = last.unwrap_or_default().split('`').collect();
        let tests: Vec<_> = tests.into_iter().skip(1).step_by(2).collect();
        ensure!(!tests.is_empty(), "a row without a test: {row}");
        named.extend(tests.into_iter().map(str::to_owned));
    }
    ensure!(named.len() > 10, "only {named:?}");
    let mut there = BTreeSet::new();
    for folder in ["builder", "scheduler", "volumes", "loadtests"] {
        functions(&checkout_dir().join(folder), &mut there)?;
    }
    let missing: Vec<_> = named.difference(&there).collect();
    ensure!(
        missing.is_empty(),
        "docs/SECURITY.md names tests that are not there: {missing:?}"
    );
    Ok(())
}

/// The names of all functions of the sources below a folder.
fn functions(dir: &Path, names: &mut BTreeSet<String>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            functions(&path, names)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path)?;
            let after = text.split("fn ").skip(1);
            names.extend(after.filter_map(|rest| Some(rest.split_once('(')?.0.to_owned())));
        }
    }
    Ok(())
}
