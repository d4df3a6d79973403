use super::*;
use crate::kernel::custom::Compute;
use crate::kernel::custom::trial::{Numbers, compute_apart};
use crate::kernel::fenced::{Fence, Fenced};
use crate::quant::{dequantize_rows, quantize_rows};
use crate::wrap::plan::{Plan, Slot};
use mmx_converters::random::SplitMix64;

/// The sets of this CPU that there are products for. None on some CPUs: nothing packs a matrix
/// there.
fn sets() -> impl Iterator<Item = CpuSet> {
    SETS.iter().copied().filter(|set| set.is_here())
}

/// Each of these sets with each type that can be packed.
fn each() -> impl Iterator<Item = (CpuSet, GgmlType)> {
    let types = || GgmlType::ALL.iter().copied().filter(|&ty| takes(ty));
    sets().flat_map(move |cpu| types().map(move |ty| (cpu, ty)))
}

/// The columns of a unit of the file.
fn unit(ty: GgmlType) -> usize {
    layout!(ty, L::UNIT, 0)
}

fn pack(cpu: CpuSet, ty: GgmlType, shape: &[usize], blocks: &[u8]) -> QuantMatrix {
    let mut arena = Arena::new(arena_bytes(ty, shape).unwrap()).unwrap();
    QuantMatrix::new(cpu, &mut arena, ty, shape, &[blocks], &|| ()).unwrap()
}

fn random(rng: &mut SplitMix64, n: usize, width: f32) -> Vec<f32> {
    (0..n).map(|_| (rng.next_f64() as f32 - 0.5) * width).collect()
}

/// The product as one would write it down, on rounded values: `[tokens, rows]`.
fn naive(ty: GgmlType, blocks: &[u8], cols: usize, x: &[f32]) -> Vec<f32> {
    let weights = dequantize_rows(ty, blocks, cols).unwrap();
    // as ggml rounds on x86, which is not how its quantizer of q8_0 does
    let round = |block: &[f32]| -> Vec<f32> {
        let largest = block.iter().fold(0.0, |most: f32, x| x.abs().max(most));
        let factor = if largest == 0.0 { 0.0 } else { 127.0 / largest };
        let scale = half::f16::from_f32(largest / 127.0).to_f32();
        block.iter().map(|x| (x * factor).round_ties_even() * scale).collect()
    };
    let x: Vec<f32> = x.chunks(BLOCK).flat_map(round).collect();
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
    let mut rng = SplitMix64::new(9);
    for (cpu, ty) in each() {
        for (rows, cols) in [(16, 256), (48, 512), (32, 1536), (16, 64), (32, 1408)] {
            let Some(_) = arena_bytes(ty, &[rows, cols]) else {
                assert!(cols % unit(ty) != 0);
                continue;
            };
            let blocks = quantize_rows(ty, &random(&mut rng, rows * cols, 0.2), cols).unwrap();
            let matrix = pack(cpu, ty, &[rows, cols], &blocks);
            for tokens in [1, 2, 3, 4, 5, 9, 16] {
                let mut x = random(&mut rng, tokens * cols, 4.0);
                x[..BLOCK].fill(0.0); // a block without a largest value
                let expected = naive(ty, &blocks, cols, &x);
                let numbers = Numbers { x: &x, shape: &[tokens, cols], chosen: None };
                for threads in [1, 3] {
                    let found = product(&matrix, &numbers, threads);
                    for (found, expected) in found.iter().zip(&expected) {
                        let limit = 2e-5 * expected.abs().max(1.0);
                        let error = (found - expected).abs();
                        assert!(error <= limit, "{cpu}, {}: {found} for {expected}", ty.name());
                    }
                    let last = &x[(tokens - 1) * cols..];
                    let last = Numbers { x: last, shape: &[1, cols], chosen: None };
                    let last = product(&matrix, &last, 1);
                    assert_eq!(found[(tokens - 1) * rows..], last, "{cpu}, {}", ty.name());
                }
            }
        }
    }
}

