//! Datagrams to and from one other member.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use waypost_proto::agent::{Attempt, DATAGRAM_MAX, Path, Progress, Strategy};
use waypost_proto::wire::native::SeatId;

use crate::driver::Driver;
use crate::error::Error;
use crate::readiness::Readiness;
use crate::stream::{self, ConnectedStream};

/// Received datagrams that wait for the caller; the oldest are dropped first, as a game wants the newest.
const INBOX_MAX: usize = 256;

/// What one member has sent.
pub(crate) struct Inbox {
    state: Mutex<InboxState>,
    arrived: Condvar,
    readiness: Arc<Readiness>,
}

#[derive(Default)]
struct InboxState {
    waiting: VecDeque<Vec<u8>>,
    /// Buffers to use again.
    spare: Vec<Vec<u8>>,
    dropped: u64,
    closed: bool,
    read_timeout: Option<Duration>,
    nonblocking: bool,
}

impl Drop for Inbox {
    fn drop(&mut self) {
        let waiting = self.lock().waiting.len();
        self.readiness.datagrams_gone(waiting);
    }
}

impl Inbox {
    pub(crate) fn new(readiness: Arc<Readiness>) -> Self {
        Self {
            state: Mutex::default(),
            arrived: Condvar::new(),
            readiness,
        }
    }

    fn lock(&self) -> MutexGuard<'_, InboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push(&self, data: &[u8]) {
        let mut state = self.lock();
        let full = state.waiting.len() == INBOX_MAX;
        let mut buffer = if full {
            state.dropped += 1;
            state.waiting.pop_front()
        } else {
            state.spare.pop()
        }
        .unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(data);
        state.waiting.push_back(buffer);
        if !full {
            self.readiness.datagram_came();
        }
        drop(state);
        self.arrived.notify_one();
    }

    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
    }

    fn take(&self, state: &mut InboxState, buf: &mut [u8]) -> Option<usize> {
        let data = state.waiting.pop_front()?;
        self.readiness.datagrams_gone(1);
        let len = data.len().min(buf.len());
        buf[..len].copy_from_slice(&data[..len]);
        state.spare.push(data);
        Some(len)
    }

    pub(crate) fn try_recv(&self, buf: &mut [u8]) -> Option<usize> {
        self.take(&mut self.lock(), buf)
    }

    fn recv(&self, buf: &mut [u8]) -> Result<usize, Error> {
        let mut state = self.lock();
        let deadline = state.read_timeout.map(|timeout| Instant::now() + timeout);
        loop {
            if let Some(len) = self.take(&mut state, buf) {
                return Ok(len);
            }
            if state.closed {
                return Err(Error::MemberLeft);
            }
            if state.nonblocking {
                return Err(Error::WouldBlock);
            }
            state = match deadline {
                None => self
                    .arrived
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(Error::TimedOut);
                    }
                    self.arrived
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
    }
}

/// A way to exchange datagrams with one other member, like a connected [`std::net::UdpSocket`]: datagrams may be lost,
/// doubled or reordered by the network, and arrive whole. A link outlives neither its [`crate::Session`] nor the member.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let server = waypost_server::serve::Server::start_with(&[])?;
/// # let server = server.main_addr();
/// use std::io::ErrorKind;
/// use std::time::Duration;
/// use waypost_client::{HostConfig, JoinConfig, Session};
///
/// let host = Session::host(server, HostConfig::new("my-game"))?;
/// let guest = Session::join(server, &host.code()?.to_string(), JoinConfig::new("my-game"))?;
/// let up = guest.link(guest.wait_member(None)?)?;
/// let down = host.link(host.wait_member(None)?)?;
/// down.set_read_timeout(Some(Duration::from_millis(200)))?;
/// let mut buf = [0; 1500];
/// let len = loop {
///     up.send(b"hello")?;
///     match down.recv(&mut buf) {
///         Err(error) if error.kind() == ErrorKind::TimedOut => {} // lost: send it again
///         received => break received?,
///     }
/// };
/// assert_eq!(&buf[..len], b"hello");
/// # Ok(()) }
/// ```
pub struct Link {
    driver: Arc<Driver>,
    inbox: Arc<Inbox>,
    peer: SeatId,
}

impl Link {
    pub(crate) fn new(driver: Arc<Driver>, peer: SeatId) -> Result<Self, Error> {
        let inbox = driver.lock().inbox(peer)?;
        Ok(Self {
            driver,
            inbox,
            peer,
        })
    }

    /// The other member.
    #[must_use]
    pub const fn peer(&self) -> SeatId {
        self.peer
    }

