use half::{bf16, f16};

use super::*;
use crate::kernel::custom::Compute;
use crate::kernel::custom::trial::{Numbers, compute_apart};
use crate::kernel::fenced::{Fence, Fenced};
use crate::quant::{dequantize_rows, quantize_rows};
use crate::wrap::plan::{Plan, Slot};
use crate::wrap::pool::Pool;
use mmx_converters::random::SplitMix64;

const TYPES: [GgmlType; 3] = [GgmlType::F32, GgmlType::F16, GgmlType::BF16];

/// The sets of this CPU that there is a kernel for.
fn sets() -> impl Iterator<Item = CpuSet> {
    SETS.into_iter().filter(|set| set.is_here())
}

/// Where weights are read.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    File,
    Packed,
}

/// A matrix of bytes, which it refers to.
struct Matrix<'a> {
    matrix: FloatMatrix,
    _bytes: std::marker::PhantomData<&'a [u8]>,
}

fn matrix<'a>(
    cpu: CpuSet,
    place: Place,
    ty: GgmlType,
    shape: &[usize],
    pieces: &[&'a [u8]],
) -> Matrix<'a> {
    let size = pieces.iter().map(|piece| piece.len()).sum();
    let mut arena = Arena::new(size).unwrap();
    // SAFETY: the bytes are borrowed as long as the matrix.
    let matrix = unsafe { FloatMatrix::new(cpu, &mut arena, ty, shape, pieces).unwrap() };
    if place == Place::Packed {
        matrix.pack(&mut |_| ());
        assert!(matrix.own.get().is_some());
    }
    Matrix { matrix, _bytes: std::marker::PhantomData }
}

fn product(matrix: &FloatMatrix, numbers: &Numbers<'_>, threads: usize) -> Vec<f32> {
    let plan = Plan::new(8).unwrap();
    let nodes = plan.nodes();
    let inputs = numbers.inputs(&nodes);
    // SAFETY: the matrix outlives the plan; a plan's context cannot say so.
    let matrix = unsafe { &*std::ptr::from_ref(matrix) };
    let output = nodes.output(nodes.context.float_matmul(matrix, inputs).unwrap());
    let slots = Numbers::slots(inputs);
    numbers.compute(&mut plan.finish().unwrap(), slots, output, threads)
}

/// ggml's own product with one matrix.
fn ggml(ty: GgmlType, bytes: &[u8], [rows, cols]: [usize; 2], x: &[f32]) -> Vec<f32> {
    let plan = Plan::new(8).unwrap();
    let nodes = plan.nodes();
    let weight = nodes.input(ty, &[rows, cols]).unwrap();
    let input = nodes.input(GgmlType::F32, &[x.len() / cols, cols]).unwrap();
    let output = nodes.output(nodes.context.mul_mat(weight, input).unwrap());
    let (weight, input) = (Slot::of(weight), Slot::of(input));
    let mut plan = plan.finish().unwrap();
    plan.data_mut::<u8>(weight).copy_from_slice(bytes);
    plan.data_mut::<f32>(input).copy_from_slice(x);
    plan.compute(&mut Pool::new(1).unwrap()).unwrap();
    plan.data_mut::<f32>(output).to_vec()
}

#[test]
fn products_equal_the_naive_twin_and_do_not_depend_on_their_neighbours() {
    let mut rng = SplitMix64::new(12);
    let mut random =
        |n: usize| -> Vec<f32> { (0..n).map(|_| rng.next_f64() as f32 - 0.5).collect() };
    for ty in TYPES {
        for (experts, rows, cols) in [(1, 4, 16), (1, 52, 512), (3, 24, 48)] {
            let bytes = quantize_rows(ty, &random(experts * rows * cols), cols).unwrap();
            let weights = dequantize_rows(ty, &bytes, cols).unwrap();
            for tokens in [1, 2, 3, 4, 5, 6, 17] {
                let x = random(tokens * cols);
                let k = 2;
                let ids: Vec<i32> =
                    random(tokens * k).iter().map(|r| ((r + 0.5) * 3.0) as i32).collect();
                let ids = (experts > 1).then_some((&ids[..], k));
                let w_shape: &[usize] =
                    if experts > 1 { &[experts, rows, cols] } else { &[rows, cols] };
                let x_shape: &[usize] =
                    if experts > 1 { &[tokens, 1, cols] } else { &[tokens, cols] };
                let per_token = if experts > 1 { k } else { 1 };
                let expected: Vec<f64> = (0..tokens * per_token * rows)
                    .map(|i| {
                        let (item, row) = (i / rows, i % rows);
                        let expert = ids.map_or(0, |(ids, _)| ids[item] as usize);
                        let w = &weights[(expert * rows + row) * cols..][..cols];
                        let x = &x[item / per_token * cols..][..cols];
                        w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum()
                    })
                    .collect();
                let numbers = Numbers { x: &x, shape: x_shape, chosen: ids };
                let mut first: Option<Vec<f32>> = None;
                for cpu in sets() {
                    for place in [Place::File, Place::Packed] {
                        let weight = matrix(cpu, place, ty, w_shape, &[&bytes]);
                        for threads in [1, 3] {
                            let found = product(&weight.matrix, &numbers, threads);
                            for (found, expected) in found.iter().zip(&expected) {
                                let error = (f64::from(*found) - expected).abs();
                                assert!(error < 1e-5, "{}: {found} for {expected}", ty.name());
                            }
                            let first = first.get_or_insert_with(|| found.clone());
                            assert_eq!(&found, first, "{cpu}, {place:?}: not the same bits");
                        }
                        if experts == 1 {
                            let x = &x[(tokens - 1) * cols..];
                            let last = Numbers { x, shape: &[1, cols], chosen: None };
                            let last = product(&weight.matrix, &last, 1);
                            assert_eq!(first.as_ref().unwrap()[(tokens - 1) * rows..], last);
                        }
                    }
                }
            }
        }
    }
}

