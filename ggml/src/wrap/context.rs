//! A ggml context: the descriptions of tensors and graphs, not their data. Owns; all else borrows
//! from it.
#![expect(unsafe_code, reason = "a context is a C object")]

use std::any::Any;
use std::cell::RefCell;
use std::ptr::NonNull;
use std::rc::Rc;

use llama_cpp_sys_2 as sys;
use mmx_converters::gguf::GgmlType;

use crate::error::{Error, Result};
use crate::quant::sys_type;
use crate::wrap::log;
use crate::wrap::tensor::{MAX_DIMS, Tensor, to_ne};

/// The owner of tensors' descriptions; freed when dropped.
#[derive(Debug)]
pub struct Context {
    ptr: NonNull<sys::ggml_context>,
    size: usize,
    /// What nodes refer to by its address, for as long as they may be computed.
    kept: RefCell<Vec<Rc<dyn Any>>>,
}

// SAFETY: a context is plain memory; every change of it goes through a Context that one thread
// holds.
unsafe impl Send for Context {}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the pointer came from ggml_init and is freed once.
        unsafe { sys::ggml_free(self.ptr.as_ptr()) }
    }
}

impl Context {
    /// Makes a context with room for `tensors` tensors and a graph of `nodes` nodes (0: no graph).
    ///
    /// # Errors
    /// No memory.
    pub fn new(tensors: usize, nodes: usize) -> Result<Self> {
        log::install();
        // SAFETY: pure arithmetic in C.
        let size = unsafe {
            let graph = if nodes > 0 { sys::ggml_graph_overhead_custom(nodes, false) } else { 0 };
            (tensors + 2) * sys::ggml_tensor_overhead() + graph
        };
        let params = sys::ggml_init_params {
            mem_size: size,
            mem_buffer: std::ptr::null_mut(),
            no_alloc: true,
        };
        // SAFETY: ggml allocates the memory itself since mem_buffer is null.
        match NonNull::new(unsafe { sys::ggml_init(params) }) {
            Some(ptr) => Ok(Self { ptr, size, kept: RefCell::default() }),
            None => Err(Error::Library {
                doing: "ggml context".to_owned(),
                message: format!("{size} bytes were refused"),
            }),
        }
    }

    /// Describes a tensor without data; shape outermost first.
    ///
    /// # Errors
    /// More than four dimensions, a row that does not divide into blocks, or no room.
    pub fn tensor(&self, ty: GgmlType, shape: &[usize]) -> Result<Tensor<'_>> {
        let row = shape.last().copied().unwrap_or(0);
        if shape.is_empty() || shape.len() > MAX_DIMS || ty.row_bytes(row).is_none() {
            return Err(Error::Request {
                message: format!(
                    "{} tensor: expected 1 to 4 dimensions and rows of a multiple of {}, found {shape:?}",
                    ty.name(),
                    ty.block_elements()
                ),
            });
        }
        self.require_room("a tensor")?;
        let ne = to_ne(shape);
        // SAFETY: ne holds as many dimensions as said; the type is known to ggml.
        unsafe {
            let new =
                sys::ggml_new_tensor(self.raw(), sys_type(ty), shape.len() as i32, ne.as_ptr());
            Tensor::from_raw(new, "a tensor")
        }
    }

    /// An error where the next node would not fit: ggml would end the process.
    pub(crate) fn require_room(&self, what: &str) -> Result<()> {
        // SAFETY: a live context; no operation makes more than two tensors.
        let needed = unsafe { sys::ggml_used_mem(self.raw()) + 2 * sys::ggml_tensor_overhead() };
        if needed <= self.size {
            return Ok(());
        }
        Err(Error::Library {
            doing: format!("ggml context: no room for {what}"),
            message: "the context was made for fewer tensors".to_owned(),
        })
    }

    /// Keeps what a node refers to as long as this context, where the pointer says.
    pub(crate) fn keep<T: Any>(&self, thing: T) -> *const T {
        let thing = Rc::new(thing);
        let at = Rc::as_ptr(&thing);
        self.kept.borrow_mut().push(thing);
        at
    }

    pub(crate) fn raw(&self) -> *mut sys::ggml_context {
        self.ptr.as_ptr()
    }
}
