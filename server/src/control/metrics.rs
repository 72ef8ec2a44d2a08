//! Numbers for the outside: what shards publish, summed only when somebody asks, and rendered as
//! OpenMetrics text.
//!
//! Each shard has cells of its own that it alone writes, with relaxed stores, padded so that no two
//! shards share a cache line. A shard keeps plain integers and publishes them a few times a second;
//! nothing here is touched per packet, and nothing a reader does slows a writer.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crossbeam::utils::CachePadded;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::Registry,
};

use super::histogram::Histogram;
use super::noray_metrics::Timed;

/// A shard that has not ticked for this long is stuck.
pub const TICK_AGE_MAX: Duration = Duration::from_secs(5);

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Commit of this build, when the build was told (`WAYPOST_COMMIT`).
pub const COMMIT: &str = match option_env!("WAYPOST_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// Cells per padded block: 128 bytes, the unit that neighbouring-line prefetch works in.
const BLOCK: usize = 16;

/// Whether a number only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CounterKind {
    /// It only grows; the name ends in `_total`.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// One number that every shard publishes.
#[derive(Clone, Copy, Debug)]
pub struct CounterSpec {
    /// Full name, `waypost_` first.
    pub name: &'static str,
    /// One sentence without a full stop.
    pub help: &'static str,
    /// Fixed labels; several numbers of one name differ in them.
    pub labels: &'static [(&'static str, &'static str)],
    /// Whether it only grows.
    pub kind: CounterKind,
    /// Shown for each shard, with a `shard` label, in place of the sum.
    pub per_shard: bool,
}

/// A number that only grows.
pub const fn counter(
    name: &'static str,
    help: &'static str,
    labels: &'static [(&'static str, &'static str)],
) -> CounterSpec {
    CounterSpec {
        name,
        help,
        labels,
        kind: CounterKind::Counter,
        per_shard: false,
    }
}

/// A number that goes up and down.
pub const fn gauge(
    name: &'static str,
    help: &'static str,
    labels: &'static [(&'static str, &'static str)],
) -> CounterSpec {
    CounterSpec {
        kind: CounterKind::Gauge,
        ..counter(name, help, labels)
    }
}

impl CounterSpec {
    /// Shows it for each shard.
    pub const fn per_shard(mut self) -> Self {
        self.per_shard = true;
        self
    }

    /// Name and labels as a query would write them, `waypost_packets_total{dir="in"}`.
    pub fn series(&self) -> String {
        let labels: Vec<_> = self
            .labels
            .iter()
            .map(|(key, value)| format!("{key}=\"{value}\""))
            .collect();
        match labels.is_empty() {
            true => self.name.to_owned(),
            false => format!("{}{{{}}}", self.name, labels.join(",")),
        }
    }
}

/// All numbers of the process.
#[derive(Debug)]
pub struct Metrics {
    tables: &'static [&'static [CounterSpec]],
    shards: Vec<ShardCells>,
    epoch: Instant,
    start_unix_secs: u64,
    draining: AtomicBool,
    reload_unix_secs: AtomicU64,
    reload_successful: AtomicBool,
    /// Of noray, which one shard serves.
    noray_times: [Histogram; Timed::COUNT],
}

/// What one shard writes, and what is derived from it.
#[derive(Debug)]
struct ShardCells {
    taken: AtomicBool,
    /// Tables one behind the other.
    values: Box<[CachePadded<[AtomicU64; BLOCK]>]>,
    pulse: CachePadded<Pulse>,
    busy: CachePadded<BusySample>,
    backend: std::sync::OnceLock<&'static str>,
}

/// Written by the shard.
#[derive(Debug, Default)]
struct Pulse {
    /// Milliseconds since the epoch of the metrics, plus one; 0 is never.
    tick_ms: AtomicU64,
    /// Time awake since start, in nanoseconds.
    busy_ns: AtomicU64,
}

/// Written by the control thread.
#[derive(Debug, Default)]
struct BusySample {
    taken_ns: AtomicU64,
    busy_ns: AtomicU64,
    permille: AtomicU64,
}

/// One shard as the status page shows it.
#[derive(Clone, Debug)]
pub struct ShardState {
    /// `uring` or `mmsg`; none until the shard has bound its sockets.
    pub backend: Option<&'static str>,
    /// Time since its last tick; none before the first.
    pub tick_age: Option<Duration>,
    /// Share of the last sampling interval that it was awake, 0 to 1.
    pub busy_ratio: f64,
}

