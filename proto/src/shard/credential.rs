//! Who may use the rendezvous: everybody, or those to whom the operator's backend gave a credential.
//!
//! A credential is USERNAME `expiry:user` with the password base64(HMAC-SHA1(secret, username)), as for TURN
//! (draft-uberti-behave-turn-rest). It is checked without state, before anything else of a request is.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::wire::digest::hmac_sha1;
use crate::wire::native::{Fields, method};
use crate::wire::stun::{Integrity, Message};

/// Who may host, join, match and list.
#[derive(Clone, Default)]
pub enum RendezvousAccess {
    /// Everybody.
    #[default]
    Open,
    /// Bearers of a credential under one of these secrets, of which two may be live during a rotation.
    Credential(Vec<Box<[u8]>>),
}

impl std::fmt::Debug for RendezvousAccess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Open => "Open",
            Self::Credential(_) => "Credential(..)",
        })
    }
}

/// The password of a time-limited username under `secret`.
#[must_use]
pub fn time_limited_password(secret: &[u8], username: &str) -> String {
    STANDARD.encode(hmac_sha1(secret, &[username.as_bytes()]))
}

impl RendezvousAccess {
    /// Whether this request may be served. Requests from a seat and tickets are credentials of their own.
    pub(super) fn admits(
        &self,
        unix_secs: u64,
        message: &Message<'_>,
        fields: &Fields<'_>,
    ) -> bool {
        let Self::Credential(secrets) = self else {
            return true;
        };
        if method::is_seated(message.method()) || message.method() == method::RESUME {
            return true;
        }
        let Some(username) = fields.username else {
            return false;
        };
        let expiry = username.split(':').next().unwrap_or("").parse::<u64>();
        let live = expiry.is_ok_and(|expiry| expiry > unix_secs);
        live && secrets.iter().any(|secret| {
            let password = time_limited_password(secret, username);
            message.verify_integrity(Integrity::Sha1, password.as_bytes())
        })
    }
}
