//! Every kind of NAT against every other, in a calm network: which path a pair gets, and how long that takes.

use std::fmt::Write as _;

use waypost_proto::addr::Addr;
use waypost_proto::agent::{HostConfig, Path, Target};

use crate::Violation;
use crate::check::{Expected, expected};
use crate::nat::{Nat, NatKind};
use crate::net::{LanId, PUBLIC};
use crate::world::World;

/// Where a player of the table is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// In the public network.
    Open,
    /// Behind one NAT.
    Behind(NatKind),
    /// Behind two port-restricted ones in a row.
    Double,
}

impl Place {
    /// All rows of the table.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let behind = NatKind::ALL.into_iter().map(Self::Behind);
        std::iter::once(Self::Open)
            .chain(behind)
            .chain([Self::Double])
            .collect()
    }

    /// A few words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "none",
            Self::Behind(kind) => kind.name(),
            Self::Double => "two, port-restricted",
        }
    }

    fn settle(self, world: &mut World, player: u8) -> usize {
        let nat = |kind, outer: [u8; 4]| Nat::new(kind, outer.into(), false, u64::from(player));
        let home = [192, 168, player, 2];
        let (lan, ip): (LanId, _) = match self {
            Self::Open => (PUBLIC, [203, 0, 113, player]),
            Self::Behind(kind) => {
                let nat = nat(kind, [203, 0, 113, 100 + player]);
                (world.net.add_nat(PUBLIC, nat), home)
            }
            Self::Double => {
                let kind = NatKind::PortRestricted;
                let carrier = nat(kind, [203, 0, 113, 100 + player]);
                let carrier = world.net.add_nat(PUBLIC, carrier);
                let nat = nat(kind, [100, 64, player, 2]);
                (world.net.add_nat(carrier, nat), home)
            }
        };
        world.add_host(lan, Addr::from_ip_port(ip.into(), 40_000), |_| ())
    }
}

/// What came of one pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Meeting {
    /// The path, the same from both sides.
    pub path: Path,
    /// From asking to join until data came both ways, milliseconds.
    pub connected_ms: u64,
    /// From asking to join until both sides send directly, milliseconds.
    pub direct_ms: Option<u64>,
    /// What theory says.
    pub expected: Expected,
}

/// Lets two players meet.
///
/// # Errors
/// A rule was broken, or they do not get together.
pub fn meet(places: [Place; 2], seed: u64) -> Result<Meeting, Violation> {
    let mut world = World::new(seed, 2, 7);
    let [a, b] = [1, 2].map(|player| places[player - 1].settle(&mut world, player as u8));
    for player in [a, b] {
        world.hosts[player].latency_ms = 20;
    }
    world.with_agent(a, |agent, now| agent.host(now, HostConfig::default()))?;
    world.advance(2_000)?;
    let code = world
        .agent(a)
        .and_then(|agent| Some(agent.seat()?.handle.code))
        .ok_or_else(|| Violation("no session".to_owned()))?;
    let began = world.now;
    world.with_agent(b, |agent, now| agent.join(now, Target::Code(code), ""))?;
    let (mut connected_ms, mut direct_ms) = (None, None);
    while world.now < began + 20_000 {
        world.advance(10)?;
        let elapsed = world.now - began;
        let heard = |by: usize, from| world.hosts[by].heard.contains_key(&from);
        if heard(a, b) && heard(b, a) {
            connected_ms.get_or_insert(elapsed);
        }
        if [(a, b), (b, a)]
            .iter()
            .all(|&(from, to)| world.path(from, to) == Some(Path::Direct))
        {
            direct_ms.get_or_insert(elapsed);
        }
    }
    let paths = [world.path(a, b), world.path(b, a)];
    match (paths, connected_ms) {
        ([Some(path), Some(back)], Some(connected_ms)) if path == back => Ok(Meeting {
            path,
            connected_ms,
            direct_ms,
            expected: expected(&world.net, world.hosts[a].lan, world.hosts[b].lan),
        }),
        other => Err(Violation(format!("{places:?}: {other:?}"))),
    }
}

/// The whole table as Markdown.
///
/// # Errors
/// As [`meet`].
pub fn table(seed: u64) -> Result<String, Violation> {
    let places = Place::all();
    let mut text = String::from("| NAT of one \\ of the other |");
    for place in &places {
        write!(text, " {} |", place.name()).map_err(|e| Violation(e.to_string()))?;
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(places.len()));
    text.push('\n');
    for &row in &places {
        write!(text, "| {} |", row.name()).map_err(|e| Violation(e.to_string()))?;
        for &column in &places {
            let meeting = meet([row, column], seed)?;
            let cell = match meeting.direct_ms {
                Some(ms) if meeting.path == Path::Direct => format!("direct, {ms} ms"),
                _ => format!("relayed, {} ms", meeting.connected_ms),
            };
            write!(text, " {cell} |").map_err(|e| Violation(e.to_string()))?;
        }
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_what_theory_says() {
        let places = Place::all();
        for (i, &a) in places.iter().enumerate() {
            for &b in &places[i..] {
                for places in [[a, b], [b, a]] {
                    let meeting = meet(places, 1).unwrap_or_else(|violation| panic!("{violation}"));
                    assert!(
                        meeting.expected.allows(Some(meeting.path)),
                        "{places:?}: {meeting:?}"
                    );
                }
            }
        }
    }
}
