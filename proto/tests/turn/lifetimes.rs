//! Refresh (RFC 8656 section 8) and everything that ends.

use waypost_proto::shard::Verdict;
use waypost_proto::stats::Counter;
use waypost_proto::turn::TurnConfig;
use waypost_proto::wire::stun::{attr, method};

use crate::client::{Client, MAIN, Server, addr, config};

const AT: &str = "198.41.9.9:4000";

// RFC 8656 sections 5 and 8.2: an allocation lives as long as it was granted; Refresh grants anew.
#[test]
fn an_allocation_ends_unless_it_is_refreshed() {
    let mut server = Server::new();
    let mut client = Client::ann(AT);
    client.allocate(&mut server);
    server.advance_secs(599);
    client.nonce.clear();
    assert_eq!(
        client.refresh(&mut server, 700).ok().u32(attr::LIFETIME),
        Some(700)
    );
    server.advance_secs(699);
    assert_eq!(server.allocations(), 1);
    server.advance_secs(2);
    assert_eq!((server.allocations(), server.relays.open.len()), (0, 0));
    assert_eq!(server.count(Counter::AllocationsExpired), 1);
    client.nonce.clear();
    assert_eq!(client.refresh(&mut server, 700).code(), 437);
    assert_eq!(client.permit(&mut server, &[addr("8.8.8.8:1")]).code(), 437);
    assert_eq!(
        client.bind(&mut server, 0x4000, addr("8.8.8.8:1")).code(),
        437
    );
}

// RFC 8656 section 8.2: a lifetime of zero deletes; its repetition is answered alike, a new such request is 437.
#[test]
fn deletion_and_its_repetition() {
    let mut server = Server::new();
    let mut client = Client::ann(AT);
    client.allocate(&mut server);
    let request = client.signed(method::REFRESH, &|w| {
        w.u32(attr::LIFETIME, 0);
    });
    let first = client.ask(&mut server, &request).ok();
    assert_eq!(first.u32(attr::LIFETIME), Some(0));
    assert_eq!((server.allocations(), server.relays.open.len()), (0, 0));
    let again = client.ask(&mut server, &request);
    assert_eq!(first.bytes, again.bytes);
    assert_eq!(client.refresh(&mut server, 0).code(), 437);
    assert_eq!(client.refresh(&mut server, 600).code(), 437);
    client.allocate(&mut server);
}

// RFC 8656 section 8.2: with REQUESTED-ADDRESS-FAMILY one family is refreshed; one that is not there is 443.
#[test]
fn families_end_on_their_own() {
    let mut server = Server::new();
    let mut client = Client::ann(AT);
    let both = client.allocate_with(&mut server, &|w| {
        w.attribute(attr::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]);
    });
    let relayed = both.ok().relayed();
    let refresh = |server: &mut Server, client: &mut Client, family: u8, secs: u32| {
        client.request(server, method::REFRESH, &|w| {
            w.u32(attr::LIFETIME, secs)
                .attribute(attr::REQUESTED_ADDRESS_FAMILY, &[family, 0, 0, 0]);
        })
    };
    server.advance_secs(300);
    refresh(&mut server, &mut client, 2, 600).ok();
    server.advance_secs(301);
    assert_eq!(
        server.relays.open.values().copied().collect::<Vec<_>>(),
        relayed[1..]
    );
    client.nonce.clear();
    assert_eq!(refresh(&mut server, &mut client, 1, 600).code(), 443);
    assert_eq!(client.permit(&mut server, &[addr("8.8.8.8:1")]).code(), 443);
    let six = addr("[2600::9]:1");
    client.permit(&mut server, &[six]).ok();
    refresh(&mut server, &mut client, 2, 0).ok();
    assert_eq!((server.allocations(), server.relays.open.len()), (0, 0));
    let verdict = client.send(&mut server, six, b"x");
    assert_eq!(verdict, Verdict::Drop(Counter::DropNoFlow));
}

