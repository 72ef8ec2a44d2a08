//! A session of a protocol whose server introduces members to each other: the talk with the server ([`Talk`]), then greetings on
//! the ways that it has shown, then data on those that lead through the server. What the server has no relay for is not loaded:
//! members that were shown each other's own addresses send no data.

use std::net::SocketAddr;

use waypost_proto::time::Millis;

use super::greeting::{AGAIN_MS, Greeting};
use super::{Heard, Outbox, Session, Step};
use crate::clock::Now;

/// A protocol's talk with its server.
pub trait Talk {
    /// Asks for the session.
    fn begin(&mut self, asked_ns: u64, now: Now, ways: &mut Ways, out: &mut Outbox);

    /// Member `m` has received a datagram that is on none of its ways.
    fn hear(&mut self, m: usize, now: Now, told: Told<'_>, ways: &mut Ways, out: &mut Outbox);

    /// The time that member `m` had named has come.
    fn on_time(&mut self, m: usize, now: Now, ways: &mut Ways, out: &mut Outbox);

    /// When member `m` has something to say next. `is_open`: whether the members have found each other.
    fn next_time(&self, m: usize, is_open: bool) -> Option<Millis>;

    /// Takes leave. No answer is waited for, because these protocols have none.
    fn close(&mut self, now: Now, out: &mut Outbox);
}

/// A datagram and its source.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// Where it came from.
    pub from: SocketAddr,
    /// What it says.
    pub bytes: &'a [u8],
}

/// The ways from each member to each other one, as the server has shown them.
pub struct Ways {
    members: Vec<SocketAddr>,
    /// Whether members other than the host get to know each other.
    is_mesh: bool,
    shown: Vec<Option<SocketAddr>>,
    greetings: Vec<Greeting>,
    /// How many ways are still to be shown, and how many are not proven.
    hidden: usize,
    unproven: usize,
}

impl Ways {
    fn new(members: &[SocketAddr], is_mesh: bool) -> Self {
        let count = members.len();
        let ways = if is_mesh {
            count * (count - 1)
        } else {
            2 * (count - 1)
        };
        Self {
            members: members.to_vec(),
            is_mesh,
            shown: vec![None; count * count],
            greetings: vec![Greeting::default(); count * count],
            hidden: ways,
            unproven: ways,
        }
    }

    /// How many members there are.
    pub const fn count(&self) -> usize {
        self.members.len()
    }

    /// The address of a member's own socket.
    pub fn member(&self, m: usize) -> SocketAddr {
        self.members[m]
    }

    const fn index(&self, m: usize, other: usize) -> usize {
        m * self.members.len() + other
    }

    /// The server has shown `other` to `m`. What is shown first counts.
    pub fn show(&mut self, m: usize, other: usize, address: SocketAddr) {
        let is_wanted = m != other && (self.is_mesh || m == 0 || other == 0);
        let index = self.index(m, other);
        if is_wanted && self.shown[index].is_none() {
            self.shown[index] = Some(address);
            self.hidden -= 1;
        }
    }

    /// What `m` was shown of `other`.
    pub fn shown(&self, m: usize, other: usize) -> Option<SocketAddr> {
        self.shown[self.index(m, other)]
    }

    /// Whom `m` reaches at that address.
    fn who(&self, m: usize, at: SocketAddr) -> Option<usize> {
        let count = self.count();
        let row = &self.shown[m * count..(m + 1) * count];
        row.iter().position(|shown| *shown == Some(at))
    }

    fn greet(&self, m: usize, other: usize, out: &mut Outbox) {
        if let Some(at) = self.shown(m, other) {
            out.send(m, at, &self.greetings[self.index(m, other)].datagram());
        }
    }

    fn take_greeting(&mut self, m: usize, other: usize, bytes: &[u8], out: &mut Outbox) {
        let index = self.index(m, other);
        let greeting = &mut self.greetings[index];
        let was_done = greeting.is_done();
        let is_new = greeting.take(bytes);
        self.unproven -= usize::from(!was_done && greeting.is_done());
        let other_is_done = self.greetings[self.index(other, m)].is_done();
        if is_new || !other_is_done {
            self.greet(m, other, out);
        }
    }

