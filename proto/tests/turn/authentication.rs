//! The long-term credential mechanism (RFC 8489 section 9.2) as TURN uses it (RFC 8656 section 5).

use waypost_proto::shard::{Verdict, time_limited_password};
use waypost_proto::stats::Counter;
use waypost_proto::turn::credential::userhash;
use waypost_proto::turn::{TurnConfig, TurnCredentials};
use waypost_proto::wire::stun::{Class, Integrity, LongTermKey, MessageWriter, attr, method};

use crate::client::{Client, EPOCH_SECS, MAIN, REALM, SECRETS, Scheme, Server, addr, config};

const AT: &str = "198.41.9.9:4000";

// RFC 8489 section 9.2.4: without integrity 401 with REALM, NONCE and PASSWORD-ALGORITHMS, and without USERNAME, USERHASH and
// integrity. Its size: at most 3.2 times a legal 28-byte request.
#[test]
fn a_first_request_is_challenged() {
    let mut server = Server::new();
    let mut client = Client::ann(AT);
    let answer = client.learn_nonce(&mut server);
    let message = answer.message();
    assert_eq!(message.find(attr::REALM), Some(REALM.as_bytes()));
    assert!(
        message
            .find(attr::NONCE)
            .unwrap()
            .starts_with(b"obMatJos2wAAA")
    );
    // RFC 8489 section 14.10.
    assert!(message.find(attr::NONCE).unwrap().len() < 128);
    let algorithms = message.find(attr::PASSWORD_ALGORITHMS);
    assert_eq!(algorithms, Some(&[0, 2, 0, 0, 0, 1, 0, 0][..]));
    for kind in [attr::USERNAME, attr::USERHASH, attr::MESSAGE_INTEGRITY] {
        assert!(message.find(kind).is_none());
    }
    assert!(answer.bytes.len() * 10 <= 28 * 32, "{}", answer.bytes.len());
    assert_eq!(server.allocations(), 0);
}

// RFC 8489 section 9.2.4: integrity without USERNAME or USERHASH, REALM or NONCE is 400.
#[test]
fn integrity_alone_is_a_bad_request() {
    let mut server = Server::new();
    let mut client = Client::ann(AT);
    client.learn_nonce(&mut server);
    for left_out in [attr::USERNAME, attr::REALM, attr::NONCE] {
        let mut out = Vec::new();
        let id = client.id();
        let mut writer = MessageWriter::new(&mut out, method::ALLOCATE, Class::Request, id);
        writer.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
        for (kind, value) in [
            (attr::USERNAME, client.username.as_bytes()),
            (attr::REALM, REALM.as_bytes()),
            (attr::NONCE, &client.nonce),
        ] {
            if kind != left_out {
                writer.attribute(kind, value);
            }
        }
        writer
            .integrity(client.integrity(), client.key().as_bytes())
            .finish();
        let answer = client.ask(&mut server, &out);
        assert_eq!(answer.code(), 400);
        assert_eq!(answer.bytes.len(), 28);
    }
}

// RFC 8489 section 9.2.4: wrong names and wrong passwords are 401, and look the same.
#[test]
fn wrong_credentials() {
    let mut server = Server::new();
    for (name, password) in [
        ("ann", "bob's password"),
        ("eve", "ann's password"),
        ("", ""),
    ] {
        let mut client = Client::new(AT, name, password);
        let first = client.learn_nonce(&mut server);
        let answer = client.allocate_with(&mut server, &|_| ());
        assert_eq!(answer.code(), 401);
        assert_eq!(answer.bytes.len(), first.bytes.len());
    }
    assert_eq!(server.allocations(), 0);
    assert_eq!(server.count(Counter::TurnCredentialFailures), 3);
}

// RFC 8489 section 14.3: names of up to 763 bytes are parsed; nobody has such a one. What is not UTF-8 is nobody's either.
#[test]
fn long_names_are_names() {
    let mut server = Server::new();
    let mut client = Client::new(AT, &"n".repeat(763), "a password");
    assert_eq!(client.allocate_with(&mut server, &|_| ()).code(), 401);
    let mut out = Vec::new();
    let id = client.id();
    MessageWriter::new(&mut out, method::ALLOCATE, Class::Request, id)
        .attribute(attr::USERNAME, &[0xff, 0xfe])
        .attribute(attr::REALM, REALM.as_bytes())
        .attribute(attr::NONCE, &client.nonce)
        .integrity(client.integrity(), client.key().as_bytes())
        .finish();
    assert_eq!(client.ask(&mut server, &out).code(), 401);
}

