//! What has been sent to addresses that have not proved themselves. Whoever tells an agent addresses, server or peer, cannot
//! make it send more than this to any of them, nor more than this to all of them together, however often it tells.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::addr::Addr;
use crate::time::Millis;

/// Packets that one unproven address gets: openers, checks and answers to checks together.
pub const BUDGET_PER_ADDRESS: u32 = 48;
/// After this time an address may get as many again. Milliseconds.
const RENEWAL_MS: u64 = 10_000;
/// Packets that all unproven addresses together get in a minute.
pub const BUDGET_PER_MINUTE: u32 = 4_096;
/// Packets that the ports of one IP address get in a minute when they are guessed.
pub const GUESSES_PER_MINUTE: u32 = 1_024;
const MINUTE_MS: u64 = 60_000;
/// Addresses kept in mind at a time; more than the budget of a minute can pay for are never needed.
const ADDRESSES_MAX: usize = BUDGET_PER_MINUTE as usize;
/// IP addresses whose ports may be guessed within a minute.
const GUESSED_MAX: usize = 8;

#[derive(Clone, Copy, Debug)]
struct Account {
    spent: u32,
    since: Millis,
}

impl Account {
    /// Takes one packet of `budget` if there is one left since the account was begun, which happens anew after `renewal_ms`.
    fn spend(&mut self, now: Millis, budget: u32, renewal_ms: u64) -> bool {
        if now.since(self.since) >= renewal_ms {
            *self = Self {
                spent: 0,
                since: now,
            };
        }
        let is_left = self.spent < budget;
        self.spent += u32::from(is_left);
        is_left
    }

    const fn is_spent(&self, now: Millis, budget: u32, renewal_ms: u64) -> bool {
        self.spent >= budget && now.since(self.since) < renewal_ms
    }
}

/// The accounts.
#[derive(Clone, Debug)]
pub(super) struct Ledger {
    all: Account,
    addresses: BTreeMap<Addr, Account>,
    guessed: Vec<(IpAddr, Account)>,
}

impl Ledger {
    pub(super) const fn new(now: Millis) -> Self {
        Self {
            all: Account {
                spent: 0,
                since: now,
            },
            addresses: BTreeMap::new(),
            guessed: Vec::new(),
        }
    }

    /// Whether a packet may go to an unproven address; if so it is noted as sent.
    pub(super) fn spend(&mut self, now: Millis, to: Addr) -> bool {
        if self.all.is_spent(now, BUDGET_PER_MINUTE, MINUTE_MS) {
            return false;
        }
        if !self.addresses.contains_key(&to) {
            if self.addresses.len() >= ADDRESSES_MAX {
                self.addresses
                    .retain(|_, account| now.since(account.since) < RENEWAL_MS);
            }
            if self.addresses.len() >= ADDRESSES_MAX {
                return false;
            }
        }
        let account = self.addresses.entry(to).or_insert(Account {
            spent: 0,
            since: now,
        });
        account.spend(now, BUDGET_PER_ADDRESS, RENEWAL_MS)
            && self.all.spend(now, BUDGET_PER_MINUTE, MINUTE_MS)
    }

    /// Whether an unproven address has used up what it may get for now.
    pub(super) fn is_spent(&self, now: Millis, to: Addr) -> bool {
        self.addresses
            .get(&to)
            .is_some_and(|account| account.is_spent(now, BUDGET_PER_ADDRESS, RENEWAL_MS))
    }

    /// Whether a packet may go to a guessed port of `ip`; if so it is noted as sent.
    pub(super) fn guess(&mut self, now: Millis, ip: IpAddr) -> bool {
        self.guessed
            .retain(|(_, account)| now.since(account.since) < MINUTE_MS);
        let at = self.guessed.iter().position(|(known, _)| *known == ip);
        let at = match at {
            Some(at) => at,
            None if self.guessed.len() < GUESSED_MAX => {
                let since = now;
                self.guessed.push((ip, Account { spent: 0, since }));
                self.guessed.len() - 1
            }
            None => return false,
        };
        self.guessed[at].1.spend(now, GUESSES_PER_MINUTE, MINUTE_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(port: u16) -> Addr {
        Addr::new(([203, 0, 113, 1], port).into())
    }

    #[test]
    fn an_address_all_addresses_and_guesses_have_their_budgets() {
        let mut ledger = Ledger::new(Millis(0));
        let spent = |ledger: &mut Ledger, now, port| {
            (0..200)
                .filter(|_| ledger.spend(Millis(now), addr(port)))
                .count() as u32
        };
        assert_eq!(spent(&mut ledger, 0, 1), BUDGET_PER_ADDRESS);
        assert!(ledger.is_spent(Millis(9_999), addr(1)));
        assert_eq!(spent(&mut ledger, 9_999, 1), 0);
        assert_eq!(spent(&mut ledger, 10_000, 1), BUDGET_PER_ADDRESS);
        let all: u32 = (2..10_000)
            .map(|port| spent(&mut ledger, 10_000, port))
            .sum();
        assert_eq!(all + 2 * BUDGET_PER_ADDRESS, BUDGET_PER_MINUTE);
        assert_eq!(spent(&mut ledger, 59_999, 20_000), 0);
        assert_eq!(spent(&mut ledger, 60_000, 20_000), BUDGET_PER_ADDRESS);
        let guesses = |ledger: &mut Ledger, now, ip: [u8; 4]| {
            (0..5_000)
                .filter(|_| ledger.guess(Millis(now), ip.into()))
                .count() as u32
        };
        for last in 0..8 {
            assert_eq!(guesses(&mut ledger, 0, [1, 1, 1, last]), GUESSES_PER_MINUTE);
        }
        assert_eq!(guesses(&mut ledger, 0, [1, 1, 1, 9]), 0, "a ninth");
        assert_eq!(guesses(&mut ledger, 59_999, [1, 1, 1, 1]), 0);
        assert_eq!(
            guesses(&mut ledger, 60_000, [1, 1, 1, 1]),
            GUESSES_PER_MINUTE
        );
    }
}
