//! What the host and the guest of a virtual machine agree on: what the guest is told at its boot, and how a stream to it
//! begins.
//!
//! A stream: the host connects to [`CHANNEL_PORT`] and sends the machine's secret and one byte that says what it wants
//! ([`Wanted`]). The guest answers with one byte ([`Answer`]); after [`Answer::Taken`] the stream is the endpoint's own.
//! Only the host can reach the port (docs/SECURITY.md); the secret keeps everything else out even while a rule is
//! missing.
//!
//! Must not know: sockets, or how a machine is made.

use crate::host_api::EndpointPort;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// Where the guest listens, on TCP or vsock. Below 1024, so that no ordinary process inside can take it.
pub const CHANNEL_PORT: u16 = 721;
/// Bytes of a machine's secret.
pub const SECRET_BYTES: usize = 32;
/// Bytes that a stream begins with: the secret and a [`Wanted`].
pub const GREETING_BYTES: usize = SECRET_BYTES + 1;
/// Name of the file in the firmware's configuration that holds the [`Boot`].
pub const BOOT_FILE: &str = "opt/org.slipway/boot";
/// Name of the serial port that takes the end record.
pub const END_PORT: &str = "slipway.end";
/// Serial number of the cache volume's disk.
pub const VOLUME_SERIAL: &str = "volume";

/// What a guest is told at its boot.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Boot {
    /// In lower-case hexadecimal; new for each start.
    pub secret: String,
    /// The machine's name for itself.
    pub hostname: String,
    /// Its processor is emulated, so that everything takes many times as long.
    pub emulated: bool,
    /// Its host may keep its memory when it ends for want of use ([`Wanted::Stillness`]).
    #[serde(default)]
    pub offers_memory: bool,
    /// Its link.
    pub network: BootNetwork,
}

impl std::fmt::Debug for Boot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Boot")
            .field("hostname", &self.hostname)
            .field("emulated", &self.emulated)
            .field("offers_memory", &self.offers_memory)
            .field("network", &self.network)
            .finish_non_exhaustive()
    }
}

/// A machine's link to its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootNetwork {
    /// The machine's address, alone on its link.
    pub address: Ipv4Addr,
    /// The host's address.
    pub gateway: Ipv4Addr,
    /// The host's MAC, so that nobody has to be asked for it.
    pub gateway_mac: String,
    /// Bytes that a packet may have.
    pub mtu: u32,
}

/// What the host wants of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The listener of that endpoint.
    Endpoint(EndpointPort),
    /// That the machine ends by itself, as SIGTERM to PID 1 means. The stream is closed after the answer.
    End,
    /// To know whether the machine may be paused: [`Answer::Taken`] if nothing is in flight and no stream is open, else
    /// [`Answer::Full`]; or whether its memory may be kept: [`Answer::Leaving`].
    Rest,
    /// To tell that the machine was paused: eight bytes follow, the time in milliseconds since 1970, big-endian. One that stood
    /// still ends.
    Woken,
    /// That a machine that ends for want of use stands still, its volume written out and frozen, so that its memory can be kept:
    /// [`Answer::Taken`] when it does.
    Stillness,
    /// To tell a machine that stood still that it goes on from its kept memory; the time follows as in [`Wanted::Woken`].
    Resumed,
}

impl Wanted {
    /// As it is sent.
    pub fn byte(self) -> u8 {
        match self {
            Self::Endpoint(EndpointPort::Docker) => b'd',
            Self::Endpoint(EndpointPort::Guest) => b'g',
            Self::End => b'e',
            Self::Rest => b'r',
            Self::Woken => b'w',
            Self::Stillness => b's',
            Self::Resumed => b'm',
        }
    }

    /// As it was sent; nothing for any other byte.
    pub fn from_byte(byte: u8) -> Option<Self> {
        [
            Self::Endpoint(EndpointPort::Docker),
            Self::Endpoint(EndpointPort::Guest),
            Self::End,
            Self::Rest,
            Self::Woken,
            Self::Stillness,
            Self::Resumed,
        ]
        .into_iter()
        .find(|wanted| wanted.byte() == byte)
    }
}

/// What the guest answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The stream is the endpoint's, or the end was begun.
    Taken,
    /// Nobody listens there any more: the machine ends.
    Closed,
    /// Too many streams are open, or some are.
    Full,
    /// It ends for want of use, and its memory may be kept.
    Leaving,
}

impl Answer {
    /// As it is sent.
    pub fn byte(self) -> u8 {
        match self {
            Self::Taken => b'+',
            Self::Closed => b'-',
            Self::Full => b'!',
            Self::Leaving => b'~',
        }
    }

    /// As it was sent; nothing for any other byte.
    pub fn from_byte(byte: u8) -> Option<Self> {
        [Self::Taken, Self::Closed, Self::Full, Self::Leaving]
            .into_iter()
            .find(|answer| answer.byte() == byte)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_mean_what_they_meant() {
        for wanted in [
            Wanted::Endpoint(EndpointPort::Docker),
            Wanted::Endpoint(EndpointPort::Guest),
            Wanted::End,
            Wanted::Rest,
            Wanted::Woken,
            Wanted::Stillness,
            Wanted::Resumed,
        ] {
            assert_eq!(Wanted::from_byte(wanted.byte()), Some(wanted));
        }
        for answer in [Answer::Taken, Answer::Closed, Answer::Full, Answer::Leaving] {
            assert_eq!(Answer::from_byte(answer.byte()), Some(answer));
        }
        assert_eq!(Wanted::from_byte(0), None);
        assert_eq!(Answer::from_byte(0), None);
    }

    #[test]
    fn the_secret_is_not_shown() {
        let boot = Boot {
            secret: "5ec2e7".into(),
            hostname: "m".into(),
            emulated: true,
            offers_memory: false,
            network: BootNetwork {
                address: Ipv4Addr::LOCALHOST,
                gateway: Ipv4Addr::LOCALHOST,
                gateway_mac: String::new(),
                mtu: 1500,
            },
        };
        assert!(!format!("{boot:?}").contains("5ec2e7"));
    }
}
