//! Key stores, and who is lent a key.

mod lost;

use super::{Claim, EmbeddedKeys, KeyBroker, KeyStore, KeyStoreError, LeaseError, MasterKeys};
use super::{VaultKeys, VaultSettings};
use serde_json::{Value, json};
use slipway_core::generation::Generation;
use slipway_core::id::{AppId, HostId, MachineId, OrgId, SnapshotId, VolumeId};
use slipway_core::machine::MachineState;
use slipway_core::quota::BuilderSize;
use slipway_core::time::Timestamp;
use slipway_core::units::ByteSize;
use slipway_store::{
    Host, Intent, MachineRecord, NewBuilder, NewSnapshot, NewVolume, Org, SqliteStore, Store,
};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const SIZE: BuilderSize = BuilderSize {
    cpu_millis: 1000,
    memory: ByteSize::gib(1),
    volume: ByteSize::gib(1),
};

fn volume(n: u8) -> VolumeId {
    VolumeId::from_entropy([n; 10])
}

async fn store(dir: &Path) -> Arc<dyn Store> {
    Arc::new(SqliteStore::open(&dir.join("s.db")).await.unwrap())
}

#[tokio::test]
async fn the_embedded_store_keeps_one_key_a_volume_and_nothing_in_clear() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let keys = EmbeddedKeys::new(Arc::clone(&store), MasterKeys::of([1; 32], &[]));
    assert_eq!(keys.get(&volume(1)).await.unwrap(), None);
    let first = volume(1);
    let (a, b) = tokio::join!(keys.ensure(&first), keys.ensure(&first));
    let key = a.unwrap();
    assert_eq!(key, b.unwrap());
    assert_ne!(key, keys.ensure(&volume(2)).await.unwrap());
    let name = format!("volume-key/{}", volume(1));
    let sealed = store.meta(&name).await.unwrap().unwrap();
    assert!(!sealed.windows(16).any(|part| part == &key.expose()[..16]));

    // In another volume's place it does not open, nor under another master key.
    keys.destroy(&volume(2)).await.unwrap();
    store
        .put_meta_if_absent(&format!("volume-key/{}", volume(2)), &sealed)
        .await
        .unwrap();
    assert!(matches!(
        keys.get(&volume(2)).await,
        Err(KeyStoreError::Unreadable { .. })
    ));
    let other = EmbeddedKeys::new(Arc::clone(&store), MasterKeys::of([2; 32], &[]));
    assert!(other.get(&volume(1)).await.is_err());
    assert!(other.rotate().await.is_err(), "nothing is lost in silence");
    for _ in 0..2 {
        keys.destroy(&volume(1)).await.unwrap();
        assert_eq!(keys.get(&volume(1)).await.unwrap(), None);
    }
    assert_ne!(keys.ensure(&volume(1)).await.unwrap(), key);
}

#[tokio::test]
async fn the_master_key_is_rotated() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let before = EmbeddedKeys::new(Arc::clone(&store), MasterKeys::of([1; 32], &[]));
    let mut kept = Vec::new();
    for n in 1..=5 {
        kept.push(before.ensure(&volume(n)).await.unwrap());
    }
    let during = EmbeddedKeys::new(Arc::clone(&store), MasterKeys::of([2; 32], &[[1; 32]]));
    assert_eq!(
        during.get(&volume(3)).await.unwrap().as_ref(),
        Some(&kept[2])
    );
    assert_eq!(during.rotate().await.unwrap(), 5);
    assert_eq!(during.rotate().await.unwrap(), 0);
    let after = EmbeddedKeys::new(store, MasterKeys::of([2; 32], &[]));
    for (n, key) in (1..=5).zip(kept) {
        assert_eq!(after.get(&volume(n)).await.unwrap(), Some(key));
    }
    assert!(
        before.get(&volume(1)).await.is_err(),
        "the old one is done with"
    );
}

