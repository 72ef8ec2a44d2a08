//! What is done to an allocation that is there: Refresh, CreatePermission, ChannelBind and Send indications.

use super::DELETED;
use super::allocation::{Allocation, Family};
use super::channel::{CHANNEL_SECS, NotBound};
use super::{
    Outcome, Reject, Request, Step, TurnService, granted_lifetime, lifetime, requested_family,
};
use crate::addr::ClientAddr;
use crate::forwarding::{Forward, ForwardingTable, Framing, NotForwarded, SocketIndex};
use crate::lobby::Mail;
use crate::stats::Counter;
use crate::time::Millis;
use crate::wire::channel_data::ChannelNumber;
use crate::wire::stun::{self, HEADER_LEN, Message, TransactionId, attr, method};

impl TurnService {
    /// Has an authenticated request served.
    pub(super) fn dispatch(&mut self, step: &mut Step<'_>, request: &Request<'_>) -> Outcome {
        let is_by_mail = step.home != self.shard;
        if request.message.method() == method::ALLOCATE {
            if is_by_mail
                && step
                    .forwarding
                    .allocation_of(request.reply.socket, request.source)
                    .is_none()
            {
                // The allocation just ended, and the shard that got this is being told: the repetition will be served there.
                return Ok(());
            }
            return self.handle_allocate(step, request);
        }
        let allocation = step
            .forwarding
            .allocation_of(request.reply.socket, request.source);
        let Some(index) = allocation else {
            if request.message.method() == method::REFRESH
                && self.deleted.contains(&self.deletion(
                    request.reply.socket,
                    request.source,
                    request.reply.id,
                ))
            {
                answer_lifetime(step, request, 0, None);
                return Ok(());
            }
            return match request.message.find(attr::MOBILITY_TICKET) {
                Some(sealed) if request.message.method() == method::REFRESH => {
                    self.handle_move(step, request, sealed)
                }
                _ => Err(Reject(437)),
            };
        };
        let allocation = self
            .allocations
            .get(index)
            .expect("an indexed allocation is there");
        if allocation.user != request.user {
            return Err(Reject(441));
        }
        if allocation.opening.is_some() {
            // The client has not heard of it yet; it will repeat this.
            return Ok(());
        }
        if self.repeats_move(request, index) {
            let allocation = self.allocations.get(index).ok_or(Reject(437))?;
            let wish = allocation.refresh_wish(request.message)?;
            self.refresh(step, request, index, wish);
            return Ok(());
        }
        let client = self
            .allocations
            .get(index)
            .map(|allocation| (allocation.socket, allocation.client));
        if client != Some((request.reply.socket, request.source)) {
            self.handle_arrival(step, index);
        }
        match request.message.method() {
            method::REFRESH => self.handle_refresh(step, request, index),
            method::CREATE_PERMISSION => self.handle_create_permission(step, request, index),
            _ => self.handle_channel_bind(step, request, index),
        }
    }

    /// Refresh (RFC 8656 section 8.2).
    fn handle_refresh(
        &mut self,
        step: &mut Step<'_>,
        request: &Request<'_>,
        index: u32,
    ) -> Outcome {
        self.check_ticket(step, request, index)?;
        let allocation = self.allocations.get(index).ok_or(Reject(437))?;
        let wish = allocation.refresh_wish(request.message)?;
        self.refresh(step, request, index, wish);
        Ok(())
    }

