//! Receiving whole trains (UDP_GRO, udp(7)) at sockets to which they come.
//!
//! A socket at which equal datagrams of one source follow each other is given large slots: the kernel puts a whole train into
//! one, for little more than the price of a datagram. If no trains come after all (their sender or the network has none), it
//! gets small slots again, when nothing waits in it, and the next attempt rests longer. The datagrams of a train are copied,
//! each into a small slot of its own, so that nobody need know how they came; the copy is small beside what the kernel saves.
//! Wide sockets never get trains. It never looks at what the bytes mean.

use std::io;
use std::mem::zeroed;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use io_uring::{Submitter, opcode, squeue, types};

use super::buffers::{Buffers, TRAIN_GROUP};
use super::recv::{Arrival, NAME_BYTES, RECVMSG_OUT_BYTES, SlotKind, Unusable};
use super::token::Token;
use crate::mmsg::slot_memory::SlotMemory;
use crate::mmsg::sys::set_option;
use crate::packet_io::{SocketId, TURN_DATAGRAMS, WireAddr};

/// Trains that can wait; more wait in their sockets.
pub(super) const SLOTS: u32 = 64;
/// What the kernel puts before a train: `io_uring_recvmsg_out`, the sender, and a control message with an `int` (cmsg(3)).
const CONTROL_BYTES: usize = 24;
const PREFIX_BYTES: usize = RECVMSG_OUT_BYTES + NAME_BYTES + CONTROL_BYTES;
/// Room for the largest datagram of IPv4, which the largest train is no longer than.
const SLOT_BYTES: u32 = (PREFIX_BYTES as u32 + 65_535).next_multiple_of(64);

/// A slot of [`Gro::copies`] among those of the kernel.
pub(super) const COPY: u32 = 1 << 31;

/// A socket's habits are looked at after so many datagrams, or so many trains.
const WINDOW_DATAGRAMS: u16 = 1024;
const WINDOW_TRAINS: u16 = 256;
/// The part of a window that must follow its like for trains to be tried.
const FOLLOWING: u32 = WINDOW_DATAGRAMS as u32 / 4 * 3;
/// Datagrams per train, on the average, below which a window is lean.
const LEAST_SEGMENTS: u32 = 2;
/// Lean windows in a row that end an attempt. More than what waits in a socket's buffer, which came before the attempt.
const LEAN_WINDOWS: u8 = 64;
/// Windows of datagrams until the next attempt, doubled with each that failed.
const REST_WINDOWS: u32 = 64;
const MOST_DOUBLINGS: u8 = 12;

/// What a socket's datagrams are like, and in which slots it receives them therefore.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Habit {
    is_large: bool,
    /// Datagrams, or trains, in this window.
    seen: u16,
    /// Those that followed their like, or datagrams in those trains.
    following: u32,
    lean_windows: u8,
    /// Attempts in a row that failed, and windows until the next one.
    failures: u8,
    rest: u32,
}

/// What a window's end calls for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// Nothing.
    None,
    /// The receive is to be ended and armed again.
    Rearm,
}

impl Habit {
    /// Whether the next receive is to be armed with large slots.
    #[inline]
    pub(super) fn is_large(self) -> bool {
        self.is_large
    }

    /// A datagram came to a small slot; `follows` an equal one of the same source in the same turn.
    #[inline]
    pub(super) fn datagram(&mut self, follows: bool) -> Change {
        self.seen += 1;
        self.following += u32::from(follows);
        if self.seen < WINDOW_DATAGRAMS {
            return Change::None;
        }
        self.end_small_window()
    }

    #[cold]
    fn end_small_window(&mut self) -> Change {
        let is_bulk = self.following >= FOLLOWING;
        self.begin_window();
        // The receive may have ended in large slots already, and this be one of its last datagrams before.
        if !is_bulk || self.is_large {
            return Change::None;
        }
        if self.rest > 0 {
            self.rest -= 1;
            return Change::None;
        }
        self.is_large = true;
        Change::Rearm
    }

    /// A train of `segments` datagrams came to a large slot.
    pub(super) fn train(&mut self, segments: u32) -> Change {
        self.seen += 1;
        self.following += segments;
        if self.seen < WINDOW_TRAINS {
            return Change::None;
        }
        let is_lean = self.following < LEAST_SEGMENTS * u32::from(WINDOW_TRAINS);
        self.begin_window();
        if !is_lean {
            self.lean_windows = 0;
            self.failures = 0;
            return Change::None;
        }
        self.lean_windows += 1;
        if self.lean_windows < LEAN_WINDOWS || !self.is_large {
            return Change::None;
        }
        self.lean_windows = 0;
        self.failures = (self.failures + 1).min(MOST_DOUBLINGS);
        self.rest = REST_WINDOWS << self.failures;
        self.is_large = false;
        Change::Rearm
    }

