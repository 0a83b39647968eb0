//! A client and a server of different versions: the real ones of this checkout, and something between them that makes what they
//! say a little older or newer.

use anyhow::{Context, Result, ensure};
use slipway_loadtests::testbed::{Testbed, show};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};

/// What is said, and what becomes of it on the way.
#[derive(Clone, Copy)]
struct Change(&'static str, &'static str);

#[test]
fn a_client_and_a_server_of_different_versions_say_so() -> Result<()> {
    let bed = Testbed::start()?;
    let same = Change("-", "-");
    let older = Change("server: slipway/", "server: slipway/0.0.");
    let newer_client = Change("server { version", "server { novelty version");
    let lacking = Change("\"docker\":", "\"dockerGateway\":");
    let versions = format!(
        "this is slipway {0} and the server is 0.0.{0}",
        env!("CARGO_PKG_VERSION")
    );
    // What changes in the request and in the answer, the exit code, what is said.
    for (request, answer, code, says) in [
        (newer_client, older, 1, ["Unknown field", &versions]),
        (
            same,
            lacking,
            2,
            ["missing field `docker`", "use the same version of both"],
        ),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let server = format!("http://{}", listener.local_addr()?);
        let mut command = bed.slipway(&["status", "--server", &server]);
        command.env("SLIPWAY_TOKEN", bed.admin_token()?);
        std::thread::scope(|scope| {
            let passing = scope.spawn(|| pass_one(&bed, &listener, request, answer));
            let refused = bed.refused(&mut command, code, &says);
            passing.join().map_err(|_| anyhow::anyhow!("panicked"))??;
            refused
        })?;
    }
    Ok(())
}

/// Passes one request on to the real server, and its answer back, both changed.
fn pass_one(bed: &Testbed, listener: &TcpListener, request: Change, answer: Change) -> Result<()> {
    let (mut client, _) = listener.accept()?;
    let (authorization, body) = read_request(&client)?;
    let mut curl = Command::new("curl")
        .args([
            "--silent",
            "--show-error",
            "--include",
            "--http1.1",
            "--cacert",
        ])
        .arg(bed.ca())
        .args([
            "--header",
            "Content-Type: application/json",
            "--header",
            &authorization,
        ])
        .args(["--data-binary", "@-"])
        .arg(format!("https://{}/graphql", bed.address("api")?))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = curl.stdin.take().context("stdin")?;
    stdin.write_all(body.replace(request.0, request.1).as_bytes())?;
    drop(stdin);
    let output = curl.wait_with_output()?;
    ensure!(output.status.success(), "{}", show(&output));
    let text = String::from_utf8_lossy(&output.stdout).replace(answer.0, answer.1);
    let (head, body) = text.split_once("\r\n\r\n").context("no head")?;
    let head: Vec<_> = head
        .lines()
        .filter(|line| !line.to_ascii_lowercase().starts_with("content-length"))
        .collect();
    let length = body.len();
    write!(
        client,
        "{}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}",
        head.join("\r\n")
    )?;
    Ok(())
}

/// The line of the credential, and the body.
fn read_request(client: &TcpStream) -> Result<(String, String)> {
    let mut reader = BufReader::new(client);
    let (mut authorization, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim_end();
        let lower = line.to_ascii_lowercase();
        if line.is_empty() {
            break;
        } else if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse()?;
        } else if lower.starts_with("authorization:") {
            line.clone_into(&mut authorization);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok((authorization, String::from_utf8(body)?))
}
