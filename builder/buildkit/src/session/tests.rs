//! The session as a builder sees it: called through the published definitions, over a stream in memory.

use super::*;
use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use bollard_buildkit_proto::fsutil::types::{Packet, Stat};
use bollard_buildkit_proto::health as health_proto;
use bollard_buildkit_proto::moby::buildkit::secrets::v1 as secrets_proto;
use bollard_buildkit_proto::moby::filesync::v1 as filesync_proto;
use bytes::Bytes;
use filesync_proto::file_sync_client::FileSyncClient;
use hyper::body::Frame;
use hyper::client::conn::http2::{SendRequest, handshake};
use std::io::Write as _;
use std::path::Path;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::sync::oneshot::error::TryRecvError;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::AsciiMetadataKey;
use tonic::{Code, Status};

#[derive(Clone)]
struct Wire(SendRequest<Body>);

impl tower::Service<Request<Body>> for Wire {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future =
        std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let apart = request.map(|body| {
            Body::new(Apart {
                body,
                rest: Bytes::new(),
            })
        });
        Box::pin(self.0.send_request(apart))
    }
}

/// Each message in a frame of its own, as BuildKit sends them; tonic puts those that wait together.
struct Apart {
    body: Body,
    rest: Bytes,
}

impl hyper::body::Body for Apart {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.rest.is_empty() {
            match std::task::ready!(std::pin::Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                other => return Poll::Ready(other),
            }
        }
        let length = self.rest[1..5].try_into().map(u32::from_be_bytes).unwrap();
        let message = self.rest.split_to(5 + usize::try_from(length).unwrap());
        Poll::Ready(Some(Ok(Frame::data(message))))
    }
}

async fn served(root: &Path) -> (Wire, StatsHandle) {
    let (session, stats) = session(root);
    let (near, far) = tokio::io::duplex(1 << 20);
    tokio::spawn(session.serve(near));
    (wire(far).await, stats)
}

async fn wire(far: tokio::io::DuplexStream) -> Wire {
    let (sender, driver) = handshake(TokioExecutor::new(), TokioIo::new(far))
        .await
        .unwrap();
    tokio::spawn(driver);
    Wire(sender)
}

fn session(root: &Path) -> (Session, StatsHandle) {
    let stats = StatsHandle::default();
    let session = Session::new(SessionOptions {
        id: "id".into(),
        name: "name".into(),
        shared_key: "key".into(),
        locals: vec![LocalDir {
            name: "context".into(),
            root: root.to_owned(),
        }],
        secrets: BTreeMap::from([("known".to_owned(), SecretSource::Bytes(b"hidden".to_vec()))]),
        credentials: Arc::new(vec![RegistryLogin {
            registry: "r".into(),
            username: "u".into(),
            secret: "hidden".into(),
        }]),
        stats: stats.clone(),
        ..SessionOptions::default()
    });
    assert!(!format!("{session:?}").contains("hidden"));
    (session, stats)
}

const ORIGIN: &str = "http://session";

struct Sync {
    packets: tonic::Streaming<Packet>,
    requests: mpsc::Sender<Packet>,
}

async fn sync(wire: &Wire, metadata: &[(&str, &str)]) -> Result<Sync, Status> {
    let (requests, receiver) = mpsc::channel(32 << 10);
    let mut request = tonic::Request::new(ReceiverStream::new(receiver));
    for (key, value) in metadata {
        let key = AsciiMetadataKey::from_bytes(key.as_bytes()).unwrap();
        request.metadata_mut().append(key, value.parse().unwrap());
    }
    let mut client = FileSyncClient::with_origin(wire.clone(), ORIGIN.parse().unwrap());
    let packets = client.diff_copy(request).await?.into_inner();
    Ok(Sync { packets, requests })
}

impl Sync {
    async fn stats(&mut self) -> Vec<Stat> {
        let mut stats = Vec::new();
        while let Some(stat) = self.packets.message().await.unwrap().unwrap().stat {
            stats.push(stat);
        }
        stats
    }

    async fn ask(&self, kind: PacketType, id: u32) {
        self.requests
            .send(Packet {
                r#type: kind.into(),
                id,
                ..Default::default()
            })
            .await
            .unwrap();
    }

