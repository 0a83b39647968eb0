//! QEMU's command line, from a machine's size and its place. Pure: same input, same words. All files come as open
//! descriptors, so the process needs no right to any path.
//!
//! Options: QEMU's own manual (`qemu-system-x86_64(1)`), 7.2 (Debian 12) and 10.0 (Debian 13).
//!
//! Must not know: how the descriptors were opened, or how the process is confined.

use crate::disk::DiskCap;
use slipway_core::vm::{BOOT_FILE, END_PORT, VOLUME_SERIAL};

/// What runs the machine's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accelerator {
    /// The processor itself.
    Kvm,
    /// QEMU, many times slower.
    Tcg,
}

impl Accelerator {
    /// As QEMU and reports name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// The descriptors a machine's QEMU starts with, in the order of their numbers, from 3 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Passed {
    /// The kernel.
    Kernel = 3,
    /// The initrd.
    Initrd,
    /// What the guest is told.
    Boot,
    /// The builder image.
    Base,
    /// The guest's layer.
    Layer,
    /// The kernel's modules.
    Modules,
    /// The cache volume.
    Volume,
    /// The console, for appending.
    Console,
    /// The end record, for appending.
    End,
    /// The listener of QEMU's monitor.
    Monitor,
    /// The tap.
    Tap,
}

impl Passed {
    /// All of them, in order.
    pub(super) const ALL: [Self; 11] = [
        Self::Kernel,
        Self::Initrd,
        Self::Boot,
        Self::Base,
        Self::Layer,
        Self::Modules,
        Self::Volume,
        Self::Console,
        Self::End,
        Self::Monitor,
        Self::Tap,
    ];

    fn number(self) -> u8 {
        self as u8
    }

    /// For what opens a path: the descriptor, opened anew.
    fn path(self) -> String {
        format!("/proc/self/fd/{}", self.number())
    }

    /// For what takes a set of descriptors.
    fn set(self) -> String {
        format!("/dev/fdset/{}", self.number())
    }
}

/// Bytes that translated code may take; it is not the guest's memory.
pub(super) const TRANSLATION_BYTES: u64 = 128 << 20;

/// What a command line is made from.
#[derive(Debug)]
pub(super) struct Line<'a> {
    /// For process lists.
    pub(super) name: &'a str,
    /// What runs it.
    pub(super) accelerator: Accelerator,
    /// Guest memory in bytes.
    pub(super) memory_bytes: u64,
    /// Virtual processors.
    pub(super) cpus: u32,
    /// The machine's MAC.
    pub(super) mac: &'a str,
    /// Bytes that a packet may have.
    pub(super) mtu: u32,
    /// What may be written outside the volume, in bytes.
    pub(super) scratch_bytes: u64,
    /// Its memory may be kept: the kernel wipes what is freed, so that no more of a build lies in there than must, and what
    /// is free takes no room.
    pub(super) wipes: bool,
    /// What it may take of its volume.
    pub(super) disk_cap: DiskCap,
    /// It waits to be filled with a machine's kept memory, instead of booting.
    pub(super) waits: bool,
}

