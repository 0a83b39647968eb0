//! Parsing of command lines.

use super::*;
use clap::CommandFactory;

fn deploy(line: &str) -> Result<DeployArgs, clap::Error> {
    let words = ["slipway", "deploy"]
        .into_iter()
        .chain(line.split_whitespace());
    Cli::try_parse_from(words).map(|cli| {
        let Command::Deploy(args) = cli.command else {
            panic!("not deploy")
        };
        *args
    })
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_and_every_flag_has_a_help_text() {
    fn check(command: &clap::Command) {
        assert!(
            command.get_about().is_some(),
            "{} has no help",
            command.get_name()
        );
        for argument in command.get_arguments() {
            assert!(
                argument.get_help().is_some(),
                "{} {} has no help",
                command.get_name(),
                argument.get_id()
            );
        }
        command.get_subcommands().for_each(check);
    }
    check(&Cli::command());
}

#[test]
fn deploy_takes_what_docker_build_takes() {
    let args = deploy(
        "./api -a shop -f docker/Dockerfile --build-arg A=1 --build-arg B --secret id=x,src=y \
         --label a=b --target web --platform linux/arm64 --no-cache --remote-only --progress plain",
    )
    .unwrap();
    assert_eq!(args.dir, PathBuf::from("./api"));
    assert_eq!(args.build_arg, ["A=1", "B"]);
    assert_eq!(args.progress, ProgressMode::Plain);
    assert!(args.remote_only && args.no_cache && !args.build_only);
    assert_eq!(deploy("").unwrap().dir, PathBuf::from("."));
}

#[test]
fn contradictions_are_refused() {
    for line in [
        "--remote-only --local-only",
        "--push --build-only",
        "--progress loud",
        "a b",
    ] {
        assert!(deploy(line).is_err(), "{line}");
    }
}

#[test]
fn global_flags_go_anywhere() {
    let cli = Cli::try_parse_from([
        "slipway",
        "builders",
        "list",
        "--json",
        "--server",
        "https://a:1",
    ])
    .unwrap();
    assert!(cli.global.json);
    assert_eq!(cli.global.server.as_deref(), Some("https://a:1"));
}

#[test]
fn processors_are_parsed_exactly() {
    for (text, millis) in [("2", 2000), ("0.5", 500), ("1.25", 1250), ("0.001", 1)] {
        assert_eq!(verbs::parse_cpus(text).unwrap().0, millis, "{text}");
    }
    for text in ["", "0", "-1", "1.", ".5", "1.2345", "two", "99999999"] {
        assert!(verbs::parse_cpus(text).is_err(), "{text}");
    }
}

#[test]
fn serve_takes_backup_after_its_flags() {
    let cli = ["slipway", "serve", "--config", "x.toml", "backup", "to"];
    let Command::Serve(args) = Cli::try_parse_from(cli).unwrap().command else {
        panic!("not serve")
    };
    assert!(matches!(args.verb, Some(ServeVerb::Backup { dir }) if dir.as_os_str() == "to"));
}

#[test]
fn host_takes_purge_after_its_flags() {
    let cli = Cli::try_parse_from(["slipway", "host", "--config", "x.toml", "purge"]).unwrap();
    let Command::Host(args) = cli.command else {
        panic!("not host")
    };
    assert!(matches!(args.verb, Some(HostVerb::Purge)));
}

/// What is between backticks and begins with `slipway`, in texts and comments of the whole project, is a command that can be typed.
#[test]
fn every_command_that_a_text_names_can_be_typed() {
    let mut files = Vec::new();
    collect(std::path::Path::new(".."), &mut files);
    assert!(files.len() > 300, "the project's files: {}", files.len());
    let (mut named, mut wrong) = (0, Vec::new());
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            let parts: Vec<&str> = line.split('`').collect();
            // Between two of them; what follows the last one is open.
            let quoted = parts.iter().take(parts.len() - 1).skip(1).step_by(2);
            let commands = quoted.filter(|text| text.starts_with("slipway "));
            let bare = line
                .split_once("hint(\"slipway ")
                .and_then(|(_, rest)| rest.split_once('"'))
                .map(|(rest, _)| format!("slipway {rest}"));
            for command in commands.map(ToString::to_string).chain(bare) {
                named += 1;
                if let Err(why) = can_be_typed(&command) {
                    let place = format!("{}:{}", path.display(), number + 1);
                    wrong.push(format!("{place}: {command}: {why}"));
                }
            }
        }
    }
    assert!(named > 50, "{named}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn collect(dir: &std::path::Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // What was said of older versions stays as it was.
        if name.starts_with('.') || name == "target" || name == "CHANGELOG.md" {
            continue;
        }
        if path.is_dir() {
            collect(&path, into);
        } else if name.ends_with(".rs") || name.ends_with(".md") {
            into.push(path);
        }
    }
}

/// Placeholders stand for any value; what is missing at the end is left to the reader.
fn can_be_typed(command: &str) -> Result<(), String> {
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
        });
    // A placeholder may stand for what is no value of the flag; a flag at the end is only spoken of.
    let last = command.split_whitespace().last().unwrap_or_default();
    let open = command.contains(['{', '<', '[']) || last.starts_with("--");
    let Err(error) = Cli::try_parse_from(words) else {
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
