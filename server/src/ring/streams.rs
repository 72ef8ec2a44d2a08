//! Streams by io_uring: one multishot accept per listener, one multishot recv and at most one send per stream.
//!
//! The streams have a buffer group of their own, so that they never take the slots of the datagrams. Descriptors are plain ones:
//! the file table is numbered by the UDP sockets, and the peer's address and the options of a direct descriptor cannot be had.
//! Sockets are in blocking mode, which lets the kernel wait for room instead of refusing with EAGAIN.
//!
//! The kernel has a stream's front bytes from the request to its completion. So a stream that is closed keeps its place, its
//! descriptor and its queue until both its requests have completed, and only then is it closed and its id used again.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::time::{Duration, Instant};

use io_uring::{cqueue, opcode, types};

use super::Ring;
use super::buffers::{Buffers, STREAM_GROUP};
use super::queue::Queue;
use super::token::Token;
use crate::mmsg::sys;
use crate::packet_io::{
    ACCEPT_PAUSE, IoStats, ListenerId, STREAM_SLOT_BYTES, STREAM_SLOTS, SendRefused, SpareBuffers,
    StreamBytes, StreamEntry, StreamEvent, StreamEvents, StreamId, StreamIo, StreamTable,
    TurnStamp,
};

/// How a stream is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Closing {
    /// Behind what the kernel takes at once.
    Flush,
    Reset,
}

/// What the kernel has of a stream.
#[derive(Debug, Default)]
struct Requests {
    receiving: bool,
    /// The length of the send, of the queue's front bytes.
    sending: Option<usize>,
    closing: Option<Closing>,
}

#[derive(Debug)]
struct Listener {
    socket: TcpListener,
    /// The kernel has the accept request.
    accepting: bool,
    /// It rests until then.
    resume_at: Option<Instant>,
}

pub(super) struct Streams {
    table: StreamTable<Requests>,
    buffers: Buffers,
    spare: SpareBuffers,
    listeners: Vec<Listener>,
    events: StreamEvents,
    to_receive: Vec<StreamId>,
    to_send: Vec<StreamId>,
    to_close: Vec<StreamId>,
    /// Closed, and the kernel has nothing of them any more.
    finished: Vec<StreamId>,
}

impl Streams {
    /// Makes the slots and hands them to the kernel.
    ///
    /// # Safety
    ///
    /// The value must outlive the io_uring of `queue`.
    unsafe fn new(max_streams: u32, queue: &Queue) -> io::Result<Box<Self>> {
        let streams = Box::new(Self {
            table: StreamTable::new(max_streams),
            buffers: Buffers::new(STREAM_SLOTS, STREAM_SLOT_BYTES),
            spare: SpareBuffers::default(),
            listeners: Vec::new(),
            events: StreamEvents::default(),
            to_receive: Vec::new(),
            to_send: Vec::new(),
            to_close: Vec::new(),
            finished: Vec::new(),
        });
        // SAFETY: the caller's promise; after an error the kernel has nothing.
        unsafe { streams.buffers.register(&queue.submitter(), STREAM_GROUP)? };
        Ok(streams)
    }

    fn add_listener(&mut self, socket: TcpListener) -> io::Result<ListenerId> {
        let index = u16::try_from(self.listeners.len())
            .map_err(|_| io::Error::from(io::ErrorKind::StorageFull))?;
        self.listeners.push(Listener {
            socket,
            accepting: false,
            resume_at: None,
        });
        Ok(ListenerId::new(index))
    }

    /// Whether the turn must not sleep: what waits for a slot cannot wake it.
    pub(super) fn is_ready(&self) -> bool {
        !self.events.is_empty() || !self.to_receive.is_empty()
    }

    /// Whether the kernel has a request of a listener or stream.
    pub(super) fn is_busy(&self) -> bool {
        let busy =
            |entry: &StreamEntry<Requests>| entry.extra.receiving || entry.extra.sending.is_some();
        self.listeners.iter().any(|listener| listener.accepting) || self.table.entries().any(busy)
    }

