//! What a datagram of the load carries, so that whoever receives it can tell whether it is whole, whether it is meant for
//! them, and how long it took:
//!
//! | bytes | |
//! |---|---|
//! | 0..4 | the run |
//! | 4..8 | the session's place in the generator |
//! | 8..12 | how many sessions that place has seen before |
//! | 12, 13 | the sender's and the receiver's number in the session |
//! | 14..20 | number within the flow |
//! | 20..28 | when it was to be sent, nanoseconds |
//! | 28..36 | when it was sent |
//! | 36..n-4 | fill |
//! | n-4..n | CRC-32 of all before |
//!
//! Numbers are big-endian. It knows nothing of channels and seats.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// Least bytes of a payload.
pub const SIZE_MIN: usize = FILL + CHECKSUM_LEN;

const FILL: usize = 36;
const CHECKSUM_LEN: usize = 4;
const SEQUENCE_MASK: u64 = (1 << 48) - 1;

/// Names a flow: one direction between two members of one session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowId {
    /// The session's place in the generator.
    pub place: u32,
    /// How many sessions that place has seen before.
    pub incarnation: u32,
    /// The sender's number in the session.
    pub from: u8,
    /// The receiver's.
    pub to: u8,
}

/// What is written into a payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// Whose it is.
    pub flow: FlowId,
    /// Its number within the flow, from 0.
    pub sequence: u64,
    /// When it was to be sent, nanoseconds of the run.
    pub intended_ns: u64,
    /// When it was sent, nanoseconds of the run.
    pub sent_ns: u64,
}

/// What is wrong with a payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Not the bytes that were sent.
    Corrupted,
    /// Whole, but for somebody else.
    Misdelivered,
}

/// Writes payloads into one buffer, again and again.
#[derive(Debug)]
pub struct PayloadWriter {
    bytes: Vec<u8>,
}

impl PayloadWriter {
    /// Payloads of up to `size_max` bytes (at least [`SIZE_MIN`]) of the run `run`, filled from `seed`.
    pub fn new(run: u32, size_max: usize, seed: u64) -> Self {
        let mut bytes = vec![0; size_max.max(SIZE_MIN)];
        StdRng::seed_from_u64(seed).fill_bytes(&mut bytes[FILL..]);
        bytes[..4].copy_from_slice(&run.to_be_bytes());
        Self { bytes }
    }

    /// The payload of `size` bytes for `stamp`.
    pub fn write(&mut self, stamp: &Stamp, size: usize) -> &[u8] {
        let bytes = &mut self.bytes[..size];
        bytes[4..8].copy_from_slice(&stamp.flow.place.to_be_bytes());
        bytes[8..12].copy_from_slice(&stamp.flow.incarnation.to_be_bytes());
        bytes[12] = stamp.flow.from;
        bytes[13] = stamp.flow.to;
        // 48 bits last a flow of a hundred million a second for a month.
        bytes[14..20].copy_from_slice(&stamp.sequence.to_be_bytes()[2..]);
        bytes[20..28].copy_from_slice(&stamp.intended_ns.to_be_bytes());
        bytes[28..FILL].copy_from_slice(&stamp.sent_ns.to_be_bytes());
        let (content, checksum) = bytes.split_at_mut(size - CHECKSUM_LEN);
        // A shorter payload's checksum was written over the fill of a longer one: that is as good a fill.
        checksum.copy_from_slice(&crc32fast::hash(content).to_be_bytes());
        bytes
    }
}

/// What a receiver holds a payload against.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// The run.
    pub run: u32,
    /// Bytes of every payload.
    pub size: usize,
    /// The flow that ends here and came from the sender that the relay named; `None` if no such flow is ours.
    pub flow: Option<FlowId>,
}