impl Metrics {
    /// Numbers for `shard_count` shards that publish `tables`. Tables that contradict themselves
    /// (two equal series, one name with two kinds) are a bug of ours and panic.
    pub fn new(tables: &'static [&'static [CounterSpec]], shard_count: usize) -> Arc<Self> {
        check(tables);
        let cell_count: usize = tables.iter().map(|table| table.len()).sum();
        let shard = || ShardCells {
            taken: AtomicBool::new(false),
            values: (0..cell_count.div_ceil(BLOCK))
                .map(|_| CachePadded::default())
                .collect(),
            pulse: CachePadded::default(),
            busy: CachePadded::default(),
            backend: std::sync::OnceLock::new(),
        };
        Arc::new(Self {
            tables,
            shards: (0..shard_count).map(|_| shard()).collect(),
            epoch: Instant::now(),
            start_unix_secs: unix_secs(),
            draining: AtomicBool::new(false),
            reload_unix_secs: AtomicU64::new(unix_secs()),
            reload_successful: AtomicBool::new(true),
            noray_times: Default::default(),
        })
    }

    /// The writing end of one shard. There is one for each; asking twice is a bug of ours.
    pub fn publisher(self: &Arc<Self>, shard: usize) -> ShardPublisher {
        let twice = self.shards[shard].taken.swap(true, Relaxed);
        assert!(
            !twice,
            "shard {shard} has a publisher already: its cells have one writer"
        );
        ShardPublisher {
            metrics: Arc::clone(self),
            shard,
        }
    }

    /// Whether every shard has bound its sockets.
    pub fn all_bound(&self) -> bool {
        self.shards
            .iter()
            .all(|shard| shard.backend.get().is_some())
    }

    /// Whether every shard ticked within [`TICK_AGE_MAX`].
    pub fn all_ticking(&self) -> bool {
        let fresh = |state: &ShardState| state.tick_age.is_some_and(|age| age <= TICK_AGE_MAX);
        self.shard_states().iter().all(fresh)
    }

    /// Whether the server takes no new sessions and waits for the old ones to end.
    pub fn draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// From now on the server drains.
    pub fn set_draining(&self) {
        self.draining.store(true, Relaxed);
    }

    /// Notes how the last reload went.
    pub fn set_reload(&self, successful: bool) {
        self.reload_successful.store(successful, Relaxed);
        if successful {
            self.reload_unix_secs.store(unix_secs(), Relaxed);
        }
    }

    /// How long something of noray's takes.
    pub(super) fn noray_times(&self, of: Timed) -> &Histogram {
        &self.noray_times[of as usize]
    }

    /// When the process started, in seconds since 1970.
    pub fn start_unix_secs(&self) -> u64 {
        self.start_unix_secs
    }

    /// Renews the busy ratios; for one thread, about once a second.
    pub fn sample_busy(&self, now: Instant) {
        let now_ns = now.saturating_duration_since(self.epoch).as_nanos() as u64;
        for shard in &self.shards {
            let busy_ns = shard.pulse.busy_ns.load(Relaxed);
            let elapsed = now_ns.saturating_sub(shard.busy.taken_ns.swap(now_ns, Relaxed));
            let busy = busy_ns.saturating_sub(shard.busy.busy_ns.swap(busy_ns, Relaxed));
            let permille = (busy.saturating_mul(1000))
                .checked_div(elapsed)
                .unwrap_or(0)
                .min(1000);
            shard.busy.permille.store(permille, Relaxed);
        }
    }

    /// Every shard as it stands.
    pub fn shard_states(&self) -> Vec<ShardState> {
        let now_ms = self.epoch.elapsed().as_millis() as u64;
        let state = |shard: &ShardCells| ShardState {
            backend: shard.backend.get().copied(),
            tick_age: match shard.pulse.tick_ms.load(Relaxed) {
                0 => None,
                tick_ms => Some(Duration::from_millis(now_ms.saturating_sub(tick_ms - 1))),
            },
            busy_ratio: shard.busy.permille.load(Relaxed) as f64 / 1000.0,
        };
        self.shards.iter().map(state).collect()
    }

    /// Sum over shards and labels of every number of that name.
    pub fn total(&self, name: &str) -> u64 {
        let named = self.specs().filter(|(_, spec)| spec.name == name);
        named.map(|(cell, _)| self.sum(cell)).sum()
    }

    /// Every series with its sum over all shards.
    pub fn totals(&self) -> BTreeMap<String, u64> {
        self.specs()
            .map(|(cell, spec)| (spec.series(), self.sum(cell)))
            .collect()
    }

    /// Every series of one shard.
    pub fn of_shard(&self, shard: usize) -> BTreeMap<String, u64> {
        let shard = &self.shards[shard];
        self.specs()
            .map(|(cell, spec)| (spec.series(), shard.read(cell)))
            .collect()
    }

    /// Everything as OpenMetrics text of type [`CONTENT_TYPE`].
    pub fn render(self: &Arc<Self>) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Arc::clone(self)));
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = text::encode(&mut text, &registry);
        text
    }

    fn specs(&self) -> impl Iterator<Item = (usize, &'static CounterSpec)> + use<> {
        self.tables
            .iter()
            .flat_map(|table| table.iter())
            .enumerate()
    }

    fn sum(&self, cell: usize) -> u64 {
        let values = self.shards.iter().map(|shard| shard.read(cell));
        values.fold(0, u64::wrapping_add)
    }

    fn first_cell(&self, table: usize) -> usize {
        self.tables[..table].iter().map(|table| table.len()).sum()
    }
}

