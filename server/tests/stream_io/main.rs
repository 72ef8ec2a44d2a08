//! One suite for the streams of both backends, over IPv4 and IPv6 loopback.
#![allow(clippy::unwrap_used)]

#[path = "../backends/mod.rs"]
mod backends;
mod descriptors;
mod endings;
mod mixture;
mod transfer;

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use waypost_server::packet_io::{
    IoConfig, ListenerId, STREAM_QUEUE_BYTES, SendRefused, StreamEvent, StreamId, StreamIo,
    TURN_DATAGRAMS, TcpOptions, UdpOptions, bind_tcp_listener, bind_udp,
};

use backends::{rings_while_it_sleeps, suite};
use endings::{
    a_closed_half_is_an_end, a_drop_ends_everything, a_flush_delivers_the_last_bytes,
    a_flush_does_not_wait_for_the_peer, a_reset_is_an_end, a_stale_id_does_nothing,
    without_a_flush_it_is_reset,
};
use mixture::a_mixture_keeps_every_byte;
use transfer::{
    a_peer_that_never_reads_meets_the_bound, bytes_are_echoed,
    bytes_of_an_earlier_turn_are_refused, large_transfers_keep_their_order, many_streams_at_once,
    more_bytes_than_slots_lose_nothing, no_stream_starves, room_ends_the_sleep,
    too_much_at_once_is_refused_whole,
};

/// A wait that ends a hung test; no test passes because of it.
const HANG: Duration = Duration::from_secs(20);

fn listen(io: &mut impl StreamIo, ip: IpAddr) -> (ListenerId, SocketAddr) {
    let listener = bind_tcp_listener(SocketAddr::new(ip, 0), &TcpOptions::default()).unwrap();
    let at = listener.local_addr().unwrap();
    (io.add_listener(listener).unwrap(), at)
}

/// A blocking stream of a test's own. It is connected once the kernel has queued it, accepted or not.
fn connect(at: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    stream.set_write_timeout(Some(HANG)).unwrap();
    stream
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i * 31 + seed * 7 + (i >> 8) + (i >> 16)) as u8)
        .collect()
}

