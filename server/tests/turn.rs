//! TURN against the running server, on either backend: a client written from the wire formats, and Debian's
//! `turnutils_uclient` where it is installed.

#![allow(clippy::unwrap_used)]

#[path = "streams/identity.rs"]
mod identity;

use std::io::{BufRead as _, BufReader, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use waypost_proto::addr::Addr;
use waypost_proto::wire::channel_data::{self, ChannelNumber};
use waypost_proto::wire::stun::{
    Class, Integrity, LongTermKey, Message, MessageWriter, TransactionId, attr, method,
};
use waypost_server::serve::Server;

/// A wait that ends a hung test; no test passes because of it.
const HANG: Duration = Duration::from_secs(20);
const REALM: &str = "waypost";
const BACKENDS: [&str; 2] = ["uring", "mmsg"];

fn server(io: &str, listen: &str) -> Server {
    server_with(io, listen, &[])
}

fn server_with(io: &str, listen: &str, given: &[&str]) -> Server {
    let options = ["--io", io, "--listen", listen, "--shards", "2"];
    let turn = [
        "--user",
        "ann:ann's own password",
        "--allow-peer",
        "127.0.0.0/8",
    ];
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
    nonce: Vec<u8>,
    next_id: u8,
    is_repeating: bool,
}

impl Client {
    fn new(server: SocketAddr) -> Self {
        let any_port = SocketAddr::new(server.ip(), 0);
        let socket = UdpSocket::bind(any_port).unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(HANG)).unwrap();
        Self {
            socket,
            nonce: Vec::new(),
            next_id: 0,
            is_repeating: false,
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
        let key = LongTermKey::md5("ann", REALM, "ann's own password");
        loop {
            self.next_id += 1;
            let mut out = Vec::new();
            let id = TransactionId([self.next_id; 12]);
            let mut writer = MessageWriter::new(&mut out, method, Class::Request, id);
            fill(&mut writer);
            if !self.nonce.is_empty() {
                writer
                    .attribute(attr::USERNAME, b"ann")
                    .attribute(attr::REALM, REALM.as_bytes())
                    .attribute(attr::NONCE, &self.nonce)
                    .integrity(Integrity::Sha1, key.as_bytes());
            }
            writer.finish();
            self.socket.send(&out).unwrap();
            let bytes = self.receive();
            let answer = Message::parse(&bytes).unwrap();
            assert_eq!(answer.transaction_id(), id);
            if self.is_repeating && !self.nonce.is_empty() {
                self.socket.send(&out).unwrap();
                assert_eq!(self.receive(), bytes, "a repetition has the same answer");
            }
            match answer.error_code() {
                Some(401) => self.nonce = answer.find(attr::NONCE).unwrap().to_vec(),
                Some(code) => panic!("error {code}"),
                None => {
                    assert!(answer.verify_integrity(Integrity::Sha1, key.as_bytes()));
                    return bytes;
                }
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
        self.request(method::CHANNEL_BIND, &|w| {
            w.attribute(attr::CHANNEL_NUMBER, &[0x40, 0x0a, 0, 0])
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
        let number = ChannelNumber::new(0x400a).unwrap();
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

#[test]
fn two_clients_reach_each_other_through_their_relayed_addresses() {
    for io in BACKENDS {
        // The server's relayed addresses are peers without any rule of the operator.
        let options = [
            "--io",
            io,
            "--user",
            "ann:ann's own password",
            "--shards",
            "2",
        ];
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

/// A process that ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends everything back, until the test is over.
fn echo_peer() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..len], from);
        }
    });
    at
}

#[test]
fn debians_client_passes_without_loss() {
    if Command::new("turnutils_uclient")
        .arg("-h")
        .output()
        .is_err()
    {
        eprintln!("skipped: turnutils_uclient (Debian package coturn) is not installed");
        return;
    }
    // Channels, indications, client to client by channels, client to client by indications, over UDP, TCP and TLS; all at
    // once, since the client waits a lot.
    std::thread::scope(|scope| {
        for io in BACKENDS {
            for mode in [&[][..], &["-s"], &["-y"], &["-y", "-s"]] {
                for transport in [&[][..], &["-t"], &["-t", "-S"]] {
                    scope.spawn(move || debians_client(io, mode, transport));
                }
            }
        }
    });
}

fn debians_client(io: &str, mode: &[&str], transport: &[&str]) {
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
        .args(mode)
        .args(transport)
        .args(["-c", "-m", "4", "-n", "20", "-l", "200", "-e", "127.0.0.1"])
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
