//! What happens in a seeded run: some players behind some NATs meet, talk, and have their troubles; in the end all pairs are
//! connected, and when everybody has gone nothing is left.

use rand::RngExt;
use waypost_proto::addr::Addr;
use waypost_proto::agent::{Agent, HostConfig, Path, PathPolicy, Target};

use crate::Violation;
use crate::check::{Expected, expected};
use crate::nat::{Nat, NatKind};
use crate::net::{LanId, PUBLIC};
use crate::world::{Faults, World};

/// What came of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Pairs of players that were connected at the end.
    pub pairs: u32,
    /// Of those, directly.
    pub direct: u32,
    /// Datagrams delivered.
    pub delivered: u64,
    /// Of those, directly.
    pub delivered_directly: u64,
}

/// Something that goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Trouble {
    Nothing,
    /// A NAT restarts and gives other ports.
    NatReboot(usize),
    /// The server is killed and comes back with so many shards, with its secret or without.
    ServerRestart(u16, bool),
    /// The server's machine stands still for so many seconds.
    Standstill(u64),
    /// A machine sleeps for so many seconds.
    Sleep(usize, u64),
    /// A player leaves and joins again.
    Rejoin(usize),
    /// The network loses a third of everything.
    Storm,
}

/// Runs the world of one seed.
///
/// # Errors
/// The rule that was broken.
pub fn run(seed: u64) -> Result<Report, Violation> {
    let mut scenario = Scenario::new(seed);
    scenario
        .play()
        .map_err(|Violation(what)| {
            Violation(format!(
                "seed {seed}, {} ms: {what}\n  {}\n  repeat it: cargo run -p waypost-sim --release -- --seeds 1 --start {seed}",
                scenario.world.now,
                scenario.describe()
            ))
        })?;
    Ok(scenario.report)
}

struct Scenario {
    world: World,
    troubles: Vec<Trouble>,
    places: Vec<LanId>,
    session: Option<Target>,
    report: Report,
}

impl Scenario {
    fn new(seed: u64) -> Self {
        let mut world = World::new(seed, 1, 7);
        let shards = world.rng.random_range(1..=3);
        world.restart_server(shards, true);
        world.net.public_hops = if world.rng.random_bool(0.8) {
            world.rng.random_range(5..12)
        } else {
            world.rng.random_range(1..5)
        };
        world.faults = match world.rng.random_range(0..4) {
            0 => Faults::default(),
            1 => Faults {
                loss: 0.05,
                duplication: 0.05,
                jitter_ms: 40,
            },
            2 => Faults {
                loss: 0.3,
                duplication: 0.0,
                jitter_ms: 10,
            },
            _ => Faults {
                loss: 0.1,
                duplication: 0.1,
                jitter_ms: 300,
            },
        };
        let mut scenario = Self {
            world,
            troubles: Vec::new(),
            places: Vec::new(),
            session: None,
            report: Report::default(),
        };
        scenario.settle_players();
        scenario.choose_troubles();
        scenario
    }

    fn settle_players(&mut self) {
        let world = &mut self.world;
        let players = world.rng.random_range(2..=4);
        for player in 0..players {
            let neighbour = self.places.last().copied();
            let lan = match (world.rng.random_range(0..10), neighbour) {
                (0, _) => PUBLIC,
                (1 | 2, Some(lan)) => lan,
                (3 | 4, _) => {
                    let carrier = add_nat(world, PUBLIC, player * 2);
                    add_nat(world, carrier, player * 2 + 1)
                }
                // Another home behind the carrier of the last one, if it has one.
                (5, Some(lan)) => {
                    let above = world.net.lans_above(lan);
                    let carrier = if above.len() > 2 { above[1] } else { PUBLIC };
                    add_nat(world, carrier, player * 2)
                }
                _ => add_nat(world, PUBLIC, player * 2),
            };
            let addr = if lan == PUBLIC {
                Addr::from_ip_port([203, 0, 113, player].into(), 40_000)
            } else {
                // The same inner addresses in every home, as it is.
                let same_home = self.places.iter().filter(|place| **place == lan).count();
                Addr::from_ip_port([192, 168, 0, 2 + same_home as u8].into(), 40_000)
            };
            let policy = match world.rng.random_range(0..8) {
                0 => PathPolicy::RelayOnly,
                1 => PathPolicy::RelayFirst,
                _ => PathPolicy::DirectFirst,
            };
            world.add_host(lan, addr, |config| config.policy = policy);
            self.places.push(lan);
        }
    }

