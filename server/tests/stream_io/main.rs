//! One suite for the streams of both backends, over IPv4 and IPv6 loopback.
#![allow(clippy::unwrap_used)]

mod descriptors;

use std::collections::HashMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use waypost_server::mmsg::Mmsg;
use waypost_server::packet_io::{
    IoConfig, ListenerId, STREAM_QUEUE_BYTES, SendRefused, StreamEvent, StreamId, StreamIo,
    TURN_DATAGRAMS, TcpOptions, UdpOptions, bind_tcp_listener, bind_udp,
};
use waypost_server::ring::Ring;

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

fn bytes_are_echoed(mut io: impl StreamIo, ip: IpAddr) {
    let listeners = [listen(&mut io, ip), listen(&mut io, ip)];
    assert_ne!(listeners[0].0, listeners[1].0);
    for (listener, at) in listeners {
        let mut seen = Seen::default();
        let mut peer = connect(at);
        seen.until(&mut io, |_, seen| !seen.accepted.is_empty());
        let (from, id, address) = seen.accepted[0];
        assert_eq!((from, address), (listener, peer.local_addr().unwrap()));
        for len in [1, 2, 100, 4095, 4096, 4097, 30_000] {
            let sent = pattern(len, len);
            peer.write_all(&sent).unwrap();
            seen.until(&mut io, |_, seen| seen.received[&id].len() == len);
            assert_eq!(seen.received[&id], sent);
            let (head, tail) = sent.split_at(len / 3);
            io.send_stream(id, &[head, &[], tail]).unwrap();
            seen.received.get_mut(&id).unwrap().clear();
            seen.turn(&mut io, Duration::ZERO);
            assert_eq!(read(&mut peer, len), sent);
        }
    }
    let stats = io.stats();
    assert_eq!((stats.streams_accepted, io.open_streams()), (2, 2));
    // The last completion may still be under way.
    assert!(stats.stream_bytes_received >= stats.stream_bytes_sent);
    assert_eq!(stats.stream_sends_refused, 0);
}

fn many_streams_at_once(mut io: impl StreamIo, ip: IpAddr) {
    let (_, at) = listen(&mut io, ip);
    let mut seen = Seen::default();
    let mut peers: Vec<_> = (0..300).map(|_| connect(at)).collect();
    seen.until(&mut io, |io, _| io.open_streams() == 300);
    for round in 0..4 {
        for (i, peer) in peers.iter_mut().enumerate() {
            peer.write_all(&pattern(100 + i, round + i)).unwrap();
        }
        let total = |seen: &Seen| seen.received.values().map(Vec::len).sum::<usize>();
        let all: usize = (0..300).map(|i| 100 + i).sum();
        seen.until(&mut io, |_, seen| total(seen) == all);
        seen.echo(&mut io);
        seen.turn(&mut io, Duration::ZERO);
        for (i, peer) in peers.iter_mut().enumerate() {
            assert_eq!(read(peer, 100 + i), pattern(100 + i, round + i));
        }
    }
    drop(peers);
    seen.until(&mut io, |_, seen| seen.ended.len() == 300);
    for id in seen.ended.clone() {
        seen.close(&mut io, id, true);
    }
    settle(&mut io);
    assert_eq!((io.open_streams(), io.stats().streams_closed), (0, 300));
}

