//! What machines boot: the builder image, and one layer above it with the guest program and the files that depend on
//! this host. Both are read-only, shared by all machines, and named by their content.
//!
//! Must not know: machines, or how a driver stacks the two.

use crate::files::{make_dir, publish, remove_all};
use crate::limits::{CA_FILE_BYTES_MAX, MACHINE_IDS};
use crate::mirrors::Mirrors;
use crate::network::Network;
use crate::network::resolvers::resolv_conf;
use crate::program::{ProgramError, run};
use crate::settings::{HostSettings, ImageMount, ImageStoreSetting};
use crate::sys;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use slipway_core::time::Timestamp;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::UNIX_EPOCH;

/// Characters of a content hash that name a directory.
const NAME_LEN: usize = 24;
/// Ends the names of what is being removed.
const GONE: &str = ".gone";

/// What a layer is made of.
struct LayerFiles {
    /// Content hash of the guest program.
    guest: String,
    /// What else is in it.
    texts: [(&'static str, String); 4],
}

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

/// What names a boot image among the kept ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageNames {
    /// Content hash of the builder image.
    pub(crate) base: String,
    /// Content hash of the layer.
    pub(crate) layer: String,
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
    /// Both by name.
    pub(crate) names: ImageNames,
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
    registry_mirrors: Mirrors,
    insecure_registries: Vec<String>,
    ca_files: Vec<PathBuf>,
    /// As the guest reads them.
    proxies: serde_json::Value,
    image_store: ImageStoreSetting,
    sbom_scanner: Option<String>,
    /// Content hashes by what a file looks like from outside.
    hashes: Mutex<HashMap<PathBuf, (FileStamp, String)>>,
    /// One at a time makes images.
    making: Mutex<()>,
}

/// Changes whenever a file is replaced or written.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FileStamp(u64, u64, u64, i64, i64);

/// The time stamp of what `path` leads to; nothing if there is none.
pub(crate) fn made_at(path: &Path) -> Option<Timestamp> {
    let modified = fs::metadata(path).and_then(|found| found.modified());
    let since = modified.ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(Timestamp(u64::try_from(since.as_millis()).ok()?))
}

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
            insecure_registries: settings.insecure(),
            ca_files: settings.ca_files.clone(),
            proxies: json!({
                "http": settings.http_proxy,
                "https": settings.https_proxy,
                "none": settings.no_proxy,
            }),
            image_store: settings.image_store,
            sbom_scanner: settings.sbom_scanner.clone(),
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

    /// When the packages of the image that new machines boot were last looked up: the recipe leaves that as the file's time stamp.
    pub(crate) fn made_at(&self) -> Option<Timestamp> {
        made_at(&self.image)
    }

    /// What a new machine boots, as of now: a replaced image, guest program or resolver is noticed. Takes long only the first time.
    ///
    /// # Errors
    /// [`ImageError`].
    pub(crate) fn current(&self, network: &Network) -> Result<BootImage, ImageError> {
        let _one = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let (names, files) = self.names(network)?;
        Ok(BootImage {
            base: self.base(&names.base)?,
            base_file: self.image.clone(),
            layer: self.layer(&names.layer, &files)?,
            names,
        })
    }

    /// Removes what no machine uses and none will boot: `used` are those of all machines there are, and nobody may be about
    /// to start one. Gives the names of what was removed.
    ///
    /// # Errors
    /// [`ImageError`]; what is left is found by the next call.
    pub(crate) fn prune(
        &self,
        network: &Network,
        mut used: Vec<ImageNames>,
    ) -> Result<Vec<String>, ImageError> {
        let _one = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let (current, _) = self.names(network)?;
        // Machines hold a mounted image themselves; only what is unpacked would be taken from below them.
        for name in list(&self.mounts)?
            .iter()
            .filter(|name| **name != current.base)
        {
            let mounted = self.mounts.join(name);
            if is_mount_point(&mounted).map_err(at("examine", &mounted))? {
                nix::mount::umount(&mounted)
                    .map_err(|errno| at("unmount", &mounted)(errno.into()))?;
            }
            fs::remove_dir(&mounted).map_err(at("remove", &mounted))?;
        }
        used.push(current);
        let unused = unused(list(&self.kept)?, &used);
        for name in &unused {
            let path = self.kept.join(name);
            // Renamed first: half of a directory must never be found under the name of the whole.
            let gone = match name.strip_suffix(GONE) {
                Some(_) => path,
                None => {
                    let gone = self.kept.join(format!("{name}{GONE}"));
                    remove_all(&gone).map_err(at("remove", &gone))?;
                    fs::rename(&path, &gone).map_err(at("rename", &path))?;
                    gone
                }
            };
            remove_all(&gone).map_err(at("remove", &gone))?;
        }
        Ok(unused)
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
        let hash = hash(&mut file).map_err(at("read", path))?;
        hashes.insert(path.to_owned(), (stamp, hash.clone()));
        Ok(hash)
    }

