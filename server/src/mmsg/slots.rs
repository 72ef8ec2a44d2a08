//! The receive slots: one block of memory and the list of its free slots.
//!
//! A slot is free, or belongs to the kernel during one recvmmsg, or to one waiting or handed-out
//! datagram. Payloads start [`HEADROOM`] bytes into their slot.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use crate::packet_io::HEADROOM;

#[derive(Debug)]
pub(super) struct Slots {
    memory: NonNull<u8>,
    count: u32,
    slot_bytes: u32,
    free: Vec<u32>,
    /// Handed out in this turn; free again at the next one.
    borrowed: Vec<u32>,
}

impl Slots {
    pub(super) fn new(count: u32, slot_bytes: u32) -> Self {
        let layout = Self::layout(count, slot_bytes);
        // SAFETY: the layout is not empty, since both factors are at least one.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(memory) = NonNull::new(memory) else {
            handle_alloc_error(layout)
        };
        Self {
            memory,
            count,
            slot_bytes,
            free: (0..count).rev().collect(),
            borrowed: Vec::with_capacity(count as usize),
        }
    }

    fn layout(count: u32, slot_bytes: u32) -> Layout {
        Layout::from_size_align(count as usize * slot_bytes as usize, 4096)
            .expect("at most 2^15 slots of less than 2^17 bytes")
    }

    pub(super) fn payload_capacity(&self) -> usize {
        self.slot_bytes as usize - HEADROOM
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

    /// Where the payload of `slot` starts.
    pub(super) fn payload_at(&self, slot: u32) -> *mut u8 {
        assert!(slot < self.count);
        let offset = slot as usize * self.slot_bytes as usize + HEADROOM;
        // SAFETY: `slot` is in range and slots are longer than HEADROOM, so this stays inside.
        unsafe { self.memory.as_ptr().add(offset) }
    }

    #[inline]
    pub(super) fn payload(&self, slot: u32, len: usize) -> &[u8] {
        assert!(len <= self.payload_capacity());
        // SAFETY: the slot was handed out in this turn, so neither the kernel nor the free list
        // has it until `give_back`, which needs `&mut self`; the memory is initialised (zeroed).
        unsafe { std::slice::from_raw_parts(self.payload_at(slot), len) }
    }

    #[inline]
    pub(super) fn payload_mut(&mut self, slot: u32, len: usize) -> &mut [u8] {
        assert!(len <= self.payload_capacity());
        // SAFETY: as in `payload`, and `&mut self` excludes every other slice.
        unsafe { std::slice::from_raw_parts_mut(self.payload_at(slot), len) }
    }

    /// Replaces the first `strip` bytes of a payload by `header`; returns where it starts and its
    /// new length.
    #[inline]
    pub(super) fn reframe(
        &mut self,
        slot: u32,
        len: usize,
        strip: usize,
        header: &[u8],
    ) -> (*const u8, u32) {
        assert!(len <= self.payload_capacity() && strip <= len && header.len() <= HEADROOM);
        // SAFETY: the new start lies between HEADROOM bytes before the payload, which belong to
        // the slot, and the payload's end; `header` cannot overlap, as it is borrowed from
        // elsewhere while `self` is borrowed mutably.
        let at = unsafe {
            let at = self.payload_at(slot).add(strip).sub(header.len());
            at.copy_from_nonoverlapping(header.as_ptr(), header.len());
            at
        };
        (at, (len - strip + header.len()) as u32)
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout; receives are synchronous, so the kernel
        // holds no slot.
        unsafe {
            dealloc(
                self.memory.as_ptr(),
                Self::layout(self.count, self.slot_bytes),
            )
        }
    }
}
