//! One generator thread: many members' sockets in one packet backend, their sessions, and the load on a schedule. A turn:
//! receive, let members act, let sessions come and go, send what is due. Per datagram it allocates nothing, takes no lock
//! and reads no clock.

mod cpu;
mod sessions;
mod share;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use ahash::AHashMap;
use crossbeam::channel::Sender;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use waypost_proto::time::Millis;
use waypost_server::packet_io::{PacketIo, Received, SocketId};

use self::cpu::{cpu_time, waited_time};
pub use self::share::{Share, Sizes};
use crate::clock::{Clock, Now};
use crate::failure::Failure;
use crate::flood::Flood;
use crate::gate::{Gate, Period};
use crate::live::{Live, TELL_MS};
use crate::payload::{Expected, Fault, PayloadWriter, Stamp};
use crate::place::{Place, Stage};
use crate::protocol::{Heard, Outbox};
use crate::schedule::{Due, Rate, Schedule};
use crate::sequence::Arrival;
use crate::series::Series;
use crate::tally::Tally;

/// After so many failures without a success, nothing more is tried.
const FAILURES_MAX: u64 = 64;
/// Datagrams sent before arrivals are looked after again, so that neither waits long for the other.
const SENDS_PER_TURN: usize = 64;
/// Longest sleep.
const TURN_NS: u64 = 5_000_000;
/// Every member is looked after at least this often, because data change what it waits for. Milliseconds.
const MEMBER_MS: u64 = 1_000;
/// How long the last datagrams may take, nanoseconds.
const SETTLING_NS: u64 = 1_000_000_000;
/// How long closing all sessions may take, nanoseconds.
const EMPTYING_NS: u64 = 10_000_000_000;
/// A slot that is later than this (or than the limit of the lag, if that is longer) is given up, nanoseconds.
const GIVE_UP_NS: u64 = 1_000_000_000;

/// What a thread reports.
pub enum Message {
    /// It has tried to set up its sessions.
    Ready {
        /// So many are.
        opened: u64,
    },
    /// What it has done lately.
    Live(Box<Live>),
    /// It has ended.
    Done(Box<Tally>),
    /// It cannot go on.
    Failed(Failure),
}

/// What a thread is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Sessions are being set up.
    Filling,
    /// The other threads are not ready.
    Waiting,
    /// The load runs.
    Running,
    /// The last datagrams arrive. Until when.
    Settling(u64),
    /// Sessions are closed. Until when.
    Emptying(u64),
}

/// One direction between two members, by where they are.
#[derive(Clone, Copy, Debug)]
struct Direction {
    place: u32,
    from: u8,
    to: u8,
}

/// A generator thread.
pub struct Worker<P> {
    io: P,
    clock: Clock,
    gate: Arc<Gate>,
    share: Share,
    outbox: Outbox,
    rng: StdRng,
    places: Vec<Place>,
    /// Place and member of each socket.
    by_socket: AHashMap<SocketId, (u32, u8)>,
    /// When to look after whom.
    timers: BinaryHeap<Reverse<(Millis, u32, u8)>>,
    /// Places that want a session.
    to_open: VecDeque<u32>,
    /// Places whose session is to be closed.
    to_close: VecDeque<u32>,
    /// Places whose session is being set up or closed.
    in_transition: Vec<u32>,
    /// All directions, in the order in which they take their turns.
    directions: Vec<Direction>,
    schedule: Option<Schedule>,
    setup: Option<Schedule>,
    flood: Flood,
    churn: Option<Schedule>,
    period: Option<Period>,
    phase: Phase,
    payload: PayloadWriter,
    frame: Vec<u8>,
    tally: Tally,
    cpu_at_start: Duration,
    waited_at_start: Duration,
    refused_at_start: u64,
    published_opened: u64,
    live: Live,
    tell_at: Millis,
}

