//! What an org may have at most, held in the very transaction that would make one more.

use crate::common::*;
use slipway_core::ceilings::PoolShare;
use slipway_core::quota::{
    BUILDER_BUILDS_UNDER_WAY_MAX, ORG_APPS_MAX, ORG_CREDENTIALS_MAX, ORG_TOKENS_ENDED_KEPT,
    ORG_TOKENS_MAX, QuotaError,
};

fn refused<T: std::fmt::Debug>(result: Result<T, StoreError>) -> QuotaError {
    match result {
        Err(error @ StoreError::Quota(_)) => {
            assert_eq!(error.kind(), ErrorKind::Limit);
            let StoreError::Quota(quota) = error else {
                unreachable!("matched above")
            };
            quota
        }
        other => panic!("not refused: {other:?}"),
    }
}

fn app(org: &Org, name: &str) -> App {
    App {
        id: AppId::from_entropy(entropy()),
        org: org.id.clone(),
        name: name.into(),
        role: AppRole::User,
        billable: true,
        created_at: Timestamp(1),
    }
}

#[tokio::test]
async fn apps_are_bounded() {
    let it = fresh().await;
    let (acme, rival) = (org(&it.store, "acme").await, org(&it.store, "rival").await);
    for n in 0..ORG_APPS_MAX {
        let app = app(&acme, &format!("app-{n}"));
        it.store.create_app(&app).await.expect("recorded");
    }
    let more = it.store.create_app(&app(&acme, "more")).await;
    assert_eq!(refused(more), QuotaError::Apps { have: ORG_APPS_MAX });
    it.store
        .create_app(&app(&rival, "more"))
        .await
        .expect("another org's");
}

#[tokio::test]
async fn good_tokens_are_bounded_and_ended_ones_are_forgotten() {
    let it = fresh().await;
    let acme = org(&it.store, "acme").await;
    let next = AtomicU64::new(1);
    let make = async |expires_at: Option<Timestamp>| {
        let n = next.fetch_add(1, Ordering::Relaxed);
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&n.to_be_bytes());
        let token = Token {
            id: TokenId::from_entropy(entropy()),
            org: Some(acme.id.clone()),
            app: None,
            name: "ci".into(),
            role: TokenRole::Deploy,
            created_at: Timestamp(n),
            expires_at,
            revoked_at: None,
            last_used_at: None,
        };
        let made = it.store.create_token(&token, &SecretHash(hash)).await;
        made.map(|()| token.id)
    };
    // Those that are over do not count, and only the newest are kept.
    let first = make(Some(Timestamp(1))).await.expect("recorded");
    for _ in 0..ORG_TOKENS_ENDED_KEPT + 1 {
        make(Some(Timestamp(1))).await.expect("recorded");
    }
    assert_eq!(it.store.token(&first).await.expect("read"), None);
    let mut good = Vec::new();
    for _ in 0..ORG_TOKENS_MAX {
        good.push(make(None).await.expect("recorded"));
    }
    let more = make(None).await;
    assert_eq!(
        refused(more),
        QuotaError::Tokens {
            have: ORG_TOKENS_MAX
        }
    );
    // All of both can be listed.
    let all = TokenPage {
        before: None,
        limit: u32::MAX,
    };
    let listed = it.store.tokens(Some(&acme.id), &all).await;
    let listed = listed.expect("listed").len();
    let most = usize::try_from(ORG_TOKENS_MAX + ORG_TOKENS_ENDED_KEPT).expect("a number");
    assert_eq!(listed, most);
    it.store
        .revoke_token(Some(&acme.id), &good[0], Timestamp(9999))
        .await
        .expect("revoked");
    make(None).await.expect("there is room again");
}

#[tokio::test]
async fn registry_credentials_are_bounded() {
    let it = fresh().await;
    let acme = org(&it.store, "acme").await;
    let credential = |registry: String| SealedCredential {
        id: CredentialId::from_entropy(entropy()),
        org: acme.id.clone(),
        registry,
        username: "me".into(),
        sealed: vec![1],
        created_at: Timestamp(3),
    };
    let registry = |n: u32| format!("r{n}.example");
    for n in 0..ORG_CREDENTIALS_MAX {
        let credential = credential(registry(n));
        it.store.put_credential(&credential).await.expect("stored");
    }
    let more = it.store.put_credential(&credential(registry(9999))).await;
    assert!(matches!(refused(more), QuotaError::Credentials { .. }));
    it.store
        .put_credential(&credential(registry(5)))
        .await
        .expect("one is replaced");
}

