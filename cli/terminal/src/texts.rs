//! The commands that the texts and comments of the whole project name: each can be typed. For tests.

use std::path::{Path, PathBuf};

/// Finds what is between backticks and begins with `program`, and has it parsed.
///
/// # Errors
/// Those that cannot be typed, with their places. The number of those that can, if all can.
pub fn check(
    program: &str,
    parse: impl Fn(Vec<String>) -> Result<(), clap::Error>,
) -> Result<usize, String> {
    let mut files = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    collect(&root, &mut files).map_err(|error| error.to_string())?;
    let begin = format!("{program} ");
    let (mut named, mut wrong) = (0, Vec::new());
    for path in files {
        let text = std::fs::read_to_string(&path).map_err(|error| error.to_string())?;
        for (number, line) in text.lines().enumerate() {
            let parts: Vec<&str> = line.split('`').collect();
            // Between two of them; what follows the last one is open.
            let quoted = parts.iter().take(parts.len() - 1).skip(1).step_by(2);
            let commands = quoted.filter(|text| text.starts_with(&begin));
            let bare = line
                .split_once(&format!("hint(\"{begin}"))
                .and_then(|(_, rest)| rest.split_once('"'))
                .map(|(rest, _)| format!("{begin}{rest}"));
            for command in commands.map(ToString::to_string).chain(bare) {
                named += 1;
                if let Err(why) = can_be_typed(&command, &parse) {
                    let place = format!("{}:{}", path.display(), number + 1);
                    wrong.push(format!("{place}: {command}: {why}"));
                }
            }
        }
    }
    if wrong.is_empty() {
        Ok(named)
    } else {
        Err(wrong.join("\n"))
    }
}

fn collect(dir: &Path, into: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // What was said of older versions stays as it was.
        if name.starts_with('.') || name == "target" || name == "CHANGELOG.md" {
            continue;
        }
        if path.is_dir() {
            collect(&path, into)?;
        } else if path
            .extension()
            .is_some_and(|kind| kind == "rs" || kind == "md")
        {
            into.push(path);
        }
    }
    Ok(())
}

/// Placeholders stand for any value; what is missing at the end is left to the reader.
fn can_be_typed(
    command: &str,
    parse: impl Fn(Vec<String>) -> Result<(), clap::Error>,
) -> Result<(), String> {
    use clap::error::ErrorKind;
    let words = command
        .split_whitespace()
        .take_while(|word| !["<", "|", ">", "..."].contains(word))
        .map(|word| match word {
            "COMMAND" | "[COMMAND]" => "deploy",
            "N" | "MINUTES" => "1",
            "SIZE" => "1gb",
            "TIME" => "1h",
            word => word,
        })
        .map(ToOwned::to_owned)
        .collect();
    // A placeholder may stand for what is no value of the flag; a flag at the end is only spoken of.
    let last = command.split_whitespace().last().unwrap_or_default();
    let open = command.contains(['{', '<', '[']) || last.starts_with("--");
    let Err(error) = parse(words) else {
        return Ok(());
    };
    let kind = error.kind();
    let only_unfinished = matches!(
        kind,
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            | ErrorKind::DisplayVersion
            | ErrorKind::MissingRequiredArgument
            | ErrorKind::MissingSubcommand
    );
    let open_value = matches!(kind, ErrorKind::InvalidValue | ErrorKind::ValueValidation);
    if only_unfinished || (open && open_value) {
        return Ok(());
    }
    Err(format!("{kind:?}"))
}
