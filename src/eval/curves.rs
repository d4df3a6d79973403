//! Curves of training runs as a picture: loss above, learning rate below, by optimizer step.
//!
//! In: metrics.jsonl of one or several runs. Out: a PNG or an SVG, the same bytes every time.
//! Labels are drawn with a font that is in the program: no system font is needed.

use std::path::Path;

use mmx_converters::file;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};
use serde_json::Value;

use mmx_converters::{Error, Result};

/// The picture's size in pixels.
const SIZE: (u32, u32) = (1200, 900);
/// Most points of a curve: where there are more, neighbours are drawn as their mean.
const POINTS: usize = 1000;
/// A blue, orange, green, red, purple, brown: colours that differ also for the colour-blind.
const COLOURS: [RGBColor; 6] = [
    RGBColor(31, 119, 180),
    RGBColor(255, 127, 14),
    RGBColor(44, 160, 44),
    RGBColor(214, 39, 40),
    RGBColor(148, 103, 189),
    RGBColor(140, 86, 75),
];

/// A point of a curve: step and value.
type Point = (f64, f64);

/// The curves that a run logged.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curves {
    /// The run's folder.
    pub name: String,
    /// Training loss per optimizer step, where a token was learned.
    pub loss: Vec<Point>,
    /// Learning rate per optimizer step.
    pub lr: Vec<Point>,
    /// Loss of held-out data.
    pub val_loss: Vec<Point>,
    /// Mean reward per optimizer step, where a run learns from rewards.
    pub reward: Vec<Point>,
    /// Mean reward of held-out tasks.
    pub val_reward: Vec<Point>,
}

impl Curves {
    /// Reads the curves of a run's folder, or of its metrics.jsonl. A last line that was cut short
    /// is passed over.
    ///
    /// # Errors
    /// A file that cannot be read, or one without an optimizer step.
    pub fn read(run: &Path) -> Result<Self> {
        let path = if run.is_dir() { run.join("metrics.jsonl") } else { run.to_owned() };
        let text = fs_err::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut curves = Self { name: folder.display().to_string(), ..Self::default() };
        for line in text.lines() {
            let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
            let Some(step) = line["step"].as_f64() else { continue };
            let lists = [
                ("loss", &mut curves.loss),
                ("lr", &mut curves.lr),
                ("val_loss", &mut curves.val_loss),
                ("reward", &mut curves.reward),
                ("val_reward", &mut curves.val_reward),
            ];
            for (key, list) in lists {
                list.extend(line[key].as_f64().map(|value| (step, value)));
            }
        }
        if curves.lr.is_empty() {
            return Err(Error::failed(format!(
                "{}: expected at least one optimizer step, found none",
                path.display()
            )));
        }
        Ok(curves)
    }
}

/// Draws runs into a picture, by the ending of its name.
///
/// # Errors
/// A name that ends in neither `.png` nor `.svg`; a file that cannot be written.
pub fn draw(runs: &[Curves], out: &Path) -> Result<()> {
    // the chart library looks its fonts up by name, once per process
    register_font("sans-serif", FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT)
        .map_err(|_| Error::failed("the chart's font: expected a TrueType font"))?;
    let fault = |reason: String| Error::failed(format!("{}: {reason}", out.display()));
    match out.extension().and_then(|e| e.to_str()) {
        Some("svg") => {
            let mut text = String::new();
            chart(&SVGBackend::with_string(&mut text, SIZE).into_drawing_area(), runs)
                .map_err(fault)?;
            Ok(file::write_bytes(out, text.as_bytes())?)
        }
        Some("png") => {
            let mut pixels = vec![0; SIZE.0 as usize * SIZE.1 as usize * 3];
            chart(&BitMapBackend::with_buffer(&mut pixels, SIZE).into_drawing_area(), runs)
                .map_err(fault)?;
            Ok(file::write_bytes(out, &png(&pixels).map_err(|e| fault(e.to_string()))?)?)
        }
        _ => Err(Error::setting("out", "a name that ends in .png or .svg", out.display())),
    }
}

fn png(pixels: &[u8]) -> std::result::Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, SIZE.0, SIZE.1);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(bytes)
}