fn read(stream: &mut TcpStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Everything that was seen of streams, held against the rules for events.
#[derive(Default)]
struct Seen {
    accepted: Vec<(ListenerId, StreamId, SocketAddr)>,
    received: HashMap<StreamId, Vec<u8>>,
    ended: Vec<StreamId>,
    closed: Vec<StreamId>,
}

impl Seen {
    /// One turn and all its events.
    fn turn(&mut self, io: &mut impl StreamIo, timeout: Duration) {
        io.turn(Some(timeout)).unwrap();
        self.take(io, usize::MAX);
    }

    /// At most so many events.
    fn take(&mut self, io: &mut impl StreamIo, most: usize) {
        let mut taken = 0;
        while taken < most
            && let Some(event) = io.next_stream_event()
        {
            taken += 1;
            let id = match event {
                StreamEvent::Accepted {
                    listener,
                    stream,
                    peer,
                } => {
                    assert!(!self.received.contains_key(&stream), "accepted twice");
                    self.received.insert(stream, Vec::new());
                    self.accepted.push((listener, stream, peer));
                    stream
                }
                StreamEvent::Received { stream, bytes } => {
                    let bytes = io.stream_bytes(&bytes);
                    assert!(!bytes.is_empty());
                    self.received
                        .get_mut(&stream)
                        .unwrap()
                        .extend_from_slice(bytes);
                    assert!(!self.ended.contains(&stream), "bytes after the end");
                    stream
                }
                StreamEvent::Ended { stream } => {
                    assert!(!self.ended.contains(&stream), "ended twice");
                    self.ended.push(stream);
                    stream
                }
            };
            assert!(
                !self.closed.contains(&id),
                "an event of a stream that was closed"
            );
        }
        assert!(taken <= TURN_DATAGRAMS);
    }

    /// Turns until `done`.
    fn until<P: StreamIo>(&mut self, io: &mut P, mut done: impl FnMut(&mut P, &mut Self) -> bool) {
        let start = Instant::now();
        while !done(io, self) {
            assert!(start.elapsed() < HANG, "it does not come to an end");
            self.turn(io, HANG);
        }
    }

    /// Connects and waits until it is accepted.
    fn accept(&mut self, io: &mut impl StreamIo, at: SocketAddr) -> (TcpStream, StreamId) {
        let peer = connect(at);
        let address = peer.local_addr().unwrap();
        let mut found = None;
        self.until(io, |_, seen| {
            found = seen
                .accepted
                .iter()
                .find(|accepted| accepted.2 == address)
                .map(|a| a.1);
            found.is_some()
        });
        // Ports come round, so it must not be found again.
        self.accepted.retain(|accepted| accepted.2 != address);
        (peer, found.unwrap())
    }

    fn close(&mut self, io: &mut impl StreamIo, id: StreamId, flush: bool) {
        io.close_stream(id, flush);
        self.closed.push(id);
    }

    /// Sends what was received so far back.
    fn echo(&mut self, io: &mut impl StreamIo) {
        for (&id, bytes) in &mut self.received {
            if !bytes.is_empty() {
                io.send_stream(id, &[bytes]).unwrap();
                bytes.clear();
            }
        }
    }
}

/// Turns that wait for nothing in particular, such as closes.
fn settle(io: &mut impl StreamIo) {
    for _ in 0..4 {
        io.turn(Some(Duration::ZERO)).unwrap();
    }
}

/// Sends copies of `chunk` until nothing moves for a while; returns how many bytes were taken.
fn fill(io: &mut impl StreamIo, seen: &mut Seen, id: StreamId, chunk: &[u8]) -> usize {
    let (mut taken, mut idle) = (0, 0);
    let before = io.stats().stream_bytes_sent;
    while idle < 20 {
        let sent = io.stats().stream_bytes_sent;
        let refused = loop {
            match io.send_stream(id, &[chunk]) {
                Ok(()) => taken += chunk.len(),
                Err(refused) => break refused,
            }
        };
        assert_eq!(refused, SendRefused::Full);
        assert!(taken - (io.stats().stream_bytes_sent - before) as usize <= STREAM_QUEUE_BYTES);
        seen.turn(io, Duration::from_millis(1));
        let still = io.stats().stream_bytes_sent == sent;
        idle = if still { idle + 1 } else { 0 };
    }
    taken
}

fn reset(peer: TcpStream) {
    let socket = socket2::Socket::from(peer);
    socket.set_linger(Some(Duration::ZERO)).unwrap();
}

fn too_many_streams_are_refused(mut io: impl StreamIo, ip: IpAddr) {
    let (_, at) = listen(&mut io, ip);
    let mut seen = Seen::default();
    let mut peers: Vec<_> = (0..7).map(|_| connect(at)).collect();
    seen.until(&mut io, |io, _| io.stats().streams_refused == 3);
    assert_eq!((seen.accepted.len(), io.open_streams()), (4, 4));
    for peer in &mut peers[4..] {
        assert!(!matches!(peer.read(&mut [0]), Ok(1..)));
    }
    seen.close(&mut io, seen.accepted[0].1, true);
    assert_eq!(io.open_streams(), 3);
    seen.accept(&mut io, at);
    assert_eq!(
        (io.stats().streams_accepted, io.stats().streams_refused),
        (5, 3)
    );
}

fn streams_and_datagrams_share_a_turn(mut io: impl StreamIo, ip: IpAddr) {
    let (_, at) = listen(&mut io, ip);
    let udp = bind_udp(SocketAddr::new(ip, 0), &UdpOptions::default()).unwrap();
    let udp_at = udp.local_addr().unwrap();
    let socket = io.add_socket(udp).unwrap();
    let other = std::net::UdpSocket::bind(SocketAddr::new(ip, 0)).unwrap();
    other.set_read_timeout(Some(HANG)).unwrap();
    let mut seen = Seen::default();
    let (mut peer, id) = seen.accept(&mut io, at);
    let mut turns = 0;
    for round in 0..100u8 {
        peer.write_all(&[round; 300]).unwrap();
        other.send_to(&[round; 200], udp_at).unwrap();
        let mut datagrams = 0;
        seen.until(&mut io, |io, seen| {
            turns += 1;
            while let Some(received) = io.next() {
                let to = received.from;
                io.forward(received.buf, 100, &[7], socket, to);
                datagrams += 1;
            }
            datagrams == 1 && seen.received[&id].len() == 300
        });
        seen.echo(&mut io);
        seen.turn(&mut io, Duration::ZERO);
        assert_eq!(read(&mut peer, 300), [round; 300]);
        let mut buffer = [0; 300];
        assert_eq!(other.recv(&mut buffer).unwrap(), 101);
        assert_eq!(buffer[..2], [7, round]);
    }
    assert!(turns < 1000, "{turns} turns for 100 rounds");
}

fn doorbells_wake_among_streams(mut io: impl StreamIo, ip: IpAddr) {
    let (_, at) = listen(&mut io, ip);
    let mut seen = Seen::default();
    let (_peer, _) = seen.accept(&mut io, at);
    rings_while_it_sleeps(&mut io, |io, before| {
        seen.until(io, |io, _| io.stats().doorbells > before);
    });
}

fn events_that_are_not_taken_stay(mut io: impl StreamIo, ip: IpAddr) {
    let (_, at) = listen(&mut io, ip);
    let mut seen = Seen::default();
    let mut peers: Vec<_> = (0..10).map(|_| connect(at)).collect();
    for (i, peer) in peers.iter_mut().enumerate() {
        peer.write_all(&pattern(10_000, i)).unwrap();
    }
    drop(peers);
    let start = Instant::now();
    while seen.ended.len() < 10 {
        io.turn(Some(HANG)).unwrap();
        seen.take(&mut io, 1);
        assert!(start.elapsed() < HANG);
    }
    assert!(seen.received.values().all(|bytes| bytes.len() == 10_000));
    // A stream is closed with its events still waiting.
    let (mut peer, id) = seen.accept(&mut io, at);
    peer.write_all(b"for nobody").unwrap();
    io.turn(Some(HANG)).unwrap();
    seen.close(&mut io, id, true);
    for _ in 0..5 {
        seen.turn(&mut io, Duration::ZERO);
    }
}

fn usual() -> IoConfig {
    IoConfig {
        slots: 64,
        max_sockets: 20,
        ..IoConfig::default()
    }
}

fn four_streams() -> IoConfig {
    IoConfig {
        max_streams: 4,
        ..usual()
    }
}

fn one_stream() -> IoConfig {
    IoConfig {
        max_streams: 1,
        ..usual()
    }
}

suite! {
    bytes_are_echoed: usual;
    many_streams_at_once: usual;
    large_transfers_keep_their_order: usual;
    a_peer_that_never_reads_meets_the_bound: usual;
    too_much_at_once_is_refused_whole: usual;
    room_ends_the_sleep: usual;
    a_closed_half_is_an_end: usual;
    a_reset_is_an_end: usual;
    a_flush_delivers_the_last_bytes: usual;
    a_flush_does_not_wait_for_the_peer: usual;
    without_a_flush_it_is_reset: usual;
    a_stale_id_does_nothing: one_stream;
    too_many_streams_are_refused: four_streams;
    streams_and_datagrams_share_a_turn: usual;
    doorbells_wake_among_streams: usual;
    more_bytes_than_slots_lose_nothing: usual;
    no_stream_starves: usual;
    events_that_are_not_taken_stay: usual;
    bytes_of_an_earlier_turn_are_refused: usual;
    a_drop_ends_everything: usual;
    a_mixture_keeps_every_byte: usual;
}
