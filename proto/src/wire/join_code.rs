//! Join codes: what one player reads to another over a voice chat.
//!
//! Thirty random bits as three syllables of consonant, vowel, consonant: `BAD-KIF-ROM`. No letter
//! can be taken for another one that may stand in its place, and what people type instead (lower case, blanks,
//! missing dashes, `0` for `O`) is read as meant.

use std::fmt;

use rand::{Rng, RngExt};

/// Sixteen consonants: without C and Q (K), W (V), Y, and Z (2).
const CONSONANTS: &[u8; 16] = b"BDFGHJKLMNPRSTVX";
/// Four vowels. `I` cannot be taken for `L` here, because the two never stand in the same place.
const VOWELS: &[u8; 4] = b"AEIO";
const SYLLABLES: u32 = 3;
const SYLLABLE_BITS: u32 = 10;
/// Syllables that read badly when a code is said aloud.
const UNSAID: [&[u8; 3]; 12] = [
    b"DIK", b"FAG", b"FAK", b"FOK", b"GAS", b"KOK", b"NIG", b"PIS", b"SEX", b"TIT", b"HOR", b"KAK",
];

/// A session's join code: 30 bits. The shard that owns the session is [`JoinCode::owner`].
///
/// ```
/// use waypost_proto::wire::join_code::JoinCode;
///
/// let code = JoinCode::parse(b"bad kif r0m").ok_or("no code")?;
/// assert_eq!(code.to_string(), "BAD-KIF-ROM");
/// # Ok::<(), &str>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JoinCode(u32);

impl JoinCode {
    /// Number of bits in a code.
    pub const BITS: u32 = SYLLABLES * SYLLABLE_BITS;

    /// The code with these bits; `None` above 30 bits.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Option<Self> {
        if bits < 1 << Self::BITS {
            Some(Self(bits))
        } else {
            None
        }
    }

    /// The thirty bits.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The shard, of `shard_count`, that owns the session with this code.
    #[must_use]
    pub fn owner(self, shard_count: u16) -> u16 {
        u16::try_from(self.0 % u32::from(shard_count)).expect("a remainder is below its divisor")
    }

    /// Draws a code owned by `shard`.
    pub fn random(rng: &mut impl Rng, shard: u16, shard_count: u16) -> Self {
        loop {
            let bits = rng.random::<u32>() >> (32 - Self::BITS);
            let owned = bits - bits % u32::from(shard_count) + u32::from(shard);
            if let Some(code) = Self::from_bits(owned)
                && !code
                    .letters()
                    .chunks(3)
                    .any(|syllable| UNSAID.iter().any(|unsaid| syllable == *unsaid))
            {
                return code;
            }
        }
    }

    fn letters(self) -> [u8; 9] {
        let mut letters = [0; 9];
        for (i, syllable) in letters.chunks_mut(3).enumerate() {
            let bits = self.0 >> (SYLLABLE_BITS * (SYLLABLES - 1 - i as u32));
            syllable[0] = CONSONANTS[(bits >> 6 & 15) as usize];
            syllable[1] = VOWELS[(bits >> 4 & 3) as usize];
            syllable[2] = CONSONANTS[(bits & 15) as usize];
        }
        letters
    }

    /// Reads what a person typed: any case, dashes and blanks anywhere, `0` as `O`, `1` as the letter that fits its place.
    /// `None` if it is not a code.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        if text.len() > 32 {
            return None;
        }
        let mut bits = 0u32;
        let mut place = 0;
        for &byte in text {
            if matches!(byte, b'-' | b' ' | b'_' | b'.') {
                continue;
            }
            let letter = byte.to_ascii_uppercase();
            let is_vowel = place % 3 == 1;
            let index = match (is_vowel, letter) {
                (true, b'0') => VOWELS.iter().position(|&v| v == b'O'),
                (true, b'1' | b'L') => VOWELS.iter().position(|&v| v == b'I'),
                (true, _) => VOWELS.iter().position(|&v| v == letter),
                (false, b'1' | b'I') => CONSONANTS.iter().position(|&c| c == b'L'),
                (false, _) => CONSONANTS.iter().position(|&c| c == letter),
            }?;
            bits = bits << if is_vowel { 2 } else { 4 } | u32::try_from(index).ok()?;
            place += 1;
            if place > 9 {
                return None;
            }
        }
        if place == 9 {
            Self::from_bits(bits)
        } else {
            None
        }
    }
}

impl fmt::Display for JoinCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters = self.letters();
        for (i, &letter) in letters.iter().enumerate() {
            if i > 0 && i % 3 == 0 {
                f.write_str("-")?;
            }
            write!(f, "{}", letter as char)?;
        }
        Ok(())
    }
}

impl fmt::Debug for JoinCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for JoinCode {
    type Err = NotACode;

    fn from_str(text: &str) -> Result<Self, NotACode> {
        Self::parse(text.as_bytes()).ok_or(NotACode)
    }
}

/// The text is not a join code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotACode;

impl fmt::Display for NotACode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a join code is nine letters like BAD-KIF-ROM; check for a missing letter")
    }
}

impl std::error::Error for NotACode {}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    #[test]
    fn text_round_trip_and_owner() {
        let mut rng = StdRng::seed_from_u64(1);
        for shards in [1u16, 2, 3, 7, 64] {
            for shard in 0..shards {
                let code = JoinCode::random(&mut rng, shard, shards);
                assert_eq!(code.owner(shards), shard);
                let text = code.to_string();
                assert_eq!(text.len(), 11);
                assert_eq!(text.parse::<JoinCode>(), Ok(code));
                let sloppy = text.to_lowercase().replace('-', " ").replace('o', "0");
                assert_eq!(sloppy.parse::<JoinCode>(), Ok(code));
            }
        }
    }

    #[test]
    fn rejects_what_is_no_code() {
        for text in [
            "",
            "BAD",
            "BADKIFROMA",
            "BBD-KIF-ROM",
            "BAD-KIF-RO",
            "BAD-KIF-RO\u{e9}",
        ] {
            assert_eq!(text.parse::<JoinCode>(), Err(NotACode), "{text}");
        }
        assert_eq!(JoinCode::from_bits(1 << 30), None);
    }
}
