//! TURN over TCP and TLS.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};

use waypost_proto::addr::Addr;
use waypost_proto::wire::channel_data;
use waypost_proto::wire::stun::{Message, attr, decode_plain_addr, method};
use waypost_server::serve::Server;

use crate::client::{BACKENDS, HANG, Stream, TurnClient, binding, channel, server, until};
use crate::identity::Identity;

fn peer() -> (UdpSocket, Addr) {
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    peer.set_read_timeout(Some(HANG)).unwrap();
    let addr = Addr::new(peer.local_addr().unwrap());
    (peer, addr)
}

/// A connection of either kind.
fn connect(server: &Server, identity: &Identity, is_tls: bool) -> Stream {
    match is_tls {
        true => Stream::tls(server.tls_addrs()[0], &identity.client),
        false => Stream::tcp(server.main_addr()),
    }
}

fn conversation(io: &str, is_tls: bool, is_bytewise: bool) {
    let identity = Identity::new();
    let server = server(io, "2", &identity, &[]);
    assert_eq!(server.backend(), io);
    let (peer, peer_addr) = peer();
    let mut buffer = [0; 2048];
    let mut stream = connect(&server, &identity, is_tls);
    stream.is_bytewise = is_bytewise;
    let mut client = TurnClient::new(stream);
    let relayed = client.allocate();
    client.permit(peer_addr);
    for len in [0, 1, 2, 3, 4, 5, 200, 1379] {
        let data: Vec<u8> = (0..len).map(|i| (i * 7 + len) as u8).collect();
        client.send_indication(peer_addr, &data);
        let (got, from) = peer.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..got], from), (&data[..], relayed));
        peer.send_to(&data, relayed).unwrap();
        let bytes = client.stream.receive();
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(message.method(), method::DATA);
        let told = message.find_xor_addr(attr::XOR_PEER_ADDRESS);
        assert_eq!(told, Some(peer_addr));
        assert_eq!(message.find(attr::DATA), Some(&data[..]));
    }
    client.bind(peer_addr);
    for len in [0, 1, 2, 3, 4, 5, 200, 1379] {
        let data: Vec<u8> = (0..len).map(|i| (i * 5 + len) as u8).collect();
        client.stream.send(&channel(0x400a, &data));
        let (got, from) = peer.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..got], from), (&data[..], relayed));
        peer.send_to(&data, relayed).unwrap();
        let bytes = client.stream.receive();
        let message = channel_data::parse(&bytes).unwrap();
        assert_eq!((message.channel.get(), message.data), (0x400a, &data[..]));
    }
    let other_transport = client.try_request(method::REFRESH, &|w| {
        w.u32(attr::LIFETIME, 0);
    });
    assert!(other_transport.is_ok());
    // Relayed transport addresses are UDP, whatever the client speaks (RFC 8656 section 7.2).
    let tcp = client.try_request(method::ALLOCATE, &|w| {
        w.attribute(attr::REQUESTED_TRANSPORT, &[6, 0, 0, 0]);
    });
    assert_eq!(tcp, Err(442));
}

// RFC 8489 section 10.
#[test]
fn clients_of_tls_are_sent_to_servers_of_tls() {
    for io in BACKENDS {
        let identity = Identity::new();
        let alternates = [
            "--alternate-server",
            "203.0.113.7:3478",
            "--alternate-tls-server",
            "203.0.113.7:5349",
            "--alternate-domain",
            "turn2.example.org",
        ];
        let full = ["--max-allocations", "1"];
        let server = server(io, "1", &identity, &[&alternates[..], &full].concat());
        let mut served = TurnClient::new(connect(&server, &identity, false));
        served.allocate();
        for (is_tls, at, domain) in [
            (false, "203.0.113.7:3478", None),
            (true, "203.0.113.7:5349", Some("turn2.example.org")),
        ] {
            let mut client = TurnClient::new(connect(&server, &identity, is_tls));
            let got = client.try_request(method::ALLOCATE, &|w| {
                w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
            });
            assert_eq!(got, Err(300));
            let answer = Message::parse(&client.answer).unwrap();
            let told = answer.find(attr::ALTERNATE_SERVER);
            let told = told.and_then(decode_plain_addr);
            assert_eq!(told, Some(Addr::new(at.parse().unwrap())));
            let told = answer.find(attr::ALTERNATE_DOMAIN);
            assert_eq!(told, domain.map(str::as_bytes));
        }
    }
}

