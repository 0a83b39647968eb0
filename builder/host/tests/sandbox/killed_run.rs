//! A test run that is killed leaves a daemon, machines, mounts and loop devices; the next run that gets its place clears them.

use crate::harness::{Guest, Host, WAIT, place_dir, wait_for};
use crate::leftovers::{clear_killed, leftovers};
use std::fs;
use std::process::{Command, Stdio};

const TELL: &str = "SLIPWAY_HOST_TEST_TELL";

/// The run that is killed; of itself it does nothing.
#[test]
fn run_that_is_killed() {
    let Ok(tell) = std::env::var(TELL) else {
        return;
    };
    let host = Host::start(Guest::Idle).unwrap();
    let machine = host.machine(&mut host.client(), 1).machine;
    let half = format!("{tell}.half");
    fs::write(&half, format!("{} {}", host.place, host.pid(&machine))).unwrap();
    fs::rename(&half, &tell).unwrap();
    // Killed long before; an end all the same, should the other test be killed itself.
    std::thread::sleep(WAIT * 2);
}

#[test]
fn what_a_killed_run_left_is_cleared() {
    // What is missing on this computer is told as by any other test.
    if Host::start(Guest::Idle).is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tell = dir.path().join("told");
    let mut run = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed_run::run_that_is_killed", "--nocapture"])
        .env(TELL, &tell)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let told = wait_for("the run's machine", || fs::read_to_string(&tell).ok());
    run.kill().unwrap();
    run.wait().unwrap();
    let (place, pid) = told.split_once(' ').unwrap();
    let place = place.parse().unwrap();
    // One that has ended and was not waited for has no program.
    let program = format!("/proc/{pid}/exe");
    assert!(
        fs::exists(&program).unwrap(),
        "machines do not end with a daemon"
    );
    clear_killed(place);
    assert!(!fs::exists(&program).unwrap());
    assert_eq!(leftovers(&place_dir(place), place), Vec::<String>::new());
    assert!(!fs::exists(place_dir(place)).unwrap());
}
