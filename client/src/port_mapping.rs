//! Asking the router for a port that it forwards, by PCP (RFC 6887), its forerunner NAT-PMP (RFC 6886), or else UPnP. Sends to the
//! default gateway only, and never waits for it longer than a second and a half for each protocol. What is mapped is renewed
//! at half its lifetime, and given back at the end.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::upnp::UpnpMapping;

/// Where gateways listen (RFC 6887 section 19.1).
const GATEWAY_PORT: u16 = 5351;
/// How long a mapping is wanted at a time.
pub(crate) const LIFETIME_SECS: u32 = 7_200;
/// Waits between repetitions (RFC 6886 section 3.1), as many as a player has patience for.
const WAITS: [Duration; 3] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_millis(750),
];
const PCP: u8 = 2;
const NAT_PMP: u8 = 0;
const PCP_MAP: u8 = 1;
const PCP_LEN: usize = 60;
const NAT_PMP_LEN: usize = 16;

/// A renewal never comes sooner than this after the last one (RFC 6887 section 11.2.1).
const RENEWAL_GAP: Duration = Duration::from_secs(4);
/// How often a router that let a port lapse is asked for it again.
const RETRY: Duration = Duration::from_secs(60);

/// A port that the router forwards, in whatever way it was asked. A thread of its own renews it until this is dropped, which
/// gives the port back.
#[derive(Debug)]
pub(crate) struct Forwarding {
    /// As the router granted it last.
    external_port: Arc<AtomicU16>,
    /// Hanging up ends the thread.
    hold: Option<mpsc::Sender<()>>,
    keeper: Option<JoinHandle<()>>,
}

impl Forwarding {
    /// Asks the default gateway of this machine to forward a port, UDP and if it likes TCP too. `None` if it does not, or if
    /// there is none that is known.
    pub(crate) fn request(local_port: u16) -> Option<Self> {
        let gateway = default_gateway()?;
        let mapping = PortMapping::request_of((gateway, GATEWAY_PORT).into(), local_port)
            .map(Mapping::Pcp)
            .or_else(|| UpnpMapping::request(gateway, local_port).map(Mapping::Upnp))?;
        Self::keep(mapping, renewal_in)
    }

    /// Keeps a mapping; `pace` says after what part of the time that is left of it the next renewal is due.
    fn keep(mut mapping: Mapping, pace: fn(Duration) -> Duration) -> Option<Self> {
        let external_port = Arc::new(AtomicU16::new(mapping.external_port()));
        let told = Arc::clone(&external_port);
        let (hold, held) = mpsc::channel();
        let keeper = thread::Builder::new()
            .name("waypost-port".to_owned())
            .spawn(move || {
                let mut lapses = Instant::now() + mapping.lifetime();
                loop {
                    let wait = pace(lapses.saturating_duration_since(Instant::now()));
                    if held.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
                        return;
                    }
                    if mapping.renew() {
                        lapses = Instant::now() + mapping.lifetime();
                        told.store(mapping.external_port(), Ordering::Relaxed);
                    }
                }
            })
            .ok()?;
        Some(Self {
            external_port,
            hold: Some(hold),
            keeper: Some(keeper),
        })
    }

    /// The port that the router forwards, which a renewal may change.
    pub(crate) fn external_port(&self) -> Arc<AtomicU16> {
        Arc::clone(&self.external_port)
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        self.hold = None;
        if let Some(keeper) = self.keeper.take() {
            // Its panic would be told by now, and a port that stays mapped lapses.
            let _ = keeper.join();
        }
    }
}

/// How long to wait with the next renewal of what lapses after `left`: half of it, so that several get lost before it does.
fn renewal_in(left: Duration) -> Duration {
    if left.is_zero() {
        RETRY
    } else {
        (left / 2).max(RENEWAL_GAP)
    }
}

#[derive(Debug)]
enum Mapping {
    Pcp(PortMapping),
    Upnp(UpnpMapping),
}

impl Mapping {
    const fn external_port(&self) -> u16 {
        match self {
            Self::Pcp(mapping) => mapping.external_port,
            Self::Upnp(mapping) => mapping.external_port,
        }
    }

    /// For how long the router said that it forwards the port, counted from when it said so.
    const fn lifetime(&self) -> Duration {
        Duration::from_secs(match self {
            Self::Pcp(mapping) => mapping.lifetime_secs as u64,
            Self::Upnp(mapping) => mapping.lifetime_secs as u64,
        })
    }

    /// Asks for the same again; returns whether the router grants that, or another port in its place.
    fn renew(&mut self) -> bool {
        match self {
            Self::Pcp(mapping) => mapping.renew(),
            Self::Upnp(mapping) => mapping.renew(),
        }
    }
}

/// What is forwarded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Protocol {
    Udp,
    Tcp,
}

