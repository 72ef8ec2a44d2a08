//! The options of noray, and the variables by which its own server is configured, with their syntax of sizes, durations and
//! ports.

use std::net::SocketAddr;

use waypost_proto::dialect::{NameForm, NorayConfig, RelayRules, URL_SAFE};

use super::{ConfigError, Origin, Reader, Settings, options::option};

/// The registrar's port unless another is chosen.
const REGISTRAR_PORT: u16 = 8809;
/// The port of connections if a variable names only their host.
const CONTROL_PORT: u16 = 8890;
/// The port of metrics if a variable names only their host.
const HTTP_PORT: u16 = 8891;
/// Longest name, in characters.
const NAME_CHARS_MAX: usize = 512;
/// A secret id that is easier to guess than this many random bits is none.
const SECRET_BITS_MIN: f64 = 64.0;

/// How noray is served.
#[derive(Clone, Debug)]
pub struct NorayOptions {
    /// Where connections are accepted; IPv4, as everything here.
    pub listen: SocketAddr,
    /// Where players show their addresses.
    pub registrar: SocketAddr,
    /// Where its metrics are shown; none: only on the admin port.
    pub http: Option<SocketAddr>,
    /// The rest.
    pub protocol: NorayConfig,
}

/// Variables that stand for one option each.
const VARIABLES: &[(&str, &str)] = &[
    ("NORAY_OID_LENGTH", "noray-oid-length"),
    ("NORAY_OID_CHARSET", "noray-oid-charset"),
    ("NORAY_PID_LENGTH", "noray-pid-length"),
    ("NORAY_PID_CHARSET", "noray-pid-charset"),
    ("NORAY_UDP_RELAY_PORTS", "noray-relay-ports"),
    ("NORAY_UDP_RELAY_TIMEOUT", "noray-relay-timeout"),
    (
        "NORAY_UDP_RELAY_CLEANUP_INTERVAL",
        "noray-relay-cleanup-interval",
    ),
    (
        "NORAY_UDP_RELAY_MAX_INDIVIDUAL_TRAFFIC",
        "noray-relay-max-individual-traffic",
    ),
    (
        "NORAY_UDP_RELAY_MAX_GLOBAL_TRAFFIC",
        "noray-relay-max-global-traffic",
    ),
    (
        "NORAY_UDP_RELAY_TRAFFIC_INTERVAL",
        "noray-relay-traffic-interval",
    ),
    (
        "NORAY_UDP_RELAY_MAX_LIFETIME_DURATION",
        "noray-relay-max-lifetime-duration",
    ),
    (
        "NORAY_UDP_RELAY_MAX_LIFETIME_TRAFFIC",
        "noray-relay-max-lifetime-traffic",
    ),
];

/// Variables that stand for options together with others.
const OTHERS: &[&str] = &[
    "NORAY_SOCKET_HOST",
    "NORAY_SOCKET_PORT",
    "NORAY_HTTP_HOST",
    "NORAY_HTTP_PORT",
    "NORAY_UDP_REGISTRAR_PORT",
    "NORAY_LOGLEVEL",
    "NORAY_ENABLE_WORDS_OID",
    "NORAY_WORDS_OID_LENGTH",
];

/// Whether a variable is one of noray's. Others of its prefix are orchestrators'.
pub(super) fn is_variable(name: &str) -> bool {
    OTHERS.contains(&name) || VARIABLES.iter().any(|(variable, _)| *variable == name)
}

