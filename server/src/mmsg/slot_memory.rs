//! The memory of the receive slots, laid out alike for both backends.
//!
//! Each slot starts with [`HEADROOM`] bytes, then the payload. This file hands out views of a slot
//! and never knows which slots are free: the backends do, and call only for slots that are theirs.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use crate::packet_io::HEADROOM;

/// A slot of wide sockets among a backend's.
pub(crate) const WIDE: u32 = 1 << 30;

const PAGE_BYTES: usize = 4096;
const HUGE_PAGE_BYTES: usize = 2 << 20;

#[derive(Debug)]
pub(crate) struct SlotMemory {
    memory: NonNull<u8>,
    count: u32,
    slot_bytes: u32,
}

impl SlotMemory {
    pub(crate) fn new(count: u32, slot_bytes: u32) -> Self {
        let layout = Self::layout(count, slot_bytes);
        // SAFETY: the layout is not empty, since both factors are at least one. The block is ours
        // alone until `drop`; the advice may fail without harm, and the writes stay inside.
        let memory = unsafe {
            let memory = alloc(layout);
            if memory.is_null() {
                handle_alloc_error(layout)
            }
            if layout.align() == HUGE_PAGE_BYTES {
                libc::madvise(memory.cast(), layout.size(), libc::MADV_HUGEPAGE);
            }
            memory.write_bytes(0, layout.size());
            NonNull::new_unchecked(memory)
        };
        Self {
            memory,
            count,
            slot_bytes,
        }
    }

    fn layout(count: u32, slot_bytes: u32) -> Layout {
        let bytes = count as usize * slot_bytes as usize;
        let align = if bytes >= HUGE_PAGE_BYTES {
            HUGE_PAGE_BYTES
        } else {
            PAGE_BYTES
        };
        Layout::from_size_align(bytes, align).expect("at most 2^15 slots of less than 2^17 bytes")
    }

    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    pub(crate) fn slot_bytes(&self) -> u32 {
        self.slot_bytes
    }

    pub(crate) fn payload_capacity(&self) -> usize {
        self.slot_bytes as usize - HEADROOM
    }

    /// Where `slot` starts.
    #[inline]
    pub(crate) fn slot_at(&self, slot: u32) -> *mut u8 {
        assert!(slot < self.count);
        // SAFETY: `slot` is in range, so this stays inside the block.
        unsafe {
            self.memory
                .as_ptr()
                .add(slot as usize * self.slot_bytes as usize)
        }
    }

    /// Where the payload of `slot` starts.
    #[inline]
    pub(crate) fn payload_at(&self, slot: u32) -> *mut u8 {
        self.slot_at(slot).wrapping_add(HEADROOM)
    }

    /// The bytes before the payload.
    ///
    /// # Safety
    ///
    /// Neither the kernel nor a slice of the payload's owner may write to the slot meanwhile.
    #[inline]
    pub(crate) unsafe fn headroom(&self, slot: u32) -> &[u8; HEADROOM] {
        // SAFETY: inside the slot, initialised (zeroed), not written by the caller's promise.
        unsafe { &*self.slot_at(slot).cast() }
    }

    /// # Safety
    ///
    /// The slot must have been handed out in this turn: neither the kernel nor a free list has it
    /// as long as the slice lives.
    #[inline]
    pub(crate) unsafe fn payload(&self, slot: u32, len: usize) -> &[u8] {
        assert!(len <= self.payload_capacity());
        // SAFETY: inside the slot, initialised (zeroed), and ours by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.payload_at(slot), len) }
    }

    /// The first `len` bytes of a slot that is filled without headroom.
    ///
    /// # Safety
    ///
    /// As [`SlotMemory::payload`].
    pub(crate) unsafe fn bytes(&self, slot: u32, len: usize) -> &[u8] {
        assert!(len <= self.slot_bytes as usize);
        // SAFETY: inside the slot, initialised (zeroed), and ours by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.slot_at(slot), len) }
    }

    /// # Safety
    ///
    /// As [`SlotMemory::payload`].
    #[inline]
    pub(crate) unsafe fn payload_mut(&mut self, slot: u32, len: usize) -> &mut [u8] {
        assert!(len <= self.payload_capacity());
        // SAFETY: as in `payload`, and `&mut self` excludes every other slice.
        unsafe { std::slice::from_raw_parts_mut(self.payload_at(slot), len) }
    }

    /// Zeroes what lies between the lengths `from` and `to` of a payload.
    ///
    /// # Safety
    ///
    /// As [`SlotMemory::payload`].
    #[inline]
    pub(crate) unsafe fn zero(&mut self, slot: u32, from: usize, to: usize) {
        // SAFETY: the caller's promise.
        let payload = unsafe { self.payload_mut(slot, to) };
        payload[from..].fill(0);
    }

    /// Replaces the first `strip` bytes of a payload by `header`; returns where the datagram
    /// starts and its length.
    ///
    /// # Safety
    ///
    /// As [`SlotMemory::payload`].
    #[inline]
    pub(crate) unsafe fn reframe(
        &mut self,
        slot: u32,
        len: usize,
        strip: usize,
        header: &[u8],
    ) -> (*const u8, u32) {
        assert!(header.len() <= HEADROOM && strip <= len && len <= self.payload_capacity());
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

impl Drop for SlotMemory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout; the backends see to it that the kernel
        // holds no slot any more.
        unsafe {
            dealloc(
                self.memory.as_ptr(),
                Self::layout(self.count, self.slot_bytes),
            )
        }
    }
}
