//! A build: what is asked, what happens while it runs, and how it ended.

use crate::compression::Compression;
use crate::limits::{BUILD_STATEMENTS_BYTES_MAX, BUILD_STATEMENTS_MAX};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What to build and where to push it. Secrets are not here: the caller's session serves them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildSpec {
    /// Image name without tag, or with one, for dockerd and for the push, as in `registry.example/app:tag`.
    pub image: String,
    /// Push it when built.
    pub push: bool,
    /// Frontend attributes of BuildKit's `dockerfile.v0` (`filename`, `target`, `build-arg:X`, `label:X`, `platform`,
    /// `no-cache`, ...).
    pub frontend_attrs: BTreeMap<String, String>,
    /// Of the pushed layers; the builder's own choice if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// Further names of the image; a push goes to each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// What steps may ask for beyond the usual, in BuildKit's words: `network.host`, `security.insecure`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entitlements: Vec<String>,
    /// Caches that are looked at, each as `type=registry,ref=registry.example/app:cache`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cache_from: Vec<String>,
    /// Caches that are written, in the same form.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cache_to: Vec<String>,
    /// The result's files are sent to the session as well, as one archive.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub export: bool,
    /// The image is sent to the session as well, as the archive that `docker load` reads. Not together with `export`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub load: bool,
    /// Annotations of manifests and index, each as buildx writes it: `index:NAME=VALUE`, `manifest[linux/arm64]:NAME=VALUE`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub annotations: Vec<String>,
}

/// By which way a build came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildSource {
    /// `slipway deploy`.
    #[default]
    Deploy,
    /// The Docker gateway: `docker build`, compose, an SDK.
    Docker,
    /// The BuildKit gateway: buildx.
    Buildkit,
}

impl BuildSource {
    /// As it is stored and told.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deploy => "deploy",
            Self::Docker => "docker",
            Self::Buildkit => "buildkit",
        }
    }
}

impl std::str::FromStr for BuildSource {
    type Err = UnknownSource;

    fn from_str(text: &str) -> Result<Self, UnknownSource> {
        [Self::Deploy, Self::Docker, Self::Buildkit]
            .into_iter()
            .find(|source| source.as_str() == text)
            .ok_or(UnknownSource)
    }
}

/// The text is no [`BuildSource`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a way by which builds come")]
pub struct UnknownSource;

/// A registry credential. `Debug` never prints the secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryCredential {
    /// Registry host, with port if any.
    pub registry: String,
    /// User name; empty when the password is an identity token.
    pub username: String,
    /// Password or token.
    pub password: String,
}

impl std::fmt::Debug for RegistryCredential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryCredential")
            .field("registry", &self.registry)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// An event with its place in the build's order (1, 2, 3, ...).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NumberedEvent {
    /// Place in order.
    pub seq: u64,
    /// Milliseconds since the build was accepted.
    pub at_ms: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: BuildEvent,
}

/// What happens while a build runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum BuildEvent {
    /// It waits for a place on the builder.
    Queued {
        /// How many are ahead.
        ahead: u32,
    },
    /// It has begun to be solved.
    Started,
    /// A step was announced or changed state.
    Step(Step),
    /// Output of a step.
    Log {
        /// Digest of the step.
        step: String,
        /// 1 is stdout, 2 is stderr.
        stream: u8,
        /// Text; bytes that are not UTF-8 are replaced.
        text: String,
    },
    /// Progress inside a step (a transfer, an export).
    Progress {
        /// Digest of the step.
        step: String,
        /// What is being done, unique within the step.
        id: String,
        /// Bytes or items done.
        current: u64,
        /// Of how many; 0 if not known.
        total: u64,
        /// It is done.
        done: bool,
    },
    /// A warning of the frontend.
    Warning {
        /// One line.
        message: String,
    },
    /// Progress of the push, by layer.
    Push(PushProgress),
    /// The log went over its limit; of what comes after, only the last output of a step that fails is kept.
    LogTruncated,
    /// The last event.
    Ended(BuildOutcome),
}

/// A step of a build (a BuildKit vertex).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Digest: the identity of the step within this build.
    pub digest: String,
    /// As BuildKit names it, such as `[2/5] RUN make`.
    pub name: String,
    /// Milliseconds since the build was accepted.
    pub started_ms: Option<u64>,
    /// Milliseconds since the build was accepted.
    pub completed_ms: Option<u64>,
    /// Its result came from the cache.
    pub cached: bool,
    /// Why it failed.
    pub error: Option<String>,
}

