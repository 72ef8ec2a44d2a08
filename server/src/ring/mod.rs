//! Packet input and output by io_uring.
//!
//! One turn is one `io_uring_enter`: it submits the sends and re-armed receives of the last turn,
//! runs the receives of this one and sleeps in between. Nearly all unsafe code of the server is in
//! this room. It knows nothing of what the bytes mean, makes no copy of a payload and never waits
//! for a send. It belongs to the thread that made it (SINGLE_ISSUER).
#![allow(unsafe_code)]

mod buffers;
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
use io_uring::{cqueue, opcode, types};

pub use setup::probe;

use crate::mmsg::error_queue::drain;
use crate::mmsg::send::Refused;
use crate::mmsg::sys;
use crate::packet_io::{
    Doorbell, IoConfig, IoStats, Pace, PacketIo, PeerError, PeerErrors, Received, RecvBuf,
    SetupError, SocketId, SocketTable, TURN_DATAGRAMS, Trains, TurnStamp, Wait, WireAddr,
    kernel_corrupts_trains,
};
use buffers::{Buffers, GROUP};
use queue::Queue;
use recv::{MOST_ERRORS_IN_ROW, Receive, Receiver, Unusable};
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
        let ring = Self {
            queue,
            state: State {
                sockets: SocketTable::new(config.max_sockets),
                buffers: Buffers::new(config.slots, config.slot_bytes),
                receiver: Receiver::new(config.slots),
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
        // SAFETY: the buffers outlive the queue, see the order of the fields.
        unsafe { ring.state.buffers.register(&submitter, GROUP) }.map_err(setup::refused(
            "io_uring_register (buffer ring)",
            "raise the memory limit or lower the number of receive slots",
        ))?;
        Ok(ring)
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
    fn stage(&mut self, socket: SocketId, to: SocketAddr, at: *const u8, len: u32) {
        if self.state.sockets.is_live(socket) {
            self.state.staged.push(socket, WireAddr::from(to), at, len);
        } else {
            self.state.stats.stale_sends += 1;
        }
    }

    fn stage_whole(&mut self, socket: SocketId, to: SocketAddr, at: *const u8, len: u32) {
        let state = &mut self.state;
        if state.sockets.is_live(socket) {
            state.staged.push_whole(socket, WireAddr::from(to), at, len);
        } else {
            state.stats.stale_sends += 1;
        }
    }

    /// Writes a header before a received payload, and makes room for it among what is staged.
    #[inline]
    fn reframe(&mut self, buf: RecvBuf, strip: usize, header: &[u8]) -> Option<(*const u8, u32)> {
        if !self.make_room() {
            return None;
        }
        let slot = buf.slot(self.stamp);
        let memory = &mut self.state.buffers.memory;
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

    /// Cancels the receives of removed sockets, behind the sends that were staged before.
    fn cancel_removed(&mut self) -> io::Result<()> {
        for id in self.removed.drain(..) {
            let armed = self
                .state
                .sockets
                .get_any_mut(id)
                .is_some_and(|entry| entry.extra.armed);
            if armed {
                let cancel = opcode::AsyncCancel::new(Token::Receive(id).pack())
                    .build()
                    .user_data(Token::Cancel.pack());
                // SAFETY: a cancellation refers to no memory.
                unsafe { self.queue.push(&cancel)? };
            } else {
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
        if self.state.receiver.ended.is_empty() || !self.state.buffers.has_available() {
            return Ok(());
        }
        while let Some(id) = self.state.receiver.ended.pop() {
            if !self.state.sockets.is_live(id) {
                continue;
            }
            self.arm(id)?;
            self.state.stats.rearms += 1;
        }
        Ok(())
    }

    fn arm(&mut self, id: SocketId) -> io::Result<()> {
        // SAFETY: the template lives in the receiver, which outlives the queue.
        unsafe { self.queue.push(&self.state.receiver.request(id))? };
        if let Some(entry) = self.state.sockets.get_any_mut(id) {
            entry.extra.armed = true;
            entry.extra.armed_in_turn = self.state.stats.turns;
        }
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
            let hungry = !self.state.receiver.ended.is_empty() || self.state.buffers.runs_short();
            if hungry {
                self.queue.submit()?;
                self.reap()?;
                self.forget_staged();
            }
        }
        self.cancel_removed()?;
        if self.state.staged.is_empty() {
            self.arena.reset();
            self.state.buffers.give_back();
            self.close_finished()?;
        }
        self.rearm()?;
        self.arm_doorbell()
    }

    fn enter(&mut self, timeout: Option<Duration>, wait: Wait) -> io::Result<()> {
        // While a receive waits to be armed its socket cannot wake us.
        let ready = !self.state.receiver.arrivals.is_empty()
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

impl State {
    #[inline]
    fn complete(&mut self, cqe: &cqueue::Entry) {
        match Token::unpack(cqe.user_data()) {
            Some(Token::Receive(id)) => self.complete_receive(id, cqe),
            Some(Token::Single { train, segment }) => {
                self.refuse(train, Some(segment), -cqe.result());
            }
            Some(Token::Train { train }) => self.refuse(train, None, -cqe.result()),
            Some(Token::Doorbell) => {
                self.doorbell_armed = false;
                self.stats.doorbells += u64::from(cqe.result() > 0);
            }
            // A cancellation that finds nothing came after the end that it asked for.
            Some(Token::Cancel | Token::Probe) | None => {}
            Some(token) => self.complete_stream(token, cqe),
        }
    }

    fn complete_stream(&mut self, token: Token, cqe: &cqueue::Entry) {
        let Some(streams) = &mut self.streams else {
            return;
        };
        match token {
            Token::Accept(id) => streams.accepted(id, cqe, &mut self.stats),
            Token::StreamReceive(id) => streams.received(id, cqe, &mut self.stats),
            Token::StreamSend(id) => streams.sent(id, cqe, &mut self.stats),
            _ => {}
        }
    }

    #[inline]
    fn complete_receive(&mut self, id: SocketId, cqe: &cqueue::Entry) {
        let payload_bytes = recv::payload_bytes(cqe.result());
        if let Some(slot) = cqueue::buffer_select(cqe.flags()) {
            self.buffers.taken();
            match payload_bytes {
                Ok(len) => self.receiver.arrived(id, slot, len),
                Err(_) => self.buffers.borrow_for_turn(slot),
            }
        }
        if !cqueue::more(cqe.flags()) {
            self.receive_ended(id, payload_bytes.err());
        }
    }

    #[cold]
    fn receive_ended(&mut self, id: SocketId, error: Option<io::Error>) {
        let live = self.sockets.is_live(id);
        let Some(entry) = self.sockets.get_any_mut(id) else {
            return;
        };
        entry.extra.armed = false;
        if !live {
            self.finished.push(id);
            return;
        }
        match error.as_ref().and_then(io::Error::raw_os_error) {
            None => {}
            Some(libc::ENOBUFS) => self.stats.enobufs += 1,
            Some(_) => {
                self.stats.receive_errors += 1;
                // An error of the network's is no reason to leave the socket alone.
                let is_reported = drain(id, &entry.socket, &mut self.errors);
                let at_once = !is_reported && entry.extra.armed_in_turn == self.stats.turns;
                entry.extra.errors_in_row = if at_once {
                    entry.extra.errors_in_row + 1
                } else {
                    0
                };
                if entry.extra.errors_in_row >= MOST_ERRORS_IN_ROW {
                    return;
                }
            }
        }
        self.receiver.ended.push(id);
    }

    #[cold]
    fn refuse(&mut self, train: u32, segment: Option<u32>, errno: i32) {
        let staged = &self.staged;
        let train = &staged.trains()[train as usize];
        let Some(entry) = self.sockets.get_any_mut(train.socket) else {
            return;
        };
        let mut refused = Refused {
            socket: &entry.socket,
            is_ipv6: entry.is_ipv6,
            gso: &mut entry.gso,
            stats: &mut self.stats,
        };
        // SAFETY: refusals are reaped before slots and arena are given back.
        unsafe {
            match segment {
                Some(segment) => refused.single(staged, train, segment, errno),
                None => refused.train(staged, train, errno),
            }
        }
        // The error that waited may have been reported to this send, and then no receive ends by it.
        if !matches!(errno, libc::EAGAIN | libc::ENOBUFS) {
            drain(train.socket, &entry.socket, &mut self.errors);
        }
    }
}

impl PacketIo for Ring {
    fn add_socket(&mut self, socket: UdpSocket) -> io::Result<SocketId> {
        let fd = socket.as_raw_fd();
        let id = self
            .state
            .sockets
            .insert(socket, self.gso, Receive::default())?;
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
            self.state.buffers.give_back();
            self.close_finished()?;
        }
        self.state.stats.enters = self.queue.enters;
        self.left_this_turn = TURN_DATAGRAMS;
        Ok(())
    }

    #[inline]
    fn next(&mut self) -> Option<Received> {
        self.left_this_turn = self.left_this_turn.checked_sub(1)?;
        let state = &mut self.state;
        loop {
            let arrival = state.receiver.arrivals.pop_front()?;
            state.buffers.borrow_for_turn(arrival.slot);
            if !state.sockets.is_live(arrival.socket) {
                continue;
            }
            match recv::sender(&state.buffers, &arrival) {
                Ok(from) => {
                    state.stats.datagrams_received += 1;
                    state.stats.bytes_received += u64::from(arrival.len);
                    return Some(Received {
                        socket: arrival.socket,
                        from,
                        buf: RecvBuf::new(self.stamp, arrival.slot.into(), arrival.len),
                    });
                }
                Err(Unusable::Truncated) => state.stats.truncated_dropped += 1,
                Err(Unusable::NoAddress) => state.stats.receive_errors += 1,
            }
        }
    }

    #[inline]
    fn next_error(&mut self) -> Option<PeerError> {
        self.state.errors.pop()
    }

    #[inline]
    fn payload<'a>(&'a self, buf: &'a RecvBuf) -> &'a [u8] {
        let slot = buf.slot(self.stamp);
        // SAFETY: the stamp proves that the slot was handed out in this turn.
        unsafe { self.state.buffers.memory.payload(slot, buf.len()) }
    }

    #[inline]
    fn payload_mut<'a>(&'a mut self, buf: &'a mut RecvBuf) -> &'a mut [u8] {
        let slot = buf.slot(self.stamp);
        // SAFETY: the stamp proves that the slot was handed out in this turn.
        unsafe { self.state.buffers.memory.payload_mut(slot, buf.len()) }
    }

    #[inline]
    fn resize(&mut self, buf: &mut RecvBuf, len: usize) {
        if len > buf.len() {
            let slot = buf.slot(self.stamp);
            // SAFETY: the stamp proves that the slot was handed out in this turn.
            unsafe { self.state.buffers.memory.zero(slot, buf.len(), len) };
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
        if let Some((at, len)) = self.reframe(buf, strip, header) {
            self.stage(socket, to, at, len);
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
        if let Some((at, len)) = self.reframe(buf, strip, header) {
            self.stage_whole(socket, to, at, len);
        }
    }

    fn send(&mut self, socket: SocketId, to: SocketAddr, bytes: &[u8]) {
        if self.make_room() {
            let at = self.arena.alloc_slice_copy(bytes).as_ptr();
            self.stage(socket, to, at, bytes.len() as u32);
        }
    }

    fn send_whole(&mut self, socket: SocketId, to: SocketAddr, bytes: &[u8]) {
        if self.make_room() {
            let at = self.arena.alloc_slice_copy(bytes).as_ptr();
            self.stage_whole(socket, to, at, bytes.len() as u32);
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
