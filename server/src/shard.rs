//! The event loop of one shard: the only file that knows both packets' ways ([`crate::packet_io`]) and their meaning
//! (`waypost_proto`). It decides nothing itself. One turn: receive, decide and forward each datagram, read the mail, let
//! time pass, send what came of it.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::Sender;
use waypost_proto::addr::{Addr, ClientAddr};
use waypost_proto::forwarding::SocketIndex;
use waypost_proto::lobby::door::DoorAnswer;
use waypost_proto::shard::{Shard, Verdict};
use waypost_proto::time::Millis;

use crate::control::counters::{IO_TABLE, PROTOCOL_TABLE, io_values};
use crate::control::metrics::ShardPublisher;
use crate::mailbox::{Mailbox, Post};
use crate::packet_io::{PacketIo, Received, SocketId};

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
    /// The id of each socket by its index in the protocol.
    pub sockets: Vec<SocketId>,
    /// Every shard's mailbox.
    pub mailboxes: Arc<[Mailbox]>,
    /// Answers for the control thread.
    pub answers: Sender<(u64, DoorAnswer)>,
    /// The numbers of this shard.
    pub publisher: ShardPublisher,
    /// The instant that is `Millis(0)`.
    pub epoch: Instant,
}

impl<P: PacketIo> EventLoop<P> {
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
                self.shard
                    .poll_timeout()
                    .map_or(TICK, |at| TICK.min(Duration::from_millis(at.since(now))))
            } else {
                Duration::ZERO
            };
            self.io.turn(Some(timeout))?;
            mailbox.wake_up();
            let woken = Instant::now();
            now = Millis(
                u64::try_from(woken.duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX),
            );
            while let Some(received) = self.io.next() {
                self.handle(now, received);
            }
            for _ in 0..MAIL_PER_TURN {
                match mailbox.take() {
                    Some(Post::Mail(mail)) => self.shard.handle_mail(now, mail),
                    Some(Post::Drain) => self.shard.drain(),
                    Some(Post::Access(access)) => self.shard.set_access(access),
                    Some(Post::Stop) => return Ok(()),
                    None => break,
                }
            }
            self.shard.handle_timeout(now);
            self.flush(&mut undelivered);
            if now.since(Millis(published_ms)) >= PUBLISH_EVERY_MS {
                published_ms = now.0;
                self.publisher.tick(woken, cpu_time());
                self.publisher
                    .publish(IO_TABLE, &io_values(self.io.stats()));
                self.publisher
                    .publish(PROTOCOL_TABLE, self.shard.counters().values());
            }
        }
    }

    fn handle(&mut self, now: Millis, received: Received) {
        let Received { socket, from, buf } = received;
        let Some(index) = self.sockets.iter().position(|id| *id == socket) else {
            return;
        };
        let index = SocketIndex(u16::try_from(index).expect("a shard has few sockets"));
        let source = ClientAddr(Addr::new(from));
        let payload = self.io.payload(&buf);
        if let Verdict::Forward(forward) = self.shard.handle_datagram(now, index, source, payload) {
            let egress = self.sockets[usize::from(forward.route.egress.0)];
            self.io.forward(
                buf,
                forward.strip,
                &forward.header,
                egress,
                forward.route.to.to_socket_addr(),
            );
        }
    }

    /// Sends what the protocol wants sent. Mail that must arrive waits here if the other mailbox is full.
    fn flush(&mut self, undelivered: &mut VecDeque<(u16, Post)>) {
        while let Some((shard, post)) = undelivered.pop_front() {
            if let Err(post) = self.mailboxes[usize::from(shard)].post(post) {
                undelivered.push_front((shard, post));
                break;
            }
        }
        let outbox = self.shard.outbox();
        for transmit in &outbox.transmits {
            let socket = self.sockets[usize::from(transmit.socket.0)];
            self.io.send(
                socket,
                transmit.to.to_socket_addr(),
                &outbox.bytes[transmit.start..transmit.end],
            );
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

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}
