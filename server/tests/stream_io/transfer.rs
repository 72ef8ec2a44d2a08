//! Bytes of streams: in order, whole, and bounded when nobody reads them.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use waypost_server::packet_io::{
    STREAM_QUEUE_BYTES, SendRefused, StreamEvent, StreamIo, UdpOptions, bind_udp,
};

use super::{HANG, Seen, connect, fill, listen, pattern, read, settle};

pub(super) fn bytes_are_echoed(mut io: impl StreamIo, ip: IpAddr) {
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

pub(super) fn many_streams_at_once(mut io: impl StreamIo, ip: IpAddr) {
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

pub(super) fn large_transfers_keep_their_order(mut io: impl StreamIo, ip: IpAddr) {
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

pub(super) fn a_peer_that_never_reads_meets_the_bound(mut io: impl StreamIo, ip: IpAddr) {
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

pub(super) fn too_much_at_once_is_refused_whole(mut io: impl StreamIo, ip: IpAddr) {
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

pub(super) fn room_ends_the_sleep(mut io: impl StreamIo, ip: IpAddr) {
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

pub(super) fn more_bytes_than_slots_lose_nothing(mut io: impl StreamIo, ip: IpAddr) {
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

pub(super) fn no_stream_starves(mut io: impl StreamIo, ip: IpAddr) {
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

pub(super) fn bytes_of_an_earlier_turn_are_refused(mut io: impl StreamIo, ip: IpAddr) {
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
