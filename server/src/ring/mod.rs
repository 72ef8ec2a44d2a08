//! Packet input and output by io_uring.
//!
//! One turn is one `io_uring_enter`: it submits the sends and re-armed receives of the last turn,
//! runs the receives of this one and sleeps in between. Nearly all unsafe code of the server is in
//! this room. It knows nothing of what the bytes mean, makes no copy of a payload and never waits
//! for a send. It belongs to the thread that made it (SINGLE_ISSUER).
#![allow(unsafe_code)]

mod buffers;
mod completions;
mod gro;
mod queue;
mod recv;
mod send;
mod setup;
mod streams;
mod token;
mod wind_down;

use std::fs::File;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use bumpalo::Bump;
use io_uring::{opcode, types};

pub use setup::probe;

use crate::mmsg::sys;
use crate::packet_io::{
    Doorbell, IoConfig, IoStats, Pace, PacketIo, PeerError, PeerErrors, Received, RecvBuf,
    SetupError, SocketId, SocketTable, TURN_DATAGRAMS, Trains, TurnStamp, Wait, WireAddr,
    kernel_corrupts_trains,
};
use buffers::{Buffers, GROUP, WIDE_GROUP};
use gro::Gro;
use queue::Queue;
use recv::{Receive, Receiver, SlotKind};
use send::Messages;
use streams::Streams;
use token::Token;

/// Datagrams that can be staged before they are submitted early.
const STAGED: usize = 1024;
const _: () = assert!(STAGED < setup::SQ_ENTRIES as usize);

/// Packet input and output of one shard over io_uring.
pub struct Ring {
    // First, so that the kernel is done with all that follows before it is freed.
    queue: Queue,
    state: State,
    messages: Messages,
    arena: Bump,
    doorbell: Arc<File>,
    doorbell_word: Box<u64>,
    removed: Vec<SocketId>,
    pace: Pace,
    stamp: TurnStamp,
    left_this_turn: usize,
    gso: bool,
    /// A fatal error in a call that cannot return one; the next turn does.
    broken: Option<io::Error>,
    max_streams: u32,
}

/// What completions change.
struct State {
    sockets: SocketTable<Receive>,
    buffers: Buffers,
    /// The slots of wide sockets.
    wide: Option<Buffers>,
    /// Made when the first socket gets trains, and kept as long as the queue.
    gro: Option<Box<Gro>>,
    receiver: Receiver,
    staged: Trains,
    /// Removed sockets whose receive has ended.
    finished: Vec<SocketId>,
    doorbell_armed: bool,
    /// What sockets reported of what they sent.
    errors: PeerErrors,
    stats: IoStats,
    /// Made with the first listener, and kept as long as the queue.
    streams: Option<Box<Streams>>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("stats", &self.state.stats)
            .finish_non_exhaustive()
    }
}

impl Ring {
    /// Sets the backend up on the thread that will use it, and proves that it works.
    ///
    /// # Errors
    ///
    /// [`SetupError::Unavailable`] when this host has no usable io_uring (the mmsg backend is the
    /// way out), [`SetupError::Limit`] when a limit of the process is too low, and
    /// [`SetupError::Config`] for a size out of range.
    pub fn new(config: &IoConfig) -> Result<Self, SetupError> {
        let config = config.checked()?;
        let queue = setup::build(config.max_sockets)?;
        let doorbell = sys::eventfd().map_err(setup::refused(
            "eventfd",
            "raise the limit of open files (LimitNOFILE)",
        ))?;
        let coalesce_us = if queue.has_min_wait() {
            config.coalesce_us
        } else {
            0
        };
        if coalesce_us > 0 {
            sys::sharpen_timers();
        }
        let has_wide = config.wide_slot_bytes > 0;
        let wide = has_wide.then(|| Buffers::new(config.slots, config.wide_slot_bytes));
        let ring = Self {
            queue,
            state: State {
                sockets: SocketTable::new(config.max_sockets),
                buffers: Buffers::new(config.slots, config.slot_bytes),
                wide,
                gro: None,
                receiver: Receiver::new(config.slots * if has_wide { 2 } else { 1 } + gro::SLOTS),
                staged: Trains::new(STAGED),
                finished: Vec::new(),
                doorbell_armed: false,
                errors: PeerErrors::default(),
                stats: IoStats::default(),
                streams: None,
            },
            messages: Messages::new(),
            arena: Bump::new(),
            doorbell: Arc::new(doorbell),
            doorbell_word: Box::new(0),
            removed: Vec::new(),
            pace: Pace::new(coalesce_us),
            stamp: TurnStamp::of_new_backend(),
            left_this_turn: 0,
            gso: !kernel_corrupts_trains(&sys::kernel_release()),
            broken: None,
            max_streams: config.max_streams,
        };
        let submitter = ring.queue.submitter();
        let wide = ring.state.wide.as_ref().map(|wide| (wide, WIDE_GROUP));
        for (buffers, group) in [(&ring.state.buffers, GROUP)].into_iter().chain(wide) {
            // SAFETY: the buffers outlive the queue, see the order of the fields.
            unsafe { buffers.register(&submitter, group) }.map_err(setup::refused(
                "io_uring_register (buffer ring)",
                "raise the memory limit or lower the number of receive slots",
            ))?;
        }
        Ok(ring)
    }

