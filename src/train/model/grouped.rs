//! Products of rows that are grouped by expert, for devices: no shape depends on what the router
//! chose, so the host does not wait to learn it.
//!
//! In: the expert of each assignment (token, expert), on the device. Out: a slot for each
//! assignment, so that the slots of one expert lie together, and products of all slots with their
//! experts' matrices. Two forms:
//!
//! - [`Form::Kernel`]: one slot for each assignment, each product one kernel of libtorch's
//!   (`at::_grouped_mm`), which reads on the device where an expert's rows end;
//! - [`Form::Tiles`]: slots in tiles of equally many rows, a tile being one expert's. How many
//!   tiles there may be at most is known beforehand, a quarter more than the assignments fill
//!   ([`rows_of_tile`]); each product is one of batched matrices, for which a tile's matrix is
//!   copied. Any type and any device.
//!
//! Gradients of both are gathered, never added up in an order of chance, as libtorch's own of
//! `index_select` are on CUDA.

use tch::{Device, Kind, Tensor, no_grad};

use super::device::compute_capability;
use super::variable::Torch;
use crate::kernel;
use crate::kernel::autograd::differentiable;

/// How experts are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// One after the other, by the number of rows that each has: the host has to know it.
    OneByOne,
    /// Grouped, in a form of [`Groups`].
    Grouped(Form),
}

/// See the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Kernel,
    Tiles,
}

impl Way {
    /// The way on a device for values of type `kind`; `sizes`: the experts' dimensions. `adapted`:
    /// there are adapters beside the experts, whose rank is any number.
    pub(super) fn of(device: Device, kind: Kind, sizes: [i64; 2], adapted: bool) -> Self {
        let Device::Cuda(index) = device else { return Self::OneByOne };
        // a kernel of its own has libtorch 2.11 for bfloat16 on 9.0 and 10.0, elsewhere it fetches
        // the ends (GroupedBlas.cpp); on 10.0 the gradient of an expert without rows came out
        // wrong (pytorch#172439). Rows have to begin at multiples of 16 bytes.
        let kernel = kind == Kind::BFloat16
            && !adapted
            && sizes.iter().all(|size| size % 8 == 0)
            && compute_capability(index).is_some_and(|(major, _)| major == 9);
        Self::Grouped(if kernel { Form::Kernel } else { Form::Tiles })
    }
}

/// Assignments grouped by expert.
#[derive(Debug)]
pub(super) struct Groups {
    /// The token of each slot, int64 `[slots]`; a slot that is nobody's has the first one's.
    from: Tensor,
    /// The slot of each assignment, int64 `[tokens * k]`.
    place: Tensor,
    top_k: i64,
    products: Products,
}

/// Which matrix each slot is multiplied with.
#[derive(Debug)]
enum Products {
    Kernel {
        /// Where each expert's slots end, int32 `[experts]`.
        ends: Tensor,
        /// True for an expert without slots, `[experts, 1, 1]`.
        none: Tensor,
    },
    Tiles {
        /// Slots of each.
        rows: i64,
        /// The expert of each, int64 `[tiles]`.
        expert: Tensor,
        /// 1 where a tile is an expert's, `[experts, tiles]`.
        owners: Tensor,
    },
}

/// Slots of a tile: with so many there are at most 5 tiles for each expert, of which 4 would do if
/// they were full.
fn rows_of_tile(assignments: i64, experts: i64) -> i64 {
    let rows = (assignments as u64).div_ceil(4 * experts.max(1) as u64);
    rows.next_multiple_of(8).max(8) as i64 // rows of 16 bytes also in bfloat16
}

