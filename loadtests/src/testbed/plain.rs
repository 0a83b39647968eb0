//! A plain dockerd of the builder image: what a client's own tests are run on for comparison. It has a network of its own, as a
//! computer would, so that its bridges and rules are none of this machine's.

use super::image_root::ImageRoot;
use super::process::{Process, wait_for};
use super::{Authority, ImageStore, Testbed, show};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const PORT: u16 = 2376;

/// A running dockerd on TLS, with its bridge and its firewall. Ended when dropped.
#[derive(Debug)]
pub struct PlainDockerd {
    // Dropped in this order: the network goes with the daemon.
    dockerd: Process,
    root: ImageRoot,
    address: String,
}

/// In the daemon's own network namespace, before it: the link, once it is there.
const LINK: &str = "ip='busybox ip'
$ip link set lo up
until $ip link set eth0 up 2>/dev/null; do busybox usleep 10000; done
$ip address add $1/30 dev eth0 && $ip route add default via $2
shift 2
exec dockerd \"$@\"";

impl PlainDockerd {
    /// Starts one below `dir`, which must be empty or absent. Its clients are those of the farm; `authority` signs its certificate. It pulls through the farm's registry, as the farm's builders do.
    ///
    /// # Errors
    /// Not root, no builder image, or dockerd does not come up.
    pub fn start(
        bed: &Testbed,
        dir: &Path,
        store: ImageStore,
        authority: &Authority,
    ) -> Result<PlainDockerd> {
        let data = dir.join("data");
        std::fs::create_dir_all(&data)?;
        let root = ImageRoot::mount(dir, &[(&data, "/var/lib/docker")])?;
        let link = bed.slot.link();
        let signed = authority.sign(link.inside.into())?;
        std::fs::write(root.path().join("certificate.pem"), signed.certificate)?;
        std::fs::write(root.path().join("key.pem"), signed.key)?;
        std::fs::copy(bed.ca(), root.path().join("clients.pem"))?;
        let registry = bed.registry.address();
        let settings = serde_json::json!({
            "features": {"containerd-snapshotter": store == ImageStore::Containerd},
            "insecure-registries": [registry],
            "registry-mirrors": [format!("http://{registry}")],
            "tlsverify": true,
            "tlscacert": "/clients.pem",
            "tlscert": "/certificate.pem",
            "tlskey": "/key.pem",
        });
        std::fs::write(
            root.path().join("etc/docker/daemon.json"),
            settings.to_string(),
        )?;
        let (inside, outside) = (link.inside.to_string(), link.outside.to_string());
        let listen = format!("tcp://0.0.0.0:{PORT}");
        let arguments = ["-c", LINK, "sh", &inside, &outside, "-H", &listen];
        let command = root.daemon_apart("sh", &arguments);
        let dockerd = Process::start("dockerd", command, &dir.join("dockerd.log"))?;
        let mut plain = PlainDockerd {
            dockerd,
            root,
            address: format!("{inside}:{PORT}"),
        };
        let child = wait_for("the daemon's namespaces", Duration::from_secs(10), || {
            plain.child()
        })?;
        let of_child = child.to_string();
        ip(&[
            "link", "add", &link.name, "type", "veth", "peer", "name", "eth0", "netns", &of_child,
        ])?;
        ip(&[
            "address",
            "add",
            &format!("{outside}/30"),
            "dev",
            &link.name,
        ])?;
        ip(&["link", "set", &link.name, "up"])?;
        wait_for("dockerd", Duration::from_secs(60), || {
            ensure!(plain.dockerd.is_running(), "{}", plain.dockerd.output());
            ensure!(plain.dockerd.output().contains("API listen on"), "not yet");
            Ok(())
        })?;
        Ok(plain)
    }

    /// `ip:port` of its API.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What it said.
    pub fn output(&self) -> String {
        self.dockerd.output()
    }

    /// Its root, on this machine.
    pub fn root(&self) -> PathBuf {
        self.root.path()
    }

    /// PID 1 of its namespaces, which its parent (`unshare`) made.
    fn child(&self) -> Result<i32> {
        let pid = self.dockerd.pid();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let child = children.split_whitespace().next().context("no child")?;
        Ok(child.parse()?)
    }
}

impl Drop for PlainDockerd {
    /// `unshare` would not pass a signal on.
    fn drop(&mut self) {
        let ended = self.child().and_then(|child| {
            let child = nix::unistd::Pid::from_raw(child);
            nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGTERM)?;
            wait_for("dockerd's end", Duration::from_secs(30), || {
                ensure!(!self.dockerd.is_running(), "it still runs");
                Ok(())
            })
        });
        if let Err(error) = ended {
            eprintln!("dockerd is killed: {error:#}");
            self.dockerd.kill();
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output()?;
    ensure!(
        output.status.success(),
        "ip {arguments:?}: {}",
        show(&output)
    );
    Ok(())
}