    /// Makes this turn's requests; returns how long the turn may sleep at most.
    pub(super) fn prepare(
        &mut self,
        queue: &mut Queue,
        timeout: Option<Duration>,
    ) -> io::Result<Option<Duration>> {
        self.buffers.give_back();
        self.events.begin_turn();
        while let Some(id) = self.to_send.pop() {
            self.start_send(id, queue)?;
        }
        while let Some(id) = self.to_close.pop() {
            self.cancel(id, queue)?;
        }
        self.close_finished();
        if self.buffers.has_available() {
            // In the order in which they ended: whoever found no slot comes first.
            for id in self.to_receive.drain(..) {
                let Some(entry) = self.table.get_mut(id) else {
                    continue;
                };
                let fd = types::Fd(entry.socket.as_raw_fd());
                let receive = opcode::RecvMulti::new(fd, STREAM_GROUP)
                    .build()
                    .user_data(Token::StreamReceive(id).pack());
                // SAFETY: it refers to the slots only, which outlive the queue.
                unsafe { queue.push(&receive)? };
                entry.extra.receiving = true;
            }
        }
        let mut timeout = timeout;
        for index in 0..self.listeners.len() {
            if let Some(left) = self.arm_listener(index, queue)? {
                timeout = Some(timeout.map_or(left, |timeout| timeout.min(left)));
            }
        }
        Ok(timeout)
    }

    fn start_send(&mut self, id: StreamId, queue: &mut Queue) -> io::Result<()> {
        let Some(entry) = self.table.get_any_mut(id) else {
            return Ok(());
        };
        entry.listed = false;
        let flags = match entry.extra.closing {
            None => libc::MSG_NOSIGNAL,
            Some(Closing::Flush) => libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
            Some(Closing::Reset) => return Ok(()),
        };
        if entry.extra.sending.is_some() || entry.queue.is_empty() {
            return Ok(());
        }
        let front = entry.queue.front();
        let len = front.len();
        let fd = types::Fd(entry.socket.as_raw_fd());
        let send = opcode::Send::new(fd, front.as_ptr(), len as u32)
            .flags(flags)
            .build()
            .user_data(Token::StreamSend(id).pack());
        // SAFETY: the front of the queue stays where it is while `sending` is set: only the completion advances or clears it, the
        // place is not freed before, and the queue of requests goes before the table.
        unsafe { queue.push(&send)? };
        entry.extra.sending = Some(len);
        Ok(())
    }

    /// Begins to close a stream, behind the send that was started before.
    fn cancel(&mut self, id: StreamId, queue: &mut Queue) -> io::Result<()> {
        let Some(entry) = self.table.get_any_mut(id) else {
            return Ok(());
        };
        let receive = entry.extra.receiving.then_some(Token::StreamReceive(id));
        let send = entry.extra.sending.map(|_| Token::StreamSend(id));
        for token in receive.into_iter().chain(send) {
            let cancel = opcode::AsyncCancel::new(token.pack())
                .build()
                .user_data(Token::Cancel.pack());
            // SAFETY: a cancellation refers to no memory.
            unsafe { queue.push(&cancel)? };
        }
        self.finish_if_idle(id);
        Ok(())
    }

