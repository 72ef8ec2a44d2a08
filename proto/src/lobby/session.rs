//! What the lobby keeps: sessions, members, and the slabs they live in. Plain data; the rules are in the other files.

use std::collections::VecDeque;

use super::{Origin, SocketIndex, StreamSerial};
use crate::addr::{Addr, ProvenAddr, SourcePrefix};
use crate::forwarding::Route;
use crate::time::Millis;
use crate::wire::join_code::JoinCode;
use crate::wire::native::{EventKind, LeaveReason, NatMapping, SeatHandle, SeatId};

/// A fixed-capacity store with stable indexes.
pub(crate) struct Slab<T> {
    items: Vec<Option<T>>,
    free: Vec<u32>,
    capacity: usize,
}

impl<T> Slab<T> {
    pub fn new(capacity: usize) -> Self {
        Self {
            // All at once: pages that are never used cost nothing, and growing would copy everything in one turn.
            items: Vec::with_capacity(capacity),
            free: Vec::new(),
            capacity,
        }
    }

    pub fn len(&self) -> usize {
        self.items.len() - self.free.len()
    }

    pub fn is_full(&self) -> bool {
        self.len() >= self.capacity
    }

    /// Slots in use or free, for iterating by index.
    pub fn slots(&self) -> usize {
        self.items.len()
    }

    /// Stores an item; `None` if the slab is full.
    pub fn insert(&mut self, item: T) -> Option<u32> {
        if self.is_full() {
            return None;
        }
        if let Some(index) = self.free.pop() {
            self.items[index as usize] = Some(item);
            return Some(index);
        }
        self.items.push(Some(item));
        u32::try_from(self.items.len() - 1).ok()
    }

    pub fn remove(&mut self, index: u32) -> T {
        self.free.push(index);
        self.items[index as usize]
            .take()
            .expect("only what is there is removed")
    }

    pub fn get(&self, index: u32) -> Option<&T> {
        self.items.get(index as usize)?.as_ref()
    }

    pub fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.items.get_mut(index as usize)?.as_mut()
    }
}

impl<T> std::ops::Index<u32> for Slab<T> {
    type Output = T;

    fn index(&self, index: u32) -> &T {
        self.get(index).expect("an index that is kept is valid")
    }
}

impl<T> std::ops::IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, index: u32) -> &mut T {
        self.get_mut(index).expect("an index that is kept is valid")
    }
}

/// Something that every member is to be told.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogEntry {
    pub kind: EventKind,
    pub reason: u8,
    pub seat: SeatId,
}

/// A session.
pub(super) struct Session {
    pub uid: u32,
    pub code: JoinCode,
    pub application: Box<str>,
    pub name: Option<Box<str>>,
    pub password_key: [u8; 16],
    pub has_password: bool,
    pub metadata: Box<[u8]>,
    pub max_members: u8,
    /// The settable flags only.
    pub flags: u32,
    /// The match this session gathers players for.
    pub forming: Option<Box<[u8]>>,
    /// The host's seat. The host of a session that nobody has joined yet is seat 0.
    pub host: u8,
    /// Whether a ticket brought this session back and its true host has not.
    pub awaits_host: bool,
    /// Whether a ticket brought this session back: its former members may return by theirs.
    pub restored: bool,
    /// When it ends. Watched by the timers of its members, so that no timer outlives a short session by a day.
    pub expires_at: Millis,
    /// Until when it waits for bearers of tickets while nobody is seated. A session timer is set as long as that is to come.
    pub unseated_until: Millis,
    /// Where the search for a free seat begins: behind the seat that was given last, so that what is still under way to
    /// somebody who has just left does not reach a successor.
    pub next_seat: u8,
    /// Index of the member in each seat.
    pub seats: Vec<Option<u32>>,
    /// Seats that tickets of the matchmaker's door were issued for.
    pub reserved: Vec<SeatId>,
    pub banned: Vec<SourcePrefix>,
    /// What not everybody has acknowledged yet.
    pub log: VecDeque<LogEntry>,
    /// Number of the first entry in `log`.
    pub log_base: u64,
}

impl Session {
    pub fn log_end(&self) -> u64 {
        self.log_base + self.log.len() as u64
    }

