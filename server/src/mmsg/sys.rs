//! The system calls and socket options that neither std nor socket2 offers safely, one function
//! each. Both backends use it. It keeps no state and decides nothing.

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::net::{TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::packet_io::WireAddr;

/// `SO_RCVBUF` in bytes, beyond `net.core.rmem_max` where the process may (CAP_NET_ADMIN).
pub(crate) fn set_receive_buffer(socket: &impl AsRawFd, bytes: usize) -> io::Result<()> {
    set_buffer(socket, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, bytes)
}

/// `SO_SNDBUF` in bytes, beyond `net.core.wmem_max` where the process may (CAP_NET_ADMIN).
pub(crate) fn set_send_buffer(socket: &impl AsRawFd, bytes: usize) -> io::Result<()> {
    set_buffer(socket, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, bytes)
}

fn set_buffer(socket: &impl AsRawFd, force: i32, plain: i32, bytes: usize) -> io::Result<()> {
    let value = i32::try_from(bytes).unwrap_or(i32::MAX);
    let fd = socket.as_raw_fd();
    set_option(fd, libc::SOL_SOCKET, force, value)
        .or_else(|_| set_option(fd, libc::SOL_SOCKET, plain, value))
}

/// What the kernel does about the path's MTU, ip(7) `IP_MTU_DISCOVER`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum MtuDiscovery {
    /// Never fragment here, ignore the learnt path MTU; too large for the device is EMSGSIZE.
    Probe,
    /// Fragment what is too large.
    Fragment,
}

pub(crate) fn set_mtu_discovery(
    socket: &impl AsRawFd,
    is_ipv6: bool,
    discovery: MtuDiscovery,
) -> io::Result<()> {
    let (level, option, probe, fragment) = if is_ipv6 {
        let v6 = (libc::IPV6_PMTUDISC_PROBE, libc::IPV6_PMTUDISC_DONT);
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, v6.0, v6.1)
    } else {
        let v4 = (libc::IP_PMTUDISC_PROBE, libc::IP_PMTUDISC_DONT);
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, v4.0, v4.1)
    };
    let value = match discovery {
        MtuDiscovery::Probe => probe,
        MtuDiscovery::Fragment => fragment,
    };
    set_option(socket.as_raw_fd(), level, option, value)
}

pub(crate) fn set_option(fd: RawFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    let len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes of `value`, which lives on this stack frame, during the
    // call only.
    let result = unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), len) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A counter that wakes whoever reads or polls it, eventfd(2). Reads block, so poll first.
