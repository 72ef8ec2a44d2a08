//! Rabid Hole Punch's datagrams: text without terminator, fields separated by colons.
//!
//! ```text
//! h:session:player:max[:password]   c:session:player[:password]
//! p|s|y|k|x:session:player
//! ```
//!
//! A session has 1 to 10, a player and a password 1 to 12 ASCII letters and digits; `max` is 2 to 12 without a leading zero.
//! Answers are `i:` lists, `s:` lists of addresses, and `error:` words.

use std::fmt;
use std::hash::{Hash, Hasher};

use crate::addr::Addr;

/// Longest name of a session.
pub const SESSION_LEN_MAX: usize = 10;
/// Longest name of a player, and longest password.
pub const PLAYER_LEN_MAX: usize = 12;
/// Most players of a session.
pub const PLAYERS_MAX: u8 = 12;

/// One to twelve ASCII letters and digits.
#[derive(Clone, Copy)]
pub struct Word {
    len: u8,
    bytes: [u8; PLAYER_LEN_MAX],
}

impl Word {
    /// The word in `text`, if it is one of at most `len_max` letters and digits.
    #[must_use]
    pub fn new(text: &[u8], len_max: usize) -> Option<Self> {
        if text.is_empty() || text.len() > len_max.min(PLAYER_LEN_MAX) {
            return None;
        }
        if !text.iter().all(u8::is_ascii_alphanumeric) {
            return None;
        }
        let mut bytes = [0; PLAYER_LEN_MAX];
        bytes[..text.len()].copy_from_slice(text);
        Some(Self {
            len: u8::try_from(text.len()).ok()?,
            bytes,
        })
    }

    /// Its bytes with zeros behind them: of one length for all words.
    #[must_use]
    pub const fn padded(self) -> [u8; PLAYER_LEN_MAX] {
        self.bytes
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl PartialEq for Word {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Word {}

impl Hash for Word {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&String::from_utf8_lossy(self.as_bytes()), f)
    }
}

/// What a client wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// `h`: make a session.
    Host {
        /// Its name.
        session: Word,
        /// Who hosts it.
        player: Word,
        /// How many players it has room for.
        max: u8,
        /// What joining takes.
        password: Option<Word>,
    },
    /// `c`: join a session.
    Connect {
        /// Its name.
        session: Word,
        /// Who joins.
        player: Word,
        /// The password, which an open session ignores.
        password: Option<Word>,
    },
    /// `p`: show that one is there, and hear who else is.
    Ping(Word, Word),
    /// `s`: introduce everybody. The player's name is not looked at.
    Start(Word),
    /// `y`: the addresses have arrived.
    Confirm(Word, Word),
    /// `k`: remove a player.
    Kick(Word, Word),
    /// `x`: leave.
    Exit(Word, Word),
}

/// Why a datagram is no [`Request`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotRequest {
    /// It has no colon, or its fields are not as they should be: answered with [`ErrorWord::InvalidRequest`].
    Invalid,
    /// It is not UTF-8, or of a type that nobody knows: no answer.
    Unknown,
}

impl Request {
    /// Reads a datagram. One line feed at its end is taken for a line's end and not for a part of the last field.
    ///
    /// # Errors
    /// [`NotRequest`].
    pub fn parse(datagram: &[u8]) -> Result<Self, NotRequest> {
        let text = std::str::from_utf8(datagram).map_err(|_| NotRequest::Unknown)?;
        let (kind, rest) = text.split_once(':').ok_or(NotRequest::Invalid)?;
        let rest = rest.strip_suffix('\n').unwrap_or(rest);
        let mut fields = rest.split(':').map(str::as_bytes);
        let parsed = match kind {
            "h" => Self::host(&mut fields),
            "c" => Self::connect(&mut fields),
            "p" => names(&mut fields).map(|(session, player)| Self::Ping(session, player)),
            "s" => names(&mut fields).map(|(session, _)| Self::Start(session)),
            "y" => names(&mut fields).map(|(session, player)| Self::Confirm(session, player)),
            "k" => names(&mut fields).map(|(session, player)| Self::Kick(session, player)),
            "x" => names(&mut fields).map(|(session, player)| Self::Exit(session, player)),
            _ => return Err(NotRequest::Unknown),
        };
        parsed
            .filter(|_| fields.next().is_none())
            .ok_or(NotRequest::Invalid)
    }

