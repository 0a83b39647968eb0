//! A program's page of help as Markdown, made from the definitions that parse its command line.
//!
//! Must not know any command.

use clap::{Arg, Command};
use std::fmt::Write as _;

/// One section for each command of `root` that is not hidden, and one for its global options, if it has any.
pub fn sections(mut root: Command) -> String {
    root.build();
    let name = root.get_name().to_owned();
    let mut out = String::new();
    section(&mut out, &root, &name, 2);
    if root.get_arguments().any(Arg::is_global_set) {
        out.push_str("## Global options\n\n");
        options(&mut out, &root, Arg::is_global_set);
    }
    out
}

fn section(out: &mut String, command: &Command, path: &str, level: usize) {
    let _ = writeln!(out, "{} `{path}`\n", "#".repeat(level.min(4)));
    let about = command.get_long_about().or_else(|| command.get_about());
    if let Some(about) = about {
        let _ = writeln!(out, "{about}\n");
    }
    let subcommands: Vec<&Command> = command
        .get_subcommands()
        .filter(|sub| !sub.is_hide_set() && sub.get_name() != "help")
        .collect();
    if subcommands.is_empty() || command.get_positionals().next().is_some() {
        let usage = command.clone().render_usage().to_string();
        let usage = usage.strip_prefix("Usage: ").unwrap_or(&usage).to_owned();
        let _ = writeln!(out, "```text\n{usage}\n```\n");
    }
    if path != command.get_name() {
        options(out, command, |arg| !arg.is_global_set());
    }
    if let Some(examples) = command.get_after_long_help() {
        let examples = examples.to_string();
        let body = examples.strip_prefix("Examples:\n").unwrap_or(&examples);
        let _ = writeln!(out, "```sh");
        for line in body.lines() {
            let _ = writeln!(out, "{}", line.trim_start());
        }
        let _ = writeln!(out, "```\n");
    }
    for sub in subcommands {
        section(out, sub, &format!("{path} {}", sub.get_name()), level + 1);
    }
}

fn options(out: &mut String, command: &Command, wanted: impl Fn(&Arg) -> bool) {
    let skip = ["help", "version"];
    let arguments: Vec<&Arg> = command
        .get_arguments()
        .filter(|arg| wanted(arg) && !arg.is_hide_set() && !skip.contains(&arg.get_id().as_str()))
        .collect();
    if arguments.is_empty() {
        return;
    }
    out.push_str("| option | meaning |\n|---|---|\n");
    for arg in arguments {
        let _ = writeln!(out, "| {} | {} |", spelling(arg), meaning(arg));
    }
    out.push('\n');
}

fn spelling(arg: &Arg) -> String {
    let value = arg
        .get_value_names()
        .filter(|_| arg.get_action().takes_values())
        .map(|names| names.join(" "));
    match (arg.get_short(), arg.get_long(), value) {
        (_, None, Some(value)) => format!("`{value}`"),
        (_, None, None) => format!("`{}`", arg.get_id()),
        (short, Some(long), value) => {
            let short = short
                .map(|short| format!("`-{short}`, "))
                .unwrap_or_default();
            let value = match value {
                Some(value) if arg.is_require_equals_set() => format!("[={value}]"),
                Some(value) => format!(" {value}"),
                None => String::new(),
            };
            format!("{short}`--{long}{value}`")
        }
    }
}

fn meaning(arg: &Arg) -> String {
    let mut text = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let possible: Vec<String> = arg
        .get_possible_values()
        .iter()
        .filter(|_| arg.get_action().takes_values())
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    if !possible.is_empty() {
        let _ = write!(text, "; one of {}", possible.join(", "));
    }
    if let Some(default) = arg
        .get_default_values()
        .first()
        .and_then(|value| value.to_str())
        && !default.is_empty()
        && arg.get_action().takes_values()
    {
        let _ = write!(text, "; `{default}` by default");
    }
    if let Some(name) = arg.get_env().and_then(|name| name.to_str()) {
        let _ = write!(text, " (`{name}`)");
    }
    text.replace('|', "\\|")
}
