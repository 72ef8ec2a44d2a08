//! Everything at once, in an order of a seed's choice.

use std::collections::HashMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use waypost_server::packet_io::{StreamEvent, StreamId, StreamIo};

use super::{connect, listen, reset};

/// One peer of the mixture: what it sent and got so far.
struct Player {
    socket: TcpStream,
    address: SocketAddr,
    id: Option<StreamId>,
    /// It has sent so many bytes of its pattern, and its half is open.
    sent: usize,
    writes: bool,
    /// So many bytes of the server's pattern were taken for it, and it has read so many.
    taken: usize,
    read: usize,
}

/// Everything at once, in an order of a seed's choice: no byte is lost, doubled or another stream's, whoever closes when.
pub(super) fn a_mixture_keeps_every_byte(mut io: impl StreamIo, ip: IpAddr) {
    use rand::{RngExt as _, SeedableRng as _};
    let seed = getrandom::u64().unwrap();
    println!("seed {seed}");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    // 251 is prime, so that no shift by a round number of bytes goes unseen.
    let byte = |port: u16, direction: usize, i: usize| {
        ((i % 251) + usize::from(port) * 13 + direction * 101) as u8
    };
    let bytes = |port: u16, direction: usize, from: usize, len: usize| -> Vec<u8> {
        (from..from + len)
            .map(|i| byte(port, direction, i))
            .collect()
    };
    let (_, at) = listen(&mut io, ip);
    let mut players: Vec<Player> = Vec::new();
    // Port of the peer, and bytes that came.
    let mut arrived: HashMap<StreamId, (u16, usize)> = HashMap::new();
    let mut buffer = vec![0; 100_000];
    for step in 0..6000 {
        if players.len() < 3 || (players.len() < 60 && random.random_ratio(1, 20)) {
            let socket = connect(at);
            socket.set_nonblocking(true).unwrap();
            let address = socket.local_addr().unwrap();
            players.retain(|player| player.address != address);
            players.push(Player {
                socket,
                address,
                id: None,
                sent: 0,
                writes: true,
                taken: 0,
                read: 0,
            });
        }
        let at = random.random_range(0..players.len());
        let player = &mut players[at];
        let port = player.address.port();
        match random.random_range(0..100) {
            0..25 if player.writes => {
                let most = random.random_range(1..20_000);
                let piece = bytes(port, 0, player.sent, most);
                player.sent += player.socket.write(&piece).unwrap_or(0);
            }
            25..55 => {
                let most = random.random_range(1..buffer.len());
                match player.socket.read(&mut buffer[..most]) {
                    Ok(got @ 1..) => {
                        assert!(
                            buffer[..got] == bytes(port, 1, player.read, got),
                            "step {step}"
                        );
                        player.read += got;
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    _ => drop(players.swap_remove(at)),
                }
            }
            55..85 => {
                if let Some(id) = player.id {
                    let piece = bytes(port, 1, player.taken, random.random_range(1..30_000));
                    let (head, tail) = piece.split_at(piece.len() / 2);
                    if io.send_stream(id, &[head, tail]).is_ok() {
                        player.taken += piece.len();
                    }
                }
            }
            85..87 => {
                player.writes = false;
                player.socket.shutdown(Shutdown::Write).unwrap_or(());
            }
            87 => {
                let player = players.swap_remove(at);
                if random.random() {
                    reset(player.socket);
                }
            }
            88..90 => {
                if let Some(id) = player.id.take() {
                    let flush = random.random();
                    io.close_stream(id, flush);
                }
            }
            _ => {}
        }
        if random.random_ratio(1, 3) {
            io.turn(Some(Duration::ZERO)).unwrap();
            for _ in 0..random.random_range(0..200) {
                match io.next_stream_event() {
                    None => break,
                    Some(StreamEvent::Accepted { stream, peer, .. }) => {
                        match players.iter_mut().find(|player| player.address == peer) {
                            Some(player) => player.id = Some(stream),
                            None => io.close_stream(stream, false),
                        }
                        arrived.insert(stream, (peer.port(), 0));
                    }
                    Some(StreamEvent::Received { stream, bytes: got }) => {
                        let (port, before) = arrived.get_mut(&stream).unwrap();
                        let got = io.stream_bytes(&got);
                        assert!(got == bytes(*port, 0, *before, got.len()), "step {step}");
                        *before += got.len();
                    }
                    Some(StreamEvent::Ended { stream }) => {
                        let player = players.iter_mut().find(|player| player.id == Some(stream));
                        if let Some(player) = player {
                            let ended_in_order =
                                !player.writes && player.sent == arrived[&stream].1;
                            assert!(ended_in_order, "step {step}: an end before the last byte");
                            player.id = None;
                        }
                        io.close_stream(stream, true);
                    }
                }
            }
        }
    }
    assert!(io.stats().streams_closed > 50);
}
