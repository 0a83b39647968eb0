//! Every bound of the host daemon, and what happens at it. docs/LIMITS.md lists each with its test.

use slipway_core::units::ByteSize;
use std::time::Duration;

/// Connections of listed users to the host API at once. Further ones wait in the listener's backlog.
pub const CONNECTIONS_MAX: usize = 512;
/// Connections of users who are not listed that are being refused at once. One more is closed unanswered.
pub const REFUSALS_MAX: usize = 16;
/// Endpoints of all machines being opened at once, so that other verbs always find a connection. One more is refused with
/// `busy`.
pub const OPENING_MAX: usize = 128;
/// Endpoints being opened at once on one port of a machine. One more is refused with `busy`.
pub const OPENING_PER_PORT_MAX: usize = 4;
/// How long a peer may take to send the rest of a frame it has begun, or to take a reply. Then it is cut off.
pub const FRAME_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long a request other than `watch_machines` may take before it is answered with `in_progress`. Its work is
/// finished all the same, so that asking again finds it done.
pub const REQUEST_WAIT_MAX: Duration = Duration::from_secs(120);
/// How long the daemon waits at shutdown for requests in hand. After it, they are dropped; the next start clears up.
pub const SHUTDOWN_WAIT_MAX: Duration = Duration::from_secs(20);
/// Machines on one host, ended ones that are still remembered not counted. One more is refused with `no_space`.
pub const MACHINES_MAX: u16 = 1024;
/// Bytes that a machine's record may take, set aside on the disk for as long as it has one. A longer one is refused.
pub const RECORD_BYTES_MAX: usize = 4 << 10;
/// A disk that the daemon writes to and that has less free than this, in bytes, is told as full.
pub const DISK_FREE_MIN: u64 = 16 << 20;
/// Machines being started at once; further ones wait in order, within [`REQUEST_WAIT_MAX`].
pub const STARTS_AT_ONCE_MAX: usize = 8;
/// Memory that is held back for the host itself where the settings name no bound, at least,
pub const HOST_MEMORY_MIN: u64 = 1 << 30;
/// and at least one part in so many of all.
pub const HOST_MEMORY_PART: u64 = 20;
/// Files that a program in a sandbox may have open unless it asks for more, which it may up to what the daemon has itself.
pub const OPEN_FILES_SOFT: u64 = 65_536;
/// Most files that a program in a sandbox can have open, where the host lets the daemon have as many. What clients ask for.
pub const OPEN_FILES_MAX: u64 = 1 << 20;
/// Bytes that a program in a sandbox may lock in memory unless it asks for more, which it may up to what the daemon has itself.
pub const LOCKED_BYTES_SOFT: u64 = 8 << 20;
/// User and group ids that a machine has. Fixed by the images people build (`nobody` is 65534).
pub const MACHINE_IDS: u32 = 1 << 16;
/// Longest grace that `stop_machine` may ask for; more is cut to it.
pub const STOP_GRACE_MAX: Duration = Duration::from_secs(600);
/// How often a guest that is too young to hear that it should end is asked again, until its grace is over.
pub const ASK_AGAIN_EVERY: Duration = Duration::from_millis(20);
/// How often one that has heard is asked once more, until its grace is over: a request can be lost, and one that ends takes
/// no notice of another.
pub const REMIND_EVERY: Duration = Duration::from_secs(1);
/// How long the runtime may take from its answer to a start until the guest runs in its place. Then the start has failed.
pub const EXEC_WAIT_MAX: Duration = Duration::from_secs(10);
/// How often a machine that was killed is killed again, until it is gone.
pub const KILL_AGAIN_EVERY: Duration = Duration::from_secs(1);
/// How many levels of cgroups a machine can make below its own, on cgroup v2. A deeper one is refused to it.
pub const CGROUP_DEPTH_MAX: u32 = 32;
/// How many cgroups a machine can make below its own, on cgroup v2. One more is refused to it.
pub const CGROUPS_MAX: u32 = 2048;
/// How long a killed machine may take to be gone. Then the verb fails, and may be asked again.
pub const KILL_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long a program that the daemon runs (`runc`, `ip`, `nft`, `mount`, `unsquashfs`) may take. Then it is killed.
pub const PROGRAM_WAIT_MAX: Duration = Duration::from_secs(60);
/// Bytes of a program's output that are kept for an error message. The rest is dropped.
pub const PROGRAM_OUTPUT_BYTES_MAX: usize = 4 << 10;
/// How long a virtual machine may take to take a stream. Then `busy`. (A sandbox does so at once, or its backlog is full, which
/// is `busy` at once.)
pub const ENDPOINT_CONNECT_WAIT_MAX: Duration = Duration::from_secs(5);
/// Connections that wait in a machine's listener before it accepts (the kernel may hold fewer). One more is refused with `busy`.
pub const ENDPOINT_BACKLOG: i32 = 1024;
/// What a machine may write to its console and its end record together. Further writes of its PID 1 fail.
pub const CONSOLE_BYTES_MAX: u64 = 1 << 20;
/// Bytes of the console's tail that are kept when a machine has ended.
pub const CONSOLE_KEPT_BYTES: u64 = 64 << 10;
/// Bytes of the console's tail in which the last words of a machine that ended badly are looked for.
pub const LAST_WORDS_READ_BYTES: u64 = 8 << 10;
/// Bytes of the end record that are read; the room is set aside at the start, so that a full console cannot take it.
pub const END_RECORD_BYTES_MAX: u64 = 4 << 10;
/// How long a virtual machine's monitor may take to greet or to answer. Then the start or the verb fails.
pub const MONITOR_WAIT_MAX: Duration = Duration::from_secs(20);
/// Bytes of one line of a monitor; a longer one is cut, and fails as no answer.
pub const MONITOR_LINE_BYTES_MAX: u64 = 1 << 20;
/// How long the first attempt to connect into a virtual machine may take; each further one twice as long, up to
/// [`CHANNEL_ATTEMPT_MAX`], all of them within [`ENDPOINT_CONNECT_WAIT_MAX`].
pub const CHANNEL_ATTEMPT_MIN: Duration = Duration::from_millis(50);
/// See [`CHANNEL_ATTEMPT_MIN`].
pub const CHANNEL_ATTEMPT_MAX: Duration = Duration::from_secs(1);
/// How long a stream into a virtual machine may be silent before it is looked whether the other end lives, and between
/// two looks. After four without an answer the stream is broken off.
pub const CHANNEL_KEEPALIVE: Duration = Duration::from_secs(15);
/// How long one attempt to ask a virtual machine to end may take; then it is asked again.
pub const ASK_TO_END_WAIT_MAX: Duration = Duration::from_secs(1);
/// How often virtual machines are asked whether they are in use, where they are paused when they are not.
pub const REST_CHECK_EVERY: Duration = Duration::from_secs(1);
/// How long a virtual machine may take to say whether it is in use. Then it counts as in use.
pub const REST_ASK_WAIT_MAX: Duration = Duration::from_millis(500);
/// How long a virtual machine that ends for want of use may take to stand still. Then it ends without its memory being kept.
pub const STILLNESS_WAIT_MAX: Duration = Duration::from_secs(4);
/// How long QEMU may take to write a machine's memory to its file. Then the machine ends without.
pub const MEMORY_SAVE_WAIT_MAX: Duration = Duration::from_secs(6);
/// How long QEMU may take to read kept memory. Then it is thrown away, and the machine boots.
pub const MEMORY_LOAD_WAIT_MAX: Duration = Duration::from_secs(20);
/// How long a virtual machine may take to say that it goes on. Then, where it was to go on from kept memory, it boots.
pub const RESUME_TELL_WAIT_MAX: Duration = Duration::from_secs(5);
/// What must stay free on the disk of the state directory when a machine's memory is kept. Else it is not.
pub const KEPT_MEMORY_FREE_MIN: u64 = 1 << 30;
/// How long the boot of a kernel may take that shows at the start of the daemon whether KVM works. Then it does not.
pub const PROBE_WAIT_MAX: Duration = Duration::from_secs(10);
/// Memory that QEMU may take beyond the guest's. A machine whose QEMU takes more is killed, which counts as a crash.
pub const QEMU_OVERHEAD_BYTES: u64 = 512 << 20;
/// Threads of a virtual machine's QEMU. It cannot start more, and does with fewer workers.
pub const QEMU_THREADS_MAX: u32 = 512;
/// Longest that a verb on a volume waits for another one on it. Then it is refused with `busy`.
pub const VOLUME_TURN_WAIT_MAX: Duration = Duration::from_secs(30);
/// How long the highest generation of a removed machine, and the highest fencing number of a destroyed volume, is remembered.
pub const FENCE_KEPT: Duration = Duration::from_secs(90 * 24 * 3600);
/// How long a mount may stay busy while a machine is cleared away. Then it is detached lazily and that is logged.
pub const UNMOUNT_WAIT_MAX: Duration = Duration::from_secs(5);
/// How often the pool is looked at, to tell its operator in time that it fills.
pub const POOL_CHECK_EVERY: Duration = Duration::from_secs(30);
/// How often the builder image and the kernel of virtual machines are looked at: a replaced image is read and mounted before a start
/// needs it.
pub const IMAGE_CHECK_EVERY: Duration = Duration::from_secs(30);
/// How often the log says that one of them is older than it should be.
pub const IMAGE_WARN_EVERY: Duration = Duration::from_secs(24 * 3600);
/// Longest lease of a volume's key; more is cut to it.
pub const KEY_LEASE_MAX: Duration = Duration::from_secs(3600);
/// How long older generations than the last that was lent for a volume are refused after its last lease was made or revoked.
pub const KEY_FENCE_KEPT: Duration = Duration::from_secs(24 * 3600);
/// How often leases that are over are looked for, to wipe their keys. They are of no use from the moment they are over.
pub const KEYS_CHECK_EVERY: Duration = Duration::from_secs(5);
/// Volumes whose keys may be lent to one host. One more is refused with `busy`.
pub const KEYS_MAX: usize = 16 << 10;
/// Exports and imports at once. One more is refused with `busy`.
pub const TRANSFERS_MAX: usize = 16;
/// How long an export waits for its other side to take a byte. Then it breaks off.
pub const TRANSFER_IDLE_MAX: Duration = Duration::from_secs(60);
/// How long an import waits for its other side to give a byte. Longer than an export: what is sent may come from another host,
/// which reads long stretches of zeros without a word.
pub const IMPORT_IDLE_MAX: Duration = Duration::from_secs(3600);