/// The arguments.
pub(super) fn arguments(line: &Line<'_>) -> Vec<String> {
    let mut words = Words::default();
    let [name, boot] = [
        line.name,
        &format!("name={BOOT_FILE},file={}", Passed::Boot.path()),
    ];
    words.pair("-name", &format!("{name},debug-threads=on"));
    base(&mut words, line.accelerator);
    words.pair("-smp", &line.cpus.to_string());
    words.pair("-m", &format!("size={}k", line.memory_bytes >> 10));
    words.pair("-kernel", &Passed::Kernel.path());
    words.pair("-initrd", &Passed::Initrd.path());
    words.pair("-append", &kernel_parameters(line));
    words.pair("-fw_cfg", boot);
    serial_ports(&mut words);
    monitor(&mut words);
    for (passed, serial) in [
        (Passed::Base, "base"),
        (Passed::Layer, "layer"),
        (Passed::Modules, "modules"),
    ] {
        read_only_disk(&mut words, passed, serial);
    }
    volume(&mut words, line.disk_cap);
    words.pair(
        "-netdev",
        &format!("tap,id=net,fd={}", Passed::Tap.number()),
    );
    // No option ROM: nothing boots from the network.
    words.pair(
        "-device",
        &format!(
            "virtio-net-pci,netdev=net,mac={},host_mtu={},romfile=",
            line.mac, line.mtu
        ),
    );
    // Memory that the guest has freed goes back to the host by itself.
    words.pair(
        "-device",
        "virtio-balloon-pci,deflate-on-oom=on,free-page-reporting=on",
    );
    words.pair("-device", "virtio-rng-pci");
    // Another one in each QEMU: a kernel that goes on from kept memory makes its random numbers anew.
    words.pair("-device", "vmgenid,guid=auto");
    if line.waits {
        words.one("-S");
        words.pair("-incoming", "defer");
    }
    words.0
}

/// The arguments for a boot to the initrd's first word, printed on standard output.
pub(super) fn probe_arguments(accelerator: Accelerator) -> Vec<String> {
    let mut words = Words::default();
    base(&mut words, accelerator);
    words.pair("-m", "size=256M");
    words.pair("-kernel", &Passed::Kernel.path());
    words.pair("-initrd", &Passed::Initrd.path());
    words.pair(
        "-append",
        "console=ttyS0 quiet panic=-1 edd=off slipway.probe",
    );
    words.pair("-serial", "stdio");
    words.0
}

#[derive(Default)]
struct Words(Vec<String>);

impl Words {
    fn one(&mut self, option: &str) {
        self.0.push(option.to_owned());
    }

    fn pair(&mut self, option: &str, value: &str) {
        self.one(option);
        self.one(value);
    }
}

/// A computer with as little in it as there can be.
fn base(words: &mut Words, accelerator: Accelerator) {
    words.one("-nodefaults");
    words.one("-no-user-config");
    words.pair("-display", "none");
    // A machine that boots again is one that crashed: it ends.
    words.one("-no-reboot");
    words.pair(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    );
    words.pair(
        "-machine",
        "q35,sata=off,smbus=off,vmport=off,dump-guest-core=off",
    );
    match accelerator {
        Accelerator::Kvm => {
            words.pair("-accel", "kvm");
            // No virtual machines inside, whose code in KVM breaks most often, and no performance counters, which show what
            // others do.
            words.pair("-cpu", "host,-vmx,-svm,pmu=off");
        }
        Accelerator::Tcg => {
            let mib = TRANSLATION_BYTES >> 20;
            words.pair("-accel", &format!("tcg,thread=multi,tb-size={mib}"));
            words.pair("-cpu", "max,-vmx,-svm");
        }
    }
}

fn kernel_parameters(line: &Line<'_>) -> String {
    let mut parameters = format!(
        "console=ttyS0 quiet panic=-1 edd=off slipway.scratch={}",
        line.scratch_bytes
    );
    if line.wipes {
        parameters.push_str(" init_on_free=1");
    }
    match line.accelerator {
        Accelerator::Kvm => {}
        // An emulated processor does not speculate, and what guards against it costs most there. On a busy host its timer
        // is too late for the kernel's check of it, which then panics. QEMU's threads may lose an interrupt of a processor that
        // halts: without a periodic tick its next timer never comes, and the machine hangs.
        Accelerator::Tcg => {
            parameters.push_str(" mitigations=off no_timer_check nohz=off highres=off");
        }
    }
    parameters
}

fn descriptor_set(words: &mut Words, passed: Passed) {
    let number = passed.number();
    words.pair("-add-fd", &format!("fd={number},set={number}"));
}

fn serial_ports(words: &mut Words) {
    for (passed, id) in [(Passed::Console, "console"), (Passed::End, "end")] {
        descriptor_set(words, passed);
        words.pair(
            "-chardev",
            &format!("file,id={id},path={},append=on", passed.set()),
        );
    }
    words.pair("-serial", "chardev:console");
    words.pair("-device", "virtio-serial-pci");
    words.pair(
        "-device",
        &format!("virtserialport,chardev=end,name={END_PORT}"),
    );
}

