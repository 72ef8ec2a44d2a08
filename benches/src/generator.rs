//! The load: datagrams through a server's flows at a rate, in bursts, or as fast as the server
//! goes, and the check of every datagram that comes out.
//!
//! A payload carries its time of sending, its flow, a sequence number and a checksum. It spins on
//! one core, so the core should be its own.

use std::collections::HashSet;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::str::FromStr;
use std::time::{Duration, Instant};

use waypost_proto::wire::stun::{Message, attr};

use crate::clients::{Arrived, BATCH, Clients, DATAGRAM_BYTES, TRAIN};
use crate::process::we_waited_for_core;
use crate::relay::{Arriving, Flow, Running};

/// Datagrams under way at most when the server is saturated.
const WINDOW: u64 = 1024;
/// Least payload: time, flow, sequence number, checksum.
pub const LEAST_PAYLOAD_BYTES: usize = 24;

/// How datagrams are handed to the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pattern {
    /// One by one, each on the next flow.
    Single,
    /// [`TRAIN`] of a flow back to back.
    Burst,
    /// [`TRAIN`] of a flow as one UDP_SEGMENT train; answered in trains; both ends receive trains whole (UDP_GRO).
    Train,
}

impl Pattern {
    /// Datagrams of one flow that are sent back to back.
    #[must_use]
    pub const fn burst(self) -> usize {
        match self {
            Self::Single => 1,
            Self::Burst | Self::Train => TRAIN,
        }
    }

    /// What stands before a load's rate.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Single => "",
            Self::Burst => "burst:",
            Self::Train => "train:",
        }
    }

    /// The pattern that a load's text names, and the text of its rate.
    ///
    /// # Errors
    /// When it names one that does not exist.
    pub fn split(text: &str) -> Result<(Self, &str), String> {
        match text.split_once(':') {
            Some(("burst", rate)) => Ok((Self::Burst, rate)),
            Some(("train", rate)) => Ok((Self::Train, rate)),
            Some((other, _)) => Err(format!("there is no pattern {other}")),
            None => Ok((Self::Single, text)),
        }
    }
}

/// What to put through a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Load {
    /// Datagrams per second; `None`: as many as the server takes.
    pub per_second: Option<u64>,
    /// How they leave.
    pub pattern: Pattern,
}

impl FromStr for Load {
    type Err = String;

    /// `RATE` or `max`, with `burst:` or `train:` in front.
    fn from_str(text: &str) -> Result<Self, String> {
        let (pattern, rate) = Pattern::split(text)?;
        let per_second = match rate {
            "max" => None,
            rate => Some(rate.parse().map_err(|error| format!("{rate}: {error}"))?),
        };
        Ok(Self {
            per_second,
            pattern,
        })
    }
}

impl std::fmt::Display for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.pattern.prefix())?;
        match self.per_second {
            Some(rate) => write!(f, "{rate}"),
            None => write!(f, "max"),
        }
    }
}

/// How long to load, and with what.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Payload bytes without any prefix, at least [`LEAST_PAYLOAD_BYTES`].
    pub payload_bytes: usize,
    /// Time before measuring starts.
    pub warm_up: Duration,
    /// Time measured.
    pub measured: Duration,
}

/// What one run gave.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Datagrams that came out within the measured time.
    pub relayed: u64,
    /// CPU time that the server used for them.
    pub server_cpu: Duration,
    /// Time that server or generator waited for their cores, which other processes had.
    pub waited: Duration,
    /// The measured time.
    pub elapsed: Duration,
    /// Median time from sending to receiving; of a flow that is answered, to receiving the answer.
    pub median_latency: Duration,
    /// 99th percentile of it.
    pub p99_latency: Duration,
    /// 99.9th percentile of it.
    pub p999_latency: Duration,
    /// Datagrams sent that never came out.
    pub lost: u64,
    /// Datagrams that came out twice.
    pub duplicated: u64,
    /// Datagrams that came out later than a younger one of their flow.
    pub reordered: u64,
    /// Datagrams at the wrong end, from the wrong address or with the wrong prefix.
    pub misdelivered: u64,
    /// Datagrams whose bytes changed.
    pub corrupt: u64,
}

