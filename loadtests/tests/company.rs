//! A farm in a company's network: a registry whose certificate the company's own authority has signed, behind the company's HTTP proxy.

use anyhow::{Context, Result, ensure};
use slipway_loadtests::testbed::{Authority, Testbed, show};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// An HTTP proxy that knows `CONNECT` alone; gives how many of them it took.
fn proxy(address: &str) -> Result<Arc<AtomicUsize>> {
    let listener = TcpListener::bind(address).context("listen as a proxy")?;
    let taken = Arc::new(AtomicUsize::new(0));
    let count = taken.clone();
    // Ends with the test's process.
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let count = count.clone();
            std::thread::spawn(move || tunnel(client, &count));
        }
    });
    Ok(taken)
}

fn tunnel(mut client: TcpStream, taken: &AtomicUsize) -> Result<()> {
    let mut head = BufReader::new(client.try_clone()?);
    let mut line = String::new();
    head.read_line(&mut line)?;
    let target = line.strip_prefix("CONNECT ").context("not CONNECT")?;
    let target = target.split(' ').next().unwrap_or_default().to_owned();
    while line.trim() != "" {
        line.clear();
        head.read_line(&mut line)?;
    }
    let mut server = TcpStream::connect(target)?;
    taken.fetch_add(1, Ordering::SeqCst);
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    let (mut back, mut to_client) = (server.try_clone()?, client.try_clone()?);
    let answers = std::thread::spawn(move || {
        let _ = std::io::copy(&mut back, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Write);
    });
    // What was read beyond the head is in the reader.
    let _ = std::io::copy(&mut head, &mut server);
    let _ = server.shutdown(Shutdown::Write);
    let _ = answers.join();
    Ok(())
}

#[test]
fn a_private_authority_and_a_proxy_are_enough_to_pull_add_and_push() -> Result<()> {
    let authority = Authority::new()?;
    let files = tempfile::tempdir()?;
    let pem = files.path().join("company.pem");
    std::fs::write(&pem, &authority.pem)?;
    let bed = Testbed::start_with(&format!(
        "isolation = \"sandbox\"\nca_files = [\"{}\"]\nhttps_proxy = \"http://GATEWAY:5001\"\n",
        pem.display()
    ))?;
    bed.registry.seed(&["busybox"])?;
    let proxied = proxy(&bed.registry.address().replace(":5000", ":5001"))?;
    let secure = bed.secure_registry(&authority)?;
    let company = secure.address();

    let deploy = |dockerfile: &str, image: &str| -> Result<()> {
        let dir = bed.project("company", &[("Dockerfile", dockerfile)])?;
        let mut command = bed.slipway(&["deploy"]);
        command.arg(&dir).args(["--app", "web", "--org", "acme"]);
        let output = command.args(["--remote-only", "--image", image]).output()?;
        ensure!(output.status.success(), "{}\n{}", show(&output), bed.logs());
        Ok(())
    };
    let base = format!("{company}/base:1");
    deploy("FROM busybox\nRUN echo pushed > /pushed\n", &base)?;
    let pushes = proxied.load(Ordering::SeqCst);
    ensure!(pushes > 0, "the push went past the proxy");
    deploy(
        &format!("FROM {base}\nADD https://{company}/v2/ /answer\nRUN cat /pushed /answer\n"),
        &format!("{company}/app:1"),
    )?;
    ensure!(
        proxied.load(Ordering::SeqCst) > pushes,
        "the pull went past the proxy"
    );
    Ok(())
}
