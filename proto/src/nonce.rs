//! Stateless nonces: proof that a source receives what is sent to its address, without a byte kept per source.
//!
//! A nonce is eight hex digits of Unix seconds and sixteen of SipHash-2-4 over time and address (the construction of
//! RFC 9018 for DNS cookies); for TURN the same twelve bytes in base64 behind the nonce cookie of RFC 8489 section 9.2,
//! which says what this server understands and so protects against bidding down. The key is derived from the server's secret and the hour, so keys rotate by themselves, a
//! nonce is good across a restart and on every node that shares the secret, and a rotation drops nobody.

use std::hash::Hasher;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use siphasher::sip::SipHasher24;
use subtle::ConstantTimeEq;

use crate::addr::{ClientAddr, ProvenAddr};
use crate::wire::digest::hmac_sha256;
use crate::wire::native::{NONCE_LEN, first_16};

/// Seconds for which a nonce is accepted.
pub const NONCE_MAX_AGE_SECS: u64 = 600;
/// Seconds that a nonce may come from the future, for nodes whose clocks differ.
const FUTURE_SKEW_SECS: u64 = 5;
/// Seconds for which one key signs.
const KEY_PERIOD_SECS: u64 = 3600;

/// The nonce cookie and the security features, password algorithms and user-name anonymity: bits 0 and 1 from the most
/// significant end of 24 (RFC 8489 sections 9.2 and 18.1).
const TURN_PREFIX: &[u8; 13] = b"obMatJos2wAAA";
/// Bytes of a nonce for TURN.
pub const TURN_NONCE_LEN: usize = TURN_PREFIX.len() + 16;

/// The server's long-lived secret, from which every key is derived. Debug output hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerSecret(pub [u8; 32]);

impl std::fmt::Debug for ServerSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerSecret(..)")
    }
}

impl ServerSecret {
    /// HMAC-SHA256 of `parts` under this secret, cut to 16 bytes.
    #[must_use]
    pub fn derive(&self, parts: &[&[u8]]) -> [u8; 16] {
        first_16(&hmac_sha256(&self.0, parts))
    }
}

/// Why a nonce was refused; the client gets a new one with error 438 (RFC 8489 section 9.2.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StaleNonce;

/// Issues and verifies nonces.
pub struct NonceKeys {
    /// The secret that signs, then the one before it, which is still accepted.
    secrets: [Option<ServerSecret>; 2],
    /// Derived keys that were used last: which secret, which period, key. Two of each survive a change of the hour.
    derived: [(usize, u64, [u8; 16]); 4],
    next_derived: usize,
}

impl NonceKeys {
    /// Keys under one secret.
    #[must_use]
    pub fn new(secret: ServerSecret) -> Self {
        Self {
            secrets: [Some(secret), None],
            derived: [(usize::MAX, 0, [0; 16]); 4],
            next_derived: 0,
        }
    }

    /// Signs with `secret` from now on and goes on accepting what the previous one signed.
    pub fn rotate(&mut self, secret: ServerSecret) {
        self.secrets = [Some(secret), self.secrets[0].take()];
        self.derived = [(usize::MAX, 0, [0; 16]); 4];
    }

    /// A nonce for `addr` at `unix_secs`.
    pub fn issue(&mut self, unix_secs: u64, addr: ClientAddr) -> [u8; NONCE_LEN] {
        let mut nonce = [0; NONCE_LEN];
        let stamp = self.stamp(unix_secs, addr);
        for (digits, byte) in nonce.chunks_exact_mut(2).zip(stamp) {
            digits[0] = HEX[usize::from(byte >> 4)];
            digits[1] = HEX[usize::from(byte & 15)];
        }
        nonce
    }

    /// A nonce for TURN, as [`NonceKeys::issue`].
    pub fn issue_turn(&mut self, unix_secs: u64, addr: ClientAddr) -> [u8; TURN_NONCE_LEN] {
        let mut nonce = [0; TURN_NONCE_LEN];
        nonce[..TURN_PREFIX.len()].copy_from_slice(TURN_PREFIX);
        STANDARD_NO_PAD
            .encode_slice(self.stamp(unix_secs, addr), &mut nonce[TURN_PREFIX.len()..])
            .expect("twelve bytes are sixteen letters");
        nonce
    }

