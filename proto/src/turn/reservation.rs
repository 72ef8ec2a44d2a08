//! Ports reserved with EVEN-PORT (RFC 8656 section 7.2) whose token another shard is shown.
//!
//! A token names the shard that gave it out, sealed, so that clients see noise. The shard that is shown it asks that one for
//! the port; which closes its socket, marks the port as lent and answers once; the asking shard opens a socket of its
//! own. The client waits meanwhile, and its repetitions are not answered. When the allocation ends, the port goes back by
//! mail. Nobody else can get it in between: to its own shard it is taken all the time.

use std::hash::Hasher;

use rand::RngExt;
use rand::rngs::StdRng;
use siphasher::sip::SipHasher13;

use super::allocate::Opening;
use super::allocation::{Family, Reserved};
use super::port_pool::port_owner;
use super::{RelayCommand, RelayRefusal, Step, TurnService};
use crate::addr::{Addr, SourcePrefix};
use crate::lobby::{Mail, TimerKey};

/// Between two tries to open a port that the other shard's kernel side may not have closed yet.
const REOPEN_MS: u64 = 16;
/// Such tries: two seconds at least.
pub(super) const REOPEN_TRIES: u8 = 125;

/// What all shards of a server make alike of tokens and users.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seal {
    seeds: [u64; 2],
    shard: u16,
    shards: u16,
}

impl Seal {
    /// The seal of one of at most 128 shards. The seeds are random, and the same on every shard.
    pub const fn new(seeds: [u64; 2], shard: u16, shards: u16) -> Self {
        Self {
            seeds,
            shard,
            shards,
        }
    }

    fn hash(&self, label: &[u8], bytes: &[u8]) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.seeds[0], self.seeds[1]);
        hasher.write(label);
        hasher.write(bytes);
        hasher.finish()
    }

    /// Tells users apart.
    pub fn user(&self, username: &[u8]) -> u64 {
        self.hash(b"turn user", username)
    }

    /// Tells those apart whom quotas are counted by.
    pub fn person(&self, name: &[u8]) -> u64 {
        self.hash(b"turn person", name)
    }

    /// Tells source prefixes apart.
    pub fn source(&self, prefix: SourcePrefix) -> u64 {
        self.hash(b"turn source", &prefix.0)
    }

    fn mask(&self, random: &[u8]) -> u8 {
        self.hash(b"turn token", random).to_be_bytes()[0]
    }

    /// A new token of this shard.
    pub fn token(&self, rng: &mut StdRng) -> [u8; 8] {
        let mut token: [u8; 8] = rng.random();
        let shard = u8::try_from(self.shard).expect("there are at most 128 shards");
        token[7] = shard ^ self.mask(&token[..7]);
        token
    }

    /// The other shard that gave out this token, unless it is this one, or none did.
    pub fn elsewhere(&self, token: [u8; 8]) -> Option<u16> {
        let shard = u16::from(token[7] ^ self.mask(&token[..7]));
        (shard < self.shards && shard != self.shard).then_some(shard)
    }
}

/// A port of this shard that another one uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Lent {
    family: Family,
    port: u16,
    to: u16,
}

/// Ports that crossed between shards.
#[derive(Debug, Default)]
pub(super) struct Loans {
    lent: Vec<Lent>,
    /// Ports of other shards that are open here.
    borrowed: u32,
    /// Borrowed ports that are not free yet.
    waiting: Vec<Opening>,
}

impl Loans {
    /// How many of a shard's `taken` ports it has, or is having opened, with those of others.
    pub fn ports_here(&self, taken: u32) -> u32 {
        taken + self.borrowed - self.waiting.len() as u32 - self.lent.len() as u32
    }

    /// The shard that uses a port of this one.
    fn borrower(&self, family: Family, port: u16) -> Option<u16> {
        let mut lent = self.lent.iter();
        lent.find(|lent| (lent.family, lent.port) == (family, port))
            .map(|lent| lent.to)
    }
}

impl TurnService {
    /// Asks the shard that gave out a token for its port, on behalf of an allocation that waits for it.
    pub(super) fn borrow_port(
        &mut self,
        step: &mut Step<'_>,
        lender: u16,
        allocation: u32,
        token: [u8; 8],
        user: u64,
    ) {
        self.await_one_more(allocation);
        let mail = Mail::PortWanted {
            asker: self.seal.shard,
            allocation,
            token,
            user,
        };
        step.out.mail.push((lender, mail));
    }