impl Outcome {
    /// CPU microseconds of the server per datagram.
    #[must_use]
    pub fn cpu_us_per_datagram(&self) -> f64 {
        self.server_cpu.as_secs_f64() * 1e6 / (self.relayed.max(1) as f64)
    }

    /// The part of one core that the server used.
    #[must_use]
    pub fn utilisation(&self) -> f64 {
        self.server_cpu.as_secs_f64() / self.elapsed.as_secs_f64()
    }

    /// The part of the time in which server or generator waited for their cores.
    #[must_use]
    pub fn waiting(&self) -> f64 {
        self.waited.as_secs_f64() / self.elapsed.as_secs_f64()
    }

    /// Datagrams per second.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        self.relayed as f64 / self.elapsed.as_secs_f64()
    }
}

/// A datagram that is to be sent back: by which flow, and when the first one was sent.
struct Answer {
    flow: usize,
    sent_at_ns: u64,
}

struct FlowState {
    flow: Flow,
    to: SocketAddrV4,
    sent: u32,
    youngest: Option<u32>,
    /// One bit per sequence number that came.
    seen: Vec<u64>,
}

struct Run<'a> {
    flows: Vec<FlowState>,
    template: Vec<u8>,
    shape: &'a Shape,
    started: Instant,
    sent: u64,
    came: u64,
    /// The flows that are sent on unasked, and whose turn it is.
    initiators: Vec<usize>,
    next_flow: usize,
    answers: Vec<Answer>,
    latencies_ns: Vec<u32>,
    duplicated: u64,
    reordered: u64,
    misdelivered: u64,
    corrupt: u64,
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .chunks(8)
        .fold(0x1234_5678_9abc_def1, |sum: u64, chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            (sum ^ u64::from_le_bytes(word))
                .wrapping_mul(0x9E37_79B9_7F4A_7C15)
                .rotate_left(29)
        })
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut number = [0; N];
    number.copy_from_slice(&bytes[at..at + N]);
    number
}

/// How a Data indication begins (RFC 8656 section 17).
const DATA_INDICATION: [u8; 2] = [0x00, 0x17];

/// A datagram's payload and what it is framed with. The order of attributes in a Data indication is the server's choice.
fn unframe(bytes: &[u8], payload_bytes: usize) -> Option<(Arriving, &[u8])> {
    // A payload may begin like one.
    if bytes.len() > payload_bytes && bytes.starts_with(&DATA_INDICATION) {
        let message = Message::parse(bytes).ok()?;
        let peer = message.find_xor_addr(attr::XOR_PEER_ADDRESS)?;
        let payload = message.find(attr::DATA)?;
        let arriving = Arriving::DataIndication(peer.to_socket_addr());
        return (payload.len() == payload_bytes).then_some((arriving, payload));
    }
    let (prefix, payload) = bytes.split_at_checked(bytes.len().checked_sub(payload_bytes)?)?;
    Some((Arriving::prefix(prefix)?, payload))
}

impl<'a> Run<'a> {
    fn new(flows: &[Flow], shape: &'a Shape) -> io::Result<Self> {
        let whole = shape.payload_bytes + flows.iter().map(|f| f.prefix.len()).max().unwrap_or(0);
        if shape.payload_bytes < LEAST_PAYLOAD_BYTES || whole > DATAGRAM_BYTES {
            return Err(io::Error::other("the payload does not fit"));
        }
        let state = |flow: &Flow| match flow.to {
            SocketAddr::V4(to) => Ok(FlowState {
                flow: flow.clone(),
                to,
                sent: 0,
                youngest: None,
                seen: Vec::new(),
            }),
            SocketAddr::V6(_) => Err(io::Error::other("flows are IPv4")),
        };
        let answers: HashSet<usize> = flows.iter().filter_map(|flow| flow.answered_by).collect();
        Ok(Self {
            initiators: (0..flows.len()).filter(|n| !answers.contains(n)).collect(),
            answers: Vec::new(),
            flows: flows.iter().map(state).collect::<io::Result<_>>()?,
            template: (0..shape.payload_bytes).map(|i| (i * 7) as u8).collect(),
            shape,
            started: Instant::now(),
            sent: 0,
            came: 0,
            next_flow: 0,
            latencies_ns: Vec::with_capacity(4 << 20),
            duplicated: 0,
            reordered: 0,
            misdelivered: 0,
            corrupt: 0,
        })
    }

