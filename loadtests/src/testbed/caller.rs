//! Requests to a farm's control plane by curl, with whatever credential a test gives.

use super::{Testbed, show};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::process::Command;

/// Longest that one request may take, in seconds: a machine may have to start first.
const REQUEST_WAIT_SECONDS: &str = "180";

impl Testbed {
    /// Runs curl with these arguments, trusting the farm's authority; gives the status and the body.
    ///
    /// # Errors
    /// curl got no answer.
    pub fn curl(&self, arguments: &[&str]) -> Result<(u16, String)> {
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--write-out", "\n%{http_code}"])
            .args(["--max-time", REQUEST_WAIT_SECONDS])
            .arg("--cacert")
            .arg(self.ca())
            .args(arguments)
            .output()?;
        ensure!(
            output.status.success(),
            "curl {arguments:?}: {}",
            show(&output)
        );
        let text = String::from_utf8_lossy(&output.stdout);
        let (body, status) = text.rsplit_once('\n').context("no status")?;
        Ok((status.parse()?, body.to_owned()))
    }

    /// One GraphQL request with this token; gives the whole answer, its `errors` too.
    ///
    /// # Errors
    /// No answer, or no JSON.
    pub fn graphql(&self, token: &str, query: &str, variables: &Value) -> Result<Value> {
        let url = format!("https://{}/graphql", self.address("api")?);
        let bearer = format!("Authorization: Bearer {token}");
        let body = json!({ "query": query, "variables": variables }).to_string();
        let json = "Content-Type: application/json";
        let (_, text) = self.curl(&["-H", &bearer, "-H", json, "-d", &body, &url])?;
        serde_json::from_str(&text).with_context(|| text.clone())
    }

    /// A GET through the Docker gateway with curl's arguments for the credential; gives the status and the body.
    ///
    /// # Errors
    /// As [`Self::curl`].
    pub fn docker_api(&self, credential: &[&str], path: &str) -> Result<(u16, String)> {
        let url = format!("https://{}{path}", self.address("docker")?);
        let mut arguments = credential.to_vec();
        arguments.push(&url);
        self.curl(&arguments)
    }
}
