//! Ports reserved with EVEN-PORT (RFC 8656 section 7.2), redeemed on another shard than they were reserved on.

use waypost_proto::addr::Addr;
use waypost_proto::forwarding::Service;
use waypost_proto::shard::Verdict;
use waypost_proto::stats::Counter;
use waypost_proto::turn::TurnConfig;
use waypost_proto::wire::stun::{attr, method};

use crate::client::{Answer, Client, MAIN, config};
use crate::world::World;

fn client(port: u16) -> Client {
    Client::ann(&format!("198.41.9.9:{port}"))
}

/// Reserves a port on the first shard: the token and the reserved address.
fn reserve(world: &mut World, client: &mut Client) -> (Vec<u8>, Addr) {
    let pair = client
        .allocate_with(&mut world.shards[0], &|w| {
            w.attribute(attr::EVEN_PORT, &[0x80]);
        })
        .ok();
    let token = pair.message().find(attr::RESERVATION_TOKEN);
    let even = pair.relayed()[0];
    let token = token.expect("a token").to_vec();
    (token, even.with_port(even.port() + 1))
}

fn redemption(world: &mut World, client: &mut Client, token: &[u8]) -> Vec<u8> {
    if client.nonce.is_empty() {
        client.learn_nonce(&mut world.shards[1]);
    }
    client.signed(method::ALLOCATE, &|w| {
        w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
            .attribute(attr::RESERVATION_TOKEN, token);
    })
}

/// Shows a token to the second shard; returns the answer, which comes when the other one has been asked.
fn redeem(world: &mut World, client: &mut Client, token: &[u8]) -> Answer {
    let request = redemption(world, client, token);
    let shard = &mut world.shards[1];
    shard.sent.clear();
    assert_eq!(shard.deliver(MAIN, client.addr, &request), Verdict::Handled);
    world.settle();
    answer(world, client)
}

fn answer(world: &mut World, client: &Client) -> Answer {
    let (socket, to, bytes) = world.shards[1].take_one();
    assert_eq!((socket, to), (MAIN, client.addr));
    let answer = Answer { bytes };
    let key = client.key();
    let fits = answer
        .message()
        .verify_integrity(client.integrity(), key.as_bytes());
    assert!(fits);
    answer
}

#[test]
fn a_token_is_good_on_any_shard_and_once() {
    let mut world = World::new();
    let mut first = client(1);
    let (token, reserved) = reserve(&mut world, &mut first);
    let mut second = client(2);
    let request = redemption(&mut world, &mut second, &token);
    world.shards[1].sent.clear();
    // Repetitions are not answered while the other shard is asked.
    for _ in 0..3 {
        world.shards[1].deliver(MAIN, second.addr, &request);
    }
    assert!(world.shards[1].sent.is_empty());
    world.settle();
    let redeemed = answer(&mut world, &second).ok();
    assert_eq!(redeemed.relayed(), [reserved]);
    assert!(
        world.shards[1]
            .relays
            .open
            .values()
            .any(|at| *at == reserved)
    );
    let again = second.ask(&mut world.shards[1], &request);
    assert_eq!(again.bytes, redeemed.bytes);
    // Once, wherever it is shown.
    assert_eq!(redeem(&mut world, &mut client(3), &token).code(), 508);
    let at_home = client(4).allocate_with(&mut world.shards[0], &|w| {
        w.attribute(attr::RESERVATION_TOKEN, &token);
    });
    assert_eq!(at_home.code(), 508);
    assert_eq!(world.shards[1].allocations(), 1);
    // The allocation lives like any other, and the first one's end is not its own.
    first.refresh(&mut world.shards[0], 0).ok();
    let peer = reserved.with_port(1);
    second.permit(&mut world.shards[1], &[peer]).ok();
    second.refresh(&mut world.shards[1], 0).ok();
    world.settle();
    for shard in &world.shards {
        assert_eq!(shard.shard.inspect().relay_ports, 0);
    }
}