    fn host<'a>(fields: &mut impl Iterator<Item = &'a [u8]>) -> Option<Self> {
        let (session, player) = names(fields)?;
        Some(Self::Host {
            session,
            player,
            max: players_max(fields.next()?)?,
            password: optional(fields)?,
        })
    }

    fn connect<'a>(fields: &mut impl Iterator<Item = &'a [u8]>) -> Option<Self> {
        let (session, player) = names(fields)?;
        Some(Self::Connect {
            session,
            player,
            password: optional(fields)?,
        })
    }
}

/// The two fields that every request begins with.
fn names<'a>(fields: &mut impl Iterator<Item = &'a [u8]>) -> Option<(Word, Word)> {
    let session = Word::new(fields.next()?, SESSION_LEN_MAX)?;
    let player = Word::new(fields.next()?, PLAYER_LEN_MAX)?;
    Some((session, player))
}

/// A last field that may be missing; `None` if it is there and bad.
fn optional<'a>(fields: &mut impl Iterator<Item = &'a [u8]>) -> Option<Option<Word>> {
    match fields.next() {
        None => Some(None),
        Some(text) => Word::new(text, PLAYER_LEN_MAX).map(Some),
    }
}

fn players_max(text: &[u8]) -> Option<u8> {
    match text {
        [digit @ b'2'..=b'9'] => Some(digit - b'0'),
        [b'1', digit @ b'0'..=b'2'] => Some(10 + digit - b'0'),
        _ => None,
    }
}

/// What a client is told went wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the words say it")]
pub enum ErrorWord {
    InvalidRequest,
    SessionExists,
    SessionNonExistent,
    PasswordMismatch,
    OnlyOnePlayerInSession,
    SessionFull,
    PlayerNameInUse,
    NonExistentPlayer,
    NonHostPlayer,
    KickedByHost,
    PlayerExitedSession,
    SessionNotStarted,
    SessionTimeout,
    PlayerTimeout,
}

impl ErrorWord {
    /// The datagram.
    #[must_use]
    pub const fn datagram(self) -> &'static [u8] {
        match self {
            Self::InvalidRequest => b"error:invalid_request",
            Self::SessionExists => b"error:session_exists",
            Self::SessionNonExistent => b"error:session_non_existent",
            Self::PasswordMismatch => b"error:password_mismatch",
            Self::OnlyOnePlayerInSession => b"error:only_one_player_in_session",
            Self::SessionFull => b"error:session_full",
            Self::PlayerNameInUse => b"error:player_name_in_use",
            Self::NonExistentPlayer => b"error:non_existent_player",
            Self::NonHostPlayer => b"error:non_host_player",
            Self::KickedByHost => b"error:kicked_by_host",
            Self::PlayerExitedSession => b"error:player_exited_session",
            Self::SessionNotStarted => b"error:session_not_started",
            Self::SessionTimeout => b"error:session_timeout",
            Self::PlayerTimeout => b"error:player_timeout",
        }
    }
}

/// Writes `i:` with the players in order.
pub fn write_list(out: &mut Vec<u8>, players: impl Iterator<Item = Word>) {
    out.push(b'i');
    for player in players {
        out.push(b':');
        out.extend_from_slice(player.as_bytes());
    }
}

