//! QEMU's monitor, as far as it is needed: one command at a time on a connection of its own. Blocks.
//!
//! Protocol: QEMU's "QMP specification" (docs/interop/qmp-spec): a greeting, then one JSON document a line.
//!
//! Must not know: which machine it is.

use crate::endpoint;
use crate::limits::{MONITOR_LINE_BYTES_MAX, MONITOR_WAIT_MAX};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// A connection to a monitor that has greeted and takes commands.
#[derive(Debug)]
pub(super) struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Monitor {
    /// Connects and is greeted. QEMU serves one caller at a time; others wait.
    ///
    /// # Errors
    /// What the system said; `TimedOut` or `WouldBlock` when QEMU does not answer in time.
    pub(super) fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::from(endpoint::connect(socket)?);
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(MONITOR_WAIT_MAX))?;
        stream.set_write_timeout(Some(MONITOR_WAIT_MAX))?;
        let mut monitor = Self::over(stream);
        let greeting = monitor.read()?;
        if greeting.get("QMP").is_none() {
            return Err(io::Error::other("that is no greeting of QEMU's"));
        }
        monitor.execute("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// On a connection on which the greeting is still to come, or was read.
    pub(super) fn over(stream: UnixStream) -> Self {
        Self {
            stream: BufReader::new(stream),
        }
    }

    /// Executes one command; gives what it returns.
    ///
    /// # Errors
    /// What the system or QEMU said.
    pub(super) fn execute(&mut self, command: &str, arguments: &Value) -> io::Result<Value> {
        self.stream
            .get_mut()
            .write_all(line(command, arguments).as_bytes())?;
        self.answer(command)
    }

    /// The same for a command that takes a descriptor.
    ///
    /// # Errors
    /// What the system or QEMU said.
    pub(super) fn execute_with(
        &mut self,
        command: &str,
        arguments: &Value,
        descriptor: &impl AsRawFd,
    ) -> io::Result<Value> {
        let line = line(command, arguments);
        let sent = sendmsg::<()>(
            self.stream.get_ref().as_raw_fd(),
            &[IoSlice::new(line.as_bytes())],
            &[ControlMessage::ScmRights(&[descriptor.as_raw_fd()])],
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        self.stream.get_mut().write_all(&line.as_bytes()[sent..])?;
        self.answer(command)
    }

    /// Tells the machine that the disk of block node `node` has `bytes` now, which it does have.
    ///
    /// # Errors
    /// What the system or QEMU said.
    pub(super) fn resize(&mut self, node: &str, bytes: u64) -> io::Result<()> {
        let arguments = json!({ "node-name": node, "size": bytes });
        self.execute("block_resize", &arguments).map(drop)
    }

    fn answer(&mut self, command: &str) -> io::Result<Value> {
        loop {
            let mut answer = self.read()?;
            if let Some(error) = answer.get("error") {
                let said = error["desc"].as_str().unwrap_or("no reason given");
                return Err(io::Error::other(format!("QEMU refuses {command}: {said}")));
            }
            // Anything else is an event.
            if let Some(returned) = answer.get_mut("return") {
                return Ok(returned.take());
            }
        }
    }

    fn read(&mut self) -> io::Result<Value> {
        let mut line = Vec::new();
        let limited = &mut (&mut self.stream).take(MONITOR_LINE_BYTES_MAX);
        limited.read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_slice(&line).map_err(io::Error::other)
    }
}

fn line(command: &str, arguments: &Value) -> String {
    format!(
        "{}\n",
        json!({ "execute": command, "arguments": arguments })
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A monitor that says `lines` whatever it hears, after the greeting and the first command.
    fn monitor(lines: &'static str) -> io::Result<Value> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("monitor.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let served = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let text = format!("{{\"QMP\": {{}}}}\n{{\"return\": {{}}}}\n{lines}");
            stream.write_all(text.as_bytes()).unwrap();
            let mut heard = String::new();
            // Until the client goes.
            let _ = stream.read_to_string(&mut heard);
        });
        let answer = Monitor::connect(&path)?.execute("query-status", &json!({}));
        served.join().unwrap();
        answer
    }

    #[test]
    fn takes_the_answer_among_events() {
        let answer =
            monitor("{\"event\": \"STOP\"}\n{\"return\": {\"status\": \"paused\"}}\n").unwrap();
        assert_eq!(answer["status"], "paused");
    }

    #[test]
    fn tells_a_refusal() {
        let error = monitor("{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\n")
            .unwrap_err()
            .to_string();
        assert_eq!(error, "QEMU refuses query-status: no");
    }
}
