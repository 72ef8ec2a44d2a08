//! simple-hole-punch's datagrams: two capital letters, a colon, fields separated by colons.
//!
//! A key is an IPv4 address and a port as six digits to the base 256, each written as two letters out of a fixed table. The id
//! of a session is the server's own key and two more digits, so that an id is all that a client needs.

use std::net::{IpAddr, Ipv4Addr};

use crate::addr::Addr;

/// Letters of a key.
pub const KEY_LEN: usize = 12;
/// Letters of a session's id.
pub const ID_LEN: usize = KEY_LEN + 4;
/// Longest LAN key that is kept. Real ones have at most [`KEY_LEN`] letters.
pub const LAN_KEY_LEN_MAX: usize = 64;

/// The digits from 0 to 255, two letters each; upstream's constant.
const DIGITS: &[u8; 512] = b"\
cyahjcdumwwhrvyqyysrsstgcvgxiabawabxsmcomseatorbxrvxuafwridsjibk\
bbspccgcbuowdeiogmhskqasfadxwfhypgugdbjvwqirlmlthmonizisfxmyphfd\
vlzwsvsidpjpoacmwsjmdootgdlrkoseqnrzxhmzsnafworfjenjyntqzuxpxvnk\
wrtkdqgatzbloruidteoldhruvswgghdbsnxjzauojtubrrcvztwnbaydvtbkcqu\
qmmiitvasadibewyghkislpqediveryiiqlsurkvlnhhvjenimvmhibmwefzxbne\
aghcmagtyxplcrohgjwxgqtifihfxmkmullvnhkreflyusgejufsqzfnnpcjvnft\
wzjrtfwwabzaoglqmmxwuksombrpztxcadhggwpukxcfybgsgrkboxqxdntvrlvo\
xzjkygqyfrnliiycdzwuodngpdfgfjfhinnarthzeswthegioobccwyvkypzwmwi";

/// One digit.
const fn digit(value: u8) -> [u8; 2] {
    let at = value as usize * 2;
    [DIGITS[at], DIGITS[at + 1]]
}

fn value(letters: &[u8]) -> Option<u8> {
    let mut digits = DIGITS.chunks_exact(2);
    let place = digits.position(|digit| digit == letters)?;
    u8::try_from(place).ok()
}

/// An address as a key. IPv6 has none.
#[must_use]
pub fn key(addr: Addr) -> Option<[u8; KEY_LEN]> {
    let IpAddr::V4(ip) = addr.ip() else {
        return None;
    };
    let [a, b, c, d] = ip.octets();
    let [high, low] = addr.port().to_be_bytes();
    let mut key = [0; KEY_LEN];
    for (letters, value) in key.chunks_exact_mut(2).zip([a, b, c, d, high, low]) {
        letters.copy_from_slice(&digit(value));
    }
    Some(key)
}

/// The address that a key stands for.
#[must_use]
pub fn addr(key: &[u8]) -> Option<Addr> {
    if key.len() != KEY_LEN {
        return None;
    }
    let mut values = [0; KEY_LEN / 2];
    for (letters, place) in key.chunks_exact(2).zip(&mut values) {
        *place = value(letters)?;
    }
    let [a, b, c, d, high, low] = values;
    let port = u16::from_be_bytes([high, low]);
    Some(Addr::from_ip_port(
        IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        port,
    ))
}

/// A session's id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SessionId(pub [u8; ID_LEN]);

impl SessionId {
    /// The id with this number at the server with this key.
    #[must_use]
    pub fn new(server: [u8; KEY_LEN], number: u16) -> Self {
        let mut id = [0; ID_LEN];
        id[..KEY_LEN].copy_from_slice(&server);
        let [high, low] = number.to_be_bytes();
        id[KEY_LEN..KEY_LEN + 2].copy_from_slice(&digit(high));
        id[KEY_LEN + 2..].copy_from_slice(&digit(low));
        Self(id)
    }
}

