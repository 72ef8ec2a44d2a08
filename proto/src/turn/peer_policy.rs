//! Whom a TURN client may reach through this server: one check, made on the canonical form of the address, on every
//! path (CreatePermission, ChannelBind, Send). Never looks at permissions, and never resolves a name.
//!
//! Addresses inside special ranges are refused by default, whatever IPv6 form an IPv4 address comes in, so that a relay on the
//! Internet is no way into the network behind it (RFC 8656 section 21.1.3; the ranges are those of the IANA special-purpose
//! registries, RFC 6890).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::addr::Addr;

/// A range of addresses. IPv4 ranges and their IPv4-mapped forms are the same range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cidr {
    network: u128,
    mask: u128,
}

/// Why a text is no [`Cidr`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadCidr;

impl fmt::Display for BadCidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a range like 10.0.0.0/8 or 2001:db8::/32")
    }
}

impl std::error::Error for BadCidr {}

const MAPPED: u128 = 0xffff << 32;

impl Cidr {
    const fn new(bits: u128, prefix_len: u32) -> Self {
        let mask = match prefix_len {
            0 => 0,
            len => u128::MAX << (128 - len),
        };
        Self {
            network: bits & mask,
            mask,
        }
    }

    const fn v4(a: u8, b: u8, c: u8, prefix_len: u32) -> Self {
        let ip = u32::from_be_bytes([a, b, c, 0]);
        Self::new(MAPPED | ip as u128, 96 + prefix_len)
    }

    const fn v6(head: [u16; 4], prefix_len: u32) -> Self {
        let [a, b, c, d] = head;
        let ip = Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0);
        Self::new(ip.to_bits(), prefix_len)
    }

    const fn contains(self, bits: u128) -> bool {
        bits & self.mask == self.network
    }

    /// Whether an address is in the range.
    #[must_use]
    pub fn contains_ip(self, ip: IpAddr) -> bool {
        self.contains(to_bits(ip))
    }

    /// The first address of the range.
    #[must_use]
    pub fn first(self) -> IpAddr {
        from_bits(self.network)
    }

    /// The last address of the range.
    #[must_use]
    pub fn last(self) -> IpAddr {
        from_bits(self.network | !self.mask)
    }
}

impl FromStr for Cidr {
    type Err = BadCidr;

    fn from_str(text: &str) -> Result<Self, BadCidr> {
        let (ip, len) = match text.split_once('/') {
            Some((ip, len)) => (ip, Some(len.parse::<u32>().map_err(|_| BadCidr)?)),
            None => (text, None),
        };
        match ip.parse().map_err(|_| BadCidr)? {
            IpAddr::V4(ip) => {
                let len = len.unwrap_or(32);
                (len <= 32)
                    .then(|| Self::new(to_bits(IpAddr::V4(ip)), 96 + len))
                    .ok_or(BadCidr)
            }
            IpAddr::V6(ip) => {
                let len = len.unwrap_or(128);
                (len <= 128)
                    .then(|| Self::new(ip.to_bits(), len))
                    .ok_or(BadCidr)
            }
        }
    }
}

/// Refused unless the operator allows it. IPv4-mapped, 6to4 (RFC 3056) and NAT64 (RFC 6052) addresses are reduced to the
/// IPv4 address they stand for before they get here; the local-use NAT64 prefix (RFC 8215) is refused as a whole.
pub const DENIED_BY_DEFAULT: &[Cidr] = &[
    Cidr::v4(0, 0, 0, 8),
    Cidr::v4(10, 0, 0, 8),
    Cidr::v4(100, 64, 0, 10),
    Cidr::v4(127, 0, 0, 8),
    Cidr::v4(169, 254, 0, 16),
    Cidr::v4(172, 16, 0, 12),
    Cidr::v4(192, 0, 0, 24),
    Cidr::v4(192, 0, 2, 24),
    Cidr::v4(192, 31, 196, 24),
    Cidr::v4(192, 52, 193, 24),
    Cidr::v4(192, 88, 99, 24),
    Cidr::v4(192, 168, 0, 16),
    Cidr::v4(192, 175, 48, 24),
    Cidr::v4(198, 18, 0, 15),
    Cidr::v4(198, 51, 100, 24),
    Cidr::v4(203, 0, 113, 24),
    Cidr::v4(224, 0, 0, 4),
    Cidr::v4(240, 0, 0, 4),
    // Unspecified, loopback and the IPv4-compatible addresses (RFC 4291 section 2.5.5.1).
    Cidr::v6([0, 0, 0, 0], 96),
    Cidr::v6([0x64, 0xff9b, 1, 0], 48),
    Cidr::v6([0x100, 0, 0, 0], 64),
    Cidr::v6([0x100, 0, 0, 1], 64),
    Cidr::v6([0x2001, 0, 0, 0], 23),
    Cidr::v6([0x2001, 0xdb8, 0, 0], 32),
    Cidr::v6([0x2620, 0x4f, 0x8000, 0], 48),
    Cidr::v6([0x3fff, 0, 0, 0], 20),
    Cidr::v6([0x5f00, 0, 0, 0], 16),
    Cidr::v6([0xfc00, 0, 0, 0], 7),
    Cidr::v6([0xfe80, 0, 0, 0], 10),
    Cidr::v6([0xfec0, 0, 0, 0], 10),
    Cidr::v6([0xff00, 0, 0, 0], 8),
];

