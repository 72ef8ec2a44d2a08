//! What goes to one peer: messages become fragments, each reliable one sent until it is acknowledged or its message has
//! expired. Holds at most what its limits say.

use std::collections::{BTreeMap, VecDeque};

use super::frame::{Chunk, DATA_HEAD_LEN, Data, FRAGMENT_MAX, Header};
use super::round_trip::RoundTrip;
use super::{MessageId, NotSent, Service, WINDOW};
use crate::time::Millis;

/// Bytes of reliable messages that may wait for their acknowledgement; of unreliable ones that may wait to be sent.
const QUEUE_MAX: usize = 1024 * 1024;
/// What each fragment counts beside its data.
const QUEUE_EACH: usize = 64;
/// An unreliable message that could not be sent for so long is dropped, milliseconds.
const UNRELIABLE_LIFETIME_MS: u64 = 1_000;
/// So many later fragments acknowledged, and one before them is lost (RFC 9002 section 6.1.1 uses the same number).
const REORDER_MAX: u64 = 3;
/// Ends of messages that may wait for the owner.
const FATES_MAX: usize = 4_096;
/// Fragments under way: at the beginning, and at least.
const CONGESTION_INITIAL: u32 = 16;
const CONGESTION_MIN: u32 = 6;
/// The congestion window is counted in these parts of a fragment.
const PARTS: u32 = 64;

/// What became of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    Acknowledged(MessageId),
    Expired(MessageId),
}

#[derive(Debug)]
struct Fragment {
    message: u32,
    index: u8,
    count: u8,
    order: Option<u16>,
    bytes: Vec<u8>,
    sends: u32,
    sent_at: Millis,
    /// Counts transmissions: what is sent later has a higher one.
    serial: u64,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// To be sent, for the first time or again.
    Due,
    UnderWay,
    Acknowledged,
}

#[derive(Debug)]
struct Pending {
    id: MessageId,
    unacknowledged: u8,
    deadline: Option<Millis>,
    void: bool,
}

#[derive(Debug)]
struct Unreliable {
    message: u32,
    ordered: bool,
    deadline: Millis,
    data: Vec<u8>,
    next_index: u8,
}

#[derive(Debug)]
pub(super) struct Sender {
    /// The number of the first fragment in `fragments`: all before it are acknowledged.
    base: u32,
    fragments: VecDeque<Fragment>,
    pending: BTreeMap<u32, Pending>,
    unreliable: VecDeque<Unreliable>,
    queued: usize,
    unreliable_queued: usize,
    next_message: u32,
    next_order: u16,
    next_serial: u64,
    /// The highest serial acknowledged.
    acknowledged: u64,
    /// What the peer takes beyond `base`.
    window: u16,
    /// Fragments that may be under way, in [`PARTS`].
    congestion: u32,
    threshold: u32,
    /// Losses of what was sent before this serial have been answered for.
    cut_before: u64,
    fates: VecDeque<Fate>,
}

impl Sender {
    pub(super) const fn new() -> Self {
        Self {
            base: 1,
            fragments: VecDeque::new(),
            pending: BTreeMap::new(),
            unreliable: VecDeque::new(),
            queued: 0,
            unreliable_queued: 0,
            next_message: 1,
            next_order: 0,
            next_serial: 1,
            acknowledged: 0,
            window: WINDOW,
            congestion: CONGESTION_INITIAL * PARTS,
            threshold: WINDOW as u32 * PARTS,
            cut_before: 0,
            fates: VecDeque::new(),
        }
    }

    /// Keeps what became of a message for the owner; the oldest go if it does not ask.
    pub(super) fn note(&mut self, fate: Fate) {
        if self.fates.len() == FATES_MAX {
            self.fates.pop_front();
        }
        self.fates.push_back(fate);
    }

    pub(super) fn has_fates(&self) -> bool {
        !self.fates.is_empty()
    }

    pub(super) fn take_fate(&mut self) -> Option<Fate> {
        self.fates.pop_front()
    }

