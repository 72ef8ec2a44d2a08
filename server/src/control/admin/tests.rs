//! HTTP over a real loopback socket against the control thread, with shards that only pretend.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::*;
use crate::control::{
    config::{LogFormat, Sources},
    counters::{PROTOCOL_COUNTERS, PROTOCOL_TABLE, TABLES},
    logging,
    metrics::ShardPublisher,
    signals::Request,
    successor::Successor,
    thread::{Control, Ending, bind_admin},
};
use waypost_proto::stats::Counter;

/// Notes what it was asked.
struct PretendShards(Mutex<mpsc::Sender<String>>);

impl PretendShards {
    fn note(&self, line: String) {
        self.0.lock().unwrap().send(line).unwrap();
    }
}

impl Rendezvous for PretendShards {
    fn create_session(&self, request: CreateSession) -> Result<CreatedSession, AdminError> {
        self.note(format!("create {request:?}"));
        if request.name.as_deref() == Some("taken") {
            return Err(AdminError::Conflict("That name is taken.".into()));
        }
        Ok(CreatedSession {
            code: "BAD-KIF-ROM".into(),
            session: "s-1".into(),
            tickets: (0..request.seat_count)
                .map(|seat| vec![0xff, seat])
                .collect(),
            expires_unix_secs: 1_900_000_000,
        })
    }

    fn list_sessions(&self, query: SessionQuery) -> Result<SessionPage, AdminError> {
        self.note(format!("list {query:?}"));
        let session = SessionSummary {
            code: "BAD-KIF-ROM".into(),
            session: "s-1".into(),
            app: "game".into(),
            name: None,
            members: 1,
            max_members: 4,
            listed: true,
            locked: false,
            expires_at: 1_900_000_000,
        };
        Ok(SessionPage {
            sessions: vec![session],
            next: None,
        })
    }

    fn close_session(&self, code: &str) -> Result<(), AdminError> {
        match code {
            "BAD-KIF-ROM" => Ok(()),
            _ => Err(AdminError::NotFound(
                "There is no session with this code.".into(),
            )),
        }
    }

    fn drain(&self) {
        self.note("drain".into());
    }

    fn reconfigure(&self, change: Reconfiguration) {
        self.note(format!("open_rendezvous {}", change.open_rendezvous));
    }
}

/// A control thread with one pretended shard.
struct Door {
    address: SocketAddr,
    shard: ShardPublisher,
    asked: mpsc::Receiver<String>,
    signals: UnboundedSender<Request>,
    thread: JoinHandle<Ending>,
}

impl Door {
    fn open(arguments: &[&str]) -> Self {
        let mut sources = Sources::of_process();
        sources.environment.clear();
        sources.arguments = ["waypost-server", "--admin=127.0.0.1:0"]
            .iter()
            .map(Into::into)
            .collect();
        sources.arguments.extend(arguments.iter().map(Into::into));
        let config = sources.reload().unwrap();
        let metrics = Metrics::new(TABLES, 1);
        let shard = metrics.publisher(0);
        let admin = bind_admin(&config).unwrap();
        let address = admin.as_ref().unwrap().local_addr().unwrap();
        let (signals, receiver) = unbounded_channel();
        let (notes, asked) = mpsc::channel();
        let control = Control {
            successor: Successor::of(&["/nonexistent/waypost-server".into()]),
            log_level: logging::start(LogFormat::Auto, config.log_level),
            config,
            sources,
            metrics,
            rendezvous: Arc::new(PretendShards(Mutex::new(notes))),
            signals: receiver,
            admin,
            noray_http: None,
            listeners: vec!["udp 127.0.0.1:3478".into()],
            turn_urls: vec!["turn:127.0.0.1:3478?transport=udp".into()],
        };
        Door {
            address,
            shard,
            asked,
            signals,
            thread: control.start().unwrap(),
        }
    }

    /// Opens it and has the shard bound, ticking, with this many sessions.
    fn serving(arguments: &[&str], sessions: u64) -> Self {
        let door = Self::open(arguments);
        door.shard.bound("mmsg");
        door.shard.tick(Instant::now(), Duration::ZERO);
        door.hold(sessions);
        door
    }

    fn hold(&self, sessions: u64) {
        self.hold_both(sessions, 0);
    }

    fn hold_both(&self, sessions: u64, allocations: u64) {
        let mut values = vec![0; PROTOCOL_COUNTERS.len()];
        values[Counter::Sessions as usize] = sessions;
        values[Counter::Allocations as usize] = allocations;
        self.shard.publish(PROTOCOL_TABLE, &values);
    }

