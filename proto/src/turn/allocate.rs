//! Allocate (RFC 8656 section 7.2): relayed transport addresses are opened and reserved.

use std::ops::RangeInclusive;

use subtle::ConstantTimeEq;

use super::allocation::{Allocation, Family, Relayed, Reserved, Waiting};
use super::port_pool::{Parity, PortPool};
use super::quota::{OverQuota, Quotas};
use super::reservation::REOPEN_TRIES;
use super::{
    Outcome, Reject, RelayCommand, RelayIp, RelayRefusal, Reply, Request, Step, TurnService,
    granted_lifetime, lifetime, requested_family,
};
use crate::addr::Addr;
use crate::forwarding::SocketIndex;
use crate::lobby::TimerKey;
use crate::stats::Counter;
use crate::wire::stun::{Message, attr};

/// Seconds that a reserved port waits (RFC 8656 section 7.2: at least 30).
const RESERVATION_SECS: u32 = 30;
/// Reserved ports at one time.
const RESERVATIONS_MAX: usize = 1024;
/// Ports that are tried before an Allocate fails because strangers have them.
const TRIES: u8 = 16;

/// The relay address of one family, and its ports.
pub(super) struct RelayAddress {
    pub ip: RelayIp,
    pub pool: PortPool,
}

impl RelayAddress {
    pub fn new(ip: RelayIp, ports: RangeInclusive<u16>, index: u16, count: u16) -> Self {
        Self {
            ip,
            pool: PortPool::of_shard(ports, index, count),
        }
    }

    /// Whether a port belongs to this shard.
    pub fn owns(&self, port: u16) -> bool {
        self.pool.contains(port)
    }

    pub const fn taken_count(&self) -> u32 {
        self.pool.taken_count()
    }
}

/// What a socket that is being opened will be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Use {
    /// A relayed transport address.
    Relayed,
    /// The port reserved with one.
    Reserved([u8; 8]),
}

/// A socket that is being opened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opening {
    pub allocation: u32,
    pub family: Family,
    pub port: u16,
    parity: Parity,
    tries_left: u8,
    purpose: Use,
}

impl Opening {
    /// A port of another shard.
    pub const fn of_borrowed(allocation: u32, family: Family, port: u16) -> Self {
        Self {
            allocation,
            family,
            port,
            parity: Parity::Any,
            tries_left: REOPEN_TRIES,
            purpose: Use::Relayed,
        }
    }

    /// The same with one try less.
    pub fn tried_again(self) -> Option<Self> {
        let tries_left = self.tries_left.checked_sub(1)?;
        Some(Self { tries_left, ..self })
    }
}

/// A port that waits for its token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reservation {
    pub(super) uid: u32,
    user: u64,
    pub(super) reserved: Reserved,
}

/// What an Allocate request asks for.
struct Wish {
    requested_secs: Option<u32>,
    /// The families wanted; the second may fail.
    families: [Option<Family>; 2],
    parity: Parity,
    token: Option<[u8; 8]>,
}

impl Wish {
    /// RFC 8656 section 7.2, steps 3 to 9, in that order.
    fn read(message: &Message<'_>) -> Result<Self, Reject> {
        const UDP: u8 = 17;
        match message.find(attr::REQUESTED_TRANSPORT) {
            Some(&[UDP, _, _, _]) => {}
            Some(&[_, _, _, _]) => return Err(Reject(442)),
            _ => return Err(Reject(400)),
        }
        let requested_secs = lifetime(message)?;
        let parity = match message.find(attr::EVEN_PORT) {
            None => Parity::Any,
            Some(&[bits]) if bits & 0x80 != 0 => Parity::EvenPair,
            Some(&[_]) => Parity::Even,
            Some(_) => return Err(Reject(400)),
        };
        let has = |kind| message.find(kind).is_some();
        let one = has(attr::REQUESTED_ADDRESS_FAMILY);
        let both = has(attr::ADDITIONAL_ADDRESS_FAMILY);
        let token = match message.find(attr::RESERVATION_TOKEN) {
            None => None,
            Some(_) if one || both || parity != Parity::Any => return Err(Reject(400)),
            Some(token) => Some(token.try_into().map_err(|_| Reject(400))?),
        };
        if both && (one || parity == Parity::EvenPair) {
            return Err(Reject(400));
        }
        let family = requested_family(message, attr::REQUESTED_ADDRESS_FAMILY)?;
        let families = match requested_family(message, attr::ADDITIONAL_ADDRESS_FAMILY) {
            Ok(None) => [Some(family.unwrap_or(Family::V4)), None],
            Ok(Some(Family::V6)) => [Some(Family::V4), Some(Family::V6)],
            _ => return Err(Reject(400)),
        };
        Ok(Self {
            requested_secs,
            families,
            parity,
            token,
        })
    }
}