    /// A burst on the next flow.
    fn send(&mut self, clients: &mut Clients, burst: usize, now: Instant) {
        let at_ns = now.duration_since(self.started).as_nanos() as u64;
        let index = self.initiators[self.next_flow];
        self.next_flow = (self.next_flow + 1) % self.initiators.len();
        for _ in 0..burst {
            self.send_on(clients, index, at_ns);
        }
    }

    fn send_on(&mut self, clients: &mut Clients, index: usize, at_ns: u64) {
        let state = &mut self.flows[index];
        let template = &mut self.template;
        let end = template.len();
        template[..8].copy_from_slice(&at_ns.to_le_bytes());
        template[end - 16..end - 12].copy_from_slice(&(index as u32).to_le_bytes());
        template[end - 12..end - 8].copy_from_slice(&state.sent.to_le_bytes());
        let sum = checksum(&template[..end - 8]);
        template[end - 8..].copy_from_slice(&sum.to_le_bytes());
        clients.stage(state.flow.from, state.to, |bytes| {
            let prefix = &state.flow.prefix;
            bytes[..prefix.len()].copy_from_slice(prefix);
            bytes[prefix.len()..prefix.len() + end].copy_from_slice(template);
            prefix.len() + end
        });
        state.sent += 1;
        self.sent += 1;
    }

    /// Counts a datagram that nobody sent so, and shows the first one.
    #[cold]
    fn note_corrupt(&mut self, arrived: &Arrived<'_>) {
        if self.corrupt == 0 {
            let head = &arrived.bytes[..arrived.bytes.len().min(32)];
            eprintln!(
                "changed: {} bytes from {} to {:?}, beginning with {head:02x?}",
                arrived.bytes.len(),
                arrived.from,
                arrived.at
            );
        }
        self.corrupt += 1;
    }

    fn check(&mut self, arrived: Arrived<'_>, now: Instant) {
        let payload_bytes = self.shape.payload_bytes;
        let Some((arriving, payload)) = unframe(arrived.bytes, payload_bytes) else {
            self.note_corrupt(&arrived);
            return;
        };
        let (content, sum) = payload.split_at(payload_bytes - 8);
        let index = u32::from_le_bytes(number(content, payload_bytes - 16)) as usize;
        let sequence = u32::from_le_bytes(number(content, payload_bytes - 12));
        if checksum(content).to_le_bytes() != *sum || index >= self.flows.len() {
            self.note_corrupt(&arrived);
            return;
        }
        let state = &mut self.flows[index];
        let flow = &state.flow;
        if arrived.at != flow.arrives_at
            || arrived.from != flow.arrives_from
            || arriving != flow.arriving
        {
            self.misdelivered += 1;
            return;
        }
        let (word, bit) = (sequence as usize / 64, 1 << (sequence % 64));
        if state.seen.len() <= word {
            state.seen.resize(word + 1, 0);
        }
        if state.seen[word] & bit != 0 {
            self.duplicated += 1;
            return;
        }
        state.seen[word] |= bit;
        if state.youngest.is_some_and(|youngest| sequence < youngest) {
            self.reordered += 1;
        } else {
            state.youngest = Some(sequence);
        }
        self.came += 1;
        let sent_at_ns = u64::from_le_bytes(number(content, 0));
        if let Some(flow) = state.flow.answered_by {
            self.answers.push(Answer { flow, sent_at_ns });
            return;
        }
        let sent_at = Duration::from_nanos(sent_at_ns);
        let latency = now.duration_since(self.started).saturating_sub(sent_at);
        if self.latencies_ns.len() < self.latencies_ns.capacity() {
            self.latencies_ns
                .push(latency.as_nanos().min(u32::MAX.into()) as u32);
        }
    }

    fn receive(&mut self, clients: &mut Clients) -> usize {
        let now = Instant::now();
        let came = clients.receive(|arrived| self.check(arrived, now));
        let mut answers = std::mem::take(&mut self.answers);
        for answer in answers.drain(..) {
            self.send_on(clients, answer.flow, answer.sent_at_ns);
        }
        self.answers = answers;
        clients.flush();
        came
    }
}