/// Activations are numbers of every type, so that ggml rounds none of them.
#[test]
fn products_equal_ggmls() {
    let mut rng = SplitMix64::new(14);
    let mut random = |n: usize| -> Vec<f32> {
        (0..n).map(|_| bf16::from_f64(rng.next_f64() + 0.5).to_f32()).collect()
    };
    for ty in TYPES {
        for (rows, cols) in [(8, 16), (12, 112), (64, 768)] {
            let bytes = quantize_rows(ty, &random(rows * cols), cols).unwrap();
            for tokens in [1, 7] {
                let x = random(tokens * cols);
                let expected = ggml(ty, &bytes, [rows, cols], &x);
                for cpu in sets() {
                    let weight = matrix(cpu, Place::Packed, ty, &[rows, cols], &[&bytes]);
                    let numbers = Numbers { x: &x, shape: &[tokens, cols], chosen: None };
                    let found = product(&weight.matrix, &numbers, 1);
                    for (found, expected) in found.iter().zip(&expected) {
                        // float32's rounding, of sums in another order
                        let error = (found - expected).abs() / expected.abs();
                        assert!(error < 1e-5, "{cpu}, {}: {found} for {expected}", ty.name());
                    }
                }
            }
        }
    }
}

/// Infinities, numbers too small to be normal, the largest ones, rows of zeros.
#[test]
fn extreme_numbers_are_what_they_are() {
    let (rows, cols) = (8, 32);
    for ty in TYPES {
        let (smallest, largest) = match ty {
            GgmlType::F16 => (f16::from_bits(1).to_f32(), f16::MAX.to_f32()),
            GgmlType::BF16 => (bf16::from_bits(1).to_f32(), bf16::from_f32(1e30).to_f32()),
            _ => (f32::from_bits(1), 1e30),
        };
        let mut weights = vec![0f32; rows * cols];
        weights[cols..2 * cols].fill(smallest);
        weights[2 * cols] = f32::INFINITY;
        weights[3 * cols + 5] = f32::NEG_INFINITY;
        (weights[4 * cols], weights[4 * cols + 31]) = (f32::INFINITY, f32::NEG_INFINITY);
        weights[5 * cols + 7] = largest;
        weights[6 * cols + 15] = f32::NAN;
        (weights[7 * cols], weights[7 * cols + 16]) = (-0.0, smallest);
        let bytes: Vec<u8> = match ty {
            GgmlType::F16 => weights.iter().flat_map(|&w| f16::from_f32(w).to_le_bytes()).collect(),
            GgmlType::BF16 => {
                weights.iter().flat_map(|&w| bf16::from_f32(w).to_le_bytes()).collect()
            }
            _ => weights.iter().flat_map(|w| w.to_le_bytes()).collect(),
        };
        for cpu in sets() {
            for place in [Place::File, Place::Packed] {
                let weight = matrix(cpu, place, ty, &[rows, cols], &[&bytes]);
                for tokens in 1..8 {
                    let x = vec![2f32; tokens * cols];
                    let numbers = Numbers { x: &x, shape: &[tokens, cols], chosen: None };
                    for found in product(&weight.matrix, &numbers, 2).chunks_exact(rows) {
                        assert_eq!(found[0].to_bits(), 0, "a row of zeros");
                        // exact: powers of two, also where they are not normal
                        assert_eq!(found[1], 2.0 * cols as f32 * smallest, "{cpu}, {}", ty.name());
                        assert!(smallest > 0.0 && found[1] > 0.0);
                        assert_eq!(found[2..4], [f32::INFINITY, f32::NEG_INFINITY]);
                        assert!(found[4].is_nan() && found[6].is_nan());
                        assert_eq!(found[5], 2.0 * largest);
                        assert_eq!(found[7], 2.0 * smallest);
                    }
                }
            }
        }
    }
}

