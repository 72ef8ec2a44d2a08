//! How long commands and packets of noray take, for noray's own metrics. The clock is read once more in a turn of the shard that serves
//! noray, and once more for each kind of which there were some: each of them is taken to have lasted as long as all of its kind in
//! that turn on average.

use std::time::Instant;

use waypost_proto::shard::Shard;
use waypost_proto::stats::Counter;

use crate::control::metrics::ShardPublisher;
use crate::control::noray_metrics::Timed;

/// What was counted up to the last look.
#[derive(Debug, Default)]
pub struct NorayTimes {
    packets: u64,
    commands: [u64; Timed::COMMANDS.len()],
    datagrams: u64,
}

impl NorayTimes {
    /// All datagrams of a turn, of which `received` have come since the start, have been dealt with since `began`.
    pub fn look_at_packets(
        &mut self,
        shard: &Shard,
        publisher: &ShardPublisher,
        received: u64,
        began: Instant,
    ) {
        let datagrams = received - std::mem::replace(&mut self.datagrams, received);
        let packets =
            shard.counted(Counter::NorayPackets) + shard.counted(Counter::NorayRelayDrops);
        let new = packets - std::mem::replace(&mut self.packets, packets);
        if new > 0 {
            let share = u32::try_from(datagrams.max(new)).unwrap_or(u32::MAX);
            publisher.time_noray(Timed::Packet, began.elapsed() / share, new);
        }
    }

    /// All that came by streams in a turn has been dealt with since `began`.
    pub fn look_at_commands(&mut self, shard: &Shard, publisher: &ShardPublisher, began: Instant) {
        let commands = Timed::COMMANDS.map(|command| shard.counted(command.counter()));
        if commands == self.commands {
            return;
        }
        let took = began.elapsed();
        let before = std::mem::replace(&mut self.commands, commands);
        let new: [u64; Timed::COMMANDS.len()] = std::array::from_fn(|at| commands[at] - before[at]);
        let share = u32::try_from(new.iter().sum::<u64>()).unwrap_or(u32::MAX);
        for (timed, count) in Timed::COMMANDS.into_iter().zip(new) {
            if count > 0 {
                publisher.time_noray(timed, took / share, count);
            }
        }
    }
}
