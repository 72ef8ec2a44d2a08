//! The admin port's way to the shards: each call becomes a message in a shard's mailbox and waits for the answer. Only
//! plain threads call this; shards never wait for it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use waypost_proto::lobby::Mail;
use waypost_proto::lobby::door::{DoorAnswer, DoorRequest};
use waypost_proto::shard::Placement;
use waypost_proto::wire::join_code::JoinCode;
use waypost_proto::wire::native::{code, session_flags};

use super::{Answers, access_of, secret_bytes};
use crate::control::admin::{
    AdminError, CreateSession, CreatedSession, Reconfiguration, Rendezvous, SessionPage,
    SessionQuery, SessionSummary,
};
use crate::mailbox::{Mailbox, Post};

/// How long a shard may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// All shards, as the control plane sees them.
pub(super) struct Shards {
    mailboxes: Arc<[Mailbox]>,
    placement: Placement,
    /// One question at a time: who holds this asks.
    turn: Mutex<Asking>,
}

struct Asking {
    answers: Answers,
    last_id: u64,
}

impl Shards {
    pub fn new(mailboxes: Arc<[Mailbox]>, answers: Answers, placement_seeds: [u64; 2]) -> Self {
        let count = u16::try_from(mailboxes.len()).expect("at most 128 shards");
        Self {
            mailboxes,
            placement: Placement::new(placement_seeds, count),
            turn: Mutex::new(Asking {
                answers,
                last_id: 0,
            }),
        }
    }

    fn count(&self) -> u16 {
        u16::try_from(self.mailboxes.len()).expect("at most 128 shards")
    }

    fn ask(&self, shard: u16, request: DoorRequest) -> Result<DoorAnswer, AdminError> {
        let mut asking = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        asking.last_id += 1;
        let id = asking.last_id;
        let mail = Mail::Door {
            id,
            request: Box::new(request),
        };
        self.mailboxes[usize::from(shard)]
            .post(Post::Mail(mail))
            .map_err(|_| unavailable("The shard has too much mail; try again."))?;
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            match asking.answers.recv_deadline(deadline) {
                // An answer that came too late for an earlier question is skipped.
                Ok((answered, answer)) if answered == id => return Ok(answer),
                Ok(_) => {}
                Err(_) => return Err(unavailable("The shard did not answer in time; try again.")),
            }
        }
    }

    fn tell_all(&self, post: impl Fn() -> Post) {
        for mailbox in self.mailboxes.iter() {
            let mut post = post();
            let deadline = Instant::now() + ANSWER_LIMIT;
            while let Err(refused) = mailbox.post(post) {
                if Instant::now() > deadline {
                    tracing::error!("a shard's mailbox stays full; it was not told");
                    break;
                }
                post = refused;
                std::thread::yield_now();
            }
        }
    }
}

impl Rendezvous for Shards {
    fn create_session(&self, request: CreateSession) -> Result<CreatedSession, AdminError> {
        let shard = match &request.name {
            Some(name) => self.placement.of_name(&request.application, name),
            None => {
                let asking = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
                u16::try_from(asking.last_id % u64::from(self.count())).unwrap_or(0)
            }
        };
        let password = request
            .password
            .map(|password| String::from_utf8(password.expose().to_vec()))
            .transpose()
            .map_err(|_| AdminError::Invalid("The password is not UTF-8.".to_owned()))?;
        let answer = self.ask(
            shard,
            DoorRequest::CreateSession {
                application: request.application,
                name: request.name,
                password,
                metadata: request.metadata,
                max_members: request.members_max,
                flags: if request.listed {
                    session_flags::LISTED
                } else {
                    0
                },
                tickets: request.seat_count,
            },
        )?;
        match answer {
            DoorAnswer::Created {
                code,
                tickets,
                expires_unix_secs,
            } => Ok(CreatedSession {
                code: code.to_string(),
                session: code.to_string(),
                tickets,
                expires_unix_secs,
            }),
            other => Err(refusal(&other)),
        }
    }

    fn list_sessions(&self, query: SessionQuery) -> Result<SessionPage, AdminError> {
        let (mut shard, mut slot) = match &query.after {
            None => (0, 0),
            Some(after) => parse_after(after).ok_or_else(|| {
                AdminError::Invalid("after is not what an earlier page's next was.".to_owned())
            })?,
        };
        let mut sessions = Vec::new();
        while shard < self.count() {
            let answer = self.ask(
                shard,
                DoorRequest::List {
                    application: query.app.clone(),
                    name: query.name.clone(),
                    from_slot: slot,
                    limit: query.limit - sessions.len(),
                },
            )?;
            let DoorAnswer::Sessions {
                sessions: found,
                next_slot,
            } = answer
            else {
                return Err(refusal(&answer));
            };
            sessions.extend(found.into_iter().map(summary));
            if let Some(next_slot) = next_slot {
                return Ok(SessionPage {
                    sessions,
                    next: Some(format!("{shard}-{next_slot}")),
                });
            }
            (shard, slot) = (shard + 1, 0);
        }
        Ok(SessionPage {
            sessions,
            next: None,
        })
    }

    fn close_session(&self, code: &str) -> Result<(), AdminError> {
        let code: JoinCode = code
            .parse()
            .map_err(|error| AdminError::Invalid(format!("{error}.")))?;
        match self.ask(code.owner(self.count()), DoorRequest::Close { code })? {
            DoorAnswer::Closed => Ok(()),
            other => Err(refusal(&other)),
        }
    }

    fn drain(&self) {
        self.tell_all(|| Post::Drain);
    }

    fn reconfigure(&self, change: Reconfiguration) {
        self.tell_all(|| {
            let access = access_of(change.open_rendezvous, &change.auth_secrets);
            Post::Access(access, secret_bytes(&change.auth_secrets))
        });
        self.tell_all(|| Post::Tls(change.tls.clone()));
    }
}

fn parse_after(after: &str) -> Option<(u16, u32)> {
    let (shard, slot) = after.split_once('-')?;
    Some((shard.parse().ok()?, slot.parse().ok()?))
}

fn summary(session: waypost_proto::lobby::door::SessionSummary) -> SessionSummary {
    SessionSummary {
        code: session.code.to_string(),
        session: session.code.to_string(),
        app: session.application,
        name: session.name,
        members: u32::try_from(session.members).unwrap_or(u32::MAX),
        max_members: u32::from(session.max_members),
        listed: session.flags & session_flags::LISTED != 0,
        locked: session.flags & session_flags::LOCKED != 0,
        expires_at: session.expires_unix_secs,
    }
}

fn refusal(answer: &DoorAnswer) -> AdminError {
    match answer {
        DoorAnswer::Refused(code::NAME_TAKEN) => {
            AdminError::Conflict("Another session of this application has this name.".to_owned())
        }
        DoorAnswer::Refused(code::NO_SESSION) => {
            AdminError::NotFound("There is no session with this code.".to_owned())
        }
        DoorAnswer::Refused(code::CAPACITY) => {
            unavailable("The server holds as many sessions as it may (--max-sessions).")
        }
        _ => unavailable("The shard's answer made no sense."),
    }
}

fn unavailable(text: &str) -> AdminError {
    AdminError::Unavailable(text.to_owned())
}