fn monitor(words: &mut Words) {
    let number = Passed::Monitor.number();
    words.pair(
        "-chardev",
        &format!("socket,id=monitor,fd={number},server=on,wait=off"),
    );
    words.pair("-mon", "chardev=monitor,mode=control");
}

fn read_only_disk(words: &mut Words, passed: Passed, serial: &str) {
    descriptor_set(words, passed);
    words.pair(
        "-blockdev",
        &format!(
            "driver=file,node-name={serial},filename={},read-only=on,locking=off",
            passed.set()
        ),
    );
    words.pair(
        "-device",
        &format!("virtio-blk-pci,drive={serial},serial={serial}"),
    );
}

/// Discards pass down to the pool; a flush of the guest is a flush of the device.
fn volume(words: &mut Words, cap: DiskCap) {
    let serial = VOLUME_SERIAL;
    descriptor_set(words, Passed::Volume);
    let device = |node: &str| {
        let set = Passed::Volume.set();
        format!("driver=host_device,node-name={node},filename={set},discard=unmap,locking=off")
    };
    if cap.is_set() {
        words.pair(
            "-object",
            &format!("throttle-group,id=cap,{}", cap.throttle_group()),
        );
        words.pair("-blockdev", &device("device"));
        words.pair(
            "-blockdev",
            &format!(
                "driver=throttle,node-name={serial},throttle-group=cap,file=device,discard=unmap"
            ),
        );
    } else {
        words.pair("-blockdev", &device(serial));
    }
    words.pair("-object", "iothread,id=io");
    words.pair(
        "-device",
        &format!("virtio-blk-pci,drive={serial},serial={serial},iothread=io"),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(accelerator: Accelerator) -> Line<'static> {
        Line {
            name: "mch-1",
            accelerator,
            memory_bytes: 2 << 30,
            cpus: 2,
            mac: "02:53:4c:02:00:01",
            mtu: 1500,
            scratch_bytes: 1 << 30,
            wipes: false,
            disk_cap: DiskCap::default(),
            waits: false,
        }
    }

    /// One option and its value a line.
    fn text(arguments: &[String]) -> String {
        let mut text = String::new();
        for word in arguments {
            let before = if !word.starts_with('-') {
                " "
            } else if text.is_empty() {
                ""
            } else {
                "\n"
            };
            text.push_str(before);
            text.push_str(word);
        }
        text + "\n"
    }

    #[test]
    fn is_the_line_on_file() {
        for (accelerator, file) in [
            (Accelerator::Kvm, "vm/command.kvm.snapshot.txt"),
            (Accelerator::Tcg, "vm/command.tcg.snapshot.txt"),
        ] {
            crate::snapshot::check(file, &text(&arguments(&line(accelerator))));
        }
        let waiting = arguments(&Line {
            wipes: true,
            disk_cap: DiskCap {
                bytes_per_s: Some(200 << 20),
                operations_per_s: Some(5000),
            },
            waits: true,
            ..line(Accelerator::Kvm)
        });
        crate::snapshot::check("vm/command.waiting.snapshot.txt", &text(&waiting));
        crate::snapshot::check(
            "vm/command.probe.snapshot.txt",
            &text(&probe_arguments(Accelerator::Kvm)),
        );
    }

    #[test]
    fn descriptors_have_the_numbers_they_are_passed_under() {
        for (number, passed) in (3..).zip(Passed::ALL) {
            assert_eq!(passed.number(), number);
        }
    }

    #[test]
    fn nothing_but_descriptors_is_opened() {
        for word in arguments(&line(Accelerator::Kvm)) {
            for path in word.split(['=', ',']).filter(|part| part.starts_with('/')) {
                assert!(
                    path.starts_with("/proc/self/fd/") || path.starts_with("/dev/fdset/"),
                    "{word}"
                );
            }
        }
    }
}