/// Writes `s:` with the port that the receiver is seen at, and the other players with their addresses.
pub fn write_start(out: &mut Vec<u8>, own_port: u16, others: impl Iterator<Item = (Word, Addr)>) {
    use std::io::Write as _;
    let mut write = |arguments: fmt::Arguments<'_>| {
        out.write_fmt(arguments)
            .expect("writing to memory does not fail");
    };
    write(format_args!("s:{own_port}:"));
    for (i, (name, addr)) in others.enumerate() {
        let separator = if i == 0 { "" } else { ";" };
        let name = std::str::from_utf8(name.as_bytes()).expect("letters and digits");
        write(format_args!(
            "{separator}{name}:{}:{}",
            addr.ip(),
            addr.port()
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn word(text: &str) -> Word {
        Word::new(text.as_bytes(), PLAYER_LEN_MAX).unwrap()
    }

    #[test]
    fn requests_are_read() {
        let host = |max, password: Option<&str>| {
            Ok(Request::Host {
                session: word("Room"),
                player: word("Ann"),
                max,
                password: password.map(word),
            })
        };
        assert_eq!(Request::parse(b"h:Room:Ann:2"), host(2, None));
        assert_eq!(Request::parse(b"h:Room:Ann:12:pw"), host(12, Some("pw")));
        assert_eq!(Request::parse(b"h:Room:Ann:10\n"), host(10, None));
        let connect = Request::Connect {
            session: word("Room"),
            player: word("Bob"),
            password: None,
        };
        assert_eq!(Request::parse(b"c:Room:Bob"), Ok(connect));
        assert_eq!(Request::parse(b"c:Room:Bob\n"), Ok(connect));
        let pair = (word("Room"), word("Bob"));
        assert_eq!(
            Request::parse(b"p:Room:Bob"),
            Ok(Request::Ping(pair.0, pair.1))
        );
        assert_eq!(Request::parse(b"s:Room:Bob"), Ok(Request::Start(pair.0)));
        assert_eq!(
            Request::parse(b"y:Room:Bob"),
            Ok(Request::Confirm(pair.0, pair.1))
        );
        assert_eq!(
            Request::parse(b"k:Room:Bob"),
            Ok(Request::Kick(pair.0, pair.1))
        );
        assert_eq!(
            Request::parse(b"x:Room:Bob"),
            Ok(Request::Exit(pair.0, pair.1))
        );
    }

    #[test]
    fn what_is_not_a_request_is_told_apart() {
        for text in [
            "",
            "hello",
            "h:",
            "h:Room:Ann",
            "h:Room:Ann:1",
            "h:Room:Ann:13",
            "h:Room:Ann:02",
            "h:Room:Ann:2:",
            "h:Room:Ann:2:pw:more",
            "h:Elevenchars:Ann:2",
            "h::Ann:2",
            "c:Room",
            "c:Room:Thirteenchars",
            "c:Room:Bob:",
            "c:Room:Bob:pw:x",
            "p:Room",
            "p:Room:Bob:x",
            "p:Ro om:Bob",
            "c:Room:Bob\n\n",
            "c:Room:B\u{e9}",
            "s:Room",
            "x:Room:",
            "k:Room:Bob ",
        ] {
            assert_eq!(
                Request::parse(text.as_bytes()),
                Err(NotRequest::Invalid),
                "{text:?}"
            );
        }
        for text in [
            &b"z:Room:Bob"[..],
            b":",
            b"hh:Room:Ann:2",
            b"\xff:",
            b"\xff",
            b"H:Room:Ann:2",
        ] {
            assert_eq!(Request::parse(text), Err(NotRequest::Unknown), "{text:?}");
        }
    }

    #[test]
    fn answers_are_written() {
        let mut out = Vec::new();
        write_list(&mut out, ["Ann", "Bob"].map(word).into_iter());
        assert_eq!(out, b"i:Ann:Bob");
        out.clear();
        let addr = |text: &str| Addr::new(text.parse().unwrap());
        let others = [
            (word("Bob"), addr("192.0.2.1:1000")),
            (word("Cid"), addr("192.0.2.2:65535")),
        ];
        write_start(&mut out, 40_000, others.into_iter());
        assert_eq!(out, b"s:40000:Bob:192.0.2.1:1000;Cid:192.0.2.2:65535");
    }

    proptest! {
        #[test]
        fn any_bytes_are_decided(datagram in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Request::parse(&datagram);
        }

        #[test]
        fn nearly_requests_are_decided(text in "[hcpsykxz]{0,2}(:[A-Za-z0-9: \n]{0,14}){0,5}") {
            if let Ok(Request::Host { session, player, max, .. }) = Request::parse(text.as_bytes()) {
                prop_assert!((2..=12).contains(&max));
                prop_assert!((1..=10).contains(&session.as_bytes().len()));
                prop_assert!((1..=12).contains(&player.as_bytes().len()));
            }
        }
    }
}
