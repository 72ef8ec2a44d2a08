//! STUN against the running server from outside: Debian's `turnutils_natdiscovery` and `turnutils_stunclient`, where they are
//! installed; and a request written by hand.

#![allow(clippy::unwrap_used)]

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use waypost_proto::wire::stun::{Class, Message, MessageWriter, TransactionId, attr, method};
use waypost_server::serve::Server;

const BACKENDS: [&str; 2] = ["uring", "mmsg"];

/// Continuous integration has the programs and says so.
fn may_be_skipped() {
    let required = std::env::var_os("WAYPOST_COTURN_REQUIRED");
    assert!(required.is_none(), "this test must not be skipped here");
}

/// Runs one of the package's programs against the server; what it says. None if it is not installed.
fn run(program: &str, arguments: &[&str], server: &Server) -> Option<String> {
    let at = server.main_addr();
    let mut command = Command::new("timeout");
    command.args(["60", program]).args(arguments);
    command.args(["-p", &at.port().to_string(), &at.ip().to_string()]);
    let output = command.output().unwrap();
    if output.status.code() == Some(127) {
        may_be_skipped();
        eprintln!("skipped: {program} (Debian package coturn) is not installed");
        return None;
    }
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    Some(said)
}

fn server(io: &str, more: &[&str]) -> Server {
    let options = ["--io", io, "--listen", "127.0.0.1:0", "--shards", "2"];
    Server::start_with(&[&options[..], more].concat()).unwrap()
}

#[test]
fn debians_programs_discover_the_nat() {
    for io in BACKENDS {
        let server = server(io, &["--alternate-ip", "127.0.0.2"]);
        let port = server.main_addr().port();
        let probe = server.probe_port();
        for (arguments, finding) in [
            (&["-m"][..], "Endpoint Independent Mapping!"),
            (&["-m", "-P"], "Endpoint Independent Mapping!"),
            (&["-f"], "Endpoint Independent Filtering!"),
            (&["-f", "-P"], "Endpoint Independent Filtering!"),
        ] {
            let Some(said) = run("turnutils_natdiscovery", arguments, &server) else {
                return;
            };
            assert!(said.contains(finding), "{said}");
            assert!(
                said.contains(&format!("Response origin: : 127.0.0.1:{port}")),
                "{said}"
            );
            assert!(
                said.contains(&format!("Other addr: : 127.0.0.2:{probe}")),
                "{said}"
            );
        }
        // Asks by CHANGE-REQUEST, then by RESPONSE-PORT, and waits for each answer.
        let Some(said) = run("turnutils_stunclient", &[], &server) else {
            return;
        };
        assert_eq!(
            said.matches("UDP reflexive addr: 127.0.0.1:").count(),
            3,
            "{said}"
        );
        assert!(
            said.contains(&format!("Response origin: : 127.0.0.2:{probe}")),
            "{said}"
        );
    }
}

#[test]
fn debians_client_is_content_with_one_address() {
    for io in BACKENDS {
        let server = server(io, &[]);
        let Some(said) = run("turnutils_stunclient", &[], &server) else {
            return;
        };
        assert!(said.contains("UDP reflexive addr: 127.0.0.1:"), "{said}");
        assert!(!said.contains("Other addr"), "{said}");
    }
}

#[test]
fn software_is_named_where_it_is_wanted() {
    for io in BACKENDS {
        for (more, named) in [
            (&[][..], None),
            (
                &["--software", "true"],
                Some(concat!("Waypost ", env!("CARGO_PKG_VERSION"))),
            ),
        ] {
            let server = server(io, more);
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket
                .set_read_timeout(Some(Duration::from_secs(20)))
                .unwrap();
            socket.connect(server.main_addr()).unwrap();
            let mut request = Vec::new();
            let id = TransactionId(*b"twelve bytes");
            MessageWriter::new(&mut request, method::BINDING, Class::Request, id).finish();
            socket.send(&request).unwrap();
            let mut buffer = [0; 512];
            let len = socket.recv(&mut buffer).unwrap();
            let answer = Message::parse(&buffer[..len]).unwrap();
            let software = answer.find(attr::SOFTWARE);
            assert_eq!(software, named.map(str::as_bytes));
        }
    }
}
