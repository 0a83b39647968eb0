//! The long-running processes: `slipwayd serve` and `slipwayd host`. Reads their settings, sets up the log, and turns
//! signals into a clean end.
//!
//! Must not know what a setting means: that is the business of the crates that run.

use crate::args::{HostArgs, HostVerb, ProcessArgs, ServeArgs, ServeVerb};
use serde::de::DeserializeOwned;
use slipway_host::{HostRunError, HostSettings};
use slipway_scheduler::serve::DataDirError;
use slipway_scheduler::{BackupError, ServeError, ServeSettings};
use slipway_terminal::exit::{EXIT_INTERRUPTED, Failure, Outcome};
use slipway_terminal::file::read_small;
use slipway_terminal::log;
use slipway_terminal::printer::Printer;
use std::path::Path;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use toml::{Table, Value};

/// Environment variables `SLIPWAY_SERVE_<SETTING>` go before the file of `slipwayd serve`.
const SERVE_PREFIX: &str = "SLIPWAY_SERVE_";
/// Environment variables `SLIPWAY_HOST_<SETTING>` go before the file of `slipwayd host`.
const HOST_PREFIX: &str = "SLIPWAY_HOST_";

/// Runs the control plane until a signal ends it, or writes a backup of it.
///
/// # Errors
/// The caller's fault: settings. Ours: it did not start, or broke.
pub(crate) fn serve(args: &ServeArgs, printer: Printer) -> Outcome<()> {
    let settings: ServeSettings = load(&args.process, SERVE_PREFIX)?;
    init_log(&args.process)?;
    if let Some(ServeVerb::Backup { dir }) = &args.verb {
        let elsewhere = block_on(async {
            slipway_scheduler::backup(&settings, dir)
                .await
                .map_err(|error| explain_backup(&error))
        })?;
        for part in elsewhere {
            printer.warn(&format!("not in the backup: {part}"));
        }
        printer.note(&format!(
            "{} holds the database and the secrets: keep the two apart",
            dir.display()
        ));
        return Ok(());
    }
    block_on(async {
        slipway_scheduler::run(settings, shutdown_on_signal()?.cancelled_owned())
            .await
            .map_err(|error| explain_serve(&error))
    })
}

fn explain_backup(error: &BackupError) -> Failure {
    const ACTION: &str = "no backup was made";
    match error {
        BackupError::Directory { .. } => Failure::user_caused(ACTION, error)
            .hint("name a directory that does not exist yet, where this user can write"),
        BackupError::Secret(_) => Failure::user_caused(ACTION, error).hint(
            "run it as the user of the control plane, with the settings of the control plane",
        ),
        BackupError::Store(_) => Failure::system_caused(ACTION, error)
            .hint("is data_dir the directory of a control plane that has been started?"),
    }
}

fn explain_serve(error: &ServeError) -> Failure {
    const ACTION: &str = "the control plane cannot run";
    match error {
        ServeError::Settings(_) | ServeError::Lending(_) | ServeError::AdminToken => {
            Failure::user_caused(ACTION, error).hint("correct the settings file")
        }
        ServeError::Listen { .. } => Failure::user_caused(ACTION, error)
            .hint("is it running already? the listen_ settings choose other addresses"),
        ServeError::DataDir(DataDirError::InUse { .. }) => {
            Failure::user_caused(ACTION, error).hint("end that one first, or set another data_dir")
        }
        ServeError::DataDir(DataDirError::Io { .. }) => Failure::user_caused(ACTION, error)
            .hint("data_dir must be a directory that this user can write"),
        ServeError::MasterKey(_) => Failure::user_caused(ACTION, error)
            .hint("a master key is 32 bytes in a file of mode 0600; see [keys] in the settings"),
        ServeError::KeyStore(_) => Failure::system_caused(ACTION, error).hint(
            "see [keys] in the settings; a key that no master key opens needs the previous one",
        ),
        ServeError::File(_)
        | ServeError::Store(_)
        | ServeError::Authority(_)
        | ServeError::Seal(_)
        | ServeError::Tls(_)
        | ServeError::Farm(_)
        | ServeError::Builds(_) => Failure::system_caused(ACTION, error).hint(TROUBLE),
    }
}

