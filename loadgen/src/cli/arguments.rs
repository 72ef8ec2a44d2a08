//! What may be typed on the command line. Checks nothing that clap does not check.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::profile::Profile;
use crate::protocol::{Protocol, TurnFraming, TurnMode};

const EXIT_CODES: &str = "\
Exit codes: 0 valid and all expectations met; 98 INVALID, the generator was too slow to measure anything (or no session \
could be set up); 99 an expectation failed; 78 a bad option or a limit of this host; 70 an internal failure.

Metrics of --expect: p50 p90 p95 p99 p999 p9999 max mean of the latency from the intended send time, and the same with \
uncorrected_ (from the real send time), lag_ (the generator's own), host_, join_ and meet_ (setting up) in front; \
loss duplicated corrupted misdelivered reordered refused failed_sessions sessions sent received missed, as a count or in %.";

/// Thousands of real sessions on an open-loop schedule, with honest latency. Without options it hosts a server itself.
#[derive(Parser, Debug)]
#[command(name = "waypost-loadgen", version, after_help = EXIT_CODES, args_conflicts_with_subcommands = true)]
pub struct Arguments {
    /// What to do with reports, in place of a load.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Server to load; without it this process hosts one on 127.0.0.1. Load only servers that are yours.
    #[arg(long, value_name = "HOST:PORT")]
    pub target: Option<String>,
    /// Protocol of the sessions
    #[arg(long, value_enum, default_value_t = Protocol::Native)]
    pub protocol: Protocol,
    /// With `--protocol turn`: who is at the other end
    #[arg(long, value_enum, default_value_t = TurnMode::Pairs)]
    pub turn_mode: TurnMode,
    /// With `--protocol turn`: how clients wrap their data
    #[arg(long, value_enum, default_value_t = TurnFraming::Channel)]
    pub turn_framing: TurnFraming,
    /// With `--protocol noray`: where players show their addresses [default: port 8809 of --target]
    #[arg(long, value_name = "HOST:PORT")]
    pub noray_registrar: Option<String>,
    /// Sessions at a time
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub sessions: u32,
    /// A game's traffic; --members, --topology, --hz, --size and --host-size change parts of it
    #[arg(long, value_enum)]
    pub profile: Option<Profile>,
    /// Members of each session, 2 to 255 [default: 2]
    #[arg(long, value_name = "M")]
    pub members: Option<u8>,
    /// Who sends to whom [default: mesh; star where only the host knows the others]
    #[arg(long, value_enum)]
    pub topology: Option<Topology>,
    /// Datagrams per second, all sessions together [default: 20 for each pair and direction, at most 20000]
    #[arg(long, value_name = "PPS")]
    pub rate: Option<u64>,
    /// Datagrams per second from each member to each that it sends to, in place of --rate
    #[arg(long, value_name = "HZ", conflicts_with = "rate")]
    pub hz: Option<u32>,
    /// Bytes of each datagram's payload, 40 to 1200 (native: 1196) [default: 200]
    #[arg(long, value_name = "BYTES")]
    pub size: Option<usize>,
    /// The same of those that the host sends [default: as --size]
    #[arg(long, value_name = "BYTES")]
    pub host_size: Option<usize>,
    /// How datagrams are spread over time
    #[arg(long, value_enum, default_value_t = Arrivals::Constant)]
    pub arrivals: Arrivals,
    /// Begins at this rate; it changes evenly to --rate until the end
    #[arg(long, value_name = "PPS")]
    pub ramp_from: Option<u64>,
    /// Seconds that are measured [default: 5; 2 for each rate of --find-max]
    #[arg(long, value_name = "SECS")]
    pub duration: Option<f64>,
    /// Seconds of load before that
    #[arg(long, value_name = "SECS", default_value_t = 1.0)]
    pub warm_up: f64,
    /// Sessions closed and made anew, per second
    #[arg(long, value_name = "PER_SEC", default_value_t = 0.0)]
    pub churn: f64,
    /// Sessions asked for per second, whatever became of those before [default: 64 at a time and thread]
    #[arg(long, value_name = "PER_SEC")]
    pub setup_rate: Option<f64>,
    /// Only sets sessions up, all at once or at --setup-rate, and sends no data
    #[arg(long, value_enum)]
    pub storm: Option<Storm>,
    /// First requests of strangers who never prove their address, per second, beside the load
    #[arg(long, value_name = "PPS", default_value_t = 0)]
    pub flood: u64,
    /// Generator threads [default: half of the cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// How the generator (and a server that it hosts) sends and receives
    #[arg(long, value_enum, default_value_t = IoChoice::Auto)]
    pub io: IoChoice,
    /// Address to send from, in place of one of 127.0.0.0/8 for each member; repeatable
    #[arg(long, value_name = "IP")]
    pub source: Vec<IpAddr>,
    /// Credential: TURN's user, or `expiry:user` for servers that let only those host
    #[arg(long, value_name = "NAME:PASSWORD")]
    pub user: Option<String>,
    /// Where to write what.
    #[command(flatten)]
    pub files: Files,
    /// Looks for the highest rate at which the conditions hold (without any: loss<=0.1% and p99<=5ms), three times
    #[arg(long)]
    pub find_max: bool,
    /// Condition that the run must meet, as in 'p99<500us' or 'loss<0.01%'; repeatable
    #[arg(long, value_name = "CONDITION")]
    pub expect: Vec<String>,
    /// p99 of the generator's own lag beyond which a run is INVALID
    #[arg(long, value_name = "TIME", default_value = "1ms")]
    pub lag_limit: String,
    /// Repeats the choices of an earlier run [default: random]
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,
}

/// What to do with reports.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Holds a report against an earlier one
    Compare(CompareArguments),
    /// Makes one report of several generators that loaded one server at the same time
    Merge(MergeArguments),
}

