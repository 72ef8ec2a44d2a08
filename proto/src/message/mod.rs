//! Messages between the members of a session, on top of its datagrams: numbered, acknowledged, sent again, reassembled from
//! fragments, each delivered once; and checks that tell when a peer is gone.
//!
//! [`Messages`] holds one conversation for each member. Like the agent it opens no socket and reads no clock, and every
//! queue in it is bounded, whatever a peer sends. The owner's loop: name members by [`Messages::member_joined`] and
//! [`Messages::member_left`]; give the data of their datagrams to [`Messages::handle`]; when [`Messages::poll_timeout`]
//! has come, call [`Messages::handle_timeout`]; after either, and after sending, take all of [`Messages::poll_transmit`]
//! and send each as a datagram to that member, and take [`Messages::poll_event`].
//!
//! ```
//! use waypost_proto::message::{MessageEvent, Messages, Messaging, Service};
//! use waypost_proto::time::Millis;
//! use waypost_proto::wire::native::SeatId;
//!
//! let (ann, bob) = (SeatId { seat: 0, generation: 1 }, SeatId { seat: 1, generation: 1 });
//! let mut now = Millis(0);
//! // In earnest the seeds are random.
//! let mut at_ann = Messages::new(Messaging::default(), [1; 32]);
//! let mut at_bob = Messages::new(Messaging::default(), [2; 32]);
//! at_ann.member_joined(now, bob);
//! at_bob.member_joined(now, ann);
//! at_ann.send(now, bob, b"hello", Service::ORDERED)?;
//! let mut datagram = Vec::new();
//! let message = loop {
//!     while at_ann.poll_transmit(now, &mut datagram).is_some() {
//!         at_bob.handle(now, ann, &datagram);
//!     }
//!     while at_bob.poll_transmit(now, &mut datagram).is_some() {
//!         at_ann.handle(now, bob, &datagram);
//!     }
//!     if let Some(MessageEvent::Received(message)) = at_bob.poll_event() {
//!         break message;
//!     }
//!     now = now + 10;
//!     at_ann.handle_timeout(now);
//!     at_bob.handle_timeout(now);
//! };
//! assert_eq!((message.from, message.data.as_slice()), (ann, &b"hello"[..]));
//! # Ok::<(), waypost_proto::message::NotSent>(())
//! ```

mod conversation;
pub mod frame;
mod receiver;
mod round_trip;
mod sender;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::error::Error;
use std::fmt;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::time::Millis;
use crate::wire::native::SeatId;
use conversation::{Change, Conversation};
use sender::Fate;

/// Most bytes in one message.
pub const MESSAGE_MAX: usize = 64 * 1024;

/// Reliable fragments that may be under way to a peer.
const WINDOW: u16 = 64;
/// An acknowledgement waits so long for something to travel with, milliseconds.
const ACKNOWLEDGE_MS: u64 = 5;
/// Bounds of the dead time, milliseconds.
const DEAD_AFTER_MIN_MS: u64 = 500;
const DEAD_AFTER_MAX_MS: u64 = 600_000;

/// How messages are to work.
///
/// ```
/// use waypost_proto::message::Messaging;
///
/// let quick = Messaging { dead_after_ms: 2_000 };
/// assert!(quick.dead_after_ms < Messaging::default().dead_after_ms);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Messaging {
    /// A peer from which nothing has come for so many milliseconds is told as silent; 500 to 600,000. It is checked five times
    /// in that time, and more often once a check went unanswered.
    pub dead_after_ms: u64,
}

impl Default for Messaging {
    /// Five seconds.
    fn default() -> Self {
        Self {
            dead_after_ms: 5_000,
        }
    }
}

/// What is done for a message.
///
/// ```
/// use waypost_proto::message::Service;
///
/// let service = Service::ORDERED.expiring_in_ms(3_000);
/// assert!(service.reliable && service.ordered);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Service {
    /// Whether it is sent until it is acknowledged.
    pub reliable: bool,
    /// Reliable: it is delivered after all reliable ordered ones sent before it. Unreliable: it is not delivered after a later
    /// one.
    pub ordered: bool,
    /// After so many milliseconds without acknowledgement it is given up, with [`MessageEvent::Expired`]. `None`: never. An
    /// unreliable message that could not be sent for so long (`None`: one second) is dropped without an event.
    pub lifetime_ms: Option<u32>,
}

