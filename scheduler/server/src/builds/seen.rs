//! Builds that Docker clients bring along through the gateways: while a stream that may carry one is open, the builder's guest is asked which
//! BuildKit has, and each is recorded and followed like any other.
//!
//! It costs the streams nothing: nobody waits for it, and nothing of it is in their way. What a guest says is a tenant's own word: it is
//! bounded here, and recorded under the org whose guest it is.
//!
//! Must not know: how a stream is read, BuildKit.

use super::{BuildError, BuildService, Inner};
use crate::chain::chain;
use crate::clock::now;
use crate::farm::BuilderKey;
use crate::limits::{
    CONNECT_RETRY_MAX, CONNECT_RETRY_MIN, SEEN_ASKED_MAX, SEEN_EVERY, SEEN_LINGER, SEEN_MAX,
};
use crate::rate::Bucket;
use crate::text::bounded;
use futures_util::StreamExt;
use slipway_core::build::{BuildSource, BuildSpec};
use slipway_core::guest_api::SeenSolve;
use slipway_core::id::{AppId, BuildId, OrgId};
use slipway_store::{ErrorKind, NewBuild};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

/// Longest text of a guest's that is kept of such a build, in bytes.
const TEXT_BYTES_MAX: usize = 1 << 10;
/// Further names of its image that are kept.
const NAMES_MAX: usize = 16;
/// Attributes of its frontend that are kept.
const ATTRS_KEPT: [&str; 3] = ["filename", "target", "platform"];

/// Who brings builds along, and by which way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    /// By which way.
    pub source: BuildSource,
    /// Name of the token.
    pub name: String,
    /// The app that the token is confined to.
    pub app: Option<AppId>,
}

/// All builders that are watched now.
#[derive(Debug, Default)]
pub(super) struct Watches {
    watched: Mutex<HashMap<BuilderKey, Arc<Watch>>>,
    /// How many more an org's guests may tell of now.
    budgets: Mutex<HashMap<OrgId, Bucket>>,
}

#[derive(Debug, Default)]
struct Watch {
    /// Streams that are open.
    open: watch::Sender<usize>,
    asked: Mutex<Asked>,
}

/// Who asked for what, and what is recorded of it.
#[derive(Debug, Default)]
struct Asked {
    /// By the solve's name, oldest first; with what was asked, if that is known.
    named: VecDeque<(String, Asker, Option<BuildSpec>)>,
    /// Of the streams that are open.
    present: Vec<Asker>,
    /// Builds that are recorded, oldest first.
    seen: VecDeque<BuildId>,
}

impl Asked {
    fn name(&mut self, reference: &str, asker: &Asker, spec: Option<BuildSpec>) {
        // Whoever named it first has asked for it; a client may ask after it before it asks for it.
        let mut named = self.named.iter_mut();
        if let Some((_, first, known)) = named.find(|(name, ..)| name == reference) {
            if known.is_none() && first == asker {
                *known = spec;
            }
            return;
        }
        if self.named.len() >= SEEN_ASKED_MAX {
            self.named.pop_front();
        }
        self.named
            .push_back((reference.to_owned(), asker.clone(), spec));
    }

    fn spec_of(&self, reference: &str) -> Option<BuildSpec> {
        let mut named = self.named.iter();
        named.find(|(name, ..)| name == reference)?.2.clone()
    }

    fn see(&mut self, id: BuildId) {
        if self.seen.len() >= SEEN_ASKED_MAX {
            self.seen.pop_front();
        }
        self.seen.push_back(id);
    }

    /// Who asked for a solve, as far as that is known.
    fn asker_of(&self, reference: &str) -> Asker {
        let mut named = self.named.iter();
        let named = named.find_map(|(name, asker, _)| (name == reference).then_some(asker));
        if let Some(asker) = named {
            return asker.clone();
        }
        // Not named in any stream that was read: then clear is only what all who are there have in common.
        let common = |same: fn(&Asker, &Asker) -> bool| {
            let first = self.present.first()?;
            self.present
                .iter()
                .all(|it| same(it, first))
                .then_some(first)
        };
        if let Some(alone) = common(|one, other| one == other) {
            return alone.clone();
        }
        let way = common(|one, other| one.source == other.source);
        Asker {
            source: way.map_or(BuildSource::Docker, |it| it.source),
            name: String::new(),
            app: None,
        }
    }
}

/// A stream that may carry builds, until it is dropped.
#[derive(Debug)]
pub struct Carried {
    watch: Arc<Watch>,
    asker: Asker,
}

impl Carried {
    /// A solve is named in the stream, perhaps with what is asked.
    pub fn named(&self, reference: &str, spec: Option<BuildSpec>) {
        self.watch.asked().name(reference, &self.asker, spec);
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        let mut asked = self.watch.asked();
        if let Some(at) = asked.present.iter().position(|it| *it == self.asker) {
            asked.present.swap_remove(at);
        }
        drop(asked);
        self.watch.open.send_modify(|open| *open -= 1);
    }
}

