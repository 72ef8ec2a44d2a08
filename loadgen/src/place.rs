//! A place for a session, and the flows between its members. Several sessions live in one place one after the other. It opens no
//! socket and speaks no protocol.

use std::net::SocketAddr;

use waypost_proto::time::Millis;
use waypost_server::packet_io::SocketId;

use crate::clock::Now;
use crate::payload::FlowId;
use crate::protocol::{Outbox, Session, Step};
use crate::sequence::Arrivals;
use crate::tally::Tally;

/// What setting up may take in all, nanoseconds.
const OPENING_NS: u64 = 20_000_000_000;
/// How long a session that is to be closed waits for what is on its way, nanoseconds.
const DRAINING_NS: u64 = 250_000_000;
/// What closing may take, nanoseconds.
const CLOSING_NS: u64 = 3_000_000_000;

/// One member.
pub struct Member {
    /// Its own socket.
    pub socket: SocketId,
    /// That socket's address.
    pub address: SocketAddr,
    /// When it is looked after next, if that is arranged.
    pub armed: Option<Millis>,
}

/// Where a session stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// There is none.
    Vacant,
    /// Members take their seats. When it began.
    Opening(u64),
    /// All members know each other: it carries load.
    Open,
    /// It carries no load any more, and waits for what is on its way. Until when.
    Draining(u64),
    /// The host has asked to close it. When that is taking too long.
    Closing(u64),
    /// It is closed; its sockets are to be given back.
    Closed,
    /// It has ended otherwise than it should; its sockets are to be given back.
    Failed,
}

/// One direction between two members.
#[derive(Clone, Debug, Default)]
pub struct Flow {
    /// The number of the next datagram.
    pub next_sequence: u64,
    /// What has arrived.
    pub arrivals: Arrivals,
}

/// A place for a session.
pub struct Place {
    /// Its number in the whole generator.
    pub number: u32,
    /// Where its session stands.
    pub stage: Stage,
    /// The members, the host first.
    pub members: Vec<Member>,
    /// What they talk.
    pub session: Option<Box<dyn Session>>,
    /// By [`Place::flow_index`].
    pub flows: Vec<Flow>,
    /// Whether its session is being set up or closed.
    pub is_moving: bool,
    incarnation: u32,
    asked_ns: u64,
}

impl Place {
    /// A place that is vacant.
    pub const fn new(number: u32) -> Self {
        Self {
            number,
            stage: Stage::Vacant,
            members: Vec::new(),
            session: None,
            flows: Vec::new(),
            is_moving: false,
            incarnation: 0,
            asked_ns: 0,
        }
    }

    /// Begins a session, which was to be asked for at `asked_ns`: the first of `members` hosts.
    pub fn open(
        &mut self,
        asked_ns: u64,
        now: Now,
        members: Vec<Member>,
        mut session: Box<dyn Session>,
        out: &mut Outbox,
    ) {
        self.stage = Stage::Opening(now.ns);
        self.asked_ns = asked_ns;
        let count = members.len();
        self.members = members;
        self.flows.clear();
        self.flows.resize(count * (count - 1), Flow::default());
        session.begin(asked_ns, now, out);
        self.session = Some(session);
    }

    /// Takes note of how far the session has come.
    pub fn on_steps(&mut self, now: Now, out: &mut Outbox, tally: &mut Tally) {
        if let Some(limits) = out.limits {
            tally.limits = limits;
        }
        for step in out.steps() {
            match step {
                Step::Hosted(asked_ns) => tally.host.record(now.ns.saturating_sub(asked_ns)),
                Step::Joined(asked_ns) => tally.join.record(now.ns.saturating_sub(asked_ns)),
                Step::Open => {
                    self.stage = Stage::Open;
                    tally.opened += 1;
                    tally.meet.record(now.ns.saturating_sub(self.asked_ns));
                }
                Step::Closed => self.stage = Stage::Closed,
                Step::Failed(reason) => self.fail(reason, tally),
            }
        }
    }

    /// Stops the load, to close the session when all of it has arrived.
    pub fn drain(&mut self, now: Now) {
        self.stage = Stage::Draining(now.ns + DRAINING_NS);
    }

    /// The host closes the session.
    pub fn close(&mut self, now: Now, out: &mut Outbox) {
        self.stage = Stage::Closing(now.ns + CLOSING_NS);
        if let Some(session) = &mut self.session {
            session.close(now, out);
        }
    }

    /// Ends what takes too long.
    pub fn check_deadline(&mut self, now: Now, tally: &mut Tally) {
        match self.stage {
            Stage::Opening(began) if now.ns - began > OPENING_NS => {
                self.fail("the members did not all hear of each other".into(), tally);
            }
            Stage::Closing(until) if now.ns > until => {
                self.fail("closing was not confirmed".into(), tally);
            }
            _ => {}
        }
    }

    /// The session is over; hands out the members, whose sockets are to be given back.
    pub fn vacate(&mut self) -> Vec<Member> {
        if self.stage != Stage::Failed {
            self.stage = Stage::Vacant;
        }
        self.session = None;
        self.incarnation = self.incarnation.wrapping_add(1);
        std::mem::take(&mut self.members)
    }

    fn fail(&mut self, reason: String, tally: &mut Tally) {
        self.stage = Stage::Failed;
        tally.fail(reason);
    }

    /// Where the flow is in [`Place::flows`].
    pub const fn flow_index(&self, from: usize, to: usize) -> usize {
        from * (self.members.len() - 1) + if to > from { to - 1 } else { to }
    }

    /// The name of a flow of the present session.
    pub fn flow_id(&self, from: usize, to: usize) -> FlowId {
        FlowId {
            place: self.number,
            incarnation: self.incarnation,
            from: u8::try_from(from).expect("at most 255 members"),
            to: u8::try_from(to).expect("at most 255 members"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_flow_has_a_place_of_its_own() {
        let mut place = Place::new(7);
        place.members = (0..5)
            .map(|_| Member {
                socket: SocketId::from_raw(0),
                address: "127.0.0.1:9".parse().unwrap(),
                armed: None,
            })
            .collect();
        let mut indices: Vec<usize> = (0..5)
            .flat_map(|from| (0..5).map(move |to| (from, to)))
            .filter(|(from, to)| from != to)
            .map(|(from, to)| place.flow_index(from, to))
            .collect();
        indices.sort_unstable();
        assert_eq!(indices, (0..20).collect::<Vec<_>>());
    }

    #[test]
    fn a_new_session_in_the_same_place_has_other_flows() {
        let mut place = Place::new(7);
        let before = place.flow_id(0, 1);
        place.vacate();
        assert_ne!(place.flow_id(0, 1), before);
    }
}
