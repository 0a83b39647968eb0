//! Bytes as attackers write them, through the real listener: what two parsers might read differently, what never comes to
//! its end, what is too large. The builder behind it reads strictly, and fails the test where it would have to guess.

use super::hijack;
use crate::bounds::{FIRST_REQUEST_WAIT_MAX, REQUEST_HEAD_BYTES_MAX};
use crate::testing::{Bench, Who, eventually, listen, soon};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// What the builder got: request line and body of each request, in order.
pub(super) type Seen = Arc<Mutex<Vec<(String, String)>>>;

/// A builder that reads strictly, answers 200, and refuses upgrades.
pub(super) fn strict(bench: &Bench) -> Seen {
    let seen = Seen::default();
    let (listener, taken) = (listen(&bench.path("docker.sock")), Arc::clone(&seen));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (read, told) = (
                tokio::spawn(read_strictly(BufReader::new(stream), Arc::clone(&taken))),
                Arc::clone(&taken),
            );
            tokio::spawn(async move {
                if let Err(panic) = read.await {
                    let told = &mut told
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner);
                    told.push((format!("{panic:?}"), String::new()));
                }
            });
        }
    });
    seen
}

/// Ends with the connection. What ends inside a request is no request.
async fn read_strictly(mut stream: BufReader<UnixStream>, seen: Seen) -> Option<()> {
    loop {
        let request = line(&mut stream).await?;
        let (mut length, mut chunked) = (None, false);
        loop {
            let field = line(&mut stream).await?;
            if field.is_empty() {
                break;
            }
            let (name, value) = field.split_once(": ").expect("a field");
            let is_name = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
            assert!(name.bytes().all(is_name), "{field}");
            match name.to_ascii_lowercase().as_str() {
                "content-length" => {
                    assert!(length.is_none(), "two lengths");
                    length = Some(value.parse::<usize>().expect("digits"));
                }
                "transfer-encoding" => {
                    assert!(!chunked && value == "chunked", "{field}");
                    chunked = true;
                }
                _ => {}
            }
        }
        assert!(!(chunked && length.is_some()), "both: {request}");
        let mut body = vec![0; length.unwrap_or(0)];
        stream.read_exact(&mut body).await.ok()?;
        while chunked {
            let size = line(&mut stream).await?;
            let size = usize::from_str_radix(&size, 16).expect("a size and nothing else");
            let mut chunk = vec![0; size];
            stream.read_exact(&mut chunk).await.ok()?;
            body.extend_from_slice(&chunk);
            assert_eq!(line(&mut stream).await?, "");
            chunked = size > 0;
        }
        let body = String::from_utf8(body).expect("text");
        seen.lock().unwrap().push((request, body));
        let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK";
        stream.write_all(ok).await.ok()?;
    }
}

async fn line(stream: &mut BufReader<UnixStream>) -> Option<String> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    if !line.ends_with('\n') {
        return None;
    }
    let line = line.strip_suffix("\r\n").expect("CRLF");
    assert!(!line.contains(['\r', '\n', '\0']), "{line:?}");
    assert!(!line.starts_with([' ', '\t']), "a folded line: {line:?}");
    Some(line.to_owned())
}

/// Writes `raw` (`{auth}` is the credential) and then one more request, which is answered 404, and closes the connection, if
/// both sides still agree on where it begins. Gives the statuses of all answers.
async fn exchange(bench: &Bench, who: &Who, raw: &str) -> Vec<u16> {
    let auth = format!("Authorization: {}", who.authorization.as_deref().unwrap());
    let end = format!("GET /end HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{auth}\r\n\r\n");
    let bytes = raw.replace("{auth}", &auth) + &end;
    let mut tls = bench.tls("docker", who, "http/1.1").await.unwrap();
    tls.write_all(bytes.as_bytes()).await.unwrap();
    let mut answers = Vec::new();
    // A refused request may be answered by a torn connection, with or without a status before it.
    let _torn = soon("the end", tls.read_to_end(&mut answers)).await;
    let answers = String::from_utf8_lossy(&answers).into_owned();
    let statuses = answers.split("HTTP/1.1 ").skip(1);
    statuses.map(|rest| rest[..3].parse().unwrap()).collect()
}

/// What no request of ours may hide in another's body.
const HIDDEN: &str = "GET /v1.45/containers/hidden/json HTTP/1.1\r\nHost: x\r\n\r\n";
const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";