/// What a client wants. LAN keys are opaque and may be short or empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request<'a> {
    /// `HS`: host.
    Host {
        /// The host's LAN key.
        lan: &'a [u8],
    },
    /// `JS`: join.
    Join {
        /// The joiner's LAN key.
        lan: &'a [u8],
        /// The session, as it was written.
        id: &'a [u8],
    },
    /// `RS`: play with anybody.
    Random {
        /// The sender's LAN key.
        lan: &'a [u8],
    },
    /// `CS`: close the session with this id.
    Close(&'a [u8]),
    /// `KA`: the session with this id goes on.
    Keepalive(&'a [u8]),
}

impl<'a> Request<'a> {
    /// Reads a datagram; `None` if it is none that a server knows. The byte behind the two letters is not looked at.
    #[must_use]
    pub fn parse(datagram: &'a [u8]) -> Option<Self> {
        let (kind, rest) = datagram.split_at_checked(2)?;
        let payload = rest.get(1..).unwrap_or_default();
        let mut fields = payload.split(|&byte| byte == b':');
        let first = fields.next().unwrap_or_default();
        let lan = || (first.len() <= LAN_KEY_LEN_MAX).then_some(first);
        match kind {
            b"HS" => Some(Self::Host { lan: lan()? }),
            b"JS" => Some(Self::Join {
                lan: lan()?,
                id: fields.next()?,
            }),
            b"RS" => Some(Self::Random { lan: lan()? }),
            b"CS" => Some(Self::Close(first)),
            b"KA" => Some(Self::Keepalive(first)),
            _ => None,
        }
    }
}

/// Writes an answer: its two letters and its fields.
pub fn write(out: &mut Vec<u8>, kind: [u8; 2], fields: &[&[u8]]) {
    out.extend_from_slice(&kind);
    for field in fields {
        out.push(b':');
        out.extend_from_slice(field);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn digits_are_distinct_and_in_order() {
        let all: BTreeSet<_> = (0..=255).map(digit).collect();
        assert_eq!(all.len(), 256);
        assert_eq!([digit(0), digit(1), digit(255)], [*b"cy", *b"ah", *b"wi"]);
        assert!((0..=255).all(|byte| value(&digit(byte)) == Some(byte)));
    }

    #[test]
    fn keys_and_ids() {
        let at = Addr::new("0.1.255.0:255".parse().unwrap());
        assert_eq!(key(at), Some(*b"cyahwicycywi"));
        assert_eq!(addr(b"cyahwicycywi"), Some(at));
        assert_eq!(
            SessionId::new(*b"cyahwicycywi", 256).0,
            *b"cyahwicycywiahcy"
        );
        assert_eq!(key(Addr::new("[2001:db8::1]:1".parse().unwrap())), None);
        assert_eq!(addr(b"cyahwicycyw"), None);
        assert_eq!(addr(b"cyahwicycyzz"), None);
    }

    #[test]
    fn requests_are_read() {
        assert_eq!(Request::parse(b"HS"), Some(Request::Host { lan: b"" }));
        assert_eq!(
            Request::parse(b"HS:abc"),
            Some(Request::Host { lan: b"abc" })
        );
        assert_eq!(
            Request::parse(b"HS abc"),
            Some(Request::Host { lan: b"abc" })
        );
        let join = Request::Join {
            lan: b"",
            id: b"id",
        };
        assert_eq!(Request::parse(b"JS::id"), Some(join));
        assert_eq!(Request::parse(b"JS:abc"), None, "without an id");
        assert_eq!(Request::parse(b"RS:"), Some(Request::Random { lan: b"" }));
        assert_eq!(Request::parse(b"CS:id:x"), Some(Request::Close(b"id")));
        assert_eq!(Request::parse(b"KA"), Some(Request::Keepalive(b"")));
        for other in [&b""[..], b"H", b"hs:abc", b"XX:abc", b":HS"] {
            assert_eq!(Request::parse(other), None);
        }
        assert_eq!(Request::parse(&[b"HS:", &[b'a'; 65][..]].concat()), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_decided(datagram in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Request::parse(&datagram);
            let _ = addr(&datagram);
        }

        #[test]
        fn keys_come_back(ip: [u8; 4], port: u16) {
            let at = Addr::from_ip_port(IpAddr::from(ip), port);
            prop_assert_eq!(addr(&key(at).unwrap()), Some(at));
        }
    }
}
