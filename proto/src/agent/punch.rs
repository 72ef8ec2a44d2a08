//! One introduction: openers, connectivity checks, proof, and keeping the proven path. Sends a bounded number of small
//! packets to any address that has not proved itself, and none at all to addresses that a player cannot have.

use std::collections::VecDeque;
use std::net::IpAddr;

use rand::RngExt;
use rand::rngs::StdRng;

use super::event::Transmit;
use super::ledger::{GUESSES_PER_MINUTE, Ledger};
use super::path::DirectState;
use super::request::{write_check, write_check_answer, write_notice};
use super::strategy::{Attempt, Progress, Reason, Strategies, Strategy};
use crate::addr::Addr;
use crate::time::Millis;
use crate::wire::native::SeatHandle;
use crate::wire::stun::{Integrity, Message, TransactionId};

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
/// The same while data go out and nothing comes in.
const ONE_WAY_MS: u64 = 1_000;
/// How long an answer is waited for on a path that was good.
const KEEP_ANSWER_MS: u64 = 500;
/// Unanswered checks in a row that end the use of a path.
const KEEP_FAILURES: u32 = 3;
/// Checks that a failed path still gets.
const REVIVALS: u32 = 24;
/// The server's start time is not waited for longer than this.
pub(super) const START_WAIT_MAX_MS: u64 = 3_000;
/// Guessing begins so long after the checks, which may do without it. Milliseconds.
const GUESS_AFTER_MS: u64 = 250;
/// Guesses at a time, and between two times. Milliseconds.
const GUESSES_AT_A_TIME: u32 = 16;
const GUESS_GAP_MS: u64 = 20;
/// Checks whose answers are still told apart.
const OUTSTANDING: usize = 16;

/// The addresses of an introduction, by who vouches for them.
#[derive(Clone, Debug, Default)]
pub(super) struct Introduced {
    /// Seen by the server.
    pub(super) observed: Option<Addr>,
    /// Computed from what the peer says of its NAT.
    pub(super) predicted: Vec<Addr>,
    /// Claimed by the peer: on its own network, or forwarded to it.
    pub(super) reachable: Vec<Addr>,
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
    /// By place in [`UDP_STRATEGIES`]: whether it had an address to try, and when it led to the peer.
    tried: [bool; 3],
    connected_at: [Option<Millis>; 3],
}

/// The strategies that this is about.
const UDP_STRATEGIES: [Strategy; 3] = [Strategy::Direct, Strategy::Reverse, Strategy::UdpPunch];

/// Checks to ports that the peer's NAT may have given to its flow to us. Each port gets one at most.
#[derive(Clone, Debug)]
struct Guesses {
    /// The peer's public address and the port next to which the others are looked for.
    around: Addr,
    /// First bytes of the checks' transaction ids; the port follows.
    prefix: [u8; 8],
    made: u32,
    next: Option<Millis>,
}

impl Guesses {
    /// The port of the guess of this number: ever farther from the middle, on both sides.
    fn port(&self, number: u32) -> Option<u16> {
        let distance = i32::try_from(number / 2 + 1).ok()?;
        let side = if number.is_multiple_of(2) { 1 } else { -1 };
        let port = i32::from(self.around.port()) + side * distance;
        u16::try_from(port).ok().filter(|port| *port >= 1024)
    }

    fn id(&self, port: u16) -> TransactionId {
        let mut id = [0; 12];
        id[..8].copy_from_slice(&self.prefix);
        id[8..10].copy_from_slice(&port.to_be_bytes());
        TransactionId(id)
    }

    /// Whether an answer from `from` is to one of these.
    fn is_answered(&self, from: Addr, id: TransactionId) -> bool {
        self.made > 0 && from.ip() == self.around.ip() && id == self.id(from.port())
    }
}

