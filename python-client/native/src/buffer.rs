//! Memory of Python objects, by the buffer protocol.
//!
//! Its functions and the layout of its struct became part of the stable interface with Python 3.11, as they had been since 3.3; pyo3 offers them for
//! that version and later ones only. So they are declared here.
#![allow(unsafe_code, reason = "memory of another language; each use says why it is sound")]

use std::ffi::{c_char, c_int, c_void};
use std::marker::PhantomData;
use std::ptr::null_mut;

use pyo3::ffi::PyObject;
use pyo3::prelude::*;

const SIMPLE: c_int = 0;
const WRITABLE: c_int = 1;

/// `Py_buffer` of Python's `pybuffer.h`.
#[repr(C)]
struct View {
    buf: *mut c_void,
    obj: *mut PyObject,
    len: isize,
    itemsize: isize,
    readonly: c_int,
    ndim: c_int,
    format: *mut c_char,
    shape: *mut isize,
    strides: *mut isize,
    suboffsets: *mut isize,
    internal: *mut c_void,
}

unsafe extern "C" {
    fn PyObject_GetBuffer(object: *mut PyObject, view: *mut View, flags: c_int) -> c_int;
    fn PyBuffer_Release(view: *mut View);
}

/// The bytes of an object, which are held in place while this lives.
pub(crate) struct Buffer<'py> {
    /// Boxed, because an exporter may keep its address.
    view: Box<View>,
    /// It is released by who holds the interpreter.
    interpreter: PhantomData<Python<'py>>,
}

/// Bytes that may be used without the interpreter, as long as the [`Buffer`] is borrowed.
pub(crate) struct Bytes<'a> {
    start: *mut u8,
    len: usize,
    borrowed: PhantomData<&'a mut [u8]>,
}

// SAFETY: plain memory, which the exporter keeps in place whatever thread uses it.
unsafe impl Send for Bytes<'_> {}

impl<'py> Buffer<'py> {
    /// The bytes of a contiguous object; a BufferError or ValueError where it is not contiguous, or read-only and to be `written`.
    pub fn of(object: &Bound<'py, PyAny>, written: bool) -> PyResult<Buffer<'py>> {
        let mut view = Box::new(View {
            buf: null_mut(),
            obj: null_mut(),
            len: 0,
            itemsize: 0,
            readonly: 0,
            ndim: 0,
            format: null_mut(),
            shape: null_mut(),
            strides: null_mut(),
            suboffsets: null_mut(),
            internal: null_mut(),
        });
        // SAFETY: the object lives, the interpreter is held, and the view has the layout that is filled in.
        let failed = unsafe { PyObject_GetBuffer(object.as_ptr(), &raw mut *view, if written { WRITABLE } else { SIMPLE }) };
        match failed {
            0 => Ok(Buffer { view, interpreter: PhantomData }),
            _ => Err(PyErr::fetch(object.py())),
        }
    }

    /// Its bytes.
    pub fn bytes(&mut self) -> Bytes<'_> {
        let len = usize::try_from(self.view.len).unwrap_or(0);
        Bytes { start: self.view.buf.cast(), len, borrowed: PhantomData }
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        // SAFETY: it was filled by `PyObject_GetBuffer`, and the interpreter is held as long as `'py` lasts.
        unsafe { PyBuffer_Release(&raw mut *self.view) }
    }
}

impl Bytes<'_> {
    /// To be read. As with a socket's own methods, a program that writes to them meanwhile sends what it writes.
    pub fn get(&self) -> &[u8] {
        match self.len {
            0 => &[],
            // SAFETY: the exporter keeps `len` bytes there while the buffer is held.
            len => unsafe { std::slice::from_raw_parts(self.start, len) },
        }
    }

    /// To be written. As with a socket's own methods, a program that looks at them meanwhile sees what has come.
    pub fn get_mut(&mut self) -> &mut [u8] {
        match self.len {
            0 => &mut [],
            // SAFETY: as above, and the buffer was asked for to be written.
            len => unsafe { std::slice::from_raw_parts_mut(self.start, len) },
        }
    }
}
