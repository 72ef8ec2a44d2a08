//! Messages between members over the real server, in one process.

// What a test cannot set up fails the test.
#![allow(clippy::unwrap_used)]

use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::thread;
use std::time::Duration;

use socket2::Socket;
use waypost_client::{
    Error, HostConfig, JoinConfig, MESSAGE_MAX, Message, MessageEvent, Messaging, NotSent,
    PathPolicy, SeatId, Service, Session,
};
use waypost_server::serve::Server;

const GAME: &str = "messages";
/// Longer than anything here takes on the busiest machine: running into it is a failure.
const LONG: Duration = Duration::from_secs(30);

fn sessions(
    server: &Server,
    count: usize,
    policy: PathPolicy,
    dead_after: Duration,
) -> Vec<Session> {
    let mut hosting = HostConfig::new(GAME);
    hosting.player.policy = policy;
    let dead_after_ms = u64::try_from(dead_after.as_millis()).unwrap();
    hosting.player.messages = Some(Messaging { dead_after_ms });
    let mut joining = JoinConfig::new(GAME);
    joining.player = hosting.player.clone();
    let host = Session::host(server.main_addr(), hosting).unwrap();
    let code = host.code().unwrap().to_string();
    let mut all = vec![host];
    for _ in 1..count {
        all.push(Session::join(server.main_addr(), &code, joining.clone()).unwrap());
    }
    for session in &all {
        while session.members().len() + 1 < count {
            session.next_event(Some(LONG)).unwrap();
        }
    }
    all
}

fn received(session: &Session) -> Message {
    loop {
        if let MessageEvent::Received(message) = session.next_message(Some(LONG)).unwrap() {
            return message;
        }
    }
}

fn wait_for(session: &Session, wanted: &MessageEvent) {
    while session.next_message(Some(LONG)).unwrap() != *wanted {}
}

fn id(session: &Session) -> SeatId {
    session.id().unwrap()
}

#[test]
fn a_broadcast_reaches_everybody_once_and_is_acknowledged() {
    for policy in [PathPolicy::RelayOnly, PathPolicy::DirectFirst] {
        let server = Server::start_with(&[]).unwrap();
        let all = sessions(&server, 3, policy, LONG);
        let data: Vec<u8> = (0..MESSAGE_MAX).map(|at| (at % 251) as u8).collect();
        let large = all[0].broadcast(&data, Service::ORDERED).unwrap();
        let small = all[0].broadcast(b"after it", Service::ORDERED).unwrap();
        for guest in &all[1..] {
            let first = received(guest);
            assert_eq!((first.from, first.reliable), (id(&all[0]), true));
            assert!(first.data == data, "{} bytes", first.data.len());
            assert_eq!(received(guest).data, b"after it");
        }
        let mut open: Vec<_> = all[1..]
            .iter()
            .flat_map(|guest| [large, small].map(|m| MessageEvent::Acknowledged(id(guest), m)))
            .collect();
        while !open.is_empty() {
            let event = all[0].next_message(Some(LONG)).unwrap();
            open.retain(|wanted| *wanted != event);
        }
        assert!(all[0].round_trip(id(&all[1])).unwrap() < LONG);
    }
}

#[test]
fn datagrams_go_on_beside_messages() {
    let server = Server::start_with(&[]).unwrap();
    let all = sessions(&server, 2, PathPolicy::RelayOnly, LONG);
    let link = all[0].link(id(&all[1])).unwrap();
    let far = all[1].link(id(&all[0])).unwrap();
    far.set_read_timeout(Some(LONG)).unwrap();
    let data = vec![1; link.max_datagram()];
    link.send(&data).unwrap();
    assert!(link.send(&vec![1; data.len() + 1]).is_err());
    all[0]
        .send_message(id(&all[1]), b"", Service::UNRELIABLE)
        .unwrap();
    let mut buf = [0; 1500];
    let len = far.recv(&mut buf).unwrap();
    assert_eq!(buf[..len], data);
    assert_eq!(received(&all[1]).data, b"");
    link.send(b"x").unwrap();
    let from = loop {
        if let Some((from, 1)) = all[1].try_recv_from(&mut buf) {
            break from;
        }
        thread::yield_now();
    };
    assert_eq!(from, id(&all[0]));
    let too_long = vec![0; MESSAGE_MAX + 1];
    assert!(matches!(
        all[0].broadcast(&too_long, Service::RELIABLE),
        Err(Error::NotSent(NotSent::TooLong))
    ));
}

