//! TURN against the running server, on either backend: a client written from the wire formats, and Debian's
//! `turnutils_uclient` where it is installed.

#![allow(clippy::unwrap_used)]

mod account;
#[path = "streams/identity.rs"]
mod identity;

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use waypost_proto::addr::Addr;
use waypost_proto::wire::channel_data::{self, ChannelNumber};
use waypost_proto::wire::stun::{Class, Message, MessageWriter, TransactionId, attr, method};
use waypost_server::serve::Server;

use account::Account;

/// A wait that ends a hung test; no test passes because of it.
const HANG: Duration = Duration::from_secs(20);
const BACKENDS: [&str; 2] = ["uring", "mmsg"];

fn server(io: &str, listen: &str) -> Server {
    server_with(io, listen, &[])
}

fn server_with(io: &str, listen: &str, given: &[&str]) -> Server {
    let options = ["--io", io, "--listen", listen, "--shards", "2"];
    let turn = ["--user", account::USER, "--allow-peer", "127.0.0.0/8"];
    let more = ["--allow-peer", "::1", "--turn-compat", "true"];
    Server::start_with(&[&options[..], &turn, &more, given].concat()).unwrap()
}

/// Receives, also when a signal comes between: a receive with a timeout is not restarted (signal(7)).
fn receive_from(socket: &UdpSocket, buffer: &mut [u8]) -> (usize, SocketAddr) {
    loop {
        match socket.recv_from(buffer) {
            Ok(received) => return received,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("{error}"),
        }
    }
}

struct Client {
    socket: UdpSocket,
    account: Account,
    is_repeating: bool,
    /// The channel that it binds and sends on.
    channel: u16,
}

impl Client {
    fn new(server: SocketAddr) -> Self {
        let any_port = SocketAddr::new(server.ip(), 0);
        let socket = UdpSocket::bind(any_port).unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(HANG)).unwrap();
        Self {
            socket,
            account: Account::default(),
            is_repeating: false,
            channel: 0x400a,
        }
    }

    fn addr(&self) -> Addr {
        Addr::new(self.socket.local_addr().unwrap())
    }

    fn receive(&self) -> Vec<u8> {
        let mut buffer = [0; 2048];
        let (len, _) = receive_from(&self.socket, &mut buffer);
        buffer[..len].to_vec()
    }

    /// Sends a request; returns the success response.
    fn request(&mut self, method: u16, fill: &dyn Fn(&mut MessageWriter<'_>)) -> Vec<u8> {
        self.try_request(method, fill)
            .unwrap_or_else(|code| panic!("error {code}"))
    }

    /// Sends a request; returns the success response, or the code of the error.
    fn try_request(
        &mut self,
        method: u16,
        fill: &dyn Fn(&mut MessageWriter<'_>),
    ) -> Result<Vec<u8>, u16> {
        loop {
            let request = self.account.write(method, fill);
            self.socket.send(&request).unwrap();
            let bytes = self.receive();
            if self.is_repeating && self.account.is_challenged() {
                self.socket.send(&request).unwrap();
                assert_eq!(self.receive(), bytes, "a repetition has the same answer");
            }
            if let Some(outcome) = self.account.read(&bytes) {
                return outcome.map(|()| bytes);
            }
        }
    }

    fn allocate(&mut self, is_v6: bool) -> SocketAddr {
        let bytes = self.request(method::ALLOCATE, &|w| {
            w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
                .attribute(
                    attr::REQUESTED_ADDRESS_FAMILY,
                    &[1 + u8::from(is_v6), 0, 0, 0],
                );
        });
        let answer = Message::parse(&bytes).unwrap();
        let mapped = answer.find_xor_addr(attr::XOR_MAPPED_ADDRESS);
        assert_eq!(mapped, Some(self.addr()));
        let relayed = answer.find_xor_addr(attr::XOR_RELAYED_ADDRESS).unwrap();
        relayed.to_socket_addr()
    }

    fn permit(&mut self, peer: Addr) {
        self.request(method::CREATE_PERMISSION, &|w| {
            w.xor_addr(attr::XOR_PEER_ADDRESS, peer);
        });
    }

    fn bind(&mut self, peer: Addr) {
        let [high, low] = self.channel.to_be_bytes();
        self.request(method::CHANNEL_BIND, &|w| {
            w.attribute(attr::CHANNEL_NUMBER, &[high, low, 0, 0])
                .xor_addr(attr::XOR_PEER_ADDRESS, peer);
        });
    }

    fn send_indication(&self, peer: Addr, data: &[u8]) {
        let mut out = Vec::new();
        let id = TransactionId([0; 12]);
        MessageWriter::new(&mut out, method::SEND, Class::Indication, id)
            .xor_addr(attr::XOR_PEER_ADDRESS, peer)
            .attribute(attr::DATA, data)
            .fingerprint()
            .finish();
        self.socket.send(&out).unwrap();
    }

    fn send_channel(&self, data: &[u8]) {
        let number = ChannelNumber::new(self.channel).unwrap();
        let mut out = channel_data::header(number, data.len()).to_vec();
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(4), 0xee);
        self.socket.send(&out).unwrap();
    }
}

