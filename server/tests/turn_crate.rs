//! A TURN client that others wrote, `turn-client-proto`, talks through the running server, on either backend. The crate does no
//! I/O of its own: a socket of this test carries what it says.

#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use turn_client_proto::api::{TurnConfig, TurnEvent, TurnPollRet, TurnRecvRet};
use turn_client_proto::prelude::{DelayedTransmitBuild as _, TurnClientApi as _};
use turn_client_proto::stun::agent::Transmit;
use turn_client_proto::types::{TransportType, TurnCredentials};
use turn_client_proto::udp::TurnClientUdp;
use waypost_server::serve::Server;

/// A wait that ends a hung test; no test passes because of it.
const HANG: Duration = Duration::from_secs(30);
const UDP: TransportType = TransportType::Udp;

struct Client {
    socket: UdpSocket,
    turn: TurnClientUdp,
    began: Instant,
    received: VecDeque<(SocketAddr, Vec<u8>)>,
    /// Transaction ids of what was taken in.
    answered: Vec<[u8; 12]>,
}

impl Client {
    fn new(server: SocketAddr) -> Self {
        let socket = UdpSocket::bind(SocketAddr::new(server.ip(), 0)).unwrap();
        socket.connect(server).unwrap();
        let config = TurnConfig::new(TurnCredentials::new("ann", "ann's own password"));
        let local = socket.local_addr().unwrap();
        Self {
            turn: TurnClientUdp::allocate(local, server, config),
            socket,
            began: Instant::now(),
            received: VecDeque::new(),
            answered: Vec::new(),
        }
    }

    fn now(&self) -> turn_client_proto::stun::Instant {
        turn_client_proto::stun::Instant::from_std(self.began)
            .checked_add(self.began.elapsed())
            .unwrap()
    }

    /// Does what the crate wants, then takes in one datagram or lets the time pass that it names.
    fn step(&mut self) {
        assert!(
            self.began.elapsed() < HANG,
            "the conversation does not go on"
        );
        let wait = match self.turn.poll(self.now()) {
            TurnPollRet::WaitUntil(at) => at.saturating_duration_since(self.now()),
            other => panic!("{other:?}"),
        };
        let mut has_sent = false;
        while let Some(transmit) = self.turn.poll_transmit(self.now()) {
            self.socket.send(transmit.data.as_ref()).unwrap();
            has_sent = true;
        }
        if has_sent {
            return;
        }
        let wait = wait.clamp(Duration::from_millis(1), HANG);
        self.socket.set_read_timeout(Some(wait)).unwrap();
        let mut buffer = [0; 2048];
        let len = match self.socket.recv(&mut buffer) {
            Ok(len) => len,
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let (from, to) = (self.turn.remote_addr(), self.turn.local_addr());
        let transmit = Transmit::new(buffer[..len].to_vec(), UDP, from, to);
        let id: [u8; 12] = buffer[8..20].try_into().unwrap();
        match self.turn.recv(transmit, self.now()) {
            TurnRecvRet::Handled => self.answered.push(id),
            // A second answer, to a request that was repeated because the first was slow to come.
            TurnRecvRet::Ignored(_) if self.answered.contains(&id) => {}
            TurnRecvRet::PeerData(data) => {
                self.received.push_back((data.peer, data.data().to_vec()))
            }
            other => panic!("{other:?}"),
        }
        while let Some(data) = self.turn.poll_recv(self.now()) {
            self.received.push_back((data.peer, data.data().to_vec()));
        }
    }

    fn event(&mut self) -> TurnEvent {
        loop {
            if let Some(event) = self.turn.poll_event() {
                return event;
            }
            self.step();
        }
    }

    fn send(&mut self, peer: SocketAddr, data: &[u8]) {
        let now = self.now();
        let transmit = self.turn.send_to(UDP, peer, data, now).unwrap().unwrap();
        self.socket.send(&transmit.data.build()).unwrap();
    }

    fn receive(&mut self) -> (SocketAddr, Vec<u8>) {
        loop {
            if let Some(received) = self.received.pop_front() {
                return received;
            }
            self.step();
        }
    }
}

/// Sends `count` datagrams back; says from where they came.
fn echo(count: usize) -> (SocketAddr, std::thread::JoinHandle<Vec<SocketAddr>>) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(HANG)).unwrap();
    let at = socket.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        let mut answer = || {
            let (len, from) = socket.recv_from(&mut buffer).unwrap();
            socket.send_to(&buffer[..len], from).unwrap();
            from
        };
        (0..count).map(|_| answer()).collect()
    });
    (at, thread)
}

fn conversation(io: &str) {
    let options = [
        "--io",
        io,
        "--shards",
        "2",
        "--user",
        "ann:ann's own password",
    ];
    let server =
        Server::start_with(&[&options[..], &["--allow-peer", "127.0.0.0/8"]].concat()).unwrap();
    let (peer, echo) = echo(2 * 20);
    let mut client = Client::new(server.main_addr());
    let TurnEvent::AllocationCreated(UDP, relayed) = client.event() else {
        panic!("no allocation");
    };
    assert_eq!(relayed.ip(), server.main_addr().ip());
    let now = client.now();
    client.turn.create_permission(UDP, peer.ip(), now).unwrap();
    let event = client.event();
    assert!(
        matches!(event, TurnEvent::PermissionCreated(UDP, ip) if ip == peer.ip()),
        "{event:?}"
    );
    // By indications, then by a channel.
    for is_bound in [false, true] {
        if is_bound {
            let now = client.now();
            client.turn.bind_channel(UDP, peer, now).unwrap();
            let event = client.event();
            assert!(
                matches!(event, TurnEvent::ChannelCreated(UDP, at) if at == peer),
                "{event:?}"
            );
        }
        for len in 0..20 {
            let data = vec![len as u8; len * 60];
            client.send(peer, &data);
            assert_eq!(client.receive(), (peer, data));
        }
    }
    assert_eq!(echo.join().unwrap(), [relayed; 40]);
    let now = client.now();
    client.turn.delete(now).unwrap();
    client.step();
    server.stop();
}

#[test]
fn a_client_of_others_allocates_and_talks() {
    for io in ["uring", "mmsg"] {
        conversation(io);
    }
}
