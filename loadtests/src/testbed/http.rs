//! A small blocking HTTP/1.1 client of Docker's API: one kept connection, plain over a unix socket or TLS over TCP. It does no
//! more than it is told, so that what is measured is the other side.

use anyhow::{Context, Result, bail, ensure};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// BuildKit refuses a session whose id it has already.
static NEXT_SESSION: AtomicU64 = AtomicU64::new(1);
/// Longest one read waits. (A machine may have to start first.)
const READ_WAIT: Duration = Duration::from_secs(300);

/// A connection to dockerd, straight or through something. Reading and writing it is for hijacked streams.
pub struct Connection {
    stream: Box<dyn Stream>,
    authorization: String,
    held: Vec<u8>,
    taken: usize,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// How the body of an answer is told.
enum Framing {
    Length(u64),
    Chunks,
}

impl Connection {
    /// Straight to a dockerd.
    ///
    /// # Errors
    /// It does not listen.
    pub fn direct(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
        stream.set_read_timeout(Some(READ_WAIT))?;
        Ok(Self::on(Box::new(stream), String::new()))
    }

    /// With TLS, to `address` (`ip:port`), which must be signed by the authority in `ca`. With a token if it wants one.
    ///
    /// # Errors
    /// It does not listen, or is somebody else.
    pub fn tls(address: &str, ca: &Path, token: Option<&str>) -> Result<Self> {
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
        tcp.set_read_timeout(Some(READ_WAIT))?;
        let authorization = token.map_or(String::new(), |token| {
            format!("Authorization: Bearer {token}\r\n")
        });
        let stream = rustls::StreamOwned::new(tls, tcp);
        Ok(Self::on(Box::new(stream), authorization))
    }

    fn on(stream: Box<dyn Stream>, authorization: String) -> Self {
        Self {
            stream,
            authorization,
            held: Vec::new(),
            taken: 0,
        }
    }

    /// One request without a body; gives the status and the length of the answer's body.
    ///
    /// # Errors
    /// The connection breaks, or the answer is not HTTP.
    pub fn get(&mut self, path: &str) -> Result<(u16, u64)> {
        self.send("GET", path, "", b"")?;
        let mut length = 0;
        let status = self.answer(|part| length += part.len() as u64)?;
        Ok((status, length))
    }

    /// The same for a small answer; gives the status and what was answered.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn get_text(&mut self, path: &str) -> Result<(u16, String)> {
        self.send("GET", path, "", b"")?;
        self.text()
    }