fn conversation(io: &str, listen: &str) {
    let server = server(io, listen);
    assert_eq!(server.backend(), io);
    let at = server.main_addr();
    let peer = UdpSocket::bind(SocketAddr::new(at.ip(), 0)).unwrap();
    peer.set_read_timeout(Some(HANG)).unwrap();
    let peer_addr = Addr::new(peer.local_addr().unwrap());
    let mut buffer = [0; 2048];
    for is_repeating in [false, true] {
        let mut client = Client::new(at);
        client.is_repeating = is_repeating;
        let relayed = client.allocate(at.is_ipv6());
        assert_eq!(relayed.ip(), at.ip());
        client.permit(peer_addr);
        for len in [0, 1, 2, 3, 4, 5, 200, 1200, 1379] {
            let data: Vec<u8> = (0..len).map(|i| (i * 7 + len) as u8).collect();
            client.send_indication(peer_addr, &data);
            let (got, from) = receive_from(&peer, &mut buffer);
            assert_eq!((&buffer[..got], from), (&data[..], relayed));
            peer.send_to(&data, relayed).unwrap();
            let bytes = client.receive();
            let message = Message::parse(&bytes).unwrap();
            assert_eq!(message.method(), method::DATA);
            assert_eq!(
                message.find_xor_addr(attr::XOR_PEER_ADDRESS),
                Some(peer_addr)
            );
            assert_eq!(message.find(attr::DATA), Some(&data[..]));
        }
        client.bind(peer_addr);
        for len in [0, 1, 4, 5, 200, 1379] {
            let data: Vec<u8> = (0..len).map(|i| (i * 5 + len) as u8).collect();
            client.send_channel(&data);
            let (got, from) = receive_from(&peer, &mut buffer);
            assert_eq!((&buffer[..got], from), (&data[..], relayed));
            peer.send_to(&data, relayed).unwrap();
            let bytes = client.receive();
            let message = channel_data::parse(&bytes).unwrap();
            assert_eq!((message.channel.get(), message.data), (0x400a, &data[..]));
            assert_eq!(bytes.len(), 4 + data.len());
        }
        client.request(method::REFRESH, &|w| {
            w.u32(attr::LIFETIME, 0);
        });
        // The same five-tuple may allocate anew.
        client.is_repeating = false;
        client.allocate(at.is_ipv6());
    }
    server.stop();
}

#[test]
fn a_conversation_over_ipv4() {
    for io in BACKENDS {
        conversation(io, "127.0.0.1:0");
    }
}

#[test]
fn a_conversation_over_ipv6() {
    for io in BACKENDS {
        conversation(io, "[::1]:0");
    }
}

