//! One introduction: openers, connectivity checks, proof, and keeping the proven path. Sends a bounded number of small
//! packets to any address that has not proved itself, and none at all to addresses that a player cannot have.

mod address;
mod candidate;
mod guesses;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use rand::RngExt;
use rand::rngs::StdRng;

use super::event::{Transmit, Way};
use super::ledger::Ledger;
use super::path::DirectState;
use super::request::{write_check_answer, write_notice};
use super::strategy::{Attempt, Progress, Reason, Strategies, Strategy};
use crate::addr::Addr;
use crate::time::Millis;
use crate::wire::native::SeatHandle;
use crate::wire::stun::{Integrity, Message, TransactionId};
pub(super) use address::may_try;
use candidate::Candidate;
use guesses::Guesses;

/// Addresses that are tried for one peer.
pub const CANDIDATES_MAX: usize = 16;
/// TTLs of the openers: beyond the own NAT, short of the peer's.
const OPENER_TTLS: [u8; 4] = [2, 3, 4, 5];
const OPENER: u8 = 0xff;
/// Checks at the quick pace, and all.
const QUICK_CHECKS: u32 = 10;
const CHECKS: u32 = 20;
const QUICK_GAP_MS: u64 = 50;
const SLOW_GAP_MS: u64 = 500;
/// A check may answer a peer's check at once, but not within this time of the last one.
const TRIGGER_GAP_MS: u64 = 20;
/// Quiet after which the path is checked.
const KEEP_MS: u64 = 5_000;
/// Unanswered checks in a row that end the use of a path.
const KEEP_FAILURES: u32 = 3;
/// Checks that a failed path still gets.
const REVIVALS: u32 = 24;
/// The server's start time is not waited for longer than this.
pub(super) const START_WAIT_MAX_MS: u64 = 3_000;

/// The addresses of an introduction, by who vouches for them.
#[derive(Clone, Debug, Default)]
pub(super) struct Introduced {
    /// Seen by the server.
    pub(super) observed: Option<Addr>,
    /// Computed from what the peer says of its NAT.
    pub(super) predicted: Vec<Addr>,
    /// Claimed by the peer: on its own network, or forwarded to it.
    pub(super) reachable: Vec<Addr>,
    /// Seen by the server: an address of the peer's on a TURN server.
    pub(super) relayed: Option<Addr>,
    /// Whether this side has one.
    pub(super) own_turn: bool,
    /// The port near which to guess, if that is wanted.
    pub(super) guess_from: Option<u16>,
    pub(super) key: [u8; 16],
    /// Milliseconds from now to the common start.
    pub(super) start_in_ms: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Punch {
    key: [u8; 16],
    began: Millis,
    start: Millis,
    candidates: Vec<Candidate>,
    chosen: Option<usize>,
    guesses: Option<Guesses>,
    /// The peer's address on a TURN server, and whether that way was chosen.
    relayed: Option<Addr>,
    allows_turn: bool,
    /// By place in [`UDP_STRATEGIES`]: whether it had an address to try, and when it led to the peer.
    tried: [bool; UDP_STRATEGIES.len()],
    connected_at: [Option<Millis>; UDP_STRATEGIES.len()],
}

/// The strategies that this is about.
const UDP_STRATEGIES: [Strategy; 4] = [
    Strategy::Direct,
    Strategy::Reverse,
    Strategy::UdpPunch,
    Strategy::Turn,
];

/// What became of a message or a timeout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    Nothing,
    /// Checks have come to an end without a proof, just now.
    InVain,
    /// The path that was in use has failed, just now.
    Lost,
}