    fn choose_troubles(&mut self) {
        let rng = &mut self.world.rng;
        for _ in 0..rng.random_range(1..=3) {
            let who = rng.random_range(0..self.places.len());
            let trouble = match rng.random_range(0..10) {
                0 | 1 => Trouble::NatReboot(who),
                2 | 3 => Trouble::ServerRestart(rng.random_range(1..=3), true),
                4 => Trouble::ServerRestart(rng.random_range(1..=3), false),
                5 => Trouble::Sleep(who, rng.random_range(5..90)),
                6 => Trouble::Rejoin(who),
                7 => Trouble::Storm,
                8 => Trouble::Standstill(rng.random_range(1..100)),
                _ => Trouble::Nothing,
            };
            self.troubles.push(trouble);
        }
    }

    fn describe(&self) -> String {
        let places: Vec<String> = self
            .places
            .iter()
            .map(|&lan| {
                let nats = self.world.net.nats_above(lan);
                let kinds: Vec<&str> = nats.iter().map(|nat| nat.kind.name()).collect();
                format!("{} [{}]", lan.0, kinds.join(" < "))
            })
            .collect();
        format!(
            "{} shards, {} hops, {:?}, players in {}; then {:?}",
            self.world.shards.len(),
            self.world.net.public_hops,
            self.world.faults,
            places.join(", "),
            self.troubles
        )
    }

    fn play(&mut self) -> Result<(), Violation> {
        self.meet()?;
        self.expect_connected(25_000, true)?;
        for trouble in self.troubles.clone() {
            self.suffer(trouble)?;
        }
        self.world.check_tables()?;
        self.count_pairs();
        self.go_home()
    }

    fn meet(&mut self) -> Result<(), Violation> {
        let named = self.world.rng.random_bool(0.5);
        let name = named.then(|| "room".to_owned());
        let host = HostConfig {
            name: name.clone(),
            password: "sesame".to_owned(),
            ..HostConfig::default()
        };
        self.world
            .with_agent(0, |agent, now| agent.host(now, host))?;
        self.wait_for_seat(0)?;
        let code = self.seat_code(0);
        self.session = name.map(Target::Name).or(code.map(Target::Code));
        for player in 1..self.places.len() {
            self.join(player)?;
            let pause = self.world.rng.random_range(0..400);
            self.world.advance(pause)?;
        }
        for player in 1..self.places.len() {
            self.wait_for_seat(player)?;
        }
        Ok(())
    }

    fn join(&mut self, player: usize) -> Result<(), Violation> {
        let Some(target) = self.session.clone() else {
            return Err(Violation("there is nothing to join".to_owned()));
        };
        let asked = self
            .world
            .with_agent(player, |agent, now| agent.join(now, target, "sesame"))?;
        match asked {
            Some(Ok(_)) => Ok(()),
            other => Err(Violation(format!("player {player} may not ask: {other:?}"))),
        }
    }

    fn seat_code(&self, player: usize) -> Option<waypost_proto::wire::join_code::JoinCode> {
        Some(self.world.agent(player)?.seat()?.handle.code)
    }

    fn wait_for_seat(&mut self, player: usize) -> Result<(), Violation> {
        for _ in 0..150 {
            if self.seat_code(player).is_some() {
                return Ok(());
            }
            self.world.advance(100)?;
        }
        Err(Violation(format!(
            "player {player} has no seat after 15 s: {:?}",
            self.world.hosts[player].events.last()
        )))
    }

