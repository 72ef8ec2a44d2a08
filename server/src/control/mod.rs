//! Everything that is slow on purpose: options, logs, signals, metrics and the admin port.
//!
//! All of it runs at start-up or on one plain thread beside the shards. Nothing here is called
//! for a packet, and no shard ever waits for anything here.

pub mod admin;
pub mod config;
pub mod counters;
pub mod doctor;
#[cfg(test)]
mod documents;
mod histogram;
pub mod logging;
pub mod metrics;
pub mod noray_metrics;
mod process_metrics;
pub mod secret;
pub mod signals;
pub mod successor;
mod systemd;
pub mod thread;
