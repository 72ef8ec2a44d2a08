//! Routes between two relay sockets: each leads one player to the other, so that a player who knows nothing of relays finds
//! his peer at an address like any other.
//!
//! A view is the socket by which its viewer reaches one peer. It takes in the first source that it sees from the viewer's
//! IP address, whatever its port, because a NAT may show the viewer at another port here than elsewhere. What comes from
//! that source leaves from the twin, the peer's view of the viewer, to the source that the twin has taken in. So nothing goes to
//! an address that has not sent to its own view first, and each player sees all that the other sends come from one address.

use std::net::IpAddr;

use super::{Forward, ForwardingTable, Framing, NotForwarded, Rate, Route, Service, SocketIndex};
use crate::addr::Addr;
use crate::dialect::Dialect;
use crate::time::Millis;

/// One end of a pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ViewEnd {
    /// The relay socket.
    pub socket: SocketIndex,
    /// Whose packets it takes.
    pub viewer: IpAddr,
}

/// By which a viewer reaches a peer.
#[derive(Debug)]
struct View {
    viewer: IpAddr,
    /// Where the viewer was seen.
    source: Option<Addr>,
    /// The peer's view of the viewer.
    twin: SocketIndex,
    rate: Rate,
    used: Millis,
    dialect: Dialect,
}

/// All views, by the index of their sockets after the listeners.
#[derive(Debug, Default)]
pub(super) struct PortPairs {
    views: Vec<Option<Box<View>>>,
}

impl PortPairs {
    fn get(&self, place: usize) -> Option<&View> {
        self.views.get(place)?.as_deref()
    }

    fn get_mut(&mut self, place: usize) -> Option<&mut View> {
        self.views.get_mut(place)?.as_deref_mut()
    }
}

impl ForwardingTable {
    fn view_place(&self, socket: SocketIndex) -> usize {
        usize::from(socket.0) - self.capacity.listeners
    }

    /// Lets two players reach each other by these sockets.
    pub(crate) fn add_port_pair(&mut self, now: Millis, dialect: Dialect, ends: [ViewEnd; 2]) {
        for (end, twin) in [(ends[0], ends[1]), (ends[1], ends[0])] {
            let place = self.view_place(end.socket);
            let views = &mut self.port_pairs.views;
            if views.len() <= place {
                views.resize_with(place + 1, || None);
            }
            debug_assert!(views[place].is_none(), "a socket has one use");
            views[place] = Some(Box::new(View {
                viewer: end.viewer,
                source: None,
                twin: twin.socket,
                rate: Rate::default(),
                used: now,
                dialect,
            }));
        }
    }

    /// Takes that back.
    pub(crate) fn remove_port_pair(&mut self, sockets: [SocketIndex; 2]) {
        for socket in sockets {
            let place = self.view_place(socket);
            self.port_pairs.views[place] = None;
        }
    }

    /// Forgets where the two players were seen: they may come from other ports now.
    pub(crate) fn forget_sources(&mut self, sockets: [SocketIndex; 2]) {
        for socket in sockets {
            let place = self.view_place(socket);
            if let Some(view) = self.port_pairs.get_mut(place) {
                view.source = None;
            }
        }
    }

    /// When either of two views was used last.
    pub(crate) fn port_pair_used(&self, sockets: [SocketIndex; 2]) -> Millis {
        let used = |socket| self.port_pairs.get(self.view_place(socket));
        let views = sockets.into_iter().filter_map(used);
        views.map(|view| view.used).max().unwrap_or_default()
    }

    /// What came to a relay socket that is no TURN client's.
    ///
    /// # Errors
    /// [`NotForwarded`], to be counted; the sender is told nothing.
    pub(crate) fn forward_between_ports(
        &mut self,
        now: Millis,
        socket: SocketIndex,
        source: Addr,
        payload_len: usize,
    ) -> Result<Forward, NotForwarded> {
        let limits = self.limits;
        let place = self.view_place(socket);
        let view = self.port_pairs.get_mut(place);
        let view = view.ok_or(NotForwarded::NoRoute)?;
        if source.ip() != view.viewer || view.source.is_some_and(|known| known != source) {
            return Err(NotForwarded::NoPermission);
        }
        view.source = Some(source);
        view.used = now;
        let (twin, dialect) = (view.twin, view.dialect);
        let to = self.port_pairs.get(self.view_place(twin));
        let to = to
            .and_then(|view| view.source)
            .ok_or(NotForwarded::NoRoute)?;
        let view = self.port_pairs.get_mut(place);
        let view = view.ok_or(NotForwarded::NoRoute)?;
        view.rate.charge(now, limits, payload_len)?;
        Ok(Forward {
            route: Route { egress: twin, to },
            strip: 0,
            payload_len,
            framing: Framing::Raw,
            dont_fragment: false,
            service: Service::Dialect(dialect),
        })
    }
}
