//! Answers to sources that have not proved their address, and how many bytes each may draw: a fixed table of budgets by
//! source prefix, so that a forged source is no worthwhile victim and no attacker can make the table grow. Prefixes that
//! fall into one place share its budget.

use ahash::RandomState;

use crate::addr::Addr;
use crate::forwarding::SocketIndex;
use crate::lobby::Outbox;
use crate::stats::Counter;
use crate::time::Millis;
use crate::wire::stun::{Class, Message, MessageWriter};

const PLACES: usize = 8192;
/// What may be drawn at once: this many milliseconds' worth.
const BURST_MS: u64 = 8000;
/// Bytes of IPv4 and UDP headers, which the victim's line carries too.
const PACKET_OVERHEAD: u64 = 28;

/// The budgets of all sources.
pub(crate) struct ReplyBudget {
    hasher: RandomState,
    /// Bytes per second; 0 is no limit.
    bytes_per_sec: u32,
    /// What answers say of this server, if anything.
    software: Option<&'static str>,
    /// When what was drawn so far will have been earned, in milliseconds.
    earned_at: Box<[u64]>,
}

/// Where an answer leaves and where it goes.
#[derive(Clone, Copy)]
pub(crate) struct Way {
    pub egress: SocketIndex,
    pub to: Addr,
}

impl ReplyBudget {
    pub fn new(hasher: RandomState, bytes_per_sec: u32) -> Self {
        Self {
            hasher,
            bytes_per_sec,
            software: None,
            earned_at: vec![0; PLACES].into_boxed_slice(),
        }
    }

    /// The same with SOFTWARE (RFC 8489 section 14.14) in every answer.
    pub fn naming(mut self, software: Option<&'static str>) -> Self {
        self.software = software;
        self
    }

    /// Answers `request`, with FINGERPRINT if it has one, if the host it goes to may still draw something. Loopback sources cannot be forged from outside
    /// and have no budget. Whoever is beyond its budget costs no more than finding that out.
    #[inline]
    pub fn answer(
        &mut self,
        now: Millis,
        out: &mut Outbox,
        way: Way,
        request: &Message<'_>,
        class: Class,
        fill: impl FnOnce(&mut MessageWriter<'_>),
    ) -> Result<(), Counter> {
        let place = self.place(now, way.to).ok_or(Counter::DropBudget)?;
        let start = out.bytes.len();
        let mut writer = MessageWriter::answer(&mut out.bytes, request, class);
        fill(&mut writer);
        writer.software(self.software);
        if request.has_fingerprint() {
            writer.fingerprint();
        }
        writer.finish();
        self.spend(now, place, out.bytes.len() - start);
        out.transmit(way.egress, way.to, start);
        Ok(())
    }

    /// Draws `len` bytes for `to`; false if they must not be sent.
    pub fn draw(&mut self, now: Millis, to: Addr, len: usize) -> bool {
        let place = self.place(now, to);
        place
            .inspect(|&place| self.spend(now, place, len))
            .is_some()
    }

    /// Whose budget `to` draws on, if anybody's; `None` if it is used up.
    #[inline]
    fn place(&self, now: Millis, to: Addr) -> Option<Option<usize>> {
        if self.bytes_per_sec == 0 || to.is_loopback() {
            return Some(None);
        }
        let place = self.hasher.hash_one(to.source_prefix()) as usize % PLACES;
        (self.earned_at[place] <= now.0 + BURST_MS).then_some(Some(place))
    }

    #[inline]
    fn spend(&mut self, now: Millis, place: Option<usize>, len: usize) {
        if let Some(place) = place {
            let earned_at = &mut self.earned_at[place];
            let cost_ms = (len as u64 + PACKET_OVERHEAD) * 1000 / u64::from(self.bytes_per_sec);
            *earned_at = (*earned_at).max(now.0) + cost_ms;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::stun::{TransactionId, method};

    #[test]
    fn a_prefix_draws_its_rate_and_loopback_all() {
        let hasher = RandomState::with_seeds(1, 2, 3, 4);
        let mut budget = ReplyBudget::new(hasher, 1000);
        let mut out = Outbox::default();
        let mut request = Vec::new();
        let id = TransactionId([0; 12]);
        MessageWriter::new(&mut request, method::BINDING, Class::Request, id).finish();
        let request = Message::parse(&request).unwrap();
        let mut drawn = |from: u64, to: u64, host: &str| {
            (from..to)
                .filter(|ms| {
                    let to = format!("{host}:{}", 1000 + ms % 60_000);
                    let way = Way {
                        egress: SocketIndex(0),
                        to: Addr::new(to.parse().unwrap()),
                    };
                    out.clear();
                    let fill = |w: &mut MessageWriter<'_>| {
                        w.attribute(0x8001, &[0; 48]);
                    };
                    let class = Class::Success;
                    let answered = budget.answer(Millis(*ms), &mut out, way, &request, class, fill);
                    assert_eq!(answered.is_ok(), out.bytes.len() == 72);
                    answered.is_ok()
                })
                .count()
        };
        assert_eq!(drawn(0, 60_000, "198.51.100.1"), 10 * 60 + 80);
        assert_eq!(drawn(0, 50, "198.51.100.2"), 50);
        assert_eq!(drawn(0, 1000, "127.0.0.1"), 1000);
        assert_eq!(drawn(0, 1000, "[::1]"), 1000);
    }
}
