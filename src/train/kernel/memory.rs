//! Tensors' memory as slices, and rows of it that several threads write.
#![expect(unsafe_code, reason = "libtorch gives raw pointers only")]

use std::marker::PhantomData;
use std::ops::Range;

use tch::{Device, Kind, TchError, Tensor};

use super::element::Element;

/// A new tensor on the CPU; its values are whatever the memory held.
pub(super) fn empty(size: &[i64], kind: Kind) -> Result<Tensor, TchError> {
    Tensor::f_empty(size, (kind, Device::Cpu))
}

/// Fails where a tensor is not what a kernel reads.
fn check(tensor: &Tensor, kind: Kind) -> Result<(), TchError> {
    let fits = tensor.device() == Device::Cpu && tensor.kind() == kind && tensor.is_contiguous();
    match fits {
        true => Ok(()),
        false => Err(TchError::Torch(format!(
            "kernel: expected contiguous {kind:?} on the CPU, found {:?} {:?} on {:?}",
            tensor.kind(),
            tensor.size(),
            tensor.device()
        ))),
    }
}

/// The elements, row-major.
pub(super) fn read<T: Element>(tensor: &Tensor) -> Result<&[T], TchError> {
    check(tensor, T::KIND)?;
    if tensor.numel() == 0 {
        return Ok(&[]);
    }
    // SAFETY: contiguous, of this type, on the CPU (checked): `numel` elements lie at `data_ptr`,
    // as long as the tensor lives. Nothing writes to what kernels read while they run.
    Ok(unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), tensor.numel()) })
}

/// The memory from the first to the last element of a float32 tensor with any strides.
pub(super) fn span(tensor: &Tensor) -> Result<&[f32], TchError> {
    if tensor.device() != Device::Cpu || tensor.kind() != Kind::Float {
        check(tensor, Kind::Float)?;
    }
    if tensor.numel() == 0 {
        return Ok(&[]);
    }
    let strides = tensor.stride();
    let last: i64 = tensor.size().iter().zip(strides).map(|(n, stride)| (n - 1) * stride).sum();
    // SAFETY: libtorch's strides are not negative, so the elements lie between the first and the
    // one with the largest indices, in one storage; float32 on the CPU (checked).
    Ok(unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), last as usize + 1) })
}

/// The elements of an int64 tensor.
pub(super) fn read_ids(tensor: &Tensor) -> Result<&[i64], TchError> {
    check(tensor, Kind::Int64)?;
    if tensor.numel() == 0 {
        return Ok(&[]);
    }
    // SAFETY: as in `read`.
    Ok(unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), tensor.numel()) })
}

/// The elements of a tensor that nobody else holds or reads, row-major.
pub(super) fn write<T: Element>(tensor: &mut Tensor) -> Result<&mut [T], TchError> {
    check(tensor, T::KIND)?;
    if tensor.numel() == 0 {
        return Ok(&mut []);
    }
    // SAFETY: as in `read`; kernels write only to tensors that they made themselves, and the
    // mutable borrow keeps this handle to itself.
    Ok(unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), tensor.numel()) })
}

/// Rows that several threads write, each its own.
pub(super) struct Rows<'a, T> {
    start: *mut T,
    rows: usize,
    width: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: threads get at the elements through `Rows::take` only, whose caller sees to it that no
// row is taken twice; the elements themselves may be sent to other threads.
unsafe impl<T: Send> Sync for Rows<'_, T> {}

impl<'a, T> Rows<'a, T> {
    /// `values` as rows of `width`.
    pub(super) fn new(values: &'a mut [T], width: usize) -> Self {
        let rows = values.len() / width.max(1);
        Self { start: values.as_mut_ptr(), rows, width, borrowed: PhantomData }
    }

    /// Some rows.
    ///
    /// # Safety
    /// While what is given lives, no row of it may be taken again.
    #[expect(clippy::mut_from_ref, reason = "the caller keeps rows apart")]
    pub(super) unsafe fn take(&self, rows: Range<usize>) -> &mut [T] {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        // SAFETY: within the borrowed slice (asserted); not aliased (the caller's promise).
        unsafe {
            std::slice::from_raw_parts_mut(
                self.start.add(rows.start * self.width),
                rows.len() * self.width,
            )
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use tch::{Kind, Tensor};

    /// Normal values of a seed.
    pub(crate) fn random(size: &[i64], seed: i64) -> Tensor {
        let count: i64 = size.iter().product();
        let values: Vec<f32> = (0..count)
            .map(|i| {
                let mut x = (i + seed * 7_919) as u64;
                let mut next = || {
                    x = (x ^ 0x9e37_79b9).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                    x ^= x >> 29;
                    (x >> 40) as f64 / (1u64 << 24) as f64
                };
                (0..6).map(|_| next()).sum::<f64>() as f32 - 3.0
            })
            .collect();
        Tensor::from_slice(&values).view(size)
    }

    /// A function's value and the gradients of `inputs` under the outer gradient `up`.
    pub(crate) fn gradients(
        inputs: &[&Tensor],
        up: &Tensor,
        f: impl Fn(&[Tensor]) -> Tensor,
    ) -> Vec<Tensor> {
        let leaves: Vec<Tensor> =
            inputs.iter().map(|t| t.detach().copy().set_requires_grad(true)).collect();
        let value = f(&leaves);
        let loss = (&value.to_kind(Kind::Float) * up.to_kind(Kind::Float)).sum(Kind::Float);
        let refs: Vec<&Tensor> = leaves.iter().collect();
        let mut all = vec![value.detach()];
        all.extend(Tensor::run_backward(&[loss], &refs, false, false));
        all
    }

    /// Each tensor of one list is that of the other, to `tolerance` of the largest value.
    pub(crate) fn close(ours: &[Tensor], theirs: &[Tensor], tolerance: f64) {
        assert_eq!(ours.len(), theirs.len());
        for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
            assert_eq!((a.size(), a.kind()), (b.size(), b.kind()), "tensor {i}");
            let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
            let off = (&a - &b).abs().max().double_value(&[]);
            let size = b.abs().max().double_value(&[]);
            assert!(off <= tolerance * size, "tensor {i}: {off:e} of {size:e}");
        }
    }
}
