//! A seat in a session: getting one, what can be done from it, and what happens there.

use std::ffi::{c_char, c_int};
#[cfg(unix)]
use std::os::fd::AsRawFd as _;
use std::sync::{Mutex, PoisonError};

use waypost_client::{Error, MessageEvent, MessageId, Service, Session};

use crate::buffer::{bytes, handle, put, text, write_bytes, write_text};
use crate::config::WaypostConfig;
use crate::event::{WaypostEvent, of_message, of_session, path_number};
use crate::status::{Failure, guarded, member_number, member_of};

/// No datagram is longer.
const DATAGRAM_MAX: usize = 1_200;

/// Sent once; delivered at most once, in any order.
pub const WAYPOST_UNRELIABLE: c_int = 0;
/// Sent once; what is overtaken is not delivered.
pub const WAYPOST_SEQUENCED: c_int = 1;
/// Sent until it has arrived; delivered once, in any order.
pub const WAYPOST_RELIABLE: c_int = 2;
/// Sent until it has arrived; delivered once, in the order of sending.
pub const WAYPOST_ORDERED: c_int = 3;
/// Instead of a member: all of them.
pub const WAYPOST_EVERYBODY: u32 = u32::MAX;

/// A seat in a session.
pub struct WaypostSession {
    session: Session,
    /// A message that did not fit into the caller's buffer.
    held: Mutex<Option<MessageEvent>>,
}

/// Another member.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct WaypostMember {
    /// Who.
    pub id: u32,
    /// The way that data to it take now, `WAYPOST_PATH_DIRECT` and its like.
    pub path: c_int,
    /// Whether it is the host.
    pub is_host: bool,
    /// Whether it is reached through the relay only, by its own wish.
    pub is_relay_only: bool,
    /// Bytes of its data.
    pub data_length: usize,
    /// Its own data, a name for instance.
    pub data: [u8; 64],
}

/// # Safety
/// `made` is null or points to a place for a pointer.
unsafe fn make(
    made: *mut *mut WaypostSession,
    seat: impl FnOnce() -> Result<Session, Failure>,
) -> c_int {
    guarded(|| {
        // SAFETY: the caller's place, as each function below demands; written first so that it is never left as it was.
        unsafe { put(made, std::ptr::null_mut()) }?;
        let session = seat()?;
        session.set_nonblocking(true);
        let session = WaypostSession {
            session,
            held: Mutex::new(None),
        };
        // SAFETY: as above.
        unsafe { put(made, Box::into_raw(Box::new(session))) }
    })
}

/// Makes a session on `server`, "host:port", and takes its first seat. Waits for the server. The session is to be freed with
/// `waypost_session_free`.
///
/// # Safety
/// `server` is a text, `config` came from `waypost_config_new`, `made` points to a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_host(
    server: *const c_char,
    config: *const WaypostConfig,
    made: *mut *mut WaypostSession,
) -> c_int {
    // SAFETY: as this function demands.
    unsafe {
        make(made, || {
            let config = handle(config)?.hosting.clone();
            Ok(Session::host(text(server)?, config)?)
        })
    }
}

/// Takes a seat in the session with this code or this name. Waits for the server. As `waypost_host` otherwise.
///
/// # Safety
/// As `waypost_host`; `code_or_name` is a text.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_join(
    server: *const c_char,
    code_or_name: *const c_char,
    config: *const WaypostConfig,
    made: *mut *mut WaypostSession,
) -> c_int {
    // SAFETY: as this function demands.
    unsafe {
        make(made, || {
            let config = handle(config)?.joining();
            Ok(Session::join(text(server)?, text(code_or_name)?, config)?)
        })
    }
}

/// Takes a seat in a match with others who want `players` (2 to 255) with the same `key` of 1 to 64 bytes. The others come with
/// `WAYPOST_FORMED`. As `waypost_host` otherwise.
///
/// # Safety
/// As `waypost_host`; `key` points to `key_length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_find_match(
    server: *const c_char,
    key: *const u8,
    key_length: usize,
    players: u8,
    config: *const WaypostConfig,
    made: *mut *mut WaypostSession,
) -> c_int {
    // SAFETY: as this function demands.
    unsafe {
        make(made, || {
            let (player, key) = (handle(config)?.player(), bytes(key, key_length)?);
            Ok(Session::find_match(text(server)?, key, players, player)?)
        })
    }
}

