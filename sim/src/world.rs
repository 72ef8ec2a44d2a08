//! Server, players, network and time. Everything happens at a millisecond, in an order that the seed decides.

mod connection;

use std::collections::{BTreeMap, HashMap};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use waypost_proto::addr::{Addr, ClientAddr};
use waypost_proto::agent::{Agent, Config, Event, Path, PathPolicy, Probing};
use waypost_proto::dialect::DialectConfig;
use waypost_proto::forwarding::SocketIndex;
use waypost_proto::lobby::{LobbyConfig, Mail};
use waypost_proto::nonce::ServerSecret;
use waypost_proto::shard::{RendezvousAccess, Shard, ShardConfig, SocketRole, Verdict};
use waypost_proto::time::{Millis, WallClock};
use waypost_proto::turn::TurnConfig;
use waypost_proto::wire;

use crate::Violation;
use crate::check::{Checker, Datagram};
use crate::net::{Endpoint, LanId, Net, PUBLIC, Packet, TTL};
use connection::Connection;

const SERVER_PORTS: [u16; 2] = [3478, 3479];
const UNIX_MS_AT_ZERO: u64 = 1_700_000_000_000;
/// The server's way to the public network, milliseconds.
const SERVER_LATENCY_MS: u64 = 2;
/// Longest that mail between shards takes, milliseconds.
const MAIL_MS_MAX: u64 = 3;
/// A world that goes through so many steps within one millisecond turns in circles.
const STEPS_PER_MS_MAX: u32 = 100_000;

/// What the network does to packets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Share that is lost.
    pub loss: f64,
    /// Share that is doubled.
    pub duplication: f64,
    /// Most that a packet is late, milliseconds; so they overtake each other.
    pub jitter_ms: u64,
}

/// A player's machine.
pub struct Host {
    /// Its network.
    pub lan: LanId,
    /// The address of its socket there.
    pub addr: Addr,
    /// Its way to the public network takes so long, milliseconds.
    pub latency_ms: u64,
    /// The agent; none while the process is down.
    pub agent: Option<Agent>,
    /// Its own clock is so far ahead, milliseconds.
    pub clock_ahead_ms: u64,
    /// The machine sleeps until then.
    pub asleep_until: u64,
    /// Whether its application sends to everybody.
    pub talks: bool,
    /// When it last heard from each other host's application.
    pub heard: HashMap<usize, u64>,
    /// Events that its application has seen.
    pub events: Vec<Event>,
    /// When it first sent a check to another host.
    pub first_check: Option<u64>,
    next_sequence: u32,
}

enum Item {
    Packet {
        lan: LanId,
        packet: Packet,
    },
    Mail {
        shard: u16,
        mail: Mail,
    },
    /// A message on a connection over TCP, by its number.
    Said {
        connection: usize,
        to_server: bool,
        bytes: Vec<u8>,
    },
}

/// The world.
pub struct World {
    /// Milliseconds since its beginning.
    pub now: u64,
    /// Everything random that is not the shards' or the agents' own.
    pub rng: StdRng,
    /// The network.
    pub net: Net,
    /// What it does to packets.
    pub faults: Faults,
    /// The players.
    pub hosts: Vec<Host>,
    /// The shards of the server.
    pub shards: Vec<Shard>,
    /// Whether a NAT has ever forgotten its mappings, by a restart or because nobody used them.
    pub ports_have_changed: bool,
    /// What has been seen.
    pub checker: Checker,
    /// The server's machine stands still until then; what is sent to it meanwhile is lost.
    pub server_asleep_until: u64,
    server: Addr,
    secret: [u8; 32],
    agenda: BTreeMap<(u64, u64), Item>,
    next_item: u64,
    mail_due: HashMap<(u16, u16), u64>,
    next_talk: u64,
    talk_every_ms: u64,
    connections: Vec<Connection>,
}

impl World {
    /// A world with a server of `shards` shards and nobody else.
    #[must_use]
    pub fn new(seed: u64, shards: u16, public_hops: u8) -> Self {
        let server = Addr::from_ip_port([198, 51, 100, 1].into(), SERVER_PORTS[0]);
        let mut net = Net::new(public_hops);
        for port in SERVER_PORTS {
            net.add_endpoint(PUBLIC, server.with_port(port), Endpoint::Server);
        }
        let mut world = Self {
            now: 1000,
            rng: StdRng::seed_from_u64(seed),
            net,
            faults: Faults::default(),
            hosts: Vec::new(),
            shards: Vec::new(),
            ports_have_changed: false,
            checker: Checker::default(),
            server_asleep_until: 0,
            server,
            secret: [0; 32],
            agenda: BTreeMap::new(),
            next_item: 0,
            mail_due: HashMap::new(),
            next_talk: 0,
            talk_every_ms: 100,
            connections: Vec::new(),
        };
        world.secret = world.rng.random();
        world.boot(shards);
        world
    }

