//! Between the caller's memory and Rust's. The only place where a length that the caller gave is believed.

use std::ffi::{CStr, c_char};
use std::slice;

use crate::status::Failure;

/// Reads a text.
///
/// # Safety
/// `text` is null or points to a text that ends with a null byte and does not change during the call.
pub(crate) unsafe fn text<'a>(text: *const c_char) -> Result<&'a str, Failure> {
    if text.is_null() {
        return Err(Failure::invalid("a text is null"));
    }
    // SAFETY: not null, and the caller's text until the call returns, which outlasts every use here.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str()
        .map_err(|_| Failure::invalid("a text is no UTF-8"))
}

/// Reads bytes. None may be at null.
///
/// # Safety
/// `data` points to `len` readable bytes that do not change during the call, or `len` is 0.
pub(crate) unsafe fn bytes<'a>(data: *const u8, len: usize) -> Result<&'a [u8], Failure> {
    if len == 0 {
        return Ok(&[]);
    }
    if data.is_null() || isize::try_from(len).is_err() {
        return Err(Failure::invalid("data are null, or impossibly long"));
    }
    // SAFETY: not null, and the caller's `len` bytes until the call returns.
    Ok(unsafe { slice::from_raw_parts(data, len) })
}

/// Borrows what a handle stands for.
///
/// # Safety
/// `handle` is null or came from this library and has not been freed.
pub(crate) unsafe fn handle<'a, T>(handle: *const T) -> Result<&'a T, Failure> {
    // SAFETY: null or alive until the call returns, as the caller promises; only shared references are made of it.
    unsafe { handle.as_ref() }.ok_or_else(|| Failure::invalid("a handle is null"))
}

/// As [`handle`], to change it.
///
/// # Safety
/// As [`handle`], and no other thread uses it during the call.
pub(crate) unsafe fn handle_mut<'a, T>(handle: *mut T) -> Result<&'a mut T, Failure> {
    // SAFETY: null or alive, and in no other use until the call returns, as the caller promises.
    unsafe { handle.as_mut() }.ok_or_else(|| Failure::invalid("a handle is null"))
}

/// Writes a result.
///
/// # Safety
/// `place` is null or points to writable memory for a `T`.
pub(crate) unsafe fn put<T>(place: *mut T, value: T) -> Result<(), Failure> {
    if place.is_null() {
        return Err(Failure::invalid("a place for a result is null"));
    }
    // SAFETY: not null, and the caller's, who reads it after the call only. What was there is not dropped.
    unsafe { place.write(value) };
    Ok(())
}

/// Writes bytes; the caller has made sure that they fit or cut them.
///
/// # Safety
/// `place` points to `capacity` writable bytes, or `capacity` is 0.
pub(crate) unsafe fn write_bytes(
    data: &[u8],
    place: *mut u8,
    capacity: usize,
) -> Result<usize, Failure> {
    let len = data.len().min(capacity);
    if len == 0 {
        return Ok(0);
    }
    if place.is_null() {
        return Err(Failure::invalid("a buffer is null"));
    }
    // SAFETY: `len` bytes of both are valid: of `data` by its type, of the caller's buffer because `len` <= `capacity`. They
    // do not overlap, for `data` is Rust's.
    unsafe { place.copy_from_nonoverlapping(data.as_ptr(), len) };
    Ok(len)
}

/// Writes a text and its null byte, cut to `capacity`. Fails if it was cut.
///
/// # Safety
/// `place` points to `capacity` writable bytes, or `capacity` is 0.
pub(crate) unsafe fn write_text(
    text: &str,
    place: *mut c_char,
    capacity: usize,
) -> Result<(), Failure> {
    let needed = text.len() + 1;
    let Some(room) = capacity.checked_sub(1) else {
        return Err(Failure::too_small(needed));
    };
    let mut end = text.len().min(room);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    // SAFETY: the caller's `capacity` bytes, of which the text takes at most all but one.
    let len = unsafe { write_bytes(&text.as_bytes()[..end], place.cast(), room) }?;
    if place.is_null() {
        return Err(Failure::invalid("a buffer is null"));
    }
    // SAFETY: `len` <= `room` < `capacity`, within the caller's buffer.
    unsafe { place.add(len).write(0) };
    if needed > capacity {
        return Err(Failure::too_small(needed));
    }
    Ok(())
}