/// A port that the router forwards. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct PortMapping {
    gateway: SocketAddr,
    nonce: [u8; 12],
    local_port: u16,
    external_port: u16,
    /// What the gateway granted last.
    lifetime_secs: u32,
    /// Whether it forwards the same port of TCP.
    has_tcp: bool,
}

impl PortMapping {
    fn request_of(gateway: SocketAddr, local_port: u16) -> Option<Self> {
        let mut nonce = [0; 12];
        getrandom::fill(&mut nonce).ok()?;
        let mut mapping = Self {
            gateway,
            nonce,
            local_port,
            external_port: local_port,
            lifetime_secs: 0,
            has_tcp: false,
        };
        let granted = mapping.ask(Protocol::Udp, LIFETIME_SECS)?;
        mapping.external_port = granted.port;
        mapping.lifetime_secs = granted.lifetime_secs;
        // Streams want the same port. Another one is of no use to anybody.
        mapping.has_tcp = mapping
            .ask(Protocol::Tcp, LIFETIME_SECS)
            .is_some_and(|granted| granted.port == mapping.external_port);
        if !mapping.has_tcp {
            let _ = mapping.ask(Protocol::Tcp, 0);
        }
        Some(mapping)
    }

    /// Asks for the same port again, and takes another one if the router gives that: it may have forgotten what it gave away.
    fn renew(&mut self) -> bool {
        let Some(granted) = self.ask(Protocol::Udp, LIFETIME_SECS) else {
            return false;
        };
        self.external_port = granted.port;
        self.lifetime_secs = granted.lifetime_secs;
        if self.has_tcp {
            let _ = self.ask(Protocol::Tcp, LIFETIME_SECS);
        }
        true
    }

    /// What the gateway answers.
    fn ask(&self, protocol: Protocol, lifetime_secs: u32) -> Option<Granted> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        socket.connect(self.gateway).ok()?;
        let client = socket.local_addr().ok()?.ip();
        let pcp = self.pcp_request(client, protocol, lifetime_secs);
        match exchange(&socket, &pcp, &WAITS, |answer| {
            self.read_pcp(answer, protocol)
                .or_else(|| speaks_nat_pmp_only(answer).then_some(Answer::Other))
        })? {
            Answer::Granted(granted) => Some(granted),
            Answer::Refused => None,
            Answer::Other => {
                let request = self.nat_pmp_request(protocol, lifetime_secs);
                match exchange(&socket, &request, &WAITS, |answer| {
                    self.read_nat_pmp(answer, protocol)
                })? {
                    Answer::Granted(granted) => Some(granted),
                    _ => None,
                }
            }
        }
    }

    fn pcp_request(&self, client: IpAddr, protocol: Protocol, lifetime_secs: u32) -> Vec<u8> {
        let client = match client {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        let mut request = vec![PCP, PCP_MAP, 0, 0];
        request.extend(lifetime_secs.to_be_bytes());
        request.extend(client.octets());
        request.extend(self.nonce);
        request.extend([protocol.number(), 0, 0, 0]);
        request.extend(self.local_port.to_be_bytes());
        request.extend(self.external_port.to_be_bytes());
        request.extend(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().octets());
        request
    }

    fn read_pcp(&self, answer: &[u8], protocol: Protocol) -> Option<Answer> {
        let answer = answer.first_chunk::<PCP_LEN>()?;
        let is_ours = answer[..2] == [PCP, 0x80 | PCP_MAP]
            && answer[24..36] == self.nonce
            && answer[36] == protocol.number()
            && answer[40..42] == self.local_port.to_be_bytes();
        let granted = Granted {
            port: u16::from_be_bytes([answer[42], answer[43]]),
            lifetime_secs: u32::from_be_bytes([answer[4], answer[5], answer[6], answer[7]]),
        };
        is_ours.then(|| Answer::of(answer[3] == 0, granted))
    }

    fn nat_pmp_request(&self, protocol: Protocol, lifetime_secs: u32) -> Vec<u8> {
        let external = if lifetime_secs == 0 {
            0
        } else {
            self.external_port
        };
        let mut request = vec![NAT_PMP, protocol.nat_pmp_opcode(), 0, 0];
        request.extend(self.local_port.to_be_bytes());
        request.extend(external.to_be_bytes());
        request.extend(lifetime_secs.to_be_bytes());
        request
    }

    fn read_nat_pmp(&self, answer: &[u8], protocol: Protocol) -> Option<Answer> {
        let head = answer.first_chunk::<4>()?;
        if head[..2] != [NAT_PMP, 0x80 | protocol.nat_pmp_opcode()] {
            return None;
        }
        if head[2..] != [0, 0] {
            return Some(Answer::Refused);
        }
        let answer = answer.first_chunk::<NAT_PMP_LEN>()?;
        let granted = Granted {
            port: u16::from_be_bytes([answer[10], answer[11]]),
            lifetime_secs: u32::from_be_bytes([answer[12], answer[13], answer[14], answer[15]]),
        };
        (answer[8..10] == self.local_port.to_be_bytes()).then(|| Answer::of(true, granted))
    }
}

