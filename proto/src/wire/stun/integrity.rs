//! MESSAGE-INTEGRITY, MESSAGE-INTEGRITY-SHA256, FINGERPRINT and the long-term key (RFC 8489 sections 14.5 to 14.7 and
//! 18.5.1). Every comparison of a secret is in constant time.

use subtle::ConstantTimeEq;

use super::{HEADER_LEN, Message, attr};
use crate::wire::digest::{self, HmacSha1Key};

/// XORed onto the CRC so that it cannot be mistaken for another protocol's (RFC 8489 section 14.7).
pub(super) const FINGERPRINT_XOR: u32 = 0x5354_554e;

/// Which integrity attribute a message carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Integrity {
    /// MESSAGE-INTEGRITY: HMAC-SHA1, 20 bytes.
    Sha1,
    /// MESSAGE-INTEGRITY-SHA256 of 32 bytes.
    Sha256,
    /// MESSAGE-INTEGRITY-SHA256 truncated to 16 bytes, as this project's own methods use it (RFC 8489 section 14.6
    /// lets a usage allow that).
    Sha256Truncated,
}

impl Integrity {
    /// The attribute type.
    #[must_use]
    pub const fn kind(self) -> u16 {
        match self {
            Self::Sha1 => attr::MESSAGE_INTEGRITY,
            Self::Sha256 | Self::Sha256Truncated => attr::MESSAGE_INTEGRITY_SHA256,
        }
    }

    /// Bytes of the attribute's value.
    #[must_use]
    pub const fn value_len(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha256Truncated => 16,
        }
    }

    /// The code over `before`, the message up to the integrity attribute, with its length field as if it ended with it.
    pub(super) fn compute(self, key: IntegrityKey<'_>, before: &[u8]) -> [u8; 32] {
        let with = before.len() - HEADER_LEN + 4 + self.value_len();
        let len = u16::try_from(with)
            .expect("a message is shorter than 64 KiB")
            .to_be_bytes();
        let parts = [&before[..2], &len, &before[4..]];
        let mut out = [0; 32];
        match self {
            Self::Sha1 => out[..20].copy_from_slice(&match key {
                IntegrityKey::Bytes(key) => digest::hmac_sha1(key, &parts),
                IntegrityKey::LongTerm(key) => key.mac.mac(&parts),
            }),
            Self::Sha256 | Self::Sha256Truncated => {
                out = digest::hmac_sha256(key.as_bytes(), &parts);
            }
        }
        out
    }
}

/// What an integrity attribute is keyed with.
#[derive(Clone, Copy)]
pub enum IntegrityKey<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// A user's, which is ready for use.
    LongTerm(&'a LongTermKey),
}

impl IntegrityKey<'_> {
    const fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::LongTerm(key) => key.as_bytes(),
        }
    }
}

impl<'a> From<&'a [u8]> for IntegrityKey<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Bytes(bytes)
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for IntegrityKey<'a> {
    fn from(bytes: &'a [u8; N]) -> Self {
        Self::Bytes(bytes)
    }
}

impl<'a> From<&'a LongTermKey> for IntegrityKey<'a> {
    fn from(key: &'a LongTermKey) -> Self {
        Self::LongTerm(key)
    }
}

impl Message<'_> {
    /// Whether the message carries this integrity attribute and it fits `key`.
    #[must_use]
    pub fn verify_integrity<'k>(
        &self,
        integrity: Integrity,
        key: impl Into<IntegrityKey<'k>>,
    ) -> bool {
        let Some(attribute) = self
            .attributes()
            .find(|attribute| attribute.kind == integrity.kind())
        else {
            return false;
        };
        if attribute.value.len() != integrity.value_len() {
            return false;
        }
        let expected = integrity.compute(key.into(), &self.bytes()[..HEADER_LEN + attribute.at]);
        expected[..integrity.value_len()]
            .ct_eq(attribute.value)
            .into()
    }
}

/// The key of the long-term credential mechanism (RFC 8489 section 18.5.1).
#[derive(Clone)]
pub struct LongTermKey {
    bytes: [u8; 32],
    len: usize,
    mac: HmacSha1Key,
}

impl LongTermKey {
    fn new(key: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes[..key.len()].copy_from_slice(key);
        Self {
            bytes,
            len: key.len(),
            mac: HmacSha1Key::new(key),
        }
    }

    /// MD5(username ":" realm ":" password). The arguments are already prepared (OpaqueString, RFC 8265).
    #[cfg(any(feature = "server", test))]
    #[must_use]
    pub fn md5(username: &str, realm: &str, password: &str) -> Self {
        use md5::Digest;
        let mut hash = md5::Md5::new();
        for part in [username, ":", realm, ":", password] {
            hash.update(part);
        }
        Self::new(&hash.finalize())
    }

    /// SHA-256(username ":" realm ":" password).
    #[must_use]
    pub fn sha256(username: &str, realm: &str, password: &str) -> Self {
        let parts = [username, ":", realm, ":", password].map(str::as_bytes);
        Self::new(&digest::sha256(&parts))
    }

    /// The bytes to key the HMAC with.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8] {
        self.bytes.split_at(self.len).0
    }
}

impl PartialEq for LongTermKey {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes().ct_eq(other.as_bytes()).into()
    }
}

impl Eq for LongTermKey {}

const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 {
                crc >> 1 ^ 0xedb8_8320
            } else {
                crc >> 1
            };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

/// CRC-32 of ITU V.42, which FINGERPRINT uses.
#[must_use]
pub fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        crc >> 8 ^ CRC_TABLE[(crc as u8 ^ byte) as usize]
    })
}