// RFC 8656 section 7.2: what one user or source may not have any more is 486, what the server has no room for 508.
#[test]
fn quotas_are_options() {
    let allocates = |server: &Server, wanted: &[Result<(), u16>]| {
        let mut clients = Vec::new();
        for (place, wanted) in wanted.iter().enumerate() {
            let mut client = Client::new(server.main_addr());
            let got = client.try_request(method::ALLOCATE, &|w| {
                w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
            });
            assert_eq!(got.map(|_| ()), *wanted, "client {place}");
            clients.push(client);
        }
        clients
    };
    for io in BACKENDS {
        let options = [
            "--io",
            io,
            "--listen",
            "127.0.0.1:0",
            "--user",
            account::USER,
        ];
        // Quotas hold over all shards, room is divided.
        for (quota, shards, wanted) in [
            ("--allocations-per-user", "2", Err(486)),
            ("--allocations-per-source", "2", Err(486)),
            ("--max-allocations", "1", Err(508)),
        ] {
            let of_this = [quota, "2", "--shards", shards];
            let server = Server::start_with(&[&options[..], &of_this].concat()).unwrap();
            allocates(&server, &[Ok(()), Ok(()), wanted, wanted, wanted, wanted]);
        }
        let of_one = [
            "--permissions-per-allocation",
            "2",
            "--channels-per-allocation",
            "1",
        ];
        let server = Server::start_with(&[&options[..], &of_one].concat()).unwrap();
        let mut client = allocates(&server, &[Ok(())]).remove(0);
        let peers = [1, 2, 3].map(|last| Addr::new(SocketAddr::from(([8, 8, 8, last], 9))));
        client.permit(peers[0]);
        client.bind(peers[1]);
        let beyond = client.try_request(method::CREATE_PERMISSION, &|w| {
            w.xor_addr(attr::XOR_PEER_ADDRESS, peers[2]);
        });
        assert_eq!(beyond, Err(508));
        let beyond = client.try_request(method::CHANNEL_BIND, &|w| {
            w.attribute(attr::CHANNEL_NUMBER, &[0x40, 0x0b, 0, 0])
                .xor_addr(attr::XOR_PEER_ADDRESS, peers[0]);
        });
        assert_eq!(beyond, Err(508));
        // What is there is refreshed.
        client.permit(peers[0]);
        client.bind(peers[1]);
    }
}

#[test]
fn two_clients_reach_each_other_through_their_relayed_addresses() {
    for io in BACKENDS {
        // The server's relayed addresses are peers without any rule of the operator.
        let options = ["--io", io, "--user", account::USER, "--shards", "2"];
        let server = Server::start_with(&options).unwrap();
        let mut clients = [
            Client::new(server.main_addr()),
            Client::new(server.main_addr()),
        ];
        let relayed: Vec<_> = clients
            .iter_mut()
            .map(|c| Addr::new(c.allocate(false)))
            .collect();
        clients[0].bind(relayed[1]);
        clients[1].bind(relayed[0]);
        for (from, to) in [(0, 1), (1, 0)] {
            clients[from].send_channel(b"over two relays");
            let bytes = clients[to].receive();
            assert_eq!(
                channel_data::parse(&bytes).unwrap().data,
                b"over two relays"
            );
        }
    }
}

/// The shard of two that gave out a port of the default range.
fn shard_of(relayed: Addr) -> usize {
    usize::from(relayed.port() >= 57_344)
}

