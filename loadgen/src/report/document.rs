//! What a run came to, as a document that can be written, read and merged. The figures are for readers; all of them follow from the
//! counts and the histograms that stand beside them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::environment::Environment;
use crate::expect::Judgement;
use crate::self_host::ServerReport;
use crate::series::Series;
use crate::tally::{FloodTally, Tally};
use crate::times::Times;

/// Version of the JSON: it changes when a field changes its name or meaning or goes away.
pub const VERSION: u32 = 1;

/// A run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Document {
    /// [`VERSION`].
    pub version: u32,
    /// Whether the generator kept its schedule.
    pub verdict: Verdict,
    /// Why not.
    pub reason: Option<String>,
    /// The exit code of the run.
    pub exit_code: u8,
    /// What was to be met.
    pub expectations: Vec<Judgement>,
    /// Repeats the choices.
    pub seed: u64,
    /// Generators whose figures these are.
    pub processes: u32,
    /// What was asked for.
    pub load: Load,
    /// What became of sessions.
    pub sessions: Sessions,
    /// What became of datagrams.
    pub datagrams: Datagrams,
    /// From the intended send time to the arrival.
    pub latency_ns: TimeFigures,
    /// From the real send time to the arrival.
    pub uncorrected_latency_ns: TimeFigures,
    /// First requests of strangers.
    pub flood: FloodTally,
    /// How the generator did.
    pub generator: Generator,
    /// The run over time.
    pub series: Series,
    /// All times.
    pub histograms: Histograms,
    /// The server, if the generator hosted it.
    pub server: Option<ServerReport>,
    /// Datagrams that sockets of the host had no room for meanwhile, those of other processes included.
    pub receive_buffer_errors: u64,
    /// What it ran on.
    pub environment: Environment,
}

/// Whether times of a run mean anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// They do.
    Valid,
    /// The generator was too slow, or nothing was measured.
    Invalid,
}

/// What was asked for.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Load {
    /// The server's address.
    pub target: String,
    /// As `--protocol` has it.
    pub protocol: String,
    /// At a time.
    pub sessions: u32,
    /// Of each session.
    pub members: u8,
    /// `mesh` or `star`.
    pub topology: String,
    /// Datagrams, all together.
    pub rate_per_sec: u64,
    /// `constant` or `poisson`.
    pub arrivals: String,
    /// The rate at the start, if it is another.
    pub ramp_from_per_sec: Option<u64>,
    /// Of payloads.
    pub size_bytes: usize,
    /// Of the host's payloads.
    pub host_size_bytes: usize,
    /// Load before the measured time.
    pub warm_up_secs: f64,
    /// The measured time.
    pub duration_secs: f64,
    /// Sessions replaced.
    pub churn_per_sec: f64,
    /// Sessions asked for; none: so many at a time.
    pub setup_per_sec: Option<f64>,
    /// `join` or `punch`.
    pub storm: Option<String>,
    /// First requests of strangers.
    pub flood_per_sec: u64,
    /// Generator threads, all processes together.
    pub threads: usize,
    /// `uring` or `mmsg`.
    pub io: String,
    /// What the server relays of one member, packets and bytes per second; 0: it did not say.
    pub member_limits: (u32, u32),
}

/// What became of sessions.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sessions {
    /// Set up.
    pub set_up: u64,
    /// Not set up, broken or not closed.
    pub failed: u64,
    /// Closed to be replaced.
    pub replaced: u64,
    /// From the first request until all first sessions had been tried.
    pub set_up_secs: f64,
    /// Why sessions failed, and how often.
    pub reasons: BTreeMap<String, u64>,
    /// From asking for a session to having it.
    pub host_ns: TimeFigures,
    /// From asking for a seat to having it.
    pub join_ns: TimeFigures,
    /// From asking for a session until all its members know each other.
    pub meet_ns: TimeFigures,
}

/// What became of datagrams.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Datagrams {
    /// Sent within the measured time.
    pub sent: u64,
    /// Of these, arrived.
    pub received: u64,
    /// Of these, not arrived.
    pub lost: u64,
    /// Arrived after one that was sent later.
    pub reordered: u64,
    /// Arrived again.
    pub duplicated: u64,
    /// Not as they were sent.
    pub corrupted: u64,
    /// For somebody else.
    pub misdelivered: u64,
    /// From nobody that the receiver knew.
    pub refused: u64,
}

/// How the generator did.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Generator {
    /// From the intended send time to the real one.
    pub lag_ns: TimeFigures,
    /// p99 of the lag beyond which a run is invalid.
    pub lag_limit_ns: u64,
    /// Slots given up because they were too late.
    pub slots_missed: u64,
    /// Slots whose session was not open.
    pub slots_idle: u64,
    /// Datagrams that the kernel did not take.
    pub kernel_refused: u64,
    /// CPU time of the threads.
    pub cpu_ns: u64,
    /// How long they could have run but had no core.
    pub waited_ns: u64,
    /// The former, as a share of all they had.
    pub busy_percent: f64,
    /// The latter.
    pub waited_percent: f64,
}

