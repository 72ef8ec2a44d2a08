//! Starting the real program: what a newcomer sees, and that whatever is wrong ends in one clear line.

// A test may not go on after what it needs has failed, and a filter for system calls can be installed only by unsafe code.
#![allow(clippy::unwrap_used, unsafe_code)]

#[path = "streams/identity.rs"]
mod identity;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use waypost_proto::wire::stun::{Class, Message, MessageWriter, TransactionId, attr, method};

/// A wait that ends a hung test; no test passes because of it.
const HANG: Duration = Duration::from_secs(20);

/// The server on ports that the kernel chooses.
fn server(options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_waypost-server"));
    command
        .env_clear()
        .args(["--listen", "127.0.0.1:0", "--probe-port", "0"])
        .args(["--admin", "off", "--shards", "1"])
        .args(["--state-dir", env!("CARGO_TARGET_TMPDIR")])
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

struct Guarded(Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The lines that a server prints at start.
fn up_to_hints(output: &mut impl Iterator<Item = std::io::Result<String>>) -> Vec<String> {
    let mut hints = 0;
    let mut seen = Vec::new();
    for line in output.map(Result::unwrap) {
        hints += usize::from(line.starts_with("try: "));
        seen.push(line);
        if hints == 2 {
            break;
        }
    }
    seen
}

/// Starts it and returns the lines that it prints up to the hints, with the process.
fn start(mut command: Command) -> (Guarded, Vec<String>) {
    let mut child = Guarded(command.spawn().unwrap());
    let mut output = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let seen = up_to_hints(&mut output);
    if seen.last().is_some_and(|line| line.starts_with("try: ")) {
        return (child, seen);
    }
    let mut error = String::new();
    child
        .0
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut error)
        .unwrap();
    panic!("it did not start: {seen:?} {error}");
}

/// Lets it fail and returns the one line it says.
fn refuse(mut command: Command) -> String {
    let mut child = Guarded(command.spawn().unwrap());
    // Whoever fails prints nothing here; whoever serves prints at once where it listens.
    let mut first = String::new();
    BufReader::new(child.0.stdout.take().unwrap())
        .read_line(&mut first)
        .unwrap();
    assert_eq!(first, "", "it serves");
    let mut error = String::new();
    let mut stderr = child.0.stderr.take().unwrap();
    stderr.read_to_string(&mut error).unwrap();
    assert_eq!(child.0.wait().unwrap().code(), Some(78), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.starts_with("waypost-server: "), "{error}");
    error
}

fn address(lines: &[String], kind: &str) -> String {
    let prefix = format!("listening {kind} ");
    lines
        .iter()
        .find_map(|line| line.strip_prefix(&prefix))
        .unwrap()
        .to_owned()
}

fn ask_binding(address: &str) {
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let mut request = Vec::new();
    let id = TransactionId(*b"twelve bytes");
    MessageWriter::new(&mut request, method::BINDING, Class::Request, id).finish();
    client.send_to(&request, address).unwrap();
    let mut answer = [0; 100];
    let (len, from) = client.recv_from(&mut answer).unwrap();
    assert_eq!(from.to_string(), address);
    let answer = Message::parse(&answer[..len]).unwrap();
    assert_eq!(
        answer.find_xor_addr(attr::XOR_MAPPED_ADDRESS).unwrap(),
        client.local_addr().unwrap().into()
    );
}

#[test]
fn it_says_where_it_listens_and_answers_there() {
    for io in ["uring", "mmsg"] {
        let (_server, lines) = start(server(&["--io", io]));
        for kind in ["udp", "probe"] {
            ask_binding(&address(&lines, kind));
        }
    }
}

#[test]
fn it_answers_from_every_address_of_a_wildcard() {
    let mut command = server(&[]);
    command.args(["--listen", "0.0.0.0:0"]);
    let (_server, lines) = start(command);
    let wildcard = lines
        .iter()
        .filter_map(|line| line.strip_prefix("listening udp "))
        .nth(1)
        .unwrap();
    let port = wildcard.rsplit(':').next().unwrap();
    ask_binding(&format!("127.0.0.1:{port}"));
}

#[test]
fn browsers_are_told_of_every_transport() {
    let identity = identity::Identity::new();
    let (cert, key) = (identity.cert(), identity.key());
    let mut command = Command::new(env!("CARGO_BIN_EXE_waypost-server"));
    command
        .env_clear()
        .args(["--listen", "127.0.0.1:0", "--probe-port", "0"])
        .args(["--admin", "127.0.0.1:0", "--shards", "1"])
        .args(["--state-dir", env!("CARGO_TARGET_TMPDIR")])
        .args(["--tls-listen", "127.0.0.1:0", "--tls-cert", &cert])
        .args([
            "--tls-key",
            &key,
            "--auth-secret",
            "north-and-south-and-west",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let (_server, lines) = start(command);
    let [udp, tcp, tls, admin] = ["udp", "tcp", "tls", "admin"].map(|kind| address(&lines, kind));
    let mut door = TcpStream::connect(&admin).unwrap();
    door.set_read_timeout(Some(HANG)).unwrap();
    let request = format!(
        "POST /v1/turn-credentials HTTP/1.1\r\nHost: {admin}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    door.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    door.read_to_string(&mut answer).unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    let expected = serde_json::json!([
        format!("turn:{udp}?transport=udp"),
        format!("turn:{tcp}?transport=tcp"),
        format!("turns:{tls}?transport=tcp"),
    ]);
    assert_eq!(body["iceServers"][0]["urls"], expected);
}

#[test]
fn a_port_in_use_names_the_owner_finder_or_another_port() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    let error = refuse(server(&["--listen", &at]));
    assert!(error.contains(&at) && error.contains("in use"), "{error}");
}

#[test]
fn another_server_on_the_same_port_is_an_error_and_does_not_share_it() {
    let (_server, lines) = start(server(&[]));
    let at = address(&lines, "udp");
    let error = refuse(server(&["--listen", &at]));
    assert!(error.contains("in use"), "{error}");
}

#[test]
fn an_address_of_another_host_is_named() {
    let error = refuse(server(&["--listen", "192.0.2.1:3478"]));
    assert!(error.contains("192.0.2.1:3478"), "{error}");
}

#[test]
fn unknown_options_and_bad_values_are_one_line() {
    let error = refuse(server(&["--shard", "1"]));
    assert!(error.contains("--shards"), "{error}");
    let error = refuse(server(&["--coalesce-us", "lots"]));
    assert!(error.contains("coalesce"), "{error}");
}

#[test]
fn too_few_open_files_name_the_remedy() {
    let mut command = server(&["--io", "uring"]);
    let few = rustix::process::Rlimit {
        current: Some(8),
        maximum: Some(8),
    };
    // SAFETY: one system call between fork and exec; nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setrlimit(rustix::process::Resource::Nofile, few)?;
            Ok(())
        });
    }
    let error = refuse(command);
    assert!(error.contains("open files"), "{error}");
}

