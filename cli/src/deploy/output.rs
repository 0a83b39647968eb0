//! `--output`, `--load`, `--iidfile`, `--metadata-file`: what of a build ends up on this computer.
//!
//! Must not know how the builder sends it.

use super::csv;
use super::summary::Summary;
use crate::args::DeployArgs;
use crate::system;
use serde_json::json;
use slipway_buildkit::{Export, ExportSink};
use slipway_terminal::exit::{Failure, Outcome};
use std::fs::File;
use std::io::{Error, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tempfile::NamedTempFile;

/// Where the result goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Output {
    /// Files into a directory, which is made.
    Dir(PathBuf),
    /// An archive into a file.
    Archive(PathBuf),
    /// An archive to standard output.
    Stdout,
    /// The image into the Docker that runs here.
    Docker,
}

impl Output {
    /// Reads what buildx takes: a directory, `-`, `type=local|tar,dest=PATH`, or `type=docker`, which is `--load`.
    ///
    /// # Errors
    /// The caller's fault: another type, or no place.
    pub(super) fn parse(spec: &str) -> Outcome<Self> {
        let bad = |why: &str| {
            Failure::user(format!("bad --output '{spec}': {why}"))
                .hint("it looks like DIR, type=local,dest=DIR or type=tar,dest=FILE; images are pushed with --image")
        };
        if spec == "-" {
            return Ok(Self::Stdout);
        }
        let fields = csv::fields(spec)?;
        if let [dir] = &fields[..]
            && !dir.contains('=')
        {
            return Ok(Self::Dir(dir.into()));
        }
        let (mut kind, mut dest) = (None, None);
        for field in &fields {
            match field.split_once('=') {
                Some(("type", value)) => kind = Some(value),
                Some(("dest", value)) if !value.is_empty() => dest = Some(value),
                Some((key, _)) => return Err(bad(&format!("'{key}' is not known here"))),
                None => return Err(bad("a part of it is not KEY=VALUE")),
            }
        }
        match (kind, dest) {
            (Some("local"), Some(dir)) if dir != "-" => Ok(Self::Dir(dir.into())),
            (Some("tar"), Some("-") | None) => Ok(Self::Stdout),
            (Some("tar"), Some(file)) => Ok(Self::Archive(file.into())),
            (Some("docker"), None) => Ok(Self::Docker),
            (Some("docker"), Some(_)) => Err(bad("type docker is loaded here, and has no dest")),
            (Some("local"), _) => Err(bad("it has no dest")),
            (Some(other), _) => Err(bad(&format!("type {other} is not supported here"))),
            (None, _) => Err(bad("it has no type")),
        }
    }

    /// What the builder is to send.
    pub(super) fn export(&self) -> Export {
        match self {
            Self::Dir(_) | Self::Archive(_) | Self::Stdout => Export::Files,
            Self::Docker => Export::Image,
        }
    }
}

/// Takes the result while it is sent; nothing is at its place before all of it is there.
#[derive(Debug)]
pub(super) struct Taking {
    output: Output,
    file: NamedTempFile,
    refused: Refused,
}

/// Why the result could not be written, once that is so. The builder learns only that the transfer broke off.
type Refused = Arc<Mutex<Option<Error>>>;

/// The file of the result, which remembers why it could not be written.
struct Sink {
    file: File,
    refused: Refused,
}

impl Sink {
    fn noted<T>(&self, done: std::io::Result<T>) -> std::io::Result<T> {
        done.inspect_err(|error| {
            let copy = match error.raw_os_error() {
                Some(number) => Error::from_raw_os_error(number),
                None => Error::from(error.kind()),
            };
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            refused.get_or_insert(copy);
        })
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let done = self.file.write(bytes);
        self.noted(done)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let done = self.file.flush();
        self.noted(done)
    }
}

