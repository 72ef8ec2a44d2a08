//! What is wrong with a start, in one line, with the remedy. Never used for anything a network
//! peer can cause.

use std::{fmt, io, net::SocketAddr};

/// `EX_CONFIG` of sysexits.h: the process ends with it for every [`ConfigError`].
pub const EXIT_CODE: u8 = 78;

/// A configuration that cannot be used: what is wrong and what to do about it.
///
/// `Display` gives the whole line, `waypost-server: <what is wrong>: <remedy>`; line breaks in
/// either half are folded so that it stays one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    wrong: String,
    remedy: String,
}

impl ConfigError {
    /// Says what is wrong and what to do.
    pub fn new(wrong: impl Into<String>, remedy: impl Into<String>) -> Self {
        let fold = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
        Self {
            wrong: fold(wrong.into()),
            remedy: fold(remedy.into()),
        }
    }

    /// The line for an address that could not be bound. `what` names the use, such as
    /// `"UDP"` or `"the admin port"`; `option` is the option that moves it, such as `--listen`.
    pub fn bind(what: &str, address: SocketAddr, option: &str, error: &io::Error) -> Self {
        let port = address.port();
        let (reason, remedy) = match error.kind() {
            io::ErrorKind::AddrInUse => (
                "the address is in use".to_owned(),
                format!(
                    "stop the process that `ss -lnp 'sport = {port}'` names, or choose another with {option}"
                ),
            ),
            io::ErrorKind::PermissionDenied if port < 1024 => (
                "ports below 1024 need a privilege".to_owned(),
                format!("grant CAP_NET_BIND_SERVICE, or choose a higher port with {option}"),
            ),
            io::ErrorKind::AddrNotAvailable => (
                "this host has no such address".to_owned(),
                format!(
                    "choose one that `ip address` shows with {option}; behind 1:1 NAT listen on the local address and name the public one with --external-ip"
                ),
            ),
            _ if error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) => (
                "this host does not have that address family".to_owned(),
                format!("enable it, or leave the address out of {option}"),
            ),
            io::ErrorKind::PermissionDenied => (
                "the kernel refused".to_owned(),
                "allow it in the security policy of the container or service".to_owned(),
            ),
            _ => (
                error.to_string(),
                format!("choose another address with {option}"),
            ),
        };
        Self::new(
            format!("cannot listen on {what} {address}, {reason}"),
            remedy,
        )
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "waypost-server: {}: {}", self.wrong, self.remedy)
    }
}

impl std::error::Error for ConfigError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_whatever_the_parts() {
        let error = ConfigError::new("a\nb", "c\n  d");
        assert_eq!(error.to_string(), "waypost-server: a b: c d");
    }

    #[test]
    fn a_taken_port_names_the_tool_that_finds_the_owner() {
        let owner = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = owner.local_addr().unwrap();
        let error = std::net::UdpSocket::bind(address).unwrap_err();
        let line = ConfigError::bind("UDP", address, "--listen", &error).to_string();
        assert!(
            line.contains(&format!("{address}, the address is in use")),
            "{line}"
        );
        assert!(
            line.contains(&format!("sport = {}", address.port())),
            "{line}"
        );
    }
}
