//! What the kernel says of this process, under the names that Prometheus clients have for it by default.

use std::fmt::Write as _;
use std::fs;

use rustix::process::{Resource, getrlimit};

/// What times in `/proc` are counted in, per second (USER_HZ of proc(5), 100 on every platform that Rust's Linux runs on).
const TICKS_PER_SEC: f64 = 100.0;

/// All of them as Prometheus text. What cannot be read is left out.
pub(super) fn render(text: &mut String, start_unix_secs: u64) {
    let mut show = |name: &str, kind: &str, help: &str, value: f64| {
        let _ = writeln!(
            text,
            "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}"
        );
    };
    if let Some([user, system]) = cpu_secs() {
        for (name, help, secs) in [
            (
                "process_cpu_user_seconds_total",
                "User CPU time spent",
                user,
            ),
            (
                "process_cpu_system_seconds_total",
                "System CPU time spent",
                system,
            ),
            (
                "process_cpu_seconds_total",
                "User and system CPU time spent",
                user + system,
            ),
        ] {
            show(name, "counter", help, secs);
        }
    }
    let start = start_unix_secs as f64;
    let name = "process_start_time_seconds";
    show(name, "gauge", "When it started, since 1970", start);
    for (key, name, help) in [
        (
            "VmRSS:",
            "process_resident_memory_bytes",
            "Resident memory size",
        ),
        (
            "VmSize:",
            "process_virtual_memory_bytes",
            "Virtual memory size",
        ),
    ] {
        if let Some(bytes) = memory_bytes(key) {
            show(name, "gauge", help, bytes);
        }
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // One of them is that of the directory itself.
        let count = open.count().saturating_sub(1) as f64;
        show("process_open_fds", "gauge", "Open file descriptors", count);
    }
    if let Some(most) = getrlimit(Resource::Nofile).current {
        let (name, help) = ("process_max_fds", "Most open file descriptors");
        show(name, "gauge", help, most as f64);
    }
}

/// Time in user mode and in the kernel (fields 14 and 15 of `/proc/self/stat`, counted behind the name, which may hold spaces).
fn cpu_secs() -> Option<[f64; 2]> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut times = behind_name.split_ascii_whitespace().skip(11);
    let mut next = || {
        let ticks: u64 = times.next()?.parse().ok()?;
        Some(ticks as f64 / TICKS_PER_SEC)
    };
    Some([next()?, next()?])
}

/// A line of `/proc/self/status` that is in kB.
fn memory_bytes(key: &str) -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some((kilobytes * 1024) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_everything() {
        let mut text = String::new();
        render(&mut text, 1_700_000_000);
        let value = |name: &str| -> f64 {
            let mut lines = text.lines();
            let line = lines.find_map(|line| line.strip_prefix(&format!("{name} ")));
            line.unwrap_or_else(|| panic!("{name} in {text}"))
                .parse()
                .unwrap()
        };
        for name in [
            "process_resident_memory_bytes",
            "process_virtual_memory_bytes",
            "process_open_fds",
            "process_max_fds",
        ] {
            assert!(value(name) >= 1.0, "{name}");
        }
        let parts =
            ["user", "system"].map(|mode| value(&format!("process_cpu_{mode}_seconds_total")));
        assert_eq!(value("process_cpu_seconds_total"), parts[0] + parts[1]);
        assert_eq!(value("process_start_time_seconds"), 1_700_000_000.0);
    }
}