/// Makes io_uring_setup fail with EPERM in the child, as the default profile of container engines does (seccomp(2)).
fn without_io_uring(command: &mut Command) {
    const IO_URING_SETUP: u32 = 425;
    const LOAD_NUMBER: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0000;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut filter = [
        step(LOAD_NUMBER, 0, 0, 0),
        step(JUMP_IF_EQUAL, 0, 1, IO_URING_SETUP),
        step(RETURN, 0, 0, ERRNO | libc::EPERM as u32),
        step(RETURN, 0, 0, ALLOW),
    ];
    // SAFETY: two system calls between fork and exec; the filter is moved into the closure and lives until they return.
    unsafe {
        command.pre_exec(move || {
            let program = libc::sock_fprog {
                len: filter.len() as u16,
                filter: filter.as_mut_ptr(),
            };
            let done = libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, 2, &raw const program, 0, 0) == 0;
            if done {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
    }
}

#[test]
fn without_io_uring_auto_serves_with_one_warning_and_uring_refuses() {
    let mut command = server(&["--io", "auto", "--log-format", "json"]);
    without_io_uring(&mut command);
    let (mut server_process, lines) = start(command);
    ask_binding(&address(&lines, "udp"));
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&server_process.0),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    assert!(server_process.0.wait().unwrap().success());
    let mut log = String::new();
    let mut stderr = server_process.0.stderr.take().unwrap();
    stderr.read_to_string(&mut log).unwrap();
    let warnings: Vec<_> = log
        .lines()
        .filter(|line| line.contains("\"WARN\""))
        .collect();
    assert_eq!(warnings.len(), 1, "{log}");
    assert!(warnings[0].contains("recvmmsg"), "{log}");

    let mut command = server(&["--io", "uring"]);
    without_io_uring(&mut command);
    let error = refuse(command);
    assert!(
        error.contains("io_uring") && error.contains("seccomp"),
        "{error}"
    );
}

#[test]
fn gen_credential_prints_what_the_server_takes() {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_waypost-server"));
        command.env_clear().args(arguments);
        command.output().unwrap()
    };
    let secret = "--auth-secret=north-and-south-and-west";
    let output = run(&["gen-credential", "ann", "--valid-secs", "60", secret]);
    assert!(output.status.success());
    let said = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<_> = said
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .collect();
    let [("username", name), ("password", password)] = lines[..] else {
        panic!("{said}");
    };
    let (expiry, user) = name.split_once(':').unwrap();
    assert!(user == "ann" && expiry.parse::<u64>().is_ok(), "{said}");
    let secret = b"north-and-south-and-west";
    assert_eq!(
        password,
        waypost_proto::shard::time_limited_password(secret, name)
    );
    let refused = run(&["gen-credential"]);
    assert_eq!(refused.status.code(), Some(78));
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(
        error.contains("no secret to make a credential with"),
        "{error}"
    );
}

