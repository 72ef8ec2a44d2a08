//! A bounded number of seeds; `cargo run -p waypost-sim --release -- --joins 10000` runs more.

use waypost_sim::promptness::{joins_under_loss, streams, undisturbed};

#[test]
fn the_relay_takes_two_round_trips_at_most_and_the_direct_path_one() {
    for seed in 0..200 {
        if let Err(violation) = undisturbed(seed) {
            panic!("{violation}");
        }
    }
}

#[test]
fn two_who_want_a_stream_begin_together() {
    for seed in 0..200 {
        if let Err(violation) = streams(seed) {
            panic!("{violation}");
        }
    }
}

#[test]
fn joins_are_connected_in_time_although_much_is_lost() {
    let late: Vec<u64> = (0..300)
        .filter(|&seed| !joins_under_loss(seed).is_ok_and(|connected| connected))
        .collect();
    assert!(late.is_empty(), "these seeds took too long: {late:?}");
}
