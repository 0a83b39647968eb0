//! The peers: haproxy and nginx in front of a dockerd's socket, and a dockerd that speaks TLS itself; all with one certificate.

use super::super::push::bench::{free_address, is_installed};
use super::PEERS;
use crate::testbed::{Connection, Engine, ImageStore, Process, wait_for};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Ended when dropped.
pub(super) struct Proxies {
    _running: Vec<Process>,
    _engine: Option<Engine>,
    addresses: Vec<(&'static str, Result<String, String>)>,
    certificate: PathBuf,
}

impl Proxies {
    /// Starts all that are installed, in front of `socket`.
    pub(super) fn start(dir: &Path, socket: &Path) -> Result<Proxies> {
        std::fs::create_dir_all(dir)?;
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
        let (certificate, key) = (dir.join("cert.pem"), dir.join("key.pem"));
        let both = made.cert.pem() + &made.signing_key.serialize_pem();
        std::fs::write(&certificate, made.cert.pem())?;
        std::fs::write(&key, made.signing_key.serialize_pem())?;
        std::fs::write(dir.join("both.pem"), both)?;
        let (mut addresses, mut running) = (Vec::new(), Vec::new());
        for (name, config) in [
            (PEERS[0], haproxy as fn(&Path, &Path, &str) -> String),
            (PEERS[1], nginx),
        ] {
            if !is_installed(name) {
                addresses.push((name, Err("not installed".to_owned())));
                continue;
            }
            let address = free_address()?;
            let file = dir.join(format!("{name}.conf"));
            std::fs::write(&file, config(dir, socket, &address))?;
            let mut command = Command::new(name);
            match name {
                "nginx" => command.arg("-c").arg(&file).arg("-p").arg(dir),
                _ => command.arg("-db").arg("-f").arg(&file),
            };
            let log = dir.join(format!("{name}.log"));
            running.push(Process::start(name, command, &log)?);
            addresses.push((name, Ok(address)));
        }
        let address = free_address()?;
        // A peer that does not come up is named with its reason, and the others run.
        let engine = engine(&dir.join("engine"), &address, &certificate, &key);
        let why = engine.as_ref().err().map(|error| format!("{error:#}"));
        addresses.push((PEERS[2], why.map_or(Ok(address), Err)));
        let mut proxies = Proxies {
            _running: running,
            _engine: engine.ok(),
            addresses,
            certificate,
        };
        for peer in PEERS {
            if proxies.absent(peer).is_some() {
                continue;
            }
            let up = wait_for(peer, Duration::from_secs(20), || {
                let (status, _) = proxies.connect(peer)?.get("/_ping")?;
                anyhow::ensure!(status == 200, "{status}");
                Ok(())
            });
            if let Err(error) = up {
                let found = proxies.addresses.iter_mut().find(|(name, _)| *name == peer);
                found
                    .into_iter()
                    .for_each(|(_, address)| *address = Err(format!("{error:#}")));
            }
        }
        Ok(proxies)
    }

    /// Why a peer does not take part.
    pub(super) fn absent(&self, peer: &str) -> Option<String> {
        let found = self.addresses.iter().find(|(name, _)| *name == peer);
        found.and_then(|(_, address)| address.as_ref().err().cloned())
    }

    /// A TLS connection to a peer.
    pub(super) fn connect(&self, peer: &str) -> Result<Connection> {
        let found = self.addresses.iter().find(|(name, _)| *name == peer);
        let address = found.and_then(|(_, address)| address.as_ref().ok());
        Connection::tls(address.context("no such peer")?, &self.certificate, None)
    }
}

fn engine(dir: &Path, address: &str, certificate: &Path, key: &Path) -> Result<Engine> {
    let inside = dir.join("data/tls");
    std::fs::create_dir_all(&inside)?;
    std::fs::copy(certificate, inside.join("cert.pem"))?;
    std::fs::copy(key, inside.join("key.pem"))?;
    let listen = format!("tcp://{address}");
    let tls = [
        "-H",
        &listen,
        "--tls",
        // Said out loud: it wants certificates from clients otherwise.
        "--tlsverify=false",
        "--tlscert=/var/lib/docker/tls/cert.pem",
        "--tlskey=/var/lib/docker/tls/key.pem",
    ];
    Engine::start_with(dir, ImageStore::Classic, &[], &tls)
}

fn haproxy(dir: &Path, socket: &Path, address: &str) -> String {
    let (dir, socket) = (dir.display(), socket.display());
    format!(
        "global\n  maxconn 1000\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n  \
         http-reuse always\nfrontend in\n  bind {address} ssl crt {dir}/both.pem alpn http/1.1\n  default_backend docker\n\
         backend docker\n  server docker unix@{socket}\n"
    )
}

fn nginx(dir: &Path, socket: &Path, address: &str) -> String {
    let (dir, socket) = (dir.display(), socket.display());
    let places: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("  {name}_temp_path {dir}/{name};\n"))
        .concat();
    format!(
        "user root;\ndaemon off;\nworker_processes auto;\npid {dir}/nginx.pid;\nerror_log stderr;\n\
         events {{ worker_connections 1000; }}\nhttp {{\n{places}  access_log off;\n  \
         upstream docker {{ server unix:{socket}; keepalive 64; }}\n  server {{\n    listen {address} ssl;\n    \
         ssl_certificate {dir}/cert.pem;\n    ssl_certificate_key {dir}/key.pem;\n    client_max_body_size 0;\n    \
         keepalive_requests 1000000;\n    proxy_buffering off;\n    proxy_request_buffering off;\n    \
         location / {{ proxy_pass http://docker; proxy_http_version 1.1; proxy_set_header Connection \"\"; \
         proxy_set_header Host docker; }}\n  }}\n}}\n"
    )
}
