//! The event loop of one shard: the only file that knows both packets' ways ([`crate::packet_io`]) and their meaning
//! (`waypost_proto`). It decides nothing itself. One turn: receive, read the mail, decide and forward each datagram, let
//! time pass, send what came of it.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::Sender;
use waypost_proto::addr::{Addr, ClientAddr};
use waypost_proto::lobby::door::DoorAnswer;
use waypost_proto::shard::{Shard, Verdict};
use waypost_proto::time::Millis;
use waypost_proto::turn::{IcmpError, RelayCommand, RelayRefusal};

use crate::control::counters::{IO_TABLE, PROTOCOL_TABLE, STREAM_TABLE, io_values};
use crate::control::metrics::ShardPublisher;
use crate::mailbox::{Mailbox, Post, StreamFrame};
use crate::packet_io::{
    PeerError, Received, StreamIo, UdpOptions, bind_udp, report_peer_errors, thread_cpu_time,
};
use crate::streams::{Staged, Streams, Urgency};

mod noray_times;
mod socket_map;
mod stream_turn;

pub use noray_times::NorayTimes;
pub use socket_map::SocketMap;

/// A shard shows that it lives at least this often.
const TICK: Duration = Duration::from_millis(500);
/// Numbers are published this often at most.
const PUBLISH_EVERY_MS: u64 = 100;
/// Messages read per turn, so that mail cannot starve packets.
const MAIL_PER_TURN: usize = 1024;

/// One shard at work.
pub struct EventLoop<P> {
    /// Packet input and output.
    pub io: P,
    /// The protocol.
    pub shard: Shard,
    /// The number of this shard.
    pub index: usize,
    /// What the protocol calls each socket.
    pub sockets: SocketMap,
    /// TCP and TLS clients.
    pub streams: Streams,
    /// Packets that came on the stream whose turn it is.
    pub staged: Staged,
    /// Answers and events for streams of other shards, until the mail is posted.
    pub for_streams: Vec<(u16, Post)>,
    /// Every shard's mailbox.
    pub mailboxes: Arc<[Mailbox]>,
    /// Answers for the control thread.
    pub answers: Sender<(u64, DoorAnswer)>,
    /// The numbers of this shard.
    pub publisher: ShardPublisher,
    /// The instant that is `Millis(0)`.
    pub epoch: Instant,
    /// How long noray's commands and packets take, on the shard that serves it.
    pub noray_times: Option<NorayTimes>,
}

impl<P: StreamIo> EventLoop<P> {
    /// Runs until [`Post::Stop`] comes.
    ///
    /// # Errors
    /// Only what leaves the packet backend unusable.
    pub fn run(mut self) -> io::Result<()> {
        let mailboxes = Arc::clone(&self.mailboxes);
        let mailbox = &mailboxes[self.index];
        let mut undelivered = VecDeque::new();
        let mut published_ms = 0;
        let mut now = Millis(0);
        loop {
            let timeout = if mailbox.fall_asleep() && undelivered.is_empty() {
                let timers = [self.shard.poll_timeout(), self.streams.poll_timeout(now)];
                let next = timers.into_iter().flatten().min();
                next.map_or(TICK, |at| TICK.min(Duration::from_millis(at.since(now))))
            } else {
                Duration::ZERO
            };
            self.io.turn(Some(timeout))?;
            mailbox.wake_up();
            let woken = Instant::now();
            now = Millis(
                u64::try_from(woken.duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX),
            );
            // Before the packets: whoever was told by another shard what this one has to know first may have sent already.
            for _ in 0..MAIL_PER_TURN {
                match mailbox.take() {
                    Some(Post::Mail(mail)) => self.shard.handle_mail(now, mail),
                    Some(Post::Drain) => self.shard.drain(),
                    Some(Post::Access(access, secrets)) => {
                        self.shard.set_access(access);
                        self.shard.set_turn_secrets(secrets);
                    }
                    Some(Post::ToStream(frame)) => {
                        self.send_to_stream(now, &frame, Urgency::Control);
                    }
                    Some(Post::Tls(tls)) => self.streams.set_tls(tls),
                    Some(Post::Stop) => {
                        self.publish(woken);
                        return Ok(());
                    }
                    None => break,
                }
            }
            while let Some(received) = self.io.next() {
                self.handle(now, received);
            }
            if let Some(times) = &mut self.noray_times {
                let received = self.io.stats().datagrams_received;
                times.look_at_packets(&self.shard, &self.publisher, received, woken);
            }
            while let Some(error) = self.io.next_error() {
                self.handle_error(now, error);
            }
            self.serve_streams(now);
            for _ in 0..MAIL_PER_TURN {
                match mailbox.take_frame() {
                    Some(frame) => self.send_to_stream(now, &frame, Urgency::Relayed),
                    None => break,
                }
            }
            self.end_streams(now);
            self.shard.handle_timeout(now);
            self.carry_out_relay_commands(now);
            self.flush(now, &mut undelivered);
            self.end_heard_streams(now);
            if now.since(Millis(published_ms)) >= PUBLISH_EVERY_MS {
                published_ms = now.0;
                self.publish(woken);
            }
        }
    }

    /// Shows the numbers to whoever wants to know, and that this shard lives.
    fn publish(&mut self, woken: Instant) {
        self.publisher.tick(woken, thread_cpu_time());
        self.publisher
            .publish(IO_TABLE, &io_values(self.io.stats()));
        self.publisher
            .publish(PROTOCOL_TABLE, self.shard.counters().values());
        self.publisher
            .publish(STREAM_TABLE, &self.streams.counters().values());
    }

