//! The machine a run was made on, without its name, addresses or paths: enough to know what the figures mean.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::process::Command;

/// What figures depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Processors that this process may use.
    pub cores: usize,
    /// As the processor names itself.
    pub processor: String,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Release of the kernel, such as `6.1`.
    pub kernel: String,
    /// The distribution.
    pub system: String,
    /// Versions of Slipway and of the peers that took part, by name.
    pub versions: BTreeMap<String, String>,
}

impl Machine {
    /// This one; what cannot be found out stays empty.
    pub fn describe(versions: BTreeMap<String, String>) -> Machine {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, key: &str, separator: char| {
            let line = text.lines().find(|line| line.starts_with(key));
            let value = line.and_then(|line| line.split_once(separator));
            value.map_or(String::new(), |(_key, value)| {
                value.trim().trim_matches('"').to_owned()
            })
        };
        let kib = field(&read("/proc/meminfo"), "MemTotal", ':');
        let kib = kib
            .split(' ')
            .next()
            .and_then(|kib| kib.parse::<u64>().ok());
        Machine {
            cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            processor: field(&read("/proc/cpuinfo"), "model name", ':'),
            memory_bytes: kib.unwrap_or(0) * 1024,
            kernel: release(&read("/proc/sys/kernel/osrelease")),
            system: field(&read("/etc/os-release"), "PRETTY_NAME", '='),
            versions,
        }
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let gib = self.memory_bytes as f64 / f64::from(1 << 30);
        let (cores, kernel) = (self.cores, &self.kernel);
        format!(
            "{cores} cores ({}), {gib:.0} GiB memory, {}, Linux {kernel}",
            self.processor, self.system
        )
    }
}

/// Numbers of a kernel release, without what a builder may have added (a host's name, say).
fn release(text: &str) -> String {
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    text.trim().chars().take_while(|c| is_number(*c)).collect()
}

/// What a program says of its version: the first word of its answer that begins with a digit. None if it cannot be run.
pub fn version_of(mut command: Command) -> Option<String> {
    let output = command
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words = text.split(|c: char| c.is_whitespace() || c == ',' || c == '/');
    let numbered = |word: &&str| {
        let word = word.strip_prefix('v').unwrap_or(word);
        word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.')
    };
    words.into_iter().find(numbered).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_of_a_release_are_kept() {
        assert_eq!(release("6.1.0-13-amd64\n"), "6.1.0");
        assert_eq!(release("6.18-someones-machine"), "6.18");
    }

    #[test]
    fn a_version_is_found_in_what_a_program_says() {
        let say = |text: &str| {
            let mut command = Command::new("printf");
            command.arg(text);
            version_of(command)
        };
        assert_eq!(say("skopeo version 1.9.3\\n").as_deref(), Some("1.9.3"));
        assert_eq!(
            say("Docker version 26.1.5+dfsg1, build a72d7cd\\n").as_deref(),
            Some("26.1.5+dfsg1")
        );
        assert_eq!(
            say("buildah version 1.28.2 (image-spec 1.1.0-dev)").as_deref(),
            Some("1.28.2")
        );
        assert_eq!(
            say("github.com/docker/buildx 0.13.1+ds1 x").as_deref(),
            Some("0.13.1+ds1")
        );
        assert_eq!(version_of(Command::new("no-such-program")), None);
    }
}