impl Service {
    /// Sent once; delivered at most once, in any order.
    pub const UNRELIABLE: Self = Self {
        reliable: false,
        ordered: false,
        lifetime_ms: None,
    };
    /// Sent once; what is overtaken is not delivered.
    pub const SEQUENCED: Self = Self {
        ordered: true,
        ..Self::UNRELIABLE
    };
    /// Sent until it has arrived; delivered once, in any order.
    pub const RELIABLE: Self = Self {
        reliable: true,
        ..Self::UNRELIABLE
    };
    /// Sent until it has arrived; delivered once, in the order of sending.
    pub const ORDERED: Self = Self {
        reliable: true,
        ordered: true,
        lifetime_ms: None,
    };

    /// The same with a lifetime.
    #[must_use]
    pub const fn expiring_in_ms(self, lifetime_ms: u32) -> Self {
        Self {
            lifetime_ms: Some(lifetime_ms),
            ..self
        }
    }
}

/// Names a sent message in events; counted from 1 over all peers. A broadcast has one for all.
///
/// ```
/// use waypost_proto::message::MessageId;
///
/// let mut waiting = vec![MessageId(1), MessageId(2)];
/// waiting.retain(|id| *id != MessageId(1)); // when it was acknowledged
/// assert_eq!(waiting, [MessageId(2)]);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MessageId(pub u32);

/// A message that came.
///
/// ```
/// use waypost_proto::message::Message;
/// use waypost_proto::wire::native::SeatId;
///
/// fn text(message: &Message) -> String {
///     format!("{}: {}", message.from.seat, String::from_utf8_lossy(&message.data))
/// }
///
/// let from = SeatId { seat: 2, generation: 7 };
/// let message = Message { from, number: 1, reliable: true, data: b"hello".to_vec() };
/// assert_eq!(text(&message), "2: hello");
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// Who sent it.
    pub from: SeatId,
    /// Its number, unique for this sender as long as the sender runs.
    pub number: u32,
    /// Whether it was sent reliably.
    pub reliable: bool,
    /// Its content.
    pub data: Vec<u8>,
}

/// Something that happened to messages or to a peer.
///
/// ```
/// use waypost_proto::message::{MessageEvent, MessageId};
/// use waypost_proto::wire::native::SeatId;
///
/// fn tell(event: &MessageEvent) -> String {
///     match event {
///         MessageEvent::Received(message) => format!("{} bytes came", message.data.len()),
///         MessageEvent::Acknowledged(_, MessageId(id)) => format!("message {id} has arrived"),
///         MessageEvent::Expired(_, MessageId(id)) => format!("message {id} was given up"),
///         MessageEvent::PeerSilent(peer) => format!("player {} does not answer", peer.seat),
///         MessageEvent::PeerBack(_) | MessageEvent::PeerRestarted(_) => String::new(),
///     }
/// }
///
/// let peer = SeatId { seat: 2, generation: 7 };
/// assert_eq!(tell(&MessageEvent::Expired(peer, MessageId(9))), "message 9 was given up");
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MessageEvent {
    /// A message has come.
    Received(Message),
    /// A reliable message has arrived, all of it.
    Acknowledged(SeatId, MessageId),
    /// A reliable message was not acknowledged in its lifetime, or before the peer left or began anew. It may have arrived.
    Expired(SeatId, MessageId),
    /// Nothing has come from the peer for the dead time. Messages to it go on being tried.
    PeerSilent(SeatId),
    /// Something has come from a silent peer.
    PeerBack(SeatId),
    /// The peer's program has begun anew in the same seat and knows nothing of what was said before.
    PeerRestarted(SeatId),
}

/// Why a message was not taken.
///
/// ```
/// use waypost_proto::message::NotSent;
///
/// assert!(NotSent::TooLong.to_string().contains("65536 bytes; split it"));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotSent {
    /// Nobody with this id is known.
    NoMember,
    /// It has more than [`MESSAGE_MAX`] bytes.
    TooLong,
    /// A mebibyte of reliable messages waits for this peer's acknowledgement.
    Full,
}

