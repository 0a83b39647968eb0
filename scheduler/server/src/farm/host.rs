//! What one host says: its newest list of machines, kept by revision, and the loop that watches for newer ones.
//!
//! Lists arrive by two ways, the watch and the refresh after a side effect, and may overtake each other. The revision
//! orders them within one epoch, which is one life of the host daemon; when the watch breaks, or lists of two epochs meet, everything
//! known is forgotten and read anew.
//!
//! Must not know: what is wanted of any machine.

use super::Shared;
use super::starts::Starts;
use crate::chain::chain;
use crate::host_client::{HostClient, HostClientError, MachineList};
use crate::limits::{HOST_INFO_KEEP, HOST_RETRY_MAX, HOST_RETRY_MIN, HOST_WATCH_WAIT};
use crate::text::bounded;
use slipway_core::end_record::REFUSAL_CHARS_MAX;
use slipway_core::generation::Generation;
use slipway_core::host_api::{Cursor, HostInfo, MachineKind, MachineReport};
use slipway_core::id::{HostId, MachineId};
use slipway_core::isolation::Isolation;
use slipway_core::limits::{IMAGE_AGE_MAX, MACHINE_SILENCE_EMULATED_MAX, MACHINE_SILENCE_MAX};
use slipway_core::planner::Observed;
use slipway_core::time::Timestamp;
use slipway_core::units::ByteSize;
use slipway_store::{Host, StoreError, What};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// What is said of a list of another life of a daemon.
const OTHER_EPOCH: &str = "a list of another life of the host daemon";

/// A host in the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSettings {
    /// Its name, unique.
    pub name: String,
    /// Label of its region.
    pub region: String,
    /// Where its API listens.
    pub socket: PathBuf,
}

/// One host: the way to it, and what it said last.
#[derive(Debug)]
pub(crate) struct HostLink {
    pub(super) settings: HostSettings,
    /// New builders may be placed there: it is in the settings.
    pub(super) placeable: bool,
    pub(super) client: HostClient,
    heard: Mutex<Heard>,
    /// Its new volumes are encrypted, as it said last.
    encrypts: AtomicBool,
    /// It answers.
    pub(super) reachable: watch::Sender<bool>,
    /// Turns of the builders that start there.
    pub(super) starts: Starts,
    /// There is something to do about its volumes.
    pub(super) volumes: Notify,
}

#[derive(Debug, Default)]
struct Heard {
    /// Counts the lives of the watch.
    life: u64,
    /// Absent until the first list of this life.
    at: Option<Cursor>,
    machines: HashMap<MachineId, MachineReport>,
    /// Kinds of machines that can be had there, as it said last, the usual one first.
    kinds: Vec<MachineKind>,
    /// A disk there is full.
    disk_full: bool,
    /// When what machines boot there was made.
    images: ImageAges,
}

/// When the packages of what machines boot were last looked up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageAges {
    /// Of the builder image; absent if its host does not say.
    pub image: Option<Timestamp>,
    /// Of the kernel of virtual machines; absent also where there are none.
    pub kernel: Option<Timestamp>,
}

impl HostLink {
    pub(super) fn new(settings: HostSettings, placeable: bool) -> Self {
        Self {
            client: HostClient::new(&settings.socket),
            settings,
            placeable,
            heard: Mutex::default(),
            encrypts: AtomicBool::new(false),
            reachable: watch::Sender::new(false),
            starts: Starts::default(),
            volumes: Notify::new(),
        }
    }

