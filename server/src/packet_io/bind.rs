//! Opening the sockets that a shard owns, with the options that both backends count on. It keeps nothing.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

/// How [`bind_udp`] opens a socket.
#[derive(Clone, Debug, Default)]
pub struct UdpOptions {
    /// Join the `SO_REUSEPORT` group of the address.
    pub reuse_port: bool,
    /// `SO_RCVBUF` in bytes; `None` leaves the system's default.
    pub recv_buffer_bytes: Option<usize>,
    /// `SO_SNDBUF` in bytes; `None` leaves the system's default.
    pub send_buffer_bytes: Option<usize>,
    /// How long to retry while the address is still in use: a ring that was killed gives its ports
    /// back asynchronously. Zero for relay ports, about 3 s for a listener at start.
    pub retry_in_use: Duration,
}

/// Opens a UDP socket for a [`PacketIo`](super::PacketIo): non-blocking, IPv6 only on an IPv6 address, and with
/// `IP_MTU_DISCOVER` on PROBE, which lets the sender see EMSGSIZE and skips the IP ID generator.
///
/// Buffer sizes above `net.core.rmem_max` need CAP_NET_ADMIN; without it the kernel caps them.
///
/// # Errors
///
/// What the kernel said: EADDRINUSE when the address is taken (after the retries),
/// EADDRNOTAVAIL when it is not this host's, EAFNOSUPPORT without IPv6, EMFILE.
pub fn bind_udp(address: SocketAddr, options: &UdpOptions) -> io::Result<UdpSocket> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM.nonblocking().cloexec(),
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if options.reuse_port {
        socket.set_reuse_port(true)?;
    }
    if let Some(bytes) = options.recv_buffer_bytes {
        crate::mmsg::sys::set_receive_buffer(&socket, bytes)?;
    }
    if let Some(bytes) = options.send_buffer_bytes {
        crate::mmsg::sys::set_send_buffer(&socket, bytes)?;
    }
    let discovery = crate::mmsg::sys::MtuDiscovery::Probe;
    crate::mmsg::sys::set_mtu_discovery(&socket, address.is_ipv6(), discovery)?;
    while_in_use(options.retry_in_use, || socket.bind(&address.into()))?;
    Ok(socket.into())
}

/// How [`bind_tcp_listener`] opens a socket.
#[derive(Clone, Debug, Default)]
pub struct TcpOptions {
    /// Join the `SO_REUSEPORT` group of the address.
    pub reuse_port: bool,
    /// How long to retry while the address is still in use, see [`UdpOptions::retry_in_use`].
    pub retry_in_use: Duration,
}

/// Connections that may wait to be accepted, listen(2); `net.core.somaxconn` caps it.
const LISTEN_BACKLOG: i32 = 1024;

/// Opens a listening TCP socket for a [`StreamIo`](super::StreamIo): non-blocking, IPv6 only on an IPv6 address, and with `SO_REUSEADDR`, so
/// that connections of an earlier process in TIME-WAIT do not hold the port.
///
/// # Errors
///
/// What the kernel said, as for [`bind_udp`].
pub fn bind_tcp_listener(address: SocketAddr, options: &TcpOptions) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    if options.reuse_port {
        socket.set_reuse_port(true)?;
    }
    // With SO_REUSEADDR two sockets can be bound before either listens: then only listen(2) tells.
    while_in_use(options.retry_in_use, || socket.bind(&address.into()))?;
    while_in_use(options.retry_in_use, || socket.listen(LISTEN_BACKLOG))?;
    Ok(socket.into())
}

/// Repeats `bind` for as long while the address is in use.
fn while_in_use(retry: Duration, mut bind: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let give_up = Instant::now() + retry;
    loop {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < give_up => {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_sockets_leave_the_ipv4_port_free() {
        let options = UdpOptions::default();
        // Somebody else may hold the IPv4 port of one try, not of a hundred.
        let both = (0..100).any(|_| {
            let six = bind_udp("[::]:0".parse().unwrap(), &options).unwrap();
            let port = six.local_addr().unwrap().port();
            bind_udp(SocketAddr::from(([0, 0, 0, 0], port)), &options).is_ok()
        });
        assert!(both);
    }

    #[test]
    fn a_listener_holds_its_address_and_may_share_it() {
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let (alone, group) = (
                TcpOptions::default(),
                TcpOptions {
                    reuse_port: true,
                    ..TcpOptions::default()
                },
            );
            let first = bind_tcp_listener(local.parse().unwrap(), &alone).unwrap();
            let address = first.local_addr().unwrap();
            for options in [&alone, &group] {
                let error = bind_tcp_listener(address, options).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
            }
            drop(first);
            let patient = TcpOptions {
                retry_in_use: Duration::from_secs(30),
                ..group
            };
            let _first = bind_tcp_listener(address, &patient).unwrap();
            bind_tcp_listener(address, &patient).unwrap();
        }
    }

    #[test]
    fn an_address_in_use_is_retried_until_it_is_free() {
        let options = UdpOptions::default();
        let first = bind_udp("127.0.0.1:0".parse().unwrap(), &options).unwrap();
        let address = first.local_addr().unwrap();
        let error = bind_udp(address, &options).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let patient = UdpOptions {
            retry_in_use: Duration::from_secs(30),
            ..options
        };
        std::thread::scope(|scope| {
            let second = scope.spawn(|| bind_udp(address, &patient));
            drop(first);
            second.join().unwrap().unwrap();
        });
    }
}
