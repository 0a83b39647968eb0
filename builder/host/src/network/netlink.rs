//! The three things that are said to the kernel by netlink(7), since no program says them: forget the connections of an
//! address, move a link into a namespace, and tell when the host's firewall changes.
//!
//! Must not know: why.

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    socket,
};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

const HEADER_BYTES: usize = 16;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;

// linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h: subsystem 1, message "delete".
const CT_DELETE: u16 = (1 << 8) | 2;
const NLA_F_NESTED: u16 = 1 << 15;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_IP: u16 = 1;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
/// With version 1 the family counts.
const NFNETLINK_V1: u8 = 1;
const AF_INET: u8 = 2;

const RTM_NEWLINK: u16 = 16;
const IFLA_NET_NS_FD: u16 = 28;

/// Group `NFNLGRP_NFTABLES` (7), as a bit.
const NFTABLES_GROUP: u32 = 1 << 6;
/// As much of a message as is looked at. Longer ones are cut.
const MESSAGE_BYTES: usize = 4096;

/// Which end of a connection's first packet an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Source,
    Destination,
}

/// Has this thread's network namespace forget every connection that `address` has begun or was the aim of.
///
/// # Errors
/// What the kernel said.
pub(super) fn forget_connections(address: Ipv4Addr) -> io::Result<()> {
    for end in [End::Source, End::Destination] {
        let request = deletion(address, end);
        ask(SockProtocol::NetlinkNetFilter, CT_DELETE, &request)?;
    }
    Ok(())
}

/// Moves the link `index` of this thread's network namespace into another.
///
/// # Errors
/// What the kernel said.
pub(super) fn move_link(index: u32, namespace: &impl AsRawFd) -> io::Result<()> {
    // struct ifinfomsg: family, padding, type, index, flags, change.
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend([0; 8]);
    attribute(
        &mut body,
        IFLA_NET_NS_FD,
        &namespace.as_raw_fd().to_ne_bytes(),
    );
    ask(SockProtocol::NetlinkRoute, RTM_NEWLINK, &body)
}

fn deletion(address: Ipv4Addr, end: End) -> Vec<u8> {
    // CTA_IP_V4_SRC and CTA_IP_V4_DST, and the bits by which a filter says that it goes by them.
    let (kind, bit): (u16, u32) = match end {
        End::Source => (1, 1),
        End::Destination => (2, 2),
    };
    let mut ip = Vec::new();
    attribute(&mut ip, kind, &address.octets());
    let mut tuple = Vec::new();
    attribute(&mut tuple, CTA_TUPLE_IP | NLA_F_NESTED, &ip);
    let mut filter = Vec::new();
    attribute(&mut filter, CTA_FILTER_ORIG_FLAGS, &bit.to_ne_bytes());
    attribute(&mut filter, CTA_FILTER_REPLY_FLAGS, &0u32.to_ne_bytes());
    let mut body = vec![AF_INET, NFNETLINK_V1, 0, 0];
    attribute(&mut body, CTA_TUPLE_ORIG | NLA_F_NESTED, &tuple);
    attribute(&mut body, CTA_FILTER | NLA_F_NESTED, &filter);
    body
}

/// Appends an attribute; its length is that of head and value, without what fills the last word.
fn attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    to.extend(length.to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(value);
    to.resize(to.len().next_multiple_of(4), 0);
}

/// Sends one request and waits for the kernel's word, which comes at once.
fn ask(protocol: SockProtocol, kind: u16, body: &[u8]) -> io::Result<()> {
    let socket = open(protocol, SockFlag::empty())?;
    let mut message = Vec::with_capacity(HEADER_BYTES + body.len());
    let length = u32::try_from(HEADER_BYTES + body.len()).map_err(io::Error::other)?;
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    // Sequence and port: there is one request, and the kernel gives the port.
    message.extend([0; 8]);
    message.extend(body);
    send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut reply = [0; MESSAGE_BYTES];
    let length = recv(socket.as_raw_fd(), &mut reply, MsgFlags::empty())?;
    match error_of(&reply[..length]) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::Error::other("no answer that netlink gives")),
    }
}

/// The code of an acknowledgement: 0, or a negative error number.
fn error_of(reply: &[u8]) -> Option<i32> {
    let kind = reply.get(4..6)?.try_into().ok().map(u16::from_ne_bytes)?;
    let code = reply.get(16..20)?.try_into().ok().map(i32::from_ne_bytes)?;
    (kind == NLMSG_ERROR).then_some(code)
}

fn open(protocol: SockProtocol, more: SockFlag) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | more;
    Ok(socket(
        AddressFamily::Netlink,
        SockType::Raw,
        flags,
        protocol,
    )?)
}

/// Hears of every change of the nftables rules of the namespace it was made in.
#[derive(Debug)]
pub(super) struct FirewallMonitor {
    socket: OwnedFd,
}

impl FirewallMonitor {
    /// From now on.
    ///
    /// # Errors
    /// The kernel has no such messages.
    pub(super) fn new() -> io::Result<Self> {
        let socket = open(SockProtocol::NetlinkNetFilter, SockFlag::SOCK_NONBLOCK)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, NFTABLES_GROUP))?;
        Ok(Self { socket })
    }

    /// Whether anything has changed since it was asked last. Does not wait.
    pub(super) fn has_changed(&self) -> bool {
        let (mut changed, mut message) = (false, [0; 64]);
        loop {
            match recv(self.socket.as_raw_fd(), &mut message, MsgFlags::empty()) {
                Err(Errno::EAGAIN) => return changed,
                Err(Errno::EINTR) => {}
                // More than the socket holds has come, which it says once.
                Err(Errno::ENOBUFS) | Ok(_) => changed = true,
                // It cannot be heard any more, so look each time.
                Err(_) => return true,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_fill_their_last_word() {
        let mut to = Vec::new();
        attribute(&mut to, 7, &[1, 2, 3]);
        let length = 7u16.to_ne_bytes();
        assert_eq!(to, [length[0], length[1], length[0], length[1], 1, 2, 3, 0]);
    }

    #[test]
    fn an_answer_says_how_it_went() {
        let mut reply = [0; 36];
        reply[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        assert_eq!(error_of(&reply), Some(0));
        reply[16..20].copy_from_slice(&(-22i32).to_ne_bytes());
        assert_eq!(error_of(&reply), Some(-22));
        assert_eq!(error_of(&reply[..10]), None);
        assert_eq!(error_of(&[0; 36]), None);
    }
}