impl fmt::Display for NotSent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMember => f.write_str(
                "that member is not in the session any more; look at the member list",
            ),
            Self::TooLong => {
                write!(f, "a message carries at most {MESSAGE_MAX} bytes; split it")
            }
            Self::Full => f.write_str(
                "the peer does not keep up with the messages; wait for acknowledgements, or send less",
            ),
        }
    }
}

impl Error for NotSent {}

#[derive(Debug)]
struct Peer {
    id: SeatId,
    conversation: Conversation,
}

/// The conversations with all members of a session.
#[derive(Debug)]
pub struct Messages {
    messaging: Messaging,
    rng: StdRng,
    /// By seat: at most 256.
    peers: Vec<Option<Box<Peer>>>,
    next_message: u32,
    /// The seat whose turn it is to transmit, and that whose turn it is to tell.
    transmits: usize,
    tells: usize,
    /// What is left of members that have left.
    last_words: VecDeque<MessageEvent>,
    malformed: u64,
}

/// Events of departed members that may wait for the owner.
const LAST_WORDS_MAX: usize = 4_096;

impl Messages {
    /// No members yet. `seed` must be random: tags come out of it, and whoever can guess those can forge frames.
    #[must_use]
    pub fn new(messaging: Messaging, seed: [u8; 32]) -> Self {
        let dead_after_ms = messaging
            .dead_after_ms
            .clamp(DEAD_AFTER_MIN_MS, DEAD_AFTER_MAX_MS);
        Self {
            messaging: Messaging { dead_after_ms },
            rng: StdRng::from_seed(seed),
            peers: Vec::new(),
            next_message: 1,
            transmits: 0,
            tells: 0,
            last_words: VecDeque::new(),
            malformed: 0,
        }
    }

    fn get(&self, id: SeatId) -> Option<&Conversation> {
        let peer = self.peers.get(usize::from(id.seat))?.as_ref()?;
        (peer.id == id).then_some(&peer.conversation)
    }

    fn get_mut(&mut self, id: SeatId) -> Option<&mut Conversation> {
        let peer = self.peers.get_mut(usize::from(id.seat))?.as_mut()?;
        (peer.id == id).then_some(&mut peer.conversation)
    }

    /// Somebody is in the session. Whoever had the seat before is not any more. A member that is known already changes
    /// nothing.
    pub fn member_joined(&mut self, now: Millis, id: SeatId) {
        if self.get(id).is_some() {
            return;
        }
        let seat = usize::from(id.seat);
        if self.peers.len() <= seat {
            self.peers.resize_with(seat + 1, || None);
        }
        if let Some(previous) = self.peers[seat].as_ref().map(|peer| peer.id) {
            self.member_left(previous);
        }
        let tag = self.rng.random_range(1..=u32::MAX);
        let conversation = Conversation::new(now, tag, self.messaging.dead_after_ms);
        self.peers[seat] = Some(Box::new(Peer { id, conversation }));
    }

    /// Somebody is not any more. What came from it can still be taken; what was not acknowledged is told as expired.
    pub fn member_left(&mut self, id: SeatId) {
        if self.get(id).is_none() {
            return;
        }
        let Some(mut peer) = self.peers[usize::from(id.seat)].take() else {
            return;
        };
        while let Some(event) = peer.poll_event() {
            self.last_word(event);
        }
        for message in peer.conversation.abandon() {
            self.last_word(MessageEvent::Expired(id, message));
        }
    }

    fn last_word(&mut self, event: MessageEvent) {
        if self.last_words.len() == LAST_WORDS_MAX {
            self.last_words.pop_front();
        }
        self.last_words.push_back(event);
    }

    /// Takes a message to one member.
    ///
    /// # Errors
    /// [`NotSent`].
    pub fn send(
        &mut self,
        now: Millis,
        to: SeatId,
        data: &[u8],
        service: Service,
    ) -> Result<MessageId, NotSent> {
        if data.len() > MESSAGE_MAX {
            return Err(NotSent::TooLong);
        }
        let id = MessageId(self.next_message);
        let conversation = self.get_mut(to).ok_or(NotSent::NoMember)?;
        conversation.send(now, id, data, service)?;
        self.next_message = self.next_message.wrapping_add(1);
        Ok(id)
    }

