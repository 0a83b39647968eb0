//! Ctrl-C and SIGTERM, for commands that have something to end before they end.

use slipway_terminal::exit::{EXIT_INTERRUPTED, Failure, Outcome};
#[cfg(unix)]
use tokio::signal::unix::{Signal, SignalKind, signal};
#[cfg(windows)]
use tokio::signal::windows::{CtrlC, CtrlClose, ctrl_c, ctrl_close};

/// The signals, from when this is made: they no longer end the process by themselves.
#[derive(Debug)]
pub(crate) struct Interrupts {
    #[cfg(unix)]
    interrupt: Signal,
    #[cfg(unix)]
    terminate: Signal,
    #[cfg(windows)]
    interrupt: CtrlC,
    #[cfg(windows)]
    terminate: CtrlClose,
}

impl Interrupts {
    /// Takes over both signals; on Windows, Ctrl-C and the end of the console.
    ///
    /// # Errors
    /// Ours: the system gives no handler.
    pub(crate) fn new() -> Outcome<Self> {
        let fail = |error: std::io::Error| Failure::system_caused("watch for Ctrl-C", &error);
        #[cfg(unix)]
        let (interrupt, terminate) = (
            signal(SignalKind::interrupt()).map_err(fail)?,
            signal(SignalKind::terminate()).map_err(fail)?,
        );
        #[cfg(windows)]
        let (interrupt, terminate) = (ctrl_c().map_err(fail)?, ctrl_close().map_err(fail)?);
        Ok(Self {
            interrupt,
            terminate,
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
