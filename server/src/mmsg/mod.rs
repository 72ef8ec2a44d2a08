//! Packet input and output by epoll, recvmmsg and sendmmsg, for hosts that forbid io_uring.
//!
//! The same face and the same guarantees as [`crate::ring`]. On one busy socket it costs about the
//! same; with many sockets each datagram tends to cost its own system call. Nothing here blocks
//! but the wait in [`PacketIo::turn`]; it never looks into a payload.
#![allow(unsafe_code)]

pub(crate) mod error_queue;
mod recv;
pub(crate) mod send;
pub(crate) mod slot_memory;
mod slots;
mod streams;
pub(crate) mod sys;

use std::fs::File;
use std::io::{self, Read as _};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use bumpalo::Bump;

use crate::packet_io::{
    Doorbell, IoConfig, IoStats, Pace, PacketIo, PeerError, Received, RecvBuf, SetupError,
    SocketId, SocketTable, Trains, TurnStamp, Wait, WireAddr, kernel_corrupts_trains,
};
use recv::Receiver;
use send::Sender;
use slots::DatagramSlots;
use streams::Streams;
use sys::Epoll;

/// Datagrams that can be staged before they are sent early.
const STAGED: usize = 1024;
/// Epoll tokens of UDP sockets are their ids, of so many bits; all others are larger.
const TOKEN_BITS: u32 = 32;
/// The epoll token of the doorbell.
const DOORBELL: u64 = u64::MAX;

/// Packet input and output of one shard over recvmmsg and sendmmsg.
#[derive(Debug)]
pub struct Mmsg {
    /// Each with whether it receives in wide slots.
    sockets: SocketTable<bool>,
    epoll: Epoll,
    doorbell: Arc<File>,
    slots: DatagramSlots,
    receiver: Receiver,
    sender: Sender,
    staged: Trains,
    arena: Bump,
    removed: Vec<SocketId>,
    pace: Pace,
    stamp: TurnStamp,
    left_this_turn: usize,
    gso: bool,
    stats: IoStats,
    max_streams: u32,
    /// Made with the first listener.
    streams: Option<Box<Streams>>,
}

impl Mmsg {
    /// Sets the backend up; all memory that it needs is taken here.
    ///
    /// # Errors
    ///
    /// [`SetupError::Config`] for a size out of range, [`SetupError::Limit`] when the process has
    /// no descriptor left.
    pub fn new(config: &IoConfig) -> Result<Self, SetupError> {
        let config = config.checked()?;
        let limit = |what| {
            move |source| SetupError::Limit {
                what,
                source,
                remedy: "raise the limit of open files (LimitNOFILE, ulimit -n)",
            }
        };
        if config.coalesce_us > 0 {
            sys::sharpen_timers();
        }
        let epoll = Epoll::new().map_err(limit("epoll_create1"))?;
        let doorbell = Arc::new(sys::eventfd().map_err(limit("eventfd"))?);
        epoll
            .add(&*doorbell, DOORBELL)
            .map_err(limit("epoll_ctl"))?;
        let slots = DatagramSlots::new(&config);
        Ok(Self {
            sockets: SocketTable::new(config.max_sockets),
            epoll,
            doorbell,
            receiver: Receiver::new(config.slots as usize * if slots.has_wide() { 2 } else { 1 }),
            slots,
            sender: Sender::new(),
            staged: Trains::new(STAGED),
            arena: Bump::new(),
            removed: Vec::new(),
            pace: Pace::new(config.coalesce_us),
            stamp: TurnStamp::of_new_backend(),
            left_this_turn: 0,
            gso: !kernel_corrupts_trains(&sys::kernel_release()),
            stats: IoStats::default(),
            max_streams: config.max_streams,
            streams: None,
        })
    }

    fn add(&mut self, socket: UdpSocket, is_wide: bool) -> io::Result<SocketId> {
        let id = self.sockets.insert(socket, self.gso, is_wide)?;
        let added = match self.sockets.get(id) {
            Some(entry) => self.epoll.add(&entry.socket, u64::from(id.to_raw())),
            None => Ok(()),
        };
        if let Err(error) = added {
            self.sockets.retire(id);
            self.sockets.free(id);
            return Err(error);
        }
        Ok(id)
    }

    /// Sends what is staged; afterwards nothing refers to slots or arena any more.
    fn flush(&mut self) {
        if !self.staged.is_empty() {
            self.sender
                .flush(&self.staged, &mut self.sockets, &mut self.stats);
            self.staged.clear();
        }
        self.arena.reset();
    }

    fn stage(
        &mut self,
        socket: SocketId,
        to: SocketAddr,
        (at, len): (*const u8, u32),
        whole: bool,
    ) {
        if self.sockets.is_live(socket) {
            self.staged.push(socket, WireAddr::from(to), at, len, whole);
        } else {
            self.stats.stale_sends += 1;
        }
    }

    /// Writes a header before a received payload, and makes room for it among what is staged.
    fn reframe(&mut self, buf: RecvBuf, strip: usize, header: &[u8]) -> (*const u8, u32) {
        self.make_room();
        let (memory, slot) = self.slots.slot_mut(buf.slot(self.stamp));
        // SAFETY: the stamp proves that the slot was handed out in this turn.
        unsafe { memory.reframe(slot, buf.len(), strip, header) }
    }

