//! Runs a suite on both backends, over IPv4 and IPv6 loopback; what several suites ask of a backend.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use waypost_server::packet_io::PacketIo;

pub const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
pub const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// `test: config;` for each test, a function of a backend and an address, and for the function that says how the backend is
/// made.
macro_rules! suite {
    ($($test:ident: $config:ident;)*) => {
        suite!(ring_v4, waypost_server::ring::Ring, V4, $($test: $config;)*);
        suite!(ring_v6, waypost_server::ring::Ring, V6, $($test: $config;)*);
        suite!(mmsg_v4, waypost_server::mmsg::Mmsg, V4, $($test: $config;)*);
        suite!(mmsg_v6, waypost_server::mmsg::Mmsg, V6, $($test: $config;)*);
    };
    ($module:ident, $backend:ty, $ip:ident, $($test:ident: $config:ident;)*) => {
        mod $module {
            $(#[test]
            fn $test() {
                super::$test(<$backend>::new(&super::$config()).unwrap(), crate::backends::$ip);
            })*
        }
    };
}
pub(crate) use suite;

/// Has another thread ring again and again, each time when `turn_until_more` is to make turns until there are more doorbells
/// than so many.
pub fn rings_while_it_sleeps<P: PacketIo>(
    io: &mut P,
    mut turn_until_more: impl FnMut(&mut P, u64),
) {
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
            turn_until_more(io, before);
        }
        drop(asleep);
    });
}
