//! What the generator needs to know of a server: how to start it, and for each flow what to send
//! where and what must come out where.
//!
//! To measure another server, implement [`RelayServer`]: spawn it, do the protocol's set-up with
//! [`Clients::request`] from the flows' own endpoints, and describe the flows.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use crate::clients::Clients;
use crate::process::ServerProcess;

/// One end of a flow: an address of 127/8 on one of the generator's sockets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Index of the generator's socket.
    pub socket: usize,
    /// The end's address; its port is the socket's.
    pub ip: Ipv4Addr,
}

/// How a payload is framed when it comes out of a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arriving {
    /// Behind four bytes, such as those of ChannelData.
    Behind([u8; 4]),
    /// As it is.
    Raw,
    /// In a Data indication from this peer.
    DataIndication(SocketAddr),
}

impl Arriving {
    /// What a prefix of this length can be.
    #[must_use]
    pub fn prefix(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [] => Some(Self::Raw),
            bytes => bytes.try_into().ok().map(Self::Behind),
        }
    }
}

/// One direction through a server.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Who sends.
    pub from: Endpoint,
    /// The server's address to send to.
    pub to: SocketAddr,
    /// What precedes the payload on its way to the server.
    pub prefix: Vec<u8>,
    /// Who must get it.
    pub arrives_at: Endpoint,
    /// The source address it must have there.
    pub arrives_from: SocketAddr,
    /// How the payload must be framed there.
    pub arriving: Arriving,
    /// The flow by which the receiver sends it back at once; nobody else sends on that one.
    pub answered_by: Option<usize>,
}

/// A server that runs and whose flows are set up. Dropping it ends the process.
#[derive(Debug)]
pub struct Running {
    /// The process whose CPU time is measured.
    pub process: ServerProcess,
    /// Its flows.
    pub flows: Vec<Flow>,
}

/// A server that can be measured.
pub trait RelayServer {
    /// Its name in the table.
    fn name(&self) -> &str;

    /// Starts it on `core` and sets up `flows` flows for payloads of `payload_bytes`.
    ///
    /// # Errors
    ///
    /// When it cannot be started or the set-up fails.
    fn start(
        &self,
        clients: &mut Clients,
        core: usize,
        flows: usize,
        payload_bytes: usize,
    ) -> io::Result<Running>;
}
