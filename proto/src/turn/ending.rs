//! How allocations and reservations end: they lapse, their client goes, or one family after the other is given up. It
//! answers nobody.

use super::allocate::Reservation;
use super::allocation::{Family, Reserved};
use super::{RelayCommand, Step, TurnService};
use crate::addr::ClientAddr;
use crate::forwarding::SocketIndex;
use crate::lobby::TimerKey;
use crate::stats::Counter;

impl TurnService {
    /// The timer of a place in the table, whoever has it now.
    pub fn handle_allocation_timer(&mut self, step: &mut Step<'_>, index: u32) {
        let Some(allocation) = self.allocations.get(index) else {
            return;
        };
        let lapsed = allocation
            .relayed
            .map(|relayed| relayed.is_some_and(|relayed| relayed.until <= step.now));
        for family in Family::ALL {
            if lapsed[family.place()] {
                self.close_family(step, index, family);
            }
        }
        if self.allocations.get(index).is_none() {
            step.counters.count(Counter::AllocationsExpired);
        }
        self.set_timer(step, index);
    }

    /// A reservation whose token nobody showed in time.
    pub fn handle_reservation_timer(&mut self, step: &mut Step<'_>, uid: u32) {
        let of_uid = |reservation: &Reservation| reservation.uid == uid;
        if let Some(at) = self.reservations.iter().position(of_uid) {
            let Reserved {
                family,
                socket,
                port,
                ..
            } = self.reservations.swap_remove(at).reserved;
            self.close(step, family, socket, port);
        }
    }

    /// Gives up one family of an allocation, and the allocation with its last one.
    pub(super) fn close_family(&mut self, step: &mut Step<'_>, index: u32, family: Family) {
        let Some(allocation) = self.allocations.get(index) else {
            return;
        };
        let Some(relayed) = allocation.relayed[family.place()].take() else {
            return;
        };
        let is_last = allocation.next_expiry().is_none();
        step.forwarding.remove_family(index, family.place());
        self.close(step, family, relayed.socket, relayed.port);
        if is_last {
            self.delete(step, index);
        }
    }

    /// The stream of an allocation's client has ended: nothing can be relayed to it any more, unless it can move (RFC 8016).
    pub fn handle_client_gone(
        &mut self,
        step: &mut Step<'_>,
        index: u32,
        socket: SocketIndex,
        client: ClientAddr,
    ) {
        let Some(allocation) = self.allocations.get(index) else {
            return;
        };
        if let Some(waiting) = &mut allocation.opening {
            waiting.is_abandoned = true;
            step.forwarding.remove_source(index, socket, client);
        } else if allocation.mobility.is_some() {
            self.forget_stream(step, index, socket, client);
        } else {
            self.delete(step, index);
        }
    }

    /// Removes an allocation with everything that is still open. Ports reserved with it go on waiting for their tokens.
    pub(super) fn delete(&mut self, step: &mut Step<'_>, index: u32) {
        let Some(allocation) = self.allocations.remove(index) else {
            return;
        };
        step.forwarding.remove_relay(index);
        self.forget_places(step, index, &allocation);
        for family in Family::ALL {
            if let Some(relayed) = allocation.relayed[family.place()] {
                self.close(step, family, relayed.socket, relayed.port);
            }
        }
    }

    /// Sees to it that a timer fires when the next family of an allocation lapses.
    pub(super) fn set_timer(&mut self, step: &mut Step<'_>, index: u32) {
        if let Some(at) = self.allocations.needs_timer(step.now, index) {
            step.wheel.schedule(at, TimerKey::Allocation(index));
        }
    }

    pub(super) fn close(
        &mut self,
        step: &mut Step<'_>,
        family: Family,
        socket: SocketIndex,
        port: u16,
    ) {
        step.out.relay.push(RelayCommand::Close { socket });
        self.free_sockets.push(socket);
        self.give_port_back(step, family, port);
    }

    /// A port of this shard may be taken again.
    pub(super) fn free_port(&mut self, family: Family, port: u16) {
        if let Some(address) = &mut self.addresses[family.place()] {
            address.pool.give_back(port);
        }
    }
}
