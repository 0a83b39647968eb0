//! Builds a directory with the dockerd behind a unix socket, and says how long it took and what was sent:
//! `solve SOCKET DIR IMAGE [ATTRIBUTE=VALUE...]`.

use slipway_buildkit::{
    Client, LocalDir, Session, SessionOptions, SolveEvent, SolveRequest, StatsHandle,
    dial_docker_grpc, dial_docker_session,
};
use std::io::Write;
use std::time::Instant;
use tokio::net::UnixStream;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || {
        arguments
            .next()
            .ok_or("usage: solve SOCKET DIR IMAGE [ATTRIBUTE=VALUE...]")
    };
    let (socket, dir, image) = (next()?, next()?, next()?);
    let frontend_attrs = arguments
        .filter_map(|pair| {
            pair.split_once('=')
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
        })
        .collect();

    let began = Instant::now();
    let id = format!(
        "solve{}at{:?}",
        std::process::id(),
        std::time::SystemTime::now()
    );
    let id: String = id.chars().filter(char::is_ascii_alphanumeric).collect();
    let stats = StatsHandle::default();
    let local = |name: &str| LocalDir {
        name: name.to_owned(),
        root: dir.clone().into(),
    };
    let session = Session::new(SessionOptions {
        id: id.clone(),
        name: "solve".to_owned(),
        shared_key: format!("solve:{dir}"),
        locals: vec![local("context"), local("dockerfile")],
        stats: stats.clone(),
        ..SessionOptions::default()
    });
    let stream =
        dial_docker_session(UnixStream::connect(&socket).await?, &session.headers()).await?;
    let served = tokio::spawn(session.serve(stream));

    let (sender, mut events) = tokio::sync::mpsc::channel(64);
    let shown = tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            match event {
                SolveEvent::Step {
                    name,
                    completed_at: Some(_),
                    ..
                } => eprintln!("done {name}"),
                SolveEvent::Log { bytes, .. } => drop(std::io::stderr().write_all(&bytes)),
                SolveEvent::Warning { message } => eprintln!("warning: {message}"),
                SolveEvent::Step { .. } | SolveEvent::Progress { .. } => {}
            }
        }
    });
    let client =
        Client::connect(dial_docker_grpc(UnixStream::connect(&socket).await?).await?).await?;
    let request = SolveRequest {
        build_ref: id.clone(),
        session: id,
        frontend_attrs,
        image_name: image,
        ..SolveRequest::default()
    };
    let result = client.solve(request, sender).await;
    let took = began.elapsed();
    shown.await?;
    served.abort();
    println!("{took:?} {:?} {}", stats.snapshot(), result?.image_id);
    Ok(())
}
