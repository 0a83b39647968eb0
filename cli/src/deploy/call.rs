//! `--check` and `--call`: what the frontend says of a Dockerfile, on a builder or with the Docker that runs here. Nothing is built.
//!
//! Must not know how a session is served.

use super::plan::Plan;
use super::progress::{View, clean_lines};
use super::session::SessionFactory;
use super::{Chosen, choose, local, prepared, remote};
use crate::api::{ApiClient, open_upgraded};
use crate::args::{DeployArgs, Method};
use crate::caller::Caller;
use crate::interrupt::Interrupts;
use crate::limits::WAKE_WAIT_MAX;
use serde_json::{Value, json};
use slipway_buildkit::{Client, NoAnswer, Question};
use slipway_terminal::exit::{Failure, Outcome};
use slipway_terminal::printer::{Format, Printer};
use std::collections::BTreeMap;
use std::sync::Arc;

const NEWER: &str = "a newer frontend may: begin the Dockerfile with `# syntax=docker/dockerfile:1`, where the builder can fetch that; \
     or the farm's operator takes a newer ENGINE in image.conf";

/// Asks and prints the answer.
///
/// # Errors
/// Whoever's fault it is that there is no answer; the caller's, if a check has found something.
pub(super) async fn run(
    args: &DeployArgs,
    method: Method,
    caller: &Caller,
    printer: Printer,
    view: &mut View,
) -> Outcome<()> {
    let (mut plan, docker) = prepared(args, view)?;
    // There is no result.
    plan.output = None;
    let mut interrupts = Interrupts::new()?;
    let factory = Arc::new(SessionFactory::new(&plan, &docker)?);
    let answer = match choose(&plan).await? {
        Chosen::Local(daemon) => {
            let (client, serving) = local::connected(&daemon, &factory).await?;
            let asking = Box::pin(ask(&client, &plan, method, factory.id()));
            let answer = remote::watched(view, &mut interrupts, asking).await;
            serving.abort();
            answer??
        }
        Chosen::Remote(_) => {
            let api: ApiClient = caller.client()?;
            let opened = remote::opened(&plan, &api, &factory, view, &mut interrupts).await?;
            view.status("asking about the Dockerfile");
            let asking = Box::pin(async {
                let at = &opened.gateway;
                let stream = open_upgraded(
                    &at.transport,
                    &at.address,
                    &at.token,
                    "/grpc",
                    &at.headers,
                    WAKE_WAIT_MAX,
                );
                let client = Client::connect(stream.await?).await;
                let client = client
                    .map_err(|error| Failure::system_caused("connect to BuildKit", &error))?;
                ask(&client, &plan, method, factory.id()).await
            });
            remote::watched(view, &mut interrupts, asking).await??
        }
    };
    view.finish();
    show(method, &answer, printer)
}

async fn ask(
    client: &Client,
    plan: &Plan,
    method: Method,
    session: &str,
) -> Outcome<BTreeMap<String, Vec<u8>>> {
    let name = method.request();
    let question = Question {
        build_ref: session.to_owned(),
        session: session.to_owned(),
        frontend_attrs: plan.frontend_attrs.clone(),
        request: name.to_owned(),
    };
    let failure = match Box::pin(client.ask(question)).await {
        Ok(answer) => return Ok(answer),
        Err(NoAnswer::Unknown { .. }) => {
            let version = client.version().await.unwrap_or_default();
            return Err(Failure::user(format!(
                "the Dockerfile's frontend does not know {name}; the engine has BuildKit {version}"
            ))
            .hint(NEWER));
        }
        Err(NoAnswer::Failed(failure)) => failure,
    };
    let error = &failure.error;
    let told = match error.is_user_fault() {
        true => Failure::user(error.to_string()),
        false => Failure::system_caused("ask about the Dockerfile", error),
    };
    Err(told
        .at(failure.excerpt.as_deref().map(clean_lines))
        .maybe_hint(error.hint().map(str::to_owned)))
}

fn show(method: Method, answer: &BTreeMap<String, Vec<u8>>, printer: Printer) -> Outcome<()> {
    let json = answer.get("result.json").map(Vec::as_slice);
    let json: Value = json
        .and_then(|json| serde_json::from_slice(json).ok())
        .ok_or_else(|| Failure::system("the frontend gave no answer that can be read"))?;
    match printer.format() {
        // A line like the others, the last one.
        Format::Json => printer.json(&json!({
            "type": "answer",
            "request": method.request(),
            "answer": json,
        })),
        Format::Human => {
            let text = answer
                .get("result.txt")
                .map(Vec::as_slice)
                .unwrap_or_default();
            let text = String::from_utf8_lossy(text);
            match clean_lines(text.trim_matches('\n')) {
                text if text.is_empty() => {}
                text => printer.data(&text),
            }
        }
    }
    match method {
        Method::Check => match found(&json) {
            Some(what) => Err(Failure::user(what).hint("mend the Dockerfile")),
            None => {
                printer.note("no warnings");
                Ok(())
            }
        },
        Method::Build | Method::Outline | Method::Targets => Ok(()),
    }
}

/// What a check has found, if anything.
fn found(json: &Value) -> Option<String> {
    if let Some(error) = json.get("buildError").filter(|error| !error.is_null()) {
        let message = error["message"].as_str().unwrap_or("it does not build");
        return Some(clean_lines(message));
    }
    match json["warnings"].as_array().map_or(0, Vec::len) {
        0 => None,
        1 => Some("the check has 1 warning".to_owned()),
        count => Some(format!("the check has {count} warnings")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_that_finds_something_is_the_callers_fault() {
        for (json, want) in [
            (json!({"sources": []}), None),
            (json!({"warnings": null, "buildError": null}), None),
            (
                json!({"warnings": [{"ruleName": "JSONArgsRecommended"}]}),
                Some("1 warning"),
            ),
            (json!({"warnings": [{}, {}]}), Some("2 warnings")),
            (
                json!({"warnings": [], "buildError": {"message": "no such stage"}}),
                Some("no such stage"),
            ),
        ] {
            let answer =
                BTreeMap::from([("result.json".to_owned(), json.to_string().into_bytes())]);
            let said = show(Method::Check, &answer, Printer::new(Format::Human));
            match want {
                None => said.unwrap(),
                Some(what) => {
                    let failure = said.unwrap_err();
                    assert!(
                        failure.code() == 1 && failure.message().contains(what),
                        "{failure}"
                    );
                }
            }
            show(Method::Outline, &answer, Printer::new(Format::Human)).unwrap();
        }
        let none = show(
            Method::Targets,
            &BTreeMap::new(),
            Printer::new(Format::Human),
        );
        assert_eq!(none.unwrap_err().code(), 2);
    }
}