// RFC 8489 section 14.6: MESSAGE-INTEGRITY-SHA256 is whole unless the usage says otherwise, and TURN does not.
#[test]
fn a_truncated_integrity_is_wrong() {
    let mut server = Server::new();
    let mut client = Client::ann(AT);
    client.scheme = Scheme::Sha256;
    client.learn_nonce(&mut server);
    let mut out = Vec::new();
    let id = client.id();
    MessageWriter::new(&mut out, method::ALLOCATE, Class::Request, id)
        .attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
        .attribute(attr::USERNAME, b"ann")
        .attribute(attr::REALM, REALM.as_bytes())
        .attribute(attr::NONCE, &client.nonce)
        .attribute(attr::PASSWORD_ALGORITHMS, &[0, 2, 0, 0, 0, 1, 0, 0])
        .attribute(attr::PASSWORD_ALGORITHM, &[0, 2, 0, 0])
        .integrity(Integrity::Sha256Truncated, client.key().as_bytes())
        .finish();
    assert_eq!(client.ask(&mut server, &out).code(), 401);
}

// RFC 8656 section 5: without an allocation every other request is 437, and data is ignored.
#[test]
fn without_an_allocation_there_is_nothing_to_do() {
    let mut server = Server::new();
    let mut client = Client::ann(AT);
    let peer = addr("8.8.8.8:1");
    assert_eq!(client.refresh(&mut server, 600).code(), 437);
    assert_eq!(client.permit(&mut server, &[peer]).code(), 437);
    assert_eq!(client.bind(&mut server, 0x4000, peer).code(), 437);
    let ignored = Verdict::Drop(Counter::DropNoFlow);
    assert_eq!(client.send(&mut server, peer, b"x"), ignored);
    assert_eq!(client.channel(&mut server, 0x4000, b"x"), ignored);
}

// RFC 8489 section 9.2.4: a nonce that is too old, of another address or no nonce is 438 with a new one that works.
#[test]
fn stale_nonces() {
    let mut server = Server::new();
    let mut client = Client::ann(AT);
    client.learn_nonce(&mut server);
    let mut elsewhere = Client::ann("198.41.9.9:4001");
    elsewhere.nonce = client.nonce.clone();
    assert_eq!(elsewhere.allocate_with(&mut server, &|_| ()).code(), 438);
    server.advance_secs(601);
    let answer = client.allocate_with(&mut server, &|_| ());
    assert_eq!(answer.code(), 438);
    assert!(answer.message().find(attr::REALM).is_some());
    assert!(answer.message().find(attr::PASSWORD_ALGORITHMS).is_some());
    client.nonce = answer.message().find(attr::NONCE).unwrap().to_vec();
    client.allocate(&mut server);
}

// RFC 8489 section 9.2.5: the answer's integrity is of the request's kind.
#[test]
fn sha256_and_userhash() {
    let mut server = Server::new();
    let mut client = Client::ann(AT);
    client.scheme = Scheme::Sha256;
    let answer = client.allocate_with(&mut server, &|_| ()).ok();
    assert!(
        answer
            .message()
            .find(attr::MESSAGE_INTEGRITY_SHA256)
            .is_some()
    );
    assert!(answer.message().find(attr::MESSAGE_INTEGRITY).is_none());
    let mut hashed = Client::ann("198.41.9.9:4002");
    hashed.learn_nonce(&mut server);
    for (name, code) in [("ann", 0), ("eve", 401)] {
        let mut out = Vec::new();
        let id = hashed.id();
        MessageWriter::new(&mut out, method::ALLOCATE, Class::Request, id)
            .attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
            .attribute(attr::USERHASH, &userhash(name, REALM))
            .attribute(attr::REALM, REALM.as_bytes())
            .attribute(attr::NONCE, &hashed.nonce)
            .integrity(hashed.integrity(), hashed.key().as_bytes())
            .finish();
        assert_eq!(hashed.ask(&mut server, &out).code(), code);
    }
}