impl Expected {
    /// Reads a payload that has arrived.
    ///
    /// # Errors
    /// [`Fault::Corrupted`] before [`Fault::Misdelivered`]: what is not whole cannot say whose it is.
    pub fn read(&self, bytes: &[u8]) -> Result<Stamp, Fault> {
        let (content, checksum) = bytes.split_last_chunk().ok_or(Fault::Corrupted)?;
        if bytes.len() < SIZE_MIN || crc32fast::hash(content) != u32::from_be_bytes(*checksum) {
            return Err(Fault::Corrupted);
        }
        let u32_at = |at: usize| u32::from_be_bytes(content[at..at + 4].try_into().expect("4"));
        let u64_at = |at: usize| u64::from_be_bytes(content[at..at + 8].try_into().expect("8"));
        let stamp = Stamp {
            flow: FlowId {
                place: u32_at(4),
                incarnation: u32_at(8),
                from: content[12],
                to: content[13],
            },
            sequence: u64_at(12) & SEQUENCE_MASK,
            intended_ns: u64_at(20),
            sent_ns: u64_at(28),
        };
        if u32_at(0) != self.run || self.flow != Some(stamp.flow) {
            Err(Fault::Misdelivered)
        } else if bytes.len() != self.size {
            Err(Fault::Corrupted)
        } else {
            Ok(stamp)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOW: FlowId = FlowId {
        place: 77,
        incarnation: 3,
        from: 0,
        to: 1,
    };

    fn stamp() -> Stamp {
        Stamp {
            flow: FLOW,
            sequence: 9,
            intended_ns: 1 << 40,
            sent_ns: (1 << 40) + 5,
        }
    }

    fn expected() -> Expected {
        Expected {
            run: 5,
            size: 200,
            flow: Some(FLOW),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for size in [SIZE_MIN, 200, 1200] {
            let mut writer = PayloadWriter::new(5, size, 1);
            let bytes = writer.write(&stamp(), size);
            assert_eq!(bytes.len(), size);
            let expected = Expected { size, ..expected() };
            assert_eq!(expected.read(bytes), Ok(stamp()));
        }
    }

    #[test]
    fn payloads_of_different_sizes_take_turns() {
        let mut writer = PayloadWriter::new(5, 300, 1);
        for size in [300, SIZE_MIN, 299, 300, 100] {
            let bytes = writer.write(&stamp(), size);
            let expected = Expected { size, ..expected() };
            assert_eq!(expected.read(bytes), Ok(stamp()));
        }
    }

    #[test]
    fn every_flipped_bit_is_corruption() {
        let mut bytes = PayloadWriter::new(5, 200, 1).write(&stamp(), 200).to_vec();
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(expected().read(&bytes), Err(Fault::Corrupted), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn every_other_length_is_corruption() {
        let bytes = PayloadWriter::new(5, 200, 1).write(&stamp(), 200).to_vec();
        for len in 0..bytes.len() {
            assert_eq!(expected().read(&bytes[..len]), Err(Fault::Corrupted));
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(expected().read(&longer), Err(Fault::Corrupted));
        let whole_but_longer = PayloadWriter::new(5, 201, 1).write(&stamp(), 201).to_vec();
        assert_eq!(expected().read(&whole_but_longer), Err(Fault::Corrupted));
    }

    #[test]
    fn what_is_for_somebody_else_is_misdelivered() {
        let others = [
            FlowId { place: 78, ..FLOW },
            FlowId {
                incarnation: 2,
                ..FLOW
            },
            FlowId { from: 2, ..FLOW },
            FlowId { to: 2, ..FLOW },
        ];
        let mut writer = PayloadWriter::new(5, 200, 1);
        for flow in others {
            let bytes = writer.write(&Stamp { flow, ..stamp() }, 200);
            assert_eq!(expected().read(bytes), Err(Fault::Misdelivered), "{flow:?}");
        }
        let bytes = writer.write(&stamp(), 200);
        let nobody = Expected {
            flow: None,
            ..expected()
        };
        assert_eq!(nobody.read(bytes), Err(Fault::Misdelivered));
        let another_run = Expected {
            run: 6,
            ..expected()
        };
        assert_eq!(another_run.read(bytes), Err(Fault::Misdelivered));
    }
}