    /// All files of these numbers, by number.
    async fn contents(&mut self, ids: &[u32]) -> BTreeMap<u32, Vec<u8>> {
        let mut contents = BTreeMap::new();
        let mut open = ids.len();
        while open > 0 {
            let packet = self.packets.message().await.unwrap().unwrap();
            assert_eq!(packet.r#type(), PacketType::PacketData, "{packet:?}");
            contents
                .entry(packet.id)
                .or_insert_with(Vec::new)
                .extend_from_slice(&packet.data);
            open -= usize::from(packet.data.is_empty());
        }
        contents
    }

    async fn finish(mut self) {
        self.ask(PacketType::PacketFin, 0).await;
        let echo = self.packets.message().await.unwrap().unwrap();
        assert_eq!(echo.r#type(), PacketType::PacketFin);
        assert_eq!(self.packets.message().await.unwrap(), None);
    }
}

/// HTTP/2 takes many small frames that nobody has read yet for an attack, and BuildKit asks for every file it has not in a
/// frame of its own.
#[tokio::test]
async fn a_burst_of_requests_ends_no_session() {
    const FILES: u32 = 8_000;
    let root = tempfile::tempdir().unwrap();
    for number in 0..FILES {
        std::fs::write(root.path().join(format!("{number:05}")), b"").unwrap();
    }
    let (session, _stats) = session(root.path());
    let (near, far) = tokio::io::duplex(1 << 20);
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    // A session on a busy computer: it gets to run now and then only.
    let serving = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            tokio::spawn(session.serve(near));
            while stopped.try_recv() == Err(TryRecvError::Empty) {
                std::thread::sleep(Duration::from_millis(10));
                tokio::task::yield_now().await;
            }
        });
    });
    let wire = wire(far).await;
    let mut sync = sync(&wire, &[("dir-name", "context")]).await.unwrap();
    let ids: Vec<u32> = (0..FILES).collect();
    assert_eq!(sync.stats().await.len(), ids.len());
    for id in &ids {
        sync.ask(PacketType::PacketReq, *id).await;
    }
    assert_eq!(sync.contents(&ids).await.len(), ids.len());
    sync.finish().await;
    drop(stop);
    serving.join().unwrap();
}

#[tokio::test]
async fn files_arrive_whole_and_in_any_number() {
    let root = tempfile::tempdir().unwrap();
    let sizes = [0, 1, 65_535, 65_536, 65_537, 1_000_000];
    for number in 0..300_usize {
        let content = vec![u8::try_from(number % 251).unwrap(); sizes[number % sizes.len()]];
        std::fs::write(root.path().join(format!("{number:03}")), content).unwrap();
    }
    let (wire, stats) = served(root.path()).await;
    let mut sync = sync(&wire, &[("dir-name", "context")]).await.unwrap();
    let announced = sync.stats().await;
    assert_eq!(announced.len(), 300);
    let ids: Vec<u32> = (0..300).collect();
    for id in &ids {
        sync.ask(PacketType::PacketReq, *id).await;
    }
    let contents = sync.contents(&ids).await;
    for (id, stat) in announced.iter().enumerate() {
        let content = &contents[&u32::try_from(id).unwrap()];
        assert_eq!(
            content,
            &std::fs::read(root.path().join(&stat.path)).unwrap()
        );
    }
    sync.finish().await;
    let total = contents.values().map(|content| content.len() as u64).sum();
    let expected = SessionStats {
        syncs: 1,
        entries: 300,
        files: 300,
        bytes: total,
        changed: 0,
    };
    assert_eq!(stats.snapshot(), expected);
}

#[tokio::test]
async fn a_file_that_shrank_or_grew_has_an_end_and_is_counted() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("a"), vec![1; 300_000]).unwrap();
    std::fs::write(root.path().join("b"), vec![2; 100_000]).unwrap();
    // As the file systems of the kernel announce theirs.
    std::fs::write(root.path().join("c"), "").unwrap();
    std::fs::write(root.path().join("d"), "").unwrap();
    std::fs::write(root.path().join("e"), "same").unwrap();
    let (wire, stats) = served(root.path()).await;
    let mut sync = sync(&wire, &[("dir-name", "context")]).await.unwrap();
    assert_eq!(sync.stats().await.len(), 5);
    std::fs::write(root.path().join("a"), "short").unwrap();
    std::fs::write(root.path().join("b"), vec![2; 3 << 20]).unwrap();
    std::fs::write(root.path().join("c"), vec![3; 200_000]).unwrap();
    let endless = std::fs::File::create(root.path().join("d")).unwrap();
    endless.set_len(1 << 40).unwrap();
    for id in 0..5 {
        sync.ask(PacketType::PacketReq, id).await;
    }
    let contents = sync.contents(&[0, 1, 2, 3, 4]).await;
    let lengths: Vec<usize> = contents.values().map(Vec::len).collect();
    assert_eq!(lengths, [5, 100_000, 200_000, 1 << 20, 4]);
    sync.finish().await;
    assert_eq!(stats.snapshot().changed, 4);
}