    /// Takes a message whose length the caller has checked.
    pub(super) fn send(
        &mut self,
        now: Millis,
        id: MessageId,
        data: &[u8],
        service: Service,
    ) -> Result<(), NotSent> {
        let message = self.next_message;
        if !service.reliable {
            let lifetime = service
                .lifetime_ms
                .map_or(UNRELIABLE_LIFETIME_MS, u64::from);
            while self.unreliable_queued + data.len() > QUEUE_MAX
                && let Some(oldest) = self.unreliable.pop_front()
            {
                self.unreliable_queued -= oldest.data.len() + QUEUE_EACH;
            }
            self.next_message = message.wrapping_add(1);
            self.unreliable_queued += data.len() + QUEUE_EACH;
            self.unreliable.push_back(Unreliable {
                message,
                ordered: service.ordered,
                deadline: now + lifetime,
                data: data.to_vec(),
                next_index: 0,
            });
            return Ok(());
        }
        let count = data.len().div_ceil(FRAGMENT_MAX).max(1);
        let cost = data.len() + count * QUEUE_EACH;
        if self.queued + cost > QUEUE_MAX {
            return Err(NotSent::Full);
        }
        self.queued += cost;
        self.next_message = message.wrapping_add(1);
        let order = service.ordered.then_some(self.next_order);
        if order.is_some() {
            self.next_order = self.next_order.wrapping_add(1);
        }
        let count = u8::try_from(count).unwrap_or(u8::MAX);
        for index in 0..count {
            let from = usize::from(index) * FRAGMENT_MAX;
            let to = data.len().min(from + FRAGMENT_MAX);
            self.fragments.push_back(Fragment {
                message,
                index,
                count,
                order,
                bytes: data[from..to].to_vec(),
                sends: 0,
                sent_at: now,
                serial: 0,
                state: State::Due,
            });
        }
        self.pending.insert(
            message,
            Pending {
                id,
                unacknowledged: count,
                deadline: service.lifetime_ms.map(|ms| now + u64::from(ms)),
                void: false,
            },
        );
        Ok(())
    }

    fn under_way(&self) -> usize {
        self.fragments
            .iter()
            .filter(|f| f.state == State::UnderWay)
            .count()
    }

    /// Where the next fragment to send is, if one may be sent now.
    fn next_due(&self) -> Option<usize> {
        let reach = usize::from(self.window.min(WINDOW));
        let at = self
            .fragments
            .iter()
            .take(reach)
            .position(|f| f.state == State::Due)?;
        let allowed = usize::try_from(self.congestion / PARTS).unwrap_or(usize::MAX);
        // What is sent again takes the place of what was lost.
        (self.fragments[at].sends > 0 || self.under_way() < allowed).then_some(at)
    }

    pub(super) fn wants_to_send(&self) -> bool {
        !self.unreliable.is_empty() || self.next_due().is_some()
    }

