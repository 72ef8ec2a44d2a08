//! The sends of one turn, grouped into UDP_SEGMENT trains while they are staged.
//!
//! Datagrams of one flow (socket and destination) with equal lengths ride together; a shorter one
//! ends the train. Within a flow the order is kept, between flows the first datagram's place
//! counts. The flow table is direct-mapped and stamped, so finding a group costs one look and
//! starting a turn costs nothing; a collision only means a shorter train. It never touches the
//! bytes: segments are addresses that the backend vouches for.

use super::{SocketId, WireAddr};

/// Most segments of one train (UDP_MAX_SEGMENTS of kernels before 6.9).
pub(crate) const MAX_SEGMENTS: u32 = 64;
/// Most payload bytes of one train: an IPv4 packet less headers, with room to spare.
const MAX_TRAIN_BYTES: u32 = 65_500;
const FLOWS: usize = 1024;
const NO_MORE: u32 = u32::MAX;

/// Where one staged datagram lies, and the next one of its train.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) at: *const u8,
    pub(crate) len: u32,
    next: u32,
}

/// One or more datagrams for one destination.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Train {
    pub(crate) to: WireAddr,
    pub(crate) socket: SocketId,
    /// Length of every segment but the last, which may be shorter.
    pub(crate) segment_bytes: u32,
    pub(crate) total_bytes: u32,
    pub(crate) segments: u32,
    /// Never in fragments: one datagram, which is dropped if the path has no room for it.
    pub(crate) whole: bool,
    first: u32,
    last: u32,
    open: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    epoch: u32,
    train: u32,
}

#[derive(Debug)]
pub(crate) struct Trains {
    trains: Vec<Train>,
    segments: Vec<Segment>,
    flows: Box<[Flow; FLOWS]>,
    epoch: u32,
    capacity: usize,
}

impl Trains {
    /// Room for `capacity` datagrams.
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            trains: Vec::with_capacity(capacity),
            segments: Vec::with_capacity(capacity),
            flows: Box::new([Flow::default(); FLOWS]),
            epoch: 1,
            capacity,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.trains.is_empty()
    }

    /// The backend must flush before it pushes again.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.segments.len() == self.capacity
    }

    /// Stages a datagram; one that is to stay `whole` travels alone and never in fragments.
    #[inline]
    pub(crate) fn push(
        &mut self,
        socket: SocketId,
        to: WireAddr,
        at: *const u8,
        len: u32,
        whole: bool,
    ) {
        debug_assert!(!self.is_full());
        let segment = self.segments.len() as u32;
        self.segments.push(Segment {
            at,
            len,
            next: NO_MORE,
        });
        let mixed = (to.mix() ^ u64::from(socket.to_raw()).rotate_left(17))
            .wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let flow = &mut self.flows[(mixed >> 54) as usize];
        if flow.epoch == self.epoch {
            let train = &mut self.trains[flow.train as usize];
            if train.open
                && !whole
                && len <= train.segment_bytes
                && len > 0
                && train.total_bytes + len <= MAX_TRAIN_BYTES
                && train.socket == socket
                && train.to == to
            {
                self.segments[train.last as usize].next = segment;
                train.last = segment;
                train.segments += 1;
                train.total_bytes += len;
                train.open = len == train.segment_bytes && train.segments < MAX_SEGMENTS;
                return;
            }
        }
        *flow = Flow {
            epoch: self.epoch,
            train: self.trains.len() as u32,
        };
        self.trains.push(Train {
            to,
            socket,
            segment_bytes: len,
            total_bytes: len,
            segments: 1,
            whole,
            first: segment,
            last: segment,
            open: len > 0 && !whole,
        });
    }

    pub(crate) fn trains(&self) -> &[Train] {
        &self.trains
    }

    /// The datagrams of a train, in order.
    #[inline]
    pub(crate) fn segments(&self, train: &Train) -> impl Iterator<Item = (u32, Segment)> + '_ {
        let mut next = train.first;
        std::iter::from_fn(move || {
            let at = next;
            let segment = *self.segments.get(at as usize)?;
            next = segment.next;
            Some((at, segment))
        })
    }

    #[inline]
    pub(crate) fn segment(&self, index: u32) -> Segment {
        self.segments[index as usize]
    }

    /// Forgets everything; flows of before are not found any more.
    pub(crate) fn clear(&mut self) {
        self.trains.clear();
        self.segments.clear();
        self.epoch = self.epoch.wrapping_add(1);
        if self.epoch == 0 {
            self.flows.fill(Flow::default());
            self.epoch = 1;
        }
    }
}

const _: () = assert!(FLOWS == 1 << (64 - 54));

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    fn to(port: u16) -> WireAddr {
        WireAddr::from(SocketAddr::from(([127, 0, 0, 1], port)))
    }

    fn staged(pushes: &[(u16, u32)]) -> Vec<Vec<u32>> {
        let mut trains = Trains::new(4096);
        for &(port, len) in pushes {
            trains.push(SocketId::new(0, 0), to(port), std::ptr::null(), len, false);
        }
        let lens = |train| {
            trains
                .segments(train)
                .map(|(_, segment)| segment.len)
                .collect()
        };
        trains.trains().iter().map(lens).collect()
    }

    #[test]
    fn equal_lengths_ride_together_and_a_shorter_one_ends_the_train() {
        assert_eq!(
            staged(&[(1, 9), (2, 5), (1, 9), (1, 4), (1, 9)]),
            [vec![9, 9, 4], vec![5], vec![9]]
        );
    }

    #[test]
    fn what_must_stay_whole_travels_alone_and_in_order() {
        let mut trains = Trains::new(16);
        for is_whole in [false, true, true, false, false] {
            trains.push(SocketId::new(0, 0), to(1), std::ptr::null(), 5, is_whole);
        }
        let lens = trains
            .trains()
            .iter()
            .map(|train| (train.segments, train.whole));
        let expected = [(1, false), (1, true), (1, true), (2, false)];
        assert_eq!(lens.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_longer_datagram_starts_a_new_train() {
        assert_eq!(
            staged(&[(1, 5), (1, 9), (1, 5), (1, 5)]),
            [vec![5], vec![9, 5], vec![5]]
        );
    }

    #[test]
    fn empty_datagrams_travel_alone() {
        assert_eq!(
            staged(&[(1, 0), (1, 0), (1, 3), (1, 0), (1, 3)]),
            [vec![0], vec![0], vec![3], vec![0], vec![3]]
        );
    }

    #[test]
    fn trains_end_at_64_segments_and_65500_bytes() {
        let lens: Vec<_> = staged(&[(1, 10); 130]).iter().map(Vec::len).collect();
        assert_eq!(lens, [64, 64, 2]);
        let lens: Vec<_> = staged(&[(1, 1400); 50]).iter().map(Vec::len).collect();
        assert_eq!(lens, [46, 4]);
    }

    #[test]
    fn sockets_are_not_mixed_and_turns_are_not_either() {
        let mut trains = Trains::new(16);
        trains.push(SocketId::new(0, 0), to(1), std::ptr::null(), 5, false);
        trains.push(SocketId::new(1, 0), to(1), std::ptr::null(), 5, false);
        assert_eq!(trains.trains().len(), 2);
        trains.clear();
        trains.push(SocketId::new(0, 0), to(1), std::ptr::null(), 5, false);
        assert_eq!((trains.trains().len(), trains.trains()[0].segments), (1, 1));
    }
}
