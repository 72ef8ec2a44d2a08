//! What completions mean for a ring: datagrams that wait to be handed out, receives that have ended, sends that were refused.
//! It submits nothing.

use std::io;
use std::net::SocketAddr;

use io_uring::cqueue;

use super::State;
use super::buffers::Buffers;
use super::gro::{COPY, Change, Gro};
use super::recv::{self, Arrival, MOST_ERRORS_IN_ROW, SlotKind, Unusable};
use super::token::Token;
use crate::mmsg::error_queue::drain;
use crate::mmsg::send::Refused;
use crate::mmsg::slot_memory::{SlotMemory, WIDE};
use crate::packet_io::{IoStats, SocketId};

impl IoStats {
    fn unusable(&mut self, unusable: &Unusable) {
        match unusable {
            Unusable::Truncated => self.truncated_dropped += 1,
            Unusable::NoAddress => self.receive_errors += 1,
        }
    }
}

impl State {
    #[inline]
    pub(super) fn complete(&mut self, cqe: &cqueue::Entry) {
        match Token::unpack(cqe.user_data()) {
            Some(Token::Receive(id, kind)) => self.complete_receive(id, kind, cqe),
            Some(Token::Single { train, segment }) => {
                self.refuse(train, Some(segment), -cqe.result());
            }
            Some(Token::Train { train }) => self.refuse(train, None, -cqe.result()),
            Some(Token::Doorbell) => {
                self.doorbell_armed = false;
                self.stats.doorbells += u64::from(cqe.result() > 0);
            }
            // A cancellation that finds nothing came after the end that it asked for.
            Some(Token::Cancel | Token::Probe) | None => {}
            Some(token) => self.complete_stream(token, cqe),
        }
    }

    fn complete_stream(&mut self, token: Token, cqe: &cqueue::Entry) {
        let Some(streams) = &mut self.streams else {
            return;
        };
        match token {
            Token::Accept(id) => streams.accepted(id, cqe, &mut self.stats),
            Token::StreamReceive(id) => streams.received(id, cqe, &mut self.stats),
            Token::StreamSend(id) => streams.sent(id, cqe, &mut self.stats),
            _ => {}
        }
    }

    #[inline]
    fn complete_receive(&mut self, socket: SocketId, kind: SlotKind, cqe: &cqueue::Entry) {
        let payload_bytes = if kind == SlotKind::Large {
            Gro::payload_bytes(cqe.result())
        } else {
            recv::payload_bytes(cqe.result())
        };
        let slot = cqueue::buffer_select(cqe.flags());
        if let (Some(slot), Some(buffers)) = (slot, self.buffers(kind)) {
            buffers.taken();
            match payload_bytes {
                Ok(len) => self.receiver.arrived(Arrival {
                    socket,
                    slot,
                    kind,
                    len,
                }),
                Err(_) => buffers.borrow_for_turn(slot),
            }
        }
        if !cqueue::more(cqe.flags()) {
            self.receive_ended(socket, payload_bytes.err());
        }
    }

    /// The memory that a slot lies in, and its number there.
    #[inline]
    pub(super) fn slot(&self, slot: u32) -> (&SlotMemory, u32) {
        match (&self.wide, &self.gro) {
            (Some(wide), _) if slot & WIDE != 0 => (&wide.memory, slot & !WIDE),
            (_, Some(gro)) if slot & COPY != 0 => (&gro.copies, slot & !COPY),
            _ => (&self.buffers.memory, slot),
        }
    }

    #[inline]
    pub(super) fn slot_mut(&mut self, slot: u32) -> (&mut SlotMemory, u32) {
        match (&mut self.wide, &mut self.gro) {
            (Some(wide), _) if slot & WIDE != 0 => (&mut wide.memory, slot & !WIDE),
            (_, Some(gro)) if slot & COPY != 0 => (&mut gro.copies, slot & !COPY),
            _ => (&mut self.buffers.memory, slot),
        }
    }

    /// The slots of a kind, once there are any.
    #[inline]
    pub(super) fn buffers(&mut self, kind: SlotKind) -> Option<&mut Buffers> {
        match kind {
            SlotKind::Small => Some(&mut self.buffers),
            SlotKind::Wide => self.wide.as_mut(),
            SlotKind::Large => self.gro.as_mut().map(|gro| &mut gro.buffers),
        }
    }

    /// Whether the kernel would run short if this turn's slots, which are sent from, stayed away for a sleep.
    pub(super) fn runs_short(&self) -> bool {
        self.buffers.runs_short() || self.wide.as_ref().is_some_and(Buffers::runs_short)
    }

    /// Gives back the slots that nothing is sent from any more.
    pub(super) fn give_back(&mut self) {
        self.buffers.give_back();
        if let Some(wide) = &mut self.wide {
            wide.give_back();
        }
    }

