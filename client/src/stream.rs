//! A TCP stream to another member, without the server in between: one opens its NAT, and at a common start the other connects
//! to it, both from the port that the server has seen (simultaneous open, RFC 9293 section 3.5), while whoever can be reached is
//! called. Sends no more than a bounded number of connection attempts to any address that it was told.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use waypost_proto::addr::Addr;
use waypost_proto::agent::{
    GREETING_LEN, Observation, Reason, Rejected, Strategy, StreamEnd, StreamIntroduction,
};
use waypost_proto::wire::native::SeatId;
use waypost_proto::wire::stream::Framer;

use crate::driver::Driver;
use crate::error::Error;
use crate::nat_opener;

/// Attempts to connect to one address. With the kernel's repetitions that is at most twice as many segments.
const ATTEMPTS_MAX: u32 = 12;
/// How long one attempt may take: a first segment, and one repetition after a second.
const ATTEMPT: Duration = Duration::from_millis(2_500);
/// Between the end of an attempt and the next.
const ATTEMPT_GAP: Duration = Duration::from_millis(100);
/// Between two looks at the sockets: what this adds to the start is far below what networks differ by.
const LOOK: Duration = Duration::from_millis(1);
/// Connections whose other end has not said yet who it is.
const UNPROVEN_MAX: usize = 16;
/// How long a connection may take to say who it is.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the server may take for an answer on a connection that it has accepted.
const SERVER_TIMEOUT: Duration = Duration::from_secs(5);

/// A stream, and how it came about.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let server = waypost_server::serve::Server::start_with(&[])?;
/// # let server = server.main_addr();
/// use std::io::{Read, Write};
/// use std::time::Duration;
/// use waypost_client::{Error, HostConfig, JoinConfig, Session};
///
/// const PATIENCE: Duration = Duration::from_secs(30);
///
/// let host = Session::host(server, HostConfig::new("my-game"))?;
/// let guest = Session::join(server, &host.code()?.to_string(), JoinConfig::new("my-game"))?;
/// // Both call it, each in its program: here, in a thread.
/// let hosting = std::thread::spawn(move || -> Result<(), Error> {
///     let link = host.link(host.wait_member(None)?)?;
///     let mut connected = link.connect_stream(PATIENCE)?;
///     connected.stream.write_all(b"a saved game")?;
///     Ok(())
/// });
/// let link = guest.link(guest.wait_member(None)?)?;
/// let mut connected = link.connect_stream(PATIENCE)?;
/// println!("by {} in {:?}", connected.strategy, connected.took);
/// let mut received = Vec::new();
/// connected.stream.read_to_end(&mut received)?;
/// assert_eq!(received, b"a saved game");
/// hosting.join().expect("the host's thread panicked")?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct ConnectedStream {
    /// The connection: blocking, with nothing read from it that the other has sent.
    pub stream: TcpStream,
    /// The way that led to it.
    pub strategy: Strategy,
    /// How long both took to find each other, from being told to begin to the proof of who is there.
    pub took: Duration,
    /// When both began, Unix milliseconds on the server's clock.
    pub began_unix_ms: Option<u64>,
}

/// The own end: one port for the connection that the server sees, for those to the peer, and for listening.
struct End {
    listener: TcpListener,
    local: SocketAddr,
}

impl End {
    fn open(server: SocketAddr, port: u16) -> io::Result<Self> {
        let any: SocketAddr = match server {
            SocketAddr::V4(_) => ([0; 4], port).into(),
            SocketAddr::V6(_) => ([0; 16], port).into(),
        };
        let socket = reusable(any)?;
        socket.listen(i32::try_from(UNPROVEN_MAX).unwrap_or(i32::MAX))?;
        socket.set_nonblocking(true)?;
        let listener: TcpListener = socket.into();
        let local = listener.local_addr()?;
        Ok(Self { listener, local })
    }
}

/// A socket whose port others of this program may have too, which is what makes one mapping of the NAT serve them all.
fn reusable(at: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    #[cfg(unix)]
    socket.set_reuse_port(true)?;
    socket.bind(&at.into())?;
    Ok(socket)
}

/// Connects a stream to `peer`, which has to want one too. Blocks until `deadline` at most.
pub(crate) fn connect(
    driver: &Driver,
    peer: SeatId,
    reachable_port: Option<u16>,
    deadline: Instant,
) -> Result<ConnectedStream, Error> {
    let server = driver.server();
    // What is forwarded leads to the port that the datagrams have, too.
    let port = match reachable_port {
        Some(_) => driver.local_addr()?.port(),
        None => 0,
    };
    let end = End::open(server, port)?;
    let observed = observe(driver, peer, &end, server, reachable_port)?;
    let introduction = await_introduction(driver, peer, deadline)?;
    let began = driver.instant(introduction.start);
    let began_unix_ms = {
        let core = driver.lock();
        core.agent.server_unix_ms(introduction.start)
    };
    // Of two that both open their NATs each would have to give up its opener in order to call the other.
    let opener = match introduction.observed {
        Some(peer) if !introduction.decides => reusable(end.local)
            .and_then(|socket| nat_opener::open(socket, peer.to_socket_addr(), attempt))
            .ok(),
        _ => None,
    };
    thread::sleep(began.saturating_duration_since(Instant::now()));
    let (stream, strategy) = meet(driver, peer, &end, &introduction, opener, deadline)?;
    // Until now it has kept the NAT's mapping alive.
    drop(observed);
    stream.set_nonblocking(false)?;
    Ok(ConnectedStream {
        stream,
        strategy,
        took: began.elapsed(),
        began_unix_ms,
    })
}

