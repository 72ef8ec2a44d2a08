//! STUN messages (RFC 8489): parsing in place, and [`MessageWriter`].
//!
//! Parsing checks the whole structure once, so the accessors of [`Message`] cannot fail. Meaning (which attributes a
//! method needs, what an unknown one entails) is decided elsewhere.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::addr::Addr;

mod integrity;
mod write;

pub use integrity::{Integrity, IntegrityKey, LongTermKey, crc32};
pub use write::{AttributeWriter, MessageWriter, write_data_indication};

/// Bytes of the fixed header (RFC 8489 section 5).
pub const HEADER_LEN: usize = 20;
/// The magic cookie (RFC 8489 section 5).
pub const MAGIC_COOKIE: u32 = 0x2112_a442;

/// Attribute types of the RFCs that this project uses.
pub mod attr {
    /// MAPPED-ADDRESS, RFC 8489 section 14.1.
    pub const MAPPED_ADDRESS: u16 = 0x0001;
    /// CHANGE-REQUEST, RFC 5780 section 7.2.
    pub const CHANGE_REQUEST: u16 = 0x0003;
    /// PADDING, RFC 5780 section 7.6.
    pub const PADDING: u16 = 0x0026;
    /// RESPONSE-PORT, RFC 5780 section 7.5.
    pub const RESPONSE_PORT: u16 = 0x0027;
    /// RESPONSE-ORIGIN, RFC 5780 section 7.3.
    pub const RESPONSE_ORIGIN: u16 = 0x802b;
    /// OTHER-ADDRESS, RFC 5780 section 7.4.
    pub const OTHER_ADDRESS: u16 = 0x802c;
    /// USERNAME, RFC 8489 section 14.3.
    pub const USERNAME: u16 = 0x0006;
    /// MESSAGE-INTEGRITY (HMAC-SHA1), RFC 8489 section 14.5.
    pub const MESSAGE_INTEGRITY: u16 = 0x0008;
    /// ERROR-CODE, RFC 8489 section 14.8.
    pub const ERROR_CODE: u16 = 0x0009;
    /// UNKNOWN-ATTRIBUTES, RFC 8489 section 14.13.
    pub const UNKNOWN_ATTRIBUTES: u16 = 0x000a;
    /// REALM, RFC 8489 section 14.9.
    pub const REALM: u16 = 0x0014;
    /// NONCE, RFC 8489 section 14.10.
    pub const NONCE: u16 = 0x0015;
    /// MESSAGE-INTEGRITY-SHA256, RFC 8489 section 14.6.
    pub const MESSAGE_INTEGRITY_SHA256: u16 = 0x001c;
    /// PASSWORD-ALGORITHM, RFC 8489 section 14.12.
    pub const PASSWORD_ALGORITHM: u16 = 0x001d;
    /// USERHASH, RFC 8489 section 14.4.
    pub const USERHASH: u16 = 0x001e;
    /// CHANNEL-NUMBER, RFC 8656 section 18.1.
    pub const CHANNEL_NUMBER: u16 = 0x000c;
    /// LIFETIME, RFC 8656 section 18.2.
    pub const LIFETIME: u16 = 0x000d;
    /// XOR-PEER-ADDRESS, RFC 8656 section 18.3.
    pub const XOR_PEER_ADDRESS: u16 = 0x0012;
    /// DATA, RFC 8656 section 18.4.
    pub const DATA: u16 = 0x0013;
    /// XOR-RELAYED-ADDRESS, RFC 8656 section 18.5.
    pub const XOR_RELAYED_ADDRESS: u16 = 0x0016;
    /// REQUESTED-ADDRESS-FAMILY, RFC 8656 section 18.6.
    pub const REQUESTED_ADDRESS_FAMILY: u16 = 0x0017;
    /// EVEN-PORT, RFC 8656 section 18.7.
    pub const EVEN_PORT: u16 = 0x0018;
    /// REQUESTED-TRANSPORT, RFC 8656 section 18.8.
    pub const REQUESTED_TRANSPORT: u16 = 0x0019;
    /// DONT-FRAGMENT, RFC 8656 section 18.9.
    pub const DONT_FRAGMENT: u16 = 0x001a;
    /// RESERVATION-TOKEN, RFC 8656 section 18.10.
    pub const RESERVATION_TOKEN: u16 = 0x0022;
    /// ADDITIONAL-ADDRESS-FAMILY, RFC 8656 section 18.11.
    pub const ADDITIONAL_ADDRESS_FAMILY: u16 = 0x8000;
    /// ADDRESS-ERROR-CODE, RFC 8656 section 18.12.
    pub const ADDRESS_ERROR_CODE: u16 = 0x8001;
    /// ICMP, RFC 8656 section 18.13.
    pub const ICMP: u16 = 0x8004;
    /// PASSWORD-ALGORITHMS, RFC 8489 section 14.11.
    pub const PASSWORD_ALGORITHMS: u16 = 0x8002;
    /// XOR-MAPPED-ADDRESS, RFC 8489 section 14.2.
    pub const XOR_MAPPED_ADDRESS: u16 = 0x0020;
    /// SOFTWARE, RFC 8489 section 14.14.
    pub const SOFTWARE: u16 = 0x8022;
    /// ALTERNATE-DOMAIN, RFC 8489 section 14.16.
    pub const ALTERNATE_DOMAIN: u16 = 0x8003;
    /// ALTERNATE-SERVER, RFC 8489 section 14.15.
    pub const ALTERNATE_SERVER: u16 = 0x8023;
    /// MOBILITY-TICKET, RFC 8016 section 3.4.
    pub const MOBILITY_TICKET: u16 = 0x8030;
    /// FINGERPRINT, RFC 8489 section 14.7.
    pub const FINGERPRINT: u16 = 0x8028;
}

