//! An allocation on a TURN server (RFC 8656), and its channels. Never sends to a peer more than it is told to.

mod server;
#[cfg(feature = "tls")]
mod tls;
mod transport;

use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use waypost_proto::addr::Addr;
use waypost_proto::wire::channel_data;
use waypost_proto::wire::stun::{
    Class, Integrity, LongTermKey, Message, MessageWriter, TransactionId, attr, method,
};
use waypost_proto::wire::{self, Kind};

#[cfg(feature = "tls")]
pub use server::ServerIdentity;
pub use server::{TurnServer, TurnTransport};
use transport::Wire;

/// How long the server may take to allocate.
const ALLOCATE_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two repetitions of a request over UDP.
const AGAIN: Duration = Duration::from_millis(500);
/// A channel, and the permission with it, is renewed after this time (RFC 8656 sections 9 and 12: they last 5 and 10 minutes).
const RENEW: Duration = Duration::from_secs(240);
/// Shortest time after which an allocation is refreshed, whatever the server says.
const REFRESH_MIN: Duration = Duration::from_secs(10);
/// Channels at a time. Who wants to talk to more takes the place of whom was not talked to for longest.
const CHANNELS_MAX: usize = 256;
/// Longest nonce or realm that is kept (RFC 8489 section 14.9: fewer than 128 characters).
const TEXT_MAX: usize = 763;
/// Longer than any message that a session needs.
const MESSAGE_MAX: usize = 2_048;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request under way, repeated until it is answered.
struct Pending {
    id: TransactionId,
    again: Instant,
}

struct Channel {
    peer: Addr,
    number: u16,
    is_bound: bool,
    pending: Option<Pending>,
    renew: Instant,
    used: Instant,
}

struct State {
    username: String,
    password: String,
    realm: String,
    nonce: Vec<u8>,
    key: LongTermKey,
    refresh_every: Duration,
    refresh: Instant,
    refreshing: Option<Pending>,
    /// The server has no allocation of this client any more, and is asked for a new one.
    is_lost: bool,
    channels: Vec<Channel>,
    next_number: u16,
}

/// An allocation.
pub(crate) struct Turn {
    wire: Wire,
    state: Mutex<State>,
}

impl Turn {
    pub(crate) fn open(server: &TurnServer) -> io::Result<Self> {
        let wire = Wire::open(server)?;
        let mut state = State::new(server, Instant::now());
        state.allocate(&wire)?;
        Ok(Self {
            wire,
            state: Mutex::new(state),
        })
    }

    /// As [`Turn::open`], but a server that is not there is none: only one that refuses, or cannot be trusted, is an error.
    pub(crate) fn open_if_there(server: &TurnServer) -> io::Result<Option<Self>> {
        match Self::open(server) {
            Ok(turn) => Ok(Some(turn)),
            Err(error) => match error.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput => Err(error),
                _ => Ok(None),
            },
        }
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.wire.local_addr()
    }

    pub(crate) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.wire.set_read_timeout(timeout)
    }

    pub(crate) fn send_to(&self, bytes: &[u8], to: Addr) -> io::Result<usize> {
        let mut state = lock(&self.state);
        let now = Instant::now();
        let at = state.channel(to, now);
        state.bind(&self.wire, at, now)?;
        let channel = &mut state.channels[at];
        channel.used = now;
        let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let mut message = Vec::with_capacity(bytes.len() + 48);
        if channel.is_bound {
            let len = u16::try_from(bytes.len()).map_err(too_long)?;
            message.extend(channel.number.to_be_bytes());
            message.extend(len.to_be_bytes());
            message.extend_from_slice(bytes);
        } else {
            MessageWriter::new(&mut message, method::SEND, Class::Indication, random_id()?)
                .xor_addr(attr::XOR_PEER_ADDRESS, to)
                .attribute(attr::DATA, bytes)
                .finish();
        }
        drop(state);
        self.wire.send(&message)?;
        Ok(bytes.len())
    }

    /// Waits for a datagram. `WouldBlock` also if what came was none.
    pub(crate) fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let mut message = [0; MESSAGE_MAX];
        let received = self.wire.receive(&mut message);
        let mut state = lock(&self.state);
        let datagram = match &received {
            Ok(len) => state.take(&message[..*len]),
            Err(_) => None,
        };
        state.renew(&self.wire, Instant::now())?;
        received?;
        let (peer, data) = datagram.ok_or(io::ErrorKind::WouldBlock)?;
        let len = data.len().min(buffer.len());
        buffer[..len].copy_from_slice(&data[..len]);
        Ok((len, peer.to_socket_addr()))
    }
}

