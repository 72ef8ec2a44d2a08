//! Mobility (RFC 8016): a client whose address changed keeps its allocation by showing a ticket from its new five-tuple.
//!
//! A ticket names the shard, the place and the occupancy of an allocation under a MAC of the server's secret, and is good for
//! one move; whoever shows it must also be the allocation's user. Until the client sends something else from the new five-tuple,
//! which shows that it has heard the answer, peers' data goes to the old one.
//!
//! The kernel may bring the new five-tuple to another shard. That shard mails the Refresh to the allocation's, and from then
//! on everything that TURN gets from that source: it keeps an entry for a guest, and nothing else of the allocation. Data to the
//! client leaves the allocation's own shard and takes no detour.

use rand::RngExt;
use subtle::ConstantTimeEq;

use super::allocation::Allocation;
use super::{Outcome, Reject, Request, Step, TurnService};
use crate::addr::{Addr, ClientAddr};
use crate::forwarding::SocketIndex;
use crate::lobby::{Mail, StreamSerial};
use crate::stats::Counter;
use crate::ticket::Sealer;
use crate::wire::stun::{TransactionId, attr, method};

const BODY_LEN: usize = 18;
const MAC_LEN: usize = 16;
/// Bytes of a ticket.
pub(super) const TICKET_LEN: usize = BODY_LEN + MAC_LEN;

/// A five-tuple, and the shard that the kernel brings it to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub socket: SocketIndex,
    pub client: ClientAddr,
    pub home: u16,
    /// The stream that it is, if it is one.
    pub stream: Option<StreamSerial>,
}

/// What makes an allocation mobile.
#[derive(Debug)]
pub(super) struct Mobility {
    /// Tells this occupancy of a place in the table from others.
    uid: u64,
    /// Moves so far: a ticket is good for the next one.
    moves: u32,
    /// The request that moved it last: its repetition gets the same answer.
    moved_by: Option<TransactionId>,
    /// The home of the five-tuple that is served, and its stream.
    home: u16,
    stream: Option<StreamSerial>,
    /// Where it was moved to and has not shown itself yet.
    candidate: Option<Place>,
}

/// What a ticket says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Ticket {
    shard: u16,
    allocation: u32,
    uid: u64,
    moves: u32,
}

impl Ticket {
    fn seal(self, sealer: &Sealer) -> [u8; TICKET_LEN] {
        let mut sealed = [0; TICKET_LEN];
        sealed[..2].copy_from_slice(&self.shard.to_be_bytes());
        sealed[2..6].copy_from_slice(&self.allocation.to_be_bytes());
        sealed[6..14].copy_from_slice(&self.uid.to_be_bytes());
        sealed[14..18].copy_from_slice(&self.moves.to_be_bytes());
        let [mac, _] = sealer.mobility_macs(&sealed[..BODY_LEN]);
        sealed[BODY_LEN..].copy_from_slice(&mac.expect("there is always a sealing secret"));
        sealed
    }

    /// `None` if nobody with our secret sealed it.
    fn open(sealed: &[u8], sealer: &Sealer) -> Option<Self> {
        let sealed: &[u8; TICKET_LEN] = sealed.try_into().ok()?;
        let (body, mac) = sealed.split_at(BODY_LEN);
        let macs = sealer.mobility_macs(body).into_iter().flatten();
        let is_ours = macs.fold(false, |is_ours, known| {
            is_ours | bool::from(known.as_slice().ct_eq(mac))
        });
        is_ours.then_some(())?;
        Some(Self {
            shard: u16::from_be_bytes(body[..2].try_into().ok()?),
            allocation: u32::from_be_bytes(body[2..6].try_into().ok()?),
            uid: u64::from_be_bytes(body[6..14].try_into().ok()?),
            moves: u32::from_be_bytes(body[14..18].try_into().ok()?),
        })
    }
}

impl TurnService {
    /// The mobility that an Allocate request asks for (RFC 8016 section 3.1.2).
    pub(super) fn wished_mobility(
        &self,
        step: &mut Step<'_>,
        request: &Request<'_>,
    ) -> Result<Option<Box<Mobility>>, Reject> {
        match request.message.find(attr::MOBILITY_TICKET) {
            None => Ok(None),
            Some([]) if self.config.mobility => Ok(Some(Box::new(Mobility {
                uid: step.rng.random(),
                moves: 0,
                moved_by: None,
                home: step.home,
                stream: step.by_stream,
                candidate: None,
            }))),
            Some([]) => Err(Reject(405)),
            Some(_) => Err(Reject(400)),
        }
    }

