//! Registry credentials.

use crate::common::*;

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