// RFC 8489 section 9.2.4: the algorithms of the request must be those that were offered, and the chosen one among them;
// section 16.1.3: whoever takes the feature bits or the list away gains nothing.
#[test]
fn bidding_down() {
    let mut server = Server::new();
    let mut client = Client::ann(AT);
    client.learn_nonce(&mut server);
    let offered: &[u8] = &[0, 2, 0, 0, 0, 1, 0, 0];
    let md5_only: &[u8] = &[0, 1, 0, 0];
    for (list, chosen, code) in [
        (Some(md5_only), Some(md5_only), 400),
        (Some(&[0, 1, 0, 0, 0, 2, 0, 0][..]), Some(md5_only), 400),
        (Some(offered), None, 400),
        (None, Some(md5_only), 400),
        (Some(offered), Some(&[0, 3, 0, 0][..]), 400),
        (Some(offered), Some(&[0, 1, 0, 1, 9, 9, 9, 9][..]), 400),
        (Some(offered), Some(md5_only), 0),
    ] {
        let request = client.signed(method::ALLOCATE, &|w| {
            w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
            if let Some(list) = list {
                w.attribute(attr::PASSWORD_ALGORITHMS, list);
            }
            if let Some(chosen) = chosen {
                w.attribute(attr::PASSWORD_ALGORITHM, chosen);
            }
        });
        assert_eq!(
            client.ask(&mut server, &request).code(),
            code,
            "{list:?} {chosen:?}"
        );
    }
    // The feature bits are part of what makes a nonce valid.
    let mut bits = Client::ann("198.41.9.9:4003");
    bits.learn_nonce(&mut server);
    bits.nonce[9..13].copy_from_slice(b"AAAA");
    assert_eq!(bits.allocate_with(&mut server, &|_| ()).code(), 438);
}

// draft-uberti-behave-turn-rest section 2.2, with either of two live secrets.
#[test]
fn time_limited_credentials() {
    let mut server = Server::new();
    let name = format!("{}:ann", EPOCH_SECS + 700);
    for (port, secret) in [(1, SECRETS[0]), (2, SECRETS[1])] {
        let password = time_limited_password(secret, &name);
        let mut client = Client::new(&format!("198.41.9.9:{port}"), &name, &password);
        client.allocate(&mut server);
        client.scheme = Scheme::Sha256;
        assert_eq!(client.refresh(&mut server, 600).code(), 0);
        client.scheme = Scheme::Md5;
        server.advance_secs(599);
        client.nonce.clear();
        assert_eq!(
            client.refresh(&mut server, 600).code(),
            if port == 1 { 0 } else { 401 }
        );
        if port == 1 {
            server.advance_secs(1);
        }
    }
    let late = format!("{EPOCH_SECS}:ann");
    let wrong = time_limited_password(b"another secret", &name);
    let right = time_limited_password(SECRETS[0], &late);
    for (name, password) in [(&late, &right), (&name, &wrong)] {
        let mut client = Client::new("198.41.9.9:7", name, password);
        assert_eq!(client.allocate_with(&mut server, &|_| ()).code(), 401);
    }
    server.shard.set_turn_secrets(Vec::new());
    let name = format!("{}:ann", EPOCH_SECS + 90_000);
    let mut client = Client::new(
        "198.41.9.9:8",
        &name,
        &time_limited_password(SECRETS[0], &name),
    );
    assert_eq!(client.allocate_with(&mut server, &|_| ()).code(), 401);
}

// RFC 8656 section 5: a server that authenticates nobody is an open relay, so nobody is served.
#[test]
fn without_credentials_everything_is_refused() {
    let mut server = Server::with(TurnConfig {
        credentials: TurnCredentials::default(),
        ..config()
    });
    let mut client = Client::ann(AT);
    let request = client.signed(method::ALLOCATE, &|w| {
        w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
    });
    let answer = client.ask(&mut server, &request);
    assert_eq!((answer.code(), answer.bytes.len()), (403, 28));
}

// RFC 8489 section 15 and RFC 8656 section 21.1.1: a source that has not proved its address draws a bounded number of bytes, and
// one that has is not touched by it.
#[test]
fn unproven_sources_have_a_budget() {
    let mut server = Server::new();
    let mut honest = Client::ann(AT);
    honest.learn_nonce(&mut server);
    let mut drawn = 0;
    for port in 0..10_000u16 {
        let mut forged = Client::ann(&format!("198.41.9.9:{}", 5000 + port));
        let request = forged.unsigned(method::ALLOCATE, &|_| ());
        server.sent.clear();
        if server.deliver(MAIN, forged.addr, &request) == Verdict::Handled {
            drawn += server.take_one().2.len() + 28;
        }
    }
    assert!((7800..8400).contains(&drawn), "{drawn}");
    assert_eq!(honest.allocate_with(&mut server, &|_| ()).code(), 0);
    let mut neighbour = Client::ann("198.41.9.10:1");
    neighbour.learn_nonce(&mut server);
    let loopback = addr("127.0.0.1:9");
    let request = neighbour.unsigned(method::ALLOCATE, &|_| ());
    for _ in 0..1000 {
        assert_eq!(server.deliver(MAIN, loopback, &request), Verdict::Handled);
    }
}