    /// Hands the next fragments that fit into `room` bytes to `push`. Returns whether there were any.
    pub(super) fn fill(
        &mut self,
        now: Millis,
        mut room: usize,
        mut push: impl FnMut(&Chunk<'_>),
    ) -> bool {
        let mut any = false;
        while let Some(at) = self.next_due() {
            let fragment = &mut self.fragments[at];
            let void = self.pending.get(&fragment.message).is_none_or(|p| p.void);
            let bytes: &[u8] = if void { &[] } else { &fragment.bytes };
            if DATA_HEAD_LEN + bytes.len() > room {
                return any;
            }
            room -= DATA_HEAD_LEN + bytes.len();
            push(&Chunk::Data(Data {
                reliable: true,
                ordered: fragment.order.is_some(),
                void,
                message: fragment.message,
                number: self.base.wrapping_add(u32::try_from(at).unwrap_or(0)),
                index: fragment.index,
                count: fragment.count,
                order: fragment.order.unwrap_or(0),
                bytes,
            }));
            any = true;
            fragment.state = State::UnderWay;
            fragment.sends = fragment.sends.saturating_add(1);
            fragment.sent_at = now;
            fragment.serial = self.next_serial;
            self.next_serial += 1;
        }
        while let Some(first) = self.unreliable.front_mut() {
            let count = first.data.len().div_ceil(FRAGMENT_MAX).max(1);
            let from = usize::from(first.next_index) * FRAGMENT_MAX;
            let to = first.data.len().min(from + FRAGMENT_MAX);
            if DATA_HEAD_LEN + (to - from) > room {
                return any;
            }
            room -= DATA_HEAD_LEN + (to - from);
            push(&Chunk::Data(Data {
                reliable: false,
                ordered: first.ordered,
                void: false,
                message: first.message,
                number: 0,
                index: first.next_index,
                count: u8::try_from(count).unwrap_or(u8::MAX),
                order: 0,
                bytes: &first.data[from..to],
            }));
            any = true;
            first.next_index += 1;
            if usize::from(first.next_index) == count {
                self.unreliable_queued -= first.data.len() + QUEUE_EACH;
                self.unreliable.pop_front();
            }
        }
        any
    }

    /// Takes what a frame acknowledges. Numbers that were never sent acknowledge nothing.
    pub(super) fn on_header(&mut self, now: Millis, header: &Header, round_trip: &mut RoundTrip) {
        let passed = header.cumulative.wrapping_sub(self.base.wrapping_sub(1));
        let passed = usize::try_from(passed).unwrap_or(usize::MAX);
        if passed > self.fragments.len() || self.fragments.range(..passed).any(|f| f.sends == 0) {
            // An old frame that was overtaken, or nonsense.
            return;
        }
        self.window = header.window;
        let mut sample = None;
        for at in 0..self.fragments.len().min(passed + 64) {
            let arrived = at < passed || header.received & (1 << (at - passed)) != 0;
            let fragment = &mut self.fragments[at];
            if !arrived || fragment.state == State::Acknowledged || fragment.sends == 0 {
                continue;
            }
            fragment.state = State::Acknowledged;
            self.acknowledged = self.acknowledged.max(fragment.serial);
            // Which transmission an acknowledgement means is certain only if there was one (Karn).
            if fragment.sends == 1 {
                let took = now.since(fragment.sent_at);
                sample = Some(sample.map_or(took, |least: u64| least.min(took)));
            }
            let grow = if self.congestion < self.threshold {
                PARTS
            } else {
                PARTS * PARTS / self.congestion.max(1)
            };
            self.congestion = (self.congestion + grow.max(1)).min(u32::from(WINDOW) * PARTS);
            let message = fragment.message;
            self.count_down(message);
        }
        for _ in 0..passed {
            if let Some(fragment) = self.fragments.pop_front() {
                self.queued -= fragment.bytes.len() + QUEUE_EACH;
            }
            self.base = self.base.wrapping_add(1);
        }
        if let Some(sample) = sample {
            round_trip.sample(sample);
        }
        self.find_lost();
    }

    fn count_down(&mut self, message: u32) {
        let Some(pending) = self.pending.get_mut(&message) else {
            return;
        };
        pending.unacknowledged -= 1;
        if pending.unacknowledged == 0 {
            let (id, void) = (pending.id, pending.void);
            self.pending.remove(&message);
            if !void {
                self.note(Fate::Acknowledged(id));
            }
        }
    }

    fn find_lost(&mut self) {
        let mut lost = None;
        for fragment in &mut self.fragments {
            if fragment.state == State::UnderWay
                && fragment.serial + REORDER_MAX <= self.acknowledged
            {
                fragment.state = State::Due;
                lost = lost.max(Some(fragment.serial));
            }
        }
        if let Some(serial) = lost {
            self.cut(serial, 3, 4);
        }
    }

    /// Fewer fragments under way, once for all that were lost together.
    fn cut(&mut self, serial: u64, numerator: u32, denominator: u32) {
        if serial >= self.cut_before {
            self.cut_before = self.next_serial;
            self.congestion =
                (self.congestion / denominator * numerator).max(CONGESTION_MIN * PARTS);
            self.threshold = self.congestion;
        }
    }

    /// When [`Sender::on_timeout`] is due, not counting what may be sent at once.
    pub(super) fn next_timeout(&self, round_trip: RoundTrip) -> Option<Millis> {
        let repetitions = self
            .fragments
            .iter()
            .take(usize::from(WINDOW))
            .filter(|f| f.state == State::UnderWay)
            .map(|f| f.sent_at + round_trip.timeout_ms(f.sends));
        let deadlines = self
            .pending
            .values()
            .filter(|p| !p.void)
            .filter_map(|p| p.deadline);
        let unreliable = self.unreliable.iter().map(|u| u.deadline);
        repetitions.chain(deadlines).chain(unreliable).min()
    }

    pub(super) fn on_timeout(&mut self, now: Millis, round_trip: RoundTrip) {
        let mut expired = Vec::new();
        for pending in self.pending.values_mut() {
            if !pending.void && pending.deadline.is_some_and(|at| at <= now) {
                pending.void = true;
                expired.push(Fate::Expired(pending.id));
            }
        }
        expired.into_iter().for_each(|fate| self.note(fate));
        while self.unreliable.front().is_some_and(|u| u.deadline <= now)
            && let Some(late) = self.unreliable.pop_front()
        {
            self.unreliable_queued -= late.data.len() + QUEUE_EACH;
        }
        let mut lost = None;
        for fragment in self.fragments.iter_mut().take(usize::from(WINDOW)) {
            let due = fragment.sent_at + round_trip.timeout_ms(fragment.sends);
            if fragment.state == State::UnderWay && due <= now {
                fragment.state = State::Due;
                lost = lost.max(Some(fragment.serial));
            }
        }
        if let Some(serial) = lost {
            self.cut(serial, 1, 2);
        }
    }

    /// Gives up every reliable message, because the peer is gone or begins anew.
    pub(super) fn abandon(&mut self) -> impl Iterator<Item = MessageId> + use<> {
        let pending = std::mem::take(&mut self.pending);
        pending.into_values().filter(|p| !p.void).map(|p| p.id)
    }

    #[cfg(test)]
    pub(super) const fn queued(&self) -> usize {
        self.queued + self.unreliable_queued
    }
}
