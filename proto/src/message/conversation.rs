//! Both directions with one peer: tags that tell its lives apart, acknowledgements, peer checks. Never looks at another peer.

use super::frame::{self, Chunk, Header};
use super::receiver::{Received, Receiver, Verdict};
use super::round_trip::RoundTrip;
use super::sender::{Fate, Sender};
use super::{ACKNOWLEDGE_MS, MessageId, NotSent, Service};
use crate::agent::DATAGRAM_MAX;
use crate::time::Millis;

/// Checks until the peer has answered for the first time come so fast, milliseconds, ...
const HELLO_MS: u64 = 100;
/// ... for so long after the beginning.
const HELLO_FOR_MS: u64 = 3_000;
/// Checks per dead time, and per dead time once one has not been answered in its time.
const CHECKS: u64 = 5;
const ANXIOUS_CHECKS: u64 = 20;
/// A frame that answers a stranger's tag comes at most so often, milliseconds.
const STRANGER_MS: u64 = 50;

/// What a conversation tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Change {
    Silent,
    Back,
    Restarted,
}

#[derive(Debug)]
pub(super) struct Conversation {
    own_tag: u32,
    /// 0 until the peer has told it.
    peer_tag: u32,
    /// The tag of the peer's life before this one, of which late frames may come.
    former_tag: u32,
    sender: Sender,
    receiver: Receiver,
    round_trip: RoundTrip,
    dead_after_ms: u64,
    began: Millis,
    heard: Millis,
    silent: bool,
    checked: Option<Millis>,
    /// The number of the last PING, until it is answered.
    asked: Option<(u32, Millis)>,
    next_ping: u32,
    pong: Option<u32>,
    /// A tag that is not the peer's as far as is known: it is told the own one.
    stranger: Option<u32>,
    stranger_answered: Option<Millis>,
    acknowledge_at: Option<Millis>,
    unacknowledged: u8,
    told_window: u16,
    changes: [Option<Change>; 3],
}

impl Conversation {
    pub(super) fn new(now: Millis, own_tag: u32, dead_after_ms: u64) -> Self {
        Self {
            own_tag,
            peer_tag: 0,
            former_tag: 0,
            sender: Sender::new(),
            receiver: Receiver::default(),
            round_trip: RoundTrip::default(),
            dead_after_ms,
            began: now,
            heard: now,
            silent: false,
            checked: None,
            asked: None,
            next_ping: 1,
            pong: None,
            stranger: None,
            stranger_answered: None,
            acknowledge_at: None,
            unacknowledged: 0,
            told_window: 0,
            changes: [None; 3],
        }
    }

    pub(super) fn send(
        &mut self,
        now: Millis,
        id: MessageId,
        data: &[u8],
        service: Service,
    ) -> Result<(), NotSent> {
        self.sender.send(now, id, data, service)
    }

    pub(super) fn has_news(&self) -> bool {
        self.receiver.has_ready()
            || self.sender.has_fates()
            || self.changes.iter().any(Option::is_some)
    }

    pub(super) fn take_received(&mut self) -> Option<Received> {
        self.receiver.take()
    }

    pub(super) fn take_fate(&mut self) -> Option<Fate> {
        self.sender.take_fate()
    }

    pub(super) fn take_change(&mut self) -> Option<Change> {
        self.changes.iter_mut().find_map(Option::take)
    }

    /// A message that was not even queued.
    pub(super) fn not_taken(&mut self, id: MessageId) {
        self.sender.note(Fate::Expired(id));
    }

    pub(super) fn abandon(&mut self) -> impl Iterator<Item = MessageId> + use<> {
        self.sender.abandon()
    }

    pub(super) fn round_trip_ms(&self) -> Option<u64> {
        self.round_trip.smoothed_ms()
    }

    pub(super) const fn is_silent(&self) -> bool {
        self.silent
    }

    /// Notes a change in its slot: whoever does not take them loses repetitions, not their order's end.
    fn change(&mut self, change: Change) {
        let slot = match change {
            Change::Restarted => 0,
            Change::Silent => 1,
            Change::Back => 2,
        };
        // Silent and back that nobody has heard of cancel each other.
        if change == Change::Back && self.changes[1].take().is_some() {
            return;
        }
        if change == Change::Silent && self.changes[2].take().is_some() {
            return;
        }
        self.changes[slot] = Some(change);
    }

