//! One introduction against a peer that is scripted, and against peers and servers that mean harm.

use super::super::ledger::{BUDGET_PER_ADDRESS, BUDGET_PER_MINUTE, GUESSES_PER_MINUTE};
use super::*;
use crate::wire::join_code::JoinCode;
use crate::wire::native::SeatId;
use rand::SeedableRng;
use std::collections::HashMap;

fn addr(text: &str) -> Addr {
    Addr::new(text.parse().unwrap())
}

fn own() -> SeatHandle {
    SeatHandle {
        code: JoinCode::from_bits(1).unwrap(),
        id: SeatId {
            seat: 0,
            generation: 1,
        },
    }
}

fn server() -> Addr {
    addr("198.51.100.1:3478")
}

/// What an agent keeps for all its introductions together.
struct Home {
    rng: StdRng,
    ledger: Ledger,
    out: VecDeque<Transmit>,
}

impl Home {
    fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            ledger: Ledger::new(Millis(0)),
            out: VecDeque::new(),
        }
    }

    /// Begins anew with every way that there is.
    fn punch(&mut self, now: Millis, introduced: &Introduced, previous: Option<Punch>) -> Punch {
        let all = Strategies::ALL;
        Punch::new(now, introduced, all, server(), previous, &mut self.rng)
    }

    fn handle_timeout(&mut self, now: Millis, punch: &mut Punch, room: usize) {
        punch.handle_timeout(now, own(), room, &mut self.ledger, &mut self.out);
    }

    fn on_check(
        &mut self,
        now: Millis,
        punch: &mut Punch,
        from: Way,
        id: TransactionId,
    ) -> Option<Transmit> {
        punch.on_check(now, from, id, server(), &mut self.ledger, &mut self.rng)
    }
}

/// A peer that has the key sends checks from ever new and from ever the same addresses, and answers nothing.
#[test]
fn a_hostile_peer_cannot_spend_more_than_the_budget() {
    let mut home = Home::new(1);
    let introduced = Introduced {
        observed: Some(addr("203.0.113.1:5000")),
        reachable: vec![addr("192.168.0.1:5000"), addr("203.0.113.1:5002")],
        key: [7; 16],
        start_in_ms: u64::MAX,
        ..Introduced::default()
    };
    let mut punch = None;
    let mut sent: HashMap<Addr, u32> = HashMap::new();
    for now in (0..9_000).map(Millis) {
        // Introduced again and again, which renews nothing.
        if now.0 % 1_000 == 0 {
            punch = Some(home.punch(now, &introduced, punch.take()));
        }
        let punch = punch.as_mut().unwrap();
        for from in [
            addr("203.0.113.1:5000"),
            addr("203.0.113.9:1").with_port(now.0 as u16 + 1),
        ] {
            let id = TransactionId([now.0 as u8; 12]);
            let answer = home.on_check(now, punch, Way::of(from), id);
            home.out.extend(answer);
        }
        home.handle_timeout(now, punch, 64);
        for transmit in home.out.drain(..) {
            assert!(transmit.bytes.len() <= 100);
            *sent.entry(transmit.to).or_default() += 1;
        }
        assert!(punch.candidates.len() <= CANDIDATES_MAX);
        assert_ne!(punch.state(), DirectState::Proven);
    }
    assert!(sent.values().all(|n| *n <= BUDGET_PER_ADDRESS), "{sent:?}");
    assert!(sent[&addr("203.0.113.1:5000")] == BUDGET_PER_ADDRESS);
}

/// A server that has the key introduces ever new members, all of them at addresses of one victim.
#[test]
fn a_hostile_server_cannot_spend_more_than_the_budget_of_a_minute() {
    let mut home = Home::new(4);
    let victim = addr("203.0.113.1:5000");
    let mut sent: HashMap<Addr, u32> = HashMap::new();
    let mut guesses = 0;
    let mut punches: VecDeque<Punch> = VecDeque::new();
    for now in (0..9_990).map(Millis) {
        let other = victim.with_port(1024 + now.0 as u16);
        let introduced = Introduced {
            observed: Some(victim),
            predicted: vec![other.with_port(20_000 + now.0 as u16)],
            reachable: vec![other],
            guess_from: Some(40_000),
            relayed: Some(other.with_port(30_000)),
            own_turn: true,
            key: [7; 16],
            start_in_ms: 0,
        };
        punches.push_back(home.punch(now, &introduced, None));
        // As many as a session has members.
        punches.truncate(254);
        for punch in &mut punches {
            home.handle_timeout(now, punch, 256);
        }
        for transmit in home.out.drain(..) {
            assert!(transmit.bytes.len() <= 100);
            if transmit.to.port() >= 39_000 {
                guesses += 1;
            } else {
                *sent.entry(transmit.to).or_default() += 1;
            }
        }
    }
    assert!(sent[&victim] <= BUDGET_PER_ADDRESS);
    assert!(sent.values().all(|n| *n <= BUDGET_PER_ADDRESS));
    assert!(sent.values().sum::<u32>() <= BUDGET_PER_MINUTE);
    assert!(guesses > 0 && guesses <= GUESSES_PER_MINUTE, "{guesses}");
}

