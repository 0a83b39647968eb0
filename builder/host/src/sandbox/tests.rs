//! A start that fails, or whose daemon is killed, after any of its steps leaves nothing.
//!
//! Real mounts, containers and links. Needs root.

use super::*;
use crate::image::{BootImage, Images};
use nix::fcntl::{Flock, FlockArg};
use slipway_core::generation::Generation;
use slipway_core::host_api::MachineSpec;
use slipway_core::id::VolumeId;
use slipway_volumes::{Capacity, Encryption, NewVolume, VolumeDriver, open_file_pool};
use std::fs::File;
use std::sync::atomic::{AtomicU8, Ordering};

const STEPS: [StartStep; 9] = [
    StartStep::Places,
    StartStep::Bundle,
    StartStep::Scratch,
    StartStep::Root,
    StartStep::Volume,
    StartStep::Create,
    StartStep::Delegate,
    StartStep::Network,
    StartStep::Run,
];
const IMAGE: &str = "/var/cache/slipway/image/base.squashfs";
/// Tells a copy of this test which step to die after, in which world.
const DIE: &str = "SLIPWAY_HOST_TEST_DIE";
const NAME: &str = "sandbox::tests::a_daemon_killed_after_any_step_leaves_nothing_for_the_next";

struct World {
    dir: PathBuf,
    name: String,
    sandbox: Sandbox,
    image: BootImage,
    volumes: Arc<dyn VolumeDriver>,
    spec: MachineSpec,
    _turn: Option<Flock<File>>,
}

/// Its names are fixed: a suite of another checkout that runs beside this one waits.
fn take_turn(name: &str) -> Flock<File> {
    let file = File::create(format!("/var/tmp/slipway-{name}.lock")).unwrap();
    Flock::lock(file, FlockArg::LockExclusive).unwrap()
}

impl World {
    /// With a name of its own; `None` (and why, on stdout) if this computer cannot have one.
    fn new(name: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() || !Path::new(IMAGE).exists() {
            assert!(
                std::env::var("CI").as_deref() != Ok("true"),
                "CI must run this test: root and {IMAGE} are missing"
            );
            println!("skipped: not root, or {IMAGE} is not built");
            return None;
        }
        // The copy that dies works in the world of the test that started it.
        let turn = std::env::var_os(DIE).is_none().then(|| take_turn(name));
        let dir = PathBuf::from(format!("/var/tmp/slipway-{name}"));
        let guest = dir.join("guest");
        make_dir(&dir, 0o711).unwrap();
        make_dir(&dir.join("run"), 0o755).unwrap();
        fs::write(&guest, "#!/bin/sh\nsleep 1000\n").unwrap();
        let number = name
            .bytes()
            .fold(0u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte))
            % 50;
        let settings: HostSettings = serde_json::from_value(serde_json::json!({
            "state_dir": dir.join("state"), "run_dir": dir.join("run"), "image_base": IMAGE, "guest_binary": guest,
            "machines_max": 2, "id_base": (1u32 << 28) + u32::from(number) * 2 * MACHINE_IDS,
            "machine_cidr": format!("10.224.{number}.0/24"), "interface": name, "veth_prefix": format!("{name}-"),
            "nft_table": name, "cgroup_parent": name,
        }))
        .unwrap();
        settings.check().unwrap();
        let network = Arc::new(Network::set_up(&settings).unwrap());
        let image = Images::new(&settings).current(&network).unwrap();
        let sandbox = Sandbox::new(&settings, network).unwrap();
        let size = ByteSize::mib(64);
        let pool = dir.join("pool");
        let volumes = open_file_pool(&pool, Capacity::of(size), Encryption::Off).unwrap();
        let spec = MachineSpec {
            machine: MachineId::from_entropy([7; 10]),
            generation: Generation(1),
            volume: VolumeId::from_entropy([7; 10]),
            cpu_millis: 1000,
            memory_bytes: 1 << 30,
            pids_max: 100,
            isolation: slipway_core::isolation::Isolation::Sandbox,
        };
        volumes
            .ensure(&NewVolume::empty(&spec.volume, size))
            .unwrap();
        Some(Self {
            dir,
            name: name.to_owned(),
            sandbox,
            image,
            volumes,
            spec,
            _turn: turn,
        })
    }

    fn start(&self) -> Result<ProcessId, DriverError> {
        let (volume, machine) = (&self.spec.volume, &self.spec.machine);
        let attached = self
            .volumes
            .attach(volume, machine, AttachAs::Mount, None)
            .unwrap();
        self.sandbox.start(&Start {
            spec: &self.spec,
            slot: 0,
            volume: &attached,
            image: &self.image,
        })
    }

    fn clear(&self) {
        let (volume, machine) = (&self.spec.volume, &self.spec.machine);
        self.sandbox.clear(machine, 0).unwrap();
        self.volumes.detach(volume, machine).unwrap();
    }

    fn leftovers(&self) -> Vec<String> {
        let id = self.spec.machine.as_str();
        let run = self.dir.join("run");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut found: Vec<String> = mounts
            .lines()
            .filter(|line| line.contains(&self.name) && line.contains(id))
            .map(str::to_owned)
            .collect();
        let mut paths = vec![run.join("machines").join(id), run.join("runc").join(id)];
        if self.sandbox.network.has_link(0) {
            found.push("its link".to_owned());
        }
        for name in ["bundle", "docker.sock", "guest.sock", "pid"] {
            paths.push(self.dir.join("state/machines").join(id).join(name));
        }
        for top in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            paths.push(top.path().join(&self.name).join(id));
        }
        found.extend(
            paths
                .into_iter()
                .filter(|path| path.exists())
                .map(|path| path.display().to_string()),
        );
        found
    }
}

