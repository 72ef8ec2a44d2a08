//! Introductions: who is told which addresses, and that both are told the same key and time.

use waypost_proto::addr::Addr;
use waypost_proto::stats::Counter;
use waypost_proto::wire::native::{EventKind, NatMapping, attr, code, method, session_flags};

use crate::player::{Event, Player, Where, Wish, addr, hear_all, party};
use crate::world::{EPOCH_MS, World, with_each_shard_count};

fn introductions(world: &mut World, player: &mut Player) -> Vec<Event> {
    player
        .take_events(world)
        .into_iter()
        .filter(|event| event.kind == EventKind::Introduction)
        .collect()
}

#[test]
fn a_pair_is_told_the_same_key_and_time() {
    with_each_shard_count(|world| {
        let mut players = party(world, 4, &Wish::default());
        let target = players[2].id();
        players[1].on_target(world, method::INTRODUCE, target).ok();
        hear_all(world, &mut players);
        let told: Vec<_> = players
            .iter_mut()
            .map(|player| introductions(world, player))
            .collect();
        assert!(
            told[0].is_empty() && told[3].is_empty(),
            "a third hears nothing"
        );
        let (a, b) = (&told[1][0], &told[2][0]);
        assert_eq!((told[1].len(), told[2].len()), (1, 1));
        assert_eq!((a.seat, b.seat), (players[2].id(), players[1].id()));
        assert_eq!(
            (a.mapped, b.mapped),
            (Some(players[2].addr), Some(players[1].addr))
        );
        assert!(a.key.is_some() && a.key == b.key);
        assert_eq!(a.start_ms, b.start_ms);
        let now = EPOCH_MS + world.now.0;
        let lead = a.start_ms.expect("START-TIME") - now;
        assert!((200..=1000).contains(&lead), "{lead} ms ahead");
        // A new introduction has a new key.
        world.advance(10);
        let target = players[1].id();
        players[2].on_target(world, method::INTRODUCE, target).ok();
        hear_all(world, &mut players);
        let again = introductions(world, &mut players[1]);
        assert_ne!(again[0].key, a.key);
        // With oneself, nothing.
        let own = players[3].id();
        players[3].on_target(world, method::INTRODUCE, own).ok();
        assert!(introductions(world, &mut players[3]).is_empty());
    });
}

#[test]
fn the_host_introduces_any_pair_and_all() {
    with_each_shard_count(|world| {
        let mut players = party(world, 5, &Wish::default());
        let pair = [players[2].id(), players[4].id()];
        let both = |w: &mut waypost_proto::wire::stun::MessageWriter<'_>| {
            use waypost_proto::wire::native::attr;
            w.attribute(attr::TARGET_SEAT, &pair[0].to_bytes())
                .attribute(attr::OTHER_SEAT, &pair[1].to_bytes());
        };
        let reply = players[1].call(world, method::INTRODUCE, &|w, _, _| both(w));
        assert_eq!(reply.code(), code::NOT_HOST);
        players[0]
            .call(world, method::INTRODUCE, &|w, _, _| both(w))
            .ok();
        hear_all(world, &mut players);
        for (i, player) in players.iter_mut().enumerate() {
            let count = introductions(world, player).len();
            assert_eq!(count, usize::from(i == 2 || i == 4));
        }
        let before = world.count(Counter::Introductions);
        players[0]
            .call(world, method::INTRODUCE, &|_, _, _| ())
            .ok();
        assert_eq!(world.count(Counter::Introductions), before + 10);
        hear_all(world, &mut players);
        let ids: Vec<_> = players.iter().map(Player::id).collect();
        for player in &mut players {
            let own = player.id();
            let mut told: Vec<_> = introductions(world, player)
                .iter()
                .map(|e| e.seat)
                .collect();
            told.sort_by_key(|id| id.seat);
            let others: Vec<_> = ids.iter().copied().filter(|id| *id != own).collect();
            assert_eq!(told, others);
        }
    });
}

#[test]
fn in_an_auto_introducing_session_whoever_comes_is_introduced() {
    with_each_shard_count(|world| {
        let wish = Wish {
            session_flags: session_flags::AUTO_INTRODUCE,
            ..Wish::default()
        };
        let mut host = Player::new(0);
        host.host(world, &wish);
        let mut players = vec![host];
        for i in 1..5 {
            let mut player = Player::new(i);
            player.join(world, players[0].code());
            players.push(player);
            hear_all(world, &mut players);
            let others = players.len() - 1;
            for (j, player) in players.iter_mut().enumerate() {
                let told = introductions(world, player).len();
                assert_eq!(told, if j == others { others } else { 1 });
            }
        }
        // Coming back by ticket introduces anew; repeating that does not.
        players[4].forget();
        players[4].try_resume(world, &Wish::default()).ok();
        hear_all(world, &mut players);
        let before = world.count(Counter::Introductions);
        players[4].repeat(world).ok();
        assert_eq!(world.count(Counter::Introductions), before);
    });
}