#[derive(Clone, Debug)]
struct Candidate {
    addr: Addr,
    /// First bytes of its checks' transaction ids; a counter follows.
    prefix: [u8; 8],
    /// What it is to be counted as when it leads to the peer.
    strategy: Strategy,
    /// Checks sent.
    checks: u32,
    sent_at: [Millis; OUTSTANDING],
    last_check: Millis,
    next: Option<Millis>,
    /// Openers sent; those that need none count as sent.
    openers: usize,
    /// A check from there passed integrity, so data from there are the peer's.
    heard: bool,
    /// A check to there was answered.
    proven: bool,
    /// Unanswered checks in a row since it was proven.
    unanswered: u32,
    last_in: Millis,
    last_out: Millis,
    data_out: Millis,
}

impl Candidate {
    fn new(addr: Addr, strategy: Strategy, prefix: [u8; 8], now: Millis) -> Self {
        Self {
            addr,
            prefix,
            strategy,
            checks: 0,
            sent_at: [Millis(0); OUTSTANDING],
            last_check: Millis(0),
            next: None,
            openers: OPENER_TTLS.len(),
            heard: false,
            proven: false,
            unanswered: 0,
            last_in: now,
            last_out: now,
            data_out: Millis(0),
        }
    }

    /// Whether a packet may go there; if so, it is noted as sent.
    fn may_send(&self, now: Millis, ledger: &mut Ledger) -> bool {
        self.proven || ledger.spend(now, self.addr)
    }

    fn check_id(&self, number: u32) -> TransactionId {
        let mut id = [0; 12];
        id[..8].copy_from_slice(&self.prefix);
        id[8..].copy_from_slice(&number.to_be_bytes());
        TransactionId(id)
    }

    /// When the check with this id was sent, if it is one of the last ones.
    fn check_sent_at(&self, id: TransactionId) -> Option<Millis> {
        let (prefix, number) = id.0.split_at(8);
        let number = u32::from_be_bytes(number.try_into().ok()?);
        let age = self.checks.checked_sub(number)?;
        (prefix == self.prefix && age >= 1 && age as usize <= OUTSTANDING)
            .then(|| self.sent_at[number as usize % OUTSTANDING])
    }

    fn check(&mut self, now: Millis, key: &[u8; 16], own: SeatHandle) -> Transmit {
        let id = self.check_id(self.checks);
        self.sent_at[self.checks as usize % OUTSTANDING] = now;
        self.checks = self.checks.wrapping_add(1);
        self.last_check = now;
        self.last_out = now;
        Transmit {
            to: self.addr,
            ttl: None,
            bytes: write_check(id, own, key),
        }
    }

