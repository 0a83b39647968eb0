//! What machines boot: the builder image, and one layer above it with the guest program and the files that depend on
//! this host. Both are read-only, shared by all machines, and named by their content.
//!
//! Must not know: machines, or how a driver stacks the two.

use crate::files::{make_dir, remove_all};
use crate::limits::MACHINE_IDS;
use crate::network::Network;
use crate::network::resolvers::resolv_conf;
use crate::program::{ProgramError, run};
use crate::settings::{HostSettings, ImageMount};
use crate::sys;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// Characters of a content hash that name a directory.
const NAME_LEN: usize = 24;

/// Why there is nothing to boot.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    /// A file is missing or unreadable.
    #[error("{action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// `mount` or `unsquashfs`.
    #[error("mount the builder image")]
    Mount(#[source] ProgramError),
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.to_owned();
    move |source| ImageError::File {
        action,
        path,
        source,
    }
}

/// What a new machine boots.
#[derive(Debug, Clone)]
pub(crate) struct BootImage {
    /// Directory with the image's files.
    pub(crate) base: PathBuf,
    /// The image itself, a squashfs.
    pub(crate) base_file: PathBuf,
    /// Directory with the layer's files.
    pub(crate) layer: PathBuf,
}

/// The images of a host.
#[derive(Debug)]
pub(crate) struct Images {
    image: PathBuf,
    image_mount: ImageMount,
    guest: PathBuf,
    /// Layers and unpacked images: they survive a reboot.
    kept: PathBuf,
    /// Mount points: they do not.
    mounts: PathBuf,
    id_base: u32,
    registry_mirrors: Vec<String>,
    insecure_registries: Vec<String>,
    /// Content hashes by what a file looks like from outside.
    hashes: Mutex<HashMap<PathBuf, (FileStamp, String)>>,
    /// One at a time makes images.
    making: Mutex<()>,
}

/// Changes whenever a file is replaced or written.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FileStamp(u64, u64, u64, i64, i64);

impl Images {
    /// Nothing is read or made yet.
    pub(crate) fn new(settings: &HostSettings) -> Self {
        Self {
            image: settings.image_base.clone(),
            image_mount: settings.image_mount,
            guest: settings.guest_binary.clone(),
            kept: settings.state_dir.join("images"),
            mounts: settings.run_dir.join("images"),
            id_base: settings.id_base,
            registry_mirrors: settings.registry_mirrors.clone(),
            insecure_registries: settings.insecure_registries.clone(),
            hashes: Mutex::default(),
            making: Mutex::default(),
        }
    }

