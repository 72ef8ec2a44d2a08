//! Hairpins between clients of different shards.
//!
//! The sender's shard asks the peer's by mail how its client is reached, while data goes on through the kernel. The answer
//! ends with the peer's permission for the sender, and is asked for anew before that while there is data. The peer's
//! shard remembers whom it answered: it tells them of a channel bound later, and of the allocation's end.

use std::collections::HashMap;

use ahash::RandomState;

use super::super::{ForwardingTable, Framing, NotForwarded, Rate, Route};
use super::End;
use crate::addr::Addr;
use crate::lobby::Mail;
use crate::time::Millis;
use crate::wire::channel_data::ChannelNumber;

/// Between two questions about one peer at least.
const ASK_EVERY_MS: u64 = 1_000;
/// An answer that ends so soon is asked for anew.
const RENEW_MS: u64 = 30_000;
/// Peers on other shards that one allocation's data is composed for; that for others goes through the kernel.
const GUESTS_MAX: usize = 64;
/// Allocations of other shards that are told how one client is reached.
const WATCHERS_MAX: usize = 64;
/// So much longer is it remembered whom an answer was given, because shards read their clocks at different times.
const WATCH_MS: u64 = 10_000;

/// How a client is reached by one peer, and until when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HalfRoute {
    /// Where the client is.
    pub client: Route,
    /// The end of its permission for the peer.
    pub until: Millis,
    /// Its channel for the peer, and the end of that.
    pub channel: Option<(ChannelNumber, Millis)>,
}

/// What an allocation knows of a peer that is on another shard.
#[derive(Debug)]
pub(in super::super) struct Guest {
    peer: Addr,
    asked: Millis,
    grant: Option<Grant>,
}

#[derive(Clone, Copy, Debug)]
struct Grant {
    partner: u32,
    until: Millis,
    channel: Option<(ChannelNumber, Millis)>,
}

/// An allocation of another shard that was told how this one's client is reached.
#[derive(Debug)]
pub(in super::super) struct Watcher {
    shard: u16,
    from: Addr,
    to: Addr,
    until: Millis,
}

/// A client of another shard: what all that send to it from here share.
#[derive(Debug)]
struct Partner {
    at: Addr,
    client: Route,
    /// Its limits are counted by each shard that sends to it.
    rate: Rate,
    uses: u32,
}

/// The clients of other shards that somebody here sends to.
#[derive(Debug, Default)]
pub(super) struct Partners {
    places: Vec<Partner>,
    free: Vec<u32>,
    by_addr: HashMap<Addr, u32, RandomState>,
}

impl Partners {
    fn take(&mut self, at: Addr, client: Route) -> u32 {
        if let Some(&index) = self.by_addr.get(&at) {
            let partner = &mut self.places[index as usize];
            partner.client = client;
            partner.uses += 1;
            return index;
        }
        let partner = Partner {
            at,
            client,
            rate: Rate::default(),
            uses: 1,
        };
        let index = if let Some(index) = self.free.pop() {
            self.places[index as usize] = partner;
            index
        } else {
            self.places.push(partner);
            u32::try_from(self.places.len() - 1).expect("fewer than guests")
        };
        self.by_addr.insert(at, index);
        index
    }

    fn release(&mut self, index: u32) {
        let partner = &mut self.places[index as usize];
        partner.uses -= 1;
        if partner.uses == 0 {
            self.by_addr.remove(&partner.at);
            self.free.push(index);
        }
    }
}

impl ForwardingTable {
    /// As [`ForwardingTable::compose`], for a peer that is not of this shard.
    #[inline]
    pub(super) fn compose_across(
        &mut self,
        now: Millis,
        sender: u32,
        peer: Addr,
        seen: Addr,
        payload_len: usize,
    ) -> Option<Result<(Route, Framing), NotForwarded>> {
        let guests = &self.relays[sender as usize].as_deref()?.guests;
        let at = guests.binary_search_by_key(&peer, |guest| guest.peer);
        let grant = at.ok().and_then(|at| guests[at].grant);
        let grant = grant.filter(|grant| now < grant.until);
        if grant.is_none_or(|grant| grant.until.since(now) < RENEW_MS) {
            self.ask(now, sender, peer, seen);
        }
        let Grant {
            partner, channel, ..
        } = grant?;
        let channel = channel.filter(|(_, until)| now < *until);
        let client = self.hairpins.partners.places[partner as usize].client;
        Some(self.charge_both(
            now,
            sender,
            payload_len,
            |table| End {
                client,
                channel: channel.map(|(number, _)| number),
                rate: &mut table.hairpins.partners.places[partner as usize].rate,
            },
            seen,
        ))
    }

