//! A builder's cache moves while the builder works, and the builder with it.

use super::moves::other;
use super::*;
use common::World;
use slipway_scheduler::farm::{AskedMove, BuilderKey};
use slipway_store::Machine;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A builder that runs, what its cache holds, and the host that it is on and the other one.
struct Running {
    bed: Bed,
    key: BuilderKey,
    cache: VolumeId,
    from: Arc<World>,
    to: Arc<World>,
    /// Name of the other one.
    zone: &'static str,
}

impl Running {
    async fn start() -> Self {
        let bed = Bed::start_two(true).await;
        let key = bed.org(HOUR).await;
        let cache = bed.farm.ensure_builder(&key).await.expect("made").volume;
        runs(&bed, &key).await;
        let (test, other) = (Arc::clone(&bed.world), other(&bed));
        let on_test = test.lock().volumes.contains_key(&cache);
        let (from, to, zone) = match on_test {
            true => (test, other, "other"),
            false => (other, test, "test"),
        };
        let it = Self {
            bed,
            key,
            cache,
            from,
            to,
            zone,
        };
        it.writes(b"first");
        it
    }

    fn writes(&self, contents: &[u8]) {
        let holds = (self.cache.to_string(), contents.repeat(1000));
        self.from.lock().contents.extend([holds]);
    }

    async fn begin(&self) -> Result<Volume, FarmError> {
        let to = AskedMove::Zone(self.zone.into());
        self.bed
            .farm
            .move_volume(&self.key.org, &self.cache, &to)
            .await
    }

    async fn volume(&self) -> Volume {
        let volume = self.bed.store.volume(&self.key.org, &self.cache).await;
        volume.expect("there")
    }

    async fn machine(&self) -> Machine {
        common::recorded(&self.bed).await.remove(0)
    }

    /// Waits until the base is there and the rest waits for the builder.
    async fn base_is_there(&self) {
        eventually("the base is there", || async {
            let there = self.to.lock().bases.contains_key(&self.cache);
            let told = self
                .volume()
                .await
                .notice
                .is_some_and(|n| n.contains("builder"));
            (there && told).then_some(())
        })
        .await;
    }

    /// Waits until the second snapshot is named.
    async fn catches_up(&self) {
        eventually("it catches up", || async {
            let moving = self.volume().await.moving?;
            moving.second
        })
        .await;
    }

    fn hold(&self, held: bool) {
        self.from.lock().hold_exports.store(held, Ordering::SeqCst);
    }

    async fn cleared(&self) -> Volume {
        eventually("nothing is left of the move", || async {
            let volume = self.volume().await;
            volume.moving.is_none().then_some(volume)
        })
        .await
    }

    /// The cache and the builder are there, and nothing is left where they were.
    async fn arrived(&self, contents: &[u8]) {
        self.cleared().await;
        let machine = self.machine().await;
        assert_eq!(machine.host, self.volume().await.host);
        {
            let (from, to) = (self.from.lock(), self.to.lock());
            assert!(from.volumes.is_empty(), "{:?}", from.volumes);
            assert!(from.snapshots.is_empty(), "{:?}", from.snapshots);
            assert!(from.machines.is_empty());
            let holds = to.contents.get(self.cache.as_str());
            assert!(holds.is_some_and(|holds| *holds == contents.repeat(1000)));
        }
        self.bed
            .farm
            .ensure_builder(&self.key)
            .await
            .expect("wanted");
        runs(&self.bed, &self.key).await;
        assert_eq!(self.to.lock().machines.len(), 1);
        assert!(self.from.lock().machines.is_empty());
    }

    /// They are where they were, and nothing is left on the other host.
    async fn stayed(&self) {
        self.cleared().await;
        assert_eq!(self.machine().await.host, self.volume().await.host);
        self.bed
            .farm
            .ensure_builder(&self.key)
            .await
            .expect("wanted");
        runs(&self.bed, &self.key).await;
        let (from, to) = (self.from.lock(), self.to.lock());
        assert_eq!((from.machines.len(), from.snapshots.len()), (1, 0));
        assert!(to.volumes.is_empty() && to.imports.is_empty() && to.machines.is_empty());
    }
}

async fn runs(bed: &Bed, key: &BuilderKey) {
    eventually("it runs", || async {
        let state = bed.farm.builder(key).expect("there").state;
        (state.name() == "running").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_builder_works_on_until_it_ends_and_goes_on_elsewhere() {
    let it = Running::start().await;
    let before = it.machine().await.generation;
    it.begin().await.expect("begun");
    it.base_is_there().await;
    let reset = it.bed.farm.reset_cache(&it.key).await;
    assert_eq!(reset.expect_err("it is moving").fault(), Fault::User);
    assert_eq!(it.from.lock().machines.len(), 1, "it works on");
    it.writes(b"later");
    it.bed.farm.stop_builder(&it.key).await.expect("stopped");
    it.arrived(b"later").await;
    assert!(it.machine().await.generation > before);
    let there = it.begin().await.expect_err("it is there");
    assert_eq!(there.fault(), Fault::User);
    it.bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_wanted_while_the_rest_is_sent_starts_only_there() {
    let mut it = Running::start().await;
    it.begin().await.expect("begun");
    it.base_is_there().await;
    it.hold(true);
    it.bed.farm.stop_builder(&it.key).await.expect("stopped");
    it.catches_up().await;
    it.bed.farm.ensure_builder(&it.key).await.expect("wanted");
    let starts = it.from.starts();
    // Not even after a restart of the control plane, which finds it in the record.
    it.bed.restart_farm().await;
    it.bed.farm.ensure_builder(&it.key).await.expect("wanted");
    it.catches_up().await;
    assert_eq!((it.from.starts(), it.to.starts()), (starts, 0));
    it.hold(false);
    it.arrived(b"first").await;
    assert_eq!(it.from.starts(), starts);
    it.bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_cannot_end_gives_the_builder_back() {
    // Refused while the rest is sent: given up at once, whatever it was, so that the builder can work.
    for code in [HostErrorCode::Failed, HostErrorCode::BadRequest] {
        let it = Running::start().await;
        it.begin().await.expect("begun");
        it.base_is_there().await;
        it.to.lock().refuse_volumes.push_back(code);
        it.bed.farm.stop_builder(&it.key).await.expect("stopped");
        it.stayed().await;
        assert!(it.volume().await.notice.is_some(), "its owner is told");
        it.bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_can_be_given_up_while_the_builder_works_and_while_it_waits() {
    let it = Running::start().await;
    it.begin().await.expect("begun");
    it.base_is_there().await;
    let stays = it.bed.farm.cancel_move(&it.key.org, &it.cache).await;
    stays.expect("given up");
    it.stayed().await;
    it.begin().await.expect("begun");
    it.base_is_there().await;
    it.hold(true);
    it.bed.farm.stop_builder(&it.key).await.expect("stopped");
    it.catches_up().await;
    let stays = it.bed.farm.cancel_move(&it.key.org, &it.cache).await;
    stays.expect("given up");
    it.hold(false);
    it.stayed().await;
    let elsewhere = AskedMove::Region("mars".into());
    let refused = it.bed.farm.move_volume(&it.key.org, &it.cache, &elsewhere);
    assert_eq!(refused.await.expect_err("its region").fault(), Fault::User);
    it.bed.end().await;
}
