//! The members' sockets: addresses to bind them to, and the process's limit of open files. Sends and receives nothing.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use waypost_server::packet_io::{UdpOptions, bind_udp};

use crate::failure::Failure;

/// Files that a run opens beside its members' sockets.
const OTHER_FILES: u64 = 256;

/// Binds the socket of member number `n` to a port that the kernel chooses. Towards a server on an IPv4 loopback address
/// each member has an address of its own, so that limits per source and the number of ports do not shape the load.
///
/// # Errors
/// [`Failure`] with what the kernel said.
pub fn bind(target: SocketAddr, n: u32) -> Result<UdpSocket, Failure> {
    let ip = match target.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => IpAddr::V4(member_address(n)),
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(ip) if ip.is_loopback() => Ipv6Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    bind_udp(SocketAddr::new(ip, 0), &UdpOptions::default()).map_err(|error| refused(&error))
}

/// The failure to open a socket.
pub fn refused(error: &io::Error) -> Failure {
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable => {
            "free ports, widen net.ipv4.ip_local_port_range, or lower --sessions"
        }
        _ => "raise the limit of open files (ulimit -n) or lower --sessions",
    };
    Failure::configuration(
        format!("a member's socket cannot be opened: {error}"),
        remedy,
    )
}

/// 127.1.0.1 and on; 127.0.0.0/16 is left to servers.
fn member_address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(127, 1, 0, 1).to_bits() + n)
}

/// Raises the limit of open files to the hard limit, and that to what `members` sockets need, where it is lower.
///
/// # Errors
/// [`Failure`] if the kernel does not allow that.
pub fn raise_file_limit(members: u64) -> Result<(), Failure> {
    let needed = members + OTHER_FILES;
    let limit = getrlimit(Resource::Nofile);
    // `None` is no limit. The whole of the hard limit, because a server in this process needs some as well.
    let maximum = limit.maximum.map(|maximum| maximum.max(needed));
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    if raised == limit {
        return Ok(());
    }
    setrlimit(Resource::Nofile, raised).map_err(|error| {
        Failure::configuration(
            format!("{needed} open files are needed and the limit cannot be raised: {error}"),
            "raise it (`ulimit -Hn` as root, LimitNOFILE, fs.nr_open) or lower --sessions",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn towards_loopback_each_member_has_an_address_of_its_own() {
        let server = "127.0.0.1:3478".parse().unwrap();
        let first = bind(server, 0).unwrap().local_addr().unwrap();
        let last = bind(server, 1_999_999).unwrap().local_addr().unwrap();
        assert_eq!(first.ip().to_string(), "127.1.0.1");
        assert_eq!(last.ip().to_string(), "127.31.132.128");
        assert!(last.port() != 0);
    }
}
