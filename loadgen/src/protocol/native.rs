//! A session in Waypost's own protocol: one agent per member. All are relayed, or (to load the introduction) all punch.

use std::net::SocketAddr;

use waypost_proto::agent::{
    Agent, Config, Event, Failure, HostConfig, Path, SessionEvent, Target, describe,
};
use waypost_proto::time::Millis;
use waypost_proto::wire::native::SeatId;

use super::{Heard, Outbox, Session, Step};
use crate::clock::Now;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Opening,
    Open,
    Closing,
    Over,
}

/// The members' sides of the protocol.
pub struct NativeSession {
    agents: Vec<Agent>,
    asked_ns: Vec<u64>,
    /// The members' seats, once they all have one.
    seats: Vec<SeatId>,
    stage: Stage,
    /// Whether the session is open only when all paths are direct.
    punches: bool,
}

impl NativeSession {
    /// A member for each seed.
    pub fn new(
        config: Config,
        punches: bool,
        seeds: impl Iterator<Item = [u8; 32]>,
        now: Now,
    ) -> Self {
        let agents: Vec<Agent> = seeds
            .map(|seed| Agent::new(now.millis(), config.clone(), seed))
            .collect();
        Self {
            asked_ns: vec![now.ns; agents.len()],
            seats: Vec::new(),
            stage: Stage::Opening,
            punches,
            agents,
        }
    }

    /// Sends what the agent of a member wants sent and hears what it has to tell.
    fn pump(&mut self, m: usize, now: Now, out: &mut Outbox) {
        self.transmit(m, out);
        self.hear(m, now, out);
        let seated = |agent: &Agent| agent.seat().is_some();
        if self.stage == Stage::Closing && !self.agents.iter().any(seated) {
            self.stage = Stage::Over;
            out.step(Step::Closed);
        }
    }

    fn transmit(&mut self, m: usize, out: &mut Outbox) {
        while let Some(transmit) = self.agents[m].poll_transmit() {
            out.send(m, transmit.to.to_socket_addr(), &transmit.bytes);
        }
    }

    fn hear(&mut self, m: usize, now: Now, out: &mut Outbox) {
        while let Some(event) = self.agents[m].poll_event() {
            match (self.stage, event) {
                (Stage::Opening, Event::Done { .. }) => {
                    if m == 0 {
                        out.step(Step::Hosted(self.asked_ns[m]));
                        self.join_all(now, out);
                    } else {
                        out.step(Step::Joined(self.asked_ns[m]));
                    }
                    self.look_round(out);
                }
                (
                    Stage::Opening,
                    Event::Session(SessionEvent::MemberJoined(_) | SessionEvent::PathChanged(..)),
                ) => self.look_round(out),
                (Stage::Opening | Stage::Open, event) => {
                    if let Some(reason) = trouble(&event) {
                        self.fail(reason, out);
                    }
                }
                (Stage::Closing | Stage::Over, _) => {}
            }
        }
    }

    fn join_all(&mut self, now: Now, out: &mut Outbox) {
        let Some(seat) = self.agents[0].seat() else {
            return;
        };
        out.limits = Some(seat.limits);
        let code = seat.code();
        for m in 1..self.agents.len() {
            self.asked_ns[m] = now.ns;
            if let Err(refused) = self.agents[m].join(now.millis(), Target::Code(code), "") {
                self.fail(format!("joining: {refused}"), out);
                return;
            }
            self.transmit(m, out);
        }
        out.touches_all = true;
    }

    /// The session is open once every member knows every other one.
    fn look_round(&mut self, out: &mut Outbox) {
        let seat = |agent: &Agent| agent.seat().map(|seat| seat.id());
        let Some(seats) = self.agents.iter().map(seat).collect::<Option<Vec<_>>>() else {
            return;
        };
        let knows_all = |(m, agent): (usize, &Agent)| {
            let mut others = seats.iter().enumerate().filter(|(other, _)| *other != m);
            others.all(|(_, seat)| {
                agent.member(*seat).is_some()
                    && (!self.punches || agent.path(*seat) == Some(Path::Direct))
            })
        };
        if self.stage == Stage::Opening && self.agents.iter().enumerate().all(knows_all) {
            self.seats = seats;
            self.stage = Stage::Open;
            out.step(Step::Open);
        }
    }

    fn fail(&mut self, reason: String, out: &mut Outbox) {
        self.stage = Stage::Over;
        out.fail(reason);
    }
}

impl Session for NativeSession {
    fn begin(&mut self, asked_ns: u64, now: Now, out: &mut Outbox) {
        self.asked_ns[0] = asked_ns;
        let config = HostConfig {
            max_members: u8::try_from(self.agents.len()).expect("at most 255 members"),
            ..HostConfig::default()
        };
        match self.agents[0].host(now.millis(), config) {
            Ok(_) => self.pump(0, now, out),
            Err(refused) => self.fail(format!("hosting: {refused}"), out),
        }
    }

    fn receive(
        &mut self,
        m: usize,
        now: Now,
        from: SocketAddr,
        bytes: &[u8],
        out: &mut Outbox,
    ) -> Heard {
        let is_data = bytes.first().is_some_and(|first| first >> 6 == 1);
        let delivery = self.agents[m].handle_datagram(now.millis(), from.into(), bytes);
        match delivery {
            Some(delivery) => {
                let sender = self.seats.iter().position(|seat| *seat == delivery.from);
                sender.map_or(Heard::Refused, |from| Heard::Data {
                    from,
                    range: delivery.range,
                })
            }
            None if is_data => Heard::Refused,
            None => {
                self.pump(m, now, out);
                Heard::Control
            }
        }
    }

    fn on_time(&mut self, m: usize, now: Now, out: &mut Outbox) {
        self.agents[m].handle_timeout(now.millis());
        self.pump(m, now, out);
    }

    fn next_time(&self, m: usize) -> Option<Millis> {
        self.agents[m].poll_timeout()
    }

    fn frame(
        &mut self,
        now: Now,
        from: usize,
        to: usize,
        data: &[u8],
        frame: &mut Vec<u8>,
    ) -> Option<SocketAddr> {
        let seat = *self.seats.get(to)?;
        // A member that has just gone is told by an event; until then there is no way.
        let address = self.agents[from].frame(now.millis(), seat, data, frame);
        address.ok().map(|address| address.to_socket_addr())
    }

    fn close(&mut self, now: Now, out: &mut Outbox) {
        self.stage = Stage::Closing;
        match self.agents[0].close(now.millis()) {
            Ok(_) => self.pump(0, now, out),
            Err(refused) => self.fail(format!("closing: {refused}"), out),
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
