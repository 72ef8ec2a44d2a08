//! The command line: what may be typed ([`Arguments`]) and what it comes to, checked ([`Plan`]). Opens nothing.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum};
use waypost_proto::agent::Credential;

use crate::expect::{Expectation, parse_duration};
use crate::failure::Failure;
use crate::payload;
use crate::profile::Profile;
use crate::protocol::{Protocol, TurnFraming, TurnMode};
use crate::worker::Sizes;

/// What `--find-max` holds rates to if nobody says otherwise.
const MAX_BOUNDS: [&str; 2] = ["loss<=0.1%", "p99<=5ms"];
/// Bytes of a payload if nobody says otherwise.
const SIZE_BY_DEFAULT: usize = 200;
/// Datagrams per second that a flow carries if nobody says otherwise: a game's usual rate.
const FLOW_RATE: u64 = 20;
/// What all flows together carry at most if nobody says otherwise: two cores carry that with room to spare, server included.
const RATE_MAX_BY_DEFAULT: u64 = 20_000;
/// Most members that one run may have: addresses 127.1.0.0 to 127.254.255.255 are enough for them.
const MEMBERS_TOTAL_MAX: u64 = 2_000_000;

const EXIT_CODES: &str = "\
Exit codes: 0 valid and all expectations met; 98 INVALID, the generator was too slow to measure anything (or no session \
could be set up); 99 an expectation failed; 78 a bad option or a limit of this host; 70 an internal failure.

Metrics of --expect: p50 p90 p95 p99 p999 p9999 max mean of the latency from the intended send time, and the same with \
uncorrected_ (from the real send time), lag_ (the generator's own), host_, join_ and meet_ (setting up) in front; \
loss duplicated corrupted misdelivered reordered refused failed_sessions sessions sent received missed, as a count or in %.";

/// Thousands of real sessions on an open-loop schedule, with honest latency. Without options it hosts a server itself.
#[derive(Parser, Debug)]
#[command(name = "waypost-loadgen", version, after_help = EXIT_CODES, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Server to load; without it this process hosts one on 127.0.0.1. Load only servers that are yours.
    #[arg(long, value_name = "HOST:PORT")]
    target: Option<String>,
    /// Protocol of the sessions
    #[arg(long, value_enum, default_value_t = Protocol::Native)]
    protocol: Protocol,
    /// With `--protocol turn`: who is at the other end
    #[arg(long, value_enum, default_value_t = TurnMode::Pairs)]
    turn_mode: TurnMode,
    /// With `--protocol turn`: how clients wrap their data
    #[arg(long, value_enum, default_value_t = TurnFraming::Channel)]
    turn_framing: TurnFraming,
    /// With `--protocol noray`: where players show their addresses [default: port 8809 of --target]
    #[arg(long, value_name = "HOST:PORT")]
    noray_registrar: Option<String>,
    /// Sessions at a time
    #[arg(long, value_name = "N", default_value_t = 1000)]
    sessions: u32,
    /// A game's traffic; --members, --topology, --hz, --size and --host-size change parts of it
    #[arg(long, value_enum)]
    profile: Option<Profile>,
    /// Members of each session, 2 to 255 [default: 2]
    #[arg(long, value_name = "M")]
    members: Option<u8>,
    /// Who sends to whom [default: mesh; star where only the host knows the others]
    #[arg(long, value_enum)]
    topology: Option<Topology>,
    /// Datagrams per second, all sessions together [default: 20 for each pair and direction, at most 20000]
    #[arg(long, value_name = "PPS")]
    rate: Option<u64>,
    /// Datagrams per second from each member to each that it sends to, in place of --rate
    #[arg(long, value_name = "HZ", conflicts_with = "rate")]
    hz: Option<u32>,
    /// Bytes of each datagram's payload, 40 to 1200 (native: 1196) [default: 200]
    #[arg(long, value_name = "BYTES")]
    size: Option<usize>,
    /// The same of those that the host sends [default: as --size]
    #[arg(long, value_name = "BYTES")]
    host_size: Option<usize>,
    /// How datagrams are spread over time
    #[arg(long, value_enum, default_value_t = Arrivals::Constant)]
    arrivals: Arrivals,
    /// Begins at this rate; it changes evenly to --rate until the end
    #[arg(long, value_name = "PPS")]
    ramp_from: Option<u64>,
    /// Seconds that are measured [default: 5; 2 for each rate of --find-max]
    #[arg(long, value_name = "SECS")]
    duration: Option<f64>,
    /// Seconds of load before that
    #[arg(long, value_name = "SECS", default_value_t = 1.0)]
    warm_up: f64,
    /// Sessions closed and made anew, per second
    #[arg(long, value_name = "PER_SEC", default_value_t = 0.0)]
    churn: f64,
    /// Sessions asked for per second, whatever became of those before [default: 64 at a time and thread]
    #[arg(long, value_name = "PER_SEC")]
    setup_rate: Option<f64>,
    /// Only sets sessions up, all at once or at --setup-rate, and sends no data
    #[arg(long, value_enum)]
    storm: Option<Storm>,
    /// First requests of strangers who never prove their address, per second, beside the load
    #[arg(long, value_name = "PPS", default_value_t = 0)]
    flood: u64,
    /// Generator threads [default: half of the cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// How the generator (and a server that it hosts) sends and receives
    #[arg(long, value_enum, default_value_t = IoChoice::Auto)]
    io: IoChoice,
    /// Address to send from, in place of one of 127.0.0.0/8 for each member; repeatable
    #[arg(long, value_name = "IP")]
    source: Vec<IpAddr>,
    /// Credential: TURN's user, or `expiry:user` for servers that let only those host
    #[arg(long, value_name = "NAME:PASSWORD")]
    user: Option<String>,
    #[command(flatten)]
    files: Files,
    /// Looks for the highest rate at which the conditions hold (without any: loss<=0.1% and p99<=5ms), three times
    #[arg(long)]
    find_max: bool,
    /// Condition that the run must meet, as in 'p99<500us' or 'loss<0.01%'; repeatable
    #[arg(long, value_name = "CONDITION")]
    expect: Vec<String>,
    /// p99 of the generator's own lag beyond which a run is INVALID
    #[arg(long, value_name = "TIME", default_value = "1ms")]
    lag_limit: String,
    /// Repeats the choices of an earlier run [default: random]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
}