    /// Accepts a nonce that this server, or one with the same secret, issued to `addr` not long ago.
    ///
    /// # Errors
    /// [`StaleNonce`] if it is malformed, too old, or was issued to another address.
    pub fn verify(
        &mut self,
        unix_secs: u64,
        addr: ClientAddr,
        nonce: &[u8],
    ) -> Result<ProvenAddr, StaleNonce> {
        let nonce: &[u8; NONCE_LEN] = nonce.try_into().map_err(|_| StaleNonce)?;
        let mut stamp = [0; 12];
        for (byte, digits) in stamp.iter_mut().zip(nonce.chunks_exact(2)) {
            *byte = hex_value(digits[0])? << 4 | hex_value(digits[1])?;
        }
        self.verify_stamp(unix_secs, addr, stamp)
    }

    /// As [`NonceKeys::verify`], for a nonce of [`NonceKeys::issue_turn`]. One whose features somebody changed is stale.
    ///
    /// # Errors
    /// As [`NonceKeys::verify`].
    pub fn verify_turn(
        &mut self,
        unix_secs: u64,
        addr: ClientAddr,
        nonce: &[u8],
    ) -> Result<ProvenAddr, StaleNonce> {
        let letters = nonce.strip_prefix(TURN_PREFIX).ok_or(StaleNonce)?;
        let mut stamp = [0; 12];
        match STANDARD_NO_PAD.decode_slice(letters, &mut stamp) {
            Ok(12) => self.verify_stamp(unix_secs, addr, stamp),
            _ => Err(StaleNonce),
        }
    }

    /// Four bytes of time and eight of hash.
    fn stamp(&mut self, unix_secs: u64, addr: ClientAddr) -> [u8; 12] {
        let mac = self
            .mac(0, unix_secs, addr)
            .expect("there is always a signing secret");
        let mut stamp = [0; 12];
        stamp[..4].copy_from_slice(&(unix_secs as u32).to_be_bytes());
        stamp[4..].copy_from_slice(&mac.to_be_bytes());
        stamp
    }

    fn verify_stamp(
        &mut self,
        unix_secs: u64,
        addr: ClientAddr,
        stamp: [u8; 12],
    ) -> Result<ProvenAddr, StaleNonce> {
        let (low, mac) = stamp.split_first_chunk::<4>().ok_or(StaleNonce)?;
        let low = u32::from_be_bytes(*low);
        let mac = u64::from_be_bytes(mac.try_into().map_err(|_| StaleNonce)?);
        // 32 bits of seconds are completed to the time that is nearest to now.
        let issued =
            unix_secs.wrapping_add(low.wrapping_sub(unix_secs as u32).cast_signed() as i64 as u64);
        let age_ok = if issued > unix_secs {
            issued - unix_secs <= FUTURE_SKEW_SECS
        } else {
            unix_secs - issued <= NONCE_MAX_AGE_SECS
        };
        let known = |keys: &mut Self, which| {
            let known = keys.mac(which, issued, addr);
            known.is_some_and(|known| known.ct_eq(&mac).into())
        };
        if age_ok && (known(self, 0) || known(self, 1)) {
            Ok(ProvenAddr::vouch(addr))
        } else {
            Err(StaleNonce)
        }
    }

    fn mac(&mut self, which: usize, unix_secs: u64, addr: ClientAddr) -> Option<u64> {
        let key = self.key(which, unix_secs / KEY_PERIOD_SECS)?;
        let mut hasher = SipHasher24::new_with_key(&key);
        hasher.write(&(unix_secs as u32).to_be_bytes());
        hasher.write(addr.0.ip_bytes());
        hasher.write(&addr.0.port().to_be_bytes());
        Some(hasher.finish())
    }