    /// Takes a frame from the peer. Returns whether it was sound.
    pub(super) fn handle(&mut self, now: Millis, datagram: &[u8]) -> bool {
        let Some((header, mut chunks)) = frame::parse(datagram) else {
            return false;
        };
        if header.to != self.own_tag {
            // Whoever does not know the own tag is told it. Nothing else is believed: the frame may be from a former life of
            // the peer, or for one of this side, or not from the peer at all.
            let recently = |at: Millis| now.since(at) < STRANGER_MS;
            if !self.stranger_answered.is_some_and(recently) {
                self.stranger = Some(header.from);
            }
            return true;
        }
        if header.from == self.former_tag {
            return true;
        }
        if header.from != self.peer_tag {
            if self.peer_tag != 0 {
                self.restart(now);
            }
            self.former_tag = self.peer_tag;
            self.peer_tag = header.from;
        }
        self.heard = now;
        if self.silent {
            self.silent = false;
            self.change(Change::Back);
        }
        self.sender.on_header(now, &header, &mut self.round_trip);
        for chunk in &mut chunks {
            match chunk {
                Chunk::Data(data) => {
                    let verdict = self.receiver.on_data(&data);
                    if data.reliable {
                        self.unacknowledged = self.unacknowledged.saturating_add(1);
                        let at_once = self.unacknowledged >= 2
                            || verdict != Verdict::Accepted
                            || self.receiver.received() != 0;
                        let at = if at_once { now } else { now + ACKNOWLEDGE_MS };
                        self.acknowledge_at =
                            Some(self.acknowledge_at.map_or(at, |other| other.min(at)));
                    }
                }
                Chunk::Ping(number) => self.pong = Some(number),
                Chunk::Pong(number) => {
                    if let Some((asked, at)) = self.asked
                        && asked == number
                    {
                        self.asked = None;
                        self.round_trip.sample(now.since(at));
                    }
                }
            }
        }
        !chunks.is_malformed()
    }

    /// The peer has begun anew and knows nothing of what was before.
    fn restart(&mut self, now: Millis) {
        let lost: Vec<MessageId> = self.abandon().collect();
        self.sender = Sender::new();
        lost.into_iter()
            .for_each(|id| self.sender.note(Fate::Expired(id)));
        self.receiver.restart();
        self.acknowledge_at = None;
        self.asked = None;
        self.checked = None;
        self.began = now;
        self.change(Change::Restarted);
    }

    fn check_interval_ms(&self, now: Millis) -> u64 {
        let unmet = self.peer_tag == 0;
        let usual = self.dead_after_ms / CHECKS;
        if unmet && now.since(self.began) < HELLO_FOR_MS {
            HELLO_MS.min(usual)
        } else if !self.silent && now.since(self.heard) > usual {
            self.dead_after_ms / ANXIOUS_CHECKS
        } else {
            usual
        }
    }

    fn check_due(&self, now: Millis) -> Millis {
        self.checked
            .map_or(now, |at| at + self.check_interval_ms(now).max(1))
    }

    pub(super) fn next_timeout(&self, now: Millis) -> Millis {
        if self.wants_to_send(now) {
            return now;
        }
        let mut next = self.check_due(now);
        if !self.silent {
            next = next.min(self.heard + self.dead_after_ms);
        }
        next = self.acknowledge_at.map_or(next, |at| next.min(at));
        self.sender
            .next_timeout(self.round_trip)
            .map_or(next, |at| next.min(at))
    }

    fn wants_to_send(&self, now: Millis) -> bool {
        self.stranger.is_some()
            || (self.peer_tag != 0
                && (self.pong.is_some()
                    || self.sender.wants_to_send()
                    || self.acknowledge_at.is_some_and(|at| at <= now)
                    || (self.told_window == 0 && self.receiver.window() > 0)))
            || self.check_due(now) <= now
    }

    pub(super) fn on_timeout(&mut self, now: Millis) {
        self.sender.on_timeout(now, self.round_trip);
        if !self.silent && now.since(self.heard) >= self.dead_after_ms {
            self.silent = true;
            self.change(Change::Silent);
        }
    }

    /// Writes the next frame into `out`, if there is one to send.
    pub(super) fn transmit(&mut self, now: Millis, out: &mut Vec<u8>) -> bool {
        if let Some(stranger) = self.stranger.take() {
            self.stranger_answered = Some(now);
            frame::begin(out, &self.header(stranger));
            return true;
        }
        if !self.wants_to_send(now) {
            return false;
        }
        frame::begin(out, &self.header(self.peer_tag));
        if self.check_due(now) <= now {
            self.checked = Some(now);
            let number = self.next_ping;
            self.next_ping = number.wrapping_add(1);
            self.asked = Some((number, now));
            frame::push(out, &Chunk::Ping(number));
        }
        if self.peer_tag != 0 {
            if let Some(number) = self.pong.take() {
                frame::push(out, &Chunk::Pong(number));
            }
            let room = DATAGRAM_MAX - out.len();
            self.sender.fill(now, room, |chunk| frame::push(out, chunk));
            self.acknowledge_at = None;
            self.unacknowledged = 0;
            self.told_window = self.receiver.window();
        }
        debug_assert!(out.len() <= DATAGRAM_MAX);
        true
    }

    fn header(&self, to: u32) -> Header {
        let known = to != 0 && to == self.peer_tag;
        Header {
            window: self.receiver.window(),
            to,
            from: self.own_tag,
            cumulative: if known { self.receiver.cumulative() } else { 0 },
            received: if known { self.receiver.received() } else { 0 },
        }
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.receiver.held() + self.sender.queued()
    }

    #[cfg(test)]
    pub(super) const fn tags(&self) -> (u32, u32) {
        (self.own_tag, self.peer_tag)
    }
}
