//! The generator's sockets: two that stand for thousands of clients, each with an address of its
//! own in 127/8, chosen per datagram with IP_PKTINFO (ip(7)).
#![allow(unsafe_code)]

use std::io;
use std::mem::zeroed;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::relay::Endpoint;

/// Most datagrams of one system call.
pub const BATCH: usize = 64;
/// Largest datagram.
pub const DATAGRAM_BYTES: usize = 2048;
/// Datagrams of a train.
pub const TRAIN: usize = 16;
/// Room for the longest train that can come: what one IP packet holds.
pub const GRO_SLOT_BYTES: usize = 1 << 16;
const BUFFER_BYTES: i32 = 64 << 20;
const CONTROL_BYTES: usize = 64;

#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL_BYTES]);

/// The arrays of one sendmmsg or recvmmsg; they point at each other and never move.
struct Batch {
    headers: Vec<libc::mmsghdr>,
    iovecs: Vec<libc::iovec>,
    names: Vec<libc::sockaddr_in>,
    controls: Vec<Control>,
    bytes: Vec<u8>,
    slot_bytes: usize,
}

impl Batch {
    fn new(slot_bytes: usize) -> Self {
        // SAFETY: all-zero is a valid value of these structures.
        let mut batch = unsafe {
            Self {
                headers: vec![zeroed(); BATCH],
                iovecs: vec![zeroed(); BATCH],
                names: vec![zeroed(); BATCH],
                controls: vec![Control([0; CONTROL_BYTES]); BATCH],
                bytes: vec![0; BATCH * slot_bytes],
                slot_bytes,
            }
        };
        for i in 0..BATCH {
            batch.iovecs[i].iov_base = batch.bytes.as_mut_ptr().wrapping_add(i * slot_bytes).cast();
            batch.iovecs[i].iov_len = slot_bytes;
            let header = &mut batch.headers[i].msg_hdr;
            header.msg_name = batch.names.as_mut_ptr().wrapping_add(i).cast();
            header.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            header.msg_iov = batch.iovecs.as_mut_ptr().wrapping_add(i);
            header.msg_iovlen = 1;
            header.msg_control = batch.controls.as_mut_ptr().wrapping_add(i).cast();
            header.msg_controllen = CONTROL_BYTES;
        }
        batch
    }

    fn slot(&mut self, i: usize) -> &mut [u8] {
        &mut self.bytes[i * self.slot_bytes..][..self.slot_bytes]
    }
}

/// What is staged in one slot: a datagram, or a train of them.
#[derive(Clone, Copy)]
struct Staged {
    from: Endpoint,
    to: SocketAddrV4,
    segment_bytes: usize,
    segments: usize,
}

/// A datagram that came.
#[derive(Clone, Copy, Debug)]
pub struct Arrived<'a> {
    /// Its source.
    pub from: SocketAddr,
    /// Whom it was sent to.
    pub at: Endpoint,
    /// Its bytes.
    pub bytes: &'a [u8],
}

/// The generator's sockets and batches.
pub struct Clients {
    sockets: Vec<UdpSocket>,
    ports: Vec<u16>,
    sending: Batch,
    staged: Vec<Staged>,
    receiving: Batch,
    /// Whether neighbours leave as trains, and come so.
    trains: bool,
    /// Datagrams that a full socket refused.
    pub refused: u64,
}

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clients")
            .field("ports", &self.ports)
            .finish_non_exhaustive()
    }
}

