//! What a shard counts. Plain numbers written by one thread; whoever wants them for another thread copies them once per
//! turn. A datagram that is not served is always counted under the reason.

/// Declares the counters with the metric each is part of.
macro_rules! counters {
    ($($(#[doc = $doc:literal])* $name:ident => $metric:literal $({$label:literal = $value:literal})? $kind:ident;)*) => {
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
                    metric: $metric,
                    label: counters!(@label $($label, $value)?),
                    help: concat!($($doc),*),
                    kind: CounterKind::$kind,
                },)*
            ];
        }
    };
    (@label) => { None };
    (@label $label:literal, $value:literal) => { Some(($label, $value)) };
}

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
    /// Metric name without prefix.
    pub metric: &'static str,
    /// A label that tells counters of one metric apart.
    pub label: Option<(&'static str, &'static str)>,
    /// One sentence.
    pub help: &'static str,
    /// Kind.
    pub kind: CounterKind,
}

counters! {
    /// Datagrams relayed between members of sessions.
    RelayedPackets => "relayed_packets_total" {"proto" = "native"} Total;
    /// Payload bytes relayed between members of sessions.
    RelayedBytes => "relayed_bytes_total" {"proto" = "native"} Total;
    /// Not STUN, not ChannelData, or malformed.
    DropParse => "dropped_total" {"reason" = "parse"} Total;
    /// ChannelData from an address that has no seat.
    DropNoFlow => "dropped_total" {"reason" = "no_flow"} Total;
    /// ChannelData for a seat that nobody has.
    DropNoRoute => "dropped_total" {"reason" = "no_route"} Total;
    /// Beyond a member's packets or bytes per second.
    DropLimit => "dropped_total" {"reason" = "limit"} Total;
    /// A first request shorter than its answer would be.
    DropUnpadded => "dropped_total" {"reason" = "unpadded"} Total;
    /// An answer or acknowledgement that nobody waits for.
    DropStale => "dropped_total" {"reason" = "stale"} Total;
    /// A method that this server does not serve, or an indication.
    DropMethod => "dropped_total" {"reason" = "method"} Total;
    /// Source port 0, which no answer can reach.
    DropSource => "dropped_total" {"reason" = "source"} Total;
    /// A request that another shard owns and whose mailbox was full.
    DropMailbox => "dropped_total" {"reason" = "queue_full"} Total;
    /// Binding requests answered.
    Bindings => "requests_total" {"method" = "binding"} Total;
    /// Native requests whose source was not proved yet; each was answered with a nonce.
    UnprovenReplies => "unproven_replies_total" Total;
    /// Native requests from proved sources.
    NativeRequests => "requests_total" {"method" = "native"} Total;
    /// Native requests answered with an error.
    NativeErrors => "request_errors_total" Total;
    /// Passwords checked, against a session's key or, for a session that does not exist, against a dummy.
    PasswordChecks => "password_checks_total" Total;
    /// Wrong codes, names, passwords.
    JoinFailures => "auth_failures_total" {"reason" = "join"} Total;
    /// Requests from seats whose integrity was wrong or whose seat is gone.
    SeatFailures => "auth_failures_total" {"reason" = "seat"} Total;
    /// Requests without a valid operator credential where one is needed.
    CredentialFailures => "auth_failures_total" {"reason" = "credential"} Total;
    /// Requests refused because their source failed too often.
    RateLimited => "rate_limited_total" Total;
    /// Event batches sent for the first time.
    EventBatches => "event_batches_total" {"kind" = "first"} Total;
    /// Event batches repeated because no acknowledgement came.
    EventRepeats => "event_batches_total" {"kind" = "repeat"} Total;
    /// Pairs of members introduced to each other.
    Introductions => "introductions_total" Total;
    /// Sessions made by a client or by the matchmaker's door.
    SessionsCreated => "sessions_created_total" {"by" = "request"} Total;
    /// Sessions that a ticket brought back.
    SessionsRestored => "sessions_created_total" {"by" = "ticket"} Total;
    /// Seats taken.
    SeatsTaken => "seats_taken_total" Total;
    /// Seats lost to silence.
    SeatsTimedOut => "seats_timed_out_total" Total;
    /// Seats that moved to another address.
    Rebinds => "rebinds_total" Total;
    /// Sessions that this shard owns.
    Sessions => "sessions" Gauge;
    /// Members of the sessions that this shard owns.
    Members => "members" Gauge;
    /// Source addresses that this shard relays for.
    Flows => "flows" Gauge;
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