    /// Asks the shard of `peer` how its client is reached, unless it was asked just now.
    #[cold]
    fn ask(&mut self, now: Millis, sender: u32, peer: Addr, seen: Addr) {
        let (hairpins, relays) = (&mut self.hairpins, &mut self.relays);
        let (Some(relay), Some(name)) =
            (relays[sender as usize].as_deref_mut(), hairpins.name(peer))
        else {
            return;
        };
        let guests = &mut relay.guests;
        match guests.binary_search_by_key(&peer, |guest| guest.peer) {
            Ok(at) if now.since(guests[at].asked) < ASK_EVERY_MS => return,
            Ok(at) => guests[at].asked = now,
            Err(_) => {
                if guests.len() >= GUESTS_MAX {
                    guests.retain(|guest| {
                        let is_live = guest.grant.is_some_and(|grant| now < grant.until);
                        let stays = is_live || now.since(guest.asked) < ASK_EVERY_MS;
                        if let Some(grant) = guest.grant.filter(|_| !stays) {
                            hairpins.partners.release(grant.partner);
                        }
                        stays
                    });
                }
                if guests.len() >= GUESTS_MAX {
                    return;
                }
                let guest = Guest {
                    peer,
                    asked: now,
                    grant: None,
                };
                let at = guests.partition_point(|guest| guest.peer < peer);
                guests.insert(at, guest);
            }
        }
        let owner = hairpins.owner(name);
        let mail = Mail::HairpinWanted {
            asker: hairpins.shard,
            from: seen,
            to: peer,
        };
        hairpins.mail.push((owner, mail));
    }

    /// Another shard asks how the client of relayed address `to` is reached from relayed address `from`. False if there is
    /// no such client here.
    pub(crate) fn answer_hairpin(&mut self, now: Millis, asker: u16, from: Addr, to: Addr) -> bool {
        let name = self.hairpins.name(to);
        let Some(allocation) = name.and_then(|name| self.hairpins.allocation_at(name)) else {
            return false;
        };
        let hairpins = &mut self.hairpins;
        let Some(relay) = self.relays[allocation as usize].as_deref_mut() else {
            return false;
        };
        let until = relay.permissions.until(from).filter(|until| now < *until);
        let (true, Some(until)) = (hairpins.may_compose(relay.client.egress), until) else {
            return true;
        };
        let watchers = &mut relay.watchers;
        watchers.retain(|watcher| now < watcher.until + WATCH_MS);
        let same =
            |watcher: &&mut Watcher| (watcher.shard, watcher.from, watcher.to) == (asker, from, to);
        if let Some(watcher) = watchers.iter_mut().find(same) {
            watcher.until = until;
        } else if watchers.len() < WATCHERS_MAX {
            watchers.push(Watcher {
                shard: asker,
                from,
                to,
                until,
            });
        } else {
            return true;
        }
        let route = Some(HalfRoute {
            client: relay.client,
            until,
            channel: relay.channels.binding(now, from),
        });
        hairpins
            .mail
            .push((asker, Mail::HairpinRoute { from, to, route }));
        true
    }

    /// Takes in how the client of relayed address `to` is reached from relayed address `from`, which is of this shard. Only what
    /// was asked for is kept.
    pub(crate) fn set_half_route(&mut self, from: Addr, to: Addr, route: Option<HalfRoute>) {
        let hairpins = &mut self.hairpins;
        let sender = hairpins
            .name(from)
            .and_then(|name| hairpins.allocation_at(name));
        let relay = sender.and_then(|sender| self.relays[sender as usize].as_deref_mut());
        let Some(relay) = relay else {
            return;
        };
        let at = relay.guests.binary_search_by_key(&to, |guest| guest.peer);
        let Ok(at) = at else {
            return;
        };
        let grant = route.map(|route| Grant {
            partner: hairpins.partners.take(to, route.client),
            until: route.until,
            channel: route.channel,
        });
        let before = std::mem::replace(&mut relay.guests[at].grant, grant);
        if let Some(before) = before {
            hairpins.partners.release(before.partner);
        }
    }