const NAT64: Cidr = Cidr::v6([0x64, 0xff9b, 0, 0], 96);
const NAT64_LOCAL: Cidr = Cidr::v6([0x64, 0xff9b, 1, 0], 48);
const SIX_TO_FOUR: Cidr = Cidr::v6([0x2002, 0, 0, 0], 16);
const COMPATIBLE: Cidr = Cidr::v6([0, 0, 0, 0], 96);

fn to_bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => MAPPED | u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

fn from_bits(bits: u128) -> IpAddr {
    Ipv6Addr::from_bits(bits).to_canonical()
}

/// The address that routers of this kind would deliver to.
fn reduce(bits: u128) -> u128 {
    if NAT64.contains(bits) {
        MAPPED | bits & 0xffff_ffff
    } else if SIX_TO_FOUR.contains(bits) {
        MAPPED | bits >> 80 & 0xffff_ffff
    } else {
        bits
    }
}

/// An IPv4 address that sits at the end of one that is not delivered as IPv4 by default.
fn tail_v4(bits: u128) -> Option<u128> {
    (COMPATIBLE.contains(bits) || NAT64_LOCAL.contains(bits)).then_some(MAPPED | bits & 0xffff_ffff)
}

/// What the policy is made from.
#[derive(Clone, Debug, Default)]
pub struct PeerRules {
    /// Ranges that are allowed although they are denied by default.
    pub allow: Vec<Cidr>,
    /// Ranges that are denied, whatever else says.
    pub deny: Vec<Cidr>,
    /// Addresses and ports of this server's own services: denied, whatever else says.
    pub own_services: Vec<Addr>,
    /// Addresses of this host: denied like a special range.
    pub own_ips: Vec<IpAddr>,
    /// Addresses of this server's relayed transport addresses, as bound and as told to clients: allowed, since other
    /// clients' allocations are peers like any other, within `relay_ports`.
    pub relay_ips: Vec<IpAddr>,
    /// The ports of relayed transport addresses.
    pub relay_ports: Option<RangeInclusive<u16>>,
}

/// The one check.
#[derive(Clone, Debug)]
pub struct PeerPolicy {
    allow: Vec<Cidr>,
    deny: Vec<Cidr>,
    own_services: Vec<Addr>,
    own_ips: Vec<u128>,
    relay_ips: Vec<u128>,
    relay_ports: RangeInclusive<u16>,
}

impl PeerPolicy {
    /// The policy under these rules.
    #[must_use]
    pub fn new(rules: PeerRules) -> Self {
        let bits = |ips: Vec<IpAddr>| {
            ips.into_iter()
                .map(|ip| to_bits(ip.to_canonical()))
                .collect()
        };
        Self {
            allow: rules.allow,
            deny: rules.deny,
            own_services: rules.own_services,
            own_ips: bits(rules.own_ips),
            relay_ips: bits(rules.relay_ips),
            #[allow(clippy::reversed_empty_ranges)]
            relay_ports: rules.relay_ports.unwrap_or(1..=0),
        }
    }

