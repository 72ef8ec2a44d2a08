//! The handshake of netfox's games over a UDP socket: four bytes, `$rwx`, by which two sides find out that each hears the
//! other. Never reads anything else into a datagram.
//!
//! A packet is `$` and three flags, each a letter or `-`: `w`, always set, I send; `r`, I have received something; `x`, I have
//! received that the other has received. A receiver looks for the letters only, anywhere in the datagram.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// Longer datagrams are cut; letters beyond do not count.
const RECEIVE_BUFFER: usize = 1_500;

/// How long to try, and how often to send.
///
/// ```
/// let timing = waypost_client::HandshakeTiming { timeout: std::time::Duration::from_secs(2), ..Default::default() };
/// assert_eq!(timing.interval.as_millis(), 100);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HandshakeTiming {
    /// After so long it is over.
    pub timeout: Duration,
    /// Between two packets.
    pub interval: Duration,
}

impl Default for HandshakeTiming {
    /// As netfox has them: 8 s and 100 ms, thus 80 packets of four bytes.
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(8),
            interval: Duration::from_millis(100),
        }
    }
}

/// What a side has to say.
///
/// ```
/// use waypost_client::HandshakePacket;
///
/// let mut own = HandshakePacket::default();
/// assert_eq!(&own.to_bytes(), b"$-w-");
/// own.hear(b"$rw-");
/// assert_eq!(&own.to_bytes(), b"$rwx");
/// assert!(!own.is_complete());
/// own.hear(b"$rwx");
/// assert!(own.is_complete());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HandshakePacket {
    received: bool,
    is_received: bool,
    peer_knows: bool,
}

impl HandshakePacket {
    /// The packet that says so.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 4] {
        [
            b'$',
            if self.received { b'r' } else { b'-' },
            b'w',
            if self.is_received { b'x' } else { b'-' },
        ]
    }

    /// Takes a datagram of the peer, of whatever kind: any at all shows that it can be heard.
    pub fn hear(&mut self, datagram: &[u8]) {
        self.received = true;
        self.is_received |= datagram.contains(&b'r');
        self.peer_knows |= datagram.contains(&b'x');
    }

    /// Whether both sides know that both are heard.
    #[must_use]
    pub const fn is_complete(self) -> bool {
        self.is_received && self.peer_knows
    }

    /// Whether the peer was heard, but has not shown that it hears.
    #[must_use]
    pub const fn is_partial(self) -> bool {
        self.received && !self.is_complete()
    }
}

/// How a handshake ended.
///
/// ```
/// use waypost_client::Handshake;
///
/// let addr = "203.0.113.9:40000".parse()?;
/// let (Handshake::Complete(peer) | Handshake::Partial(peer)) = Handshake::Complete(addr);
/// assert_eq!(peer, addr);
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Handshake {
    /// Each side knows that the other hears it, at this address.
    Complete(SocketAddr),
    /// The peer was heard from this address in the time, but did not show that it hears. netfox's games try to connect anyway.
    Partial(SocketAddr),
}

/// Shakes hands with a peer whose address a noray server told, or which is known otherwise. Packets from other IP addresses are
/// ignored; from another port than the told one they count, for a NAT may have chosen it, and are answered there.
/// The socket's read timeout is used and restored.
///
/// ```
/// use std::net::UdpSocket;
/// use waypost_client::{Handshake, HandshakeTiming, packet_handshake};
///
/// let (one, other) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
/// let (at_one, at_other) = (one.local_addr()?, other.local_addr()?);
/// let thread = std::thread::spawn(move || packet_handshake(&one, at_other, HandshakeTiming::default()));
/// let done = packet_handshake(&other, at_one, HandshakeTiming::default())?;
/// assert_eq!(done, Handshake::Complete(at_one));
/// # thread.join().unwrap()?;
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// `TimedOut` if nothing was heard in the time; those of the socket.
pub fn packet_handshake(
    socket: &UdpSocket,
    peer: SocketAddr,
    timing: HandshakeTiming,
) -> io::Result<Handshake> {
    let usual = socket.read_timeout()?;
    let outcome = shake(socket, peer, timing);
    socket.set_read_timeout(usual)?;
    outcome
}

