//! What a deploy came to: image, digest, size, where the time went, what the cache saved.

use super::progress::{Board, bytes, clean_lines, seconds};
use crate::api::shapes::Build;
use serde::Serialize;
use slipway_core::build::{BuildOutcome, BuiltPlatform, Statement};
use slipway_terminal::exit::{Failure, Outcome};
use slipway_terminal::printer::record_lines;
use std::collections::BTreeSet;

/// The result of a deploy; printed for people, or as the last JSON document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Summary {
    /// App that was built.
    pub(crate) app: String,
    /// Build; absent for one that ran here.
    pub(crate) build: Option<String>,
    /// Full name with tag.
    pub(crate) image: String,
    /// Its further names.
    pub(crate) tags: Vec<String>,
    /// Id in dockerd.
    pub(crate) image_id: String,
    /// Digest of the pushed manifest; absent without a push.
    pub(crate) digest: Option<String>,
    /// Platforms that were named and built.
    pub(crate) platforms: Vec<BuiltPlatform>,
    /// What is attested of it, without the statements' texts.
    pub(crate) statements: Vec<Statement>,
    /// Uncompressed.
    pub(crate) size_bytes: u64,
    /// Dockerfile steps from the cache.
    pub(crate) steps_cached: usize,
    /// Dockerfile steps in all.
    pub(crate) steps: usize,
    /// Context, Dockerfile and all else that went to the builder; absent for who did not send it.
    pub(crate) sent_bytes: Option<u64>,
    /// Where the time went.
    pub(crate) time: Times,
}

/// Where the time went, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(crate) struct Times {
    /// From the command's start to its end; of a build that was attached to, from its acceptance.
    pub(crate) total_ms: u64,
    /// Until the builder answered: short if it ran. Absent for who did not wake it.
    pub(crate) wake_ms: Option<u64>,
    /// Behind other builds.
    pub(crate) queued_ms: u64,
    /// Sending the context; a part of the build.
    pub(crate) context_ms: u64,
    /// Solving and exporting.
    pub(crate) build_ms: u64,
    /// Pushing.
    pub(crate) push_ms: u64,
}

/// What one client alone knows of a build, because it sent it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sender {
    /// From the command's start.
    pub(super) total_ms: u64,
    /// Until the builder answered.
    pub(super) wake_ms: u64,
    /// What went to the builder.
    pub(super) sent_bytes: u64,
}

impl Summary {
    /// Of a build on a builder that has ended.
    ///
    /// # Errors
    /// It failed, by whosever fault, or was cancelled.
    pub(super) fn of_build(
        build: &Build,
        outcome: BuildOutcome,
        board: &Board,
        sender: Option<Sender>,
    ) -> Outcome<Self> {
        match outcome.without_texts() {
            BuildOutcome::Succeeded {
                image_id,
                digest,
                size_bytes,
                build_ms,
                push_ms,
                steps: _,
                steps_cached: _,
                platforms,
                statements,
            } => {
                let (steps_cached, steps) = board.cached_steps();
                Ok(Self {
                    app: build.app.clone(),
                    build: Some(build.id.clone()),
                    image: build.image.clone(),
                    tags: build.tags.clone(),
                    platforms: platforms.into_vec(),
                    statements,
                    image_id,
                    digest,
                    size_bytes,
                    steps_cached,
                    steps,
                    sent_bytes: sender.map(|sender| sender.sent_bytes),
                    time: Times {
                        total_ms: sender.map_or(board.last_ms(), |sender| sender.total_ms),
                        wake_ms: sender.map(|sender| sender.wake_ms),
                        queued_ms: board.queued_ms(),
                        context_ms: board.context_ms(),
                        build_ms,
                        push_ms,
                    },
                })
            }
            BuildOutcome::Failed {
                fault,
                message,
                hint,
                excerpt,
            } => Err(Failure::with_fault(fault, message)
                .at(excerpt.as_deref().map(clean_lines))
                .maybe_hint(hint)
                .hint(format!(
                    "`slipway builds logs {}` shows its output",
                    build.id
                ))),
            BuildOutcome::Cancelled => Err(Failure::user(format!(
                "build {} was cancelled",
                build.id
            ))
            .hint("somebody ended it with `slipway builds cancel`; deploy again to build it")),
        }
    }

