//! The disk of a virtual machine: the machine alone checks its file system and makes it larger, and says when it is damaged.

use crate::client::Client;
use crate::harness::{Guest, Host, Kind, WAIT, http, wait_for};
use slipway_core::generation::Generation;
use slipway_core::guest_api::GuestStatus;
use slipway_core::host_api::{EndpointPort, HostReply, HostRequest, MachineRunState, MachineSpec};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

const GIB: u64 = 1 << 30;

/// Bytes that the file system of the cache volume has inside.
fn room(host: &Host, spec: &MachineSpec) -> u64 {
    let stream = host.open_when_up(spec, EndpointPort::Guest);
    let (status, reply) = http(stream, "GET /v1/status?wait_ready_ms=0", b"");
    assert_eq!(status, 200, "{reply}");
    let (_, body) = reply.split_once("\r\n\r\n").unwrap();
    let start = body.find('{').unwrap();
    let end = body.rfind('}').unwrap();
    let status: GuestStatus = serde_json::from_str(&body[start..=end]).unwrap();
    status.disk.total_bytes
}

/// The image of a volume that nobody has.
fn image(host: &Host, spec: &MachineSpec) -> File {
    let volume = spec.volume.as_str();
    let path: PathBuf = fs::read_dir(host.dir.join("pool/volumes"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            name.starts_with(volume) && name.ends_with(".img")
        })
        .unwrap();
    File::options().read(true).write(true).open(path).unwrap()
}

fn console(host: &Host, spec: &MachineSpec) -> String {
    let state = host.dir.join("state/machines");
    let path = state.join(spec.machine.as_str()).join("console.log");
    String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned()
}

fn extend(client: &mut Client, spec: &MachineSpec, size_bytes: u64) {
    let extend = HostRequest::ExtendVolume {
        volume: spec.volume.clone(),
        size_bytes,
    };
    match client.ask(extend).0 {
        HostReply::Volume(report) => assert_eq!(report.size_bytes, size_bytes),
        other => panic!("{other:?}"),
    }
}

const SUPERBLOCK_AT: u64 = 1024;
/// `s_state`, `s_feature_ro_compat` and `s_checksum` of `struct ext4_super_block`.
const STATE: usize = 0x3a;
const READ_ONLY_FEATURES: usize = 0x64;
const CHECKSUM: usize = 0x3fc;

fn superblock(disk: &File) -> [u8; 1024] {
    let mut block = [0; 1024];
    disk.read_exact_at(&mut block, SUPERBLOCK_AT).unwrap();
    block
}

/// Has the superblock say so, with a right checksum: one without is a torn superblock, which is another fault.
fn says_that_errors_were_found(disk: &File) {
    let mut block = superblock(disk);
    assert_ne!(block[READ_ONLY_FEATURES + 1] & 4, 0, "no metadata_csum");
    block[STATE] |= 2;
    let sum = crc32c(&block[..CHECKSUM]).to_le_bytes();
    block[CHECKSUM..].copy_from_slice(&sum);
    disk.write_all_at(&block, SUPERBLOCK_AT).unwrap();
    disk.sync_all().unwrap();
}

/// CRC32C as ext4 has it: not inverted in the end.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0x82f6_3b78 & 0_u32.wrapping_sub(sum & 1))
        })
    })
}

#[test]
fn a_virtual_machine_grows_and_checks_its_own_disk_and_says_when_it_is_damaged() {
    let Some(mut host) = Host::start_kind(Kind::Vm, Guest::Docker) else {
        return;
    };
    let mut client = host.client();
    let mut spec = host.machine(&mut client, 1);
    let at_first = room(&host, &spec);
    assert!(at_first > 3 * GIB && at_first < 4 * GIB, "{at_first}");

    // It grows while it runs.
    extend(&mut client, &spec, 6 * GIB);
    wait_for("the growth inside", || {
        (room(&host, &spec) > at_first + GIB).then_some(())
    });

    // It ends uncleanly, and says that errors were found.
    client.stop(&spec.machine, 1, Duration::ZERO).unwrap();
    assert!(!client.wait_exit(&spec.machine, WAIT));
    let disk = image(&host, &spec);
    says_that_errors_were_found(&disk);
    // With a cap, which stands between the disk and its machine.
    host.kill_daemon();
    host.settings["machine_disk_rate"] = serde_json::json!("1GiB");
    host.settings["machine_disk_operations"] = serde_json::json!(100_000);
    host.start_daemon();
    let mut client = host.client();
    spec.generation = Generation(2);
    client.ensure(&spec).unwrap();
    assert!(room(&host, &spec) > at_first + GIB);
    let argv = fs::read_to_string(format!("/proc/{}/cmdline", host.pid(&spec.machine))).unwrap();
    let cap = "x-bps-read=1073741824,x-bps-write=1073741824,x-iops-read=100000,x-iops-write=100000";
    assert!(argv.contains(cap), "{argv}");
    extend(&mut client, &spec, 8 * GIB);
    wait_for("the growth inside, with a cap", || {
        (room(&host, &spec) > at_first + 3 * GIB).then_some(())
    });
    client.stop(&spec.machine, 2, Duration::ZERO).unwrap();
    client.wait_exit(&spec.machine, WAIT);
    let said = console(&host, &spec);
    assert!(said.contains("unclean end before"), "{said}");
    assert_eq!(
        superblock(&disk)[STATE] & 2,
        0,
        "it was checked, and found whole"
    );
    assert!(!host.log().contains("checking the file system"));

    // What cannot be repaired is reported, and the host still reads nothing of it.
    disk.set_len(0).unwrap();
    disk.set_len(8 * GIB).unwrap();
    spec.generation = Generation(3);
    client.ensure(&spec).unwrap();
    assert!(!client.wait_exit(&spec.machine, WAIT));
    let state = client.machine(&spec.machine).unwrap().state;
    let damaged = MachineRunState::Exited {
        clean: false,
        damaged: true,
    };
    assert_eq!(state, damaged, "{}", console(&host, &spec));
    assert_eq!(host.leftovers(), Vec::<String>::new());
}
