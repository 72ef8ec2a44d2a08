//! One meeting: the server and two players, as processes in a laboratory, and what the players report.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::namespace::{Lab, LabError, Nat, Side};

/// The programs that meet.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The server.
    pub server: PathBuf,
    /// A player.
    pub player: PathBuf,
}

/// What one player reports of a conversation.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Meeting {
    /// `direct`, `relayed` or `unreachable`, when the conversation began.
    pub path: String,
    /// Milliseconds from being seated, and knowing the other, to the direct path, if there is one.
    pub connect_ms: Option<u64>,
    /// What became of each strategy, by its name.
    pub strategies: BTreeMap<String, String>,
    /// The strategy that led to a stream, if one was asked for and came about.
    pub stream: Option<String>,
    /// When the stream's common start was on this host's clock, Unix microseconds.
    pub stream_began_us: Option<i64>,
    /// Datagrams sent.
    pub sent: u32,
    /// Datagrams that came, each counted once.
    pub received: u32,
    /// Datagrams that did not come.
    pub lost: u32,
    /// Datagrams that came again.
    pub duplicated: u32,
    /// Datagrams that were not what was sent.
    pub corrupted: u32,
}

/// What one player of another system's protocol reports.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct ForeignMeeting {
    /// How many tries it took to exchange data.
    pub tries: u32,
    /// Where the data came from.
    pub peer: String,
}

/// A process that is ended when it is dropped. What it prints goes nowhere once nobody reads it any more, but the pipe
/// stays open as long as the process.
struct Guarded(Child, Option<BufReader<ChildStdout>>);

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lets two players behind these NATs meet on a server, and returns what each of them reports. `server_options` and
/// `player_options` are added to the command lines.
///
/// # Errors
/// What could not be set up, or what the players said instead of a report.
pub fn meet(
    programs: &Programs,
    (a, b): (Nat, Nat),
    server_options: &[&str],
    player_options: &[&str],
) -> Result<[Meeting; 2], LabError> {
    let servers = [server_options, &[]];
    meet_as(programs, (a, b), servers, [player_options; 2])
}

/// As [`meet`], with options of the session's server, of the TURN server, and of each player's own.
///
/// # Errors
/// As [`meet`].
pub fn meet_as(
    programs: &Programs,
    nats: (Nat, Nat),
    server_options: [&[&str]; 2],
    player_options: [&[&str]; 2],
) -> Result<[Meeting; 2], LabError> {
    let address = server_address();
    let arguments = player_options.map(|options| [&["--server", &*address], options].concat());
    run(programs, nats, server_options, arguments, "--code-file")
}

/// As [`meet`], with players that speak another system's protocol as its plain clients do: `rabid`, `simple` or `godot-p2p`.
///
/// # Errors
/// What could not be set up, or what the players said instead of a report.
pub fn meet_foreign(
    programs: &Programs,
    nats: (Nat, Nat),
    dialect: &str,
    server_options: &[&str],
) -> Result<[ForeignMeeting; 2], LabError> {
    let address = format!("{}:5555", Lab::SERVER_IP);
    let listen = format!("--{dialect}-listen");
    let options = [&[&*listen, &*address], server_options].concat();
    let arguments = [(); 2].map(|()| vec![dialect, &address]);
    run(programs, nats, [&options, &[]], arguments, "--id-file")
}

/// Lets a host behind the first NAT and a guest behind the second do as their arguments say; a file that both can reach is
/// named by `file_option`.
fn run<T: DeserializeOwned>(
    programs: &Programs,
    (a, b): (Nat, Nat),
    [server_options, turn_options]: [&[&str]; 2],
    [host_arguments, guest_arguments]: [Vec<&str>; 2],
    file_option: &str,
) -> Result<[T; 2], LabError> {
    for program in [&programs.server, &programs.player] {
        read_in(program)?;
    }
    let lab = Lab::new(a, b)?;
    let scratch = Scratch::new()?;
    let _server = start_server(&lab, &programs.server, &scratch, server_options)?;
    let relay = format!("{}:3478", Lab::SECOND_SERVER_IP);
    // The laboratory's addresses are those of documentation, which no public server relays to.
    let account = ["--user", "ann:sesame", "--allow-peer", "203.0.113.0/24"];
    let listen = ["--listen", &relay, "--allow-peer", "198.51.100.0/24"];
    let turn = [&account[..], &listen, turn_options].concat();
    let _turn = start(&lab, &programs.server, &scratch.0.join("turn"), &turn)?;
    let mut gateways = Vec::new();
    for (side, nat) in [(Side::A, a), (Side::B, b)] {
        if nat == Nat::Forwarding {
            let program = programs.server.with_file_name("natlab-gateway");
            let mut gateway = spawn(&mut lab.in_gateway(side, &program))?;
            await_line(&mut gateway, "listening")?;
            gateways.push(gateway);
        }
    }
    let code_file = scratch.0.join("code");
    let player = |side, role, arguments: Vec<&str>| {
        let mut command = lab.in_player(side, &programs.player);
        command
            .arg(role)
            .args(arguments)
            .arg(file_option)
            .arg(&code_file);
        spawn(&mut command)
    };
    let mut host = player(Side::A, "host", host_arguments)?;
    let mut guest = player(Side::B, "join", guest_arguments)?;
    let reports = [
        report(&mut host, "the host")?,
        report(&mut guest, "the guest")?,
    ];
    // Neither has left yet, so that the other is not alone before it has found out what it reports.
    end(host, "the host")?;
    end(guest, "the guest")?;
    Ok(reports)
}

