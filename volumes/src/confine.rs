//! Programs that parse what a tenant wrote (`e2fsck`, `resize2fs`) run as nobody: an error in one of them gives whoever wrote
//! the file system no more than that file system.
//!
//! Such a program has a user id that nothing else has, no privilege and no way to one, namespaces of its own without network, a root
//! directory with nothing but the system's programs and libraries (read-only) and its disk, bounded memory, and the system
//! calls that it needs.
//!
//! Must not know: what the programs do.

#![expect(
    unsafe_code,
    reason = "what a child gives up before it begins has no safe wrapper"
)]

use crate::bare_root::BareRoot;
use crate::limits::CONFINED_MEMORY_BYTES_MAX;
use nix::libc::{self, c_long};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// The disk, as the program sees it.
pub(crate) const DISK: &str = "/disk";
/// First of the user ids; above those of machines and of people, below what some programs take for negative.
const ID_FIRST: u32 = 0x7fff_0000;
/// Makes `command` run so, with the block device `disk` as [`DISK`].
///
/// # Errors
/// `disk` is no block device, or cannot be looked at.
pub(crate) fn confine(command: &mut Command, disk: &Path) -> io::Result<()> {
    let node = std::fs::metadata(disk)?;
    if !node.file_type().is_block_device() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a block device",
        ));
    }
    let number = node.rdev();
    let id = ID_FIRST + (std::process::id() & 0x7fff);
    let mut root = BareRoot::with_programs()?;
    root.add_disk(Path::new(DISK), number, id)?;
    // e2fsck opens it at its start and complains if it cannot.
    root.add_directory(Path::new("/dev"))?;
    root.add_file(Path::new("/dev/null"))?;
    let filter = filter();
    // The programs look for it to see whether the disk is mounted; the pool has seen to that.
    command.env("EXT2FS_NO_MTAB_OK", "1");
    // SAFETY: the closure runs between fork and exec and makes system calls only (no allocation, no locks); what it reads was made
    // before the fork and outlives it.
    unsafe {
        command.pre_exec(move || {
            let spaces = libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
            check(libc::unshare(spaces).into())?;
            root.enter()?;
            check(libc::setsid().into())?;
            for (resource, most) in [
                (libc::RLIMIT_AS, CONFINED_MEMORY_BYTES_MAX),
                (libc::RLIMIT_CORE, 0),
                (libc::RLIMIT_NOFILE, 64),
                (libc::RLIMIT_MEMLOCK, 0),
            ] {
                let limit = libc::rlimit {
                    rlim_cur: most,
                    rlim_max: most,
                };
                check(libc::setrlimit(resource, &raw const limit).into())?;
            }
            check(libc::setgroups(0, std::ptr::null()).into())?;
            check(libc::setresgid(id, id, id).into())?;
            check(libc::setresuid(id, id, id).into())?;
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into())?;
            let program = libc::sock_fprog {
                len: u16::try_from(filter.len()).unwrap_or(u16::MAX),
                filter: filter.as_ptr().cast_mut(),
            };
            let mode = libc::SECCOMP_MODE_FILTER;
            check(libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program, 0, 0).into())
        });
    }
    Ok(())
}

