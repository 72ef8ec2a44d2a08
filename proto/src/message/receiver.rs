//! What comes from one peer: fragments become messages, each delivered once. Holds at most what its limits say, whatever
//! the peer sends.

use std::collections::VecDeque;

use super::frame::Data;
use super::{MESSAGE_MAX, WINDOW};

/// Messages received and not yet taken by the owner: beyond so many bytes nothing more is accepted from the peer.
const UNREAD_MAX: usize = 256 * 1024;
/// What an empty message counts as.
const UNREAD_EACH: usize = 64;
/// Unreliable messages of several fragments that may be incomplete at a time.
const UNRELIABLE_PARTIAL_MAX: usize = 4;

/// A message as it came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Received {
    pub(super) message: u32,
    pub(super) reliable: bool,
    pub(super) data: Vec<u8>,
}

/// A message of which fragments are missing, or the turn.
#[derive(Debug)]
struct Partial {
    message: u32,
    /// The number of its first fragment.
    first: u32,
    count: u8,
    order: Option<u16>,
    void: bool,
    /// Bit i: fragment i is here.
    got: u64,
    pieces: Vec<Vec<u8>>,
}

impl Partial {
    fn new(data: &Data<'_>) -> Self {
        Self {
            message: data.message,
            first: data.number.wrapping_sub(u32::from(data.index)),
            count: data.count,
            order: data.ordered.then_some(data.order),
            void: false,
            got: 0,
            pieces: vec![Vec::new(); usize::from(data.count)],
        }
    }

    fn add(&mut self, data: &Data<'_>) {
        self.got |= 1 << data.index;
        self.void |= data.void;
        if !self.void {
            data.bytes
                .clone_into(&mut self.pieces[usize::from(data.index)]);
        }
    }

    const fn is_complete(&self) -> bool {
        self.got == u64::MAX >> (64 - self.count)
    }

    fn last(&self) -> u32 {
        self.first.wrapping_add(u32::from(self.count) - 1)
    }

    /// The message, unless it is void or longer than any may be.
    fn assemble(self, reliable: bool) -> Option<Received> {
        let len: usize = self.pieces.iter().map(Vec::len).sum();
        (!self.void && len <= MESSAGE_MAX).then(|| Received {
            message: self.message,
            reliable,
            data: self.pieces.concat(),
        })
    }
}

/// What became of a fragment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// It is new.
    Accepted,
    /// It was here already, or is too late to matter.
    Duplicate,
    /// There is no room for it; if it is reliable it comes again.
    Refused,
}

#[derive(Debug, Default)]
pub(super) struct Receiver {
    cumulative: u32,
    /// Bit i: fragment `cumulative` + 1 + i is here. Bit 0 is never set between calls.
    received: u64,
    /// In the order of their first fragments.
    partial: VecDeque<Partial>,
    next_order: u16,
    unreliable: Vec<Partial>,
    /// The newest unreliable message, and of those up to 127 before it which have been seen.
    newest: u32,
    seen: u128,
    last_sequenced: Option<u32>,
    unread: usize,
    ready: VecDeque<Received>,
}

impl Receiver {
    pub(super) const fn cumulative(&self) -> u32 {
        self.cumulative
    }

    pub(super) const fn received(&self) -> u64 {
        self.received
    }

