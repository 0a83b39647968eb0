//! Layers that are sent while a real dockerd exports their image.

use crate::dockerd::{Dockerd, Store, tar};
use crate::image::assert_complete;
use crate::proxy::{Act, Proxy};
use crate::registry::{Access, Registry};
use http::Method;
use slipway_registry_push::{
    DockerStore, Export, ImageSource, Layout, Platform, Push, PushOptions, PushState, Pushed,
    Target, push as push_plainly,
};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Enough that dockerd's record comes in several steps.
const FILES: u32 = 4000;
/// Enough that a layer's tar does.
const FILES_IN_CONTAINERD: u32 = 1000;
const FILE_BYTES: u32 = 20_000;
/// Exports until one is slow enough to be seen.
const TRIES: u32 = 8;

/// Files that pack to a half, no two alike, with links among them.
fn fill(directory: &Path, files: u32, seed: u32) {
    fs::create_dir_all(directory).unwrap();
    let noise: Vec<u8> = (0..files + FILE_BYTES)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 28).to_le_bytes()[0])
        .collect();
    for number in 0..files as usize {
        let length = FILE_BYTES as usize / 2 + number % (FILE_BYTES as usize / 2);
        let content = [&seed.to_le_bytes()[..], &noise[number..number + length]].concat();
        let name = format!("file-{number:05}");
        fs::write(directory.join(&name), content).unwrap();
        if number % 100 == 0 {
            fs::hard_link(
                directory.join(&name),
                directory.join(format!("{name}-again")),
            )
            .unwrap();
        }
    }
}

struct World {
    store: Store,
    registry: Registry,
    proxy: Proxy,
    dockerd: Dockerd,
    built: AtomicU32,
}

