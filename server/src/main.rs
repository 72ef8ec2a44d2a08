//! The waypost server binary.

fn main() {}
