//! Plans from flags and files in real directories.

use super::*;
use crate::args::{Cli, Command};
use clap::Parser;

struct Project {
    dir: tempfile::TempDir,
}

impl Project {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Self { dir }
    }

    fn plan(&self, flags: &str) -> Outcome<Plan> {
        let dir = self.dir.path().to_str().unwrap();
        let flags = flags.replace("DIR", dir);
        let words = ["slipway", "deploy", dir]
            .into_iter()
            .chain(flags.split_whitespace());
        let Command::Deploy(args) = Cli::try_parse_from(words).unwrap().command else {
            panic!("not deploy")
        };
        let config = ProjectConfig::load(&args.dir, args.config.as_deref())?;
        Plan::new(&args, &config, &|name| {
            (name == "SET").then(|| "from env".to_owned())
        })
    }

    fn refused(&self, flags: &str, message: &str) {
        let failure = self
            .plan(flags)
            .map(|plan| format!("{plan:?}"))
            .unwrap_err();
        assert!(failure.message().contains(message), "{flags}: {failure}");
        assert_eq!(failure.code(), 1);
    }
}

const FROM: (&str, &str) = ("Dockerfile", "FROM scratch\n");

#[test]
fn flags_go_before_the_file() {
    let project = Project::new(&[
        FROM,
        (
            "slipway.toml",
            "app='a'\norg='o'\nregistry='r.example/x'\n[build]\ntarget='t'\nargs={A='1',B='2'}\n",
        ),
    ]);
    let plan = project.plan("").unwrap();
    assert_eq!((plan.app.as_str(), plan.org.as_deref()), ("a", Some("o")));
    assert_eq!(plan.image_for("v1").unwrap(), "r.example/x/a:v1");
    let plan = project
        .plan("--app b --build-arg A=9 --build-arg SET --build-arg UNSET --target u --label l=1 --no-cache --platform linux/arm64")
        .unwrap();
    let attrs: Vec<String> = plan
        .frontend_attrs
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    assert_eq!(
        attrs,
        [
            "build-arg:A=9",
            "build-arg:B=2",
            "build-arg:SET=from env",
            "filename=Dockerfile",
            "label:l=1",
            "no-cache=",
            "platform=linux/arm64",
            "target=u"
        ]
    );
    assert_eq!(plan.arch.as_deref(), Some("arm64"));
    assert!(plan.warnings[0].contains("UNSET"), "{:?}", plan.warnings);
}

#[test]
fn finds_dockerfiles_and_ignore_files() {
    let project = Project::new(&[
        FROM,
        ("api/Dockerfile.api", "FROM scratch\n"),
        ("ignore", "x"),
    ]);
    let root = project.dir.path().canonicalize().unwrap();
    let plan = project.plan("--app a").unwrap();
    assert_eq!(
        (
            plan.source.dockerfile_dir.as_ref(),
            plan.source.dockerfile_name.as_str()
        ),
        (Some(&root), "Dockerfile")
    );
    assert_eq!(plan.ignorefile, None);
    let plan = project.plan("--app a --ignorefile DIR/ignore").unwrap();
    assert_eq!(
        plan.ignorefile.unwrap().canonicalize().unwrap(),
        root.join("ignore")
    );
    for flags in [
        "--app a -f api/Dockerfile.api",
        "--app a -f DIR/api/Dockerfile.api",
    ] {
        let plan = project.plan(flags).unwrap();
        assert_eq!(plan.source.dockerfile_dir, Some(root.join("api")));
        assert_eq!(plan.frontend_attrs["filename"], "Dockerfile.api");
    }
    std::fs::write(root.join("api/Dockerfile.api.dockerignore"), "[").unwrap();
    project.refused(
        "--app a -f api/Dockerfile.api",
        "Dockerfile.api.dockerignore",
    );
    assert!(project.plan("--app a").is_ok());
    let other = Project::new(&[("Containerfile", "FROM scratch\n")]);
    assert_eq!(
        other.plan("--app a").unwrap().source.dockerfile_name,
        "Containerfile"
    );
}