/// What to do with reports.
#[derive(Subcommand, Debug)]
enum Command {
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

/// A load that can be run.
#[derive(Clone)]
pub struct Plan {
    /// The server; `None`: this process hosts it.
    pub target: Option<SocketAddr>,
    /// Noray's registrar, if it was named.
    pub registrar: Option<SocketAddr>,
    /// What sessions speak.
    pub protocol: Protocol,
    /// For TURN.
    pub turn_mode: TurnMode,
    /// For TURN.
    pub turn_framing: TurnFraming,
    /// Sessions at a time, at least 1.
    pub sessions: u32,
    /// Members of each, at least 2.
    pub members: u8,
    /// Who sends to whom.
    pub topology: Topology,
    /// Where members send from; empty: the generator chooses.
    pub sources: Vec<IpAddr>,
    /// Datagrams per second, all together.
    pub rate: u64,
    /// How they are spread over time.
    pub arrivals: Arrivals,
    /// The rate at the start, if it is another.
    pub ramp_from: Option<u64>,
    /// Bytes of payloads.
    pub sizes: Sizes,
    /// Sessions asked for per second; `None`: so many at a time.
    pub setup_rate: Option<f64>,
    /// Only sessions, no data.
    pub storm: Option<Storm>,
    /// First requests of strangers per second.
    pub flood: u64,
    /// What is measured.
    pub duration: Duration,
    /// What comes before.
    pub warm_up: Duration,
    /// Sessions replaced per second.
    pub churn: f64,
    /// Generator threads, at least 1, at most one per session.
    pub threads: usize,
    /// Packet backend.
    pub io: IoChoice,
    /// For servers that ask for one.
    pub credential: Option<Credential>,
    /// Where to write the report.
    pub files: Files,
    /// Whether to look for the highest rate.
    pub find_max: bool,
    /// What must be met.
    pub expectations: Vec<Expectation>,
    /// p99 of the own lag beyond which nothing is valid.
    pub lag_limit: Duration,
    /// Where random choices come from.
    pub seed: u64,
    /// The command line, without secrets.
    pub command_line: Vec<String>,
}

impl Plan {
    /// Flows of all sessions.
    pub fn flows(&self) -> u64 {
        u64::from(self.sessions) * self.directions().len() as u64
    }

