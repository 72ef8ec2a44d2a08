//! What happened to a shard's streams and was not taken yet, in order. It makes no system calls.

use std::collections::VecDeque;
use std::net::SocketAddr;

use super::{
    IoStats, ListenerId, StreamBytes, StreamEvent, StreamId, StreamTable, TURN_DATAGRAMS, TurnStamp,
};

#[derive(Debug)]
enum Waiting {
    Accepted {
        listener: ListenerId,
        peer: SocketAddr,
    },
    /// The slot belongs to the event until it is taken.
    Received {
        slot: u32,
        len: u32,
    },
    Ended,
}

#[derive(Debug, Default)]
pub(crate) struct StreamEvents {
    waiting: VecDeque<(StreamId, Waiting)>,
    left_this_turn: usize,
}

impl StreamEvents {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn begin_turn(&mut self) {
        self.left_this_turn = TURN_DATAGRAMS;
    }

    pub(crate) fn accepted(&mut self, listener: ListenerId, stream: StreamId, peer: SocketAddr) {
        let event = Waiting::Accepted { listener, peer };
        self.waiting.push_back((stream, event));
    }

    pub(crate) fn received(&mut self, stream: StreamId, slot: u32, len: u32) {
        let event = Waiting::Received { slot, len };
        self.waiting.push_back((stream, event));
    }

    pub(crate) fn ended(&mut self, stream: StreamId) {
        self.waiting.push_back((stream, Waiting::Ended));
    }

    /// The next event of a stream that is still open. `borrow` gets each slot that may be filled again after this turn.
    pub(crate) fn next<X>(
        &mut self,
        table: &StreamTable<X>,
        stamp: TurnStamp,
        stats: &mut IoStats,
        mut borrow: impl FnMut(u32),
    ) -> Option<StreamEvent> {
        self.left_this_turn = self.left_this_turn.checked_sub(1)?;
        loop {
            let (stream, event) = self.waiting.pop_front()?;
            if let Waiting::Received { slot, .. } = event {
                borrow(slot);
            }
            if !table.is_live(stream) {
                continue;
            }
            return Some(match event {
                Waiting::Accepted { listener, peer } => StreamEvent::Accepted {
                    listener,
                    stream,
                    peer,
                },
                Waiting::Received { slot, len } => {
                    stats.stream_bytes_received += u64::from(len);
                    StreamEvent::Received {
                        stream,
                        bytes: StreamBytes::new(stamp, slot, len),
                    }
                }
                Waiting::Ended => StreamEvent::Ended { stream },
            });
        }
    }
}
