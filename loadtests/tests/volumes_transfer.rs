//! Exports and imports on a real farm, as people type them: what goes out comes in, through connections that break and
//! processes that die.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use slipway_loadtests::testbed::{Testbed, check_refusal, wait_for};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Bytes of noise in the volume: enough that an import is made durable in between, and no stream fits in buffers.
const NOISE: usize = 100 << 20;
const WAIT: Duration = Duration::from_secs(120);

fn json(bed: &Testbed, arguments: &[&str]) -> Result<Value> {
    let mut all = vec!["volumes"];
    all.extend(arguments);
    all.push("--json");
    bed.slipway_json(&all)
}

fn text(value: &Value) -> Result<String> {
    Ok(value
        .as_str()
        .with_context(|| value.to_string())?
        .to_owned())
}

/// A volume with a file system that holds [`NOISE`].
fn filled(bed: &Testbed, name: &str, seed: u64) -> Result<String> {
    let made = json(
        bed,
        &["create", name, "--org", "acme", "--size", "1", "--yes"],
    )?;
    let id = text(&made["id"])?;
    let at = bed.dir().join("fill");
    std::fs::create_dir_all(&at)?;
    let run = |command: &mut Command| -> Result<()> {
        ensure!(command.status()?.success(), "{command:?}");
        Ok(())
    };
    run(Command::new("mount")
        .args(["-o", "loop"])
        .arg(bed.volume_image(&id)?)
        .arg(&at))?;
    let mut state = seed;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .take(NOISE / 8)
    .flatten()
    .collect();
    let written = std::fs::write(at.join("noise"), noise);
    run(Command::new("umount").arg(&at))?;
    written?;
    Ok(id)
}

/// Fails unless two volumes hold the same, to the last byte.
fn same(bed: &Testbed, one: &str, other: &str) -> Result<()> {
    let (one, other) = (bed.volume_image(one)?, bed.volume_image(other)?);
    let compared = Command::new("cmp").arg(&one).arg(&other).output()?;
    ensure!(compared.status.success(), "{compared:?}");
    Ok(())
}

/// A way to the API that breaks: the first connections end after so many bytes of either direction.
struct Breaking {
    address: String,
    left: Arc<AtomicU32>,
}

