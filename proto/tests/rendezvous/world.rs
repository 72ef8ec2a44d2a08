//! N shards in memory: datagrams go to the shard that the source's port hashes to, mail is delivered in order, time is a
//! number. Never touches a socket or a clock.

use std::collections::{BTreeMap, VecDeque};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use waypost_proto::addr::{Addr, ClientAddr};
use waypost_proto::dialect::DialectConfig;
use waypost_proto::forwarding::SocketIndex;
use waypost_proto::lobby::door::{DoorAnswer, DoorRequest};
use waypost_proto::lobby::{LobbyConfig, Mail};
use waypost_proto::nonce::ServerSecret;
use waypost_proto::shard::{
    Inspection, Placement, RendezvousAccess, Shard, ShardConfig, SocketRole, Verdict,
};
use waypost_proto::stats::Counter;
use waypost_proto::time::{Millis, WallClock};
use waypost_proto::turn::TurnConfig;

/// Unix time at the start of every world.
pub const EPOCH_MS: u64 = 1_700_000_000_000;
pub const MAIN: SocketIndex = SocketIndex(0);

/// What a world is made with.
#[derive(Clone)]
pub struct Setup {
    pub shards: u16,
    pub lobby: LobbyConfig,
    pub access: RendezvousAccess,
    pub secret: [u8; 32],
    pub seed: u8,
}

impl Setup {
    pub fn new(shards: u16) -> Self {
        Self {
            shards,
            lobby: LobbyConfig {
                sessions_max: 4096,
                members_max: 4096,
                ..LobbyConfig::default()
            },
            access: RendezvousAccess::Open,
            secret: [42; 32],
            seed: 1,
        }
    }
}

pub struct World {
    pub setup: Setup,
    pub shards: Vec<Shard>,
    pub now: Millis,
    inboxes: BTreeMap<Addr, VecDeque<Vec<u8>>>,
    /// Share of datagrams lost, in both directions.
    pub loss: f64,
    pub rng: StdRng,
    /// Everything that was sent, if wanted: from the server, to whom.
    pub trace: Option<Vec<(Addr, Vec<u8>)>>,
    door_answers: BTreeMap<u64, DoorAnswer>,
    next_door: u64,
}

/// Runs a test with each number of shards.
pub fn with_each_shard_count(test: impl Fn(&mut World)) {
    for shards in 1..=3 {
        eprintln!("with {shards} shards");
        test(&mut World::new(Setup::new(shards)));
    }
}

impl World {
    pub fn new(setup: Setup) -> Self {
        let now = Millis(1000);
        let shards = Self::boot(&setup, now);
        Self {
            shards,
            setup,
            now,
            inboxes: BTreeMap::new(),
            loss: 0.0,
            rng: StdRng::seed_from_u64(7),
            trace: None,
            door_answers: BTreeMap::new(),
            next_door: 0,
        }
    }

    fn boot(setup: &Setup, now: Millis) -> Vec<Shard> {
        let shard = |index: u16| {
            let mut seed = [setup.seed; 32];
            seed[0] = index as u8;
            let config = ShardConfig {
                index,
                count: setup.shards,
                sockets: vec![SocketRole::Main, SocketRole::Probe],
                discovery: Vec::new(),
                lobby: setup.lobby.clone(),
                turn: TurnConfig::default(),
                dialects: DialectConfig::default(),
                access: setup.access.clone(),
                secret: ServerSecret(setup.secret),
                wall: WallClock {
                    unix_ms_at_zero: EPOCH_MS,
                },
                seed,
                placement_seeds: [u64::from(setup.seed), 2],
            };
            Shard::new(config, now)
        };
        (0..setup.shards).map(shard).collect()
    }

    /// The server process dies and another one starts.
    pub fn restart(&mut self, change: impl FnOnce(&mut Setup)) {
        self.setup.seed += 1;
        change(&mut self.setup);
        self.shards = Self::boot(&self.setup, self.now);
        self.inboxes.clear();
    }

