//! What a client is told of ICMP errors that its relayed data met (RFC 8656 section 11.5). They can be forged by anybody who
//! guesses addresses and ports, so they are passed on, at a limited rate, and change nothing here.

use super::{Step, TurnService};
use crate::addr::Addr;
use crate::forwarding::SocketIndex;
use crate::stats::Counter;
use crate::wire::stun::{Class, MessageWriter, attr, method};

/// An ICMP or ICMPv6 error about a datagram to a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IcmpError {
    /// Its type.
    pub kind: u8,
    /// Its code.
    pub code: u8,
    /// The MTU of the next hop, if it is about that.
    pub mtu: u32,
}

impl IcmpError {
    /// The value of the ICMP attribute (RFC 8656 section 18.13), if clients are told of this type (section 11.5): the type in
    /// 7 bits, the code in 9, and the MTU where there is one.
    fn to_attribute(self, is_v4: bool) -> Option<[u8; 8]> {
        let is_told = match self.kind {
            3 => true,
            11 => is_v4,
            1 | 2 => !is_v4,
            _ => false,
        };
        let has_mtu = if is_v4 {
            (self.kind, self.code) == (3, 4)
        } else {
            self.kind == 2
        };
        let [high, low] = (u16::from(self.kind) << 9 | u16::from(self.code)).to_be_bytes();
        let mtu = if has_mtu { self.mtu } else { 0 };
        let [a, b, c, d] = mtu.to_be_bytes();
        is_told.then_some([0, 0, high, low, a, b, c, d])
    }
}

impl TurnService {
    /// Tells a client of an error about what it sent to `peer` by this relay socket.
    pub fn handle_icmp(
        &mut self,
        step: &mut Step<'_>,
        socket: SocketIndex,
        peer: Addr,
        error: IcmpError,
    ) {
        let Some(value) = error.to_attribute(peer.is_ipv4()) else {
            return;
        };
        let Some((client, id)) = step.forwarding.icmp_from_peer(step.now, socket, peer) else {
            return;
        };
        step.counters.count(Counter::TurnIcmpErrors);
        let start = step.out.bytes.len();
        MessageWriter::new(&mut step.out.bytes, method::DATA, Class::Indication, id)
            .xor_addr(attr::XOR_PEER_ADDRESS, peer)
            .attribute(attr::ICMP, &value)
            .finish();
        step.out.transmit(client.egress, client.to, start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes() {
        let of = |kind, code, is_v4| {
            IcmpError {
                kind,
                code,
                mtu: 1280,
            }
            .to_attribute(is_v4)
        };
        assert_eq!(of(3, 3, true), Some([0, 0, 6, 3, 0, 0, 0, 0]));
        assert_eq!(of(3, 4, true), Some([0, 0, 6, 4, 0, 0, 5, 0]));
        assert_eq!(of(11, 0, true), Some([0, 0, 22, 0, 0, 0, 0, 0]));
        assert_eq!(of(1, 4, false), Some([0, 0, 2, 4, 0, 0, 0, 0]));
        assert_eq!(of(2, 0, false), Some([0, 0, 4, 0, 0, 0, 5, 0]));
        assert_eq!(of(3, 1, false), Some([0, 0, 6, 1, 0, 0, 0, 0]));
        for (kind, is_v4) in [
            (0, true),
            (5, true),
            (12, true),
            (4, false),
            (128, false),
            (11, false),
        ] {
            assert_eq!(of(kind, 0, is_v4), None);
        }
    }
}