    /// Content hash of the image that new machines boot.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub(crate) fn hash(&self) -> Result<String, ImageError> {
        self.hash_of(&self.image)
    }

    /// What a new machine boots, as of now: a replaced image, guest program or resolver is noticed. Takes long only the first time.
    ///
    /// # Errors
    /// [`ImageError`].
    pub(crate) fn current(&self, network: &Network) -> Result<BootImage, ImageError> {
        let _one = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let hash = self.hash()?;
        let base = self.base(&hash)?;
        let layer = self.layer(network)?;
        Ok(BootImage {
            base,
            base_file: self.image.clone(),
            layer,
        })
    }

    fn hash_of(&self, path: &Path) -> Result<String, ImageError> {
        let mut file = File::open(path).map_err(at("open", path))?;
        let found = file.metadata().map_err(at("examine", path))?;
        let stamp = FileStamp(
            found.dev(),
            found.ino(),
            found.size(),
            found.mtime(),
            found.mtime_nsec(),
        );
        let mut hashes = self.hashes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, hash)) = hashes.get(path)
            && *known == stamp
        {
            return Ok(hash.clone());
        }
        let mut hasher = Sha256::new();
        io::copy(&mut file, &mut hasher).map_err(at("read", path))?;
        let hash = hex(&hasher.finalize());
        hashes.insert(path.to_owned(), (stamp, hash.clone()));
        Ok(hash)
    }

    fn base(&self, hash: &str) -> Result<PathBuf, ImageError> {
        let name = &hash[..NAME_LEN];
        let unpacked = self.kept.join(format!("base-{name}"));
        if unpacked.exists() {
            return Ok(unpacked);
        }
        if self.image_mount == ImageMount::Auto {
            let mounted = self.mounts.join(name);
            self.mount(&mounted)?;
            if self.can_idmap(&mounted)? {
                return Ok(mounted);
            }
            tracing::info!("this kernel cannot idmap a squashfs, so the image is unpacked");
            nix::mount::umount(&mounted).map_err(|errno| at("unmount", &mounted)(errno.into()))?;
        }
        self.unpack(&unpacked)?;
        Ok(unpacked)
    }

    fn mount(&self, target: &Path) -> Result<(), ImageError> {
        // Looked at first: the directory of a mounted image is read-only.
        if target.exists() && is_mount_point(target).map_err(at("examine", target))? {
            return Ok(());
        }
        make_dir(target, 0o700).map_err(at("make", target))?;
        let mut command = Command::new("mount");
        command
            .args(["-t", "squashfs", "-o", "loop,ro,nodev"])
            .arg(&self.image)
            .arg(target);
        run(&mut command, "").map_err(ImageError::Mount)
    }

    fn can_idmap(&self, base: &Path) -> Result<bool, ImageError> {
        let tried = sys::user_namespace(self.id_base, MACHINE_IDS).and_then(|namespace| {
            sys::idmap_mount(
                &sys::clone_mount(base)?,
                &namespace,
                sys::MountFlags::default(),
            )
        });
        match tried {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => Ok(false),
            Err(error) => Err(at("idmap", base)(error)),
        }
    }

    fn unpack(&self, target: &Path) -> Result<(), ImageError> {
        let part = target.with_extension("part");
        remove_all(&part).map_err(at("remove", &part))?;
        make_dir(&self.kept, 0o700).map_err(at("make", &self.kept))?;
        let mut command = Command::new("unsquashfs");
        command
            .args(["-no-progress", "-quiet", "-dest"])
            .arg(&part)
            .arg(&self.image);
        run(&mut command, "").map_err(ImageError::Mount)?;
        fs::rename(&part, target).map_err(at("rename", &part))
    }

    fn layer(&self, network: &Network) -> Result<PathBuf, ImageError> {
        let files = [
            ("etc/resolv.conf", resolv_conf(&network.resolvers())),
            ("etc/hosts", "127.0.0.1 localhost\n".to_owned()),
            ("etc/docker/daemon.json", self.daemon_json(network)),
            ("etc/slipway/guest.json", self.guest_json()),
        ];
        let mut hasher = Sha256::new();
        hasher.update(self.hash_of(&self.guest)?);
        for (path, text) in &files {
            hasher.update(format!("\0{path}\0{text}"));
        }
        let target = self
            .kept
            .join(format!("layer-{}", &hex(&hasher.finalize())[..NAME_LEN]));
        if !target.exists() {
            self.make_layer(&target, &files)
                .map_err(at("make", &target))?;
        }
        Ok(target)
    }

    fn make_layer(&self, target: &Path, files: &[(&str, String)]) -> io::Result<()> {
        let part = target.with_extension("part");
        remove_all(&part)?;
        make_dir(&self.kept, 0o700)?;
        for dir in [
            "",
            "usr",
            "usr/sbin",
            "etc",
            "etc/docker",
            "etc/slipway",
            "var",
            "var/lib",
            "var/lib/docker",
        ] {
            make_dir(&part.join(dir), 0o755)?;
        }
        // `/sbin` is a link to `usr/sbin` in the image; a directory of that name here would hide it.
        let guest = part.join("usr/sbin/slipway-guest");
        fs::copy(&self.guest, &guest)?;
        fs::set_permissions(&guest, fs::Permissions::from_mode(0o755))?;
        for (path, text) in files {
            let path = part.join(path);
            fs::write(&path, text)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        }
        fs::rename(&part, target)
    }

    /// dockerd's own settings. What to keep of the build cache is the guest's affair.
    fn daemon_json(&self, network: &Network) -> String {
        json!({
            "storage-driver": "overlay2",
            "features": { "buildkit": true },
            "live-restore": false,
            "log-level": "warn",
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "default-address-pools": [{ "base": network.docker_pool().to_string(), "size": 24 }],
            "mtu": network.mtu(),
            "registry-mirrors": self.registry_mirrors,
            "insecure-registries": self.insecure_registries,
        })
        .to_string()
    }

    fn guest_json(&self) -> String {
        json!({
            "registry_mirrors": self.registry_mirrors,
            "insecure_registries": self.insecure_registries,
        })
        .to_string()
    }
}

/// Whether something is mounted at `path` itself.
pub(crate) fn is_mount_point(path: &Path) -> io::Result<bool> {
    let own = fs::symlink_metadata(path)?;
    let parent = fs::symlink_metadata(path.parent().unwrap_or(path))?;
    Ok(own.dev() != parent.dev())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
