//! Kept memory without machines: what is there after each step, and what is thrown away.

use super::*;
use slipway_core::vm::BootNetwork;
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
    assert!(memories.make_room(100 << 10).unwrap());
    assert!(memories.is_kept(&machine(1)) && memories.is_kept(&machine(2)));
    assert!(memories.make_room(150 << 10).unwrap());
    assert!(!memories.is_kept(&machine(1)) && memories.is_kept(&machine(2)));
    assert!(!memories.make_room(301 << 10).unwrap(), "never beyond it");
    assert!(!memories.make_room(u64::MAX >> 1).unwrap());
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