    fn key(&mut self, which: usize, period: u64) -> Option<[u8; 16]> {
        if let Some(&(_, _, key)) = self
            .derived
            .iter()
            .find(|&&(w, p, _)| w == which && p == period)
        {
            return Some(key);
        }
        let key = self.secrets[which]
            .as_ref()?
            .derive(&[b"nonce", &period.to_be_bytes()]);
        self.derived[self.next_derived] = (which, period, key);
        self.next_derived = (self.next_derived + 1) % self.derived.len();
        Some(key)
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

fn hex_value(digit: u8) -> Result<u8, StaleNonce> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(StaleNonce),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Addr;

    fn client(text: &str) -> ClientAddr {
        ClientAddr(Addr::new(text.parse().unwrap()))
    }

    #[test]
    fn bound_to_address_and_time() {
        let mut keys = NonceKeys::new(ServerSecret([7; 32]));
        let a = client("192.0.2.1:1000");
        let nonce = keys.issue(1_700_000_000, a);
        assert!(keys.verify(1_700_000_000, a, &nonce).is_ok());
        assert!(keys.verify(1_700_000_600, a, &nonce).is_ok());
        assert!(keys.verify(1_700_000_601, a, &nonce).is_err());
        assert!(keys.verify(1_699_999_995, a, &nonce).is_ok());
        assert!(keys.verify(1_699_999_994, a, &nonce).is_err());
        for other in ["192.0.2.1:1001", "192.0.2.2:1000", "[2001:db8::1]:1000"] {
            assert!(keys.verify(1_700_000_000, client(other), &nonce).is_err());
        }
        for i in 0..nonce.len() {
            let mut bad = nonce;
            bad[i] = if bad[i] == b'0' { b'1' } else { b'0' };
            assert!(keys.verify(1_700_000_000, a, &bad).is_err(), "digit {i}");
        }
        assert!(keys.verify(1_700_000_000, a, &nonce[..23]).is_err());
    }

    #[test]
    fn a_turn_nonce_is_no_native_one_and_its_features_are_fixed() {
        let mut keys = NonceKeys::new(ServerSecret([7; 32]));
        let a = client("192.0.2.1:1000");
        let nonce = keys.issue_turn(1_700_000_000, a);
        assert!(keys.verify_turn(1_700_000_600, a, &nonce).is_ok());
        assert!(keys.verify_turn(1_700_000_601, a, &nonce).is_err());
        assert!(keys.verify(1_700_000_000, a, &nonce).is_err());
        let native = keys.issue(1_700_000_000, a);
        assert!(keys.verify_turn(1_700_000_000, a, &native).is_err());
        let other = client("192.0.2.1:1001");
        assert!(keys.verify_turn(1_700_000_000, other, &nonce).is_err());
        for i in 0..nonce.len() {
            let mut bad = nonce;
            bad[i] = if bad[i] == b'A' { b'B' } else { b'A' };
            assert!(keys.verify_turn(1_700_000_000, a, &bad).is_err(), "{i}");
            assert!(keys.verify_turn(1_700_000_000, a, &nonce[..i]).is_err());
        }
    }

    #[test]
    fn rotation_drops_nobody() {
        let a = client("[2001:db8::1]:5");
        let mut keys = NonceKeys::new(ServerSecret([1; 32]));
        // Across the hour at which the derived key changes.
        let before = keys.issue(7199, a);
        assert!(keys.verify(7201, a, &before).is_ok());
        // Across a change of the secret; not across two.
        keys.rotate(ServerSecret([2; 32]));
        assert!(keys.verify(7201, a, &before).is_ok());
        let after = keys.issue(7201, a);
        assert!(keys.verify(7202, a, &after).is_ok());
        keys.rotate(ServerSecret([3; 32]));
        assert!(keys.verify(7202, a, &before).is_err());
        assert!(keys.verify(7202, a, &after).is_ok());
        // Another process with the same secret.
        let mut other = NonceKeys::new(ServerSecret([3; 32]));
        assert!(other.verify(7202, a, &keys.issue(7202, a)).is_ok());
    }
}