    /// The shard that owns a session of this name.
    pub fn owner_of_name(&self, application: &str, name: &str) -> u16 {
        Placement::new([u64::from(self.setup.seed), 2], self.setup.shards)
            .of_name(application, name)
    }

    pub fn unix_secs(&self) -> u64 {
        (EPOCH_MS + self.now.0) / 1000
    }

    /// The shard whose socket gets what this source sends.
    pub fn home(&self, source: Addr) -> u16 {
        source.port() % self.setup.shards
    }

    pub fn is_lost(&mut self) -> bool {
        self.loss > 0.0 && self.rng.random_bool(self.loss)
    }

    /// A datagram arrives at the server's main socket.
    pub fn send(&mut self, source: Addr, datagram: &[u8]) -> Verdict {
        self.send_to(MAIN, source, datagram)
    }

    pub fn send_to(&mut self, socket: SocketIndex, source: Addr, datagram: &[u8]) -> Verdict {
        if self.is_lost() {
            return Verdict::Handled;
        }
        let home = usize::from(self.home(source));
        let verdict =
            self.shards[home].handle_datagram(self.now, socket, ClientAddr(source), datagram);
        if let Verdict::Forward(forward) = verdict {
            let mut bytes = forward.frame().header().to_vec();
            bytes.extend_from_slice(&datagram[forward.strip..forward.strip + forward.payload_len]);
            self.arrive(forward.route.to, bytes);
        }
        self.settle();
        verdict
    }

    fn arrive(&mut self, to: Addr, bytes: Vec<u8>) {
        if let Some(trace) = &mut self.trace {
            trace.push((to, bytes.clone()));
        }
        if !self.is_lost() {
            self.inboxes.entry(to).or_default().push_back(bytes);
        }
    }

    /// Delivers mail until there is none, and what the shards sent.
    pub fn settle(&mut self) {
        loop {
            let mut mail = Vec::new();
            let mut sent = Vec::new();
            for shard in &mut self.shards {
                let outbox = shard.outbox();
                mail.append(&mut outbox.mail);
                self.door_answers.extend(outbox.door.drain(..));
                for transmit in &outbox.transmits {
                    let bytes = outbox.bytes[transmit.start..transmit.end].to_vec();
                    sent.push((transmit.to, bytes));
                }
                outbox.clear();
            }
            for (to, bytes) in sent {
                assert!(bytes.len() <= 1200, "a message is at most 1,200 bytes");
                self.arrive(to, bytes);
            }
            if mail.is_empty() {
                return;
            }
            for (shard, mail) in mail {
                self.shards[usize::from(shard)].handle_mail(self.now, mail);
            }
        }
    }

    /// Lets time pass, stopping wherever a shard has something to do.
    pub fn advance(&mut self, millis: u64) {
        let until = self.now + millis;
        loop {
            let next = self.shards.iter().filter_map(Shard::poll_timeout).min();
            let stop = next.map_or(until, |at| at.max(self.now).min(until));
            self.now = stop;
            for shard in &mut self.shards {
                shard.handle_timeout(stop);
            }
            self.settle();
            if stop == until {
                return;
            }
        }
    }

    pub fn advance_secs(&mut self, secs: u64) {
        self.advance(secs * 1000);
    }

    /// The next datagram that arrived at this address.
    pub fn take(&mut self, at: Addr) -> Option<Vec<u8>> {
        self.inboxes.get_mut(&at)?.pop_front()
    }

    /// Everything that arrived anywhere since the last look.
    pub fn take_all(&mut self) -> Vec<(Addr, Vec<u8>)> {
        let inboxes = std::mem::take(&mut self.inboxes);
        inboxes
            .into_iter()
            .flat_map(|(addr, inbox)| inbox.into_iter().map(move |bytes| (addr, bytes)))
            .collect()
    }

