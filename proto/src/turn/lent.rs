//! Relay ports that are lent to others than TURN clients: they come out of the same ranges, under the same socket indexes.

use std::net::IpAddr;

use rand::rngs::StdRng;

use super::allocation::Family;
use super::{RelayCommand, TurnService};
use crate::forwarding::SocketIndex;
use crate::lobby::Outbox;

impl TurnService {
    /// What clients are told as the address of lent ports, which are IPv4 all.
    pub fn lent_ip(&self) -> Option<IpAddr> {
        let address = self.addresses[Family::V4.place()].as_ref();
        address.map(|address| address.ip.external)
    }

    /// Takes a port whose distance from every other one taken with this `spacing` is at least that.
    pub fn lend_spaced(&mut self, rng: &mut StdRng, spacing: u16) -> Option<(SocketIndex, u16)> {
        if self.free_sockets.is_empty() && self.unused_sockets.is_empty() {
            return None;
        }
        let address = self.addresses[Family::V4.place()].as_mut()?;
        let port = address.pool.take_spaced(spacing, rng)?;
        let socket = self
            .free_sockets
            .pop()
            .or_else(|| self.unused_sockets.next().map(SocketIndex))
            .expect("there is one");
        Some((socket, port))
    }

    /// Takes a socket for a port that is not of the ranges here.
    pub fn lend_socket(&mut self) -> Option<SocketIndex> {
        let unused = || self.unused_sockets.next().map(SocketIndex);
        self.free_sockets.pop().or_else(unused)
    }

    /// Takes back what [`TurnService::lend_socket`] gave.
    pub fn return_socket(&mut self, socket: SocketIndex) {
        self.free_sockets.push(socket);
    }

    /// Asks for a port to be opened. The outcome is not told to this service.
    pub fn open_lent(&self, out: &mut Outbox, socket: SocketIndex, port: u16) {
        let at = self.bind_addr(Family::V4, port);
        out.relay.push(RelayCommand::Open {
            socket,
            at,
            is_wide: false,
        });
    }

    /// Closes a port that was opened.
    pub fn take_back_port(&mut self, out: &mut Outbox, socket: SocketIndex, port: u16) {
        out.relay.push(RelayCommand::Close { socket });
        self.forget_port(socket, port);
    }

    /// Takes back a port that is not open.
    pub fn forget_port(&mut self, socket: SocketIndex, port: u16) {
        self.free_sockets.push(socket);
        if let Some(address) = &mut self.addresses[Family::V4.place()] {
            address.pool.give_back(port);
        }
    }
}
