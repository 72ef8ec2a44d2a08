//! One of the two players of the lab: hosts or joins, exchanges numbered datagrams in both directions and says on one
//! line of JSON which path they took. Leaves when its input ends, and exits with 0 if the conversation worked.

use std::error::Error;
use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{env, fs, io, process, thread};

use waypost_client::{
    Attempt, HostConfig, JoinConfig, Link, Path, PathPolicy, Player, Session, SessionEvent,
    Strategies, Strategy, TurnServer, TurnTransport,
};

const USAGE: &str = "usage: natlab-player host|join --server HOST:PORT --code-file FILE
    [--policy direct-first|relay-first|relay-only|direct-only]   how data may travel (direct-first)
    [--strategies LIST]  of direct, reverse, udp-punch, tcp-punch, relay, turn; separated by commas (all)
    [--turn HOST:PORT]   a TURN server to go through, over TCP, as the account ann with the password sesame (none)
    [--turn-tls HOST:PORT:ROOTS]   the same over TLS, for a server that proves to be turn.example to who trusts the
                         certificates in the PEM file ROOTS; where it is built in (none)
    [--turn-candidate HOST:PORT]   the same, for one more address to be reached at (none)
    [--guess yes|no]     whether ports of a NAT that gives them out at random are guessed (no)
    [--local-port N]     the UDP port of this host (any)
    [--reachable-port N] a forwarded port of the public address (none)
    [--map-port yes|no]  whether the router is asked to forward a port (no)
    [--stream yes|no]    whether to connect a TCP stream instead of exchanging datagrams (no)
    [--count N]          datagrams to send (200)
    [--interval-ms N]    between two of them (10)
    [--settle-ms N]      how long a direct path is waited for (9000)
    [--timeout-s N]      how long the other player is waited for (30)";
const APPLICATION: &str = "waypost-natlab";
/// Bytes of a numbered datagram: kind, number, and a pattern that shows corruption.
const LEN: usize = 100;
/// Bytes that go each way on a stream.
const STREAM_LEN: usize = 10_000;
const NUMBERED: u8 = 1;
/// Sent over and over until the other side has sent everything too.
const DONE: u8 = 2;
/// Datagrams that one may be ahead of the other: a player who is not given a processor has room for them in its socket.
const WINDOW: u32 = 64;
const MS: Duration = Duration::from_millis(1);

struct Options {
    hosts: bool,
    server: String,
    code_file: String,
    policy: PathPolicy,
    strategies: Strategies,
    turn: Option<TurnServer>,
    turn_candidate: Option<TurnServer>,
    maps_port: bool,
    guesses: bool,
    local_port: u16,
    reachable_port: Option<u16>,
    stream: bool,
    count: u32,
    interval: Duration,
    settle: Duration,
    timeout: Duration,
}

fn options() -> Option<Options> {
    let mut arguments = env::args().skip(1);
    let mut options = Options {
        hosts: match arguments.next()?.as_str() {
            "host" => true,
            "join" => false,
            _ => return None,
        },
        server: String::new(),
        code_file: String::new(),
        policy: PathPolicy::DirectFirst,
        strategies: Strategies::ALL,
        turn: None,
        turn_candidate: None,
        maps_port: false,
        guesses: false,
        local_port: 0,
        reachable_port: None,
        stream: false,
        count: 200,
        interval: 10 * MS,
        settle: 9_000 * MS,
        timeout: 30_000 * MS,
    };
    while let Some(option) = arguments.next() {
        let value = arguments.next()?;
        let number = value.parse::<u32>();
        match option.as_str() {
            "--server" => options.server = value,
            "--code-file" => options.code_file = value,
            "--policy" => {
                options.policy = match value.as_str() {
                    "direct-first" => PathPolicy::DirectFirst,
                    "relay-first" => PathPolicy::RelayFirst,
                    "relay-only" => PathPolicy::RelayOnly,
                    "direct-only" => PathPolicy::DirectOnly,
                    _ => return None,
                }
            }
            "--strategies" => {
                options.strategies = value.split(',').try_fold(Strategies::NONE, |set, name| {
                    let named = |strategy: &Strategy| strategy.to_string() == name;
                    Some(set.with(Strategy::ALL.into_iter().find(named)?))
                })?;
            }
            "--turn" => options.turn = Some(turn_server(&value, TurnTransport::Tcp)?),
            #[cfg(feature = "tls")]
            "--turn-tls" => {
                let (address, roots) = value.rsplit_once(':')?;
                let transport = TurnTransport::Tls(waypost_client::ServerIdentity {
                    name: "turn.example".to_owned(),
                    roots_pem: fs::read(roots).ok()?,
                });
                options.turn = Some(turn_server(address, transport)?);
            }
            "--turn-candidate" => {
                options.turn_candidate = Some(turn_server(&value, TurnTransport::Tcp)?);
            }
            "--map-port" => options.maps_port = value == "yes",
            "--guess" => options.guesses = value == "yes",
            "--stream" => options.stream = value == "yes",
            "--local-port" => options.local_port = value.parse().ok()?,
            "--reachable-port" => options.reachable_port = Some(value.parse().ok()?),
            "--count" => options.count = number.ok()?,
            "--interval-ms" => options.interval = number.ok()? * MS,
            "--settle-ms" => options.settle = number.ok()? * MS,
            "--timeout-s" => options.timeout = number.ok()? * 1_000 * MS,
            _ => return None,
        }
    }
    (!options.server.is_empty() && !options.code_file.is_empty()).then_some(options)
}

