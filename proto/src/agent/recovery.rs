//! When the server has forgotten the seat: back to it by the ticket, or, for a host, a new session in its stead. Never gives up
//! a seat that the server still knows.

use super::Agent;
use super::event::SessionEvent;
use super::request::Op;
use crate::time::Millis;
use crate::wire::native;

/// How long a member known from before a resumption may take to resume as well, if the server does not say. Seconds.
const CONFIRMATION_SECS: u32 = 60;

impl Agent {
    /// The server does not know the seat any more: come back to it by its ticket.
    pub(super) fn recover(&mut self, now: Millis) {
        for request in &mut self.requests {
            request.parked |= native::method::is_seated(request.op.method());
        }
        // Its own doing, and moot until the seat is back.
        self.requests
            .retain(|request| request.id.is_some() || !matches!(request.op, Op::Keepalive));
        if self.recovering {
            return;
        }
        self.recovering = true;
        let is_host = self.is_host();
        let ticket = self
            .seat
            .as_ref()
            .map(|seat| seat.ticket.clone())
            .unwrap_or_default();
        if ticket.is_empty() {
            self.host_again(now);
            return;
        }
        let op = Op::Resume {
            ticket,
            name: self.session.name.clone().filter(|_| is_host),
            metadata: is_host.then(|| self.session.metadata.clone()),
        };
        self.begin(now, None, op);
    }

    /// The ticket is void. A host can make its session again; the others can only be told.
    pub(super) fn host_again(&mut self, now: Millis) {
        match self.hosted.clone() {
            Some(hosted) if self.is_host() => self.begin(now, None, Op::Host(hosted)),
            _ => self.lose_seat(),
        }
    }

    pub(super) fn lose_seat(&mut self) {
        self.unseat();
        self.tell(SessionEvent::SeatLost);
    }

    /// After a resumption the server names the members again, as they resume too. Until it has had time to, those known from
    /// before stay, and with them their direct paths.
    pub(super) fn keep_members_for_now(&mut self, now: Millis) {
        let hold_secs = self.seat.as_ref().map_or(0, |seat| seat.hold_secs);
        let secs = if hold_secs == 0 {
            CONFIRMATION_SECS
        } else {
            hold_secs
        };
        for member in self.roster.iter_mut() {
            member.unconfirmed_until = Some(now.plus_secs(secs));
        }
    }

    /// Sends again, from the new seat, what waited for it.
    pub(super) fn unpark(&mut self, now: Millis) {
        for at in 0..self.requests.len() {
            if self.requests[at].parked {
                self.requests[at].parked = false;
                self.write_request(now, at);
            }
        }
        self.send_requests(now);
    }
}