    /// The ticket for the next move of an allocation, if it is mobile.
    pub(super) fn ticket(&mut self, step: &Step<'_>, allocation: u32) -> Option<[u8; TICKET_LEN]> {
        let shard = self.shard;
        let mobility = self.allocations.get(allocation)?.mobility.as_ref()?;
        let ticket = Ticket {
            shard,
            allocation,
            uid: mobility.uid,
            moves: mobility.moves,
        };
        Some(ticket.seal(step.sealer))
    }

    /// Whether a Refresh from a five-tuple of this allocation may show this ticket: none, or the current one.
    pub(super) fn check_ticket(
        &mut self,
        step: &Step<'_>,
        request: &Request<'_>,
        allocation: u32,
    ) -> Outcome {
        match request.message.find(attr::MOBILITY_TICKET) {
            None => Ok(()),
            Some(_) if !self.config.mobility => Err(Reject(405)),
            Some(shown) => {
                let current = self.ticket(step, allocation);
                let is_current = current.is_some_and(|current| current.ct_eq(shown).into());
                is_current.then_some(()).ok_or(Reject(400))
            }
        }
    }

    /// Whether this is a repetition of the request that moved the allocation to where it comes from.
    pub(super) fn repeats_move(&mut self, request: &Request<'_>, allocation: u32) -> bool {
        let allocation = self.allocations.get(allocation);
        let mobility = allocation.and_then(|allocation| allocation.mobility.as_ref());
        request.message.method() == method::REFRESH
            && mobility.is_some_and(|mobility| mobility.moved_by == Some(request.reply.id))
    }

    /// A Refresh with a ticket from a five-tuple that has no allocation (RFC 8016 section 3.2.2).
    pub(super) fn handle_move(
        &mut self,
        step: &mut Step<'_>,
        request: &Request<'_>,
        sealed: &[u8],
    ) -> Outcome {
        if !self.config.mobility {
            return Err(Reject(405));
        }
        let (socket, client) = (request.reply.socket, request.source);
        let ticket = Ticket::open(sealed, step.sealer).ok_or(Reject(400))?;
        if step.forwarding.seat_of(socket, client).is_some() {
            return Err(Reject(437));
        }
        if ticket.shard != self.shard {
            // Another process that shares the secret may have had more shards.
            if step.home != self.shard || ticket.shard >= self.shard_count {
                return Err(Reject(437));
            }
            let mail = Mail::FromGuest {
                socket,
                source: client,
                home: self.shard,
                stream: step.by_stream,
                bytes: request.message.bytes().into(),
            };
            step.out.mail.push((ticket.shard, mail));
            return Ok(());
        }
        let index = ticket.allocation;
        let allocation = self.allocations.get(index).ok_or(Reject(437))?;
        if allocation.user != request.user {
            return Err(Reject(441));
        }
        let mobility = allocation.mobility.as_deref().ok_or(Reject(437))?;
        if mobility.uid != ticket.uid {
            return Err(Reject(437));
        }
        if mobility.moves != ticket.moves {
            return Err(Reject(400));
        }
        let wish = allocation.refresh_wish(request.message)?;
        if wish.requested_secs == Some(0) {
            self.refresh(step, request, index, wish);
            return Ok(());
        }
        self.add_candidate(step, request, index);
        self.refresh(step, request, index, wish);
        if step.home != self.shard {
            // The client sends as soon as it has the answer, so the answer comes from where the guest is expected by then.
            let answer = step.out.transmits.pop().expect("a Refresh is answered");
            let bytes = step.out.bytes.split_off(answer.start).into();
            let mail = Mail::AddGuest {
                socket,
                source: client,
                owner: self.shard,
                stream: step.by_stream,
                answer: bytes,
            };
            step.out.mail.push((step.home, mail));
        }
        Ok(())
    }

    fn add_candidate(&mut self, step: &mut Step<'_>, request: &Request<'_>, index: u32) {
        let place = Place {
            socket: request.reply.socket,
            client: request.source,
            home: step.home,
            stream: step.by_stream,
        };
        let allocation = self.allocations.get(index);
        let mobility = allocation.and_then(|allocation| allocation.mobility.as_deref_mut());
        let mobility = mobility.expect("the caller found it mobile");
        mobility.moves = mobility.moves.wrapping_add(1);
        mobility.moved_by = Some(request.reply.id);
        if let Some(old) = mobility.candidate.replace(place) {
            self.forget(step, index, old);
        }
        step.forwarding.add_moved(index, place.socket, place.client);
    }

