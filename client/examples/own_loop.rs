//! A program that owns its socket and its loop: the agent and the messages of `waypost_proto` decide, the program receives,
//! waits and sends. Here it hosts, and answers every message; `--seconds` says for how long.
//!
//! ```text
//! cargo run -p waypost-client --example own_loop -- 127.0.0.1:3478
//! ```

use std::error::Error;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};
use std::{env, io};

use waypost_proto::agent::{Agent, Config, Event, HostConfig, SessionEvent};
use waypost_proto::message::{MessageEvent, Messages, Messaging, Service, frame};
use waypost_proto::time::Millis;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let server: SocketAddr = arguments
        .next()
        .as_deref()
        .unwrap_or("127.0.0.1:3478")
        .parse()?;
    let seconds: u64 = arguments.next().map_or(Ok(60), |text| text.parse())?;
    let until = Duration::from_secs(seconds);

    let socket = UdpSocket::bind(if server.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    })?;
    let started = Instant::now();
    let now = || Millis(u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX));
    let seed = || -> Result<[u8; 32], getrandom::Error> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map(|()| seed)
    };
    let mut agent = Agent::new(now(), Config::new(server.into(), "own-loop"), seed()?);
    let mut messages = Messages::new(Messaging::default(), seed()?);
    agent.host(now(), HostConfig::default())?;

    let (mut datagram, mut framed, mut buffer) = (Vec::new(), Vec::new(), [0; 2_048]);
    while started.elapsed() < until {
        // What is due, and what there is to tell.
        agent.handle_timeout(now());
        while let Some(event) = agent.poll_event() {
            match event {
                Event::Failed { failure, .. } => return Err(failure.into()),
                Event::Done { .. } => {
                    if let Some(seat) = agent.seat() {
                        println!("{}", seat.code());
                    }
                }
                Event::Session(SessionEvent::MemberJoined(id)) => messages.member_joined(now(), id),
                Event::Session(SessionEvent::MemberLeft(id, _)) => messages.member_left(id),
                _ => {}
            }
        }
        messages.handle_timeout(now());
        while let Some(event) = messages.poll_event() {
            if let MessageEvent::Received(message) = event {
                println!(
                    "{:?} says {:?}",
                    message.from,
                    String::from_utf8_lossy(&message.data)
                );
                messages.send(now(), message.from, &message.data, Service::ORDERED)?;
            }
        }
        // What is to be sent. `transmit.ttl` is for openers, which this program does without.
        while let Some(transmit) = agent.poll_transmit() {
            if transmit.ttl.is_none() {
                socket
                    .send_to(&transmit.bytes, transmit.to.to_socket_addr())
                    .ok();
            }
        }
        while let Some(member) = messages.poll_transmit(now(), &mut datagram) {
            if let Ok(to) = agent.frame(now(), member, &datagram, &mut framed) {
                socket.send_to(&framed, to.to_socket_addr()).ok();
            }
        }
        // Then wait for a datagram, at most until something is due.
        let due = agent
            .poll_timeout()
            .into_iter()
            .chain(messages.poll_timeout(now()))
            .min();
        let wait = due.map_or(until, |at| Duration::from_millis(at.since(now()).max(1)));
        socket.set_read_timeout(Some(wait.min(until)))?;
        match socket.recv_from(&mut buffer) {
            Ok((len, from)) => {
                let bytes = &buffer[..len];
                if let Some(delivery) = agent.handle_datagram(now(), from.into(), bytes) {
                    // The first byte says whether it is a frame or a datagram of the game's own.
                    match &bytes[delivery.range] {
                        [frame::RAW, data @ ..] => println!("a datagram of {} bytes", data.len()),
                        data => messages.handle(now(), delivery.from, data),
                    }
                }
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
