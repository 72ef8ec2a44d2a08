//! What a run ran on: figures mean little without it. Reads /proc and asks the kernel; what it cannot find out is empty.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use waypost_server::control::metrics::COMMIT;

/// The host and this program.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Environment {
    /// Version of this program.
    pub version: String,
    /// Commit of this build, when the build was told (`WAYPOST_COMMIT`).
    #[serde(default)]
    pub commit: String,
    /// `release`, or `debug` with figures that are worse than need be.
    pub build: String,
    /// System, kernel release and machine.
    pub kernel: String,
    /// The CPU's model name.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// When the run was over, seconds since 1970.
    #[serde(default)]
    pub finished_at: u64,
    /// The command line, without secrets.
    pub flags: Vec<String>,
}

impl Environment {
    /// Looks around, at the end of a run.
    pub fn detect(cores: usize, flags: Vec<String>) -> Self {
        let uname = rustix::system::uname();
        let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: COMMIT.to_owned(),
            build: if cfg!(debug_assertions) {
                "debug"
            } else {
                "release"
            }
            .to_owned(),
            kernel: [uname.sysname(), uname.release(), uname.machine()]
                .map(text)
                .join(" "),
            cpu: field(Path::new("/proc/cpuinfo"), "model name"),
            cores,
            memory_mib: field(Path::new("/proc/meminfo"), "MemTotal")
                .split_whitespace()
                .next()
                .and_then(|kib| kib.parse::<u64>().ok())
                .unwrap_or(0)
                / 1024,
            finished_at: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            flags,
        }
    }
}

/// The cores that this process may use, in order.
pub fn cores() -> Vec<usize> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else {
        return vec![0];
    };
    (0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|&core| set.is_set(core))
        .collect()
}

/// Datagrams that this host's sockets of both families had no room for, since it started.
pub fn receive_buffer_errors() -> u64 {
    let snmp = fs::read_to_string("/proc/net/snmp").unwrap_or_default();
    let snmp6 = fs::read_to_string("/proc/net/snmp6").unwrap_or_default();
    receive_buffer_errors_in(&snmp, &snmp6)
}

fn receive_buffer_errors_in(snmp: &str, snmp6: &str) -> u64 {
    let mut udp = snmp.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (udp.next().unwrap_or(""), udp.next().unwrap_or(""));
    let v4 = names
        .split_whitespace()
        .zip(values.split_whitespace())
        .find(|(name, _)| *name == "RcvbufErrors");
    let v6 = snmp6
        .lines()
        .filter_map(|line| line.split_once(char::is_whitespace))
        .find(|(name, _)| *name == "Udp6RcvbufErrors");
    [v4, v6]
        .into_iter()
        .flatten()
        .filter_map(|(_, value)| value.trim().parse::<u64>().ok())
        .sum()
}

/// The value of the first line `name : value`.
fn field(file: &Path, name: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_a_kernel_and_cores() {
        let environment = Environment::detect(cores().len(), Vec::new());
        assert!(environment.kernel.starts_with("Linux "));
        assert!(environment.cores >= 1 && environment.memory_mib > 0);
    }

    #[test]
    fn both_families_count() {
        let snmp = "Tcp: A\nTcp: 1\nUdp: InDatagrams RcvbufErrors SndbufErrors\nUdp: 5 7 9\nUdpLite: RcvbufErrors\n";
        let snmp6 = "Udp6InErrors \t1\nUdp6RcvbufErrors                \t3\n";
        assert_eq!(receive_buffer_errors_in(snmp, snmp6), 10);
        assert_eq!(receive_buffer_errors_in("", ""), 0);
    }
}
