//! Lists: each session once, filtered, over all shards.

use std::collections::BTreeMap;

use waypost_proto::wire::join_code::JoinCode;
use waypost_proto::wire::native::{Fields, attr, list_filter, method, session_flags};
use waypost_proto::wire::stun::Attributes;

use crate::player::{Player, Where, Wish};
use crate::world::{World, with_each_shard_count};

struct Listed {
    name: Option<String>,
    members: u8,
    flags: u32,
    metadata: usize,
    times: usize,
}

fn list(
    world: &mut World,
    player: &mut Player,
    application: &str,
    prefix: Option<&str>,
    filter: u32,
) -> BTreeMap<JoinCode, Listed> {
    let mut found: BTreeMap<JoinCode, Listed> = BTreeMap::new();
    let mut cursor: Option<[u8; 8]> = None;
    for page in 0.. {
        assert!(page < 1000, "the list ends");
        let reply = player
            .call(world, method::LIST, &|w, _, _| {
                w.attribute(attr::APPLICATION_ID, application.as_bytes())
                    .u32(attr::LIST_FILTER, filter);
                if let Some(prefix) = prefix {
                    w.attribute(attr::SESSION_NAME, prefix.as_bytes());
                }
                if let Some(cursor) = cursor {
                    w.attribute(attr::LIST_CURSOR, &cursor);
                }
            })
            .ok();
        let message = reply.message();
        for attribute in message.attributes() {
            if attribute.kind == attr::LIST_ENTRY {
                let nested = Attributes::nested(attribute.value);
                let entry = Fields::read_list(nested, message.transaction_id()).expect("an entry");
                found
                    .entry(entry.code.expect("JOIN-CODE"))
                    .or_insert(Listed {
                        name: entry.name.map(str::to_owned),
                        members: entry.member_count.expect("MEMBER-COUNT"),
                        flags: entry.session_flags.expect("SESSION-FLAGS"),
                        metadata: entry.metadata.expect("METADATA").len(),
                        times: 0,
                    })
                    .times += 1;
            }
        }
        cursor = reply.fields().list_cursor;
        if cursor.is_none() {
            break;
        }
    }
    found
}

#[test]
fn every_listed_session_appears_once() {
    with_each_shard_count(|world| {
        let mut hosts = Vec::new();
        for i in 0..400u16 {
            let mut host = Player::new(i);
            let listed = i % 4 != 3;
            host.host(
                world,
                &Wish {
                    name: (i % 2 == 0).then(|| format!("room {i}")),
                    application: if i % 10 == 9 { "other" } else { "game" },
                    session_flags: if listed { session_flags::LISTED } else { 0 }
                        | if i % 5 == 0 { session_flags::LOCKED } else { 0 },
                    password: (i % 7 == 0).then_some("secret"),
                    metadata: vec![1; usize::from(i) % 513],
                    ..Wish::of(2)
                },
            );
            hosts.push((i, host));
        }
        for (i, host) in &hosts {
            if i % 6 == 0 && i % 5 != 0 {
                let wish = Wish {
                    password: (i % 7 == 0).then_some("secret"),
                    application: if i % 10 == 9 { "other" } else { "game" },
                    ..Wish::default()
                };
                let mut guest = Player::new(1000 + i);
                guest.try_join(world, &Where::Code(host.code()), &wish).ok();
            }
        }
        let mut reader = Player::new(5000);
        let mut expect = |prefix: Option<&str>, filter: u32, keep: &dyn Fn(u16) -> bool| {
            let found = list(world, &mut reader, "game", prefix, filter);
            assert!(found.values().all(|listed| listed.times == 1), "once");
            let codes: Vec<_> = found.keys().copied().collect();
            let mut wanted: Vec<_> = hosts
                .iter()
                .filter(|(i, _)| i % 4 != 3 && i % 10 != 9 && keep(*i))
                .map(|(_, host)| host.code())
                .collect();
            wanted.sort_unstable();
            assert_eq!(codes, wanted, "prefix {prefix:?} filter {filter}");
            found
        };
        let all = expect(None, 0, &|_| true);
        for (i, host) in &hosts {
            if let Some(listed) = all.get(&host.code()) {
                assert_eq!(listed.name, (i % 2 == 0).then(|| format!("room {i}")));
                assert_eq!(listed.metadata, usize::from(*i) % 513);
                let has_password = listed.flags & session_flags::HAS_PASSWORD != 0;
                assert_eq!(has_password, i % 7 == 0);
                assert_eq!(listed.members, 1 + u8::from(i % 6 == 0 && i % 5 != 0));
            }
        }
        expect(Some("room 1"), 0, &|i| {
            i % 2 == 0 && i.to_string().starts_with('1')
        });
        expect(None, list_filter::HAS_ROOM, &|i| i % 6 != 0 || i % 5 == 0);
        expect(None, list_filter::UNLOCKED, &|i| i % 5 != 0);
        expect(None, list_filter::NO_PASSWORD, &|i| i % 7 != 0);
        expect(Some("room"), 7, &|i| {
            i % 2 == 0 && i % 6 != 0 && i % 5 != 0 && i % 7 != 0
        });
    });
}

#[test]
fn a_cursor_that_nobody_issued_does_no_harm() {
    with_each_shard_count(|world| {
        let mut host = Player::new(0);
        host.host(world, &Wish::default());
        for cursor in [[0xff; 8], [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], [7; 8]] {
            host.call(world, method::LIST, &|w, _, _| {
                w.attribute(attr::APPLICATION_ID, b"game")
                    .attribute(attr::LIST_CURSOR, &cursor);
            })
            .ok();
        }
        assert!(list(world, &mut host, "game", None, 0).is_empty());
    });
}