/// Connects to the server from the own end and has it note the address that it sees.
fn observe(
    driver: &Driver,
    peer: SeatId,
    end: &End,
    server: SocketAddr,
    reachable_port: Option<u16>,
) -> Result<TcpStream, Error> {
    let socket = reusable(end.local)?;
    socket
        .connect_timeout(&SockAddr::from(server), SERVER_TIMEOUT)
        .map_err(|_| Error::NoStream(Reason::ServerSilent))?;
    let mut stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(SERVER_TIMEOUT))?;
    stream.set_nodelay(true)?;
    let local = Addr::new(SocketAddr::new(stream.local_addr()?.ip(), end.local.port()));
    let end = StreamEnd {
        locals: &[local],
        reachable_port,
    };
    let mut framer = Framer::new(false);
    let mut nonce: Option<Vec<u8>> = None;
    let mut request = Vec::new();
    // The first answer is the nonce, the second the address; one more, should the nonce have grown old in between.
    for _ in 0..3 {
        let id = {
            let mut core = driver.lock();
            core.agent
                .write_observe(peer, nonce.as_deref(), end, &mut request)?
        };
        stream.write_all(&request)?;
        let answer = read_message(&mut stream, &mut framer)?;
        let observation = driver.lock().agent.read_observed(id, &answer);
        match observation {
            Observation::Nonce(given) => nonce = Some(given),
            Observation::Seen(_) => return Ok(stream),
            Observation::Refused(code) => return Err(Error::Rejected(Rejected { code })),
            Observation::Unexpected => break,
        }
    }
    Err(Error::NoStream(Reason::ServerSilent))
}

fn read_message(stream: &mut TcpStream, framer: &mut Framer) -> Result<Vec<u8>, Error> {
    let mut buffer = [0; 512];
    let mut message = None;
    while message.is_none() {
        let len = stream.read(&mut buffer)?;
        let fed = framer.feed(&buffer[..len], |bytes| {
            message.get_or_insert_with(|| bytes.to_vec());
        });
        if len == 0 || fed.is_err() {
            return Err(Error::NoStream(Reason::ServerSilent));
        }
    }
    message.ok_or(Error::NoStream(Reason::ServerSilent))
}

/// Waits until the peer wants a stream too.
fn await_introduction(
    driver: &Driver,
    peer: SeatId,
    deadline: Instant,
) -> Result<StreamIntroduction, Error> {
    let mut core = driver.lock();
    loop {
        if let Some(introduction) = core.agent.take_stream_introduction(peer) {
            return Ok(introduction);
        }
        if let Some(end) = core.end {
            return Err(end.into());
        }
        if core.agent.member(peer).is_none() {
            return Err(Error::MemberLeft);
        }
        let time_left;
        (core, time_left) = driver.wait(core, Some(deadline));
        if !time_left {
            return Err(Error::NoStream(Reason::NotAsked));
        }
    }
}

/// An address to connect to, and the attempt under way.
struct Candidate {
    addr: SocketAddr,
    strategy: Strategy,
    attempts: u32,
    socket: Option<(Socket, Instant)>,
    next: Instant,
}

impl Candidate {
    fn new(addr: Addr, strategy: Strategy, under_way: Option<Socket>) -> Self {
        let now = Instant::now();
        Self {
            addr: addr.to_socket_addr(),
            strategy,
            attempts: u32::from(under_way.is_some()),
            socket: under_way.map(|socket| (socket, now)),
            next: now,
        }
    }

    /// Begins an attempt if one is due, and returns a connection that has come about.
    fn look(&mut self, local: SocketAddr) -> Option<TcpStream> {
        let now = Instant::now();
        let Some((socket, since)) = self.socket.take() else {
            if self.attempts < ATTEMPTS_MAX && now >= self.next {
                self.attempts += 1;
                self.next = now + ATTEMPT_GAP;
                self.socket = reusable(local)
                    .and_then(|socket| attempt(socket, self.addr))
                    .ok()
                    .map(|socket| (socket, now));
            }
            return None;
        };
        let failed = !matches!(socket.take_error(), Ok(None));
        if !failed && socket.peer_addr().is_ok() {
            // Whatever becomes of it, another one to the same address could only be second.
            self.attempts = ATTEMPTS_MAX;
            return Some(socket.into());
        }
        if failed || now.duration_since(since) >= ATTEMPT {
            self.next = now + ATTEMPT_GAP;
        } else {
            self.socket = Some((socket, since));
        }
        None
    }

