//! One suite for both backends of packet input and output, over IPv4 and IPv6 loopback.
#![allow(clippy::unwrap_used)]

mod backends;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use waypost_server::mmsg::Mmsg;
use waypost_server::packet_io::{HEADROOM, IoConfig, PacketIo, SocketId, UdpOptions, bind_udp};
use waypost_server::ring::Ring;

use backends::{V4, rings_while_it_sleeps, suite};

/// A wait that ends a hung test; no test passes because of it.
const HANG: Duration = Duration::from_secs(20);

fn open(ip: IpAddr) -> UdpSocket {
    let options = UdpOptions {
        recv_buffer_bytes: Some(8 << 20),
        ..UdpOptions::default()
    };
    bind_udp(SocketAddr::new(ip, 0), &options).unwrap()
}

/// A blocking socket of a test's own.
fn peer(ip: IpAddr) -> UdpSocket {
    let socket = open(ip);
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(HANG)).unwrap();
    socket
}

fn address(socket: &UdpSocket) -> SocketAddr {
    socket.local_addr().unwrap()
}

fn add(io: &mut impl PacketIo, ip: IpAddr) -> (SocketId, SocketAddr) {
    let socket = open(ip);
    let at = address(&socket);
    (io.add_socket(socket).unwrap(), at)
}

/// Runs turns until `enough` datagrams went through `each`.
fn take<P: PacketIo>(
    io: &mut P,
    enough: usize,
    mut each: impl FnMut(&mut P, waypost_server::packet_io::Received),
) {
    let mut taken = 0;
    while taken < enough {
        io.turn(Some(HANG)).unwrap();
        while let Some(received) = io.next() {
            each(io, received);
            taken += 1;
        }
    }
}

/// Asserts that nobody has this port. Another test may just start a program: until that is another program than this one, it
/// has copies of all that is open here.
fn assert_free(at: SocketAddr) {
    let options = UdpOptions {
        retry_in_use: HANG,
        ..UdpOptions::default()
    };
    bind_udp(at, &options).unwrap();
}

fn flush(io: &mut impl PacketIo) {
    io.turn(Some(Duration::ZERO)).unwrap();
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i * 31 + seed * 7 + (i >> 8)) as u8)
        .collect()
}

fn headers_are_written_in_place(mut io: impl PacketIo, ip: IpAddr) {
    let (id, at) = add(&mut io, ip);
    let (from, to) = (peer(ip), peer(ip));
    let header = pattern(HEADROOM, 99);
    let mut buffer = [0; 4096];
    for len in [0, 1, 4, 5, 200, 1200, 2000] {
        for strip in [0, 4, 36].map(|strip: usize| strip.min(len)) {
            for header in [&header[..0], &header[..4], &header[..36], &header[..]] {
                let sent = pattern(len, strip);
                from.send_to(&sent, at).unwrap();
                take(&mut io, 1, |io, mut received| {
                    assert_eq!(received.socket, id);
                    assert_eq!(received.from, address(&from));
                    assert_eq!(io.payload(&received.buf), sent);
                    assert_eq!(io.payload_mut(&mut received.buf), sent);
                    io.forward(received.buf, strip, header, id, address(&to));
                });
                flush(&mut io);
                let (got, source) = to.recv_from(&mut buffer).unwrap();
                assert_eq!(source, at);
                assert_eq!(&buffer[..got], [header, &sent[strip..]].concat());
            }
        }
    }
    assert_eq!(io.stats().datagrams_received, io.stats().datagrams_sent);
    assert_eq!(io.stats().send_errors, 0);
}