impl TurnService {
    /// Allocate (RFC 8656 section 7.2).
    pub(super) fn handle_allocate(
        &mut self,
        step: &mut Step<'_>,
        request: &Request<'_>,
    ) -> Outcome {
        let socket = request.reply.socket;
        if let Some(index) = step.forwarding.allocation_of(socket, request.source) {
            let allocation = self
                .allocations
                .get(index)
                .expect("an indexed allocation is there");
            if allocation.allocate_id != request.reply.id || allocation.user != request.user {
                return Err(Reject(437));
            }
            if allocation.opening.is_none() {
                self.answer_allocate(step, index, &request.reply);
            }
            return Ok(());
        }
        if step.forwarding.seat_of(socket, request.source).is_some() {
            return Err(Reject(437));
        }
        let wish = Wish::read(request.message)?;
        let mobility = self.wished_mobility(step, request)?;
        let has_address = |family: &Family| self.addresses[family.place()].is_some();
        if !wish.families.iter().flatten().any(has_address) {
            return Err(Reject(440));
        }
        if self.draining || self.allocations.is_full() {
            return Err(Reject(508));
        }
        let quotas = Quotas {
            per_person: self.config.allocations_per_user,
            per_source: self.config.allocations_per_prefix,
        };
        let source = self.seal.source(request.source.0.source_prefix());
        let share = quotas
            .take(&self.config.shares, request.person, source)
            .map_err(|OverQuota| Reject(486))?;
        let lender = wish.token.and_then(|token| self.seal.elsewhere(token));
        let reserved = match wish.token {
            Some(token) if lender.is_none() => {
                Some(self.redeem(token, request.user).ok_or(Reject(508))?)
            }
            _ => None,
        };
        let granted_secs = granted_lifetime(wish.requested_secs);
        let index = self.allocations.insert(Allocation {
            socket,
            client: request.source,
            user: request.user,
            share,
            allocate_id: request.reply.id,
            granted_secs,
            relayed: [None; 2],
            failed: [None; 2],
            reserved: None,
            mobility,
            opening: Some(Box::new(Waiting {
                sockets: 0,
                is_pair: wish.parity == Parity::EvenPair,
                is_half: false,
                pairs_left: TRIES,
                is_abandoned: false,
                reply: request.reply.clone(),
            })),
        });
        step.forwarding
            .reserve_source(index, socket, request.source);
        if let (Some(lender), Some(token)) = (lender, wish.token) {
            self.borrow_port(step, lender, index, token, request.user);
        } else if let Some(reserved) = reserved {
            let Reserved {
                family,
                socket,
                port,
                ..
            } = reserved;
            self.opened(step, index, family, socket, port);
        } else {
            for family in wish.families.into_iter().flatten() {
                let error = match self.open(step, index, family, wish.parity) {
                    Ok(()) => continue,
                    Err(Reject(error)) => error,
                };
                let allocation = self.allocations.get(index).expect("just inserted");
                allocation.failed[family.place()] = Some(error);
            }
        }
        self.finish_if_opened(step, index);
        Ok(())
    }

    /// Takes the port that waits for this token of this user.
    pub(super) fn redeem(&mut self, token: [u8; 8], user: u64) -> Option<Reserved> {
        let fits = |r: &Reservation| bool::from(r.reserved.token.ct_eq(&token)) && r.user == user;
        let at = self.reservations.iter().position(fits)?;
        Some(self.reservations.swap_remove(at).reserved)
    }

    /// Has a relay socket opened, or two.
    fn open(
        &mut self,
        step: &mut Step<'_>,
        allocation: u32,
        family: Family,
        parity: Parity,
    ) -> Outcome {
        let address = self.addresses[family.place()].as_mut().ok_or(Reject(440))?;
        let needed = if parity == Parity::EvenPair { 2 } else { 1 };
        if self.free_sockets.len() + self.unused_sockets.len() < needed
            || (needed == 2 && self.reservations.len() >= RESERVATIONS_MAX)
        {
            return Err(Reject(508));
        }
        let port = address.pool.take(parity, step.rng).ok_or(Reject(508))?;
        let opening = Opening {
            allocation,
            family,
            port,
            parity,
            tries_left: if needed == 2 { 0 } else { TRIES },
            purpose: Use::Relayed,
        };
        if needed == 2 {
            address.pool.mark(port + 1);
            let reserved = Opening {
                port: port + 1,
                purpose: Use::Reserved(self.seal.token(step.rng)),
                ..opening
            };
            self.command_open(step, opening);
            self.command_open(step, reserved);
        } else {
            self.command_open(step, opening);
        }
        Ok(())
    }

