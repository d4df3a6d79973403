//! Plots as SVG inside a page: values with their intervals, in groups, and points on two axes.
//!
//! In: labels and numbers. Out: SVG text in the page's own fonts and colours (the classes `s0`,
//! `s1`, ... of its style sheet), the same for the same numbers. Labels are text of the page, so
//! any script that the reader's fonts know.

use std::fmt::Write as _;

/// Number of colours: classes `s0` to `s5`.
const COLOURS: usize = 6;
/// Width of a plot, its labels and its right margin, pixels.
const WIDTH: f64 = 860.0;
const LABELS: f64 = 250.0;
const RIGHT: f64 = 70.0;

/// The width of a character in a table: Chinese ones and their like are as wide as two others.
pub fn columns(c: char) -> usize {
    if u32::from(c) >= 0x2e80 { 2 } else { 1 }
}

/// A value and the interval around it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    pub(super) value: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    /// Index of the colour.
    pub(super) series: usize,
}

/// Marks that stand together under one label.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) label: String,
    pub(super) marks: Vec<Mark>,
}

/// A point on two axes.
#[derive(Clone, Debug)]
pub(super) struct Point {
    pub(super) label: String,
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) series: usize,
}

/// Escapes text for a page.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // control characters are no part of a page
            c if c.is_control() && c != '\n' && c != '\t' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A label no wider than its place.
fn fitted(label: &str, units: usize) -> String {
    let mut width = 0;
    for (at, c) in label.char_indices() {
        width += columns(c);
        if width > units {
            return format!("{}…", &label[..at]);
        }
    }
    label.to_owned()
}

/// Round numbers that divide an axis, about `count` of them.
fn ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let rough = (high - low) / count.max(1) as f64;
    if !rough.is_finite() || rough <= 0.0 {
        return Vec::new();
    }
    let scale = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].into_iter().find(|m| m * scale >= rough).unwrap_or(10.0) * scale;
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    (first..=last).map(|i| i as f64 * step).collect()
}

/// A number with as many digits as the distance between ticks asks for.
fn number(value: f64, step: f64) -> String {
    let decimals = (-step.log10().floor()).clamp(0.0, 6.0) as usize;
    format!("{value:.decimals$}")
}

/// The range of an axis: from the least to the largest value with a twentieth of room on either
/// side; never empty.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let finite = values.filter(|v| v.is_finite());
    let (low, high) =
        finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    match high - low {
        width if width > 0.0 => (low - width / 20.0, high + width / 20.0),
        _ if low.is_finite() => (low - low.abs().max(1e-9) / 2.0, low + low.abs().max(1e-9) / 2.0),
        _ => (0.0, 1.0),
    }
}

/// Draws intervals from left to right, one group below the other. `share` is an axis from 0 to 100
/// %; `line` is drawn through all groups.
pub(super) fn intervals(title: &str, groups: &[Group], share: bool, line: Option<f64>) -> String {
    const ROW: f64 = 16.0;
    const GAP: f64 = 10.0;
    const TOP: f64 = 8.0;
    let marks = || groups.iter().flat_map(|g| &g.marks);
    let (low, high) = match share {
        true => (0.0, 1.0),
        false => range(marks().flat_map(|m| [m.low, m.value, m.high])),
    };
    let height = groups.iter().map(|g| g.marks.len().max(1) as f64 * ROW + GAP).sum::<f64>();
    let plot = WIDTH - LABELS - RIGHT;
    let x = |value: f64| LABELS + (value.clamp(low, high) - low) / (high - low) * plot;
    let mut out = begin(title, TOP + height + 28.0);
    let at = ticks(low, high, 6);
    let step = at.windows(2).next().map_or(1.0, |w| w[1] - w[0]);
    for &tick in &at {
        let label = if share { format!("{:.0} %", tick * 100.0) } else { number(tick, step) };
        let x = x(tick);
        let bottom = TOP + height;
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\"/>\
             <text class=\"tick\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
            bottom + 18.0
        );
    }
    if let Some(value) = line {
        let x = x(value);
        let _ = write!(
            out,
            "<line class=\"chance\" x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{:.1}\"/>",
            TOP + height
        );
    }
    let mut y = TOP + GAP / 2.0;
    for group in groups {
        let own = group.marks.len().max(1) as f64 * ROW;
        let _ = write!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}<title>{}</title></text>",
            LABELS - 10.0,
            y + own / 2.0 + 4.0,
            escape(&fitted(&group.label, 32)),
            escape(&group.label)
        );
        for (i, mark) in group.marks.iter().enumerate() {
            let y = y + (i as f64 + 0.5) * ROW;
            let (a, b, v) = (x(mark.low), x(mark.high), x(mark.value));
            let text = if share {
                format!("{:.1} %", mark.value * 100.0)
            } else {
                number(mark.value, step / 10.0)
            };
            let _ = write!(
                out,
                "<g class=\"s{}\"><line x1=\"{a:.1}\" y1=\"{y:.1}\" x2=\"{b:.1}\" y2=\"{y:.1}\"/>\
                 <circle cx=\"{v:.1}\" cy=\"{y:.1}\" r=\"4\"/></g>\
                 <text class=\"value\" x=\"{:.1}\" y=\"{:.1}\">{text}</text>",
                mark.series % COLOURS,
                WIDTH - RIGHT + 8.0,
                y + 4.0
            );
        }
        y += own + GAP;
    }
    out + "</svg>"
}

