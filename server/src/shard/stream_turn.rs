//! What a turn does about streams: who connected, what they sent, who is gone, and packets that leave by one.

use waypost_proto::addr::{Addr, ClientAddr};
use waypost_proto::forwarding::{Forward, SocketIndex};
use waypost_proto::shard::Verdict;
use waypost_proto::time::Millis;

use super::EventLoop;
use crate::mailbox::StreamFrame;
use crate::packet_io::{RecvBuf, StreamBytes, StreamEvent, StreamId, StreamIo};
use crate::streams::{End, Urgency};

impl<P: StreamIo> EventLoop<P> {
    pub(super) fn handle_stream_events(&mut self, now: Millis) {
        while let Some(event) = self.io.next_stream_event() {
            match event {
                StreamEvent::Accepted {
                    listener,
                    stream,
                    peer,
                } => {
                    let socket = self.streams.socket_of(listener);
                    let source = ClientAddr(Addr::new(peer));
                    // The kernel let the client connect again, so the connection that it had is dead.
                    if let Some(before) = self.streams.at(socket, source.0) {
                        self.end_stream(now, before, End::Peer);
                    }
                    if self.streams.accept(now, listener, stream, source) {
                        self.shard.handle_stream_opened(now, socket, source);
                    } else {
                        self.io.close_stream(stream, false);
                    }
                }
                StreamEvent::Received { stream, bytes } => {
                    self.receive_from_stream(now, stream, &bytes);
                }
                StreamEvent::Ended { stream } => self.hear_last_of_stream(now, stream),
            }
        }
    }

    fn receive_from_stream(&mut self, now: Millis, stream: StreamId, bytes: &StreamBytes) {
        let Some(connection) = self.streams.get(stream) else {
            return;
        };
        let (socket, source) = (connection.socket(), connection.peer());
        let (shard, staged) = (&mut self.shard, &mut self.staged);
        let mut too_large = 0;
        let outcome = connection.receive(now, self.io.stream_bytes(bytes), |message| {
            if let Verdict::Forward(forward) = shard.handle_datagram(now, socket, source, message)
                && !staged.push(&forward, message)
            {
                too_large += 1;
            }
        });
        // Handshakes and alerts; what found no room is offered again.
        let _ = connection.flush(&mut self.io, stream);
        self.streams.wait_for_room(now, stream);
        self.streams.count_too_large(too_large);
        self.send_staged(now);
        if let Err(end) = outcome {
            self.end_stream(now, stream, end);
        }
    }

    /// Sends on what a stream's messages became.
    fn send_staged(&mut self, now: Millis) {
        let mut staged = std::mem::take(&mut self.staged);
        for &packet in staged.packets() {
            let (egress, to) = (packet.route.egress, packet.route.to);
            match self.sockets.id(egress) {
                Some(id) => {
                    let datagram = staged.datagram(packet);
                    self.io.send(id, to.to_socket_addr(), datagram);
                }
                None => self.relay_to_stream(now, egress, to, staged.frame(packet)),
            }
        }
        staged.clear();
        self.staged = staged;
    }

    /// Relays a datagram to a client that came by TCP.
    pub(super) fn forward_to_stream(&mut self, now: Millis, forward: &Forward, buf: &RecvBuf) {
        if self.streams.owner(forward.route.egress).is_some() {
            if !self.staged.push(forward, self.io.payload(buf)) {
                self.streams.count_too_large(1);
            }
            self.send_staged(now);
        }
    }

    /// Sends a relayed packet by a stream, here or on the shard that has it.
    fn relay_to_stream(&mut self, now: Millis, egress: SocketIndex, to: Addr, frame: &[u8]) {
        let Some(shard) = self.streams.owner(egress).map(usize::from) else {
            return;
        };
        if shard == self.index {
            let (streams, io) = (&mut self.streams, &mut self.io);
            streams.send(now, io, (egress, to), frame, Urgency::Relayed);
            return;
        }
        let posted = self.mailboxes[shard].post_frame(StreamFrame {
            socket: egress,
            to,
            bytes: frame.into(),
        });
        if !posted {
            self.streams.count_mailbox_full();
        }
    }

    /// Sends what another shard has for a stream of this one.
    pub(super) fn send_to_stream(&mut self, now: Millis, frame: &StreamFrame, urgency: Urgency) {
        let at = (frame.socket, frame.to);
        let (streams, io) = (&mut self.streams, &mut self.io);
        streams.send(now, io, at, &frame.bytes, urgency);
    }

    /// Closes the streams whose time has come.
    pub(super) fn end_streams(&mut self, now: Millis) {
        let shard = &self.shard;
        self.streams
            .handle_timeout(now, &mut self.io, |socket, source| {
                shard.serves(now, socket, source)
            });
        while let Some((stream, end)) = self.streams.take_doomed() {
            self.end_stream(now, stream, end);
        }
    }

    /// A client sends nothing more. One that speaks in lines may have sent the last one without an end.
    fn hear_last_of_stream(&mut self, now: Millis, stream: StreamId) {
        let connection = self.streams.get(stream);
        match connection.filter(|connection| connection.is_raw()) {
            Some(connection) => {
                let (socket, source) = (connection.socket(), connection.peer());
                self.shard.handle_stream_ended(now, socket, source);
                self.streams.end_after_flush(stream);
            }
            None => self.end_stream(now, stream, End::Peer),
        }
    }

    /// Closes the streams whose clients have been sent all that there was for them.
    pub(super) fn end_heard_streams(&mut self, now: Millis) {
        while let Some(stream) = self.streams.take_heard() {
            self.end_stream(now, stream, End::Peer);
        }
    }

    fn end_stream(&mut self, now: Millis, stream: StreamId, end: End) {
        if let Some((socket, source, flushes)) = self.streams.remove(stream, end) {
            self.io.close_stream(stream, flushes);
            self.shard.handle_stream_closed(now, socket, source);
        }
    }
}