#[tokio::test]
async fn builds_under_way_are_bounded() {
    let it = fresh().await;
    let acme = org(&it.store, "acme").await;
    let h = host(&it.store, "h", 1000).await;
    let machine = builder(&it.store, &acme, &h).await;
    let shop = app(&acme, "shop");
    it.store.create_app(&shop).await.expect("an app");
    let start = async || {
        let new = NewBuild {
            id: BuildId::from_entropy(entropy()),
            app: shop.id.clone(),
            machine: machine.id.clone(),
            spec: spec(),
            source: BuildSource::Docker,
            asked_by: Some("ci".into()),
            at: Timestamp(1),
        };
        it.store.create_build(&acme.id, &new).await
    };
    let first = start().await.expect("recorded");
    for _ in 1..BUILDER_BUILDS_UNDER_WAY_MAX {
        start().await.expect("recorded");
    }
    let have = BUILDER_BUILDS_UNDER_WAY_MAX;
    assert_eq!(refused(start().await), QuotaError::BuilderBuilds { have });
    it.store
        .finish_build(&acme.id, &first.id, &BuildOutcome::Cancelled, Timestamp(2))
        .await
        .expect("ended");
    start().await.expect("there is room again");
}

/// One org does not use a pool up: others still get their builders.
#[tokio::test]
async fn an_org_is_promised_its_share_of_a_pool() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = SqliteStore::open(&dir.path().join("slipway.db")).await;
    let store = store.expect("a store").sharing_pools(PoolShare {
        bytes: ByteSize(120),
        percent: 60,
        cache: ByteSize(10),
    });
    let (acme, rival) = (org(&store, "acme").await, org(&store, "rival").await);
    let (h, other) = (host(&store, "h", 100).await, host(&store, "i", 200).await);
    let machine = builder(&store, &acme, &h).await;
    let volume = ready_volume(&store, &acme, &h, 40).await;
    let more = store.create_volume(&acme.id, &new_volume(&h, 11)).await;
    assert!(matches!(refused(more), QuotaError::PoolPercent { .. }));
    store
        .create_volume(&acme.id, &new_volume(&h, 10))
        .await
        .expect("all of its share");
    let grown = store.extend_volume(&acme.id, &volume, ByteSize(41)).await;
    assert!(matches!(refused(grown), QuotaError::PoolPercent { .. }));
    let kept = store
        .create_snapshot(&acme.id, &new_snapshot(&volume, 1))
        .await;
    assert!(matches!(refused(kept), QuotaError::PoolPercent { .. }));
    // A cache of the usual size is had all the same, also in place of a damaged one; and so is another org's builder.
    let new = VolumeId::from_entropy(entropy());
    store
        .replace_volume(
            &acme.id,
            &machine.id,
            &machine.volume,
            VolumeState::Aside,
            &new,
            Timestamp(10),
        )
        .await
        .expect("replaced");
    builder(&store, &rival, &h).await;
    // 20 are left. A second org that takes them has more than it leaves: nothing of the last tenth is for it.
    let rest = store.create_volume(&rival.id, &new_volume(&h, 11)).await;
    assert!(matches!(refused(rest), QuotaError::PoolReserve { .. }));
    ready_volume(&store, &rival, &h, 10).await;
    let last = store.create_volume(&rival.id, &new_volume(&h, 1)).await;
    assert!(matches!(refused(last), QuotaError::PoolReserve { .. }));
    let small = org(&store, "small").await;
    store
        .create_volume(&small.id, &new_volume(&h, 5))
        .await
        .expect("as much as it leaves");
    // Elsewhere, until it has all that it may have in all.
    store
        .create_volume(&acme.id, &new_volume(&other, 50))
        .await
        .expect("on another host");
    let more = store.create_volume(&acme.id, &new_volume(&other, 1)).await;
    assert!(matches!(refused(more), QuotaError::PoolBytes { .. }));
    let large = store
        .ensure_builder(&rival.id, &new_builder(&other, "elsewhere", 130))
        .await;
    assert!(matches!(refused(large), QuotaError::PoolBytes { .. }));
}
