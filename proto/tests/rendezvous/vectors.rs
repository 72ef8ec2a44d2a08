//! Test vectors for implementers: one conversation with fixed keys, byte for byte as `proto/testdata/native/` has it. The
//! server here must still say the same, and the files must read as their comments say. `WAYPOST_WRITE_VECTORS=1` writes
//! the files anew.

use std::fmt::Write as _;
use std::path::PathBuf;

use waypost_proto::wire::native::{
    EventKind, Fields, NatMapping, attr, method, password_key, password_proof, session_flags,
};
use waypost_proto::wire::stun::{self, Class, Integrity, Message};

use crate::player::{Player, Where, Wish, addr, host_part, join_part, read_event};
use crate::world::{Setup, World};

struct Vector {
    file: &'static str,
    comment: String,
    bytes: Vec<u8>,
}

const APPLICATION: &str = "game";
const PASSWORD: &str = "sesame";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes it");
        text
    })
}

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/native")
}

fn render(vector: &Vector) -> String {
    let mut text = String::new();
    for line in vector.comment.lines() {
        writeln!(text, "# {line}").expect("a string takes it");
    }
    for row in vector.bytes.chunks(16) {
        let words: Vec<String> = row.chunks(4).map(hex).collect();
        writeln!(text, "{}", words.join(" ")).expect("a string takes it");
    }
    text
}

fn read(file: &str) -> Vec<u8> {
    let path = directory().join(file);
    let text = std::fs::read_to_string(&path).expect("the vectors are in the repository");
    let digits: String = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(|line| line.chars().filter(|c| !c.is_whitespace()))
        .collect();
    digits
        .as_bytes()
        .chunks(2)
        .map(|pair| {
            let pair = std::str::from_utf8(pair).expect("ASCII");
            u8::from_str_radix(pair, 16).expect("hexadecimal")
        })
        .collect()
}