impl<P: PacketIo> Worker<P> {
    /// A thread's worker over `io`.
    pub fn new(io: P, share: Share, clock: Clock, gate: Arc<Gate>) -> Self {
        let mut rng = StdRng::seed_from_u64(share.seed ^ (share.thread as u64) << 48);
        let count = u32::try_from(share.places.len()).expect("at most a million sessions");
        let mut directions: Vec<Direction> = (0..count)
            .flat_map(|place| {
                let each = share.directions.iter();
                each.map(move |&(from, to)| Direction { place, from, to })
            })
            .collect();
        directions.shuffle(&mut rng);
        let members = count as usize * usize::from(share.members);
        Self {
            io,
            clock,
            gate,
            outbox: Outbox::default(),
            rng,
            places: share.places.clone().map(Place::new).collect(),
            by_socket: AHashMap::with_capacity(members * 2),
            timers: BinaryHeap::with_capacity(members * 2),
            to_open: (0..count).collect(),
            to_close: VecDeque::new(),
            in_transition: Vec::new(),
            directions,
            schedule: None,
            setup: None,
            flood: Flood::default(),
            churn: None,
            period: None,
            phase: Phase::Filling,
            payload: PayloadWriter::new(
                share.run,
                share.sizes.host.max(share.sizes.others),
                share.seed,
            ),
            frame: Vec::with_capacity(2048),
            tally: Tally::default(),
            cpu_at_start: Duration::ZERO,
            waited_at_start: Duration::ZERO,
            refused_at_start: 0,
            published_opened: 0,
            live: Live::default(),
            tell_at: Millis(0),
            share,
        }
    }

    /// Works until the load is over and its sessions are closed.
    ///
    /// # Errors
    /// [`Failure`] if a socket cannot be opened or the backend fails.
    pub fn run(mut self, messages: &Sender<Message>) -> Result<Tally, Failure> {
        let mut now = self.clock.now();
        let mut looked_ms = Millis(0);
        let began_ns = now.ns;
        self.setup = self
            .share
            .setup
            .map(|rate| Schedule::new(rate, now.ns, u64::MAX, u64::MAX));
        while !self.gate.is_stopped() {
            let timeout = Duration::from_nanos(self.wake_ns(now).saturating_sub(now.ns));
            self.io.turn(Some(timeout)).map_err(|error| {
                Failure::internal(
                    format!("the packet backend failed: {error}"),
                    "try --io mmsg",
                )
            })?;
            now = self.clock.now();
            while let Some(received) = self.io.next() {
                self.receive(now, received);
            }
            self.run_timers(now);
            self.open_due(now)?;
            if now.millis() != looked_ms {
                looked_ms = now.millis();
                self.advance_phase(now, began_ns, messages)?;
                self.advance_sessions(now)?;
                if self.phase_is_over(now) {
                    break;
                }
            }
            now = self.clock.now();
            self.send_due(now);
            self.flood.send_due(now, &mut self.io, &mut self.tally);
            self.publish(now, messages);
        }
        // What is staged leaves with one more turn.
        let _ = self.io.turn(Some(Duration::ZERO));
        Ok(self.tally)
    }

    /// When there is something to do at the latest.
    fn wake_ns(&self, now: Now) -> u64 {
        let mut wake = now.ns + TURN_NS;
        let flood = self.flood.next_ns();
        let setup = self.setup.as_ref().and_then(Schedule::next_ns);
        let setup = setup.filter(|_| !self.to_open.is_empty());
        let slot = self.schedule.as_ref().and_then(Schedule::next_ns);
        for at in [flood, setup, slot].into_iter().flatten() {
            wake = wake.min(at);
        }
        if let Some(Reverse((at, ..))) = self.timers.peek() {
            wake = wake.min(at.0 * 1_000_000);
        }
        wake
    }

    fn receive(&mut self, now: Now, received: Received) {
        let Some(&(p, m)) = self.by_socket.get(&received.socket) else {
            self.flood.receive(&received, &mut self.tally);
            return;
        };
        let (index, to) = (p as usize, usize::from(m));
        let bytes = self.io.payload(&received.buf);
        let place = &mut self.places[index];
        let Some(session) = &mut place.session else {
            return;
        };
        let (from, range) = match session.receive(to, now, received.from, bytes, &mut self.outbox) {
            Heard::Data { from, range } => (Some(from).filter(|from| *from != to), range),
            Heard::Refused => {
                self.tally.refused += 1;
                return;
            }
            Heard::Control => {
                self.carry_out(now, index, to);
                return;
            }
        };
        let expected = Expected {
            run: self.share.run,
            size: from.map_or(0, |from| self.share.sizes.of(from)),
            flow: from.map(|from| place.flow_id(from, to)),
        };
        let (stamp, flow) = match (expected.read(&bytes[range]), from) {
            (Ok(stamp), Some(from)) => (stamp, place.flow_index(from, to)),
            (Err(Fault::Corrupted), _) => {
                self.tally.corrupted += 1;
                return;
            }
            (Err(Fault::Misdelivered) | Ok(_), _) => {
                self.tally.misdelivered += 1;
                return;
            }
        };
        match place.flows[flow].arrivals.note(stamp.sequence) {
            Arrival::InOrder => {}
            Arrival::Late => self.tally.reordered += 1,
            Arrival::Duplicate => {
                self.tally.duplicated += 1;
                return;
            }
        }
        self.live.received += 1;
        let latency_ns = now.ns.saturating_sub(stamp.intended_ns);
        self.live.latency.record(latency_ns);
        let period = self.period;
        if let Some(period) = period.filter(|period| period.measures(stamp.intended_ns)) {
            self.tally.received += 1;
            self.tally.latency.record(latency_ns);
            let ns = now.ns.saturating_sub(stamp.sent_ns);
            self.tally.uncorrected.record(ns);
            let after_ns = stamp.intended_ns - period.measured_ns;
            if let Some(interval) = self.tally.series.at(after_ns) {
                interval.received += 1;
                interval.latency.record(latency_ns);
            }
        }
    }