#[test]
fn master_keys_come_from_private_files() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let made = MasterKeys::open(dir.path(), None, &[]).unwrap();
    let sealed = made.seal(b"x", b"secret").unwrap();
    let again = MasterKeys::open(dir.path(), None, &[]).unwrap();
    assert_eq!(*again.open_sealed(b"x", &sealed).unwrap().clear, *b"secret");
    assert!(again.open_sealed(b"y", &sealed).is_none());
    for at in 0..sealed.len() {
        let mut damaged = sealed.clone();
        damaged[at] ^= 1;
        assert!(again.open_sealed(b"x", &damaged).is_none(), "byte {at}");
        assert!(again.open_sealed(b"x", &sealed[..at]).is_none(), "cut {at}");
    }
    let file = dir.path().join("hex");
    std::fs::write(&file, format!("{}\n", "ab".repeat(32))).unwrap();
    let open = || MasterKeys::open(dir.path(), Some(&file), &[]);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(open().is_err(), "others can read it");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    open().unwrap();
    std::fs::write(&file, "short").unwrap();
    let error = open().unwrap_err().to_string();
    assert!(!error.contains("short"), "{error}");
}

/// A key store that says whether it was asked.
#[derive(Debug, Default)]
struct Watched(Mutex<u32>);

#[async_trait::async_trait]
impl KeyStore for Watched {
    fn name(&self) -> &'static str {
        "watched"
    }

    async fn ensure(&self, _: &VolumeId) -> Result<slipway_core::key::VolumeKey, KeyStoreError> {
        *self.0.lock().unwrap() += 1;
        super::draw()
    }

    async fn get(
        &self,
        volume: &VolumeId,
    ) -> Result<Option<slipway_core::key::VolumeKey>, KeyStoreError> {
        self.ensure(volume).await.map(Some)
    }

    async fn destroy(&self, _: &VolumeId) -> Result<(), KeyStoreError> {
        Ok(())
    }
}

struct Placed {
    store: Arc<dyn Store>,
    org: OrgId,
    host: HostId,
    machine: MachineId,
    volume: VolumeId,
}

/// An org's builder on its host.
async fn placed(store: &Arc<dyn Store>, n: u8) -> Placed {
    let org = OrgId::from_entropy([n; 10]);
    let host = Host {
        id: HostId::from_entropy([n; 10]),
        name: format!("host{n}"),
        region: "here".into(),
        arch: "amd64".into(),
        socket: "/run/x".into(),
        pool_capacity: ByteSize::gib(100),
        memory: ByteSize::gib(8),
        pool: None,
        cpu_millis: 4000,
    };
    store.put_host(&host).await.unwrap();
    store
        .create_org(&Org {
            id: org.clone(),
            slug: format!("org{n}"),
            name: format!("Org {n}"),
            idle: std::time::Duration::from_secs(600),
            default_region: "here".into(),
            default_arch: "amd64".into(),
            builder_size: SIZE,
            isolation: slipway_core::isolation::Isolation::Auto,
            retention: slipway_core::quota::BuildRetention::default(),
            created_at: Timestamp(1),
        })
        .await
        .unwrap();
    let new = NewBuilder {
        machine: MachineId::from_entropy([n; 10]),
        volume: volume(n),
        app: AppId::from_entropy([n; 10]),
        region: "here".into(),
        arch: "amd64".into(),
        host: host.id.clone(),
        size: SIZE,
        at: Timestamp(1),
    };
    store.ensure_builder(&org, &new).await.unwrap();
    Placed {
        store: Arc::clone(store),
        org,
        host: host.id,
        machine: new.machine,
        volume: new.volume,
    }
}

impl Placed {
    async fn record(&self, generation: u64, state: MachineState) {
        let before = self.store.machine(&self.org, &self.machine).await.unwrap();
        let record = MachineRecord {
            revision: before.revision + 1,
            generation: Generation(generation),
            intent: Some(Intent::Wanted),
            state,
            failed_starts: 0,
            volume_replaced: false,
            last_error: None,
            notice: None,
            cpu_millis: 3000,
            memory: ByteSize::gib(6),
            at: Timestamp(2),
        };
        self.store
            .record_machine(&self.org, &self.machine, &record)
            .await
            .unwrap();
    }

    fn claim(&self, generation: u64) -> Claim {
        Claim {
            org: self.org.clone(),
            host: self.host.clone(),
            volume: self.volume.clone(),
            machine: Some(self.machine.clone()),
            generation: Generation(generation),
        }
    }
}