#[test]
fn each_token_meets_the_experts_it_chose() {
    let mut rng = SplitMix64::new(10);
    let (experts, rows, cols, k) = (4, 32, 256, 2);
    for (cpu, ty) in each() {
        let weights = random(&mut rng, experts * rows * cols, 0.2);
        let blocks = quantize_rows(ty, &weights, cols).unwrap();
        let matrix = pack(cpu, ty, &[experts, rows, cols], &blocks);
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
    let mut rng = SplitMix64::new(11);
    for (cpu, ty) in each() {
        let unit = unit(ty);
        // the smallest, an odd number of groups and blocks, more than stay in the cache at a time
        for (experts, rows, cols) in
            [(1, 16, unit), (1, 48, 3 * unit), (1, 32, 16 * 1024), (3, 32, unit)]
        {
            let shape = [experts, rows, cols];
            let shape = if experts > 1 { &shape[..] } else { &shape[1..] };
            let weights = random(&mut rng, experts * rows * cols, 0.2);
            let blocks = quantize_rows(ty, &weights, cols).unwrap();
            let matrix = pack(cpu, ty, shape, &blocks); // in an arena of exactly its size
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
                        assert_eq!(found, expected, "{cpu}, {}, {shape:?}, {tokens}", ty.name());
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
    for (cpu, ty) in each() {
        let blocks = quantize_rows(ty, &random(&mut rng, rows * cols, 0.2), cols).unwrap();
        let joined = pack(cpu, ty, &[rows, cols], &blocks);
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
                QuantMatrix::new(cpu, &mut arena, ty, &[rows, cols], &pieces, &|| ()).unwrap();
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
    let mut rng = SplitMix64::new(13);
    let shapes = [(1, 16, 1), (1, 48, 2), (3, 32, 3)];
    let kinds = shapes.into_iter().flat_map(|s| [Fence::Before, Fence::Behind].map(|f| (s, f)));
    let kinds =
        kinds.flat_map(|(shape, fence)| each().map(move |(cpu, ty)| (cpu, ty, shape, fence)));
    for (cpu, ty, (experts, rows, units), fence) in kinds {
        let cols = units * unit(ty);
        let shape = [experts, rows, cols];
        let shape = if experts > 1 { &shape[..] } else { &shape[1..] };
        let weights = random(&mut rng, experts * rows * cols, 0.2);
        let blocks = quantize_rows(ty, &weights, cols).unwrap();
        let packed = pack(cpu, ty, shape, &blocks);
        // pieces that end, or begin, where the memory does
        let pieces = blocks.chunks(16 * blocks.len() / (experts * rows));
        let pieces: Vec<Fenced> = pieces.map(|piece| Fenced::new(piece, fence)).collect();
        let pieces: Vec<&[u8]> = pieces.iter().map(|piece| &piece[..]).collect();
        let mut arena = Arena::new(arena_bytes(ty, shape).unwrap()).unwrap();
        // SAFETY: the pieces live to the end of this test.
        let later = unsafe { QuantMatrix::in_file(cpu, &mut arena, ty, shape, &pieces) };
        let later = later.unwrap().unwrap();
        let mut same = || {
            for tokens in [1, 2, 3, 4, 5, 8, 9, 16] {
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
    let data = [0; 18 * 8];
    // SAFETY: nothing comes of it.
    let shared = unsafe {
        QuantMatrix::in_file(CpuSet::Avx2, &mut arena, GgmlType::Q4_0, &[16, 32], &[&data, &data])
    };
    assert!(shared.unwrap().is_none(), "two pieces share a group of rows");
}

#[test]
fn only_whole_groups_and_blocks_fit() {
    assert_eq!(GgmlType::ALL.iter().filter(|&&ty| takes(ty)).count(), 12);
    assert!(arena_bytes(GgmlType::Q4_0, &[16, 32]).is_some());
    assert!(arena_bytes(GgmlType::Q4_0, &[24, 32]).is_none());
    assert!(arena_bytes(GgmlType::Q4_0, &[16, 48]).is_none());
    assert!(arena_bytes(GgmlType::Q6_K, &[16, 32]).is_none());
    assert!(arena_bytes(GgmlType::F16, &[16, 32]).is_none());
    assert!(arena_bytes(GgmlType::Q8_0, &[4, 16, 32]).is_some());
    let mut arena = Arena::new(1000).unwrap();
    for cpu in CpuSet::here() {
        let (ty, wrong) = (GgmlType::Q4_0, [&[0; 17][..]]);
        assert!(QuantMatrix::new(cpu, &mut arena, ty, &[16, 32], &wrong, &|| ()).is_err());
    }
    let (ty, blocks) = (GgmlType::Q4_0, [&[0; 18 * 16][..]]);
    let refused = QuantMatrix::new(CpuSet::Portable, &mut arena, ty, &[16, 32], &blocks, &|| ());
    assert!(refused.is_err(), "there is no kernel");
}

/// Where the float16 numbers of a unit lie.
fn halves(ty: GgmlType) -> &'static [usize] {
    match ty {
        GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4_K | GgmlType::Q5_K => &[0, 2],
        GgmlType::Q2_K => &[80, 82],
        GgmlType::Q3_K => &[108],
        GgmlType::Q6_K => &[208],
        _ => &[0],
    }
}

/// Any bytes are a block, and a file may hold them all: the largest scales and mins, numbers that
/// no quantizer writes (-128 in q8_0), blocks of zeros; with activations that are all at their
/// limits.
#[test]
fn any_bytes_of_a_block_are_multiplied_exactly() {
    let mut rng = SplitMix64::new(14);
    for (cpu, ty) in each() {
        let (rows, cols) = (32, 512);
        let bytes = ty.row_bytes(cols).unwrap() * rows;
        for filled in [None, Some(0u8), Some(0xff), Some(0x80), Some(0x7f)] {
            let mut blocks: Vec<u8> =
                (0..bytes).map(|_| filled.unwrap_or(rng.next_u64() as u8)).collect();
            for block in blocks.chunks_exact_mut(layout!(ty, L::UNIT_BYTES, 1)) {
                for &at in halves(ty) {
                    let scale = half::f16::from_f64(rng.next_f64() - 0.5);
                    block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
                }
            }
            let matrix = pack(cpu, ty, &[rows, cols], &blocks);
            for tokens in [1, 2, 7] {
                // all at their limits, with signs that add up or cancel, or not
                let x: Vec<f32> = (0..tokens * cols)
                    .map(|i| match (i / cols + i / 64) % 3 {
                        0 => 127.0,
                        1 => [127.0, -127.0][i % 2],
                        _ => (rng.next_f64() as f32 - 0.5) * 200.0,
                    })
                    .collect();
                let expected = naive(ty, &blocks, cols, &x);
                let numbers = Numbers { x: &x, shape: &[tokens, cols], chosen: None };
                let found = product(&matrix, &numbers, 1);
                // float32 sums of the 16 blocks' largest products
                let weights = dequantize_rows(ty, &blocks, cols).unwrap();
                let largest = weights.iter().fold(0.0, |most: f32, w| w.abs().max(most));
                let limit = 1e-6 * largest * 127.0 * cols as f32;
                for (found, expected) in found.iter().zip(&expected) {
                    let error = (found - expected).abs();
                    let what = format!("{cpu}, {}, {filled:?}", ty.name());
                    assert!(error <= limit, "{what}: {found} for {expected}, limit {limit}");
                }
            }
        }
    }
}

/// As near to ggml's own product as what ggml rounds differently: activations of K and IQ4_XS
/// types in blocks of 256, sums of activations (q4_1, q5_1) to float16.
#[test]
fn products_are_near_ggmls_own() {
    let mut rng = SplitMix64::new(15);
    let (rows, cols, tokens) = (48, 768, 5);
    for (cpu, ty) in each() {
        let blocks = quantize_rows(ty, &random(&mut rng, rows * cols, 0.2), cols).unwrap();
        let x = random(&mut rng, tokens * cols, 4.0);
        let numbers = Numbers { x: &x, shape: &[tokens, cols], chosen: None };
        let found = product(&pack(cpu, ty, &[rows, cols], &blocks), &numbers, 1);
        let plan = Plan::new(8).unwrap();
        let nodes = plan.nodes();
        let weight = nodes.input(ty, &[rows, cols]).unwrap();
        let inputs = numbers.inputs(&nodes);
        let output = nodes.output(nodes.context.mul_mat(weight, inputs.x).unwrap());
        let (slots, weight) = (Numbers::slots(inputs), Slot::of(weight));
        let mut plan = plan.finish().unwrap();
        plan.data_mut::<u8>(weight).copy_from_slice(&blocks);
        let theirs = numbers.compute(&mut plan, slots, output, 1);
        let square = |x: f32| f64::from(x) * f64::from(x);
        let apart: f64 = found.iter().zip(&theirs).map(|(a, b)| square(a - b)).sum();
        let whole: f64 = theirs.iter().copied().map(square).sum();
        let error = (apart / whole).sqrt();
        let limit = match ty {
            GgmlType::Q4_1 | GgmlType::Q5_1 => 2e-3,
            _ if unit(ty) == 32 => 1e-5,
            _ => 0.01,
        };
        assert!(error < limit, "{cpu}, {}: {error} of the whole", ty.name());
    }
}
