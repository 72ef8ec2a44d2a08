//! Leaving the server while the session goes on over its direct paths: the members are told first, so that they keep whom the
//! server then calls gone. Never keeps anybody without a direct path.

use super::event::SessionEvent;
use super::failure::Refused;
use super::path::DirectState;
use super::request::Op;
use super::{Agent, TRANSMITS_MAX};
use crate::time::Millis;
use crate::wire::native::{LeaveReason, SeatId};
use crate::wire::stun::{Message, TransactionId};
use rand::RngExt;

/// Between two notices to a member that has not answered, milliseconds.
const NOTICE_GAP_MS: u64 = 100;
/// After so long members are told no more, milliseconds.
const NOTICES_MS: u64 = 2_000;
/// A member that is reached directly only is gone when its path has failed for so long, milliseconds.
const LOST_MS: u64 = 20_000;
/// After so long the server's answer to LEAVE is not waited for any more, milliseconds.
const FAREWELL_MS: u64 = 2_000;

/// How far the departure has come.
#[derive(Clone, Debug)]
pub(super) enum Departure {
    /// Members are told.
    Telling {
        began: Millis,
        next: Millis,
        unanswered: Vec<(SeatId, TransactionId)>,
    },
    /// The server is told.
    Leaving { until: Millis },
    /// There is no server any more.
    Gone,
}

impl Agent {
    /// Leaves the server; the session goes on with the members to whom there is a direct path. They are told first, which takes
    /// a round trip, or 2 s if one does not answer. [`SessionEvent::WithoutServer`] tells that it is done. From then on
    /// nobody joins, nothing is relayed, a member whose direct path fails is gone, and operations that the server
    /// answers are refused; [`Agent::leave`] ends it all at once.
    ///
    /// # Errors
    /// [`Refused::NotSeated`]; [`Refused::NoDirectPath`] if there is one to nobody, or the policy forbids them.
    pub fn leave_server(&mut self, now: Millis) -> Result<(), Refused> {
        if self.seat.is_none() || self.recovering {
            return Err(Refused::NotSeated);
        }
        if self.departure.is_some() {
            return Ok(());
        }
        let direct = |state| state == DirectState::Proven;
        let proven = self.roster.iter().filter(|m| direct(m.direct_state()));
        let members: Vec<SeatId> = proven.map(|member| member.id).collect();
        if members.is_empty() || !self.config.policy.allows_direct() {
            return Err(Refused::NoDirectPath);
        }
        let unanswered = members
            .into_iter()
            .map(|member| (member, TransactionId(self.rng.random())))
            .collect();
        self.departure = Some(Departure::Telling {
            began: now,
            next: now,
            unanswered,
        });
        self.run_departure(now);
        Ok(())
    }

    /// Whether this agent has left the server and goes on without it.
    #[must_use]
    pub const fn is_without_server(&self) -> bool {
        matches!(self.departure, Some(Departure::Gone))
    }

    pub(super) fn departure_timeout(&self) -> Option<Millis> {
        match self.departure.as_ref()? {
            Departure::Telling { next, .. } => Some(*next),
            Departure::Leaving { until } => Some(*until),
            Departure::Gone => None,
        }
    }

    pub(super) fn run_departure(&mut self, now: Millis) {
        let Some(handle) = self.seat.as_ref().map(|seat| seat.handle) else {
            return;
        };
        match &mut self.departure {
            Some(Departure::Telling {
                began,
                next,
                unanswered,
            }) => {
                unanswered.retain(|(member, _)| self.roster.get(*member).is_some());
                if unanswered.is_empty() || now.since(*began) >= NOTICES_MS {
                    self.departure = Some(Departure::Leaving {
                        until: now + FAREWELL_MS,
                    });
                    self.begin(now, None, Op::Leave);
                    return;
                }
                if now < *next {
                    return;
                }
                *next = now + NOTICE_GAP_MS;
                for (member, id) in unanswered {
                    let punch = self.roster.get(*member).and_then(|m| m.punch.as_ref());
                    if self.out.len() < TRANSMITS_MAX {
                        self.out
                            .extend(punch.and_then(|punch| punch.notice(*id, handle)));
                    }
                }
            }
            Some(Departure::Leaving { until }) if now >= *until => self.left_server(now),
            _ => {}
        }
    }

    /// Takes an answer that may be one to a notice. Returns whether it is.
    pub(super) fn on_notice_answer(&mut self, now: Millis, message: &Message<'_>) -> bool {
        let Some(Departure::Telling { unanswered, .. }) = &mut self.departure else {
            return false;
        };
        let id = message.transaction_id();
        let Some(at) = unanswered.iter().position(|(_, notice)| *notice == id) else {
            return false;
        };
        let punch = self
            .roster
            .get(unanswered[at].0)
            .and_then(|m| m.punch.as_ref());
        if !punch.is_some_and(|punch| punch.verifies(message)) {
            return false;
        }
        unanswered.swap_remove(at);
        self.run_departure(now);
        true
    }

    /// The server has let go, or does not answer.
    pub(super) fn left_server(&mut self, now: Millis) {
        self.departure = Some(Departure::Gone);
        self.relay_active = false;
        self.silent = false;
        self.hosted = None;
        self.fail_requests();
        self.tell(SessionEvent::WithoutServer);
        let members: Vec<SeatId> = self.roster.iter().map(|member| member.id).collect();
        for member in members {
            self.hold_to_path(now, member);
        }
    }

    /// The server calls a member gone. Returns whether it stays all the same, because it said before that it goes on directly.
    pub(super) fn keeps(&mut self, now: Millis, id: SeatId, reason: Option<LeaveReason>) -> bool {
        let leaves = matches!(reason, Some(LeaveReason::Left | LeaveReason::TimedOut));
        let Some(member) = self.roster.get_mut(id) else {
            return false;
        };
        if !(leaves && member.leaves_server) {
            return false;
        }
        member.without_server = true;
        self.tell(SessionEvent::MemberWithoutServer(id));
        self.hold_to_path(now, id);
        true
    }

    /// Whoever is reached directly only is there as long as its path is, and some time longer, for it may come back.
    pub(super) fn hold_to_path(&mut self, now: Millis, id: SeatId) {
        let gone_at = now + LOST_MS;
        let held = self.roster.get(id).is_some_and(|m| self.is_direct_only(m));
        if let Some(member) = self.roster.get_mut(id)
            && held
        {
            let proven = member.direct_state() == DirectState::Proven;
            let since = member.unconfirmed_until.unwrap_or(gone_at);
            member.unconfirmed_until = (!proven).then_some(since);
        }
        self.tell_path(id);
    }

    /// Whether data to a member can go directly only.
    pub(super) fn is_direct_only(&self, member: &super::Member) -> bool {
        member.without_server || self.is_without_server()
    }
}