impl Groups {
    /// `chosen [tokens, k]`, numbers below `experts`; values of type `kind` will be multiplied.
    pub(super) fn new(chosen: &Tensor, experts: i64, form: Form, kind: Kind) -> Torch<Self> {
        let (tokens, top_k) = chosen.size2()?;
        let (count, device) = (tokens * top_k, chosen.device());
        let numbers = |end: i64| Tensor::f_arange(end, (Kind::Int64, device));
        let zeros = |len: i64| Tensor::f_zeros([len], (Kind::Int64, device));
        let assigned = chosen.f_reshape([-1])?;
        // stable: the slots of one expert stay in token order, so sums come out the same every time
        let order = assigned.f_argsort_stable(true, 0, false)?;
        let of_token = order.f_floor_divide_scalar(top_k)?;
        let counts = occurrences(&assigned, experts)?;
        let ends = counts.f_cumsum(0, Kind::Int64)?;
        let (slot, products) = match form {
            Form::Kernel => {
                let none = counts.f_eq(0)?.f_view([experts, 1, 1])?;
                (None, Products::Kernel { ends: ends.f_to_kind(Kind::Int)?, none })
            }
            Form::Tiles => {
                let rows = rows_of_tile(count, experts);
                let tiles = (count + experts * (rows - 1)) / rows;
                let of_expert = counts.f_add_scalar(rows - 1)?.f_floor_divide_scalar(rows)?;
                let last = of_expert.f_cumsum(0, Kind::Int64)?; // [experts]
                // from where an expert's rows begin without tiles to where its first tile does
                let shift =
                    last.f_sub(&of_expert)?.f_mul_scalar(rows)?.f_sub(&ends.f_sub(&counts)?)?;
                let of_row = assigned.f_index_select(0, &order)?; // [tokens * k]: its expert
                let slot = numbers(count)?.f_add(&shift.f_index_select(0, &of_row)?)?;
                // tiles that are nobody's are the last expert's
                let expert = numbers(tiles)?
                    .f_unsqueeze(1)?
                    .f_ge_tensor(&last)?
                    .f_sum_dim_intlist(1, false, Kind::Int64)?
                    .f_clamp_max(experts - 1)?;
                let owners = numbers(experts)?.f_unsqueeze(1)?.f_eq_tensor(&expert)?;
                let owners = owners.f_to_kind(kind)?;
                (Some((slot, tiles * rows)), Products::Tiles { rows, expert, owners })
            }
        };
        let (place, from) = match slot {
            None => (zeros(count)?.f_scatter_(0, &order, &numbers(count)?)?, of_token),
            Some((slot, slots)) => (
                zeros(count)?.f_scatter_(0, &order, &slot)?,
                zeros(slots)?.f_scatter_(0, &slot, &of_token)?,
            ),
        };
        Ok(Self { from, place, top_k, products })
    }

    /// The rows of `tokens [tokens, width]` in their slots, as [`Groups::product`] takes them.
    pub(super) fn gather(&self, tokens: &Tensor) -> Torch<Tensor> {
        let rows = no_grad(|| tokens.f_index_select(0, &self.from))?; // [slots, width]
        let (place, top_k) = (self.place.shallow_clone(), self.top_k);
        differentiable(&[tokens], &[&rows], move |given, _| {
            let [Some(up)] = given else { return Ok(vec![None]) };
            let width = up.size2()?.1;
            let of_assignments = up.f_index_select(0, &place)?; // [tokens * k, width]
            Ok(vec![Some(match top_k {
                1 => of_assignments,
                _ => of_assignments.f_view([-1, top_k, width])?.f_sum_dim_intlist(
                    1,
                    false,
                    up.kind(),
                )?,
            })])
        })?;
        let width = rows.size2()?.1;
        match &self.products {
            Products::Kernel { .. } => Ok(rows),
            Products::Tiles { rows: each, .. } => rows.f_view([-1, *each, width]),
        }
    }

    /// What the slots of `y` hold, as [`Groups::product`] gives it, for each assignment:
    /// `[tokens, k, width]`.
    pub(super) fn give_back(&self, y: &Tensor) -> Torch<Tensor> {
        let width = y.size().last().copied().unwrap_or_default();
        let y = y.f_reshape([-1, width])?; // [slots, width]
        let rows = no_grad(|| y.f_index_select(0, &self.place))?; // [tokens * k, width]
        let (place, slots) = (self.place.shallow_clone(), y.size2()?.0);
        differentiable(&[&y], &[&rows], move |given, _| {
            let [Some(up)] = given else { return Ok(vec![None]) };
            let all = Tensor::f_zeros([slots, width], (up.kind(), up.device()))?;
            Ok(vec![Some(all.f_index_copy(0, &place, up)?)])
        })?;
        rows.f_view([-1, self.top_k, width])
    }

