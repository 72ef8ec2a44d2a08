//! The table of options: one entry makes the flag, the TOML key, the environment variable, the
//! help line and the default. Meaning and validation of the values are in the parent module.
//!
//! To add an option: an entry here, a field in `Config`, a line in `Config::from_settings`, a row
//! in `docs/operations.md`.

use super::host::Host;

/// What an option is worth when no layer names it.
#[derive(Clone, Copy)]
pub enum Preset {
    /// Nothing.
    Unset,
    /// Always this.
    Fixed(&'static str),
    /// Depends on the host.
    Host(fn(&Host) -> Vec<String>),
}

/// One option in all its forms.
#[derive(Clone, Copy)]
pub struct OptionSpec {
    /// The flag without its dashes, `max-sessions`.
    pub name: &'static str,
    /// What stands for the value in the help.
    pub value: &'static str,
    /// One line of help.
    pub help: &'static str,
    /// How many values it takes at most; more than 1 makes it repeatable.
    pub values_max: usize,
    /// The value when no layer names it.
    pub preset: Preset,
    /// The value is never shown.
    pub secret: bool,
    /// A reload (`SIGHUP`) applies a change of it without a restart.
    pub reloads: bool,
}

impl OptionSpec {
    const fn new(name: &'static str, value: &'static str, help: &'static str) -> Self {
        Self {
            name,
            value,
            help,
            values_max: 1,
            preset: Preset::Unset,
            secret: false,
            reloads: false,
        }
    }

    const fn preset(mut self, value: &'static str) -> Self {
        self.preset = Preset::Fixed(value);
        self
    }

    const fn by_host(mut self, values: fn(&Host) -> Vec<String>) -> Self {
        self.preset = Preset::Host(values);
        self
    }

    const fn up_to(mut self, values_max: usize) -> Self {
        self.values_max = values_max;
        self
    }

    const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    const fn reloads(mut self) -> Self {
        self.reloads = true;
        self
    }

    /// Its key in the TOML file, `max_sessions`.
    pub fn key(&self) -> String {
        self.name.replace('-', "_")
    }

    /// Its environment variable, `WAYPOST_MAX_SESSIONS`.
    pub fn variable(&self) -> String {
        format!("WAYPOST_{}", self.key().to_uppercase())
    }

