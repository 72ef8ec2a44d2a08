//! What this host allows, in words, with the remedy where it allows too little. It changes nothing.

use std::{fmt::Write, fs, net::UdpSocket};

use rustix::process::{Resource, getrlimit};

use super::config::{Config, IoChoice};

/// Descriptors below which a busy server runs short: sockets, streams, rings.
const FILES_ADVISED: u64 = 65_536;
/// Locked memory that rings and buffers of one shard may take, in bytes.
const LOCKED_BYTES_PER_SHARD: u64 = 64 << 20;
/// Socket buffer that rides out a scheduling gap at 100,000 packets/s, in bytes.
const SOCKET_BUFFER_ADVISED: u64 = 4 << 20;

/// The report. `ring` is the outcome of trying io_uring for real: the error is the reason, in words.
pub fn report(config: &Config, ring: Result<(), String>) -> String {
    let mut report = Report::default();
    kernel(&mut report);
    ring_section(&mut report, config.io, ring);
    limits(&mut report, config.shard_count);
    socket_buffers(&mut report);
    conntrack(&mut report);
    addresses(&mut report, config);
    report.finish()
}

#[derive(Default)]
struct Report {
    text: String,
    complaint_count: usize,
}

impl Report {
    fn fine(&mut self, topic: &str, finding: impl AsRef<str>) {
        self.line("ok  ", topic, finding.as_ref());
    }

    fn complain(&mut self, topic: &str, finding: impl AsRef<str>, remedy: impl AsRef<str>) {
        self.complaint_count += 1;
        self.line("look", topic, finding.as_ref());
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{:22}-> {}", "", remedy.as_ref());
    }

    fn line(&mut self, mark: &str, topic: &str, finding: &str) {
        let _ = writeln!(self.text, "{mark}  {topic:14}  {finding}");
    }

    fn finish(mut self) -> String {
        let _ = match self.complaint_count {
            0 => writeln!(self.text, "\nNothing stands in the way."),
            count => writeln!(
                self.text,
                "\n{count} of these could be better; the server starts anyway."
            ),
        };
        self.text
    }
}

fn kernel(report: &mut Report) {
    let system = rustix::system::uname();
    report.fine("kernel", system.release().to_string_lossy());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    report.fine("cores", format!("{cores}, so {cores} shards by default"));
}

fn ring_section(report: &mut Report, choice: IoChoice, ring: Result<(), String>) {
    let consequence = match choice {
        IoChoice::Uring => "--io uring will not start",
        IoChoice::Auto | IoChoice::Mmsg => "recvmmsg and sendmmsg are used, at more CPU per packet",
    };
    match ring {
        Ok(()) => report.fine("io_uring", "allowed"),
        Err(reason) => {
            let remedy = match number("/proc/sys/kernel/io_uring_disabled") {
                Some(2) => "sysctl -w kernel.io_uring_disabled=0",
                Some(1) => {
                    "sysctl -w kernel.io_uring_disabled=0, or grant CAP_SYS_ADMIN, or set kernel.io_uring_group"
                }
                Some(_) => {
                    "in a container, allow io_uring_setup, io_uring_enter and io_uring_register in its seccomp profile"
                }
                None => "a kernel of 6.1 or later, built with CONFIG_IO_URING",
            };
            report.complain(
                "io_uring",
                format!("not allowed ({reason}); {consequence}"),
                remedy,
            );
        }
    }
}