impl Watch {
    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no stream was open for a while.
    async fn idle(&self) {
        let mut open = self.open.subscribe();
        loop {
            // The sender lives in `self`.
            let _ = open.wait_for(|open| *open == 0).await;
            tokio::select! {
                () = tokio::time::sleep(SEEN_LINGER) => return,
                _ = open.changed() => {}
            }
        }
    }
}

impl Watches {
    fn watched(&self) -> MutexGuard<'_, HashMap<BuilderKey, Arc<Watch>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one out of the org's budget.
    pub(super) fn admit(&self, org: &OrgId, now: Instant) -> bool {
        let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        budgets.retain(|_, budget| !budget.is_full(now));
        let budget = budgets.entry(org.clone()).or_insert_with(Bucket::full);
        budget.take(now, SEEN_MAX, SEEN_EVERY)
    }
}

impl BuildService {
    /// A stream that may carry builds of this builder is open. It neither makes nor wakes the builder.
    pub fn carry(&self, key: &BuilderKey, asker: Asker) -> Carried {
        let inner = &self.0;
        let mut watched = inner.watches.watched();
        let watch = watched.entry(key.clone()).or_insert_with(|| {
            let watch = Arc::<Watch>::default();
            let (inner, key, of_task) = (Arc::clone(inner), key.clone(), Arc::clone(&watch));
            let shared = Arc::clone(inner.farm.shared());
            shared.clone().tasks.spawn(async move {
                tokio::select! {
                    () = shared.cancel.cancelled() => {}
                    () = inner.watch(&key, &of_task) => {}
                }
            });
            watch
        });
        watch.asked().present.push(asker.clone());
        watch.open.send_modify(|open| *open += 1);
        Carried {
            watch: Arc::clone(watch),
            asker,
        }
    }
}

impl Inner {
    /// Sees to a builder's builds for as long as streams are open, and a little longer: what a client that has gone has just asked for is
    /// to be seen too.
    async fn watch(self: &Arc<Self>, key: &BuilderKey, watch: &Watch) {
        loop {
            tokio::select! {
                () = watch.idle() => {}
                () = self.ask_on(key, watch) => {}
            }
            let mut watched = self.watches.watched();
            if *watch.open.borrow() == 0 {
                watched.remove(key);
                return;
            }
        }
    }

    /// Asks the guest, again and again.
    async fn ask_on(self: &Arc<Self>, key: &BuilderKey, watch: &Watch) {
        let mut pause = CONNECT_RETRY_MIN;
        loop {
            match self.ask_once(key, watch).await {
                Ok(()) => pause = CONNECT_RETRY_MIN,
                // Mostly: the builder is not up yet.
                Err(error) => {
                    tracing::debug!(org = %key.org, why = ?chain(&error), "builds are not seen");
                }
            }
            tokio::time::sleep(pause).await;
            pause = CONNECT_RETRY_MAX.min(pause * 2);
        }
    }

    async fn ask_once(self: &Arc<Self>, key: &BuilderKey, watch: &Watch) -> Result<(), BuildError> {
        let guest = self.farm.guest_if_running(key).await?;
        let mut solves = std::pin::pin!(guest.solves().await?);
        while let Some(solve) = solves.next().await {
            let solve = solve?;
            let id = solve.id.clone();
            let (asker, spec) = {
                let asked = watch.asked();
                if asked.seen.contains(&id) {
                    continue;
                }
                let reference = &solve.reference;
                (asked.asker_of(reference), asked.spec_of(reference))
            };
            // Before anything is looked up: what a guest repeats, or makes up, costs no more than that.
            if !self.watches.admit(&key.org, Instant::now()) {
                continue;
            }
            let solve = with_names(solve, spec);
            let (inner, of_task) = (Arc::clone(self), key.clone());
            // Its own task: nobody may stop between the record and who follows the build.
            let seen = self.farm.shared().tasks.spawn(async move {
                let seen = inner.see(&of_task, solve, asker).await;
                seen.inspect_err(|error| {
                    tracing::debug!(org = %of_task.org, why = ?chain(error), "a build is not recorded");
                })
            });
            if let Ok(Ok(())) = seen.await {
                watch.asked().see(id);
            }
        }
        Ok(())
    }

