//! What is written down about machines, so that a daemon that was killed at any instruction can be followed by one that
//! knows what there is.
//!
//! Two things per machine: its record, written before the first effect of a start and after each change, and its fence,
//! the highest generation ever seen, which stays when the machine is forgotten.
//!
//! Must not know: how machines are started or cleared away.

use crate::drivers::DriverKind;
use crate::files::{Outlives, make_dir, remove_all, write_in_room, write_whole};
use crate::image::ImageNames;
use crate::limits::{FENCE_KEPT, RECORD_BYTES_MAX};
use crate::process::ProcessId;
use serde::{Deserialize, Serialize};
use slipway_core::generation::Generation;
use slipway_core::host_api::MachineSpec;
use slipway_core::id::MachineId;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const RECORD: &str = "record.json";
const IMAGE: &str = "image.json";

/// One machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// As it was asked for.
    pub(crate) spec: MachineSpec,
    /// What made it. Records of before there was a choice are of sandboxes.
    #[serde(default)]
    pub(crate) driver: DriverKind,
    /// How far it has come.
    pub(crate) phase: Phase,
    /// Why its guest said that the engine could not start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) refused: Option<String>,
}

/// How far a machine has come.
///
/// ```text
/// Starting ─▶ Running ─▶ Ended ─▶ Exited
///    └──▶ (no record)
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase", deny_unknown_fields)]
pub(crate) enum Phase {
    /// Anything of it may be there. Found after a restart, it is cleared away and forgotten.
    Starting {
        /// The slot it has.
        slot: u16,
    },
    /// Its PID 1 ran.
    Running {
        /// The slot it has.
        slot: u16,
        /// PID 1 on the host, or what stands for it.
        process: ProcessId,
    },
    /// It has ended; anything of it may still be there.
    Ended {
        /// The slot it has.
        slot: u16,
        /// The guest said that it ended well.
        clean: bool,
        /// The guest said that what is on its volume is damaged.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        damaged: bool,
    },
    /// It has ended and nothing of it is left.
    Exited {
        /// The guest said that it ended well.
        clean: bool,
        /// The guest said that what is on its volume is damaged.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        damaged: bool,
    },
}

impl Phase {
    /// The slot it has, if it has one.
    pub(crate) fn slot(&self) -> Option<u16> {
        match self {
            Self::Starting { slot } | Self::Running { slot, .. } | Self::Ended { slot, .. } => {
                Some(*slot)
            }
            Self::Exited { .. } => None,
        }
    }
}

/// A record or fence could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}", path.display())]
pub struct RecordError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn at<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> RecordError {
    let path = path.to_owned();
    move |source| RecordError {
        action,
        path,
        source: source.into(),
    }
}

/// Records and fences of a host.
#[derive(Debug)]
pub(crate) struct Records {
    machines: PathBuf,
    /// Where a machine that lives has a directory, and after a reboot there is none.
    lives: PathBuf,
    fences: PathBuf,
}

impl Records {
    /// Below `state_dir`; what does not survive a reboot is below `run_dir`.
    ///
    /// # Errors
    /// [`RecordError`] when its directories cannot be made.
    pub(crate) fn open(state_dir: &Path, run_dir: &Path) -> Result<Self, RecordError> {
        let records = Self {
            lives: run_dir.join("machines"),
            machines: state_dir.join("machines"),
            fences: state_dir.join("fences"),
        };
        for dir in [&records.machines, &records.fences] {
            make_dir(dir, 0o700).map_err(at("make", dir))?;
        }
        Ok(records)
    }

    /// All records, in id order. What is no machine's is left alone. A record that a power cut has spoilt is forgotten, since
    /// nothing of its machine lives. Where something may, it is an error: to go on without it could give its slot to another.
    ///
    /// # Errors
    /// [`RecordError`].
    pub(crate) fn all(&self) -> Result<Vec<Record>, RecordError> {
        let mut records = Vec::new();
        for machine in self.ids(&self.machines)? {
            let path = self.machines.join(machine.as_str()).join(RECORD);
            match fs::read(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                read => {
                    let bytes = read.map_err(at("read", &path))?;
                    match serde_json::from_slice(&bytes) {
                        Ok(record) => records.push(record),
                        Err(error) if !self.lives.join(machine.as_str()).exists() => {
                            tracing::error!(%machine, %error, "its record is unreadable, as after a power cut; forgotten");
                            self.forget(&machine)?;
                        }
                        Err(error) => return Err(at("parse", &path)(error)),
                    }
                }
            }
        }
        Ok(records)
    }

