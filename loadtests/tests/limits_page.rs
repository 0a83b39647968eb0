//! docs/LIMITS.md names every bound that a `limits` or `bounds` module has.

use anyhow::{Context, Result, ensure};
use slipway_loadtests::testbed::checkout_dir;

const MODULES: [&str; 11] = [
    "scheduler/core/src/limits.rs",
    "scheduler/core/src/quota.rs",
    "scheduler/server/src/limits.rs",
    "scheduler/server/src/bounds.rs",
    "scheduler/store/src/limits.rs",
    "volumes/src/limits.rs",
    "builder/host/src/limits.rs",
    "builder/guest/src/limits.rs",
    "builder/buildkit/src/limits.rs",
    "registry-push/src/limits.rs",
    "cli/src/limits.rs",
];

#[test]
fn every_bound_is_on_the_page() -> Result<()> {
    let page = std::fs::read_to_string(checkout_dir().join("docs/LIMITS.md"))?;
    let mut missing = Vec::new();
    for module in MODULES {
        let text = std::fs::read_to_string(checkout_dir().join(module)).context(module)?;
        let names: Vec<_> = text
            .lines()
            .filter_map(|line| line.split_once("const "))
            .filter(|(before, _)| before.is_empty() || before.starts_with("pub"))
            .filter_map(|(_, rest)| rest.split_once(':'))
            .map(|(name, _)| name.to_owned())
            .filter(|name| name != "_" && !name.starts_with("fn "))
            .collect();
        ensure!(
            !names.is_empty(),
            "{module} has no bounds; is the list here out of date?"
        );
        missing.extend(
            names
                .into_iter()
                .filter(|name| !page.contains(&format!("`{name}`"))),
        );
    }
    ensure!(missing.is_empty(), "docs/LIMITS.md lacks {missing:?}");
    Ok(())
}