impl Step {
    /// It is an instruction of the Dockerfile, which does work of its own: its name is like `[2/5] RUN make` or `[build 2/5] RUN make`.
    /// BuildKit's own steps are none, and neither is `FROM`: whether that counts as cached depends on the image store.
    pub fn is_of_the_dockerfile(&self) -> bool {
        is_of_the_dockerfile(&self.name)
    }
}

/// The same of a step's name.
pub fn is_of_the_dockerfile(name: &str) -> bool {
    name.strip_prefix('[')
        .and_then(|rest| rest.split_once("] "))
        .is_some_and(|(head, instruction)| {
            let position = head.rsplit(' ').next().unwrap_or(head);
            position
                .split_once('/')
                .is_some_and(|(n, of)| n.trim().parse::<u32>().is_ok() && of.parse::<u32>().is_ok())
                && !instruction.starts_with("FROM ")
        })
}

/// Steps of the Dockerfile that were seen, and which of them came from the cache. Of one build, whose number of steps is bounded by its
/// Dockerfile.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StepsSeen(BTreeMap<String, bool>);

impl StepsSeen {
    /// Takes in what is said of a step, as often as it is.
    pub fn see(&mut self, step: &Step) {
        if step.is_of_the_dockerfile() {
            *self.0.entry(step.digest.clone()).or_default() |= step.cached;
        }
    }

    /// How many there are, and how many of them came from the cache.
    pub fn count(&self) -> (u32, u32) {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let cached = self.0.values().filter(|cached| **cached).count();
        (count(self.0.len()), count(cached))
    }
}

/// Progress of a push.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushProgress {
    /// Digest of the uncompressed layer, or `config` or `manifest`.
    pub item: String,
    /// What is being done to it.
    pub state: PushState,
    /// Bytes read from the source so far.
    pub current: u64,
    /// Bytes in all; 0 if not known.
    pub total: u64,
    /// Bytes of its blob that were made, or that the registry has; 0 if not known, as by older guests.
    #[serde(default)]
    pub compressed: u64,
    /// Bytes of its blob handed to the network, repetitions included.
    #[serde(default)]
    pub sent: u64,
}

/// What is being done to one item of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PushState {
    /// Not begun.
    Waiting,
    /// Bytes are on their way.
    Pushing,
    /// The registry took it.
    Pushed,
    /// The registry had it.
    Exists,
    /// The registry linked it from another repository.
    Mounted,
}

/// How a build ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum BuildOutcome {
    /// Built, and pushed if that was asked.
    Succeeded {
        /// Image id in dockerd (digest of its config).
        image_id: String,
        /// Digest of the pushed manifest; absent without a push.
        digest: Option<String>,
        /// Bytes of the image: sum of its layers, uncompressed.
        size_bytes: u64,
        /// Milliseconds spent solving and exporting.
        build_ms: u64,
        /// Milliseconds spent pushing.
        push_ms: u64,
        /// Steps of the Dockerfile; 0 if not known, as by older guests.
        #[serde(default)]
        steps: u32,
        /// Those of them that came from the cache.
        #[serde(default)]
        steps_cached: u32,
        /// Platforms that were named and built; empty where none was named, and from older guests.
        #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
        platforms: Box<[BuiltPlatform]>,
        /// What is attested of the image.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        statements: Vec<Statement>,
    },
    /// It failed.
    Failed {
        /// Whose fault.
        fault: Fault,
        /// One line, no final period.
        message: String,
        /// What to do about it.
        hint: Option<String>,
        /// Lines of the Dockerfile round the fault, with numbers and marks. Absent where the place is not known, as from older
        /// builders.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        excerpt: Option<String>,
    },
    /// Somebody cancelled it.
    Cancelled,
}

/// A platform that was built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuiltPlatform {
    /// Such as `linux/arm64`.
    pub platform: String,
    /// Its steps ran under an emulator: the builder has another processor.
    pub emulated: bool,
}

