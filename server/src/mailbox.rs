//! How shards and the control thread write to a shard: one bounded lock-free queue per shard, and a doorbell that is
//! rung only when its owner sleeps. Nothing is decided here and nothing blocks.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::queue::ArrayQueue;
use waypost_proto::lobby::Mail;
use waypost_proto::shard::RendezvousAccess;

use crate::packet_io::Doorbell;

/// Messages that wait for one shard at most.
const CAPACITY: usize = 8192;

/// What can be in a mailbox.
#[derive(Debug)]
pub enum Post {
    /// For the protocol.
    Mail(Mail),
    /// Seat nobody new from now on.
    Drain,
    /// Change who may use the rendezvous, and the secrets of time-limited TURN credentials.
    Access(RendezvousAccess, Vec<Box<[u8]>>),
    /// End the shard's thread.
    Stop,
}

/// The mailbox of one shard.
#[derive(Debug)]
pub struct Mailbox {
    queue: ArrayQueue<Post>,
    asleep: AtomicBool,
    doorbell: OnceLock<Doorbell>,
}

impl Default for Mailbox {
    fn default() -> Self {
        Self {
            queue: ArrayQueue::new(CAPACITY),
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
        // Sequentially consistent with `fall_asleep`: either the owner sees the message or this sees it asleep.
        if self.asleep.swap(false, Ordering::SeqCst)
            && let Some(doorbell) = self.doorbell.get()
        {
            doorbell.ring();
        }
        Ok(())
    }

    /// Takes the next message. For the owner only.
    #[must_use]
    pub fn take(&self) -> Option<Post> {
        self.queue.pop()
    }

    /// Announces that the owner is about to sleep. False if there is mail and it should not.
    #[must_use]
    pub fn fall_asleep(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        if self.queue.is_empty() {
            return true;
        }
        self.asleep.store(false, Ordering::SeqCst);
        false
    }

    /// Announces that the owner is awake.
    pub fn wake_up(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

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
