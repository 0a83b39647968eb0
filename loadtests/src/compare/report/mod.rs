//! Outcomes as people and programs read them: a table on the terminal, JSON, a Markdown table, a plot.
//!
//! Must not know: what was measured, or how.

mod kept;
mod markdown;
mod plot;
mod table;

pub use kept::merge;
pub use markdown::markdown;
pub use plot::svg;
pub use table::{rows, table};

use super::outcome::Outcome;
use anyhow::{Context, Result};
use std::path::Path;

/// Writes `<scenario>.json`, `.md` and `.svg` into `dir`. Cases of earlier runs that were not run now stay; what a person wrote below
/// the results stays too.
///
/// # Errors
/// A file cannot be read or written, or the JSON there is none of ours.
pub fn write(dir: &Path, scenario: &str, about: &str, new: Vec<Outcome>) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let json = dir.join(format!("{scenario}.json"));
    let old = match std::fs::read_to_string(&json) {
        Ok(text) => serde_json::from_str(&text).with_context(|| json.display().to_string())?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).with_context(|| json.display().to_string()),
    };
    let outcomes = merge(old, new);
    let put = |path: &Path, text: &str| {
        std::fs::write(path, text).with_context(|| path.display().to_string())
    };
    put(&json, &(serde_json::to_string_pretty(&outcomes)? + "\n"))?;
    put(&dir.join(format!("{scenario}.svg")), &svg(&outcomes)?)?;
    let page = dir.join(format!("{scenario}.md"));
    let before = std::fs::read_to_string(&page).unwrap_or_default();
    put(&page, &markdown(scenario, about, &outcomes, &before))
}

#[cfg(test)]
mod tests;
