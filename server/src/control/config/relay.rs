//! The options of the TURN relay: addresses, ports, users, ranges of peers.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
};

use waypost_proto::turn::peer_policy::Cidr;

use super::{ConfigError, Reader, Secret, TurnUser};

/// Longest realm (RFC 8489 section 14.9: fewer than 128 characters) and user name (section 14.3: fewer than 509 bytes).
const REALM_CHARS_MAX: usize = 127;
const NAME_BYTES_MAX: usize = 508;

impl Reader<'_> {
    /// Addresses of this host that clients are told, one of each family.
    pub(super) fn ip_per_family(&self, name: &str) -> Result<Vec<IpAddr>, ConfigError> {
        let mut ips: Vec<IpAddr> = Vec::new();
        for text in &self.0.get(name).values {
            let bad = |reason| {
                let remedy = "give a local address, at most one of each family";
                self.bad(name, text, reason, remedy)
            };
            let ip: IpAddr = text.parse().map_err(|_| bad("is not an IP address"))?;
            if ip.is_unspecified() || ip.is_multicast() {
                return Err(bad("cannot be told to clients"));
            }
            if ips.iter().any(|other| other.is_ipv4() == ip.is_ipv4()) {
                return Err(bad("is the second of its family"));
            }
            ips.push(ip);
        }
        Ok(ips)
    }

    pub(super) fn alternate_servers(&self, name: &str) -> Result<Vec<SocketAddr>, ConfigError> {
        let mut servers: Vec<SocketAddr> = Vec::new();
        for text in &self.0.get(name).values {
            let server = self.address(name, text)?;
            let bad = |reason| {
                let remedy = "name a port of another server, at most one of each family";
                self.bad(name, text, reason, remedy)
            };
            if server.ip().is_unspecified() || server.ip().is_multicast() || server.port() == 0 {
                return Err(bad("cannot be told to clients"));
            }
            if servers
                .iter()
                .any(|other| other.is_ipv4() == server.is_ipv4())
            {
                return Err(bad("is the second of its family"));
            }
            servers.push(server);
        }
        Ok(servers)
    }

    /// A host name or address as URLs have it; an IPv6 address gets its brackets.
    pub(super) fn turn_host(&self) -> Result<Option<String>, ConfigError> {
        let Some(text) = self.optional("turn-host")? else {
            return Ok(None);
        };
        if let Ok(ip) = text.parse::<Ipv6Addr>() {
            return Ok(Some(format!("[{ip}]")));
        }
        if is_host_name(text) {
            return Ok(Some(text.to_owned()));
        }
        let remedy = "write it as turn.example.org, without scheme and port";
        Err(self.bad("turn-host", text, "is not a host", remedy))
    }

    /// The name in a certificate.
    pub(super) fn alternate_domain(&self) -> Result<Option<String>, ConfigError> {
        let Some(text) = self.optional("alternate-domain")? else {
            return Ok(None);
        };
        if is_host_name(text) && text.parse::<IpAddr>().is_err() {
            return Ok(Some(text.to_owned()));
        }
        let remedy = "write it as turn2.example.org";
        Err(self.bad("alternate-domain", text, "is not a DNS name", remedy))
    }

    pub(super) fn relay_ports(&self) -> Result<RangeInclusive<u16>, ConfigError> {
        let text = self.required("relay-ports")?;
        let range = text.split_once('-').and_then(|(low, high)| {
            let range = low.parse().ok()?..=high.parse().ok()?;
            (*range.start() > 0 && !range.is_empty()).then_some(range)
        });
        let remedy = "write it as 49152-65535, the lower port first";
        range.ok_or_else(|| self.bad("relay-ports", text, "is not a range of ports", remedy))
    }

    pub(super) fn realm(&self) -> Result<String, ConfigError> {
        let realm = self.required("realm")?;
        let is_plain = !realm.contains(|c: char| c.is_control() || c == '"' || c == '\\');
        if is_plain && realm.chars().count() <= REALM_CHARS_MAX {
            return Ok(realm.to_owned());
        }
        let remedy =
            "give at most 127 characters without quotes, backslashes and control characters";
        Err(self.bad("realm", realm, "is not a realm", remedy))
    }

    /// The users of `--user` and `--user-file`. The stronger layer wins, in one layer they add up.
    pub(super) fn users(&self) -> Result<Vec<TurnUser>, ConfigError> {
        let (texts, files) = (self.0.get("user"), self.0.get("user-file"));
        let strongest = texts.origin.max(files.origin);
        let mut users: Vec<TurnUser> = Vec::new();
        let mut add = |option: &str, text: &str| {
            let bad = |reason| {
                let remedy = "write NAME:PASSWORD, each name once";
                self.bad(option, "***", reason, remedy)
            };
            let (name, password) = text.split_once(':').ok_or_else(|| bad("has no password"))?;
            if name.is_empty() || password.is_empty() || name.len() > NAME_BYTES_MAX {
                return Err(bad("has an empty or overlong part"));
            }
            if users.iter().any(|user| user.name == name) {
                return Err(bad("names somebody twice"));
            }
            users.push(TurnUser {
                name: name.to_owned(),
                password: Secret::new(password.as_bytes()),
            });
            Ok(())
        };
        for text in texts.values.iter().filter(|_| texts.origin == strongest) {
            add("user", text)?;
        }
        for path in files.values.iter().filter(|_| files.origin == strongest) {
            let remedy = "name a readable file with NAME:PASSWORD on each line";
            let text = std::fs::read_to_string(path).map_err(|error| {
                let reason = format!("cannot be read ({error})");
                self.bad("user-file", path, &reason, remedy)
            })?;
            let lines = text.lines().map(str::trim);
            for line in lines.filter(|line| !line.is_empty()) {
                add("user-file", line)?;
            }
        }
        Ok(users)
    }

    pub(super) fn ranges(&self, name: &str) -> Result<Vec<Cidr>, ConfigError> {
        let values = self.0.get(name).values.iter();
        let parse = |text: &String| {
            let remedy = "write it as 10.0.0.0/8, 2001:db8::/32 or one address";
            let bad = |_| self.bad(name, text, "is not a range of addresses", remedy);
            text.parse().map_err(bad)
        };
        values.map(parse).collect()
    }
}

/// Whether it has the characters and the length of a DNS name.
fn is_host_name(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    text.len() <= 253 && text.chars().all(is_plain)
}