#[test]
fn a_conversation_over_tcp() {
    for io in BACKENDS {
        conversation(io, false, false);
    }
}

#[test]
fn a_conversation_over_tls() {
    for io in BACKENDS {
        conversation(io, true, false);
    }
}

#[test]
fn a_conversation_byte_by_byte() {
    for io in BACKENDS {
        conversation(io, false, true);
        conversation(io, true, true);
    }
}

#[test]
fn several_messages_in_one_segment() {
    for io in BACKENDS {
        for is_tls in [false, true] {
            let identity = Identity::new();
            let server = server(io, "1", &identity, &[]);
            let (peer, peer_addr) = peer();
            let mut client = TurnClient::new(connect(&server, &identity, is_tls));
            client.allocate();
            client.bind(peer_addr);
            let data: [&[u8]; 4] = [b"one", b"", b"three", b"fourth"];
            let mut bytes = binding(77);
            data.iter()
                .for_each(|data| bytes.extend(channel(0x400a, data)));
            bytes.extend(binding(78));
            // The last one comes in two halves.
            let (head, tail) = bytes.split_at(bytes.len() - 7);
            client.stream.send(head);
            client.stream.send(tail);
            let mut buffer = [0; 64];
            for expected in data {
                let (len, from) = peer.recv_from(&mut buffer).unwrap();
                assert_eq!(&buffer[..len], expected);
                peer.send_to(expected, from).unwrap();
            }
            let mut answers: Vec<_> = (0..6).map(|_| client.stream.receive()).collect();
            // Answers and relayed data may pass each other.
            answers.retain(|bytes| match channel_data::parse(bytes) {
                Some(_) => true,
                None => {
                    let id = Message::parse(bytes).unwrap().transaction_id().0[0];
                    assert!([77, 78].contains(&id));
                    false
                }
            });
            let echoed: Vec<_> = answers
                .iter()
                .map(|bytes| channel_data::parse(bytes).unwrap().data)
                .collect();
            assert_eq!(echoed, data);
        }
    }
}

#[test]
fn channel_data_to_a_stream_is_padded() {
    let identity = Identity::new();
    for io in BACKENDS {
        let server = server(io, "1", &identity, &[]);
        let (peer, peer_addr) = peer();
        let mut client = TurnClient::new(connect(&server, &identity, false));
        let relayed = client.allocate();
        client.bind(peer_addr);
        peer.send_to(b"12345", relayed).unwrap();
        let mut bytes = [0xff; 12];
        client.stream.socket().read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"\x40\x0a\x00\x0512345\0\0\0");
    }
}

/// Waits until nobody has the port of a relayed address.
fn until_free(relayed: std::net::SocketAddr) {
    until("the end of the allocation", || {
        UdpSocket::bind(relayed).is_ok()
    });
}

#[test]
fn an_allocation_ends_with_its_stream() {
    for io in BACKENDS {
        for is_tls in [false, true] {
            let identity = Identity::new();
            let server = server(io, "2", &identity, &[]);
            let mut client = TurnClient::new(connect(&server, &identity, is_tls));
            let relayed = client.allocate();
            assert!(UdpSocket::bind(relayed).is_err());
            drop(client);
            until_free(relayed);
            // So it does when only one half is closed.
            let mut client = TurnClient::new(connect(&server, &identity, is_tls));
            let relayed = client.allocate();
            let socket = client.stream.socket();
            socket.shutdown(std::net::Shutdown::Write).unwrap();
            client.stream.expect_end();
            until_free(relayed);
        }
    }
}

#[test]
fn two_streams_reach_each_other_through_their_relayed_addresses() {
    for io in BACKENDS {
        let identity = Identity::new();
        let server = server(io, "2", &identity, &[]);
        for _ in 0..8 {
            let mut clients =
                [false, true].map(|is_tls| TurnClient::new(connect(&server, &identity, is_tls)));
            let relayed = clients.each_mut().map(|c| Addr::new(c.allocate()));
            clients[0].bind(relayed[1]);
            clients[1].bind(relayed[0]);
            for (from, to) in [(0, 1), (1, 0)] {
                clients[from]
                    .stream
                    .send(&channel(0x400a, b"over two relays"));
                let bytes = clients[to].stream.receive();
                let data = channel_data::parse(&bytes).unwrap().data;
                assert_eq!(data, b"over two relays");
            }
        }
    }
}

