//! Mobility (RFC 8016): an allocation follows its client to another five-tuple, also to one that another shard gets.

use waypost_proto::addr::{Addr, ClientAddr};
use waypost_proto::lobby::Mail;
use waypost_proto::shard::Verdict;
use waypost_proto::stats::Counter;
use waypost_proto::turn::TurnConfig;
use waypost_proto::wire::stun::{Class, MessageWriter, attr, method};

use crate::client::{Answer, Client, Server, addr, config};

const HERE: &str = "198.41.9.9:4000";
const THERE: &str = "198.41.7.7:5000";
const PEER: &str = "8.8.8.8:9";

fn ticket_in(answer: &Answer) -> Vec<u8> {
    let message = answer.message();
    message
        .find(attr::MOBILITY_TICKET)
        .expect("a ticket")
        .to_vec()
}

fn allocate_mobile(client: &mut Client, server: &mut Server) -> (Addr, Vec<u8>) {
    let answer = client.allocate_with(server, &|w| {
        w.attribute(attr::MOBILITY_TICKET, &[]);
    });
    let answer = answer.ok();
    (answer.relayed()[0], ticket_in(&answer))
}

fn show(client: &mut Client, server: &mut Server, ticket: &[u8]) -> Answer {
    client.request(server, method::REFRESH, &|w| {
        w.attribute(attr::MOBILITY_TICKET, ticket);
    })
}

/// To whom data of the peer goes.
fn receiver(server: &mut Server, relayed: Addr) -> Addr {
    server.sent.clear();
    server.peer_sends(addr(PEER), relayed, b"to the client");
    server.take_one().1
}

// RFC 8016 sections 3.1.2 and 3.2.2: the ticket moves the allocation; the old five-tuple is served until the client sends
// from the new one.
#[test]
fn an_allocation_follows_its_client() {
    for arrives_by in ["channel", "indication", "request"] {
        let mut server = Server::new();
        let mut client = Client::ann(HERE);
        let (relayed, first) = allocate_mobile(&mut client, &mut server);
        client.bind(&mut server, 0x4000, addr(PEER)).ok();
        let mut moved = Client::ann(THERE);
        let answer = show(&mut moved, &mut server, &first).ok();
        assert_eq!(answer.u32(attr::LIFETIME), Some(600));
        let second = ticket_in(&answer);
        assert_ne!(first, second);
        assert_eq!(receiver(&mut server, relayed), addr(HERE), "not there yet");
        assert!(matches!(
            client.channel(&mut server, 0x4000, b"x"),
            Verdict::Forward(_)
        ));
        match arrives_by {
            "channel" => assert!(matches!(
                moved.channel(&mut server, 0x4000, b"x"),
                Verdict::Forward(_)
            )),
            "indication" => assert!(matches!(
                moved.send(&mut server, addr(PEER), b"x"),
                Verdict::Forward(_)
            )),
            _ => assert_eq!(moved.permit(&mut server, &[addr(PEER)]).code(), 0),
        }
        server.advance_secs(0);
        assert_eq!(receiver(&mut server, relayed), addr(THERE), "{arrives_by}");
        let old = client.channel(&mut server, 0x4000, b"x");
        assert_eq!(old, Verdict::Drop(Counter::DropNoFlow));
        assert_eq!(client.refresh(&mut server, 600).code(), 437);
        assert_eq!(server.count(Counter::AllocationsMoved), 1);
        // And back, with the ticket of the last answer.
        show(&mut client, &mut server, &second).ok();
        client.refresh(&mut server, 600).ok();
        assert_eq!(receiver(&mut server, relayed), addr(HERE));
        client.refresh(&mut server, 0).ok();
        assert_eq!((server.allocations(), server.relays.open.len()), (0, 0));
        // Both five-tuples are free again.
        client.allocate(&mut server);
        moved.allocate(&mut server);
    }
}