    /// `image@digest`: what others can pull, for ever. One line for each name.
    pub(crate) fn reference(&self) -> String {
        let names = std::iter::once(&self.image).chain(&self.tags);
        let references = names.map(|name| match &self.digest {
            Some(digest) => format!("{name}@{digest}"),
            None => name.clone(),
        });
        references.collect::<Vec<_>>().join("\n")
    }

    /// For people.
    pub(crate) fn lines(&self) -> Vec<String> {
        let time = &self.time;
        let mut parts: Vec<String> = time
            .wake_ms
            .map(|wake_ms| format!("builder {}", seconds(wake_ms)))
            .into_iter()
            .collect();
        if time.queued_ms > 100 {
            parts.push(format!("queue {}", seconds(time.queued_ms)));
        }
        parts.push(format!("context {}", seconds(time.context_ms)));
        let build_alone = time.build_ms.saturating_sub(time.context_ms);
        parts.push(format!("build {}", seconds(build_alone)));
        if self.digest.is_some() {
            parts.push(format!("push {}", seconds(time.push_ms)));
        }
        let mut fields = vec![("image", self.image.clone())];
        fields.extend(self.tags.iter().map(|name| ("also", name.clone())));
        if !self.platforms.is_empty() {
            fields.push(("for", shown(&self.platforms)));
        }
        fields.extend([
            (
                "digest",
                self.digest
                    .clone()
                    .unwrap_or_else(|| "not pushed".to_owned()),
            ),
            ("size", bytes(self.size_bytes)),
            (
                "steps",
                format!("{} of {} from the cache", self.steps_cached, self.steps),
            ),
        ]);
        if !self.statements.is_empty() {
            let kinds: BTreeSet<&str> = self
                .statements
                .iter()
                .map(|statement| statement.predicate_type.as_str())
                .collect();
            let kinds: Vec<&str> = kinds.into_iter().collect();
            fields.push(("attests", kinds.join(", ")));
        }
        fields.extend(self.sent_bytes.map(|sent| ("sent", bytes(sent))));
        fields.push((
            "time",
            format!("{}: {}", seconds(time.total_ms), parts.join(", ")),
        ));
        record_lines(&fields)
    }
}

/// Each platform, and how it was built.
pub(crate) fn shown(platforms: &[BuiltPlatform]) -> String {
    let how = |it: &BuiltPlatform| match it.emulated {
        true => format!("{} (emulated)", it.platform),
        false => format!("{} (native)", it.platform),
    };
    platforms.iter().map(how).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_where_the_time_went() {
        let mut summary = Summary {
            app: "a".to_owned(),
            build: Some("bld_1".to_owned()),
            image: "r/a:1".to_owned(),
            tags: Vec::new(),
            platforms: Vec::new(),
            statements: Vec::new(),
            image_id: "sha256:1".to_owned(),
            digest: Some("sha256:2".to_owned()),
            size_bytes: 3 << 20,
            steps_cached: 2,
            steps: 5,
            sent_bytes: Some(1536),
            time: Times {
                total_ms: 4200,
                wake_ms: Some(900),
                queued_ms: 0,
                context_ms: 200,
                build_ms: 2300,
                push_ms: 700,
            },
        };
        assert_eq!(
            summary.lines(),
            [
                "image   r/a:1",
                "digest  sha256:2",
                "size    3 MiB",
                "steps   2 of 5 from the cache",
                "sent    1.5 KiB",
                "time    4.2s: builder 0.9s, context 0.2s, build 2.1s, push 0.7s",
            ]
        );
        assert_eq!(summary.reference(), "r/a:1@sha256:2");
        summary.time.wake_ms = None;
        summary.sent_bytes = None;
        let attached = summary.lines().join("\n");
        assert!(
            !attached.contains("builder") && !attached.contains("sent"),
            "{attached}"
        );
        summary.tags = vec!["s/a:2".to_owned()];
        summary.platforms = [("linux/amd64", false), ("linux/arm64", true)]
            .map(|(platform, emulated)| BuiltPlatform {
                platform: platform.to_owned(),
                emulated,
            })
            .to_vec();
        let lines = summary.lines();
        assert_eq!(
            lines[1..3],
            [
                "also    s/a:2",
                "for     linux/amd64 (native), linux/arm64 (emulated)",
            ]
        );
        assert_eq!(summary.reference(), "r/a:1@sha256:2\ns/a:2@sha256:2");
        summary.tags.clear();
        summary.digest = None;
        assert!(!summary.lines().join("\n").contains("push 0.7s"));
        assert_eq!(summary.reference(), "r/a:1");
    }
}