/// Sends datagrams of these lengths from one of the backend's own sockets to another, which pads, reframes and forwards them.
fn send_and_forward(
    io: &mut impl PacketIo,
    (from, through): (SocketId, SocketId),
    to: &UdpSocket,
    lens: &[usize],
    seed: usize,
) {
    let at = address(io.socket(through).unwrap());
    let header = pattern(36, seed);
    for (i, &len) in lens.iter().enumerate() {
        io.send(from, at, &pattern(len, seed + i));
    }
    let mut i = 0;
    take(io, lens.len(), |io, mut received| {
        assert_eq!(received.socket, through);
        assert_eq!(io.payload(&received.buf), pattern(lens[i], seed + i));
        io.resize(&mut received.buf, lens[i].next_multiple_of(4));
        io.forward(received.buf, 4, &header, through, address(to));
        i += 1;
    });
    flush(io);
    let mut buffer = [0; 4096];
    for (i, &len) in lens.iter().enumerate() {
        let got = to.recv(&mut buffer).unwrap();
        let mut padded = pattern(len, seed + i);
        padded.resize(len.next_multiple_of(4), 0);
        assert_eq!(&buffer[..got], [&header, &padded[4..]].concat());
    }
}

/// io_uring takes trains in one piece once they are many, and datagrams one by one when no more trains come.
fn trains_are_taken_whole(mut io: impl PacketIo, ip: IpAddr) {
    let is_ring = io.backend() == "io_uring";
    let (from, _) = add(&mut io, ip);
    let (through, at) = add(&mut io, ip);
    let to = peer(ip);
    let way = (from, through);
    for round in 0..200 {
        let mut lens = [203; 16];
        lens[15] = 4 + round;
        send_and_forward(&mut io, way, &to, &lens, round);
    }
    let trains = io.stats().gro_trains;
    assert_eq!(trains > 100, is_ring, "{trains} trains");
    if is_ring {
        assert_eq!(io.stats().gro_segments, trains * 16);
    }
    // What is too large for a slot is dropped, as it is when it comes alone.
    let dropped = io.stats().truncated_dropped;
    for _ in 0..3 {
        io.send(from, at, &pattern(2100, 1));
    }
    send_and_forward(&mut io, way, &to, &[100], 0);
    assert_eq!(io.stats().truncated_dropped, dropped + 3);
    // Each is longer than the one before, and so in no train with it.
    let growing: Vec<usize> = (200..216).collect();
    for round in 0..1100 {
        send_and_forward(&mut io, way, &to, &growing, round);
        // It changes its slots while nothing waits in its socket.
        flush(&mut io);
    }
    let trains = io.stats().gro_trains;
    for round in 0..20 {
        send_and_forward(&mut io, way, &to, &[200; 16], round);
    }
    assert_eq!(io.stats().gro_trains, trains);
    io.remove_socket(through);
    flush(&mut io);
    flush(&mut io);
    assert!(io.socket(through).is_none());
    assert_free(at);
}

fn trains_keep_their_order(mut io: impl PacketIo, ip: IpAddr) {
    let (id, at) = add(&mut io, ip);
    let (from, to, other) = (peer(ip), peer(ip), peer(ip));
    let mut buffer = [0; 4096];
    for round in 0..20 {
        let lens: Vec<usize> = match round % 4 {
            0 => vec![200; 16],
            1 => (0..16).map(|i| 1 + (i * 37) % 11).collect(),
            2 => [vec![300; 5], vec![0], vec![300; 2], vec![10], vec![300; 3]].concat(),
            _ => vec![1400; 70],
        };
        for (i, &len) in lens.iter().enumerate() {
            from.send_to(&pattern(len, i), at).unwrap();
        }
        let mut i = 0;
        take(&mut io, lens.len(), |io, received| {
            assert_eq!(io.payload(&received.buf), pattern(lens[i], i));
            io.forward(received.buf, 0, &[], id, address(&to));
            io.send(id, address(&other), &pattern(lens[i], i));
            i += 1;
        });
        flush(&mut io);
        for receiver in [&to, &other] {
            for (i, &len) in lens.iter().enumerate() {
                let got = receiver.recv(&mut buffer).unwrap();
                assert_eq!(
                    &buffer[..got],
                    pattern(len, i),
                    "round {round}, datagram {i}"
                );
            }
        }
    }
    assert!(io.stats().gso_trains > 0 && io.stats().gso_segments > io.stats().gso_trains);
    assert_eq!(io.stats().gso_refused, 0);
    assert_eq!(io.stats().datagrams_received * 2, io.stats().datagrams_sent);
    assert_eq!(io.stats().bytes_received * 2, io.stats().bytes_sent);
}

