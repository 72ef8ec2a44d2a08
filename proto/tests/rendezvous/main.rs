//! The promises of the rendezvous and the session relay, each held by real shards against a client that is written from
//! the wire formats alone. Every test runs with one, two and three shards, on a virtual clock.

mod bad_input;
mod credentials;
mod door;
mod events;
mod introductions;
mod lifetime;
mod listing;
mod matching;
mod player;
mod relay;
mod resume;
mod seating;
mod sequences;
mod strangers;
mod vectors;
mod world;
