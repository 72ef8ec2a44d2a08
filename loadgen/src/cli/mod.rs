//! The command line: what may be typed ([`Arguments`]) and what it comes to, checked ([`Plan`]). Opens nothing.

mod arguments;

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::time::Duration;

use clap::Parser as _;
use clap::error::ErrorKind;
use waypost_proto::agent::Credential;

use self::arguments::{Arguments, Command};
pub use self::arguments::{
    Arrivals, CompareArguments, Files, IoChoice, MergeArguments, Storm, Topology,
};
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
    let files_of_one_run = [&files.html, &files.csv, &files.hgrm, &files.hlog];
    if given.find_max
        && (given.storm.is_some()
            || given.ramp_from.is_some()
            || files_of_one_run.iter().any(|file| file.is_some()))
    {
        return Err(Failure::configuration(
            "--find-max looks for a constant rate and writes only --json",
            "leave out --storm, --ramp-from, --html, --csv, --hgrm and --hlog",
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
mod tests;
