//! A tensor of ggml, borrowed from the [`Context`](crate::wrap::context::Context) that owns it.
//!
//! ggml lists dimensions fastest first; here and everywhere in mmx a shape is outermost first. The
//! two orders are turned into each other in this file and nowhere else.
#![expect(unsafe_code, reason = "a tensor is a C structure")]

use std::marker::PhantomData;
use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;
use mmx_converters::gguf::GgmlType;

use crate::error::{Error, Result};

/// Dimensions a ggml tensor has at most.
pub const MAX_DIMS: usize = 4;

/// A tensor's description: copied freely, gone with its context.
///
/// ```compile_fail
/// use mmx_converters::gguf::GgmlType;
/// let tensor = {
///     let context = mmx_ggml::wrap::context::Context::new(1, 0)?;
///     context.tensor(GgmlType::F32, &[2, 3])?
/// }; // the context is gone, its tensors with it
/// tensor.shape();
/// # Ok::<(), mmx_ggml::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'c> {
    ptr: NonNull<sys::ggml_tensor>,
    context: PhantomData<&'c ()>,
}

/// A shape as ggml wants it: fastest first, filled up with ones.
pub(crate) fn to_ne(shape: &[usize]) -> [i64; MAX_DIMS] {
    let mut ne = [1; MAX_DIMS];
    for (to, &from) in ne.iter_mut().zip(shape.iter().rev()) {
        *to = from as i64;
    }
    ne
}

impl<'c> Tensor<'c> {
    /// Wraps what a C call returned.
    ///
    /// # Safety
    /// `ptr` is null or a tensor that lives as long as `'c`.
    pub(crate) unsafe fn from_raw(ptr: *mut sys::ggml_tensor, what: &str) -> Result<Self> {
        match NonNull::new(ptr) {
            Some(ptr) => Ok(Self { ptr, context: PhantomData }),
            None => Err(Error::Library {
                doing: format!("ggml context: no room for {what}"),
                message: "the context was made for fewer tensors".to_owned(),
            }),
        }
    }

    /// The C structure.
    pub(crate) fn raw(self) -> *mut sys::ggml_tensor {
        self.ptr.as_ptr()
    }

    /// Names it, up to a zero byte and 63 bytes at most.
    pub(crate) fn set_name(self, name: &str) {
        let bytes: Vec<u8> = name.bytes().take_while(|&byte| byte != 0).chain([0]).collect();
        // SAFETY: a valid tensor that the caller does not share yet, and a string that ends in
        // zero, of which ggml copies what it has room for.
        unsafe { sys::ggml_set_name(self.ptr.as_ptr(), bytes.as_ptr().cast()) };
    }

    fn get(&self) -> &sys::ggml_tensor {
        // SAFETY: the pointer is valid while the context lives, which 'c says.
        unsafe { self.ptr.as_ref() }
    }

    /// The dimensions, outermost first; leading ones are left away, at least one dimension is
    /// given.
    pub fn shape(&self) -> Vec<usize> {
        let dims = self.ne().iter().rposition(|&n| n != 1).map_or(1, |last| last + 1);
        self.ne()[..dims].iter().rev().copied().collect()
    }

    /// The dimensions in ggml's order, always four.
    pub(crate) fn ne(&self) -> [usize; MAX_DIMS] {
        self.get().ne.map(|n| usize::try_from(n).unwrap_or(0))
    }

    /// Bytes from one element of a dimension to the next, in ggml's order.
    pub(crate) fn nb(&self) -> [usize; MAX_DIMS] {
        self.get().nb
    }

    /// The element type, if mmx knows it.
    pub fn ty(&self) -> Option<GgmlType> {
        GgmlType::from_id(self.get().type_)
    }

    /// Where its data begins, null before it has memory.
    pub(crate) fn data(&self) -> *mut std::ffi::c_void {
        self.get().data
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.ne().iter().product()
    }

    /// Bytes of the data.
    pub fn bytes(&self) -> usize {
        // SAFETY: a valid tensor.
        unsafe { sys::ggml_nbytes(self.ptr.as_ptr()) }
    }

    /// True once memory is assigned to it.
    pub fn is_allocated(&self) -> bool {
        !self.get().data.is_null()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wrap::context::Context;

    #[test]
    fn shapes_are_outermost_first() {
        let context = Context::new(2, 0).unwrap();
        let tensor = context.tensor(GgmlType::F16, &[2, 3, 8]).unwrap();
        assert_eq!(tensor.shape(), [2, 3, 8]);
        assert_eq!(tensor.ne(), [8, 3, 2, 1]);
        assert_eq!((tensor.elements(), tensor.bytes()), (48, 96));
        assert_eq!(tensor.ty(), Some(GgmlType::F16));
        assert!(!tensor.is_allocated());
        tensor.set_name(&"long".repeat(40)); // ggml has room for 64 bytes
        assert_eq!(
            // signed or not, as the CPU has it
            tensor.get().name.map(|c| c.to_ne_bytes()[0]),
            *format!("{}\0", &"long".repeat(16)[..63]).as_bytes()
        );
        let one = context.tensor(GgmlType::F32, &[1]).unwrap();
        assert_eq!(one.shape(), [1]);
    }
}
