//! Tokens.

use crate::common::*;

#[tokio::test]
async fn tokens_are_found_by_id_whoever_has_them() {
    let it = fresh().await;
    let acme = org(&it.store, "acme").await;
    let mut all = Vec::new();
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
        let read = it.store.token(&token.id).await.expect("read");
        assert_eq!(read, Some(token.clone()));
        all.push(token);
    }
    // Many are asked for at once, some of which are not there.
    let mut ids: Vec<TokenId> = all.iter().map(|token| token.id.clone()).collect();
    ids.extend((0..2000).map(|_| TokenId::from_entropy(entropy())));
    let mut found = it.store.tokens_by_id(&ids).await.expect("read");
    found.sort_by_key(|token| token.org.is_none());
    assert_eq!(found, all);
    assert_eq!(it.store.tokens_by_id(&[]).await.expect("read"), []);
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
        it.store.tokens(Some(&acme.id), &ALL).await.expect("read"),
        vec![ours.clone()]
    );
    assert_eq!(
        it.store.tokens(None, &ALL).await.expect("read"),
        vec![admin]
    );
    assert_eq!(
        it.store.tokens(Some(&rival.id), &ALL).await.expect("read"),
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

const ALL: TokenPage = TokenPage {
    before: None,
    limit: u32::MAX,
};

/// A token that cannot be listed cannot be revoked by whoever does not know its id.
#[tokio::test]
async fn every_token_is_on_one_page_and_on_no_other() {
    let it = fresh().await;
    let acme = org(&it.store, "acme").await;
    let mut made = Vec::new();
    for n in 0..23_u8 {
        let token = Token {
            id: TokenId::from_entropy(entropy()),
            org: Some(acme.id.clone()),
            app: None,
            name: "many".to_owned(),
            role: TokenRole::Read,
            // Several of one moment.
            created_at: Timestamp(u64::from(n / 5)),
            expires_at: None,
            revoked_at: None,
            last_used_at: None,
        };
        let hash = SecretHash([n; 32]);
        it.store
            .create_token(&token, &hash)
            .await
            .expect("recorded");
        made.push(token.id);
    }
    let mut seen = Vec::new();
    loop {
        let page = TokenPage {
            before: seen.last().cloned(),
            limit: 4,
        };
        let page = it.store.tokens(Some(&acme.id), &page).await.expect("read");
        if page.is_empty() {
            break;
        }
        assert!(page.len() <= 4);
        seen.extend(page.into_iter().map(|token| token.id));
    }
    seen.sort();
    made.sort();
    assert_eq!(seen, made);
}
