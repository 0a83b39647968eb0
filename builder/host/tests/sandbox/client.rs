//! A blocking client of the host API.

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use slipway_core::fence::VolumeFence;
use slipway_core::generation::Generation;
use slipway_core::host_api::{
    EndpointPort, HostErrorCode, HostInfo, HostReply, HostRequest, HostRequestFrame, MachineReport,
    MachineRunState, MachineSpec, VolumeReport,
};
use slipway_core::id::{MachineId, VolumeId};
use std::io::{self, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longer than any request may take.
const REPLY_WAIT: Duration = Duration::from_secs(130);

/// The state of a machine that has ended, well or by a crash.
pub(crate) fn ended(clean: bool) -> MachineRunState {
    MachineRunState::Exited {
        clean,
        damaged: false,
    }
}

pub(crate) struct Client {
    stream: UnixStream,
}

impl Client {
    pub(crate) fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(REPLY_WAIT))?;
        Ok(Self { stream })
    }

    pub(crate) fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    pub(crate) fn send_json(&mut self, json: &[u8]) -> io::Result<()> {
        let length = u32::try_from(json.len()).unwrap();
        self.send_raw(&[&length.to_be_bytes(), json].concat())
    }

    pub(crate) fn receive(&mut self) -> io::Result<(HostReply, Option<OwnedFd>)> {
        loop {
            match self.receive_once() {
                // Nothing was read yet: only the first byte's call does not go on by itself after a signal.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn receive_once(&mut self) -> io::Result<(HostReply, Option<OwnedFd>)> {
        let mut first = [0u8];
        let mut space = nix::cmsg_space!([i32; 1]);
        let mut data = [IoSliceMut::new(&mut first)];
        let message = recvmsg::<()>(
            self.stream.as_raw_fd(),
            &mut data,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )?;
        if message.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut descriptor = None;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                #[expect(unsafe_code, reason = "a received descriptor has no owner yet")]
                // SAFETY: the kernel just made this descriptor for us.
                let fd = unsafe { OwnedFd::from_raw_fd(fds[0]) };
                descriptor = Some(fd);
            }
        }
        let mut rest = [0; 3];
        self.stream.read_exact(&mut rest)?;
        let length = u32::from_be_bytes([first[0], rest[0], rest[1], rest[2]]);
        let mut json = vec![0; length as usize];
        self.stream.read_exact(&mut json)?;
        Ok((serde_json::from_slice(&json)?, descriptor))
    }

    pub(crate) fn ask(&mut self, request: HostRequest) -> (HostReply, Option<OwnedFd>) {
        self.ask_frame(&request.into())
    }

    pub(crate) fn ask_frame(&mut self, frame: &HostRequestFrame) -> (HostReply, Option<OwnedFd>) {
        self.send_json(&serde_json::to_vec(frame).unwrap()).unwrap();
        self.receive().unwrap()
    }

    /// Asks with a volume's fencing number.
    pub(crate) fn ask_fenced(&mut self, request: HostRequest, fence: &VolumeFence) -> HostReply {
        let fence = Some(fence.clone());
        self.ask_frame(&HostRequestFrame {
            fence,
            ..request.into()
        })
        .0
    }

    pub(crate) fn info(&mut self) -> HostInfo {
        match self.ask(HostRequest::Info).0 {
            HostReply::Info(info) => info,
            other => panic!("info: {other:?}"),
        }
    }

    pub(crate) fn ensure_volume(&mut self, volume: &VolumeId, size_bytes: u64) -> VolumeReport {
        match self
            .ask(HostRequest::EnsureVolume {
                volume: volume.clone(),
                size_bytes,
                source: None,
            })
            .0
        {
            HostReply::Volume(report) => report,
            other => panic!("ensure volume: {other:?}"),
        }
    }

    pub(crate) fn volumes(&mut self) -> Vec<VolumeReport> {
        match self.ask(HostRequest::ListVolumes).0 {
            HostReply::Volumes {
                volumes,
                more: false,
            } => volumes,
            other => panic!("list volumes: {other:?}"),
        }
    }

    /// Like [`Client::ensure`], for a daemon that may be killed meanwhile.
    pub(crate) fn try_ensure(&mut self, spec: &MachineSpec) -> io::Result<()> {
        let request = HostRequest::EnsureMachine(spec.clone());
        let frame = HostRequestFrame::from(request);
        self.send_json(&serde_json::to_vec(&frame)?)?;
        match self.receive()?.0 {
            HostReply::Machine(_) => Ok(()),
            other => Err(io::Error::other(format!("{other:?}"))),
        }
    }

    pub(crate) fn ensure(&mut self, spec: &MachineSpec) -> Result<MachineReport, HostErrorCode> {
        match self.ask(HostRequest::EnsureMachine(spec.clone())).0 {
            HostReply::Machine(report) => Ok(report),
            HostReply::Error(error) => {
                println!("refused: {error:?}");
                Err(error.code)
            }
            other => panic!("ensure machine: {other:?}"),
        }
    }

    pub(crate) fn stop(
        &mut self,
        machine: &MachineId,
        generation: u64,
        grace: Duration,
    ) -> Result<MachineReport, HostErrorCode> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap();
        let generation = Generation(generation);
        match self
            .ask(HostRequest::StopMachine {
                machine: machine.clone(),
                generation,
                grace_ms,
            })
            .0
        {
            HostReply::Machine(report) => Ok(report),
            HostReply::Error(error) => Err(error.code),
            other => panic!("stop machine: {other:?}"),
        }
    }

    pub(crate) fn remove(
        &mut self,
        machine: &MachineId,
        generation: u64,
    ) -> Result<(), HostErrorCode> {
        let generation = Generation(generation);
        match self
            .ask(HostRequest::RemoveMachine {
                machine: machine.clone(),
                generation,
            })
            .0
        {
            HostReply::Done => Ok(()),
            HostReply::Error(error) => Err(error.code),
            other => panic!("remove machine: {other:?}"),
        }
    }

    pub(crate) fn watch(&mut self, after: u64, wait: Duration) -> (u64, Vec<MachineReport>) {
        let wait_ms = u64::try_from(wait.as_millis()).unwrap();
        let request = HostRequest::WatchMachines {
            epoch: None,
            after,
            wait_ms,
        };
        match self.ask(request).0 {
            HostReply::Machines {
                revision, machines, ..
            } => (revision, machines),
            other => panic!("watch: {other:?}"),
        }
    }

    pub(crate) fn machine(&mut self, machine: &MachineId) -> Option<MachineReport> {
        self.watch(0, Duration::ZERO)
            .1
            .into_iter()
            .find(|report| report.machine == *machine)
    }

    /// Waits until the machine has ended; whether it ended well.
    pub(crate) fn wait_exit(&mut self, machine: &MachineId, wait: Duration) -> bool {
        let deadline = Instant::now() + wait;
        let mut after = 0;
        loop {
            let (revision, machines) =
                self.watch(after, deadline.saturating_duration_since(Instant::now()));
            let found = machines
                .into_iter()
                .find(|report| report.machine == *machine);
            if let Some(MachineReport {
                state: MachineRunState::Exited { clean, .. },
                ..
            }) = found
            {
                return clean;
            }
            assert!(
                Instant::now() < deadline,
                "{machine} has not ended: {found:?}"
            );
            after = revision;
        }
    }

    pub(crate) fn open(
        &mut self,
        machine: &MachineId,
        generation: u64,
        port: EndpointPort,
    ) -> Result<UnixStream, HostErrorCode> {
        let generation = Generation(generation);
        match self.ask(HostRequest::OpenEndpoint {
            machine: machine.clone(),
            generation,
            port,
        }) {
            (HostReply::Endpoint, Some(fd)) => {
                let stream = UnixStream::from(fd);
                stream.set_nonblocking(false).unwrap();
                Ok(stream)
            }
            (HostReply::Error(error), None) => Err(error.code),
            other => panic!("open endpoint: {other:?}"),
        }
    }
}
