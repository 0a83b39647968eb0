//! Orgs, and a store that is opened again.

use crate::common::*;

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

/// Two who change different things of an org at once both get what they want.
#[tokio::test]
async fn changes_of_different_things_do_not_undo_each_other() {
    let it = fresh().await;
    let acme = org(&it.store, "acme").await;
    let nothing = OrgChange::default();
    let changes = [
        OrgChange {
            cpu_millis: Some(7000),
            ..nothing.clone()
        },
        OrgChange {
            memory: Some(ByteSize::gib(7)),
            ..nothing.clone()
        },
        OrgChange {
            volume: Some(ByteSize::gib(77)),
            ..nothing.clone()
        },
        OrgChange {
            builds_kept: Some(7),
            ..nothing.clone()
        },
        OrgChange {
            builds_age: Some(Duration::from_secs(77_777)),
            ..nothing
        },
    ];
    for change in &changes {
        it.store
            .update_org(&acme.id, change)
            .await
            .expect("changed");
    }
    let now = it.store.org(&acme.id).await.expect("there");
    let size = BuilderSize {
        cpu_millis: 7000,
        memory: ByteSize::gib(7),
        volume: ByteSize::gib(77),
    };
    let retention = BuildRetention {
        count: 7,
        age: Duration::from_secs(77_777),
    };
    assert_eq!((now.builder_size, now.retention), (size, retention));
}

#[tokio::test]
async fn whose_something_is_can_be_told_from_its_id_alone() {
    let it = fresh().await;
    let (acme, rival) = (org(&it.store, "acme").await, org(&it.store, "rival").await);
    let h = host(&it.store, "h", 1 << 40).await;
    let machine = builder(&it.store, &acme, &h).await;
    let made = build(&it.store, &acme, &machine).await;
    builder(&it.store, &rival, &h).await;
    let owner = |of| it.store.owner(of);
    let mine = Some(acme.id.clone());
    assert_eq!(owner(Owned::Build(&made.id)).await.expect("read"), mine);
    assert_eq!(
        owner(Owned::Volume(&machine.volume)).await.expect("read"),
        mine
    );
    let app = it.store.app(&acme.id, &made.app).await.expect("there");
    assert_eq!(owner(Owned::App(&app.name)).await.expect("read"), mine);
    let nobody = SnapshotId::from_entropy(entropy());
    assert_eq!(owner(Owned::Snapshot(&nobody)).await.expect("read"), None);
    assert_eq!(
        owner(Owned::SnapshotsOf(&machine.volume))
            .await
            .expect("read"),
        None
    );
}