/// Lays noray's own variables over a file. `WAYPOST_` variables go over them.
pub(super) fn lay_environment(
    settings: &mut Settings,
    variables: &[(String, String)],
) -> Result<(), ConfigError> {
    let get = |name: &str| {
        let mut found = variables.iter().filter(|(_, value)| !value.is_empty());
        let found = found.find(|(other, _)| other == name);
        found.map(|(_, value)| value.as_str())
    };
    let mut set =
        |name, value: String| settings.set(option(name), vec![value], Origin::Environment);
    for (variable, name) in VARIABLES {
        if let Some(value) = get(variable) {
            set(name, value.to_owned())?;
        }
    }
    // Upstream listens in any case; here somebody has to ask for it.
    if let Some(port) = get("NORAY_SOCKET_PORT") {
        let host = get("NORAY_SOCKET_HOST").unwrap_or("0.0.0.0");
        set("noray-listen", format!("{host}:{port}"))?;
    } else if let Some(host) = get("NORAY_SOCKET_HOST") {
        set("noray-listen", format!("{host}:{CONTROL_PORT}"))?;
    }
    if get("NORAY_HTTP_PORT").is_some() || get("NORAY_HTTP_HOST").is_some() {
        let host = get("NORAY_HTTP_HOST").unwrap_or("0.0.0.0");
        let port = get("NORAY_HTTP_PORT").map_or_else(|| HTTP_PORT.to_string(), str::to_owned);
        set("noray-http", format!("{host}:{port}"))?;
    }
    if let Some(port) = get("NORAY_UDP_REGISTRAR_PORT") {
        set("noray-registrar", format!("0.0.0.0:{port}"))?;
    }
    if get("NORAY_ENABLE_WORDS_OID").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        let count = get("NORAY_WORDS_OID_LENGTH").unwrap_or("3");
        set("noray-oid-words", count.to_owned())?;
    }
    if let Some(level) = get("NORAY_LOGLEVEL") {
        let level = match level {
            "silent" | "fatal" => "error",
            other => other,
        };
        set("log-level", level.to_owned())?;
    }
    Ok(())
}

/// A number and what stands behind it, in lower case.
fn split_unit(text: &str) -> Option<(f64, String)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    let number: f64 = number.parse().ok()?;
    Some((number, unit.trim().to_ascii_lowercase()))
}

/// Bytes, from `128kb`; a bare number is bytes.
fn size(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text)?;
    let power = match unit.as_str() {
        "" | "b" => 0,
        "kb" => 1,
        "mb" => 2,
        "gb" => 3,
        "tb" => 4,
        "pb" => 5,
        "eb" => 6,
        _ => return None,
    };
    let bytes = number * 1024_f64.powi(power);
    (bytes <= 1e18).then_some(bytes as u64)
}

/// Milliseconds, from `30s`; a bare number is seconds.
fn duration_ms(text: &str) -> Option<u64> {
    const DAY: f64 = 86_400_000.0;
    let (number, unit) = split_unit(text)?;
    let unit_ms = match unit.as_str() {
        "us" => 0.001,
        "ms" => 1.0,
        "" | "s" => 1000.0,
        "m" => 60_000.0,
        "h" | "hr" => 3_600_000.0,
        "d" => DAY,
        "w" => 7.0 * DAY,
        "mo" => 30.0 * DAY,
        "yr" => 365.0 * DAY,
        _ => return None,
    };
    let ms = number * unit_ms;
    (ms <= 1e15).then_some(ms.ceil() as u64)
}

