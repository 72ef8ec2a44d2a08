//! Connections of players to the server over TCP, on which a player has its address observed for a stream with another. What is
//! said on them takes as long as a datagram of its sender, and is neither lost nor doubled.

use waypost_proto::addr::{Addr, ClientAddr};
use waypost_proto::agent::{Agent, Observation, StreamEnd};
use waypost_proto::forwarding::SocketIndex;
use waypost_proto::time::Millis;
use waypost_proto::wire::native::SeatId;
use waypost_proto::wire::stun::TransactionId;

use super::{Item, SERVER_LATENCY_MS, SERVER_PORTS, World};
use crate::Violation;

/// One connection.
pub(super) struct Connection {
    host: usize,
    peer: SeatId,
    /// Its end as the server sees it.
    from: Addr,
    /// Whose it is.
    shard: u16,
    asked: TransactionId,
}

impl Connection {
    const fn listener(&self) -> SocketIndex {
        SocketIndex(SERVER_PORTS.len() as u16 + self.shard)
    }
}

impl World {
    /// A host connects to the server, which sees it at `from`, and asks for a stream with `peer`.
    ///
    /// # Errors
    /// A rule was broken.
    pub fn ask_for_stream(
        &mut self,
        host: usize,
        peer: SeatId,
        from: Addr,
    ) -> Result<(), Violation> {
        let connection = Connection {
            host,
            peer,
            from,
            shard: from.port() % self.shards.len() as u16,
            asked: TransactionId([0; 12]),
        };
        let now = Millis(self.now);
        self.shards[usize::from(connection.shard)].handle_stream_opened(
            now,
            connection.listener(),
            ClientAddr(from),
        );
        self.connections.push(connection);
        self.ask_to_be_observed(self.connections.len() - 1, None)
    }

    fn ask_to_be_observed(&mut self, at: usize, nonce: Option<&[u8]>) -> Result<(), Violation> {
        let Connection { host, peer, .. } = self.connections[at];
        let mut bytes = Vec::new();
        let write = |agent: &mut Agent, _| {
            agent.write_observe(peer, nonce, StreamEnd::default(), &mut bytes)
        };
        match self.with_agent(host, write)? {
            Some(Ok(id)) => self.connections[at].asked = id,
            other => {
                return Err(Violation(format!(
                    "host {host} asks for no stream: {other:?}"
                )));
            }
        }
        let due = self.now + 1 + self.hosts[host].latency_ms;
        self.say(due, at, true, bytes);
        Ok(())
    }

    /// What the server says to whom it sees at `to`, by a stream.
    pub(super) fn server_says(&mut self, socket: SocketIndex, to: Addr, bytes: Vec<u8>) {
        let is_to = |it: &Connection| (it.listener(), it.from) == (socket, to);
        if let Some(connection) = self.connections.iter().position(is_to) {
            let due = self.now + 1 + SERVER_LATENCY_MS;
            self.say(due, connection, false, bytes);
        }
    }

    fn say(&mut self, at: u64, connection: usize, to_server: bool, bytes: Vec<u8>) {
        let item = Item::Said {
            connection,
            to_server,
            bytes,
        };
        self.schedule(at, item);
    }

    /// A message has come to the other end.
    pub(super) fn hear(
        &mut self,
        at: usize,
        to_server: bool,
        bytes: &[u8],
    ) -> Result<(), Violation> {
        let connection = &self.connections[at];
        if to_server {
            let (socket, from) = (connection.listener(), connection.from);
            let shard = &mut self.shards[usize::from(connection.shard)];
            self.checker.server_heard(from);
            shard.handle_datagram(Millis(self.now), socket, ClientAddr(from), bytes);
            return self.drain_shards();
        }
        let answer = self
            .agent(connection.host)
            .map(|agent| agent.read_observed(connection.asked, bytes));
        match answer {
            Some(Observation::Nonce(nonce)) => self.ask_to_be_observed(at, Some(&nonce)),
            Some(Observation::Seen(seen)) if seen == connection.from => Ok(()),
            other => Err(Violation(format!(
                "host {} was to be observed: {other:?}",
                connection.host
            ))),
        }
    }
}
