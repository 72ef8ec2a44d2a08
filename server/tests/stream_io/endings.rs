//! How streams end: by either side, with and without their last bytes, and all at once.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::time::{Duration, Instant};

use waypost_server::packet_io::{
    STREAM_QUEUE_BYTES, SendRefused, StreamId, StreamIo, TcpOptions, bind_tcp_listener,
};

use super::{HANG, Seen, connect, fill, listen, pattern, read, reset, settle};

pub(super) fn a_closed_half_is_an_end(mut io: impl StreamIo, ip: IpAddr) {
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

pub(super) fn a_reset_is_an_end(mut io: impl StreamIo, ip: IpAddr) {
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

pub(super) fn a_flush_delivers_the_last_bytes(mut io: impl StreamIo, ip: IpAddr) {
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

pub(super) fn a_flush_does_not_wait_for_the_peer(mut io: impl StreamIo, ip: IpAddr) {
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

pub(super) fn without_a_flush_it_is_reset(mut io: impl StreamIo, ip: IpAddr) {
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

pub(super) fn a_stale_id_does_nothing(mut io: impl StreamIo, ip: IpAddr) {
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

pub(super) fn a_drop_ends_everything(mut io: impl StreamIo, ip: IpAddr) {
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