    fn add(&mut self, socket: UdpSocket, is_wide: bool) -> io::Result<SocketId> {
        let fd = socket.as_raw_fd();
        let receive = Receive {
            is_wide,
            ..Receive::default()
        };
        let id = self.state.sockets.insert(socket, self.gso, receive)?;
        let files = self
            .queue
            .submitter()
            .register_files_update(id.index(), &[fd]);
        if let Err(error) = files.map(drop).and_then(|()| self.arm(id)) {
            self.state.sockets.retire(id);
            self.state.sockets.free(id);
            return Err(error);
        }
        Ok(id)
    }

    /// Deals with all completions that are there.
    fn reap(&mut self) -> io::Result<()> {
        loop {
            for cqe in self.queue.completions() {
                self.state.complete(&cqe);
            }
            if !self.queue.is_overflown() {
                return Ok(());
            }
            self.state.stats.cq_overflows += 1;
            self.queue.enter_and_wait(0, 0, None)?;
        }
    }

    /// Puts everything that is staged into the submission queue.
    fn push_staged(&mut self) -> io::Result<()> {
        let State {
            staged,
            sockets,
            stats,
            ..
        } = &mut self.state;
        // SAFETY: trains, messages, arena and borrowed slots change only in `forget_staged` and
        // `give_back`, which assert that the queue has been submitted.
        unsafe {
            self.messages
                .push_all(staged, sockets, &mut self.queue, stats)
        }
    }

    /// Forgets the sends that the kernel has seen. Their refusals must have been reaped.
    fn forget_staged(&mut self) {
        assert!(
            self.queue.is_submitted(),
            "staged bytes are in use until they are submitted"
        );
        self.state.staged.clear();
        self.messages.clear();
        self.arena.reset();
    }

    /// Sends what is staged now, in the middle of a turn; slots stay with their owners.
    #[cold]
    fn send_early(&mut self) {
        let sent = self
            .push_staged()
            .and_then(|()| self.queue.submit())
            .and_then(|()| self.reap());
        match sent {
            Ok(()) => self.forget_staged(),
            Err(error) => {
                // What could not be submitted is lost with the ring: the next turn reports it.
                self.broken = Some(error);
            }
        }
    }

    #[inline]
    fn stage(
        &mut self,
        socket: SocketId,
        to: SocketAddr,
        (at, len): (*const u8, u32),
        whole: bool,
    ) {
        if self.state.sockets.is_live(socket) {
            self.state
                .staged
                .push(socket, WireAddr::from(to), at, len, whole);
        } else {
            self.state.stats.stale_sends += 1;
        }
    }

    /// Writes a header before a received payload, and makes room for it among what is staged.
    #[inline]
    fn reframe(&mut self, buf: RecvBuf, strip: usize, header: &[u8]) -> Option<(*const u8, u32)> {
        if !self.make_room() {
            return None;
        }
        let (memory, slot) = self.state.slot_mut(buf.slot(self.stamp));
        // SAFETY: the stamp proves that the slot was handed out in this turn.
        Some(unsafe { memory.reframe(slot, buf.len(), strip, header) })
    }

    /// False when the ring is broken and the datagram has to be dropped.
    #[inline]
    fn make_room(&mut self) -> bool {
        if self.state.staged.is_full() {
            if self.broken.is_none() {
                self.send_early();
            }
            return !self.state.staged.is_full();
        }
        true
    }

    /// Cancels the receives of removed sockets, and of those that get other slots, behind the sends that were staged before.
    fn cancel_receives(&mut self) -> io::Result<()> {
        let changing = self.state.receiver.changing.drain(..).map(|id| (id, false));
        for (id, is_removed) in self.removed.drain(..).map(|id| (id, true)).chain(changing) {
            let entry = self.state.sockets.get_any_mut(id);
            let receive = entry.map(|entry| entry.extra).unwrap_or_default();
            if receive.armed {
                let token = Token::Receive(id, receive.armed_for);
                let cancel = opcode::AsyncCancel::new(token.pack())
                    .build()
                    .user_data(Token::Cancel.pack());
                // SAFETY: a cancellation refers to no memory.
                unsafe { self.queue.push(&cancel)? };
            } else if is_removed {
                self.state.finished.push(id);
            }
        }
        Ok(())
    }