    fn suffer(&mut self, trouble: Trouble) -> Result<(), Violation> {
        self.world.ports_have_changed |= trouble != Trouble::Nothing;
        match trouble {
            Trouble::Nothing => self.world.advance(20_000)?,
            Trouble::NatReboot(player) => {
                let lan = self.places[player];
                self.world.net.reboot_nat(lan);
            }
            Trouble::ServerRestart(shards, keep_secret) => {
                self.world.restart_server(shards, keep_secret);
                if !keep_secret {
                    return self.meet_again();
                }
            }
            Trouble::Sleep(player, secs) => {
                self.world.hosts[player].asleep_until = self.world.now + secs * 1000;
                self.world.advance(secs * 1000)?;
                if secs >= 20 {
                    // The seat may be gone by now.
                    self.world.advance(5_000)?;
                    return self.meet_again();
                }
            }
            Trouble::Standstill(secs) => self.stand_still(secs)?,
            Trouble::Rejoin(player) => {
                self.world
                    .with_agent(player, |agent, now| agent.leave(now))?;
                self.world.advance(16_000)?;
                return self.meet_again();
            }
            Trouble::Storm => {
                let calm = self.world.faults;
                self.world.faults.loss = 0.35;
                self.world.advance(20_000)?;
                self.world.faults = calm;
            }
        }
        // Two keepalives, then time to punch.
        self.expect_connected(60_000, false)
    }

    /// Nobody loses a seat because the server's machine stood still.
    fn stand_still(&mut self, secs: u64) -> Result<(), Violation> {
        self.world.server_asleep_until = self.world.now + secs * 1000;
        self.world.advance(secs * 1000 + 1)?;
        let seats: Vec<bool> = (0..self.places.len())
            .map(|player| self.seat_code(player).is_some())
            .collect();
        self.world.advance(40_000)?;
        for (player, had_seat) in seats.into_iter().enumerate() {
            if had_seat && self.seat_code(player).is_none() {
                return Err(Violation(format!(
                    "player {player} lost its seat by the standstill"
                )));
            }
        }
        Ok(())
    }

    /// Whoever has lost its seat joins whoever has one, as people do.
    fn meet_again(&mut self) -> Result<(), Violation> {
        self.world.advance(20_000)?;
        let codes: Vec<_> = (0..self.places.len())
            .map(|player| self.seat_code(player))
            .collect();
        let keeper = codes.iter().position(Option::is_some);
        match keeper {
            Some(keeper) => {
                self.session = codes[keeper].map(Target::Code);
                for (player, code) in codes.iter().enumerate() {
                    if *code == codes[keeper] {
                        continue;
                    }
                    if code.is_some() {
                        self.world
                            .with_agent(player, |agent, now| agent.leave(now))?;
                        self.world.advance(16_000)?;
                    }
                    self.join_or_wait(player)?;
                }
            }
            None => {
                // Seats that their owners have lost sight of are given up.
                self.world.advance(45_000)?;
                self.meet()?;
            }
        }
        self.expect_connected(60_000, false)
    }

    /// Joins; where the server still has a seat for this very address, once more when that has been given up.
    fn join_or_wait(&mut self, player: usize) -> Result<(), Violation> {
        self.join(player)?;
        if self.wait_for_seat(player).is_err() {
            self.world.advance(45_000)?;
            self.join(player)?;
            self.wait_for_seat(player)?;
        }
        Ok(())
    }

    /// Within `patience_ms` every application hears every other one. `fresh` pairs have just been introduced, with nothing
    /// amiss, so that theory tells their path.
    fn expect_connected(&mut self, patience_ms: u64, fresh: bool) -> Result<(), Violation> {
        let deadline = self.world.now + patience_ms;
        loop {
            self.world.advance(1_000)?;
            match self.unconnected(fresh) {
                None => return Ok(()),
                Some(what) if self.world.now >= deadline => return Err(Violation(what)),
                Some(_) => {}
            }
        }
    }