    pub fn count(&mut self, counter: Counter) -> u64 {
        self.shards
            .iter_mut()
            .map(|shard| shard.counters().get(counter))
            .sum()
    }

    pub fn sessions(&mut self) -> u64 {
        self.count(Counter::Sessions)
    }

    pub fn members(&mut self) -> u64 {
        self.count(Counter::Members)
    }

    pub fn flows(&mut self) -> u64 {
        self.count(Counter::Flows)
    }

    /// Asks one shard through the matchmaker's door.
    pub fn door(&mut self, shard: u16, request: DoorRequest) -> DoorAnswer {
        self.next_door += 1;
        let mail = Mail::Door {
            id: self.next_door,
            request: Box::new(request),
        };
        self.shards[usize::from(shard)].handle_mail(self.now, mail);
        self.settle();
        self.door_answers
            .remove(&self.next_door)
            .expect("the door answers")
    }

    pub fn inspect(&self) -> Vec<Inspection> {
        self.shards.iter().map(Shard::inspect).collect()
    }

    /// Asserts what must be true of all shards together at any time.
    pub fn check(&self) {
        let inspections = self.inspect();
        let seats: Vec<_> = inspections.iter().flat_map(|i| &i.seats).collect();
        for (index, inspection) in inspections.iter().enumerate() {
            for (socket, addr, handle) in &inspection.flows {
                assert!(
                    seats.iter().any(|seat| !seat.is_departing
                        && seat.handle == *handle
                        && seat.addr == *addr
                        && seat.socket == *socket
                        && usize::from(seat.home) == index),
                    "the flow of {addr} on shard {index} belongs to no member"
                );
            }
        }
        let routed: usize = inspections.iter().map(|i| i.routed_sessions).sum();
        assert!(routed <= seats.len(), "no routes without members");
    }

    /// Asserts that every member reaches every other one of its session, and nobody else.
    pub fn check_routes(&mut self) {
        let inspections = self.inspect();
        let seats: Vec<_> = inspections
            .iter()
            .flat_map(|i| i.seats.clone())
            .filter(|seat| !seat.is_departing)
            .collect();
        for from in &seats {
            let home = usize::from(from.home);
            let flow = inspections[home]
                .flows
                .iter()
                .find(|(socket, addr, _)| (*socket, *addr) == (from.socket, from.addr));
            let (.., flow) = flow.expect("where a member is, there is a flow");
            if *flow != from.handle {
                continue; // It has another seat by now.
            }
            for seat in 0..8 {
                let to = seats.iter().find(|to| {
                    to.handle.code == from.handle.code
                        && to.handle.id.seat == seat
                        && !to.is_forming
                });
                let datagram = [0x40, seat, 0, 0];
                let source = ClientAddr(from.addr);
                let verdict =
                    self.shards[home].handle_datagram(self.now, from.socket, source, &datagram);
                match (verdict, to) {
                    (Verdict::Forward(forward), Some(to)) => {
                        assert_eq!(forward.route.to, to.addr, "to where that member is");
                        assert_eq!(forward.frame().header(), [0x40, from.handle.id.seat, 0, 0]);
                    }
                    (Verdict::Drop(Counter::DropNoRoute), None) => {}
                    other => panic!("{from:?} to seat {seat}: {other:?}"),
                }
            }
        }
    }

    /// Asserts that nothing is left of anything.
    pub fn check_empty(&mut self) {
        self.check();
        for inspection in self.inspect() {
            assert_eq!(inspection.seats, [], "seats");
            assert_eq!(inspection.flows, [], "flows");
            assert_eq!(inspection.sessions, 0, "sessions");
            assert_eq!(inspection.routed_sessions, 0, "routes");
            assert_eq!(inspection.timers, 0, "timers");
        }
        assert_eq!((self.sessions(), self.members(), self.flows()), (0, 0, 0));
    }
}
