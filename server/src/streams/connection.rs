//! One client's stream: decrypted if it is TLS, and cut into messages. It opens and closes nothing and knows no deadlines.

use std::io::BufRead as _;
use std::io::Write as _;

use rustls::ServerConnection;
use waypost_proto::addr::ClientAddr;
use waypost_proto::forwarding::SocketIndex;
use waypost_proto::time::Millis;
use waypost_proto::wire::stream::Framer;

use super::quota::Share;
use super::{End, Urgency};
use crate::packet_io::{SendRefused, StreamId, StreamIo};

/// Pending bytes are offered to the backend in pieces of this size, because it takes a piece as a whole or not at all.
const PIECE: usize = 16 << 10;

/// Answers and events wait for room while fewer bytes than these do, so that relayed packets that fill the queue of a slow
/// client do not cost it its connection.
const CONTROL_WAITS_BELOW: usize = 16 << 10;

/// Room for pending bytes that a stream keeps when it has none.
const PENDING_KEPT: usize = 2048;

/// One client's stream.
pub struct Connection {
    socket: SocketIndex,
    peer: ClientAddr,
    /// What it counts for.
    _share: Share,
    cipher: Option<Box<ServerConnection>>,
    /// What the backend had no room for: answers, and what is encrypted, which can neither be dropped nor overtaken. At most
    /// [`CONTROL_WAITS_BELOW`] and one frame.
    pending: Vec<u8>,
    /// Cuts it into messages; none if the protocol does.
    framer: Option<Framer>,
    /// When its last whole message came.
    pub(super) heard_at: Option<Millis>,
    /// Since when nothing could be sent.
    pub(super) full_since: Option<Millis>,
    /// Whether a timer is set that offers pending bytes again.
    pub(super) waits_for_room: bool,
}

impl Connection {
    pub(super) fn new(
        socket: SocketIndex,
        peer: ClientAddr,
        share: Share,
        session: Option<ServerConnection>,
        framer: Option<Framer>,
    ) -> Self {
        let cipher = session.map(|mut session| {
            // What is written is taken out at once, so it is bounded by one frame and must be taken as a whole.
            session.set_buffer_limit(None);
            Box::new(session)
        });
        Self {
            socket,
            peer,
            _share: share,
            cipher,
            pending: Vec::new(),
            framer,
            heard_at: None,
            full_since: None,
            waits_for_room: false,
        }
    }

    /// Whether what comes is passed on as it comes.
    #[must_use]
    pub const fn is_raw(&self) -> bool {
        self.framer.is_none()
    }

    /// The listener that it came by.
    #[must_use]
    pub const fn socket(&self) -> SocketIndex {
        self.socket
    }

    /// The client's address.
    #[must_use]
    pub const fn peer(&self) -> ClientAddr {
        self.peer
    }

    /// Whether it is TLS and nothing can be said yet.
    pub(super) fn is_handshaking(&self) -> bool {
        let cipher = self.cipher.as_deref();
        cipher.is_some_and(|session| session.is_handshaking())
    }

    pub(super) const fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Takes in what came and passes on each whole message. Afterwards, whatever the outcome, [`Connection::flush`] lets
    /// leave what TLS itself has to say.
    ///
    /// # Errors
    /// Why the stream is of no more use.
    pub fn receive(
        &mut self,
        now: Millis,
        mut input: &[u8],
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), End> {
        let heard_at = &mut self.heard_at;
        let framer = &mut self.framer;
        let mut feed = |bytes: &[u8]| {
            let Some(framer) = framer else {
                *heard_at = Some(now);
                each(bytes);
                return Ok(());
            };
            let outcome = framer.feed(bytes, |message| {
                *heard_at = Some(now);
                each(message);
            });
            outcome.map_err(|_| End::BadFrame)
        };
        let Some(session) = &mut self.cipher else {
            return feed(input);
        };
        while !input.is_empty() {
            match session.read_tls(&mut input) {
                Ok(taken) if taken > 0 => {}
                _ => return Err(End::Tls),
            }
            let state = session.process_new_packets();
            let state = state.map_err(|_| End::Tls)?;
            let mut reader = session.reader();
            // An error means that there is nothing now, an empty buffer that there will never be.
            while let Ok(bytes) = reader.fill_buf()
                && !bytes.is_empty()
            {
                feed(bytes)?;
                let len = bytes.len();
                reader.consume(len);
            }
            if state.peer_has_closed() {
                return Err(End::Peer);
            }
        }
        Ok(())
    }

    /// Sends a whole frame, or keeps it to be sent with the next [`Connection::flush`].
    ///
    /// # Errors
    /// Nothing of it was or will be sent.
    pub(super) fn send<P: StreamIo>(
        &mut self,
        io: &mut P,
        stream: StreamId,
        frame: &[u8],
        urgency: Urgency,
    ) -> Result<(), SendRefused> {
        let may_wait = |refused, waiting: usize| {
            let is_short = waiting < CONTROL_WAITS_BELOW;
            refused == SendRefused::Full && urgency == Urgency::Control && is_short
        };
        match self.flush(io, stream) {
            Err(refused) if !may_wait(refused, self.pending.len()) => return Err(refused),
            _ => {}
        }
        let Some(session) = &mut self.cipher else {
            if self.pending.is_empty() {
                match io.send_stream(stream, &[frame]) {
                    Err(refused) if may_wait(refused, 0) => {}
                    done => return done,
                }
            }
            self.pending.extend_from_slice(frame);
            return Ok(());
        };
        if session.is_handshaking() || session.writer().write_all(frame).is_err() {
            return Err(SendRefused::Gone);
        }
        match self.flush(io, stream) {
            // The rest leaves later.
            Err(SendRefused::Full) => Ok(()),
            other => other,
        }
    }

    /// Gives the backend what waits and what TLS has to say.
    ///
    /// # Errors
    /// Not all of it was taken.
    pub fn flush<P: StreamIo>(&mut self, io: &mut P, stream: StreamId) -> Result<(), SendRefused> {
        let pending = &mut self.pending;
        if let Some(session) = &mut self.cipher {
            while session.wants_write() {
                session.write_tls(pending).expect("memory takes everything");
            }
        }
        if pending.is_empty() {
            return Ok(());
        }
        let mut taken = 0;
        let outcome = pending.chunks(PIECE).try_for_each(|piece| {
            io.send_stream(stream, &[piece])?;
            taken += piece.len();
            Ok(())
        });
        pending.drain(..taken);
        pending.shrink_to(PENDING_KEPT);
        outcome
    }
}
