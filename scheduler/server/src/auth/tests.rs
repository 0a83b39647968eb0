//! What a flood of wrong credentials costs: nobody's access, and no log.

use super::*;
use crate::bounds::{AUTH_FAILURES_MAX, LOG_LINES_MAX};
use slipway_store::SqliteStore;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Counts the lines that say that a credential was refused.
#[derive(Clone, Default)]
struct Lines(Arc<AtomicU32>);

struct Message(bool);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0 |= field.name() == "message" && format!("{value:?}") == "credential refused";
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::INFO
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut message = Message(false);
        event.record(&mut message);
        self.0.fetch_add(u32::from(message.0), Ordering::SeqCst);
    }

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}

#[tokio::test]
async fn a_flood_of_wrong_credentials_shuts_nobody_out_and_fills_no_log() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&dir.path().join("db")).await.unwrap();
    let secret = Secret::draw().unwrap();
    let token = Token {
        id: TokenId::from_entropy([1; 10]),
        org: None,
        app: None,
        name: "good".to_owned(),
        role: TokenRole::Admin,
        created_at: now(),
        expires_at: None,
        revoked_at: None,
        last_used_at: None,
    };
    store.create_token(&token, &secret.hash()).await.unwrap();
    let authenticator = Authenticator::new(Arc::new(store));
    let credential = |secret| Credential::Secret { secret, app: None };
    let peer = Ipv4Addr::LOCALHOST.into();

    let lines = Lines::default();
    let written = Arc::clone(&lines.0);
    let guard = tracing::subscriber::set_default(lines);
    let begin = Instant::now();
    let mut told_why = 0;
    for _ in 0..20 * LOG_LINES_MAX {
        let wrong = credential(Secret::draw().unwrap());
        match authenticator.authenticate(&wrong, peer).await {
            AuthOutcome::Denied(Denial::Unknown) => told_why += 1,
            AuthOutcome::Denied(Denial::TooManyFailures) => {}
            other @ (AuthOutcome::Allowed(_)
            | AuthOutcome::Denied(_)
            | AuthOutcome::Unavailable) => panic!("{other:?}"),
        }
    }
    drop(guard);
    let seconds = u32::try_from(begin.elapsed().as_secs()).unwrap() + 1;
    let written = written.load(Ordering::SeqCst);
    assert!(written >= LOG_LINES_MAX, "{written}");
    assert!(
        written <= LOG_LINES_MAX + seconds,
        "{written} in {seconds} s"
    );
    assert!(told_why >= AUTH_FAILURES_MAX, "{told_why}");
    assert!(
        told_why <= AUTH_FAILURES_MAX + seconds,
        "{told_why} in {seconds} s"
    );
    let good = authenticator.authenticate(&credential(secret), peer).await;
    assert!(matches!(good, AuthOutcome::Allowed(_)), "{good:?}");
}
