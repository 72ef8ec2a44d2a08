//! Which way data takes to a member: the caller's policy against what is proven. Never sends anything.

/// What the caller allows and prefers.
///
/// ```
/// use waypost_proto::agent::{Config, PathPolicy};
///
/// let server = "203.0.113.5:3478".parse::<std::net::SocketAddr>()?;
/// let mut config = Config::new(server.into(), "my-game");
/// assert_eq!(config.policy, PathPolicy::DirectFirst);
/// config.policy = PathPolicy::RelayOnly; // nobody learns this player's address
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PathPolicy {
    /// Directly once that is proven; through the relay until then.
    #[default]
    DirectFirst,
    /// Through the relay as long as the server answers; the direct path is kept ready for when it does not.
    RelayFirst,
    /// Only through the relay. This member's addresses are told to nobody, and it tries none.
    RelayOnly,
    /// Never through the relay: there is no path until a direct one is proven.
    DirectOnly,
}

/// The way that data to a member takes now.
///
/// ```
/// use waypost_proto::agent::Path;
///
/// fn symbol(path: Path) -> char {
///     match path {
///         Path::Direct => '=',
///         Path::Relayed | Path::Punching => '~',
///         Path::Unreachable => 'x',
///     }
/// }
///
/// assert_eq!(symbol(Path::default()), '~');
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Path {
    /// Through the server.
    #[default]
    Relayed,
    /// Through the server (unless the policy forbids it) while a direct path is being tried.
    Punching,
    /// Straight to the member, or through a TURN server of one of the two: [`super::Agent::report`] tells which.
    Direct,
    /// None: there is no direct path and the policy forbids the relay.
    Unreachable,
}

impl PathPolicy {
    /// The path, given what is known of the direct one and whether the server is silent.
    pub(super) const fn choose(self, direct: DirectState, server_silent: bool) -> Path {
        match (self, direct) {
            (Self::RelayOnly, _) => Path::Relayed,
            (Self::RelayFirst, DirectState::Proven) if server_silent => Path::Direct,
            (Self::RelayFirst, DirectState::Proven) => Path::Relayed,
            (_, DirectState::Proven) => Path::Direct,
            (_, DirectState::Trying) => Path::Punching,
            (Self::DirectOnly, DirectState::None) => Path::Unreachable,
            (_, DirectState::None) => Path::Relayed,
        }
    }

    /// Whether direct paths may be tried and accepted at all.
    pub(super) const fn allows_direct(self) -> bool {
        !matches!(self, Self::RelayOnly)
    }

    /// Whether data may be sent through the server.
    pub(super) const fn allows_relay(self) -> bool {
        !matches!(self, Self::DirectOnly)
    }
}

/// What is known of the direct path to a member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum DirectState {
    /// Nothing, or it was tried in vain.
    None,
    /// Checks are under way.
    Trying,
    /// Checks were answered, and it has not failed since.
    Proven,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_policy_in_each_state() {
        use DirectState::{None, Proven, Trying};
        use PathPolicy::{DirectFirst, DirectOnly, RelayFirst, RelayOnly};
        for (policy, direct, silent, path) in [
            (DirectFirst, None, false, Path::Relayed),
            (DirectFirst, Trying, false, Path::Punching),
            (DirectFirst, Proven, false, Path::Direct),
            (RelayFirst, Proven, false, Path::Relayed),
            (RelayFirst, Proven, true, Path::Direct),
            (RelayFirst, None, true, Path::Relayed),
            (RelayOnly, Proven, true, Path::Relayed),
            (DirectOnly, None, false, Path::Unreachable),
            (DirectOnly, Trying, false, Path::Punching),
            (DirectOnly, Proven, false, Path::Direct),
        ] {
            assert_eq!(policy.choose(direct, silent), path, "{policy:?} {direct:?}");
        }
    }
}
