//! A value whose address llama.cpp keeps as a callback's `user_data`.

use std::ffi::c_void;
use std::ptr::NonNull;

/// Owns a value at a fixed address. A `Box` would not do: moving one asserts that no other pointer
/// to its content is in use.
///
/// The owner of the C object that keeps the address drops that object first, and lets Rust reach
/// the value only while no callback runs.
pub(super) struct CallbackState<T>(NonNull<T>);

impl<T> CallbackState<T> {
    pub(super) fn new(value: T) -> Self {
        Self(NonNull::from(Box::leak(Box::new(value))))
    }

    pub(super) fn as_c(&self) -> *mut c_void {
        self.0.as_ptr().cast()
    }

    pub(super) fn as_ptr(&self) -> *const T {
        self.0.as_ptr()
    }

    pub(super) fn get(&mut self) -> &mut T {
        // SAFETY: callbacks run only inside calls that need the C object's owner as `&mut`, and
        // the owner holds this one.
        unsafe { self.0.as_mut() }
    }
}

impl<T: Default> Default for CallbackState<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> Drop for CallbackState<T> {
    fn drop(&mut self) {
        // SAFETY: leaked in `new`.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}