    /// Takes a message to every member. For those that do not keep up with reliable messages [`MessageEvent::Expired`] tells
    /// so at once.
    ///
    /// # Errors
    /// [`NotSent::TooLong`].
    pub fn broadcast(
        &mut self,
        now: Millis,
        data: &[u8],
        service: Service,
    ) -> Result<MessageId, NotSent> {
        if data.len() > MESSAGE_MAX {
            return Err(NotSent::TooLong);
        }
        let id = MessageId(self.next_message);
        self.next_message = self.next_message.wrapping_add(1);
        for peer in self.peers.iter_mut().flatten() {
            if peer.conversation.send(now, id, data, service).is_err() {
                peer.conversation.not_taken(id);
            }
        }
        Ok(id)
    }

    /// Takes what a datagram of a member carries. Of a stranger, or malformed, it is counted only.
    pub fn handle(&mut self, now: Millis, from: SeatId, frame: &[u8]) {
        let sound = self
            .get_mut(from)
            .is_some_and(|conversation| conversation.handle(now, frame));
        if !sound {
            self.malformed += 1;
        }
    }

    /// Writes the next datagram to send into `out`, replacing what is there, and returns for whom it is. At most
    /// [`crate::agent::DATAGRAM_MAX`] bytes. Allocates nothing if `out` has room.
    pub fn poll_transmit(&mut self, now: Millis, out: &mut Vec<u8>) -> Option<SeatId> {
        let count = self.peers.len();
        for turn in 0..count {
            let seat = (self.transmits + turn) % count;
            if let Some(peer) = &mut self.peers[seat]
                && peer.conversation.transmit(now, out)
            {
                self.transmits = seat + 1;
                return Some(peer.id);
            }
        }
        None
    }

    /// The next thing that happened. Events of one member are in order.
    pub fn poll_event(&mut self) -> Option<MessageEvent> {
        if let Some(event) = self.last_words.pop_front() {
            return Some(event);
        }
        let count = self.peers.len();
        for turn in 0..count {
            let seat = (self.tells + turn) % count;
            if let Some(peer) = &mut self.peers[seat]
                && let Some(event) = peer.poll_event()
            {
                self.tells = seat + 1;
                return Some(event);
            }
        }
        None
    }

    /// Whether [`Messages::poll_event`] has anything to tell.
    #[must_use]
    pub fn has_event(&self) -> bool {
        let mut peers = self.peers.iter().flatten();
        !self.last_words.is_empty() || peers.any(|peer| peer.conversation.has_news())
    }

    /// When [`Messages::handle_timeout`] wants to be called next.
    #[must_use]
    pub fn poll_timeout(&self, now: Millis) -> Option<Millis> {
        let peers = self.peers.iter().flatten();
        peers.map(|peer| peer.conversation.next_timeout(now)).min()
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Millis) {
        for peer in self.peers.iter_mut().flatten() {
            peer.conversation.on_timeout(now);
        }
    }

    /// The smoothed round trip to a member, milliseconds, once it is known.
    #[must_use]
    pub fn round_trip_ms(&self, member: SeatId) -> Option<u64> {
        self.get(member)?.round_trip_ms()
    }

    /// Whether nothing has come from a member for the dead time.
    #[must_use]
    pub fn is_silent(&self, member: SeatId) -> bool {
        self.get(member).is_some_and(Conversation::is_silent)
    }

    /// Frames that were malformed or came from nobody known.
    #[must_use]
    pub const fn malformed(&self) -> u64 {
        self.malformed
    }
}

impl Peer {
    fn poll_event(&mut self) -> Option<MessageEvent> {
        let id = self.id;
        if let Some(received) = self.conversation.take_received() {
            return Some(MessageEvent::Received(Message {
                from: id,
                number: received.message,
                reliable: received.reliable,
                data: received.data,
            }));
        }
        if let Some(fate) = self.conversation.take_fate() {
            return Some(match fate {
                Fate::Acknowledged(message) => MessageEvent::Acknowledged(id, message),
                Fate::Expired(message) => MessageEvent::Expired(id, message),
            });
        }
        self.conversation.take_change().map(|change| match change {
            Change::Silent => MessageEvent::PeerSilent(id),
            Change::Back => MessageEvent::PeerBack(id),
            Change::Restarted => MessageEvent::PeerRestarted(id),
        })
    }
}
