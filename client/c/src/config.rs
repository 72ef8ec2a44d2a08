//! What a caller says about itself and the session it wants. Only data: nothing here touches the network.

use std::ffi::{c_char, c_int};
use std::time::Duration;

use waypost_client::{Credential, HostConfig, JoinConfig, Messaging, PathPolicy, Player};

use crate::buffer::{bytes, handle_mut, text};
use crate::status::{Failure, guarded};

/// Directly once that is proven; through the relay until then.
pub const WAYPOST_DIRECT_FIRST: c_int = 0;
/// Through the relay as long as the server answers.
pub const WAYPOST_RELAY_FIRST: c_int = 1;
/// Only through the relay: nobody learns this player's address.
pub const WAYPOST_RELAY_ONLY: c_int = 2;
/// Never through the relay.
pub const WAYPOST_DIRECT_ONLY: c_int = 3;

/// Who plays, and what session it wants. Used for hosting, joining and lists; each takes from it what it needs.
pub struct WaypostConfig {
    pub(crate) hosting: HostConfig,
}

impl WaypostConfig {
    pub(crate) const fn player(&self) -> &Player {
        &self.hosting.player
    }

    pub(crate) fn joining(&self) -> JoinConfig {
        JoinConfig {
            player: self.hosting.player.clone(),
            password: self.hosting.password.clone(),
        }
    }
}

/// A configuration for players of `application`, 1 to 32 bytes that name the game; everything else as usual. Null if
/// `application` is null or no UTF-8. To be freed with `waypost_config_free`.
///
/// # Safety
/// `application` is null or a text that ends with a null byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_config_new(application: *const c_char) -> *mut WaypostConfig {
    let mut made = std::ptr::null_mut();
    guarded(|| {
        // SAFETY: the caller's text, as this function demands.
        let application = unsafe { text(application) }?;
        let hosting = HostConfig::new(application);
        made = Box::into_raw(Box::new(WaypostConfig { hosting }));
        Ok(())
    });
    made
}

/// Frees a configuration. Sessions made from it stay.
///
/// # Safety
/// `config` is null or came from `waypost_config_new` and was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_config_free(config: *mut WaypostConfig) {
    if !config.is_null() {
        // SAFETY: a box's own pointer by `waypost_config_new`, given back once.
        drop(unsafe { Box::from_raw(config) });
    }
}

/// # Safety
/// As [`handle_mut`].
pub(crate) unsafe fn change(
    config: *mut WaypostConfig,
    change: impl FnOnce(&mut HostConfig) -> Result<(), Failure>,
) -> c_int {
    guarded(|| {
        // SAFETY: the caller's handle, used by this thread alone, as each function below demands.
        change(&mut unsafe { handle_mut(config) }?.hosting)
    })
}

/// A unique name for the session to host, 1 to 64 bytes, to join by; null for none.
///
/// # Safety
/// `config` came from `waypost_config_new`; `name` is null or a text.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_config_set_name(
    config: *mut WaypostConfig,
    name: *const c_char,
) -> c_int {
    // SAFETY: as this function demands.
    unsafe {
        change(config, |hosting| {
            hosting.name = match name.is_null() {
                true => None,
                false => Some(text(name)?.to_owned()),
            };
            Ok(())
        })
    }
}

/// What joining takes: for the session to host, or that of the session to join. Empty for nothing.
///
/// # Safety
/// `config` came from `waypost_config_new`; `password` is a text.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_config_set_password(
    config: *mut WaypostConfig,
    password: *const c_char,
) -> c_int {
    // SAFETY: as this function demands.
    unsafe {
        change(config, |hosting| {
            text(password)?.clone_into(&mut hosting.password);
            Ok(())
        })
    }
}

/// Seats of the session to host, 2 to 255, the host's included; 8 unless set.
///
/// # Safety
/// `config` came from `waypost_config_new`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_config_set_max_members(
    config: *mut WaypostConfig,
    max_members: u8,
) -> c_int {
    // SAFETY: as this function demands.
    unsafe {
        change(config, |hosting| {
            hosting.max_members = max_members;
            Ok(())
        })
    }
}