#[test]
fn what_the_caller_gets_wrong_is_told() {
    let empty = Project::new(&[]);
    empty.refused("--app a", "there is no Dockerfile in");
    empty.refused("--app a -f nowhere", "there is no Dockerfile at nowhere");
    let project = Project::new(&[FROM, ("sub/x", "")]);
    for (flags, message) in [
        ("", "no app is named"),
        ("--app a -f DIR/sub", "is not a file"),
        ("--app a --build-arg =x", "is not a build argument"),
        ("--app a --label =x", "is not a label"),
        ("--app a --secret id=x,src=DIR/none", "secret 'x': read"),
        ("--app a --platform windows/amd64", "not a platform"),
        ("--app a --platform linux/amd64,linux/vax", "not a platform"),
        ("--app a --image https://r/x", "not the name of an image"),
        (
            "--app a --image r.example/x@sha256:0",
            "not the name of an image",
        ),
        ("--app a --image r.example/Upper", "lower case"),
        ("--app a --ignorefile DIR/none", "read the ignore file"),
    ] {
        project.refused(flags, message);
    }
}

#[test]
fn the_image_has_a_name_or_the_caller_is_told() {
    let project = Project::new(&[FROM]);
    let plan = project.plan("--app a").unwrap();
    let failure = plan.image_for("t").unwrap_err();
    assert!(
        failure.message().contains("no registry to push to"),
        "{failure}"
    );
    let plan = project.plan("--app a --registry r.example/").unwrap();
    assert_eq!(plan.image_for("t").unwrap(), "r.example/a:t");
    let plan = project.plan("--app a --build-only").unwrap();
    assert_eq!(plan.image_for("t").unwrap(), "a:t");
    let plan = project.plan("--app a --image r.example:5000/a:b").unwrap();
    assert_eq!(plan.image_for("t").unwrap(), "r.example:5000/a:b");
}

#[test]
fn a_name_that_no_app_can_have_is_told_here() {
    let project = Project::new(&[FROM]);
    for name in ["Web", "-web", "web-", "a.b", &"a".repeat(64)] {
        project.refused(
            &format!("--app={name} --image r/a"),
            "is not the name of an app",
        );
    }
}

#[test]
fn a_fly_file_is_used_told_or_refused_by_name() {
    let project = Project::new(&[
        FROM,
        (
            "fly.toml",
            "app='a'\nprimary_region='iad'\n[build]\nimage='r.example/team/app:stable'\n[env]\nA='1'\n",
        ),
        ("fly.packs.toml", "app='a'\n[build]\nbuildpacks=['p']\n"),
    ]);
    project.refused("", "[build] image = 'r.example/team/app:stable'");
    project.refused("--registry r.example", "is run as it is");
    let plan = project.plan("--image r.example/other:1").unwrap();
    assert_eq!(plan.image_for("t").unwrap(), "r.example/other:1");
    assert_eq!(
        (plan.region, plan.region_wish.as_deref()),
        (None, Some("iad"))
    );
    let told = plan.warnings.join("\n");
    assert!(
        told.contains("stable") && told.contains("fly.toml: [env] are for"),
        "{told}"
    );
    let plan = project.plan("--build-only --region fra").unwrap();
    assert_eq!(plan.image_for("t").unwrap(), "a:t");
    assert_eq!(
        (plan.region.as_deref(), plan.region_wish),
        (Some("fra"), None)
    );
    project.refused("-c DIR/fly.packs.toml --registry r", "[build] buildpacks");
}

#[test]
fn base_images_are_asked_for_again_by_pull_alone() {
    let project = Project::new(&[FROM]);
    let mode = |flags: &str| {
        let plan = project.plan(flags).unwrap();
        plan.frontend_attrs.get("image-resolve-mode").cloned()
    };
    assert_eq!(mode("--app a --pull"), Some("pull".to_owned()));
    assert_eq!(mode("--app a"), None);
}

#[test]
fn names_that_the_builder_would_refuse_are_refused_here() {
    let project = Project::new(&[FROM]);
    project.refused("--app a --image r.example/a..b:1", "parts of its path");
    project.refused("--app a --image r.example//a", "parts of its path");
    let tag = "t".repeat(129);
    project.refused(&format!("--app a --image r.example/a:{tag}"), "a tag has");
    project.refused("--app a --registry https://r.example", "no scheme");
}