    /// Something waits in the socket, perhaps a train: the attempt goes on for another window.
    pub(super) fn stay(&mut self) {
        self.is_large = true;
        self.lean_windows = LEAN_WINDOWS - 1;
        self.failures = self.failures.saturating_sub(1);
    }

    /// The kernel has no UDP_GRO for this socket.
    pub(super) fn give_up(&mut self) {
        *self = Self {
            failures: MOST_DOUBLINGS,
            rest: u32::MAX,
            ..Self::default()
        };
    }

    fn begin_window(&mut self) {
        self.seen = 0;
        self.following = 0;
    }
}

/// Lets trains come to a socket whose next receive is in large slots.
pub(super) fn join(socket: &UdpSocket) -> io::Result<()> {
    set_option(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Lets no more trains come to a socket whose next receive is in small slots. An error if something waits in it, which may be
/// a train.
pub(super) fn leave(socket: &UdpSocket) -> io::Result<()> {
    if rustix::io::ioctl_fionread(socket)? > 0 {
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    set_option(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_GRO, 0)
}

/// The train whose datagrams are being handed out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unpacking {
    pub(super) socket: SocketId,
    pub(super) from: SocketAddr,
    slot: u16,
    at: usize,
    end: usize,
    segment_bytes: usize,
}

impl Unpacking {
    /// Datagrams in the train.
    pub(super) fn segments(&self) -> u32 {
        (self.end - self.at).div_ceil(self.segment_bytes).max(1) as u32
    }
}

/// The large slots of a ring, and the small ones for what was in them.
pub(super) struct Gro {
    pub(super) buffers: Buffers,
    pub(super) copies: SlotMemory,
    /// Copies of this turn.
    copied: u32,
    template: Box<libc::msghdr>,
    unpacking: Option<Unpacking>,
}

impl Gro {
    /// Memory for all of it, with small slots of `slot_bytes`.
    ///
    /// # Safety
    ///
    /// The value must outlive the io_uring behind `submitter`.
    pub(super) unsafe fn new(submitter: &Submitter<'_>, slot_bytes: u32) -> io::Result<Box<Self>> {
        // SAFETY: all-zero is a valid msghdr.
        let mut template: Box<libc::msghdr> = Box::new(unsafe { zeroed() });
        template.msg_namelen = NAME_BYTES as libc::socklen_t;
        template.msg_controllen = CONTROL_BYTES;
        let mut gro = Box::new(Self {
            buffers: Buffers::new(SLOTS, SLOT_BYTES),
            copies: SlotMemory::new(TURN_DATAGRAMS as u32, slot_bytes),
            copied: 0,
            template,
            unpacking: None,
        });
        // SAFETY: the caller's promise.
        unsafe { gro.buffers.register(submitter, TRAIN_GROUP)? };
        gro.buffers.give_back();
        Ok(gro)
    }

    /// The request that arms a socket's receive. It refers to this value's template.
    pub(super) fn request(&self, id: SocketId) -> squeue::Entry {
        let group = TRAIN_GROUP;
        opcode::RecvMsgMulti::new(types::Fixed(id.index()), &raw const *self.template, group)
            .build()
            .user_data(Token::Receive(id, SlotKind::Large).pack())
    }

    /// Payload bytes in a large slot, from a receive's result.
    pub(super) fn payload_bytes(result: i32) -> io::Result<u32> {
        super::recv::payload_behind(PREFIX_BYTES, result)
    }

    /// Nothing that was sent from copies is under way any more.
    pub(super) fn begin_turn(&mut self) {
        self.copied = 0;
    }

    pub(super) fn is_unpacking(&self) -> bool {
        self.unpacking.is_some()
    }

    /// Begins to hand out a train.
    pub(super) fn unpack(&mut self, arrival: &Arrival) -> Result<&Unpacking, Unusable> {
        let (slot, end) = (arrival.slot, PREFIX_BYTES + arrival.len as usize);
        // SAFETY: the kernel gave the slot to us with its completion and has it back only when it is borrowed no more.
        let bytes = unsafe { self.buffers.memory.bytes(slot.into(), end) };
        let from = parse(bytes);
        if from.is_err() {
            self.buffers.borrow_for_turn(slot);
        }
        let (from, segment_bytes) = from?;
        Ok(self.unpacking.insert(Unpacking {
            socket: arrival.socket,
            from,
            slot,
            at: PREFIX_BYTES,
            end,
            segment_bytes: segment_bytes.unwrap_or(arrival.len as usize).max(1),
        }))
    }

    /// The next datagram of the train: whose it is, from where, its slot (with [`COPY`]) and its length; or that its slot
    /// would be too small. `None` when the train is at its end.
    pub(super) fn next(&mut self) -> Option<Result<(SocketId, SocketAddr, u32, u32), Unusable>> {
        let unpacking = self.unpacking.as_mut()?;
        let len = unpacking.segment_bytes.min(unpacking.end - unpacking.at);
        let (socket, from, slot) = (unpacking.socket, unpacking.from, unpacking.slot);
        // SAFETY: the slot is ours until it is borrowed for the turn, below.
        let bytes = unsafe { self.buffers.memory.bytes(slot.into(), unpacking.end) };
        let segment = &bytes[unpacking.at..unpacking.at + len];
        let fits = len <= self.copies.payload_capacity();
        let copy = self.copied;
        if fits {
            // No turn hands out more datagrams than there are copies.
            self.copied += 1;
            // SAFETY: the copy has not been handed out in this turn, and nobody has those of earlier turns.
            unsafe { self.copies.payload_mut(copy, len) }.copy_from_slice(segment);
        }
        unpacking.at += len;
        if unpacking.at == unpacking.end {
            self.unpacking = None;
            self.buffers.borrow_for_turn(slot);
        }
        Some(if fits {
            Ok((socket, from, copy | COPY, len as u32))
        } else {
            Err(Unusable::Truncated)
        })
    }

    /// Drops what is left of the train: its socket is gone.
    pub(super) fn drop_train(&mut self) {
        if let Some(Unpacking { slot, .. }) = self.unpacking.take() {
            self.buffers.borrow_for_turn(slot);
        }
    }
}

/// The sender of what is in a large slot, and the length of its segments if it is a train.
fn parse(bytes: &[u8]) -> Result<(SocketAddr, Option<usize>), Unusable> {
    let word = |at: usize| {
        u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize
    };
    let (name_bytes, control_bytes, whole_bytes, flags) = (word(0), word(4), word(8), word(12));
    if flags & (libc::MSG_TRUNC as usize) != 0 || whole_bytes > bytes.len() - PREFIX_BYTES {
        return Err(Unusable::Truncated);
    }
    let name = &bytes[RECVMSG_OUT_BYTES..][..name_bytes.min(NAME_BYTES)];
    let from = WireAddr::parse(name).ok_or(Unusable::NoAddress)?;
    // `struct cmsghdr` is a length of 8 bytes, a level and a type; the kernel writes no other message to this socket.
    let control = RECVMSG_OUT_BYTES + NAME_BYTES;
    let is_train = control_bytes >= 20
        && word(control + 8) == libc::SOL_UDP as usize
        && word(control + 12) == libc::UDP_GRO as usize;
    let segment_bytes = is_train.then(|| word(control + 16)).filter(|&n| n > 0);
    Ok((from, segment_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the habit calls for after a whole window.
    fn window(
        habit: &mut Habit,
        count: u16,
        mut one: impl FnMut(&mut Habit, u16) -> Change,
    ) -> Change {
        for i in 1..count {
            assert_eq!(one(habit, i), Change::None);
        }
        one(habit, 0)
    }

    #[test]
    fn only_who_sends_in_trains_gets_large_slots() {
        let mut habit = Habit::default();
        let mixed = |habit: &mut Habit, i| habit.datagram(i % 2 == 0);
        let bursts = |habit: &mut Habit, i| habit.datagram(i % 16 != 0);
        assert_eq!(window(&mut habit, WINDOW_DATAGRAMS, mixed), Change::None);
        assert_eq!(window(&mut habit, WINDOW_DATAGRAMS, bursts), Change::Rearm);
        assert!(habit.is_large());
        for _ in 0..3 {
            let trains = |habit: &mut Habit, _| habit.train(16);
            assert_eq!(window(&mut habit, WINDOW_TRAINS, trains), Change::None);
        }
    }

    #[test]
    fn attempts_that_fail_become_rare() {
        let mut habit = Habit::default();
        for attempt in 0..4 {
            let bulk = |habit: &mut Habit, _| habit.datagram(true);
            let mut windows = 1;
            while window(&mut habit, WINDOW_DATAGRAMS, bulk) == Change::None {
                windows += 1;
            }
            let rested = if attempt == 0 {
                0
            } else {
                REST_WINDOWS << attempt
            };
            assert_eq!(windows, rested + 1);
            let single = |habit: &mut Habit, _| habit.train(1);
            for _ in 1..LEAN_WINDOWS {
                assert_eq!(window(&mut habit, WINDOW_TRAINS, single), Change::None);
            }
            assert_eq!(window(&mut habit, WINDOW_TRAINS, single), Change::Rearm);
            // Something came just then.
            habit.stay();
            assert!(habit.is_large());
            assert_eq!(window(&mut habit, WINDOW_TRAINS, single), Change::Rearm);
            assert!(!habit.is_large());
        }
    }

    #[test]
    fn what_waited_before_an_attempt_does_not_end_it() {
        let mut habit = Habit {
            is_large: true,
            ..Habit::default()
        };
        for _ in 0..10 {
            for _ in 1..LEAN_WINDOWS {
                let single = |habit: &mut Habit, _| habit.train(1);
                assert_eq!(window(&mut habit, WINDOW_TRAINS, single), Change::None);
            }
            let trains = |habit: &mut Habit, _| habit.train(16);
            assert_eq!(window(&mut habit, WINDOW_TRAINS, trains), Change::None);
        }
    }
}