/// Methods of the RFCs that this project uses.
pub mod method {
    /// Binding, RFC 8489 section 18.2.
    pub const BINDING: u16 = 0x001;
    /// Allocate, RFC 8656 section 17.
    pub const ALLOCATE: u16 = 0x003;
    /// Refresh, RFC 8656 section 17.
    pub const REFRESH: u16 = 0x004;
    /// Send, an indication only, RFC 8656 section 17.
    pub const SEND: u16 = 0x006;
    /// Data, an indication only, RFC 8656 section 17.
    pub const DATA: u16 = 0x007;
    /// CreatePermission, RFC 8656 section 17.
    pub const CREATE_PERMISSION: u16 = 0x008;
    /// ChannelBind, RFC 8656 section 17.
    pub const CHANNEL_BIND: u16 = 0x009;

    /// Whether a request of this method is TURN's.
    #[must_use]
    pub const fn is_turn(method: u16) -> bool {
        matches!(
            method,
            ALLOCATE | REFRESH | CREATE_PERMISSION | CHANNEL_BIND
        )
    }
}

/// The class of a message (RFC 8489 section 5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// A request.
    Request,
    /// An indication: never answered.
    Indication,
    /// A success response.
    Success,
    /// An error response.
    Error,
}

/// The 96-bit transaction id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TransactionId(pub [u8; 12]);

/// Why bytes are not a STUN message. A server drops such a datagram; it never answers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotStun {
    /// Shorter than a header, or the two top bits are not zero.
    Header,
    /// The length field is not a multiple of four or not the length of the datagram.
    Length,
    /// An attribute claims more bytes than there are.
    Attribute,
    /// A FINGERPRINT is there and wrong (RFC 8489 section 7.3), or not the last attribute.
    Fingerprint,
}

/// A message whose structure has been checked.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    bytes: &'a [u8],
}

