//! The pages say what is there: each path and link leads somewhere, each function that a walk names is in a file of its row, each page is
//! in the book, and docs/errors.md has each code.

use anyhow::{Context, Result, ensure};
use slipway_loadtests::testbed::checkout_dir;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// A word in backticks that begins so is a path of the checkout.
const ROOTS: [&str; 10] = [
    "builder/",
    "cli/",
    "daemon/",
    "docs/",
    "examples/",
    "loadtests/",
    "registry-push/",
    "scheduler/",
    "scripts/",
    "volumes/",
];

#[test]
fn each_path_that_a_page_names_is_there() -> Result<()> {
    let (mut seen, mut missing) = (0, Vec::new());
    for (page, text) in pages()? {
        for word in in_backticks(&text) {
            let path = word.trim_end_matches('/');
            // Capitals stand for a name that the reader chooses.
            let is_path = ROOTS.iter().any(|root| word.starts_with(root))
                && !word.contains([' ', '*', '{', '<'])
                && !path.split('/').any(is_placeholder);
            if is_path {
                seen += 1;
                if !checkout_dir().join(path).exists() {
                    missing.push(format!("{}: {word}", page.display()));
                }
            }
        }
    }
    ensure!(seen > 100, "only {seen} paths were found");
    ensure!(missing.is_empty(), "paths that are not there: {missing:#?}");
    Ok(())
}

#[test]
fn each_link_of_a_page_leads_somewhere() -> Result<()> {
    let mut broken = Vec::new();
    for (page, text) in pages()? {
        let dir = page.parent().context("a page without a directory")?;
        for link in text.split("](").skip(1) {
            let target = link.split(')').next().unwrap_or_default();
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            if target.contains("://") || target.contains(' ') || target.is_empty() {
                continue;
            }
            let to = if path.is_empty() {
                page.clone()
            } else {
                dir.join(path)
            };
            let leads = to.exists()
                && (anchor.is_empty() || headings(&std::fs::read_to_string(&to)?).contains(anchor));
            if !leads {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    ensure!(broken.is_empty(), "links that lead nowhere: {broken:#?}");
    Ok(())
}

#[test]
fn each_function_that_a_walk_names_is_in_a_file_of_its_row() -> Result<()> {
    let (mut seen, mut wrong) = (0, Vec::new());
    for page in ["docs/request-lifecycle.md", "CONTRIBUTING.md"] {
        let text = std::fs::read_to_string(checkout_dir().join(page)).context(page)?;
        for row in text.lines().filter(|line| line.starts_with('|')) {
            let words = in_backticks(row);
            let mut sources = String::new();
            for path in words.iter().filter(|word| word.ends_with(".rs")) {
                sources += &std::fs::read_to_string(checkout_dir().join(path))
                    .context((*path).to_owned())?;
            }
            for function in words.iter().filter_map(|word| word.strip_suffix("()")) {
                seen += 1;
                let there = ["(", "<"]
                    .iter()
                    .any(|next| sources.contains(&format!("fn {function}{next}")));
                if !there {
                    wrong.push(format!("{page}: {function}() in {row}"));
                }
            }
        }
    }
    ensure!(seen > 30, "only {seen} functions were found");
    ensure!(wrong.is_empty(), "functions that are not there: {wrong:#?}");
    Ok(())
}

#[test]
fn each_page_is_in_the_book() -> Result<()> {
    let docs = checkout_dir().join("docs");
    let summary = std::fs::read_to_string(docs.join("SUMMARY.md"))?;
    let listed: BTreeSet<PathBuf> = summary
        .split("](")
        .skip(1)
        .filter_map(|link| Some(docs.join(link.split_once(')')?.0)))
        .collect();
    let there: BTreeSet<PathBuf> = pages()?
        .into_iter()
        .map(|(page, _)| page)
        .filter(|page| page.starts_with(&docs) && !page.ends_with("SUMMARY.md"))
        .collect();
    ensure!(
        listed == there,
        "docs/SUMMARY.md lacks {:?} and has {:?} too much",
        there.difference(&listed),
        listed.difference(&there)
    );
    Ok(())
}

#[test]
fn the_page_of_errors_has_each_code_and_no_other() -> Result<()> {
    let page = std::fs::read_to_string(checkout_dir().join("docs/errors.md"))?;
    let problem = checkout_dir().join("scheduler/server/src/problem.rs");
    let problem = std::fs::read_to_string(problem)?;
    let names = between(&problem, "fn as_str", "\n    }\n")?;
    let codes: BTreeSet<_> = names.split('"').skip(1).step_by(2).collect();
    ensure!(
        first_cells(&page, "| code |")? == codes,
        "the codes are {codes:?}"
    );

    let api = checkout_dir().join("scheduler/core/src/host_api.rs");
    let api = std::fs::read_to_string(api)?;
    let variants = between(&api, "pub enum HostErrorCode {", "\n}\n")?;
    let variants: BTreeSet<_> = variants
        .lines()
        .map(|line| line.trim().trim_end_matches(','))
        .filter(|line| line.starts_with(char::is_uppercase))
        .map(snake)
        .collect();
    let listed = first_cells(&page, "| refusal |")?;
    let listed: BTreeSet<_> = listed.into_iter().map(str::to_owned).collect();
    ensure!(
        listed == variants,
        "the refusals of a host are {variants:?}"
    );

    let exits = checkout_dir().join("cli/terminal/src/exit.rs");
    let exits = std::fs::read_to_string(exits)?;
    let exits: BTreeSet<_> = exits
        .lines()
        .filter_map(|line| line.strip_prefix("pub const EXIT_"))
        .filter_map(|line| Some(line.split_once("= ")?.1.trim_end_matches(';')))
        .collect();
    ensure!(
        first_cells(&page, "| exit code |")? == exits,
        "the exit codes are {exits:?}"
    );
    Ok(())
}

/// README.md, CONTRIBUTING.md, and all below docs.
fn pages() -> Result<Vec<(PathBuf, String)>> {
    let root = checkout_dir();
    let mut paths = vec![root.join("README.md"), root.join("CONTRIBUTING.md")];
    for dir in ["docs", "docs/benchmarks", "docs/decisions"] {
        for entry in std::fs::read_dir(root.join(dir)).context(dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "md") {
                paths.push(path);
            }
        }
    }
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok((path, text))
    };
    paths.into_iter().map(read).collect()
}

/// What stands between backticks, line by line.
fn in_backticks(text: &str) -> Vec<&str> {
    text.lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .collect()
}

fn is_placeholder(part: &str) -> bool {
    !part.contains('.') && part.len() > 1 && part.chars().all(|c| c.is_ascii_uppercase())
}

/// The anchors of a page's headings.
fn headings(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| line.trim_start_matches('#').trim().to_lowercase())
        .map(|heading| {
            heading
                .chars()
                .filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
        .collect()
}

fn between<'t>(text: &'t str, begin: &str, end: &str) -> Result<&'t str> {
    let (_, rest) = text.split_once(begin).with_context(|| begin.to_owned())?;
    Ok(rest.split_once(end).with_context(|| begin.to_owned())?.0)
}

/// The first cells of the table whose head begins so.
fn first_cells<'t>(page: &'t str, head: &str) -> Result<BTreeSet<&'t str>> {
    let (_, table) = page.split_once(head).with_context(|| head.to_owned())?;
    let rows = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    Ok(rows.filter_map(|row| row.split('`').nth(1)).collect())
}

/// As the wire has a variant's name.
fn snake(variant: &str) -> String {
    let mut name = String::new();
    for letter in variant.chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}
