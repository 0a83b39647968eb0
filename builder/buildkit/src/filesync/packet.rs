//! The packets of the file sync, as fsutil's `wire.proto` and `stat.proto` define them.
//!
//! Paths and link targets are bytes here, where the definition says text: a file name on Linux need not be UTF-8.
//! It must not know what the packets mean.

use crate::limits;
use bytes::Bytes;
use prost::Message;
use std::collections::HashMap;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// What kind a packet is of (`Packet.PacketType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Kind {
    /// An entry, or with no entry: there are no more.
    Stat = 0,
    /// The receiver wants the content of a file.
    Request = 1,
    /// A piece of a file, or with no bytes: its end.
    Data = 2,
    /// The receiver has all it wants; the sender answers with the same.
    Finish = 3,
    /// A failure, in words.
    Error = 4,
}

/// One message of the sync, either way.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Packet {
    /// See [`Kind`].
    #[prost(enumeration = "Kind", tag = "1")]
    pub(crate) kind: i32,
    /// The entry that a `Stat` announces.
    #[prost(message, optional, boxed, tag = "2")]
    pub(crate) stat: Option<Box<Stat>>,
    /// Number of the file: its place among the announced entries, from 0.
    #[prost(uint32, tag = "3")]
    pub(crate) id: u32,
    /// Content, or the words of an error.
    #[prost(bytes = "bytes", tag = "4")]
    pub(crate) data: Bytes,
}

/// An entry of the tree (`fsutil.types.Stat`).
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Stat {
    /// Relative, with slashes, clean.
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) path: Vec<u8>,
    /// Go's `os.FileMode`, not the kernel's `st_mode`.
    #[prost(uint32, tag = "2")]
    pub(crate) mode: u32,
    /// Owner; always 0 in a build context.
    #[prost(uint32, tag = "3")]
    pub(crate) uid: u32,
    /// Group; always 0 in a build context.
    #[prost(uint32, tag = "4")]
    pub(crate) gid: u32,
    /// Bytes; 0 for a directory.
    #[prost(int64, tag = "5")]
    pub(crate) size: i64,
    /// Nanoseconds since 1970.
    #[prost(int64, tag = "6")]
    pub(crate) modified: i64,
    /// Target of a symbolic link, or the path of the first name of a hard-linked file.
    #[prost(bytes = "vec", tag = "7")]
    pub(crate) link: Vec<u8>,
    /// Of a device.
    #[prost(int64, tag = "8")]
    pub(crate) device_major: i64,
    /// Of a device.
    #[prost(int64, tag = "9")]
    pub(crate) device_minor: i64,
    /// Extended attributes.
    #[prost(map = "string, bytes", tag = "10")]
    pub(crate) xattrs: HashMap<String, Vec<u8>>,
}

impl Packet {
    pub(crate) fn stat(stat: Stat) -> Packet {
        Packet {
            kind: Kind::Stat.into(),
            stat: Some(Box::new(stat)),
            ..Packet::default()
        }
    }

    pub(crate) fn end_of_stats() -> Packet {
        Packet {
            kind: Kind::Stat.into(),
            ..Packet::default()
        }
    }

    pub(crate) fn data(id: u32, data: Bytes) -> Packet {
        Packet {
            kind: Kind::Data.into(),
            id,
            data,
            ..Packet::default()
        }
    }

    pub(crate) fn end_of_data(id: u32) -> Packet {
        Packet::data(id, Bytes::new())
    }

    pub(crate) fn finish() -> Packet {
        Packet {
            kind: Kind::Finish.into(),
            ..Packet::default()
        }
    }

    pub(crate) fn error(message: String) -> Packet {
        Packet {
            kind: Kind::Error.into(),
            data: message.into(),
            ..Packet::default()
        }
    }
}

/// How packets are put on the wire and taken off it. Only the sync needs it: the other services use the types that
/// their crate generated.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PacketCodec;

impl PacketCodec {
    fn buffers() -> BufferSettings {
        BufferSettings::new(limits::SYNC_CHUNK_BYTES, limits::SYNC_CHUNK_BYTES)
    }
}

impl Codec for PacketCodec {
    type Encode = Packet;
    type Decode = Packet;
    type Encoder = PacketCodec;
    type Decoder = PacketCodec;

    fn encoder(&mut self) -> PacketCodec {
        PacketCodec
    }

    fn decoder(&mut self) -> PacketCodec {
        PacketCodec
    }
}

impl Encoder for PacketCodec {
    type Item = Packet;
    type Error = Status;

    fn encode(&mut self, packet: Packet, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        packet
            .encode(buffer)
            .map_err(|error| Status::internal(format!("encode packet: {error}")))
    }

    fn buffer_settings(&self) -> BufferSettings {
        PacketCodec::buffers()
    }
}

impl Decoder for PacketCodec {
    type Item = Packet;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Packet>, Status> {
        Packet::decode(buffer).map(Some).map_err(|error| {
            Status::invalid_argument(format!("malformed packet of the file sync: {error}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard_buildkit_proto::fsutil::types as generated;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(packet) = Packet::decode(bytes.as_slice()) {
                let again = Packet::decode(packet.encode_to_vec().as_slice()).unwrap();
                prop_assert_eq!(again, packet);
            }
        }

        #[test]
        fn packets_read_the_same_by_the_published_definition(
            path in "\\PC{0,20}", link in "\\PC{0,20}", mode: u32, size: i64, modified: i64, id: u32,
            data in proptest::collection::vec(any::<u8>(), 0..50),
        ) {
            let mut packet = Packet::stat(Stat {
                path: path.clone().into(), link: link.clone().into(), mode, size, modified,
                xattrs: HashMap::from([("user.a".to_owned(), data.clone())]),
                ..Stat::default()
            });
            packet.id = id;
            packet.data = data.clone().into();
            let seen = generated::Packet::decode(packet.encode_to_vec().as_slice()).unwrap();
            let stat = seen.stat.unwrap();
            prop_assert_eq!((stat.path, stat.linkname, stat.mode, stat.size, stat.mod_time), (path, link, mode, size, modified));
            prop_assert_eq!((seen.id, &seen.data, &stat.xattrs["user.a"]), (id, &data, &data));
        }
    }

    #[test]
    fn the_end_of_the_entries_is_an_empty_message() {
        assert!(Packet::end_of_stats().encode_to_vec().is_empty());
    }
}
