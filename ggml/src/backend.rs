//! Memory for tensors, and graphs computed on the CPU by a pool of threads.
//!
//! A [`Buffer`] owns the data of tensors, a [`Plan`] a graph with its memory, a [`Pool`] the threads.
#![expect(unsafe_code, reason = "buffers, graphs and threads are C objects")]

use std::ffi::c_void;
use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;
use mmx_converters::gguf::Gguf;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::log;
use crate::tensor::Tensor;

/// Where ggml wants a tensor's data to begin. Source: TENSOR_ALIGNMENT, ggml-backend.cpp.
pub(crate) const ALIGNMENT: usize = 32;
/// Rounds a worker spins while it waits for the next graph, in ggml's unit of some 6 ms: the pause between
/// two tokens is shorter, and a worker that waits longer sleeps.
const POLL: u32 = 1;

/// A kind of memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BufferType(sys::ggml_backend_buffer_type_t);

impl BufferType {
    /// Plain memory.
    pub(crate) fn cpu() -> Self {
        log::install();
        // SAFETY: returns a static object.
        Self(unsafe { sys::ggml_backend_cpu_buffer_type() })
    }

    /// The CPU's kinds of memory that keep weights in another order for speed.
    pub(crate) fn extra() -> Vec<Self> {
        log::install();
        // SAFETY: static objects; the function pointer has the type that ggml documents for this name;
        // the list it returns ends with null and is static.
        unsafe {
            let registry = sys::ggml_backend_cpu_reg();
            let device = sys::ggml_backend_reg_dev_get(registry, 0);
            let name = c"ggml_backend_dev_get_extra_bufts";
            let found = sys::ggml_backend_reg_get_proc_address(registry, name.as_ptr());
            let Some(get) =
                std::mem::transmute::<*mut c_void, sys::ggml_backend_dev_get_extra_bufts_t>(found)
            else {
                return Vec::new();
            };
            let mut list = get(device);
            let mut types = Vec::new();
            while !list.is_null() && !(*list).is_null() {
                types.push(Self(*list));
                list = list.add(1);
            }
            types
        }
    }

    /// True when the CPU can compute `op` with its first operand, which has no memory yet, in memory of
    /// this kind.
    pub(crate) fn supports(self, op: Tensor<'_>) -> bool {
        // SAFETY: op and its first operand are live tensors without memory; the operand gets an empty
        // buffer for the question and loses it again.
        unsafe {
            let weight = (*op.raw()).src[0];
            let buffer = sys::ggml_backend_buft_alloc_buffer(self.0, 0);
            if weight.is_null() || buffer.is_null() {
                return false;
            }
            (*weight).buffer = buffer;
            let device = sys::ggml_backend_reg_dev_get(sys::ggml_backend_cpu_reg(), 0);
            let answer = sys::ggml_backend_dev_supports_op(device, op.raw());
            (*weight).buffer = std::ptr::null_mut();
            sys::ggml_backend_buffer_free(buffer);
            answer
        }
    }
}

/// Owns the data of tensors.
#[derive(Debug)]
pub(crate) struct Buffer {
    ptr: NonNull<sys::ggml_backend_buffer>,
}

// SAFETY: a buffer is memory; reading it from several threads is sound, and it is written only through
// functions that take the tensor's owner mutably or before it is shared.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the pointer came from ggml and is freed once; tensors in it are not used afterwards,
        // since their owners keep context and buffer together.
        unsafe { sys::ggml_backend_buffer_free(self.ptr.as_ptr()) }
    }
}

impl Buffer {
    /// Memory for every tensor of `context` that has none; nothing when there is none to give.
    pub(crate) fn for_all(context: &Context, kind: BufferType) -> Result<Option<Self>> {
        // SAFETY: a live context and a static buffer type.
        let (ptr, said) = log::capture(|| unsafe {
            if sys::ggml_get_first_tensor(context.raw()).is_null() {
                return None;
            }
            Some(sys::ggml_backend_alloc_ctx_tensors_from_buft(context.raw(), kind.0))
        });
        match ptr.map(NonNull::new) {
            None => Ok(None),
            Some(Some(ptr)) => Ok(Some(Self { ptr })),
            Some(None) => Err(log::library_error("memory for tensors", said)),
        }
    }