impl ShardCells {
    fn read(&self, cell: usize) -> u64 {
        self.values[cell / BLOCK][cell % BLOCK].load(Relaxed)
    }
}

/// The writing end of one shard's numbers; it lives on that shard's thread.
#[derive(Debug)]
pub struct ShardPublisher {
    metrics: Arc<Metrics>,
    shard: usize,
}

impl ShardPublisher {
    /// The sockets are bound and the shard serves; `backend` is `uring` or `mmsg`.
    pub fn bound(&self, backend: &'static str) {
        let _ = self.cells().backend.set(backend);
    }

    /// The shard lives. `busy` is the whole time since its start that it did not sleep. To be called
    /// at least once a second, idle or not.
    pub fn tick(&self, now: Instant, busy: Duration) {
        let ms = now
            .saturating_duration_since(self.metrics.epoch)
            .as_millis() as u64;
        self.cells().pulse.tick_ms.store(ms + 1, Relaxed);
        self.cells()
            .pulse
            .busy_ns
            .store(busy.as_nanos() as u64, Relaxed);
    }

    /// Publishes the values of one table, in the table's order.
    pub fn publish(&self, table: usize, values: &[u64]) {
        assert_eq!(
            values.len(),
            self.metrics.tables[table].len(),
            "table {table} and its values are of one length"
        );
        let first = self.metrics.first_cell(table);
        for (cell, value) in (first..).zip(values) {
            self.cells().values[cell / BLOCK][cell % BLOCK].store(*value, Relaxed);
        }
    }

    /// So many of noray's commands or packets took so long each. For the shard that serves noray.
    pub fn time_noray(&self, what: Timed, each: Duration, count: u64) {
        self.metrics.noray_times(what).observe(each, count);
    }

    fn cells(&self) -> &ShardCells {
        &self.metrics.shards[self.shard]
    }
}

/// The families that do not come from the tables.
const OWN: &[(&str, &str)] = &[
    ("waypost_build_info", "Version and commit of this build"),
    (
        "waypost_start_time_seconds",
        "When the process started, in seconds since 1970",
    ),
    ("waypost_draining", "1 when no new sessions are taken"),
    ("waypost_backend", "Shards that run on this packet backend"),
    (
        "waypost_shard_bound",
        "1 when the shard has bound its sockets",
    ),
    (
        "waypost_shard_tick_age_seconds",
        "Time since the last tick of the shard",
    ),
    (
        "waypost_shard_busy_ratio",
        "Share of the last second that the shard was awake",
    ),
    (
        "waypost_config_last_reload_successful",
        "1 when the last reload was taken, 0 when it was refused",
    ),
    (
        "waypost_config_last_reload_success_timestamp_seconds",
        "When the configuration was last taken, in seconds since 1970",
    ),
];

