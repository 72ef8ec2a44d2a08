//! Messages over a network that loses, doubles and reorders by a seed; and over one whose far end is hostile.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::frame::{self, Chunk, Data, FRAGMENT_MAX, FRAGMENTS_MAX, Header};
use super::{MESSAGE_MAX, MessageEvent, MessageId, Messages, Messaging, NotSent, Service};
use crate::time::Millis;
use crate::wire::native::SeatId;

const A: SeatId = SeatId {
    seat: 0,
    generation: 7,
};
const B: SeatId = SeatId {
    seat: 1,
    generation: 7,
};

/// Two ends and the network between them.
struct World {
    now: Millis,
    ends: [Messages; 2],
    events: [Vec<MessageEvent>; 2],
    /// Under way: arrival, then a number to tell those of one time apart; to whom; bytes.
    network: BTreeMap<(u64, u64), (usize, Vec<u8>)>,
    count: u64,
    rng: StdRng,
    loss: f64,
    doubled: f64,
    delay: std::ops::Range<u64>,
}

impl World {
    fn new(seed: u64, loss: f64, doubled: f64, delay: std::ops::Range<u64>) -> Self {
        let now = Millis(1_000);
        let end = |own: u8, peer| {
            let mut messages = Messages::new(Messaging::default(), [own; 32]);
            messages.member_joined(now, peer);
            messages
        };
        Self {
            now,
            ends: [end(1, B), end(2, A)],
            events: [Vec::new(), Vec::new()],
            network: BTreeMap::new(),
            count: 0,
            rng: StdRng::seed_from_u64(seed),
            loss,
            doubled,
            delay,
        }
    }

    fn settle(&mut self) {
        let mut out = Vec::new();
        for end in 0..2 {
            while self.ends[end].poll_transmit(self.now, &mut out).is_some() {
                assert!(out.len() <= crate::agent::DATAGRAM_MAX);
                let copies = 1 + usize::from(self.rng.random_bool(self.doubled));
                for _ in 0..copies {
                    if !self.rng.random_bool(self.loss) {
                        let at = self.now.0 + self.rng.random_range(self.delay.clone());
                        self.count += 1;
                        self.network
                            .insert((at, self.count), (1 - end, out.clone()));
                    }
                }
            }
            while let Some(event) = self.ends[end].poll_event() {
                self.events[end].push(event);
            }
        }
    }

    /// Goes on until `done`, or `until`.
    fn run(&mut self, until: u64, mut done: impl FnMut(&Self) -> bool) -> bool {
        loop {
            self.settle();
            if done(self) {
                return true;
            }
            let arrival = self.network.keys().next().map(|key| key.0);
            let due = self
                .ends
                .iter()
                .filter_map(|end| end.poll_timeout(self.now));
            let Some(next) = due.map(|at| at.0).chain(arrival).min() else {
                return false;
            };
            if next > until {
                return false;
            }
            self.now = Millis(next.max(self.now.0));
            while let Some(entry) = self.network.first_entry()
                && entry.key().0 <= self.now.0
            {
                let (to, bytes) = entry.remove();
                let from = [B, A][to];
                self.ends[to].handle(self.now, from, &bytes);
            }
            self.ends
                .iter_mut()
                .for_each(|end| end.handle_timeout(self.now));
        }
    }

    fn received(&self, end: usize) -> Vec<&super::Message> {
        fn received(event: &MessageEvent) -> Option<&super::Message> {
            match event {
                MessageEvent::Received(message) => Some(message),
                _ => None,
            }
        }
        self.events[end].iter().filter_map(received).collect()
    }
}

fn content(number: u32, len: usize) -> Vec<u8> {
    let mut data = number.to_be_bytes().to_vec();
    data.extend((4..len).map(|at| (at as u32 ^ number) as u8));
    data
}

fn number_of(data: &[u8]) -> u32 {
    u32::from_be_bytes(data[..4].try_into().unwrap())
}