// RFC 8656 section 9: a permission lasts 300 seconds, also while a channel is bound; CreatePermission and ChannelBind renew it.
#[test]
fn permissions_and_channels_lapse() {
    let mut server = Server::new();
    let mut client = Client::ann(AT);
    let relayed = client.allocate(&mut server);
    let peer = addr("8.8.8.8:53");
    client.bind(&mut server, 0x4000, peer).ok();
    let passes = |server: &mut Server, client: &Client| {
        let there = matches!(client.channel(server, 0x4000, b"x"), Verdict::Forward(_));
        let back = matches!(server.peer_sends(peer, relayed, b"x"), Verdict::Forward(_));
        assert_eq!(there, back);
        there
    };
    server.advance_secs(299);
    assert!(passes(&mut server, &client));
    server.advance_secs(1);
    assert!(!passes(&mut server, &client));
    client.permit(&mut server, &[peer.with_port(9)]).ok();
    assert!(passes(&mut server, &client));
    server.advance_secs(290);
    client.refresh(&mut server, 3600).ok();
    client.permit(&mut server, &[peer]).ok();
    server.advance_secs(9);
    assert!(passes(&mut server, &client));
    // The channel's own time is over: data comes as indications, and the channel leads nowhere.
    server.advance_secs(1);
    let verdict = client.channel(&mut server, 0x4000, b"x");
    assert_eq!(verdict, Verdict::Drop(Counter::DropNoRoute));
    server.sent.clear();
    server.peer_sends(peer, relayed, b"x");
    assert_eq!(server.take_one().2[..2], [0x00, 0x17]);
}

// RFC 8656 sections 6, 11.2 and 12.6: data refreshes neither the permission nor the channel nor the allocation.
#[test]
fn data_refreshes_nothing() {
    let mut server = Server::new();
    let mut client = Client::ann(AT);
    let relayed = client.allocate(&mut server);
    let peer = addr("8.8.8.8:1");
    client.bind(&mut server, 0x4000, peer).ok();
    for _ in 0..10 {
        let passed = |verdict| matches!(verdict, Verdict::Forward(_));
        assert!(passed(client.channel(&mut server, 0x4000, b"x")));
        assert!(passed(client.send(&mut server, peer, b"x")));
        assert!(passed(server.peer_sends(peer, relayed, b"x")));
        server.advance_secs(30);
    }
    let none = Verdict::Drop(Counter::DropNoPermission);
    assert_eq!(client.channel(&mut server, 0x4000, b"x"), none);
    assert_eq!(server.peer_sends(peer, relayed, b"x"), none);
    client.permit(&mut server, &[peer]).ok();
    server.advance_secs(299);
    client.permit(&mut server, &[peer]).ok();
    assert!(matches!(
        client.channel(&mut server, 0x4000, b"x"),
        Verdict::Forward(_)
    ));
    server.advance_secs(2);
    assert_eq!(server.allocations(), 0);
}

// RFC 8656 section 12: five minutes pass before a lapsed number or peer is bound to another.
#[test]
fn a_lapsed_channel_is_held() {
    let mut server = Server::new();
    let mut client = Client::ann(AT);
    client
        .allocate_with(&mut server, &|w| {
            w.u32(attr::LIFETIME, 3600);
        })
        .ok();
    let (one, other) = (addr("8.8.8.8:1"), addr("8.8.8.8:2"));
    client.bind(&mut server, 0x4000, one).ok();
    server.advance_secs(899);
    client.nonce.clear();
    assert_eq!(client.bind(&mut server, 0x4000, other).code(), 400);
    assert_eq!(client.bind(&mut server, 0x4001, one).code(), 400);
    server.advance_secs(1);
    assert_eq!(client.bind(&mut server, 0x4000, other).code(), 0);
}

// Timers do not pile up, however often a client comes and goes.
#[test]
fn churn_leaves_nothing_behind() {
    let mut server = Server::with(TurnConfig {
        relay_ports: 50_000..=50_009,
        ..config()
    });
    for round in 0..500 {
        let mut client = Client::ann(&format!("198.41.9.9:{}", 1000 + round));
        let request = client.unsigned(method::ALLOCATE, &|_| ());
        server.deliver(MAIN, addr("127.0.0.1:1"), &request);
        client.nonce.clear();
        server.advance_secs(1);
        let secs = if round % 2 == 0 { 600 } else { 3600 };
        client
            .allocate_with(&mut server, &|w| {
                w.u32(attr::LIFETIME, secs);
            })
            .ok();
        client.refresh(&mut server, 0).ok();
    }
    assert!(server.shard.inspect().timers <= 3);
    server.advance_secs(4000);
    let left = server.shard.inspect();
    assert_eq!(
        (left.timers, left.allocations, left.relay_sockets),
        (0, 0, 0)
    );
}
