//! A bounded number of seeds; `cargo run -p waypost-sim --release -- --seeds N --start S` runs more.

#[test]
fn seeded_worlds_break_no_rule() {
    let broken: Vec<String> = (0..1500)
        .filter_map(|seed| waypost_sim::scenario::run(seed).err())
        .map(|violation| violation.to_string())
        .collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