// RFC 8016: the allocation outlives its stream, on whichever shard the next one is.
#[test]
fn an_allocation_is_carried_from_stream_to_stream() {
    for io in BACKENDS {
        let identity = Identity::new();
        let server = server(io, "2", &identity, &[]);
        let (peer, peer_addr) = peer();
        let mut client = TurnClient::new(connect(&server, &identity, false));
        let mut bytes = client.request(method::ALLOCATE, &|w| {
            w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
                .attribute(attr::MOBILITY_TICKET, &[]);
        });
        let answer = Message::parse(&bytes).unwrap();
        let relayed = answer.find_xor_addr(attr::XOR_RELAYED_ADDRESS).unwrap();
        let relayed = relayed.to_socket_addr();
        client.bind(peer_addr);
        for is_tls in [false, true].repeat(6) {
            let ticket = Message::parse(&bytes).unwrap();
            let ticket = ticket.find(attr::MOBILITY_TICKET).unwrap().to_vec();
            // The last one ends before or after.
            let before = client;
            client = TurnClient::new(connect(&server, &identity, is_tls));
            if is_tls {
                drop(before);
            }
            bytes = client.request(method::REFRESH, &|w| {
                w.attribute(attr::MOBILITY_TICKET, &ticket);
            });
            let mut buffer = [0; 64];
            client.stream.send(&channel(0x400a, b"by the new stream"));
            let (len, from) = peer.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..len], from), (&b"by the new stream"[..], relayed));
            // Data before this one may still have been for the stream before.
            client.bind(peer_addr);
            peer.send_to(b"welcome", relayed).unwrap();
            let bytes = client.stream.receive();
            assert_eq!(channel_data::parse(&bytes).unwrap().data, b"welcome");
        }
        client.request(method::REFRESH, &|w| {
            w.u32(attr::LIFETIME, 0);
        });
        until_free(relayed);
    }
}

#[test]
fn a_stream_and_a_datagram_client_reach_each_other() {
    for io in BACKENDS {
        let identity = Identity::new();
        let server = server(io, "2", &identity, &[]);
        for is_tls in [false, true].repeat(3) {
            let mut clients = [
                TurnClient::new(connect(&server, &identity, is_tls)),
                TurnClient::new(Stream::udp(server.main_addr())),
            ];
            let relayed = clients.each_mut().map(|c| Addr::new(c.allocate()));
            clients[0].bind(relayed[1]);
            clients[1].permit(relayed[0]);
            for (from, to) in [(0, 1), (1, 0)].repeat(4) {
                let data = b"from kind to kind";
                if from == 0 {
                    clients[from].stream.send(&channel(0x400a, data));
                } else {
                    clients[from].send_indication(relayed[to], data);
                }
                let bytes = clients[to].stream.receive();
                match to {
                    0 => assert_eq!(channel_data::parse(&bytes).unwrap().data, data),
                    _ => {
                        let message = Message::parse(&bytes).unwrap();
                        assert_eq!(message.find(attr::DATA), Some(&data[..]));
                    }
                }
            }
        }
        assert_eq!(server.metrics().total("waypost_hairpin_packets_total"), 0);
    }
}

#[test]
fn without_tcp_nobody_connects() {
    for io in BACKENDS {
        let server = Server::start_with(&["--io", io, "--tcp", "false"]).unwrap();
        assert!(TcpStream::connect(server.main_addr()).is_err());
    }
}

#[test]
fn tcp_has_the_port_of_udp() {
    for io in BACKENDS {
        let server = Server::start_with(&["--io", io]).unwrap();
        let mut stream = TcpStream::connect(server.main_addr()).unwrap();
        stream.write_all(&binding(1)).unwrap();
        let mut header = [0; 20];
        stream.read_exact(&mut header).unwrap();
        assert_eq!(header[..2], [1, 1]);
    }
}
