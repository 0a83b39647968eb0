//! The installation's own values.

use crate::common::*;

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
