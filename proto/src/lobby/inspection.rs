//! The lobby seen from outside, for tests and simulators.

use super::Lobby;
use crate::addr::Addr;
use crate::forwarding::SocketIndex;
use crate::time::Millis;
use crate::wire::native::SeatHandle;

/// One seat that is taken, or was until a moment ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeatView {
    /// The seat.
    pub handle: SeatHandle,
    /// Where its member is.
    pub addr: Addr,
    /// The socket that its member sends to.
    pub socket: SocketIndex,
    /// The shard whose socket that is.
    pub home: u16,
    /// Whether its member is the host.
    pub is_host: bool,
    /// Whether it waits for a match: it relays to nobody yet.
    pub is_forming: bool,
    /// Whether its member was removed and is still being told so.
    pub is_departing: bool,
}

impl Lobby {
    /// All seats.
    pub(crate) fn seats(&self) -> Vec<SeatView> {
        let members = (0..self.members.slots())
            .filter_map(|slot| self.members.get(u32::try_from(slot).ok()?));
        members
            .map(|member| {
                let session = (!member.departing).then(|| &self.sessions[member.session]);
                SeatView {
                    handle: member.handle,
                    addr: member.source.addr(),
                    socket: member.socket,
                    home: member.home,
                    is_host: session.is_some_and(|entry| entry.host == member.handle.id.seat),
                    is_forming: session.is_some_and(|entry| entry.forming.is_some()),
                    is_departing: member.departing,
                }
            })
            .collect()
    }

    /// Panics if the tables contradict each other.
    pub(crate) fn assert_consistent(&self) {
        let mut seated = 0;
        let (mut named, mut forming) = (0, 0);
        for slot in 0..self.sessions.slots() {
            let index = u32::try_from(slot).expect("slabs are smaller than that");
            let Some(session) = self.sessions.get(index) else {
                continue;
            };
            assert_eq!(self.by_code.get(&session.code), Some(&index), "by code");
            assert_eq!(session.code.owner(self.shard_count), self.shard, "owner");
            if let Some(name) = &session.name {
                let key = super::seating::name_key(&session.application, name);
                assert_eq!(self.by_name.get(&key), Some(&index), "by name");
                named += 1;
            }
            if let Some(key) = &session.forming {
                assert_eq!(self.forming.get(key), Some(&index), "by match");
                forming += 1;
            }
            assert!(
                session.member_count() > 0 || session.unseated_until > Millis(0),
                "nobody is in a session and nobody is expected"
            );
            for (seat, member) in session.seats.iter().enumerate() {
                let Some(member) = member.map(|member| &self.members[member]) else {
                    continue;
                };
                seated += 1;
                assert_eq!(usize::from(member.handle.id.seat), seat, "seat");
                assert_eq!(member.handle.code, session.code, "code");
                assert_eq!(member.session, index, "session of a member");
                assert!(!member.departing, "in a seat and departing");
                assert!(member.cursor <= session.log_end(), "told the future");
            }
        }
        assert_eq!(self.by_code.len(), self.sessions.len(), "codes");
        assert_eq!(self.by_name.len(), named, "names");
        assert_eq!(self.forming.len(), forming, "matches");
        assert_eq!(
            self.members.len(),
            seated + self.departing.len(),
            "every member is in a seat or departing"
        );
    }
}