/// Ports, from `49152-49160, 50000, 50010+9`. What is malformed is left out, as upstream does it.
fn ports(text: &str) -> Vec<u16> {
    let number = |text: &str| text.trim().parse::<u16>().ok().filter(|&port| port > 0);
    let mut ports: Vec<u16> = text
        .split(',')
        .filter_map(|item| {
            let item = item.trim();
            if let Some((low, high)) = item.split_once('-') {
                Some(number(low)?..=number(high)?)
            } else if let Some((low, more)) = item.split_once('+') {
                let low = number(low)?;
                Some(low..=low.checked_add(more.trim().parse().ok()?)?)
            } else {
                let port = number(item)?;
                Some(port..=port)
            }
        })
        .flatten()
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

impl Reader<'_> {
    pub(super) fn noray(&self) -> Result<Option<NorayOptions>, ConfigError> {
        let Some(listen) = self.optional("noray-listen")? else {
            return Ok(None);
        };
        let listen = self.ipv4("noray-listen", listen)?;
        let registrar = match self.optional("noray-registrar")? {
            Some(text) => self.ipv4("noray-registrar", text)?,
            None => SocketAddr::new(listen.ip(), REGISTRAR_PORT),
        };
        let http = self.optional("noray-http")?;
        let http = http.map(|text| self.address("noray-http", text));
        let text = self.required("noray-relay-ports")?;
        let ports = ports(text);
        if ports.is_empty() {
            let remedy = "write it as 49152-51200, several with commas";
            return Err(self.bad("noray-relay-ports", text, "names no port", remedy));
        }
        let relay = RelayRules {
            ip: listen.ip(),
            ports,
            idle_ms: self.noray_duration("noray-relay-timeout")?,
            sweep_ms: self.noray_duration("noray-relay-cleanup-interval")?,
            bytes_per_sec: self.noray_size("noray-relay-max-individual-traffic")?,
            all_bytes_per_sec: self.noray_size("noray-relay-max-global-traffic")?,
            slice_ms: self.noray_duration("noray-relay-traffic-interval")?,
            lifetime_ms: self.noray_duration("noray-relay-max-lifetime-duration")?,
            lifetime_bytes: self.noray_size("noray-relay-max-lifetime-traffic")?,
        };
        let oid = match self.number("noray-oid-words", 0..=16_usize)? {
            0 => self.noray_name("noray-oid-length", "noray-oid-charset", 1.0)?,
            words => NameForm::Words(words),
        };
        let pid = self.noray_name("noray-pid-length", "noray-pid-charset", SECRET_BITS_MIN)?;
        Ok(Some(NorayOptions {
            listen,
            registrar,
            http: http.transpose()?,
            protocol: NorayConfig {
                oid,
                pid,
                greets: self.truth("noray-greeting")?,
                tells_errors: self.truth("noray-errors")?,
                relay,
            },
        }))
    }

    fn noray_size(&self, name: &str) -> Result<u64, ConfigError> {
        let text = self.required(name)?;
        let remedy = "write it as 128kb, 4gb or bytes";
        size(text).ok_or_else(|| self.bad(name, text, "is not a size", remedy))
    }

    fn noray_duration(&self, name: &str) -> Result<u64, ConfigError> {
        let text = self.required(name)?;
        let duration = duration_ms(text).filter(|&ms| ms > 0);
        let remedy = "write it as 100ms, 30s, 4hr or seconds";
        duration.ok_or_else(|| self.bad(name, text, "is not a duration", remedy))
    }

    fn noray_name(
        &self,
        length_name: &str,
        alphabet_name: &str,
        bits_min: f64,
    ) -> Result<NameForm, ConfigError> {
        let length = self.number(length_name, 1..=NAME_CHARS_MAX)?;
        let text = self.optional(alphabet_name)?.unwrap_or(URL_SAFE);
        let alphabet: Vec<char> = text.chars().collect();
        if let Some(bad) = alphabet
            .iter()
            .find(|c| c.is_control() || c.is_whitespace())
        {
            let reason = format!("holds {bad:?}, which ends a name");
            return Err(self.bad(alphabet_name, text, &reason, "leave it out"));
        }
        if alphabet.contains(&'"') {
            let reason = "holds a quote, which newer clients take for something else";
            return Err(self.bad(alphabet_name, text, reason, "leave it out"));
        }
        let mut distinct = alphabet.clone();
        distinct.sort_unstable();
        distinct.dedup();
        if (distinct.len() as f64).log2() * (length as f64) < bits_min {
            let text = length.to_string();
            let reason = "makes ids that are too easy to guess";
            let remedy = "make it longer, or the alphabet larger";
            return Err(self.bad(length_name, &text, reason, remedy));
        }
        Ok(NameForm::Characters(length, alphabet))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_durations_and_ports_are_written_as_upstream_has_them() {
        assert_eq!(size("128kb"), Some(131_072));
        assert_eq!(size("1 GB"), Some(1 << 30));
        assert_eq!(size("4Tb"), Some(4 << 40));
        assert_eq!(size("0.5mb"), Some(524_288));
        assert_eq!(size("17"), Some(17));
        assert_eq!(size("17 apples"), None);
        assert_eq!(size(""), None);
        assert_eq!(duration_ms("100ms"), Some(100));
        assert_eq!(duration_ms("30"), Some(30_000));
        assert_eq!(duration_ms("4HR"), duration_ms("4h"));
        assert_eq!(duration_ms("1mo"), duration_ms("30d"));
        assert_eq!(duration_ms("1yr"), Some(365 * 86_400_000));
        assert_eq!(duration_ms("1500us"), Some(2));
        assert_eq!(duration_ms("soon"), None);
        assert_eq!(ports("7, 10-12,11 ,20+2"), [7, 10, 11, 12, 20, 21, 22]);
        assert_eq!(ports("x, 5-, 9-7, 65535+1, 70000, 3"), [3]);
    }
}