fn large_transfers_keep_their_order(mut io: impl StreamIo, ip: IpAddr) {
    const BYTES: usize = 16 << 20;
    let (_, at) = listen(&mut io, ip);
    let mut seen = Seen::default();
    let (peer, id) = seen.accept(&mut io, at);
    let (down, up) = (pattern(BYTES, 1), pattern(BYTES, 2));
    let (full, start_reading) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let (mut writer, mut reader) = (peer.try_clone().unwrap(), &peer);
        let (down, up) = (&down, &up);
        scope.spawn(move || writer.write_all(up).unwrap());
        scope.spawn(move || {
            // Not before the server has met a full queue.
            let () = start_reading.recv_timeout(HANG).unwrap();
            let mut got = vec![0; BYTES];
            reader.read_exact(&mut got).unwrap();
            assert!(got == *down, "the order was not kept");
        });
        let mut sent = 0;
        seen.until(&mut io, |io, seen| {
            while sent < BYTES {
                let chunk = &down[sent..BYTES.min(sent + 5000)];
                match io.send_stream(id, &[chunk]) {
                    Ok(()) => sent += chunk.len(),
                    Err(refused) => {
                        assert_eq!(refused, SendRefused::Full);
                        let _ = full.send(());
                        break;
                    }
                }
            }
            seen.received[&id].len() == BYTES && sent == BYTES
        });
        // Nothing tells that the last bytes have left.
        while io.stats().stream_bytes_sent < BYTES as u64 {
            seen.turn(&mut io, Duration::from_millis(1));
        }
    });
    assert!(seen.received[&id] == up, "the order was not kept");
    assert!(io.stats().stream_sends_refused > 0);
}

fn a_peer_that_never_reads_meets_the_bound(mut io: impl StreamIo, ip: IpAddr) {
    let (_, at) = listen(&mut io, ip);
    let mut seen = Seen::default();
    let (lazy, lazy_id) = seen.accept(&mut io, at);
    let (mut other, other_id) = seen.accept(&mut io, at);
    fill(&mut io, &mut seen, lazy_id, &pattern(4096, 1));
    assert!(io.stats().stream_sends_refused > 0);
    // Nobody else is kept waiting.
    other.write_all(b"hello").unwrap();
    seen.until(&mut io, |_, seen| seen.received[&other_id] == b"hello");
    io.send_stream(other_id, &[b"hello"]).unwrap();
    seen.turn(&mut io, Duration::ZERO);
    assert_eq!(read(&mut other, 5), b"hello");
    drop(lazy);
    seen.until(&mut io, |_, seen| seen.ended == [lazy_id]);
    seen.close(&mut io, lazy_id, false);
    seen.turn(&mut io, Duration::ZERO);
    assert_eq!(io.send_stream(lazy_id, &[b"x"]), Err(SendRefused::Gone));
}

fn too_much_at_once_is_refused_whole(mut io: impl StreamIo, ip: IpAddr) {
    let (_, at) = listen(&mut io, ip);
    let mut seen = Seen::default();
    let (mut peer, id) = seen.accept(&mut io, at);
    let most = pattern(STREAM_QUEUE_BYTES, 1);
    let more = io.send_stream(id, &[&most, b"x"]);
    assert_eq!(more, Err(SendRefused::Full));
    io.send_stream(id, &[&most]).unwrap();
    assert_eq!(io.send_stream(id, &[b"x"]), Err(SendRefused::Full));
    settle(&mut io);
    assert_eq!(read(&mut peer, most.len()), most);
    io.send_stream(id, &[b"y"]).unwrap();
    settle(&mut io);
    assert_eq!(read(&mut peer, 1), b"y");
}

fn room_ends_the_sleep(mut io: impl StreamIo, ip: IpAddr) {
    let (_, at) = listen(&mut io, ip);
    let mut seen = Seen::default();
    let (mut peer, id) = seen.accept(&mut io, at);
    let half = pattern(STREAM_QUEUE_BYTES / 2, 1);
    for _ in 0..50 {
        let mut taken = 0;
        // With nothing else to wake for.
        seen.until(&mut io, |io, _| {
            taken += usize::from(io.send_stream(id, &[&half]).is_ok());
            taken += usize::from(io.send_stream(id, &[&half]).is_ok());
            let _ = io.send_stream(id, &[&half]);
            taken >= 4
        });
        settle(&mut io);
        for _ in 0..taken {
            assert!(read(&mut peer, half.len()) == half);
        }
        settle(&mut io);
    }
}

