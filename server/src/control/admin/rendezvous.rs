//! What the admin port asks of the shards: the trait, its values, and their JSON. Limits are checked
//! here, once; behind the trait every request is sound.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use crate::control::secret::Secret;

/// Longest application id, in bytes of UTF-8.
pub const APPLICATION_BYTES_MAX: usize = 32;
/// Longest session name, in bytes of UTF-8.
pub const NAME_BYTES_MAX: usize = 64;
/// Longest password, in bytes of UTF-8.
pub const PASSWORD_BYTES_MAX: usize = 128;
/// Largest metadata, in bytes.
pub const METADATA_BYTES_MAX: usize = 512;
/// Members that a session may have at most.
pub const SESSION_MEMBERS: std::ops::RangeInclusive<u8> = 2..=255;
/// Sessions on one page of a list.
pub const PAGE_SESSIONS_MAX: usize = 1000;

/// What the shards do for the admin port. The calls may block for a short while (they wait for
/// shards to answer); they are made on a thread where that harms nobody, several at a time.
pub trait Rendezvous: Send + Sync + 'static {
    /// Makes a session without members and seals its tickets.
    fn create_session(&self, request: CreateSession) -> Result<CreatedSession, AdminError>;

    /// One page of the sessions, in an order that stays the same from page to page.
    fn list_sessions(&self, query: SessionQuery) -> Result<SessionPage, AdminError>;

    /// Ends the session with this code; its members are told.
    fn close_session(&self, code: &str) -> Result<(), AdminError>;

    /// From now on takes no new sessions. Called at least once when the server drains.
    fn drain(&self);

    /// Takes over what a reload may change.
    fn reconfigure(&self, change: Reconfiguration);
}

/// What a reload may change in the shards.
#[derive(Clone, Debug)]
pub struct Reconfiguration {
    /// Whether sessions need no credentials.
    pub open_rendezvous: bool,
    /// Secrets that sign `expiry:user` credentials, at most two.
    pub auth_secrets: Vec<Secret>,
    /// Certificate and key of TLS.
    pub tls: Option<Arc<rustls::ServerConfig>>,
}

/// A session to be made.
#[derive(Clone, Debug)]
pub struct CreateSession {
    /// The game it belongs to; 1 to [`APPLICATION_BYTES_MAX`] bytes.
    pub application: String,
    /// A name that is unique in the application; 1 to [`NAME_BYTES_MAX`] bytes.
    pub name: Option<String>,
    /// What joiners without a ticket must know; 1 to [`PASSWORD_BYTES_MAX`] bytes.
    pub password: Option<Secret>,
    /// Members at most, in [`SESSION_MEMBERS`].
    pub members_max: u8,
    /// At most [`METADATA_BYTES_MAX`] bytes that the server does not read.
    pub metadata: Vec<u8>,
    /// Whether lists show it.
    pub listed: bool,
    /// Tickets wanted, at most `members_max`.
    pub seat_count: u8,
}

/// A session that was made.
#[derive(Clone, Debug)]
pub struct CreatedSession {
    /// Its join code as players read it.
    pub code: String,
    /// Its identifier, for logs and later calls.
    pub session: String,
    /// One sealed ticket for each seat that was asked for.
    pub tickets: Vec<Vec<u8>>,
    /// When it ends at the latest, in seconds since 1970.
    pub expires_unix_secs: u64,
}

/// Which sessions to list.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionQuery {
    /// Only this application.
    pub app: Option<String>,
    /// Only the session of this name.
    pub name: Option<String>,
    /// Where the page before ended: its `next`.
    pub after: Option<String>,
    /// Sessions wanted, at most [`PAGE_SESSIONS_MAX`].
    #[serde(default = "default_limit")]
    pub limit: usize,
}

fn default_limit() -> usize {
    100
}

/// One page of sessions.
#[derive(Clone, Debug, Serialize)]
pub struct SessionPage {
    /// The sessions.
    pub sessions: Vec<SessionSummary>,
    /// What to give as `after` for the next page; none on the last.
    pub next: Option<String>,
}

