//! A seat in a session: getting one, what can be done from it, and what happens there.

mod conduct;

use std::net::{SocketAddr, ToSocketAddrs};
#[cfg(unix)]
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use waypost_proto::agent::{self, Agent, Path, Refused, RequestId, SessionEvent, Target};
use waypost_proto::message::{MessageEvent, MessageId, Messages, Service};
use waypost_proto::time::Millis;
use waypost_proto::wire::join_code::JoinCode;
use waypost_proto::wire::native::{NatMapping, SeatId, session_flags};

use crate::config::{HostConfig, JoinConfig, Player};
use crate::driver::{Driver, End, Receiver};
use crate::error::Error;
use crate::link::Link;
use crate::list::first_that_answers;

/// After a session is dropped its thread waits for so long until the server has taken notice.
const FAREWELL: Duration = Duration::from_secs(1);

/// Another member.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let server = waypost_server::serve::Server::start_with(&[])?;
/// # let server = server.main_addr();
/// use waypost_client::{HostConfig, JoinConfig, Session};
///
/// let host = Session::host(server, HostConfig::new("my-game"))?;
/// let mut config = JoinConfig::new("my-game");
/// config.player.data = b"Bob".to_vec();
/// let _guest = Session::join(server, &host.code()?.to_string(), config)?;
/// let bob = host.wait_member(None)?;
/// assert_eq!(host.member(bob).map(|member| member.data), Some(b"Bob".to_vec()));
/// # Ok(()) }
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Who.
    pub id: SeatId,
    /// Up to 64 bytes of its own.
    pub data: Vec<u8>,
    /// Whether it is the host.
    pub is_host: bool,
    /// Whether it is reached through the relay only, by its own wish.
    pub is_relay_only: bool,
    /// The way that data to it take now.
    pub path: Path,
}

impl Member {
    fn of(agent: &Agent, member: &agent::Member) -> Self {
        Self {
            id: member.id,
            data: member.data.clone(),
            is_host: agent.session().host == Some(member.id),
            is_relay_only: member.is_relay_only(),
            path: agent.path(member.id).unwrap_or_default(),
        }
    }
}

/// A seat in a session. Dropping it leaves the session.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let server = waypost_server::serve::Server::start_with(&[])?;
/// # let server = server.main_addr();
/// use waypost_client::{HostConfig, JoinConfig, MessageEvent, Messaging, Service, Session};
///
/// let mut config = HostConfig::new("my-game");
/// config.player.messages = Some(Messaging::default());
/// let host = Session::host(server, config)?;
/// let mut config = JoinConfig::new("my-game");
/// config.player.messages = Some(Messaging::default());
/// let guest = Session::join(server, &host.code()?.to_string(), config)?;
///
/// guest.send_message(guest.wait_member(None)?, b"your move", Service::ORDERED)?;
/// let text = loop {
///     if let MessageEvent::Received(message) = host.next_message(None)? {
///         break message.data;
///     }
/// };
/// assert_eq!(text, b"your move");
/// guest.leave()?;
/// # Ok(()) }
/// ```
pub struct Session {
    driver: Arc<Driver>,
}

impl Session {
    /// Makes a session and takes its first seat.
    ///
    /// # Errors
    /// [`Error`], of which `Silent` and `Rejected` are the server's.
    pub fn host(server: impl ToSocketAddrs, config: HostConfig) -> Result<Self, Error> {
        let (player, host) = config.split();
        Self::take_seat(server, &player, |agent, now| agent.host(now, host.clone()))
    }

    /// Takes a seat in the session with this code or this name.
    ///
    /// # Errors
    /// As [`Session::host`].
    pub fn join(
        server: impl ToSocketAddrs,
        code_or_name: &str,
        config: JoinConfig,
    ) -> Result<Self, Error> {
        let target = Target::parse(code_or_name);
        Self::take_seat(server, &config.player, |agent, now| {
            agent.join(now, target.clone(), &config.password)
        })
    }

    /// Takes a seat in a match with others who want `players` with the same `key` of 1 to 64 bytes. Returns at once;
    /// [`Session::wait_formed`] waits for the others.
    ///
    /// # Errors
    /// As [`Session::host`].
    pub fn find_match(
        server: impl ToSocketAddrs,
        key: &[u8],
        players: u8,
        player: &Player,
    ) -> Result<Self, Error> {
        Self::take_seat(server, player, |agent, now| {
            agent.find_match(now, key, players)
        })
    }