    /// The values of the default layer.
    pub fn default_values(&self, host: &Host) -> Vec<String> {
        match self.preset {
            Preset::Unset => Vec::new(),
            Preset::Fixed(value) => vec![value.to_owned()],
            Preset::Host(values) => values(host),
        }
    }
}

/// The option that names the file itself: a flag and a variable, but no key of that file.
pub const CONFIG_FILE: OptionSpec =
    OptionSpec::new("config", "FILE", "Read options from this TOML file");

/// Every option that the server acts upon.
pub const OPTIONS: &[OptionSpec] = &[
    OptionSpec::new(
        "listen",
        "IP:PORT",
        "Main port, UDP and TCP; repeatable",
    )
    .up_to(32)
    .by_host(default_listen),
    OptionSpec::new("tcp", "BOOL", "Whether the main port is served over TCP too").preset("true"),
    OptionSpec::new(
        "tls-listen",
        "IP:PORT",
        "Port of TURN and rendezvous over TLS; repeatable [default: none]",
    )
    .up_to(32),
    OptionSpec::new(
        "tls-cert",
        "FILE",
        "PEM file with the certificate of --tls-listen and those that lead to its root",
    )
    .reloads(),
    OptionSpec::new("tls-key", "FILE", "PEM file with the private key of --tls-cert").reloads(),
    OptionSpec::new("streams", "N", "TCP and TLS connections at one time, over all shards")
        .preset("4096"),
    OptionSpec::new(
        "streams-per-source",
        "N",
        "TCP and TLS connections of one IPv4 address or IPv6 /56 at one time, over all shards; 0 is no limit",
    )
    .preset("64"),
    OptionSpec::new(
        "external-ip",
        "IP[/LOCAL]",
        "Public address of a host behind 1:1 NAT, and the local address it stands for; repeatable",
    )
    .up_to(32),
    OptionSpec::new(
        "probe-port",
        "PORT",
        "Second UDP port, by which a client sees whether its mapping changes per destination",
    )
    .preset("3479"),
    OptionSpec::new(
        "alternate-ip",
        "IP",
        "Second address, one per family, by which clients discover how their NATs behave (RFC 5780); repeatable",
    )
    .up_to(2),
    OptionSpec::new(
        "relay-ip",
        "IP",
        "Address of relayed ports, one per family; repeatable [default: the listen address, or found]",
    )
    .up_to(2),
    OptionSpec::new("relay-ports", "LOW-HIGH", "Ports of TURN's relayed addresses")
        .preset("49152-65535"),
    OptionSpec::new("realm", "REALM", "Realm of TURN credentials; short ones make short answers")
        .preset("waypost"),
    OptionSpec::new("user", "NAME:PASSWORD", "TURN user; repeatable")
        .up_to(1024)
        .secret(),
    OptionSpec::new("user-file", "FILE", "File with a TURN user, NAME:PASSWORD, on each line")
        .up_to(16),
    OptionSpec::new(
        "allow-peer",
        "CIDR",
        "Range that TURN clients may reach although it is denied by default; repeatable",
    )
    .up_to(256),
    OptionSpec::new(
        "deny-peer",
        "CIDR",
        "Range that TURN clients may not reach, whatever is allowed; repeatable",
    )
    .up_to(256),
    OptionSpec::new(
        "turn-compat",
        "BOOL",
        "Whether TURN clients of RFC 5766's time are served: channels above 0x4FFF, late permission refreshes",
    )
    .preset("false"),
    OptionSpec::new(
        "alternate-server",
        "IP:PORT",
        "Where TURN clients are sent when this server is full or draining, one per family; repeatable",
    )
    .up_to(2),
    OptionSpec::new(
        "alternate-tls-server",
        "IP:PORT",
        "The same for clients that came by TLS, one per family; repeatable",
    )
    .up_to(2),
    OptionSpec::new(
        "alternate-domain",
        "NAME",
        "Whom the certificates of --alternate-tls-server name [default: whom that of this server names]",
    ),
    OptionSpec::new(
        "turn-host",
        "NAME",
        "Name or address of this server in the URLs that /v1/turn-credentials hands out [default: its addresses]",
    ),
    OptionSpec::new(
        "mobility",
        "BOOL",
        "Whether TURN clients keep their allocations when their addresses change (RFC 8016)",
    )
    .preset("true"),
    OptionSpec::new(
        "software",
        "BOOL",
        "Whether answers of STUN and TURN name this server and its version",
    )
    .preset("false"),
    OptionSpec::new("max-allocations", "N", "TURN allocations at one time, over all shards")
        .preset("16384"),
    OptionSpec::new(
        "allocations-per-user",
        "N",
        "TURN allocations of one user at one time; 0 is no limit",
    )
    .preset("0"),
    OptionSpec::new(
        "allocations-per-source",
        "N",
        "TURN allocations of one IPv4 address or IPv6 /56 at one time; 0 is no limit",
    )
    .preset("0"),
    OptionSpec::new(
        "permissions-per-allocation",
        "N",
        "Peer addresses that one TURN allocation may have permissions for at one time",
    )
    .preset("256"),
    OptionSpec::new(
        "channels-per-allocation",
        "N",
        "Channels that one TURN allocation may have at one time",
    )
    .preset("256"),
    OptionSpec::new(
        "allocation-packets-per-sec",
        "N",
        "Packets per second that one TURN allocation may relay; 0 is no limit",
    )
    .preset("0"),
    OptionSpec::new(
        "allocation-bytes-per-sec",
        "BYTES",
        "Bytes per second that one TURN allocation may relay; 0 is no limit",
    )
    .preset("0"),
    OptionSpec::new(
        "unproven-bytes-per-sec",
        "BYTES",
        "Bytes per second that TURN, and again Binding, answers to a source that has not proved its address; 0 is no limit",
    )
    .preset("1000"),
    OptionSpec::new(
        "rabid-listen",
        "IP:PORT",
        "Serve Rabid Hole Punch here, UDP; repeatable [usual port: 57775]",
    )
    .up_to(8),
    OptionSpec::new(
        "simple-listen",
        "IP:PORT",
        "Serve simple-hole-punch here, UDP; repeatable",
    )
    .up_to(8),
    OptionSpec::new(
        "simple-public",
        "IP:PORT",
        "What clients reach a --simple-listen by, written into session ids; one for each, in order; port 0 is the one bound",
    )
    .up_to(8),
    OptionSpec::new(
        "godot-p2p-listen",
        "IP:PORT",
        "Serve GodotP2P here, UDP; repeatable [usual port: 5160]",
    )
    .up_to(8),
    OptionSpec::new(
        "noray-listen",
        "IP:PORT",
        "Serve noray here, TCP; IPv4 [usual port: 8890]",
    ),
    OptionSpec::new(
        "noray-registrar",
        "IP:PORT",
        "Where noray's players show their addresses, UDP [port 8809 of --noray-listen]",
    ),
    OptionSpec::new(
        "noray-relay-ports",
        "PORTS",
        "Noray's own relay ports, out of --relay-ports: N, A-B or A+K, several with commas",
    )
    .preset("49152-51200"),
    OptionSpec::new(
        "noray-http",
        "IP:PORT",
        "Show noray's metrics here [usual port: 8891]",
    ),
    OptionSpec::new(
        "noray-oid-length",
        "N",
        "Characters of noray's public ids",
    )
    .preset("21"),
    OptionSpec::new(
        "noray-oid-charset",
        "TEXT",
        "The characters they are made of [A-Z a-z 0-9 _ -]",
    ),
    OptionSpec::new(
        "noray-oid-words",
        "N",
        "Make them of so many words instead; 0 is not",
    )
    .preset("0"),
    OptionSpec::new(
        "noray-pid-length",
        "N",
        "Characters of noray's secret ids",
    )
    .preset("128"),
    OptionSpec::new(
        "noray-pid-charset",
        "TEXT",
        "The characters they are made of [A-Z a-z 0-9 _ -]",
    ),
    OptionSpec::new(
        "noray-greeting",
        "BOOL",
        "Whether noray's connections are greeted, as newer versions of it do",
    )
    .preset("false"),
    OptionSpec::new(
        "noray-errors",
        "BOOL",
        "Whether noray's clients are told of failures, by a command `error` that games ignore",
    )
    .preset("false"),
    OptionSpec::new(
        "noray-relay-timeout",
        "DURATION",
        "Noray takes back a relay port that was not used for longer",
    )
    .preset("30s"),
    OptionSpec::new(
        "noray-relay-cleanup-interval",
        "DURATION",
        "How often it looks for them",
    )
    .preset("30s"),
    OptionSpec::new(
        "noray-relay-max-individual-traffic",
        "SIZE",
        "What one player of noray may relay, per second",
    )
    .preset("128kb"),
    OptionSpec::new(
        "noray-relay-max-global-traffic",
        "SIZE",
        "What all players of noray may relay together, per second",
    )
    .preset("1gb"),
    OptionSpec::new(
        "noray-relay-traffic-interval",
        "DURATION",
        "The slices in which that is measured",
    )
    .preset("100ms"),
    OptionSpec::new(
        "noray-relay-max-lifetime-duration",
        "DURATION",
        "How long a relay port of noray serves its player",
    )
    .preset("4hr"),
    OptionSpec::new(
        "noray-relay-max-lifetime-traffic",
        "SIZE",
        "What a player may send by it in that time",
    )
    .preset("4gb"),
    OptionSpec::new(
        "dialect-relay",
        "MODE",
        "off, on or force: whether rabid, simple and godot-p2p players get relay ports as each other's addresses",
    )
    .preset("off"),
    OptionSpec::new(
        "dialect-relay-net",
        "CIDR",
        "With --dialect-relay on, a network whose players are always relayed; repeatable",
    )
    .up_to(256),
    OptionSpec::new(
        "max-dialect-pairs",
        "N",
        "Pairs of players that --dialect-relay relays at one time, on each shard that serves dialects",
    )
    .preset("2048"),
    OptionSpec::new(
        "dialect-sessions-per-source",
        "N",
        "Sessions of dialects that one IPv4 address may have; 0 is no limit",
    )
    .preset("64"),
    OptionSpec::new(
        "dialect-bytes-per-sec",
        "BYTES",
        "Bytes per second of lists and addresses that dialects answer to one IPv4 address; 0 is no limit",
    )
    .preset("8000"),
    OptionSpec::new(
        "open-rendezvous",
        "BOOL",
        "Whether sessions need no credentials; false: a ticket or an expiry:user credential is needed",
    )
    .preset("true")
    .reloads(),
    OptionSpec::new(
        "auth-secret",
        "SECRET",
        "Shared secret that signs expiry:user credentials; repeatable, two for rotation",
    )
    .up_to(2)
    .secret()
    .reloads(),
    OptionSpec::new(
        "auth-secret-file",
        "FILE",
        "File that holds an --auth-secret; repeatable",
    )
    .up_to(2)
    .reloads(),
    OptionSpec::new(
        "secret-file",
        "FILE",
        "Secret that seals tickets and nonces; made at first start [default: `secret` in --state-dir]",
    ),
    OptionSpec::new("state-dir", "DIR", "Directory for what survives a restart")
        .by_host(|host| vec![host.state_dir.display().to_string()]),
    OptionSpec::new(
        "coalesce-us",
        "MICROSECONDS",
        "Longest adaptive wait that gathers packets under load; 0 = never",
    )
    .preset("50"),
    OptionSpec::new("shards", "N", "Event loops, one thread each [default: one per core]")
        .by_host(|host| vec![host.core_count.to_string()]),
    OptionSpec::new("pin", "BOOL", "Whether each shard is pinned to a core").preset("true"),
    OptionSpec::new(
        "io",
        "BACKEND",
        "auto, uring or mmsg; auto takes io_uring where the host allows it",
    )
    .preset("auto"),
    OptionSpec::new(
        "admin",
        "IP:PORT",
        "HTTP: status page, /metrics, /livez, /readyz, /v1; `off` for none",
    )
    .preset("127.0.0.1:9478"),
    OptionSpec::new(
        "admin-token",
        "TOKEN",
        "Bearer token of /v1; required when --admin is not on loopback",
    )
    .secret()
    .reloads(),
    OptionSpec::new("admin-token-file", "FILE", "File that holds the --admin-token").reloads(),
    OptionSpec::new("max-sessions", "N", "Sessions at one time, over all shards").preset("65536"),
    OptionSpec::new("max-members", "N", "Members at one time, over all shards").preset("262144"),
    OptionSpec::new(
        "keepalive-secs",
        "SECONDS",
        "How often an idle member is told to show that it lives",
    )
    .preset("15"),
    OptionSpec::new(
        "seat-hold-secs",
        "SECONDS",
        "How long the seat of a silent member is held",
    )
    .preset("30"),
    OptionSpec::new("session-lifetime-secs", "SECONDS", "Longest life of a session")
        .preset("86400"),
    OptionSpec::new(
        "member-packets-per-sec",
        "N",
        "Relayed packets per second that one member may send; 0 is no limit",
    )
    .preset("2000"),
    OptionSpec::new(
        "member-bytes-per-sec",
        "BYTES",
        "Relayed bytes per second that one member may send; 0 is no limit",
    )
    .preset("1048576"),
    OptionSpec::new(
        "drain-secs",
        "SECONDS",
        "How long SIGTERM waits for sessions and allocations to end before it stops; 0 = not at all",
    )
    .preset("30"),
    OptionSpec::new(
        "log-format",
        "FORMAT",
        "auto, json or pretty; auto is pretty on a terminal",
    )
    .preset("auto"),
    OptionSpec::new("log-level", "LEVEL", "error, warn, info, debug or trace")
        .preset("info")
        .reloads(),
];

fn default_listen(host: &Host) -> Vec<String> {
    let families: &[&str] = match host.has_ipv6 {
        true => &["0.0.0.0:3478", "[::]:3478"],
        false => &["0.0.0.0:3478"],
    };
    families.iter().map(|&text| text.to_owned()).collect()
}

/// The option of that name. Asking for one that is not in the table is a bug of ours.
pub fn option(name: &str) -> &'static OptionSpec {
    let found = OPTIONS.iter().find(|option| option.name == name);
    found.unwrap_or_else(|| panic!("no option --{name} in the table"))
}

/// The nearest of `candidates` to what was typed, near enough to be what was meant.
pub fn did_you_mean<S: AsRef<str>>(
    typed: &str,
    candidates: impl IntoIterator<Item = S>,
) -> Option<S> {
    let distance_max = (typed.len() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .map(|candidate| {
            (
                strsim::damerau_levenshtein(typed, candidate.as_ref()),
                candidate,
            )
        })
        .filter(|(distance, _)| *distance <= distance_max)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
