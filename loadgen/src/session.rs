//! A place for a session: its members' agents from asking for a session until it is closed, and the flows between them.
//! Several sessions live in one place one after the other. It opens no socket; what its agents want sent is the worker's
//! business.

use waypost_proto::agent::{Agent, Event, Failure, HostConfig, SessionEvent, Target, describe};
use waypost_proto::time::Millis;
use waypost_proto::wire::native::SeatId;
use waypost_server::packet_io::SocketId;

use crate::clock::Now;
use crate::payload::FlowId;
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
    /// Its side of the protocol.
    pub agent: Agent,
    /// Its own socket.
    pub socket: SocketId,
    /// When its agent is looked after next, if that is arranged.
    pub armed: Option<Millis>,
    asked_ns: u64,
}

impl Member {
    /// A member that has not asked for anything yet.
    pub const fn new(agent: Agent, socket: SocketId) -> Self {
        Self {
            agent,
            socket,
            armed: None,
            asked_ns: 0,
        }
    }
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
    /// It has ended otherwise than it should; its sockets are to be given back.
    Failed,
}

/// What to do about other members after an event of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attention {
    /// Nothing.
    None,
    /// All of them may have something to send.
    All,
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
    /// By [`Place::flow_index`].
    pub flows: Vec<Flow>,
    incarnation: u32,
    /// The members' seats, once they all have one.
    seats: Vec<SeatId>,
}

impl Place {
    /// A place that is vacant.
    pub const fn new(number: u32) -> Self {
        Self {
            number,
            stage: Stage::Vacant,
            members: Vec::new(),
            flows: Vec::new(),
            incarnation: 0,
            seats: Vec::new(),
        }
    }

    /// Begins a session: the first of `members` hosts.
    pub fn open(&mut self, now: Now, members: Vec<Member>, tally: &mut Tally) {
        self.stage = Stage::Opening(now.ns);
        self.members = members;
        let count = self.members.len();
        self.seats.clear();
        self.flows.clear();
        self.flows.resize(count * (count - 1), Flow::default());
        let host = &mut self.members[0];
        host.asked_ns = now.ns;
        let asked = host.agent.host(
            now.millis(),
            HostConfig {
                max_members: u8::try_from(count).expect("at most 255 members"),
                ..HostConfig::default()
            },
        );
        if let Err(refused) = asked {
            self.fail(format!("hosting: {refused}"), tally);
        }
    }

    /// Takes what the agent of member `m` has to tell.
    pub fn on_events(&mut self, m: usize, now: Now, tally: &mut Tally) -> Attention {
        let mut attention = Attention::None;
        while let Some(event) = self.members[m].agent.poll_event() {
            match (self.stage, event) {
                (Stage::Opening(_), Event::Done { .. }) => {
                    let asked_ns = self.members[m].asked_ns;
                    if m == 0 {
                        tally.host.record(now.ns - asked_ns);
                        self.join_all(now, tally);
                        attention = Attention::All;
                    } else {
                        tally.join.record(now.ns - asked_ns);
                    }
                    self.look_round(now, tally);
                }
                (Stage::Opening(_), Event::Session(SessionEvent::MemberJoined(_))) => {
                    self.look_round(now, tally)
                }
                (Stage::Opening(_) | Stage::Open | Stage::Draining(_), event) => {
                    if let Some(reason) = trouble(&event) {
                        self.fail(reason, tally);
                    }
                }
                (Stage::Vacant | Stage::Closing(_) | Stage::Failed, _) => {}
            }
        }
        attention
    }

    fn join_all(&mut self, now: Now, tally: &mut Tally) {
        let Some(seat) = self.members[0].agent.seat() else {
            return;
        };
        tally.limits = seat.limits;
        let code = seat.code();
        for m in 1..self.members.len() {
            let member = &mut self.members[m];
            member.asked_ns = now.ns;
            if let Err(refused) = member.agent.join(now.millis(), Target::Code(code), "") {
                self.fail(format!("joining: {refused}"), tally);
                return;
            }
        }
    }

