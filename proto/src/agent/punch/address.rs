//! Which addresses a player can have at all, whoever tells them.

use std::net::IpAddr;

use crate::addr::Addr;

/// Whether a player can have this address: unicast, of the server's family, not the server itself, and on this host's
/// loopback only if the server is there too.
pub(in super::super) fn may_try(addr: Addr, server: Addr) -> bool {
    let special = match addr.ip() {
        IpAddr::V4(ip) => {
            ip.is_multicast() || ip.is_broadcast() || ip.octets()[0] == 0 || ip.octets()[0] >= 240
        }
        // A link-local address means nothing without a scope, which no message carries.
        IpAddr::V6(ip) => ip.is_multicast() || ip.is_unspecified() || ip.is_unicast_link_local(),
    };
    !special
        && addr.port() != 0
        && addr.is_ipv4() == server.is_ipv4()
        && addr != server
        && (!addr.ip().is_loopback() || server.ip().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Addr {
        Addr::new(text.parse().unwrap())
    }

    #[test]
    fn addresses_that_no_player_can_have_are_not_tried() {
        let server = addr("198.51.100.1:3478");
        for (text, ok) in [
            ("203.0.113.1:5000", true),
            ("192.168.0.1:5000", true),
            ("127.0.0.1:5000", false),
            ("224.0.0.1:5000", false),
            ("255.255.255.255:5000", false),
            ("0.0.0.0:5000", false),
            ("203.0.113.1:0", false),
            ("198.51.100.1:3478", false),
            ("[2001:db8::1]:5000", false),
        ] {
            assert_eq!(may_try(addr(text), server), ok, "{text}");
        }
        assert!(may_try(addr("127.0.0.1:5000"), addr("127.0.0.1:3478")));
        assert!(may_try(addr("[::1]:5000"), addr("[::1]:3478")));
        assert!(!may_try(addr("[fe80::1]:5000"), addr("[2001:db8::1]:3478")));
    }
}
