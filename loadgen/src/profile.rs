//! Traffic of real games, as one option: how many members, who sends to whom, how often and how much. Numbers only.

use crate::cli::Topology;

/// A kind of game.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
#[value(rename_all = "kebab-case")]
pub enum Profile {
    /// Strategy in lockstep: 4 members, each to each, 20 Hz, 40 B.
    #[value(name = "lockstep-20hz")]
    Lockstep,
    /// Cooperative play: 4 members, each to each, 30 Hz, 200 B.
    #[value(name = "coop-30hz")]
    Coop,
    /// Shooter with a player as host: 10 members, 60 Hz, inputs of 60 B, states of 600 B.
    #[value(name = "shooter-60hz")]
    Shooter,
    /// Fast arena with a player as host: 10 members, 128 Hz, inputs of 80 B, states of 1200 B (native: 1196).
    #[value(name = "arena-128hz")]
    Arena,
}

/// What a profile comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Traffic {
    /// Members of a session.
    pub members: u8,
    /// Who sends to whom.
    pub topology: Topology,
    /// Datagrams per second from each member to each other that it sends to.
    pub hertz: u32,
    /// Bytes of a payload.
    pub size: usize,
    /// Bytes of a payload of the host.
    pub host_size: usize,
}

impl Profile {
    /// Its numbers.
    pub const fn traffic(self) -> Traffic {
        let (members, topology, hertz, size, host_size) = match self {
            Self::Lockstep => (4, Topology::Mesh, 20, 40, 40),
            Self::Coop => (4, Topology::Mesh, 30, 200, 200),
            Self::Shooter => (10, Topology::Star, 60, 60, 600),
            Self::Arena => (10, Topology::Star, 128, 80, 1200),
        };
        Traffic {
            members,
            topology,
            hertz,
            size,
            host_size,
        }
    }
}
