//! Holds `docs/rfc.md` to what there is: every test that a table names is a test of the file it names, and a row without a test
//! says why.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The words by which a row without a test begins.
const EXCUSES: [&str; 3] = ["not applicable: ", "by construction: ", "open: "];

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The file that a row's name stands for.
fn file_of(short: &str) -> String {
    match (short, short.split_once('/')) {
        ("b", _) => "proto/tests/binding.rs".to_owned(),
        ("w", _) => "proto/src/wire/stun/tests.rs".to_owned(),
        ("s", _) => "server/tests/turn.rs".to_owned(),
        (_, Some(("t", name))) => format!("proto/tests/turn/{name}.rs"),
        (_, Some(("s", name))) => format!("server/tests/streams/{name}.rs"),
        (path, _) => path.to_owned(),
    }
}

/// Whether `source` has a test of this name: an attribute `#[test]`, other attributes perhaps, and the function.
fn has_test(source: &str, name: &str) -> bool {
    let lines: Vec<_> = source.lines().map(str::trim).collect();
    let head = format!("fn {name}(");
    let at = lines.iter().position(|line| line.starts_with(&head));
    at.is_some_and(|at| {
        let mut before = lines[..at].iter().rev();
        let attributes = before.by_ref().take_while(|line| line.starts_with("#["));
        attributes.into_iter().any(|line| *line == "#[test]")
    })
}

#[test]
fn every_demand_has_a_test_or_a_reason() {
    let text = fs::read_to_string(root().join("docs/rfc.md")).expect("docs/rfc.md is there");
    let mut sources: BTreeMap<String, String> = BTreeMap::new();
    let mut tested = 0;
    let rows = text.lines().filter(|line| line.starts_with("| "));
    for row in rows.filter(|row| !row.starts_with("| section |")) {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [section, demand, held_by] = cells[..] else {
            panic!("three cells: {row}");
        };
        let is_number = |part: &str| part.split('.').all(|number| number.parse::<u8>().is_ok());
        assert!(section.split(", ").all(is_number), "a section: {row}");
        assert!(!demand.is_empty(), "{row}");
        if EXCUSES.iter().any(|excuse| held_by.starts_with(excuse)) {
            continue;
        }
        for named in held_by.split(", ") {
            let named = named
                .strip_prefix('`')
                .and_then(|name| name.strip_suffix('`'));
            let (short, name) = named
                .and_then(|name| name.split_once("::"))
                .unwrap_or_else(|| panic!("`file::test`: {row}"));
            let path = file_of(short);
            let source = sources.entry(path.clone()).or_insert_with(|| {
                fs::read_to_string(root().join(&path)).unwrap_or_else(|e| panic!("{path}: {e}"))
            });
            assert!(has_test(source, name), "{path} has no test {name}: {row}");
        }
        tested += 1;
    }
    assert!(tested > 50, "{tested} rows were read");
}

#[test]
fn what_is_no_test_is_not_taken_for_one() {
    let source = "fn helper() {}\n#[test]\n#[should_panic]\nfn one() {}\n  #[test]\n  fn two(x in 0..3) {}\n";
    assert!(has_test(source, "one") && has_test(source, "two"));
    assert!(!has_test(source, "helper") && !has_test(source, "on") && !has_test(source, "three"));
}
