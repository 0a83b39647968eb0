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