fn a_closed_half_is_an_end(mut io: impl StreamIo, ip: IpAddr) {
    let (_, at) = listen(&mut io, ip);
    let mut seen = Seen::default();
    let (mut peer, id) = seen.accept(&mut io, at);
    peer.write_all(&pattern(5000, 1)).unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    seen.until(&mut io, |_, seen| seen.ended == [id]);
    assert_eq!(seen.received[&id], pattern(5000, 1));
    // The other half still works, and an ended stream wakes nobody.
    let turns = io.stats().turns;
    let bell = io.doorbell();
    std::thread::scope(|scope| {
        let (asleep, rung) = std::sync::mpsc::channel();
        scope.spawn(move || {
            rung.recv().unwrap();
            // Long enough for thousands of turns of a shard that does not sleep.
            std::thread::sleep(Duration::from_millis(20));
            bell.ring();
        });
        asleep.send(()).unwrap();
        let bells = io.stats().doorbells;
        seen.until(&mut io, |io, _| io.stats().doorbells > bells);
    });
    assert!(io.stats().turns < turns + 20, "an ended stream spins");
    io.send_stream(id, &[&pattern(5000, 2)]).unwrap();
    seen.close(&mut io, id, true);
    settle(&mut io);
    let mut rest = Vec::new();
    peer.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, pattern(5000, 2));
}

fn a_reset_is_an_end(mut io: impl StreamIo, ip: IpAddr) {
    let (_, at) = listen(&mut io, ip);
    let mut seen = Seen::default();
    for with_bytes_under_way in [false, true] {
        let (peer, id) = seen.accept(&mut io, at);
        if with_bytes_under_way {
            fill(&mut io, &mut seen, id, &pattern(4096, 1));
        }
        reset(peer);
        seen.until(&mut io, |_, seen| seen.ended.contains(&id));
        settle(&mut io);
        assert_eq!(io.send_stream(id, &[b"x"]), Err(SendRefused::Gone));
        seen.turn(&mut io, Duration::ZERO);
        assert!(io.next_stream_event().is_none());
        seen.close(&mut io, id, true);
    }
    settle(&mut io);
    assert_eq!(io.open_streams(), 0);
}

fn reset(peer: TcpStream) {
    let socket = socket2::Socket::from(peer);
    socket.set_linger(Some(Duration::ZERO)).unwrap();
}

fn a_flush_delivers_the_last_bytes(mut io: impl StreamIo, ip: IpAddr) {
    let (_, at) = listen(&mut io, ip);
    let mut seen = Seen::default();
    for unread in [0, 10, 20_000] {
        let (mut peer, id) = seen.accept(&mut io, at);
        seen.turn(&mut io, Duration::ZERO);
        // In part on its way when the close comes, in part received by nobody.
        io.send_stream(id, &[&pattern(20_000, 1)]).unwrap();
        io.turn(Some(Duration::ZERO)).unwrap();
        peer.write_all(&vec![9; unread]).unwrap();
        io.send_stream(id, &[&pattern(20_000, 2)]).unwrap();
        seen.close(&mut io, id, true);
        settle(&mut io);
        let mut got = Vec::new();
        peer.read_to_end(&mut got).unwrap();
        assert_eq!(got, [pattern(20_000, 1), pattern(20_000, 2)].concat());
    }
}

fn a_flush_does_not_wait_for_the_peer(mut io: impl StreamIo, ip: IpAddr) {
    let (_, at) = listen(&mut io, ip);
    let mut seen = Seen::default();
    let (mut peer, id) = seen.accept(&mut io, at);
    let chunk = pattern(4096, 5);
    let taken = fill(&mut io, &mut seen, id, &chunk);
    seen.close(&mut io, id, true);
    assert_eq!(io.open_streams(), 0);
    settle(&mut io);
    let mut got = Vec::new();
    peer.read_to_end(&mut got).unwrap();
    assert_eq!(got.len(), io.stats().stream_bytes_sent as usize);
    assert!(got.len() <= taken && got.len() + STREAM_QUEUE_BYTES >= taken);
    for (i, piece) in got.chunks(chunk.len()).enumerate() {
        assert_eq!(piece, &chunk[..piece.len()], "piece {i}");
    }
}