/// What is sent through a bad network arrives once, whole, and in order where that was asked.
fn bad_network(seed: u64) {
    println!("seed {seed}");
    let mut world = World::new(seed, 0.3, 0.1, 10..120);
    let mut choice = StdRng::seed_from_u64(seed);
    let mut sent: BTreeMap<u32, (Service, usize)> = BTreeMap::new();
    let mut reliable = 0;
    for number in 0..300 {
        let services = [
            Service::UNRELIABLE,
            Service::SEQUENCED,
            Service::RELIABLE,
            Service::ORDERED,
        ];
        let service = services[choice.random_range(0..4)];
        let len = match choice.random_range(0..20) {
            0 => choice.random_range(4..=MESSAGE_MAX),
            1..5 => choice.random_range(4..4_000),
            _ => choice.random_range(4..200),
        };
        let data = content(number, len);
        loop {
            match world.ends[0].send(world.now, B, &data, service) {
                Ok(_) => break,
                Err(NotSent::Full) => {
                    let later = world.now.0 + 50;
                    world.run(later, |_| false);
                    world.now = Millis(later);
                }
                Err(other) => panic!("{other}"),
            }
        }
        reliable += usize::from(service.reliable);
        sent.insert(number, (service, len));
        let until = world.now.0 + choice.random_range(1..30);
        world.run(until, |_| false);
        world.now = Millis(until);
    }
    let acknowledged = |world: &World| {
        let counts = |event: &&MessageEvent| matches!(event, MessageEvent::Acknowledged(..));
        world.events[0].iter().filter(counts).count()
    };
    let limit = world.now.0 + 120_000;
    assert!(
        world.run(limit, |world| acknowledged(world) == reliable),
        "{} of {reliable} acknowledged",
        acknowledged(&world)
    );
    let mut seen = BTreeMap::new();
    let (mut last_ordered, mut last_sequenced) = (None, None);
    for message in world.received(1) {
        let number = number_of(&message.data);
        let (service, len) = sent[&number];
        assert_eq!(message.data, content(number, len));
        assert_eq!(message.reliable, service.reliable);
        assert_eq!(seen.insert(number, ()), None, "{number} came twice");
        let last = match service {
            Service::ORDERED => &mut last_ordered,
            Service::SEQUENCED => &mut last_sequenced,
            _ => continue,
        };
        assert!(*last < Some(number), "{number} after {last:?}");
        *last = Some(number);
    }
    for (number, (service, _)) in &sent {
        assert!(
            !service.reliable || seen.contains_key(number),
            "{number} is missing"
        );
    }
    let round_trip = world.ends[0].round_trip_ms(B).unwrap();
    assert!((20..400).contains(&round_trip), "{round_trip} ms");
    assert!(
        !world
            .events
            .iter()
            .flatten()
            .any(|e| matches!(e, MessageEvent::PeerSilent(_))),
        "a living peer was taken for dead"
    );
}

#[test]
fn thirty_percent_loss() {
    (0..20).for_each(bad_network);
}

#[test]
fn a_clean_network_sends_hardly_anything_twice() {
    let mut world = World::new(1, 0.0, 0.0, 25..26);
    let data = content(9, MESSAGE_MAX);
    world.run(1_200, |_| false);
    let before = world.count;
    for _ in 0..10 {
        world.ends[0]
            .send(world.now, B, &data, Service::ORDERED)
            .unwrap();
    }
    let began = world.now.0;
    assert!(world.run(20_000, |world| world.received(1).len() == 10));
    let fragments = (10 * MESSAGE_MAX.div_ceil(FRAGMENT_MAX)) as u64;
    let packets = world.count - before;
    assert!(
        packets < fragments * 17 / 10,
        "{packets} datagrams for {fragments} fragments"
    );
    let took = world.now.0 - began;
    assert!(
        took < 1_500,
        "{took} ms for {fragments} fragments at 64 per 50 ms"
    );
}

