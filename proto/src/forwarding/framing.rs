//! What is written around a relayed payload, in the room that the packet's buffer has before and behind it.

use super::Forward;
use crate::addr::Addr;
use crate::wire::channel_data::{self, ChannelNumber};
use crate::wire::stun::{self, TransactionId};

/// How a payload is framed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framing {
    /// As it is: what a peer sees.
    Raw,
    /// ChannelData (RFC 8656 section 12.4).
    Channel(ChannelNumber),
    /// A Data indication (RFC 8656 section 11.4).
    DataIndication {
        /// Where the payload came from.
        peer: Addr,
        /// The id of the indication.
        id: TransactionId,
    },
}

/// The bytes around a payload.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    header: [u8; Frame::HEADER_MAX],
    header_len: usize,
    padding: usize,
}

impl Frame {
    /// Longest header: of a Data indication from an IPv6 peer.
    pub const HEADER_MAX: usize = 48;

    /// What stands before the payload.
    #[inline]
    #[must_use]
    pub fn header(&self) -> &[u8] {
        &self.header[..self.header_len]
    }

    /// How many zero bytes stand behind it.
    #[inline]
    #[must_use]
    pub const fn padding(&self) -> usize {
        self.padding
    }
}

impl Forward {
    /// The bytes to write around the payload.
    #[inline]
    #[must_use]
    pub fn frame(&self) -> Frame {
        let mut frame = Frame {
            header: [0; Frame::HEADER_MAX],
            header_len: 0,
            padding: 0,
        };
        match self.framing {
            Framing::Raw => {}
            Framing::Channel(channel) => {
                let header = channel_data::header(channel, self.payload_len);
                frame.header[..header.len()].copy_from_slice(&header);
                frame.header_len = header.len();
            }
            Framing::DataIndication { peer, id } => {
                frame.header_len =
                    stun::write_data_indication(&mut frame.header, peer, id, self.payload_len);
                frame.padding = self.payload_len.next_multiple_of(4) - self.payload_len;
            }
        }
        frame
    }
}
