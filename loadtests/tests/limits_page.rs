//! docs/LIMITS.md names every bound that a `limits`, `bounds` or `quota` module has, below the name of its module, and nothing
//! else.

use anyhow::{Context, Result, ensure};
use slipway_loadtests::testbed::checkout_dir;
use std::collections::{BTreeMap, BTreeSet};

const MODULES: [&str; 14] = [
    "scheduler/core/src/limits.rs",
    "scheduler/core/src/quota.rs",
    "scheduler/server/src/limits.rs",
    "scheduler/server/src/bounds.rs",
    "scheduler/server/src/graphql/limits.rs",
    "scheduler/store/src/limits.rs",
    "volumes/src/limits.rs",
    "volumes/stream/src/limits.rs",
    "builder/host/src/limits.rs",
    "builder/guest/src/limits.rs",
    "builder/buildkit/src/limits.rs",
    "registry-push/src/limits.rs",
    "cli/src/limits.rs",
    "cli/terminal/src/limits.rs",
];

#[test]
fn the_page_has_each_bound_below_its_module_and_no_other_row() -> Result<()> {
    let page = std::fs::read_to_string(checkout_dir().join("docs/LIMITS.md"))?;
    let listed = listed(&page)?;
    let modules: BTreeSet<_> = listed.keys().map(String::as_str).collect();
    ensure!(
        modules == BTreeSet::from(MODULES),
        "docs/LIMITS.md has the modules {modules:?}; is the list here out of date?"
    );
    let mut wrong = Vec::new();
    for module in MODULES {
        let text = std::fs::read_to_string(checkout_dir().join(module)).context(module)?;
        let there = bounds(&text);
        ensure!(!there.is_empty(), "{module} has no bounds");
        let rows = listed.get(module).cloned().unwrap_or_default();
        wrong.extend(
            there
                .difference(&rows)
                .map(|name| format!("no row for {name} of {module}")),
        );
        wrong.extend(
            rows.difference(&there)
                .map(|name| format!("a row for {name}, which {module} does not have")),
        );
    }
    ensure!(wrong.is_empty(), "docs/LIMITS.md: {wrong:#?}");
    Ok(())
}

/// The constants that a module has, but for the assertions between them.
fn bounds(module: &str) -> BTreeSet<String> {
    module
        .lines()
        .filter_map(|line| line.split_once("const "))
        .filter(|(before, _)| before.is_empty() || before.starts_with("pub"))
        .filter_map(|(_, rest)| rest.split_once(':'))
        .map(|(name, _)| name.to_owned())
        .filter(|name| name != "_" && !name.starts_with("fn "))
        .collect()
}

/// The first cells of the page's rows, by the module whose name stands above the table.
fn listed(page: &str) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut modules: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut module = None;
    for line in page.lines() {
        if let Some(name) = line.strip_prefix('`').and_then(|l| l.strip_suffix('`')) {
            module = Some(name.to_owned());
            modules.entry(name.to_owned()).or_default();
        }
        let Some(row) = line.strip_prefix("| `") else {
            continue;
        };
        let (name, rest) = row.split_once('`').context(row.to_owned())?;
        let cells: Vec<_> = rest.split(" | ").map(str::trim).collect();
        let filled = cells
            .iter()
            .skip(1)
            .all(|cell| !cell.is_empty() && *cell != "|");
        ensure!(cells.len() >= 3 && filled, "not a row: {line}");
        let module = module.clone().context("a row above the first module")?;
        let new = modules.entry(module).or_default().insert(name.to_owned());
        ensure!(new, "two rows for {name}");
    }
    Ok(modules)
}
