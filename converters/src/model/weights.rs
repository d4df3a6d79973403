//! A model's weights as values: from where they lie in the source, with adapters merged and rows of
//! new tokens added, in MiniMind's layout and row order.

use std::borrow::Cow;

use crate::arch::{Place, Weight, assemble};
use crate::error::{Error, Result};
use crate::gguf::GgmlType;
use crate::model::open::Model;
use crate::model::source::Stored;
use crate::tensor::{self, Dtype};

/// Turns `elements` values of a block type into float32 (ggml's own dequantizers, in crate
/// mmx-ggml).
pub type Dequantize<'a> = &'a (dyn Fn(GgmlType, &[u8], usize) -> Result<Vec<f32>> + Sync);

impl Model {
    /// A weight's bytes in MiniMind's layout and row order, in the element type of the source.
    /// Borrowed from the memory map where they lie there in one run.
    ///
    /// # Errors
    /// The source holds it in a block type: see [`Model::weight_with`].
    pub fn weight(&self, weight: &Weight) -> Result<(Dtype, Cow<'_, [u8]>)> {
        let stored = self.as_stored(weight);
        let found = self.base_weight(stored)?;
        Ok(self.with_rows(weight, self.adapted(stored, found)))
    }

    fn as_stored<'w>(&'w self, weight: &'w Weight) -> &'w Weight {
        self.grown.as_ref().map_or(weight, |grown| grown.as_stored(weight))
    }

    fn with_rows<'a>(
        &self,
        weight: &Weight,
        found: (Dtype, Cow<'a, [u8]>),
    ) -> (Dtype, Cow<'a, [u8]>) {
        match &self.grown {
            Some(grown) => grown.rows(weight, found),
            None => found,
        }
    }

    /// A weight with its adapter merged, where it has one: float32 then, whatever the base is
    /// stored in.
    fn adapted<'a>(
        &self,
        weight: &Weight,
        (dtype, data): (Dtype, Cow<'a, [u8]>),
    ) -> (Dtype, Cow<'a, [u8]>) {
        let Some(adapters) = &self.adapters else { return (dtype, data) };
        let Some(adapter) = adapters.of(weight) else { return (dtype, data) };
        let shape = [weight.elements()];
        let base = tensor::TensorView { dtype, shape: &shape, data: &data }.to_f32();
        let merged = adapter.merged(&base, adapters.scale_of(adapter));
        (Dtype::F32, Cow::Owned(tensor::encode_f32(&merged, Dtype::F32)))
    }

    fn base_weight(&self, weight: &Weight) -> Result<(Dtype, Cow<'_, [u8]>)> {
        let place = weight.place(self.layout);
        let stored = self.stored(&place)?;
        let Some(dtype) = stored.ty.dtype() else {
            return Err(Error::unsupported(
                format!("{}: tensor {}", self.path.display(), place.tensor),
                format!(
                    "expected an unquantized type, found {}: its values need ggml's dequantizer",
                    stored.ty.name()
                ),
            ));
        };
        let size = dtype.size();
        let bytes = match (place.run(), stored.data) {
            (Some(run), Cow::Borrowed(data)) => {
                Cow::Borrowed(&data[run.start * size..run.end * size])
            }
            (Some(_), owned) if place.is_whole() => owned,
            (_, data) => Cow::Owned(assemble::take(&place, size, &data)),
        };
        Ok((dtype, self.reference_rows(weight, bytes)))
    }

    /// [`Model::weight`] of a file with block types: these become float32 by `dequantize`.
    ///
    /// # Errors
    /// What `dequantize` returns.
    pub fn weight_with(
        &self,
        weight: &Weight,
        dequantize: Dequantize<'_>,
    ) -> Result<(Dtype, Cow<'_, [u8]>)> {
        let whole = weight;
        let weight = self.as_stored(whole);
        let place = weight.place(self.layout);
        let stored = self.stored(&place)?;
        if stored.ty.dtype().is_some() {
            return self.weight(whole);
        }
        let (block, bytes) = (stored.ty.block_elements(), stored.ty.block_bytes());
        let in_blocks = |n: usize| n / block * bytes;
        let values = match place.run() {
            // whole blocks of this weight alone
            Some(run) if run.start.is_multiple_of(block) && run.end.is_multiple_of(block) => {
                let data = &stored.data[in_blocks(run.start)..in_blocks(run.end)];
                tensor::encode_f32(&dequantize(stored.ty, data, run.len())?, Dtype::F32)
            }
            _ => {
                let elements = place.shape.iter().product();
                let all = dequantize(stored.ty, &stored.data, elements)?;
                assemble::take(&place, 4, &tensor::encode_f32(&all, Dtype::F32))
            }
        };
        if values.len() != weight.elements() * 4 {
            return Err(Error::format(
                &self.path,
                format!(
                    "tensor {}: expected {} values from the dequantizer, found {}",
                    place.tensor,
                    weight.elements(),
                    values.len() / 4
                ),
            ));
        }
        let rows = self.reference_rows(weight, Cow::Owned(values));
        Ok(self.with_rows(whole, self.adapted(weight, (Dtype::F32, rows))))
    }

    /// A weight's values as float32, in MiniMind's layout and row order.
    ///
    /// # Errors
    /// As [`Model::weight`].
    pub fn weight_f32(&self, weight: &Weight) -> Result<Vec<f32>> {
        let (dtype, data) = self.weight(weight)?;
        let shape = [weight.elements()];
        Ok(tensor::TensorView { dtype, shape: &shape, data: &data }.to_f32())
    }

    fn reference_rows<'a>(&self, weight: &Weight, bytes: Cow<'a, [u8]>) -> Cow<'a, [u8]> {
        match weight.gguf_permuted_heads {
            Some(_) if self.layout.rotates_pairs() => {
                Cow::Owned(assemble::from_gguf_rows(weight, bytes.into_owned()))
            }
            _ => bytes,
        }
    }

    fn stored(&self, place: &Place) -> Result<Stored<'_>> {
        match self.source.get(&place.tensor) {
            Some(Ok(stored)) => Ok(stored),
            // `check` has seen them all: only a weight of another model ends here
            _ => Err(Error::format(
                &self.path,
                format!("tensor {}: expected a weight of the model, found none", place.tensor),
            )),
        }
    }
}