#[test]
fn a_member_that_leaves_expires_what_it_did_not_get() {
    let server = Server::start_with(&[]).unwrap();
    let mut all = sessions(&server, 2, PathPolicy::RelayOnly, Duration::from_secs(1));
    let guest = all.remove(1);
    let member = id(&guest);
    wait_until_met(&all[0], member);
    let ticket = guest.suspend().unwrap();
    drop((guest, ticket));
    let sent = all[0]
        .send_message(member, b"anybody?", Service::RELIABLE)
        .unwrap();
    wait_for(&all[0], &MessageEvent::PeerSilent(member));
    all[0].kick(member).unwrap();
    wait_for(&all[0], &MessageEvent::Expired(member, sent));
}

fn wait_until_met(session: &Session, member: SeatId) {
    while session.round_trip(member).is_none() {
        thread::yield_now();
    }
}

#[test]
fn without_messages_there_are_none() {
    let server = Server::start_with(&[]).unwrap();
    let host = Session::host(server.main_addr(), HostConfig::new(GAME)).unwrap();
    assert!(matches!(
        host.broadcast(b"", Service::RELIABLE),
        Err(Error::NoMessages)
    ));
    assert!(matches!(host.next_message(None), Err(Error::NoMessages)));
    assert!(
        host.round_trip(SeatId {
            seat: 1,
            generation: 1
        })
        .is_none()
    );
}

/// Waits until the descriptor is readable, without taking anything from it.
fn wait_readable(session: &Session) {
    let fd = session
        .readiness_fd()
        .unwrap()
        .try_clone_to_owned()
        .unwrap();
    let socket = Socket::from(fd);
    loop {
        match socket.peek(&mut [MaybeUninit::uninit()]) {
            Ok(_) => return,
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

fn is_readable(session: &Session) -> bool {
    let fd = session
        .readiness_fd()
        .unwrap()
        .try_clone_to_owned()
        .unwrap();
    Socket::from(fd).peek(&mut [MaybeUninit::uninit()]).is_ok()
}

#[test]
fn the_descriptor_is_readable_while_something_waits() {
    let server = Server::start_with(&[]).unwrap();
    let all = sessions(&server, 2, PathPolicy::RelayOnly, LONG);
    let guest = &all[1];
    guest.set_nonblocking(true);
    let mut buf = [0; 64];
    let drain = |guest: &Session, buf: &mut [u8]| {
        while guest.next_event(None).is_ok() || guest.next_message(None).is_ok() {}
        while guest.try_recv_from(buf).is_some() {}
    };
    for round in 0..3 {
        drain(guest, &mut buf);
        if round == 0 {
            all[0].broadcast(b"message", Service::RELIABLE).unwrap();
            wait_readable(guest);
            assert!(matches!(
                guest.next_message(None).unwrap(),
                MessageEvent::Received(_)
            ));
        } else {
            let link = all[0].link(id(guest)).unwrap();
            link.send(b"datagram").unwrap();
            wait_readable(guest);
            assert_eq!(guest.try_recv_from(&mut buf).unwrap().1, 8);
        }
        assert!(matches!(guest.next_event(None), Err(Error::WouldBlock)));
        assert!(!is_readable(guest));
    }
    all[0].kick(id(guest)).unwrap();
    wait_readable(guest);
    drain(guest, &mut buf);
    assert!(is_readable(guest), "the end is told for good");
    assert!(matches!(guest.next_event(None), Err(Error::Removed(_))));
}

#[test]
fn a_session_goes_on_without_its_server() {
    let server = Server::start_with(&[]).unwrap();
    let all = sessions(&server, 3, PathPolicy::DirectFirst, LONG);
    for one in &all {
        for other in one.members() {
            assert!(one.link(other.id).unwrap().wait_direct(LONG));
        }
    }
    let alone = Session::host(server.main_addr(), HostConfig::new(GAME)).unwrap();
    assert!(matches!(alone.leave_server(), Err(Error::Refused(_))));
    for one in &all {
        one.leave_server().unwrap();
        assert!(one.is_without_server() && one.is_connected());
        assert_eq!(one.server_addr(), server.main_addr());
    }
    drop((alone, server));
    all[1]
        .broadcast(b"nobody between us", Service::ORDERED)
        .unwrap();
    for other in [&all[0], &all[2]] {
        let message = received(other);
        assert_eq!(
            (message.from, message.data.as_slice()),
            (id(&all[1]), &b"nobody between us"[..])
        );
        assert_eq!(other.members().len(), 2);
    }
    assert!(matches!(all[0].kick(id(&all[1])), Err(Error::Refused(_))));
    all[0].leave().unwrap();
}