    /// Comes back to the seat of a ticket, or takes it for the first time if a game's backend handed it out.
    ///
    /// # Errors
    /// As [`Session::host`].
    pub fn resume(
        server: impl ToSocketAddrs,
        ticket: &[u8],
        player: &Player,
    ) -> Result<Self, Error> {
        Self::take_seat(server, player, |agent, now| {
            agent.resume(now, ticket, None, None)
        })
    }

    fn take_seat(
        server: impl ToSocketAddrs,
        player: &Player,
        operation: impl Fn(&mut Agent, Millis) -> Result<RequestId, Refused>,
    ) -> Result<Self, Error> {
        first_that_answers(server, |server| {
            let driver = Arc::new(Driver::open(server, player.agent_config(server), player)?);
            let request = driver.begin(&operation)?;
            let mut receiver = Receiver::default();
            loop {
                if let Some(outcome) = driver.lock().take_outcome(request) {
                    outcome?;
                    break;
                }
                driver.turn(&mut receiver);
            }
            let thread = Arc::clone(&driver);
            thread::Builder::new()
                .name("waypost".to_owned())
                .spawn(move || thread.run())?;
            if driver.has_turn() {
                let thread = Arc::clone(&driver);
                let spawned = thread::Builder::new()
                    .name("waypost-turn".to_owned())
                    .spawn(move || thread.run_turn());
                if let Err(error) = spawned {
                    driver.lock().finish(End::Left);
                    return Err(error.into());
                }
            }
            Ok(Self { driver })
        })
    }

    /// The join code to share. It changes only with [`SessionEvent::CodeChanged`].
    ///
    /// # Errors
    /// If the seat is gone: why.
    pub fn code(&self) -> Result<JoinCode, Error> {
        self.seat(|seat| seat.code())
    }

    /// The own id.
    ///
    /// # Errors
    /// If the seat is gone: why.
    pub fn id(&self) -> Result<SeatId, Error> {
        self.seat(|seat| seat.id())
    }

    /// What [`Session::resume`] takes, after a restart of the program for instance. As secret as a password.
    ///
    /// # Errors
    /// If the seat is gone: why.
    pub fn ticket(&self) -> Result<Vec<u8>, Error> {
        self.seat(|seat| seat.ticket.clone())
    }

    /// The own address as the server sees it.
    ///
    /// # Errors
    /// If the seat is gone: why.
    pub fn mapped_addr(&self) -> Result<Option<SocketAddr>, Error> {
        self.seat(|seat| seat.mapped.map(SocketAddr::from))
    }

    fn seat<T>(&self, read: impl FnOnce(&waypost_proto::agent::Seat) -> T) -> Result<T, Error> {
        let core = self.driver.lock();
        match (core.end, core.agent.seat()) {
            (None, Some(seat)) => Ok(read(seat)),
            (Some(end), _) => Err(end.into()),
            (None, None) => Err(Error::Left),
        }
    }

    /// The local address of the session's socket.
    ///
    /// # Errors
    /// Those of [`std::net::UdpSocket::local_addr`].
    pub fn local_addr(&self) -> Result<SocketAddr, Error> {
        Ok(self.driver.local_addr()?)
    }

    /// The server's address.
    #[must_use]
    pub fn server_addr(&self) -> SocketAddr {
        let core = self.driver.lock();
        core.agent.config().server.to_socket_addr()
    }