/// Comes back to the seat of a ticket from `waypost_ticket`. As `waypost_host` otherwise.
///
/// # Safety
/// As `waypost_host`; `ticket` points to `ticket_length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_resume(
    server: *const c_char,
    ticket: *const u8,
    ticket_length: usize,
    config: *const WaypostConfig,
    made: *mut *mut WaypostSession,
) -> c_int {
    // SAFETY: as this function demands.
    unsafe {
        make(made, || {
            let (player, ticket) = (handle(config)?.player(), bytes(ticket, ticket_length)?);
            Ok(Session::resume(text(server)?, ticket, player)?)
        })
    }
}

/// Leaves the session without waiting, if it has not been left, and frees it.
///
/// # Safety
/// `session` is null, or came from this library, was not freed, and no other thread uses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_session_free(session: *mut WaypostSession) {
    if !session.is_null() {
        guarded(|| {
            // SAFETY: a box's own pointer by `make`, given back once.
            drop(unsafe { Box::from_raw(session) });
            Ok(())
        });
    }
}

/// # Safety
/// `session` is null or came from this library and was not freed.
pub(crate) unsafe fn with(
    session: *const WaypostSession,
    body: impl FnOnce(&Session) -> Result<(), Failure>,
) -> c_int {
    // SAFETY: the caller's handle, as each function below demands.
    guarded(|| body(&unsafe { handle(session) }?.session))
}

/// A file descriptor that is readable while something waits for the caller, and always once the seat is gone. Only for waiting
/// (`poll`, `select`, `epoll`): not to be read from, nor closed.
///
/// # Safety
/// `session` came from this library and was not freed; `fd` points to writable memory.
#[cfg(unix)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_fd(session: *const WaypostSession, fd: *mut c_int) -> c_int {
    // SAFETY: as this function demands.
    unsafe {
        with(session, |session| {
            put(fd, session.readiness_fd()?.as_raw_fd())
        })
    }
}

/// Writes the join code; 12 bytes are enough.
///
/// # Safety
/// `session` came from this library and was not freed; `code` points to `capacity` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_code(
    session: *const WaypostSession,
    code: *mut c_char,
    capacity: usize,
) -> c_int {
    // SAFETY: as this function demands.
    unsafe {
        with(session, |session| {
            write_text(&session.code()?.to_string(), code, capacity)
        })
    }
}

/// Writes the ticket that `waypost_resume` takes. `length` says how long it is. As secret as a password.
///
/// # Safety
/// `session` came from this library and was not freed; `ticket` points to `capacity` bytes, `length` to writable memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_ticket(
    session: *const WaypostSession,
    ticket: *mut u8,
    capacity: usize,
    length: *mut usize,
) -> c_int {
    // SAFETY: as this function demands.
    unsafe {
        with(session, |session| {
            let written = session.ticket()?;
            put(length, written.len())?;
            if written.len() > capacity {
                return Err(Failure::too_small(written.len()));
            }
            write_bytes(&written, ticket, capacity).map(drop)
        })
    }
}

/// This player's own number.
///
/// # Safety
/// `session` came from this library and was not freed; `id` points to writable memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_own_id(session: *const WaypostSession, id: *mut u32) -> c_int {
    // SAFETY: as this function demands.
    unsafe { with(session, |session| put(id, member_number(session.id()?))) }
}

/// Whether this player is the host.
///
/// # Safety
/// `session` is null or came from this library and was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_is_host(session: *const WaypostSession) -> bool {
    // SAFETY: null or alive, as this function demands.
    unsafe { session.as_ref() }.is_some_and(|session| session.session.is_host())
}

/// Writes the other members, in the order of their seats, into the array `members` of `capacity`. `count` says how many there
/// are; if that is more than fits, `WAYPOST_TOO_SMALL`.
///
/// # Safety
/// `session` came from this library and was not freed; `members` points to room for `capacity` of them, `count` to writable
/// memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_members(
    session: *const WaypostSession,
    members: *mut WaypostMember,
    capacity: usize,
    count: *mut usize,
) -> c_int {
    // SAFETY: as this function demands.
    unsafe {
        with(session, |session| {
            let found = session.members();
            put(count, found.len())?;
            if found.len() > capacity {
                return Err(Failure::too_small(found.len() * size_of::<WaypostMember>()));
            }
            for (at, member) in found.iter().enumerate() {
                let mut written = WaypostMember {
                    id: member_number(member.id),
                    path: path_number(member.path),
                    is_host: member.is_host,
                    is_relay_only: member.is_relay_only,
                    data_length: member.data.len().min(64),
                    data: [0; 64],
                };
                write_bytes(&member.data, written.data.as_mut_ptr(), 64)?;
                if members.is_null() {
                    return Err(Failure::invalid("the array is null"));
                }
                put(members.add(at), written)?;
            }
            Ok(())
        })
    }
}

