//! A batch in pieces of some rows whose losses and gradients add up to its own: the activations of
//! one piece are gone before the next one's are made, so that memory does not grow with the batch.

use mmx_data::Batch;

use super::shared::Shared;

/// Positions of a piece, about: enough for matrix products at their full rate (measured at 26M
/// parameters, pieces of 2,100: 235 GFLOP/s a core, which is what the core multiplies at all).
pub const POSITIONS: usize = 2560;

/// Some rows of a batch in pieces of about the same size, in order.
#[must_use]
pub fn pieces(batch: &Batch, rows: &[usize]) -> Vec<Vec<usize>> {
    let batch = batch.select(rows);
    let lengths: Vec<usize> = batch.ranges().into_iter().map(|range| range.len()).collect();
    let all = Shared::of(&batch).map_or(batch.x.len(), |shared| shared.ids.len());
    let count = all.div_ceil(POSITIONS).clamp(1, lengths.len().max(1));
    let total: usize = lengths.iter().sum();
    let (mut pieces, mut done) = (vec![Vec::new(); count], 0);
    for (&row, length) in rows.iter().zip(lengths) {
        // by the middle of the row
        let piece = (2 * done + length) * count / (2 * total).max(1);
        pieces[piece.min(count - 1)].push(row);
        done += length;
    }
    pieces.retain(|rows| !rows.is_empty());
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(lengths: &[usize]) -> Batch {
        let all = lengths.iter().sum();
        let (x, mask) = (vec![7; all], vec![1.0; all]);
        let (y, packed) = (x.clone(), lengths.to_vec());
        Batch { batch: 1, seq: all, x, y, mask, packed, ..Batch::default() }
    }

    #[test]
    fn pieces_hold_every_row_once_in_about_equal_parts() {
        let pieces = |batch: &Batch| super::pieces(batch, &batch.rows());
        assert_eq!(pieces(&batch(&[5, 9, 2])), [vec![0, 1, 2]]);
        assert_eq!(pieces(&batch(&[1000; 5])), [vec![0, 1], vec![2, 3, 4]]);
        assert_eq!(pieces(&batch(&[9000, 10, 10])), [vec![0], vec![1, 2]]);
        assert_eq!(pieces(&Batch::default()), Vec::<Vec<usize>>::new());
        assert_eq!(super::pieces(&batch(&[2000; 4]), &[1, 2, 3]), [vec![1], vec![2], vec![3]]);
        let many = pieces(&batch(&[383; 16]));
        assert_eq!(many.concat(), (0..16).collect::<Vec<_>>());
        let positions = |rows: &Vec<usize>| rows.len() * 383;
        assert!(many.iter().map(positions).all(|n| n <= POSITIONS), "{many:?}");
    }
}