// RFC 8656 section 5: requests are authenticated anew each time; the user of an allocation is who made it (441).
#[test]
fn another_user_has_no_say_in_an_allocation() {
    let mut server = Server::new();
    let mut ann = Client::ann(AT);
    ann.allocate(&mut server);
    let mut bob = Client::new(AT, "bob", "bob's password");
    bob.nonce = ann.nonce.clone();
    let peer = addr("8.8.8.8:1");
    assert_eq!(bob.refresh(&mut server, 0).code(), 441);
    assert_eq!(bob.permit(&mut server, &[peer]).code(), 441);
    assert_eq!(bob.bind(&mut server, 0x4000, peer).code(), 441);
    assert_eq!(bob.allocate_with(&mut server, &|_| ()).code(), 437);
    assert_eq!(server.allocations(), 1);
    assert_eq!(ann.permit(&mut server, &[peer]).code(), 0);
}

// RFC 8489 section 9.2.3.1: the key is over name, realm and password.
#[test]
fn another_realm_is_no_credential() {
    let mut server = Server::new();
    let mut client = Client::ann(AT);
    client.learn_nonce(&mut server);
    let mut out = Vec::new();
    let id = client.id();
    let key = LongTermKey::md5("ann", REALM, "ann's password");
    MessageWriter::new(&mut out, method::ALLOCATE, Class::Request, id)
        .attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
        .attribute(attr::USERNAME, b"ann")
        .attribute(attr::REALM, b"elsewhere")
        .attribute(attr::NONCE, &client.nonce)
        .integrity(client.integrity(), key.as_bytes())
        .finish();
    assert_eq!(client.ask(&mut server, &out).code(), 401);
}

// RFC 8489 section 14.14: SOFTWARE in every answer, before the integrity that covers it; only where the operator wants it, because
// strangers get it too.
#[test]
fn software_is_named_where_it_is_wanted() {
    for software in [None, Some("Waypost test")] {
        let mut server = Server::with(TurnConfig {
            software,
            ..config()
        });
        let mut client = Client::ann(AT);
        let challenge = client.learn_nonce(&mut server);
        let success = client.allocate_with(&mut server, &|_| ()).ok();
        let error = client.bind(&mut server, 1, addr("8.8.8.8:1"));
        assert_eq!(error.code(), 400);
        for answer in [challenge, success, error] {
            let named = answer.message().find(attr::SOFTWARE).map(<[u8]>::to_vec);
            assert_eq!(named.as_deref(), software.map(str::as_bytes));
        }
    }
}

// RFC 8489 section 7: who marks its messages gets marked answers; behind the integrity, which does not cover it.
#[test]
fn a_fingerprint_is_answered_with_one() {
    let mut server = Server::new();
    let mut client = Client::ann(AT);
    client.learn_nonce(&mut server);
    // The second Allocate of a five-tuple is 437.
    for (method, is_marked, code) in [
        (method::ALLOCATE, true, 0),
        (method::ALLOCATE, false, 437),
        (method::ALLOCATE, true, 437),
        (method::CHANNEL_BIND, false, 400),
        (method::CHANNEL_BIND, true, 400),
    ] {
        let mut request = client.signed(method, &|w| {
            w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
        });
        if is_marked {
            let mut writer = MessageWriter::resume(&mut request, 0);
            writer.fingerprint().finish();
        }
        let answer = client.ask(&mut server, &request);
        assert_eq!(answer.code(), code);
        let message = answer.message();
        assert_eq!(message.has_fingerprint(), is_marked);
        assert!(message.verify_integrity(client.integrity(), client.key().as_bytes()));
    }
    let unsigned = client.unsigned(method::ALLOCATE, &|w| {
        w.fingerprint();
    });
    assert!(
        client
            .ask(&mut server, &unsigned)
            .message()
            .has_fingerprint()
    );
}
