//! A gateway that forwards a port to whoever asks for one by PCP (RFC 6887), by a rule of the kernel's NAT. Speaks only as much
//! of it as a laboratory needs: it forgets nothing, refuses nothing, and its ports are always other ones than were wished for.

use std::net::{IpAddr, UdpSocket};
use std::process::{Command, ExitCode};

const MAP_LEN: usize = 60;
/// Added to the inner port.
const OFFSET: u16 = 1_000;

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("natlab-gateway: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> std::io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:5351")?;
    println!("listening");
    let mut buffer = [0; 1_100];
    loop {
        let (len, from) = socket.recv_from(&mut buffer)?;
        let Some(request) = buffer[..len].first_chunk::<MAP_LEN>() else {
            continue;
        };
        let lifetime = &request[4..8];
        if request[..2] != [2, 1] || lifetime == [0; 4] {
            continue;
        }
        let protocol = if request[36] == 17 { "udp" } else { "tcp" };
        let inner = u16::from_be_bytes([request[40], request[41]]);
        let outer = if inner > u16::MAX - OFFSET {
            inner - OFFSET
        } else {
            inner + OFFSET
        };
        if !forward(protocol, outer, from.ip(), inner)? {
            continue;
        }
        let mut answer = vec![2, 0x81, 0, 0];
        answer.extend(lifetime);
        answer.extend([0; 16]);
        answer.extend(&request[24..42]);
        answer.extend(outer.to_be_bytes());
        answer.extend(&request[44..MAP_LEN]);
        socket.send_to(&answer, from)?;
    }
}

fn forward(protocol: &str, outer: u16, to: IpAddr, inner: u16) -> std::io::Result<bool> {
    let rule = format!(
        "add rule ip natlab prerouting iifname wan {protocol} dport {outer} dnat to {to}:{inner}"
    );
    Ok(Command::new("nft")
        .args(rule.split(' '))
        .status()?
        .success())
}
