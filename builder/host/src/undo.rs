//! An undo stack: what was done is taken back in reverse order, unless all of it was done.
//!
//! Must not know: what is done.

use std::fmt;

/// Steps that were done and how to take each back. Dropping it takes them back; [`Undo::disarm`] keeps them.
pub(crate) struct Undo<'a> {
    done: Vec<(&'static str, Step<'a>)>,
}

type Step<'a> = Box<dyn FnOnce() + Send + 'a>;

impl<'a> Undo<'a> {
    /// Nothing done yet.
    pub(crate) fn new() -> Self {
        Self { done: Vec::new() }
    }

    /// Remembers how to take back `what`. Push before the step when its half-done state needs taking back too.
    pub(crate) fn push(&mut self, what: &'static str, undo: impl FnOnce() + Send + 'a) {
        self.done.push((what, Box::new(undo)));
    }

    /// All is done: nothing is taken back.
    pub(crate) fn disarm(mut self) {
        self.done.clear();
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        while let Some((what, undo)) = self.done.pop() {
            tracing::debug!(what, "taking back");
            undo();
        }
    }
}

impl fmt::Debug for Undo<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.done.iter().map(|(what, _)| what))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn takes_back_in_reverse_and_not_when_disarmed() {
        for (disarm, expected) in [(false, vec![2, 1]), (true, vec![])] {
            let log = Mutex::new(Vec::new());
            let mut undo = Undo::new();
            undo.push("one", || log.lock().unwrap().push(1));
            undo.push("two", || log.lock().unwrap().push(2));
            if disarm {
                undo.disarm();
            } else {
                drop(undo);
            }
            assert_eq!(*log.lock().unwrap(), expected);
        }
    }
}