    /// Closes removed sockets. Nothing that is staged may still need them.
    fn close_finished(&mut self) -> io::Result<()> {
        debug_assert!(self.state.staged.is_empty());
        while let Some(id) = self.state.finished.pop() {
            self.queue
                .submitter()
                .register_files_update(id.index(), &[-1])?;
            self.state.sockets.free(id);
        }
        Ok(())
    }

    /// Arms the receives that ended, if the kernel has a slot for them.
    fn rearm(&mut self) -> io::Result<()> {
        for place in (0..self.state.receiver.ended.len()).rev() {
            let id = self.state.receiver.ended[place];
            if !self.state.sockets.is_live(id) {
                self.state.receiver.ended.swap_remove(place);
            } else if self.has_slot_for(id) {
                self.state.receiver.ended.swap_remove(place);
                self.arm(id)?;
                self.state.stats.rearms += 1;
            }
        }
        Ok(())
    }

    /// Whether the kernel has a slot of the kind that a socket receives in. Makes the large ones if it is the first to want any.
    fn has_slot_for(&mut self, id: SocketId) -> bool {
        let state = &mut self.state;
        let Some(entry) = state.sockets.get_any_mut(id) else {
            return false;
        };
        let is_large = |kind| kind == SlotKind::Large;
        let (was, is) = (
            is_large(entry.extra.armed_for),
            is_large(entry.extra.wants()),
        );
        if is && !was {
            if state.gro.is_none() {
                let slot_bytes = state.buffers.memory.slot_bytes();
                // SAFETY: it is kept until the queue is gone, see the order of the fields.
                let made = unsafe { Gro::new(&self.queue.submitter(), slot_bytes) };
                state.gro = made.ok();
            }
            if state.gro.is_none() || gro::join(&entry.socket).is_err() {
                entry.extra.habit.give_up();
            }
        } else if was && !is && gro::leave(&entry.socket).is_err() {
            entry.extra.habit.stay();
        }
        let kind = entry.extra.wants();
        state.buffers(kind).is_some_and(|b| b.has_available())
    }

    fn arm(&mut self, id: SocketId) -> io::Result<()> {
        let state = &mut self.state;
        let Some(entry) = state.sockets.get_any_mut(id) else {
            return Ok(());
        };
        let kind = entry.extra.wants();
        let request = match &state.gro {
            Some(gro) if kind == SlotKind::Large => gro.request(id),
            _ => state.receiver.request(id, kind),
        };
        // SAFETY: the templates live in the receiver and in what is made once, which outlive the queue.
        unsafe { self.queue.push(&request)? };
        entry.extra.armed = true;
        entry.extra.armed_for = kind;
        entry.extra.armed_in_turn = state.stats.turns;
        Ok(())
    }

    fn arm_doorbell(&mut self) -> io::Result<()> {
        if !self.state.doorbell_armed {
            let word: *mut u64 = &raw mut *self.doorbell_word;
            let read = opcode::Read::new(types::Fd(self.doorbell.as_raw_fd()), word.cast(), 8)
                .build()
                .user_data(Token::Doorbell.pack());
            // SAFETY: the word outlives the queue and nobody else touches it.
            unsafe { self.queue.push(&read)? };
            self.state.doorbell_armed = true;
        }
        Ok(())
    }

    /// The turn's work up to the point where the kernel can take over and wait.
    fn prepare(&mut self) -> io::Result<()> {
        if !self.state.staged.is_empty() {
            self.push_staged()?;
            if !self.state.receiver.ended.is_empty() || self.state.runs_short() {
                self.queue.submit()?;
                self.reap()?;
                self.forget_staged();
            }
        }
        self.cancel_receives()?;
        if let Some(gro) = &mut self.state.gro {
            gro.buffers.give_back();
        }
        if self.state.staged.is_empty() {
            self.arena.reset();
            self.state.give_back();
            self.close_finished()?;
        }
        self.rearm()?;
        self.arm_doorbell()
    }

    fn enter(&mut self, timeout: Option<Duration>, wait: Wait) -> io::Result<()> {
        // While a receive waits to be armed its socket cannot wake us.
        let ready = !self.state.receiver.arrivals.is_empty()
            || self
                .state
                .gro
                .as_ref()
                .is_some_and(|gro| gro.is_unpacking())
            || !self.state.receiver.ended.is_empty()
            || self.state.streams.as_ref().is_some_and(|s| s.is_ready())
            || timeout == Some(Duration::ZERO);
        match wait {
            _ if ready => self.queue.enter_and_wait(0, 0, None),
            Wait::ForOne => self.queue.enter_and_wait(1, 0, timeout),
            Wait::ForMore { want, min_wait_us } => {
                self.queue.enter_and_wait(want, min_wait_us, timeout)
            }
        }
    }
}

