//! Builders, their fencing, and the pool.

use crate::common::*;

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
    let record = |generation: u64, revision: u64| MachineRecord {
        revision,
        generation: Generation(generation),
        intent: Some(Intent::Stopped),
        state: MachineState::Crashed {
            generation: Generation(generation),
            failures: 2,
            retry_at: Timestamp(77),
        },
        failed_starts: 2,
        volume_replaced: true,
        last_error: Some("no".into()),
        notice: Some("look".into()),
        cpu_millis: 3000,
        memory: ByteSize::gib(6),
        at: Timestamp(50),
    };
    it.store
        .record_machine(&acme.id, &made.id, &record(3, 1))
        .await
        .expect("recorded");
    it.store
        .record_machine(&acme.id, &made.id, &record(3, 2))
        .await
        .expect("recorded again");
    match it
        .store
        .record_machine(&acme.id, &made.id, &record(2, 3))
        .await
    {
        Err(StoreError::Changed(What::Machine)) => {}
        other => panic!("{other:?}"),
    }
    let read = it.store.machine(&acme.id, &made.id).await.expect("there");
    let expected = Machine {
        revision: 2,
        generation: Generation(3),
        intent: Intent::Stopped,
        state: record(3, 2).state,
        failed_starts: 2,
        volume_replaced: true,
        last_error: Some("no".into()),
        notice: Some("look".into()),
        size: BuilderSize {
            cpu_millis: 3000,
            memory: ByteSize::gib(6),
            ..made.size
        },
        updated_at: Timestamp(50),
        ..made
    };
    assert_eq!(read, expected);
    assert_eq!(
        it.store.all_machines().await.expect("listed"),
        vec![expected]
    );
}

/// Two who record the same machine are not always served in the order in which they looked at it.
#[tokio::test]
async fn a_record_that_comes_late_does_not_replace_a_later_one() {
    let it = fresh().await;
    let (acme, h) = (org(&it.store, "acme").await, host(&it.store, "h", 25).await);
    let made = builder(&it.store, &acme, &h).await;
    let record = |revision, intent, state| MachineRecord {
        revision,
        generation: Generation(1),
        intent,
        state,
        failed_starts: 0,
        volume_replaced: false,
        last_error: None,
        notice: None,
        cpu_millis: 1000,
        memory: ByteSize::gib(1),
        at: Timestamp(50),
    };
    let running = MachineState::Running {
        generation: Generation(1),
    };
    let earlier = record(1, Some(Intent::Wanted), running);
    let later = record(2, Some(Intent::Stopped), MachineState::Stopped);
    let store = |record| it.store.record_machine(&acme.id, &made.id, record);
    store(&later).await.expect("recorded");
    match store(&earlier).await {
        Err(StoreError::Changed(What::Machine)) => {}
        other => panic!("{other:?}"),
    }
    let read = async || it.store.machine(&acme.id, &made.id).await.expect("there");
    let now = read().await;
    assert_eq!(
        (now.intent, now.state),
        (Intent::Stopped, MachineState::Stopped)
    );

    // Somebody wants it; whoever says only what it does does not undo that.
    let new = new_builder(&h, "local", 10);
    it.store
        .ensure_builder(&acme.id, &new)
        .await
        .expect("wanted");
    store(&record(3, None, MachineState::Stopped))
        .await
        .expect("recorded");
    assert_eq!(
        (read().await.intent, read().await.revision),
        (Intent::Wanted, 3)
    );
}