#[test]
fn nothing_beside_matrix_activations_and_results_is_touched() {
    let mut rng = SplitMix64::new(13);
    let mut random =
        |n: usize| -> Vec<f32> { (0..n).map(|_| rng.next_f64() as f32 - 0.5).collect() };
    for ty in TYPES {
        // the smallest; rows that are no multiple of the larger tiles; more than stay in the cache
        // at a time
        for (experts, rows, cols) in [(1, 4, 16), (1, 20, 80), (1, 28, 16 * 1024), (3, 12, 48)] {
            let bytes = quantize_rows(ty, &random(experts * rows * cols), cols).unwrap();
            for tokens in [0, 1, 2, 3, 5, 11] {
                let k = 2;
                let ids: Vec<i32> =
                    random(tokens * k).iter().map(|r| ((r + 0.5) * 3.0) as i32).collect();
                let ids = (experts > 1).then_some((&ids[..], k));
                let shape = [experts, rows, cols];
                let w_shape = if experts > 1 { &shape[..] } else { &shape[1..] };
                // rows of `wide` are twice as long: activations are the last of two parts, or the
                // only one
                for parts in if experts > 1 { 1..2 } else { 1..3 } {
                    let wide = random(tokens * parts * cols);
                    let own: Vec<f32> = wide
                        .chunks(parts * cols)
                        .flat_map(|row| row[(parts - 1) * cols..].to_vec())
                        .collect();
                    let x_shape = [tokens, 1, cols];
                    let x_shape: &[usize] = if experts > 1 { &x_shape } else { &[tokens, cols] };
                    let numbers = Numbers { x: &own, shape: x_shape, chosen: ids };
                    let places = [
                        (Place::File, Fence::Before),
                        (Place::File, Fence::Behind),
                        (Place::Packed, Fence::Behind),
                    ];
                    for (cpu, (place, fence)) in
                        sets().flat_map(|cpu| places.map(|place| (cpu, place)))
                    {
                        let bytes = Fenced::new(&bytes, fence);
                        let weight = matrix(cpu, place, ty, w_shape, &[&bytes[..]]);
                        let expected = match tokens {
                            0 => Vec::new(), // no graph is of nothing
                            _ => product(&weight.matrix, &numbers, 1),
                        };

                        let context = Context::new(8, 0).unwrap();
                        let x = context.tensor(GgmlType::F32, &[tokens, parts, cols]).unwrap();
                        let chosen = ids.map(|(ids, k)| {
                            context.tensor(GgmlType::I32, &[ids.len() / k, k]).unwrap()
                        });
                        let x = if experts > 1 { x } else { context.middle(x, parts - 1).unwrap() };
                        let activations = Activations { x, chosen };
                        let node = context.float_matmul(&weight.matrix, activations).unwrap();
                        let mut operands = vec![bytemuck::cast_slice(&wide)];
                        operands.extend(ids.map(|(ids, _)| bytemuck::cast_slice(ids)));
                        for threads in [1, 2, 9] {
                            let user = std::ptr::from_ref(&weight.matrix).cast_mut().cast();
                            let how = (compute as Compute, user);
                            let found = compute_apart(node, &operands, how, threads);
                            assert_eq!(found, expected, "{}, {shape:?}, {tokens}", ty.name());
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_tile_that_two_pieces_share_is_joined() {
    let Some(cpu) = sets().last() else { return };
    let mut rng = SplitMix64::new(15);
    let mut random = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.next_f64() as f32).collect() };
    let (rows, cols) = (12, 32);
    let bytes = quantize_rows(GgmlType::F16, &random(rows * cols), cols).unwrap();
    let x = random(cols);
    let numbers = Numbers { x: &x, shape: &[1, cols], chosen: None };
    let found = |split: usize| {
        let (first, last) = bytes.split_at(split * cols * 2);
        let shape = [rows, cols];
        let weight = matrix(cpu, Place::Packed, GgmlType::F16, &shape, &[first, last]);
        product(&weight.matrix, &numbers, 1)
    };
    assert_eq!(found(6), found(4));
    assert_eq!(found(11), found(8));
}

#[test]
fn what_does_not_fit_is_refused() {
    assert!(fits(GgmlType::F16, &[4, 16]));
    assert!(!fits(GgmlType::F16, &[6, 16]));
    assert!(!fits(GgmlType::F32, &[4, 24]));
    assert!(!fits(GgmlType::Q8_0, &[4, 32]));
    assert!(fits(GgmlType::BF16, &[2, 4, 16]));
    let Some(cpu) = sets().last() else { return };
    let mut arena = Arena::new(1 << 10).unwrap();
    // SAFETY: the bytes are static.
    let new = |shape: &[usize], bytes: &'static [u8], arena: &mut Arena| unsafe {
        FloatMatrix::new(cpu, arena, GgmlType::F16, shape, &[bytes]).map(|_| ())
    };
    assert!(new(&[4, 16], &[0; 128], &mut arena).is_ok());
    let message = new(&[4, 16], &[0; 126], &mut arena).unwrap_err().to_string();
    assert!(message.contains("126 bytes of F16 for shape [4, 16]"), "{message}");
    assert!(new(&[4, 24], &[0; 192], &mut arena).is_err());
    assert!(new(&[64, 16], &[0; 2048], &mut arena).is_err(), "the arena is full");
}