    /// Does what a session wants done after a call for member `m`.
    fn carry_out(&mut self, now: Now, p: usize, m: usize) {
        let place = &mut self.places[p];
        for (from, to, bytes) in self.outbox.transmits() {
            self.io.send(place.members[from].socket, to, bytes);
        }
        place.on_steps(now, &mut self.outbox, &mut self.tally);
        if self.outbox.touches_all {
            for m in 0..place.members.len() {
                self.arm(now, p, m);
            }
        } else {
            self.arm(now, p, m);
        }
        self.outbox.clear();
    }

    /// Sees to it that a member is looked after.
    fn arm(&mut self, now: Now, p: usize, m: usize) {
        let place = &mut self.places[p];
        let Some(session) = &place.session else {
            return;
        };
        let soonest = now.millis() + 1;
        let latest = now.millis() + MEMBER_MS;
        let at = session.next_time(m);
        let at = at.map_or(latest, |at| at.clamp(soonest, latest));
        let member = &mut place.members[m];
        if member.armed.is_none_or(|armed| at < armed) {
            member.armed = Some(at);
            // Both fit: they index `places` and its members.
            self.timers.push(Reverse((at, p as u32, m as u8)));
        }
    }

    fn run_timers(&mut self, now: Now) {
        while let Some(&Reverse((at, p, m))) = self.timers.peek() {
            if at > now.millis() {
                break;
            }
            self.timers.pop();
            let place = &mut self.places[p as usize];
            let (Some(member), Some(session)) =
                (place.members.get_mut(usize::from(m)), &mut place.session)
            else {
                continue;
            };
            // An entry may be older than the session, or overtaken by another one.
            if member.armed == Some(at) {
                member.armed = None;
                session.on_time(usize::from(m), now, &mut self.outbox);
                self.carry_out(now, p as usize, usize::from(m));
            }
        }
    }

    fn advance_phase(
        &mut self,
        now: Now,
        began_ns: u64,
        messages: &Sender<Message>,
    ) -> Result<(), Failure> {
        let at_rest = self.to_open.is_empty() && self.in_transition.is_empty();
        match self.phase {
            Phase::Filling if at_rest => {
                self.phase = Phase::Waiting;
                self.setup = None;
                self.tally.filling_ns = now.ns - began_ns;
                // Nobody listens any more only when the run ends early.
                let opened = self.tally.opened;
                let _ = messages.send(Message::Ready { opened });
            }
            Phase::Waiting => {
                if let Some(start_ns) = self.gate.start_ns() {
                    self.begin_load(start_ns)?;
                }
            }
            Phase::Running => {
                self.begin_churn(now);
                let end_ns = self.period.map_or(0, |period| period.end_ns);
                let all_taken = self.schedule.as_ref().is_none_or(|s| s.next_ns().is_none());
                if now.ns >= end_ns && all_taken {
                    self.tally.cpu_ns = nanos(cpu_time().saturating_sub(self.cpu_at_start));
                    let waited = waited_time().saturating_sub(self.waited_at_start);
                    self.tally.waited_ns = nanos(waited);
                    self.tally.kernel_refused = self.kernel_refused() - self.refused_at_start;
                    self.phase = Phase::Settling(now.ns + SETTLING_NS);
                }
            }
            Phase::Settling(until) if now.ns >= until || self.tally.lost() == 0 => {
                let open = (0..self.places.len()).filter(|&p| self.places[p].stage == Stage::Open);
                self.to_close.extend(open.map(|p| p as u32));
                self.to_open.clear();
                self.phase = Phase::Emptying(now.ns + EMPTYING_NS);
            }
            _ => {}
        }
        Ok(())
    }