// Any pair, on one shard or two, in both modes; and soon none of it takes the way through the kernel.
#[test]
fn clients_reach_each_other_directly_in_both_modes() {
    for io in BACKENDS {
        let options = ["--io", io, "--user", account::USER];
        let server = Server::start_with(&[&options[..], &["--shards", "2"]].concat()).unwrap();
        let mut clients = Vec::new();
        let mut relayed = Vec::new();
        let on =
            |relayed: &[Addr], shard| relayed.iter().filter(|r| shard_of(**r) == shard).count();
        while on(&relayed, 0) < 2 || on(&relayed, 1) < 2 {
            let mut client = Client::new(server.main_addr());
            relayed.push(Addr::new(client.allocate(false)));
            client.permit(relayed[0]);
            clients.push(client);
        }
        let pairs: Vec<_> = (0..clients.len())
            .flat_map(|from| (0..clients.len()).map(move |to| (from, to)))
            .collect();
        let is_of_one_shard =
            |&&(a, b): &&(usize, usize)| shard_of(relayed[a]) == shard_of(relayed[b]);
        let of_one_shard = pairs.iter().filter(is_of_one_shard).count() as u64;
        let give_up = Instant::now() + HANG;
        let hairpins = || server.metrics().total("waypost_hairpin_packets_total");
        let mut rounds = 0;
        while hairpins() <= rounds * of_one_shard {
            assert!(
                Instant::now() < give_up,
                "{io}: nothing goes directly between shards"
            );
            rounds += 1;
            for &(from, to) in &pairs {
                let data = [from as u8, to as u8, rounds as u8];
                clients[from].send_indication(relayed[to], &data);
                let bytes = clients[to].receive();
                let message = Message::parse(&bytes).unwrap();
                let peer = message.find_xor_addr(attr::XOR_PEER_ADDRESS);
                assert_eq!(peer, Some(relayed[from]));
                assert_eq!(message.find(attr::DATA), Some(&data[..]));
            }
        }
        let other = relayed
            .iter()
            .position(|r| shard_of(*r) != shard_of(relayed[0]))
            .unwrap();
        for to in HashSet::from([other, 1]) {
            let mut bind = |client: usize, peer: usize| {
                clients[client].channel = 0x4000 + peer as u16;
                clients[client].bind(relayed[peer]);
            };
            bind(0, to);
            bind(to, 0);
            for (from, to) in [(0, to), (to, 0), (0, to)] {
                // The mail about the channel and the datagram may come to the other shard at once.
                let bytes = loop {
                    assert!(Instant::now() < give_up, "{io}: the channel is not used");
                    clients[from].send_channel(b"on a channel");
                    let bytes = clients[to].receive();
                    if channel_data::parse(&bytes).is_some() {
                        break bytes;
                    }
                };
                let message = channel_data::parse(&bytes).unwrap();
                assert_eq!(message.channel.get(), 0x4000 + from as u16);
                assert_eq!(message.data, b"on a channel");
            }
        }
    }
}

// RFC 8656 section 11.5: a peer that is not there.
#[test]
fn a_client_is_told_that_nobody_listens() {
    for io in BACKENDS {
        for (listen, icmp) in [("127.0.0.1:0", [0, 0, 6, 3]), ("[::1]:0", [0, 0, 2, 4])] {
            let server = server(io, listen);
            let at = server.main_addr();
            let mut client = Client::new(at);
            client.allocate(at.is_ipv6());
            // Bound, so that nobody else gets the port, and connected, so that it takes nothing from here.
            let deaf = UdpSocket::bind(SocketAddr::new(at.ip(), 0)).unwrap();
            let closed = deaf.local_addr().unwrap();
            deaf.connect(closed).unwrap();
            let closed = Addr::new(closed);
            client.permit(closed);
            client.send_indication(closed, b"anybody there?");
            let bytes = client.receive();
            let message = Message::parse(&bytes).unwrap();
            assert_eq!(message.method(), method::DATA);
            assert_eq!(message.find_xor_addr(attr::XOR_PEER_ADDRESS), Some(closed));
            assert_eq!(
                message.find(attr::ICMP).map(|value| &value[..4]),
                Some(&icmp[..])
            );
            assert_eq!(message.find(attr::DATA), None);
        }
    }
}

#[test]
fn many_allocations_come_and_go() {
    for io in BACKENDS {
        let server = server(io, "127.0.0.1:0");
        for _ in 0..300 {
            let mut client = Client::new(server.main_addr());
            client.allocate(false);
            client.request(method::REFRESH, &|w| {
                w.u32(attr::LIFETIME, 0);
            });
        }
        let mut clients: Vec<_> = (0..100).map(|_| Client::new(server.main_addr())).collect();
        let mut relayed: Vec<_> = clients.iter_mut().map(|c| c.allocate(false)).collect();
        relayed.sort_unstable();
        relayed.dedup();
        assert_eq!(relayed.len(), 100);
    }
}

