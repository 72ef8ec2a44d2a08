//! The library against the real server, in one process, on ports of 127.0.0.1 that the kernel chose.

// What a test cannot set up fails the test.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use waypost_client::{
    Credential, Error, HostConfig, JoinConfig, LeaveReason, Link, ListFilter, Path, PathPolicy,
    Player, SeatId, Session, SessionEvent, list,
};
use waypost_proto::shard::time_limited_password;
use waypost_server::control::config::{Host, Invocation, Sources};
use waypost_server::control::secret::Secret;
use waypost_server::serve::Server;

const GAME: &str = "end-to-end";
/// Longer than anything here takes on the busiest machine: running into it is a failure.
const LONG: Duration = Duration::from_secs(30);

fn server() -> Server {
    Server::start_with(&[]).unwrap()
}

/// A server on a given port with a given secret, as after a restart.
fn server_at(at: SocketAddr, secret: u8) -> Server {
    let options = ["waypost-server", "--admin", "off", "--probe-port", "0"];
    let at = at.to_string();
    let keepalive = ["--listen", &at, "--keepalive-secs", "1", "--pin", "false"];
    let sources = Sources {
        arguments: options.iter().chain(&keepalive).map(Into::into).collect(),
        environment: std::env::vars_os()
            .filter(|(name, _)| name == "WAYPOST_IO")
            .collect(),
        host: Host::detect(|_| None),
    };
    let Ok(Invocation::Serve(config)) = sources.invocation() else {
        panic!("these options start a server");
    };
    Server::start(&config, &Secret::new(&[secret; 32])).unwrap()
}

fn joining(policy: PathPolicy) -> JoinConfig {
    let mut config = JoinConfig::new(GAME);
    config.player.policy = policy;
    config
}

fn hosting(policy: PathPolicy) -> HostConfig {
    let mut config = HostConfig::new(GAME);
    config.player.policy = policy;
    config
}

/// Host and guest who know of each other.
fn pair(at: SocketAddr, policy: PathPolicy) -> (Session, Session) {
    let host = Session::host(at, hosting(policy)).unwrap();
    let code = host.code().unwrap().to_string();
    let guest = Session::join(at, &code, joining(policy)).unwrap();
    host.wait_member(Some(LONG)).unwrap();
    guest.wait_member(Some(LONG)).unwrap();
    (host, guest)
}

fn links(host: &Session, guest: &Session) -> (Link, Link) {
    let down = host.link(guest.id().unwrap()).unwrap();
    let up = guest.link(host.id().unwrap()).unwrap();
    for link in [&down, &up] {
        link.set_read_timeout(Some(LONG)).unwrap();
    }
    (down, up)
}

fn wait_for(session: &Session, wanted: impl Fn(&SessionEvent) -> bool) -> SessionEvent {
    loop {
        let event = session.next_event(Some(LONG)).unwrap();
        if wanted(&event) {
            return event;
        }
    }
}

fn code_of<T>(result: Result<T, Error>) -> u16 {
    match result {
        Err(error @ Error::Rejected(rejected)) => {
            // What happened; what to do.
            let (happened, remedy) = match rejected.code {
                470 => ("the password is wrong", "check both"),
                471 => ("is full", "choose another session"),
                472 => ("locked", "ask the host"),
                _ => ("", "; "),
            };
            let text = error.to_string();
            assert!(text.contains(happened) && text.contains(remedy), "{text}");
            rejected.code
        }
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it was allowed"),
    }
}

