//! An undo stack: what was done so far is taken back, newest first, unless the whole succeeded.
//!
//! Must not know: what is undone.

type Step<'a> = Box<dyn FnOnce() -> std::io::Result<()> + 'a>;

/// Steps to take back when this is dropped before [`Undo::disarm`].
#[derive(Default)]
pub(crate) struct Undo<'a> {
    steps: Vec<(&'static str, Step<'a>)>,
}

impl<'a> Undo<'a> {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Remembers how to take back what was just done; `name` is for the log if that fails.
    pub(crate) fn push(
        &mut self,
        name: &'static str,
        step: impl FnOnce() -> std::io::Result<()> + 'a,
    ) {
        self.steps.push((name, Box::new(step)));
    }

    /// All went well: nothing is taken back.
    pub(crate) fn disarm(mut self) {
        self.steps.clear();
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        while let Some((name, step)) = self.steps.pop() {
            if let Err(error) = step() {
                tracing::error!(step = name, %error, "undo failed");
            }
        }
    }
}

impl std::fmt::Debug for Undo<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.steps.iter().map(|s| s.0))
            .finish()
    }
}