// RFC 8016: wherever the kernel brings the next address, on the same shard or on another.
#[test]
fn an_allocation_follows_its_client_across_shards() {
    for io in BACKENDS {
        let server = server(io, "127.0.0.1:0");
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        peer.set_read_timeout(Some(HANG)).unwrap();
        let peer_addr = Addr::new(peer.local_addr().unwrap());
        let mut client = Client::new(server.main_addr());
        let mut bytes = client.request(method::ALLOCATE, &|w| {
            w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
                .attribute(attr::MOBILITY_TICKET, &[]);
        });
        let answer = Message::parse(&bytes).unwrap();
        let relayed = answer.find_xor_addr(attr::XOR_RELAYED_ADDRESS).unwrap();
        client.bind(peer_addr);
        for is_repeating in [false, true].repeat(8) {
            let ticket = Message::parse(&bytes).unwrap();
            let ticket = ticket.find(attr::MOBILITY_TICKET).unwrap().to_vec();
            client = Client::new(server.main_addr());
            client.is_repeating = is_repeating;
            bytes = client.request(method::REFRESH, &|w| {
                w.attribute(attr::MOBILITY_TICKET, &ticket);
            });
            let mut buffer = [0; 2048];
            for data in [&b"by the new address"[..], b"", b"odd"] {
                client.send_channel(data);
                let (len, from) = receive_from(&peer, &mut buffer);
                assert_eq!((&buffer[..len], from), (data, relayed.to_socket_addr()));
                peer.send_to(data, relayed.to_socket_addr()).unwrap();
                let bytes = client.receive();
                assert_eq!(channel_data::parse(&bytes).unwrap().data, data);
            }
            client.bind(peer_addr);
        }
        client.request(method::REFRESH, &|w| {
            w.u32(attr::LIFETIME, 0);
        });
        client.is_repeating = false;
        client.allocate(false);
    }
}

/// A process that ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends everything back, from two ports in a row, until the test is over.
fn echo_peer() -> SocketAddr {
    let (at, sockets) = loop {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = socket.local_addr().unwrap();
        let next = at.port().checked_add(1);
        if let Some(Ok(next)) = next.map(|port| UdpSocket::bind((at.ip(), port))) {
            break (at, [socket, next]);
        }
    };
    for socket in sockets {
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((len, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..len], from);
            }
        });
    }
    at
}

#[test]
fn debians_client_passes_without_loss() {
    if Command::new("turnutils_uclient")
        .arg("-h")
        .output()
        .is_err()
    {
        let required = std::env::var_os("WAYPOST_COTURN_REQUIRED");
        assert!(required.is_none(), "this test must not be skipped here");
        eprintln!("skipped: turnutils_uclient (Debian package coturn) is not installed");
        return;
    }
    // Channels, indications, client to client by channels, client to client by indications, over UDP, TCP and TLS; all at
    // once, since the client waits a lot.
    std::thread::scope(|scope| {
        for io in BACKENDS {
            // Without -c each of its clients reserves a second port and redeems it from another five-tuple: of either shard.
            for mode in ["", "-s", "-y", "-y -s", "-c", "-c -s", "-c -y", "-c -y -s"] {
                for transport in [&[][..], &["-t"], &["-t", "-S"]] {
                    scope.spawn(move || debians_client(io, mode, transport));
                }
            }
        }
    });
}

fn debians_client(io: &str, mode: &str, transport: &[&str]) {
    let identity = identity::Identity::new();
    let (cert, key) = (identity.cert(), identity.key());
    let tls = [
        "--tls-listen",
        "127.0.0.1:0",
        "--tls-cert",
        &cert,
        "--tls-key",
        &key,
    ];
    let server = server_with(io, "127.0.0.1:0", &tls);
    let server_addr = match transport {
        [_, "-S"] => server.tls_addrs()[0],
        _ => server.main_addr(),
    };
    let [port, peer_port] = [server_addr, echo_peer()].map(|at| at.port().to_string());
    let what = format!("{io} {mode:?} {transport:?}");
    let mut command = Command::new("turnutils_uclient");
    command
        .args(mode.split_whitespace())
        .args(transport)
        .args(["-m", "4", "-n", "20", "-l", "200", "-e", "127.0.0.1"])
        .args(["-u", "ann", "-w", "ann's own password"])
        .args(["-r", &peer_port, "-p", &port, "127.0.0.1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = Ended(command.spawn().unwrap());
    let output = BufReader::new(child.0.stdout.take().unwrap());
    let lines: Vec<_> = output.lines().map_while(Result::ok).collect();
    assert!(child.0.wait().unwrap().success(), "{what}: {lines:#?}");
    let said = |what: &str| lines.iter().any(|line| line.contains(what));
    assert!(
        said("tot_send_msgs=80, tot_recv_msgs=80"),
        "{what}: {lines:#?}"
    );
    assert!(
        said("Total lost packets 0 (0.000000%)"),
        "{what}: {lines:#?}"
    );
}