impl PacketIo for Ring {
    fn add_socket(&mut self, socket: UdpSocket) -> io::Result<SocketId> {
        self.add(socket, false)
    }

    fn add_wide_socket(&mut self, socket: UdpSocket) -> io::Result<SocketId> {
        if self.state.wide.is_none() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.add(socket, true)
    }

    fn remove_socket(&mut self, id: SocketId) {
        if self.state.sockets.retire(id) {
            self.removed.push(id);
        }
    }

    fn turn(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        if let Some(error) = self.broken.take() {
            return Err(error);
        }
        self.state.stats.turns += 1;
        self.stamp.advance();
        let wait = self.pace.next_wait(self.state.receiver.take_arrived());
        self.prepare()?;
        let mut timeout = timeout;
        if let Some(streams) = &mut self.state.streams {
            timeout = streams.prepare(&mut self.queue, timeout)?;
        }
        self.enter(timeout, wait)?;
        self.reap()?;
        if let Some(streams) = &mut self.state.streams {
            streams.close_finished();
        }
        if !self.state.staged.is_empty() {
            self.forget_staged();
            self.state.give_back();
            self.close_finished()?;
        }
        self.state.stats.enters = self.queue.enters;
        if let Some(gro) = &mut self.state.gro {
            gro.begin_turn();
        }
        self.state.receiver.last = None;
        self.left_this_turn = TURN_DATAGRAMS;
        Ok(())
    }

    #[inline]
    fn next(&mut self) -> Option<Received> {
        self.left_this_turn = self.left_this_turn.checked_sub(1)?;
        let (socket, from, slot, len) = self.state.next_datagram()?;
        self.state.stats.datagrams_received += 1;
        self.state.stats.bytes_received += u64::from(len);
        Some(Received {
            socket,
            from,
            buf: RecvBuf::new(self.stamp, slot, len),
        })
    }

    #[inline]
    fn next_error(&mut self) -> Option<PeerError> {
        self.state.errors.pop()
    }

    #[inline]
    fn payload<'a>(&'a self, buf: &'a RecvBuf) -> &'a [u8] {
        let (memory, slot) = self.state.slot(buf.slot(self.stamp));
        // SAFETY: the stamp proves that the slot was handed out in this turn.
        unsafe { memory.payload(slot, buf.len()) }
    }

    #[inline]
    fn payload_mut<'a>(&'a mut self, buf: &'a mut RecvBuf) -> &'a mut [u8] {
        let (memory, slot) = self.state.slot_mut(buf.slot(self.stamp));
        // SAFETY: the stamp proves that the slot was handed out in this turn.
        unsafe { memory.payload_mut(slot, buf.len()) }
    }

    #[inline]
    fn resize(&mut self, buf: &mut RecvBuf, len: usize) {
        if len > buf.len() {
            let (memory, slot) = self.state.slot_mut(buf.slot(self.stamp));
            // SAFETY: the stamp proves that the slot was handed out in this turn.
            unsafe { memory.zero(slot, buf.len(), len) };
        }
        buf.set_len(len);
    }

    #[inline]
    fn forward(
        &mut self,
        buf: RecvBuf,
        strip: usize,
        header: &[u8],
        socket: SocketId,
        to: SocketAddr,
    ) {
        if let Some(datagram) = self.reframe(buf, strip, header) {
            self.stage(socket, to, datagram, false);
        }
    }

    fn forward_whole(
        &mut self,
        buf: RecvBuf,
        strip: usize,
        header: &[u8],
        socket: SocketId,
        to: SocketAddr,
    ) {
        if let Some(datagram) = self.reframe(buf, strip, header) {
            self.stage(socket, to, datagram, true);
        }
    }

    fn send(&mut self, socket: SocketId, to: SocketAddr, bytes: &[u8]) {
        if self.make_room() {
            let at = self.arena.alloc_slice_copy(bytes).as_ptr();
            self.stage(socket, to, (at, bytes.len() as u32), false);
        }
    }

    fn send_whole(&mut self, socket: SocketId, to: SocketAddr, bytes: &[u8]) {
        if self.make_room() {
            let at = self.arena.alloc_slice_copy(bytes).as_ptr();
            self.stage(socket, to, (at, bytes.len() as u32), true);
        }
    }

    fn doorbell(&self) -> Doorbell {
        Doorbell::new(Arc::clone(&self.doorbell))
    }

    fn stats(&self) -> &IoStats {
        &self.state.stats
    }

    fn socket(&self, id: SocketId) -> Option<&UdpSocket> {
        self.state.sockets.get(id).map(|entry| &entry.socket)
    }

    fn backend(&self) -> &'static str {
        "io_uring"
    }
}