    /// Who sends to whom in one session, by number.
    pub fn directions(&self) -> Vec<(u8, u8)> {
        let members = self.members;
        let pairs = (0..members).flat_map(|from| (0..members).map(move |to| (from, to)));
        pairs
            .filter(|(from, to)| from != to)
            .filter(|(from, to)| self.topology == Topology::Mesh || *from == 0 || *to == 0)
            .collect()
    }
}

/// What the command line asks for.
pub enum Asked {
    /// To run a load.
    Run(Box<Plan>),
    /// To compare two reports.
    Compare(CompareArguments),
    /// To merge reports.
    Merge(MergeArguments),
    /// To print this.
    Print(String),
}

/// Reads the command line.
///
/// # Errors
/// [`Failure`] for an option that is unknown or a value that is out of range.
pub fn read(arguments: Vec<String>, cores: usize) -> Result<Asked, Failure> {
    let parsed = match Arguments::try_parse_from(&arguments) {
        Ok(parsed) => parsed,
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
            ) =>
        {
            return Ok(Asked::Print(error.to_string()));
        }
        Err(error) => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or("a bad option");
            return Err(Failure::configuration(
                first.trim_start_matches("error: "),
                "see --help",
            ));
        }
    };
    match parsed.command {
        Some(Command::Compare(files)) => Ok(Asked::Compare(files)),
        Some(Command::Merge(files)) => Ok(Asked::Merge(files)),
        None => plan(parsed, &arguments, cores).map(|plan| Asked::Run(Box::new(plan))),
    }
}

fn plan(given: Arguments, arguments: &[String], cores: usize) -> Result<Plan, Failure> {
    let traffic = given.profile.map(Profile::traffic);
    let members = given.members.or(traffic.map(|t| t.members)).unwrap_or(2);
    let topology = topology(&given, members)?;
    let sizes = sizes(&given)?;
    let target = given.target.as_deref();
    let target = target.map(|at| resolve("--target", at)).transpose()?;
    let registrar = given.noray_registrar.as_deref();
    let registrar = registrar
        .map(|at| resolve("--noray-registrar", at))
        .transpose()?;
    in_range("--sessions", given.sessions as f64, 1.0, 1e6)?;
    let members_max = given.protocol.members_max();
    in_range("--members", f64::from(members), 2.0, f64::from(members_max))?;
    let members_total = u64::from(given.sessions) * u64::from(members);
    if members_total > MEMBERS_TOTAL_MAX {
        return Err(Failure::configuration(
            format!("{members_total} members are too many for one generator"),
            "lower --sessions or --members",
        ));
    }
    let duration = given
        .duration
        .unwrap_or(if given.find_max { 2.0 } else { 5.0 });
    in_range("--duration", duration, 0.1, 86_400.0)?;
    in_range("--warm-up", given.warm_up, 0.0, 3_600.0)?;
    in_range("--churn", given.churn, 0.0, 1e6)?;
    in_range("--flood", given.flood as f64, 0.0, 1e7)?;
    for (option, rate) in [
        ("--rate", given.rate),
        ("--ramp-from", given.ramp_from),
        ("--hz", given.hz.map(u64::from)),
    ] {
        if let Some(rate) = rate {
            in_range(option, rate as f64, 1.0, 1e8)?;
        }
    }
    if let Some(rate) = given.setup_rate {
        in_range("--setup-rate", rate, 0.1, 1e6)?;
    }
    check_combinations(&given)?;
    if let Some(threads) = given.threads {
        in_range("--threads", threads as f64, 1.0, 128.0)?;
    }
    let bounds = MAX_BOUNDS.map(str::to_owned);
    let expected = match given.expect.as_slice() {
        [] if given.find_max => &bounds[..],
        expected => expected,
    };
    let expectations = expected
        .iter()
        .map(|text| {
            Expectation::parse(text)
                .map_err(|wrong| Failure::configuration(format!("--expect '{text}'"), wrong))
        })
        .collect::<Result<_, _>>()?;
    let lag_limit = parse_duration(&given.lag_limit)
        .map_err(|wrong| Failure::configuration("--lag-limit", wrong))?;
    let mut credential = given.user.as_deref().map(credential).transpose()?;
    if given.protocol == Protocol::Turn && target.is_none() {
        // The server that is hosted knows this one.
        credential.get_or_insert_with(|| Credential {
            username: "loadgen".to_owned(),
            password: "of-this-process".to_owned(),
        });
    }
    let threads = given.threads.unwrap_or((cores / 2).max(1));
    let mut plan = Plan {
        target,
        registrar,
        protocol: given.protocol,
        turn_mode: given.turn_mode,
        turn_framing: given.turn_framing,
        topology,
        sources: given.source,
        sessions: given.sessions,
        members,
        rate: 0,
        arrivals: given.arrivals,
        ramp_from: given.ramp_from,
        sizes,
        setup_rate: given.setup_rate,
        storm: given.storm,
        flood: given.flood,
        duration: Duration::from_secs_f64(duration),
        warm_up: Duration::from_secs_f64(given.warm_up),
        churn: given.churn,
        threads: threads.min(given.sessions as usize),
        io: given.io,
        credential,
        files: given.files,
        find_max: given.find_max,
        expectations,
        lag_limit,
        seed: match given.seed {
            Some(seed) => seed,
            None => random_seed()?,
        },
        command_line: without_secrets(arguments),
    };
    let hertz = given.hz.or(traffic.map(|traffic| traffic.hertz));
    plan.rate = match (plan.storm, given.rate, hertz) {
        (Some(_), ..) => 0,
        (None, Some(rate), _) => rate,
        (None, None, Some(hertz)) => plan.flows() * u64::from(hertz),
        (None, None, None) => (FLOW_RATE * plan.flows()).min(RATE_MAX_BY_DEFAULT),
    };
    if plan.storm.is_some() && plan.flood == 0 {
        (plan.warm_up, plan.duration) = (Duration::ZERO, Duration::ZERO);
    }
    Ok(plan)
}

