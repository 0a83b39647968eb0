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

/// What is between backticks and begins with `slipway`, in texts and comments of the whole project, is a command that can be typed.
#[test]
fn every_command_that_a_text_names_can_be_typed() {
    let named =
        slipway_terminal::texts::check("slipway", |words| Cli::try_parse_from(words).map(drop));
    assert!(named.unwrap() > 50);
}

#[test]
fn snapshots_are_switched_off_with_and_without_an_equals_sign() {
    let wanted = |line: &str| {
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        if let Command::Volumes(VolumesVerb::Update(args)) = &cli.command {
            return args.scheduled_snapshots;
        }
        let Command::Volumes(VolumesVerb::Create(args)) = &cli.command else {
            panic!("{:?}", cli.command);
        };
        Some(args.scheduled_snapshots)
    };
    for (flag, want) in [
        ("--scheduled-snapshots false", false),
        ("--scheduled-snapshots=false", false),
        ("--scheduled-snapshots", true),
    ] {
        for verb in ["update vol_1", "create data"] {
            let line = format!("slipway volumes {verb} {flag}");
            assert_eq!(wanted(&line), Some(want), "{line}");
        }
    }
}

/// Who knows one name for a verb knows it for every noun.
#[test]
fn every_list_is_also_ls_and_every_removal_also_rm_and_delete() {
    fn check(command: &clap::Command, path: &str) {
        let names: Vec<&str> = std::iter::once(command.get_name())
            .chain(command.get_all_aliases())
            .collect();
        let wanted: &[&str] = match command.get_name() {
            "list" => &["ls"],
            "delete" | "destroy" | "rm" => &["delete", "rm"],
            _ => &[],
        };
        for name in wanted {
            assert!(names.contains(name), "{path} has no {name}: {names:?}");
        }
        for sub in command.get_subcommands() {
            check(sub, &format!("{path} {}", sub.get_name()));
        }
    }
    check(&Cli::command(), "slipway");
}

#[test]
fn yes_quiet_and_verbose_are_flags_of_every_command() {
    for line in [
        "slipway builders reset-cache -y -q -vv",
        "slipway -yqvv volumes destroy vol_1",
        "slipway volumes extend vol_1 -s 5 --yes --quiet --verbose -v",
        "slipway tokens rm tok_1 -y -qvv",
    ] {
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        let global = cli.global;
        assert!(global.yes && global.quiet && global.verbose == 2, "{line}");
    }
}