    /// Whether the seat is there and the server answers, or the session goes on without it.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        let core = self.driver.lock();
        core.end.is_none() && core.agent.seat().is_some() && !core.agent.is_server_silent()
    }

    /// The other members, in the order of their seats.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        let core = self.driver.lock();
        let members = core.agent.members();
        members
            .map(|member| Member::of(&core.agent, member))
            .collect()
    }

    /// One of the other members, if it is there.
    #[must_use]
    pub fn member(&self, id: SeatId) -> Option<Member> {
        let core = self.driver.lock();
        let member = core.agent.member(id)?;
        Some(Member::of(&core.agent, member))
    }

    /// Whether this player is the host.
    #[must_use]
    pub fn is_host(&self) -> bool {
        self.driver.lock().agent.is_host()
    }

    /// The session's name, if it has one and it is known.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        self.driver.lock().agent.session().name.clone()
    }

    /// What the host wants known.
    #[must_use]
    pub fn metadata(&self) -> Vec<u8> {
        self.driver.lock().agent.session().metadata.clone()
    }

    /// Seats in the session.
    #[must_use]
    pub fn max_members(&self) -> u8 {
        self.driver.lock().agent.session().max_members
    }

    /// Whether nobody may join now.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.has_flag(session_flags::LOCKED)
    }

    /// Whether this is a match that still waits for players.
    #[must_use]
    pub fn is_forming(&self) -> bool {
        self.has_flag(session_flags::FORMING)
    }

    fn has_flag(&self, flag: u32) -> bool {
        self.driver.lock().agent.session().flags & flag != 0
    }

    /// How the NAT maps, if that has been found out.
    #[must_use]
    pub fn nat_mapping(&self) -> Option<NatMapping> {
        self.driver.lock().agent.nat_mapping()
    }

    /// The server's clock, Unix milliseconds: the same for all members, up to half a round trip.
    #[must_use]
    pub fn server_unix_ms(&self) -> Option<u64> {
        self.driver.lock().agent.server_unix_ms(self.driver.now())
    }

    /// The next thing that happened, waiting for it for at most `timeout` (`None`: for ever). The last ones come even after the
    /// seat is gone.
    ///
    /// # Errors
    /// [`Error::TimedOut`]; once the seat is gone and all is told: why.
    pub fn next_event(&self, timeout: Option<Duration>) -> Result<SessionEvent, Error> {
        self.wait_for(timeout, |core| {
            let event = core.events.pop_front();
            core.tell_news();
            event
        })
    }

    /// Sends a message of at most 64 KiB to one member. Returns at once; [`Session::next_message`] tells what becomes of it.
    ///
    /// # Errors
    /// [`Error::NoMessages`], [`Error::MemberLeft`], [`Error::NotSent`] if it is too long or the member does not keep up; if
    /// the seat is gone: why.
    pub fn send_message(
        &self,
        to: SeatId,
        data: &[u8],
        service: Service,
    ) -> Result<MessageId, Error> {
        self.with_messages(|messages, now| messages.send(now, to, data, service))
    }

    /// Sends a message to every other member. It has one id for all of them.
    ///
    /// # Errors
    /// As [`Session::send_message`]. A member that does not keep up is no error but an event.
    pub fn broadcast(&self, data: &[u8], service: Service) -> Result<MessageId, Error> {
        self.with_messages(|messages, now| messages.broadcast(now, data, service))
    }

    fn with_messages<T, E: Into<Error>>(
        &self,
        operation: impl FnOnce(&mut Messages, Millis) -> Result<T, E>,
    ) -> Result<T, Error> {
        let mut core = self.driver.lock();
        if let Some(end) = core.end {
            return Err(end.into());
        }
        let messages = core.messages.as_mut().ok_or(Error::NoMessages)?;
        let done = operation(messages, self.driver.now()).map_err(Into::into)?;
        self.driver.flush(&mut core);
        Ok(done)
    }

    /// The next message, or what became of one that was sent, or a sign of life or death of a member; waiting for it for at
    /// most `timeout` (`None`: for ever). Members whose messages are not taken are slowed down.
    ///
    /// # Errors
    /// [`Error::NoMessages`]; else as [`Session::next_event`].
    pub fn next_message(&self, timeout: Option<Duration>) -> Result<MessageEvent, Error> {
        if self.driver.lock().messages.is_none() {
            return Err(Error::NoMessages);
        }
        self.wait_for(timeout, |core| {
            let event = core.messages.as_mut().and_then(Messages::poll_event);
            core.tell_news();
            event
        })
    }

    /// The smoothed round trip to a member, if the session has messages and it is known.
    #[must_use]
    pub fn round_trip(&self, member: SeatId) -> Option<Duration> {
        let core = self.driver.lock();
        let messages = core.messages.as_ref()?;
        messages.round_trip_ms(member).map(Duration::from_millis)
    }

    /// Takes a datagram that any member has sent, if there is one, and copies it into `buf`; what does not fit is cut off.
    /// Returns who sent it and how many bytes were copied. What one takes so, its [`Link`] does not.
    #[must_use]
    pub fn try_recv_from(&self, buf: &mut [u8]) -> Option<(SeatId, usize)> {
        self.driver.lock().try_recv_from(buf)
    }

    /// Whether [`Session::next_event`], [`Session::next_message`] and the `wait_` methods return [`Error::WouldBlock`] at
    /// once if nothing is there. Links have a setting of their own. Operations that the server answers wait all the same.
    pub fn set_nonblocking(&self, nonblocking: bool) {
        self.driver
            .nonblocking
            .store(nonblocking, Ordering::Relaxed);
    }

    /// A file descriptor (on Unix) that is readable while events, messages or datagrams wait for the caller, and always once the seat
    /// is gone: for `poll`, `epoll` and event loops. Only for waiting: reading from it breaks that. It belongs to the session
    /// and is closed with it.
    ///
    /// # Errors
    /// If the process has too many files open.
    #[cfg(unix)]
    pub fn readiness_fd(&self) -> std::io::Result<BorrowedFd<'_>> {
        self.driver.readiness.fd()
    }

    /// Waits until there is another member, and returns one.
    ///
    /// # Errors
    /// As [`Session::next_event`].
    pub fn wait_member(&self, timeout: Option<Duration>) -> Result<SeatId, Error> {
        self.wait_for(timeout, |core| {
            core.agent.members().next().map(|member| member.id)
        })
    }

    /// Waits until a match has all its players.
    ///
    /// # Errors
    /// As [`Session::next_event`].
    pub fn wait_formed(&self, timeout: Option<Duration>) -> Result<(), Error> {
        self.wait_for(timeout, |core| {
            let forming = core.agent.session().flags & session_flags::FORMING != 0;
            (core.agent.seat().is_some() && !forming).then_some(())
        })
    }

    fn wait_for<T>(
        &self,
        timeout: Option<Duration>,
        mut ready: impl FnMut(&mut crate::driver::Core) -> Option<T>,
    ) -> Result<T, Error> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut core = self.driver.lock();
        let mut time_left = true;
        loop {
            if let Some(value) = ready(&mut core) {
                return Ok(value);
            }
            if let Some(end) = core.end {
                return Err(end.into());
            }
            if !time_left {
                return Err(Error::TimedOut);
            }
            if self.driver.nonblocking.load(Ordering::Relaxed) {
                return Err(Error::WouldBlock);
            }
            (core, time_left) = self.driver.wait(core, deadline);
        }
    }

    /// The link to a member.
    ///
    /// # Errors
    /// [`Error::MemberLeft`] if nobody with this id is there; if the seat is gone: why.
    pub fn link(&self, member: SeatId) -> Result<Link, Error> {
        Link::new(Arc::clone(&self.driver), member)
    }

    fn perform(
        &self,
        operation: impl FnOnce(&mut Agent, Millis) -> Result<RequestId, Refused>,
    ) -> Result<(), Error> {
        self.driver.perform(operation).map(|_| ())
    }

    /// Leaves and waits until the server has taken notice. Dropping the session leaves without waiting.
    ///
    /// # Errors
    /// As [`Session::kick`].
    pub fn leave(&self) -> Result<(), Error> {
        let result = self.perform(Agent::leave);
        self.end();
        result
    }

    fn end(&self) {
        self.driver.lock().finish(End::Left);
        self.driver.give_port_back();
    }

    /// Leaves the server and goes on with the members to whom there is a direct path, each as long as its path holds. They are
    /// told; the others see this player leave. When all members do this the session lives on without any server. Nobody can
    /// join any more, what is not direct does not go at all, and what the server would have to do is refused.
    /// Returns when it is done; [`SessionEvent::WithoutServer`] tells it too.
    ///
    /// # Errors
    /// [`Error::Refused`] if there is a direct path to nobody; if the seat is gone: why.
    pub fn leave_server(&self) -> Result<(), Error> {
        {
            let mut core = self.driver.lock();
            if let Some(end) = core.end {
                return Err(end.into());
            }
            core.agent.leave_server(self.driver.now())?;
            self.driver.flush(&mut core);
        }
        let mut core = self.driver.lock();
        while !core.agent.is_without_server() {
            if let Some(end) = core.end {
                return Err(end.into());
            }
            core = self.driver.wait(core, None).0;
        }
        Ok(())
    }

    /// Whether the session goes on without the server.
    #[must_use]
    pub fn is_without_server(&self) -> bool {
        self.driver.lock().agent.is_without_server()
    }

    /// Ends this without leaving: the server holds the seat for a while, and [`Session::resume`] comes back to it.
    /// Returns the ticket.
    ///
    /// # Errors
    /// If the seat is gone already: why.
    pub fn suspend(&self) -> Result<Vec<u8>, Error> {
        let ticket = self.ticket()?;
        self.end();
        Ok(ticket)
    }
}

impl Drop for Session {
    /// Leaves without waiting: the first LEAVE is sent before this returns, the thread repeats it for a second. A port that the
    /// router forwards is given back; a router that was asked by UPnP is waited for.
    fn drop(&mut self) {
        let mut core = self.driver.lock();
        if core.end.is_none() {
            core.stop_at = Some(Instant::now() + FAREWELL);
            // Without a seat there is nothing to leave, and the thread stops.
            let _ = core.agent.leave(self.driver.now());
            self.driver.flush(&mut core);
        }
        drop(core);
        // The program may end before the thread does.
        self.driver.give_port_back();
    }
}
