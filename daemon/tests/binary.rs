//! The binary `slipwayd` as people meet it: exit codes, where output goes, and what errors say.

use std::process::Command;

#[test]
fn settings_of_the_processes_are_checked() {
    let home = tempfile::tempdir().unwrap();
    let refused = |arguments: &[&str], says: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_slipwayd"))
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .current_dir(home.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
        assert!(output.stdout.is_empty(), "{arguments:?}: talk on stdout");
        assert!(text.starts_with("error: "), "{arguments:?}: {text}");
        for part in says.iter().chain(&["error: "]) {
            assert!(
                text.contains(part),
                "{arguments:?}: does not say '{part}': {text}"
            );
        }
    };
    let write = |name: &str, text: &str| std::fs::write(home.path().join(name), text).unwrap();
    write("bad.toml", "no_such_setting = 1\n");
    write("syntax.toml", "a = \n");
    for process in ["serve", "host"] {
        refused(&[process], &["--config"]);
        refused(
            &[process, "--config", "none.toml"],
            &["none.toml", "hint: "],
        );
        refused(
            &[process, "--config", "bad.toml"],
            &["bad.toml", "no_such_setting", "hint: "],
        );
        refused(&[process, "--config", "syntax.toml"], &["syntax.toml"]);
    }
}
