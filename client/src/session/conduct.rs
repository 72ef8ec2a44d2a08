//! What a seat, and above all the host's, can have done to its session. Each call waits for the server's answer.

use waypost_proto::agent::{Agent, Introduce, SessionUpdate};
use waypost_proto::wire::native::{SeatId, session_flags};

use super::Session;
use crate::error::Error;

impl Session {
    /// Removes a member for the session's life. Only the host may.
    ///
    /// # Errors
    /// [`Error`], of which `Silent` and `Rejected` are the server's.
    pub fn kick(&self, member: SeatId) -> Result<(), Error> {
        self.perform(|agent, now| agent.kick(now, member))
    }

    /// Makes another member the host. Only the host may.
    ///
    /// # Errors
    /// As [`Session::kick`].
    pub fn transfer(&self, member: SeatId) -> Result<(), Error> {
        self.perform(|agent, now| agent.transfer(now, member))
    }

    /// Changes what lists and members show of the session. Only the host may.
    ///
    /// # Errors
    /// As [`Session::kick`].
    pub fn set_metadata(&self, metadata: &[u8]) -> Result<(), Error> {
        self.update(SessionUpdate {
            metadata: Some(metadata.to_vec()),
            ..SessionUpdate::default()
        })
    }

    /// Changes what joining takes; empty for nothing. Only the host may.
    ///
    /// # Errors
    /// As [`Session::kick`].
    pub fn set_password(&self, password: &str) -> Result<(), Error> {
        self.update(SessionUpdate {
            password: Some(password.to_owned()),
            ..SessionUpdate::default()
        })
    }

    /// Changes the number of seats. Only the host may.
    ///
    /// # Errors
    /// As [`Session::kick`].
    pub fn set_max_members(&self, max_members: u8) -> Result<(), Error> {
        self.update(SessionUpdate {
            max_members: Some(max_members),
            ..SessionUpdate::default()
        })
    }

    fn update(&self, update: SessionUpdate) -> Result<(), Error> {
        self.perform(|agent, now| agent.update_session(now, update))
    }

    /// Locks or opens the session. Only the host may.
    ///
    /// # Errors
    /// As [`Session::kick`].
    pub fn set_locked(&self, locked: bool) -> Result<(), Error> {
        self.perform(|agent, now| agent.set_session_flag(now, session_flags::LOCKED, locked))
    }

    /// Shows the session in lists, or does not. Only the host may.
    ///
    /// # Errors
    /// As [`Session::kick`].
    pub fn set_listed(&self, listed: bool) -> Result<(), Error> {
        self.perform(|agent, now| agent.set_session_flag(now, session_flags::LISTED, listed))
    }

    /// Changes what the other members see of this one.
    ///
    /// # Errors
    /// As [`Session::kick`].
    pub fn set_member_data(&self, data: &[u8]) -> Result<(), Error> {
        self.perform(|agent, now| agent.update_member(now, data))
    }

    /// Has this player and a member introduced, after which they try to connect directly.
    ///
    /// # Errors
    /// As [`Session::kick`].
    pub fn introduce(&self, member: SeatId) -> Result<(), Error> {
        self.perform(|agent, now| agent.introduce(now, Introduce::With(member)))
    }

    /// Has two members introduced to each other. Only the host may.
    ///
    /// # Errors
    /// As [`Session::kick`].
    pub fn introduce_pair(&self, one: SeatId, other: SeatId) -> Result<(), Error> {
        self.perform(|agent, now| agent.introduce(now, Introduce::Pair(one, other)))
    }

    /// Has everybody introduced to everybody. Only the host may.
    ///
    /// # Errors
    /// As [`Session::kick`].
    pub fn introduce_all(&self) -> Result<(), Error> {
        self.perform(|agent, now| agent.introduce(now, Introduce::All))
    }

    /// Ends the session for everybody. Only the host may.
    ///
    /// # Errors
    /// As [`Session::kick`].
    pub fn close(&self) -> Result<(), Error> {
        let result = self.perform(Agent::close);
        if result.is_ok() {
            self.end();
        }
        result
    }
}