fn without_a_flush_it_is_reset(mut io: impl StreamIo, ip: IpAddr) {
    let (_, at) = listen(&mut io, ip);
    let mut seen = Seen::default();
    for blocked in [false, true] {
        let (mut peer, id) = seen.accept(&mut io, at);
        if blocked {
            fill(&mut io, &mut seen, id, &pattern(4096, 1));
        }
        io.send_stream(id, &[b"never sent"])
            .unwrap_or_else(|refused| assert!(blocked, "{refused:?}"));
        seen.close(&mut io, id, false);
        settle(&mut io);
        let mut got = Vec::new();
        let error = peer.read_to_end(&mut got).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
}

fn a_stale_id_does_nothing(mut io: impl StreamIo, ip: IpAddr) {
    assert_eq!(
        io.send_stream(StreamId::from_raw(7), &[b"x"]),
        Err(SendRefused::Gone)
    );
    io.close_stream(StreamId::from_raw(7), true);
    let (_, at) = listen(&mut io, ip);
    let mut seen = Seen::default();
    let mut ids = Vec::new();
    for _ in 0..20 {
        let (mut peer, id) = seen.accept(&mut io, at);
        peer.write_all(b"x").unwrap();
        for &old in &ids {
            assert_ne!(old, id);
            io.close_stream(old, false);
            assert_eq!(io.send_stream(old, &[b"y"]), Err(SendRefused::Gone));
        }
        seen.until(&mut io, |_, seen| seen.received[&id] == b"x");
        io.send_stream(id, &[b"z"]).unwrap();
        seen.turn(&mut io, Duration::ZERO);
        assert_eq!(read(&mut peer, 1), b"z");
        // Bytes that nobody took, and an end, are no events of the next stream.
        peer.write_all(b"late").unwrap();
        drop(peer);
        io.turn(Some(HANG)).unwrap();
        seen.close(&mut io, id, true);
        seen.close(&mut io, id, true);
        ids.push(id);
        settle(&mut io);
    }
    let places: std::collections::HashSet<_> =
        ids.iter().map(|id| id.to_raw() & 0xf_ffff).collect();
    assert!(places.len() < ids.len(), "places are reused");
    assert_eq!(io.stats().streams_closed, 20);
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
    let bell = io.doorbell();
    let (asleep, wake) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while wake.recv().is_ok() {
                bell.ring();
            }
        });
        for _ in 0..50 {
            asleep.send(()).unwrap();
            let before = io.stats().doorbells;
            seen.until(&mut io, |io, _| io.stats().doorbells > before);
        }
        drop(asleep);
    });
}

fn more_bytes_than_slots_lose_nothing(mut io: impl StreamIo, ip: IpAddr) {
    const PEERS: usize = 64;
    const EACH: usize = 64 << 10;
    let (_, at) = listen(&mut io, ip);
    let udp = bind_udp(SocketAddr::new(ip, 0), &UdpOptions::default()).unwrap();
    let udp_at = udp.local_addr().unwrap();
    io.add_socket(udp).unwrap();
    let mut seen = Seen::default();
    let peers: Vec<_> = (0..PEERS).map(|_| seen.accept(&mut io, at)).collect();
    for (i, (peer, _)) in peers.iter().enumerate() {
        (&*peer).write_all(&pattern(EACH, i)).unwrap();
    }
    // Nobody takes the streams' events, so that their slots run out; datagrams do not mind.
    for i in 0..20u8 {
        std::net::UdpSocket::bind(SocketAddr::new(ip, 0))
            .unwrap()
            .send_to(&[i], udp_at)
            .unwrap();
        let datagram = loop {
            io.turn(Some(HANG)).unwrap();
            if let Some(datagram) = io.next() {
                break datagram;
            }
        };
        assert_eq!(io.payload(&datagram.buf), [i]);
    }
    assert!(io.stats().stream_enobufs > 0);
    let all = PEERS * EACH;
    seen.until(&mut io, |io, _| {
        io.stats().stream_bytes_received == all as u64
    });
    for (i, (_, id)) in peers.iter().enumerate() {
        assert!(seen.received[id] == pattern(EACH, i), "stream {i}");
    }
}