    fn ids(&self, dir: &Path) -> Result<Vec<MachineId>, RecordError> {
        let entries = fs::read_dir(dir).map_err(at("list", dir))?;
        let names = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok());
        let mut ids: Vec<MachineId> = names.filter_map(|name| name.parse().ok()).collect();
        ids.sort();
        Ok(ids)
    }

    /// Writes a record in the place of the machine's last, which takes no new room on the disk: a full one is no reason why a machine
    /// cannot end. A power cut ends every machine, so it may lose the last change.
    ///
    /// # Errors
    /// [`RecordError`].
    pub(crate) fn write(&self, record: &Record) -> Result<(), RecordError> {
        let dir = self.machines.join(record.spec.machine.as_str());
        make_dir(&dir, 0o700).map_err(at("make", &dir))?;
        let path = dir.join(RECORD);
        let bytes = serde_json::to_vec_pretty(record).map_err(at("write", &path))?;
        write_in_room(&path, &bytes, RECORD_BYTES_MAX).map_err(at("write", &path))
    }

    /// Writes down what a machine is about to boot; it goes with the machine.
    ///
    /// # Errors
    /// [`RecordError`].
    pub(crate) fn write_image(
        &self,
        machine: &MachineId,
        image: &ImageNames,
    ) -> Result<(), RecordError> {
        let path = self.machines.join(machine.as_str()).join(IMAGE);
        let bytes = serde_json::to_vec(image).map_err(at("write", &path))?;
        write_whole(&path, &bytes, Outlives::Crash).map_err(at("write", &path))
    }

    /// What a machine boots. Nothing if that is not known: a daemon of before this was written down started it.
    pub(crate) fn image(&self, machine: &MachineId) -> Option<ImageNames> {
        let path = self.machines.join(machine.as_str()).join(IMAGE);
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// Forgets a machine, console and all, but not its fence.
    ///
    /// # Errors
    /// [`RecordError`].
    pub(crate) fn forget(&self, machine: &MachineId) -> Result<(), RecordError> {
        let dir = self.machines.join(machine.as_str());
        remove_all(&dir).map_err(at("remove", &dir))
    }

    /// All fences. Those that nobody has raised for [`FENCE_KEPT`], and whose machine is forgotten, are dropped.
    ///
    /// # Errors
    /// [`RecordError`].
    pub(crate) fn fences(&self) -> Result<Vec<(MachineId, Generation)>, RecordError> {
        let mut fences = Vec::new();
        for machine in self.ids(&self.fences)? {
            let path = self.fences.join(machine.as_str());
            let age = fs::metadata(&path)
                .and_then(|found| found.modified())
                .map_err(at("examine", &path))?
                .elapsed();
            if age.is_ok_and(|age| age > FENCE_KEPT)
                && !self.machines.join(machine.as_str()).exists()
            {
                remove_all(&path).map_err(at("remove", &path))?;
                continue;
            }
            let text = fs::read_to_string(&path).map_err(at("read", &path))?;
            let number = text
                .trim()
                .parse()
                .map_err(|_| at("parse", &path)(io::Error::other("not a number")))?;
            fences.push((machine, Generation(number)));
        }
        Ok(fences)
    }

    /// Raises a machine's fence. It outlives a power cut.
    ///
    /// # Errors
    /// [`RecordError`].
    pub(crate) fn raise_fence(
        &self,
        machine: &MachineId,
        generation: Generation,
    ) -> Result<(), RecordError> {
        let path = self.fences.join(machine.as_str());
        write_whole(
            &path,
            format!("{generation}\n").as_bytes(),
            Outlives::PowerCut,
        )
        .map_err(at("write", &path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use slipway_core::id::VolumeId;
    use slipway_core::isolation::Isolation;

    #[test]
    fn records_and_fences_survive_and_are_forgotten_apart() {
        let dir = std::env::temp_dir().join(format!("slipway-records-{}", std::process::id()));
        let records = Records::open(&dir, &dir.join("run")).unwrap();
        let machine = MachineId::from_entropy([3; 10]);
        let spec = MachineSpec {
            machine: machine.clone(),
            generation: Generation(4),
            volume: VolumeId::from_entropy([4; 10]),
            cpu_millis: 1,
            memory_bytes: 2,
            pids_max: 3,
            isolation: Isolation::Auto,
        };
        let process = ProcessId::of(1).unwrap();
        for phase in [
            Phase::Starting { slot: 1 },
            Phase::Running { slot: 1, process },
            Phase::Ended {
                slot: 1,
                clean: true,
                damaged: false,
            },
            Phase::Exited {
                clean: false,
                damaged: true,
            },
        ] {
            let record = Record {
                spec: spec.clone(),
                driver: DriverKind::Vm,
                phase,
                refused: Some("no iptables".to_owned()),
            };
            records.write(&record).unwrap();
            assert_eq!(records.all().unwrap(), [record]);
        }
        records.raise_fence(&machine, Generation(4)).unwrap();
        records.forget(&machine).unwrap();
        assert_eq!(records.all().unwrap(), []);
        assert_eq!(
            Records::open(&dir, &dir.join("run"))
                .unwrap()
                .fences()
                .unwrap(),
            [(machine, Generation(4))]
        );
        remove_all(&dir).unwrap();
    }

    #[test]
    fn a_record_that_a_power_cut_spoilt_keeps_no_daemon_from_starting() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let records = Records::open(dir.path(), &run).unwrap();
        let machine = MachineId::from_entropy([3; 10]);
        let state = dir.path().join("machines").join(machine.as_str());
        for spoilt in ["", "{\"spec\": {"] {
            fs::create_dir_all(&state).unwrap();
            fs::write(state.join(RECORD), spoilt).unwrap();
            fs::create_dir_all(run.join("machines").join(machine.as_str())).unwrap();
            records.all().expect_err("it may live");
            fs::remove_dir_all(&run).unwrap();
            assert_eq!(records.all().unwrap(), []);
            assert!(!state.exists());
        }
    }
}
