//! What answers, and the bodies of requests until they are checked, may take of the server's memory: each by itself, those of one org,
//! and all of them.
//!
//! A [`Budget`] belongs to one answer. It is charged while the answer is made, field by field, and what it has reserved is given
//! back when the answer has been sent. Small answers always have room.
//!
//! Must not know: what is in an answer.

use super::limits::{
    GRAPHQL_ANSWER_FREE_BYTES, GRAPHQL_ANSWERS_BYTES_MAX, GRAPHQL_ORG_ANSWERS_BYTES_MAX,
};
use async_graphql::Value;
use slipway_core::id::OrgId;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Reservations are made in pieces of this size.
const PIECE: usize = 64 << 10;
/// What a value takes besides its text: about the size of async-graphql's own.
const VALUE_BYTES: usize = 80;

/// Why no more can be added to an answer, or a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// It has as much as one may have.
    Answer,
    /// All together have.
    Memory,
}

/// Bytes that answers have reserved, and how many they may.
#[derive(Debug)]
struct Ledger {
    reserved: AtomicUsize,
    max: usize,
}

impl Ledger {
    fn new(max: usize) -> Self {
        Self {
            reserved: AtomicUsize::new(0),
            max,
        }
    }

    fn reserve(&self, bytes: usize) -> bool {
        let add = |now: usize| now.checked_add(bytes).filter(|sum| *sum <= self.max);
        let order = Ordering::Relaxed;
        self.reserved.fetch_update(order, order, add).is_ok()
    }

    fn release(&self, bytes: usize) {
        self.reserved.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// All answers of the server.
#[derive(Debug)]
pub(super) struct Answers {
    all: Arc<Ledger>,
    orgs: Mutex<HashMap<OrgId, Weak<Ledger>>>,
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            all: Arc::new(Ledger::new(GRAPHQL_ANSWERS_BYTES_MAX)),
            orgs: Mutex::default(),
        }
    }
}

impl Answers {
    /// For an answer of at most `max` bytes to a credential of `org`; absent for the administrator's.
    pub(super) fn budget(&self, org: Option<&OrgId>, max: usize) -> Budget {
        Budget {
            max,
            used: AtomicUsize::new(0),
            reserved: Mutex::new(0),
            ledgers: std::iter::once(Arc::clone(&self.all))
                .chain(org.map(|org| self.of(org)))
                .collect(),
        }
    }

    fn of(&self, org: &OrgId) -> Arc<Ledger> {
        let mut orgs = self.orgs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ledger) = orgs.get(org).and_then(Weak::upgrade) {
            return ledger;
        }
        orgs.retain(|_, ledger| ledger.strong_count() > 0);
        let ledger = Arc::new(Ledger::new(GRAPHQL_ORG_ANSWERS_BYTES_MAX));
        orgs.insert(org.clone(), Arc::downgrade(&ledger));
        ledger
    }
}

/// What one answer may take.
#[derive(Debug)]
pub(super) struct Budget {
    max: usize,
    used: AtomicUsize,
    /// Of the ledgers.
    reserved: Mutex<usize>,
    ledgers: Vec<Arc<Ledger>>,
}

impl Budget {
    /// Adds so many bytes.
    ///
    /// # Errors
    /// [`Full`]; they count all the same, so that everything after is refused too.
    pub(super) fn charge(&self, bytes: usize) -> Result<(), Full> {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed);
        let used = used.saturating_add(bytes);
        if used > self.max {
            return Err(Full::Answer);
        }
        if self.reserve_for(used) {
            Ok(())
        } else {
            Err(Full::Memory)
        }
    }

    /// Adds what a field holds.
    ///
    /// # Errors
    /// [`Full`].
    pub(super) fn charge_value(&self, value: &Value) -> Result<(), Full> {
        self.charge(weight(value))
    }

    /// Begins anew with the next answer on the same stream.
    pub(super) fn begin(&self) {
        self.used.store(0, Ordering::Relaxed);
        self.release();
    }

    /// The answer is made, and takes so many bytes from now on. More than was charged stays what it was.
    pub(super) fn settle(&self, bytes: usize) {
        self.used.fetch_min(bytes, Ordering::Relaxed);
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        let needed = reservation(bytes);
        if let Some(less) = reserved.checked_sub(needed) {
            for ledger in &self.ledgers {
                ledger.release(less);
            }
            *reserved = needed;
        }
    }

    fn reserve_for(&self, used: usize) -> bool {
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        let needed = reservation(used);
        let Some(more) = needed.checked_sub(*reserved).filter(|more| *more > 0) else {
            return true;
        };
        for (done, ledger) in self.ledgers.iter().enumerate() {
            if !ledger.reserve(more) {
                for ledger in &self.ledgers[..done] {
                    ledger.release(more);
                }
                return false;
            }
        }
        *reserved = needed;
        true
    }

    fn release(&self) {
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        for ledger in &self.ledgers {
            ledger.release(*reserved);
        }
        *reserved = 0;
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        self.release();
    }
}

