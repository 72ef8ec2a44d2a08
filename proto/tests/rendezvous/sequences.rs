//! Random sequences of what several players may do, with time passing, moves, restarts and loss. After each step the
//! tables of all shards agree, and at the end nothing is left.

use proptest::prelude::*;
use waypost_proto::wire::native::{attr, method, session_flags};

use crate::player::{Player, Where, Wish, addr};
use crate::world::{Setup, World};

#[derive(Clone, Debug)]
enum Step {
    Host { named: bool, auto: bool },
    Join { whom: usize, by_name: bool },
    Match { wanted: u8, key: u8 },
    Resume { forget: bool },
    Leave,
    Kick { whom: usize },
    Transfer { whom: usize },
    Close,
    Introduce { whom: usize },
    Update { limit: u8, flags: u32 },
    Keepalive,
    Move { port: u16 },
    Repeat,
    Relay { seat: u8 },
    Silence { secs: u64 },
    Deaf(bool),
    Listen,
    Restart { shards: u16, same_secret: bool },
    Loss(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (any::<bool>(), any::<bool>()).prop_map(|(named, auto)| Step::Host { named, auto }),
        6 => (0usize..6, any::<bool>()).prop_map(|(whom, by_name)| Step::Join { whom, by_name }),
        4 => (2u8..4, 0u8..2).prop_map(|(wanted, key)| Step::Match { wanted, key }),
        3 => any::<bool>().prop_map(|forget| Step::Resume { forget }),
        2 => Just(Step::Leave),
        2 => (0usize..6).prop_map(|whom| Step::Kick { whom }),
        2 => (0usize..6).prop_map(|whom| Step::Transfer { whom }),
        1 => Just(Step::Close),
        2 => (0usize..6).prop_map(|whom| Step::Introduce { whom }),
        2 => (2u8..8, 0u32..8).prop_map(|(limit, flags)| Step::Update { limit, flags }),
        3 => Just(Step::Keepalive),
        3 => (0u16..50).prop_map(|port| Step::Move { port }),
        3 => Just(Step::Repeat),
        3 => (0u8..8).prop_map(|seat| Step::Relay { seat }),
        2 => (1u64..50).prop_map(|secs| Step::Silence { secs }),
        1 => any::<bool>().prop_map(Step::Deaf),
        3 => Just(Step::Listen),
        1 => (1u16..4, any::<bool>()).prop_map(|(shards, same_secret)| Step::Restart { shards, same_secret }),
        1 => any::<bool>().prop_map(Step::Loss),
    ]
}

fn take(world: &mut World, players: &mut [Player], who: usize, step: &Step) {
    let whom = |i: usize| players[i % players.len()].handle;
    match *step {
        Step::Host { named, auto } => {
            let wish = Wish {
                name: named.then(|| format!("room {who}")),
                session_flags: if auto {
                    session_flags::AUTO_INTRODUCE
                } else {
                    0
                },
                ..Wish::of(4)
            };
            players[who].try_host(world, &wish);
        }
        Step::Join {
            whom: other,
            by_name,
        } => {
            let place = match whom(other) {
                Some(handle) if !by_name => Where::Code(handle.code),
                _ => Where::Name(format!("room {other}")),
            };
            players[who].try_join(world, &place, &Wish::default());
        }
        Step::Match { wanted, key } => {
            players[who].try_match(world, &[key], &Wish::of(wanted));
        }
        Step::Resume { forget } => {
            if forget {
                players[who].forget();
            }
            players[who].try_resume(world, &Wish::default());
        }
        Step::Leave => {
            players[who].leave(world);
        }
        Step::Kick { whom: other } | Step::Transfer { whom: other } => {
            if let Some(target) = whom(other) {
                let request = match step {
                    Step::Kick { .. } => method::KICK,
                    _ => method::TRANSFER,
                };
                players[who].on_target(world, request, target.id);
            }
        }
        Step::Close => {
            players[who].call(world, method::CLOSE, &|_, _, _| ());
        }
        Step::Introduce { whom: other } => {
            let target = whom(other).filter(|_| other % 2 == 0);
            players[who].call(world, method::INTRODUCE, &|w, _, _| {
                if let Some(target) = target {
                    w.attribute(attr::TARGET_SEAT, &target.id.to_bytes());
                }
            });
        }
        Step::Update { limit, flags } => {
            players[who].update(world, &|w, _, _| {
                w.u32(attr::MAX_MEMBERS, u32::from(limit))
                    .u32(attr::SESSION_FLAGS, flags)
                    .attribute(attr::MEMBER_DATA, &[limit]);
            });
        }
        Step::Keepalive => {
            players[who].keepalive(world);
        }
        Step::Move { port } => {
            players[who].move_to(addr(&format!("198.51.100.{who}:{}", 3000 + port)));
        }
        Step::Repeat => {
            if !players[who].last_request.is_empty() {
                players[who].repeat(world);
            }
        }
        Step::Relay { seat } => {
            players[who].relay(world, seat, b"data");
        }
        Step::Silence { secs } => world.advance_secs(secs),
        Step::Deaf(deaf) => players[who].deaf = deaf,
        Step::Listen => {
            for player in &mut *players {
                player.poll(world);
            }
        }
        Step::Restart {
            shards,
            same_secret,
        } => world.restart(|setup| {
            setup.shards = shards;
            if !same_secret {
                setup.secret[0] = setup.secret[0].wrapping_add(1);
            }
        }),
        Step::Loss(on) => world.loss = if on { 0.2 } else { 0.0 },
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12_000, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_operations_leaves_a_consistent_world(
        shards in 1u16..4,
        steps in proptest::collection::vec((0usize..6, step()), 1..60),
    ) {
        let mut setup = Setup::new(shards);
        setup.lobby.limits.packets_per_sec = 0; // The checks send more than members do.
        let mut world = World::new(setup);
        let mut players: Vec<Player> = (0..6).map(Player::new).collect();
        for (who, step) in steps {
            take(&mut world, &mut players, who, &step);
            world.check();
            world.check_routes();
        }
        world.loss = 0.0;
        world.advance_secs(61);
        world.check_empty();
    }
}
