//! What stands between this machine and the Internet, found out with a server that has two addresses (RFC 5780) or, for less,
//! with any STUN server, and in words what that means for players. Sends a few dozen small packets, and only to the server
//! and to the own public address.

use std::fmt;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant};

use waypost_proto::addr::Addr;
use waypost_proto::wire::stun::{self, Class, Message, MessageWriter, TransactionId, attr, method};

use crate::error::Error;
use crate::list::first_that_answers;

/// What may not come is asked for so often.
const TRIES: u32 = 4;
/// And waited for so long each time.
const WAIT: Duration = Duration::from_millis(400);
/// What a server always answers is waited for as long as a [`crate::Player`] waits by default.
const PATIENCE: Duration = Duration::from_secs(15);
/// CHANGE-REQUEST (RFC 5780 section 7.2): answer from the other address, and from the other port.
const OTHER_IP: u32 = 4;
const OTHER_PORT: u32 = 2;
/// Sockets whose mapped ports are compared for a step.
const SOCKETS: usize = 3;
/// Longer than any answer of this.
const BUFFER: usize = 1_500;

/// How the public address of a socket depends on where it sends to (RFC 4787 section 4.1), or whether a packet comes in
/// depends on where was sent to before (section 5).
///
/// ```
/// use waypost_client::Behaviour;
///
/// let mapping = Some(Behaviour::EndpointIndependent);
/// let is_punchable = mapping == Some(Behaviour::EndpointIndependent);
/// assert!(is_punchable);
/// assert_eq!(Behaviour::AddressDependent.to_string(), "address-dependent");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Behaviour {
    /// It does not.
    EndpointIndependent,
    /// On the address.
    AddressDependent,
    /// On address and port.
    AddressAndPortDependent,
}

impl fmt::Display for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent",
            Self::AddressAndPortDependent => "address- and port-dependent",
        })
    }
}

/// What was found out.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let server = waypost_server::serve::Server::start_with(&[])?;
/// # let server = server.main_addr();
/// let report = waypost_client::nat_report(server)?;
/// println!("{report}");
/// assert!(report.is_public()); // this server runs on the same machine
/// # Ok(()) }
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NatReport {
    /// This machine's address on the way to the server.
    pub local: SocketAddr,
    /// The same as the server sees it.
    pub mapped: SocketAddr,
    /// How ports are mapped. `None`: it takes a server with a second address to tell.
    pub mapping: Option<Behaviour>,
    /// Who is let in. `None`: it takes a server with a second address to tell.
    pub filtering: Option<Behaviour>,
    /// Whether the public port is the local one.
    pub preserves_port: bool,
    /// By how much the public ports of sockets opened one after the other differ, if always by the same.
    pub step: Option<i32>,
    /// Whether two machines behind this NAT reach each other at their public addresses.
    pub hairpins: bool,
}

impl NatReport {
    /// Whether there is no NAT at all.
    #[must_use]
    pub fn is_public(&self) -> bool {
        self.local.ip() == self.mapped.ip()
    }

    /// What players can expect, in a few sentences.
    #[must_use]
    pub fn expectation(&self) -> &'static str {
        use Behaviour::EndpointIndependent;
        match (self.mapping, self.filtering) {
            _ if self.is_public() && self.filtering == Some(EndpointIndependent) => {
                "No NAT and no firewall: everybody reaches this machine directly."
            }
            _ if self.is_public() => {
                "No NAT, but perhaps a firewall: this machine can connect directly to nearly everybody, by punching."
            }
            (Some(EndpointIndependent), Some(EndpointIndependent)) => {
                "An open NAT: everybody who is introduced reaches this machine directly."
            }
            (Some(EndpointIndependent), _) => {
                "A NAT that can be punched: connections are direct, except to players whose NAT gives every peer another port; those are relayed, unless that NAT lets everybody in."
            }
            (Some(_), Some(EndpointIndependent)) => {
                "A NAT that gives every peer another port but lets everybody in: connections are direct with most players."
            }
            (Some(_), _) => {
                "A NAT that gives every peer another port: connections are direct only with players who are open to everybody or whose ports are guessed; all others are relayed. Forwarding a port on the router, or another network, makes this better."
            }
            (None, _) => {
                "The server has one address only, so it cannot be told for certain how this NAT behaves; ask for a report of a server that was started with --alternate-ip."
            }
        }
    }
}

