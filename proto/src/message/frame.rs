//! The bytes of messages on a link: what a datagram in a session with messages is, and a frame's header and chunks. Never keeps
//! anything.
//!
//! The layout is in `docs/protocol.md`, section "Messages".

use crate::agent::DATAGRAM_MAX;

/// First byte of a datagram of the application's own.
pub const RAW: u8 = 0;
/// First byte of a frame of messages.
pub const FRAME: u8 = 1;

/// Bytes of a frame before its chunks.
pub const HEADER_LEN: usize = 24;
/// Bytes of a chunk before its content.
const CHUNK_HEAD_LEN: usize = 4;
/// Bytes of a DATA chunk before the data.
pub const DATA_HEAD_LEN: usize = CHUNK_HEAD_LEN + 12;
/// Bytes of a PING or PONG chunk.
pub const PING_LEN: usize = CHUNK_HEAD_LEN + 4;
/// Most data in one fragment: a frame with one DATA chunk fills a datagram.
pub const FRAGMENT_MAX: usize = DATAGRAM_MAX - HEADER_LEN - DATA_HEAD_LEN;
/// Most fragments of one message.
pub const FRAGMENTS_MAX: u8 = 64;

mod kind {
    pub const DATA: u8 = 1;
    pub const PING: u8 = 2;
    pub const PONG: u8 = 3;
}

mod flag {
    pub const RELIABLE: u8 = 1;
    pub const ORDERED: u8 = 2;
    pub const VOID: u8 = 4;
}

/// What every frame says first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// How many fragments after `cumulative` the sender of the frame takes.
    pub window: u16,
    /// The receiver's tag, 0 if the sender does not know it.
    pub to: u32,
    /// The sender's tag, never 0.
    pub from: u32,
    /// All reliable fragments up to this number have arrived at the sender.
    pub cumulative: u32,
    /// Bit i: fragment `cumulative` + 1 + i has arrived too.
    pub received: u64,
}

/// A fragment of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Data<'a> {
    /// Whether it is acknowledged and sent again.
    pub reliable: bool,
    /// Whether the message keeps its place among the sender's other ordered messages of the same reliability.
    pub ordered: bool,
    /// The message has expired: the fragment counts as arrived and the message is not delivered.
    pub void: bool,
    /// The message, counted by the sender from 1.
    pub message: u32,
    /// The fragment, counted from 1 over all reliable fragments; 0 if it is not reliable.
    pub number: u32,
    /// Which fragment of the message this is.
    pub index: u8,
    /// How many there are.
    pub count: u8,
    /// The message's place among the reliable ordered ones, counted from 0; else 0.
    pub order: u16,
    /// The fragment's content.
    pub bytes: &'a [u8],
}

/// A part of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Chunk<'a> {
    /// A fragment of a message.
    Data(Data<'a>),
    /// Wants a `Pong` with the same number.
    Ping(u32),
    /// Answers a `Ping`.
    Pong(u32),
}

/// Reads the header and returns it with the chunks. `None` if this is no frame.
#[must_use]
pub fn parse(datagram: &[u8]) -> Option<(Header, Chunks<'_>)> {
    let (head, rest) = datagram.split_first_chunk::<HEADER_LEN>()?;
    let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    if head[0] != FRAME || head[1] != 0 {
        return None;
    }
    let header = Header {
        window: u16::from_be_bytes([head[2], head[3]]),
        to: word(4),
        from: word(8),
        cumulative: word(12),
        received: u64::from(word(16)) << 32 | u64::from(word(20)),
    };
    (header.from != 0).then_some((
        header,
        Chunks {
            rest,
            malformed: false,
        },
    ))
}

/// The chunks of a frame. Ends early at the first one that is malformed; passes over those of an unknown kind.
#[derive(Clone, Debug)]
pub struct Chunks<'a> {
    rest: &'a [u8],
    malformed: bool,
}

impl<'a> Chunks<'a> {
    /// Whether it ended early.
    #[must_use]
    pub const fn is_malformed(&self) -> bool {
        self.malformed
    }

    fn read(&mut self) -> Option<Option<Chunk<'a>>> {
        let (head, rest) = self.rest.split_first_chunk::<CHUNK_HEAD_LEN>()?;
        let len = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let (content, rest) = rest.split_at_checked(len)?;
        self.rest = rest;
        let number = || content.try_into().ok().map(u32::from_be_bytes);
        Some(match head[0] {
            kind::DATA => Some(Chunk::Data(data(head[1], content)?)),
            kind::PING => Some(Chunk::Ping(number()?)),
            kind::PONG => Some(Chunk::Pong(number()?)),
            _ => None,
        })
    }
}

fn data(flags: u8, content: &[u8]) -> Option<Data<'_>> {
    let (head, bytes) = content.split_first_chunk::<{ DATA_HEAD_LEN - CHUNK_HEAD_LEN }>()?;
    let [m0, m1, m2, m3, n0, n1, n2, n3, index, count, o0, o1] = *head;
    let data = Data {
        reliable: flags & flag::RELIABLE != 0,
        ordered: flags & flag::ORDERED != 0,
        void: flags & flag::VOID != 0,
        message: u32::from_be_bytes([m0, m1, m2, m3]),
        number: u32::from_be_bytes([n0, n1, n2, n3]),
        index,
        count,
        order: u16::from_be_bytes([o0, o1]),
        bytes,
    };
    let sound = index < count && count <= FRAGMENTS_MAX && bytes.len() <= FRAGMENT_MAX;
    sound.then_some(data)
}