impl Punch {
    /// Begins at `now`; `previous` is the introduction that this one replaces.
    pub(super) fn new(
        now: Millis,
        introduced: &Introduced,
        chosen: Strategies,
        server: Addr,
        previous: Option<Self>,
        rng: &mut StdRng,
    ) -> Self {
        let start = now + introduced.start_in_ms.min(START_WAIT_MAX_MS);
        let observed = introduced.observed;
        let may_be_claimed =
            |addr: &Addr| addr.port() >= 1024 || observed.is_some_and(|o| o.port() == addr.port());
        let each = |addrs: &[Addr], strategy| {
            let addrs = addrs.iter().copied().filter(may_be_claimed);
            addrs
                .map(|addr| (Way::of(addr), strategy))
                .collect::<Vec<_>>()
        };
        let relayed = introduced.relayed;
        let own_turn = observed
            .iter()
            .chain(&relayed)
            .map(|addr| Way::through_turn(*addr));
        let by_turn = relayed
            .into_iter()
            .map(Way::of)
            .chain(own_turn.filter(|_| introduced.own_turn))
            .map(|way| (way, Strategy::Turn));
        let told = observed
            .map(|addr| (Way::of(addr), Strategy::UdpPunch))
            .into_iter()
            .chain(each(&introduced.reachable, Strategy::Direct))
            .chain(by_turn)
            .chain(each(&introduced.predicted, Strategy::UdpPunch));
        let mut punch = Self {
            key: introduced.key,
            began: now,
            start,
            candidates: Vec::new(),
            chosen: None,
            guesses: None,
            relayed,
            allows_turn: chosen.contains(Strategy::Turn),
            tried: UDP_STRATEGIES.map(|it| it == Strategy::Reverse && chosen.contains(it)),
            connected_at: [None; UDP_STRATEGIES.len()],
        };
        for (way, strategy) in told {
            if !chosen.contains(strategy)
                || punch.candidates.len() == CANDIDATES_MAX
                || punch.candidates.iter().any(|c| c.way == way)
                || !may_try(way.addr, server)
            {
                continue;
            }
            let mut candidate = Candidate::new(way, strategy, rng.random(), now);
            if strategy == Strategy::UdpPunch {
                candidate.openers = 0;
                candidate.next = Some(now);
            } else {
                candidate.next = Some(start);
            }
            punch.tried[place(strategy)] = true;
            punch.candidates.push(candidate);
        }
        if let (Some(observed), Some(port)) = (observed, introduced.guess_from)
            && chosen.contains(Strategy::UdpPunch)
            && may_try(observed, server)
        {
            let around = observed.with_port(port);
            punch.guesses = Some(Guesses::new(around, rng.random(), start));
        }
        if let Some(previous) = previous {
            punch.inherit(previous, now);
        }
        punch
    }

    /// Keeps what is proven, so that a path in use stays in use.
    fn inherit(&mut self, previous: Self, now: Millis) {
        for (i, old) in previous.candidates.into_iter().enumerate() {
            let in_use = previous.chosen == Some(i);
            let at = self.candidates.iter().position(|c| c.way == old.way);
            match at {
                Some(at) => {
                    let candidate = &mut self.candidates[at];
                    candidate.heard = old.heard || old.proven;
                    if in_use {
                        candidate.proven = true;
                        candidate.openers = OPENER_TTLS.len();
                        candidate.next = None;
                        candidate.data_out = old.data_out;
                        self.chosen = Some(at);
                        self.connected_at[place(candidate.strategy)] = Some(now);
                        self.end_guessing_for(old.strategy);
                    }
                }
                // The peer may still send from wherever it was heard.
                None if (in_use || old.heard) && self.candidates.len() < CANDIDATES_MAX => {
                    if in_use {
                        self.chosen = Some(self.candidates.len());
                        self.connected_at[place(old.strategy)] = Some(now);
                        self.end_guessing_for(old.strategy);
                    }
                    self.candidates.push(Candidate { next: None, ..old });
                }
                None => {}
            }
        }
    }

    /// What leads to the peer only by way of a TURN server leaves the guesses worth their while.
    fn end_guessing_for(&mut self, proven: Strategy) {
        if proven != Strategy::Turn {
            self.guesses = None;
        }
    }

    pub(super) fn state(&self) -> DirectState {
        if self.chosen.is_some() {
            DirectState::Proven
        } else if self
            .candidates
            .iter()
            .any(|c| !c.proven && c.next.is_some())
            || self.guesses.as_ref().is_some_and(|g| g.next().is_some())
        {
            DirectState::Trying
        } else {
            DirectState::None
        }
    }

    pub(super) const fn began(&self) -> Millis {
        self.began
    }

    /// The address to send data to, noting that it is done.
    pub(super) fn send_data(&mut self, now: Millis) -> Option<Addr> {
        let candidate = &mut self.candidates[self.chosen?];
        candidate.last_out = now;
        candidate.data_out = now;
        Some(candidate.way.addr)
    }

    /// Whether data from `from` are the peer's, noting that they came.
    pub(super) fn accepts_data(&mut self, now: Millis, from: Way) -> bool {
        let candidate = self.candidates.iter_mut().find(|c| c.way == from);
        candidate.is_some_and(|candidate| {
            let accepted = candidate.heard || candidate.proven;
            if accepted {
                candidate.last_in = now;
            }
            accepted
        })
    }

    /// The path in use.
    pub(super) fn in_use(&self) -> Option<Way> {
        self.chosen.map(|at| self.candidates[at].way)
    }

    /// A notice that the own side leaves the server, for the path in use.
    pub(super) fn notice(&self, id: TransactionId, own: SeatHandle) -> Option<Transmit> {
        Some(self.in_use()?.send(write_notice(id, own, &self.key)))
    }