fn few_slots_lose_nothing<P: PacketIo>(mut io: P, ip: IpAddr) {
    const ROUNDS: usize = 100;
    const BURST: usize = 100;
    let (id, at) = add(&mut io, ip);
    let (from, to) = (peer(ip), peer(ip));
    let mut buffer = [0; 64];
    let mut next = 0u32;
    for _ in 0..ROUNDS {
        let first = next;
        for _ in 0..BURST {
            from.send_to(&next.to_be_bytes(), at).unwrap();
            next += 1;
        }
        take(&mut io, BURST, |io, received| {
            io.forward(received.buf, 0, &[], id, address(&to));
        });
        flush(&mut io);
        for expected in first..next {
            assert_eq!(to.recv(&mut buffer).unwrap(), 4);
            assert_eq!(buffer[..4], expected.to_be_bytes());
        }
    }
    assert_eq!(io.stats().datagrams_sent, (ROUNDS * BURST) as u64);
}

fn datagrams_that_are_not_taken_stay(mut io: impl PacketIo, ip: IpAddr) {
    let (_, at) = add(&mut io, ip);
    let from = peer(ip);
    for i in 0..20u8 {
        from.send_to(&[i], at).unwrap();
    }
    for i in 0..20u8 {
        let received = loop {
            io.turn(Some(HANG)).unwrap();
            if let Some(received) = io.next() {
                break received;
            }
        };
        assert_eq!(io.payload(&received.buf), [i]);
    }
}

fn cut_datagrams_are_dropped(mut io: impl PacketIo, ip: IpAddr) {
    let (_, at) = add(&mut io, ip);
    let from = peer(ip);
    let room = 256 - HEADROOM;
    from.send_to(&pattern(room + 1, 0), at).unwrap();
    from.send_to(&pattern(room, 0), at).unwrap();
    from.send_to(&pattern(1000, 0), at).unwrap();
    from.send_to(&[7], at).unwrap();
    let mut seen = Vec::new();
    take(&mut io, 2, |io, received| {
        seen.push(io.payload(&received.buf).to_vec())
    });
    assert_eq!(seen, [pattern(room, 0), vec![7]]);
    assert_eq!(io.stats().truncated_dropped, 2);
    assert_eq!(io.stats().datagrams_received, 2);
}

/// A wide socket takes large datagrams, singly and in bulk, and a usual one beside it does not.
fn wide_sockets_take_large_datagrams(mut io: impl PacketIo, ip: IpAddr) {
    let (usual, usual_at) = add(&mut io, ip);
    let socket = open(ip);
    let wide_at = address(&socket);
    let wide = io.add_wide_socket(socket).unwrap();
    let (from, to) = (peer(ip), peer(ip));
    let header = pattern(HEADROOM, 99);
    let mut buffer = [0; 10_000];
    let room = 9280 - HEADROOM;
    let lens = [9000, 9000, 0, room + 1, 200, 2001, 9000, room, 9000, 9000];
    for round in 0..200 {
        from.send_to(&pattern(9000, round), usual_at).unwrap();
        from.send_to(&pattern(100, round), usual_at).unwrap();
        for (i, &len) in lens.iter().enumerate() {
            from.send_to(&pattern(len, round + i), wide_at).unwrap();
        }
        let mut fitting = (0..lens.len()).filter(|&i| lens[i] <= room);
        take(&mut io, lens.len(), |io, mut received| {
            if received.socket == usual {
                assert_eq!(io.payload(&received.buf), pattern(100, round));
                return;
            }
            assert_eq!(received.socket, wide);
            let i = fitting.next().unwrap();
            assert_eq!(io.payload(&received.buf), pattern(lens[i], round + i));
            assert_eq!(io.payload_mut(&mut received.buf).len(), lens[i]);
            let padded = lens[i].next_multiple_of(16);
            io.resize(&mut received.buf, padded);
            let strip = padded.min(4);
            io.forward(received.buf, strip, &header, wide, address(&to));
        });
        assert_eq!(fitting.next(), None);
        flush(&mut io);
        for (i, &len) in lens.iter().enumerate().filter(|&(_, &len)| len <= room) {
            let (got, source) = to.recv_from(&mut buffer).unwrap();
            let mut padded = pattern(len, round + i);
            padded.resize(len.next_multiple_of(16), 0);
            assert_eq!(source, wide_at);
            assert_eq!(&buffer[..HEADROOM], header);
            assert_eq!(&buffer[HEADROOM..got], &padded[padded.len().min(4)..]);
        }
    }
    assert_eq!(io.stats().truncated_dropped, 2 * 200);
    io.remove_socket(wide);
    flush(&mut io);
    flush(&mut io);
    assert!(io.socket(wide).is_none());
    assert_free(wide_at);
}

