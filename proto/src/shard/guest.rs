//! TURN clients that the kernel brings to another shard than their allocation's, because they moved (RFC 8016). Their
//! datagrams go by mail, and only theirs.

use super::{Shard, Verdict};
use crate::addr::ClientAddr;
use crate::forwarding::SocketIndex;
use crate::lobby::{Mail, StreamSerial, Transmit};
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
            stream: self.streams.serial(socket, source),
            bytes: datagram.into(),
        };
        self.outbox.mail.push((owner, mail));
        true
    }

    /// A datagram that the shard `home` got from a client whose allocation is here, by a stream perhaps.
    pub(super) fn handle_guest(
        &mut self,
        now: Millis,
        socket: SocketIndex,
        source: ClientAddr,
        (home, stream): (u16, Option<StreamSerial>),
        datagram: &[u8],
    ) {
        (self.home, self.by_stream) = (home, stream);
        let verdict = self.handle_datagram(now, socket, source, datagram);
        (self.home, self.by_stream) = (self.index, None);
        let Verdict::Forward(forward) = verdict else {
            return;
        };
        let frame = forward.frame();
        let start = self.outbox.bytes.len();
        let out = &mut self.outbox.bytes;
        out.extend_from_slice(frame.header());
        out.extend_from_slice(&datagram[forward.strip..forward.strip + forward.payload_len]);
        out.resize(out.len() + frame.padding(), 0);
        let end = out.len();
        self.outbox.transmits.push(Transmit {
            socket: forward.route.egress,
            to: forward.route.to,
            dont_fragment: forward.dont_fragment,
            start,
            end,
        });
    }

    /// Takes in a client whose allocation the shard `owner` has, and gives it the answer that tells it so. If the stream that
    /// it asked by has ended, nobody is there, and the owner is told.
    pub(super) fn add_guest(
        &mut self,
        socket: SocketIndex,
        source: ClientAddr,
        owner: u16,
        stream: Option<StreamSerial>,
        answer: &[u8],
    ) {
        if let Some(stream) = stream
            && self.streams.serial(socket, source) != Some(stream)
        {
            self.mail_guest_stream_ended(owner, socket, source, stream);
            return;
        }
        self.forwarding.add_guest(socket, source, owner);
        let start = self.outbox.bytes.len();
        self.outbox.bytes.extend_from_slice(answer);
        self.outbox.transmit(socket, source.0, start);
    }

    /// Tells the owner of an allocation that its client is not there any more.
    pub(super) fn mail_guest_stream_ended(
        &mut self,
        owner: u16,
        socket: SocketIndex,
        source: ClientAddr,
        stream: StreamSerial,
    ) {
        let mail = Mail::GuestStreamEnded {
            socket,
            source,
            stream,
        };
        self.outbox.mail.push((owner, mail));
    }
}
