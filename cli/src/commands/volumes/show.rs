//! Volumes for people.

use super::size;
use crate::api::volumes::Volume;
use crate::moments::{ago, exact};
use slipway_core::units::ByteSize;
use slipway_terminal::printer::Printer;

/// Many, one a line.
pub(super) fn list(volumes: &[Volume], printer: Printer) {
    printer.list(
        [
            "ID",
            "STATE",
            "NAME",
            "SIZE",
            "USED",
            "REGION",
            "ZONE",
            "ENCRYPTED",
            "ATTACHED TO",
            "CREATED",
        ],
        volumes,
        |volume| {
            [
                volume.id.clone(),
                state(volume),
                volume.name.clone(),
                ByteSize(volume.size_bytes).to_string(),
                size(volume.used_bytes),
                volume.region.clone().unwrap_or_default(),
                volume.zone.clone().unwrap_or_default(),
                encrypted(volume).to_owned(),
                volume.attached_to.clone().unwrap_or_default(),
                ago(&volume.created_at),
            ]
        },
    );
}

/// One, with all there is to say.
pub(super) fn one(volume: &Volume, printer: Printer) {
    let mut fields = vec![
        ("id", volume.id.clone()),
        ("name", volume.name.clone()),
        ("state", state(volume)),
        ("size", ByteSize(volume.size_bytes).to_string()),
        ("used", size(volume.used_bytes)),
        ("region", volume.region.clone().unwrap_or_default()),
        ("zone", volume.zone.clone().unwrap_or_default()),
        ("encrypted", encrypted(volume).to_owned()),
    ];
    let attached = volume.attached_to.clone();
    fields.extend(attached.map(|builder| ("attached to", builder)));
    fields.extend(volume.source.clone().map(|source| ("made from", source)));
    let moves = volume.moving_to.clone();
    fields.extend(moves.map(|zone| ("moves to", zone)));
    let waits = volume.import_until.clone();
    fields.extend(waits.map(|until| ("waits for contents until", exact(&until))));
    let scheduled = if volume.scheduled_snapshots {
        "one a day"
    } else {
        "when asked for"
    };
    let days = volume.snapshot_retention_days;
    fields.push(("snapshots", format!("{scheduled}, kept for {days} days")));
    if let (Some(percent), Some(by), Some(limit)) = (
        volume.auto_extend_threshold_percent,
        volume.auto_extend_increment_bytes,
        volume.auto_extend_limit_bytes,
    ) {
        let (by, limit) = (ByteSize(by), ByteSize(limit));
        let grows = format!("from {percent}% in use on, by {by}, up to {limit}");
        fields.push(("grows", grows));
    }
    let destroyed = volume.destroy_at.clone();
    fields.extend(destroyed.map(|at| ("destroyed at", exact(&at))));
    fields.extend(volume.notice.clone().map(|notice| ("notice", notice)));
    fields.push(("created at", exact(&volume.created_at)));
    printer.record(volume, &fields);
}

fn state(volume: &Volume) -> String {
    volume.state.to_lowercase()
}

fn encrypted(volume: &Volume) -> &'static str {
    match volume.encrypted {
        Some(true) => "true",
        Some(false) => "false",
        None => "?",
    }
}