fn no_stream_starves(mut io: impl StreamIo, ip: IpAddr) {
    const PEERS: usize = 100;
    let (_, at) = listen(&mut io, ip);
    let mut seen = Seen::default();
    let peers: Vec<_> = (0..PEERS).map(|_| seen.accept(&mut io, at)).collect();
    let more = vec![7; 256 << 10];
    // All have more to say than there are slots, all the time.
    let mut turns = 0;
    while seen.received.values().any(|bytes| bytes.len() < 100_000) {
        for (peer, _) in &peers {
            peer.set_nonblocking(true).unwrap();
            let _ = (&*peer).write(&more);
        }
        seen.turn(&mut io, HANG);
        turns += 1;
        assert!(turns < 2000, "a stream gets nothing");
    }
    assert!(io.stats().stream_enobufs > 0);
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

fn bytes_of_an_earlier_turn_are_refused(mut io: impl StreamIo, ip: IpAddr) {
    let (_, at) = listen(&mut io, ip);
    let mut seen = Seen::default();
    let (mut peer, _) = seen.accept(&mut io, at);
    peer.write_all(b"x").unwrap();
    let kept = loop {
        io.turn(Some(HANG)).unwrap();
        if let Some(StreamEvent::Received { bytes, .. }) = io.next_stream_event() {
            break bytes;
        }
    };
    assert_eq!(io.stream_bytes(&kept), b"x");
    io.turn(Some(Duration::ZERO)).unwrap();
    let used = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        io.stream_bytes(&kept).len()
    }));
    assert!(used.is_err());
}

