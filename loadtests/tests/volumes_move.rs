//! A volume moves between two real hosts, while either of them or the control plane dies.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use slipway_loadtests::testbed::{Connection, Testbed, wait_for};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Bytes of noise in the volume: enough that something can die in the middle.
const NOISE: usize = 300 << 20;
const WAIT: Duration = Duration::from_secs(150);

/// One control plane with a host of its own and that of another farm, whose own control plane is down.
struct Two {
    near: Testbed,
    far: Testbed,
}

impl Two {
    /// The far host is of this region; the near one is `local`.
    fn start(region: &str) -> Result<Self> {
        let (mut near, mut far) = (Testbed::start()?, Testbed::start()?);
        far.kill_serve();
        near.kill_serve();
        let settings = near.dir().join("serve.toml");
        let mut settings = std::fs::OpenOptions::new().append(true).open(settings)?;
        let socket = far.dir().join("host.sock");
        write!(
            settings,
            "\n[[hosts]]\nname = \"far\"\nregion = \"{region}\"\nsocket = \"{}\"\n",
            socket.display()
        )?;
        near.start_serve()?;
        Ok(Self { near, far })
    }

    fn volumes(&self, arguments: &[&str]) -> Result<Value> {
        let mut all = vec!["volumes"];
        all.extend(arguments);
        all.push("--json");
        self.near.slipway_json(&all)
    }

    /// A volume on the near host that holds something; its id and a copy of its image.
    fn filled(&self) -> Result<(String, PathBuf)> {
        let create = [
            "create", "data", "--org", "acme", "--region", "local", "--size", "1", "--yes",
        ];
        let made = self.volumes(&create)?;
        let id = made["id"].as_str().context("no id")?.to_owned();
        let image = self.near.volume_image(&id)?;
        let at = self.near.dir().join("fill");
        std::fs::create_dir_all(&at)?;
        let mounted = Command::new("mount")
            .args(["-o", "loop"])
            .arg(&image)
            .arg(&at)
            .status()?;
        ensure!(mounted.success(), "not mounted");
        let mut noise = vec![0; NOISE];
        std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut noise)?;
        let written = std::fs::write(at.join("noise"), noise);
        let unmounted = Command::new("umount").arg(&at).status()?;
        written?;
        ensure!(unmounted.success(), "it stays mounted");
        let kept = self.near.dir().join("as-it-was");
        let copied = Command::new("cp")
            .arg("--sparse=always")
            .arg(&image)
            .arg(&kept)
            .status()?;
        ensure!(copied.success(), "no copy");
        Ok((id, kept))
    }

    /// Waits until the volume is at the far host, the same to the last byte, and nothing is left at the near one.
    fn arrived(&self, id: &str, as_it_was: &PathBuf) -> Result<()> {
        let logs = || format!("{}\n{}", self.near.logs(), self.far.logs());
        let moved = wait_for("it to have moved", WAIT, || {
            let volume = self.volumes(&["show", id])?;
            ensure!(
                volume["state"] == "CREATED" && volume["zone"] == "far",
                "{volume}"
            );
            ensure!(
                self.near.volume_images()?.is_empty(),
                "the old copy is there"
            );
            let left = std::fs::read_dir(self.near.dir().join("pool/snapshots"));
            let left = left.map(|entries| entries.count()).unwrap_or(0);
            ensure!(left == 0, "{left} files of snapshots are there");
            Ok(volume)
        });
        let moved = moved.with_context(logs)?;
        ensure!(
            moved["region"] == "elsewhere" && moved["notice"].is_null(),
            "{moved}"
        );
        let compared = Command::new("cmp")
            .arg(self.far.volume_image(id)?)
            .arg(as_it_was)
            .output()?;
        ensure!(compared.status.success(), "{compared:?}");
        Ok(())
    }
}

#[test]
fn a_volume_moves_and_lives_on_there() -> Result<()> {
    let two = Two::start("elsewhere")?;
    let (id, as_it_was) = two.filled()?;
    let kept = two.volumes(&["snapshots", "create", &id])?;
    let moved = two.volumes(&["move", &id, "--zone", "far"])?;
    ensure!(
        moved["zone"] == "far" && moved["movingTo"].is_null(),
        "{moved}"
    );
    let refused = |arguments: &[&str], says: &[&str]| {
        two.near
            .refused(&mut two.near.slipway(arguments), 1, says)
            .map(drop)
    };
    refused(
        &["volumes", "move", &id, "--zone", "far"],
        &["on that host"],
    )?;
    refused(&["volumes", "move", &id, "--zone", "mars"], &["far, test"])?;
    refused(&["volumes", "move", &id, "--cancel"], &["not being moved"])?;
    // What was kept before stays where it was, and can be had there.
    let snapshot = kept["id"].as_str().context("no id")?;
    let restore = [
        "create",
        "back",
        "--org",
        "acme",
        "--snapshot-id",
        snapshot,
        "--yes",
    ];
    let back = two.volumes(&restore)?;
    ensure!(
        back["zone"] == "test" && back["state"] == "CREATED",
        "{back}"
    );
    let back = back["id"].as_str().context("no id")?;
    two.near
        .slipway_ok(&["volumes", "destroy", back, "--now", "--yes"])?;
    two.near
        .slipway_ok(&["volumes", "snapshots", "delete", snapshot, "--yes"])?;
    two.arrived(&id, &as_it_was)?;
    let larger = two.volumes(&["extend", &id, "--size", "2"])?;
    ensure!(
        larger["sizeBytes"] == 2u64 << 30 && larger["state"] == "CREATED",
        "{larger}"
    );
    two.near
        .slipway_ok(&["volumes", "destroy", &id, "--now", "--yes"])?;
    ensure!(two.far.volume_images()?.is_empty(), "it is left");
    Ok(())
}

