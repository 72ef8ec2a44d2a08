//! Two shards of one server, and the mail between them.

use waypost_proto::turn::TurnConfig;

use crate::client::{Server, config};

/// Two shards of one server.
pub struct World {
    pub shards: [Server; 2],
    /// Questions between shards that get lost.
    pub lost: usize,
}

impl World {
    pub fn new() -> Self {
        Self::with(config())
    }

    pub fn with(turn: TurnConfig) -> Self {
        Self {
            shards: [0, 1].map(|index| Server::shard_of(turn.clone(), index, 2)),
            lost: 0,
        }
    }

    /// Ends the batch of each shard and carries the mail, until there is none.
    pub fn settle(&mut self) {
        loop {
            let mut mail = Vec::new();
            for server in &mut self.shards {
                server.shard.handle_timeout(server.now);
                server.settle();
                mail.append(&mut server.mail);
            }
            let [one, other] = &self.shards;
            let is_open_there = |at| other.relays.open.values().any(|open| open == at);
            assert!(
                !one.relays.open.values().any(is_open_there),
                "a port has one socket"
            );
            if mail.is_empty() {
                return;
            }
            for (shard, mail) in mail {
                if self.lost > 0 && mail.may_be_dropped() {
                    self.lost -= 1;
                    continue;
                }
                let server = &mut self.shards[usize::from(shard)];
                server.shard.handle_mail(server.now, mail);
                server.settle();
            }
        }
    }

    pub fn advance_secs(&mut self, secs: u64) {
        for server in &mut self.shards {
            server.advance_secs(secs);
        }
        self.settle();
    }
}
