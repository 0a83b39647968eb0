//! How a request is carried out: checked on a thread for such work, bounded in time and in size, ended with its token.
//!
//! | operation | its caller goes away | its token is revoked, or it takes too long |
//! |---|---|---|
//! | query | it is cut off | it is cut off |
//! | mutation | it is finished | the field under way is finished, and no further one begins |
//! | subscription | it ends | it ends |
//!
//! Must not know: the fields of the schema, HTTP.

use super::answer::{Answers, Budget, Full};
use super::document::{self, DocumentError};
use super::limits::{
    GRAPHQL_ANSWER_BYTES_MAX, GRAPHQL_CHECK_WAIT_MAX, GRAPHQL_CHECKS_MAX, GRAPHQL_ERROR_BYTES_MAX,
    GRAPHQL_ERRORS_MAX, GRAPHQL_EVENT_BYTES_MAX, GRAPHQL_MUTATION_WAIT_MAX, GRAPHQL_QUERY_WAIT_MAX,
};
use super::running::{Running, revoked, too_long};
use super::{Refused, SlipwaySchema, builder};
use crate::auth::Principal;
use crate::bounds::GRAPHQL_BODY_BYTES_MAX;
use crate::parts::Parts;
use crate::problem::{Code, Problem};
use async_graphql::extensions::{
    Extension, ExtensionContext, ExtensionFactory, NextExecute, NextResolve, ResolveInfo,
};
use async_graphql::parser::parse_query;
use async_graphql::parser::types::OperationType;
use async_graphql::{
    ErrorExtensions, Request, Response, ServerError, ServerResult, ValidationMode, Value,
};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use slipway_core::id::OrgId;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tracing::Instrument;

/// Carries requests out; clones share the schema.
#[derive(Clone)]
pub(crate) struct Executor {
    schema: SlipwaySchema,
    /// The same schema, which validates and does nothing.
    checker: SlipwaySchema,
    answers: Arc<Answers>,
    lanes: Arc<Lanes>,
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
    Answer(Bytes),
    /// Any number, until the subscription ends.
    Events(BoxStream<'static, String>),
}

/// What has come of a request's body. It counts for its org's memory until it has been checked.
pub(crate) struct Received {
    bytes: BytesMut,
    budget: Budget,
}

impl Received {
    /// Takes in what has come next.
    ///
    /// # Errors
    /// What it is over.
    pub(crate) fn add(&mut self, piece: &[u8]) -> Result<(), Full> {
        self.budget.charge(piece.len())?;
        self.bytes.extend_from_slice(piece);
        Ok(())
    }
}

/// A request that may be carried out.
struct Checked {
    request: Request,
    ty: OperationType,
}

/// Of each org: who is checked next.
#[derive(Default)]
struct Lanes(Mutex<HashMap<Option<OrgId>, Weak<Semaphore>>>);

impl Lanes {
    async fn place(&self, org: Option<&OrgId>) -> Option<OwnedSemaphorePermit> {
        let lane = {
            let mut lanes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let key = org.cloned();
            if let Some(lane) = lanes.get(&key).and_then(Weak::upgrade) {
                lane
            } else {
                lanes.retain(|_, lane| lane.strong_count() > 0);
                let lane = Arc::new(Semaphore::new(GRAPHQL_CHECKS_MAX));
                lanes.insert(key, Arc::downgrade(&lane));
                lane
            }
        };
        // It is never closed.
        lane.acquire_owned().await.ok()
    }
}

/// An answer that has not been sent yet; it counts until then.
struct Unsent {
    json: String,
    _running: Arc<Running>,
}

impl AsRef<[u8]> for Unsent {
    fn as_ref(&self) -> &[u8] {
        self.json.as_bytes()
    }
}

impl Executor {
    pub(crate) fn new(parts: Arc<Parts>) -> Self {
        let tasks = parts.tasks.clone();
        Self {
            // What comes here has passed the checker.
            schema: builder()
                .validation_mode(ValidationMode::Fast)
                .extension(Metered)
                .data(parts)
                .finish(),
            checker: builder().extension(OnlyChecked).finish(),
            answers: Arc::default(),
            lanes: Arc::default(),
            tasks,
        }
    }

    /// A place for the body of a request of this principal's, of which nothing has come yet.
    pub(crate) fn receive(&self, principal: &Principal) -> Received {
        Received {
            bytes: BytesMut::new(),
            budget: self.answers.budget(principal.org(), GRAPHQL_BODY_BYTES_MAX),
        }
    }

