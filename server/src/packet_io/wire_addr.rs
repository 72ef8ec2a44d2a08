//! Socket addresses as the kernel wants them: `sockaddr_in` and `sockaddr_in6` as plain bytes.
//!
//! It never resolves names and has no notion of which addresses are acceptable.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

const FAMILY_V4: u16 = libc::AF_INET as u16;
const FAMILY_V6: u16 = libc::AF_INET6 as u16;
/// `sizeof(struct sockaddr_in)`.
const LEN_V4: u8 = 16;
/// `sizeof(struct sockaddr_in6)`.
const LEN_V6: u8 = 28;

/// A `sockaddr_in` or `sockaddr_in6`; the unused tail is zero, so equal addresses are equal bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C, align(4))]
pub(crate) struct WireAddr {
    bytes: [u8; LEN_V6 as usize],
    len: u8,
}

impl WireAddr {
    #[inline]
    pub(crate) fn len(&self) -> u32 {
        u32::from(self.len)
    }

    pub(crate) fn is_ipv6(&self) -> bool {
        self.len == LEN_V6
    }

    #[inline]
    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.bytes.as_ptr()
    }

    /// A cheap mix of all bits that tell flows apart.
    #[inline]
    pub(crate) fn mix(&self) -> u64 {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&self.bytes[at..at + 8]);
            u64::from_ne_bytes(word)
        };
        // Family, port and IPv4 address (or flow label) are the first 8 bytes; IPv6 goes on to 24.
        let mut mixed = word(0);
        if self.len == LEN_V6 {
            mixed ^= word(8).rotate_left(23) ^ word(16).rotate_left(41);
        }
        mixed
    }

    /// Reads an address that the kernel wrote; `None` for any other family.
    #[inline]
    pub(crate) fn parse(bytes: &[u8]) -> Option<SocketAddr> {
        let family = u16::from_ne_bytes(*bytes.first_chunk()?);
        let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
        match family {
            FAMILY_V4 => {
                let ip: [u8; 4] = *bytes.get(4..)?.first_chunk()?;
                Some(SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::from(ip), port)))
            }
            FAMILY_V6 => {
                let ip: [u8; 16] = *bytes.get(8..)?.first_chunk()?;
                let scope = u32::from_ne_bytes(*bytes.get(24..)?.first_chunk()?);
                Some(SocketAddr::V6(SocketAddrV6::new(
                    Ipv6Addr::from(ip),
                    port,
                    0,
                    scope,
                )))
            }
            _ => None,
        }
    }
}

impl From<SocketAddr> for WireAddr {
    #[inline]
    fn from(address: SocketAddr) -> Self {
        let mut bytes = [0; LEN_V6 as usize];
        bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        match address {
            SocketAddr::V4(v4) => {
                bytes[..2].copy_from_slice(&FAMILY_V4.to_ne_bytes());
                bytes[4..8].copy_from_slice(&v4.ip().octets());
                Self { bytes, len: LEN_V4 }
            }
            SocketAddr::V6(v6) => {
                bytes[..2].copy_from_slice(&FAMILY_V6.to_ne_bytes());
                bytes[8..24].copy_from_slice(&v6.ip().octets());
                bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                Self { bytes, len: LEN_V6 }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_as_they_went() {
        for text in [
            "127.0.0.1:1",
            "255.254.253.252:65535",
            "[::1]:9",
            "[fe80::1:2%7]:443",
        ] {
            let address: SocketAddr = text.parse().unwrap();
            let wire = WireAddr::from(address);
            assert_eq!(WireAddr::parse(&wire.bytes), Some(address));
        }
    }

    #[test]
    fn other_families_and_short_addresses_are_refused() {
        assert_eq!(WireAddr::parse(&[1, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(WireAddr::parse(&[]), None);
        let wire = WireAddr::from(SocketAddr::from(([1, 2, 3, 4], 5)));
        assert_eq!(WireAddr::parse(&wire.bytes[..7]), None);
    }
}