#[test]
fn a_lent_port_is_taken_until_it_is_back() {
    let mut world = World::with(TurnConfig {
        relay_ports: 50_000..=50_003,
        ..config()
    });
    let mut first = client(1);
    let (token, reserved) = reserve(&mut world, &mut first);
    let mut second = client(2);
    redeem(&mut world, &mut second, &token).ok();
    first.refresh(&mut world.shards[0], 0).ok();
    // The first shard has two ports and one of them is away.
    client(3).allocate(&mut world.shards[0]);
    let full = client(4).allocate_with(&mut world.shards[0], &|_| ());
    assert_eq!(full.code(), 508);
    second.refresh(&mut world.shards[1], 0).ok();
    world.settle();
    assert_eq!(client(5).allocate(&mut world.shards[0]), reserved);
}

#[test]
fn tokens_of_others_old_tokens_and_invented_ones() {
    let mut world = World::new();
    let (token, _) = reserve(&mut world, &mut client(1));
    let mut stranger = Client::new("198.41.9.9:2", "bob", "bob's password");
    assert_eq!(redeem(&mut world, &mut stranger, &token).code(), 508);
    for last in 0..=255 {
        let invented = [1, 2, 3, 4, 5, 6, 7, last];
        let mut inventor = client(1000 + u16::from(last));
        inventor.nonce = stranger.nonce.clone();
        world.shards[1].now = world.shards[1].now + 1000;
        world.shards[0].now = world.shards[0].now + 20;
        inventor.nonce.clear();
        assert_eq!(redeem(&mut world, &mut inventor, &invented).code(), 508);
    }
    world.advance_secs(31);
    assert_eq!(redeem(&mut world, &mut client(3), &token).code(), 508);
    assert_eq!(world.shards[1].allocations(), 0);
    assert_eq!(world.shards[1].shard.inspect().relay_ports, 0);
}

// The other shard's socket may take a moment to close.
#[test]
fn a_port_that_is_not_free_yet_is_tried_again() {
    for is_freed in [true, false] {
        let mut world = World::new();
        let mut first = client(1);
        let (token, reserved) = reserve(&mut world, &mut first);
        world.shards[1].relays.in_use = vec![reserved.port()];
        let mut second = client(2);
        let request = redemption(&mut world, &mut second, &token);
        world.shards[1].sent.clear();
        world.shards[1].deliver(MAIN, second.addr, &request);
        world.settle();
        world.shards[1].deliver(MAIN, second.addr, &request);
        assert!(world.shards[1].sent.is_empty());
        if is_freed {
            world.shards[1].relays.in_use.clear();
        }
        world.advance_secs(5);
        let answer = answer(&mut world, &second);
        if is_freed {
            assert_eq!(answer.ok().relayed(), [reserved]);
        } else {
            assert_eq!(answer.code(), 508);
            assert_eq!(world.shards[1].allocations(), 0);
            first.refresh(&mut world.shards[0], 0).ok();
            world.settle();
            assert_eq!(world.shards[0].shard.inspect().relay_ports, 0);
        }
        assert_eq!(world.shards[1].count(Counter::RelayOpenFailures), 0);
    }
}

#[test]
fn a_host_without_room_gives_the_port_back() {
    let mut world = World::new();
    let mut first = client(1);
    let (token, _) = reserve(&mut world, &mut first);
    world.shards[1].relays.exhausted = true;
    assert_eq!(redeem(&mut world, &mut client(2), &token).code(), 508);
    first.refresh(&mut world.shards[0], 0).ok();
    world.settle();
    assert_eq!(world.shards[0].shard.inspect().relay_ports, 0);
}

#[test]
fn hairpins_find_a_port_that_moved() {
    let mut world = World::new();
    let (token, reserved) = reserve(&mut world, &mut client(1));
    let mut mover = client(2);
    redeem(&mut world, &mut mover, &token).ok();
    mover.permit(&mut world.shards[1], &[reserved]).ok();
    for shard in [0, 1] {
        let mut sender = client(10 + shard as u16);
        sender.allocate(&mut world.shards[shard]);
        sender.permit(&mut world.shards[shard], &[reserved]).ok();
        for _ in 0..3 {
            sender.send(&mut world.shards[shard], reserved, b"x");
            world.settle();
        }
        let verdict = sender.send(&mut world.shards[shard], reserved, b"x");
        let is_hairpin = |f: waypost_proto::forwarding::Forward| f.service == Service::Hairpin;
        assert!(matches!(verdict, Verdict::Forward(forward) if is_hairpin(forward)));
        assert_eq!(world.shards[shard].take_one().1, mover.addr);
    }
}