/// Snapshots outlive their volume: its key is lent where one of them is, to work for the org that has it.
#[tokio::test]
async fn the_key_of_a_volume_that_is_gone_is_lent_where_a_snapshot_of_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let (mine, theirs) = (placed(&store, 1).await, placed(&store, 2).await);
    let broker = KeyBroker::new(Arc::clone(&store), Arc::new(Watched::default()));
    let new = NewVolume {
        id: volume(9),
        host: mine.host.clone(),
        name: "data".into(),
        size: ByteSize::gib(1),
        source: None,
        import: None,
        policy: slipway_core::volume::VolumePolicy::default(),
        at: Timestamp(1),
    };
    store.create_volume(&mine.org, &new).await.unwrap();
    let made = store.record_volume_made(&mine.org, &new.id, new.size, Some(true));
    made.await.unwrap();
    let snapshot = NewSnapshot {
        id: SnapshotId::from_entropy([9; 10]),
        volume: new.id.clone(),
        reserve: ByteSize(1),
        scheduled: false,
        at: Timestamp(2),
        expires_at: Timestamp(3),
    };
    store.create_snapshot(&mine.org, &snapshot).await.unwrap();
    store.forget_volume(&mine.org, &new.id).await.unwrap();
    let right = Claim {
        volume: new.id,
        machine: None,
        generation: Generation(0),
        ..mine.claim(0)
    };
    broker.lease(&right).await.unwrap();
    for wrong in [
        Claim {
            org: theirs.org.clone(),
            ..right.clone()
        },
        Claim {
            host: theirs.host.clone(),
            ..right.clone()
        },
        Claim {
            machine: Some(mine.machine.clone()),
            ..right.clone()
        },
    ] {
        let refused = broker.lease(&wrong).await;
        assert!(
            matches!(refused, Err(LeaseError::Refused { .. })),
            "{wrong:?}: {refused:?}"
        );
    }
    store
        .forget_snapshot(&mine.org, &snapshot.id)
        .await
        .unwrap();
    assert!(broker.lease(&right).await.is_err());
}

/// A host that says whatever it likes gets the key of what it runs, and of nothing else.
#[tokio::test]
async fn a_hostile_host_gets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let (mine, theirs) = (placed(&store, 1).await, placed(&store, 2).await);
    let keys = Arc::new(Watched::default());
    let broker = KeyBroker::new(store, Arc::clone(&keys) as Arc<dyn KeyStore>);
    let running = |generation| MachineState::Running {
        generation: Generation(generation),
    };
    mine.record(3, running(3)).await;
    theirs.record(7, running(7)).await;
    let right = mine.claim(3);
    let lease = broker.lease(&right).await.unwrap();
    assert_eq!(lease.volume, mine.volume);
    assert_eq!(lease.machine.as_ref(), Some(&mine.machine));
    assert_eq!(lease.generation, Generation(3));
    assert!(lease.ttl_ms > 0);
    assert_eq!(*keys.0.lock().unwrap(), 1);

    let wrong = [
        // Another's machine and volume, as if they were here; with the org that has them, or with mine.
        Claim {
            host: mine.host.clone(),
            ..theirs.claim(7)
        },
        Claim {
            org: mine.org.clone(),
            ..theirs.claim(7)
        },
        Claim {
            volume: theirs.volume.clone(),
            ..right.clone()
        },
        Claim {
            machine: Some(theirs.machine.clone()),
            ..right.clone()
        },
        // Another time.
        mine.claim(2),
        mine.claim(4),
        // Work on a volume that is elsewhere.
        Claim {
            host: mine.host.clone(),
            machine: None,
            ..theirs.claim(7)
        },
    ];
    for claim in wrong {
        let refused = broker.lease(&claim).await;
        assert!(
            matches!(refused, Err(LeaseError::Refused { .. })),
            "{claim:?}: {refused:?}"
        );
    }
    // The machine has ended, or was started elsewhere in the meantime.
    mine.record(3, MachineState::Stopped).await;
    assert!(broker.lease(&right).await.is_err());
    mine.record(4, running(4)).await;
    assert!(broker.lease(&right).await.is_err());
    assert_eq!(
        *keys.0.lock().unwrap(),
        1,
        "the key store was not even asked"
    );
    broker.lease(&mine.claim(4)).await.unwrap();
}

/// A server that answers as the API's documentation shows, and keeps what it was told.
#[derive(Default)]
struct FakeVault {
    secrets: Mutex<HashMap<String, Value>>,
    logins: Mutex<u32>,
    renewals: Mutex<u32>,
    /// The token that is taken now.
    token: Mutex<String>,
    sealed: Mutex<bool>,
}

