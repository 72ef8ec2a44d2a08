//! Many TURN clients at once (RFC 8656), one per end: allocating, binding channels, permitting peers and giving back. They
//! set up what a load then runs through, and are themselves the load of the allocation benchmark. Data is not sent here.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use waypost_proto::addr::Addr;
use waypost_proto::wire::stun::{
    Class, Integrity, LongTermKey, Message, MessageWriter, TransactionId, attr, method,
};

use crate::clients::Clients;
use crate::relay::Endpoint;

/// Requests that wait for their answers at the same time.
const AT_ONCE: usize = 64;
/// A request without an answer is sent again after this long.
const AGAIN: Duration = Duration::from_millis(250);
/// How long all requests of one step may take without any progress.
const LIMIT: Duration = Duration::from_secs(10);

/// The account that every client uses.
#[derive(Clone, Debug)]
pub struct Account {
    /// USERNAME.
    pub user: &'static str,
    /// Its password.
    pub password: &'static str,
    /// REALM.
    pub realm: &'static str,
}

/// The account that the benchmarks give to servers.
pub const ACCOUNT: Account = Account {
    user: "bench",
    password: "an-open-secret",
    realm: "waypost",
};

impl Account {
    /// The long-term key (RFC 8489 section 9.2.2).
    #[must_use]
    pub fn key(&self) -> LongTermKey {
        LongTermKey::md5(self.user, self.realm, self.password)
    }
}

/// Clients of one server.
pub struct TurnClients {
    server: SocketAddrV4,
    key: LongTermKey,
    /// The ends, each a five-tuple of its own.
    pub ends: Vec<Endpoint>,
    nonces: Vec<Vec<u8>>,
    /// The relayed transport address of each, once allocated.
    pub relayed: Vec<SocketAddr>,
    next_id: u64,
}

impl std::fmt::Debug for TurnClients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TurnClients")
            .field("server", &self.server)
            .field("clients", &self.ends.len())
            .finish_non_exhaustive()
    }
}

impl TurnClients {
    /// Clients at `ends`, without allocations.
    #[must_use]
    pub fn new(server: SocketAddrV4, ends: Vec<Endpoint>) -> Self {
        Self {
            server,
            key: ACCOUNT.key(),
            nonces: vec![Vec::new(); ends.len()],
            relayed: Vec::new(),
            ends,
            next_id: 0,
        }
    }