impl Taking {
    /// # Errors
    /// The caller's fault: the place cannot be written.
    pub(super) fn start(output: &Output) -> Outcome<Self> {
        let file = match output {
            Output::Dir(dir) => std::fs::create_dir_all(dir).and_then(|()| hidden_in(dir)),
            Output::Archive(file) => hidden_in(parent(file)),
            Output::Stdout | Output::Docker => NamedTempFile::new(),
        };
        let place = match output {
            Output::Dir(path) | Output::Archive(path) => path.clone(),
            Output::Stdout | Output::Docker => std::env::temp_dir(),
        };
        let place = place.display();
        let file = file.map_err(|error| {
            Failure::user_caused(format_args!("--output: write {place}"), &error)
                .hint("name a place that you can write")
        })?;
        Ok(Self {
            output: output.clone(),
            file,
            refused: Refused::default(),
        })
    }

    /// Where the session puts the bytes.
    ///
    /// # Errors
    /// Ours: no descriptor is left.
    pub(super) fn sink(&self) -> Outcome<ExportSink> {
        let file = self.file.as_file().try_clone();
        let file = file.map_err(|error| Failure::system_caused("take the result", &error))?;
        let refused = Arc::clone(&self.refused);
        Ok(Box::new(Sink { file, refused }))
    }

    /// Why the bytes that were sent could not be written here, if that is so.
    pub(super) fn refused(&self) -> Option<Failure> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let error = refused.as_ref()?;
        Some(self.unwritten(error))
    }

    /// The fault is of this computer; it is told with the place.
    fn unwritten(&self, error: &Error) -> Failure {
        let place = match &self.output {
            Output::Dir(path) | Output::Archive(path) => path.display().to_string(),
            Output::Stdout | Output::Docker => self.file.path().display().to_string(),
        };
        Failure::user_caused(format_args!("--output: write {place}"), error)
            .hint("name a place that you can write")
    }

    /// What was sent, from its start.
    ///
    /// # Errors
    /// Ours: nothing was sent, or it cannot be read again.
    pub(super) fn sent(&self) -> Outcome<File> {
        let fail = |error: std::io::Error| Failure::system_caused("read the result", &error);
        let sent = self.file.reopen().map_err(fail)?;
        if sent.metadata().map_err(fail)?.len() == 0 {
            return Err(Failure::system("the builder's engine sent no result").hint(
                "its BuildKit is too old for --output; build on a farm's builder: --remote-only",
            ));
        }
        Ok(sent)
    }

    /// Puts the result at its place; one for Docker must have been read before ([`Self::sent`]).
    ///
    /// # Errors
    /// The caller's fault: the place cannot be written. Ours: nothing was sent.
    pub(super) fn finish(self) -> Outcome<()> {
        let mut sent = self.sent()?;
        match &self.output {
            Output::Dir(dir) => {
                let mut archive = tar::Archive::new(std::io::BufReader::new(sent));
                archive.set_preserve_permissions(true);
                archive.unpack(dir).map_err(|error| self.unwritten(&error))
            }
            Output::Archive(path) => {
                let readable = system::let_others_read(self.file.as_file());
                readable.map_err(|error| self.unwritten(&error))?;
                let action = format!("--output: write {}", path.display());
                let kept = self.file.persist(path);
                kept.map(drop)
                    .map_err(|error| Failure::user_caused(action, &error.error))
            }
            Output::Stdout => {
                let mut stdout = std::io::stdout().lock();
                let copied = std::io::copy(&mut sent, &mut stdout);
                copied.and_then(|_| stdout.flush()).map_err(|error| {
                    Failure::user_caused("--output: write to standard output", &error)
                        .hint("look whether the program that reads it still runs")
                })
            }
            Output::Docker => Ok(()),
        }
    }
}

fn hidden_in(dir: &Path) -> std::io::Result<NamedTempFile> {
    tempfile::Builder::new()
        .prefix(".slipway-")
        .tempfile_in(dir)
}