    /// The way to an allocation's client changed: for one peer, if a channel was bound to it or bound for longer, else for all of
    /// them. Those who use what they were told before are told anew.
    pub(crate) fn tell_watchers(&mut self, now: Millis, allocation: u32, peer: Option<Addr>) {
        let hairpins = &mut self.hairpins;
        let Some(Some(relay)) = self.relays.get_mut(allocation as usize) else {
            return;
        };
        let may_compose = hairpins.may_compose(relay.client.egress);
        let concerned = |watcher: &&mut Watcher| peer.is_none_or(|peer| peer == watcher.from);
        for watcher in relay.watchers.iter_mut().filter(concerned) {
            let (from, to) = (watcher.from, watcher.to);
            let until = relay.permissions.until(from);
            watcher.until = until.unwrap_or(watcher.until);
            let route = until.filter(|_| may_compose).map(|until| HalfRoute {
                client: relay.client,
                until,
                channel: relay.channels.binding(now, from),
            });
            let mail = Mail::HairpinRoute { from, to, route };
            hairpins.mail.push((watcher.shard, mail));
        }
    }

    /// One family of an allocation is about to end: nobody is to send to its client any more.
    pub(in super::super) fn end_hairpins(&mut self, allocation: u32, family: usize) {
        let hairpins = &mut self.hairpins;
        let Some(Some(relay)) = self.relays.get_mut(allocation as usize) else {
            return;
        };
        let of_family = |addr: Addr| usize::from(!addr.is_ipv4()) == family;
        for watcher in relay.watchers.extract_if(.., |w| of_family(w.to)) {
            let mail = Mail::HairpinRoute {
                from: watcher.from,
                to: watcher.to,
                route: None,
            };
            hairpins.mail.push((watcher.shard, mail));
        }
        for guest in relay.guests.extract_if(.., |guest| of_family(guest.peer)) {
            if let Some(grant) = guest.grant {
                hairpins.partners.release(grant.partner);
            }
        }
        hairpins.set_port(family, relay.ports[family], None);
    }

    /// Mail about hairpins since the last call.
    pub(crate) fn hairpin_mail(&mut self) -> std::vec::Drain<'_, (u16, Mail)> {
        self.hairpins.mail.drain(..)
    }

    /// Clients of other shards that somebody here may send to. For tests.
    pub(crate) fn partner_count(&self) -> usize {
        self.hairpins.partners.by_addr.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::HairpinPlan;
    use super::*;
    use crate::addr::ClientAddr;
    use crate::forwarding::{ForwardingCapacity, RelayLimits, SocketIndex};
    use crate::turn::RelayIp;

    // Who is moved by RFC 8016, say, takes along those who send to him from other shards.
    #[test]
    fn whoever_moves_is_followed() {
        let addr = |port| Addr::new(([198, 41, 0, 4], port).into());
        let (main, stream) = (SocketIndex(0), SocketIndex(1));
        let capacity = ForwardingCapacity {
            flows: 0,
            relays: 1,
            listeners: 2,
        };
        let limits = RelayLimits::default();
        let mut table = ForwardingTable::new(capacity, limits, limits, [1; 4]);
        table.plan_hairpins(HairpinPlan {
            relay_ips: vec![RelayIp {
                local: addr(0).ip(),
                external: addr(0).ip(),
            }],
            relay_ports: 50_000..=50_009,
            shard: 0,
            shards: 2,
            composable: vec![true, false],
        });
        let client = ClientAddr(addr(7));
        table.reserve_source(0, main, client);
        table.add_relay(0, main, client, [Some((SocketIndex(2), 50_000)), None]);
        let relay = table.relay(0).unwrap();
        let senders = [addr(50_008), addr(50_009)];
        relay.permissions.grant(senders[0], Millis(500));
        for from in senders {
            assert!(table.answer_hairpin(Millis(0), 1, from, addr(50_000)));
        }
        let told = |table: &mut ForwardingTable| -> Vec<_> {
            let mail = table.hairpin_mail().map(|mail| match mail {
                (1, Mail::HairpinRoute { from, route, .. }) => (from, route.map(|r| r.client)),
                other => panic!("{other:?}"),
            });
            mail.collect()
        };
        let at = |egress, port| {
            let to = addr(port);
            senders.map(|from| (from, Some(Route { egress, to })))
        };
        assert_eq!(told(&mut table), at(main, 7));
        table.relay(0).unwrap().client.to = addr(8);
        table.tell_watchers(Millis(1), 0, None);
        assert_eq!(told(&mut table), at(main, 8));
        table.tell_watchers(Millis(1), 0, Some(senders[1]));
        assert_eq!(told(&mut table), at(main, 8)[1..]);
        // To a stream nobody sends directly.
        table.relay(0).unwrap().client.egress = stream;
        table.tell_watchers(Millis(1), 0, None);
        assert_eq!(told(&mut table), senders.map(|from| (from, None)));
    }
}
