//! Namespaces, links, addresses and NAT rules, by `ip` and `nft`.

use std::fmt;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// What a player is behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Nat {
    /// Whoever knows the mapped port gets in (masquerade, and DNAT of everything to the player).
    FullCone,
    /// Only addresses and ports that were sent to get in (masquerade; unknown flows are dropped).
    PortRestricted,
    /// As the last, but a stranger's packet is accepted by the gateway and remembered as a flow of its own, so that a later
    /// flow to the stranger gets another port (masquerade; unknown flows are not dropped).
    Remembers,
    /// Another mapped port, at random, for every destination (masquerade fully-random; unknown flows are dropped).
    Symmetric,
    /// Two port-restricted ones in a row: a home router behind a carrier's.
    Double,
    /// As symmetric, with the 256 ports that a carrier has set aside for this customer (RFC 7422). Flows to the server get the
    /// lowest 64 of them if they go to its main port and the highest 64 if not, all others those between. So the server never
    /// sees a port that leads to the customer from anywhere else, nor a step between two that foretells one.
    PortBlock,
    /// As symmetric, with one port forwarded to the player: [`Lab::FORWARDED_PORT`], UDP and TCP.
    Forwarded,
    /// As symmetric, with a gateway that forwards a port to whoever asks for one by PCP.
    Forwarding,
    /// Port-restricted, with a firewall that lets UDP through to and from the server only.
    NoUdp,
    /// Symmetric, with a firewall that lets no UDP through at all.
    OnlyTcp,
    /// Symmetric, with a firewall that lets nothing through but TCP to port [`Lab::HTTPS_PORT`], and resets other connections.
    OnlyHttps,
    /// Port-restricted, with a firewall that lets TCP through to and from the server only.
    NoTcp,
    /// Symmetric, with a firewall that lets UDP through to and from the server only.
    SymmetricNoUdp,
}

impl Nat {
    /// The kinds that the table of pairs is about. The others each show one strategy.
    pub const ALL: [Self; 5] = [
        Self::FullCone,
        Self::PortRestricted,
        Self::Remembers,
        Self::Symmetric,
        Self::Double,
    ];

    /// Whether two players behind these can punch: a NAT whose ports nobody can foretell needs a peer that lets anybody in.
    #[must_use]
    pub fn can_punch(self, other: Self) -> bool {
        match (self, other) {
            (Self::Symmetric, peer) | (peer, Self::Symmetric) => peer == Self::FullCone,
            _ => true,
        }
    }

    fn rules(self, player: &str) -> String {
        let masquerade = match self {
            Self::Symmetric
            | Self::Forwarded
            | Self::SymmetricNoUdp
            | Self::OnlyTcp
            | Self::OnlyHttps
            | Self::Forwarding => "masquerade fully-random",
            _ => "masquerade",
        };
        let postrouting = match self {
            Self::PortBlock => {
                let server = Lab::SERVER_IP;
                let main = Lab::SERVER_PORT;
                [
                    (format!("ip daddr {server} th dport {main}"), "20480-20543"),
                    (format!("ip daddr {server}"), "20672-20735"),
                    (String::new(), "20544-20671"),
                ]
                .map(|(flows, ports)| {
                    format!("oifname wan meta l4proto {{ tcp, udp }} {flows} masquerade to :{ports} fully-random;")
                })
                .concat()
            }
            _ => format!("oifname wan {masquerade};"),
        };
        let input = match self {
            Self::Remembers => "",
            _ => "iifname wan ct state new drop;",
        };
        let prerouting = match self {
            Self::FullCone => {
                format!("iifname wan udp dport 1024-65535 dnat to {player};")
            }
            Self::Forwarded => format!(
                "iifname wan meta l4proto {{ tcp, udp }} th dport {} dnat to {player};",
                Lab::FORWARDED_PORT
            ),
            _ => String::new(),
        };
        let blocked = match self {
            Self::NoUdp | Self::SymmetricNoUdp => Some("udp"),
            Self::NoTcp => Some("tcp"),
            _ => None,
        };
        let whole = match self {
            Self::OnlyTcp => "meta l4proto udp drop;".to_owned(),
            Self::OnlyHttps => {
                let port = Lab::HTTPS_PORT;
                // Not as one rule with two "!=", which nft merges to one comparison of both ports.
                format!(
                    "tcp dport {port} accept; tcp sport {port} accept; meta l4proto tcp reject with tcp reset; drop;"
                )
            }
            _ => String::new(),
        };
        let forward = blocked.map_or(String::new(), |protocol| {
            let server = Lab::SERVER_IP;
            format!("meta l4proto {protocol} ip daddr != {server} ip saddr != {server} drop;")
        });
        format!(
            "table ip natlab {{
                chain prerouting {{ type nat hook prerouting priority -100; {prerouting} }}
                chain postrouting {{ type nat hook postrouting priority 100; {postrouting} }}
                chain forward {{ type filter hook forward priority 0; {whole} {forward} }}
                chain input {{ type filter hook input priority 0; {input} }}
            }}"
        )
    }
}

