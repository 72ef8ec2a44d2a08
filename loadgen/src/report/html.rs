//! The report as one page: the verdict first, then plots and tables. It loads nothing and has no scripts.

use std::fmt::Write as _;

use super::document::{Document, TimeFigures, Verdict};
use super::text::{LATENCY_ROWS, show_rate, show_sizes};
use crate::expect::{Outcome, percent, show_ns};
use crate::tally::Tally;
use crate::times::Times;
use waypost_loadgen::plot::{Axis, Line, Plot, Scale};

const STYLE: &str = include_str!("page.css");

/// The page.
pub fn render(document: &Document, tally: &Tally) -> String {
    let mut out = String::new();
    let load = &document.load;
    let _ = writeln!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Load on {}</title>\n<style>\n{STYLE}</style></head>\n<body><main>",
        text(&load.target)
    );
    write_verdict(&mut out, document, tally);
    if load.storm.is_none() {
        write_latency(&mut out, tally);
        write_over_time(&mut out, document);
    }
    write_sessions(&mut out, document);
    write_generator(&mut out, document);
    write_environment(&mut out, document);
    out.push_str("</main></body></html>\n");
    out
}

/// Text without markup.
fn text(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

fn write_verdict(out: &mut String, document: &Document, tally: &Tally) {
    let load = &document.load;
    let is_good = document.exit_code == 0;
    let verdict = match (&document.verdict, document.exit_code) {
        (Verdict::Invalid, _) => "Invalid: the figures mean nothing",
        (Verdict::Valid, 0) => "Valid: the generator kept its schedule",
        (Verdict::Valid, _) => "Valid, but an expectation failed",
    };
    let _ = writeln!(
        out,
        "<section class=\"verdict{}\"><h1>{verdict}</h1>",
        if is_good { "" } else { " failed" }
    );
    if let Some(reason) = &document.reason {
        let _ = writeln!(out, "<p class=\"bad\">{}</p>", text(reason));
    }
    let what = match &load.storm {
        Some(storm) => format!("{storm} storm"),
        None => format!(
            "{} datagrams/s of {} for {} s",
            show_rate(load),
            show_sizes(load),
            load.duration_secs
        ),
    };
    let _ = writeln!(
        out,
        "<p class=\"soft\">{} sessions of {} at {}, {}: {what}</p>",
        load.sessions,
        load.members,
        text(&load.target),
        text(&load.protocol)
    );
    if !document.expectations.is_empty() {
        out.push_str("<ul>\n");
        for judgement in &document.expectations {
            let (class, word) = match judgement.outcome {
                Outcome::Met => ("good", "✓ met"),
                Outcome::Failed => ("bad", "✗ failed"),
                Outcome::NotJudged => ("unsure", "? not judged"),
            };
            let _ = writeln!(
                out,
                "<li><code>{}</code> <span class=\"{class}\">{word}</span>, measured {}</li>",
                text(&judgement.expectation),
                text(&judgement.measured)
            );
        }
        out.push_str("</ul>\n");
    }
    out.push_str("<div class=\"tiles\">\n");
    let mut tile = |value: String, name: &str| {
        let _ = writeln!(out, "<div><b>{value}</b><span>{name}</span></div>");
    };
    tile(tally.opened.to_string(), "sessions set up");
    if load.storm.is_some() {
        let per_sec = tally.opened as f64 * 1e9 / (tally.filling_ns.max(1) as f64);
        tile(format!("{per_sec:.0}/s"), "sessions a second");
        let meet = document.sessions.meet_ns;
        tile(show_ns(meet.p50), "median until all have met");
        tile(show_ns(meet.p99), "p99 of that");
    } else {
        let per_sec = tally.received as f64 / load.duration_secs.max(1e-9);
        tile(format!("{per_sec:.0}/s"), "datagrams arrived");
        let lost = percent(tally.lost(), tally.sent);
        tile(format!("{lost:.3} %"), "lost");
        tile(show_ns(document.latency_ns.p50), "median latency");
        tile(show_ns(document.latency_ns.p99), "p99 latency");
    }
    out.push_str("</div></section>\n");
}

fn show_time(us: f64) -> String {
    show_ns((us * 1000.0).round() as u64)
}

/// A power of ten.
fn tick_time(us: f64) -> String {
    let units = [("us", 1.0), ("ms", 1e3), ("s", 1e6)];
    let unit = units.into_iter().rev().find(|(_, unit)| us >= *unit);
    let (name, unit) = unit.unwrap_or(("ns", 1e-3));
    format!("{:.0} {name}", us / unit)
}

fn show_percentile(halvings: f64) -> String {
    match halvings {
        h if h <= 1.0 => "0 %".to_owned(),
        h => {
            let percentile = 100.0 - 100.0 / h;
            let digits = (h.log10().round() as usize).saturating_sub(2);
            format!("{percentile:.digits$} %")
        }
    }
}

fn show_secs(secs: f64) -> String {
    format!("{secs} s")
}

fn show_count(count: f64) -> String {
    if count >= 1e6 {
        format!("{} M", count / 1e6)
    } else if count >= 1e4 {
        format!("{} k", count / 1e3)
    } else {
        format!("{count}")
    }
}

const MICROSECONDS: Axis = Axis {
    name: "Latency",
    scale: Scale::Log,
    show: show_time,
    tick: tick_time,
};
const SECONDS: Axis = Axis {
    name: "time",
    scale: Scale::Linear,
    show: show_secs,
    tick: show_secs,
};

/// Latency by percentile, the latter in the form 1 / (1 - p).
fn spectrum(times: &Times) -> Vec<(f64, f64)> {
    let times = times.histogram();
    let steps = times.iter_quantiles(4);
    let points = steps.map(|step| {
        let left = (1.0 - step.quantile()).max(0.5 / times.len().max(1) as f64);
        (1.0 / left, step.value_iterated_to() as f64 / 1000.0)
    });
    points.collect()
}

fn write_latency(out: &mut String, tally: &Tally) {
    out.push_str(
        "<section><h2>Latency by percentile</h2>\n<p class=\"soft\">From the intended send time a late sender's own waiting counts; \
         from the real one it hides. Where the two part, trust the first.</p>\n",
    );
    let plot = Plot {
        x: Axis {
            name: "percentile",
            scale: Scale::Log,
            show: show_percentile,
            tick: show_percentile,
        },
        y: MICROSECONDS,
        lines: vec![
            Line {
                name: "from the real send time",
                colour: 2,
                points: spectrum(&tally.uncorrected),
            },
            Line {
                name: "from the intended send time",
                colour: 1,
                points: spectrum(&tally.latency),
            },
        ],
        limit: None,
    };
    out.push_str(&plot.svg());
    out.push_str(
        "<table><thead><tr><th>percentile</th><th>from the intended send time</th><th>from the real one</th></tr></thead><tbody>\n",
    );
    for (name, value) in LATENCY_ROWS {
        let [intended, real] =
            [&tally.latency, &tally.uncorrected].map(|times| show_ns(value(times.histogram())));
        let _ = writeln!(
            out,
            "<tr><td>{name}</td><td>{intended}</td><td>{real}</td></tr>"
        );
    }
    out.push_str("</tbody></table></section>\n");
}

fn write_over_time(out: &mut String, document: &Document) {
    let series = &document.series;
    let line = |name, colour, value: &dyn Fn(&crate::series::Interval) -> f64| Line {
        name,
        colour,
        points: series
            .intervals
            .iter()
            .enumerate()
            .map(|(n, interval)| (series.end_secs(n), value(interval)))
            .collect(),
    };
    let quantile = |q: f64| {
        move |interval: &crate::series::Interval| interval.latency.quantile(q) as f64 / 1000.0
    };
    out.push_str("<section><h2>Over time</h2>\n");
    let latency = Plot {
        x: SECONDS,
        y: MICROSECONDS,
        lines: vec![
            line("max", 4, &quantile(1.0)),
            line("p99", 2, &quantile(0.99)),
            line("p50", 1, &quantile(0.5)),
        ],
        limit: None,
    };
    out.push_str(&latency.svg());
    let per_sec = 1.0 / series.interval_secs().max(1e-9);
    let rate = Plot {
        x: SECONDS,
        y: Axis {
            name: "Datagrams per second",
            scale: Scale::Linear,
            show: show_count,
            tick: show_count,
        },
        lines: vec![
            line("lost", 2, &|i| {
                i.sent.saturating_sub(i.received) as f64 * per_sec
            }),
            line("sent", 3, &|i| i.sent as f64 * per_sec),
            line("arrived", 1, &|i| i.received as f64 * per_sec),
        ],
        limit: None,
    };
    out.push_str(&rate.svg());
    let limit_ns = document.generator.lag_limit_ns;
    let lag = Plot {
        x: SECONDS,
        y: Axis {
            name: "The generator's own lag, p99",
            ..MICROSECONDS
        },
        lines: vec![line("lag p99", 3, &|i| {
            i.lag.quantile(0.99) as f64 / 1000.0
        })],
        limit: Some((
            limit_ns as f64 / 1000.0,
            format!("invalid above {}", show_ns(limit_ns)),
        )),
    };
    out.push_str(&lag.svg());
    out.push_str("</section>\n");
}

fn write_sessions(out: &mut String, document: &Document) {
    let sessions = &document.sessions;
    let _ = writeln!(
        out,
        "<section><h2>Sessions</h2>\n<p>{} set up in {:.2} s, {} failed, {} replaced.</p>",
        sessions.set_up, sessions.set_up_secs, sessions.failed, sessions.replaced
    );
    if !sessions.reasons.is_empty() {
        out.push_str("<ul>\n");
        for (reason, times) in &sessions.reasons {
            let _ = writeln!(
                out,
                "<li class=\"bad\">{times} &times; {}</li>",
                text(reason)
            );
        }
        out.push_str("</ul>\n");
    }
    out.push_str("<table><thead><tr><th>from asking</th><th>count</th><th>p50</th><th>p99</th><th>p99.9</th><th>max</th></tr></thead><tbody>\n");
    for (name, times) in [
        ("to hosting", sessions.host_ns),
        ("to having joined", sessions.join_ns),
        ("until all know each other", sessions.meet_ns),
    ] {
        let TimeFigures {
            count,
            p50,
            p99,
            p999,
            max,
            ..
        } = times;
        let shown = [p50, p99, p999, max].map(|ns| {
            if count == 0 {
                "-".to_owned()
            } else {
                show_ns(ns)
            }
        });
        let _ = writeln!(
            out,
            "<tr><td>{name}</td><td>{count}</td><td>{}</td></tr>",
            shown.join("</td><td>")
        );
    }
    out.push_str("</tbody></table>\n");
    let flood = document.flood;
    if flood.sent > 0 {
        let _ = writeln!(
            out,
            "<p>Strangers sent {} first requests ({} B); {} were answered ({} B, {:.2} times as many).</p>",
            flood.sent,
            flood.bytes_sent,
            flood.answered,
            flood.bytes_answered,
            flood.bytes_answered as f64 / flood.bytes_sent.max(1) as f64
        );
    }
    out.push_str("</section>\n");
}

fn rows(out: &mut String, rows: &[(&str, String)]) {
    out.push_str("<table><tbody>\n");
    for (name, value) in rows {
        let _ = writeln!(out, "<tr><td>{name}</td><td>{}</td></tr>", text(value));
    }
    out.push_str("</tbody></table></section>\n");
}

fn write_generator(out: &mut String, document: &Document) {
    let (generator, datagrams) = (&document.generator, &document.datagrams);
    out.push_str("<section><h2>Datagrams and generator</h2>\n");
    rows(
        out,
        &[
            ("sent", datagrams.sent.to_string()),
            ("arrived", datagrams.received.to_string()),
            ("lost", datagrams.lost.to_string()),
            ("reordered", datagrams.reordered.to_string()),
            ("duplicated", datagrams.duplicated.to_string()),
            ("corrupted", datagrams.corrupted.to_string()),
            ("misdelivered", datagrams.misdelivered.to_string()),
            ("refused by clients", datagrams.refused.to_string()),
            ("generator's lag, p99", show_ns(generator.lag_ns.p99)),
            ("slots missed", generator.slots_missed.to_string()),
            ("slots idle", generator.slots_idle.to_string()),
            (
                "refused by the kernel",
                generator.kernel_refused.to_string(),
            ),
            (
                "threads",
                format!(
                    "{} in {} process(es), busy {:.0} %, kept waiting for a core {:.0} %, {}",
                    document.load.threads,
                    document.processes,
                    generator.busy_percent,
                    generator.waited_percent,
                    document.load.io
                ),
            ),
        ],
    );
}

fn write_environment(out: &mut String, document: &Document) {
    let environment = &document.environment;
    out.push_str("<section><h2>Environment</h2>\n");
    let server = match &document.server {
        Some(server) => format!(
            "in the generator's process, {}, {} shard(s)",
            server.io, server.shards
        ),
        None => "on its own".to_owned(),
    };
    rows(
        out,
        &[
            ("kernel", environment.kernel.clone()),
            (
                "CPU",
                format!("{}, {} cores", environment.cpu, environment.cores),
            ),
            ("memory", format!("{} MiB", environment.memory_mib)),
            (
                "generator",
                format!(
                    "{}, commit {}, {} build",
                    environment.version, environment.commit, environment.build
                ),
            ),
            ("server", server),
            (
                "datagrams that found a full receive buffer",
                document.receive_buffer_errors.to_string(),
            ),
            ("options", environment.flags.join(" ")),
            ("seed", document.seed.to_string()),
        ],
    );
}

#[cfg(test)]
mod tests {
    use crate::report::tests::{good, report};

    #[test]
    fn the_page_stands_alone_and_says_the_verdict_first() {
        let mut tally = good();
        tally.fail("<b>bad & worse</b>".into());
        let page = report(&["--expect", "loss==0"], tally).html();
        let verdict = page.find("an expectation failed").unwrap();
        assert!(verdict < page.find("<svg").unwrap());
        for outside in ["http://", "https://", "<script", "<link", "<b>bad", "NaN"] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.contains("&lt;b&gt;bad &amp; worse"));
        assert_eq!(page.matches("<svg").count(), 4);
        assert_eq!(
            page.matches("<section").count(),
            page.matches("</section>").count()
        );
    }

    #[test]
    fn percentiles_are_named_as_people_know_them() {
        let shown = [1.0, 10.0, 100.0, 1000.0, 10_000.0].map(super::show_percentile);
        let ticks = [0.1, 1.0, 100.0, 10_000.0, 1e6].map(super::tick_time);
        assert_eq!(ticks, ["100 ns", "1 us", "100 us", "10 ms", "1 s"]);
        assert_eq!(shown, ["0 %", "90 %", "99 %", "99.9 %", "99.99 %"]);
    }
}
