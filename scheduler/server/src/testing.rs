//! A control plane for tests: real listeners on free ports, real TLS, a real store; its builders are unix sockets that the
//! test serves as it likes.

use crate::auth::SECRET_PREFIX;
use crate::farm::BuilderKey;
use crate::gateway::{Activity, Builders};
use crate::http::{Body, empty, full};
use crate::machine_stream::MachineStream;
use crate::problem::{Code, Problem};
use crate::serve::{Running, start};
use crate::settings::ServeSettings;
use async_trait::async_trait;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use slipway_core::generation::Generation;
use slipway_core::host_api::EndpointPort;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The test host, which the farm's tests have too.
#[path = "../tests/common/mod.rs"]
pub(crate) mod host;

/// Longest any test waits for anything.
pub(crate) const DEADLINE: Duration = Duration::from_secs(180);

/// One builder for everybody: `docker.sock` and `guest.sock` in a directory.
#[derive(Debug, Default)]
pub(crate) struct TestBuilder {
    dir: PathBuf,
    active: Arc<AtomicUsize>,
    connections: AtomicUsize,
    /// The org, region and architecture of each connection, in order.
    keys: std::sync::Mutex<Vec<BuilderKey>>,
    pub(crate) down: AtomicBool,
}

struct Count(Arc<AtomicUsize>);

impl Drop for Count {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl TestBuilder {
    /// Activities that have not ended.
    pub(crate) fn active(&self) -> usize {
        self.active.load(Ordering::SeqCst)
    }

    /// Connections made so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn keys(&self) -> Vec<BuilderKey> {
        self.keys.lock().unwrap().clone()
    }

    fn begin(&self) -> Activity {
        self.active.fetch_add(1, Ordering::SeqCst);
        Activity::new(Count(Arc::clone(&self.active)))
    }
}

#[async_trait]
impl Builders for TestBuilder {
    async fn connect(
        &self,
        key: &BuilderKey,
        port: EndpointPort,
    ) -> Result<(MachineStream, Activity), Problem> {
        let name = match port {
            EndpointPort::Docker => "docker.sock",
            EndpointPort::Guest => "guest.sock",
        };
        let activity = self.begin();
        let stream = UnixStream::connect(self.dir.join(name)).await;
        let down = self.down.load(Ordering::SeqCst);
        let stream = stream
            .ok()
            .filter(|_| !down)
            .ok_or(Problem::new(Code::Unavailable, "the builder is down").hint("wake it"))?;
        self.connections.fetch_add(1, Ordering::SeqCst);
        self.keys.lock().unwrap().push(key.clone());
        let stream = stream.into_std().unwrap();
        Ok((MachineStream::new(stream.into()).unwrap(), activity))
    }

    fn activity(&self, _key: &BuilderKey) -> Option<Activity> {
        Some(self.begin())
    }

    fn running(&self, _key: &BuilderKey) -> Option<Generation> {
        Some(Generation(1))
    }
}

/// A running control plane.
pub(crate) struct Bench {
    dir: tempfile::TempDir,
    pub(crate) builder: Arc<TestBuilder>,
    running: Option<Running>,
    /// Builders are the farm's, on this host; otherwise they are `builder`.
    host: Option<PathBuf>,
    /// Private addresses at which registries may be asked.
    pub(crate) allow: Vec<&'static str>,
}

/// How a test speaks to a listener.
#[derive(Debug, Clone, Default)]
pub(crate) struct Who {
    pub(crate) authorization: Option<String>,
    /// Certificate and key, PEM.
    pub(crate) certificate: Option<(String, String)>,
}

impl Who {
    pub(crate) fn bearer(secret: &str) -> Self {
        Self {
            authorization: Some(format!("Bearer {secret}")),
            certificate: None,
        }
    }
}

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) async fn of(response: Response<Incoming>) -> Self {
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("a whole body").to_bytes();
        let body = String::from_utf8_lossy(&bytes).into_owned();
        Self {
            status: parts.status,
            headers: parts.headers,
            body,
        }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }
}

impl Bench {
    pub(crate) async fn start() -> Self {
        Self::on(None).await
    }

    /// With the real farm, on the host that listens on this socket.
    pub(crate) async fn start_on(host: &Path) -> Self {
        Self::on(Some(host.to_owned())).await
    }

    async fn on(host: Option<PathBuf>) -> Self {
        let mut bench = Self::unstarted(host);
        bench.resume().await;
        bench
    }

