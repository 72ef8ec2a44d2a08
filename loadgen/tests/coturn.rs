//! The program against Debian's coturn: it speaks TURN, not one server's habits. Skipped where coturn is not installed.
#![allow(clippy::unwrap_used)]

use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

struct Coturn {
    child: Child,
    port: u16,
}

impl Coturn {
    /// A server on a port that was free a moment ago; `None` without the program.
    fn start() -> Option<Self> {
        let probe = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = probe.local_addr().unwrap().port();
        drop(probe);
        let files = env!("CARGO_TARGET_TMPDIR");
        let child = Command::new("turnserver")
            .args(["-n", "--no-cli", "--no-tls", "--no-dtls", "--no-tcp"])
            .args([
                "--lt-cred-mech",
                "--user",
                "alice:secret",
                "--realm",
                "here",
            ])
            .args(["--listening-ip", "127.0.0.1", "--relay-ip", "127.0.0.1"])
            .args(["--allow-loopback-peers", "--log-file", "/dev/null"])
            .args(["--listening-port", &port.to_string()])
            .args(["--pidfile", &format!("{files}/coturn-{port}.pid")])
            .args(["--userdb", &format!("{files}/coturn-{port}.db")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match child {
            Ok(child) => Some(Self { child, port }),
            Err(error) => {
                let required = std::env::var_os("WAYPOST_COTURN_REQUIRED");
                assert!(required.is_none(), "this test must not be skipped here");
                eprintln!("skipped: turnserver (Debian package coturn): {error}");
                None
            }
        }
    }
}

impl Drop for Coturn {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn coturn_carries_both_framings_in_both_modes() {
    let Some(coturn) = Coturn::start() else {
        return;
    };
    let target = format!("127.0.0.1:{}", coturn.port);
    for mode in ["pairs", "peer"] {
        for framing in ["channel", "indication"] {
            let name = format!("coturn-{mode}-{framing}.json");
            let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
            let output = Command::new(env!("CARGO_BIN_EXE_waypost-loadgen"))
                .args(["--target", &target, "--protocol", "turn"])
                .args(["--user", "alice:secret", "--lag-limit", "60s"])
                .args(["--turn-mode", mode, "--turn-framing", framing])
                .args(["--sessions", "5", "--rate", "500", "--duration", "1"])
                .args(["--warm-up", "0", "--json", file.to_str().unwrap()])
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert_eq!(output.status.code(), Some(0), "{mode} {framing}: {text}");
            let json: Value =
                serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
            assert_eq!(json["sessions"]["set_up"], 5, "{mode} {framing}: {text}");
            let counted = |name: &str| json["datagrams"][name].as_u64().unwrap();
            assert!(counted("received") > 0, "{mode} {framing}: {text}");
            for fault in ["misdelivered", "corrupted", "duplicated", "refused"] {
                assert_eq!(counted(fault), 0, "{mode} {framing}: {text}");
            }
        }
    }
}
