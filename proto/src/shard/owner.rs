//! Which shard owns what a request is about. Every shard comes to the same answer, without asking another.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use crate::lobby::ListCursor;
use crate::wire::native::{Fields, SeatHandle, method};

/// The placement of names and match queues.
#[derive(Clone, Copy, Debug)]
pub struct Placement {
    seeds: [u64; 2],
    count: u16,
}

/// Whether a method takes a new seat, which a source that has one may not.
pub(super) const fn seats_anew(request: u16) -> bool {
    matches!(request, method::HOST | method::JOIN | method::MATCH)
}

impl Placement {
    /// The placement over `count` shards. The seeds are the same on every shard.
    #[must_use]
    pub const fn new(seeds: [u64; 2], count: u16) -> Self {
        Self { seeds, count }
    }

    /// The shard that owns a session of this name.
    #[must_use]
    pub fn of_name(&self, application: &str, name: &str) -> u16 {
        self.of(&[b"n", application.as_bytes(), b"\0", name.as_bytes()])
    }

    fn of(&self, parts: &[&[u8]]) -> u16 {
        let mut hasher = SipHasher13::new_with_keys(self.seeds[0], self.seeds[1]);
        parts.iter().for_each(|part| hasher.write(part));
        u16::try_from(hasher.finish() % u64::from(self.count)).expect("below the count")
    }

    /// The owner; `None` means any shard will do. `seated` is the seat that the source has already: whoever owns that
    /// decides about a second one.
    pub(super) fn owner(
        &self,
        request: u16,
        fields: &Fields<'_>,
        seated: Option<SeatHandle>,
    ) -> Option<u16> {
        if let Some(seat) = seated
            && seats_anew(request)
        {
            return Some(seat.code.owner(self.count));
        }
        let by_name = || Some(self.of_name(fields.application?, fields.name?));
        match request {
            method::HOST => by_name(),
            method::JOIN => fields
                .code
                .map(|code| code.owner(self.count))
                .or_else(by_name),
            method::MATCH => Some(self.of(&[
                b"m",
                fields.application?.as_bytes(),
                &[0, fields.max_members?],
                fields.match_key?,
            ])),
            method::LIST => Some(
                fields
                    .list_cursor
                    .map(ListCursor::from_bytes)
                    .unwrap_or_default()
                    .shard
                    .min(self.count - 1),
            ),
            method::RESUME => fields
                .ticket
                .and_then(crate::ticket::handle_in)
                .map(|handle| handle.code.owner(self.count)),
            _ => fields.handle.map(|handle| handle.code.owner(self.count)),
        }
    }
}