/// Every name that [`Metrics::render`] shows for these tables.
pub fn names(tables: &[&[CounterSpec]]) -> Vec<&'static str> {
    let specs = tables.iter().flat_map(|table| table.iter());
    let mut names: Vec<_> = specs.map(|spec| spec.name).collect();
    names.extend(OWN.iter().map(|(name, _)| *name));
    names.sort_unstable();
    names.dedup();
    names
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        self.encode_own(&mut encoder)?;
        let mut families: BTreeMap<&str, Vec<(usize, &CounterSpec)>> = BTreeMap::new();
        for (cell, spec) in self.specs() {
            families.entry(spec.name).or_default().push((cell, spec));
        }
        for members in families.values() {
            let (_, first) = members[0];
            let kind = match first.kind {
                CounterKind::Counter => MetricType::Counter,
                CounterKind::Gauge => MetricType::Gauge,
            };
            // The encoder puts the suffix back.
            let stem = first.name.strip_suffix("_total").unwrap_or(first.name);
            let mut family = encoder.encode_descriptor(stem, first.help, None, kind)?;
            for (cell, spec) in members {
                if spec.per_shard {
                    for (index, shard) in self.shards.iter().enumerate() {
                        let index = index.to_string();
                        let mut labels = spec.labels.to_vec();
                        labels.push(("shard", &index));
                        encode_value(&mut family, spec.kind, &labels, shard.read(*cell))?;
                    }
                } else {
                    encode_value(&mut family, spec.kind, spec.labels, self.sum(*cell))?;
                }
            }
        }
        Ok(())
    }
}

impl Metrics {
    fn encode_own(&self, encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
        let states = self.shard_states();
        let flag = |truth: bool| f64::from(u8::from(truth));
        for (name, help) in OWN {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            let mut put = |labels: &[(&str, &str)], value: f64| match labels {
                [] => family.encode_gauge(&value),
                labels => family.encode_family(&labels)?.encode_gauge(&value),
            };
            let mut put_shards = |value: &dyn Fn(&ShardState) -> Option<f64>| {
                for (index, state) in states.iter().enumerate() {
                    if let Some(value) = value(state) {
                        put(&[("shard", &index.to_string())], value)?;
                    }
                }
                Ok(())
            };
            match *name {
                "waypost_build_info" => put(&[("version", VERSION), ("commit", COMMIT)], 1.0)?,
                "waypost_start_time_seconds" => put(&[], self.start_unix_secs as f64)?,
                "waypost_draining" => put(&[], flag(self.draining()))?,
                "waypost_backend" => {
                    let mut counts: BTreeMap<&str, f64> = BTreeMap::new();
                    for backend in states.iter().filter_map(|state| state.backend) {
                        *counts.entry(backend).or_default() += 1.0;
                    }
                    for (backend, count) in counts {
                        put(&[("backend", backend)], count)?;
                    }
                }
                "waypost_shard_bound" => put_shards(&|state| Some(flag(state.backend.is_some())))?,
                "waypost_shard_tick_age_seconds" => {
                    put_shards(&|state| state.tick_age.map(|age| age.as_secs_f64()))?;
                }
                "waypost_shard_busy_ratio" => put_shards(&|state| Some(state.busy_ratio))?,
                "waypost_config_last_reload_successful" => {
                    put(&[], flag(self.reload_successful.load(Relaxed)))?;
                }
                "waypost_config_last_reload_success_timestamp_seconds" => {
                    put(&[], self.reload_unix_secs.load(Relaxed) as f64)?;
                }
                unknown => unreachable!("{unknown} is named but not rendered"),
            }
        }
        Ok(())
    }
}

fn encode_value(
    family: &mut MetricEncoder,
    kind: CounterKind,
    labels: &[(&str, &str)],
    value: u64,
) -> Result<(), fmt::Error> {
    let put = |encoder: &mut MetricEncoder| match kind {
        CounterKind::Counter => encoder.encode_counter::<NoLabelSet, u64, u64>(&value, None),
        CounterKind::Gauge => encoder.encode_gauge(&(value as f64)),
    };
    match labels {
        [] => put(family),
        labels => put(&mut family.encode_family(&labels)?),
    }
}

fn check(tables: &[&[CounterSpec]]) {
    let mut first_of: BTreeMap<&str, &CounterSpec> = BTreeMap::new();
    let mut series = std::collections::BTreeSet::new();
    for spec in tables.iter().flat_map(|table| table.iter()) {
        assert!(
            series.insert(spec.series()),
            "{} is there twice",
            spec.series()
        );
        let counts_up = spec.kind == CounterKind::Counter;
        assert_eq!(
            counts_up,
            spec.name.ends_with("_total"),
            "{} is named for its kind",
            spec.name
        );
        assert!(
            !OWN.iter().any(|(own, _)| *own == spec.name),
            "{} is taken",
            spec.name
        );
        let first = first_of.entry(spec.name).or_insert(spec);
        let alike = first.per_shard == spec.per_shard && first.help == spec.help;
        assert!(alike, "the series of {} are of one form", spec.name);
    }
}