    fn make_room(&mut self) {
        if self.staged.is_full() {
            self.flush();
        }
    }
}

impl PacketIo for Mmsg {
    fn add_socket(&mut self, socket: UdpSocket) -> io::Result<SocketId> {
        self.add(socket, false)
    }

    fn add_wide_socket(&mut self, socket: UdpSocket) -> io::Result<SocketId> {
        if !self.slots.has_wide() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.add(socket, true)
    }

    fn remove_socket(&mut self, id: SocketId) {
        if self.sockets.retire(id) {
            self.removed.push(id);
        }
    }

    fn turn(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.stats.turns += 1;
        self.stamp.advance();
        self.flush();
        for id in self.removed.drain(..) {
            // Dropping the socket closes it, which takes it out of the epoll set (epoll(7)).
            self.sockets.free(id);
        }
        self.slots.give_back();
        let arrived = self.receiver.take_arrived();
        let wait = match self.pace.next_wait(arrived) {
            // Company comes without waiting for it.
            Wait::ForMore { want, .. } if arrived >= want as usize => Wait::ForOne,
            wait => wait,
        };
        let mut timeout = if self.receiver.is_empty() {
            timeout
        } else {
            Some(Duration::ZERO)
        };
        if let Some(streams) = &mut self.streams {
            timeout = streams.begin_turn(&self.epoll, timeout, &mut self.stats)?;
        }
        recv::nap(wait, timeout);
        let rung = self.receiver.receive(
            &self.epoll,
            timeout,
            &mut self.slots,
            &self.sockets,
            self.streams.as_deref_mut(),
            &mut self.stats,
        )?;
        if rung {
            // It is readable, so this does not block.
            (&*self.doorbell).read_exact(&mut [0; 8])?;
            self.stats.doorbells += 1;
        }
        self.left_this_turn = crate::packet_io::TURN_DATAGRAMS;
        Ok(())
    }

    #[inline]
    fn next(&mut self) -> Option<Received> {
        self.left_this_turn = self.left_this_turn.checked_sub(1)?;
        loop {
            let arrival = self.receiver.pop()?;
            self.slots.borrow_for_turn(arrival.slot);
            if !self.sockets.is_live(arrival.socket) {
                continue;
            }
            self.stats.datagrams_received += 1;
            self.stats.bytes_received += u64::from(arrival.len);
            return Some(Received {
                socket: arrival.socket,
                from: arrival.from,
                buf: RecvBuf::new(self.stamp, arrival.slot, arrival.len),
            });
        }
    }

    #[inline]
    fn next_error(&mut self) -> Option<PeerError> {
        self.receiver.errors.pop()
    }

    #[inline]
    fn payload<'a>(&'a self, buf: &'a RecvBuf) -> &'a [u8] {
        let (memory, slot) = self.slots.slot(buf.slot(self.stamp));
        // SAFETY: the stamp proves that the slot was handed out in this turn.
        unsafe { memory.payload(slot, buf.len()) }
    }

    #[inline]
    fn payload_mut<'a>(&'a mut self, buf: &'a mut RecvBuf) -> &'a mut [u8] {
        let (memory, slot) = self.slots.slot_mut(buf.slot(self.stamp));
        // SAFETY: the stamp proves that the slot was handed out in this turn.
        unsafe { memory.payload_mut(slot, buf.len()) }
    }

    #[inline]
    fn resize(&mut self, buf: &mut RecvBuf, len: usize) {
        if len > buf.len() {
            let (memory, slot) = self.slots.slot_mut(buf.slot(self.stamp));
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
        let datagram = self.reframe(buf, strip, header);
        self.stage(socket, to, datagram, false);
    }

    fn forward_whole(
        &mut self,
        buf: RecvBuf,
        strip: usize,
        header: &[u8],
        socket: SocketId,
        to: SocketAddr,
    ) {
        let datagram = self.reframe(buf, strip, header);
        self.stage(socket, to, datagram, true);
    }

    fn send(&mut self, socket: SocketId, to: SocketAddr, bytes: &[u8]) {
        self.make_room();
        let at = self.arena.alloc_slice_copy(bytes).as_ptr();
        self.stage(socket, to, (at, bytes.len() as u32), false);
    }

    fn send_whole(&mut self, socket: SocketId, to: SocketAddr, bytes: &[u8]) {
        self.make_room();
        let at = self.arena.alloc_slice_copy(bytes).as_ptr();
        self.stage(socket, to, (at, bytes.len() as u32), true);
    }

    fn doorbell(&self) -> Doorbell {
        Doorbell::new(Arc::clone(&self.doorbell))
    }

    fn stats(&self) -> &IoStats {
        &self.stats
    }

    fn socket(&self, id: SocketId) -> Option<&UdpSocket> {
        self.sockets.get(id).map(|entry| &entry.socket)
    }

    fn backend(&self) -> &'static str {
        "mmsg"
    }
}
