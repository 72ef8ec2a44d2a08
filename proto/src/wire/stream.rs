//! Messages on a byte stream (TCP, TLS): STUN ends where its length field says (RFC 8489 section 6.2.2), ChannelData is padded
//! to four bytes (RFC 8656 section 12.5). Cuts a stream into messages; knows nothing of sockets and interprets nothing but the
//! lengths.

use super::{channel_data, stun};

/// Longest message with its padding, in bytes: the 16-bit length of a STUN message, and its header. A [`Framer`] never keeps
/// more than that.
pub const FRAME_MAX: usize = stun::HEADER_LEN + u16::MAX as usize;

/// Room above this is given back when the message that needed it is complete, in bytes.
const ROOM_KEPT: usize = 2048;

/// How much of a message says how long it is, in bytes.
const HEAD_LEN: usize = 4;

/// Zero bytes behind a message of `len` bytes on a stream. STUN messages need none.
#[must_use]
pub const fn padding(len: usize) -> usize {
    len.next_multiple_of(4) - len
}

/// What stands on the stream is neither STUN nor ChannelData. Where the next message begins cannot be told any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadFrame;

/// Cuts one stream into messages.
#[derive(Debug, Default)]
pub struct Framer {
    /// The beginning of a message whose end has not come.
    partial: Vec<u8>,
    /// The highest first byte of ChannelData.
    channel_first_max: u8,
}

/// How long a message is.
#[derive(Clone, Copy)]
struct Extent {
    /// Without padding.
    message: usize,
    /// With it.
    frame: usize,
}

impl Framer {
    /// For a stream that begins now. With `serves_rfc5766`, channel numbers go up to 0x7FFF, else to 0x4FFF.
    #[must_use]
    pub const fn new(serves_rfc5766: bool) -> Self {
        Self {
            partial: Vec::new(),
            channel_first_max: if serves_rfc5766 { 0x7f } else { 0x4f },
        }
    }

    /// Bytes that are kept of a message that is not complete.
    #[must_use]
    pub const fn buffered(&self) -> usize {
        self.partial.len()
    }

    /// Takes in what came next and passes on each message that is complete, without padding. A message that lies in
    /// `input` as a whole is not copied.
    ///
    /// # Errors
    /// [`BadFrame`], after the messages before it were passed on. The stream is of no more use then.
    pub fn feed(&mut self, mut input: &[u8], mut each: impl FnMut(&[u8])) -> Result<(), BadFrame> {
        while !input.is_empty() {
            if self.partial.is_empty() {
                match self.extent(input)? {
                    Some(extent) if extent.frame <= input.len() => {
                        each(&input[..extent.message]);
                        input = &input[extent.frame..];
                        continue;
                    }
                    _ => {
                        self.partial.extend_from_slice(input);
                        return Ok(());
                    }
                }
            }
            if self.partial.len() < HEAD_LEN {
                self.take(&mut input, HEAD_LEN);
            }
            let Some(extent) = self.extent(&self.partial)? else {
                return Ok(());
            };
            self.take(&mut input, extent.frame);
            if self.partial.len() == extent.frame {
                each(&self.partial[..extent.message]);
                self.partial.clear();
                self.partial.shrink_to(ROOM_KEPT);
            }
        }
        Ok(())
    }

    /// Moves bytes from `input` until `len` of the message are there.
    fn take(&mut self, input: &mut &[u8], len: usize) {
        let wanted = (len - self.partial.len()).min(input.len());
        let (taken, rest) = input.split_at(wanted);
        self.partial.extend_from_slice(taken);
        *input = rest;
    }