#[test]
fn a_move_survives_the_death_of_all_three() -> Result<()> {
    let mut two = Two::start("elsewhere")?;
    let (id, as_it_was) = two.filled()?;
    let begun = two.volumes(&["move", &id, "--region", "elsewhere", "--detach"])?;
    ensure!(
        begun["state"] == "MOVING" && begun["movingTo"] == "far",
        "{begun}"
    );
    let under_way = |two: &Two| {
        wait_for("the copy to be begun", WAIT, || {
            let pool = two.far.dir().join("pool/volumes");
            ensure!(std::fs::read_dir(pool)?.next().is_some(), "not yet");
            Ok(())
        })
    };
    under_way(&two)?;
    two.near.kill_serve();
    ensure!(two.far.volume_images()?.is_empty(), "it was whole before");
    two.near.start_serve()?;
    two.far.kill_host();
    two.far.start_host()?;
    two.near.kill_host();
    two.near.start_host()?;
    two.arrived(&id, &as_it_was)
}

/// A connection to dockerd on the one machine of a host, when it answers.
fn dockerd(bed: &Testbed) -> Result<Connection> {
    wait_for("dockerd", WAIT, || {
        let mut dockerd = Connection::direct(&bed.machine_socket()?)?;
        let (status, _) = dockerd.get("/_ping")?;
        ensure!(status == 200, "{status}");
        Ok(dockerd)
    })
}

fn keep(bed: &Testbed, name: &str) -> Result<()> {
    let body = serde_json::json!({ "Name": name });
    let (status, said) = dockerd(bed)?.post_json("/volumes/create", &body)?;
    ensure!(status == 201, "{status} {said}");
    Ok(())
}

#[test]
fn a_builder_works_on_while_its_cache_moves_and_has_all_of_it_there() -> Result<()> {
    let two = Two::start("local")?;
    let ensure = ["builders", "ensure", "--org", "acme", "--json"];
    two.near.slipway_json(&ensure)?;
    let list = two.volumes(&["list", "--org", "acme"])?;
    let id = list[0]["id"].as_str().context("no cache")?.to_owned();
    // Where it was placed is the planner's choice.
    let control = &two.near;
    let (from, to, zone) = if list[0]["zone"] == "far" {
        (&two.far, &two.near, "test")
    } else {
        (&two.near, &two.far, "far")
    };
    keep(from, "before")?;
    let begun = ["volumes", "move", &id, "--zone", zone, "--detach", "--json"];
    let begun = control.slipway_json(&begun)?;
    ensure!(
        begun["state"] == "MOVING" && begun["movingTo"] == zone,
        "{begun}"
    );
    wait_for("the rest to wait for the builder", WAIT, || {
        let volume = control.slipway_json(&["volumes", "show", &id, "--json"])?;
        let notice = volume["notice"].as_str().unwrap_or_default();
        ensure!(notice.contains("builders stop"), "{volume}");
        Ok(())
    })?;
    keep(from, "meanwhile")?;
    control.slipway_ok(&["builders", "stop", "--org", "acme"])?;
    wait_for("it to have moved", WAIT, || {
        let volume = control.slipway_json(&["volumes", "show", &id, "--json"])?;
        ensure!(
            volume["state"] == "CREATED" && volume["zone"] == zone,
            "{volume}"
        );
        ensure!(from.volume_images()?.is_empty(), "the old copy is there");
        Ok(())
    })
    .with_context(|| format!("{}\n{}", two.near.logs(), two.far.logs()))?;
    control.slipway_json(&ensure)?;
    let mut there = dockerd(to)?;
    for name in ["before", "meanwhile"] {
        let (status, _) = there.get(&format!("/volumes/{name}"))?;
        ensure!(status == 200, "{name} is lost: {status}");
    }
    ensure!(
        from.machine_socket().is_err(),
        "a machine runs where it was"
    );
    Ok(())
}