    /// With an empty data directory, in which nothing has been started.
    pub(crate) fn unstarted(host: Option<PathBuf>) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let builder = TestBuilder {
            dir: dir.path().to_owned(),
            ..TestBuilder::default()
        };
        Self {
            dir,
            builder: Arc::new(builder),
            running: None,
            host,
            allow: Vec::new(),
        }
    }

    /// Starts (again) on the same data.
    pub(crate) async fn resume(&mut self) {
        self.try_resume().await.expect("it starts");
    }

    pub(crate) fn settings(&self) -> ServeSettings {
        let host = |socket| json!({ "name": "test", "region": "local", "socket": socket });
        serde_json::from_value(json!({
            "data_dir": self.dir.path().join("data"),
            "listen_api": "127.0.0.1:0",
            "listen_docker": "127.0.0.1:0",
            "listen_buildkit": "127.0.0.1:0",
            "hosts": self.host.iter().map(host).collect::<Vec<_>>(),
            "registries": { "allow": self.allow },
            "builder": { "arch": "amd64", "volume_bytes": 1 << 30, "memory_bytes": 1 << 30 },
        }))
        .expect("good settings")
    }

    /// The same, where it may not start.
    ///
    /// # Errors
    /// Those of the start.
    pub(crate) async fn try_resume(&mut self) -> Result<(), crate::ServeError> {
        let builder = self.host.is_none().then(|| Arc::clone(&self.builder));
        let way = |farm: &crate::farm::Farm| match builder {
            Some(builder) => builder as Arc<dyn Builders>,
            None => Arc::new(farm.clone()),
        };
        self.running = Some(start(self.settings(), way).await?);
        Ok(())
    }

    pub(crate) async fn end(&mut self) {
        if let Some(running) = self.running.take() {
            running.end().await;
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn file(&self, name: &str) -> String {
        let path = self.dir.path().join("data").join(name);
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    pub(crate) fn admin(&self) -> Who {
        let secret = self.file("admin.token");
        assert!(secret.starts_with(SECRET_PREFIX));
        Who::bearer(secret.trim())
    }

    fn address(&self, listener: &str) -> String {
        let addresses: Value = serde_json::from_str(&self.file("addresses.json")).expect("JSON");
        addresses[listener].as_str().expect("an address").to_owned()
    }

    /// TLS to a listener.
    ///
    /// # Errors
    /// The handshake's; in TLS 1.3 a refused client certificate shows at the first read only.
    pub(crate) async fn tls(
        &self,
        listener: &str,
        who: &Who,
        alpn: &str,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(self.address(listener)).await?;
        tls(tcp, &self.file("ca.pem"), who, alpn).await
    }

    /// The same from an address of this computer's own.
    pub(crate) async fn tls_from(
        &self,
        from: std::net::Ipv4Addr,
        listener: &str,
        who: &Who,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let tcp = self.tcp_from(from, listener).await;
        tls(tcp, &self.file("ca.pem"), who, "http/1.1").await
    }

    /// A connection to a listener, without TLS.
    pub(crate) async fn tcp(&self, listener: &str) -> TcpStream {
        let tcp = TcpStream::connect(self.address(listener)).await;
        tcp.expect("it listens")
    }

    /// The same from an address of this computer's own.
    pub(crate) async fn tcp_from(&self, from: std::net::Ipv4Addr, listener: &str) -> TcpStream {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind((from, 0).into()).expect("an own address");
        let to = self.address(listener).parse().expect("an address");
        socket.connect(to).await.expect("it listens")
    }

    /// An HTTP connection to a listener.
    pub(crate) async fn http(&self, listener: &str, who: &Who) -> SendRequest<Body> {
        let tls = self
            .tls(listener, who, "http/1.1")
            .await
            .expect("a handshake");
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls))
            .await
            .expect("HTTP");
        tokio::spawn(connection.with_upgrades());
        sender
    }

    /// One request on a connection of its own.
    pub(crate) async fn ask(&self, listener: &str, who: &Who, request: Request<Body>) -> Answer {
        let mut sender = self.http(listener, who).await;
        let response = sender
            .send_request(who.sign(request))
            .await
            .expect("an answer");
        Answer::of(response).await
    }

    pub(crate) async fn docker(&self, who: &Who, method: &str, path: &str) -> Answer {
        self.ask("docker", who, request(method, path, empty()))
            .await
    }

    /// Opens a subscription.
    pub(crate) async fn subscribe(&self, who: &Who, query: &str, variables: Value) -> Events {
        let body = json!({ "query": query, "variables": variables }).to_string();
        let mut subscribe = request("POST", "/graphql", full(body));
        for (name, value) in [
            ("content-type", "application/json"),
            ("accept", "text/event-stream"),
        ] {
            let value = http::HeaderValue::from_static(value);
            subscribe.headers_mut().insert(name, value);
        }
        let mut sender = self.http("api", who).await;
        let response = sender.send_request(who.sign(subscribe)).await;
        let response = response.expect("an answer");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Events {
            body: response.into_body(),
            held: String::new(),
            _sender: sender,
        }
    }

    /// A GraphQL request that must succeed; gives its `data`.
    pub(crate) async fn query(&self, who: &Who, query: &str, variables: Value) -> Value {
        let answer = self.try_query(who, query, variables).await;
        assert!(answer.get("errors").is_none(), "{query}: {answer}");
        answer["data"].clone()
    }

    /// A GraphQL request that must fail; gives the code of its first error.
    pub(crate) async fn refused(&self, who: &Who, query: &str, variables: Value) -> String {
        let answer = self.try_query(who, query, variables).await;
        let code = &answer["errors"][0]["extensions"]["code"];
        code.as_str()
            .unwrap_or_else(|| panic!("{query}: {answer}"))
            .to_owned()
    }

    pub(crate) async fn try_query(&self, who: &Who, query: &str, variables: Value) -> Value {
        let body = json!({ "query": query, "variables": variables }).to_string();
        let mut request = request("POST", "/graphql", full(body));
        let json = http::HeaderValue::from_static("application/json");
        request
            .headers_mut()
            .insert(http::header::CONTENT_TYPE, json);
        self.ask("api", who, request).await.json()
    }

    /// Makes an org, and gives a token of it with this role.
    pub(crate) async fn org(&self, slug: &str, role: &str) -> Who {
        let make = "mutation($input: CreateOrgInput!) { createOrg(input: $input) { id } }";
        let input = json!({ "input": { "slug": slug, "idleMs": 60_000 } });
        self.query(&self.admin(), make, input).await;
        self.token(slug, json!({ "role": role })).await.0
    }

    /// Makes a token, and gives it with its id.
    pub(crate) async fn token(&self, org: &str, mut input: Value) -> (Who, String) {
        let make = "mutation($input: CreateTokenInput!) {
            createToken(input: $input) { secret token { id } } }";
        input["org"] = org.into();
        input["name"] = "a test".into();
        let made = self
            .query(&self.admin(), make, json!({ "input": input }))
            .await;
        let made = &made["createToken"];
        let secret = made["secret"].as_str().expect("a secret");
        let id = made["token"]["id"].as_str().expect("an id");
        (Who::bearer(secret), id.to_owned())
    }

    /// Has a certificate issued for a token.
    pub(crate) async fn certificate(&self, who: &Who) -> Who {
        let issue = "mutation { issueClientCertificate(input: {}) { ca cert key } }";
        let issued = self.query(who, issue, json!({})).await;
        let pem = |name: &str| {
            issued["issueClientCertificate"][name]
                .as_str()
                .expect("PEM")
                .to_owned()
        };
        assert_eq!(pem("ca"), self.file("ca.pem"));
        Who {
            authorization: None,
            certificate: Some((pem("cert"), pem("key"))),
        }
    }
}