    /// Products of the slots of `x` with their experts' matrices `weights [experts, out, in]`, of
    /// the same type: `x` is `[slots, in]` in form [`Form::Kernel`], `[tiles, rows, in]` in form
    /// [`Form::Tiles`], and so is what comes out.
    pub(super) fn product(&self, x: &Tensor, weights: &Tensor) -> Torch<Tensor> {
        let (kept_x, kept_weights) = (x.detach(), weights.detach());
        match &self.products {
            Products::Kernel { ends, none } => {
                let y = no_grad(|| {
                    kernel::grouped_mm(&kept_x, &kept_weights.f_transpose(1, 2)?, ends)
                })?;
                let (ends, none) = (ends.shallow_clone(), none.shallow_clone());
                differentiable(&[x, weights], &[&y], move |given, wanted| {
                    let [Some(up)] = given else { return Ok(vec![None, None]) };
                    let up = up.f_contiguous()?;
                    let dx = || kernel::grouped_mm(&up, &kept_weights, &ends);
                    // the sum over an expert's slots; where there are none, a kernel may leave
                    // what was in memory
                    let dw = || {
                        kernel::grouped_mm(&up.f_transpose(0, 1)?, &kept_x, &ends)?
                            .f_masked_fill_(&none, 0.0)
                    };
                    Ok(vec![wanted[0].then(dx).transpose()?, wanted[1].then(dw).transpose()?])
                })?;
                Ok(y)
            }
            Products::Tiles { expert, owners, .. } => {
                let of_tiles = no_grad(|| kept_weights.f_index_select(0, expert))?;
                let y = no_grad(|| kept_x.f_bmm(&of_tiles.f_transpose(1, 2)?))?;
                let (expert, owners) = (expert.shallow_clone(), owners.shallow_clone());
                differentiable(&[x, weights], &[&y], move |given, wanted| {
                    let [Some(up)] = given else { return Ok(vec![None, None]) };
                    let dx = || up.f_bmm(&kept_weights.f_index_select(0, &expert)?);
                    // [tiles, out, in] -> [experts, out, in], as a product: its sums have one order
                    let dw = || {
                        let of_tiles = up.f_transpose(1, 2)?.f_bmm(&kept_x)?;
                        let flat = of_tiles.f_view([expert.size1()?, -1])?;
                        owners.f_mm(&flat)?.f_view(&kept_weights.size()[..])
                    };
                    Ok(vec![wanted[0].then(dx).transpose()?, wanted[1].then(dw).transpose()?])
                })?;
                Ok(y)
            }
        }
    }
}

/// How often each of the numbers below `bins` occurs in `values`, int64 `[bins]`. On CUDA,
/// libtorch's bincount would wait for the least and the largest of them first.
pub(super) fn occurrences(values: &Tensor, bins: i64) -> Torch<Tensor> {
    Tensor::f_zeros([bins], (values.kind(), values.device()))?.f_scatter_add_(
        0,
        values,
        &values.f_ones_like()?,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(tensor: &Tensor) -> Vec<i64> {
        Vec::try_from(tensor.reshape(-1).to_kind(Kind::Int64)).expect("numbers")
    }

    #[test]
    fn assignments_of_an_expert_lie_together_in_token_order() {
        let chosen = Tensor::from_slice(&[2i64, 0, 0, 2, 0, 3]).view([3, 2]);
        let groups = Groups::new(&chosen, 4, Form::Kernel, Kind::Float).expect("groups");
        assert_eq!(numbers(&groups.from), [0, 1, 2, 0, 1, 2]);
        assert_eq!(numbers(&groups.place), [3, 0, 1, 4, 2, 5]);
        let Products::Kernel { ends, none } = &groups.products else { panic!("{groups:?}") };
        assert_eq!(numbers(ends), [3, 3, 5, 6]);
        assert_eq!(numbers(none), [0, 1, 0, 0]);

        let groups = Groups::new(&chosen, 4, Form::Tiles, Kind::Float).expect("groups");
        let Products::Tiles { rows, expert, owners } = &groups.products else {
            panic!("{groups:?}")
        };
        assert_eq!((*rows, numbers(expert)), (8, vec![0, 2, 3, 3]));
        assert_eq!(numbers(&owners.sum_dim_intlist(0, false, Kind::Float)), [1; 4]);
        assert_eq!(numbers(&groups.place), [8, 0, 1, 9, 2, 16]);
        let from = numbers(&groups.from);
        assert_eq!((from[0..3].to_vec(), &from[8..10], from[16]), (vec![0, 1, 2], &[0, 1][..], 2));
    }

    #[test]
    fn the_number_of_slots_does_not_depend_on_what_was_chosen() {
        for (assignments, experts) in [(1, 4), (1000, 4), (32768, 4), (32768, 64), (7, 64)] {
            let even: Vec<i64> = (0..assignments).map(|i| i % experts).collect();
            let one = vec![experts - 1; assignments as usize];
            let slots = [even, one].map(|chosen| {
                let chosen = Tensor::from_slice(&chosen).unsqueeze(1);
                let groups = Groups::new(&chosen, experts, Form::Tiles, Kind::Float);
                let groups = groups.expect("groups");
                let mut places = numbers(&groups.place);
                places.sort_unstable();
                places.dedup();
                assert_eq!(places.len() as i64, assignments, "two in one slot");
                groups.from.size()[0]
            });
            assert_eq!(slots[0], slots[1]);
            let most = assignments * 5 / 4 + 16 * experts;
            assert!((assignments..=most).contains(&slots[0]), "{slots:?} for {assignments}");
        }
    }

    #[test]
    fn the_cpu_computes_experts_one_by_one_and_devices_all_at_once() {
        let of = |device| Way::of(device, Kind::BFloat16, [24, 16], false);
        assert_eq!(of(Device::Cpu), Way::OneByOne);
        assert_eq!(of(Device::Cuda(9)), Way::Grouped(Form::Tiles), "no CUDA device that says 9.0");
    }
}
