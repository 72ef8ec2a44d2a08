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
}

impl Batch {
    fn new() -> Self {
        // SAFETY: all-zero is a valid value of these structures.
        let mut batch = unsafe {
            Self {
                headers: vec![zeroed(); BATCH],
                iovecs: vec![zeroed(); BATCH],
                names: vec![zeroed(); BATCH],
                controls: vec![Control([0; CONTROL_BYTES]); BATCH],
                bytes: vec![0; BATCH * DATAGRAM_BYTES],
            }
        };
        for i in 0..BATCH {
            batch.iovecs[i].iov_base = batch
                .bytes
                .as_mut_ptr()
                .wrapping_add(i * DATAGRAM_BYTES)
                .cast();
            batch.iovecs[i].iov_len = DATAGRAM_BYTES;
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
        &mut self.bytes[i * DATAGRAM_BYTES..][..DATAGRAM_BYTES]
    }
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
    staged: usize,
    staged_socket: usize,
    receiving: Batch,
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
            sending: Batch::new(),
            staged: 0,
            staged_socket: 0,
            receiving: Batch::new(),
            refused: 0,
        })
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
        if self.staged == BATCH || (self.staged > 0 && self.staged_socket != from.socket) {
            self.flush();
        }
        self.staged_socket = from.socket;
        let i = self.staged;
        self.sending.iovecs[i].iov_len = write(self.sending.slot(i));
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
        self.sending.headers[i].msg_hdr.msg_controllen = 32;
        self.staged += 1;
    }

    /// Sends what is staged.
    pub fn flush(&mut self) {
        let mut at = 0;
        while at < self.staged {
            let fd = self.sockets[self.staged_socket].as_raw_fd();
            // SAFETY: the headers point at this batch's own arrays; the call is synchronous.
            let sent = unsafe {
                let headers = self.sending.headers.as_mut_ptr().add(at);
                libc::sendmmsg(fd, headers, (self.staged - at) as u32, libc::MSG_DONTWAIT)
            };
            match usize::try_from(sent) {
                Ok(sent) => at += sent,
                Err(_) => {
                    self.refused += 1;
                    at += 1;
                }
            }
        }
        self.staged = 0;
    }

    /// Receives one batch per socket; returns how many came.
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
                let control = &self.receiving.controls[i].0;
                // in_pktinfo: interface, local address, destination address of the header.
                let ip = Ipv4Addr::new(control[24], control[25], control[26], control[27]);
                let len = self.receiving.headers[i].msg_len as usize;
                let bytes = &self.receiving.bytes[i * DATAGRAM_BYTES..][..len];
                each(Arrived {
                    from,
                    at: Endpoint { socket, ip },
                    bytes,
                });
                total += 1;
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
