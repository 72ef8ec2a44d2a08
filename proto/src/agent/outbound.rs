//! What becomes due with time: repetitions, keepalives, probes, checks. Never reads a datagram.

use super::event::{Event, SessionEvent, Transmit};
use super::failure::Failure;
use super::punch::Outcome;
use super::request::{Introduce, Op};
use super::{Agent, TRANSMITS_MAX};
use crate::time::Millis;
use crate::wire::native::{self, LeaveReason, SeatId};

/// Data went through the relay and nothing has come from the server for so long: the NAT may have given this socket
/// another port, so the server is asked at once. Milliseconds.
const REBIND_SUSPICION_MS: u64 = 2_000;
/// A request without an answer for so long means that the server is silent. Milliseconds.
const SILENCE_MS: u64 = 5_000;
/// Between two requests of the agent itself to be introduced again, milliseconds.
const REINTRODUCTION_GAP_MS: u64 = 30_000;

impl Agent {
    /// When [`Agent::handle_timeout`] wants to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Millis> {
        let mut next: Option<Millis> = None;
        let mut consider = |at: Millis| next = Some(next.map_or(at, |next| next.min(at)));
        for request in &self.requests {
            if !request.parked {
                consider(self.due(request));
                if !self.silent {
                    consider(self.heard.max(request.began) + SILENCE_MS);
                }
            }
            if request.id.is_some() {
                consider(request.began + self.config.give_up_ms);
            }
        }
        if let Some(probe) = &self.probe {
            consider(probe.next_timeout());
        }
        self.departure_timeout().into_iter().for_each(&mut consider);
        self.turn_offer_timeout()
            .into_iter()
            .for_each(&mut consider);
        if self.keeps_alive() {
            consider(self.keepalive_at);
            if self.relay_active {
                consider(self.heard + REBIND_SUSPICION_MS);
            }
        }
        for member in self.roster.iter() {
            if let Some(punch) = &member.punch
                && let Some(at) = punch.next_timeout()
            {
                consider(at);
            }
            if let Some(at) = member.unconfirmed_until {
                consider(at);
            }
        }
        next
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Millis) {
        self.give_up(now);
        self.run_probe(now);
        self.notice_silence(now);
        self.run_departure(now);
        if self.out.len() < TRANSMITS_MAX {
            self.run_turn_offer(now);
        }
        if self.keeps_alive() {
            let suspicious = self.relay_active && now.since(self.heard) >= REBIND_SUSPICION_MS;
            if now >= self.keepalive_at || suspicious {
                self.keepalive(now);
            }
        }
        self.send_requests(now);
        self.run_punches(now);
    }

    /// When a request is due. Who asks for a seat waits for the probe of the NAT.
    fn due(&self, request: &super::Request) -> Millis {
        let next = request.repetition.next();
        match &self.probe {
            Some(probe) if request.op.seats() => next.max(probe.held_back_until()),
            _ => next,
        }
    }

    /// Sends the requests that are due.
    pub(super) fn send_requests(&mut self, now: Millis) {
        let holds_back = self
            .probe
            .as_ref()
            .is_some_and(|probe| probe.holds_back(now));
        for request in &mut self.requests {
            if request.parked
                || request.repetition.next() > now
                || (holds_back && request.op.seats())
                || self.out.len() >= TRANSMITS_MAX
            {
                continue;
            }
            request.repetition.sent(now);
            self.out
                .push_back(Transmit::new(self.config.server, request.bytes.clone()));
        }
        if holds_back {
            self.run_probe(now);
        }
    }

    fn give_up(&mut self, now: Millis) {
        let mut at = 0;
        while at < self.requests.len() {
            let request = &self.requests[at];
            match request.id {
                Some(id) if now.since(request.began) >= self.config.give_up_ms => {
                    let request = self.requests.remove(at);
                    self.tell(Event::Failed {
                        request: id,
                        failure: Failure::Silent,
                    });
                    if matches!(request.op, Op::Leave) {
                        self.unseat();
                        at = 0;
                    }
                }
                _ => at += 1,
            }
        }
    }

    fn run_probe(&mut self, now: Millis) {
        let Some(probe) = &mut self.probe else {
            return;
        };
        while self.out.len() < TRANSMITS_MAX
            && let Some((to, bytes)) = probe.transmit(now)
        {
            self.out.push_back(Transmit::new(to, bytes));
        }
        if !probe.is_over(now) {
            return;
        }
        let mapping = probe.mapping();
        self.probe = None;
        if let Some(mapping) = mapping {
            self.mapping = Some(mapping);
            self.tell(SessionEvent::NatMapped(mapping));
            if self.seat.is_some() && !self.recovering && self.config.policy.allows_direct() {
                self.keepalive(now);
            } else {
                self.rewrite_seat_requests(now);
            }
        }
    }

    /// The request for a seat that waited for the probe was written without its result. One that is on its way already must
    /// stay as it is, or its repetition would be a second request.
    fn rewrite_seat_requests(&mut self, now: Millis) {
        for at in 0..self.requests.len() {
            let request = &self.requests[at];
            if request.op.seats() && request.repetition.is_unsent() {
                self.write_request(now, at);
            }
        }
    }

    /// Whether the seat is one to keep alive, and that is not being done.
    pub(super) fn keeps_alive(&self) -> bool {
        self.seat.is_some()
            && !self.recovering
            && self.departure.is_none()
            && !self.asks_keepalive()
    }

    pub(super) fn asks_keepalive(&self) -> bool {
        self.requests.iter().any(|r| matches!(r.op, Op::Keepalive))
    }

    pub(super) fn keepalive(&mut self, now: Millis) {
        self.relay_active = false;
        if self.departure.is_none() && !self.asks_keepalive() {
            self.begin(now, None, Op::Keepalive);
        }
    }

    fn notice_silence(&mut self, now: Millis) {
        let waiting_since = self
            .requests
            .iter()
            .filter(|request| !request.parked)
            .map(|request| request.began)
            .min();
        if let Some(since) = waiting_since
            && !self.silent
            && now.since(self.heard.max(since)) >= SILENCE_MS
        {
            self.silent = true;
            self.tell(SessionEvent::ServerSilent);
            self.tell_all_paths();
        }
    }

    fn run_punches(&mut self, now: Millis) {
        let Some(own) = self.seat.as_ref().map(|seat| seat.handle) else {
            return;
        };
        let mut gone = Vec::new();
        let mut ended = Vec::new();
        for member in self.roster.iter_mut() {
            if member.unconfirmed_until.is_some_and(|until| until <= now) {
                gone.push(member.id);
                continue;
            }
            if let Some(punch) = &mut member.punch
                && punch.next_timeout().is_some_and(|at| at <= now)
            {
                let (ledger, out) = (&mut self.ledger, &mut self.out);
                let outcome = punch.handle_timeout(now, own, TRANSMITS_MAX, ledger, out);
                if outcome != Outcome::Nothing {
                    ended.push((member.id, outcome));
                }
            }
        }
        for id in gone {
            self.roster.remove(id);
            self.tell(SessionEvent::MemberLeft(id, LeaveReason::TimedOut));
        }
        for (id, outcome) in ended {
            self.hold_to_path(now, id);
            self.consider_reintroduction(now, own.id, id, outcome);
        }
    }

    /// A path that failed may come back at other addresses, and one that never came may with what the NAT has shown since.
    fn consider_reintroduction(
        &mut self,
        now: Millis,
        own: SeatId,
        peer: SeatId,
        outcome: Outcome,
    ) {
        let (mapping, told) = (self.mapping, self.mapping_told);
        let Some(member) = self.roster.get_mut(peer) else {
            return;
        };
        let worthwhile = match outcome {
            Outcome::Nothing => false,
            // One of the two is enough, and two at once would disturb each other.
            Outcome::Lost => own.seat < peer.seat,
            Outcome::InVain => {
                let began = member.punch.as_ref().map(|punch| punch.began());
                mapping.is_some_and(|m| m.step != 0) && told > began
            }
        };
        let recently = member
            .reintroduced
            .is_some_and(|at| now.since(at) < REINTRODUCTION_GAP_MS);
        if worthwhile && !recently && self.departure.is_none() {
            member.reintroduced = Some(now);
            self.begin(now, None, Op::Introduce(Introduce::With(peer)));
        }
    }

    /// Forgets the seat. What was asked from it fails, but who wanted to be rid of it has that.
    pub(super) fn unseat(&mut self) {
        self.seat = None;
        self.hosted = None;
        self.recovering = false;
        self.relay_active = false;
        self.departure = None;
        self.turn_offer = None;
        self.roster.clear();
        self.fail_requests();
    }

    /// Ends the requests that need a seat at the server.
    pub(super) fn fail_requests(&mut self) {
        for request in std::mem::take(&mut self.requests) {
            let void = native::method::is_seated(request.op.method()) || request.id.is_none();
            match request.id {
                _ if !void => self.requests.push(request),
                Some(request_id) if matches!(request.op, Op::Leave | Op::Close) => {
                    self.tell(Event::Done {
                        request: request_id,
                    });
                }
                Some(request_id) => self.tell(Event::Failed {
                    request: request_id,
                    failure: Failure::Unseated,
                }),
                None => {}
            }
        }
    }
}