impl Drop for World {
    fn drop(&mut self) {
        logged(self.sandbox.clear(&self.spec.machine, 0));
        let _ = self.volumes.detach(&self.spec.volume, &self.spec.machine);
        let _ = Command::new("nft")
            .args(["delete", "table", "inet", &self.name])
            .output();
        let _ = Command::new("ip")
            .args(["link", "delete", &self.name])
            .output();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let own = format!("{}/", self.dir.display());
        for target in mounts
            .lines()
            .rev()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|t| t.starts_with(&own))
        {
            let _ = nix::mount::umount(target);
        }
        for top in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let _ = fs::remove_dir(top.path().join(&self.name));
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Which step the hook of this process acts after.
static WANTED: AtomicU8 = AtomicU8::new(u8::MAX);

fn is_wanted(step: StartStep) -> bool {
    STEPS.get(usize::from(WANTED.load(Ordering::SeqCst))) == Some(&step)
}

#[test]
fn a_start_that_fails_after_any_step_leaves_nothing() {
    let Some(mut world) = World::new("slfail") else {
        return;
    };
    world.sandbox.after_step = |step| {
        if is_wanted(step) {
            Err(DriverError::OnPurpose)
        } else {
            Ok(())
        }
    };
    for (number, step) in (0..).zip(STEPS) {
        WANTED.store(number, Ordering::SeqCst);
        let failed = world.start();
        assert!(
            matches!(failed, Err(DriverError::OnPurpose)),
            "after {step:?}: {failed:?}"
        );
        assert_eq!(world.leftovers(), Vec::<String>::new(), "after {step:?}");
    }
    WANTED.store(u8::MAX, Ordering::SeqCst);
    let process = world.start().unwrap();
    assert!(
        process.open().unwrap().is_some(),
        "and it can still be started"
    );
    assert!(
        !world.leftovers().is_empty(),
        "the test itself: it would see what is left"
    );
    world.clear();
    world.clear();
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[test]
fn a_daemon_killed_after_any_step_leaves_nothing_for_the_next() {
    if let Ok(number) = std::env::var(DIE) {
        let mut world = World::new("sldie").unwrap();
        WANTED.store(number.parse().unwrap(), Ordering::SeqCst);
        world.sandbox.after_step = |step| {
            if is_wanted(step) {
                nix::sys::signal::kill(nix::unistd::getpid(), Signal::SIGKILL).unwrap();
            }
            Ok(())
        };
        world.start().unwrap();
        unreachable!("it should have died");
    }
    let Some(world) = World::new("sldie") else {
        return;
    };
    for (number, step) in STEPS.iter().enumerate() {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", NAME, "--nocapture"])
            .env(DIE, number.to_string());
        let ended = command.output().unwrap();
        let killed = std::os::unix::process::ExitStatusExt::signal(&ended.status) == Some(9);
        assert!(killed, "after {step:?}: {ended:?}");
        assert!(
            !world.leftovers().is_empty(),
            "the test itself: something was left after {step:?}"
        );
        world.clear();
        assert_eq!(world.leftovers(), Vec::<String>::new(), "after {step:?}");
    }
}
