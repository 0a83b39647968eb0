//! The router: a network namespace of our own, between the machines and the host. Nothing on the host but this daemon's
//! kind has business in it, so no reload of a firewall, and no daemon that is away, changes what machines reach.
//!
//! Owns: how the namespace outlives the daemon, and how work is done in it. Must not know: links, addresses, rules.
//!
//! The namespace is kept by a file in the run directory that it is mounted on, as `ip netns` does it. `ip -n` and
//! `ip netns exec` are never used: they make a mount namespace, which copies every mount of the host.

use super::NetworkError;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};
use socket2::{Domain, Socket, Type};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// The namespace. A clone is the same one.
#[derive(Debug, Clone)]
pub(crate) struct Router {
    namespace: Arc<File>,
}

impl Router {
    /// The router that is kept at `path`; a new one if there is none, as after a reboot.
    ///
    /// # Errors
    /// [`NetworkError::Router`].
    pub(super) fn open(path: &Path) -> Result<Self, NetworkError> {
        let at = |action| {
            move |source| NetworkError::Router {
                action,
                path: path.to_owned(),
                source,
            }
        };
        if let Some(router) = Self::kept(path).map_err(at("open"))? {
            return Ok(router);
        }
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(at("make"))?;
        on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let none: Option<&str> = None;
            mount(
                Some("/proc/thread-self/ns/net"),
                path,
                none,
                MsFlags::MS_BIND,
                none,
            )?;
            // What is mounted later in copies of this mount is nobody's business here, and the other way round.
            mount(none, path, none, MsFlags::MS_PRIVATE, none)?;
            Ok(())
        })
        .map_err(at("make a network namespace at"))?;
        Self::kept(path)
            .map_err(at("open"))?
            .ok_or_else(|| at("find a network namespace at")(io::ErrorKind::NotFound.into()))
    }

    fn kept(path: &Path) -> io::Result<Option<Self>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        // An empty file is what a reboot or a crash leaves.
        let is_namespace = fstatfs(&file)?.filesystem_type() == NSFS_MAGIC;
        Ok(is_namespace.then(|| Self {
            namespace: Arc::new(file),
        }))
    }

    /// Does `work` on a thread in the router's namespace. Programs that it runs are in there too.
    ///
    /// # Errors
    /// There is no thread to be had, or the namespace cannot be entered.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        in_network_of(&self.namespace, work)
    }

    /// A TCP socket that connects from the router.
    ///
    /// # Errors
    /// As [`Router::enter`], or there is no socket to be had.
    pub(crate) fn tcp_socket(&self) -> io::Result<Socket> {
        self.enter(|| Socket::new(Domain::IPV4, Type::STREAM, None))?
    }

    /// The namespace.
    pub(super) fn namespace(&self) -> &File {
        &self.namespace
    }
}

/// Does `work` on a thread in the network namespace that `namespace` is a file of.
///
/// # Errors
/// There is no thread to be had, or the namespace cannot be entered.
pub(super) fn in_network_of<T: Send>(
    namespace: &File,
    work: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    on_a_thread(|| {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    })
}

/// A thread that ends afterwards: one that has left its process's namespace is of no other use.
fn on_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("router".to_owned())
            .spawn_scoped(scope, work)?
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
