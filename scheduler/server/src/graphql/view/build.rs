//! Builds, as shown.

use super::super::Result;
use super::super::access::Access;
use super::super::running::Running;
use super::super::scalar::{DateTime, Long};
use crate::bounds::PAGE_MAX;
use async_graphql::{Context, Enum, ID, Json, Object, Value};
use slipway_core::build::{BuildOutcome, Fault, NumberedEvent};
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

    /// What it does now.
    async fn state(&self) -> BuildState {
        self.0.state.into()
    }

    /// It is pushed when built.
    async fn push(&self) -> bool {
        self.0.spec.push
    }

    /// When it was asked for.
    async fn created_at(&self) -> DateTime {
        DateTime(self.0.created_at)
    }

    /// When it ended.
    async fn ended_at(&self) -> Option<DateTime> {
        self.0.ended_at.map(DateTime)
    }

    /// Digest of the image's config.
    async fn image_id(&self) -> Option<&str> {
        self.succeeded().map(|done| done.image_id)
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

struct Succeeded<'a> {
    image_id: &'a str,
    digest: Option<&'a str>,
    size_bytes: u64,
    build_ms: u64,
    push_ms: u64,
    steps: u32,
    steps_cached: u32,
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
            } => Some(Succeeded {
                image_id,
                digest: digest.as_deref(),
                size_bytes: *size_bytes,
                build_ms: *build_ms,
                push_ms: *push_ms,
                steps: *steps,
                steps_cached: *steps_cached,
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