    /// The file's own bytes as memory for tensors, or nothing where they begin at an odd address (a file in
    /// memory); the caller keeps `gguf` alive as long.
    pub(crate) fn of_file(gguf: &Gguf) -> Result<Option<Self>> {
        let bytes = gguf.bytes();
        if bytes.as_ptr().align_offset(ALIGNMENT) != 0 {
            return Ok(None);
        }
        // SAFETY: the pointer is that of a live slice that does not move; ggml never writes into a buffer
        // that only holds weights, which is all that is put there.
        let ptr = unsafe {
            sys::ggml_backend_cpu_buffer_from_ptr(
                bytes.as_ptr().cast_mut().cast::<c_void>(),
                bytes.len(),
            )
        };
        match NonNull::new(ptr) {
            Some(ptr) => Ok(Some(Self { ptr })),
            None => Err(log::library_error("memory for tensors", String::new())),
        }
    }

    /// Puts a tensor at `offset` of [`Buffer::of_file`]'s bytes.
    pub(crate) fn place(&self, gguf: &Gguf, tensor: Tensor<'_>, offset: usize) -> Result<()> {
        let fits = gguf.bytes().get(offset..).is_some_and(|rest| {
            rest.len() >= tensor.bytes() && rest.as_ptr().align_offset(ALIGNMENT) == 0
        });
        if !fits {
            return Err(Error::Request {
                message: format!("a tensor of {} bytes at {offset} of the file", tensor.bytes()),
            });
        }
        // SAFETY: the range lies in the buffer and is aligned, as checked.
        let status = unsafe {
            let address = gguf.bytes().as_ptr().add(offset).cast_mut().cast::<c_void>();
            sys::ggml_backend_tensor_alloc(self.ptr.as_ptr(), tensor.raw(), address)
        };
        if status == sys::GGML_STATUS_SUCCESS {
            return Ok(());
        }
        Err(log::library_error("memory for tensors", format!("status {status}")))
    }

    /// Fills all of the memory with zeros.
    pub(crate) fn clear(&mut self) {
        // SAFETY: a live buffer.
        unsafe { sys::ggml_backend_buffer_clear(self.ptr.as_ptr(), 0) }
    }
}

/// Copies a tensor's data in, all at once; memory of another order is filled in that order.
pub(crate) fn fill(tensor: Tensor<'_>, data: &[u8]) -> Result<()> {
    if tensor.bytes() != data.len() || !tensor.is_allocated() {
        return Err(Error::Request {
            message: format!("expected {} bytes of data, found {}", tensor.bytes(), data.len()),
        });
    }
    // SAFETY: the tensor has memory for exactly these bytes.
    unsafe { sys::ggml_backend_tensor_set(tensor.raw(), data.as_ptr().cast(), 0, data.len()) };
    Ok(())
}

/// Threads that compute graphs.
#[derive(Debug)]
pub(crate) struct Pool {
    ptr: NonNull<sys::ggml_threadpool>,
    threads: usize,
}

// SAFETY: the pool is used by one thread at a time, the one that holds it.
unsafe impl Send for Pool {}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: the pointer came from ggml_threadpool_new; no graph is being computed.
        unsafe { sys::ggml_threadpool_free(self.ptr.as_ptr()) }
    }
}

impl Pool {
    /// `threads` threads, the caller's being one of them.
    pub(crate) fn new(threads: usize) -> Result<Self> {
        Self::with_poll(threads, POLL)
    }

    /// The same with another time of spinning.
    pub(crate) fn with_poll(threads: usize, poll: u32) -> Result<Self> {
        log::install();
        // SAFETY: the parameters are filled in by ggml.
        let ptr = unsafe {
            sys::ggml_cpu_init();
            let mut params = std::mem::zeroed();
            sys::ggml_threadpool_params_init(&mut params, threads as i32);
            params.poll = poll;
            sys::ggml_threadpool_new(&mut params)
        };
        NonNull::new(ptr)
            .map(|ptr| Self { ptr, threads })
            .ok_or_else(|| log::library_error(format!("{threads} threads"), String::new()))
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    pub(crate) fn raw(&self) -> *mut sys::ggml_threadpool {
        self.ptr.as_ptr()
    }
}

/// A tensor of a [`Plan`], kept beside it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot(NonNull<sys::ggml_tensor>);

// SAFETY: a name; what it points to is reached through its plan only, which is sent along.
unsafe impl Send for Slot {}

impl Slot {
    pub(crate) fn of(tensor: Tensor<'_>) -> Self {
        // SAFETY: a Tensor is never null.
        Self(unsafe { NonNull::new_unchecked(tensor.raw()) })
    }
}

/// A graph with the memory of its results: made once, computed many times.
#[derive(Debug)]
pub(crate) struct Plan {
    context: Context,
    graph: NonNull<sys::ggml_cgraph>,
    allocator: NonNull<sys::ggml_gallocr>,
    /// ggml's scratch memory while it computes, in units that are aligned well.
    work: Vec<u128>,
}

// SAFETY: everything in it is owned and used by the thread that holds the plan.
unsafe impl Send for Plan {}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: the pointer came from ggml_gallocr_new; the graph's data are not used afterwards.
        unsafe { sys::ggml_gallocr_free(self.allocator.as_ptr()) }
    }
}