    /// The session is open once every member knows every other one.
    fn look_round(&mut self, now: Now, tally: &mut Tally) {
        let Stage::Opening(began_ns) = self.stage else {
            return;
        };
        let seat = |member: &Member| member.agent.seat().map(|seat| seat.id());
        let Some(seats) = self.members.iter().map(seat).collect::<Option<Vec<_>>>() else {
            return;
        };
        let knows_all = |(m, member): (usize, &Member)| {
            let mut others = seats.iter().enumerate().filter(|(other, _)| *other != m);
            others.all(|(_, seat)| member.agent.member(*seat).is_some())
        };
        if self.members.iter().enumerate().all(knows_all) {
            self.seats = seats;
            self.stage = Stage::Open;
            tally.opened += 1;
            tally.meet.record(now.ns - began_ns);
        }
    }

    /// Stops the load, to close the session when all of it has arrived.
    pub fn drain(&mut self, now: Now) {
        self.stage = Stage::Draining(now.ns + DRAINING_NS);
    }

    /// The host closes the session.
    pub fn close(&mut self, now: Now, tally: &mut Tally) {
        self.stage = Stage::Closing(now.ns + CLOSING_NS);
        if let Err(refused) = self.members[0].agent.close(now.millis()) {
            self.fail(format!("closing: {refused}"), tally);
        }
    }

    /// Whether nobody has a seat any more.
    pub fn is_closed(&self) -> bool {
        let seated = |member: &Member| member.agent.seat().is_some();
        matches!(self.stage, Stage::Closing(_)) && !self.members.iter().any(seated)
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

    /// The seat of a member of an open session.
    pub fn seat(&self, m: usize) -> SeatId {
        self.seats[m]
    }

    /// Who has that seat.
    pub fn member_in(&self, seat: SeatId) -> Option<usize> {
        self.seats.iter().position(|other| *other == seat)
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

/// Why an event is none that a quiet session knows.
fn trouble(event: &Event) -> Option<String> {
    match event {
        Event::Failed {
            failure: Failure::Rejected(rejected),
            ..
        } => Some(rejected.to_string()),
        Event::Failed { failure, .. } => Some(failure.to_string()),
        Event::Session(SessionEvent::MemberLeft(_, reason)) => {
            Some(format!("a member {} unasked", describe(*reason)))
        }
        Event::Session(SessionEvent::Removed(reason)) => {
            Some(format!("a seat was lost: {}", describe(*reason)))
        }
        Event::Session(SessionEvent::SeatLost | SessionEvent::CodeChanged { .. }) => {
            Some("the server forgot the session".to_owned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_flow_has_a_place_of_its_own() {
        let server = std::net::SocketAddr::from(([127, 0, 0, 1], 1)).into();
        let config = waypost_proto::agent::Config::new(server, "test");
        let member = || {
            let agent = Agent::new(Millis(0), config.clone(), [1; 32]);
            Member::new(agent, SocketId::from_raw(0))
        };
        let mut place = Place::new(7);
        let members = (0..5).map(|_| member()).collect();
        place.open(Now { ns: 0 }, members, &mut Tally::default());
        let mut indices: Vec<usize> = (0..5)
            .flat_map(|from| (0..5).map(move |to| (from, to)))
            .filter(|(from, to)| from != to)
            .map(|(from, to)| place.flow_index(from, to))
            .collect();
        indices.sort_unstable();
        assert_eq!(indices, (0..20).collect::<Vec<_>>());
        assert_eq!(place.flows.len(), 20);
    }

    #[test]
    fn a_new_session_in_the_same_place_has_other_flows() {
        let mut place = Place::new(7);
        let before = place.flow_id(0, 1);
        place.vacate();
        assert_ne!(place.flow_id(0, 1), before);
    }
}
