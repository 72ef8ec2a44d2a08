//! The least epoll, recvmmsg and sendmmsg forwarder there can be, to compare with.
//!
//! Neighbouring packets for one destination leave as a UDP_SEGMENT train; nothing else is looked
//! at. With `--gro` trains are also received whole (UDP_GRO), and leave as they came. Errors end it.
#![allow(unsafe_code)]

use std::io;
use std::mem::zeroed;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use waypost_benches::clients::{GRO_SLOT_BYTES, receive_trains, segment_bytes};
use waypost_benches::forwarder::{announce, read_destinations, relabel};
use waypost_server::packet_io::{UdpOptions, bind_udp};

const BATCH: usize = 64;
const BYTES: usize = 2048;
const CONTROL_BYTES: usize = 32;

#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Segment([u8; 24]);

#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL_BYTES]);

fn main() -> io::Result<()> {
    // SAFETY: all-zero is a valid value of all these structures.
    let (name, iovec, header, event) = unsafe {
        (
            zeroed::<libc::sockaddr_in>(),
            zeroed::<libc::iovec>(),
            zeroed::<libc::mmsghdr>(),
            zeroed::<libc::epoll_event>(),
        )
    };
    let mut destinations: Vec<libc::sockaddr_in> = read_destinations()?
        .into_iter()
        .map(|to| {
            let mut name = name;
            name.sin_family = libc::AF_INET as libc::sa_family_t;
            name.sin_port = to.port().to_be();
            name.sin_addr.s_addr = u32::from(*to.ip()).to_be();
            name
        })
        .collect();
    let options = UdpOptions {
        recv_buffer_bytes: Some(8 << 20),
        send_buffer_bytes: Some(8 << 20),
        ..UdpOptions::default()
    };
    let socket = bind_udp(SocketAddr::from(([127, 0, 0, 1], 0)), &options)?;
    let fd = socket.as_raw_fd();
    let gro = std::env::args().any(|argument| argument == "--gro");
    let slot_bytes = if gro {
        receive_trains(&socket, true)?;
        GRO_SLOT_BYTES
    } else {
        BYTES
    };
    // SAFETY: the event is read during the call only.
    let epoll = unsafe {
        let epoll = libc::epoll_create1(0);
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: 0,
        };
        if libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event) != 0 {
            return Err(io::Error::last_os_error());
        }
        epoll
    };
    let mut bytes = vec![0u8; BATCH * slot_bytes];
    let mut from = [name; BATCH];
    let mut iovecs = [iovec; BATCH];
    let mut received = [header; BATCH];
    let mut received_controls = [Control([0; CONTROL_BYTES]); BATCH];
    let mut outgoing_iovecs = [iovec; BATCH];
    let mut controls = [Segment([0; 24]); BATCH];
    let mut outgoing = [header; BATCH];
    let mut events = [event; 4];
    for i in 0..BATCH {
        iovecs[i].iov_base = bytes.as_mut_ptr().wrapping_add(i * slot_bytes).cast();
        iovecs[i].iov_len = slot_bytes;
        received[i].msg_hdr.msg_iov = iovecs.as_mut_ptr().wrapping_add(i);
        received[i].msg_hdr.msg_iovlen = 1;
        if gro {
            let control = received_controls.as_mut_ptr().wrapping_add(i);
            received[i].msg_hdr.msg_control = control.cast();
        }
        received[i].msg_hdr.msg_name = from.as_mut_ptr().wrapping_add(i).cast();
    }
    announce(socket.local_addr()?)?;
    loop {
        // SAFETY: all pointers lead to arrays of this frame, and the calls are synchronous.
        let count = unsafe {
            libc::epoll_wait(epoll, events.as_mut_ptr(), 4, -1);
            for message in &mut received {
                message.msg_hdr.msg_namelen = 16;
                message.msg_hdr.msg_controllen = if gro { CONTROL_BYTES } else { 0 };
            }
            let none = std::ptr::null_mut();
            libc::recvmmsg(
                fd,
                received.as_mut_ptr(),
                BATCH as u32,
                libc::MSG_DONTWAIT,
                none,
            )
        };
        let mut messages = 0;
        let mut last: Option<(usize, usize)> = None;
        let mut pieces = 0;
        for i in 0..usize::try_from(count).unwrap_or(0) {
            let len = received[i].msg_len as usize;
            let packet = &mut bytes[i * slot_bytes..i * slot_bytes + len];
            let control = &received_controls[i].0[..received[i].msg_hdr.msg_controllen];
            let segment = segment_bytes(control).unwrap_or(len);
            let Some(to) = relabel(packet, segment) else {
                continue;
            };
            if to >= destinations.len() {
                continue;
            }
            outgoing_iovecs[pieces].iov_base = packet.as_mut_ptr().cast();
            outgoing_iovecs[pieces].iov_len = len;
            let train = if messages > 0 {
                outgoing[messages - 1].msg_hdr.msg_iovlen
            } else {
                0
            };
            let joins = last == Some((to, len)) && (train + 1) * len <= 65_500;
            if joins {
                outgoing[messages - 1].msg_hdr.msg_iovlen += 1;
            } else {
                let header = &mut outgoing[messages].msg_hdr;
                header.msg_name = (&raw mut destinations[to]).cast();
                header.msg_namelen = 16;
                header.msg_iov = outgoing_iovecs.as_mut_ptr().wrapping_add(pieces);
                header.msg_iovlen = 1;
                header.msg_control = std::ptr::null_mut();
                header.msg_controllen = 0;
                messages += 1;
                // Nothing joins a train that came as one.
                last = (segment == len).then_some((to, len));
            }
            if joins || segment < len {
                let header = &mut outgoing[messages - 1].msg_hdr;
                let control = &mut controls[messages - 1];
                control.0[..8].copy_from_slice(&18usize.to_ne_bytes());
                control.0[8..12].copy_from_slice(&libc::SOL_UDP.to_ne_bytes());
                control.0[12..16].copy_from_slice(&libc::UDP_SEGMENT.to_ne_bytes());
                control.0[16..18].copy_from_slice(&(segment as u16).to_ne_bytes());
                header.msg_control = (&raw mut *control).cast();
                header.msg_controllen = 24;
            }
            pieces += 1;
        }
        let mut at = 0;
        while at < messages {
            // SAFETY: as above.
            let sent = unsafe {
                let headers = outgoing.as_mut_ptr().add(at);
                libc::sendmmsg(fd, headers, (messages - at) as u32, libc::MSG_DONTWAIT)
            };
            // A refused message is dropped.
            at += usize::try_from(sent).unwrap_or(1);
        }
    }
}