    /// Whether data may go to and come from this transport address.
    #[must_use]
    pub fn may_relay_to(&self, peer: Addr) -> bool {
        let bits = u128::from_be_bytes(*peer.ip_bytes());
        let reduced = reduce(bits);
        let service = Addr::from_ip_port(from_bits(reduced), peer.port());
        let is_foreign_port =
            self.relay_ips.contains(&reduced) && !self.relay_ports.contains(&peer.port());
        peer.port() != 0
            && !self.own_services.contains(&service)
            && (!is_foreign_port || self.allow.iter().any(|range| range.contains(reduced)))
            && self.may_permit(peer.ip())
    }

    /// Whether some port of this address may be reached: what can be decided of a permission, which has no port (RFC 8656
    /// section 9).
    #[must_use]
    pub fn may_permit(&self, ip: IpAddr) -> bool {
        let bits = to_bits(ip.to_canonical());
        let reduced = reduce(bits);
        let any = |ranges: &[Cidr], bits| ranges.iter().any(|range| range.contains(bits));
        let is_denied = any(&self.deny, bits)
            || any(&self.deny, reduced)
            || tail_v4(bits).is_some_and(|tail| any(&self.deny, tail));
        if is_denied {
            return false;
        }
        self.relay_ips.contains(&bits)
            || any(&self.allow, reduced)
            || !(any(DENIED_BY_DEFAULT, reduced) || self.own_ips.contains(&reduced))
    }
}