impl Drop for PortMapping {
    /// Says once that the ports are not needed any more; they lapse by themselves if that is lost.
    fn drop(&mut self) {
        let Ok(socket) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)) else {
            return;
        };
        if socket.connect(self.gateway).is_err() {
            return;
        }
        let Ok(local) = socket.local_addr() else {
            return;
        };
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            let _ = socket.send(&self.pcp_request(local.ip(), protocol, 0));
            let _ = socket.send(&self.nat_pmp_request(protocol, 0));
        }
    }
}

impl Protocol {
    /// The IANA protocol number.
    const fn number(self) -> u8 {
        match self {
            Self::Udp => 17,
            Self::Tcp => 6,
        }
    }

    const fn nat_pmp_opcode(self) -> u8 {
        match self {
            Self::Udp => 1,
            Self::Tcp => 2,
        }
    }
}

struct Granted {
    port: u16,
    lifetime_secs: u32,
}

enum Answer {
    Granted(Granted),
    Refused,
    /// The gateway speaks the other protocol.
    Other,
}

impl Answer {
    const fn of(is_success: bool, granted: Granted) -> Self {
        if is_success && granted.port != 0 {
            Self::Granted(granted)
        } else {
            Self::Refused
        }
    }
}

/// A gateway of NAT-PMP's time answers PCP with its own version and result 1 (RFC 6887 appendix A).
fn speaks_nat_pmp_only(answer: &[u8]) -> bool {
    answer.len() >= 4 && answer[0] == NAT_PMP
}

/// Sends until something comes that `read` understands, and waits so long after each time.
pub(crate) fn exchange<T>(
    socket: &UdpSocket,
    request: &[u8],
    waits: &[Duration],
    read: impl Fn(&[u8]) -> Option<T>,
) -> Option<T> {
    let mut buffer = [0; 2_048];
    for &wait in waits {
        socket.send(request).ok()?;
        let until = Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || socket.set_read_timeout(Some(left)).is_err() {
                break;
            }
            match socket.recv(&mut buffer) {
                Ok(len) => {
                    if let Some(answer) = read(&buffer[..len]) {
                        return Some(answer);
                    }
                }
                // Nobody listens there.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return None,
                Err(_) => {}
            }
        }
    }
    None
}

/// The gateway of the default route, as the kernel's table has it (proc_net(5)). Other systems have no such file.
fn default_gateway() -> Option<IpAddr> {
    read_routes(&std::fs::read_to_string("/proc/net/route").ok()?)
}

