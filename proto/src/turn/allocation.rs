//! The control side of allocations (RFC 8656 section 5): whose they are, what they were granted, when each family expires. A
//! table with a fixed capacity. What packets need is in [`crate::forwarding`].

use super::Reply;
use super::mobility::Mobility;
use super::quota::Share;
use crate::addr::{Addr, ClientAddr};
use crate::forwarding::SocketIndex;
use crate::time::Millis;
use crate::wire::stun::TransactionId;

/// Address families, and the places of their relayed addresses in arrays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    /// Both, in order of their places.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of a REQUESTED-ADDRESS-FAMILY value (RFC 8656 section 18.6).
    pub const fn from_wire(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::V4),
            2 => Some(Self::V6),
            _ => None,
        }
    }

    /// The family of an address.
    pub fn of(addr: Addr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub const fn to_wire(self) -> u8 {
        self.place() as u8 + 1
    }

    pub const fn place(self) -> usize {
        self as usize
    }
}

/// A relayed transport address that is open.
#[derive(Clone, Copy, Debug)]
pub(super) struct Relayed {
    pub socket: SocketIndex,
    /// The port, on the relay address of its family.
    pub port: u16,
    /// When it lapses.
    pub until: Millis,
}

/// A port that was reserved with another one (RFC 8656 section 7.2), or is about to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reserved {
    pub token: [u8; 8],
    pub family: Family,
    pub socket: SocketIndex,
    pub port: u16,
}

/// An allocation whose relay sockets are being opened.
#[derive(Debug)]
pub(super) struct Waiting {
    /// How many are not open yet.
    pub sockets: u8,
    /// Whether a second port is to be reserved, without which the request fails.
    pub is_pair: bool,
    /// Whether a stranger has one port of the pair, so that another pair may do.
    pub is_half: bool,
    /// How many other pairs may be tried.
    pub pairs_left: u8,
    /// Whether the client's stream has ended meanwhile: the sockets are closed as soon as all are opened.
    pub is_abandoned: bool,
    /// The answer that waits for them.
    pub reply: Reply,
}

/// One allocation.
#[derive(Debug)]
pub(super) struct Allocation {
    /// The five-tuple.
    pub socket: SocketIndex,
    pub client: ClientAddr,
    /// The whole user name, as a keyed hash.
    pub user: u64,
    /// What it counts against quotas.
    #[expect(dead_code, reason = "it is given back when it is dropped")]
    pub share: Option<Share>,
    /// The Allocate request that made it: its repetition gets the same answer.
    pub allocate_id: TransactionId,
    /// What that was granted, in seconds.
    pub granted_secs: u32,
    /// By family.
    pub relayed: [Option<Relayed>; 2],
    /// The error of each family that was wanted and is not there.
    pub failed: [Option<u16>; 2],
    /// The token that was told.
    pub reserved: Option<Reserved>,
    /// What lets its client move, if that was asked for.
    pub mobility: Option<Box<Mobility>>,
    /// Relay sockets that are still being opened, and the answer that waits for them.
    pub opening: Option<Box<Waiting>>,
}

impl Allocation {
    /// When the next of its families lapses.
    pub fn next_expiry(&self) -> Option<Millis> {
        let relayed = self.relayed.iter().flatten();
        relayed.map(|relayed| relayed.until).min()
    }
}

/// All allocations of one shard.
pub(super) struct AllocationTable {
    places: Vec<Option<Box<Allocation>>>,
    free: Vec<u32>,
    count: usize,
    capacity: usize,
    /// When the timer of each place fires. It outlives the occupant: places have timers, so that no churn can pile them up.
    timers: Vec<Millis>,
}

impl AllocationTable {
    pub const fn new(capacity: usize) -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            count: 0,
            capacity,
            timers: Vec::new(),
        }
    }

    pub const fn len(&self) -> usize {
        self.count
    }

    pub const fn is_full(&self) -> bool {
        self.count >= self.capacity
    }

    /// Takes an allocation in. The table is not full.
    pub fn insert(&mut self, allocation: Allocation) -> u32 {
        assert!(!self.is_full(), "the caller checked that there is room");
        self.count += 1;
        let allocation = Some(Box::new(allocation));
        if let Some(index) = self.free.pop() {
            self.places[index as usize] = allocation;
            return index;
        }
        self.places.push(allocation);
        self.timers.push(Millis(0));
        u32::try_from(self.places.len() - 1).expect("the capacity is below 2^32")
    }

    pub fn get(&mut self, index: u32) -> Option<&mut Allocation> {
        self.places.get_mut(index as usize)?.as_deref_mut()
    }

    /// When to set a timer for this allocation, if none fires in time.
    pub fn needs_timer(&mut self, now: Millis, index: u32) -> Option<Millis> {
        let at = self.get(index)?.next_expiry()?;
        let timer = &mut self.timers[index as usize];
        if *timer > now && *timer <= at {
            return None;
        }
        *timer = at;
        Some(at)
    }

    pub fn remove(&mut self, index: u32) -> Option<Box<Allocation>> {
        let allocation = self.places.get_mut(index as usize)?.take()?;
        self.free.push(index);
        self.count -= 1;
        Some(allocation)
    }
}
