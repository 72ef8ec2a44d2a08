//! Sending: the staged trains, one sendmmsg per run of up to 64 messages of a socket.
//!
//! Sockets are served in the order of their numbers, which changes nothing within a flow. A refused
//! message is dealt with on the spot and the rest go on.

use std::io;
use std::mem::zeroed;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use super::STAGED;
use super::sys;
use crate::packet_io::{
    IoStats, SendFailure, SocketTable, Train, Trains, classify_single, classify_train,
};

/// Most messages of one sendmmsg; more than any turn's receives from one socket.
const PER_CALL: usize = 64;

/// Space of the one control message that a train carries.
pub(crate) const CONTROL_BYTES: usize = 24;

/// The UDP_SEGMENT control message, udp(7).
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Control([u8; CONTROL_BYTES]);

impl Control {
    pub(crate) const EMPTY: Self = Self([0; CONTROL_BYTES]);

    /// A `cmsghdr` of SOL_UDP and UDP_SEGMENT followed by a 16-bit segment length.
    pub(crate) fn segment(&mut self, bytes: u16) {
        let len = size_of::<libc::cmsghdr>() + size_of::<u16>();
        self.0[..8].copy_from_slice(&len.to_ne_bytes());
        self.0[8..12].copy_from_slice(&libc::SOL_UDP.to_ne_bytes());
        self.0[12..16].copy_from_slice(&libc::UDP_SEGMENT.to_ne_bytes());
        self.0[16..18].copy_from_slice(&bytes.to_ne_bytes());
    }
}

const _: () = assert!(size_of::<libc::cmsghdr>() == 16 && size_of::<usize>() == 8);

pub(super) struct Sender {
    /// Indices of trains, by socket.
    order: Vec<u32>,
    headers: Vec<libc::mmsghdr>,
    iovecs: Vec<libc::iovec>,
    controls: Box<[Control; PER_CALL]>,
    /// What each header carries: a train, and the one segment of it or all.
    carried: Vec<(u32, Option<u32>)>,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

impl Sender {
    pub(super) fn new() -> Self {
        Self {
            order: Vec::with_capacity(STAGED),
            headers: Vec::with_capacity(PER_CALL),
            iovecs: Vec::with_capacity(STAGED),
            controls: Box::new([Control::EMPTY; PER_CALL]),
            carried: Vec::with_capacity(PER_CALL),
        }
    }

    pub(super) fn flush(
        &mut self,
        staged: &Trains,
        sockets: &mut SocketTable<bool>,
        stats: &mut IoStats,
    ) {
        let trains = staged.trains();
        self.order.clear();
        self.order.extend(0..trains.len() as u32);
        if trains.iter().any(|train| train.socket != trains[0].socket) {
            self.order
                .sort_unstable_by_key(|&i| (trains[i as usize].socket.to_raw(), i));
        }
        let mut at = 0;
        while at < self.order.len() {
            let id = trains[self.order[at] as usize].socket;
            let run = self.order[at..]
                .iter()
                .take_while(|&&i| trains[i as usize].socket == id);
            let end = at + run.count();
            for i in at..end {
                let index = self.order[i];
                let train = &trains[index as usize];
                // Only live sockets are staged for, and they close after the flush.
                let Some(entry) = sockets.get_any_mut(id) else {
                    continue;
                };
                stats.datagrams_sent += u64::from(train.segments);
                stats.bytes_sent += u64::from(train.total_bytes);
                if train.segments > 1 && entry.gso {
                    stats.gso_trains += 1;
                    stats.gso_segments += u64::from(train.segments);
                    self.push(staged, index, None);
                } else {
                    for (segment, _) in staged.segments(train) {
                        if self.headers.len() == PER_CALL {
                            self.call(staged, id, sockets, stats);
                        }
                        self.push(staged, index, Some(segment));
                    }
                }
                if self.headers.len() == PER_CALL {
                    self.call(staged, id, sockets, stats);
                }
            }
            self.call(staged, id, sockets, stats);
            at = end;
        }
    }

