//! Kept memory without machines: what is there after each step, and what is thrown away.

use super::*;
use slipway_core::vm::BootNetwork;
use slipway_volumes::SharedDisk;
use std::io::Write;
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

fn machine(number: u8) -> MachineId {
    MachineId::from_entropy([number; 10])
}

fn manifest(number: u8) -> Manifest {
    let network = BootNetwork {
        address: Ipv4Addr::LOCALHOST,
        gateway: Ipv4Addr::LOCALHOST,
        gateway_mac: String::new(),
        mtu: 1500,
    };
    let volume = VolumeId::from_entropy([number; 10]);
    Manifest {
        origin: Origin::now(&volume, &[], &[]).unwrap(),
        volume: VolumeMark::of(&tempfile::tempfile().unwrap()).unwrap(),
        door: DoorFile::new(u16::from(number), &network).unwrap(),
    }
}

fn memories(dir: &Path, limit: u64) -> Memories {
    Memories::open(dir.to_owned(), Some(ByteSize(limit))).unwrap()
}

fn keep(memories: &Memories, number: u8, bytes: usize) {
    let dir = memories.dir.join(machine(number).as_str());
    fs::create_dir_all(dir).unwrap();
    let mut file = memories.begin(&machine(number)).unwrap();
    file.write_all(&vec![1; bytes]).unwrap();
    file.sync_all().unwrap();
    memories
        .commit(&machine(number), &manifest(number))
        .unwrap();
}

#[test]
fn memory_is_taken_out_once() {
    let dir = tempfile::tempdir().unwrap();
    let memories = memories(dir.path(), 1 << 30);
    assert!(memories.take(&machine(1)).is_none());
    keep(&memories, 1, 10);
    assert!(memories.is_kept(&machine(1)) && memories.was_begun(&machine(1)));
    assert_eq!(memories.slot(&machine(1)), Some(1));
    let path = memories.path(&machine(1), "memory");
    assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o600);
    let kept = memories.take(&machine(1)).unwrap();
    assert_eq!(kept.file.metadata().unwrap().nlink(), 0);
    assert!(memories.take(&machine(1)).is_none());
    assert!(!memories.was_begun(&machine(1)));
}

#[test]
fn what_was_not_finished_is_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let memories = memories(dir.path(), 1 << 30);
    keep(&memories, 1, 10);
    // As a daemon leaves it that is killed before the manifest, before the file has its name, or with rubbish.
    fs::remove_file(memories.path(&machine(1), "memory.json")).unwrap();
    assert!(!memories.is_kept(&machine(1)) && memories.was_begun(&machine(1)));
    memories.clear(&machine(1)).unwrap();
    assert!(!memories.was_begun(&machine(1)));
    fs::create_dir(memories.dir.join(machine(1).as_str())).unwrap();
    drop(memories.begin(&machine(1)).unwrap());
    assert!(!memories.is_kept(&machine(1)) && memories.was_begun(&machine(1)));
    assert!(memories.take(&machine(1)).is_none());
    keep(&memories, 1, 10);
    fs::write(memories.path(&machine(1), "memory.json"), "{").unwrap();
    assert!(memories.take(&machine(1)).is_none());
    assert!(!memories.was_begun(&machine(1)));
}

#[test]
fn clearing_a_machine_away_leaves_whole_memory() {
    let dir = tempfile::tempdir().unwrap();
    let memories = memories(dir.path(), 1 << 30);
    keep(&memories, 1, 10);
    memories.clear(&machine(1)).unwrap();
    assert!(memories.take(&machine(1)).is_some());
}