/// The bytes of payloads; those of a profile are cut to what the protocol carries.
fn sizes(given: &Arguments) -> Result<Sizes, Failure> {
    let most = given.protocol.payload_max();
    for (option, size) in [("--size", given.size), ("--host-size", given.host_size)] {
        if let Some(size) = size {
            in_range(option, size as f64, payload::SIZE_MIN as f64, most as f64)?;
        }
    }
    let traffic = given.profile.map(Profile::traffic);
    let others = given.size.or(traffic.map(|traffic| traffic.size));
    let others = others.unwrap_or(SIZE_BY_DEFAULT);
    let host = given.host_size.or(given.size);
    let host = host.or(traffic.map(|traffic| traffic.host_size));
    Ok(Sizes {
        host: host.unwrap_or(others).min(most),
        others: others.min(most),
    })
}

fn check_combinations(given: &Arguments) -> Result<(), Failure> {
    let files = &given.files;
    let files_of_one_run = [&files.html, &files.csv, &files.hgrm];
    if given.find_max
        && (given.storm.is_some()
            || given.ramp_from.is_some()
            || files_of_one_run.iter().any(|file| file.is_some()))
    {
        return Err(Failure::configuration(
            "--find-max looks for a constant rate and writes only --json",
            "leave out --storm, --ramp-from, --html, --csv and --hgrm",
        ));
    }
    if given.storm.is_some() && (given.rate.is_some() || given.hz.is_some()) {
        return Err(Failure::configuration(
            "--storm sends no data",
            "leave out --rate and --hz, or --storm",
        ));
    }
    if given.storm == Some(Storm::Punch) && given.protocol == Protocol::Turn {
        return Err(Failure::configuration(
            "--storm punch: TURN introduces nobody",
            "use --storm join or another --protocol",
        ));
    }
    Ok(())
}

fn topology(given: &Arguments, members: u8) -> Result<Topology, Failure> {
    let plain_peers = given.protocol == Protocol::Turn && given.turn_mode == TurnMode::Peer;
    let is_star = plain_peers || !given.protocol.is_mesh();
    let of_profile = given.profile.map(|profile| profile.traffic().topology);
    match given.topology.or(of_profile) {
        Some(Topology::Mesh) if is_star && members > 2 => Err(Failure::configuration(
            "--topology mesh: here only the host knows the others",
            "use --topology star, or --turn-mode pairs for TURN",
        )),
        None if is_star => Ok(Topology::Star),
        None => Ok(Topology::Mesh),
        Some(topology) => Ok(topology),
    }
}

