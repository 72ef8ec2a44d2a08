//! The hash functions of the protocols, each over the parts of one text. The server computes them with the processor's own
//! instructions; a client, which needs few of them, by crates that bring none along.

#[cfg(feature = "server")]
mod functions {
    use hmac::{Hmac, KeyInit, Mac};
    use sha1::Sha1;
    use sha2::{Digest, Sha256};

    /// SHA-256 (FIPS 180-4).
    pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
        let mut hash = Sha256::new();
        parts.iter().for_each(|part| hash.update(part));
        hash.finalize().into()
    }

    /// HMAC-SHA256 (RFC 2104).
    pub fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
        parts.iter().for_each(|part| mac.update(part));
        mac.finalize().into_bytes().into()
    }

    /// A key of HMAC-SHA1 (RFC 2104), taken in once for all texts.
    #[derive(Clone)]
    pub struct HmacSha1Key(Hmac<Sha1>);

    impl HmacSha1Key {
        pub fn new(key: &[u8]) -> Self {
            let mac = Hmac::new_from_slice(key).expect("HMAC takes keys of any length");
            Self(mac)
        }

        pub fn mac(&self, parts: &[&[u8]]) -> [u8; 20] {
            let mut mac = self.0.clone();
            parts.iter().for_each(|part| mac.update(part));
            mac.finalize().into_bytes().into()
        }
    }
}

#[cfg(not(feature = "server"))]
mod functions {
    /// SHA-256 (FIPS 180-4).
    pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
        let mut hash = hmac_sha256::Hash::new();
        parts.iter().for_each(|part| hash.update(part));
        hash.finalize()
    }

    /// HMAC-SHA256 (RFC 2104).
    pub fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
        let mut mac = hmac_sha256::HMAC::new(key);
        parts.iter().for_each(|part| mac.update(part));
        mac.finalize()
    }

    /// A key of HMAC-SHA1 (RFC 2104).
    #[derive(Clone)]
    pub struct HmacSha1Key(Box<[u8]>);

    impl HmacSha1Key {
        pub fn new(key: &[u8]) -> Self {
            Self(key.into())
        }

        pub fn mac(&self, parts: &[&[u8]]) -> [u8; 20] {
            hmac_sha1_compact::HMAC::mac(&parts.concat(), &self.0)
        }
    }
}

pub(crate) use functions::{HmacSha1Key, hmac_sha256, sha256};

/// HMAC-SHA1 (RFC 2104).
pub(crate) fn hmac_sha1(key: &[u8], parts: &[&[u8]]) -> [u8; 20] {
    HmacSha1Key::new(key).mac(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn published_vectors() {
        // RFC 2202 section 3 and RFC 4231 section 4, test case 2; FIPS 180-4's "abc".
        let text: [&[u8]; 2] = [b"what do ya want ", b"for nothing?"];
        assert_eq!(
            hex(&hmac_sha1(b"Jefe", &text)),
            "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"
        );
        assert_eq!(
            hex(&hmac_sha256(b"Jefe", &text)),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert_eq!(
            hex(&sha256(&[b"a", b"bc"])),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        // A key longer than a block (RFC 4231 section 4.7, RFC 2202 test case 6).
        let text: [&[u8]; 1] = [b"Test Using Larger Than Block-Size Key - Hash Key First"];
        assert_eq!(
            hex(&hmac_sha256(&[0xaa; 131], &text)),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
        );
        assert_eq!(
            hex(&hmac_sha1(&[0xaa; 80], &text)),
            "aa4ae5e15272d00e95705637ce8a3b55ed402112"
        );
    }
}
