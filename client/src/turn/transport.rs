//! Messages to and from a TURN server: one a datagram over UDP, padded and in a row over TCP and TLS (RFC 8656 section 3.1).

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Mutex;
use std::time::Duration;

use waypost_proto::wire::stream::{Framer, padding};

use super::server::{TurnServer, TurnTransport};
#[cfg(feature = "tls")]
use super::tls::TlsSession;
use super::{ALLOCATE_TIMEOUT, MESSAGE_MAX, lock};

/// A write to a server that does not read ends the connection.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);
/// Messages read from a stream and not handled yet.
const READY_MAX: usize = 64;

pub(super) enum Wire {
    Udp(UdpSocket),
    Tcp(Stream),
    #[cfg(feature = "tls")]
    Tls(Stream, Mutex<TlsSession>),
}

/// A connection, its two directions under locks of their own so that a reader who waits keeps nobody from writing.
pub(super) struct Stream {
    writer: Mutex<TcpStream>,
    reader: Mutex<Reader>,
}

struct Reader {
    stream: TcpStream,
    framer: Framer,
    ready: VecDeque<Vec<u8>>,
}

impl Stream {
    fn new(stream: TcpStream) -> io::Result<Self> {
        Ok(Self {
            writer: Mutex::new(stream.try_clone()?),
            reader: Mutex::new(Reader {
                stream,
                framer: Framer::new(false),
                ready: VecDeque::new(),
            }),
        })
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        lock(&self.writer).write_all(bytes)
    }

    /// Waits for one message, in what `read` makes of the bytes that come.
    fn receive(
        &self,
        buffer: &mut [u8],
        read: impl FnOnce(&[u8], &mut Vec<u8>) -> io::Result<()>,
    ) -> io::Result<usize> {
        let mut reader = lock(&self.reader);
        let Reader {
            stream,
            framer,
            ready,
        } = &mut *reader;
        if ready.is_empty() {
            let mut bytes = [0; MESSAGE_MAX];
            let len = stream.read(&mut bytes)?;
            let mut plain = Vec::new();
            read(&bytes[..len], &mut plain)?;
            let fed = framer.feed(&plain, |message| {
                if ready.len() < READY_MAX {
                    ready.push_back(message.to_vec());
                }
            });
            if len == 0 || fed.is_err() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        }
        let message = ready.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        let len = message.len().min(buffer.len());
        buffer[..len].copy_from_slice(&message[..len]);
        Ok(len)
    }
}

impl Wire {
    pub(super) fn open(server: &TurnServer) -> io::Result<Self> {
        match &server.transport {
            TurnTransport::Udp => {
                let any: SocketAddr = match server.address {
                    SocketAddr::V4(_) => ([0; 4], 0).into(),
                    SocketAddr::V6(_) => ([0; 16], 0).into(),
                };
                let socket = UdpSocket::bind(any)?;
                socket.connect(server.address)?;
                Ok(Self::Udp(socket))
            }
            TurnTransport::Tcp => Ok(Self::Tcp(Stream::new(connect(server.address)?)?)),
            #[cfg(feature = "tls")]
            TurnTransport::Tls(identity) => {
                let mut stream = connect(server.address)?;
                let session = TlsSession::open(&mut stream, identity, ALLOCATE_TIMEOUT)?;
                Ok(Self::Tls(Stream::new(stream)?, Mutex::new(session)))
            }
        }
    }

    pub(super) const fn is_reliable(&self) -> bool {
        !matches!(self, Self::Udp(_))
    }

    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Udp(socket) => socket.local_addr(),
            Self::Tcp(stream) => lock(&stream.writer).local_addr(),
            #[cfg(feature = "tls")]
            Self::Tls(stream, _) => lock(&stream.writer).local_addr(),
        }
    }

    pub(super) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Udp(socket) => socket.set_read_timeout(timeout),
            Self::Tcp(stream) => lock(&stream.reader).stream.set_read_timeout(timeout),
            #[cfg(feature = "tls")]
            Self::Tls(stream, _) => lock(&stream.reader).stream.set_read_timeout(timeout),
        }
    }

    /// Sends one message with its padding.
    pub(super) fn send(&self, message: &[u8]) -> io::Result<()> {
        let padded = || {
            let mut padded = message.to_vec();
            padded.resize(message.len() + padding(message.len()), 0);
            padded
        };
        match self {
            Self::Udp(socket) => socket.send(message).map(drop),
            Self::Tcp(stream) => stream.write(&padded()),
            #[cfg(feature = "tls")]
            Self::Tls(stream, session) => {
                let mut session = lock(session);
                let sealed = session.seal(&padded())?;
                // Under the lock, because records have to leave in the order of their sealing.
                stream.write(&sealed)
            }
        }
    }

    /// Waits for one message. `WouldBlock` also if what came was none yet.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Udp(socket) => socket.recv(buffer),
            Self::Tcp(stream) => stream.receive(buffer, |bytes, plain| {
                plain.extend_from_slice(bytes);
                Ok(())
            }),
            #[cfg(feature = "tls")]
            Self::Tls(stream, session) => stream.receive(buffer, |bytes, plain| {
                let mut session = lock(session);
                let answer = session.unseal(bytes, plain)?;
                stream.write(&answer)
            }),
        }
    }
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, ALLOCATE_TIMEOUT)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    Ok(stream)
}