    /// Whether volumes there need keys.
    pub(super) fn encrypts(&self) -> bool {
        self.encrypts.load(Ordering::Relaxed)
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kinds of machines that can be had there.
    pub(super) fn kinds(&self) -> Vec<MachineKind> {
        self.heard().kinds.clone()
    }

    /// How long the guest of a machine that must be walled off like this may be silent there while it boots.
    pub(super) fn silence_max(&self, isolation: Isolation) -> Duration {
        let heard = self.heard();
        let usual = heard.kinds.first();
        let kind = match isolation {
            Isolation::Vm => heard.kinds.iter().find(|kind| kind.own_kernel),
            Isolation::Auto | Isolation::Sandbox => usual,
        };
        if kind.is_some_and(|kind| kind.emulated) {
            MACHINE_SILENCE_EMULATED_MAX
        } else {
            MACHINE_SILENCE_MAX
        }
    }

    /// What is worth knowing about it at `now`, in words that everybody may read.
    pub(super) fn notices(&self, now: Timestamp) -> Vec<String> {
        let region = &self.settings.region;
        if !*self.reachable.borrow() {
            return vec![format!(
                "a host in region '{region}' does not answer: builders there do not start, and may be in another state than is shown"
            )];
        }
        let heard = self.heard();
        let full = heard.disk_full.then(|| {
            format!(
                "a disk of a host in region '{region}' is full: builders there start again once its operator has freed space (the host's log names the disk)"
            )
        });
        let is_emulated = heard.kinds.iter().any(|kind| kind.emulated);
        let emulated = is_emulated.then(|| {
            format!(
                "virtual machines in region '{region}' are emulated (KVM does not work there): they are many times slower"
            )
        });
        let aged = |what, made_at: Option<Timestamp>| {
            let age = now.since(made_at?);
            let days = age.as_secs() / (24 * 60 * 60);
            (age > IMAGE_AGE_MAX).then(|| {
                format!(
                    "{what} in region '{region}' is {days} days old: its packages lack what was mended since (hint for who runs the farm: make image-refresh)"
                )
            })
        };
        let image = aged("the builder image", heard.images.image);
        let kernel = aged("the kernel of virtual machines", heard.images.kernel);
        [full, emulated, image, kernel]
            .into_iter()
            .flatten()
            .collect()
    }

    /// When what machines boot here was made.
    pub(super) fn images(&self) -> ImageAges {
        self.heard().images
    }

    /// Why the guest of this generation said that its engine could not start.
    pub(super) fn refused(&self, machine: &MachineId, generation: Generation) -> Option<String> {
        let heard = self.heard();
        let report = heard.machines.get(machine)?;
        let refused = report.refused.as_ref()?;
        (report.generation == generation).then(|| bounded(refused.clone(), REFUSAL_CHARS_MAX * 4))
    }

    /// What the newest list says about a machine.
    pub(super) fn observed(&self, machine: &MachineId) -> Observed {
        let heard = self.heard();
        match heard.at {
            None => Observed::Unknown,
            Some(_) => Observed::of(heard.machines.get(machine)),
        }
    }

    /// What a machine printed last, if this generation of it ended badly.
    pub(super) fn last_words(&self, machine: &MachineId, ended: Generation) -> Option<String> {
        let heard = self.heard();
        let report = heard.machines.get(machine)?;
        (report.generation == ended)
            .then(|| report.last_words.clone())
            .flatten()
    }

    /// Asks for a list that is newer than this call. Afterwards [`Self::observed`] says at least what it says.
    ///
    /// # Errors
    /// The host's, or [`HostClientError::Protocol`] if the answer is of another life of the daemon than what was heard.
    pub(super) async fn refresh(&self) -> Result<(), HostClientError> {
        let life = self.heard().life;
        let list = self.client.machines().await?;
        self.take(life, list)
    }

    fn take(&self, life: u64, list: MachineList) -> Result<(), HostClientError> {
        let mut heard = self.heard();
        if heard.at.is_some_and(|known| known.epoch != list.at.epoch) {
            // Which of the two daemons is the newer one, the watch finds out by beginning anew.
            return Err(HostClientError::Protocol(OTHER_EPOCH));
        }
        let overtaken = heard
            .at
            .is_some_and(|known| known.revision > list.at.revision);
        if heard.life != life || overtaken {
            return Err(HostClientError::Protocol("a list of another time"));
        }
        heard.at = Some(list.at);
        heard.machines = list
            .machines
            .into_iter()
            .map(|m| (m.machine.clone(), m))
            .collect();
        Ok(())
    }

    fn forget(&self) -> u64 {
        let mut heard = self.heard();
        heard.life += 1;
        heard.at = None;
        heard.machines.clear();
        heard.life
    }
}

/// Watches one host until the control plane ends. Never ends for an error of the host.
pub(super) async fn watch_host(shared: Arc<Shared>, link: Arc<HostLink>) {
    let mut pause = HOST_RETRY_MIN;
    let mut refused = false;
    loop {
        let life = link.forget();
        let result = tokio::select! {
            () = shared.cancel.cancelled() => return,
            result = follow(&shared, &link, life) => result,
        };
        let was_reachable = link.reachable.send_replace(false);
        link.forget();
        shared.observe_host(&link);
        if let Err(error) = result {
            let (host, why) = (&link.settings.name, chain(&error));
            if was_reachable {
                pause = HOST_RETRY_MIN;
                tracing::warn!(host, ?why, "host went away");
            } else if is_for_the_operator(&error) && !refused {
                // Once: it is tried again, for the settings of the other may be the wrong ones.
                refused = true;
                tracing::error!(host, ?why, "host is not used");
            } else {
                tracing::debug!(host, ?why, "host does not answer");
            }
        }
        tokio::select! {
            () = shared.cancel.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = HOST_RETRY_MAX.min(pause * 2);
    }
}

/// Somebody must change something before it is used. (Its settings, or its release.)
fn is_for_the_operator(error: &super::FarmError) -> bool {
    matches!(
        error,
        super::FarmError::OneHost { .. } | super::FarmError::Host(HostClientError::OtherVersion(_))
    )
}

/// One life of a host, from its first word to its last. Gives `Ok` never, and the error that ended it.
async fn follow(
    shared: &Arc<Shared>,
    link: &Arc<HostLink>,
    life: u64,
) -> Result<(), super::FarmError> {
    let mut watch = link.client.watch().await?;
    let mut info = link.client.info().await?;
    let host = take_info(shared, link, &info, None).await?;
    shared.know_host(&host.id, link);
    let mut heard_at = Instant::now();
    let mut seen = None;
    loop {
        let list = watch.next(seen, HOST_WATCH_WAIT).await?;
        seen = Some(list.at);
        if heard_at.elapsed() >= HOST_INFO_KEEP {
            heard_at = Instant::now();
            // What it is asked for a second time may fail without its life being over.
            match link.client.info().await {
                Ok(new) if is_news(&info, &new) => {
                    take_info(shared, link, &new, Some(&info)).await?;
                    info = new;
                }
                Ok(_) => {}
                Err(error) => {
                    let host = &link.settings.name;
                    tracing::warn!(host, why = ?chain(&error), "host does not say what it has");
                }
            }
        }
        // A refresh may have been faster; then it has distributed what is newer.
        match link.take(life, list) {
            Ok(()) => shared.observe_host(link),
            // A refresh has heard another daemon than this watch does.
            Err(error @ HostClientError::Protocol(OTHER_EPOCH)) => return Err(error.into()),
            Err(_) => {}
        }
        if !link.reachable.send_replace(true) {
            tracing::info!(host = link.settings.name, id = %host.id, "host answers");
            // What is to be done about a volume of another host may have waited for this one.
            shared.look_at_volumes();
        }
    }
}

/// Whether a host says something new, apart from what is in its pool at the moment.
fn is_news(before: &HostInfo, new: &HostInfo) -> bool {
    let same_use = HostInfo {
        pool_promised_bytes: new.pool_promised_bytes,
        pool_used_bytes: new.pool_used_bytes,
        ..before.clone()
    };
    same_use != *new
}

/// Takes over what a host says that it is and has; `before` is what it said last in this life.
async fn take_info(
    shared: &Shared,
    link: &HostLink,
    info: &HostInfo,
    before: Option<&HostInfo>,
) -> Result<Host, super::FarmError> {
    link.encrypts.store(info.encrypts, Ordering::Relaxed);
    let known = before.map_or(&[][..], |before| &before.pool_notices);
    for notice in info.pool_notices.iter().filter(|new| !known.contains(new)) {
        tracing::warn!(
            host = link.settings.name,
            notice,
            "the host's pool needs its operator"
        );
    }
    let host = put_host(shared, &host_record(link, info)?).await?;
    let mut heard = link.heard();
    heard.disk_full = info.disk_full;
    heard.kinds = info.kinds();
    heard.images = ImageAges {
        image: info.image_made_at,
        kernel: info.kernel_made_at,
    };
    Ok(host)
}

/// Records it, unless another name is known to have its pool: a request to destroy a copy under one name would destroy the only
/// one.
async fn put_host(shared: &Shared, record: &Host) -> Result<Host, super::FarmError> {
    match shared.store.put_host(record).await {
        Err(StoreError::Exists(What::Host)) => {}
        put => return Ok(put?),
    }
    let known = shared.store.hosts().await?;
    let other = known
        .into_iter()
        .find(|used| used.host.pool == record.pool && used.host.name != record.name);
    Err(super::FarmError::OneHost {
        name: record.name.clone(),
        other: other.map_or_else(String::new, |used| used.host.name),
    })
}

fn host_record(link: &HostLink, info: &HostInfo) -> Result<Host, super::FarmError> {
    Ok(Host {
        id: HostId::from_entropy(crate::entropy::entropy()?),
        name: link.settings.name.clone(),
        region: link.settings.region.clone(),
        arch: info.arch.clone(),
        socket: link.settings.socket.clone(),
        pool: info.pool.clone(),
        pool_capacity: ByteSize(info.pool_capacity_bytes),
        memory: ByteSize(info.memory_bytes),
        cpu_millis: info.cpu_millis,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use slipway_core::host_api::Epoch;

    #[test]
    fn lists_of_two_lives_of_a_daemon_are_never_held_against_each_other() {
        let settings = HostSettings {
            name: "h".to_owned(),
            region: "r".to_owned(),
            socket: "s".into(),
        };
        let link = HostLink::new(settings, true);
        let list = |epoch, revision| MachineList {
            at: Cursor {
                epoch: Some(Epoch(epoch)),
                revision,
            },
            machines: vec![],
        };
        let life = link.forget();
        let machine = MachineId::from_entropy([1; 10]);
        link.take(life, list(7, 5)).expect("the first");
        assert_eq!(link.observed(&machine), Observed::Absent);
        link.take(life, list(7, 4)).expect_err("an older one");
        // Its revision is higher, and says nothing about the ones before.
        match link.take(life, list(8, 9)) {
            Err(HostClientError::Protocol(OTHER_EPOCH)) => {}
            other => panic!("{other:?}"),
        }
        link.take(life, list(7, 6)).expect("a newer one");
        // The watch begins anew, and takes what the new daemon says, however low its revision.
        let next = link.forget();
        assert_eq!(link.observed(&machine), Observed::Unknown);
        link.take(life, list(8, 99))
            .expect_err("of the life before");
        link.take(next, list(8, 1)).expect("the first of its life");
    }
}