    fn unconnected(&self, fresh: bool) -> Option<String> {
        let players = self.places.len();
        let pairs = (0..players).flat_map(|a| (0..players).map(move |b| (a, b)));
        for (a, b) in pairs.filter(|(a, b)| a != b) {
            let heard = self.world.hosts[b].heard.get(&a).copied().unwrap_or(0);
            if heard + 3_000 < self.world.now {
                return Some(format!(
                    "{b} has not heard {a} since {heard} ms; paths {:?} and {:?}",
                    self.world.path(a, b),
                    self.world.path(b, a)
                ));
            }
            let expected = self.expected(a, b);
            let path = self.world.path(a, b);
            let policy = |player| self.policy(player);
            if [policy(a), policy(b)].contains(&PathPolicy::RelayOnly)
                && matches!(path, Some(Path::Direct | Path::Punching))
            {
                return Some(format!("{a} reaches {b} by {path:?}, against their will"));
            }
            if policy(a) != PathPolicy::DirectFirst || policy(b) == PathPolicy::RelayOnly {
                continue;
            }
            if fresh && self.theory_holds(a, b) && !expected.allows(path) {
                return Some(format!(
                    "{a} reaches {b} by {path:?}, {expected:?} was expected"
                ));
            }
            if expected == Expected::Relayed && path == Some(Path::Direct) {
                return Some(format!("{a} reaches {b} directly, which cannot be"));
            }
        }
        None
    }

    fn policy(&self, player: usize) -> PathPolicy {
        self.world
            .agent(player)
            .map_or(PathPolicy::default(), |agent| agent.config().policy)
    }

    /// Whether the network is good enough for theory. Where a third of all packets is lost, so are all checks now and then;
    /// and a NAT that remembers strangers must have been opened before the peer's first check, which a late event prevents.
    fn theory_holds(&self, a: usize, b: usize) -> bool {
        let faults = self.world.faults;
        let remembers = [a, b].iter().any(|&player| {
            let nats = self.world.net.nats_above(self.places[player]);
            nats.iter()
                .any(|nat| nat.kind == NatKind::RemembersStrangers)
        });
        if remembers {
            faults.loss == 0.0 && faults.jitter_ms == 0
        } else {
            faults.loss < 0.2
        }
    }

    fn expected(&self, a: usize, b: usize) -> Expected {
        expected(&self.world.net, self.places[a], self.places[b])
    }

    fn count_pairs(&mut self) {
        for a in 0..self.places.len() {
            for b in a + 1..self.places.len() {
                self.report.pairs += 1;
                let direct = self.world.path(a, b) == Some(Path::Direct);
                self.report.direct += u32::from(direct);
            }
        }
        self.report.delivered = self.world.checker.delivered;
        self.report.delivered_directly = self.world.checker.delivered_directly;
    }

    /// Some leave, some just vanish; a minute later the server has forgotten all.
    fn go_home(&mut self) -> Result<(), Violation> {
        for player in 0..self.places.len() {
            self.world.hosts[player].talks = false;
            if self.world.rng.random_bool(0.5) {
                self.world
                    .with_agent(player, |agent, now| agent.leave(now))?;
                self.world.advance(2_000)?;
                if self.world.agent(player).and_then(Agent::seat).is_some() {
                    self.world.advance(14_000)?;
                }
            }
            self.world.hosts[player].agent = None;
        }
        // Everything that may still be told has been told, and every timer has found nothing to do.
        self.world.advance(90_000)?;
        self.world.check_empty()
    }
}

fn add_nat(world: &mut World, outside: LanId, number: u8) -> LanId {
    let kind = NatKind::ALL[world.rng.random_range(0..NatKind::ALL.len())];
    let outer = if outside == PUBLIC {
        [203, 0, 113, 100 + number]
    } else {
        [100, 64, 0, 100 + number]
    };
    let hairpin = world.rng.random_bool(0.5);
    let seed = world.rng.random();
    world
        .net
        .add_nat(outside, Nat::new(kind, outer.into(), hairpin, seed))
}