    fn base(&self, name: &str) -> Result<PathBuf, ImageError> {
        let unpacked = self.kept.join(format!("base-{name}"));
        if unpacked.exists() {
            return Ok(unpacked);
        }
        if self.image_mount == ImageMount::Auto {
            let mounted = self.mounts.join(name);
            self.mount(name, &mounted)?;
            if self.can_idmap(&mounted)? {
                return Ok(mounted);
            }
            tracing::info!("this kernel cannot idmap a squashfs, so the image is unpacked");
            nix::mount::umount(&mounted).map_err(|errno| at("unmount", &mounted)(errno.into()))?;
        }
        self.unpack(name, &unpacked)?;
        Ok(unpacked)
    }

    fn mount(&self, name: &str, target: &Path) -> Result<(), ImageError> {
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
        run(&mut command, "").map_err(ImageError::Mount)?;
        if self.is_still(name)? {
            return Ok(());
        }
        nix::mount::umount(target).map_err(|errno| at("unmount", target)(errno.into()))?;
        Err(at("mount", &self.image)(replaced()))
    }

    /// Whether the image has the content that names it. It may have been replaced since it was read.
    fn is_still(&self, name: &str) -> Result<bool, ImageError> {
        Ok(self.hash()?.starts_with(name))
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

    fn unpack(&self, name: &str, target: &Path) -> Result<(), ImageError> {
        let part = target.with_extension("part");
        remove_all(&part).map_err(at("remove", &part))?;
        make_dir(&self.kept, 0o700).map_err(at("make", &self.kept))?;
        let mut command = Command::new("unsquashfs");
        command
            .args(["-no-progress", "-quiet", "-dest"])
            .arg(&part)
            .arg(&self.image);
        run(&mut command, "").map_err(ImageError::Mount)?;
        if !self.is_still(name)? {
            return Err(at("unpack", &self.image)(replaced()));
        }
        publish(&part, target).map_err(at("rename", &part))
    }

    /// What is to be booted now, and what is in the layer besides the guest program.
    fn names(&self, network: &Network) -> Result<(ImageNames, LayerFiles), ImageError> {
        let guest = self.hash_of(&self.guest)?;
        let texts = [
            ("etc/resolv.conf", resolv_conf(&network.resolvers())),
            ("etc/hosts", "127.0.0.1 localhost\n".to_owned()),
            ("etc/docker/daemon.json", self.daemon_json(network)),
            (
                "etc/slipway/guest.json",
                self.guest_json(&self.ca_pem()?, self.made_at()),
            ),
        ];
        let mut hasher = Sha256::new();
        hasher.update(&guest);
        for (path, text) in &texts {
            hasher.update(format!("\0{path}\0{text}"));
        }
        let names = ImageNames {
            base: self.hash()?[..NAME_LEN].to_owned(),
            layer: hex(&hasher.finalize())[..NAME_LEN].to_owned(),
        };
        Ok((names, LayerFiles { guest, texts }))
    }

    fn layer(&self, name: &str, files: &LayerFiles) -> Result<PathBuf, ImageError> {
        let target = self.kept.join(format!("layer-{name}"));
        if !target.exists() {
            self.make_layer(&target, files)
                .map_err(at("make", &target))?;
        }
        Ok(target)
    }

    fn make_layer(&self, target: &Path, files: &LayerFiles) -> io::Result<()> {
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
        for (path, text) in &files.texts {
            let path = part.join(path);
            fs::write(&path, text)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        }
        // What was read is what the name says: the program may have been replaced since.
        let copied = hash(&mut File::open(&guest)?)?;
        if copied != files.guest {
            return Err(replaced());
        }
        publish(&part, target)
    }

    /// dockerd's own settings. Where it keeps images and what of the build cache is the guest's affair.
    fn daemon_json(&self, network: &Network) -> String {
        json!({
            "features": { "buildkit": true },
            "live-restore": false,
            "log-level": "warn",
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "default-address-pools": [{ "base": network.docker_pool().to_string(), "size": 24 }],
            "mtu": network.mtu(),
            // The former is for the default network alone.
            "default-network-opts": { "bridge": { "com.docker.network.driver.mtu": network.mtu().to_string() } },
            "registry-mirrors": self.registry_mirrors.of_hub(),
            "insecure-registries": self.insecure_registries,
        })
        .to_string()
    }

    /// All further certificates, one file after the other.
    ///
    /// # Errors
    /// [`ImageError::File`] for a file that cannot be read, or holds no certificate.
    pub(crate) fn ca_pem(&self) -> Result<String, ImageError> {
        let mut all = String::new();
        for path in &self.ca_files {
            let refused = |why: &'static str| at("trust", path)(io::Error::other(why));
            let length = fs::metadata(path).map_err(at("read", path))?.len();
            if length > CA_FILE_BYTES_MAX {
                return Err(refused("larger than 1 MiB"));
            }
            let text = fs::read_to_string(path).map_err(at("read", path))?;
            if !text.contains("-----BEGIN CERTIFICATE-----") {
                return Err(refused("no certificate in it (hint: PEM is meant)"));
            }
            all.push_str(text.trim());
            all.push('\n');
        }
        Ok(all)
    }

    fn guest_json(&self, ca_pem: &str, made_at: Option<Timestamp>) -> String {
        json!({
            "registry_mirrors": self.registry_mirrors.by_host(),
            "insecure_registries": self.insecure_registries,
            "ca_pem": ca_pem,
            "proxies": self.proxies,
            "image_store": self.image_store,
            "image_made_at": made_at,
            "sbom_scanner": self.sbom_scanner,
        })
        .to_string()
    }
}

/// Of the kept files those that none of `used` is made of: other images and layers with their disks, and what was cut off
/// while it was made or removed. Pure; what has another kind of name is left alone.
fn unused(kept: Vec<String>, used: &[ImageNames]) -> Vec<String> {
    let is_used = |name: &str| {
        used.iter().any(|used| {
            name == format!("base-{}", used.base)
                || name == format!("layer-{}", used.layer)
                || name == format!("layer-{}.squashfs", used.layer)
        })
    };
    let ours = |name: &String| name.starts_with("base-") || name.starts_with("layer-");
    let unused = kept.into_iter().filter(|name| ours(name) && !is_used(name));
    unused.collect()
}

/// Names in a directory; none if it is absent.
fn list(dir: &Path) -> Result<Vec<String>, ImageError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(at("list", dir))?,
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    Ok(names.filter_map(|name| name.into_string().ok()).collect())
}