/// The IPv6 forms in which an IPv4 address can be written: mapped, compatible, 6to4, NAT64 and local-use NAT64. For tests of the
/// check, here and on each path that uses it.
#[must_use]
pub fn encodings(ip: Ipv4Addr) -> [Ipv6Addr; 5] {
    let v4 = u128::from(ip.to_bits());
    [
        MAPPED | v4,
        v4,
        SIX_TO_FOUR.network | v4 << 80 | 1,
        NAT64.network | v4,
        NAT64_LOCAL.network | v4,
    ]
    .map(Ipv6Addr::from_bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy(allow: &[&str], deny: &[&str]) -> PeerPolicy {
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        PeerPolicy::new(PeerRules {
            allow: parse(allow),
            deny: parse(deny),
            own_services: vec![addr("198.41.0.4:3478")],
            own_ips: vec!["198.41.0.4".parse().unwrap(), "2600::4".parse().unwrap()],
            relay_ips: vec!["198.41.0.5".parse().unwrap()],
            relay_ports: Some(50_000..=50_099),
        })
    }

    fn addr(text: &str) -> Addr {
        Addr::new(text.parse().unwrap())
    }

    fn v4_ranges() -> impl Iterator<Item = (u32, u32)> {
        DENIED_BY_DEFAULT
            .iter()
            .filter_map(|range| match (range.first(), range.last()) {
                (IpAddr::V4(first), IpAddr::V4(last)) => Some((first.to_bits(), last.to_bits())),
                _ => None,
            })
    }

    fn denies_everywhere(policy: &PeerPolicy, ip: u32) -> bool {
        let ip = Ipv4Addr::from_bits(ip);
        let forms = encodings(ip).map(IpAddr::V6);
        [IpAddr::V4(ip)]
            .into_iter()
            .chain(forms)
            .all(|ip| !policy.may_permit(ip) && !policy.may_relay_to(Addr::from_ip_port(ip, 4000)))
    }

    #[test]
    fn edges_of_every_denied_range_in_every_encoding() {
        let policy = policy(&[], &[]);
        let ranges: Vec<_> = v4_ranges().collect();
        let is_inside = |ip| {
            ranges
                .iter()
                .any(|&(first, last)| (first..=last).contains(&ip))
        };
        assert_eq!(ranges.len(), 18);
        for &(first, last) in &ranges {
            for ip in [first, last, first + (last - first) / 2] {
                assert!(
                    denies_everywhere(&policy, ip),
                    "{}",
                    Ipv4Addr::from_bits(ip)
                );
            }
            for ip in [first.wrapping_sub(1), last.wrapping_add(1)] {
                let ip4 = Ipv4Addr::from_bits(ip);
                assert_eq!(policy.may_permit(IpAddr::V4(ip4)), !is_inside(ip), "{ip4}");
                for i in [0, 2, 3] {
                    let form = encodings(ip4)[i];
                    assert_eq!(
                        policy.may_permit(IpAddr::V6(form)),
                        !is_inside(ip),
                        "{form}"
                    );
                }
            }
        }
        for range in DENIED_BY_DEFAULT {
            if let (IpAddr::V6(first), IpAddr::V6(last)) = (range.first(), range.last()) {
                let middle = first.to_bits() + (last.to_bits() - first.to_bits()) / 2;
                for bits in [first.to_bits(), last.to_bits(), middle] {
                    let ip = Ipv6Addr::from_bits(bits);
                    assert!(!policy.may_permit(ip.into()), "{ip}");
                }
            }
        }
        for text in [
            "8.8.8.8",
            "2600::1",
            "2001:200::1",
            "100:0:0:2::1",
            "fe00::1",
        ] {
            assert!(policy.may_permit(text.parse().unwrap()), "{text}");
        }
    }

    proptest! {
        #[test]
        fn an_encoding_changes_nothing(bits: u32, port in 1u16..) {
            let policy = policy(&[], &[]);
            let ip = Ipv4Addr::from_bits(bits);
            let plain = policy.may_relay_to(Addr::from_ip_port(ip.into(), port));
            for i in [0, 2, 3] {
                let form = Addr::from_ip_port(encodings(ip)[i].into(), port);
                prop_assert!(plain || !policy.may_relay_to(form), "{form}");
                prop_assert!(!plain || policy.may_relay_to(form), "{form}");
            }
            for i in [1, 4] {
                prop_assert!(!policy.may_permit(encodings(ip)[i].into()));
            }
        }

        #[test]
        fn random_addresses_of_denied_ranges(range in 0..18usize, offset: u32) {
            let (first, last) = v4_ranges().nth(range).unwrap();
            let ip = first + offset % (last - first + 1).max(1);
            prop_assert!(denies_everywhere(&policy(&[], &[]), ip));
        }

        #[test]
        fn an_explicit_denial_beats_all(ip: u32) {
            let policy = policy(&["0.0.0.0/0", "::/0"], &["0.0.0.0/0"]);
            prop_assert!(denies_everywhere(&policy, ip));
        }
    }

    #[test]
    fn explicit_rules_and_their_order() {
        let policy = policy(&["10.0.0.0/8", "127.0.0.1"], &["10.1.0.0/16", "9.9.9.9"]);
        for (text, allowed) in [
            ("10.0.0.1:1", true),
            ("10.1.0.1:1", false),
            ("127.0.0.1:1", true),
            ("127.0.0.2:1", false),
            ("9.9.9.9:1", false),
            ("9.9.9.8:1", true),
            ("9.9.9.8:0", false),
            ("[2002:a00:1::1]:1", true),
            ("[2002:a01:1::1]:1", false),
            ("[64:ff9b::a00:1]:1", true),
            ("[64:ff9b:1::a00:1]:1", false),
            ("[::a00:1]:1", false),
        ] {
            assert_eq!(policy.may_relay_to(addr(text)), allowed, "{text}");
        }
    }

    #[test]
    fn own_services_and_relayed_addresses() {
        let strict = policy(&[], &[]);
        let lenient = policy(&["198.41.0.0/16"], &[]);
        for (text, by_default, when_allowed) in [
            ("198.41.0.4:3478", false, false),
            ("[64:ff9b::c629:4]:3478", false, false),
            ("198.41.0.4:80", false, true),
            ("[2600::4]:80", false, false),
            ("198.41.0.5:50000", true, true),
            ("198.41.0.5:49999", false, true),
            ("198.41.0.6:80", true, true),
        ] {
            assert_eq!(strict.may_relay_to(addr(text)), by_default, "{text}");
            assert_eq!(lenient.may_relay_to(addr(text)), when_allowed, "{text}");
        }
    }

    #[test]
    fn texts() {
        for bad in [
            "",
            "10.0.0.0/33",
            "::/129",
            "10.0.0/8",
            "x",
            "10.0.0.0/",
            "10.0.0.0/-1",
        ] {
            assert_eq!(bad.parse::<Cidr>(), Err(BadCidr), "{bad}");
        }
        assert_eq!("::ffff:10.0.0.0/104".parse::<Cidr>(), "10.0.0.0/8".parse());
    }
}