fn waited(server: &Running) -> io::Result<Duration> {
    Ok(server.process.waited_for_core()? + we_waited_for_core()?)
}

/// Loads a server and measures it.
///
/// # Errors
///
/// When the server has ended, the payload does not fit, or the kernel has no trains and the load wants them.
pub fn run(
    clients: &mut Clients,
    server: &Running,
    load: Load,
    shape: &Shape,
) -> io::Result<Outcome> {
    while clients.receive(|_| {}) > 0 {}
    clients.set_trains(load.pattern == Pattern::Train)?;
    let outcome = measure(clients, server, load, shape);
    clients.set_trains(false)?;
    outcome
}

fn measure(
    clients: &mut Clients,
    server: &Running,
    load: Load,
    shape: &Shape,
) -> io::Result<Outcome> {
    clients.refused = 0;
    let mut run = Run::new(&server.flows, shape)?;
    let measure_from = run.started + shape.warm_up;
    let until = measure_from + shape.measured;
    let mut at_start = None;
    // Of the datagrams of a flow that is answered, every other one is an answer.
    let per_message = run.flows.len() / run.initiators.len();
    let mut messages: u64 = 0;
    let mut written_off = 0;
    let mut last_progress = run.started;
    loop {
        let now = Instant::now();
        if at_start.is_none() && now >= measure_from {
            run.latencies_ns.clear();
            at_start = Some((server.process.cpu_time()?, waited(server)?, run.came, now));
        }
        if now >= until {
            break;
        }
        let due = match load.per_second {
            Some(rate) => {
                let elapsed = now.duration_since(run.started).as_secs_f64();
                ((elapsed * rate as f64) as u64 / per_message as u64).saturating_sub(messages)
            }
            None => WINDOW.saturating_sub(run.sent - run.came - written_off),
        };
        // Bursts leave together on all flows; single datagrams one by one, or in whole batches
        // when the window opens.
        let burst = load.pattern.burst();
        let together = if burst > 1 {
            burst * run.initiators.len()
        } else {
            1
        };
        let least = if load.per_second.is_none() {
            together.max(BATCH / 2)
        } else {
            together
        };
        if due >= least as u64 {
            let datagrams = (due as usize).min(together.max(BATCH)) / burst;
            for _ in 0..datagrams {
                run.send(clients, burst, now);
            }
            messages += (datagrams * burst) as u64;
            clients.flush();
        }
        if run.receive(clients) > 0 {
            last_progress = now;
        } else if now.duration_since(last_progress) > Duration::from_millis(20) {
            // What has not come by now is lost; the window must not shrink for it.
            written_off = run.sent - run.came;
            last_progress = now;
        }
    }
    let (cpu, waited_until, came) = (server.process.cpu_time()?, waited(server)?, run.came);
    let elapsed_until = Instant::now();
    let mut latencies = std::mem::take(&mut run.latencies_ns);
    let mut quiet_since = Instant::now();
    while run.came < run.sent && quiet_since.elapsed() < Duration::from_millis(200) {
        if run.receive(clients) > 0 {
            quiet_since = Instant::now();
        }
    }
    let (cpu_before, waited_before, came_before, from) =
        at_start.ok_or_else(|| io::Error::other("nothing was measured"))?;
    let mut percentile = |part: f64| {
        let at = (latencies.len() as f64 * part) as usize;
        if latencies.is_empty() {
            return Duration::ZERO;
        }
        let at = at.min(latencies.len() - 1);
        Duration::from_nanos((*latencies.select_nth_unstable(at).1).into())
    };
    Ok(Outcome {
        relayed: came - came_before,
        server_cpu: cpu - cpu_before,
        waited: waited_until.saturating_sub(waited_before),
        elapsed: elapsed_until - from,
        median_latency: percentile(0.5),
        p99_latency: percentile(0.99),
        p999_latency: percentile(0.999),
        lost: run.sent.saturating_sub(run.came + clients.refused),
        duplicated: run.duplicated,
        reordered: run.reordered,
        misdelivered: run.misdelivered,
        corrupt: run.corrupt,
    })
}