#[test]
fn the_oldest_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let memories = memories(dir.path(), 300 << 10);
    for number in 1..=2 {
        keep(&memories, number, 100 << 10);
        let kept_at = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(number));
        let memory = memories.dir.join(machine(number).as_str()).join("memory");
        let memory = fs::File::options().write(true).open(memory).unwrap();
        memory.set_modified(kept_at).unwrap();
    }
    let goes = |bytes: u64| {
        let room = memories.plan(bytes, &pool(None)).unwrap();
        room.map(|room| room.goes)
    };
    assert_eq!(goes(100 << 10), Some(vec![]));
    assert_eq!(goes(150 << 10), Some(vec![machine(1)]));
    assert_eq!(goes(250 << 10), Some(vec![machine(1), machine(2)]));
    assert_eq!(goes(301 << 10), None, "never beyond it");
    assert_eq!(goes(u64::MAX >> 1), None);
    assert!(
        memories.is_kept(&machine(1)),
        "a plan costs nobody anything"
    );
    let room = memories.plan(150 << 10, &pool(None)).unwrap().unwrap();
    memories.make(room).unwrap();
    assert!(!memories.is_kept(&machine(1)) && memories.is_kept(&machine(2)));
}

fn pool(disk: Option<SharedDisk>) -> PoolReport {
    PoolReport {
        id: None,
        capacity: ByteSize(0),
        promised: ByteSize(0),
        used: ByteSize(0),
        notices: Vec::new(),
        disk,
    }
}

#[test]
fn memory_is_not_kept_in_what_volumes_were_promised_of_the_same_disk() {
    let dir = tempfile::tempdir().unwrap();
    let memories = memories(dir.path(), 1 << 30);
    let device = fs::metadata(dir.path()).unwrap().dev();
    let plan = |device: u64, promised: u64| {
        let account = Account {
            promised,
            ..Account::default()
        };
        let disk = SharedDisk { device, account };
        memories.plan(1, &pool(Some(disk))).unwrap()
    };
    assert!(plan(device, 0).is_some(), "the test itself: there is room");
    assert_eq!(plan(device, u64::MAX), None);
    assert!(plan(device + 1, u64::MAX).is_some(), "another disk");
}

#[test]
fn the_oldest_goes_as_long_as_there_is_too_little_of_either() {
    let kept = || {
        (1..=3).map(|number| Found {
            machine: machine(number),
            since: SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(number)),
            bytes: 100,
        })
    };
    // (bytes, limit, spare, how many go)
    for (bytes, limit, spare, expected) in [
        (100, 400, 100, Some(0)),
        (100, 399, 100, Some(1)),
        (100, 400, 99, Some(1)),
        (300, 1000, 0, Some(3)),
        (301, 1000, 0, None),
        (301, 300, 1000, None),
        (u64::MAX, 1000, u64::MAX, None),
    ] {
        let room = room(kept().collect(), bytes, limit, spare);
        let goes = room.map(|room| room.goes.len());
        assert_eq!(goes, expected, "{bytes} of {limit} with {spare}");
    }
}

#[test]
fn what_memory_may_still_take_is_its_limit_less_what_it_takes() {
    let dir = tempfile::tempdir().unwrap();
    let owed = |limit: u64| still_owed(dir.path(), ByteSize(limit)).0;
    assert_eq!(owed(1 << 20), 1 << 20);
    keep(&memories(dir.path(), 1 << 30), 1, 100 << 10);
    assert_eq!((owed(1 << 20), owed(1)), ((1 << 20) - (100 << 10), 0));
}

#[test]
fn memory_of_a_volume_of_another_boot_or_unwanted_is_thrown_away() {
    let dir = tempfile::tempdir().unwrap();
    let all = memories(dir.path(), 1 << 30);
    for number in 1..=3 {
        keep(&all, number, 10);
    }
    all.forget_volume(&VolumeId::from_entropy([1; 10]));
    assert!(!dir.path().join(machine(1).as_str()).exists());
    let mut old = manifest(2);
    old.origin.boot = "another".into();
    drop(all.begin(&machine(2)).unwrap());
    all.commit(&machine(2), &old).unwrap();
    let all = memories(dir.path(), 1 << 30);
    let kept = |all: &Memories| [1, 2, 3].map(|number| all.is_kept(&machine(number)));
    assert_eq!(kept(&all), [false, false, true]);
    assert!(!all.was_begun(&machine(2)), "nothing lives of another boot");
    let none = Memories::open(dir.path().to_owned(), None).unwrap();
    assert_eq!(kept(&none), [false; 3]);
    assert!(none.was_begun(&machine(3)), "should it still live");
}
