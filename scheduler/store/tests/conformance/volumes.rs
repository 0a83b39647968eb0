//! Volumes: what is promised, and what becomes of it.

use crate::common::*;

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
