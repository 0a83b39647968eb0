//! `slipway-loadtest vm`.

use super::{Init, Vm};
use anyhow::Result;
use std::path::PathBuf;
use std::time::Duration;

/// Run one command on Debian 13's own kernel, with cgroup v2 and device-mapper, in a virtual machine.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Boot systemd; the command is a unit.
    #[arg(long)]
    systemd: bool,
    /// Longest the command may take.
    #[arg(long, default_value_t = 300)]
    seconds: u64,
    /// A file that appears as /run/test/NAME.
    #[arg(long = "file", value_name = "NAME=PATH", value_parser = named::<PathBuf>)]
    files: Vec<(String, PathBuf)>,
    /// An empty disk that appears as /dev/disk/by-test/NAME.
    #[arg(long = "disk", value_name = "NAME=MIB", value_parser = named::<u64>)]
    disks: Vec<(String, u64)>,
    /// A file that appears as the disk /dev/disk/by-test/NAME; what is written to it stays.
    #[arg(long = "kept-disk", value_name = "NAME=PATH", value_parser = named::<PathBuf>)]
    kept_disks: Vec<(String, PathBuf)>,
    /// Kill the machine as soon as the command has printed this, which is a good end.
    #[arg(long, value_name = "TEXT")]
    cut_power_at: Option<String>,
    /// A bash script.
    command: String,
}

fn named<T: std::str::FromStr>(text: &str) -> Result<(String, T), String> {
    let (name, value) = text.split_once('=').ok_or("there is no =")?;
    let value = value.parse().map_err(|_| "not one after the =")?;
    Ok((name.to_owned(), value))
}

/// Prints what the command printed. Whether it ended well.
///
/// # Errors
/// As [`Vm::run`].
pub fn main(arguments: &Arguments) -> Result<bool> {
    let mut vm = Vm::new()?;
    if arguments.systemd {
        vm = vm.init(Init::Systemd);
    }
    for (name, path) in &arguments.files {
        vm = vm.file(name, path);
    }
    for (name, mib) in &arguments.disks {
        vm = vm.disk(name, mib << 20);
    }
    for (name, path) in &arguments.kept_disks {
        vm = vm.kept_disk(name, path);
    }
    if let Some(text) = &arguments.cut_power_at {
        vm = vm.cut_power_at(text);
    }
    let end = vm.run(&arguments.command, Duration::from_secs(arguments.seconds))?;
    print!("{}", end.output);
    eprintln!(
        "{}\nended with {} after {:?}",
        end.console, end.exit_code, end.took
    );
    let wanted = if arguments.cut_power_at.is_some() {
        137
    } else {
        0
    };
    Ok(end.exit_code == wanted)
}