    /// Every application sends so often, milliseconds.
    pub const fn talk_every(&mut self, millis: u64) {
        self.talk_every_ms = millis;
        self.next_talk = self.now;
    }

    fn boot(&mut self, count: u16) {
        let placement_seeds = self.rng.random();
        let streams = (0..count).map(|shard| SocketRole::Stream {
            shard,
            is_tls: false,
        });
        let sockets: Vec<_> = [SocketRole::Main, SocketRole::Probe]
            .into_iter()
            .chain(streams)
            .collect();
        self.shards = (0..count)
            .map(|index| {
                let config = ShardConfig {
                    index,
                    count,
                    sockets: sockets.clone(),
                    discovery: Vec::new(),
                    lobby: LobbyConfig {
                        sessions_max: 64,
                        members_max: 256,
                        probe_port: SERVER_PORTS[1],
                        ..LobbyConfig::default()
                    },
                    access: RendezvousAccess::Open,
                    secret: ServerSecret(self.secret),
                    wall: WallClock {
                        unix_ms_at_zero: UNIX_MS_AT_ZERO,
                    },
                    seed: self.rng.random(),
                    placement_seeds,
                    turn: TurnConfig::default(),
                    dialects: DialectConfig::default(),
                };
                Shard::new(config, Millis(self.now))
            })
            .collect();
    }

    /// The server process is killed and started anew, with as many shards as told. Without `keep_secret` it does not know
    /// what it was.
    pub fn restart_server(&mut self, shards: u16, keep_secret: bool) {
        if !keep_secret {
            self.secret = self.rng.random();
        }
        self.agenda
            .retain(|_, item| matches!(item, Item::Packet { .. }));
        self.connections.clear();
        self.mail_due.clear();
        self.boot(shards);
    }

    /// Puts a player's machine into a network; its agent waits to be told what to do.
    pub fn add_host(
        &mut self,
        lan: LanId,
        addr: Addr,
        configure: impl FnOnce(&mut Config),
    ) -> usize {
        let number = self.hosts.len();
        let mut config = Config::new(self.server, "sim");
        config.probing = Probing::First(SERVER_PORTS[1]);
        config.local_addresses = vec![addr];
        config.member_data = vec![number as u8];
        configure(&mut config);
        let clock_ahead_ms = self.rng.random_range(0..1_000_000_000);
        let agent = Agent::new(Millis(self.now + clock_ahead_ms), config, self.rng.random());
        let latency_ms = self.rng.random_range(4..60);
        self.net.add_endpoint(lan, addr, Endpoint::Host(number));
        self.hosts.push(Host {
            lan,
            addr,
            latency_ms,
            agent: Some(agent),
            clock_ahead_ms,
            asleep_until: 0,
            talks: true,
            heard: HashMap::new(),
            events: Vec::new(),
            first_check: None,
            next_sequence: 0,
        });
        number
    }

    /// The time as this host sees it.
    #[must_use]
    pub fn time_at(&self, host: usize) -> Millis {
        Millis(self.now + self.hosts[host].clock_ahead_ms)
    }

    /// Has a host's agent do something, and sends what comes of it.
    ///
    /// # Errors
    /// A rule was broken.
    pub fn with_agent<T>(
        &mut self,
        host: usize,
        what: impl FnOnce(&mut Agent, Millis) -> T,
    ) -> Result<Option<T>, Violation> {
        let now = self.time_at(host);
        let Some(agent) = &mut self.hosts[host].agent else {
            return Ok(None);
        };
        let result = what(agent, now);
        self.drain_agent(host)?;
        Ok(Some(result))
    }

    /// The agent of a host, if its process runs.
    #[must_use]
    pub fn agent(&self, host: usize) -> Option<&Agent> {
        self.hosts[host].agent.as_ref()
    }

    /// The path that data of one host to another take, by the sender's word.
    #[must_use]
    pub fn path(&self, from: usize, to: usize) -> Option<Path> {
        let to = self.agent(to)?.seat()?.handle;
        let agent = self.agent(from)?;
        (agent.seat()?.handle.code == to.code).then(|| agent.path(to.id))?
    }