/// Trains come to a wide socket as the datagrams that they are.
fn wide_sockets_keep_trains_apart(mut io: impl PacketIo, ip: IpAddr) {
    let (from, _) = add(&mut io, ip);
    let through = io.add_wide_socket(open(ip)).unwrap();
    let to = peer(ip);
    for round in 0..200 {
        send_and_forward(&mut io, (from, through), &to, &[204; 16], round);
    }
    assert_eq!(io.stats().gro_trains, 0);
}

fn wide_sockets_need_slots(mut io: impl PacketIo, ip: IpAddr) {
    let error = io.add_wide_socket(open(ip)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::Unsupported);
}

fn a_removed_socket_is_gone(mut io: impl PacketIo, ip: IpAddr) {
    let (id, at) = add(&mut io, ip);
    let from = peer(ip);
    // Received but not yet handed out.
    from.send_to(b"early", at).unwrap();
    from.send_to(b"early", at).unwrap();
    take(&mut io, 1, |_, _| {});
    from.send_to(b"late", at).unwrap();
    // What is staged before the removal still leaves.
    io.send(id, address(&from), b"farewell");
    io.remove_socket(id);
    assert!(io.next().is_none());
    io.remove_socket(id);
    assert!(io.socket(id).is_none());
    let mut buffer = [0; 64];
    let mut turns = 0;
    let rebound = loop {
        io.turn(Some(Duration::from_millis(1))).unwrap();
        assert!(io.next().is_none(), "a datagram of a removed socket");
        match bind_udp(at, &UdpOptions::default()) {
            Ok(socket) => break socket,
            Err(_) => turns += 1,
        }
        assert!(turns < 1000, "the port stays in use");
    };
    assert_eq!(from.recv(&mut buffer).unwrap(), b"farewell".len());
    // The place is reused under another id, and the old one leads nowhere.
    let new = io.add_socket(rebound).unwrap();
    assert_ne!(new, id);
    io.send(id, address(&from), b"stale");
    io.send(new, address(&from), b"new");
    flush(&mut io);
    assert_eq!(from.recv(&mut buffer).unwrap(), 3);
    assert_eq!(io.stats().stale_sends, 1);
    from.send_to(b"hello", at).unwrap();
    take(&mut io, 1, |_, received| assert_eq!(received.socket, new));
}

fn removing_a_starved_socket_works(mut io: impl PacketIo, ip: IpAddr) {
    // More traffic than slots, so that receives have ended when the sockets are removed.
    let sockets: Vec<_> = (0..4).map(|_| add(&mut io, ip)).collect();
    let from = peer(ip);
    for _ in 0..20 {
        for &(_, at) in &sockets {
            from.send_to(b"flood", at).unwrap();
        }
    }
    for _ in 0..3 {
        io.turn(Some(Duration::ZERO)).unwrap();
    }
    sockets.iter().for_each(|&(id, _)| io.remove_socket(id));
    for _ in 0..10 {
        io.turn(Some(Duration::ZERO)).unwrap();
        assert!(io.next().is_none());
    }
    sockets.iter().for_each(|&(_, at)| assert_free(at));
    let (_, at) = add(&mut io, ip);
    from.send_to(b"alive", at).unwrap();
    take(&mut io, 1, |io, received| {
        assert_eq!(io.payload(&received.buf), b"alive")
    });
}