    /// Sends this text and reads to the end: head and body.
    fn raw(&self, text: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_lowercase(), body.to_owned())
    }

    fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, String, String) {
        let length = body.len();
        let host = self.address;
        self.raw(&format!(
            "{method} {path} HTTP/1.1\r\nhost: {host}\r\n{headers}content-length: {length}\r\n\r\n{body}"
        ))
    }

    fn get(&self, path: &str) -> (u16, String) {
        let (status, _, body) = self.ask("GET", path, "", "");
        (status, body)
    }

    fn post(&self, body: Value) -> (u16, Value) {
        let (status, _, body) = self.ask("POST", "/v1/sessions", "", &body.to_string());
        (status, serde_json::from_str(&body).unwrap())
    }

    fn stop(self) {
        self.signals.send(Request::StopNow).unwrap();
        self.thread.join().unwrap();
    }
}

#[test]
fn probes_follow_the_shards() {
    let door = Door::open(&[]);
    assert_eq!(door.get("/readyz"), (503, "starting\n".into()));
    assert_eq!(door.get("/livez").0, 503);
    door.shard.bound("uring");
    door.shard.tick(Instant::now(), Duration::ZERO);
    assert_eq!(door.get("/readyz"), (200, "ready\n".into()));
    assert_eq!(door.get("/livez"), (200, "live\n".into()));
    door.stop();
}

#[test]
fn page_metrics_and_stats() {
    let door = Door::serving(&[], 7);
    let (status, head, body) = door.ask("GET", "/", "", "");
    assert_eq!(status, 200);
    assert!(
        head.contains("content-security-policy: default-src 'none'"),
        "{head}"
    );
    assert!(head.contains("x-content-type-options: nosniff"), "{head}");
    assert!(body.starts_with("<!doctype html>"), "{body}");
    let (status, head, body) = door.ask("GET", "/metrics", "", "");
    assert_eq!(status, 200);
    assert!(
        head.contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    assert!(
        body.contains("\nwaypost_sessions 7.0\n") && body.ends_with("# EOF\n"),
        "{body}"
    );
    let stats: Value = serde_json::from_str(&door.get("/v1/stats").1).unwrap();
    assert_eq!(stats["counters"]["waypost_sessions"], 7);
    assert_eq!(stats["shards"][0]["backend"], "mmsg");
    assert_eq!(stats["ready"], true);
    assert_eq!(stats["listeners"], json!(["udp 127.0.0.1:3478"]));
    door.stop();
}

#[test]
fn the_page_asks_only_for_what_stats_tell() {
    let page = include_str!("status.html");
    let names = crate::control::metrics::names(TABLES);
    for name in page.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
        assert!(
            !name.starts_with("waypost_") || names.contains(&name),
            "{name}"
        );
    }
}

#[test]
fn a_matchmaker_makes_lists_and_closes_a_session() {
    let door = Door::serving(&[], 0);
    let (status, made) = door.post(json!({
        "app": "game", "name": "lobby", "password": "hush", "max_members": 4,
        "metadata_base64": "AAH/", "listed": true, "seats": 2,
    }));
    assert_eq!(status, 201, "{made}");
    assert_eq!(made["code"], "BAD-KIF-ROM");
    assert_eq!(made["session"], "s-1");
    assert_eq!(made["tickets"], json!(["/wA=", "/wE="]));
    assert_eq!(made["expires_at"], 1_900_000_000);
    let asked = door.asked.recv().unwrap();
    assert!(
        asked.contains("metadata: [0, 1, 255]") && asked.contains("Secret(***)"),
        "{asked}"
    );
    let (status, body) = door.get("/v1/sessions?app=game&limit=5");
    assert_eq!(status, 200);
    let page: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(page["sessions"][0]["code"], "BAD-KIF-ROM");
    assert!(door.asked.recv().unwrap().contains("limit: 5"));
    assert_eq!(
        door.ask("DELETE", "/v1/sessions/BAD-KIF-ROM", "", "").0,
        204
    );
    assert_eq!(
        door.ask("DELETE", "/v1/sessions/BAD-KIF-RAM", "", "").0,
        404
    );
    door.stop();
}

