//! Questions to a frontend about a Dockerfile: what is wrong with it, which stages and arguments it has. Nothing is built.
//!
//! It must not know who asks, nor how an answer is shown.

use crate::client::Client;
use crate::solve_error::{SolveError, SolveFailure};
use bollard_buildkit_proto::moby::buildkit::v1 as control;
use control::frontend as bridge;
use std::collections::{BTreeMap, HashMap};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Request, Status};

/// Names the solve that a call to the bridge belongs to.
const BUILD_ID: &str = "buildkit-controlapi-buildid";
/// The frontend must take questions; one that a `# syntax=` line names may do so for the built-in one.
const NEEDED: &str = "moby.buildkit.frontend.subrequests+forward";

/// What to ask.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Question {
    /// Name of the solve, unique at the builder.
    pub build_ref: String,
    /// Id of the session that serves the Dockerfile.
    pub session: String,
    /// Attributes of the frontend `dockerfile.v0` ([`crate::SolveRequest::frontend_attrs`]).
    pub frontend_attrs: BTreeMap<String, String>,
    /// BuildKit's name of the question: `frontend.lint`, `frontend.outline`, `frontend.targets`.
    pub request: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// The frontend does not know the question.
    #[error("the frontend does not know {request}")]
    Unknown {
        /// The question.
        request: String,
    },
    /// It failed.
    #[error(transparent)]
    Failed(#[from] SolveFailure),
}

impl Client {
    /// Asks the frontend of a Dockerfile; gives all that it answered, by name (`result.txt`, `result.json`). It is not in the builder's
    /// history. Dropping the future ends the question.
    ///
    /// # Errors
    /// See [`NoAnswer`].
    pub async fn ask(&self, question: Question) -> Result<BTreeMap<String, Vec<u8>>, NoAnswer> {
        let Question {
            build_ref,
            session,
            frontend_attrs,
            request,
        } = question;
        let build = build_ref.parse::<MetadataValue<Ascii>>();
        let build = build.map_err(|_| {
            SolveFailure::from(SolveError::InvalidRequest {
                message: "the name of the solve cannot be sent".to_owned(),
            })
        })?;
        // A solve without a frontend does what is asked of it over the bridge, until it is given its result there.
        let mut solver = self.control();
        let solving = solver.solve(control::SolveRequest {
            r#ref: build_ref,
            session,
            internal: true,
            ..Default::default()
        });
        tokio::pin!(solving);
        let mut frontend_opt: HashMap<String, String> = frontend_attrs.into_iter().collect();
        frontend_opt.insert("requestid".to_owned(), request.clone());
        frontend_opt.insert("frontend.caps".to_owned(), NEEDED.to_owned());
        let mut bridge = self.bridge();
        let asked = bridge::SolveRequest {
            frontend: "dockerfile.v0".to_owned(),
            frontend_opt,
            allow_result_return: true,
            allow_result_array_ref: true,
            ..Default::default()
        };
        let answer = tokio::select! {
            answer = bridge.solve(of(&build, asked)) => answer,
            // It could not even begin.
            solved = &mut solving => {
                let why = solved.err().unwrap_or_else(|| Status::cancelled("it was ended"));
                return Err(SolveFailure::of_status(why, |_step| None).into());
            }
        };
        let end = bridge::ReturnRequest {
            result: Some(bridge::Result::default()),
            error: None,
        };
        tokio::select! {
            // One that cannot be told ends with its connection.
            _ = bridge.r#return(of(&build, end)) => {}
            _ = &mut solving => {}
        }
        match answer {
            Ok(answer) => {
                let result = answer.into_inner().result.unwrap_or_default();
                Ok(result.metadata.into_iter().collect())
            }
            Err(status) if does_not_know(status.message(), &request) => {
                Err(NoAnswer::Unknown { request })
            }
            Err(status) => Err(SolveFailure::of_status(status, |_step| None).into()),
        }
    }
}

fn of<T>(build: &MetadataValue<Ascii>, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(BUILD_ID, build.clone());
    request
}

/// BuildKit's words: of a question, or of a frontend that takes none.
fn does_not_know(message: &str, request: &str) -> bool {
    message.contains(&format!("unsupported request {request}"))
        || message.contains("unsupported frontend capability")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_that_a_frontend_does_not_know_is_told_from_a_fault() {
        let lint = "frontend.lint";
        for (message, unknown) in [
            ("unsupported request frontend.lint", true),
            (
                "failed to solve: unsupported frontend capability moby.buildkit.frontend.subrequests",
                true,
            ),
            ("unsupported request frontend.other", false),
            (
                "dockerfile parse error on line 1: unknown instruction: RUNN",
                false,
            ),
        ] {
            assert_eq!(does_not_know(message, lint), unknown, "{message}");
        }
    }
}
