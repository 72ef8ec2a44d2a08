//! The long-term credential mechanism (RFC 8489 section 9.2) with MD5 and SHA-256 keys, USERHASH, protection against bidding
//! down, static users and time-limited ones (draft-uberti-behave-turn-rest). Stateless: a request is judged by what it
//! holds. Every comparison of a secret is in constant time.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use crate::shard::time_limited_password;
use crate::wire::stun::{Integrity, LongTermKey, Message, attr};

/// Who may allocate.
#[derive(Clone, Default)]
pub struct TurnCredentials {
    /// The realm, at most 127 characters; answers to unproven sources are within their bound when it is at most 8 bytes.
    pub realm: String,
    /// User names and passwords, as OpaqueString (RFC 8265) prepares them.
    pub users: Vec<(String, String)>,
    /// Secrets of time-limited credentials, of which two may be live during a rotation.
    pub secrets: Vec<Box<[u8]>>,
}

impl std::fmt::Debug for TurnCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TurnCredentials({:?}, ..)", self.realm)
    }
}

/// The PASSWORD-ALGORITHMS value that this server sends: SHA-256, then MD5, both without parameters (RFC 8489 sections
/// 14.11 and 18.5).
pub(super) const PASSWORD_ALGORITHMS: [u8; 8] = [0, 2, 0, 0, 0, 1, 0, 0];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Algorithm {
    Md5,
    Sha256,
}

/// Why a request is not authenticated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refused {
    /// No integrity: the first request of a client, or somebody's bad one (401).
    Unsigned,
    /// Integrity without what it needs, or a sign of bidding down (400).
    BadRequest,
    /// Nobody has this name and password (401).
    WrongCredential,
}

/// A request whose sender knows a password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Authenticated<'a> {
    /// The whole name.
    pub username: &'a str,
    /// The name that quotas are counted by: without the expiry of a time-limited credential.
    pub person: &'a str,
    /// The attribute that answers carry.
    pub integrity: Integrity,
    /// Its key.
    pub key: LongTermKey,
}

struct User {
    name: Box<str>,
    md5: LongTermKey,
    sha256: LongTermKey,
}

/// Judges requests.
pub(super) struct Judge {
    realm: Box<str>,
    users: Vec<User>,
    by_name: HashMap<Box<str>, usize>,
    by_hash: HashMap<[u8; 32], usize>,
    secrets: Vec<Box<[u8]>>,
    /// Nobody's key: an unknown name costs as much as a known one.
    nobody: LongTermKey,
}

/// USERHASH of a user (RFC 8489 section 14.4).
#[must_use]
pub fn userhash(username: &str, realm: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in [username, ":", realm] {
        hash.update(part);
    }
    hash.finalize().into()
}

impl Judge {
    pub fn new(credentials: TurnCredentials) -> Self {
        let realm = credentials.realm.into_boxed_str();
        let mut judge = Self {
            users: Vec::new(),
            by_name: HashMap::new(),
            by_hash: HashMap::new(),
            secrets: credentials.secrets,
            nobody: LongTermKey::md5("", &realm, ""),
            realm,
        };
        for (name, password) in credentials.users {
            let index = judge.users.len();
            judge.by_hash.insert(userhash(&name, &judge.realm), index);
            judge.by_name.insert(name.as_str().into(), index);
            judge.users.push(User {
                md5: LongTermKey::md5(&name, &judge.realm, &password),
                sha256: LongTermKey::sha256(&name, &judge.realm, &password),
                name: name.into_boxed_str(),
            });
        }
        judge
    }

    pub const fn realm(&self) -> &str {
        &self.realm
    }

    /// Whether nobody can be authenticated.
    pub const fn admits_nobody(&self) -> bool {
        self.users.is_empty() && self.secrets.is_empty()
    }

    pub fn set_secrets(&mut self, secrets: Vec<Box<[u8]>>) {
        self.secrets = secrets;
    }

