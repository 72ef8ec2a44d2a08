//! A shard's sockets by [`SocketId`]: places with generations, reused oldest first and never at once.
//!
//! It owns the sockets until a backend takes them back with [`SocketTable::free`]; it makes no
//! system calls.

use std::collections::VecDeque;
use std::io;
use std::net::UdpSocket;

use super::SocketId;

/// Places that rest while there are others: what is still under way for a removed socket finds no other in its place.
const RESTING: usize = 1024;

/// One socket and what both backends remember of it. `extra` is the backend's own.
#[derive(Debug)]
pub(crate) struct SocketEntry<X> {
    pub(crate) socket: UdpSocket,
    /// Whether trains may leave through it.
    pub(crate) gso: bool,
    pub(crate) extra: X,
}

#[derive(Debug)]
struct Place<X> {
    id: SocketId,
    /// False from removal on, while the backend still has to wind the socket down.
    live: bool,
    entry: Option<SocketEntry<X>>,
}

#[derive(Debug)]
pub(crate) struct SocketTable<X> {
    places: Vec<Place<X>>,
    free: VecDeque<u32>,
    capacity: u32,
}

impl<X> SocketTable<X> {
    pub(crate) fn new(capacity: u32) -> Self {
        Self {
            places: Vec::new(),
            free: VecDeque::new(),
            capacity,
        }
    }

    pub(crate) fn insert(
        &mut self,
        socket: UdpSocket,
        gso: bool,
        extra: X,
    ) -> io::Result<SocketId> {
        let entry = Some(SocketEntry { socket, gso, extra });
        let is_full = self.places.len() >= self.capacity as usize;
        if is_full || self.free.len() > RESTING {
            let full = io::ErrorKind::StorageFull;
            let index = self.free.pop_front().ok_or(full)?;
            let place = &mut self.places[index as usize];
            place.live = true;
            place.entry = entry;
            return Ok(place.id);
        }
        let id = SocketId::new(self.places.len() as u32, 0);
        self.places.push(Place {
            id,
            live: true,
            entry,
        });
        Ok(id)
    }

    /// The entry of a live socket.
    #[inline]
    pub(crate) fn get(&self, id: SocketId) -> Option<&SocketEntry<X>> {
        self.places
            .get(id.index() as usize)
            .filter(|place| place.live && place.id == id)
            .and_then(|place| place.entry.as_ref())
    }

    /// The same, to change.
    #[inline]
    pub(crate) fn get_mut(&mut self, id: SocketId) -> Option<&mut SocketEntry<X>> {
        self.places
            .get_mut(id.index() as usize)
            .filter(|place| place.live && place.id == id)
            .and_then(|place| place.entry.as_mut())
    }

    #[inline]
    pub(crate) fn is_live(&self, id: SocketId) -> bool {
        self.places
            .get(id.index() as usize)
            .is_some_and(|place| place.live && place.id == id)
    }

    /// The entry of a socket that is live or being wound down.
    #[inline]
    pub(crate) fn get_any_mut(&mut self, id: SocketId) -> Option<&mut SocketEntry<X>> {
        self.places
            .get_mut(id.index() as usize)
            .filter(|place| place.id == id)
            .and_then(|place| place.entry.as_mut())
    }

    /// Stops a socket from being live; its entry stays until [`SocketTable::free`]. False for a
    /// stale id.
    pub(crate) fn retire(&mut self, id: SocketId) -> bool {
        let live = self.is_live(id);
        if live {
            self.places[id.index() as usize].live = false;
        }
        live
    }

    /// Gives the place of a retired socket free and returns its entry.
    pub(crate) fn free(&mut self, id: SocketId) -> Option<SocketEntry<X>> {
        let place = self
            .places
            .get_mut(id.index() as usize)
            .filter(|place| place.id == id)?;
        debug_assert!(!place.live, "a live socket is retired first");
        let entry = place.entry.take()?;
        place.id = SocketId::new(id.index(), (id.to_raw() >> SocketId::INDEX_BITS) + 1);
        self.free.push_back(id.index());
        Some(entry)
    }

    /// Every socket that is live or being wound down.
    pub(crate) fn ids(&self) -> impl Iterator<Item = SocketId> + '_ {
        self.places
            .iter()
            .filter(|place| place.entry.is_some())
            .map(|place| place.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket() -> UdpSocket {
        UdpSocket::bind("127.0.0.1:0").unwrap()
    }

    #[test]
    fn places_rest_before_they_are_reused() {
        let mut table = SocketTable::new(u32::MAX);
        for _ in 0..3 * RESTING {
            let id = table.insert(socket(), true, ()).unwrap();
            table.retire(id);
            table.free(id);
        }
        assert_eq!(table.places.len(), RESTING + 1);
    }

    #[test]
    fn a_reused_place_has_another_id() {
        let mut table = SocketTable::new(1);
        let first = table.insert(socket(), true, ()).unwrap();
        let full = table.insert(socket(), true, ()).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        assert!(table.retire(first));
        assert!(!table.retire(first));
        assert!(table.get(first).is_none());
        assert!(table.get_any_mut(first).is_some());
        assert!(table.free(first).is_some());
        let second = table.insert(socket(), true, ()).unwrap();
        assert_ne!(first, second);
        assert_eq!(first.index(), second.index());
        assert!(table.get(first).is_none());
        assert!(table.free(first).is_none());
        assert!(table.get(second).is_some());
    }
}