impl fmt::Display for NatReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = |behaviour: Option<Behaviour>| {
            behaviour.map_or("unknown".to_owned(), |behaviour| behaviour.to_string())
        };
        let yes = |is_so| if is_so { "yes" } else { "no" };
        writeln!(f, "local address      {}", self.local)?;
        writeln!(f, "public address     {}", self.mapped)?;
        writeln!(f, "mapping            {}", known(self.mapping))?;
        writeln!(f, "filtering          {}", known(self.filtering))?;
        writeln!(f, "port preservation  {}", yes(self.preserves_port))?;
        let step = self.step.map_or("none".to_owned(), |step| step.to_string());
        writeln!(f, "port step          {step}")?;
        writeln!(f, "hairpin            {}", yes(self.hairpins))?;
        f.write_str(self.expectation())
    }
}

/// Finds out how the NAT in front of this machine behaves. Takes up to some seconds, because what does not come has to be
/// waited for; to find that a server is silent takes 15 s.
///
/// # Errors
/// [`Error::Silent`] if the server does not answer; [`Error::Io`].
pub fn nat_report(server: impl ToSocketAddrs) -> Result<NatReport, Error> {
    first_that_answers(server, report_from)
}

fn report_from(server: SocketAddr) -> Result<NatReport, Error> {
    let prober = Prober::open(server)?;
    let first = prober.ask(server)?.ok_or(Error::Silent)?;
    let mapped = first.mapped;
    let local = SocketAddr::new(local_ip(server)?, prober.socket.local_addr()?.port());
    let filtering = match first.other {
        Some(_) => Some(filtering(server)?),
        None => None,
    };
    let mapping = match first.other {
        Some(other) => prober.mapping(server, other, mapped)?,
        None => None,
    };
    Ok(NatReport {
        local,
        mapped,
        mapping,
        filtering,
        preserves_port: local.port() == mapped.port(),
        step: step(server)?,
        hairpins: hairpins(&prober, server, mapped)?,
    })
}

/// RFC 5780 section 4.4, from a socket that has sent nothing to the other address yet.
fn filtering(server: SocketAddr) -> Result<Behaviour, Error> {
    let prober = Prober::open(server)?;
    prober.ask(server)?.ok_or(Error::Silent)?;
    if prober.hears(server, OTHER_IP | OTHER_PORT)? {
        return Ok(Behaviour::EndpointIndependent);
    }
    Ok(if prober.hears(server, OTHER_PORT)? {
        Behaviour::AddressDependent
    } else {
        Behaviour::AddressAndPortDependent
    })
}

/// The difference between the mapped ports of sockets opened one after the other, if it is always the same and not that of
/// their local ports.
fn step(server: SocketAddr) -> Result<Option<i32>, Error> {
    let mut pairs = Vec::new();
    let mut open = Vec::new();
    for _ in 0..SOCKETS {
        let prober = Prober::open(server)?;
        let Some(answer) = prober.ask(server)? else {
            return Ok(None);
        };
        let local = prober.socket.local_addr()?.port();
        pairs.push((i32::from(local), i32::from(answer.mapped.port())));
        open.push(prober);
    }
    Ok(common_step(&pairs))
}

/// The same of local and mapped ports.
fn common_step(pairs: &[(i32, i32)]) -> Option<i32> {
    let steps: Vec<i32> = pairs.windows(2).map(|w| w[1].1 - w[0].1).collect();
    let is_kept = pairs.iter().all(|(local, mapped)| local == mapped);
    let same = steps.windows(2).all(|w| w[0] == w[1]);
    steps.first().copied().filter(|_| same && !is_kept)
}

