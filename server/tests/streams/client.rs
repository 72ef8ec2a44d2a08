//! A client of streams, written from the wire formats: TCP or TLS, whole messages or a byte at a time; or of datagrams, for
//! comparison.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ClientConfig, ClientConnection, StreamOwned};
use waypost_proto::addr::Addr;
use waypost_proto::wire::channel_data::{self, ChannelNumber};
use waypost_proto::wire::stream::{Framer, padding};
use waypost_proto::wire::stun::{Class, Message, MessageWriter, TransactionId, attr, method};
use waypost_server::serve::Server;

use crate::account::{Account, USER};
use crate::identity::Identity;

/// A wait that ends a hung test; no test passes because of it.
pub const HANG: Duration = Duration::from_secs(20);
pub const BACKENDS: [&str; 2] = ["uring", "mmsg"];
pub const TURN: [&str; 4] = ["--user", USER, "--allow-peer", "127.0.0.0/8"];

/// A server with TCP and TLS.
pub fn server(io: &str, shards: &str, identity: &Identity, more: &[&str]) -> Server {
    let (cert, key) = (identity.cert(), identity.key());
    let tls = ["--tls-listen", "127.0.0.1:0", "--tls-cert", &cert];
    let options = ["--io", io, "--shards", shards, "--tls-key", &key];
    let all = [&options[..], &tls, &TURN, more].concat();
    Server::start_adjusted(&all, |config| {
        config.stream_times.first_message_ms = 20_000;
    })
    .unwrap()
}

/// Waits until something is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let give_up = Instant::now() + HANG;
    while !is_so() {
        assert!(Instant::now() < give_up, "{what} did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

enum Wire {
    Tcp(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
    Udp(UdpSocket),
}

/// One connection.
pub struct Stream {
    wire: Wire,
    framer: Framer,
    ready: VecDeque<Vec<u8>>,
    pub is_bytewise: bool,
}

impl Stream {
    pub fn tcp(at: SocketAddr) -> Self {
        Self::over_tcp(connect(at))
    }

    pub fn tls(at: SocketAddr, config: &Arc<ClientConfig>) -> Self {
        Self::over_tls(connect(at), config)
    }

    pub fn over_tcp(socket: TcpStream) -> Self {
        Self::over(Wire::Tcp(socket))
    }

    /// The handshake is done with the first message that is sent, unless [`Stream::shake_hands`] was called.
    pub fn over_tls(socket: TcpStream, config: &Arc<ClientConfig>) -> Self {
        let name = "localhost".try_into().unwrap();
        let session = ClientConnection::new(Arc::clone(config), name).unwrap();
        Self::over(Wire::Tls(Box::new(StreamOwned::new(session, socket))))
    }

    /// Does what TLS has to do before messages, which waits for the server as long as the socket's read timeout lets it.
    pub fn shake_hands(&mut self) {
        if let Wire::Tls(tls) = &mut self.wire {
            tls.conn.complete_io(&mut tls.sock).unwrap();
        }
    }

    /// No stream, but datagrams.
    pub fn udp(at: SocketAddr) -> Self {
        let socket = UdpSocket::bind((at.ip(), 0)).unwrap();
        socket.connect(at).unwrap();
        socket.set_read_timeout(Some(HANG)).unwrap();
        Self::over(Wire::Udp(socket))
    }

    fn over(wire: Wire) -> Self {
        Self {
            wire,
            framer: Framer::new(false),
            ready: VecDeque::new(),
            is_bytewise: false,
        }
    }

    pub fn socket(&self) -> &TcpStream {
        match &self.wire {
            Wire::Tcp(socket) => socket,
            Wire::Tls(tls) => &tls.sock,
            Wire::Udp(_) => panic!("it is no stream"),
        }
    }

    pub fn addr(&self) -> Addr {
        let addr = match &self.wire {
            Wire::Udp(socket) => socket.local_addr(),
            _ => self.socket().local_addr(),
        };
        Addr::new(addr.unwrap())
    }

    pub fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let wire: &mut dyn Write = match &mut self.wire {
            Wire::Tcp(socket) => socket,
            Wire::Tls(tls) => tls,
            Wire::Udp(socket) => return socket.send(bytes).map(drop),
        };
        let piece = if self.is_bytewise {
            1
        } else {
            bytes.len().max(1)
        };
        bytes.chunks(piece).try_for_each(|piece| {
            wire.write_all(piece)?;
            wire.flush()
        })
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).unwrap();
    }

    /// One look for what has come: false if the connection is over.
    fn read(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let read = match &mut self.wire {
            Wire::Tcp(socket) => socket.read(&mut buffer),
            Wire::Tls(tls) => tls.read(&mut buffer),
            Wire::Udp(socket) => {
                let read = socket.recv(&mut buffer);
                if let Ok(len) = read {
                    self.ready.push_back(buffer[..len].to_vec());
                    return true;
                }
                read
            }
        };
        match read {
            Ok(0) => false,
            Ok(len) => {
                let ready = &mut self.ready;
                let fed = self
                    .framer
                    .feed(&buffer[..len], |message| ready.push_back(message.to_vec()));
                fed.unwrap();
                true
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => true,
            Err(_) => false,
        }
    }

    /// The next message; `None` once the connection is over.
    pub fn next(&mut self) -> Option<Vec<u8>> {
        let give_up = Instant::now() + HANG;
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Some(message);
            }
            assert!(Instant::now() < give_up, "nothing came");
            if !self.read() {
                return None;
            }
        }
    }

    /// A message that is there already or comes within the read timeout of the socket.
    pub fn poll(&mut self) -> Option<Vec<u8>> {
        if self.ready.is_empty() {
            assert!(self.read(), "the connection is over");
        }
        self.ready.pop_front()
    }

    pub fn receive(&mut self) -> Vec<u8> {
        self.next().expect("the connection is open")
    }

    /// Asserts that the server closes.
    pub fn expect_end(&mut self) {
        assert_eq!(self.next(), None);
    }
}

