//! Streams that are slow, greedy, broken or never read.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use waypost_proto::addr::Addr;
use waypost_server::serve::Server;
use waypost_server::streams::StreamTimes;

use crate::client::{BACKENDS, HANG, Stream, TURN, TurnClient, binding, server, until};
use crate::identity::Identity;

fn impatient(io: &str, identity: &Identity, times: StreamTimes) -> Server {
    let (cert, key) = (identity.cert(), identity.key());
    let tls = ["--tls-listen", "127.0.0.1:0", "--tls-cert", &cert];
    let options = ["--io", io, "--shards", "1", "--tls-key", &key];
    let all = [&options[..], &tls, &TURN].concat();
    Server::start_adjusted(&all, |config| config.stream_times = times).unwrap()
}

/// Waits until a counter is there.
fn until_counted(server: &Server, series: &str) {
    until(series, || {
        let totals = server.metrics().totals();
        totals.get(series).copied().unwrap_or(0) > 0
    });
}

#[test]
fn who_says_nothing_whole_is_dropped() {
    let identity = Identity::new();
    for io in BACKENDS {
        let times = StreamTimes {
            first_message_ms: 200,
            ..StreamTimes::default()
        };
        let server = impatient(io, &identity, times);
        let mut silent = Stream::tcp(server.main_addr());
        let mut slow = Stream::tcp(server.main_addr());
        let mut without_handshake = Stream::tcp(server.tls_addrs()[0]);
        let mut slow_tls = Stream::tls(server.tls_addrs()[0], &identity.client);
        // Their time may be over before they have said even this.
        let _ = slow.try_send(&[0]);
        let _ = slow_tls.try_send(&[0]);
        for stream in [
            &mut silent,
            &mut slow,
            &mut without_handshake,
            &mut slow_tls,
        ] {
            stream.expect_end();
        }
        let series = "waypost_streams_ended_total{cause=\"no_first_message\"}";
        until_counted(&server, series);
    }
}

#[test]
fn who_has_nothing_here_and_is_idle_is_dropped() {
    let identity = Identity::new();
    for io in BACKENDS {
        // Long enough that nobody here is idle who is only slow to be given a processor.
        let times = StreamTimes {
            first_message_ms: 2_000,
            idle_ms: 2_000,
            ..StreamTimes::default()
        };
        let server = impatient(io, &identity, times);
        let mut client = TurnClient::new(Stream::tcp(server.main_addr()));
        client.allocate();
        let mut idle = Stream::tcp(server.main_addr());
        idle.send(&binding(1));
        idle.receive();
        idle.expect_end();
        // An older one that has an allocation is still there.
        client.permit(Addr::new("127.0.0.1:9".parse().unwrap()));
        until_counted(&server, "waypost_streams_ended_total{cause=\"idle\"}");
    }
}

#[test]
fn garbage_ends_a_stream() {
    let identity = Identity::new();
    for io in BACKENDS {
        let server = server(io, "1", &identity, &[]);
        let mut stream = Stream::tcp(server.main_addr());
        stream.send(b"POST / HTTP/1.1\r\n\r\n");
        stream.expect_end();
        let mut stream = Stream::tls(server.tls_addrs()[0], &identity.client);
        stream.send(&binding(1));
        stream.receive();
        stream.send(&[0xff]);
        stream.expect_end();
        until_counted(&server, "waypost_streams_ended_total{cause=\"bad_frame\"}");
        let mut not_tls = TcpStream::connect(server.tls_addrs()[0]).unwrap();
        not_tls.set_read_timeout(Some(HANG)).unwrap();
        std::io::Write::write_all(&mut not_tls, &binding(1)).unwrap();
        let mut answer = Vec::new();
        // An alert or a reset, as the timing of the two ends has it.
        let _ = std::io::Read::read_to_end(&mut not_tls, &mut answer);
        let series = "waypost_streams_ended_total{cause=\"tls_handshake\"}";
        until_counted(&server, series);
    }
}

#[test]
fn one_source_has_only_so_many_streams() {
    let identity = Identity::new();
    for io in BACKENDS {
        // Whichever of the two shards a connection comes to.
        let server = server(io, "2", &identity, &["--streams-per-source", "3"]);
        let mut streams: Vec<_> = (0..3).map(|_| Stream::tcp(server.main_addr())).collect();
        for stream in &mut streams {
            stream.send(&binding(1));
            stream.receive();
        }
        Stream::tcp(server.main_addr()).expect_end();
        until_counted(&server, "waypost_streams_over_source_limit_total");
        drop(streams.pop());
        until("room for another", || {
            let mut stream = Stream::tcp(server.main_addr());
            stream.try_send(&binding(2)).is_ok() && stream.next().is_some()
        });
        streams[0].send(&binding(3));
        streams[0].receive();
    }
}

/// A connection with a small receive buffer.
fn narrow(at: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&at.into()).unwrap();
    let socket: TcpStream = socket.into();
    socket.set_read_timeout(Some(HANG)).unwrap();
    socket
}

#[test]
fn who_never_reads_is_dropped() {
    let identity = Identity::new();
    for io in BACKENDS {
        for is_tls in [false, true] {
            let times = StreamTimes {
                full_ms: 200,
                ..StreamTimes::default()
            };
            let server = impatient(io, &identity, times);
            let stream = match is_tls {
                false => Stream::over_tcp(narrow(server.main_addr())),
                true => Stream::over_tls(narrow(server.tls_addrs()[0]), &identity.client),
            };
            let mut client = TurnClient::new(stream);
            let relayed = client.allocate();
            let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
            client.bind(Addr::new(peer.local_addr().unwrap()));
            until("the end of the allocation", || {
                for _ in 0..200 {
                    let _ = peer.send_to(&[7; 1200], relayed);
                }
                UdpSocket::bind(relayed).is_ok()
            });
            until_counted(
                &server,
                "waypost_streams_ended_total{cause=\"not_reading\"}",
            );
            until_counted(&server, "waypost_dropped_total{reason=\"stream_full\"}");
            // What waited for it was no more than the queue of one stream; others are served.
            let mut other = Stream::tcp(server.main_addr());
            other.send(&binding(9));
            other.receive();
        }
    }
}

#[test]
fn a_client_that_asks_and_never_reads_is_dropped() {
    let identity = Identity::new();
    for io in BACKENDS {
        let server = server(io, "1", &identity, &[]);
        let mut stream = Stream::over_tcp(narrow(server.main_addr()));
        let socket = stream.socket();
        socket
            .set_write_timeout(Some(Duration::from_secs(1)))
            .unwrap();
        let burst: Vec<u8> = (0..=255).flat_map(binding).collect();
        until("the end of the stream", || stream.try_send(&burst).is_err());
        until_counted(
            &server,
            "waypost_streams_ended_total{cause=\"not_reading\"}",
        );
    }
}
