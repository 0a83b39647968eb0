//! A machine's memory and the state of its devices into a file and back, by QEMU's migration with `mapped-ram` (QEMU 9 and later): each
//! page has its place in the file, so it is as large as the memory in use, and is read in one go.
//!
//! Protocol: QEMU's "Mapped-ram" (docs/devel/migration/mapped-ram) and its QMP reference. The file is handed over as a descriptor.
//!
//! Must not know: which machine it is, or what becomes of the file.

use super::qmp::Monitor;
use serde_json::json;
use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

/// Number of the set with the file's descriptor; the command line's are below.
const SET: u32 = 64;
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Bytes a second that QEMU may write: all it can.
const BANDWIDTH: u64 = 1 << 40;

/// Stops the machine and writes it to `file`.
///
/// # Errors
/// What QEMU said, or `TimedOut` after `wait`; the machine is stopped then.
pub(super) fn save(monitor: &mut Monitor, file: &File, wait: Duration) -> io::Result<()> {
    monitor.execute("stop", &json!({}))?;
    prepare(monitor, file)?;
    monitor.execute(
        "migrate-set-parameters",
        &json!({ "max-bandwidth": BANDWIDTH }),
    )?;
    monitor.execute("migrate", &json!({ "uri": uri() }))?;
    finish(monitor, wait)
}

/// Forgets a migration that was begun, and has the machine run.
///
/// # Errors
/// It does not run.
pub(super) fn undo(monitor: &mut Monitor) -> io::Result<()> {
    // Either may have nothing to do.
    let _ = monitor.execute("migrate_cancel", &json!({}));
    let _ = monitor.execute("remove-fd", &json!({ "fdset-id": SET }));
    monitor.execute("cont", &json!({})).map(drop)
}

/// Reads a machine from `file` into a QEMU that was started for it. It does not run yet.
///
/// # Errors
/// What QEMU said, or `TimedOut` after `wait`.
pub(super) fn load(monitor: &mut Monitor, file: &File, wait: Duration) -> io::Result<()> {
    prepare(monitor, file)?;
    monitor.execute("migrate-incoming", &json!({ "uri": uri() }))?;
    finish(monitor, wait)?;
    // Its blocks are free once nobody has it open.
    monitor.execute("remove-fd", &json!({ "fdset-id": SET }))?;
    Ok(())
}

fn uri() -> String {
    format!("file:/dev/fdset/{SET}")
}

fn prepare(monitor: &mut Monitor, file: &File) -> io::Result<()> {
    let mapped = json!({ "capability": "mapped-ram", "state": true });
    monitor.execute(
        "migrate-set-capabilities",
        &json!({ "capabilities": [mapped] }),
    )?;
    monitor
        .execute_with("add-fd", &json!({ "fdset-id": SET }), file)
        .map(drop)
}

fn finish(monitor: &mut Monitor, wait: Duration) -> io::Result<()> {
    let deadline = Instant::now() + wait;
    loop {
        let state = monitor.execute("query-migrate", &json!({}))?;
        match state["status"].as_str() {
            Some("completed") => return Ok(()),
            Some("failed" | "cancelled") => {
                let said = state["error-desc"].as_str().unwrap_or("no reason given");
                return Err(io::Error::other(format!("QEMU fails to: {said}")));
            }
            _ if Instant::now() >= deadline => return Err(io::ErrorKind::TimedOut.into()),
            _ => std::thread::sleep(LOOK_EVERY),
        }
    }
}