/// `HIDDEN` in one chunk.
fn chunks() -> String {
    format!("{:x}\r\n{HIDDEN}\r\n0\r\n\r\n", HIDDEN.len())
}

fn post(fields: &str, rest: &str) -> String {
    format!("POST /build HTTP/1.1\r\nHost: x\r\n{{auth}}\r\n{fields}\r\n{rest}")
}

/// Makes each request, and tells all that were not answered with `statuses`, or of which the builder did not get `body`.
async fn check(cases: &[(String, &[u16], Option<&str>)]) {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "DEPLOY").await;
    let seen = strict(&bench);
    let mut wrong = Vec::new();
    for (raw, statuses, body) in cases {
        let got = exchange(&bench, &who, raw).await;
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        let whole = |body: &str| ("POST /build HTTP/1.1".to_owned(), body.to_owned());
        if got != *statuses || seen != Vec::from_iter(body.map(whole)) {
            wrong.push(format!("{raw}\n=> {got:?}, the builder saw {seen:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    bench.end().await;
}

#[tokio::test]
async fn framing_has_one_reading() {
    let chunks = chunks();
    let chunks = chunks.as_str();
    let length = format!("Content-Length: {}\r\n", HIDDEN.len());
    let twice = format!("{length}{length}");
    let both = [
        format!("Content-Length: 0\r\n{CHUNKED}"),
        format!("{CHUNKED}Content-Length: 0\r\n"),
        format!("{length}{CHUNKED}"),
    ];
    check(&[
        (post(&length, HIDDEN), &[200, 404], Some(HIDDEN)),
        (post(CHUNKED, chunks), &[200, 404], Some(HIDDEN)),
        (
            post("Transfer-Encoding: Chunked\r\n", chunks),
            &[200, 404],
            Some(HIDDEN),
        ),
        // The same length twice is one (RFC 9112, 6.3), and is forwarded once.
        (post(&twice, HIDDEN), &[200, 404], Some(HIDDEN)),
        // Chunks go before a length, and the connection ends with it (RFC 9112, 6.1).
        (post(&both[0], chunks), &[200], Some(HIDDEN)),
        (post(&both[1], chunks), &[200], Some(HIDDEN)),
        (post(&both[2], "0\r\n\r\n"), &[200], Some("")),
    ])
    .await;
}

#[tokio::test]
async fn framing_with_two_readings_is_refused() {
    let chunks = chunks();
    let chunks = chunks.as_str();
    let twice = format!("{CHUNKED}{CHUNKED}");
    let differ = format!("Content-Length: {}\r\nContent-Length: 0\r\n", HIDDEN.len());
    // It would reach the builder without its encoding. Where the body ends is clear, so the connection goes on.
    let encoded = [
        ("Transfer-Encoding: gzip, chunked\r\n", chunks),
        ("Transfer-Encoding: chunked, chunked\r\n", chunks),
        (&twice, chunks),
    ];
    let unclear = [
        // Lengths.
        (differ.as_str(), HIDDEN),
        ("Content-Length: 0, 0\r\n", ""),
        ("Content-Length: +5\r\n", "12345"),
        ("Content-Length: -1\r\n", ""),
        ("Content-Length: 0x5\r\n", "12345"),
        ("Content-Length: 18446744073709551617\r\n", "1"),
        ("Content-Length:\r\n", ""),
        // Encodings.
        ("Transfer-Encoding: identity\r\n", ""),
        ("Transfer-Encoding: xchunked\r\n", chunks),
        ("Transfer-Encoding: chunked, identity\r\n", chunks),
        ("Transfer-Encoding : chunked\r\n", chunks),
        ("Transfer-Encoding:\x0bchunked\r\n", chunks),
        // Folded lines, bare line ends, what is no field.
        ("X-Folded: a\r\n b\r\n", ""),
        ("Transfer-Encoding:\r\n chunked\r\n", chunks),
        ("X-Null: a\0b\r\n", ""),
        ("X-Return: a\rb\r\n", ""),
        ("no field\r\n", ""),
        (": no name\r\n", ""),
        // Chunks that are none.
        (CHUNKED, "zz\r\n"),
        (CHUNKED, "-1\r\n"),
        (CHUNKED, "fffffffffffffffff\r\n"),
        (CHUNKED, "1\r\nab\r\n0\r\n\r\n"),
    ];
    let post = |(fields, rest): &(&str, &str)| post(fields, rest);
    let get = |fields: &str| format!("GET /info HTTP/1.1\r\n{fields}{{auth}}\r\n\r\n");
    let mut cases: Vec<(String, &[u16], Option<&str>)> = vec![
        // Which host is meant. Where the body ends is clear here, too.
        (get(""), &[400, 404], None),
        (get("Host: x\r\nHost: y\r\n"), &[400, 404], None),
        // Other protocols.
        ("GET /_ping\r\n".to_owned(), &[400], None),
        (
            "GET /_ping HTTP/2.0\r\nHost: x\r\n{auth}\r\n\r\n".to_owned(),
            &[400],
            None,
        ),
        (
            format!("POST /build HTTP/1.0\r\n{{auth}}\r\n{CHUNKED}\r\n0\r\n\r\n"),
            &[400],
            None,
        ),
    ];
    for one in &encoded {
        cases.push((post(one), &[400, 404], None));
    }
    for one in &unclear {
        cases.push((post(one), &[400], None));
    }
    check(&cases).await;
}

/// What the table is asked is what is forwarded, whatever form the target comes in.
#[tokio::test]
async fn a_target_has_one_reading_or_none() {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "DEPLOY").await;
    let seen = strict(&bench);
    for (target, status, forwarded) in [
        ("GET /_ping", 200, "GET /_ping"),
        ("GET http://evil/_ping?a=1", 200, "GET /_ping?a=1"),
        ("GET http://u:p@evil:1/v1.45/info", 200, "GET /v1.45/info"),
        ("GET http://evil/metrics", 403, ""),
        ("GET http://evil//v1.45//metrics", 403, ""),
        ("GET http://evil", 404, ""),
        ("GET //evil/swarm", 404, ""),
        ("GET ///metrics", 403, ""),
        ("GET /%2Fmetrics", 403, ""),
        ("GET /%6detrics", 403, ""),
        ("GET /v1.45/./metrics/.", 403, ""),
        ("GET /containers/../swarm", 400, ""),
        ("GET /containers/%2e%2e/swarm", 400, ""),
        ("GET /containers%2F%2E%2E%2Fswarm", 400, ""),
        (
            "GET /containers/%252e%252e/swarm",
            200,
            "GET /containers/%252e%252e/swarm",
        ),
        ("GET /containers/x;/../swarm", 400, ""),
        ("GET /v1.45/v1.46/info", 400, ""),
        ("GET /info%00", 400, ""),
        ("GET /info%0d%0aX: y", 400, ""),
        (
            "GET /images/a%2Fb%3Fc/json",
            200,
            "GET /images/a/b%3Fc/json",
        ),
        ("GET /info?../../swarm", 200, "GET /info?../../swarm"),
        ("GET /info?x=%0d%0aHost:y", 200, "GET /info?x=%0d%0aHost:y"),
        ("GET /info#/../swarm", 200, "GET /info"),
        ("GET /SWARM", 404, ""),
        ("OPTIONS *", 400, ""),
        ("CONNECT evil:80", 404, ""),
        ("TRACE /info", 404, ""),
        ("get /info", 404, ""),
    ] {
        let raw = format!("{target} HTTP/1.1\r\nHost: x\r\n{{auth}}\r\n\r\n");
        let statuses = exchange(&bench, &who, &raw).await;
        assert_eq!(statuses.first(), Some(&status), "{target}");
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        let expected = (!forwarded.is_empty()).then(|| format!("{forwarded} HTTP/1.1"));
        let seen: Vec<String> = seen.into_iter().map(|(request, _)| request).collect();
        assert_eq!(seen, Vec::from_iter(expected), "{target}");
    }
    bench.end().await;
}

/// A refused upgrade leaves HTTP as it was: what follows is a request like any other, and the table is asked.
#[tokio::test]
async fn what_follows_a_refused_upgrade_is_a_request() {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "DEPLOY").await;
    let seen = strict(&bench);
    let upgrade = "POST /session HTTP/1.1\r\nHost: x\r\n{auth}\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
    let then = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n{{auth}}\r\n\r\n");
    let raw = format!(
        "{upgrade}{}{}{upgrade}{}",
        then("/metrics"),
        then("/info"),
        then("/_ping")
    );
    assert_eq!(
        exchange(&bench, &who, &raw).await,
        [200, 403, 200, 200, 200, 404]
    );
    let seen: Vec<String> = seen
        .lock()
        .unwrap()
        .iter()
        .map(|(line, _)| line.clone())
        .collect();
    let expected = ["POST /session", "GET /info", "POST /session", "GET /_ping"];
    assert_eq!(seen, expected.map(|line| format!("{line} HTTP/1.1")));
    eventually("no activity", || bench.builder.active() == 0).await;
    // Without a credential of its own the next one is refused, though it comes on the same connection, which ends with that.
    let bare = "GET /info HTTP/1.1\r\nHost: x\r\n\r\n";
    let raw = format!("{upgrade}{bare}");
    assert_eq!(exchange(&bench, &who, &raw).await, [200, 401]);
    bench.end().await;
}

#[tokio::test]
async fn heads_without_an_end_are_cut_off() {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "DEPLOY").await;
    let seen = strict(&bench);
    let large = format!("X-Large: {}\r\n", "x".repeat(REQUEST_HEAD_BYTES_MAX));
    let many = "X-Many: x\r\n".repeat(REQUEST_HEAD_BYTES_MAX / 11 + 1);
    let target = "a".repeat(REQUEST_HEAD_BYTES_MAX);
    let head = "GET /info HTTP/1.1\r\nHost: x\r\n{auth}\r\n";
    for raw in [
        format!("{head}{large}\r\n"),
        format!("{head}{many}\r\n"),
        format!("{head}{large}"),
        format!("GET /{target}"),
        format!("GET /info?{target} HTTP/1.1\r\nHost: x\r\n{{auth}}\r\n\r\n"),
    ] {
        let statuses = exchange(&bench, &who, &raw).await;
        let shown = &raw[..60];
        assert!(
            matches!(statuses[..], [400 | 414 | 431]),
            "{statuses:?} {shown}"
        );
    }
    assert_eq!(*seen.lock().unwrap(), []);
    bench.end().await;
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let mut bench = Bench::start().await;
    let begin = std::time::Instant::now();
    let mut closed = tokio::task::JoinSet::new();
    for listener in ["api", "docker", "buildkit"] {
        let mut silent = bench.tcp(listener).await;
        closed.spawn(async move { silent.read(&mut [0; 8]).await });
        // The beginning of a handshake is none.
        let mut slow = bench.tcp(listener).await;
        slow.write_all(&[22, 3, 1, 2, 0, 1, 0]).await.unwrap();
        closed.spawn(async move { slow.read(&mut [0; 8]).await });
        // Nor is a whole one, of itself.
        if listener != "buildkit" {
            let who = Who::default();
            let mut tls = bench.tls(listener, &who, "http/1.1").await.unwrap();
            closed.spawn(async move { tls.read(&mut [0; 8]).await });
        }
    }
    while let Some(end) = soon("the close", closed.join_next()).await {
        assert!(matches!(end.unwrap(), Ok(0) | Err(_)));
    }
    assert!(begin.elapsed() >= FIRST_REQUEST_WAIT_MAX);
    bench.end().await;
}