fn check(result: c_long) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The system calls that a program needs which reads and writes one disk. Any other is not there.
#[rustfmt::skip]
const ALLOWED: &[c_long] = &[
    libc::SYS_execve, libc::SYS_dup, libc::SYS_exit, libc::SYS_exit_group, libc::SYS_brk, libc::SYS_mmap, libc::SYS_munmap, libc::SYS_mprotect,
    libc::SYS_mremap, libc::SYS_madvise, libc::SYS_openat, libc::SYS_close, libc::SYS_read, libc::SYS_write, libc::SYS_readv,
    libc::SYS_writev, libc::SYS_pread64, libc::SYS_pwrite64, libc::SYS_lseek, libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_statx,
    libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_readlinkat, libc::SYS_ioctl, libc::SYS_fcntl, libc::SYS_fsync,
    libc::SYS_fdatasync, libc::SYS_fallocate, libc::SYS_fadvise64, libc::SYS_getrandom, libc::SYS_getpid, libc::SYS_gettid,
    libc::SYS_getuid, libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getegid, libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn, libc::SYS_sigaltstack, libc::SYS_gettimeofday, libc::SYS_clock_gettime, libc::SYS_getrusage,
    libc::SYS_times, libc::SYS_prlimit64, libc::SYS_set_tid_address, libc::SYS_set_robust_list, libc::SYS_rseq, libc::SYS_futex,
    libc::SYS_sched_getaffinity, libc::SYS_sched_yield, libc::SYS_sysinfo, libc::SYS_uname, libc::SYS_getcwd,
];
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const ALLOWED_HERE: &[c_long] = &[
    libc::SYS_open, libc::SYS_stat, libc::SYS_lstat, libc::SYS_access, libc::SYS_readlink, libc::SYS_arch_prctl, libc::SYS_time,
    libc::SYS_getrlimit,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[c_long] = &[];

/// `AUDIT_ARCH_*` of include/uapi/linux/audit.h: calls of other kinds are other numbers.
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

/// A seccomp filter (Documentation/userspace-api/seccomp_filter.rst): `ENOSYS` for what is not allowed. `clone` makes threads and no
/// processes: e2fsck reads the bitmaps of a file system of some GiB in several. `clone3`, whose flags a filter cannot see, is not
/// there, and the C library makes do with `clone`.
fn filter() -> Vec<libc::sock_filter> {
    const LOAD: u16 = 0x20;
    const EQUAL: u16 = 0x15;
    const ANY_BIT: u16 = 0x45;
    const RETURN: u16 = 0x06;
    // Offsets in `struct seccomp_data`.
    const NUMBER: u32 = 0;
    const MACHINE: u32 = 4;
    /// Lower half of the first argument, on little-endian machines as all of these are.
    const FLAGS: u32 = 16;
    let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let refuse = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();
    let mut steps = vec![
        step(LOAD, MACHINE, 0, 0),
        step(EQUAL, ARCH, 1, 0),
        step(RETURN, libc::SECCOMP_RET_KILL_PROCESS, 0, 0),
        step(LOAD, NUMBER, 0, 0),
    ];
    for number in ALLOWED.iter().chain(ALLOWED_HERE) {
        steps.push(step(
            EQUAL,
            u32::try_from(*number).unwrap_or(u32::MAX),
            0,
            1,
        ));
        steps.push(step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0));
    }
    let clone = u32::try_from(libc::SYS_clone).unwrap_or(u32::MAX);
    steps.extend([
        step(EQUAL, clone, 0, 3),
        step(LOAD, FLAGS, 0, 0),
        step(ANY_BIT, libc::CLONE_THREAD.cast_unsigned(), 0, 1),
        step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
        step(RETURN, refuse, 0, 0),
    ]);
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loopdev::LoopDevice;
    use std::os::unix::fs::FileExt;

    /// What a program of the system can do there, tried by the shell.
    #[test]
    fn a_confined_program_has_its_disk_and_nothing_else() {
        if !nix::unistd::geteuid().is_root() {
            assert!(
                std::env::var("CI").as_deref() != Ok("true"),
                "this test needs root"
            );
            eprintln!("skipped: needs root");
            return;
        }
        let image = tempfile::tempfile().unwrap();
        image.set_len(1 << 20).unwrap();
        image.write_all_at(b"on the disk", 0).unwrap();
        let device = LoopDevice::attach(&image, false).unwrap().into_device();
        let run = |program: &str, args: &[&str]| {
            let mut command = Command::new(program);
            command.args(args).env_clear().env("PATH", "/usr/bin:/bin");
            confine(&mut command, &device.path).unwrap();
            let output = command.output().unwrap();
            (
                output.status.success(),
                String::from_utf8_lossy(&output.stdout).into_owned(),
            )
        };
        assert_eq!(
            run("head", &["-c", "11", DISK]),
            (true, "on the disk".to_owned())
        );
        for absent in [
            "/etc/passwd",
            "/proc/self/status",
            "/dev/loop-control",
            "/run",
        ] {
            assert!(!run("head", &["-c", "1", absent]).0, "{absent}");
        }
        // Nothing is listed, made or started, and the user is nobody.
        assert!(!run("ls", &["/"]).0);
        assert!(!run("mkdir", &["/usr/slipway-test"]).0);
        assert!(!run("sh", &["-c", "/bin/true; exit 0 | true"]).0);
        let (_, id) = run("id", &["-u"]);
        assert!(id.trim().parse::<u32>().unwrap() >= ID_FIRST, "{id}");
    }

    /// A check that must read all of a large file system does so in several threads where there are several processors.
    #[test]
    fn a_large_file_system_is_checked_and_grown() {
        if !nix::unistd::geteuid().is_root() {
            assert!(
                std::env::var("CI").as_deref() != Ok("true"),
                "this test needs root"
            );
            eprintln!("skipped: needs root");
            return;
        }
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(16 << 30).unwrap();
        let made = Command::new("mkfs.ext4")
            .args(["-q", "-E", "lazy_itable_init=1,lazy_journal_init=1"])
            .arg(image.path())
            .arg("8G")
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let device = LoopDevice::attach(image.as_file(), false)
            .unwrap()
            .into_device();
        crate::fs::grow_unmounted(&device.path).unwrap();
        let size = crate::fs::size(&device.path).unwrap().unwrap();
        assert!(size > 15 << 30, "{size}");
    }
}
