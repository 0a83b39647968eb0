//! The main job, on a whole farm: deploy cold, unchanged, changed; the builder ends itself and comes back with its cache.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use slipway_loadtests::testbed::{Engine, ImageStore, Testbed, show, wait_for};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// OCI image-spec 1.1, "Media Types".
const ZSTD_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const DOCKERFILE: &str = "\
FROM debian:trixie AS build
RUN --mount=type=cache,target=/cache echo compile >> /cache/log && cp /cache/log /log
COPY src /src
RUN cat /src/a.txt /src/dir/b.txt > /out.txt
FROM scratch
COPY --from=build /out.txt /out.txt
LABEL test=deploy
";

fn project(dir: &Path) -> Result<PathBuf> {
    let project = dir.join("project");
    std::fs::create_dir_all(project.join("src/dir"))?;
    std::fs::write(project.join("Dockerfile"), DOCKERFILE)?;
    std::fs::write(project.join("src/a.txt"), "a\n")?;
    std::fs::write(project.join("src/dir/b.txt"), "b\n")?;
    Ok(project)
}

fn deploy(bed: &Testbed, dir: &Path, tag: &str) -> Result<Value> {
    let image = format!("{}/web:{tag}", bed.registry.address());
    let dir = dir.to_str().context("path")?;
    let out = bed.slipway_ok(&[
        "deploy",
        dir,
        "--org",
        "acme",
        "--app",
        "web",
        "--image",
        &image,
        "--remote-only",
        "--json",
    ])?;
    let last = out.lines().last().context("no output")?;
    let value: Value = serde_json::from_str(last).with_context(|| last.to_owned())?;
    ensure!(
        value["type"] == "result",
        "the last line is not the result: {last}"
    );
    Ok(value)
}

fn builder_state(bed: &Testbed) -> Result<String> {
    let list = bed.slipway_json(&["builders", "list", "--org", "acme", "--json"])?;
    Ok(list[0]["state"]
        .as_str()
        .context("no builder")?
        .to_lowercase())
}

#[test]
fn a_deploy_is_pushed_and_the_next_one_is_cached_even_after_the_builder_ended() -> Result<()> {
    let bed = Testbed::start()?;
    bed.registry.seed(&["debian"])?;
    let dir = project(bed.dir())?;

    let cold = deploy(&bed, &dir, "1")?;
    let digest = cold["digest"].as_str().context("no digest")?;
    let (code, body) = bed.registry.get("/v2/web/manifests/1")?;
    ensure!(code == 200, "{code} {body}");
    let (code, _) = bed.registry.get(&format!("/v2/web/manifests/{digest}"))?;
    ensure!(
        code == 200,
        "the digest that was told is not in the registry"
    );
    let manifest: Value = serde_json::from_str(&body)?;
    for layer in manifest["layers"].as_array().context("layers")? {
        let blob = layer["digest"].as_str().context("digest")?;
        let (code, _) = bed.registry.get(&format!("/v2/web/blobs/{blob}"))?;
        ensure!(code == 200, "{blob} is missing");
    }

    let warm = deploy(&bed, &dir, "2")?;
    ensure!(
        warm["digest"] == cold["digest"],
        "an unchanged tree gave another image"
    );
    // The list of builds says what the deploy itself said of the cache.
    let builds = bed.slipway_json(&["builds", "list", "--org", "acme", "--json"])?;
    for (listed, told) in [(&builds[0], &warm), (&builds[1], &cold)] {
        ensure!(listed["steps"] == told["steps"], "{listed} {told}");
        ensure!(
            listed["stepsCached"] == told["steps_cached"],
            "{listed} {told}"
        );
    }
    ensure!(builds[0]["steps"] == builds[0]["stepsCached"], "{builds}");
    let table = bed.slipway_ok(&["builds", "list", "--org", "acme"])?;
    let share = format!("{0}/{0}", builds[0]["steps"]);
    ensure!(table.contains(&share), "no {share} in {table}");

    std::fs::write(dir.join("src/a.txt"), "changed\n")?;
    let changed = deploy(&bed, &dir, "3")?;
    ensure!(
        changed["digest"] != cold["digest"],
        "a changed tree gave the same image"
    );

    ensure!(
        builder_state(&bed)? == "running",
        "{}",
        builder_state(&bed)?
    );
    bed.slipway_ok(&["orgs", "update", "acme", "--idle", "2s"])?;
    wait_for("the builder's own end", Duration::from_secs(60), || {
        let state = builder_state(&bed)?;
        ensure!(state == "stopped", "it is {state}");
        Ok(())
    })?;
    let woken = deploy(&bed, &dir, "4")?;
    ensure!(woken["digest"] == changed["digest"], "the cache was lost");

    let settings = "app = \"web\"\n[build]\ncompression = \"zstd:3\"\n";
    std::fs::write(dir.join("slipway.toml"), settings)?;
    deploy(&bed, &dir, "5")?;
    let (_, body) = bed.registry.get("/v2/web/manifests/5")?;
    let manifest: Value = serde_json::from_str(&body)?;
    let layers = manifest["layers"].as_array().context("layers")?;
    let is_zstd = |layer: &Value| layer["mediaType"] == ZSTD_LAYER;
    ensure!(!layers.is_empty() && layers.iter().all(is_zstd), "{body}");
    Ok(())
}

