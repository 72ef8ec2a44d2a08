//! Agent and socket together, under one lock, and the thread that keeps them going. Never blocks while it holds the lock.
//!
//! The thread sleeps in the socket's receive call, at most [`NAP`]: what other threads make due in the meantime
//! is at most that late, so nobody ever has to wake it.

mod guarded;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use socket2::SockRef;
use waypost_proto::addr::Addr;
use waypost_proto::agent::{Agent, Config, NoPath, PathPolicy, Refused, RequestId, Strategy};
use waypost_proto::message::{Messages, frame};
use waypost_proto::time::Millis;
use waypost_proto::wire::native::SeatId;

use crate::conduit::Conduit;
use crate::config::Player;
use crate::error::Error;
use crate::port_mapping::Forwarding;
use crate::readiness::Readiness;
use crate::turn::Turn;

pub(crate) use self::guarded::{Core, End, Outcome};

/// The longest sleep.
const NAP: Duration = Duration::from_millis(50);
/// Longer than any datagram of the protocol; what the buffer cuts fails its length check.
const RECEIVE_BUFFER: usize = 2_048;
/// Receive errors in a row after which the socket is taken for dead. Single ones are ICMP messages that some systems report.
const RECEIVE_ERRORS_MAX: u32 = 100;

/// A socket and an agent.
pub(crate) struct Driver {
    socket: Conduit,
    /// An address on a TURN server, beside the socket.
    turn: Option<Turn>,
    /// Kept until it is given back.
    mapping: Mutex<Option<Forwarding>>,
    /// The port that it leads from; a renewal may change it.
    mapped_port: Option<Arc<AtomicU16>>,
    server: SocketAddr,
    usual_ttl: u32,
    is_ipv4: bool,
    started: Instant,
    core: Mutex<Core>,
    /// Something in the core has changed that somebody may wait for.
    changed: Condvar,
    pub(crate) readiness: Arc<Readiness>,
    pub(crate) nonblocking: AtomicBool,
}