impl FakeVault {
    fn answer(&self, method: &str, path: &str, headers: &str, body: &Value) -> (u16, Value) {
        if *self.sealed.lock().unwrap() {
            return (503, json!({"errors": ["Vault is sealed"]}));
        }
        let auth = |token: &str| {
            json!({"request_id": "", "lease_id": "", "renewable": false, "lease_duration": 0, "data": null, "warnings": null,
                "auth": {"client_token": token, "accessor": "fd6c9a00", "policies": ["default"], "metadata": {"role_name": "slipway"},
                    "lease_duration": 1, "renewable": true}})
        };
        if path == "/v1/auth/approle/login" {
            if body != &json!({"role_id": "a-role", "secret_id": "a-secret"}) {
                return (400, json!({"errors": ["invalid role or secret ID"]}));
            }
            let mut logins = self.logins.lock().unwrap();
            *logins += 1;
            *self.token.lock().unwrap() = format!("s.{logins}");
            return (200, auth(&format!("s.{logins}")));
        }
        let token = self.token.lock().unwrap().clone();
        if !headers.contains(&format!("x-vault-token: {token}\r\n")) {
            return (403, json!({"errors": ["permission denied"]}));
        }
        assert!(headers.contains("x-vault-namespace: team\r\n"), "{headers}");
        if path == "/v1/auth/token/renew-self" {
            *self.renewals.lock().unwrap() += 1;
            return (200, auth(&token));
        }
        let mut secrets = self.secrets.lock().unwrap();
        if let Some(name) = path.strip_prefix("/v1/kv/data/farm/") {
            return match (method, secrets.get(name)) {
                ("GET", None) => (404, json!({"errors": []})),
                ("GET", Some(data)) => (
                    200,
                    json!({"data": {"data": data, "metadata": {"created_time": "2018-03-22T02:24:06.945319214Z",
                        "custom_metadata": null, "deletion_time": "", "destroyed": false, "version": 1}}}),
                ),
                ("POST", Some(_)) => (
                    400,
                    json!({"errors": ["check-and-set parameter did not match the current version"]}),
                ),
                ("POST", None) => {
                    assert_eq!(body["options"]["cas"], 0);
                    secrets.insert(name.to_owned(), body["data"].clone());
                    (
                        200,
                        json!({"data": {"created_time": "2018-03-22T02:36:43.986212308Z", "custom_metadata": null, "deletion_time": "",
                            "destroyed": false, "version": 1}}),
                    )
                }
                other => panic!("{other:?}"),
            };
        }
        let name = path.strip_prefix("/v1/kv/metadata/farm/").unwrap();
        assert_eq!(method, "DELETE");
        secrets.remove(name);
        (204, Value::Null)
    }

    async fn serve(self: Arc<Self>, mut stream: TcpStream) {
        let mut read = Vec::new();
        loop {
            let head = loop {
                if let Some(at) = read.windows(4).position(|w| w == b"\r\n\r\n") {
                    break at + 4;
                }
                if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
                    return;
                }
            };
            let headers = String::from_utf8(read[..head].to_vec()).unwrap();
            let lower = headers.to_lowercase();
            let length: usize = lower.split("content-length: ").nth(1).map_or(0, |rest| {
                rest.split("\r\n").next().unwrap().parse().unwrap()
            });
            while read.len() < head + length {
                stream.read_buf(&mut read).await.unwrap();
            }
            let body = serde_json::from_slice(&read[head..head + length]).unwrap_or(Value::Null);
            read.drain(..head + length);
            let mut words = headers.split(' ');
            let (method, path) = (words.next().unwrap(), words.next().unwrap());
            // The names of headers are without case, their values are not.
            let folded: String = headers
                .lines()
                .map(|line| match line.split_once(": ") {
                    Some((name, value)) => format!("{}: {value}\r\n", name.to_lowercase()),
                    None => format!("{line}\r\n"),
                })
                .collect();
            let (status, json) = self.answer(method, path, &folded, &body);
            let json = if status == 204 {
                String::new()
            } else {
                json.to_string()
            };
            let answer = format!(
                "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{json}",
                json.len()
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    }
}

async fn fake_vault(dir: &Path) -> (Arc<FakeVault>, VaultSettings) {
    use std::os::unix::fs::PermissionsExt;
    let fake = Arc::new(FakeVault::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let serving = Arc::clone(&fake);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(Arc::clone(&serving).serve(stream));
        }
    });
    let file = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    let settings = VaultSettings {
        address,
        ca_file: None,
        allow_insecure: false,
        namespace: Some("team".to_owned()),
        mount: "kv".to_owned(),
        prefix: "farm".to_owned(),
        approle_mount: "approle".to_owned(),
        role_id_file: file("role", "a-role\n"),
        secret_id_file: file("secret", "a-secret\n"),
    };
    (fake, settings)
}