fn resolve(option: &str, target: &str) -> Result<SocketAddr, Failure> {
    let found = target.to_socket_addrs().map_err(|error| {
        Failure::configuration(
            format!("{option} {target}: {error}"),
            "write HOST:PORT, as in 127.0.0.1:3478",
        )
    })?;
    found
        .into_iter()
        .find(|address| {
            let ip = address.ip();
            !ip.is_unspecified() && !ip.is_multicast() && address.port() != 0
        })
        .ok_or_else(|| {
            Failure::configuration(
                format!("{option} {target} is no server's address"),
                "write the address and port that the server prints as `listening udp`",
            )
        })
}

fn credential(user: &str) -> Result<Credential, Failure> {
    // NAME holds a colon itself, and a password in base64 holds none.
    let (username, password) = user
        .rsplit_once(':')
        .filter(|(name, password)| !name.is_empty() && !password.is_empty())
        .ok_or_else(|| {
            Failure::configuration(
                "--user is not NAME:PASSWORD",
                "NAME is TURN's user, or `expiry:user` as the game's backend made it",
            )
        })?;
    Ok(Credential {
        username: username.to_owned(),
        password: password.to_owned(),
    })
}

fn in_range(option: &str, value: f64, least: f64, most: f64) -> Result<(), Failure> {
    if (least..=most).contains(&value) {
        Ok(())
    } else {
        Err(Failure::configuration(
            format!("{option} {value} is out of range"),
            format!("choose a number from {least} to {most}"),
        ))
    }
}

fn without_secrets(arguments: &[String]) -> Vec<String> {
    let mut shown = Vec::with_capacity(arguments.len());
    let mut secret = false;
    for argument in arguments.iter().skip(1) {
        shown.push(match argument.split_once('=') {
            _ if secret => "***".to_owned(),
            Some(("--user", _)) => "--user=***".to_owned(),
            _ => argument.clone(),
        });
        secret = argument == "--user";
    }
    shown
}

