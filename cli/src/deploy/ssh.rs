//! `--ssh`: which agent a step gets. Keys are put into an agent of their own, OpenSSH's, which ends with the deploy.
//!
//! Must not know the agent protocol, nor how a step reaches an agent.

use super::env::Env;
use crate::limits::SSH_AGENT_WAIT_MAX;
use crate::system;
use slipway_terminal::exit::{Failure, Outcome, chain};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// The agent of a step that names none.
#[cfg(test)]
const DEFAULT_ID: &str = "default";
/// Where a user's own agent is.
const AGENT_VARIABLE: &str = "SSH_AUTH_SOCK";

/// What stands behind one id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SshSource {
    /// A socket of an agent that runs.
    Agent(PathBuf),
    /// Files of private keys.
    Keys(Vec<PathBuf>),
}

/// Parses all of `--ssh` and looks whether the files are there.
///
/// # Errors
/// The caller's fault, with a hint.
pub(super) fn parse_all(specs: &[String], env: Env<'_>) -> Outcome<BTreeMap<String, SshSource>> {
    let mut sources = BTreeMap::new();
    for spec in specs {
        let (id, paths) = match spec.split_once('=') {
            Some((id, paths)) => (id, paths.split(',').map(PathBuf::from).collect()),
            None => (spec.as_str(), Vec::new()),
        };
        if id.is_empty() {
            return Err(Failure::user(format!("bad --ssh '{spec}': it has no id"))
                .hint("it looks like default, or ID=SOCKET, or ID=KEY"));
        }
        let source = source(id, paths, env)?;
        if sources.insert(id.to_owned(), source).is_some() {
            return Err(Failure::user(format!("--ssh {id} is given twice")));
        }
    }
    Ok(sources)
}

fn source(id: &str, paths: Vec<PathBuf>, env: Env<'_>) -> Outcome<SshSource> {
    if paths.is_empty() {
        let agent = env(AGENT_VARIABLE)
            .filter(|path| !path.is_empty())
            .or_else(|| system::AGENT_PIPE.map(ToOwned::to_owned));
        let agent = agent.ok_or_else(|| {
            Failure::user(format!(
                "--ssh {id}: no agent runs here ({AGENT_VARIABLE} is not set)"
            ))
            .hint("start one with `eval $(ssh-agent)` and `ssh-add`, or name a key: --ssh default=FILE")
        })?;
        return Ok(SshSource::Agent(agent.into()));
    }
    let mut sockets = 0;
    for path in &paths {
        let metadata = std::fs::metadata(path).map_err(|error| {
            Failure::user_caused(format_args!("--ssh {id}: read {}", path.display()), &error)
                .hint("name the socket of an agent, or a private key")
        })?;
        sockets += usize::from(system::is_socket(path, metadata.file_type()));
    }
    match (sockets, &paths[..]) {
        (0, _) => Ok(SshSource::Keys(paths)),
        (1, [socket]) => Ok(SshSource::Agent(socket.clone())),
        _ => Err(Failure::user(format!(
            "--ssh {id}: name one socket of an agent, or keys"
        ))),
    }
}

/// Agents that hold keys for one deploy, and all sockets by id.
#[derive(Debug, Default)]
pub(super) struct SshAgents {
    sockets: BTreeMap<String, PathBuf>,
    own: Vec<OwnAgent>,
}

impl SshAgents {
    /// Starts what has to be started, and connects once to each agent that should run: otherwise the first step that needs it would
    /// fail, late and inside the builder. A key with a passphrase is asked for at the terminal.
    ///
    /// # Errors
    /// The caller's fault: an agent that does not run, a key that cannot be read, or no OpenSSH here.
    pub(super) fn start(sources: &BTreeMap<String, SshSource>) -> Outcome<Self> {
        let mut agents = Self::default();
        for (id, source) in sources {
            let socket = match source {
                SshSource::Agent(socket) => {
                    answers(id, socket)?;
                    socket.clone()
                }
                SshSource::Keys(keys) => {
                    let agent = OwnAgent::start(id, keys)?;
                    let socket = agent.socket();
                    agents.own.push(agent);
                    socket
                }
            };
            agents.sockets.insert(id.clone(), socket);
        }
        Ok(agents)
    }

    /// Sockets by id.
    pub(super) fn sockets(&self) -> BTreeMap<String, PathBuf> {
        self.sockets.clone()
    }
}

/// An agent listens there.
fn answers(id: &str, socket: &Path) -> Outcome<()> {
    system::is_listening(socket).map_err(|error| {
        let action = format!("--ssh {id}: no SSH agent listens at {}", socket.display());
        Failure::user(format!("{action}: {}", chain(&error))).hint(format!(
            "start one with `eval $(ssh-agent)` and `ssh-add`, which sets {AGENT_VARIABLE} anew, or name a key: --ssh {id}=FILE"
        ))
    })
}

/// An agent of this deploy's; ends with the value.
#[derive(Debug)]
struct OwnAgent {
    process: Child,
    dir: TempDir,
}

impl Drop for OwnAgent {
    fn drop(&mut self) {
        let _ended = self.process.kill();
        let _reaped = self.process.wait();
    }
}