fn exchange(one: &Link, other: &Link) {
    let mut buf = [0; 1500];
    for (from, to) in [(one, other), (other, one)] {
        for len in [0, 1, 500, from.max_datagram()] {
            let data = vec![7; len];
            from.send(&data).unwrap();
            assert_eq!(to.recv(&mut buf).unwrap(), len);
            assert_eq!(buf[..len], data);
        }
        let error = from.send(&vec![7; from.max_datagram() + 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}

#[test]
fn relayed_at_first_and_direct_at_last() {
    let server = server();
    let (host, guest) = pair(server.main_addr(), PathPolicy::DirectFirst);
    assert!(host.is_host() && !guest.is_host());
    let (down, up) = links(&host, &guest);
    exchange(&down, &up);
    assert!(down.wait_direct(LONG) && up.wait_direct(LONG));
    exchange(&down, &up);
    assert_eq!(guest.members()[0].path, Path::Direct);
    assert!(guest.members()[0].is_host);
}

#[test]
fn the_upgrade_loses_and_doubles_nothing() {
    let server = server();
    let mut config = hosting(PathPolicy::DirectFirst);
    config.introduce = false;
    let host = Session::host(server.main_addr(), config).unwrap();
    let code = host.code().unwrap().to_string();
    let joining = joining(PathPolicy::DirectFirst);
    let guest = Session::join(server.main_addr(), &code, joining).unwrap();
    host.wait_member(Some(LONG)).unwrap();
    guest.wait_member(Some(LONG)).unwrap();
    let (down, up) = links(&host, &guest);
    let count = 500u32;
    let receiver = std::thread::spawn(move || {
        let mut times: HashMap<u32, u32> = HashMap::new();
        let mut buf = [0; 8];
        while times.len() < count as usize {
            up.recv(&mut buf).unwrap();
            let number = u32::from_be_bytes(buf[..4].try_into().unwrap());
            *times.entry(number).or_default() += 1;
        }
        (times, up)
    });
    let mut paths = Vec::new();
    for number in 0..count {
        down.send(&number.to_be_bytes()).unwrap();
        paths.push(down.path());
        if number == 0 {
            host.introduce_all().unwrap();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let (times, up) = receiver.join().unwrap();
    assert!(times.values().all(|n| *n == 1));
    assert_eq!(paths[0], Path::Relayed, "the relay carried the first");
    assert!(down.wait_direct(LONG) && up.wait_direct(LONG));
}

#[test]
fn relay_only_stays_relayed() {
    let server = server();
    let (host, guest) = pair(server.main_addr(), PathPolicy::RelayOnly);
    let (down, up) = links(&host, &guest);
    exchange(&down, &up);
    assert!(!down.wait_direct(Duration::from_millis(1_500)));
    assert_eq!(up.path(), Path::Relayed);
    assert!(host.members()[0].is_relay_only);
}

#[test]
fn one_who_wants_the_relay_only_is_relayed_whatever_the_other_wants() {
    let server = server();
    let host = Session::host(server.main_addr(), hosting(PathPolicy::DirectFirst)).unwrap();
    let code = host.code().unwrap().to_string();
    let guest = Session::join(server.main_addr(), &code, joining(PathPolicy::RelayOnly)).unwrap();
    host.wait_member(Some(LONG)).unwrap();
    guest.wait_member(Some(LONG)).unwrap();
    let (down, up) = links(&host, &guest);
    exchange(&down, &up);
    assert!(!down.wait_direct(Duration::from_millis(1_000)));
}

#[test]
fn direct_only_waits_for_its_path() {
    let server = server();
    let (host, guest) = pair(server.main_addr(), PathPolicy::DirectOnly);
    let (down, up) = links(&host, &guest);
    let was_direct = match down.send(b"x") {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::NotConnected);
            false
        }
    };
    assert!(down.wait_direct(LONG) && up.wait_direct(LONG));
    // Whoever knows that its path is direct has been heard on it: what it sent is taken.
    if was_direct {
        assert_eq!(up.recv(&mut [0; 8]).unwrap(), 1);
    }
    exchange(&down, &up);
}

#[test]
fn relay_first_keeps_to_the_relay() {
    let server = server();
    let (host, guest) = pair(server.main_addr(), PathPolicy::RelayFirst);
    let (down, up) = links(&host, &guest);
    exchange(&down, &up);
    assert!(!down.wait_direct(Duration::from_millis(1_500)));
    exchange(&down, &up);
}

#[test]
fn refusals_have_their_codes() {
    let server = server();
    let at = server.main_addr();
    let mut config = hosting(PathPolicy::DirectFirst);
    config.name = Some("the one".to_owned());
    config.password = "secret".to_owned();
    config.max_members = 2;
    let host = Session::host(at, config.clone()).unwrap();
    assert_eq!(code_of(Session::host(at, config)), 473, "name taken");
    let code = host.code().unwrap().to_string();
    let with = |password: &str| {
        let mut config = joining(PathPolicy::DirectFirst);
        config.password = password.to_owned();
        config
    };
    assert_eq!(code_of(Session::join(at, &code, with("wrong"))), 470);
    assert_eq!(code_of(Session::join(at, "nobody's", with("secret"))), 470);
    let guest = Session::join(at, "the one", with("secret")).unwrap();
    assert_eq!(guest.name().as_deref(), Some("the one"));
    assert_eq!(
        code_of(Session::join(at, &code, with("secret"))),
        471,
        "full"
    );
    assert_eq!(code_of(guest.set_locked(true)), 474, "not host");
    host.set_max_members(4).unwrap();
    host.set_locked(true).unwrap();
    assert_eq!(
        code_of(Session::join(at, &code, with("secret"))),
        472,
        "locked"
    );
    wait_for(&guest, |event| *event == SessionEvent::SessionChanged);
    host.set_locked(false).unwrap();
    host.set_password("other").unwrap();
    assert_eq!(code_of(Session::join(at, &code, with("secret"))), 470);
    let third = Session::join(at, &code, with("other")).unwrap();
    third.leave().unwrap();
    let nobody = SeatId {
        seat: 200,
        generation: 1,
    };
    assert!(matches!(host.kick(nobody), Err(Error::Refused(_))));
    let error = Session::join(at, &code, JoinConfig::new("")).err().unwrap();
    assert!(matches!(error, Error::Refused(_)), "{error:?}");
}

#[test]
fn what_the_host_changes_everybody_sees() {
    let server = server();
    let (host, guest) = pair(server.main_addr(), PathPolicy::RelayOnly);
    host.set_metadata(b"map 7").unwrap();
    wait_for(&guest, |event| *event == SessionEvent::SessionChanged);
    assert_eq!(guest.metadata(), b"map 7");
    guest.set_member_data(b"Ann").unwrap();
    wait_for(&host, |event| {
        matches!(event, SessionEvent::MemberChanged(_))
    });
    assert_eq!(host.members()[0].data, b"Ann");
}

#[test]
fn kick_leave_and_succession() {
    let server = server();
    let at = server.main_addr();
    let (host, guest) = pair(at, PathPolicy::RelayOnly);
    let code = host.code().unwrap().to_string();
    let third = Session::join(at, &code, joining(PathPolicy::RelayOnly)).unwrap();
    let third_id = third.id().unwrap();
    // Nobody is told of the leaving of somebody whom he was not told of.
    for session in [&host, &guest] {
        wait_for(session, |event| {
            *event == SessionEvent::MemberJoined(third_id)
        });
    }
    let link = host.link(third_id).unwrap();
    host.kick(third_id).unwrap();
    wait_for(&third, |event| {
        *event == SessionEvent::Removed(LeaveReason::Kicked)
    });
    assert!(matches!(
        third.code(),
        Err(Error::Removed(LeaveReason::Kicked))
    ));
    assert!(matches!(
        third.next_event(Some(LONG)),
        Err(Error::Removed(LeaveReason::Kicked))
    ));
    for session in [&host, &guest] {
        wait_for(session, |event| {
            *event == SessionEvent::MemberLeft(third_id, LeaveReason::Kicked)
        });
    }
    assert_eq!(
        link.recv(&mut [0; 8]).unwrap_err().kind(),
        ErrorKind::ConnectionAborted
    );
    assert_eq!(
        link.send(b"x").unwrap_err().kind(),
        ErrorKind::ConnectionAborted
    );
    let host_id = host.id().unwrap();
    drop(host);
    wait_for(&guest, |event| {
        *event == SessionEvent::MemberLeft(host_id, LeaveReason::Left)
    });
    while !guest.is_host() {
        guest.next_event(Some(LONG)).unwrap();
    }
    guest.close().unwrap();
    assert_eq!(
        code_of(Session::join(at, &code, joining(PathPolicy::RelayOnly))),
        470
    );
}

#[test]
fn transfer_and_close() {
    let server = server();
    let (host, guest) = pair(server.main_addr(), PathPolicy::RelayOnly);
    let guest_id = guest.id().unwrap();
    host.transfer(guest_id).unwrap();
    wait_for(&guest, |event| {
        *event == SessionEvent::HostChanged(guest_id)
    });
    wait_for(&host, |event| *event == SessionEvent::HostChanged(guest_id));
    assert!(guest.is_host() && !host.is_host());
    assert_eq!(code_of(host.close()), 474);
    guest.close().unwrap();
    wait_for(&host, |event| {
        *event == SessionEvent::Removed(LeaveReason::Closed)
    });
}

#[test]
fn a_match_of_three() {
    let server = server();
    let at = server.main_addr();
    let player = Player::new(GAME);
    let players: Vec<Session> = (0..3)
        .map(|_| Session::find_match(at, b"ranked", 3, &player).unwrap())
        .collect();
    let other = Session::find_match(at, b"casual", 3, &player).unwrap();
    for player in &players {
        player.wait_formed(Some(LONG)).unwrap();
        while player.members().len() < 2 {
            player.next_event(Some(LONG)).unwrap();
        }
    }
    assert_eq!(players.iter().filter(|player| player.is_host()).count(), 1);
    let (first, second) = (&players[0], &players[1]);
    let (one, two) = links(first, second);
    assert!(one.wait_direct(LONG) && two.wait_direct(LONG));
    exchange(&one, &two);
    assert!(other.is_forming());
    assert!(matches!(
        other.wait_formed(Some(Duration::from_millis(1))),
        Err(Error::TimedOut)
    ));
}

#[test]
fn introductions_by_hand() {
    let server = server();
    let at = server.main_addr();
    let mut config = hosting(PathPolicy::DirectFirst);
    config.introduce = false;
    let host = Session::host(at, config).unwrap();
    let code = host.code().unwrap().to_string();
    let guests: Vec<Session> = (0..2)
        .map(|_| Session::join(at, &code, joining(PathPolicy::DirectFirst)).unwrap())
        .collect();
    for session in guests.iter().chain([&host]) {
        while session.members().len() < 2 {
            session.next_event(Some(LONG)).unwrap();
        }
    }
    let (down, _) = links(&host, &guests[0]);
    assert_eq!(down.path(), Path::Relayed);
    assert_eq!(code_of(guests[0].introduce_all()), 474);
    guests[0].introduce(host.id().unwrap()).unwrap();
    assert!(down.wait_direct(LONG));
    host.introduce_pair(guests[0].id().unwrap(), guests[1].id().unwrap())
        .unwrap();
    let (across, back) = links(&guests[0], &guests[1]);
    assert!(across.wait_direct(LONG) && back.wait_direct(LONG));
    host.introduce_all().unwrap();
    assert!(links(&host, &guests[1]).0.wait_direct(LONG));
}

#[test]
fn lists_show_what_is_listed() {
    let server = server();
    let at = server.main_addr();
    let player = Player::new(GAME);
    let sessions: Vec<Session> = (0..30)
        .map(|n| {
            let mut config = hosting(PathPolicy::RelayOnly);
            config.listed = n != 0;
            config.locked = n == 1;
            config.name = Some(format!("arena {n}"));
            config.metadata = vec![b'm'; 200];
            Session::host(at, config).unwrap()
        })
        .collect();
    let all = list(at, &player, &ListFilter::default()).unwrap();
    assert_eq!(all.len(), 29);
    assert!(
        all.iter()
            .all(|entry| entry.members == 1 && entry.metadata.len() == 200)
    );
    let filter = ListFilter {
        unlocked: true,
        name_prefix: Some("arena 1".to_owned()),
        ..ListFilter::default()
    };
    let some = list(at, &player, &filter).unwrap();
    assert_eq!(some.len(), 10, "10 to 19");
    let other = Player::new("another game");
    assert!(list(at, &other, &ListFilter::default()).unwrap().is_empty());
    let entry = &some[0];
    let joined =
        Session::join(at, &entry.code.to_string(), joining(PathPolicy::RelayOnly)).unwrap();
    assert_eq!(joined.name(), entry.name);
    drop(sessions);
}

#[test]
fn a_ticket_gives_the_seat_back() {
    let server = server();
    let at = server.main_addr();
    let (host, guest) = pair(at, PathPolicy::RelayOnly);
    let id = guest.id().unwrap();
    let ticket = guest.suspend().unwrap();
    drop(guest);
    let mut player = Player::new(GAME);
    player.policy = PathPolicy::RelayOnly;
    let guest = Session::resume(at, &ticket, &player).unwrap();
    assert_eq!(guest.id().unwrap(), id);
    guest.wait_member(Some(LONG)).unwrap();
    let (down, up) = links(&host, &guest);
    exchange(&down, &up);
    let mut forged = ticket;
    forged[20] ^= 1;
    assert!(Session::resume(at, &forged, &player).is_err());
}

#[test]
fn the_session_survives_a_restart_of_the_server() {
    let first = server_at("127.0.0.1:0".parse().unwrap(), 1);
    let at = first.main_addr();
    let (host, guest) = pair(at, PathPolicy::RelayOnly);
    let (code, id) = (host.code().unwrap(), guest.id().unwrap());
    first.stop();
    let _second = server_at(at, 1);
    for session in [&host, &guest] {
        wait_for(session, |event| *event == SessionEvent::Resumed);
    }
    assert_eq!((host.code().unwrap(), guest.id().unwrap()), (code, id));
    assert!(host.is_host());
    let (down, up) = links(&host, &guest);
    // The other's seat may still be on its way back.
    let mut buf = [0; 8];
    up.set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let started = Instant::now();
    loop {
        down.send(b"again").unwrap();
        if up.recv(&mut buf).is_ok() {
            break;
        }
        assert!(started.elapsed() < LONG);
    }
}

#[test]
fn without_the_secret_the_host_gets_a_new_code() {
    let first = server_at("127.0.0.1:0".parse().unwrap(), 1);
    let at = first.main_addr();
    let (host, guest) = pair(at, PathPolicy::RelayOnly);
    let old = host.code().unwrap();
    first.stop();
    let _second = server_at(at, 2);
    wait_for(&guest, |event| *event == SessionEvent::SeatLost);
    assert!(matches!(guest.code(), Err(Error::SeatLost)));
    let changed = wait_for(&host, |event| {
        matches!(event, SessionEvent::CodeChanged { .. })
    });
    let new = host.code().unwrap();
    assert_eq!(changed, SessionEvent::CodeChanged { old, new });
    let back = Session::join(at, &new.to_string(), joining(PathPolicy::RelayOnly)).unwrap();
    host.wait_member(Some(LONG)).unwrap();
    back.wait_member(Some(LONG)).unwrap();
    let (down, up) = links(&host, &back);
    exchange(&down, &up);
}

#[test]
fn an_operators_credential_opens_a_closed_server() {
    let options = ["--open-rendezvous", "false", "--auth-secret", "north"];
    let server = Server::start_with(&options).unwrap();
    let at = server.main_addr();
    let with = |secret: &str| {
        let username = "4102444800:ann".to_owned();
        let password = time_limited_password(secret.as_bytes(), &username);
        let mut config = hosting(PathPolicy::RelayOnly);
        config.player.credential = Some(Credential { username, password });
        config
    };
    assert_eq!(
        code_of(Session::host(at, hosting(PathPolicy::RelayOnly))),
        401
    );
    assert_eq!(code_of(Session::host(at, with("south"))), 401);
    let host = Session::host(at, with("north")).unwrap();
    host.set_locked(true).unwrap();
    assert!(host.is_locked());
    let player = with("north").player;
    assert!(
        list(at, &player, &ListFilter::default())
            .unwrap()
            .is_empty()
    );
}

#[test]
fn members_of_different_families_are_relayed_to_each_other() {
    if UdpSocket::bind("[::1]:0").is_err() {
        eprintln!("SKIPPED: this host has no IPv6");
        return;
    }
    let server = Server::start_with(&["--listen", "127.0.0.1:0", "--listen", "[::1]:0"]).unwrap();
    let [four, six] = server.main_addrs()[..] else {
        panic!("two addresses were asked for");
    };
    let host = Session::host(four, hosting(PathPolicy::RelayOnly)).unwrap();
    let code = host.code().unwrap().to_string();
    let guest = Session::join(six, &code, joining(PathPolicy::RelayOnly)).unwrap();
    host.wait_member(Some(LONG)).unwrap();
    guest.wait_member(Some(LONG)).unwrap();
    let (down, up) = links(&host, &guest);
    exchange(&down, &up);
}

#[test]
fn ipv6() {
    if UdpSocket::bind("[::1]:0").is_err() {
        println!("skipped: this host has no IPv6");
        return;
    }
    let server = Server::start_with(&["--listen", "[::1]:0"]).unwrap();
    let (host, guest) = pair(server.main_addr(), PathPolicy::DirectFirst);
    let (down, up) = links(&host, &guest);
    exchange(&down, &up);
    assert!(down.wait_direct(LONG) && up.wait_direct(LONG));
    exchange(&down, &up);
}

#[test]
fn a_server_that_does_not_answer_is_an_error_that_says_so() {
    let mute = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut config = hosting(PathPolicy::DirectFirst);
    config.player.patience = Duration::from_millis(300);
    let error = Session::host(mute.local_addr().unwrap(), config)
        .err()
        .unwrap();
    assert!(matches!(error, Error::Silent));
    assert!(error.to_string().contains("check its address"));
    assert!(
        Session::host("127.0.0.1", HostConfig::new(GAME)).is_err(),
        "no port"
    );
}

#[test]
fn links_behave_like_sockets() {
    let server = server();
    let (host, guest) = pair(server.main_addr(), PathPolicy::RelayOnly);
    let (down, up) = links(&host, &guest);
    let mut buf = [0; 4];
    assert_eq!(
        up.set_read_timeout(Some(Duration::ZERO))
            .unwrap_err()
            .kind(),
        ErrorKind::InvalidInput
    );
    up.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
    assert_eq!(up.recv(&mut buf).unwrap_err().kind(), ErrorKind::TimedOut);
    up.set_nonblocking(true);
    assert_eq!(up.recv(&mut buf).unwrap_err().kind(), ErrorKind::WouldBlock);
    up.set_nonblocking(false);
    up.set_read_timeout(Some(LONG)).unwrap();
    let clone = up.try_clone().unwrap();
    assert_eq!(clone.read_timeout(), Some(LONG));
    down.send(b"longer than four").unwrap();
    assert_eq!(clone.recv(&mut buf).unwrap(), 4, "the rest is cut off");
    assert_eq!(&buf, b"long");
    let waiting = std::thread::spawn(move || clone.recv(&mut [0; 4]).unwrap_err().kind());
    drop(guest);
    assert_eq!(waiting.join().unwrap(), ErrorKind::ConnectionAborted);
}