/// What is written to it as fast as it is read neither lengthens it nor cuts it into small packets.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_grows_while_it_is_sent_takes_as_many_packets_as_without() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("log");
    std::fs::write(&path, vec![1; 1_000_000]).unwrap();
    let (wire, stats) = served(root.path()).await;
    let mut sync = sync(&wire, &[("dir-name", "context")]).await.unwrap();
    assert_eq!(sync.stats().await.len(), 1);
    let mut log = std::fs::File::options().append(true).open(&path).unwrap();
    log.write_all(&[2; 1000]).unwrap();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let writer = std::thread::spawn(move || {
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            log.write_all(&[2; 1000]).unwrap();
        }
    });
    sync.ask(PacketType::PacketReq, 0).await;
    let (mut packets, mut bytes) = (0, 0);
    loop {
        let packet = sync.packets.message().await.unwrap().unwrap();
        if packet.data.is_empty() {
            break;
        }
        packets += 1;
        bytes += packet.data.len();
    }
    drop(stop);
    writer.join().unwrap();
    sync.finish().await;
    assert_eq!(
        (packets, bytes),
        (
            1_000_000_usize.div_ceil(limits::SYNC_CHUNK_BYTES),
            1_000_000
        )
    );
    assert_eq!(stats.snapshot().changed, 1);
}

/// The failure that a sync ends with, told twice: as a packet and as the call's status.
async fn failure(mut sync: Sync) -> String {
    let packet = loop {
        let packet = sync.packets.message().await.unwrap().unwrap();
        if packet.r#type() == PacketType::PacketErr {
            break packet;
        }
    };
    let told = String::from_utf8(packet.data).unwrap();
    let status = sync.packets.message().await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::FailedPrecondition, told.as_str())
    );
    told
}

#[tokio::test]
async fn a_file_that_went_away_or_became_a_link_is_named() {
    let root = tempfile::tempdir().unwrap();
    for name in ["gone", "link"] {
        std::fs::write(root.path().join(name), "x").unwrap();
    }
    let (wire, _) = served(root.path()).await;
    for (id, name) in [(0, "gone"), (1, "link")] {
        let mut sync = sync(&wire, &[("dir-name", "context")]).await.unwrap();
        assert_eq!(sync.stats().await[id as usize].path, name);
        std::fs::remove_file(root.path().join(name)).unwrap();
        if name == "link" {
            std::os::unix::fs::symlink("/etc/passwd", root.path().join(name)).unwrap();
        }
        sync.ask(PacketType::PacketReq, id).await;
        let told = failure(sync).await;
        assert!(
            told.starts_with(&format!("read build context: open {name}: ")),
            "{told}"
        );
        std::fs::write(root.path().join("gone"), "x").unwrap();
    }
}

#[tokio::test]
async fn what_was_not_offered_cannot_be_asked_for() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("a")).unwrap();
    std::fs::write(root.path().join("a/b"), "x").unwrap();
    let (wire, _) = served(root.path()).await;
    // A directory, a number that does not exist, and a file that was given already.
    for ids in [&[0][..], &[7], &[u32::MAX], &[1, 1]] {
        let mut sync = sync(&wire, &[("dir-name", "context")]).await.unwrap();
        sync.stats().await;
        for id in ids {
            sync.ask(PacketType::PacketReq, *id).await;
        }
        let status = loop {
            match sync.packets.message().await {
                Ok(packet) => assert_eq!(packet.unwrap().r#type(), PacketType::PacketData),
                Err(status) => break status,
            }
        };
        assert_eq!(status.code(), Code::InvalidArgument, "{ids:?}: {status:?}");
    }
    for dir in ["", "elsewhere", "../context", "/"] {
        let refused = sync(&wire, &[("dir-name", dir)]).await.err().unwrap();
        assert_eq!(refused.code(), Code::NotFound, "{dir}");
    }
    let bad = [("dir-name", "context"), ("exclude-patterns", "[")];
    assert_eq!(
        sync(&wire, &bad).await.err().unwrap().code(),
        Code::InvalidArgument
    );
}

