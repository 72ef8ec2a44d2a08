//! Sending: the staged trains become SEND and SENDMSG requests that leave with the next enter.
//!
//! MSG_DONTWAIT marks each as never-wait, so the kernel copies or refuses it before the enter
//! returns; with SKIP_SUCCESS only refusals complete, and they find the staged bytes still there.

use std::io;
use std::mem::zeroed;

use io_uring::{opcode, squeue, types};

use super::STAGED;
use super::queue::Queue;
use super::recv::Receive;
use super::token::Token;
use crate::mmsg::send::{CONTROL_BYTES, Control};
use crate::packet_io::{IoStats, Segment, SocketTable, Train, Trains};

const FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// Message headers of the trains under way. Nothing here moves until `clear`.
pub(super) struct Messages {
    headers: Vec<libc::msghdr>,
    iovecs: Vec<libc::iovec>,
    controls: Vec<Control>,
}

impl Messages {
    pub(super) fn new() -> Self {
        Self {
            headers: Vec::with_capacity(STAGED),
            iovecs: Vec::with_capacity(STAGED),
            controls: Vec::with_capacity(STAGED),
        }
    }

    pub(super) fn clear(&mut self) {
        self.headers.clear();
        self.iovecs.clear();
        self.controls.clear();
    }

    /// Puts everything that is staged into the submission queue.
    ///
    /// # Safety
    ///
    /// `staged` and this value must not change, and the staged bytes must stay, until the queue
    /// has been submitted.
    pub(super) unsafe fn push_all(
        &mut self,
        staged: &Trains,
        sockets: &mut SocketTable<Receive>,
        queue: &mut Queue,
        stats: &mut IoStats,
    ) -> io::Result<()> {
        for (index, train) in staged.trains().iter().enumerate() {
            let index = index as u32;
            // Only live sockets are staged for, and they close after the flush.
            let Some(entry) = sockets.get_any_mut(train.socket) else {
                continue;
            };
            stats.datagrams_sent += u64::from(train.segments);
            stats.bytes_sent += u64::from(train.total_bytes);
            if train.segments > 1 && entry.gso {
                stats.gso_trains += 1;
                stats.gso_segments += u64::from(train.segments);
                let request = self.train(staged, index, train);
                // SAFETY: the caller's promise.
                unsafe { queue.push(&request)? };
            } else {
                for (segment_index, segment) in staged.segments(train) {
                    let request = single(index, train, segment_index, segment);
                    // SAFETY: the caller's promise.
                    unsafe { queue.push(&request)? };
                }
            }
        }
        Ok(())
    }

    fn train(&mut self, staged: &Trains, index: u32, train: &Train) -> squeue::Entry {
        let first = self.iovecs.len();
        for (_, segment) in staged.segments(train) {
            let iov_base = segment.at.cast_mut().cast();
            self.iovecs.push(libc::iovec {
                iov_base,
                iov_len: segment.len as usize,
            });
        }
        // The capacities are those of the staging, so nothing that was pushed before moves.
        debug_assert!(self.iovecs.len() <= STAGED);
        let mut control = Control::EMPTY;
        control.segment(train.segment_bytes as u16);
        self.controls.push(control);
        // SAFETY: all-zero is a valid msghdr.
        let mut header: libc::msghdr = unsafe { zeroed() };
        header.msg_name = train.to.as_ptr().cast_mut().cast();
        header.msg_namelen = train.to.len();
        header.msg_iov = self.iovecs.as_mut_ptr().wrapping_add(first);
        header.msg_iovlen = self.iovecs.len() - first;
        let control = self
            .controls
            .as_mut_ptr()
            .wrapping_add(self.controls.len() - 1);
        header.msg_control = control.cast();
        header.msg_controllen = CONTROL_BYTES;
        self.headers.push(header);
        let header = self.headers.as_ptr().wrapping_add(self.headers.len() - 1);
        opcode::SendMsg::new(types::Fixed(train.socket.index()), header)
            .flags(FLAGS as u32)
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(Token::Train { train: index }.pack())
    }
}

#[inline]
fn single(index: u32, train: &Train, segment_index: u32, segment: Segment) -> squeue::Entry {
    opcode::Send::new(types::Fixed(train.socket.index()), segment.at, segment.len)
        .flags(FLAGS)
        .dest_addr(train.to.as_ptr().cast())
        .dest_addr_len(train.to.len())
        .build()
        .flags(squeue::Flags::SKIP_SUCCESS)
        .user_data(
            Token::Single {
                train: index,
                segment: segment_index,
            }
            .pack(),
        )
}
