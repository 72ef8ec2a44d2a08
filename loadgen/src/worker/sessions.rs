//! How sessions come and go in a generator thread: set up so many at a time or on a schedule, replaced, closed.

use rand::RngExt as _;
use waypost_server::packet_io::PacketIo;

use super::{FAILURES_MAX, Phase, SENDS_PER_TURN, Worker};
use crate::clock::Now;
use crate::failure::Failure;
use crate::place::{Member, Stage};
use crate::schedule::Due;
use crate::sockets;

impl<P: PacketIo> Worker<P> {
    /// Chooses sessions to be replaced, when it is time to.
    pub(super) fn begin_churn(&mut self, now: Now) {
        let Some(churn) = &mut self.churn else {
            return;
        };
        while churn.take(now.ns).is_some() {
            let p = self.rng.random_range(0..self.places.len());
            match self.places[p].stage {
                Stage::Open => {
                    self.places[p].drain(now);
                    self.to_close.push_back(p as u32);
                }
                Stage::Failed => self.to_open.push_back(p as u32),
                _ => {}
            }
        }
    }

    /// Sessions come and go, so many at a time.
    pub(super) fn advance_sessions(&mut self, now: Now) -> Result<(), Failure> {
        let mut at = 0;
        while let Some(&p) = self.in_transition.get(at) {
            let place = &mut self.places[p as usize];
            place.check_deadline(now, &mut self.tally);
            match place.stage {
                Stage::Opening(_) | Stage::Closing(_) => at += 1,
                stage => {
                    place.is_moving = false;
                    self.in_transition.swap_remove(at);
                    self.settle(p, stage);
                }
            }
        }
        while self.in_transition.len() < self.share.window {
            let Some(&p) = self.to_close.front() else {
                break;
            };
            match self.places[p as usize].stage {
                Stage::Draining(until) if now.ns < until => break,
                Stage::Draining(_) | Stage::Open => {
                    self.places[p as usize].close(now, &mut self.outbox);
                    self.carry_out(now, p as usize, 0);
                    self.places[p as usize].is_moving = true;
                    self.in_transition.push(p);
                }
                // It has failed meanwhile; its sockets go home with those of all others.
                _ => {}
            }
            self.to_close.pop_front();
        }
        self.give_up_filling();
        while self.setup.is_none()
            && self.in_transition.len() < self.share.window
            && self.to_close.len() < self.share.window
        {
            let Some(p) = self.to_open.pop_front() else {
                break;
            };
            let stage = self.places[p as usize].stage;
            if matches!(stage, Stage::Vacant | Stage::Failed) && !self.places[p as usize].is_moving
            {
                self.open(now.ns, now, p as usize)?;
            }
        }
        Ok(())
    }

    /// Asks for sessions on the schedule of set-ups, whatever has become of earlier ones.
    pub(super) fn open_due(&mut self, now: Now) -> Result<(), Failure> {
        for _ in 0..SENDS_PER_TURN {
            let due = match &mut self.setup {
                Some(setup) if !self.to_open.is_empty() => setup.take(now.ns),
                _ => return Ok(()),
            };
            let (Some(Due::Send(slot) | Due::Missed(slot)), Some(p)) =
                (due, self.to_open.front().copied())
            else {
                return Ok(());
            };
            self.to_open.pop_front();
            self.open(slot.intended_ns, now, p as usize)?;
        }
        Ok(())
    }

    /// Where none of the first sessions can be set up, the others are not tried.
    fn give_up_filling(&mut self) {
        if self.phase == Phase::Filling
            && self.tally.opened == 0
            && self.tally.failed >= FAILURES_MAX
        {
            for _ in self.to_open.drain(..) {
                self.tally
                    .fail("not tried after all before it had failed".into());
            }
        }
    }

    /// A transition of place `p` has come to its end.
    fn settle(&mut self, p: u32, stage: Stage) {
        match stage {
            Stage::Open if matches!(self.phase, Phase::Emptying(_)) => self.to_close.push_back(p),
            Stage::Open | Stage::Opening(_) | Stage::Draining(_) | Stage::Closing(_) => {}
            Stage::Closed | Stage::Vacant | Stage::Failed => {
                self.vacate(p as usize);
                if stage == Stage::Closed && self.phase == Phase::Running {
                    self.tally.replaced += 1;
                    self.to_open.push_back(p);
                }
            }
        }
    }

    fn open(&mut self, asked_ns: u64, now: Now, p: usize) -> Result<(), Failure> {
        self.vacate(p);
        let count = self.share.members;
        let mut members = Vec::with_capacity(usize::from(count));
        for m in 0..count {
            let n = self.places[p].number * u32::from(count) + u32::from(m);
            let (socket, address) = self.share.sources.bind(n)?;
            let socket = self
                .io
                .add_socket(socket)
                .map_err(|error| sockets::refused(&error))?;
            members.push(Member {
                socket,
                address,
                armed: None,
            });
            self.by_socket.insert(socket, (p as u32, m));
        }
        let addresses: Vec<_> = members.iter().map(|member| member.address).collect();
        let session = self.share.kit.session(&addresses, now, &mut self.rng);
        self.places[p].open(asked_ns, now, members, session, &mut self.outbox);
        self.places[p].is_moving = true;
        self.in_transition.push(p as u32);
        self.carry_out(now, p, 0);
        Ok(())
    }

    fn vacate(&mut self, p: usize) {
        for member in self.places[p].vacate() {
            self.by_socket.remove(&member.socket);
            self.io.remove_socket(member.socket);
        }
    }
}