    const fn is_over(&self) -> bool {
        self.socket.is_none() && self.attempts >= ATTEMPTS_MAX
    }
}

fn attempt(socket: Socket, to: SocketAddr) -> io::Result<Socket> {
    socket.set_nonblocking(true)?;
    match socket.connect(&to.into()) {
        Ok(()) => Ok(socket),
        Err(error) => match error.kind() {
            io::ErrorKind::AddrInUse
            | io::ErrorKind::AddrNotAvailable
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::PermissionDenied => Err(error),
            // Under way, for which systems have several names.
            _ => Ok(socket),
        },
    }
}

/// A connection to somebody who has yet to say who it is.
struct Unproven {
    stream: TcpStream,
    strategy: Strategy,
    greeting: [u8; GREETING_LEN],
    got: usize,
    since: Instant,
}

enum Greeting {
    Incomplete,
    Whole,
    Void,
}

impl Unproven {
    fn new(stream: TcpStream, strategy: Strategy) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            strategy,
            greeting: [0; GREETING_LEN],
            got: 0,
            since: Instant::now(),
        })
    }

    /// Reads what there is of the greeting, and nothing beyond.
    fn read(&mut self) -> Greeting {
        match self.stream.read(&mut self.greeting[self.got..]) {
            Ok(0) => Greeting::Void,
            Ok(len) => {
                self.got += len;
                if self.got == GREETING_LEN {
                    Greeting::Whole
                } else {
                    Greeting::Incomplete
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if self.since.elapsed() < GREETING_TIMEOUT {
                    Greeting::Incomplete
                } else {
                    Greeting::Void
                }
            }
            Err(_) => Greeting::Void,
        }
    }
}

/// Connects and listens until a connection has proved to be the peer's. Whoever decides greets on that one only; the other
/// greets on each and takes the one on which it is greeted.
fn meet(
    driver: &Driver,
    peer: SeatId,
    end: &End,
    introduction: &StreamIntroduction,
    mut opener: Option<Socket>,
    deadline: Instant,
) -> Result<(TcpStream, Strategy), Error> {
    let reachable = introduction.reachable.iter();
    let observed = introduction.observed.iter();
    let mut candidates: Vec<Candidate> = reachable
        .map(|addr| Candidate::new(*addr, Strategy::Direct, None))
        .chain(observed.map(|addr| Candidate::new(*addr, Strategy::TcpPunch, opener.take())))
        .collect();
    let punched: Option<IpAddr> = introduction.observed.map(Addr::ip);
    let listens = driver.is_chosen(Strategy::Reverse) || punched.is_some();
    let mut unproven: Vec<Unproven> = Vec::new();
    let greeting = driver
        .lock()
        .agent
        .write_greeting(introduction)
        .ok_or(Error::Left)?;
    loop {
        let mut fresh: Vec<(TcpStream, Strategy)> = candidates
            .iter_mut()
            .filter_map(|candidate| Some((candidate.look(end.local)?, candidate.strategy)))
            .collect();
        // Strangers who come by leave room for the connections of one's own.
        let has_room = unproven.len() + candidates.len() < UNPROVEN_MAX;
        if listens
            && has_room
            && let Ok((stream, from)) = end.listener.accept()
        {
            let strategy = match punched {
                Some(ip) if ip == from.ip() => Strategy::TcpPunch,
                _ => Strategy::Reverse,
            };
            fresh.push((stream, strategy));
        }
        for (mut stream, strategy) in fresh {
            if unproven.len() >= UNPROVEN_MAX {
                break;
            }
            if !introduction.decides && stream.write_all(&greeting).is_err() {
                continue;
            }
            unproven.extend(Unproven::new(stream, strategy));
        }
        let mut at = 0;
        while at < unproven.len() {
            match unproven[at].read() {
                Greeting::Incomplete => at += 1,
                Greeting::Void => drop(unproven.swap_remove(at)),
                Greeting::Whole => {
                    let mut proven = unproven.swap_remove(at);
                    let core = driver.lock();
                    let is_peers = core
                        .agent
                        .is_greeting_of(peer, introduction, &proven.greeting);
                    drop(core);
                    if is_peers
                        && (!introduction.decides || proven.stream.write_all(&greeting).is_ok())
                    {
                        return Ok((proven.stream, proven.strategy));
                    }
                }
            }
        }
        if let Some(end) = driver.lock().end {
            return Err(end.into());
        }
        let is_over = unproven.is_empty() && candidates.iter().all(Candidate::is_over) && !listens;
        if is_over || Instant::now() >= deadline {
            let none = candidates.is_empty() && !listens;
            return Err(Error::NoStream(if none {
                Reason::NoAddress
            } else {
                Reason::NoAnswer
            }));
        }
        thread::sleep(LOOK);
    }
}