    /// Whether `message` was written by somebody who knows the key of this pair.
    pub(super) fn verifies(&self, message: &Message<'_>) -> bool {
        message.verify_integrity(Integrity::Sha256Truncated, &self.key)
    }

    /// A check of the peer that passed integrity. Returns the answer to send, if the budget allows one.
    pub(super) fn on_check(
        &mut self,
        now: Millis,
        from: Way,
        id: TransactionId,
        server: Addr,
        ledger: &mut Ledger,
        rng: &mut StdRng,
    ) -> Option<Transmit> {
        let at = match self.candidates.iter().position(|c| c.way == from) {
            Some(at) => at,
            None if self.is_by_turn(from) && !self.allows_turn => return None,
            None if self.candidates.len() < CANDIDATES_MAX && may_try(from.addr, server) => {
                // Who is called where it sent nothing to is reached because the other called.
                let punches = self.candidates.iter().any(|c| c.openers > 0);
                let strategy = match punches && self.tried[place(Strategy::UdpPunch)] {
                    _ if self.is_by_turn(from) => Strategy::Turn,
                    true => Strategy::UdpPunch,
                    false => Strategy::Reverse,
                };
                self.candidates
                    .push(Candidate::new(from, strategy, rng.random(), now));
                self.candidates.len() - 1
            }
            None => return None,
        };
        let in_use = self.chosen.is_some();
        let candidate = &mut self.candidates[at];
        if !candidate.may_send(now, ledger) {
            return None;
        }
        candidate.heard = true;
        candidate.last_in = now;
        candidate.last_out = now;
        // The peer can reach us from there: see at once whether we reach it, or reach it again.
        if !candidate.proven || !in_use {
            let soon = now.max(candidate.last_check + TRIGGER_GAP_MS);
            candidate.next = Some(candidate.next.map_or(soon, |next| next.min(soon)));
        }
        Some(from.send(write_check_answer(id, from.addr, &self.key)))
    }

    fn is_by_turn(&self, way: Way) -> bool {
        way.through_turn || self.relayed == Some(way.addr)
    }

    /// An answer to a check. Returns whether it was one of ours, from the address that was checked.
    pub(super) fn on_answer(&mut self, now: Millis, from: Way, message: &Message<'_>) -> bool {
        let id = message.transaction_id();
        let known = self.candidates.iter().position(|c| c.way == from);
        let answers = known.is_some_and(|at| self.candidates[at].check_sent_at(id).is_some());
        let guessed = self
            .guesses
            .as_ref()
            .and_then(|guesses| guesses.answered_by(from, id));
        if (!answers && guessed.is_none()) || !self.verifies(message) {
            return false;
        }
        let at = match (known, guessed) {
            (Some(at), _) => at,
            (None, Some(prefix)) => {
                // A guess that is right takes the place of one that has led nowhere.
                let candidate = Candidate::new(from, Strategy::UdpPunch, prefix, now);
                if self.candidates.len() == CANDIDATES_MAX {
                    self.candidates.pop();
                }
                self.candidates.push(candidate);
                self.candidates.len() - 1
            }
            (None, None) => return false,
        };
        self.end_guessing_for(self.candidates[at].strategy);
        let candidate = &mut self.candidates[at];
        candidate.proven = true;
        let place = place(candidate.strategy);
        self.connected_at[place].get_or_insert(now);
        candidate.unanswered = 0;
        candidate.last_in = now;
        candidate.next = None;
        candidate.openers = OPENER_TTLS.len();
        let rank = rank(candidate.strategy);
        let in_use = self.chosen.map(|at| self.candidates[at].strategy);
        if in_use.is_none_or(|in_use| self::rank(in_use) < rank) {
            self.chosen = Some(at);
            // What the peer was not heard from is not needed any more, unless it is better. What it was heard from, it may have
            // chosen.
            for other in &mut self.candidates {
                let is_better = self::rank(other.strategy) > rank;
                if other.proven || !(other.heard || is_better) {
                    other.next = None;
                    other.openers = OPENER_TTLS.len();
                }
            }
        }
        true
    }

    pub(super) fn next_timeout(&self) -> Option<Millis> {
        let keep = self.chosen.map(|at| self.candidates[at].keep_at());
        self.candidates
            .iter()
            .filter_map(|c| c.next)
            .chain(self.guesses.as_ref().and_then(Guesses::next))
            .chain(keep)
            .min()
    }

