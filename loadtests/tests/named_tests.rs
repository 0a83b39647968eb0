//! Each test that a page names to show what it says is there: the promises of docs/SECURITY.md, and docs/compatibility.md.

use anyhow::{Context, Result, ensure};
use slipway_loadtests::testbed::checkout_dir;
use std::collections::BTreeSet;
use std::path::Path;

/// The line below the head of a table.
const RULE: &str = "|---";

#[test]
fn the_tests_that_security_names_are_there() -> Result<()> {
    let page = std::fs::read_to_string(checkout_dir().join("docs/SECURITY.md"))?;
    let head = "| who or what is protected |";
    let (_, table) = page.split_once(head).context(head)?;
    are_there(rows(table)?)
}

#[test]
fn the_tests_that_compatibility_names_are_there() -> Result<()> {
    let page = std::fs::read_to_string(checkout_dir().join("docs/compatibility.md"))?;
    let mut all = Vec::new();
    for table in page.split("\n\n| ").skip(1) {
        let table = rows(table)?;
        for row in &table {
            let works = row.split(" | ").nth(1).unwrap_or_default();
            ensure!(
                ["yes", "partly", "no"].contains(&works),
                "neither yes, partly nor no: {row}"
            );
        }
        all.extend(table);
    }
    are_there(all)
}

/// The rows of the table that begins in the first line.
fn rows(table: &str) -> Result<Vec<&str>> {
    let mut lines = table.lines().skip(1);
    let rule = lines.next().context("an empty table")?;
    ensure!(rule.starts_with(RULE), "no table: {rule}");
    Ok(lines.take_while(|line| line.starts_with('|')).collect())
}

/// Each row names tests in its last column.
fn are_there(rows: Vec<&str>) -> Result<()> {
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
    for folder in [
        "builder",
        "cli",
        "loadtests",
        "registry-push",
        "scheduler",
        "volumes",
    ] {
        functions(&checkout_dir().join(folder), &mut there)?;
    }
    let missing: Vec<_> = named.difference(&there).collect();
    ensure!(
        missing.is_empty(),
        "tests are named that are not there: {missing:?}"
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
