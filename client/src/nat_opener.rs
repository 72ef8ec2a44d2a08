//! The first segment that opens the own NAT for a TCP connection before the peer's comes, so that the NAT takes the peer's for an
//! answer, not for a stranger's to refuse or to remember. It dies before it gets to the peer's NAT. Holds the only `unsafe` of
//! this library: one socket option that no crate in its tree has.

use std::io;
use std::net::SocketAddr;

use socket2::Socket;

/// TTL of a segment that should get beyond the own NAT and not to the peer's.
const OPENER_TTL: u8 = 2;

/// Has `connect` send its first segment so that it dies on the way to `to`. The connection stays under way, whatever the
/// network says of that segment's end; what it sends from then on goes as far as usual.
///
/// It has to be this very socket that answers the peer: NATs hold a connection to the sequence numbers of the last first
/// segment that they have seen, so that the answer of any other one would not get through.
///
/// # Errors
/// What `connect` returns, and those of the socket options.
pub(crate) fn open(
    socket: Socket,
    to: SocketAddr,
    connect: impl FnOnce(Socket, SocketAddr) -> io::Result<Socket>,
) -> io::Result<Socket> {
    ignore_reports_of_death(&socket, to)?;
    let usual = set_ttl(&socket, to, u32::from(OPENER_TTL))?;
    let socket = connect(socket, to)?;
    set_ttl(&socket, to, usual)?;
    Ok(socket)
}

/// Sets how far segments go, and returns how far they went.
fn set_ttl(socket: &Socket, to: SocketAddr, ttl: u32) -> io::Result<u32> {
    let before;
    if to.is_ipv4() {
        before = socket.ttl_v4()?;
        socket.set_ttl_v4(ttl)?;
    } else {
        before = socket.unicast_hops_v6()?;
        socket.set_unicast_hops_v6(ttl)?;
    }
    Ok(before)
}

/// A router that drops the segment says so (ICMP time exceeded), and that would end the attempt. The report quotes the segment
/// with the TTL that it had left; Linux ignores packets and reports whose TTL is below the least that a socket admits
/// (RFC 5082). The peer's segments have far more.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn ignore_reports_of_death(socket: &Socket, to: SocketAddr) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;

    let (level, option) = if to.is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_MINTTL)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT)
    };
    let least = libc::c_int::from(OPENER_TTL);
    // SAFETY: the descriptor is open for as long as `socket` is borrowed, and the option's value is a C int that outlives the
    // call and has the length given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const least).cast(),
            size_of_val(&least) as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Elsewhere the attempt may end by such a report; an ordinary one follows.
#[cfg(not(target_os = "linux"))]
fn ignore_reports_of_death(_: &Socket, _: SocketAddr) -> io::Result<()> {
    Ok(())
}
