//! A game's socket, for tests that speak a dialect's wire from outside a running server.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

/// A wait that ends a hung test; no test passes because of it.
pub const HANG: Duration = Duration::from_secs(20);

/// A socket, and the server that it speaks to.
pub struct Game {
    pub socket: UdpSocket,
    pub server: SocketAddr,
}

impl Game {
    pub fn new(server: SocketAddr) -> Self {
        Self::at(server, "127.0.0.1")
    }

    /// One at another loopback address.
    pub fn at(server: SocketAddr, ip: &str) -> Self {
        let socket = UdpSocket::bind((ip, 0)).unwrap();
        socket.set_read_timeout(Some(HANG)).unwrap();
        Self { socket, server }
    }

    pub fn addr(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    pub fn send(&self, datagram: impl AsRef<[u8]>) {
        self.socket.send_to(datagram.as_ref(), self.server).unwrap();
    }

    /// The next datagram and its source.
    pub fn receive_from(&self) -> (Vec<u8>, SocketAddr) {
        let mut buffer = [0; 65_536];
        loop {
            match self.socket.recv_from(&mut buffer) {
                Ok((len, from)) => return (buffer[..len].to_vec(), from),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("{} waits for a datagram: {error}", self.addr()),
            }
        }
    }

    /// The next datagram, as text.
    pub fn receive(&self) -> String {
        let (datagram, from) = self.receive_from();
        assert_eq!(from, self.server, "answers come from the listener");
        String::from_utf8(datagram).unwrap()
    }

    pub fn ask(&self, datagram: impl AsRef<[u8]>) -> String {
        self.send(datagram);
        self.receive()
    }

    /// Whether the server says nothing to `datagram`: the answer to `probe`, which is sent after it, comes first.
    #[allow(dead_code)]
    pub fn is_silent(&self, datagram: impl AsRef<[u8]>, probe: &str, answer: &str) {
        self.send(&datagram);
        let got = self.ask(probe);
        let said = String::from_utf8_lossy(datagram.as_ref()).into_owned();
        assert_eq!(got, answer, "after {said:?}");
    }
}