/// Mirrors of registries (`registry_mirrors`), all together. More are refused at the start.
pub const MIRRORS_MAX: usize = 32;

/// Bytes of one file of `ca_files`. A larger one is refused at the start.
pub const CA_FILE_BYTES_MAX: u64 = 1 << 20;

/// How often it is looked whether the host's resolvers or addresses, the link to the router or the host's firewall table have
/// changed. For so long at most, machines have no way out after a reload of the host's firewall that flushes every table.
pub const NETWORK_CHECK_EVERY: Duration = Duration::from_secs(3);
/// Neighbours (ARP) that host and machines know together; where the kernel's bound is lower, it is raised to this. Above half
/// of it, entries that are not used make room.
pub const NEIGHBOURS_MAX: u32 = 65_536;
/// Connections of one machine that are tracked at once. The next is refused until one has ended or was forgotten.
pub const MACHINE_FLOWS_MAX: u32 = 4096;
/// Connections that one machine may begin in a second, once it has used up [`MACHINE_NEW_FLOWS_BURST`]. The packets that
/// would begin more are dropped, so that programs send them again a little later.
pub const MACHINE_NEW_FLOWS_PER_S: u32 = 500;
/// See [`MACHINE_NEW_FLOWS_PER_S`].
pub const MACHINE_NEW_FLOWS_BURST: u32 = 2000;
/// How long an established TCP connection of a machine may be silent before it is forgotten (RFC 5382 wants no less).
pub const FLOW_ESTABLISHED_KEPT: Duration = Duration::from_secs(7440);
/// How long a connection of a machine is remembered that one side has closed. Then it counts no more.
pub const FLOW_CLOSING_KEPT: Duration = Duration::from_secs(60);
/// How long one is remembered that both sides have closed.
pub const FLOW_TIME_WAIT_KEPT: Duration = Duration::from_secs(30);
/// How long a silent exchange of UDP is remembered.
pub const FLOW_UDP_KEPT: Duration = Duration::from_secs(120);
/// Least bytes in a second that a machine's volume can be capped to. Less is refused as a setting.
pub const DISK_RATE_MIN: ByteSize = ByteSize::mib(1);
/// Percent of the rate that the kernel tells of the host's interface which machines have together, each way. What is on the wire
/// besides packets takes the rest anyway.
pub const NETWORK_RATE_PERCENT: u64 = 98;
/// How much of what a machine sends or receives waits for its turn, as time at the highest rate it may have. What is more is
/// dropped, and its programs send slower.
pub const NETWORK_QUEUE_MS: u64 = 50;
/// The same in bytes, at least,
pub const NETWORK_QUEUE_BYTES_MIN: u64 = 256 << 10;
/// and at most.
pub const NETWORK_QUEUE_BYTES_MAX: u64 = 8 << 20;
/// Bytes that a machine may send or receive at once after it was silent, at least,
pub const NETWORK_BURST_BYTES_MIN: u64 = 128 << 10;
/// and at most.
pub const NETWORK_BURST_BYTES_MAX: u64 = 8 << 20;

const _: () = assert!(
    STILLNESS_WAIT_MAX.as_secs() + MEMORY_SAVE_WAIT_MAX.as_secs()
        <= slipway_core::limits::CAPTURE_WAIT_MAX.as_secs()
);
const _: () = assert!(OPENING_MAX * 2 <= CONNECTIONS_MAX);
const _: () = assert!(END_RECORD_BYTES_MAX + CONSOLE_KEPT_BYTES < CONSOLE_BYTES_MAX);
const _: () =
    assert!(KILL_WAIT_MAX.as_secs() + PROGRAM_WAIT_MAX.as_secs() < REQUEST_WAIT_MAX.as_secs());
const _: () = assert!(
    ENDPOINT_CONNECT_WAIT_MAX.as_secs() < FRAME_WAIT_MAX.as_secs()
        && slipway_core::limits::HOST_API_WATCH_WAIT_MAX.as_secs() < REQUEST_WAIT_MAX.as_secs()
);
