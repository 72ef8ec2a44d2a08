//! What `docs/operations.md` and `deploy/` say, held against what the server does.

use std::{collections::BTreeSet, fs, path::Path};

use super::{
    config::{Host, OPTIONS, Settings},
    counters::TABLES,
    metrics::names,
};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every file under `deploy/`, with its name.
fn deploy() -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut directories = vec![root().join("deploy")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => directories.push(path),
                false => files.push((
                    path.display().to_string(),
                    fs::read_to_string(&path).unwrap(),
                )),
            }
        }
    }
    assert!(files.len() > 5);
    files
}

fn metric_names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("waypost_")).collect()
}

#[test]
fn every_option_is_documented_with_its_default() {
    let text = read("docs/operations.md");
    for option in OPTIONS {
        let start = format!("| `--{} {}` |", option.name, option.value);
        let row = text.lines().find(|line| line.starts_with(&start));
        let row = row.unwrap_or_else(|| panic!("no row {start}"));
        if let super::config::Preset::Fixed(value) = option.preset {
            assert!(
                row.contains(&format!("| `{value}` |")),
                "{value} is not the default in {row}"
            );
        }
        assert_eq!(row.ends_with("| yes |"), option.reloads, "{row}");
    }
    let rows = text.lines().filter(|line| line.starts_with("| `--"));
    assert_eq!(
        rows.count(),
        OPTIONS.len() + 1,
        "one for each option and one for --config"
    );
}

#[test]
fn every_metric_is_documented_and_no_other() {
    let text = read("docs/operations.md");
    let documented = metric_names(&text);
    assert_eq!(documented, names(TABLES).into_iter().collect());
    for spec in TABLES.iter().flat_map(|table| table.iter()) {
        for (key, value) in spec.labels.iter().filter(|(key, _)| *key == "reason") {
            assert!(
                text.contains(&format!("\n| `{value}` |")),
                "{key} {value} is not explained"
            );
        }
    }
}

#[test]
fn dashboards_and_alerts_use_only_metrics_that_exist() {
    let known: BTreeSet<_> = names(TABLES).into_iter().collect();
    for (path, text) in deploy() {
        let strangers: Vec<_> = metric_names(&text).difference(&known).copied().collect();
        assert!(strangers.is_empty(), "{path} names {strangers:?}");
        if path.ends_with(".json") {
            let _: serde_json::Value = serde_json::from_str(&text).expect(&path);
        }
    }
}

#[test]
fn every_runbook_is_there() {
    let docs = read("docs/operations.md");
    let anchor = |heading: &str| heading.to_lowercase().replace(' ', "-");
    let headings: Vec<_> = docs
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .map(anchor)
        .collect();
    let alerts = read("deploy/prometheus/alerts.yml");
    let runbooks = alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("runbook: "));
    let runbooks: Vec<_> = runbooks.map(|text| text.trim_matches('"')).collect();
    assert_eq!(runbooks.len(), alerts.matches("- alert: ").count());
    for runbook in runbooks {
        let (file, section) = runbook.split_once('#').unwrap();
        assert_eq!(file, "docs/operations.md");
        assert!(
            headings.iter().any(|heading| heading == section),
            "no section {section}"
        );
    }
}

#[test]
fn the_sample_configuration_is_sound_when_uncommented() {
    let sample = read("deploy/waypost.toml");
    let keys = sample.lines().filter_map(|line| line.strip_prefix("# "));
    let keys: Vec<_> = keys.filter(|line| line.contains(" = ")).collect();
    let host = Host {
        core_count: 1,
        has_ipv6: true,
        state_dir: "/state".into(),
    };
    let mut settings = Settings::defaults(&host);
    settings
        .lay_file(Path::new("waypost.toml"), &keys.join("\n"))
        .unwrap();
    assert!(
        keys.len() + 3 >= OPTIONS.len(),
        "only the secrets themselves are left out"
    );
}

#[test]
fn deployment_variables_are_options() {
    let known: BTreeSet<_> = OPTIONS
        .iter()
        .map(super::config::OptionSpec::variable)
        .collect();
    for (path, text) in deploy() {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for word in words.filter(|word| word.starts_with("WAYPOST_")) {
            let known = known.contains(word) || word == "WAYPOST_COMMIT";
            assert!(known, "{path} sets {word}");
        }
    }
}
