//! Memory for tensors, and graphs computed by a pool of threads, or by a device and these threads together.
//!
//! A [`Buffer`] owns the data of tensors, a [`Plan`] a graph with its memory, a [`Pool`] the threads.
#![expect(unsafe_code, reason = "buffers, graphs and threads are C objects")]

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use llama_cpp_sys_2 as sys;
use mmx_converters::gguf::Gguf;

use crate::error::{Error, Result};
use crate::wrap::context::Context;
use crate::wrap::cpu::kernels;
use crate::wrap::device::{Pair, Stream};
use crate::wrap::log;
use crate::wrap::tensor::Tensor;

/// Where ggml wants a tensor's data to begin. Source: TENSOR_ALIGNMENT, ggml-backend.cpp.
pub(crate) const ALIGNMENT: usize = 32;
/// Threads that compute together at most. Source: GGML_MAX_N_THREADS, ggml.h (a macro, so not in the bindings).
pub const MAX_THREADS: usize = 512;
/// Rounds a worker spins while it waits for the next graph, in ggml's unit of some 6 ms: the pause between
/// two tokens is shorter, and a worker that waits longer sleeps.
const POLL: u32 = 1;
/// So long at least, after a graph, its workers spin, whatever the CPU takes for a pause.
pub(crate) const SPIN: Duration = Duration::from_millis(1);

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
    pub(crate) fn extra() -> Result<Vec<Self>> {
        Ok(kernels()?.extra_types().into_iter().map(Self).collect())
    }

    pub(crate) fn from_raw(raw: sys::ggml_backend_buffer_type_t) -> Self {
        Self(raw)
    }

    pub(crate) fn raw(self) -> sys::ggml_backend_buffer_type_t {
        self.0
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

    /// The own bytes of one of the files as memory for tensors, or nothing where they begin at an odd address (a file
    /// in memory).
    ///
    /// # Safety
    /// The tensors put there are weights, which nothing writes, and are not read once `gguf` is gone.
    pub(crate) unsafe fn of_file(gguf: &Gguf, part: usize) -> Result<Option<Self>> {
        let bytes = gguf.part(part);
        if bytes.as_ptr().align_offset(ALIGNMENT) != 0 {
            return Ok(None);
        }
        // SAFETY: the pointer is that of a live slice that does not move; the rest is this function's own condition.
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

    /// Puts a tensor at `offset` of [`Buffer::of_file`]'s bytes, those of file `part`.
    pub(crate) fn place(
        &self,
        gguf: &Gguf,
        part: usize,
        tensor: Tensor<'_>,
        offset: usize,
    ) -> Result<()> {
        let bytes = gguf.part(part);
        let fits = bytes.get(offset..).is_some_and(|rest| {
            rest.len() >= tensor.bytes() && rest.as_ptr().align_offset(ALIGNMENT) == 0
        });
        if !fits {
            return Err(Error::Request {
                message: format!("a tensor of {} bytes at {offset} of the file", tensor.bytes()),
            });
        }
        // SAFETY: the range lies in the file and is aligned, as checked; ggml checks that it lies in the buffer.
        let status = unsafe {
            let address = bytes.as_ptr().add(offset).cast_mut().cast::<c_void>();
            sys::ggml_backend_tensor_alloc(self.ptr.as_ptr(), tensor.raw(), address)
        };
        if status == sys::GGML_STATUS_SUCCESS {
            return Ok(());
        }
        Err(log::library_error("memory for tensors", format!("status {status}")))
    }

    /// Tells ggml's scheduler that operations are to be computed where these tensors lie.
    pub(crate) fn holds_weights(&self) {
        // SAFETY: sets a property of a live buffer.
        unsafe {
            sys::ggml_backend_buffer_set_usage(
                self.ptr.as_ptr(),
                sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS,
            );
        }
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

/// Copies `length` bytes of a tensor's data from one place in it to another.
pub(crate) fn copy_within(tensor: Tensor<'_>, from: usize, to: usize, length: usize) -> Result<()> {
    let end = from.max(to).checked_add(length);
    if !tensor.is_allocated() || end.is_none_or(|end| end > tensor.bytes()) {
        return Err(Error::Request {
            message: format!(
                "{length} bytes from {from} to {to} of a tensor of {} bytes",
                tensor.bytes()
            ),
        });
    }
    let mut bytes = vec![0u8; length];
    // SAFETY: the tensor has memory and both ranges lie in it, as checked; the bytes are a vector here.
    unsafe {
        let data = bytes.as_mut_ptr().cast::<c_void>();
        sys::ggml_backend_tensor_get(tensor.raw(), data, from, length);
        sys::ggml_backend_tensor_set(tensor.raw(), data, to, length);
    }
    Ok(())
}

/// Threads that compute graphs.
#[derive(Debug)]
pub(crate) struct Pool {
    /// The CPU with its scratch memory, bound to these threads; dropped before them.
    stream: Option<Stream>,
    ptr: NonNull<sys::ggml_threadpool>,
    threads: usize,
}

// SAFETY: the pool is used by one thread at a time, the one that holds it.
unsafe impl Send for Pool {}

impl Drop for Pool {
    fn drop(&mut self) {
        self.stream = None;
        if let Ok(kernels) = kernels() {
            // SAFETY: the pointer came from ggml_threadpool_new; no graph is being computed.
            unsafe { (kernels.free_pool)(self.ptr.as_ptr()) }
        }
    }
}

impl Pool {
    /// `threads` threads, the caller's being one of them.
    ///
    /// # Errors
    /// None, or more than [`MAX_THREADS`]: ggml would write beyond its list of them, or end the process.
    pub(crate) fn new(threads: usize) -> Result<Self> {
        Self::with_poll(threads, POLL)
    }

    /// The same with another time of spinning.
    pub(crate) fn with_poll(threads: usize, poll: u32) -> Result<Self> {
        let count = thread_count(threads)?;
        let kernels = kernels()?;
        let stream = kernels.device.start()?;
        // SAFETY: numbers and flags, for which zeros are values, filled in by ggml; at least one thread.
        let ptr = unsafe {
            let mut params = std::mem::zeroed();
            sys::ggml_threadpool_params_init(&mut params, count);
            params.poll = poll;
            (kernels.new_pool)(&mut params)
        };
        let ptr = NonNull::new(ptr)
            .ok_or_else(|| log::library_error(format!("{threads} threads"), String::new()))?;
        let pool = Self { stream: Some(stream), ptr, threads };
        if let Some(stream) = &pool.stream {
            pool.bind(stream)?;
        }
        Ok(pool)
    }

    /// Has the CPU's part of what is given to `stream` computed by these threads.
    fn bind(&self, stream: &Stream) -> Result<()> {
        let kernels = kernels()?;
        // SAFETY: a live CPU stream and live threads, which outlive their use: a pool's own stream is dropped
        // before it, a pair's is bound anew before each computation.
        unsafe {
            (kernels.set_threads)(stream.raw(), self.threads as i32);
            (kernels.set_pool)(stream.raw(), self.ptr.as_ptr());
        }
        Ok(())
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    pub(crate) fn raw(&self) -> *mut sys::ggml_threadpool {
        self.ptr.as_ptr()
    }
}

/// A number of threads as C takes it.
///
/// # Errors
/// None, or more than [`MAX_THREADS`].
pub(crate) fn thread_count(threads: usize) -> Result<i32> {
    match i32::try_from(threads) {
        Ok(count) if (1..=MAX_THREADS).contains(&threads) => Ok(count),
        _ => Err(Error::Request {
            message: format!("expected 1 to {MAX_THREADS} threads, found {threads}"),
        }),
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
    /// Tensors at most.
    size: usize,
    /// Nothing until the graph is finished.
    memory: Memory,
}

/// Who gives memory to a graph's results, and who computes it.
#[derive(Debug)]
enum Memory {
    None,
    /// The CPU alone.
    Cpu(NonNull<sys::ggml_gallocr>),
    /// A device and the CPU; the scheduler is freed before the pair it names.
    Split(NonNull<sys::ggml_backend_sched>, Arc<Pair>),
}

// SAFETY: everything in it is owned and used by the thread that holds the plan.
unsafe impl Send for Plan {}

impl Drop for Memory {
    fn drop(&mut self) {
        match self {
            Self::None => {}
            Self::Cpu(allocator) => {
                // SAFETY: the pointer came from ggml_gallocr_new; the graph's data are not used afterwards.
                unsafe { sys::ggml_gallocr_free(allocator.as_ptr()) }
            }
            Self::Split(scheduler, _) => {
                // SAFETY: the pointer came from ggml_backend_sched_new; the graph's data are not used afterwards.
                unsafe { sys::ggml_backend_sched_free(scheduler.as_ptr()) }
            }
        }
    }
}

impl Plan {
    /// An empty graph of at most `tensors` tensors, to be filled through [`Plan::nodes`] and then finished.
    pub(crate) fn new(tensors: usize) -> Result<Self> {
        let context = Context::new(tensors, tensors)?;
        // SAFETY: the context was made with room for this graph.
        let graph = unsafe { sys::ggml_new_graph_custom(context.raw(), tensors, false) };
        let graph =
            NonNull::new(graph).ok_or_else(|| log::library_error("a graph", String::new()))?;
        Ok(Self { context, graph, size: tensors, memory: Memory::None })
    }

    /// Where nodes are made.
    pub(crate) fn nodes(&self) -> Nodes<'_> {
        Nodes { graph: self.graph, context: &self.context }
    }

    /// Gives memory to the complete graph.
    #[cfg(test)]
    pub(crate) fn finish(self) -> Result<Self> {
        self.finish_on(None)
    }

    /// Gives memory to the complete graph, and divides it between a device and the CPU if there is a pair.
    pub(crate) fn finish_on(mut self, pair: Option<&Arc<Pair>>) -> Result<Self> {
        let done = match pair {
            None => {
                // SAFETY: a static buffer type.
                let new = unsafe { sys::ggml_gallocr_new(sys::ggml_backend_cpu_buffer_type()) };
                let allocator = NonNull::new(new)
                    .ok_or_else(|| log::library_error("a graph", String::new()))?;
                self.memory = Memory::Cpu(allocator);
                // SAFETY: the graph's nodes are complete; every leaf has memory or is flagged as an input.
                log::capture(|| unsafe {
                    sys::ggml_gallocr_alloc_graph(allocator.as_ptr(), self.graph.as_ptr())
                })
            }
            Some(pair) => {
                let mut streams = [pair.device.raw(), pair.cpu.raw()];
                // SAFETY: live streams, the CPU last, as ggml asks; their memory is that of their own. Leaves
                // and nodes are counted separately, so twice the tensors are room enough.
                let new = unsafe {
                    sys::ggml_backend_sched_new(
                        streams.as_mut_ptr(),
                        std::ptr::null_mut(),
                        2,
                        2 * self.size,
                        false,
                        false,
                    )
                };
                let scheduler = NonNull::new(new)
                    .ok_or_else(|| log::library_error("a graph", String::new()))?;
                self.memory = Memory::Split(scheduler, Arc::clone(pair));
                // SAFETY: as above; nothing was given memory by this scheduler before.
                log::capture(|| unsafe {
                    sys::ggml_backend_sched_alloc_graph(scheduler.as_ptr(), self.graph.as_ptr())
                })
            }
        };
        let (done, said) = done;
        if done { Ok(self) } else { Err(log::library_error("memory for a graph", said)) }
    }

    /// Computes the graph with the pool's threads.
    pub(crate) fn compute(&mut self, pool: &mut Pool) -> Result<()> {
        let (status, said) = match (&self.memory, &pool.stream) {
            (Memory::Cpu(_), Some(stream)) => {
                // SAFETY: graph, stream and pool are live; the pool is held mutably, so nothing else computes
                // with it.
                (
                    unsafe { sys::ggml_backend_graph_compute(stream.raw(), self.graph.as_ptr()) },
                    None,
                )
            }
            (Memory::Split(scheduler, pair), _) => {
                pool.bind(&pair.cpu)?;
                // SAFETY: as above; the scheduler has given the graph its memory.
                let (status, said) = log::capture(|| unsafe {
                    sys::ggml_backend_sched_graph_compute(scheduler.as_ptr(), self.graph.as_ptr())
                });
                (status, Some(said))
            }
            _ => {
                return Err(Error::Request {
                    message: "a graph was to be computed before it was finished".to_owned(),
                });
            }
        };
        if status == sys::GGML_STATUS_SUCCESS {
            return Ok(());
        }
        let said = said.filter(|said| !said.is_empty());
        Err(log::library_error("computing a graph", said.unwrap_or(format!("status {status}"))))
    }

    /// Adds a result's values, wherever they lie, to `to`; its slot must be of this plan, made of float32.
    pub(crate) fn read(&mut self, slot: Slot, to: &mut Vec<f32>) {
        // SAFETY: slots are made from tensors of this plan, which live as long as its context.
        let on_host = unsafe { sys::ggml_backend_buffer_is_host((*slot.0.as_ptr()).buffer) };
        if on_host {
            to.extend_from_slice(self.data_mut::<f32>(slot));
            return;
        }
        // SAFETY: as above; a result is contiguous and has memory of ggml_nbytes bytes; the vector has been made
        // as long before it is written.
        unsafe {
            let tensor = slot.0.as_ptr();
            let bytes = sys::ggml_nbytes(tensor);
            let first = to.len();
            to.resize(first + bytes / size_of::<f32>(), 0.0);
            let data = to[first..].as_mut_ptr().cast::<c_void>();
            sys::ggml_backend_tensor_get(tensor, data, 0, bytes);
        }
    }

    /// An input's data, or a result's on the CPU, as plain values; its slot must be of this plan, made of values of
    /// this size or a multiple.
    pub(crate) fn data_mut<T: bytemuck::Pod>(&mut self, slot: Slot) -> &mut [T] {
        // SAFETY: slots are made from tensors of this plan, which live as long as its context; contiguous
        // inputs and outputs of the finished graph have memory of ggml_nbytes bytes in plain CPU memory, aligned to
        // 32 bytes. `&mut self` keeps it from being computed or read elsewhere meanwhile.
        unsafe {
            let tensor = slot.0.as_ptr();
            let bytes = sys::ggml_nbytes(tensor);
            let element = sys::ggml_type_size((*tensor).type_);
            assert!(
                !(*tensor).data.is_null() && element.is_multiple_of(size_of::<T>()),
                "a tensor of a finished graph, of elements of {} bytes, as {}",
                element,
                size_of::<T>()
            );
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

#[cfg(test)]
mod tests {
    use super::*;

    /// As an `i32` the third is none, the fourth less than that: ggml writes beyond the list of no threads.
    #[test]
    fn impossible_numbers_of_threads_are_refused() {
        for threads in [0, MAX_THREADS + 1, 1 << 32, 1 << 31] {
            let message = Pool::new(threads).unwrap_err().to_string();
            assert!(message.contains(&format!("found {threads}")), "{message}");
        }
        assert_eq!(Pool::new(3).unwrap().threads(), 3);
    }
}