    /// Records a build, and follows it, unless it was before.
    async fn see(
        self: &Arc<Self>,
        key: &BuilderKey,
        solve: SeenSolve,
        asker: Asker,
    ) -> Result<(), BuildError> {
        match self.store.build(&key.org, &solve.id).await {
            Ok(_known) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        self.check_room(&key.org).await?;
        let builder = self.farm.builder(key)?;
        let guard = self.farm.activity(key)?;
        let new = NewBuild {
            id: solve.id,
            app: asker.app.unwrap_or(builder.app),
            machine: builder.machine,
            spec: told(solve.spec),
            source: asker.source,
            asked_by: Some(asker.name).filter(|name| !name.is_empty()),
            at: now(),
        };
        // An id that another org has is refused here; until then it may be its live build's.
        let build = self.store.create_build(&key.org, &new).await?;
        let live = self.make_live(&build.id);
        tracing::info!(org = %key.org, build = %build.id, source = build.source.as_str(), "build seen");
        let build = slipway_store::Build {
            state: slipway_store::BuildState::Running,
            ..build
        };
        let (accepted, _) = oneshot::channel();
        self.spawn_follower(build, key.clone(), live, guard, accepted);
        Ok(())
    }
}

/// Not every engine records how the image is to be called; the request has said it.
fn with_names(mut solve: SeenSolve, asked: Option<BuildSpec>) -> SeenSolve {
    if let (true, Some(asked)) = (solve.spec.image.is_empty(), asked) {
        solve.spec.image = asked.image;
        solve.spec.tags = asked.tags;
        solve.spec.push |= asked.push;
    }
    solve
}

/// What is kept of what a guest says was asked.
fn told(spec: BuildSpec) -> BuildSpec {
    let text = |text: String| {
        let text = text.chars().filter(|c| !c.is_control()).collect();
        bounded(text, TEXT_BYTES_MAX)
    };
    let attrs = spec.frontend_attrs.into_iter();
    let attrs = attrs.filter(|(name, _)| ATTRS_KEPT.contains(&name.as_str()));
    BuildSpec {
        image: text(spec.image),
        push: spec.push,
        tags: spec.tags.into_iter().take(NAMES_MAX).map(text).collect(),
        frontend_attrs: attrs
            .map(|(name, value)| (name, text(value)))
            .collect::<BTreeMap<_, _>>(),
        ..BuildSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asker(name: &str) -> Asker {
        Asker {
            source: BuildSource::Buildkit,
            name: name.into(),
            app: None,
        }
    }

    #[test]
    fn a_build_is_whose_stream_named_it_or_who_is_there_alone() {
        let nobody = |source| Asker {
            source,
            ..asker("")
        };
        let mut asked = Asked::default();
        assert_eq!(asked.asker_of("a"), nobody(BuildSource::Docker));
        asked.present = vec![asker("ann"), asker("ann")];
        assert_eq!(asked.asker_of("a"), asker("ann"));
        asked.present.push(asker("bob"));
        let one_of_two = asked.asker_of("a");
        assert_eq!(one_of_two, nobody(BuildSource::Buildkit), "by the same way");
        asked.present.push(nobody(BuildSource::Docker));
        assert_eq!(asked.asker_of("a"), nobody(BuildSource::Docker));
        let spec = BuildSpec {
            image: "i".into(),
            ..BuildSpec::default()
        };
        asked.name("a", &asker("bob"), None);
        asked.name("a", &asker("ann"), Some(BuildSpec::default()));
        asked.name("a", &asker("bob"), Some(spec.clone()));
        assert_eq!(asked.asker_of("a"), asker("bob"));
        assert_eq!(asked.spec_of("a"), Some(spec));
        for n in 0..2 * SEEN_ASKED_MAX {
            asked.name(&n.to_string(), &asker("ann"), None);
        }
        assert_eq!(asked.named.len(), SEEN_ASKED_MAX);
    }

    #[test]
    fn what_a_guest_says_of_a_build_is_bounded() {
        let spec = told(BuildSpec {
            image: format!("a\u{1b}[31m{}", "x".repeat(2 * TEXT_BYTES_MAX)),
            tags: vec!["t".into(); 2 * NAMES_MAX],
            frontend_attrs: ["target", "build-arg:X", "platform"]
                .map(|name| (name.to_owned(), "v".to_owned()))
                .into(),
            cache_to: vec!["c".into()],
            export: true,
            ..BuildSpec::default()
        });
        assert!(spec.image.len() <= TEXT_BYTES_MAX + 4 && spec.image.starts_with("a[31m"));
        assert_eq!(spec.tags.len(), NAMES_MAX);
        assert_eq!(
            spec.frontend_attrs.into_keys().collect::<Vec<_>>(),
            ["platform", "target"]
        );
        assert!(spec.cache_to.is_empty() && !spec.export);
    }

    #[test]
    fn an_org_has_a_budget_of_builds_that_its_guests_tell_of() {
        let watches = Watches::default();
        let (ours, theirs) = (OrgId::from_entropy([1; 10]), OrgId::from_entropy([2; 10]));
        let now = Instant::now();
        let admitted = (0..2 * SEEN_MAX).filter(|_| watches.admit(&ours, now));
        assert_eq!(admitted.count(), SEEN_MAX as usize);
        assert!(watches.admit(&theirs, now));
        assert!(watches.admit(&ours, now + SEEN_EVERY));
    }
}
