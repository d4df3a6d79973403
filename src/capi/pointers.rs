//! Pointers of a C program as Rust values: checked for null, alignment and UTF-8.
//!
//! What cannot be checked is the caller's word (include/mmx.h): a pointer that is not null points
//! to as much as the call says, which nothing else changes until the call returns.
#![expect(unsafe_code, reason = "pointers of a C program are followed")]

use std::ffi::{CStr, c_char};

use crate::status::{Failure, MmxStatus};

/// A reference to what a handle or a struct's pointer points to.
///
/// # Safety
/// Null, or a valid `T` that lives and is not changed during `'a`.
pub(crate) unsafe fn reference<'a, T>(ptr: *const T, what: &str) -> Result<&'a T, Failure> {
    check(ptr, what)?;
    // SAFETY: not null and aligned, as checked; the rest is this function's own condition.
    Ok(unsafe { &*ptr })
}

/// Stores a value where the caller asked for it.
///
/// # Safety
/// Null, or memory for a `T` that nothing else uses during the call.
pub(crate) unsafe fn store<T>(ptr: *mut T, value: T, what: &str) -> Result<(), Failure> {
    check(ptr, what)?;
    // SAFETY: not null and aligned, as checked; the rest is this function's own condition. What was
    // there is overwritten, not dropped: it may never have been a value.
    unsafe { ptr.write(value) };
    Ok(())
}

/// `length` values; none may be at null.
///
/// # Safety
/// Null, or `length` valid values that live and are not changed during `'a`.
pub(crate) unsafe fn values<'a, T>(
    ptr: *const T,
    length: usize,
    what: &str,
) -> Result<&'a [T], Failure> {
    if length == 0 {
        return Ok(&[]);
    }
    check_many(ptr, length, what)?;
    // SAFETY: not null, aligned and of a possible size, as checked; the rest is this function's
    // condition.
    Ok(unsafe { std::slice::from_raw_parts(ptr, length) })
}

/// A string that ends in zero.
///
/// # Safety
/// Null, or a string that ends in zero, lives and is not changed during `'a`.
pub(crate) unsafe fn text<'a>(ptr: *const c_char, what: &str) -> Result<&'a str, Failure> {
    check(ptr, what)?;
    // SAFETY: not null, as checked; the rest is this function's own condition.
    let bytes = unsafe { CStr::from_ptr(ptr) };
    bytes.to_str().map_err(|e| Failure::invalid(format!("{what}: expected UTF-8, {e}")))
}

/// A string that ends in zero, or nothing where the pointer is null.
///
/// # Safety
/// As [`text`].
pub(crate) unsafe fn optional_text<'a>(
    ptr: *const c_char,
    what: &str,
) -> Result<Option<&'a str>, Failure> {
    if ptr.is_null() {
        return Ok(None);
    }
    // SAFETY: the same condition.
    unsafe { text(ptr, what) }.map(Some)
}

/// Stores how many values there are, then the values if they fit.
///
/// # Safety
/// `buffer`: null, or memory for `capacity` values; `count`: null, or memory for a number; nothing
/// else uses either during the call.
pub(crate) unsafe fn fill<T: Copy>(
    from: &[T],
    buffer: *mut T,
    capacity: usize,
    count: *mut usize,
) -> Result<(), Failure> {
    // SAFETY: this function's own condition.
    unsafe { store(count, from.len(), "where the number is to be stored")? };
    if capacity < from.len() {
        return Err(Failure::new(
            MmxStatus::TooSmall,
            format!("expected a buffer of at least {}, found {capacity}", from.len()),
        ));
    }
    if !from.is_empty() {
        check_many(buffer, from.len(), "buffer")?;
        // SAFETY: the buffer is not null and aligned, as checked, and holds `capacity` values, at
        // least as many as are copied; it is not ours, so it does not overlap.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), buffer, from.len()) };
    }
    Ok(())
}

/// Stores a text's length without its final zero, then the text with it if both fit.
///
/// # Safety
/// As [`fill`].
pub(crate) unsafe fn fill_text(
    from: &str,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> Result<(), Failure> {
    let mut bytes = from.as_bytes().to_vec();
    bytes.push(0);
    let mut with_zero = 0;
    // SAFETY: the buffer is this function's own condition; the number is a variable here. char is a
    // byte.
    let filled = unsafe { fill(&bytes, buffer.cast::<u8>(), capacity, &mut with_zero) };
    // SAFETY: this function's own condition.
    unsafe { store(length, from.len(), "where the length is to be stored")? };
    filled
}

fn check<T>(ptr: *const T, what: &str) -> Result<(), Failure> {
    if ptr.is_null() {
        return Err(Failure::invalid(format!("{what}: expected a pointer, found null")));
    }
    if !ptr.is_aligned() {
        return Err(Failure::invalid(format!("{what}: the pointer is not aligned")));
    }
    Ok(())
}

fn check_many<T>(ptr: *const T, length: usize, what: &str) -> Result<(), Failure> {
    check(ptr, what)?;
    match length.checked_mul(size_of::<T>()) {
        Some(bytes) if isize::try_from(bytes).is_ok() => Ok(()),
        _ => Err(Failure::invalid(format!("{what}: {length} values are more than memory holds"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_null_odd_addresses_bad_text_and_impossible_lengths() {
        let message = |failure: Failure| {
            assert_eq!(failure.status, MmxStatus::InvalidArgument);
            failure.message
        };
        let four = [1u32, 2, 3, 4];
        let odd = four.as_ptr().wrapping_byte_add(1);
        // SAFETY: null and odd pointers are refused before they are followed, the others are valid,
        // and an impossible length is refused.
        unsafe {
            assert!(
                message(values::<u32>(std::ptr::null(), 1, "ids").unwrap_err()).contains("null")
            );
            assert!(message(values(odd, 1, "ids").unwrap_err()).contains("aligned"));
            assert!(
                message(values(four.as_ptr(), usize::MAX, "ids").unwrap_err()).contains("more")
            );
            assert_eq!(values::<u32>(std::ptr::null(), 0, "ids").unwrap(), [0u32; 0]);
            assert!(message(text(c"\xff".as_ptr(), "text").unwrap_err()).contains("UTF-8"));
            assert!(optional_text(std::ptr::null(), "text").unwrap().is_none());
        }
    }

    #[test]
    fn a_small_buffer_is_told_the_size_and_left_alone() {
        let (mut length, mut buffer) = (0, [7 as c_char; 4]);
        // SAFETY: valid buffers of the lengths given, and null with none.
        unsafe {
            let failure = fill_text("abcd", buffer.as_mut_ptr(), 4, &mut length).unwrap_err();
            assert_eq!((failure.status, length, buffer), (MmxStatus::TooSmall, 4, [7; 4]));
            fill_text("abc", buffer.as_mut_ptr(), 4, &mut length).unwrap();
            assert_eq!((length, buffer), (3, [97, 98, 99, 0]));
            let asked = fill_text("abc", std::ptr::null_mut(), 0, &mut length).unwrap_err();
            assert_eq!((asked.status, length), (MmxStatus::TooSmall, 3));
            assert!(fill(&[1u32], std::ptr::null_mut(), 9, &mut length).is_err());
            assert!(fill(&[1u32], &mut 0, 9, std::ptr::null_mut()).is_err());
        }
    }
}
