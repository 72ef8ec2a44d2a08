//! Channels (RFC 8656 section 12): numbers that stand for peers of one allocation. Two orders of one list, by peer for what
//! comes from outside and by number for what comes from the client.

use crate::addr::Addr;
use crate::time::Millis;
use crate::wire::channel_data::ChannelNumber;

/// Seconds that a binding lasts unless it is refreshed (RFC 8656 section 12).
pub const CHANNEL_SECS: u32 = 600;
/// Seconds for which a lapsed binding keeps its number and its peer from being bound anew, so that data under way
/// does not reach another peer (RFC 8656 section 12: a client waits five minutes).
pub const HOLD_SECS: u32 = 300;

#[derive(Clone, Copy, Debug)]
struct Binding {
    peer: Addr,
    number: ChannelNumber,
    until: Millis,
}

/// Why a channel cannot be bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotBound {
    /// The number is bound to another peer, or the peer to another number (error 400, RFC 8656 section 12.2).
    Conflict,
    /// There are as many as there may be (error 508).
    Full,
}

/// The channels of one allocation.
#[derive(Debug, Default)]
pub struct ChannelList {
    by_peer: Vec<Binding>,
    /// Channel number and its place in `by_peer`, in order of numbers.
    by_number: Vec<(ChannelNumber, u16)>,
}

impl ChannelList {
    /// The peer that a number stands for.
    #[inline]
    #[must_use]
    pub fn peer(&self, now: Millis, number: ChannelNumber) -> Option<Addr> {
        let at = self
            .by_number
            .binary_search_by_key(&number, |&(number, _)| number);
        let binding = self.by_peer[usize::from(self.by_number[at.ok()?].1)];
        (now < binding.until).then_some(binding.peer)
    }

    /// The number that stands for a peer.
    #[inline]
    #[must_use]
    pub fn number(&self, now: Millis, peer: Addr) -> Option<ChannelNumber> {
        self.binding(now, peer).map(|(number, _)| number)
    }

    /// The number that stands for a peer, and when it ceases to.
    #[inline]
    #[must_use]
    pub fn binding(&self, now: Millis, peer: Addr) -> Option<(ChannelNumber, Millis)> {
        let at = self
            .by_peer
            .binary_search_by_key(&peer, |binding| binding.peer);
        let binding = self.by_peer[at.ok()?];
        (now < binding.until).then_some((binding.number, binding.until))
    }

    /// Whether this binding could be made or refreshed now.
    ///
    /// # Errors
    /// Says why not.
    pub fn check(
        &mut self,
        now: Millis,
        number: ChannelNumber,
        peer: Addr,
        capacity: usize,
    ) -> Result<(), NotBound> {
        self.by_peer
            .retain(|binding| now < binding.until.plus_secs(HOLD_SECS));
        self.index();
        let same = |binding: &Binding| (binding.number == number, binding.peer == peer);
        match self.by_peer.iter().map(same).find(|same| same.0 || same.1) {
            Some((true, true)) => Ok(()),
            Some(_) => Err(NotBound::Conflict),
            None if self.by_peer.len() >= capacity => Err(NotBound::Full),
            None => Ok(()),
        }
    }

    /// Makes or refreshes a binding that [`ChannelList::check`] found possible.
    pub fn bind(&mut self, number: ChannelNumber, peer: Addr, until: Millis) {
        let binding = Binding {
            peer,
            number,
            until,
        };
        match self
            .by_peer
            .binary_search_by_key(&peer, |binding| binding.peer)
        {
            Ok(at) => self.by_peer[at] = binding,
            Err(at) => {
                // Most clients have one peer, and a vector would begin with room for four.
                if self.by_peer.is_empty() {
                    self.by_peer.reserve_exact(1);
                    self.by_number.reserve_exact(1);
                }
                self.by_peer.insert(at, binding);
            }
        }
        self.index();
    }

    fn index(&mut self) {
        self.by_number.clear();
        let places = self.by_peer.iter().zip(0u16..);
        self.by_number
            .extend(places.map(|(binding, at)| (binding.number, at)));
        self.by_number.sort_unstable();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(port: u16) -> Addr {
        Addr::new(std::net::SocketAddr::from(([192, 0, 2, 1], port)))
    }

    fn number(offset: u16) -> ChannelNumber {
        ChannelNumber::new(ChannelNumber::MIN + offset).unwrap()
    }

    #[test]
    fn both_directions_until_the_time() {
        let mut list = ChannelList::default();
        for offset in [5, 1, 3] {
            let (number, peer) = (number(offset), addr(1000 - offset));
            list.check(Millis(0), number, peer, 3).unwrap();
            list.bind(number, peer, Millis(100));
        }
        assert_eq!(list.peer(Millis(99), number(3)), Some(addr(997)));
        assert_eq!(list.number(Millis(99), addr(995)), Some(number(5)));
        assert_eq!(list.peer(Millis(100), number(3)), None);
        assert_eq!(list.number(Millis(100), addr(995)), None);
        assert_eq!(list.peer(Millis(0), number(2)), None);
        let full = list.check(Millis(0), number(2), addr(2), 3);
        assert_eq!(full, Err(NotBound::Full));
    }

    // RFC 8656 section 12.2: neither a bound number nor a bound peer is bound anew, and not for five minutes after.
    #[test]
    fn bindings_are_exclusive_and_held() {
        let mut list = ChannelList::default();
        list.bind(number(1), addr(1), Millis(0).plus_secs(CHANNEL_SECS));
        let conflict = Err(NotBound::Conflict);
        let end = Millis(0).plus_secs(CHANNEL_SECS + HOLD_SECS);
        for now in [Millis(0), Millis(end.0 - 1)] {
            assert_eq!(list.check(now, number(1), addr(2), 9), conflict);
            assert_eq!(list.check(now, number(2), addr(1), 9), conflict);
            assert_eq!(list.check(now, number(1), addr(1), 9), Ok(()));
        }
        assert_eq!(list.check(end, number(1), addr(2), 9), Ok(()));
    }
}
