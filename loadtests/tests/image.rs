//! The recipe of the builder image: an engine from an apt source, a root file system of the operator's, a refresh beside builders that
//! run, and the way back.

use anyhow::{Context, Result, ensure};
use slipway_loadtests::testbed::{Process, Testbed, cache_dir, checkout_dir, show, wait_for};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

const READY_WAIT: Duration = Duration::from_secs(30);

/// A directory for images, with the operator's choices beside it. Gone with the test.
struct Recipe {
    dir: tempfile::TempDir,
}

impl Recipe {
    fn new() -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("slipway-test-image-")
            .tempdir_in("/var/tmp")?;
        Ok(Self { dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn choose(&self, choices: &str) -> Result<()> {
        Ok(std::fs::write(self.path("image.conf"), choices)?)
    }

    fn build(&self, arguments: &[&str]) -> Result<Output> {
        let script = checkout_dir().join("builder/image/build.sh");
        let mut command = Command::new(script);
        command
            .args(arguments)
            .arg(self.path("out"))
            .env("SLIPWAY_IMAGE_CONF", self.path("image.conf"))
            // Fast rather than small.
            .env("SLIPWAY_IMAGE_LEVEL", "1");
        command.output().context("run build.sh")
    }

    /// Gives the name of the image that is then current.
    fn built(&self, arguments: &[&str]) -> Result<String> {
        let output = self.build(arguments)?;
        ensure!(output.status.success(), "{}", show(&output));
        self.current()
    }

    fn current(&self) -> Result<String> {
        let link = std::fs::read_link(self.path("out/base.squashfs"))?;
        Ok(link.to_string_lossy().into_owned())
    }

    /// Names of all images.
    fn images(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.path("out"))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".squashfs") && !entry.file_type()?.is_symlink() {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// The files of the image of `make setup`, without what no builder needs.
    fn unpack_root(&self) -> Result<PathBuf> {
        let root = self.path("root");
        run(Command::new("unsquashfs")
            .args(["-quiet", "-no-progress", "-dest"])
            .arg(&root)
            .arg(cache_dir().join("image/base.squashfs")))?;
        for path in ["usr/share/perl", "usr/lib/git-core", "usr/libexec/docker"] {
            match std::fs::remove_dir_all(root.join(path)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
        Ok(root)
    }

    /// A farm that boots the current image.
    fn farm(&self) -> Result<Testbed> {
        Testbed::start_with(&format!(
            "isolation = \"sandbox\"\nimage_base = \"{}\"\n",
            self.path("out/base.squashfs").display()
        ))
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", show(&output));
    Ok(())
}

/// What the builder says of its engine once it runs and BuildKit has been asked.
fn engine(bed: &Testbed) -> Result<serde_json::Value> {
    bed.slipway_ok(&["builders", "ensure", "--org", "acme"])?;
    wait_for("the builder's engine", READY_WAIT, || {
        let shown = bed.slipway_json(&["builders", "show", "--org", "acme", "--json"])?;
        let engine = shown["engine"].clone();
        ensure!(engine["buildkit"].is_string(), "{shown}");
        Ok(engine)
    })
    .with_context(|| bed.logs())
}

fn stop(bed: &Testbed) -> Result<()> {
    bed.slipway_ok(&["builders", "stop", "--org", "acme"])?;
    Ok(())
}

/// The file that tells the test's images apart, as the running machine has it.
fn mark(bed: &Testbed) -> Result<String> {
    let pid = *bed.machine_pids()?.first().context("no machine runs")?;
    let path = format!("/proc/{pid}/root/etc/mark");
    Ok(std::fs::read_to_string(path)?.trim().to_owned())
}

#[test]
fn the_next_start_takes_a_refreshed_image_and_the_old_one_can_be_taken_back() -> Result<()> {
    let recipe = Recipe::new()?;
    let root = recipe.unpack_root()?;
    let set_mark = |text: &str| std::fs::write(root.join("etc/mark"), text);
    recipe.choose(&format!("ENGINE=rootfs\nROOTFS={}\n", root.display()))?;
    set_mark("one")?;
    let first = recipe.built(&[])?;
    let old = std::time::SystemTime::now() - Duration::from_secs(40 * 24 * 3600);
    std::fs::File::open(recipe.path("out").join(&first))?.set_modified(old)?;

    let bed = recipe.farm()?;
    let booted = engine(&bed)?;
    ensure!(mark(&bed)? == "one");
    let made_at = booted["imageMadeAt"].as_str().context("no age")?.to_owned();
    let status = bed.slipway_ok(&["status"])?;
    ensure!(status.contains("40 days old"), "{status}");
    ensure!(
        bed.logs().contains("the builder image is old"),
        "{}",
        bed.logs()
    );

    // What runs keeps what it has booted, whatever becomes of the file.
    set_mark("two")?;
    let second = recipe.built(&["--refresh"])?;
    ensure!(second != first);
    ensure!(
        recipe.built(&[])? == second,
        "without a refresh nothing changes"
    );
    let running = engine(&bed)?;
    ensure!(mark(&bed)? == "one" && running["imageMadeAt"] == made_at.as_str());
    stop(&bed)?;
    let booted = engine(&bed)?;
    ensure!(mark(&bed)? == "two" && booted["imageMadeAt"] != made_at.as_str());

    // One in which something is missing is not made, and what there was stays.
    let iptables = root.join("usr/sbin/iptables");
    let target = std::fs::read_link(&iptables)?;
    std::fs::remove_file(&iptables)?;
    let output = recipe.build(&["--refresh"])?;
    let said = show(&output);
    ensure!(
        !output.status.success() && said.contains("there is no iptables"),
        "{said}"
    );
    ensure!(recipe.current()? == second);
    std::os::unix::fs::symlink(target, &iptables)?;

    // One whose engine does not start: its builder says why, and the one before it is still there.
    let script = "#!/bin/sh\necho 'failed to start daemon: it is a script' >&2\nexit 1\n";
    std::fs::write(root.join("usr/sbin/dockerd"), script)?;
    let third = recipe.built(&["--refresh"])?;
    let mut left = recipe.images()?;
    left.sort();
    let mut wanted = vec![second.clone(), third];
    wanted.sort();
    ensure!(left == wanted, "{left:?}");
    stop(&bed)?;
    let project = bed.project(
        "web",
        &[("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")],
    )?;
    let said = bed.refused(&mut bed.deploy(&project, "web:1"), 2, &["it is a script"])?;
    ensure!(recipe.built(&["--back"])? == second, "{said}");
    engine(&bed).with_context(|| said)?;
    ensure!(mark(&bed)? == "two");
    Ok(())
}

/// Runs shell text with what build.sh shares, in a directory.
fn with_settings(dir: &Path, text: &str) -> Result<String> {
    let settings = checkout_dir().join("builder/image/settings.sh");
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c"])
        .arg(format!(". {}\n{text}", settings.display()))
        .current_dir(dir)
        .output()?;
    ensure!(output.status.success(), "{}", show(&output));
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn the_way_back_holds_until_the_recipe_changes_and_is_never_lost() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let shell = |text: &str| with_settings(dir.path(), text);
    shell(
        "touch -d yesterday base-1-a.squashfs; touch base-2-b.squashfs base-3-c.squashfs
         ln -s base-2-b.squashfs ./base.squashfs; ln -s base-1-a.squashfs ./base.previous.squashfs",
    )?;
    let choose = |recipe: u8| {
        shell(&format!(
            "choose ./base.squashfs 'base-{recipe}-*.squashfs'"
        ))
    };
    ensure!(choose(2)? == "base-2-b.squashfs");
    let names = || shell("readlink base.squashfs base.previous.squashfs");
    // The first of two links, then the other: cut off between them, what was good is current.
    shell(
        "link() { ln -sfn -- \"$1\" \"$2\"; exit; }; swap ./base.squashfs ./base.previous.squashfs",
    )?;
    ensure!(
        names()? == "base-1-a.squashfs\nbase-1-a.squashfs\n",
        "{}",
        names()?
    );
    shell("ln -sfn base-2-b.squashfs ./base.squashfs")?;
    shell(
        "swap ./base.squashfs ./base.previous.squashfs; remember_back ./base.squashfs 'base-2-*.squashfs'",
    )?;
    ensure!(
        names()? == "base-1-a.squashfs\nbase-2-b.squashfs\n",
        "{}",
        names()?
    );
    ensure!(choose(2)? == "base-1-a.squashfs", "the operator went back");
    ensure!(choose(3)? == "base-3-c.squashfs", "another recipe");
    shell("forget_back ./base.squashfs")?;
    ensure!(choose(2)? == "base-2-b.squashfs");
    Ok(())
}

#[test]
fn links_in_an_operators_root_do_not_lead_onto_this_computer() -> Result<()> {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir()?;
    let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
    std::fs::create_dir_all(root.join("etc"))?;
    std::fs::create_dir_all(root.join("var/lib"))?;
    std::fs::create_dir_all(&outside)?;
    std::fs::write(outside.join("machine-id"), "ours")?;
    symlink(outside.join("machine-id"), root.join("etc/machine-id"))?;
    symlink(&outside, root.join("var/lib/docker"))?;
    symlink(&outside, root.join("etc/docker"))?;
    let customize = || {
        let script = checkout_dir().join("builder/image/customize.sh");
        Command::new(script)
            .arg(&root)
            .arg("as-it-is")
            .output()
            .context("run customize.sh")
    };
    let output = customize()?;
    ensure!(output.status.success(), "{}", show(&output));
    ensure!(std::fs::read_to_string(outside.join("machine-id"))? == "ours");
    ensure!(!outside.join("daemon.json").exists());
    ensure!(root.join("etc/machine-id").symlink_metadata()?.is_file());
    ensure!(root.join("etc/docker/daemon.json").is_file());
    ensure!(root.join("var/lib/docker").symlink_metadata()?.is_dir());

    std::fs::remove_dir_all(root.join("var/lib"))?;
    symlink(&outside, root.join("var/lib"))?;
    let output = customize()?;
    let said = show(&output);
    ensure!(
        !output.status.success() && said.contains("/var/lib is a link"),
        "{said}"
    );
    ensure!(!outside.join("docker").exists());
    Ok(())
}

/// Serves a directory over HTTP; gives the address too.
fn serve(dir: &Path, log: &Path) -> Result<(Process, String)> {
    let mut command = Command::new("python3");
    command
        .args(["-u", "-m", "http.server", "--bind", "127.0.0.1", "0"])
        .current_dir(dir);
    let server = Process::start("apt source", command, log)?;
    let port: u16 = wait_for("the apt source", READY_WAIT, || {
        let said = server.output();
        let words = said.split_once(" port ").map(|(_, rest)| rest);
        let port = words.and_then(|rest| rest.split(' ').next()?.parse().ok());
        port.with_context(|| said.clone())
    })?;
    Ok((server, format!("http://127.0.0.1:{port}")))
}

/// Docker's own packages are in no Debian: their names, a source and its key are the operator's to name. What is in them here are the
/// programs of the usual image.
#[test]
fn an_engine_comes_from_an_apt_source_that_the_operator_names() -> Result<()> {
    let recipe = Recipe::new()?;
    let root = recipe.unpack_root()?;
    let made = checkout_dir().join("loadtests/tests/image/apt-source.sh");
    run(Command::new(made).arg(&root).arg(recipe.path("apt")))?;
    let (_server, address) = serve(&recipe.path("apt/repo"), &recipe.path("apt.log"))?;
    let choose = |key: &str| {
        recipe.choose(&format!(
            "# Docker's own\nENGINE=apt\nAPT_URI={address}\nAPT_SUITE=stable\nAPT_COMPONENTS=test\nAPT_KEY={}\n\
             APT_PACKAGES=\"docker-ce docker-ce-cli containerd.io\"\n",
            recipe.path("apt").join(key).display()
        ))
    };
    choose("missing.asc")?;
    let output = recipe.build(&[])?;
    let said = show(&output);
    ensure!(
        !output.status.success() && said.contains("APT_KEY"),
        "{said}"
    );
    choose("other.asc")?;
    let output = recipe.build(&[])?;
    let said = show(&output);
    ensure!(
        !output.status.success() && said.contains("not signed"),
        "{said}"
    );

    choose("key.asc")?;
    recipe.built(&[])?;
    let packages = std::fs::read_to_string(recipe.path("out/base.packages"))?;
    for wanted in ["docker-ce 5:99.1-1~test", "containerd.io 5:99.1-1~test"] {
        ensure!(packages.contains(wanted), "{packages}");
    }
    ensure!(!packages.contains("docker.io"), "{packages}");
    let bed = recipe.farm()?;
    let engine = engine(&bed)?;
    ensure!(
        engine["version"].is_string() && engine["imageStore"].is_string(),
        "{engine}"
    );
    let shown = bed.slipway_ok(&["builders", "show", "--org", "acme"])?;
    ensure!(shown.contains("image store"), "{shown}");
    Ok(())
}