#[tokio::test]
async fn vault_keeps_keys_and_its_tokens_are_renewed() {
    let dir = tempfile::tempdir().unwrap();
    let (fake, settings) = fake_vault(dir.path()).await;
    let keys = VaultKeys::new(settings.clone()).unwrap();
    assert_eq!(keys.get(&volume(1)).await.unwrap(), None);
    let key = keys.ensure(&volume(1)).await.unwrap();
    // Another control plane comes to the same.
    let other = VaultKeys::new(settings.clone()).unwrap();
    assert_eq!(other.ensure(&volume(1)).await.unwrap(), key);
    assert_eq!(*fake.logins.lock().unwrap(), 2);
    // The first one's token is not taken any more: it logs in anew, once.
    assert_eq!(keys.get(&volume(1)).await.unwrap(), Some(key.clone()));
    assert_eq!(*fake.logins.lock().unwrap(), 3);
    // After two thirds of its second of life a token is renewed, and after its end there is a login.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(180);
    while *fake.renewals.lock().unwrap() == 0 {
        assert!(std::time::Instant::now() < deadline);
        keys.get(&volume(1)).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    for _ in 0..2 {
        keys.destroy(&volume(1)).await.unwrap();
        assert_eq!(keys.get(&volume(1)).await.unwrap(), None);
    }
    assert_ne!(keys.ensure(&volume(1)).await.unwrap(), key);

    *fake.sealed.lock().unwrap() = true;
    let sealed = keys.get(&volume(1)).await;
    assert!(
        matches!(sealed, Err(KeyStoreError::Unavailable(_))),
        "{sealed:?}"
    );
    *fake.sealed.lock().unwrap() = false;
    std::fs::write(&settings.secret_id_file, "another").unwrap();
    let denied = VaultKeys::new(settings.clone())
        .unwrap()
        .get(&volume(1))
        .await;
    let text = crate::chain::chain(&denied.unwrap_err())
        .for_log()
        .to_owned();
    assert!(
        text.contains("invalid role") && !text.contains("another"),
        "{text}"
    );
    std::fs::remove_file(&settings.secret_id_file).unwrap();
    let missing = VaultKeys::new(settings.clone())
        .unwrap()
        .get(&volume(1))
        .await;
    match missing {
        // Which file, and what the system says of it.
        Err(KeyStoreError::Denied(cause)) => match cause.downcast_ref() {
            Some(crate::secret_file::SecretFileError::Io { path, source, .. }) => {
                assert_eq!(*path, settings.secret_id_file);
                assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
            }
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
    let silent = VaultSettings {
        address: "http://127.0.0.1:1".to_owned(),
        ..settings.clone()
    };
    let silent = VaultKeys::new(silent).unwrap().get(&volume(1)).await;
    assert!(matches!(
        silent,
        Err(KeyStoreError::Denied(_) | KeyStoreError::Unavailable(_))
    ));
}

#[tokio::test]
async fn keys_go_in_clear_to_this_computer_alone_unless_the_operator_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (_fake, settings) = fake_vault(dir.path()).await;
    for (address, allow_insecure, good) in [
        ("http://localhost:8200", false, true),
        ("HTTP://127.9.9.9:8200", false, true),
        ("http://[::1]:8200", false, true),
        ("http://[::ffff:127.0.0.1]:8200", false, true),
        ("http://vault.example:8200", false, false),
        ("http://localhost.example:8200", false, false),
        ("http://127.0.0.1.example:8200", false, false),
        ("http://127.0.0.1@vault.example:8200", false, false),
        ("HTTP://10.0.0.1:8200", false, false),
        ("http://vault.example:8200", true, true),
        // There is nothing that its certificate could be checked against.
        ("https://127.0.0.1:1", true, false),
        ("HTTPS://127.0.0.1:1", false, false),
        ("ftp://127.0.0.1", true, false),
        ("vault.example:8200", true, false),
    ] {
        let asked = VaultSettings {
            address: address.to_owned(),
            allow_insecure,
            ..settings.clone()
        };
        assert_eq!(VaultKeys::new(asked).is_ok(), good, "{address}");
    }
}
