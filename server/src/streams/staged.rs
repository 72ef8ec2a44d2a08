//! What one stream's bytes are to be relayed as. The bytes that came are lent by the backend, which must be free again before
//! it can send, so what leaves is copied here in between.

use waypost_proto::forwarding::{Forward, Route};
use waypost_proto::wire::stream::padding;

/// The longest payload of a UDP datagram over IPv4, in bytes. What is relayed to a stream is no longer either.
const DATAGRAM_MAX: usize = 65_507;

/// One relayed packet.
#[derive(Clone, Copy, Debug)]
pub struct StagedPacket {
    /// Where it leaves.
    pub route: Route,
    /// Whether to drop it rather than to send it in fragments.
    pub dont_fragment: bool,
    start: usize,
    end: usize,
}

/// Relayed packets that wait to be sent, in order, in memory that is used again.
#[derive(Debug, Default)]
pub struct Staged {
    bytes: Vec<u8>,
    packets: Vec<StagedPacket>,
}

impl Staged {
    /// Frames a payload of `message` anew. False if no datagram is that long.
    pub fn push(&mut self, forward: &Forward, message: &[u8]) -> bool {
        let frame = forward.frame();
        let payload = &message[forward.strip..forward.strip + forward.payload_len];
        let len = frame.header().len() + payload.len() + frame.padding();
        if len > DATAGRAM_MAX {
            return false;
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(frame.header());
        self.bytes.extend_from_slice(payload);
        let end = start + len;
        self.bytes.resize(end + padding(len), 0);
        self.packets.push(StagedPacket {
            route: forward.route,
            dont_fragment: forward.dont_fragment,
            start,
            end,
        });
        true
    }

    /// What was pushed, in order.
    #[must_use]
    pub fn packets(&self) -> &[StagedPacket] {
        &self.packets
    }

    /// A packet as a datagram.
    #[must_use]
    pub fn datagram(&self, packet: StagedPacket) -> &[u8] {
        &self.bytes[packet.start..packet.end]
    }

    /// A packet as a frame on a stream.
    #[must_use]
    pub fn frame(&self, packet: StagedPacket) -> &[u8] {
        let StagedPacket { start, end, .. } = packet;
        &self.bytes[start..end + padding(end - start)]
    }

    /// Forgets everything and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.packets.clear();
    }
}
