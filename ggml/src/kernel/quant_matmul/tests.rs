use super::*;
use crate::kernel::custom::Compute;
use crate::kernel::custom::trial::{Numbers, compute_apart};
use crate::quant::{dequantize_rows, quantize_rows};
use crate::wrap::plan::Plan;
use mmx_converters::random::SplitMix64;

const TYPES: [GgmlType; 3] = [GgmlType::Q4_0, GgmlType::Q8_0, GgmlType::Q6_K];

/// The best set of this CPU.
fn cpu() -> CpuSet {
    CpuSet::here().pop().unwrap()
}

fn pack(ty: GgmlType, shape: &[usize], blocks: &[u8]) -> QuantMatrix {
    let mut arena = Arena::new(arena_bytes(ty, shape).unwrap()).unwrap();
    QuantMatrix::new(cpu(), &mut arena, ty, shape, &[blocks], &|| ()).unwrap()
}

fn random(rng: &mut SplitMix64, n: usize, width: f32) -> Vec<f32> {
    (0..n).map(|_| (rng.next_f64() as f32 - 0.5) * width).collect()
}

/// The product as one would write it down, on rounded values: `[tokens, rows]`.
fn naive(ty: GgmlType, blocks: &[u8], cols: usize, x: &[f32]) -> Vec<f32> {
    let weights = dequantize_rows(ty, blocks, cols).unwrap();
    let rounded = quantize_rows(GgmlType::Q8_0, x, cols).unwrap();
    let x = dequantize_rows(GgmlType::Q8_0, &rounded, cols).unwrap();
    let dot = |x: &[f32], w: &[f32]| -> f64 {
        x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum()
    };
    x.chunks(cols).flat_map(|x| weights.chunks(cols).map(move |w| dot(x, w) as f32)).collect()
}

fn product(matrix: &QuantMatrix, numbers: &Numbers<'_>, threads: usize) -> Vec<f32> {
    let plan = Plan::new(8).unwrap();
    let nodes = plan.nodes();
    let inputs = numbers.inputs(&nodes);
    let output = nodes.output(nodes.context.quant_matmul(matrix, inputs).unwrap());
    let slots = Numbers::slots(inputs);
    numbers.compute(&mut plan.finish().unwrap(), slots, output, threads)
}

#[test]
fn products_equal_the_naive_twin_and_do_not_depend_on_their_neighbours() {
    if set(cpu()).is_none() {
        return; // nothing packs a matrix on such a CPU
    }
    let mut rng = SplitMix64::new(9);
    for ty in TYPES {
        for (rows, cols) in [(16, 256), (48, 512), (32, 1536), (16, 64), (32, 1408)] {
            let Some(_) = arena_bytes(ty, &[rows, cols]) else {
                assert!(ty == GgmlType::Q6_K && cols % 256 != 0);
                continue;
            };
            let blocks = quantize_rows(ty, &random(&mut rng, rows * cols, 0.2), cols).unwrap();
            let matrix = pack(ty, &[rows, cols], &blocks);
            for tokens in [1, 2, 3, 4, 9, 16] {
                let mut x = random(&mut rng, tokens * cols, 4.0);
                x[..BLOCK].fill(0.0); // a block without a largest value
                let expected = naive(ty, &blocks, cols, &x);
                let numbers = Numbers { x: &x, shape: &[tokens, cols], chosen: None };
                for threads in [1, 2, 5] {
                    let found = product(&matrix, &numbers, threads);
                    for (found, expected) in found.iter().zip(&expected) {
                        let limit = 2e-5 * expected.abs().max(1.0);
                        let error = (found - expected).abs();
                        assert!(error <= limit, "{}: {found} for {expected}", ty.name());
                    }
                    let last = &x[(tokens - 1) * cols..];
                    let last = Numbers { x: last, shape: &[1, cols], chosen: None };
                    let last = product(&matrix, &last, 1);
                    assert_eq!(found[(tokens - 1) * rows..], last, "{}", ty.name());
                }
            }
        }
    }
}