/// A statement that goes with an image (in-toto), such as its provenance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// Of the image that it is about, where there are several.
    pub platform: Option<String>,
    /// What it says, such as `https://slsa.dev/provenance/v0.2`.
    pub predicate_type: String,
    /// Digest of the statement.
    pub digest: String,
    /// Bytes of the statement.
    pub size_bytes: u64,
    /// The statement, as JSON; absent where it is too long to be kept, and in the build's own record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

impl BuildOutcome {
    /// The same without the texts of statements, which only the build's last event has.
    #[must_use]
    pub fn without_texts(mut self) -> Self {
        if let Self::Succeeded { statements, .. } = &mut self {
            for statement in statements {
                statement.text = None;
            }
        }
        self
    }

    /// Keeps no more of platforms and statements than a build's record has room for.
    pub fn bound_statements(&mut self) {
        let Self::Succeeded {
            platforms,
            statements,
            ..
        } = self
        else {
            return;
        };
        let mut kept = std::mem::take(platforms).into_vec();
        kept.truncate(BUILD_STATEMENTS_MAX);
        *platforms = kept.into();
        statements.truncate(BUILD_STATEMENTS_MAX);
        let mut left = BUILD_STATEMENTS_BYTES_MAX;
        for statement in statements {
            let length = statement.text.as_ref().map_or(0, String::len);
            if length > left {
                statement.text = None;
            } else {
                left -= length;
            }
        }
    }

    /// The statements of a success.
    pub fn statements(&self) -> &[Statement] {
        match self {
            Self::Succeeded { statements, .. } => statements,
            Self::Failed { .. } | Self::Cancelled => &[],
        }
    }
}

/// Whose fault a failure is; it chooses the exit code (1 or 2) and whether anything may be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The caller's: Dockerfile, context, credential, reference. Never tried again.
    User,
    /// Ours, or the network's.
    System,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_counted_once_and_buildkits_own_steps_are_not() {
        let mut seen = StepsSeen::default();
        for (digest, name, cached) in [
            (
                "a",
                "[internal] load build definition from Dockerfile",
                false,
            ),
            ("b", "[1/3] FROM docker.io/library/debian:trixie", true),
            ("c", "[2/3] RUN make", false),
            ("c", "[2/3] RUN make", true),
            ("d", "[build 3/3] COPY a /b", false),
            ("d", "[build 3/3] COPY a /b", false),
            ("e", "exporting to image", false),
            ("f", "[linux/amd64 2/2] RUN true", true),
        ] {
            seen.see(&Step {
                digest: digest.to_owned(),
                name: name.to_owned(),
                started_ms: None,
                completed_ms: None,
                cached,
                error: None,
            });
        }
        assert_eq!(seen.count(), (3, 2));
    }

    #[test]
    fn of_statements_no_more_is_kept_than_there_is_room_for() {
        let statement = |bytes: usize| Statement {
            platform: None,
            predicate_type: "p".to_owned(),
            digest: "d".to_owned(),
            size_bytes: 1,
            text: Some("x".repeat(bytes)),
        };
        let mut outcome = BuildOutcome::Succeeded {
            image_id: "i".to_owned(),
            digest: None,
            size_bytes: 1,
            build_ms: 1,
            push_ms: 1,
            steps: 0,
            steps_cached: 0,
            platforms: Box::default(),
            statements: [10, BUILD_STATEMENTS_BYTES_MAX, 20]
                .into_iter()
                .chain(std::iter::repeat_n(1, BUILD_STATEMENTS_MAX))
                .map(statement)
                .collect(),
        };
        outcome.bound_statements();
        let kept: Vec<bool> = outcome
            .statements()
            .iter()
            .map(|it| it.text.is_some())
            .collect();
        assert_eq!(kept.len(), BUILD_STATEMENTS_MAX);
        assert_eq!(kept[..3], [true, false, true]);
        let record = outcome.without_texts();
        assert!(record.statements().iter().all(|it| it.text.is_none()));
    }

    /// What is stored, and what an older guest says, has no count.
    #[test]
    fn an_outcome_without_a_count_of_steps_is_read() {
        let old = r#"{"outcome":"succeeded","image_id":"i","digest":null,"size_bytes":1,"build_ms":2,"push_ms":3}"#;
        let outcome: BuildOutcome = serde_json::from_str(old).unwrap();
        assert!(matches!(
            outcome,
            BuildOutcome::Succeeded {
                steps: 0,
                steps_cached: 0,
                ..
            }
        ));
    }
}
