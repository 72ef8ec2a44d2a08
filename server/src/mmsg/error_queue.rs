//! The queue of errors that the kernel keeps for a socket with IP_RECVERR, ip(7). Both backends read it when a receive
//! or a send fails or the socket is reported to have an error; never otherwise.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use super::sys::set_option;
use crate::packet_io::{PeerError, PeerErrors, SocketId, WireAddr};

/// Most errors taken at a time; the kernel reports again as long as there are more.
const AT_A_TIME: usize = 64;
/// Room for one control message of `sock_extended_err` with the address of whoever sent it, and more.
const CONTROL_BYTES: usize = 128;

#[repr(C, align(8))]
struct Buffer<const N: usize>([u8; N]);

/// Has the kernel report ICMP errors about what this socket, which is bound to an address of that family, sends. Each also
/// fails one later send or receive.
///
/// # Errors
///
/// What the kernel said.
pub fn report_peer_errors(socket: &UdpSocket, is_ipv6: bool) -> io::Result<()> {
    let (level, option) = if is_ipv6 {
        (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
    } else {
        (libc::IPPROTO_IP, libc::IP_RECVERR)
    };
    set_option(socket.as_raw_fd(), level, option, 1)
}

/// Takes what waits in a socket's error queue; ICMP errors go to `errors`. True if there was anything.
#[cold]
pub(crate) fn drain(id: SocketId, socket: &UdpSocket, errors: &mut PeerErrors) -> bool {
    for taken in 0..AT_A_TIME {
        let mut name = Buffer([0; 32]);
        let mut control = Buffer([0; CONTROL_BYTES]);
        // SAFETY: all-zero is a valid msghdr.
        let mut header: libc::msghdr = unsafe { zeroed() };
        header.msg_name = name.0.as_mut_ptr().cast();
        header.msg_namelen = name.0.len() as libc::socklen_t;
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = control.0.len();
        // SAFETY: the header points at two buffers of this stack frame, and the call is synchronous.
        let received = unsafe {
            let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
            libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags)
        };
        if received < 0 {
            return taken > 0;
        }
        let name = &name.0[..(header.msg_namelen as usize).min(name.0.len())];
        let control = &control.0[..header.msg_controllen.min(CONTROL_BYTES)];
        if let (Some(peer), Some((kind, code, mtu))) = (WireAddr::parse(name), icmp(control)) {
            errors.push(PeerError {
                socket: id,
                peer,
                kind,
                code,
                mtu,
            });
        }
    }
    true
}

/// Type, code and information of the ICMP error in the control messages of a report, which may be about something else.
fn icmp(mut control: &[u8]) -> Option<(u8, u8, u32)> {
    const HEADER: usize = size_of::<libc::cmsghdr>();
    let int = |bytes: &[u8], at: usize| -> Option<u32> {
        Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
    };
    loop {
        let len = usize::from_ne_bytes(control.get(..8)?.try_into().ok()?);
        let kind = (int(control, 8)? as i32, int(control, 12)? as i32);
        let value = control.get(HEADER..len)?;
        if matches!(
            kind,
            (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
        ) {
            // `struct sock_extended_err`: errno, origin, type, code, padding, information, data.
            let &[origin, icmp_type, code] = value.get(4..7)? else {
                return None;
            };
            let is_icmp = matches!(origin, libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6);
            return is_icmp.then_some((icmp_type, code, int(value, 8)?));
        }
        control = control.get(len.next_multiple_of(8)..)?;
    }
}

const _: () = assert!(size_of::<libc::cmsghdr>() == 16 && size_of::<usize>() == 8);

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use super::*;
    use crate::mmsg::Mmsg;
    use crate::packet_io::{IoConfig, PacketIo, UdpOptions, bind_udp};
    use crate::ring::Ring;

    /// A closed port answers each datagram with an error, which is about that peer and costs no other one anything.
    fn errors_are_told_and_cost_nobody_else(
        mut io: impl PacketIo,
        local: &str,
        expected: (u8, u8),
    ) {
        let local: SocketAddr = local.parse().unwrap();
        let socket = bind_udp(local, &UdpOptions::default()).unwrap();
        report_peer_errors(&socket, local.is_ipv6()).unwrap();
        let own = socket.local_addr().unwrap();
        let id = io.add_socket(socket).unwrap();
        let other = UdpSocket::bind(local).unwrap();
        other
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        // Bound, so that nobody else gets the port, and connected, so that it takes nothing from here.
        let deaf = UdpSocket::bind(local).unwrap();
        let closed = deaf.local_addr().unwrap();
        deaf.connect(closed).unwrap();
        let mut buffer = [0; 100];
        for round in 0..50u8 {
            io.send(id, closed, b"nobody is there");
            for _ in 0..3 {
                io.send(id, other.local_addr().unwrap(), &[round; 10]);
            }
            other.send_to(b"and back", own).unwrap();
            let (mut told, mut received) = (0, 0);
            while told == 0 || received == 0 {
                io.turn(Some(Duration::from_secs(20))).unwrap();
                while let Some(received_one) = io.next() {
                    assert_eq!(io.payload(&received_one.buf), b"and back");
                    received += 1;
                }
                while let Some(error) = io.next_error() {
                    assert_eq!((error.socket, error.peer), (id, closed));
                    assert_eq!((error.kind, error.code), expected);
                    told += 1;
                }
            }
            assert_eq!((told, received), (1, 1));
            for _ in 0..3 {
                assert_eq!(other.recv(&mut buffer).unwrap(), 10);
                assert_eq!(buffer[0], round);
            }
        }
        assert_eq!(io.stats().send_errors, 0);
    }

    #[test]
    fn mmsg_v4() {
        let io = Mmsg::new(&IoConfig::default()).unwrap();
        errors_are_told_and_cost_nobody_else(io, "127.0.0.1:0", (3, 3));
    }

    #[test]
    fn mmsg_v6() {
        let io = Mmsg::new(&IoConfig::default()).unwrap();
        errors_are_told_and_cost_nobody_else(io, "[::1]:0", (1, 4));
    }

    #[test]
    fn ring_v4() {
        let io = Ring::new(&IoConfig::default()).unwrap();
        errors_are_told_and_cost_nobody_else(io, "127.0.0.1:0", (3, 3));
    }

    #[test]
    fn ring_v6() {
        let io = Ring::new(&IoConfig::default()).unwrap();
        errors_are_told_and_cost_nobody_else(io, "[::1]:0", (1, 4));
    }
}
