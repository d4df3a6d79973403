//! Graphs with their memory ([`Plan`]), computed by a pool of threads, or by a device and these
//! threads together.
#![expect(unsafe_code, reason = "graphs are C objects")]

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;

use llama_cpp_sys_2 as sys;

use crate::error::{Error, Result};
use crate::wrap::context::Context;
use crate::wrap::log;
use crate::wrap::placement::Pair;
use crate::wrap::pool::Pool;
use crate::wrap::tensor::Tensor;

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

/// The allocator of a graph's results, which also decides who computes it.
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
                // SAFETY: the pointer came from ggml_gallocr_new; the graph's data are not used
                // afterwards.
                unsafe { sys::ggml_gallocr_free(allocator.as_ptr()) }
            }
            Self::Split(scheduler, _) => {
                // SAFETY: the pointer came from ggml_backend_sched_new; the graph's data are not
                // used afterwards.
                unsafe { sys::ggml_backend_sched_free(scheduler.as_ptr()) }
            }
        }
    }
}

impl Plan {
    /// An empty graph of at most `tensors` tensors, to be filled through [`Plan::nodes`] and then
    /// finished.
    pub(crate) fn new(tensors: usize) -> Result<Self> {
        let context = Context::new(tensors, tensors)?;
        // SAFETY: the context was made with room for this graph.
        let graph = unsafe { sys::ggml_new_graph_custom(context.raw(), tensors, false) };
        let graph =
            NonNull::new(graph).ok_or_else(|| log::library_error("a graph", String::new()))?;
        Ok(Self { context, graph, size: tensors, memory: Memory::None })
    }

    /// The place where nodes are made.
    pub(crate) fn nodes(&self) -> Nodes<'_> {
        Nodes { graph: self.graph, context: &self.context }
    }

    /// Gives memory to the complete graph.
    #[cfg(test)]
    pub(crate) fn finish(self) -> Result<Self> {
        self.finish_on(None)
    }

    /// Gives memory to the complete graph, and divides it between a device and the CPU if there is
    /// a pair.
    pub(crate) fn finish_on(mut self, pair: Option<&Arc<Pair>>) -> Result<Self> {
        let done = match pair {
            None => {
                // SAFETY: a static buffer type.
                let new = unsafe { sys::ggml_gallocr_new(sys::ggml_backend_cpu_buffer_type()) };
                let allocator = NonNull::new(new)
                    .ok_or_else(|| log::library_error("a graph", String::new()))?;
                self.memory = Memory::Cpu(allocator);
                // SAFETY: the graph's nodes are complete; every leaf has memory or is flagged as an
                // input.
                log::capture(|| unsafe {
                    sys::ggml_gallocr_alloc_graph(allocator.as_ptr(), self.graph.as_ptr())
                })
            }
            Some(pair) => {
                let mut streams = [pair.device.raw(), pair.cpu.raw()];
                // SAFETY: live streams, the CPU last, as ggml asks; their memory is that of their
                // own. Leaves and nodes are counted separately, so twice the tensors are room
                // enough.
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
                // SAFETY: graph, stream and pool are live; the pool is held mutably, so nothing
                // else computes with it.
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

    /// Adds a result's values, wherever they lie, to `to`; its slot must be of this plan, made of
    /// float32.
    pub(crate) fn read(&mut self, slot: Slot, to: &mut Vec<f32>) {
        // SAFETY: slots are made from tensors of this plan, which live as long as its context.
        let on_host = unsafe { sys::ggml_backend_buffer_is_host((*slot.0.as_ptr()).buffer) };
        if on_host {
            to.extend_from_slice(self.data_mut::<f32>(slot));
            return;
        }
        // SAFETY: as above; a result is contiguous and has memory of ggml_nbytes bytes; the vector
        // has been made as long before it is written.
        unsafe {
            let tensor = slot.0.as_ptr();
            let bytes = sys::ggml_nbytes(tensor);
            let first = to.len();
            to.resize(first + bytes / size_of::<f32>(), 0.0);
            let data = to[first..].as_mut_ptr().cast::<c_void>();
            sys::ggml_backend_tensor_get(tensor, data, 0, bytes);
        }
    }

    /// An input's data, or a result's on the CPU, as plain values; its slot must be of this plan,
    /// made of values of this size or a multiple.
    pub(crate) fn data_mut<T: bytemuck::Pod>(&mut self, slot: Slot) -> &mut [T] {
        // SAFETY: slots are made from tensors of this plan, which live as long as its context;
        // contiguous inputs and outputs of the finished graph have memory of ggml_nbytes bytes in
        // plain CPU memory, aligned to 32 bytes. `&mut self` keeps it from being computed or read
        // elsewhere meanwhile.
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

/// A graph in the making: names a plan's inputs and results.
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

    /// A result to be computed at this point of the order: its memory is free for others once it
    /// was used.
    pub(crate) fn compute(&self, tensor: Tensor<'c>) {
        // SAFETY: tensor and graph are of the same live context, which holds at most as many
        // tensors as the graph can take nodes.
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
