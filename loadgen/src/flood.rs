//! First requests of strangers who never prove their address: what a flood of forged packets costs, and whether the answers are
//! larger than the questions. It keeps nothing about a single request.

use std::net::SocketAddr;

use rand::rngs::StdRng;
use waypost_server::packet_io::{PacketIo, Received, SocketId};

use crate::clock::Now;
use crate::failure::Failure;
use crate::schedule::{Due, Schedule};
use crate::sockets;
use crate::tally::Tally;
use crate::worker::Share;

/// Sources of one thread, each on an address of its own where there are enough.
const SOURCES: u32 = 16;
/// Numbers from here on are no members' (a run has at most two millions of them).
const FIRST_NUMBER: u32 = 2_000_000;
/// Requests sent before arrivals are looked after again.
const SENDS_PER_TURN: usize = 256;

/// One thread's strangers.
#[derive(Debug, Default)]
pub struct Flood {
    schedule: Option<Schedule>,
    sockets: Vec<SocketId>,
    to: Option<SocketAddr>,
    request: Vec<u8>,
}

impl Flood {
    /// Strangers that ask for what a host of `share`'s protocol asks for first.
    ///
    /// # Errors
    /// [`Failure`] if their sockets cannot be opened.
    pub fn new(
        share: &Share,
        schedule: Schedule,
        io: &mut impl PacketIo,
        rng: &mut StdRng,
    ) -> Result<Self, Failure> {
        let mut bound = Vec::new();
        let thread = u32::try_from(share.thread).expect("at most 128 threads");
        for source in 0..SOURCES {
            let n = FIRST_NUMBER + thread * SOURCES + source;
            bound.push(share.sources.bind(n)?);
        }
        let addresses: Vec<SocketAddr> = bound.iter().take(2).map(|(_, at)| *at).collect();
        let first = share.kit.first_request(&addresses, rng);
        let (to, request) = first.map_or((None, Vec::new()), |(to, bytes)| (Some(to), bytes));
        let sockets = bound.into_iter().map(|(socket, _)| io.add_socket(socket));
        let sockets = sockets.collect::<Result<_, _>>();
        Ok(Self {
            schedule: Some(schedule),
            sockets: sockets.map_err(|error| sockets::refused(&error))?,
            to,
            request,
        })
    }

    /// When the next one asks.
    pub fn next_ns(&self) -> Option<u64> {
        self.schedule.as_ref().and_then(Schedule::next_ns)
    }

    /// Sends what is due.
    pub fn send_due(&mut self, now: Now, io: &mut impl PacketIo, tally: &mut Tally) {
        let (Some(schedule), Some(to)) = (&mut self.schedule, self.to) else {
            return;
        };
        for _ in 0..SENDS_PER_TURN {
            match schedule.take(now.ns) {
                Some(Due::Send(slot)) => {
                    let turn = slot.number as usize % self.sockets.len();
                    io.send(self.sockets[turn], to, &self.request);
                    tally.flood.sent += 1;
                    tally.flood.bytes_sent += self.request.len() as u64;
                }
                Some(Due::Missed(_)) => tally.missed += 1,
                None => return,
            }
        }
    }

    /// A datagram has arrived at a socket that is no member's.
    pub fn receive(&self, received: &Received, tally: &mut Tally) {
        if self.sockets.contains(&received.socket) {
            tally.flood.answered += 1;
            tally.flood.bytes_answered += received.buf.len() as u64;
        }
    }
}