    /// Does what a Refresh asks for, and answers.
    pub(super) fn refresh(
        &mut self,
        step: &mut Step<'_>,
        request: &Request<'_>,
        index: u32,
        wish: RefreshWish,
    ) {
        let RefreshWish {
            requested_secs,
            family,
        } = wish;
        let families = Family::ALL
            .into_iter()
            .filter(|of| family.is_none_or(|family| family == *of));
        if requested_secs == Some(0) {
            let (socket, source, id) = (request.reply.socket, request.source, request.reply.id);
            self.note_deletion(socket, source, id);
            if step.home != self.shard {
                let mail = Mail::GuestLeft { socket, source, id };
                step.out.mail.push((step.home, mail));
            }
            families.for_each(|family| self.close_family(step, index, family));
            answer_lifetime(step, request, 0, None);
            return;
        }
        let granted = granted_lifetime(requested_secs);
        let until = step.now.plus_secs(granted);
        for family in families {
            let allocation = self.allocations.get(index).expect("the caller found it");
            if let Some(relayed) = &mut allocation.relayed[family.place()] {
                relayed.until = until;
            }
        }
        self.set_timer(step, index);
        let shows_ticket = request.message.find(attr::MOBILITY_TICKET).is_some();
        let ticket = shows_ticket.then(|| self.ticket(step, index)).flatten();
        answer_lifetime(
            step,
            request,
            granted,
            ticket.as_ref().map(<[u8; _]>::as_slice),
        );
    }

    /// What tells a deletion from others.
    fn deletion(&self, socket: SocketIndex, source: ClientAddr, id: TransactionId) -> u64 {
        self.hasher.hash_one((socket, source, id))
    }

    /// Remembers a request that ended an allocation, so that its repetition gets the same answer.
    pub fn note_deletion(&mut self, socket: SocketIndex, source: ClientAddr, id: TransactionId) {
        let deletion = self.deletion(socket, source, id);
        self.deleted[self.next_deleted] = deletion;
        self.next_deleted = (self.next_deleted + 1) % DELETED;
    }

    /// CreatePermission (RFC 8656 section 10.2).
    fn handle_create_permission(
        &mut self,
        step: &mut Step<'_>,
        request: &Request<'_>,
        index: u32,
    ) -> Outcome {
        let id = request.message.transaction_id();
        let mut peers = Vec::new();
        for attribute in request.message.attributes() {
            if attribute.kind == attr::XOR_PEER_ADDRESS {
                peers.push(stun::decode_xor_addr(attribute.value, id).ok_or(Reject(400))?);
            }
        }
        if peers.is_empty() {
            return Err(Reject(400));
        }
        if !peers.iter().all(|peer| self.policy.may_permit(peer.ip())) {
            return Err(Reject(403));
        }
        let relay = step.forwarding.relay(index).ok_or(Reject(437))?;
        if !peers.iter().all(|peer| relay.serves_family_of(*peer)) {
            return Err(Reject(443));
        }
        let capacity = self.config.permissions_max;
        if !relay.permissions.has_room(step.now, &peers, capacity) {
            return Err(Reject(508));
        }
        let until = self.permission_until(step.now);
        for peer in peers {
            relay.permissions.grant(peer, until);
        }
        request.reply.success(step, |_| {});
        Ok(())
    }

    /// ChannelBind (RFC 8656 section 12.2).
    fn handle_channel_bind(
        &mut self,
        step: &mut Step<'_>,
        request: &Request<'_>,
        index: u32,
    ) -> Outcome {
        let number = match request.message.find(attr::CHANNEL_NUMBER) {
            Some(&[high, low, _, _]) => {
                let number = u16::from_be_bytes([high, low]);
                if self.config.serves_rfc5766 {
                    ChannelNumber::new_rfc5766(number)
                } else {
                    ChannelNumber::new(number)
                }
            }
            _ => None,
        }
        .ok_or(Reject(400))?;
        let peer = request
            .message
            .find_xor_addr(attr::XOR_PEER_ADDRESS)
            .ok_or(Reject(400))?;
        if !self.policy.may_relay_to(peer) {
            return Err(Reject(403));
        }
        let relay = step.forwarding.relay(index).ok_or(Reject(437))?;
        if !relay.serves_family_of(peer) {
            return Err(Reject(443));
        }
        let capacity = self.config.channels_max;
        match relay.channels.check(step.now, number, peer, capacity) {
            Ok(()) => {}
            Err(NotBound::Conflict) => return Err(Reject(400)),
            Err(NotBound::Full) => return Err(Reject(508)),
        }
        let capacity = self.config.permissions_max;
        if !relay.permissions.has_room(step.now, &[peer], capacity) {
            return Err(Reject(508));
        }
        relay
            .permissions
            .grant(peer, self.permission_until(step.now));
        relay
            .channels
            .bind(number, peer, step.now.plus_secs(CHANNEL_SECS));
        step.forwarding.tell_watchers(step.now, index, Some(peer));
        request.reply.success(step, |_| {});
        Ok(())
    }

