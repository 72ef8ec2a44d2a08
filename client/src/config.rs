//! What a caller says about itself and the session it wants. Only data.

use std::time::Duration;

use crate::turn::TurnServer;
use waypost_proto::agent::{self, Config, Credential, PathPolicy, Probing, Strategies, Strategy};
use waypost_proto::message::Messaging;

/// The standard port of a server's main socket, whose second vantage port is the next one.
const STANDARD_PORT: u16 = 3478;

/// Who plays, and how its data may travel.
///
/// ```
/// use waypost_client::{Messaging, PathPolicy, Player};
///
/// let mut player = Player::new("my-game");
/// player.data = b"Ann".to_vec();
/// player.policy = PathPolicy::RelayOnly; // nobody learns Ann's address
/// player.messages = Some(Messaging::default());
/// ```
#[derive(Clone)]
pub struct Player {
    /// Which game, 1 to 32 bytes. Sessions of other games are out of sight.
    pub application: String,
    /// How data may travel; by default directly where possible.
    pub policy: PathPolicy,
    /// The ways that are tried, all in parallel; the best one that works is used. [`Strategy::Relay`] left out means
    /// [`PathPolicy::DirectOnly`], nothing else chosen means [`PathPolicy::RelayOnly`].
    pub strategies: Strategies,
    /// Whether the ports of a member whose NAT gives them out at random are guessed, with at most 1,024 small packets to that
    /// member's public address. Works with carriers that give each customer a block of ports.
    pub guesses_ports: bool,
    /// A port of the public address that the router forwards to [`Player::local_port`], UDP, TCP or both, if the player has set that
    /// up; or the local port itself if there is no NAT.
    pub reachable_port: Option<u16>,
    /// Whether the router is asked for such a port, by PCP, NAT-PMP or UPnP. Takes up to some seconds if it knows none of
    /// them. The port is renewed as long as the session lasts, and given back then.
    pub maps_port: bool,
    /// A TURN server that everything of the session goes through, other members' data and the rendezvous: for networks that block
    /// UDP, and for those who want to show that server's address instead of their own.
    pub turn: Option<TurnServer>,
    /// A TURN server on which the player gets one more address that it can be reached at, [`Strategy::Turn`]: tried beside the other
    /// ways, and left for any better one. If the server is not there, nor is this way; it has to relay to the rendezvous server too.
    pub turn_candidate: Option<TurnServer>,
    /// The port of this machine to use; 0 for any.
    pub local_port: u16,
    /// Up to 64 bytes that the other members see, a name for instance.
    pub data: Vec<u8>,
    /// When to find out how the NAT maps. `None`: beforehand if the server has the standard port, else once seated.
    pub probing: Option<Probing>,
    /// For servers that serve only whom their operator knows.
    pub credential: Option<Credential>,
    /// After so long without an answer of the server an operation fails.
    pub patience: Duration,
    /// Whether there are messages beside datagrams, and how they are to work. All members of a session must agree on whether:
    /// with messages every datagram begins with a byte that tells them apart.
    pub messages: Option<Messaging>,
}

impl Player {
    /// A player of `application`, with everything else as usual.
    #[must_use]
    pub fn new(application: &str) -> Self {
        Self {
            application: application.to_owned(),
            policy: PathPolicy::default(),
            strategies: Strategies::ALL,
            guesses_ports: false,
            reachable_port: None,
            maps_port: false,
            turn: None,
            turn_candidate: None,
            local_port: 0,
            data: Vec::new(),
            probing: None,
            credential: None,
            patience: Duration::from_secs(15),
            messages: None,
        }
    }

    pub(crate) fn agent_config(&self, server: std::net::SocketAddr) -> Config {
        let mut config = Config::new(server.into(), &self.application);
        config.policy = if self.strategies == Strategies::only(Strategy::Relay) {
            PathPolicy::RelayOnly
        } else if !self.strategies.contains(Strategy::Relay) {
            PathPolicy::DirectOnly
        } else {
            self.policy
        };
        config.strategies = self.strategies;
        config.guesses_ports = self.guesses_ports;
        config.reachable_port = self.reachable_port;
        config.member_data.clone_from(&self.data);
        config.probing = self.probing.unwrap_or(match server.port() {
            STANDARD_PORT => Probing::First(STANDARD_PORT + 1),
            _ => Probing::WhenSeated,
        });
        config.credential.clone_from(&self.credential);
        config.give_up_ms = u64::try_from(self.patience.as_millis()).unwrap_or(u64::MAX / 2);
        config
    }
}

/// The session to make.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let server = waypost_server::serve::Server::start_with(&[])?;
/// # let server = server.main_addr();
/// use waypost_client::{HostConfig, Session};
///
/// let mut config = HostConfig::new("my-game");
/// config.name = Some("Ann's table".to_owned());
/// config.password = "sesame".to_owned();
/// config.max_members = 4;
/// assert_eq!(Session::host(server, config)?.max_members(), 4);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct HostConfig {
    /// Who hosts.
    pub player: Player,
    /// A unique name to join by, 1 to 64 bytes, or none.
    pub name: Option<String>,
    /// What joining takes; empty for nothing.
    pub password: String,
    /// Seats, 2 to 255, the host's included.
    pub max_members: u8,
    /// Up to 512 bytes that lists and members show.
    pub metadata: Vec<u8>,
    /// Whether lists show the session.
    pub listed: bool,
    /// Whether the session begins locked.
    pub locked: bool,
    /// Whether everybody who joins is introduced to everybody at once, so that direct paths come by themselves.
    pub introduce: bool,
}

impl HostConfig {
    /// An unlisted session of up to eight players of `application`, without name and password.
    #[must_use]
    pub fn new(application: &str) -> Self {
        let agent::HostConfig {
            name,
            password,
            max_members,
            metadata,
            listed,
            locked,
            introduce,
        } = agent::HostConfig::default();
        Self {
            player: Player::new(application),
            name,
            password,
            max_members,
            metadata,
            listed,
            locked,
            introduce,
        }
    }

    pub(crate) fn split(self) -> (Player, agent::HostConfig) {
        let host = agent::HostConfig {
            name: self.name,
            password: self.password,
            max_members: self.max_members,
            metadata: self.metadata,
            listed: self.listed,
            locked: self.locked,
            introduce: self.introduce,
        };
        (self.player, host)
    }
}

/// What joining takes.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let server = waypost_server::serve::Server::start_with(&[])?;
/// # let server = server.main_addr();
/// # let mut hosting = waypost_client::HostConfig::new("my-game");
/// # hosting.name = Some("Ann's table".to_owned());
/// # hosting.password = "sesame".to_owned();
/// # let _host = waypost_client::Session::host(server, hosting)?;
/// use waypost_client::{JoinConfig, Session};
///
/// let mut config = JoinConfig::new("my-game");
/// config.password = "sesame".to_owned();
/// let session = Session::join(server, "Ann's table", config)?;
/// assert!(!session.is_host());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct JoinConfig {
    /// Who joins.
    pub player: Player,
    /// The session's password; empty if it has none.
    pub password: String,
}

impl JoinConfig {
    /// A player of `application` who knows no password.
    #[must_use]
    pub fn new(application: &str) -> Self {
        Self {
            player: Player::new(application),
            password: String::new(),
        }
    }
}