#[test]
fn expiry_is_told_and_holds_up_nobody() {
    let mut world = World::new(3, 0.0, 0.0, 5..6);
    world.run(1_100, |_| false);
    world.loss = 1.0;
    let now = world.now;
    let late = world.ends[0].send(
        now,
        B,
        &content(1, 3_000),
        Service::ORDERED.expiring_in_ms(200),
    );
    let kept = world.ends[0]
        .send(now, B, &content(2, 10), Service::ORDERED)
        .unwrap();
    world.run(now.0 + 300, |_| false);
    assert!(world.events[0].contains(&MessageEvent::Expired(B, late.unwrap())));
    world.loss = 0.0;
    assert!(world.run(now.0 + 5_000, |world| !world.received(1).is_empty()));
    world.run(world.now.0 + 500, |_| false);
    assert_eq!(number_of(&world.received(1)[0].data), 2);
    assert_eq!(world.received(1).len(), 1);
    assert!(world.events[0].contains(&MessageEvent::Acknowledged(B, kept)));
}

#[test]
fn a_dead_peer_is_told_in_time_and_its_return_too() {
    let mut world = World::new(4, 0.0, 0.0, 5..6);
    world.run(2_000, |_| false);
    let died = world.now.0;
    world.loss = 1.0;
    let silent = |world: &World| world.events[0].contains(&MessageEvent::PeerSilent(B));
    assert!(world.run(20_000, silent));
    let took = world.now.0 - died;
    assert!((3_900..=5_010).contains(&took), "told after {took} ms");
    assert!(world.ends[0].is_silent(B));
    world.loss = 0.0;
    assert!(world.run(30_000, |world| {
        world.events[0].contains(&MessageEvent::PeerBack(B))
    }));
}

#[test]
fn a_peer_that_begins_anew_is_heard_from_its_beginning() {
    let mut world = World::new(5, 0.0, 0.0, 5..6);
    world.ends[0]
        .send(world.now, B, b"1234", Service::ORDERED)
        .unwrap();
    assert!(world.run(5_000, |world| world.received(1).len() == 1));
    world.ends[1] = Messages::new(Messaging::default(), [9; 32]);
    world.ends[1].member_joined(world.now, A);
    world.ends[1]
        .send(world.now, A, b"anew", Service::ORDERED)
        .unwrap();
    assert!(world.run(10_000, |world| world.received(0).len() == 1));
    assert!(world.events[0].contains(&MessageEvent::PeerRestarted(B)));
    world.ends[0]
        .send(world.now, B, b"5678", Service::ORDERED)
        .unwrap();
    assert!(world.run(15_000, |world| world.received(1).len() == 2));
}

#[test]
fn who_does_not_read_stops_the_sender_and_not_for_ever() {
    let mut world = World::new(6, 0.0, 0.0, 5..6);
    world.run(1_100, |_| false);
    let data = content(1, 50_000);
    let mut sent = 0;
    // The far end's events are not taken.
    let quiet = |world: &mut World, steps: u64| {
        let mut out = Vec::new();
        for _ in 0..steps {
            world.now = world.now + 5;
            for end in 0..2 {
                world.ends[end].handle_timeout(world.now);
                while world.ends[end].poll_transmit(world.now, &mut out).is_some() {
                    world.ends[1 - end].handle(world.now, [A, B][end], &out);
                }
            }
        }
    };
    for _ in 0..200 {
        match world.ends[0].send(world.now, B, &data, Service::RELIABLE) {
            Ok(_) => sent += 1,
            Err(NotSent::Full) => break,
            Err(other) => panic!("{other}"),
        }
        quiet(&mut world, 40);
    }
    assert!((20..40).contains(&sent), "{sent} messages were taken");
    let held = world.ends[1].get(A).unwrap().held();
    assert!(held < 500_000, "{held} bytes held");
    let until = world.now.0 + 60_000;
    assert!(world.run(until, |world| world.received(1).len() == sent));
}