/// One session in a list. Nothing in it is secret or personal.
#[derive(Clone, Debug, Serialize)]
pub struct SessionSummary {
    /// Join code.
    pub code: String,
    /// Identifier.
    pub session: String,
    /// Application id.
    pub app: String,
    /// Name, if it has one.
    pub name: Option<String>,
    /// Members at present.
    pub members: u32,
    /// Members at most.
    pub max_members: u32,
    /// Whether lists show it to players.
    pub listed: bool,
    /// Whether it takes no more members.
    pub locked: bool,
    /// When it ends at the latest, in seconds since 1970.
    pub expires_at: u64,
}

/// Why a request of the admin port was not done. The text is a sentence for the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminError {
    /// The request makes no sense (400).
    Invalid(String),
    /// There is no such thing (404).
    NotFound(String),
    /// It collides with something that is there, such as a name (409).
    Conflict(String),
    /// The request is longer than it may be (413).
    TooLarge(String),
    /// Not now: full, draining, or no answer in time (503).
    Unavailable(String),
}

/// `POST /v1/sessions` as it stands in the body.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateBody {
    app: String,
    name: Option<String>,
    password: Option<String>,
    max_members: u8,
    metadata: Option<String>,
    metadata_base64: Option<String>,
    #[serde(default)]
    listed: bool,
    seats: u8,
}

impl CreateBody {
    pub(super) fn parse(body: &[u8]) -> Result<CreateSession, AdminError> {
        let body: CreateBody = serde_json::from_slice(body)
            .map_err(|error| invalid(format!("The body is not what was expected: {error}.")))?;
        let metadata = match (body.metadata, body.metadata_base64) {
            (Some(_), Some(_)) => {
                return Err(invalid("Give metadata or metadata_base64, not both."));
            }
            (Some(text), None) => text.into_bytes(),
            (None, Some(text)) => STANDARD
                .decode(text)
                .map_err(|error| invalid(format!("metadata_base64 is not base64: {error}.")))?,
            (None, None) => Vec::new(),
        };
        if metadata.len() > METADATA_BYTES_MAX {
            return Err(invalid(format!(
                "The metadata is longer than {METADATA_BYTES_MAX} bytes."
            )));
        }
        within("app", &body.app, APPLICATION_BYTES_MAX)?;
        if let Some(name) = &body.name {
            within("name", name, NAME_BYTES_MAX)?;
        }
        if let Some(password) = &body.password {
            within("password", password, PASSWORD_BYTES_MAX)?;
        }
        if !SESSION_MEMBERS.contains(&body.max_members) {
            return Err(invalid("max_members is a number from 2 to 255."));
        }
        if body.seats > body.max_members {
            return Err(invalid("There are more seats than max_members."));
        }
        Ok(CreateSession {
            application: body.app,
            name: body.name,
            password: body
                .password
                .map(|password| Secret::new(password.as_bytes())),
            members_max: body.max_members,
            metadata,
            listed: body.listed,
            seat_count: body.seats,
        })
    }
}

/// The answer to `POST /v1/sessions`.
#[derive(Serialize)]
pub(super) struct CreatedBody {
    code: String,
    session: String,
    tickets: Vec<String>,
    expires_at: u64,
}

impl From<CreatedSession> for CreatedBody {
    fn from(created: CreatedSession) -> Self {
        Self {
            code: created.code,
            session: created.session,
            tickets: created
                .tickets
                .iter()
                .map(|ticket| STANDARD.encode(ticket))
                .collect(),
            expires_at: created.expires_unix_secs,
        }
    }
}

fn within(field: &str, text: &str, bytes_max: usize) -> Result<(), AdminError> {
    match (1..=bytes_max).contains(&text.len()) {
        true => Ok(()),
        false => Err(invalid(format!(
            "{field} is a text of 1 to {bytes_max} bytes."
        ))),
    }
}

pub(super) fn invalid(sentence: impl Into<String>) -> AdminError {
    AdminError::Invalid(sentence.into())
}
