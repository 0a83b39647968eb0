//! docs/settings.md is what the settings' own comments say. `SLIPWAY_UPDATE=1` writes it anew.

use anyhow::{Context, Result, ensure};
use slipway_loadtests::testbed::checkout_dir;
use std::fmt::Write as _;

const HEAD: &str = "# Settings

Every setting of `slipwayd host` (`/etc/slipway/host.toml`) and `slipwayd serve` (`/etc/slipway/serve.toml`), written from the comments of the
code by a test. Each has a default unless it says otherwise; a name that is not here is an error. A value can be given on the command line
too: `--set 'name=value'`, as TOML writes it, and for a value in a table `--set limits.org_pool_percent=100`.
[operations.md](operations.md) says what to set when.
";

/// Heading, module and type of each table.
const TABLES: [(&str, &str, &str); 9] = [
    ("`host.toml`", HOST, "HostSettings"),
    ("`[lvm]` of `host.toml`", HOST, "LvmSettings"),
    ("`serve.toml`", SERVE, "ServeSettings"),
    ("`[[hosts]]` of `serve.toml`", SERVE, "HostEntry"),
    ("`[builder]` of `serve.toml`", SERVE, "BuilderDefaults"),
    ("`[limits]` of `serve.toml`", SERVE, "LimitSettings"),
    ("`[registries]` of `serve.toml`", SERVE, "RegistrySettings"),
    (
        "`[keys]` of `serve.toml`, store = \"embedded\"",
        SERVE,
        "Embedded",
    ),
    (
        "`[keys]` of `serve.toml`, store = \"vault\"",
        VAULT,
        "VaultSettings",
    ),
];
const HOST: &str = "builder/host/src/settings.rs";
const SERVE: &str = "scheduler/server/src/settings.rs";
const VAULT: &str = "scheduler/server/src/keys/vault.rs";

#[test]
fn the_page_has_every_setting_as_its_comment_says() -> Result<()> {
    let mut page = HEAD.to_owned();
    for (heading, module, name) in TABLES {
        let text = std::fs::read_to_string(checkout_dir().join(module)).context(module)?;
        let fields = fields(&text, name)?;
        ensure!(!fields.is_empty(), "{name} of {module} has no settings");
        write!(
            page,
            "\n## {heading}\n\n| setting | what it is, and its default |\n|---|---|\n"
        )?;
        for (field, what) in fields {
            ensure!(!what.is_empty(), "{name}::{field} has no comment");
            writeln!(page, "| `{field}` | {what} |")?;
        }
    }
    let path = checkout_dir().join("docs/settings.md");
    if std::env::var_os("SLIPWAY_UPDATE").is_some() {
        std::fs::write(&path, &page)?;
    }
    ensure!(
        std::fs::read_to_string(&path)? == page,
        "docs/settings.md is out of date: SLIPWAY_UPDATE=1 cargo test -p slipway-loadtests --test settings_page"
    );
    Ok(())
}

/// Names and comments of the fields of a struct, or of a variant with fields.
fn fields(module: &str, name: &str) -> Result<Vec<(String, String)>> {
    let mut lines = module.lines().map(str::trim);
    let begins = [format!("pub struct {name} {{"), format!("{name} {{")];
    lines
        .by_ref()
        .find(|line| begins.iter().any(|begin| line == begin))
        .with_context(|| format!("there is no {name}"))?;
    let (mut fields, mut comment) = (Vec::new(), Vec::new());
    for line in lines.take_while(|line| !line.starts_with('}')) {
        if let Some(words) = line.strip_prefix("///") {
            comment.push(words.trim());
        } else if let Some((field, _)) = line.trim_start_matches("pub ").split_once(": ")
            && !line.starts_with('#')
        {
            fields.push((field.to_owned(), plain(&comment.join(" "))));
            comment.clear();
        }
    }
    Ok(fields)
}

/// Without the links of the code's own documentation, and with nothing that ends a cell.
fn plain(comment: &str) -> String {
    let mut text = String::new();
    let mut rest = comment;
    while let Some((before, link)) = rest.split_once("[`") {
        text.push_str(before);
        let (name, after) = link.split_once("`]").unwrap_or((link, ""));
        write!(text, "`{name}`").unwrap_or_default();
        rest = match after.strip_prefix('(') {
            Some(target) => target.split_once(')').map_or("", |(_, after)| after),
            None => after,
        };
    }
    text.push_str(rest);
    text.replace('|', "\\|")
}
