//! The list of public sessions.

use std::ffi::{c_char, c_int};

use waypost_client::{ListFilter, ListedSession, list};

use crate::buffer::{handle, put, text, write_bytes};
use crate::config::WaypostConfig;
use crate::status::{Failure, guarded};

/// A list of sessions, as it was when it was read.
pub struct WaypostList {
    sessions: Vec<ListedSession>,
}

/// A session in a list.
#[repr(C)]
pub struct WaypostListed {
    /// Its join code.
    pub code: [c_char; 16],
    /// Its unique name, empty if it has none.
    pub name: [c_char; 65],
    /// Its seats.
    pub max_members: u8,
    /// Seats taken.
    pub members: u8,
    /// Whether joining needs a password.
    pub has_password: bool,
    /// Whether nobody may join now.
    pub is_locked: bool,
    /// Bytes of its metadata.
    pub metadata_length: usize,
    /// What its host wants known.
    pub metadata: [u8; 512],
}

/// Which sessions of a list are wanted: those that pass everything that is set.
#[repr(C)]
pub struct WaypostListFilter {
    /// Only sessions whose name begins so; null for all.
    pub name_prefix: *const c_char,
    /// Only sessions with a free seat.
    pub has_room: bool,
    /// Only sessions that are not locked.
    pub unlocked: bool,
    /// Only sessions that need no password.
    pub no_password: bool,
}

impl WaypostListFilter {
    /// # Safety
    /// `name_prefix` is null or a text.
    unsafe fn read(&self) -> Result<ListFilter, Failure> {
        let name_prefix = match self.name_prefix.is_null() {
            true => None,
            // SAFETY: the caller's text, as this function demands.
            false => Some(unsafe { text(self.name_prefix) }?.to_owned()),
        };
        Ok(ListFilter {
            name_prefix,
            has_room: self.has_room,
            unlocked: self.unlocked,
            no_password: self.no_password,
        })
    }
}

/// Reads the listed sessions of a configuration's application that pass `filter`, or all if that is null. Waits for the server. The
/// list is to be freed with `waypost_list_free`.
///
/// # Safety
/// `server` is a text, `config` came from `waypost_config_new`, `filter` is null or points to a filter whose `name_prefix` is null or a
/// text, `made` points to a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_list_read(
    server: *const c_char,
    config: *const WaypostConfig,
    filter: *const WaypostListFilter,
    made: *mut *mut WaypostList,
) -> c_int {
    guarded(|| {
        // SAFETY: the caller's, as this function demands. The result is written first so that it is never left as it was.
        let (server, config, filter) = unsafe {
            put(made, std::ptr::null_mut())?;
            let filter = match filter.as_ref() {
                Some(filter) => filter.read()?,
                None => ListFilter::default(),
            };
            (text(server)?, handle(config)?, filter)
        };
        let sessions = list(server, config.player(), &filter)?;
        // SAFETY: as above.
        unsafe { put(made, Box::into_raw(Box::new(WaypostList { sessions }))) }
    })
}

/// How many sessions a list has.
///
/// # Safety
/// `list` is null or came from `waypost_list_read` and was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_list_count(list: *const WaypostList) -> usize {
    // SAFETY: null or alive, as this function demands.
    unsafe { list.as_ref() }.map_or(0, |list| list.sessions.len())
}

/// Writes the session with this index into `session`.
///
/// # Safety
/// `list` came from `waypost_list_read` and was not freed; `session` points to writable memory for it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_list_get(
    list: *const WaypostList,
    index: usize,
    session: *mut WaypostListed,
) -> c_int {
    guarded(|| {
        // SAFETY: the caller's handle, as this function demands.
        let list = unsafe { handle(list) }?;
        let listed = list
            .sessions
            .get(index)
            .ok_or_else(|| Failure::invalid("the list has fewer sessions"))?;
        let mut written = WaypostListed {
            code: [0; 16],
            name: [0; 65],
            max_members: listed.max_members,
            members: listed.members,
            has_password: listed.has_password(),
            is_locked: listed.is_locked(),
            metadata_length: listed.metadata.len().min(512),
            metadata: [0; 512],
        };
        let name = listed.name.as_deref().unwrap_or_default();
        // SAFETY: all three destinations are arrays in this function, given with their lengths; the texts' last byte stays null.
        unsafe {
            write_bytes(
                listed.code.to_string().as_bytes(),
                written.code.as_mut_ptr().cast(),
                15,
            )?;
            write_bytes(name.as_bytes(), written.name.as_mut_ptr().cast(), 64)?;
            write_bytes(&listed.metadata, written.metadata.as_mut_ptr(), 512)?;
        }
        // SAFETY: the caller's memory, as this function demands.
        unsafe { put(session, written) }
    })
}

/// Frees a list.
///
/// # Safety
/// `list` is null or came from `waypost_list_read` and was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_list_free(list: *mut WaypostList) {
    if !list.is_null() {
        // SAFETY: a box's own pointer by `waypost_list_read`, given back once.
        drop(unsafe { Box::from_raw(list) });
    }
}