impl Driver {
    /// Opens a socket of the server's family for an agent.
    pub(crate) fn open(
        server: SocketAddr,
        mut config: Config,
        player: &Player,
    ) -> Result<Self, Error> {
        let is_ipv4 = Addr::new(server).is_ipv4();
        let any: IpAddr = if is_ipv4 {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let socket = match &player.turn {
            Some(turn) => Conduit::open_turn(turn)?,
            None => Conduit::Socket(UdpSocket::bind((any, player.local_port))?),
        };
        let usual_ttl = match socket.socket().map(SockRef::from) {
            Some(options) if is_ipv4 => options.ttl_v4()?,
            Some(options) => options.unicast_hops_v6()?,
            None => 0,
        };
        // Who is behind a TURN server can be reached there only.
        let local_port = match &socket {
            Conduit::Socket(socket) => Some(socket.local_addr()?.port()),
            Conduit::Turn(_) => None,
        };
        config.local_addresses = local_port
            .and_then(|port| local_address(server, port))
            .into_iter()
            .collect();
        let hides = config.policy == PathPolicy::RelayOnly;
        let mapping = local_port
            .filter(|_| player.maps_port && !hides)
            .and_then(Forwarding::request);
        let mapped_port = mapping.as_ref().map(Forwarding::external_port);
        if let Some(port) = &mapped_port {
            config.reachable_port = Some(port.load(Ordering::Relaxed));
        }
        let turn = match &player.turn_candidate {
            Some(server) if !hides && config.strategies.contains(Strategy::Turn) => {
                Turn::open_if_there(server)?
            }
            _ => None,
        };
        config.has_turn = turn.is_some();
        let messages = match player.messages {
            Some(messaging) => Some(Messages::new(messaging, random_seed()?)),
            None => None,
        };
        let readiness = Arc::new(Readiness::default());
        let seed = random_seed()?;
        Ok(Self {
            socket,
            turn,
            mapping: Mutex::new(mapping),
            mapped_port,
            server,
            usual_ttl,
            is_ipv4,
            started: Instant::now(),
            core: Mutex::new(Core::new(
                Agent::new(Millis(0), config, seed),
                messages,
                Arc::clone(&readiness),
            )),
            changed: Condvar::new(),
            readiness,
            nonblocking: AtomicBool::new(false),
        })
    }

    /// The server's address.
    pub(crate) fn server(&self) -> SocketAddr {
        self.server
    }

    /// A time of the agent's on the system's clock.
    pub(crate) fn instant(&self, at: Millis) -> Instant {
        self.started + Duration::from_millis(at.0)
    }

    /// Whether the player wants this way tried.
    pub(crate) fn is_chosen(&self, strategy: Strategy) -> bool {
        self.lock().agent.config().strategies.contains(strategy)
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    pub(crate) fn now(&self) -> Millis {
        Millis(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// The lock. A thread that panicked with it cannot have left more than a datagram unsent.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change until `deadline`. Returns the lock again, and whether there is time left.
    pub(crate) fn wait<'a>(
        &self,
        core: MutexGuard<'a, Core>,
        deadline: Option<Instant>,
    ) -> (MutexGuard<'a, Core>, bool) {
        let Some(deadline) = deadline else {
            let core = self.changed.wait(core);
            return (core.unwrap_or_else(PoisonError::into_inner), true);
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return (core, false);
        }
        let (core, _) = self
            .changed
            .wait_timeout(core, left)
            .unwrap_or_else(PoisonError::into_inner);
        (core, true)
    }

    /// Begins an operation and sends its first datagram.
    pub(crate) fn begin(
        &self,
        operation: impl FnOnce(&mut Agent, Millis) -> Result<RequestId, Refused>,
    ) -> Result<RequestId, Error> {
        let mut core = self.lock();
        if let Some(end) = core.end {
            return Err(end.into());
        }
        let request = operation(&mut core.agent, self.now())?;
        self.flush(&mut core);
        Ok(request)
    }

    /// Performs an operation, while another thread drives.
    pub(crate) fn perform(
        &self,
        operation: impl FnOnce(&mut Agent, Millis) -> Result<RequestId, Refused>,
    ) -> Result<Outcome, Error> {
        let request = self.begin(operation)?;
        let mut core = self.lock();
        loop {
            if let Some(outcome) = core.take_outcome(request) {
                return outcome;
            }
            if let Some(end) = core.end {
                return Err(end.into());
            }
            core = self.wait(core, None).0;
        }
    }

    /// Sends data to a member from the calling thread: one copy into the frame, one system call.
    pub(crate) fn send(&self, to: SeatId, data: &[u8]) -> Result<(), Error> {
        let mut core = self.lock();
        if let Some(end) = core.end {
            return Err(end.into());
        }
        let now = self.now();
        let prefix: &[u8] = if core.messages.is_some() {
            &[frame::RAW]
        } else {
            &[]
        };
        let Core { agent, frame, .. } = &mut *core;
        let target = agent
            .frame_after(now, to, prefix, data, frame)
            .map_err(|no_path| match no_path {
                NoPath::NoMember => Error::MemberLeft,
                other => Error::NoPath(other),
            })?;
        // Under the lock, because an opener changes the socket's TTL for a moment.
        let through_turn = agent.is_through_turn(to);
        self.send_frame(frame, target, through_turn)?;
        Ok(())
    }

    fn send_frame(&self, frame: &[u8], to: Addr, through_turn: bool) -> io::Result<usize> {
        match &self.turn {
            Some(turn) if through_turn => turn.send_to(frame, to),
            _ => self.socket.send_to(frame, to.to_socket_addr()),
        }
    }

    /// Sends the frames of messages that are due.
    fn flush_messages(&self, core: &mut Core) {
        let now = self.now();
        let Core {
            agent,
            messages: Some(messages),
            frame,
            message,
            ..
        } = core
        else {
            return;
        };
        messages.handle_timeout(now);
        while let Some(to) = messages.poll_transmit(now, message) {
            // Without a path, or refused by the system, it is lost like any datagram.
            if let Ok(target) = agent.frame(now, to, message, frame) {
                let through_turn = agent.is_through_turn(to);
                drop(self.send_frame(frame, target, through_turn));
            }
        }
    }

    /// Sends what the agent has to send and takes what it has to tell.
    pub(crate) fn flush(&self, core: &mut Core) {
        while let Some(transmit) = core.agent.poll_transmit() {
            let to = transmit.to.to_socket_addr();
            // An address that cannot be reached from here is the same as a datagram lost on the way.
            match transmit.ttl {
                None => {
                    drop(self.send_frame(&transmit.bytes, transmit.to, transmit.through_turn));
                }
                // What dies on the way opens nothing that a TURN server has not opened.
                Some(_) if self.socket.socket().is_none() => {}
                Some(ttl) => {
                    if self.set_ttl(u32::from(ttl)).is_ok() {
                        drop(self.socket.send_to(&transmit.bytes, to));
                    }
                    if self.set_ttl(self.usual_ttl).is_err() {
                        core.finish(End::Socket(io::ErrorKind::Other));
                    }
                }
            }
        }
        let mut changed = core.take_events(self.now());
        self.flush_messages(core);
        changed |= core.tell_news();
        if changed {
            self.changed.notify_all();
        }
    }

    fn set_ttl(&self, ttl: u32) -> io::Result<()> {
        let Some(socket) = self.socket.socket() else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let options = SockRef::from(socket);
        if self.is_ipv4 {
            options.set_ttl_v4(ttl)
        } else {
            options.set_unicast_hops_v6(ttl)
        }
    }

    /// Gives the port back that the router forwards, if it forwards one.
    pub(crate) fn give_port_back(&self) {
        let mapping = self.mapping.lock();
        drop(mapping.unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Tells everybody who waits to look again.
    pub(crate) fn notify(&self) {
        self.changed.notify_all();
    }

    /// Does what is due, waits for one datagram at most [`NAP`], and handles it.
    pub(crate) fn turn(&self, receiver: &mut Receiver) {
        let wait = {
            let mut core = self.lock();
            let now = self.now();
            if let Some(port) = &self.mapped_port {
                core.agent
                    .set_reachable_port(now, port.load(Ordering::Relaxed));
            }
            if core.agent.poll_timeout().is_some_and(|at| at <= now) {
                core.agent.handle_timeout(now);
            }
            self.flush(&mut core);
            let due = core.next_timeout(now).map(|at| at.since(now));
            // A timeout of zero would mean to wait for ever.
            due.map_or(NAP, |ms| NAP.min(Duration::from_millis(ms.max(1))))
        };
        if receiver.wait != Some(wait) && self.socket.set_read_timeout(Some(wait)).is_ok() {
            receiver.wait = Some(wait);
        }
        match self.socket.recv_from(&mut receiver.buffer) {
            Ok((len, from)) => {
                receiver.errors = 0;
                let bytes = &receiver.buffer[..len];
                let mut core = self.lock();
                let now = self.now();
                let delivery = core.agent.handle_datagram(now, from.into(), bytes);
                if let Some(delivery) = delivery {
                    core.deliver(now, delivery.from, &bytes[delivery.range]);
                }
                self.flush(&mut core);
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock
                | io::ErrorKind::TimedOut
                | io::ErrorKind::Interrupted => receiver.errors = 0,
                kind => {
                    receiver.errors += 1;
                    if receiver.errors >= RECEIVE_ERRORS_MAX {
                        self.lock().finish(End::Socket(kind));
                        self.notify();
                    }
                }
            },
        }
    }

    /// Whether there is a TURN server for [`Driver::run_turn`].
    pub(crate) const fn has_turn(&self) -> bool {
        self.turn.is_some()
    }

    /// Takes what comes through the TURN server, and keeps the allocation, until the seat is gone.
    pub(crate) fn run_turn(&self) {
        let Some(turn) = &self.turn else { return };
        let mut buffer = vec![0; RECEIVE_BUFFER];
        let mut errors = 0;
        if turn.set_read_timeout(Some(NAP)).is_err() {
            return;
        }
        while errors < RECEIVE_ERRORS_MAX {
            let received = turn.recv_from(&mut buffer);
            let mut core = self.lock();
            if core.end.is_some() {
                return;
            }
            match received {
                Ok((len, from)) => {
                    errors = 0;
                    let bytes = &buffer[..len];
                    let now = self.now();
                    let delivery = core.agent.handle_turn_datagram(now, from.into(), bytes);
                    if let Some(delivery) = delivery {
                        core.deliver(now, delivery.from, &bytes[delivery.range]);
                    }
                    self.flush(&mut core);
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock
                            | io::ErrorKind::TimedOut
                            | io::ErrorKind::Interrupted
                    ) => {}
                // The other ways go on, and the checks of this one go unanswered.
                Err(_) => errors += 1,
            }
        }
    }

    /// Drives until the seat is gone.
    pub(crate) fn run(&self) {
        let mut receiver = Receiver::default();
        loop {
            {
                let mut core = self.lock();
                let stop = core.stop_at.is_some_and(|at| at <= Instant::now());
                let left = core.stop_at.is_some() && core.agent.seat().is_none();
                if stop || left {
                    core.finish(End::Left);
                }
                if core.end.is_some() {
                    drop(core);
                    self.notify();
                    return;
                }
            }
            self.turn(&mut receiver);
        }
    }
}

/// What the receiving thread alone uses.
pub(crate) struct Receiver {
    buffer: Vec<u8>,
    wait: Option<Duration>,
    errors: u32,
}

impl Default for Receiver {
    fn default() -> Self {
        Self {
            buffer: vec![0; RECEIVE_BUFFER],
            wait: None,
            errors: 0,
        }
    }
}

fn random_seed() -> io::Result<[u8; 32]> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(seed)
}

/// This machine's address on the way to the server, as the routing table has it: connecting a UDP socket sends nothing.
fn local_address(server: SocketAddr, port: u16) -> Option<Addr> {
    let any: SocketAddr = if server.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let probe = UdpSocket::bind(any).ok()?;
    probe.connect(server).ok()?;
    let ip = probe.local_addr().ok()?.ip();
    Some(Addr::from_ip_port(ip, port))
}
