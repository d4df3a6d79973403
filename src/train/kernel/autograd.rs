//! Operators of our own in libtorch's automatic differentiation.
//!
//! In: tensors, what was computed from them without it, and a function from the outputs' gradients
//! to the inputs'. Out: the same outputs, through which `backward` now goes. The C++ side is
//! `bridge.cpp` beside this file.
#![expect(unsafe_code, reason = "calls into bridge.cpp, and is called back from it")]

use std::ffi::{CStr, CString, c_char, c_void};

use tch::{TchError, Tensor};

/// The gradients of an operator's inputs: from those of its outputs (nothing where one was not
/// used), and which inputs' are wanted.
pub(crate) type Backward =
    dyn Fn(&[Option<Tensor>], &[bool]) -> Result<Vec<Option<Tensor>>, TchError> + Send;

/// What the C++ side keeps for one operator.
struct State {
    backward: Box<Backward>,
    inputs: usize,
    outputs: usize,
}

type Pointer = *mut c_void;

unsafe extern "C" {
    fn mmx_differentiable(
        inputs: *const Pointer,
        input_count: usize,
        outputs: *const Pointer,
        output_count: usize,
        function: unsafe extern "C" fn(
            Pointer,
            *const Pointer,
            *const bool,
            *mut Pointer,
        ) -> *mut c_char,
        drop: unsafe extern "C" fn(Pointer),
        state: Pointer,
    ) -> *mut c_char;
}

/// Makes `outputs` differentiable by `backward`, which gives one gradient (or nothing: zero) per
/// input. They must be new tensors that do not require gradients, no views of the inputs. Where no
/// input requires one, or within [`tch::no_grad`], nothing happens.
///
/// # Errors
/// libtorch's.
pub(crate) fn differentiable(
    inputs: &[&Tensor],
    outputs: &[&Tensor],
    backward: impl Fn(&[Option<Tensor>], &[bool]) -> Result<Vec<Option<Tensor>>, TchError>
    + Send
    + 'static,
) -> Result<(), TchError> {
    let pointers = |tensors: &[&Tensor]| -> Vec<Pointer> {
        tensors.iter().map(|t| t.as_ptr().cast_mut().cast()).collect()
    };
    let (from, to) = (pointers(inputs), pointers(outputs));
    let state =
        State { backward: Box::new(backward), inputs: inputs.len(), outputs: outputs.len() };
    // SAFETY: the pointers are those of live tensors, as many as said; the state is given away and
    // comes back to `give_back` exactly once.
    let error = unsafe {
        mmx_differentiable(
            from.as_ptr(),
            from.len(),
            to.as_ptr(),
            to.len(),
            call,
            give_back,
            Box::into_raw(Box::new(state)).cast(),
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
    Err(TchError::Torch(message))
}

/// Called by the C++ side's node.
unsafe extern "C" fn call(
    state: Pointer,
    given: *const Pointer,
    wanted: *const bool,
    made: *mut Pointer,
) -> *mut c_char {
    // SAFETY: `state` is the box of `differentiable`, not yet given back and nobody else's now: an
    // operator is called by one thread at a time, since mmx walks each graph once. `given` holds a
    // pointer to a live tensor, or null, per output, `wanted` a truth value and `made` a place per
    // input.
    let (state, given, wanted, made) = unsafe {
        let state = &*state.cast::<State>();
        (
            state,
            std::slice::from_raw_parts(given, state.outputs),
            std::slice::from_raw_parts(wanted, state.inputs),
            std::slice::from_raw_parts_mut(made, state.inputs),
        )
    };
    let given: Vec<Option<Tensor>> = given
        .iter()
        .map(|&pointer| {
            // SAFETY: a live tensor; the clone is another handle to it.
            (!pointer.is_null()).then(|| unsafe { Tensor::clone_from_ptr(pointer.cast()) })
        })
        .collect();
    match (state.backward)(&given, wanted) {
        Ok(gradients) => {
            for (place, gradient) in made.iter_mut().zip(gradients) {
                if let Some(gradient) = gradient {
                    *place = gradient.as_ptr().cast_mut().cast();
                    std::mem::forget(gradient); // the C++ side frees it
                }
            }
            std::ptr::null_mut()
        }
        Err(error) => {
            let message = CString::new(error.to_string().replace('\0', " ")).unwrap_or_default();
            // SAFETY: a valid C string; the copy is freed by the C++ side.
            unsafe { libc::strdup(message.as_ptr()) }
        }
    }
}

/// Frees the state.
unsafe extern "C" fn give_back(state: Pointer) {
    // SAFETY: the pointer of `differentiable`'s box, given back once.
    drop(unsafe { Box::from_raw(state.cast::<State>()) });
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    /// x * y, and x^2, with their gradients by hand.
    fn products(x: &Tensor, y: &Tensor) -> (Tensor, Tensor) {
        let (product, square) = tch::no_grad(|| (x * y, x * x));
        let (a, b) = (x.detach(), y.detach());
        differentiable(&[x, y], &[&product, &square], move |given, wanted| {
            let of = |g: &Option<Tensor>, factor: &Tensor| g.as_ref().map(|g| g * factor);
            let from_product = of(&given[0], &b);
            let from_square = of(&given[1], &(&a * 2.0));
            let of_x = match (from_product, from_square) {
                (Some(p), Some(s)) => Some(p + s),
                (p, s) => p.or(s),
            };
            Ok(vec![of_x.filter(|_| wanted[0]), of(&given[0], &a).filter(|_| wanted[1])])
        })
        .expect("an operator");
        (product, square)
    }

    #[test]
    fn gradients_go_through_an_operator_of_ours() {
        let x = Tensor::from_slice(&[1.0f32, 2.0, 3.0]).set_requires_grad(true);
        let y = Tensor::from_slice(&[4.0f32, 5.0, 6.0]).set_requires_grad(true);
        let (product, square) = products(&x, &y);
        let loss = (&product * 10.0).sum(Kind::Float) + square.sum(Kind::Float);
        let gradients = Tensor::run_backward(&[loss], &[&x, &y], false, false);
        let values = |t: &Tensor| Vec::<f32>::try_from(t).expect("floats");
        assert_eq!(values(&gradients[0]), [42.0, 54.0, 66.0]);
        assert_eq!(values(&gradients[1]), [10.0, 20.0, 30.0]);
    }

    #[test]
    fn an_output_or_input_that_is_not_used_costs_nothing() {
        let x = Tensor::from_slice(&[2.0f32]).set_requires_grad(true);
        let y = Tensor::from_slice(&[3.0f32]);
        let (product, _) = products(&x, &y);
        let gradients = Tensor::run_backward(&[&product], &[&x], false, false);
        assert_eq!(gradients[0].double_value(&[0]), 3.0);
        let (plain, _) = tch::no_grad(|| products(&x, &y));
        assert!(!plain.requires_grad());
        let (of_constants, _) = products(&y, &y);
        assert!(!of_constants.requires_grad());
    }

    #[test]
    fn an_error_in_a_gradient_is_an_error_of_the_backward_pass() {
        let x = Tensor::from_slice(&[2.0f32]).set_requires_grad(true);
        let y = tch::no_grad(|| &x * 2.0);
        differentiable(&[&x], &[&y], |_, _| Err(TchError::Torch("no such gradient".into())))
            .expect("an operator");
        let error = Tensor::f_run_backward(&[&y], &[&x], false, false).expect_err("fails");
        assert!(error.to_string().contains("no such gradient"), "{error}");
    }
}
