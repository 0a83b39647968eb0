//! Invariant 3: a credential of one org never reaches another org's machine, image, build, log or token.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use slipway_loadtests::testbed::Testbed;
use std::process::Command;

#[test]
fn one_org_cannot_reach_another() -> Result<()> {
    let bed = Testbed::start()?;
    bed.registry.seed(&["debian"])?;
    bed.slipway_ok(&["orgs", "create", "evil"])?;
    let (ours, theirs) = (bed.org_token("acme")?, bed.org_token("evil")?);

    // acme builds something; its id, image and log are what evil is after.
    let dir = bed.dir().join("secretive");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(
        dir.join("Dockerfile"),
        "FROM debian:trixie\nRUN echo the-word > /word && cat /word\n",
    )?;
    let image = format!("{}/secretive:1", bed.registry.address());
    bed.slipway_ok(&[
        "deploy",
        dir.to_str().context("path")?,
        "--org",
        "acme",
        "--app",
        "secretive",
        "--image",
        &image,
        "--remote-only",
    ])?;
    let builds = bed.slipway_json(&["builds", "list", "--org", "acme", "--json"])?;
    let build = builds[0]["id"].as_str().context("no build")?;

    for (query, variables) in [
        (
            "query($id: ID!) { build(id: $id) { image } }",
            json!({ "id": build }),
        ),
        (
            "mutation($id: ID!) { cancelBuild(id: $id) { id } }",
            json!({ "id": build }),
        ),
        (
            "query($o: String) { builders(org: $o) { id } }",
            json!({ "o": "acme" }),
        ),
        (
            "query($o: String) { builds(org: $o) { id } }",
            json!({ "o": "acme" }),
        ),
        (
            "query($o: String) { volumes(org: $o) { id } }",
            json!({ "o": "acme" }),
        ),
        (
            "query($o: String) { registryCredentials(org: $o) { id } }",
            json!({ "o": "acme" }),
        ),
        (
            "mutation($i: IssueClientCertificateInput!) { issueClientCertificate(input: $i) { cert } }",
            json!({ "i": { "org": "acme" } }),
        ),
    ] {
        let answer = bed.graphql(&theirs, query, &variables)?;
        ensure!(
            answer["errors"].is_array(),
            "{query} was answered: {answer}"
        );
        ensure!(!answer.to_string().contains("the-word"), "{answer}");
    }
    let orgs = bed.graphql(&theirs, "{ orgs { slug } }", &json!({}))?;
    ensure!(
        orgs["data"]["orgs"] == json!([{ "slug": "evil" }]),
        "{orgs}"
    );

    docker_gateway_knows_the_org_by_the_credential(&bed, &ours, &theirs)?;
    bad_credentials_are_refused(&bed, &theirs)
}

fn docker_gateway_knows_the_org_by_the_credential(
    bed: &Testbed,
    ours: &str,
    theirs: &str,
) -> Result<()> {
    // The org comes from the credential, whatever the header says.
    let bearer = format!("Authorization: Bearer {theirs}");
    let (_, images) = bed.docker_api(&["-H", &bearer], "/v1.41/images/json")?;
    ensure!(
        !images.contains("secretive"),
        "evil sees acme's images: {images}"
    );
    let (status, images) = bed.docker_api(
        &["-H", &bearer, "-H", "X-Slipway-Org: acme"],
        "/v1.41/images/json",
    )?;
    ensure!(
        status >= 400 || !images.contains("secretive"),
        "{status} {images}"
    );
    let bearer = format!("Authorization: Bearer {ours}");
    let (status, images) = bed.docker_api(&["-H", &bearer], "/v1.41/images/json")?;
    ensure!(
        status == 200 && images.contains("secretive"),
        "{status} {images}"
    );

    Ok(())
}

/// No credential, a wrong one, a revoked one.
fn bad_credentials_are_refused(bed: &Testbed, theirs: &str) -> Result<()> {
    for credential in [
        vec![],
        vec!["-H", "Authorization: Bearer slp_nonsense"],
        vec!["-u", "app:x"],
    ] {
        let (status, body) = bed.docker_api(&credential, "/_ping")?;
        ensure!(status == 401, "{credential:?} got {status} {body}");
    }
    let tokens = bed.graphql(
        &bed.admin_token()?,
        "{ tokens(org: \"evil\") { id } }",
        &json!({}),
    )?;
    let id = tokens["data"]["tokens"][0]["id"]
        .as_str()
        .context("no token")?;
    bed.slipway_ok(&["tokens", "revoke", id])?;
    let bearer = format!("Authorization: Bearer {theirs}");
    let (status, body) = bed.docker_api(&["-H", &bearer], "/_ping")?;
    ensure!(status == 401, "a revoked token got {status} {body}");
    let (status, _) = bed.curl(&[&format!("https://{}/healthz", bed.address("api")?)])?;
    ensure!(status == 200, "healthz {status}");
    Ok(())
}

/// Invariant 4: a thousand callers start one machine.
#[test]
fn a_thousand_ensures_make_one_builder() -> Result<()> {
    let bed = Testbed::start()?;
    let token = bed.org_token("acme")?;
    let query = "mutation { ensureBuilder(input: {}) { id } }";
    let url = format!("https://{}/graphql", bed.address("api")?);
    let body = json!({ "query": query }).to_string();
    let ca = bed.ca();
    let ca = ca.display();
    // One curl runs 125 at a time on its own connections; eight of them together ask 1,000 times.
    let config: String = (0..125)
        .map(|n| {
            format!(
                "url = \"{url}\"\ncacert = \"{ca}\"\ndata = {body:?}\nheader = \"Authorization: Bearer {token}\"\n\
                 header = \"Content-Type: application/json\"\noutput = \"-\"\nwrite-out = \"\\n\"\n{}",
                if n == 124 { "" } else { "next\n" }
            )
        })
        .collect();
    let path = bed.dir().join("curl.conf");
    std::fs::write(&path, config)?;
    let mut answers = String::new();
    std::thread::scope(|scope| -> Result<()> {
        let runs: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    Command::new("curl")
                        .args([
                            "--silent",
                            "--parallel",
                            "--parallel-max",
                            "125",
                            "--max-time",
                            "120",
                        ])
                        .arg("--config")
                        .arg(&path)
                        .output()
                })
            })
            .collect();
        for run in runs {
            let output = run.join().map_err(|_| anyhow::anyhow!("panicked"))??;
            answers.push_str(&String::from_utf8_lossy(&output.stdout));
        }
        Ok(())
    })?;
    let good = answers.matches("\"ensureBuilder\":{\"id\":\"mch_").count();
    ensure!(
        good == 1000,
        "{good} of 1000: {}",
        answers.chars().take(2000).collect::<String>()
    );
    let ids: std::collections::BTreeSet<_> = answers
        .split("mch_")
        .skip(1)
        .filter_map(|rest| rest.get(..16))
        .collect();
    ensure!(ids.len() == 1, "{ids:?}");
    let started = std::fs::read_to_string(bed.dir().join("host.log"))?
        .matches(" started ")
        .count();
    ensure!(started == 1, "{started} machines were started");
    Ok(())
}