impl Clients {
    /// Opens `sockets` wildcard sockets.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn open(sockets: usize) -> io::Result<Self> {
        let mut opened = Vec::new();
        let mut ports = Vec::new();
        for _ in 0..sockets {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking().cloexec(), None)?;
            set(
                &socket,
                libc::SOL_SOCKET,
                libc::SO_RCVBUFFORCE,
                BUFFER_BYTES,
            )
            .or_else(|_| set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, BUFFER_BYTES))?;
            set(
                &socket,
                libc::SOL_SOCKET,
                libc::SO_SNDBUFFORCE,
                BUFFER_BYTES,
            )
            .or_else(|_| set(&socket, libc::SOL_SOCKET, libc::SO_SNDBUF, BUFFER_BYTES))?;
            set(&socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
            let probe = libc::IP_PMTUDISC_PROBE;
            set(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, probe)?;
            socket.bind(&SocketAddr::from(([0, 0, 0, 0], 0)).into())?;
            let socket = UdpSocket::from(socket);
            ports.push(socket.local_addr()?.port());
            opened.push(socket);
        }
        Ok(Self {
            sockets: opened,
            ports,
            sending: Batch::new(DATAGRAM_BYTES),
            staged: Vec::with_capacity(BATCH),
            receiving: Batch::new(DATAGRAM_BYTES),
            trains: false,
            refused: 0,
        })
    }

    /// Whether datagrams of the same ends and length that are staged one after the other leave as trains (UDP_SEGMENT) of up to
    /// [`TRAIN`], and trains are received whole (UDP_GRO, udp(7)). [`Clients::receive`] takes them apart.
    ///
    /// # Errors
    ///
    /// When the kernel has no such trains.
    pub fn set_trains(&mut self, trains: bool) -> io::Result<()> {
        if trains == self.trains {
            return Ok(());
        }
        self.flush();
        for socket in &self.sockets {
            receive_trains(socket, trains)?;
        }
        let (staged, received) = if trains {
            // Room for a datagram that turns out not to belong to the train before it.
            ((TRAIN + 1) * DATAGRAM_BYTES, GRO_SLOT_BYTES)
        } else {
            (DATAGRAM_BYTES, DATAGRAM_BYTES)
        };
        self.sending = Batch::new(staged);
        self.receiving = Batch::new(received);
        self.trains = trains;
        Ok(())
    }

    /// The address of an end.
    #[must_use]
    pub fn address(&self, end: Endpoint) -> SocketAddr {
        SocketAddr::from((end.ip, self.ports[end.socket]))
    }

    /// Stages one datagram: `write` fills it and returns its length.
    pub fn stage(
        &mut self,
        from: Endpoint,
        to: SocketAddrV4,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) {
        let last = self.staged.len().wrapping_sub(1);
        if self.trains
            && let Some(train) = self.staged.last_mut()
            && (train.from, train.to) == (from, to)
            && train.segments < TRAIN
        {
            let end = train.segments * train.segment_bytes;
            let slot = self.sending.slot(last);
            let len = write(&mut slot[end..end + DATAGRAM_BYTES]);
            if len == train.segment_bytes {
                train.segments += 1;
            } else {
                let own = slot[end..end + len].to_vec();
                self.stage_alone(from, to, |slot| {
                    slot[..len].copy_from_slice(&own);
                    len
                });
            }
            return;
        }
        self.stage_alone(from, to, write);
    }

    /// Stages one datagram that belongs to no train yet.
    fn stage_alone(
        &mut self,
        from: Endpoint,
        to: SocketAddrV4,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) {
        let other_socket = |staged: &Staged| staged.from.socket != from.socket;
        if self.staged.len() == BATCH || self.staged.first().is_some_and(other_socket) {
            self.flush();
        }
        let i = self.staged.len();
        let segment_bytes = write(&mut self.sending.slot(i)[..DATAGRAM_BYTES]);
        let name = &mut self.sending.names[i];
        name.sin_family = libc::AF_INET as libc::sa_family_t;
        name.sin_port = to.port().to_be();
        name.sin_addr.s_addr = u32::from(*to.ip()).to_be();
        // A cmsghdr, then in_pktinfo: interface 0, source address, unused.
        let control = &mut self.sending.controls[i].0;
        control[..8].copy_from_slice(&28usize.to_ne_bytes());
        control[8..12].copy_from_slice(&libc::IPPROTO_IP.to_ne_bytes());
        control[12..16].copy_from_slice(&libc::IP_PKTINFO.to_ne_bytes());
        control[16..20].fill(0);
        control[20..24].copy_from_slice(&from.ip.octets());
        control[24..32].fill(0);
        // A cmsghdr and the length of a train's datagrams.
        control[32..40].copy_from_slice(&18usize.to_ne_bytes());
        control[40..44].copy_from_slice(&libc::SOL_UDP.to_ne_bytes());
        control[44..48].copy_from_slice(&libc::UDP_SEGMENT.to_ne_bytes());
        control[48..50].copy_from_slice(&(segment_bytes as u16).to_ne_bytes());
        self.staged.push(Staged {
            from,
            to,
            segment_bytes,
            segments: 1,
        });
    }

    /// Sends what is staged.
    pub fn flush(&mut self) {
        let Some(first) = self.staged.first() else {
            return;
        };
        let fd = self.sockets[first.from.socket].as_raw_fd();
        for (i, staged) in self.staged.iter().enumerate() {
            self.sending.iovecs[i].iov_len = staged.segments * staged.segment_bytes;
            self.sending.headers[i].msg_hdr.msg_controllen =
                if staged.segments > 1 { 56 } else { 32 };
        }
        let mut at = 0;
        while let Some(refused) = self.staged.get(at) {
            // SAFETY: the headers point at this batch's own arrays; the call is synchronous.
            let sent = unsafe {
                let headers = self.sending.headers.as_mut_ptr().add(at);
                let count = (self.staged.len() - at) as u32;
                libc::sendmmsg(fd, headers, count, libc::MSG_DONTWAIT)
            };
            match usize::try_from(sent) {
                Ok(sent) => at += sent,
                Err(_) => {
                    self.refused += refused.segments as u64;
                    at += 1;
                }
            }
        }
        self.staged.clear();
    }

    /// Receives one batch per socket; returns how many datagrams came.
    pub fn receive(&mut self, mut each: impl FnMut(Arrived<'_>)) -> usize {
        let mut total = 0;
        for socket in 0..self.sockets.len() {
            for header in &mut self.receiving.headers {
                header.msg_hdr.msg_controllen = CONTROL_BYTES;
                header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            }
            let fd = self.sockets[socket].as_raw_fd();
            // SAFETY: as in `flush`.
            let count = unsafe {
                let headers = self.receiving.headers.as_mut_ptr();
                let none = std::ptr::null_mut();
                libc::recvmmsg(fd, headers, BATCH as u32, libc::MSG_DONTWAIT, none)
            };
            for i in 0..usize::try_from(count).unwrap_or(0) {
                let name = self.receiving.names[i];
                let ip = Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr));
                let from = SocketAddr::from((ip, u16::from_be(name.sin_port)));
                let len = self.receiving.headers[i].msg_len as usize;
                let control_bytes = self.receiving.headers[i].msg_hdr.msg_controllen;
                let control = &self.receiving.controls[i].0[..control_bytes];
                let Ancillary { ip, segment_bytes } = Ancillary::read(control);
                let at = Endpoint { socket, ip };
                let segment_bytes = segment_bytes.unwrap_or(len).max(1);
                // An empty datagram is one, too.
                let (empty, bytes) = (len == 0, &self.receiving.slot(i)[..len]);
                let segments = bytes.chunks(segment_bytes);
                for bytes in segments.chain(empty.then_some(bytes)) {
                    each(Arrived { from, at, bytes });
                    total += 1;
                }
            }
        }
        total
    }

    /// One exchange of a set-up: sends `request` from `end`, again every 100 ms, until something
    /// comes to that end.
    ///
    /// # Errors
    ///
    /// `TimedOut` after 5 s.
    pub fn request(
        &mut self,
        end: Endpoint,
        to: SocketAddrV4,
        request: &[u8],
    ) -> io::Result<Vec<u8>> {
        let give_up = Instant::now() + Duration::from_secs(5);
        while Instant::now() < give_up {
            self.stage(end, to, |bytes| {
                bytes[..request.len()].copy_from_slice(request);
                request.len()
            });
            self.flush();
            let again = Instant::now() + Duration::from_millis(100);
            while Instant::now() < again {
                let mut reply = None;
                self.receive(|arrived| {
                    if arrived.at == end {
                        reply.get_or_insert_with(|| arrived.bytes.to_vec());
                    }
                });
                if let Some(reply) = reply {
                    return Ok(reply);
                }
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

/// Whether trains come to a socket whole (UDP_GRO).
///
/// # Errors
///
/// When the kernel has no such trains.
pub fn receive_trains(socket: &UdpSocket, whole: bool) -> io::Result<()> {
    set(socket, libc::SOL_UDP, libc::UDP_GRO, whole.into())
}

/// The length of a train's datagrams by the control messages that came with it; `None` for a single datagram.
#[must_use]
pub fn segment_bytes(control: &[u8]) -> Option<usize> {
    Ancillary::read(control).segment_bytes
}

/// What the kernel says beside a datagram or a train.
struct Ancillary {
    /// Whom it was sent to.
    ip: Ipv4Addr,
    /// Of a train: the length of its datagrams, of which only the last may be shorter.
    segment_bytes: Option<usize>,
}

impl Ancillary {
    /// Reads control messages (cmsg(3)): headers of length, level and type, each padded to eight bytes.
    fn read(mut control: &[u8]) -> Self {
        let mut read = Self {
            ip: Ipv4Addr::UNSPECIFIED,
            segment_bytes: None,
        };
        while let Some((header, rest)) = control.split_first_chunk::<16>() {
            let [.., l0, l1, l2, l3, t0, t1, t2, t3] = *header;
            let level = i32::from_ne_bytes([l0, l1, l2, l3]);
            let kind = i32::from_ne_bytes([t0, t1, t2, t3]);
            match (level, kind, rest) {
                // in_pktinfo: interface, local address, destination address of the header.
                (libc::IPPROTO_IP, libc::IP_PKTINFO, [_, _, _, _, _, _, _, _, a, b, c, d, ..]) => {
                    read.ip = Ipv4Addr::new(*a, *b, *c, *d);
                }
                (libc::SOL_UDP, libc::UDP_GRO, [a, b, c, d, ..]) => {
                    read.segment_bytes = usize::try_from(i32::from_ne_bytes([*a, *b, *c, *d])).ok();
                }
                _ => {}
            }
            let [b0, b1, b2, b3, b4, b5, b6, b7, ..] = *header;
            let len = usize::from_ne_bytes([b0, b1, b2, b3, b4, b5, b6, b7]);
            let next = len.next_multiple_of(8).max(16);
            control = control.get(next..).unwrap_or_default();
        }
        read
    }
}

fn set(socket: &impl AsRawFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    let len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the kernel reads `value` during the call only.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            len,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What arrives at the second socket of what `lengths` says that one end sends, numbered by their first byte.
    fn arrivals(clients: &mut Clients, lengths: &[usize]) -> Vec<(u8, usize)> {
        let [from, to] = [0, 1].map(|socket| Endpoint {
            socket,
            ip: Ipv4Addr::new(127, 3, 0, 7 + socket as u8),
        });
        let SocketAddr::V4(address) = clients.address(to) else {
            unreachable!("the sockets are IPv4");
        };
        let source = clients.address(from);
        for (n, &length) in lengths.iter().enumerate() {
            clients.stage(from, address, |bytes| {
                bytes[..length].fill(n as u8);
                length
            });
        }
        clients.flush();
        let mut came = Vec::new();
        let give_up = Instant::now() + Duration::from_secs(10);
        while came.len() < lengths.len() && Instant::now() < give_up {
            clients.receive(|arrived| {
                assert_eq!((arrived.from, arrived.at), (source, to));
                assert!(arrived.bytes.iter().all(|byte| *byte == arrived.bytes[0]));
                came.push((arrived.bytes[0], arrived.bytes.len()));
            });
        }
        assert_eq!(clients.refused, 0);
        came
    }

    fn numbered(lengths: &[usize]) -> Vec<(u8, usize)> {
        let numbers = (0u8..).zip(lengths.iter().copied());
        numbers.collect()
    }

    #[test]
    fn trains_are_taken_apart() {
        let mut clients = Clients::open(2).expect("sockets");
        // Longer than a train, and cut by a datagram of another length.
        let lengths: Vec<usize> = [vec![204; 20], vec![90], vec![204; 5]].concat();
        assert_eq!(arrivals(&mut clients, &lengths), numbered(&lengths));
        clients.set_trains(true).expect("UDP_GRO");
        assert_eq!(arrivals(&mut clients, &lengths), numbered(&lengths));
        assert_eq!(arrivals(&mut clients, &[1200; 64]), numbered(&[1200; 64]));
        clients.set_trains(false).expect("UDP_GRO");
        assert_eq!(arrivals(&mut clients, &lengths), numbered(&lengths));
    }

    #[test]
    fn a_train_is_one_message() {
        let mut clients = Clients::open(2).expect("sockets");
        clients.set_trains(true).expect("UDP_GRO");
        let from = Endpoint {
            socket: 0,
            ip: Ipv4Addr::LOCALHOST,
        };
        let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9);
        for length in [100; TRAIN + 1].into_iter().chain([60, 60]) {
            clients.stage(from, to, |_| length);
        }
        let segments: Vec<usize> = clients.staged.iter().map(|it| it.segments).collect();
        assert_eq!(segments, [TRAIN, 1, 2]);
    }
}