impl Drop for Turn {
    /// Gives the allocation back (RFC 8656 section 7: a lifetime of zero).
    fn drop(&mut self) {
        let state = lock(&self.state);
        let mut request = Vec::new();
        if let Ok(id) = random_id() {
            state.write(&mut request, method::REFRESH, id, |writer| {
                writer.u32(attr::LIFETIME, 0);
            });
            let _ = self.wire.send(&request);
        }
    }
}

impl State {
    fn new(server: &TurnServer, now: Instant) -> Self {
        Self {
            username: server.username.clone(),
            password: server.password.clone(),
            realm: String::new(),
            nonce: Vec::new(),
            key: LongTermKey::md5("", "", ""),
            refresh_every: REFRESH_MIN,
            refresh: now,
            refreshing: None,
            is_lost: false,
            channels: Vec::new(),
            next_number: 0x4000,
        }
    }

    /// Asks for the challenge, then for the allocation. Blocks.
    fn allocate(&mut self, wire: &Wire) -> io::Result<()> {
        let deadline = Instant::now() + ALLOCATE_TIMEOUT;
        let mut buffer = [0; MESSAGE_MAX];
        // The challenge, the allocation, and once more should the nonce be stale.
        for _ in 0..3 {
            let id = random_id()?;
            let mut request = Vec::new();
            self.write(&mut request, method::ALLOCATE, id, request_udp);
            let len = ask(wire, &request, id, &mut buffer, deadline)?;
            let message = Message::parse(&buffer[..len])
                .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
            match message.error_code() {
                None => {
                    let lifetime = message.find(attr::LIFETIME).unwrap_or(&[]);
                    self.granted(lifetime);
                    return Ok(());
                }
                Some(401 | 438) if self.take_challenge(&message) => {}
                Some(code) => {
                    let text = format!(
                        "the TURN server refused with error {code}; check user name and password, or ask its operator"
                    );
                    return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
                }
            }
        }
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "the TURN server does not take this user name and password",
        ))
    }

    /// The allocation is gone, with its channels: after a restart of the server for instance.
    fn lose(&mut self, now: Instant) {
        (self.is_lost, self.refreshing, self.refresh) = (true, None, now);
        for channel in &mut self.channels {
            (channel.is_bound, channel.pending, channel.renew) = (false, None, now);
        }
    }

    fn granted(&mut self, lifetime: &[u8]) {
        self.is_lost = false;
        let secs = <[u8; 4]>::try_from(lifetime).map_or(600, u32::from_be_bytes);
        self.refresh_every = (Duration::from_secs(secs.into()) / 2).max(REFRESH_MIN);
        self.refresh = Instant::now() + self.refresh_every;
        self.refreshing = None;
    }

    /// Takes nonce and realm over; returns whether the nonce is a new one.
    fn take_challenge(&mut self, message: &Message<'_>) -> bool {
        let usable = |value: &&[u8]| value.len() <= TEXT_MAX;
        let Some(nonce) = message.find(attr::NONCE).filter(usable) else {
            return false;
        };
        let realm = message.find(attr::REALM).filter(usable);
        if let Some(realm) = realm.and_then(|realm| std::str::from_utf8(realm).ok()) {
            realm.clone_into(&mut self.realm);
            self.key = LongTermKey::md5(&self.username, realm, &self.password);
        }
        let is_new = self.nonce != nonce;
        nonce.clone_into(&mut self.nonce);
        is_new
    }

    /// Writes a request, with credentials once there is a challenge.
    fn write(
        &self,
        out: &mut Vec<u8>,
        what: u16,
        id: TransactionId,
        body: impl FnOnce(&mut MessageWriter<'_>),
    ) {
        let mut writer = MessageWriter::new(out, what, Class::Request, id);
        body(&mut writer);
        if !self.nonce.is_empty() {
            writer
                .attribute(attr::USERNAME, self.username.as_bytes())
                .attribute(attr::REALM, self.realm.as_bytes())
                .attribute(attr::NONCE, &self.nonce)
                .integrity(Integrity::Sha1, &self.key);
        }
        writer.finish();
    }

    /// The place of a peer's channel, which is made if there is none.
    fn channel(&mut self, peer: Addr, now: Instant) -> usize {
        if let Some(at) = self.channels.iter().position(|c| c.peer == peer) {
            return at;
        }
        let number = self.next_number;
        // A number that was another peer's may be bound again after it has expired (RFC 8656 section 12): long after all others.
        self.next_number = if number == 0x4fff { 0x4000 } else { number + 1 };
        let channel = Channel {
            peer,
            number,
            is_bound: false,
            pending: None,
            renew: now,
            used: now,
        };
        if self.channels.len() == CHANNELS_MAX {
            let oldest = (0..CHANNELS_MAX).min_by_key(|&at| self.channels[at].used);
            let at = oldest.unwrap_or(0);
            self.channels[at] = channel;
            return at;
        }
        self.channels.push(channel);
        self.channels.len() - 1
    }

    /// Binds a channel, or renews it, if that is due.
    fn bind(&mut self, wire: &Wire, at: usize, now: Instant) -> io::Result<()> {
        let channel = &self.channels[at];
        let is_due = match &channel.pending {
            Some(pending) => now >= pending.again,
            None => now >= channel.renew,
        };
        if !is_due || self.is_lost {
            return Ok(());
        }
        let (peer, number, id) = (channel.peer, channel.number, random_id()?);
        let mut request = Vec::new();
        self.write(&mut request, method::CHANNEL_BIND, id, |writer| {
            let [high, low] = number.to_be_bytes();
            writer
                .attribute(attr::CHANNEL_NUMBER, &[high, low, 0, 0])
                .xor_addr(attr::XOR_PEER_ADDRESS, peer);
        });
        let again = now + AGAIN;
        self.channels[at].pending = Some(Pending { id, again });
        wire.send(&request)
    }

    /// Refreshes the allocation and the channels that are in use, where that is due.
    fn renew(&mut self, wire: &Wire, now: Instant) -> io::Result<()> {
        let is_due = match &self.refreshing {
            Some(pending) => now >= pending.again,
            None => now >= self.refresh,
        };
        if is_due {
            let id = random_id()?;
            let mut request = Vec::new();
            if self.is_lost {
                self.write(&mut request, method::ALLOCATE, id, request_udp);
            } else {
                self.write(&mut request, method::REFRESH, id, |_| ());
            }
            let again = now + AGAIN;
            self.refreshing = Some(Pending { id, again });
            wire.send(&request)?;
        }
        for at in 0..self.channels.len() {
            let channel = &self.channels[at];
            if now.duration_since(channel.used) < RENEW {
                self.bind(wire, at, now)?;
            }
        }
        Ok(())
    }

    /// What a message of the server means; data, and whose they are.
    fn take<'a>(&mut self, bytes: &'a [u8]) -> Option<(Addr, &'a [u8])> {
        match wire::kind(bytes) {
            Kind::ChannelData => {
                let frame = channel_data::parse(bytes)?;
                let number = frame.channel.get();
                let channel = self.channels.iter().find(|c| c.number == number)?;
                Some((channel.peer, frame.data))
            }
            Kind::Stun => {
                let message = Message::parse(bytes).ok()?;
                if (message.method(), message.class()) == (method::DATA, Class::Indication) {
                    let peer = message.find_xor_addr(attr::XOR_PEER_ADDRESS)?;
                    return Some((peer, message.find(attr::DATA)?));
                }
                self.take_answer(&message);
                None
            }
            Kind::Other => None,
        }
    }

    fn take_answer(&mut self, message: &Message<'_>) {
        let id = message.transaction_id();
        let stale = message.error_code() == Some(438);
        let genuine = message.class() != Class::Success
            || message.verify_integrity(Integrity::Sha1, &self.key);
        if !genuine {
            return;
        }
        let is_refresh = self.refreshing.as_ref().is_some_and(|p| p.id == id);
        let at = self
            .channels
            .iter()
            .position(|c| c.pending.as_ref().is_some_and(|p| p.id == id));
        if !is_refresh && at.is_none() {
            return;
        }
        if stale {
            self.take_challenge(message);
        }
        let now = Instant::now();
        let success = message.class() == Class::Success;
        if is_refresh && success {
            self.granted(message.find(attr::LIFETIME).unwrap_or(&[]));
        } else if is_refresh && stale {
            (self.refreshing, self.refresh) = (None, now);
        } else if is_refresh && !self.is_lost && message.error_code() == Some(437) {
            self.lose(now);
            return;
        }
        if let Some(at) = at {
            let channel = &mut self.channels[at];
            channel.pending = None;
            channel.is_bound |= success;
            // A peer that the server refuses is not asked for again soon.
            channel.renew = if stale { now } else { now + RENEW };
        }
    }
}

