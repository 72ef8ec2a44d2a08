//! Whether every public type of the library has an example that runs, those that come from `waypost_proto` too. Reads the sources.

// What a test cannot set up fails the test.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The types that the library names for its users: what `pub use` in its root lists and begins like a type.
fn types(root: &str) -> BTreeSet<String> {
    let uses = root.split("pub use ").skip(1);
    let listed = uses.flat_map(|rest| rest.split(';').next().unwrap().split([':', ',', '{', '}']));
    let names = listed.map(str::trim).filter(|name| {
        let is_constant = name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        name.starts_with(|c: char| c.is_ascii_uppercase()) && !is_constant
    });
    names.map(str::to_owned).collect()
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The documentation of a type, if this source declares it.
fn documentation(source: &str, name: &str) -> Option<String> {
    let lines: Vec<&str> = source.lines().collect();
    let at = lines.iter().position(|line| {
        let declared = ["pub struct ", "pub enum "]
            .iter()
            .find_map(|kind| line.strip_prefix(kind));
        let declared = declared.and_then(|rest| rest.strip_prefix(name));
        declared.is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
    })?;
    let is_of_it = |line: &&str| line.starts_with("///") || line.starts_with('#');
    let begins = lines[..at].iter().rposition(|line| !is_of_it(line));
    Some(lines[begins.map_or(0, |before| before + 1)..at].join("\n"))
}

/// Whether there is a block of code among it without a word that keeps it from being run.
fn runs(documentation: &str) -> bool {
    let fences = documentation
        .lines()
        .filter_map(|line| line.strip_prefix("/// ```"));
    fences.step_by(2).any(str::is_empty)
}

#[test]
fn every_public_type_has_an_example_that_runs() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = fs::read_to_string(here.join("src/lib.rs")).unwrap();
    let types = types(&root);
    assert!(types.contains("Session") && types.contains("JoinCode"));
    let mut files = Vec::new();
    // Names that several of them have are the library's own first.
    for part in [
        "client/src",
        "proto/src/agent",
        "proto/src/message",
        "proto/src/wire",
    ] {
        sources(&here.join("..").join(part), &mut files);
    }
    let texts: Vec<String> = files
        .iter()
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    let lacking: Vec<&String> = types
        .iter()
        .filter(|name| {
            let mut found = texts.iter().filter_map(|text| documentation(text, name));
            !runs(&found.next().unwrap_or_default())
        })
        .collect();
    assert!(lacking.is_empty(), "no example that runs: {lacking:?}");
}