    fn schedule(&mut self, at: u64, item: Item) {
        self.next_item += 1;
        self.agenda.insert((at, self.next_item), item);
    }

    fn launch(&mut self, from: LanId, mut packet: Packet, latency_ms: u64) {
        let Some(lan) = self.net.climb(self.now, from, &mut packet) else {
            return;
        };
        let loss = if lan == PUBLIC { self.faults.loss } else { 0.0 };
        let copies = 1 + u32::from(self.rng.random_bool(self.faults.duplication));
        for copy in 0..copies {
            if copy > 0 {
                self.checker.copied(&packet.bytes);
            }
            if self.rng.random_bool(loss) {
                continue;
            }
            let late = self.rng.random_range(0..=self.faults.jitter_ms);
            let at = self.now + 1 + latency_ms + late;
            let packet = packet.clone();
            self.schedule(at, Item::Packet { lan, packet });
        }
    }

    fn drain_agent(&mut self, host: usize) -> Result<(), Violation> {
        let (lan, addr, latency_ms) = {
            let host = &self.hosts[host];
            (host.lan, host.addr, host.latency_ms)
        };
        while let Some(agent) = &mut self.hosts[host].agent {
            let Some(transmit) = agent.poll_transmit() else {
                break;
            };
            if transmit.to.ip() != self.server.ip() {
                if self.is_hidden(host, transmit.to) {
                    crate::check::leaked(host, transmit.to)?;
                }
                if transmit.ttl.is_none() {
                    self.hosts[host].first_check.get_or_insert(self.now);
                }
                let peers = self.hosts.len() - 1;
                self.checker
                    .host_sends(self.now, host, peers, transmit.to)?;
            }
            let packet = Packet {
                from: addr,
                to: transmit.to,
                ttl: transmit.ttl.unwrap_or(TTL),
                bytes: transmit.bytes,
            };
            self.launch(lan, packet, latency_ms);
        }
        while let Some(agent) = &mut self.hosts[host].agent {
            let Some(event) = agent.poll_event() else {
                break;
            };
            self.hosts[host].events.push(event);
        }
        Ok(())
    }

    /// Whether another host that takes the relay only, and shares no NAT with anybody, is seen at this address.
    fn is_hidden(&self, by: usize, addr: Addr) -> bool {
        self.hosts.iter().enumerate().any(|(number, host)| {
            let hidden = host
                .agent
                .as_ref()
                .filter(|agent| number != by && agent.config().policy == PathPolicy::RelayOnly);
            let mapped = hidden
                .and_then(|agent| agent.seat())
                .and_then(|seat| seat.mapped);
            let alone = || {
                let shares = |other: &Host| {
                    let lans = self.net.lans_above(other.lan);
                    lans.iter()
                        .any(|lan| *lan != PUBLIC && self.net.lans_above(host.lan).contains(lan))
                };
                self.hosts.iter().filter(|other| shares(other)).count() <= 1
            };
            hidden.is_some()
                && (mapped == Some(addr) || host.addr == addr && host.lan == PUBLIC)
                && alone()
        })
    }

    fn drain_shards(&mut self) -> Result<(), Violation> {
        for index in 0..self.shards.len() {
            let outbox = self.shards[index].outbox();
            let mail = std::mem::take(&mut outbox.mail);
            let sent: Vec<(SocketIndex, Addr, Vec<u8>)> = outbox
                .transmits
                .iter()
                .map(|t| (t.socket, t.to, outbox.bytes[t.start..t.end].to_vec()))
                .collect();
            outbox.clear();
            for (socket, to, bytes) in sent {
                self.server_sends(socket, to, bytes)?;
            }
            for (shard, mail) in mail {
                // In order between any two shards, and at its own pace.
                let late = self.rng.random_range(0..=MAIL_MS_MAX);
                let route = (index as u16, shard);
                let due = self.mail_due.entry(route).or_insert(0);
                *due = (*due).max(self.now + late);
                let at = *due;
                self.schedule(at, Item::Mail { shard, mail });
            }
        }
        Ok(())
    }

    fn server_sends(
        &mut self,
        socket: SocketIndex,
        to: Addr,
        bytes: Vec<u8>,
    ) -> Result<(), Violation> {
        self.checker.server_sends(to)?;
        let Some(port) = SERVER_PORTS.get(usize::from(socket.0)) else {
            self.server_says(socket, to, bytes);
            return Ok(());
        };
        let packet = Packet {
            from: self.server.with_port(*port),
            to,
            ttl: TTL,
            bytes,
        };
        self.launch(PUBLIC, packet, SERVER_LATENCY_MS);
        Ok(())
    }

