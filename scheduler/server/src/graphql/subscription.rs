//! What goes on.

use super::error::Problem;
use super::query::find_build;
use super::view::Builder;
use super::{caller, services};
use crate::farm::{FarmEvent, NextEvent};
use async_graphql::{Context, ID, Json, Result, Subscription};
use futures_util::{Stream, StreamExt};
use slipway_core::build::NumberedEvent;

#[derive(Debug)]
pub(super) struct SubscriptionRoot;

#[Subscription]
impl SubscriptionRoot {
    /// The events of a build with numbers above `after`, without a gap; ends with the build.
    async fn build_events(
        &self,
        context: &Context<'_>,
        id: ID,
        #[graphql(default)] after: u64,
    ) -> Result<impl Stream<Item = Result<Json<NumberedEvent>>> + use<>> {
        let (services, caller) = (services(context)?, caller(context)?);
        let (org, build) = find_build(services, caller, &id).await?;
        let events =
            services.builds.events(&org, &build.id, after).await.map_err(Problem::from)?;
        Ok(events.map(|event| event.map(Json).map_err(|error| Problem::from(error).into())))
    }

    /// All builders of an org first, then each one that changes.
    async fn builder_state(
        &self,
        context: &Context<'_>,
        org: Option<String>,
    ) -> Result<impl Stream<Item = Builder> + use<>> {
        let (services, caller) = (services(context)?, caller(context)?);
        let org = caller.org(services, org.as_deref()).await?.id;
        let farm = services.farm.clone();
        let changes = farm.subscribe(&org);
        let first = farm.builders(&org);
        Ok(futures_util::stream::unfold(
            (farm, org, changes, std::collections::VecDeque::from(first)),
            |(farm, org, mut changes, mut ready)| async move {
                loop {
                    if let Some(view) = ready.pop_front() {
                        return Some((Builder::from(view), (farm, org, changes, ready)));
                    }
                    match changes.next().await {
                        NextEvent::Event(FarmEvent::Builder(view)) => ready.push_back(*view),
                        NextEvent::Event(FarmEvent::Build(_)) => {}
                        NextEvent::Missed => ready.extend(farm.builders(&org)),
                        NextEvent::Closed => return None,
                    }
                }
            },
        ))
    }
}
