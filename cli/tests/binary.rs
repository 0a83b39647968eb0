//! The binary as people meet it: exit codes, where output goes, and what errors say. No server is needed for these.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longest one command may take here.
const RUN_WAIT_MAX: Duration = Duration::from_secs(180);

struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("a temporary directory"),
        }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_slipway"));
        command
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.path())
            .current_dir(self.path())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        finish(&mut self.command(arguments))
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path().join(name), text).expect("a file of the test");
    }

    /// Demands an exit code, that stdout stays empty, and what stderr says.
    #[track_caller]
    fn refused(&self, arguments: &[&str], code: i32, says: &[&str]) {
        let output = self.run(arguments);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(output.stdout.is_empty(), "{arguments:?}: talk on stdout");
        for part in says {
            assert!(
                text.contains(part),
                "{arguments:?}: does not say '{part}': {text}"
            );
        }
        assert!(text.starts_with("error: "), "{arguments:?}: {text}");
    }
}

/// Runs to the end, or fails: nothing here may take long.
fn finish(command: &mut Command) -> Output {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let deadline = Instant::now() + RUN_WAIT_MAX;
    // Outputs are small enough for the pipes: no reader is needed to let the child end.
    while child.try_wait().expect("the child is ours").is_none() {
        if Instant::now() > deadline {
            child.kill().expect("the child is ours");
            let output = child.wait_with_output().expect("the child is ours");
            panic!("{command:?} did not end: {}", stderr(&output));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().expect("the child is ours")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn help_is_there_in_every_way_it_is_asked_for() {
    let home = Home::new();
    for arguments in [
        &["help"][..],
        &["--help"],
        &["help", "volumes", "create"],
        &["volumes", "create", "--help"],
    ] {
        let output = home.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("Usage: slipway"), "{arguments:?}: {text}");
    }
    home.refused(&["help", "nosuch"], 1, &["nosuch"]);
}

#[test]
fn help_and_version_are_data() {
    let home = Home::new();
    for (arguments, says) in [
        (&["--help"][..], "Commands:"),
        (&["-V"], env!("CARGO_PKG_VERSION")),
        (&["version"], env!("CARGO_PKG_VERSION")),
        (&["deploy", "--help"], "--remote-only"),
    ] {
        let output = home.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(
            stdout(&output).contains(says),
            "{arguments:?}: {}",
            stdout(&output)
        );
        assert!(
            output.stderr.is_empty(),
            "{arguments:?}: {}",
            stderr(&output)
        );
    }
}

/// Scripts are longer than a pipe holds, so they go to a file.
#[test]
fn completions_are_there_for_three_shells() {
    let home = Home::new();
    for (shell, says) in [
        ("bash", "complete -F"),
        ("zsh", "#compdef slipway"),
        ("fish", "complete -c slipway"),
    ] {
        let path = home.path().join(shell);
        let file = std::fs::File::create(&path).unwrap();
        let status = home
            .command(&["completions", shell])
            .stdout(file)
            .status()
            .unwrap();
        assert!(status.success(), "{shell}");
        assert!(
            std::fs::read_to_string(&path).unwrap().contains(says),
            "{shell}"
        );
    }
}

#[test]
fn what_is_mistyped_ends_with_1() {
    let home = Home::new();
    home.refused(&["depoly"], 1, &["unrecognized subcommand", "deploy"]);
    home.refused(
        &["deploy", "--remot-only"],
        1,
        &["unexpected argument", "--remote-only"],
    );
    home.refused(
        &["deploy", "--local-only", "--remote-only"],
        1,
        &["cannot be used with"],
    );
    home.refused(
        &["orgs", "update", "--cpus", "0"],
        1,
        &["not a number of processors"],
    );
    home.refused(&["serve"], 1, &["unrecognized subcommand", "slipwayd"]);
}

#[test]
fn what_is_wrong_on_this_computer_is_told_before_the_network() {
    let home = Home::new();
    home.refused(
        &["deploy", "--app", "a", "--image", "r/a"],
        1,
        &["there is no Dockerfile in", "hint: "],
    );
    home.refused(
        &["deploy", "nowhere"],
        1,
        &["there is no directory nowhere"],
    );
    home.write("Dockerfile", "FROM scratch\n");
    home.refused(
        &["deploy"],
        1,
        &["no app is named", "hint: ", "slipway init"],
    );
    home.refused(
        &["deploy", "--app", "a"],
        1,
        &["no registry to push to", "hint: ", "--build-only"],
    );
    home.refused(&["deploy", "Dockerfile"], 1, &["is not a directory"]);
    home.write("slipway.toml", "app = 'a'\nimagee = 'x'\n");
    home.refused(
        &["deploy"],
        1,
        &["slipway.toml:2: unknown field `imagee`", "hint: "],
    );
    home.write("slipway.toml", "app = 'a'\nregistry = 'r.example'\n");
    home.refused(
        &["deploy", "--remote-only"],
        1,
        &["not logged in", "hint: run `slipway login"],
    );
    home.refused(
        &["deploy", "--local-only"],
        1,
        &["no Docker answers at", "hint: "],
    );
    home.refused(&["builders", "list"], 1, &["not logged in"]);
}

#[test]
fn an_unreachable_server_is_ours_and_an_untrusted_one_is_not() {
    let home = Home::new();
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let server = format!("http://127.0.0.1:{port}");
    let login = |arguments: &[&str]| {
        let mut command = home.command(arguments);
        command.env("SLIPWAY_TOKEN", "secret-token");
        finish(&mut command)
    };
    let output = login(&["login", "--server", &server, "--ca", "/etc/hostname"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("has no certificate in it"));
    for address in ["builds.example", "http://builds.example:1"] {
        let output = login(&["login", "--server", address]);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).contains("is not the address of a server"));
    }
    let output = login(&["login", "--server", &server]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.contains("cannot reach") && text.contains("hint: "),
        "{text}"
    );
    assert!(!text.contains("secret-token"));
    assert!(!home.path().join(".config/slipway/config.toml").exists());
}

#[test]
fn a_login_without_a_token_is_told_how() {
    let home = Home::new();
    home.refused(
        &["login", "--server", "https://127.0.0.1:1"],
        1,
        &["no token was given", "--token-stdin"],
    );
    home.refused(
        &["login", "--server", "https://127.0.0.1:1", "--token-stdin"],
        1,
        &["the token is empty"],
    );
    home.refused(&["login"], 1, &["which server?", "hint: "]);
}

#[test]
fn init_writes_a_file_that_deploy_reads() {
    let home = Home::new();
    home.write("Dockerfile", "FROM scratch\n");
    let output = home.run(&["init", "--app", "shop", "--registry", "r.example/team"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).trim().ends_with("slipway.toml"));
    home.refused(&["init"], 1, &["is there already", "--force"]);
    home.refused(&["deploy", "--remote-only"], 1, &["not logged in"]);
}

#[test]
fn errors_of_every_command_are_json_where_data_is() {
    let home = Home::new();
    for (arguments, says) in [
        (&["deploy", "--app", "a", "--json"][..], "Dockerfile"),
        (&["--json", "apps", "list"], "not logged in"),
        (&["context", "use", "work", "--json"], "no context 'work'"),
        (&["init", "nowhere", "--json"], "nowhere"),
        (&["depoly", "--json"], "unrecognized subcommand"),
    ] {
        let output = home.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let text = stdout(&output);
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let errors = lines.iter().filter(|line| line["type"] == "error").count();
        assert_eq!(errors, 1, "{arguments:?}: {text}");
        let last = lines.last().unwrap();
        assert_eq!(last["exit_code"], 1, "{arguments:?}: {text}");
        let message = last["message"].as_str().unwrap();
        assert!(message.contains(says), "{arguments:?}: {message}");
        assert!(last["hint"].is_string(), "{arguments:?}: {text}");
    }
}

#[test]
fn contexts_are_listed_switched_and_forgotten() {
    let home = Home::new();
    let dir = home.path().join(".config/slipway");
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("config.toml");
    // As it was written before there were contexts, and one more.
    let text = "server = \"https://a:1\"\ntoken = \"secret\"\n\n\
                [contexts.work]\nserver = \"https://b:1\"\ntoken = \"other\"\n";
    std::fs::write(&file, text).unwrap();
    let current = |variable: Option<&str>| {
        let mut command = home.command(&["context", "ls", "--json"]);
        command.envs(variable.map(|name| ("SLIPWAY_CONTEXT", name)));
        let output = finish(&mut command);
        assert!(!stdout(&output).contains("secret"), "a token is shown");
        let all: Vec<serde_json::Value> = serde_json::from_str(&stdout(&output)).unwrap();
        let all: Vec<_> = all.iter().filter(|one| one["current"] == true).collect();
        assert_eq!(all.len(), 1, "{}", stdout(&output));
        all[0]["server"].as_str().unwrap().to_owned()
    };
    assert_eq!(current(None), "https://a:1");
    assert_eq!(current(Some("work")), "https://b:1");
    let output = home.run(&["context", "use", "work"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(current(None), "https://b:1");
    let quiet = home.run(&["-q", "context", "use", "default"]);
    assert_eq!(quiet.status.code(), Some(0));
    assert!(quiet.stderr.is_empty(), "{}", stderr(&quiet));
    home.refused(&["context", "use", "nosuch"], 1, &["no context 'nosuch'"]);
    home.refused(&["--context", "nosuch", "whoami"], 1, &["context list"]);
    let output = home.run(&["logout", "--context", "work"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let left = std::fs::read_to_string(&file).unwrap();
    assert_eq!(left, "server = \"https://a:1\"\ntoken = \"secret\"\n");
    home.run(&["logout"]);
    assert!(!file.exists(), "nothing is left to keep");
}

/// Somebody pipes help through `head`: the program ends, without a panic.
#[test]
fn a_closed_pipe_is_no_panic() {
    let home = Home::new();
    let mut child = home
        .command(&["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
}

#[test]
fn output_that_cannot_be_written_is_no_success() {
    let home = Home::new();
    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .expect("/dev/full");
    let output = home
        .command(&["version"])
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("the output could not be written"), "{said}");
    assert!(said.contains("the disk of this computer is full"), "{said}");
    assert!(said.contains("make room on that disk"), "{said}");
}
