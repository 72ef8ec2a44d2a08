//! The ways to reach a member, which of them are tried, and what became of each. Only data: nothing here sends.

use std::fmt;

/// A way to reach a member.
///
/// ```
/// use waypost_proto::agent::Strategy;
///
/// let by_datagrams = Strategy::ALL.into_iter().filter(|way| *way != Strategy::TcpPunch);
/// let names: Vec<String> = by_datagrams.map(|way| way.to_string()).collect();
/// assert_eq!(names, ["direct", "reverse", "udp-punch", "relay", "turn"]);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Strategy {
    /// Calling an address that lets anybody in: on the same network, without a NAT, or a port that a NAT forwards.
    Direct = 1,
    /// Being called at such an address of one's own, because the server told the other to.
    Reverse = 2,
    /// UDP from both sides at a common start, through two NATs.
    UdpPunch = 4,
    /// TCP from both sides at a common start (simultaneous open, RFC 9293 section 3.5). Gives a stream, and only when one is
    /// asked for.
    TcpPunch = 8,
    /// Through the server.
    Relay = 16,
    /// Through a TURN server (RFC 8656) on which one of the two has an address.
    Turn = 32,
}

impl Strategy {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Direct,
        Self::Reverse,
        Self::UdpPunch,
        Self::TcpPunch,
        Self::Relay,
        Self::Turn,
    ];
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Direct => "direct",
            Self::Reverse => "reverse",
            Self::UdpPunch => "udp-punch",
            Self::TcpPunch => "tcp-punch",
            Self::Relay => "relay",
            Self::Turn => "turn",
        })
    }
}

/// A set of strategies.
///
/// ```
/// use waypost_proto::agent::{Strategies, Strategy};
///
/// let without_server = Strategies::ALL.without(Strategy::Relay);
/// assert!(without_server.contains(Strategy::UdpPunch));
/// assert_ne!(without_server, Strategies::only(Strategy::Direct));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Strategies(u8);

impl Strategies {
    /// All of them, in parallel.
    pub const ALL: Self = Self(63);
    /// None; a beginning for [`Strategies::with`].
    pub const NONE: Self = Self(0);

    /// This one alone.
    #[must_use]
    pub const fn only(strategy: Strategy) -> Self {
        Self(strategy as u8)
    }

    /// These and that one.
    #[must_use]
    pub const fn with(self, strategy: Strategy) -> Self {
        Self(self.0 | strategy as u8)
    }

    /// These without that one.
    #[must_use]
    pub const fn without(self, strategy: Strategy) -> Self {
        Self(self.0 & !(strategy as u8))
    }

    /// Whether that one is among them.
    #[must_use]
    pub const fn contains(self, strategy: Strategy) -> bool {
        self.0 & strategy as u8 != 0
    }

    /// Whether data may be exchanged with members by UDP without the server.
    pub(super) const fn any_udp(self) -> bool {
        self.contains(Strategy::Direct)
            || self.contains(Strategy::Reverse)
            || self.contains(Strategy::UdpPunch)
            || self.contains(Strategy::Turn)
    }
}

impl Default for Strategies {
    fn default() -> Self {
        Self::ALL
    }
}

/// What became of one strategy towards one member.
///
/// ```
/// use waypost_proto::agent::{Attempt, Progress, Strategy};
///
/// let attempt = Attempt { strategy: Strategy::Direct, progress: Progress::Connected { after_ms: 12 } };
/// let line = format!("{}: {}", attempt.strategy, attempt.progress);
/// assert_eq!(line, "direct: connected after 12 ms");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attempt {
    /// Which.
    pub strategy: Strategy,
    /// How far it is.
    pub progress: Progress,
}

/// How far a strategy is. Times are milliseconds since the introduction that began it.
///
/// ```
/// use waypost_proto::agent::{Progress, Reason};
///
/// let progress = Progress::Failed { after_ms: 5_500, reason: Reason::NoAnswer };
/// assert!(progress.to_string().starts_with("failed after 5500 ms: nothing came back"));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// It was not tried.
    NotTried(Reason),
    /// It is being tried.
    Trying {
        /// For so long.
        for_ms: u64,
    },
    /// It leads to the member.
    Connected {
        /// It took so long.
        after_ms: u64,
    },
    /// It was tried in vain.
    Failed {
        /// It took so long.
        after_ms: u64,
        /// Why.
        reason: Reason,
    },
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotTried(reason) => write!(f, "not tried: {reason}"),
            Self::Trying { for_ms } => write!(f, "tried for {for_ms} ms"),
            Self::Connected { after_ms } => write!(f, "connected after {after_ms} ms"),
            Self::Failed { after_ms, reason } => write!(f, "failed after {after_ms} ms: {reason}"),
        }
    }
}

/// Why a strategy does not lead to a member. Its text says what can be done.
///
/// ```
/// use waypost_proto::agent::{Attempt, Progress, Reason, Strategy};
///
/// let attempt = Attempt {
///     strategy: Strategy::UdpPunch,
///     progress: Progress::Failed { after_ms: 5_500, reason: Reason::NoAnswer },
/// };
/// if let Progress::Failed { reason, .. } = attempt.progress {
///     assert!(reason.to_string().contains("use the relay"));
/// }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// This player did not choose it.
    NotChosen,
    /// This player or the member wants its address hidden.
    Hidden,
    /// The server has not introduced the two.
    NotIntroduced,
    /// There is no address that it could try.
    NoAddress,
    /// Nobody has asked for a stream.
    NotAsked,
    /// Nothing came back from any address.
    NoAnswer,
    /// It was found, and has stopped answering.
    Lost,
    /// The server does not answer.
    ServerSilent,
    /// This player or the member has left the server, and goes on directly only.
    WithoutServer,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotChosen => "not chosen; add it to the player's strategies",
            Self::Hidden => {
                "one of the two plays through the relay only; nothing to do unless that is not wanted"
            }
            Self::NotIntroduced => {
                "the server has not introduced the two; ask for it with Session::introduce"
            }
            Self::NoAddress => {
                "neither has an address that anybody can reach; forward a port and say so, or use another way"
            }
            Self::NotAsked => "nobody has asked for a stream; use Link::connect_stream on both sides",
            Self::NoAnswer => {
                "nothing came back: the NATs or firewalls between the two are closed for this; use the relay"
            }
            Self::Lost => "it worked and has stopped; the relay takes over, and it is tried again",
            Self::ServerSilent => "the server does not answer; check the network, or wait",
            Self::WithoutServer => {
                "one of the two has left the server and goes on directly only; join again to be relayed"
            }
        })
    }
}
