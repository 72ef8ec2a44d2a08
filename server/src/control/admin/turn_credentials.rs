//! Time-limited TURN credentials (draft-uberti-behave-turn-rest), and the list of ICE servers with one that browsers take
//! as it is (`RTCConfiguration.iceServers`). Keeps nothing of what it hands out.

use std::sync::{PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use waypost_proto::shard::time_limited_password;

use super::{AdminError, rendezvous::invalid};
use crate::control::secret::Secret;

/// How long a credential is good unless the request says, in seconds.
const TTL_SECS: u32 = 86_400;
/// How long it may be good, in seconds: a year, as with `gen-credential`.
const TTL_SECS_MAX: u32 = 31_536_000;
/// Longest name, in bytes: with the expiry before it, it is still a USERNAME (RFC 8489 section 14.3).
const USER_BYTES_MAX: usize = 256;

/// A name and its password.
#[derive(Clone, Debug, Serialize)]
pub struct TurnCredential {
    /// `expiry:user`.
    pub username: String,
    /// The password.
    pub credential: String,
}

impl TurnCredential {
    /// A credential for `user` that is good until `expires_unix_secs`.
    pub fn new(secret: &Secret, user: &str, expires_unix_secs: u64) -> Self {
        let username = format!("{expires_unix_secs}:{user}");
        let credential = time_limited_password(secret.expose(), &username);
        Self {
            username,
            credential,
        }
    }
}

/// Makes lists of ICE servers.
pub struct TurnIssuer {
    /// The first signs.
    secrets: RwLock<Vec<Secret>>,
    urls: Vec<String>,
}

/// `POST /v1/turn-credentials` as it stands in the body.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    #[serde(default = "default_user")]
    user: String,
    #[serde(default = "default_ttl_secs")]
    ttl_secs: u32,
}

fn default_user() -> String {
    "player".to_owned()
}

const fn default_ttl_secs() -> u32 {
    TTL_SECS
}

/// The answer.
#[derive(Debug, Serialize)]
pub(super) struct IceServers {
    #[serde(rename = "iceServers")]
    ice_servers: [IceServer; 1],
    ttl: u32,
}

#[derive(Debug, Serialize)]
struct IceServer {
    urls: Vec<String>,
    #[serde(flatten)]
    credential: TurnCredential,
}

impl TurnIssuer {
    /// Signs with the first of `secrets` and names these URLs.
    pub const fn new(secrets: Vec<Secret>, urls: Vec<String>) -> Self {
        Self {
            secrets: RwLock::new(secrets),
            urls,
        }
    }

    /// Signs with other secrets from now on.
    pub(crate) fn set_secrets(&self, secrets: Vec<Secret>) {
        *self.secrets.write().unwrap_or_else(PoisonError::into_inner) = secrets;
    }

    /// What a request with this body gets; an empty body asks for the defaults.
    pub(super) fn ice_servers(
        &self,
        body: &[u8],
        now_unix_secs: u64,
    ) -> Result<IceServers, AdminError> {
        let body = if body.is_empty() { b"{}" } else { body };
        let Body { user, ttl_secs } = serde_json::from_slice(body)
            .map_err(|error| invalid(format!("The body is not what was expected: {error}.")))?;
        if !(1..=TTL_SECS_MAX).contains(&ttl_secs) {
            return Err(invalid(format!(
                "ttl_secs is a number from 1 to {TTL_SECS_MAX}."
            )));
        }
        if !(1..=USER_BYTES_MAX).contains(&user.len()) || user.contains(char::is_control) {
            return Err(invalid(format!(
                "user is a text of 1 to {USER_BYTES_MAX} bytes without control characters."
            )));
        }
        let unavailable = |sentence: &str| AdminError::Unavailable(sentence.to_owned());
        let secrets = self.secrets.read().unwrap_or_else(PoisonError::into_inner);
        let secret = secrets
            .first()
            .ok_or_else(|| unavailable("The server has no --auth-secret to sign with."))?;
        if self.urls.is_empty() {
            return Err(unavailable(
                "The server does not know its own address: give it --turn-host.",
            ));
        }
        let expires_unix_secs = now_unix_secs + u64::from(ttl_secs);
        Ok(IceServers {
            ice_servers: [IceServer {
                urls: self.urls.clone(),
                credential: TurnCredential::new(secret, &user, expires_unix_secs),
            }],
            ttl: ttl_secs,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn what_a_browser_takes() {
        let urls = vec!["turn:turn.example:3478?transport=udp".to_owned()];
        let issuer = TurnIssuer::new(vec![Secret::new(b"north"), Secret::new(b"old")], urls);
        let ask = |body: Value| {
            let answer = issuer.ice_servers(body.to_string().as_bytes(), 1_900_000_000);
            serde_json::to_value(answer.unwrap()).unwrap()
        };
        assert_eq!(
            ask(json!({ "user": "alice", "ttl_secs": 600 })),
            json!({
                "iceServers": [{
                    "urls": ["turn:turn.example:3478?transport=udp"],
                    "username": "1900000600:alice",
                    "credential": time_limited_password(b"north", "1900000600:alice"),
                }],
                "ttl": 600,
            })
        );
        let plain = issuer.ice_servers(b"", 1_900_000_000).unwrap();
        assert_eq!(
            plain.ice_servers[0].credential.username,
            "1900086400:player"
        );
        issuer.set_secrets(Vec::new());
        let refused = issuer.ice_servers(b"", 0).unwrap_err();
        assert!(matches!(refused, AdminError::Unavailable(_)));
    }
}
