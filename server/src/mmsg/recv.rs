//! Receiving: one epoll wait, then up to 64 datagrams from each ready socket.
//!
//! Epoll is level-triggered, so whatever finds no free slot stays in its socket and is reported
//! again. Datagrams that were cut are dropped here.

use std::collections::VecDeque;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::Duration;

use super::error_queue::drain;
use super::slots::DatagramSlots;
use super::streams::Streams;
use super::sys::Epoll;
use super::{DOORBELL, TOKEN_BITS};
use crate::packet_io::{
    IoStats, PeerErrors, SocketEntry, SocketId, SocketTable, TURN_DATAGRAMS, Wait, WireAddr,
};

/// Most datagrams of one recvmmsg.
const PER_CALL: usize = 64;
/// Most sockets of one epoll wait.
const READY: usize = 256;
/// Room for any address that a UDP socket reports (`sockaddr_in6`, 28 bytes).
const NAME_BYTES: usize = 32;

/// Waits for company before the wait for the first.
pub(super) fn nap(wait: Wait, timeout: Option<Duration>) {
    if let Wait::ForMore { min_wait_us, .. } = wait
        && timeout != Some(Duration::ZERO)
    {
        // Epoll cannot wait for more than one event, so the busy shard just sleeps first; as
        // it is busy, something will have come.
        let nap = Duration::from_micros(min_wait_us.into());
        std::thread::sleep(timeout.map_or(nap, |timeout| timeout.min(nap)));
    }
}

/// A datagram that waits to be handed out.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) socket: SocketId,
    pub(super) from: SocketAddr,
    pub(super) slot: u32,
    pub(super) len: u32,
}

#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
struct Name([u8; NAME_BYTES]);

pub(super) struct Receiver {
    arrivals: VecDeque<Arrival>,
    arrived: usize,
    /// What sockets reported of what they sent.
    pub(super) errors: PeerErrors,
    ready: Vec<libc::epoll_event>,
    headers: Box<[libc::mmsghdr; PER_CALL]>,
    iovecs: Box<[libc::iovec; PER_CALL]>,
    names: Box<[Name; PER_CALL]>,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver")
            .field("arrivals", &self.arrivals.len())
            .finish_non_exhaustive()
    }
}

impl Receiver {
    pub(super) fn new(slots: usize) -> Self {
        // SAFETY: all-zero is a valid value of both structures.
        let (header, iovec) = unsafe { (zeroed::<libc::mmsghdr>(), zeroed::<libc::iovec>()) };
        let mut receiver = Self {
            arrivals: VecDeque::with_capacity(slots),
            arrived: 0,
            errors: PeerErrors::default(),
            ready: Vec::with_capacity(READY),
            headers: Box::new([header; PER_CALL]),
            iovecs: Box::new([iovec; PER_CALL]),
            names: Box::new([Name([0; NAME_BYTES]); PER_CALL]),
        };
        // The three arrays live in boxes that are never replaced, so these pointers stay good.
        let iovecs = receiver.iovecs.as_mut_ptr();
        let names = receiver.names.as_mut_ptr();
        for (i, header) in receiver.headers.iter_mut().enumerate() {
            header.msg_hdr.msg_iov = iovecs.wrapping_add(i);
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = names.wrapping_add(i).cast();
        }
        receiver
    }

    pub(super) fn is_empty(&self) -> bool {
        self.arrivals.is_empty()
    }

    pub(super) fn pop(&mut self) -> Option<Arrival> {
        self.arrivals.pop_front()
    }

    /// Datagrams that arrived since the last call.
    pub(super) fn take_arrived(&mut self) -> usize {
        std::mem::take(&mut self.arrived)
    }

    /// Waits and receives; true if the doorbell rang.
    pub(super) fn receive(
        &mut self,
        epoll: &Epoll,
        timeout: Option<Duration>,
        slots: &mut DatagramSlots,
        sockets: &SocketTable<bool>,
        mut streams: Option<&mut Streams>,
        stats: &mut IoStats,
    ) -> io::Result<bool> {
        stats.enters += 1;
        self.ready.clear();
        epoll.wait(&mut self.ready, timeout)?;
        let mut rung = false;
        for i in 0..self.ready.len() {
            let token = self.ready[i].u64;
            if token >> TOKEN_BITS != 0 {
                if token == DOORBELL {
                    rung = true;
                } else if let Some(streams) = &mut streams {
                    streams.ready(token, self.ready[i].events, epoll, stats);
                }
                continue;
            }
            if self.arrivals.len() >= TURN_DATAGRAMS {
                continue;
            }
            let id = SocketId::from_raw(token as u32);
            if let Some(entry) = sockets.get(id) {
                if self.ready[i].events & libc::EPOLLERR as u32 != 0 {
                    let had_any = drain(id, &entry.socket, &mut self.errors);
                    stats.receive_errors += u64::from(had_any);
                }
                self.receive_from(id, entry, slots, stats);
            }
        }
        Ok(rung)
    }

    fn receive_from(
        &mut self,
        id: SocketId,
        entry: &SocketEntry<bool>,
        slots: &mut DatagramSlots,
        stats: &mut IoStats,
    ) {
        let (slots, mark) = slots.of(entry.extra);
        let mut offered = 0;
        while offered < PER_CALL
            && let Some(slot) = slots.nth_free(offered)
        {
            self.iovecs[offered].iov_base = slots.memory.payload_at(slot).cast();
            self.iovecs[offered].iov_len = slots.memory.payload_capacity();
            let header = &mut self.headers[offered].msg_hdr;
            header.msg_namelen = NAME_BYTES as libc::socklen_t;
            offered += 1;
        }
        if offered == 0 {
            stats.enobufs += 1;
            return;
        }
        stats.enters += 1;
        // SAFETY: the first `offered` headers point at names and iovecs of this value and at free
        // slots; the call is synchronous, so the kernel is done with all of them when it returns.
        let received = unsafe {
            let flags = libc::MSG_DONTWAIT;
            let headers = self.headers.as_mut_ptr();
            let none = std::ptr::null_mut();
            libc::recvmmsg(
                entry.socket.as_raw_fd(),
                headers,
                offered as u32,
                flags,
                none,
            )
        };
        let Ok(received) = usize::try_from(received) else {
            let error = io::Error::last_os_error().raw_os_error();
            if !matches!(error, Some(libc::EAGAIN | libc::EINTR)) {
                stats.receive_errors += 1;
            }
            return;
        };
        self.arrived += received;
        for i in 0..received {
            let Some(slot) = slots.nth_free(i) else { break };
            let header = &self.headers[i];
            let name_bytes = (header.msg_hdr.msg_namelen as usize).min(NAME_BYTES);
            let from = WireAddr::parse(&self.names[i].0[..name_bytes]);
            if header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 {
                stats.truncated_dropped += 1;
            } else if let Some(from) = from {
                let arrival = Arrival {
                    socket: id,
                    from,
                    slot: slot | mark,
                    len: header.msg_len,
                };
                self.arrivals.push_back(arrival);
                continue;
            } else {
                stats.receive_errors += 1;
            }
            slots.borrow_for_turn(slot);
        }
        slots.take(received);
    }
}

const _: () = assert!(NAME_BYTES >= size_of::<libc::sockaddr_in6>());