impl Plan {
    /// An empty graph of at most `tensors` tensors, to be filled through [`Plan::nodes`] and then finished.
    pub(crate) fn new(tensors: usize) -> Result<Self> {
        let context = Context::new(tensors, tensors)?;
        // SAFETY: the context was made with room for this graph.
        let graph = unsafe { sys::ggml_new_graph_custom(context.raw(), tensors, false) };
        // SAFETY: a static buffer type.
        let allocator = unsafe { sys::ggml_gallocr_new(sys::ggml_backend_cpu_buffer_type()) };
        match (NonNull::new(graph), NonNull::new(allocator)) {
            (Some(graph), Some(allocator)) => {
                Ok(Self { context, graph, allocator, work: Vec::new() })
            }
            _ => Err(log::library_error("a graph", String::new())),
        }
    }

    /// Where nodes are made.
    pub(crate) fn nodes(&self) -> Nodes<'_> {
        Nodes { graph: self.graph, context: &self.context }
    }

    /// Gives memory to the complete graph.
    pub(crate) fn finish(self) -> Result<Self> {
        // SAFETY: the graph's nodes are complete; every leaf has memory or is flagged as an input.
        let (done, said) = log::capture(|| unsafe {
            sys::ggml_gallocr_alloc_graph(self.allocator.as_ptr(), self.graph.as_ptr())
        });
        if done { Ok(self) } else { Err(log::library_error("memory for a graph", said)) }
    }

    /// Computes the graph with the pool's threads.
    pub(crate) fn compute(&mut self, pool: &mut Pool) -> Result<()> {
        // SAFETY: graph and pool are live; the work memory is as large as the plan says and lives during
        // the call; the pool is held mutably, so nothing else computes with it.
        let status = unsafe {
            let mut plan =
                sys::ggml_graph_plan(self.graph.as_ptr(), pool.threads as i32, pool.ptr.as_ptr());
            let units = plan.work_size.div_ceil(size_of::<u128>());
            if self.work.len() < units {
                self.work.resize(units, 0);
            }
            plan.work_data = self.work.as_mut_ptr().cast();
            sys::ggml_graph_compute(self.graph.as_ptr(), &mut plan)
        };
        if status == sys::GGML_STATUS_SUCCESS {
            return Ok(());
        }
        Err(log::library_error("computing a graph", format!("status {status}")))
    }

    /// A tensor's data as plain values; its slot must be of this plan, made of values of this size.
    pub(crate) fn data_mut<T: bytemuck::Pod>(&mut self, slot: Slot) -> &mut [T] {
        // SAFETY: slots are made from tensors of this plan, which live as long as its context; contiguous
        // inputs and outputs of the graph have memory of ggml_nbytes bytes in plain CPU memory, aligned to
        // 32 bytes. `&mut self` keeps it from being computed or read elsewhere meanwhile.
        unsafe {
            let tensor = slot.0.as_ptr();
            let bytes = sys::ggml_nbytes(tensor);
            std::slice::from_raw_parts_mut((*tensor).data.cast::<T>(), bytes / size_of::<T>())
        }
    }
}

/// Where a plan's inputs and results are named.
#[derive(Clone, Copy)]
pub(crate) struct Nodes<'c> {
    graph: NonNull<sys::ggml_cgraph>,
    pub(crate) context: &'c Context,
}

impl<'c> Nodes<'c> {
    /// An input: memory of its own that keeps its values until the graph is computed.
    pub(crate) fn input(
        &self,
        ty: mmx_converters::gguf::GgmlType,
        shape: &[usize],
    ) -> Result<Tensor<'c>> {
        let tensor = self.context.tensor(ty, shape)?;
        // SAFETY: sets a flag of a live tensor.
        unsafe { sys::ggml_set_input(tensor.raw()) };
        Ok(tensor)
    }

    /// A result to be computed at this point of the order: its memory is free for others once it was used.
    pub(crate) fn compute(&self, tensor: Tensor<'c>) {
        // SAFETY: tensor and graph are of the same live context, which holds at most as many tensors as
        // the graph can take nodes.
        unsafe { sys::ggml_build_forward_expand(self.graph.as_ptr(), tensor.raw()) }
    }

    /// A result that is read after the computation.
    pub(crate) fn output(&self, tensor: Tensor<'c>) -> Slot {
        // SAFETY: sets a flag of a live tensor.
        unsafe { sys::ggml_set_output(tensor.raw()) };
        self.compute(tensor);
        Slot::of(tensor)
    }
}
