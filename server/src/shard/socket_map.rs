//! The two names of each socket: the backend's [`SocketId`] and the protocol's [`SocketIndex`]. Either leads to the other by
//! one indexed read. It owns no socket.

use waypost_proto::forwarding::SocketIndex;

use crate::packet_io::SocketId;

/// Sockets by both names.
#[derive(Debug, Default)]
pub struct SocketMap {
    ids: Vec<Option<SocketId>>,
    indexes: Vec<Option<(SocketId, SocketIndex)>>,
}

impl SocketMap {
    /// The listeners, in the order of their indexes in the protocol; none where another shard has the only socket.
    ///
    /// # Panics
    /// With more than 65,535 of them.
    #[must_use]
    pub fn of_listeners(ids: &[Option<SocketId>]) -> Self {
        let mut map = Self::default();
        for (index, &id) in ids.iter().enumerate() {
            let index = u16::try_from(index).expect("a server has few listeners");
            if let Some(id) = id {
                map.insert(SocketIndex(index), id);
            }
        }
        map
    }

    /// What the protocol calls a socket.
    #[inline]
    #[must_use]
    pub fn index(&self, id: SocketId) -> Option<SocketIndex> {
        match self.indexes.get(id.index() as usize) {
            Some(&Some((current, index))) if current == id => Some(index),
            _ => None,
        }
    }

    /// What the backend calls a socket.
    #[inline]
    #[must_use]
    pub fn id(&self, index: SocketIndex) -> Option<SocketId> {
        self.ids.get(usize::from(index.0)).copied().flatten()
    }

    /// Names a socket.
    pub fn insert(&mut self, index: SocketIndex, id: SocketId) {
        put(&mut self.ids, usize::from(index.0), id);
        put(&mut self.indexes, id.index() as usize, (id, index));
    }

    /// Forgets a socket; returns what the backend calls it.
    pub fn remove(&mut self, index: SocketIndex) -> Option<SocketId> {
        let id = self.ids.get_mut(usize::from(index.0))?.take()?;
        if self.index(id).is_some() {
            self.indexes[id.index() as usize] = None;
        }
        Some(id)
    }
}

fn put<T>(places: &mut Vec<Option<T>>, at: usize, value: T) {
    if places.len() <= at {
        places.resize_with(at + 1, || None);
    }
    places[at] = Some(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_was_given_anew_is_not_found_by_the_old_one() {
        let (first, second) = (SocketId::new(3, 0), SocketId::new(3, 1));
        let mut map = SocketMap::of_listeners(&[Some(SocketId::new(0, 0)), Some(first)]);
        assert_eq!(map.index(first), Some(SocketIndex(1)));
        assert_eq!(map.remove(SocketIndex(1)), Some(first));
        assert_eq!(map.remove(SocketIndex(1)), None);
        map.insert(SocketIndex(9), second);
        assert_eq!(map.index(first), None);
        assert_eq!(map.index(second), Some(SocketIndex(9)));
        assert_eq!(map.id(SocketIndex(1)), None);
        assert_eq!(map.id(SocketIndex(9)), Some(second));
        assert_eq!(map.id(SocketIndex(10)), None);
    }
}