    /// Arms a listener; if it rests, says for how long.
    fn arm_listener(&mut self, index: usize, queue: &mut Queue) -> io::Result<Option<Duration>> {
        let listener = &mut self.listeners[index];
        if listener.accepting {
            return Ok(None);
        }
        if let Some(resume_at) = listener.resume_at {
            let left = resume_at.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                return Ok(Some(left));
            }
            listener.resume_at = None;
        }
        let fd = types::Fd(listener.socket.as_raw_fd());
        let accept = opcode::AcceptMulti::new(fd)
            .flags(libc::SOCK_CLOEXEC)
            .build()
            .user_data(Token::Accept(ListenerId::new(index as u16)).pack());
        // SAFETY: a multishot accept refers to no memory.
        unsafe { queue.push(&accept)? };
        listener.accepting = true;
        Ok(None)
    }

    /// Closes what the kernel has nothing of any more.
    pub(super) fn close_finished(&mut self) {
        while let Some(id) = self.finished.pop() {
            let Some(mut entry) = self.table.free(id) else {
                continue;
            };
            entry.queue.clear(&mut self.spare);
            match entry.extra.closing {
                Some(Closing::Flush) => sys::close_in_order(entry.socket),
                _ => sys::close_by_reset(entry.socket),
            }
        }
    }

    /// Notes a closed stream that is done with; once, since nothing completes for it afterwards.
    fn finish_if_idle(&mut self, id: StreamId) {
        if let Some(entry) = self.table.get_any_mut(id)
            && entry.extra.closing.is_some()
            && !entry.listed
            && !entry.extra.receiving
            && entry.extra.sending.is_none()
        {
            self.finished.push(id);
        }
    }

    #[cold]
    pub(super) fn accepted(&mut self, id: ListenerId, cqe: &cqueue::Entry, stats: &mut IoStats) {
        let listener = &mut self.listeners[usize::from(id.index())];
        listener.accepting = cqueue::more(cqe.flags());
        let fd = cqe.result();
        if fd < 0 {
            stats.stream_accept_errors += 1;
            // A connection that was given up says nothing of the next one; all else would come again at once.
            if -fd != libc::ECONNABORTED {
                listener.resume_at = Some(Instant::now() + ACCEPT_PAUSE);
            }
            return;
        }
        // SAFETY: the completion of an accept hands a new descriptor to us, and nobody else knows it.
        let socket = unsafe { TcpStream::from_raw_fd(fd as RawFd) };
        // It can fail only for a connection that is gone, as getpeername then does too.
        let _ = socket.set_nodelay(true);
        let Ok(peer) = socket.peer_addr() else {
            stats.stream_accept_errors += 1;
            return;
        };
        match self.table.insert(socket, Requests::default()) {
            Ok(stream) => {
                stats.streams_accepted += 1;
                self.events.accepted(id, stream, peer);
                self.to_receive.push(stream);
            }
            Err(socket) => {
                stats.streams_refused += 1;
                sys::close_by_reset(socket);
            }
        }
    }

    pub(super) fn received(&mut self, id: StreamId, cqe: &cqueue::Entry, stats: &mut IoStats) {
        let result = cqe.result();
        let live = self.table.is_live(id);
        if let Some(slot) = cqueue::buffer_select(cqe.flags()) {
            self.buffers.taken();
            match u32::try_from(result) {
                Ok(len) if live && len > 0 => self.events.received(id, slot.into(), len),
                _ => self.buffers.borrow_for_turn(slot),
            }
        }
        if cqueue::more(cqe.flags()) {
            return;
        }
        let Some(entry) = self.table.get_any_mut(id) else {
            return;
        };
        entry.extra.receiving = false;
        if !live {
            return self.finish_if_idle(id);
        }
        match result {
            1.. => self.to_receive.push(id),
            0 => {
                entry.ended = true;
                self.events.ended(id);
            }
            _ if -result == libc::ENOBUFS => {
                stats.stream_enobufs += 1;
                self.to_receive.push(id);
            }
            _ if -result == libc::EINTR => self.to_receive.push(id),
            _ => {
                entry.ended = true;
                entry.failed = true;
                entry.queue.clear_waiting(&mut self.spare);
                self.events.ended(id);
            }
        }
    }

    pub(super) fn sent(&mut self, id: StreamId, cqe: &cqueue::Entry, stats: &mut IoStats) {
        let Some(entry) = self.table.get_any_mut(id) else {
            return;
        };
        let wanted = entry.extra.sending.take();
        let result = cqe.result();
        let sent = usize::try_from(result).unwrap_or(0);
        stats.stream_bytes_sent += sent as u64;
        if sent > 0 {
            entry.queue.advance(sent, &mut self.spare);
        }
        let goes_on = match entry.extra.closing {
            None => result >= 0 || -result == libc::EINTR,
            // Less than all means that there is no room for the rest.
            Some(Closing::Flush) => wanted == Some(sent),
            Some(Closing::Reset) => false,
        };
        if !goes_on || entry.failed {
            entry.queue.clear(&mut self.spare);
        }
        if entry.extra.closing.is_none() && !goes_on && !entry.failed {
            entry.failed = true;
            // What came before the error is still received, and then the end.
            let _ = entry.socket.shutdown(Shutdown::Both);
        }
        if !entry.queue.is_empty() && !entry.listed {
            entry.listed = true;
            self.to_send.push(id);
        }
        self.finish_if_idle(id);
    }

    fn push(
        &mut self,
        id: StreamId,
        parts: &[&[u8]],
        stats: &mut IoStats,
    ) -> Result<(), SendRefused> {
        let entry = self.table.get_mut(id).filter(|entry| !entry.failed);
        let entry = entry.ok_or(SendRefused::Gone)?;
        if !entry.queue.push(parts, &mut self.spare) {
            stats.stream_sends_refused += 1;
            return Err(SendRefused::Full);
        }
        if !entry.listed && entry.extra.sending.is_none() {
            entry.listed = true;
            self.to_send.push(id);
        }
        Ok(())
    }

    fn close(&mut self, id: StreamId, flush: bool, stats: &mut IoStats) {
        if !self.table.retire(id) {
            return;
        }
        stats.streams_closed += 1;
        if let Some(entry) = self.table.get_any_mut(id) {
            entry.extra.closing = Some(if flush {
                Closing::Flush
            } else {
                entry.queue.clear_waiting(&mut self.spare);
                Closing::Reset
            });
            self.to_close.push(id);
        }
    }

    fn next_event(&mut self, stamp: TurnStamp, stats: &mut IoStats) -> Option<StreamEvent> {
        let buffers = &mut self.buffers;
        self.events.next(&self.table, stamp, stats, |slot| {
            buffers.borrow_for_turn(slot as u16);
        })
    }

    fn bytes(&self, stamp: TurnStamp, bytes: &StreamBytes) -> &[u8] {
        let (slot, len) = bytes.slot(stamp);
        // SAFETY: the stamp proves that the slot was handed out in this turn; the kernel gets it back with the next one.
        unsafe { self.buffers.memory.bytes(slot, len) }
    }
}

