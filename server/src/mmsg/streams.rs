//! Streams by epoll, accept, recv and send: [`StreamIo`] of [`Mmsg`].
//!
//! A listener or stream is watched only for what can be dealt with, since epoll is level-triggered and reports the rest again and
//! again: a stream for output only while the kernel has no room, a listener not while it rests, an ended stream not at all.

use std::collections::VecDeque;
use std::io;
use std::net::{Shutdown, TcpListener};
use std::time::{Duration, Instant};

use super::slots::Slots;
use super::sys::{self, Epoll};
use super::{Mmsg, TOKEN_BITS};
use crate::packet_io::{
    ACCEPT_PAUSE, IoStats, ListenerId, STREAM_SLOT_BYTES, STREAM_SLOTS, SendRefused, SpareBuffers,
    StreamBytes, StreamEntry, StreamEvent, StreamEvents, StreamId, StreamIo, StreamTable,
    TurnStamp,
};

/// Most connections that one listener accepts in a turn.
const ACCEPTS: usize = 64;
/// Most slots that one stream fills in a turn.
const SLOTS_A_TURN: usize = 8;

const INPUT: u32 = libc::EPOLLIN as u32;
const OUTPUT: u32 = libc::EPOLLOUT as u32;
/// Reported unasked.
const BROKEN: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;

/// What an event of the epoll set is about, above the numbers of UDP sockets.
fn stream_token(id: StreamId) -> u64 {
    1 << TOKEN_BITS | u64::from(id.to_raw())
}

fn listener_token(id: ListenerId) -> u64 {
    2 << TOKEN_BITS | u64::from(id.index())
}

#[derive(Debug, Default)]
struct Watched {
    /// The events that a stream is watched for.
    events: u32,
    /// It is in the list of streams that found no slot.
    starved: bool,
}

#[derive(Debug)]
struct Listener {
    socket: TcpListener,
    /// It rests until then, and is not watched.
    resume_at: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Streams {
    table: StreamTable<Watched>,
    slots: Slots,
    spare: SpareBuffers,
    listeners: Vec<Listener>,
    events: StreamEvents,
    /// Streams with bytes to send and no reason to wait.
    to_send: Vec<StreamId>,
    /// Streams that found no slot. They come first in the next turn, since epoll always reports in the same order.
    starved: VecDeque<StreamId>,
    /// Somebody was refused, and is to try again once there is room.
    refused: bool,
}

impl Streams {
    fn new(max_streams: u32) -> Self {
        Self {
            table: StreamTable::new(max_streams),
            slots: Slots::new(STREAM_SLOTS, STREAM_SLOT_BYTES),
            spare: SpareBuffers::default(),
            listeners: Vec::new(),
            events: StreamEvents::default(),
            to_send: Vec::new(),
            starved: VecDeque::new(),
            refused: false,
        }
    }

    /// Sends what waits and takes the last turn's slots back; returns how long this turn may sleep at most.
    pub(super) fn begin_turn(
        &mut self,
        epoll: &Epoll,
        timeout: Option<Duration>,
        stats: &mut IoStats,
    ) -> io::Result<Option<Duration>> {
        self.slots.give_back();
        self.events.begin_turn();
        // Sending makes room without an event of the epoll set, so whoever waits for it would not hear.
        let made_room = std::mem::take(&mut self.refused) && !self.to_send.is_empty();
        while let Some(id) = self.to_send.pop() {
            if let Some(entry) = self.table.get_mut(id) {
                entry.listed = false;
                send(entry, &mut self.spare, stats);
                watch(epoll, id, entry);
            }
        }
        for _ in 0..self.starved.len() {
            if let Some(id) = self.starved.pop_front()
                && let Some(entry) = self.table.get_mut(id)
            {
                entry.extra.starved = false;
                self.ready(stream_token(id), INPUT, epoll, stats);
            }
        }
        let mut timeout = timeout;
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            let Some(resume_at) = listener.resume_at else {
                continue;
            };
            let left = resume_at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                epoll.add(
                    &listener.socket,
                    listener_token(ListenerId::new(index as u16)),
                )?;
                listener.resume_at = None;
            } else {
                timeout = Some(timeout.map_or(left, |timeout| timeout.min(left)));
            }
        }
        Ok(if self.events.is_empty() && !made_room {
            timeout
        } else {
            Some(Duration::ZERO)
        })
    }

    /// Deals with one event of the epoll set.
    pub(super) fn ready(&mut self, token: u64, ready: u32, epoll: &Epoll, stats: &mut IoStats) {
        if token >> TOKEN_BITS != 1 {
            return self.accept(ListenerId::new(token as u16), epoll, stats);
        }
        let id = StreamId::from_raw(token as u32);
        let Some(entry) = self.table.get_mut(id) else {
            return;
        };
        if ready & (INPUT | BROKEN) != 0
            && !entry.ended
            && !entry.extra.starved
            && !receive(id, entry, &mut self.slots, &mut self.events, stats)
        {
            entry.extra.starved = true;
            self.starved.push_back(id);
        }
        if entry.failed {
            entry.queue.clear(&mut self.spare);
        }
        if ready & (OUTPUT | BROKEN) != 0 && entry.extra.events & OUTPUT != 0 {
            send(entry, &mut self.spare, stats);
        }
        watch(epoll, id, entry);
    }

    fn accept(&mut self, id: ListenerId, epoll: &Epoll, stats: &mut IoStats) {
        let Some(listener) = self.listeners.get_mut(usize::from(id.index())) else {
            return;
        };
        for _ in 0..ACCEPTS {
            stats.enters += 1;
            let (socket, peer) = match listener.socket.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    stats.stream_accept_errors += 1;
                    if error.kind() == io::ErrorKind::ConnectionAborted {
                        continue;
                    }
                    let token = listener_token(id);
                    if epoll.change(&listener.socket, token, INPUT, 0).is_ok() {
                        listener.resume_at = Some(Instant::now() + ACCEPT_PAUSE);
                    }
                    return;
                }
            };
            // It can fail only for a connection that is gone, and then the end is received.
            let _ = socket.set_nodelay(true);
            let stream = match self.table.insert(socket, Watched::default()) {
                Ok(stream) => stream,
                Err(socket) => {
                    stats.streams_refused += 1;
                    sys::close_by_reset(socket);
                    continue;
                }
            };
            if let Some(entry) = self.table.get_mut(stream)
                && watch(epoll, stream, entry)
            {
                stats.streams_accepted += 1;
                self.events.accepted(id, stream, peer);
            } else {
                stats.stream_accept_errors += 1;
                self.table.retire(stream);
                self.table.free(stream);
            }
        }
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
            self.refused = true;
            return Err(SendRefused::Full);
        }
        if !entry.listed && entry.extra.events & OUTPUT == 0 {
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
        // The close takes the stream out of the epoll set (epoll(7)).
        if let Some(mut entry) = self.table.free(id) {
            if flush {
                send(&mut entry, &mut self.spare, stats);
                sys::close_in_order(entry.socket);
            } else {
                sys::close_by_reset(entry.socket);
            }
            entry.queue.clear(&mut self.spare);
        }
    }

    fn bytes(&self, stamp: TurnStamp, bytes: &StreamBytes) -> &[u8] {
        let (slot, len) = bytes.slot(stamp);
        // SAFETY: the stamp proves that the slot was handed out in this turn.
        unsafe { self.slots.memory.bytes(slot, len) }
    }
}

