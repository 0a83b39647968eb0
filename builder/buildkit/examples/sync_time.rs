//! Measures one unchanged sync of a directory, in memory and without a builder: `sync_time DIR [EXCLUDE...]`.

use bollard_buildkit_proto::fsutil::types::Packet;
use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use bollard_buildkit_proto::moby::filesync::v1::file_sync_client::FileSyncClient;
use slipway_buildkit::{LocalDir, Session, SessionOptions, StatsHandle};
use std::time::Instant;
use tokio::sync::mpsc;
use tonic::transport::{Endpoint, Uri};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let root = arguments
        .next()
        .ok_or("usage: sync_time DIR [EXCLUDE...]")?;
    let excludes: Vec<String> = arguments.collect();
    for _ in 0..5 {
        let stats = StatsHandle::default();
        let session = Session::new(SessionOptions {
            id: "id".into(),
            name: String::new(),
            shared_key: String::new(),
            locals: vec![LocalDir {
                name: "context".into(),
                root: root.clone().into(),
            }],
            stats: stats.clone(),
            ..SessionOptions::default()
        });
        let (near, far) = tokio::net::UnixStream::pair()?;
        let served = tokio::spawn(session.serve(near));
        let mut far = Some(hyper_util::rt::TokioIo::new(far));
        let connector = tower::service_fn(move |_: Uri| {
            let far = far
                .take()
                .ok_or_else(|| std::io::Error::other("one connection only"));
            async move { far }
        });
        let channel = Endpoint::from_static("http://session")
            .connect_with_connector(connector)
            .await?;
        let (requests, receiver) = mpsc::channel(16);
        let began = Instant::now();
        let mut request =
            tonic::Request::new(tokio_stream::wrappers::ReceiverStream::new(receiver));
        request
            .metadata_mut()
            .append("dir-name", "context".parse()?);
        for exclude in &excludes {
            request
                .metadata_mut()
                .append("exclude-patterns", exclude.parse()?);
        }
        let mut packets = FileSyncClient::new(channel)
            .diff_copy(request)
            .await?
            .into_inner();
        while packets
            .message()
            .await?
            .is_some_and(|packet| packet.stat.is_some())
        {}
        let walked = began.elapsed();
        requests
            .send(Packet {
                r#type: PacketType::PacketFin.into(),
                ..Default::default()
            })
            .await?;
        while packets.message().await?.is_some() {}
        println!(
            "{walked:?} to the last entry, {:?} to the end, {:?}",
            began.elapsed(),
            stats.snapshot()
        );
        served.abort();
    }
    Ok(())
}