#[test]
fn local_addresses_are_told_within_one_network_only() {
    with_each_shard_count(|world| {
        let locals = |last: u8| {
            vec![
                addr(&format!("192.168.1.{last}:4000")),
                addr(&format!("[fd00::{last}]:4000")),
            ]
        };
        let mut players = [
            Player::at(addr("203.0.113.1:5000")),
            Player::at(addr("203.0.113.1:5001")),
            Player::at(addr("203.0.113.2:5002")),
        ];
        let wish = |last| Wish {
            locals: locals(last),
            ..Wish::default()
        };
        players[0].host(world, &wish(1));
        let place = Where::Code(players[0].code());
        players[1].try_join(world, &place, &wish(2)).ok();
        players[2].try_join(world, &place, &wish(3)).ok();
        players[0]
            .call(world, method::INTRODUCE, &|_, _, _| ())
            .ok();
        hear_all(world, &mut players);
        let told: Vec<_> = players
            .iter_mut()
            .map(|player| introductions(world, player))
            .collect();
        assert_eq!(told[0][0].locals, locals(2));
        assert_eq!(told[1][0].locals, locals(1));
        for event in [&told[0][1], &told[1][1], &told[2][0], &told[2][1]] {
            assert_eq!(event.locals, []);
        }
    });
}

#[test]
fn nobody_has_others_send_to_an_address_of_his_choice() {
    with_each_shard_count(|world| {
        let victims = vec![
            addr("8.8.8.8:5353"),
            addr("127.0.0.1:6379"),
            addr("192.168.1.1:53"),
            addr("[2001:4860::8888]:9999"),
        ];
        let mut players = [
            Player::at(addr("203.0.113.1:5000")),
            Player::at(addr("203.0.113.1:5001")),
        ];
        players[0].host(
            world,
            &Wish {
                locals: victims,
                ..Wish::default()
            },
        );
        players[1].join(world, players[0].code());
        let peer = players[0].id();
        players[1].on_target(world, method::INTRODUCE, peer).ok();
        hear_all(world, &mut players);
        let told = introductions(world, &mut players[1]);
        assert_eq!(told[0].mapped, Some(players[0].addr));
        assert_eq!(told[0].locals, []);
    });
}

#[test]
fn ports_of_a_stepping_nat_are_predicted() {
    with_each_shard_count(|world| {
        let mut players = [Player::new(0), Player::new(1)];
        let nat = NatMapping {
            step: 2,
            last_port: 50_010,
            random: false,
        };
        players[0].host(
            world,
            &Wish {
                nat: Some(nat),
                ..Wish::default()
            },
        );
        players[1].join(world, players[0].code());
        let peer = players[0].id();
        players[1].on_target(world, method::INTRODUCE, peer).ok();
        hear_all(world, &mut players);
        let told = introductions(world, &mut players[1]);
        let ports: Vec<_> = told[0].predicted.iter().map(|a| a.port()).collect();
        assert_eq!(ports, [50_012, 50_014, 50_016, 50_018]);
        assert!(
            told[0]
                .predicted
                .iter()
                .all(|a| a.ip() == players[0].addr.ip())
        );
        assert_eq!(introductions(world, &mut players[0])[0].predicted, []);
    });
}

#[test]
fn the_addresses_of_relay_only_members_are_told_to_nobody() {
    with_each_shard_count(|world| {
        let mut host = Player::new(0);
        host.host(
            world,
            &Wish {
                session_flags: session_flags::AUTO_INTRODUCE,
                ..Wish::default()
            },
        );
        let hidden_wish = Wish {
            relay_only: true,
            locals: vec![addr("192.168.7.7:7777")],
            ..Wish::default()
        };
        let mut hidden = Player::at(addr("198.18.0.0:41111")); // The host's own address, other port.
        let place = Where::Code(host.code());
        world.trace = Some(Vec::new());
        hidden.try_join(world, &place, &hidden_wish).ok();
        let mut third = Player::new(2);
        third.join(world, host.code());
        let mut players = [host, hidden, third];
        players[0]
            .call(world, method::INTRODUCE, &|_, _, _| ())
            .ok();
        world.advance(500);
        hear_all(world, &mut players);
        let hidden_addr = players[1].addr;
        for player in &mut players {
            let relay_only = player.addr == hidden_addr;
            let own = player.id();
            for event in introductions(world, player) {
                assert_ne!(event.seat, own);
                let about_hidden = event.seat.seat == 1;
                assert_eq!(event.mapped.is_none(), about_hidden || relay_only);
                if about_hidden || relay_only {
                    assert_eq!((event.locals.len(), event.predicted.len()), (0, 0));
                    assert!(event.key.is_some());
                }
            }
        }
        // Not in any form: no XOR address in anything sent to others decodes to the hidden one.
        for (to, bytes) in world.trace.take().expect("traced") {
            if to == hidden_addr || bytes[0] >= 4 {
                continue;
            }
            let port = hidden_addr.port() ^ 0x2112;
            assert!(
                !bytes
                    .windows(4)
                    .any(|w| w[1] == 1 && w[2..] == port.to_be_bytes()),
                "the hidden port was told to {to}"
            );
        }
    });
}