/// What is reserved for an answer of so many bytes.
fn reservation(bytes: usize) -> usize {
    let over = bytes.saturating_sub(GRAPHQL_ANSWER_FREE_BYTES);
    over.checked_next_multiple_of(PIECE).unwrap_or(over)
}

/// What a value takes, in memory or as JSON, whichever is more. The walk goes as deep as what our own types hold.
fn weight(value: &Value) -> usize {
    let inner: usize = match value {
        Value::String(text) => escaped(text),
        Value::Enum(name) => name.len(),
        Value::Binary(bytes) => bytes.len(),
        Value::List(list) => list.iter().map(weight).sum(),
        Value::Object(object) => object.iter().map(|(name, v)| name.len() + weight(v)).sum(),
        Value::Null | Value::Number(_) | Value::Boolean(_) => 0,
    };
    VALUE_BYTES + inner
}

/// Bytes of a text as JSON.
fn escaped(text: &str) -> usize {
    let long = |byte: &u8| *byte < b' ';
    let short = |byte: &u8| matches!(byte, b'"' | b'\\');
    let bytes = text.as_bytes();
    let (longs, shorts) = (
        bytes.iter().filter(|byte| long(byte)).count(),
        bytes.iter().filter(|byte| short(byte)).count(),
    );
    bytes.len() + longs * 5 + shorts
}

#[cfg(test)]
mod tests {
    use super::super::limits::GRAPHQL_ANSWER_BYTES_MAX;
    use super::*;

    #[test]
    fn an_answer_has_a_bound_of_its_own() {
        let budget = Answers::default().budget(None, 1000);
        assert_eq!(budget.charge(600), Ok(()));
        assert_eq!(budget.charge(401), Err(Full::Answer));
        assert_eq!(
            budget.charge(1),
            Err(Full::Answer),
            "nothing fits in afterwards"
        );
        budget.begin();
        assert_eq!(budget.charge(1000), Ok(()));
    }

    #[test]
    fn an_orgs_answers_have_a_bound_together_and_small_ones_and_others_have_room() {
        let answers = Answers::default();
        let (mine, theirs) = (OrgId::from_entropy([1; 10]), OrgId::from_entropy([2; 10]));
        let big = GRAPHQL_ANSWER_BYTES_MAX;
        let mut held = Vec::new();
        loop {
            let budget = answers.budget(Some(&mine), big);
            match budget.charge(big) {
                Ok(()) => held.push(budget),
                Err(full) => {
                    assert_eq!(full, Full::Memory);
                    break;
                }
            }
            assert!(held.len() * big <= GRAPHQL_ORG_ANSWERS_BYTES_MAX + big);
        }
        assert!(!held.is_empty());
        let small = answers.budget(Some(&mine), big);
        assert_eq!(small.charge(GRAPHQL_ANSWER_FREE_BYTES), Ok(()));
        assert_eq!(answers.budget(Some(&theirs), big).charge(big), Ok(()));
        held.pop();
        assert_eq!(answers.budget(Some(&mine), big).charge(big), Ok(()));
        drop((held, small));
        assert_eq!(answers.all.reserved.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_values_weight_is_never_below_its_json() {
        let awkward = "\u{1b}[0m\"quoted\"\\\n".repeat(500);
        for json in [
            serde_json::json!({ "a": [1, 2.5, null, true], "text": awkward }),
            serde_json::json!(vec!["x"; 100]),
            serde_json::json!("ä".repeat(100)),
        ] {
            let written = json.to_string().len();
            let value = Value::from_json(json).unwrap();
            assert!(weight(&value) >= written);
        }
    }
}
