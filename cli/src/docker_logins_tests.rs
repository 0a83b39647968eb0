//! Every form in which Docker's tools write logins, read from real files, with real helpers.

use super::*;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

fn read(dir: &Path, config: &str, env: Option<&str>) -> DockerLogins {
    std::fs::write(dir.join("config.json"), config).unwrap();
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", dir.display());
    DockerLogins::read(Some(dir), &|name| match name {
        AUTH_VARIABLE => env.map(str::to_owned),
        "PATH" => Some(path.clone()),
        _ => None,
    })
}

async fn pair(logins: &DockerLogins, registry: &str) -> Option<(String, String)> {
    let found = logins.login(registry).await?;
    Some((found.username, found.password))
}

#[tokio::test]
async fn every_form_of_a_stored_login_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let auth = format!(r#"{{"auth": "{}"}}"#, STANDARD.encode("user:pass:word"));
    for (key, registry) in [
        ("r.example:5000", "r.example:5000"),
        ("https://r.example", "r.example"),
        ("http://r.example", "r.example"),
        ("https://r.example/v1/", "r.example"),
        ("https://r.example/v2/", "r.example"),
        ("r.example/team", "r.example"),
        ("R.Example", "r.example"),
        (HUB_KEY, "docker.io"),
        ("index.docker.io", "registry-1.docker.io"),
    ] {
        let config = format!(r#"{{"auths": {{"{key}": {auth}}}}}"#);
        let logins = read(dir.path(), &config, None);
        let want = Some(("user".to_owned(), "pass:word".to_owned()));
        assert_eq!(pair(&logins, registry).await, want, "{key}");
        assert_eq!(pair(&logins, "other.example").await, None);
        // DOCKER_AUTH_CONFIG alone, as in a CI job.
        let logins = DockerLogins::read(None, &|name| {
            (name == AUTH_VARIABLE).then(|| config.clone())
        });
        assert_eq!(pair(&logins, registry).await, want, "{key}");
        assert!(!format!("{logins:?}").contains("pass"));
    }
    for (entry, want) in [
        (r#"{"username": "u", "password": "p"}"#, Some(("u", "p"))),
        (
            r#"{"auth": "MDAwMDA6", "identitytoken": "t"}"#,
            Some(("", "t")),
        ),
        (r#"{"auth": "!"}"#, None),
        (r#"{"registrytoken": "t"}"#, None),
        ("{}", None),
    ] {
        let logins = read(
            dir.path(),
            &format!(r#"{{"auths": {{"r": {entry}}}}}"#),
            None,
        );
        let found = pair(&logins, "r").await;
        let found = found
            .as_ref()
            .map(|(user, it)| (user.as_str(), it.as_str()));
        assert_eq!(found, want, "{entry}");
        let is_odd = entry.contains('!') || entry.contains("registrytoken");
        assert_eq!(logins.complaints().len(), usize::from(is_odd), "{entry}");
    }
    let both = read(
        dir.path(),
        &format!(r#"{{"auths": {{"r": {auth}}}}}"#),
        Some(r#"{"auths": {"r": {"username": "env", "password": "p"}}}"#),
    );
    assert_eq!(pair(&both, "r").await.unwrap().0, "env");
}

#[tokio::test]
async fn what_cannot_be_read_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let logins = read(dir.path(), "{", Some("["));
    assert_eq!(pair(&logins, "r").await, None);
    let told = logins.complaints().join("\n");
    assert!(
        told.contains("config.json") && told.contains(AUTH_VARIABLE),
        "{told}"
    );
    let nothing = DockerLogins::read(Some(Path::new("/does/not/exist")), &|_| None);
    assert!(nothing.complaints().is_empty());
}

/// Puts a helper into the directory; gives the file in which it writes down what it is asked.
fn install(dir: &Path, name: &str, script: &str) -> PathBuf {
    let asked = dir.join("asked");
    let path = dir.join(format!("docker-credential-{name}"));
    let text = format!(
        "#!/bin/sh\nread -r key\necho \"$1 $key\" >>{}\n{script}\n",
        asked.display()
    );
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    asked
}

#[tokio::test]
async fn a_helper_is_asked_for_what_is_needed_and_once() {
    let dir = tempfile::tempdir().unwrap();
    let answer = r#"echo "{\"Username\":\"u\",\"Secret\":\"$key\"}""#;
    let file = install(dir.path(), "good", answer);
    let asked = || std::fs::read_to_string(&file).unwrap_or_default();
    let logins = read(dir.path(), r#"{"credsStore": "good"}"#, None);
    assert_eq!(asked(), "");
    let (one, two) = tokio::join!(pair(&logins, "r.example"), pair(&logins, "r.example"));
    assert_eq!((one.clone(), one.unwrap().1), (two, "r.example".to_owned()));
    assert_eq!(asked(), "get r.example\n");
    let hub = pair(&logins, "docker.io").await.unwrap();
    assert_eq!(hub.1, HUB_KEY);

    let own = r#"{"credHelpers": {"https://r.example": "good", "s.example": "none-such"}}"#;
    let logins = read(dir.path(), own, None);
    assert!(pair(&logins, "r.example").await.is_some());
    assert_eq!(pair(&logins, "t.example").await, None);
    assert!(logins.complaints().is_empty());
    assert_eq!(pair(&logins, "s.example").await, None);
    let told = logins.complaints().join("\n");
    assert!(
        told.contains("docker-credential-none-such") && told.contains("not installed"),
        "{told}"
    );
}

#[tokio::test]
async fn a_helper_that_fails_is_named_and_the_file_serves() {
    let dir = tempfile::tempdir().unwrap();
    for (what, script, told) in [
        (
            "absent",
            "echo 'credentials not found in native keychain'; exit 1",
            None,
        ),
        (
            "broken",
            "echo 'no such session'; exit 1",
            Some("no such session"),
        ),
        ("odd", "echo '{'", Some("cannot be read")),
    ] {
        install(dir.path(), what, script);
        let config = format!(
            r#"{{"credsStore": "{what}", "auths": {{"r": {{"username": "u", "password": "p"}}}}}}"#
        );
        let logins = read(dir.path(), &config, None);
        assert_eq!(pair(&logins, "r").await.unwrap().0, "u", "{what}");
        let complaints = logins.complaints().join("\n");
        match told {
            Some(told) => assert!(
                complaints.contains(told) && complaints.contains(what),
                "{complaints}"
            ),
            None => assert_eq!(complaints, "", "{what}"),
        }
    }
    let evil = read(dir.path(), r#"{"credsStore": "../evil"}"#, None);
    assert_eq!(pair(&evil, "r").await, None);
    assert_eq!(evil.complaints().len(), 1);
}

#[test]
fn registries_of_images() {
    for (image, registry) in [
        ("debian:trixie", "docker.io"),
        ("team/app", "docker.io"),
        ("localhost/app", "localhost"),
        ("r.example/app:1", "r.example"),
        ("10.0.0.1:5000/a/b:1", "10.0.0.1:5000"),
    ] {
        assert_eq!(registry_of(image), registry);
    }
}