/// Whether something is mounted at `path` itself.
pub(crate) fn is_mount_point(path: &Path) -> io::Result<bool> {
    let own = fs::symlink_metadata(path)?;
    let parent = fs::symlink_metadata(path.parent().unwrap_or(path))?;
    Ok(own.dev() != parent.dev())
}

fn hash(file: &mut File) -> io::Result<String> {
    let mut hasher = Sha256::new();
    io::copy(file, &mut hasher)?;
    Ok(hex(&hasher.finalize()))
}

fn replaced() -> io::Error {
    io::Error::other("it was replaced meanwhile (hint: ask again)")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_machine_boots_stays_and_what_was_cut_off_goes() {
        let used = [("b1", "l1"), ("b1", "l2")].map(|(base, layer)| ImageNames {
            base: base.to_owned(),
            layer: layer.to_owned(),
        });
        let stays = [
            "base-b1",
            "layer-l1",
            "layer-l1.squashfs",
            "layer-l2",
            "somebody's file",
        ];
        let goes = [
            "base-b2",
            "base-b1.part",
            "layer-l3",
            "layer-l3.squashfs",
            "layer-l1.part",
            "layer-l1.squashfs.part",
            "layer-l4.gone",
        ];
        let kept = stays.iter().chain(&goes).map(ToString::to_string).collect();
        assert_eq!(unused(kept, &used), goes);
        assert_eq!(
            unused(stays.map(str::to_owned).to_vec(), &used),
            Vec::<String>::new()
        );
    }
}