fn main() {
    let Some(options) = options() else {
        eprintln!("{USAGE}");
        process::exit(2);
    };
    match play(&options) {
        Ok(true) => {}
        Ok(false) => process::exit(1),
        Err(error) => {
            eprintln!("natlab-player: {error}");
            process::exit(1);
        }
    }
}

fn play(options: &Options) -> Result<bool, Box<dyn Error>> {
    let player = Player {
        policy: options.policy,
        strategies: options.strategies,
        turn: options.turn.clone(),
        turn_candidate: options.turn_candidate.clone(),
        maps_port: options.maps_port,
        guesses_ports: options.guesses,
        local_port: options.local_port,
        reachable_port: options.reachable_port,
        ..Player::new(APPLICATION)
    };
    let session = if options.hosts {
        let mut config = HostConfig::new(APPLICATION);
        config.player = player;
        let session = Session::host(&options.server, config)?;
        publish(&options.code_file, &session.code()?.to_string())?;
        session
    } else {
        let mut config = JoinConfig::new(APPLICATION);
        config.player = player;
        let code = read_code(&options.code_file, options.timeout)?;
        Session::join(&options.server, &code, config)?
    };
    let peer = session.wait_member(Some(options.timeout))?;
    let met = Instant::now();
    let link = session.link(peer)?;
    let mut stream = None;
    let mut connect_ms = 0;
    let report = if options.stream {
        stream = connect_stream(&link, options)?;
        Report::new(&link)
    } else {
        connect_ms = settle(&session, &link, met, options)?;
        Report::new(&link)
    };
    // The other may leave first, and what became of the ways to it be forgotten.
    let strategies = strategies(&link);
    let converses = !options.stream && matches!(report.path, Path::Direct | Path::Relayed);
    let report = if converses {
        converse(&link, options)?
    } else {
        report
    };
    let path = match report.path {
        Path::Direct => "direct",
        Path::Relayed => "relayed",
        Path::Punching => "punching",
        Path::Unreachable => "unreachable",
    };
    let mapping = session
        .nat_mapping()
        .map_or("unknown".to_owned(), |mapping| {
            if mapping.random {
                "random".to_owned()
            } else {
                mapping.step.to_string()
            }
        });
    println!(
        "{{\"path\":\"{path}\",\"strategies\":{},\"stream\":{},\"stream_began_us\":{},\"connect_ms\":{},\"mapping\":\"{mapping}\",\"sent\":{},\"received\":{},\"lost\":{},\"duplicated\":{},\"corrupted\":{}}}",
        strategies,
        stream
            .as_ref()
            .map_or("null".to_owned(), |(strategy, _)| format!("\"{strategy}\"")),
        stream.map_or("null".to_owned(), |(_, began)| began.to_string()),
        connect_ms,
        report.sent,
        report.received,
        report.sent.saturating_sub(report.received),
        report.duplicated,
        report.corrupted,
    );
    // The other may find out later what it reports, and needs this one for it.
    io::copy(&mut io::stdin(), &mut io::sink())?;
    // The conversation is over; whether the server noticed is not part of it.
    let _ = session.leave();
    Ok(!converses || (report.received > 0 && report.corrupted == 0))
}

/// The laboratory's.
fn turn_server(address: &str, transport: TurnTransport) -> Option<TurnServer> {
    Some(TurnServer {
        address: address.parse().ok()?,
        transport,
        username: "ann".to_owned(),
        password: "sesame".to_owned(),
    })
}

/// Written whole, under the final name at once, so that the other player never reads half of it.
fn publish(file: &str, code: &str) -> io::Result<()> {
    let draft = format!("{file}.draft");
    fs::write(&draft, code)?;
    fs::rename(draft, file)
}

fn read_code(file: &str, timeout: Duration) -> Result<String, Box<dyn Error>> {
    let started = Instant::now();
    loop {
        match fs::read_to_string(file) {
            Ok(code) => return Ok(code),
            Err(error) if started.elapsed() > timeout => {
                return Err(format!("no code in {file}: {error}; is the host running?").into());
            }
            Err(_) => thread::sleep(20 * MS),
        }
    }
}