#[tokio::test]
async fn a_receiver_that_goes_away_ends_the_sync() {
    let root = tempfile::tempdir().unwrap();
    for number in 0..5_000 {
        std::fs::write(root.path().join(number.to_string()), "x").unwrap();
    }
    let (wire, stats) = served(root.path()).await;
    // More than may run at once, one after the other: each must give its place back.
    for _ in 0..limits::SYNCS_RUNNING_MAX * 2 {
        let deadline = Instant::now() + Duration::from_secs(180);
        let mut begun = loop {
            match sync(&wire, &[("dir-name", "context")]).await {
                Ok(begun) => break begun,
                Err(status) => assert_eq!(status.code(), Code::ResourceExhausted),
            }
            assert!(Instant::now() < deadline, "places are not given back");
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        begun.packets.message().await.unwrap();
    }
    assert_eq!(stats.snapshot().syncs, 2 * limits::SYNCS_RUNNING_MAX as u64);
}

#[tokio::test]
async fn the_other_services_answer() {
    let root = tempfile::tempdir().unwrap();
    let (wire, _) = served(root.path()).await;
    let origin = || ORIGIN.parse::<http::Uri>().unwrap();

    let mut health = health_proto::health_client::HealthClient::with_origin(wire.clone(), origin());
    let check = health
        .check(health_proto::HealthCheckRequest::default())
        .await
        .unwrap();
    assert_eq!(check.get_ref().status, 1);

    let mut secrets =
        secrets_proto::secrets_client::SecretsClient::with_origin(wire.clone(), origin());
    let wish = |id: &str| secrets_proto::GetSecretRequest {
        id: id.to_owned(),
        ..Default::default()
    };
    assert_eq!(
        secrets
            .get_secret(wish("known"))
            .await
            .unwrap()
            .get_ref()
            .data,
        b"hidden"
    );
    assert_eq!(
        secrets.get_secret(wish("other")).await.unwrap_err().code(),
        Code::NotFound
    );

    let mut auth = filesync_proto::auth_client::AuthClient::with_origin(wire.clone(), origin());
    let host = |host: &str| filesync_proto::CredentialsRequest {
        host: host.to_owned(),
    };
    assert_eq!(
        auth.credentials(host("r"))
            .await
            .unwrap()
            .get_ref()
            .username,
        "u"
    );
    assert_eq!(
        auth.credentials(host("s"))
            .await
            .unwrap()
            .get_ref()
            .username,
        ""
    );
    let token = auth
        .get_token_authority(filesync_proto::GetTokenAuthorityRequest::default())
        .await;
    assert_eq!(token.unwrap_err().code(), Code::Unavailable);

    let mut send = filesync_proto::file_send_client::FileSendClient::with_origin(wire, origin());
    let unserved = send.diff_copy(tokio_stream::empty()).await;
    assert_eq!(unserved.unwrap_err().code(), Code::Unimplemented);
}

/// A real agent with one key; ends with the value.
struct Agent {
    process: std::process::Child,
    dir: tempfile::TempDir,
}

impl Agent {
    fn start() -> Agent {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        let process = std::process::Command::new("ssh-agent")
            .args(["-D", "-a"])
            .arg(&socket)
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("openssh-client must be installed");
        let began = Instant::now();
        while !socket.exists() {
            assert!(began.elapsed() < Duration::from_secs(30), "no agent");
            std::thread::sleep(Duration::from_millis(5));
        }
        let agent = Agent { process, dir };
        let key = agent.dir.path().join("key");
        let made = std::process::Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "forwarded", "-f"])
            .arg(&key)
            .status();
        assert!(made.unwrap().success());
        assert!(agent.ssh_add(&[key.to_str().unwrap()]).status.success());
        agent
    }

    fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("agent.sock")
    }

    fn ssh_add(&self, arguments: &[&str]) -> std::process::Output {
        std::process::Command::new("ssh-add")
            .args(arguments)
            .env("SSH_AUTH_SOCK", self.socket())
            .output()
            .unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[tokio::test]
async fn an_ssh_agent_lists_and_signs_and_is_not_changed() {
    use bollard_buildkit_proto::moby::sshforward::v1 as ssh_proto;
    let agent = Agent::start();
    let session = Session::new(SessionOptions {
        ssh: BTreeMap::from([("default".to_owned(), agent.socket())]),
        ..SessionOptions::default()
    });
    let (near, far) = tokio::io::duplex(1 << 20);
    tokio::spawn(session.serve(near));
    let origin = ORIGIN.parse().unwrap();
    let mut client = ssh_proto::ssh_client::SshClient::with_origin(wire(far).await, origin);
    let check = |id: &str| ssh_proto::CheckAgentRequest { id: id.to_owned() };
    client.check_agent(check("")).await.unwrap();
    let unknown = client.check_agent(check("other")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);

    let (asks, asked) = mpsc::channel(8);
    let answers = client.forward_agent(ReceiverStream::new(asked)).await;
    let mut answers = answers.unwrap().into_inner();
    let ask = async |data: &[u8]| {
        let data = data.to_vec();
        asks.send(ssh_proto::BytesMessage { data }).await.unwrap();
    };
    // Request to list, in two pieces; the answer (12) has one key.
    ask(&[0, 0, 0]).await;
    ask(&[1, 11]).await;
    let listed = answers.message().await.unwrap().unwrap().data;
    assert_eq!(listed[4..9], [12, 0, 0, 0, 1]);
    assert!(listed.ends_with(b"forwarded"));
    // Remove all keys (19); lock with an empty password (22): each is refused (5) and never reaches the agent.
    ask(&[0, 0, 0, 1, 19]).await;
    ask(&[0, 0, 0, 5, 22, 0, 0, 0, 0]).await;
    for _ in 0..2 {
        let refused = answers.message().await.unwrap().unwrap().data;
        assert_eq!(refused, [0, 0, 0, 1, 5]);
    }
    let listed = agent.ssh_add(&["-l"]);
    assert!(listed.status.success(), "{listed:?}");
    // One that is longer than any agent takes ends it.
    ask(&[255, 255, 255, 255, 13]).await;
    assert!(answers.message().await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_the_callers_disk_has_no_room_for_is_told_as_such() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
    let session = Session::new(SessionOptions {
        export: Some(Box::new(full.unwrap())),
        ..SessionOptions::default()
    });
    let (near, far) = tokio::io::duplex(1 << 20);
    tokio::spawn(session.serve(near));
    let origin = ORIGIN.parse::<http::Uri>().unwrap();
    let mut send =
        filesync_proto::file_send_client::FileSendClient::with_origin(wire(far).await, origin);
    let piece = filesync_proto::BytesMessage { data: vec![1; 10] };
    let sent = send.diff_copy(tokio_stream::iter([piece])).await.unwrap();
    let status = sent.into_inner().message().await.unwrap_err();
    let told = status.message();
    assert!(told.starts_with(super::EXPORT_FAILURE), "{told}");
    assert!(told.ends_with("its disk is full"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_goes_out_and_a_result_comes_in_whole() {
    use bollard_buildkit_proto::moby::upload::v1 as upload_proto;
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("archive");
    let content: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(&archive, &content).unwrap();
    let received = dir.path().join("received");
    let session = Session::new(SessionOptions {
        archive: Some(archive),
        export: Some(Box::new(std::fs::File::create(&received).unwrap())),
        ..SessionOptions::default()
    });
    let (near, far) = tokio::io::duplex(1 << 20);
    tokio::spawn(session.serve(near));
    let wire = wire(far).await;
    let origin = || ORIGIN.parse::<http::Uri>().unwrap();

    let mut upload = upload_proto::upload_client::UploadClient::with_origin(wire.clone(), origin());
    let pulled = upload.pull(tokio_stream::empty()).await.unwrap();
    let mut pulled = pulled.into_inner();
    let mut all = Vec::new();
    while let Some(piece) = pulled.message().await.unwrap() {
        all.extend(piece.data);
    }
    assert!(all == content, "{} of {}", all.len(), content.len());

    let mut send = filesync_proto::file_send_client::FileSendClient::with_origin(wire, origin());
    let pieces = content.chunks(9_999).map(|data| {
        let data = data.to_vec();
        filesync_proto::BytesMessage { data }
    });
    let pieces: Vec<_> = pieces.collect();
    let sent = send.diff_copy(tokio_stream::iter(pieces)).await.unwrap();
    assert_eq!(sent.into_inner().message().await.unwrap(), None);
    assert!(std::fs::read(&received).unwrap() == content);
    let again = send.diff_copy(tokio_stream::empty()).await;
    assert_eq!(again.unwrap_err().code(), Code::FailedPrecondition);
}

#[test]
fn the_headers_announce_one_method_each() {
    let session = Session::new(SessionOptions {
        id: "the-id".into(),
        ssh: BTreeMap::from([("default".to_owned(), "/agent".into())]),
        ..SessionOptions::default()
    });
    let headers = session.headers();
    assert_eq!(
        headers[0],
        (
            "X-Docker-Expose-Session-Uuid".to_owned(),
            "the-id".to_owned()
        )
    );
    let methods = headers
        .iter()
        .filter(|(name, _)| name.ends_with("-Grpc-Method"));
    let methods: Vec<&str> = methods.map(|(_, method)| method.as_str()).collect();
    assert_eq!(methods[..METHODS.len()], METHODS);
    assert_eq!(methods[METHODS.len()..], SSH_METHODS);
}
