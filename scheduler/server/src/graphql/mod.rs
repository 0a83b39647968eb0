//! The schema, and how a request to it is carried out. The only module that names async-graphql.
//!
//! Resolvers are thin: parse, call, convert. Whether a caller may see an org is decided in one place ([`access`]), which
//! every resolver passes. Must not know: HTTP, how anything is done.

pub(crate) mod access;
mod builder_choice;
#[cfg(test)]
mod farm_tests;
mod fly;
mod input;
mod mutation;
mod query;
mod scalar;
mod subscription;
#[cfg(test)]
mod tests;
mod view;
mod volumes;

use crate::api::Parts;
use crate::auth::Principal;
use crate::bounds::{GRAPHQL_COMPLEXITY_MAX, GRAPHQL_DEPTH_MAX};
use crate::problem::{Code, Problem};
use async_graphql::http::GraphiQLSource;
use async_graphql::{
    ErrorExtensions, MergedObject, Request, Response, Schema, SchemaBuilder, ServerError,
};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use mutation::CoreMutation;
use query::CoreQuery;
use slipway_core::build::Fault;
use std::fmt;
use std::sync::Arc;
use subscription::Subscription;
use tokio_util::task::TaskTracker;
use tracing::Instrument;
use volumes::{VolumeMutation, VolumeQuery};

/// What may be asked. `org` is an id or a slug; without it, the token's own org is meant.
#[derive(MergedObject, Default)]
struct Query(CoreQuery, VolumeQuery);

/// What may be done. Each may be sent again without harm, but those that make something: with a name that is taken they say
/// CONFLICT, and volumes and snapshots have none that could be.
#[derive(MergedObject, Default)]
struct Mutation(CoreMutation, VolumeMutation);

type SlipwaySchema = Schema<Query, Mutation, Subscription>;

/// Carries requests out; clones share the schema.
#[derive(Clone)]
pub(crate) struct Executor {
    schema: SlipwaySchema,
    tasks: TaskTracker,
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Executor")
    }
}

/// What became of a request, as JSON.
pub(crate) enum Outcome {
    /// One answer.
    Answer(String),
    /// Any number, until the subscription ends.
    Events(BoxStream<'static, String>),
}

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

/// A page to try queries on.
pub(crate) fn page() -> String {
    GraphiQLSource::build()
        .endpoint("/graphql")
        .title("Slipway")
        .finish()
}

/// A problem as a whole GraphQL answer.
pub(crate) fn problem_json(problem: &Problem) -> String {
    let error = async_graphql::Error::from(Refused(problem.clone()));
    let answer =
        Response::from_errors(vec![error.into_server_error(async_graphql::Pos::default())]);
    to_json(&answer)
}

fn to_json(response: &Response) -> String {
    serde_json::to_string(response).unwrap_or_else(|_| {
        r#"{"errors":[{"message":"the answer cannot be written","extensions":{"code":"INTERNAL"}}]}"#
            .to_owned()
    })
}

impl Executor {
    pub(crate) fn new(parts: Arc<Parts>) -> Self {
        let tasks = parts.tasks.clone();
        let schema = builder().data(parts).finish();
        Self { schema, tasks }
    }

    /// Carries out one request, to its end even if the caller goes away in the middle: what it has begun must not be left
    /// half done. With `events`, the answers come as a stream; without, a subscription is refused.
    ///
    /// # Errors
    /// [`Code::Invalid`] if the body is no GraphQL request; [`Code::Internal`] if a resolver panics.
    pub(crate) async fn execute(
        &self,
        principal: Principal,
        body: &[u8],
        events: bool,
    ) -> std::result::Result<Outcome, Problem> {
        let request: Request = serde_json::from_slice(body).map_err(|error| {
            Problem::new(
                Code::Invalid,
                format!("the body is not a GraphQL request: {error}"),
            )
        })?;
        let ended = principal.ended().clone();
        let request = request.data(principal);
        if events {
            let answers = self
                .schema
                .execute_stream(request)
                .map(|answer| to_json(&explained(answer)));
            return Ok(Outcome::Events(
                answers.take_until(ended.cancelled_owned()).boxed(),
            ));
        }
        let schema = self.schema.clone();
        let carried_out = async move { schema.execute(request).await }.in_current_span();
        match self.tasks.spawn(carried_out).await {
            Ok(answer) => Ok(Outcome::Answer(to_json(&explained(answer)))),
            Err(error) => Err(Problem::internal(&error)),
        }
    }
}

/// Gives async-graphql's own errors (syntax, types, limits) a code: they are the caller's.
fn explained(mut answer: Response) -> Response {
    for error in &mut answer.errors {
        if error
            .extensions
            .as_ref()
            .is_none_or(|known| known.get("code").is_none())
        {
            let plain = async_graphql::Error::new(std::mem::take(&mut error.message));
            let coded = plain.extend_with(|_, known| {
                known.set("code", Code::Invalid.as_str());
                known.set("fault", "user");
            });
            let ServerError {
                locations, path, ..
            } = error.clone();
            *error = coded.into_server_error(async_graphql::Pos::default());
            (error.locations, error.path) = (locations, path);
        }
    }
    answer
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
