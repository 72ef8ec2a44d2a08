//! A client of noray servers, so that a Rust program can meet a netfox game: registration, introduction, relay. What the
//! server says is checked for length and form, and believed no further than its own protocol goes.
//!
//! Control is lines over TCP; the UDP socket that the game will use shows itself to the server's registrar. IPv4 only, as
//! noray is.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant};

use crate::packet_handshake::{HandshakeTiming, is_passing};

/// The usual port of the control channel.
pub const NORAY_PORT: u16 = 8_890;
/// The usual port of the UDP registrar.
pub const NORAY_REGISTRAR_PORT: u16 = 8_809;
/// No line of a server is longer.
const LINE_MAX: usize = 4_096;
/// Introductions that may wait while something else is waited for; beyond it the oldest go.
const WAITING_MAX: usize = 64;

/// Where to meet a peer, as a noray server told it.
///
/// ```
/// use waypost_client::Introduction;
///
/// let met = Introduction::Relay("203.0.113.9:49152".parse()?);
/// assert_eq!(met.addr().port(), 49152);
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Introduction {
    /// The peer's public address: shake hands with it.
    Nat(SocketAddr),
    /// The server's relay port that leads to the peer: shake hands there.
    Relay(SocketAddr),
}

impl Introduction {
    /// The address to send to.
    #[must_use]
    pub const fn addr(self) -> SocketAddr {
        match self {
            Self::Nat(addr) | Self::Relay(addr) => addr,
        }
    }
}

/// A connection to a noray server.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let options = ["--noray-listen", "127.0.0.1:0", "--noray-registrar", "127.0.0.1:0"];
/// # let server = waypost_server::serve::Server::start_with(&options)?;
/// # let control = server.noray_addr().ok_or("no noray")?;
/// # let dialect = waypost_proto::dialect::Dialect::Noray;
/// # let registrar_port = server.dialect_addrs(dialect)[0].port();
/// use std::net::UdpSocket;
/// use waypost_client::{HandshakeTiming, Noray, packet_handshake};
///
/// let timing = HandshakeTiming::default();
/// let register = || -> std::io::Result<(Noray, UdpSocket)> {
///     let mut noray = Noray::connect(control, timing.timeout)?; // port 8890 as a rule
///     let socket = UdpSocket::bind("0.0.0.0:0")?;
///     noray.register(timing.timeout)?;
///     noray.register_remote(&socket, registrar_port, timing)?; // NORAY_REGISTRAR_PORT as a rule
///     Ok((noray, socket))
/// };
/// let (mut host, host_socket) = register()?;
/// println!("tell the others: {}", host.oid());
/// let (mut guest, guest_socket) = register()?;
///
/// // Directly; connect_relay instead of connect_nat if that fails.
/// guest.connect_nat(host.oid())?;
/// let to_host = guest.next_introduction(timing.timeout)?.addr();
/// let to_guest = host.next_introduction(timing.timeout)?.addr();
/// let hosting = std::thread::spawn(move || packet_handshake(&host_socket, to_guest, timing));
/// packet_handshake(&guest_socket, to_host, timing)?;
/// hosting.join().expect("the host's thread panicked")?;
/// # Ok(()) }
/// ```
pub struct Noray {
    stream: TcpStream,
    server: Ipv4Addr,
    received: Vec<u8>,
    oid: String,
    pid: String,
    waiting: Vec<Introduction>,
}

impl fmt::Debug for Noray {
    /// Without the PID, which is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Noray")
            .field("server", &self.server)
            .field("oid", &self.oid)
            .finish_non_exhaustive()
    }
}

