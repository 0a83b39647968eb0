//! All builders in memory, found by what they are, by their org, by their volume and by their host without a look at the others.
//!
//! The indexes by volume and by host hold at least the builders that are concerned; what a builder says of itself decides. So a builder is
//! added before it changes, and one that is found too often does no harm.
//!
//! Must not know: what a builder does.

use super::builder::Builder;
use super::host::HostLink;
use super::view::BuilderKey;
use slipway_core::id::{OrgId, VolumeId};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// All builders.
#[derive(Debug, Default)]
pub(super) struct Builders(RwLock<Tables>);

#[derive(Debug, Default)]
struct Tables {
    /// By org first.
    all: BTreeMap<BuilderKey, Arc<Builder>>,
    by_volume: HashMap<VolumeId, Vec<Arc<Builder>>>,
    /// By the host's name, which is unique among links.
    by_host: HashMap<String, BTreeMap<BuilderKey, Arc<Builder>>>,
}

impl Builders {
    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a builder with the volume and the host that it has.
    pub(super) fn add(&self, builder: &Arc<Builder>) {
        let volume = builder.lock().machine.volume.clone();
        let host = builder.host();
        let mut tables = self.write();
        let key = builder.key.clone();
        tables.all.insert(key, Arc::clone(builder));
        tables.note_volume(builder, volume);
        tables.note_host(builder, &host);
    }

    /// Call it before a builder gets another volume.
    pub(super) fn gets_volume(&self, key: &BuilderKey, volume: &VolumeId) {
        let mut tables = self.write();
        if let Some(builder) = tables.all.get(key).cloned() {
            tables.note_volume(&builder, volume.clone());
        }
    }

    /// Has `change` put a builder on another host.
    pub(super) fn gets_host(&self, builder: &Arc<Builder>, host: &HostLink, change: impl FnOnce()) {
        let before = builder.host();
        self.write().note_host(builder, host);
        change();
        let (before, now) = (&before.settings.name, &builder.host().settings.name);
        if before != now
            && let Some(there) = self.write().by_host.get_mut(before)
        {
            there.remove(&builder.key);
        }
    }

    /// Call it when a volume is destroyed.
    pub(super) fn forget_volume(&self, volume: &VolumeId) {
        self.write().by_volume.remove(volume);
    }

    /// The builder with this key.
    pub(super) fn get(&self, key: &BuilderKey) -> Option<Arc<Builder>> {
        self.read().all.get(key).cloned()
    }

    /// All builders of an org, in the order of their keys.
    pub(super) fn of_org(&self, org: &OrgId) -> Vec<Arc<Builder>> {
        let first = BuilderKey {
            org: org.clone(),
            region: String::new(),
            arch: String::new(),
        };
        let tables = self.read();
        let from_there = tables.all.range(first..);
        let its_own = from_there.take_while(|(key, _)| key.org == *org);
        its_own.map(|(_, builder)| Arc::clone(builder)).collect()
    }

    /// The builder that has a volume, if one does.
    pub(super) fn of_volume(&self, volume: &VolumeId) -> Option<Arc<Builder>> {
        let mut concerned = self.concerned_with(volume).into_iter();
        concerned.find(|builder| builder.lock().machine.volume == *volume)
    }

    /// The builders that have a volume, or stand still for its move.
    pub(super) fn waiting_for(&self, volume: &VolumeId) -> Vec<Arc<Builder>> {
        let mut concerned = self.concerned_with(volume);
        concerned.retain(|builder| {
            let inner = builder.lock();
            inner.machine.volume == *volume || inner.moving.as_ref() == Some(volume)
        });
        concerned
    }

    fn concerned_with(&self, volume: &VolumeId) -> Vec<Arc<Builder>> {
        let tables = self.read();
        tables.by_volume.get(volume).cloned().unwrap_or_default()
    }

    /// The builders that are on a host.
    pub(super) fn on_host(&self, host: &Arc<HostLink>) -> Vec<Arc<Builder>> {
        let mut there: Vec<Arc<Builder>> = {
            let tables = self.read();
            let known = tables.by_host.get(&host.settings.name);
            known.map_or_else(Vec::new, |known| known.values().cloned().collect())
        };
        there.retain(|builder| Arc::ptr_eq(&builder.host(), host));
        there
    }
}