fn doorbells_end_the_sleep(mut io: impl PacketIo, _: IpAddr) {
    let turn_until_more = |io: &mut _, before| {
        while PacketIo::stats(io).doorbells == before {
            PacketIo::turn(io, None).unwrap();
        }
    };
    rings_while_it_sleeps(&mut io, turn_until_more);
    // Rung while nobody sleeps.
    let bell = io.doorbell();
    bell.ring();
    bell.clone().ring();
    let before = io.stats().doorbells;
    turn_until_more(&mut io, before);
}

fn a_turn_without_sockets_ends(mut io: impl PacketIo, _: IpAddr) {
    for _ in 0..3 {
        io.turn(Some(Duration::from_millis(1))).unwrap();
        assert!(io.next().is_none());
    }
    assert_eq!(io.stats().turns, 3);
}

fn more_sends_than_fit_in_a_turn(mut io: impl PacketIo, ip: IpAddr) {
    let (id, _) = add(&mut io, ip);
    let to: Vec<_> = (0..32).map(|_| peer(ip)).collect();
    for i in 0..4000u32 {
        io.send(id, address(&to[i as usize % 32]), &i.to_be_bytes());
    }
    flush(&mut io);
    let mut buffer = [0; 64];
    for i in 0..4000u32 {
        to[i as usize % 32].recv(&mut buffer).unwrap();
        assert_eq!(buffer[..4], i.to_be_bytes());
    }
    assert_eq!(io.stats().datagrams_sent, 4000);
}

fn many_sockets_echo(mut io: impl PacketIo, ip: IpAddr) {
    let sockets: Vec<_> = (0..200).map(|_| add(&mut io, ip)).collect();
    let from = peer(ip);
    let mut buffer = [0; 64];
    for _ in 0..5 {
        for (i, &(_, at)) in sockets.iter().enumerate() {
            from.send_to(&(i as u32).to_be_bytes(), at).unwrap();
        }
        take(&mut io, sockets.len(), |io, received| {
            let (socket, to) = (received.socket, received.from);
            io.forward(received.buf, 0, &[], socket, to);
        });
        flush(&mut io);
        let mut seen = vec![false; sockets.len()];
        for _ in 0..sockets.len() {
            let (_, source) = from.recv_from(&mut buffer).unwrap();
            let i = u32::from_be_bytes(*buffer.first_chunk().unwrap()) as usize;
            assert_eq!(source, sockets[i].1);
            assert!(!std::mem::replace(&mut seen[i], true));
        }
    }
}

fn the_largest_datagrams_leave_in_fragments(mut io: impl PacketIo, ip: IpAddr) {
    let (id, _) = add(&mut io, ip);
    let to = peer(ip);
    // Loopback's MTU is 65536: an IPv6 packet can be larger, an IPv4 packet cannot.
    let len = if ip.is_ipv6() { 65_527 } else { 65_507 };
    io.send(id, address(&to), &pattern(len, 3));
    io.send(id, address(&to), b"after");
    io.send(id, address(&to), &vec![0; 65_528]);
    flush(&mut io);
    let mut buffer = vec![0; 70_000];
    let mut lens = [0, 0].map(|_| to.recv(&mut buffer).unwrap());
    lens.sort_unstable();
    assert_eq!(lens, [5, len]);
    let stats = io.stats();
    assert_eq!(
        stats.send_emsgsize_retries,
        if ip.is_ipv6() { 2 } else { 1 }
    );
    assert_eq!((stats.send_errors, stats.datagrams_sent), (1, 2));
}