    pub(super) fn command_open(&mut self, step: &mut Step<'_>, opening: Opening) {
        let socket = self
            .free_sockets
            .pop()
            .or_else(|| self.unused_sockets.next().map(SocketIndex))
            .expect("the caller checked that there is one");
        self.opening.insert(socket, opening);
        self.await_one_more(opening.allocation);
        let at = self.bind_addr(opening.family, opening.port);
        step.out.relay.push(RelayCommand::Open {
            socket,
            at,
            is_wide: false,
        });
    }

    /// How many sockets an allocation waits for.
    fn awaited(&mut self, allocation: u32) -> &mut u8 {
        let allocation = self.allocations.get(allocation);
        let waiting = allocation.and_then(|allocation| allocation.opening.as_mut());
        let waiting = waiting.expect("an allocation stays until its sockets are opened");
        &mut waiting.sockets
    }

    pub(super) fn await_one_more(&mut self, allocation: u32) {
        *self.awaited(allocation) += 1;
    }

    pub(super) fn await_one_less(&mut self, allocation: u32) {
        *self.awaited(allocation) -= 1;
    }

    pub(super) fn has_free_socket(&self) -> bool {
        !self.free_sockets.is_empty() || !self.unused_sockets.is_empty()
    }

    /// Notes that a family of an allocation is not to be had.
    pub(super) fn fail_opening(&mut self, allocation: u32, family: Family) {
        if let Some(allocation) = self.allocations.get(allocation) {
            allocation.failed[family.place()] = Some(508);
        }
    }

    pub(super) fn is_own_port(&self, family: Family, port: u16) -> bool {
        let address = self.addresses[family.place()].as_ref();
        address.is_some_and(|address| address.owns(port))
    }

    pub(super) fn bind_addr(&self, family: Family, port: u16) -> Addr {
        let address = self.addresses[family.place()].as_ref();
        let ip = address
            .expect("ports are taken from addresses that are there")
            .ip
            .local;
        Addr::from_ip_port(ip, port)
    }

    /// A relay socket was opened, or not.
    pub fn handle_opened(
        &mut self,
        step: &mut Step<'_>,
        socket: SocketIndex,
        outcome: Result<(), RelayRefusal>,
    ) {
        let opening = self
            .opening
            .remove(&socket)
            .expect("only sockets that were asked for are opened");
        let index = opening.allocation;
        self.await_one_less(index);
        match outcome {
            Ok(()) => match opening.purpose {
                Use::Relayed => self.opened(step, index, opening.family, socket, opening.port),
                Use::Reserved(token) => {
                    let allocation = self.allocations.get(index);
                    let allocation = allocation.expect("it waits for its sockets");
                    allocation.reserved = Some(Reserved {
                        token,
                        family: opening.family,
                        socket,
                        port: opening.port,
                    });
                }
            },
            Err(refusal) if !self.is_own_port(opening.family, opening.port) => {
                self.free_sockets.push(socket);
                self.retry_borrowed(step, opening, refusal);
            }
            Err(refusal) => {
                step.counters.count(Counter::RelayOpenFailures);
                self.free_sockets.push(socket);
                self.retry(step, opening, refusal);
            }
        }
        self.finish_if_opened(step, index);
    }

    /// Tries another port, if that may help.
    fn retry(&mut self, step: &mut Step<'_>, opening: Opening, refusal: RelayRefusal) {
        let address = self.addresses[opening.family.place()].as_mut();
        let pool = &mut address.expect("a port was taken from it").pool;
        let another = if refusal == RelayRefusal::InUse && opening.tries_left > 0 {
            pool.take(opening.parity, step.rng)
        } else {
            None
        };
        pool.give_back(opening.port);
        if let Some(port) = another {
            let tries_left = opening.tries_left - 1;
            self.command_open(
                step,
                Opening {
                    port,
                    tries_left,
                    ..opening
                },
            );
        } else {
            self.fail_opening(opening.allocation, opening.family);
            if let Some(allocation) = self.allocations.get(opening.allocation)
                && let Some(waiting) = &mut allocation.opening
            {
                waiting.is_half = waiting.is_pair && refusal == RelayRefusal::InUse;
            }
        }
    }

