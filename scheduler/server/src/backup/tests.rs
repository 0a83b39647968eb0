//! A backup is what another computer needs, and nothing less.

use super::*;
use crate::seal::Sealer;
use crate::testing::{Bench, Who, host};
use serde_json::{Value, json};
use slipway_core::id::{MachineId, OrgId, VolumeId};
use slipway_store::Store;

const ENSURE: &str = "mutation { ensureBuilder(input: { org: \"acme\" }) { id state volume } }";
const STOP: &str = "mutation { stopBuilder(input: { org: \"acme\" }) { state } }";

/// Copies a backup into a data directory, as docs/operations.md says.
fn restore(backup: &Path, data: &Path) {
    std::fs::create_dir_all(data).unwrap();
    let copied = std::process::Command::new("sh")
        .args(["-c", "cp -p \"$0\"/database/* \"$0\"/secrets/* \"$1\"/"])
        .args([backup, data])
        .status();
    assert!(copied.unwrap().success());
}

/// The key that a host was lent last for a volume.
fn lent(bed: &host::Bed, volume: &VolumeId) -> Option<Vec<u8>> {
    bed.world.lock().keys.get(volume).cloned()
}

async fn made(bench: &Bench, who: &Who) -> VolumeId {
    let make =
        "mutation { createVolume(input: { org: \"acme\", name: \"data\", sizeBytes: 1073741824 }) {
        id state encrypted } }";
    let volume = bench.query(who, make, json!({})).await["createVolume"].clone();
    assert_eq!(
        (&volume["state"], &volume["encrypted"]),
        (&json!("CREATED"), &json!(true)),
        "{volume}"
    );
    volume["id"].as_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_restored_on_an_empty_computer_is_the_same_control_plane() {
    let mut bed = host::Bed::start_encrypting().await;
    bed.stop_farm().await;
    let socket = bed.dir.path().join("host.sock");
    let mut bench = Bench::start_on(&socket).await;
    let who = bench.org("acme", "ADMIN").await;
    let certified = bench.certificate(&who).await;
    let keep = "mutation { setRegistryCredential(input: { org: \"acme\", registry: \"r.example\",
        username: \"u\", password: \"hunter2\" }) { id } }";
    bench.query(&who, keep, json!({})).await;
    let data = made(&bench, &who).await;
    let builder = bench.query(&who, ENSURE, json!({})).await["ensureBuilder"].clone();
    let cache: VolumeId = builder["volume"].as_str().unwrap().parse().unwrap();
    let keys = [lent(&bed, &data), lent(&bed, &cache)];
    assert!(keys.iter().all(Option::is_some));

    let to = bench.path("backup");
    let elsewhere = backup(&bench.settings(), &to).await.unwrap();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
    let again = backup(&bench.settings(), &to).await;
    assert!(
        matches!(again, Err(BackupError::Directory { .. })),
        "{again:?}"
    );
    // The world goes on, and the backup knows nothing of it.
    for _ in 0..3 {
        bench.query(&who, STOP, json!({})).await;
        bench.query(&who, ENSURE, json!({})).await;
    }
    bench.query(&who, STOP, json!({})).await;
    bench.end().await;

    // What the page said before: without the master key of the volumes' keys. It does not start, and makes no keys.
    let mut less = Bench::unstarted(Some(socket.clone()));
    restore(&to, &less.path("data"));
    std::fs::remove_file(less.path("data").join(MASTER_KEYS_FILE)).unwrap();
    let refused = less.try_resume().await.expect_err("refused");
    assert!(
        matches!(refused, crate::ServeError::KeyStore(_)),
        "{refused}"
    );

    bed.world.lock().keys.clear();
    let mut back = Bench::unstarted(Some(socket));
    restore(&to, &back.path("data"));
    back.try_resume().await.expect("it starts");
    assert_eq!(back.file("ca.pem"), bench.file("ca.pem"));
    let seen = back.query(&who, "{ volumes { id } }", json!({})).await;
    assert_eq!(seen["volumes"].as_array().map(Vec::len), Some(2));
    // The same certificate of a client is good, and so is the administrator's token.
    for (who, is_known) in [(&certified, true), (&Who::default(), false)] {
        let answer = back.docker(who, "GET", "/metrics").await;
        let refused = answer.status == http::StatusCode::UNAUTHORIZED;
        assert_eq!(refused, !is_known, "{answer:?}");
    }
    back.query(&back.admin(), "{ orgs { slug } }", json!({}))
        .await;

    // Volumes open with their keys, and the host takes the starts of a control plane that has missed some.
    let extend =
        "mutation($id: ID!) { extendVolume(id: $id, sizeBytes: 2147483648) { notice sizeBytes } }";
    let id = json!({ "id": data.as_str() });
    let extended = back.query(&who, extend, id).await["extendVolume"].clone();
    assert_eq!(extended["notice"], Value::Null, "{extended}");
    let started = back.query(&who, ENSURE, json!({})).await["ensureBuilder"].clone();
    assert_eq!(started["volume"], builder["volume"], "{started}");
    assert_eq!([lent(&bed, &data), lent(&bed, &cache)], keys);

    // So does the sealed credential.
    let store = SqliteStore::open(&back.path("data").join(DATABASE_FILE))
        .await
        .unwrap();
    let org: OrgId = store.org_by_slug("acme").await.unwrap().id;
    let kept = store
        .credential_for(&org, "r.example")
        .await
        .unwrap()
        .unwrap();
    let sealer = Sealer::open(&back.path("data")).unwrap();
    let opened = sealer.open_sealed(&org, "r.example", &kept.sealed).unwrap();
    assert_eq!(opened, b"hunter2");
    let machine: MachineId = started["id"].as_str().unwrap().parse().unwrap();
    let newest = store.machine(&org, &machine).await.unwrap().generation;
    assert!(newest.0 > 1 << 20, "{newest}");
    store.close().await;
    back.end().await;
    bed.end().await;
}