    /// Carries out one request. With `events`, the answers come as a stream; without, a subscription is refused.
    ///
    /// # Errors
    /// [`Code::Invalid`] if the body is no GraphQL request, [`Code::Unauthenticated`] if the token is revoked meanwhile,
    /// [`Code::Unavailable`] if it takes too long, [`Code::Internal`] if a resolver panics.
    pub(crate) async fn execute(
        &self,
        principal: Principal,
        body: Received,
        events: bool,
    ) -> Result<Outcome, Problem> {
        let ended = principal.ended().clone();
        tokio::select! {
            biased;
            () = ended.cancelled() => Err(revoked()),
            outcome = self.carry_out(principal, body, events) => outcome,
        }
    }

    async fn carry_out(
        &self,
        principal: Principal,
        body: Received,
        events: bool,
    ) -> Result<Outcome, Problem> {
        let checked = self.check(principal.org(), body);
        let checked = tokio::time::timeout(GRAPHQL_CHECK_WAIT_MAX, checked).await;
        let Checked { request, ty } = match checked.map_err(|_| too_long())?? {
            Ok(checked) => checked,
            Err(refusal) => {
                let json = to_json(&explained(*refusal));
                return Ok(if events {
                    Outcome::Events(futures_util::stream::iter([json]).boxed())
                } else {
                    Outcome::Answer(json.into())
                });
            }
        };
        let max = if events {
            GRAPHQL_EVENT_BYTES_MAX
        } else {
            GRAPHQL_ANSWER_BYTES_MAX
        };
        let budget = self.answers.budget(principal.org(), max);
        let running = Arc::new(Running::new(&principal, budget));
        let request = request.data(principal).data(Arc::clone(&running));
        if events && ty == OperationType::Subscription {
            let over = running.over().clone().cancelled_owned();
            let answers = self.schema.execute_stream(request);
            let answers = answers.map(|answer| to_json(&explained(answer)));
            return Ok(Outcome::Events(answers.take_until(over).boxed()));
        }
        let schema = self.schema.clone();
        let run = async move { schema.execute(request).await }.in_current_span();
        let run = self.tasks.spawn(run);
        let (done, wait) = match ty {
            OperationType::Query | OperationType::Subscription => (
                AbortOnDropHandle::new(run).left_future(),
                GRAPHQL_QUERY_WAIT_MAX,
            ),
            // What it has begun must not be left half done.
            OperationType::Mutation => (run.right_future(), GRAPHQL_MUTATION_WAIT_MAX),
        };
        let answer = match tokio::time::timeout(wait, done).await {
            Ok(Ok(answer)) => explained(answer),
            Ok(Err(error)) => return Err(Problem::internal(&error)),
            Err(_) => {
                running.over().cancel();
                return Err(too_long());
            }
        };
        let json = to_json(&answer);
        drop(answer);
        running.budget.settle(json.len());
        Ok(if events {
            // The stream holds what the answer counts for.
            let answer = futures_util::stream::iter([json]);
            Outcome::Events(answer.map(move |json| (json, &running).0).boxed())
        } else {
            Outcome::Answer(Bytes::from_owner(Unsent {
                json,
                _running: running,
            }))
        })
    }