#[test]
fn a_request_that_makes_no_sense_gets_a_sentence() {
    let door = Door::serving(&[], 0);
    let good = json!({ "app": "g", "max_members": 4, "seats": 2 });
    let with = |key: &str, value: Value| {
        let mut body = good.clone();
        body[key] = value;
        body
    };
    assert_eq!(door.post(good.clone()).0, 201);
    for (body, part) in [
        (json!({}), "missing field `app`"),
        (json!([]), "The body is not what was expected"),
        (with("max_member", json!(4)), "unknown field `max_member`"),
        (with("max_members", json!(1)), "a number from 2 to 255"),
        (with("max_members", json!(256)), "expected u8"),
        (with("seats", json!(5)), "more seats than max_members"),
        (with("app", json!("")), "app is a text of 1 to 32 bytes"),
        (
            with("name", json!("n".repeat(65))),
            "name is a text of 1 to 64 bytes",
        ),
        (
            with("password", json!("")),
            "password is a text of 1 to 128 bytes",
        ),
        (
            with("metadata", json!("m".repeat(513))),
            "longer than 512 bytes",
        ),
        (with("metadata_base64", json!("*")), "is not base64"),
    ] {
        let (status, answer) = door.post(body);
        assert_eq!(
            (status, &answer["error"]),
            (400, &json!("invalid")),
            "{answer}"
        );
        let sentence = answer["message"].as_str().unwrap();
        assert!(
            sentence.contains(part) && sentence.ends_with('.'),
            "{sentence}"
        );
    }
    let (status, answer) = door.post(with("name", json!("taken")));
    assert_eq!(
        (status, &answer["message"]),
        (409, &json!("That name is taken."))
    );
    let (status, answer) = door.post(with("metadata", json!("m".repeat(70_000))));
    assert_eq!((status, &answer["error"]), (413, &json!("too_large")));
    for (method, path, expected) in [
        ("GET", "/v1/sessions?limit=0", 400),
        ("GET", "/v1/sessions?limit=x", 400),
        ("GET", "/v1/sessions?colour=red", 400),
        ("GET", "/nowhere", 404),
        ("DELETE", "/v1/drain", 405),
        ("POST", "/metrics", 405),
    ] {
        let (status, _, body) = door.ask(method, path, "", "");
        assert_eq!(status, expected, "{method} {path}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert!(
            answer["message"].as_str().unwrap().ends_with('.'),
            "{answer}"
        );
    }
    door.stop();
}

#[test]
fn what_is_not_http_is_answered_or_dropped() {
    let door = Door::serving(&[], 0);
    assert_eq!(door.raw("GET / HTTP/9.9\r\n\r\n").0, 400);
    assert_eq!(door.raw("\0\u{1}nonsense\r\n\r\n").0, 400);
    assert_eq!(door.get("/livez").0, 200);
    door.stop();
}

#[test]
fn the_token_guards_v1_and_nothing_else() {
    let door = Door::serving(&["--admin-token=correct-horse-battery"], 0);
    for (header, status) in [
        ("", 401),
        ("authorization: Bearer wrong\r\n", 401),
        ("authorization: Bearer correct-horse-batteri\r\n", 401),
        ("authorization: Basic correct-horse-battery\r\n", 401),
        ("authorization: Bearer correct-horse-battery\r\n", 200),
    ] {
        assert_eq!(
            door.ask("GET", "/v1/stats", header, "").0,
            status,
            "{header}"
        );
    }
    let (_, head, _) = door.ask("POST", "/v1/drain", "", "");
    assert!(head.contains("www-authenticate: bearer"), "{head}");
    assert_eq!(door.get("/readyz").0, 200, "a stranger drained nothing");
    assert_eq!(door.get("/metrics").0, 200);
    door.stop();
}

#[test]
fn a_web_page_from_elsewhere_cannot_use_the_browser_of_this_host() {
    let door = Door::serving(&[], 0);
    let foreign = "origin: https://evil.example\r\n";
    assert_eq!(door.ask("POST", "/v1/drain", foreign, "").0, 403);
    let own = format!("origin: http://{}\r\n", door.address);
    assert_eq!(door.ask("GET", "/v1/stats", &own, "").0, 200);
    let rebound = "GET /v1/stats HTTP/1.1\r\nhost: evil.example:9478\r\n\r\n";
    assert_eq!(door.raw(rebound).0, 403);
    let local = "GET /v1/stats HTTP/1.1\r\nhost: localhost:9478\r\n\r\n";
    assert_eq!(door.raw(local).0, 200);
    assert_eq!(door.get("/readyz").0, 200);
    door.stop();
}

#[test]
fn a_drain_by_http_takes_no_new_sessions_and_serves_on() {
    let door = Door::serving(&[], 1);
    let (status, _, body) = door.ask("POST", "/v1/drain", "", "");
    assert_eq!((status, body.as_str()), (202, "{\"draining\":true}"));
    assert_eq!(door.asked.recv().unwrap(), "drain");
    assert_eq!(door.get("/readyz"), (503, "draining\n".into()));
    assert_eq!(door.get("/livez").0, 200);
    let (status, answer) = door.post(json!({ "app": "g", "max_members": 2, "seats": 2 }));
    assert_eq!((status, &answer["error"]), (503, &json!("unavailable")));
    assert!(door.get("/metrics").1.contains("\nwaypost_draining 1.0\n"));
    door.stop();
}