    fn push(&mut self, staged: &Trains, index: u32, segment: Option<u32>) {
        let train = &staged.trains()[index as usize];
        let first = self.iovecs.len();
        let mut add = |at: *const u8, len: u32| {
            let iovec = libc::iovec {
                iov_base: at.cast_mut().cast(),
                iov_len: len as usize,
            };
            self.iovecs.push(iovec);
        };
        match segment {
            Some(segment) => {
                let segment = staged.segment(segment);
                add(segment.at, segment.len);
            }
            None => staged
                .segments(train)
                .for_each(|(_, segment)| add(segment.at, segment.len)),
        }
        // SAFETY: all-zero is a valid msghdr.
        let mut header: libc::mmsghdr = unsafe { zeroed() };
        header.msg_hdr.msg_name = train.to.as_ptr().cast_mut().cast();
        header.msg_hdr.msg_namelen = train.to.len();
        // `iovecs` has room for all that can be staged, so it never moves.
        header.msg_hdr.msg_iov = self.iovecs.as_mut_ptr().wrapping_add(first);
        header.msg_hdr.msg_iovlen = self.iovecs.len() - first;
        if segment.is_none() {
            let control = &mut self.controls[self.headers.len()];
            control.segment(train.segment_bytes as u16);
            header.msg_hdr.msg_control = (&raw mut *control).cast();
            header.msg_hdr.msg_controllen = CONTROL_BYTES;
        }
        self.headers.push(header);
        self.carried.push((index, segment));
    }

    fn call(
        &mut self,
        staged: &Trains,
        id: crate::packet_io::SocketId,
        sockets: &mut SocketTable<bool>,
        stats: &mut IoStats,
    ) {
        let Some(entry) = sockets.get_any_mut(id) else {
            return;
        };
        let mut at = 0;
        while at < self.headers.len() {
            stats.enters += 1;
            // SAFETY: the headers point at addresses of `staged`, at iovecs and controls of this
            // value, and the iovecs at slots and arena bytes that stay until the trains are
            // cleared; the call is synchronous.
            let sent = unsafe {
                let headers = self.headers.as_mut_ptr().add(at);
                let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                let count = (self.headers.len() - at) as u32;
                libc::sendmmsg(entry.socket.as_raw_fd(), headers, count, flags)
            };
            if let Ok(sent) = usize::try_from(sent) {
                at += sent;
                continue;
            }
            let errno = io::Error::last_os_error().raw_os_error().unwrap_or(0);
            if errno == libc::EINTR {
                continue;
            }
            let (index, segment) = self.carried[at];
            let train = &staged.trains()[index as usize];
            let mut refused = Refused {
                socket: &entry.socket,
                gso: &mut entry.gso,
                stats,
            };
            // SAFETY: the staged bytes stay until the trains are cleared.
            unsafe {
                match segment {
                    Some(segment) => refused.single(staged, train, segment, errno),
                    None => refused.train(staged, train, errno),
                }
            }
            at += 1;
        }
        self.headers.clear();
        self.iovecs.clear();
        self.carried.clear();
    }
}

/// The slow path of both backends: a send that the kernel refused, on its socket.
pub(crate) struct Refused<'a> {
    pub(crate) socket: &'a UdpSocket,
    pub(crate) gso: &'a mut bool,
    pub(crate) stats: &'a mut IoStats,
}

