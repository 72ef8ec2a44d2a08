//! What the benchmarks share: a packet generator that checks what it gets back, the processes it
//! measures, and the agreement between both.

pub mod clients;
pub mod forwarder;
pub mod generator;
pub mod noray;
pub mod process;
pub mod relay;
pub mod sans_io;
pub mod shards;
pub mod spread;
pub mod turn;
pub mod turn_client;
pub mod waypost;
