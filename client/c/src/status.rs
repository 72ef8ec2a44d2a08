//! What a call returns: a status, and per thread the text that goes with the last one that was not `WAYPOST_OK`.

use std::cell::RefCell;
use std::ffi::{c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};

use waypost_client::{Error, NotSent, SeatId};

use crate::buffer::write_text;

/// It is done.
pub const WAYPOST_OK: c_int = 0;
/// Nothing is there now; wait for the descriptor.
pub const WAYPOST_EMPTY: c_int = -1;
/// The caller's buffer is too small. The length it needs was written, and nothing was taken.
pub const WAYPOST_TOO_SMALL: c_int = -2;
/// An argument is null, no UTF-8, out of its range, or too long.
pub const WAYPOST_INVALID: c_int = -3;
/// The operating system refused something.
pub const WAYPOST_SYSTEM: c_int = -4;
/// The server does not answer.
pub const WAYPOST_SILENT: c_int = -5;
/// The server refused; `waypost_error_code` has its error code.
pub const WAYPOST_REJECTED: c_int = -6;
/// There is no path to that member under the path policy now.
pub const WAYPOST_NO_PATH: c_int = -7;
/// That member is not in the session any more.
pub const WAYPOST_MEMBER_LEFT: c_int = -8;
/// The seat is gone.
pub const WAYPOST_ENDED: c_int = -9;
/// The member does not keep up with the messages.
pub const WAYPOST_FULL: c_int = -10;
/// The session was made without messages.
pub const WAYPOST_NO_MESSAGES: c_int = -11;
/// The time was over first.
pub const WAYPOST_TIMED_OUT: c_int = -12;
/// The library has failed; please report it with the text.
pub const WAYPOST_PANIC: c_int = -13;

/// Why a call failed.
pub(crate) struct Failure {
    status: c_int,
    text: String,
    /// The server's error code, or 0.
    code: c_int,
}

impl Failure {
    pub(crate) fn new(status: c_int, text: &str) -> Self {
        Self {
            status,
            text: text.to_owned(),
            code: 0,
        }
    }

    pub(crate) fn invalid(text: &str) -> Self {
        Self::new(WAYPOST_INVALID, text)
    }

    pub(crate) fn empty() -> Self {
        Self::new(
            WAYPOST_EMPTY,
            "nothing is there now; wait for the descriptor",
        )
    }

    pub(crate) fn too_small(needed: usize) -> Self {
        let text = format!("the buffer is too small; give one of {needed} bytes");
        Self::new(WAYPOST_TOO_SMALL, &text)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::Io(_) => WAYPOST_SYSTEM,
            Error::Silent => WAYPOST_SILENT,
            Error::Rejected(_) => WAYPOST_REJECTED,
            Error::NoPath(_) | Error::NoStream(_) => WAYPOST_NO_PATH,
            Error::MemberLeft => WAYPOST_MEMBER_LEFT,
            Error::Left | Error::Removed(_) | Error::SeatLost => WAYPOST_ENDED,
            Error::NotSent(NotSent::Full) => WAYPOST_FULL,
            Error::NoMessages => WAYPOST_NO_MESSAGES,
            Error::TimedOut => WAYPOST_TIMED_OUT,
            Error::WouldBlock => WAYPOST_EMPTY,
            _ => WAYPOST_INVALID,
        };
        let code = match &error {
            Error::Rejected(rejected) => c_int::from(rejected.code),
            _ => 0,
        };
        Self {
            status,
            text: error.to_string(),
            code,
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.downcast::<Error>() {
            Ok(error) => error.into(),
            Err(error) => Error::Io(error).into(),
        }
    }
}

thread_local! {
    static LAST: RefCell<(String, c_int)> = const { RefCell::new((String::new(), 0)) };
}

/// Runs a call's body. Nothing it does wrong crosses into the caller: a panic becomes `WAYPOST_PANIC`.
pub(crate) fn guarded(body: impl FnOnce() -> Result<(), Failure>) -> c_int {
    let outcome = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| {
        Err(Failure::new(
            WAYPOST_PANIC,
            "the library has failed; please report what led to it",
        ))
    });
    match outcome {
        Ok(()) => WAYPOST_OK,
        Err(failure) => {
            LAST.with_borrow_mut(|last| *last = (failure.text, failure.code));
            failure.status
        }
    }
}

/// Writes what the last failure of this thread was and what to do about it, for people to read. `capacity` counts the null
/// byte; what does not fit is cut off. Returns the text's length without the null byte.
///
/// # Safety
/// `text` points to `capacity` writable bytes, or `capacity` is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_error_text(text: *mut c_char, capacity: usize) -> usize {
    LAST.with_borrow(|(last, _)| {
        // SAFETY: the caller owns `text` for the call, as this function demands.
        let _ = unsafe { write_text(last, text, capacity) };
        last.len()
    })
}

/// The server's error code that goes with the last failure of this thread, 0 if that was not `WAYPOST_REJECTED`. Codes are in
/// docs/protocol.md, section 8.
#[unsafe(no_mangle)]
pub extern "C" fn waypost_error_code() -> c_int {
    LAST.with_borrow(|(_, code)| *code)
}

/// A member as a number, as C has it.
pub(crate) fn member_number(id: SeatId) -> u32 {
    u32::from_be_bytes(id.to_bytes())
}

/// The member that a number means.
pub(crate) fn member_of(number: u32) -> Result<SeatId, Failure> {
    SeatId::from_bytes(&number.to_be_bytes())
        .ok_or_else(|| Failure::invalid("this number is no member's"))
}
