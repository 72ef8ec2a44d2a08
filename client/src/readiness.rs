//! A file descriptor that is readable while a session has something for the caller: for event loops. Costs nothing until
//! somebody asks for it.

#[cfg(unix)]
use std::io::{self, Read, Write};
#[cfg(unix)]
use std::os::fd::{AsFd, BorrowedFd};
#[cfg(unix)]
use std::os::unix::net::UnixStream;
#[cfg(unix)]
use std::sync::OnceLock;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What is there for the caller.
#[derive(Default)]
pub(crate) struct Readiness {
    /// What the caller waits on, and the end that makes it readable.
    #[cfg(unix)]
    pair: OnceLock<(UnixStream, UnixStream)>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    datagrams: usize,
    news: bool,
    ended: bool,
    #[cfg(unix)]
    signalled: bool,
}

impl Readiness {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn datagram_came(&self) {
        let mut state = self.lock();
        state.datagrams += 1;
        self.update(&mut state);
    }

    pub(crate) fn datagrams_gone(&self, count: usize) {
        let mut state = self.lock();
        state.datagrams = state.datagrams.saturating_sub(count);
        self.update(&mut state);
    }

    /// Whether events or messages wait.
    pub(crate) fn set_news(&self, news: bool) {
        let mut state = self.lock();
        if state.news != news {
            state.news = news;
            self.update(&mut state);
        }
    }

    /// From now on it is always readable: every call returns at once.
    pub(crate) fn set_ended(&self) {
        let mut state = self.lock();
        state.ended = true;
        self.update(&mut state);
    }

    /// Other systems have no descriptor to wait on.
    #[cfg(not(unix))]
    fn update(&self, _state: &mut State) {}

    /// One byte is in the pipe exactly while something is there.
    #[cfg(unix)]
    fn update(&self, state: &mut State) {
        let Some((mut waiting, mut signalling)) = self.pair.get().map(|pair| (&pair.0, &pair.1))
        else {
            return;
        };
        let ready = state.datagrams > 0 || state.news || state.ended;
        if ready != state.signalled {
            // With at most one byte in it a socket pair neither fills up nor runs dry.
            let done = if ready {
                signalling.write(&[1])
            } else {
                waiting.read(&mut [0])
            };
            if done.is_ok() {
                state.signalled = ready;
            }
        }
    }

    #[cfg(unix)]
    pub(crate) fn fd(&self) -> io::Result<BorrowedFd<'_>> {
        let mut state = self.lock();
        if self.pair.get().is_none() {
            let (waiting, signalling) = UnixStream::pair()?;
            waiting.set_nonblocking(true)?;
            signalling.set_nonblocking(true)?;
            // Under the lock nobody else is first.
            self.pair.get_or_init(|| (waiting, signalling));
            self.update(&mut state);
        }
        match self.pair.get() {
            Some((waiting, _)) => Ok(waiting.as_fd()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;

    fn is_readable(readiness: &Readiness) -> bool {
        readiness.fd().unwrap();
        let _state = readiness.lock();
        let (mut waiting, mut signalling) = readiness.pair.get().map(|p| (&p.0, &p.1)).unwrap();
        let readable = waiting.read(&mut [0; 8]).is_ok_and(|len| len > 0);
        if readable {
            signalling.write_all(&[1]).unwrap();
        }
        readable
    }

    #[test]
    fn it_is_readable_while_something_is_there() {
        let readiness = Readiness::default();
        readiness.datagram_came();
        assert!(is_readable(&readiness));
        readiness.datagram_came();
        readiness.set_news(true);
        readiness.datagrams_gone(2);
        assert!(is_readable(&readiness));
        readiness.set_news(false);
        assert!(!is_readable(&readiness));
        readiness.set_ended();
        readiness.set_news(true);
        readiness.set_news(false);
        assert!(is_readable(&readiness));
    }
}
