//! How shards and the control thread write to a shard: two bounded lock-free queues per shard, one of them for packets that
//! may be dropped, and a doorbell that is rung only when its owner sleeps. Nothing is decided here and nothing blocks.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crossbeam::queue::ArrayQueue;
use rustls::ServerConfig;
use waypost_proto::addr::Addr;
use waypost_proto::forwarding::SocketIndex;
use waypost_proto::lobby::Mail;
use waypost_proto::shard::RendezvousAccess;

use crate::packet_io::Doorbell;

/// Messages that wait for one shard at most.
const CAPACITY: usize = 8192;

/// Relayed packets that wait for one shard's streams at most, and their bytes.
const FRAMES_MAX: usize = 4096;
const FRAME_BYTES_MAX: usize = 4 << 20;

/// What is to be sent to a stream of the shard that gets it: a packet cannot leave by another shard's stream as it can by
/// another shard's port.
#[derive(Debug)]
pub struct StreamFrame {
    /// The stream's listener.
    pub socket: SocketIndex,
    /// The stream's client.
    pub to: Addr,
    /// What is sent, padding included.
    pub bytes: Box<[u8]>,
}

/// What can be in a mailbox.
#[derive(Debug)]
pub enum Post {
    /// For the protocol.
    Mail(Mail),
    /// Seat nobody new from now on.
    Drain,
    /// Change who may use the rendezvous, and the secrets of time-limited TURN credentials.
    Access(RendezvousAccess, Vec<Box<[u8]>>),
    /// An answer or event of another shard for a client of one of this shard's streams.
    ToStream(StreamFrame),
    /// Serve new TLS clients with this certificate.
    Tls(Option<Arc<ServerConfig>>),
    /// End the shard's thread.
    Stop,
}

/// The mailbox of one shard.
#[derive(Debug)]
pub struct Mailbox {
    queue: ArrayQueue<Post>,
    frames: ArrayQueue<StreamFrame>,
    frame_bytes: AtomicUsize,
    asleep: AtomicBool,
    doorbell: OnceLock<Doorbell>,
}

impl Default for Mailbox {
    fn default() -> Self {
        Self {
            queue: ArrayQueue::new(CAPACITY),
            frames: ArrayQueue::new(FRAMES_MAX),
            frame_bytes: AtomicUsize::new(0),
            asleep: AtomicBool::new(false),
            doorbell: OnceLock::new(),
        }
    }
}

impl Mailbox {
    /// Says how the owner is woken. Called once, by the owner, before it first sleeps.
    pub fn install_doorbell(&self, doorbell: Doorbell) {
        let _ = self.doorbell.set(doorbell);
    }

    /// Leaves a message and wakes the owner if it sleeps.
    ///
    /// # Errors
    /// Gives the message back if the mailbox is full.
    pub fn post(&self, post: Post) -> Result<(), Post> {
        self.queue.push(post)?;
        self.wake();
        Ok(())
    }

    /// Leaves a relayed packet and wakes the owner if it sleeps. False if there are too many already: then it is lost.
    #[must_use]
    pub fn post_frame(&self, frame: StreamFrame) -> bool {
        let len = frame.bytes.len();
        let waiting = self.frame_bytes.fetch_add(len, Ordering::Relaxed);
        if waiting + len > FRAME_BYTES_MAX || self.frames.push(frame).is_err() {
            self.frame_bytes.fetch_sub(len, Ordering::Relaxed);
            return false;
        }
        self.wake();
        true
    }

    /// Takes the next relayed packet. For the owner only.
    #[must_use]
    #[inline]
    pub fn take_frame(&self) -> Option<StreamFrame> {
        if self.frames.is_empty() {
            return None;
        }
        let frame = self.frames.pop()?;
        self.frame_bytes
            .fetch_sub(frame.bytes.len(), Ordering::Relaxed);
        Some(frame)
    }

    fn wake(&self) {
        // Sequentially consistent with `fall_asleep`: either the owner sees the message or this sees it asleep.
        if self.asleep.swap(false, Ordering::SeqCst)
            && let Some(doorbell) = self.doorbell.get()
        {
            doorbell.ring();
        }
    }

    /// Takes the next message. For the owner only.
    #[inline]
    #[must_use]
    pub fn take(&self) -> Option<Post> {
        // Most turns find none, and to see that costs less than to try.
        if self.queue.is_empty() {
            return None;
        }
        self.queue.pop()
    }

    /// Announces that the owner is about to sleep. False if there is mail and it should not.
    #[must_use]
    pub fn fall_asleep(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        if self.queue.is_empty() && self.frames.is_empty() {
            return true;
        }
        self.asleep.store(false, Ordering::SeqCst);
        false
    }

    /// Announces that the owner is awake.
    #[inline]
    pub fn wake_up(&self) {
        // Whoever still sees it asleep rings once in vain.
        self.asleep.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relayed_packets_are_bounded_by_number_and_bytes() {
        let mailbox = Mailbox::default();
        let frame = |len| StreamFrame {
            socket: SocketIndex(0),
            to: Addr::default(),
            bytes: vec![0; len].into(),
        };
        let posted = |len| {
            let posted = (0..FRAMES_MAX * 2).filter(|_| mailbox.post_frame(frame(len)));
            let posted = posted.count();
            assert!(!mailbox.fall_asleep(), "there are packets");
            while mailbox.take_frame().is_some() {}
            assert!(mailbox.fall_asleep());
            posted
        };
        assert_eq!(posted(4), FRAMES_MAX);
        assert_eq!(posted(64 << 10), FRAME_BYTES_MAX >> 16);
        assert_eq!(posted(4), FRAMES_MAX);
    }

    #[test]
    fn nothing_is_lost_and_full_means_refused() {
        let mailbox = Arc::new(Mailbox::default());
        assert!(mailbox.fall_asleep());
        let writers: Vec<_> = (0..4)
            .map(|_| {
                let mailbox = Arc::clone(&mailbox);
                std::thread::spawn(move || {
                    (0..4000)
                        .filter(|_| mailbox.post(Post::Drain).is_ok())
                        .count()
                })
            })
            .collect();
        let accepted: usize = writers.into_iter().map(|w| w.join().unwrap()).sum();
        assert_eq!(accepted, CAPACITY);
        assert!(!mailbox.fall_asleep(), "there is mail");
        let mut taken = 0;
        while mailbox.take().is_some() {
            taken += 1;
        }
        assert_eq!(taken, CAPACITY);
        assert!(mailbox.fall_asleep());
    }
}