    /// How long the message is that `bytes`, at least one, begin; `None` if that needs more of them.
    fn extent(&self, bytes: &[u8]) -> Result<Option<Extent>, BadFrame> {
        let is_stun = match bytes[0] {
            0..=3 => true,
            0x40.. if bytes[0] <= self.channel_first_max => false,
            _ => return Err(BadFrame),
        };
        let Some(&[_, _, high, low]) = bytes.first_chunk::<HEAD_LEN>() else {
            return Ok(None);
        };
        let len = usize::from(u16::from_be_bytes([high, low]));
        if is_stun {
            // RFC 8489 section 5: the last two bits of the length are zero.
            let frame = stun::HEADER_LEN + len;
            return if len % 4 == 0 {
                let message = frame;
                Ok(Some(Extent { message, frame }))
            } else {
                Err(BadFrame)
            };
        }
        let message = channel_data::HEADER_LEN + len;
        let frame = message + padding(message);
        Ok(Some(Extent { message, frame }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(pieces: &[&[u8]], serves_rfc5766: bool) -> (Vec<Vec<u8>>, Result<(), BadFrame>) {
        let mut framer = Framer::new(serves_rfc5766);
        let mut messages = Vec::new();
        for piece in pieces {
            let outcome = framer.feed(piece, |message| messages.push(message.to_vec()));
            assert!(framer.buffered() < FRAME_MAX + 4);
            if outcome.is_err() {
                return (messages, outcome);
            }
        }
        (messages, Ok(()))
    }

    /// A message as it stands on a stream, and what it is without padding.
    fn message() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
        let len = prop_oneof![0usize..40, 0usize..3000, Just(0xffff)];
        (any::<bool>(), 0u8..4, 0u8..16, any::<u8>(), len).prop_map(
            |(is_stun, method, channel, fill, len)| {
                let (first, header_len, len) = match is_stun {
                    true => (method, stun::HEADER_LEN, len / 4 * 4),
                    false => (0x40 + channel, channel_data::HEADER_LEN, len),
                };
                let [high, low] = u16::try_from(len).unwrap().to_be_bytes();
                let mut bytes = vec![first, fill, high, low];
                bytes.resize(header_len + len, fill);
                let whole = bytes.clone();
                bytes.resize(bytes.len() + padding(bytes.len()), 0xee);
                (bytes, whole)
            },
        )
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_messages(
            messages in proptest::collection::vec(message(), 1..8),
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..30),
        ) {
            let stream: Vec<u8> = messages.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            at.extend([0, stream.len()]);
            at.sort_unstable();
            let pieces: Vec<&[u8]> = at.windows(2).map(|w| &stream[w[0]..w[1]]).collect();
            let expected: Vec<Vec<u8>> = messages.into_iter().map(|(_, whole)| whole).collect();
            prop_assert_eq!(cut(&pieces, false), (expected, Ok(())));
        }

        #[test]
        fn arbitrary_bytes_give_the_same_however_they_are_split(
            stream in proptest::collection::vec(prop_oneof![Just(0u8), Just(0x40), Just(4), any::<u8>()], 1..300),
            step in 1usize..20,
        ) {
            let pieces: Vec<&[u8]> = stream.chunks(step).collect();
            prop_assert_eq!(cut(&pieces, true), cut(&[&stream], true));
        }
    }

    #[test]
    fn every_other_first_byte_ends_the_stream() {
        let good = [0x40, 0, 0, 1, 9, 0, 0, 0];
        for first in 0..=u8::MAX {
            for serves_rfc5766 in [false, true] {
                let last_channel = if serves_rfc5766 { 0x7f } else { 0x4f };
                let is_good = first < 4 || (0x40..=last_channel).contains(&first);
                let (messages, outcome) = cut(&[&good, &[first]], serves_rfc5766);
                assert_eq!(messages, [&good[..5]]);
                assert_eq!(outcome.is_ok(), is_good, "{first:#x}");
            }
        }
    }

    #[test]
    fn a_truncation_is_no_message_and_a_flip_no_more_than_its_bytes() {
        for vector in crate::wire::stun::tests::vectors() {
            for len in 0..vector.len() {
                assert_eq!(cut(&[&vector[..len]], false), (Vec::new(), Ok(())));
            }
            for bit in 0..vector.len() * 8 {
                let mut flipped = vector.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                let (messages, outcome) = cut(&[&flipped], false);
                let taken: usize = messages.iter().map(Vec::len).sum();
                assert!(taken <= flipped.len(), "bit {bit}");
                // Beyond the first four bytes, which say what it is and how long, it is a message like before.
                if bit >= 32 {
                    assert_eq!((messages, outcome), (vec![flipped], Ok(())), "bit {bit}");
                }
            }
        }
    }

    #[test]
    fn stun_of_an_odd_length_ends_the_stream() {
        for len in 1..4 {
            assert_eq!(cut(&[&[0, 1, 0, len]], false).1, Err(BadFrame));
        }
    }

    #[test]
    fn a_byte_at_a_time_keeps_no_more_than_one_message() {
        let mut stream = vec![0x40, 1, 0xff, 0xff];
        stream.resize(4 + 0x10000, 7);
        let mut framer = Framer::new(false);
        let mut messages = 0;
        for _ in 0..3 {
            for byte in &stream {
                framer.feed(&[*byte], |m| messages += m.len()).unwrap();
            }
            assert_eq!(framer.buffered(), 0);
            assert!(framer.partial.capacity() <= ROOM_KEPT);
        }
        assert_eq!(messages, 3 * (4 + 0xffff));
    }
}
