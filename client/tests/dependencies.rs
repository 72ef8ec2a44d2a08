//! How much the library brings along.

// What a test cannot set up fails the test.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::process::Command;

/// Crates in the library's tree, itself included.
const CRATES_MAX: usize = 15;

#[test]
fn the_tree_stays_small() {
    let tree = Command::new(env!("CARGO"))
        .args([
            "tree",
            "-p",
            "waypost-client",
            "--edges",
            "normal",
            "--prefix",
            "none",
        ])
        .args(["--offline", "--locked", "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(
        tree.status.success(),
        "{}",
        String::from_utf8_lossy(&tree.stderr)
    );
    let tree = String::from_utf8(tree.stdout).unwrap();
    let crates: BTreeSet<String> = tree
        .lines()
        .map(|line| {
            line.split_whitespace()
                .take(2)
                .collect::<Vec<_>>()
                .join(" ")
        })
        .filter(|name| !name.is_empty())
        .collect();
    assert!(
        crates.len() <= CRATES_MAX,
        "{} crates: {crates:#?}",
        crates.len()
    );
}