fn the_table_of_sockets_has_an_end(mut io: impl PacketIo, ip: IpAddr) {
    let ids: Vec<_> = (0..200).map(|_| add(&mut io, ip).0).collect();
    let error = io.add_socket(open(ip)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    io.remove_socket(ids[0]);
    flush(&mut io);
    flush(&mut io);
    io.add_socket(open(ip)).unwrap();
}

fn a_drop_frees_the_ports(mut io: impl PacketIo, ip: IpAddr) {
    let sockets: Vec<_> = (0..20).map(|_| add(&mut io, ip)).collect();
    let from = peer(ip);
    for &(_, at) in &sockets {
        from.send_to(b"x", at).unwrap();
    }
    take(&mut io, 1, |_, _| {});
    drop(io);
    for (_, at) in sockets {
        assert_free(at);
    }
}

fn a_buffer_of_an_earlier_turn_is_refused(mut io: impl PacketIo, ip: IpAddr) {
    let (_, at) = add(&mut io, ip);
    peer(ip).send_to(b"x", at).unwrap();
    let mut kept = None;
    take(&mut io, 1, |_, received| kept = Some(received.buf));
    flush(&mut io);
    let kept = kept.unwrap();
    let used = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| io.payload(&kept).len()));
    assert!(used.is_err());
}

fn usual() -> IoConfig {
    IoConfig {
        max_sockets: 200,
        ..IoConfig::default()
    }
}

fn few_slots() -> IoConfig {
    IoConfig {
        slots: 8,
        coalesce_us: 50,
        ..usual()
    }
}

fn small_slots() -> IoConfig {
    IoConfig {
        slot_bytes: 256,
        ..usual()
    }
}

fn wide_slots() -> IoConfig {
    IoConfig {
        wide_slot_bytes: 9280,
        ..usual()
    }
}

fn few_wide_slots() -> IoConfig {
    IoConfig {
        wide_slot_bytes: 9280,
        ..few_slots()
    }
}

suite! {
    headers_are_written_in_place: usual;
    trains_keep_their_order: usual;
    trains_are_taken_whole: usual;
    few_slots_lose_nothing: few_slots;
    datagrams_that_are_not_taken_stay: few_slots;
    cut_datagrams_are_dropped: small_slots;
    wide_sockets_take_large_datagrams: few_wide_slots;
    wide_sockets_keep_trains_apart: wide_slots;
    wide_sockets_need_slots: usual;
    a_removed_socket_is_gone: usual;
    removing_a_starved_socket_works: few_slots;
    doorbells_end_the_sleep: usual;
    a_turn_without_sockets_ends: usual;
    more_sends_than_fit_in_a_turn: usual;
    many_sockets_echo: usual;
    the_largest_datagrams_leave_in_fragments: usual;
    the_table_of_sockets_has_an_end: usual;
    a_drop_frees_the_ports: usual;
    a_buffer_of_an_earlier_turn_is_refused: usual;
}

/// The ring backend must have met the condition that `few_slots_lose_nothing` is about.
#[test]
fn an_empty_buffer_ring_is_met_and_survived() {
    let mut io = Ring::new(&few_slots()).unwrap();
    let (_, at) = add(&mut io, V4);
    let from = peer(V4);
    for _ in 0..100 {
        from.send_to(b"x", at).unwrap();
    }
    take(&mut io, 100, |_, _| {});
    assert!(io.stats().enobufs > 0 && io.stats().rearms > 0);
}

#[test]
fn the_probe_agrees_with_the_setup() {
    waypost_server::ring::probe().unwrap();
}

/// Runs a test of this file again in a network namespace whose loopback has an MTU of 1280 bytes.
fn again_with_a_small_mtu(test: &str) {
    let setup = "ip link set lo mtu 1280 up || exit 77; exec \"$0\" --exact --ignored \"$1\"";
    let status = std::process::Command::new("unshare")
        .args(["--net", "sh", "-c", setup])
        .arg(std::env::current_exe().unwrap())
        .arg(test)
        .status();
    match status.map(|status| status.code()) {
        Ok(Some(0)) => {}
        Ok(Some(1 | 77)) if !may_make_namespaces() => skipped("no network namespaces"),
        Err(error) => skipped(&format!("unshare: {error}")),
        other => panic!("{other:?}"),
    }
}

