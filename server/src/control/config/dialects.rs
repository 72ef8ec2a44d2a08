//! The options of dialects: where other systems' protocols are served, and who is relayed.

use std::net::SocketAddr;

use waypost_proto::dialect::{Dialect, RelayMode};

use super::{ConfigError, Reader};

/// An address on which a dialect is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DialectListen {
    /// Which.
    pub dialect: Dialect,
    /// Where; IPv4, because the protocols cannot name anything else.
    pub at: SocketAddr,
    /// What clients reach it by, where the protocol tells them; port 0 stands for the one that is bound.
    pub public: SocketAddr,
}

/// The option that says where a dialect listens.
pub(crate) const fn listen_option(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Rabid => "rabid-listen",
        Dialect::Simple => "simple-listen",
        Dialect::GodotP2p => "godot-p2p-listen",
        Dialect::Noray => "noray-registrar",
    }
}

impl Reader<'_> {
    pub(super) fn dialect_listen(&self) -> Result<Vec<DialectListen>, ConfigError> {
        let mut listens: Vec<DialectListen> = Vec::new();
        if let Some(noray) = self.noray()? {
            listens.push(DialectListen {
                dialect: Dialect::Noray,
                at: noray.registrar,
                public: noray.registrar,
            });
        }
        for dialect in [Dialect::Rabid, Dialect::Simple, Dialect::GodotP2p] {
            let name = listen_option(dialect);
            for text in &self.0.get(name).values {
                let at = self.ipv4(name, text)?;
                let is_there = |other: &DialectListen| other.at == at && at.port() != 0;
                if listens.iter().any(is_there) {
                    return Err(self.bad(name, text, "is there twice", "remove one"));
                }
                listens.push(DialectListen {
                    dialect,
                    at,
                    public: at,
                });
            }
        }
        self.simple_public(&mut listens)?;
        Ok(listens)
    }

    /// Gives each `--simple-listen` its `--simple-public`; without any, the address it listens on or what that stands for.
    fn simple_public(&self, listens: &mut [DialectListen]) -> Result<(), ConfigError> {
        let texts = &self.0.get("simple-public").values;
        let external = self.external_ip()?;
        let of_simple = |listen: &&mut DialectListen| listen.dialect == Dialect::Simple;
        let mut listens: Vec<_> = listens.iter_mut().filter(of_simple).collect();
        if let Some(text) = texts.first().filter(|_| texts.len() != listens.len()) {
            let remedy = "give one for each --simple-listen, in the same order";
            return Err(self.bad("simple-public", text, "has no counterpart", remedy));
        }
        for (place, listen) in listens.iter_mut().enumerate() {
            match texts.get(place) {
                Some(text) => listen.public = self.ipv4("simple-public", text)?,
                None => {
                    let of_family = external.iter().filter(|pair| pair.external.is_ipv4());
                    let mut fitting = of_family
                        .filter(|pair| pair.local.is_none_or(|local| local == listen.at.ip()));
                    if let Some(pair) = fitting.next() {
                        listen.public.set_ip(pair.external);
                    }
                }
            }
            if listen.public.ip().is_unspecified() {
                let text = listen.at.to_string();
                let remedy = "add --simple-public with the address that players reach";
                return Err(self.bad("simple-listen", &text, "names no address", remedy));
            }
        }
        Ok(())
    }

    pub(super) fn ipv4(&self, name: &str, text: &str) -> Result<SocketAddr, ConfigError> {
        let at = self.address(name, text)?;
        if at.is_ipv4() {
            return Ok(at);
        }
        let remedy = "give an IPv4 address: the protocol cannot name others";
        Err(self.bad(name, text, "is not IPv4", remedy))
    }

    pub(super) fn dialect_relay(&self) -> Result<RelayMode, ConfigError> {
        let networks = self.ranges("dialect-relay-net")?;
        let choices = [("off", 0), ("on", 1), ("force", 2)];
        Ok(match self.choice("dialect-relay", &choices)? {
            1 => RelayMode::On(networks),
            2 => RelayMode::Force,
            _ if networks.is_empty() => RelayMode::Off,
            _ => {
                let text = &self.0.get("dialect-relay-net").values[0];
                let remedy = "add --dialect-relay on";
                return Err(self.bad("dialect-relay-net", text, "has no effect", remedy));
            }
        })
    }
}
