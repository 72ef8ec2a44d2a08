//! Sealed tickets and seat tokens: what lets a seat outlive a client, a NAT binding, and the server process.
//!
//! A ticket says which seat of which session its bearer may take and what the session was like, under a MAC of the
//! server's secret. It is a bearer secret like the token; the password key inside is masked.

use subtle::ConstantTimeEq;

use crate::nonce::ServerSecret;
use crate::wire::join_code::JoinCode;
use crate::wire::native::{APPLICATION_ID_MAX, SeatHandle, SeatId, session_flags};

const VERSION: u8 = 1;
const HOST_BIT: u8 = 0x80;
const MAC_LEN: usize = 16;
const FIXED_LEN: usize = 32;

/// Longest ticket, bytes.
pub const TICKET_MAX: usize = FIXED_LEN + APPLICATION_ID_MAX + MAC_LEN;

/// What a ticket vouches for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ticket {
    /// The seat.
    pub handle: SeatHandle,
    /// Whether the bearer was the host.
    pub is_host: bool,
    /// The session's size.
    pub max_members: u8,
    /// The session's settable flags.
    pub session_flags: u32,
    /// The session's password key.
    pub password_key: [u8; 16],
    /// When the ticket stops being valid: Unix seconds.
    pub expires_unix_secs: u32,
    /// The application.
    pub application: String,
}

/// Seals and opens tickets and derives tokens.
#[derive(Clone, Debug)]
pub struct Sealer {
    current: ServerSecret,
    previous: Option<ServerSecret>,
}

impl Sealer {
    /// A sealer under one secret.
    #[must_use]
    pub const fn new(secret: ServerSecret) -> Self {
        Self {
            current: secret,
            previous: None,
        }
    }

    /// Seals with `secret` from now on and goes on opening what the previous one sealed.
    pub fn rotate(&mut self, secret: ServerSecret) {
        self.previous = Some(std::mem::replace(&mut self.current, secret));
    }

    /// The token of a seat: the same after a restart, other for every occupancy.
    #[must_use]
    pub fn token(&self, handle: SeatHandle) -> [u8; 16] {
        self.current.derive(&[b"token", &handle.to_bytes()])
    }

    /// The key of the connectivity checks between two seats that begin at `start_ms`; the order of the seats does not
    /// matter.
    #[must_use]
    pub fn check_key(&self, code: JoinCode, pair: [SeatId; 2], start_ms: u64) -> [u8; 16] {
        let mut pair = pair.map(SeatId::to_bytes);
        pair.sort_unstable();
        self.current.derive(&[
            b"check",
            &code.bits().to_be_bytes(),
            &pair[0],
            &pair[1],
            &start_ms.to_be_bytes(),
        ])
    }

    /// The MACs of a mobility ticket's body (RFC 8016) under the current and the previous secret.
    pub(crate) fn mobility_macs(&self, body: &[u8]) -> [Option<[u8; MAC_LEN]>; 2] {
        [Some(&self.current), self.previous.as_ref()]
            .map(|secret| Some(secret?.derive(&[b"mobility", body])))
    }

    /// Appends the sealed ticket to `out`.
    pub fn seal(&self, ticket: &Ticket, out: &mut Vec<u8>) {
        let start = out.len();
        let application = ticket.application.as_bytes();
        let flags = (ticket.session_flags & session_flags::SETTABLE) as u8
            | if ticket.is_host { HOST_BIT } else { 0 };
        let app_len =
            u8::try_from(application.len()).expect("an application id is at most 32 bytes");
        out.extend_from_slice(&[VERSION, flags, ticket.max_members, app_len]);
        out.extend_from_slice(&ticket.handle.to_bytes());
        out.extend_from_slice(&ticket.expires_unix_secs.to_be_bytes());
        let mask = mask(&self.current, ticket.handle);
        out.extend(ticket.password_key.iter().zip(mask).map(|(k, m)| k ^ m));
        out.extend_from_slice(application);
        let mac = self.current.derive(&[b"ticket", &out[start..]]);
        out.extend_from_slice(&mac);
    }

