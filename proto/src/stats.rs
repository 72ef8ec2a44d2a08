//! What a shard counts. Plain numbers written by one thread; whoever wants them for another thread copies them once per
//! turn. A datagram that is not served is always counted under the reason.

/// Whether a number only grows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CounterKind {
    /// Only grows.
    Total,
    /// Goes up and down.
    Gauge,
}

/// How a counter appears among an operator's metrics.
#[derive(Clone, Copy, Debug)]
pub struct CounterSpec {
    /// Metric name.
    pub metric: &'static str,
    /// Labels that tell counters of one metric apart.
    pub labels: &'static [(&'static str, &'static str)],
    /// One sentence.
    pub help: &'static str,
    /// Kind.
    pub kind: CounterKind,
}

/// A metric: one counter, or several that differ in a label.
#[derive(Clone, Copy, Debug)]
struct Family {
    name: &'static str,
    help: &'static str,
    kind: CounterKind,
}

const fn total(name: &'static str, help: &'static str) -> Family {
    Family {
        name,
        help,
        kind: CounterKind::Total,
    }
}

const fn gauge(name: &'static str, help: &'static str) -> Family {
    Family {
        name,
        help,
        kind: CounterKind::Gauge,
    }
}

const DROPPED: Family = total("waypost_dropped_total", "Packets dropped, by reason");
const RELAYED_PACKETS: Family = total("waypost_relayed_packets_total", "Datagrams relayed");
const HAIRPIN_PACKETS: Family = total(
    "waypost_hairpin_packets_total",
    "Datagrams that went from one TURN client to another directly",
);
const RELAYED_BYTES: Family = total("waypost_relayed_bytes_total", "Payload bytes relayed");
const REQUESTS: Family = total("waypost_requests_total", "Requests served, by kind");
const REQUEST_ERRORS: Family = total(
    "waypost_request_errors_total",
    "Requests answered with an error, by kind",
);
const AUTH_FAILURES: Family = total("waypost_auth_failures_total", "Failed proofs, by kind");
const EVENT_BATCHES: Family = total(
    "waypost_event_batches_total",
    "Batches of session events sent",
);
const SESSIONS_CREATED: Family = total(
    "waypost_sessions_created_total",
    "Sessions made, by what made them",
);

const DIALECT_REQUESTS: Family = total(
    "waypost_dialect_requests_total",
    "Requests understood, by dialect",
);
const DIALECT_ERRORS: Family = total(
    "waypost_dialect_errors_total",
    "Errors sent to clients, by dialect",
);
const DIALECT_SESSIONS: Family = gauge(
    "waypost_dialect_sessions",
    "Sessions at present, by dialect",
);

const NORAY_COMMANDS: Family = total(
    "waypost_noray_commands_total",
    "Commands of noray, by command",
);
const NORAY_FAILURES: Family = total(
    "waypost_noray_failures_total",
    "Commands of noray that failed, by command",
);
const NORAY_SMALL: Family = total(
    "waypost_noray_small_packets_total",
    "Datagrams of at most ten bytes relayed between players of noray, by size",
);
const NORAY_SHOWN: Family = total(
    "waypost_noray_registrations_total",
    "Datagrams to noray's registrar, by what came of them",
);