/// What the doctor says from behind this NAT of a server with two addresses.
///
/// # Errors
/// What could not be set up, or that the doctor found no server.
pub fn examine(server: &Path, doctor: &Path, nat: Nat) -> Result<String, LabError> {
    for program in [server, doctor] {
        read_in(program)?;
    }
    let lab = Lab::new(nat, Nat::PortRestricted)?;
    let scratch = Scratch::new()?;
    let two = ["--alternate-ip", Lab::SECOND_SERVER_IP];
    let _server = start_server(&lab, server, &scratch, &two)?;
    let output = lab
        .in_player(Side::A, doctor)
        .arg(server_address())
        .output()
        .map_err(|error| LabError(error.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(LabError(format!("the doctor said '{said}'")));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Reads a program, so that the kernel has it at hand: who punches at a common start cannot wait for a disk then.
fn read_in(program: &Path) -> Result<(), LabError> {
    File::open(program)
        .and_then(|mut file| io::copy(&mut file, &mut io::sink()))
        .map(drop)
        .map_err(|error| LabError(format!("{}: {error}", program.display())))
}

fn server_address() -> String {
    format!("{}:{}", Lab::SERVER_IP, Lab::SERVER_PORT)
}

fn start_server(
    lab: &Lab,
    program: &Path,
    scratch: &Scratch,
    options: &[&str],
) -> Result<Guarded, LabError> {
    let listen = ["--listen", &server_address()];
    start(lab, program, &scratch.0, &[&listen[..], options].concat())
}

fn start(lab: &Lab, program: &Path, state: &Path, options: &[&str]) -> Result<Guarded, LabError> {
    let mut server = spawn(
        lab.in_public(program)
            .args(["--admin", "off", "--pin", "false"])
            .args(["--shards", "2", "--log-level", "error", "--state-dir"])
            .arg(state)
            .args(options),
    )?;
    await_line(&mut server, "listening udp")?;
    Ok(server)
}

fn spawn(command: &mut Command) -> Result<Guarded, LabError> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map(|child| Guarded(child, None))
        .map_err(|error| LabError(format!("{command:?}: {error}")))
}

/// Waits until the process has printed a line that begins like this, and returns it.
fn await_line(process: &mut Guarded, begins: &str) -> Result<String, LabError> {
    let output = process
        .0
        .stdout
        .take()
        .ok_or_else(|| LabError("the output is taken".to_owned()))?;
    let mut reader = BufReader::new(output);
    let mut line = String::new();
    while reader
        .read_line(&mut line)
        .map_err(|error| LabError(error.to_string()))?
        > 0
    {
        if line.starts_with(begins) {
            process.1 = Some(reader);
            return Ok(line);
        }
        line.clear();
    }
    Err(LabError(format!("the process ended without '{begins}'")))
}

/// What a player reports.
fn report<T: DeserializeOwned>(player: &mut Guarded, who: &str) -> Result<T, LabError> {
    let said = await_line(player, "{").map_err(|error| LabError(format!("{who}: {error}")))?;
    serde_json::from_str(&said).map_err(|error| LabError(format!("{who} said '{said}': {error}")))
}

/// Lets a player leave, which it does when its input ends.
fn end(mut player: Guarded, who: &str) -> Result<(), LabError> {
    let status = player
        .0
        .wait()
        .map_err(|error| LabError(error.to_string()))?;
    if status.success() {
        Ok(())
    } else {
        Err(LabError(format!("{who} ended with {status}")))
    }
}

/// A directory of this meeting.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, LabError> {
        let unique = format!(
            "natlab-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        );
        let path = std::env::temp_dir().join(unique.replace(['(', ')'], ""));
        // Of an earlier process with the same number, which was killed.
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path)
            .map_err(|error| LabError(format!("{}: {error}", path.display())))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