    /// Opens a ticket that this server, or an earlier process with its secret, sealed. `None` if it did not, or if the
    /// ticket has expired.
    #[must_use]
    pub fn open(&self, sealed: &[u8], unix_secs: u64) -> Option<Ticket> {
        let (body, mac) = sealed.split_last_chunk::<MAC_LEN>()?;
        let secret = [Some(&self.current), self.previous.as_ref()]
            .into_iter()
            .flatten()
            .find(|secret| secret.derive(&[b"ticket", body]).ct_eq(mac).into())?;
        let (fixed, application) = body.split_first_chunk::<FIXED_LEN>()?;
        if fixed[0] != VERSION || usize::from(fixed[3]) != application.len() {
            return None;
        }
        let handle = SeatHandle::from_bytes(&fixed[4..12])?;
        let expires_unix_secs = u32::from_be_bytes(fixed[12..16].try_into().ok()?);
        if u64::from(expires_unix_secs) <= unix_secs {
            return None;
        }
        let mut password_key = mask(secret, handle);
        password_key
            .iter_mut()
            .zip(&fixed[16..])
            .for_each(|(k, m)| *k ^= m);
        Some(Ticket {
            handle,
            is_host: fixed[1] & HOST_BIT != 0,
            max_members: fixed[2],
            session_flags: u32::from(fixed[1]) & session_flags::SETTABLE,
            password_key,
            expires_unix_secs,
            application: std::str::from_utf8(application).ok()?.to_owned(),
        })
    }
}

/// The seat that a ticket claims to be for, unchecked: good enough to find the shard that will check it.
#[must_use]
pub fn handle_in(sealed: &[u8]) -> Option<SeatHandle> {
    SeatHandle::from_bytes(sealed.get(4..12)?)
}

fn mask(secret: &ServerSecret, handle: SeatHandle) -> [u8; 16] {
    secret.derive(&[b"mask", &handle.to_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket() -> Ticket {
        Ticket {
            handle: SeatHandle {
                code: JoinCode::from_bits(12345).unwrap(),
                id: SeatId {
                    seat: 3,
                    generation: 99,
                },
            },
            is_host: true,
            max_members: 8,
            session_flags: session_flags::LISTED,
            password_key: [5; 16],
            expires_unix_secs: 1000,
            application: "game".to_owned(),
        }
    }

    #[test]
    fn opens_only_what_was_sealed() {
        let sealer = Sealer::new(ServerSecret([1; 32]));
        let mut sealed = Vec::new();
        sealer.seal(&ticket(), &mut sealed);
        assert!(sealed.len() <= TICKET_MAX);
        assert_eq!(sealer.open(&sealed, 999), Some(ticket()));
        assert_eq!(sealer.open(&sealed, 1000), None, "expired");
        for bit in 0..sealed.len() * 8 {
            let mut bad = sealed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(sealer.open(&bad, 999), None, "bit {bit}");
        }
        for len in 0..sealed.len() {
            assert_eq!(sealer.open(&sealed[..len], 999), None);
        }
        assert_eq!(Sealer::new(ServerSecret([2; 32])).open(&sealed, 999), None);
        assert!(
            !sealed.windows(16).any(|window| window == [5; 16]),
            "the key is masked"
        );
    }

    #[test]
    fn rotation_keeps_old_tickets() {
        let mut sealer = Sealer::new(ServerSecret([1; 32]));
        let mut sealed = Vec::new();
        sealer.seal(&ticket(), &mut sealed);
        sealer.rotate(ServerSecret([2; 32]));
        assert_eq!(sealer.open(&sealed, 0), Some(ticket()));
    }

    #[test]
    fn both_of_a_pair_derive_one_check_key() {
        let sealer = Sealer::new(ServerSecret([1; 32]));
        let [a, b] = [1, 2].map(|seat| SeatId {
            seat,
            generation: 7,
        });
        let code = JoinCode::from_bits(1).unwrap();
        assert_eq!(
            sealer.check_key(code, [a, b], 5),
            sealer.check_key(code, [b, a], 5)
        );
        assert_ne!(
            sealer.check_key(code, [a, b], 5),
            sealer.check_key(code, [a, b], 6)
        );
    }
}
