//! What a session's datagrams travel through: a UDP socket, or an allocation on a TURN server. Both look alike to the driver.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use crate::turn::{Turn, TurnServer};

/// A way for datagrams.
pub(crate) enum Conduit {
    Socket(UdpSocket),
    Turn(Box<Turn>),
}

impl Conduit {
    pub(crate) fn open_turn(server: &TurnServer) -> io::Result<Self> {
        Ok(Self::Turn(Box::new(Turn::open(server)?)))
    }

    /// The socket whose options may be changed, if datagrams leave from here.
    pub(crate) const fn socket(&self) -> Option<&UdpSocket> {
        match self {
            Self::Socket(socket) => Some(socket),
            Self::Turn(_) => None,
        }
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Socket(socket) => socket.local_addr(),
            Self::Turn(turn) => turn.local_addr(),
        }
    }

    pub(crate) fn send_to(&self, bytes: &[u8], to: SocketAddr) -> io::Result<usize> {
        match self {
            Self::Socket(socket) => socket.send_to(bytes, to),
            Self::Turn(turn) => turn.send_to(bytes, to.into()),
        }
    }

    pub(crate) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Socket(socket) => socket.set_read_timeout(timeout),
            Self::Turn(turn) => turn.set_read_timeout(timeout),
        }
    }

    /// Waits for a datagram. `WouldBlock` also if what came was no datagram.
    pub(crate) fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        match self {
            Self::Socket(socket) => socket.recv_from(buffer),
            Self::Turn(turn) => turn.recv_from(buffer),
        }
    }
}