fn connect(at: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(at).unwrap();
    socket.set_nodelay(true).unwrap();
    socket.set_read_timeout(Some(HANG)).unwrap();
    socket
}

pub fn binding(id: u8) -> Vec<u8> {
    let mut out = Vec::new();
    let id = TransactionId([id; 12]);
    MessageWriter::new(&mut out, method::BINDING, Class::Request, id).finish();
    out
}

/// ChannelData with its padding.
pub fn channel(number: u16, data: &[u8]) -> Vec<u8> {
    let number = ChannelNumber::new(number).unwrap();
    let mut out = channel_data::header(number, data.len()).to_vec();
    out.extend_from_slice(data);
    out.resize(out.len() + padding(out.len()), 0xee);
    out
}

/// A TURN client.
pub struct TurnClient {
    pub stream: Stream,
    account: Account,
    /// The last answer.
    pub answer: Vec<u8>,
}

impl TurnClient {
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            account: Account::default(),
            answer: Vec::new(),
        }
    }

    /// Sends a request; returns the answer, or an error's code.
    pub fn try_request(
        &mut self,
        method: u16,
        fill: &dyn Fn(&mut MessageWriter<'_>),
    ) -> Result<Vec<u8>, u16> {
        loop {
            let request = self.account.write(method, fill);
            self.stream.send(&request);
            let bytes = self.stream.receive();
            self.answer.clone_from(&bytes);
            if let Some(outcome) = self.account.read(&bytes) {
                return outcome.map(|()| bytes);
            }
        }
    }

    pub fn request(&mut self, method: u16, fill: &dyn Fn(&mut MessageWriter<'_>)) -> Vec<u8> {
        self.try_request(method, fill).unwrap()
    }

    pub fn allocate(&mut self) -> SocketAddr {
        let bytes = self.request(method::ALLOCATE, &|w| {
            w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
        });
        let answer = Message::parse(&bytes).unwrap();
        let mapped = answer.find_xor_addr(attr::XOR_MAPPED_ADDRESS);
        assert_eq!(mapped, Some(self.stream.addr()));
        let relayed = answer.find_xor_addr(attr::XOR_RELAYED_ADDRESS).unwrap();
        relayed.to_socket_addr()
    }

    pub fn permit(&mut self, peer: Addr) {
        self.request(method::CREATE_PERMISSION, &|w| {
            w.xor_addr(attr::XOR_PEER_ADDRESS, peer);
        });
    }

    pub fn bind(&mut self, peer: Addr) {
        self.request(method::CHANNEL_BIND, &|w| {
            w.attribute(attr::CHANNEL_NUMBER, &[0x40, 0x0a, 0, 0])
                .xor_addr(attr::XOR_PEER_ADDRESS, peer);
        });
    }

    pub fn send_indication(&mut self, peer: Addr, data: &[u8]) {
        let mut out = Vec::new();
        let id = TransactionId([0; 12]);
        MessageWriter::new(&mut out, method::SEND, Class::Indication, id)
            .xor_addr(attr::XOR_PEER_ADDRESS, peer)
            .attribute(attr::DATA, data)
            .finish();
        self.stream.send(&out);
    }
}