fn random_seed() -> Result<u64, Failure> {
    let seed = getrandom::u64().map_err(|error| {
        Failure::configuration(
            format!("the system has no random numbers: {error}"),
            "allow the getrandom system call",
        )
    })?;
    // Short enough to be typed again.
    Ok(seed >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(arguments: &[&str]) -> Result<Plan, Failure> {
        let mut all = vec!["waypost-loadgen".to_owned()];
        all.extend(arguments.iter().map(|&text| text.to_owned()));
        match read(all, 2)? {
            Asked::Run(plan) => Ok(*plan),
            _ => panic!("no run"),
        }
    }

    #[test]
    fn no_argument_is_a_useful_load() {
        let plan = asked(&[]).unwrap();
        assert_eq!(
            (plan.target, plan.sessions, plan.members, plan.threads),
            (None, 1000, 2, 1)
        );
        assert_eq!(plan.rate, 20_000);
    }

    #[test]
    fn the_default_rate_is_a_games_and_bounded() {
        assert_eq!(asked(&["--sessions", "10"]).unwrap().rate, 400);
        let plan = asked(&["--sessions", "10", "--members", "4"]).unwrap();
        assert_eq!((plan.flows(), plan.rate), (120, 2400));
        assert_eq!(asked(&["--sessions", "5000"]).unwrap().rate, 20_000);
    }

    #[test]
    fn every_option_and_profile_is_documented() {
        use clap::CommandFactory as _;
        let page = include_str!("../../docs/loadgen.md");
        let command = Arguments::command();
        let subcommands = command
            .get_subcommands()
            .flat_map(clap::Command::get_arguments);
        for argument in command.get_arguments().chain(subcommands) {
            if let Some(long) = argument.get_long() {
                assert!(page.contains(&format!("`--{long}")), "--{long}");
            }
        }
        for value in Profile::value_variants() {
            let value = value.to_possible_value().unwrap();
            assert!(page.contains(value.get_name()), "{}", value.get_name());
        }
    }

    #[test]
    fn profiles_are_games_and_their_parts_can_be_changed() {
        let plan = asked(&["--profile", "arena-128hz", "--sessions", "10"]).unwrap();
        assert_eq!((plan.members, plan.topology), (10, Topology::Star));
        assert_eq!(plan.rate, 10 * 18 * 128);
        assert_eq!((plan.sizes.host, plan.sizes.others), (1196, 80));
        let parts = ["--members", "3", "--host-size", "100", "--hz", "10"];
        let plan = asked(&[&["--profile", "arena-128hz"][..], &parts].concat()).unwrap();
        assert_eq!((plan.members, plan.rate), (3, 1000 * 4 * 10));
        assert_eq!((plan.sizes.host, plan.sizes.others), (100, 80));
        let turn = ["--profile", "arena-128hz", "--protocol", "turn"];
        assert_eq!(asked(&turn).unwrap().sizes.host, 1200);
        assert_eq!(asked(&["--size", "90"]).unwrap().sizes.host, 90);
    }

    #[test]
    fn a_storm_sends_no_data() {
        let plan = asked(&["--storm", "join"]).unwrap();
        assert_eq!((plan.rate, plan.duration), (0, Duration::ZERO));
        assert!(asked(&["--storm", "join", "--rate", "5"]).is_err());
        assert!(asked(&["--storm", "punch", "--protocol", "turn"]).is_err());
    }

    #[test]
    fn directions_follow_the_topology() {
        let directions = |arguments: &[&str]| asked(arguments).unwrap().directions();
        let star = ["--members", "3", "--topology", "star"];
        assert_eq!(directions(&star), [(0, 1), (0, 2), (1, 0), (2, 0)]);
        assert_eq!(directions(&star[..2]).len(), 6);
        let peers = [&star[..2], &["--protocol", "turn", "--turn-mode", "peer"]].concat();
        assert_eq!(directions(&peers).len(), 4);
    }

    #[test]
    fn bad_values_end_in_one_line_that_names_the_remedy() {
        for (arguments, hint) in [
            (&["--sessions", "0"][..], "from 1 to"),
            (&["--members", "1"], "from 2 to 255"),
            (&["--size", "20"], "from 40 to 1196"),
            (&["--size", "5000"], "from 40 to 1196"),
            (&["--duration", "NaN"], "from 0.1"),
            (&["--rate", "0"], "from 1 to"),
            (&["--threads", "0"], "from 1 to"),
            (&["--protocol", "quic"], "see --help"),
            (&["--protocol", "turn", "--size", "1201"], "from 40 to 1200"),
            (
                &[
                    "--protocol",
                    "turn",
                    "--turn-mode",
                    "peer",
                    "--members",
                    "3",
                    "--topology",
                    "mesh",
                ],
                "only the host knows",
            ),
            (&["--target", "127.0.0.1"], "HOST:PORT"),
            (&["--target", "0.0.0.0:3478"], "listening udp"),
            (&["--user", "alice"], "expiry:user"),
            (&["--expect", "p99"], "operator"),
            (&["--lag-limit", "1"], "ns, us, ms or s"),
            (&["--io", "magic"], "--help"),
            (&["--nonsense"], "--help"),
            (&["--find-max", "--html", "a"], "only --json"),
            (&["compare", "one"], "--help"),
            (&["merge"], "--help"),
        ] {
            let failure = asked(arguments).err().expect("refused");
            let line = failure.to_string();
            assert!(line.contains(hint), "{arguments:?}: {line}");
            assert_eq!((line.lines().count(), failure.exit_code), (1, 78));
        }
    }

    #[test]
    fn a_credential_is_split_at_the_last_colon_and_never_shown() {
        for arguments in [
            &["--user", "1700000000:alice:c2VjcmV0"][..],
            &["--user=1700000000:alice:c2VjcmV0"],
        ] {
            let plan = asked(arguments).unwrap();
            let credential = plan.credential.unwrap();
            assert_eq!(credential.username, "1700000000:alice");
            assert_eq!(credential.password, "c2VjcmV0");
            assert!(!plan.command_line.concat().contains("c2VjcmV0"));
        }
    }
}