impl Refused<'_> {
    /// Deals with a refused train.
    ///
    /// # Safety
    ///
    /// The bytes of the train's segments must be readable.
    #[cold]
    pub(crate) unsafe fn train(&mut self, staged: &Trains, train: &Train, errno: i32) {
        self.stats.gso_refused += 1;
        self.stats.gso_trains -= 1;
        self.stats.gso_segments -= u64::from(train.segments);
        let failure = classify_train(errno, train.segment_bytes);
        if failure == SendFailure::NoSegmentation && std::mem::replace(self.gso, false) {
            self.stats.gso_disabled_sockets += 1;
        }
        for (index, segment) in staged.segments(train) {
            match failure {
                SendFailure::Full => self.lost(segment.len, true),
                SendFailure::Other => self.lost(segment.len, false),
                _ => {
                    // SAFETY: the caller vouches for the segments.
                    let sent =
                        unsafe { sys::send_to(self.socket, &train.to, segment.at, segment.len) };
                    if let Err(error) = sent {
                        let errno = error.raw_os_error().unwrap_or(0);
                        // SAFETY: as above.
                        unsafe { self.single(staged, train, index, errno) };
                    }
                }
            }
        }
    }

    /// Deals with a refused datagram.
    ///
    /// # Safety
    ///
    /// The segment's bytes must be readable.
    #[cold]
    pub(crate) unsafe fn single(
        &mut self,
        staged: &Trains,
        train: &Train,
        segment: u32,
        errno: i32,
    ) {
        let segment = staged.segment(segment);
        match classify_single(errno) {
            SendFailure::TooLarge if !train.whole => {
                self.stats.send_emsgsize_retries += 1;
                // SAFETY: the caller vouches for the segment.
                let sent = unsafe {
                    let (at, len) = (segment.at, segment.len);
                    sys::send_in_fragments(self.socket, &train.to, at, len)
                };
                if sent.is_err() {
                    self.lost(segment.len, false);
                }
            }
            SendFailure::Full => self.lost(segment.len, true),
            // What must stay whole may just have met an error that waited, too.
            SendFailure::Pending | SendFailure::TooLarge => {
                // SAFETY: the caller vouches for the segment.
                let sent = unsafe { sys::send_to(self.socket, &train.to, segment.at, segment.len) };
                if sent.is_err() {
                    self.lost(segment.len, false);
                }
            }
            _ => self.lost(segment.len, false),
        }
    }

    fn lost(&mut self, bytes: u32, full: bool) {
        self.stats.datagrams_sent -= 1;
        self.stats.bytes_sent -= u64::from(bytes);
        if full {
            self.stats.send_eagain += 1;
        } else {
            self.stats.send_errors += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use super::*;
    use crate::mmsg::Mmsg;
    use crate::packet_io::{IoConfig, PacketIo, UdpOptions, bind_udp};
    use crate::ring::Ring;

    /// A socket that sends without checksums cannot segment (udp_send_skb in net/ipv4/udp.c).
    fn segmentation_that_is_refused_is_switched_off(mut io: impl PacketIo) {
        let local: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let socket = bind_udp(local, &UdpOptions::default()).unwrap();
        sys::set_option(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).unwrap();
        let id = io.add_socket(socket).unwrap();
        let to = UdpSocket::bind(local).unwrap();
        to.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        for round in 1..=3 {
            for i in 0..10u8 {
                io.send(id, to.local_addr().unwrap(), &[i; 100]);
            }
            io.turn(Some(Duration::ZERO)).unwrap();
            for i in 0..10 {
                let mut buffer = [0; 200];
                assert_eq!(to.recv(&mut buffer).unwrap(), 100);
                assert_eq!(buffer[0], i);
            }
            let stats = io.stats();
            assert_eq!((stats.gso_refused, stats.gso_disabled_sockets), (1, 1));
            assert_eq!((stats.gso_trains, stats.gso_segments), (0, 0));
            assert_eq!((stats.datagrams_sent, stats.send_errors), (round * 10, 0));
        }
    }

    #[test]
    fn mmsg_without_segmentation() {
        segmentation_that_is_refused_is_switched_off(Mmsg::new(&IoConfig::default()).unwrap());
    }

    #[test]
    fn ring_without_segmentation() {
        segmentation_that_is_refused_is_switched_off(Ring::new(&IoConfig::default()).unwrap());
    }
}
