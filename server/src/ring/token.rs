//! The `user_data` of our requests: what a completion is about, packed into 64 bits.

use super::recv::SlotKind;
use crate::packet_io::{ListenerId, SocketId, StreamId};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Token {
    /// A multishot receive, and the slots that it fills.
    Receive(SocketId, SlotKind),
    /// The cancellation of a receive.
    Cancel,
    /// A staged datagram: its train and its segment. Only failures complete.
    Single { train: u32, segment: u32 },
    /// A staged train. Only failures complete.
    Train { train: u32 },
    /// The read of the doorbell.
    Doorbell,
    /// The request that proves at start that the ring works.
    Probe,
    /// A multishot accept.
    Accept(ListenerId),
    /// A multishot receive of a stream.
    StreamReceive(StreamId),
    /// The send of a stream.
    StreamSend(StreamId),
}

const KIND_SHIFT: u32 = 56;
const INDEX_BITS: u32 = 28;
const INDEX_MASK: u64 = (1 << INDEX_BITS) - 1;

impl Token {
    #[inline]
    pub(super) fn pack(self) -> u64 {
        let (kind, rest) = match self {
            Self::Receive(id, kind) => {
                let number = match kind {
                    SlotKind::Small => 1,
                    SlotKind::Wide => 10,
                    SlotKind::Large => 11,
                };
                (number, u64::from(id.to_raw()))
            }
            Self::Cancel => (2, 0),
            Self::Single { train, segment } => {
                (3, u64::from(train) << INDEX_BITS | u64::from(segment))
            }
            Self::Train { train } => (4, u64::from(train)),
            Self::Doorbell => (5, 0),
            Self::Probe => (6, 0),
            Self::Accept(listener) => (7, u64::from(listener.index())),
            Self::StreamReceive(stream) => (8, u64::from(stream.to_raw())),
            Self::StreamSend(stream) => (9, u64::from(stream.to_raw())),
        };
        kind << KIND_SHIFT | rest
    }

    #[inline]
    pub(super) fn unpack(user_data: u64) -> Option<Self> {
        let receive = |kind| Self::Receive(SocketId::from_raw(user_data as u32), kind);
        let low = (user_data & INDEX_MASK) as u32;
        Some(match user_data >> KIND_SHIFT {
            1 => receive(SlotKind::Small),
            2 => Self::Cancel,
            3 => {
                let train = (user_data >> INDEX_BITS & INDEX_MASK) as u32;
                Self::Single {
                    train,
                    segment: low,
                }
            }
            4 => Self::Train { train: low },
            5 => Self::Doorbell,
            6 => Self::Probe,
            7 => Self::Accept(ListenerId::new(user_data as u16)),
            8 => Self::StreamReceive(StreamId::from_raw(user_data as u32)),
            9 => Self::StreamSend(StreamId::from_raw(user_data as u32)),
            10 => receive(SlotKind::Wide),
            11 => receive(SlotKind::Large),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_trip_through_the_kernel() {
        for token in [
            Token::Receive(SocketId::from_raw(u32::MAX), SlotKind::Small),
            Token::Receive(SocketId::from_raw(u32::MAX), SlotKind::Wide),
            Token::Receive(SocketId::from_raw(u32::MAX), SlotKind::Large),
            Token::Cancel,
            Token::Single {
                train: 1023,
                segment: 4095,
            },
            Token::Train { train: 77 },
            Token::Doorbell,
            Token::Probe,
            Token::Accept(ListenerId::new(u16::MAX)),
            Token::StreamReceive(StreamId::from_raw(u32::MAX)),
            Token::StreamSend(StreamId::from_raw(u32::MAX)),
        ] {
            assert_eq!(Token::unpack(token.pack()), Some(token));
        }
        assert_eq!(Token::unpack(0), None);
    }
}
