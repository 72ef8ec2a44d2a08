//! Which TURN server, how it is reached, and the account there. Only data.

use std::net::SocketAddr;

/// A TURN server, and the account there.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let server = waypost_server::serve::Server::start_with(&[])?;
/// # let server = server.main_addr();
/// # let options = ["--user", "ann:sesame", "--allow-peer", "127.0.0.0/8"];
/// # let relay = waypost_server::serve::Server::start_with(&options)?;
/// # let relay = relay.main_addr();
/// use waypost_client::{HostConfig, Session, TurnServer, TurnTransport};
///
/// let mut config = HostConfig::new("my-game");
/// config.player.turn = Some(TurnServer {
///     address: relay,
///     transport: TurnTransport::Tcp,
///     username: "ann".to_owned(),
///     password: "sesame".to_owned(),
/// });
/// let session = Session::host(server, config)?;
/// // The server and the other players see an address of the TURN server.
/// assert_eq!(session.mapped_addr()?.map(|seen| seen.ip()), Some(relay.ip()));
/// # Ok(()) }
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct TurnServer {
    /// Its address.
    pub address: SocketAddr,
    /// How it is reached.
    pub transport: TurnTransport,
    /// The account's name.
    pub username: String,
    /// Its password.
    pub password: String,
}

/// How a TURN server is reached (RFC 8656 section 3.1).
///
/// ```
/// use waypost_client::TurnTransport;
///
/// // Where UDP is blocked:
/// let transport = TurnTransport::Tcp;
/// assert_ne!(transport, TurnTransport::default());
/// ```
#[derive(Clone, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub enum TurnTransport {
    /// Over UDP, the usual port being 3478.
    #[default]
    Udp,
    /// Over TCP, for networks that block UDP.
    Tcp,
    /// Over TLS, for networks that let nothing else through; the usual port is 5349. Needs the feature `tls`.
    #[cfg(feature = "tls")]
    Tls(ServerIdentity),
}

/// Who a TURN server has to prove to be. Its certificate is verified: chain, name and dates.
///
/// ```
/// use waypost_client::{ServerIdentity, TurnTransport};
///
/// let roots_pem = b"-----BEGIN CERTIFICATE-----\n...".to_vec(); // read from a file, or built in
/// let transport = TurnTransport::Tls(ServerIdentity {
///     name: "turn.example.org".to_owned(),
///     roots_pem,
/// });
/// # assert_ne!(transport, TurnTransport::Udp);
/// ```
#[cfg(feature = "tls")]
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerIdentity {
    /// The name, or the IP address as text, that its certificate is made out to.
    pub name: String,
    /// The authorities that are trusted, and no others, as certificates in PEM; or the server's own certificate, if that signs
    /// itself. What the operating system trusts is not asked.
    pub roots_pem: Vec<u8>,
}
