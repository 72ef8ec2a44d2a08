//! GodotP2P, spoken from outside a running server. Tags are made here by the rule, not by the server's code.

#![allow(clippy::unwrap_used)]

mod wire;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use waypost_proto::dialect::Dialect;
use waypost_server::serve::Server;
use wire::Game;

fn start() -> (Server, impl Fn() -> Game) {
    let listen = ["--godot-p2p-listen", "127.0.0.1:0", "--shards", "2"];
    let server = Server::start_with(&listen).unwrap();
    let at = server.dialect_addrs(Dialect::GodotP2p)[0];
    (server, move || Game::new(at))
}

fn tag(packet: &Map<String, Value>, password: &str) -> String {
    let mut packet = packet.clone();
    packet.remove("__hash-string");
    packet.insert("password".into(), password.into());
    let mut keys: Vec<&str> = packet.keys().map(String::as_str).collect();
    let mut values: Vec<&str> = packet.values().filter_map(Value::as_str).collect();
    keys.sort_unstable();
    values.sort_unstable();
    let digest = Sha256::digest(keys.concat() + &values.concat());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A packet as a client makes it.
fn packet(name: impl Into<Value>, kind: &str, password: &str, more: Value) -> Map<String, Value> {
    let mut packet = Map::new();
    packet.insert("__type".into(), kind.into());
    packet.insert("__sender-name".into(), name.into());
    packet.insert("__destination-name".into(), "_HANDSHAKE_SERVER".into());
    packet.insert("__destination-address".into(), json!(["127.0.0.1", 5160]));
    packet.extend(more.as_object().unwrap().clone());
    let tag = tag(&packet, password);
    packet.insert("__hash-string".into(), tag.into());
    packet
}

fn compact(packet: &Map<String, Value>) -> String {
    Value::Object(packet.clone()).to_string()
}

fn register(name: &str, password: &str, secs: Value) -> String {
    let more = json!({
        "local-address": ["192.168.1.2", 5000], "seconds-before-expiry": secs,
        "password": password, "password-required": false,
    });
    compact(&packet(name, "registering-server", password, more))
}

fn join(name: &str, server: &str, password: &str) -> String {
    let more = json!({
        "server-name": server, "local-address": ["10.0.0.9", 6000], "password": password,
    });
    compact(&packet(name, "requesting-to-join-server", password, more))
}

fn list(name: Value, password: &str) -> String {
    compact(&packet(
        name,
        "requesting-server-list",
        password,
        json!({"password": password}),
    ))
}

fn with_stored(name: &str, kind: &str, password: &str, more: Value) -> String {
    compact(&packet(name, kind, password, more))
}

/// Checks the envelope and the tag of an answer.
fn check(game: &Game, text: &str, name: Value, password: &str) -> Map<String, Value> {
    assert!(
        text.is_ascii() && text.contains("\": "),
        "as Python writes it: {text}"
    );
    let answer: Map<String, Value> = serde_json::from_str(text).unwrap();
    assert_eq!(answer["__sender-name"], Value::Null);
    assert_eq!(answer["__destination-name"], name);
    let addr = game.addr();
    let own = json!([addr.ip().to_string(), addr.port()]);
    assert_eq!(answer["__destination-address"], own);
    assert_eq!(answer["__hash-string"], tag(&answer, password), "{text}");
    assert!(!answer.contains_key("password"));
    answer
}

fn expect(game: &Game, text: &str, name: &str, password: &str, kind: &str) -> Map<String, Value> {
    let answer = check(game, text, name.into(), password);
    assert_eq!(answer["__type"], kind, "{text}");
    answer
}

fn games(game: &Game) -> Value {
    let text = game.ask(list(Value::Null, "listpass01"));
    let answer = check(game, &text, Value::Null, "listpass01");
    assert_eq!(answer["__type"], "providing-server-list");
    answer["servers"].clone()
}

#[test]
fn registering_listing_dropping() {
    let (_server, game) = start();
    let (ann, bob) = (game(), game());
    assert_eq!(games(&bob), json!([]));
    let text = ann.ask(register("Ann", "annspass01", json!(60)));
    expect(&ann, &text, "Ann", "annspass01", "confirming-registration");
    // Again, from the same address and with another password.
    let text = ann.ask(register("Ann", "annspass02", json!(60)));
    expect(&ann, &text, "Ann", "annspass02", "confirming-registration");
    let listed = json!([{"name": "Ann", "password-required": false}]);
    assert_eq!(games(&bob), listed);
    // A player in a session lists under his name.
    let text = bob.ask(list("Bob".into(), "bobspass01"));
    assert_eq!(
        check(&bob, &text, "Bob".into(), "bobspass01")["servers"],
        listed
    );
    // The same name from elsewhere is refused.
    let text = bob.ask(register("Ann", "bobspass01", json!(60)));
    let error = expect(&bob, &text, "Ann", "bobspass01", "server-error");
    assert_eq!(error["message"], "server already exists");
    // Only oneself: neither with one's own right tag nor under a guessed one.
    let text = bob.ask(register("Bob", "bobspass01", json!(60)));
    expect(&bob, &text, "Bob", "bobspass01", "confirming-registration");
    bob.send(with_stored(
        "Bob",
        "drop-me",
        "bobspass01",
        json!({"name": "Ann"}),
    ));
    bob.send(with_stored(
        "Ann",
        "drop-me",
        "bobspass01",
        json!({"name": "Ann"}),
    ));
    assert_eq!(games(&bob).as_array().unwrap().len(), 2);
    bob.send(with_stored(
        "Bob",
        "drop-me",
        "bobspass01",
        json!({"name": "Bob"}),
    ));
    assert_eq!(games(&bob), listed);
}

#[test]
fn joining_tells_the_server_player_first() {
    let (_server, game) = start();
    let (ann, bob) = (game(), game());
    ann.ask(register("Ann \u{1f3b2}", "annspass01", json!(60)));
    for _ in 0..2 {
        bob.send(join("B\u{f6}b", "Ann \u{1f3b2}", "bobspass01"));
        let to_bob = bob.receive();
        let info = expect(
            &bob,
            &to_bob,
            "B\u{f6}b",
            "bobspass01",
            "providing-peer-handshake-info",
        );
        assert_eq!(info["peer-name"], "Ann \u{1f3b2}");
        assert_eq!(
            info["global-address"],
            json!(["127.0.0.1", ann.addr().port()])
        );
        assert_eq!(info["local-address"], json!(["192.168.1.2", 5000]));
        let to_ann = ann.receive();
        let info = expect(
            &ann,
            &to_ann,
            "Ann \u{1f3b2}",
            "annspass01",
            "providing-peer-handshake-info",
        );
        assert_eq!(info["peer-name"], "B\u{f6}b");
        assert_eq!(
            info["global-address"],
            json!(["127.0.0.1", bob.addr().port()])
        );
        assert_eq!(info["local-address"], json!(["10.0.0.9", 6000]));
    }
    // One socket sees the order.
    ann.send(join("Self", "Ann \u{1f3b2}", "selfpass01"));
    expect(
        &ann,
        &ann.receive(),
        "Ann \u{1f3b2}",
        "annspass01",
        "providing-peer-handshake-info",
    );
    expect(
        &ann,
        &ann.receive(),
        "Self",
        "selfpass01",
        "providing-peer-handshake-info",
    );
    let text = bob.ask(join("Bob", "Nobody", "bobspass01"));
    let error = expect(&bob, &text, "Bob", "bobspass01", "server-error");
    assert_eq!(error["message"], "Nobody not found");
}

#[test]
fn refreshing_extends_and_silence_expires() {
    let (_server, game) = start();
    let (ann, bob) = (game(), game());
    bob.ask(register("Bob", "bobspass01", json!(600)));
    ann.ask(register("Ann", "annspass01", json!(60)));
    let refresh = |secs: Value| {
        let more = json!({"seconds-before-expiry": secs});
        with_stored("Ann", "refreshing-server-registration", "annspass01", more)
    };
    let text = ann.ask(refresh(json!(600.0)));
    expect(
        &ann,
        &text,
        "Ann",
        "annspass01",
        "confirming-registration-refresh",
    );
    assert_eq!(games(&bob).as_array().unwrap().len(), 2);
    let text = ann.ask(refresh(json!(1)));
    expect(
        &ann,
        &text,
        "Ann",
        "annspass01",
        "confirming-registration-refresh",
    );
    // It goes within a second and a bit; nobody is told.
    while games(&bob) != json!([{"name": "Bob", "password-required": false}]) {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let all = list(Value::Null, "listpass01");
    let only_bob = bob.ask(&all);
    assert!(only_bob.contains("Bob"));
    ann.send(refresh(json!(60)));
    assert_eq!(
        games(&ann).as_array().unwrap().len(),
        1,
        "a refresh of nothing is not answered"
    );
}

#[test]
fn spelling_and_order_do_not_matter() {
    let (_server, game) = start();
    let ann = game();
    let more = json!({
        "local-address": ["192.168.1.2", 5000], "seconds-before-expiry": 60,
        "password": "annspass01", "password-required": true,
    });
    let made = packet("Zo\u{eb}", "registering-server", "annspass01", more);
    // As Python writes it: other order, spaces, escapes.
    let fields: Vec<String> = made
        .iter()
        .rev()
        .map(|(key, value)| {
            let value = value
                .to_string()
                .replace('\u{eb}', "\\u00eb")
                .replace(',', ", ");
            format!("\"{key}\": {value}")
        })
        .collect();
    let text = ann.ask(format!("{{{}}}", fields.join(", ")));
    expect(
        &ann,
        &text,
        "Zo\u{eb}",
        "annspass01",
        "confirming-registration",
    );
    // What is not a string is not protected by the tag, so it may change on the way.
    let mut changed = made.clone();
    changed.insert("local-address".into(), json!(["10.9.8.7", 1]));
    changed.insert("seconds-before-expiry".into(), json!(30));
    let text = ann.ask(compact(&changed));
    expect(
        &ann,
        &text,
        "Zo\u{eb}",
        "annspass01",
        "confirming-registration",
    );
    // Destinations are not needed.
    let mut bare = Map::new();
    for key in ["__type", "__sender-name", "password"] {
        bare.insert(key.into(), made[key].clone());
    }
    bare.insert("__type".into(), "requesting-server-list".into());
    let sum = tag(&bare, "annspass01");
    bare.insert("__hash-string".into(), sum.into());
    let text = ann.ask(compact(&bare));
    expect(
        &ann,
        &text,
        "Zo\u{eb}",
        "annspass01",
        "providing-server-list",
    );
}

#[test]
fn whatever_is_wrong_is_met_with_silence() {
    let (_server, game) = start();
    let ann = game();
    let good: Map<String, Value> =
        serde_json::from_str(&register("Ann", "annspass01", json!(60))).unwrap();
    let mut wrong: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"{".to_vec(),
        b"[1,2]".to_vec(),
        b"null".to_vec(),
        b"not json".to_vec(),
        b"\xff\xfe".to_vec(),
        "[".repeat(1500).into_bytes(),
    ];
    // Every field that it needs is missing in turn; the tag fits what is left.
    let needed = [
        "__type",
        "__sender-name",
        "__hash-string",
        "password",
        "local-address",
        "seconds-before-expiry",
        "password-required",
    ];
    for key in needed {
        let mut lacking = good.clone();
        lacking.remove(key);
        if key != "__hash-string" {
            let sum = tag(&lacking, "annspass01");
            lacking.insert("__hash-string".into(), sum.into());
        }
        wrong.push(compact(&lacking).into_bytes());
    }
    for (key, value) in [
        ("__type", "joining"),
        ("__hash-string", "00"),
        ("__sender-name", "Eve"),
    ] {
        let mut changed = good.clone();
        changed.insert(key.into(), value.into());
        wrong.push(compact(&changed).into_bytes());
    }
    let more = json!({"seconds-before-expiry": 60});
    let kind = "refreshing-server-registration";
    wrong.push(with_stored("Ann", kind, "annspass01", more).into_bytes());
    wrong.push(
        packet("Eve", "strange-type", "x", json!({}))
            .values()
            .map(Value::to_string)
            .collect::<String>()
            .into_bytes(),
    );
    wrong.push(
        compact(&packet(
            "Eve",
            "strange-type",
            "x",
            json!({"password": "x"}),
        ))
        .into_bytes(),
    );
    for datagram in wrong {
        ann.send(&datagram);
        assert_eq!(
            games(&ann),
            json!([]),
            "{}",
            String::from_utf8_lossy(&datagram)
        );
    }
}
