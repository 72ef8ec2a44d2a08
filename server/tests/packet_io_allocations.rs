//! The packet path does not touch the heap once it is warm, on either backend.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use waypost_server::mmsg::Mmsg;
use waypost_server::packet_io::{IoConfig, PacketIo, UdpOptions, bind_udp};
use waypost_server::ring::Ring;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const BURST: usize = 50;

/// One burst there and on, with replies of our own, some of it in trains.
fn burst(
    io: &mut impl PacketIo,
    from: &UdpSocket,
    at: SocketAddr,
    to: &[UdpSocket],
    addresses: &[SocketAddr],
    received_per: &mut [usize],
) {
    let mut buffer = [0; 256];
    for i in 0..BURST {
        from.send_to(&buffer[..if i % 3 == 0 { 40 } else { 200 }], at)
            .unwrap();
    }
    let mut taken = 0;
    received_per.fill(0);
    while taken < BURST {
        io.turn(Some(Duration::from_secs(20))).unwrap();
        while let Some(received) = io.next() {
            let to = taken % addresses.len();
            received_per[to] += 2;
            io.send(received.socket, addresses[to], b"a reply of our own");
            let socket = received.socket;
            io.forward(received.buf, 4, &[0; 36], socket, addresses[to]);
            taken += 1;
        }
    }
    io.turn(Some(Duration::ZERO)).unwrap();
    for (socket, &expected) in to.iter().zip(received_per.iter()) {
        for _ in 0..expected {
            socket.recv(&mut buffer).unwrap();
        }
    }
}

fn allocates_nothing(mut io: impl PacketIo) {
    let local: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let options = UdpOptions::default();
    let socket = bind_udp(local, &options).unwrap();
    let at = socket.local_addr().unwrap();
    io.add_socket(socket).unwrap();
    let from = UdpSocket::bind(local).unwrap();
    let to: Vec<_> = (0..7).map(|_| UdpSocket::bind(local).unwrap()).collect();
    let addresses: Vec<_> = to
        .iter()
        .map(|socket| socket.local_addr().unwrap())
        .collect();
    for socket in &to {
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
    }
    let mut received_per = vec![0; to.len()];
    for _ in 0..20 {
        burst(&mut io, &from, at, &to, &addresses, &mut received_per);
    }
    let before = (ALLOCATIONS.get(), io.stats().datagrams_sent);
    for _ in 0..10_000 / BURST {
        burst(&mut io, &from, at, &to, &addresses, &mut received_per);
    }
    let after = (ALLOCATIONS.get(), io.stats().datagrams_sent);
    assert_eq!(after.1 - before.1, 20_000);
    assert_eq!(
        after.0 - before.0,
        0,
        "heap allocations in 10,000 forwards and replies"
    );
    assert!(io.stats().gso_trains > 0);
}

#[test]
fn the_ring_allocates_nothing() {
    let config = IoConfig {
        coalesce_us: 20,
        ..IoConfig::default()
    };
    allocates_nothing(Ring::new(&config).unwrap());
}

#[test]
fn mmsg_allocates_nothing() {
    let config = IoConfig {
        coalesce_us: 20,
        ..IoConfig::default()
    };
    allocates_nothing(Mmsg::new(&config).unwrap());
}