// A repetition gets the same answer; a ticket is good once; an allocation that ended takes its tickets along.
#[test]
fn a_ticket_is_good_for_one_move() {
    let mut server = Server::new();
    let mut client = Client::ann(HERE);
    let (_, ticket) = allocate_mobile(&mut client, &mut server);
    let mut moved = Client::ann(THERE);
    moved.learn_nonce(&mut server);
    let request = moved.signed(method::REFRESH, &|w| {
        w.attribute(attr::MOBILITY_TICKET, &ticket);
    });
    let first = moved.ask(&mut server, &request).ok();
    assert_eq!(moved.ask(&mut server, &request).bytes, first.bytes);
    let mut third = Client::ann("198.41.6.6:6000");
    assert_eq!(show(&mut third, &mut server, &ticket).code(), 400, "used");
    // It moves on before it was ever there.
    let next = show(&mut third, &mut server, &ticket_in(&first)).ok();
    assert_eq!(moved.permit(&mut server, &[addr(PEER)]).code(), 437);
    third.refresh(&mut server, 0).ok();
    assert_eq!(show(&mut moved, &mut server, &ticket_in(&next)).code(), 437);
    assert_eq!(server.allocations(), 0);
    // Somebody else's allocation in the same place is not reached.
    let (_, fresh) = allocate_mobile(&mut client, &mut server);
    assert_eq!(show(&mut moved, &mut server, &ticket_in(&next)).code(), 437);
    // With a lifetime of 0 it ends from where the client is.
    let gone = moved.request(&mut server, method::REFRESH, &|w| {
        w.u32(attr::LIFETIME, 0)
            .attribute(attr::MOBILITY_TICKET, &fresh);
    });
    assert_eq!(
        (gone.code(), gone.u32(attr::LIFETIME), server.allocations()),
        (0, Some(0), 0)
    );
}