/// Continuous integration may make namespaces and says so.
fn skipped(why: &str) {
    let required = std::env::var_os("WAYPOST_NATLAB_REQUIRED");
    assert!(required.is_none(), "must not be skipped here: {why}");
    eprintln!("skipped: {why}");
}

fn may_make_namespaces() -> bool {
    let probe = ["--net", "sh", "-c", "ip link set lo mtu 1280 up"];
    std::process::Command::new("unshare")
        .args(probe)
        .status()
        .is_ok_and(|status| status.success())
}

/// A path smaller than the datagrams: trains are refused, then each datagram, then they leave in
/// fragments; segmentation stays on for flows that fit.
fn datagrams_beyond_the_path_arrive(mut io: impl PacketIo) {
    let (id, _) = add(&mut io, V4);
    let to = peer(V4);
    for i in 0..5 {
        io.send(id, address(&to), &pattern(1400, i));
    }
    io.send(id, address(&to), &pattern(1300, 9));
    flush(&mut io);
    let mut buffer = [0; 2000];
    for i in 0..5 {
        let got = to.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..got], pattern(1400, i));
    }
    assert_eq!(to.recv(&mut buffer).unwrap(), 1300);
    let stats = io.stats().clone();
    assert_eq!(
        (
            stats.gso_refused,
            stats.gso_disabled_sockets,
            stats.gso_trains
        ),
        (1, 0, 0)
    );
    assert_eq!((stats.send_emsgsize_retries, stats.datagrams_sent), (6, 6));
    for i in 0..5 {
        io.send(id, address(&to), &pattern(1000, i));
    }
    flush(&mut io);
    for i in 0..5 {
        let got = to.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..got], pattern(1000, i));
    }
    assert_eq!((io.stats().gso_trains, io.stats().gso_segments), (1, 5));
    what_must_stay_whole_does(&mut io);
}

/// What is forwarded or sent whole arrives if the path has room for it, and else not at all.
fn what_must_stay_whole_does(io: &mut impl PacketIo) {
    let (id, at) = add(io, V4);
    let to = peer(V4);
    for len in [1252, 1253, 10, 1253, 10] {
        io.send(id, at, &pattern(len, len));
    }
    flush(io);
    let before = io.stats().clone();
    take(io, 5, |io, received| {
        io.forward_whole(received.buf, 0, &[], id, address(&to));
    });
    flush(io);
    let mut buffer = [0; 2000];
    for len in [1252, 10, 10] {
        assert_eq!(to.recv(&mut buffer).unwrap(), len);
    }
    for len in [1253, 1252, 1253, 10] {
        io.send_whole(id, address(&to), &pattern(len, len));
    }
    flush(io);
    for len in [1252, 10] {
        assert_eq!(to.recv(&mut buffer).unwrap(), len);
        assert_eq!(&buffer[..len], pattern(len, len));
    }
    let stats = io.stats();
    assert_eq!(stats.send_errors - before.send_errors, 4);
    assert_eq!(stats.send_emsgsize_retries, before.send_emsgsize_retries);
}

#[test]
fn ring_sends_beyond_the_path() {
    again_with_a_small_mtu("inner_ring_sends_beyond_the_path");
}

#[test]
fn mmsg_sends_beyond_the_path() {
    again_with_a_small_mtu("inner_mmsg_sends_beyond_the_path");
}

#[test]
#[ignore = "runs inside the namespace of ring_sends_beyond_the_path"]
fn inner_ring_sends_beyond_the_path() {
    datagrams_beyond_the_path_arrive(Ring::new(&usual()).unwrap());
}

#[test]
#[ignore = "runs inside the namespace of mmsg_sends_beyond_the_path"]
fn inner_mmsg_sends_beyond_the_path() {
    datagrams_beyond_the_path_arrive(Mmsg::new(&usual()).unwrap());
}
