//! A batch's rows with what several of them begin with computed once: rows of a group have their
//! prompt in common, which is a good part of all positions where answers are short.

use mmx_data::Batch;

use crate::model::Branches;

/// Positions that are not worth a sample of their own.
const LEAST: usize = 8;

/// The positions of a batch that are computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared {
    /// Their ids, sample after sample.
    pub ids: Vec<i64>,
    /// The samples: what several rows begin with, and what each goes on with.
    pub branches: Branches,
    /// Where each position of the batch is among them.
    pub places: Vec<usize>,
}

impl Shared {
    /// The positions of rows that follow one another without padding; nothing where rows are padded,
    /// or where none begins as the one before it.
    #[must_use]
    pub fn of(batch: &Batch) -> Option<Self> {
        let (ranges, rewarded) = (batch.ranges(), batch.rewarded.as_ref()?);
        if batch.packed.is_empty() {
            return None;
        }
        let ids = |row: usize| &batch.x[ranges[row].clone()];
        let mut shared =
            Self { ids: Vec::new(), branches: Branches::default(), places: Vec::new() };
        let mut row = 0;
        while row < ranges.len() {
            let of_group = |i: &usize| rewarded.groups.get(*i) == rewarded.groups.get(row);
            let end = row + (row..ranges.len()).take_while(of_group).count();
            let alike = |i: usize| ids(row).iter().zip(ids(i)).take_while(|(a, b)| a == b).count();
            let common = (row + 1..end).map(alike).min().unwrap_or(0);
            let common = if common < LEAST { 0 } else { common };
            let start = shared.ids.len();
            let parent = (common > 0).then(|| shared.push(&ids(row)[..common], None));
            for i in row..end {
                shared.places.extend(start..start + common);
                let own = &ids(i)[common..];
                shared.places.extend(shared.ids.len()..shared.ids.len() + own.len());
                if !own.is_empty() {
                    shared.push(own, parent);
                }
            }
            row = end;
        }
        (shared.ids.len() < batch.x.len()).then_some(shared)
    }

    /// Adds a sample; gives its index.
    fn push(&mut self, ids: &[i64], parent: Option<usize>) -> usize {
        self.ids.extend(ids);
        self.branches.lengths.push(ids.len());
        self.branches.parents.push(parent);
        self.branches.lengths.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use mmx_data::Rewarded;

    use super::*;

    fn batch(rows: &[(u64, &[i64])]) -> Batch {
        let x: Vec<i64> = rows.iter().flat_map(|(_, ids)| ids.iter().copied()).collect();
        Batch {
            batch: 1,
            seq: x.len(),
            x,
            packed: rows.iter().map(|(_, ids)| ids.len()).collect(),
            rewarded: Some(Rewarded {
                groups: rows.iter().map(|(group, _)| *group).collect(),
                ..Rewarded::default()
            }),
            ..Batch::default()
        }
    }

    const PROMPT: [i64; 9] = [1, 2, 3, 4, 5, 6, 7, 8, 9];

    #[test]
    fn a_groups_beginning_is_there_once_and_every_position_is_found() {
        let rows =
            [[&PROMPT[..], &[20, 21]].concat(), PROMPT.to_vec(), [&PROMPT[..], &[30]].concat()];
        let alone = [&PROMPT[..], &[40]].concat();
        let given = [(4, &rows[0][..]), (4, &rows[1]), (4, &rows[2]), (5, &alone)];
        let batch = batch(&given);
        let shared = Shared::of(&batch).expect("something is shared");
        assert_eq!(shared.branches.lengths, [9, 2, 1, 10]);
        assert_eq!(shared.branches.parents, [None, Some(0), Some(0), None]);
        let found: Vec<i64> = shared.places.iter().map(|&place| shared.ids[place]).collect();
        assert_eq!(found, batch.x);
        assert_eq!(shared.ids.len(), 22);
    }

    #[test]
    fn short_beginnings_and_padded_rows_are_left_as_they_are() {
        let rows = [(0, &[1i64, 2, 3, 9][..]), (0, &[1, 2, 3, 8])];
        assert_eq!(Shared::of(&batch(&rows)), None);
        let long = [(0, &PROMPT[..]), (0, &PROMPT)];
        assert!(Shared::of(&batch(&long)).is_some());
        let padded = Batch { packed: Vec::new(), batch: 2, seq: 9, ..batch(&long) };
        assert_eq!(Shared::of(&padded), None);
    }
}