impl<'a> Message<'a> {
    /// Parses one whole datagram.
    ///
    /// # Errors
    /// [`NotStun`] says which rule the bytes break.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, NotStun> {
        if bytes.len() < HEADER_LEN || bytes[0] & 0xc0 != 0 {
            return Err(NotStun::Header);
        }
        let len = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
        if !len.is_multiple_of(4) || HEADER_LEN + len != bytes.len() {
            return Err(NotStun::Length);
        }
        let body = &bytes[HEADER_LEN..];
        let mut at = 0;
        let mut fingerprint_at = None;
        while at < body.len() {
            if fingerprint_at.is_some() {
                return Err(NotStun::Fingerprint);
            }
            let (kind, value) = attribute_at(body, at).ok_or(NotStun::Attribute)?;
            if kind == attr::FINGERPRINT {
                fingerprint_at = Some((at, value));
            }
            at += 4 + value.len().next_multiple_of(4);
        }
        if let Some((at, value)) = fingerprint_at {
            let crc = crc32(&bytes[..HEADER_LEN + at]) ^ integrity::FINGERPRINT_XOR;
            if value != crc.to_be_bytes() {
                return Err(NotStun::Fingerprint);
            }
        }
        Ok(Self { bytes })
    }

    /// The whole message.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    fn message_type(&self) -> u16 {
        u16::from_be_bytes([self.bytes[0], self.bytes[1]])
    }

    /// The method, 12 bits.
    #[must_use]
    pub fn method(&self) -> u16 {
        let t = self.message_type();
        t & 0x000f | (t & 0x00e0) >> 1 | (t & 0x3e00) >> 2
    }

    /// The class.
    #[must_use]
    pub fn class(&self) -> Class {
        match self.message_type() & 0x0110 {
            0x0000 => Class::Request,
            0x0010 => Class::Indication,
            0x0100 => Class::Success,
            _ => Class::Error,
        }
    }

    /// Whether the cookie is RFC 8489's. Without it the message is of RFC 3489's time.
    #[must_use]
    pub fn has_magic_cookie(&self) -> bool {
        self.bytes[4..8] == MAGIC_COOKIE.to_be_bytes()
    }

    /// The transaction id.
    #[must_use]
    pub fn transaction_id(&self) -> TransactionId {
        let mut id = [0; 12];
        id.copy_from_slice(&self.bytes[8..HEADER_LEN]);
        TransactionId(id)
    }

    /// The attributes in order. After MESSAGE-INTEGRITY only MESSAGE-INTEGRITY-SHA256 and FINGERPRINT count, after the
    /// former only FINGERPRINT (RFC 8489 sections 14.5 and 14.6); the rest is skipped.
    #[must_use]
    pub const fn attributes(&self) -> Attributes<'a> {
        Attributes {
            body: self.bytes.split_at(HEADER_LEN).1,
            at: 0,
            after: Covered::Open,
        }
    }

    /// The value of the first attribute of this type; a repeated attribute is ignored (RFC 8489 section 14).
    #[must_use]
    pub fn find(&self, kind: u16) -> Option<&'a [u8]> {
        self.attributes()
            .find(|attribute| attribute.kind == kind)
            .map(|attribute| attribute.value)
    }

    /// Whether it ends with FINGERPRINT, which is right then.
    #[must_use]
    pub fn has_fingerprint(&self) -> bool {
        const HEAD: [u8; 4] = [0x80, 0x28, 0, 4];
        // Most have none, and those show it here.
        let (before, tail) = self.bytes.split_at(self.bytes.len() - 8);
        before.len() >= HEADER_LEN && tail[..4] == HEAD && self.find(attr::FINGERPRINT).is_some()
    }

    /// The first XOR-encoded address of this type.
    #[must_use]
    pub fn find_xor_addr(&self, kind: u16) -> Option<Addr> {
        decode_xor_addr(self.find(kind)?, self.transaction_id())
    }

    /// The code of an error response (RFC 8489 section 14.8).
    #[must_use]
    pub fn error_code(&self) -> Option<u16> {
        match self.find(attr::ERROR_CODE)? {
            [_, _, class, number, ..] if (3..=6).contains(&(class & 7)) && *number < 100 => {
                Some(u16::from(class & 7) * 100 + u16::from(*number))
            }
            _ => None,
        }
    }

    /// Writes the comprehension-required attributes (below 0x8000) that `known` refuses into `unknown`; returns how many there are.
    pub fn unknown_required(&self, known: impl Fn(u16) -> bool, unknown: &mut Vec<u16>) -> usize {
        unknown.clear();
        for attribute in self.attributes() {
            if attribute.kind < 0x8000
                && !known(attribute.kind)
                && !unknown.contains(&attribute.kind)
            {
                unknown.push(attribute.kind);
            }
        }
        unknown.len()
    }
}

