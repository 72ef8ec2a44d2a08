//! Having the server see the own address on a TURN server, so that it tells the others. Asks the server through that TURN server,
//! some times and no more: who gets no answer has no such address to offer, and nothing else depends on it.

use super::Agent;
use super::event::{Transmit, Way};
use super::request::Op;
use super::streams::Observation;
use crate::time::Millis;
use crate::wire::stun::TransactionId;

/// Requests, and the time between two, milliseconds.
const TRIES: u8 = 20;
const GAP_MS: u64 = 250;
/// How long to wait after a refusal: the server has heard too much at once. Milliseconds.
const PAUSE_MS: u64 = 2_000;

/// How far it is.
#[derive(Clone, Debug)]
pub(super) struct TurnOffer {
    id: TransactionId,
    nonce: Option<Vec<u8>>,
    tries: u8,
    next: Option<Millis>,
}

impl Agent {
    /// Begins, if there is something to offer.
    pub(super) fn offer_turn(&mut self, now: Millis) {
        let is_wanted = self.config.has_turn
            && self.allows_direct()
            && self.config.strategies.contains(super::Strategy::Turn);
        self.turn_offer = is_wanted.then(|| TurnOffer {
            id: TransactionId([0; 12]),
            nonce: self.nonce.clone(),
            tries: 0,
            next: Some(now),
        });
    }

    pub(super) fn turn_offer_timeout(&self) -> Option<Millis> {
        self.turn_offer.as_ref()?.next
    }

    pub(super) fn run_turn_offer(&mut self, now: Millis) {
        let is_due = |at: Millis| at <= now;
        let Some(mut offer) = self
            .turn_offer
            .take_if(|offer| offer.next.is_some_and(is_due))
        else {
            return;
        };
        let op = Op::Observe {
            peer: None,
            locals: Vec::new(),
            reachable_port: None,
        };
        let mut bytes = Vec::new();
        offer.id = self.write_observation(&op, offer.nonce.as_deref(), &mut bytes);
        offer.tries += 1;
        offer.next = (offer.tries < TRIES).then(|| now + GAP_MS);
        let transmit: Transmit = Way::through_turn(self.config.server).send(bytes);
        self.out.push_back(transmit);
        self.turn_offer = Some(offer);
    }

    /// Takes what the server said through the TURN server.
    pub(super) fn on_turn_offer_answer(&mut self, now: Millis, bytes: &[u8]) {
        let Some(id) = self.turn_offer.as_ref().map(|offer| offer.id) else {
            self.counters.unexpected += 1;
            return;
        };
        let observation = self.read_observed(id, bytes);
        let Some(offer) = &mut self.turn_offer else {
            return;
        };
        match observation {
            Observation::Nonce(nonce) if offer.next.is_some() => {
                (offer.nonce, offer.next) = (Some(nonce), Some(now));
                self.handle_timeout(now);
            }
            // The next introduction tells the others.
            Observation::Seen(_) => offer.next = None,
            Observation::Refused(_) => offer.next = offer.next.map(|_| now + PAUSE_MS),
            Observation::Nonce(_) | Observation::Unexpected => self.counters.unexpected += 1,
        }
    }
}