/// Runs the host daemon until a signal ends it, or removes all it made.
///
/// # Errors
/// The caller's fault: settings. Ours: it did not start, or broke.
pub(crate) fn host(args: &HostArgs, printer: Printer) -> Outcome<()> {
    let settings: HostSettings = load(&args.process, HOST_PREFIX)?;
    init_log(&args.process)?;
    match args.verb {
        None => block_on(async {
            slipway_host::run(settings, shutdown_on_signal()?.cancelled_owned())
                .await
                .map_err(|error| explain_host(&error))
        }),
        Some(HostVerb::Purge) => {
            let purged = block_on(async {
                slipway_host::purge(settings)
                    .await
                    .map_err(|e| explain_host(&e))
            })?;
            printer.note(&format!(
                "{} machines ended, {} volumes destroyed; nothing of this host is left",
                purged.machines, purged.volumes
            ));
            Ok(())
        }
    }
}

fn explain_host(error: &HostRunError) -> Failure {
    const ACTION: &str = "the host daemon cannot run";
    let is_the_callers = matches!(
        error,
        HostRunError::NotRoot
            | HostRunError::Settings(_)
            | HostRunError::AlreadyRunning { .. }
            | HostRunError::CgroupTaken { .. }
            | HostRunError::Unsearchable { .. }
            | HostRunError::Image(_)
    );
    if is_the_callers {
        let hint = if matches!(error, HostRunError::NotRoot) {
            "run it as root"
        } else if matches!(error, HostRunError::AlreadyRunning { .. }) {
            "stop the other one first: `systemctl stop slipway-host`"
        } else {
            "docs/settings.md has every setting of the host"
        };
        Failure::user_caused(ACTION, error).hint(hint)
    } else {
        Failure::system_caused(ACTION, error).hint(TROUBLE)
    }
}

/// Where an operator looks for what no hint can know.
pub(crate) const TROUBLE: &str =
    "docs/operations.md, \"When something is wrong\" and \"Back up\", says what to look at";

fn block_on<T>(future: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::system_caused("start the runtime", &error))?
        .block_on(future)
}

/// A token that is cancelled by the first SIGTERM or SIGINT. A second one ends the process at once, as it would
/// without us: whoever sends it does not want to wait.
fn shutdown_on_signal() -> Outcome<CancellationToken> {
    let fail = |error: std::io::Error| Failure::system_caused("watch signals", &error);
    let mut terminate = signal(SignalKind::terminate()).map_err(fail)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(fail)?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        for _ in 0..2 {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if cancelled.is_cancelled() {
                tracing::warn!(signal = name, "second signal, ending at once");
                std::process::exit(i32::from(EXIT_INTERRUPTED));
            }
            tracing::info!(signal = name, "shutting down");
            cancelled.cancel();
        }
    });
    Ok(token)
}

fn init_log(args: &ProcessArgs) -> Outcome<()> {
    log::start(&args.log_filter, args.log)
}

/// Settings of a process: `--set` before environment before file before default.
fn load<T: DeserializeOwned>(args: &ProcessArgs, prefix: &str) -> Outcome<T> {
    let text = read_small(&args.config)
        .map_err(|failure| failure.hint("--config names the settings file, TOML"))?;
    parse(&args.config, &text, prefix, std::env::vars(), &args.set)
}