/// Up to 512 bytes that lists and members show of the session to host.
///
/// # Safety
/// `config` came from `waypost_config_new`; `data` points to `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_config_set_metadata(
    config: *mut WaypostConfig,
    data: *const u8,
    length: usize,
) -> c_int {
    // SAFETY: as this function demands.
    unsafe {
        change(config, |hosting| {
            hosting.metadata = bytes(data, length)?.to_vec();
            Ok(())
        })
    }
}

/// Whether lists show the session to host.
///
/// # Safety
/// `config` came from `waypost_config_new`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_config_set_listed(
    config: *mut WaypostConfig,
    listed: bool,
) -> c_int {
    // SAFETY: as this function demands.
    unsafe {
        change(config, |hosting| {
            hosting.listed = listed;
            Ok(())
        })
    }
}

/// Up to 64 bytes that the other members see of this player, a name for instance.
///
/// # Safety
/// `config` came from `waypost_config_new`; `data` points to `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_config_set_player_data(
    config: *mut WaypostConfig,
    data: *const u8,
    length: usize,
) -> c_int {
    // SAFETY: as this function demands.
    unsafe {
        change(config, |hosting| {
            hosting.player.data = bytes(data, length)?.to_vec();
            Ok(())
        })
    }
}

/// How data may travel: `WAYPOST_DIRECT_FIRST` and its like.
///
/// # Safety
/// `config` came from `waypost_config_new`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_config_set_policy(
    config: *mut WaypostConfig,
    policy: c_int,
) -> c_int {
    // SAFETY: as this function demands.
    unsafe {
        change(config, |hosting| {
            hosting.player.policy = match policy {
                WAYPOST_DIRECT_FIRST => PathPolicy::DirectFirst,
                WAYPOST_RELAY_FIRST => PathPolicy::RelayFirst,
                WAYPOST_RELAY_ONLY => PathPolicy::RelayOnly,
                WAYPOST_DIRECT_ONLY => PathPolicy::DirectOnly,
                _ => return Err(Failure::invalid("there is no such path policy")),
            };
            Ok(())
        })
    }
}

/// Whether the session has messages beside datagrams, which all its members must agree on: with `dead_after_ms` over 0 it does,
/// and a member of which nothing has come for so long (500 to 600,000 ms) is told as silent. 0, as at first: no messages.
///
/// # Safety
/// `config` came from `waypost_config_new`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_config_set_messages(
    config: *mut WaypostConfig,
    dead_after_ms: u32,
) -> c_int {
    // SAFETY: as this function demands.
    unsafe {
        change(config, |hosting| {
            let dead_after_ms = u64::from(dead_after_ms);
            hosting.player.messages = (dead_after_ms > 0).then_some(Messaging { dead_after_ms });
            Ok(())
        })
    }
}

/// For servers that serve only whom their operator knows: a credential made by the game's backend.
///
/// # Safety
/// `config` came from `waypost_config_new`; `username` and `password` are texts.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_config_set_credential(
    config: *mut WaypostConfig,
    username: *const c_char,
    password: *const c_char,
) -> c_int {
    // SAFETY: as this function demands.
    unsafe {
        change(config, |hosting| {
            hosting.player.credential = Some(Credential {
                username: text(username)?.to_owned(),
                password: text(password)?.to_owned(),
            });
            Ok(())
        })
    }
}

/// How long an operation waits for the server, milliseconds; 15,000 unless set.
///
/// # Safety
/// `config` came from `waypost_config_new`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_config_set_patience(
    config: *mut WaypostConfig,
    patience_ms: u32,
) -> c_int {
    // SAFETY: as this function demands.
    unsafe {
        change(config, |hosting| {
            hosting.player.patience = Duration::from_millis(patience_ms.into());
            Ok(())
        })
    }
}
