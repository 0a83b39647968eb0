//! What processes of the farm say to one another (slipway-core), and the texts that stand for ids, sizes and choices.

use serde::Serialize;
use serde::de::DeserializeOwned;
use slipway_core::build::NumberedEvent;
use slipway_core::compression::Compression;
use slipway_core::guest_api::{BuildSummary, GuestStatus, StartBuild, StartPush};
use slipway_core::host_api::{HostReply, HostRequestFrame};
use slipway_core::id::{BuildId, MachineId, OrgId, VolumeId};
use slipway_core::isolation::Isolation;
use slipway_core::units::ByteSize;
use slipway_core::vm::{Answer, Boot, Wanted};
use std::fmt::{Debug, Display};
use std::str::FromStr;

/// Name and function of each target.
pub(crate) const TARGETS: &[crate::Target] = &[
    ("core_guest_api", guest_api),
    ("core_host_api", host_api),
    ("core_texts", texts),
];

/// What is taken as JSON is written as JSON that is taken as the same.
fn json<T: DeserializeOwned + Serialize>(bytes: &[u8]) {
    let write = |value: &T| match serde_json::to_string(value) {
        Ok(text) => text,
        Err(error) => panic!("what was read cannot be written: {error}"),
    };
    if let Ok(value) = serde_json::from_slice::<T>(bytes) {
        let text = write(&value);
        match serde_json::from_str::<T>(&text) {
            Ok(again) => assert_eq!(write(&again), text),
            Err(error) => panic!("{text}: {error}"),
        }
    }
}

fn host_api(bytes: &[u8]) {
    json::<HostRequestFrame>(bytes);
    json::<HostReply>(bytes);
    json::<Boot>(bytes);
}

fn guest_api(bytes: &[u8]) {
    json::<GuestStatus>(bytes);
    json::<StartBuild>(bytes);
    json::<StartPush>(bytes);
    json::<Vec<BuildSummary>>(bytes);
    json::<NumberedEvent>(bytes);
}

/// What is taken prints as a text that is taken as the same.
fn text<T: FromStr + Display + PartialEq + Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(value.to_string().parse::<T>().ok(), Some(value));
    }
}

fn texts(bytes: &[u8]) {
    let given = String::from_utf8_lossy(bytes);
    text::<OrgId>(&given);
    text::<MachineId>(&given);
    text::<VolumeId>(&given);
    text::<BuildId>(&given);
    text::<Compression>(&given);
    text::<Isolation>(&given);
    if let Ok(size) = given.parse::<ByteSize>() {
        // It is printed to one digit after the point.
        assert!(!size.to_string().is_empty());
    }
    for byte in bytes {
        if let Some(wanted) = Wanted::from_byte(*byte) {
            assert_eq!(wanted.byte(), *byte);
        }
        if let Some(answer) = Answer::from_byte(*byte) {
            assert_eq!(answer.byte(), *byte);
        }
    }
}