fn limits(report: &mut Report, shard_count: usize) {
    let show = |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |limit| limit.to_string());
    let files = getrlimit(Resource::Nofile);
    match files.current {
        Some(limit) if limit < FILES_ADVISED => report.complain(
            "open files",
            format!("{limit} at most (hard limit {})", show(files.maximum)),
            format!("LimitNOFILE=1048576 in the unit, or `ulimit -n {FILES_ADVISED}`"),
        ),
        limit => report.fine("open files", format!("{} at most", show(limit))),
    }
    let locked = getrlimit(Resource::Memlock);
    let wanted = LOCKED_BYTES_PER_SHARD * shard_count as u64;
    match locked.current {
        Some(limit) if limit < wanted => report.complain(
            "locked memory",
            format!("{limit} bytes at most; {shard_count} shards may want {wanted}"),
            "LimitMEMLOCK=infinity in the unit, or `ulimit -l unlimited`",
        ),
        limit => report.fine("locked memory", format!("{} bytes at most", show(limit))),
    }
}

fn socket_buffers(report: &mut Report) {
    for name in ["rmem_max", "wmem_max"] {
        let topic = format!("net.core.{name}");
        match number(&format!("/proc/sys/net/core/{name}")) {
            Some(bytes) if bytes < SOCKET_BUFFER_ADVISED => report.complain(
                &topic,
                format!("{bytes} bytes, so a short burst may be lost"),
                format!("sysctl -w {topic}={SOCKET_BUFFER_ADVISED}"),
            ),
            Some(bytes) => report.fine(&topic, format!("{bytes} bytes")),
            None => report.fine(&topic, "not visible in this network namespace"),
        }
    }
}

fn conntrack(report: &mut Report) {
    let file = |name: &str| number(&format!("/proc/sys/net/netfilter/nf_conntrack_{name}"));
    match file("max") {
        Some(limit) => report.complain(
            "conntrack",
            format!("loaded, {} of {limit} entries in use; every client takes one", file("count").unwrap_or(0)),
            "exempt the server's UDP ports (nft: `udp dport 3478 notrack` and `udp sport 3478 notrack` in raw priority)",
        ),
        None => report.fine("conntrack", "not loaded"),
    }
}

fn addresses(report: &mut Report, config: &Config) {
    match UdpSocket::bind("[::1]:0") {
        Ok(_) => report.fine("IPv6", "there"),
        Err(error) => report.complain(
            "IPv6",
            format!("not there ({error}); only IPv4 clients are served"),
            "sysctl -w net.ipv6.conf.all.disable_ipv6=0, if players have IPv6",
        ),
    }
    for address in &config.listen {
        let topic = format!("UDP {address}");
        match UdpSocket::bind(address) {
            Ok(_) => report.fine(&topic, "free"),
            Err(error) => report.complain(
                &topic,
                format!("cannot be bound ({error})"),
                "stop what holds it (a running server does), or choose another with --listen",
            ),
        }
    }
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::Sources;

    fn config(listen: &str) -> Config {
        let mut sources = Sources::of_process();
        sources.environment.clear();
        sources.arguments = vec!["waypost-server".into(), format!("--listen={listen}").into()];
        sources.reload().unwrap()
    }

    #[test]
    fn speaks_of_every_topic_and_gives_the_reason_of_the_ring() {
        let text = report(
            &config("127.0.0.1:0"),
            Err("EPERM from io_uring_setup".to_owned()),
        );
        for topic in [
            "kernel",
            "cores",
            "io_uring",
            "open files",
            "locked memory",
            "net.core.rmem_max",
            "net.core.wmem_max",
            "conntrack",
            "IPv6",
            "UDP 127.0.0.1:0",
        ] {
            assert!(
                text.lines().any(|line| line.contains(topic)),
                "no {topic} in\n{text}"
            );
        }
        assert!(
            text.contains("not allowed (EPERM from io_uring_setup)"),
            "{text}"
        );
        assert!(text.contains("the server starts anyway"), "{text}");
    }

    #[test]
    fn a_taken_port_is_seen() {
        let owner = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = owner.local_addr().unwrap();
        let text = report(&config(&address.to_string()), Ok(()));
        assert!(
            text.contains(&format!("UDP {address}  cannot be bound")),
            "{text}"
        );
        assert!(text.contains("ok    io_uring"), "{text}");
    }
}
