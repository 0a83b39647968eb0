//! Builds, as shown.

use super::super::Result;
use super::super::access::Access;
use super::super::running::Running;
use super::super::scalar::{DateTime, Long};
use crate::bounds::PAGE_MAX;
use async_graphql::{Context, Enum, ID, Json, Object, Value};
use slipway_core::build as source;
use slipway_core::build::{self, BuildEvent, BuildOutcome, Fault, NumberedEvent};
use slipway_store as store;

/// What a build does.
#[derive(Enum, Clone, Copy, PartialEq, Eq)]
#[graphql(remote = "store::BuildState")]
pub(in crate::graphql) enum BuildState {
    /// Its builder has not accepted it yet.
    Pending,
    /// Its builder has accepted it.
    Running,
    /// Built, and pushed if that was asked.
    Succeeded,
    /// Not.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
}

/// By which way a build came.
#[derive(Enum, Clone, Copy, PartialEq, Eq)]
#[graphql(remote = "source::BuildSource")]
pub(in crate::graphql) enum BuildSource {
    /// `slipway deploy`.
    Deploy,
    /// The Docker gateway: `docker build`, compose, an SDK.
    Docker,
    /// The BuildKit gateway: buildx.
    Buildkit,
}

/// Whose fault a failure is.
#[derive(Enum, Clone, Copy, PartialEq, Eq)]
#[graphql(name = "Fault")]
pub(in crate::graphql) enum FaultView {
    /// The caller's.
    User,
    /// The server's, or the network's.
    System,
}

/// One build of one image.
pub(in crate::graphql) struct Build(pub(in crate::graphql) store::Build);

/// One build of one image.
#[Object]
impl Build {
    /// Its id.
    async fn id(&self) -> ID {
        ID(self.0.id.to_string())
    }

    /// Name of the app it is for.
    async fn app(&self, context: &Context<'_>) -> Result<String> {
        let store = Access::of(context)?.store();
        let (org, app) = (&self.0.org, &self.0.app);
        Ok(Running::of(context)?.app_name(store, org, app).await?)
    }

    /// Id of the builder it runs on.
    async fn builder(&self) -> ID {
        ID(self.0.machine.to_string())
    }

    /// Name of the image.
    async fn image(&self) -> &str {
        &self.0.spec.image
    }

    /// Its further names.
    async fn tags(&self) -> &[String] {
        &self.0.spec.tags
    }

    /// What it does now.
    async fn state(&self) -> BuildState {
        self.0.state.into()
    }

    /// It is pushed when built.
    async fn push(&self) -> bool {
        self.0.spec.push
    }

    /// By which way it came. One that a Docker client brought ends with that client.
    async fn source(&self) -> BuildSource {
        self.0.source.into()
    }

    /// Name of the token that asked for it, where it is known.
    async fn asked_by(&self) -> Option<&str> {
        self.0.asked_by.as_deref()
    }

    /// When it was asked for.
    async fn created_at(&self) -> DateTime {
        DateTime(self.0.created_at)
    }

    /// When it ended.
    async fn ended_at(&self) -> Option<DateTime> {
        self.0.ended_at.map(DateTime)
    }

    /// Digest of the image's config. Absent where the result is no image, or went elsewhere.
    async fn image_id(&self) -> Option<&str> {
        self.succeeded()
            .map(|done| done.image_id)
            .filter(|id| !id.is_empty())
    }

    /// Digest of the pushed manifest.
    async fn digest(&self) -> Option<&str> {
        self.succeeded().and_then(|done| done.digest)
    }

    /// Bytes of the image, uncompressed.
    async fn size_bytes(&self) -> Option<Long> {
        self.succeeded().map(|done| Long(done.size_bytes))
    }

    /// Milliseconds spent building.
    async fn build_ms(&self) -> Option<Long> {
        self.succeeded().map(|done| Long(done.build_ms))
    }

    /// Milliseconds spent pushing.
    async fn push_ms(&self) -> Option<Long> {
        self.succeeded().map(|done| Long(done.push_ms))
    }

    /// Steps of the Dockerfile, where it succeeded and its builder counted them.
    async fn steps(&self) -> Option<u32> {
        self.succeeded()
            .map(|done| done.steps)
            .filter(|steps| *steps > 0)
    }

    /// Those of them that came from the cache.
    async fn steps_cached(&self) -> Option<u32> {
        let done = self.succeeded().filter(|done| done.steps > 0);
        done.map(|done| done.steps_cached)
    }

    /// Platforms that were named and built.
    async fn platforms(&self) -> Vec<BuiltPlatform> {
        let done = self.succeeded();
        let platforms = done.map_or(&[][..], |done| done.platforms);
        platforms.iter().cloned().map(BuiltPlatform).collect()
    }

