//! The least io_uring forwarder there can be, to measure what the server's own ring costs on top.
//!
//! A multishot receive per socket, one enter per turn. Neighbouring packets for one destination
//! leave as a UDP_SEGMENT train; nothing else is looked at. With `--gro` trains are also received whole (UDP_GRO), and leave as they
//! came. Errors end it.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed};
use std::io;
use std::mem::zeroed;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use waypost_benches::clients::{GRO_SLOT_BYTES, receive_trains, segment_bytes};
use waypost_benches::forwarder::{
    HEADER_BYTES, RELAY_SOCKETS, announce, read_destinations, relabel,
};
use waypost_server::packet_io::{UdpOptions, bind_udp};

const SLOTS: usize = 2048;
const SLOT_BYTES: usize = 2048;
/// io_uring_recvmsg_out and the source before the payload.
const PREFIX: usize = 48;
/// Control bytes between them with `--gro`.
const CONTROL_BYTES: usize = 32;
const FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
const RECEIVE: u64 = 1;

#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Segment([u8; 24]);

#[derive(Clone, Copy)]
struct Packet {
    slot: u16,
    to: u32,
    len: usize,
    /// Shorter than `len` if it is a train.
    segment: usize,
}

fn main() -> io::Result<()> {
    let destinations: Vec<libc::sockaddr_in> = read_destinations()?
        .into_iter()
        .map(|to| {
            // SAFETY: all-zero is a valid sockaddr_in.
            let mut name: libc::sockaddr_in = unsafe { zeroed() };
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
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let relays = if std::env::args().any(|argument| argument == RELAY_SOCKETS) {
        destinations.len() / 2
    } else {
        0
    };
    let mut sockets = vec![bind_udp(any, &options)?];
    for _ in 0..relays {
        sockets.push(bind_udp(any, &UdpOptions::default())?);
    }
    let gro = std::env::args().any(|argument| argument == "--gro");
    let (slot_count, slot_bytes, prefix) = if gro {
        for socket in &sockets {
            receive_trains(socket, true)?;
        }
        (
            SLOTS / 4,
            PREFIX + CONTROL_BYTES + GRO_SLOT_BYTES,
            PREFIX + CONTROL_BYTES,
        )
    } else {
        (SLOTS, SLOT_BYTES, PREFIX)
    };
    let mut uring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_submit_all()
        .setup_no_sqarray()
        .setup_cqsize(16384)
        .build(4096)?;
    let files: Vec<_> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
    uring.submitter().register_files(&files)?;
    let page = 4096;
    let error = |_| io::Error::other("layout");
    let ring_layout = Layout::from_size_align(slot_count * 16, page).map_err(error)?;
    let slots_layout = Layout::from_size_align(slot_count * slot_bytes, page).map_err(error)?;
    // SAFETY: both layouts are not empty; the memory is never freed, so it outlives the ring.
    let (entries, slots) = unsafe {
        (
            alloc_zeroed(ring_layout).cast::<BufRingEntry>(),
            alloc_zeroed(slots_layout),
        )
    };
    // SAFETY: as above.
    unsafe {
        uring
            .submitter()
            .register_buf_ring_with_flags(entries as u64, slot_count as u16, 0, 0)?
    };
    let mut tail = 0u16;
    let mut give_back = |turn: &[u16]| {
        for &slot in turn {
            // SAFETY: masked, so inside the ring, and not yet visible to the kernel.
            unsafe {
                let entry = &mut *entries.add(tail as usize % slot_count);
                entry.set_addr(slots.add(slot as usize * slot_bytes) as u64);
                entry.set_len(slot_bytes as u32);
                entry.set_bid(slot);
            }
            tail = tail.wrapping_add(1);
        }
        // SAFETY: the tail lies inside the ring and the kernel only reads it.
        unsafe {
            AtomicU16::from_ptr(BufRingEntry::tail(entries).cast_mut())
                .store(tail, Ordering::Release);
        }
    };
    give_back(&(0..slot_count as u16).collect::<Vec<_>>());
    // SAFETY: all-zero is a valid msghdr.
    let mut template: libc::msghdr = unsafe { zeroed() };
    template.msg_namelen = 32;
    template.msg_controllen = prefix - PREFIX;
    let arm = |file: u64| {
        opcode::RecvMsgMulti::new(types::Fixed(file as u32), &raw const template, 0)
            .build()
            .user_data(RECEIVE + file)
    };
    let mut turn: Vec<u16> = Vec::with_capacity(SLOTS);
    let mut packets: Vec<Packet> = Vec::with_capacity(SLOTS);
    let mut headers: Vec<libc::msghdr> = Vec::with_capacity(SLOTS);
    let mut iovecs: Vec<libc::iovec> = Vec::with_capacity(SLOTS);
    let mut controls: Vec<Segment> = Vec::with_capacity(SLOTS);
    for socket in &sockets {
        announce(socket.local_addr()?)?;
    }
    let mut ended: Vec<u64> = (0..sockets.len() as u64).collect();
    loop {
        while let Some(file) = ended.pop() {
            // SAFETY: the template outlives the ring.
            let pushed = unsafe { uring.submission().push(&arm(file)) };
            pushed.map_err(io::Error::other)?;
        }
        uring.submit_and_wait(1)?;
        // Every send has been copied or refused by now.
        give_back(&turn);
        turn.clear();
        packets.clear();
        headers.clear();
        iovecs.clear();
        controls.clear();
        for cqe in uring.completion() {
            let Some(file) = cqe.user_data().checked_sub(RECEIVE) else {
                continue;
            };
            if !cqueue::more(cqe.flags()) {
                ended.push(file);
            }
            let Some(slot) = cqueue::buffer_select(cqe.flags()) else {
                continue;
            };
            turn.push(slot);
            let came = usize::try_from(cqe.result()).unwrap_or(0).min(slot_bytes);
            let Some(len) = came.checked_sub(prefix).filter(|len| *len >= HEADER_BYTES) else {
                continue;
            };
            // SAFETY: the slot is ours until it is given back, and the kernel has written this much of it.
            let slot_content = unsafe {
                std::slice::from_raw_parts_mut(slots.add(slot as usize * slot_bytes), came)
            };
            let (before, payload) = slot_content.split_at_mut(prefix);
            // io_uring_recvmsg_out: lengths of the name, the control messages and the payload, and flags.
            let control_len = u32::from_ne_bytes([before[4], before[5], before[6], before[7]]);
            let control = before[PREFIX..].get(..control_len as usize);
            let segment = control.and_then(segment_bytes).unwrap_or(len);
            if let Some(to) = relabel(payload, segment)
                && to < destinations.len()
            {
                let to = to as u32;
                packets.push(Packet {
                    slot,
                    to,
                    len,
                    segment,
                });
            }
        }
        let mut queue = uring.submission();
        let mut rest = &packets[..];
        while let Some(first) = rest.first() {
            // Nothing joins a train that came as one.
            let same = |packet: &&Packet| {
                packet.to == first.to && packet.len == first.len && packet.segment == first.len
            };
            let most = (65_500 / first.len).clamp(1, 64);
            let train = rest.iter().take(most).take_while(same).count().max(1);
            let name = (&raw const destinations[first.to as usize]).cast::<libc::sockaddr>();
            let name_bytes = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            // SAFETY: the slot stays until the next turn gives it back.
            let at = |packet: &Packet| unsafe {
                slots
                    .add(packet.slot as usize * slot_bytes + prefix)
                    .cast_const()
            };
            let to = first.to as usize;
            let egress = types::Fixed(if to < relays { to as u32 + 1 } else { 0 });
            let request = if train == 1 && first.segment == first.len {
                opcode::Send::new(egress, at(first), first.len as u32)
                    .flags(FLAGS)
                    .dest_addr(name)
                    .dest_addr_len(name_bytes)
                    .build()
            } else {
                let start = iovecs.len();
                iovecs.extend(rest[..train].iter().map(|packet| libc::iovec {
                    iov_base: at(packet).cast_mut().cast(),
                    iov_len: packet.len,
                }));
                let mut control = [0; 24];
                control[..8].copy_from_slice(&18usize.to_ne_bytes());
                control[8..12].copy_from_slice(&libc::SOL_UDP.to_ne_bytes());
                control[12..16].copy_from_slice(&libc::UDP_SEGMENT.to_ne_bytes());
                control[16..18].copy_from_slice(&(first.segment as u16).to_ne_bytes());
                controls.push(Segment(control));
                // SAFETY: all-zero is a valid msghdr.
                let mut header: libc::msghdr = unsafe { zeroed() };
                header.msg_name = name.cast_mut().cast();
                header.msg_namelen = name_bytes;
                header.msg_iov = iovecs.as_mut_ptr().wrapping_add(start);
                header.msg_iovlen = train;
                header.msg_control = controls
                    .as_mut_ptr()
                    .wrapping_add(controls.len() - 1)
                    .cast();
                header.msg_controllen = 24;
                headers.push(header);
                let header = headers.as_ptr().wrapping_add(headers.len() - 1);
                opcode::SendMsg::new(egress, header)
                    .flags(FLAGS as u32)
                    .build()
            };
            let request = request.flags(squeue::Flags::SKIP_SUCCESS).user_data(0);
            // SAFETY: slots, names and the vectors, which have room for a whole turn and so never
            // move, stay until the next turn.
            unsafe { queue.push(&request).map_err(io::Error::other)? };
            rest = &rest[train..];
        }
    }
}
