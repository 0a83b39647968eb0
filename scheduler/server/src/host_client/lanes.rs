//! How much is asked of one host at once: a lane for each kind of verb, so that none waits behind another kind, and a few
//! places for each port of a machine, so that a machine that takes no connections holds up its own callers alone.
//!
//! Must not know: sockets, frames.

use crate::limits::{HOST_ENDPOINTS_MAX, HOST_MAKING_MAX, HOST_PORT_ENDPOINTS_MAX, HOST_QUICK_MAX};
use slipway_core::host_api::EndpointPort;
use slipway_core::id::MachineId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Kinds of verbs, by how long they may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// Answered from what the host knows.
    Quick,
    /// Makes or removes something.
    Making,
    /// Opens an endpoint, which is up to a machine.
    Endpoint,
}

/// The lanes to one host.
#[derive(Debug)]
pub(super) struct Lanes {
    quick: Arc<Semaphore>,
    making: Arc<Semaphore>,
    endpoints: Arc<Semaphore>,
    ports: Mutex<HashMap<(MachineId, EndpointPort), Arc<Semaphore>>>,
}

impl Default for Lanes {
    fn default() -> Self {
        Self {
            quick: Arc::new(Semaphore::new(HOST_QUICK_MAX)),
            making: Arc::new(Semaphore::new(HOST_MAKING_MAX)),
            endpoints: Arc::new(Semaphore::new(HOST_ENDPOINTS_MAX)),
            ports: Mutex::default(),
        }
    }
}

impl Lanes {
    /// A place in a lane, when there is one.
    pub(super) async fn enter(&self, lane: Lane) -> Option<OwnedSemaphorePermit> {
        let lane = match lane {
            Lane::Quick => &self.quick,
            Lane::Making => &self.making,
            Lane::Endpoint => &self.endpoints,
        };
        Arc::clone(lane).acquire_owned().await.ok()
    }

    /// A place at a port of a machine, when there is one.
    pub(super) async fn enter_port(
        &self,
        machine: &MachineId,
        port: EndpointPort,
    ) -> Option<OwnedSemaphorePermit> {
        let places = {
            let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
            // Those of machines that nobody asks for any more; who waits or has a place holds on to it.
            ports.retain(|_, places| Arc::strong_count(places) > 1);
            let places = ports
                .entry((machine.clone(), port))
                .or_insert_with(|| Arc::new(Semaphore::new(HOST_PORT_ENDPOINTS_MAX)));
            Arc::clone(places)
        };
        places.acquire_owned().await.ok()
    }
}