    /// Allocates for everybody: the challenge first, then the request with credentials.
    ///
    /// # Errors
    /// `TimedOut`, or what the server said.
    pub fn allocate(&mut self, clients: &mut Clients) -> io::Result<()> {
        let transport = |w: &mut MessageWriter<'_>, _| {
            w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
        };
        let mut nonces = vec![Vec::new(); self.ends.len()];
        self.ask(
            clients,
            method::ALLOCATE,
            false,
            transport,
            |n, answer| match (answer.error_code(), answer.find(attr::NONCE)) {
                (Some(401), Some(nonce)) => {
                    nonces[n] = nonce.to_vec();
                    true
                }
                _ => false,
            },
        )?;
        self.nonces = nonces;
        let mut relayed = vec![None; self.ends.len()];
        self.ask(clients, method::ALLOCATE, true, transport, |n, answer| {
            relayed[n] = answer.find_xor_addr(attr::XOR_RELAYED_ADDRESS);
            relayed[n].is_some()
        })?;
        self.relayed = relayed
            .into_iter()
            .flatten()
            .map(Addr::to_socket_addr)
            .collect();
        Ok(())
    }

    /// Binds one channel each, client `n`'s to `peers[n]`.
    ///
    /// # Errors
    /// As [`TurnClients::allocate`].
    pub fn bind(
        &mut self,
        clients: &mut Clients,
        channel: u16,
        peers: &[SocketAddr],
    ) -> io::Result<()> {
        let [high, low] = channel.to_be_bytes();
        let fill = |w: &mut MessageWriter<'_>, n: usize| {
            w.attribute(attr::CHANNEL_NUMBER, &[high, low, 0, 0])
                .xor_addr(attr::XOR_PEER_ADDRESS, Addr::new(peers[n]));
        };
        self.ask(clients, method::CHANNEL_BIND, true, fill, succeeded)
    }

    /// Permits one peer each.
    ///
    /// # Errors
    /// As [`TurnClients::allocate`].
    pub fn permit(&mut self, clients: &mut Clients, peers: &[SocketAddr]) -> io::Result<()> {
        let fill = |w: &mut MessageWriter<'_>, n: usize| {
            w.xor_addr(attr::XOR_PEER_ADDRESS, Addr::new(peers[n]));
        };
        self.ask(clients, method::CREATE_PERMISSION, true, fill, succeeded)
    }

    /// Gives every allocation back: a Refresh with a lifetime of zero.
    ///
    /// # Errors
    /// As [`TurnClients::allocate`].
    pub fn give_back(&mut self, clients: &mut Clients) -> io::Result<()> {
        let fill = |w: &mut MessageWriter<'_>, _| {
            w.u32(attr::LIFETIME, 0);
        };
        self.ask(clients, method::REFRESH, true, fill, succeeded)
    }

    /// The request of client `n`.
    fn request(
        &self,
        n: usize,
        method: u16,
        id: TransactionId,
        signed: bool,
        fill: &impl Fn(&mut MessageWriter<'_>, usize),
    ) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(256);
        let mut writer = MessageWriter::new(&mut bytes, method, Class::Request, id);
        fill(&mut writer, n);
        if signed {
            writer
                .attribute(attr::USERNAME, ACCOUNT.user.as_bytes())
                .attribute(attr::REALM, ACCOUNT.realm.as_bytes())
                .attribute(attr::NONCE, &self.nonces[n])
                .integrity(Integrity::Sha1, self.key.as_bytes());
        }
        writer.finish();
        bytes
    }

    /// One request of each client; `accept` sees every answer and says whether it is the wanted one.
    fn ask(
        &mut self,
        clients: &mut Clients,
        method: u16,
        signed: bool,
        fill: impl Fn(&mut MessageWriter<'_>, usize),
        mut accept: impl FnMut(usize, &Message<'_>) -> bool,
    ) -> io::Result<()> {
        let mut waiting: HashMap<TransactionId, (usize, Vec<u8>, Instant)> = HashMap::new();
        let mut next = 0;
        let mut refused = None;
        let mut progress = Instant::now();
        while next < self.ends.len() || !waiting.is_empty() {
            while waiting.len() < AT_ONCE && next < self.ends.len() {
                self.next_id += 1;
                let mut id = [0; 12];
                id[..8].copy_from_slice(&self.next_id.to_be_bytes());
                let id = TransactionId(id);
                let bytes = self.request(next, method, id, signed, &fill);
                stage(clients, self.ends[next], self.server, &bytes);
                waiting.insert(id, (next, bytes, Instant::now()));
                next += 1;
            }
            clients.flush();
            let ends = &self.ends;
            let came = clients.receive(|arrived| {
                let Ok(answer) = Message::parse(arrived.bytes) else {
                    return;
                };
                let id = answer.transaction_id();
                let Some(&(n, ..)) = waiting.get(&id).filter(|(n, ..)| ends[*n] == arrived.at)
                else {
                    return;
                };
                waiting.remove(&id);
                if !accept(n, &answer) {
                    refused = Some(answer.error_code());
                }
            });
            if let Some(code) = refused {
                return Err(io::Error::other(format!(
                    "the server answers method {method:#x} with {code:?}"
                )));
            }
            let now = Instant::now();
            if came > 0 {
                progress = now;
            } else if now.duration_since(progress) > LIMIT {
                return Err(io::ErrorKind::TimedOut.into());
            }
            for (n, bytes, sent) in waiting.values_mut() {
                if now.duration_since(*sent) > AGAIN {
                    *sent = now;
                    stage(clients, self.ends[*n], self.server, bytes);
                }
            }
        }
        Ok(())
    }
}

fn succeeded(_: usize, answer: &Message<'_>) -> bool {
    answer.class() == Class::Success
}

fn stage(clients: &mut Clients, from: Endpoint, to: SocketAddrV4, bytes: &[u8]) {
    clients.stage(from, to, |out| {
        out[..bytes.len()].copy_from_slice(bytes);
        bytes.len()
    });
}