fn unix_secs() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::counters::{IO_COUNTERS, IO_TABLE, PROTOCOL_TABLE, TABLES};

    const IN: &[(&str, &str)] = &[("dir", "in")];
    const SMALL: &[&[CounterSpec]] = &[
        &[
            counter("t_packets_total", "Packets", IN).per_shard(),
            counter("t_dropped_total", "Dropped", &[("reason", "parse")]),
        ],
        &[
            gauge("t_sessions", "Sessions", &[]),
            counter("t_dropped_total", "Dropped", &[("reason", "quota")]),
        ],
    ];

    #[test]
    fn shards_are_summed_or_shown_one_by_one() {
        let metrics = Metrics::new(SMALL, 2);
        let (first, second) = (metrics.publisher(0), metrics.publisher(1));
        first.publish(0, &[10, 1]);
        first.publish(1, &[3, 5]);
        second.publish(0, &[20, 2]);
        second.publish(1, &[4, 0]);
        let text = metrics.render();
        for line in [
            "# TYPE t_packets counter",
            "t_packets_total{dir=\"in\",shard=\"0\"} 10",
            "t_packets_total{dir=\"in\",shard=\"1\"} 20",
            "t_dropped_total{reason=\"parse\"} 3",
            "t_dropped_total{reason=\"quota\"} 5",
            "# TYPE t_sessions gauge",
            "t_sessions 7.0",
            "# EOF",
        ] {
            assert!(text.lines().any(|got| got == line), "no {line} in\n{text}");
        }
        assert_eq!(
            text.matches("# TYPE t_dropped counter").count(),
            1,
            "{text}"
        );
        assert_eq!(metrics.total("t_dropped_total"), 8);
        assert_eq!(metrics.totals()["t_packets_total{dir=\"in\"}"], 30);
        assert_eq!(metrics.of_shard(1)["t_sessions"], 4);
    }

    #[test]
    fn a_shard_is_bound_ticks_and_is_busy() {
        let metrics = Metrics::new(TABLES, 2);
        let shards = [metrics.publisher(0), metrics.publisher(1)];
        assert!(!metrics.all_bound() && !metrics.all_ticking());
        let start = metrics.epoch;
        for shard in &shards {
            shard.bound("mmsg");
            shard.tick(Instant::now(), Duration::ZERO);
        }
        assert!(metrics.all_bound() && metrics.all_ticking());
        metrics.sample_busy(start + Duration::from_secs(1));
        shards[1].tick(start + Duration::from_secs(2), Duration::from_millis(250));
        metrics.sample_busy(start + Duration::from_secs(2));
        let text = metrics.render();
        for line in [
            "waypost_shard_busy_ratio{shard=\"0\"} 0.0",
            "waypost_shard_busy_ratio{shard=\"1\"} 0.25",
            "waypost_backend{backend=\"mmsg\"} 2.0",
            "waypost_shard_bound{shard=\"1\"} 1.0",
            "waypost_draining 0.0",
        ] {
            assert!(text.lines().any(|got| got == line), "no {line} in\n{text}");
        }
        metrics.set_draining();
        assert!(metrics.render().contains("waypost_draining 1.0"));
    }

    #[test]
    fn every_name_that_is_promised_is_rendered() {
        let metrics = Metrics::new(TABLES, 1);
        let shard = metrics.publisher(0);
        shard.bound("uring");
        shard.tick(Instant::now(), Duration::ZERO);
        shard.publish(IO_TABLE, &vec![1; IO_COUNTERS.len()]);
        shard.publish(PROTOCOL_TABLE, &vec![1; TABLES[PROTOCOL_TABLE].len()]);
        let text = metrics.render();
        for name in names(TABLES) {
            let shown = |line: &str| line.starts_with(name) && !line.starts_with('#');
            assert!(text.lines().any(shown), "no {name} in\n{text}");
        }
        assert_eq!(metrics.total(crate::control::counters::DRAINED[0]), 1);
    }

    #[test]
    #[should_panic(expected = "its cells have one writer")]
    fn cells_have_one_writer() {
        let metrics = Metrics::new(TABLES, 1);
        let _first = metrics.publisher(0);
        let _second = metrics.publisher(0);
    }

    #[test]
    #[should_panic(expected = "are of one length")]
    fn values_fit_their_table() {
        Metrics::new(TABLES, 1).publisher(0).publish(IO_TABLE, &[1]);
    }
}