    pub(super) const fn window(&self) -> u16 {
        if self.unread < UNREAD_MAX { WINDOW } else { 0 }
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub(super) fn take(&mut self) -> Option<Received> {
        let received = self.ready.pop_front()?;
        self.unread -= received.data.len() + UNREAD_EACH;
        Some(received)
    }

    /// Begins anew; what has been received stays.
    pub(super) fn restart(&mut self) {
        let (unread, ready) = (self.unread, std::mem::take(&mut self.ready));
        *self = Self {
            unread,
            ready,
            ..Self::default()
        };
    }

    fn deliver(&mut self, received: Option<Received>) {
        if let Some(received) = received {
            self.unread += received.data.len() + UNREAD_EACH;
            self.ready.push_back(received);
        }
    }

    pub(super) fn on_data(&mut self, data: &Data<'_>) -> Verdict {
        if data.reliable {
            self.on_reliable(data)
        } else {
            self.on_unreliable(data)
        }
    }

    fn on_reliable(&mut self, data: &Data<'_>) -> Verdict {
        let ahead = data.number.wrapping_sub(self.cumulative);
        if ahead == 0 || ahead > u32::MAX / 2 {
            return Verdict::Duplicate;
        }
        if ahead > u32::from(WINDOW) {
            return Verdict::Refused;
        }
        let bit = 1 << (ahead - 1);
        if self.received & bit != 0 {
            return Verdict::Duplicate;
        }
        if self.unread >= UNREAD_MAX {
            return Verdict::Refused;
        }
        self.received |= bit;
        let first = data.number.wrapping_sub(u32::from(data.index));
        let before = |one: u32, other: u32| other.wrapping_sub(one).wrapping_sub(1) < u32::MAX / 2;
        let at = self
            .partial
            .partition_point(|partial| before(partial.first, first));
        match self.partial.get_mut(at) {
            Some(partial)
                if partial.first == first
                    && partial.count == data.count
                    && partial.message == data.message =>
            {
                partial.add(data);
            }
            _ => {
                let mut partial = Partial::new(data);
                partial.add(data);
                self.partial.insert(at, partial);
            }
        }
        while self.received & 1 != 0 {
            self.received >>= 1;
            self.cumulative = self.cumulative.wrapping_add(1);
        }
        self.release();
        Verdict::Accepted
    }

    /// Delivers what is complete and has its turn, and forgets what can never be.
    fn release(&mut self) {
        let mut at = 0;
        while let Some(partial) = self.partial.get(at) {
            // All of an honest peer's ordered messages before this one have come by then.
            let passed = self.cumulative.wrapping_sub(partial.last()) < u32::MAX / 2;
            let has_turn = passed || partial.order.is_none_or(|order| order == self.next_order);
            let complete = partial.is_complete();
            if !(passed || complete && has_turn) {
                at += 1;
                continue;
            }
            let Some(partial) = self.partial.remove(at) else {
                break;
            };
            if !complete {
                continue;
            }
            if let Some(order) = partial.order {
                self.next_order = order.wrapping_add(1);
            }
            let received = partial.assemble(true);
            self.deliver(received);
        }
    }

    fn on_unreliable(&mut self, data: &Data<'_>) -> Verdict {
        let ahead = data.message.wrapping_sub(self.newest);
        if ahead != 0 && ahead < u32::MAX / 2 {
            self.seen = self.seen.checked_shl(ahead).unwrap_or(0);
            self.newest = data.message;
            let newest = self.newest;
            self.unreliable
                .retain(|partial| newest.wrapping_sub(partial.message) < u128::BITS);
        }
        let age = self.newest.wrapping_sub(data.message);
        if age >= u128::BITS || self.seen & (1 << age) != 0 {
            return Verdict::Duplicate;
        }
        if data.void || self.unread >= UNREAD_MAX {
            return Verdict::Refused;
        }
        let at = self
            .unreliable
            .iter()
            .position(|p| p.message == data.message);
        let at = at.unwrap_or_else(|| {
            if data.count > 1 && self.unreliable.len() == UNRELIABLE_PARTIAL_MAX {
                // Whose rest has not come by now is not worth waiting for.
                let oldest = self.unreliable.remove(0);
                self.note_seen(oldest.message);
            }
            self.unreliable.push(Partial::new(data));
            self.unreliable.len() - 1
        });
        let partial = &mut self.unreliable[at];
        if partial.count != data.count {
            return Verdict::Refused;
        }
        if partial.got & (1 << data.index) != 0 {
            return Verdict::Duplicate;
        }
        partial.add(data);
        if partial.is_complete() {
            let partial = self.unreliable.remove(at);
            self.note_seen(data.message);
            let too_late = data.ordered
                && self.last_sequenced.is_some_and(|last| {
                    data.message.wrapping_sub(last).wrapping_sub(1) >= u32::MAX / 2
                });
            if too_late {
                return Verdict::Duplicate;
            }
            if data.ordered {
                self.last_sequenced = Some(data.message);
            }
            let received = partial.assemble(false);
            self.deliver(received);
        }
        Verdict::Accepted
    }

    fn note_seen(&mut self, message: u32) {
        let age = self.newest.wrapping_sub(message);
        if age < u128::BITS {
            self.seen |= 1 << age;
        }
    }

    /// Bytes held, for tests of the bound.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        let partial = self.partial.iter().chain(&self.unreliable);
        let pieces: usize = partial.flat_map(|p| &p.pieces).map(Vec::len).sum();
        pieces + self.partial.len() + self.ready.iter().map(|r| r.data.len()).sum::<usize>()
    }
}
