//! The receive slots and the list of the free ones.
//!
//! A slot is free, or belongs to the kernel during one recvmmsg, or to one waiting or handed-out
//! datagram.

use super::slot_memory::SlotMemory;

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
