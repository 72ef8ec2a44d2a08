//! TURN clients that the kernel brings to another shard than their allocation's, because they moved (RFC 8016). Their
//! datagrams go by mail, and only theirs.

use super::{Shard, Verdict};
use crate::addr::ClientAddr;
use crate::forwarding::SocketIndex;
use crate::lobby::Mail;
use crate::stats::Counter;
use crate::time::Millis;

impl Shard {
    /// Mails a datagram to the shard that has its sender's allocation, if that is another. Mail is not passed on again.
    pub(super) fn pass_on(
        &mut self,
        socket: SocketIndex,
        source: ClientAddr,
        datagram: &[u8],
    ) -> bool {
        let Some(owner) = self.forwarding.owner_of_guest(socket, source) else {
            return false;
        };
        if self.home != self.index {
            return false;
        }
        self.counters.count(Counter::GuestPackets);
        let mail = Mail::FromGuest {
            socket,
            source,
            home: self.index,
            bytes: datagram.into(),
        };
        self.outbox.mail.push((owner, mail));
        true
    }

    /// A datagram that the shard `home` got from a client whose allocation is here.
    pub(super) fn handle_guest(
        &mut self,
        now: Millis,
        socket: SocketIndex,
        source: ClientAddr,
        home: u16,
        datagram: &[u8],
    ) {
        self.home = home;
        let verdict = self.handle_datagram(now, socket, source, datagram);
        self.home = self.index;
        let Verdict::Forward(forward) = verdict else {
            return;
        };
        let frame = forward.frame();
        let start = self.outbox.bytes.len();
        let out = &mut self.outbox.bytes;
        out.extend_from_slice(frame.header());
        out.extend_from_slice(&datagram[forward.strip..forward.strip + forward.payload_len]);
        out.resize(out.len() + frame.padding(), 0);
        self.outbox
            .transmit(forward.route.egress, forward.route.to, start);
    }
}