impl fmt::Display for Nat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::FullCone => "full cone",
            Self::PortRestricted => "port-restricted",
            Self::Remembers => "remembers strangers",
            Self::Symmetric => "symmetric",
            Self::Double => "two in a row",
            Self::PortBlock => "port block",
            Self::Forwarded => "symmetric with a forwarded port",
            Self::NoUdp => "no UDP but to the server",
            Self::OnlyTcp => "symmetric, no UDP",
            Self::OnlyHttps => "symmetric, nothing but HTTPS",
            Self::Forwarding => "symmetric, forwards on request",
            Self::NoTcp => "no TCP but to the server",
            Self::SymmetricNoUdp => "symmetric, no UDP but to the server",
        })
    }
}

/// Something that could not be set up, with the command that failed.
#[derive(Debug)]
pub struct LabError(pub String);

impl fmt::Display for LabError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for LabError {}

/// Whether laboratories can be made here; if not, why.
///
/// # Errors
/// The reason, as a sentence.
pub fn can_run() -> Result<(), String> {
    static ANSWER: OnceLock<Result<(), String>> = OnceLock::new();
    ANSWER.get_or_init(try_out).clone()
}

fn try_out() -> Result<(), String> {
    for program in ["ip", "nft"] {
        if Command::new(program)
            .arg("-V")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_err()
        {
            return Err(format!(
                "the program {program} is not installed (Debian: iproute2, nftables)"
            ));
        }
    }
    let probe = format!("natlab-probe-{}", std::process::id());
    run(&["ip", "netns", "add", &probe])
        .map_err(|error| format!("network namespaces cannot be made; run as root ({error})"))?;
    run(&["ip", "netns", "delete", &probe]).map_err(|error| error.to_string())
}

/// Which player.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The first.
    A,
    /// The second.
    B,
}

/// A laboratory. Dropping it removes its namespaces, and with them links and rules.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    namespaces: Vec<String>,
}

impl Lab {
    /// The server's address in every laboratory.
    pub const SERVER_IP: &'static str = "203.0.113.1";
    /// Its port.
    pub const SERVER_PORT: u16 = 3478;
    /// A second address of the server's host.
    pub const SECOND_SERVER_IP: &'static str = "203.0.113.2";
    /// The port that [`Nat::Forwarded`] forwards.
    pub const FORWARDED_PORT: u16 = 7777;
    /// The port that [`Nat::OnlyHttps`] lets through.
    pub const HTTPS_PORT: u16 = 443;