fn a_drop_ends_everything(mut io: impl StreamIo, ip: IpAddr) {
    let (_, at) = listen(&mut io, ip);
    let mut seen = Seen::default();
    let mut peers = Vec::new();
    for i in 0..10 {
        let (peer, id) = seen.accept(&mut io, at);
        match i % 5 {
            // Blocked, with bytes at the kernel and behind them.
            0 => drop(fill(&mut io, &mut seen, id, &pattern(4096, 1))),
            1 => (&peer).write_all(b"received by nobody").unwrap(),
            2 => io.send_stream(id, &[b"not even requested"]).unwrap(),
            3 => seen.close(&mut io, id, true),
            _ => {}
        }
        peers.push(peer);
    }
    // Not accepted yet.
    peers.push(connect(at));
    drop(io);
    for mut peer in peers {
        // The end or a reset.
        let _ = peer.read_to_end(&mut Vec::new());
    }
    // Another test may just start a program: until that is another program than this one, it has copies of all that is open.
    let start = Instant::now();
    let error = loop {
        match TcpStream::connect(at) {
            Ok(_) => assert!(start.elapsed() < HANG, "somebody listens"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    let options = TcpOptions {
        retry_in_use: HANG,
        ..TcpOptions::default()
    };
    bind_tcp_listener(at, &options).unwrap();
}

/// One peer of the mixture: what it sent and got so far.
struct Player {
    socket: TcpStream,
    address: SocketAddr,
    id: Option<StreamId>,
    /// It has sent so many bytes of its pattern, and its half is open.
    sent: usize,
    writes: bool,
    /// So many bytes of the server's pattern were taken for it, and it has read so many.
    taken: usize,
    read: usize,
}

/// Everything at once, in an order of a seed's choice: no byte is lost, doubled or another stream's, whoever closes when.
fn a_mixture_keeps_every_byte(mut io: impl StreamIo, ip: IpAddr) {
    use rand::{RngExt as _, SeedableRng as _};
    let seed = getrandom::u64().unwrap();
    println!("seed {seed}");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    // 251 is prime, so that no shift by a round number of bytes goes unseen.
    let byte = |port: u16, direction: usize, i: usize| {
        ((i % 251) + usize::from(port) * 13 + direction * 101) as u8
    };
    let bytes = |port: u16, direction: usize, from: usize, len: usize| -> Vec<u8> {
        (from..from + len)
            .map(|i| byte(port, direction, i))
            .collect()
    };
    let (_, at) = listen(&mut io, ip);
    let mut players: Vec<Player> = Vec::new();
    // Port of the peer, and bytes that came.
    let mut arrived: HashMap<StreamId, (u16, usize)> = HashMap::new();
    let mut buffer = vec![0; 100_000];
    for step in 0..6000 {
        if players.len() < 3 || (players.len() < 60 && random.random_ratio(1, 20)) {
            let socket = connect(at);
            socket.set_nonblocking(true).unwrap();
            let address = socket.local_addr().unwrap();
            players.retain(|player| player.address != address);
            players.push(Player {
                socket,
                address,
                id: None,
                sent: 0,
                writes: true,
                taken: 0,
                read: 0,
            });
        }
        let at = random.random_range(0..players.len());
        let player = &mut players[at];
        let port = player.address.port();
        match random.random_range(0..100) {
            0..25 if player.writes => {
                let most = random.random_range(1..20_000);
                let piece = bytes(port, 0, player.sent, most);
                player.sent += player.socket.write(&piece).unwrap_or(0);
            }
            25..55 => {
                let most = random.random_range(1..buffer.len());
                match player.socket.read(&mut buffer[..most]) {
                    Ok(got @ 1..) => {
                        assert!(
                            buffer[..got] == bytes(port, 1, player.read, got),
                            "step {step}"
                        );
                        player.read += got;
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    _ => drop(players.swap_remove(at)),
                }
            }
            55..85 => {
                if let Some(id) = player.id {
                    let piece = bytes(port, 1, player.taken, random.random_range(1..30_000));
                    let (head, tail) = piece.split_at(piece.len() / 2);
                    if io.send_stream(id, &[head, tail]).is_ok() {
                        player.taken += piece.len();
                    }
                }
            }
            85..87 => {
                player.writes = false;
                player.socket.shutdown(Shutdown::Write).unwrap_or(());
            }
            87 => {
                let player = players.swap_remove(at);
                if random.random() {
                    reset(player.socket);
                }
            }
            88..90 => {
                if let Some(id) = player.id.take() {
                    let flush = random.random();
                    io.close_stream(id, flush);
                }
            }
            _ => {}
        }
        if random.random_ratio(1, 3) {
            io.turn(Some(Duration::ZERO)).unwrap();
            for _ in 0..random.random_range(0..200) {
                match io.next_stream_event() {
                    None => break,
                    Some(StreamEvent::Accepted { stream, peer, .. }) => {
                        match players.iter_mut().find(|player| player.address == peer) {
                            Some(player) => player.id = Some(stream),
                            None => io.close_stream(stream, false),
                        }
                        arrived.insert(stream, (peer.port(), 0));
                    }
                    Some(StreamEvent::Received { stream, bytes: got }) => {
                        let (port, before) = arrived.get_mut(&stream).unwrap();
                        let got = io.stream_bytes(&got);
                        assert!(got == bytes(*port, 0, *before, got.len()), "step {step}");
                        *before += got.len();
                    }
                    Some(StreamEvent::Ended { stream }) => {
                        let player = players.iter_mut().find(|player| player.id == Some(stream));
                        if let Some(player) = player {
                            let ended_in_order =
                                !player.writes && player.sent == arrived[&stream].1;
                            assert!(ended_in_order, "step {step}: an end before the last byte");
                            player.id = None;
                        }
                        io.close_stream(stream, true);
                    }
                }
            }
        }
    }
    assert!(io.stats().streams_closed > 50);
}

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

macro_rules! suite {
    ($($test:ident: $config:ident;)*) => {
        suite!(ring_v4, Ring, V4, $($test: $config;)*);
        suite!(ring_v6, Ring, V6, $($test: $config;)*);
        suite!(mmsg_v4, Mmsg, V4, $($test: $config;)*);
        suite!(mmsg_v6, Mmsg, V6, $($test: $config;)*);
    };
    ($module:ident, $backend:ident, $ip:ident, $($test:ident: $config:ident;)*) => {
        mod $module {
            $(#[test]
            fn $test() {
                super::$test(super::$backend::new(&super::$config()).unwrap(), super::$ip);
            })*
        }
    };
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
