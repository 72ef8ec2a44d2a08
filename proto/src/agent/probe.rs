//! Two Binding requests from one socket to two ports of the server show how the NAT maps: to the same port, by a step, or
//! at random (RFC 5780 section 4.3 calls it mapping behaviour). Never concludes anything from one answer.

use super::transaction::Repetition;
use crate::addr::Addr;
use crate::time::Millis;
use crate::wire::native::NatMapping;
use crate::wire::stun::{self, Class, MessageWriter, TransactionId};

/// Differences beyond this are taken for random.
const STEP_MAX: i32 = 64;
/// How long answers are waited for, milliseconds.
const WAIT_MS: u64 = 2_000;
/// How long hosting or joining waits for them: longer costs more than it brings. Milliseconds.
pub(super) const HEAD_START_MS: u64 = 500;

/// One investigation.
#[derive(Clone, Debug)]
pub(super) struct NatProbe {
    began: Millis,
    vantages: [Vantage; 2],
}

#[derive(Clone, Debug)]
struct Vantage {
    to: Addr,
    id: TransactionId,
    repetition: Repetition,
    seen: Option<Addr>,
}

impl NatProbe {
    pub(super) fn new(now: Millis, server: Addr, port: u16, ids: [TransactionId; 2]) -> Self {
        let [main, probe] = ids;
        let vantage = |to, id| Vantage {
            to,
            id,
            repetition: Repetition::new(now),
            seen: None,
        };
        Self {
            began: now,
            vantages: [
                vantage(server, main),
                vantage(server.with_port(port), probe),
            ],
        }
    }

    pub(super) fn next_timeout(&self) -> Millis {
        self.vantages
            .iter()
            .filter(|v| v.seen.is_none())
            .map(|v| v.repetition.next())
            .min()
            .unwrap_or(self.began)
            .min(self.began + WAIT_MS)
    }

    pub(super) fn is_over(&self, now: Millis) -> bool {
        now.since(self.began) >= WAIT_MS || self.mapping().is_some()
    }

    /// Whether a seat should still wait for the result.
    pub(super) const fn holds_back(&self, now: Millis) -> bool {
        now.since(self.began) < HEAD_START_MS
    }

    pub(super) const fn held_back_until(&self) -> Millis {
        Millis(self.began.0 + HEAD_START_MS)
    }

    /// The next request that is due.
    pub(super) fn transmit(&mut self, now: Millis) -> Option<(Addr, Vec<u8>)> {
        let vantage = self
            .vantages
            .iter_mut()
            .find(|v| v.seen.is_none() && v.repetition.next() <= now)?;
        vantage.repetition.sent(now);
        let mut bytes = Vec::with_capacity(stun::HEADER_LEN);
        MessageWriter::new(
            &mut bytes,
            stun::method::BINDING,
            Class::Request,
            vantage.id,
        )
        .finish();
        Some((vantage.to, bytes))
    }

    /// An answer; returns whether it was one to this.
    pub(super) fn on_answer(&mut self, from: Addr, id: TransactionId, mapped: Addr) -> bool {
        let vantage = self
            .vantages
            .iter_mut()
            .find(|v| v.to == from && v.id == id && v.seen.is_none());
        if let Some(vantage) = vantage {
            vantage.seen = Some(mapped);
            true
        } else {
            false
        }
    }

    /// The result, when both answers are there.
    pub(super) fn mapping(&self) -> Option<NatMapping> {
        let [main, probe] = [self.vantages[0].seen?, self.vantages[1].seen?];
        let step = i32::from(probe.port()) - i32::from(main.port());
        let usable = main.ip() == probe.ip() && step.abs() <= STEP_MAX;
        Some(NatMapping {
            step: if usable {
                i16::try_from(step).unwrap_or(0)
            } else {
                0
            },
            last_port: probe.port(),
            random: !usable,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Addr {
        Addr::new(text.parse().unwrap())
    }

    #[test]
    fn same_step_and_random() {
        let server = addr("192.0.2.1:3478");
        for (main, probe, step, random) in [
            ("198.51.100.1:5000", "198.51.100.1:5000", 0, false),
            ("198.51.100.1:5000", "198.51.100.1:5002", 2, false),
            ("198.51.100.1:5000", "198.51.100.1:4999", -1, false),
            ("198.51.100.1:5000", "198.51.100.1:61000", 0, true),
            ("198.51.100.1:5000", "198.51.100.2:5000", 0, true),
        ] {
            let ids = [TransactionId([1; 12]), TransactionId([2; 12])];
            let mut nat = NatProbe::new(Millis(0), server, 3479, ids);
            assert_eq!(nat.transmit(Millis(0)).unwrap().0, server);
            assert_eq!(nat.transmit(Millis(0)).unwrap().0, server.with_port(3479));
            assert_eq!(nat.transmit(Millis(0)), None);
            assert!(!nat.on_answer(server.with_port(3479), ids[0], addr(main)));
            assert!(nat.on_answer(server, ids[0], addr(main)));
            assert_eq!(nat.mapping(), None);
            assert!(nat.on_answer(server.with_port(3479), ids[1], addr(probe)));
            let mapping = nat.mapping().unwrap();
            assert_eq!((mapping.step, mapping.random), (step, random));
            assert_eq!(mapping.last_port, addr(probe).port());
        }
    }
}