#[test]
fn help_and_doctor_end_well() {
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["doctor"],
        &["--check-config"],
        &["--print-config"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_waypost-server"))
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        assert!(!output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn certificate_and_key_are_held_against_each_other_and_reloaded() {
    let (mine, other) = (identity::Identity::new(), identity::Identity::new());
    let (cert, key, other_key) = (mine.cert(), mine.key(), other.key());
    let tls = ["--tls-listen", "127.0.0.1:0", "--tls-cert", &cert];
    let with_key = |key| [&tls[..], &["--tls-key", key]].concat();
    let error = refuse(server(&with_key(&other_key)));
    assert!(error.contains("does not go with tls-cert"), "{error}");
    let error = refuse(server(&with_key(&cert)));
    assert!(error.contains("holds nothing of the kind"), "{error}");
    let error = refuse(server(&tls));
    assert!(error.contains("tls-key is not given"), "{error}");

    let (mut server_process, lines) = start(server(&with_key(&key)));
    let mut log = BufReader::new(server_process.0.stderr.take().unwrap()).lines();
    let at: std::net::SocketAddr = address(&lines, "tls").parse().unwrap();
    assert!(!address(&lines, "tcp").is_empty());
    // A handshake that fails has seen another certificate than it trusts.
    let trusts = |client: &std::sync::Arc<rustls::ClientConfig>| {
        let name = "localhost".try_into().unwrap();
        let mut session = rustls::ClientConnection::new(client.clone(), name).unwrap();
        let mut socket = std::net::TcpStream::connect(at).unwrap();
        socket.set_read_timeout(Some(HANG)).unwrap();
        session.complete_io(&mut socket).is_ok()
    };
    let reload = || {
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&server_process.0),
            rustix::process::Signal::HUP,
        )
        .unwrap();
    };
    assert!(trusts(&mine.client));
    // A key that does not fit changes nothing; the next good pair does.
    std::fs::write(&key, std::fs::read(&other_key).unwrap()).unwrap();
    reload();
    let refused = log.find(|line| line.as_ref().unwrap().contains("does not go with"));
    assert!(refused.unwrap().unwrap().contains("is as it was"));
    assert!(trusts(&mine.client));
    let renewed = mine.renew();
    reload();
    // It is logged before every shard has been told.
    assert!(log.any(|line| line.unwrap().contains("was taken over")));
    let give_up = std::time::Instant::now() + HANG;
    while !trusts(&renewed) {
        assert!(std::time::Instant::now() < give_up, "the old certificate");
    }
    assert!(!trusts(&mine.client));
}

/// A directory that goes with the test.
struct Place(std::path::PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let name = format!("waypost-{name}-{}", std::process::id());
        let place = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&place).unwrap();
        Self(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn it_hands_over_to_a_binary_that_can_be_used() {
    use std::os::unix::fs::symlink;

    let place = Place::new("successor");
    let binary = env!("CARGO_BIN_EXE_waypost-server");
    // What lies at the path changes, as with a package that is upgraded.
    let path = place.0.join("waypost-server");
    // Another process writes it: whatever other tests start meanwhile inherits what this one has open, until it is another
    // program, and a file that somebody may write cannot be executed (ETXTBSY).
    let install = |script: &str| {
        let fresh = place.0.join("fresh");
        let write = r#"printf %s "$1" > "$0" && chmod 755 "$0""#;
        let mut shell = Command::new("sh");
        shell.args(["-c", write]).arg(&fresh).arg(script);
        assert!(shell.status().unwrap().success());
        std::fs::rename(&fresh, &path).unwrap();
    };
    symlink(binary, &path).unwrap();
    let pattern = server(&["--log-format", "json"]);
    let mut command = Command::new(&path);
    command
        .env_clear()
        .args(pattern.get_args())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut process = Guarded(command.spawn().unwrap());
    let mut output = BufReader::new(process.0.stdout.take().unwrap()).lines();
    let mut log = BufReader::new(process.0.stderr.take().unwrap()).lines();
    let pid = rustix::process::Pid::from_child(&process.0);
    let signal = |signal| rustix::process::kill_process(pid, signal).unwrap();
    let first = up_to_hints(&mut output);
    ask_binding(&address(&first, "udp"));

    install("#!/bin/sh\necho it is broken >&2\nexit 1\n");
    signal(rustix::process::Signal::USR2);
    let refused = log.find(|line| line.as_ref().unwrap().contains("no handing over"));
    let refused = refused.unwrap().unwrap();
    assert!(refused.contains("it is broken"), "{refused}");
    ask_binding(&address(&first, "udp"));

    install(&format!(
        "#!/bin/sh\necho the new one\nexec {binary} \"$@\"\n"
    ));
    signal(rustix::process::Signal::USR2);
    let second = up_to_hints(&mut output);
    assert_eq!(second[0], "the new one");
    ask_binding(&address(&second, "udp"));
    // It is the same process, and does what it is told.
    signal(rustix::process::Signal::TERM);
    assert_eq!(process.0.wait().unwrap().code(), Some(0));
}
