//! ChannelData (RFC 8656 section 12.4): a channel number, a length, the data. On UDP the padding may be absent and
//! trailing bytes beyond the length are ignored.

/// Bytes of a ChannelData header.
pub const HEADER_LEN: usize = 4;

/// A channel number, most often in the range that RFC 8656 section 12 leaves for use, 0x4000 to 0x4FFF; else in the one that
/// RFC 5766 section 11 had, up to 0x7FFF.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ChannelNumber(u16);

impl ChannelNumber {
    /// The lowest channel number.
    pub const MIN: u16 = 0x4000;
    /// The highest channel number.
    pub const MAX: u16 = 0x4fff;

    /// `number` if it is in range.
    #[must_use]
    pub const fn new(number: u16) -> Option<Self> {
        if number >= Self::MIN && number <= Self::MAX {
            Some(Self(number))
        } else {
            None
        }
    }

    /// `number` if it is in the range of RFC 5766, 0x4000 to 0x7FFF: for clients of that time, where the operator serves them.
    #[must_use]
    pub const fn new_rfc5766(number: u16) -> Option<Self> {
        if number >= Self::MIN && number <= 0x7fff {
            Some(Self(number))
        } else {
            None
        }
    }

    /// The channel by which members of a session address the member in `seat`.
    #[must_use]
    pub const fn of_seat(seat: u8) -> Self {
        Self(Self::MIN + seat as u16)
    }

    /// The seat that [`ChannelNumber::of_seat`] maps here, if there is one.
    #[must_use]
    pub const fn seat(self) -> Option<u8> {
        let offset = self.0 - Self::MIN;
        if offset <= u8::MAX as u16 {
            Some(offset as u8)
        } else {
            None
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// A parsed ChannelData message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChannelData<'a> {
    /// The channel it came on.
    pub channel: ChannelNumber,
    /// The application data, exactly as long as the header said.
    pub data: &'a [u8],
}

/// Parses a datagram. `None` if the channel is out of range or the length exceeds what is there.
#[must_use]
pub fn parse(datagram: &[u8]) -> Option<ChannelData<'_>> {
    parse_with(datagram, ChannelNumber::new)
}

/// As [`parse`], with the channel numbers of RFC 5766.
#[must_use]
pub fn parse_rfc5766(datagram: &[u8]) -> Option<ChannelData<'_>> {
    parse_with(datagram, ChannelNumber::new_rfc5766)
}

fn parse_with(
    datagram: &[u8],
    number: impl FnOnce(u16) -> Option<ChannelNumber>,
) -> Option<ChannelData<'_>> {
    let (header, rest) = datagram.split_first_chunk::<HEADER_LEN>()?;
    let channel = number(u16::from_be_bytes([header[0], header[1]]))?;
    let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    Some(ChannelData {
        channel,
        data: rest.get(..len)?,
    })
}

/// The header of `len` bytes of data on `channel`. `len` above 65535 cannot occur in a datagram and is an assertion.
#[must_use]
pub fn header(channel: ChannelNumber, len: usize) -> [u8; HEADER_LEN] {
    let len = u16::try_from(len).expect("a datagram is shorter than 64 KiB");
    let [c0, c1] = channel.get().to_be_bytes();
    let [l0, l1] = len.to_be_bytes();
    [c0, c1, l0, l1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_trailing_bytes_ignored() {
        let channel = ChannelNumber::of_seat(7);
        let mut bytes = header(channel, 3).to_vec();
        bytes.extend_from_slice(b"abc\0");
        let parsed = parse(&bytes).unwrap();
        assert_eq!(parsed.channel, channel);
        assert_eq!(parsed.data, b"abc");
        assert_eq!(parsed.channel.seat(), Some(7));
    }

    // RFC 8656 section 12: channel numbers 0x4000 through 0x4FFF.
    #[test]
    fn range_and_length_lies() {
        for (number, ok) in [
            (0x3fffu16, false),
            (0x4000, true),
            (0x4fff, true),
            (0x5000, false),
            (0x7fff, false),
            (0x8000, false),
        ] {
            let [a, b] = number.to_be_bytes();
            assert_eq!(parse(&[a, b, 0, 0]).is_some(), ok, "{number:#x}");
        }
        assert!(parse(&[0x40, 0, 0, 5, 1, 2, 3, 4]).is_none());
        for len in 0..HEADER_LEN {
            assert!(parse(&[0x40, 0, 0, 0][..len]).is_none());
        }
    }
}