/// One attribute of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attribute<'a> {
    /// Its type.
    pub kind: u16,
    /// Its value without the padding.
    pub value: &'a [u8],
    /// Where its type field begins, counted from the start of the attributes.
    pub(crate) at: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Covered {
    Open,
    BySha1,
    BySha256,
}

/// Iterator over attributes; also over the attribute lists that some attributes of ours contain.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    body: &'a [u8],
    at: usize,
    after: Covered,
}

impl<'a> Attributes<'a> {
    /// The attributes nested in an attribute's value. Iteration ends at the first malformed one.
    #[must_use]
    pub const fn nested(value: &'a [u8]) -> Self {
        Self {
            body: value,
            at: 0,
            after: Covered::Open,
        }
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        while self.at < self.body.len() {
            let at = self.at;
            let Some((kind, value)) = attribute_at(self.body, at) else {
                self.at = self.body.len();
                return None;
            };
            self.at += 4 + value.len().next_multiple_of(4);
            let counts = match self.after {
                Covered::Open => true,
                Covered::BySha1 => {
                    matches!(kind, attr::MESSAGE_INTEGRITY_SHA256 | attr::FINGERPRINT)
                }
                Covered::BySha256 => kind == attr::FINGERPRINT,
            };
            if !counts {
                continue;
            }
            match kind {
                attr::MESSAGE_INTEGRITY => self.after = Covered::BySha1,
                attr::MESSAGE_INTEGRITY_SHA256 => self.after = Covered::BySha256,
                _ => {}
            }
            return Some(Attribute { kind, value, at });
        }
        None
    }
}

/// The type and value of the attribute that starts at `at`; `None` if it, padding included, does not fit.
fn attribute_at(body: &[u8], at: usize) -> Option<(u16, &[u8])> {
    let header = body.get(at..at + 4)?;
    let kind = u16::from_be_bytes([header[0], header[1]]);
    let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    body.get(at + 4..at + 4 + len.next_multiple_of(4))
        .map(|padded| (kind, &padded[..len]))
}

/// Decodes an XOR-MAPPED-ADDRESS value (RFC 8489 section 14.2).
#[must_use]
pub fn decode_xor_addr(value: &[u8], id: TransactionId) -> Option<Addr> {
    let mut mask = [0; 16];
    mask[..4].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
    mask[4..].copy_from_slice(&id.0);
    decode_masked_addr(value, mask)
}

/// Decodes a MAPPED-ADDRESS value (RFC 8489 section 14.1).
#[must_use]
pub fn decode_plain_addr(value: &[u8]) -> Option<Addr> {
    decode_masked_addr(value, [0; 16])
}

fn decode_masked_addr(value: &[u8], mask: [u8; 16]) -> Option<Addr> {
    let (head, ip) = value.split_first_chunk::<4>()?;
    let port = u16::from_be_bytes([head[2], head[3]]) ^ u16::from_be_bytes([mask[0], mask[1]]);
    let ip = match (head[1], ip.len()) {
        (1, 4) => {
            let mut octets: [u8; 4] = ip.try_into().ok()?;
            octets.iter_mut().zip(mask).for_each(|(o, m)| *o ^= m);
            IpAddr::V4(Ipv4Addr::from(octets))
        }
        (2, 16) => {
            let mut octets: [u8; 16] = ip.try_into().ok()?;
            octets.iter_mut().zip(mask).for_each(|(o, m)| *o ^= m);
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    Some(Addr::from_ip_port(ip, port))
}

#[cfg(test)]
pub(crate) mod tests;
