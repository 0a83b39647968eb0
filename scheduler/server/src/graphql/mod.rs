//! The schema. The only module that names async-graphql; [`execute`] carries requests to it out.
//!
//! Resolvers are thin: parse, call, convert. Whether a caller may see an org is decided in one place ([`access`]), which
//! every resolver passes. Must not know: HTTP, how anything is done.

pub(crate) mod access;
mod answer;
mod builder_choice;
#[cfg(test)]
mod cost_tests;
mod document;
mod execute;
#[cfg(test)]
mod farm_tests;
mod fly;
mod ids;
mod input;
#[cfg(test)]
mod lend_tests;
mod limits;
mod mutation;
mod query;
mod running;
mod scalar;
mod subscription;
#[cfg(test)]
mod tests;
mod view;
mod volumes;

pub(crate) use answer::Full;
pub(crate) use execute::{Executor, Outcome, Received, problem_json};

use crate::problem::Problem;
use async_graphql::{ErrorExtensions, MergedObject, Schema, SchemaBuilder};
use limits::{GRAPHQL_COMPLEXITY_MAX, GRAPHQL_DEPTH_MAX};
use mutation::CoreMutation;
use query::CoreQuery;
use slipway_core::build::Fault;
use subscription::Subscription;
use volumes::{VolumeMutation, VolumeQuery};

/// What may be asked. `org` is an id or a slug; without it, the token's own org is meant.
#[derive(MergedObject, Default)]
struct Query(CoreQuery, VolumeQuery);

/// What may be done. Each may be sent again without harm, but those that make something: with a name that is taken they say
/// CONFLICT, and volumes and snapshots have none that could be.
#[derive(MergedObject, Default)]
struct Mutation(CoreMutation, VolumeMutation);

type SlipwaySchema = Schema<Query, Mutation, Subscription>;

fn builder() -> SchemaBuilder<Query, Mutation, Subscription> {
    Schema::build(Query::default(), Mutation::default(), Subscription)
        .limit_depth(GRAPHQL_DEPTH_MAX)
        .limit_complexity(GRAPHQL_COMPLEXITY_MAX)
}

/// The schema in GraphQL's own language, as docs/schema.graphql has it.
pub fn sdl() -> String {
    let schema = builder().finish();
    let options = async_graphql::SDLExportOptions::new()
        .sorted_fields()
        .sorted_enum_items();
    schema.sdl_with_options(options)
}

/// A problem on its way into an answer. (Not `Display`: async-graphql would take the text and drop the rest.)
#[derive(Debug, Clone)]
pub(crate) struct Refused(Problem);

type Result<T> = std::result::Result<T, Refused>;

impl<E: Into<Problem>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl Refused {
    /// The problem.
    pub(crate) fn into_problem(self) -> Problem {
        self.0
    }
}

impl From<Refused> for async_graphql::Error {
    fn from(Refused(problem): Refused) -> Self {
        let Problem {
            code,
            message,
            hint,
        } = problem;
        Self::new(message).extend_with(|_, extensions| {
            extensions.set("code", code.as_str());
            let fault = match code.fault() {
                Fault::User => "user",
                Fault::System => "system",
            };
            extensions.set("fault", fault);
            if let Some(hint) = hint {
                extensions.set("hint", hint.into_owned());
            }
        })
    }
}
