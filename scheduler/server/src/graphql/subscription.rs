//! What may be followed.

use super::Result;
use super::access::Access;
use super::ids::parse_id;
use super::view::{Build, Builder};
use crate::farm::{BuilderView, Farm, FarmEvent, NextEvent, Subscription as Changes};
use async_graphql::{Context, ID, Json, Subscription as GraphSubscription};
use futures_util::{Stream, StreamExt};
use slipway_core::build::NumberedEvent;
use slipway_core::id::{AppId, OrgId};
use slipway_store::TokenRole;
use std::collections::VecDeque;

pub(super) struct Subscription;

/// What may be followed.
#[GraphSubscription]
impl Subscription {
    /// The events of a build after a number, in order and each once: those that were, then those that come, until its
    /// end. A broken connection goes on from the last number it has.
    async fn build_events(
        &self,
        context: &Context<'_>,
        id: ID,
        #[graphql(default)] after: u32,
    ) -> Result<impl Stream<Item = Result<Json<NumberedEvent>>> + use<>> {
        let access = Access::of(context)?;
        let (org, build) = access.build(&parse_id(&id)?, TokenRole::Read).await?;
        let events = access
            .parts
            .builds
            .events(&org, &build.id, u64::from(after))
            .await?;
        Ok(events.map(|event| Ok(Json(event?))))
    }

    /// The builders of an org: each as it is now, then whenever one changes.
    async fn builder_state(
        &self,
        context: &Context<'_>,
        org: Option<String>,
    ) -> Result<impl Stream<Item = Builder> + use<>> {
        let access = Access::of(context)?;
        let scope = access.enter(org.as_deref(), TokenRole::Read).await?;
        let farm = access.parts.farm.clone();
        // Listening begins before the state is read, so that no change falls between.
        let org = scope.shared().id.clone();
        let changes = farm.subscribe(&org);
        let now: VecDeque<BuilderView> = farm.builders(&org).into();
        let state = Following {
            changes,
            farm,
            org,
            now,
        };
        Ok(futures_util::stream::unfold(
            state,
            |mut state| async move {
                let view = state.next().await?;
                Some((Builder::from(view), state))
            },
        ))
    }

    /// The builds of an org, each whenever it changes.
    async fn build_state(
        &self,
        context: &Context<'_>,
        org: Option<String>,
    ) -> Result<impl Stream<Item = Build> + use<>> {
        let access = Access::of(context)?;
        let scope = access.enter(org.as_deref(), TokenRole::Read).await?;
        let (org, only) = scope.filtered();
        let state = (access.parts.farm.subscribe(&org), only);
        Ok(futures_util::stream::unfold(
            state,
            |(mut changes, only)| async move {
                let build = next_build(&mut changes, only.as_ref()).await?;
                Some((Build(build), (changes, only)))
            },
        ))
    }
}

struct Following {
    changes: Changes,
    farm: Farm,
    org: OrgId,
    now: VecDeque<BuilderView>,
}

impl Following {
    async fn next(&mut self) -> Option<BuilderView> {
        loop {
            if let Some(view) = self.now.pop_front() {
                return Some(view);
            }
            match self.changes.next().await {
                NextEvent::Event(FarmEvent::Builder(view)) => return Some(*view),
                NextEvent::Event(FarmEvent::Build(_)) => {}
                NextEvent::Missed => self.now = self.farm.builders(&self.org).into(),
                NextEvent::Closed => return None,
            }
        }
    }
}

async fn next_build(changes: &mut Changes, only: Option<&AppId>) -> Option<slipway_store::Build> {
    loop {
        match changes.next().await {
            NextEvent::Event(FarmEvent::Build(build))
                if only.is_none_or(|only| *only == build.app) =>
            {
                return Some(*build);
            }
            // Who was too slow has missed some; the next change of each build brings it up to date.
            NextEvent::Event(FarmEvent::Build(_) | FarmEvent::Builder(_)) | NextEvent::Missed => {}
            NextEvent::Closed => return None,
        }
    }
}