#[test]
fn flags_of_buildx_and_flyctl_become_what_the_builder_takes() {
    let project = Project::new(&[("dockerfile", "FROM scratch\n"), ("more/x", "")]);
    let plan = project
        .plan(
            "--app a -t r.example/a:1 --tag s.example/a:2 --image r.example/a:3 --build-target t --add-host h:10.0.0.1 \
             --network host --shm-size 1m --ulimit nofile=1 --no-cache-filter one,two --cache-from r.example/c \
             --cache-to type=inline --build-context more=DIR/more --build-context img=docker-image://busybox \
             --build-secret S=v --allow security.insecure --provenance=false --sbom=false --buildkit --iidfile id",
        )
        .unwrap();
    assert_eq!(plan.image_for("t").unwrap(), "r.example/a:1");
    assert_eq!(plan.tags, ["s.example/a:2", "r.example/a:3"]);
    let attrs: Vec<String> = plan
        .frontend_attrs
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    assert_eq!(
        attrs,
        [
            "add-hosts=h=10.0.0.1",
            "context:img=docker-image://busybox",
            "context:more=local:context-more",
            "filename=dockerfile",
            "force-network-mode=host",
            "no-cache=one,two",
            "shm-size=1048576",
            "target=t",
            "ulimit=nofile=1:1",
        ]
    );
    assert!(plan.contexts["context-more"].ends_with("more"));
    assert_eq!(plan.entitlements, ["security.insecure", "network.host"]);
    assert_eq!(plan.cache_from, ["type=registry,ref=r.example/c"]);
    assert_eq!(plan.secrets[0].id, "S");

    let plan = project
        .plan("--app a --platform linux/amd64 --platform linux/aarch64,linux/arm/v7 --annotation index:a=b --provenance --sbom=generator=s")
        .unwrap();
    for (name, value) in [
        ("platform", "linux/amd64,linux/arm64,linux/arm/v7"),
        ("attest:provenance", "mode=min"),
        ("attest:sbom", "generator=s"),
    ] {
        assert_eq!(plan.frontend_attrs[name], value);
    }
    assert_eq!((plan.arch, plan.needs_builder), (None, true));
    assert_eq!(plan.annotations, ["index:a=b"]);
    let plan = project.plan("--app a --platform linux/arm64").unwrap();
    assert_eq!(
        (plan.arch.as_deref(), plan.needs_builder),
        (Some("arm64"), false)
    );

    let plan = project.plan("--app a --registry r.example --image-label v7");
    assert_eq!(plan.unwrap().image_for("t").unwrap(), "r.example/a:v7");
    let plan = project.plan("--app a -o DIR/out").unwrap();
    assert_eq!(plan.push, Push::No);
    let plan = project.plan("--app a -o DIR/out --push -t r.example/a:1");
    assert_eq!(plan.unwrap().push, Push::Yes);
    for (flags, push) in [
        ("--load", Push::No),
        ("-o type=docker", Push::No),
        ("--load --push --registry r", Push::Yes),
        ("--load --local-only", Push::No),
    ] {
        let plan = project.plan(&format!("--app a {flags}")).unwrap();
        assert_eq!((plan.output, plan.push), (Some(Output::Docker), push));
    }
    for (flags, message) in [
        ("-t r.example/a:1 -t UPPER/X", "lower case"),
        ("--image-label no/tag", "is not a tag"),
        ("--annotation a", "bad annotation"),
        ("--provenance=medium", "bad --provenance"),
        ("--sbom --attest type=sbom", "sbom is asked for twice"),
        ("--sbom --local-only", "--local-only"),
        ("--load --platform linux/amd64,linux/arm64", "--load"),
        ("--load --sbom", "--load"),
        ("--load --annotation a=b", "--load"),
        ("-o DIR/out --annotation a=b", "--annotation"),
        ("-o type=docker,dest=x", "type docker"),
        ("--cache-to type=gha", "type gha"),
        ("--cache-to type=local,dest=x", "type local"),
        ("--build-context x", "it has no ="),
        ("--build-context x=DIR/none", "read"),
        ("--ssh default", "no agent runs here"),
        ("-o type=oci,dest=x", "type oci"),
    ] {
        project.refused(&format!("--app a --registry r {flags}"), message);
    }
}