    /// A Send indication (RFC 8656 section 11.2). What is wrong with one is never answered.
    pub fn handle_send(
        &mut self,
        now: Millis,
        forwarding: &mut ForwardingTable,
        socket: SocketIndex,
        source: ClientAddr,
        message: &Message<'_>,
    ) -> Result<Forward, Counter> {
        let allocation = forwarding
            .sender(socket, source)
            .ok_or(Counter::DropNoFlow)?;
        let mut peer = None;
        let mut data = None;
        let mut dont_fragment = false;
        for attribute in message.attributes() {
            match attribute.kind {
                attr::XOR_PEER_ADDRESS if peer.is_none() => {
                    let id = message.transaction_id();
                    let decoded = stun::decode_xor_addr(attribute.value, id);
                    peer = Some(decoded.ok_or(Counter::DropParse)?);
                }
                attr::DATA if data.is_none() => data = Some(attribute),
                attr::DONT_FRAGMENT => dont_fragment = true,
                kind if kind < 0x8000 && !is_known(kind) => return Err(Counter::DropParse),
                _ => {}
            }
        }
        let (Some(peer), Some(data)) = (peer, data) else {
            return Err(Counter::DropParse);
        };
        if !self.policy.may_relay_to(peer) {
            return Err(Counter::DropPeerDenied);
        }
        let strip = HEADER_LEN + data.at + 4;
        let mut forward = forwarding
            .forward_to_peer(now, allocation, peer, strip, data.value.len())
            .map_err(NotForwarded::counter)?;
        // It is about the way to a peer; to a client data may go in fragments.
        forward.dont_fragment = dont_fragment && forward.framing == Framing::Raw;
        Ok(forward)
    }
}

/// What a Refresh asks for.
#[derive(Clone, Copy)]
pub(super) struct RefreshWish {
    pub requested_secs: Option<u32>,
    /// The one family it is about.
    family: Option<Family>,
}

impl Allocation {
    pub(super) fn refresh_wish(&self, message: &Message<'_>) -> Result<RefreshWish, Reject> {
        let requested_secs = lifetime(message)?;
        let family = requested_family(message, attr::REQUESTED_ADDRESS_FAMILY)?;
        if family.is_some_and(|family| self.relayed[family.place()].is_none()) {
            return Err(Reject(443));
        }
        Ok(RefreshWish {
            requested_secs,
            family,
        })
    }
}

/// Tells the seconds that are left, and the next ticket of a mobile client.
fn answer_lifetime(step: &mut Step<'_>, request: &Request<'_>, secs: u32, ticket: Option<&[u8]>) {
    request.reply.success(step, |writer| {
        writer.u32(attr::LIFETIME, secs);
        if let Some(ticket) = ticket {
            writer.attribute(attr::MOBILITY_TICKET, ticket);
        }
    });
}

/// The comprehension-required attributes that this server understands.
pub(super) const fn is_known(kind: u16) -> bool {
    matches!(
        kind,
        attr::MAPPED_ADDRESS
            | attr::USERNAME
            | attr::MESSAGE_INTEGRITY
            | attr::ERROR_CODE
            | attr::UNKNOWN_ATTRIBUTES
            | attr::CHANNEL_NUMBER
            | attr::LIFETIME
            | attr::XOR_PEER_ADDRESS
            | attr::DATA
            | attr::REALM
            | attr::NONCE
            | attr::XOR_RELAYED_ADDRESS
            | attr::REQUESTED_ADDRESS_FAMILY
            | attr::EVEN_PORT
            | attr::REQUESTED_TRANSPORT
            | attr::MESSAGE_INTEGRITY_SHA256
            | attr::PASSWORD_ALGORITHM
            | attr::USERHASH
            | attr::XOR_MAPPED_ADDRESS
            | attr::RESERVATION_TOKEN
            | attr::DONT_FRAGMENT
    )
}