    /// Builds the network for a player behind `a` and one behind `b`.
    ///
    /// # Errors
    /// The first command that failed.
    pub fn new(a: Nat, b: Nat) -> Result<Self, LabError> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut lab = Self {
            prefix: format!("natlab-{}-{number}", std::process::id()),
            namespaces: Vec::new(),
        };
        let public = lab.namespace("public")?;
        lab.ip(
            &public,
            &format!("address add {}/32 dev lo", Self::SERVER_IP),
        )?;
        lab.ip(
            &public,
            &format!("address add {}/32 dev lo", Self::SECOND_SERVER_IP),
        )?;
        lab.forward(&public)?;
        lab.attach(&public, Side::A, a)?;
        lab.attach(&public, Side::B, b)?;
        Ok(lab)
    }

    /// A command in the public network.
    #[must_use]
    pub fn in_public(&self, program: &std::path::Path) -> Command {
        self.inside("public", program)
    }

    /// A command on a player's host.
    #[must_use]
    pub fn in_player(&self, side: Side, program: &std::path::Path) -> Command {
        self.inside(&format!("player-{}", letter(side)), program)
    }

    /// A command on the gateway that a player's network has to the public one.
    #[must_use]
    pub fn in_gateway(&self, side: Side, program: &std::path::Path) -> Command {
        self.inside(&format!("gateway-{}", letter(side)), program)
    }

    fn inside(&self, name: &str, program: &std::path::Path) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &format!("{}-{name}", self.prefix)])
            .arg(program);
        command
    }

    /// Gateway, player and the links between public network, gateway and player.
    fn attach(&mut self, public: &str, side: Side, nat: Nat) -> Result<(), LabError> {
        let letter = letter(side);
        let (lan, base) = match side {
            Side::A => (1, 0),
            Side::B => (2, 4),
        };
        let outside = format!("198.51.100.{}", base + 1);
        let wan = format!("198.51.100.{}", base + 2);
        let player_ip = format!("192.168.{lan}.2");
        let gateway = self.namespace(&format!("gateway-{letter}"))?;
        self.link(
            (public, &format!("to-{letter}"), &format!("{outside}/30")),
            (&gateway, "wan", &format!("{wan}/30")),
        )?;
        self.ip(&gateway, &format!("route add default via {outside}"))?;
        let inner = if nat == Nat::Double {
            let home = self.namespace(&format!("home-{letter}"))?;
            self.link(
                (&gateway, "lan", "100.64.0.1/30"),
                (&home, "wan", "100.64.0.2/30"),
            )?;
            self.ip(&home, "route add default via 100.64.0.1")?;
            self.translate(&gateway, Nat::PortRestricted, "100.64.0.2")?;
            home
        } else {
            gateway
        };
        self.translate(
            &inner,
            if nat == Nat::Double {
                Nat::PortRestricted
            } else {
                nat
            },
            &player_ip,
        )?;
        let player = self.namespace(&format!("player-{letter}"))?;
        self.link(
            (&inner, "lan", &format!("192.168.{lan}.1/24")),
            (&player, "lan", &format!("{player_ip}/24")),
        )?;
        self.ip(&player, &format!("route add default via 192.168.{lan}.1"))
    }

    fn translate(&self, gateway: &str, nat: Nat, player: &str) -> Result<(), LabError> {
        self.forward(gateway)?;
        let mut nft = Command::new("ip")
            .args(["netns", "exec", gateway, "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| LabError(format!("nft: {error}")))?;
        if let Some(mut input) = nft.stdin.take() {
            input
                .write_all(nat.rules(player).as_bytes())
                .map_err(|error| LabError(format!("nft: {error}")))?;
        }
        let output = nft
            .wait_with_output()
            .map_err(|error| LabError(format!("nft: {error}")))?;
        if output.status.success() {
            Ok(())
        } else {
            Err(LabError(format!(
                "nft: {}",
                String::from_utf8_lossy(&output.stderr)
            )))
        }
    }

    fn forward(&self, namespace: &str) -> Result<(), LabError> {
        run(&[
            "ip",
            "netns",
            "exec",
            namespace,
            "sysctl",
            "-qw",
            "net.ipv4.ip_forward=1",
        ])
    }

    fn namespace(&mut self, name: &str) -> Result<String, LabError> {
        let name = format!("{}-{name}", self.prefix);
        run(&["ip", "netns", "add", &name])?;
        self.namespaces.push(name.clone());
        self.ip(&name, "link set lo up")?;
        Ok(name)
    }

    /// A link between two namespaces: name of each, of its interface, its address.
    fn link(
        &self,
        (one, one_name, one_ip): (&str, &str, &str),
        (other, other_name, other_ip): (&str, &str, &str),
    ) -> Result<(), LabError> {
        self.ip(
            one,
            &format!("link add {one_name} type veth peer name {other_name} netns {other}"),
        )?;
        for (namespace, name, ip) in [(one, one_name, one_ip), (other, other_name, other_ip)] {
            self.ip(namespace, &format!("address add {ip} dev {name}"))?;
            self.ip(namespace, &format!("link set {name} up"))?;
        }
        Ok(())
    }

    fn ip(&self, namespace: &str, words: &str) -> Result<(), LabError> {
        let mut command = vec!["ip", "-n", namespace];
        command.extend(words.split(' '));
        run(&command)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            if let Err(error) = run(&["ip", "netns", "delete", namespace]) {
                eprintln!("a namespace stays behind: {error}");
            }
        }
    }
}

const fn letter(side: Side) -> char {
    match side {
        Side::A => 'a',
        Side::B => 'b',
    }
}

fn run(words: &[&str]) -> Result<(), LabError> {
    let output = Command::new(words[0])
        .args(&words[1..])
        .output()
        .map_err(|error| LabError(format!("{}: {error}", words.join(" "))))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(LabError(format!(
            "{}: {}",
            words.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        )))
    }
}
