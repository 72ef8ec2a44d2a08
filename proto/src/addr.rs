//! The one canonical form of a transport address, and the newtypes that keep a client's address from being used as a
//! peer's. Never holds a scope id or flow label: those are not part of an identity on the wire.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An IP address and port in 18 bytes. IPv4 is kept in its IPv4-mapped form (RFC 4291 section 2.5.5.2), so one
/// address has exactly one representation and comparing bytes compares addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Addr {
    ip: [u8; 16],
    port: u16,
}

impl Hash for Addr {
    /// As two numbers: a slice would also hash its length, for every packet.
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(u128::from_ne_bytes(self.ip));
        state.write_u16(self.port);
    }
}

impl Addr {
    /// Canonicalises `addr`: IPv4-mapped IPv6 becomes IPv4, scope and flow label are dropped.
    #[must_use]
    pub fn new(addr: SocketAddr) -> Self {
        Self::from_ip_port(addr.ip(), addr.port())
    }

    /// The canonical address of `ip` and `port`.
    #[must_use]
    pub fn from_ip_port(ip: IpAddr, port: u16) -> Self {
        let ip = match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        Self { ip, port }
    }

    /// The IP address; IPv4 comes back as IPv4.
    #[must_use]
    pub fn ip(self) -> IpAddr {
        let v6 = Ipv6Addr::from(self.ip);
        v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
    }

    /// The port.
    #[must_use]
    pub const fn port(self) -> u16 {
        self.port
    }

    /// The same host with another port.
    #[must_use]
    pub const fn with_port(self, port: u16) -> Self {
        Self { ip: self.ip, port }
    }

    /// Whether it is this host itself: 127.0.0.0/8 or `::1`.
    #[must_use]
    pub fn is_loopback(self) -> bool {
        match self.ip.split_last_chunk::<4>() {
            Some((_, [127, ..])) if self.is_ipv4() => true,
            _ => u128::from_be_bytes(self.ip) == 1,
        }
    }

    /// Whether this is an IPv4 address.
    #[must_use]
    pub fn is_ipv4(self) -> bool {
        self.ip[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]
    }

    /// Whether a client that is seen at `mapped` may tell its peers that it has this address too. A claim is believed
    /// within private networks only, so that nobody can have others send to an address of his choice in the Internet, or
    /// to services on their own hosts.
    #[must_use]
    pub fn may_be_local_to(self, mapped: Self) -> bool {
        let private = match self.ip() {
            IpAddr::V4(ip) => {
                let [a, b, ..] = ip.octets();
                ip.is_private() || ip.is_link_local() || (a == 100 && b & 0xc0 == 64)
            }
            IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local(),
        };
        self.port >= 1024 && (private || self.ip == mapped.ip)
    }

    /// The standard library's form.
    #[must_use]
    pub fn to_socket_addr(self) -> SocketAddr {
        SocketAddr::new(self.ip(), self.port)
    }

    /// The sixteen canonical bytes of the IP address.
    #[must_use]
    pub const fn ip_bytes(&self) -> &[u8; 16] {
        &self.ip
    }

    /// The block of addresses that one subscriber is expected to own: the /32 of an IPv4 address, the /56 of an IPv6
    /// one. Limits per source are kept by this prefix, so that rotating ports or interface ids does not help.
    #[must_use]
    pub fn source_prefix(self) -> SourcePrefix {
        let mut prefix = self.ip;
        if !self.is_ipv4() {
            prefix[7..].fill(0);
        }
        SourcePrefix(prefix)
    }
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.to_socket_addr(), f)
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.to_socket_addr(), f)
    }
}

impl From<SocketAddr> for Addr {
    fn from(addr: SocketAddr) -> Self {
        Self::new(addr)
    }
}

impl From<Addr> for SocketAddr {
    fn from(addr: Addr) -> Self {
        addr.to_socket_addr()
    }
}

impl Default for Addr {
    fn default() -> Self {
        Self::from_ip_port(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0)
    }
}

/// A source prefix as [`Addr::source_prefix`] cuts it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SourcePrefix(pub [u8; 16]);

/// The source address of something that speaks to this server: the client's side of a five-tuple.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ClientAddr(pub Addr);

/// A [`ClientAddr`] that has shown, by echoing a nonce bound to it, that it receives what is sent to it. Only such an
/// address may cause state to be kept or third parties to hear of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ProvenAddr(ClientAddr);

impl ProvenAddr {
    /// Only [`crate::nonce::NonceKeys::verify`] and tests of this crate may vouch for an address.
    #[cfg(feature = "server")]
    pub(crate) const fn vouch(addr: ClientAddr) -> Self {
        Self(addr)
    }

    /// The address that was proved.
    #[must_use]
    pub const fn addr(self) -> Addr {
        self.0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_has_one_form() {
        let plain: SocketAddr = "192.0.2.1:9".parse().unwrap();
        let mapped: SocketAddr = "[::ffff:192.0.2.1]:9".parse().unwrap();
        assert_eq!(Addr::new(plain), Addr::new(mapped));
        assert!(Addr::new(mapped).is_ipv4());
        assert_eq!(Addr::new(mapped).to_socket_addr(), plain);
    }

    #[test]
    fn loopback_is_what_the_standard_library_says() {
        let hosts = [
            "127.0.0.1",
            "127.255.255.255",
            "126.0.0.1",
            "128.0.0.1",
            "::1",
        ];
        for host in hosts
            .iter()
            .chain(&["::", "::2", "::7f00:1", "1::1", "2001:db8::7f00:1"])
        {
            let ip: IpAddr = host.parse().unwrap();
            assert_eq!(
                Addr::from_ip_port(ip, 9).is_loopback(),
                ip.is_loopback(),
                "{host}"
            );
        }
    }

    #[test]
    fn prefix_is_32_and_56() {
        let a: SocketAddr = "[2001:db8:1:2ff:aaaa::1]:1".parse().unwrap();
        let b: SocketAddr = "[2001:db8:1:200:bbbb::2]:2".parse().unwrap();
        let c: SocketAddr = "[2001:db8:1:300::1]:1".parse().unwrap();
        assert_eq!(Addr::new(a).source_prefix(), Addr::new(b).source_prefix());
        assert_ne!(Addr::new(a).source_prefix(), Addr::new(c).source_prefix());
        let v4: SocketAddr = "192.0.2.1:5".parse().unwrap();
        let other: SocketAddr = "192.0.2.2:5".parse().unwrap();
        assert_ne!(
            Addr::new(v4).source_prefix(),
            Addr::new(other).source_prefix()
        );
    }
}