impl OwnAgent {
    fn start(id: &str, keys: &[PathBuf]) -> Outcome<Self> {
        if cfg!(windows) {
            return Err(Failure::user(format!(
                "--ssh {id}: key files need an agent of their own, which Windows does not start"
            ))
            .hint("put the keys into the system's agent with ssh-add, then: --ssh default"));
        }
        let no_openssh = |error: std::io::Error| {
            Failure::user_caused(format_args!("--ssh {id}: start ssh-agent"), &error)
                .hint("install OpenSSH's client, or name the socket of an agent that runs")
        };
        // Only its owner can enter it.
        let dir = tempfile::Builder::new()
            .prefix("slipway-ssh-")
            .tempdir()
            .map_err(no_openssh)?;
        let process = Command::new("ssh-agent")
            .arg("-D")
            .arg("-a")
            .arg(dir.path().join("agent"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(no_openssh)?;
        let mut agent = Self { process, dir };
        if !agent.listens() {
            return Err(Failure::system(format!(
                "--ssh {id}: ssh-agent does not answer"
            )));
        }
        for key in keys {
            agent.add(id, key)?;
        }
        Ok(agent)
    }

    /// Waits until it listens: it prints the name of its socket then.
    fn listens(&mut self) -> bool {
        let Some(mut output) = self.process.stdout.take() else {
            return false;
        };
        let (told, first) = std::sync::mpsc::sync_channel(1);
        // Reads on until the agent ends, so that nothing it prints breaks its pipe.
        std::thread::spawn(move || {
            let mut bytes = [0; 512];
            let mut read = output.read(&mut bytes);
            let _nobody_waits = told.send(matches!(read, Ok(1..)));
            while matches!(read, Ok(1..)) {
                read = output.read(&mut bytes);
            }
        });
        first.recv_timeout(SSH_AGENT_WAIT_MAX) == Ok(true)
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("agent")
    }

    fn add(&self, id: &str, key: &Path) -> Outcome<()> {
        let added = Command::new("ssh-add")
            .args(["-q", "--"])
            .arg(key)
            .env(AGENT_VARIABLE, self.socket())
            .stdout(Stdio::null())
            .status();
        match added {
            Ok(status) if status.success() => Ok(()),
            Ok(_) => Err(Failure::user(format!(
                "--ssh {id}: ssh-add does not take {}",
                key.display()
            ))
            .hint("it must be a private key that only you can read; its passphrase is asked for")),
            Err(error) => Err(Failure::user_caused(
                format_args!("--ssh {id}: start ssh-add"),
                &error,
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(spec: &str) -> Outcome<BTreeMap<String, SshSource>> {
        parse_all(&[spec.to_owned()], &|name| {
            (name == AGENT_VARIABLE).then(|| "/run/agent".to_owned())
        })
    }

    #[test]
    fn agents_and_keys_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let (key, socket) = (dir.path().join("key"), dir.path().join("agent"));
        std::fs::write(&key, "key").unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let (key, socket) = (key.to_str().unwrap(), socket.to_str().unwrap());
        assert_eq!(
            parse("default").unwrap()["default"],
            SshSource::Agent("/run/agent".into())
        );
        assert_eq!(
            parse(&format!("git={socket}")).unwrap()["git"],
            SshSource::Agent(socket.into())
        );
        assert_eq!(
            parse(&format!("git={key},{key}")).unwrap()["git"],
            SshSource::Keys(vec![key.into(), key.into()])
        );
        for bad in ["=x", "a=/does/not/exist", &format!("a={socket},{key}")] {
            assert_eq!(parse(bad).unwrap_err().code(), 1, "{bad}");
        }
        let failure = parse_all(&["default".to_owned()], &|_| None).unwrap_err();
        assert!(
            failure.message().contains("no agent runs here"),
            "{failure}"
        );
    }

    #[test]
    fn an_agent_that_does_not_run_is_told_before_the_build() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent");
        let sources = BTreeMap::from([(DEFAULT_ID.to_owned(), SshSource::Agent(socket.clone()))]);
        let refused = |why: &str| {
            let failure = SshAgents::start(&sources).unwrap_err();
            assert_eq!(failure.code(), 1);
            let place = socket.to_str().unwrap();
            assert!(failure.message().contains(place), "{failure}");
            assert!(failure.message().contains(why), "{failure}");
            let hint = failure.hint_text().unwrap_or_default();
            assert!(hint.contains("ssh-agent"), "{failure}");
        };
        refused("No such file");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let agents = SshAgents::start(&sources).unwrap();
        assert_eq!(agents.sockets()[DEFAULT_ID], socket);
        // The program has ended; its socket is still there.
        drop(listener);
        refused("Connection refused");
    }

    #[test]
    fn keys_get_an_agent_of_their_own_that_ends() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "mine", "-f"])
            .arg(&key)
            .status()
            .expect("openssh-client must be installed");
        assert!(made.success());
        let keys = BTreeMap::from([(DEFAULT_ID.to_owned(), SshSource::Keys(vec![key.clone()]))]);
        let agents = SshAgents::start(&keys).unwrap();
        let socket = agents.sockets()[DEFAULT_ID].clone();
        let list = Command::new("ssh-add")
            .arg("-l")
            .env(AGENT_VARIABLE, &socket)
            .output()
            .unwrap();
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        assert!(list.contains("mine"), "{list}");
        drop(agents);
        assert!(!socket.exists());
        std::fs::write(&key, "no key").unwrap();
        let failure = SshAgents::start(&keys).unwrap_err();
        assert!(failure.message().contains("does not take"), "{failure}");
    }
}
