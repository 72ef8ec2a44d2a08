//! What the program writes with `--json`, held against the committed schema, and the ways from such files to other reports. The
//! validator knows the parts of JSON Schema that the schema uses, and refuses a schema with others.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

fn schema() -> Value {
    serde_json::from_str(include_str!("../report.schema.json")).unwrap()
}

/// What is wrong with `value`, and where.
fn wrong(schema: &Value, root: &Value, value: &Value, at: &str) -> Option<String> {
    let is_type = |name: &str| match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("the schema has a type {other}"),
    };
    for (keyword, rule) in schema.as_object().unwrap() {
        let bad = |why: String| Some(format!("{at}: {why}"));
        let found = match keyword.as_str() {
            "$schema" | "$defs" | "title" | "description" | "required" => None,
            "$ref" => {
                let name = rule.as_str().unwrap().strip_prefix("#/").unwrap();
                let target = root.pointer(&format!("/{name}")).unwrap();
                wrong(target, root, value, at)
            }
            "type" => {
                let names = rule
                    .as_array()
                    .cloned()
                    .unwrap_or_else(|| vec![rule.clone()]);
                let fits = names.iter().any(|name| is_type(name.as_str().unwrap()));
                (!fits).then(|| bad(format!("not {rule}"))).flatten()
            }
            "enum" => {
                let fits = rule.as_array().unwrap().contains(value);
                (!fits)
                    .then(|| bad(format!("{value} is none of {rule}")))
                    .flatten()
            }
            "const" => (rule != value)
                .then(|| bad(format!("not {rule}")))
                .flatten(),
            "minimum" => {
                let fits = value.as_f64().is_none_or(|n| n >= rule.as_f64().unwrap());
                (!fits)
                    .then(|| bad(format!("{value} is below {rule}")))
                    .flatten()
            }
            "pattern" => {
                assert_eq!(rule, "^[A-Za-z0-9+/]+=*$");
                let text = value.as_str().unwrap_or_default().trim_end_matches('=');
                let is_one = |c: char| c.is_ascii_alphanumeric() || c == '+' || c == '/';
                let fits = !text.is_empty() && text.chars().all(is_one);
                (!fits).then(|| bad("no base64".to_owned())).flatten()
            }
            "minItems" | "maxItems" => {
                let len = value.as_array().map_or(0, Vec::len) as u64;
                let bound = rule.as_u64().unwrap();
                let fits = if keyword == "minItems" {
                    len >= bound
                } else {
                    len <= bound
                };
                (!fits).then(|| bad(format!("{len} items"))).flatten()
            }
            "items" => value
                .as_array()
                .into_iter()
                .flatten()
                .enumerate()
                .find_map(|(n, item)| wrong(rule, root, item, &format!("{at}[{n}]"))),
            "properties" => {
                let missing = schema["required"].as_array().into_iter().flatten();
                let mut missing =
                    missing.filter(|name| value.get(name.as_str().unwrap()).is_none());
                let present = rule.as_object().unwrap().iter();
                let mut present = present.filter_map(|(name, rule)| {
                    wrong(rule, root, value.get(name)?, &format!("{at}.{name}"))
                });
                let missing = missing.next().and_then(|name| bad(format!("no {name}")));
                missing.or_else(|| present.next())
            }
            "additionalProperties" => {
                let known = schema.get("properties").and_then(Value::as_object);
                let more = value.as_object().into_iter().flatten();
                let mut more =
                    more.filter(|(name, _)| known.is_none_or(|known| !known.contains_key(*name)));
                more.find_map(|(name, value)| match rule {
                    Value::Bool(false) => bad(format!("an unknown {name}")),
                    _ => wrong(rule, root, value, &format!("{at}.{name}")),
                })
            }
            "oneOf" => {
                let each = rule.as_array().unwrap().iter();
                let wrongs: Vec<_> = each.map(|rule| wrong(rule, root, value, at)).collect();
                let fitting = wrongs.iter().filter(|wrong| wrong.is_none()).count();
                (fitting != 1)
                    .then(|| bad(format!("{fitting} fit: {wrongs:?}")))
                    .flatten()
            }
            other => panic!("the schema has a keyword {other}"),
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

fn scratch(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn program(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_waypost-loadgen"))
        .args(arguments)
        .output()
        .unwrap()
}

/// Runs the program with `--json` and checks what it writes.
fn checked(name: &str, arguments: &[&str]) -> (PathBuf, Value) {
    let file = scratch(name);
    let output = program(&[arguments, &["--json", file.to_str().unwrap()]].concat());
    let text = std::fs::read_to_string(&file)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    let value: Value = serde_json::from_str(&text).unwrap();
    let schema = schema();
    assert_eq!(wrong(&schema, &schema, &value, "report"), None, "{name}");
    (file, value)
}

const SHORT: [&str; 8] = [
    "--lag-limit",
    "60s",
    "--sessions",
    "3",
    "--warm-up",
    "0",
    "--duration",
    "1",
];

#[test]
fn the_validator_finds_what_is_wrong() {
    let (_, good) = checked("schema-good.json", &SHORT);
    let schema = schema();
    let spoilt: [fn(&mut Value); 5] = [
        |value| value["version"] = 2.into(),
        |value| value["more"] = 1.into(),
        |value| value["datagrams"]["sent"] = (-1).into(),
        |value| value["series"]["intervals"][0]["latency"] = "%".into(),
        |value| {
            value["load"].as_object_mut().unwrap().remove("target");
        },
    ];
    for spoil in spoilt {
        let mut bad = good.clone();
        spoil(&mut bad);
        assert!(wrong(&schema, &schema, &bad, "report").is_some());
    }
}

#[test]
fn runs_of_all_kinds_fit_the_schema() {
    for (name, more) in [
        ("schema-storm.json", &["--storm", "punch"][..]),
        (
            "schema-flood.json",
            &["--flood", "100", "--expect", "p99<1ns"],
        ),
        (
            "schema-ramp.json",
            &["--ramp-from", "10", "--arrivals", "poisson"],
        ),
        (
            "schema-simple.json",
            &["--protocol", "simple", "--setup-rate", "50"],
        ),
        ("schema-invalid.json", &["--lag-limit", "1ns"]),
    ] {
        let arguments = match more[0] {
            "--lag-limit" => [&SHORT[2..], more].concat(),
            _ => [&SHORT[..], more].concat(),
        };
        checked(name, &arguments);
    }
}

#[test]
fn reports_are_merged_compared_and_written_in_all_forms() {
    let (one, first) = checked("merge-one.json", &SHORT);
    let (two, second) = checked("merge-two.json", &SHORT);
    // Each hosted a server of its own; as if it had been one.
    for file in [&one, &two] {
        let text = std::fs::read_to_string(file).unwrap();
        let mut value: Value = serde_json::from_str(&text).unwrap();
        value["load"]["target"] = "127.0.0.1:3478".into();
        std::fs::write(file, value.to_string()).unwrap();
    }
    let files = [&one, &two].map(|file| file.to_str().unwrap());
    let (html, csv) = (scratch("merged.html"), scratch("merged.csv"));
    let written = [
        "--html",
        html.to_str().unwrap(),
        "--csv",
        csv.to_str().unwrap(),
    ];
    let (_, sum) = checked("merged.json", &[&["merge"], &files[..], &written].concat());
    let received = |value: &Value| value["datagrams"]["received"].as_u64().unwrap();
    assert_eq!(received(&sum), received(&first) + received(&second));
    assert_eq!(sum["latency_ns"]["count"].as_u64(), Some(received(&sum)));
    assert_eq!(sum["processes"], 2);
    assert!(std::fs::read_to_string(html).unwrap().contains("</html>"));
    assert_eq!(std::fs::read_to_string(csv).unwrap().lines().count(), 11);
    let output = program(&["compare", files[0], files[0]]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("no certain change"), "{text}");
    let other = program(&["compare", files[0], env!("CARGO_BIN_EXE_waypost-loadgen")]);
    assert_eq!(other.status.code(), Some(78));
}

#[test]
fn the_highest_rate_is_looked_for_three_times() {
    // A bound that no machine misses and one that no rate meets.
    let quick = ["--duration", "0.2", "--rate", "1", "--lag-limit", "60s"];
    let base = [&SHORT[2..6], &quick, &["--find-max", "--expect"]].concat();
    let (_, none) = checked("max-none.json", &[&base[..], &["sent>1000000000"]].concat());
    assert_eq!(
        (&none["rate_per_sec"], &none["exit_code"]),
        (&0.into(), &99.into())
    );
    assert_eq!(none["searches"].as_array().unwrap().len(), 3);
    let (_, some) = checked("max-some.json", &[&base[..], &["sent<=20"]].concat());
    assert_eq!(some["exit_code"], 0);
    // 0.2 s at 100/s are 20 datagrams; the slot at the end of the time is not in it.
    let rate = some["rate_per_sec"].as_u64().unwrap();
    assert!((85..=105).contains(&rate), "{rate}");
}