    /// Parses and validates a request on a thread that may block. It goes on there if nobody waits any more, and holds its
    /// place until it is done.
    async fn check(
        &self,
        org: Option<&OrgId>,
        body: Received,
    ) -> Result<Result<Checked, Box<Response>>, Problem> {
        let place = self.lanes.place(org).await;
        let checker = self.checker.clone();
        let checked = tokio::task::spawn_blocking(move || {
            let checked = check(&checker, &body.bytes);
            drop((place, body));
            checked
        });
        match checked.await {
            Ok(checked) => checked,
            Err(error) => Err(Problem::internal(&error)),
        }
    }
}

fn check(checker: &SlipwaySchema, body: &[u8]) -> Result<Result<Checked, Box<Response>>, Problem> {
    let mut request: Request = serde_json::from_slice(body).map_err(|error| {
        Problem::new(
            Code::Invalid,
            format!("the body is not a GraphQL request: {error}"),
        )
    })?;
    let measured = document::check_text(&request.query)
        .and_then(|()| document::check_variables(&request.variables));
    if let Err(error) = measured {
        return Ok(Err(Box::new(refusal(error.into()))));
    }
    let parsed = match parse_query(&request.query) {
        Ok(parsed) => parsed,
        Err(error) => {
            let error = ServerError::from(error);
            return Ok(Err(Box::new(Response::from_errors(vec![error]))));
        }
    };
    let ty = match document::shape(&parsed, request.operation_name.as_deref()) {
        Ok(ty) => ty,
        Err(error) => return Ok(Err(Box::new(refusal(error.into())))),
    };
    let mut validated = Request::new("").variables(request.variables.clone());
    validated.operation_name.clone_from(&request.operation_name);
    validated.set_parsed_query(parsed.clone());
    // It waits for nothing.
    let validated = checker.execute(validated).now_or_never();
    let Some(validated) = validated else {
        return Err(Problem::new(Code::Internal, "the query was not validated"));
    };
    if validated.is_err() {
        return Ok(Err(Box::new(validated)));
    }
    request.query = String::new();
    request.set_parsed_query(parsed);
    Ok(Ok(Checked { request, ty }))
}

impl From<DocumentError> for Problem {
    fn from(error: DocumentError) -> Self {
        Self::new(Code::Invalid, error.to_string())
    }
}

fn refusal(problem: Problem) -> Response {
    let error = async_graphql::Error::from(Refused(problem));
    Response::from_errors(vec![error.into_server_error(async_graphql::Pos::default())])
}

/// A problem as a whole GraphQL answer.
pub(crate) fn problem_json(problem: &Problem) -> String {
    to_json(&refusal(problem.clone()))
}

fn to_json(response: &Response) -> String {
    serde_json::to_string(response).unwrap_or_else(|_| {
        r#"{"errors":[{"message":"the answer cannot be written","extensions":{"code":"INTERNAL"}}]}"#
            .to_owned()
    })
}

/// Bounds the errors of an answer, and gives async-graphql's own (syntax, types, limits) a code: they are the caller's.
fn explained(mut answer: Response) -> Response {
    let more = answer.errors.len().saturating_sub(GRAPHQL_ERRORS_MAX);
    answer.errors.truncate(GRAPHQL_ERRORS_MAX);
    if more > 0 {
        let message = format!("and {more} further errors");
        answer.errors.push(ServerError::new(message, None));
    }
    for error in &mut answer.errors {
        if error.message.len() > GRAPHQL_ERROR_BYTES_MAX {
            let end = error.message.floor_char_boundary(GRAPHQL_ERROR_BYTES_MAX);
            error.message.truncate(end);
            error.message.push('…');
        }
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

/// Validates, and goes no further.
struct OnlyChecked;

impl ExtensionFactory for OnlyChecked {
    fn create(&self) -> Arc<dyn Extension> {
        Arc::new(Self)
    }
}

#[async_trait]
impl Extension for OnlyChecked {
    async fn execute(
        &self,
        _context: &ExtensionContext<'_>,
        _operation: Option<&str>,
        _next: NextExecute<'_>,
    ) -> Response {
        Response::default()
    }
}

/// Charges what an answer takes while it is made, and ends a request that may not go on.
struct Metered;

impl ExtensionFactory for Metered {
    fn create(&self) -> Arc<dyn Extension> {
        Arc::new(Self)
    }
}

/// What an object, a list or an error takes besides what is in it.
const ENVELOPE_BYTES: usize = 256;

#[async_trait]
impl Extension for Metered {
    async fn execute(
        &self,
        context: &ExtensionContext<'_>,
        operation: Option<&str>,
        next: NextExecute<'_>,
    ) -> Response {
        let Some(running) = context.data_opt::<Arc<Running>>() else {
            return refusal(Problem::new(Code::Internal, "the request does not run"));
        };
        running.begin();
        let answer = next.run(context, operation).await;
        match running.fits() {
            Ok(()) => answer,
            Err(problem) => refusal(problem),
        }
    }

    async fn resolve(
        &self,
        context: &ExtensionContext<'_>,
        info: ResolveInfo<'_>,
        next: NextResolve<'_>,
    ) -> ServerResult<Option<Value>> {
        let pos = info.field.name.pos;
        let refused = |problem| async_graphql::Error::from(Refused(problem)).into_server_error(pos);
        let Some(running) = context.data_opt::<Arc<Running>>() else {
            return next.run(context, info).await;
        };
        // A long answer that waits for nothing lets others have the thread in between.
        tokio::task::coop::consume_budget().await;
        running.check().map_err(refused)?;
        let name = info.alias.unwrap_or(info.name).len();
        let list = info.return_type.starts_with('[');
        // Whoever reads a list of events charges it.
        let events = info.parent_type.starts_with("[JSON");
        let leaf = info.field.selection_set.node.items.is_empty() && !list && !events;
        let value = next.run(context, info).await;
        let charged = match &value {
            Ok(Some(value)) if leaf => running
                .charge(name)
                .and_then(|()| running.charge_value(value)),
            Ok(Some(_)) if events => Ok(()),
            Ok(Some(_) | None) | Err(_) => running.charge(name + ENVELOPE_BYTES),
        };
        charged.map_err(refused)?;
        value
    }
}
