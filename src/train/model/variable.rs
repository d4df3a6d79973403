//! Named tensors: the trainable ones on the device, and their values on the host.
//!
//! In: a row of a family's table and its bytes, or a tensor. Out: a [`Variable`], or a
//! [`HostTensor`].

use mmx_converters::arch::{Role, Weight};
use mmx_converters::tensor::{Dtype, TensorView};
use tch::{Device, Kind, TchError, Tensor};

use crate::error::{Error, Result, TorchError};

/// The result of libtorch inside the forward pass; the public functions add what they were doing to
/// an error.
pub(crate) type Torch<T> = std::result::Result<T, TchError>;

/// One named trainable tensor.
#[derive(Debug)]
pub struct Variable {
    /// MiniMind's name: the row's `name` in [`weights`](mmx_converters::arch::weights).
    pub name: String,
    /// Its role in the model; none for what stands beside the model, an adapter's factors.
    pub role: Option<Role>,
    /// float32, a leaf of autograd.
    pub tensor: Tensor,
}

impl Variable {
    /// Another handle to the same tensor.
    pub fn share(&self) -> Self {
        Self { name: self.name.clone(), role: self.role, tensor: self.tensor.shallow_clone() }
    }
}

/// One tensor's values on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    /// MiniMind's name.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Row-major.
    pub values: Vec<f32>,
}

impl HostTensor {
    /// A view of the values, as the writers of formats take it.
    pub fn view(&self) -> TensorView<'_> {
        let data = bytemuck::cast_slice(&self.values);
        TensorView { dtype: Dtype::F32, shape: &self.shape, data }
    }
}

/// The type of what is kept and computed in float32 beside a compute type: float32, but float64
/// beside float64.
pub(crate) fn wide(compute: Kind) -> Kind {
    if compute == Kind::Double { Kind::Double } else { Kind::Float }
}

/// A leaf of type `kept` on `device` from little-endian bytes of `dtype` in the row's shape.
pub(super) fn variable(
    row: &Weight,
    dtype: Dtype,
    data: &[u8],
    device: Device,
    kept: Kind,
) -> Result<Variable> {
    let kind = match dtype {
        Dtype::F16 => Kind::Half,
        Dtype::Bf16 => Kind::BFloat16,
        Dtype::F64 => Kind::Double,
        _ => Kind::Float,
    };
    let shape: Vec<i64> = row.shape.iter().map(|&n| n as i64).collect();
    let build = || -> Torch<Tensor> {
        let tensor = Tensor::f_from_data_size(data, &shape, kind)?;
        let tensor = tensor.f_to_kind(kept)?.f_to_device(device)?;
        Ok(tensor.set_requires_grad(true))
    };
    let tensor = build().map_err(|e| Error::torch(format!("loading {}", row.name), &e))?;
    Ok(Variable { name: row.name.clone(), role: Some(row.role), tensor })
}

/// A tensor's elements as float32 on the host, row-major.
pub(crate) fn host_f32(tensor: &Tensor) -> std::result::Result<Vec<f32>, TchError> {
    let tensor =
        tensor.detach().f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
    let mut values = vec![0.0; tensor.numel()];
    let count = values.len();
    tensor.f_copy_data(&mut values, count)?;
    Ok(values)
}
