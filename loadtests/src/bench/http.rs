//! A small blocking HTTP/1.1 client for measurements: one kept connection, plain over a unix socket or TLS over TCP.

use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// BuildKit refuses a session whose id it has already.
static NEXT_SESSION: AtomicU64 = AtomicU64::new(1);

/// A connection to dockerd, straight or through the gateway.
pub(super) struct Connection {
    stream: Box<dyn Stream>,
    authorization: Option<String>,
    held: Vec<u8>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

impl Connection {
    /// Straight to a dockerd.
    ///
    /// # Errors
    /// It does not listen.
    pub(super) fn direct(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
        Ok(Self {
            stream: Box::new(stream),
            authorization: None,
            held: Vec::new(),
        })
    }

    /// Through the gateway at `address` (`ip:port`), which must be signed by the authority in `ca`.
    ///
    /// # Errors
    /// It does not listen, or is somebody else.
    pub(super) fn gateway(address: &str, ca: &Path, token: &str) -> Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        let pem = std::fs::read(ca)?;
        for certificate in rustls_pki_types::pem::PemObject::pem_slice_iter(&pem) {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (ip, _) = address.rsplit_once(':').context("no port")?;
        let name = rustls_pki_types::ServerName::try_from(ip.to_owned())?;
        let tls = rustls::ClientConnection::new(Arc::new(config), name)?;
        let tcp = TcpStream::connect(address)?;
        tcp.set_nodelay(true)?;
        Ok(Self {
            stream: Box::new(rustls::StreamOwned::new(tls, tcp)),
            authorization: Some(format!("Authorization: Bearer {token}\r\n")),
            held: Vec::new(),
        })
    }

    /// One request without a body; gives the status and the length of the answer's body.
    ///
    /// # Errors
    /// The connection breaks, or the answer is not HTTP.
    pub(super) fn get(&mut self, path: &str) -> Result<(u16, usize)> {
        let authorization = self.authorization.as_deref().unwrap_or("");
        let head = format!("GET {path} HTTP/1.1\r\nHost: docker\r\n{authorization}\r\n");
        self.stream.write_all(head.as_bytes())?;
        self.stream.flush()?;
        self.answer()
    }

    /// A POST whose body is `length` bytes that `body` writes.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(super) fn post(
        &mut self,
        path: &str,
        length: u64,
        body: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
    ) -> Result<(u16, usize)> {
        let authorization = self.authorization.as_deref().unwrap_or("");
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: docker\r\n{authorization}Content-Type: application/x-tar\r\n\
             Content-Length: {length}\r\n\r\n"
        );
        self.stream.write_all(head.as_bytes())?;
        body(&mut self.stream)?;
        self.stream.flush()?;
        self.answer()
    }

    /// Turns the connection into a raw stream, as `POST path` with `Upgrade: h2c` does.
    ///
    /// # Errors
    /// The answer is not 101.
    pub(super) fn upgrade(&mut self, path: &str) -> Result<()> {
        let authorization = self.authorization.as_deref().unwrap_or("");
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: docker\r\n{authorization}Connection: Upgrade\r\nUpgrade: h2c\r\n\
             X-Docker-Expose-Session-Uuid: {}\r\nX-Docker-Expose-Session-Name: bench\r\n\r\n",
            NEXT_SESSION.fetch_add(1, Ordering::Relaxed)
        );
        self.stream.write_all(head.as_bytes())?;
        self.stream.flush()?;
        let head = self.until(b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&head);
        if head.starts_with("HTTP/1.1 101") {
            Ok(())
        } else {
            bail!("not upgraded: {head}")
        }
    }

    fn answer(&mut self) -> Result<(u16, usize)> {
        let head = self.until(b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        let header = |name: &str| {
            head.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(str::trim)
        };
        if let Some(length) = header("content-length") {
            let length: usize = length.parse()?;
            self.take(length)?;
            return Ok((status, length));
        }
        if header("transfer-encoding") != Some("chunked") {
            bail!("neither length nor chunks: {head}");
        }
        let mut total = 0;
        loop {
            let line = self.until(b"\r\n")?;
            let size = usize::from_str_radix(String::from_utf8_lossy(&line).trim(), 16)?;
            self.take(size)?;
            self.until(b"\r\n")?;
            total += size;
            if size == 0 {
                return Ok((status, total));
            }
        }
    }

    fn until(&mut self, end: &[u8]) -> Result<Vec<u8>> {
        loop {
            if let Some(at) = self
                .held
                .windows(end.len())
                .position(|window| window == end)
            {
                return Ok(self.held.drain(..at + end.len()).collect());
            }
            self.more()?;
        }
    }

    fn take(&mut self, length: usize) -> Result<()> {
        while self.held.len() < length {
            self.more()?;
        }
        self.held.drain(..length);
        Ok(())
    }

    fn more(&mut self) -> Result<()> {
        let mut part = [0; 16384];
        let got = self.stream.read(&mut part)?;
        if got == 0 {
            bail!("the connection ended early");
        }
        self.held.extend_from_slice(&part[..got]);
        Ok(())
    }
}
