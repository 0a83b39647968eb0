//! The farm against a test host: waking, ending, crashing, and what must hold meanwhile.

mod caches;
#[path = "../common/mod.rs"]
mod common;
mod life;
mod shown;

use common::{Bed, eventually, recorded};
use slipway_core::host_api::{EndpointPort, HostErrorCode};
use slipway_core::machine::MachineState;
use slipway_core::units::ByteSize;
use slipway_scheduler::farm::{ActivityGuard, BuilderKey, Farm, FarmError};
use slipway_scheduler::machine_stream::MachineStream;
use slipway_store::{Store, SystemStore};
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const HOUR: Duration = Duration::from_secs(3600);
const SHORT: Duration = slipway_core::limits::BUILDER_IDLE_MIN;

/// Asks the dockerd at the other end which generation it is.
async fn ping(stream: &mut MachineStream) -> std::io::Result<u64> {
    stream.write_all(b"?").await?;
    stream.read_u64().await
}

async fn connect(farm: &Farm, key: &BuilderKey) -> (MachineStream, ActivityGuard) {
    farm.connect(key, EndpointPort::Docker)
        .await
        .expect("a connection")
}

async fn in_state(farm: &Farm, key: &BuilderKey, name: &str) {
    eventually(name, || async {
        let state = farm.builder(key).expect("a builder").state;
        (state.name() == name).then_some(())
    })
    .await;
}
