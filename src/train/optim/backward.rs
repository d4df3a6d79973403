//! The backward pass that gives each leaf's gradient away as soon as it is whole, so that no more than
//! a few of them are there at a time. The C++ side is `backward.cpp` beside this file.
#![expect(unsafe_code, reason = "calls into backward.cpp, and is called back from it")]

use std::ffi::{CStr, c_char, c_void};

use tch::{TchError, Tensor};

use crate::error::{Error, Result, TorchError};

type Pointer = *mut c_void;

unsafe extern "C" {
    fn mmx_backward(
        loss: *const c_void,
        leaves: *const Pointer,
        count: usize,
        take: unsafe extern "C" fn(Pointer, usize, *const c_void) -> bool,
        state: Pointer,
    ) -> *mut c_char;
}

/// Takes the gradient of the leaf with an index; it is freed unless it is kept. On devices this is
/// called on another thread than the pass was begun on, one leaf at a time.
pub(super) type Take<'a> = dyn FnMut(usize, &Tensor) -> Result<()> + Send + 'a;

/// What the hooks work with.
struct State<'a, 'b> {
    take: &'a mut Take<'b>,
    failed: Option<Error>,
}

/// Differentiates `loss`, a scalar, and hands over each leaf's gradient once, when all that adds to
/// it has: of the leaves that it depends on, in the order of the graph.
///
/// # Errors
/// libtorch's, and those of `take`, which end the pass.
pub(super) fn backward(loss: &Tensor, leaves: &[&Tensor], take: &mut Take<'_>) -> Result<()> {
    let pointers: Vec<Pointer> = leaves.iter().map(|t| t.as_ptr().cast_mut().cast()).collect();
    let mut state = State { take, failed: None };
    // SAFETY: live tensors, as many as said; the state is used by `call` only, within this call.
    let error = unsafe {
        mmx_backward(
            loss.as_ptr().cast(),
            pointers.as_ptr(),
            pointers.len(),
            call,
            (&raw mut state).cast(),
        )
    };
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: a C string that the C++ side made with `strdup` and gave away.
    let message = unsafe {
        let message = CStr::from_ptr(error).to_string_lossy().into_owned();
        libc::free(error.cast());
        message
    };
    Err(match state.failed {
        Some(failed) => failed,
        None => Error::torch("backward pass", &TchError::Torch(message)),
    })
}

/// Called by the C++ side's hooks.
unsafe extern "C" fn call(state: Pointer, leaf: usize, gradient: *const c_void) -> bool {
    // SAFETY: the state of `backward`, which waits in C++ and does not touch it; hooks are called one
    // at a time. `gradient` is a live tensor, and the clone another handle to it.
    let (state, gradient) = unsafe {
        let gradient = Tensor::clone_from_ptr(gradient.cast_mut().cast());
        (&mut *state.cast::<State<'_, '_>>(), gradient)
    };
    match (state.take)(leaf, &gradient) {
        Ok(()) => true,
        Err(error) => {
            state.failed = Some(error);
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    fn leaf(values: &[f32]) -> Tensor {
        Tensor::from_slice(values).set_requires_grad(true)
    }

    #[test]
    fn each_leaf_comes_once_with_all_that_adds_to_it_and_keeps_no_gradient() {
        let (twice, once, unused) = (leaf(&[1.0, 2.0]), leaf(&[3.0, 4.0]), leaf(&[5.0]));
        let loss = || (&twice * &once + &twice).sum(Kind::Float);
        for _ in 0..2 {
            let mut found = vec![Vec::new(); 3];
            backward(&loss(), &[&twice, &once, &unused], &mut |i, gradient| {
                found[i].push(Vec::<f32>::try_from(gradient).expect("values"));
                Ok(())
            })
            .expect("a pass");
            let (of_twice, of_once) = (vec![vec![4.0, 5.0]], vec![vec![1.0, 2.0]]);
            assert_eq!(found, [of_twice, of_once, Vec::new()]);
            assert!(!twice.grad().defined() && !once.grad().defined());
        }
    }

    #[test]
    fn an_error_of_who_takes_ends_the_pass_and_the_next_one_is_whole() {
        let (a, b) = (leaf(&[1.0]), leaf(&[2.0]));
        let loss = || (&a * &b).sum(Kind::Float);
        let mut calls = 0;
        let error = backward(&loss(), &[&a, &b], &mut |_, _| {
            calls += 1;
            Err(Error::failed("no room"))
        });
        assert_eq!((error.expect_err("its own").to_string(), calls), ("no room".to_owned(), 1));
        let mut sum = 0.0;
        backward(&loss(), &[&a, &b], &mut |_, gradient| {
            sum += gradient.double_value(&[0]);
            Ok(())
        })
        .expect("a pass");
        assert_eq!(sum, 3.0);
        let other = backward(&leaf(&[1.0, 2.0]), &[&a], &mut |_, _| Ok(()));
        assert!(other.is_err(), "no scalar");
    }
}