/// The same member, sending through a TURN server.
fn through_turn(player: &Player, at: &str) -> Player {
    let mut relayed = player.clone();
    relayed.addr = addr(at);
    relayed.nonce = None;
    relayed
}

#[test]
fn an_address_on_a_turn_server_is_told_once_it_was_seen() {
    with_each_shard_count(|world| {
        let host = Wish {
            session_flags: session_flags::AUTO_INTRODUCE,
            ..Wish::default()
        };
        let mut players = party(world, 3, &host);
        let mut relayed = through_turn(&players[1], "192.0.2.9:49152");
        let observe = |player: &mut Player, world: &mut World| {
            player.call(world, method::OBSERVE, &|_, _, _| ())
        };
        let reply = observe(&mut relayed, world).ok();
        assert_eq!(reply.fields().mapped, Some(relayed.addr));
        hear_all(world, &mut players);
        for (at, player) in players.iter_mut().enumerate() {
            let told = introductions(world, player);
            assert_eq!(told.len(), if at == 1 { 2 } else { 1 });
            for event in told {
                let is_its = at != 1;
                assert_eq!(event.turn_addr, is_its.then_some(relayed.addr));
                // The seat is where it was.
                assert!(!is_its || event.mapped != Some(relayed.addr));
            }
        }
        // Once more is no news.
        observe(&mut relayed, world).ok();
        hear_all(world, &mut players);
        assert!(introductions(world, &mut players[0]).is_empty());
        // The seat's own address is no other one.
        let mut own = players[2].clone();
        assert_eq!(observe(&mut own, world).code(), code::BAD_REQUEST);
        // Without the token it is nobody's.
        let mut forged = through_turn(&players[2], "192.0.2.9:49153");
        forged.token = [0; 16];
        assert_eq!(observe(&mut forged, world).code(), code::SEAT_GONE);
    });
}

#[test]
fn another_reachable_port_is_told_to_all() {
    with_each_shard_count(|world| {
        let host = Wish {
            session_flags: session_flags::AUTO_INTRODUCE,
            ..Wish::default()
        };
        let mut players = party(world, 3, &host);
        hear_all(world, &mut players);
        for player in &mut players {
            introductions(world, player);
        }
        let ip = players[1].addr.ip();
        let told = |world: &mut World, players: &mut [Player], port: u32| {
            let tell = players[1].call(world, method::KEEPALIVE, &|w, _, _| {
                w.u32(attr::REACHABLE_PORT, port);
            });
            tell.ok();
            hear_all(world, players);
            [0, 2].map(|at| introductions(world, &mut players[at]))
        };
        for port in [40_000, 40_001] {
            for events in told(world, &mut players, u32::from(port)) {
                let at = Some(Addr::from_ip_port(ip, port));
                assert_eq!(events.iter().map(|e| e.reachable).collect::<Vec<_>>(), [at]);
            }
        }
        // The same again is no news, and a service's port is nobody's.
        for port in [40_001, 443] {
            assert_eq!(told(world, &mut players, port).map(|it| it.len()), [0, 0]);
        }
        // Where nobody is introduced by itself, it waits.
        let mut quiet = party(world, 2, &Wish::default());
        let tell = quiet[1].call(world, method::KEEPALIVE, &|w, _, _| {
            w.u32(attr::REACHABLE_PORT, 40_002);
        });
        tell.ok();
        hear_all(world, &mut quiet);
        assert!(introductions(world, &mut quiet[0]).is_empty());
    });
}

#[test]
fn who_hides_has_no_address_on_a_turn_server() {
    with_each_shard_count(|world| {
        let hidden = Wish {
            relay_only: true,
            ..Wish::default()
        };
        let players = party(world, 2, &hidden);
        let mut relayed = through_turn(&players[1], "192.0.2.9:49152");
        let reply = relayed.call(world, method::OBSERVE, &|_, _, _| ());
        assert_eq!(reply.code(), code::BAD_REQUEST);
    });
}