fn parse<T: DeserializeOwned>(
    path: &Path,
    text: &str,
    prefix: &str,
    env: impl Iterator<Item = (String, String)>,
    flags: &[String],
) -> Outcome<T> {
    let place = |what: &str, error: &toml::de::Error| {
        Failure::user(format!("{what}: {}", error.to_string().trim_end()))
    };
    // The file alone first: its errors have lines.
    let shown = path.display().to_string();
    let mut table: Table = toml::from_str(text).map_err(|error| place(&shown, &error))?;
    let mut changed = Vec::new();
    for (name, value) in env {
        if let Some(key) = name.strip_prefix(prefix) {
            table.insert(key.to_ascii_lowercase(), scalar(&value));
            changed.push(name);
        }
    }
    for flag in flags {
        let (key, value) = flag.split_once('=').ok_or_else(|| {
            Failure::user(format!("'{flag}' is not a setting")).hint("--set takes NAME=VALUE")
        })?;
        insert(&mut table, key, scalar(value)).ok_or_else(|| {
            Failure::user(format!("'{key}' is not a setting"))
                .hint("a name with dots is a setting in a table, as limits.org_pool_percent")
        })?;
        changed.push(format!("--set {key}"));
    }
    if changed.is_empty() {
        return toml::from_str(text).map_err(|error| place(&shown, &error));
    }
    T::deserialize(Value::Table(table))
        .map_err(|error| place(&format!("{shown} with {}", changed.join(", ")), &error))
}

/// Sets a value in a table, or, by a name with dots, in a table of it. `None` if something else than a table is in the way.
fn insert(table: &mut Table, key: &str, value: Value) -> Option<()> {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
            Some(())
        }
        Some((outer, rest)) => {
            let inner = table
                .entry(outer)
                .or_insert_with(|| Value::Table(Table::new()));
            insert(inner.as_table_mut()?, rest, value)
        }
    }
}

/// A value as TOML writes it, else a text.
fn scalar(text: &str) -> Value {
    toml::from_str::<Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        name: String,
        #[serde(default)]
        count: u32,
        #[serde(default)]
        list: Vec<u32>,
        #[serde(default)]
        inner: Table,
    }

    fn read(text: &str, env: &[(&str, &str)], flags: &[&str]) -> Outcome<Sample> {
        let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        parse(Path::new("x.toml"), text, "T_", env, &flags)
    }

    #[test]
    fn flags_go_before_environment_before_file() {
        let sample = read("name='a'\ncount=1\n", &[], &[]).unwrap();
        assert_eq!((sample.name.as_str(), sample.count), ("a", 1));
        let sample = read(
            "name='a'\ncount=1\n",
            &[("T_NAME", "127.0.0.1:0"), ("T_COUNT", "2"), ("OTHER", "x")],
            &["count=3", "list=[1, 2]"],
        )
        .unwrap();
        let want = Sample {
            name: "127.0.0.1:0".to_owned(),
            count: 3,
            list: vec![1, 2],
            inner: Table::new(),
        };
        assert_eq!(sample, want);
    }

    #[test]
    fn a_flag_sets_one_value_of_a_table_and_leaves_the_others() {
        let text = "name='a'\n[inner]\nfirst=1\nsecond=2\n";
        let sample = read(text, &[], &["inner.second=3", "inner.third.x='y'"]).unwrap();
        let want = "first=1\nsecond=3\nthird={x='y'}\n";
        assert_eq!(sample.inner, toml::from_str(want).unwrap());
        let failure = read(text, &[], &["name.first=1"]).unwrap_err();
        assert!(failure.message().contains("name.first"), "{failure}");
    }

    #[test]
    fn the_installed_settings_are_good() {
        let read = |text| toml::from_str::<HostSettings>(text).unwrap();
        read(include_str!("../../scripts/install/host.toml"))
            .check()
            .unwrap();
        let serve: ServeSettings =
            toml::from_str(include_str!("../../scripts/install/serve.toml")).unwrap();
        serve.check().unwrap();
        assert_eq!(serve.hosts[0].socket, HostSettings::default().socket);
    }

    #[test]
    fn mistakes_name_the_file_and_the_setting() {
        for (text, env, flags, part) in [
            ("name=", vec![], vec![], "x.toml"),
            ("name='a'\ncuont=1", vec![], vec![], "unknown field `cuont`"),
            ("name='a'", vec![("T_CUONT", "1")], vec![], "T_CUONT"),
            ("name='a'", vec![], vec!["count=x"], "--set count"),
            ("name='a'", vec![], vec!["count"], "not a setting"),
        ] {
            let failure = read(text, &env, &flags).unwrap_err();
            assert_eq!(failure.code(), 1);
            assert!(failure.message().contains(part), "{failure}");
        }
    }
}
