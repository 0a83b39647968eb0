//! Long bodies and hijacked streams, and how they end.

use super::{hijack, serve, text, upgrade};
use crate::http::{BodyError, full};
use crate::testing::{Answer, Bench, eventually, listen, request, soon};
use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

#[tokio::test]
async fn bodies_stream_both_ways_with_the_slower_sides_pressure() {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "DEPLOY").await;
    let taken = Arc::new(AtomicUsize::new(0));
    let (go, gate) = tokio::sync::watch::channel(false);
    let counter = Arc::clone(&taken);
    serve(&bench, "docker.sock", move |request| {
        let (counter, mut gate) = (Arc::clone(&counter), gate.clone());
        async move {
            gate.wait_for(|open| *open).await.unwrap();
            let mut body = request.into_body();
            while let Some(frame) = body.frame().await {
                counter.fetch_add(frame.unwrap().into_data().unwrap().len(), Ordering::SeqCst);
            }
            text(counter.load(Ordering::SeqCst).to_string())
        }
    });
    const PIECE: usize = 64 << 10;
    const PIECES: usize = 1024;
    let (sender, pieces) = mpsc::channel::<Result<Frame<Bytes>, BodyError>>(1);
    let body = StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(pieces));
    let mut sending = bench.http("docker", &who).await;
    let request = who.sign(request("POST", "/build", body.boxed_unsync()));
    let answer =
        tokio::spawn(async move { Answer::of(sending.send_request(request).await.unwrap()).await });
    let sent = Arc::new(AtomicUsize::new(0));
    let progress = Arc::clone(&sent);
    let feeding = tokio::spawn(async move {
        for _ in 0..PIECES {
            sender
                .send(Ok(Frame::data(Bytes::from(vec![7; PIECE]))))
                .await
                .unwrap();
            progress.fetch_add(PIECE, Ordering::SeqCst);
        }
    });
    // The builder reads nothing yet, so what goes in is what sockets hold on the way, and then no more.
    let mut still = 0;
    let mut before = usize::MAX;
    eventually("the sender is held up", || {
        let now = sent.load(Ordering::SeqCst);
        still = if now == before { still + 1 } else { 0 };
        before = now;
        still > 100
    })
    .await;
    assert!(sent.load(Ordering::SeqCst) < PIECE * PIECES / 2, "{before}");
    go.send(true).unwrap();
    soon("the body is through", feeding).await.unwrap();
    assert_eq!(answer.await.unwrap().body, (PIECE * PIECES).to_string());
    bench.end().await;
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_request_at_the_builder() {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "DEPLOY").await;
    let listener = listen(&bench.path("docker.sock"));
    // An endless answer, like `docker logs -f`.
    let builder = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await
            .unwrap();
        while stream.write_all(b"5\r\nline\n\r\n").await.is_ok() {}
    });
    let mut sender = bench.http("docker", &who).await;
    let request = who.sign(request("GET", "/events", full("")));
    let mut response = sender.send_request(request).await.unwrap();
    assert_eq!(
        soon("a line", response.frame())
            .await
            .unwrap()
            .unwrap()
            .into_data()
            .unwrap()[..4],
        *b"line"
    );
    assert_eq!(bench.builder.active(), 1);
    drop((response, sender));
    soon("the builder is told", builder).await.unwrap();
    eventually("no activity", || bench.builder.active() == 0).await;
    bench.end().await;
}

#[tokio::test]
async fn hijacked_streams_pass_each_end_by_itself() {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "DEPLOY").await;
    // Like `docker exec -i sort`: answers only when stdin has ended.
    let head = hijack(&bench, |mut writer, mut reader| async move {
        let mut stdin = Vec::new();
        reader.read_to_end(&mut stdin).await.unwrap();
        stdin.sort_unstable();
        writer.write_all(&stdin).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    let mut sender = bench.http("docker", &who).await;
    let ask = who.sign(upgrade("/v1.45/exec/0a/start", "tcp"));
    let mut response = sender.send_request(ask).await.unwrap();
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["upgrade"], "tcp");
    assert_eq!(
        response.headers()["content-type"],
        "application/vnd.docker.raw-stream"
    );
    let mut stream = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    let sent: Vec<u8> = (0..300_000_u32).rev().map(|n| n.to_be_bytes()[1]).collect();
    stream.write_all(&sent).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut got = Vec::new();
    soon("the answer", stream.read_to_end(&mut got))
        .await
        .unwrap();
    assert!(got.is_sorted() && got.len() == sent.len());
    let head = head.lock().unwrap().clone();
    assert!(
        head.contains("upgrade: tcp") && !head.contains("authorization"),
        "{head}"
    );
    eventually("the stream's activity has ended", || {
        bench.builder.active() == 0
    })
    .await;
    bench.end().await;
}

#[tokio::test]
async fn a_broken_client_breaks_the_builders_side() {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "DEPLOY").await;
    let (ended, mut ends) = mpsc::channel::<usize>(1);
    hijack(&bench, move |_writer, mut reader| {
        let ended = ended.clone();
        async move {
            let mut all = Vec::new();
            let _ = reader.read_to_end(&mut all).await;
            ended.send(all.len()).await.unwrap();
        }
    });
    let mut tls = bench.tls("docker", &who, "http/1.1").await.unwrap();
    let authorization = who.authorization.clone().unwrap();
    let head = format!(
        "POST /session HTTP/1.1\r\nHost: x\r\nAuthorization: {authorization}\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\nearly"
    );
    tls.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    soon("101", tls.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 101");
    // No close_notify: the connection is torn.
    drop(tls);
    // What was sent behind the head, before the 101, is not lost.
    assert_eq!(soon("the builder's side ends", ends.recv()).await, Some(5));
    eventually("no activity", || bench.builder.active() == 0).await;
    bench.end().await;
}

#[tokio::test]
async fn the_buildkit_listener_wants_a_certificate_and_then_is_one_stream() {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "DEPLOY").await;
    let certificate = bench.certificate(&who).await;
    let head = hijack(&bench, |mut writer, mut reader| async move {
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
        let _ = writer.shutdown().await;
    });
    let mut tls = bench.tls("buildkit", &certificate, "h2").await.unwrap();
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    tls.write_all(preface).await.unwrap();
    let mut echo = vec![0; preface.len()];
    soon("an echo", tls.read_exact(&mut echo)).await.unwrap();
    assert_eq!(echo, preface);
    tls.shutdown().await.unwrap();
    assert_eq!(
        soon("the end", tls.read_to_end(&mut echo)).await.unwrap(),
        0
    );
    assert!(head.lock().unwrap().starts_with("post /grpc http/1.1\r\n"));

    let without = async {
        let mut tls = bench.tls("buildkit", &who, "h2").await?;
        tls.write_all(preface).await?;
        tls.read_u8().await
    };
    assert!(soon("a refusal", without).await.is_err());

    // A refusal that a gRPC client can print.
    bench.builder.down.store(true, Ordering::SeqCst);
    let mut tls = bench.tls("buildkit", &certificate, "h2").await.unwrap();
    tls.write_all(preface).await.unwrap();
    let mut farewell = Vec::new();
    soon("a farewell", tls.read_to_end(&mut farewell))
        .await
        .unwrap();
    assert!(farewell.ends_with(b"the builder is down (wake it)"));
    eventually("no activity", || bench.builder.active() == 0).await;
    bench.end().await;
}