    /// When a stranger has one port of a pair: gives up the pair and has another one opened.
    fn try_another_pair(&mut self, step: &mut Step<'_>, index: u32) {
        let Some(allocation) = self.allocations.get(index) else {
            return;
        };
        let Some(waiting) = allocation.opening.as_mut() else {
            return;
        };
        if waiting.sockets > 0
            || !std::mem::take(&mut waiting.is_half)
            || waiting.is_abandoned
            || waiting.pairs_left == 0
        {
            return;
        }
        waiting.pairs_left -= 1;
        let Some(family) = Family::ALL
            .into_iter()
            .find(|family| allocation.failed[family.place()].take().is_some())
        else {
            return;
        };
        let even = allocation.relayed[family.place()].take();
        let even = even.map(|relayed| (relayed.socket, relayed.port));
        let odd = allocation.reserved.take();
        let odd = odd.map(|reserved| (reserved.socket, reserved.port));
        for (socket, port) in [even, odd].into_iter().flatten() {
            self.close(step, family, socket, port);
        }
        if let Err(Reject(error)) = self.open(step, index, family, Parity::EvenPair)
            && let Some(allocation) = self.allocations.get(index)
        {
            allocation.failed[family.place()] = Some(error);
        }
    }

    fn opened(
        &mut self,
        step: &Step<'_>,
        index: u32,
        family: Family,
        socket: SocketIndex,
        port: u16,
    ) {
        let allocation = self
            .allocations
            .get(index)
            .expect("it waits for its sockets");
        allocation.relayed[family.place()] = Some(Relayed {
            socket,
            port,
            until: step.now.plus_secs(allocation.granted_secs),
        });
    }

    /// When all sockets of an allocation are open, or not to be had: lets it relay and answers.
    pub(super) fn finish_if_opened(&mut self, step: &mut Step<'_>, index: u32) {
        self.try_another_pair(step, index);
        let allocation = self
            .allocations
            .get(index)
            .expect("it waits for its sockets");
        let Some(waiting) = allocation.opening.take_if(|waiting| waiting.sockets == 0) else {
            return;
        };
        let Waiting {
            is_pair,
            is_abandoned,
            reply,
            ..
        } = *waiting;
        let error = allocation.failed.iter().flatten().copied().max();
        let has_any = allocation.relayed.iter().any(Option::is_some);
        if !has_any || is_abandoned || (is_pair && error.is_some()) {
            if let Some(Reserved {
                family,
                socket,
                port,
                ..
            }) = allocation.reserved
            {
                self.close(step, family, socket, port);
            }
            self.delete(step, index);
            if !is_abandoned {
                self.reject(step, &reply, Reject(error.unwrap_or(508)));
            }
            return;
        }
        let (socket, client) = (allocation.socket, allocation.client);
        let opened = allocation.relayed;
        let opened = opened.map(|one| one.map(|relayed| (relayed.socket, relayed.port)));
        if let Some(reserved) = allocation.reserved {
            self.next_reservation = self.next_reservation.wrapping_add(1);
            let uid = self.next_reservation;
            self.reservations.push(Reservation {
                uid,
                user: allocation.user,
                reserved,
            });
            let at = step.now.plus_secs(RESERVATION_SECS);
            step.wheel.schedule(at, TimerKey::Reservation(uid));
        }
        step.forwarding.add_relay(index, socket, client, opened);
        self.set_timer(step, index);
        self.answer_allocate(step, index, &reply);
    }

    /// The success response, the same for every repetition of the request.
    pub(super) fn answer_allocate(&mut self, step: &mut Step<'_>, index: u32, reply: &Reply) {
        let allocation = self.allocations.get(index).expect("it has been opened");
        let relayed = Family::ALL.map(|family| {
            let port = allocation.relayed[family.place()].as_ref()?.port;
            let ip = self.addresses[family.place()].as_ref()?.ip.external;
            Some(Addr::from_ip_port(ip, port))
        });
        let ticket = self.ticket(step, index);
        let allocation = &*self.allocations.get(index).expect("it has been opened");
        reply.success(step, |writer| {
            for addr in relayed.into_iter().flatten() {
                writer.xor_addr(attr::XOR_RELAYED_ADDRESS, addr);
            }
            writer.u32(attr::LIFETIME, allocation.granted_secs);
            writer.xor_addr(attr::XOR_MAPPED_ADDRESS, reply.to);
            if let Some(ticket) = &ticket {
                writer.attribute(attr::MOBILITY_TICKET, ticket);
            }
            if let Some(reserved) = allocation.reserved {
                writer.attribute(attr::RESERVATION_TOKEN, &reserved.token);
            }
            for family in Family::ALL {
                if let Some(error) = allocation.failed[family.place()] {
                    let [class, number] = [error / 100, error % 100].map(|part| part as u8);
                    let value = [family.to_wire(), 0, class, number];
                    writer.attribute(attr::ADDRESS_ERROR_CODE, &value);
                }
            }
        });
    }
}