    /// Another shard was shown a token of this one.
    pub fn lend_port(
        &mut self,
        step: &mut Step<'_>,
        asker: u16,
        allocation: u32,
        token: [u8; 8],
        user: u64,
    ) {
        let at = self.redeem(token, user).map(|reserved| {
            let Reserved {
                family,
                socket,
                port,
                ..
            } = reserved;
            step.out.relay.push(RelayCommand::Close { socket });
            self.free_sockets.push(socket);
            self.loans.lent.push(Lent {
                family,
                port,
                to: asker,
            });
            self.bind_addr(family, port)
        });
        step.out
            .mail
            .push((asker, Mail::PortLent { allocation, at }));
    }

    /// The answer to [`TurnService::borrow_port`].
    pub fn handle_port_lent(&mut self, step: &mut Step<'_>, allocation: u32, at: Option<Addr>) {
        self.await_one_less(allocation);
        match at {
            None => self.fail_opening(allocation, Family::V4),
            Some(at) => {
                let family = Family::of(at);
                self.loans.borrowed += 1;
                if self.has_free_socket() {
                    let opening = Opening::of_borrowed(allocation, family, at.port());
                    self.command_open(step, opening);
                } else {
                    self.give_port_back(step, family, at.port());
                    self.fail_opening(allocation, family);
                }
            }
        }
        self.finish_if_opened(step, allocation);
    }

    /// A port of another shard could not be opened.
    pub(super) fn retry_borrowed(
        &mut self,
        step: &mut Step<'_>,
        opening: Opening,
        refusal: RelayRefusal,
    ) {
        match opening.tried_again() {
            Some(again) if refusal == RelayRefusal::InUse => {
                self.await_one_more(again.allocation);
                self.loans.waiting.push(again);
                let at = step.now + REOPEN_MS;
                step.wheel
                    .schedule(at, TimerKey::BorrowedPort(again.allocation));
            }
            _ => {
                self.give_port_back(step, opening.family, opening.port);
                self.fail_opening(opening.allocation, opening.family);
            }
        }
    }

    /// Tries again to open a port of another shard.
    pub fn handle_borrowed_port_timer(&mut self, step: &mut Step<'_>, allocation: u32) {
        let waiting = &mut self.loans.waiting;
        let Some(at) = waiting.iter().position(|w| w.allocation == allocation) else {
            return;
        };
        let opening = waiting.swap_remove(at);
        self.await_one_less(allocation);
        if self.has_free_socket() {
            self.command_open(step, opening);
        } else {
            self.give_port_back(step, opening.family, opening.port);
            self.fail_opening(allocation, opening.family);
            self.finish_if_opened(step, allocation);
        }
    }

    /// Gives a port back to whom it belongs.
    pub(super) fn give_port_back(&mut self, step: &mut Step<'_>, family: Family, port: u16) {
        let at = self.bind_addr(family, port);
        if self.is_own_port(family, port) {
            self.take_port_back(at);
            return;
        }
        self.loans.borrowed -= 1;
        let owner = port_owner(&self.config.relay_ports, port, self.seal.shards);
        step.out.mail.push((owner, Mail::PortReturned { at }));
    }

    /// A port of this shard is not used any more.
    pub fn take_port_back(&mut self, at: Addr) {
        let (family, port) = (Family::of(at), at.port());
        self.loans
            .lent
            .retain(|lent| (lent.family, lent.port) != (family, port));
        self.free_port(family, port);
    }

    /// The shard that uses the port of a relayed address of this one.
    pub fn borrower_of(&self, relayed: Addr) -> Option<u16> {
        self.loans.borrower(Family::of(relayed), relayed.port())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn tokens_name_their_shard_to_shards_only() {
        let mut rng = StdRng::seed_from_u64(7);
        let seals = [0, 1, 2].map(|shard| Seal::new([1, 2], shard, 3));
        let mut last_bytes = std::collections::BTreeSet::new();
        for _ in 0..100 {
            for (shard, seal) in seals.iter().enumerate() {
                let token = seal.token(&mut rng);
                last_bytes.insert(token[7]);
                for (other, other_seal) in seals.iter().enumerate() {
                    let expected = (other != shard).then_some(shard as u16);
                    assert_eq!(other_seal.elsewhere(token), expected);
                }
            }
        }
        assert!(last_bytes.len() > 100, "the last byte alone tells nothing");
    }
}