#[test]
fn each_token_meets_the_experts_it_chose() {
    if set(cpu()).is_none() {
        return;
    }
    let mut rng = SplitMix64::new(10);
    let (experts, rows, cols, k) = (4, 32, 256, 2);
    for ty in TYPES {
        let weights = random(&mut rng, experts * rows * cols, 0.2);
        let blocks = quantize_rows(ty, &weights, cols).unwrap();
        let matrix = pack(ty, &[experts, rows, cols], &blocks);
        for tokens in [1, 13] {
            let ids: Vec<i32> = (0..tokens)
                .flat_map(|_| {
                    let first = (rng.next_f64() * 4.0) as i32;
                    [first, (first + 1 + (rng.next_f64() * 3.0) as i32) % 4]
                })
                .collect();
            // the token's one row for all its experts, or a row for each
            for per_token in [1, k] {
                let x = random(&mut rng, tokens * per_token * cols, 4.0);
                let all = naive(ty, &blocks, cols, &x); // [tokens * per_token, experts * rows]
                let expected = ids.iter().enumerate().flat_map(|(i, &id)| {
                    let row = i / k * per_token + i % k % per_token;
                    let from = (row * experts + id as usize) * rows;
                    all[from..from + rows].to_vec()
                });
                let expected: Vec<f32> = expected.collect();
                let shape = &[tokens, per_token, cols];
                let numbers = Numbers { x: &x, shape, chosen: Some((&ids, k)) };
                for threads in [1, 3] {
                    let found = product(&matrix, &numbers, threads);
                    assert_eq!(found.len(), expected.len());
                    for (found, expected) in found.iter().zip(&expected) {
                        let limit = 2e-5 * expected.abs().max(1.0);
                        assert!((found - expected).abs() <= limit, "{found} for {expected}");
                    }
                }
            }
        }
    }
}

#[test]
fn nothing_beside_matrix_activations_and_results_is_touched() {
    if set(cpu()).is_none() {
        return;
    }
    let mut rng = SplitMix64::new(11);
    for ty in TYPES {
        let unit = if ty == GgmlType::Q6_K { 256 } else { 32 };
        // the smallest, an odd number of groups and blocks, more than stay in the cache at a time
        for (experts, rows, cols) in
            [(1, 16, unit), (1, 48, 3 * unit), (1, 32, 16 * 1024), (3, 32, unit)]
        {
            let shape = [experts, rows, cols];
            let shape = if experts > 1 { &shape[..] } else { &shape[1..] };
            let weights = random(&mut rng, experts * rows * cols, 0.2);
            let blocks = quantize_rows(ty, &weights, cols).unwrap();
            let matrix = pack(ty, shape, &blocks); // in an arena of exactly its size
            for tokens in [0, 1, 2, 3, 7, 15] {
                let k = 2;
                let ids: Vec<i32> =
                    (0..tokens * k).map(|_| (rng.next_f64() * 3.0) as i32).collect();
                let ids = (experts > 1).then_some((&ids[..], k));
                // one row for all of a token's experts, or a row for each
                for per_token in if experts > 1 { 1..3 } else { 1..2 } {
                    let x = random(&mut rng, tokens * per_token * cols, 4.0);
                    let x_shape = [tokens, per_token, cols];
                    let x_shape: &[usize] = if experts > 1 { &x_shape } else { &[tokens, cols] };
                    let numbers = Numbers { x: &x, shape: x_shape, chosen: ids };
                    // ggml has no memory for a graph that is all empty
                    let expected =
                        if tokens > 0 { product(&matrix, &numbers, 1) } else { Vec::new() };

                    let context = Context::new(8, 0).unwrap();
                    let activations = Activations {
                        x: context.tensor(GgmlType::F32, x_shape).unwrap(),
                        chosen: ids.map(|(ids, k)| {
                            context.tensor(GgmlType::I32, &[ids.len() / k, k]).unwrap()
                        }),
                    };
                    let node = context.quant_matmul(&matrix, activations).unwrap();
                    let mut operands = vec![bytemuck::cast_slice(&x)];
                    operands.extend(ids.map(|(ids, _)| bytemuck::cast_slice(ids)));
                    let user = std::ptr::from_ref(&matrix).cast_mut().cast();
                    for threads in [1, 2, 5] {
                        let how = (compute as Compute, user);
                        let found = compute_apart(node, &operands, how, threads);
                        assert_eq!(found, expected, "{}, {shape:?}, {tokens}", ty.name());
                    }
                }
            }
        }
    }
}

