//! What other shards and the control thread send to a shard, and what a shard tells itself in the same words.

use super::Shard;
use crate::addr::ClientAddr;
use crate::forwarding::NoRoom;
use crate::lobby::door::{DoorAnswer, DoorRequest};
use crate::lobby::{Mail, Turn};
use crate::stats::Counter;
use crate::time::Millis;
use crate::turn::Step;
use crate::wire::native::Fields;
use crate::wire::stun::Message;

impl Shard {
    /// Takes in a message of another shard or of the control thread.
    pub fn handle_mail(&mut self, now: Millis, mail: Mail) {
        match mail {
            Mail::Request {
                origin,
                seated,
                bytes,
            } => {
                let message = Message::parse(&bytes).expect("the sending shard parsed it");
                let fields = Fields::read(&message).expect("the sending shard read it");
                self.serve(now, origin, seated, &message, &fields);
            }
            Mail::Acknowledgement { bytes } => {
                let message = Message::parse(&bytes).expect("the sending shard parsed it");
                self.lobby
                    .handle_acknowledgement(turn!(self, now), &message);
            }
            Mail::FromGuest {
                socket,
                source,
                home,
                stream,
                bytes,
            } => self.handle_guest(now, socket, source, (home, stream), &bytes),
            Mail::Door { id, request } => {
                let answer = self.handle_door(now, *request);
                self.outbox.door.push((id, answer));
            }
            install => self.install(now, install),
        }
        self.deliver_own_mail(now);
    }

    fn handle_door(&mut self, now: Millis, request: DoorRequest) -> DoorAnswer {
        self.lobby.handle_door(turn!(self, now), request)
    }

    /// Mail to oneself does not leave the house.
    pub(super) fn deliver_own_mail(&mut self, now: Millis) {
        let own = self.index;
        while self.outbox.mail.iter().any(|(shard, _)| *shard == own) {
            let mut mail = std::mem::take(&mut self.outbox.mail);
            for (_, mail) in mail.extract_if(.., |(shard, _)| *shard == own) {
                self.install(now, mail);
            }
            // What it caused comes after what was there before.
            mail.append(&mut self.outbox.mail);
            self.outbox.mail = mail;
        }
    }

    /// Carries out mail about the forwarding table.
    fn install(&mut self, now: Millis, mail: Mail) {
        match mail {
            Mail::AddFlow {
                socket,
                source,
                stream,
                handle,
            } => {
                let client = ClientAddr(source.addr());
                if let Some(stream) = stream
                    && self.streams.serial(socket, client) != Some(stream)
                {
                    self.mail_stream_ended(handle, socket, stream);
                    return;
                }
                match self.forwarding.add_flow(socket, client, handle) {
                    Ok(None) => {}
                    Ok(Some(handle)) => self.outbox.mail.push((
                        handle.code.owner(self.count),
                        Mail::Displaced {
                            handle,
                            socket,
                            source,
                        },
                    )),
                    Err(NoRoom) => self.counters.count(Counter::DropNoFlow),
                }
            }
            Mail::Displaced {
                handle,
                socket,
                source,
            } => self
                .lobby
                .handle_displaced(turn!(self, now), handle, socket, source),
            Mail::StreamEnded {
                handle,
                socket,
                stream,
            } => self
                .lobby
                .handle_stream_ended(turn!(self, now), handle, socket, stream),
            Mail::RemoveFlow {
                socket,
                source,
                handle,
            } => self
                .forwarding
                .remove_flow(socket, ClientAddr(source.addr()), handle),
            Mail::AddGuest {
                socket,
                source,
                owner,
                stream,
                answer,
            } => self.add_guest(socket, source, owner, stream, &answer),
            Mail::GuestStreamEnded {
                socket,
                source,
                stream,
            } => {
                let turn = &mut self.turn;
                turn.handle_guest_stream_ended(step!(self, now), socket, source, stream);
            }
            Mail::GuestLeft { socket, source, id } => self.turn.note_deletion(socket, source, id),
            Mail::RemoveGuest {
                socket,
                source,
                owner,
            } => self.forwarding.remove_guest(socket, source, owner),
            Mail::SetRoute { code, seat, route } => self.forwarding.set_route(code, seat, route),
            Mail::HairpinWanted { asker, from, to } => {
                if !self.forwarding.answer_hairpin(now, asker, from, to)
                    && let Some(borrower) = self.turn.borrower_of(to)
                {
                    let mail = Mail::HairpinWanted { asker, from, to };
                    self.outbox.mail.push((borrower, mail));
                }
            }
            Mail::PortWanted {
                asker,
                allocation,
                token,
                user,
            } => {
                let turn = &mut self.turn;
                turn.lend_port(step!(self, now), asker, allocation, token, user);
            }
            Mail::PortLent { allocation, at } => {
                let turn = &mut self.turn;
                turn.handle_port_lent(step!(self, now), allocation, at);
            }
            Mail::PortReturned { at } => self.turn.take_port_back(at),
            Mail::HairpinRoute { from, to, route } => {
                self.forwarding.set_half_route(from, to, route);
            }
            Mail::Request { .. }
            | Mail::Acknowledgement { .. }
            | Mail::FromGuest { .. }
            | Mail::Door { .. } => {
                unreachable!("a shard serves what it owns without mail to itself")
            }
        }
    }
}