/// Draws both panels: loss and learning rate, or reward and loss where all runs have rewards.
fn chart<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    runs: &[Curves],
) -> std::result::Result<(), String> {
    area.fill(&WHITE).map_err(|e| e.to_string())?;
    let (above, below) = area.split_vertically(SIZE.1 * 2 / 3);
    let loss: Vec<Panel<'_>> = runs
        .iter()
        .map(|run| Panel { name: &run.name, line: &run.loss, dots: &run.val_loss })
        .collect();
    let line = |of: fn(&Curves) -> &[Point]| -> Vec<Panel<'_>> {
        runs.iter().map(|run| Panel { name: &run.name, line: of(run), dots: &[] }).collect()
    };
    if runs.iter().all(|run| !run.reward.is_empty()) {
        let held_out = runs.iter().any(|run| !run.val_reward.is_empty());
        let title = if held_out { "mean reward (dots: held out, greedy)" } else { "mean reward" };
        let rewards: Vec<Panel<'_>> = runs
            .iter()
            .map(|run| Panel { name: &run.name, line: &run.reward, dots: &run.val_reward })
            .collect();
        panel(&above, title, &rewards)?;
        panel(&below, "loss", &line(|run| &run.loss))?;
        return area.present().map_err(|e| e.to_string());
    }
    panel(&above, "loss (dots: held out)", &loss)?;
    panel(&below, "learning rate", &line(|run| &run.lr))?;
    area.present().map_err(|e| e.to_string())
}

/// One run in one panel.
struct Panel<'a> {
    name: &'a str,
    line: &'a [Point],
    dots: &'a [Point],
}

fn panel<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    title: &str,
    runs: &[Panel<'_>],
) -> std::result::Result<(), String> {
    let points = || runs.iter().flat_map(|run| run.line.iter().chain(run.dots));
    let steps = range(points().map(|p| p.0), 0.0);
    let values = range(points().map(|p| p.1), 0.05);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 22))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(80)
        .build_cartesian_2d(steps.0..steps.1, values.0..values.1)
        .map_err(|e| e.to_string())?;
    chart
        .configure_mesh()
        .x_desc("optimizer step")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&number)
        .label_style(("sans-serif", 16))
        .light_line_style(WHITE)
        .draw()
        .map_err(|e| e.to_string())?;
    for (run, colour) in runs.iter().zip(COLOURS.iter().cycle()) {
        let line = LineSeries::new(thinned(run.line), colour.stroke_width(2));
        chart
            .draw_series(line)
            .map_err(|e| e.to_string())?
            .label(run.name)
            .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        let dots = run.dots.iter().map(|&at| Circle::new(at, 5, colour.filled()));
        chart.draw_series(dots).map_err(|e| e.to_string())?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(RGBColor(200, 200, 200))
        .label_font(("sans-serif", 16))
        .draw()
        .map_err(|e| e.to_string())
}

/// The least and the largest of values, with a share of room on either side; never empty.
fn range(values: impl Iterator<Item = f64>, room: f64) -> Point {
    let finite = values.filter(|value| value.is_finite());
    let (low, high) =
        finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    match high - low {
        width if width > 0.0 => (low - width * room, high + width * room),
        _ if low.is_finite() => (low - low.abs().max(1e-9) / 2.0, low + low.abs().max(1e-9) / 2.0),
        _ => (0.0, 1.0),
    }
}

/// A value as text for an axis.
fn number(value: &f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        0.01..1e5 => format!("{value:.2}"),
        _ => format!("{value:.1e}"),
    }
}

/// At most [`POINTS`] points: the means of neighbours.
fn thinned(points: &[Point]) -> Vec<Point> {
    let each = points.len().div_ceil(POINTS).max(1);
    let mean = |part: &[Point]| {
        let (x, y) = part.iter().fold((0.0, 0.0), |(x, y), p| (x + p.0, y + p.1));
        (x / part.len() as f64, y / part.len() as f64)
    };
    points.chunks(each).map(mean).collect()
}