    /// A POST of a small JSON body; gives the status and what was answered.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn post_json(&mut self, path: &str, body: &serde_json::Value) -> Result<(u16, String)> {
        let body = body.to_string();
        let fields = json_fields(&body);
        self.send("POST", path, &fields, body.as_bytes())?;
        self.text()
    }

    /// Deletes something, if it is there.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn delete(&mut self, path: &str) -> Result<u16> {
        self.send("DELETE", path, "", b"")?;
        self.answer(|_| {})
    }

    /// A POST whose body is `length` bytes that `body` writes.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn post(
        &mut self,
        path: &str,
        length: u64,
        body: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<u16> {
        let fields = format!("Content-Type: application/x-tar\r\nContent-Length: {length}\r\n");
        self.send("POST", path, &fields, b"")?;
        body(&mut self.stream)?;
        self.stream.flush()?;
        self.answer(|_| {})
    }

    /// Opens a BuildKit session, and leaves it to the caller as a stream.
    ///
    /// # Errors
    /// The answer is not 101.
    pub fn session(&mut self) -> Result<()> {
        let number = NEXT_SESSION.fetch_add(1, Ordering::Relaxed);
        let fields = format!(
            "X-Docker-Expose-Session-Uuid: {number}\r\nX-Docker-Expose-Session-Name: loadtest\r\n"
        );
        self.upgrade("/session", "h2c", &fields, b"")
    }

    /// Starts what was made with `POST /containers/../exec`, with a terminal: both ways are raw.
    ///
    /// # Errors
    /// The answer is not 101.
    pub fn start_exec(&mut self, id: &str) -> Result<()> {
        let body = r#"{"Detach":false,"Tty":true}"#;
        let path = format!("/exec/{id}/start");
        self.upgrade(&path, "tcp", &json_fields(body), body.as_bytes())
    }

    fn upgrade(&mut self, path: &str, protocol: &str, fields: &str, body: &[u8]) -> Result<()> {
        let fields = format!("Connection: Upgrade\r\nUpgrade: {protocol}\r\n{fields}");
        self.send("POST", path, &fields, body)?;
        let head = self.until(b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&head);
        ensure!(head.starts_with("HTTP/1.1 101"), "not upgraded: {head}");
        Ok(())
    }

    /// Asks for an answer that goes on, such as `docker logs -f`; [`Self::next_chunk`] reads it.
    ///
    /// # Errors
    /// As [`Self::get`], or the answer is not 200.
    pub fn follow(&mut self, path: &str) -> Result<()> {
        self.send("GET", path, "", b"")?;
        let (status, framing) = self.head()?;
        ensure!(
            status == 200 && matches!(framing, Framing::Chunks),
            "{path}: {status}"
        );
        Ok(())
    }

    /// Length of the next chunk of an answer that goes on; zero is its end.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn next_chunk(&mut self) -> Result<u64> {
        self.chunk(&mut |_| {})
    }

    fn send(&mut self, method: &str, path: &str, fields: &str, body: &[u8]) -> Result<()> {
        let authorization = &self.authorization;
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: docker\r\n{authorization}{fields}\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        self.stream.write_all(&bytes)?;
        Ok(self.stream.flush()?)
    }

    fn head(&mut self) -> Result<(u16, Framing)> {
        let head = self.until(b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        let field = |name: &str| {
            head.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(str::trim)
        };
        if status == 204 {
            return Ok((status, Framing::Length(0)));
        }
        match (field("content-length"), field("transfer-encoding")) {
            (Some(length), _) => Ok((status, Framing::Length(length.parse()?))),
            (None, Some("chunked")) => Ok((status, Framing::Chunks)),
            (None, _) => bail!("neither length nor chunks: {head}"),
        }
    }

    fn answer(&mut self, mut take: impl FnMut(&[u8])) -> Result<u16> {
        let (status, framing) = self.head()?;
        match framing {
            Framing::Length(length) => self.take(length, &mut take)?,
            Framing::Chunks => while self.chunk(&mut take)? > 0 {},
        }
        Ok(status)
    }

    fn text(&mut self) -> Result<(u16, String)> {
        let mut text = Vec::new();
        let status = self.answer(|part| text.extend_from_slice(part))?;
        Ok((status, String::from_utf8_lossy(&text).into_owned()))
    }

    fn chunk(&mut self, take: &mut dyn FnMut(&[u8])) -> Result<u64> {
        let line = self.until(b"\r\n")?;
        let size = u64::from_str_radix(String::from_utf8_lossy(&line).trim(), 16)?;
        self.take(size, take)?;
        self.until(b"\r\n")?;
        Ok(size)
    }

    fn until(&mut self, end: &[u8]) -> Result<Vec<u8>> {
        loop {
            let held = &self.held[self.taken..];
            if let Some(at) = held.windows(end.len()).position(|window| window == end) {
                let found = held[..at + end.len()].to_vec();
                self.taken += found.len();
                return Ok(found);
            }
            self.more()?;
        }
    }

    fn take(&mut self, mut length: u64, take: &mut dyn FnMut(&[u8])) -> Result<()> {
        while length > 0 {
            if self.taken == self.held.len() {
                self.more()?;
            }
            let held = &self.held[self.taken..];
            let part = held
                .len()
                .min(usize::try_from(length).unwrap_or(held.len()));
            take(&held[..part]);
            self.taken += part;
            length -= part as u64;
        }
        Ok(())
    }

    fn more(&mut self) -> Result<()> {
        if self.taken == self.held.len() {
            self.held.clear();
            self.taken = 0;
        }
        let end = self.held.len();
        self.held.resize(end + (64 << 10), 0);
        let got = self.stream.read(&mut self.held[end..]);
        self.held.truncate(end + *got.as_ref().unwrap_or(&0));
        ensure!(got? > 0, "the connection ended early");
        Ok(())
    }
}

fn json_fields(body: &str) -> String {
    let length = body.len();
    format!("Content-Type: application/json\r\nContent-Length: {length}\r\n")
}

impl Read for Connection {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let held = &self.held[self.taken..];
        if held.is_empty() {
            return self.stream.read(into);
        }
        let part = held.len().min(into.len());
        into[..part].copy_from_slice(&held[..part]);
        self.taken += part;
        Ok(part)
    }
}

impl Write for Connection {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.stream.write(from)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