    /// The client sends from where it moved to: from now on that is its five-tuple.
    pub fn handle_arrival(&mut self, step: &mut Step<'_>, index: u32) {
        let Some(allocation) = self.allocations.get(index) else {
            return;
        };
        let Some(mobility) = allocation.mobility.as_deref_mut() else {
            return;
        };
        let Some(new) = mobility.candidate.take() else {
            return;
        };
        let old = Place {
            socket: allocation.socket,
            client: allocation.client,
            home: mobility.home,
            stream: mobility.stream,
        };
        mobility.home = new.home;
        mobility.stream = new.stream;
        allocation.socket = new.socket;
        allocation.client = new.client;
        step.counters.count(Counter::AllocationsMoved);
        self.forget(step, index, old);
        step.forwarding
            .arrive(step.now, index, new.socket, new.client);
    }

    /// The stream that was one of a mobile allocation's five-tuples has ended. The allocation goes on: its client may move.
    pub(super) fn forget_stream(
        &mut self,
        step: &mut Step<'_>,
        index: u32,
        socket: SocketIndex,
        client: ClientAddr,
    ) {
        step.forwarding.remove_source(index, socket, client);
        let Some(allocation) = self.allocations.get(index) else {
            return;
        };
        let is_active = (allocation.socket, allocation.client) == (socket, client);
        let Some(mobility) = allocation.mobility.as_deref_mut() else {
            return;
        };
        if is_active {
            // Nowhere, so that a later stream of the same address and port is a new place.
            allocation.client = ClientAddr(Addr::default());
            mobility.home = self.shard;
            mobility.stream = None;
            step.forwarding.unplug(index);
        } else {
            mobility.candidate = None;
        }
    }

    /// As [`TurnService::forget_stream`], for a stream of another shard. One that an allocation has left, or not reached, ends
    /// nothing.
    pub fn handle_guest_stream_ended(
        &mut self,
        step: &mut Step<'_>,
        socket: SocketIndex,
        client: ClientAddr,
        stream: StreamSerial,
    ) {
        let Some(index) = step.forwarding.allocation_of(socket, client) else {
            return;
        };
        let Some(allocation) = self.allocations.get(index) else {
            return;
        };
        let is_active = (allocation.socket, allocation.client) == (socket, client);
        let mobility = allocation.mobility.as_deref();
        let serial = mobility.and_then(|mobility| match mobility.candidate {
            Some(candidate) if !is_active => candidate.stream,
            _ => mobility.stream,
        });
        if serial == Some(stream) {
            self.forget_stream(step, index, socket, client);
        }
    }

    /// Gives up the five-tuples of an allocation that is removed.
    pub(super) fn forget_places(&self, step: &mut Step<'_>, index: u32, allocation: &Allocation) {
        let home = allocation.mobility.as_ref().map_or(self.shard, |m| m.home);
        let active = Place {
            socket: allocation.socket,
            client: allocation.client,
            home,
            stream: None,
        };
        self.forget(step, index, active);
        if let Some(candidate) = allocation.mobility.as_ref().and_then(|m| m.candidate) {
            self.forget(step, index, candidate);
        }
    }

    fn forget(&self, step: &mut Step<'_>, index: u32, place: Place) {
        step.forwarding
            .remove_source(index, place.socket, place.client);
        if place.home != self.shard {
            let mail = Mail::RemoveGuest {
                socket: place.socket,
                source: place.client,
                owner: self.shard,
            };
            step.out.mail.push((place.home, mail));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nonce::ServerSecret;

    #[test]
    fn no_bit_of_a_ticket_can_be_changed() {
        let mut sealer = Sealer::new(ServerSecret([1; 32]));
        let ticket = Ticket {
            shard: 3,
            allocation: 70_000,
            uid: 0x0123_4567_89ab_cdef,
            moves: 9,
        };
        let sealed = ticket.seal(&sealer);
        assert_eq!(Ticket::open(&sealed, &sealer), Some(ticket));
        for bit in 0..sealed.len() * 8 {
            let mut other = sealed;
            other[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Ticket::open(&other, &sealer), None, "bit {bit}");
        }
        for len in 0..sealed.len() {
            assert_eq!(Ticket::open(&sealed[..len], &sealer), None);
        }
        sealer.rotate(ServerSecret([2; 32]));
        assert_eq!(Ticket::open(&sealed, &sealer), Some(ticket));
        sealer.rotate(ServerSecret([3; 32]));
        assert_eq!(Ticket::open(&sealed, &sealer), None);
    }
}