    /// Sends what is due at `now`, as long as `out` holds fewer than `room` datagrams.
    pub(super) fn handle_timeout(
        &mut self,
        now: Millis,
        own: SeatHandle,
        room: usize,
        ledger: &mut Ledger,
        out: &mut VecDeque<Transmit>,
    ) -> Outcome {
        let mut outcome = Outcome::Nothing;
        if let Some(at) = self.chosen {
            outcome = self.keep(at, now, own, out);
        }
        let was_trying = self.state() == DirectState::Trying;
        if let Some(guesses) = &mut self.guesses {
            guesses.send(now, (own, &self.key), room, ledger, out);
        }
        for candidate in &mut self.candidates {
            if out.len() >= room {
                return outcome;
            }
            if candidate.next.is_none_or(|next| next > now) {
                continue;
            }
            while let Some(ttl) = OPENER_TTLS.get(candidate.openers)
                && candidate.next.is_some_and(|next| next <= now)
            {
                if candidate.may_send(now, ledger) {
                    out.push_back(Transmit {
                        ttl: Some(*ttl),
                        ..candidate.way.send(vec![OPENER])
                    });
                }
                candidate.openers += 1;
                candidate.next = Some(opener_at(self.began, self.start, candidate.openers));
            }
            if candidate.next.is_none_or(|next| next > now) {
                continue;
            }
            if candidate.proven {
                // It has failed since: look whether it has come back.
                candidate.unanswered = candidate.unanswered.saturating_add(1);
                candidate.next =
                    (candidate.unanswered < KEEP_FAILURES + REVIVALS).then(|| now + KEEP_MS);
            } else if !ledger.is_spent(now, candidate.way.addr) {
                candidate.next = match candidate.checks {
                    n if n < QUICK_CHECKS => Some(now + QUICK_GAP_MS),
                    n if n < CHECKS => Some(now + SLOW_GAP_MS),
                    _ => None,
                };
                if candidate.next.is_none() && !candidate.heard {
                    continue;
                }
            } else {
                candidate.next = None;
                continue;
            }
            if candidate.may_send(now, ledger) {
                out.push_back(candidate.check(now, &self.key, own));
            }
        }
        if was_trying && self.state() == DirectState::None {
            outcome = Outcome::InVain;
        }
        outcome
    }

    /// What became of the strategies that this is about.
    pub(super) fn report(&self, now: Millis) -> [Attempt; UDP_STRATEGIES.len()] {
        UDP_STRATEGIES.map(|strategy| {
            let place = place(strategy);
            let in_use = self.chosen.map(|at| self.candidates[at].strategy);
            let progress = match self.connected_at[place] {
                Some(at) if self.chosen.is_none() => Progress::Failed {
                    after_ms: now.since(at),
                    reason: Reason::Lost,
                },
                Some(at) => Progress::Connected {
                    after_ms: at.since(self.began),
                },
                None if !self.tried[place] => Progress::NotTried(Reason::NoAddress),
                None if self.state() == DirectState::Trying => Progress::Trying {
                    for_ms: now.since(self.began),
                },
                None => Progress::Failed {
                    after_ms: in_use
                        .and_then(|winner| self.connected_at[self::place(winner)])
                        .map_or(now, |at| at)
                        .since(self.began),
                    reason: Reason::NoAnswer,
                },
            };
            Attempt { strategy, progress }
        })
    }

    /// Looks after the path in use.
    fn keep(
        &mut self,
        at: usize,
        now: Millis,
        own: SeatHandle,
        out: &mut VecDeque<Transmit>,
    ) -> Outcome {
        let candidate = &mut self.candidates[at];
        if now < candidate.keep_at() {
            return Outcome::Nothing;
        }
        if candidate.unanswered >= KEEP_FAILURES {
            self.chosen = None;
            for candidate in self.candidates.iter_mut().filter(|c| c.proven) {
                candidate.next = Some(now);
            }
            return Outcome::Lost;
        }
        candidate.unanswered += 1;
        out.push_back(candidate.check(now, &self.key, own));
        Outcome::Nothing
    }
}

fn place(strategy: Strategy) -> usize {
    match strategy {
        Strategy::Direct => 0,
        Strategy::Reverse => 1,
        Strategy::Turn => 3,
        _ => 2,
    }
}

/// Which of two proven ways is used: the one that ranks higher, else the first.
const fn rank(strategy: Strategy) -> u8 {
    match strategy {
        Strategy::Direct => 2,
        Strategy::Turn => 0,
        _ => 1,
    }
}

/// When the opener of this number is due, or after the last the first check. The first one goes at once and dies behind the
/// nearest NAT. Those that come farther might come to the peer's, and a NAT that remembers strangers would spoil the
/// peer's port if the peer had not opened it; so they wait until the peer, too, must have heard of the introduction.
fn opener_at(began: Millis, start: Millis, number: usize) -> Millis {
    let wait = start.since(began);
    let twelfths = match number {
        0 => 0,
        1 => 8,
        2 => 9,
        3 => 10,
        _ => 12,
    };
    began + wait * twelfths / 12
}