/// Declares the counters with the metric each is part of.
macro_rules! counters {
    ($($(#[doc = $doc:literal])* $name:ident => $family:expr, [$($label:literal = $value:literal),*];)*) => {
        /// One thing that is counted.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(usize)]
        pub enum Counter {
            $($(#[doc = $doc])* $name,)*
        }

        impl Counter {
            /// All of them, in order of their numbers.
            pub const ALL: &'static [CounterSpec] = &[
                $(CounterSpec {
                    metric: $family.name,
                    labels: &[$(($label, $value)),*],
                    help: $family.help,
                    kind: $family.kind,
                },)*
            ];
        }
    };
}

counters! {
    /// Datagrams relayed between TURN clients and their peers.
    TurnPackets => RELAYED_PACKETS, ["proto" = "turn"];
    /// Payload bytes relayed between TURN clients and their peers.
    TurnBytes => RELAYED_BYTES, ["proto" = "turn"];
    /// Those of them that went from one client to another directly.
    HairpinPackets => HAIRPIN_PACKETS, [];
    /// Datagrams relayed between members of sessions.
    RelayedPackets => RELAYED_PACKETS, ["proto" = "native"];
    /// Payload bytes relayed between members of sessions.
    RelayedBytes => RELAYED_BYTES, ["proto" = "native"];
    /// Datagrams relayed between players of Rabid Hole Punch.
    RabidPackets => RELAYED_PACKETS, ["proto" = "rabid"];
    /// Payload bytes relayed between players of Rabid Hole Punch.
    RabidBytes => RELAYED_BYTES, ["proto" = "rabid"];
    /// Datagrams relayed between players of simple-hole-punch.
    SimplePackets => RELAYED_PACKETS, ["proto" = "simple"];
    /// Payload bytes relayed between players of simple-hole-punch.
    SimpleBytes => RELAYED_BYTES, ["proto" = "simple"];
    /// Datagrams relayed between players of GodotP2P.
    GodotP2pPackets => RELAYED_PACKETS, ["proto" = "godot-p2p"];
    /// Payload bytes relayed between players of GodotP2P.
    GodotP2pBytes => RELAYED_BYTES, ["proto" = "godot-p2p"];
    /// Datagrams relayed between players of noray.
    NorayPackets => RELAYED_PACKETS, ["proto" = "noray"];
    /// Payload bytes relayed between players of noray.
    NorayBytes => RELAYED_BYTES, ["proto" = "noray"];
    /// Empty datagrams relayed between players of noray.
    NoraySmall0 => NORAY_SMALL, ["bytes" = "0"];
    /// Those of one byte.
    NoraySmall1 => NORAY_SMALL, ["bytes" = "1"];
    /// Those of two.
    NoraySmall2 => NORAY_SMALL, ["bytes" = "2"];
    /// Those of three to five.
    NoraySmall5 => NORAY_SMALL, ["bytes" = "5"];
    /// Those of six to ten.
    NoraySmall10 => NORAY_SMALL, ["bytes" = "10"];
    /// Not STUN, not ChannelData, or malformed.
    DropParse => DROPPED, ["reason" = "parse"];
    /// ChannelData from an address that has no seat.
    DropNoFlow => DROPPED, ["reason" = "no_flow"];
    /// ChannelData for a seat that nobody has.
    DropNoRoute => DROPPED, ["reason" = "no_route"];
    /// TURN data for or from a peer that has no permission.
    DropNoPermission => DROPPED, ["reason" = "no_permission"];
    /// TURN data for a peer that policy denies.
    DropPeerDenied => DROPPED, ["reason" = "peer_denied"];
    /// A request from a source that has not proved its address and has used up the bytes that it may draw.
    DropBudget => DROPPED, ["reason" = "budget"];
    /// Beyond a source's packets or bytes per second.
    DropLimit => DROPPED, ["reason" = "limit"];
    /// A first request shorter than its answer would be.
    DropUnpadded => DROPPED, ["reason" = "unpadded"];
    /// An answer or acknowledgement that nobody waits for.
    DropStale => DROPPED, ["reason" = "no_waiter"];
    /// A method that this server does not serve, or an indication.
    DropMethod => DROPPED, ["reason" = "method"];
    /// Source port 0, which no answer can reach.
    DropSource => DROPPED, ["reason" = "source"];
    /// A GodotP2P datagram whose tag is wrong, whose sender has no game, or that is about somebody else's.
    DropTag => DROPPED, ["reason" = "tag"];
    /// A dialect's session or player that there is no room for, or whose source has its share.
    DropCapacity => DROPPED, ["reason" = "capacity"];
    /// A request that another shard owns and whose mailbox was full.
    DropMailbox => DROPPED, ["reason" = "mailbox"];
    /// Binding requests answered.
    Bindings => REQUESTS, ["method" = "binding"];
    /// Binding requests answered with an error.
    BindingErrors => REQUEST_ERRORS, ["method" = "binding"];
    /// Requests whose source was not proved yet; each was answered with a nonce.
    UnprovenReplies => total("waypost_unproven_replies_total", "Requests whose source was not proved yet; each was answered with a nonce"), [];
    /// Authenticated TURN requests.
    TurnRequests => REQUESTS, ["method" = "turn"];
    /// Native requests from proved sources.
    NativeRequests => REQUESTS, ["method" = "native"];
    /// Native requests answered with an error.
    NativeErrors => REQUEST_ERRORS, ["method" = "native"];
    /// Authenticated TURN requests answered with an error.
    TurnErrors => REQUEST_ERRORS, ["method" = "turn"];
    /// Passwords checked, against a session's key or, for a session that does not exist, against a dummy.
    PasswordChecks => total("waypost_password_checks_total", "Passwords checked, against a session's key or, for a session that does not exist, against a dummy"), [];
    /// Wrong codes, names, passwords.
    JoinFailures => AUTH_FAILURES, ["reason" = "join"];
    /// Requests from seats whose integrity was wrong or whose seat is gone.
    SeatFailures => AUTH_FAILURES, ["reason" = "seat"];
    /// Requests without a valid operator credential where one is needed.
    CredentialFailures => AUTH_FAILURES, ["reason" = "credential"];
    /// Requests refused because their source failed too often.
    RateLimited => total("waypost_rate_limited_total", "Requests refused because their source failed too often"), [];
    /// Event batches sent for the first time.
    EventBatches => EVENT_BATCHES, ["kind" = "first"];
    /// Event batches repeated because no acknowledgement came.
    EventRepeats => EVENT_BATCHES, ["kind" = "repeat"];
    /// Pairs of members introduced to each other.
    Introductions => total("waypost_introductions_total", "Pairs of members introduced to each other"), [];
    /// Sessions made by a client or by the matchmaker's door.
    SessionsCreated => SESSIONS_CREATED, ["by" = "request"];
    /// Sessions that a ticket brought back.
    SessionsRestored => SESSIONS_CREATED, ["by" = "ticket"];
    /// Seats taken.
    SeatsTaken => total("waypost_seats_taken_total", "Seats taken"), [];
    /// Seats lost to silence.
    SeatsTimedOut => total("waypost_seats_timed_out_total", "Seats lost to silence"), [];
    /// Seats that moved to another address.
    Rebinds => total("waypost_rebinds_total", "Seats that moved to another address"), [];
    /// Sessions that this shard owns.
    Sessions => gauge("waypost_sessions", "Sessions that this shard owns"), [];
    /// Members of the sessions that this shard owns.
    Members => gauge("waypost_members", "Members of the sessions that this shard owns"), [];
    /// TURN requests whose name and password did not fit.
    TurnCredentialFailures => AUTH_FAILURES, ["reason" = "turn"];
    /// TURN allocations that expired.
    AllocationsExpired => total("waypost_allocations_expired_total", "TURN allocations that were not refreshed in time"), [];
    /// TURN clients that were sent to another server.
    Redirects => total("waypost_redirects_total", "TURN clients sent to an --alternate-server"), [];
    /// TURN allocations whose clients moved to another five-tuple.
    AllocationsMoved => total("waypost_allocations_moved_total", "TURN allocations whose clients moved to another address (RFC 8016)"), [];
    /// Datagrams of moved TURN clients that were mailed to the shard of their allocation.
    GuestPackets => total("waypost_guest_packets_total", "Datagrams of moved TURN clients that were passed to another shard"), [];
    /// ICMP errors on the way to peers that TURN clients were told of.
    TurnIcmpErrors => total("waypost_turn_icmp_errors_total", "ICMP errors on the way to peers that TURN clients were told of"), [];
    /// Relay sockets that could not be opened.
    RelayOpenFailures => total("waypost_relay_open_failures_total", "Relay ports that could not be opened"), [];
    /// TURN allocations of this shard.
    Allocations => gauge("waypost_allocations", "TURN allocations that this shard serves"), [];
    /// Commands and datagrams with secret ids of noray.
    NorayRequests => DIALECT_REQUESTS, ["dialect" = "noray"];
    /// Errors sent to clients of noray.
    NorayErrors => DIALECT_ERRORS, ["dialect" = "noray"];
    /// Identities of noray.
    NoraySessions => DIALECT_SESSIONS, ["dialect" = "noray"];
    /// `register-host`.
    NorayRegisters => NORAY_COMMANDS, ["command" = "register-host"];
    /// `connect`.
    NorayConnects => NORAY_COMMANDS, ["command" = "connect"];
    /// `connect-relay`.
    NorayRelayConnects => NORAY_COMMANDS, ["command" = "connect-relay"];
    /// `echo`.
    NorayEchoes => NORAY_COMMANDS, ["command" = "echo"];
    /// Any other.
    NorayUnknown => NORAY_COMMANDS, ["command" = "unknown"];
    /// `register-host` for which there was no room.
    NorayRegisterFailures => NORAY_FAILURES, ["command" = "register-host"];
    /// `connect` to or from somebody who is not known.
    NorayConnectFailures => NORAY_FAILURES, ["command" = "connect"];
    /// `connect-relay` to or from somebody who is not known or has no port.
    NorayRelayFailures => NORAY_FAILURES, ["command" = "connect-relay"];
    /// `echo`, which cannot fail.
    NorayEchoFailures => NORAY_FAILURES, ["command" = "echo"];
    /// Players who showed their address.
    NorayShown => NORAY_SHOWN, ["outcome" = "success"];
    /// Players who had shown it before.
    NorayShownAgain => NORAY_SHOWN, ["outcome" = "repeat"];
    /// Datagrams whose secret id is nobody's.
    NorayShownFailures => NORAY_SHOWN, ["outcome" = "fail"];
    /// Connections of noray.
    NorayConnections => gauge("waypost_noray_connections", "Connections of noray at present"), [];
    /// Relay ports of noray.
    NorayRelays => gauge("waypost_noray_relays", "Relay ports that players of noray have"), [];
    /// Relay ports of noray that were not used.
    NorayRelaysExpired => total("waypost_noray_relays_expired_total", "Relay ports of noray that were taken back unused"), [];
    /// Packets to relay ports of noray that were not relayed.
    NorayRelayDrops => total("waypost_noray_relay_drops_total", "Packets to relay ports of noray that were not relayed"), [];
    /// Requests of Rabid Hole Punch.
    RabidRequests => DIALECT_REQUESTS, ["dialect" = "rabid"];
    /// Errors sent to clients of Rabid Hole Punch.
    RabidErrors => DIALECT_ERRORS, ["dialect" = "rabid"];
    /// Sessions of Rabid Hole Punch.
    RabidSessions => DIALECT_SESSIONS, ["dialect" = "rabid"];
    /// Requests of simple-hole-punch.
    SimpleRequests => DIALECT_REQUESTS, ["dialect" = "simple"];
    /// Errors sent to clients of simple-hole-punch.
    SimpleErrors => DIALECT_ERRORS, ["dialect" = "simple"];
    /// Sessions of simple-hole-punch.
    SimpleSessions => DIALECT_SESSIONS, ["dialect" = "simple"];
    /// Requests of GodotP2P.
    GodotP2pRequests => DIALECT_REQUESTS, ["dialect" = "godot-p2p"];
    /// Errors sent to clients of GodotP2P.
    GodotP2pErrors => DIALECT_ERRORS, ["dialect" = "godot-p2p"];
    /// Sessions of GodotP2P.
    GodotP2pSessions => DIALECT_SESSIONS, ["dialect" = "godot-p2p"];
    /// Pairs of players that a dialect relays for.
    DialectPairs => gauge("waypost_dialect_relayed_pairs", "Pairs of players that the invisible relay has ports for"), [];
    /// Pairs that were to be relayed and are not because there was no port for them.
    DialectRelayRefusals => total("waypost_dialect_relay_refusals_total", "Pairs of players that were shown to each other directly for want of relay ports"), [];
    /// Source addresses that this shard relays for.
    Flows => gauge("waypost_flows", "Source addresses that this shard relays for"), [];
}

/// The counters of one shard.
#[derive(Clone, Debug)]
pub struct Counters {
    values: [u64; Counter::ALL.len()],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            values: [0; Counter::ALL.len()],
        }
    }
}

impl Counters {
    /// Adds one.
    pub fn count(&mut self, counter: Counter) {
        self.values[counter as usize] += 1;
    }

    /// Adds `n`.
    pub fn add(&mut self, counter: Counter, n: u64) {
        self.values[counter as usize] += n;
    }

    /// Sets a gauge.
    pub fn set(&mut self, counter: Counter, value: usize) {
        self.values[counter as usize] = value as u64;
    }

    /// One value.
    #[must_use]
    pub const fn get(&self, counter: Counter) -> u64 {
        self.values[counter as usize]
    }

    /// All values, in the order of [`Counter::ALL`].
    #[must_use]
    pub const fn values(&self) -> &[u64] {
        &self.values
    }
}
