//! A shard's streams by [`StreamId`]: places with generations, reused oldest first.
//!
//! It owns the sockets until a backend takes them back with [`StreamTable::free`]; it makes no system calls.

use std::collections::VecDeque;
use std::net::TcpStream;

use super::StreamId;
use super::send_queue::SendQueue;

/// One stream and what both backends remember of it. `extra` is the backend's own.
#[derive(Debug)]
pub(crate) struct StreamEntry<X> {
    pub(crate) socket: TcpStream,
    pub(crate) queue: SendQueue,
    /// The end was reported; nothing is received any more.
    pub(crate) ended: bool,
    /// An error ended it; nothing is sent any more.
    pub(crate) failed: bool,
    /// It is in the backend's list of streams to send from.
    pub(crate) listed: bool,
    pub(crate) extra: X,
}

#[derive(Debug)]
struct Place<X> {
    id: StreamId,
    /// False from closing on, while the backend still has to wind the stream down.
    live: bool,
    entry: Option<StreamEntry<X>>,
}

#[derive(Debug)]
pub(crate) struct StreamTable<X> {
    places: Vec<Place<X>>,
    free: VecDeque<u32>,
    open: u32,
    most_open: u32,
}

impl<X> StreamTable<X> {
    pub(crate) fn new(most_open: u32) -> Self {
        Self {
            places: Vec::new(),
            free: VecDeque::new(),
            open: 0,
            most_open,
        }
    }

    /// Streams that are live.
    pub(crate) fn open(&self) -> usize {
        self.open as usize
    }

    /// Gives the socket back when as many streams as may be are live.
    pub(crate) fn insert(&mut self, socket: TcpStream, extra: X) -> Result<StreamId, TcpStream> {
        let places = self.places.len() as u32;
        let all_used = places == StreamId::PLACES && self.free.is_empty();
        if self.open == self.most_open || all_used {
            return Err(socket);
        }
        let entry = Some(StreamEntry {
            socket,
            queue: SendQueue::default(),
            ended: false,
            failed: false,
            listed: false,
            extra,
        });
        // Places of streams that are wound down still count as used, so there may be more than streams.
        let reused = if places < self.most_open {
            None
        } else {
            self.free.pop_front()
        };
        if let Some(index) = reused {
            let place = &mut self.places[index as usize];
            place.live = true;
            place.entry = entry;
            self.open += 1;
            return Ok(place.id);
        }
        let id = StreamId::new(places, 0);
        self.places.push(Place {
            id,
            live: true,
            entry,
        });
        self.open += 1;
        Ok(id)
    }

    pub(crate) fn is_live(&self, id: StreamId) -> bool {
        self.places
            .get(id.index() as usize)
            .is_some_and(|place| place.live && place.id == id)
    }

    /// The entry of a live stream.
    pub(crate) fn get_mut(&mut self, id: StreamId) -> Option<&mut StreamEntry<X>> {
        self.places
            .get_mut(id.index() as usize)
            .filter(|place| place.live && place.id == id)
            .and_then(|place| place.entry.as_mut())
    }

    /// The entry of a stream that is live or being wound down.
    pub(crate) fn get_any_mut(&mut self, id: StreamId) -> Option<&mut StreamEntry<X>> {
        self.places
            .get_mut(id.index() as usize)
            .filter(|place| place.id == id)
            .and_then(|place| place.entry.as_mut())
    }

    /// Stops a stream from being live; its entry stays until [`StreamTable::free`]. False for a stale id.
    pub(crate) fn retire(&mut self, id: StreamId) -> bool {
        let live = self.is_live(id);
        if live {
            self.places[id.index() as usize].live = false;
            self.open -= 1;
        }
        live
    }

    /// Gives the place of a retired stream free and returns its entry.
    pub(crate) fn free(&mut self, id: StreamId) -> Option<StreamEntry<X>> {
        let place = self
            .places
            .get_mut(id.index() as usize)
            .filter(|place| place.id == id)?;
        debug_assert!(!place.live, "a live stream is retired first");
        let entry = place.entry.take()?;
        place.id = id.next_generation();
        self.free.push_back(id.index());
        Some(entry)
    }

    /// Every stream that is live or being wound down.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &StreamEntry<X>> {
        self.places.iter().filter_map(|place| place.entry.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_reused_place_has_another_id() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let socket = || TcpStream::connect(at).unwrap();
        let mut table = StreamTable::new(1);
        let first = table.insert(socket(), ()).unwrap();
        assert!(table.insert(socket(), ()).is_err());
        assert!(table.retire(first) && !table.retire(first));
        assert!(table.get_mut(first).is_none() && table.get_any_mut(first).is_some());
        // The first is still wound down, and keeps nobody out.
        let second = table.insert(socket(), ()).unwrap();
        assert_ne!(first.index(), second.index());
        assert!(table.free(first).is_some() && table.free(first).is_none());
        assert!(table.retire(second));
        let third = table.insert(socket(), ()).unwrap();
        assert_eq!(first.index(), third.index());
        assert_ne!(first, third);
        assert!(!table.is_live(first) && table.is_live(third));
        assert_eq!((table.open(), table.entries().count()), (1, 2));
    }
}