    /// What of RFC 8489 section 9.2.4 can be decided without the nonce's meaning and without a password.
    pub fn check_form(&self, message: &Message<'_>) -> Result<(), Refused> {
        let has = |kind| message.find(kind).is_some();
        if !has(attr::MESSAGE_INTEGRITY) && !has(attr::MESSAGE_INTEGRITY_SHA256) {
            return Err(Refused::Unsigned);
        }
        let has_name = has(attr::USERNAME) || has(attr::USERHASH);
        if has_name && has(attr::REALM) && has(attr::NONCE) {
            Ok(())
        } else {
            Err(Refused::BadRequest)
        }
    }

    /// Checks the integrity of a request whose form is right and whose nonce is ours.
    pub fn authenticate<'a>(
        &'a self,
        unix_secs: u64,
        message: &Message<'a>,
    ) -> Result<Authenticated<'a>, Refused> {
        let algorithm = requested_algorithm(message)?;
        let integrity = if message.find(attr::MESSAGE_INTEGRITY_SHA256).is_some() {
            Integrity::Sha256
        } else {
            Integrity::Sha1
        };
        let named = match message.find(attr::USERNAME) {
            Some(name) => Some(std::str::from_utf8(name).map_err(|_| Refused::WrongCredential)?),
            None => None,
        };
        let user = match named {
            Some(name) => self.by_name.get(name),
            None => message
                .find(attr::USERHASH)
                .and_then(|hash| self.by_hash.get(<&[u8; 32]>::try_from(hash).ok()?)),
        };
        let realm_fits = message.find(attr::REALM) == Some(self.realm.as_bytes());
        let verify = |key: LongTermKey, username: &'a str, person: &'a str| {
            let fits = message.verify_integrity(integrity, &key);
            (fits && realm_fits).then_some(Authenticated {
                username,
                person,
                integrity,
                key,
            })
        };
        if let Some(&index) = user {
            let user = &self.users[index];
            let key = match algorithm {
                Algorithm::Md5 => user.md5.clone(),
                Algorithm::Sha256 => user.sha256.clone(),
            };
            return verify(key, &user.name, &user.name).ok_or(Refused::WrongCredential);
        }
        let time_limited = named.and_then(|name| {
            let (expiry, person) = name.split_once(':').unwrap_or((name, ""));
            let is_live = expiry.parse::<u64>().is_ok_and(|expiry| expiry > unix_secs);
            is_live.then_some((name, person))
        });
        if let Some((name, person)) = time_limited {
            for secret in &self.secrets {
                let password = time_limited_password(secret, name);
                let key = match algorithm {
                    Algorithm::Md5 => LongTermKey::md5(name, &self.realm, &password),
                    Algorithm::Sha256 => LongTermKey::sha256(name, &self.realm, &password),
                };
                if let Some(authenticated) = verify(key, name, person) {
                    return Ok(authenticated);
                }
            }
        } else {
            let _ = verify(self.nobody.clone(), "", "");
        }
        Err(Refused::WrongCredential)
    }
}

/// The password algorithm of a request. Our nonces announce the feature, so either both attributes are there, the list
/// is the one that was sent, and the choice is in it; or neither is there, which means MD5 (RFC 8489 section 9.2.4).
fn requested_algorithm(message: &Message<'_>) -> Result<Algorithm, Refused> {
    let list = message.find(attr::PASSWORD_ALGORITHMS);
    match (list, message.find(attr::PASSWORD_ALGORITHM)) {
        (None, None) => Ok(Algorithm::Md5),
        (Some(list), Some(chosen)) if list == PASSWORD_ALGORITHMS => match chosen {
            [0, 1, 0, 0] => Ok(Algorithm::Md5),
            [0, 2, 0, 0] => Ok(Algorithm::Sha256),
            _ => Err(Refused::BadRequest),
        },
        _ => Err(Refused::BadRequest),
    }
}
