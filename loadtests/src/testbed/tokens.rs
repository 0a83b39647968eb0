//! A token server, as registries have them: it gives tokens of the scopes that it is asked for to whoever shows the user's password.
//!
//! It listens on the host's loopback address, which builders never reach. Its keys and signatures come from openssl.

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds for which its tokens are good. Short, so that a push needs several.
const LIFETIME_S: u64 = 60;

/// A running token server. Ends with the test's process.
#[derive(Debug)]
pub struct TokenServer {
    /// Its URL, for the registry.
    pub realm: String,
    /// The certificate whose key signs, as a file.
    pub certificate: PathBuf,
    scopes: Arc<Mutex<Vec<String>>>,
}

impl TokenServer {
    /// One whose files are below `dir`.
    ///
    /// # Errors
    /// No openssl, or no port.
    pub fn start(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let (key, certificate) = (dir.join("key.pem"), dir.join("certificate.pem"));
        let made = Command::new("openssl")
            .args([
                "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            ])
            .args(["-subj", "/CN=test", "-keyout"])
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .output()
            .context("run openssl")?;
        ensure!(made.status.success(), "openssl:\n{}", super::show(&made));
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let realm = format!("http://{}/token", listener.local_addr()?);
        let scopes: Arc<Mutex<Vec<String>>> = Arc::default();
        let (asked, signing) = (scopes.clone(), certificate.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if let Err(error) = answer(client, &asked, &signing, &key) {
                    eprintln!("token server: {error:#}");
                }
            }
        });
        Ok(Self {
            realm,
            certificate,
            scopes,
        })
    }

    /// The scopes that it has given tokens for so far.
    pub fn scopes(&self) -> Vec<String> {
        let scopes = self.scopes.lock().unwrap_or_else(PoisonError::into_inner);
        scopes.clone()
    }
}

fn answer(
    mut client: TcpStream,
    asked: &Mutex<Vec<String>>,
    certificate: &Path,
    key: &Path,
) -> Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let query = line.split(' ').nth(1).and_then(|path| path.split_once('?'));
    let query = query.map_or("", |(_, query)| query).to_owned();
    let login = format!("Basic {}", STANDARD.encode("someone:secret-word"));
    let mut is_right = false;
    while line.trim() != "" {
        line.clear();
        reader.read_line(&mut line)?;
        let (name, value) = line.split_once(':').unwrap_or_default();
        is_right |= name.eq_ignore_ascii_case("authorization") && value.trim() == login;
    }
    let (status, body) = if is_right {
        let scopes = query.split('&').filter_map(|it| it.strip_prefix("scope="));
        let scopes: Vec<String> = scopes.map(decoded).collect();
        let token = token(&scopes, certificate, key)?;
        asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(scopes);
        let body = serde_json::json!({ "token": token, "expires_in": LIFETIME_S });
        ("200 OK", body.to_string())
    } else {
        let body = r#"{"details":"incorrect username or password"}"#;
        ("401 Unauthorized", body.to_owned())
    };
    let length = body.len();
    write!(
        client,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )?;
    Ok(())
}

/// Scopes have these signs alone.
fn decoded(text: &str) -> String {
    text.replace("%3A", ":")
        .replace("%2F", "/")
        .replace("%2C", ",")
}

/// A JSON web token as the distribution's token specification has it, with the certificate in its header.
fn token(scopes: &[String], certificate: &Path, key: &Path) -> Result<String> {
    let pem = std::fs::read_to_string(certificate)?;
    let der: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let header = serde_json::json!({ "typ": "JWT", "alg": "RS256", "x5c": [der] });
    let access: Vec<_> = scopes
        .iter()
        .filter_map(|scope| {
            let (rest, actions) = scope.rsplit_once(':')?;
            let (kind, name) = rest.split_once(':')?;
            let actions: Vec<&str> = actions.split(',').collect();
            Some(serde_json::json!({ "type": kind, "name": name, "actions": actions }))
        })
        .collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let claims = serde_json::json!({
        "iss": "test", "aud": "test", "sub": "someone", "exp": now + LIFETIME_S, "nbf": now - 10, "iat": now,
        "jti": now.to_string(), "access": access,
    });
    let text = [header, claims]
        .map(|part| URL_SAFE_NO_PAD.encode(part.to_string()))
        .join(".");
    let mut signing = Command::new("openssl")
        .args(["dgst", "-sha256", "-sign"])
        .arg(key)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = signing.stdin.take() {
        stdin.write_all(text.as_bytes())?;
    }
    let signed = signing.wait_with_output()?;
    ensure!(signed.status.success(), "openssl signs nothing");
    Ok(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signed.stdout)))
}
