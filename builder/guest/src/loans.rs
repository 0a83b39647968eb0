//! Tokens for pushes whose credential the control plane keeps: what is wanted, told when it asks, and what it answers.
//!
//! The control plane may go away and come back: a wish is told again until it is answered. It must not know how a push is done, nor what
//! is asked of a registry.

use crate::limits::{LOAN_LOOK_MAX, LOAN_WAIT_MAX, LOAN_WISHES_MAX};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use slipway_core::guest_api::{Loan, LoanAnswer, LoanWish};
use slipway_registry_push as registry;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};

/// All loans that may be asked for something.
#[derive(Debug, Default)]
pub(crate) struct Loans {
    open: Mutex<HashMap<String, Arc<Wishes>>>,
}

/// What one build or push wants.
#[derive(Debug, Default)]
struct Wishes {
    state: Mutex<State>,
    more: Notify,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    waiting: BTreeMap<u64, (LoanWish, oneshot::Sender<Loan>)>,
}

/// The right to wish. When it is dropped there will be no more wishes.
#[derive(Debug)]
pub(crate) struct Borrower {
    loans: Arc<Loans>,
    id: String,
    wishes: Arc<Wishes>,
    registries: Vec<String>,
}

impl Drop for Borrower {
    fn drop(&mut self) {
        lock(&self.loans.open).remove(&self.id);
        self.wishes.more.notify_waiters();
    }
}

impl Loans {
    /// Begins a loan under an id that the control plane knows, for registries that it has named.
    pub(crate) fn begin(self: &Arc<Self>, id: String, registries: Vec<String>) -> Borrower {
        let wishes: Arc<Wishes> = Arc::default();
        lock(&self.open).insert(id.clone(), wishes.clone());
        Borrower {
            loans: self.clone(),
            id,
            wishes,
            registries,
        }
    }

    /// Takes an answer, and gives the oldest wish that has none; `Ok(None)` when there was none for a while.
    ///
    /// # Errors
    /// There is no such loan any more.
    pub(crate) async fn turn(
        &self,
        id: &str,
        answer: Option<LoanAnswer>,
    ) -> Result<Option<LoanWish>, Over> {
        let wishes = lock(&self.open).get(id).cloned().ok_or(Over)?;
        if let Some(LoanAnswer { number, loan }) = answer
            && let Some((_, waiting)) = lock(&wishes.state).waiting.remove(&number)
        {
            // Who has given up waiting needs none.
            let _ = waiting.send(loan);
        }
        let look = async {
            loop {
                let more = wishes.more.notified();
                tokio::pin!(more);
                more.as_mut().enable();
                if let Some((wish, _)) = lock(&wishes.state).waiting.values().next() {
                    return Ok(wish.clone());
                }
                if !lock(&self.open).contains_key(id) {
                    return Err(Over);
                }
                more.await;
            }
        };
        match tokio::time::timeout(LOAN_LOOK_MAX, look).await {
            Ok(wish) => wish.map(Some),
            Err(_elapsed) => Ok(None),
        }
    }
}

/// The loan is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Over;

impl Borrower {
    /// Lends for pushes to one registry, if the control plane keeps its credential.
    pub(crate) fn lender(&self, registry: &str) -> Option<Arc<dyn registry::Lender>> {
        let is_named = self
            .registries
            .iter()
            .any(|named| named.eq_ignore_ascii_case(registry));
        is_named.then(|| {
            Arc::new(Lender {
                wishes: self.wishes.clone(),
                registry: registry.to_owned(),
            }) as Arc<dyn registry::Lender>
        })
    }
}

#[derive(Debug)]
struct Lender {
    wishes: Arc<Wishes>,
    registry: String,
}

impl Lender {
    fn wish(&self, scope: &registry::Scope) -> Option<oneshot::Receiver<Loan>> {
        let mut state = lock(&self.wishes.state);
        if state.waiting.len() >= LOAN_WISHES_MAX {
            return None;
        }
        state.last += 1;
        let wish = LoanWish {
            number: state.last,
            registry: self.registry.clone(),
            repository: scope.repository.clone(),
            mount_from: scope.mount_from.clone(),
        };
        let (sender, answered) = oneshot::channel();
        state.waiting.insert(wish.number, (wish, sender));
        drop(state);
        self.wishes.more.notify_waiters();
        Some(answered)
    }
}

impl registry::Lender for Lender {
    fn lend<'a>(
        &'a self,
        scope: &'a registry::Scope,
    ) -> BoxFuture<'a, Result<registry::Lent, registry::NotLent>> {
        async move {
            let failed = |why: &str| registry::NotLent::Failed(why.to_owned());
            let answered = self
                .wish(scope)
                .ok_or_else(|| failed("too many are waited for"))?;
            match tokio::time::timeout(LOAN_WAIT_MAX, answered).await {
                Ok(Ok(loan)) => lent(loan),
                Ok(Err(_)) | Err(_) => Err(failed("the control plane does not answer")),
            }
        }
        .boxed()
    }
}

fn lent(loan: Loan) -> Result<registry::Lent, registry::NotLent> {
    match loan {
        Loan::Nothing => Ok(registry::Lent::Nothing),
        Loan::Token { token, lifetime_ms } => Ok(registry::Lent::Token(
            token,
            Duration::from_millis(lifetime_ms),
        )),
        Loan::Credential(it) => Ok(registry::Lent::Credential(registry::Credential {
            username: it.username,
            password: it.password,
        })),
        Loan::Refused { message } => Err(registry::NotLent::Refused(message)),
        Loan::Failed { message } => Err(registry::NotLent::Failed(message)),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(repository: &str) -> registry::Scope {
        registry::Scope {
            repository: repository.to_owned(),
            mount_from: None,
        }
    }

    #[tokio::test]
    async fn a_wish_is_told_until_it_is_answered_and_none_is_left_after_the_end() {
        let loans = Arc::new(Loans::default());
        assert_eq!(loans.turn("b", None).await, Err(Over));
        let borrower = loans.begin("b".to_owned(), vec!["r:5000".to_owned()]);
        assert!(borrower.lender("other:5000").is_none());
        let lender = borrower.lender("r:5000").expect("its credential is kept");
        let asking = tokio::spawn(async move {
            let first = lender.lend(&scope("app")).await;
            (first, lender.lend(&scope("app")).await)
        });
        let told = loans.turn("b", None).await.expect("open").expect("a wish");
        assert_eq!((&*told.registry, &*told.repository), ("r:5000", "app"));
        // A control plane that died in between hears of it again.
        assert_eq!(loans.turn("b", None).await, Ok(Some(told.clone())));
        let answer = |number, loan| Some(LoanAnswer { number, loan });
        let token = Loan::Token {
            token: "t".to_owned(),
            lifetime_ms: 1000,
        };
        let next = loans.turn("b", answer(told.number, token)).await;
        let next = next.expect("open").expect("another");
        assert_ne!(next.number, told.number);
        let refused = Loan::Refused {
            message: "no".to_owned(),
        };
        let (turned, asked) = tokio::join!(loans.turn("b", answer(next.number, refused)), async {
            let asked = asking.await.expect("asks");
            drop(borrower);
            asked
        });
        assert_eq!(turned, Err(Over));
        assert!(matches!(asked.0, Ok(registry::Lent::Token(text, _)) if text == "t"));
        assert!(matches!(asked.1, Err(registry::NotLent::Refused(_))));
    }
}