impl Tables {
    fn note_volume(&mut self, builder: &Arc<Builder>, volume: VolumeId) {
        let known = self.by_volume.entry(volume).or_default();
        if !known.iter().any(|known| Arc::ptr_eq(known, builder)) {
            known.push(Arc::clone(builder));
        }
    }

    fn note_host(&mut self, builder: &Arc<Builder>, host: &HostLink) {
        let name = host.settings.name.clone();
        let there = self.by_host.entry(name).or_default();
        there.insert(builder.key.clone(), Arc::clone(builder));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::farm::HostSettings;
    use crate::farm::builder::Wishes;
    use slipway_core::generation::Generation;
    use slipway_core::id::{AppId, HostId, MachineId};
    use slipway_core::machine::MachineState;
    use slipway_core::quota::BuilderSize;
    use slipway_core::time::Timestamp;
    use slipway_core::units::ByteSize;
    use slipway_store::{Intent, Machine};

    fn host(name: &str) -> Arc<HostLink> {
        let settings = HostSettings {
            name: name.to_owned(),
            region: "local".to_owned(),
            socket: name.into(),
        };
        Arc::new(HostLink::new(settings, true))
    }

    fn volume(n: u8) -> VolumeId {
        VolumeId::from_entropy([n; 10])
    }

    fn org(n: u8) -> OrgId {
        OrgId::from_entropy([n; 10])
    }

    fn builder(n: u8, arch: &str, host: &Arc<HostLink>) -> Arc<Builder> {
        let machine = Machine {
            id: MachineId::from_entropy([n; 10]),
            org: org(n),
            app: AppId::from_entropy([n; 10]),
            region: "local".to_owned(),
            arch: arch.to_owned(),
            host: HostId::from_entropy([1; 10]),
            volume: volume(n),
            size: BuilderSize {
                cpu_millis: 1,
                memory: ByteSize(1),
                volume: ByteSize(1),
            },
            revision: 0,
            generation: Generation(0),
            intent: Intent::Stopped,
            state: MachineState::Stopped,
            failed_starts: 0,
            volume_replaced: false,
            last_error: None,
            notice: None,
            created_at: Timestamp(0),
            updated_at: Timestamp(0),
        };
        let (wishes, events) = (Wishes::default(), Arc::default());
        Arc::new(Builder::new(machine, wishes, Arc::clone(host), events))
    }

    #[test]
    fn a_builder_is_found_by_what_it_has_now_and_by_nothing_that_it_had() {
        let builders = Builders::default();
        let (a, b) = (host("a"), host("b"));
        let (first, second) = (builder(1, "amd64", &a), builder(2, "amd64", &a));
        let arm = builder(1, "arm64", &a);
        arm.lock().machine.volume = volume(3);
        for builder in [&first, &second, &arm] {
            builders.add(builder);
        }
        let keys = |found: Vec<Arc<Builder>>| -> Vec<BuilderKey> {
            found.iter().map(|builder| builder.key.clone()).collect()
        };
        let key = |builder: &Arc<Builder>| builder.key.clone();
        assert_eq!(
            keys(builders.of_org(&org(1))),
            [key(&first), key(&arm)],
            "in order"
        );
        assert!(builders.of_org(&org(9)).is_empty());
        let of = |n| builders.of_volume(&volume(n)).map(|found| key(&found));
        assert_eq!(
            [of(1), of(2), of(9)],
            [Some(key(&first)), Some(key(&second)), None]
        );

        // It gets another volume; the first one is still on its way to another host.
        builders.gets_volume(&first.key, &volume(7));
        assert_eq!((of(1), of(7)), (Some(key(&first)), None), "not yet");
        first.change(|inner| {
            inner.machine.volume = volume(7);
            inner.moving = Some(volume(1));
        });
        assert_eq!((of(1), of(7)), (None, Some(key(&first))));
        assert_eq!(keys(builders.waiting_for(&volume(1))), [key(&first)]);
        first.change(|inner| inner.moving = None);
        assert!(builders.waiting_for(&volume(1)).is_empty());
        builders.forget_volume(&volume(1));

        builders.gets_host(&first, &b, || {
            first.is_on(&HostId::from_entropy([2; 10]), &b, Generation(1));
        });
        assert_eq!(keys(builders.on_host(&b)), [key(&first)]);
        assert_eq!(keys(builders.on_host(&a)), [key(&arm), key(&second)]);
        assert_eq!(builders.read().by_host["a"].len(), 2, "not looked at again");
    }
}