fn shake(socket: &UdpSocket, peer: SocketAddr, timing: HandshakeTiming) -> io::Result<Handshake> {
    let mut own = HandshakePacket::default();
    let mut at = peer;
    let mut buffer = [0; RECEIVE_BUFFER];
    let began = Instant::now();
    let mut due = began;
    let give_up = began + timing.timeout;
    // What is there is looked at even if the time was over before this was given a processor.
    let mut now = began;
    loop {
        if due <= now {
            send(socket, at, own)?;
            due = now + timing.interval;
        }
        let wait = due.min(give_up).saturating_duration_since(now);
        socket.set_read_timeout(Some(wait.max(Duration::from_millis(1))))?;
        match socket.recv_from(&mut buffer) {
            Ok((len, from)) if from.ip() == peer.ip() => {
                at = from;
                own.hear(&buffer[..len]);
                if own.is_complete() {
                    // The peer may still lack the `x` that this side has only now.
                    send(socket, at, own)?;
                    return Ok(Handshake::Complete(at));
                }
            }
            Ok(_) => {}
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error),
        }
        now = Instant::now();
        if now >= give_up {
            break;
        }
    }
    if own.is_partial() {
        Ok(Handshake::Partial(at))
    } else {
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the peer was not heard; its NAT or this one lets nothing through, try the relay",
        ))
    }
}

/// Sends what a side that cannot receive sends, because a game has the socket's receiving end: `$rwx`, for all of the time. Nobody
/// learns whether it helped. The game may use the socket meanwhile.
///
/// # Errors
/// Those of the socket.
pub fn packet_handshake_blind(
    socket: &UdpSocket,
    peer: SocketAddr,
    timing: HandshakeTiming,
) -> io::Result<()> {
    let mut own = HandshakePacket::default();
    own.hear(b"r");
    let until = Instant::now() + timing.timeout;
    while Instant::now() < until {
        send(socket, peer, own)?;
        std::thread::sleep(timing.interval);
    }
    Ok(())
}

fn send(socket: &UdpSocket, to: SocketAddr, packet: HandshakePacket) -> io::Result<()> {
    match socket.send_to(&packet.to_bytes(), to) {
        Err(error) if !is_passing(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Nothing came in time, or some earlier packet found a port that is not open yet.
pub(crate) fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock
            | io::ErrorKind::TimedOut
            | io::ErrorKind::Interrupted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket() -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = socket.local_addr().unwrap();
        (socket, at)
    }

    fn short() -> HandshakeTiming {
        HandshakeTiming {
            timeout: Duration::from_millis(120),
            interval: Duration::from_millis(20),
        }
    }

    #[test]
    fn a_packet_says_what_was_heard() {
        let mut own = HandshakePacket::default();
        assert_eq!(own.to_bytes(), *b"$-w-");
        own.hear(b"anything else");
        assert_eq!((own.to_bytes(), own.is_partial()), (*b"$rw-", true));
        own.hear(b"");
        own.hear(b"no dollar but an r");
        assert_eq!(own.to_bytes(), *b"$rwx");
        own.hear(b"-x-");
        assert!(own.is_complete());
    }

    #[test]
    fn nobody_there_is_a_timeout_and_somebody_deaf_is_partial() {
        let (one, _) = socket();
        let (other, at_other) = socket();
        let error = packet_handshake(&one, at_other, short()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        other.send_to(b"$-w-", one.local_addr().unwrap()).unwrap();
        let done = packet_handshake(&one, at_other, short()).unwrap();
        assert_eq!(done, Handshake::Partial(at_other));
        assert_eq!(one.read_timeout().unwrap(), None);
    }

    #[test]
    fn a_blind_side_completes_a_seeing_one() {
        let (one, at_one) = socket();
        let (other, at_other) = socket();
        let blind = std::thread::spawn(move || {
            packet_handshake_blind(&one, at_other, short()).unwrap();
            one
        });
        let timing = HandshakeTiming::default();
        assert_eq!(
            packet_handshake(&other, at_one, timing).unwrap(),
            Handshake::Complete(at_one)
        );
        blind.join().unwrap();
    }

    #[test]
    fn another_host_does_not_count() {
        let (one, at_one) = socket();
        let (_other, at_other) = socket();
        let stranger = UdpSocket::bind("127.0.0.2:0").unwrap();
        stranger.send_to(b"$rwx", at_one).unwrap();
        let error = packet_handshake(&one, at_other, short()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
