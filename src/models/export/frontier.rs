//! Size against divergence: the line of files from the smallest to the finest, and its plot.

use std::collections::BTreeMap;

use mmx_converters::gguf::GgmlType;
use mmx_ggml::FileType;
use serde::Serialize;

/// A file that was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// A file type, or `mixed`.
    pub name: String,
    /// Size of the file.
    pub bytes: u64,
    /// Mean KL divergence from the checkpoint, nats.
    pub mean_kl: f64,
    /// Perplexity of the text.
    pub ppl: Option<f64>,
    /// Matrices by type.
    pub types: BTreeMap<String, usize>,
    /// True for the file that was written.
    pub chosen: bool,
}

/// A type for each matrix.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Chosen {
    pub(super) types: BTreeMap<String, (GgmlType, usize)>,
}

impl Chosen {
    /// The type of a tensor; float32 for what is no matrix.
    pub(super) fn type_of(&self, name: &str) -> GgmlType {
        self.types.get(name).map_or(GgmlType::F32, |(ty, _)| *ty)
    }

    /// The file type whose own type most of the values have.
    pub(super) fn file_type(&self) -> FileType {
        let mut elements: BTreeMap<&str, (GgmlType, usize)> = BTreeMap::new();
        for (ty, n) in self.types.values() {
            elements.entry(ty.name()).or_insert((*ty, 0)).1 += n;
        }
        let most = elements.into_values().max_by_key(|(_, n)| *n).map_or(GgmlType::F32, |m| m.0);
        let mut of_base = FileType::ALL.iter().copied().filter(|file| file.base() == most);
        let first = of_base.clone().next().unwrap_or(FileType::F32);
        // of several recipes on one base type (q4_k_s, q4_k_m) the usual one
        of_base.find(|file| file.name().ends_with("_m")).unwrap_or(first)
    }

    pub(super) fn counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for (ty, _) in self.types.values() {
            *counts.entry(ty.name().to_owned()).or_default() += 1;
        }
        counts
    }
}

/// A type a matrix may get: its bytes, and what it is expected to cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Choice {
    pub(super) ty: GgmlType,
    pub(super) bytes: u64,
    pub(super) kl: f64,
}

/// Files from the smallest to the finest, each one step from the last: the step that lowers the
/// expected divergence most per byte.
pub(super) fn line(tensors: &[(String, Vec<Choice>)]) -> Vec<Chosen> {
    let hulls: Vec<Vec<Choice>> = tensors.iter().map(|(_, choices)| hull(choices)).collect();
    let elements = |choice: &Choice| {
        let per = choice.ty.block_elements() as u64;
        usize::try_from(choice.bytes / choice.ty.block_bytes() as u64 * per).unwrap_or(usize::MAX)
    };
    let mut steps: Vec<(f64, usize, usize)> = Vec::new();
    for (tensor, hull) in hulls.iter().enumerate() {
        for (i, pair) in hull.windows(2).enumerate() {
            let gain = (pair[0].kl - pair[1].kl) / (pair[1].bytes - pair[0].bytes) as f64;
            steps.push((gain, tensor, i + 1));
        }
    }
    // along one tensor gains fall, so its steps stay in order
    steps.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
    let mut now = Chosen::default();
    for ((name, _), hull) in tensors.iter().zip(&hulls) {
        if let Some(choice) = hull.first() {
            now.types.insert(name.clone(), (choice.ty, elements(choice)));
        }
    }
    let mut line = vec![now.clone()];
    for (_, tensor, i) in steps {
        let choice = &hulls[tensor][i];
        now.types.insert(tensors[tensor].0.clone(), (choice.ty, elements(choice)));
        line.push(now.clone());
    }
    line
}

/// The choices worth taking: sorted by size, each further byte buying less than the one before.
fn hull(choices: &[Choice]) -> Vec<Choice> {
    let mut sorted = choices.to_vec();
    sorted.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.kl.total_cmp(&b.kl)));
    let mut hull: Vec<Choice> = Vec::new();
    for choice in sorted {
        if hull.last().is_some_and(|last| choice.kl >= last.kl || choice.bytes == last.bytes) {
            continue;
        }
        while let [.., a, b] = hull.as_slice() {
            let slope =
                |from: &Choice, to: &Choice| (from.kl - to.kl) / (to.bytes - from.bytes) as f64;
            if slope(a, b) > slope(b, &choice) {
                break;
            }
            hull.pop();
        }
        hull.push(choice);
    }
    hull
}