#[test]
fn sigterm_ends_the_thread_when_the_last_session_has_ended() {
    let door = Door::serving(&["--drain-secs=86400"], 1);
    door.signals.send(Request::Drain).unwrap();
    assert_eq!(door.asked.recv().unwrap(), "drain");
    assert_eq!(door.get("/readyz").0, 503, "the port still answers");
    door.hold(0);
    door.thread.join().unwrap();
}

#[test]
fn sigterm_waits_for_allocations_too() {
    let door = Door::serving(&["--drain-secs=86400"], 0);
    door.hold_both(0, 1);
    door.signals.send(Request::Drain).unwrap();
    assert_eq!(door.asked.recv().unwrap(), "drain");
    // The thread looks at the numbers before it lets the port answer.
    assert_eq!(door.get("/readyz").0, 503, "the port still answers");
    door.hold_both(0, 0);
    door.thread.join().unwrap();
}

#[test]
fn browsers_get_credentials() {
    let door = Door::serving(&["--auth-secret=north-and-south-and-west"], 0);
    let ask = |body: &str| {
        let (status, _, body) = door.ask("POST", "/v1/turn-credentials", "", body);
        (status, serde_json::from_str::<Value>(&body).unwrap())
    };
    for (body, ttl, user) in [
        ("", 86_400, "player"),
        ("{}", 86_400, "player"),
        (r#"{"user": "al:ice", "ttl_secs": 60}"#, 60, "al:ice"),
    ] {
        let (status, answer) = ask(body);
        assert_eq!((status, &answer["ttl"]), (200, &json!(ttl)), "{answer}");
        let server = &answer["iceServers"][0];
        assert_eq!(server["urls"], json!(["turn:127.0.0.1:3478?transport=udp"]));
        let name = server["username"].as_str().unwrap();
        assert_eq!(name.split_once(':').unwrap().1, user);
        let secret = b"north-and-south-and-west";
        let password = waypost_proto::shard::time_limited_password(secret, name);
        assert_eq!(server["credential"], json!(password));
    }
    for body in [
        r#"{"ttl_secs": 0}"#,
        r#"{"ttl_secs": 31536001}"#,
        r#"{"user": ""}"#,
        r#"{"user": "a\nb"}"#,
        r#"{"ttl": 5}"#,
        "x",
    ] {
        let (status, answer) = ask(body);
        assert_eq!(
            (status, &answer["error"]),
            (400, &json!("invalid")),
            "{body}"
        );
    }
    assert_eq!(door.ask("GET", "/v1/turn-credentials", "", "").0, 405);
    door.stop();
    let door = Door::serving(&[], 0);
    let (status, _, body) = door.ask("POST", "/v1/turn-credentials", "", "");
    assert_eq!(status, 503);
    assert!(body.contains("no --auth-secret"), "{body}");
    door.stop();
    let door = Door::serving(&["--admin-token=correct-horse-battery"], 0);
    assert_eq!(door.ask("POST", "/v1/turn-credentials", "", "").0, 401);
    door.stop();
}

#[test]
fn sigterm_waits_no_longer_than_it_was_told() {
    let door = Door::serving(&["--drain-secs=0"], 1);
    door.signals.send(Request::Drain).unwrap();
    door.thread.join().unwrap();
}

#[test]
fn a_reload_takes_what_it_can_and_a_bad_one_changes_nothing() {
    let file = std::env::temp_dir().join(format!("waypost-reload-{}.toml", std::process::id()));
    std::fs::write(&file, "admin_token = 'the-first-token-is-long'\n").unwrap();
    let door = Door::serving(&["--config", file.to_str().unwrap()], 0);
    let status = |token: &str| {
        let header = format!("authorization: Bearer {token}\r\n");
        door.ask("GET", "/v1/stats", &header, "").0
    };
    assert_eq!(status("the-first-token-is-long"), 200);
    let second = "admin_token = 'the-second-token-is-long'\nopen_rendezvous = false\n";
    std::fs::write(&file, second).unwrap();
    door.signals.send(Request::Reload).unwrap();
    assert_eq!(door.asked.recv().unwrap(), "open_rendezvous false");
    assert_eq!(
        (
            status("the-first-token-is-long"),
            status("the-second-token-is-long")
        ),
        (401, 200)
    );
    std::fs::write(&file, "admin_tokn = 'x'\n").unwrap();
    door.signals.send(Request::Reload).unwrap();
    let refused = "\nwaypost_config_last_reload_successful 0.0\n";
    while !door.get("/metrics").1.contains(refused) {}
    assert_eq!(status("the-second-token-is-long"), 200);
    std::fs::remove_file(&file).unwrap();
    door.stop();
}