/// Sends a datagram of at most 1,195 bytes to a member: it may be lost, doubled or overtaken.
///
/// # Safety
/// `session` came from this library and was not freed; `data` points to `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_send(
    session: *const WaypostSession,
    member: u32,
    data: *const u8,
    length: usize,
) -> c_int {
    // SAFETY: as this function demands.
    unsafe {
        with(session, |session| {
            session
                .link(member_of(member)?)?
                .send(bytes(data, length)?)?;
            Ok(())
        })
    }
}

/// Takes a datagram, if one is there, else `WAYPOST_EMPTY`. What does not fit into `capacity` is cut off; `length` is that of the
/// datagram, 1,196 at most.
///
/// # Safety
/// `session` came from this library and was not freed; `data` points to `capacity` bytes, `member` and `length` to writable
/// memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_receive(
    session: *const WaypostSession,
    member: *mut u32,
    data: *mut u8,
    capacity: usize,
    length: *mut usize,
) -> c_int {
    // SAFETY: as this function demands.
    unsafe {
        with(session, |session| {
            let mut datagram = [0; DATAGRAM_MAX];
            let Some((from, len)) = session.try_recv_from(&mut datagram) else {
                session.code()?;
                return Err(Failure::empty());
            };
            put(member, member_number(from))?;
            put(length, len)?;
            write_bytes(&datagram[..len], data, capacity).map(drop)
        })
    }
}

/// Sends a message of at most 65,536 bytes to a member, or to `WAYPOST_EVERYBODY`. `service` is `WAYPOST_RELIABLE` or its like;
/// after `lifetime_ms` a reliable one that was not acknowledged is given up, 0 for never. `message`, unless null, gets the
/// number that events name it by.
///
/// # Safety
/// `session` came from this library and was not freed; `data` points to `length` bytes, `message` is null or points to writable
/// memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_send_message(
    session: *const WaypostSession,
    member: u32,
    data: *const u8,
    length: usize,
    service: c_int,
    lifetime_ms: u32,
    message: *mut u32,
) -> c_int {
    // SAFETY: as this function demands.
    unsafe {
        with(session, |session| {
            let service = match service {
                WAYPOST_UNRELIABLE => Service::UNRELIABLE,
                WAYPOST_SEQUENCED => Service::SEQUENCED,
                WAYPOST_RELIABLE => Service::RELIABLE,
                WAYPOST_ORDERED => Service::ORDERED,
                _ => return Err(Failure::invalid("there is no such service")),
            };
            let service = match lifetime_ms {
                0 => service,
                lifetime_ms => service.expiring_in_ms(lifetime_ms),
            };
            let data = bytes(data, length)?;
            let MessageId(id) = match member {
                WAYPOST_EVERYBODY => session.broadcast(data, service)?,
                member => session.send_message(member_of(member)?, data, service)?,
            };
            match message.is_null() {
                true => Ok(()),
                false => put(message, id),
            }
        })
    }
}

/// Takes the next thing that happened, if there is one, else `WAYPOST_EMPTY`. The content of a message is written into `data`; if
/// it does not fit, `WAYPOST_TOO_SMALL`, the event tells its length, and the next call tells the same event.
/// Once the seat is gone and all is told, `WAYPOST_ENDED`.
///
/// # Safety
/// `session` came from this library and was not freed; `event` points to writable memory for it, `data` to `capacity` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_next_event(
    session: *const WaypostSession,
    event: *mut WaypostEvent,
    data: *mut u8,
    capacity: usize,
) -> c_int {
    guarded(|| {
        // SAFETY: the caller's handle, as this function demands.
        let WaypostSession { session, held } = unsafe { handle(session) }?;
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_none() {
            let ended = match session.next_event(None) {
                Ok(happened) => {
                    // SAFETY: the caller's memory, as this function demands.
                    return unsafe { put(event, of_session(happened)) };
                }
                Err(error) => error,
            };
            match session.next_message(None) {
                Ok(happened) => *held = Some(happened),
                Err(Error::NoMessages) => return Err(ended.into()),
                Err(error) => return Err(error.into()),
            }
        }
        let Some(happened) = held.as_ref() else {
            return Err(Failure::empty());
        };
        // SAFETY: the caller's memory, as this function demands.
        unsafe { put(event, of_message(happened)) }?;
        if let MessageEvent::Received(message) = happened {
            if message.data.len() > capacity {
                return Err(Failure::too_small(message.data.len()));
            }
            // SAFETY: the caller's `capacity` bytes, as this function demands.
            unsafe { write_bytes(&message.data, data, capacity) }?;
        }
        *held = None;
        Ok(())
    })
}

