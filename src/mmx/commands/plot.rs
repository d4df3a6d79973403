//! `mmx plot`: the curves of training runs as a picture.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::error::Result;
use mmx_eval::curves::{self, Curves};

/// Draw loss and learning-rate curves of one or several training runs
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  mmx plot runs/pretrain --out loss.png
  mmx plot runs/sft-lr1 runs/sft-lr2 --out compare.svg")]
pub(crate) struct PlotArgs {
    /// Folders of runs, or their metrics.jsonl
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// The picture: a name that ends in .png or .svg
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Runs it.
///
/// # Errors
/// See [`Curves::read`] and [`curves::draw`].
pub(crate) fn run(args: &PlotArgs, as_json: bool) -> Result<()> {
    mmx_converters::file::refuse_input(&args.out, args.runs.iter().map(PathBuf::as_path))?;
    let mut runs = args.runs.iter().map(|run| Curves::read(run)).collect::<Result<Vec<_>, _>>()?;
    curves::shorten(&mut runs);
    curves::draw(&runs, &args.out)?;
    if as_json {
        let last = |points: &[(f64, f64)]| points.last().map(|point| point.1);
        let rows = runs.iter().zip(&args.runs).map(|(run, path)| {
            json!({
                "run": path.to_string_lossy(),
                "steps": run.lr.last().map(|point| point.0),
                "loss": last(&run.loss),
                "val_loss": last(&run.val_loss),
                "reward": last(&run.reward),
                "val_reward": last(&run.val_reward),
            })
        });
        let rows: Vec<_> = rows.collect();
        println!("{}", json!({"path": args.out.to_string_lossy(), "runs": rows}));
    } else {
        println!("{}", args.out.display());
    }
    Ok(())
}