/// What is wrong, what is typed, the exit code, and what must be said.
#[test]
fn the_users_mistakes_are_told_with_a_hint_and_exit_1() -> Result<()> {
    let bed = Testbed::start()?;
    bed.registry.seed(&["debian"])?;
    let good = project(bed.dir())?;
    let image = format!("{}/web:x", bed.registry.address());
    let case = |name: &str, dockerfile: Option<&str>| -> Result<PathBuf> {
        let dir = bed.dir().join(name);
        std::fs::create_dir_all(&dir)?;
        if let Some(text) = dockerfile {
            std::fs::write(dir.join("Dockerfile"), text)?;
        }
        Ok(dir)
    };
    let none = case("none", None)?;
    let syntax = case("syntax", Some("FROM debian:trixie\nRUNN true\n"))?;
    let failing = case(
        "failing",
        Some("FROM debian:trixie\nRUN echo last words >&2; exit 7\n"),
    )?;
    let missing = case("missing", Some("FROM debian:trixie\nCOPY nowhere /\n"))?;
    let unknown = format!("FROM {}/no-such-image:1\n", bed.registry.address());
    let unknown = case("unknown", Some(&unknown))?;
    let cases: [(&str, &Path, &[&str], i32, &str); 7] = [
        ("no Dockerfile", &none, &[], 1, "Dockerfile"),
        ("syntax error", &syntax, &[], 1, "RUNN"),
        ("failing RUN", &failing, &[], 1, "last words"),
        ("missing COPY source", &missing, &[], 1, "nowhere"),
        ("unknown base image", &unknown, &[], 1, "no-such-image"),
        ("unknown org", &good, &["--org", "nobody"], 1, "nobody"),
        ("unknown target", &good, &["--target", "nope"], 1, "nope"),
    ];
    for (what, dir, more, code, said) in cases {
        let mut arguments = vec!["deploy", dir.to_str().context("path")?, "--app", "web"];
        arguments.extend(["--image", &image, "--remote-only"]);
        if !more.contains(&"--org") {
            arguments.extend(["--org", "acme"]);
        }
        arguments.extend(more);
        let output = bed.slipway(&arguments).output()?;
        let text = show(&output);
        ensure!(
            output.status.code() == Some(code),
            "{what}: {text}\n{}",
            bed.logs()
        );
        ensure!(text.contains(said), "{what}: does not say '{said}': {text}");
        ensure!(text.contains("hint:"), "{what}: no hint: {text}");
    }
    let (code, _) = bed.registry.get("/v2/web/manifests/x")?;
    ensure!(code == 404, "a failed build left a tag");
    Ok(())
}

#[test]
fn two_deploys_of_one_app_at_once_both_succeed() -> Result<()> {
    let bed = Testbed::start()?;
    bed.registry.seed(&["debian"])?;
    let dir = project(bed.dir())?;
    std::thread::scope(|scope| {
        let runs: Vec<_> = ["a", "b"]
            .map(|tag| scope.spawn(|| deploy(&bed, &dir, tag)))
            .into_iter()
            .collect();
        for run in runs {
            run.join().map_err(|_| anyhow::anyhow!("panicked"))??;
        }
        Ok(())
    })
}

/// Enough that dockerd's record of the layer comes in several steps.
const FILES: usize = 4000;

/// A deploy's layer of many files, with content that no deploy before had; gives what its events said of that layer.
fn deploy_many(bed: &Testbed, number: u8) -> Result<Vec<Value>> {
    let dir = bed.dir().join(format!("many-{number}"));
    std::fs::create_dir_all(dir.join("files"))?;
    std::fs::write(dir.join("Dockerfile"), "FROM scratch\nCOPY files /files\n")?;
    for file in 0..FILES {
        let line = format!("{number} {file} ").into_bytes();
        let content: Vec<u8> = line.iter().copied().cycle().take(20_000 + file).collect();
        std::fs::write(dir.join(format!("files/{file:05}")), content)?;
    }
    let image = format!("{}/many:{number}", bed.registry.address());
    let dir = dir.to_str().context("path")?;
    let arguments = ["deploy", dir, "--org", "acme", "--app", "many"];
    let arguments = arguments
        .into_iter()
        .chain(["--image", &image, "--remote-only", "--json"]);
    let out = bed.slipway_ok(&arguments.collect::<Vec<_>>())?;
    let lines = out.lines().map(serde_json::from_str::<Value>);
    let is_layer = |line: &Value| {
        let item = line["item"].as_str().unwrap_or_default();
        line["event"] == "push" && item.starts_with("sha256:")
    };
    Ok(lines
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .filter(is_layer)
        .collect())
}

#[test]
fn a_layer_is_sent_while_it_is_exported_and_pulls_back_right() -> Result<()> {
    sent_while_exported("classic")
}

#[test]
fn a_layer_is_sent_while_containerd_is_given_it_and_pulls_back_right() -> Result<()> {
    sent_while_exported("containerd")
}

fn sent_while_exported(image_store: &str) -> Result<()> {
    let settings = format!("isolation = \"sandbox\"\nimage_store = \"{image_store}\"\n");
    let bed = Testbed::start_with(&settings)?;
    bed.slipway_ok(&["builders", "ensure", "--org", "acme"])?;
    // On a busy machine an export may be over before anybody has looked.
    let mut number = 0;
    loop {
        number += 1;
        ensure!(number < 9, "no layer is ever sent ahead");
        let news = deploy_many(&bed, number)?;
        ensure!(
            news.iter().any(|news| news["state"] == "pushed"),
            "{news:?}"
        );
        // What is begun when the image is there begins with nothing.
        let from_nothing = |news: &Value| news["state"] == "pushing" && news["current"] == 0;
        if !news.iter().any(from_nothing) {
            break;
        }
    }
    // A dockerd that never saw it takes no layer whose content is not the one that the image's config names.
    let image = format!("{}/many:{number}", bed.registry.address());
    let registry = [bed.registry.address().to_owned()];
    let engine = Engine::start(&bed.dir().join("engine"), ImageStore::Classic, &registry)?;
    engine.docker_ok(&["pull", "--quiet", &image])?;
    Ok(())
}