/// Names runs by their folders' last parts where these differ: `sft` and `dpo` for `runs/sft` and
/// `runs/dpo`.
pub fn shorten(runs: &mut [Curves]) {
    let last =
        |run: &Curves| Path::new(&run.name).file_name().map(|n| n.to_string_lossy().into_owned());
    let short: Vec<Option<String>> = runs.iter().map(last).collect();
    let all_differ = (1..short.len()).all(|i| !short[..i].contains(&short[i]));
    for (run, short) in runs.iter_mut().zip(short) {
        if let (true, Some(short)) = (all_differ, short) {
            run.name = short;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_are_what_was_logged_and_draw_to_both_kinds_of_picture() {
        let dir = tempfile::tempdir().expect("a folder");
        let log = dir.path().join("metrics.jsonl");
        let lines = [
            r#"{"step": 1, "lr": 0.1, "loss": 4.0}"#,
            r#"{"step": 2, "lr": 0.05, "loss": null}"#,
            r#"{"step": 2, "val_loss": 3.5, "samples": []}"#,
            r#"{"step": 3, "lr": 0.02, "loss": 3.0}"#,
            r#"{"step": 4, "lr": 0."#,
        ];
        fs_err::write(&log, lines.join("\n")).expect("a file");
        let mut curves = Curves::read(dir.path()).expect("curves");
        assert_eq!(curves, Curves::read(&log).expect("the same"));
        assert_eq!(curves.loss, [(1.0, 4.0), (3.0, 3.0)]);
        assert_eq!(curves.lr, [(1.0, 0.1), (2.0, 0.05), (3.0, 0.02)]);
        assert_eq!(curves.val_loss, [(2.0, 3.5)]);

        curves.name = "first".into();
        let runs = [curves.clone(), Curves { name: "second".into(), ..curves }];
        for name in ["a.svg", "a.png", "b.svg", "b.png"] {
            draw(&runs, &dir.path().join(name)).expect("drawn");
        }
        let read = |name: &str| fs_err::read(dir.path().join(name)).expect("a picture");
        assert!(read("a.svg") == read("b.svg") && read("a.png") == read("b.png"), "the same twice");
        let svg = String::from_utf8(read("a.svg")).expect("text");
        for word in ["optimizer step", "learning rate", "first", "second", "<circle"] {
            assert!(svg.contains(word), "{word}");
        }
        let decoder = png::Decoder::new(std::io::Cursor::new(read("a.png")));
        let mut reader = decoder.read_info().expect("a PNG");
        let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
        reader.next_frame(&mut pixels).expect("a frame");
        let has = |colour: RGBColor| pixels.chunks(3).any(|p| p == [colour.0, colour.1, colour.2]);
        assert!(has(COLOURS[0]) && has(COLOURS[1]), "a line of each run");
        // the caption's letters, left of which nothing else is drawn
        let top = &pixels[..SIZE.0 as usize * 3 * 34];
        assert!(top.iter().filter(|&&byte| byte < 128).count() > 100, "text in the picture");

        let error = draw(&runs, &dir.path().join("a.gif")).expect_err("no such kind");
        assert!(matches!(error, Error::Setting { .. }), "{error}");
        fs_err::write(&log, "").expect("a file");
        let error = Curves::read(dir.path()).expect_err("no step").to_string();
        assert!(error.contains("expected at least one optimizer step"), "{error}");
    }

    #[test]
    fn rewards_are_drawn_with_those_of_held_out_tasks() {
        let dir = tempfile::tempdir().expect("a folder");
        let lines = [
            r#"{"step": 0, "val_reward": 0.25, "val_length": 7.0}"#,
            r#"{"step": 1, "lr": 0.1, "loss": 4.0, "reward": 0.5}"#,
            r#"{"step": 2, "lr": 0.1, "loss": 3.0, "reward": 0.75}"#,
            r#"{"step": 2, "val_reward": 0.5}"#,
        ];
        fs_err::write(dir.path().join("metrics.jsonl"), lines.join("\n")).expect("a file");
        let run = Curves::read(dir.path()).expect("curves");
        assert_eq!(run.val_reward, [(0.0, 0.25), (2.0, 0.5)]);
        assert_eq!(run.reward, [(1.0, 0.5), (2.0, 0.75)]);
        let picture = dir.path().join("a.svg");
        draw(&[run], &picture).expect("drawn");
        let svg = fs_err::read_to_string(&picture).expect("a picture");
        assert!(svg.contains("held out, greedy"), "the caption");
        assert_eq!(svg.matches("<circle").count(), 2);
    }

    #[test]
    fn long_runs_are_thinned_to_means_and_names_to_what_differs() {
        let points: Vec<Point> = (0..2000).map(|i| (f64::from(i), f64::from(i % 2))).collect();
        let thin = thinned(&points);
        assert_eq!((thin.len(), thin[0], thin[999]), (1000, (0.5, 0.5), (1998.5, 0.5)));
        let named = |name: &str| Curves { name: name.into(), ..Curves::default() };
        let mut runs = [named("runs/sft"), named("runs/dpo")];
        shorten(&mut runs);
        assert_eq!(runs.each_ref().map(|run| run.name.as_str()), ["sft", "dpo"]);
        let mut runs = [named("a/sft"), named("b/sft")];
        shorten(&mut runs);
        assert_eq!(runs.each_ref().map(|run| run.name.as_str()), ["a/sft", "b/sft"]);
    }
}
