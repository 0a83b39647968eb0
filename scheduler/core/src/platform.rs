//! Platforms of images: operating system and processor, as Go names them.

use std::fmt;
use std::str::FromStr;

/// What an image runs on, such as `linux/arm64` or `linux/arm/v7`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Platform {
    /// Processor: `amd64`, `arm64`, ...
    arch: String,
    /// `v7`, where it matters.
    variant: Option<String>,
}

/// The text names no platform that images are built for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a platform that can be built")]
pub struct UnknownPlatform(String);

/// Processors that a builder has, or that QEMU emulates in it.
const ARCHES: [&str; 7] = [
    "386", "amd64", "arm", "arm64", "ppc64le", "riscv64", "s390x",
];

impl Platform {
    /// Its processor.
    pub fn arch(&self) -> &str {
        &self.arch
    }

    /// A processor runs its programs without help. 64-bit x86 runs those of 32 bits; not every 64-bit ARM does.
    pub fn is_native_to(&self, arch: &str) -> bool {
        self.arch == arch || (self.arch == "386" && arch == "amd64")
    }
}

impl FromStr for Platform {
    type Err = UnknownPlatform;

    fn from_str(text: &str) -> Result<Self, UnknownPlatform> {
        let unknown = || UnknownPlatform(text.chars().take(80).collect());
        let mut parts = text.split('/');
        let (Some("linux"), Some(arch), variant, None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(unknown());
        };
        let arch = match arch {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "i386" => "386",
            arch => arch,
        };
        let is_variant = |text: &str| {
            (1..=8).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
        };
        if !ARCHES.contains(&arch) || !variant.is_none_or(is_variant) {
            return Err(unknown());
        }
        Ok(Self {
            arch: arch.to_owned(),
            variant: variant.map(str::to_owned),
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linux/{}", self.arch)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// Each of the platforms of a list with commas, once, in its order.
///
/// # Errors
/// One of them is none.
pub fn parse_list(text: &str) -> Result<Vec<Platform>, UnknownPlatform> {
    let mut all = Vec::new();
    for part in text.split(',') {
        let platform: Platform = part.trim().parse()?;
        if !all.contains(&platform) {
            all.push(platform);
        }
    }
    Ok(all)
}

/// The processor that a builder for these platforms had best have; none where any will do. One builder makes all of them, so several
/// platforms go to the one that there is, which emulates the others.
pub fn builder_arch(platforms: &[Platform]) -> Option<&str> {
    match platforms {
        [one] if matches!(one.arch(), "amd64" | "arm64") => Some(one.arch()),
        _ => None,
    }
}

/// The processor of this program, as Go names it.
pub fn own_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_read_as_docker_writes_them() {
        for (text, want) in [
            ("linux/amd64", Some("linux/amd64")),
            ("linux/aarch64", Some("linux/arm64")),
            ("linux/arm/v7", Some("linux/arm/v7")),
            ("linux/amd64, linux/arm64", Some("linux/amd64,linux/arm64")),
            ("linux/amd64,linux/x86_64", Some("linux/amd64")),
            ("windows/amd64", None),
            ("linux", None),
            ("linux/vax", None),
            ("linux/arm/v7/x", None),
            ("linux/arm/v 7", None),
            ("linux/amd64,", None),
        ] {
            let read = parse_list(text).ok().map(|all| {
                let all: Vec<String> = all.iter().map(ToString::to_string).collect();
                all.join(",")
            });
            assert_eq!(read.as_deref(), want, "{text}");
        }
    }

    #[test]
    fn one_platform_wants_its_builder_and_several_take_any() {
        for (text, want) in [
            ("linux/arm64", Some("arm64")),
            ("linux/riscv64", None),
            ("linux/amd64,linux/arm64", None),
        ] {
            let all = parse_list(text).unwrap();
            assert_eq!(builder_arch(&all), want, "{text}");
        }
    }

    #[test]
    fn what_needs_no_emulation() {
        for (platform, arch, want) in [
            ("linux/amd64", "amd64", true),
            ("linux/386", "amd64", true),
            ("linux/arm64", "amd64", false),
            ("linux/arm/v7", "arm64", false),
        ] {
            let platform: Platform = platform.parse().unwrap();
            assert_eq!(platform.is_native_to(arch), want, "{platform} on {arch}");
        }
    }
}
