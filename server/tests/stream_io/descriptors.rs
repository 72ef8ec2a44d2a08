//! Descriptors: none is lost, and a want of them is survived.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use waypost_server::mmsg::Mmsg;
use waypost_server::packet_io::{StreamIo, UdpOptions, bind_udp};
use waypost_server::ring::Ring;

use super::backends::V4;
use super::{Seen, connect, listen, pattern, reset, settle, usual};

/// Runs a test of this file again in a process of its own: descriptors are counted per process.
fn again_alone(test: &str) {
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--test-threads=1", test])
        .status();
    assert!(status.unwrap().success());
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Connections that end in every way there is.
fn no_descriptor_is_lost(mut io: impl StreamIo) {
    let (_, at) = listen(&mut io, V4);
    let mut seen = Seen::default();
    let before = descriptors();
    for i in 0..2000 {
        let (mut peer, id) = seen.accept(&mut io, at);
        match i % 6 {
            0 => {
                drop(peer);
                seen.until(&mut io, |_, seen| seen.ended.contains(&id));
                io.close_stream(id, true);
            }
            1 => {
                reset(peer);
                seen.until(&mut io, |_, seen| seen.ended.contains(&id));
                io.close_stream(id, false);
            }
            2 => {
                io.send_stream(id, &[b"bye"]).unwrap();
                io.close_stream(id, true);
                settle(&mut io);
                assert_eq!(peer.read_to_end(&mut Vec::new()).unwrap(), 3);
            }
            3 => io.close_stream(id, false),
            4 => {
                peer.write_all(b"unread").unwrap();
                io.close_stream(id, true);
            }
            _ => {
                io.send_stream(id, &[&pattern(60_000, i)]).unwrap();
                io.turn(Some(Duration::ZERO)).unwrap();
                io.close_stream(id, false);
            }
        }
        settle(&mut io);
        seen = Seen::default();
    }
    assert_eq!(descriptors(), before);
    assert_eq!(io.open_streams(), 0);
    assert_eq!(io.stats().streams_accepted, 2000);
    drop(io);
    // Backend and listener are gone too.
    assert!(descriptors() < before);
}

/// No descriptor is left: connections wait, datagrams flow, the shard does not spin, and it goes on when there are some again.
fn a_want_of_descriptors_is_survived(mut io: impl StreamIo) {
    use rustix::process::{Resource, Rlimit, setrlimit};
    // First of all: io_uring reads the limit when a request is made.
    let limit = Rlimit {
        current: Some(descriptors() as u64 + 50),
        maximum: Some(descriptors() as u64 + 50),
    };
    setrlimit(Resource::Nofile, limit).unwrap();
    let (_, at) = listen(&mut io, V4);
    let udp = bind_udp("127.0.0.1:0".parse().unwrap(), &UdpOptions::default()).unwrap();
    let udp_at = udp.local_addr().unwrap();
    io.add_socket(udp).unwrap();
    let other = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut seen = Seen::default();
    let (_first, _) = seen.accept(&mut io, at);
    let _waiting = [connect(at), connect(at), connect(at)];
    let mut all = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        all.push(file);
    }
    seen.until(&mut io, |io, _| io.stats().stream_accept_errors > 0);
    for i in 0..20u8 {
        other.send_to(&[i], udp_at).unwrap();
        let mut datagram = None;
        seen.until(&mut io, |io, _| {
            datagram = io.next();
            datagram.is_some()
        });
        assert_eq!(io.payload(&datagram.unwrap().buf), [i]);
    }
    // Several rests long; each costs some turns, and no more.
    let errors = io.stats().stream_accept_errors;
    seen.until(&mut io, |io, _| {
        io.stats().stream_accept_errors >= errors + 3
    });
    assert!(io.stats().turns < 1000, "{} turns", io.stats().turns);
    drop(all);
    seen.until(&mut io, |io, _| io.open_streams() == 4);
    assert!(io.stats().turns < 1000, "{} turns", io.stats().turns);
}

macro_rules! alone {
    ($($name:ident, $inner:ident: $test:ident, $backend:ident;)*) => {
        $(#[test]
        fn $name() {
            again_alone(concat!("descriptors::", stringify!($inner)));
        }

        #[test]
        #[ignore = "runs in a process of its own"]
        fn $inner() {
            $test($backend::new(&usual()).unwrap());
        })*
    };
}

alone! {
    ring_loses_no_descriptor, ring_loses_no_descriptor_inner: no_descriptor_is_lost, Ring;
    mmsg_loses_no_descriptor, mmsg_loses_no_descriptor_inner: no_descriptor_is_lost, Mmsg;
    ring_survives_a_want, ring_survives_a_want_inner: a_want_of_descriptors_is_survived, Ring;
    mmsg_survives_a_want, mmsg_survives_a_want_inner: a_want_of_descriptors_is_survived, Mmsg;
}