    /// Sends a datagram of at most [`Link::max_datagram`] bytes, from the calling thread.
    ///
    /// # Errors
    /// Those of a UDP socket; `InvalidInput` if it is too long; `NotConnected` if there is no path (under
    /// [`crate::PathPolicy::DirectOnly`]) or no seat any more; `ConnectionAborted` if the member has left. The inner error is a
    /// [`crate::Error`] that says what to do.
    pub fn send(&self, data: &[u8]) -> io::Result<usize> {
        self.driver.send(self.peer, data)?;
        Ok(data.len())
    }

    /// Waits for a datagram and copies it into `buf`; what does not fit is cut off.
    ///
    /// # Errors
    /// `TimedOut` after the read timeout, `WouldBlock` if the link is nonblocking, `ConnectionAborted` once the member has left
    /// or the session is over and everything has been received.
    pub fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(self.inbox.recv(buf)?)
    }

    /// How long [`Link::recv`] waits; `None` for ever. Clones share it, as they do with a socket.
    ///
    /// # Errors
    /// `InvalidInput` if it is zero.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        if timeout == Some(Duration::ZERO) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a read timeout of zero makes no sense; use set_nonblocking",
            ));
        }
        self.inbox.lock().read_timeout = timeout;
        Ok(())
    }

    /// The read timeout.
    #[must_use]
    pub fn read_timeout(&self) -> Option<Duration> {
        self.inbox.lock().read_timeout
    }

    /// Whether [`Link::recv`] returns at once if nothing is there. Clones share it.
    pub fn set_nonblocking(&self, nonblocking: bool) {
        self.inbox.lock().nonblocking = nonblocking;
    }

    /// Another handle of the same link, for another thread. What one receives the other does not.
    ///
    /// # Errors
    /// None at present; it is fallible as [`std::net::UdpSocket::try_clone`] is.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            driver: Arc::clone(&self.driver),
            inbox: Arc::clone(&self.inbox),
            peer: self.peer,
        })
    }

    /// The way that data take now. [`Path::Unreachable`] if the member has left.
    #[must_use]
    pub fn path(&self) -> Path {
        let core = self.driver.lock();
        core.agent.path(self.peer).unwrap_or(Path::Unreachable)
    }

    /// Waits until data go directly, for at most `timeout`. Returns whether they do.
    #[must_use]
    pub fn wait_direct(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut core = self.driver.lock();
        loop {
            match core.agent.path(self.peer) {
                Some(Path::Direct) => return true,
                Some(_) if core.end.is_none() => {}
                _ => return false,
            }
            let time_left;
            (core, time_left) = self.driver.wait(core, Some(deadline));
            if !time_left {
                return core.agent.path(self.peer) == Some(Path::Direct);
            }
        }
    }

    /// Connects a TCP stream to the member, straight through both NATs, within `timeout`. Both have to call this; who calls first
    /// waits for the other. The server only tells them when to begin and where.
    ///
    /// # Errors
    /// [`Error::NoStream`] with the reason; [`Error::Refused`] if this player goes through the relay only; the server's
    /// [`Error::Rejected`]; those of the seat.
    pub fn connect_stream(&self, timeout: Duration) -> Result<ConnectedStream, Error> {
        let began = Instant::now();
        let deadline = began + timeout;
        let reachable_port = self.driver.lock().agent.config().reachable_port;
        let result = stream::connect(&self.driver, self.peer, reachable_port, deadline);
        let after_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let attempt = match &result {
            Ok(connected) => Attempt {
                strategy: connected.strategy,
                progress: Progress::Connected {
                    after_ms: u64::try_from(connected.took.as_millis()).unwrap_or(u64::MAX),
                },
            },
            Err(Error::NoStream(reason)) => Attempt {
                strategy: Strategy::TcpPunch,
                progress: Progress::Failed {
                    after_ms,
                    reason: *reason,
                },
            },
            Err(_) => return result,
        };
        self.driver.lock().streams.insert(self.peer, attempt);
        result
    }

    /// What became of each way to the member: whether it was tried, how long it took, and if it does not work, why.
    #[must_use]
    pub fn report(&self) -> Vec<Attempt> {
        let core = self.driver.lock();
        let mut report = core.agent.report(self.driver.now(), self.peer);
        if let Some(stream) = core.streams.get(&self.peer)
            && let Some(entry) = report
                .iter_mut()
                .find(|entry| entry.strategy == stream.strategy)
            && !matches!(entry.progress, Progress::Connected { .. })
        {
            *entry = *stream;
        }
        report
    }

    /// The most bytes that one datagram carries: with all headers it fits every IPv6 path (1,280 bytes, RFC 8200 section
    /// 5), so it is never fragmented, on no path. In a session with messages one byte less.
    #[must_use]
    pub fn max_datagram(&self) -> usize {
        DATAGRAM_MAX - usize::from(self.driver.lock().messages.is_some())
    }

    /// Datagrams that were dropped because they were not received in time.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.inbox.lock().dropped
    }
}