#[test]
fn a_broadcast_has_one_id_and_reaches_all() {
    let mut messages = Messages::new(Messaging::default(), [0; 32]);
    messages.member_joined(Millis(0), A);
    messages.member_joined(Millis(0), B);
    let id = messages
        .broadcast(Millis(0), b"to all", Service::RELIABLE)
        .unwrap();
    messages.member_left(A);
    messages.member_left(B);
    let told: Vec<_> = std::iter::from_fn(|| messages.poll_event()).collect();
    assert_eq!(
        told,
        [MessageEvent::Expired(A, id), MessageEvent::Expired(B, id)]
    );
    assert_eq!(id, MessageId(1));
    let too_long = vec![0; MESSAGE_MAX + 1];
    assert_eq!(
        messages.broadcast(Millis(0), &too_long, Service::RELIABLE),
        Err(NotSent::TooLong)
    );
    assert_eq!(
        messages.send(Millis(0), A, b"", Service::RELIABLE),
        Err(NotSent::NoMember)
    );
}

/// An end that has met its peer, and the tags.
fn met() -> (Messages, u32, u32) {
    let mut world = World::new(7, 0.0, 0.0, 5..6);
    world.run(1_200, |_| false);
    let [end, _] = world.ends;
    let (own, peer) = end.get(B).unwrap().tags();
    assert!(own != 0 && peer != 0);
    (end, own, peer)
}

fn any_data() -> impl Strategy<Value = (bool, bool, bool, u32, u32, u8, u8, u16, usize)> {
    let number = prop_oneof![0u32..200, any::<u32>()];
    (
        any::<bool>(),
        any::<bool>(),
        prop::bool::weighted(0.1),
        prop_oneof![0u32..300, any::<u32>()],
        number,
        0u8..70,
        0u8..70,
        any::<u16>(),
        0..FRAGMENT_MAX + 2,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_harm(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..50)) {
        let (mut end, own, peer) = met();
        for (at, mut bytes) in frames.into_iter().enumerate() {
            let now = Millis(2_000 + at as u64 * 10);
            // Half of them past the first checks.
            if at % 2 == 0 && bytes.len() >= 24 {
                bytes[..2].copy_from_slice(&[1, 0]);
                bytes[4..8].copy_from_slice(&own.to_be_bytes());
                bytes[8..12].copy_from_slice(&peer.to_be_bytes());
            }
            end.handle(now, B, &bytes);
            end.handle_timeout(now);
            let mut out = Vec::new();
            for _ in 0..4 {
                end.poll_transmit(now, &mut out);
            }
        }
    }

    #[test]
    fn a_hostile_peer_makes_nothing_grow(
        chunks in prop::collection::vec(any_data(), 1..2_000),
        cumulative in any::<u32>(),
        received in any::<u64>(),
        reads in any::<bool>(),
    ) {
        let (mut end, own, peer) = met();
        end.send(Millis(2_000), B, &[1; 5_000], Service::ORDERED).unwrap();
        let mut out = Vec::new();
        for (at, (reliable, ordered, void, message, number, index, count, order, len)) in
            chunks.into_iter().enumerate()
        {
            let now = Millis(2_000 + at as u64);
            let bytes = vec![0; len];
            let header = Header { window: 64, to: own, from: peer, cumulative, received };
            let mut bytes_of_frame = Vec::new();
            frame::begin(&mut bytes_of_frame, &header);
            let data = Data { reliable, ordered, void, message, number, index, count, order, bytes: &bytes };
            frame::push(&mut bytes_of_frame, &Chunk::Data(data));
            end.handle(now, B, &bytes_of_frame);
            end.handle_timeout(now);
            end.poll_transmit(now, &mut out);
            if reads {
                while end.poll_event().is_some() {}
            }
            let held = end.get(B).unwrap().held();
            let most = 300_000 + 64 * 1_200 * 2 + 4 * usize::from(FRAGMENTS_MAX) * 1_200;
            prop_assert!(held < most, "{held} bytes held");
        }
    }
}