    /// Deals with what came by streams, among it noray's commands.
    fn serve_streams(&mut self, now: Millis) {
        let began = self.noray_times.is_some().then(Instant::now);
        self.handle_stream_events(now);
        if let (Some(times), Some(began)) = (&mut self.noray_times, began) {
            times.look_at_commands(&self.shard, &self.publisher, began);
        }
    }

    fn handle(&mut self, now: Millis, received: Received) {
        let Received {
            socket,
            from,
            mut buf,
        } = received;
        let Some(index) = self.sockets.index(socket) else {
            return;
        };
        let source = ClientAddr(Addr::new(from));
        let payload = self.io.payload(&buf);
        let Verdict::Forward(forward) = self.shard.handle_datagram(now, index, source, payload)
        else {
            return;
        };
        let Some(egress) = self.sockets.id(forward.route.egress) else {
            self.forward_to_stream(now, &forward, &buf);
            return;
        };
        let frame = forward.frame();
        let len = forward.strip + forward.payload_len + frame.padding();
        if len != buf.len() {
            self.io.resize(&mut buf, len);
        }
        let to = forward.route.to.to_socket_addr();
        if forward.dont_fragment {
            self.io
                .forward_whole(buf, forward.strip, frame.header(), egress, to);
        } else {
            self.io
                .forward(buf, forward.strip, frame.header(), egress, to);
        }
    }

    fn handle_error(&mut self, now: Millis, error: PeerError) {
        if let Some(index) = self.sockets.index(error.socket) {
            let PeerError {
                kind, code, mtu, ..
            } = error;
            let icmp = IcmpError { kind, code, mtu };
            self.shard
                .handle_icmp(now, index, Addr::new(error.peer), icmp);
        }
    }

    /// Opens and closes relay sockets until the protocol has no more wishes.
    fn carry_out_relay_commands(&mut self, now: Millis) {
        loop {
            let mut commands = std::mem::take(&mut self.shard.outbox().relay);
            for command in commands.drain(..) {
                match command {
                    RelayCommand::Open {
                        socket,
                        at,
                        is_wide,
                    } => {
                        let opened = bind_udp(at.to_socket_addr(), &UdpOptions::default())
                            .and_then(|bound| {
                                report_peer_errors(&bound, at.ip().is_ipv6())?;
                                if is_wide {
                                    self.io.add_wide_socket(bound)
                                } else {
                                    self.io.add_socket(bound)
                                }
                            });
                        let outcome = match opened {
                            Ok(id) => {
                                self.sockets.insert(socket, id);
                                Ok(())
                            }
                            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                                Err(RelayRefusal::InUse)
                            }
                            Err(_) => Err(RelayRefusal::Impossible),
                        };
                        self.shard.handle_relay_opened(now, socket, outcome);
                    }
                    RelayCommand::Close { socket } => {
                        if let Some(id) = self.sockets.remove(socket) {
                            self.io.remove_socket(id);
                        }
                    }
                }
            }
            let further = &mut self.shard.outbox().relay;
            if further.is_empty() {
                // Its room is used again.
                *further = commands;
                return;
            }
        }
    }

    /// Sends what the protocol wants sent. Mail that must arrive waits here if the other mailbox is full.
    fn flush(&mut self, now: Millis, undelivered: &mut VecDeque<(u16, Post)>) {
        while let Some((shard, post)) = undelivered.pop_front() {
            if let Err(post) = self.mailboxes[usize::from(shard)].post(post) {
                undelivered.push_front((shard, post));
                break;
            }
        }
        let outbox = self.shard.outbox();
        for transmit in &outbox.transmits {
            let bytes = &outbox.bytes[transmit.start..transmit.end];
            if let Some(socket) = self.sockets.id(transmit.socket) {
                let to = transmit.to.to_socket_addr();
                if transmit.dont_fragment {
                    self.io.send_whole(socket, to, bytes);
                } else {
                    self.io.send(socket, to, bytes);
                }
                continue;
            }
            let at = (transmit.socket, transmit.to);
            let Some(shard) = self.streams.owner(transmit.socket) else {
                continue;
            };
            if usize::from(shard) == self.index {
                let urgency = Urgency::Control;
                self.streams.send(now, &mut self.io, at, bytes, urgency);
            } else {
                let (socket, to) = at;
                let bytes = bytes.into();
                let post = Post::ToStream(StreamFrame { socket, to, bytes });
                self.for_streams.push((shard, post));
            }
        }
        let mut lost = 0;
        for (shard, mail) in outbox.mail.drain(..) {
            let may_be_dropped = mail.may_be_dropped();
            let post = Post::Mail(mail);
            // What must arrive must also arrive in order.
            let refused = if undelivered.is_empty() || may_be_dropped {
                self.mailboxes[usize::from(shard)].post(post).err()
            } else {
                Some(post)
            };
            match refused {
                Some(_) if may_be_dropped => lost += 1,
                Some(post) => undelivered.push_back((shard, post)),
                None => {}
            }
        }
        // After the mail: who is told of a seat may use it at once, so what makes it usable comes first. What this shard
        // sends itself leaves with the next turn, which is after the mail too.
        for (shard, post) in self.for_streams.drain(..) {
            let refused = if undelivered.is_empty() {
                self.mailboxes[usize::from(shard)].post(post).err()
            } else {
                Some(post)
            };
            undelivered.extend(refused.map(|post| (shard, post)));
        }
        for answer in outbox.door.drain(..) {
            // Nobody listens any more only when the process ends.
            let _ = self.answers.send(answer);
        }
        outbox.clear();
        if lost > 0 {
            self.shard.count_lost_mail(lost);
        }
    }
}