/// Whether a packet from another socket to the own public address comes back in.
fn hairpins(prober: &Prober, server: SocketAddr, mapped: SocketAddr) -> Result<bool, Error> {
    let other = Prober::open(server)?;
    // The NAT has to have a mapping for the sender too.
    other.ask(server)?;
    let (_, request) = binding(0)?;
    let mut buffer = [0; BUFFER];
    for _ in 0..TRIES {
        // An address that is not reachable is one that does not hairpin.
        let _ = other.socket.send_to(&request, mapped);
        let until = Instant::now() + WAIT;
        while let Some((len, _)) = prober.receive(&mut buffer, until)? {
            if buffer[..len] == request[..] {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// What a server answered.
struct Answer {
    mapped: SocketAddr,
    other: Option<SocketAddr>,
}

struct Prober {
    socket: UdpSocket,
}

impl Prober {
    fn open(server: SocketAddr) -> Result<Self, Error> {
        let any: SocketAddr = match server {
            SocketAddr::V4(_) => ([0; 4], 0).into(),
            SocketAddr::V6(_) => ([0; 16], 0).into(),
        };
        let socket = UdpSocket::bind(any)?;
        Ok(Self { socket })
    }

    /// RFC 5780 section 4.3. `None` if the other address does not answer.
    fn mapping(
        &self,
        server: SocketAddr,
        other: SocketAddr,
        mapped: SocketAddr,
    ) -> Result<Option<Behaviour>, Error> {
        let same_port = SocketAddr::new(other.ip(), server.port());
        let Some(second) = self.ask(same_port)? else {
            return Ok(None);
        };
        if second.mapped == mapped {
            return Ok(Some(Behaviour::EndpointIndependent));
        }
        Ok(self.ask(other)?.map(|third| {
            if third.mapped == second.mapped {
                Behaviour::AddressDependent
            } else {
                Behaviour::AddressAndPortDependent
            }
        }))
    }

    /// Asks for the mapped address. `None` if there is no answer.
    fn ask(&self, to: SocketAddr) -> Result<Option<Answer>, Error> {
        self.ask_beside(to, |_, _| ())
    }

    /// As [`Prober::ask`]; whatever else comes meanwhile is shown to `other`.
    fn ask_beside(
        &self,
        to: SocketAddr,
        mut other: impl FnMut(SocketAddr, &[u8]),
    ) -> Result<Option<Answer>, Error> {
        let (id, request) = binding(0)?;
        let mut buffer = [0; BUFFER];
        let give_up = Instant::now() + PATIENCE;
        while Instant::now() < give_up {
            self.socket.send_to(&request, to)?;
            let until = Instant::now() + WAIT;
            while let Some((len, from)) = self.receive(&mut buffer, until)? {
                let answer = read(&buffer[..len], id).filter(|_| from == to);
                if answer.is_some() {
                    return Ok(answer);
                }
                other(from, &buffer[..len]);
            }
        }
        Ok(None)
    }

    /// Whether an answer that is to come from where `change` says gets here. A server may be slow, so the time that it is waited
    /// for begins when the same server has answered a plain question that it was asked after that.
    fn hears(&self, to: SocketAddr, change: u32) -> Result<bool, Error> {
        let (id, request) = binding(change)?;
        let is_wanted = |from: SocketAddr, bytes: &[u8]| {
            let moved_ip = from.ip() != to.ip();
            let moved_port = from.port() != to.port();
            moved_ip == (change & OTHER_IP != 0)
                && moved_port == (change & OTHER_PORT != 0)
                && read(bytes, id).is_some()
        };
        let mut buffer = [0; BUFFER];
        for _ in 0..TRIES {
            self.socket.send_to(&request, to)?;
            let mut came = false;
            self.ask_beside(to, |from, bytes| came |= is_wanted(from, bytes))?
                .ok_or(Error::Silent)?;
            let until = Instant::now() + WAIT;
            while !came && let Some((len, from)) = self.receive(&mut buffer, until)? {
                came = is_wanted(from, &buffer[..len]);
            }
            if came {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The next datagram before `until`.
    fn receive(
        &self,
        buffer: &mut [u8],
        until: Instant,
    ) -> Result<Option<(usize, SocketAddr)>, Error> {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        self.socket.set_read_timeout(Some(left))?;
        // Errors are timeouts, or ICMP messages that some systems report.
        Ok(self.socket.recv_from(buffer).ok())
    }
}

fn binding(change: u32) -> Result<(TransactionId, Vec<u8>), Error> {
    let mut id = [0; 12];
    getrandom::fill(&mut id).map_err(|error| std::io::Error::other(error.to_string()))?;
    let id = TransactionId(id);
    let mut request = Vec::new();
    let mut writer = MessageWriter::new(&mut request, method::BINDING, Class::Request, id);
    if change != 0 {
        writer.u32(attr::CHANGE_REQUEST, change);
    }
    writer.finish();
    Ok((id, request))
}

fn read(bytes: &[u8], id: TransactionId) -> Option<Answer> {
    let message = Message::parse(bytes).ok()?;
    let is_answer = message.transaction_id() == id && message.class() == Class::Success;
    let mapped = message.find_xor_addr(attr::XOR_MAPPED_ADDRESS)?;
    let other = message
        .find(attr::OTHER_ADDRESS)
        .and_then(stun::decode_plain_addr);
    is_answer.then(|| Answer {
        mapped: mapped.to_socket_addr(),
        other: other.map(Addr::to_socket_addr),
    })
}

/// This machine's address on the way to the server: connecting a UDP socket sends nothing.
fn local_ip(server: SocketAddr) -> Result<IpAddr, Error> {
    let prober = Prober::open(server)?;
    prober.socket.connect(server)?;
    Ok(prober.socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_expectation_follows_mapping_and_filtering() {
        use Behaviour::{AddressAndPortDependent, AddressDependent, EndpointIndependent};
        let report = |mapping, filtering, local: &str| {
            NatReport {
                local: local.parse().unwrap(),
                mapped: "203.0.113.9:5000".parse().unwrap(),
                mapping,
                filtering,
                preserves_port: true,
                step: None,
                hairpins: false,
            }
            .expectation()
        };
        let inside = "192.168.0.2:5000";
        for (mapping, filtering, local, begins) in [
            (
                Some(EndpointIndependent),
                Some(EndpointIndependent),
                "203.0.113.9:5000",
                "No NAT and no",
            ),
            (
                Some(EndpointIndependent),
                Some(AddressDependent),
                "203.0.113.9:5000",
                "No NAT, but",
            ),
            (
                Some(EndpointIndependent),
                Some(EndpointIndependent),
                inside,
                "An open NAT",
            ),
            (
                Some(EndpointIndependent),
                Some(AddressAndPortDependent),
                inside,
                "A NAT that can be punched",
            ),
            (
                Some(AddressAndPortDependent),
                Some(EndpointIndependent),
                inside,
                "A NAT that gives every peer another port but",
            ),
            (
                Some(AddressDependent),
                Some(AddressDependent),
                inside,
                "A NAT that gives every peer another port: ",
            ),
            (None, None, inside, "The server has one address only"),
        ] {
            let text = report(mapping, filtering, local);
            assert!(text.starts_with(begins), "{text}");
        }
    }

    #[test]
    fn a_step_is_what_all_ports_differ_by_and_not_the_local_ones() {
        for (pairs, step) in [
            ([(40_000, 5_000), (41_000, 5_002), (40_500, 5_004)], Some(2)),
            (
                [(40_000, 5_004), (41_000, 5_003), (40_500, 5_002)],
                Some(-1),
            ),
            ([(40_000, 5_000), (41_000, 5_002), (40_500, 5_005)], None),
            ([(40_000, 40_000), (40_001, 40_001), (40_002, 40_002)], None),
        ] {
            assert_eq!(common_step(&pairs), step, "{pairs:?}");
        }
    }

    #[test]
    fn what_answers_nothing_is_no_answer() {
        let (id, request) = binding(OTHER_PORT).unwrap();
        assert!(read(&request, id).is_none(), "a request");
        assert!(read(b"junk", id).is_none());
    }
}
