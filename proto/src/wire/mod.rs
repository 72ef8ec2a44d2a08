//! Byte formats. Each file parses untrusted bytes into types that cannot be wrong any more, and writes them back.
//! Nothing here keeps state, and no input can make it panic.

pub mod channel_data;
pub(crate) mod digest;
#[cfg(feature = "server")]
pub mod godot_p2p;
pub mod join_code;
pub mod native;
#[cfg(feature = "server")]
pub mod noray;
#[cfg(feature = "server")]
pub mod rabid;
#[cfg(feature = "server")]
pub mod simple;
pub mod stream;
pub mod stun;

/// What the first byte of a datagram says it is (RFC 7983 section 7; RFC 8656 section 12).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// 0..=3: a STUN message.
    Stun,
    /// 64..=79: ChannelData, the range of RFC 8656.
    ChannelData,
    /// Anything else, and the empty datagram.
    Other,
}

/// Sorts a datagram by its first byte.
#[must_use]
pub const fn kind(datagram: &[u8]) -> Kind {
    match datagram {
        [0..=3, ..] => Kind::Stun,
        [64..=79, ..] => Kind::ChannelData,
        _ => Kind::Other,
    }
}
