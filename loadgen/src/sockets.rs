//! The members' sockets: addresses to bind them to, and the process's limit of open files. Sends and receives nothing.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use waypost_server::packet_io::{UdpOptions, bind_udp};

use crate::failure::Failure;

/// Files that a run opens beside its members' sockets.
const OTHER_FILES: u64 = 256;

/// The addresses that members' sockets are bound to.
#[derive(Clone, Debug)]
pub struct Sources(Choice);

#[derive(Clone, Debug)]
enum Choice {
    /// Each member has an address of its own, so that limits per source and the number of ports do not shape the load.
    Loopback,
    /// The members take turns.
    These(Arc<[IpAddr]>),
}

impl Sources {
    /// Addresses for members of `target`: those given, else one of 127.0.0.0/8 for each member if the target is on that, else
    /// the one from which this host reaches the target.
    ///
    /// # Errors
    /// [`Failure`] if the target cannot be reached.
    pub fn new(target: SocketAddr, given: &[IpAddr]) -> Result<Self, Failure> {
        if let Some(wrong) = given.iter().find(|ip| ip.is_ipv4() != target.is_ipv4()) {
            return Err(Failure::configuration(
                format!("--source {wrong} cannot reach {target}"),
                "give addresses of the target's family",
            ));
        }
        Ok(Self(if !given.is_empty() {
            Choice::These(given.into())
        } else if matches!(target.ip(), IpAddr::V4(ip) if ip.is_loopback()) {
            Choice::Loopback
        } else {
            Choice::These([way_to(target)?].into())
        }))
    }

    /// Binds the socket of member number `n` to a port that the kernel chooses; also says where it is.
    ///
    /// # Errors
    /// [`Failure`] with what the kernel said.
    pub fn bind(&self, n: u32) -> Result<(UdpSocket, SocketAddr), Failure> {
        let ip = match &self.0 {
            Choice::Loopback => IpAddr::V4(member_address(n)),
            Choice::These(ips) => ips[n as usize % ips.len()],
        };
        let socket = bind_udp(SocketAddr::new(ip, 0), &UdpOptions::default());
        let bound = socket.and_then(|socket| {
            let address = socket.local_addr()?;
            Ok((socket, address))
        });
        bound.map_err(|error| refused(&error))
    }
}

/// The address from which this host reaches another one. Nothing is sent.
fn way_to(target: SocketAddr) -> Result<IpAddr, Failure> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let found = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect(target)?;
        socket.local_addr()
    });
    let found = found.map_err(|error| {
        Failure::configuration(
            format!("{target} cannot be reached: {error}"),
            "name another --target, or the address to send from with --source",
        )
    })?;
    Ok(found.ip())
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
        let sources = Sources::new("127.0.0.1:3478".parse().unwrap(), &[]).unwrap();
        let first = sources.bind(0).unwrap().1;
        let last = sources.bind(1_999_999).unwrap().1;
        assert_eq!(first.ip().to_string(), "127.1.0.1");
        assert_eq!(last.ip().to_string(), "127.31.132.128");
        assert!(last.port() != 0);
    }

    #[test]
    fn given_addresses_take_turns() {
        let target = "127.0.0.1:3478".parse().unwrap();
        let given = ["127.0.0.2", "127.0.0.3"].map(|ip| ip.parse().unwrap());
        let sources = Sources::new(target, &given).unwrap();
        let ips = (0..3).map(|n| sources.bind(n).unwrap().1.ip());
        assert_eq!(ips.collect::<Vec<_>>(), [given[0], given[1], given[0]]);
        assert!(Sources::new("[::1]:1".parse().unwrap(), &given).is_err());
    }
}