    /// The next datagram that a live socket received: its socket, source, slot and length.
    #[inline]
    pub(super) fn next_datagram(&mut self) -> Option<(SocketId, SocketAddr, u32, u32)> {
        loop {
            if self.gro.as_ref().is_some_and(|gro| gro.is_unpacking())
                && let Some(datagram) = self.next_of_train()
            {
                return Some(datagram);
            }
            let arrival = self.receiver.arrivals.pop_front()?;
            let (buffers, mark) = match (arrival.kind, &mut self.wide) {
                (SlotKind::Small, _) => (&mut self.buffers, 0),
                (SlotKind::Wide, Some(wide)) => (wide, WIDE),
                _ => {
                    self.unpack(&arrival);
                    continue;
                }
            };
            buffers.borrow_for_turn(arrival.slot);
            let Some(entry) = self.sockets.get_mut(arrival.socket) else {
                continue;
            };
            let slot = u32::from(arrival.slot) | mark;
            match recv::sender(buffers, &arrival) {
                Ok(from) if mark != 0 => return Some((arrival.socket, from, slot, arrival.len)),
                Ok(from) => {
                    let this = Some((arrival.socket, from, arrival.len));
                    let follows = self.receiver.last == this;
                    self.receiver.last = this;
                    if entry.extra.habit.datagram(follows) == Change::Rearm {
                        self.receiver.changing.push(arrival.socket);
                    }
                    return Some((arrival.socket, from, slot, arrival.len));
                }
                Err(unusable) => self.stats.unusable(&unusable),
            }
        }
    }

    /// The next datagram of the train that is being handed out.
    #[cold]
    fn next_of_train(&mut self) -> Option<(SocketId, SocketAddr, u32, u32)> {
        let gro = self.gro.as_mut()?;
        loop {
            match gro.next()? {
                Ok(datagram) if self.sockets.is_live(datagram.0) => return Some(datagram),
                Ok(_) => gro.drop_train(),
                Err(_) => self.stats.truncated_dropped += 1,
            }
        }
    }

    /// Begins to hand out what is in a large slot.
    #[cold]
    fn unpack(&mut self, arrival: &Arrival) {
        let Some(gro) = &mut self.gro else { return };
        let segments = match gro.unpack(arrival) {
            Ok(unpacking) => unpacking.segments(),
            Err(unusable) => return self.stats.unusable(&unusable),
        };
        self.stats.gro_trains += u64::from(segments > 1);
        self.stats.gro_segments += if segments > 1 { u64::from(segments) } else { 0 };
        let Some(entry) = self.sockets.get_any_mut(arrival.socket) else {
            return;
        };
        match entry.extra.habit.train(segments) {
            Change::None => {}
            Change::Rearm => self.receiver.changing.push(arrival.socket),
        }
    }

    #[cold]
    fn receive_ended(&mut self, id: SocketId, error: Option<io::Error>) {
        let live = self.sockets.is_live(id);
        let Some(entry) = self.sockets.get_any_mut(id) else {
            return;
        };
        entry.extra.armed = false;
        if !live {
            self.finished.push(id);
            return;
        }
        match error.as_ref().and_then(io::Error::raw_os_error) {
            // Cancelled to get other slots.
            None | Some(libc::ECANCELED) => {}
            Some(libc::ENOBUFS) => self.stats.enobufs += 1,
            Some(_) => {
                self.stats.receive_errors += 1;
                // An error of the network's is no reason to leave the socket alone.
                let is_reported = drain(id, &entry.socket, &mut self.errors);
                let at_once = !is_reported && entry.extra.armed_in_turn == self.stats.turns;
                entry.extra.errors_in_row = if at_once {
                    entry.extra.errors_in_row + 1
                } else {
                    0
                };
                if entry.extra.errors_in_row >= MOST_ERRORS_IN_ROW {
                    return;
                }
            }
        }
        self.receiver.ended.push(id);
    }

    #[cold]
    fn refuse(&mut self, train: u32, segment: Option<u32>, errno: i32) {
        let staged = &self.staged;
        let train = &staged.trains()[train as usize];
        let Some(entry) = self.sockets.get_any_mut(train.socket) else {
            return;
        };
        let mut refused = Refused {
            socket: &entry.socket,
            gso: &mut entry.gso,
            stats: &mut self.stats,
        };
        // SAFETY: refusals are reaped before slots and arena are given back.
        unsafe {
            match segment {
                Some(segment) => refused.single(staged, train, segment, errno),
                None => refused.train(staged, train, errno),
            }
        }
        // The error that waited may have been reported to this send, and then no receive ends by it.
        if !matches!(errno, libc::EAGAIN | libc::ENOBUFS) {
            drain(train.socket, &entry.socket, &mut self.errors);
        }
    }
}
