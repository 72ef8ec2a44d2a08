//! Reading the list of public sessions, without a seat.

use std::net::{SocketAddr, ToSocketAddrs};

use waypost_proto::agent::{ListFilter, ListedSession, Probing};

use crate::config::Player;
use crate::driver::{Driver, Outcome, Receiver};
use crate::error::Error;

/// No list grows longer than this, whatever the server says.
const SESSIONS_MAX: usize = 10_000;
/// Nor has more pages, empty ones included.
const PAGES_MAX: usize = 100_000;

/// The listed sessions of a player's application that pass the filter, all pages of them.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let server = waypost_server::serve::Server::start_with(&[])?;
/// # let server = server.main_addr();
/// use waypost_client::{HostConfig, ListFilter, Player, Session, list};
///
/// let mut config = HostConfig::new("my-game");
/// config.listed = true;
/// let host = Session::host(server, config)?;
/// let filter = ListFilter { has_room: true, ..ListFilter::default() };
/// let found = list(server, &Player::new("my-game"), &filter)?;
/// assert_eq!(found[0].code, host.code()?);
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`Error`], of which `Silent` and `Rejected` are the server's.
pub fn list(
    server: impl ToSocketAddrs,
    player: &Player,
    filter: &ListFilter,
) -> Result<Vec<ListedSession>, Error> {
    first_that_answers(server, |server| list_from(server, player, filter))
}

fn list_from(
    server: SocketAddr,
    player: &Player,
    filter: &ListFilter,
) -> Result<Vec<ListedSession>, Error> {
    let mut config = player.agent_config(server);
    config.probing = Probing::Off;
    let player = Player {
        local_port: 0,
        maps_port: false,
        turn_candidate: None,
        messages: None,
        ..player.clone()
    };
    let driver = Driver::open(server, config, &player)?;
    let mut receiver = Receiver::default();
    let mut all = Vec::new();
    let mut cursor = None;
    for _ in 0..PAGES_MAX {
        let request = driver.begin(|agent, now| agent.list(now, filter.clone(), cursor))?;
        let outcome = loop {
            if let Some(outcome) = driver.lock().take_outcome(request) {
                break outcome?;
            }
            driver.turn(&mut receiver);
        };
        let Outcome::Listed(sessions, next) = outcome else {
            break;
        };
        all.extend(sessions);
        cursor = next;
        if cursor.is_none() || all.len() >= SESSIONS_MAX {
            break;
        }
    }
    all.truncate(SESSIONS_MAX);
    Ok(all)
}

/// Tries the addresses of a name in turn, as [`std::net::TcpStream::connect`] does.
pub(crate) fn first_that_answers<T>(
    server: impl ToSocketAddrs,
    mut attempt: impl FnMut(SocketAddr) -> Result<T, Error>,
) -> Result<T, Error> {
    let mut last = Error::NoAddress;
    for address in server.to_socket_addrs()? {
        match attempt(address) {
            Err(error @ (Error::Silent | Error::Io(_))) => last = error,
            settled => return settled,
        }
    }
    Err(last)
}
