//! Invariant 3: one org never reaches the rows of another.

use crate::common::*;

/// Invariant 3: with every verb and another org's ids, one sees and changes nothing.
#[tokio::test]
async fn one_org_cannot_reach_anothers_rows_by_any_verb() {
    let it = fresh().await;
    let s = &it.store;
    let (victim, thief) = (org(s, "victim").await, org(s, "thief").await);
    let h = host(s, "h", 100).await;
    let machine = builder(s, &victim, &h).await;
    let own = builder(s, &thief, &h).await;
    assert_ne!(own.id, machine.id);
    let made = build(s, &victim, &machine).await;
    s.append_build_events(&victim.id, &made.id, &[event(1)])
        .await
        .expect("recorded");
    let credential = SealedCredential {
        id: CredentialId::from_entropy(entropy()),
        org: victim.id.clone(),
        registry: "registry.example".into(),
        username: "me".into(),
        sealed: vec![1],
        created_at: Timestamp(3),
    };
    s.put_credential(&credential).await.expect("recorded");
    let all = || async {
        (
            s.all_machines().await.expect("listed"),
            s.volumes(&victim.id).await.expect("listed"),
            s.build(&victim.id, &made.id).await.expect("there"),
            s.credentials(&victim.id).await.expect("listed"),
        )
    };
    let before = all().await;
    steal_machines(s, &thief.id, &machine).await;
    steal_volumes(s, &thief, &h, &victim).await;
    steal_builds(s, &thief.id, &made).await;
    for (app, on) in [(&machine.app, &own.id), (&own.app, &machine.id)] {
        let new = NewBuild {
            id: BuildId::from_entropy(entropy()),
            app: app.clone(),
            machine: on.clone(),
            spec: spec(),
            source: BuildSource::Docker,
            asked_by: Some("ci".into()),
            at: Timestamp(99),
        };
        is_missing(s.create_build(&thief.id, &new).await, What::App);
    }
    let found = s.credential_for(&thief.id, "registry.example").await;
    assert_eq!(found.expect("read"), None);
    let gone = s.delete_credential(&thief.id, &credential.id).await;
    is_missing(gone, What::Credential);
    assert_eq!(s.credentials(&thief.id).await.expect("read"), vec![]);
    assert_eq!(before, all().await);
}

/// Tries every verb on machines, apps and volumes with ids of a victim.
async fn steal_machines(s: &SqliteStore, t: &OrgId, machine: &Machine) {
    let at = Timestamp(99);
    is_missing(s.app(t, &machine.app).await, What::App);
    is_missing(s.delete_app(t, &machine.app).await, What::App);
    is_missing(s.machine(t, &machine.id).await, What::Machine);
    is_missing(s.volume(t, &machine.volume).await, What::Volume);
    let deleting = VolumeState::Deleting;
    is_missing(
        s.set_volume_state(t, &machine.volume, deleting).await,
        What::Volume,
    );
    s.forget_volume(t, &machine.volume)
        .await
        .expect("nothing to forget");
    let record = MachineRecord {
        revision: 9,
        generation: Generation(9),
        intent: Some(Intent::Stopped),
        state: MachineState::Stopped,
        failed_starts: 0,
        volume_replaced: false,
        last_error: None,
        notice: None,
        cpu_millis: 3000,
        memory: ByteSize::gib(6),
        at,
    };
    is_missing(
        s.record_machine(t, &machine.id, &record).await,
        What::Machine,
    );
    let new = VolumeId::from_entropy(entropy());
    let (old, aside) = (&machine.volume, VolumeState::Aside);
    is_missing(
        s.replace_volume(t, &machine.id, old, aside, &new, at).await,
        What::Machine,
    );
}

/// Tries every verb on builds with the id of a victim's.
async fn steal_builds(s: &SqliteStore, t: &OrgId, made: &Build) {
    let at = Timestamp(99);
    is_missing(s.build(t, &made.id).await, What::Build);
    is_missing(s.build_events(t, &made.id, 0, u32::MAX).await, What::Build);
    is_missing(
        s.append_build_events(t, &made.id, &[event(2)]).await,
        What::Build,
    );
    is_missing(
        s.finish_build(t, &made.id, &BuildOutcome::Cancelled, at)
            .await,
        What::Build,
    );
    s.mark_build_running(t, &made.id)
        .await
        .expect("nothing to mark");
    let filter = BuildFilter {
        before: Some(made.id.clone()),
        limit: 10,
        app: None,
    };
    assert_eq!(s.builds(t, &filter).await.expect("read"), vec![]);
}

/// Tries every verb on volumes and snapshots with ids of a victim.
async fn steal_volumes(s: &SqliteStore, thief: &Org, h: &Host, victim: &Org) {
    let (t, at) = (&thief.id, Timestamp(99));
    let volume = ready_volume(s, victim, h, 10).await;
    let snapshot = new_snapshot(&volume, 2);
    let id = &snapshot.id;
    s.create_snapshot(&victim.id, &snapshot)
        .await
        .expect("planned");
    let all = async || {
        (
            s.volume(&victim.id, &volume).await.expect("there"),
            s.snapshot(&victim.id, id).await.expect("there"),
        )
    };
    let before = all().await;
    let policy = VolumePolicy::default();
    let (size, missing) = (ByteSize(20), What::Volume);
    is_missing(s.volume(t, &volume).await, missing);
    is_missing(s.extend_volume(t, &volume, size).await, missing);
    is_missing(s.record_volume_made(t, &volume, size, None).await, missing);
    is_missing(
        s.set_volume_policy(t, &volume, &policy, &policy).await,
        missing,
    );
    is_missing(s.set_volume_notice(t, &volume, Some("x")).await, missing);
    is_missing(s.schedule_destruction(t, &volume, Some(at)).await, missing);
    is_missing(s.start_volume_deletion(t, &volume, at).await, missing);
    is_missing(
        s.create_snapshot(t, &new_snapshot(&volume, 1)).await,
        missing,
    );
    s.undo_extension(t, &volume, size)
        .await
        .expect("nothing to undo");
    is_missing(s.snapshot(t, id).await, What::Snapshot);
    let made = s.record_snapshot_made(t, id, ByteSize(1), false).await;
    is_missing(made, What::Snapshot);
    is_missing(s.start_snapshot_deletion(t, id).await, What::Snapshot);
    s.forget_snapshot(t, id).await.expect("nothing to forget");
    assert_eq!(s.snapshots(t, &volume).await.expect("read"), vec![]);
    assert_eq!(before, all().await);
    s.record_snapshot_made(&victim.id, id, ByteSize(1), false)
        .await
        .expect("made");
    let snapshot = id.clone();
    for (source, missing) in [
        (
            VolumeSource::Volume {
                volume: volume.clone(),
            },
            What::Volume,
        ),
        (VolumeSource::Snapshot { snapshot }, What::Snapshot),
    ] {
        let new = NewVolume {
            source: Some(source),
            ..new_volume(h, 10)
        };
        is_missing(s.create_volume(t, &new).await, missing);
    }
    s.forget_snapshot(&victim.id, id).await.expect("forgotten");
    s.forget_volume(&victim.id, &volume)
        .await
        .expect("forgotten");
}