    /// When the path that is in use wants its next check.
    fn keep_at(&self) -> Millis {
        if self.unanswered > 0 {
            return self.last_check + KEEP_ANSWER_MS;
        }
        let idle = self.last_in.min(self.last_out) + KEEP_MS;
        if self.data_out > self.last_in {
            idle.min(self.last_in + ONE_WAY_MS)
        } else {
            idle
        }
    }
}

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
            addrs.map(|addr| (addr, strategy)).collect::<Vec<_>>()
        };
        let told = observed
            .map(|addr| (addr, Strategy::UdpPunch))
            .into_iter()
            .chain(each(&introduced.reachable, Strategy::Direct))
            .chain(each(&introduced.predicted, Strategy::UdpPunch));
        let mut punch = Self {
            key: introduced.key,
            began: now,
            start,
            candidates: Vec::new(),
            chosen: None,
            guesses: None,
            tried: [false, chosen.contains(Strategy::Reverse), false],
            connected_at: [None; 3],
        };
        for (addr, strategy) in told {
            if !chosen.contains(strategy)
                || punch.candidates.len() == CANDIDATES_MAX
                || punch.candidates.iter().any(|c| c.addr == addr)
                || !may_try(addr, server)
            {
                continue;
            }
            let mut candidate = Candidate::new(addr, strategy, rng.random(), now);
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
            punch.guesses = Some(Guesses {
                around: observed.with_port(port),
                prefix: rng.random(),
                made: 0,
                next: Some(start + GUESS_AFTER_MS),
            });
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
            let at = self.candidates.iter().position(|c| c.addr == old.addr);
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
                        self.guesses = None;
                        self.connected_at[place(candidate.strategy)] = Some(now);
                    }
                }
                // The peer may still send from wherever it was heard.
                None if (in_use || old.heard) && self.candidates.len() < CANDIDATES_MAX => {
                    if in_use {
                        self.chosen = Some(self.candidates.len());
                        self.guesses = None;
                        self.connected_at[place(old.strategy)] = Some(now);
                    }
                    self.candidates.push(Candidate { next: None, ..old });
                }
                None => {}
            }
        }
    }

    pub(super) fn state(&self) -> DirectState {
        if self.chosen.is_some() {
            DirectState::Proven
        } else if self
            .candidates
            .iter()
            .any(|c| !c.proven && c.next.is_some())
            || self.guesses.as_ref().is_some_and(|g| g.next.is_some())
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
        Some(candidate.addr)
    }

    /// Whether data from `from` are the peer's, noting that they came.
    pub(super) fn accepts_data(&mut self, now: Millis, from: Addr) -> bool {
        let candidate = self.candidates.iter_mut().find(|c| c.addr == from);
        candidate.is_some_and(|candidate| {
            let accepted = candidate.heard || candidate.proven;
            if accepted {
                candidate.last_in = now;
            }
            accepted
        })
    }

    /// The address of the path in use.
    pub(super) fn in_use(&self) -> Option<Addr> {
        self.chosen.map(|at| self.candidates[at].addr)
    }

    /// A notice that the own side leaves the server, for the path in use.
    pub(super) fn notice(&self, id: TransactionId, own: SeatHandle) -> Option<(Addr, Vec<u8>)> {
        Some((self.in_use()?, write_notice(id, own, &self.key)))
    }

    /// Whether `message` was written by somebody who knows the key of this pair.
    pub(super) fn verifies(&self, message: &Message<'_>) -> bool {
        message.verify_integrity(Integrity::Sha256Truncated, &self.key)
    }

    /// A check of the peer that passed integrity. Returns the answer to send, if the budget allows one.
    pub(super) fn on_check(
        &mut self,
        now: Millis,
        from: Addr,
        id: TransactionId,
        server: Addr,
        ledger: &mut Ledger,
        rng: &mut StdRng,
    ) -> Option<Transmit> {
        let at = match self.candidates.iter().position(|c| c.addr == from) {
            Some(at) => at,
            None if self.candidates.len() < CANDIDATES_MAX && may_try(from, server) => {
                // Who is called where it sent nothing to is reached because the other called.
                let punches = self.candidates.iter().any(|c| c.openers > 0);
                let strategy = match punches && self.tried[place(Strategy::UdpPunch)] {
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
        Some(Transmit {
            to: from,
            ttl: None,
            bytes: write_check_answer(id, from, &self.key),
        })
    }

    /// An answer to a check. Returns whether it was one of ours, from the address that was checked.
    pub(super) fn on_answer(&mut self, now: Millis, from: Addr, message: &Message<'_>) -> bool {
        let id = message.transaction_id();
        let known = self.candidates.iter().position(|c| c.addr == from);
        let answers = known.is_some_and(|at| self.candidates[at].check_sent_at(id).is_some());
        let guessed = self
            .guesses
            .as_ref()
            .filter(|guesses| guesses.is_answered(from, id))
            .map(|guesses| guesses.prefix);
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
        self.guesses = None;
        let candidate = &mut self.candidates[at];
        candidate.proven = true;
        let place = place(candidate.strategy);
        self.connected_at[place].get_or_insert(now);
        candidate.unanswered = 0;
        candidate.last_in = now;
        candidate.next = None;
        candidate.openers = OPENER_TTLS.len();
        let is_shortest = candidate.strategy == Strategy::Direct;
        let in_use = self.chosen.map(|at| self.candidates[at].strategy);
        if in_use.is_none() || (is_shortest && in_use != Some(Strategy::Direct)) {
            self.chosen = Some(at);
            // What the peer was not heard from is not needed any more, unless it is better. What it was heard from, it may have
            // chosen.
            for other in &mut self.candidates {
                let is_better = other.strategy == Strategy::Direct && !is_shortest;
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
            .chain(self.guesses.as_ref().and_then(|guesses| guesses.next))
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
        self.guess(now, own, room, ledger, out);
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
                        to: candidate.addr,
                        ttl: Some(*ttl),
                        bytes: vec![OPENER],
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
            } else if !ledger.is_spent(now, candidate.addr) {
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

    /// Sends the guesses that are due.
    fn guess(
        &mut self,
        now: Millis,
        own: SeatHandle,
        room: usize,
        ledger: &mut Ledger,
        out: &mut VecDeque<Transmit>,
    ) {
        let Some(guesses) = &mut self.guesses else {
            return;
        };
        if guesses.next.is_none_or(|next| next > now) {
            return;
        }
        guesses.next = Some(now + GUESS_GAP_MS);
        for _ in 0..GUESSES_AT_A_TIME {
            if out.len() >= room {
                return;
            }
            if guesses.made >= GUESSES_PER_MINUTE || !ledger.guess(now, guesses.around.ip()) {
                guesses.next = None;
                return;
            }
            if let Some(port) = guesses.port(guesses.made) {
                out.push_back(Transmit {
                    to: guesses.around.with_port(port),
                    ttl: None,
                    bytes: write_check(guesses.id(port), own, &self.key),
                });
            }
            guesses.made += 1;
        }
    }

    /// What became of the strategies that this is about.
    pub(super) fn report(&self, now: Millis) -> [Attempt; 3] {
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
        _ => 2,
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

/// Whether a player can have this address: unicast, of the server's family, not the server itself, and on this host's
/// loopback only if the server is there too.
pub(super) fn may_try(addr: Addr, server: Addr) -> bool {
    let special = match addr.ip() {
        IpAddr::V4(ip) => {
            ip.is_multicast() || ip.is_broadcast() || ip.octets()[0] == 0 || ip.octets()[0] >= 240
        }
        // A link-local address means nothing without a scope, which no message carries.
        IpAddr::V6(ip) => ip.is_multicast() || ip.is_unspecified() || ip.is_unicast_link_local(),
    };
    !special
        && addr.port() != 0
        && addr.is_ipv4() == server.is_ipv4()
        && addr != server
        && (!addr.ip().is_loopback() || server.ip().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::super::ledger::{BUDGET_PER_ADDRESS, BUDGET_PER_MINUTE};
    use super::*;
    use crate::wire::join_code::JoinCode;
    use crate::wire::native::SeatId;
    use rand::SeedableRng;
    use std::collections::HashMap;

    fn addr(text: &str) -> Addr {
        Addr::new(text.parse().unwrap())
    }

    fn own_seat() -> SeatHandle {
        SeatHandle {
            code: JoinCode::from_bits(1).unwrap(),
            id: SeatId {
                seat: 0,
                generation: 1,
            },
        }
    }

    /// A peer that has the key sends checks from ever new and from ever the same addresses, and answers nothing.
    #[test]
    fn a_hostile_peer_cannot_spend_more_than_the_budget() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut ledger = Ledger::new(Millis(0));
        let server = addr("198.51.100.1:3478");
        let own = own_seat();
        let introduced = Introduced {
            observed: Some(addr("203.0.113.1:5000")),
            reachable: vec![addr("192.168.0.1:5000"), addr("203.0.113.1:5002")],
            key: [7; 16],
            start_in_ms: u64::MAX,
            ..Introduced::default()
        };
        let mut punch = None;
        let mut out = VecDeque::new();
        let mut sent: HashMap<Addr, u32> = HashMap::new();
        for now in (0..9_000).map(Millis) {
            // Introduced again and again, which renews nothing.
            if now.0 % 1_000 == 0 {
                punch = Some(Punch::new(
                    now,
                    &introduced,
                    Strategies::ALL,
                    server,
                    punch.take(),
                    &mut rng,
                ));
            }
            let punch = punch.as_mut().unwrap();
            for from in [
                addr("203.0.113.1:5000"),
                addr("203.0.113.9:1").with_port(now.0 as u16 + 1),
            ] {
                let id = TransactionId([now.0 as u8; 12]);
                out.extend(punch.on_check(now, from, id, server, &mut ledger, &mut rng));
            }
            punch.handle_timeout(now, own, 64, &mut ledger, &mut out);
            for transmit in out.drain(..) {
                assert!(transmit.bytes.len() <= 100);
                *sent.entry(transmit.to).or_default() += 1;
            }
            assert!(punch.candidates.len() <= CANDIDATES_MAX);
            assert_ne!(punch.state(), DirectState::Proven);
        }
        assert!(sent.values().all(|n| *n <= BUDGET_PER_ADDRESS), "{sent:?}");
        assert!(sent[&addr("203.0.113.1:5000")] == BUDGET_PER_ADDRESS);
    }

    /// A server that has the key introduces ever new members, all of them at addresses of one victim.
    #[test]
    fn a_hostile_server_cannot_spend_more_than_the_budget_of_a_minute() {
        let mut rng = StdRng::seed_from_u64(4);
        let mut ledger = Ledger::new(Millis(0));
        let server = addr("198.51.100.1:3478");
        let own = own_seat();
        let victim = addr("203.0.113.1:5000");
        let mut sent: HashMap<Addr, u32> = HashMap::new();
        let mut out = VecDeque::new();
        let mut guesses = 0;
        let mut punches: VecDeque<Punch> = VecDeque::new();
        for now in (0..9_990).map(Millis) {
            let other = victim.with_port(1024 + now.0 as u16);
            let introduced = Introduced {
                observed: Some(victim),
                predicted: vec![other.with_port(20_000 + now.0 as u16)],
                reachable: vec![other],
                guess_from: Some(40_000),
                key: [7; 16],
                start_in_ms: 0,
            };
            let chosen = Strategies::ALL;
            punches.push_back(Punch::new(now, &introduced, chosen, server, None, &mut rng));
            // As many as a session has members.
            punches.truncate(254);
            for punch in &mut punches {
                punch.handle_timeout(now, own, 256, &mut ledger, &mut out);
            }
            for transmit in out.drain(..) {
                assert!(transmit.bytes.len() <= 100);
                if transmit.to.port() >= 39_000 {
                    guesses += 1;
                } else {
                    *sent.entry(transmit.to).or_default() += 1;
                }
            }
        }
        assert!(sent[&victim] <= BUDGET_PER_ADDRESS);
        assert!(sent.values().all(|n| *n <= BUDGET_PER_ADDRESS));
        assert!(sent.values().sum::<u32>() <= BUDGET_PER_MINUTE);
        assert!(guesses > 0 && guesses <= GUESSES_PER_MINUTE, "{guesses}");
    }

    #[test]
    fn addresses_that_no_player_can_have_are_not_tried() {
        let server = addr("198.51.100.1:3478");
        for (text, ok) in [
            ("203.0.113.1:5000", true),
            ("192.168.0.1:5000", true),
            ("127.0.0.1:5000", false),
            ("224.0.0.1:5000", false),
            ("255.255.255.255:5000", false),
            ("0.0.0.0:5000", false),
            ("203.0.113.1:0", false),
            ("198.51.100.1:3478", false),
            ("[2001:db8::1]:5000", false),
        ] {
            assert_eq!(may_try(addr(text), server), ok, "{text}");
        }
        assert!(may_try(addr("127.0.0.1:5000"), addr("127.0.0.1:3478")));
        assert!(may_try(addr("[::1]:5000"), addr("[::1]:3478")));
        assert!(!may_try(addr("[fe80::1]:5000"), addr("[2001:db8::1]:3478")));
    }

    #[test]
    fn an_answer_must_be_to_a_check_of_ours_and_from_where_it_went() {
        let mut rng = StdRng::seed_from_u64(2);
        let mut ledger = Ledger::new(Millis(0));
        let server = addr("198.51.100.1:3478");
        let peer = addr("203.0.113.1:5000");
        let own = own_seat();
        let introduced = Introduced {
            observed: Some(peer),
            key: [7; 16],
            ..Introduced::default()
        };
        let mut punch = Punch::new(
            Millis(0),
            &introduced,
            Strategies::ALL,
            server,
            None,
            &mut rng,
        );
        let mut out = VecDeque::new();
        punch.handle_timeout(Millis(0), own, 64, &mut ledger, &mut out);
        let check = out.iter().find(|t| t.ttl.is_none()).unwrap();
        let id = Message::parse(&check.bytes).unwrap().transaction_id();
        for (from, id, key, ok) in [
            (peer.with_port(5001), id, [7; 16], false),
            (peer, TransactionId([1; 12]), [7; 16], false),
            (peer, id, [8; 16], false),
            (peer, id, [7; 16], true),
        ] {
            let answer = write_check_answer(id, peer, &key);
            let message = Message::parse(&answer).unwrap();
            assert_eq!(punch.on_answer(Millis(40), from, &message), ok);
            assert_eq!(punch.state() == DirectState::Proven, ok);
        }
    }

    #[test]
    fn an_address_on_the_same_network_takes_the_place_of_a_punched_one() {
        let mut rng = StdRng::seed_from_u64(5);
        let mut ledger = Ledger::new(Millis(0));
        let own = own_seat();
        let (punched, near) = (addr("203.0.113.1:5000"), addr("192.168.0.7:5000"));
        let introduced = Introduced {
            observed: Some(punched),
            reachable: vec![near],
            key: [7; 16],
            ..Introduced::default()
        };
        let server = addr("198.51.100.1:3478");
        let chosen = Strategies::ALL;
        let mut punch = Punch::new(Millis(0), &introduced, chosen, server, None, &mut rng);
        let mut out = VecDeque::new();
        punch.handle_timeout(Millis(0), own, 64, &mut ledger, &mut out);
        for (now, from) in [(40, punched), (60, near), (61, punched)] {
            let check = out
                .iter()
                .find(|transmit| transmit.to == from && transmit.ttl.is_none());
            let id = Message::parse(&check.unwrap().bytes)
                .unwrap()
                .transaction_id();
            let answer = write_check_answer(id, from, &[7; 16]);
            let message = Message::parse(&answer).unwrap();
            assert!(punch.on_answer(Millis(now), from, &message));
            let best = if now == 40 { punched } else { near };
            assert_eq!(punch.send_data(Millis(now)), Some(best));
        }
    }

    #[test]
    fn far_openers_wait_for_the_peer_and_checks_for_the_start() {
        let mut rng = StdRng::seed_from_u64(3);
        let mut ledger = Ledger::new(Millis(0));
        let own = own_seat();
        let introduced = Introduced {
            observed: Some(addr("203.0.113.1:5000")),
            key: [7; 16],
            start_in_ms: 400,
            ..Introduced::default()
        };
        let server = addr("198.51.100.1:3478");
        let mut punch = Punch::new(
            Millis(0),
            &introduced,
            Strategies::ALL,
            server,
            None,
            &mut rng,
        );
        let mut sent = Vec::new();
        while sent.len() < 6 {
            let now = punch.next_timeout().unwrap();
            let mut out = VecDeque::new();
            punch.handle_timeout(now, own, 64, &mut ledger, &mut out);
            sent.extend(out.into_iter().map(|transmit| (now.0, transmit.ttl)));
        }
        assert_eq!(
            sent,
            [
                (0, Some(2)),
                (266, Some(3)),
                (300, Some(4)),
                (333, Some(5)),
                (400, None),
                (450, None)
            ]
        );
    }
}