/// Draws points on two axes.
pub(super) fn scatter(title: &str, x_title: &str, y_title: &str, points: &[Point]) -> String {
    const HEIGHT: f64 = 320.0;
    const LEFT: f64 = 90.0;
    const BELOW: f64 = 50.0;
    let (x_low, x_high) = range(points.iter().map(|p| p.x).chain([0.0]));
    let x_low = x_low.max(0.0);
    let (y_low, y_high) = range(points.iter().map(|p| p.y));
    let (width, height) = (WIDTH - LEFT - 170.0, HEIGHT - BELOW - 10.0);
    let x = |v: f64| LEFT + (v - x_low) / (x_high - x_low) * width;
    let y = |v: f64| 10.0 + (y_high - v) / (y_high - y_low) * height;
    let mut out = begin(title, HEIGHT);
    let (xs, ys) = (ticks(x_low, x_high, 6), ticks(y_low, y_high, 5));
    let step = |at: &[f64]| at.windows(2).next().map_or(1.0, |w| w[1] - w[0]);
    for &tick in &xs {
        let (x, bottom) = (x(tick), 10.0 + height);
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{x:.1}\" y1=\"10\" x2=\"{x:.1}\" y2=\"{bottom:.1}\"/>\
             <text class=\"tick\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            bottom + 18.0,
            number(tick, step(&xs))
        );
    }
    for &tick in &ys {
        let y = y(tick);
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\"/>\
             <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT + width,
            LEFT - 8.0,
            y + 4.0,
            number(tick, step(&ys))
        );
    }
    let _ = write!(
        out,
        "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
         <text class=\"tick\" x=\"16\" y=\"{:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 16 {:.1})\">{}</text>",
        LEFT + width / 2.0,
        HEIGHT - 8.0,
        escape(x_title),
        10.0 + height / 2.0,
        10.0 + height / 2.0,
        escape(y_title)
    );
    for point in points {
        let (x, y) = (x(point.x), y(point.y));
        let _ = write!(
            out,
            "<g class=\"s{}\"><circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\"/></g>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}<title>{}</title></text>",
            point.series % COLOURS,
            x + 9.0,
            y + 4.0,
            escape(&fitted(&point.label, 22)),
            escape(&point.label)
        );
    }
    out + "</svg>"
}

fn begin(title: &str, height: f64) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"{}\">",
        escape(title)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let close = |found: Vec<f64>, expected: &[f64]| {
            assert_eq!(found.len(), expected.len(), "{found:?}");
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9), "{found:?}");
        };
        close(ticks(0.0, 1.0, 6), &[0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
        close(ticks(31.0, 58.0, 5), &[40.0, 50.0]);
        close(ticks(-0.013, 0.02, 4), &[-0.01, 0.0, 0.01, 0.02]);
        close(ticks(1.0, 1.0, 4), &[]);
        assert_eq!((number(0.2, 0.2), number(40.0, 10.0)), ("0.2".to_owned(), "40".to_owned()));
    }

    #[test]
    fn labels_are_text_and_fit() {
        let group = Group {
            label: "<b>物理&\"".into(),
            marks: vec![Mark { value: 0.5, low: 0.25, high: 0.75, series: 1 }],
        };
        let svg = intervals("t", &[group], true, Some(0.25));
        assert!(svg.contains("&lt;b&gt;物理&amp;&quot;") && !svg.contains("<b>"), "{svg}");
        assert!(svg.contains("50.0 %") && svg.contains("class=\"chance\""));
        // the middle of the axis is the middle of its place
        let middle = LABELS + (WIDTH - LABELS - RIGHT) / 2.0;
        assert!(svg.contains(&format!("cx=\"{middle:.1}\"")), "{svg}");
        assert_eq!(fitted("好好好", 4), "好好…");
        assert_eq!(escape("a\u{1b}b"), "a\u{fffd}b");
    }

    #[test]
    fn equal_and_odd_values_still_draw() {
        let point = |x, y| Point { label: "m".into(), x, y, series: 7 };
        for points in [vec![point(1.0, 2.0)], vec![point(1.0, 0.0), point(1.0, 0.0)], Vec::new()] {
            let svg = scatter("t", "MB", "bits", &points);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
        let marks = vec![Mark { value: 3.0, low: 3.0, high: 3.0, series: 0 }];
        let svg = intervals("t", &[Group { label: "m".into(), marks }], false, None);
        assert!(!svg.contains("NaN"), "{svg}");
    }
}
