//! Lists of a host, page by page, and the watch on its machines.

use super::lanes::Lane;
use super::wire::exchange_on;
use super::{HostClient, HostClientError, QUICK_WAIT_MAX, encode, millis};
use crate::limits::HOST_LIST_PAGES_MAX;
use slipway_core::host_api::{
    Cursor, HostReply, HostRequest, HostRequestFrame, MachineReport, Page, SnapshotReport,
    VolumeReport,
};
use slipway_core::limits::{HOST_API_PAGE_MAX, HOST_API_WATCH_WAIT_MAX};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// All machines of a host. Of more than a page, those of later pages are newer.
#[derive(Debug, Clone, PartialEq)]
pub struct MachineList {
    /// Where in their changes that is: the list is at least as new.
    pub at: Cursor,
    /// In id order.
    pub machines: Vec<MachineReport>,
}

/// A list that arrives in pages.
struct Pages<T> {
    items: Vec<T>,
    after: Option<String>,
    pages: usize,
}

impl<T> Pages<T> {
    fn new() -> Self {
        Self {
            items: Vec::new(),
            after: None,
            pages: 0,
        }
    }

    /// What to ask for next.
    fn next(&self) -> Page {
        Page {
            after: self.after.clone(),
            max: HOST_API_PAGE_MAX,
        }
    }

    /// Takes a page. Gives whether there are more.
    fn take(
        &mut self,
        (page, more): (Vec<T>, bool),
        id: impl Fn(&T) -> &str,
    ) -> Result<bool, HostClientError> {
        let last = page.last().map(|item| id(item).to_owned());
        self.pages += 1;
        // A host that goes in circles, or never ends, must not fill the memory.
        if more && (last <= self.after || self.pages >= HOST_LIST_PAGES_MAX) {
            return Err(HostClientError::Protocol("a list that does not end"));
        }
        self.items.extend(page);
        self.after = last;
        Ok(more)
    }
}

impl HostClient {
    /// All volumes.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn volumes(&self) -> Result<Vec<VolumeReport>, HostClientError> {
        let mut pages = Pages::new();
        loop {
            let reply = self.page(HostRequest::ListVolumes, &pages).await?;
            let HostReply::Volumes { volumes, more } = reply else {
                return Err(HostClientError::Protocol("no volumes"));
            };
            if !pages.take((volumes, more), |report| report.volume.as_str())? {
                return Ok(pages.items);
            }
        }
    }

    /// All snapshots.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn snapshots(&self) -> Result<Vec<SnapshotReport>, HostClientError> {
        let mut pages = Pages::new();
        loop {
            let reply = self.page(HostRequest::ListSnapshots, &pages).await?;
            let HostReply::Snapshots { snapshots, more } = reply else {
                return Err(HostClientError::Protocol("no snapshots"));
            };
            if !pages.take((snapshots, more), |report| report.snapshot.as_str())? {
                return Ok(pages.items);
            }
        }
    }

    /// All machines, now.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn machines(&self) -> Result<MachineList, HostClientError> {
        let mut pages = Pages::new();
        let mut at = None;
        loop {
            let reply = self.page(now(), &pages).await?;
            if !take_machines(reply, &mut pages, &mut at)? {
                return finished(pages, at);
            }
        }
    }

    async fn page<T>(
        &self,
        request: HostRequest,
        pages: &Pages<T>,
    ) -> Result<HostReply, HostClientError> {
        let frame = HostRequestFrame {
            page: Some(pages.next()),
            ..request.into()
        };
        Ok(self.call_frame(&frame, Lane::Quick).await?.0)
    }

    /// Begins to watch the machines, on a connection of its own. When the daemon ends, so does the watch. The daemon may be of another
    /// version than the last one, so it is asked.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn watch(&self) -> Result<HostWatch, HostClientError> {
        let version = self.agree().await?;
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| self.unreachable(source))?;
        Ok(HostWatch {
            client: self.clone(),
            stream,
            version,
        })
    }
}

/// Asks for the machines as they are.
fn now() -> HostRequest {
    HostRequest::WatchMachines {
        epoch: None,
        after: 0,
        wait_ms: 0,
    }
}

/// Takes a page of machines. All pages are of one life of the daemon, and the first one says where the list is.
fn take_machines(
    reply: HostReply,
    pages: &mut Pages<MachineReport>,
    at: &mut Option<Cursor>,
) -> Result<bool, HostClientError> {
    let (page, more) = match reply {
        HostReply::Machines {
            epoch,
            revision,
            machines,
            more,
        } => {
            let first = at.get_or_insert(Cursor { epoch, revision });
            if first.epoch != epoch {
                return Err(HostClientError::Protocol("pages of two lives of a daemon"));
            }
            (machines, more)
        }
        HostReply::Error(error) => return Err(HostClientError::Refused(error)),
        HostReply::Done
        | HostReply::Info(_)
        | HostReply::Volume(_)
        | HostReply::Volumes { .. }
        | HostReply::Snapshot(_)
        | HostReply::Snapshots { .. }
        | HostReply::Stream { .. }
        | HostReply::Machine(_)
        | HostReply::Endpoint => return Err(HostClientError::Protocol("no machines")),
    };
    pages.take((page, more), |report| report.machine.as_str())
}

fn finished(
    pages: Pages<MachineReport>,
    at: Option<Cursor>,
) -> Result<MachineList, HostClientError> {
    let at = at.ok_or(HostClientError::Protocol("no machines"))?;
    Ok(MachineList {
        at,
        machines: pages.items,
    })
}

/// A watch on the machines of one host.
#[derive(Debug)]
pub struct HostWatch {
    client: HostClient,
    stream: UnixStream,
    version: u32,
}

impl HostWatch {
    /// All machines, as soon as they are elsewhere than at `seen` or `wait` is over; at once if nothing was seen. Not cancel-safe: drop
    /// the watch then.
    ///
    /// # Errors
    /// [`HostClientError`]; the watch is of no use afterwards.
    pub async fn next(
        &mut self,
        seen: Option<Cursor>,
        wait: Duration,
    ) -> Result<MachineList, HostClientError> {
        let wait = wait.min(HOST_API_WATCH_WAIT_MAX);
        let mut request = HostRequest::WatchMachines {
            epoch: seen.and_then(|seen| seen.epoch),
            after: seen.map_or(0, |seen| seen.revision),
            wait_ms: millis(wait),
        };
        let mut pages = Pages::new();
        let mut at = None;
        loop {
            let frame = HostRequestFrame {
                page: Some(pages.next()),
                ..request.into()
            };
            let reply = self.exchange(&frame, wait + QUICK_WAIT_MAX).await?;
            if !take_machines(reply, &mut pages, &mut at)? {
                return finished(pages, at);
            }
            request = now();
        }
    }

    async fn exchange(
        &mut self,
        frame: &HostRequestFrame,
        bound: Duration,
    ) -> Result<HostReply, HostClientError> {
        let body = encode(frame, self.version)?;
        let (reply, _) = timeout(bound, exchange_on(&mut self.stream, &body))
            .await
            .map_err(|_| HostClientError::TimedOut(bound))?
            .map_err(|source| self.client.unreachable(source))?;
        serde_json::from_slice(&reply).map_err(|_| HostClientError::Protocol("reply is not one"))
    }
}