/// Sends until the queue is empty or the kernel has no room.
fn send(entry: &mut StreamEntry<Watched>, spare: &mut SpareBuffers, stats: &mut IoStats) {
    while !entry.queue.is_empty() {
        stats.enters += 1;
        match sys::send(&entry.socket, entry.queue.front()) {
            Ok(sent) => {
                stats.stream_bytes_sent += sent as u64;
                entry.queue.advance(sent, spare);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => {
                entry.failed = true;
                entry.queue.clear(spare);
                // What came before the error is still received, and then the end.
                let _ = entry.socket.shutdown(Shutdown::Both);
            }
        }
    }
}

/// Receives a turn's share; false if there was no slot for it.
fn receive(
    id: StreamId,
    entry: &mut StreamEntry<Watched>,
    slots: &mut Slots,
    events: &mut StreamEvents,
    stats: &mut IoStats,
) -> bool {
    for _ in 0..SLOTS_A_TURN {
        let Some(slot) = slots.nth_free(0) else {
            stats.stream_enobufs += 1;
            return false;
        };
        let room = slots.memory.slot_bytes() as usize;
        stats.enters += 1;
        // SAFETY: the slot is free and of that size, and the call is synchronous.
        let received = unsafe { sys::receive(&entry.socket, slots.memory.slot_at(slot), room) };
        match received {
            Ok(0) => {
                entry.ended = true;
                events.ended(id);
            }
            Ok(bytes) => {
                slots.take(1);
                events.received(id, slot, bytes as u32);
                if bytes == room {
                    continue;
                }
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(_) => {
                entry.failed = true;
                entry.ended = true;
                events.ended(id);
            }
        }
        break;
    }
    true
}

/// Watches a stream for what can be dealt with now; false if the kernel has no memory to watch it.
fn watch(epoll: &Epoll, id: StreamId, entry: &mut StreamEntry<Watched>) -> bool {
    let input = if entry.ended { 0 } else { INPUT };
    let blocked = !entry.listed && !entry.failed && !entry.queue.is_empty();
    let events = input | if blocked { OUTPUT } else { 0 };
    let before = std::mem::replace(&mut entry.extra.events, events);
    before == events
        || epoll
            .change(&entry.socket, stream_token(id), before, events)
            .is_ok()
}

impl StreamIo for Mmsg {
    fn add_listener(&mut self, listener: TcpListener) -> io::Result<ListenerId> {
        listener.set_nonblocking(true)?;
        let max_streams = self.max_streams;
        let streams = self
            .streams
            .get_or_insert_with(|| Box::new(Streams::new(max_streams)));
        let index = u16::try_from(streams.listeners.len())
            .map_err(|_| io::Error::from(io::ErrorKind::StorageFull))?;
        let id = ListenerId::new(index);
        self.epoll.add(&listener, listener_token(id))?;
        streams.listeners.push(Listener {
            socket: listener,
            resume_at: None,
        });
        Ok(id)
    }

    fn next_stream_event(&mut self) -> Option<StreamEvent> {
        let Streams {
            table,
            slots,
            events,
            ..
        } = &mut **self.streams.as_mut()?;
        events.next(table, self.stamp, &mut self.stats, |slot| {
            slots.borrow_for_turn(slot);
        })
    }

    fn stream_bytes<'a>(&'a self, bytes: &'a StreamBytes) -> &'a [u8] {
        let streams = self.streams.as_ref().expect("bytes come from streams");
        streams.bytes(self.stamp, bytes)
    }

    fn send_stream(&mut self, stream: StreamId, parts: &[&[u8]]) -> Result<(), SendRefused> {
        let streams = self.streams.as_mut().ok_or(SendRefused::Gone)?;
        streams.push(stream, parts, &mut self.stats)
    }

    fn close_stream(&mut self, stream: StreamId, flush: bool) {
        if let Some(streams) = &mut self.streams {
            streams.close(stream, flush, &mut self.stats);
        }
    }

    fn open_streams(&self) -> usize {
        self.streams
            .as_ref()
            .map_or(0, |streams| streams.table.open())
    }
}
