//! The agreement between the generator and the forwarders without a protocol.
//!
//! A forwarder reads one destination per line from its standard input up to an empty line, writes
//! the address it listens on to its standard output, and then forwards: the first four bytes of a
//! packet are the index of the destination (big endian), and are replaced by [`HEADER`].
//!
//! With [`RELAY_SOCKETS`] it has a relay socket for each destination of the first half, as a TURN server has for each
//! allocation, and tells their addresses too: packets to the first half leave by those, the others by the one it listens on.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::process::Stdio;

use crate::clients::Clients;
use crate::process::ServerProcess;
use crate::relay::{Arriving, Endpoint, Flow, RelayServer, Running};

/// Bytes of the index and of what replaces it.
pub const HEADER_BYTES: usize = 4;
/// What a forwarder writes in place of the index.
pub const HEADER: [u8; HEADER_BYTES] = *b"fwd!";

/// The argument that asks for relay sockets.
pub const RELAY_SOCKETS: &str = "--relay-sockets";

/// The forwarder's side: reads the destinations.
///
/// # Errors
///
/// When standard input fails or a line is no IPv4 address with port.
pub fn read_destinations() -> io::Result<Vec<SocketAddrV4>> {
    let mut destinations = Vec::new();
    for line in io::stdin().lock().lines() {
        let line = line?;
        if line.is_empty() {
            break;
        }
        let destination = line.parse().map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("{line}: {error}"))
        })?;
        destinations.push(destination);
    }
    Ok(destinations)
}

/// The forwarder's side: replaces the index at the start of a packet, or of each of a train, and returns it. `None` if a packet is
/// too short for one, or a train is not for one destination.
#[must_use]
pub fn relabel(packets: &mut [u8], segment_bytes: usize) -> Option<usize> {
    let mut to = None;
    for packet in packets.chunks_mut(segment_bytes.max(1)) {
        let index = packet.first_chunk_mut::<HEADER_BYTES>()?;
        let own = u32::from_be_bytes(*index) as usize;
        if *to.get_or_insert(own) != own {
            return None;
        }
        *index = HEADER;
    }
    to
}

/// The forwarder's side: tells where it listens.
///
/// # Errors
///
/// When standard output fails.
pub fn announce(address: SocketAddr) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{address}")?;
    out.flush()
}

/// The generator's side: a forwarder as a server to measure.
#[derive(Clone, Debug)]
pub struct Forwarder {
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
    is_answered: bool,
}

impl Forwarder {
    /// A forwarder that lies beside the running program. If its flows are answered, each has a twin in the other direction.
    ///
    /// # Errors
    ///
    /// When the running program's path is unknown.
    pub fn beside_us(
        name: &str,
        program: &str,
        arguments: &[&str],
        is_answered: bool,
    ) -> io::Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            program: std::env::current_exe()?.with_file_name(program),
            arguments: arguments
                .iter()
                .map(|&argument| argument.to_owned())
                .collect(),
            is_answered,
        })
    }
}

impl RelayServer for Forwarder {
    fn name(&self) -> &str {
        &self.name
    }

    fn start(
        &self,
        clients: &mut Clients,
        core: usize,
        flows: usize,
        _payload_bytes: usize,
    ) -> io::Result<Running> {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        let mut process = ServerProcess::spawn(&self.program, &arguments, core, Stdio::inherit())?;
        let end = |side: u8, socket, i: usize| {
            let [.., high, low] = (i as u32).to_be_bytes();
            Endpoint {
                socket,
                ip: Ipv4Addr::new(127, side, high, low.wrapping_add(1)),
            }
        };
        let mut ends: Vec<_> = (0..flows).map(|i| (end(1, 0, i), end(2, 1, i))).collect();
        if self.is_answered {
            let back: Vec<_> = ends.iter().map(|&(from, to)| (to, from)).collect();
            ends.extend(back);
        }
        let (mut input, output) = process.pipes()?;
        for (_, to) in &ends {
            writeln!(input, "{}", clients.address(*to))?;
        }
        writeln!(input)?;
        input.flush()?;
        let mut output = BufReader::new(output);
        let mut address = || {
            let mut line = String::new();
            output.read_line(&mut line)?;
            line.trim()
                .parse::<SocketAddr>()
                .map_err(|_| io::Error::other(format!("{} did not start: {line:?}", self.name)))
        };
        let at = address()?;
        // Where each flow's packets come out, and those that answer them go in.
        let relays = if arguments.contains(&RELAY_SOCKETS) {
            (0..flows).map(|_| address()).collect::<io::Result<_>>()?
        } else {
            vec![at; flows]
        };
        let flow = |(i, (from, to)): (usize, (Endpoint, Endpoint))| {
            let is_answer = i >= flows;
            let relay = relays[i % flows];
            Flow {
                from,
                to: if is_answer { relay } else { at },
                prefix: (i as u32).to_be_bytes().to_vec(),
                arrives_at: to,
                arrives_from: if is_answer { at } else { relay },
                arriving: Arriving::Behind(HEADER),
                answered_by: (self.is_answered && !is_answer).then(|| i + flows),
            }
        };
        Ok(Running {
            process,
            flows: ends.into_iter().enumerate().map(flow).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_train_is_relabelled_whole_or_not_forwarded() {
        let mut train = [&7u32.to_be_bytes()[..], b"abcd"].concat().repeat(3);
        assert_eq!(relabel(&mut train, 8), Some(7));
        assert_eq!(train, b"fwd!abcd".repeat(3));
        let mut mixed = [7u32.to_be_bytes(), 8u32.to_be_bytes()].concat();
        assert_eq!(relabel(&mut mixed, 4), None);
        assert_eq!(relabel(&mut [0; 3], 3), None);
        assert_eq!(relabel(&mut [0; 7], 4), None, "the last one is too short");
    }
}