#[test]
fn an_answer_must_be_to_a_check_of_ours_and_from_where_it_went() {
    let mut home = Home::new(2);
    let peer = addr("203.0.113.1:5000");
    let introduced = Introduced {
        observed: Some(peer),
        key: [7; 16],
        ..Introduced::default()
    };
    let mut punch = home.punch(Millis(0), &introduced, None);
    home.handle_timeout(Millis(0), &mut punch, 64);
    let check = home.out.iter().find(|t| t.ttl.is_none()).unwrap();
    let id = Message::parse(&check.bytes).unwrap().transaction_id();
    for (from, id, key, ok) in [
        (peer.with_port(5001), id, [7; 16], false),
        (peer, TransactionId([1; 12]), [7; 16], false),
        (peer, id, [8; 16], false),
        (peer, id, [7; 16], true),
    ] {
        let answer = write_check_answer(id, peer, &key);
        let message = Message::parse(&answer).unwrap();
        assert_eq!(punch.on_answer(Millis(40), Way::of(from), &message), ok);
        assert_eq!(punch.state() == DirectState::Proven, ok);
    }
}

#[test]
fn an_address_on_the_same_network_takes_the_place_of_a_punched_one() {
    let mut home = Home::new(5);
    let (punched, near) = (addr("203.0.113.1:5000"), addr("192.168.0.7:5000"));
    let introduced = Introduced {
        observed: Some(punched),
        reachable: vec![near],
        key: [7; 16],
        ..Introduced::default()
    };
    let mut punch = home.punch(Millis(0), &introduced, None);
    home.handle_timeout(Millis(0), &mut punch, 64);
    for (now, from) in [(40, punched), (60, near), (61, punched)] {
        let answer = answer(&home.out, Way::of(from));
        let message = Message::parse(&answer).unwrap();
        assert!(punch.on_answer(Millis(now), Way::of(from), &message));
        let best = if now == 40 { punched } else { near };
        assert_eq!(punch.send_data(Millis(now)), Some(best));
    }
}

#[test]
fn far_openers_wait_for_the_peer_and_checks_for_the_start() {
    let mut home = Home::new(3);
    let introduced = Introduced {
        observed: Some(addr("203.0.113.1:5000")),
        key: [7; 16],
        start_in_ms: 400,
        ..Introduced::default()
    };
    let mut punch = home.punch(Millis(0), &introduced, None);
    let mut sent = Vec::new();
    while sent.len() < 6 {
        let now = punch.next_timeout().unwrap();
        home.handle_timeout(now, &mut punch, 64);
        sent.extend(home.out.drain(..).map(|transmit| (now.0, transmit.ttl)));
    }
    assert_eq!(
        sent,
        [
            (0, Some(2)),
            (266, Some(3)),
            (300, Some(4)),
            (333, Some(5)),
            (400, None),
            (450, None)
        ]
    );
}

fn introduced(observed: Addr, relayed: Addr) -> Introduced {
    Introduced {
        observed: Some(observed),
        relayed: Some(relayed),
        own_turn: true,
        key: [7; 16],
        ..Introduced::default()
    }
}

/// The answer to the check that was last sent this way.
fn answer(out: &VecDeque<Transmit>, way: Way) -> Vec<u8> {
    let check = out.iter().rfind(|transmit| {
        (transmit.to, transmit.through_turn, transmit.ttl) == (way.addr, way.through_turn, None)
    });
    let id = Message::parse(&check.unwrap().bytes)
        .unwrap()
        .transaction_id();
    write_check_answer(id, way.addr, &[7; 16])
}

#[test]
fn a_way_through_a_turn_server_is_used_until_there_is_a_better_one() {
    let mut home = Home::new(6);
    let (observed, relayed) = (addr("203.0.113.1:5000"), addr("192.0.2.9:49152"));
    let introduced = introduced(observed, relayed);
    let mut punch = home.punch(Millis(0), &introduced, None);
    home.handle_timeout(Millis(0), &mut punch, 64);
    // All four ways are tried at once.
    let ways = [
        Way::of(relayed),
        Way::through_turn(observed),
        Way::through_turn(relayed),
        Way::of(observed),
    ];
    let answers = ways.map(|way| answer(&home.out, way));
    // An answer counts only if it comes the way that the check went.
    let message = Message::parse(&answers[1]).unwrap();
    assert!(!punch.on_answer(Millis(30), Way::of(observed), &message));
    for (at, in_use) in [(1, 1), (0, 1), (3, 3), (2, 3)] {
        let message = Message::parse(&answers[at]).unwrap();
        assert!(punch.on_answer(Millis(40), ways[at], &message));
        assert_eq!(punch.in_use(), Some(ways[in_use]), "after {at}");
    }
    let report = punch.report(Millis(50));
    for strategy in [Strategy::Turn, Strategy::UdpPunch] {
        let attempt = report.iter().find(|attempt| attempt.strategy == strategy);
        assert!(matches!(
            attempt.unwrap().progress,
            Progress::Connected { .. }
        ));
    }
}

#[test]
fn who_did_not_choose_turn_does_not_answer_a_peers_turn_server() {
    let mut home = Home::new(7);
    let (observed, relayed) = (addr("203.0.113.1:5000"), addr("192.0.2.9:49152"));
    let introduced = Introduced {
        own_turn: false,
        ..introduced(observed, relayed)
    };
    for (chosen, answers) in [
        (Strategies::ALL, true),
        (Strategies::ALL.without(Strategy::Turn), false),
    ] {
        let rng = &mut home.rng;
        let mut punch = Punch::new(Millis(0), &introduced, chosen, server(), None, rng);
        let (id, from) = (TransactionId([1; 12]), Way::of(relayed));
        let answer = home.on_check(Millis(1), &mut punch, from, id);
        assert_eq!(answer.is_some(), answers);
        let tries = punch.candidates.iter().any(|c| c.way.addr == relayed);
        assert_eq!(tries, answers);
    }
}
