//! The descriptors the host hands over: 3 and 4 are listening unix sockets, 5 is the end record. A virtual machine makes
//! them itself.
//!
//! It must not know what is served on them.

use anyhow::{Context as _, Result, bail, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{getsockopt, sockopt};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

/// Where dockerd expects its first socket (systemd's protocol), and so where the host puts it.
const ENGINE_FD: RawFd = 3;
const GUEST_FD: RawFd = 4;
const RECORD_FD: RawFd = 5;

/// What the host handed over. All of it is closed in children, until [`inherit`] says otherwise.
#[derive(Debug)]
pub(crate) struct Descriptors {
    /// Listening socket of dockerd's API.
    pub(crate) engine: OwnedFd,
    /// Listening socket of the guest API.
    pub(crate) guest: UnixListener,
    /// The end record, open for appending.
    pub(crate) record: File,
}

/// Takes the descriptors over. Fails if one is not there or not of its kind. To be called once, before anything else
/// opens a descriptor.
pub(crate) fn take() -> Result<Descriptors> {
    let engine = listener(ENGINE_FD).context("descriptor 3 (dockerd's API)")?;
    let guest = listener(GUEST_FD).context("descriptor 4 (the guest API)")?;
    let record = own(RECORD_FD).context("descriptor 5 (the end record)")?;
    Ok(Descriptors {
        engine,
        guest: UnixListener::from(guest),
        record: File::from(record),
    })
}

/// The two listeners of a machine that has no host to make them.
#[derive(Debug)]
pub(crate) struct Listeners {
    engine: OwnedFd,
    guest: UnixListener,
}

impl Listeners {
    /// All that a host would have handed over.
    pub(crate) fn with_record(self, record: File) -> Descriptors {
        Descriptors {
            engine: self.engine,
            guest: self.guest,
            record,
        }
    }
}

/// Listens at two paths. To be called before anything else opens a descriptor: the first must get the number that dockerd
/// expects.
pub(crate) fn listen(engine: &Path, guest: &Path) -> Result<Listeners> {
    let bind = |path: &Path| {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        std::io::Result::Ok(listener)
    };
    let engine = OwnedFd::from(bind(engine).context("listen for dockerd's API")?);
    ensure!(
        engine.as_raw_fd() == ENGINE_FD,
        "something opened descriptor {ENGINE_FD} before"
    );
    let guest = bind(guest).context("listen for the guest API")?;
    Ok(Listeners { engine, guest })
}

/// Lets children inherit a descriptor, or not.
pub(crate) fn inherit(descriptor: &OwnedFd, inherited: Inherited) -> Result<()> {
    let flags = match inherited {
        Inherited::Yes => FdFlag::empty(),
        Inherited::No => FdFlag::FD_CLOEXEC,
    };
    fcntl(descriptor, FcntlArg::F_SETFD(flags)).context("set close-on-exec")?;
    Ok(())
}

/// Whether children get a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inherited {
    /// They do.
    Yes,
    /// They do not.
    No,
}

fn listener(number: RawFd) -> Result<OwnedFd> {
    let descriptor = own(number)?;
    if !getsockopt(&descriptor.as_fd(), sockopt::AcceptConn).context("is it a socket")? {
        bail!("not a listening socket");
    }
    Ok(descriptor)
}

#[expect(
    unsafe_code,
    reason = "the only way to take over a descriptor that is known by its number"
)]
fn own(number: RawFd) -> Result<OwnedFd> {
    use std::os::fd::FromRawFd as _;
    // SAFETY: the borrow lives for one fcntl call, which refuses a number that is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).context("is it open")?;
    // SAFETY: it is open, and nothing else in this process owns it: the host hands 3, 4 and 5 over for this purpose,
    // and `take` runs once, before the process opens anything by itself.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
