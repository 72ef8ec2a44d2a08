//! Placeholder of the room; see the crate description.
