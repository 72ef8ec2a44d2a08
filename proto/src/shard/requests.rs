//! Requests of our own: proving their source, and finding the shard that serves them. What they mean is the lobby's.

use super::{Shard, SocketRole, owner};
use crate::addr::ClientAddr;
use crate::forwarding::SocketIndex;
use crate::lobby::{Asked, Mail, Origin, Turn};
use crate::stats::Counter;
use crate::time::Millis;
use crate::wire::native::{self, BadFields, Fields, SeatHandle, code};
use crate::wire::stun::{self, Class, Integrity, Message, MessageWriter};

impl Shard {
    /// A native request: nothing happens before its source is proved, and then on the shard that owns what it is about.
    pub(super) fn handle_native(
        &mut self,
        now: Millis,
        socket: SocketIndex,
        source: ClientAddr,
        role: SocketRole,
        message: &Message<'_>,
    ) -> Result<(), Counter> {
        let unix_secs = self.wall.unix_secs(now);
        let nonce = message.find(stun::attr::NONCE);
        let proof = nonce.map(|nonce| self.nonces.verify(unix_secs, source, nonce));
        let proven = match proof {
            Some(Ok(proven)) => proven,
            None => {
                return self.challenge(unix_secs, socket, source, message, code::UNAUTHENTICATED);
            }
            Some(Err(_)) => {
                return self.challenge(unix_secs, socket, source, message, code::STALE_NONCE);
            }
        };
        let stream = self.streams.serial(socket, source);
        if stream.is_none() && matches!(role, SocketRole::Stream { .. }) {
            return Err(Counter::DropStale);
        }
        let origin = Origin {
            addr: proven,
            socket,
            home: self.index,
            stream,
        };
        if self.forwarding.is_turn(socket, source) {
            self.answer_error(origin, message, code::MISMATCH);
            return Ok(());
        }
        match Fields::read(message) {
            Ok(fields) => {
                if !self.access.admits(unix_secs, message, &fields) {
                    self.counters.count(Counter::CredentialFailures);
                    return self.challenge(
                        unix_secs,
                        socket,
                        source,
                        message,
                        code::UNAUTHENTICATED,
                    );
                }
                self.dispatch(now, origin, message, &fields);
            }
            Err(bad) => self.answer_bad_fields(origin, message, bad),
        }
        Ok(())
    }

    /// Asks a source to prove its address. The answer is never larger than the request.
    fn challenge(
        &mut self,
        unix_secs: u64,
        socket: SocketIndex,
        source: ClientAddr,
        message: &Message<'_>,
        error: u16,
    ) -> Result<(), Counter> {
        if message.bytes().len() < native::FIRST_ANSWER_LEN {
            return Err(Counter::DropUnpadded);
        }
        self.counters.count(Counter::UnprovenReplies);
        let nonce = self.nonces.issue(unix_secs, source);
        let start = self.outbox.bytes.len();
        MessageWriter::answer(&mut self.outbox.bytes, message, Class::Error)
            .error_code(error)
            .attribute(stun::attr::NONCE, &nonce)
            .finish();
        self.outbox.transmit(socket, source.0, start);
        Ok(())
    }

    fn answer_error(&mut self, origin: Origin, message: &Message<'_>, error: u16) {
        self.counters.count(Counter::NativeErrors);
        let start = self.outbox.bytes.len();
        MessageWriter::answer(&mut self.outbox.bytes, message, Class::Error)
            .error_code(error)
            .finish();
        self.outbox
            .transmit(origin.socket, origin.addr.addr(), start);
    }

    fn answer_bad_fields(&mut self, origin: Origin, message: &Message<'_>, bad: BadFields) {
        self.counters.count(Counter::NativeErrors);
        let start = self.outbox.bytes.len();
        let mut writer = MessageWriter::answer(&mut self.outbox.bytes, message, Class::Error);
        match bad {
            BadFields::Malformed => writer.error_code(code::BAD_REQUEST),
            BadFields::Unknown(kind) => writer
                .error_code(code::UNKNOWN_ATTRIBUTE)
                .unknown_attributes(&[kind]),
        };
        writer.finish();
        self.outbox
            .transmit(origin.socket, origin.addr.addr(), start);
    }

    /// Serves a request here or mails it to its owner.
    fn dispatch(
        &mut self,
        now: Millis,
        origin: Origin,
        message: &Message<'_>,
        fields: &Fields<'_>,
    ) {
        let seated = self
            .forwarding
            .seat_of(origin.socket, ClientAddr(origin.addr.addr()));
        let owner = self
            .placement
            .owner(message.method(), fields, seated)
            .unwrap_or(self.index);
        if owner == self.index {
            self.serve(now, origin, seated, message, fields);
        } else {
            let bytes = message.bytes().into();
            let mail = Mail::Request {
                origin,
                seated,
                bytes,
            };
            self.outbox.mail.push((owner, mail));
        }
    }

    pub(super) fn serve(
        &mut self,
        now: Millis,
        origin: Origin,
        seated: Option<SeatHandle>,
        message: &Message<'_>,
        fields: &Fields<'_>,
    ) {
        let seated = seated.filter(|_| owner::seats_anew(message.method()));
        let turn = turn!(self, now);
        let asked = Asked {
            origin,
            message,
            fields,
        };
        match seated {
            Some(seat) => self.lobby.handle_second_seating(turn, asked, seat),
            None => self.lobby.handle_request(turn, asked, self.draining),
        }
        self.deliver_own_mail(now);
    }

    pub(super) fn handle_acknowledgement(
        &mut self,
        now: Millis,
        socket: SocketIndex,
        source: ClientAddr,
        message: &Message<'_>,
    ) -> Result<(), Counter> {
        let handle = message
            .find(native::attr::SEAT_HANDLE)
            .and_then(native::SeatHandle::from_bytes)
            .ok_or(Counter::DropParse)?;
        let owner = handle.code.owner(self.count);
        if owner == self.index {
            self.lobby.handle_acknowledgement(turn!(self, now), message);
            self.deliver_own_mail(now);
            return Ok(());
        }
        // Only a member, or one that just was, may make this shard write to another.
        let is_member = self.forwarding.seat_of(socket, source) == Some(handle);
        let was_member = || {
            let token = self.sealer.token(handle);
            message.verify_integrity(Integrity::Sha256Truncated, &token)
        };
        if !is_member && !was_member() {
            return Err(Counter::DropStale);
        }
        let bytes = message.bytes().into();
        self.outbox
            .mail
            .push((owner, Mail::Acknowledgement { bytes }));
        Ok(())
    }
}
