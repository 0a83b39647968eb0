//! The power goes right after the control plane has recorded something that must not vanish.
//!
//! The database lies on a file system of its own in an image file. What has not been synced is in the kernel's memory alone, so a copy
//! of the image is what a disk holds after a power cut at that moment.

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use slipway_core::generation::Generation;
use slipway_core::host_api::VolumeSource;
use slipway_core::id::{AppId, HostId, MachineId, OrgId, SnapshotId, TokenId, VolumeId};
use slipway_core::isolation::Isolation;
use slipway_core::machine::MachineState;
use slipway_core::quota::{BuildRetention, BuilderSize};
use slipway_core::time::Timestamp;
use slipway_core::units::ByteSize;
use slipway_core::volume::{MoveStep, VolumePolicy};
use slipway_store::{
    Ensured, Host, Intent, MachineRecord, NewBuilder, NewMove, NewVolume, Org, SecretHash,
    SqliteStore, Store, SystemStore, Token, TokenRole,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A file system in an image, seen by this process alone.
struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    fn make() -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
        let disk = Self {
            dir: tempfile::tempdir()?,
        };
        fs::File::create(disk.image())?.set_len(32 << 20)?;
        run(Command::new("mkfs.ext4").arg("-q").arg(disk.image()))?;
        disk.mount(&disk.image(), "now")?;
        Ok(disk)
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// Mounts an image. The file system writes nothing by itself for the time of the test.
    fn mount(&self, image: &Path, name: &str) -> Result<PathBuf> {
        let point = self.dir.path().join(name);
        fs::create_dir(&point)?;
        let options = ["-o", "loop,commit=600"];
        run(Command::new("mount").args(options).arg(image).arg(&point))?;
        Ok(point)
    }

    /// What is there after a power cut now.
    fn after_a_power_cut(&self, name: &str) -> Result<PathBuf> {
        let copy = self.dir.path().join(format!("{name}.image"));
        fs::copy(self.image(), &copy)?;
        self.mount(&copy, name)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("sh")
            .args(["-c", "umount \"$0\"/*/"])
            .arg(self.dir.path())
            .output();
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(())
}

const ORG: [u8; 10] = [1; 10];
const GIB: ByteSize = ByteSize::gib(1);

fn org() -> OrgId {
    OrgId::from_entropy(ORG)
}

fn host(name: &str, n: u8) -> Host {
    Host {
        id: HostId::from_entropy([n; 10]),
        name: name.into(),
        region: "local".into(),
        arch: "amd64".into(),
        socket: "/run/host.sock".into(),
        pool_capacity: ByteSize::gib(100),
        memory: ByteSize::gib(64),
        cpu_millis: 8000,
        pool: None,
    }
}

async fn filled(store: &SqliteStore) -> Result<(MachineId, VolumeId)> {
    let size = BuilderSize {
        cpu_millis: 1000,
        memory: GIB,
        volume: GIB,
    };
    let record = Org {
        id: org(),
        slug: "acme".into(),
        name: "Acme".into(),
        idle: Duration::from_secs(600),
        retention: BuildRetention::default(),
        default_region: "local".into(),
        default_arch: "amd64".into(),
        isolation: Isolation::Auto,
        builder_size: size,
        created_at: Timestamp(1),
    };
    store.create_org(&record).await?;
    for (name, n) in [("a", 1), ("b", 2)] {
        store.put_host(&host(name, n)).await?;
    }
    let token = Token {
        id: TokenId::from_entropy([1; 10]),
        org: Some(org()),
        app: None,
        name: "t".into(),
        role: TokenRole::Admin,
        created_at: Timestamp(1),
        expires_at: None,
        revoked_at: None,
        last_used_at: None,
    };
    store.create_token(&token, &SecretHash([1; 32])).await?;
    let builder = NewBuilder {
        region: "local".into(),
        arch: "amd64".into(),
        host: HostId::from_entropy([1; 10]),
        size,
        app: AppId::from_entropy([1; 10]),
        machine: MachineId::from_entropy([1; 10]),
        volume: VolumeId::from_entropy([1; 10]),
        at: Timestamp(1),
    };
    let Ensured::Created(machine) = store.ensure_builder(&org(), &builder).await? else {
        bail!("it is there already");
    };
    let volume = NewVolume {
        id: VolumeId::from_entropy([2; 10]),
        host: HostId::from_entropy([1; 10]),
        name: "data".into(),
        size: GIB,
        source: None::<VolumeSource>,
        import: None,
        policy: VolumePolicy::default(),
        at: Timestamp(1),
    };
    store.create_volume(&org(), &volume).await?;
    store
        .record_volume_made(&org(), &volume.id, GIB, Some(true))
        .await?;
    Ok((machine.id, volume.id))
}

/// What must not vanish, one after the other, each with a power cut right after it.
async fn recorded_and_cut_off(disk: &Disk) -> Result<()> {
    let now = disk.dir.path().join("now/slipway.db");
    let store = SqliteStore::open(&now).await?;
    let (machine, volume) = filled(&store).await?;
    let cut = async |name: &str| -> Result<SqliteStore> {
        let point = disk.after_a_power_cut(name)?;
        Ok(SqliteStore::open(&point.join("slipway.db")).await?)
    };

    store
        .put_meta_if_absent("volume-key/x", b"the sealed key of a volume")
        .await?;
    let after = cut("key").await?;
    ensure!(
        after.meta("volume-key/x").await?.is_some(),
        "the key of a volume is lost"
    );
    after.close().await;

    let token = TokenId::from_entropy([1; 10]);
    store
        .revoke_token(Some(&org()), &token, Timestamp(5))
        .await?;
    let after = cut("token").await?;
    let known = after.token(&token).await?.context("the token is lost")?;
    ensure!(known.revoked_at.is_some(), "a revoked token is good again");
    after.close().await;

    let started = MachineRecord {
        revision: 1,
        generation: Generation(7),
        intent: Some(Intent::Wanted),
        state: MachineState::Starting {
            generation: Generation(7),
            since: Timestamp(5),
        },
        failed_starts: 0,
        volume_replaced: false,
        last_error: None,
        notice: None,
        cpu_millis: 1000,
        memory: GIB,
        at: Timestamp(5),
    };
    store.record_machine(&org(), &machine, &started).await?;
    let after = cut("generation").await?;
    let known = after.machine(&org(), &machine).await?.generation;
    ensure!(known == Generation(7), "a start is forgotten: {known}");
    after.close().await;

    let to = NewMove {
        to: HostId::from_entropy([2; 10]),
        snapshot: SnapshotId::from_entropy([1; 10]),
        reserve: ByteSize(0),
    };
    store.begin_move(&org(), &volume, &to).await?;
    store.finish_move(&org(), &volume).await?;
    let after = cut("move").await?;
    let known = after.volume(&org(), &volume).await?;
    ensure!(
        known.host == to.to && known.moving.is_some_and(|m| m.step == MoveStep::Clearing),
        "the record names the copy that is about to be destroyed"
    );
    after.close().await;
    store.close().await;
    Ok(())
}

#[test]
fn what_must_not_vanish_is_there_after_a_power_cut() -> Result<()> {
    let disk = Disk::make()?;
    // The proof that a copy of the image lacks what was not synced.
    fs::write(disk.dir.path().join("now/file"), "not synced")?;
    let cut = disk.after_a_power_cut("proof")?;
    ensure!(
        !cut.join("file").exists(),
        "the copy of the image has what was not synced"
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(recorded_and_cut_off(&disk))
}