pub(crate) fn eventfd() -> io::Result<File> {
    // SAFETY: no memory is involved; on success the descriptor is new and owned by nobody else.
    unsafe {
        let fd = libc::eventfd(0, libc::EFD_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(File::from(OwnedFd::from_raw_fd(fd)))
    }
}

/// Sends one datagram now, without blocking.
///
/// # Safety
///
/// `at` must be readable for `len` bytes during the call.
pub(crate) unsafe fn send_to(
    socket: &UdpSocket,
    to: &WireAddr,
    at: *const u8,
    len: u32,
) -> io::Result<()> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the caller vouches for `at`; `to` is borrowed for the call and holds `to.len()`
    // bytes of a sockaddr.
    let result = unsafe {
        let (name, name_len) = (to.as_ptr().cast(), to.len());
        libc::sendto(
            socket.as_raw_fd(),
            at.cast(),
            len as usize,
            flags,
            name,
            name_len,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Sends one datagram that is larger than the path's MTU, in fragments. The socket is of the destination's family.
///
/// # Safety
///
/// As [`send_to`].
pub(crate) unsafe fn send_in_fragments(
    socket: &UdpSocket,
    to: &WireAddr,
    at: *const u8,
    len: u32,
) -> io::Result<()> {
    let is_ipv6 = to.is_ipv6();
    set_mtu_discovery(socket, is_ipv6, MtuDiscovery::Fragment)?;
    // SAFETY: the caller vouches for `at`.
    let sent = unsafe { send_to(socket, to, at, len) };
    set_mtu_discovery(socket, is_ipv6, MtuDiscovery::Probe)?;
    sent
}

/// The kernel's release, as in `uname -r`.
pub(crate) fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default()
}

/// Receives from a stream into memory, without blocking; 0 is the end.
///
/// # Safety
///
/// `at` must be writable for `len` bytes during the call.
pub(crate) unsafe fn receive(stream: &TcpStream, at: *mut u8, len: usize) -> io::Result<usize> {
    // SAFETY: the caller vouches for `at`.
    let result = unsafe { libc::recv(stream.as_raw_fd(), at.cast(), len, libc::MSG_DONTWAIT) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Sends what the kernel takes at once, without blocking or SIGPIPE.
pub(crate) fn send(stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the kernel reads the borrowed bytes during the call only.
    let result = unsafe {
        let at = bytes.as_ptr().cast();
        libc::send(stream.as_raw_fd(), at, bytes.len(), flags)
    };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Drops what a stream has received so far, tcp(7) `MSG_TRUNC`: a close with unread bytes would reset the connection.
fn discard_received(stream: &TcpStream) {
    const MOST_BYTES: usize = 16 << 20;
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    // SAFETY: with MSG_TRUNC TCP writes nothing to the buffer, so there is none.
    unsafe { libc::recv(stream.as_raw_fd(), std::ptr::null_mut(), MOST_BYTES, flags) };
}

/// Closes a stream behind the bytes that the kernel has.
pub(crate) fn close_in_order(stream: TcpStream) {
    // It fails if the connection is gone already.
    let _ = stream.shutdown(std::net::Shutdown::Write);
    discard_received(&stream);
}

/// Closes a stream by a reset: what the kernel has is dropped and nothing lingers.
pub(crate) fn close_by_reset(stream: TcpStream) {
    // It fails if the connection is gone already.
    let _ = socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO));
}

/// A level-triggered epoll set of descriptors.
#[derive(Debug)]
pub(crate) struct Epoll(OwnedFd);

impl Epoll {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: no memory is involved; on success the descriptor is new and owned by nobody else.
        unsafe {
            let fd = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self(OwnedFd::from_raw_fd(fd)))
        }
    }

    /// Watches `file` for input until it is closed.
    pub(crate) fn add(&self, file: &impl AsRawFd, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, file, token, libc::EPOLLIN as u32)
    }

    /// Watches `file` for other events than before; none takes it out of the set, as errors would be reported all the same.
    pub(crate) fn change(
        &self,
        file: &impl AsRawFd,
        token: u64,
        before: u32,
        events: u32,
    ) -> io::Result<()> {
        let operation = match (before, events) {
            (0, _) => libc::EPOLL_CTL_ADD,
            (_, 0) => libc::EPOLL_CTL_DEL,
            _ => libc::EPOLL_CTL_MOD,
        };
        self.control(operation, file, token, events)
    }

    fn control(
        &self,
        operation: i32,
        file: &impl AsRawFd,
        token: u64,
        events: u32,
    ) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: token };
        let (set, fd) = (self.0.as_raw_fd(), file.as_raw_fd());
        // SAFETY: the kernel reads `event` during the call only.
        let result = unsafe { libc::epoll_ctl(set, operation, fd, &raw mut event) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Waits and fills `ready` up to its capacity. A signal ends the wait with nothing.
    pub(crate) fn wait(
        &self,
        ready: &mut Vec<libc::epoll_event>,
        timeout: Option<std::time::Duration>,
    ) -> io::Result<()> {
        ready.clear();
        let most = ready.capacity() as i32;
        let timeout = timeout.map(timespec);
        let timeout = timeout
            .as_ref()
            .map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the kernel writes at most `most` events into the vector's own capacity and reads
        // the timeout on this stack frame, both during the call; the length is set to what it wrote.
        unsafe {
            let fd = self.0.as_raw_fd();
            let events = ready.as_mut_ptr();
            let mut count = libc::epoll_pwait2(fd, events, most, timeout, std::ptr::null());
            if count < 0 {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
                count = 0;
            }
            ready.set_len(count as usize);
        }
        Ok(())
    }
}

pub(crate) fn timespec(duration: std::time::Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: duration.as_secs().min(i64::MAX as u64) as i64,
        tv_nsec: duration.subsec_nanos().into(),
    }
}

/// Lets the kernel give huge pages to memory that is advised to have them ([`super::slot_memory`]) and to no other: a table
/// that grows would take 2 MiB at a time. Without it (kernels before 6.18) what the host's setting says holds.
pub(crate) fn huge_pages_where_advised() {
    // PR_THP_DISABLE_EXCEPT_ADVISED of include/uapi/linux/prctl.h.
    let except_advised: libc::c_ulong = 1 << 1;
    let (on, off): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: no memory is involved.
    unsafe {
        if libc::prctl(libc::PR_SET_THP_DISABLE, on, except_advised, off, off) != 0 {
            // The allocator has switched them off for the whole process.
            libc::prctl(libc::PR_SET_THP_DISABLE, off, off, off, off);
        }
    }
}

/// Lets this thread's timers fire on time; by default the kernel may be 50 us late, prctl(2).
pub(crate) fn sharpen_timers() {
    let nanoseconds: libc::c_ulong = 1;
    // SAFETY: no memory is involved.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, nanoseconds) };
}
