//! What every store must do, run against real SQLite files. A store on another database joins by a constructor here.

use slipway_core::build::{BuildEvent, BuildOutcome, BuildSpec, NumberedEvent};
use slipway_core::generation::Generation;
use slipway_core::id::{AppId, BuildId, CredentialId, HostId, MachineId, OrgId, TokenId, VolumeId};
use slipway_core::isolation::Isolation;
use slipway_core::machine::MachineState;
use slipway_core::quota::{BuildRetention, BuilderSize};
use slipway_core::time::Timestamp;
use slipway_core::units::ByteSize;
use slipway_store::{
    App, AppRole, Build, BuildFilter, BuildState, Ensured, ErrorKind, Host, Intent, Machine,
    MachineRecord, NewBuild, NewBuilder, Org, OrgChange, SealedCredential, SecretHash, SqliteStore,
    Store, StoreError, SystemStore, Token, TokenRole, VolumeState, What,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A store in a directory of its own, which goes with it.
struct Fresh {
    store: Arc<SqliteStore>,
    dir: tempfile::TempDir,
}

async fn fresh() -> Fresh {
    let dir = tempfile::tempdir().expect("a directory");
    let store = SqliteStore::open(&dir.path().join("slipway.db"))
        .await
        .expect("a store");
    Fresh {
        store: Arc::new(store),
        dir,
    }
}

fn entropy() -> [u8; 10] {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    bytes
}

fn size(volume: u64) -> BuilderSize {
    BuilderSize {
        cpu_millis: 2000,
        memory: ByteSize::gib(4),
        volume: ByteSize(volume),
    }
}

async fn org(store: &SqliteStore, slug: &str) -> Org {
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

async fn host(store: &SqliteStore, name: &str, capacity: u64) -> Host {
    let host = Host {
        id: HostId::from_entropy(entropy()),
        name: name.into(),
        region: "local".into(),
        arch: "amd64".into(),
        socket: "/run/slipway/host.sock".into(),
        pool_capacity: ByteSize(capacity),
        memory: ByteSize::gib(64),
        cpu_millis: 8000,
    };
    store.put_host(&host).await.expect("a host")
}

fn new_builder(host: &Host, region: &str, volume: u64) -> NewBuilder {
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

async fn builder(store: &SqliteStore, org: &Org, host: &Host) -> Machine {
    match store
        .ensure_builder(&org.id, &new_builder(host, "local", 10))
        .await
    {
        Ok(Ensured::Created(machine)) => machine,
        other => panic!("not created: {other:?}"),
    }
}

fn spec() -> BuildSpec {
    BuildSpec {
        image: "registry.example/app:1".into(),
        push: true,
        frontend_attrs: BTreeMap::from([("filename".into(), "Dockerfile".into())]),
        compression: Some(slipway_core::compression::Compression::Zstd(3)),
    }
}

async fn build(store: &SqliteStore, org: &Org, machine: &Machine) -> Build {
    let new = NewBuild {
        id: BuildId::from_entropy(entropy()),
        app: machine.app.clone(),
        machine: machine.id.clone(),
        spec: spec(),
        at: Timestamp(11),
    };
    store.create_build(&org.id, &new).await.expect("a build")
}

fn event(seq: u64) -> NumberedEvent {
    NumberedEvent {
        seq,
        at_ms: seq * 10,
        event: BuildEvent::Warning {
            message: seq.to_string(),
        },
    }
}

fn is_missing<T: std::fmt::Debug>(result: Result<T, StoreError>, what: What) {
    match result {
        Err(StoreError::NotFound(got)) if got == what => {}
        other => panic!("expected no such {what}, got {other:?}"),
    }
}

#[tokio::test]
async fn keeps_orgs_and_changes_only_what_is_named() {
    let it = fresh().await;
    let acme = org(&it.store, "acme").await;
    assert_eq!(it.store.org(&acme.id).await.expect("there"), acme);
    assert_eq!(it.store.org_by_slug("acme").await.expect("there"), acme);
    let again = Org {
        id: OrgId::from_entropy(entropy()),
        ..acme.clone()
    };
    let taken = it
        .store
        .create_org(&again)
        .await
        .expect_err("the slug is taken");
    assert_eq!(taken.kind(), ErrorKind::Conflict);

    let change = OrgChange {
        idle: Some(Duration::from_secs(5)),
        isolation: Some(Isolation::Vm),
        ..OrgChange::default()
    };
    let changed = it
        .store
        .update_org(&acme.id, &change)
        .await
        .expect("changed");
    assert_eq!(
        changed,
        Org {
            idle: Duration::from_secs(5),
            isolation: Isolation::Vm,
            ..acme.clone()
        }
    );
    is_missing(
        it.store
            .update_org(&OrgId::from_entropy(entropy()), &change)
            .await,
        What::Org,
    );
    assert_eq!(it.store.all_orgs().await.expect("listed"), vec![changed]);
}

#[tokio::test]
async fn survives_being_closed_and_opened_again() {
    let it = fresh().await;
    let acme = org(&it.store, "acme").await;
    it.store.close().await;
    assert_eq!(
        it.store.org(&acme.id).await.expect_err("closed").kind(),
        ErrorKind::Unavailable
    );
    let path = it.dir.path().join("slipway.db");
    let again = SqliteStore::open(&path).await.expect("opened again");
    assert_eq!(again.org(&acme.id).await.expect("still there"), acme);
}

#[tokio::test]
async fn tokens_are_found_by_id_whoever_has_them() {
    let it = fresh().await;
    let acme = org(&it.store, "acme").await;
    for (n, owner) in [(1, Some(acme.id.clone())), (2, None)] {
        let mut token = Token {
            id: TokenId::from_entropy(entropy()),
            org: owner.clone(),
            app: None,
            name: "ci".into(),
            role: TokenRole::Deploy,
            created_at: Timestamp(1),
            expires_at: Some(Timestamp(2)),
            revoked_at: None,
            last_used_at: None,
        };
        assert_eq!(it.store.token(&token.id).await.expect("read"), None);
        it.store
            .create_token(&token, &SecretHash([n; 32]))
            .await
            .expect("recorded");
        assert_eq!(
            it.store.token(&token.id).await.expect("read"),
            Some(token.clone())
        );
        it.store
            .revoke_token(owner.as_ref(), &token.id, Timestamp(3))
            .await
            .expect("revoked");
        token.revoked_at = Some(Timestamp(3));
        assert_eq!(it.store.token(&token.id).await.expect("read"), Some(token));
    }
}

#[tokio::test]
async fn tokens_are_found_by_hash_and_listed_by_org() {
    let it = fresh().await;
    let (acme, rival) = (org(&it.store, "acme").await, org(&it.store, "rival").await);
    let token = |org: Option<&Org>, app| Token {
        id: TokenId::from_entropy(entropy()),
        org: org.map(|o| o.id.clone()),
        app,
        name: "ci".into(),
        role: TokenRole::Deploy,
        created_at: Timestamp(1),
        expires_at: Some(Timestamp(99)),
        revoked_at: None,
        last_used_at: None,
    };
    let (ours, admin) = (token(Some(&acme), None), token(None, None));
    it.store
        .create_token(&ours, &SecretHash([1; 32]))
        .await
        .expect("recorded");
    it.store
        .create_token(&admin, &SecretHash([2; 32]))
        .await
        .expect("recorded");
    assert_eq!(
        it.store
            .token_by_hash(&SecretHash([1; 32]))
            .await
            .expect("read"),
        Some(ours.clone())
    );
    assert_eq!(
        it.store
            .token_by_hash(&SecretHash([3; 32]))
            .await
            .expect("read"),
        None
    );
    assert_eq!(
        it.store.tokens(Some(&acme.id)).await.expect("read"),
        vec![ours.clone()]
    );
    assert_eq!(it.store.tokens(None).await.expect("read"), vec![admin]);
    assert_eq!(
        it.store.tokens(Some(&rival.id)).await.expect("read"),
        vec![]
    );

    let (at, later) = (Timestamp(5), Timestamp(6));
    is_missing(
        it.store.revoke_token(Some(&rival.id), &ours.id, at).await,
        What::Token,
    );
    is_missing(it.store.revoke_token(None, &ours.id, at).await, What::Token);
    it.store
        .revoke_token(Some(&acme.id), &ours.id, at)
        .await
        .expect("revoked");
    it.store
        .revoke_token(Some(&acme.id), &ours.id, later)
        .await
        .expect("revoked twice");
    it.store
        .touch_token(&ours.id, later)
        .await
        .expect("touched");
    let read = it
        .store
        .token_by_hash(&SecretHash([1; 32]))
        .await
        .expect("read")
        .expect("there");
    assert_eq!(
        (read.revoked_at, read.last_used_at),
        (Some(at), Some(later))
    );

    // A token cannot be scoped to another org's app.
    let theirs = App {
        id: AppId::from_entropy(entropy()),
        org: rival.id.clone(),
        name: "web".into(),
        role: AppRole::User,
        billable: true,
        created_at: Timestamp(1),
    };
    it.store.create_app(&theirs).await.expect("an app");
    let crossed = token(Some(&acme), Some(theirs.id));
    is_missing(
        it.store.create_token(&crossed, &SecretHash([4; 32])).await,
        What::App,
    );
}

#[tokio::test]
async fn a_builder_its_volume_and_the_pool_are_one_transaction() {
    let it = fresh().await;
    let (acme, h) = (org(&it.store, "acme").await, host(&it.store, "h", 25).await);
    let new = new_builder(&h, "local", 10);
    let made = match it.store.ensure_builder(&acme.id, &new).await.expect("made") {
        Ensured::Created(machine) => machine,
        Ensured::Existing(machine) => panic!("there already: {machine:?}"),
    };
    assert_eq!(
        (&made.id, &made.volume, &made.app),
        (&new.machine, &new.volume, &new.app)
    );
    assert_eq!(
        (made.state, made.intent),
        (MachineState::Stopped, Intent::Wanted)
    );
    let app = it.store.app(&acme.id, &made.app).await.expect("an app");
    assert_eq!((app.role, app.billable), (AppRole::Builder, false));

    // Once more, with other ids: the same machine.
    let again = it
        .store
        .ensure_builder(&acme.id, &new_builder(&h, "local", 10))
        .await;
    assert_eq!(again.expect("ensured"), Ensured::Existing(made.clone()));
    // Another region: another machine of the same app.
    let other = it
        .store
        .ensure_builder(&acme.id, &new_builder(&h, "far", 10))
        .await;
    let Ok(Ensured::Created(other)) = other else {
        panic!("{other:?}")
    };
    assert_eq!(other.app, made.app);

    // The pool is full: nothing of the third is left behind.
    let before = it.store.hosts().await.expect("hosts");
    assert_eq!(before[0].pool_promised, ByteSize(20));
    match it
        .store
        .ensure_builder(&acme.id, &new_builder(&h, "third", 6))
        .await
    {
        Err(StoreError::PoolFull {
            free_bytes: 5,
            wanted_bytes: 6,
        }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(it.store.hosts().await.expect("hosts"), before);
    assert_eq!(it.store.builders(&acme.id).await.expect("listed").len(), 2);
    assert_eq!(it.store.volumes(&acme.id).await.expect("listed").len(), 2);
}

#[tokio::test]
async fn a_thousand_ensures_make_one_builder() {
    let it = fresh().await;
    let (acme, h) = (
        org(&it.store, "acme").await,
        host(&it.store, "h", 1 << 40).await,
    );
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        let (store, org, new) = (
            it.store.clone(),
            acme.id.clone(),
            new_builder(&h, "local", 10),
        );
        tasks.spawn(async move { store.ensure_builder(&org, &new).await.expect("ensured") });
    }
    let (mut created, mut ids) = (0, std::collections::BTreeSet::new());
    while let Some(done) = tasks.join_next().await {
        match done.expect("no panic") {
            Ensured::Created(m) => {
                created += 1;
                ids.insert(m.id);
            }
            Ensured::Existing(m) => {
                ids.insert(m.id);
            }
        }
    }
    assert_eq!((created, ids.len()), (1, 1));
    assert_eq!(
        it.store.hosts().await.expect("hosts")[0].pool_promised,
        ByteSize(10)
    );
}

#[tokio::test]
async fn concurrent_promises_never_exceed_the_pool() {
    let it = fresh().await;
    let h = host(&it.store, "h", 100).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..40 {
        let acme = org(&it.store, &format!("org{n}")).await;
        let (store, new) = (it.store.clone(), new_builder(&h, "local", 7));
        tasks.spawn(async move { store.ensure_builder(&acme.id, &new).await });
    }
    let (mut made, mut full) = (0, 0);
    while let Some(done) = tasks.join_next().await {
        match done.expect("no panic") {
            Ok(_) => made += 1,
            Err(StoreError::PoolFull { .. }) => full += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!((made, full), (14, 26));
    assert_eq!(
        it.store.hosts().await.expect("hosts")[0].pool_promised,
        ByteSize(98)
    );
}

#[tokio::test]
async fn records_of_machines_are_fenced() {
    let it = fresh().await;
    let (acme, h) = (org(&it.store, "acme").await, host(&it.store, "h", 25).await);
    let made = builder(&it.store, &acme, &h).await;
    let record = |generation: u64| MachineRecord {
        generation: Generation(generation),
        intent: Intent::Stopped,
        state: MachineState::Crashed {
            generation: Generation(generation),
            failures: 2,
            retry_at: Timestamp(77),
        },
        failed_starts: 2,
        volume_replaced: true,
        last_error: Some("no".into()),
        notice: Some("look".into()),
        at: Timestamp(50),
    };
    it.store
        .record_machine(&acme.id, &made.id, &record(3))
        .await
        .expect("recorded");
    it.store
        .record_machine(&acme.id, &made.id, &record(3))
        .await
        .expect("recorded again");
    match it
        .store
        .record_machine(&acme.id, &made.id, &record(2))
        .await
    {
        Err(StoreError::Changed(What::Machine)) => {}
        other => panic!("{other:?}"),
    }
    let read = it.store.machine(&acme.id, &made.id).await.expect("there");
    let expected = Machine {
        generation: Generation(3),
        intent: Intent::Stopped,
        state: record(3).state,
        failed_starts: 2,
        volume_replaced: true,
        last_error: Some("no".into()),
        notice: Some("look".into()),
        updated_at: Timestamp(50),
        ..made
    };
    assert_eq!(read, expected);
    assert_eq!(
        it.store.all_machines().await.expect("listed"),
        vec![expected]
    );
}

#[tokio::test]
async fn a_replaced_volume_is_kept_and_counted_until_it_is_forgotten() {
    let it = fresh().await;
    let (acme, h) = (org(&it.store, "acme").await, host(&it.store, "h", 25).await);
    let made = builder(&it.store, &acme, &h).await;
    let (first, second) = (made.volume.clone(), VolumeId::from_entropy(entropy()));
    let replace = |old: VolumeId, new: VolumeId| {
        let (store, org, machine) = (it.store.clone(), acme.id.clone(), made.id.clone());
        async move {
            let at = Timestamp(12);
            store
                .replace_volume(&org, &machine, &old, VolumeState::Aside, &new, at)
                .await
        }
    };
    let new = replace(first.clone(), second.clone())
        .await
        .expect("replaced");
    assert_eq!(
        (&new.id, new.state, new.size),
        (&second, VolumeState::Planned, ByteSize(10))
    );
    assert_eq!(
        it.store
            .machine(&acme.id, &made.id)
            .await
            .expect("there")
            .volume,
        second
    );
    let aside = it
        .store
        .all_volumes(VolumeState::Aside)
        .await
        .expect("listed");
    assert_eq!(
        aside.iter().map(|v| &v.id).collect::<Vec<_>>(),
        vec![&first]
    );
    assert_eq!(
        it.store.hosts().await.expect("hosts")[0].pool_promised,
        ByteSize(20)
    );

    // From an old view: refused. With a full pool: refused, and nothing has changed.
    match replace(first.clone(), VolumeId::from_entropy(entropy())).await {
        Err(StoreError::Changed(What::Machine)) => {}
        other => panic!("{other:?}"),
    }
    match replace(second.clone(), VolumeId::from_entropy(entropy())).await {
        Err(StoreError::PoolFull { .. }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(
        it.store
            .machine(&acme.id, &made.id)
            .await
            .expect("there")
            .volume,
        second
    );

    match it.store.forget_volume(&acme.id, &second).await {
        Err(StoreError::InUse(What::Volume)) => {}
        other => panic!("{other:?}"),
    }
    it.store
        .forget_volume(&acme.id, &first)
        .await
        .expect("forgotten");
    it.store
        .forget_volume(&acme.id, &first)
        .await
        .expect("forgotten twice");
    assert_eq!(
        it.store.hosts().await.expect("hosts")[0].pool_promised,
        ByteSize(10)
    );
}

#[tokio::test]
async fn events_are_recorded_once_and_in_order() {
    let it = fresh().await;
    let (acme, h) = (org(&it.store, "acme").await, host(&it.store, "h", 25).await);
    let machine = builder(&it.store, &acme, &h).await;
    let made = build(&it.store, &acme, &machine).await;
    assert_eq!(
        (made.state, made.last_seq, made.spec.clone()),
        (BuildState::Pending, 0, spec())
    );
    let append = |events: Vec<NumberedEvent>| {
        let (store, org, id) = (it.store.clone(), acme.id.clone(), made.id.clone());
        async move {
            store
                .append_build_events(&org, &id, &events)
                .await
                .expect("recorded")
        }
    };
    assert_eq!(append((1..=3).map(event).collect()).await, 3);
    assert_eq!(append((2..=5).map(event).collect()).await, 5);
    assert_eq!(append(vec![]).await, 5);
    assert_eq!(append(vec![event(4)]).await, 5);
    let read = it
        .store
        .build_events(&acme.id, &made.id, 0)
        .await
        .expect("read");
    assert_eq!(read, (1..=5).map(event).collect::<Vec<_>>());
    let rest = it
        .store
        .build_events(&acme.id, &made.id, 4)
        .await
        .expect("read");
    assert_eq!(rest, vec![event(5)]);
    assert_eq!(
        it.store
            .build_events(&acme.id, &made.id, 5)
            .await
            .expect("read"),
        vec![]
    );
    let now = it.store.build(&acme.id, &made.id).await.expect("there");
    let bytes: usize = read
        .iter()
        .map(|e| serde_json::to_vec(e).expect("json").len())
        .sum();
    assert_eq!((now.last_seq, now.event_bytes), (5, bytes as u64));

    // Pages are bounded.
    append((6..=2000).map(event).collect()).await;
    let page = it
        .store
        .build_events(&acme.id, &made.id, 0)
        .await
        .expect("read");
    assert_eq!(page.len(), slipway_store::limits::EVENTS_READ_MAX as usize);
}

/// A caller may go away at any moment (its client hung up). The store must go on.
#[tokio::test(flavor = "multi_thread")]
async fn cut_verbs_leave_nothing_locked() {
    let it = fresh().await;
    let (acme, h) = (
        org(&it.store, "acme").await,
        host(&it.store, "h", 1 << 40).await,
    );
    let machine = builder(&it.store, &acme, &h).await;
    let made = build(&it.store, &acme, &machine).await;
    for n in 1..=3000u64 {
        let events = [event(n)];
        let new = new_builder(&h, "local", 10);
        let verbs = async {
            let _ = it
                .store
                .append_build_events(&acme.id, &made.id, &events)
                .await;
            let _ = it.store.ensure_builder(&acme.id, &new).await;
        };
        let hang_up = async {
            for _ in 0..n % 150 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = verbs => {}
            () = hang_up => {}
        }
    }
    let newest = [event(9000)];
    let last = it.store.append_build_events(&acme.id, &made.id, &newest);
    assert_eq!(last.await.expect("the store goes on"), 9000);
    let read = it.store.build(&acme.id, &made.id).await.expect("there");
    assert_eq!(read.last_seq, 9000, "what was recorded is not seen");
}

#[tokio::test]
async fn a_build_ends_once() {
    let it = fresh().await;
    let (acme, h) = (org(&it.store, "acme").await, host(&it.store, "h", 25).await);
    let machine = builder(&it.store, &acme, &h).await;
    let made = build(&it.store, &acme, &machine).await;
    it.store
        .mark_build_running(&acme.id, &made.id)
        .await
        .expect("marked");
    assert_eq!(it.store.unfinished_builds().await.expect("listed").len(), 1);
    let first = it
        .store
        .finish_build(&acme.id, &made.id, &BuildOutcome::Cancelled, Timestamp(20));
    let first = first.await.expect("ended");
    assert_eq!(
        (first.state, first.ended_at),
        (BuildState::Cancelled, Some(Timestamp(20)))
    );
    let outcome = BuildOutcome::Succeeded {
        image_id: "sha256:1".into(),
        digest: None,
        size_bytes: 1,
        build_ms: 2,
        push_ms: 3,
    };
    let second = it
        .store
        .finish_build(&acme.id, &made.id, &outcome, Timestamp(21))
        .await;
    assert_eq!(second.expect("no error"), first);
    it.store
        .mark_build_running(&acme.id, &made.id)
        .await
        .expect("no error");
    assert_eq!(
        it.store.build(&acme.id, &made.id).await.expect("there"),
        first
    );
    assert_eq!(it.store.unfinished_builds().await.expect("listed"), vec![]);
}

#[tokio::test]
async fn old_builds_go_with_their_events_and_running_ones_stay() {
    let it = fresh().await;
    let (acme, h) = (org(&it.store, "acme").await, host(&it.store, "h", 60).await);
    let other = org(&it.store, "other").await;
    let machine = builder(&it.store, &acme, &h).await;
    let neighbour = builder(&it.store, &other, &h).await;
    let theirs = build(&it.store, &other, &neighbour).await;
    let mut made = Vec::new();
    for _ in 0..6 {
        made.push(build(&it.store, &acme, &machine).await);
    }
    // The first still runs; the others ended at 11, 12, ..., and so did the neighbour's.
    let end = async |org: &Org, build: &Build, at| {
        it.store
            .append_build_events(&org.id, &build.id, &[event(1), event(2)])
            .await
            .expect("recorded");
        it.store
            .finish_build(&org.id, &build.id, &BuildOutcome::Cancelled, Timestamp(at))
            .await
            .expect("ended");
    };
    for (build, at) in made.iter().zip(10..).skip(1) {
        end(&acme, build, at).await;
    }
    end(&other, &theirs, 11).await;
    let delete = async |keep, before, max| {
        it.store
            .delete_old_builds(&acme.id, keep, Timestamp(before), max)
            .await
            .expect("deleted")
    };
    assert_eq!(delete(6, 11, 10).await, 0, "nothing is too old or too much");
    assert_eq!(delete(6, 12, 10).await, 1, "one is too old");
    assert_eq!(delete(2, 0, 1).await, 1, "no more at a time than asked");
    assert_eq!(
        delete(2, 0, 10).await,
        1,
        "all but the newest two, and the running one"
    );
    assert_eq!(delete(2, 0, 10).await, 0);
    let all = BuildFilter {
        limit: 10,
        ..BuildFilter::default()
    };
    let left = it.store.builds(&acme.id, &all).await.expect("listed");
    let left: Vec<_> = left.into_iter().map(|build| build.id).collect();
    assert_eq!(
        left,
        [&made[5].id, &made[4].id, &made[0].id].map(Clone::clone)
    );
    is_missing(
        it.store.build_events(&acme.id, &made[1].id, 0).await,
        What::Build,
    );
    let kept = it.store.build_events(&other.id, &theirs.id, 0).await;
    assert_eq!(kept.expect("there").len(), 2);
}

#[tokio::test]
async fn builds_are_listed_newest_first_in_pages() {
    let it = fresh().await;
    let (acme, h) = (org(&it.store, "acme").await, host(&it.store, "h", 25).await);
    let machine = builder(&it.store, &acme, &h).await;
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(build(&it.store, &acme, &machine).await);
    }
    made.reverse();
    let mut filter = BuildFilter {
        limit: 2,
        ..BuildFilter::default()
    };
    assert_eq!(
        it.store.builds(&acme.id, &filter).await.expect("listed"),
        made[..2]
    );
    filter.before = Some(made[1].id.clone());
    assert_eq!(
        it.store.builds(&acme.id, &filter).await.expect("listed"),
        made[2..4]
    );
    filter.app = Some(AppId::from_entropy(entropy()));
    assert_eq!(
        it.store.builds(&acme.id, &filter).await.expect("listed"),
        vec![]
    );
}

#[tokio::test]
async fn credentials_are_replaced_by_registry() {
    let it = fresh().await;
    let acme = org(&it.store, "acme").await;
    let credential = |sealed: &[u8]| SealedCredential {
        id: CredentialId::from_entropy(entropy()),
        org: acme.id.clone(),
        registry: "registry.example".into(),
        username: "me".into(),
        sealed: sealed.to_vec(),
        created_at: Timestamp(3),
    };
    it.store
        .put_credential(&credential(b"old"))
        .await
        .expect("recorded");
    let new = credential(b"new");
    it.store.put_credential(&new).await.expect("replaced");
    assert_eq!(
        it.store.credentials(&acme.id).await.expect("listed"),
        vec![new.clone()]
    );
    let found = it
        .store
        .credential_for(&acme.id, "registry.example")
        .await
        .expect("read");
    assert_eq!(found, Some(new.clone()));
    assert_eq!(
        it.store
            .credential_for(&acme.id, "other.example")
            .await
            .expect("read"),
        None
    );
    it.store
        .delete_credential(&acme.id, &new.id)
        .await
        .expect("removed");
    is_missing(
        it.store.delete_credential(&acme.id, &new.id).await,
        What::Credential,
    );
    assert!(!format!("{new:?}").contains("me\""), "Debug shows too much");
}

#[tokio::test]
async fn the_first_value_of_a_key_stays() {
    let it = fresh().await;
    assert_eq!(it.store.meta("ca").await.expect("read"), None);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..20u8 {
        let store = it.store.clone();
        tasks.spawn(async move { store.put_meta_if_absent("ca", &[n]).await.expect("kept") });
    }
    let mut seen = std::collections::BTreeSet::new();
    while let Some(value) = tasks.join_next().await {
        seen.insert(value.expect("no panic"));
    }
    assert_eq!(seen.len(), 1);
    let ca = seen.pop_first().expect("one");
    assert_eq!(it.store.meta("ca").await.expect("read"), Some(ca.clone()));

    let store = &it.store;
    for key in ["k/b", "k/a", "k_c", "K/d"] {
        store.put_meta_if_absent(key, b"1").await.expect("kept");
    }
    let under: Vec<_> = store.meta_under("k/").await.expect("listed");
    let one = |key: &str| (key.to_owned(), b"1".to_vec());
    assert_eq!(under, [one("k/a"), one("k/b")]);
    assert!(!store.replace_meta("k/a", b"2", b"3").await.expect("asked"));
    assert!(store.replace_meta("k/a", b"1", b"3").await.expect("asked"));
    assert!(!store.replace_meta("k/x", b"1", b"3").await.expect("asked"));
    assert_eq!(store.meta("k/a").await.expect("read"), Some(b"3".to_vec()));
    for _ in 0..2 {
        store.forget_meta("k/a").await.expect("forgotten");
        assert_eq!(store.meta("k/a").await.expect("read"), None);
    }
    assert_eq!(store.meta("ca").await.expect("read"), Some(ca));
}

/// Invariant 3: with every verb and another org's ids, one sees and changes nothing.
#[tokio::test]
async fn one_org_cannot_reach_anothers_rows_by_any_verb() {
    let it = fresh().await;
    let s = &it.store;
    let (victim, thief) = (org(s, "victim").await, org(s, "thief").await);
    let h = host(s, "h", 100).await;
    let machine = builder(s, &victim, &h).await;
    let own = builder(s, &thief, &h).await;
    assert_ne!(own.id, machine.id);
    let made = build(s, &victim, &machine).await;
    s.append_build_events(&victim.id, &made.id, &[event(1)])
        .await
        .expect("recorded");
    let credential = SealedCredential {
        id: CredentialId::from_entropy(entropy()),
        org: victim.id.clone(),
        registry: "registry.example".into(),
        username: "me".into(),
        sealed: vec![1],
        created_at: Timestamp(3),
    };
    s.put_credential(&credential).await.expect("recorded");
    let all = || async {
        (
            s.all_machines().await.expect("listed"),
            s.volumes(&victim.id).await.expect("listed"),
            s.build(&victim.id, &made.id).await.expect("there"),
            s.credentials(&victim.id).await.expect("listed"),
        )
    };
    let before = all().await;
    steal_machines(s, &thief.id, &machine).await;
    steal_builds(s, &thief.id, &made).await;
    for (app, on) in [(&machine.app, &own.id), (&own.app, &machine.id)] {
        let new = NewBuild {
            id: BuildId::from_entropy(entropy()),
            app: app.clone(),
            machine: on.clone(),
            spec: spec(),
            at: Timestamp(99),
        };
        is_missing(s.create_build(&thief.id, &new).await, What::App);
    }
    let found = s.credential_for(&thief.id, "registry.example").await;
    assert_eq!(found.expect("read"), None);
    let gone = s.delete_credential(&thief.id, &credential.id).await;
    is_missing(gone, What::Credential);
    assert_eq!(s.credentials(&thief.id).await.expect("read"), vec![]);
    assert_eq!(before, all().await);
}

/// Tries every verb on machines, apps and volumes with ids of a victim.
async fn steal_machines(s: &SqliteStore, t: &OrgId, machine: &Machine) {
    let at = Timestamp(99);
    is_missing(s.app(t, &machine.app).await, What::App);
    is_missing(s.delete_app(t, &machine.app).await, What::App);
    is_missing(s.machine(t, &machine.id).await, What::Machine);
    is_missing(s.volume(t, &machine.volume).await, What::Volume);
    let condemned = VolumeState::Condemned;
    is_missing(
        s.set_volume_state(t, &machine.volume, condemned).await,
        What::Volume,
    );
    s.forget_volume(t, &machine.volume)
        .await
        .expect("nothing to forget");
    let record = MachineRecord {
        generation: Generation(9),
        intent: Intent::Stopped,
        state: MachineState::Stopped,
        failed_starts: 0,
        volume_replaced: false,
        last_error: None,
        notice: None,
        at,
    };
    is_missing(
        s.record_machine(t, &machine.id, &record).await,
        What::Machine,
    );
    let new = VolumeId::from_entropy(entropy());
    let (old, aside) = (&machine.volume, VolumeState::Aside);
    is_missing(
        s.replace_volume(t, &machine.id, old, aside, &new, at).await,
        What::Machine,
    );
}

/// Tries every verb on builds with the id of a victim's.
async fn steal_builds(s: &SqliteStore, t: &OrgId, made: &Build) {
    let at = Timestamp(99);
    is_missing(s.build(t, &made.id).await, What::Build);
    is_missing(s.build_events(t, &made.id, 0).await, What::Build);
    is_missing(
        s.append_build_events(t, &made.id, &[event(2)]).await,
        What::Build,
    );
    is_missing(
        s.finish_build(t, &made.id, &BuildOutcome::Cancelled, at)
            .await,
        What::Build,
    );
    s.mark_build_running(t, &made.id)
        .await
        .expect("nothing to mark");
    let filter = BuildFilter {
        before: Some(made.id.clone()),
        limit: 10,
        app: None,
    };
    assert_eq!(s.builds(t, &filter).await.expect("read"), vec![]);
}
