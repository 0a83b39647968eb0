//! What a `POST /build` asks for, by its query.
//!
//! Pure. Must not know: who asks, what becomes of it.

use crate::bounds::{REFERENCE_BYTES_MAX, SOLVE_NAME_BYTES_MAX};
use percent_encoding::percent_decode_str;
use slipway_core::build::BuildSpec;

/// Names of its image that are read.
const NAMES_MAX: usize = 16;

/// One build.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct AskedBuild {
    /// BuildKit builds it, which then has a record of it.
    pub(super) by_buildkit: bool,
    /// The name of BuildKit's solve, where the client chose it.
    pub(super) name: Option<String>,
    /// What is known of it.
    pub(super) spec: BuildSpec,
}

impl AskedBuild {
    pub(super) fn of(query: &str) -> Self {
        let mut asked = Self::default();
        let mut names = Vec::new();
        for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            let value = percent_decode_str(value).decode_utf8_lossy();
            let is_empty = value.is_empty() || value.len() > REFERENCE_BYTES_MAX;
            if is_empty || value.contains(char::is_control) {
                continue;
            }
            let attribute = match key {
                "version" => {
                    asked.by_buildkit = value == "2";
                    continue;
                }
                "buildid" if value.len() <= SOLVE_NAME_BYTES_MAX => {
                    asked.name = Some(value.into_owned());
                    continue;
                }
                "t" if names.len() < NAMES_MAX => {
                    names.push(value.into_owned());
                    continue;
                }
                "dockerfile" => "filename",
                "target" => "target",
                "platform" => "platform",
                _ => continue,
            };
            let attributes = &mut asked.spec.frontend_attrs;
            attributes.insert(attribute.to_owned(), value.into_owned());
        }
        let mut names = names.into_iter();
        asked.spec.image = names.next().unwrap_or_default();
        asked.spec.tags = names.collect();
        asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_says_which_builder_and_what_is_built_and_no_secret_is_kept() {
        let asked = AskedBuild::of(
            "buildargs=%7B%22TOKEN%22%3A%22x%22%7D&buildid=0a1b&dockerfile=a%2FDockerfile&t=r.example%2Fa%3A1&t=b&version=2&x",
        );
        assert!(asked.by_buildkit);
        assert_eq!(asked.name.as_deref(), Some("0a1b"));
        assert_eq!(asked.spec.image, "r.example/a:1");
        assert_eq!(asked.spec.tags, ["b"]);
        let attributes: Vec<_> = asked.spec.frontend_attrs.into_iter().collect();
        assert_eq!(attributes, [("filename".into(), "a/Dockerfile".into())]);

        let long = "x".repeat(REFERENCE_BYTES_MAX + 1);
        let many = "&t=n".repeat(2 * NAMES_MAX);
        let asked = AskedBuild::of(&format!("t={long}&buildid=%0a&target=a%00{many}&version=1"));
        assert!(!asked.by_buildkit && asked.name.is_none());
        assert_eq!(asked.spec.tags.len(), NAMES_MAX - 1);
        assert!(asked.spec.frontend_attrs.is_empty());
        assert_eq!(AskedBuild::of(""), AskedBuild::default());
    }
}