/// Draws size against divergence, both on logarithmic scales, as SVG.
pub(super) fn plot(points: &[Point]) -> String {
    const WIDTH: f64 = 640.0;
    const HEIGHT: f64 = 400.0;
    const MARGIN: f64 = 56.0;
    let place = |value: f64, low: f64, high: f64, length: f64| {
        let share = (value.ln() - low.ln()) / (high.ln() - low.ln()).max(1e-9);
        MARGIN + share * (length - 2.0 * MARGIN)
    };
    let kl = |point: &Point| point.mean_kl.max(1e-9);
    let range = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, 0f64), |(low, high), v| (low.min(v), high.max(v)))
    };
    let (small, large) = range(&mut points.iter().map(|p| p.bytes as f64));
    let (low, high) = range(&mut points.iter().map(kl));
    let x = |point: &Point| place(point.bytes as f64, small, large, WIDTH);
    let y = |point: &Point| HEIGHT - place(kl(point), low, high, HEIGHT);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">size, MB (log)</text>\n\
         <text x=\"12\" y=\"24\">mean KL, nats (log)</text>\n",
        WIDTH / 2.0,
        HEIGHT - 12.0
    );
    let line: Vec<String> = points
        .iter()
        .filter(|p| p.name == "mixed")
        .map(|p| format!("{:.1},{:.1}", x(p), y(p)))
        .collect();
    svg.push_str(&format!(
        "<polyline points=\"{}\" fill=\"none\" stroke=\"#888\"/>\n",
        line.join(" ")
    ));
    for point in points {
        let (colour, radius) = match (point.chosen, point.name == "mixed") {
            (true, _) => ("#c00", 6),
            (_, true) => ("#333", 3),
            _ => ("#06c", 4),
        };
        let label = if point.name == "mixed" && !point.chosen {
            String::new()
        } else {
            format!("{} {:.2} MB, {:.1e}", point.name, point.bytes as f64 / 1e6, point.mean_kl)
        };
        svg.push_str(&format!(
            "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"{radius}\" fill=\"{colour}\"/>\
             <text x=\"{tx:.1}\" y=\"{ty:.1}\">{label}</text>\n",
            cx = x(point),
            cy = y(point),
            tx = x(point) + 8.0,
            ty = y(point) - 4.0
        ));
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(ty: GgmlType, bytes: u64, kl: f64) -> Choice {
        Choice { ty, bytes, kl }
    }

    #[test]
    fn steps_are_taken_in_the_order_of_what_they_buy() {
        use GgmlType::{Q4_0, Q5_0, Q8_0};
        let a = vec![choice(Q4_0, 18, 10.0), choice(Q5_0, 22, 1.0), choice(Q8_0, 34, 0.5)];
        let b = vec![choice(Q4_0, 18, 2.0), choice(Q5_0, 22, 1.9), choice(Q8_0, 34, 0.1)];
        let line = line(&[("a".into(), a), ("b".into(), b)]);
        let types: Vec<_> = line.iter().map(|c| (c.type_of("a"), c.type_of("b"))).collect();
        // b's middle choice buys less per byte than going straight to its finest
        assert_eq!(types, [(Q4_0, Q4_0), (Q5_0, Q4_0), (Q5_0, Q8_0), (Q8_0, Q8_0)]);
        assert_eq!(line[0].file_type(), FileType::Q4_0);
        assert_eq!(line[0].type_of("norm"), GgmlType::F32);
    }

    #[test]
    fn a_choice_that_is_larger_and_worse_is_left_out() {
        use GgmlType::{Q4_0, Q4_1, Q5_0};
        let found = hull(&[choice(Q4_1, 20, 3.0), choice(Q4_0, 18, 2.0), choice(Q5_0, 22, 1.0)]);
        assert_eq!(found.iter().map(|c| c.ty).collect::<Vec<_>>(), [Q4_0, Q5_0]);
    }
}
