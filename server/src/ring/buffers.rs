//! A provided-buffer ring: the receive slots of datagrams, or of streams, that the kernel may fill.
//!
//! A slot is with the kernel from publication to its receive completion, then waits or is handed
//! out, then goes back with one publication for all slots of a turn.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

use crate::mmsg::slot_memory::SlotMemory;

/// The buffer group of the datagrams.
pub(super) const GROUP: u16 = 0;
/// The buffer group of the streams.
pub(super) const STREAM_GROUP: u16 = 1;
/// The buffer group of trains.
pub(super) const TRAIN_GROUP: u16 = 2;
/// The buffer group of the datagrams of wide sockets.
pub(super) const WIDE_GROUP: u16 = 3;

#[derive(Debug)]
pub(super) struct Buffers {
    pub(super) memory: SlotMemory,
    ring: NonNull<BufRingEntry>,
    tail: u16,
    /// Slots that the kernel has.
    available: u32,
    /// Handed out in this turn, or dropped; the kernel's again with the next publication.
    borrowed: Vec<u16>,
}

impl Buffers {
    /// All slots, none of them published yet.
    pub(super) fn new(count: u32, slot_bytes: u32) -> Self {
        let layout = Self::ring_layout(count);
        // SAFETY: the layout is not empty; zero is a valid BufRingEntry.
        let ring = unsafe { alloc_zeroed(layout) };
        let Some(ring) = NonNull::new(ring.cast()) else {
            handle_alloc_error(layout)
        };
        let mut borrowed = Vec::with_capacity(count as usize);
        borrowed.extend((0..count).map(|slot| slot as u16));
        Self {
            memory: SlotMemory::new(count, slot_bytes),
            ring,
            tail: 0,
            available: 0,
            borrowed,
        }
    }

    fn ring_layout(count: u32) -> Layout {
        // The kernel wants it page-aligned (io_uring_register_buf_ring(3)).
        Layout::array::<BufRingEntry>(count as usize)
            .and_then(|layout| layout.align_to(4096))
            .expect("at most 2^15 entries")
    }

    /// Hands the ring to the kernel, as `group`.
    ///
    /// # Safety
    ///
    /// This value must outlive every receive of the io_uring behind `submitter`.
    pub(super) unsafe fn register(
        &self,
        submitter: &Submitter<'_>,
        group: u16,
    ) -> std::io::Result<()> {
        let entries = self.memory.count() as u16;
        let address = self.ring.as_ptr() as u64;
        // SAFETY: the memory holds that many entries and stays, by the caller's promise.
        unsafe { submitter.register_buf_ring_with_flags(address, entries, group, 0) }
    }

    /// A receive completion took a slot from the kernel.
    #[inline]
    pub(super) fn taken(&mut self) {
        self.available -= 1;
    }

    /// Whether the kernel has a slot left.
    pub(super) fn has_available(&self) -> bool {
        self.available > 0
    }

    #[inline]
    pub(super) fn borrow_for_turn(&mut self, slot: u16) {
        self.borrowed.push(slot);
    }

    /// Whether the kernel would run short if this turn's slots stayed away for a sleep.
    pub(super) fn runs_short(&self) -> bool {
        self.borrowed.len() as u32 * 4 > self.memory.count()
    }

    /// Gives the handed-out slots back to the kernel, which must have been told of every send that
    /// refers to them.
    pub(super) fn give_back(&mut self) {
        if self.borrowed.is_empty() {
            return;
        }
        let mask = self.memory.count() - 1;
        for &slot in &self.borrowed {
            let at = self.memory.slot_at(slot.into()) as u64;
            // SAFETY: masked, so inside the ring; the kernel reads entries only up to the tail
            // that is published below. `resv` of entry 0 is the tail and is not written here.
            let entry = unsafe {
                &mut *self
                    .ring
                    .as_ptr()
                    .add((u32::from(self.tail) & mask) as usize)
            };
            entry.set_addr(at);
            entry.set_len(self.memory.slot_bytes());
            entry.set_bid(slot);
            self.tail = self.tail.wrapping_add(1);
        }
        self.available += self.borrowed.len() as u32;
        self.borrowed.clear();
        // SAFETY: the address is that of the 16-bit tail inside our allocation, which the kernel
        // only reads.
        let tail =
            unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.ring.as_ptr()).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout; the io_uring is gone before.
        unsafe {
            dealloc(
                self.ring.as_ptr().cast(),
                Self::ring_layout(self.memory.count()),
            )
        }
    }
}