impl<'a> Iterator for Chunks<'a> {
    type Item = Chunk<'a>;

    fn next(&mut self) -> Option<Chunk<'a>> {
        while !self.rest.is_empty() {
            match self.read() {
                Some(Some(chunk)) => return Some(chunk),
                Some(None) => {}
                None => {
                    self.malformed = true;
                    self.rest = &[];
                }
            }
        }
        None
    }
}

/// Begins a frame in `out`, replacing what is there.
pub fn begin(out: &mut Vec<u8>, header: &Header) {
    out.clear();
    out.extend_from_slice(&[FRAME, 0]);
    out.extend_from_slice(&header.window.to_be_bytes());
    for word in [header.to, header.from, header.cumulative] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    out.extend_from_slice(&header.received.to_be_bytes());
}

/// Appends a chunk to a frame.
pub fn push(out: &mut Vec<u8>, chunk: &Chunk<'_>) {
    let mut head = |kind: u8, flags: u8, len: usize| {
        let len = u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes();
        out.extend_from_slice(&[kind, flags, len[0], len[1]]);
    };
    match *chunk {
        Chunk::Data(data) => {
            let bit = |on, bit| if on { bit } else { 0 };
            let flags = bit(data.reliable, flag::RELIABLE)
                | bit(data.ordered, flag::ORDERED)
                | bit(data.void, flag::VOID);
            head(
                kind::DATA,
                flags,
                DATA_HEAD_LEN - CHUNK_HEAD_LEN + data.bytes.len(),
            );
            out.extend_from_slice(&data.message.to_be_bytes());
            out.extend_from_slice(&data.number.to_be_bytes());
            out.extend_from_slice(&[data.index, data.count]);
            out.extend_from_slice(&data.order.to_be_bytes());
            out.extend_from_slice(data.bytes);
        }
        Chunk::Ping(number) => {
            head(kind::PING, 0, 4);
            out.extend_from_slice(&number.to_be_bytes());
        }
        Chunk::Pong(number) => {
            head(kind::PONG, 0, 4);
            out.extend_from_slice(&number.to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(name: &str) -> Vec<u8> {
        let path = format!("{}/testdata/message/{name}.hex", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        let digits: String = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .flat_map(str::chars)
            .filter(char::is_ascii_hexdigit)
            .collect();
        (0..digits.len() / 2)
            .map(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).unwrap())
            .collect()
    }

    const HEADER: Header = Header {
        window: 64,
        to: 0x1122_3344,
        from: 0xaabb_ccdd,
        cumulative: 7,
        received: 0b110,
    };

    #[test]
    fn the_published_vectors() {
        let hello = Header {
            window: 64,
            to: 0,
            from: 0xaabb_ccdd,
            cumulative: 0,
            received: 0,
        };
        let ordered = Data {
            reliable: true,
            ordered: true,
            void: false,
            message: 3,
            number: 8,
            index: 0,
            count: 1,
            order: 2,
            bytes: b"hello",
        };
        let void = Data {
            void: true,
            number: 9,
            message: 4,
            order: 3,
            bytes: b"",
            ..ordered
        };
        let unreliable = Data {
            reliable: false,
            ordered: false,
            message: 5,
            number: 0,
            order: 0,
            bytes: b"!",
            ..ordered
        };
        for (name, header, chunks) in [
            ("hello", hello, vec![Chunk::Ping(1_000)]),
            ("acknowledgement", HEADER, vec![Chunk::Pong(1_000)]),
            (
                "data",
                HEADER,
                vec![
                    Chunk::Data(ordered),
                    Chunk::Data(void),
                    Chunk::Data(unreliable),
                ],
            ),
        ] {
            let mut out = Vec::new();
            begin(&mut out, &header);
            chunks.iter().for_each(|chunk| push(&mut out, chunk));
            assert_eq!(out, vector(name), "{name}: {out:02x?}");
            let (read, rest) = parse(&out).unwrap();
            assert_eq!((read, rest.collect::<Vec<_>>()), (header, chunks), "{name}");
        }
    }

    #[test]
    fn unknown_chunks_are_passed_over_and_malformed_ones_end_the_frame() {
        let mut out = Vec::new();
        begin(&mut out, &HEADER);
        out.extend_from_slice(&[200, 0, 0, 1, 9]);
        push(&mut out, &Chunk::Ping(5));
        let mut chunks = parse(&out).unwrap().1;
        assert_eq!(chunks.by_ref().collect::<Vec<_>>(), [Chunk::Ping(5)]);
        assert!(!chunks.is_malformed());
        out.extend_from_slice(&[2, 0, 0, 3, 0, 0, 0]);
        push(&mut out, &Chunk::Ping(6));
        let mut chunks = parse(&out).unwrap().1;
        assert_eq!(chunks.by_ref().count(), 1);
        assert!(chunks.is_malformed());
        assert!(parse(&out[..23]).is_none());
    }
}
