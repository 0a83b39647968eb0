//! Ctrl-C and SIGTERM, for commands that have something to end before they end.

use slipway_terminal::exit::{EXIT_INTERRUPTED, Failure, Outcome};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals, from when this is made: they no longer end the process by themselves.
#[derive(Debug)]
pub(crate) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    /// Takes over both signals.
    ///
    /// # Errors
    /// Ours: the system gives no handler.
    pub(crate) fn new() -> Outcome<Self> {
        let watch =
            |kind| signal(kind).map_err(|error| Failure::system_caused("watch for Ctrl-C", &error));
        Ok(Self {
            interrupt: watch(SignalKind::interrupt())?,
            terminate: watch(SignalKind::terminate())?,
        })
    }

    /// Waits for the next one. Cancel-safe.
    pub(crate) async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Ends the process at once: somebody has asked twice.
pub(crate) fn exit_now() -> ! {
    std::process::exit(i32::from(EXIT_INTERRUPTED))
}