impl StreamIo for Ring {
    fn add_listener(&mut self, listener: TcpListener) -> io::Result<ListenerId> {
        let streams = match &mut self.state.streams {
            Some(streams) => streams,
            // SAFETY: the state outlives the queue, see the order of the fields, and nothing takes the streams out of it.
            none => none.insert(unsafe { Streams::new(self.max_streams, &self.queue)? }),
        };
        streams.add_listener(listener)
    }

    fn next_stream_event(&mut self) -> Option<StreamEvent> {
        let streams = self.state.streams.as_mut()?;
        streams.next_event(self.stamp, &mut self.state.stats)
    }

    fn stream_bytes<'a>(&'a self, bytes: &'a StreamBytes) -> &'a [u8] {
        let streams = self.state.streams.as_ref();
        let streams = streams.expect("bytes come from streams");
        streams.bytes(self.stamp, bytes)
    }

    fn send_stream(&mut self, stream: StreamId, parts: &[&[u8]]) -> Result<(), SendRefused> {
        let streams = self.state.streams.as_mut().ok_or(SendRefused::Gone)?;
        streams.push(stream, parts, &mut self.state.stats)
    }

    fn close_stream(&mut self, stream: StreamId, flush: bool) {
        if let Some(streams) = &mut self.state.streams {
            streams.close(stream, flush, &mut self.state.stats);
        }
    }

    fn open_streams(&self) -> usize {
        let streams = self.state.streams.as_ref();
        streams.map_or(0, |streams| streams.table.open())
    }
}
