//! Receiving: one multishot `recvmsg` per socket, armed once and again whenever it ended.
//!
//! A slot comes back as `io_uring_recvmsg_out` (16 bytes), the sender's address (32 bytes), the
//! payload. An ended receive is only noted here; it is armed again after the next publication of
//! slots, never at once, since an empty ring would end it on the spot.

use std::collections::VecDeque;
use std::io;
use std::mem::zeroed;
use std::net::SocketAddr;

use io_uring::{opcode, squeue, types};

use super::buffers::{Buffers, GROUP, WIDE_GROUP};
use super::gro::Habit;
use super::token::Token;
use crate::packet_io::{HEADROOM, SocketId, WireAddr};

/// `struct io_uring_recvmsg_out`.
pub(super) const RECVMSG_OUT_BYTES: usize = 16;
/// Room for any address that a UDP socket reports, filled up so that the prefix is the headroom.
pub(super) const NAME_BYTES: usize = 32;

const _: () = assert!(RECVMSG_OUT_BYTES + NAME_BYTES == HEADROOM);
const _: () = assert!(NAME_BYTES >= size_of::<libc::sockaddr_in6>());

/// The slots that a receive fills.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum SlotKind {
    /// For datagrams of usual size.
    #[default]
    Small,
    /// For those of wide sockets.
    Wide,
    /// For trains.
    Large,
}

/// What the ring remembers of a socket.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Receive {
    /// The kernel has the receive request.
    pub(super) armed: bool,
    /// The slots that its last receive filled.
    pub(super) armed_for: SlotKind,
    /// The turn that armed it.
    pub(super) armed_in_turn: u64,
    /// Receives in a row that an error, other than a lack of slots, ended in the turn that armed
    /// them.
    pub(super) errors_in_row: u16,
    /// It always receives in wide slots.
    pub(super) is_wide: bool,
    /// Whether its datagrams come in trains.
    pub(super) habit: Habit,
}

impl Receive {
    /// The slots that its next receive is to fill.
    pub(super) fn wants(self) -> SlotKind {
        if self.is_wide {
            SlotKind::Wide
        } else if self.habit.is_large() {
            SlotKind::Large
        } else {
            SlotKind::Small
        }
    }
}

/// A socket whose receive fails this often in a row is left alone: it would spin.
pub(super) const MOST_ERRORS_IN_ROW: u16 = 1000;

/// A completed receive that waits to be handed out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    pub(super) socket: SocketId,
    pub(super) slot: u16,
    pub(super) kind: SlotKind,
    pub(super) len: u32,
}

/// The header that all receives share, and the datagrams that wait.
pub(super) struct Receiver {
    /// The kernel reads it whenever a receive is armed.
    template: Box<libc::msghdr>,
    pub(super) arrivals: VecDeque<Arrival>,
    /// Sockets whose receive has ended.
    pub(super) ended: Vec<SocketId>,
    /// Sockets whose receive is to end, to be armed with other slots.
    pub(super) changing: Vec<SocketId>,
    /// Source and length of this turn's last datagram.
    pub(super) last: Option<(SocketId, SocketAddr, u32)>,
    arrived: usize,
}

impl Receiver {
    pub(super) fn new(slots: u32) -> Self {
        // SAFETY: all-zero is a valid msghdr.
        let mut template: Box<libc::msghdr> = Box::new(unsafe { zeroed() });
        template.msg_namelen = NAME_BYTES as libc::socklen_t;
        Self {
            template,
            arrivals: VecDeque::with_capacity(slots as usize),
            ended: Vec::new(),
            changing: Vec::new(),
            last: None,
            arrived: 0,
        }
    }

    /// The request that arms a socket's receive in small or wide slots. It refers to this value's template.
    pub(super) fn request(&self, id: SocketId, kind: SlotKind) -> squeue::Entry {
        let group = if kind == SlotKind::Wide {
            WIDE_GROUP
        } else {
            GROUP
        };
        opcode::RecvMsgMulti::new(types::Fixed(id.index()), &raw const *self.template, group)
            .build()
            .user_data(Token::Receive(id, kind).pack())
    }

    #[inline]
    pub(super) fn arrived(&mut self, arrival: Arrival) {
        self.arrived += 1;
        self.arrivals.push_back(arrival);
    }

    /// Datagrams that arrived since the last call.
    pub(super) fn take_arrived(&mut self) -> usize {
        std::mem::take(&mut self.arrived)
    }
}

/// Why an arrival is no datagram for anybody.
#[derive(Debug)]
pub(super) enum Unusable {
    Truncated,
    NoAddress,
}

/// Payload bytes in a slot, from a receive's result.
pub(super) fn payload_bytes(result: i32) -> io::Result<u32> {
    payload_behind(HEADROOM, result)
}

/// The same behind a prefix of another length.
#[inline]
pub(super) fn payload_behind(prefix_bytes: usize, result: i32) -> io::Result<u32> {
    match u32::try_from(result) {
        Ok(bytes) => bytes
            .checked_sub(prefix_bytes as u32)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EFAULT)),
        Err(_) => Err(io::Error::from_raw_os_error(-result)),
    }
}

/// The sender of a datagram whose slot has not been handed out yet.
#[inline]
pub(super) fn sender(buffers: &Buffers, arrival: &Arrival) -> Result<SocketAddr, Unusable> {
    // SAFETY: the kernel gave the slot to us with its completion and nobody has a slice of it yet.
    let prefix = unsafe { buffers.memory.headroom(arrival.slot.into()) };
    let word = |at: usize| {
        u32::from_ne_bytes([prefix[at], prefix[at + 1], prefix[at + 2], prefix[at + 3]])
    };
    let (name_bytes, whole_bytes, flags) = (word(0) as usize, word(8), word(12));
    if flags & libc::MSG_TRUNC as u32 != 0 || whole_bytes > arrival.len {
        return Err(Unusable::Truncated);
    }
    let name = &prefix[RECVMSG_OUT_BYTES..];
    WireAddr::parse(&name[..name_bytes.min(NAME_BYTES)]).ok_or(Unusable::NoAddress)
}
