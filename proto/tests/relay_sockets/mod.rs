//! The host's part in relay sockets: opening and closing them as a shard wants, as far as there is room.

use std::collections::BTreeMap;

use waypost_proto::addr::Addr;
use waypost_proto::shard::Shard;
use waypost_proto::time::Millis;
use waypost_proto::turn::{RelayCommand, RelayRefusal};

#[derive(Default)]
pub struct RelaySockets {
    /// Those that are open.
    pub open: BTreeMap<u16, Addr>,
    /// Ports that strangers have.
    pub in_use: Vec<u16>,
    /// Whether the host has no room for sockets.
    pub exhausted: bool,
}

impl RelaySockets {
    /// Carries out what the shard wants, and what it wants then.
    pub fn serve(&mut self, shard: &mut Shard, now: Millis) {
        loop {
            let commands = std::mem::take(&mut shard.outbox().relay);
            if commands.is_empty() {
                return;
            }
            for command in commands {
                match command {
                    RelayCommand::Open { socket, at, .. } => {
                        let outcome = if self.exhausted {
                            Err(RelayRefusal::Impossible)
                        } else if self.in_use.contains(&at.port()) {
                            Err(RelayRefusal::InUse)
                        } else {
                            assert!(self.open.values().all(|open| *open != at), "{at} twice");
                            assert!(self.open.insert(socket.0, at).is_none());
                            Ok(())
                        };
                        shard.handle_relay_opened(now, socket, outcome);
                    }
                    RelayCommand::Close { socket } => {
                        assert!(self.open.remove(&socket.0).is_some(), "it was open");
                    }
                }
            }
        }
    }
}