impl World {
    async fn start(store: Store) -> Option<World> {
        let registry = Registry::start(&Access::Open)?;
        let proxy = Proxy::start(registry.address, |_, _| Act::Forward).await;
        let dockerd = Dockerd::start(store)?;
        let root = dockerd.exchange().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("base"), "base").unwrap();
        tar(&root, &dockerd.exchange().join("base.tar"));
        dockerd.docker(&["import", "/exchange/base.tar", "push-tests/base:1"]);
        Some(World {
            store,
            registry,
            proxy,
            dockerd,
            built: AtomicU32::new(0),
        })
    }

    fn target(&self, name: &str) -> Target {
        Target::parse(&self.proxy.target(name)).unwrap()
    }

    /// A push that sends ahead, while the answer to who else builds is this one.
    fn push(&self, name: &str, options: &PushOptions, is_alone: bool) -> Push {
        let mut push = Push::new(&self.target(name), None, options).unwrap();
        let export = match self.store {
            Store::Classic => Export::Dockerd {
                root: self.dockerd.data_root(),
                process: self.dockerd.process(),
            },
            Store::Containerd => Export::Containerd {
                root: self.dockerd.containerd_root(),
            },
        };
        push.send_ahead(export, move || async move { is_alone });
        push
    }

    /// Builds an image with one layer of many files that no image before had; gives it.
    fn build(&self) -> ImageSource {
        let number = self.built.fetch_add(1, Ordering::SeqCst);
        let context = self.dockerd.exchange().join(format!("context-{number}"));
        let files = match self.store {
            Store::Classic => FILES,
            Store::Containerd => FILES_IN_CONTAINERD,
        };
        fill(&context.join("files"), files, number);
        fs::write(
            context.join("Dockerfile"),
            "FROM push-tests/base:1\nCOPY files /files\n",
        )
        .unwrap();
        let name = format!("docker.io/push-tests/ahead:{number}");
        let context = format!("/exchange/context-{number}");
        let output = match self.store {
            Store::Classic => format!("type=docker,name={name}"),
            Store::Containerd => {
                format!("type=image,name={name},compression=uncompressed,unpack=false")
            }
        };
        let build = ["buildx", "build", "--provenance=false", "--network=none"];
        self.dockerd
            .docker(&[&build[..], &["--output", &output, &context]].concat());
        self.image(&name)
    }

    /// Pushes to these repositories that have sent an image's layer ahead, one of them for all, and the image. On a busy machine an
    /// export may be over before anybody has looked.
    async fn begun(
        self: &Arc<Self>,
        names: &[&str],
        options: &PushOptions,
    ) -> (Vec<Push>, ImageSource) {
        for _ in 0..TRIES {
            let before = self.patches();
            let pushes = names.iter().map(|name| self.push(name, options, true));
            let pushes = pushes.collect();
            let image = self.built().await;
            match self.patches() - before {
                0 => {}
                sent => {
                    assert_eq!(sent, 1, "it is sent twice");
                    return (pushes, image);
                }
            }
        }
        panic!("nothing is ever sent ahead");
    }

    async fn built(self: &Arc<Self>) -> ImageSource {
        let world = self.clone();
        tokio::task::spawn_blocking(move || world.build())
            .await
            .unwrap()
    }

    fn image(&self, name: &str) -> ImageSource {
        if self.store == Store::Classic {
            let store = DockerStore::open(&self.dockerd.data_root()).unwrap();
            return store.image(name).unwrap();
        }
        let inspect = ["image", "inspect", "--format", "{{.Id}}", name];
        let id = self.dockerd.docker(&inspect);
        let store = Layout::containerd(&self.dockerd.containerd_root()).unwrap();
        store.image(Some(id.trim()), &Platform::default()).unwrap()
    }

    fn patches(&self) -> usize {
        self.proxy.count(&Method::PATCH, "/blobs/")
    }

    fn cancels(&self) -> usize {
        self.proxy.count(&Method::DELETE, "/blobs/")
    }

    async fn until_cancelled(&self, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(180);
        while self.cancels() < count {
            assert!(Instant::now() < deadline, "the upload stays open");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn assert_complete(&self, repository: &str, image: &ImageSource, pushed: &Pushed) {
        assert_complete(&self.registry, repository, "1", image, pushed);
        assert_eq!(pushed.layers[1].state, PushState::Pushed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn layers_are_sent_while_dockerd_exports_them() {
    Box::pin(sent_while_exported(Store::Classic)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn layers_are_sent_while_containerd_is_given_them() {
    Box::pin(sent_while_exported(Store::Containerd)).await;
}

async fn sent_while_exported(store: Store) {
    let Some(world) = World::start(store).await else {
        return;
    };
    let world = Arc::new(world);
    let options = PushOptions {
        codec: "zstd".parse().unwrap(),
        ..PushOptions::default()
    };

    // The image is what it seemed to become: its layer is sent once, and that began before it was there.
    let (pushes, image) = world.begun(&["app:1"], &options).await;
    let (before, cancels) = (world.patches(), world.cancels());
    let pushed = only(pushes).image(image.clone(), |_| ()).await.unwrap();
    world.assert_complete("app", &image, &pushed);
    assert_eq!((world.patches(), world.cancels()), (before, cancels));
    // Byte for byte what a push of the finished image makes of it.
    let target = world.target("plain:1");
    let plain = push_plainly(image.clone(), &target, None, &options, |_| ());
    assert_eq!(plain.await.unwrap().digest, pushed.digest);
    // And a client that no one here wrote takes it.
    let reference = world.registry.target("app:1");
    world.dockerd.docker(&["rmi", "-f", image.id().as_str()]);
    world.dockerd.docker(&["pull", "-q", &reference]);
    let diff_ids: Vec<String> = image.diff_ids().map(ToString::to_string).collect();
    assert_eq!(world.dockerd.diff_ids(&reference), diff_ids);

    // Another image is pushed in the end: what was sent is given up.
    let image = world.built().await;
    let (pushes, unwanted) = world.begun(&["other:1"], &options).await;
    let cancels = world.cancels();
    let pushed = only(pushes).image(image.clone(), |_| ()).await.unwrap();
    world.assert_complete("other", &image, &pushed);
    world.until_cancelled(cancels + 1).await;

    // Nobody wants the image: the push is dropped.
    let (pushes, _) = world.begun(&["dropped:1"], &options).await;
    let cancels = world.cancels();
    drop(pushes);
    world.until_cancelled(cancels + 1).await;

    // Somebody else builds: nothing is sent before the image is there.
    let (before, push) = (world.patches(), world.push("alone:1", &options, false));
    let image = world.built().await;
    assert_eq!(world.patches(), before);
    let pushed = push.image(image.clone(), |_| ()).await.unwrap();
    world.assert_complete("alone", &image, &pushed);
    // And of the layer that was given up before, nothing is missing.
    let target = world.target("unwanted:1");
    let pushed = push_plainly(unwanted.clone(), &target, None, &options, |_| ());
    let pushed = pushed.await.unwrap();
    world.assert_complete("unwanted", &unwanted, &pushed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_two_pushes_of_one_export_one_sends() {
    let Some(world) = World::start(Store::Classic).await else {
        return;
    };
    let world = Arc::new(world);
    for index in [None, Some(world.dockerd.exchange().join("index"))] {
        let name = if index.is_some() { "with" } else { "without" };
        let options = PushOptions {
            index,
            ..PushOptions::default()
        };
        let names = [format!("{name}/first:1"), format!("{name}/second:1")];
        let names = names.each_ref().map(String::as_str);
        let (pushes, image) = world.begun(&names, &options).await;
        let before = world.patches();
        let pushes = pushes
            .into_iter()
            .map(|push| push.image(image.clone(), |_| ()));
        let pushed = futures_util::future::try_join_all(pushes).await.unwrap();
        let states: Vec<PushState> = pushed.iter().map(|pushed| pushed.layers[1].state).collect();
        let count = |state| states.iter().filter(|other| **other == state).count();
        assert_eq!(count(PushState::Pushed), 1, "{states:?}");
        assert_eq!(count(PushState::Mounted), 1, "{states:?}");
        assert_eq!(world.patches(), before, "it was sent twice");
    }
}

fn only(mut pushes: Vec<Push>) -> Push {
    assert_eq!(pushes.len(), 1);
    pushes.remove(0)
}