/// The smoothed round trip to a member, milliseconds. `WAYPOST_EMPTY` while it is not known, as without messages.
///
/// # Safety
/// `session` came from this library and was not freed; `milliseconds` points to writable memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_round_trip(
    session: *const WaypostSession,
    member: u32,
    milliseconds: *mut u32,
) -> c_int {
    // SAFETY: as this function demands.
    unsafe {
        with(session, |session| {
            let round_trip = session.round_trip(member_of(member)?);
            let round_trip = round_trip.ok_or_else(Failure::empty)?;
            put(
                milliseconds,
                u32::try_from(round_trip.as_millis()).unwrap_or(u32::MAX),
            )
        })
    }
}

/// Removes a member for the session's life. Only the host may. Waits for the server.
///
/// # Safety
/// `session` came from this library and was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_kick(session: *const WaypostSession, member: u32) -> c_int {
    // SAFETY: as this function demands.
    unsafe { with(session, |session| Ok(session.kick(member_of(member)?)?)) }
}

/// Makes another member the host. Only the host may. Waits for the server.
///
/// # Safety
/// `session` came from this library and was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_transfer(session: *const WaypostSession, member: u32) -> c_int {
    // SAFETY: as this function demands.
    unsafe { with(session, |session| Ok(session.transfer(member_of(member)?)?)) }
}

/// Locks or opens the session. Only the host may. Waits for the server.
///
/// # Safety
/// `session` came from this library and was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_set_locked(session: *const WaypostSession, locked: bool) -> c_int {
    // SAFETY: as this function demands.
    unsafe { with(session, |session| Ok(session.set_locked(locked)?)) }
}

/// Changes the up to 512 bytes that lists and members show of the session. Only the host may. Waits for the server.
///
/// # Safety
/// `session` came from this library and was not freed; `data` points to `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_set_metadata(
    session: *const WaypostSession,
    data: *const u8,
    length: usize,
) -> c_int {
    // SAFETY: as this function demands.
    unsafe {
        with(session, |session| {
            Ok(session.set_metadata(bytes(data, length)?)?)
        })
    }
}

/// Leaves the server and goes on with the members to whom there is a direct path, each as long as its path holds. Waits until it
/// is done, about a round trip. `WAYPOST_INVALID` if there is a direct path to nobody.
///
/// # Safety
/// `session` came from this library and was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_leave_server(session: *const WaypostSession) -> c_int {
    // SAFETY: as this function demands.
    unsafe { with(session, |session| Ok(session.leave_server()?)) }
}

/// Whether the seat is there and the server answers, or the session goes on without it.
///
/// # Safety
/// `session` is null or came from this library and was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_is_connected(session: *const WaypostSession) -> bool {
    // SAFETY: null or alive, as this function demands.
    unsafe { session.as_ref() }.is_some_and(|session| session.session.is_connected())
}

/// Writes the session's unique name, empty if it has none; 65 bytes are enough.
///
/// # Safety
/// `session` came from this library and was not freed; `name` points to `capacity` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_name(
    session: *const WaypostSession,
    name: *mut c_char,
    capacity: usize,
) -> c_int {
    // SAFETY: as this function demands.
    unsafe {
        with(session, |session| {
            write_text(&session.name().unwrap_or_default(), name, capacity)
        })
    }
}

/// Ends the session for everybody. Only the host may. Waits for the server.
///
/// # Safety
/// `session` came from this library and was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_close(session: *const WaypostSession) -> c_int {
    // SAFETY: as this function demands.
    unsafe { with(session, |session| Ok(session.close()?)) }
}

/// Leaves the session and waits until the server has taken notice. Reliable messages that are not acknowledged are lost. The
/// session is still to be freed.
///
/// # Safety
/// `session` came from this library and was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_leave(session: *const WaypostSession) -> c_int {
    // SAFETY: as this function demands.
    unsafe { with(session, |session| Ok(session.leave()?)) }
}
