//! What the driver's lock protects: the agent, what waits for the caller, and how operations and the seat ended. Opens, sends and
//! waits for nothing.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Instant;

use waypost_proto::agent::{
    Agent, Attempt, Event, Failure, ListedSession, Refused, RequestId, SessionEvent,
};
use waypost_proto::message::{Messages, frame};
use waypost_proto::time::Millis;
use waypost_proto::wire::native::{LeaveReason, SeatId};

use crate::error::Error;
use crate::link::Inbox;
use crate::readiness::Readiness;

/// Events that wait for the caller. The oldest go first; the getters always know the current state.
const EVENTS_MAX: usize = 1_024;

/// How an operation ended.
pub(crate) enum Outcome {
    Done,
    Listed(Vec<ListedSession>, Option<[u8; 8]>),
    Failed(Failure),
}

/// Why there is no seat any more.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Left,
    Removed(LeaveReason),
    SeatLost,
    Socket(io::ErrorKind),
}

impl From<End> for Error {
    fn from(end: End) -> Self {
        match end {
            End::Left => Self::Left,
            End::Removed(reason) => Self::Removed(reason),
            End::SeatLost => Self::SeatLost,
            End::Socket(kind) => Self::Io(kind.into()),
        }
    }
}

/// What the lock protects.
pub(crate) struct Core {
    pub(crate) agent: Agent,
    pub(crate) events: VecDeque<SessionEvent>,
    /// If the session has messages.
    pub(crate) messages: Option<Messages>,
    pub(crate) end: Option<End>,
    /// When the thread stops even if the server has not answered LEAVE.
    pub(crate) stop_at: Option<Instant>,
    /// What became of streams to members.
    pub(crate) streams: HashMap<SeatId, Attempt>,
    outcomes: HashMap<RequestId, Outcome>,
    inboxes: HashMap<SeatId, Arc<Inbox>>,
    readiness: Arc<Readiness>,
    pub(super) frame: Vec<u8>,
    /// A frame of messages, before it becomes one of the link.
    pub(super) message: Vec<u8>,
    /// Whose inbox is looked into first.
    inbox_turn: usize,
}

impl Core {
    pub(super) fn new(agent: Agent, messages: Option<Messages>, readiness: Arc<Readiness>) -> Self {
        Self {
            agent,
            events: VecDeque::new(),
            messages,
            end: None,
            stop_at: None,
            streams: HashMap::new(),
            outcomes: HashMap::new(),
            inboxes: HashMap::new(),
            readiness,
            frame: Vec::new(),
            message: Vec::new(),
            inbox_turn: 0,
        }
    }

    /// The outcome of an operation, if it is known.
    pub(crate) fn take_outcome(&mut self, request: RequestId) -> Option<Result<Outcome, Error>> {
        let outcome = self.outcomes.remove(&request)?;
        Some(match outcome {
            Outcome::Failed(Failure::Rejected(rejected)) => Err(Error::Rejected(rejected)),
            Outcome::Failed(Failure::Silent) => Err(Error::Silent),
            Outcome::Failed(Failure::Unseated) => Err(self
                .end
                .map_or(Error::Refused(Refused::NotSeated), Error::from)),
            done => Ok(done),
        })
    }

    /// The inbox of a member, which exists as soon as somebody asks or data come.
    pub(crate) fn inbox(&mut self, member: SeatId) -> Result<Arc<Inbox>, Error> {
        if let Some(end) = self.end {
            return Err(end.into());
        }
        if self.agent.member(member).is_none() {
            return Err(Error::MemberLeft);
        }
        Ok(Arc::clone(self.inbox_of(member)))
    }

    fn inbox_of(&mut self, member: SeatId) -> &Arc<Inbox> {
        let readiness = &self.readiness;
        let inbox = || Arc::new(Inbox::new(Arc::clone(readiness)));
        self.inboxes.entry(member).or_insert_with(inbox)
    }

    /// Takes a datagram out of any inbox, of every member in turn.
    pub(crate) fn try_recv_from(&mut self, buf: &mut [u8]) -> Option<(SeatId, usize)> {
        let count = self.inboxes.len();
        let first = self.inbox_turn.checked_rem(count)?;
        self.inbox_turn = first + 1;
        let mut inboxes = self.inboxes.iter().cycle().skip(first).take(count);
        inboxes.find_map(|(member, inbox)| Some((*member, inbox.try_recv(buf)?)))
    }

    /// When the agent or the messages have something to do.
    pub(super) fn next_timeout(&self, now: Millis) -> Option<Millis> {
        let messages = self
            .messages
            .as_ref()
            .and_then(|messages| messages.poll_timeout(now));
        self.agent.poll_timeout().into_iter().chain(messages).min()
    }

    /// Tells those who wait on the descriptor whether events or messages wait.
    pub(crate) fn tell_news(&self) -> bool {
        let of_messages = self.messages.as_ref().is_some_and(Messages::has_event);
        self.readiness
            .set_news(of_messages || !self.events.is_empty());
        of_messages
    }

    /// Takes what the agent has to tell; returns whether that is anything.
    pub(super) fn take_events(&mut self, now: Millis) -> bool {
        let mut any = false;
        while let Some(event) = self.agent.poll_event() {
            any = true;
            match event {
                Event::Done { request } => drop(self.outcomes.insert(request, Outcome::Done)),
                Event::Failed { request, failure } => {
                    self.outcomes.insert(request, Outcome::Failed(failure));
                }
                Event::Listed {
                    request,
                    sessions,
                    next,
                } => {
                    self.outcomes
                        .insert(request, Outcome::Listed(sessions, next));
                }
                Event::Session(event) => self.note(now, event),
            }
        }
        any
    }

    fn note(&mut self, now: Millis, event: SessionEvent) {
        if let Some(messages) = &mut self.messages {
            match event {
                SessionEvent::MemberJoined(id) => messages.member_joined(now, id),
                SessionEvent::MemberLeft(id, _) => messages.member_left(id),
                _ => {}
            }
        }
        match event {
            SessionEvent::MemberLeft(id, _) => {
                self.streams.remove(&id);
                if let Some(inbox) = self.inboxes.remove(&id) {
                    inbox.close();
                }
            }
            SessionEvent::Removed(reason) => self.finish(End::Removed(reason)),
            SessionEvent::SeatLost => self.finish(End::SeatLost),
            _ => {}
        }
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// Notes the end of the seat, once.
    pub(crate) fn finish(&mut self, end: End) {
        self.end.get_or_insert(end);
        self.inboxes.drain().for_each(|(_, inbox)| inbox.close());
        self.readiness.set_ended();
    }

    pub(super) fn deliver(&mut self, now: Millis, from: SeatId, data: &[u8]) {
        let data = match (&mut self.messages, data) {
            (None, data) | (Some(_), [frame::RAW, data @ ..]) => data,
            (Some(messages), data) => {
                messages.handle(now, from, data);
                return;
            }
        };
        self.inbox_of(from).push(data);
    }
}