    fn phase_is_over(&self, now: Now) -> bool {
        let Phase::Emptying(until) = self.phase else {
            return false;
        };
        now.ns >= until || (self.to_close.is_empty() && self.in_transition.is_empty())
    }

    fn begin_load(&mut self, start_ns: u64) -> Result<(), Failure> {
        let measured_ns = start_ns + nanos(self.share.warm_up);
        let end_ns = measured_ns + nanos(self.share.duration);
        self.period = Some(Period {
            start_ns,
            measured_ns,
            end_ns,
        });
        self.tally.series = Series::new(self.share.duration);
        let give_up_ns = GIVE_UP_NS.max(nanos(self.share.lag_limit));
        let (shape, rate) = (self.share.shape, self.share.rate);
        let schedule = Schedule::shaped(shape, rate, start_ns, end_ns, give_up_ns);
        self.schedule = Some(schedule);
        if self.share.flood.slots > 0 {
            let schedule = Schedule::new(self.share.flood, start_ns, end_ns, give_up_ns);
            let share = &self.share;
            self.flood = Flood::new(share, schedule, &mut self.io, &mut self.rng)?;
        }
        let churn = Rate {
            slots: (self.share.churn * 1000.0) as u64,
            seconds: 1000,
        };
        self.churn = Some(Schedule::new(churn, start_ns, end_ns, u64::MAX));
        self.cpu_at_start = cpu_time();
        self.waited_at_start = waited_time();
        self.refused_at_start = self.kernel_refused();
        self.phase = Phase::Running;
        Ok(())
    }

    fn send_due(&mut self, now: Now) {
        let (Some(schedule), Some(period)) = (&mut self.schedule, self.period) else {
            return;
        };
        for _ in 0..SENDS_PER_TURN {
            let Some(due) = schedule.take(now.ns) else {
                return;
            };
            let slot = match due {
                Due::Send(slot) => slot,
                Due::Missed(slot) => {
                    if period.measures(slot.intended_ns) {
                        self.tally.missed += 1;
                        let after_ns = slot.intended_ns - period.measured_ns;
                        if let Some(interval) = self.tally.series.at(after_ns) {
                            interval.missed += 1;
                        }
                    }
                    continue;
                }
            };
            let measured = u64::from(period.measures(slot.intended_ns));
            let turn = (slot.number % self.directions.len() as u64) as usize;
            let Direction { place, from, to } = self.directions[turn];
            let (from, to) = (usize::from(from), usize::from(to));
            let place = &mut self.places[place as usize];
            if place.stage != Stage::Open {
                self.tally.idle += measured;
                continue;
            }
            let index = place.flow_index(from, to);
            let stamp = Stamp {
                flow: place.flow_id(from, to),
                sequence: place.flows[index].next_sequence,
                intended_ns: slot.intended_ns,
                sent_ns: now.ns,
            };
            let data = self.payload.write(&stamp, self.share.sizes.of(from));
            let session = place.session.as_mut();
            let framed = session.and_then(|s| s.frame(now, from, to, data, &mut self.frame));
            let Some(address) = framed else {
                self.tally.idle += measured;
                continue;
            };
            self.io
                .send(place.members[from].socket, address, &self.frame);
            place.flows[index].next_sequence += 1;
            let lag_ns = now.ns - slot.intended_ns;
            self.live.sent += 1;
            self.live.lag.record(lag_ns);
            if measured == 1 {
                self.tally.sent += 1;
                self.tally.lag.record(lag_ns);
                let after_ns = slot.intended_ns - period.measured_ns;
                if let Some(interval) = self.tally.series.at(after_ns) {
                    interval.sent += 1;
                    interval.lag.record(lag_ns);
                }
            }
        }
    }

    fn kernel_refused(&self) -> u64 {
        let stats = self.io.stats();
        stats.send_eagain + stats.send_errors
    }

    /// Shows how far the run is.
    fn publish(&mut self, now: Now, messages: &Sender<Message>) {
        let opened = self.tally.opened;
        if opened != self.published_opened {
            let more = opened - self.published_opened;
            self.gate.opened.fetch_add(more, Relaxed);
            self.published_opened = opened;
        }
        if now.millis() >= self.tell_at {
            let told = self.tell_at.0.saturating_sub(TELL_MS) * 1_000_000;
            self.live.span_ns = now.ns.saturating_sub(told);
            self.tell_at = now.millis() + TELL_MS;
            if self.phase == Phase::Running {
                // Nobody listens any more only when the run ends early.
                let _ = messages.send(Message::Live(Box::new(self.live.clone())));
            }
            self.live.clear();
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
