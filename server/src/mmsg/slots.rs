//! The receive slots and the list of the free ones.
//!
//! A slot is free, or belongs to the kernel during one recvmmsg, or to one waiting or handed-out
//! datagram.

use super::slot_memory::{SlotMemory, WIDE};
use crate::packet_io::IoConfig;

#[derive(Debug)]
pub(super) struct Slots {
    pub(super) memory: SlotMemory,
    free: Vec<u32>,
    /// Handed out in this turn; free again at the next one.
    borrowed: Vec<u32>,
}

impl Slots {
    pub(super) fn new(count: u32, slot_bytes: u32) -> Self {
        Self {
            memory: SlotMemory::new(count, slot_bytes),
            free: (0..count).rev().collect(),
            borrowed: Vec::with_capacity(count as usize),
        }
    }

    /// The `nth` slot that a receive call may fill, none when fewer are free.
    pub(super) fn nth_free(&self, nth: usize) -> Option<u32> {
        self.free.len().checked_sub(nth + 1).map(|at| self.free[at])
    }

    /// Takes the first `n` of [`Slots::nth_free`] out of the free list.
    pub(super) fn take(&mut self, n: usize) {
        self.free.truncate(self.free.len() - n);
    }

    pub(super) fn borrow_for_turn(&mut self, slot: u32) {
        self.borrowed.push(slot);
    }

    /// Frees what was handed out. Nothing that is staged may refer to it any more.
    pub(super) fn give_back(&mut self) {
        // Last in, first out: the slots that are still in the cache are filled next.
        self.free.append(&mut self.borrowed);
    }
}

/// The usual slots and those of wide sockets.
#[derive(Debug)]
pub(super) struct DatagramSlots {
    small: Slots,
    wide: Option<Slots>,
}

impl DatagramSlots {
    pub(super) fn new(config: &IoConfig) -> Self {
        let has_wide = config.wide_slot_bytes > 0;
        Self {
            small: Slots::new(config.slots, config.slot_bytes),
            wide: has_wide.then(|| Slots::new(config.slots, config.wide_slot_bytes)),
        }
    }

    pub(super) fn has_wide(&self) -> bool {
        self.wide.is_some()
    }

    /// The slots that a socket receives in, and what marks their numbers.
    pub(super) fn of(&mut self, is_wide: bool) -> (&mut Slots, u32) {
        match &mut self.wide {
            Some(wide) if is_wide => (wide, WIDE),
            _ => (&mut self.small, 0),
        }
    }

    #[inline]
    pub(super) fn borrow_for_turn(&mut self, slot: u32) {
        let (slots, mark) = self.of(slot & WIDE != 0);
        slots.borrow_for_turn(slot & !mark);
    }

    /// Frees what was handed out. Nothing that is staged may refer to it any more.
    pub(super) fn give_back(&mut self) {
        self.small.give_back();
        if let Some(wide) = &mut self.wide {
            wide.give_back();
        }
    }

    /// The memory that a slot lies in, and its number there.
    #[inline]
    pub(super) fn slot(&self, slot: u32) -> (&SlotMemory, u32) {
        match &self.wide {
            Some(wide) if slot & WIDE != 0 => (&wide.memory, slot & !WIDE),
            _ => (&self.small.memory, slot),
        }
    }

    #[inline]
    pub(super) fn slot_mut(&mut self, slot: u32) -> (&mut SlotMemory, u32) {
        let (slots, mark) = self.of(slot & WIDE != 0);
        (&mut slots.memory, slot & !mark)
    }
}
