//! The virtual machines' part of [`crate::fuzz`].

use super::qmp::Monitor;
use serde_json::json;
use std::io::Write as _;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

/// What QEMU says after a command, until it goes. An answer is an object's `return`; a refusal is an error.
pub(crate) fn monitor(bytes: &[u8]) {
    let Ok((near, mut far)) = UnixStream::pair() else {
        panic!("no sockets");
    };
    // So much fits into the socket; nobody reads yet.
    if far.write_all(&bytes[..bytes.len().min(32 << 10)]).is_err() {
        panic!("the socket is not open");
    }
    let _ = far.shutdown(Shutdown::Write);
    let mut monitor = Monitor::over(near);
    for _ in 0..3 {
        if let Ok(answer) = monitor.execute("query-status", &json!({})) {
            let _ = answer["status"].as_str();
        }
    }
}