fn parent(path: &Path) -> &Path {
    let parent = path.parent().filter(|it| !it.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// Writes what was asked for of a build that has ended well; `names` are all of the image's.
///
/// # Errors
/// The caller's fault: a file cannot be written.
pub(super) fn write_files(args: &DeployArgs, summary: &Summary, names: &[&str]) -> Outcome<()> {
    let write = |flag: &str, path: &Path, text: String| {
        write_whole(path, &text).map_err(|error| {
            Failure::user_caused(format_args!("{flag}: write {}", path.display()), &error)
                .hint("the build itself succeeded; name a file that you can write")
        })
    };
    if let Some(path) = &args.iidfile {
        write("--iidfile", path, summary.image_id.clone())?;
    }
    if let Some(path) = &args.metadata_file {
        let mut known = json!({
            "containerimage.config.digest": summary.image_id,
            "image.name": names.join(","),
        });
        if let Some(digest) = &summary.digest {
            known["containerimage.digest"] = json!(digest);
        }
        if let Some(build) = &summary.build {
            known["slipway.build"] = json!(build);
        }
        write("--metadata-file", path, format!("{known:#}\n"))?;
    }
    Ok(())
}

/// Nothing is left where there is no room for all of it: half an id would be taken for one.
fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    let written = std::fs::write(path, text);
    if let Err(error) = &written
        && matches!(
            error.kind(),
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
        )
    {
        let _gone = std::fs::remove_file(path);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn outputs_are_read_as_buildx_reads_them() {
        for (spec, want) in [
            ("out", Some(Output::Dir("out".into()))),
            ("-", Some(Output::Stdout)),
            ("type=local,dest=a", Some(Output::Dir("a".into()))),
            ("type=tar,dest=a.tar", Some(Output::Archive("a.tar".into()))),
            ("type=tar,dest=-", Some(Output::Stdout)),
            ("type=tar", Some(Output::Stdout)),
            ("type=docker", Some(Output::Docker)),
            ("type=docker,dest=a.tar", None),
            ("type=local", None),
            ("type=oci,dest=x", None),
            ("dest=x", None),
            ("type=local,dest=x,mode=1", None),
        ] {
            assert_eq!(Output::parse(spec).ok(), want, "{spec}");
        }
    }

    #[test]
    fn a_full_disk_of_this_computer_is_told_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("out.tar");
        let taking = Taking::start(&Output::Archive(file.clone())).unwrap();
        assert_eq!(taking.refused(), None);
        let mut sink = Sink {
            file: File::options().write(true).open("/dev/full").unwrap(),
            refused: Arc::clone(&taking.refused),
        };
        sink.write_all(b"x").unwrap_err();
        let failure = taking.refused().expect("it was refused");
        let place = file.display();
        assert_eq!(
            failure.message(),
            format!("--output: write {place}: the disk of this computer is full")
        );
        assert_eq!(failure.code(), 1);
        assert!(
            failure
                .hint_text()
                .is_some_and(|hint| hint.contains("make room"))
        );
    }

    #[test]
    fn a_result_is_at_its_place_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(2);
        header.set_mode(0o755);
        header.set_cksum();
        archive
            .append_data(&mut header, "bin/app", &b"x\n"[..])
            .unwrap();
        let bytes = archive.into_inner().unwrap();

        let out = dir.path().join("out");
        let taking = Taking::start(&Output::Dir(out.clone())).unwrap();
        assert!(taking.finish().is_err(), "nothing was sent");
        assert_eq!(std::fs::read_dir(&out).unwrap().count(), 0);
        let taking = Taking::start(&Output::Dir(out.clone())).unwrap();
        taking.sink().unwrap().write_all(&bytes).unwrap();
        taking.finish().unwrap();
        let mode = std::fs::metadata(out.join("bin/app"))
            .unwrap()
            .permissions();
        assert_eq!(mode.mode() & 0o777, 0o755);
        assert_eq!(std::fs::read_dir(&out).unwrap().count(), 1);

        let file = dir.path().join("out.tar");
        let taking = Taking::start(&Output::Archive(file.clone())).unwrap();
        taking.sink().unwrap().write_all(&bytes).unwrap();
        assert!(!file.exists());
        taking.finish().unwrap();
        assert!(std::fs::read(&file).unwrap() == bytes);
    }
}