/// Like `docker exec` whose process closes its output and reads on.
#[tokio::test]
async fn the_builder_may_end_its_half_first() {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "DEPLOY").await;
    let (got, mut gets) = tokio::sync::mpsc::channel::<Vec<u8>>(1);
    hijack(&bench, move |mut writer, mut reader| {
        let got = got.clone();
        async move {
            writer.write_all(b"bye").await.unwrap();
            writer.shutdown().await.unwrap();
            let mut rest = Vec::new();
            reader.read_to_end(&mut rest).await.unwrap();
            got.send(rest).await.unwrap();
        }
    });
    let mut tls = bench.tls("docker", &who, "http/1.1").await.unwrap();
    let authorization = who.authorization.as_deref().unwrap();
    let head = format!(
        "POST /exec/0a/start HTTP/1.1\r\nHost: x\r\nAuthorization: {authorization}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    );
    tls.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    soon("its half", tls.read_to_end(&mut answer))
        .await
        .unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 101") && answer.ends_with(b"\r\n\r\nbye"));
    assert_eq!(bench.builder.active(), 1, "the other half goes on");
    let more = vec![7; 1 << 20];
    tls.write_all(&more).await.unwrap();
    tls.shutdown().await.unwrap();
    assert!(soon("the rest", gets.recv()).await.unwrap() == more);
    eventually("no activity", || bench.builder.active() == 0).await;
    bench.end().await;
}