impl Breaking {
    fn start(behind: &str, times: u32, after: usize) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = format!("https://{}", listener.local_addr()?);
        let left = Arc::new(AtomicU32::new(times));
        let (behind, counted) = (behind.to_owned(), Arc::clone(&left));
        // Ends with the test's process.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&behind) else {
                    continue;
                };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else {
                        continue;
                    };
                    let left = Arc::clone(&counted);
                    std::thread::spawn(move || pass(from, to, after, &left));
                }
            }
        });
        Ok(Self { address, left })
    }

    /// `slipway volumes ... --json` by this way.
    fn json(&self, bed: &Testbed, arguments: &[&str]) -> Result<Value> {
        let output = bed
            .slipway(&["volumes", "--json", "--server", &self.address])
            .args(arguments)
            .arg("--ca")
            .arg(bed.ca())
            .env("SLIPWAY_TOKEN", bed.admin_token()?)
            .output()?;
        ensure!(output.status.success(), "{output:?}\n{}", bed.logs());
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, after: usize, left: &AtomicU32) {
    let (mut piece, mut passed) = (vec![0; 64 << 10], 0);
    while let Ok(read @ 1..) = from.read(&mut piece) {
        passed += read;
        let breaks = passed > after
            && left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                    left.checked_sub(1)
                })
                .is_ok();
        if breaks || to.write_all(&piece[..read]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

fn file(bed: &Testbed, name: &str) -> String {
    bed.dir().join(name).display().to_string()
}

#[test]
fn what_is_exported_is_imported_through_connections_that_break() -> Result<()> {
    let bed = Testbed::start()?;
    let id = filled(&bed, "data", 1)?;
    let (plain, broken) = (file(&bed, "plain"), file(&bed, "broken"));
    let told = json(&bed, &["export", &id, "-o", &plain])?;
    ensure!(told["contentsBytes"] == 1u64 << 30, "{told}");
    ensure!(told["bytes"] == std::fs::metadata(&plain)?.len(), "{told}");
    let snapshots = json(&bed, &["snapshots", "list", &id])?;
    ensure!(snapshots == Value::Array(vec![]), "it stays: {snapshots}");

    let way = Breaking::start(&bed.address("api")?, 3, 20 << 20)?;
    way.json(&bed, &["export", &id, "-o", &broken])?;
    ensure!(way.left.load(Ordering::SeqCst) == 0, "nothing broke");
    let compared = Command::new("cmp").arg(&plain).arg(&broken).status()?;
    ensure!(compared.success(), "a continued export is another");
    ensure!(
        !Path::new(&format!("{broken}.resume")).exists(),
        "it is whole"
    );

    let way = Breaking::start(&bed.address("api")?, 1, 90 << 20)?;
    let made = way.json(&bed, &["import", "copy", &plain, "--org", "acme"])?;
    ensure!(way.left.load(Ordering::SeqCst) == 0, "nothing broke");
    ensure!(
        made["state"] == "CREATED" && made["importUntil"].is_null(),
        "{made}"
    );
    same(&bed, &id, &text(&made["id"])?)?;

    pipes_and_refuses(&bed, &id, &plain)
}

/// From one command to the other, and what neither takes.
fn pipes_and_refuses(bed: &Testbed, id: &str, plain: &str) -> Result<()> {
    let mut exporting = bed
        .slipway(&["volumes", "export", id, "-o", "-"])
        .stdout(Stdio::piped())
        .spawn()?;
    let from = exporting.stdout.take().context("no output")?;
    let import = ["volumes", "import", "piped", "-", "--org", "acme", "--json"];
    let imported = bed.slipway(&import).stdin(from).output()?;
    ensure!(
        exporting.wait()?.success() && imported.status.success(),
        "{imported:?}"
    );
    let made: Value = serde_json::from_slice(&imported.stdout)?;
    same(bed, id, &text(&made["id"])?)?;

    let refused = |arguments: &[&str], says: &[&str]| -> Result<()> {
        bed.refused(&mut bed.slipway(arguments), 1, says).map(drop)
    };
    let before = json(bed, &["list", "--org", "acme"])?;
    refused(&["volumes", "export", id, "-o", plain], &["there already"])?;
    let bad = file(bed, "bad");
    let whole = std::fs::read(plain)?;
    for (bytes, says) in [
        (
            &b"some text, which is no export at all, though long enough"[..],
            "not a whole",
        ),
        (&whole[..whole.len() - 100], "end is missing"),
    ] {
        std::fs::write(&bad, bytes)?;
        refused(
            &["volumes", "import", "bad", &bad, "--org", "acme"],
            &[says],
        )?;
    }
    let small = [
        "volumes", "import", "bad", plain, "--org", "acme", "--size", "512MiB",
    ];
    refused(&small, &["1 GiB of contents"])?;
    ensure!(
        json(bed, &["list", "--org", "acme"])? == before,
        "something is left"
    );
    // Nothing is left of a pipe that breaks off, nor of rubbish in the middle of it.
    let mut cut = bed.slipway(&["volumes", "import", "cut", "-", "--org", "acme"]);
    let mut cut = cut
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    cut.stdin
        .take()
        .context("no input")?
        .write_all(&whole[..whole.len() / 2])?;
    check_refusal(&cut.wait_with_output()?, 1, &["end is missing"])?;
    ensure!(
        json(bed, &["list", "--org", "acme"])? == before,
        "something is left"
    );

    damaged_file(bed, &whole)?;
    let stranger = bed
        .slipway_ok(&["orgs", "create", "other"])
        .and_then(|_| bed.org_token("other"))?;
    for arguments in [
        &["volumes", "export", id, "-o", "-"][..],
        &["volumes", "import", "copy", plain, "--volume-id", id],
    ] {
        let mut command = bed.slipway(arguments);
        let refused = command.env("SLIPWAY_TOKEN", &stranger).output()?;
        check_refusal(&refused, 1, &["no such volume"])?;
        ensure!(refused.stdout.is_empty(), "it gives something away");
    }
    Ok(())
}

/// A wrong byte in the middle is told, and a good copy of the same file goes on; another file does not.
fn damaged_file(bed: &Testbed, whole: &[u8]) -> Result<()> {
    let path = file(bed, "damaged");
    std::fs::write(&path, whole)?;
    let damaged = std::fs::OpenOptions::new().write(true).open(&path)?;
    let at = whole.len() as u64 * 9 / 10;
    damaged.write_all_at(&[!whole[usize::try_from(at)?]], at)?;
    let import = ["volumes", "import", "hurt", &path, "--org", "acme"];
    let said = bed.refused(
        &mut bed.slipway(&import),
        1,
        &["not taken", "--volume-id vol_"],
    )?;
    let id = said
        .split("--volume-id ")
        .nth(1)
        .and_then(|rest| rest.split(['`', '\n', ' ']).next());
    let id = id.context("no id")?;
    ensure!(json(bed, &["show", id])?["state"] == "IMPORTING", "{said}");
    let other = filled(bed, "other", 7)?;
    let another = file(bed, "another");
    json(bed, &["export", &other, "-o", &another])?;
    let with = ["volumes", "import", "hurt", &another, "--volume-id", id];
    bed.refused(&mut bed.slipway(&with), 1, &["another file"])?;
    std::fs::write(&path, whole)?;
    let made = json(bed, &["import", "hurt", &path, "--volume-id", id])?;
    ensure!(made["state"] == "CREATED", "{made}");
    bed.slipway_ok(&["volumes", "destroy", id, &other, "--now", "--yes"])?;
    Ok(())
}

#[test]
fn a_killed_control_plane_breaks_neither_and_two_go_at_once() -> Result<()> {
    let mut bed = Testbed::start()?;
    let (first, second) = (filled(&bed, "first", 1)?, filled(&bed, "second", 2)?);
    let files = [file(&bed, "one"), file(&bed, "two")];
    let spawn = |bed: &Testbed, arguments: &[&str]| {
        let mut command = bed.slipway(arguments);
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    };
    let larger_than = |path: &Path, bytes: u64| {
        wait_for("it to be under way", WAIT, || {
            ensure!(std::fs::metadata(path)?.len() > bytes, "not yet");
            Ok(())
        })
    };
    let exports = [
        spawn(&bed, &["volumes", "export", &first, "-o", &files[0]])?,
        spawn(&bed, &["volumes", "export", &second, "-o", &files[1]])?,
    ];
    for path in &files {
        larger_than(Path::new(path), 5 << 20)?;
    }
    bed.kill_serve();
    bed.start_serve()?;
    for export in exports {
        let output = export.wait_with_output()?;
        ensure!(output.status.success(), "{output:?}\n{}", bed.logs());
    }
    let import = |name, file| ["volumes", "import", name, file, "--org", "acme", "--json"];
    let imports = [
        spawn(&bed, &import("first-copy", &files[0]))?,
        spawn(&bed, &import("second-copy", &files[1]))?,
    ];
    wait_for("both to be under way", WAIT, || {
        let list = json(&bed, &["list", "--org", "acme"])?;
        let list = list.as_array().context("no list")?;
        let under_way = list.iter().filter(|volume| volume["state"] == "IMPORTING");
        ensure!(under_way.count() == 2, "not yet");
        let pool = bed.dir().join("pool/volumes");
        let progress = std::fs::read_dir(pool)?.flatten().filter(|entry| {
            entry
                .path()
                .extension()
                .is_some_and(|extension| extension == "import")
        });
        ensure!(progress.count() == 2, "nothing durable yet");
        Ok(())
    })?;
    bed.kill_serve();
    bed.kill_host();
    bed.start_host()?;
    bed.start_serve()?;
    for (import, source) in imports.into_iter().zip([&first, &second]) {
        let output = import.wait_with_output()?;
        ensure!(output.status.success(), "{output:?}\n{}", bed.logs());
        let made: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(made["state"] == "CREATED", "{made}");
        same(&bed, source, &text(&made["id"])?)?;
    }
    interrupted(&bed, &first)
}

/// Ctrl-C leaves a file that the same command goes on with, and the snapshot for it.
fn interrupted(bed: &Testbed, id: &str) -> Result<()> {
    let path = file(bed, "interrupted");
    let export = ["volumes", "export", id, "-o", &path];
    let mut command = bed.slipway(&export);
    let exporting = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    wait_for("it to be under way", WAIT, || {
        ensure!(std::fs::metadata(&path)?.len() > 5 << 20, "not yet");
        Ok(())
    })?;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(exporting.id())?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
    let output = exporting.wait_with_output()?;
    check_refusal(&output, 130, &["the same command resumes"])?;
    let kept = json(bed, &["snapshots", "list", id])?;
    ensure!(
        kept.as_array().is_some_and(|kept| kept.len() == 1),
        "{kept}"
    );
    bed.slipway_ok(&export)?;
    let gone = json(bed, &["snapshots", "list", id])?;
    ensure!(gone == Value::Array(vec![]), "{gone}");
    let made = json(bed, &["import", "again", &path, "--org", "acme"])?;
    same(bed, id, &text(&made["id"])?)
}