/// The conversation, with the host as the speaker except in the JOIN.
fn conversation() -> (Vec<Vector>, Player) {
    let mut setup = Setup::new(1);
    setup.lobby.probe_port = 3479;
    let mut world = World::new(setup);
    let world = &mut world;
    let mut vectors = Vec::new();
    let mut add = |file, comment: &str, bytes: &[u8]| {
        vectors.push(Vector {
            file,
            comment: comment.to_owned(),
            bytes: bytes.to_vec(),
        });
    };
    let wish = Wish {
        name: Some("vault".to_owned()),
        password: Some(PASSWORD),
        max_members: 4,
        metadata: b"map=7".to_vec(),
        session_flags: session_flags::LISTED | session_flags::AUTO_INTRODUCE,
        data: b"ann".to_vec(),
        locals: vec![addr("192.168.1.10:40000")],
        ..Wish::default()
    };
    let mut host = Player::at(addr("203.0.113.5:40000"));
    let build: &dyn Fn(&mut stun::MessageWriter<'_>, &[u8], stun::TransactionId) =
        &|w, _, _| host_part(w, &wish);
    let first = host.encode(method::HOST, build);
    add(
        "host-first-request.hex",
        "HOST without a nonce, from 203.0.113.5:40000: FILL makes it at least as long as the answer.",
        &first,
    );
    let challenge = host.exchange(world, &first);
    add(
        "nonce-challenge.hex",
        "The answer: error 401 and a NONCE for this source, 56 bytes.",
        &challenge.bytes,
    );
    host.nonce = challenge.fields().nonce.map(<[u8]>::to_vec);
    let request = host.encode(method::HOST, build);
    add(
        "host-request.hex",
        "HOST with the nonce and a new transaction id.\nPASSWORD-KEY is that of the password below.",
        &request,
    );
    let seated = host.exchange(world, &request);
    add(
        "host-success.hex",
        "The answer: the seat part. TOKEN keys the integrity of all that follows. The ticket is opaque.",
        &seated.bytes,
    );
    let keepalive = host.encode(method::KEEPALIVE, &|w, _, _| {
        let nat = NatMapping {
            step: 2,
            last_port: 40_002,
            random: false,
        };
        w.xor_addr(attr::LOCAL_ADDRESS, addr("192.168.1.10:40000"))
            .attribute(attr::NAT_MAPPING, &nat.to_bytes());
    });
    add(
        "keepalive-request.hex",
        "KEEPALIVE with what the vantage ports showed: the mapped port steps by 2, the last was 40002.",
        &keepalive,
    );
    let alive = host.exchange(world, &keepalive);
    add(
        "keepalive-success.hex",
        "The answer: the server's time and the own address, under the same integrity.",
        &alive.bytes,
    );

    let mut guest = Player::at(addr("[2001:db8::7]:50000"));
    guest.keepalive(world); // For a nonce.
    let place = Where::Code(host.code());
    let guest_wish = Wish {
        password: Some(PASSWORD),
        data: b"bob".to_vec(),
        ..Wish::default()
    };
    let join = guest.encode(method::JOIN, &|w, nonce, id| {
        join_part(w, nonce, id, &place, &guest_wish);
    });
    add(
        "join-request.hex",
        "JOIN by code from [2001:db8::7]:50000, with the proof of the password.",
        &join,
    );
    host.deaf = true;
    let joined = guest.exchange(world, &join).ok();
    let guest_seat = joined.fields().handle.expect("SEAT-HANDLE").id;
    let batch = world.take(host.addr).expect("a batch of events");
    add(
        "event-request.hex",
        "EVENT to the host, batch 1: member joined, then the introduction to it (the session introduces everybody).",
        &batch,
    );
    let message = Message::parse(&batch).expect("the server writes STUN");
    let acknowledgement = host.acknowledgement(&message);
    add(
        "event-success.hex",
        "The host's answer to the batch.",
        &acknowledgement,
    );
    world.send(host.addr, &acknowledgement);
    world.advance(200);
    assert!(
        world.take(host.addr).is_none(),
        "the acknowledgement counts"
    );
    let observe = host.encode(method::OBSERVE, &|w, _, _| {
        w.attribute(attr::TARGET_SEAT, &guest_seat.to_bytes())
            .xor_addr(attr::LOCAL_ADDRESS, addr("192.168.1.10:40001"))
            .u32(attr::REACHABLE_PORT, 7777);
    });
    add(
        "observe-request.hex",
        "OBSERVE, to go over TCP: the host wants a stream with the second client, and has port 7777 forwarded to it.",
        &observe,
    );
    (vectors, host)
}

#[test]
fn the_conversation_is_as_published() {
    let (vectors, host) = conversation();
    if std::env::var_os("WAYPOST_WRITE_VECTORS").is_some() {
        for vector in &vectors {
            std::fs::write(directory().join(vector.file), render(vector)).expect("writable");
        }
        eprintln!("token {}", hex(&host.token));
    }
    let mut published: Vec<String> = std::fs::read_dir(directory())
        .expect("the vectors are in the repository")
        .map(|entry| entry.expect("readable").file_name())
        .filter_map(|name| name.into_string().ok())
        .collect();
    published.sort();
    let mut files: Vec<&str> = vectors.iter().map(|vector| vector.file).collect();
    files.sort_unstable();
    assert_eq!(published, files);
    let specification = include_str!("../../../docs/protocol.md");
    for vector in &vectors {
        let path = directory().join(vector.file);
        let text = std::fs::read_to_string(path).expect("the vectors are in the repository");
        assert_eq!(text, render(vector), "{}", vector.file);
        assert!(specification.contains(vector.file), "{}", vector.file);
    }
}

#[test]
fn the_files_read_as_specified() {
    let specification = include_str!("../../../docs/protocol.md");
    let key = password_key(APPLICATION, PASSWORD);
    assert!(specification.contains(&hex(&key)), "{}", hex(&key));

    let first = read("host-first-request.hex");
    let challenge = read("nonce-challenge.hex");
    assert!(challenge.len() <= first.len());
    let first = Message::parse(&first).unwrap();
    assert_eq!(
        (first.method(), first.class()),
        (method::HOST, Class::Request)
    );
    assert!(first.find(stun::attr::NONCE).is_none());
    let challenge = Message::parse(&challenge).unwrap();
    assert_eq!(challenge.error_code(), Some(401));
    let nonce = challenge.find(stun::attr::NONCE).unwrap();

    let host = read("host-request.hex");
    let host = Message::parse(&host).unwrap();
    let fields = Fields::read(&host).unwrap();
    assert_eq!(fields.nonce, Some(nonce));
    assert_eq!(fields.application, Some(APPLICATION));
    assert_eq!(fields.password_key, Some(key));

    let seated = read("host-success.hex");
    let seated = Message::parse(&seated).unwrap();
    assert_eq!(seated.transaction_id(), host.transaction_id());
    let fields = Fields::read(&seated).unwrap();
    let (token, handle) = (fields.token.unwrap(), fields.handle.unwrap());
    assert!(specification.contains(&hex(&token)), "{}", hex(&token));
    assert_eq!(fields.mapped, Some(addr("203.0.113.5:40000")));
    assert_eq!(fields.probe_port, Some(3479));

    let verified = |file: &str| {
        let bytes = read(file);
        let message = Message::parse(&bytes).unwrap();
        assert!(
            message.verify_integrity(Integrity::Sha256Truncated, &token),
            "{file}"
        );
        bytes
    };
    let keepalive = verified("keepalive-request.hex");
    let fields = Fields::read(&Message::parse(&keepalive).unwrap()).unwrap();
    assert_eq!(fields.handle, Some(handle));
    assert_eq!(fields.nat_mapping.map(|nat| nat.step), Some(2));
    let alive = verified("keepalive-success.hex");
    let fields = Fields::read(&Message::parse(&alive).unwrap()).unwrap();
    assert!(fields.server_time_ms.is_some() && fields.mapped.is_some());

    let join = read("join-request.hex");
    let join = Message::parse(&join).unwrap();
    let fields = Fields::read(&join).unwrap();
    assert_eq!(fields.code, Some(handle.code));
    let proof = password_proof(&key, fields.nonce.unwrap(), join.transaction_id());
    assert_eq!(fields.password_proof, Some(proof));

    let observe = verified("observe-request.hex");
    let fields = Fields::read(&Message::parse(&observe).unwrap()).unwrap();
    assert_eq!(fields.reachable_port, Some(7777));
    assert!(fields.target.is_some() && fields.locals[0].is_some());

    let batch = verified("event-request.hex");
    let batch = Message::parse(&batch).unwrap();
    assert_eq!(
        (batch.method(), batch.class()),
        (method::EVENT, Class::Request)
    );
    assert_eq!(Fields::read(&batch).unwrap().event_sequence, Some(1));
    let events: Vec<_> = batch
        .attributes()
        .filter(|attribute| attribute.kind == attr::EVENT)
        .map(|attribute| {
            let (head, nested) =
                waypost_proto::wire::native::EventHead::parse(attribute.value).unwrap();
            read_event(head, nested, batch.transaction_id())
        })
        .collect();
    assert_eq!(events.len(), 2);
    assert_eq!(events[0].kind, EventKind::MemberJoined);
    assert_eq!(events[0].data.as_deref(), Some(&b"bob"[..]));
    assert_eq!(events[1].kind, EventKind::Introduction);
    assert_eq!(events[1].mapped, Some(addr("[2001:db8::7]:50000")));
    let check_key = events[1].key.unwrap();
    assert!(
        specification.contains(&hex(&check_key)),
        "{}",
        hex(&check_key)
    );
    let acknowledgement = verified("event-success.hex");
    let acknowledgement = Message::parse(&acknowledgement).unwrap();
    assert_eq!(acknowledgement.transaction_id(), batch.transaction_id());
}