    fn arrive_at_server(&mut self, packet: &Packet) -> Result<(), Violation> {
        if self.server_asleep_until > self.now {
            return Ok(());
        }
        self.checker.server_heard(packet.from);
        let socket = u16::from(packet.to.port() == SERVER_PORTS[1]);
        let socket = SocketIndex(socket);
        // Any function of the source will do, as the kernel's hash does.
        let home = usize::from(packet.from.port()) % self.shards.len();
        let source = ClientAddr(packet.from);
        let verdict =
            self.shards[home].handle_datagram(Millis(self.now), socket, source, &packet.bytes);
        if let Verdict::Forward(forward) = verdict {
            let mut bytes = forward.frame().header().to_vec();
            bytes.extend_from_slice(&packet.bytes[forward.strip..][..forward.payload_len]);
            self.server_sends(forward.route.egress, forward.route.to, bytes)?;
        }
        self.drain_shards()
    }

    fn arrive_at_host(&mut self, number: usize, packet: &Packet) -> Result<(), Violation> {
        let now = self.time_at(number);
        if self.hosts[number].asleep_until > self.now {
            return Ok(());
        }
        self.checker.host_heard(number, packet.from);
        let Some(agent) = &mut self.hosts[number].agent else {
            return Ok(());
        };
        let delivery = agent.handle_datagram(now, packet.from, &packet.bytes);
        let own = agent.seat().map(|seat| seat.handle);
        match (delivery, own) {
            (Some(delivery), Some(own)) => {
                let data = &packet.bytes[delivery.range];
                let datagram = self.checker.delivered(number, own, delivery.direct, data)?;
                let from = usize::from(datagram.from);
                self.hosts[number].heard.insert(from, self.now);
            }
            (Some(_), None) => {
                return Err(Violation(format!("host {number} has data without a seat")));
            }
            (None, own) => self.check_refusal(number, own, packet)?,
        }
        self.drain_agent(number)
    }

    /// Data that have come all the way from a member whom the receiver knows must be delivered. A check goes before data on
    /// each path, and what answered it has heard it.
    fn check_refusal(
        &self,
        number: usize,
        own: Option<waypost_proto::wire::native::SeatHandle>,
        packet: &Packet,
    ) -> Result<(), Violation> {
        let Some(datagram) = (wire::kind(&packet.bytes) == wire::Kind::ChannelData)
            .then(|| Datagram::in_frame(&packet.bytes))
            .flatten()
        else {
            return Ok(());
        };
        let sender = self
            .agent(usize::from(datagram.from))
            .and_then(Agent::seat)
            .map(|seat| seat.handle.id);
        let known = sender.is_some_and(|id| {
            self.agent(number)
                .is_some_and(|agent| agent.member(id).is_some())
        });
        // After a NAT has given its host another port, data from there wait for a check from there.
        let relayed = packet.from == self.server;
        let must_accept = relayed || !self.ports_have_changed;
        if own == Some(datagram.to) && known && must_accept {
            return Err(Violation(format!(
                "host {number} refused {datagram:?} from {}",
                packet.from
            )));
        }
        Ok(())
    }

    /// Every talking application sends one datagram to every member that it knows of.
    fn talk(&mut self) -> Result<(), Violation> {
        for number in 0..self.hosts.len() {
            let now = self.time_at(number);
            let host = &mut self.hosts[number];
            if !host.talks || host.asleep_until > self.now {
                continue;
            }
            let Some(agent) = &mut host.agent else {
                continue;
            };
            let Some(code) = agent.seat().map(|seat| seat.handle.code) else {
                continue;
            };
            let members: Vec<_> = agent.members().map(|member| member.id).collect();
            let mut packets = Vec::new();
            for id in members {
                let datagram = Datagram {
                    from: number as u8,
                    to: waypost_proto::wire::native::SeatHandle { code, id },
                    sequence: host.next_sequence,
                };
                host.next_sequence += 1;
                let mut frame = Vec::new();
                if let Ok(to) = agent.frame(now, id, &datagram.to_bytes(), &mut frame) {
                    self.checker.sent(datagram);
                    packets.push(Packet {
                        from: host.addr,
                        to,
                        ttl: TTL,
                        bytes: frame,
                    });
                }
            }
            let (lan, latency_ms) = (host.lan, host.latency_ms);
            for packet in packets {
                self.launch(lan, packet, latency_ms);
            }
            self.drain_agent(number)?;
        }
        Ok(())
    }