fn read_routes(table: &str) -> Option<IpAddr> {
    table.lines().skip(1).find_map(|line| {
        let mut columns = line.split_whitespace().skip(1);
        let destination = columns.next()?;
        let gateway = u32::from_str_radix(columns.next()?, 16).ok()?;
        let is_default = destination == "00000000" && gateway != 0;
        is_default.then(|| Ipv4Addr::from(gateway.to_ne_bytes()).into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// A gateway that answers each request with what `answers` makes of it, until it makes nothing.
    fn gateway(mut answers: impl FnMut(&[u8]) -> Option<Vec<u8>> + Send + 'static) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = socket.local_addr().unwrap();
        thread::spawn(move || {
            let mut buffer = [0; 1_100];
            while let Ok((len, from)) = socket.recv_from(&mut buffer) {
                let Some(answer) = answers(&buffer[..len]) else {
                    return;
                };
                socket.send_to(&answer, from).unwrap();
            }
        });
        at
    }

    fn pcp_answer(request: &[u8], result: u8, port: u16) -> Vec<u8> {
        let mut answer = vec![PCP, 0x81, 0, result];
        answer.extend(&request[4..8]);
        answer.extend([0; 16]);
        answer.extend(&request[24..42]);
        answer.extend(port.to_be_bytes());
        answer.extend([0; 16]);
        answer
    }

    #[test]
    fn a_gateway_of_pcp_forwards_a_port() {
        let at = gateway(|request| {
            assert_eq!((request.len(), request[0], request[1]), (PCP_LEN, 2, 1));
            assert_eq!(request[40..42], 4_000u16.to_be_bytes());
            Some(pcp_answer(request, 0, 61_000))
        });
        let mapping = PortMapping::request_of(at, 4_000).unwrap();
        assert_eq!(mapping.external_port, 61_000);
    }

    #[test]
    fn a_gateway_of_nat_pmp_forwards_a_port() {
        let at = gateway(|request| {
            if request[0] == PCP {
                return Some(vec![0, 0x81, 0, 1, 0, 0, 0, 0]);
            }
            assert_eq!(request.len(), 12);
            let mut answer = vec![0, 0x80 | request[1], 0, 0, 0, 0, 0, 9];
            answer.extend(&request[4..6]);
            answer.extend(61_001u16.to_be_bytes());
            answer.extend(&request[8..12]);
            Some(answer)
        });
        let mapping = PortMapping::request_of(at, 4_000).unwrap();
        assert_eq!(mapping.external_port, 61_001);
    }

    /// The thread that keeps the port is told to be in a hurry.
    #[test]
    fn a_port_is_renewed_until_it_is_given_back() {
        let (asked, log) = mpsc::channel();
        let mut last = None;
        let at = gateway(move |request| {
            if request[0] != PCP {
                return Some(Vec::new());
            }
            let lifetime_secs = u32::from_be_bytes(*request[4..].first_chunk().unwrap());
            let this = (request[36], lifetime_secs);
            // Repeated, because the answer was slow to come.
            if last.replace(this) != Some(this) {
                asked.send(this).unwrap();
            }
            Some(pcp_answer(request, 0, 61_000))
        });
        let mapping = PortMapping::request_of(at, 4_000).unwrap();
        assert_eq!(mapping.lifetime_secs, LIFETIME_SECS);
        let kept = Forwarding::keep(Mapping::Pcp(mapping), |_| Duration::from_millis(1)).unwrap();
        assert_eq!(kept.external_port().load(Ordering::Relaxed), 61_000);
        let next = || log.recv_timeout(Duration::from_secs(30)).unwrap();
        for _ in 0..4 {
            let both = [next(), next()];
            assert_eq!(both, [(17, LIFETIME_SECS), (6, LIFETIME_SECS)]);
        }
        drop(kept);
        // Whatever was still renewed in between comes before.
        let end: Vec<(u8, u32)> = std::iter::repeat_with(next)
            .skip_while(|(_, lifetime_secs)| *lifetime_secs != 0)
            .take(2)
            .collect();
        assert_eq!(end, [(17, 0), (6, 0)]);
    }

    #[test]
    fn another_port_takes_the_place_of_one_that_the_router_forgot() {
        let mut port = 61_000;
        let at = gateway(move |request| {
            // The first two requests are for both protocols.
            if request[0] == PCP && request[36] == 17 && request[42..44] != [0x0f, 0xa0] {
                port = 61_002;
            }
            Some(pcp_answer(request, 0, port))
        });
        let mut mapping = PortMapping::request_of(at, 4_000).unwrap();
        assert_eq!((mapping.external_port, mapping.has_tcp), (61_000, true));
        assert!(mapping.renew());
        assert_eq!(mapping.external_port, 61_002);
    }

    #[test]
    fn renewals_come_at_half_of_what_is_left() {
        for (left_secs, wait_secs) in [(7_200, 3_600), (60, 30), (5, 4), (1, 4), (0, 60)] {
            let wait = renewal_in(Duration::from_secs(left_secs));
            assert_eq!(wait, Duration::from_secs(wait_secs), "{left_secs} s left");
        }
    }

    #[test]
    fn refusals_and_nonsense_forward_nothing() {
        let at = gateway(|request| Some(pcp_answer(request, 2, 61_000)));
        assert!(PortMapping::request_of(at, 4_000).is_none(), "refused");
        let at = gateway(|request| Some(pcp_answer(request, 0, 0)));
        assert!(PortMapping::request_of(at, 4_000).is_none(), "port zero");
        for len in 0..PCP_LEN {
            let mapping = PortMapping {
                gateway: at,
                nonce: [1; 12],
                local_port: 4_000,
                external_port: 4_000,
                lifetime_secs: 0,
                has_tcp: false,
            };
            let request = mapping.pcp_request(at.ip(), Protocol::Udp, 1);
            let answer = pcp_answer(&request, 0, 5_000);
            assert!(mapping.read_pcp(&answer[..len], Protocol::Udp).is_none());
            let _ = mapping.read_nat_pmp(&answer[..len], Protocol::Udp);
            std::mem::forget(mapping);
        }
    }

    #[test]
    fn the_default_gateway_is_read_from_the_kernels_table() {
        let table = "Iface\tDestination\tGateway\tFlags\nlan\t0001A8C0\t00000000\t0001\nlan\t00000000\t0101A8C0\t0003\n";
        let expected: IpAddr = Ipv4Addr::from(0x0101_A8C0_u32.to_ne_bytes()).into();
        assert_eq!(read_routes(table), Some(expected));
        assert_eq!(read_routes("Iface\n"), None);
        assert_eq!(read_routes("x\nlan\t00000000\tnonsense\n"), None);
    }
}