    /// Greets all whom nobody has heard.
    fn greet_all(&self, out: &mut Outbox) {
        for m in 0..self.count() {
            for other in 0..self.count() {
                if !self.greetings[self.index(m, other)].is_done() {
                    self.greet(m, other, out);
                }
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Talking,
    /// When to greet again.
    Greeting(Millis),
    Open,
    Over,
}

/// One session.
pub struct Introduced<T> {
    talk: T,
    ways: Ways,
    stage: Stage,
}

impl<T: Talk> Introduced<T> {
    /// A session of members whose sockets have these addresses.
    pub fn new(talk: T, members: &[SocketAddr], is_mesh: bool) -> Self {
        Self {
            talk,
            ways: Ways::new(members, is_mesh),
            stage: Stage::Talking,
        }
    }

    fn look_round(&mut self, now: Now, out: &mut Outbox) {
        if self.stage == Stage::Talking && self.ways.hidden == 0 {
            self.stage = Stage::Greeting(now.millis() + AGAIN_MS);
            self.ways.greet_all(out);
        }
        if matches!(self.stage, Stage::Greeting(_)) && self.ways.unproven == 0 {
            self.stage = Stage::Open;
            out.step(Step::Open);
        }
        out.touches_all = true;
    }
}

impl<T: Talk> Session for Introduced<T> {
    fn begin(&mut self, asked_ns: u64, now: Now, out: &mut Outbox) {
        self.talk.begin(asked_ns, now, &mut self.ways, out);
        out.touches_all = true;
    }

    fn receive(
        &mut self,
        m: usize,
        now: Now,
        from: SocketAddr,
        bytes: &[u8],
        out: &mut Outbox,
    ) -> Heard {
        match self.ways.who(m, from) {
            Some(other) if Greeting::is_one(bytes) => {
                self.ways.take_greeting(m, other, bytes, out);
            }
            Some(from) => {
                return Heard::Data {
                    from,
                    range: 0..bytes.len(),
                };
            }
            // The other one was told earlier. It will greet again.
            None if Greeting::is_one(bytes) => return Heard::Control,
            None => {
                let told = Told { from, bytes };
                self.talk.hear(m, now, told, &mut self.ways, out);
            }
        }
        self.look_round(now, out);
        Heard::Control
    }

    fn on_time(&mut self, m: usize, now: Now, out: &mut Outbox) {
        self.talk.on_time(m, now, &mut self.ways, out);
        if let Stage::Greeting(at) = self.stage
            && m == 0
            && now.millis() >= at
        {
            self.stage = Stage::Greeting(now.millis() + AGAIN_MS);
            self.ways.greet_all(out);
        }
        self.look_round(now, out);
    }

    fn next_time(&self, m: usize) -> Option<Millis> {
        let is_open = self.stage == Stage::Open;
        let greeting = match self.stage {
            Stage::Greeting(at) if m == 0 => Some(at),
            _ => None,
        };
        let talk = self.talk.next_time(m, is_open);
        talk.into_iter().chain(greeting).min()
    }

    fn frame(
        &mut self,
        _now: Now,
        from: usize,
        to: usize,
        data: &[u8],
        frame: &mut Vec<u8>,
    ) -> Option<SocketAddr> {
        let at = self.ways.shown(from, to)?;
        frame.clear();
        frame.extend_from_slice(data);
        (at != self.ways.member(to)).then_some(at)
    }

    fn close(&mut self, now: Now, out: &mut Outbox) {
        self.stage = Stage::Over;
        self.talk.close(now, out);
        out.step(Step::Closed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shows everybody to everybody at once, at ports of a relay.
    struct Quick;

    impl Talk for Quick {
        fn begin(&mut self, _: u64, _: Now, ways: &mut Ways, _: &mut Outbox) {
            for m in 0..ways.count() {
                for other in 0..ways.count() {
                    ways.show(m, other, relayed(other));
                }
            }
        }
        fn hear(&mut self, _: usize, _: Now, _: Told<'_>, _: &mut Ways, _: &mut Outbox) {}
        fn on_time(&mut self, _: usize, _: Now, _: &mut Ways, _: &mut Outbox) {}
        fn next_time(&self, _: usize, _: bool) -> Option<Millis> {
            None
        }
        fn close(&mut self, _: Now, _: &mut Outbox) {}
    }

    fn relayed(m: usize) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 9000 + m as u16))
    }

    /// Members greet through a relay that loses the first `lost` datagrams.
    fn opens_after(members: usize, is_mesh: bool, mut lost: usize) -> bool {
        let own: Vec<SocketAddr> = (0..members)
            .map(|m| SocketAddr::from(([127, 1, 0, 1], 8000 + m as u16)))
            .collect();
        let mut session = Introduced::new(Quick, &own, is_mesh);
        let mut out = Outbox::default();
        session.begin(0, Now { ns: 0 }, &mut out);
        for tick in 1..1000u64 {
            let now = Now {
                ns: tick * 10_000_000,
            };
            if session.next_time(0).is_none_or(|at| at <= now.millis()) {
                session.on_time(0, now, &mut out);
            }
            let sent: Vec<_> = out
                .transmits()
                .map(|(from, to, bytes)| (from, to, bytes.to_vec()))
                .collect();
            let is_open = out.steps().any(|step| step == Step::Open);
            out.clear();
            if is_open {
                return true;
            }
            for (from, to, bytes) in sent {
                if lost > 0 {
                    lost -= 1;
                    continue;
                }
                let to = usize::from(to.port() - 9000);
                session.receive(to, now, relayed(from), &bytes, &mut out);
            }
        }
        false
    }

    #[test]
    fn members_greet_until_all_are_heard() {
        for (members, is_mesh) in [(2, true), (5, true), (5, false)] {
            for lost in 0..40 {
                assert!(opens_after(members, is_mesh, lost), "{members} {lost}");
            }
        }
    }

    #[test]
    fn only_relayed_ways_carry_data() {
        let own: Vec<SocketAddr> = ["127.1.0.1:1", "127.1.0.2:1"]
            .map(|at| at.parse().unwrap())
            .to_vec();
        let mut session = Introduced::new(Quick, &own, true);
        session.ways.show(0, 1, own[1]);
        session.ways.show(1, 0, relayed(0));
        let (now, mut frame) = (Now { ns: 0 }, Vec::new());
        assert_eq!(session.frame(now, 0, 1, b"data", &mut frame), None);
        let way = session.frame(now, 1, 0, b"data", &mut frame);
        assert_eq!((way, &frame[..]), (Some(relayed(0)), &b"data"[..]));
    }
}
