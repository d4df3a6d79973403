//! The gradients of keys and values, gathered where several samples saw them.

use tch::{TchError, Tensor};

use super::shape::{Family, Saved, Shape, Task};
use crate::kernel::element::{Element, store};
use crate::kernel::memory::{Rows, empty, write};
use crate::kernel::parallel::parallel;

/// Where the tasks put the gradients of their keys and values.
pub(super) struct KeyGradients<'a, T> {
    shape: &'a Shape,
    dk: Rows<'a, T>,
    dv: Rows<'a, T>,
    /// What goes to keys that several samples see.
    gathered: Rows<'a, f32>,
}

impl<T: Element> KeyGradients<'_, T> {
    /// Those of a task, `[keys, head_dim]` each at least.
    pub(super) fn put(&self, task: &Task, d_key: &[f32], d_value: &[f32]) {
        let (d, before) = (self.shape.head_dim, task.before.len());
        let shared = match (before, self.shape.is_shared(task)) {
            (0, false) => 0,
            (0, true) => task.tokens.len(),
            _ => before,
        };
        let at = task.gathered;
        // SAFETY: rows that are gathered belong to one task.
        let (keys, values) = unsafe {
            let to = &self.gathered;
            (to.take(at..at + shared), to.take(at + shared..at + 2 * shared))
        };
        keys.copy_from_slice(&d_key[..shared * d]);
        values.copy_from_slice(&d_value[..shared * d]);
        let gradients = d_key.chunks_exact(d).zip(d_value.chunks_exact(d)).skip(before);
        for (token, gradients) in task.tokens.clone().zip(gradients) {
            // SAFETY: a token's key and value head belongs to one task.
            unsafe { self.write(token, task.kv_head, gradients) };
        }
    }

    /// Those of families, from what their tasks gathered.
    fn put_families(&self) {
        let d = self.shape.head_dim;
        parallel(self.shape.families.len(), 1, |range| {
            for Family { tokens, kv_head, gathered: parts } in &self.shape.families[range] {
                let size = tokens.len() * d;
                let mut sum = vec![0.0f32; 2 * size];
                for &part in parts {
                    // SAFETY: every task has ended, and what belongs to a family is read by its part
                    // of this loop alone.
                    let part = unsafe { self.gathered.take(part..part + 2 * tokens.len()) };
                    sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += *x);
                }
                let (keys, values) = sum.split_at(size);
                let gradients = keys.chunks_exact(d).zip(values.chunks_exact(d));
                for (token, gradients) in tokens.clone().zip(gradients) {
                    // SAFETY: a token's key and value head belongs to one family.
                    unsafe { self.write(token, *kv_head, gradients) };
                }
            }
        });
    }

    /// Writes the gradients of a token's key and value.
    ///
    /// # Safety
    /// Nobody else writes them meanwhile.
    unsafe fn write(&self, token: usize, kv_head: usize, (dk, dv): (&[f32], &[f32])) {
        let row = token * self.shape.kv_heads + kv_head;
        // SAFETY: as the caller says.
        unsafe {
            store(dk, self.dk.take(row..row + 1));
            store(dv, self.dv.take(row..row + 1));
        }
    }
}

/// The gradients of keys and values, of which `run` puts those of every task.
pub(super) fn gradients_of_keys<T: Element>(
    saved: &Saved<'_>,
    shape: &Shape,
    run: impl FnOnce(&KeyGradients<'_, T>),
) -> Result<[Tensor; 2], TchError> {
    let mut dk = empty(&saved.k.size(), T::KIND)?;
    let mut dv = empty(&saved.v.size(), T::KIND)?;
    let mut gathered = vec![0.0f32; shape.shared_rows * shape.head_dim];
    let to = KeyGradients {
        shape,
        dk: Rows::new(write::<T>(&mut dk)?, shape.head_dim),
        dv: Rows::new(write::<T>(&mut dv)?, shape.head_dim),
        gathered: Rows::new(&mut gathered, shape.head_dim),
    };
    run(&to);
    to.put_families();
    Ok([dk, dv])
}
