//! The completion scripts in the shells they are for: bash, zsh and fish load them and complete a command and an option.

use std::path::Path;
use std::process::Command;

/// What each is asked to complete, and must offer: "slipway dep", then "slipway deploy --remote".
const OFFERED: [&str; 2] = ["deploy", "--remote-only"];

const BASH: &str = r#"
source ./script
function=$(complete -p slipway | sed -n 's/.*-F \([^ ]*\).*/\1/p')
COMP_WORDS=(slipway dep) COMP_CWORD=1
"$function" slipway dep slipway
printf '%s\n' "${COMPREPLY[@]}"
COMP_WORDS=(slipway deploy --remote) COMP_CWORD=2
"$function" slipway --remote deploy
printf '%s\n' "${COMPREPLY[@]}"
"#;

const FISH: &str = r#"
source ./script
complete -C "slipway dep"
complete -C "slipway deploy --remote"
"#;

/// zsh completes only where somebody types, so a second one is typed to.
const ZSH: &str = r#"
zmodload zsh/zpty
zpty -b typed "PS1='> ' ZDOTDIR=$PWD zsh -f -i"
expect() {
    local all='' part
    for i in {1..400}; do
        if zpty -r -t typed part; then
            all+=$part
            [[ $all == *$1* ]] && { print -r -- "$1"; return 0 }
        else
            sleep 0.05
        fi
    done
    print -r -- "no $1 in: $all"
    return 1
}
zpty -w typed 'autoload -U compinit && compinit -D -u && source ./script && print set-"up"'
expect set-up || exit 1
zpty -w -n typed $'slipway dep\t'
expect deploy || exit 1
zpty -w -n typed $'--remote\t'
expect --remote-only || exit 1
zpty -d typed
"#;

#[test]
fn bash_completes() {
    complete("bash", &["--norc", "--noprofile", "-c", BASH]);
}

#[test]
fn zsh_completes() {
    complete("zsh", &["-f", "-c", ZSH]);
}

#[test]
fn fish_completes() {
    complete("fish", &["--no-config", "-c", FISH]);
}

fn complete(shell: &str, arguments: &[&str]) {
    if !Path::new("/usr/bin").join(shell).exists() {
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "CI must run this test, but {shell} is not installed"
        );
        println!("skipped: {shell} is not installed");
        return;
    }
    let home = tempfile::tempdir().expect("a temporary directory");
    let script = Command::new(env!("CARGO_BIN_EXE_slipway"))
        .args(["completions", shell])
        .output()
        .expect("slipway runs");
    assert!(script.status.success(), "{script:?}");
    std::fs::write(home.path().join("script"), script.stdout).expect("written");
    let output = Command::new(shell)
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", home.path())
        .env("TERM", "dumb")
        .current_dir(home.path())
        .output()
        .expect("the shell runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    for offered in OFFERED {
        assert!(said.contains(offered), "no {offered} in {output:?}");
    }
}