#[test]
fn pieces_are_packed_as_if_joined() {
    let mut rng = SplitMix64::new(12);
    let (rows, cols) = (48, 512);
    for ty in TYPES {
        let blocks = quantize_rows(ty, &random(&mut rng, rows * cols, 0.2), cols).unwrap();
        let joined = pack(ty, &[rows, cols], &blocks);
        // pieces of whole groups, and a group that lies in three; each has memory of its own
        for cuts in [vec![16], vec![16, 16], vec![3, 5, 30]] {
            let mut pieces = Vec::new();
            let mut rest = &blocks[..];
            for cut in cuts {
                let (piece, after) = rest.split_at(cut * blocks.len() / rows);
                pieces.push(piece.to_vec());
                rest = after;
            }
            pieces.push(rest.to_vec());
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let mut arena = Arena::new(arena_bytes(ty, &[rows, cols]).unwrap()).unwrap();
            let packed =
                QuantMatrix::new(cpu(), &mut arena, ty, &[rows, cols], &pieces, &|| ()).unwrap();
            let [packed, joined] = [&packed, &joined].map(|matrix| matrix.own.get().unwrap());
            assert_eq!(packed.values.bytes(), joined.values.bytes(), "{}", ty.name());
            assert_eq!(packed.scales.bytes(), joined.scales.bytes(), "{}", ty.name());
        }
    }
}

/// Before and after it is packed, a matrix in the file gives the bits of one that was packed at
/// once.
#[test]
fn rows_in_the_file_give_the_same_bits() {
    if set(cpu()).is_none() {
        return;
    }
    let mut rng = SplitMix64::new(13);
    for (experts, rows, cols) in [(1, 16, 32), (1, 48, 512), (3, 32, 96)] {
        let shape = [experts, rows, cols];
        let shape = if experts > 1 { &shape[..] } else { &shape[1..] };
        let weights = random(&mut rng, experts * rows * cols, 0.2);
        let blocks = quantize_rows(GgmlType::Q8_0, &weights, cols).unwrap();
        let packed = pack(GgmlType::Q8_0, shape, &blocks);
        // pieces that end where the memory does
        let pieces: Vec<Vec<u8>> =
            blocks.chunks(16 * blocks.len() / (experts * rows)).map(<[u8]>::to_vec).collect();
        let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
        let mut arena = Arena::new(arena_bytes(GgmlType::Q8_0, shape).unwrap()).unwrap();
        // SAFETY: the pieces live to the end of this test.
        let later =
            unsafe { QuantMatrix::in_file(cpu(), &mut arena, GgmlType::Q8_0, shape, &pieces) };
        let later = later.unwrap().unwrap();
        let mut same = || {
            for tokens in [1, 2, 3, 8, 9, 16] {
                let ids: Vec<i32> = (0..tokens).map(|i| (i % experts) as i32).collect();
                let x = random(&mut rng, tokens * cols, 4.0);
                let x_shape = [tokens, 1, cols];
                let numbers = Numbers {
                    x: &x,
                    shape: if experts > 1 { &x_shape } else { &[tokens, cols] },
                    chosen: (experts > 1).then_some((&ids, 1)),
                };
                for threads in [1, 2] {
                    let found = product(&later, &numbers, threads);
                    assert_eq!(found, product(&packed, &numbers, threads), "{shape:?}, {tokens}");
                }
            }
        };
        same();
        let read = std::cell::Cell::new(0);
        later.pack(&|| read.set(read.get() + 1));
        assert!(later.own.get().is_some() && read.get() == 1);
        later.pack(&|| panic!("it is packed"));
        same();
    }
    let mut arena = Arena::new(1 << 20).unwrap();
    let data = [0; 18 * 16];
    // SAFETY: nothing comes of it.
    let other =
        unsafe { QuantMatrix::in_file(cpu(), &mut arena, GgmlType::Q4_0, &[16, 32], &[&data]) };
    assert!(other.unwrap().is_none(), "q4_0 has no such kernel");
}

#[test]
fn only_whole_groups_and_blocks_fit() {
    assert!(arena_bytes(GgmlType::Q4_0, &[16, 32]).is_some());
    assert!(arena_bytes(GgmlType::Q4_0, &[24, 32]).is_none());
    assert!(arena_bytes(GgmlType::Q4_0, &[16, 48]).is_none());
    assert!(arena_bytes(GgmlType::Q6_K, &[16, 32]).is_none());
    assert!(arena_bytes(GgmlType::Q5_0, &[16, 32]).is_none());
    assert!(arena_bytes(GgmlType::Q8_0, &[4, 16, 32]).is_some());
    let mut arena = Arena::new(1000).unwrap();
    assert!(
        QuantMatrix::new(cpu(), &mut arena, GgmlType::Q4_0, &[16, 32], &[&[0; 17]], &|| ())
            .is_err()
    );
}
