//! The few facts about this host and process environment that defaults depend on.

use std::{ffi::OsString, net::UdpSocket, path::PathBuf, thread};

/// What defaults are computed from. Tests make their own.
#[derive(Clone, Debug)]
pub struct Host {
    /// Cores this process may use (affinity and cgroup quota included).
    pub core_count: usize,
    /// Whether an IPv6 socket can be bound at all.
    pub has_ipv6: bool,
    /// Where state goes when `--state-dir` is not given.
    pub state_dir: PathBuf,
}

impl Host {
    /// Looks at the running system; `variable` reads one environment variable.
    pub fn detect(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        Self {
            core_count: thread::available_parallelism().map_or(1, usize::from),
            has_ipv6: UdpSocket::bind("[::]:0").is_ok(),
            state_dir: default_state_dir(variable),
        }
    }
}

/// systemd's `STATE_DIRECTORY` (`systemd.exec(5)`: a colon-separated list, the first is taken), else
/// `waypost-state` in the XDG state directory, else in the current directory.
fn default_state_dir(variable: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let absolute = |name: &str| {
        variable(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let by_systemd = variable("STATE_DIRECTORY").and_then(|list| {
        let list = list.into_string().ok()?;
        Some(PathBuf::from(list.split(':').next()?))
    });
    if let Some(path) = by_systemd.filter(|path| path.is_absolute()) {
        return path;
    }
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .unwrap_or_default()
        .join("waypost-state")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> PathBuf {
        default_state_dir(|name| {
            let found = pairs.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn state_goes_where_systemd_says_then_xdg_then_home_then_here() {
        let all = [
            ("STATE_DIRECTORY", "/var/lib/waypost:/var/lib/other"),
            ("XDG_STATE_HOME", "/xdg"),
            ("HOME", "/home/op"),
        ];
        assert_eq!(with(&all), PathBuf::from("/var/lib/waypost"));
        assert_eq!(with(&all[1..]), PathBuf::from("/xdg/waypost-state"));
        assert_eq!(
            with(&all[2..]),
            PathBuf::from("/home/op/.local/state/waypost-state")
        );
        assert_eq!(with(&[]), PathBuf::from("waypost-state"));
    }
}
