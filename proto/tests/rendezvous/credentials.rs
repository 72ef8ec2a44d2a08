//! Servers that ask for an operator's credential.

use waypost_proto::shard::{RendezvousAccess, time_limited_password};
use waypost_proto::stats::Counter;
use waypost_proto::wire::native::{attr, code, method};

use crate::player::{Player, Where, Wish};
use crate::world::{Setup, World};

const NEW: &[u8] = b"the newer secret of two that are live";
const OLD: &[u8] = b"the older secret of two that are live";

fn with_credentials(test: impl Fn(&mut World)) {
    for shards in 1..=3 {
        let mut setup = Setup::new(shards);
        setup.access = RendezvousAccess::Credential(vec![NEW.into(), OLD.into()]);
        test(&mut World::new(setup));
    }
}

fn credential(world: &World, secret: &[u8], lives_secs: i64) -> Option<(String, String)> {
    let expiry = world.unix_secs().saturating_add_signed(lives_secs);
    let username = format!("{expiry}:user");
    let password = time_limited_password(secret, &username);
    Some((username, password))
}

#[test]
fn only_bearers_of_a_live_credential_are_served() {
    with_credentials(|world| {
        let mut bad = vec![
            None,
            credential(world, b"no secret of this server", 60),
            credential(world, NEW, 0),
            credential(world, NEW, -1),
        ];
        // Somebody else's name with one's own password.
        let own = credential(world, NEW, 60).expect("made");
        bad.push(Some((format!("{}9:other", world.unix_secs()), own.1)));
        bad.push(Some((
            "user".to_owned(),
            time_limited_password(NEW, "user"),
        )));
        for (i, credential) in bad.into_iter().enumerate() {
            let mut player = Player::new(i as u16);
            player.credential = credential;
            player.nonce = None;
            let place = Where::Name("x".to_owned());
            let failures = world.count(Counter::CredentialFailures);
            let reply = player.try_host(world, &Wish::default());
            assert_eq!(reply.code(), code::UNAUTHENTICATED, "{i}");
            let reply = player.try_join(world, &place, &Wish::default());
            assert_eq!(reply.code(), code::UNAUTHENTICATED);
            let reply = player.try_match(world, b"k", &Wish::of(2));
            assert_eq!(reply.code(), code::UNAUTHENTICATED);
            let reply = player.call(world, method::LIST, &|w, _, _| {
                w.attribute(attr::APPLICATION_ID, b"game");
            });
            assert_eq!(reply.code(), code::UNAUTHENTICATED);
            assert!(world.count(Counter::CredentialFailures) >= failures + 4);
        }
        world.check_empty();
        assert_eq!(world.count(Counter::PasswordChecks), 0);
    });
}

#[test]
fn both_live_secrets_are_good_and_seats_need_none() {
    with_credentials(|world| {
        let mut host = Player::new(0);
        host.credential = credential(world, NEW, 60);
        host.host(world, &Wish::default());
        let mut guest = Player::new(1);
        guest.credential = credential(world, OLD, 60);
        guest.join(world, host.code());
        guest
            .call(world, method::LIST, &|w, _, _| {
                w.attribute(attr::APPLICATION_ID, b"game");
            })
            .ok();
        for player in [&mut host, &mut guest] {
            player.credential = None;
            player.keepalive(world).ok();
            player.try_resume(world, &Wish::default()).ok();
        }
        // The credential covers the whole request.
        guest.leave(world).ok();
        guest.credential = credential(world, OLD, 60);
        let mut bytes = guest.encode(method::HOST, &|w, _, _| {
            w.attribute(attr::APPLICATION_ID, b"game")
                .u32(attr::MAX_MEMBERS, 4);
        });
        let at = bytes.windows(4).position(|w| w == b"game").expect("there");
        bytes[at] = b'f';
        let reply = guest.exchange(world, &bytes);
        assert_eq!(reply.code(), code::UNAUTHENTICATED);
    });
}