impl Noray {
    /// Connects to a server's control channel.
    ///
    /// # Errors
    /// Those of [`TcpStream::connect_timeout`]; `AddrNotAvailable` if the server has no IPv4 address.
    pub fn connect(server: impl ToSocketAddrs, timeout: Duration) -> io::Result<Self> {
        let mut last = io::Error::new(
            io::ErrorKind::AddrNotAvailable,
            "the server's name has no IPv4 address, which noray needs; check it",
        );
        for address in server.to_socket_addrs()? {
            let SocketAddr::V4(v4) = address else {
                continue;
            };
            match TcpStream::connect_timeout(&address, timeout) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    return Ok(Self {
                        stream,
                        server: *v4.ip(),
                        received: Vec::new(),
                        oid: String::new(),
                        pid: String::new(),
                        waiting: Vec::new(),
                    });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// What others name this player by; empty before [`Noray::register`].
    #[must_use]
    pub fn oid(&self) -> &str {
        &self.oid
    }

    /// The secret by which the registrar knows this player; empty before [`Noray::register`].
    #[must_use]
    pub fn pid(&self) -> &str {
        &self.pid
    }

    /// Gets an identity. Everybody needs one, also who only connects to others.
    ///
    /// # Errors
    /// `TimedOut` if the server does not give one; those of the connection.
    pub fn register(&mut self, timeout: Duration) -> io::Result<()> {
        self.say("register-host", "")?;
        (self.oid, self.pid) = (String::new(), String::new());
        let until = Instant::now() + timeout;
        while self.oid.is_empty() || self.pid.is_empty() {
            let line = self.read_line(until)?;
            self.take(&line);
        }
        Ok(())
    }

    /// Shows the socket that the game will use to the server's registrar, so that the server knows its public address.
    /// The address stays that of the first success for this identity.
    ///
    /// # Errors
    /// `InvalidInput` without an identity; `PermissionDenied` if the registrar does not know it; `TimedOut` if it does not
    /// answer; those of the socket.
    pub fn register_remote(
        &mut self,
        socket: &UdpSocket,
        registrar_port: u16,
        timing: HandshakeTiming,
    ) -> io::Result<()> {
        if self.pid.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "there is no identity yet; register first",
            ));
        }
        let usual = socket.read_timeout()?;
        let registrar = SocketAddrV4::new(self.server, registrar_port).into();
        let outcome = show(socket, registrar, self.pid.as_bytes(), timing);
        socket.set_read_timeout(usual)?;
        outcome
    }

    /// Asks for an introduction to the player with this OID. It comes by [`Noray::next_introduction`], to both; a wrong OID, or
    /// one that is not registered yet, is answered by silence.
    ///
    /// # Errors
    /// `InvalidInput` if this can be no OID; those of the connection.
    pub fn connect_nat(&mut self, oid: &str) -> io::Result<()> {
        self.say("connect", oid)
    }

    /// Asks for relay ports to and from the player with this OID. As [`Noray::connect_nat`] otherwise.
    ///
    /// # Errors
    /// As [`Noray::connect_nat`].
    pub fn connect_relay(&mut self, oid: &str) -> io::Result<()> {
        self.say("connect-relay", oid)
    }

    /// Waits for the next introduction, asked for by this player or by another.
    ///
    /// # Errors
    /// `TimedOut` if none comes; `UnexpectedEof` if the server has closed the connection; those of the connection.
    pub fn next_introduction(&mut self, timeout: Duration) -> io::Result<Introduction> {
        let until = Instant::now() + timeout;
        while self.waiting.is_empty() {
            let line = self.read_line(until)?;
            self.take(&line);
        }
        Ok(self.waiting.remove(0))
    }

    fn say(&mut self, command: &str, data: &str) -> io::Result<()> {
        if data.contains(|c: char| c.is_ascii_control() || c == ' ') || data.len() > LINE_MAX / 2 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "this can be no OID; ask the other player for it again",
            ));
        }
        let line = match data {
            "" => format!("{command}\n"),
            data => format!("{command} {data}\n"),
        };
        self.stream.write_all(line.as_bytes())
    }

    /// Takes what a line says. Words that mean nothing here are passed over, as netfox does.
    fn take(&mut self, line: &str) {
        let mut words = line.split(' ');
        let (command, data) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let introduction = match command {
            "set-oid" => {
                data.clone_into(&mut self.oid);
                None
            }
            "set-pid" => {
                data.clone_into(&mut self.pid);
                None
            }
            "connect" => data
                .parse::<SocketAddrV4>()
                .ok()
                .filter(|addr| may_be_a_peer(*addr))
                .map(|addr| Introduction::Nat(addr.into())),
            "connect-relay" => data
                .parse::<u16>()
                .ok()
                .filter(|port| *port != 0)
                .map(|port| Introduction::Relay(SocketAddrV4::new(self.server, port).into())),
            _ => None,
        };
        if let Some(introduction) = introduction {
            if self.waiting.len() == WAITING_MAX {
                self.waiting.remove(0);
            }
            self.waiting.push(introduction);
        }
    }

    fn read_line(&mut self, until: Instant) -> io::Result<String> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line[..end]);
                return Ok(line.trim_end_matches('\r').to_owned());
            }
            if self.received.len() >= LINE_MAX {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the server sends lines that are too long; this is no noray server",
                ));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the noray server said nothing in time; check the OID, and that both sides have registered",
                ));
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut buffer = [0; 1_024];
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the noray server has closed the connection; connect and register again",
                    ));
                }
                Ok(len) => self.received.extend_from_slice(&buffer[..len]),
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether packets to this address can be meant for one player.
fn may_be_a_peer(addr: SocketAddrV4) -> bool {
    let ip = addr.ip();
    addr.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast()
}

fn show(
    socket: &UdpSocket,
    registrar: SocketAddr,
    pid: &[u8],
    timing: HandshakeTiming,
) -> io::Result<()> {
    let until = Instant::now() + timing.timeout;
    let mut due = Instant::now();
    loop {
        let now = Instant::now();
        if now >= until {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the registrar does not answer; check its port, and that UDP gets through to it",
            ));
        }
        if due <= now {
            socket.send_to(pid, registrar)?;
            due = now + timing.interval;
        }
        let wait = due.min(until).saturating_duration_since(now);
        socket.set_read_timeout(Some(wait.max(Duration::from_millis(1))))?;
        let mut buffer = [0; 256];
        match socket.recv_from(&mut buffer) {
            Ok((len, from)) if from == registrar => {
                return match &buffer[..len] {
                    b"OK" => Ok(()),
                    _ => Err(io::Error::new(
                        io::ErrorKind::PermissionDenied,
                        "the registrar does not know this player; register again",
                    )),
                };
            }
            Ok(_) => {}
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error),
        }
    }
}
