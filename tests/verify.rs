//! `mmx logits` and `mmx verify` through the binary, on the golden models.

mod common;

use common::{mmx, mmx_json, shared, text};

fn values(path: &std::path::Path, name: &str) -> (Vec<usize>, Vec<f32>) {
    let file = mmx_converters::safetensors::SafeTensors::open(path).expect("a safetensors file");
    let view = file.get(name).unwrap_or_else(|| panic!("{}: no tensor {name}", path.display()));
    (view.shape.to_vec(), view.to_f32())
}

/// 2e-5: float32 sums in another order than the reference's.
#[test]
fn logits_of_a_two_dimensional_list_equal_the_reference() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("logits.safetensors");
    let golden = shared("golden/minimind3-moe/forward.safetensors");
    let answer = mmx_json(&[
        "logits",
        text(&shared("golden/minimind3-moe")),
        "--ids",
        text(&golden),
        "--out",
        text(&out),
    ]);
    assert_eq!(answer["shape"], serde_json::json!([2, 48, 512]));
    let (shape, found) = values(&out, "logits");
    let (expected_shape, expected) = values(&golden, "logits");
    assert_eq!(shape, expected_shape);
    let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(worst <= 2e-5, "largest difference {worst:e}");
}

#[test]
fn ids_beyond_the_vocabulary_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let ids = folder.path().join("ids.json");
    fs_err::write(&ids, "[1, 2, 512]").expect("a file");
    let line = common::mmx_error(&[
        "verify",
        text(&shared("golden/minimind2")),
        text(&shared("golden/minimind2")),
        "--ids",
        text(&ids),
    ]);
    assert!(line.contains("512"), "{line}");
}

/// Another model of the same shape is far away, and verify says so with exit code 1.
#[test]
fn another_model_does_not_pass() {
    let (one, other) = (shared("golden/minimind3"), shared("golden/minimind2"));
    let out = mmx(&["verify", text(&one), text(&other), "--json"]);
    assert_eq!(out.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).expect("one JSON object");
    assert_eq!(report["ok"], false);
    let rows = report["rows"].as_array().expect("rows");
    let other = rows.iter().find(|r| r["path"] == text(&other)).expect("a row of the other model");
    assert_eq!(other["ok"], false);
    assert!(other["max_abs_diff"].as_f64().expect("a number") > 0.1);
}