fn request_udp(writer: &mut MessageWriter<'_>) {
    writer.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
}

/// Sends a request until its answer comes.
fn ask(
    wire: &Wire,
    request: &[u8],
    id: TransactionId,
    buffer: &mut [u8],
    deadline: Instant,
) -> io::Result<usize> {
    wire.set_read_timeout(Some(AGAIN))?;
    let mut sent = false;
    while Instant::now() < deadline {
        if !sent || !wire.is_reliable() {
            wire.send(request)?;
            sent = true;
        }
        match wire.receive(buffer) {
            Ok(len) => {
                let is_answer =
                    Message::parse(&buffer[..len]).is_ok_and(|m| m.transaction_id() == id);
                if is_answer {
                    return Ok(len);
                }
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::TimedOut,
        "the TURN server does not answer; check its address, or reach it over TCP",
    ))
}

fn random_id() -> io::Result<TransactionId> {
    let mut id = [0; 12];
    getrandom::fill(&mut id).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(TransactionId(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(address: SocketAddr) -> TurnServer {
        TurnServer {
            address,
            transport: TurnTransport::Udp,
            username: "ann".to_owned(),
            password: "sesame".to_owned(),
        }
    }

    fn state() -> State {
        let mut state = State::new(&server(([127, 0, 0, 1], 9).into()), Instant::now());
        state.nonce = b"nonce".to_vec();
        state.key = LongTermKey::md5("ann", "realm", "sesame");
        state
    }

    fn peer(number: u16) -> Addr {
        Addr::from_ip_port([203, 0, 113, 7].into(), number)
    }

    /// What a server may say, in all lengths and with every byte changed: nothing panics, nothing grows.
    #[test]
    fn a_hostile_server_does_no_harm() {
        let id = TransactionId([7; 12]);
        let mut data = Vec::new();
        MessageWriter::new(&mut data, method::DATA, Class::Indication, id)
            .xor_addr(attr::XOR_PEER_ADDRESS, peer(5_000))
            .attribute(attr::DATA, b"hello")
            .finish();
        let mut granted = Vec::new();
        MessageWriter::new(&mut granted, method::REFRESH, Class::Success, id)
            .u32(attr::LIFETIME, u32::MAX)
            .integrity(Integrity::Sha1, state().key.as_bytes())
            .finish();
        let mut stale = Vec::new();
        MessageWriter::new(&mut stale, method::REFRESH, Class::Error, id)
            .error_code(438)
            .attribute(attr::NONCE, &[b'n'; 2_000][..700])
            .attribute(attr::REALM, &[0xff; 90])
            .finish();
        let channel = b"\x40\x00\x00\x05hello".to_vec();
        for bytes in [data, granted, stale, channel] {
            for len in 0..=bytes.len() {
                for change in [0, 1, 0x80, 0xff] {
                    let mut bytes = bytes[..len].to_vec();
                    if let Some(last) = bytes.last_mut() {
                        *last ^= change;
                    }
                    let mut state = state();
                    state.channel(peer(5_000), Instant::now());
                    let again = Instant::now();
                    state.refreshing = Some(Pending { id, again });
                    let _ = state.take(&bytes);
                    assert!(state.nonce.len() <= TEXT_MAX && state.channels.len() == 1);
                    assert!(state.refresh_every >= REFRESH_MIN);
                }
            }
        }
    }

    #[test]
    fn channels_are_bounded_and_the_least_used_goes_first() {
        let mut state = state();
        let began = Instant::now();
        for number in 0..3 * CHANNELS_MAX {
            let now = began + Duration::from_secs(number as u64);
            let at = state.channel(peer(1_024 + number as u16), now);
            state.channels[at].used = now;
        }
        assert_eq!(state.channels.len(), CHANNELS_MAX);
        let first_kept = peer(1_024 + 2 * CHANNELS_MAX as u16);
        assert!(state.channels.iter().any(|c| c.peer == first_kept));
        assert!(!state.channels.iter().any(|c| c.peer == peer(1_024)));
        let mut numbers: Vec<u16> = state.channels.iter().map(|c| c.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), CHANNELS_MAX);
    }

    #[test]
    fn an_allocation_that_the_server_has_forgotten_is_made_anew() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let wire = Wire::open(&server(socket.local_addr().unwrap())).unwrap();
        let mut state = state();
        let at = state.channel(peer(5_000), Instant::now());
        state.channels[at].is_bound = true;
        let asked = |state: &mut State| {
            state.renew(&wire, Instant::now()).unwrap();
            let mut buffer = [0; MESSAGE_MAX];
            loop {
                let len = socket.recv(&mut buffer).unwrap();
                let request = Message::parse(&buffer[..len]).unwrap();
                if request.method() != method::CHANNEL_BIND {
                    return (request.method(), request.transaction_id());
                }
            }
        };
        let (what, id) = asked(&mut state);
        assert_eq!(what, method::REFRESH);
        let mut answer = Vec::new();
        MessageWriter::new(&mut answer, method::REFRESH, Class::Error, id)
            .error_code(437)
            .finish();
        assert!(state.take(&answer).is_none());
        assert!(!state.channels[at].is_bound);
        let (what, id) = asked(&mut state);
        assert_eq!(what, method::ALLOCATE);
        let mut answer = Vec::new();
        MessageWriter::new(&mut answer, method::ALLOCATE, Class::Success, id)
            .u32(attr::LIFETIME, 600)
            .integrity(Integrity::Sha1, state.key.as_bytes())
            .finish();
        assert!(state.take(&answer).is_none());
        assert!(!state.is_lost && state.refreshing.is_none());
        assert!(state.refresh > Instant::now());
    }

    /// An answer without the account's key changes nothing.
    #[test]
    fn an_answer_that_is_not_the_servers_renews_nothing() {
        let id = TransactionId([7; 12]);
        let mut state = state();
        let at = state.channel(peer(5_000), Instant::now());
        let again = Instant::now();
        for (password, binds) in [("wrong", false), ("sesame", true)] {
            state.channels[at].pending = Some(Pending { id, again });
            let mut answer = Vec::new();
            let key = LongTermKey::md5("ann", "realm", password);
            MessageWriter::new(&mut answer, method::CHANNEL_BIND, Class::Success, id)
                .integrity(Integrity::Sha1, key.as_bytes())
                .finish();
            assert!(state.take(&answer).is_none());
            assert_eq!(state.channels[at].is_bound, binds);
        }
    }
}