/// Waits until it is decided whether the path is direct. Returns how long that took, in milliseconds from meeting.
fn settle(
    session: &Session,
    link: &Link,
    met: Instant,
    options: &Options,
) -> Result<u128, Box<dyn Error>> {
    let mut has_tried = false;
    let relays_only = options.policy == PathPolicy::RelayOnly
        || options.strategies == Strategies::only(Strategy::Relay);
    // Attempts that are under way come to an end by themselves.
    let is_open = || link.path() == Path::Punching && met.elapsed() < options.timeout;
    while met.elapsed() < options.settle || is_open() {
        match link.path() {
            Path::Direct => break,
            Path::Punching => has_tried = true,
            Path::Relayed if has_tried => break,
            _ if relays_only => break,
            _ => {}
        }
        match session.next_event(Some(50 * MS)) {
            Ok(SessionEvent::MemberLeft(..)) => return Err("the other player left".into()),
            Ok(_) | Err(waypost_client::Error::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(met.elapsed().as_millis())
}

/// What became of each strategy, as a JSON object.
fn strategies(link: &Link) -> String {
    let entry = |attempt: &Attempt| format!("\"{}\":\"{}\"", attempt.strategy, attempt.progress);
    let entries: Vec<String> = link.report().iter().map(entry).collect();
    format!("{{{}}}", entries.join(","))
}

/// Connects a stream, says something on it and hears the same. Returns the strategy and when it began, Unix microseconds.
fn connect_stream(
    link: &Link,
    options: &Options,
) -> Result<Option<(Strategy, i64)>, Box<dyn Error>> {
    let mut connected = match link.connect_stream(options.settle) {
        Ok(connected) => connected,
        Err(waypost_client::Error::NoStream(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let ended = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let began = i64::try_from(ended.as_micros())? - i64::try_from(connected.took.as_micros())?;
    let said = [0xa5; STREAM_LEN];
    connected.stream.set_read_timeout(Some(5_000 * MS))?;
    connected.stream.write_all(&said)?;
    let mut heard = [0; STREAM_LEN];
    connected.stream.read_exact(&mut heard)?;
    if heard != said {
        return Err("the stream brought something else".into());
    }
    Ok(Some((connected.strategy, began)))
}

struct Report {
    sent: u32,
    received: u32,
    duplicated: u32,
    corrupted: u32,
    /// The path of the last numbered datagram.
    path: Path,
}

impl Report {
    fn new(link: &Link) -> Self {
        Self {
            sent: 0,
            received: 0,
            duplicated: 0,
            corrupted: 0,
            path: link.path(),
        }
    }
}

fn numbered(number: u32) -> [u8; LEN] {
    let mut data = [NUMBERED; LEN];
    data[1..5].copy_from_slice(&number.to_be_bytes());
    for (at, byte) in data.iter_mut().enumerate().skip(5) {
        *byte = pattern(number, at);
    }
    data
}

fn pattern(number: u32, at: usize) -> u8 {
    (number as u8).wrapping_mul(31).wrapping_add(at as u8)
}

/// Sends the numbered datagrams and takes the other's, until both have sent all or nothing comes any more.
fn converse(link: &Link, options: &Options) -> Result<Report, Box<dyn Error>> {
    let mut report = Report::new(link);
    let mut seen = vec![false; options.count as usize];
    let mut buf = [0; 1500];
    let mut due = Instant::now();
    let mut heard = Instant::now();
    let mut other_is_done = false;
    let mut farewells = 0;
    loop {
        if report.sent < options.count {
            if report.sent < report.received + WINDOW {
                link.send(&numbered(report.sent))?;
                report.sent += 1;
                report.path = link.path();
            } else if heard.elapsed() > 5_000 * MS {
                break;
            }
        } else {
            // The other may have gone already, having heard everything.
            if link.send(&[DONE]).is_err() {
                break;
            }
            farewells += u32::from(other_is_done);
            if farewells > 20 || heard.elapsed() > 5_000 * MS {
                break;
            }
        }
        due += options.interval;
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            link.set_read_timeout(Some(left))?;
            let len = match link.recv(&mut buf) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => break,
                Err(_) => return Ok(report),
            };
            heard = Instant::now();
            match &buf[..len] {
                [DONE] => other_is_done = true,
                data if data.len() == LEN && data[0] == NUMBERED => {
                    let number = u32::from_be_bytes([data[1], data[2], data[3], data[4]]);
                    let whole = (5..LEN).all(|at| data[at] == pattern(number, at));
                    match seen.get_mut(number as usize) {
                        Some(seen) if whole && !*seen => {
                            *seen = true;
                            report.received += 1;
                        }
                        Some(_) if whole => report.duplicated += 1,
                        _ => report.corrupted += 1,
                    }
                }
                _ => report.corrupted += 1,
            }
        }
    }
    Ok(report)
}