    /// What is attested of the image, such as its provenance.
    #[graphql(complexity = "20")]
    async fn statements(&self, context: &Context<'_>) -> Result<Vec<Statement>> {
        let Some(outcome) = &self.0.outcome else {
            return Ok(Vec::new());
        };
        if outcome.statements().is_empty() {
            return Ok(Vec::new());
        }
        let access = Access::of(context)?;
        let running = Running::of(context)?;
        let _alone = running.reading.lock().await;
        running.check()?;
        // The last event of a build is its end, which alone has the texts.
        let before = self.0.last_seq.saturating_sub(1);
        let last = access
            .store()
            .build_events(&self.0.org, &self.0.id, before, 1)
            .await?;
        let ended = last.iter().find_map(|event| match &event.event {
            BuildEvent::Ended(outcome) => Some(outcome),
            BuildEvent::Queued { .. }
            | BuildEvent::Started
            | BuildEvent::Step(_)
            | BuildEvent::Log { .. }
            | BuildEvent::Progress { .. }
            | BuildEvent::Warning { .. }
            | BuildEvent::Push(_)
            | BuildEvent::LogTruncated => None,
        });
        let statements = ended.unwrap_or(outcome).statements();
        for statement in statements {
            running.charge_value(&Value::from(statement.text.clone()))?;
        }
        Ok(statements.iter().cloned().map(Statement).collect())
    }

    /// Why it failed.
    async fn error(&self) -> Option<&str> {
        self.failed().map(|failed| failed.message)
    }

    /// What to do about that.
    async fn hint(&self) -> Option<&str> {
        self.failed().and_then(|failed| failed.hint)
    }

    /// Lines of the Dockerfile round the fault, as text: numbers, and marks at those that failed.
    async fn excerpt(&self) -> Option<&str> {
        self.failed().and_then(|failed| failed.excerpt)
    }

    /// Whose fault that is.
    async fn fault(&self) -> Option<FaultView> {
        self.failed().map(|failed| match failed.fault {
            Fault::User => FaultView::User,
            Fault::System => FaultView::System,
        })
    }

    /// Number of its newest event.
    async fn last_seq(&self) -> Long {
        Long(self.0.last_seq)
    }

    /// Its events after a number, in order: steps, output, progress, the end. At most 200, and about 1 MiB; ask on from the last.
    #[graphql(complexity = "1 + limit.min(PAGE_MAX) as usize")]
    async fn events(
        &self,
        context: &Context<'_>,
        #[graphql(default)] after: u32,
        #[graphql(default = 200)] limit: u32,
    ) -> Result<Vec<Json<NumberedEvent>>> {
        let access = Access::of(context)?;
        let running = Running::of(context)?;
        let _alone = running.reading.lock().await;
        running.check()?;
        let limit = limit.min(PAGE_MAX);
        let events = access
            .store()
            .build_events(&self.0.org, &self.0.id, u64::from(after), limit)
            .await?;
        for event in &events {
            let event = Value::from_json(serde_json::to_value(event).unwrap_or_default());
            running.charge_value(&event.unwrap_or_default())?;
        }
        Ok(events.into_iter().map(Json).collect())
    }
}

/// A platform that was built.
pub(in crate::graphql) struct BuiltPlatform(build::BuiltPlatform);

/// A platform that was built.
#[Object]
impl BuiltPlatform {
    /// Such as `linux/arm64`.
    async fn platform(&self) -> &str {
        &self.0.platform
    }

    /// Its steps ran under an emulator: the builder has another processor.
    async fn emulated(&self) -> bool {
        self.0.emulated
    }
}

/// A statement that goes with an image (in-toto).
pub(in crate::graphql) struct Statement(build::Statement);

/// A statement that goes with an image (in-toto).
#[Object]
impl Statement {
    /// Platform of the image that it is about.
    async fn platform(&self) -> Option<&str> {
        self.0.platform.as_deref()
    }

    /// What it says, such as `https://slsa.dev/provenance/v0.2`.
    async fn predicate_type(&self) -> &str {
        &self.0.predicate_type
    }

    /// Digest of the statement.
    async fn digest(&self) -> &str {
        &self.0.digest
    }

    /// Bytes of the statement.
    async fn size_bytes(&self) -> Long {
        Long(self.0.size_bytes)
    }

    /// The statement, as JSON. Absent where it is too long to be kept: the registry has it.
    async fn text(&self) -> Option<&str> {
        self.0.text.as_deref()
    }
}

struct Succeeded<'a> {
    image_id: &'a str,
    digest: Option<&'a str>,
    size_bytes: u64,
    build_ms: u64,
    push_ms: u64,
    steps: u32,
    steps_cached: u32,
    platforms: &'a [build::BuiltPlatform],
}

struct Failed<'a> {
    fault: Fault,
    message: &'a str,
    hint: Option<&'a str>,
    excerpt: Option<&'a str>,
}

impl Build {
    fn succeeded(&self) -> Option<Succeeded<'_>> {
        match self.0.outcome.as_ref()? {
            BuildOutcome::Succeeded {
                image_id,
                digest,
                size_bytes,
                build_ms,
                push_ms,
                steps,
                steps_cached,
                platforms,
                statements: _,
            } => Some(Succeeded {
                image_id,
                digest: digest.as_deref(),
                size_bytes: *size_bytes,
                build_ms: *build_ms,
                push_ms: *push_ms,
                steps: *steps,
                steps_cached: *steps_cached,
                platforms,
            }),
            BuildOutcome::Failed { .. } | BuildOutcome::Cancelled => None,
        }
    }

    fn failed(&self) -> Option<Failed<'_>> {
        match self.0.outcome.as_ref()? {
            BuildOutcome::Failed {
                fault,
                message,
                hint,
                excerpt,
            } => Some(Failed {
                fault: *fault,
                message,
                hint: hint.as_deref(),
                excerpt: excerpt.as_deref(),
            }),
            BuildOutcome::Succeeded { .. } | BuildOutcome::Cancelled => None,
        }
    }
}
