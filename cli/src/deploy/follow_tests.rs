//! Following a build at a server that breaks in every way: real connections, a server of this test's own, because the
//! real one does not break on demand.

use super::*;
use crate::settings::Access;
use crate::token::Token;
use slipway_core::build::{BuildEvent, BuildOutcome};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const WAIT_MAX: Duration = Duration::from_secs(180);

/// What the server does with one connection: the status line and headers, then these pieces, then it hangs up.
struct Script {
    head: &'static str,
    pieces: Vec<String>,
}

const STREAM: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

fn events(numbers: std::ops::RangeInclusive<u64>) -> Vec<String> {
    numbers
        .map(|seq| chunk(&event(seq, &BuildEvent::Started)))
        .collect()
}

fn event(seq: u64, event: &BuildEvent) -> String {
    let numbered = NumberedEvent {
        seq,
        at_ms: seq,
        event: event.clone(),
    };
    let data = serde_json::json!({ "data": { "buildEvents": numbered } });
    format!("event: next\ndata: {data}\n\n")
}

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

fn whole(status: &'static str, body: &str) -> Script {
    let head: String = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    Script {
        head: Box::leak(head.into_boxed_str()),
        pieces: vec![body.to_owned()],
    }
}

async fn read_request(stream: &mut TcpStream) -> String {
    let mut seen = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&seen).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| {
                    line.to_ascii_lowercase()
                        .strip_prefix("content-length: ")
                        .map(str::to_owned)
                })
                .and_then(|length| length.parse::<usize>().ok())
                .unwrap_or(0);
            if body.len() >= length {
                return body.to_owned();
            }
        }
        let read = stream.read_buf(&mut seen).await.unwrap();
        assert!(read > 0, "the client hung up in the middle of a request");
    }
}

/// Serves one script per connection, in order. Gives the client and, at the end, the requests that came.
async fn serve(scripts: Vec<Script>) -> (ApiClient, tokio::task::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        let mut requests = Vec::new();
        for script in scripts {
            let (mut stream, _) = listener.accept().await.unwrap();
            requests.push(read_request(&mut stream).await);
            stream.write_all(script.head.as_bytes()).await.unwrap();
            for piece in script.pieces {
                stream.write_all(piece.as_bytes()).await.unwrap();
            }
            stream.shutdown().await.unwrap();
        }
        requests
    });
    let token = Token::parse("t").unwrap();
    let access = Access {
        server,
        ca_pem: None,
        token,
    };
    (ApiClient::new(&access).unwrap(), serving)
}

/// What is heard until an error or the last event, as short words.
async fn hear_all(client: &ApiClient) -> Vec<String> {
    let mut follower = Follower::new(client, "bld_x");
    let (mut words, mut after) = (Vec::new(), 0);
    loop {
        let heard = tokio::time::timeout(WAIT_MAX, follower.hear(after))
            .await
            .unwrap();
        match heard {
            Ok(Heard::Event(event)) => {
                after = event.seq;
                words.push(after.to_string());
                if matches!(event.event, BuildEvent::Ended(_)) {
                    return words;
                }
            }
            Ok(Heard::Broken(why)) => words.push(why),
            Err(failure) => {
                words.push(format!("exit {}: {}", failure.code(), failure.message()));
                return words;
            }
        }
    }
}

#[tokio::test]
async fn a_broken_stream_goes_on_after_the_last_event() {
    let mut half = events(1..=2);
    let cut = chunk(&event(3, &BuildEvent::Started));
    half.push(cut[..cut.len() / 2].to_owned());
    let mut rest = events(3..=3);
    rest.push(chunk(&event(
        4,
        &BuildEvent::Ended(BuildOutcome::Cancelled),
    )));
    let scripts = vec![
        Script {
            head: STREAM,
            pieces: half,
        },
        whole("503 Service Unavailable", r#"{"message": "starting"}"#),
        Script {
            head: STREAM,
            pieces: vec!["0\r\n\r\n".to_owned()],
        },
        Script {
            head: STREAM,
            pieces: rest,
        },
    ];
    let (client, serving) = serve(scripts).await;
    let broke = "the connection to the server broke";
    assert_eq!(
        hear_all(&client).await,
        ["1", "2", broke, "starting", broke, "3", "4"]
    );
    let asked: Vec<serde_json::Value> = serving
        .await
        .unwrap()
        .iter()
        .map(|body| {
            serde_json::from_str::<serde_json::Value>(body).unwrap()["variables"]["after"].clone()
        })
        .collect();
    assert_eq!(asked, [0, 2, 2, 2]);
}

#[tokio::test]
async fn a_refusal_is_final() {
    for (script, says) in [
        (
            whole(
                "200 OK",
                r#"{"data": null, "errors": [{"message": "no such build", "extensions": {"code": "NOT_FOUND", "fault": "user"}}]}"#,
            ),
            "exit 1: no such build",
        ),
        (
            whole(
                "401 Unauthorized",
                r#"{"message": "the token is not known"}"#,
            ),
            "exit 1: the token is not known",
        ),
        (
            Script {
                head: STREAM,
                pieces: vec![chunk(
                    "event: next\ndata: {\"errors\": [{\"message\": \"gone\", \"extensions\": {\"fault\": \"user\"}}]}\n\n",
                )],
            },
            "exit 1: gone",
        ),
    ] {
        let (client, _serving) = serve(vec![script]).await;
        assert_eq!(hear_all(&client).await, [says]);
    }
}

#[tokio::test]
async fn an_idle_connection_that_the_server_closed_is_replaced() {
    let answer = r#"{"data": {"cancelBuild": {"id": "bld_x"}}}"#;
    let (client, serving) = serve(vec![whole("200 OK", answer), whole("200 OK", answer)]).await;
    for _ in 0..2 {
        // Not the shape of a build, so it is refused; but it was asked and answered.
        let failure = queries::cancel_build(&client, "bld_x").await.unwrap_err();
        assert!(
            failure.message().contains("not what was asked for"),
            "{failure}"
        );
    }
    assert_eq!(serving.await.unwrap().len(), 2);
}

#[tokio::test]
async fn what_is_no_server_of_ours_is_told() {
    let (client, _serving) = serve(vec![whole("200 OK", "<html>hello</html>")]).await;
    let failure = queries::cancel_build(&client, "bld_x").await.unwrap_err();
    assert!(
        failure.message().contains("is not a slipway server"),
        "{failure}"
    );
}
