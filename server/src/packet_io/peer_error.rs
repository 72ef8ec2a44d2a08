//! ICMP errors that the kernel reports about datagrams sent before. They can be forged: nothing is decided here, and whoever is
//! told should not trust them further than to pass them on.

use std::collections::VecDeque;
use std::net::SocketAddr;

use super::SocketId;

/// An ICMP error about a datagram that a socket sent. Only sockets opened to report such errors have any.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerError {
    /// The socket that sent it.
    pub socket: SocketId,
    /// Where it was sent to.
    pub peer: SocketAddr,
    /// The type, of ICMP or ICMPv6 as the address is.
    pub kind: u8,
    /// The code.
    pub code: u8,
    /// The MTU of the next hop if it is about that.
    pub mtu: u32,
}

/// Most errors that wait to be handed out; more are dropped.
const MOST: usize = 256;

/// Errors that wait to be handed out.
#[derive(Debug, Default)]
pub(crate) struct PeerErrors(VecDeque<PeerError>);

impl PeerErrors {
    pub(crate) fn push(&mut self, error: PeerError) {
        if self.0.len() < MOST {
            self.0.push_back(error);
        }
    }

    #[inline]
    pub(crate) fn pop(&mut self) -> Option<PeerError> {
        self.0.pop_front()
    }
}