/// All times of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Histograms {
    /// From the intended send time to the arrival.
    pub latency: Times,
    /// From the real send time to the arrival.
    pub uncorrected: Times,
    /// From the intended send time to the real one.
    pub lag: Times,
    /// From asking for a session to having it.
    pub host: Times,
    /// From asking for a seat to having it.
    pub join: Times,
    /// From asking for a session until all its members know each other.
    pub meet: Times,
}

/// Figures of a histogram, nanoseconds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct TimeFigures {
    /// How many there are.
    pub count: u64,
    /// The shortest.
    pub min: u64,
    /// The mean.
    pub mean: f64,
    /// The median.
    pub p50: u64,
    /// A quantile.
    pub p90: u64,
    /// A quantile.
    pub p99: u64,
    /// A quantile.
    pub p999: u64,
    /// A quantile.
    pub p9999: u64,
    /// The longest.
    pub max: u64,
}

impl From<&Times> for TimeFigures {
    fn from(times: &Times) -> Self {
        let times = times.histogram();
        Self {
            count: times.len(),
            min: if times.is_empty() { 0 } else { times.min() },
            mean: times.mean(),
            p50: times.value_at_quantile(0.5),
            p90: times.value_at_quantile(0.9),
            p99: times.value_at_quantile(0.99),
            p999: times.value_at_quantile(0.999),
            p9999: times.value_at_quantile(0.9999),
            max: times.max(),
        }
    }
}

impl From<&Tally> for Sessions {
    fn from(tally: &Tally) -> Self {
        Self {
            set_up: tally.opened,
            failed: tally.failed,
            replaced: tally.replaced,
            set_up_secs: tally.filling_ns as f64 / 1e9,
            reasons: tally.reasons.clone(),
            host_ns: (&tally.host).into(),
            join_ns: (&tally.join).into(),
            meet_ns: (&tally.meet).into(),
        }
    }
}

impl From<&Tally> for Datagrams {
    fn from(tally: &Tally) -> Self {
        Self {
            sent: tally.sent,
            received: tally.received,
            lost: tally.lost(),
            reordered: tally.reordered,
            duplicated: tally.duplicated,
            corrupted: tally.corrupted,
            misdelivered: tally.misdelivered,
            refused: tally.refused,
        }
    }
}

impl From<&Tally> for Histograms {
    fn from(tally: &Tally) -> Self {
        Self {
            latency: tally.latency.clone(),
            uncorrected: tally.uncorrected.clone(),
            lag: tally.lag.clone(),
            host: tally.host.clone(),
            join: tally.join.clone(),
            meet: tally.meet.clone(),
        }
    }
}

impl Generator {
    /// What the threads of `load` counted.
    pub fn new(tally: &Tally, load: &Load, lag_limit_ns: u64) -> Self {
        Self {
            lag_ns: (&tally.lag).into(),
            lag_limit_ns,
            slots_missed: tally.missed,
            slots_idle: tally.idle,
            kernel_refused: tally.kernel_refused,
            cpu_ns: tally.cpu_ns,
            waited_ns: tally.waited_ns,
            busy_percent: percent_of_threads(load, tally.cpu_ns),
            waited_percent: percent_of_threads(load, tally.waited_ns),
        }
    }
}

/// A time that the generator's threads spent together, as a share of all they had.
fn percent_of_threads(load: &Load, ns: u64) -> f64 {
    let wall_secs = (load.warm_up_secs + load.duration_secs) * load.threads as f64;
    if wall_secs > 0.0 {
        ns as f64 / 1e7 / wall_secs
    } else {
        0.0
    }
}

impl Document {
    /// What was counted.
    pub fn tally(&self) -> Tally {
        let (sessions, datagrams) = (&self.sessions, &self.datagrams);
        let (generator, times) = (&self.generator, &self.histograms);
        Tally {
            sent: datagrams.sent,
            missed: generator.slots_missed,
            idle: generator.slots_idle,
            received: datagrams.received,
            reordered: datagrams.reordered,
            duplicated: datagrams.duplicated,
            corrupted: datagrams.corrupted,
            misdelivered: datagrams.misdelivered,
            refused: datagrams.refused,
            opened: sessions.set_up,
            replaced: sessions.replaced,
            failed: sessions.failed,
            reasons: sessions.reasons.clone(),
            latency: times.latency.clone(),
            uncorrected: times.uncorrected.clone(),
            lag: times.lag.clone(),
            host: times.host.clone(),
            join: times.join.clone(),
            meet: times.meet.clone(),
            cpu_ns: generator.cpu_ns,
            waited_ns: generator.waited_ns,
            kernel_refused: generator.kernel_refused,
            filling_ns: (sessions.set_up_secs * 1e9) as u64,
            flood: self.flood,
            series: self.series.clone(),
            limits: self.load.member_limits,
        }
    }
}
