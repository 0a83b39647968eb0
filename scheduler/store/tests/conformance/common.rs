//! A store to test, and rows to put in it. What it takes from elsewhere, the other files take from here.

pub(crate) use slipway_core::build::{
    BuildEvent, BuildOutcome, BuildSource, BuildSpec, NumberedEvent,
};
pub(crate) use slipway_core::fence::{Decision, Fence};
pub(crate) use slipway_core::generation::Generation;
pub(crate) use slipway_core::host_api::VolumeSource;
pub(crate) use slipway_core::id::{
    AppId, BuildId, CredentialId, HostId, MachineId, OrgId, SnapshotId, TokenId, VolumeId,
};
pub(crate) use slipway_core::isolation::Isolation;
pub(crate) use slipway_core::machine::MachineState;
pub(crate) use slipway_core::quota::{BuildRetention, BuilderSize};
pub(crate) use slipway_core::time::Timestamp;
pub(crate) use slipway_core::units::ByteSize;
pub(crate) use slipway_core::volume::{AutoExtend, MoveStep, VolumePolicy};
pub(crate) use slipway_store::{
    App, AppRole, Build, BuildFilter, BuildState, Ensured, ErrorKind, Host, Import, Intent,
    Machine, MachineRecord, NewBuild, NewBuilder, NewMove, NewSnapshot, NewVolume, Org, OrgChange,
    Owned, SealedCredential, SecretHash, Snapshot, SnapshotState, SqliteStore, Store, StoreError,
    SystemStore, Token, TokenPage, TokenRole, Volume, VolumePurpose, VolumeState, What,
};
pub(crate) use std::collections::BTreeMap;
pub(crate) use std::sync::Arc;
pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
pub(crate) use std::time::Duration;

/// A store in a directory of its own, which goes with it.
pub(crate) struct Fresh {
    pub(crate) store: Arc<SqliteStore>,
    pub(crate) dir: tempfile::TempDir,
}

pub(crate) async fn fresh() -> Fresh {
    let dir = tempfile::tempdir().expect("a directory");
    let store = SqliteStore::open(&dir.path().join("slipway.db"))
        .await
        .expect("a store");
    Fresh {
        store: Arc::new(store),
        dir,
    }
}

pub(crate) fn entropy() -> [u8; 10] {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    bytes
}

pub(crate) fn size(volume: u64) -> BuilderSize {
    BuilderSize {
        cpu_millis: 2000,
        memory: ByteSize::gib(4),
        volume: ByteSize(volume),
    }
}

pub(crate) async fn org(store: &SqliteStore, slug: &str) -> Org {
    let org = Org {
        id: OrgId::from_entropy(entropy()),
        slug: slug.into(),
        name: slug.to_uppercase(),
        idle: Duration::from_millis(600_000),
        default_region: "local".into(),
        default_arch: "amd64".into(),
        isolation: Isolation::Auto,
        retention: BuildRetention::default(),
        builder_size: size(10),
        created_at: Timestamp(7),
    };
    store.create_org(&org).await.expect("an org");
    org
}

pub(crate) async fn host(store: &SqliteStore, name: &str, capacity: u64) -> Host {
    let host = Host {
        id: HostId::from_entropy(entropy()),
        name: name.into(),
        region: "local".into(),
        arch: "amd64".into(),
        socket: "/run/slipway/host.sock".into(),
        pool_capacity: ByteSize(capacity),
        memory: ByteSize::gib(64),
        cpu_millis: 8000,
        pool: None,
    };
    store.put_host(&host).await.expect("a host")
}

pub(crate) fn new_builder(host: &Host, region: &str, volume: u64) -> NewBuilder {
    NewBuilder {
        region: region.into(),
        arch: "amd64".into(),
        host: host.id.clone(),
        size: size(volume),
        app: AppId::from_entropy(entropy()),
        machine: MachineId::from_entropy(entropy()),
        volume: VolumeId::from_entropy(entropy()),
        at: Timestamp(9),
    }
}

pub(crate) async fn builder(store: &SqliteStore, org: &Org, host: &Host) -> Machine {
    match store
        .ensure_builder(&org.id, &new_builder(host, "local", 10))
        .await
    {
        Ok(Ensured::Created(machine)) => machine,
        other => panic!("not created: {other:?}"),
    }
}

pub(crate) fn spec() -> BuildSpec {
    BuildSpec {
        image: "registry.example/app:1".into(),
        push: true,
        frontend_attrs: BTreeMap::from([("filename".into(), "Dockerfile".into())]),
        compression: Some(slipway_core::compression::Compression::Zstd(3)),
        tags: vec!["registry.example/app:latest".into()],
        ..BuildSpec::default()
    }
}

pub(crate) async fn build(store: &SqliteStore, org: &Org, machine: &Machine) -> Build {
    let new = NewBuild {
        id: BuildId::from_entropy(entropy()),
        app: machine.app.clone(),
        machine: machine.id.clone(),
        spec: spec(),
        source: BuildSource::Docker,
        asked_by: Some("ci".into()),
        at: Timestamp(11),
    };
    store.create_build(&org.id, &new).await.expect("a build")
}

pub(crate) fn event(seq: u64) -> NumberedEvent {
    NumberedEvent {
        seq,
        at_ms: seq * 10,
        event: BuildEvent::Warning {
            message: seq.to_string(),
        },
    }
}

pub(crate) fn is_missing<T: std::fmt::Debug>(result: Result<T, StoreError>, what: What) {
    match result {
        Err(StoreError::NotFound(got)) if got == what => {}
        other => panic!("expected no such {what}, got {other:?}"),
    }
}

pub(crate) fn new_volume(host: &Host, size: u64) -> NewVolume {
    NewVolume {
        id: VolumeId::from_entropy(entropy()),
        host: host.id.clone(),
        name: "data".into(),
        size: ByteSize(size),
        source: None,
        import: None,
        policy: VolumePolicy::default(),
        at: Timestamp(9),
    }
}

/// A volume that its host has made.
pub(crate) async fn ready_volume(
    store: &SqliteStore,
    org: &Org,
    host: &Host,
    size: u64,
) -> VolumeId {
    let new = new_volume(host, size);
    store.create_volume(&org.id, &new).await.expect("a volume");
    store
        .record_volume_made(&org.id, &new.id, new.size, Some(false))
        .await
        .expect("recorded");
    new.id
}

pub(crate) fn new_snapshot(volume: &VolumeId, reserve: u64) -> NewSnapshot {
    NewSnapshot {
        id: SnapshotId::from_entropy(entropy()),
        volume: volume.clone(),
        reserve: ByteSize(reserve),
        scheduled: false,
        at: Timestamp(20),
        expires_at: Timestamp(50),
    }
}