/// Two reports.
#[derive(Args, Debug)]
pub struct CompareArguments {
    /// Report of --json, before a change
    pub before: PathBuf,
    /// Report of --json, after it
    pub after: PathBuf,
    /// Exit with 99 when a latency is certainly more than this worse, percent
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0)]
    pub tolerance: f64,
}

/// Reports to merge.
#[derive(Args, Debug)]
pub struct MergeArguments {
    /// Reports of --json
    #[arg(required = true)]
    pub reports: Vec<PathBuf>,
    /// Where to write what.
    #[command(flatten)]
    pub files: Files,
}

/// Files that a report is written to, beside the text on standard output.
#[derive(Args, Clone, Debug, Default)]
pub struct Files {
    /// Writes the report as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Writes the report as a page with plots, which needs nothing else
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Writes the run over time as a table
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Writes the latency's percentiles for an HdrHistogram plotter
    #[arg(long, value_name = "FILE")]
    pub hgrm: Option<PathBuf>,
    /// Writes the run over time as an HdrHistogram interval log
    #[arg(long, value_name = "FILE")]
    pub hlog: Option<PathBuf>,
}

/// Which packet backend to use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum IoChoice {
    /// io_uring where the host allows it.
    Auto,
    /// io_uring.
    Uring,
    /// recvmmsg and sendmmsg.
    Mmsg,
}

impl IoChoice {
    /// As the server's `--io` has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Mmsg => "mmsg",
        }
    }
}

/// Who sends to whom in a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Topology {
    /// Every member to every other.
    Mesh,
    /// The host to everybody, and everybody to the host.
    Star,
}

/// How datagrams are spread over time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Arrivals {
    /// Evenly.
    Constant,
    /// As a Poisson process: independently of each other.
    Poisson,
}

/// A load of sessions without data.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Storm {
    /// Sessions are set up.
    Join,
    /// And their members find direct paths to each other.
    Punch,
}