    fn next_stop(&self) -> u64 {
        let item = self.agenda.keys().next().map(|(at, _)| *at);
        let asleep_until = self.server_asleep_until;
        let shards = self
            .shards
            .iter()
            .filter_map(|shard| Some(shard.poll_timeout()?.0.max(asleep_until)));
        let agents = self.hosts.iter().filter_map(|host| {
            let at = host.agent.as_ref()?.poll_timeout()?;
            let at = at.0.saturating_sub(host.clock_ahead_ms);
            Some(at.max(host.asleep_until))
        });
        shards
            .chain(agents)
            .chain(item)
            .chain([self.next_talk])
            .min()
            .unwrap_or(u64::MAX)
    }

    /// Lets time pass.
    ///
    /// # Errors
    /// A rule was broken.
    pub fn advance(&mut self, millis: u64) -> Result<(), Violation> {
        let until = self.now + millis;
        let mut steps = 0;
        loop {
            let stop = self.next_stop().max(self.now);
            if stop > until {
                self.now = until;
                return Ok(());
            }
            steps = if stop == self.now { steps + 1 } else { 0 };
            if steps > STEPS_PER_MS_MAX {
                return Err(Violation("time stands still".to_owned()));
            }
            self.now = stop;
            self.step()?;
        }
    }

    fn step(&mut self) -> Result<(), Violation> {
        let now = self.now;
        while let Some(entry) = self.agenda.first_entry()
            && entry.key().0 <= now
        {
            match entry.remove() {
                Item::Packet { lan, mut packet } => match self.net.descend(now, lan, &mut packet) {
                    Some(Endpoint::Server) => self.arrive_at_server(&packet)?,
                    Some(Endpoint::Host(host)) => self.arrive_at_host(host, &packet)?,
                    None => {}
                },
                Item::Said {
                    connection,
                    to_server,
                    bytes,
                } => self.hear(connection, to_server, &bytes)?,
                Item::Mail { shard, mail } => {
                    self.shards[usize::from(shard)].handle_mail(Millis(now), mail);
                    self.drain_shards()?;
                }
            }
        }
        if self.server_asleep_until <= now {
            for shard in &mut self.shards {
                shard.handle_timeout(Millis(now));
            }
            self.drain_shards()?;
        }
        for host in 0..self.hosts.len() {
            if self.hosts[host].asleep_until > now {
                continue;
            }
            let due = self
                .agent(host)
                .and_then(Agent::poll_timeout)
                .is_some_and(|at| at <= self.time_at(host));
            if due {
                self.with_agent(host, |agent, now| agent.handle_timeout(now))?;
            }
        }
        if self.next_talk <= now {
            self.next_talk = now + self.talk_every_ms;
            self.talk()?;
        }
        Ok(())
    }

    /// Looks into the shards: their tables agree, and each flow belongs to a member.
    ///
    /// # Errors
    /// A flow without a member.
    pub fn check_tables(&self) -> Result<(), Violation> {
        let inspections: Vec<_> = self.shards.iter().map(Shard::inspect).collect();
        for (index, inspection) in inspections.iter().enumerate() {
            for (socket, addr, handle) in &inspection.flows {
                let belongs = inspections.iter().flat_map(|i| &i.seats).any(|seat| {
                    (seat.handle, seat.addr, seat.socket) == (*handle, *addr, *socket)
                        && usize::from(seat.home) == index
                });
                // A removal may still be in the mail.
                if !belongs
                    && self
                        .agenda
                        .values()
                        .all(|i| matches!(i, Item::Packet { .. }))
                {
                    return Err(Violation(format!("the flow of {addr} belongs to nobody")));
                }
            }
        }
        Ok(())
    }

    /// Asserts that the server remembers nothing.
    ///
    /// # Errors
    /// What it still remembers.
    pub fn check_empty(&self) -> Result<(), Violation> {
        for inspection in self.shards.iter().map(Shard::inspect) {
            if !inspection.seats.is_empty()
                || !inspection.flows.is_empty()
                || inspection.sessions + inspection.routed_sessions + inspection.timers > 0
            {
                return Err(Violation(format!("something is left: {inspection:?}")));
            }
        }
        Ok(())
    }
}
