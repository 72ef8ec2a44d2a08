//! The bytes that wait for one stream's kernel buffer, bounded by [`STREAM_QUEUE_BYTES`].
//!
//! Two buffers: one leaves and does not move until the kernel has taken it, the other collects. An idle stream has neither. It
//! makes no system calls.

use super::STREAM_QUEUE_BYTES;

/// Most bytes of a buffer that is kept for reuse.
const SPARE_BYTES: usize = 16 << 10;
/// Most buffers that are kept.
const SPARES: usize = 64;

/// Empty buffers that any stream of a shard may use next.
#[derive(Debug, Default)]
pub(crate) struct SpareBuffers(Vec<Vec<u8>>);

impl SpareBuffers {
    fn take(&mut self) -> Vec<u8> {
        self.0.pop().unwrap_or_default()
    }

    fn give(&mut self, mut buffer: Vec<u8>) {
        if (1..=SPARE_BYTES).contains(&buffer.capacity()) && self.0.len() < SPARES {
            buffer.clear();
            self.0.push(buffer);
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct SendQueue {
    leaving: Vec<u8>,
    /// Bytes of `leaving` that the kernel has taken.
    taken: usize,
    waiting: Vec<u8>,
}

impl SendQueue {
    pub(crate) fn len(&self) -> usize {
        self.leaving.len() - self.taken + self.waiting.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies all parts behind what waits; false, and nothing taken, if that is too much. It moves nothing that leaves.
    pub(crate) fn push(&mut self, parts: &[&[u8]], spare: &mut SpareBuffers) -> bool {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        if self.len() + bytes > STREAM_QUEUE_BYTES {
            return false;
        }
        if bytes > 0 && self.waiting.capacity() == 0 {
            self.waiting = spare.take();
        }
        let wanted = self.waiting.len() + bytes;
        if wanted > self.waiting.capacity() {
            // Doubling as a vector does, but not beyond the bound.
            let capacity = (2 * self.waiting.capacity()).min(STREAM_QUEUE_BYTES);
            self.waiting
                .reserve_exact(capacity.max(wanted) - self.waiting.len());
        }
        for part in parts {
            self.waiting.extend_from_slice(part);
        }
        true
    }

    /// The bytes to give to the kernel next. They stay where they are until [`SendQueue::advance`] or [`SendQueue::clear`].
    pub(crate) fn front(&mut self) -> &[u8] {
        if self.leaving.is_empty() {
            std::mem::swap(&mut self.leaving, &mut self.waiting);
        }
        &self.leaving[self.taken..]
    }

    /// The kernel has taken `bytes` of the front.
    pub(crate) fn advance(&mut self, bytes: usize, spare: &mut SpareBuffers) {
        self.taken += bytes;
        assert!(
            self.taken <= self.leaving.len(),
            "more bytes were sent than there were"
        );
        if self.taken == self.leaving.len() {
            spare.give(std::mem::take(&mut self.leaving));
            self.taken = 0;
        }
    }

    /// Forgets the bytes behind the front.
    pub(crate) fn clear_waiting(&mut self, spare: &mut SpareBuffers) {
        spare.give(std::mem::take(&mut self.waiting));
    }

    /// Forgets everything. The kernel must have nothing of it.
    pub(crate) fn clear(&mut self, spare: &mut SpareBuffers) {
        spare.give(std::mem::take(&mut self.leaving));
        self.taken = 0;
        self.clear_waiting(spare);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaves_stays_in_place_and_in_order() {
        let (mut queue, mut spare) = (SendQueue::default(), SpareBuffers::default());
        assert!(queue.push(&[b"one ", b"two "], &mut spare));
        let front = queue.front().as_ptr();
        assert!(queue.push(&[&[7; 30_000], b"three"], &mut spare));
        assert_eq!(queue.front().as_ptr(), front);
        assert_eq!(queue.front(), b"one two ");
        queue.advance(4, &mut spare);
        assert_eq!(queue.front(), b"two ");
        queue.advance(4, &mut spare);
        assert_eq!(queue.front().len(), 30_005);
        queue.advance(30_000, &mut spare);
        assert_eq!(queue.front(), b"three");
        queue.advance(5, &mut spare);
        assert!(queue.is_empty());
        assert_eq!(
            (queue.leaving.capacity(), queue.waiting.capacity()),
            (0, 0),
            "an idle stream has no buffers"
        );
        assert_eq!(spare.0.len(), 1, "the small one is used again");
    }

    #[test]
    fn all_is_taken_or_nothing() {
        let (mut queue, mut spare) = (SendQueue::default(), SpareBuffers::default());
        let half = vec![1; STREAM_QUEUE_BYTES / 2];
        assert!(queue.push(&[&half], &mut spare));
        queue.front();
        queue.advance(1, &mut spare);
        assert!(!queue.push(&[&half, &[1, 2]], &mut spare));
        assert!(queue.push(&[&half, &[1]], &mut spare));
        assert_eq!(queue.len(), STREAM_QUEUE_BYTES);
        assert!(!queue.push(&[&[1]], &mut spare));
        assert!(queue.push(&[&[]], &mut spare));
        queue.clear_waiting(&mut spare);
        assert_eq!(queue.len(), half.len() - 1);
        queue.clear(&mut spare);
        assert!(queue.is_empty() && spare.0.is_empty());
    }
}