// RFC 8016 section 5: the ticket does not replace the credential; what is not in order changes nothing.
#[test]
fn a_ticket_alone_is_nothing() {
    let mut server = Server::new();
    let mut client = Client::ann(HERE);
    let (relayed, ticket) = allocate_mobile(&mut client, &mut server);
    client.permit(&mut server, &[addr(PEER)]).ok();
    let mut bob = Client::new(THERE, "bob", "bob's password");
    assert_eq!(show(&mut bob, &mut server, &ticket).code(), 441);
    let mut eve = Client::new("198.41.7.7:5001", "ann", "a guess");
    assert_eq!(show(&mut eve, &mut server, &ticket).code(), 401);
    let mut moved = Client::ann("198.41.7.7:5002");
    for bit in 0..ticket.len() * 8 {
        let mut other = ticket.clone();
        other[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(
            show(&mut moved, &mut server, &other).code(),
            400,
            "bit {bit}"
        );
    }
    for other in [&[][..], &ticket[..ticket.len() - 1]] {
        assert_eq!(show(&mut moved, &mut server, other).code(), 400);
        assert_eq!(show(&mut client, &mut server, other).code(), 400);
    }
    let badly = moved.request(&mut server, method::REFRESH, &|w| {
        w.attribute(attr::LIFETIME, &[1])
            .attribute(attr::MOBILITY_TICKET, &ticket);
    });
    assert_eq!(badly.code(), 400);
    let mut busy = Client::ann("198.41.7.7:5003");
    busy.allocate(&mut server);
    assert_eq!(
        show(&mut busy, &mut server, &ticket).code(),
        400,
        "it has its own, which is not mobile"
    );
    assert_eq!(receiver(&mut server, relayed), addr(HERE));
    // The current ticket may be shown from where the client is, too.
    let answer = show(&mut client, &mut server, &ticket).ok();
    assert_eq!(ticket_in(&answer), ticket);
    assert!(
        client
            .refresh(&mut server, 600)
            .ok()
            .message()
            .find(attr::MOBILITY_TICKET)
            .is_none()
    );
}

// RFC 8016 sections 3.1.2 and 3.2.2: 405 where it is forbidden, 400 for a ticket in Allocate.
#[test]
fn mobility_may_be_forbidden() {
    let mut server = Server::with(TurnConfig {
        mobility: false,
        ..config()
    });
    let mut client = Client::ann(HERE);
    let wished = client.allocate_with(&mut server, &|w| {
        w.attribute(attr::MOBILITY_TICKET, &[]);
    });
    assert_eq!(wished.code(), 405);
    client.allocate(&mut server);
    assert_eq!(show(&mut client, &mut server, &[1; 34]).code(), 405);
    assert_eq!(
        show(&mut Client::ann(THERE), &mut server, &[1; 34]).code(),
        405
    );
    let mut server = Server::new();
    let odd = client.allocate_with(&mut server, &|w| {
        w.attribute(attr::MOBILITY_TICKET, &[1; 34]);
    });
    assert_eq!(odd.code(), 400);
}

/// Two shards, and who of them gets what from each address.
struct Pair {
    shards: [Server; 2],
}

impl Pair {
    fn new() -> Self {
        Self {
            shards: [0, 1].map(|index| Server::shard_of(config(), index, 2)),
        }
    }

    /// Carries mail until there is none.
    fn settle(&mut self) {
        loop {
            let mail: Vec<(u16, Mail)> = self
                .shards
                .iter_mut()
                .flat_map(|s| s.mail.drain(..))
                .collect();
            if mail.is_empty() {
                return;
            }
            for (to, mail) in mail {
                let server = &mut self.shards[usize::from(to)];
                server.shard.handle_mail(server.now, mail);
                server.shard.handle_timeout(server.now);
                server.settle();
            }
        }
    }

    /// A datagram comes to a shard; what either sends because of it.
    fn deliver(
        &mut self,
        shard: usize,
        from: &Client,
        bytes: &[u8],
    ) -> Vec<(usize, Addr, Vec<u8>)> {
        self.shards
            .iter_mut()
            .for_each(|server| server.sent.clear());
        self.shards[shard].deliver(from.socket, from.addr, bytes);
        self.settle();
        let sent = |(at, server): (usize, &mut Server)| {
            server.shard.handle_timeout(server.now);
            server.settle();
            server
                .sent
                .drain(..)
                .map(move |(_, to, bytes)| (at, to, bytes))
                .collect::<Vec<_>>()
        };
        let sent = self.shards.iter_mut().enumerate().flat_map(sent).collect();
        self.settle();
        sent
    }

    fn ask(&mut self, shard: usize, client: &Client, request: &[u8]) -> (usize, Answer) {
        let mut sent = self.deliver(shard, client, request);
        assert_eq!(sent.len(), 1);
        let (at, to, bytes) = sent.remove(0);
        assert_eq!(to, client.addr);
        (at, Answer { bytes })
    }
}

// The new five-tuple comes to another shard than the allocation: that one passes on what it gets.
#[test]
fn a_client_moves_to_another_shard_and_back() {
    let mut pair = Pair::new();
    let mut client = Client::ann(HERE);
    let (relayed, ticket) = allocate_mobile(&mut client, &mut pair.shards[0]);
    client.bind(&mut pair.shards[0], 0x4000, addr(PEER)).ok();
    let mut moved = Client::ann(THERE);
    moved.learn_nonce(&mut pair.shards[1]);
    let request = moved.signed(method::REFRESH, &|w| {
        w.attribute(attr::MOBILITY_TICKET, &ticket);
    });
    let (at, answer) = pair.ask(1, &moved, &request);
    assert_eq!(
        (at, answer.code()),
        (1, 0),
        "the answer comes from where the next datagram is expected"
    );
    let ticket = ticket_in(&answer);
    assert_eq!(receiver(&mut pair.shards[0], relayed), addr(HERE));
    // A repetition gets the same answer.
    assert_eq!(pair.ask(1, &moved, &request).1.bytes, answer.bytes);
    // Data goes the detour and leaves by the relay socket.
    let data = b"\x40\x00\x00\x05hello\0\0\0".to_vec();
    let sent = pair.deliver(1, &moved, &data);
    assert_eq!(sent, [(0, addr(PEER), b"hello".to_vec())]);
    assert_eq!(pair.shards[1].count(Counter::GuestPackets), 2);
    assert_eq!(receiver(&mut pair.shards[0], relayed), addr(THERE));
    let indication = moved.send_indication(addr(PEER), b"hi");
    assert_eq!(
        pair.deliver(1, &moved, &indication),
        [(0, addr(PEER), b"hi".to_vec())]
    );
    assert_eq!(
        pair.deliver(0, &client, &data),
        [],
        "the old five-tuple is nobody's"
    );
    // So do requests; a second Allocate is 437 wherever it comes to.
    let request = moved.signed(method::CREATE_PERMISSION, &|w| {
        w.xor_addr(attr::XOR_PEER_ADDRESS, addr("8.8.4.4:1"));
    });
    assert_eq!(pair.ask(1, &moved, &request).1.code(), 0);
    let request = moved.signed(method::ALLOCATE, &|w| {
        w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
    });
    assert_eq!(pair.ask(1, &moved, &request).1.code(), 437);
    assert_eq!(pair.shards[1].allocations(), 0);
    // Back: the guest is forgotten.
    client.nonce.clear();
    show(&mut client, &mut pair.shards[0], &ticket).ok();
    client.refresh(&mut pair.shards[0], 600).ok();
    pair.settle();
    assert_eq!(pair.deliver(1, &moved, &data), []);
    assert_eq!(pair.shards[1].count(Counter::DropNoFlow), 1);
    moved.allocate(&mut pair.shards[1]);
    assert_eq!(receiver(&mut pair.shards[0], relayed), addr(HERE));
}

// When the allocation ends, so does the guest; and a wrong owner is refused across shards, too.
#[test]
fn guests_end_with_their_allocation() {
    let mut pair = Pair::new();
    let mut client = Client::ann(HERE);
    let (_, ticket) = allocate_mobile(&mut client, &mut pair.shards[0]);
    for (name, password, code) in [("bob", "bob's password", 441), ("ann", "ann's password", 0)] {
        let mut moved = Client::new(THERE, name, password);
        moved.learn_nonce(&mut pair.shards[1]);
        let request = moved.signed(method::REFRESH, &|w| {
            w.attribute(attr::MOBILITY_TICKET, &ticket);
        });
        assert_eq!(pair.ask(1, &moved, &request).1.code(), code);
    }
    pair.shards
        .iter_mut()
        .for_each(|server| server.advance_secs(601));
    pair.settle();
    assert_eq!(pair.shards[0].allocations(), 0);
    let mut moved = Client::ann(THERE);
    moved.allocate(&mut pair.shards[1]);
    let request = moved.signed(method::REFRESH, &|_| ());
    let (at, answer) = pair.ask(1, &moved, &request);
    assert_eq!((at, answer.code()), (1, 0), "it is served where it arrives");
    // The end by request: its repetition comes to where there is no allocation and never was.
    let mut pair = Pair::new();
    let (_, ticket) = allocate_mobile(&mut client, &mut pair.shards[0]);
    moved.nonce.clear();
    moved.learn_nonce(&mut pair.shards[1]);
    let request = moved.signed(method::REFRESH, &|w| {
        w.attribute(attr::MOBILITY_TICKET, &ticket);
    });
    assert_eq!(pair.ask(1, &moved, &request).1.code(), 0);
    let request = moved.signed(method::REFRESH, &|w| {
        w.u32(attr::LIFETIME, 0);
    });
    let (at, answer) = pair.ask(1, &moved, &request);
    assert_eq!((at, answer.code()), (0, 0));
    let (at, again) = pair.ask(1, &moved, &request);
    assert_eq!((at, again.bytes), (1, answer.bytes));
    // A ticket of a shard that is not there.
    let mut lone = Server::shard_of(config(), 0, 1);
    let (_, theirs) = allocate_mobile(&mut Client::ann("198.41.5.5:1"), &mut pair.shards[1]);
    assert_eq!(
        show(&mut Client::ann(THERE), &mut lone, &theirs).code(),
        437
    );
}

fn refresh_with(client: &mut Client, ticket: &[u8]) -> Vec<u8> {
    client.signed(method::REFRESH, &|w| {
        w.attribute(attr::MOBILITY_TICKET, ticket);
    })
}

const DATA: &[u8] = b"\x40\x00\x00\x05hello\0\0\0";

// A stream is a five-tuple like any other: the allocation outlives it, is moved by its ticket, and belongs to no later stream
// between the same addresses.
#[test]
fn an_allocation_outlives_its_stream() {
    for to_stream in [false, true] {
        let mut server = Server::new();
        let mut client = Client::ann(HERE).on_stream(0);
        client.connect(&mut server);
        let (relayed, ticket) = allocate_mobile(&mut client, &mut server);
        client.bind(&mut server, 0x4000, addr(PEER)).ok();
        client.disconnect(&mut server);
        assert_eq!(server.allocations(), 1);
        assert_ne!(receiver(&mut server, relayed), addr(HERE), "nobody");
        // Somebody else of the same address and port.
        let mut next = Client::ann(HERE).on_stream(0);
        next.connect(&mut server);
        let no_flow = Verdict::Drop(Counter::DropNoFlow);
        assert_eq!(next.channel(&mut server, 0x4000, b"x"), no_flow);
        assert_eq!(next.send(&mut server, addr(PEER), b"x"), no_flow);
        assert_eq!(next.refresh(&mut server, 600).code(), 437);
        let own = next.allocate(&mut server);
        assert_ne!(own, relayed);
        next.disconnect(&mut server);
        assert_eq!(server.allocations(), 1, "one that is not mobile ends");
        let mut moved = Client::ann(THERE);
        if to_stream {
            moved = Client::ann(HERE).on_stream(0);
            moved.connect(&mut server);
        }
        let ticket = ticket_in(&show(&mut moved, &mut server, &ticket).ok());
        moved.permit(&mut server, &[addr(PEER)]).ok();
        server.advance_secs(0);
        assert_eq!(receiver(&mut server, relayed), moved.addr);
        // A place that ends before the client was there ends nothing.
        let mut third = Client::ann("198.41.6.6:6000").on_stream(0);
        third.connect(&mut server);
        let ticket = ticket_in(&show(&mut third, &mut server, &ticket).ok());
        third.disconnect(&mut server);
        assert_eq!(receiver(&mut server, relayed), moved.addr);
        third.connect(&mut server);
        assert_eq!(third.refresh(&mut server, 600).code(), 437);
        show(&mut third, &mut server, &ticket).ok();
        third.refresh(&mut server, 0).ok();
        assert_eq!((server.allocations(), server.relays.open.len()), (0, 0));
    }
}

// The same for a stream of another shard.
#[test]
fn a_guest_ends_with_its_stream() {
    let mut pair = Pair::new();
    let mut client = Client::ann(HERE);
    let (relayed, ticket) = allocate_mobile(&mut client, &mut pair.shards[0]);
    client.bind(&mut pair.shards[0], 0x4000, addr(PEER)).ok();
    let mut moved = Client::ann(THERE).on_stream(1);
    moved.connect(&mut pair.shards[1]);
    moved.learn_nonce(&mut pair.shards[1]);
    let request = refresh_with(&mut moved, &ticket);
    let (at, answer) = pair.ask(1, &moved, &request);
    let ticket = ticket_in(&answer.ok());
    assert_eq!(at, 1);
    let peer = addr(PEER);
    assert_eq!(
        pair.deliver(1, &moved, DATA),
        [(0, peer, b"hello".to_vec())]
    );
    pair.shards[0].peer_sends(peer, relayed, b"x");
    let (socket, to, _) = pair.shards[0].take_one();
    assert_eq!((socket, to), (moved.socket, moved.addr));
    // The stream ends, and a stranger has the next one between the same addresses.
    moved.disconnect(&mut pair.shards[1]);
    pair.settle();
    assert_eq!(pair.shards[0].allocations(), 1);
    assert_ne!(receiver(&mut pair.shards[0], relayed), addr(THERE));
    moved.connect(&mut pair.shards[1]);
    let source = ClientAddr(moved.addr);
    assert!(
        !pair.shards[1]
            .shard
            .serves(pair.shards[1].now, moved.socket, source)
    );
    assert_eq!(pair.deliver(1, &moved, DATA), []);
    let request = moved.signed(method::REFRESH, &|_| ());
    let (at, refused) = pair.ask(1, &moved, &request);
    assert_eq!((at, refused.code()), (1, 437));
    // Who has the ticket moves on, to the very same place, and is found there by a request alone.
    let request = refresh_with(&mut moved, &ticket);
    let ticket = ticket_in(&pair.ask(1, &moved, &request).1.ok());
    let request = moved.signed(method::CREATE_PERMISSION, &|w| {
        w.xor_addr(attr::XOR_PEER_ADDRESS, addr("8.8.4.4:1"));
    });
    pair.ask(1, &moved, &request).1.ok();
    pair.settle();
    assert_eq!(receiver(&mut pair.shards[0], relayed), addr(THERE));
    assert_eq!(
        pair.deliver(1, &moved, DATA),
        [(0, peer, b"hello".to_vec())]
    );
    // It moves to a stream that ends while the answer is under way.
    let mut last = Client::ann("198.41.6.6:6000").on_stream(1);
    last.connect(&mut pair.shards[1]);
    last.learn_nonce(&mut pair.shards[1]);
    let request = refresh_with(&mut last, &ticket);
    pair.shards[1].sent.clear();
    pair.shards[1].deliver(last.socket, last.addr, &request);
    last.disconnect(&mut pair.shards[1]);
    last.connect(&mut pair.shards[1]);
    pair.settle();
    assert!(
        pair.shards[1].sent.is_empty(),
        "the next stream gets no answer"
    );
    let source = ClientAddr(last.addr);
    assert!(
        !pair.shards[1]
            .shard
            .serves(pair.shards[1].now, last.socket, source)
    );
    let request = last.signed(method::REFRESH, &|_| ());
    assert_eq!(pair.ask(1, &last, &request).1.code(), 437);
    assert_eq!(receiver(&mut pair.shards[0], relayed), addr(THERE));
    let request = moved.signed(method::REFRESH, &|w| {
        w.u32(attr::LIFETIME, 0);
    });
    pair.ask(1, &moved, &request).1.ok();
    pair.settle();
    assert_eq!(pair.shards[0].allocations(), 0);
    assert!(
        !pair.shards[1]
            .shard
            .serves(pair.shards[1].now, moved.socket, source)
    );
}

// RFC 8656 section 14, for a client whose data takes the detour.
#[test]
fn a_guest_may_forbid_fragments() {
    let mut pair = Pair::new();
    let mut client = Client::ann(HERE);
    let (_, ticket) = allocate_mobile(&mut client, &mut pair.shards[0]);
    client.permit(&mut pair.shards[0], &[addr(PEER)]).ok();
    let mut moved = Client::ann(THERE);
    moved.learn_nonce(&mut pair.shards[1]);
    let request = refresh_with(&mut moved, &ticket);
    pair.ask(1, &moved, &request).1.ok();
    for asked in [true, false] {
        let mut indication = Vec::new();
        let id = moved.id();
        let mut writer = MessageWriter::new(&mut indication, method::SEND, Class::Indication, id);
        if asked {
            writer.attribute(attr::DONT_FRAGMENT, &[]);
        }
        writer
            .xor_addr(attr::XOR_PEER_ADDRESS, addr(PEER))
            .attribute(attr::DATA, b"x")
            .finish();
        pair.shards[1].deliver(moved.socket, moved.addr, &indication);
        let (to, mail) = pair.shards[1].mail.pop().expect("it is passed on");
        let owner = &mut pair.shards[usize::from(to)];
        owner.shard.handle_mail(owner.now, mail);
        let transmits = &owner.shard.outbox().transmits;
        let told: Vec<_> = transmits.iter().map(|t| (t.to, t.dont_fragment)).collect();
        assert_eq!(told, [(addr(PEER), asked)]);
        owner.settle();
    }
}