    /// The members, by seat.
    pub fn occupants(&self) -> impl Iterator<Item = u32> {
        self.seats.iter().flatten().copied()
    }

    pub fn member_count(&self) -> usize {
        self.seats.iter().flatten().count()
    }

    pub fn occupant(&self, seat: u8) -> Option<u32> {
        *self.seats.get(usize::from(seat))?
    }

    /// A seat that is neither taken nor reserved; the one that has been free for longest, as far as that is known.
    pub fn free_seat(&self) -> Option<u8> {
        let next = self.next_seat.min(self.max_members);
        (next..self.max_members).chain(0..next).find(|&seat| {
            self.occupant(seat).is_none() && !self.reserved.iter().any(|id| id.seat == seat)
        })
    }

    pub fn set_occupant(&mut self, seat: u8, member: Option<u32>) {
        let seat = usize::from(seat);
        if self.seats.len() <= seat {
            self.seats.reserve_exact(seat + 1 - self.seats.len());
            self.seats.resize(seat + 1, None);
        }
        self.seats[seat] = member;
    }
}

/// A pair that this member is to be told to punch.
#[derive(Clone, Debug)]
pub(super) struct Introduction {
    pub peer: SeatId,
    pub start_ms: u64,
    /// The addresses to connect streams to, if it is about a stream.
    pub stream: Option<Box<StreamWish>>,
}

/// A member's wish for a stream with another, and where its own connection was seen.
#[derive(Clone, Debug)]
pub(super) struct StreamWish {
    pub peer: SeatId,
    pub seen: Addr,
    pub locals: Box<[Addr]>,
    pub reachable_port: Option<u16>,
    pub since: Millis,
}

/// A batch of events under way: its bytes, to be repeated as they are.
pub(super) struct InFlight {
    pub bytes: Box<[u8]>,
    pub first_sent: Millis,
    pub resend_at: Millis,
}

/// A member.
pub(super) struct Member {
    pub uid: u32,
    /// Index of its session; meaningless while departing.
    pub session: u32,
    pub handle: SeatHandle,
    pub token: [u8; 16],
    pub source: ProvenAddr,
    pub socket: SocketIndex,
    pub home: u16,
    /// The stream that it is reached by, if it is one.
    pub stream: Option<StreamSerial>,
    /// Whether that stream has ended. The seat is held, and its member may come back from elsewhere.
    pub is_unplugged: bool,
    /// The request that seated it, so that its repetition gets the same answer.
    pub seated_by: u64,
    /// The last request from the seat and what came of it.
    pub last_request: u64,
    pub last_outcome: u16,
    pub relay_only: bool,
    /// Removed, and waiting for the acknowledgement of that.
    pub departing: bool,
    /// Why it was removed, until it is told: what was under way before that comes first, or the numbers would not fit.
    pub departure: Option<LeaveReason>,
    pub last_heard: Millis,
    /// When what it has given the others to hear is made good.
    pub changes_made_good_at: Millis,
    pub timer_at: Millis,
    pub data: Box<[u8]>,
    pub locals: Box<[Addr]>,
    pub nat: Option<NatMapping>,
    /// A port of its public address that it says leads to it.
    pub reachable_port: Option<u16>,
    /// An address on a TURN server that leads to it too, from which it was seen.
    pub relayed: Option<Addr>,
    /// At most one for every other member.
    pub stream_wishes: Vec<StreamWish>,
    /// Who was there when it came and it still has to be told of.
    pub roster: Vec<SeatId>,
    /// Number of the log entry that it is to be told next.
    pub cursor: u64,
    pub introductions: Vec<Introduction>,
    pub next_sequence: u32,
    pub in_flight: Option<Box<InFlight>>,
}

impl Member {
    /// Where it is reached.
    pub fn route(&self) -> Option<Route> {
        (!self.is_unplugged).then(|| Route {
            egress: self.socket,
            to: self.source.addr(),
        })
    }

    pub fn is_at(&self, origin: Origin) -> bool {
        self.source == origin.addr && self.socket == origin.socket && self.stream == origin.stream
    }

    /// Whether its address is kept from the others, and theirs from it. Nobody can punch to the address of a stream.
    pub const fn is_relay_only(&self) -> bool {
        self.relay_only || self.stream.is_some()
    }
}
