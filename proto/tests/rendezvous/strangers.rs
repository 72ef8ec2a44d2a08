//! Sources that have proved nothing: nothing is kept of them, nobody hears of them, and no answer is larger than what they
//! sent.

use waypost_proto::shard::Verdict;
use waypost_proto::stats::Counter;
use waypost_proto::wire::native::{attr, method};
use waypost_proto::wire::stun::{self, Class, MessageWriter, TransactionId};

use crate::player::{Player, Where, Wish, addr, host_part, join_part, party};
use crate::world::{World, with_each_shard_count};

#[test]
fn nothing_is_kept_of_a_hundred_thousand_sources() {
    with_each_shard_count(|world| {
        let players = party(world, 4, &Wish::named("room"));
        let mut stranger = Player::new(9);
        let host = stranger.encode(method::HOST, &|w, _, _| host_part(w, &Wish::default()));
        let place = Where::Code(players[0].code());
        let join = stranger.encode(method::JOIN, &|w, nonce, id| {
            join_part(w, nonce, id, &place, &Wish::default());
        });
        let mut out = Vec::new();
        MessageWriter::new(
            &mut out,
            stun::method::BINDING,
            Class::Request,
            TransactionId([1; 12]),
        )
        .finish();
        let data = vec![0x40, 1, 0, 4, 1, 2, 3, 4];
        let requests = [host, join, out, data];
        world.take_all();
        let mut before = None;
        for i in 0..100_000u32 {
            let [_, a, b, c] = i.to_be_bytes();
            let source = addr(&format!("10.{a}.{b}.{c}:{}", 1024 + i % 60_000));
            let request = &requests[i as usize % requests.len()];
            world.send(source, request);
            if i % 1000 == 0 {
                for (to, _) in world.take_all() {
                    assert!(players.iter().all(|player| player.addr != to));
                }
            }
            if i == 100 {
                before = Some(state(world));
            }
        }
        assert_eq!(Some(state(world)), before);
        world.check();
    });
}

fn state(world: &mut World) -> (u64, u64, u64, Vec<(usize, usize)>) {
    let inspections = world.inspect();
    let kept = |i: &waypost_proto::shard::Inspection| (i.outbox_capacity, i.timers);
    let kept = inspections.iter().map(kept).collect();
    (world.sessions(), world.members(), world.flows(), kept)
}

#[test]
fn no_answer_to_an_unproven_source_is_larger_than_its_request() {
    with_each_shard_count(|world| {
        let mut answered = 0;
        for request in method::HOST..=method::EVENT {
            for class in [
                Class::Request,
                Class::Indication,
                Class::Success,
                Class::Error,
            ] {
                for fill in (0..1180).step_by(4) {
                    for nonce in [None, Some([b'0'; 24])] {
                        let mut out = Vec::new();
                        let mut w =
                            MessageWriter::new(&mut out, request, class, TransactionId([5; 12]));
                        if let Some(nonce) = nonce {
                            w.attribute(stun::attr::NONCE, &nonce);
                        }
                        if fill >= 4 {
                            w.attribute(attr::FILL, &vec![0; fill - 4]);
                        }
                        w.finish();
                        let source = addr("192.0.2.1:1024");
                        world.send(source, &out);
                        for (to, answer) in world.take_all() {
                            assert_eq!(to, source);
                            assert!(answer.len() <= out.len(), "{request:#x} {}", out.len());
                            assert_eq!(class, Class::Request, "only requests are answered");
                            answered += 1;
                        }
                    }
                }
            }
        }
        assert!(answered > 1000);
        world.check_empty();
    });
}

#[test]
fn nobody_hears_of_a_forged_join() {
    with_each_shard_count(|world| {
        let players = party(world, 64, &Wish::of(255));
        world.take_all();
        let victim = addr("192.0.2.99:9999");
        let place = Where::Code(players[0].code());
        let mut forger = Player::at(victim);
        // Without a nonce, and with one that was given to somebody else.
        let mut other = Player::new(999);
        other.keepalive(world);
        world.take_all();
        for nonce in [None, other.nonce.clone()] {
            forger.nonce = nonce;
            let join = forger.encode(method::JOIN, &|w, nonce, id| {
                join_part(w, nonce, id, &place, &Wish::default());
            });
            world.send(victim, &join);
            let sent = world.take_all();
            assert_eq!(sent.len(), 1, "one challenge");
            assert_eq!(sent[0].0, victim);
            assert!(sent[0].1.len() <= join.len());
        }
        assert_eq!(world.members(), 64);
        assert_eq!(world.flows(), 64);
    });
}

#[test]
fn a_spoofed_source_moves_and_ends_nothing() {
    with_each_shard_count(|world| {
        let mut players = party(world, 3, &Wish::default());
        // Everything a bystander may have seen of a member, sent from the bystander's own address without a nonce for it.
        players[1].keepalive(world).ok();
        let keepalive = players[1].last_request.clone();
        let leave = players[1].encode(method::LEAVE, &|_, _, _| ());
        for bytes in [keepalive, leave] {
            world.send(addr("192.0.2.5:5555"), &bytes);
            world.take_all();
        }
        assert_eq!(world.count(Counter::Rebinds), 0);
        assert_eq!(world.members(), 3);
        assert!(matches!(
            players[0].relay(world, 1, b"x"),
            Verdict::Forward(f) if f.route.to == players[1].addr
        ));
    });
}

#[test]
fn no_answer_is_answered() {
    with_each_shard_count(|world| {
        // Whatever this server says, another one (or this one, by a forged source) has nothing to say to it.
        world.trace = Some(Vec::new());
        let mut players = party(world, 3, &Wish::default());
        let target = players[2].id();
        players[0].kick(world, target).ok();
        players[1].try_host(world, &Wish::default());
        world.advance(500);
        let trace = world.trace.take().expect("traced");
        assert!(trace.len() > 10);
        let mut second = World::new(crate::world::Setup::new(world.setup.shards));
        for (_, bytes) in trace {
            for target in [&mut *world, &mut second] {
                target.take_all();
                target.send(addr("192.0.2.1:3478"), &bytes);
                assert_eq!(target.take_all(), []);
            }
        }
    });
}

#[test]
fn port_zero_is_ignored() {
    with_each_shard_count(|world| {
        let mut nobody = Player::at(addr("192.0.2.1:0"));
        let bytes = nobody.encode(method::HOST, &|w, _, _| host_part(w, &Wish::default()));
        let verdict = world.send(nobody.addr, &bytes);
        assert_eq!(verdict, Verdict::Drop(Counter::DropSource));
        assert_eq!(world.take_all(), []);
    });
}