/// The answers of a subscription.
pub(crate) struct Events {
    body: Incoming,
    held: String,
    _sender: SendRequest<Body>,
}

impl Events {
    /// The next answer; `None` when the server says that it was the last.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some((event, rest)) = self.held.split_once("\n\n") {
                let event = event.to_owned();
                self.held = rest.to_owned();
                match event.strip_prefix("event: next\ndata: ") {
                    Some(data) => return Some(serde_json::from_str(data).expect("JSON")),
                    None if event == ":" => continue,
                    None => assert_eq!(event, "event: complete\ndata:"),
                }
                return None;
            }
            let frame = soon("an event", self.body.frame()).await;
            let frame = frame.expect("no end without a word").expect("no break");
            let data = frame.into_data().expect("data");
            self.held
                .push_str(std::str::from_utf8(&data).expect("text"));
        }
    }
}

impl Who {
    pub(crate) fn sign(&self, mut request: Request<Body>) -> Request<Body> {
        if let Some(value) = &self.authorization {
            let value = value.parse().expect("a header");
            request
                .headers_mut()
                .insert(http::header::AUTHORIZATION, value);
        }
        request
    }
}

pub(crate) fn request(method: &str, path: &str, body: Body) -> Request<Body> {
    let method = Method::from_bytes(method.as_bytes()).expect("a method");
    let builder = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "slipway");
    builder.body(body).expect("a request")
}

async fn tls(
    tcp: TcpStream,
    ca: &str,
    who: &Who,
    alpn: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca.as_bytes()).expect("PEM"))
        .expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    let mut config = match &who.certificate {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let cert = CertificateDer::from_pem_slice(cert.as_bytes()).expect("PEM");
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
            builder
                .with_client_auth_cert(vec![cert], key)
                .expect("a pair")
        }
    };
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let name = ServerName::try_from("localhost").expect("a name");
    TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
}

/// Waits for a condition, and fails with `what` when that takes too long.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < DEADLINE,
            "still not after {DEADLINE:?}: {what}"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Fails instead of hanging.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("still not after {DEADLINE:?}: {what}"),
    }
}

/// Binds a socket of the builder.
pub(crate) fn listen(path: &Path) -> tokio::net::UnixListener {
    let _absent = std::fs::remove_file(path);
    tokio::net::UnixListener::bind(path).expect("a socket")
}
