//! A store that is away is asked again until it is back.
//!
//! Must not know: what is asked of it.

use crate::limits::{CONNECT_RETRY_MAX, CONNECT_RETRY_MIN};
use slipway_store::{ErrorKind, StoreError};

/// Does it until the store has answered: whatever it answers, but that it is not available.
pub(super) async fn until_available<T, F>(
    does: impl Fn() -> F,
    tell: impl Fn(&StoreError),
) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut pause = CONNECT_RETRY_MIN;
    loop {
        match does().await {
            Err(error) if error.kind() == ErrorKind::Unavailable => tell(&error),
            answered => return answered,
        }
        tokio::time::sleep(pause).await;
        pause = CONNECT_RETRY_MAX.min(pause * 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use slipway_core::id::{BuildId, OrgId};
    use slipway_store::{SqliteStore, Store};
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn a_store_that_is_away_is_asked_until_it_answers() {
        let dir = tempfile::tempdir().unwrap();
        let away = SqliteStore::open(&dir.path().join("away.db"))
            .await
            .unwrap();
        away.close().await;
        let back = SqliteStore::open(&dir.path().join("back.db"))
            .await
            .unwrap();
        let (org, build) = (OrgId::from_entropy([1; 10]), BuildId::from_entropy([2; 10]));
        let (asked, told) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let answered = until_available(
            || {
                let store = match asked.fetch_add(1, Ordering::Relaxed) {
                    0..3 => &away,
                    _ => &back,
                };
                store.append_build_events(&org, &build, &[])
            },
            |_| {
                told.fetch_add(1, Ordering::Relaxed);
            },
        )
        .await;
        let error = answered.expect_err("no such build");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(told.into_inner(), 3);
        back.close().await;
    }
}
